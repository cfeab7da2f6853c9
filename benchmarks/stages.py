"""Clients that take turns, in processes of their own, by how many calls are made at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import children
import loopback
import rivals as by
from crowd import Effort, Turn
from goals import Goal, Outcome
from report import Section
from sidecars import Sidecar
from turns import by_turns, ratios, spread
from worker import ASYNCIO, Order, Worker

INSTANCES = 3
SMALL = "small"
H11 = "lbclient without httptools"


class Side(NamedTuple):
    """A client as it is measured; see `Worker` and `Order`."""

    rival: str
    without: tuple[str, ...] = ()
    source: Path | None = None
    sidecar: Sidecar | None = None
    exchange: str = SMALL


class Place(NamedTuple):
    """The clients' event loop, or threads, and their servers. `ca` is for those with TLS; `server`
    is the id of a process that shares one CPU with those who make one call at a time."""

    kind: str
    urls: Sequence[str]
    ca: str | None = None
    server: int | None = None

    def __str__(self) -> str:
        return self.kind if self.ca is None else f"{self.kind}, TLS"


class Planned(NamedTuple):
    """How often each side has its turn, and for how long."""

    rounds: int
    effort: Effort


class Wanted(NamedTuple):
    """A goal for ours over theirs."""

    at_once: int
    ours: str
    theirs: str
    goal: Goal


Sides = Mapping[str, Side]
LatencyByLoad = Mapping[int, Planned]
"""By how many calls are made at once."""
Measured = Mapping[int, Mapping[str, list[Turn]]]
"""The turns of each side, by how many calls are made at once."""
QUICK = Planned(2, Effort(0, 0.01))
FULL: LatencyByLoad = {
    1: Planned(10, Effort(0.02, 0.25)),
    16: Planned(8, Effort(0.08, 0.25)),
    64: Planned(8, Effort(0.15, 0.3)),
}


def levels(at_once: Iterable[int] = FULL, *, quick: bool) -> LatencyByLoad:
    return {one: QUICK if quick else FULL[one] for one in at_once}


def sides(*names: str) -> dict[str, Side]:
    """Clients as they are, and ours without httptools."""
    found = {name: Side(name) for name in names}
    if H11 in found:
        found[H11] = Side(by.OURS, without=(by.FAST,))
    return found


def installed(some: Sides, section: Section) -> dict[str, Side]:
    """Those whose packages are installed."""
    missing = {name: by.missing(side.rival) for name, side in some.items()}
    missing = {name: one for name, one in missing.items() if one not in {None, *some[name].without}}
    _skip(section, missing.values())
    return {name: side for name, side in some.items() if name not in missing}


def kinds(section: Section, *some: str) -> list[str]:
    """Those event loops that are installed."""
    missing = [one for one in some if one != ASYNCIO and find_spec(one) is None]
    _skip(section, missing)
    return [one for one in some if one not in missing]


def places(section: Section, stack: ExitStack, *some: str) -> Iterator[Place]:
    """Each kind of event loop, or threads, without TLS and with it; one nginx each for all."""
    if (program := loopback.found()) is None:
        section.skipped.append("nginx is not installed")
        return
    plain = stack.enter_context(loopback.nginx(program, INSTANCES))
    yield from (Place(one, plain.urls, server=plain.pid) for one in some)
    if find_spec("trustme") is None:
        _skip(section, ["trustme"])
        return
    secure = stack.enter_context(loopback.https(program, INSTANCES))
    yield from (Place(one, secure.urls, secure.ca, secure.pid) for one in some)


def measure(place: Place, some: Sides, planned: LatencyByLoad) -> Measured:
    """Each number of calls at once has clients of its own: what a pool holds from before would be
    measured too.

    One call at a time keeps either the client busy or the server. On two CPUs each of them waits
    for the other's CPU to wake up, which takes longer than the request and is the machine's time;
    and a client that works on after it has sent a request hides it. So they share one.
    """
    with ExitStack() as stack:
        workers = {
            (without, source): stack.enter_context(
                Worker(place.kind, place.ca, without=without, source=source)
            )
            for _, without, source, *_ in some.values()
        }
        measured = {}
        for at_once, (rounds, effort) in planned.items():

            def block(name: str, at_once=at_once, effort=effort) -> Turn:
                side = some[name]
                order = _order(side, place, at_once, effort)
                return workers[side.without, side.source].turn(order)

            alone = at_once == 1 and place.server is not None
            with children.on_one_cpu(_processes(place, some, workers.values()) if alone else ()):
                turns = by_turns(list(some), rounds, block)
            measured[at_once] = dict(zip(some, turns, strict=True))
            for worker in workers.values():
                worker.close_clients()
    return measured


def _processes(place: Place, some: Sides, workers: Iterable[Worker]) -> Iterator[int]:
    """All that a call goes through."""
    yield from (worker.pid for worker in workers)
    yield from (side.sidecar.pid for side in some.values() if side.sidecar is not None)
    if place.server is not None:
        yield place.server


def _order(side: Side, place: Place, at_once: int, effort: Effort) -> Order:
    urls, pid = tuple(place.urls), None
    if side.sidecar is not None:
        urls, pid = (side.sidecar.url,), side.sidecar.pid
    return Order(side.rival, urls, side.exchange, at_once, effort, pid)


def outcomes(
    what: str,
    measured: Measured,
    wanted: Iterable[Wanted],
    of: Callable[[Turn], float] = lambda turn: turn.rate,
) -> Iterator[Outcome]:
    """What became of the goals, where both sides were measured."""
    for at_once, ours, theirs, goal in wanted:
        turns = measured.get(at_once, {})
        if ours in turns and theirs in turns:
            over = ratios(*([of(turn) for turn in turns[one]] for one in (ours, theirs)))
            yield Outcome(f"{what}, {at_once} concurrent: {ours} / {theirs}", goal, spread(over))


def _skip(section: Section, packages: Iterable[str]) -> None:
    reasons = dict.fromkeys(f"the package {one} is not installed" for one in packages)
    section.skipped += [one for one in reasons if one not in section.skipped]
