"""Round-robin: each candidate in turn."""

from __future__ import annotations

from collections.abc import Sequence

from lbclient.endpoint.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["RoundRobin"]


class RoundRobin:
    """Picks each candidate in turn. Weights are ignored.

    While the set of candidates is stable, the numbers of picks of any two candidates differ by at
    most one. The sequence starts at a random position, so that clients that start at the same time
    do not begin with the same instance (envoyproxy/envoy#31378). Use it when instances are equal
    and calls are alike. Source: Go kit's `lb.NewRoundRobin`.
    """

    def __init__(self) -> None:
        self._next: int | None = None

    def after_fork(self) -> None:
        """Start at another random position in a forked child."""
        self._next = None

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick the next candidate."""
        if self._next is None:
            self._next = call.rng.randrange(len(candidates))
        place = self._next % len(candidates)
        self._next = place + 1
        return candidates[place]
