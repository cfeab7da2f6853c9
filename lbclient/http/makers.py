"""What makes the wire to one instance: ours, or around a caller's own transport."""

from __future__ import annotations

from typing import Protocol

import httpx

from lbclient.http.foreign import AsyncForeign, AsyncTransportFactory, Foreign, TransportFactory
from lbclient.http.options import TransportOptions, WireOptions
from lbclient.http.request import Place
from lbclient.http.wire import AsyncWire, Wire
from lbclient.http.wires import AsyncSender, Sender

__all__ = ["async_maker", "maker"]


class _Maker(Protocol):
    def __call__(self, place: Place, options: WireOptions) -> Sender: ...


class _AsyncMaker(Protocol):
    def __call__(self, place: Place, options: WireOptions) -> AsyncSender: ...


def maker(factory: TransportFactory | None, options: TransportOptions) -> _Maker:
    """For threads. Raises TypeError or ValueError for what can make none."""
    if factory is None:
        return Wire
    _check_factory(factory, options)

    return lambda place, _: Foreign(factory(place.instance), place)


def async_maker(factory: AsyncTransportFactory | None, options: TransportOptions) -> _AsyncMaker:
    """The same for event loops."""
    if factory is None:
        return AsyncWire
    _check_factory(factory, options)

    return lambda place, _: AsyncForeign(factory(place.instance), place)


def _check_factory(factory: object, options: TransportOptions) -> None:
    if options.get("max_connection_age") is not None:
        raise ValueError("max_connection_age is for connections of our own, not for transport=")
    if isinstance(factory, httpx.BaseTransport | httpx.AsyncBaseTransport) or not callable(factory):
        raise TypeError(
            "transport must be a function that makes a transport for each instance, such as "
            f"lambda instance: httpx.HTTPTransport(), not {factory!r}"
        )
