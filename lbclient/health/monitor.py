"""When the instances of one service are checked, and who is told when one turns."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from lbclient.breaker import Breaker
from lbclient.deadline import Expiry
from lbclient.discovery import text_of
from lbclient.discovery.pace import jittered
from lbclient.endpoint import Endpoint
from lbclient.health.crew import Crew
from lbclient.health.plain import Check
from lbclient.health.policy import HealthCheck
from lbclient.health.pulse import Pulse
from lbclient.outcome import lacked_port, local_origin

__all__ = ["Monitor", "Report"]


class Report(Protocol):
    """Who is told that an instance has turned, and sets `endpoint.healthy`.

    `breaker` stands for the machine that was checked: where the endpoint has another one by now,
    the report is void. `why` is what the last check said, empty where it passed.
    """

    def __call__(self, endpoint: Endpoint, breaker: Breaker, *, healthy: bool, why: str) -> None:
        """Take the lock, and take note; the same report may come twice."""
        ...


class Monitor:
    """Has every known instance checked, about every `policy.interval`; for the refresher.

    One job for all: `endpoints` tells who is known, `check` asks one, `crew` asks many. It waits
    for `begin`.
    """

    def __init__(
        self,
        policy: HealthCheck,
        check: Check,
        *,
        endpoints: Callable[[], Iterable[Endpoint]],
        report: Report,
        clock: Callable[[], float],
        rng: random.Random,
        crew: Crew,
    ) -> None:
        self.clock = clock
        self.turn = -1
        """The refresher's ticket for the next round."""
        self.next_at = math.inf
        self.stopped = False
        self.quick = False
        self._policy = policy
        self._check = check
        self._endpoints = endpoints
        self._report = report
        self._rng = rng
        self._crew = crew
        self._round = threading.Lock()
        self._pulses: dict[Endpoint, Pulse] = {}

    @property
    def busy(self) -> bool:
        """True while a round is under way."""
        return self._round.locked()

    def begin(self) -> None:
        """Have the first round in this process at a random moment, which many clients that began
        together do not share. In a forked child the round under way died with its thread."""
        self._round = threading.Lock()
        self.next_at = self.clock() + self._rng.random() * self._policy.interval

    def stop(self) -> None:
        """No round follows, and of one under way no result is taken."""
        self.stopped = True

    def claim(self) -> bool:
        """Claim the round that is due; False while it is not due, or one is under way."""
        due = not self.stopped and self.clock() >= self.next_at
        return due and self._round.acquire(blocking=False)

    def run(self) -> None:
        """One round, after `claim`. It may block."""
        began = self.clock()
        try:
            self._check_all()
        finally:
            self.next_at = began + jittered(self._policy.interval, self._rng)
            self._round.release()

    def _check_all(self) -> None:
        """An instance that cannot be reached from here fails its check, unless none can be: then
        the network is down. Where a descriptor was lacking, say, that tells nothing of an instance.
        """
        self._pulses = {one: self._pulse(one) for one in tuple(self._endpoints())}
        check = self._check

        def of(pulse: Pulse, expiry: Expiry) -> None:
            check(pulse.endpoint, expiry)

        results = self._crew(of, self._pulses.values(), self._policy.timeout)
        unreachable: list[tuple[Pulse, Exception]] = []
        reached = False
        with contextlib.closing(results):
            for pulse, error in results:
                if self.stopped:
                    return
                local = local_origin(error)
                if error is None or local is None:
                    reached = True
                    self._count(pulse, error)
                elif local.unreachable and not lacked_port(error, pulse.endpoint.instance):
                    unreachable.append((pulse, error))
        if reached and not self.stopped:
            for pulse, error in unreachable:
                self._count(pulse, error)

    def _pulse(self, endpoint: Endpoint) -> Pulse:
        known = self._pulses.get(endpoint)
        return Pulse(endpoint) if known is None or known.stale else known

    def _count(self, pulse: Pulse, error: Exception | None) -> None:
        if pulse.stale:
            return
        if pulse.count(good=error is None, policy=self._policy):
            why = "" if error is None else text_of(error)
            self._report(pulse.endpoint, pulse.breaker, healthy=error is None, why=why)
