"""Calls a second, and how long each takes, by how many threads make them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import loopback
import sides
from crowd import Effort, Turn, of_threads
from goals import Outcome, at_least
from report import Section
from rivals import HTTPX, NOISE, OURS, UNLIMITED
from throughput_tables import tables
from turns import by_turns, ratios, spread

GOAL = at_least(0.95, " x")
AT_ONCE = (1, 16, 64)
_INSTANCES = 3
_TEXT = """
The same server; one client, shared by all threads. Python runs one thread at a time, so many
threads gain little over one; what differs is how they share the pool of connections.
"""


def run(*, quick: bool) -> Section:
    section = Section("threads", "Throughput and latency, on threads", _TEXT)
    if (program := loopback.found()) is None:
        section.skipped.append("nginx is not installed")
        return section
    with loopback.nginx(program, _INSTANCES) as urls:
        measured = measure(urls, quick=quick)
    one = {name: [turn.rate for turn in turns] for name, turns in measured[1].items()}
    ratio = spread(ratios(one[OURS], one[HTTPX]))
    section.outcomes.append(
        Outcome(f"calls a second, sync, 1 at once: {OURS} over {HTTPX}", GOAL, ratio)
    )
    section.tables += tables(measured, who="threads")
    return section


def measure(urls: list[str], *, quick: bool) -> dict[int, dict[str, list[Turn]]]:
    """Blocks of each side, by how many threads there are."""
    limits = httpx.Limits(**UNLIMITED)
    effort = Effort(0, 0.01) if quick else Effort(0.1, 0.25)
    measured: dict[int, dict[str, list[Turn]]] = {}
    for at_once in AT_ONCE[:2] if quick else AT_ONCE:
        rounds = 2 if quick else 14 if at_once == 1 else 8
        with ExitStack() as stack:
            clients = {
                HTTPX: stack.enter_context(sides.bare(limits=limits)),
                NOISE: stack.enter_context(sides.bare(limits=limits)),
                OURS: stack.enter_context(sides.ours(urls, limits=limits)),
            }
            pool = stack.enter_context(ThreadPoolExecutor(at_once))

            def block(name: str, clients=clients, pool=pool, at_once=at_once) -> Turn:
                return of_threads(
                    lambda: sides.check(clients[name].get(urls[0] + "/")), at_once, effort, pool
                )

            turns = by_turns(list(clients), rounds, block)
            measured[at_once] = dict(zip(clients, turns, strict=True))
    return measured
