"""What a call costs by layer, over a transport that answers at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import sides
from goals import Outcome, at_most
from report import Plot, Section, Table, compared, figure
from turns import Block, by_turns, per_call, ratios, spread

import lbclient

BARE, DEFAULTS, EVERYTHING = "bare httpx", "+ breaker: the defaults", "every rule"
GOALS = {DEFAULTS: at_most(0.65, " x"), EVERYTHING: at_most(0.85, " x")}
INSTRUMENTED = "bare httpx instrumented, OpenTelemetry's SDK"
_URLS = [f"http://127.0.0.1:{port}" for port in (8001, 8002, 8003)]
_RULES = {
    **lbclient.RECOMMENDED,
    "throttle": lbclient.ThrottlePolicy(),
    "outliers": lbclient.OutlierPolicy(),
    "slow_start": lbclient.SlowStart(),
}
_TEXT = """
This benchmark measures only the clients' own time. There are three instances and a transport that
answers at once, and calls are made one after another. *Pick only* has no retries and no breaker;
the next two rows add these. *Every rule* is `RECOMMENDED` with `throttle`, `outliers` and
`slow_start`. Most rows use OpenTelemetry's API without an SDK. In the rows *OpenTelemetry's SDK*,
the SDK records all spans and metrics: a processor discards the spans, and the metrics stay in
memory. Compare these rows with bare httpx under OpenTelemetry's own instrumentation.

The ratio is the time of a row divided by the time of its bare httpx. If the ratio is below 1,
lbclient is faster. There are two reasons: a `Client` keeps the parsed form of recent URLs, and it
skips the layers of httpx that a call does not need. An `httpx.Client` of your own over lbclient's
`Transport` has neither advantage.
"""


class Row(NamedTuple):
    """A side, and the name of the one that it is compared with."""

    against: str
    side: AbstractContextManager[Block]


Making = Callable[..., Any]


class World(NamedTuple):
    """Threads or an event loop: how each side is made there."""

    bare: Making
    ours: Making
    wrapped: Callable[[], Any]
    null: Making
    streaming: Making
    calling: Callable[[Any, Iterator[str]], AbstractContextManager[Block]]


def worlds(runner: asyncio.Runner) -> Mapping[str, World]:
    def awaiting(client: Any, urls: Iterator[str]) -> AbstractContextManager[Block]:
        return sides.awaiting(client, urls, runner)

    def under_httpx() -> httpx.Client:
        transport = lbclient.Transport(_URLS, transport=lambda _: sides.NullTransport())
        return sides.bare(transport=transport)

    def under_async_httpx() -> httpx.AsyncClient:
        null = sides.AsyncNullTransport
        transport = lbclient.AsyncTransport(_URLS, transport=lambda _: null())
        return sides.bare_async(transport=transport)

    return {
        "sync": World(
            sides.bare,
            sides.ours,
            under_httpx,
            sides.NullTransport,
            sides.StreamingTransport,
            sides.calling,
        ),
        "async": World(
            sides.bare_async,
            sides.ours_async,
            under_async_httpx,
            sides.AsyncNullTransport,
            sides.AsyncStreamingTransport,
            awaiting,
        ),
    }


def rows(world: World, instrumented: Callable[[Any], Any] | None) -> dict[str, Row]:
    url = _URLS[0] + "/"

    def bare(transport: Making, urls: Iterator[str]) -> AbstractContextManager[Block]:
        return world.calling(world.bare(transport=transport()), urls)

    def ours(
        transport: Making, urls: Iterator[str], **options: object
    ) -> AbstractContextManager[Block]:
        client = world.ours(_URLS, transport=lambda _: transport(), **options)
        return world.calling(client, urls)

    def layer(**options: object) -> Row:
        return Row(BARE, ours(world.null, sides.same(url), **options))

    traced = {}
    if instrumented is not None:
        client = instrumented(world.bare(transport=world.null()))
        traced[INSTRUMENTED] = Row(BARE, world.calling(client, sides.same(url)))
    anew, streamed = "bare httpx, every path new", "bare httpx, streamed body"
    return {
        BARE: Row(BARE, bare(world.null, sides.same(url))),
        "noise: bare httpx again": Row(BARE, bare(world.null, sides.same(url))),
        "pick only": layer(retry=None, breaker=None),
        "+ retry": layer(breaker=None),
        DEFAULTS: layer(),
        "RECOMMENDED": layer(**lbclient.RECOMMENDED),
        EVERYTHING: layer(**_RULES),
        "the defaults, OpenTelemetry's SDK": layer(**sides.recording()),
        **traced,
        "httpx over lbclient's Transport": Row(
            BARE, world.calling(world.wrapped(), sides.same(url))
        ),
        anew: Row(anew, bare(world.null, sides.anew(url))),
        "the defaults, every path new": Row(anew, ours(world.null, sides.anew(url))),
        streamed: Row(streamed, bare(world.streaming, sides.same(url))),
        "the defaults, streamed body": Row(streamed, ours(world.streaming, sides.same(url))),
    }


def instrumentation() -> Callable[[Any], Any] | None:
    """Of OpenTelemetry's own for httpx, with the SDK, if it is installed."""
    try:
        from opentelemetry.instrumentation.httpx import (  # noqa: PLC0415  # where it is installed
            HTTPXClientInstrumentor,
        )
    except ImportError:
        return None

    def instrumented(client: Any) -> Any:
        HTTPXClientInstrumentor.instrument_client(client, **sides.recording())
        return client

    return instrumented


