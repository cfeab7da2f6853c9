"""A world with a clock of its own, in which processes wait for pauses and for nothing else."""

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
"""Yields the pauses that it waits for, and returns its result."""


class World:
    """Discrete events: time jumps from one to the next. The same spawns give the same run."""

    def __init__(self) -> None:
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None], bool]] = []
        self._order = itertools.count()
        self._awaited = 0
        self._processes: set[Process[object]] = set()
        """Those that have not ended: one that waits for ever would be collected, and so closed."""

    def clock(self) -> float:
        """Virtual seconds: the `clock` of every balancer in this world."""
        return self._now

    def spawn(self, process: Process[R]) -> list[R]:
        """Start a process now; the list that is returned holds its result once it has one.

        It runs in a context of its own, as a task does: attempts of processes that overlap end in
        any order, and none of them leaves its deadline to another, or to who called `run`.
        """
        results: list[R] = []
        self._processes.add(process)
        context = copy_context()
        self.at(self._now, lambda: self._step(process, context, results))
        return results

    @property
    def idle(self) -> bool:
        """True where nothing is to happen any more but in the background."""
        return not self._awaited

    def at(self, time: float, event: Callable[[], None], *, background: bool = False) -> None:
        """Have something happen at a time, not before now; in the `background` what would go on
        though nobody waits for it."""
        self._awaited += not background
        heapq.heappush(self._events, (max(time, self._now), next(self._order), event, background))

    def run(self, until: float = math.inf) -> None:
        """Let everything happen, or what happens up to a time, which then is now.

        An exception that leaves a process leaves here too.
        """
        while self.step(until):
            pass
        if until < math.inf:
            self._now = until

    def step(self, until: float = math.inf) -> bool:
        """Let the next thing happen. False where nothing is to happen up to that time."""
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
        if pause.seconds < math.inf:  # else it waits for its signal, or for ever
            self.at(self._now + pause.seconds, go_on)
        if pause.signal is not None:
            pause.signal.listen(lambda: self.at(self._now, go_on))


def _once(event: Callable[[], None]) -> Callable[[], None]:
    """A pause may end twice, by its signal and by its time."""
    happened = False

    def happen() -> None:
        nonlocal happened
        if not happened:
            happened = True
            event()

    return happen
