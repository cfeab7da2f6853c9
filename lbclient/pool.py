"""The pool: every known instance of one service, and who of them is in rotation.

Tiers follow RFC 2782: the lowest priority value first, and a tier serves only while no instance of
a better one is admissible. Admissible means: nobody has ejected it, active checks do not call it
down, its breaker refuses nothing, and it does not rest (`Retry-After`). An instance at its limit
stays admissible, it is only passed over; so a full tier does not open the next one.

Where active checks call everybody down, they are disregarded: a wrong path must not take a service
down (AWS's load balancers and Envoy's panic mode do likewise).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from weakref import WeakMethod

from lbclient.breaker import Breaker, BreakerPolicy
from lbclient.endpoint import Endpoint, Standing
from lbclient.instance import Instance
from lbclient.roster import Change, Roster

__all__ = ["Pool"]

_SHOWN = 10


class Pool:
    """The endpoints of one service, and who of them serves. Told the time; not locked: its owner
    is."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._roster = Roster()
        self._open: list[tuple[Endpoint, ...]] = []
        self._serving: int | None = None
        self._candidates: tuple[Endpoint, ...] = ()
        self._stale_at = 0.0
        self._suspects: dict[Endpoint, None] = {}
        self.broken: list[Endpoint] = []
        """Those whom nothing but their breaker keeps out, as of the last look."""
        self._blind = False
        self._torn = False
        self.membership = 0
        """A number that changes when an instance joins, leaves or gets other addresses."""
        self._listeners: list[WeakMethod[Callable[[], object]]] = []

    def __len__(self) -> int:
        return len(self._roster.endpoints)

    @property
    def endpoints(self) -> Iterable[Endpoint]:
        """Every known one, in rotation or not."""
        return self._roster.endpoints.values()

    def find(self, instance: Instance) -> Endpoint | None:
        """The endpoint of this instance, where it is known."""
        return self._roster.endpoints.get(instance)

    def fresh_breaker(self, endpoint: Endpoint) -> Breaker:
        """One without a past, for this endpoint."""
        return Breaker(self._policy, str(endpoint.instance))

    def plan(self, instances: Iterable[Instance], now: float = -math.inf) -> Change:
        """What a full set changes. One at a time; it needs no lock, and may take long."""
        return Change(self._roster, self._policy, instances, now)

    def take(self, change: Change) -> None:
        """Take a plan over: who stays keeps breaker, load and latency.

        Who stays but has new addresses starts with a new breaker: it is another machine.
        """
        self._torn = True
        change.apply()
        self._roster = change.roster
        if change.joined or change.left or change.moved:
            self.membership += 1
        if change:
            self._forget_looks()
        self._torn = False

    def listen(self, departed: Callable[[], object]) -> None:
        """Have this method called, without the lock, after instances have left or have got other
        addresses. Its object is not kept alive."""
        self._listeners.append(WeakMethod(departed))

    def tell_listeners(self) -> None:
        """Instances have left, or have got other addresses. Do not hold the lock."""
        for ref in self._listeners:
            if (departed := ref()) is not None:
                departed()

    def after_fork(self) -> bool:
        """In a child: what a thread of the parent's was in the middle of is not gone on with.

        True where that was a change of who is known: ask again.
        """
        for one in self.endpoints:
            one.gone, one.in_flight = False, 0
        self._suspects = dict.fromkeys(self.endpoints)
        self._forget_looks()
        torn, self._torn = self._torn, False
        return torn

    def spread(self, now: float, rng: random.Random) -> None:
        """In a child: probe what is open at other times than its parent and its siblings do."""
        for one in self.endpoints:
            one.breaker.after_fork(now, rng)

    def update(self, instances: Iterable[Instance]) -> Change:
        """Plan and take over at once."""
        change = self.plan(instances)
        self.take(change)
        return change

    def changed(self, endpoint: Endpoint) -> None:
        """Its breaker or its rest has changed: look again before the next pick."""
        self._suspects[endpoint] = None
        self._stale_at = -math.inf

    def healed(self, now: float, rng: random.Random) -> None:
        """A probe has closed a breaker: its peers need not wait out a long open period."""
        for one in self.broken:
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

    def changes_at(self, now: float, patience: float) -> float:
        """When time alone lets an instance in, or a probe through: one that is due goes to a call
        that may be repeated, or `patience` seconds later to any."""
        if now >= self._stale_at:
            self._look(now)
        dues = [
            at
            for one in self.broken
            for at in (one.breaker.due, one.breaker.due + patience, one.breaker.probed_until)
            if at > now
        ]
        return min([self._stale_at, *dues])

    def resting(self, now: float) -> Endpoint | None:
        """The one due soonest of those that are kept out by nothing but their rest."""
        rested = [one for one in self._suspects if self._standing(one, now) == "resting"]
        return min(rested, key=lambda one: one.rest_until, default=None)

    def tiers(self) -> Sequence[Sequence[Endpoint]]:
        """Everybody, best tier first."""
        return self._roster.tiers

    def probe_due(self, now: float) -> Endpoint | None:
        """The endpoint longest due for a probe, of the serving tier or a better one."""
        tiers = self._roster.tiers
        worst = math.inf if self._serving is None else tiers[self._serving][0].instance.priority
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

    def probe_in(self, now: float) -> float | None:
        """Seconds until an open breaker lets a probe through."""
        waits = [one.breaker.due - now for one in self.broken if not one.breaker.probing(now)]
        return max(0.0, min(waits)) if waits else None

    def back_in(self, now: float) -> float | None:
        """Seconds until the first of those who were ejected is back, or may be probed."""
        out = [one for one in self._suspects if one.out_until > now and self._fit(one)]
        waits = [max(one.out_until, one.breaker.due * one.breaker.refuses) - now for one in out]
        return min(waits, default=None)

    def describe(self, now: float) -> str:
        """Its instances and what keeps each out, for an error; not all of many."""
        few = islice(self.endpoints, _SHOWN)
        shown = [f"{one.instance} ({_words(one, now)})" for one in few]
        more = [f"and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return ", ".join(shown + more)

    def _forget_looks(self) -> None:
        self._open, self._candidates = [()] * len(self._roster.tiers), ()
        self._stale_at = -math.inf

    def _look(self, now: float) -> None:
        """Only suspects are looked at: in a large pool nearly all have never failed.

        `_stale_at` is set last: an exception may come before, and the next call looks again.
        """
        tiers = self._roster.tiers
        suspects = [one for one in self._suspects if not one.gone]
        sick = sum(not one.healthy for one in suspects)
        self._blind = sick == len(self)
        out = {one: why for one in suspects if (why := self._standing(one, now)) != "serving"}
        self._suspects = dict.fromkeys(one for one in suspects if one in out or not one.healthy)
        self.broken = [one for one, why in out.items() if why in ("open", "half-open")]
        stale_at = min((_next_change(one, now) for one in out), default=math.inf)
        opened = [_without(tier, out) for tier in tiers] if out else list(tiers)
        self._serving = next((place for place, tier in enumerate(opened) if tier), None)
        self._panic(opened, now)
        self._open = [_same(old, new) for old, new in zip(self._open, opened, strict=True)]
        self._candidates = () if self._serving is None else self._open[self._serving]
        self._stale_at = stale_at

    def _fit(self, one: Endpoint) -> bool:
        """True where active checks do not keep it out."""
        return one.healthy or self._blind

    def _standing(self, one: Endpoint, now: float) -> Standing:
        return one.standing(now, blind=self._blind)

    def _panic(self, opened: list[tuple[Endpoint, ...]], now: float) -> None:
        """Whom somebody ejected stays out even so."""
        threshold, tiers = self._policy.panic_threshold, self._roster.tiers
        place = 0 if self._serving is None else self._serving
        if threshold and tiers and len(opened[place]) < threshold * len(tiers[place]):
            opened[place] = tuple(one for one in tiers[place] if one.out_until <= now)
            self._serving = place if opened[place] else self._serving


def _next_change(one: Endpoint, now: float) -> float:
    """When time alone lets it in again."""
    return min((at for at in (one.rest_until, one.out_until) if at > now), default=math.inf)


def _words(one: Endpoint, now: float) -> str:
    standing = one.standing(now)
    words = f"breaker {standing}" if standing in ("open", "half-open") else standing
    return words if one.last_fault is None else f"{words}, last fault {one.last_fault}"


def _without(tier: tuple[Endpoint, ...], out: Container[Endpoint]) -> tuple[Endpoint, ...]:
    return tuple(one for one in tier if one not in out)


def _same(old: tuple[Endpoint, ...], new: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    return old if old == new else new
