"""The line of calls that wait for a place: first come, first served."""

from __future__ import annotations

from collections import deque

from lbclient.waiting import Signal

__all__ = ["Line"]


class Line:
    """Who has waited longest looks again first; whoever leaves wakes the next. Hold the lock."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: deque[Signal] = deque()
        """Who waits, the first first; empty almost always."""

    def passes(self, signal: Signal | None) -> bool:
        """True for the first in line."""
        if self.waiting[0] is not signal and self.waiting[0].is_set:
            self.wake()  # who was woken and has not come may be gone with its event loop
        return not self.waiting or self.waiting[0] is signal

    def join(self, signal: Signal | None) -> Signal:
        """Wait, at the end or where one stands already; the signal says when to look again."""
        signal = signal or Signal()
        signal.rearm()
        if signal not in self.waiting:
            self.waiting.append(signal)
        return signal

    def leave(self, signal: Signal) -> None:
        """Have what one wants, or give up."""
        if signal in self.waiting:
            self.waiting.remove(signal)
            self.wake()

    def wake(self) -> None:
        """Something has changed: let the first look again who is still there."""
        while self.waiting and not self.waiting[0].set():
            self.waiting.popleft()

    def clear(self) -> None:
        """In a forked child: those who waited were the parent's threads."""
        self.waiting.clear()
