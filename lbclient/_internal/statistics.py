"""Statistics over recent samples: a moving average, and counts over a sliding window."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

__all__ = ["Ewma", "SlidingWindow"]

V = TypeVar("V", float, float | None)


class Ewma(Generic[V]):
    """An exponentially weighted moving average. Each sample changes `value` by the part `gain` of
    the difference between them.

    `value` is the number to start from, or None: then the first sample becomes the value. The
    weight of an old sample depends on the number of later samples, not on its age, as in TCP's
    smoothed round-trip time (RFC 6298). If the age matters too, the owner of this object changes
    `value` before it records a sample.
    """

    __slots__ = ("gain", "value")

    def __init__(self, gain: float, value: V) -> None:
        self.gain: float = gain
        self.value: V = value

    def record(self, sample: float) -> None:
        """Record a sample. The engine repeats this code for each call, to save a function call."""
        old = self.value
        moved = sample if old is None else old + self.gain * (sample - old)
        self.value = moved  # pyright: ignore[reportAttributeAccessIssue]  # each V holds a float


class SlidingWindow:
    """Counts of the events in the last `seconds`, by kind (numbers from 0).

    Events are counted in slices of equal length, as in Hystrix, so the cost of a count does not
    depend on the number of events. The events of a slice are forgotten together. So each event is
    included in the totals for `seconds`, or for up to one slice less. With `start`, the slices
    follow each other without gaps from that time on. If the whole window is empty, the slices start
    again at the next event. Without `start`, each slice begins at the first event after the end of
    the previous slice.

    If the clock falls back by more than a slice, all events are forgotten. Otherwise they would
    stay in the totals until the clock has reached their time again. The caller passes in the time,
    and holds a lock. The counts change in lines that call no function. So the counts stay correct
    if a signal handler raises an exception.
    """

    __slots__ = ("_last", "_parts", "_regular", "_seconds", "_since", "_slices", "_until", "totals")

    def __init__(
        self, seconds: float, slices: int, kinds: int, *, start: float | None = None
    ) -> None:
        self._seconds = seconds
        self._parts = slices
        self._regular = start is not None
        self._slices: list[tuple[float, list[int]]] = []
        """The start of each slice, and its counts. A slice without events may be left out."""
        self._last: list[int] = []
        """The counts of the last slice."""
        self._since = self._until = -math.inf
        """Events from the time `_since` to the time `_until` belong to the last slice."""
        self.totals: list[int] = [0] * kinds
        """The events by kind, as of the last call of a method."""
        if start is not None:
            self._begin_slice(start)

    def add(self, now: float, kind: int = 0) -> None:
        """Count an event. Owners use this method directly as one of their own methods, which saves
        a function call."""
        if not self._since <= now < self._until:
            self._begin_slice(now)
        self._last[kind] += 1
        self.totals[kind] += 1

    def slide(self, now: float) -> list[int]:
        """Forget the slices that are too old. Returns `totals`."""
        while self._slices and self._slices[0][0] <= now - self._seconds:
            past = self._slices[0][1]
            totals = [total - old for total, old in zip(self.totals, past, strict=True)]
            self._slices, self.totals = self._slices[1:], totals
        if not self._slices:
            self._since = self._until = -math.inf
        return self.totals

    def _begin_slice(self, now: float) -> None:
        if now < self._since:
            self._slices, self.totals = [], [0] * len(self.totals)
        self.slide(now)
        length, began = self._seconds / self._parts, now
        if self._regular and self._slices:
            last = self._slices[-1][0]
            began = last + max(1.0, (now - last) // length) * length
            if not began - length <= now < began + length:  # rounding gave a neighbour
                began = now
            self.slide(began + length / 2)  # rounding may have kept one slice too many
        until = max(began + length, math.nextafter(began, math.inf))
        counts = [0] * len(self.totals)
        self._slices, self._last = [*self._slices, (began, counts)], counts
        self._since, self._until = began - length, until
