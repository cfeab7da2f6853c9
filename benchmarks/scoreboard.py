"""Every strategy through eight scenarios with published results: run it, or see README.md. With
`--write` it makes docs/scoreboard.md and its plots, the same on every machine; the plots need
matplotlib (`pip install -e '.[bench]'`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.scenarios import CASES, Case, configured, plain
from lbclient.simulation import Report
from lbclient.strategy import BY_NAME

PAGE = Path(__file__).parents[1] / "docs" / "scoreboard.md"
PLOTS = PAGE.parent / "plots"
LINK = "![{name}: attempts, success and latency over time](plots/scoreboard-{name}.svg)"
STRATEGIES = sorted(set(BY_NAME) - {"consistent-hash"})  # these requests have no keys
HEAD = """# Scoreboard

Palantir's Dialogue, an HTTP client for Java, publishes what its strategies make of eight simulated
scenarios. Here every strategy of lbclient goes through the same eight, in [our
simulator](simulation.md), described anew. Success is the share of requests that ended with 200; the
mean is the time of a request, waiting in the client included; responses are what servers answered.

*Configured* is `lbclient.RECOMMENDED`, the same everywhere, with each strategy in turn: the
statuses that are tried again follow the scenario, and requests wait in line as long as it takes, as
Dialogue's do (a client's line ends with the call's deadline, or its pool timeout). *Defaults* are
those of `Client`. Of Dialogue's, *CL-PIN* stays with one server until that errs and *CL-RR* takes
them in a balanced order, both below a concurrency limit; *RR* has no limit.

With `"least-busy"`, which is the recommended strategy, it reaches in each the best success rate
that Dialogue publishes, and where that is 100 %, its best mean or a lower one (`python -m pytest
-m slow tests/simulation/test_scoreboard.py`). In neighbours of these scenarios, with other rates,
seeds and numbers of clients and servers, success is at most a point below that of the defaults, and
services that are healthy lose nothing (`python benchmarks/healthy.py`,
`tests/balancer/test_recommended.py`). What remains: without coordination, clients that share fewer
places than they are many collide (see [Limits](resilience.md#limits)), an instance that rejected
everything for long is paused for up to fifteen seconds more, and a latency that rises with a
client's own load cannot be told from a queue.

`python benchmarks/scoreboard.py --write` made this page and its plots, from seed 0.
"""
ABOUT = {
    "simplest_possible_case": (
        "Three servers that always take 0.6, 0.8 and 1 s; 11 requests a second."
    ),
    "slowdown_and_error_thresholds": (
        "Three servers that get slower up to thirty requests in flight, five times as slow "
        "above, and fail from forty on; 500 requests a second for 20 s are far more than they "
        "bear."
    ),
    "slow_503s_then_revert": (
        "One of two servers answers 503 from 3 to 10 s, after more than a second."
    ),
    "fast_503s_then_revert": ("One of two servers answers 503 from 3 to 60 s, at once."),
    "drastic_slowdown": (
        "One of two servers takes more than a hundred times as long from 3 to 10 s."
    ),
    "all_nodes_500": (
        "Both servers answer 500, which is not tried again, for the first half of 20 s."
    ),
    "live_reloading": (
        "One of two servers always answers 500, which is not tried again; a third joins after "
        "5 of 10 s."
    ),
    "one_big_spike": (
        "A thousand requests at once from one client, to two servers that answer 429 above a "
        "hundred in flight."
    ),
}


def row(name: str, report: Report) -> str:
    return (
        f"| {name} | {100 * report.success:.1f} % | {report.mean:.4f} s "
        f"| {report.percentile(99):.3f} s | {report.responses} |"
    )


def run(case: Case, *, quick: bool = False) -> dict[str, dict[str, Report]]:
    """Reports by configuration and strategy."""
    return {
        "configured": {
            name: configured(case, name) for name in (["least-busy"] if quick else STRATEGIES)
        },
        "defaults": {name: plain(case, name) for name in (() if quick else STRATEGIES)},
    }


def rows(runs: dict[str, dict[str, Report]]) -> Iterator[str]:
    for kind, reports in runs.items():
        for strategy, report in reports.items():
            yield row(f"`{strategy}`, {kind}", report)


def table(case: Case, runs: dict[str, dict[str, Report]]) -> Iterator[str]:
    yield "| | success | mean | p99 | responses |"
    yield "|---|---|---|---|---|"
    yield from rows(runs)
    names = ("CL-PIN", "CL-RR", "RR")
    for name, (success, mean) in zip(names, case.published, strict=True):
        yield f"| Dialogue, {name} | {100 * success:.1f} % | {mean:g} s | | |"


def source(runs: dict[str, dict[str, Report]]) -> str:
    """The trace of each run: it stands in the plot, which so cannot be of other runs unseen."""
    return "\n".join(
        f"{strategy}, {kind}: {report.trace}"
        for kind, reports in runs.items()
        for strategy, report in reports.items()
    )


def show(*, quick: bool) -> None:
    for name, case in list(CASES.items())[-3:] if quick else CASES.items():
        print("\n".join([f"## {name}", "", *table(case, run(case, quick=quick)), ""]), flush=True)


def write() -> None:
    from benchmarks.scoreboard_plots import draw  # noqa: PLC0415  # only this needs matplotlib

    lines = [HEAD]
    for name, case in CASES.items():
        print(name, flush=True)
        runs = run(case)
        draw(PLOTS / f"scoreboard-{name}.svg", name, case, runs, source(runs))
        picture = LINK.format(name=name)
        lines += [f"## {name}", "", ABOUT[name], "", picture, "", *table(case, runs), ""]
    PAGE.write_text("\n".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one strategy, three scenarios")
    parser.add_argument("--write", action="store_true", help="make docs/scoreboard.md, and plots")
    arguments = parser.parse_args()
    if arguments.write:
        write()
    else:
        show(quick=arguments.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
