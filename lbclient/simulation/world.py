"""A world with its own clock, in which processes wait only for pauses."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from typing import TypeVar

from lbclient._internal.signals import Pause

__all__ = ["Process", "World"]

R = TypeVar("R")
Process = Generator[Pause, None, R]
"""A generator that yields the pauses that it waits for, and returns its result."""


class World:
    """Virtual time with discrete events: the time jumps from one event to the next. The same
    processes always give the same run."""

    def __init__(self) -> None:
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None], bool]] = []
        self._order = itertools.count()
        self._awaited = 0
        self._processes: set[Process[object]] = set()
        """The processes that have not ended. Without this reference, a process that waits forever
        would be garbage collected, and so closed."""

    def clock(self) -> float:
        """Return the virtual time in seconds. Every balancer in this world uses this clock."""
        return self._now

    def spawn(self, process: Process[R]) -> list[R]:
        """Start a process now. Returns an empty list. When the process ends, its result is appended
        to the list.

        Like a task of asyncio, the process runs in its own context (of `contextvars`). So the
        deadline of a process does not apply to another process, or to the caller of `run`.
        """
        results: list[R] = []
        self._processes.add(process)
        context = copy_context()
        self.at(self._now, lambda: self._step(process, context, results))
        return results

    @property
    def idle(self) -> bool:
        """True if only background events are left."""
        return not self._awaited

    def at(self, time: float, event: Callable[[], None], *, background: bool = False) -> None:
        """Schedule an event at a time. If this time has passed, the event happens now. Use
        `background` for events that are repeated forever, such as lookups: a run ends when only
        such events are left."""
        self._awaited += not background
        heapq.heappush(self._events, (max(time, self._now), next(self._order), event, background))

    def run(self, until: float = math.inf) -> None:
        """Run all events up to the time `until`, and then set the clock to `until`. Without
        `until`, run until no event is left.

        If a process raises an exception, `run` raises it.
        """
        while self.step(until):
            pass
        if until < math.inf:
            self._now = until

    def step(self, until: float = math.inf) -> bool:
        """Run the next event. Returns False if there is no event until that time."""
        if not self._events or self._events[0][0] > until:
            return False
        self._now, _, event, background = heapq.heappop(self._events)
        self._awaited -= not background
        event()
        return True

    def _step(self, process: Process[R], context: Context, results: list[R]) -> None:
        try:
            pause = context.run(next, process)
        except StopIteration as end:
            self._processes.discard(process)
            results.append(end.value)
            return
        self._resume(pause, _once(lambda: self._step(process, context, results)))

    def _resume(self, pause: Pause, go_on: Callable[[], None]) -> None:
        if pause.seconds < math.inf:  # otherwise the pause ends only by its signal
            self.at(self._now + pause.seconds, go_on)
        if pause.signal is not None:
            pause.signal.listen(lambda: self.at(self._now, go_on))


def _once(event: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `event` only the first time, since a pause may end both by its
    signal and by its time."""
    happened = False

    def happen() -> None:
        nonlocal happened
        if not happened:
            happened = True
            event()

    return happen
