"""Sends one request to one instance, over an idle connection or a new one.

Only this module sends HTTP/1.1. The module `http1` decides what the protocol allows, `pool` chooses
the connection, and `threads`, `event_loop` and `trio` read and write the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import anyio

from lbclient.balancer.event_loops import running_loop

from .._compat import httpx
from ..options import ConnectionSettings
from ..request import (
    LOAD_FORMAT,
    UNSTREAMED,
    Upstream,
    attempt_headers,
    given_target,
    instance_headers,
    merged,
)
from ..request_body import AsyncBody, is_callers_own
from ..shortcuts import Fields, content_of, fields_of, response_of
from .addresses import Dial, first_of
from .connection import AsyncConnection, Connection, ConnectionInfo
from .event_loop import LoopConnection
from .http1 import Exchange, RequestHeaders, request_line
from .pool import ConnectionLease, InstanceConnections, KeepAlivePool
from .response_body import AsyncResponseBody, AsyncUpgraded, ResponseBody, Upgraded
from .threads import SocketConnection
from .timeouts import DeadlineTimeout, seconds_now
from .tracing import Trace

__all__ = ["CLOSED_WHILE_IDLE", "AsyncHttp1Transport", "Http1Transport", "peer_of"]

CLOSED_WHILE_IDLE = "lbclient.closed_while_idle"
"""The extension of a response that marks a 408 which only ends an idle connection, and does not
belong to the request."""

Extensions = Mapping[str, Any]
Timeouts = Mapping[str, float | None]
_NO_TIMEOUTS: Timeouts = {}
_SHORT = 64 * 1024
"""The maximum length in bytes of a request's body that is sent together with its head."""
_PART = 1024 * 1024
"""After this number of bytes of a request's body, the client checks whether something has arrived.
"""
_EARLY = 1024 * 1024
"""No more of the request is sent if the response so far is longer than the sent part of the request
by this number of bytes."""
_PATIENCE = 1.0
"""Seconds to wait for 100 (Continue) before the body is sent. Not every server sends 100 (RFC 9110,
10.1.1)."""
_END = 1.0
"""After a 408, the client waits for this number of seconds for the end of the connection, or for
the real response. A server that sends a 408 for an idle connection closes the connection at once.
The response to a request may take longer."""
_RETRY_DELAY = 0.5
"""Seconds before the second retry of connecting. This delay doubles for each further retry."""
_LINE = "_lbclient_line"
_HARMLESS = frozenset(
    {b"host", b"accept", b"accept-encoding", b"connection", b"user-agent", b"content-type"}
)
"""Headers that contain no secrets, since httpx sets them itself."""
_TRACING = frozenset({b"traceparent", b"tracestate", b"baggage", LOAD_FORMAT.encode()})
"""Headers of an attempt that affect neither how its body is sent nor whether its connection is
kept."""
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout)
C = TypeVar("C", bound=Connection)
Body = Any
"""An httpx.SyncByteStream on threads, an httpx.AsyncByteStream on event loops."""


