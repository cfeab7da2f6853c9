"""What lbclient costs over bare httpx: run it, or see README.md beside it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import httpx
import loopback
import sides
from goals import Goal, at_least, at_most
from opentelemetry import metrics, trace
from turns import Block, by_turns, per_call, ratios, spread

TIME = at_most(1.25)
THROUGHPUT = at_least(0.93)
_INSTANCES = 3
_AT_ONCE = 16
_NULL_URLS = [f"http://127.0.0.1:{port}" for port in range(8001, 8001 + _INSTANCES)]

Side = AbstractContextManager[Block]
Times = Sequence[float]
Compared = Callable[[Times, Times], list[float]]
"""Bare httpx and ours, round by round."""


def times(bare: Times, ours: Times) -> list[float]:
    """How many times the bare time ours took."""
    return ratios(ours, bare)


def throughputs(bare: Times, ours: Times) -> list[float]:
    """Which part of the bare throughput ours reached."""
    return ratios(bare, ours)


@dataclass(frozen=True)
class Row:
    """Two sides to compare. One without a goal informs only."""

    name: str
    bare: Side
    ours: Side
    goal: Goal | None = None


class Table:
    """Measures rows and prints each as it comes."""

    def __init__(self, rounds: int, calls: int) -> None:
        self._rounds = rounds
        self._calls = calls
        self.missed = False

    def section(self, title: str, rows: Iterator[Row], compared: Compared) -> None:
        print(f"\n{title}")
        print(
            f"  {'':<34} {'bare us':>8} {'ours us':>8} {'ratio':>7}"
            f" {'quartiles':>14} {'min..max':>14}  goal"
        )
        for row in rows:
            self._row(row, compared)

    def _row(self, row: Row, compared: Compared) -> None:
        with row.bare as bare, row.ours as ours:
            of_bare, of_ours = by_turns([bare, ours], self._rounds, per_call(self._calls))
        of = spread(compared(of_bare, of_ours))
        print(
            f"  {row.name:<34} {_micros(of_bare):>8} {_micros(of_ours):>8} {of.median:>7.3f}"
            f" {of.first:>6.3f}..{of.third:<6.3f} {of.low:>6.3f}..{of.high:<6.3f}"
            f"  {self._judged(row.goal, of.median)}",
            flush=True,
        )

    def _judged(self, goal: Goal | None, median: float) -> str:
        if goal is None:
            return "-"
        met = goal.holds(median)
        self.missed = self.missed or not met
        return f"{goal} {'met' if met else 'MISSED'}"


def _micros(seconds: Sequence[float]) -> str:
    return f"{1e6 * spread(seconds).median:.1f}"


def null_rows(runner: asyncio.Runner) -> Iterator[Row]:
    """Over a transport that answers at once: nothing but the clients' own time."""
    url = _NULL_URLS[0] + "/"

    def bare(transport: Callable[[], sides.NullTransport]) -> Side:
        return sides.calling(sides.bare(transport=transport()), sides.same(url))

    def ours(transport: Callable[[], sides.NullTransport]) -> Side:
        client = sides.ours(_NULL_URLS, transport=lambda _: transport())
        return sides.calling(client, sides.same(url))

    def anew(client: httpx.Client) -> Side:
        return sides.calling(client, sides.anew(url))

    def bare_async(transport: Callable[[], sides.AsyncNullTransport]) -> Side:
        return sides.awaiting(sides.bare_async(transport=transport()), sides.same(url), runner)

    def ours_async(transport: Callable[[], sides.AsyncNullTransport]) -> Side:
        client = sides.ours_async(_NULL_URLS, transport=lambda _: transport())
        return sides.awaiting(client, sides.same(url), runner)

    null, async_null = sides.NullTransport, sides.AsyncNullTransport
    streaming, async_streaming = sides.StreamingTransport, sides.AsyncStreamingTransport
    yield Row("sync", bare(null), ours(null), TIME)
    yield Row("async", bare_async(async_null), ours_async(async_null), TIME)
    ours_null = sides.ours(_NULL_URLS, transport=lambda _: null())
    yield Row("sync, every path new", anew(sides.bare(transport=null())), anew(ours_null))
    yield Row("sync, streamed body", bare(streaming), ours(streaming))
    yield Row("async, streamed body", bare_async(async_streaming), ours_async(async_streaming))
    yield Row("noise: bare/bare, sync", bare(null), bare(null))
    yield Row("noise: bare/bare, async", bare_async(async_null), bare_async(async_null))


def loopback_rows(urls: Sequence[str], runner: asyncio.Runner) -> Iterator[Row]:
    """Over real sockets: bare httpx has one origin, lbclient has them all."""
    url = urls[0] + "/"

    def bare() -> Side:
        return sides.calling(sides.bare(limits=sides.KEPT_ALIVE), sides.same(url))

    def ours() -> Side:
        return sides.calling(sides.ours(urls, limits=sides.KEPT_ALIVE), sides.same(url))

    def bare_async(at_once: int = 1) -> Side:
        client = sides.bare_async(limits=sides.KEPT_ALIVE)
        return sides.awaiting(client, sides.same(url), runner, at_once=at_once)

    def ours_async(at_once: int = 1) -> Side:
        client = sides.ours_async(urls, limits=sides.KEPT_ALIVE)
        return sides.awaiting(client, sides.same(url), runner, at_once=at_once)

    yield Row("sync", bare(), ours(), THROUGHPUT)
    yield Row("async", bare_async(), ours_async(), THROUGHPUT)
    yield Row(f"async, {_AT_ONCE} at once", bare_async(_AT_ONCE), ours_async(_AT_ONCE))
    yield Row("noise: bare/bare, sync", bare(), bare())
    yield Row("noise: bare/bare, async", bare_async(), bare_async())


def telemetry() -> str:
    """Who takes the spans and metrics. An SDK would be measured along with us."""
    providers = trace.get_tracer_provider(), metrics.get_meter_provider()
    if any(type(one).__module__.startswith("opentelemetry.sdk") for one in providers):
        return "an SDK provider is set: these figures include its work"
    return "the API alone, no SDK provider is set"


def main() -> int:
    options = _options()
    # Whatever ends us, nginx is to end before.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    table = Table(options.rounds, options.calls)
    print(f"{options.rounds} pairs of blocks of {options.calls} calls, by turns")
    print(f"lbclient: everything on; spans: {telemetry()}")
    with asyncio.Runner() as runner:
        table.section("Null transport: time, ours / bare", null_rows(runner), times)
        if (program := loopback.found()) is None:
            print("\nLoopback: skipped, nginx is not installed")
        else:
            with loopback.nginx(program, _INSTANCES) as server:
                title = f"Loopback, nginx, {_INSTANCES} instances: throughput, ours / bare"
                table.section(title, loopback_rows(server.urls, runner), throughputs)
    return 1 if options.check and table.missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=_count, default=20, help="pairs of blocks for each row")
    parser.add_argument("--calls", type=_count, default=300, help="calls in a block")
    parser.add_argument("--quick", action="store_true", help="a look whether it runs, no figures")
    parser.add_argument("--check", action="store_true", help="exit 1 if a median misses its goal")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.calls = 3, 32
    return options


def _count(text: str) -> int:
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError("must be 2 or more")
    return number


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
