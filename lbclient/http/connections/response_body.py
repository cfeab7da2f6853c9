"""Response bodies that are read as they arrive, and connections after an upgrade."""

from __future__ import annotations

import io
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from lbclient._internal.deadline import Expiry

from .._compat import httpx
from .connection import AsyncConnection, Connection, ConnectionInfo
from .http1 import Exchange
from .pool import ConnectionLease
from .threads import SocketConnection
from .timeouts import DeadlineTimeout

__all__ = ["AsyncContent", "AsyncResponseBody", "AsyncUpgraded", "ResponseBody", "Upgraded"]

_DRAIN_BYTES = 16 * 1024
_DRAIN_SECONDS = 0.05


class AsyncContent(httpx.AsyncByteStream):
    """A response body on our own connections. Every read ends with the attempt, and a cancellation
    cannot interrupt its closing."""

    async def whole(self) -> bytes:
        """Read all of it."""
        return b"".join([chunk async for chunk in self])


class _Body:
    """A body that arrives on a leased connection. The lease ends as soon as the whole body has
    arrived."""

    def __init__(
        self,
        lease: ConnectionLease[Any],
        connection: Any,
        exchange: Exchange,
        timeout: float | None,
        trace: Any,
    ) -> None:
        self._trace: Any = trace
        """A Trace, or an AsyncTrace; None if the request asks for none."""
        self._lease = lease
        self._connection = connection
        self._exchange = exchange
        self._timeout = timeout

    def _taken(self) -> bytes:
        """Return what has arrived."""
        data = self._exchange.data
        taken = data[0] if len(data) == 1 else b"".join(data)
        data.clear()
        return taken

    def _receive(self, data: bytes) -> None:
        exchange = self._exchange
        try:
            if data:
                exchange.receive(data)
            else:
                exchange.receive_end(clean=self._connection.clean_end)
        except httpx.RemoteProtocolError:
            self._lease.end(reusable=False)
            raise
        if exchange.complete:
            self._lease.end(reusable=exchange.reusable)

    @property
    def _over(self) -> bool:
        """True if nothing more will arrive."""
        exchange = self._exchange
        return exchange.complete or (exchange.upgraded and self._connection.ended)

    def _drain_timeout(self) -> float | None:
        """Return the timeout of each read while the rest is discarded. None if the rest is too long
        for that.
        """
        left = self._exchange.left
        if left is None or left > _DRAIN_BYTES:
            return None
        return DeadlineTimeout(None, Expiry(time.monotonic() + _DRAIN_SECONDS, time.monotonic))


class ResponseBody(_Body, httpx.SyncByteStream):
    """A response body for threads."""

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        if self._trace is not None:
            self._trace.begin("http11.receive_response_body")
        while exchange.data or not self._over:
            if exchange.data:
                yield self._taken()
            else:
                self._receive(self._read(self._timeout))
        if self._trace is not None:
            self._trace.end()

    def drain(self) -> None:
        """Read the rest if it is short and arrives soon, so that the connection can be kept."""
        if (timeout := self._drain_timeout()) is not None:
            while not self._exchange.complete:
                self._receive(self._read(timeout))

    def close(self) -> None:
        """Return the connection to the pool, or close it if more would arrive."""
        self._lease.end(reusable=False)
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.whole("http11.response_closed")

    def _read(self, timeout: float | None) -> bytes:
        if self._lease.connection is None:
            raise httpx.StreamClosed
        try:
            data: bytes = self._connection.read(timeout)
        except BaseException as error:
            self._lease.end(reusable=False)
            if self._trace is not None:
                self._trace.fail(error)
            raise
        return data


class AsyncResponseBody(_Body, AsyncContent, AsyncIterator[bytes]):
    """A response body for event loops. It is not a generator, since trio warns about a generator
    that is not read to its end."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        while not exchange.data:
            if self._over:
                raise StopAsyncIteration
            self._receive(await self._read(self._timeout))
        return self._taken()

    async def whole(self) -> bytes:
        """Read all of it."""
        # Each part is copied while it is in the processor's cache, and its memory is used for the
        # next one. To join many parts at the end takes twice as long.
        content, data = io.BytesIO(), self._exchange.data
        content.writelines(data)
        while not self._over:
            data.clear()
            self._receive(await self._read(self._timeout))
            content.writelines(data)
        data.clear()
        return content.getvalue()

    async def drain(self) -> None:
        """Read the rest if it is short and arrives soon, so that the connection can be kept."""
        if (timeout := self._drain_timeout()) is not None:
            while not self._exchange.complete:
                self._receive(await self._read(timeout))

    async def aclose(self) -> None:
        """Return the connection to the pool, or close it if more would arrive."""
        self._lease.end(reusable=False)
        trace, self._trace = self._trace, None
        if trace is not None:
            await trace.whole("http11.response_closed")

    async def _read(self, timeout: float | None) -> bytes:
        if self._lease.connection is None:
            raise httpx.StreamClosed
        try:
            everything = self._exchange.cheap
            data: bytes = await self._connection.read(timeout, everything=everything)
        except BaseException:
            self._lease.end(reusable=False)
            raise
        return data


class _Raw(ConnectionInfo):
    """The bytes of a connection that no longer speaks HTTP, with the methods of httpcore's
    streams."""

    __slots__ = ("_exchange", "_rest")

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        super().__init__(connection)
        self._exchange = exchange
        self._rest = b""

    def _kept(self, max_bytes: int) -> bytes:
        """Return what came with the response, or is left from an earlier read."""
        if data := self._exchange.data:
            self._rest += b"".join(data)
            data.clear()
        taken, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return taken


class Upgraded(_Raw):
    """The connection after 101 or CONNECT, for threads: `response.extensions["network_stream"]`. It
    ends with the response."""

    __slots__ = ()

    _connection: SocketConnection

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return some bytes; b"" at the end."""
        if taken := self._kept(max_bytes):
            return taken
        self._rest = self._connection.read(timeout)
        return self._kept(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of the data. It waits until the peer has taken it, whatever arrives
        meanwhile."""
        self._connection.write_all(buffer, timeout)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> Upgraded:
        """Start TLS."""
        name = server_hostname or self._connection.peer or ""
        self._connection.start_tls(ssl_context, name, timeout)
        return self

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class AsyncUpgraded(_Raw):
    """The same for event loops."""

    __slots__ = ()

    _connection: AsyncConnection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return some bytes; b"" at the end."""
        if taken := self._kept(max_bytes):
            return taken
        self._rest = await self._connection.read(timeout)
        return self._kept(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of the data."""
        await self._connection.write(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> AsyncUpgraded:
        """Start TLS."""
        name = server_hostname or self._connection.peer or ""
        await self._connection.start_tls(ssl_context, name, timeout)
        return self

    async def aclose(self) -> None:
        """Close the connection."""
        self._connection.close()
