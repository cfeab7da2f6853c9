"""What the outcome of an attempt changes: its instance's breaker, load and rest, the rules that a
caller has added, and how soon discovery is asked."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain

from lbclient.membership import Membership
from lbclient.outcome import Verdict
from lbclient.rotation import Rotation
from lbclient.rules import Guards
from lbclient.sent import Sent

__all__ = ["Charges"]

_LONGEST_REST = 30.0


class Charges:
    """The one place where a verdict is charged. Hold the balancer's lock."""

    def __init__(
        self,
        membership: Membership,
        rotation: Rotation,
        guards: Guards | None,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._membership = membership
        self._pool = membership.pool
        self._rotation = rotation
        self._guards = guards
        self._clock = clock
        self._rng = rng

    def settle(self, attempt: Sent, verdict: Verdict) -> None:
        """An attempt came to this verdict."""
        endpoint, breaker = attempt.endpoint, attempt.breaker
        if endpoint.gone or breaker is not endpoint.breaker:
            return  # it is nobody's any more, or that of the machine that was there before
        now = self._clock()
        if verdict.fault:
            endpoint.failed(now)
        if verdict.fault and verdict.again == "always":
            self._membership.hurry(now)
        if verdict.rest > 0:
            self._rotation.rest(endpoint, now + min(verdict.rest, _LONGEST_REST))
        if breaker.settle(
            attempt.permit,
            fault=verdict.fault,
            now=now,
            rng=self._rng,
            elapsed=attempt.elapsed,
            started=attempt.started,
            attempts=endpoint.attempts,
            latency=endpoint.latency,
        ):
            self._rotation.turned(endpoint, breaker, now)
        guards = self._guards
        if guards is not None and guards.saw(attempt, verdict, now):
            self._eject_outliers(guards, now)

    def _eject_outliers(self, guards: Guards, now: float) -> None:
        serving = frozenset(chain.from_iterable(self._pool.admissible(now)))
        for outlier, seconds in guards.outliers(self._pool.tiers(), serving.__contains__, now):
            self._rotation.eject(outlier, seconds, "outlier")
