"""Hedging: sends a second attempt if the first one is slow."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

from lbclient._internal import validation
from lbclient.resilience.retry_budget import Budget, RetryBudget

__all__ = ["HedgePolicy", "Hedging"]

_REMEMBERED = 200
_FEWEST = 20


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """Defines when a second attempt is sent to another instance because the first is slow.

    The first good answer is the result of the call; the other attempt is cancelled. Only calls that
    may be repeated, and whose body is plain bytes, are hedged. The second attempt itself is not
    retried.

    - `delay`: seconds after which the second attempt is sent; with None, the delay is a percentile
      of recent latencies.
    - `percentile`: the delay is the time within which this share of recent attempts was answered.
      No call is hedged before the latency of 20 attempts is known.
    - `least`: the shortest delay, in seconds.
    - `budget`: how many second attempts all calls may make together, as in `RetryBudget`: a share
      of the calls, and in addition a small number per second. This budget is separate from the
      retry budget, so that hedges do not use up the retries. None means no limit.

    Source: Dean and Barroso, "The Tail at Scale" (2013): hedged requests at the 95th percentile.
    """

    delay: float | None = None
    percentile: float = 0.95
    least: float = 0.001
    budget: RetryBudget | None = field(default_factory=lambda: RetryBudget(0.1, 1.0))

    def __post_init__(self) -> None:
        if self.delay is not None:
            validation.number("delay (seconds)", self.delay)
        if not 0 < validation.fraction("percentile", self.percentile) < 1:
            raise ValueError(
                f"percentile must be above 0 and below 1, such as 0.95, not {self.percentile!r}"
            )
        validation.number("least (seconds)", self.least)
        validation.kind("budget", self.budget, RetryBudget)


class Hedging:
    """The recent latencies of one balancer's attempts, and the budget of its hedges.

    This object has no lock: callers hold the balancer's lock.
    """

    def __init__(self, policy: HedgePolicy) -> None:
        self._policy = policy
        self.budget: Budget | None = None if policy.budget is None else Budget(policy.budget)
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def record_latency(self, elapsed: float) -> None:
        """Record an attempt that was answered after `elapsed` seconds."""
        if self._policy.delay is not None:
            return
        if len(self._latest) == _REMEMBERED:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(elapsed)
        insort(self._sorted, elapsed)

    def after(self) -> float | None:
        """Seconds after which a call may be hedged; None while too few latencies are known."""
        policy = self._policy
        if policy.delay is not None:
            return policy.delay
        if len(self._sorted) < _FEWEST:
            return None
        place = math.ceil(policy.percentile * len(self._sorted)) - 1
        return max(self._sorted[place], policy.least)
