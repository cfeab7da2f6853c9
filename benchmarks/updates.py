"""What a new answer of discovery costs, and how long it holds up an event loop."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from goals import Outcome, at_most
from report import Plot, Section, Table, compared
from stalls import ticking
from turns import spread, uncollected

import lbclient

SIZES = (100, 1_000, 10_000, 100_000)
MANY = 10_000
CPU_GOAL, STALL_GOAL = at_most(50, " ms"), at_most(10, " ms")
STRATEGIES = ("weighted", "least-busy")
_CHANGED = 100
"""One of so many is another with each answer."""

_TEXT = """
Each answer of the resolver replaces 1 % of the instances, and consists of new objects, as with DNS.
*CPU* is the CPU time of the process from the lookup to the first pick from the new set. This does
not include the time in which the resolver creates the answer, which has its own column. During the
update an event loop makes a call every half millisecond; *longest stall* is the longest delay of
one of its steps. The column *noise* shows the longest delay while no update happens, so it shows
the noise of the machine. `python benchmarks/churn.py` shows the stalls when all instances are
replaced, also with DNS. The garbage collector is off, except in the last column: a full run of the
collector goes through all objects of the process, whatever triggers the run.
"""


class Changing:
    """A resolver. Its answer is made before it is asked."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._turn = 0
        self._next = lbclient.Answer(())
        self.made: list[float] = []
        self.prepare()

    def prepare(self) -> None:
        begun = time.process_time()
        self._turn += 1
        born = [self._turn - (self._turn - one) % _CHANGED for one in range(_CHANGED)]
        self._next = lbclient.Answer(
            (
                lbclient.Instance(f"i{one}-{born[one % _CHANGED]}.test", 80)
                for one in range(self._size)
            ),
            3600,
        )
        self.made.append(time.process_time() - begun)

    def resolve(self) -> lbclient.Answer:
        return self._next


class Update(NamedTuple):
    """Milliseconds, a value for each round."""

    cpu: list[float]
    made: list[float]
    still: list[float]
    stalled: list[float]
    collected: list[float]


@contextmanager
def balanced(resolver: Changing, strategy: str) -> Iterator[lbclient.Balancer]:
    with lbclient.Balancer(resolver, name="orders.test", strategy=strategy) as balancer:
        balancer.refresh()
        for _ in range(1_000):
            _pick(balancer)
        yield balancer


def _pick(balancer: lbclient.Balancer) -> None:
    with balancer.acquire():
        pass


def measure(strategy: str, size: int, rounds: int) -> Update:
    resolver = Changing(size)
    with balanced(resolver, strategy) as balancer:
        resolver.made.clear()
        cpu = [_cpu(balancer, resolver) for _ in range(rounds)]
        made = list(resolver.made)
        late = asyncio.run(_stalls(balancer, resolver, rounds))
    in_ms = [[1e3 * one for one in values] for values in (cpu, made, *late)]
    return Update(*in_ms)


def _cpu(balancer: lbclient.Balancer, resolver: Changing) -> float:
    resolver.prepare()
    with uncollected():
        begun = time.process_time()
        balancer.refresh()
        _pick(balancer)
        return time.process_time() - begun


async def _stalls(
    balancer: lbclient.Balancer, resolver: Changing, rounds: int
) -> list[list[float]]:
    """By turns: nothing is refreshed; a new answer; the same with the collector on."""

    async def call() -> None:
        await balancer.acall(_answer)

    still, stalled, collected = [], [], []
    for _ in range(rounds):
        resolver.prepare()
        with uncollected():
            still.append(max(await ticking(call, asyncio.sleep(0.05))))
            stalled.append(max(await ticking(call, balancer.arefresh())))
        resolver.prepare()
        gc.collect()
        collected.append(max(await ticking(call, balancer.arefresh())))
    return [still, stalled, collected]


async def _answer(instance: lbclient.Instance) -> lbclient.Instance:
    return instance


def run(*, quick: bool) -> Section:
    section = Section("updates", "A new answer of discovery", _TEXT)
    sizes, rounds = ((100,), 2) if quick else (SIZES, 12)
    of = {one: {size: measure(one, size, rounds) for size in sizes} for one in STRATEGIES}
    for strategy, updates in of.items():
        section.tables.append(_table(strategy, updates))
        if MANY in updates:
            section.outcomes += _outcomes(strategy, updates[MANY])
    section.plots.append(_plot(of))
    return section


def _outcomes(strategy: str, update: Update) -> Iterator[Outcome]:
    said = f"1 % of 10,000 instances replaced, `{strategy}`:"
    yield Outcome(f"{said} CPU", CPU_GOAL, spread(update.cpu))
    yield Outcome(f"{said} longest stall of a loop", STALL_GOAL, spread(update.stalled))


def _table(strategy: str, updates: Mapping[int, Update]) -> Table:
    columns = (
        "CPU",
        "the answer's own",
        "longest stall",
        "noise: while nothing changes",
        "longest stall, collector on",
    )
    rows = [
        [
            f"{size:,} instances",
            *map(compared, (of.cpu, of.made, of.stalled, of.still, of.collected)),
        ]
        for size, of in updates.items()
    ]
    return Table(f"`{strategy}`: milliseconds (quartiles)", columns, rows)


def _plot(of: Mapping[str, Mapping[int, Update]]) -> Plot:
    def draw(path: Path) -> None:
        import plots  # noqa: PLC0415  # only a page needs matplotlib

        def line(sizes: Sequence[int], values: list[list[float]]) -> plots.Line:
            spreads = [spread(some) for some in values]
            medians = [one.median for one in spreads]
            return plots.Line(
                sizes, medians, [s.first for s in spreads], [s.third for s in spreads]
            )

        series = {}
        for strategy, updates in of.items():
            sizes, found = list(updates), list(updates.values())
            series[f"{strategy}: CPU"] = line(sizes, [one.cpu for one in found])
            series[f"{strategy}: longest stall"] = line(sizes, [one.stalled for one in found])
        title = "An answer of which 1 % is new"
        plots.lines(path, title, "instances", "ms", series, log="xy")

    return Plot(
        "performance-updates", "CPU and longest stall of an update, against instances", draw
    )
