"""HTTP clients to compare, by name: each is a context manager that yields what makes one call."""

from __future__ import annotations

import http.client
import random
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import bulk
import httpx
import sides
from crowd import AsyncCall, Call, Effort, of_tasks

import lbclient

IDLE = 60.0
UNLIMITED = {
    "max_connections": None,
    "max_keepalive_connections": None,
    "keepalive_expiry": IDLE,
}
HTTPX, NOISE, OURS = "bare httpx", "noise: bare httpx again", "lbclient"
FEW = 16
BEGUN_WITH_FEW = f"bare httpx, started with {FEW} calls"
HTTPX_AIOHTTP = "httpx over httpx-aiohttp"
AIOHTTP, ACALL = "raw aiohttp", "Balancer.acall around aiohttp"
HTTPX2, OURS_HTTPX2 = "bare httpx2", "lbclient.httpx2"
URLLIB3, HTTP_CLIENT = "urllib3", "http.client, a connection a thread"
TRACED_AIOHTTP = "raw aiohttp under one span"
SPANNED_AIOHTTP = "raw aiohttp under the spans of lbclient"
TRACED_OURS, MEASURED_OURS = "lbclient, spans recorded", "lbclient, spans and metrics recorded"

FAST = "httptools"
_PACKAGES = {
    OURS: FAST,
    TRACED_OURS: FAST,
    MEASURED_OURS: FAST,
    AIOHTTP: "aiohttp",
    ACALL: "aiohttp",
    TRACED_AIOHTTP: "aiohttp",
    SPANNED_AIOHTTP: "aiohttp",
    HTTPX_AIOHTTP: "httpx_aiohttp",
    HTTPX2: "httpx2",
    OURS_HTTPX2: "httpx2",
    URLLIB3: "urllib3",
}
_BEGINNING = Effort(0, 0.1)


