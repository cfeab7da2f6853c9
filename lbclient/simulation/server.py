"""A simulated instance: it counts what it has in flight, and answers as its behaviour says."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from dataclasses import dataclass

from lbclient._internal import validation
from lbclient.endpoint.instance import Instance
from lbclient.simulation.behaviour import (
    Asked,
    Behaviour,
    Reply,
    SimulatedRequest,
    status_of,
    taking_request,
)
from lbclient.simulation.world import World
from lbclient.strategy.outcome_history import LatencyByLoad
from lbclient.strategy.protocol import LoadReport

__all__ = ["Host", "Server"]

_MEMORY = 2.0
"""Seconds for which a server knows how long its answers took."""


@dataclass(frozen=True, slots=True)
class Server:
    """One instance of the simulated service, by name.

    It is known to discovery from `joins` to `leaves` (seconds); `weight`, `priority` and `zone` are
    those of its instance. With `reports` it says, with each answer and to probes, how many requests
    it has in flight, and how long answers take at so many (`LoadReport`).

    Each run begins with a deep copy of `behaviour` for each server: an object with `__call__` may
    keep state, and servers that share one object do not share it. A function is called as it is;
    `per_run` is for one that keeps state.

    Raises ValueError or TypeError for what is none of that.
    """

    name: str
    behaviour: Behaviour
    joins: float = 0.0
    leaves: float = math.inf
    weight: float = 1
    priority: int = 0
    zone: str | None = None
    reports: bool = False

    def __post_init__(self) -> None:
        validation.host("name", self.name)
        validation.function("behaviour", self.behaviour)
        validation.number("joins (seconds)", self.joins)
        if self.leaves != math.inf:
            validation.number("leaves (seconds)", self.leaves, least=self.joins, above=True)
        if not isinstance(self.reports, bool):
            raise TypeError(f"reports must be True or False, not {self.reports!r}")
        _ = self.instance

    @property
    def instance(self) -> Instance:
        """As discovery names it."""
        metadata = {} if self.zone is None else {"zone": self.zone}
        return Instance(self.name, 80, self.weight, self.priority, metadata)

    def known(self, now: float) -> bool:
        """True while discovery names it."""
        return self.joins <= now < self.leaves


class Host:
    """A server in a world. A request that its caller gives up goes on here until it is done.

    Raises ValueError for a behaviour that cannot be copied.
    """

    __slots__ = ("_behave", "_levels", "_rng", "_server", "_world", "answered", "in_flight", "most")

    def __init__(self, server: Server, world: World, rng: random.Random) -> None:
        self._server = server
        self._world = world
        self._rng = rng
        self._behave = _own(server)
        self._levels = LatencyByLoad()
        self.in_flight = 0
        self.most = 0
        """The most it ever had in flight."""
        self.answered: Counter[int | str] = Counter()
        """How often it answered what: a status, or the name of an error."""

    def receive(self, request: SimulatedRequest) -> Reply:
        """A request arrives; the reply is due after its seconds, and its body after more.

        Raises ValueError or TypeError, naming the server, for what can be no reply.
        """
        world = self._world
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            reply = self._behave(world.clock(), self.in_flight, self._rng, request)
        except Exception as error:
            name, now = self._server.name, world.clock()
            error.add_note(f"raised by the behaviour of server {name!r} at {now:g} s")
            raise
        _check(self._server.name, reply)
        if (took := reply.seconds + reply.body) < math.inf:
            others = self.in_flight - 1
            world.at(world.clock() + took, lambda: self._finish(others, took, reply))
        answer = reply.status if reply.broken is None else type(reply.broken).__name__
        self.answered[answer] += 1
        return reply

    def load(self) -> LoadReport | None:
        """What it says of its load now, where it does."""
        if not self._server.reports:
            return None
        now = self._world.clock()
        return LoadReport(self.in_flight, self._levels.latency(self.in_flight, now, _MEMORY))

    def _finish(self, others: int, took: float, reply: Reply) -> None:
        self.in_flight -= 1
        if self._server.reports and reply.error is None and reply.status < 400:
            self._levels.saw(others, took, self._world.clock(), _MEMORY)


def _own(server: Server) -> Asked:
    """The behaviour with state of its own."""
    try:
        behaviour = copy.deepcopy(server.behaviour)
    except Exception as error:
        raise ValueError(
            f"the behaviour of server {server.name!r} cannot be copied for this run: {error}; "
            "pass per_run(make), which makes one for each run"
        ) from error
    return taking_request(behaviour)


def _check(server: str, reply: object) -> None:
    """Raises ValueError or TypeError for what can be no reply of this server."""
    whose = f"the behaviour of server {server!r} returned"
    if not isinstance(reply, Reply):
        raise TypeError(f"{whose} {reply!r}, which is not a Reply")
    if reply.error is not None and not isinstance(reply.error, OSError):
        raise TypeError(f"{whose} {reply!r}: error must be an OSError or None")
    if reply.seconds != math.inf:
        validation.number(f"{whose} {reply!r}: seconds", reply.seconds)
    validation.number(f"{whose} {reply!r}: rest (seconds)", reply.rest)
    validation.number(f"{whose} {reply!r}: body (seconds)", reply.body)
    status_of(f"{whose} {reply!r}: status", reply.status)
