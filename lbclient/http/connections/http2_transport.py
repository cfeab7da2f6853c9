"""HTTP/2 to one instance, for threads and for event loops.

`http2` decides what the protocol allows. A thread or two tasks of each connection read and write,
without timeouts. Calls only wait, within their own timeouts and deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, Self, cast

import anyio
import anyio.lowlevel

from lbclient._internal.deadline import STOOD_STILL

from .._compat import httpx
from ..options import ConnectionSettings
from ..request import UNSTREAMED, Upstream, raw_headers
from ..request_body import AsyncBody, mark_callers_own
from .connection import Connection, InstanceLiveness
from .event_loop import LoopConnection
from .http1 import header_lines, request_line
from .http2 import ConnectionUnavailable, Headers, Http2, Http2Exchange
from .instance_transport import AsyncHttp1Transport, Extensions, Http1Transport
from .pool import ConnectionLease, InstanceConnections, KeepAlivePool
from .response_body import AsyncContent
from .threads import SocketConnection
from .timeouts import DeadlineTimeout, seconds_now
from .tracing import AsyncTrace, Trace

__all__ = ["AsyncHttp2Transport", "Http2Transport"]

MAX_CONNECTIONS = 8
"""The maximum of HTTP/2 connections to one instance that are in use."""
Timeouts = Mapping[str, float | None]
_RECHECK = 0.05
_FAREWELL = 1.0
_LONGEST = threading.TIMEOUT_MAX
_CUT = "the call was closed while it waited"
_ENDED = "the connection ended at once"
_DROPPED = frozenset(
    {b"host", b"transfer-encoding", b"connection", b"keep-alive", b"proxy-connection", b"upgrade"}
)
"""Headers that are not allowed in HTTP/2 (RFC 9113, 8.2.2)."""


class _Wait:
    """A wait of one call: until `step` returns a value. `step` is called whenever something has
    happened to the exchange. `timeout` counts from when a part of the body was last sent, and
    `write` bounds the time until everything that was sent is written."""

    __slots__ = (
        "_begun",
        "_deadline",
        "_error",
        "_rechecked",
        "_timeout",
        "_write",
        "exchange",
        "step",
    )

    def __init__(
        self,
        exchange: Http2Exchange,
        step: Callable[[], object],
        timeout: float | None,
        error: type[httpx.TimeoutException],
        write: float | None = None,
    ) -> None:
        self.exchange, self.step = exchange, step
        self._error, self._rechecked = error, False
        seconds_now(timeout, error)
        self._timeout, self._write = timeout, write
        self._begun = now = time.monotonic()
        left = timeout.left() if isinstance(timeout, DeadlineTimeout) else None
        self._deadline = math.inf if left is None else now + left

    def _end(self) -> float:
        begun = self._begun
        if self._error is httpx.WriteTimeout:
            begun = max(begun, self.exchange.moved_at)
        limits = [_seconds(timeout) for timeout in (self._timeout, self._write)]
        return min(self._deadline, *(begun + limit for limit in limits if limit is not None))

    def seconds(self) -> float | None:
        """Return the seconds to wait now; None for no limit."""
        end = self._end()
        return None if end == math.inf else max(0.0, end - time.monotonic())

    def lapsed(self) -> None:
        """Handle a wait that has reached its `seconds`. Raises a timeout, unless there is a reason
        to wait again.
        """
        late, error, http2 = time.monotonic() - self._end(), self._error, self.exchange.http2
        if late < 0:  # another part of the body was sent meanwhile
            return
        written = http2 is None or http2.is_written(self.exchange)
        if self._write is not None and written:
            self._write = None
            return
        if late > STOOD_STILL and not self._rechecked:
            # After a process was suspended, its timers fire before its sockets.
            self._rechecked, self._begun = True, self._begun + late + _RECHECK
            self._deadline += late + _RECHECK
            return
        if error is httpx.ReadTimeout and not written:
            error = httpx.WriteTimeout
        seconds_now(self._timeout, error)
        if http2 is not None:
            http2.timed_out(self.exchange)
        raise error(_WAITED[error])


def _seconds(timeout: float | None) -> float | None:
    """Return the timeout itself, regardless of the time that the attempt has left."""
    return timeout.seconds if isinstance(timeout, DeadlineTimeout) else timeout


_WAITED: dict[type[Exception], str] = {
    httpx.ConnectTimeout: "the HTTP/2 connection was not ready in time",
    httpx.PoolTimeout: "every HTTP/2 stream to the instance was in use",
    httpx.ReadTimeout: "no bytes arrived in time",
    httpx.WriteTimeout: "the instance did not read the request in time",
}
_TOO_LONG = "the request's body is longer than its Content-Length"
_TOO_SHORT = "the request's body is shorter than its Content-Length"


def _request(
    http2: Http2, exchange: Http2Exchange, headers: Headers, body: bytes | None, timeouts: Timeouts
) -> Generator[_Wait | None, Any, None]:
    """Send a request until the head of its response has arrived. The steps are the same for threads
    and event loops. It yields what to wait for, or None for the next part of the caller's body.
    `body` is the whole body if it has no parts."""
    write = timeouts.get("write")
    begin = partial(http2.begin, exchange, headers, end=body == b"")
    if begin() is None:
        yield _Wait(exchange, begin, timeouts.get("connect"), httpx.ConnectTimeout)
    if body is None and http2.started(exchange) is None:
        # Do not begin the caller's body for a connection that has ended while it was idle.
        started = partial(http2.started, exchange)
        yield _Wait(exchange, started, write, httpx.WriteTimeout)
    if not exchange.sent:
        lengths = [value for name, value in headers if name == b"content-length"]
        length = int(lengths[0]) if lengths and lengths[0].isdigit() else None
        yield from _upload(http2, exchange, length, body, write)
    head = partial(http2.head, exchange)
    if head() is None:
        yield _Wait(exchange, head, timeouts.get("read"), httpx.ReadTimeout, write)


def _upload(
    http2: Http2,
    exchange: Http2Exchange,
    left: int | None,
    body: bytes | None,
    timeout: float | None,
) -> Generator[_Wait | None, Any, None]:
    """Send the body, whose announced length is `left`, until the server wants no more of it."""
    while not exchange.sent:
        part = body
        if body is None:
            part = yield None
            if exchange.answered:
                return
            _check_time(timeout)
        last = part is None or body is not None
        if left is not None:
            left -= len(part or b"")
            if left < 0 or (left and last):
                raise httpx.LocalProtocolError(_TOO_LONG if left < 0 else _TOO_SHORT)
        if (more := http2.push(exchange, part or b"", last=last)) is None:
            pushed = partial(http2.pushed, exchange)
            more = yield _Wait(exchange, pushed, timeout, httpx.WriteTimeout)
        if not more:
            return


def _check_time(timeout: float | None) -> None:
    """Raise WriteTimeout if the caller's own body has used up the time of the attempt. This is not
    a fault of the instance."""
    try:
        seconds_now(timeout, httpx.WriteTimeout)
    except httpx.WriteTimeout as error:
        mark_callers_own(error)
        raise


class _Lease:
    """The stream of one call, from before it is reserved until its response has been read."""

    __slots__ = ("__weakref__", "_lose", "exchange", "opened")

    def __init__(self, lose: Callable[[Any], object]) -> None:
        self._lose = lose
        self.exchange: Http2Exchange = Http2Exchange()
        self.opened: bool = False
        """True if the call has opened the connection."""

    def __del__(self) -> None:
        exchange = getattr(self, "exchange", None)  # an exception may interrupt `__init__`
        if exchange is not None and exchange.http2 is not None:
            self._lose(self)

    def drop(self) -> None:
        """Release the stream."""
        self.exchange.leave()

    def adopt(self, http2: Http2, lease: ConnectionLease[Any]) -> None:
        """Use a connection that this call has opened. Raises ConnectError."""
        if not http2.adopt(self.exchange, lease):
            raise httpx.ConnectError(_ENDED)

    def turned_away(self, http2: Http2) -> None:
        """Release the stream: nothing was sent, and another connection must take the request.
        Raises ConnectError if this call has opened a connection that ended at once."""
        self.exchange.leave()
        if self.opened and not http2.usable:
            raise httpx.ConnectError(_ENDED)


class _Shared:
    """Chooses the connection for the next request: one in use that has a free stream, an idle one,
    or a new one up to a limit. Beyond it, calls wait for a stream.

    Only one connection is opened at a time: until the protocol and the number of streams of the
    instance are known, one may be enough for all calls.
    """

    def __init__(self, connections: InstanceConnections[Any]) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._opening: weakref.ref[_Lease] | None = None
        """The call that opens a connection."""
        self._waiting: deque[Http2Exchange] = deque()
        self.is_http1 = False
        """True if the instance has chosen HTTP/1.1 in the TLS handshake."""

    @property
    def connecting(self) -> bool:
        """True while a connection is being opened."""
        return self._opening is not None and self._opening() is not None

    def find(self, lease: _Lease) -> Connection | ConnectionLease[Any] | bool | None:
        """Return a connection with a stream for this call, or the lease of one that speaks
        HTTP/1.1. Returns True if the call must open one, and None if it must wait."""
        exchange = lease.exchange
        if exchange.error is not None:
            raise exchange.error
        with self._lock:
            known = self._connections.all()
            for connection in known:
                if connection.http2 is not None and connection.http2.reserve(exchange):
                    return cast("Connection", connection)
            taken: ConnectionLease[Any] = ConnectionLease(self._connections)
            while (idle := self._connections.take(taken)) is not None:
                if idle.http2 is None:
                    return taken
                if idle.http2.adopt(exchange, taken):
                    return cast("Connection", idle)
                taken.end(reusable=False)
            if self.is_http1:
                return True
            usable = sum(other.http2 is not None and other.http2.usable for other in known)
            if self.connecting or usable >= MAX_CONNECTIONS:
                return None
            self._opening = weakref.ref(lease)
            return True

    def check_connecting(self) -> None:
        """Check a call that has waited for the connect timeout. Raises PoolTimeout if no connection
        is being opened.
        """
        if not self.connecting:
            raise httpx.PoolTimeout(_WAITED[httpx.PoolTimeout]) from None

    def wait(self, lease: _Lease, timeouts: Timeouts) -> _Wait:
        """Return a wait for what `find` returns."""
        step = partial(self.find, lease)
        if self.connecting:
            return _Wait(lease.exchange, step, timeouts.get("connect"), httpx.ConnectTimeout)
        return _Wait(lease.exchange, step, timeouts.get("pool"), httpx.PoolTimeout)

    @contextlib.contextmanager
    def waiting(self, exchange: Http2Exchange) -> Generator[None]:
        """Register this call, which is woken when there may be a stream for it."""
        self._waiting.append(exchange)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(exchange)
            self.freed()  # pass the wake-up on, since this call may not have needed it

    def freed(self) -> None:
        """Wake a call that waits, since there may be a stream."""
        with contextlib.suppress(IndexError):
            self._waiting[0].wake()

    @contextlib.contextmanager
    def opening(self) -> Generator[None]:
        """Wraps the opening of a connection. The calls that wait for it share its ConnectError."""
        try:
            yield
        except httpx.ConnectError as error:
            if not any(connection.http2 is not None for connection in self._connections.all()):
                for exchange in tuple(self._waiting):
                    failed = httpx.ConnectError(str(error))
                    failed.__cause__ = error.__cause__
                    exchange.end(failed)
            raise
        finally:
            self._opening = None
            self.freed()


class _Http2Base:
    """The common part of the transports for threads and for event loops."""

    _upstream: Upstream
    _options: ConnectionSettings
    _connections: InstanceConnections[Any]

    def _check_protocol(self, connection: Connection) -> None:
        """Do nothing: `_chosen` checks the protocol."""

    def _chosen(self, connection: Connection) -> bool:
        """Return True if a new connection speaks HTTP/2. Without TLS this must be known in
        advance."""
        alpn = connection.alpn
        if alpn not in {None, "h2", "http/1.1"}:
            raise httpx.ConnectError(f"the instance has chosen {alpn} in the TLS handshake")
        return alpn == "h2" or (alpn is None and not self._options.http1)

    def _headers(self, request: httpx.Request, extensions: Extensions) -> Headers:
        """Return the head of a request. Raises LocalProtocolError if it cannot be sent."""
        target = extensions.get("target")
        target = request.url.raw_path if target is None else target
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

    def _http2_response(
        self,
        connection: Connection,
        lease: _Lease,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
        extensions: Extensions,
    ) -> httpx.Response:
        exchange = lease.exchange
        if exchange.complete and exchange.error is None and extensions.get(UNSTREAMED):
            http2 = exchange.http2
            content = http2.take(exchange) if http2 is not None else b""
            exchange.leave()
            stream = httpx.ByteStream(content or b"")
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


class _Body:
    """The common part of the bodies for threads and for event loops."""

    def __init__(self, lease: _Lease, http2: Http2, timeout: float | None, trace: Any) -> None:
        self._lease, self._exchange = lease, lease.exchange
        self._http2 = http2
        self._timeout = timeout
        self._trace: Any = trace
        """A Trace, or an AsyncTrace; None if the request asks for none."""

    def _take(self) -> bytes | None:
        """Return what has arrived; b"" at the end, None if nothing has."""
        exchange = self._exchange
        if exchange.http2 is None:
            if exchange.complete and not exchange.chunks:
                return b""
            raise httpx.StreamClosed
        part = self._http2.take(exchange)
        if exchange.complete and exchange.error is None and not exchange.chunks:
            exchange.leave()
        return part

    def _wait(self) -> _Wait:
        return _Wait(self._exchange, self._take, self._timeout, httpx.ReadTimeout)


class Http2Body(_Body, httpx.SyncByteStream):
    """The body of a response, for threads."""

    def __iter__(self) -> Iterator[bytes]:
        if self._trace is not None:
            self._trace.begin("http2.receive_response_body")
        try:
            while part := self._next():
                yield part
        except BaseException as error:
            self._exchange.leave()
            if self._trace is not None:
                self._trace.fail(error)
            raise
        if self._trace is not None:
            self._trace.end()

    def drain(self) -> None:
        """Do nothing: the connection is kept in any case."""

    def close(self) -> None:
        """Release the stream, which is reset if more would arrive."""
        self._exchange.leave()
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.whole("http2.response_closed")

    def _next(self) -> bytes:
        part = self._take()
        return cast("bytes", _block(self._wait())) if part is None else part


class AsyncHttp2Body(_Body, AsyncContent, AsyncIterator[bytes]):
    """The body of a response, for event loops. It is not a generator, since trio warns about a
    generator that is not read to its end."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if part := await self._next():
            return part
        raise StopAsyncIteration

    async def whole(self) -> bytes:
        """Read all of it."""
        parts = []
        while part := await self._next():
            parts.append(part)
        return b"".join(parts)

    async def drain(self) -> None:
        """Do nothing: the connection is kept in any case."""

    async def aclose(self) -> None:
        """Release the stream, which is reset if more would arrive."""
        self._exchange.leave()
        trace, self._trace = self._trace, None
        if trace is not None:
            await trace.whole("http2.response_closed")

    async def _next(self) -> bytes:
        part = self._take()
        if part is not None:
            return part
        try:
            return cast("bytes", await _sleep(self._wait()))
        except BaseException:
            self._exchange.leave()
            raise


