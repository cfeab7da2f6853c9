"""The time that the current attempt has left, for the code that does its I/O."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass

__all__ = ["Expiry", "time_left"]


STOOD_STILL = 0.5
"""If a timer is late by more than this many seconds, the process was stopped (SIGSTOP, a closed
laptop).
"""


@dataclass(slots=True)
class Expiry:
    """The time by `clock` at which an attempt must end.

    `at` may change: a streamed body has the time of the whole call.
    """

    at: float
    clock: Callable[[], float]
    interrupt: Callable[[], object] | None = None
    """A function that ends the I/O under way from another thread. The code that does the I/O sets
    it.
    """

    missed: bool = False
    """True if the end of the attempt says nothing about the instance.

    Either the timer fired long after the attempt should have ended, or the caller's own request
    body did not arrive.
    """

    def noticed(self) -> None:
        """The timer has found that the attempt is over. Records whether it fired much too late."""
        self.missed = STOOD_STILL < self.clock() - self.at < math.inf

    def left(self) -> float:
        """Seconds left, or 0 if the time is over."""
        return max(0.0, self.at - self.clock())

    def expire(self) -> None:
        """End the attempt now, since its result is no longer needed."""
        self.at = -math.inf
        if (interrupt := self.interrupt) is not None:
            interrupt()

    def settle_interrupt(self) -> None:
        """Clear `interrupt`: the I/O is over, and its connection may soon serve another attempt.

        If the attempt had already expired, call it now, so that the connection is not reused.
        """
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None and self.at == -math.inf:
            interrupt()


_current: ContextVar[Expiry | None] = ContextVar("lbclient.expiry", default=None)


def time_left() -> float | None:
    """Return the seconds that the current attempt may still take.

    Returns None if there is neither `deadline` nor `attempt_timeout`. For the function passed to
    `Balancer.call` or `acall`, and for a transport made by `transport=`.
    """
    expiry = _current.get()
    return None if expiry is None or (left := expiry.left()) == math.inf else left


def enter(expiry: Expiry | None) -> Token[Expiry | None]:
    """Make `expiry` the current one until `leave`. None keeps the current one."""
    return _current.set(_current.get() if expiry is None else expiry)


def leave(token: Token[Expiry | None]) -> bool:
    """Restore the previous expiry. Returns False if called in another context than `enter`.

    A framework may run the two halves of a caller's generator on two threads. Then there is nothing
    to restore.
    """
    try:
        _current.reset(token)
    except ValueError:
        return False
    return True
