# The types of `lbclient/http` when it is loaded for httpx2: the same, with httpx2's types.
# `tests/http/test_httpx2_types.py` compares this file with the source.

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias, TypedDict, Unpack

import httpx2
from httpx2._client import EventHook, UseClientDefault
from httpx2._types import (
    AuthTypes,
    CookieTypes,
    HeaderTypes,
    QueryParamTypes,
    RequestContent,
    RequestData,
    RequestExtensions,
    RequestFiles,
    TimeoutTypes,
)

from lbclient.balancer.balancer import Balancer
from lbclient.balancer.options import BalancerOptions
from lbclient.discovery.composite import Service
from lbclient.endpoint.instance import Instance
from lbclient.errors import (
    BalancerClosed,
    DeadlineExceeded,
    DiscoveryError,
    LoadBalancingError,
    NoInstanceAvailable,
    ServiceAbsent,
    Throttled,
)
from lbclient.http.options import ConnectionOptions, Latency

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "BalancerClosed",
    "Client",
    "DeadlineExceeded",
    "DiscoveryError",
    "LoadBalancingError",
    "NoInstanceAvailable",
    "ServiceAbsent",
    "Throttled",
    "Transport",
]

TransportFactory: TypeAlias = Callable[[Instance], httpx2.BaseTransport]
AsyncTransportFactory: TypeAlias = Callable[[Instance], httpx2.AsyncBaseTransport]

class TransportOptions(BalancerOptions, ConnectionOptions, total=False):
    """The options of a transport."""

    limits: httpx2.Limits
    tls_name: str
    key: Callable[[httpx2.Request], object] | None
    fair_by: Callable[[httpx2.Request], object] | None
    deadline_header: str | None
    latency: Latency
    close_grace: float

class HttpxOptions(TypedDict, total=False):
    """The options of httpx2's own client."""

    auth: AuthTypes | None
    params: QueryParamTypes | None
    headers: HeaderTypes | None
    cookies: CookieTypes | None
    timeout: TimeoutTypes
    follow_redirects: bool
    max_redirects: int
    event_hooks: Mapping[str, list[EventHook]] | None
    base_url: httpx2.URL | str
    default_encoding: str | Callable[[bytes], str]

class ClientOptions(TransportOptions, HttpxOptions, total=False):
    """The options of a client: those of its transport, and those of httpx2's client."""

class RequestOptions(TypedDict, total=False):
    """The keyword arguments of `build_request`."""

    content: RequestContent | None
    data: RequestData | None
    files: RequestFiles | None
    json: object
    params: QueryParamTypes | None
    headers: HeaderTypes | None
    cookies: CookieTypes | None
    timeout: TimeoutTypes | UseClientDefault
    extensions: RequestExtensions | None

class _BalancedTransport:
    """The common base of `Transport` and `AsyncTransport`, which differ only in how they wait."""

    @property
    def balancer(self) -> Balancer:
        """The balancer of this transport."""
    def own(self, origin: str) -> None:
        """Accept only requests for this origin, as a client of one service does."""

class Transport(_BalancedTransport, httpx2.BaseTransport):
    """An httpx2 transport that balances requests:
    `httpx2.Client(transport=lbclient.httpx2.Transport(service))`."""

    def __init__(
        self,
        service: Service,
        *,
        transport: TransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None: ...
    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to an instance, and retry it as the retry policy says."""
    def close(self) -> None:
        """Wait up to `close_grace` seconds for calls under way, then end these calls and close
        every connection. Later requests raise RuntimeError."""

class AsyncTransport(_BalancedTransport, httpx2.AsyncBaseTransport):
    """A `Transport` for `httpx2.AsyncClient`, on asyncio (also with uvloop) and trio."""

    def __init__(
        self,
        service: Service,
        *,
        transport: AsyncTransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None: ...
    # As in httpx2, but not declared `async`: it returns the coroutine.
    def handle_async_request(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: httpx2.Request
    ) -> Coroutine[Any, Any, httpx2.Response]:
        """Send a request to an instance, and retry it as the retry policy says."""
    async def aclose(self) -> None:
        """Like `Transport.close`. Other running event loops close their own connections soon."""

class _BalancedClient:
    """The common base of `Client` and `AsyncClient`. In both, httpx2's client is the next base
    class."""

    def __init__(
        self,
        kind: type[Transport | AsyncTransport],
        service: Service,
        transport: Any,
        options: Mapping[str, object],
    ) -> None: ...
    @property
    def balancer(self) -> Balancer:
        """The balancer of this client."""
    @property
    def cookies(self) -> httpx2.Cookies:
        """The cookies that are sent, including those that responses have set."""
    @cookies.setter
    def cookies(self, cookies: CookieTypes) -> None: ...
    def build_request(
        self, method: str, url: httpx2.URL | str, **options: Unpack[RequestOptions]
    ) -> httpx2.Request:
        """Build a request, as httpx2's client does."""

class Client(_BalancedClient, httpx2.Client):
    """An `httpx2.Client` that spreads its requests over the instances of one service."""

    def __init__(
        self,
        service: Service,
        *,
        transport: TransportFactory | None = None,
        **options: Unpack[ClientOptions],
    ) -> None: ...
    def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: AuthTypes | UseClientDefault | None = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: bool | UseClientDefault = httpx2.USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        """Send a request, as `httpx2.Client.send` does."""

class AsyncClient(_BalancedClient, httpx2.AsyncClient):
    """An `httpx2.AsyncClient` that spreads its requests over the instances of one service."""

    def __init__(
        self,
        service: Service,
        *,
        transport: AsyncTransportFactory | None = None,
        **options: Unpack[ClientOptions],
    ) -> None: ...
    async def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: AuthTypes | UseClientDefault | None = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: bool | UseClientDefault = httpx2.USE_CLIENT_DEFAULT,
    ) -> httpx2.Response:
        """Send a request, as `httpx2.AsyncClient.send` does."""
