"""The bytes of a connection, the same by every driver: threads, asyncio, uvloop and trio."""

import contextlib
import errno
import ipaddress
import os
import select
import socket
import ssl
import struct
import threading
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest

from lbclient.http.connections import addresses, event_loop, threads
from lbclient.http.connections import connection as connection_module
from tests.support.drivers import (
    DRIVERS,
    NAME,
    SOON,
    Driver,
    accept_tls,
    black_hole,
    dial,
    trusting,
    watch_sockets,
)

RESET = struct.pack("ii", 1, 0)
MUCH = os.urandom(1_000_000) * 16
"""More than the kernel takes at both ends together."""


@pytest.fixture(params=DRIVERS, scope="module")
def driver(request):
    with Driver(request.param) as made:
        yield made


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def secure(request):
    return request.param


def reset(peer):
    """Close with a RST."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


def until_readable(sock):
    """Wait until something has arrived there."""
    assert select.select([sock], [], [], SOON)[0]


looped = pytest.mark.parametrize("driver", DRIVERS[1:], indirect=True, scope="module")


# Reading and writing


def test_all_bytes_arrive_in_order(driver, secure):
    """Bytes sent at either end arrive at the other, complete and in order."""
    with driver.connected(secure=secure) as (connection, peer):
        for piece in (b"a", b"", b"bc", b"x" * 100_000):
            if piece:
                peer.sendall(piece)
            assert driver.read(connection, len(piece)) == piece
            driver.write(connection, piece)
            assert exactly(peer, len(piece)) == piece


def exactly(peer, length):
    data = b""
    while len(data) < length and (part := peer.recv(65536)):
        data += part
    return data


def test_peer_that_floods_has_to_wait(driver, secure):
    """Unread bytes are limited, however much the other end sends; when they are read, none is
    missing."""
    with driver.connected(secure=secure) as (connection, peer):
        sending = driver.pool.submit(peer.sendall, MUCH)
        data = bytearray()
        while len(data) < len(MUCH):
            part = driver.call(connection.read, SOON)
            assert len(part) <= 1_000_000
            assert len(connection._arrived) <= 1_000_000
            data += part
        sending.result(SOON)
        assert data == MUCH


def test_end_is_read_as_often_as_asked(driver, secure):
    """After the last byte every read returns nothing, and over TLS an announced end (close_notify)
    differs from one that was not."""
    for announced in (True, False):
        with driver.connected(secure=secure) as (connection, peer):
            peer.sendall(b"last")
            leaving = None
            if secure and announced:
                leaving = driver.pool.submit(farewell, peer)
            else:
                peer.shutdown(socket.SHUT_WR)
            assert driver.read_all(connection) == b"last"
            assert driver.call(connection.read, SOON) == b""
            assert connection.clean_end is (announced or not secure)
            driver.call(connection.close)
            if leaving is not None:  # else it would read from the next socket of this descriptor
                leaving.result(SOON)


def farewell(peer):
    with contextlib.suppress(OSError, ValueError):
        peer.unwrap()


def test_ended_connection_can_be_written_to(driver):
    """A peer that has ended sending can still read."""
    with driver.connected() as (connection, peer):
        peer.shutdown(socket.SHUT_WR)
        assert driver.call(connection.read, SOON) == b""
        driver.write(connection, b"after")
        assert exactly(peer, 5) == b"after"


def test_reset_is_an_error(driver, secure):
    """What had arrived is read, then ReadError says what happened; writing raises WriteError."""
    with driver.connected(secure=secure) as (connection, peer):
        peer.sendall(b"last")
        assert driver.read(connection, 4) == b"last"
        reset(peer)
        with pytest.raises(httpx.ReadError, match="reset by peer"):
            driver.call(connection.read, SOON)
        with pytest.raises(httpx.WriteError):  # noqa: PT012  # a kernel may take the first bytes
            for _ in range(3):
                driver.write(connection, b"more")


def test_what_came_before_a_reset_is_read(driver, secure):
    """A reset does not destroy what arrived before it."""
    with driver.connected(secure=secure) as (connection, peer):
        peer.sendall(b"last")
        reset(peer)
        assert driver.read(connection, 4) == b"last"
        with pytest.raises(httpx.ReadError):
            driver.call(connection.read, SOON)


def test_reading_takes_only_so_long(driver, secure):
    """ReadTimeout ends a read without data; later data is returned by the next read."""
    with driver.connected(secure=secure) as (connection, peer):
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                driver.call(connection.read, 0.01)
        peer.sendall(b"late")
        assert driver.read(connection, 4) == b"late"


def test_read_without_a_limit(driver, secure):
    """A timeout of None waits as long as needed, even after a wait with a limit."""
    with driver.connected(secure=secure) as (connection, peer):
        with pytest.raises(httpx.ReadTimeout):
            driver.call(connection.read, 0.01)
        reading = driver.start(connection.read, None)
        with pytest.raises(TimeoutError):
            reading.result(0.05)
        peer.sendall(b"at last")
        assert reading.result(SOON) == b"at last"


def test_each_wait_has_its_own_end(driver, secure):
    """A wait ends in its own time, whether an earlier wait was longer or shorter, and whatever
    timer is set."""
    with driver.connected(secure=secure) as (connection, peer):
        for seconds in (2 * SOON, 0.1, 2 * SOON, None):
            reading = driver.start(connection.read, seconds)
            peer.sendall(b"soon")
            assert reading.result(SOON) == b"soon"
        with pytest.raises(httpx.ReadTimeout):
            driver.call(connection.read, 0.01)
        reading = driver.start(connection.read, 2 * SOON)
        with pytest.raises(TimeoutError):
            reading.result(0.2)
        peer.sendall(b"late")
        assert reading.result(SOON) == b"late"


@looped
def test_peer_that_floods_a_reader_of_everything_has_to_wait(driver, secure):
    """Unread bytes are limited even if the reader takes everything."""
    with driver.connected(secure=secure) as (connection, peer):
        sending = driver.pool.submit(peer.sendall, MUCH)
        data = bytearray()

        async def read():
            return await connection.read(SOON, everything=True)

        while len(data) < len(MUCH):
            part = driver.call(read)
            assert len(part) <= 1_000_000
            assert len(connection._arrived) <= 1_000_000
            data += part
        sending.result(SOON)
        assert data == MUCH


def test_writing_takes_only_so_long(driver, secure):
    """A peer that reads nothing causes WriteTimeout."""
    with driver.connected(secure=secure) as (connection, _), pytest.raises(httpx.WriteTimeout):
        driver.write(connection, MUCH, 0.05)


def test_connection_that_breaks_ends_the_writing(driver, secure):
    """A writer that waits for a peer which resets gets WriteError before the time is up."""
    with driver.connected(secure=secure) as (connection, peer):
        write = connection.write_all
        writing = driver.start(write, MUCH, SOON)
        until_readable(peer)
        reset(peer)
        with pytest.raises(httpx.WriteError):
            writing.result(SOON)


@looped
def test_cancelled_read_loses_nothing(driver, secure):
    """Data that arrives while a read is cancelled is returned by the next read."""
    with driver.connected(secure=secure) as (connection, peer):
        data = bytearray()

        ended = threading.Semaphore(0)

        async def read():
            try:
                data.extend(await connection.read(SOON))
            finally:
                ended.release()

        for _ in range(50):
            reading = driver.start(read)
            driver.call(drained)
            peer.sendall(b"precious")
            reading.cancel()
            assert ended.acquire(timeout=SOON)
        while len(data) < 400:
            driver.call(read)
        assert data == b"precious" * 50


# Closing


def test_closing_wakes_whoever_reads(driver, secure):
    """A read under way ends with ReadError, whichever thread closes; so does every later one, and a
    write with WriteError. Closing again does nothing."""
    with driver.connected(secure=secure) as (connection, peer):
        peer.sendall(b"x")
        assert driver.call(connection.read, SOON) == b"x"
        reading = driver.start(connection.read, None)
        with pytest.raises(TimeoutError):
            reading.result(0.05)
        driver.call(connection.shut)
        with pytest.raises(httpx.ReadError, match="closed here"):
            reading.result(SOON)
        for _ in range(2):
            driver.call(connection.close)
        with pytest.raises(httpx.ReadError, match="closed here"):
            driver.call(connection.read, SOON)
        with pytest.raises(httpx.WriteError, match="closed here"):
            driver.write(connection, b"more")
        assert connection.extra_info("is_readable")


def test_closing_wakes_whoever_writes(driver, secure):
    """A write under way ends with WriteError."""
    with driver.connected(secure=secure) as (connection, peer):
        write = connection.write_all
        writing = driver.start(write, MUCH, SOON)
        until_readable(peer)
        driver.call(connection.shut)
        with pytest.raises(httpx.WriteError):
            writing.result(SOON)


def test_end_of_tls_is_announced(driver):
    """Closing sends close_notify, so that the peer can distinguish an end from a cut."""
    with driver.connected(secure=True) as (connection, peer):
        driver.write(connection, b"last")
        driver.call(connection.close)
        assert exactly(peer, 4) == b"last"
        assert peer.recv(1) == b""


# What is there to be read


def test_readable(driver, secure):
    """`readable` notices bytes and the end before anything has read them."""
    with driver.connected(secure=secure) as (connection, peer):
        assert not driver.call(tell, driver, connection)
        peer.sendall(b"unasked")
        for _ in range(2):
            becomes_readable(driver, connection)
        assert driver.read(connection, 7) == b"unasked"
        assert not driver.call(tell, driver, connection)
        if secure:
            peer.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                peer.unwrap()
        else:
            peer.shutdown(socket.SHUT_WR)
        for _ in range(2):
            becomes_readable(driver, connection)


def becomes_readable(driver, connection):
    """Wait, since a busy kernel may take a moment to deliver."""
    end = time.monotonic() + SOON
    while not driver.call(tell, driver, connection):
        assert time.monotonic() < end


def tell(driver, connection):
    if not driver.looped:
        return connection.readable()

    async def told():
        return connection.readable()

    return told()


def test_session_tickets_are_nothing_to_read(driver):
    """TLS messages such as session tickets are not data; the data after them is."""
    with driver.connected(secure=True) as (connection, peer):
        sock = connection.extra_info("socket")
        assert peer.version() == "TLSv1.3"
        assert sock is not None
        assert not driver.call(tell, driver, connection)
        peer.sendall(b"data")
        becomes_readable(driver, connection)
        assert driver.read(connection, 4) == b"data"


@pytest.mark.parametrize("driver", ["threads"], indirect=True, scope="module")
def test_without_poll(driver, secure, monkeypatch):
    """Eventlet removes `select.poll`: connections then wait with `select.select`."""
    monkeypatch.delattr(select, "poll")
    with driver.connected(secure=secure) as (connection, peer):
        with pytest.raises(httpx.ReadTimeout):
            driver.call(connection.read, 0.01)
        peer.sendall(b"data")
        becomes_readable(driver, connection)
        assert driver.read(connection, 4) == b"data"
        with pytest.raises(httpx.WriteTimeout):
            driver.write(connection, MUCH, 0.05)
    with (
        black_hole("127.0.0.2", 0) as port,
        socket.create_server(("127.0.0.1", port)),
        driver.open("127.0.0.2", "127.0.0.1", port=port) as connection,
    ):
        assert connection.peer == "127.0.0.1"


@looped
def test_process_that_stood_still(driver, secure):
    """Data that arrived while the process was stopped is read, even if the time is over."""
    with driver.connected(secure=secure) as (connection, peer):
        entered, go = threading.Event(), threading.Event()

        async def stand_still():
            entered.set()
            go.wait(SOON)

        reading = driver.start(connection.read, 0.05)
        standing = driver.start(stand_still)
        assert entered.wait(SOON)
        peer.sendall(b"meanwhile")
        with pytest.raises(TimeoutError):
            standing.result(0.7)
        go.set()
        assert reading.result(SOON) == b"meanwhile"


# Connecting


def test_sockets_are_set_up_before_they_connect(driver):
    """`local_address` and `socket_options` apply from the first packet on."""
    options = [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7)]
    with driver.connected(local_address="127.0.0.9", socket_options=options) as (connection, peer):
        assert peer.getpeername() == connection.extra_info("client_addr")
        assert peer.getpeername()[0] == "127.0.0.9"
        assert peer.getsockname() == connection.extra_info("server_addr")
        assert connection.peer == "127.0.0.1"
        sock = connection.extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert connection.extra_info("ssl_object") is None
        assert connection.extra_info("no such thing") is None


@pytest.mark.parametrize(
    "wrong", [{"socket_options": [(12345, 12345, 1)]}, {"local_address": "192.0.2.1"}]
)
def test_sockets_that_cannot_be_set_up(driver, wrong, monkeypatch):
    """A refused connection is ConnectError, and nothing was sent."""
    opened = watch_sockets(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with (
            pytest.raises(httpx.ConnectError),
            driver.open("127.0.0.1", port=listener.getsockname()[1], **wrong),
        ):
            pass
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert opened == []


def test_refused(driver, dead_port):
    """ConnectError says so."""
    with (
        pytest.raises(httpx.ConnectError, match="Errno 111"),
        driver.open("127.0.0.1", port=dead_port),
    ):
        pass


@pytest.mark.parametrize("what", [errno.EMFILE, errno.ENFILE])
def test_descriptors_exhausted(driver, monkeypatch, what):
    """If no socket can be created, ConnectError has the reason as its cause, and no instance is
    charged."""

    def none_left(*_):
        raise OSError(what, os.strerror(what))

    for module in (threads, connection_module):
        monkeypatch.setattr(module, "open_socket", none_left)
    with pytest.raises(httpx.ConnectError) as failed, driver.open("127.0.0.1", port=1):
        pass
    assert failed.value.__cause__.errno == what


def test_name(driver):
    """Of the addresses of a name, one that answers is found; here IPv6 refuses, if it exists."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        driver.open(port=listener.getsockname()[1], name="localhost") as connection,
    ):
        assert connection.peer == "127.0.0.1"


