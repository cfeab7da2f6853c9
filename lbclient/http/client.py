"""Client and AsyncClient: httpx's clients, with a transport that balances the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from lbclient._internal import validation
from lbclient._internal.deadline import CURRENT
from lbclient.balancer.balancer import Balancer
from lbclient.balancer.binding import described
from lbclient.balancer.options import shows, with_defaults
from lbclient.discovery.registry import Target
from lbclient.errors import DeadlineExceeded
from lbclient.protocol import bind

from ._compat import NAME, httpx
from .adapter import closed_on_error
from .connections.custom_transport import AsyncTransportFactory, TransportFactory
from .options import ClientOptions, HttpxOptions, TransportOptions, checked, part
from .origin import Origin
from .request import UNSTREAMED, explain, request_deadline
from .request_cache import LazyCookies, RequestCache
from .shortcuts import DirectAsyncClient, DirectClient
from .transport import AsyncTransport, Service, Transport

if TYPE_CHECKING:
    from httpx._client import UseClientDefault
    from httpx._types import (
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

__all__ = ["AsyncClient", "Client"]


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


class _BalancedClient:
    """The common base of `Client` and `AsyncClient`. In both, httpx's client is the next base
    class."""

    def __init__(
        self,
        kind: type[Transport | AsyncTransport],
        service: Service,
        transport: Any,
        options: Mapping[str, object],
    ) -> None:
        given = checked(options, ClientOptions)
        own = _own(given)
        balancing = kind(service, transport=transport, **part(given, TransportOptions))
        self._balancer = balancing.balancer
        self._binding = bind(self._balancer)
        target = self._balancer.target
        self._request_cache = RequestCache(Origin(target, self._balancer.instances))
        with closed_on_error(self._balancer):
            own["base_url"] = _base_url(own["base_url"], target)
            cookies = own.pop("cookies", None)
            super().__init__(transport=balancing, **own)  # type: ignore[call-arg]  # httpx's client
            self._lazy_cookies = LazyCookies(cookies)
        balancing.own(target.origin)
        self._deadline = self._binding.retry.deadline

    def __repr__(self) -> str:
        return described(self, getattr(self, "_binding", None))

    @property
    def balancer(self) -> Balancer:
        """The balancer of this client."""
        return self._balancer

    @property
    def cookies(self) -> httpx.Cookies:
        """The cookies that are sent, including those that responses have set."""
        return self._lazy_cookies

    @cookies.setter
    def cookies(self, cookies: CookieTypes) -> None:
        self._lazy_cookies = LazyCookies(cookies)

    def build_request(
        self, method: str, url: httpx.URL | str, **options: Unpack[RequestOptions]
    ) -> httpx.Request:
        """Build a request, as httpx's client does."""
        build = super().build_request  # type: ignore[misc]  # as above
        # In each subclass, `self` is also a client of httpx.
        return self._request_cache.request(self, method, url, options, build)  # type: ignore[arg-type]


@shows(ClientOptions)
class Client(_BalancedClient, DirectClient):
    """An `httpx.Client` that spreads its requests over the instances of one service.

        options = lbclient.recommended(deadline=2.0)  # seconds, for each call
        with lbclient.Client("http+srv://orders.example.com", **options) as client:
            order = client.get("/orders/42").json()

    It takes the arguments of `Transport` and of `httpx.Client`, except `proxy` and `mounts`, which
    would bypass the balancer. Unless a response is streamed, its body is read within the attempt.
    So if an instance fails while it sends the body, the request can be retried.

    - `service`: the service to call: a URL such as `"http+srv://orders.example.com"` (DNS SRV
      records) or `"http+dns://orders.example.com:8080"` (addresses), a list of URLs or of
      `Instance`, an object with `resolve() -> Answer`, a `Watcher`, or several of these as
      `FirstOf(...)` or `Union(...)`.
    - `transport`: a function `instance -> httpx.BaseTransport` that makes your own transport for
      each instance. None uses the connections of lbclient.

    For a deadline of every call, pass `retry=RetryPolicy(deadline=2.0)`. A request can set its own
    options with `extensions={"lbclient": options}`. `options` is a dict with any of these keys:

        "idempotent": True      # the call may be repeated even if it may have been carried out
        "deadline": 0.5         # seconds for the whole call, including redirects and the body
        "key": "user-42"        # a strategy such as "consistent-hash" picks by this value
        "caller": "tenant-7"    # callers whose requests wait for a slot take turns

    If an instance fails, a call raises httpx's own exception. Errors of lbclient itself, such as
    DiscoveryError, NoInstanceAvailable and DeadlineExceeded, are LoadBalancingErrors, and also
    `httpx.TransportError`s. A request for another origin raises a LoadBalancingError too.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
    """

    def __init__(
        self,
        service: Service,
        *,
        transport: TransportFactory | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(Transport, service, transport, options)

    def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: AuthTypes | UseClientDefault | None = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: bool | UseClientDefault = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """Send a request, as `httpx.Client.send` does."""
        given = request.extensions
        request.extensions = {**given, UNSTREAMED: not stream}
        send = super().send
        # Without a deadline, several requests of this `send` need not share one, unless an
        # enclosing `send` has a deadline.
        if self._deadline is None and "lbclient" not in given and CURRENT.get() is None:
            return send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)
        shared = request_deadline(request, self._deadline, self._binding)
        # This is not a context manager: if a signal handler raised an exception just when
        # `__exit__` begins, the deadline would stay in the context of this thread.
        try:
            CURRENT.set(shared)
            return send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)
        except DeadlineExceeded as error:
            explain(error, shared)
            raise
        finally:
            CURRENT.set(shared.outer)