class Upstream(NamedTuple):
    """What a client calls. Clients with one origin take the first of the URLs. `exchange` is
    "small" or one of `bulk.EXCHANGES`; `ca` is a file of certificates, for https."""

    urls: tuple[str, ...]
    exchange: str
    ca: str | None

    @property
    def url(self) -> str:
        path = "" if self.exchange == "small" else self.exchange
        return f"{self.urls[0]}/{path}"

    def trust(self) -> ssl.SSLContext:
        """Of this file alone: the system's certificates take a while to load."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            context.load_verify_locations(self.ca)
        return context


def through(name: str, client: str = HTTPX) -> str:
    """What a client that goes through a sidecar is called."""
    return f"{client} through {name}"


def missing(rival: str) -> str | None:
    """The package that this client needs and that is not installed."""
    package = _PACKAGES.get(rival)
    if package is None or find_spec(package) is not None:
        return None
    return package.replace("_", "-")


def _httpx(upstream: Upstream, *, begin_with: int = 0) -> AbstractAsyncContextManager[AsyncCall]:
    client = sides.bare_async(limits=httpx.Limits(**UNLIMITED), verify=upstream.trust())
    return _calling(client, upstream, begin_with=begin_with)


def _ours(upstream: Upstream, **options: object) -> AbstractAsyncContextManager[AsyncCall]:
    limits = httpx.Limits(**UNLIMITED)
    client = sides.ours_async(upstream.urls, limits=limits, verify=upstream.trust(), **options)
    return _calling(client, upstream)


def _httpx_aiohttp(upstream: Upstream) -> AbstractAsyncContextManager[AsyncCall]:
    import httpx_aiohttp  # noqa: PLC0415  # where it is installed

    transport = httpx_aiohttp.AiohttpTransport(client=partial(_session, upstream))
    return _calling(sides.bare_async(transport=transport), upstream)


def _httpx2(upstream: Upstream) -> AbstractAsyncContextManager[AsyncCall]:
    import httpx2  # noqa: PLC0415  # where it is installed

    options = {"limits": httpx2.Limits(**UNLIMITED), "trust_env": False}
    return _calling(httpx2.AsyncClient(verify=upstream.trust(), **options), upstream)


def _ours_httpx2(upstream: Upstream) -> AbstractAsyncContextManager[AsyncCall]:
    import httpx2  # noqa: PLC0415  # where it is installed

    import lbclient.httpx2  # noqa: PLC0415

    options = {"limits": httpx2.Limits(**UNLIMITED), "rng": random.Random(1), "trust_env": False}
    client = lbclient.httpx2.AsyncClient(upstream.urls, verify=upstream.trust(), **options)
    return _calling(client, upstream)


@asynccontextmanager
async def _calling(
    client: Any, upstream: Upstream, *, begin_with: int = 0
) -> AsyncIterator[AsyncCall]:
    """A client of httpx or httpx2, or ours; used by so many at once before, if any."""
    url, content = upstream.url, bulk.async_content(upstream.exchange)

    async def call() -> None:
        sides.check(await client.get(url))

    async def upload() -> None:
        sides.check(await client.post(url, content=content()))

    async with client:
        if begin_with:
            await of_tasks(call, begin_with, _BEGINNING)
        yield call if content is None else upload


def _session(upstream: Upstream) -> Any:
    import aiohttp  # noqa: PLC0415  # where it is installed

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE, ssl=upstream.trust())
    return aiohttp.ClientSession(connector=connector)


@asynccontextmanager
async def _aiohttp(upstream: Upstream) -> AsyncIterator[AsyncCall]:
    url, content = upstream.url, bulk.async_content(upstream.exchange)
    async with _session(upstream) as session:

        async def call() -> None:
            await _fetched(session, url)

        async def upload() -> None:
            async with session.post(url, data=content()) as response:
                await _read(response)

        yield call if content is None else upload


@asynccontextmanager
async def _traced_aiohttp(upstream: Upstream) -> AsyncIterator[AsyncCall]:
    tracer = sides.recording()["tracer_provider"].get_tracer("benchmark")
    async with _session(upstream) as session:

        async def call() -> None:
            with tracer.start_as_current_span("GET"):
                await _fetched(session, upstream.url)

        yield call


@asynccontextmanager
async def _spanned_aiohttp(upstream: Upstream) -> AsyncIterator[AsyncCall]:
    """The SDK is asked for what one call of ours asks it for, and nothing else is done: the span of
    the call, that of its attempt, their attributes, and `traceparent`."""
    from opentelemetry import context, propagate, trace  # noqa: PLC0415  # for those who ask

    tracer = sides.recording()["tracer_provider"].get_tracer("benchmark")
    parts = urlsplit(upstream.url)
    server = {"server.address": parts.hostname, "server.port": parts.port}
    peer = {"network.peer.address": parts.hostname, "network.peer.port": parts.port}
    of_call = {"lbclient.service": parts.hostname, "lbclient.attempts": 1}
    of_attempt = {"http.request.method": "GET", **server, "url.full": upstream.url, **peer}
    kind = trace.SpanKind.CLIENT
    async with _session(upstream) as session:

        async def call() -> None:
            around = context.get_current()
            outer = tracer.start_span("lbclient.call", around, attributes=of_call)
            within = trace.set_span_in_context(outer, around)
            inner = tracer.start_span("GET", within, kind, of_attempt)
            within = trace.set_span_in_context(inner, within)
            token = context.attach(within)
            headers: dict[str, str] = {}
            propagate.inject(headers, within)
            async with session.get(upstream.url, headers=headers) as response:
                await _read(response)
            context.detach(token)
            inner.set_attribute("http.response.status_code", response.status)
            inner.end()
            outer.end()

        yield call


@asynccontextmanager
async def _balanced(upstream: Upstream) -> AsyncIterator[AsyncCall]:
    """`Balancer` picks, a plain session sends."""
    scheme = urlsplit(upstream.url).scheme
    balancer = lbclient.Balancer(upstream.urls, judge=_judge(), rng=random.Random(1))
    async with AsyncExitStack() as stack:
        stack.enter_context(balancer)
        session = await stack.enter_async_context(_session(upstream))

        async def send(instance: lbclient.Instance) -> None:
            await _fetched(session, f"{scheme}://{instance}/")

        async def call() -> None:
            await balancer.acall(send)

        yield call


async def _fetched(session: Any, url: str) -> None:
    async with session.get(url) as response:
        await _read(response)


async def _read(response: Any) -> None:
    await response.read()
    if response.status != 200:
        raise RuntimeError(f"a benchmark must not measure failures: {response}")


def _judge() -> Callable[[object], lbclient.Verdict]:
    """Short for the one in docs/usage.md."""
    import aiohttp  # noqa: PLC0415  # where it is installed

    good = lbclient.Verdict(fault=False)
    bad = lbclient.Verdict(fault=True, again="idempotent")
    faults = (aiohttp.ClientError, OSError)

    return lambda result: bad if isinstance(result, faults) else good


def _traced_ours(upstream: Upstream) -> AbstractAsyncContextManager[AsyncCall]:
    return _ours(upstream, tracer_provider=sides.recording()["tracer_provider"])


def _measured_ours(upstream: Upstream) -> AbstractAsyncContextManager[AsyncCall]:
    return _ours(upstream, **sides.recording())


TASKS: Mapping[str, Callable[[Upstream], AbstractAsyncContextManager[AsyncCall]]] = {
    HTTPX: _httpx,
    NOISE: _httpx,
    BEGUN_WITH_FEW: partial(_httpx, begin_with=FEW),
    OURS: _ours,
    ACALL: _balanced,
    AIOHTTP: _aiohttp,
    HTTPX_AIOHTTP: _httpx_aiohttp,
    HTTPX2: _httpx2,
    OURS_HTTPX2: _ours_httpx2,
    TRACED_AIOHTTP: _traced_aiohttp,
    SPANNED_AIOHTTP: _spanned_aiohttp,
    TRACED_OURS: _traced_ours,
    MEASURED_OURS: _measured_ours,
}
"""For event loops."""


@contextmanager
def _blocking(client: Any, upstream: Upstream) -> Iterator[Call]:
    """A client of httpx or httpx2, or ours."""
    url, content = upstream.url, bulk.content(upstream.exchange)

    def call() -> None:
        sides.check(client.get(url))

    def upload() -> None:
        sides.check(client.post(url, content=content()))

    with client:
        yield call if content is None else upload


def _sync_httpx(upstream: Upstream) -> AbstractContextManager[Call]:
    client = sides.bare(limits=httpx.Limits(**UNLIMITED), verify=upstream.trust())
    return _blocking(client, upstream)


def _sync_ours(upstream: Upstream) -> AbstractContextManager[Call]:
    limits = httpx.Limits(**UNLIMITED)
    client = sides.ours(upstream.urls, limits=limits, verify=upstream.trust())
    return _blocking(client, upstream)


def _sync_httpx2(upstream: Upstream) -> AbstractContextManager[Call]:
    import httpx2  # noqa: PLC0415  # where it is installed

    options = {"limits": httpx2.Limits(**UNLIMITED), "trust_env": False}
    return _blocking(httpx2.Client(verify=upstream.trust(), **options), upstream)


@contextmanager
def _urllib3(upstream: Upstream) -> Iterator[Call]:
    import urllib3  # noqa: PLC0415  # where it is installed

    with urllib3.PoolManager(maxsize=256, ssl_context=upstream.trust()) as manager:

        def call() -> None:
            response = manager.request("GET", upstream.url)
            if response.status != 200:
                raise RuntimeError(f"a benchmark must not measure failures: {response}")

        yield call


@contextmanager
def _http_client(upstream: Upstream) -> Iterator[Call]:
    """The floor: no pool, no redirects, no cookies."""
    parts, context = urlsplit(upstream.url), upstream.trust()
    local, made = threading.local(), []

    def connection() -> http.client.HTTPConnection:
        if parts.scheme == "https":
            one = http.client.HTTPSConnection(parts.hostname, parts.port, context=context)
        else:
            one = http.client.HTTPConnection(parts.hostname, parts.port)
        made.append(one)
        return one

    def call() -> None:
        try:
            mine = local.connection
        except AttributeError:
            mine = local.connection = connection()
        mine.request("GET", parts.path)
        response = mine.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"a benchmark must not measure failures: {response.status}")

    yield call
    for one in made:
        one.close()


THREADS: Mapping[str, Callable[[Upstream], AbstractContextManager[Call]]] = {
    HTTPX: _sync_httpx,
    NOISE: _sync_httpx,
    OURS: _sync_ours,
    HTTPX2: _sync_httpx2,
    URLLIB3: _urllib3,
    HTTP_CLIENT: _http_client,
}
"""For threads: one client, which all of them share."""
