"""The shells: they carry out what a call decides, on threads and on event loops.

Both are the same lines, one with `await`; a property test drives them, and virtual time, through
the same script and compares every decision.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.waiting import Pause

__all__ = ["arun", "asleep", "run", "sleep"]

R = TypeVar("R")


def run(
    call: Call[R], send: Callable[[Attempt[R]], R], rest: Callable[[Pause], None] | None = None
) -> R:
    """Carry a call out on this thread."""
    wait = rest or sleep
    with call:
        for step in call:
            if isinstance(step, Pause):
                wait(step)
            else:
                with step:
                    step.result = send(step)
    return call.result()


async def arun(
    call: Call[R],
    send: Callable[[Attempt[R]], Awaitable[R]],
    rest: Callable[[Pause], Awaitable[None]] | None = None,
) -> R:
    """Carry a call out in this task, on asyncio or trio."""
    wait = rest or asleep
    with call:
        for step in call:
            if isinstance(step, Pause):
                await wait(step)
            else:
                with step:
                    step.result = await send(step)
    return call.result()


def sleep(pause: Pause) -> None:
    """Wait on this thread."""
    if pause.signal is None:
        time.sleep(pause.seconds)
        return
    event = threading.Event()
    pause.signal.listen(event.set)
    event.wait(pause.seconds)


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
    """The same, to be called from whichever thread, without waiting for the loop.

    It returns False where the loop has ended, with the one who waited on it.
    """
    try:
        soon: Callable[..., object] = asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        import trio  # noqa: PLC0415  # only where trio runs the loop is it there

        soon = trio.lowlevel.current_trio_token().run_sync_soon

    def wake_soon() -> bool:
        try:
            soon(wake)
        except RuntimeError:
            return False
        return True

    return wake_soon
