"""Storms of calls: cut off at random, and to instances that behave at random."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel

__all__ = ["Cuts", "Instances", "descriptors"]


def descriptors() -> int:
    """How many this process has open; that of the look itself always counts."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Cuts:
    """Runs calls, each of them cancelled after as many steps of the event loop as the dice tell.

    On asyncio one half is cancelled natively (`task.cancel()`), the other by a cancel scope.
    `longest` is the most steps that one is given.
    """

    def __init__(self, dice: random.Random, *, native: bool, longest: int) -> None:
        self.dice = dice
        self.cancelled: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self._native = native
        self._longest = longest
        self._step = 0
        self._due: defaultdict[int, list[Callable[[], object]]] = defaultdict(list)

    @property
    def count(self) -> int:
        """How many calls were cut off so far."""
        return self.cancelled.total()

    async def storm(
        self, work: Callable[[], Awaitable[object]], *, wanted: int, workers: int
    ) -> None:
        """Run `work` over and over, so many at the same time, until `wanted` were cut off."""
        wanted += self.count
        async with anyio.create_task_group() as beating:
            beating.start_soon(self._beat)
            async with anyio.create_task_group() as group:
                for _ in range(workers):
                    group.start_soon(self._work, work, wanted)
            beating.cancel_scope.cancel()

    async def _beat(self) -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            self._step += 1
            for act in self._due.pop(self._step, ()):
                act()

    async def _work(self, work: Callable[[], Awaitable[object]], wanted: int) -> None:
        while self.count < wanted:
            native = self._native and self.dice.random() < 0.5
            await (self._by_task(work) if native else self._by_scope(work))

    async def _by_task(self, work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.ensure_future(work())
        self._after_some_steps(task.cancel)
        try:
            self.ended[str(await task)] += 1
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            self.cancelled["task"] += 1

    async def _by_scope(self, work: Callable[[], Awaitable[object]]) -> None:
        with anyio.CancelScope() as scope:
            self._after_some_steps(scope.cancel)
            self.ended[str(await work())] += 1
        self.cancelled["scope"] += scope.cancelled_caught

    def _after_some_steps(self, act: Callable[[], object]) -> None:
        self._due[self._step + self.dice.randint(1, self._longest)].append(act)


class Instances:
    """HTTP servers in the event loop of their callers, each of which answers as the dice tell."""

    def __init__(self, dice: random.Random) -> None:
        self.urls: list[str] = []
        self.calm = False
        """True: from now on each answers well."""
        self.open = 0
        """Connections that are open now, as the servers see them."""
        self.most = 0
        self._dice = dice
        self._changed = anyio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, dice: random.Random, many: int) -> AsyncIterator[Instances]:
        """So many of them."""
        made = cls(dice)
        async with contextlib.AsyncExitStack() as stack:
            listeners = []
            for _ in range(many):
                listener = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=1000)
                listeners.append(await stack.enter_async_context(listener))
                port = listener.extra(anyio.abc.SocketAttribute.local_port)
                made.urls.append(f"http://127.0.0.1:{port}")
            async with anyio.create_task_group() as group:
                for listener in listeners:
                    group.start_soon(listener.serve, made._serve)
                try:
                    yield made
                finally:
                    group.cancel_scope.cancel()

    async def at_rest(self, most: int) -> None:
        """Until no more connections than these are open."""
        while self.open > most:
            self._changed = anyio.Event()
            await self._changed.wait()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            async with stream:
                with contextlib.suppress(
                    anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError
                ):
                    await self._answer_all(stream)
        finally:
            self.open -= 1
            self._changed.set()

    async def _answer_all(self, stream: anyio.abc.SocketStream) -> None:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                received += await stream.receive()
            received = received.partition(b"\r\n\r\n")[2]
            for _ in range(self._dice.randrange(4)):
                await anyio.lowlevel.checkpoint()
            for part in self._answer():
                await stream.send(part)
                if not part:
                    return

    def _answer(self) -> Iterator[bytes]:
        """An answer in parts; an empty one ends the connection."""
        kind = 0.5 if self.calm else self._dice.random()
        if kind < 0.1:
            yield b""
        status = 503 if kind < 0.3 else 200
        if kind < 0.4:
            yield b"HTTP/1.1 %d X\r\nContent-Length: 3\r\n\r\nabc" % status
            return
        yield b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
        for _ in range(self._dice.randrange(4)):
            yield b"3\r\nabc\r\n"
        if kind > 0.95:
            yield b""
        yield b"0\r\n\r\n"
