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
    """Lets an instance warm up: for `window` seconds, the instance gets only a part of its usual
    share of the calls. This part is its `factor`.

    - `aggression`: above 0. With 1 the factor rises linearly; above 1 it rises faster at first,
      below 1 more slowly at first.
    - `least`: the smallest factor; above 0, at most 1.

    The factor is a probability: a pick of an instance that warms up is kept with this probability.
    Otherwise the strategy picks again. So no strategy has to know about slow start, and weights
    need not change every second. If all instances warm up, each gets its usual share. A strategy
    that prefers instances with few attempts in flight picks a new instance more often, so the
    instance warms up faster. Under load, with `LeastBusy` and two choices, the part that a new
    instance gets is at first three times the factor. With `LeastBusy(choices=None)`, slow start has
    no effect.

    Source: Envoy's slow start mode, max(min_weight_percent, (time / window) ^ (1 / aggression)).

    Raises ValueError or TypeError for a value that cannot be used.
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
        """The factor of an instance, `age` seconds after it has joined."""
        if age >= self.window:
            return 1.0
        grown: float = (max(0.0, age) / self.window) ** (1 / self.aggression)
        return max(self.least, grown)

    def stands(self, since: float, now: float, rng: random.Random) -> bool:
        """Decide at random whether to keep the pick of an instance that joined at `since`."""
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

        If none of the four picks is kept, one of them is returned at random. If the last pick were
        returned, a strategy that picks in turn would favour one of several instances that warm up.
        """
        refused: list[T] = []
        while len(refused) <= _ASKED_AGAIN:
            picked = ask()
            came = since(picked)
            if now - came >= self.window or self.stands(came, now, rng):
                return picked
            refused.append(picked)
        return rng.choice(refused)
