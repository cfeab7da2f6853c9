"""How long until the next try: the control plane's waits, each with dice, so that many clients that
began together do not ask together."""

from __future__ import annotations

import random

__all__ = ["Backoff", "jittered"]

_FIRST, _MOST = 1.0, 30.0
_DEMANDED = 5.0
_JITTER = 0.1


def jittered(seconds: float, rng: random.Random) -> float:
    """Give or take a tenth."""
    return seconds * (1 + _JITTER * (2 * rng.random() - 1))


class Backoff:
    """Seconds after a failure: 1, then twice as many each time, up to 30; less up to a tenth.

    `demanded` is the wait for a caller that needs an answer: the same, but up to 5 s.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next = _FIRST
        self.demanded = 0.0

    def failed(self) -> float:
        """How long to wait after one more failure."""
        seconds, self._next = self._next, min(2 * self._next, _MOST)
        less = 1 - _JITTER * self._rng.random()
        self.demanded = less * min(seconds, _DEMANDED)
        return less * seconds

    def succeeded(self) -> None:
        """Begin anew."""
        self._next = _FIRST
