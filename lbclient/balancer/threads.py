"""The driver for threads."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import CoroutineType
from typing import TypeVar

from lbclient._internal.signals import Pause
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.core.hedge import Lane, Lanes
from lbclient.endpoint.instance import Instance

__all__ = ["invoke", "run", "sleep", "start"]

R = TypeVar("R")
Send = Callable[[Attempt[R]], R]

T = TypeVar("T")
_LOOK = 1.0
"""Seconds after which the threads of a hedged call are checked again."""


def sleep(pause: Pause) -> None:
    """Wait on this thread until the pause is over.

    This function does not use `threading.Event`, which is Python code around a lock. An exception
    from a signal handler may leave that lock held forever. Then the thread that sets the event
    would block while it holds the balancer's lock.
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
    """Carry a call out on this thread. If the call may be hedged, each attempt has its own thread.

    `discard` closes the answer of an attempt that is not the outcome.
    """
    wait = rest or sleep
    with call:
        if call.engine.hedging is None or (after := call.hedge_after()) is None:
            for step in call:  # as in `_race`, but with one function call fewer
                if isinstance(step, Pause):
                    wait(step)
                else:
                    with step:
                        step.result = send(step)
        else:
            _race(call, after, send, wait, discard or _drop)
    return call.result()


def _race(
    call: Call[R],
    after: float,
    send: Send[R],
    wait: Callable[[Pause], None],
    discard: Callable[[R], object],
) -> None:
    """Run the call and its hedge (the two lanes) on separate threads: a thread that is blocked in a
    read cannot notice that the other answer has arrived.

    The slower attempt is interrupted if lbclient has opened its connection. Otherwise the attempt
    runs to its end, and counts as in flight until then.
    """

    def run(lane: Lane[R]) -> None:
        try:
            with lane:
                for step in lane:
                    if isinstance(step, Pause):
                        wait(step)
                    else:
                        with step:
                            step.result = send(step)
            if lane.leftover is not None:
                with call.engine.discarding.tolerate(call.engine.clock()):
                    discard(lane.leftover)
        except BaseException as error:  # noqa: BLE001  # raised to the caller
            lane.end(error)

    with Lanes(call, after) as lanes:
        threads = [_started(run, Lane(lanes, call))]
        for step in lanes:
            if isinstance(step, Pause):
                sleep(step)
            else:
                threads.append(_started(run, step))
        while not lanes.done.is_set:
            # An exception that another thread sets may end a thread before it reports its end.
            if not any(thread.is_alive() for thread in threads) and not lanes.done.is_set:
                raise RuntimeError("a thread of this call was ended from outside")
            sleep(Pause(_LOOK, lanes.done))


def _started(run: Callable[[Lane[R]], None], lane: Lane[R]) -> threading.Thread:
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=context.run, args=(run, lane), name="lbclient-attempt", daemon=True
    )
    if not start(thread):
        context.run(run, lane)
    return thread


def start(thread: threading.Thread) -> bool:
    """Start a thread. Returns False if no more threads can be started. If a signal handler raises
    an exception meanwhile, this function raises it."""
    before = sys.exception()
    try:
        thread.start()
    except RuntimeError as error:
        if (interruption := error.__context__) not in (None, before):
            raise interruption from None  # the exception has left the lock of `thread` held
        return False
    return True


def _drop(answer: object) -> None:
    """Do nothing: the answer needs no closing."""


def invoke(fn: Callable[[Instance], T], attempt: Attempt[T]) -> T:
    """Call `fn` for an attempt. A coroutine function is refused: calling it only creates a
    coroutine, which would count as a success."""
    result = fn(attempt.instance)
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError("fn returned a coroutine; use `await balancer.acall(fn)`")
    return result
