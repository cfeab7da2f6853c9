"""Which few of many instances one client keeps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from heapq import nsmallest

from lbclient.instance import Instance

__all__ = ["Subset"]

_BYTES = 8


class Subset:
    """At most `limit` instances (None: all), drawn at random; the same ones while they are there.

    Rendezvous hashing (Thaler and Ravishankar 1998): each client ranks instances by a hash with a
    seed of its own. So another instance that comes or goes moves one place, clients spread over
    all instances, and none needs to know of another (gRPC's A68, MongoDB's `srvMaxHosts`). Each
    tier keeps one where `limit` allows, since a fail-over must find somebody; all other places go
    to the best tier first.
    """

    def __init__(self, limit: int | None, rng: random.Random) -> None:
        self._limit = limit
        self._rng = rng
        self._seed = b""
        self._all: Sequence[Instance] | None = None

    def after_fork(self) -> Sequence[Instance] | None:
        """In a forked child: the subset of another client, of the last answer; None where that was
        kept whole."""
        self._seed = b""
        return None if self._all is None else self.of(self._all)

    def of(self, instances: Sequence[Instance]) -> Sequence[Instance]:
        """The instances that this client keeps."""
        if self._limit is None or len(instances) <= self._limit:
            self._all = None
            return instances
        self._all = instances
        self._seed = self._seed or self._rng.randbytes(_BYTES)
        ranks = {one: self._rank(one) for one in instances}
        firsts: dict[int, Instance] = {}
        for one in instances:
            rival = firsts.setdefault(one.priority, one)
            if ranks[one] < ranks[rival]:
                firsts[one.priority] = one

        def place(one: Instance) -> tuple[bool, int, bytes]:
            return firsts[one.priority] is not one, one.priority, ranks[one]

        kept = set(nsmallest(self._limit, instances, place))
        return [one for one in instances if one in kept]

    def _rank(self, one: Instance) -> bytes:
        return blake2b(str(one).encode(), digest_size=_BYTES, key=self._seed).digest()
