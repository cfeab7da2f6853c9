"""The waits of a call, in a form that threads, event loops and virtual time can carry out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Pause", "Signal"]


class Signal:
    """A flag that is set once, from any thread, and then calls one function (the listener).

    If the flag is already set when a listener is added, the listener is called at once.
    """

    __slots__ = ("_wake", "is_set")

    def __init__(self) -> None:
        self.is_set: bool = False
        self._wake: Callable[[], object] | None = None

    def listen(self, wake: Callable[[], object]) -> None:
        """Call `wake` when the signal is set, possibly twice.

        `wake` returns False if the listener is gone.
        """
        self._wake = wake
        if self.is_set:
            wake()

    def rearm(self) -> None:
        """Reset the signal for another wait."""
        self.is_set = False
        self._wake = None

    def set(self) -> bool:
        """Wake the listener. Returns False if the listener is gone."""
        self.is_set = True
        return self._wake is None or self._wake() is not False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for `seconds`, or until `signal` is set, if that is sooner."""

    seconds: float
    signal: Signal | None = None
