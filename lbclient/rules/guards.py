"""What watches outcomes besides the breakers: limits that are learned, outliers, a throttle."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lbclient.endpoint import Endpoint
from lbclient.outcome import Verdict
from lbclient.rules.adaptive import AdaptiveLimit, LearnedLimit
from lbclient.rules.outliers import OutlierPolicy, Outliers
from lbclient.rules.throttle import Throttle, ThrottlePolicy
from lbclient.sent import Sent

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

    def saw(self, attempt: Sent, verdict: Verdict, now: float) -> bool:
        """An attempt that is still in flight has its verdict. True: ask for `outliers`."""
        turned_away = not verdict.good and verdict.turned_away
        if self._throttle is not None:
            (self._throttle.refused if turned_away else self._throttle.accepted)(now)
        if self._limit is not None:
            self._learn(self._limit, attempt, verdict, now, turned_away=turned_away)
        outliers = self._outliers
        if outliers is None:
            return False
        return outliers.count(attempt.endpoint, fault=verdict.fault, now=now)

    def outliers(
        self,
        tiers: Sequence[Sequence[Endpoint]],
        serving: Callable[[Endpoint], bool],
        now: float,
    ) -> list[tuple[Endpoint, float]]:
        """Whom to eject now, and for how many seconds."""
        return [] if self._outliers is None else self._outliers.verdicts(now, tiers, serving)

    def _learn(
        self,
        rule: AdaptiveLimit,
        attempt: Sent,
        verdict: Verdict,
        now: float,
        *,
        turned_away: bool,
    ) -> None:
        one, elapsed = attempt.endpoint, attempt.elapsed
        learned = one.learned
        if not isinstance(learned, LearnedLimit):
            learned = one.learned = LearnedLimit()
        if turned_away:
            one.limit = learned.rejected(
                rule,
                one.limit,
                one.in_flight,
                started=attempt.started,
                elapsed=elapsed,
                now=now,
                rng=self._rng,
            )
        else:
            queued = False
            if not verdict.client_error:
                queued = rule.queued(elapsed, one.calm)
                one.calm = rule.calm(one.calm, elapsed, attempt.beside, one.limit)
            one.limit = learned.served(rule, one.limit, one.in_flight, queued=queued)
            if attempt.permit.probe:
                learned.resume()
        one.paused_until = learned.paused_until
