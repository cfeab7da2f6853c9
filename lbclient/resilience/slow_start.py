"""Slow start: ramps up the traffic to new and recovered instances."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lbclient._internal import validation

__all__ = ["SlowStart"]

T = TypeVar("T")
_ASKED_AGAIN = 3


@dataclass(frozen=True, slots=True)
class SlowStart:
    """Lets an instance warm up: for `window` seconds only a part of its weight counts. This part is
    its `factor`.

    - `aggression`: above 0. At 1 the factor rises in a straight line; above 1 it rises faster at
      first, below 1 slower.
    - `least`: the smallest factor; above 0, at most 1.

    The factor is a probability: a pick of an instance that warms up is kept with this probability.
    Otherwise the strategy picks again. So no strategy has to know about slow start, and weights
    need not change every second. If all instances warm up, each gets its usual share. Strategies
    that prefer instances with few attempts in flight warm up new instances faster. Under load, a
    strategy that takes the less busy of two random instances gives a new instance three times the
    factor at first. For a strategy that takes the least busy instance of all, slow start changes
    nothing.

    Source: Envoy's slow start mode, max(min_weight_percent, (time / window) ^ (1 / aggression)).

    Raises ValueError or TypeError for a value outside these bounds.
    """

    window: float = 30.0
    aggression: float = 1.0
    least: float = 0.1

    def __post_init__(self) -> None:
        validation.seconds("window", self.window)
        validation.number("aggression", self.aggression, above=True)
        validation.number("least", self.least, above=True)
        validation.fraction("least", self.least)

    def factor(self, age: float) -> float:
        """The part of an instance's weight that counts `age` seconds after it has joined."""
        if age >= self.window:
            return 1.0
        grown: float = (max(0.0, age) / self.window) ** (1 / self.aggression)
        return max(self.least, grown)

    def stands(self, since: float, now: float, rng: random.Random) -> bool:
        """Decide at random whether to keep the pick of an instance that has joined at `since`."""
        factor = self.factor(now - since)
        return factor >= 1.0 or rng.random() < factor

    def thinned(
        self,
        ask: Callable[[], T],
        since: Callable[[T], float],
        now: float,
        rng: random.Random,
    ) -> T:
        """Ask the strategy for a pick until one is kept, at most four times.

        If none of the four is kept, one of them is returned at random. A rule that always returned
        the last one would favour one instance if four instances in a row warm up.
        """
        refused: list[T] = []
        while len(refused) <= _ASKED_AGAIN:
            picked = ask()
            came = since(picked)
            if now - came >= self.window or self.stands(came, now, rng):
                return picked
            refused.append(picked)
        return rng.choice(refused)