class BaseHttp1Transport(ABC, Generic[C]):
    """Sends requests to one instance, over its own connections. On threads, the coroutines of a
    transport block, and are never suspended."""

    looped: bool
    """True for event loops, False for threads."""
    _kind: Callable[[], C]
    """Creates a connection, which is not open yet."""
    _body: type[ResponseBody | AsyncResponseBody]
    _upgraded: type[Upgraded | AsyncUpgraded]
    _protocols: Sequence[str] = ()
    """The protocols that TLS offers to the instance (ALPN)."""

    def __init__(
        self, upstream: Upstream, options: ConnectionSettings, idle: KeepAlivePool[Any]
    ) -> None:
        self._upstream = upstream
        self._dial = Dial(upstream, options)
        self._options = options
        self._connections: InstanceConnections[Any] = InstanceConnections(idle)
        self._closed = False
        self._kept_headers: tuple[Fields, RequestHeaders | None] = ([], None)
        """The headers of an earlier request, since the next request often has the same headers.
        Headers of the caller are kept only if they cannot contain a secret: a token must not stay
        in memory after its request. The instance's own headers are kept, since this transport has
        them anyway."""

    @property
    def is_idle(self) -> bool:
        """True if none of its connections is in use."""
        return self._connections.is_idle

    def drain(self) -> None:
        """Close idle connections now, and the other connections when they are no longer used. A
        call that already has this transport can still send its request."""
        self._connections.drain()

    def detach_after_fork(self) -> None:
        """In a forked child: release the parent's sockets, without sending anything."""
        for connection in self._connections.all():
            connection.detach_after_fork()

    async def send(  # noqa: C901, PLR0912, PLR0915  # it also reports each step to the trace function
        self,
        request: httpx.Request,
        body: Body,
        extensions: Extensions,
        lease: ConnectionLease[C] | None = None,
    ) -> httpx.Response:
        """Send a request, and return once the response's head has arrived. Raises httpx's errors.

        `lease` is the lease of the connection to use, if the connection has already been chosen.
        """
        timeouts: Timeouts = extensions.get("timeout", _NO_TIMEOUTS)
        read = timeouts.get("read")
        trace = self._trace(extensions, request) if "trace" in extensions else None
        exchange = self._exchange(request, extensions)
        connections = self._connections
        responses_before = connections.liveness.responses
        lease = lease or ConnectionLease(connections)
        try:
            connection, tls_name = lease.connection, self._dial.tls_name
            if "sni_hostname" in extensions:
                tls_name = self._tls_name(extensions)
            if connection is None and tls_name == self._dial.tls_name:
                connection = connections.take(lease)
            if connection is None:
                connection = await self._open(lease, tls_name, timeouts.get("connect"), trace)
            if not self.looped and isinstance(read, DeadlineTimeout):  # a task is cancelled instead
                read.interruptible(lease.interrupt)
            if trace is not None:
                await trace.begin("http11.send_request_headers")
                await trace.next("http11.send_request_body")
            whole = _whole(exchange, body)
            try:
                if whole is not None and await connection.write(whole, timeouts.get("write")):
                    exchange.sent = True  # nearly every request
                else:
                    rest = body if whole is None else None
                    await self._upload(connection, exchange, rest, timeouts)
            except httpx.WriteError as error:
                if is_callers_own(error):
                    raise
                # The server accepts no more of the request. The following read returns its
                # response.
            if trace is not None:
                await trace.next("http11.receive_response_headers")
            while exchange.head is None:
                if data := await connection.read(read):
                    exchange.receive(data)
                else:
                    exchange.receive_end(clean=connection.clean_end)
            if trace is not None:
                await trace.end()
            connection.served += 1
            if exchange.head.status == 408 and connection.served > 1:
                lease.idle_end = await _ends(connection, exchange, read)
        except BaseException as error:
            self._failed(lease, exchange, error, responses_before)
            if trace is not None:
                await trace.fail(error)
            raise
        connections.liveness.responses += 1
        if exchange.complete:
            lease.end(reusable=exchange.reusable)
            if extensions.get(UNSTREAMED):
                if trace is not None:
                    await trace.whole("http11.receive_response_body", "http11.response_closed")
                return self._response(lease, exchange, b"".join(exchange.data), connection.info)
        info = self._upgraded(connection, exchange) if exchange.upgraded else connection.info
        stream: Any = self._body(lease, connection, exchange, read, trace)
        return self._response(lease, exchange, stream, info)

    async def aclose(self) -> None:
        """Close all connections. A thread that waits for a connection is woken."""
        self._closed = True
        self._connections.drain()
        for connection in self._connections.all():
            connection.shut()

    @abstractmethod
    async def _sleep(self, seconds: float) -> None:
        """Wait before connecting again."""

    @abstractmethod
    async def _upload(
        self, connection: C, exchange: Exchange, body: Body | None, timeouts: Timeouts
    ) -> None:
        """Send a request in parts, until a response does not need the rest. If `body` is None, the
        whole request was already passed to the connection, which has not yet sent all of it."""

    async def _open(
        self,
        lease: ConnectionLease[C],
        tls_name: str,
        timeout: float | None,
        trace: Trace | None,
    ) -> C:
        """Open a connection. It is recorded in the lease before it counts as in use."""
        connection = self._kind()
        self._new(lease, connection, tls_name)
        if trace is not None:
            await trace.begin("connection.connect_tcp")
        for again in range(self._options.retries + 1):
            try:
                await connection.open(self._dial, timeout)
                break
            except _UNREACHED:
                if again == self._options.retries or connection.closed:
                    raise
                await self._sleep(_delay(again, timeout))
        if (context := self._options.ssl_context) is not None:
            if trace is not None:
                await trace.next("connection.start_tls")
            await connection.start_tls(context, tls_name, timeout)
            self._check_protocol(connection)
        if trace is not None:
            await trace.end()
        return connection

    def _trace(self, extensions: Extensions, request: httpx.Request) -> Trace | None:
        return Trace.of(extensions, request, looped=self.looped)

    def _exchange(self, request: httpx.Request, extensions: Extensions) -> Exchange:
        upstream = self._upstream
        method, target, line = _request_line(request, extensions.get("target"), upstream.path)
        fields, own = fields_of(request), attempt_headers(upstream)
        before, written = self._kept_headers
        if written is None or fields != before:
            # Copy the headers first: the stored headers must match the written headers, even if
            # another thread changes the request meanwhile.
            fields, written = fields.copy(), None
            if _HARMLESS.issuperset([name for _, name, _ in fields]):
                written = RequestHeaders(_headers(fields, upstream))
                self._kept_headers = fields, written
        if written is None or (own and not _TRACING.issuperset([name for name, _ in own])):
            headers = merged(_headers(fields, upstream), own)
            return Exchange(method, target, RequestHeaders(headers), line=line)
        return Exchange(method, target, written, own, line)

    def _tls_name(self, extensions: Extensions) -> str:
        asked = extensions.get("sni_hostname")
        if asked is None:
            return self._dial.tls_name
        return asked.decode("ascii") if isinstance(asked, bytes) else str(asked)

    def _new(self, lease: ConnectionLease[Any], connection: Connection, tls_name: str) -> None:
        """Lease a connection that is about to be opened."""
        self._connections.add(lease, connection)
        connection.single_use = tls_name != self._dial.tls_name
        connection.protocols = self._protocols
        if self._closed:
            raise httpx.ConnectError("the client was closed while the connection was made")

    def _check_protocol(self, connection: Connection) -> None:
        if connection.alpn not in {None, "http/1.1"}:
            raise httpx.ConnectError(
                f"the instance has chosen {connection.alpn} in the TLS handshake"
            )

    def _failed(
        self,
        lease: ConnectionLease[Any],
        exchange: Exchange,
        error: BaseException,
        responses_before: int,
    ) -> None:
        """Record that the request got no response. Its connection is not used for another
        request."""
        connection, liveness = lease.connection, self._connections.liveness
        if (
            connection is not None
            and connection.served
            and not (exchange.received or connection.closed)
            and isinstance(error, httpx.TransportError)
            and not is_callers_own(error)
            and not (
                isinstance(error, httpx.TimeoutException)
                and (liveness.responses != responses_before or not exchange.sent)
            )
        ):
            liveness.generation += 1
        lease.end(reusable=False)

    def _response(
        self,
        lease: ConnectionLease[Any],
        exchange: Exchange,
        body: bytes | httpx.SyncByteStream | httpx.AsyncByteStream,
        info: ConnectionInfo,
    ) -> httpx.Response:
        head = exchange.head
        assert head is not None  # noqa: S101  # there is a response
        extensions: dict[str, Any] = {
            "http_version": head.version,
            "reason_phrase": head.reason,
            "network_stream": info,
        }
        if lease.idle_end:
            extensions[CLOSED_WHILE_IDLE] = True
        return response_of(head.status, head.headers, body, extensions)


