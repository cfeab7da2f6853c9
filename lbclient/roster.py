"""The roster: every known instance of one service, in tiers, and what a new answer changes in it.

An answer may hold ten thousand instances, and calls must not wait for it. So a `Change` is worked
out beside the calls, without their lock; to take it over is then a matter of a few assignments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lbclient.breaker import Breaker, BreakerPolicy
from lbclient.endpoint import Endpoint
from lbclient.instance import Instance

__all__ = ["Change", "Roster"]

_ZERO_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Roster:
    """Who is known, and the tiers in order: the lowest priority value first (RFC 2782)."""

    endpoints: Mapping[Instance, Endpoint] = field(default_factory=dict)
    tiers: Sequence[tuple[Endpoint, ...]] = ()


class _Revision(NamedTuple):
    """The new record of one who stays; a new breaker where its addresses are others."""

    endpoint: Endpoint
    instance: Instance
    weight: float
    breaker: Breaker | None


class Change:
    """From one roster to the next: who joined, who left, whose addresses are others now.

    Who joins others, or has moved, warms up from `now` on.
    """

    def __init__(
        self,
        roster: Roster,
        policy: BreakerPolicy,
        instances: Iterable[Instance],
        now: float = -math.inf,
    ) -> None:
        self.joined: list[Endpoint] = []
        self.moved: list[Endpoint] = []
        self._policy = policy
        self._now = now if roster.endpoints else -math.inf
        self._revisions: list[_Revision] = []
        self._endpoints: dict[Instance, Endpoint] = {}
        old = dict(roster.endpoints)
        by_priority: dict[int, list[Instance]] = {}
        for instance in instances:
            known = old.pop(instance) if instance in old else self._join(instance)
            self._endpoints[instance] = known
            by_priority.setdefault(instance.priority, []).append(instance)
        self.left: list[Endpoint] = list(old.values())
        tiers = [self._tier(by_priority[priority]) for priority in sorted(by_priority)]
        self.roster = Roster(self._endpoints, tiers)

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self._revisions)

    def apply(self) -> None:
        """Let those who stay have their new records. Hold the lock of the calls."""
        for one in self.left:
            one.gone = True
        for endpoint, instance, weight, breaker in self._revisions:
            endpoint.instance = instance
            endpoint.weight = weight
            if breaker is not None:
                endpoint.renew(breaker)
                endpoint.warm_since = self._now

    def _join(self, instance: Instance) -> Endpoint:
        endpoint = Endpoint(instance, self._policy)
        endpoint.warm_since = self._now
        self.joined.append(endpoint)
        return endpoint

    def _tier(self, instances: Sequence[Instance]) -> tuple[Endpoint, ...]:
        """Weight 0 beside others is a small share (dnspython's reading of RFC 2782)."""
        zero = _ZERO_WEIGHT if any(one.weight for one in instances) else 1.0
        for instance in instances:
            endpoint, weight = self._endpoints[instance], float(instance.weight) or zero
            if endpoint.weight != weight or not _equal(endpoint.instance, instance):
                self._revisions.append(self._revision(endpoint, instance, weight))
        return tuple(map(self._endpoints.__getitem__, instances))

    def _revision(self, endpoint: Endpoint, instance: Instance, weight: float) -> _Revision:
        if set(endpoint.instance.addresses) == set(instance.addresses):
            return _Revision(endpoint, instance, weight, None)
        self.moved.append(endpoint)
        return _Revision(endpoint, instance, weight, Breaker(self._policy, str(instance)))


def _equal(old: Instance, new: Instance) -> bool:
    """True where the new record adds nothing; metadata is not ours to compare."""
    if old is new:
        return True
    if old.metadata or new.metadata:
        return False
    return (old.priority, old.weight, old.addresses) == (new.priority, new.weight, new.addresses)
