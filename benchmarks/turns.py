"""Sides measured by turns, and what their rounds say."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Block = Callable[[int], None]
"""Makes so many calls."""

Side = TypeVar("Side")
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes."""

    low: float
    first: float
    median: float
    third: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Of two values or more."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(min(values), first, median, third, max(values))


def ratios(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """Round by round: what slows the machine down for a while is in both."""
    return [one / other for one, other in zip(these, those, strict=True)]


def by_turns(
    sides: Sequence[Side], rounds: int, measure: Callable[[Side], Measured]
) -> list[list[Measured]]:
    """A B C A B C …, after a first time of each that does not count. One list for each side."""
    for warm_up in sides:
        measure(warm_up)
    turns = [[measure(side) for side in sides] for _ in range(rounds)]
    return [list(one) for one in zip(*turns, strict=True)]


def per_call(calls: int) -> Callable[[Block], float]:
    """Measures the seconds of a call, in a block of so many."""

    def timed(block: Block) -> float:
        with uncollected():
            start = time.perf_counter()
            block(calls)
            return (time.perf_counter() - start) / calls

    return timed


@contextmanager
def frozen() -> Iterator[None]:
    """Hides all that is there from the collector, or each block would wait for a look at it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, or one side would pay for another's litter."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
