"""Response bodies that are read as they arrive, and connections after an upgrade."""

from __future__ import annotations

import io
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from lbclient._internal.blocking import run_blocking
from lbclient._internal.deadline import Expiry

from .._compat import httpx
from .connection import Connection, ConnectionInfo
from .http1 import Exchange
from .pool import ConnectionLease
from .timeouts import DeadlineTimeout
from .tracing import Trace

__all__ = ["AsyncResponseBody", "AsyncUpgraded", "ConnectionBody", "ResponseBody", "Upgraded"]

_DRAIN_BYTES = 16 * 1024
_DRAIN_SECONDS = 0.05


class ConnectionBody(ABC):
    """A response body on lbclient's own connections, for threads or for event loops. A read ends at
    the latest when the time of the attempt is up. A cancellation cannot interrupt the closing of
    the body."""

    @abstractmethod
    async def whole(self) -> bytes:
        """Read the whole body."""

    @abstractmethod
    async def drain(self) -> None:
        """Read the rest of the body, if the connection can be kept after that and if this takes
        little time."""

    @abstractmethod
    async def leave(self) -> None:
        """Close the body."""


class _Body(ConnectionBody):
    """A body that arrives on a leased connection. The lease ends as soon as the whole body has
    arrived."""

    def __init__(
        self,
        lease: ConnectionLease[Any],
        connection: Any,
        exchange: Exchange,
        timeout: float | None,
        trace: Trace | None,
    ) -> None:
        self._trace = trace
        self._lease = lease
        self._connection = connection
        self._exchange = exchange
        self._timeout = timeout

    async def whole(self) -> bytes:
        """Read the whole body."""
        if (trace := self._trace) is not None:
            await trace.begin("http11.receive_response_body")
        # Each part is copied at once, while it is in the processor's cache. Its memory is then used
        # for the next part. To join many parts at the end would take twice as long.
        content, data = io.BytesIO(), self._exchange.data
        content.writelines(data)
        while not self._over:
            data.clear()
            await self._receive(self._timeout)
            content.writelines(data)
        data.clear()
        if trace is not None:
            await trace.end()
        return content.getvalue()

    async def drain(self) -> None:
        """Read the rest of the body if it is short and arrives soon, so that the connection can be
        kept."""
        left = self._exchange.left
        if left is None or left > _DRAIN_BYTES:
            return
        timeout = DeadlineTimeout(None, Expiry(time.monotonic() + _DRAIN_SECONDS, time.monotonic))
        while not self._exchange.complete:
            await self._receive(timeout)

    async def leave(self) -> None:
        """Return the connection to the pool, or close it if the response is not complete."""
        self._lease.end(reusable=False)
        trace, self._trace = self._trace, None
        if trace is not None:
            await trace.whole("http11.response_closed")

    def _taken(self) -> bytes:
        """Return the bytes that have arrived."""
        data = self._exchange.data
        taken = data[0] if len(data) == 1 else b"".join(data)
        data.clear()
        return taken

    async def _receive(self, timeout: float | None) -> None:
        """Receive the next part."""
        exchange = self._exchange
        if self._lease.connection is None:
            raise httpx.StreamClosed
        try:
            if data := await self._connection.read(timeout, everything=exchange.cheap):
                exchange.receive(data)
            else:
                exchange.receive_end(clean=self._connection.clean_end)
        except BaseException as error:
            self._lease.end(reusable=False)
            if self._trace is not None:
                await self._trace.fail(error)
            raise
        if exchange.complete:
            self._lease.end(reusable=exchange.reusable)

    @property
    def _over(self) -> bool:
        """True if nothing more will arrive."""
        exchange = self._exchange
        return exchange.complete or (exchange.upgraded and self._connection.ended)


class ResponseBody(_Body, httpx.SyncByteStream):
    """A response body for threads."""

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        if (trace := self._trace) is not None:
            run_blocking(lambda: trace.begin("http11.receive_response_body"))
        while exchange.data or not self._over:
            if exchange.data:
                yield self._taken()
            else:
                run_blocking(lambda: self._receive(self._timeout))
        if trace is not None:
            run_blocking(trace.end)

    def close(self) -> None:
        """Close the body."""
        run_blocking(self.leave)


class AsyncResponseBody(_Body, httpx.AsyncByteStream, AsyncIterator[bytes]):
    """A response body for event loops. It is not a generator, since trio warns about a generator
    that is not read to its end."""

    async def aclose(self) -> None:
        """Close the body."""
        await self.leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        if (trace := self._trace) is not None:
            await trace.within("http11.receive_response_body")
        while not exchange.data:
            if self._over:
                if trace is not None:
                    await trace.end()
                raise StopAsyncIteration
            await self._receive(self._timeout)
        return self._taken()


class AsyncUpgraded(ConnectionInfo):
    """The bytes of a connection after 101 or CONNECT, for event loops, with the methods of
    httpcore's streams: `response.extensions["network_stream"]`. The stream can be used until the
    response is closed."""

    __slots__ = ("_exchange", "_rest")

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        super().__init__(connection)
        self._exchange = exchange
        self._rest = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return at least one byte, and at most `max_bytes`; b"" at the end."""
        if taken := self._kept(max_bytes):
            return taken
        self._rest = await self._connection.read(timeout)
        return self._kept(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of the data. This waits until the peer has taken the data, even if bytes arrive
        meanwhile."""
        await self._connection.write_all(buffer, timeout)

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> Self:
        """Start TLS on the connection."""
        name = server_hostname or self._connection.peer or ""
        await self._connection.start_tls(ssl_context, name, timeout)
        return self

    async def aclose(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _kept(self, max_bytes: int) -> bytes:
        """Return bytes that have arrived together with the response, or that are left from an
        earlier read."""
        if data := self._exchange.data:
            self._rest += b"".join(data)
            data.clear()
        taken, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return taken


class Upgraded(ConnectionInfo):
    """The bytes of a connection after 101 or CONNECT, for threads."""

    __slots__ = ("_bytes",)

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        super().__init__(connection)
        self._bytes = AsyncUpgraded(connection, exchange)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return at least one byte, and at most `max_bytes`; b"" at the end."""
        return run_blocking(lambda: self._bytes.read(max_bytes, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of the data."""
        run_blocking(lambda: self._bytes.write(buffer, timeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> Self:
        """Start TLS on the connection."""
        run_blocking(lambda: self._bytes.start_tls(ssl_context, server_hostname, timeout))
        return self

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
