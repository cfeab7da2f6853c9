"""What watches outcomes besides the breakers: limits that are learned, outliers, a throttle."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lbclient.endpoint import Endpoint
from lbclient.outcome import Verdict
from lbclient.rules.adaptive import AdaptiveLimit
from lbclient.rules.outliers import OutlierPolicy, Outliers
from lbclient.rules.throttle import Throttle, ThrottlePolicy

__all__ = ["Guards"]


class Guards:
    """The opt-in rules of one balancer. Told the time; not locked: its owner is."""

    def __init__(
        self,
        outliers: OutlierPolicy | None,
        limit: AdaptiveLimit | None,
        throttle: ThrottlePolicy | None,
        rng: random.Random,
    ) -> None:
        self._rng = rng
        self._throttle = None if throttle is None else Throttle(throttle)
        self._outliers = None if outliers is None else Outliers(outliers, rng)
        self._limit = limit

    def admits(self, now: float) -> bool:
        """False where the throttle keeps a new call back."""
        return self._throttle is None or self._throttle.admits(now, self._rng)

    def saw(self, endpoint: Endpoint, verdict: Verdict, elapsed: float, now: float) -> bool:
        """An attempt that is still in flight has its verdict. True: ask for `outliers`."""
        if self._throttle is not None:
            (self._throttle.refused if verdict.turned_away else self._throttle.accepted)(now)
        if self._limit is not None:
            _learn(self._limit, endpoint, verdict, elapsed)
        outliers = self._outliers
        return outliers is not None and outliers.count(endpoint, fault=verdict.fault, now=now)

    def outliers(
        self,
        tiers: Sequence[Sequence[Endpoint]],
        serving: Callable[[Endpoint], bool],
        now: float,
    ) -> list[tuple[Endpoint, float]]:
        """Whom to eject now, and for how many seconds."""
        return [] if self._outliers is None else self._outliers.verdicts(now, tiers, serving)


def _learn(rule: AdaptiveLimit, endpoint: Endpoint, verdict: Verdict, elapsed: float) -> None:
    if verdict.turned_away:
        endpoint.limit = rule.shrunk(endpoint.limit)
    elif rule.queued(elapsed, endpoint.base):
        endpoint.limit = rule.slowed(endpoint.limit)
    else:
        endpoint.limit = rule.grown(endpoint.limit, endpoint.in_flight)
    if not verdict.turned_away:
        endpoint.base = rule.base(elapsed, endpoint.base)
