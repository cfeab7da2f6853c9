"""Weighted: smooth weighted round-robin, the default."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

from lbclient.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["Weighted"]


class Weighted:
    """Each in proportion to its weight, spread evenly: no bursts in any short window.

    Stride scheduling (Waldspurger 1995; gRPC's weighted round-robin, Envoy's EDF): an endpoint of
    weight w is due every 1/w units of virtual time, and the one due first is picked. A pick costs
    O(log n). Equal weights make it plain round-robin.

    A change of the set keeps everybody's place: who stays, waits no longer and no shorter than
    before (in proportion, where its weight has changed); who joins, starts at a random point of
    its stride, which is also what makes clients that start together differ.
    """

    def __init__(self) -> None:
        self._candidates: Sequence[Endpoint] = ()
        self._heap: list[tuple[float, int, Endpoint, float]] = []
        self._time = 0.0

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The one due first."""
        if candidates is not self._candidates:
            self._follow(candidates, call)
        due, order, endpoint, stride = self._heap[0]
        self._time = due
        heapreplace(self._heap, (due + stride, order, endpoint, stride))
        return endpoint

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        waits = {id(one): (due - self._time) / stride for due, _, one, stride in self._heap}
        self._heap = []
        for order, one in enumerate(candidates):
            stride = 1.0 / one.weight
            wait = waits.get(id(one))
            share = call.rng.random() if wait is None else wait
            self._heap.append((share * stride, order, one, stride))
        heapify(self._heap)
        self._time = 0.0
        self._candidates = candidates
