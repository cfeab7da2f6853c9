"""How long an event loop is held up while all instances change: run it, or see README.md."""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' DNS server

from stalls import ticking
from turns import frozen

import lbclient
from tests.support.dns import Liar

GOAL = 0.025
_NAME = "_http._tcp.orders.test."


@dataclass
class Ticks:
    """Seconds by which single steps of the loop came late, a list for each round."""

    rounds: list[list[float]] = field(default_factory=list)

    def row(self, name: str) -> str:
        worst = [1e3 * max(ticks) for ticks in self.rounds]
        late = sorted(itertools.chain.from_iterable(self.rounds))
        p99 = 1e3 * late[int(0.99 * len(late))]
        median = statistics.median(worst)
        return f"  {name:<34} {median:>9.2f} {max(worst):>9.2f} {p99:>9.2f}"

    @property
    def worst(self) -> float:
        """The median of the rounds' worst."""
        return statistics.median(max(ticks) for ticks in self.rounds)


class Replaced:
    """Other instances in each answer."""

    def __init__(self, many: int) -> None:
        self._many = many
        self._turn = itertools.count()

    def resolve(self) -> lbclient.Answer:
        turn = next(self._turn)
        instances = [lbclient.Instance(f"i{turn}-{one}.test", 80) for one in range(self._many)]
        return lbclient.Answer(instances, 3600)


@contextmanager
def by_resolver(strategy: str, many: int) -> Iterator[tuple[lbclient.Balancer, Callable[[], None]]]:
    balancer = lbclient.Balancer(Replaced(many), name="orders.test", strategy=strategy)
    yield balancer, lambda: None
    balancer.close()


@contextmanager
def by_dns(strategy: str, many: int) -> Iterator[tuple[lbclient.Balancer, Callable[[], None]]]:
    """The records name one target, whose address comes along; the ports change."""
    turns = itertools.cycle((1, 1 + many))

    with Liar(glue=True) as server:
        server.put("here.test.", "A", "10.0.0.1", ttl=3600)

        def replace() -> None:
            first = next(turns)
            ports = range(first, first + many)
            server.put(_NAME, "SRV", *(f"0 1 {port} here.test." for port in ports), ttl=3600)

        replace()
        balancer = lbclient.Balancer(
            "http+srv://orders.test", nameservers=[server.address], strategy=strategy
        )
        yield balancer, replace
        balancer.close()


async def measure(source, strategy: str, many: int, rounds: int) -> list[Ticks]:
    """By turns: nothing is refreshed; everything is replaced; the same with the collector on, and
    with it on after `gc.freeze()`."""
    still, churned, collected, cold = (Ticks() for _ in range(4))
    with source(strategy, many) as (balancer, replace):
        await balancer.arefresh()

        async def call() -> None:
            await balancer.acall(_answer)

        for _ in range(rounds):
            gc.disable()
            still.rounds.append(await ticking(call, asyncio.sleep(0.05)))
            await asyncio.to_thread(replace)
            churned.rounds.append(await ticking(call, balancer.arefresh()))
            gc.enable()
            await asyncio.to_thread(replace)
            collected.rounds.append(await ticking(call, balancer.arefresh()))
            gc.collect()
            await asyncio.to_thread(replace)
            with frozen():  # as a service that called `gc.freeze()` once it was up
                cold.rounds.append(await ticking(call, balancer.arefresh()))
            gc.collect()
    return [still, churned, collected, cold]


def full_run() -> float:
    """Seconds that one full run of the collector takes, whoever sets it off."""
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        gc.collect()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


async def _answer(instance: lbclient.Instance) -> lbclient.Instance:
    return instance


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two rounds: does it run?")
    parser.add_argument("--check", action="store_true", help="exit status 1 above the goal")
    arguments = parser.parse_args()
    logging.disable()
    rounds = 2 if arguments.quick else arguments.rounds
    print("The loop is late by, in ms: median of the rounds' worst, worst of all, 99th percentile")
    print(f"  {'':<34} {'median':>9} {'worst':>9} {'p99':>9}   goal {1e3 * GOAL:g}")
    missed = False
    for name, source, many in (("DNS", by_dns, 1000), ("a resolver", by_resolver, 10_000)):
        for strategy in ("weighted", "least-busy"):
            measured = asyncio.run(measure(source, strategy, many, rounds))
            still, churned, collected, cold = measured
            print(still.row(f"{strategy}, nothing changes"))
            held = churned.worst <= GOAL
            missed = missed or not held
            print(churned.row(f"{strategy}, {many} by {name}"), " ", "met" if held else "MISSED")
            print(collected.row("  with the garbage collector"))
            print(cold.row("  the same after gc.freeze()"), flush=True)
    alone, kept = full_run(), Replaced(10_000).resolve()
    print(
        f"A full run of the collector alone: {1e3 * alone:.1f} ms; "
        f"with {len(kept.instances)} Instance objects and no balancer: {1e3 * full_run():.1f} ms"
    )
    return int(missed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
