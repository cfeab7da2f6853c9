"""The pool: every known instance of one service, and who of them is in rotation.

Tiers follow RFC 2782: the lowest priority value first, and a tier serves only while no instance of
a better one is admissible. Admissible means: its breaker is closed and it does not rest
(`Retry-After`). An instance at its limit stays admissible, it is only passed over; so a full tier
does not open the next one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lbclient.breaker import BreakerPolicy
from lbclient.endpoint import Endpoint
from lbclient.instance import Instance

__all__ = ["Change", "Pool"]

_ZERO_WEIGHT = 0.1
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Change:
    """What an update did: who joined, who left, whose addresses are others now."""

    joined: Sequence[Endpoint]
    left: Sequence[Endpoint]
    moved: Sequence[Endpoint]


class Pool:
    """The endpoints of one service in tiers. Told the time; not locked: its owner is."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._endpoints: dict[Instance, Endpoint] = {}
        self._tiers: list[tuple[Endpoint, ...]] = []
        self._open: list[tuple[Endpoint, ...]] = []
        self._serving: int | None = None
        self._candidates: tuple[Endpoint, ...] = ()
        self._stale_at = 0.0
        self.broken: list[Endpoint] = []
        """Those whose breaker is not closed, as of the last look."""
        self.membership = 0
        """A number that changes when somebody joins or leaves."""

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def endpoints(self) -> Iterable[Endpoint]:
        """Every known one, in rotation or not."""
        return self._endpoints.values()

    def update(self, instances: Iterable[Instance]) -> Change:
        """Take over a full set as a difference: who stays keeps breaker, load and latency.

        Who stays but has new addresses starts with a new breaker: it is another machine.
        """
        old, self._endpoints = self._endpoints, {}
        joined, moved, same = [], [], True
        for instance in instances:
            endpoint = old.pop(instance, None)
            if endpoint is None:
                endpoint = Endpoint(instance, self._policy)
                joined.append(endpoint)
            elif set(endpoint.instance.addresses) != set(instance.addresses):
                endpoint.renew(self._policy)
                moved.append(endpoint)
            same = same and _ranks_as(endpoint.instance, instance)
            endpoint.instance = instance
            self._endpoints[instance] = endpoint
        for endpoint in old.values():
            endpoint.gone = True
        self.membership += bool(joined or old)
        if joined or old or moved or not same:
            self._arrange()
        return Change(joined, list(old.values()), moved)

    def changed(self) -> None:
        """A breaker or a rest has changed: look again before the next pick."""
        self._stale_at = -math.inf

    def healed(self, now: float, rng: random.Random) -> None:
        """A probe has closed a breaker: its peers need not wait out a long open period."""
        for one in self._endpoints.values():
            one.breaker.sooner(now, rng)

    def candidates(self, now: float) -> Sequence[Endpoint]:
        """The admissible endpoints of the tier that serves; empty if no tier has one.

        The same object until membership, admissibility or weights change.
        """
        if now >= self._stale_at:
            self._look(now)
        return self._candidates

    def admissible(self, now: float) -> Iterable[Sequence[Endpoint]]:
        """The admissible endpoints of each tier, best tier first."""
        if now >= self._stale_at:
            self._look(now)
        return self._open

    def resting(self) -> Endpoint | None:
        """The one due soonest of those that are kept out by nothing but their rest."""
        rested = [one for one in self._endpoints.values() if one.breaker.closed]
        return min(rested, key=lambda one: one.rest_until, default=None)

    def probe_due(self, now: float) -> Endpoint | None:
        """The endpoint longest due for a probe, of the serving tier or a better one."""
        worst = (
            math.inf if self._serving is None else self._tiers[self._serving][0].instance.priority
        )
        due = (
            one
            for one in self.broken
            if one.breaker.due <= now
            and one.instance.priority <= worst
            and not one.breaker.probing(now)
        )
        return min(due, key=lambda one: one.breaker.due, default=None)

    def due_soonest(self, now: float) -> Endpoint | None:
        """The broken endpoint whose open period ends first; None while any of them is probed."""
        if any(one.breaker.probing(now) for one in self.broken):
            return None
        return min(self.broken, key=lambda one: one.breaker.due, default=None)

    def retry_in(self, now: float) -> float | None:
        """Seconds until an open breaker lets a probe through."""
        waits = [one.breaker.due - now for one in self.broken if not one.breaker.probing(now)]
        return max(0.0, min(waits)) if waits else None

    def describe(self) -> str:
        """Its instances and the states of their breakers, for an error; not all of many."""
        shown = [f"{one.instance} ({one.breaker.state})" for one in self._endpoints.values()]
        more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
        return ", ".join(shown[:_SHOWN] + more)

    def _arrange(self) -> None:
        tiers: dict[int, list[Endpoint]] = {}
        for one in self._endpoints.values():
            tiers.setdefault(one.instance.priority, []).append(one)
        self._tiers = [tuple(tiers[priority]) for priority in sorted(tiers)]
        for tier in self._tiers:
            _weigh(tier)
        self._open = [()] * len(self._tiers)
        self.changed()

    def _look(self, now: float) -> None:
        self.broken = [one for one in self._endpoints.values() if not one.breaker.closed]
        rests = [one.rest_until for one in self._endpoints.values() if one.rest_until > now]
        self._stale_at = min(rests, default=math.inf)
        kept_out = bool(self.broken or rests)
        opened = [_admissible(tier, now) if kept_out else tier for tier in self._tiers]
        self._serving = next((place for place, tier in enumerate(opened) if tier), None)
        self._panic(opened)
        self._open = [_same(old, new) for old, new in zip(self._open, opened, strict=True)]
        self._candidates = () if self._serving is None else self._open[self._serving]

    def _panic(self, opened: list[tuple[Endpoint, ...]]) -> None:
        threshold = self._policy.panic_threshold
        place = 0 if self._serving is None else self._serving
        if threshold and self._tiers and len(opened[place]) < threshold * len(self._tiers[place]):
            self._serving = place
            opened[place] = self._tiers[place]


def _admissible(tier: tuple[Endpoint, ...], now: float) -> tuple[Endpoint, ...]:
    return tuple(one for one in tier if one.breaker.closed and one.rest_until <= now)


def _same(old: tuple[Endpoint, ...], new: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    return old if old == new else new


def _ranks_as(old: Instance, new: Instance) -> bool:
    return (old.priority, old.weight) == (new.priority, new.weight)


def _weigh(tier: tuple[Endpoint, ...]) -> None:
    """Weight 0 beside others is a small share (dnspython's reading of RFC 2782)."""
    zero = _ZERO_WEIGHT if any(one.instance.weight for one in tier) else 1.0
    for one in tier:
        one.weight = float(one.instance.weight) or zero