class Http1Transport(BaseHttp1Transport[SocketConnection]):
    """Connections to one instance, for threads."""

    looped = False
    _kind, _body, _upgraded = SocketConnection, ResponseBody, Upgraded

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # this is a thread

    async def _upload(
        self,
        connection: SocketConnection,
        exchange: Exchange,
        body: httpx.SyncByteStream | None,
        timeouts: Timeouts,
    ) -> None:
        write, read = timeouts.get("write"), timeouts.get("read")
        most = _EARLY
        parts = (b"",) if body is None else _parts(exchange, body)
        for number, part in enumerate(parts):
            if part is None:
                await _await_continue(connection, exchange, read)
                if exchange.answered:
                    return
                continue
            done = await connection.write(part, write)
            most += len(part)
            while not done or (number and exchange.to_send != 0 and connection.readable()):
                _tell(connection, exchange, await connection.read(read))
                if exchange.answered or exchange.received > most:
                    return
                done = done or await connection.write(b"", write)
        exchange.sent = True


class AsyncHttp1Transport(BaseHttp1Transport[AsyncConnection]):
    """Connections to one instance, for one event loop."""

    looped = True
    _body, _upgraded = AsyncResponseBody, AsyncUpgraded

    def __init__(
        self, upstream: Upstream, options: ConnectionSettings, idle: KeepAlivePool[Any]
    ) -> None:
        super().__init__(upstream, options, idle)
        self._kind = _kind()

    async def aclose(self) -> None:
        """Close all connections."""
        await super().aclose()
        if self._kind is LoopConnection:
            await asyncio.sleep(0)  # asyncio closes sockets in the next iteration of the loop

    async def _sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def _upload(
        self,
        connection: AsyncConnection,
        exchange: Exchange,
        body: httpx.AsyncByteStream | None,
        timeouts: Timeouts,
    ) -> None:
        if body is None:
            return
        try:
            await connection.write(exchange.request_head, timeouts.get("write"))
            if exchange.expects:
                await _await_continue(connection, exchange, timeouts.get("read"))
            if not exchange.answered:
                await self._send_and_listen(connection, exchange, body, timeouts.get("write"))
        finally:
            if isinstance(body, AsyncBody):
                await body.leave()

    async def _send_and_listen(
        self,
        connection: AsyncConnection,
        exchange: Exchange,
        body: httpx.AsyncByteStream,
        timeout: float | None,
    ) -> None:
        """Send a body in parts, and read at the same time, since a response may reject the rest of
        the body."""
        most = _EARLY

        async def listen() -> None:
            while not exchange.answered and exchange.received <= most:
                _tell(connection, exchange, await connection.read(None))
            # The server may have read the whole body and responded before the sending task
            # continues.
            exchange.sent = exchange.to_send == 0 and connection.flushed
            group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                if isinstance(body, httpx.ByteStream):
                    for part in _slices(b"".join(body)):
                        most += len(part)
                        await connection.write(exchange.body_part(part), timeout)
                else:
                    parts = aiter(body)
                    while (piece := await _next(parts, timeout)) is not None:
                        if piece:
                            most += len(piece)
                            await connection.write(exchange.body_part(piece), timeout)
                if end := exchange.body_end():
                    await connection.write(end, timeout)
                exchange.sent = True
                group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            error = first_of(errors)
            raise error from error.__cause__


