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
"""One turn of an endpoint: the virtual time when it is due, a number that decides between turns
with the same time, the endpoint, and its stride."""


class Weighted:
    """Picks each instance in proportion to its weight. The picks of an instance are spread evenly,
    without bursts.

    This is stride scheduling (Waldspurger 1995; gRPC's weighted round-robin, Envoy's EDF). An
    endpoint of weight w is due every 1/w units of virtual time (its stride). The endpoint that is
    due first is picked. A pick costs O(log n). With equal weights this is plain round-robin.

    If the set of endpoints changes, the order is kept: an endpoint that stays is due at the same
    time as before. (If its weight has changed, the time until it is due changes in the same ratio
    as its stride: with twice the weight, it is half as long.) An endpoint that joins starts at a
    random point of its stride, so that clients that start at the same time pick different
    endpoints. When there are thousands of new endpoints, a few hundred are added at each pick,
    since to add all of them at once would delay one call.
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
        """The number of candidates that are still to be checked, since they may be new. They begin
        at the index `_next`."""
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
            del self._spent[-_AT_ONCE:]  # to free thousands at once takes time
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
        """Remove the first turn, since its endpoint has left or has a newer turn."""
        if self._turns.get(turn[2]) is turn:
            del self._turns[turn[2]]
        heappop(self._heap)

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        """Begin to use a new set of candidates.

        `_candidates` is set last. So if an exception interrupts this method, the next pick calls it
        again.
        """
        self._members, self._unseen, self._next = frozenset(candidates), len(candidates), 0
        if self._unseen > _AT_ONCE:  # otherwise all clients would begin with the same instances
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
        """Place an endpoint so that it is due after the part `share` of its stride."""
        stride = 1.0 / one.weight
        turn = (self._time + share * stride, next(self._order), one, stride)
        heappush(self._heap, turn)  # first, since `pick` drops a turn that is not in `_turns`
        self._turns[one] = turn