@shows(ClientOptions)
class AsyncClient(_BalancedClient, DirectAsyncClient):
    """An `httpx.AsyncClient` that spreads its requests over the instances of one service.

    It works on asyncio (also with uvloop) and on trio. In all other respects it works like
    `Client`.

    - `service`: the service to call, in any of the forms that `Client` takes.
    - `transport`: a function `instance -> httpx.AsyncBaseTransport` that makes your own transport
      for each instance. None uses the connections of lbclient.
    """

    def __init__(
        self,
        service: Service,
        *,
        transport: AsyncTransportFactory | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(AsyncTransport, service, transport, options)

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: AuthTypes | UseClientDefault | None = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: bool | UseClientDefault = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """Send a request, as `httpx.AsyncClient.send` does."""
        given = request.extensions
        request.extensions = {**given, UNSTREAMED: not stream}
        send = super().send
        if self._deadline is None and "lbclient" not in given and CURRENT.get() is None:
            return await send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)
        shared = request_deadline(request, self._deadline, self._binding)
        try:
            CURRENT.set(shared)
            return await send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)
        except DeadlineExceeded as error:
            explain(error, shared)
            raise
        finally:
            if CURRENT.get() is shared:
                CURRENT.set(shared.outer)
            shared.lift()  # the deadline stays there if this call was resumed elsewhere


def _own(given: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments for httpx's client. The other arguments are for the transport;
    `trust_env` is for both."""
    own: dict[str, Any] = with_defaults(part(given, HttpxOptions), HttpxOptions)
    for name, value in _timeout(own["timeout"]).as_dict().items():
        if value is not None:
            validation.seconds(f"timeout ({name})", value)
    return own | {"trust_env": given.get("trust_env", True)}


def _timeout(value: Any) -> httpx.Timeout:
    wanted = f"seconds, None or {NAME}.Timeout(...)"
    if not isinstance(value, int | float | tuple | httpx.Timeout | None):
        raise TypeError(f"timeout must be {wanted}, not {value!r} ({type(value)})")
    try:
        return httpx.Timeout(value)
    except (TypeError, ValueError, IndexError) as error:
        raise TypeError(f"timeout must be {wanted}: {error}") from None


def _base_url(wanted: object, target: Target) -> httpx.URL:
    """Return the base URL of a client: the service's URL with the path of `wanted`. `wanted` is a
    path, or the service's URL in any spelling."""
    if not isinstance(wanted, str | httpx.URL):
        raise TypeError(f"base_url must be a path such as '/v1', not {wanted!r}")
    here = httpx.URL(target.origin + target.path)
    try:
        url = httpx.URL(wanted)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url must be a path such as '/v1': {error}") from None
    if url.query or url.fragment:
        raise ValueError("base_url must be a path without query and fragment; pass params= instead")
    if url.scheme or url.host:
        if (logical := Origin(target, tuple).logical(url)) is None:
            shown = f"{url.scheme}://{url.netloc.decode('ascii')}"  # no user name, no password
            raise ValueError(f"base_url must be a path, or a URL of {target.origin}, not {shown}")
        return logical
    path = here.path.rstrip("/") + "/" + url.path.lstrip("/")
    return here.copy_with(path=path)
