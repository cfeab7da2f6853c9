"""Calls a second, and how long each takes, by how many are made at once: tasks of an event loop."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import children
import rivals as by
import stages
from goals import at_least, at_most
from report import Section, Table
from sidecars import KNOWN, Sidecar
from stages import H11, LatencyByLoad, Place, Side, Wanted
from throughput_tables import plots, rates, tables
from worker import ASYNCIO, TRIO, UVLOOP, Order, Worker

_TEXT = """
Each call is a GET of three bytes over loopback. One nginx process listens on three ports, which are
the three instances. lbclient uses all three instances. The other clients use one instance, or a
sidecar that uses all three. The sidecar is HAProxy or nginx, with one thread each; it keeps and
shares its connections to the instances. No pool has a limit, and idle connections are kept for 60
s. All clients for one kind of event loop run in one process. *lbclient* has the extra `fast`
(httptools). *lbclient without httptools* parses with h11, and runs in a process of its own.

Each number of concurrent calls is measured with new clients. So no pool contains connections of an
earlier measurement.

With one call at a time, client, sidecar and server share one CPU, since only one of them works at
any time. On two CPUs each of them would wait for the other CPU to wake up, which takes longer than
the server's work.

The more connections the pool of bare httpx contains, the slower bare httpx is. For each request,
httpcore goes through all connections, and asks the kernel for each idle connection whether it is
still open. If a client begins with 64 concurrent calls, its pool contains 64 connections until some
of them have been idle for 60 s. This explains the wide quartiles in the column for 64 calls. If a
client has made 16 concurrent calls before, it still uses those 16 connections; the row *started
with 16 calls* shows such a client. lbclient has a pool for each instance, and does not search
through its connections.

*Raw aiohttp under the spans of lbclient* uses OpenTelemetry's SDK in the same way as a call of
lbclient: it creates two spans with the same attributes, and sends `traceparent`.

