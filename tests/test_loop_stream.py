"""Bytes on asyncio's own transports, and on uvloop's: what arrives, what ends, what takes too long.

Cancellation, and what httpcore makes of them, is in the tests of the clients.
"""

import asyncio
import contextlib
import socket
import struct
import threading

import anyio
import httpcore
import pytest
import trio

import lbclient
from lbclient.http.dial import AsyncDialer
from lbclient.http.loop_stream import LoopBackend, LoopStream
from tests.support.http import head, says, wires_of

pytestmark = pytest.mark.anyio
RESET = struct.pack("ii", 1, 0)
SOON = 20.0
"""Seconds that nothing here takes."""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@contextlib.asynccontextmanager
async def connected(listener, **options):
    """A stream, and the socket at its other end, which never waits."""
    stream = await LoopBackend().connect_tcp(*listener.getsockname(), SOON, **options)
    try:
        peer, _ = listener.accept()
        with peer:
            peer.setblocking(False)
            yield stream, peer
    finally:
        await stream.aclose()


async def rounds(number=3):
    """The event loop goes round."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(true):
    """The event loop goes round until that holds."""
    with anyio.fail_after(SOON):
        while not true():
            await rounds(1)


async def test_what_arrives_is_read_in_the_pieces_asked_for(listener):
    """A read brings no more than was asked for, and the rest stays for the next."""
    async with connected(listener) as (stream, peer):
        peer.send(b"0123456789")
        assert [await stream.read(4, SOON) for _ in range(3)] == [b"0123", b"4567", b"89"]


async def test_a_peer_that_floods_has_to_wait(listener):
    """Unread bytes are bounded, whatever the other end sends; read at last, none is missing."""
    async with connected(listener) as (stream, peer):
        sent = bytearray()

        def flood():
            with contextlib.suppress(BlockingIOError):
                while len(sent) < 2**25:
                    piece = len(sent).to_bytes(8, "big") * 1024
                    sent.extend(piece[: peer.send(piece)])

        before = -1
        while before < len(sent) < 2**25:
            before = len(sent)
            flood()
            await rounds(50)
        assert len(sent) < 2**25
        assert stream._unread <= 2**16 + 2**18
        peer.shutdown(socket.SHUT_WR)
        read = bytearray()
        while data := await stream.read(50_000, SOON):
            assert len(data) <= 50_000
            read += data
        assert read == sent


async def test_the_end_is_read_as_often_as_asked(listener):
    """After the last byte every read brings nothing; and the other end can still be written to."""
    async with connected(listener) as (stream, peer):
        peer.send(b"last")
        peer.shutdown(socket.SHUT_WR)
        assert [await stream.read(9, SOON) for _ in range(3)] == [b"last", b"", b""]
        await stream.write(b"after", SOON)
        assert await anyio.to_thread.run_sync(_received, peer) == b"after"


def _received(peer):
    peer.setblocking(True)
    return peer.recv(100)


async def test_a_reset_is_an_error(listener):
    """What had arrived is read, then ReadError says what happened; writing is WriteError."""
    async with connected(listener) as (stream, peer):
        peer.send(b"last")
        await until(lambda: stream._arrived)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        assert await stream.read(9, SOON) == b"last"
        with pytest.raises(httpcore.ReadError, match="reset by peer"):
            await stream.read(9, SOON)
        with pytest.raises(httpcore.WriteError, match="reset by peer"):
            await stream.write(b"more", SOON)


async def test_reading_takes_only_so_long(listener):
    """ReadTimeout ends a read in which nothing comes, and what comes later is there for the next;
    a time that is over does no harm to a later read."""
    async with connected(listener) as (stream, peer):
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(9, 0.01)
        peer.send(b"late")
        assert await stream.read(9, SOON) == b"late"


async def test_a_read_without_a_limit(listener):
    """A timeout of None waits for as long as it takes."""
    async with connected(listener) as (stream, peer), anyio.create_task_group() as group:
        read = []

        async def reading():
            read.append(await stream.read(9))

        group.start_soon(reading)
        await rounds()
        assert not read
        peer.send(b"at last")
        await until(lambda: read)
    assert read == [b"at last"]


@pytest.mark.parametrize("by", ["task", "scope"])
async def test_a_cancelled_read_loses_nothing(listener, by):
    """What arrives in the same moment in which a read is cancelled is there for the next."""
    async with connected(listener) as (stream, peer):
        scope = anyio.CancelScope()

        async def reading():
            with scope:
                await stream.read(9, SOON)

        task = asyncio.create_task(reading())
        await rounds()
        peer.send(b"precious")
        stream._transport.pause_reading()
        scope.cancel() if by == "scope" else task.cancel()
        stream.data_received(peer_data := b"very ")
        stream._transport.resume_reading()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        got = peer_data[:0]
        while len(got) < len(b"very precious"):
            got += await stream.read(9, SOON)
        assert got == b"very precious"


async def test_writing_takes_only_so_long(listener):
    """A peer that takes nothing is WriteTimeout; nothing at all is written at once."""
    async with connected(listener) as (stream, _):
        await stream.write(b"", 0.0)
        with pytest.raises(httpcore.WriteTimeout):
            await stream.write(b"x" * 2**25, 0.01)


async def test_a_connection_that_breaks_ends_the_writing(listener):
    """Who waits for a peer that resets gets WriteError, before its time is up."""
    async with connected(listener) as (stream, peer):
        write = asyncio.create_task(stream.write(b"x" * 2**25, SOON))
        await until(lambda: not stream._writable.is_set())
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
        with pytest.raises(httpcore.WriteError):
            await write


async def test_closing_wakes_who_reads(listener):
    """A read under way ends with ReadError, and so does every later one; a write with WriteError;
    closing once more does no harm."""
    async with connected(listener) as (stream, _):
        read = asyncio.create_task(stream.read(9, SOON))
        await rounds()
        await stream.aclose()
        with pytest.raises(httpcore.ReadError, match="closed here"):
            await read
        with pytest.raises(httpcore.ReadError, match="closed here"):
            await stream.read(9, SOON)
        with pytest.raises(httpcore.WriteError, match="closed here"):
            await stream.write(b"more", SOON)
        await stream.aclose()
        assert stream.get_extra_info("is_readable")


async def test_idle_ones_that_have_something_are_told(listener):
    """`is_readable` holds as soon as the kernel has something, before the event loop knows; and
    goes on to hold when it does; at the end too."""
    async with connected(listener) as (stream, peer):
        assert not stream.get_extra_info("is_readable")
        peer.send(b"unasked")
        assert stream.get_extra_info("is_readable")
        await until(lambda: stream._arrived)
        assert stream.get_extra_info("is_readable")
        await stream.read(9, SOON)
        assert not stream.get_extra_info("is_readable")
        peer.close()
        assert stream.get_extra_info("is_readable")
        await until(lambda: stream._ended)
        assert stream.get_extra_info("is_readable")


async def test_what_is_known_of_a_connection(listener):
    """Both addresses, by httpcore's names; the local one and the options are those asked for."""
    options = [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7)]
    async with connected(listener, local_address="127.0.0.9", socket_options=options) as (
        stream,
        peer,
    ):
        assert stream.get_extra_info("server_addr") == listener.getsockname()
        assert stream.get_extra_info("client_addr") == peer.getpeername()
        assert peer.getpeername()[0] == "127.0.0.9"
        sock = stream.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("no such thing") is None


