"""Which strategy and which rules for which service: the runs behind docs/choosing.md, in virtual
time, so the same on every machine."""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

from lbclient import (
    RECOMMENDED,
    AdaptiveLimit,
    BreakerPolicy,
    HedgePolicy,
    OutlierPolicy,
    RetryPolicy,
)
from lbclient.simulation import (
    Open,
    Report,
    Scenario,
    Server,
    answers,
    constant,
    exponential,
    linear,
    mixed,
    phases,
    queued,
    simulate,
    until_capacity,
)


class Case(NamedTuple):
    """A service, and what may be asked of a client of it."""

    title: str
    scenario: Scenario
    choices: dict[str, dict[str, object]]


QUICK = exponential(0.02)
ONCE = RetryPolicy(attempts=1)
STRATEGIES = {
    name: {"strategy": name} for name in ("random", "weighted", "least-busy", "peak-ewma")
}


def equal() -> Case:
    servers = [Server(f"s{n}", queued(QUICK, 4)) for n in range(5)]
    load = Open(rate=700, seconds=30, poisson=True)
    return Case("Equal instances, calls alike, 70 % busy", Scenario(servers, load, 4), STRATEGIES)


def unequal() -> Case:
    servers = [
        Server(f"s{n}", queued(exponential(0.02 * (3 if n == 0 else 1)), 4)) for n in range(5)
    ]
    load = Open(rate=600, seconds=30, poisson=True)
    return Case("One of five is three times slower", Scenario(servers, load, 4), STRATEGIES)


def slows() -> Case:
    fast, slow = answers(linear(0.05, 50)), answers(linear(0.5, 50))
    servers = [
        Server("a", phases((0, fast), (5, slow), (20, fast))),
        Server("b", fast),
        Server("c", fast),
    ]
    load = Open(rate=300, seconds=30, poisson=True)
    return Case(
        "One of three is ten times slower for 15 s", Scenario(servers, load, 10), STRATEGIES
    )


def fails_fast() -> Case:
    good, bad = answers(constant(0.05)), answers(constant(0.001), 503)
    servers = [
        Server("a", phases((0, good), (5, bad), (20, good))),
        Server("b", good),
        Server("c", good),
    ]
    choices = {
        "no breaker, no retry": {"breaker": None, "retry": ONCE},
        "no breaker": {"breaker": None},
        "defaults": {},
        "least-busy": {"strategy": "least-busy"},
    }
    load = Open(rate=300, seconds=30, poisson=True)
    return Case("One of three fails at once for 15 s", Scenario(servers, load, 10), choices)


def flaky() -> Case:
    good = answers(constant(0.05))
    bad = mixed(0.5, answers(constant(0.05), 500), good)
    servers = [Server("a", bad), Server("b", good), Server("c", good)]
    choices: dict[str, dict[str, object]] = {
        "defaults": {},
        "failure_rate": {"breaker": BreakerPolicy(failure_rate=0.3)},
        "outliers": {"outliers": OutlierPolicy()},
    }
    load = Open(rate=300, seconds=60, poisson=True)
    return Case("One of three fails half of its calls", Scenario(servers, load, 3), choices)


def overloaded() -> Case:
    servers = [Server(f"s{n}", until_capacity(linear(0.1, 30), 40, 503)) for n in range(3)]
    limit = AdaptiveLimit(backoff=0.5, tolerance=2.0)
    busy: dict[str, object] = {"strategy": "least-busy"}
    choices = {
        "defaults": {},
        "least-busy": busy,
        "with a limit": {**busy, "limit": limit},
        "RECOMMENDED": {**RECOMMENDED},
    }
    load = Open(rate=900, seconds=10, poisson=True)
    scenario = Scenario(servers, load, 10, patience=60)
    return Case("Twice the load that the service can bear, for 10 s", scenario, choices)


def tail() -> Case:
    mostly = mixed(0.03, answers(exponential(1.0)), answers(exponential(0.02)))
    servers = [Server(f"s{n}", mostly) for n in range(5)]
    choices: dict[str, dict[str, object]] = {
        "defaults": {},
        "hedged at p95": {"hedge": HedgePolicy()},
        "hedged after 0.1 s": {"hedge": HedgePolicy(delay=0.1)},
    }
    load = Open(rate=200, seconds=30, poisson=True)
    return Case("Three calls in a hundred take a second", Scenario(servers, load, 4), choices)


CASES = (equal, unequal, slows, fails_fast, flaky, overloaded, tail)


def row(name: str, report: Report) -> str:
    times = "  ".join(f"{1e3 * report.percentile(one):7.0f}" for one in (50, 99, 99.9))
    return (
        f"  {name:<24} {100 * report.success:7.2f}  {1e3 * report.mean:7.0f}  {times}"
        f"  {report.amplification:8.3f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the first case: does it run?")
    arguments = parser.parse_args()
    print("success in per cent; milliseconds; attempts for each request")
    for case in (make() for make in (CASES[:1] if arguments.quick else CASES)):
        heads = "  ".join(f"{head:>7}" for head in ("success", "mean", "p50", "p99", "p99.9"))
        print(f"\n{case.title}\n  {'':<24} {heads}  {'attempts':>8}")
        for name, options in case.choices.items():
            report = simulate(case.scenario, seed=arguments.seed, checked=False, **options)  # type: ignore[arg-type]
            print(row(name, report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