class _Http2Socket(SocketConnection):
    """A connection whose bytes are moved by a thread of its own, once it speaks HTTP/2. That thread
    also closes the socket, so it never uses a descriptor that belongs to another file."""

    __slots__ = ("_thread", "_waker")

    def __init__(self) -> None:
        super().__init__()
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None

    def start(self, liveness: InstanceLiveness, freed: Callable[[], object]) -> Http2:
        """Start HTTP/2."""
        self.http2 = http2 = Http2(self, liveness, freed)
        self._waker, woken = socket.socketpair()
        self._waker.setblocking(False)  # noqa: FBT003  # it takes no keyword
        self._thread = thread = threading.Thread(
            target=_serve,
            args=(http2, self, self._waker, woken),
            daemon=True,
            name="lbclient-http2",
        )
        thread.start()
        return http2

    def close(self) -> None:
        """Close it. Threads that wait for it are woken."""
        if self._thread is None:
            super().close()
        else:
            self.shut()

    def shut(self) -> None:
        """Make its thread close it."""
        super().shut()
        if self._waker is not None:
            _wake(self._waker)

    def closed_by_thread(self) -> None:
        """Close the socket itself."""
        super().close()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_FAREWELL)


class Http2Transport(_Http2Base, Http1Transport):
    """Connections to one instance, for threads: HTTP/2, or HTTP/1.1 if the instance chooses it."""

    _kind = _Http2Socket

    def __init__(
        self, upstream: Upstream, options: ConnectionSettings, idle: KeepAlivePool[Any]
    ) -> None:
        super().__init__(upstream, options, idle)
        self._protocols = ["h2", "http/1.1"] if options.http1 else ["h2"]
        self._shared = _Shared(self._connections)

    def __del__(self) -> None:
        # An exception may interrupt `__init__`, and the garbage collector may run while a lock is
        # held.
        connections = getattr(self, "_connections", None)
        if connections is not None:
            for connection in (*connections._used, *connections._stack):  # noqa: SLF001  # as above
                connection.shut()  # its thread does not know that it is no longer needed

    def send(
        self,
        request: httpx.Request,
        body: httpx.SyncByteStream,
        extensions: Extensions,
        lease: ConnectionLease[Any] | None = None,  # noqa: ARG002  # it is found here
    ) -> httpx.Response:
        """Send a request, and return once the response's head has arrived. Raises httpx's
        errors."""
        timeouts: Timeouts = extensions.get("timeout", {})
        read, trace = timeouts.get("read"), Trace.of(extensions, request)
        headers = self._headers(request, extensions)
        while True:
            stream = _Lease(self._connections.idle.lose)
            exchange = stream.exchange
            if isinstance(read, DeadlineTimeout):
                read.interruptible(partial(exchange.end, httpx.ReadError(_CUT)))
            found = self._find(stream, extensions, timeouts, trace)
            if isinstance(found, ConnectionLease):
                return super().send(request, body, extensions, found)
            http2 = found.http2
            try:
                if trace is not None:
                    trace.begin("http2.send_request_headers")
                    trace.next("http2.send_request_body")
                self._request(exchange, http2, headers, body, timeouts)
                if trace is not None:
                    trace.end()
                    trace.whole("http2.receive_response_headers")
            except ConnectionUnavailable:
                stream.turned_away(http2)
            except BaseException as error:
                exchange.leave()
                if trace is not None:
                    trace.fail(error)
                raise
            else:
                content = Http2Body(stream, http2, read, trace)
                return self._http2_response(found, stream, content, extensions)

    def close(self) -> None:
        """Close all connections. Threads that wait for one are woken."""
        connections = self._connections.all()
        super().close()
        for connection in connections:
            connection.join()

    def _request(
        self,
        exchange: Http2Exchange,
        http2: Http2,
        headers: Headers,
        body: httpx.SyncByteStream,
        timeouts: Timeouts,
    ) -> None:
        """Send a request, and return once the head of the response has arrived."""
        whole = b"".join(body) if isinstance(body, httpx.ByteStream) else None
        parts = iter(body if whole is None else ())
        steps, answer = _request(http2, exchange, headers, whole, timeouts), None
        with contextlib.suppress(StopIteration):
            while True:
                wait = steps.send(answer)
                answer = next(parts, None) if wait is None else _block(wait)

    def _find(
        self,
        stream: _Lease,
        extensions: Extensions,
        timeouts: Timeouts,
        trace: Trace | None,
    ) -> Any:
        """Return a connection with a stream for this call, or the lease of one that speaks
        HTTP/1.1."""
        shared, tls_name = self._shared, self._tls_name(extensions)
        own_name = tls_name == self._dial.tls_name
        found = shared.find(stream) if own_name else True
        if found is None:
            with shared.waiting(stream.exchange):
                try:
                    found = _block(shared.wait(stream, timeouts))
                except httpx.ConnectTimeout:
                    shared.check_connecting()
                    raise
        if found is not True:
            return found
        lease: ConnectionLease[Any] = ConnectionLease(self._connections)
        stream.opened = True
        try:
            with shared.opening():
                connection = self._open(lease, tls_name, timeouts.get("connect"), trace)
                if not self._chosen(connection):
                    shared.is_http1 = shared.is_http1 or own_name
                    return lease
                shared.is_http1 = False
                http2 = cast("_Http2Socket", connection).start(
                    self._connections.liveness, shared.freed
                )
                stream.adopt(http2, lease)
        except BaseException:
            lease.end(reusable=False)
            raise
        return connection


