"""The interface of a transport to one instance. A caller may pass a transport of its own, which is
adapted here.

A caller's transport (`transport=factory`) gets a request whose URL contains an address of the
instance that discovery has checked. (If the instance has no addresses, the URL contains its host
name.) The request has the Host header and the TLS name of the service. If the URL had a name, the
caller's transport would resolve the name again, and bypass the address filter. The original request
is never changed. Otherwise cookies would be stored for an instance, and redirects would bypass the
balancer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar, cast

import anyio

from lbclient._internal.deadline import time_left
from lbclient.endpoint.classifier import more_telling
from lbclient.endpoint.instance import Instance

from .._compat import NAME, httpx
from ..options import ConnectionSettings, TransportOptions
from ..request import Upstream, given_target, raw_headers
from ..request_body import replays
from ..shortcuts import copied, headers_of
from .instance_transport import AsyncHttp1Transport, Body, Http1Transport
from .pool import KeepAlivePool
from .timeouts import DeadlineTimeout

__all__ = [
    "AsyncCustomTransport",
    "AsyncTransportFactory",
    "CustomTransport",
    "InstanceTransport",
    "TransportFactory",
    "TransportMaker",
    "async_transport_factory",
    "transport_factory",
]

TransportFactory = Callable[[Instance], httpx.BaseTransport]
AsyncTransportFactory = Callable[[Instance], httpx.AsyncBaseTransport]
T = TypeVar("T", httpx.BaseTransport, httpx.AsyncBaseTransport)
_URLS = 256
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)


class InstanceTransport(Protocol):
    """Sends requests to one instance. On threads, the coroutines of a transport block, and are
    never suspended."""

    @property
    def is_idle(self) -> bool:
        """True if none of its connections is in use."""
        ...

    async def send(
        self, request: httpx.Request, body: Body, extensions: Mapping[str, object]
    ) -> httpx.Response:
        """Send a request, and return once the headers have arrived."""
        ...

    def drain(self) -> None:
        """Close idle connections now, and the other connections when they are no longer in use.
        This method never blocks."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...

    def detach_after_fork(self) -> None:
        """In a forked child: release the parent's sockets, without sending anything."""
        ...


class _BaseCustomTransport(Generic[T]):
    """Changes each request for the service into a request to an address of the instance.

    `_at` is the index of the address to try first: the last address that has not failed. The
    connection pool in a caller's transport has a separate connection for each address. So an
    address that does not answer must not be tried first for every request.
    """

    looped: bool

    def __init__(self, transport: T, upstream: Upstream) -> None:
        self._transport: T = transport
        instance = upstream.instance
        hosts = instance.addresses or (instance.host,)
        shown = (f"[{host}]" if ":" in host else host for host in hosts)
        self._origins = [f"{upstream.scheme}://{host}:{instance.port}".encode() for host in shown]
        self._at = 0

        def url(at: int, raw_path: bytes) -> httpx.URL:
            return httpx.URL((self._origins[at] + upstream.path + raw_path).decode("ascii"))

        self._url = lru_cache(_URLS)(url)
        self._upstream = upstream
        tls_name = upstream.tls_name or (instance.host if instance.addresses else None)
        self._tls = {"sni_hostname": tls_name} if tls_name else {}

    async def send(
        self, request: httpx.Request, body: Body, extensions: Mapping[str, object]
    ) -> httpx.Response:
        """Send a request to the first address that accepts a connection. Returns once the headers
        have arrived."""
        first = at = self._at
        transport: Any = self._transport
        failure: Exception | None = None
        while True:
            made = self._rebased(request, body, extensions, at)
            try:
                response: httpx.Response = (
                    await transport.handle_async_request(made)
                    if self.looped
                    else transport.handle_request(made)
                )
            except _NOT_CONNECTED as error:
                failure = more_telling(failure, error)
            else:
                return response
            if (following := self._after(at, first, body)) is None:
                raise failure
            at = following

    def _rebased(
        self,
        request: httpx.Request,
        body: Body,
        extensions: Mapping[str, object],
        at: int,
    ) -> httpx.Request:
        made = copied(request)
        made.url = self._url(at, request.url.raw_path)
        made.headers = headers_of(raw_headers(request, self._upstream))
        made.stream = body
        made.extensions = {**self._tls, **extensions}
        if "target" in extensions:
            target = cast("bytes", extensions["target"])
            made.extensions["target"] = given_target(target, self._upstream.path)
        if len(self._origins) > 1 and "timeout" in extensions:
            made.extensions["timeout"] = self._share(extensions["timeout"])
        return made

    def _share(self, timeout: object) -> Mapping[str, object]:
        """Return the timeouts, with the connect timeout divided by the number of addresses."""
        timeouts = dict(cast("Mapping[str, float | None]", timeout))
        connect = timeouts.get("connect")
        left = connect.now() if isinstance(connect, DeadlineTimeout) else connect
        if left is not None:
            timeouts["connect"] = left / len(self._origins)
        return timeouts

    def _after(self, at: int, first: int, body: object) -> int | None:
        """Return the index of the next address to try. Returns None if no address is left, or if
        something may have been sent to this address."""
        following = (at + 1) % len(self._origins)
        if len(self._origins) > 1:
            self._at = following
        if following == first or time_left() == 0.0:
            return None
        replayable = replays(body)
        return following if replayable is None or replayable() else None

    @property
    def is_idle(self) -> bool:
        """Always False, since only the caller's transport knows whether it is idle."""
        return False

    def drain(self) -> None:
        """Do nothing, since only the caller's transport knows which of its connections are idle."""

    def detach_after_fork(self) -> None:
        """Do nothing, since only the caller's transport knows what it shares with the parent
        process."""


