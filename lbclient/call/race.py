"""A race between two attempts of one call: the first good answer is the call's outcome."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from lbclient.deadline import Expiry
from lbclient.endpoint import Endpoint
from lbclient.outcome import Verdict
from lbclient.waiting import Signal

__all__ = ["Race"]


class Runner(Protocol):
    """What a race knows of an attempt."""

    expiry: Expiry | None
    endpoint: Endpoint


A = TypeVar("A", bound=Runner)


class Race(Generic[A]):
    """Attempts enter and leave on whichever thread carries them out."""

    __slots__ = ("_lock", "_running", "attempts", "ended", "over", "winner")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._running: list[A] = []
        self.attempts: list[A] = []
        """All of them, in the order in which they began."""
        self.winner: A | None = None
        """The one whose answer is the outcome, once there is one."""
        self.over = False
        self.ended = Signal()
        """Set when it is over."""

    @property
    def places(self) -> Collection[Endpoint]:
        """Where attempts are under way. Hold the lock."""
        return [one.endpoint for one in self._running]

    def begun(self, attempt: A) -> None:
        """It is under way."""
        with self._lock:
            self._running.append(attempt)
            self.attempts.append(attempt)

    def lost(self, attempt: A, verdict: Verdict | None) -> bool:
        """It has ended, with an answer or without: True where another one is the outcome."""
        with self._lock:
            self._running.remove(attempt)
            if self.over:
                return True
            if verdict is not None and verdict.good:
                self.winner = attempt
                self._end()
            return False

    def end(self) -> None:
        """Whoever is still under way need not go on."""
        with self._lock:
            self._end()
            for one in self._running:
                if one.expiry is not None:
                    one.expiry.cut()

    def _end(self) -> None:
        self.over = True
        self.ended.set()
