"""The retry budget: how many retries all calls of one balancer may make together.

It is a fixed share of the traffic, not of each call, so retries cannot multiply an outage. Source:
the retry budgets of Finagle and tower (20 %, 10 a second, over 10 seconds).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from lbclient._internal import validation

__all__ = ["Budget", "RetryBudget"]

_SLICES = 10
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """How many retries all calls may make together, over a sliding `window` of seconds.

    Each call earns `ratio` of a retry. `reserve` retries per second are added, so that a client
    with few calls may retry too.

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
    """The running account of a `RetryBudget`: a sum over a sliding window, in slices."""

    __slots__ = ("_account", "_balance", "_last", "_open_until", "_ratio", "_slice", "policy")

    def __init__(self, policy: RetryBudget) -> None:
        self.policy: RetryBudget = policy
        self._slice = policy.window / _SLICES
        self._account: deque[list[float]] = deque()
        self._balance = policy.reserve * policy.window
        self._ratio = policy.ratio
        self._last: list[float] = []
        """The slice that is open until `_open_until`: its start, and its sum."""
        self._open_until = -math.inf

    def balance(self, now: float) -> float:
        """The retries that may be made now."""
        while self._account and self._account[0][0] <= now - self.policy.window:
            self._balance -= self._account.popleft()[1]
        if not self._account:
            self._open_until = -math.inf
        return self._balance

    def deposit(self, now: float) -> None:
        """Add what one call earns."""
        if now >= self._open_until:
            self._open(now)
        self._last[1] += self._ratio
        self._balance += self._ratio

    def withdraw(self, now: float) -> bool:
        """Take one retry from the budget. False if it is empty."""
        if self.balance(now) < 1.0 - _ROUNDING:
            return False
        if now >= self._open_until:
            self._open(now)
        self._last[1] -= 1.0
        self._balance -= 1.0
        return True

    def _open(self, now: float) -> None:
        """Start a slice. Drops the slices that are older than the window."""
        self.balance(now)
        self._last = [now, 0.0]
        self._account.append(self._last)
        self._open_until = now + self._slice
