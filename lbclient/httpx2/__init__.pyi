# The types of `lbclient/http` when it is loaded for httpx2: the same, with httpx2's types.
# `tests/http/test_httpx2_types.py` compares this file with the source.

from collections.abc import Callable, Mapping
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
from lbclient.http.options import ConnectionOptions

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
    limits: httpx2.Limits
    tls_name: str
    key: Callable[[httpx2.Request], object] | None
    fair_by: Callable[[httpx2.Request], object] | None
    deadline_header: str | None
    close_grace: float

class HttpxOptions(TypedDict, total=False):
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

class ClientOptions(TransportOptions, HttpxOptions, total=False): ...

class RequestOptions(TypedDict, total=False):
    content: RequestContent | None
    data: RequestData | None
    files: RequestFiles | None
    json: object
    params: QueryParamTypes | None
    headers: HeaderTypes | None
    cookies: CookieTypes | None
    timeout: TimeoutTypes | UseClientDefault
    extensions: RequestExtensions | None

class Transport(httpx2.BaseTransport):
    def __init__(
        self,
        service: Service,
        *,
        transport: TransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None: ...
    @property
    def balancer(self) -> Balancer: ...
    def own(self, origin: str) -> None: ...
    def handle_request(self, request: httpx2.Request) -> httpx2.Response: ...
    def close(self) -> None: ...

class AsyncTransport(httpx2.AsyncBaseTransport):
    def __init__(
        self,
        service: Service,
        *,
        transport: AsyncTransportFactory | None = None,
        **options: Unpack[TransportOptions],
    ) -> None: ...
    @property
    def balancer(self) -> Balancer: ...
    def own(self, origin: str) -> None: ...
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def aclose(self) -> None: ...

class _BalancedClient:
    def __init__(
        self,
        kind: type[Transport | AsyncTransport],
        service: Service,
        transport: Any,
        options: Mapping[str, object],
    ) -> None: ...
    @property
    def balancer(self) -> Balancer: ...
    @property
    def cookies(self) -> httpx2.Cookies: ...
    @cookies.setter
    def cookies(self, cookies: CookieTypes) -> None: ...
    def build_request(
        self, method: str, url: httpx2.URL | str, **options: Unpack[RequestOptions]
    ) -> httpx2.Request: ...

class Client(_BalancedClient, httpx2.Client):
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
        auth: AuthTypes | UseClientDefault | None = ...,
        follow_redirects: bool | UseClientDefault = ...,
    ) -> httpx2.Response: ...

class AsyncClient(_BalancedClient, httpx2.AsyncClient):
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
        auth: AuthTypes | UseClientDefault | None = ...,
        follow_redirects: bool | UseClientDefault = ...,
    ) -> httpx2.Response: ...