def peer_of(response: object) -> str | None:
    """Return the IP address that a response came from, if lbclient has opened the connection."""
    info = getattr(response, "extensions", {}).get("network_stream")
    return info.peer if isinstance(info, ConnectionInfo) else None


def _request_line(
    request: httpx.Request, target: bytes | None, path: bytes
) -> tuple[bytes, bytes, bytes | None]:
    """Return the method, the request target (with the instance's base path), and the request line
    if it is already known.

    The values are stored in the URL object, together with the base path for which they are valid. A
    client uses one URL object for all requests to one path, so the next request can use the stored
    values.
    """
    if target is not None:
        return request.method.encode("ascii"), given_target(target, path), None
    method, url = request.method, request.url
    known: tuple[str, bytes, bytes, bytes, bytes] | None = getattr(url, _LINE, None)
    if known is None or known[0] != method or known[1] != path:
        name, target = method.encode("ascii"), path + url.raw_path
        known = vars(url)[_LINE] = method, path, name, target, request_line(name, target)
    return known[2:]


def _headers(fields: Fields, upstream: Upstream) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers to send to the instance: the caller's headers and those of the
    instance."""
    headers = [(name, value) for name, _, value in fields]
    if upstream.hosts or upstream.headers:
        return instance_headers(headers, upstream)
    return headers


def _kind() -> type[AsyncConnection]:
    """Return the connection class for the running event loop."""
    if isinstance(running_loop(), asyncio.AbstractEventLoop):
        return LoopConnection
    from .trio import TrioConnection  # noqa: PLC0415  # installed if it runs the loop

    return TrioConnection


def _delay(again: int, timeout: float | None) -> float:
    """Return the seconds to wait before the next attempt to connect; 0 before the first retry."""
    delay = _RETRY_DELAY * 2 ** (again - 1) if again else 0.0
    left = timeout.left() if isinstance(timeout, DeadlineTimeout) else None
    return delay if left is None else min(delay, left)


def _whole(exchange: Exchange, body: object) -> bytes | None:
    """Return the head and the body of the request in one piece; None if the body is long, or an
    iterator provides it."""
    if not isinstance(body, httpx.ByteStream):
        return exchange.request_head if exchange.to_send == 0 else None
    content = content_of(body)
    if not content and exchange.to_send == 0:
        return exchange.request_head
    if exchange.expects or len(content) > _SHORT:
        return None
    return b"".join((exchange.request_head, exchange.body_part(content), exchange.body_end()))


def _parts(exchange: Exchange, body: httpx.SyncByteStream) -> Iterator[bytes | memoryview | None]:
    """Yield the parts of the request to send, in order. None means that 100 (Continue) must be
    awaited first."""
    yield exchange.request_head
    if exchange.expects:
        yield None
    for part in _slices(b"".join(body)) if isinstance(body, httpx.ByteStream) else body:
        yield exchange.body_part(part)
    yield exchange.body_end()


def _slices(content: bytes) -> Iterator[memoryview]:
    whole = memoryview(content)
    for at in range(0, len(content), _PART):
        yield whole[at : at + _PART]


def _tell(connection: Connection, exchange: Exchange, data: bytes) -> None:
    """Pass the bytes that were read to the exchange; b"" means the end."""
    if data:
        exchange.receive(data)
    else:
        exchange.receive_end(clean=connection.clean_end)


async def _ends(connection: Connection, exchange: Exchange, timeout: float | None) -> bool:
    """Wait for a short time after a 408. Returns True if the connection ends or nothing follows:
    then the server has read no request (RFC 9110, 15.5.9). Returns False if the real response
    follows."""
    if not exchange.complete:
        return False
    with contextlib.suppress(httpx.TransportError):  # nothing follows the 408
        _tell(connection, exchange, await connection.read(_briefly(timeout, _END)))
    exchange.persistent = False
    return not exchange.surplus


def _briefly(timeout: float | None, most: float) -> float:
    """Return the timeout, but at most `most` seconds."""
    seconds = seconds_now(timeout, httpx.ReadTimeout)
    return most if seconds is None else min(seconds, most)


async def _await_continue(
    connection: Connection, exchange: Exchange, timeout: float | None
) -> None:
    try:
        while exchange.expects and exchange.head is None:
            _tell(connection, exchange, await connection.read(_briefly(timeout, _PATIENCE)))
    except httpx.ReadTimeout:
        exchange.expects = False


def _next(parts: AsyncIterator[bytes], timeout: float | None) -> Awaitable[bytes | None]:
    """Return the next part of the caller's body; None at its end. The caller must provide the part
    before the attempt ends."""
    if isinstance(timeout, DeadlineTimeout) and (left := timeout.left()) is not None:
        return _next_within(parts, timeout, left)
    return anext(parts, None)


async def _next_within(
    parts: AsyncIterator[bytes], timeout: DeadlineTimeout, left: float
) -> bytes | None:
    with anyio.move_on_after(left):
        return await anext(parts, None)
    while left := timeout.left() or 0.0:  # noqa: ASYNC110  # uvloop's timers may be early
        await anyio.sleep(left)
    timeout.excuse()
    raise httpx.WriteTimeout("the request's body did not arrive in time")
