"""Which instance to pick, at scale: many clients, many servers, some of which lose half of their
capacity for a while. Simulated, so the same everywhere: run it, or see README.md."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from lbclient import Prequal, RetryPolicy
from lbclient.simulation import Open, Report, Scenario, Server, exponential, queued, simulate
from lbclient.strategy.protocol import LoadProbe, Strategy
from lbclient.strategy.registry import BY_NAME

WORK = 0.1
"""Seconds of work a request is on average, exponentially spread."""
WORKERS = 2
EPOCH = 1.0
"""Seconds for which an antagonist stays, or stays away."""
HIT, HALF = 0.25, 0.5
"""The share of the servers that has one, and what it leaves."""
DEADLINE = 2.0
LOADS = (0.7, 0.9, 1.1)
RULES = ("random", "round-robin", "weighted", "least-busy", "peak-ewma", "prequal")
SUBSET = 16
REPORTED = "prequal, reports"
PROBED = "prequal, probes"
"""By what the servers say of their load: with their answers, and to probes too."""


def antagonist(number: int, seed: int) -> Callable[[float], float]:
    """The speed of one server over time."""

    def speed(now: float) -> float:
        dice = random.Random(f"{seed} antagonist {number} {int(now / EPOCH)}")
        return HALF if dice.random() < HIT else 1.0

    return speed


def probing() -> Strategy:
    return Prequal(probe=LoadProbe("/load"))


def scenario(
    servers: int, clients: int, load: float, seconds: float, seed: int, *, reports: bool = False
) -> Scenario:
    capacity = servers * WORKERS / WORK * (1 - HIT * (1 - HALF))
    return Scenario(
        [
            Server(
                f"s{number}",
                queued(exponential(WORK), WORKERS, antagonist(number, seed)),
                reports=reports,
            )
            for number in range(servers)
        ],
        Open(load * capacity, seconds, poisson=True),
        clients=clients,
    )


def run(arguments: argparse.Namespace, load: float, rule: str, subset: int | None) -> Report:
    made = scenario(
        arguments.servers,
        arguments.clients,
        load,
        arguments.seconds,
        arguments.seed,
        reports=rule in (REPORTED, PROBED),
    )
    strategies: dict[str, str | Callable[[], Strategy]] = {REPORTED: "prequal", PROBED: probing}
    return simulate(
        made,
        strategy=strategies.get(rule, rule),
        seed=arguments.seed,
        checked=False,
        retry=RetryPolicy(attempts=1, deadline=DEADLINE),
        breaker=None,
        max_instances=subset,
    )


def row(name: str, report: Report, took: float) -> str:
    tail = "  ".join(f"{1e3 * report.percentile(one):7.0f}" for one in (50, 90, 99, 99.9))
    errors = 100 * (1 - report.success)
    return f"  {name:<28} {tail}  {errors:7.2f}   {report.trace[:8]}  {took:5.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reports", action="store_true", help="servers that say how busy they are")
    parser.add_argument("--quick", action="store_true", help="a few servers: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.servers = arguments.clients = 10
        arguments.seconds = 1.0
    print(f"{arguments.clients} clients, {arguments.servers} servers of {WORKERS} workers,")
    print(
        f"{1e3 * WORK:g} ms of work a request; a quarter of the servers at half speed at any time;"
    )
    print(f"milliseconds by percentile, and per cent of requests over {DEADLINE:g} s")
    for load in LOADS:
        print(f"\nAt {100 * load:g} % of capacity")
        heads = "  ".join(f"{head:>7}" for head in ("p50", "p90", "p99", "p99.9", "errors"))
        print(f"  {'':<28} {heads}   trace        s")
        for rule, subset in rows(reports=arguments.reports):
            begun = time.perf_counter()
            report = run(arguments, load, rule, subset)
            name = rule if subset is None else f"{rule}, {subset} each"
            print(row(name, report, time.perf_counter() - begun), flush=True)
    return 0


def rows(*, reports: bool) -> list[tuple[str, int | None]]:
    """Each rule over all servers, then those that look at load over a subset for each client.

    With `reports` only Prequal, by what each kind of it knows, beside the best that knows nothing.
    """
    if reports:
        kinds = ["least-busy", "prequal", REPORTED, PROBED]
        return [(kind, subset) for subset in (None, SUBSET) for kind in kinds]
    known = [rule for rule in RULES if rule in BY_NAME]
    whole: list[tuple[str, int | None]] = [(rule, None) for rule in known]
    return whole + [(rule, SUBSET) for rule in known if rule not in RULES[:3]]


if __name__ == "__main__":
    sys.exit(main())
