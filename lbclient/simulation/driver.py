"""The driver of virtual time: where threads sleep, it yields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from lbclient._internal.signals import Pause, Signal
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call, Hedge
from lbclient.simulation.world import Process

__all__ = ["carry_out"]

R = TypeVar("R")
Send = Callable[[Attempt[R]], Process[R]]


def carry_out(
    call: Call[R], send: Send[R], discard: Callable[[R], object] | None = None
) -> Process[R]:
    """Carry out a call in a world. `send` is a process too, which passes time by yielding.

    `discard` is called with responses that came too late.
    """
    with call:
        if (after := call.hedge_after()) is None:
            yield from _steps(call, send)
        else:
            yield from _Lanes(call, send, discard or _drop).race(after)
    return call.result()


def _steps(steps: Iterable[Pause | Attempt[R]], send: Send[R]) -> Process[None]:
    for step in steps:
        if isinstance(step, Pause):
            yield step
        else:
            with step:
                step.result = yield from send(step)


class _Lane(Generic[R]):
    """One of two concurrent processes, and what it waits for."""

    def __init__(self, steps: Call[R] | Hedge[R], send: Send[R], now: float) -> None:
        self.steps = steps
        self.process = _steps(steps, send)
        self.due = now
        self.signal: Signal | None = None

    def step(self, now: float) -> bool:
        """Continue if it is time. Returns False once it has ended."""
        while self.due <= now or (self.signal is not None and self.signal.is_set):
            try:
                pause = next(self.process)
            except StopIteration:
                return False
            self.due, self.signal = now + pause.seconds, pause.signal
        return True


class _Lanes(Generic[R]):
    """Runs the steps of a call and of its hedge concurrently. The slower attempt is closed."""

    def __init__(self, call: Call[R], send: Send[R], discard: Callable[[R], object]) -> None:
        self._call = call
        self._send = send
        self._discard = discard
        self._clock = call.engine.clock
        self._lanes: list[_Lane[R]] = []
        self._hedge_at = math.inf

    def race(self, after: float) -> Process[None]:
        """Run the call; its hedge begins `after` this many seconds."""
        self._hedge_at = self._clock() + after
        self._begin(self._call)
        try:
            while self._go_on():
                yield self._pause()
        finally:
            if self._call.race is not None:
                self._call.race.end()
            for lane in self._lanes:
                self._end(lane)
            self._tidy(self._call)

    def _begin(self, steps: Call[R] | Hedge[R]) -> _Lane[R]:
        lane = _Lane(steps, self._send, self._clock())
        self._lanes.append(lane)
        return lane

    def _go_on(self) -> bool:
        now = self._clock()
        for lane in list(self._lanes):
            if not self._stepped(lane, now):
                return False
        if self._lanes and now >= self._hedge_at:
            self._hedge_at = math.inf
            if (hedge := self._call.hedge()) is not None and not self._stepped(
                self._begin(hedge), now
            ):
                return False
        return bool(self._lanes)

    def _stepped(self, lane: _Lane[R], now: float) -> bool:
        """Continue a process. Returns False once the call has its outcome."""
        if not lane.step(now):
            self._lanes.remove(lane)
            self._end(lane)
        return not self._call.over

    def _end(self, lane: _Lane[R]) -> None:
        lane.process.close()
        self._tidy(lane.steps)

    def _tidy(self, steps: Call[R] | Hedge[R]) -> None:
        """Close a response that was not the first."""
        if (answer := steps.leftover()) is not None:
            self._discard(answer)

    def _pause(self) -> Pause:
        woken = Signal()
        for lane in self._lanes:
            if lane.signal is not None:
                lane.signal.listen(woken.set)
        until = min(self._hedge_at, *(lane.due for lane in self._lanes))
        return Pause(until - self._clock(), woken)


def _drop(answer: object) -> None:
    """Discard a response that needs no closing."""
