"""Connections for asyncio, also on uvloop: a protocol, optionally with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import time
from collections.abc import Sized
from typing import cast

from lbclient._internal.deadline import STOOD_STILL

from .._compat import httpx
from .addresses import Address
from .connection import CLOSED, SLICE, WRITE, AsyncConnection
from .timeouts import DeadlineTimeout, seconds_now

__all__ = ["LoopConnection"]

_ENOUGH = 256 * 1024
"""When this number of bytes is unread, reading from the socket pauses."""
_MOMENT = 0.001
"""After sending without waiting for this number of seconds, other tasks get a turn."""
_LOOK = 0.05


class LoopConnection(AsyncConnection, asyncio.Protocol):
    """Sends and receives the bytes of one connection. At most one task reads and one task writes at
    a time."""

    __slots__ = (
        "_blocked",
        "_broken",
        "_due",
        "_loop",
        "_paused",
        "_reader",
        "_ready",
        "_sent_at_once",
        "_served_at_once",
        "_stalled",
        "_timer",
        "_transport",
        "_turn_at",
        "_wakes",
        "_writer",
    )

    # Repeated: a type checker may otherwise infer other types from the assignments below.
    closed: bool
    ended: bool

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._broken: Exception | None = None
        """The error that ended the connection; None if the peer has closed it in an orderly way."""
        self._paused = self._blocked = False
        self._reader: asyncio.Future[httpx.ReadTimeout | None] | None = None
        self._writer: asyncio.Future[httpx.WriteTimeout | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        """One timer for many waits of the reader. It is not set anew for each wait, since most
        waits are short, but only when it fires."""
        self._due = self._wakes = math.inf
        """The time when the reader's wait ends, and the time when the timer fires."""
        self._stalled: asyncio.TimerHandle | None = None
        """The timer of the writer."""
        self._served_at_once = 0
        """The number of bytes that were read since the last wait."""
        self._sent_at_once = 0
        """The number of bytes that were sent since other tasks had a turn."""
        self._turn_at = 0.0
        """The time when other tasks last had a turn."""
        self._ready: Sized | None = getattr(self._loop, "_ready", None)
        """The callbacks that asyncio is about to run. uvloop has no such attribute."""

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is established."""
        # With a limit of 0, a write ends when the kernel has taken all data.
        cast("asyncio.Transport", transport).set_write_buffer_limits(0)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if (tls := self.tls) is not None:
            data = tls.decrypt(data)
            if (out := tls.outgoing()) and self._transport is not None:
                self._transport.write(out)
            if tls.ended:
                self.ended = True
            elif not data:
                return
        self._arrived = self._arrived + data if self._arrived else data
        if len(self._arrived) > _ENOUGH and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if (reader := self._reader) is not None and not reader.done():
            reader.set_result(None)

    def eof_received(self) -> bool:
        """The other end sends no more data. Returns True, since the other end may still receive
        data."""
        if self.tls is not None:
            self._arrived += self.tls.decrypt(b"")
        self._end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed. Data that the kernel has received before can still be read."""
        if exc is not None:
            self._broken = self._broken or exc
            if not self.closed and self._sock is not None:
                with contextlib.suppress(OSError, ValueError):
                    while data := self._sock.recv(SLICE):
                        self._arrived += data if self.tls is None else self.tls.decrypt(data)
        self._end()
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def pause_writing(self) -> None:
        """The kernel accepts no more bytes at the moment."""
        self._blocked = True

    def resume_writing(self) -> None:
        """The kernel has taken everything."""
        self._blocked = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # Called by the transport.

    async def _connect(self, sock: socket.socket, address: Address) -> None:
        """Connect a socket. uvloop's own `sock_connect` loses the zone of an IPv6 address."""
        code = sock.connect_ex(address.to)
        if code == errno.EINPROGRESS:
            connected: asyncio.Future[None] = self._loop.create_future()
            self._loop.add_writer(sock, _wake, connected)
            try:
                await connected
            finally:
                self._loop.remove_writer(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    async def _attach(self, sock: socket.socket) -> None:
        # `_transport` is not set in `connection_made`: uvloop would not notice that `close` aborts
        # the transport.
        self._transport, _ = await self._loop.create_connection(lambda: self, sock=sock)
        if self.closed:
            self._transport.abort()

    @property
    def flushed(self) -> bool:
        """True if the kernel has taken everything that was written."""
        return not self._blocked

    async def read(self, timeout: float | None, *, everything: bool = False) -> bytes:
        """Return bytes as soon as there are any; b"" at the end. Without `everything`, at most
        SLICE bytes are returned. Set `everything` if processing many bytes at once takes little
        time. Raises ReadTimeout or ReadError."""
        if self._arrived or self.ended:
            seconds_now(timeout, httpx.ReadTimeout)
            if self._served_at_once >= SLICE:
                self._served_at_once = 0
                await asyncio.sleep(0)
        else:
            seconds = timeout
            if timeout.__class__ is DeadlineTimeout:
                seconds = seconds_now(timeout, httpx.ReadTimeout)
            self._served_at_once = 0
            self._reader = reader = self._loop.create_future()
            self._due = due = math.inf if seconds is None else time.monotonic() + seconds
            if due < self._wakes:
                self._set_timer()
            try:
                late = await reader
            finally:
                self._reader = None
            if late is not None:
                raise late
        data = self._arrived
        if len(data) > SLICE and not everything:  # asyncio receives up to 256 KiB at a time
            data, self._arrived = data[:SLICE], data[SLICE:]
        else:
            self._arrived = b""
        self._served_at_once += len(data)
        if self._paused and not self._arrived and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        if not data:
            self._check_end()
        return data

    async def write(self, data: bytes | memoryview, timeout: float | None) -> bool:
        """Send all of the data. Raises WriteTimeout or WriteError."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise httpx.WriteError(str(self._broken or CLOSED)) from self._broken
        transport.write(data if self.tls is None else self.tls.encrypt(data))
        self._sent_at_once += len(data) + WRITE
        if self._blocked:
            self._sent_at_once = 0
            await self._drained(seconds_now(timeout, httpx.WriteTimeout))
            return True
        if self._sent_at_once >= SLICE:
            self._sent_at_once = 0
            # If no other task is waiting, to yield after each 64 KiB would take as long as to send
            # the data.
            now = time.monotonic()
            if self._ready is None or self._ready or now - self._turn_at >= _MOMENT:
                self._turn_at = now
                await asyncio.sleep(0)
        if timeout.__class__ is DeadlineTimeout:
            seconds_now(timeout, httpx.WriteTimeout)
        return True

    def _take(self, data: bytes) -> None:
        if data:
            self.data_received(data)
        else:
            self.eof_received()

    def close(self) -> None:
        """Close the connection. A task that reads or writes gets an error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.closed:
            return
        self._broken = self._broken or ConnectionAbortedError(CLOSED)
        transport = self._transport
        try:
            if transport is not None:
                if self.tls is not None and not transport.is_closing():
                    transport.write(self.tls.farewell())
                transport.abort()
        except RuntimeError:  # the loop has been closed
            if self._sock is not None:
                self._sock.close()
        self.closed = True
        self._end()

    def detach_after_fork(self) -> None:
        """Release the parent's socket.

        The child's copy of the event loop shares its selector with the parent's event loop. So to
        close the socket here could disturb the parent. Instead, the file descriptor stays open, but
        is redirected to `/dev/null`.
        """
        self.closed = True
        if self._sock is not None and (descriptor := self._sock.fileno()) >= 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)
            os.close(null)

    def _check_end(self) -> None:
        """Raise ReadError if an error has ended the connection."""
        if self._broken is not None:
            raise httpx.ReadError(str(self._broken)) from self._broken
        if self.tls is not None:
            self.tls.raise_failure()

    def _end(self) -> None:
        self.ended = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _set_timer(self) -> None:
        """Set the timer for the end of the reader's wait."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._due - time.monotonic(), self._tick)
        self._wakes = self._due

    def _tick(self) -> None:
        """End the reader's wait if its time is up. The timer may fire a little early, since
        uvloop's clock lags behind."""
        self._timer, self._wakes = None, math.inf
        reader, now = self._reader, time.monotonic()
        if reader is None or reader.done() or self._due == math.inf:
            return
        if now < self._due:
            self._set_timer()
        elif now - self._due > STOOD_STILL:
            # After a process was suspended, timers fire before data is received: check once more.
            self._due = now + _LOOK
            self._set_timer()
        else:
            reader.set_result(httpx.ReadTimeout("no bytes arrived in time"))

    async def _drained(self, seconds: float | None) -> None:
        """Wait until the kernel has taken everything."""
        self._writer = writer = self._loop.create_future()
        if seconds is not None:
            self._stall(writer, time.monotonic() + seconds)
        try:
            late = await writer
        finally:
            self._writer = None
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None
        if late is not None:
            raise late
        if self._broken is not None:
            raise httpx.WriteError(str(self._broken)) from self._broken

    def _stall(self, writer: asyncio.Future[httpx.WriteTimeout | None], due: float) -> None:
        """End a wait of the writer if its time is up."""
        left = due - time.monotonic()
        if left > 0:
            self._stalled = self._loop.call_later(left, self._stall, writer, due)
        elif not writer.done():
            late = httpx.WriteTimeout("the instance did not read the request in time")
            writer.set_result(late)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