class AsyncHttp2Transport(_Http2Base, AsyncHttp1Transport):
    """Connections to one instance, for one event loop: HTTP/2, or HTTP/1.1 if the instance chooses
    it."""

    def __init__(
        self, upstream: Upstream, options: ConnectionSettings, idle: KeepAlivePool[Any]
    ) -> None:
        super().__init__(upstream, options, idle)
        self._protocols = ["h2", "http/1.1"] if options.http1 else ["h2"]
        self._shared = _Shared(self._connections)
        self._tasks: set[object] = set()

    async def send(
        self,
        request: httpx.Request,
        body: httpx.AsyncByteStream,
        extensions: Extensions,
        lease: ConnectionLease[Any] | None = None,  # noqa: ARG002  # it is found here
    ) -> httpx.Response:
        """Send a request, and return once the response's head has arrived. Raises httpx's
        errors."""
        timeouts: Timeouts = extensions.get("timeout", {})
        trace = AsyncTrace.of(extensions, request)
        headers = self._headers(request, extensions)
        while True:
            stream = _Lease(self._connections.idle.lose)
            exchange = stream.exchange
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
                if trace is not None and isinstance(error, Exception):
                    await trace.fail(error)
                raise
            else:
                content = AsyncHttp2Body(stream, http2, timeouts.get("read"), trace)
                return self._http2_response(found, stream, content, extensions)

    async def _request(
        self,
        exchange: Http2Exchange,
        http2: Http2,
        headers: Headers,
        body: httpx.AsyncByteStream,
        timeouts: Timeouts,
    ) -> None:
        """Send a request, and return once the head of the response has arrived."""
        whole = b"".join(body) if isinstance(body, httpx.ByteStream) else None
        parts = None
        steps, answer = _request(http2, exchange, headers, whole, timeouts), None
        try:
            while True:
                wait = steps.send(answer)
                if wait is not None:
                    answer = await _sleep(wait)
                    continue
                if parts is None:
                    parts = aiter(body)
                answer = await _part(exchange, parts, timeouts.get("write"))
        except StopIteration:
            pass
        finally:
            if isinstance(body, AsyncBody):
                await body.leave()

    async def _find(
        self,
        stream: _Lease,
        extensions: Extensions,
        timeouts: Timeouts,
        trace: AsyncTrace | None,
    ) -> Any:
        """Return a connection with a stream for this call, or the lease of one that speaks
        HTTP/1.1."""
        shared, tls_name = self._shared, self._tls_name(extensions)
        own_name = tls_name == self._dial.tls_name
        found = shared.find(stream) if own_name else True
        if found is None:
            with shared.waiting(stream.exchange):
                try:
                    found = await _sleep(shared.wait(stream, timeouts))
                except httpx.ConnectTimeout:
                    shared.check_connecting()
                    raise
        if found is not True:
            return found
        lease: ConnectionLease[Any] = ConnectionLease(self._connections)
        stream.opened = True
        try:
            with shared.opening():
                connection = await self._open(lease, tls_name, timeouts.get("connect"), trace)
                if not self._chosen(connection):
                    shared.is_http1 = shared.is_http1 or own_name
                    return lease
                shared.is_http1 = False
                connection.http2 = http2 = Http2(
                    connection, self._connections.liveness, shared.freed
                )
                self._tasks.update(_spawn(work, http2, connection) for work in (_read, _write))
                stream.adopt(http2, lease)
        except BaseException:
            lease.end(reusable=False)
            raise
        return connection


