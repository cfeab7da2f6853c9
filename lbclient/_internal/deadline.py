"""How much time the current attempt has left, for whoever does its I/O."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass

__all__ = ["Expiry", "time_left"]


STOOD_STILL = 0.5
"""Seconds by which no timer is late, unless this process stood still (SIGSTOP, a closed lid)."""


@dataclass(slots=True)
class Expiry:
    """When an attempt must end, by `clock`. `at` may move: a streamed body has the call's time."""

    at: float
    clock: Callable[[], float]
    interrupt: Callable[[], object] | None = None
    """Ends the I/O under way, from another thread; set by whoever does that I/O."""

    missed: bool = False
    """True where the end of the attempt says nothing of the instance: whoever ends it in time found
    it long over, or the caller's own body did not come."""

    def noticed(self) -> None:
        """Whoever ends the attempt in time has seen that it is over."""
        self.missed = STOOD_STILL < self.clock() - self.at < math.inf

    def left(self) -> float:
        """Seconds left, 0 when it is over."""
        return max(0.0, self.at - self.clock())

    def expire(self) -> None:
        """Nobody waits for the attempt any more: end it now."""
        self.at = -math.inf
        if (interrupt := self.interrupt) is not None:
            interrupt()

    def settle_interrupt(self) -> None:
        """Its I/O is over: the connection may be another's soon. One that was cut is not."""
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None and self.at == -math.inf:
            interrupt()


_current: ContextVar[Expiry | None] = ContextVar("lbclient.expiry", default=None)


def time_left() -> float | None:
    """Seconds that the attempt under way may still take; None without `deadline` and
    `attempt_timeout`.

    For the function given to `Balancer.call` or `acall`, and for a transport made by `transport=`.
    """
    expiry = _current.get()
    return None if expiry is None or (left := expiry.left()) == math.inf else left


def enter(expiry: Expiry | None) -> Token[Expiry | None]:
    """Make it the current one until `leave`; None leaves the one that is."""
    return _current.set(_current.get() if expiry is None else expiry)


def leave(token: Token[Expiry | None]) -> bool:
    """Make current again what was before. False in another context than `enter`'s.

    A framework may run the halves of a caller's generator on two threads; there is nothing to take
    back then.
    """
    try:
        _current.reset(token)
    except ValueError:
        return False
    return True
