"""Reads and writes the bytes of HTTP/2 connections. Each connection has a thread, or two tasks of
an event loop, for this.

These threads and tasks use no timeouts. They continue even if the calls whose frames they write
have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import select
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel

from lbclient._internal.blocking import run_blocking
from lbclient._internal.interruption import block_signals
from lbclient.balancer.threads import start

from .._compat import httpx
from .connection import Connection, InstanceLiveness
from .event_loop import LoopConnection
from .http2 import Http2
from .threads import SocketConnection

__all__ = ["Http2Socket", "start_tasks"]

_FAREWELL = 1.0
_NO_THREAD = "no more threads can be started"


class Http2Socket(SocketConnection):
    """A connection that has a thread of its own, once it uses HTTP/2. The thread reads, writes and
    closes the socket. Since no other thread closes the socket, this thread never uses a file
    descriptor that already belongs to another file."""

    __slots__ = ("_thread", "_waker")

    # Repeated: a type checker may otherwise infer another type from an assignment below.
    http2: Http2 | None

    def __init__(self) -> None:
        super().__init__()
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None

    def start(self, liveness: InstanceLiveness, freed: Callable[[], object]) -> Http2:
        """Start HTTP/2. Raises ConnectError if this process cannot open another file descriptor or
        start another thread."""
        self.http2 = http2 = Http2(self, liveness, freed)
        try:
            self._waker, woken = waker, _ = socket.socketpair()
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        waker.setblocking(False)  # noqa: FBT003  # it takes no keyword
        # `_thread` is set before the thread starts. If an exception from a signal handler
        # interrupts `start`, the thread may already run.
        self._thread = thread = threading.Thread(
            target=_run, args=(http2, self, waker, woken), daemon=True, name="lbclient-http2"
        )
        if not start(thread):
            self._thread = self._waker = None
            waker.close()
            woken.close()
            raise httpx.ConnectError(_NO_THREAD) from OSError(errno.ENOMEM, _NO_THREAD)
        return http2

    def close(self) -> None:
        """Close the connection. Threads that wait for it are woken."""
        if self._thread is None:
            super().close()
        else:
            self.shut()

    def shut(self) -> None:
        """Close the connection, on the thread of this connection."""
        super().shut()
        if self._waker is not None:
            _wake(self._waker)

    def closed_by_thread(self) -> None:
        """Close the socket. Only the thread of this connection calls this method."""
        super().close()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_FAREWELL)


def _run(http2: Http2, stream: Http2Socket, waker: socket.socket, woken: socket.socket) -> None:
    block_signals()
    run_blocking(lambda: _serve(http2, stream, waker, woken))


async def _serve(
    http2: Http2, stream: Http2Socket, waker: socket.socket, woken: socket.socket
) -> None:
    """What the thread of a connection runs: it writes the bytes that must be written, and reads the
    bytes that arrive."""
    wake = partial(_wake, waker)
    try:
        while True:
            # Read before writing: if the connection has ended, no part of a request is sent.
            if stream.readable():
                await _receive(http2, stream)
            if http2.over:
                break
            if data := http2.outgoing(wake):
                await _write_out(http2, stream, data)
            elif not stream.readable() and woken in _readable(stream, woken):
                woken.recv(1024)
        if data := http2.outgoing(wake):
            await stream.write(data, _FAREWELL)
    except httpx.TransportError as error:
        http2.end(error)
    except Exception as error:  # noqa: BLE001  # not reported elsewhere, or closed on this side
        http2.end(httpx.ReadError(str(error)))
    finally:
        stream.closed_by_thread()
        woken.close()
        waker.close()


async def _write_out(http2: Http2, stream: SocketConnection, data: bytes) -> None:
    """Write the data, and read the bytes that arrive meanwhile."""
    try:
        sent = await stream.write(data, None)
        while not sent:
            await _receive(http2, stream)
            sent = await stream.write(b"", None)
    except httpx.WriteError as error:
        http2.writing_failed(error)
    else:
        http2.written(len(data))


async def _receive(http2: Http2, stream: SocketConnection) -> None:
    data = await stream.read(None)
    if not data:
        http2.end()
    elif http2.receive(data):
        while http2.receive(b""):
            pass


def _wake(waker: socket.socket) -> None:
    with contextlib.suppress(OSError):
        waker.send(b"x")


def _readable(stream: SocketConnection, woken: socket.socket) -> list[socket.socket]:
    """Wait until at least one of the two sockets can be read, and return those that can."""
    sock = cast("socket.socket", stream.extra_info("socket"))
    if not hasattr(select, "poll"):  # eventlet removes `poll` and makes `select` green
        return select.select([sock, woken], [], [])[0]
    poll = select.poll()
    by_descriptor = {each.fileno(): each for each in (sock, woken)}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll()]


def start_tasks(
    connection: Connection,
    liveness: InstanceLiveness,
    freed: Callable[[], object],
    tasks: set[object],
) -> Http2:
    """Start HTTP/2 in the running event loop. `tasks` keeps the tasks alive, since asyncio has only
    weak references to them."""
    connection.http2 = http2 = Http2(connection, liveness, freed)
    for work in (_read, _write):
        _spawn(work, http2, connection, tasks)
    return http2


async def _read(http2: Http2, stream: Any) -> None:
    """What the reading task of a connection runs."""
    try:
        while data := await stream.read(None):
            while http2.receive(data):
                data = b""
                await anyio.lowlevel.checkpoint()  # gives other tasks a turn
            if http2.over:
                return
        http2.end()
    except httpx.TransportError as error:
        http2.end(error)
    except BaseException:  # the event loop is ending
        http2.close()
        raise


async def _write(http2: Http2, stream: Any) -> None:
    """The code that the writing task of a connection runs."""
    try:
        while True:
            woken = anyio.Event()
            while not http2.over and _arrives(stream):  # as in `_serve`
                await anyio.lowlevel.checkpoint()
            if data := http2.outgoing(woken.set):
                await stream.write(data, None)
                http2.written(len(data))
            elif http2.over:
                return
            else:
                await woken.wait()
    except httpx.TransportError as error:
        http2.writing_failed(error)


def _arrives(stream: Any) -> bool:
    """Return True if something has arrived that the reading task has not taken yet."""
    if isinstance(stream, LoopConnection):
        return stream.readable()
    try:  # on trio the reading task itself receives from the kernel
        stream.extra_info("socket").recv(1, socket.MSG_PEEK)
    except OSError:
        return False
    return True


def _spawn(
    work: Callable[[Http2, Any], Any], http2: Http2, stream: Any, tasks: set[object]
) -> None:
    """Start a task that does not inherit the context or the cancel scope of a caller."""
    if isinstance(stream, LoopConnection):
        context = contextvars.Context()
        task = asyncio.get_running_loop().create_task(work(http2, stream), context=context)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return
    from trio.lowlevel import spawn_system_task  # noqa: PLC0415  # installed, since it runs

    spawn_system_task(work, http2, stream)
