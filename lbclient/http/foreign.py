"""A transport of the caller's own making, one an instance: `transport=factory`.

It gets a request of its own whose URL names the instance, with the service's Host and TLS name; the
caller's request is never changed, or its cookies would be kept for an instance, and redirects would
go past the balancer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import anyio

from lbclient.deadline import time_left
from lbclient.instance import Instance

from .flavour import NAME, httpx
from .request import Place, own_headers

__all__ = ["AsyncForeign", "AsyncTransportFactory", "Foreign", "TransportFactory"]

TransportFactory = Callable[[Instance], httpx.BaseTransport]
AsyncTransportFactory = Callable[[Instance], httpx.AsyncBaseTransport]
_URLS = 256


class _Rebased:
    """Turns a request for the service into one for the instance."""

    def __init__(self, place: Place) -> None:
        instance = place.instance
        host = f"[{instance.host}]" if ":" in instance.host else instance.host
        origin = f"{place.scheme}://{host}:{instance.port}".encode("ascii")

        def url(raw_path: bytes) -> httpx.URL:
            return httpx.URL((origin + raw_path).decode("ascii"))

        self._url = lru_cache(_URLS)(url)
        self._place = place
        self._tls = {"sni_hostname": place.tls_name} if place.tls_name else {}

    def _rebased(
        self,
        request: httpx.Request,
        body: httpx.SyncByteStream | httpx.AsyncByteStream,
        extensions: Mapping[str, object],
    ) -> httpx.Request:
        made = httpx.Request.__new__(httpx.Request)
        made.__dict__.update(request.__dict__)  # copy.copy would pickle it, and lose its body
        made.url = self._url(request.url.raw_path)
        made.headers = own_headers(request, self._place)
        made.stream = body
        made.extensions = {**self._tls, **extensions}
        return made

    @property
    def quiet(self) -> bool:
        """False: what a caller's transport is doing, only that knows."""
        return False

    def disown(self) -> None:
        """In a forked child: what the caller's transport shares with the parent, it must know."""


class Foreign(_Rebased):
    """The caller's transport to one instance, for threads."""

    def __init__(self, transport: httpx.BaseTransport, place: Place) -> None:
        super().__init__(place)
        if not isinstance(transport, httpx.BaseTransport):
            raise TypeError(f"transport= must make {NAME}.BaseTransport objects, not {transport!r}")
        self._transport = transport

    def send(
        self,
        request: httpx.Request,
        body: httpx.SyncByteStream,
        extensions: Mapping[str, object],
    ) -> httpx.Response:
        """Send it, and return once the headers came."""
        return self._transport.handle_request(self._rebased(request, body, extensions))

    def retire(self) -> None:
        """Close the transport."""
        self._transport.close()

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()


class AsyncForeign(_Rebased):
    """The caller's transport to one instance, for an event loop."""

    def __init__(self, transport: httpx.AsyncBaseTransport, place: Place) -> None:
        super().__init__(place)
        if not isinstance(transport, httpx.AsyncBaseTransport):
            raise TypeError(
                f"transport= must make {NAME}.AsyncBaseTransport objects, not {transport!r}"
            )
        self._transport = transport

    async def send(
        self,
        request: httpx.Request,
        body: httpx.AsyncByteStream,
        extensions: Mapping[str, object],
    ) -> httpx.Response:
        """Send it, and return once the headers came; cancelled when the attempt's time is up."""
        made = self._rebased(request, body, extensions)
        if (left := time_left()) is None:
            return await self._transport.handle_async_request(made)
        with anyio.move_on_after(left):
            return await self._transport.handle_async_request(made)
        raise httpx.ReadTimeout("the time of the attempt is up")

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()
