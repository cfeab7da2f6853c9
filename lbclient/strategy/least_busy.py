"""Least busy: picks the least busy of a few random candidates."""

from __future__ import annotations

from collections.abc import Sequence

from lbclient._internal import validation
from lbclient.endpoint.endpoint import Endpoint, draw
from lbclient.strategy.protocol import PickContext

__all__ = ["LeastBusy"]


class LeastBusy:
    """Picks, among `choices` random candidates, the endpoint with the least load in proportion to
    its weight.

    Load is the number of attempts in flight plus a penalty for recent failures (see
    `Endpoint.load`). To compare two instances is nearly as good as to compare all. It also prevents
    all clients from sending to the same least busy instance at once (Mitzenmacher 2001; Finagle's
    P2C, gRPC's A48). With `choices=None`, all instances are compared, so the cost of a pick grows
    with their number. If several endpoints have the same load, one is drawn by weight.

    Use it when calls or instances differ in speed. If a client has at most one call in flight,
    there is no load to compare, and instances are drawn by weight.

    Raises ValueError if `choices` is below 2.
    """

    def __init__(self, choices: int | None = 2) -> None:
        self._choices = None if choices is None else validation.count("choices", choices, least=2)

    def __repr__(self) -> str:
        return f"LeastBusy(choices={self._choices})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick the least busy of a few random candidates."""
        drawn = self._draw(candidates, call)
        now = call.now
        loads = [one.load(now) / one.weight for one in drawn]
        least = min(loads)
        idlest = [one for one, load in zip(drawn, loads, strict=True) if load == least]
        return idlest[0] if len(idlest) == 1 else draw(idlest, call.rng)

    def _draw(self, candidates: Sequence[Endpoint], call: PickContext) -> Sequence[Endpoint]:
        if self._choices is None or self._choices >= len(candidates):
            return candidates
        return call.rng.sample(candidates, self._choices)