async def test_an_option_that_cannot_be_set(listener):
    """It is ConnectError, and the connection does not stay."""
    with pytest.raises(httpcore.ConnectError):
        await LoopBackend().connect_tcp(
            *listener.getsockname(), SOON, socket_options=[(12345, 12345, 1)]
        )
    peer, _ = listener.accept()
    with peer:
        assert await anyio.to_thread.run_sync(_received, peer) == b""


async def test_refused(dead_port):
    """ConnectError says so."""
    with pytest.raises(httpcore.ConnectError, match="Errno 111"):
        await LoopBackend().connect_tcp("127.0.0.1", dead_port, SOON)


async def test_no_time_to_connect(listener):
    """ConnectTimeout."""
    with pytest.raises(httpcore.ConnectTimeout):
        await LoopBackend().connect_tcp(*listener.getsockname(), 0.0)


async def test_a_name(listener):
    """Of the addresses of a name one that answers is found: here IPv6 refuses, if it is there."""
    port = listener.getsockname()[1]
    dialer = AsyncDialer(lbclient.Instance("localhost", port), shared=False, secure=False)
    stream = await dialer.connect_tcp("orders.test", port, SOON)
    peer, _ = listener.accept()
    with peer:
        await stream.write(b"hello", SOON)
        assert await anyio.to_thread.run_sync(_received, peer) == b"hello"
    await stream.aclose()