def _block(wait: _Wait) -> Any:
    """Block this thread until the wait has ended."""
    while True:
        woken = threading.Lock()
        woken.acquire()  # released to wake this thread
        wait.exchange.waiter = partial(_release, woken)
        if (result := wait.step()) is not None:
            return result
        seconds = wait.seconds()
        if not woken.acquire(timeout=-1 if seconds is None else min(seconds, _LONGEST)):
            if (result := wait.step()) is not None:
                return result
            wait.lapsed()


def _release(lock: threading.Lock) -> None:
    with contextlib.suppress(RuntimeError):  # two threads may wake the same one
        lock.release()


async def _sleep(wait: _Wait) -> Any:
    """Suspend this task until the wait has ended."""
    while True:
        woken = anyio.Event()
        wait.exchange.waiter = woken.set
        if (result := wait.step()) is not None:
            return result
        with anyio.move_on_after(wait.seconds()):
            await woken.wait()
        if not woken.is_set():
            if (result := wait.step()) is not None:
                return result
            wait.lapsed()


async def _part(
    exchange: Http2Exchange, parts: AsyncIterator[bytes], timeout: float | None
) -> bytes | None:
    """Return the next part of the caller's body. None at its end, or if a response makes the rest
    unnecessary.
    """
    left = timeout.left() if isinstance(timeout, DeadlineTimeout) else None
    with anyio.move_on_after(left) as scope:
        exchange.stop_upload = scope.cancel
        try:
            return None if exchange.answered else await anext(parts, None)
        finally:
            exchange.stop_upload = None
    if exchange.answered:
        return None
    error = httpx.WriteTimeout("the request's body did not arrive within the time of the attempt")
    mark_callers_own(error)
    raise error


