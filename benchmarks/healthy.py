"""What `RECOMMENDED` costs healthy services, and what it makes of too many clients: the bounds that
it keeps, measured. With `--check` it fails if one is broken; `--quick` runs a few rows and one
seed."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import random
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.scenarios import CASES, Case, configured, plain
from lbclient import RECOMMENDED
from lbclient.simulation import (
    Behaviour,
    Open,
    Reply,
    Report,
    Scenario,
    Server,
    answers,
    constant,
    mixed,
    simulate,
)

Row = tuple[str, bool]
"""What was measured, and whether it keeps its bound."""

LEAST_SUCCESS = -0.003
MOST_MEAN = 1.05
NEIGHBOUR = -0.01
SLOTS = {1: 0.8, 3: 0.65, 10: 0.45, 100: 0.15}


def flaky(share: float, status: int) -> Behaviour:
    """Takes 0.1 s; so large a share fails, by dice."""
    return mixed(share, answers(constant(0.1), status), answers(constant(0.1)))


def chance(seeds: int, *, quick: bool) -> Iterator[Row]:
    """Faults by chance: as good as the defaults."""
    shares = (0.05,) if quick else (0.001, 0.01, 0.02, 0.05)
    needs = (2, 20) if quick else (2, 10, 20, 50)
    for share, status, needed, clients in product(shares, (500, 503), needs, (1, 10, 50)):
        servers = [Server(name, flaky(share, status)) for name in "abc"]
        scenario = Scenario(servers, Open(30 * needed, 20), clients=clients)
        pairs = [
            (
                simulate(scenario, seed=seed, checked=False, **RECOMMENDED),
                simulate(scenario, seed=seed, checked=False),
            )
            for seed in range(seeds)
        ]
        success = fmean(ours.success - bare.success for ours, bare in pairs)
        mean = fmean(ours.mean / bare.mean for ours, bare in pairs)
        what = f"{share:.1%} of {status}, {needed} in flight at each, {clients} clients"
        text = f"{what}: success {100 * success:+.2f} points, mean {100 * (mean - 1):+.1f} %"
        yield text, success >= LEAST_SUCCESS and mean <= MOST_MEAN


def slots(seeds: int, *, quick: bool) -> Iterator[Row]:
    """More clients than a server has places."""

    def two(_: float, in_flight: int, __: random.Random) -> Reply:
        return Reply(0.15, 200 if in_flight <= 2 else 429)

    for clients, least in SLOTS.items():
        load = Open(30, 60)
        scenario = Scenario([Server("a", two)], load, clients=clients, patience=1e6, until=120)
        reports = [
            simulate(scenario, seed=seed, checked=False, **RECOMMENDED) for seed in range(seeds)
        ]
        success = fmean(one.success for one in reports)
        attempts = fmean(one.amplification for one in reports)
        text = (
            f"two places, {clients} clients: {100 * success:.1f} % succeed, {attempts:.2f} attempts"
        )
        yield text, success >= least
        if quick and clients == 10:
            return


def published(seeds: int, *, quick: bool) -> Iterator[Row]:
    """The published scenarios: their best results."""
    for name, case in CASES.items():
        if quick and name not in {"all_nodes_500", "live_reloading", "one_big_spike"}:
            continue
        reports = [configured(case, seed=seed) for seed in range(seeds)]
        success = min(one.success for one in reports)
        mean = max(one.mean for one in reports)
        good = success >= case.success and (case.mean is None or mean <= 1.01 * case.mean)
        yield f"{name}: success at least {100 * success:.2f} %, mean at most {mean:.4f} s", good


def neighbours(seeds: int, *, quick: bool) -> Iterator[Row]:
    """Their neighbours: at most a point below the defaults."""
    for name, case in CASES.items():
        if quick and name not in {"all_nodes_500", "live_reloading"}:
            continue
        for what, other in _changed(case):
            pairs: list[tuple[Report, Report]] = [
                (configured(other, seed=seed), plain(other, "weighted", seed))
                for seed in range(seeds)
            ]
            success = fmean(ours.success - bare.success for ours, bare in pairs)
            text = f"{name}, {what}: success {100 * success:+.2f} points"
            yield text, success >= NEIGHBOUR


def _changed(case: Case) -> Iterator[tuple[str, Case]]:
    scenario, load = case.scenario, case.scenario.load
    if not isinstance(load, Open):
        return

    def but(**changes: object) -> Case:
        return case._replace(scenario=dataclasses.replace(scenario, **changes))  # type: ignore[arg-type]

    for times in (0.5, 1.5):
        yield f"{times} times the load", but(load=dataclasses.replace(load, rate=times * load.rate))
    for number in (3, 12):
        kinds = scenario.servers
        servers = [
            dataclasses.replace(kinds[place % len(kinds)], name=f"s{place}")
            for place in range(number)
        ]
        yield f"{number} servers", but(servers=servers)
    for clients in (1, 100):
        yield f"{clients} clients", but(clients=clients)


PARTS = {"chance": chance, "slots": slots, "published": published, "neighbours": neighbours}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all if none is named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few rows")
    parser.add_argument("--check", action="store_true", help="fail where a bound is broken")
    arguments = parser.parse_args()
    logging.getLogger("lbclient").setLevel(logging.ERROR)
    broken = 0
    for name in arguments.parts or PARTS:
        part = PARTS[name]
        print(f"## {part.__doc__}", flush=True)
        for text, good in part(1 if arguments.quick else arguments.seeds, quick=arguments.quick):
            broken += not good
            print(text if good else f"{text}  BROKEN", flush=True)
    return 1 if arguments.check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
