"""The driver for event loops, on asyncio and trio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import TypeVar

import anyio

from lbclient._internal.deadline import Expiry
from lbclient._internal.signals import Pause
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.core.hedge import Lane, Lanes
from lbclient.endpoint.instance import Instance

__all__ = ["ainvoke", "arun", "asleep", "call_soon", "running_loop"]

R = TypeVar("R")
Send = Callable[[Attempt[R]], Awaitable[R]]

T = TypeVar("T")


async def asleep(pause: Pause) -> None:
    """Wait in this task until the pause is over."""
    if pause.signal is None:
        await anyio.sleep(pause.seconds)
        return
    event = anyio.Event()
    pause.signal.listen(partial(call_soon, running_loop(), event.set))
    with anyio.move_on_after(pause.seconds):
        await event.wait()


def running_loop() -> object:
    """Return the running event loop of asyncio, or the token of trio, even if trio runs as a guest
    in asyncio's loop."""
    try:
        loop = asyncio.get_running_loop()  # slow before Python 3.12
        if asyncio.current_task(loop) is not None:
            return loop
    except RuntimeError:
        pass  # on trio
    import trio  # noqa: PLC0415  # installed if it runs the loop

    return trio.lowlevel.current_trio_token()


def call_soon(loop: object, call: Callable[[], object]) -> bool:
    """Make an event loop call a function soon. Any thread may use `call_soon`, even in a finalizer.
    Returns False if the loop has ended."""
    try:
        if isinstance(loop, asyncio.AbstractEventLoop):
            loop.call_soon_threadsafe(call, context=Context())
        else:
            loop.run_sync_soon(call)  # type: ignore[attr-defined]  # a token of trio's
    except RuntimeError:
        return False
    return True


async def arun(
    call: Call[R],
    send: Send[R],
    rest: Callable[[Pause], Awaitable[None]] | None = None,
    discard: Callable[[R], Awaitable[object]] | None = None,
) -> R:
    """Carry a call out in this task. A hedge runs in another task.

    `discard` closes the answer of an attempt that is not the outcome.
    """
    wait = rest or asleep
    with call:
        if call.engine.hedging is None or (after := call.hedge_after()) is None:
            for step in call:  # as in `_race`, but with one coroutine fewer for nearly every call
                if isinstance(step, Pause):
                    await wait(step)
                else:
                    with step:
                        step.result = await send(step)
        else:
            await _race(call, after, send, wait, discard or _drop)
    return call.result()


async def _race(
    call: Call[R],
    after: float,
    send: Send[R],
    wait: Callable[[Pause], Awaitable[None]],
    discard: Callable[[R], Awaitable[object]],
) -> None:
    """Run the call's own lane in this task, and the lane of its hedge in another task. The slower
    attempt is cancelled."""

    async def run(lane: Lane[R]) -> None:
        try:
            with lane:
                for step in lane:
                    if isinstance(step, Pause):
                        await wait(step)
                    else:
                        with step:
                            step.result = await send(step)
        finally:
            if lane.leftover is not None:
                with (
                    anyio.CancelScope(shield=True),
                    call.engine.discarding.tolerate(call.engine.clock()),
                ):
                    await discard(lane.leftover)
            if lanes.done.is_set:
                group.cancel_scope.cancel()

    async def run_others() -> None:
        for step in lanes:
            if isinstance(step, Pause):
                await anyio.sleep(step.seconds)  # cancelled as soon as the outcome is known
            else:
                await run(step)

    with Lanes(call, after) as lanes:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(run_others)
                await run(Lane(lanes, call))
        except BaseExceptionGroup as errors:  # the group has only one exception
            raise errors.exceptions[0] from None


async def _drop(answer: object) -> None:
    """Do nothing: the answer needs no closing."""


def ainvoke(fn: Callable[[Instance], Awaitable[T]], attempt: Attempt[T]) -> Awaitable[T]:
    """Call `fn`, a coroutine function, for an attempt. The coroutine is cancelled when the time of
    the attempt is up."""
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
