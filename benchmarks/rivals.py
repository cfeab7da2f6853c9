"""HTTP clients for event loops, each with what makes one call: ours, and those beside it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import httpx
import sides
from crowd import Call, Effort, of_tasks
from sidecars import Sidecar

import lbclient

IDLE = 60.0
UNLIMITED = {
    "max_connections": None,
    "max_keepalive_connections": None,
    "keepalive_expiry": IDLE,
}
HTTPX, NOISE, OURS = "bare httpx", "noise: bare httpx again", "lbclient"
FEW = 16
BEGUN_WITH_FEW = f"bare httpx, begun with {FEW} at once"
OVER_AIOHTTP, HTTPX_AIOHTTP = 'lbclient, transport="aiohttp"', "httpx over httpx-aiohttp"
AIOHTTP, ACALL = "raw aiohttp", "Balancer.acall around aiohttp"
HTTPX2, OURS_HTTPX2 = "bare httpx2", "lbclient.httpx2"

_BEGINNING = Effort(0, 0.1)


class Rival(NamedTuple):
    """A client; entered, it is what makes a call. `sidecar` is the process that works for it."""

    entering: AbstractAsyncContextManager[Call]
    sidecar: int | None = None


def through(name: str, client: str = HTTPX) -> str:
    """What a client that goes through a sidecar is called."""
    return f"{client} through {name}"


def rivals(
    instances: Sequence[str], sidecars: dict[str, Sidecar], skipped: list[str]
) -> Iterator[tuple[str, Rival]]:
    """By name. Those with one origin have the first of the instances, or a sidecar."""
    url = instances[0] + "/"
    limits = httpx.Limits(**UNLIMITED)
    yield HTTPX, Rival(_calling(sides.bare_async(limits=limits), url))
    yield NOISE, Rival(_calling(sides.bare_async(limits=limits), url))
    yield BEGUN_WITH_FEW, Rival(_calling(sides.bare_async(limits=limits), url, begin_with=FEW))
    yield OURS, Rival(_calling(sides.ours_async(instances, limits=limits), url))
    for name, sidecar in sidecars.items():
        client = sides.bare_async(limits=limits)
        yield through(name), Rival(_calling(client, sidecar.url + "/"), sidecar.pid)
    for package, of_it in (
        ("aiohttp", _with_aiohttp),
        ("httpx_aiohttp", _with_httpx_aiohttp),
        ("httpx2", _with_httpx2),
    ):
        if find_spec(package) is None:
            skipped.append(f"the package {package.replace('_', '-')} is not installed")
        else:
            yield from of_it(instances, sidecars)


def _with_aiohttp(
    instances: Sequence[str], sidecars: dict[str, Sidecar]
) -> Iterator[tuple[str, Rival]]:
    ours = sides.ours_async(instances, limits=httpx.Limits(**UNLIMITED), transport="aiohttp")
    yield OVER_AIOHTTP, Rival(_calling(ours, instances[0] + "/"))
    yield ACALL, Rival(_balanced(instances))
    yield AIOHTTP, Rival(_raw(instances[0] + "/"))
    for name, sidecar in sidecars.items():
        yield through(name, AIOHTTP), Rival(_raw(sidecar.url + "/"), sidecar.pid)


def _with_httpx_aiohttp(
    instances: Sequence[str],
    _: dict[str, Sidecar],
) -> Iterator[tuple[str, Rival]]:
    import httpx_aiohttp  # noqa: PLC0415  # where it is installed

    transport = httpx_aiohttp.AiohttpTransport(client=_session)
    yield HTTPX_AIOHTTP, Rival(_calling(sides.bare_async(transport=transport), instances[0] + "/"))


def _with_httpx2(
    instances: Sequence[str],
    _: dict[str, Sidecar],
) -> Iterator[tuple[str, Rival]]:
    import httpx2  # noqa: PLC0415  # where it is installed

    import lbclient.httpx2  # noqa: PLC0415

    url, limits = instances[0] + "/", httpx2.Limits(**UNLIMITED)
    yield HTTPX2, Rival(_calling(httpx2.AsyncClient(limits=limits, trust_env=False), url))
    options = {"limits": limits, "rng": random.Random(1), "trust_env": False}
    yield OURS_HTTPX2, Rival(_calling(lbclient.httpx2.AsyncClient(instances, **options), url))


@asynccontextmanager
async def _calling(client: Any, url: str, *, begin_with: int = 0) -> AsyncIterator[Call]:
    """A client of httpx or httpx2, or ours; used by so many at once before, if any."""

    async def call() -> None:
        sides.check(await client.get(url))

    async with client:
        if begin_with:
            await of_tasks(call, begin_with, _BEGINNING)
        yield call


def _session() -> Any:
    import aiohttp  # noqa: PLC0415  # where it is installed

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE)
    return aiohttp.ClientSession(connector=connector)


@asynccontextmanager
async def _raw(url: str) -> AsyncIterator[Call]:
    async with _session() as session:

        async def call() -> None:
            await _fetched(session, url)

        yield call


@asynccontextmanager
async def _balanced(instances: Sequence[str]) -> AsyncIterator[Call]:
    """`Balancer` picks, a plain session sends."""
    balancer = lbclient.Balancer(instances, judge=_judge(), rng=random.Random(1))
    async with AsyncExitStack() as stack:
        stack.enter_context(balancer)
        session = await stack.enter_async_context(_session())

        async def send(instance: lbclient.Instance) -> None:
            await _fetched(session, f"http://{instance}/")

        async def call() -> None:
            await balancer.acall(send)

        yield call


async def _fetched(session: Any, url: str) -> None:
    async with session.get(url) as response:
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


@asynccontextmanager
async def entered(all_rivals: dict[str, Rival]) -> AsyncIterator[dict[str, Call]]:
    """All of them, ready to call."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(rival.entering)
            for name, rival in all_rivals.items()
        }
