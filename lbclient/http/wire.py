"""Bytes to one instance, by httpcore. The only room with httpcore.

One pool an instance, uncapped (a capped one loses slots under cancellation, encode/httpcore#1093),
and never shared between services: a connection verified for one name must not serve another.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpcore
import httpx

from lbclient.http.connections import Connections, Use
from lbclient.http.dial import AsyncDialer, Dialer
from lbclient.http.goaway import unasked
from lbclient.http.options import WireOptions
from lbclient.http.request import Place, raw_headers
from lbclient.http.stream import Stream
from lbclient.http.uncut import uncut

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

    def _request(
        self, request: httpx.Request, body: object, extensions: Extensions
    ) -> httpcore.Request:
        return httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=self._scheme,
                host=self._host,
                port=self._port,
                target=request.url.raw_path,
            ),
            headers=raw_headers(request, self._place),
            content=body,  # type: ignore[arg-type]  # sync or async, as the caller's side is
            extensions=dict(extensions),
        )


def _quiet(pool: httpcore.ConnectionPool | httpcore.AsyncConnectionPool) -> bool:
    return all(one.is_idle() or one.is_closed() for one in pool.connections)


class Wire(_Addressed):
    """Connections to one instance, for threads."""

    def __init__(self, place: Place, options: WireOptions) -> None:
        super().__init__(place)
        self._dialer = Dialer(place.instance, shared=options.http2)
        self._pool = httpcore.ConnectionPool(
            max_connections=None,
            max_keepalive_connections=options.limits.max_keepalive_connections,
            network_backend=self._dialer,
            **_how(options),
        )

    def send(
        self,
        request: httpx.Request,
        body: httpx.SyncByteStream,
        extensions: Extensions,
    ) -> httpx.Response:
        """Send it, and return once the headers came. Raises httpx's transport errors."""
        with _as_httpx():
            answer = self._pool.handle_request(self._request(request, body, extensions))
        if unasked(answer):
            answer.close()
            raise httpx.RemoteProtocolError(_UNASKED)
        return _response(answer, _Body(answer))

    @property
    def quiet(self) -> bool:
        """True where none of its connections is in use."""
        return _quiet(self._pool)

    def close(self) -> None:
        """Close every connection; a thread that waits for one is woken."""
        self._dialer.shut()
        self._pool.close()

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        self._dialer.disown()


class AsyncWire(_Addressed):
    """Connections to one instance, for one event loop."""

    def __init__(self, place: Place, options: WireOptions) -> None:
        super().__init__(place)
        self._dialer = AsyncDialer(place.instance, shared=options.http2)
        self._pool = Connections(
            options.limits.max_keepalive_connections,
            network_backend=self._dialer,
            **_how(options),
        )

    async def send(
        self,
        request: httpx.Request,
        body: httpx.AsyncByteStream,
        extensions: Extensions,
    ) -> httpx.Response:
        """Send it, and return once the headers came. Raises httpx's transport errors."""
        with _as_httpx():
            answer = await self._pool.handle_async_request(self._request(request, body, extensions))
        content = _AsyncBody(answer)
        if unasked(answer):
            await content.aclose()
            raise httpx.RemoteProtocolError(_UNASKED)
        return _response(answer, content)

    @property
    def quiet(self) -> bool:
        """True where none of its connections is in use."""
        return _quiet(self._pool)

    async def aclose(self) -> None:
        """Close every connection."""
        await uncut(self._pool.aclose())

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        self._dialer.disown()


class _Body(httpx.SyncByteStream):
    """The bytes of a response, errors in httpx's words."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        """Give the connection back, or close it if there is more to come."""
        self._answer.close()


class _AsyncBody(httpx.AsyncByteStream):
    """The same for the async side."""

    bounded = True
    """Each of its reads ends with the attempt."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer
        self._use = Use(answer)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for chunk in self._answer.aiter_stream():
                yield chunk

    async def aclose(self) -> None:
        """Give the connection back, or close it if there is more to come."""
        await uncut(self._use.end())


def on_reused_connection(response: httpx.Response) -> bool:
    """True if its connection had served a request before."""
    stream = response.extensions.get("network_stream")
    return isinstance(stream, Stream) and stream.ear.answers > 1


def peer_of(response: object) -> str | None:
    """The IP address that a response came from, where the connection is one of ours."""
    stream = getattr(response, "extensions", {}).get("network_stream")
    return stream.peer if isinstance(stream, Stream) else None


def _response(
    answer: httpcore.Response, body: httpx.SyncByteStream | httpx.AsyncByteStream
) -> httpx.Response:
    stream = answer.extensions.get("network_stream")
    if isinstance(stream, Stream):
        stream.ear.answers += 1
    return httpx.Response(
        answer.status, headers=answer.headers, stream=body, extensions=dict(answer.extensions)
    )


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """Every exception of httpcore has its namesake in httpx."""
    try:
        yield
    except _HTTPCORE as error:
        names = (getattr(httpx, kind.__name__, None) for kind in type(error).__mro__)
        kind = next(found for found in names if found is not None)
        raise kind(_words(error)) from error


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
