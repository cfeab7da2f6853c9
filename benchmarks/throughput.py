"""Calls a second, and how long each takes, by how many are made at once: tasks of an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import children
import loopback
import rivals as by
from crowd import Effort, Turn, of_tasks
from goals import Goal, Outcome, at_least, at_most
from report import Section, Table
from rivals import Rival, entered, rivals
from shares import shares
from sidecars import KNOWN, Sidecar
from throughput_tables import plots, tables
from turns import by_turns, frozen, ratios, spread

_TEXT = """
GET of three bytes over loopback from one nginx process that is three instances. Ours has all three;
the others have one of them, or a sidecar that has all three: HAProxy or nginx, of one thread each,
which keep and share their connections to the instances. No pool has a limit, and idle connections
are kept for 60 s. All clients run in one process, on one event loop of asyncio's own.

Bare httpx gets slower the more is under way: for each request httpcore's pool goes through all its
connections, and asks the kernel of each idle one whether it still stands. So its figures at 64 and
more depend on how many happen to be idle, and the row of noise there may be far from 1: take ratios
to it as rough ones. Ours has another pool, one for each instance, which does not look through them.

**Raw aiohttp is faster** than anything that has httpx's API, ours included: making httpx's requests
and responses takes longer than all that aiohttp does. With many calls at once raw aiohttp through a
sidecar carries as many as `Balancer.acall` around it, or more: the sidecar works on another CPU.

At 64 at once bare httpx is erratic: how many connections its pool happens to hold decides, so its
own noise row differs by a quarter at times, and where a block is a fixed number of calls it has
been seen fifteen times slower than ours. What bounds ours then is the last table: most of a call is
httpx, httpcore, h11 and anyio at work on its bytes, which a balancer does not change.

CPU is that of the client's process and the sidecar's together; the instances' is not counted.
"""
_INSTANCES = 3


class Planned(NamedTuple):
    """How often each side has its turn, and for how long."""

    rounds: int
    effort: Effort


QUICK = dict.fromkeys((1, 64), Planned(2, Effort(0, 0.01)))
FULL = {
    1: Planned(14, Effort(0.02, 0.25)),
    4: Planned(6, Effort(0.05, 0.25)),
    16: Planned(8, Effort(0.1, 0.25)),
    64: Planned(10, Effort(0.15, 0.35)),
    256: Planned(4, Effort(0.3, 0.5)),
}
"""By how many are made at once."""


PROFILED = (by.OURS, by.OVER_AIOHTTP, by.ACALL)


class Wanted(NamedTuple):
    """Ours over theirs is to be so much; by calls a second, or by CPU per call."""

    at_once: int
    ours: str
    theirs: str
    goal: Goal
    by_cpu: bool = False


WANTED = (
    Wanted(1, by.OURS, by.HTTPX, at_least(0.95, " x")),
    Wanted(16, by.OURS, by.HTTPX, at_least(1.5, " x")),
    Wanted(64, by.OURS, by.HTTPX, at_least(4, " x")),
    Wanted(64, by.OVER_AIOHTTP, by.HTTPX, at_least(8, " x")),
    Wanted(64, by.OVER_AIOHTTP, by.HTTPX_AIOHTTP, at_least(0.95, " x")),
    Wanted(64, by.ACALL, by.AIOHTTP, at_least(0.75, " x")),
    Wanted(64, by.OURS, by.through("HAProxy"), at_least(3, " x")),
    Wanted(64, by.OURS, by.through("HAProxy"), at_most(0.5, " x"), by_cpu=True),
)
Turns = Mapping[str, list[Turn]]


@contextlib.contextmanager
def running(instances: Sequence[str], skipped: list[str]) -> Iterator[dict[str, Sidecar]]:
    """Those of the sidecars that are installed."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Sidecar] = {}
        for name, (program, run_it) in KNOWN.items():
            if (path := children.found(program)) is None:
                skipped.append(f"{program} is not installed")
            else:
                found[name] = stack.enter_context(run_it(path, instances))
        yield found


def measure(
    all_rivals: dict[str, Rival], efforts: Mapping[int, Planned]
) -> tuple[dict[int, Turns], Table]:
    """Blocks of each, by how many calls are made at once; and where the time goes with most."""
    measured: dict[int, Turns] = {}
    with asyncio.Runner() as runner:
        entering = entered(all_rivals)
        calls = runner.run(entering.__aenter__())
        try:
            for at_once, (rounds, effort) in efforts.items():

                def block(name: str, at_once: int = at_once, effort: Effort = effort) -> Turn:
                    sidecar = all_rivals[name].sidecar
                    return runner.run(of_tasks(calls[name], at_once, effort, sidecar))

                with frozen():
                    turns = by_turns(list(calls), rounds, block)
                measured[at_once] = dict(zip(calls, turns, strict=True))
            some = {name: calls[name] for name in PROFILED if name in calls}
            spent = runner.run(shares(some, 64, efforts[64].effort))
        finally:
            runner.run(entering.__aexit__(None, None, None))
    return measured, spent


def outcomes(measured: Mapping[int, Turns]) -> Iterator[Outcome]:
    for at_once, ours, theirs, goal, by_cpu in WANTED:
        turns = measured.get(at_once, {})
        if ours in turns and theirs in turns:
            of = [
                [turn.cpu_per_call if by_cpu else turn.rate for turn in turns[name]]
                for name in (ours, theirs)
            ]
            what = "CPU per call" if by_cpu else "calls a second"
            said = f"{what}, {at_once} at once: {ours} over {theirs}"
            yield Outcome(said, goal, spread(ratios(*of)))


def run(*, quick: bool) -> Section:
    section = Section("throughput", "Throughput and latency, on an event loop", _TEXT)
    if (program := loopback.found()) is None:
        section.skipped.append("nginx is not installed")
        return section
    with (
        loopback.nginx(program, _INSTANCES) as instances,
        running(instances, section.skipped) as sidecars,
    ):
        all_rivals = dict(rivals(instances, sidecars, section.skipped))
        measured, spent = measure(all_rivals, QUICK if quick else FULL)
    section.outcomes += outcomes(measured)
    section.tables += [*tables(measured), spent]
    section.plots += plots(measured)
    return section
