"""The rules that are off by default: the throttle, learned limits, and outlier detection."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lbclient.core.picker import Pick
from lbclient.endpoint.classifier import Verdict
from lbclient.endpoint.endpoint import Endpoint
from lbclient.resilience.concurrency_limit import AdaptiveLimit, LearnedLimit
from lbclient.resilience.outlier_detection import OutlierPolicy, Outliers
from lbclient.resilience.throttle import Throttle, ThrottlePolicy

__all__ = ["OptInRules"]


class OptInRules:
    """The opt-in rules of one balancer. The caller passes in the time, and holds the balancer's
    lock.
    """

    def __init__(
        self,
        outliers: OutlierPolicy | None,
        limit: AdaptiveLimit | None,
        throttle: ThrottlePolicy | None,
        rng: random.Random,
    ) -> None:
        self._rng = rng
        self.throttle: Throttle | None = None if throttle is None else Throttle(throttle)
        self._outliers = None if outliers is None else Outliers(outliers, rng)
        self._limit = limit

    def record_outcome(self, pick: Pick, verdict: Verdict, now: float) -> bool:
        """Record the outcome of an attempt that is still in flight. Returns True if `outliers` is
        to be called next."""
        turned_away = not verdict.good and verdict.turned_away
        if self.throttle is not None:
            (self.throttle.refused if turned_away else self.throttle.accepted)(now)
        if self._limit is not None:
            self._learn(self._limit, pick, verdict, now, turned_away=turned_away)
        outliers = self._outliers
        if outliers is None:
            return False
        return outliers.count(pick.endpoint, fault=verdict.fault, now=now)

    def outliers(
        self,
        tiers: Sequence[Sequence[Endpoint]],
        serving: Callable[[Endpoint], bool],
        now: float,
    ) -> list[tuple[Endpoint, float]]:
        """Return the endpoints to eject now, each with the seconds of its ejection."""
        return [] if self._outliers is None else self._outliers.verdicts(now, tiers, serving)

    def _learn(
        self,
        rule: AdaptiveLimit,
        pick: Pick,
        verdict: Verdict,
        now: float,
        *,
        turned_away: bool,
    ) -> None:
        endpoint, elapsed = pick.endpoint, pick.elapsed
        learned = endpoint.learned
        if not isinstance(learned, LearnedLimit):
            learned = endpoint.learned = LearnedLimit()
        if turned_away:
            endpoint.limit = learned.rejected(
                rule,
                endpoint.limit,
                endpoint.in_flight,
                started=pick.started,
                elapsed=elapsed,
                now=now,
                rng=self._rng,
            )
        else:
            queued = False
            if not verdict.client_error:
                queued = rule.queued(elapsed, learned.baseline_latency.value)
                if rule.sets_baseline(pick.concurrent, endpoint.limit):
                    learned.baseline_latency.record(elapsed)
            endpoint.limit = learned.served(rule, endpoint.limit, endpoint.in_flight, queued=queued)
            if pick.permit.probe:
                learned.resume()
        endpoint.paused_until = learned.paused_until
