"""Consistent hashing with bounded loads: calls with the same key go to the same instance.

Each instance has points on a ring. A key is hashed to a spot on the ring. The instance of the first
point at or after that spot owns the key.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, pairwise
from operator import itemgetter
from struct import Struct

from lbclient._internal import validation
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import identity_of
from lbclient.strategy.protocol import PickContext

__all__ = ["ConsistentHash"]

_NUMBER = 2**24 - 1
_BITS = 64
_AROUND = 2**_BITS
_BLOCK = Struct("<8Q")

_POINTS = 16
_SPOTS = Struct("<4Q")
_DISTANCE = itemgetter(0)
_JUMPS = 16
_AT_ONCE = 128
_REMOVED_AT_ONCE = 4
_SWEPT_AT_ONCE = 16

Key = str | bytes | int


class Ring:
    """Points on a ring, each owned by an endpoint. The low bits of a point are the number of its
    owner.

    An endpoint that is not a candidate keeps its points, but lookups skip these points. The ring is
    cut into equal arcs, one for about four owners, and each arc has a sorted list of its points. So
    a lookup takes the same time for ten owners as for ten thousand (except for CPU cache misses),
    and when an owner is added or removed, few points move in memory.
    """

    def __init__(self) -> None:
        self.owners: dict[Endpoint, tuple[int, int]] = {}
        """Maps each owner to its number and to the number of its points."""
        self._arcs: list[array[int]] = [array("Q")]
        self._shift = _BITS
        self._here: list[Endpoint | None] = []
        self._free: list[int] = []

    def expect(self, owners: int) -> None:
        """Prepare for this many owners, or for the present owners if there are more.

        The ring is cut again if the number of arcs differs much from the number that is needed.
        """
        bits = max(0, max(owners, len(self.owners)).bit_length() - 2)
        if abs(_BITS - self._shift - bits) <= 1:
            return
        points = array("Q", chain.from_iterable(self._arcs))
        self._shift = _BITS - bits
        cuts = [bisect_left(points, arc << self._shift) for arc in range(2**bits)]
        self._arcs = [points[first:end] for first, end in pairwise([*cuts, len(points)])]

    def give(self, one: Endpoint, wanted: int) -> None:
        """Set the number of points that an endpoint owns."""
        if one not in self.owners:
            self.owners[one] = self._number(one), 0
        number, had = self.owners[one]
        for point in _points(one, number, had, wanted):
            insort(self._arcs[point >> self._shift], point)
        for point in _points(one, number, wanted, had):
            arc = self._arcs[point >> self._shift]
            del arc[bisect_left(arc, point)]
        self.owners[one] = number, wanted

    def show(self, one: Endpoint, *, here: bool) -> None:
        """Set whether an endpoint is a candidate."""
        if (known := self.owners.get(one)) is not None:
            self._here[known[0]] = one if here else None

    def remove(self, one: Endpoint) -> None:
        """Remove an endpoint for good."""
        self.give(one, 0)
        number, _ = self.owners.pop(one)
        self._free.append(number)

    def after(self, spot: int) -> tuple[int, Endpoint]:
        """Return the distance from a spot to the next point of a candidate, and that candidate."""
        arcs, here, place = self._arcs, self._here, spot >> self._shift
        arc = arcs[place]
        at = bisect_left(arc, spot)
        while True:
            if at == len(arc):
                place = (place + 1) % len(arcs)
                arc, at = arcs[place], 0
            elif (one := here[arc[at] & _NUMBER]) is not None:
                return (arc[at] - spot) % _AROUND, one
            else:
                at += 1

    def _number(self, one: Endpoint) -> int:
        if not self._free:
            self._here.append(None)
            self._free.append(len(self._here) - 1)
        number = self._free.pop()
        self._here[number] = one
        return number


def _points(one: Endpoint, number: int, first: int, end: int) -> list[int]:
    """The points of an endpoint, from number `first` up to `end`.

    The points are the same in every process, except for the low bits.
    """
    size = _BLOCK.size // 8
    blocks = range(first // size, -(-end // size)) if first < end else ()
    identity = identity_of(one.instance)
    texts = (f"{identity} {block}".encode() for block in blocks)
    points = [point & ~_NUMBER | number for text in texts for point in hashed(text, _BLOCK)]
    return points[first % size :][: max(0, end - first)]


def hashed(text: bytes, form: Struct) -> tuple[int, ...]:
    """Hash bytes to whole numbers, in the format `form`. The result is the same in every
    process."""
    return form.unpack(blake2b(text, digest_size=form.size).digest())


class ConsistentHash:
    """Picks by the key of the call. Every process picks the same instance for a key, as long as
    that instance has room.

    Each instance owns points on a ring: 16 on average, in proportion to its weight. A key is hashed
    to four spots on the ring. Of the next points after these spots, the point with the shortest
    distance decides: the key goes to the owner of this point. (So the shares of instances differ by
    9 %. Without the four spots, that would take 112 points for each instance.) When an instance
    joins or leaves, only the keys of this instance move: 1/n of all keys, if weights are equal.

    No instance gets more than `load` times its share of the attempts that this client has in
    flight. A recent fault counts like additional attempts in flight. One attempt is always allowed.
    With `load=None` there is no bound. If the instance that owns the key is over the bound, the
    owners of the points after the key's other spots are tried, the nearest point first. After these
    four, the key is hashed to four more spots, and so on. So a key with many calls spreads over as
    many instances as it needs.

    The key is `key=` of `Balancer.call`, or `extensions={"lbclient": {"key": ...}}` of a request.
    It is text, bytes or a whole number. It is hashed with BLAKE2b, which gives the same result in
    every process, unlike `hash()`. If callers pass other values, set the argument `key`: a function
    that turns a value into a key, or into None. A call without a key gets a random key, so its
    instance is picked by weight. For a key of another type, `pick` raises TypeError; the balancer
    logs the error and picks an instance at random. For retries, instances are picked at random too.

    Use it for caches and sessions, where calls with the same key should reach the same instance,
    even if the load is uneven. Do not use it to spread load evenly. It does not guarantee that only
    one instance works on a key: while the set of instances changes, clients may pick different
    instances. A pick costs O(1). When there are thousands of new instances, 128 are added to the
    ring at each pick. Until all have been added, a key may go to another instance.

    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016), as
    in HAProxy and Envoy (`hash_balance_factor`). The several spots of a key come from Appleton and
    O'Reilly, "Multi-probe consistent hashing" (2015). If the instance of a key is full, the key
    moves to another spot, and not to the next instance on the ring. Otherwise that instance would
    get all the load that the full instance cannot take: Chen, Coleman and Shrivastava, "Revisiting
    Consistent Hashing with Bounded Loads" (2021).

    Raises ValueError if `load` is not above 1, and TypeError if `key` is not a function.
    """

    def __init__(
        self, key: Callable[[object], Key | None] | None = None, load: float | None = 1.25
    ) -> None:
        if key is not None:
            validation.function("key", key)
        self._key = key
        self._load = (
            None if load is None else validation.number("load", load, least=1.0, above=True)
        )
        self._candidates: Sequence[Endpoint] = ()
        self._members: frozenset[Endpoint] = frozenset()
        self._ring = Ring()
        self._gone: list[Endpoint] = []
        self._weight = 1.0
        self._unseen = 0
        """The number of candidates that are still to be checked, since they may be new. They begin
        at the index `_next`."""
        self._next = 0
        self._loads: list[float] = []
        self._total = 0.0
        self._swept = 0

    def __repr__(self) -> str:
        return f"ConsistentHash(key={self._key!r}, load={self._load})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick the owner of the key, or the next instance that has room.

        Raises TypeError for a key of another type.
        """
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
        """Return the first of the key's instances that may take one more call.

        If none of the first few dozen instances may take one, the least busy of them is returned.
        """
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
        """The mean load per unit of weight, including this call. To save time, each call updates
        only a few of the loads."""
        number = len(self._candidates)
        for _ in range(min(number, _SWEPT_AT_ONCE)):
            load = self._candidates[self._swept].load(now)
            self._total += load - self._loads[self._swept]
            self._loads[self._swept] = load
            self._swept = (self._swept + 1) % number
        return (self._total + 1.0) / self._weight

    def _follow(self, candidates: Sequence[Endpoint], call: PickContext) -> None:
        """Begin to use a new set of candidates.

        `_candidates` is set last. So if an exception interrupts this method, the next pick calls it
        again.
        """
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
        if self._unseen > _AT_ONCE:  # otherwise all clients would begin with the same instances
            self._next = call.rng.randrange(self._unseen)
        self._members, self._candidates = members, candidates

    def _look(self) -> None:
        """Give a few candidates the number of points that their weight requires."""
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
        """Remove a few of the instances that have left. To remove all of them at once would delay
        one call."""
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
        "pass ConsistentHash(key=function) to make a key of other types"
    )
