"""The driver for callbacks: it carries a call out without a thread or a task for the call.

No thread or task runs the steps of such a call one after another. Instead, the thread that reports
the end of a step begins the next step. An attempt may end on one thread while the caller cancels it
on another thread. So the driver stores the step that is under way, and handles its end only once.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from lbclient._internal.signals import Pause
from lbclient.balancer.event_loops import call_soon
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.discovery.scheduler import THREAD_SCHEDULER

__all__ = ["Alarm", "CallbackRun", "asleep_until", "sleep_until", "start"]

R = TypeVar("R")
T = TypeVar("T")


class Alarm(Protocol):
    """A pause that has begun, and can be ended early."""

    @property
    def ring(self) -> Callable[[], object]:
        """A function that ends the pause now. Any thread may call it, and a finalizer too."""
        ...


Rest = Callable[[Pause, Callable[[], None]], Alarm]
"""Begins a pause, and calls the function once the pause is over."""


class _ScheduledPause:
    """A pause of a call, as a job of the scheduler."""

    ticket = -1
    busy = False
    quick = False

    def __init__(self, pause: Pause, resume: Callable[[], None]) -> None:
        self.next_at: float = time.monotonic() + pause.seconds
        self.stopped: bool = False
        self._resume = resume
        THREAD_SCHEDULER.schedule(self)
        if pause.signal is not None:
            pause.signal.listen(self.ring)

    def clock(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def claim(self) -> bool:
        """True if the pause is over."""
        return not self.stopped and self.clock() >= self.next_at

    def run(self) -> None:
        """Continue the call."""
        self.stopped = True
        self._resume()

    def ring(self) -> None:
        """End the pause now. The code that sets the signal may hold the balancer's lock."""
        self.next_at = -math.inf
        THREAD_SCHEDULER.schedule(self)


def sleep_until(pause: Pause, resume: Callable[[], None]) -> Alarm:
    """Call `resume` once the pause is over, on a thread of the scheduler."""
    return _ScheduledPause(pause, resume)


def asleep_until(pause: Pause, resume: Callable[[], None]) -> Alarm:
    """Call `resume` in the running event loop of asyncio once the pause is over."""
    return _Timer(pause, resume)


class _Timer:
    """A pause, in an event loop of asyncio."""

    def __init__(self, pause: Pause, resume: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, pause.seconds), resume)
        self._resume = resume
        self.ring: Callable[[], object] = partial(call_soon, loop, self._wake)
        """Ends the pause now, from any thread."""
        if pause.signal is not None:
            pause.signal.listen(self.ring)

    def _wake(self) -> None:
        self._timer.cancel()
        self._resume()


