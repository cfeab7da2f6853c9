"""Many calls at once for a while: how many, how long each took, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import anyio
from sidecars import cpu_seconds
from turns import uncollected

Call = Callable[[], None]
AsyncCall = Callable[[], Awaitable[None]]
_MOMENT = 0.005


class Effort(NamedTuple):
    """Seconds until all callers are well under way, and those that count then."""

    ramp: float
    seconds: float


class Turn(NamedTuple):
    """One block. Seconds; `cpu` is the processor's, of this process and of a sidecar."""

    seconds: float
    cpu: float
    took: list[float]

    @property
    def rate(self) -> float:
        return len(self.took) / self.seconds

    @property
    def seconds_per_call(self) -> float:
        """Of one caller, which need not end a call just when the block ends."""
        return sum(self.took) / len(self.took)

    @property
    def cpu_per_call(self) -> float:
        return self.cpu / len(self.took)


def percentile(turns: list[Turn], percent: float) -> float:
    """Of the times that calls took, of all blocks together."""
    took = sorted(one for turn in turns for one in turn.took)
    return took[int(percent / 100 * (len(took) - 1))]


class Window:
    """The part of a block that counts: the calls that end in it. Without it a block's end, where
    fewer are under way, would flatter who is slow with many. `sidecar` is a process's id."""

    def __init__(self, sidecar: int | None = None) -> None:
        self.took: list[float] = []
        self.over = False
        self._sidecar = sidecar
        self._first, self._begun, self._used = 0, 0.0, 0.0

    def begin(self) -> None:
        self._first, self._begun, self._used = len(self.took), time.perf_counter(), self._cpu()

    @property
    def empty(self) -> bool:
        return len(self.took) == self._first

    def end(self) -> Turn:
        self.over = True
        seconds, cpu = time.perf_counter() - self._begun, self._cpu() - self._used
        return Turn(seconds, cpu, self.took[self._first :])

    def _cpu(self) -> float:
        of_it = 0.0 if self._sidecar is None else cpu_seconds(self._sidecar)
        return time.process_time() + of_it


async def of_tasks(
    call: AsyncCall, at_once: int, effort: Effort, sidecar: int | None = None
) -> Turn:
    """So many tasks of this event loop. `sidecar` is the id of a process that works for them."""
    window = Window(sidecar)

    async def caller() -> None:
        while not window.over:
            begun = time.perf_counter()
            await call()
            window.took.append(time.perf_counter() - begun)

    with uncollected():
        async with anyio.create_task_group() as callers:
            for _ in range(at_once):
                callers.start_soon(caller)
            await anyio.sleep(effort.ramp)
            window.begin()
            await anyio.sleep(effort.seconds)
            while window.empty:  # noqa: ASYNC110  # an event for each call would cost each call
                await anyio.sleep(_MOMENT)
            turn = window.end()
    return turn


def of_threads(call: Call, threads: int, effort: Effort, pool: ThreadPoolExecutor) -> Turn:
    """So many threads of a pool that has them."""
    window = Window()

    def caller() -> None:
        while not window.over:
            begun = time.perf_counter()
            call()
            window.took.append(time.perf_counter() - begun)

    with uncollected():
        callers = [pool.submit(caller) for _ in range(threads)]
        time.sleep(effort.ramp)
        window.begin()
        time.sleep(effort.seconds)
        while window.empty:
            time.sleep(_MOMENT)
        turn = window.end()
        for one in callers:
            one.result()
    return turn
