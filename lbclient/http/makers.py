"""What makes the wire to one instance: ours, or around a caller's own transport."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, Protocol

from .connections.instance_transport import AsyncInstanceTransport, InstanceTransport
from .connections.pool import KeepAlivePool
from .flavour import NAME, httpx
from .foreign import AsyncForeign, AsyncTransportFactory, Foreign, TransportFactory
from .options import TransportOptions, WireOptions
from .request import Place
from .senders import AsyncSender, Sender

__all__ = ["async_maker", "maker"]


class _Maker(Protocol):
    def __call__(self, place: Place, options: WireOptions, idle: KeepAlivePool[Any]) -> Sender: ...


class _AsyncMaker(Protocol):
    def __call__(
        self, place: Place, options: WireOptions, idle: KeepAlivePool[Any]
    ) -> AsyncSender: ...


def maker(factory: TransportFactory | None, options: TransportOptions) -> _Maker:
    """For threads. Raises TypeError or ValueError for what can make none."""
    if factory is None:
        if options.get("http2"):
            from .connections.http2_transport import Http2Transport  # noqa: PLC0415  # needs h2

            return Http2Transport
        return InstanceTransport
    _check_factory(factory, options, "HTTPTransport()")

    return lambda place, *_: Foreign(factory(place.instance), place)


def async_maker(factory: AsyncTransportFactory | None, options: TransportOptions) -> _AsyncMaker:
    """The same for event loops."""
    if factory is None:
        if "trio" in sys.modules:  # in time: without descriptors no file can be read
            import_module(".connections.trio", __package__)
        if options.get("http2"):
            from .connections.http2_transport import AsyncHttp2Transport  # noqa: PLC0415  # as above

            return AsyncHttp2Transport
        return AsyncInstanceTransport
    _check_factory(factory, options, "AsyncHTTPTransport()")

    return lambda place, *_: AsyncForeign(factory(place.instance), place)


_TAKE_NO_INSTANCE = (httpx.HTTPTransport, httpx.AsyncHTTPTransport)
"""An instance would be their `verify`, and certificates be checked by nobody knows what."""


def _check_factory(factory: object, options: TransportOptions, shown: str) -> None:
    for name in ("max_connection_age", "max_idle_connections"):
        if options.get(name) is not None:
            raise ValueError(f"{name} is for connections of our own, not for transport=")
    if options.get("cert") is not None:
        raise ValueError(
            "cert is not supported with transport=; pass it to the transports that you make"
        )
    if factory == "aiohttp":
        raise ValueError(
            'transport="aiohttp" is no more: connections of our own have taken its place; '
            "pip install 'lbclient[fast]' makes them faster"
        )
    made = isinstance(factory, httpx.BaseTransport | httpx.AsyncBaseTransport)
    if made or factory in _TAKE_NO_INSTANCE or not callable(factory):
        kind = ValueError if isinstance(factory, str) else TypeError
        raise kind(
            "transport must be a function that makes a transport for each instance, such as "
            f"lambda instance: {NAME}.{shown}, not {factory!r}"
        )
