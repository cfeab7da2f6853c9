"""What a call may wait for, in a form that threads, event loops and virtual time can each obey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Pause", "Signal"]


class Signal:
    """Set once, from any thread; whoever listens is told, also if it was set before."""

    __slots__ = ("_wake", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._wake: Callable[[], object] | None = None

    def listen(self, wake: Callable[[], object]) -> None:
        """Have `wake` called when the signal is set; it may be called twice.

        It returns False where the listener is gone.
        """
        self._wake = wake
        if self.is_set:
            wake()

    def rearm(self) -> None:
        """Make it as new, for another wait."""
        self.is_set = False
        self._wake = None

    def set(self) -> bool:
        """Wake the listener. False where it is gone."""
        self.is_set = True
        return self._wake is None or self._wake() is not False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for `seconds`, or less if `signal` is set before."""

    seconds: float
    signal: Signal | None = None