@looped
def test_name_that_takes_long(driver, monkeypatch):
    """The connect timeout covers the lookup of the name too: ConnectTimeout."""

    async def never(*_, **__):
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio, "getaddrinfo", never)
    with (
        pytest.raises(httpx.ConnectTimeout, match=r"orders\.test"),
        driver.open(port=80, name="orders.test", timeout=0.01),
    ):
        pass


def test_name_that_is_not_known(driver, monkeypatch):
    """ConnectError: nothing was sent."""

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with (
        pytest.raises(httpx.ConnectError, match="not known"),
        driver.open(port=80, name="orders.test"),
    ):
        pass


def link_local():
    """An address of this host with a zone, if there is one; otherwise one without."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        address, _, _, _, _, interface = line.split()
        if address.startswith("fe80"):
            return f"{ipaddress.IPv6Address(int(address, 16))}%{interface}"
    return "::1"


@pytest.mark.parametrize("host", ["::1", link_local()])
def test_ipv6(driver, host):
    """IPv6 addresses can be connected to, even with a zone."""
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6) as listener,
        driver.open(host, port=listener.getsockname()[1]) as connection,
    ):
        peer, _ = listener.accept()
        with peer:
            driver.write(connection, b"hello")
            assert exactly(peer, 5) == b"hello"


def test_zone_that_is_not_known(driver):
    """An address in a zone that this host does not have causes ConnectError."""
    with pytest.raises(httpx.ConnectError), driver.open("fe80::1%nosuch", port=80):
        pass


# Several addresses


def test_addresses_are_raced(driver, monkeypatch):
    """The second address is tried a quarter of a second after the first, which does not answer; the
    second does, and the socket to the first is closed (RFC 8305)."""
    opened = watch_sockets(monkeypatch)
    assert addresses.ATTEMPT_DELAY == 0.25
    with (
        black_hole("127.0.0.2", 0) as port,
        socket.create_server(("127.0.0.1", port)),
    ):
        began = time.monotonic()
        with driver.open("127.0.0.2", "127.0.0.1", port=port) as connection:
            assert time.monotonic() - began >= 0.25
            assert connection.peer == "127.0.0.1"
            first, second = opened
            assert first.fileno() == -1
            assert second is connection.extra_info("socket")


def test_address_that_refuses_costs_no_time(driver, monkeypatch):
    """The next address is tried as soon as one has failed, and none after one that has
    connected."""
    opened = watch_sockets(monkeypatch)
    for module in (addresses, threads):
        monkeypatch.setattr(module, "ATTEMPT_DELAY", 100.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hosts = ("127.0.0.2", "127.0.0.3", "127.0.0.1", "127.0.0.4")
        with driver.open(*hosts, port=listener.getsockname()[1]) as connection:
            assert connection.peer == "127.0.0.1"
            assert [one.fileno() == -1 for one in opened] == [True, True, False]


def test_no_address_answers(driver, monkeypatch):
    """ConnectTimeout is raised after the connect timeout, whatever the number of addresses; no
    socket stays open."""
    opened = watch_sockets(monkeypatch)
    for module in (addresses, threads):
        monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.01)
    with (
        black_hole("127.0.0.2", 0) as port,
        black_hole("127.0.0.3", port),
        pytest.raises(httpx.ConnectTimeout),
        driver.open("127.0.0.2", "127.0.0.3", port=port, timeout=0.1),
    ):
        pass
    assert [one.fileno() for one in opened] == [-1, -1]


def test_race_that_is_given_up(driver, monkeypatch):
    """If it is cancelled, or closed from another thread, while addresses are raced, no socket stays
    open."""
    opened = watch_sockets(monkeypatch)
    pause = threading.Event()
    for module in (addresses, threads):
        monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.01)
    with black_hole("127.0.0.2", 0) as port, black_hole("127.0.0.3", port):
        connection = driver.new()
        opening = driver.start(connection.open, dial("127.0.0.2", "127.0.0.3", port=port), SOON)
        while len(opened) < 2:
            pause.wait(0.001)
        if driver.looped:
            opening.cancel()
            with pytest.raises(BaseException):  # noqa: B017  # the cancellation of each library
                opening.result(SOON)
            driver.call(drained)
        else:
            connection.shut()
            with pytest.raises(httpx.ConnectError):
                opening.result(SOON)
        driver.call(connection.close)
    assert [one.fileno() for one in opened] == [-1, -1]


def check_does_not_open(driver, connection):
    """The connection does not open, and its socket is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(httpx.ConnectError, match="closed here"):
            driver.call(connection.open, dial("127.0.0.1", port=listener.getsockname()[1]), SOON)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(SOON)
            assert peer.recv(1) == b""


