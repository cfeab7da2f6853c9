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
    its stride, which is also what makes clients that start together differ. Of thousands that are
    new a few hundred join at each pick, so that no single call pays for all of them.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._candidates: Sequence[Endpoint] = ()
        self._members: frozenset[Endpoint] = frozenset()
        self._heap: list[_Turn] = []
        self._turns: dict[Endpoint, _Turn] = {}
        self._spent: list[_Turn] = []
        self._unseen = 0
        """So many candidates, from `_next` on, may be new or have another weight."""
        self._next = 0
        self._order = count()
        self._time = 0.0

    def after_fork(self) -> None:
        """In a forked child: every instance starts at another random point of its stride."""
        self._begin()

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The one due first."""
        if candidates is not self._candidates:
            self._follow(candidates, call)
        if self._unseen:
            self._look(call)
        if self._spent:
            del self._spent[-_AT_ONCE:]  # to free thousands takes time too
        while (
            self._turns.get((turn := self._heap[0])[2]) is not turn or turn[2] not in self._members
        ):
            self._drop(turn)
        due, order, endpoint, stride = turn
        self._time = due
        turn = self._turns[endpoint] = (due + stride, order, endpoint, stride)
        heapreplace(self._heap, turn)
        return endpoint

    def _drop(self, turn: _Turn) -> None:
        """That of one who has left, or that was replaced by another."""
        if self._turns.get(turn[2]) is turn:
            del self._turns[turn[2]]
        heappop(self._heap)

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        """`_candidates` are set last: after an exception the next pick begins anew."""
        self._members, self._unseen, self._next = frozenset(candidates), len(candidates), 0
        if self._unseen > _AT_ONCE:  # else every client would begin with the same few
            self._next = call.rng.randrange(self._unseen)
        if len(self._heap) > 2 * len(candidates) + _AT_ONCE:
            heap = [turn for turn in self._turns.values() if turn[2] in self._members]
            heapify(heap)
            turns = {turn[2]: turn for turn in heap}
            self._spent, self._heap, self._turns = self._heap, heap, turns
        self._candidates = candidates

    def _look(self, call: PickContext) -> None:
        """At a few hundred candidates: who is new joins, who has another weight waits anew."""
        for _ in range(min(self._unseen, _AT_ONCE)):
            one = self._candidates[self._next]
            turn = self._turns.get(one)
            if turn is None:
                self._wait(one, call.rng.random())
            elif turn[3] != 1.0 / one.weight:
                self._wait(one, (turn[0] - self._time) / turn[3])
            self._next = (self._next + 1) % len(self._candidates)
            self._unseen -= 1

    def _wait(self, one: Endpoint, share: float) -> None:
        """Its turn comes after that share of its stride."""
        stride = 1.0 / one.weight
        turn = (self._time + share * stride, next(self._order), one, stride)
        heappush(self._heap, turn)  # first: a turn that is not known yet is dropped from the heap
        self._turns[one] = turn
