"""The race of a hedged call: its attempts, of which the first good answer is the outcome.

`HedgeRace` decides which of the two wins. The driver then ends the other: event loops cancel its
task (`balancer/event_loops.py`), threads let its deadline expire (`balancer/threads.py`). The
second attempt itself is `Hedge` (`core/call.py`).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from lbclient._internal.deadline import Expiry
from lbclient._internal.signals import Signal
from lbclient.endpoint.classifier import Verdict
from lbclient.endpoint.endpoint import Endpoint

__all__ = ["HedgeRace"]

A = TypeVar("A")


class HedgeRace(Generic[A]):
    """Attempts begin and end on whichever thread carries them out."""

    __slots__ = ("_lock", "_running", "attempts", "ended", "over", "winner")

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self._running: dict[A, tuple[Endpoint, Expiry | None]] = {}
        self.attempts: list[A] = []
        """All of them, in the order in which they began."""
        self.winner: A | None = None
        """The attempt whose answer is the outcome, once there is one."""
        self.over: bool = False
        self.ended: Signal = Signal()
        """Set when it is over."""

    @property
    def endpoints(self) -> Collection[Endpoint]:
        """Where attempts are under way. Hold the lock."""
        return [endpoint for endpoint, _ in self._running.values()]

    def begin(self, attempt: A, endpoint: Endpoint, expiry: Expiry | None) -> None:
        """An attempt at `endpoint` is under way; `expiry` ends it."""
        with self._lock:
            self._running[attempt] = endpoint, expiry
            self.attempts.append(attempt)

    def is_losing(self, attempt: A, verdict: Verdict | None) -> bool:
        """An attempt has ended, with or without an answer. True where another is the outcome."""
        with self._lock:
            del self._running[attempt]
            if self.over:
                return True
            if verdict is not None and verdict.good:
                self.winner = attempt
                self._end()
            return False

    def end(self) -> None:
        """Cancel the attempts that are still under way."""
        with self._lock:
            self._end()
            for _, expiry in self._running.values():
                if expiry is not None:
                    expiry.expire()

    def _end(self) -> None:
        self.over = True
        self.ended.set()
