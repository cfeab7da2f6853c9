"""How late an event loop's steps come while something else is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

_REST = 0.0005


async def ticking(call: Callable[[], Awaitable[object]], work: Awaitable[object]) -> list[float]:
    """Make a call at every tick until `work` is done, and some more. Seconds of each."""
    late: list[float] = []
    done = False

    async def tick() -> None:
        after = 50
        while not done or (after := after - 1):
            begun = time.perf_counter()
            await asyncio.sleep(_REST)
            await call()
            late.append(time.perf_counter() - begun - _REST)

    ticker = asyncio.create_task(tick())
    await work
    done = True
    await ticker
    return late
