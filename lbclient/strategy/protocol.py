"""What a strategy is: an object with `pick`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lbclient.endpoint import Endpoint
from lbclient.strategy.load import LoadReport
from lbclient.strategy.probe import LoadProbe

__all__ = ["Learning", "LoadAware", "PickContext", "Probing", "Strategy"]


class PickContext(Protocol):
    """What a strategy is told of the call: the dice, the clock's time, and the call's key."""

    @property
    def rng(self) -> random.Random:
        """The balancer's dice."""
        ...

    @property
    def now(self) -> float:
        """The balancer's clock, in seconds."""
        ...

    @property
    def key(self) -> object:
        """What the caller passed as `key`, or None."""
        ...


class Strategy(Protocol):
    """Given the candidates, pick one. Asked for the first attempt of each call.

    In a forked child `after_fork()` is called, if the strategy has that method. A strategy that
    keeps a place in a sequence begins at a random one there, or all workers of a pre-fork server
    pick the same instances at the same time. `call.rng` is seeded anew by then.
    """

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick one of `candidates`, which are never empty.

        They are a new object whenever membership, admissibility or weights have changed, so a
        strategy may cache by their identity. Called under the balancer's lock: compute only.
        """
        ...


@runtime_checkable
class Learning(Protocol):
    """A strategy that is told how attempts ended."""

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """An attempt, whoever picked its instance, has its verdict after `elapsed` seconds.

        `failed` where it was not served: a fault, or an answer such as 429. One that was overtaken
        by a hedge is told with the time so far, a lower bound; one that says nothing of the
        instance (cancelled) is not told. Called under the balancer's lock, while the attempt still
        counts as in flight.
        """
        ...


@runtime_checkable
class LoadAware(Protocol):
    """A strategy that is told what instances say of their own load."""

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        """It has said so, with an answer or to a probe. None: it was probed, and said nothing.

        A lie cannot be told from the truth, but nonsense never comes here. Called under the
        balancer's lock; of an answer, while its attempt still counts as in flight.
        """
        ...


@runtime_checkable
class Probing(LoadAware, Protocol):
    """One that wants instances asked for their load, too."""

    @property
    def probe(self) -> LoadProbe | None:
        """How; None is not at all."""
        ...
