"""All performance benchmarks, or the parts that are named: see README.md. `--write` makes
docs/performance.md and its plots, which need matplotlib (`pip install -e '.[bench]'`)."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import bodies
import children
import layers
import memory
import picks
import report
import threaded
import throughput
import updates
from report import Section

SECTIONS: dict[str, Callable[..., Section]] = {
    "layers": layers.run,
    "throughput": throughput.run,
    "threads": threaded.run,
    "bodies": bodies.run,
    "picks": picks.run,
    "updates": updates.run,
    "memory": memory.run,
}
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PLOTS = PAGE.parent / "plots"
HEAD = """# Performance

This page shows what lbclient costs and what it saves, compared with bare httpx, with other HTTP
clients, and with a proxy that balances the load. Everything was measured in one run on one machine.

Compare the ratios. The absolute figures come from a small shared machine on which client, proxy and
servers run together over loopback. Your figures will differ, and another run on the same machine
gives other figures too. The clients are measured in turn, in short blocks (A B C A B C …), and the
garbage collector is off during a block. A ratio is computed for each round; the tables show the
median and its quartiles. Rows called *noise* compare bare httpx with itself. Ignore a difference
that is smaller than the difference in these rows. The servers answer at once with three bytes, so
nearly all of the measured time is spent in the client. The figures show how many calls one core can
handle. If a service takes 20 ms to answer and calls are made one at a time, most of the differences
do not matter.

In the table of goals, *a / b* is the result of *a* divided by that of *b*, and *16 concurrent*
means that 16 calls are made at the same time.
"""
MACHINE = """
{cpus} CPUs, Linux, Python {python}; {packages}; {programs}.
When the benchmark began, the load average of the machine was {load:.1f}.

`{command} --write` generates this page and its plots; with `--check` the exit status is 1 if a goal
is missed. To run some parts only, name them, as in `{command} picks`.
"""
_VERSION = r"\d+\.\d+\.\d+(-\S+)?"
_PACKAGES = (
    "httpx",
    "httpcore",
    "h11",
    "httptools",
    "httpx2",
    "aiohttp",
    "httpx-aiohttp",
    "urllib3",
    "uvloop",
    "trio",
    "opentelemetry-api",
)


def versions() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"no {name}"


def programs() -> Iterator[str]:
    """Those of the servers, in their own words."""
    for name in ("haproxy", "nginx"):
        if (program := children.found(name)) is None:
            yield f"no {name}"
            continue
        done = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
        first = (done.stdout or done.stderr).splitlines()[0]
        yield f"{name} {re.search(_VERSION, first)[0]}"


def page(sections: Sequence[Section], load: float) -> str:
    machine = MACHINE.format(
        cpus=os.cpu_count(),
        python=platform.python_version(),
        packages=", ".join(versions()),
        programs=", ".join(programs()),
        load=load,
        command=report.COMMAND,
    )
    parts = [HEAD, *report.goals(sections), machine]
    for section in sections:
        parts += section.lines()
    return "\n".join(parts).rstrip() + "\n"


def write(sections: Sequence[Section], load: float) -> None:
    for section in sections:
        for plot in section.plots:
            plot.draw(PLOTS / f"{plot.name}.svg")
    PAGE.write_text(page(sections, load), encoding="utf-8")


def measured(options: argparse.Namespace) -> Iterator[Section]:
    """Each part, printed as it is done."""
    sections = dict(SECTIONS)
    if options.before is not None:
        sections["before"] = functools.partial(throughput.before, options.before)
    for name in options.parts or sections:
        section = sections[name](quick=options.quick)
        print("\n".join(section.names() if options.quick else section.lines()), flush=True)
        yield section


def main() -> int:
    options = _options()
    # Whatever ends us, the servers are to end before.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.disable()
    _many_descriptors()
    load = os.getloadavg()[0]
    sections = list(measured(options))
    if options.quick:
        return 0
    print("\n".join(report.goals(sections)))
    if options.write:
        write(sections, load)
    missed = any(not one.met for section in sections for one in section.outcomes)
    return int(options.check and missed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="does it run? No figures")
    parser.add_argument("--write", action="store_true", help="make docs/performance.md, and plots")
    parser.add_argument("--check", action="store_true", help="exit 1 if a median misses its goal")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="PATH",
        help="also measure without httptools over an earlier version: a checkout of it is at PATH",
    )
    options = parser.parse_args()
    known = {*SECTIONS, *(["before"] if options.before is not None else [])}
    if unknown := sorted(set(options.parts) - known):
        parser.error(f"no such part: {', '.join(unknown)}")
    if options.write and (options.quick or options.parts):
        parser.error("--write takes all parts, in full")
    return options


def _many_descriptors() -> None:
    """Each side keeps as many connections as it has calls at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
