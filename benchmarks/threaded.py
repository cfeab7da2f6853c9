"""Calls a second, and how long each takes, by how many threads make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import rivals as by
import stages
from goals import at_least
from report import Section
from stages import H11, Wanted
from throughput_tables import rates, tables
from worker import THREADS

_TEXT = """
The server is the same as on an event loop, and all threads share one client. Python runs one thread
at a time, so many threads are hardly faster than one thread. The clients differ in how threads
share the pool of connections. *http.client* with a connection for each thread shows the highest
possible figure: it has no pool, and its threads share nothing. A single thread and the server share
one CPU, as on an event loop.

On threads, too, bare httpx is slower if its pool contains more connections. With 64 threads the
pool contains 20 connections in one run and 64 in another, depending on how the threads happen to
start. So the time differs by a factor of three or four from run to run, as the *noise* row shows.
"""


def _over_httpx(ours: str, *bars: float) -> list[Wanted]:
    return [
        Wanted(at_once, ours, by.HTTPX, at_least(bar, " x"))
        for at_once, bar in zip(stages.FULL, bars, strict=True)
    ]


WANTED: Mapping[str, Sequence[Wanted]] = {
    "threads": [*_over_httpx(by.OURS, 2.5, 3.0, 2.8), *_over_httpx(H11, 1.4, 1.7, 1.6)],
    "threads, TLS": _over_httpx(by.OURS, 1.7, 2.4, 2.4),
}
_SIDES = (by.HTTPX, by.OURS, H11, by.HTTPX2, by.URLLIB3, by.HTTP_CLIENT)


def run(*, quick: bool) -> Section:
    section = Section("threads", "Throughput and latency, on threads", _TEXT)
    planned = stages.levels((1, 16) if quick else (1, 16, 64), quick=quick)
    some = stages.installed(stages.sides(*_SIDES), section)
    noise = stages.sides(by.NOISE)
    with ExitStack() as stack:
        for place in stages.places(section, stack, THREADS):
            plain = place.ca is None
            measured = stages.measure(place, {**some, **noise} if plain else some, planned)
            section.outcomes += stages.outcomes(
                f"calls a second, {place}", measured, WANTED[str(place)]
            )
            make = tables if plain else rates
            section.tables += make(measured, str(place), who="threads")
    return section
