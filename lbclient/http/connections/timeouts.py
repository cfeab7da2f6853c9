"""Timeouts that end with the attempt.

httpx's timeouts apply to each read or write, so a server that sends one byte at a time never
exceeds them. A `DeadlineTimeout` also ends each read or write when the time of the attempt is up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

from lbclient._internal.deadline import Expiry

from .._compat import httpx

__all__ = ["SHORTEST", "DeadlineTimeout", "seconds_now"]

SHORTEST = 0.001
"""The shortest timeout in seconds. With a timeout of 0 a socket would not wait at all."""


class DeadlineTimeout(float):
    """A timeout in seconds for one operation, which also ends when the time of the attempt is up.
    `seconds` may be None: then only the time of the attempt limits the operation.

    It is a float, so that it can be passed to a caller's own transport.
    """

    __slots__ = ("_expiry", "_seconds")

    _expiry: Expiry
    _seconds: float | None

    def __new__(cls, seconds: float | None, expiry: Expiry) -> Self:
        """Create the timeout. Its value is `seconds`, or the time that the attempt has left if that
        is less."""
        left = expiry.left()
        made = super().__new__(cls, left if seconds is None else min(seconds, left))
        made._seconds, made._expiry = seconds, expiry
        return made

    def now(self) -> float | None:
        """Return the seconds that one operation may take from now on; None for no limit."""
        left = max(SHORTEST, self._expiry.left())
        if self._seconds is None:
            return None if left == math.inf else left
        return min(self._seconds, left)

    def left(self) -> float | None:
        """Return the seconds until the attempt ends; None if it has no end."""
        left = self._expiry.left()
        return None if left == math.inf else left

    @property
    def seconds(self) -> float | None:
        """The timeout that was set, regardless of the time that the attempt has left."""
        return self._seconds

    def noticed(self) -> None:
        """Record that the attempt ends because its time is up."""
        self._expiry.noticed()

    def excuse(self) -> None:
        """Record that the instance is not at fault if the attempt ends now."""
        self._expiry.missed = True

    def interruptible(self, interrupt: Callable[[], object]) -> None:
        """Register a function with which another thread can end the I/O that begins now."""
        self._expiry.interrupt = interrupt

    @property
    def over(self) -> bool:
        """True once the time of the attempt is up."""
        return not self._expiry.left()


def seconds_now(
    timeout: float | None, error: type[httpx.TimeoutException] = httpx.ConnectTimeout
) -> float | None:
    """Return the seconds that one operation may take from now on; None for no limit.

    Raises `error` once the attempt's time is up. Without this error, a server that sends without
    end would never exceed a timeout, since bytes that have arrived are read without waiting.
    """
    if type(timeout) is not DeadlineTimeout:
        return timeout
    if timeout.over:
        timeout.noticed()
        raise error("the time of the attempt is up")
    return timeout.now()