def measure(all_rows: Mapping[str, Row], rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds per call of each, round by round."""
    with contextlib.ExitStack() as entered:
        blocks = [entered.enter_context(row.side) for row in all_rows.values()]
        times = by_turns(blocks, rounds, per_call(calls))
    return dict(zip(all_rows, times, strict=True))


def run(*, quick: bool) -> Section:
    section = Section("layers", "What a call costs, by layer", _TEXT)
    rounds, calls = (2, 8) if quick else (24, 300)
    drawn: dict[str, dict[str, float]] = {}
    if (instrumented := instrumentation()) is None:
        section.skipped.append("the package opentelemetry-instrumentation-httpx is not installed")
    with asyncio.Runner() as runner:
        for name, world in worlds(runner).items():
            all_rows = rows(world, instrumented)
            times = measure(all_rows, rounds, calls)
            over = {one: ratios(times[one], times[row.against]) for one, row in all_rows.items()}
            section.tables.append(_table(name, times, over))
            for one, goal in GOALS.items():
                what = f"{name}, time of a call: {one.removeprefix('+ breaker: ')}"
                outcome = Outcome(f"{what} / bare httpx", goal, spread(over[one]))
                section.outcomes.append(outcome)
            shown = itertools.islice(over, list(over).index("bare httpx, every path new"))
            drawn[name] = {one: spread(over[one]).median for one in shown}
    section.plots.append(_plot(drawn))
    return section


def _table(name: str, times: Mapping[str, list[float]], over: Mapping[str, list[float]]) -> Table:
    shown = [
        [one, figure(1e6 * spread(values).median), compared(over[one])]
        for one, values in times.items()
    ]
    return Table(name, ["us per call", "ratio (quartiles)"], shown)


_SHORT = {
    "noise: bare httpx again": "noise",
    DEFAULTS: "+ breaker",
    "RECOMMENDED": "RECOM-\nMENDED",
    "the defaults, OpenTelemetry's SDK": "SDK",
    INSTRUMENTED: "bare httpx,\nSDK",
    "httpx over lbclient's Transport": "Transport",
}


def _plot(drawn: Mapping[str, Mapping[str, float]]) -> Plot:
    def draw(path: Path) -> None:
        import plots  # noqa: PLC0415  # only a page needs matplotlib

        groups = [_SHORT.get(one, one) for one in drawn["sync"]]
        series = {name: list(values.values()) for name, values in drawn.items()}
        title = "Time of a call over a null transport, bare httpx = 1"
        plots.bars(path, title, "", "ratio, median", groups, series)

    return Plot("performance-layers", "time of a call by layer, as a ratio to bare httpx", draw)
