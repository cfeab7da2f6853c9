"""What an instance takes of memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from goals import Outcome, at_most
from report import Section, Table, figure
from turns import spread

import lbclient

GOAL = at_most(2, " KB")
_ROOT = Path(lbclient.__file__).parent
_TEXT = """
The figures are the bytes that Python's allocator counts (`tracemalloc`) for 10,000 instances from a
resolver, including the `Instance` objects, divided by the number of instances. 1 KB is 1,000 bytes.
"""


class Told:
    """A resolver with so many instances."""

    def __init__(self, size: int) -> None:
        self._size = size

    def resolve(self) -> lbclient.Answer:
        return lbclient.Answer(
            [lbclient.Instance(f"i{one}.test", 80) for one in range(self._size)], 3600
        )


@contextmanager
def known(size: int, *, each: int = 0) -> Iterator[None]:
    """A balancer that knows so many, and has picked each so often."""
    with lbclient.Balancer(Told(size), name="orders.test") as balancer:
        balancer.refresh()
        for _ in range(size * each):
            with balancer.acquire():
                pass
        yield


@contextmanager
def connectable(size: int) -> Iterator[None]:
    """The same for a client."""
    with lbclient.Client(Told(size), name="orders.test", scheme="http") as client:
        client.balancer.refresh()
        yield


def traced(making: Callable[[], AbstractContextManager[None]], size: int) -> Counter[str]:
    """Bytes an instance, by the file that asked for them."""
    gc.collect()
    tracemalloc.start()
    try:
        with making():
            gc.collect()
            snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    found: Counter[str] = Counter()
    for one in snapshot.statistics("filename"):
        found[_named(one.traceback[0].filename)] += one.size / size
    return found


def _named(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_ROOT):
        return f"`lbclient/{path.relative_to(_ROOT)}`"
    return "the resolver's own" if path == Path(__file__) else "elsewhere"


def run(*, quick: bool) -> Section:
    section = Section("memory", "Memory of an instance", _TEXT)
    size, rounds = (200, 2) if quick else (10_000, 3)
    idle = [traced(lambda: known(size), size) for _ in range(rounds)]
    used = traced(lambda: known(size, each=1), size)
    client = traced(lambda: connectable(size), size)
    rows = [
        ["known, never called", _kilobytes(idle[0])],
        ["known to a `Client`, never called", _kilobytes(client)],
        ["each picked once", _kilobytes(used)],
    ]
    section.tables.append(Table("An instance", ["KB"], rows))
    parts = [[name, figure(taken)] for name, taken in idle[0].most_common(8)]
    section.tables.append(Table("Known, never called: where it goes", ["bytes"], parts))
    measured = spread([one.total() / 1e3 for one in idle])
    section.outcomes.append(Outcome("memory of a known idle instance", GOAL, measured))
    return section


def _kilobytes(taken: Counter[str]) -> str:
    return figure(taken.total() / 1e3)
