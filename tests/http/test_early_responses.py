"""Responses that arrive before the whole request has been sent.

A server that rejects a body says so at once, and then stops reading, closes, or continues to read.
In each case the caller gets that response at once.
"""

import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NamedTuple

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest

import lbclient
import lbclient.httpx2
from tests.http.test_features import Caller
from tests.support.faults import NAME, TlsServer, on_accept, trust
from tests.support.hammer import descriptors
from tests.support.http import Server

SOON = 10.0
"""Seconds that nothing here takes."""
REFUSAL = b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large"
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"


class Driver(NamedTuple):
    """How the bytes are moved: by threads, or by an event loop."""

    backend: str | None
    uvloop: bool = False

    @contextlib.contextmanager
    def client(self, flavour, service, **options) -> Iterator[Caller]:
        """A client of either flavour; the coroutines of an async one are run to their end."""
        if self.backend is None:
            with flavour.Client(service, **options) as client:
                yield Caller(client)
            return

        async def make():
            return flavour.AsyncClient(service, **options)

        how = {"use_uvloop": self.uvloop} if self.backend == "asyncio" else {}
        with (
            anyio.from_thread.start_blocking_portal(self.backend, how) as portal,
            portal.wrap_async_context_manager(portal.call(make)) as client,
        ):
            yield Caller(client, portal)


DRIVERS = {
    "threads": Driver(None),
    "asyncio": Driver("asyncio"),
    "uvloop": Driver("asyncio", uvloop=True),
    "trio": Driver("trio"),
}
FLAVOURS = {"httpx": lbclient, "httpx2": lbclient.httpx2}
KINDS = {"plain": Server, "tls": TlsServer}

drivers = pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
kinds = pytest.mark.parametrize("kind", KINDS)


class Peer:
    """An instance that answers as soon as it has the head of a request."""

    def __init__(self, kind: str, act: Callable[..., None]) -> None:
        self.heads: list[bytes] = []
        self.said = threading.Semaphore(0)
        self._act = act
        self.server = KINDS[kind](on_accept(lambda connection, _: self._meet(connection)))
        secure = {"name": NAME, "verify": trust()} if kind == "tls" else {}
        self.options = {"retry": None, "timeout": SOON, **secure}

    @property
    def url(self) -> str:
        return self.server.url

    def _meet(self, connection) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := connection.file.read(1)):
                return
            head += byte
        self.heads.append(head)
        self._act(self, connection)
        connection.server.stopping.wait(SOON)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop()


def reads_on(connection) -> None:
    while connection.sock.recv(1_000_000):
        pass


def says_nothing(*_):
    """The server does not answer."""


def holds(peer, connection):
    """The server answers, reads nothing more, and does not close."""
    connection.send(REFUSAL)
    peer.said.release()


def closes(peer, connection):
    """The server answers, and closes with data unread: a reset follows the response."""
    connection.send(REFUSAL)
    peer.said.release()
    connection.close()


def reads(peer, connection):
    """The server answers, and continues to read."""
    connection.send(REFUSAL)
    peer.said.release()
    reads_on(connection)


def interim(peer, connection):
    """The server asks for the body before it rejects it."""
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    holds(peer, connection)


def completes(peer, connection):
    """The server needs no more of the body."""
    connection.send(DONE)
    peer.said.release()


def connections_of(client: Caller):
    transport = client.client._transport
    if hasattr(transport._transports, "_per_loop"):
        (home,) = transport._transports._per_loop.values()
    else:
        home = transport._transports
    ((_, transport, _),) = home._transports.values()
    return transport._connections


ACTS = [holds, closes, reads, interim, completes]
LARGE, LONG = 10_000_000, 300_000


