"""Consistent hashing with bounded loads: the same key goes to the same instance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from struct import Struct

from lbclient import checks
from lbclient.endpoint import Endpoint
from lbclient.strategy.protocol import PickContext
from lbclient.strategy.ring import Ring, hashed

__all__ = ["ConsistentHash"]

_POINTS = 16
_SPOTS = Struct("<4Q")
_DISTANCE = itemgetter(0)
_JUMPS = 16
_AT_ONCE = 128
_REMOVED_AT_ONCE = 4
_SWEPT_AT_ONCE = 16

Key = str | bytes | int


class ConsistentHash:
    """By the key of the call: the same instance each time, in every process, while it has room.

    Instances own points on a ring, 16 each on average, in proportion to their weights; a key is
    put on four spots of it, and goes to the instance whose point comes soonest after any of them.
    (So shares differ by 9 %, as on a plain ring with 112 points each.) Where an instance joins or
    leaves, only keys that it gets or had move: 1/n of all, where weights are equal.

    No instance gets more than `load` times its share of what this client has in flight, faults of
    late included (one call is always allowed; None is no bound): past that the key's next spot is
    asked, and so on, so that a hot key spreads over as many as it needs.

    The key is `key=` of `Balancer.call`, or `extensions={"lbclient": {"key": ...}}` of a request:
    text, bytes or a whole number, hashed by BLAKE2b, which unlike `hash()` is alike everywhere.
    The function `key` makes one of what else is passed there, or None. Without a key the dice make
    one, so instances are picked by weight. With a key of another type `pick` raises TypeError: a
    balancer logs it, and throws the dice. Retries go by the dice too.

    Use it for caches and sessions: what an instance knows of a key is worth more than even loads.
    Do not use it to share load evenly, nor as the only thing that keeps two writers of one key
    apart: clients disagree while the set changes. A pick costs O(1). Of thousands that are new
    128 join at each pick, and until all have, keys may go elsewhere.

    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016), as
    in HAProxy and Envoy (`hash_balance_factor`). The spots: Appleton and O'Reilly, "Multi-probe
    consistent hashing" (2015). Past a full one it jumps, since to walk on would give its neighbour
    all: Chen, Coleman and Shrivastava, "Revisiting Consistent Hashing with Bounded Loads" (2021).

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
        self._ring = Ring()
        self._gone: list[Endpoint] = []
        self._weight = 1.0
        self._unseen = 0
        """So many candidates, from `_next` on, may be new or have another weight."""
        self._next = 0
        self._loads: list[float] = []
        self._total = 0.0
        self._swept = 0

    def __repr__(self) -> str:
        return f"ConsistentHash(key={self._key!r}, load={self._load})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The key's own, or the next that has room. Raises TypeError for a key of another type."""
        text = self._text(call)
        if candidates is not self._candidates:
            self._follow(candidates, call)
        if self._unseen:
            self._look()
        if self._gone:
            self._remove()
        _, own = min(map(self._ring.after, hashed(text, _SPOTS)), key=_DISTANCE)
        if self._load is None or own.load(call.now) < 1.0:
            return own
        return self._with_room(text, self._load * self._mean_load(call.now), call.now)

    def _text(self, call: PickContext) -> bytes:
        key: object = call.key
        if self._key is not None and key is not None:
            key = self._key(key)
        return call.rng.randbytes(8) if key is None else _encoded(key)

    def _with_room(self, text: bytes, limit: float, now: float) -> Endpoint:
        """The first of the key's that may have one more; after some dozens, the least busy."""
        seen: dict[Endpoint, float] = {}
        for one in self._order(text):
            load = seen[one] = one.load(now)
            if load < math.ceil(limit * one.weight):
                return one
        return min(seen, key=lambda one: seen[one] / one.weight)

    def _order(self, text: bytes) -> Iterator[Endpoint]:
        for jump in range(_JUMPS):
            spots = hashed(text + bytes(jump), _SPOTS)
            yield from (one for _, one in sorted(map(self._ring.after, spots), key=_DISTANCE))

    def _mean_load(self, now: float) -> float:
        """For one unit of weight, this call included; a few loads are looked at anew."""
        number = len(self._candidates)
        for _ in range(min(number, _SWEPT_AT_ONCE)):
            load = self._candidates[self._swept].load(now)
            self._total += load - self._loads[self._swept]
            self._loads[self._swept] = load
            self._swept = (self._swept + 1) % number
        return (self._total + 1.0) / self._weight

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        """`_candidates` are set last: after an exception the next pick begins anew."""
        members = frozenset(candidates)
        self._ring.expect(len(candidates))
        for one in members - self._members:
            self._ring.show(one, here=True)
        out = self._ring.owners.keys() - members
        for one in out:
            self._ring.show(one, here=False)
        self._gone = [one for one in out if one.gone]
        self._weight = sum(one.weight for one in candidates)
        self._loads = [float(one.in_flight) for one in candidates]
        self._total = sum(self._loads)
        self._unseen, self._next, self._swept = len(candidates), 0, 0
        if self._unseen > _AT_ONCE:  # else every client would begin with the same few
            self._next = call.rng.randrange(self._unseen)
        self._members, self._candidates = members, candidates

    def _look(self) -> None:
        """A few candidates get as many points as their weights ask for."""
        owners, unit = self._ring.owners, _POINTS * len(self._candidates) / self._weight
        for _ in range(min(self._unseen, _AT_ONCE)):
            one = self._candidates[self._next]
            wanted = max(1, round(unit * one.weight))
            known = owners.get(one)
            if known is None or known[1] != wanted:
                self._ring.give(one, wanted)
            self._next = (self._next + 1) % len(self._candidates)
            self._unseen -= 1

    def _remove(self) -> None:
        """A few of those who have left, so that no single call pays for all of them."""
        for one in self._gone[-_REMOVED_AT_ONCE:]:
            self._ring.remove(one)
        del self._gone[-_REMOVED_AT_ONCE:]


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
