"""Connections for threads: a socket, optionally with TLS."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Sequence

from lbclient.endpoint.classifier import more_telling

from .._compat import httpx
from .addresses import ATTEMPT_DELAY, Address, Dial, open_socket, resolve
from .connection import CLOSED, Connection
from .timeouts import DeadlineTimeout, seconds_now
from .tls import Tls

__all__ = ["SocketConnection"]

_READ = 64 * 1024


class SocketConnection(Connection):
    """Sends and receives the bytes of one connection. One thread uses the connection at a time; any
    thread may close it."""

    __slots__ = ("_dialled", "_failure", "_reset", "_unsent")

    # Repeated: a type checker may otherwise infer other types from the assignments below.
    closed: bool
    ended: bool
    tls: Tls | None

    def __init__(self) -> None:
        super().__init__()
        self._dialled: list[socket.socket] = []
        self._failure: httpx.WriteError | None = None
        """The error with which sending failed. It is stored while there are still bytes to read."""
        self._reset: BaseException | None = None
        """The error that ended the connection. It is stored until everything that arrived before
        has been read."""
        self._unsent = memoryview(b"")

    async def open(self, dial: Dial, timeout: float | None) -> None:
        """Connect to the first address that accepts a connection. Raises ConnectError or
        ConnectTimeout."""
        try:
            self._sock = sock = self._race(resolve(dial, timeout), dial, timeout)
            self._dialled.remove(sock)
        finally:
            while self._dialled:
                self._dialled[-1].close()
                self._dialled.pop()
        self._opened(sock)
        if self.closed:
            sock.close()
            raise httpx.ConnectError(CLOSED)

    async def read(
        self,
        timeout: float | None,
        *,
        everything: bool = False,  # noqa: ARG002  # each read receives all that fits
    ) -> bytes:
        """Return bytes as soon as there are any; b"" at the end. Raises ReadTimeout or
        ReadError."""
        if data := self._arrived:
            seconds_now(timeout, httpx.ReadTimeout)
            self._arrived = b""
            return data
        if (tls := self.tls) is None:
            if not self.ended and (data := self._receive(timeout)):
                return data
        else:
            while not tls.ended:
                data = tls.decrypt(self._receive(timeout))
                with contextlib.suppress(httpx.WriteError):  # the next read raises the error
                    self._flush(tls, timeout)
                if data:
                    return data
            tls.raise_failure()
        if self._reset is not None and not (tls and tls.clean_end):
            raise httpx.ReadError(str(self._reset)) from self._reset
        return b""

    async def write(  # noqa: C901  # most requests need only the first send
        self, data: bytes | memoryview, timeout: float | None
    ) -> bool:
        """Send all of the data. Returns False if something has arrived before all of it was sent.
        Then call `read`, and continue to send with `write(b"")`. Raises WriteTimeout or WriteError.
        """
        if self._failure is not None:
            raise self._failure
        if self.closed:
            raise httpx.WriteError(CLOSED)
        if type(timeout) is DeadlineTimeout:
            seconds_now(timeout, httpx.WriteTimeout)
        sealed = data if self.tls is None or not data else self.tls.encrypt(data)
        try:
            if sealed:
                if (sent := self._send(sealed)) == len(sealed):
                    return True  # in nearly all cases
                self._unsent = memoryview(sealed)[sent:]
            while True:
                self._unsent = self._unsent[self._send(self._unsent) :]
                if not self._unsent:
                    return True
                if self._hears(timeout):
                    return False
        except httpx.WriteError as error:
            # A server that rejects a body may respond and close the connection. Its response can
            # still be read.
            if not self._take_in():
                raise
            self._failure, self._reset = error, self._reset or error.__cause__
            return False

    async def write_all(self, data: bytes, timeout: float | None) -> None:
        """Send all of the data, even if something arrives meanwhile."""
        rest = memoryview(data if self.tls is None else self.tls.encrypt(data))
        while rest := rest[self._send(rest) :]:
            self._await_writable(timeout)

    def readable(self) -> bool:
        """Return True if unread bytes, or the end, have arrived. Never waits."""
        if self._arrived or self.ended or self._sock is None:
            return True
        if not (_arrives(self._sock, 0.0) if (poll := self._poll) is None else poll.poll(0)):
            return False
        return self.tls is None or self._take_in()

    def shut(self) -> None:
        """Shut the connection down, which wakes a thread that waits for it. The file descriptor
        stays open. Otherwise its number could soon belong to another file, while that thread still
        uses the number."""
        self.closed = True
        for sock in (self._sock, *self._dialled):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection. A thread that waits for it is woken."""
        sock = self._sock
        if sock is not None and not self.closed and self.tls is not None:
            with contextlib.suppress(OSError, httpx.WriteError, httpx.WriteTimeout):
                sock.send(self.tls.farewell())
        self.shut()
        for opened in (sock, *self._dialled):
            if opened is not None:
                opened.close()

    def detach_after_fork(self) -> None:
        """Release the parent's socket."""
        self.closed = True
        if self._sock is not None:
            self._sock.close()

    def _race(
        self, addresses: Sequence[Address], dial: Dial, timeout: float | None
    ) -> socket.socket:
        """Return the first socket that is connected. `_dialled` contains all sockets, so that they
        can be closed."""
        waiting, failure = list(addresses), None
        seconds = seconds_now(timeout)
        end = None if seconds is None else time.monotonic() + seconds
        begin_next = 0.0
        pending: list[socket.socket] = []
        while waiting or pending:
            now = time.monotonic()
            if end is not None and now >= end:
                failure = more_telling(failure, httpx.ConnectTimeout("no address answered in time"))
                break
            if waiting and (now >= begin_next or not pending):
                try:
                    self._dialled += map(open_socket, (waiting[0],), (dial.options,))
                    pending.append(_begun(self._dialled[-1], waiting[0]))
                except OSError as error:
                    failure = more_telling(failure, _connect_error(error))
                else:
                    begin_next = now + ATTEMPT_DELAY
                del waiting[0]
                continue
            until = [at for at in (end, begin_next if waiting else None) if at is not None]
            for sock in _connected(pending, min(until) - now if until else None):
                pending.remove(sock)
                if not (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    return sock
                failure = more_telling(failure, _connect_error(OSError(code, os.strerror(code))))
                begin_next = 0.0
        raise failure or httpx.ConnectError("there is no address to connect to")

    def _receive(self, timeout: float | None) -> bytes:
        if (sock := self._sock) is None:
            raise httpx.ReadError(CLOSED)
        poll = self._poll
        try:
            while True:
                seconds = timeout
                if type(timeout) is DeadlineTimeout:
                    seconds = seconds_now(timeout, httpx.ReadTimeout)
                milliseconds = None if seconds is None else seconds * 1000
                if not (_arrives(sock, seconds) if poll is None else poll.poll(milliseconds)):
                    raise httpx.ReadTimeout("no bytes arrived in time")
                try:
                    data = sock.recv(_READ)
                    break
                except BlockingIOError:
                    continue
        except (OSError, ValueError) as error:
            raise httpx.ReadError(CLOSED if self.closed else str(error)) from error
        if not data:
            if self.closed:  # another thread has shut the connection, not the peer
                raise httpx.ReadError(CLOSED)
            self.ended = True
        return data

    def _send(self, data: bytes | memoryview) -> int:
        """Send as many bytes as the kernel accepts now. Returns their number."""
        if (sock := self._sock) is None:
            raise httpx.WriteError(CLOSED)
        try:
            return sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise httpx.WriteError(CLOSED if self.closed else str(error)) from error

    def _flush(self, tls: Tls, timeout: float | None) -> None:
        """Send the bytes that TLS itself wants to send."""
        out = memoryview(tls.outgoing())
        # If nothing is to be sent, `send` is not called: it would consume an error of the kernel (a
        # reset), which the next read must raise.
        while out and (out := out[self._send(out) :]):
            self._await_writable(timeout)

    def _await_writable(self, timeout: float | None) -> None:
        seconds = seconds_now(timeout, httpx.WriteTimeout)
        sock = self._socket(httpx.WriteError)
        if not _ready(sock, seconds, to_read=False, to_write=True):
            raise httpx.WriteTimeout("the instance did not read the request in time")

    def _hears(self, timeout: float | None) -> bool:
        """Wait until more bytes can be sent, or something has arrived. Returns True if something
        has arrived."""
        sock = self._socket(httpx.WriteError)
        while True:
            seconds = seconds_now(timeout, httpx.WriteTimeout)
            ready = _ready(sock, seconds, to_read=True, to_write=True)
            if not ready:
                raise httpx.WriteTimeout("the instance did not read the request in time")
            if ready & _READABLE and self._take_in():
                return True
            if ready & _WRITABLE:
                return False

    def _take_in(self) -> bool:
        """Receive the bytes that have arrived, without waiting. Returns True if there is something
        to read."""
        sock = self._sock
        if sock is None or self._arrived or self.ended:
            return True
        try:
            data = sock.recv(_READ)
        except BlockingIOError:
            return False
        except OSError as error:
            self.ended, self._reset = True, error
            return False
        self._take(data)
        return bool(self._arrived) or self.ended


_READABLE, _WRITABLE = 1, 2
_BEGUN = {0, errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", 0)}
"""The results of `connect_ex` for a connection that is being opened. The last one is for Windows.
"""


def _begun(sock: socket.socket, address: Address) -> socket.socket:
    """Create a socket and begin to connect it. Raises OSError."""
    code = sock.connect_ex(address.to)
    if code not in _BEGUN:
        raise OSError(code, os.strerror(code))
    return sock


def _connected(sockets: Sequence[socket.socket], seconds: float | None) -> Sequence[socket.socket]:
    """Return the sockets that have connected or failed within the time."""
    if not hasattr(select, "poll"):  # as below
        _, connected, failed = select.select([], sockets, sockets, seconds)
        return list({*connected, *failed})  # Windows reports failures only in the third list
    poll = select.poll()
    by_descriptor = {sock.fileno(): sock for sock in sockets}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLOUT)
    found = poll.poll(None if seconds is None else max(0.0, seconds) * 1000)
    return [by_descriptor[descriptor] for descriptor, _ in found]


def _connect_error(error: OSError) -> httpx.ConnectError:
    made = httpx.ConnectError(str(error))
    made.__cause__ = error
    return made


def _arrives(sock: socket.socket, seconds: float | None) -> bool:
    """Wait until something has arrived, or the connection has ended, on systems without `poll`."""
    return bool(_ready(sock, seconds, to_read=True, to_write=False))


def _ready(sock: socket.socket, seconds: float | None, *, to_read: bool, to_write: bool) -> int:
    """Wait until a socket can be read or written. Returns `_READABLE`, `_WRITABLE` or their sum; 0
    if the time is over."""
    if not hasattr(select, "poll"):  # as above; eventlet makes `select` green
        watched = [sock] if to_read else [], [sock] if to_write else []
        to_read_now, to_write_now, _ = select.select(*watched, [], seconds)
        return len(to_read_now) * _READABLE + len(to_write_now) * _WRITABLE
    poll = select.poll()
    poll.register(sock, to_read * select.POLLIN | to_write * select.POLLOUT)
    events = poll.poll(None if seconds is None else max(0.0, seconds) * 1000)
    if not events:
        return 0
    found = events[0][1]
    broken = found & ~(select.POLLIN | select.POLLOUT)
    readable = bool(to_read and (found & select.POLLIN or broken))
    return readable * _READABLE + bool(to_write and (found & select.POLLOUT or broken)) * _WRITABLE
