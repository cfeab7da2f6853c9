"""One client of a run: a balancer, its requests, and its invariants."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial

from lbclient._internal.signals import Pause
from lbclient.balancer.balancer import Balancer
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call, CallOptions
from lbclient.endpoint.endpoint import Endpoint
from lbclient.errors import LoadBalancingError
from lbclient.protocol import bind
from lbclient.simulation.behaviour import Reply, SimulatedRequest
from lbclient.simulation.driver import carry_out
from lbclient.simulation.invariants import Invariants, Trail
from lbclient.simulation.report import Journal, Outcome
from lbclient.simulation.server import Host
from lbclient.simulation.world import Process, World
from lbclient.telemetry.semantics import Semantics

__all__ = ["Client"]

_SEMANTICS = Semantics()
_TRIP = 0.001
"""Seconds until a load probe is answered."""


class Client:
    """A client that sends simulated requests.

    `call_options` returns the call options of a request. An attempt waits at most `timeout` seconds
    for its headers. `watch`, if it is given, checks the invariants at each step.
    """

    def __init__(
        self,
        number: int,
        balancer: Balancer,
        call_options: Callable[[SimulatedRequest], CallOptions],
        timeout: float,
        world: World,
        hosts: Mapping[str, Host],
        journal: Journal,
        watch: Invariants | None,
    ) -> None:
        self.number = number
        self.balancer = balancer
        self.watch = watch
        self.waiting: dict[Trail, float] = {}
        """Active requests, each with the time at which it arrived."""
        self._call_options = call_options
        self._timeout = timeout
        self._request = SimulatedRequest(caller=number)
        self._world = world
        self._hosts = hosts
        self._journal = journal
        self._binding = bind(balancer)
        self._loads = self._binding.loads()
        self._probes = 0.0
        """The number of load probes to send. A fraction is kept for the next call."""

    def request(self, request: SimulatedRequest | None) -> Process[object]:
        """Send one request, from its arrival to the end of its body."""
        world = self._world
        if request is None:
            request = self._request
        elif request.caller is None:
            request = dataclasses.replace(request, caller=self.number)
        call_options = self._call_options(request)
        call: Call[Reply] = self._binding.begin(call_options, _SEMANTICS)
        trail, arrived = Trail(call, call_options.patience), world.clock()
        self.waiting[trail] = arrived
        self._journal.began()
        self._probe()
        status: int | None = None
        error: str | None = None
        try:
            reply = yield from carry_out(call, partial(self._send, trail, request), trail.close)
            if reply.body:
                yield from self._read(trail, reply)
            status = reply.status
        except (LoadBalancingError, OSError) as failure:
            error = type(failure).__name__
        trail.close_all()
        del self.waiting[trail]
        now = world.clock()
        if self.watch is not None:
            self.watch.done(trail, error, now)
        attempts = len(call.tried)
        outcome = Outcome(arrived, now - arrived, status, error, attempts, self.number)
        self._journal.ended(outcome)
        return None

    def _send(
        self, trail: Trail, request: SimulatedRequest, attempt: Attempt[Reply]
    ) -> Process[Reply]:
        if attempt.replaces is not None:
            trail.close(attempt.replaces)
        now, name = self._world.clock(), attempt.instance.host
        if self.watch is not None:
            self.watch.sending(trail, attempt, now)
        self._journal.sending(now, self.number, name, attempt.reason)
        reply = self._hosts[name].receive(request)
        left = min(_left(attempt), self._timeout)
        trail.comes(reply, left)
        if reply.seconds > left:
            yield Pause(left)
            raise TimeoutError
        if reply.seconds:
            yield Pause(reply.seconds)
        if reply.broken is not None:
            raise reply.broken.with_traceback(None)
        attempt.status = reply.status
        if self._loads is not None and (load := self._hosts[name].load()) is not None:
            self._loads.record(attempt.endpoint, load)
        return trail.hold(attempt, reply) if reply.body else reply

    def _probe(self) -> None:
        """Send load probes to some instances when a call begins. The answers arrive later. The
        probes do not count as requests in flight at the servers."""
        if self._loads is None or self._loads.probe is None:
            return
        self._probes += self._loads.probe.rate
        endpoints, rng, world = self._loads.candidates(), self._binding.rng, self._world
        for _ in range(min(int(self._probes), len(endpoints))):
            request = partial(self._probed, rng.choice(endpoints))
            world.at(world.clock() + _TRIP, request, background=True)
        self._probes %= 1.0

    def _probed(self, endpoint: Endpoint) -> None:
        if self._loads is not None:
            self._loads.record(endpoint, self._hosts[endpoint.instance.host].load())

    def _read(self, trail: Trail, reply: Reply) -> Process[None]:
        """Read the body. Its connection may break, or it may take longer than the deadline of the
        call allows."""
        if (attempt := trail.holder(reply)) is None:
            return
        left = _left(attempt)
        yield Pause(min(reply.body, left))
        error = TimeoutError() if reply.body > left else reply.error
        attempt.finish(error)
        if error is not None:
            raise error.with_traceback(None)


def _left(attempt: Attempt[Reply]) -> float:
    return math.inf if attempt.expiry is None else attempt.expiry.left()