class Endless:
    """A body in parts, which records whether it was closed."""

    def __init__(self, size: int, part: int, wait: Callable[[], object] | None = None) -> None:
        self.size, self.part, self.wait = size, part, wait
        self.closed = threading.Event()

    def __call__(self, driver: Driver) -> Iterator[bytes] | AsyncIterator[bytes]:
        return self._sync() if driver.backend is None else self._async()

    def _sync(self) -> Iterator[bytes]:
        for _ in range(0, self.size, self.part):
            yield b"x" * self.part

    async def _async(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(0, self.size, self.part):
                yield b"x" * self.part
            if self.wait is not None:
                await self.wait()
        finally:
            self.closed.set()


def length(size: int) -> dict[str, str]:
    return {"Content-Length": str(size)}


def body_large(*_):
    return {"content": b"x" * LARGE}


def body_long(*_):
    return {"content": b"x" * LONG}


def body_chunked(driver, _):
    return {"content": Endless(LARGE, 50_000)(driver)}


def body_of_length(driver, _):
    return {"content": Endless(LARGE, 50_000)(driver), "headers": length(LARGE)}


def body_in_one_part(driver, _):
    return {"content": Endless(LARGE, LARGE)(driver), "headers": length(LARGE)}


def body_file(driver, tmp_path):
    """A file. On event loops httpx accepts no plain file, but multipart does."""
    path = tmp_path / "upload"
    path.write_bytes(b"x" * LARGE)
    return {"files": {"f": path.read_bytes()}} if driver.backend else {"content": path.open("rb")}


BODIES = [body_large, body_long, body_chunked, body_of_length, body_in_one_part, body_file]
CASES = [
    pytest.param(act, body, list(FLAVOURS)[number % 2], id=f"{act.__name__}-{body.__name__[5:]}")
    for number, (act, body) in enumerate((act, body) for act in ACTS for body in BODIES)
]


@pytest.fixture(scope="module", autouse=True)
def _uvloop_is_loaded():
    """Make uvloop open the descriptor that it opens at its first use."""
    anyio.run(anyio.lowlevel.checkpoint, backend_options={"use_uvloop": True})


@kinds
@drivers
@pytest.mark.parametrize(("act", "body", "flavour"), CASES)
def test_an_early_response(driver, kind, act, body, flavour, tmp_path):
    """The caller gets the response at once; the request is sent once, and no instance is charged. A
    connection on which part of the body was not sent carries no other request."""
    with Peer(kind, act) as peer, contextlib.ExitStack() as stack:
        before = descriptors()
        with driver.client(FLAVOURS[flavour], [peer.url], **peer.options) as client:
            given = body(driver, tmp_path)
            if hasattr(given.get("content"), "fileno"):
                stack.enter_context(given["content"])
            response = client.post("/", **given)
            told = (response.status_code, response.content)
            assert told == ((200, b"done") if act is completes else (413, b"too large"))
            assert len(peer.heads) == 1
            (instance,) = client.balancer.snapshot().instances
            assert (instance.failures, instance.in_flight) == (0, 0)
            connections = connections_of(client)
            assert connections._used == {}
            if body is not body_long and act is not reads:  # else all of it may have been sent
                assert not connections._stack
        peer.server.stop()
        stack.close()
        end = time.monotonic() + SOON
        while descriptors() > before:  # a look-up that another test has left may have some as well
            assert time.monotonic() < end


@kinds
@drivers
@pytest.mark.parametrize("act", [holds, closes, reads], ids=lambda act: act.__name__)
def test_a_small_request_is_refused(driver, kind, act):
    """A small body has been sent when the rejection arrives, which still reaches the caller."""
    with (
        Peer(kind, act) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
    ):
        assert client.post("/", content=b"small").status_code == 413
        assert client.balancer.snapshot().instances[0].failures == 0


loops = pytest.mark.parametrize(
    "driver",
    [DRIVERS[name] for name in ("asyncio", "uvloop", "trio")],
    ids=["asyncio", "uvloop", "trio"],
)


@kinds
@loops
@pytest.mark.parametrize("act", [holds, closes, reads], ids=lambda act: act.__name__)
def test_a_caller_that_stalls_hears_the_refusal(driver, kind, act):
    """On an event loop the response is returned at once, even if the body's next part never comes;
    the caller's generator is closed."""
    with (
        Peer(kind, act) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
    ):
        body = Endless(2, 1, anyio.sleep_forever)
        response = client.post("/", content=body(driver))
        assert (response.status_code, response.content) == (413, b"too large")
        assert body.closed.is_set()
        assert client.balancer.snapshot().instances[0].failures == 0
        assert connections_of(client).all() == []


@loops
def test_a_refused_generator_is_closed(driver):
    """The caller's generator is closed once the response is there, even if nothing waited for
    it."""
    with (
        Peer("plain", holds) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
    ):
        body = Endless(2 * LARGE, LARGE)
        assert client.post("/", content=body(driver)).status_code == 413
        assert body.closed.is_set()


def echoes(_, connection):
    """The server sends back each part of a chunked body as it arrives."""
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while (size := int(connection.file.readline(), 16)) > 0:
        part = connection.file.read(size + 2)
        connection.send(b"%x\r\n%b" % (size, part))
    connection.file.readline()
    connection.send(b"0\r\n\r\n")


@kinds
@drivers
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_response_that_goes_on_while_the_body_is_read(driver, kind, flavour):
    """The response is received while the request is sent, so that neither end waits for the
    other."""
    size = 5_000_000
    with (
        Peer(kind, echoes) as peer,
        driver.client(FLAVOURS[flavour], [peer.url], **peer.options) as client,
    ):
        response = client.post("/", content=Endless(size, 50_000)(driver))
        assert response.status_code == 200
        assert response.content == b"x" * size
        (instance,) = client.balancer.snapshot().instances
        assert (instance.failures, instance.in_flight) == (0, 0)
        assert len(connections_of(client)._stack) == 1


def floods(_, connection):
    """The server answers without end, and reads nothing."""
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    with contextlib.suppress(OSError):
        while not connection.server.stopping.is_set():
            connection.send(b"x" * 100_000)


@drivers
def test_a_long_response_to_an_unread_request_is_not_kept_in_memory(driver):
    """If far more arrives than was sent, sending ends, and the caller reads the response."""
    with (
        Peer("plain", floods) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
        client.stream("POST", "/", content=Endless(LARGE, 50_000)(driver)) as response,
    ):
        assert response.status_code == 200


EXPECTS = {"Expect": "100-continue"}


def agrees(_, connection):
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.file.read(LONG)
    connection.send(DONE)


def refuses(status):
    def act(peer, connection):
        connection.send(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        peer.rest = connection.file.read(1)

    return act


@kinds
@drivers
def test_100_continue_is_waited_for(driver, kind):
    """A body with Expect is sent once the server agrees."""
    with (
        Peer(kind, agrees) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
    ):
        assert client.post("/", content=b"x" * LONG, headers=EXPECTS).text == "done"
        assert len(connections_of(client)._stack) == 1


@kinds
@drivers
@pytest.mark.parametrize("status", [413, 417])
def test_a_refused_expectation(driver, kind, status):
    """Nothing of a body is sent if the server rejects it first; the connection is closed."""
    with Peer(kind, refuses(status)) as peer:
        with driver.client(lbclient, [peer.url], **peer.options) as client:
            response = client.post("/", content=b"x" * LONG, headers=EXPECTS)
            assert response.status_code == status
            assert connections_of(client).all() == []
        peer.server.stop()
        assert peer.rest == b""


def takes_it(peer, connection):
    """The server does not know Expect."""
    peer.rest = connection.file.read(LONG)
    connection.send(DONE)


@drivers
def test_an_expectation_that_nobody_answers(driver, monkeypatch):
    """The body is sent after a while, since not every server sends 100 (RFC 9110, 10.1.1)."""
    monkeypatch.setattr("lbclient.http.connections.instance_transport._PATIENCE", 0.05)
    with (
        Peer("plain", takes_it) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
    ):
        assert client.post("/", content=b"x" * LONG, headers=EXPECTS).text == "done"
        assert peer.rest == b"x" * LONG


@drivers
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_error_of_the_callers_own_that_looks_like_ours(driver, flavour):
    """A body that raises httpx's WriteError (from another connection, for example) ends the call
    with that error, and no instance is charged."""
    its = httpx if flavour == "httpx" else pytest.importorskip("httpx2")
    error = its.WriteError("another connection broke")

    async def coloured():
        yield b"x"
        raise error

    def plain():
        yield b"x"
        raise error

    with (
        Peer("plain", says_nothing) as peer,
        driver.client(FLAVOURS[flavour], [peer.url], **peer.options) as client,
    ):
        with pytest.raises(its.WriteError) as caught:
            client.post("/", content=plain() if driver.backend is None else coloured())
        assert caught.value is error
        (instance,) = client.balancer.snapshot().instances
        assert (instance.failures, instance.in_flight) == (0, 0)
        assert connections_of(client).liveness.generation == 0
        assert connections_of(client).all() == []


@loops
@kinds
def test_the_deadline_bounds_a_caller_that_stalls(driver, kind):
    """A call whose own body stalls ends at its deadline, and no instance is charged."""
    with (
        Peer(kind, says_nothing) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
    ):
        body = Endless(2, 1, anyio.sleep_forever)
        with pytest.raises(lbclient.DeadlineExceeded) as caught:
            client.post("/", content=body(driver), extensions={"lbclient": {"deadline": 0.3}})
        assert isinstance(caught.value, httpx.TimeoutException)
        assert body.closed.is_set()
        (instance,) = client.balancer.snapshot().instances
        assert (instance.failures, instance.in_flight) == (0, 0)
        assert connections_of(client).all() == []


class Turns:
    """Counts what one task does between two turns of another."""

    def __init__(self) -> None:
        self.most = 0
        self._since = 0

    def did(self, amount: int) -> None:
        self._since += amount
        self.most = max(self.most, self._since)

    async def take(self) -> None:
        while True:
            await anyio.lowlevel.checkpoint()
            self._since = 0

    def run(self, driver: Driver, work: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(self.take)
                await work()
                group.cancel_scope.cancel()

        how = {"use_uvloop": driver.uvloop} if driver.backend == "asyncio" else {}
        anyio.run(main, backend=driver.backend, backend_options=how)


A_TURN = 4 * 64 * 1024
"""Bytes: a read or a write of 64 KiB may come on top of nearly as much that came in smaller pieces;
and trio, which runs what is ready in random order, may run one task twice in succession."""
CHUNK, CHUNKS = b"1\r\nx\r\n", 300_000


def chops(_, connection):
    """The server answers in very many chunks."""
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.send(CHUNK * CHUNKS + b"0\r\n\r\n")


@kinds
@loops
def test_a_response_of_tiny_chunks_leaves_turns_to_others(driver, kind):
    """However many chunks have arrived, other tasks get a turn after 64 KiB of them."""
    turns = Turns()

    async def work() -> None:
        async with (
            lbclient.AsyncClient([peer.url], **peer.options) as client,
            client.stream("GET", "/") as response,
        ):
            size = 0
            async for part in response.aiter_raw():
                turns.did(len(CHUNK) * len(part))
                size += len(part)
            assert size == CHUNKS

    with Peer(kind, chops) as peer:
        turns.run(driver, work)
    assert turns.most <= A_TURN


def takes_all(_, connection):
    """The server reads a long body, then answers."""
    connection.file.read(LARGE)
    connection.send(DONE)


def takes_little(_, connection):
    """The server reads a body of `PIECES` bytes, then answers."""
    connection.file.read(PIECES)
    connection.send(DONE)


PIECES = 3_000
A_PIECE = 2 * 1024
"""What a write costs beside its bytes, as if it were bytes."""


@kinds
@loops
@pytest.mark.parametrize(
    ("act", "size", "part", "cost"),
    [(takes_all, LARGE, 10_000, 0), (takes_little, PIECES, 1, A_PIECE)],
    ids=["long", "tiny pieces"],
)
def test_a_long_request_leaves_turns_to_others(driver, kind, act, size, part, cost):
    """However much of a body the kernel takes at once, other tasks get a turn after 64 KiB, or
    after a few tiny pieces."""
    turns = Turns()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // part):
            turns.did(part + cost)
            yield b"x" * part

    async def work() -> None:
        async with lbclient.AsyncClient([peer.url], **peer.options) as client:
            response = await client.post("/", content=body(), headers=length(size))
            assert response.content == b"done"

    with Peer(kind, act) as peer:
        turns.run(driver, work)
    assert turns.most <= A_TURN


def reads_slowly(_, connection):
    """The server reads a body a few bytes at a time."""
    while connection.sock.recv(100) and not connection.server.stopping.wait(0.01):
        pass


WITHIN = {"lbclient": {"deadline": 0.1}}


@kinds
@drivers
def test_the_deadline_bounds_a_slow_upload(driver, kind):
    """A body that the server reads very slowly is not sent beyond the deadline."""
    with (
        Peer(kind, reads_slowly) as peer,
        driver.client(lbclient, [peer.url], **peer.options) as client,
    ):
        with pytest.raises(lbclient.DeadlineExceeded):
            client.post("/", content=b"x" * LARGE, extensions=WITHIN)
        assert client.balancer.snapshot().instances[0].in_flight == 0
        assert connections_of(client).all() == []


@pytest.mark.parametrize("driver", ["threads", "asyncio", "trio"])  # uvloop asks libuv
def test_the_deadline_bounds_the_resolving_of_a_name(driver, monkeypatch):
    """An instance whose name the operating system does not resolve delays a call no longer than its
    timeouts and its deadline allow."""
    released = threading.Event()

    def looks_up(*args, **options):
        if options.get("flags", args[5] if len(args) > 5 else 0) & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        released.wait(SOON)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", looks_up)
    with DRIVERS[driver].client(lbclient, ["http://slow.test"], retry=None, timeout=0.05) as client:
        try:
            with pytest.raises(lbclient.DeadlineExceeded):
                client.get("/", timeout=SOON, extensions=WITHIN)
            with pytest.raises(httpx.ConnectTimeout, match=r"slow\.test was not resolved in time"):
                client.get("/")
            assert not released.is_set()
        finally:
            released.set()