class CustomTransport(_BaseCustomTransport[httpx.BaseTransport]):
    """A caller's transport to one instance, for threads."""

    looped = False

    def __init__(self, transport: httpx.BaseTransport, upstream: Upstream) -> None:
        if not isinstance(transport, httpx.BaseTransport):
            raise TypeError(f"transport= must make {NAME}.BaseTransport objects, not {transport!r}")
        super().__init__(transport, upstream)

    async def aclose(self) -> None:
        """Close the transport."""
        self._transport.close()


class AsyncCustomTransport(_BaseCustomTransport[httpx.AsyncBaseTransport]):
    """A caller's transport to one instance, for an event loop."""

    looped = True

    def __init__(self, transport: httpx.AsyncBaseTransport, upstream: Upstream) -> None:
        if not isinstance(transport, httpx.AsyncBaseTransport):
            raise TypeError(
                f"transport= must make {NAME}.AsyncBaseTransport objects, not {transport!r}"
            )
        super().__init__(transport, upstream)

    async def send(
        self, request: httpx.Request, body: Body, extensions: Mapping[str, object]
    ) -> httpx.Response:
        """Send a request, as the base class does. The request is cancelled when the attempt's time
        is up."""
        if (left := time_left()) is None:
            return await super().send(request, body, extensions)
        with anyio.move_on_after(left):
            return await super().send(request, body, extensions)
        raise httpx.ReadTimeout("the time of the attempt is up")

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()


TransportMaker = Callable[[Upstream, ConnectionSettings, KeepAlivePool[Any]], InstanceTransport]


def transport_factory(
    factory: TransportFactory | None, options: TransportOptions
) -> TransportMaker:
    """Return a function that makes the transports to instances, for threads. Raises TypeError or
    ValueError if `factory` or an option is invalid."""
    if factory is None:
        if options.get("http2"):
            from .http2_transport import Http2Transport  # noqa: PLC0415  # needs h2

            return Http2Transport
        return Http1Transport
    _check_factory(factory, options, "HTTPTransport()")

    return lambda upstream, *_: CustomTransport(factory(upstream.instance), upstream)


def async_transport_factory(
    factory: AsyncTransportFactory | None, options: TransportOptions
) -> TransportMaker:
    """Do the same as `transport_factory`, for event loops."""
    if factory is None:
        if "trio" in sys.modules:  # imported now: later there may be no free file descriptor
            import_module(".trio", __package__)
        if options.get("http2"):
            from .http2_transport import AsyncHttp2Transport  # noqa: PLC0415  # as above

            return AsyncHttp2Transport
        return AsyncHttp1Transport
    _check_factory(factory, options, "AsyncHTTPTransport()")

    return lambda upstream, *_: AsyncCustomTransport(factory(upstream.instance), upstream)


_TAKE_NO_INSTANCE: tuple[object, ...] = (httpx.HTTPTransport, httpx.AsyncHTTPTransport)
"""Classes that are not accepted as factories. They would take the instance for their argument
`verify`, so it would be undefined how certificates are checked."""


_UNSUPPORTED = "is not supported with transport="
_OWN_OPTIONS = ("verify", "cert", "http1", "http2", "local_address", "retries", "socket_options")
_OWN_LIMITS = ("max_connection_age", "max_idle_connections")
"""Options that have an effect only on lbclient's own connections. They are not accepted with a
caller's transport."""


def _check_factory(factory: object, options: TransportOptions, shown: str) -> None:
    if factory == "aiohttp":
        raise ValueError(
            'transport="aiohttp" was removed, since lbclient has its own connections now; '
            "pip install 'lbclient[fast]' makes them faster"
        )
    made = isinstance(factory, httpx.BaseTransport | httpx.AsyncBaseTransport)
    if made or factory in _TAKE_NO_INSTANCE or not callable(factory):
        kind = ValueError if isinstance(factory, str) else TypeError
        raise kind(
            "transport must be a function that makes a transport for each instance, such as "
            f"lambda instance: {NAME}.{shown}, not {factory!r}"
        )
    for name in _OWN_OPTIONS:
        if options.get(name) is not None:
            raise ValueError(f"{name} {_UNSUPPORTED}; pass it to the transports that you make")
    limited = [name for name in _OWN_LIMITS if options.get(name) is not None]
    if getattr(options.get("limits"), "max_keepalive_connections", None) is not None:
        limited.append("limits (max_keepalive_connections)")
    if limited:
        raise ValueError(
            f"{limited[0]} {_UNSUPPORTED}; limit the connections in the transports that you make"
        )
