"""The common base of all connections, on threads, asyncio and trio."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from .._compat import httpx
from .addresses import Address, Dial, aresolve, open_socket, race
from .timeouts import seconds_now
from .tls import Tls

if TYPE_CHECKING:
    from .http2 import Http2

__all__ = [
    "CLOSED",
    "SLICE",
    "WRITE",
    "AsyncConnection",
    "Connection",
    "ConnectionInfo",
    "InstanceLiveness",
    "PeerLeft",
]

SLICE = 64 * 1024
"""After this number of bytes that were read without waiting, other tasks get a turn."""
WRITE = 2 * 1024
"""When sent bytes are counted, this number is added for each write, since even a short write takes
time."""

CLOSED = "the connection was closed here"


class PeerLeft(Exception):
    """The cause (`__cause__`) of an error if an HTTP/2 server has ended a request with
    REFUSED_STREAM or GOAWAY (RFC 9113, 6.8)."""

    def __init__(self, *, unprocessed: bool) -> None:
        """`unprocessed` is True if the server says that it has not begun to process the request."""
        super().__init__()
        self.unprocessed = unprocessed


class InstanceLiveness:
    """Records whether the connections to one instance may be dead, although no error has been seen
    on them.

    If a reused connection ends before any bytes of the response have arrived, it was already dead
    while it was idle: the process was replaced, or a middlebox has dropped the connection.
    Connections that were opened before this was noticed may be dead too, so a retry must not use
    them (urllib3 and Go's net/http open a new connection as well). After a timeout the same
    applies, but only if nothing has arrived on any connection meanwhile. Otherwise the request is
    just slow.
    """

    __slots__ = ("generation", "responses")

    def __init__(self) -> None:
        self.responses: int = 0
        """A number that increases when something arrives on any of the connections."""
        self.generation: int = 0
        """Connections of an earlier generation are not used for another request."""


class Connection(ABC):
    """One connection to an instance: it sends and receives bytes.

    A connection raises errors of httpx: ReadError, WriteError and the timeouts. The coroutines of a
    connection for threads block, and are never suspended. Closing is never a coroutine, so a
    cancellation cannot interrupt it.
    """

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_poll",
        "_sock",
        "closed",
        "ended",
        "generation",
        "http2",
        "idle_since",
        "info",
        "peer",
        "protocols",
        "served",
        "single_use",
        "tls",
        "uses",
    )

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._arrived = b""
        """Bytes that have been received, and not read yet."""
        self._poll: select.poll | None = None
        """Polls the socket for bytes that have arrived."""
        self.ended: bool = False
        """True if nothing more will arrive."""
        self.closed: bool = False
        """True once this side has closed the connection."""
        self.tls: Tls | None = None
        self.protocols: Sequence[str] = ()
        """The protocols that TLS offers to the instance (ALPN)."""
        self.peer: str | None = None
        """The IP address of the other end."""
        self.single_use: bool = False
        """True if the connection was opened with another TLS name than the usual one for the
        instance."""
        self.served: int = 0
        """The number of responses received."""
        self.generation: int = 0
        self.idle_since: float = 0.0
        self.uses: int = 0
        """The number of times that the connection was leased."""
        self.http2: Http2 | None = None
        """The state of HTTP/2; None for HTTP/1.1."""
        self.info: ConnectionInfo = ConnectionInfo(self)

    @property
    def alpn(self) -> str | None:
        """The protocol that was chosen in the TLS handshake (ALPN)."""
        return None if self.tls is None else self.tls.object.selected_alpn_protocol()

    @property
    def clean_end(self) -> bool:
        """False if a TLS connection ended without close_notify."""
        return self.tls is None or self.tls.clean_end

    @abstractmethod
    async def open(self, dial: Dial, timeout: float | None) -> None:
        """Connect to the first address that accepts a connection. Raises ConnectError or
        ConnectTimeout."""

    async def start_tls(self, context: ssl.SSLContext, name: str, timeout: float | None) -> None:
        """Start TLS. Raises ConnectError or ConnectTimeout."""
        tls = Tls(context, name, self.protocols)
        try:
            done = tls.shake_hands(None)
            while True:
                if out := tls.outgoing():
                    await self.write_all(out, timeout)
                if done:
                    break
                data = await self.read(timeout)
                try:
                    done = tls.shake_hands(data)
                except httpx.ConnectError:
                    with contextlib.suppress(httpx.WriteError, httpx.WriteTimeout):
                        if out := tls.outgoing():  # a TLS alert with the reason
                            await self.write_all(out, timeout)
                    raise
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise httpx.ConnectTimeout("the TLS handshake took too long") from error
        except (httpx.ReadError, httpx.WriteError) as error:
            raise httpx.ConnectError(str(error)) from error.__cause__
        data, self.tls = self._arrived, tls
        self._arrived = tls.decrypt(data or None)

    @abstractmethod
    async def read(self, timeout: float | None, *, everything: bool = False) -> bytes:
        """Return bytes as soon as there are any; b"" at the end. Without `everything`, at most
        SLICE bytes are returned. Set `everything` if processing many bytes at once takes little
        time. Raises ReadTimeout or ReadError."""

    @abstractmethod
    async def write(self, data: bytes | memoryview, timeout: float | None) -> bool:
        """Send all of the data. On threads, returns False if something has arrived before all of it
        was sent. Then call `read`, and continue to send with `write(b"")`. Raises WriteTimeout or
        WriteError."""

    @abstractmethod
    async def write_all(self, data: bytes, timeout: float | None) -> None:
        """Send all of the data, even if something arrives meanwhile. Raises WriteTimeout or
        WriteError."""

    @abstractmethod
    def readable(self) -> bool:
        """Return True if unread bytes, or the end, have arrived. Never waits."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection at once. A second call does nothing."""

    def shut(self) -> None:
        """Shut the connection down, which wakes a thread that waits for it. Any thread may call
        this method. The file descriptor stays open."""
        self.close()

    @abstractmethod
    def detach_after_fork(self) -> None:
        """In a forked child: release the parent's socket, without sending anything."""

    def _socket(self, error: type[httpx.NetworkError]) -> socket.socket:
        if self._sock is None:
            raise error(CLOSED)
        return self._sock

    def _take(self, data: bytes) -> None:
        """Store the bytes that were received; b"" is the end."""
        self.ended = not data
        if (tls := self.tls) is not None:
            data = tls.decrypt(data)
            self.ended = tls.ended
        self._arrived = data

    def _opened(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other end has already closed it
            self.peer = sock.getpeername()[0]
        if hasattr(select, "poll"):  # eventlet removes it
            self._poll = poll = select.poll()
            poll.register(sock, select.POLLIN)

    def extra_info(self, name: str) -> object:
        """Return the value that httpcore's network streams have under this name."""
        sock = self._sock
        if name == "socket":
            return sock
        if name == "ssl_object":
            return None if self.tls is None else self.tls.object
        if name == "is_readable":
            return self.closed or self.readable()
        with contextlib.suppress(OSError):
            if sock is not None and name == "server_addr":
                return sock.getpeername()
            if sock is not None and name == "client_addr":
                return sock.getsockname()
        return None


class AsyncConnection(Connection):
    """The common base of connections for asyncio and for trio."""

    __slots__ = ()

    async def open(self, dial: Dial, timeout: float | None) -> None:
        """Connect to the first address that accepts a connection. Raises ConnectError or
        ConnectTimeout."""

        async def connect(address: Address) -> socket.socket:
            sock = None
            try:
                sock = open_socket(address, dial.options)
                with anyio.fail_after(seconds_now(timeout)):
                    await self._connect(sock, address)
            except BaseException as error:
                if sock is not None:
                    sock.close()
                if isinstance(error, TimeoutError) and not error.errno:
                    raise httpx.ConnectTimeout("no address answered in time") from error
                if isinstance(error, OSError):
                    raise httpx.ConnectError(str(error)) from error
                raise
            return sock

        self._sock = sock = await race(await aresolve(dial, timeout), connect)
        try:
            self._check_open()
            self._opened(sock)
            await self._attach(sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise httpx.ConnectError(str(error)) from error
            raise
        self._check_open()  # if this raises, the event loop closes the socket

    def _check_open(self) -> None:
        """Raise ConnectError if this side has closed the connection while it was opened."""
        if self.closed:
            raise httpx.ConnectError(CLOSED)

    @abstractmethod
    async def _connect(self, sock: socket.socket, address: Address) -> None:
        """Connect a socket. Raises OSError."""

    async def _attach(self, sock: socket.socket) -> None:
        """Add a connected socket to the event loop. Raises OSError."""

    @property
    @abstractmethod
    def flushed(self) -> bool:
        """True if the kernel has taken everything that was written."""

    async def write_all(self, data: bytes, timeout: float | None) -> None:
        """Send all of the data. Raises WriteTimeout or WriteError."""
        await self.write(data, timeout)

    def readable(self) -> bool:
        """Return True if unread bytes, or the end, have arrived. Never waits."""
        if self._arrived or self.ended or self._sock is None:
            return True
        # The kernel may have received something that the event loop has not.
        if self._poll is not None and not self._poll.poll(0):
            return False
        try:
            data = self._sock.recv(SLICE)
        except (BlockingIOError, InterruptedError):
            return False
        except (OSError, ValueError):
            return True
        self._take(data)
        return bool(self._arrived) or self.ended


class ConnectionInfo:
    """The connection of a response: `extensions["network_stream"]`.

    `get_extra_info` returns its properties (`"server_addr"`, `"client_addr"`, `"socket"`,
    `"ssl_object"`). It neither reads nor writes, since the connection may already carry the next
    request.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def peer(self) -> str | None:
        """The IP address of the other end."""
        return self._connection.peer

    def get_extra_info(self, info: str) -> object:
        """Return the value that httpcore's network streams have under this name."""
        return self._connection.extra_info(info)