class CallbackRun(Generic[R]):
    """One call that is carried out by callbacks. `start` returns it."""

    __slots__ = (
        "__weakref__",
        "_alarm",
        "_awaited",
        "_begin",
        "_cancelled",
        "_context",
        "_done",
        "_rest",
        "_steps",
        "call",
    )

    def __init__(
        self,
        call: Call[R],
        begin: Callable[[Attempt[R]], object],
        done: Callable[[Callable[[], R]], object],
        rest: Rest,
    ) -> None:
        self.call: Call[R] = call
        self._begin = begin
        self._done = done
        self._rest = rest
        self._alarm: Alarm | None = None
        self._cancelled: BaseException | None = None
        self._awaited: dict[object, None] = {}
        """The attempt or pause that is under way. The thread that removes it from here continues
        the call."""
        self._context = contextvars.copy_context()
        self._steps: Iterator[Pause | Attempt[R]] = iter(())

    def run(self) -> None:
        """Begin the call. The call may end before this method returns."""
        _running.add(self)
        try:
            self._context.run(self.call.__enter__)
            self._steps = iter(self.call)
        except BaseException:
            _running.discard(self)
            raise
        self._proceed()

    def finish(
        self,
        attempt: Attempt[R],
        result: R | None = None,
        error: BaseException | None = None,
        holder: object | None = None,
    ) -> bool:
        """End an attempt, with a result or an error. If this method is called several times for an
        attempt, only the first call has an effect and returns True.

        With a `holder`, the attempt is held: see `Attempt.hold`.
        """
        if not self._claims(attempt):
            return False
        if error is None:
            if holder is not None:
                attempt.hold(holder)
            attempt.result = result
        self._leave(attempt, error)
        return True

    def cancel(self, error: BaseException) -> bool:
        """End the call with `error`: at once while the call waits, otherwise when its attempt has
        ended. The code that cancels the call must end this attempt. Returns True if the call has
        ended."""
        self._cancelled = error
        for awaited in list(self._awaited):
            if isinstance(awaited, Attempt):
                return False
            if self._claims(awaited):
                self._end(error)
                return True
        return False

    def drop(self, error: BaseException) -> None:
        """Like `cancel`, but for a finalizer: this method takes no lock, and if the call waits,
        another thread ends it."""
        self._cancelled = error
        if (alarm := self._alarm) is not None:
            alarm.ring()

    def _is_cancelled(self) -> bool:
        return self._cancelled is not None

    def _claims(self, awaited: object) -> bool:
        return self._awaited.pop(awaited, self) is None

    def _proceed(self) -> None:
        """Begin the next step, which may end before this method returns."""
        if self._is_cancelled():
            self._end(self._cancelled)
            return
        try:
            step = self._context.run(next, self._steps, None)
            if isinstance(step, Attempt):
                self._context.run(step.__enter__)
        except BaseException as error:  # noqa: BLE001  # raised to the caller
            self._end(error)
            return
        if step is None:
            self._end(None)
        elif isinstance(step, Pause):
            mark = object()
            self._awaited[mark] = None
            self._alarm = self._rest(step, partial(self._resume, mark))
            if self._is_cancelled():  # by another thread, since the check above
                self._resume(mark)
        else:
            self._awaited[step] = None
            try:
                # Run in a copy of the context: another thread may end the attempt, in the context
                # itself, before `begin` returns.
                self._context.copy().run(self._begin, step)
            except BaseException as error:  # noqa: BLE001  # it ends the attempt
                self.finish(step, error=error)

    def _resume(self, mark: object) -> None:
        if self._claims(mark):
            self._alarm = None
            self._proceed()

    def _leave(self, attempt: Attempt[R], error: BaseException | None) -> None:
        try:
            handled = self._context.run(
                attempt.__exit__, type(error), error, None if error is None else error.__traceback__
            )
        except BaseException as raised:  # noqa: BLE001  # raised to the caller
            self._end(raised)
            return
        if error is None or handled:
            self._proceed()
        else:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        _running.discard(self)
        steps, self._steps = self._steps, iter(())
        if error is not None and isinstance(steps, Generator):
            self._context.run(steps.close)
        self._context.run(self.call.__exit__, None, error, None)
        self._done(self.call.result if error is None else partial(_raise, error))


def _raise(error: BaseException) -> Any:
    raise error


_running: set[CallbackRun[Any]] = set()
"""The calls under way. While a call waits, only this set keeps it alive."""


def start(
    call: Call[R],
    begin: Callable[[CallbackRun[R], Attempt[R]], object],
    done: Callable[[Callable[[], R]], object],
    rest: Rest = sleep_until,
) -> CallbackRun[R]:
    """Begin a call, and return before it has an outcome.

    - `begin(run, attempt)` begins an attempt, without waiting for its end. At its end, on any
      thread, call `run.finish(attempt, result)` or `run.finish(attempt, error=error)`.
    - `done(result)` is called once, on the thread on which the last step ended. `result()` returns
      the final result or raises the final error.
    - `rest` carries out the pauses: `sleep_until`, or `asleep_until` in an event loop of asyncio.

    For a call that may be hedged, use `run` or `arun` instead.
    """
    run: CallbackRun[R]
    run = CallbackRun(call, lambda attempt: begin(run, attempt), done, rest)
    run.run()
    return run
