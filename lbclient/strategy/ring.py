"""A ring of points for consistent hashing: who owns the next one from a spot on."""

from __future__ import annotations

from bisect import bisect_left, insort
from hashlib import blake2b
from struct import Struct

from lbclient.endpoint import Endpoint

__all__ = ["Ring", "hashed"]

_NUMBER = 2**24 - 1
_AROUND = 2**64
_BLOCK = Struct("<8Q")
_FEW = 64


class Ring:
    """Points on a circle, and who owns them: the low bits of a point are its owner's number.

    Who is no candidate keeps its points, and is passed over.
    """

    def __init__(self) -> None:
        self.owners: dict[Endpoint, tuple[int, int]] = {}
        """The number of each, and how many points it has."""
        self._points: list[int] = []
        self._new: list[int] = []
        self._here: list[Endpoint | None] = []
        self._free: list[int] = []

    def give(self, one: Endpoint, wanted: int) -> None:
        """So many points; after some of this, `sort`."""
        number, had = self.owners.get(one) or (self._number(one), 0)
        self._new += _points(one, number, had, wanted)
        for point in _points(one, number, wanted, had):
            del self._points[bisect_left(self._points, point)]
        self.owners[one] = number, wanted

    def sort(self) -> None:
        """Take in the new points."""
        if len(self._new) > _FEW:
            self._points += self._new
            self._points.sort()
        else:
            for point in self._new:
                insort(self._points, point)
        self._new.clear()

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
        points, here = self._points, self._here
        place = bisect_left(points, spot) % len(points)
        while (one := here[points[place] & _NUMBER]) is None:
            place = (place + 1) % len(points)
        return (points[place] - spot) % _AROUND, one

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
