"""A transport of the caller's own making, one an instance: `transport=factory`.

It gets a request of its own whose URL names a vetted address of the instance (its host, where there
is none), with the service's Host and TLS name. A name in the URL would be resolved by the caller's
transport once more, past the address filter. The caller's request is never changed, or its cookies
would be kept for an instance, and redirects would go past the balancer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

import anyio

from lbclient.deadline import time_left
from lbclient.instance import Instance
from lbclient.outcome import more_telling

from .body import replays
from .connections.timeouts import DeadlineTimeout
from .flavour import NAME, httpx
from .request import Place, raw_headers
from .shortcuts import copied, headers_of

__all__ = ["AsyncForeign", "AsyncTransportFactory", "Foreign", "TransportFactory"]

TransportFactory = Callable[[Instance], httpx.BaseTransport]
AsyncTransportFactory = Callable[[Instance], httpx.AsyncBaseTransport]
_URLS = 256
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)


class _Rebased:
    """Turns a request for the service into one for an address of the instance.

    `_at` is the address to begin with: the last one that has not failed. A pool of the caller's
    dials for each request anew whatever it has no connection to, so a dead address must not come
    first every time.
    """

    def __init__(self, place: Place) -> None:
        instance = place.instance
        hosts = instance.addresses or (instance.host,)
        shown = (f"[{host}]" if ":" in host else host for host in hosts)
        self._origins = [f"{place.scheme}://{host}:{instance.port}".encode() for host in shown]
        self._at = 0

        def url(at: int, raw_path: bytes) -> httpx.URL:
            return httpx.URL((self._origins[at] + raw_path).decode("ascii"))

        self._url = lru_cache(_URLS)(url)
        self._place = place
        tls_name = place.tls_name or (instance.host if instance.addresses else None)
        self._tls = {"sni_hostname": tls_name} if tls_name else {}

    def _rebased(
        self,
        request: httpx.Request,
        body: httpx.SyncByteStream | httpx.AsyncByteStream,
        extensions: Mapping[str, object],
        at: int,
    ) -> httpx.Request:
        made = copied(request)
        made.url = self._url(at, request.url.raw_path)
        made.headers = headers_of(raw_headers(request, self._place))
        made.stream = body
        made.extensions = {**self._tls, **extensions}
        if len(self._origins) > 1 and "timeout" in extensions:
            made.extensions["timeout"] = self._share(extensions["timeout"])
        return made

    def _share(self, timeout: object) -> Mapping[str, object]:
        """The same timeouts; of the one for connecting, each address has its share."""
        timeouts = dict(cast("Mapping[str, float | None]", timeout))
        connect = timeouts.get("connect")
        left = connect.now() if isinstance(connect, DeadlineTimeout) else connect
        if left is not None:
            timeouts["connect"] = left / len(self._origins)
        return timeouts

    def _after(self, at: int, first: int, body: object) -> int | None:
        """The address to try now that nothing was sent to this one; None where none is left."""
        following = (at + 1) % len(self._origins)
        if len(self._origins) > 1:
            self._at = following
        if following == first or time_left() == 0.0:
            return None
        replayable = replays(body)
        return following if replayable is None or replayable() else None

    @property
    def quiet(self) -> bool:
        """False: what a caller's transport is doing, only that knows."""
        return False

    def retire(self) -> None:
        """Nothing yet: which of its connections are idle, only the caller's transport knows."""

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
        """Send it to the first address that can be connected to; return once the headers came."""
        first = at = self._at
        failure: Exception | None = None
        while True:
            made = self._rebased(request, body, extensions, at)
            try:
                return self._transport.handle_request(made)
            except _NOT_CONNECTED as error:
                failure = more_telling(failure, error)
            if (following := self._after(at, first, body)) is None:
                raise failure
            at = following

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
        """The same; cancelled when the attempt's time is up."""
        if (left := time_left()) is None:
            return await self._send(request, body, extensions)
        with anyio.move_on_after(left):
            return await self._send(request, body, extensions)
        raise httpx.ReadTimeout("the time of the attempt is up")

    async def _send(
        self,
        request: httpx.Request,
        body: httpx.AsyncByteStream,
        extensions: Mapping[str, object],
    ) -> httpx.Response:
        first = at = self._at
        failure: Exception | None = None
        while True:
            made = self._rebased(request, body, extensions, at)
            try:
                return await self._transport.handle_async_request(made)
            except _NOT_CONNECTED as error:
                failure = more_telling(failure, error)
            if (following := self._after(at, first, body)) is None:
                raise failure
            at = following

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()
