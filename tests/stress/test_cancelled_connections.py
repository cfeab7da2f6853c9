"""Calls over sockets that are cancelled at each of their awaits, and at random moments.

No connection is lost, and no call gets another's response.
"""

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import lbclient
from tests.http.test_early_responses import connections_of
from tests.http.test_features import Caller
from tests.support.faults import NAME, certified, trust
from tests.support.hammer import descriptors

pytestmark = [
    pytest.mark.anyio,
    # trio's complaint about those who stop reading a body of httpx before its end
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]

RANDOMLY = int(os.environ.get("LBCLIENT_CANCELLATIONS", "1000"))
"""Calls that are cancelled at random moments, over all drivers."""
WORKERS = 16
SOON = 20.0
BACKENDS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS)
def anyio_backend(request):
    return request.param


async def until(condition: Callable[[], bool]) -> None:
    """Resets connections from another thread when it is called, without notice."""
    with anyio.fail_after(SOON):
        while not condition():  # noqa: ASYNC110  # as said
            await anyio.sleep(0.002)


class Tokens:
    """A server on its own loop. The response to `/TOKEN/...` is TOKEN, many times."""

    def __init__(self, *, tls: bool) -> None:
        self.open: set[asyncio.StreamWriter] = set()
        self.port = 0
        self._tls = tls
        self._started = threading.Event()
        self._dice = random.Random(1)
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(),))

    @property
    def options(self) -> dict[str, object]:
        return {"name": NAME, "verify": trust()} if self._tls else {}

    @property
    def url(self) -> str:
        return f"http{'s' * self._tls}://127.0.0.1:{self.port}"

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(SOON)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def all_closed(self) -> None:
        """Wait until none of its connections is open."""
        await until(lambda: not self.open)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda *_: None)
        context = certified(NAME) if self._tls else None
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for writer in self.open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head, reader, writer)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            self.open.discard(writer)

    async def _answer(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        token, what = head.split(b" ", 2)[1].split(b"/")[1:]
        if what == b"early":
            writer.write(b"HTTP/1.1 413 X\r\nContent-Length: %d\r\n\r\n" % len(token) + token)
        lower = head.lower()
        if b"transfer-encoding" in lower:
            while (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        elif b"content-length: " in lower:
            await reader.readexactly(int(lower.partition(b"content-length: ")[2].split()[0]))
        if what == b"early":
            return
        if self._dice.random() < 0.3:
            await asyncio.sleep(self._dice.random() * 0.001)
        times = self._dice.randrange(1, 3000)
        if self._dice.random() < 0.5:
            writer.write(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % (times * len(token)))
            writer.write(token * times)
        else:
            writer.write(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                part = token * (times // 3 + 1)
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
                if self._dice.random() < 0.3:
                    await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
        await writer.drain()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def tokens(request):
    with Tokens(tls=request.param) as server:
        yield server


class Calls:
    """Calls of several kinds; each response is checked to be the call's own."""

    def __init__(self, client: lbclient.AsyncClient) -> None:
        self._client = client
        self._number = 0

    def _token(self) -> str:
        self._number += 1
        return f"-{self._number:08}-"

    @staticmethod
    def _check(content: bytes, token: str, *, whole: bool = True) -> None:
        times = len(content) // len(token) + 1
        assert (token.encode() * times).startswith(content)
        assert not whole or (content and len(content) % len(token) == 0)

    async def get(self) -> None:
        token = self._token()
        self._check((await self._client.get(f"/{token}/")).content, token)

    async def post(self) -> None:
        token = self._token()
        response = await self._client.post(f"/{token}/", content=b"x" * 300_000)
        self._check(response.content, token)

    async def upload(self) -> None:
        token = self._token()
        response = await self._client.post(f"/{token}/", content=_parts())
        self._check(response.content, token)

    async def refused(self) -> None:
        token = self._token()
        response = await self._client.post(f"/{token}/early", content=_parts())
        assert response.status_code == 413
        self._check(response.content, token)

    async def stream(self) -> None:
        token, content = self._token(), b""
        async with self._client.stream("GET", f"/{token}/") as response:
            async for part in response.aiter_bytes():
                content += part
        self._check(content, token)

    async def stream_in_part(self) -> None:
        token = self._token()
        async with self._client.stream("GET", f"/{token}/") as response:
            async for part in response.aiter_bytes():
                self._check(part, token, whole=False)
                break


KINDS = ["get", "post", "upload", "refused", "stream", "stream_in_part"]


async def _parts() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"x" * 10_000
        await anyio.lowlevel.checkpoint()


async def settled(client: lbclient.AsyncClient, server: Tokens) -> None:
    """Nothing is in flight, each connection is idle or closed, and the idle ones work."""
    (instance,) = client.balancer.snapshot().instances
    assert instance.in_flight == 0
    await client.get("/-again-/")
    connections = connections_of(Caller(client))
    assert connections._used == {}
    assert not any(one.closed for one in connections._stack)
    await until(lambda: len(server.open) == len(connections._stack))


class CutAt(Awaitable[None]):
    """Awaits `work`, and cancels it at its wait with that number; with `late`, just when that wait
    has ended."""

    def __init__(
        self, work: Awaitable[None], number: int, cancel: Callable[[], object], *, late: bool
    ) -> None:
        self.passed = 0
        self._work, self._number, self._cancel, self._late = work, number, cancel, late

    def __await__(self) -> Generator[Any, Any, None]:
        steps, sent, error = self._work.__await__(), None, None
        while True:
            try:
                waited = steps.send(sent) if error is None else steps.throw(error)
            except StopIteration:
                return
            self.passed += 1
            if self.passed == self._number:
                if self._late and isinstance(waited, asyncio.Future):
                    waited.add_done_callback(lambda _: self._cancel())
                else:
                    self._cancel()
            sent, error = None, None
            try:
                sent = yield waited
            except BaseException as caught:  # noqa: BLE001  # whatever comes goes inside
                error = caught


WAYS = ["scope", "task", "late"]


async def cut(work: Callable[[], Awaitable[None]], number: int, way: str) -> bool:
    """Cancel it at that wait. False if it had fewer."""
    if way == "scope":
        with anyio.CancelScope() as scope:
            await CutAt(work(), number, scope.cancel, late=False)
        return scope.cancel_called

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        await CutAt(work(), number, task.cancel, late=way == "late")

    task = asyncio.ensure_future(run())
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "warm"), [*((kind, False) for kind in KINDS), ("get", True), ("upload", True)]
)
async def test_each_wait_of_a_call(tokens, anyio_backend_name, kind, way, warm):
    """A call that is cancelled at any of its waits, or just after it, leaves nothing in flight, and
    only idle connections that work."""
    if anyio_backend_name == "trio" and way != "scope":
        return
    number, more = 0, True
    while more:
        number += 1
        async with lbclient.AsyncClient([tokens.url], **tokens.options) as client:
            calls = Calls(client)
            if warm:
                await calls.get()
            more = await cut(getattr(calls, kind), number, way)
            await settled(client, tokens)
        await tokens.all_closed()
    assert number > 1


async def test_calls_cancelled_at_random(tokens, anyio_backend_name):
    """Of thousands of calls that are cancelled at random moments none gets another's bytes, none
    stays in flight, and no connection or descriptor is lost."""
    dice = random.Random(7)
    async with lbclient.AsyncClient([tokens.url], **tokens.options) as client:
        await Calls(client).get()  # uvloop keeps a descriptor from the first connection on
    await tokens.all_closed()
    before = descriptors()
    cancelled = served = 0
    wanted = max(100, RANDOMLY // 6)

    async def worker() -> None:
        nonlocal cancelled, served
        while cancelled < wanted:
            work = getattr(calls, dice.choice(KINDS))
            # One in four has time enough, however slow the machine is.
            after = dice.random() * dice.choice([0.001, 0.01, 0.1, SOON])
            if anyio_backend_name == "asyncio" and dice.random() < 0.5:
                task = asyncio.ensure_future(work())
                timer = asyncio.get_running_loop().call_later(after, task.cancel)
                await asyncio.wait([task])
                timer.cancel()
                cut_off = task.cancelled()
                if not cut_off:
                    task.result()
            else:
                with anyio.move_on_after(after) as scope:
                    await work()
                cut_off = scope.cancelled_caught
            cancelled += cut_off
            served += not cut_off

    async with lbclient.AsyncClient([tokens.url], **tokens.options) as client:
        calls = Calls(client)
        async with anyio.create_task_group() as group:
            for _ in range(WORKERS):
                group.start_soon(worker)
        await settled(client, tokens)
        (instance,) = client.balancer.snapshot().instances
        assert instance.failures == 0
    await tokens.all_closed()
    await until(lambda: descriptors() <= before)
    assert served > wanted // 50
