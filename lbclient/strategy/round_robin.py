"""Round-robin: each in turn."""

from __future__ import annotations

from collections.abc import Sequence

from lbclient.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["RoundRobin"]


class RoundRobin:
    """Each in turn, weights ignored: within one pick of equal over any window of a stable set.

    It starts at a random place, so that a fleet restarted together does not begin with the same
    instance (envoyproxy/envoy#31378). Use it when instances are equal and calls alike.
    Source: Go kit's `lb.NewRoundRobin`.
    """

    def __init__(self) -> None:
        self._next: int | None = None

    def after_fork(self) -> None:
        """In a forked child: start at another random place."""
        self._next = None

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The next in order."""
        if self._next is None:
            self._next = call.rng.randrange(len(candidates))
        place = self._next % len(candidates)
        self._next = place + 1
        return candidates[place]
