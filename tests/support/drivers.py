"""Connections of every driver, as blocking calls, so that one test holds for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from concurrent.futures import Future, ThreadPoolExecutor
from inspect import iscoroutinefunction
from typing import Self

import anyio.from_thread
import trustme
from trio.lowlevel import start_guest_run

from lbclient import Instance
from lbclient._internal.blocking import run_blocking
from lbclient.balancer.options import with_defaults
from lbclient.http.connections import addresses, connection, event_loop, threads, trio
from lbclient.http.connections.addresses import Dial
from lbclient.http.options import (
    ConnectionOptions,
    TransportOptions,
    connection_settings,
    part,
)
from lbclient.http.request import Upstream

SOON = 20.0
"""Seconds that nothing takes."""
AUTHORITY = trustme.CA()
NAME = "orders.test"
DRIVERS = ["threads", "asyncio", "uvloop", "trio"]


def trusting() -> ssl.SSLContext:
    """A context that trusts `AUTHORITY` alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


def serving(*protocols: str) -> ssl.SSLContext:
    """A context of an instance with a certificate for `NAME`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(NAME).configure_cert(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def blocking(function):
    """The function that a thread calls: one that finishes a coroutine of a connection."""
    return lambda *args: (
        run_blocking(lambda: function(*args)) if iscoroutinefunction(function) else function(*args)
    )


class Driver:
    """One way to move bytes. `start` begins an operation, whose result a test waits for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._stack = contextlib.ExitStack()
        self.pool = self._stack.enter_context(ThreadPoolExecutor(16))
        self._portal = None
        if kind != "threads":
            backend = "trio" if kind == "trio" else "asyncio"
            options = {} if kind == "trio" else {"use_uvloop": kind == "uvloop"}
            self._portal = self._stack.enter_context(
                anyio.from_thread.start_blocking_portal(backend, options)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._portal is not None:
            self._portal.call(self._portal.stop, True)  # whatever a test has left
        self._stack.close()

    @property
    def looped(self) -> bool:
        return self._portal is not None

    def start(self, function, *args) -> Future:
        """Begin it on a thread, or as a task."""
        if self._portal is None:
            return self.pool.submit(blocking(function), *args)
        return self._portal.start_task_soon(function, *args)

    def call(self, function, *args):
        """Run it on a thread, or in the event loop."""
        return self.start(function, *args).result(SOON)

    def new(self):
        """A connection that is not open yet."""
        if self.kind == "threads":
            return threads.SocketConnection()
        made = trio.TrioConnection if self.kind == "trio" else event_loop.LoopConnection
        return self.call(made)

    def write(self, connection, data, timeout=SOON):
        """Send all of it."""
        return self.call(connection.write_all, data, timeout)

    @contextlib.contextmanager
    def open(self, *hosts, port, timeout=SOON, **options):
        """A connection to the first of these addresses that answers."""
        connection = self.new()
        try:
            self.call(connection.open, dial(*hosts, port=port, **options), timeout)
            yield connection
        finally:
            self.call(connection.close)

    @contextlib.contextmanager
    def connected(self, *, secure=False, **options):
        """A connection, and the socket at its other end."""
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            self.open("127.0.0.1", port=listener.getsockname()[1], **options) as connection,
        ):
            peer, _ = listener.accept()
            peer.settimeout(SOON)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if secure:
                wrapping = self.pool.submit(accept_tls, peer)
                self.call(connection.start_tls, trusting(), NAME, SOON)
                peer = wrapping.result(SOON)
            with peer:
                yield connection, peer

    def read_all(self, connection):
        """All bytes until the end."""
        parts = iter(lambda: self.call(connection.read, SOON), b"")
        return b"".join(parts)

    def read(self, connection, length):
        """This many bytes."""
        data = b""
        while len(data) < length and (part := self.call(connection.read, SOON)):
            data += part
        return data


def as_guest(function):
    """Run a coroutine function in trio, which runs as a guest in asyncio's loop."""
    loop, done = asyncio.new_event_loop(), asyncio.Queue()

    async def host():
        start_guest_run(
            function,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.put_nowait,
        )
        return (await done.get()).unwrap()

    try:
        return loop.run_until_complete(host())
    finally:
        loop.close()


def accept_tls(peer, *protocols):
    """The instance's end of a handshake. An end without close_notify is an error there."""
    return serving(*protocols).wrap_socket(peer, server_side=True, suppress_ragged_eofs=False)


def dial(*hosts, port, name=None, **options):
    """How to connect to an instance that has these addresses, or this name alone."""
    instance = Instance(name or NAME, port, addresses=hosts)
    return Dial(Upstream(instance, "http", None, None), settings(**options))


def settings(**options):
    """The settings of connections without TLS that have these options, and default values for the
    others."""
    given = with_defaults(options, TransportOptions)
    return connection_settings("http", given["limits"], part(given, ConnectionOptions))


@contextlib.contextmanager
def black_hole(host, port):
    """An address that answers nothing: the queue of its listener is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, port), backlog=0))
        for _ in itertools.repeat(None, 3):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def watch_sockets(monkeypatch):
    """Every socket that is opened from now on, in order."""
    opened, true = [], addresses.open_socket

    def open_socket(address, options):
        made = true(address, options)
        opened.append(made)
        return made

    for module in (threads, connection):
        monkeypatch.setattr(module, "open_socket", open_socket)
    return opened
