"""Storms of calls: cancelled at random, and to instances that behave at random."""

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

__all__ = ["HOSTS", "Cuts", "Instances", "descriptors"]

HOSTS = ("127.0.0.1",)


def descriptors() -> int:
    """How many descriptors this process has open; one for the check itself is always included."""
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
        """How many calls were cancelled so far."""
        return self.cancelled.total()

    async def storm(
        self, work: Callable[[], Awaitable[object]], *, wanted: int, workers: int
    ) -> None:
        """Run `work` repeatedly, this many at a time, until `wanted` were cancelled."""
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
    """HTTP servers in one event loop, each of which answers as the dice tell.

    A body begins with the target of the request that it answers. `large` is how many chunks, of
    8 KiB each, some bodies have more.
    """

    def __init__(self, dice: random.Random, large: int) -> None:
        self.ports: list[int] = []
        self.healthy = False
        """True: from now on each answers well."""
        self.open = 0
        """Connections that are open now, as the servers see them."""
        self._dice = dice
        self._large = large
        self._changed = anyio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(
        cls, dice: random.Random, many: int, *, hosts: tuple[str, ...] = HOSTS, large: int = 0
    ) -> AsyncIterator[Instances]:
        """So many of them, each at one port of all these hosts."""
        made = cls(dice, large)
        async with contextlib.AsyncExitStack() as stack:
            listeners = []
            while len(made.ports) < many:
                with contextlib.suppress(OSError):  # another host's port may be taken
                    found = await _listen(hosts)
                    listeners += [await stack.enter_async_context(one) for one in found]
                    made.ports.append(_port(found[0]))
            async with anyio.create_task_group() as group:
                for listener in listeners:
                    group.start_soon(listener.serve, made._serve)
                try:
                    yield made
                finally:
                    group.cancel_scope.cancel()

    @property
    def urls(self) -> list[str]:
        """By the first of the hosts."""
        return [f"http://{HOSTS[0]}:{port}" for port in self.ports]

    async def at_rest(self, most: int) -> None:
        """Wait until no more connections than these are open."""
        while self.open > most:
            self._changed = anyio.Event()
            await self._changed.wait()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        self.open += 1
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
            head, _, received = received.partition(b"\r\n\r\n")
            for _ in range(self._dice.randrange(4)):
                await anyio.lowlevel.checkpoint()
            for part in self._answer(head.split(b" ", 2)[1]):
                if part is None:
                    return
                await stream.send(part)

    def _answer(self, target: bytes) -> Iterator[bytes | None]:
        """A response in parts; None ends the connection."""
        kind = 0.5 if self.healthy else self._dice.random()
        if kind < 0.1:
            yield None
        status = 503 if kind < 0.3 else 200
        if kind < 0.4:
            yield b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(target))
            yield target
            return
        yield b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
        yield _chunk(target)
        for _ in range(self._dice.randrange(3)):
            yield _chunk(b"abc")
        if kind > 0.9:
            for _ in range(self._large):
                yield _chunk(b"x" * 8192)
        if kind > 0.97:
            yield None
        yield _chunk(b"")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _listen(hosts: tuple[str, ...]) -> list[anyio.abc.SocketListener]:
    """At the same free port of each."""
    found: list[anyio.abc.SocketListener] = []
    try:
        for host in hosts:
            port = _port(found[0]) if found else 0
            multi = await anyio.create_tcp_listener(local_host=host, local_port=port, backlog=1000)
            found += multi.listeners
    except BaseException:
        for one in found:
            await one.aclose()
        raise
    return found


def _port(listener: anyio.abc.SocketListener) -> int:
    return listener.extra(anyio.abc.SocketAttribute.local_port)
