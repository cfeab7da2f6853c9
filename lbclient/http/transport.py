"""Transport and AsyncTransport: balancing under any httpx client. The two shells of HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Protocol, Unpack

import httpx

from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.discovery import Resolver
from lbclient.errors import LoadBalancingError
from lbclient.http.answer import Answer, AsyncAnswer, adrain, aread, drain, read
from lbclient.http.binding import Binding
from lbclient.http.body import awatch, replays, watch
from lbclient.http.errors import as_httpx
from lbclient.http.foreign import AsyncForeign, AsyncTransportFactory, Foreign, TransportFactory
from lbclient.http.options import TransportOptions, WireOptions
from lbclient.http.request import attempt_extensions
from lbclient.http.wire import AsyncWire, Wire
from lbclient.instance import Instance
from lbclient.shell import arun, run

__all__ = ["AsyncTransport", "Service", "Transport"]

Service = str | Iterable[str | Instance] | Resolver


class Transport(httpx.BaseTransport):
    """Balances what a client sends: `httpx.Client(transport=lbclient.Transport(service))`.

    Or one of several origins: `mounts={"http://orders": lbclient.Transport(service)}`. The
    request's own Host is left alone. Takes the arguments of `Balancer`, those of
    `httpx.HTTPTransport` (`proxy` and `uds` excepted), and

    - `tls_name`: the name that TLS asks for and verifies: `"service"`'s or the `"instance"`'s.
    - `transport`: makes another transport for each instance, `instance -> httpx.BaseTransport`.

    Raises ValueError or TypeError, naming the argument, for what cannot be used.
    """

    def __init__(
        self,
        service: Service,
        *,
        transport: TransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None:
        self._binding: Binding[Wire | Foreign] = Binding(service, options, _maker(transport))

    @property
    def balancer(self) -> Balancer:
        """The engine inside."""
        return self._binding.balancer

    def own(self, origin: str) -> None:
        """Balance this origin and refuse any other, as a client of one service does."""
        self._binding.own(origin)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to an instance, and again as the policy says."""
        binding = self._binding
        for wire in binding.departed():
            wire.close()
        stream = watch(request)
        try:
            call = binding.call(request, replays(stream))
            response = run(call, partial(self._send, request, stream))
        except LoadBalancingError as error:
            raise as_httpx(error) from error.__cause__
        return binding.finished(call, response)

    def close(self) -> None:
        """Close every connection and stop discovery; later requests raise RuntimeError."""
        for wire in self._binding.all_wires():
            wire.close()

    def _send(
        self, request: httpx.Request, stream: httpx.SyncByteStream, attempt: Attempt[httpx.Response]
    ) -> httpx.Response:
        binding = self._binding
        if attempt.replaces is not None:
            drain(attempt.replaces)
        wire = binding.wire(attempt.endpoint)
        headers = binding.headers(request, attempt)
        extensions = attempt_extensions(request, attempt.expiry)
        response = wire.send(request, headers, stream, extensions)
        attempt.status = response.status_code
        if not isinstance(response.stream, httpx.ByteStream):
            if binding.reads_at_once(request, response):
                read(response, attempt.expiry)
            else:
                response.stream = Answer(response, attempt)
        return response


class AsyncTransport(httpx.AsyncBaseTransport):
    """The same for `httpx.AsyncClient`, on asyncio and trio.

    `transport` makes httpx.AsyncBaseTransport objects.
    """

    def __init__(
        self,
        service: Service,
        *,
        transport: AsyncTransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None:
        self._binding: Binding[AsyncWire | AsyncForeign] = Binding(
            service, options, _async_maker(transport)
        )

    @property
    def balancer(self) -> Balancer:
        """The engine inside."""
        return self._binding.balancer

    def own(self, origin: str) -> None:
        """Balance this origin and refuse any other, as a client of one service does."""
        self._binding.own(origin)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to an instance, and again as the policy says."""
        binding = self._binding
        for wire in binding.departed():
            await wire.aclose()
        stream = awatch(request)
        try:
            call = binding.call(request, replays(stream))
            response = await arun(call, partial(self._send, request, stream))
        except LoadBalancingError as error:
            raise as_httpx(error) from error.__cause__
        return binding.finished(call, response)

    async def aclose(self) -> None:
        """Close every connection and stop discovery; later requests raise RuntimeError."""
        for wire in self._binding.all_wires():
            await wire.aclose()

    async def _send(
        self,
        request: httpx.Request,
        stream: httpx.AsyncByteStream,
        attempt: Attempt[httpx.Response],
    ) -> httpx.Response:
        binding = self._binding
        if attempt.replaces is not None:
            await adrain(attempt.replaces)
        wire = binding.wire(attempt.endpoint)
        headers = binding.headers(request, attempt)
        extensions = attempt_extensions(request, attempt.expiry)
        response = await wire.send(request, headers, stream, extensions)
        attempt.status = response.status_code
        if not isinstance(response.stream, httpx.ByteStream):
            if binding.reads_at_once(request, response):
                await aread(response, attempt.expiry)
            else:
                response.stream = AsyncAnswer(response, attempt)
        return response


class _Maker(Protocol):
    def __call__(
        self, instance: Instance, options: WireOptions, tls_name: str | None
    ) -> Wire | Foreign: ...


class _AsyncMaker(Protocol):
    def __call__(
        self, instance: Instance, options: WireOptions, tls_name: str | None
    ) -> AsyncWire | AsyncForeign: ...


def _maker(factory: TransportFactory | None) -> _Maker:
    if factory is None:
        return Wire
    _check_factory(factory)

    def make(instance: Instance, options: WireOptions, tls_name: str | None) -> Foreign:
        return Foreign(factory(instance), instance, options.scheme, tls_name)

    return make


def _async_maker(factory: AsyncTransportFactory | None) -> _AsyncMaker:
    if factory is None:
        return AsyncWire
    _check_factory(factory)

    def make(instance: Instance, options: WireOptions, tls_name: str | None) -> AsyncForeign:
        return AsyncForeign(factory(instance), instance, options.scheme, tls_name)

    return make


def _check_factory(factory: object) -> None:
    if isinstance(factory, httpx.BaseTransport | httpx.AsyncBaseTransport) or not callable(factory):
        raise TypeError(
            "transport must be a function that makes a transport for each instance, such as "
            f"lambda instance: httpx.HTTPTransport(), not {factory!r}"
        )