def _serve(http2: Http2, stream: _Http2Socket, waker: socket.socket, woken: socket.socket) -> None:
    """The thread of a connection: it writes what must be written, and reads."""
    wake = partial(_wake, waker)
    try:
        while True:
            # Read first: if the connection has ended, nothing of a request is sent.
            if stream.readable():
                _receive(http2, stream)
            if http2.over:
                break
            if data := http2.outgoing(wake):
                _write_out(http2, stream, data)
            elif not stream.readable() and woken in _readable(stream, woken):
                woken.recv(1024)
        if data := http2.outgoing(wake):
            stream.write(data, _FAREWELL)
    except httpx.TransportError as error:
        http2.end(error)
    except Exception as error:  # noqa: BLE001  # not reported elsewhere, or closed on this side
        http2.end(httpx.ReadError(str(error)))
    finally:
        stream.closed_by_thread()
        woken.close()
        waker.close()


def _write_out(http2: Http2, stream: SocketConnection, data: bytes) -> None:
    """Write the data, and read what arrives meanwhile."""
    try:
        sent = stream.write(data, None)
        while not sent:
            _receive(http2, stream)
            sent = stream.write(b"", None)
    except httpx.WriteError as error:
        http2.writing_failed(error)
    else:
        http2.written(len(data))