def test_connection_that_is_closed_while_it_opens(driver, monkeypatch):
    """A connection that is closed here as soon as a socket has connected does not open, and its
    socket is closed."""
    connection = driver.new()
    race, race_on_threads = connection_module.race, threads.SocketConnection._race

    async def closing(*args):
        sock = await race(*args)
        connection.shut()
        return sock

    def closing_on_threads(*args):
        sock = race_on_threads(*args)
        connection.shut()
        return sock

    monkeypatch.setattr(connection_module, "race", closing)
    monkeypatch.setattr(threads.SocketConnection, "_race", closing_on_threads)
    check_does_not_open(driver, connection)


@pytest.mark.parametrize("driver", ["asyncio", "uvloop"], indirect=True, scope="module")
def test_connection_that_is_closed_while_its_loop_takes_it(driver, monkeypatch):
    """The same, if it is closed just before asyncio reports the connection."""
    connection, made = driver.new(), event_loop.LoopConnection.connection_made

    def closing(connection, transport):
        connection.close()
        made(connection, transport)

    monkeypatch.setattr(event_loop.LoopConnection, "connection_made", closing)
    check_does_not_open(driver, connection)


async def drained():
    """Wait until the event loop has run one iteration."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


# TLS


def shake(driver, connection, peer, context, *protocols, name=NAME):
    """The ends of handshakes, as the instance sees them."""
    instance = driver.pool.submit(accept_tls, peer, *protocols)
    try:
        driver.call(connection.start_tls, context, name, SOON)
    finally:
        peer = outcome(instance)
    return peer


def outcome(future):
    try:
        return future.result(SOON)
    except OSError as error:
        return error


@pytest.mark.parametrize("fault", ["name", "authority"])
def test_wrong_certificate(driver, fault):
    """A certificate of another name, or of an untrusted authority, is ConnectError, and the
    instance gets an alert."""
    context = trusting() if fault == "name" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    name = "other.test" if fault == "name" else NAME
    with driver.connected() as (connection, peer):
        told = driver.pool.submit(accept_tls, peer)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            driver.call(connection.start_tls, context, name, SOON)
        driver.call(connection.close)
        with pytest.raises(ssl.SSLError, match="ALERT"):
            told.result(SOON).recv(1)


def test_handshake_takes_only_so_long(driver):
    """An instance that never answers a TLS hello is ConnectTimeout."""
    with driver.connected() as (connection, _), pytest.raises(httpx.ConnectTimeout):
        driver.call(connection.start_tls, trusting(), NAME, 0.02)


@pytest.mark.parametrize("end", ["end", "reset"])
def test_handshake_that_breaks(driver, end):
    """An instance that closes during the handshake causes ConnectError."""
    with driver.connected() as (connection, peer):
        shaking = driver.start(connection.start_tls, trusting(), NAME, SOON)
        until_readable(peer)
        if end == "reset":
            reset(peer)
        else:
            exactly(peer, 1)
            peer.shutdown(socket.SHUT_WR)
        with pytest.raises(httpx.ConnectError):
            shaking.result(SOON)


def test_callers_context_is_not_changed(driver):
    """A user's own SSLContext offers what the user has set, before and after."""
    context = trusting()
    context.set_alpn_protocols(["mine"])
    for _ in range(2):
        with driver.connected() as (connection, peer):
            served = shake(driver, connection, peer, context, "other", "mine")
            assert connection.alpn == served.selected_alpn_protocol() == "mine"
            served.close()
