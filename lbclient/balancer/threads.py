"""The driver for threads."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from types import CoroutineType
from typing import Generic, TypeVar

from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Pause
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call, Hedge
from lbclient.core.hedge import HedgeRace
from lbclient.endpoint.instance import Instance

__all__ = ["invoke", "run", "sleep"]

R = TypeVar("R")
Send = Callable[[Attempt[R]], R]
_LOOK = 1.0
"""Seconds between two looks at the threads of a hedged call."""

T = TypeVar("T")


def sleep(pause: Pause) -> None:
    """Wait on this thread.

    Not with a `threading.Event`, which is Python code around a lock: an exception from a signal
    handler may leave that lock held for ever, and the thread that sets the event then blocks while
    it holds the balancer's lock.
    """
    if pause.signal is None:
        time.sleep(pause.seconds)
        return
    woken: queue.SimpleQueue[None] = queue.SimpleQueue()
    pause.signal.listen(partial(woken.put, None))
    with contextlib.suppress(queue.Empty):
        woken.get(timeout=max(0.0, pause.seconds))


def run(
    call: Call[R],
    send: Send[R],
    rest: Callable[[Pause], None] | None = None,
    discard: Callable[[R], object] | None = None,
) -> R:
    """Carry a call out on this thread, or on one thread for each attempt if it may be hedged.

    `discard` closes answers that came too late.
    """
    wait = rest or sleep
    with call:
        if call.engine.hedging is None or (after := call.hedge_after()) is None:
            for step in call:  # as in `_carry_out`, with one function less for nearly every call
                if isinstance(step, Pause):
                    wait(step)
                else:
                    with step:
                        step.result = send(step)
        else:
            _Lanes(call, send, wait, discard or _drop).race(after)
    return call.result()


def _carry_out(
    steps: Iterable[Pause | Attempt[R]], send: Send[R], wait: Callable[[Pause], None]
) -> None:
    for step in steps:
        if isinstance(step, Pause):
            wait(step)
        else:
            with step:
                step.result = send(step)


class _Lanes(Generic[R]):
    """The steps of a call and of its hedge, on two threads, since a thread that reads cannot learn
    of a faster answer.

    The slower attempt is interrupted if its connection is ours. Otherwise it runs to its end, and
    its instance is busy until then.
    """

    def __init__(
        self,
        call: Call[R],
        send: Send[R],
        wait: Callable[[Pause], None],
        discard: Callable[[R], object],
    ) -> None:
        self._call = call
        self._send = send
        self._wait = wait
        self._discard = discard
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._running = 0
        self._threads: list[threading.Thread] = []

    def race(self, after: float) -> None:
        """Run the call's own steps, and those of its hedge `after` so many seconds."""
        race = _race_of(self._call)
        self._start(self._call)
        timeout, hedged = after, False
        try:
            while self._running:
                try:
                    error = self._ended.get(timeout=timeout)
                except queue.Empty:
                    if hedged:
                        self._check()
                    elif (hedge := self._call.hedge()) is not None:
                        self._start(hedge)
                    timeout, hedged = _LOOK, True
                    continue
                self._running -= 1
                try:
                    if error is not None:
                        raise error
                finally:
                    del error  # its traceback holds this frame
                if race.over:
                    break
        finally:
            race.end()
        self._tidy(self._call)

    def _start(self, steps: Call[R] | Hedge[R]) -> None:
        context = contextvars.copy_context()
        lane = threading.Thread(
            target=context.run, args=(self._lane, steps), name="lbclient-attempt", daemon=True
        )
        self._running += 1
        before = sys.exception()
        try:
            lane.start()
        except RuntimeError as error:
            if (interruption := error.__context__) not in (None, before):
                raise interruption from None  # after it, the lock of `lane` could not be released
            context.run(self._lane, steps)  # no more threads can be started
        self._threads.append(lane)

    def _check(self) -> None:
        """An exception set from outside may end a thread before it reports its end."""
        if self._ended.empty() and not any(one.is_alive() for one in self._threads):
            raise RuntimeError("a thread of this call was ended from outside")

    def _lane(self, steps: Call[R] | Hedge[R]) -> None:
        error: BaseException | None = None
        try:
            try:
                _carry_out(steps, self._send, self._wait)
            except BaseException as failure:  # noqa: BLE001  # as below
                error = failure
                steps.abandon()
            self._tidy(steps)
        except BaseException as failure:  # noqa: BLE001  # raised where the call was made
            error = error or failure
            steps.abandon()
        finally:
            self._ended.put(error)

    def _tidy(self, steps: Call[R] | Hedge[R]) -> None:
        """Close an answer that was not the first good one."""
        if (answer := steps.leftover()) is None:
            return
        engine = self._call.engine
        try:
            self._discard(answer)
        except Exception as error:
            if is_interruption(error):
                raise
            engine.discarding.failed(engine.clock(), error)
        else:
            if engine.discarding.failing:
                engine.discarding.recovered()


def _race_of(call: Call[R]) -> HedgeRace[Attempt[R]]:
    if call.race is None:
        raise RuntimeError("this call is not to be hedged")
    return call.race


def _drop(answer: object) -> None:
    """Do nothing: the answer needs no closing."""


def invoke(fn: Callable[[Instance], T], attempt: Attempt[T]) -> T:
    """Call `fn` for an attempt. A coroutine is refused: it would count as a success before it has
    begun."""
    result = fn(attempt.instance)
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError("fn returned a coroutine; use `await balancer.acall(fn)`")
    return result
