"""The two sides, bare httpx and lbclient, each as a block of calls."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from turns import Block

import lbclient

KEPT_ALIVE = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60)
"""For both sides: a pool that shrinks in the middle of a run would decide the comparison."""


class NullTransport(httpx.BaseTransport):
    """Answers at once."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        return httpx.Response(200)


class AsyncNullTransport(httpx.AsyncBaseTransport):
    """The same for the async side."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        return httpx.Response(200)


class Streamed(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that is read after the headers, as a socket's is."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"ok\n"

    async def __aiter__(self):
        yield b"ok\n"


class StreamingTransport(NullTransport):
    """Answers at once, with a body still to be read."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        return httpx.Response(200, stream=Streamed())


class AsyncStreamingTransport(AsyncNullTransport):
    """The same for the async side."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002
        return httpx.Response(200, stream=Streamed())


def bare(**options: Any) -> httpx.Client:
    return httpx.Client(trust_env=False, **options)


def bare_async(**options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, **options)


def ours(urls: Sequence[str], **options: Any) -> lbclient.Client:
    return lbclient.Client(urls, rng=random.Random(1), trust_env=False, **options)


def ours_async(urls: Sequence[str], **options: Any) -> lbclient.AsyncClient:
    return lbclient.AsyncClient(urls, rng=random.Random(1), trust_env=False, **options)


def same(url: str) -> Iterator[str]:
    """That URL for every call."""
    return itertools.repeat(url)


def anew(url: str) -> Iterator[str]:
    """A path that was never asked for before in each call."""
    return (f"{url}{number}" for number in itertools.count())


@contextlib.contextmanager
def calling(client: httpx.Client, urls: Iterator[str]) -> Iterator[Block]:
    """Calls on this thread, one at a time."""

    def block(calls: int) -> None:
        for _ in range(calls):
            check(client.get(next(urls)))

    with client:
        yield block


@contextlib.contextmanager
def awaiting(
    client: httpx.AsyncClient, urls: Iterator[str], runner: asyncio.Runner, *, at_once: int = 1
) -> Iterator[Block]:
    """Calls in `at_once` tasks of one event loop."""

    async def some(calls: int) -> None:
        for _ in range(calls):
            check(await client.get(next(urls)))

    async def all_of(calls: int) -> None:
        share = -(-calls // at_once)
        await asyncio.gather(*(some(share) for _ in range(at_once)))

    runner.run(client.__aenter__())
    try:
        yield lambda calls: runner.run(some(calls) if at_once == 1 else all_of(calls))
    finally:
        runner.run(client.aclose())


def recording() -> dict[str, Any]:
    """Providers of OpenTelemetry's SDK: every span is recorded and then thrown away, and all
    metrics stay in memory."""
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415  # for those who ask
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415

    tracing = TracerProvider()
    tracing.add_span_processor(SpanProcessor())  # the base class does nothing
    return {"tracer_provider": tracing, "meter_provider": MeterProvider([InMemoryMetricReader()])}


def check(response: Any) -> None:
    """Of httpx or httpx2. Raises RuntimeError for any status but 200."""
    if response.status_code != 200:
        raise RuntimeError(f"a benchmark must not measure failures: {response}")
