"""What every connection knows of itself, whichever driver moves its bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._compat import httpx
from .addresses import Dial
from .tls import Tls

if TYPE_CHECKING:
    from .http2 import Http2

__all__ = [
    "SLICE",
    "WRITE",
    "AsyncConnection",
    "Connection",
    "ConnectionInfo",
    "InstanceLiveness",
    "PeerLeft",
]

SLICE = 64 * 1024
"""So many bytes are read without a wait before other tasks get a turn."""
WRITE = 2 * 1024
"""A write counts as so many bytes more, since it takes time, however short it is."""


class PeerLeft(Exception):
    """The cause of an error by which an HTTP/2 peer has ended a request in order: by REFUSED_STREAM
    or GOAWAY (RFC 9113, 6.8)."""

    def __init__(self, *, unprocessed: bool) -> None:
        """`unprocessed` where the peer says that it has not begun the request."""
        super().__init__()
        self.unprocessed = unprocessed


class InstanceLiveness:
    """What the connections to one instance, together, have shown of the way there.

    A connection that has served before and ends in silence was dead while it was idle: the process
    is another, or a middlebox has forgotten it. So may those be that were opened before it ended,
    and a retry must not go to the next of them (urllib3 and Go's net/http dial anew). A timeout
    shows that only if all connections were silent as long: else it is the request that is slow.
    """

    __slots__ = ("generation", "responses")

    def __init__(self) -> None:
        self.responses = 0
        """Grows with whatever any of the connections brings."""
        self.generation = 0
        """Connections of an earlier generation take no other request."""


class Connection(ABC):
    """The bytes of one connection to an instance.

    Errors are those of httpx: ReadError, WriteError and the timeouts. Closing is synchronous in
    every driver, so no cancellation can come in the middle of it.
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
        """What has been read, and not been taken yet."""
        self._poll: select.poll | None = None
        """Tells whether there is something to read."""
        self.ended = False
        """True where nothing more will arrive."""
        self.closed = False
        """True once it was closed here."""
        self.tls: Tls | None = None
        self.protocols: Sequence[str] = ()
        """What TLS offers the instance (ALPN)."""
        self.peer: str | None = None
        """The IP address at the other end."""
        self.single_use = False
        """True where it was opened under another TLS name than the instance's."""
        self.served = 0
        """The responses that it has brought."""
        self.generation = 0
        self.idle_since = 0.0
        self.uses = 0
        """How often it was leased."""
        self.http2: Http2 | None = None
        """Its state, where it speaks HTTP/2."""
        self.info = ConnectionInfo(self)

    @property
    def alpn(self) -> str | None:
        """The protocol that TLS has agreed on."""
        return None if self.tls is None else self.tls.object.selected_alpn_protocol()

    @property
    def fresh(self) -> bool:
        """True where nothing has arrived while it was idle that belongs to no request."""
        return not self.readable() if self.http2 is None else self.http2.usable

    @property
    def clean_end(self) -> bool:
        """True unless TLS was cut off without close_notify."""
        return self.tls is None or self.tls.clean_end

    @abstractmethod
    def readable(self) -> bool:
        """True where bytes, or the end, have arrived that nobody has read. Never waits."""

    @abstractmethod
    def close(self) -> None:
        """Close it, at once. More than once does no harm."""

    def shut(self) -> None:
        """Wake whoever waits for it, from any thread; the descriptor stays."""
        self.close()

    @abstractmethod
    def detach_after_fork(self) -> None:
        """In a forked child: let go of the parent's socket, without a word to the other end."""

    def _opened(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other end has gone already
            self.peer = sock.getpeername()[0]
        if hasattr(select, "poll"):  # eventlet takes it away
            self._poll = poll = select.poll()
            poll.register(sock, select.POLLIN)

    def extra_info(self, name: str) -> object:
        """What httpcore's network streams tell under this name."""
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
    """The same for event loops."""

    __slots__ = ()

    @abstractmethod
    async def open(self, dial: Dial, timeout: float | None) -> None:
        """Connect to the first address that answers. Raises ConnectError or ConnectTimeout."""

    async def start_tls(
        self,
        context: ssl.SSLContext,
        name: str,
        timeout: float | None,
    ) -> None:
        """Speak TLS from here on. Raises ConnectError or ConnectTimeout."""
        tls = Tls(context, name, self.protocols)
        try:
            done = tls.shake_hands(None)
            while True:
                if out := tls.outgoing():
                    await self.write(out, timeout)
                if done:
                    break
                data = await self.read(timeout)
                try:
                    done = tls.shake_hands(data)
                except httpx.ConnectError:
                    with contextlib.suppress(httpx.WriteError, httpx.WriteTimeout):
                        await self.write(tls.outgoing(), timeout)  # an alert, which says why
                    raise
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise httpx.ConnectTimeout("the TLS handshake took too long") from error
        except (httpx.ReadError, httpx.WriteError) as error:
            raise httpx.ConnectError(str(error)) from error.__cause__
        data, self.tls = self._arrived, tls
        self._arrived = tls.decrypt(data or None)

    @property
    @abstractmethod
    def flushed(self) -> bool:
        """True where the kernel has all that was written."""

    @abstractmethod
    async def read(self, timeout: float | None, *, everything: bool = False) -> bytes:
        """Some bytes, as soon as there are any; b"" at the end. `everything`: more than SLICE, too,
        for a reader that takes no longer for many. Raises ReadTimeout or ReadError."""

    @abstractmethod
    async def write(self, data: bytes | memoryview, timeout: float | None) -> None:
        """Send all of it. Raises WriteTimeout or WriteError."""


class ConnectionInfo:
    """The connection that a response came over: `extensions["network_stream"]`.

    It tells of the connection by `get_extra_info` (`"server_addr"`, `"client_addr"`, `"socket"`,
    `"ssl_object"`). It neither reads nor writes: the next request may be on its way there already.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def peer(self) -> str | None:
        """The IP address at the other end."""
        return self._connection.peer

    def get_extra_info(self, info: str) -> object:
        """What is known under this name, as httpcore's network streams have it."""
        return self._connection.extra_info(info)
