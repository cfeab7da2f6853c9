"""Picks a second, by how many instances there are."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from goals import Outcome, at_most
from report import Plot, Section, Table, compared, figure
from turns import Block, by_turns, frozen, per_call, ratios, spread

import lbclient
from lbclient.strategy.registry import BY_NAME

SIZES = (10, 100, 1_000, 10_000, 100_000)
FEW, MANY = 10, 10_000
GOALS = dict.fromkeys(BY_NAME, at_most(1.5, " x")) | {"weighted": at_most(2, " x")}
_TEXT = """
This benchmark measures `with balancer.acquire(): pass`, which picks an instance, takes a permit and
a slot, and gives both back, without I/O. The last column is the time of a pick among 10,000
instances divided by the time of a pick among 10 instances. `consistent-hash` gets a new key for
each pick.
"""


@contextmanager
def picking(strategy: str, size: int) -> Iterator[Block]:
    """Picks of that strategy among so many."""
    instances = [lbclient.Instance(f"i{one}.test", 80) for one in range(size)]
    keys = itertools.count() if strategy == "consistent-hash" else itertools.repeat(None)
    options = {"name": "orders", "strategy": strategy, "rng": random.Random(1)}

    def block(calls: int) -> None:
        for _ in range(calls):
            with balancer.acquire(key=next(keys)):
                pass

    with lbclient.Balancer(instances, **options) as balancer:
        yield block


def measure(
    strategy: str, sizes: Sequence[int], rounds: int, calls: int
) -> dict[int, Sequence[float]]:
    """Seconds of a pick, by how many there are, round by round."""
    with ExitStack() as stack:
        blocks = [stack.enter_context(picking(strategy, size)) for size in sizes]
        for block in blocks:
            block(5 * calls)  # thousands that are new join a few hundred at a time
        with frozen():
            times = by_turns(blocks, rounds, per_call(calls))
    return dict(zip(sizes, times, strict=True))


def run(*, quick: bool) -> Section:
    section = Section("picks", "Picks, by how many instances", _TEXT)
    sizes, rounds, calls = ((10, 100), 2, 8) if quick else (SIZES, 15, 500)
    of = {strategy: measure(strategy, sizes, rounds, calls) for strategy in sorted(BY_NAME)}
    section.tables.append(_table(of))
    section.plots.append(_plot(of))
    for strategy, times in of.items():
        if MANY in times:
            what = f"time of a pick, `{strategy}`: 10,000 instances / 10 instances"
            outcome = Outcome(what, GOALS[strategy], spread(ratios(times[MANY], times[FEW])))
            section.outcomes.append(outcome)
    return section


Times = Mapping[str, Mapping[int, Sequence[float]]]


def _rate(times: Sequence[float]) -> float:
    return 1 / spread(times).median


def _table(of: Times) -> Table:
    sizes = next(iter(of.values()))
    rows = []
    for strategy, times in of.items():
        rates = [figure(_rate(times[size])) for size in sizes]
        many = MANY if MANY in times else max(sizes)
        rows.append([f"`{strategy}`", *rates, compared(ratios(times[many], times[FEW]))])
    columns = [*(f"{size:,}" for size in sizes), "10,000 / 10 (quartiles)"]
    return Table("Picks a second", columns, rows)


def _plot(of: Times) -> Plot:
    def draw(path: Path) -> None:
        import plots  # noqa: PLC0415  # only a page needs matplotlib

        series = {
            strategy: plots.Line(
                list(times), [_rate(times[FEW]) / _rate(of) for of in times.values()]
            )
            for strategy, times in of.items()
        }
        title = f"Time of a pick, among {FEW} = 1"
        plots.lines(path, title, "instances", "ratio of medians", series, log="x")

    return Plot("performance-picks", "time of a pick by strategy, against instances", draw)
