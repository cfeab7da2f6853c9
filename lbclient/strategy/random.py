"""Random: uniform."""

from __future__ import annotations

from collections.abc import Sequence

from lbclient.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["Random"]


class Random:
    """Any with the same chance, weights ignored.

    Without state: the best choice where many short-lived clients each make few calls.
    """

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """A throw of the dice."""
        return candidates[int(call.rng.random() * len(candidates))]
