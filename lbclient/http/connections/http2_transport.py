"""HTTP/2 to one instance, for threads and for event loops.

The module `http2` decides what the protocol allows, `http2_streams` chooses the stream of a
request, and `http2_io` reads and writes the bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, Self, TypeVar

import anyio

from lbclient._internal.blocking import run_blocking

from .._compat import httpx
from ..options import ConnectionSettings
from ..request import UNSTREAMED, Upstream, given_target, raw_headers
from ..request_body import AsyncBody, mark_callers_own
from .connection import AsyncConnection, Connection
from .http1 import header_lines, request_line
from .http2 import ConnectionUnavailable, Headers, Http2, Http2Exchange
from .http2_io import Http2Socket, start_tasks
from .http2_streams import StreamLease, Streams, Wait, block, sleep
from .instance_transport import (
    AsyncHttp1Transport,
    BaseHttp1Transport,
    Body,
    Extensions,
    Http1Transport,
)
from .pool import ConnectionLease, KeepAlivePool
from .response_body import ConnectionBody
from .threads import SocketConnection
from .timeouts import DeadlineTimeout, seconds_now
from .tracing import Trace

__all__ = ["AsyncHttp2Transport", "Http2Transport"]

C = TypeVar("C", bound=Connection)
Timeouts = Mapping[str, float | None]
_CUT = "the call was closed while it waited"
_DROPPED = frozenset(
    {b"host", b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection", b"upgrade"}
)
"""Headers that are not allowed in HTTP/2 (RFC 9113, 8.2.2)."""


_TOO_LONG = "the request's body is longer than its Content-Length"
_TOO_SHORT = "the request's body is shorter than its Content-Length"


def _check_time(timeout: float | None) -> None:
    """Raise WriteTimeout if the time of the attempt is up, since the caller's request body took too
    long. This is not a fault of the instance."""
    try:
        seconds_now(timeout, httpx.WriteTimeout)
    except httpx.WriteTimeout as error:
        mark_callers_own(error)
        raise


class _Body(ConnectionBody):
    """The common base of response bodies for threads and for event loops. `wait` carries out a
    `Wait`."""

    wait: Callable[[Wait], Coroutine[Any, Any, Any]]

    def __init__(
        self, lease: StreamLease, http2: Http2, timeout: float | None, trace: Trace | None
    ) -> None:
        self._lease, self._exchange = lease, lease.exchange
        self._http2 = http2
        self._timeout = timeout
        self._trace = trace

    async def whole(self) -> bytes:
        """Read the whole body."""
        if (trace := self._trace) is not None:
            await trace.begin("http2.receive_response_body")
        parts = []
        while part := await self._next():
            parts.append(part)
        if trace is not None:
            await trace.end()
        return b"".join(parts)

    async def drain(self) -> None:
        """Do nothing, since the connection is kept in any case."""

    async def leave(self) -> None:
        """Release the stream. If the response is not complete, the stream is reset."""
        self._exchange.leave()
        trace, self._trace = self._trace, None
        if trace is not None:
            await trace.whole("http2.response_closed")

    async def _next(self) -> bytes:
        try:
            if (part := self._take()) is None:
                wait = Wait(self._exchange, self._take, self._timeout, httpx.ReadTimeout)
                part = await self.wait(wait)
        except BaseException as error:
            self._exchange.leave()
            if self._trace is not None:
                await self._trace.fail(error)
            raise
        return part

    def _take(self) -> bytes | None:
        """Return the bytes that have arrived; b"" at the end of the body, None if no bytes have
        arrived."""
        exchange = self._exchange
        if exchange.http2 is None:
            if exchange.complete and not exchange.chunks:
                return b""
            raise httpx.StreamClosed
        part = self._http2.take(exchange)
        if exchange.complete and exchange.error is None and not exchange.chunks:
            exchange.leave()
        return part


class Http2Body(_Body, httpx.SyncByteStream):
    """The body of a response, for threads."""

    wait: Callable[[Wait], Coroutine[Any, Any, Any]] = staticmethod(block)

    def __iter__(self) -> Iterator[bytes]:
        if (trace := self._trace) is not None:
            run_blocking(lambda: trace.begin("http2.receive_response_body"))
        try:
            while part := run_blocking(self._next):
                yield part
        except BaseException:
            self._exchange.leave()
            raise
        if trace is not None:
            run_blocking(trace.end)

    def close(self) -> None:
        """Close the body."""
        run_blocking(self.leave)


class AsyncHttp2Body(_Body, httpx.AsyncByteStream, AsyncIterator[bytes]):
    """The body of a response, for event loops. It is not a generator, since trio warns about a
    generator that is not read to its end."""

    wait: Callable[[Wait], Coroutine[Any, Any, Any]] = staticmethod(sleep)

    async def aclose(self) -> None:
        """Close the body."""
        await self.leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if (trace := self._trace) is not None:
            await trace.within("http2.receive_response_body")
        if part := await self._next():
            return part
        if trace is not None:
            await trace.end()
        raise StopAsyncIteration


class _BaseHttp2Transport(BaseHttp1Transport[C]):
    """Connections to one instance: HTTP/2, or HTTP/1.1 if the instance chooses it."""

    _http2_body: type[Http2Body | AsyncHttp2Body]

    def __init__(
        self, upstream: Upstream, options: ConnectionSettings, idle: KeepAlivePool[Any]
    ) -> None:
        super().__init__(upstream, options, idle)
        self._protocols = ["h2", "http/1.1"] if options.http1 else ["h2"]
        self._streams = Streams(self._connections)

    async def send(
        self,
        request: httpx.Request,
        body: Body,
        extensions: Extensions,
        lease: ConnectionLease[Any] | None = None,  # noqa: ARG002  # this method finds it
    ) -> httpx.Response:
        """Send a request, and return once the response's head has arrived. Raises httpx's
        errors."""
        timeouts: Timeouts = extensions.get("timeout", {})
        read, trace = timeouts.get("read"), self._trace(extensions, request)
        headers = self._headers(request, extensions)
        while True:
            stream = StreamLease(self._connections.idle.lose)
            exchange = stream.exchange
            if not self.looped and isinstance(read, DeadlineTimeout):  # tasks are cancelled instead
                read.interruptible(partial(exchange.end, httpx.ReadError(_CUT)))
            found = await self._find(stream, extensions, timeouts, trace)
            if isinstance(found, ConnectionLease):
                return await super().send(request, body, extensions, found)
            http2 = found.http2
            try:
                if trace is not None:
                    await trace.begin("http2.send_request_headers")
                    await trace.next("http2.send_request_body")
                await self._request(exchange, http2, headers, body, timeouts)
                if trace is not None:
                    await trace.end()
                    await trace.whole("http2.receive_response_headers")
            except ConnectionUnavailable:
                stream.turned_away(http2)
            except BaseException as error:
                exchange.leave()
                if trace is not None:
                    await trace.fail(error)
                raise
            else:
                content: Any = self._http2_body(stream, http2, read, trace)
                return await self._http2_response(found, stream, content, extensions, trace)

    @abstractmethod
    def _start(self, connection: Any) -> Http2:
        """Start HTTP/2 on a connection."""

    @abstractmethod
    async def _next_part(self, exchange: Http2Exchange, parts: Any, timeout: float | None) -> Any:
        """Return the next part of the caller's body; None at the end of the body, or once a
        response does not need the rest."""

    async def _request(
        self,
        exchange: Http2Exchange,
        http2: Http2,
        headers: Headers,
        body: Body,
        timeouts: Timeouts,
    ) -> None:
        """Send a request, and return once the head of the response has arrived."""
        whole = b"".join(body) if isinstance(body, httpx.ByteStream) else None
        write = timeouts.get("write")
        begin = partial(http2.begin, exchange, headers, end=whole == b"")
        try:
            if begin() is None:
                connect = timeouts.get("connect")
                await self._http2_body.wait(Wait(exchange, begin, connect, httpx.ConnectTimeout))
            if whole is None and http2.started(exchange) is None:
                # Do not begin to read the caller's body if the connection has ended while it was
                # idle.
                started = partial(http2.started, exchange)
                await self._http2_body.wait(Wait(exchange, started, write, httpx.WriteTimeout))
            if not exchange.sent:
                lengths = [value for name, value in headers if name == b"content-length"]
                length = int(lengths[0]) if lengths and lengths[0].isdigit() else None
                await self._upload_parts(http2, exchange, length, whole, body, write)
            head = partial(http2.head, exchange)
            if head() is None:
                read = timeouts.get("read")
                await self._http2_body.wait(Wait(exchange, head, read, httpx.ReadTimeout, write))
        finally:
            if isinstance(body, AsyncBody):
                await body.leave()

    async def _upload_parts(
        self,
        http2: Http2,
        exchange: Http2Exchange,
        left: int | None,
        whole: bytes | None,
        body: Body,
        timeout: float | None,
    ) -> None:
        """Send the body, until a response does not need the rest. `left` is its length, if it is
        known. `whole` is the whole body if it is in one piece."""
        parts = None
        while not exchange.sent:
            part = whole
            if whole is None:
                if parts is None:
                    parts = aiter(body) if self.looped else iter(body)
                part = await self._next_part(exchange, parts, timeout)
                if exchange.answered:
                    return
                _check_time(timeout)
            last = part is None or whole is not None
            if left is not None:
                left -= len(part or b"")
                if left < 0 or (left and last):
                    raise httpx.LocalProtocolError(_TOO_LONG if left < 0 else _TOO_SHORT)
            if (more := http2.push(exchange, part or b"", last=last)) is None:
                pushed = partial(http2.pushed, exchange)
                more = await self._http2_body.wait(
                    Wait(exchange, pushed, timeout, httpx.WriteTimeout)
                )
            if not more:
                return

    async def _find(
        self,
        stream: StreamLease,
        extensions: Extensions,
        timeouts: Timeouts,
        trace: Trace | None,
    ) -> Any:
        """Return a connection with a stream for this call, or the lease of a connection that uses
        HTTP/1.1."""
        streams, tls_name = self._streams, self._tls_name(extensions)
        own_name = tls_name == self._dial.tls_name
        found = streams.find(stream) if own_name else True
        if found is None:
            with streams.waiting(stream.exchange):
                try:
                    found = await self._http2_body.wait(streams.wait(stream, timeouts))
                except httpx.ConnectTimeout:
                    streams.check_connecting()
                    raise
        if found is not True:
            return found
        lease: ConnectionLease[Any] = ConnectionLease(self._connections)
        stream.opened = True
        try:
            with streams.opening():
                connection = await self._open(lease, tls_name, timeouts.get("connect"), trace)
                if not self._chosen(connection):
                    streams.is_http1 = streams.is_http1 or own_name
                    return lease
                streams.is_http1 = False
                stream.adopt(self._start(connection), lease)
        except BaseException:
            lease.end(reusable=False)
            raise
        return connection

    def _check_protocol(self, connection: Connection) -> None:
        """Do nothing, since `_chosen` checks the protocol."""

    def _chosen(self, connection: Connection) -> bool:
        """Return True if a new connection uses HTTP/2. With TLS, the instance chooses the protocol
        in the handshake. Without TLS, the options of the caller decide."""
        alpn = connection.alpn
        if alpn not in {None, "h2", "http/1.1"}:
            raise httpx.ConnectError(f"the instance has chosen {alpn} in the TLS handshake")
        return alpn == "h2" or (alpn is None and not self._options.http1)

    def _headers(self, request: httpx.Request, extensions: Extensions) -> Headers:
        """Return the head of a request. Raises LocalProtocolError if it cannot be sent."""
        target, path = extensions.get("target"), self._upstream.path
        target = path + request.url.raw_path if target is None else given_target(target, path)
        method, headers = request.method.encode("ascii"), raw_headers(request, self._upstream)
        request_line(method, target)
        header_lines(headers)
        fields, authority = [], b""
        for name, value in headers:
            lower = name.lower()
            if lower == b"host":
                authority = value
            elif lower not in _DROPPED:
                fields.append((lower, value))
        return [
            (b":method", method),
            (b":authority", authority),
            (b":scheme", self._upstream.scheme.encode("ascii")),
            (b":path", target),
            *fields,
        ]

    async def _http2_response(
        self,
        connection: Connection,
        lease: StreamLease,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
        extensions: Extensions,
        trace: Trace | None,
    ) -> httpx.Response:
        exchange = lease.exchange
        if exchange.complete and exchange.error is None and extensions.get(UNSTREAMED):
            http2 = exchange.http2
            content = http2.take(exchange) if http2 is not None else b""
            exchange.leave()
            stream = httpx.ByteStream(content or b"")
            if trace is not None:
                await trace.whole("http2.receive_response_body", "http2.response_closed")
        return httpx.Response(
            exchange.status,
            headers=exchange.headers,
            stream=stream,
            extensions={
                "http_version": b"HTTP/2",
                "stream_id": exchange.stream_id,
                "network_stream": connection.info,
            },
        )


class Http2Transport(_BaseHttp2Transport[SocketConnection], Http1Transport):
    """Connections to one instance, for threads."""

    _kind = Http2Socket
    _http2_body = Http2Body

    def __del__(self) -> None:
        # `_connections` is missing if an exception interrupted `__init__`. No lock is taken here,
        # since the garbage collector may run while this thread holds the lock.
        connections = getattr(self, "_connections", None)
        if connections is not None:
            for connection in (*connections._used, *connections._stack):  # noqa: SLF001  # as above
                connection.shut()  # its thread does not notice that this object is gone

    async def aclose(self) -> None:
        """Close all connections. Threads that wait for a connection are woken."""
        connections = self._connections.all()
        await super().aclose()
        for connection in connections:
            connection.join()

    def _start(self, connection: Http2Socket) -> Http2:
        return connection.start(self._connections.liveness, self._streams.freed)

    async def _next_part(
        self,
        exchange: Http2Exchange,  # noqa: ARG002  # a thread in the caller's code is not woken
        parts: Iterator[bytes],
        timeout: float | None,  # noqa: ARG002  # and not interrupted
    ) -> bytes | None:
        return next(parts, None)


class AsyncHttp2Transport(_BaseHttp2Transport[AsyncConnection], AsyncHttp1Transport):
    """Connections to one instance, for one event loop."""

    _http2_body = AsyncHttp2Body

    def __init__(
        self, upstream: Upstream, options: ConnectionSettings, idle: KeepAlivePool[Any]
    ) -> None:
        super().__init__(upstream, options, idle)
        self._tasks: set[object] = set()
        """Keeps the tasks of its connections alive, since asyncio has only weak references."""

    def _start(self, connection: AsyncConnection) -> Http2:
        connections = self._connections
        return start_tasks(connection, connections.liveness, self._streams.freed, self._tasks)

    async def _next_part(
        self, exchange: Http2Exchange, parts: AsyncIterator[bytes], timeout: float | None
    ) -> bytes | None:
        left = timeout.left() if isinstance(timeout, DeadlineTimeout) else None
        with anyio.move_on_after(left) as scope:
            exchange.stop_upload = scope.cancel
            try:
                return None if exchange.answered else await anext(parts, None)
            finally:
                exchange.stop_upload = None
        if exchange.answered:
            return None
        error = httpx.WriteTimeout(
            "the request's body did not arrive within the time of the attempt"
        )
        mark_callers_own(error)
        raise error