async def test_a_name_that_takes_long(monkeypatch):
    """The time of a connect bounds the question too, and a name that is not known is ConnectError:
    in both cases nothing was sent."""

    async def never(*_, **__):
        await anyio.sleep_forever()

    async def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    dialer = AsyncDialer(lbclient.Instance("orders.test", 80), shared=False, secure=False)
    monkeypatch.setattr(anyio, "getaddrinfo", never)
    with pytest.raises(httpcore.ConnectTimeout):
        await dialer.connect_tcp("orders.test", 80, 0.01)
    monkeypatch.setattr(anyio, "getaddrinfo", unknown)
    with pytest.raises(httpcore.ConnectError, match="not known"):
        await dialer.connect_tcp("orders.test", 80, SOON)


@pytest.mark.parametrize(("shared", "secure"), [(True, False), (False, True), (False, False)])
async def test_for_plain_http_alone(listener, shared, secure):
    """HTTP/2 and TLS go by httpcore's own backend."""
    host, port = listener.getsockname()
    dialer = AsyncDialer(lbclient.Instance(host, port), shared=shared, secure=secure)
    stream = await dialer.connect_tcp(host, port, SOON)
    assert isinstance(stream.inner, LoopStream) == (not shared and not secure)
    await stream.aclose()


@pytest.mark.parametrize("what", ["an answer to nobody", "the end"])
async def test_a_connection_that_ended_as_it_was_taken(servers, monkeypatch, what):
    """C14: what has come on an idle connection is seen when a request begins, though it was not yet
    there when the connection was looked at: the request goes on another one, a POST too."""
    (server,) = servers(says(200, b"fine"))
    async with lbclient.AsyncClient([server.url]) as client:
        await client.get("/")
        ((first,),) = [wire._pool.connections for wire in wires_of(client)]
        (line,) = wires_of(client)[0]._dialer.opened
        if what == "the end":
            line.inner.eof_received()
        else:
            line.inner.data_received(head(200, {"Content-Length": "5"}) + b"wrong")
        monkeypatch.setattr(httpcore.AsyncHTTPConnection, "has_expired", lambda _: False)
        response = await client.post("/", content=b"order")
        assert (response.status_code, response.text) == (200, "fine")
        assert len(lbclient.call_info(response).attempts) == 1
        assert first.is_closed()
    assert [request.method for request in server.requests] == ["GET", "POST"]


def test_trio_as_a_guest_of_asyncio(servers):
    """A loop of asyncio's that trio runs in is trio's."""
    (server,) = servers(says(200, b"fine"))
    done = asyncio.Queue()
    loop = asyncio.new_event_loop()

    async def fetched():
        async with lbclient.AsyncClient([server.url]) as client:
            return (await client.get("/")).text

    async def host():
        trio.lowlevel.start_guest_run(
            fetched,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.put_nowait,
        )
        return (await done.get()).unwrap()

    try:
        assert loop.run_until_complete(host()) == "fine"
    finally:
        loop.close()


async def test_bytes_that_are_no_http(listener):
    """After 101 (Switching Protocols) the connection is the caller's, with what came along."""
    thread = threading.Thread(target=echo_once, args=(listener,))
    thread.start()
    try:
        url = "http://{}:{}".format(*listener.getsockname())
        async with lbclient.AsyncClient([url], timeout=SOON) as client:
            headers = {"Upgrade": "echo", "Connection": "Upgrade"}
            async with client.stream("GET", "/", headers=headers) as response:
                assert response.status_code == 101
                line = response.extensions["network_stream"]
                assert await line.read(5, SOON) == b"hello"
                await line.write(b"0123456789", SOON)
                assert [await line.read(6, SOON), await line.read(6, SOON)] == [b"012345", b"6789"]
                assert await line.read(6, SOON) == b""
    finally:
        thread.join()


def echo_once(listener):
    peer, _ = listener.accept()
    with peer:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += peer.recv(1000)
        peer.sendall(head(101, {"Upgrade": "echo", "Connection": "Upgrade"}) + b"hello")
        peer.sendall(peer.recv(10))
