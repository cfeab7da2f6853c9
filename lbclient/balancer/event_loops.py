"""The driver for event loops, asyncio's and trio's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from lbclient._internal.deadline import Expiry
from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Pause
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call, Hedge
from lbclient.endpoint.instance import Instance

__all__ = ["ainvoke", "arun", "asleep"]

R = TypeVar("R")
Send = Callable[[Attempt[R]], Awaitable[R]]

T = TypeVar("T")


async def asleep(pause: Pause) -> None:
    """Wait in this task."""
    if pause.signal is None:
        await anyio.sleep(pause.seconds)
        return
    event = anyio.Event()
    pause.signal.listen(_from_any_thread(event.set))
    with anyio.move_on_after(pause.seconds):
        await event.wait()


def _from_any_thread(wake: Callable[[], None]) -> Callable[[], bool]:
    """Return a function that calls `wake` in the event loop, from any thread, without waiting.

    It returns False if the loop has ended.
    """
    try:
        soon: Callable[..., object] = asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # noqa: PLC0415  # it is installed only where trio runs the loop

        soon = trio.lowlevel.current_trio_token().run_sync_soon

    def wake_soon() -> bool:
        try:
            soon(wake)
        except RuntimeError:
            return False
        return True

    return wake_soon


async def arun(
    call: Call[R],
    send: Send[R],
    rest: Callable[[Pause], Awaitable[None]] | None = None,
    discard: Callable[[R], Awaitable[object]] | None = None,
) -> R:
    """Carry a call out in this task. A hedge runs in another task.

    `discard` closes answers that came too late.
    """
    wait = rest or asleep
    with call:
        if call.engine.hedging is None or (after := call.hedge_after()) is None:
            for step in call:  # as in `_Lanes`, with one coroutine less for nearly every call
                if isinstance(step, Pause):
                    await wait(step)
                else:
                    with step:
                        step.result = await send(step)
        else:
            await _Lanes(call, send, wait, discard or _drop).race(after)
    return call.result()


class _Lanes(Generic[R]):
    """The steps of a call and of its hedge, in two tasks. The slower attempt is cancelled."""

    def __init__(
        self,
        call: Call[R],
        send: Send[R],
        wait: Callable[[Pause], Awaitable[None]],
        discard: Callable[[R], Awaitable[object]],
    ) -> None:
        self._call = call
        self._send = send
        self._wait = wait
        self._discard = discard
        self._first = anyio.CancelScope()
        self._hedging = False
        self._error: Exception | None = None

    async def race(self, after: float) -> None:
        """Run the call's own steps, and those of its hedge `after` so many seconds."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._hedge_later, after)
                with self._first:
                    await self._lane(self._call)
                if self._call.over or self._error is not None or not self._hedging:
                    group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:  # interrupted by one exception, in one place
            raise errors.exceptions[0] from None
        finally:
            if (race := self._call.race) is not None:
                race.end()
            await self._tidy(self._call)
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame

    async def _hedge_later(self, after: float) -> None:
        await anyio.sleep(after)
        if (hedge := self._call.hedge()) is None:
            return
        self._hedging = True
        try:
            await self._lane(hedge)
        finally:
            self._hedging = False
            await self._tidy(hedge)
        if self._call.over or self._error is not None:
            self._first.cancel()

    async def _lane(self, steps: Call[R] | Hedge[R]) -> None:
        try:
            for step in steps:
                if isinstance(step, Pause):
                    await self._wait(step)
                else:
                    with step:
                        step.result = await self._send(step)
        except BaseException as error:
            steps.abandon()
            if not isinstance(error, Exception):
                raise
            self._error = error  # raised where the call was made, without a group

    async def _tidy(self, steps: Call[R] | Hedge[R]) -> None:
        """Close an answer that was not the first good one."""
        if (answer := steps.leftover()) is None:
            return
        engine = self._call.engine
        with anyio.CancelScope(shield=True):
            try:
                await self._discard(answer)
            except Exception as error:
                if is_interruption(error):
                    raise
                engine.discarding.failed(engine.clock(), error)
            else:
                if engine.discarding.failing:
                    engine.discarding.recovered()


async def _drop(answer: object) -> None:
    """Do nothing: the answer needs no closing."""


def ainvoke(fn: Callable[[Instance], Awaitable[T]], attempt: Attempt[T]) -> Awaitable[T]:
    """Call `fn`, a coroutine function, for an attempt. It is cancelled when its time is up."""
    result = fn(attempt.instance)
    if not hasattr(result, "__await__"):
        kind = type(result).__name__
        raise TypeError(f"fn must return an awaitable, not {kind}; use `balancer.call(fn)`")
    return result if attempt.expiry is None else _in_time(result, attempt.expiry)


async def _in_time(result: Awaitable[T], expiry: Expiry) -> T:
    try:
        with anyio.fail_after(expiry.left()):
            return await result
    except TimeoutError:
        expiry.noticed()
        raise
