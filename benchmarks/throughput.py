"""Calls a second, and how long each takes, by how many are made at once: tasks of an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import children
import loopback
import rivals as by
from crowd import Call, Effort, Turn, of_tasks
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

Each number of calls at once has clients of its own, so that no pool holds what others left it.

Bare httpx gets slower the more connections its pool holds: for each request httpcore goes through
all of them, and asks the kernel of each idle one whether it still stands. A client that begins with
64 calls at once holds 64, until some have been idle for the 60 s: hence the wide quartiles there.
One that has carried 16 at once before goes on with those, and so is faster at 64 than one that has
not; it is beside the others. Ours has another pool, one for each instance, which does not look
through them.

**Raw aiohttp is faster** than anything that has httpx's API, ours included: making httpx's requests
and responses takes longer than all that aiohttp does. With many calls at once raw aiohttp through a
sidecar carries as many as `Balancer.acall` around it, or more: the sidecar works on another CPU.

What bounds ours is the last table: most of a call is httpx, httpcore and h11 at work on its bytes,
which a balancer does not change.

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
    Wanted(64, by.OURS, by.BEGUN_WITH_FEW, at_least(4, " x")),
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
    new_rivals: Callable[[], dict[str, Rival]], efforts: Mapping[int, Planned]
) -> tuple[dict[int, Turns], Table]:
    """Blocks of each, by how many calls are made at once; and where the time goes with most.

    Each number has clients of its own: what a pool holds from before would be measured too.
    """
    with asyncio.Runner() as runner:
        measured = {
            at_once: _level(runner, new_rivals(), at_once, planned)
            for at_once, planned in efforts.items()
        }
        some = {name: one for name, one in new_rivals().items() if name in PROFILED}
        with _calls(some, runner) as calls:
            spent = runner.run(shares(calls, 64, efforts[64].effort))
    return measured, spent


def _level(
    runner: asyncio.Runner, all_rivals: dict[str, Rival], at_once: int, planned: Planned
) -> Turns:
    with _calls(all_rivals, runner) as calls, frozen():

        def block(name: str) -> Turn:
            sidecar = all_rivals[name].sidecar
            return runner.run(of_tasks(calls[name], at_once, planned.effort, sidecar))

        turns = by_turns(list(calls), planned.rounds, block)
    return dict(zip(calls, turns, strict=True))


@contextlib.contextmanager
def _calls(some: dict[str, Rival], runner: asyncio.Runner) -> Iterator[dict[str, Call]]:
    entering = entered(some)
    calls = runner.run(entering.__aenter__())
    try:
        yield calls
    finally:
        runner.run(entering.__aexit__(None, None, None))


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
        missing: list[str] = []
        measured, spent = measure(
            lambda: dict(rivals(instances, sidecars, missing)), QUICK if quick else FULL
        )
        section.skipped += dict.fromkeys(missing)
    section.outcomes += outcomes(measured)
    section.tables += [*tables(measured), spent]
    section.plots += plots(measured)
    return section
