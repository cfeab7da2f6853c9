"""The retry budget: how many retries all calls of one balancer may make together.

The number of retries is at most a fixed share of the number of calls. So retries cannot multiply
the load in an outage. Source: the retry budgets of Finagle and tower (20 %, 10 a second, over 10
seconds).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbclient._internal import validation
from lbclient._internal.statistics import SlidingWindow

__all__ = ["Budget", "RetryBudget"]

_SLICES = 10
_RETRY = 1
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Limits the number of retries of all calls together, over a sliding `window` of seconds.

    Each call adds `ratio` of a retry to the budget. Each second adds `reserve` retries, so that a
    client with few calls may retry too.

    Raises ValueError or TypeError, naming the argument, for a value that cannot be used.
    """

    ratio: float = 0.2
    reserve: float = 10.0
    window: float = 10.0

    def __post_init__(self) -> None:
        validation.number("ratio", self.ratio)
        validation.number("reserve (retries per second)", self.reserve)
        validation.seconds("window", self.window)


class Budget:
    """The state of a `RetryBudget`: the calls and the retries in a sliding window."""

    __slots__ = ("_window", "deposit", "policy")

    def __init__(self, policy: RetryBudget) -> None:
        self.policy: RetryBudget = policy
        self._window = SlidingWindow(policy.window, _SLICES, kinds=2)
        self.deposit: Callable[[float], None] = self._window.add
        """Add the share of a retry that one call adds, at this time."""

    def balance(self, now: float) -> float:
        """The number of retries that may be made now."""
        calls, retries = self._window.slide(now)
        policy = self.policy
        return policy.reserve * policy.window + policy.ratio * calls - retries

    def withdraw(self, now: float) -> bool:
        """Take one retry from the budget. Returns False if the budget is empty."""
        if self.balance(now) < 1.0 - _ROUNDING:
            return False
        self._window.add(now, _RETRY)
        return True
