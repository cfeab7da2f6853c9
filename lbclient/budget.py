"""The retry budget: how many retries all calls of one balancer may make together.

A fixed share of the traffic, not of each call, so that retries cannot multiply an outage. Source:
Finagle's and tower's retry budgets (20 %, 10 a second, over 10 seconds).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lbclient import checks

__all__ = ["Budget", "RetryBudget"]

_SLICES = 10
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Over a sliding `window` (seconds) each call earns `ratio` of a retry, and `reserve` retries
    a second come on top, so that a quiet client may retry too."""

    ratio: float = 0.2
    reserve: float = 10.0
    window: float = 10.0

    def __post_init__(self) -> None:
        checks.number("ratio", self.ratio)
        checks.number("reserve (retries per second)", self.reserve)
        checks.seconds("window", self.window)


class Budget:
    """The running account of a `RetryBudget`: a sum over a sliding window, in slices."""

    __slots__ = ("_account", "_balance", "_slice", "policy")

    def __init__(self, policy: RetryBudget) -> None:
        self.policy = policy
        self._slice = policy.window / _SLICES
        self._account: deque[list[float]] = deque()
        self._balance = policy.reserve * policy.window

    def balance(self, now: float) -> float:
        """Retries that may be made now."""
        while self._account and self._account[0][0] <= now - self.policy.window:
            self._balance -= self._account.popleft()[1]
        return self._balance

    def deposit(self, now: float) -> None:
        """A call has begun."""
        account = self._account
        if not account or now - account[-1][0] >= self._slice:
            self._open(now)
        account[-1][1] += self.policy.ratio
        self._balance += self.policy.ratio

    def withdraw(self, now: float) -> bool:
        """Take one retry out, or refuse."""
        if self.balance(now) < 1.0 - _ROUNDING:
            return False
        if not self._account or now - self._account[-1][0] >= self._slice:
            self._open(now)
        self._account[-1][1] -= 1.0
        self._balance -= 1.0
        return True

    def _open(self, now: float) -> None:
        """Begin a slice, after dropping those that the window has left behind."""
        self.balance(now)
        self._account.append([now, 0.0])
