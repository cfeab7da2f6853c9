"""Slow start: an instance that has just come gets its share of the calls little by little."""

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
    """How an instance warms up: for `window` seconds it counts with `factor` of its weight.

    - `aggression`: above 0; 1 is a straight line, above 1 it rises faster at first, below 1 later.
    - `least`: the smallest factor, above 0 to 1.

    The factor is applied by thinning: a pick of an instance that warms up stands with that
    probability, else the strategy is asked again. So no strategy needs to know of it, and weights
    need not change with each second. Where everybody warms up nobody is spared. A strategy that
    prefers whoever has little in flight warms it up faster: under load the least busy of two begins
    with three times what the factor says, and the least busy of all takes no notice.

    Source: Envoy's slow start mode, max(min_weight_percent, (time / window) ^ (1 / aggression)).

    Raises ValueError or TypeError for what is out of these bounds.
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
        """The share of its weight that an instance counts with, so many seconds after it came."""
        if age >= self.window:
            return 1.0
        grown: float = (max(0.0, age) / self.window) ** (1 / self.aggression)
        return max(self.least, grown)

    def stands(self, since: float, now: float, rng: random.Random) -> bool:
        """Throw the dice for one pick of an instance that came at the time `since`."""
        factor = self.factor(now - since)
        return factor >= 1.0 or rng.random() < factor

    def thinned(
        self,
        ask: Callable[[], T],
        since: Callable[[T], float],
        now: float,
        rng: random.Random,
    ) -> T:
        """A pick that stands: `ask` asks the strategy, again up to three times.

        Where none of the four stands, any of them: the last one would be the same again and again
        in a rotation of which four in a row warm up.
        """
        refused: list[T] = []
        while len(refused) <= _ASKED_AGAIN:
            picked = ask()
            came = since(picked)
            if now - came >= self.window or self.stands(came, now, rng):
                return picked
            refused.append(picked)
        return rng.choice(refused)
