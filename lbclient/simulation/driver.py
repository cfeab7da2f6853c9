"""The driver for virtual time: it yields pauses instead of sleeping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from lbclient._internal.signals import Pause, Signal
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.core.hedge import Lane, Lanes
from lbclient.simulation.world import Process

__all__ = ["carry_out"]

R = TypeVar("R")
Send = Callable[[Attempt[R]], Process[R]]
_FOREVER = Pause(math.inf)


def carry_out(
    call: Call[R], send: Send[R], discard: Callable[[R], object] | None = None
) -> Process[R]:
    """Carry out a call in a world. This process and `send` wait by yielding pauses.

    If the call is hedged, `discard` is called with each response that is left over because the call
    returns another result.
    """
    with call:
        if (after := call.hedge_after()) is None:
            yield from _steps(call, send)
        else:
            yield from _race(call, after, send, discard or _drop)
    return call.result()


def _steps(steps: Iterable[Pause | Attempt[R]], send: Send[R]) -> Process[None]:
    for step in steps:
        if isinstance(step, Pause):
            yield step
        else:
            with step:
                step.result = yield from send(step)


def _race(
    call: Call[R], after: float, send: Send[R], discard: Callable[[R], object]
) -> Process[None]:
    """Run the lanes concurrently. The slower attempt is closed."""

    def run(lane: Lane[R]) -> Process[None]:
        try:
            with lane:
                yield from _steps(lane, send)
        finally:
            if lane.leftover is not None:
                discard(lane.leftover)

    def run_others() -> Process[None]:
        for step in lanes:
            if isinstance(step, Pause):
                yield step
            else:
                yield from run(step)

    lanes = Lanes(call, after)
    processes = [run(Lane(lanes, call)), run_others()]
    try:
        with lanes:
            yield from _concurrently(processes, lanes.done, call.engine.clock)
    finally:
        for process in processes:
            process.close()


def _concurrently(
    processes: list[Process[None]], done: Signal, clock: Callable[[], float]
) -> Process[None]:
    """Run processes until `done` is set."""
    waits = dict.fromkeys(processes, (clock(), Signal()))
    while True:
        for process in processes:
            due, signal = waits[process]
            while not done.is_set and (due <= clock() or signal.is_set):
                pause = next(process, _FOREVER)
                due, signal = clock() + pause.seconds, pause.signal or Signal()
            waits[process] = due, signal
        if done.is_set:
            return
        woken = Signal()
        for _, signal in waits.values():
            signal.listen(woken.set)
        yield Pause(min(due for due, _ in waits.values()) - clock(), woken)


def _drop(answer: object) -> None:
    """Discard a response that needs no closing."""
