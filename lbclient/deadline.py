"""How much time the current attempt has left, for whoever does its I/O."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass

__all__ = ["Expiry", "time_left"]


@dataclass(slots=True)
class Expiry:
    """When an attempt must end, by `clock`. `at` may move: a streamed body has the call's time."""

    at: float
    clock: Callable[[], float]

    def left(self) -> float:
        """Seconds left, 0 when it is over."""
        return max(0.0, self.at - self.clock())


_current: ContextVar[Expiry | None] = ContextVar("lbclient.expiry", default=None)


def time_left() -> float | None:
    """Seconds that the attempt under way may still take; None without `deadline` and
    `attempt_timeout`.

    For the function given to `Balancer.call` or `acall`, and for a transport made by `transport=`.
    """
    expiry = _current.get()
    return None if expiry is None else expiry.left()


def enter(expiry: Expiry) -> Token[Expiry | None]:
    """Make it the current one until `leave`."""
    return _current.set(expiry)


def leave(token: Token[Expiry | None]) -> None:
    """Make current again what was before."""
    _current.reset(token)
