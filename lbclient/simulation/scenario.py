"""What happens to whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lbclient import checks
from lbclient.simulation.load import Load
from lbclient.simulation.server import Server

__all__ = ["Scenario"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens to whom: `servers`, the `load`, and so many `clients` that share it.

    - `load`: `Open(...)`, `Closed(...)`, any object with such a `start`, or a list of these, which
      all run from 0 on.
    - `idempotent`: whether the requests may be repeated.
    - `until`: the run is broken off then, in seconds; who is unanswered has failed.
    - `patience`: seconds that a request without deadline waits for a place.
    - `ttl`: seconds between two look-ups of who is there; who joins or leaves is known that late.
    - `timeout`: seconds that an attempt waits for the headers, like a client's read time-out: then
      it fails with TimeoutError. None: it waits as long as the retry policy allows.

    Raises ValueError or TypeError, naming the argument.
    """

    servers: Sequence[Server]
    load: Load | Sequence[Load]
    clients: int = 1
    idempotent: bool = True
    until: float = math.inf
    patience: float = 5.0
    ttl: float = 1.0
    timeout: float | None = None

    def __post_init__(self) -> None:
        servers = checks.several("servers", self.servers, "Server(...)")
        if not all(isinstance(one, Server) for one in servers):
            raise TypeError(f"servers must be Server(...) each, not {self.servers!r}")
        if not servers or len({one.name for one in self.servers}) < len(servers):
            raise ValueError("servers must not be empty, and their names must be unique")
        if not self.loads or not all(isinstance(one, Load) for one in self.loads):
            raise TypeError(
                "load must be Open(...), Closed(...), an object with their method start, "
                f"or a list of these, not {self.load!r}"
            )
        checks.count("clients", self.clients)
        if not isinstance(self.idempotent, bool):
            raise TypeError(f"idempotent must be True or False, not {self.idempotent!r}")
        if self.until != math.inf:
            checks.seconds("until", self.until)
        checks.number("patience (seconds)", self.patience)
        checks.seconds("ttl", self.ttl)
        if self.timeout is not None:
            checks.seconds("timeout", self.timeout)

    @property
    def loads(self) -> Sequence[Load]:
        """The loads, where one is given also a list."""
        return self.load if isinstance(self.load, list | tuple) else (self.load,)
