"""What makes the wire to one instance: ours, or around a caller's own transport."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from .flavour import NAME, httpx
from .foreign import AsyncForeign, AsyncTransportFactory, Foreign, TransportFactory
from .idle import Idle
from .options import TransportOptions, WireOptions
from .request import Place
from .senders import AsyncSender, Sender
from .wire import AsyncWire, Wire

__all__ = ["AsyncMeans", "async_maker", "maker"]

AsyncMeans = AsyncTransportFactory | Literal["aiohttp"]
"""What sends the bytes of an async client in place of our own wires."""


class _Maker(Protocol):
    def __call__(self, place: Place, options: WireOptions, idle: Idle[Any]) -> Sender: ...


class _AsyncMaker(Protocol):
    def __call__(self, place: Place, options: WireOptions, idle: Idle[Any]) -> AsyncSender: ...


def maker(factory: TransportFactory | None, options: TransportOptions) -> _Maker:
    """For threads. Raises TypeError or ValueError for what can make none."""
    if factory is None:
        return Wire
    _check_factory(factory, options, 'HTTPTransport(), or "aiohttp" (async only)')

    return lambda place, *_: Foreign(factory(place.instance), place)


def async_maker(factory: AsyncMeans | None, options: TransportOptions) -> _AsyncMaker:
    """The same for event loops. Raises ImportError where `"aiohttp"` lacks its extra."""
    if factory is None:
        return AsyncWire
    if factory == "aiohttp":
        return _over_aiohttp(options)
    _check_factory(factory, options, 'AsyncHTTPTransport(), or "aiohttp"')

    return lambda place, *_: AsyncForeign(factory(place.instance), place)


def _over_aiohttp(options: TransportOptions) -> _AsyncMaker:
    for name, can in _NOT_WITH_AIOHTTP.items():
        if (given := options.get(name, can)) != can:
            raise ValueError(f'{name}={given!r} cannot be had with transport="aiohttp"')
    try:
        from .aiohttp import AiohttpWire  # noqa: PLC0415  # asked for only here
    except ModuleNotFoundError as error:
        raise ImportError(
            "transport=\"aiohttp\" needs the package aiohttp: pip install 'lbclient[aiohttp]'"
        ) from error
    return lambda place, options, _: AiohttpWire(place, options)


_NOT_WITH_AIOHTTP = {"http1": True, "http2": False, "retries": 0, "max_idle_connections": None}
"""What aiohttp lacks, and what is meant where it is not asked for."""


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
        raise ValueError('transport="aiohttp" is for AsyncClient and AsyncTransport only')
    made = isinstance(factory, httpx.BaseTransport | httpx.AsyncBaseTransport)
    if made or factory in _TAKE_NO_INSTANCE or not callable(factory):
        kind = ValueError if isinstance(factory, str) else TypeError
        raise kind(
            "transport must be a function that makes a transport for each instance, such as "
            f"lambda instance: {NAME}.{shown}, not {factory!r}"
        )
