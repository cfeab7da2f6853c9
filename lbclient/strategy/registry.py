"""The names of strategies. Also records which strategy objects are used by a balancer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Literal, TypeAlias, cast

from lbclient._internal import validation
from lbclient.strategy.consistent_hash import ConsistentHash
from lbclient.strategy.least_busy import LeastBusy
from lbclient.strategy.peak_ewma import PeakEwma
from lbclient.strategy.prequal import Prequal
from lbclient.strategy.protocol import Strategy
from lbclient.strategy.random import Random
from lbclient.strategy.round_robin import RoundRobin
from lbclient.strategy.weighted import Weighted

__all__ = ["BY_NAME", "StrategyName", "claim", "release", "strategy_of"]

StrategyName: TypeAlias = Literal[
    "consistent-hash",
    "least-busy",
    "peak-ewma",
    "prequal",
    "random",
    "round-robin",
    "weighted",
]
"""The names of strategies, for type checkers. `BY_NAME` has the same names."""
BY_NAME: dict[StrategyName, Callable[[], Strategy]] = {
    "consistent-hash": ConsistentHash,
    "least-busy": LeastBusy,
    "peak-ewma": PeakEwma,
    "prequal": Prequal,
    "random": Random,
    "round-robin": RoundRobin,
    "weighted": Weighted,
}
_owned: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()


def strategy_of(strategy: object) -> Strategy:
    """Return the strategy for the argument `strategy=` of a user: the name of a strategy, or a
    strategy object.

    Raises ValueError for an unknown name (the error lists the known names), and TypeError for an
    object that has no `pick`.
    """
    if isinstance(strategy, str):
        return BY_NAME[validation.one_of("strategy", strategy, BY_NAME)]()
    if isinstance(strategy, type) or not callable(getattr(strategy, "pick", None)):
        known = ", ".join(map(repr, sorted(BY_NAME)))
        raise TypeError(
            f"strategy must be one of {known}, or an object with pick(candidates, call), "
            f"not {strategy!r}"
        )
    return cast("Strategy", strategy)


def claim(strategy: object) -> None:
    """Mark a strategy as used by one balancer until `release`.

    Raises ValueError if another balancer uses it already, since a strategy keeps state.
    """
    if _owned.get(id(strategy)) is strategy:
        raise ValueError(
            f"strategy {strategy!r} is already used by another balancer. "
            "A strategy keeps state, so give each balancer one of its own"
        )
    try:
        _owned[id(strategy)] = strategy
    except TypeError:  # a class with __slots__ but without __weakref__
        return


def release(strategy: object) -> None:
    """Release a strategy, since its balancer is closed or could not be constructed."""
    _owned.pop(id(strategy), None)
