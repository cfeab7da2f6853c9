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
from lbclient.strategy.registry import BY_NAME

PAGE = Path(__file__).parents[1] / "docs" / "scoreboard.md"
PLOTS = PAGE.parent / "plots"
LINK = "![{name}: attempts, success and latency over time](plots/scoreboard-{name}.svg)"
STRATEGIES = sorted(set(BY_NAME) - {"consistent-hash"})  # these requests have no keys
HEAD = """# Scoreboard

Palantir's Dialogue, an HTTP client for Java, publishes how its strategies perform in eight
simulated scenarios. This page shows every strategy of lbclient in the same eight scenarios, which
run here in [lbclient's simulator](simulation.md). *success* is the share of requests that ended
with 200, *mean* and *p99* are times of a request, including the wait in the client, and *responses*
is the number of responses that the servers sent.

*Configured* means the options `lbclient.RECOMMENDED` with the strategy of the row. These options
are the same in all scenarios, except for the statuses that are retried. *Defaults* means the
default options of `Client` with the strategy of the row. In the scenarios, requests wait in the
queue without a limit, as they do in Dialogue. (In production, a request waits until the call's
deadline, or for the pool timeout.) Of Dialogue's strategies, *CL-PIN* stays with one server until
that server fails, and *CL-RR* uses the servers in a balanced order, both with a concurrency limit.
*RR* has no limit.

With the recommended strategy, `"least-busy"`, lbclient reaches the best success rate that Dialogue
publishes in every scenario. If that rate is 100 %, lbclient's mean is not above the best mean of
Dialogue (`python -m pytest -m slow tests/simulation/test_scoreboard.py`). Other tests use similar
scenarios with other rates, seeds and numbers of clients and servers. In these, the success rate is
at most one percentage point below that of the defaults, and healthy services lose nothing (`python
benchmarks/healthy.py`, `tests/balancer/test_recommended.py`). There are three known limits:

- If a server can work on fewer requests at a time than there are clients, the clients collide,
  since they do not coordinate (see [Limits](resilience.md#limits)).
- After an instance has rejected all requests for a long time, it gets no requests for up to fifteen
  seconds, even if it could serve them again.
- If the latency of a server rises with the number of requests in flight, a client cannot
  distinguish this from a queue.

`python benchmarks/scoreboard.py --write` generates this page and its plots, with seed 0.
"""
ABOUT = {
    "simplest_possible_case": (
        "Three servers always take 0.6, 0.8 and 1 s. There are 11 requests a second."
    ),
    "slowdown_and_error_thresholds": (
        "Three servers get slower up to thirty requests in flight, are five times as slow above "
        "that, and fail from forty on. They get 500 requests a second for 20 s, far more than they "
        "can serve."
    ),
    "slow_503s_then_revert": (
        "One of two servers answers 503 after more than a second, from second 3 to second 10."
    ),
    "fast_503s_then_revert": (
        "One of two servers answers 503 at once, from second 3 to second 60."
    ),
    "drastic_slowdown": (
        "From second 3 to second 10, one of two servers takes over a hundred times as long."
    ),
    "all_nodes_500": ("Both servers answer 500, which is not retried, for the first half of 20 s."),
    "live_reloading": (
        "One of two servers always answers 500, which is not retried. A third server joins after "
        "5 of 10 s."
    ),
    "one_big_spike": (
        "One client sends a thousand requests at once to two servers, which answer 429 above a "
        "hundred requests in flight."
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
