"""Bytes to one instance, by httpcore. The only room with httpcore.

Its connections, under a pool of our own for each instance (see connections.py), and never shared
between services: a connection verified for one name must not serve another.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, cast

from .body import AsyncBody
from .dial import AsyncDialer, Dialer
from .flavour import httpcore, httpx
from .goaway import unasked
from .idle import Idle
from .old_connections import AsyncConnections, AsyncUse, Connections, Use
from .options import WireOptions
from .request import Place, raw_headers
from .senders import AsyncContent
from .shortcuts import response_of
from .stream import Line, Stream
from .uncut import uncut

__all__ = ["AsyncWire", "Wire", "on_reused_connection", "peer_of"]

Extensions = Mapping[str, object]
_UNASKED = "there was an answer before the request"


def _how(options: WireOptions) -> dict[str, Any]:
    """How connections are made and kept."""
    return {
        "ssl_context": options.ssl_context,
        "keepalive_expiry": options.limits.keepalive_expiry,
        "http1": options.http1,
        "http2": options.http2,
        "retries": options.retries,
        "local_address": options.local_address,
        "socket_options": options.socket_options,
    }


class _Addressed:
    """Makes httpcore's requests: the socket and the TLS name are ours, the rest is the caller's."""

    def __init__(self, place: Place) -> None:
        self._scheme = place.scheme.encode()
        self._host = (place.tls_name or place.instance.host).encode("ascii")
        self._port = place.instance.port
        self._place = place
        self._origin = self._url(b"/").origin

    def _url(self, target: bytes) -> httpcore.URL:
        return httpcore.URL(scheme=self._scheme, host=self._host, port=self._port, target=target)

    def _request(
        self, request: httpx.Request, body: object, extensions: Extensions
    ) -> httpcore.Request:
        return httpcore.Request(
            method=request.method,
            url=self._url(request.url.raw_path),
            headers=raw_headers(request, self._place),
            content=body,  # type: ignore[arg-type]  # sync or async, as the caller's side is
            extensions=dict(extensions),
        )


class Wire(_Addressed):
    """Connections to one instance, for threads."""

    def __init__(
        self, place: Place, options: WireOptions, idle: Idle[httpcore.HTTPConnection]
    ) -> None:
        super().__init__(place)
        self._dialer = Dialer(place.instance, shared=options.http2)
        how = {"network_backend": self._dialer, **_how(options)}
        self._pool = Connections(self._origin, idle, how)

    def send(
        self,
        request: httpx.Request,
        body: httpx.SyncByteStream,
        extensions: Extensions,
    ) -> httpx.Response:
        """Send it, and return once the headers came. Raises httpx's transport errors."""
        try:
            use = self._pool.send(self._request(request, body, extensions))
        except _HTTPCORE as error:
            raise _as_httpx(error) from error
        if unasked(use.answer):
            use.end()
            raise httpx.RemoteProtocolError(_UNASKED)
        return _response(use.answer, _Body(use))

    @property
    def quiet(self) -> bool:
        """True where none of its connections is in use."""
        return self._pool.quiet

    def retire(self) -> None:
        """Close what is idle, and the rest as it is left."""
        self._pool.retire()

    def close(self) -> None:
        """Close every connection; a thread that waits for one is woken."""
        self._dialer.shut()
        self._pool.close()

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        self._dialer.disown()


class AsyncWire(_Addressed):
    """Connections to one instance, for one event loop."""

    def __init__(
        self, place: Place, options: WireOptions, idle: Idle[httpcore.AsyncHTTPConnection]
    ) -> None:
        super().__init__(place)
        secure = place.scheme == "https"
        self._dialer = AsyncDialer(place.instance, shared=options.http2, secure=secure)
        how = {"network_backend": self._dialer, **_how(options)}
        self._pool = AsyncConnections(self._origin, idle, how)

    async def send(
        self,
        request: httpx.Request,
        body: httpx.AsyncByteStream,
        extensions: Extensions,
    ) -> httpx.Response:
        """Send it, and return once the headers came. Raises httpx's transport errors."""
        try:
            use = await self._pool.send(self._request(request, body, extensions))
        except _HTTPCORE as error:
            raise _as_httpx(error) from error
        finally:
            if isinstance(body, AsyncBody):
                await body.leave()
        content = _AsyncBody(use)
        if unasked(use.answer):
            await content.aclose()
            raise httpx.RemoteProtocolError(_UNASKED)
        return _response(use.answer, content)

    @property
    def quiet(self) -> bool:
        """True where none of its connections is in use."""
        return self._pool.quiet

    async def aclose(self) -> None:
        """Close every connection."""
        self._dialer.shut()
        await uncut(self._pool.aclose())

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        self._dialer.disown()


class _Body(httpx.SyncByteStream):
    """The bytes of a response, errors in httpx's words."""

    def __init__(self, use: Use) -> None:
        self._use = use

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from cast("Iterable[bytes]", self._use.answer.stream)
        except _HTTPCORE as error:
            raise _as_httpx(error) from error

    def close(self) -> None:
        """Give the connection back, or close it if there is more to come."""
        self._use.end()


class _AsyncBody(AsyncContent):
    """The same for the async side."""

    def __init__(self, use: AsyncUse) -> None:
        self._use = use

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            stream = cast("AsyncIterable[bytes]", self._use.answer.stream)
            async for chunk in stream:
                yield chunk
        except _HTTPCORE as error:
            raise _as_httpx(error) from error

    async def whole(self) -> bytes:
        """All of it, without a generator of ours around httpcore's."""
        try:
            stream = cast("AsyncIterable[bytes]", self._use.answer.stream)
            return b"".join([chunk async for chunk in stream])
        except _HTTPCORE as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        """Give the connection back, or close it if there is more to come."""
        await uncut(self._use.end())


def on_reused_connection(response: httpx.Response) -> bool:
    """True if its connection had served a request before."""
    line = response.extensions.get("network_stream")
    return isinstance(line, Line) and line.ear.answers > 1


def peer_of(response: object) -> str | None:
    """The IP address that a response came from, where the connection is one of ours."""
    line = getattr(response, "extensions", {}).get("network_stream")
    return line.peer if isinstance(line, Line) else None


def _response(
    answer: httpcore.Response, body: httpx.SyncByteStream | httpx.AsyncByteStream
) -> httpx.Response:
    stream = answer.extensions.get("network_stream")
    if isinstance(stream, Stream):
        stream.ear.answers += 1
    return response_of(answer.status, answer.headers, body, dict(answer.extensions))


def _as_httpx(error: Exception) -> Exception:
    """Every exception of httpcore has its namesake in httpx."""
    names = (getattr(httpx, kind.__name__, None) for kind in type(error).__mro__)
    made: Exception = next(found for found in names if found is not None)(_words(error))
    return made


def _words(error: Exception) -> str:
    """What it says, else the first of its causes that says anything: async ones are often mute."""
    cause: BaseException | None = error
    while isinstance(cause, Exception) and not str(cause):
        cause = cause.__cause__ or cause.__context__
    return str(cause) if isinstance(cause, Exception) else type(error).__name__


_HTTPCORE: tuple[type[Exception], ...] = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
