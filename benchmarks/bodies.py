"""How long a call takes that carries much, or whose response comes in many chunks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import bulk
import children
import rivals as by
import stages
from crowd import Effort, Turn
from goals import at_most
from report import Section, Table, compared, figure
from stages import Place, Planned, Wanted
from turns import ratios, spread
from worker import ASYNCIO, THREADS

_TEXT = f"""
One call after another goes over loopback to a server with blocking sockets. The server sends a body
at once, and reads the whole request before it answers; the client reads the whole response. A body
of {bulk.MEGABYTES} MB is sent as `bytes`, or from an iterator in pieces of 50 KB. In the response
with {bulk.CHUNKS:,} chunks, each chunk has 100 bytes.
"""
_SIDES = {ASYNCIO: (by.AIOHTTP, by.HTTPX, by.OURS), THREADS: (by.HTTPX, by.OURS)}
"""The first is what the ratio is over."""
BARS: Mapping[str, Mapping[str, float]] = {
    ASYNCIO: {bulk.DOWN: 1.15, bulk.UP: 1.15, bulk.UP_IN_PIECES: 1.15, bulk.CHUNKED: 0.8},
    THREADS: {bulk.DOWN: 1.0, bulk.UP: 1.0, bulk.UP_IN_PIECES: 1.0},
}
_FULL = Planned(12, Effort(0.02, 0.3))


def run(*, quick: bool) -> Section:
    section = Section("bodies", "Long bodies", _TEXT)
    (port,) = children.free_ports(1)
    planned = {1: stages.QUICK if quick else _FULL}
    with children.running([sys.executable, bulk.__file__, str(port)], [port]):
        for kind, bars in BARS.items():
            place = Place(kind, [f"http://127.0.0.1:{port}"])
            names = stages.installed(stages.sides(*_SIDES[kind]), section)
            some = {
                f"{name}, {exchange}": side._replace(exchange=exchange)
                for exchange in bars
                for name, side in names.items()
            }
            turns = stages.measure(place, some, planned)[1]
            measured = {one: {name: turns[f"{name}, {one}"] for name in names} for one in bars}
            for exchange, bar in bars.items():
                wanted = Wanted(1, by.OURS, _SIDES[kind][0], at_most(bar, " x"))
                what = f"time of a call, {kind}, {bulk.EXCHANGES[exchange]}"
                found = stages.outcomes(what, {1: measured[exchange]}, [wanted], _seconds)
                section.outcomes += found
            section.tables.append(_table(kind, measured, next(iter(names))))
    return section


def _seconds(turn: Turn) -> float:
    return turn.seconds_per_call


def _table(kind: str, measured: Mapping[str, Mapping[str, Sequence[Turn]]], against: str) -> Table:
    def cell(name: str, turns: Mapping[str, Sequence[Turn]]) -> str:
        ours, theirs = (list(map(_seconds, turns[one])) for one in (name, against))
        return f"{figure(1e3 * spread(ours).median)}; {compared(ratios(ours, theirs))}"

    names = next(iter(measured.values()))
    rows = [[name, *(cell(name, turns) for turns in measured.values())] for name in names]
    title = f"{kind}: milliseconds of a call; ratio to {against} (quartiles)"
    return Table(title, [bulk.EXCHANGES[one] for one in measured], rows)
