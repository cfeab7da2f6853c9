"""Consistent hashing with bounded loads: the same key goes to the same instance."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from struct import Struct

from lbclient import checks
from lbclient.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext

__all__ = ["ConsistentHash"]

_POINTS = 16
_RING = 2**64
_SPOTS = Struct("<8Q")
_AT_ONCE = 128
_REMOVED_AT_ONCE = 4
_SEEN = 32

Key = str | bytes | int


class ConsistentHash:
    """By the key of the call: the same instance each time, in every process, while it has room.

    Instances own points on a ring, 16 each on average, in proportion to their weights; a key is
    put on eight spots of it, and goes to the instance whose point comes soonest after any of them
    (so shares differ by 7 %, as on a ring with fourteen times as many points). Where one joins or
    leaves, only keys that it gets or had move: 1/n of them, where weights are equal.

    No instance gets more than `load` times its share of what this client has in flight, faults of
    late included (1 is always allowed; None is no bound): past that the key's next spot is asked,
    at last the ring's next instances. So one hot key spreads over several instances.

    The key is `key=` of `Balancer.call`, or `extensions={"lbclient": {"key": ...}}` of a request:
    text, bytes or a whole number, hashed by BLAKE2b, which unlike `hash()` is alike everywhere.
    `key` here, a function, makes one of what else the caller passes: `key=str`. Without a key the
    dice throw one, so the pick is by weight. With a key of any other type `pick` raises TypeError;
    a balancer logs it and throws the dice. A retry is thrown too: the key's own has just failed.

    Use it for caches and sessions: what an instance knows of a key is worth more than an even
    load. Do not use it for equal shares, or where a few keys are most of the traffic and must not
    spread. A pick costs O(log n) and 1.2 times as much at 10,000 instances as at ten; of thousands
    that are new 128 join at each pick, and until then keys may go elsewhere.

    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016), as
    in HAProxy (`hash-balance-factor`) and Envoy; the spots are Appleton and O'Reilly, "Multi-probe
    consistent hashing" (2015).

    Raises ValueError for a `load` that is not above 1, TypeError for a `key` that is no function.
    """

    def __init__(
        self, key: Callable[[object], Key | None] | None = None, load: float | None = 1.25
    ) -> None:
        if key is not None:
            checks.function("key", key)
        self._key = key
        self._load = None if load is None else checks.number("load", load, least=1.0, above=True)
        self._candidates: Sequence[Endpoint] = ()
        self._members: frozenset[Endpoint] = frozenset()
        self._points: list[int] = []
        self._owners: dict[int, Endpoint] = {}
        self._counts: dict[Endpoint, int] = {}
        self._left: list[Endpoint] = []
        self._mean = 1.0
        self._unseen = 0
        """So many candidates, from `_next` on, may be new or have another weight."""
        self._next = 0
        self._sampled = 0

    def __repr__(self) -> str:
        return f"ConsistentHash(key={self._key!r}, load={self._load})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The key's own, or the next that has room. Raises TypeError for a key of another type."""
        if candidates is not self._candidates:
            self._follow(candidates, call)
        if self._unseen:
            self._place()
        if self._left:
            self._remove()
        spots = [self._after(spot) for spot in self._spots(call)]
        first = self._at(min(spots)[1])
        if self._load is None or first.load(call.now) < 1.0:
            return first
        limit = self._load * self._mean_load(call.now)
        seen = self._in_order(spots)
        return next((one for one in seen if _has_room(one, limit, call.now)), first)

    def _spots(self, call: PickContext) -> Sequence[int]:
        key: object = call.key
        if self._key is not None and key is not None:
            key = self._key(key)
        if key is None:
            return _SPOTS.unpack(call.rng.randbytes(_SPOTS.size))
        return _hashed(_encoded(key))

    def _after(self, spot: int) -> tuple[int, int]:
        """How far it is to the next point of a candidate, and that point's place."""
        place = bisect_left(self._points, spot) % len(self._points)
        while self._at(place) not in self._members:
            place = (place + 1) % len(self._points)
        return (self._points[place] - spot) % _RING, place

    def _at(self, place: int) -> Endpoint:
        return self._owners[self._points[place]]

    def _in_order(self, spots: list[tuple[int, int]]) -> Iterator[Endpoint]:
        """The key's instances by distance, then a few dozen others as they follow on the ring."""
        spots.sort()
        seen: set[Endpoint] = set()
        start = spots[0][1]
        around = range(start + 1, start + len(self._points))
        for place in chain((place for _, place in spots), around):
            one = self._at(place % len(self._points))
            if one not in seen and one in self._members:
                seen.add(one)
                yield one
            if len(seen) == _SEEN:
                return

    def _mean_load(self, now: float) -> float:
        """For one unit of weight, this call included: of all, or of the next few dozen."""
        number = len(self._candidates)
        few = self._candidates
        if number > _SEEN:
            few = self._candidates[self._sampled : self._sampled + _SEEN]
            self._sampled = (self._sampled + _SEEN) % number
        total = sum(one.load(now) for one in few) + len(few) / number
        return total / sum(one.weight for one in few)

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        self._candidates, self._members = candidates, frozenset(candidates)
        self._mean = sum(one.weight for one in candidates) / len(candidates)
        self._left = [one for one in self._counts.keys() - self._members if one.gone]
        self._unseen, self._next, self._sampled = len(candidates), 0, 0
        if self._unseen > _AT_ONCE:  # else every client would begin with the same few
            self._next = call.rng.randrange(self._unseen)

    def _place(self) -> None:
        """A few candidates get as many points as their weights ask for."""
        new: list[int] = []
        for _ in range(min(self._unseen, _AT_ONCE)):
            one = self._candidates[self._next]
            wanted = max(1, round(_POINTS * one.weight / self._mean))
            had = self._counts.get(one, 0)
            if wanted > had:
                new += self._add(one, had, wanted)
            elif wanted < had:
                self._drop(one, wanted, had)
            self._counts[one] = wanted
            self._next = (self._next + 1) % len(self._candidates)
            self._unseen -= 1
        if new:
            self._points += new
            self._points.sort()

    def _add(self, one: Endpoint, first: int, end: int) -> list[int]:
        """Its points from the first to the end. Returns those that nobody of its name had."""
        points = _points(one, first, end)
        new = [point for point in points if point not in self._owners]
        self._owners.update(dict.fromkeys(points, one))
        return new

    def _drop(self, one: Endpoint, first: int, end: int) -> None:
        for point in _points(one, first, end):
            if self._owners.get(point) is one:
                del self._owners[point], self._points[bisect_left(self._points, point)]

    def _remove(self) -> None:
        """A few of those who are gone, so that no single call pays for all of them."""
        for one in self._left[-_REMOVED_AT_ONCE:]:
            self._drop(one, 0, self._counts.pop(one))
        del self._left[-_REMOVED_AT_ONCE:]


def _has_room(one: Endpoint, limit: float, now: float) -> bool:
    return one.load(now) < math.ceil(limit * one.weight)


def _points(one: Endpoint, first: int, end: int) -> list[int]:
    """The same for the same name and port, wherever it is asked."""
    name, size = str(one.instance), len(_hashed(b""))
    blocks = range(first // size, -(-end // size))
    points = [point for block in blocks for point in _hashed(f"{name} {block}".encode())]
    return points[first % size :][: end - first]


def _hashed(text: bytes) -> tuple[int, ...]:
    return _SPOTS.unpack(blake2b(text, digest_size=_SPOTS.size).digest())


def _encoded(key: object) -> bytes:
    if isinstance(key, str):
        return key.encode("utf-8", "surrogatepass")
    if isinstance(key, bytes):
        return key
    if isinstance(key, int):
        return f"{key:x}".encode()
    raise TypeError(
        f"key must be text, bytes or a whole number, not {type(key).__name__}; "
        "ConsistentHash(key=function) makes one of what else is passed"
    )
