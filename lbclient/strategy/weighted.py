"""Weighted: smooth weighted round-robin. The default."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count

from lbclient.endpoint.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["Weighted"]

_AT_ONCE = 256
_Turn = tuple[float, int, Endpoint, float]
"""One turn: the time when it is due, a number that breaks ties, the endpoint, and its stride."""


class Weighted:
    """Picks each instance in proportion to its weight, evenly spread, without bursts.

    This is stride scheduling (Waldspurger 1995; gRPC's weighted round-robin, Envoy's EDF): an
    endpoint of weight w is due every 1/w units of virtual time, and the endpoint that is due first
    is picked. A pick costs O(log n). With equal weights this is plain round-robin.

    A change of the set keeps the order. An endpoint that stays is due at the same time as before
    (in proportion, if its weight has changed). An endpoint that joins starts at a random point of
    its stride, so that clients that start together differ. When thousands of endpoints are new, a
    few hundred join at each pick, so that no single call pays for all of them.
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
        """The number of candidates from `_next` on that are still to be checked, since they may be
        new. """
        self._next = 0
        self._order = count()
        self._time = 0.0

    def after_fork(self) -> None:
        """Start every instance at another random point of its stride in a forked child."""
        self._begin()

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick the candidate that is due first."""
        if candidates is not self._candidates:
            self._follow(candidates, call)
        if self._unseen:
            self._look(call)
        if self._spent:
            del self._spent[-_AT_ONCE:]  # to free thousands at once takes time too
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
        """Remove the first turn: its endpoint has left, or has a newer turn."""
        if self._turns.get(turn[2]) is turn:
            del self._turns[turn[2]]
        heappop(self._heap)

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        """Take over new candidates.

        `_candidates` is set last: after an exception, the next pick starts again.
        """
        self._members, self._unseen, self._next = frozenset(candidates), len(candidates), 0
        if self._unseen > _AT_ONCE:  # otherwise every client would start with the same instances
            self._next = call.rng.randrange(self._unseen)
        if len(self._heap) > 2 * len(candidates) + _AT_ONCE:
            heap = [turn for turn in self._turns.values() if turn[2] in self._members]
            heapify(heap)
            turns = {turn[2]: turn for turn in heap}
            self._spent, self._heap, self._turns = self._heap, heap, turns
        self._candidates = candidates

    def _look(self, call: PickContext) -> None:
        """Check a few hundred candidates: new candidates join, and candidates with a new weight are
        placed again.
        """
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
        """Place an endpoint so that it is due after this share of its stride."""
        stride = 1.0 / one.weight
        turn = (self._time + share * stride, next(self._order), one, stride)
        heappush(self._heap, turn)  # first: `pick` drops a turn that is not in `_turns` yet
        self._turns[one] = turn
