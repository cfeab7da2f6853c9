"""Scenarios: the servers and the requests. Requests arrive at a rate, or come from workers that
wait for each response."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lbclient._internal import validation
from lbclient._internal.signals import Pause
from lbclient.simulation.behaviour import SimulatedRequest
from lbclient.simulation.server import Server
from lbclient.simulation.world import Process, World

__all__ = ["Closed", "Load", "Open", "Scenario"]

Request = Callable[..., Process[object]]
"""`request(client)` makes a process that sends one request of the client with that number (from 0).
`request(client, SimulatedRequest(...))` makes a process that sends this request.
"""

Asked = SimulatedRequest | Callable[[int], SimulatedRequest] | None
"""The requests of a load: one `SimulatedRequest` for all, or a function that returns the request
for a number (its position in the load, from 0). None means `SimulatedRequest()`."""


@runtime_checkable
class Load(Protocol):
    """Makes the requests of a scenario: `Open`, `Closed`, or your own object."""

    def start(
        self, world: World, clients: int, request: Request, rng: random.Random
    ) -> Sequence[Sequence[object]]:
        """Start the requests. Each is started by `world.spawn(request(client))`, or as a part of
        another process.

        Returns a list for each part of the load, like the list that `World.spawn` returns. Each
        list is empty until its part of the load has ended. `rng` is the load's own random number
        generator.
        """
        ...


@dataclass(frozen=True, slots=True)
class Open:
    """`rate` requests per second for `seconds`, whether or not earlier requests were answered.

    The requests arrive at regular intervals, or at random times if `poisson` is True. The clients
    send them in turn. `request` is a `SimulatedRequest`, or a function of the request's number
    (from 0) that returns a `SimulatedRequest`.
    """

    rate: float
    seconds: float
    poisson: bool = False
    request: Asked = None

    def __post_init__(self) -> None:
        _check(self.request)
        validation.number("rate (requests per second)", self.rate, above=True)
        validation.seconds("seconds", self.seconds)

    def start(
        self, world: World, clients: int, request: Request, rng: random.Random
    ) -> list[list[None]]:
        """Start the requests. The returned list contains one list, which is empty until the load
        has ended."""
        return [world.spawn(self._arrive(world, clients, request, rng))]

    def _arrive(
        self, world: World, clients: int, request: Request, rng: random.Random
    ) -> Process[None]:
        for number, time in enumerate(self._times(rng)):
            if time > world.clock():
                yield Pause(time - world.clock())
            world.spawn(_made(request, number % clients, self.request, number))
        yield Pause(0.0)  # until the last request has begun

    def _times(self, rng: random.Random) -> Iterator[float]:
        """Yield the arrival times."""
        if not self.poisson:
            yield from (n / self.rate for n in range(round(self.rate * self.seconds)))
            return
        time = 0.0
        while (time := time + rng.expovariate(self.rate)) < self.seconds:
            yield time


@dataclass(frozen=True, slots=True)
class Closed:
    """Each client has this number of `workers`. For `seconds`, each worker sends one request at a
    time, and waits `think` seconds before the next one. `request` is the same as in `Open`."""

    workers: int
    seconds: float
    think: float = 0.0
    request: Asked = None

    def __post_init__(self) -> None:
        _check(self.request)
        validation.count("workers", self.workers)
        validation.seconds("seconds", self.seconds)
        validation.number("think (seconds)", self.think)

    def start(
        self, world: World, clients: int, request: Request, rng: random.Random
    ) -> list[list[None]]:
        """Start the workers, at random times within their first pause."""
        numbers = itertools.count()
        return [
            world.spawn(self._work(world, request, client, rng.random() * self.think, numbers))
            for client in range(clients)
            for _ in range(self.workers)
        ]

    def _work(
        self, world: World, request: Request, client: int, first: float, numbers: Iterator[int]
    ) -> Process[None]:
        if first:
            yield Pause(first)
        while world.clock() < self.seconds:
            before = world.clock()
            yield from _made(request, client, self.request, next(numbers))
            if pause := max(self.think, 0.0 if world.clock() > before else _LEAST):
                yield Pause(pause)


_LEAST = 0.001
"""The shortest pause in seconds of a worker whose request took no time. Without it, time would not
advance.
"""


def _check(asked: object) -> None:
    if asked is not None and not isinstance(asked, SimulatedRequest):
        validation.function("request (SimulatedRequest(...), or a function that makes one)", asked)


def _made(request: Request, client: int, asked: Asked, number: int) -> Process[object]:
    if asked is None:
        return request(client)
    made = asked if isinstance(asked, SimulatedRequest) else asked(number)
    if not isinstance(made, SimulatedRequest):
        raise TypeError(
            f"request({number}) of the load must return SimulatedRequest(...), not {made!r}"
        )
    return request(client, made)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated: the `servers`, the `load`, and the number of `clients` that send the
    requests of the load.

    - `load`: `Open(...)`, `Closed(...)`, any object with a method `start` like theirs, or a list of
      loads, which all begin at the time 0.
    - `idempotent`: whether the requests may be repeated.
    - `until`: the time in seconds at which the run is stopped. Requests without a response by then
      have failed.
    - `patience`: seconds that a request without a deadline waits for a slot.
    - `ttl`: seconds between two lookups of discovery. A server that joins or leaves is noticed at
      the next lookup.
    - `timeout`: seconds that an attempt waits for the headers, like the read timeout of a client.
      After that it fails with TimeoutError. With None, an attempt waits as long as the retry policy
      allows.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
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
        servers = validation.several("servers", self.servers, "Server(...)")
        if not all(isinstance(server, Server) for server in servers):
            raise TypeError(f"servers must contain Server(...) values, not {self.servers!r}")
        if not servers or len({server.name for server in self.servers}) < len(servers):
            raise ValueError("servers must not be empty, and their names must be unique")
        if not self.loads or not all(isinstance(load, Load) for load in self.loads):
            raise TypeError(
                "load must be Open(...), Closed(...), an object with a method start like theirs, "
                f"or a list of these, not {self.load!r}"
            )
        validation.count("clients", self.clients)
        if not isinstance(self.idempotent, bool):
            raise TypeError(f"idempotent must be True or False, not {self.idempotent!r}")
        if self.until != math.inf:
            validation.seconds("until", self.until)
        validation.number("patience (seconds)", self.patience)
        validation.seconds("ttl", self.ttl)
        if self.timeout is not None:
            validation.seconds("timeout", self.timeout)

    @property
    def loads(self) -> Sequence[Load]:
        """The loads as a sequence, even if there is only one."""
        return self.load if isinstance(self.load, Sequence) else (self.load,)
