"""How threads and event loops wait for a pause."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import Callable
from functools import partial

import anyio

from lbclient.waiting import Pause

__all__ = ["asleep", "sleep"]


def sleep(pause: Pause) -> None:
    """Wait on this thread.

    Not by `threading.Event`, which is Python code around a lock: an exception from a signal handler
    may leave that lock held for ever, and the thread that sets the event then blocks, with the lock
    of the balancer.
    """
    if pause.signal is None:
        time.sleep(pause.seconds)
        return
    woken: queue.SimpleQueue[None] = queue.SimpleQueue()
    pause.signal.listen(partial(woken.put, None))
    with contextlib.suppress(queue.Empty):
        woken.get(timeout=max(0.0, pause.seconds))


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
