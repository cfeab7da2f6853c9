"""Two sides measured in paired blocks, by turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Block = Callable[[int], None]
"""Makes so many calls."""


@dataclass(frozen=True)
class Pairs:
    """Seconds per call of both sides, one entry per pair of blocks."""

    bare: Sequence[float]
    ours: Sequence[float]

    def times(self) -> list[float]:
        """How many times the bare time ours took, pair by pair."""
        return [ours / bare for bare, ours in zip(self.bare, self.ours, strict=True)]

    def throughputs(self) -> list[float]:
        """Which part of the bare throughput ours reached, pair by pair."""
        return [bare / ours for bare, ours in zip(self.bare, self.ours, strict=True)]


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


def paired(bare: Block, ours: Block, *, rounds: int, calls: int) -> Pairs:
    """A B A B …: what slows the machine down for a while slows both sides of a pair."""
    for warm_up in (bare, ours):
        warm_up(calls)
    turns = [(_timed(bare, calls), _timed(ours, calls)) for _ in range(rounds)]
    return Pairs([one for one, _ in turns], [other for _, other in turns])


def _timed(block: Block, calls: int) -> float:
    """Seconds per call. Without the collector, or one would pay for the other's litter."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        block(calls)
        return (time.perf_counter() - start) / calls
    finally:
        gc.enable()