def _receive(http2: Http2, stream: SocketConnection) -> None:
    data = stream.read(None)
    if not data:
        http2.end()
    elif http2.receive(data):
        while http2.receive(b""):
            pass


def _wake(waker: socket.socket) -> None:
    with contextlib.suppress(OSError):
        waker.send(b"x")


async def _read(http2: Http2, stream: Any) -> None:
    """The task of a connection that reads."""
    try:
        while data := await stream.read(None):
            while http2.receive(data):
                data = b""
                await anyio.lowlevel.checkpoint()  # a turn for other tasks
            if http2.over:
                return
        http2.end()
    except httpx.TransportError as error:
        http2.end(error)
    except BaseException:  # the event loop is ending
        http2.close()
        raise


async def _write(http2: Http2, stream: Any) -> None:
    """The task of a connection that writes."""
    try:
        while True:
            woken = anyio.Event()
            while not http2.over and _arrives(stream):  # read first, as `_serve` does
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


def _spawn(work: Callable[[Http2, Any], Any], http2: Http2, stream: Any) -> object:
    """Run a task that belongs to no caller: neither to its context nor to its cancel scope."""
    if isinstance(stream, LoopConnection):
        context = contextvars.Context()
        return asyncio.get_running_loop().create_task(work(http2, stream), context=context)
    from trio.lowlevel import spawn_system_task  # noqa: PLC0415  # installed, since it runs

    return spawn_system_task(work, http2, stream)


def _readable(stream: SocketConnection, woken: socket.socket) -> list[socket.socket]:
    """Wait until at least one of the two sockets can be read, and return those that can."""
    sock = cast("socket.socket", stream.extra_info("socket"))
    if not hasattr(select, "poll"):  # eventlet removes it, and makes `select` green
        return select.select([sock, woken], [], [])[0]
    poll = select.poll()
    by_descriptor = {each.fileno(): each for each in (sock, woken)}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll()]
