"""Connections for trio: a socket, optionally with TLS."""

from __future__ import annotations

import contextlib
import math
import socket

import trio

from lbclient._internal.deadline import STOOD_STILL

from .._compat import httpx
from .addresses import Address
from .connection import CLOSED, SLICE, WRITE, AsyncConnection
from .timeouts import seconds_now

__all__ = ["TrioConnection"]

_LOOK = 0.05


class TrioConnection(AsyncConnection):
    """Sends and receives the bytes of one connection. At most one task reads and one task writes at
    a time."""

    __slots__ = ("_asked", "_raw", "_sent_at_once", "_served_at_once", "_unsent")

    # Repeated: a type checker may otherwise infer other types from the assignments below.
    closed: bool
    ended: bool

    def __init__(self) -> None:
        super().__init__()
        self._asked = False
        """True after a write, until something is read."""
        self._raw = b""
        """Bytes that have been received, and not read yet."""
        self._unsent = memoryview(b"")
        """Bytes that the kernel has not taken yet. With TLS, they are in the order of its records.
        """
        self._served_at_once = 0
        """The number of bytes that were read since the last wait."""
        self._sent_at_once = 0
        """The number of bytes that were sent since other tasks had a turn."""

    async def _connect(self, sock: socket.socket, address: Address) -> None:
        await trio.socket.from_stdlib_socket(sock).connect(address.to)

    @property
    def flushed(self) -> bool:
        """True if the kernel has taken everything that was written."""
        return not self._unsent

    async def read(
        self,
        timeout: float | None,
        *,
        everything: bool = False,  # noqa: ARG002  # after each SLICE, other tasks get a turn anyway
    ) -> bytes:
        """Return up to SLICE bytes as soon as there are any; b"" at the end. Raises ReadTimeout or
        ReadError."""
        if self._served_at_once >= SLICE:
            self._served_at_once = 0
            await trio.lowlevel.checkpoint()
        if self._arrived:
            seconds_now(timeout, httpx.ReadTimeout)
        elif (tls := self.tls) is None:
            self._arrived = b"" if self.ended else await self._receive(timeout)
        else:
            while not (self._arrived or tls.ended):
                self._arrived = tls.decrypt(await self._receive(timeout))
                # Bytes that TLS itself wants to send are sent only if this needs no waiting:
                # another task may be sending, and the reading task may be cancelled whenever it
                # waits.
                if out := tls.outgoing():
                    self._queue(out)
                    with contextlib.suppress(
                        OSError, httpx.WriteError
                    ):  # the next read raises the error
                        self._push(self._socket(httpx.WriteError))
            if not self._arrived:
                tls.raise_failure()
        data, self._arrived = self._arrived, b""
        self._served_at_once += len(data)
        if self.closed and not data:
            raise httpx.ReadError(CLOSED)
        return data

    async def write(self, data: bytes | memoryview, timeout: float | None) -> bool:
        """Send all of the data. Raises WriteTimeout or WriteError."""
        self._asked = True
        if self.closed:
            raise httpx.WriteError(CLOSED)
        await self._send(data if self.tls is None else self.tls.encrypt(data), timeout)
        self._sent_at_once += len(data) + WRITE
        if self._sent_at_once >= SLICE:
            self._sent_at_once = 0
            await trio.lowlevel.checkpoint()
        return True

    def readable(self) -> bool:
        """Return True if unread bytes, or the end, have arrived. Never waits."""
        return bool(self._raw) or super().readable()

    def close(self) -> None:
        """Close the connection. A task that reads or writes gets an error."""
        sock = self._sock
        if self.closed or sock is None:
            self.closed = True
            return
        self.closed = self.ended = True
        with contextlib.suppress(OSError, httpx.WriteError):
            if self.tls is not None:
                sock.send(self.tls.farewell())
        with contextlib.suppress(RuntimeError):  # outside of trio, no task waits for the socket
            trio.lowlevel.notify_closing(sock)
        sock.close()

    def detach_after_fork(self) -> None:
        """In a forked child: release the parent's socket, without sending anything."""
        self.closed = True
        if self._sock is not None:
            self._sock.close()

    async def _receive(self, timeout: float | None) -> bytes:
        sock = self._socket(httpx.ReadError)
        # The time is computed only once: bytes that arrive during a wait are accepted, even if this
        # process was suspended.
        seconds = seconds_now(timeout, httpx.ReadTimeout)
        try:
            while not self._raw:
                try:
                    if not (data := sock.recv(SLICE)):
                        self.ended = True
                        break
                    self._raw = data
                    if self._asked:  # there was no wait, so give other tasks a turn
                        await trio.lowlevel.checkpoint()
                except (BlockingIOError, InterruptedError):
                    self._asked = False
                    self._served_at_once = 0
                    await _wait_readable(sock, _limit(seconds))
        except trio.TooSlowError as error:
            raise httpx.ReadTimeout("no bytes arrived in time") from error
        except (OSError, ValueError, trio.ClosedResourceError) as error:
            raise httpx.ReadError(CLOSED if self.closed else str(error)) from error
        self._asked = False
        data, self._raw = self._raw, b""
        return data

    async def _send(self, data: bytes | memoryview, timeout: float | None) -> None:
        sock = self._socket(httpx.WriteError)
        self._queue(data)
        try:
            seconds = seconds_now(timeout, httpx.WriteTimeout)
            while not self._push(sock):
                with trio.fail_after(_limit(seconds)):
                    await trio.lowlevel.wait_writable(sock)
                seconds = seconds_now(timeout, httpx.WriteTimeout)
        except trio.TooSlowError as error:
            raise httpx.WriteTimeout("the instance did not read the request in time") from error
        except (OSError, ValueError, trio.ClosedResourceError) as error:
            raise httpx.WriteError(CLOSED if self.closed else str(error)) from error

    def _queue(self, data: bytes | memoryview) -> None:
        if data:
            self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)

    def _push(self, sock: socket.socket) -> bool:
        """Send as many bytes as the kernel accepts now. Returns True once everything has been sent.
        Raises OSError."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while self._unsent:
                self._unsent = self._unsent[sock.send(self._unsent) :]
        return not self._unsent


async def _wait_readable(sock: socket.socket, seconds: float) -> None:
    """Wait until the socket is readable. Raises trio.TooSlowError."""
    end = trio.current_time() + seconds
    with trio.move_on_at(end):
        await trio.lowlevel.wait_readable(sock)
        return
    if trio.current_time() - end < STOOD_STILL:
        raise trio.TooSlowError
    # After a process was suspended, timers fire before data is received: check once more.
    with trio.fail_after(_LOOK):
        await trio.lowlevel.wait_readable(sock)


def _limit(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
