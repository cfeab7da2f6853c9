"""Random: every candidate with the same chance."""

from __future__ import annotations

from collections.abc import Sequence

from lbclient.endpoint.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["Random"]


class Random:
    """Picks any candidate with the same chance. Weights are ignored.

    This strategy keeps no state. So it is the best choice for many short-lived clients that make
    only a few calls each.
    """

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick a candidate at random."""
        return candidates[int(call.rng.random() * len(candidates))]
