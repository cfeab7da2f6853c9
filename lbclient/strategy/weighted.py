"""Weighted: smooth weighted round-robin, the default."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count

from lbclient.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["Weighted"]

_AT_ONCE = 256
_Turn = tuple[float, int, Endpoint, float]
"""When it is due, a number to break ties by, who, and its stride."""


class Weighted:
    """Each in proportion to its weight, spread evenly: no bursts in any short window.

    Stride scheduling (Waldspurger 1995; gRPC's weighted round-robin, Envoy's EDF): an endpoint of
    weight w is due every 1/w units of virtual time, and the one due first is picked. A pick costs
    O(log n). Equal weights make it plain round-robin.

    A change of the set keeps everybody's place: who stays, waits no longer and no shorter than
    before (in proportion, where its weight has changed); who joins, starts at a random point of
    its stride, which is also what makes clients that start together differ. Of thousands who join
    at once a few hundred do so at each pick, so that no single call pays for all of them.
    """

    def __init__(self) -> None:
        self._candidates: Sequence[Endpoint] = ()
        self._heap: list[_Turn] = []
        self._turns: dict[Endpoint, _Turn] = {}
        self._joining: list[Endpoint] = []
        self._spent: list[_Turn] = []
        self._order = count()
        self._time = 0.0

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The one due first."""
        if candidates is not self._candidates:
            self._follow(candidates, call)
        if self._joining or self._spent:
            self._go_on(call)
        turn = self._heap[0]
        while self._turns.get(turn[2]) is not turn:  # whoever left, and whose weight has changed
            heappop(self._heap)
            turn = self._heap[0]
        due, order, endpoint, stride = turn
        self._time = due
        turn = self._turns[endpoint] = (due + stride, order, endpoint, stride)
        heapreplace(self._heap, turn)
        return endpoint

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        now, turns = dict.fromkeys(candidates), self._turns
        for one in [one for one in turns if one not in now]:
            del turns[one]
        for turn in [turn for turn in turns.values() if turn[3] != 1.0 / turn[2].weight]:
            self._wait(turn[2], (turn[0] - self._time) / turn[3])
        self._joining = [one for one in now if one not in turns]
        if len(self._joining) > _AT_ONCE:  # else every client would begin with the same few
            place = call.rng.randrange(len(self._joining))
            self._joining = self._joining[place:] + self._joining[:place]
        if len(self._heap) > 2 * len(turns):
            self._spent, self._heap = self._heap, list(turns.values())
            heapify(self._heap)
        self._candidates = candidates

    def _go_on(self, call: PickContext) -> None:
        """Let a few hundred join, and forget a few hundred: that takes time too."""
        for one in self._joining[-_AT_ONCE:]:
            self._wait(one, call.rng.random())
        del self._joining[-_AT_ONCE:]
        del self._spent[-_AT_ONCE:]

    def _wait(self, one: Endpoint, share: float) -> None:
        """Its turn comes after that share of its stride."""
        stride = 1.0 / one.weight
        turn = self._turns[one] = (self._time + share * stride, next(self._order), one, stride)
        heappush(self._heap, turn)
