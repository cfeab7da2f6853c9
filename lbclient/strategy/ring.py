"""A ring of points for consistent hashing: who owns the next one from a spot on."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from hashlib import blake2b
from itertools import chain, pairwise
from struct import Struct

from lbclient.endpoint import Endpoint

__all__ = ["Ring", "hashed"]

_NUMBER = 2**24 - 1
_BITS = 64
_AROUND = 2**_BITS
_BLOCK = Struct("<8Q")


class Ring:
    """Points on a circle, and who owns them: the low bits of a point are its owner's number.

    Who is no candidate keeps its points, and is passed over. The circle is cut into equal arcs,
    one for about four owners, each with a sorted list of its points: so a look costs the same for
    ten owners as for ten thousand, but for the processor's caches, and a change moves little.
    """

    def __init__(self) -> None:
        self.owners: dict[Endpoint, tuple[int, int]] = {}
        """The number of each, and how many points it has."""
        self._arcs: list[array[int]] = [array("Q")]
        self._shift = _BITS
        self._here: list[Endpoint | None] = []
        self._free: list[int] = []

    def expect(self, owners: int) -> None:
        """There will be so many owners, if there are not more: cut the circle accordingly, where it
        is far from that."""
        bits = max(0, max(owners, len(self.owners)).bit_length() - 2)
        if abs(_BITS - self._shift - bits) <= 1:
            return
        points = array("Q", chain.from_iterable(self._arcs))
        self._shift = _BITS - bits
        cuts = [bisect_left(points, arc << self._shift) for arc in range(2**bits)]
        self._arcs = [points[first:end] for first, end in pairwise([*cuts, len(points)])]

    def give(self, one: Endpoint, wanted: int) -> None:
        """So many points."""
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
        """Whether it is a candidate."""
        if (known := self.owners.get(one)) is not None:
            self._here[known[0]] = one if here else None

    def remove(self, one: Endpoint) -> None:
        """For good."""
        self.give(one, 0)
        number, _ = self.owners.pop(one)
        self._free.append(number)

    def after(self, spot: int) -> tuple[int, Endpoint]:
        """How far it is from there to the next point of a candidate, and whose that is."""
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
    """Its points from the first to the end: alike in every process, but for the low bits."""
    size = _BLOCK.size // 8
    blocks = range(first // size, -(-end // size)) if first < end else ()
    texts = (f"{one.instance} {block}".encode() for block in blocks)
    points = [point & ~_NUMBER | number for text in texts for point in hashed(text, _BLOCK)]
    return points[first % size :][: max(0, end - first)]


def hashed(text: bytes, form: Struct) -> tuple[int, ...]:
    """Whole numbers of a `form` in bytes: alike in every process."""
    return form.unpack(blake2b(text, digest_size=form.size).digest())
