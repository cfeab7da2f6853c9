"""Timeouts that end with the attempt.

httpx's are for one read or write each, so a server that drips outlives them. An allowance bounds
each by what is left of the attempt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

from lbclient.deadline import Expiry

from .flavour import httpcore

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

    def left(self) -> float | None:
        """Seconds until the attempt ends, whatever one operation may take; None for no end."""
        left = self._expiry.left()
        return None if left == math.inf else left

    @property
    def seconds(self) -> float | None:
        """The timeout itself."""
        return self._seconds

    def noticed(self) -> None:
        """It is over, and the attempt ends for that reason."""
        self._expiry.noticed()

    def interruptible(self, interrupt: Callable[[], object]) -> None:
        """Tell whoever may cut the attempt short how to end the I/O that begins now."""
        self._expiry.interrupt = interrupt

    @property
    def over(self) -> bool:
        """True from the end of the attempt on."""
        return not self._expiry.left()


def seconds_now(
    timeout: float | None, over: type[httpcore.TimeoutException] = httpcore.ConnectTimeout
) -> float | None:
    """What a timeout, an allowance or not, is worth at this moment.

    Raises `over` once the attempt has ended: bytes that are there already are read without any
    wait, so a peer that floods would never see a timeout.
    """
    if not isinstance(timeout, Allowance):
        return timeout
    if timeout.over:
        timeout.noticed()
        raise over("the time of the attempt is up")
    return timeout.now()
