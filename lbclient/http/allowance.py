"""Timeouts that end with the attempt.

httpx's are for one read or write each, so a server that drips outlives them. An allowance bounds
each by what is left of the attempt.
"""

from __future__ import annotations

import math
from typing import Self

from lbclient.deadline import Expiry

__all__ = ["LEAST", "Allowance", "seconds_now"]

LEAST = 0.001
"""A timeout of 0 would mean a socket that never waits."""


class Allowance(float):
    """A timeout in seconds (None for none of its own) that also ends when the attempt does.

    httpcore hands timeouts through untouched, so this arrives at the socket together with the
    request that it belongs to, whichever connection that travels on.
    """

    __slots__ = ("_expiry", "_seconds")

    _expiry: Expiry
    _seconds: float | None

    def __new__(cls, seconds: float | None, expiry: Expiry) -> Self:
        """Bound `seconds` by what is left of the attempt."""
        left = expiry.left()
        made = super().__new__(cls, left if seconds is None else min(seconds, left))
        made._seconds, made._expiry = seconds, expiry
        return made

    def now(self) -> float | None:
        """Seconds that one operation may take from now on; None without any limit."""
        left = max(LEAST, self._expiry.left())
        if self._seconds is None:
            return None if left == math.inf else left
        return min(self._seconds, left)


def seconds_now(timeout: float | None) -> float | None:
    """What a timeout, an allowance or not, is worth at this moment."""
    return timeout.now() if isinstance(timeout, Allowance) else timeout
