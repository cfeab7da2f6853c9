"""A simulated instance: counts its requests in flight, and responds as its behaviour says."""

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
"""Seconds for which a server stores the times of its responses."""


@dataclass(frozen=True, slots=True)
class Server:
    """One instance of the simulated service, identified by its name.

    Discovery returns the server from the time `joins` to the time `leaves` (seconds). `weight`,
    `priority` and `zone` are the values of its instance. With `reports=True`, the server reports
    its load (`LoadReport`) with each response, and in reply to load probes: the number of requests
    in flight, and the time of responses at that number.

    Each run begins with a deep copy of `behaviour` for each server. So an object with `__call__`
    may keep state. Servers that were given the same object do not share this state. A function is
    not copied. Use `per_run` for a function that keeps state.

    Raises ValueError or TypeError if an argument is invalid.
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
        """The instance as discovery returns it."""
        metadata = {} if self.zone is None else {"zone": self.zone}
        return Instance(self.name, 80, self.weight, self.priority, metadata)

    def known(self, now: float) -> bool:
        """Return True while discovery returns this server."""
        return self.joins <= now < self.leaves


class Host:
    """A server in a world. If a client gives up a request, the server continues to work on the
    request until its end.

    Raises ValueError for a behaviour that cannot be copied.
    """

    __slots__ = (
        "_behave",
        "_latency_by_load",
        "_rng",
        "_server",
        "_world",
        "answered",
        "in_flight",
        "most",
    )

    def __init__(self, server: Server, world: World, rng: random.Random) -> None:
        self._server = server
        self._world = world
        self._rng = rng
        self._behave = _own(server)
        self._latency_by_load = LatencyByLoad()
        self.in_flight: int = 0
        self.most: int = 0
        """The largest number of requests in flight so far."""
        self.answered: Counter[int | str] = Counter()
        """How many times the server gave each response. A response is a status, or the name of an
        error."""

    def receive(self, request: SimulatedRequest) -> Reply:
        """Receive a request, and return the reply. The client waits for the seconds that the reply
        contains.

        Raises ValueError or TypeError, naming the server, if the behaviour returns an invalid
        reply.
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
        """Return the load report of this server, or None if it does not report its load."""
        if not self._server.reports:
            return None
        now = self._world.clock()
        return LoadReport(
            self.in_flight, self._latency_by_load.latency(self.in_flight, now, _MEMORY)
        )

    def _finish(self, others: int, took: float, reply: Reply) -> None:
        self.in_flight -= 1
        if self._server.reports and reply.error is None and reply.status < 400:
            self._latency_by_load.record_latency(others, took, self._world.clock(), _MEMORY)


def _own(server: Server) -> Asked:
    """Return a copy of the server's behaviour, with a state of its own."""
    try:
        behaviour = copy.deepcopy(server.behaviour)
    except Exception as error:
        raise ValueError(
            f"the behaviour of server {server.name!r} cannot be copied for this run: {error}; "
            "pass per_run(make), which makes one for each run"
        ) from error
    return taking_request(behaviour)


def _check(server: str, reply: object) -> None:
    """Raise ValueError or TypeError if this is not a valid reply of the server."""
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
