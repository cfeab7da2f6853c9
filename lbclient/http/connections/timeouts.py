"""Timeouts that end with the attempt.

httpx's timeouts are for one read or write each, so a server that sends a byte at a time outlives
them. A `DeadlineTimeout` bounds each of them by what is left of the attempt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

from lbclient._internal.deadline import Expiry

from .._compat import httpx

__all__ = ["SHORTEST", "DeadlineTimeout", "seconds_now"]

SHORTEST = 0.001
"""A timeout of 0 would mean a socket that never waits."""


class DeadlineTimeout(float):
    """A timeout in seconds (None: none of its own) that also ends when the attempt does.

    It is a float, so that it can be handed to a transport of the caller's own.
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
        left = max(SHORTEST, self._expiry.left())
        if self._seconds is None:
            return None if left == math.inf else left
        return min(self._seconds, left)

    def left(self) -> float | None:
        """Seconds until the attempt ends, whatever one operation may take; None for no end."""
        left = self._expiry.left()
        return None if left == math.inf else left

    @property
    def seconds(self) -> float | None:
        """The timeout itself, whatever is left of the attempt."""
        return self._seconds

    def noticed(self) -> None:
        """The attempt ends now, because its time is up."""
        self._expiry.noticed()

    def excuse(self) -> None:
        """The end of the attempt says nothing of its instance."""
        self._expiry.missed = True

    def interruptible(self, interrupt: Callable[[], object]) -> None:
        """Register how another thread can end the I/O that begins now."""
        self._expiry.interrupt = interrupt

    @property
    def over(self) -> bool:
        """True from the end of the attempt on."""
        return not self._expiry.left()


def seconds_now(
    timeout: float | None, error: type[httpx.TimeoutException] = httpx.ConnectTimeout
) -> float | None:
    """Seconds that one operation may take, from now on; None without any limit.

    Raises `error` once the attempt has ended: bytes that have arrived are read without any wait, so
    a peer that sends without end would never run into a timeout.
    """
    if timeout.__class__ is not DeadlineTimeout:
        return timeout
    if timeout.over:
        timeout.noticed()
        raise error("the time of the attempt is up")
    return timeout.now()