CPU time is the time of the client's process and of the sidecar together, without the instances.
"""
_BEFORE_TEXT = """
The same server and the same calls: lbclient with h11, compared with the version that `--before`
names.
"""
BEFORE = "lbclient, the earlier version"
_EVERYONE = (
    by.HTTPX,
    by.NOISE,
    by.BEGUN_WITH_FEW,
    by.OURS,
    H11,
    by.ACALL,
    by.AIOHTTP,
    by.HTTPX_AIOHTTP,
    by.HTTPX2,
    by.OURS_HTTPX2,
)
_BESIDE = (by.HTTPX, by.OURS, by.AIOHTTP)
_PROFILED = (by.OURS, by.ACALL)
_TRACED = (
    by.AIOHTTP,
    by.TRACED_AIOHTTP,
    by.SPANNED_AIOHTTP,
    by.OURS,
    by.TRACED_OURS,
    by.MEASURED_OURS,
)
"""What the SDK takes by itself for one span, and for ours, is told beside what we take."""
_OVER_AIOHTTP = [Wanted(one, by.OURS, by.AIOHTTP, at_least(0.85, " x")) for one in (1, 16, 64)]
WANTED: Mapping[str, Sequence[Wanted]] = {
    "asyncio": (
        *_OVER_AIOHTTP,
        Wanted(64, by.OURS, by.BEGUN_WITH_FEW, at_least(10, " x")),
        Wanted(64, by.ACALL, by.AIOHTTP, at_least(0.8, " x")),
        Wanted(64, by.OURS, by.through("HAProxy"), at_least(3, " x")),
    ),
    "asyncio, TLS": _OVER_AIOHTTP,
    "uvloop": _OVER_AIOHTTP,
    "uvloop, TLS": _OVER_AIOHTTP,
    "trio": (
        Wanted(1, by.OURS, by.HTTPX, at_least(2.4, " x")),
        Wanted(16, by.OURS, by.HTTPX, at_least(3.2, " x")),
    ),
}
_RECORDING = (Wanted(16, by.TRACED_OURS, by.TRACED_AIOHTTP, at_most(1.4, " x")),)
_OVER_BEFORE = [
    Wanted(one, H11, BEFORE, at_least(bar, " x")) for one, bar in ((1, 1.0), (16, 1.3), (64, 1.3))
]
_CPU = (Wanted(64, by.OURS, by.through("HAProxy"), at_most(0.5, " x")),)


@contextlib.contextmanager
def running(instances: Sequence[str], skipped: list[str]) -> Iterator[dict[str, Side]]:
    """Clients that go through those of the sidecars that are installed."""
    with ExitStack() as stack:
        found: dict[str, Side] = {}
        for name, (program, run_it) in KNOWN.items():
            if (path := children.found(program)) is None:
                skipped.append(f"{program} is not installed")
                continue
            sidecar: Sidecar = stack.enter_context(run_it(path, instances))
            for rival in (by.HTTPX, by.AIOHTTP):
                found[by.through(name, rival)] = Side(rival, sidecar=sidecar)
        yield found


def run(*, quick: bool) -> Section:
    section = Section("throughput", "Throughput and latency, on an event loop", _TEXT)
    kinds = stages.kinds(section, ASYNCIO, UVLOOP, TRIO)
    with ExitStack() as stack:
        for place in stages.places(section, stack, *kinds):
            if str(place) == ASYNCIO:
                _everyone(section, place, quick=quick)
                _recording(section, place, quick=quick)
            elif str(place) in WANTED:
                _few(section, place, quick=quick)
    return section


def _everyone(section: Section, place: Place, *, quick: bool) -> None:
    planned = stages.levels((1, 16) if quick else (1, 16, 64), quick=quick)
    with running(place.urls, section.skipped) as proxied:
        some = stages.installed({**stages.sides(*_EVERYONE), **proxied}, section)
        measured = stages.measure(place, some, planned)
    section.outcomes += stages.outcomes("calls a second, asyncio", measured, WANTED[ASYNCIO])
    section.outcomes += stages.outcomes(
        "CPU per call, asyncio", measured, _CPU, lambda turn: turn.cpu_per_call
    )
    section.tables += [*tables(measured, "asyncio"), _profiles(place, planned)]
    section.plots += plots(measured)


def _few(section: Section, place: Place, *, quick: bool) -> None:
    planned = stages.levels((1, 16) if quick or place.kind == TRIO else (1, 16, 64), quick=quick)
    names = _BESIDE[:2] if place.kind == TRIO else _BESIDE
    measured = stages.measure(place, stages.installed(stages.sides(*names), section), planned)
    section.outcomes += stages.outcomes(f"calls a second, {place}", measured, WANTED[str(place)])
    section.tables += rates(measured, str(place))


def _recording(section: Section, place: Place, *, quick: bool) -> None:
    some = stages.installed(stages.sides(*_TRACED), section)
    measured = stages.measure(place, some, stages.levels((16,), quick=quick))
    section.outcomes += stages.outcomes(
        "time of a call, OpenTelemetry's SDK", measured, _RECORDING, lambda turn: 1 / turn.rate
    )
    section.tables += rates(measured, "asyncio, OpenTelemetry's SDK", by.TRACED_AIOHTTP)


def _profiles(place: Place, planned: LatencyByLoad) -> Table:
    """Where the time of a call goes, with as many at once as were measured."""
    at_once, (_, effort) = max(planned.items())
    with Worker(place.kind, place.ca) as worker:
        found = {
            rival: worker.profile(Order(rival, tuple(place.urls), stages.SMALL, at_once, effort))
            for rival in _PROFILED
            if by.missing(rival) is None
        }
    packages = sum(found.values(), Counter())
    rows = [
        [one, *(f"{of[one]:.0f}" for of in found.values())] for one, _ in packages.most_common()
    ]
    title = f"Where the time of a call is spent, per cent, by package ({at_once} concurrent calls)"
    return Table(title, list(found), rows)


def before(source: Path, *, quick: bool) -> Section:
    """Without httptools, beside another version of lbclient."""
    section = Section("before", "Without httptools, beside an earlier version", _BEFORE_TEXT)
    some = {**stages.sides(H11), BEFORE: Side(by.OURS, (by.FAST,), source)}
    with ExitStack() as stack:
        kinds = stages.kinds(section, ASYNCIO, UVLOOP)
        for place in stages.places(section, stack, *kinds):
            planned = stages.levels((1, 16) if quick else (1, 16, 64), quick=quick)
            measured = stages.measure(place, some, planned)
            section.outcomes += stages.outcomes(f"calls a second, {place}", measured, _OVER_BEFORE)
            section.tables += rates(measured, str(place), BEFORE)
    return section
