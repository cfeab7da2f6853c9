"""The pool: the endpoints of one service, and which of them are in rotation.

The instances with the same priority are a *tier* (RFC 2782). The tier with the lowest priority
value serves, as long as at least one of its instances is in rotation; otherwise the next tier
serves. An instance is in rotation (*admissible*) unless it is ejected, active checks find it
unhealthy, its breaker refuses calls, or it backs off (`Retry-After`). An instance that has reached
its limit of attempts in flight stays admissible, although no attempt is sent to it for now. So the
next tier does not serve, even if all instances of a tier have reached their limits.

If active checks find all instances unhealthy, the checks are ignored: a check with a wrong path
must not make the whole service unavailable. AWS's load balancers and Envoy's panic mode do the
same.

An answer of discovery may have ten thousand instances, and calls must not wait while it is
processed. So an `EndpointSetUpdate` is computed without the lock that calls need. Only applying it
needs the lock, and takes a few assignments. With `max_instances`, a client uses only a `Subset` of
the instances.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import nsmallest
from itertools import chain, islice
from typing import NamedTuple
from weakref import WeakMethod

from lbclient.endpoint.breaker import Breaker, BreakerPolicy
from lbclient.endpoint.endpoint import Endpoint, EndpointStatus
from lbclient.endpoint.instance import Instance, identity_of

__all__ = ["EndpointSetUpdate", "Pool", "Subset"]

_BYTES = 8

_ZERO_WEIGHT = 0.1

_SHOWN = 10


class Subset:
    """At most `limit` instances (None: all), drawn at random, and kept as long as discovery returns
    them.

    The method is rendezvous hashing (Thaler and Ravishankar 1998): each client ranks instances by a
    hash with a seed of its own. So an instance that joins or leaves changes at most one member of
    the subset. The clients spread over all instances without coordination (as with gRPC's A68 and
    MongoDB's `srvMaxHosts`). The subset contains at least one instance of each tier if `limit`
    allows it, since a fail-over to that tier needs one. The rest is filled from the best tier
    first.
    """

    def __init__(self, limit: int | None, rng: random.Random) -> None:
        self._limit = limit
        self._rng = rng
        self._seed = b""
        self._all: Sequence[Instance] | None = None
        self._ranks: dict[Instance, bytes] = {}

    def after_fork(self) -> Sequence[Instance] | None:
        """In a forked child: draw another subset from the last answer. Returns None if the last
        answer was used in full."""
        self._seed, self._ranks = b"", {}
        return None if self._all is None else self.of(self._all)

    def of(self, instances: Sequence[Instance]) -> Sequence[Instance]:
        """Return the instances that this client keeps."""
        if self._limit is None or len(instances) <= self._limit:
            self._all = None
            return instances
        self._all = instances
        self._seed = self._seed or self._rng.randbytes(_BYTES)
        known = self._ranks.get
        ranks = {instance: known(instance) or self._rank(instance) for instance in instances}
        self._ranks = ranks
        firsts: dict[int, Instance] = {}
        for instance in instances:
            rival = firsts.setdefault(instance.priority, instance)
            if ranks[instance] < ranks[rival]:
                firsts[instance.priority] = instance

        def place(instance: Instance) -> tuple[bool, int, bytes]:
            return firsts[instance.priority] is not instance, instance.priority, ranks[instance]

        kept = set(nsmallest(self._limit, instances, place))
        return [instance for instance in instances if instance in kept]

    def _rank(self, instance: Instance) -> bytes:
        return blake2b(identity_of(instance).encode(), digest_size=_BYTES, key=self._seed).digest()


@dataclass(frozen=True, slots=True)
class EndpointSet:
    """The known endpoints, and the tiers in order: lowest priority value first (RFC 2782)."""

    endpoints: Mapping[Instance, Endpoint] = field(default_factory=dict)
    tiers: Sequence[tuple[Endpoint, ...]] = ()


class _Revision(NamedTuple):
    """The new record of an endpoint that stays, and a new breaker if its addresses have changed."""

    endpoint: Endpoint
    instance: Instance
    weight: float
    breaker: Breaker | None


class EndpointSetUpdate:
    """The difference between one endpoint set and the next: the endpoints that joined or left, and
    those that have new addresses.

    Endpoints that joined an existing set, and those with new addresses, warm up from the time
    `now`.
    """

    def __init__(
        self,
        endpoint_set: EndpointSet,
        policy: BreakerPolicy,
        instances: Iterable[Instance],
        now: float = -math.inf,
    ) -> None:
        self.joined: list[Endpoint] = []
        self.moved: list[Endpoint] = []
        self.left: list[Endpoint] = []
        self._policy = policy
        self._now = now if endpoint_set.endpoints else -math.inf
        self._revisions: list[_Revision] = []
        self._endpoints: dict[Instance, Endpoint] = dict(endpoint_set.endpoints)
        known = {id(endpoint.instance): endpoint for endpoint in self._endpoints.values()}
        tiers: dict[int, list[Endpoint]] = {}
        doubtful: list[tuple[Endpoint, Instance]] = []
        instances = list(instances)
        for instance in instances:
            # An instance that was in the last answer needs no further check, unless its weight is
            # 0: the meaning of 0 depends on the other weights.
            endpoint = known.get(id(instance))
            if endpoint is None:
                endpoint = self._endpoints.pop(instance, None) or self._join(instance)
                self._endpoints[instance] = endpoint
                doubtful.append((endpoint, instance))
            elif not instance.weight:
                doubtful.append((endpoint, instance))
            tier = tiers.get(instance.priority)
            if tier is None:
                tier = tiers[instance.priority] = []
            tier.append(endpoint)
        self._compare(doubtful, instances)
        if len(self._endpoints) > len(instances):
            self._leave(set(chain.from_iterable(tiers.values())))
        order = [tuple(tiers[priority]) for priority in sorted(tiers)]
        self.endpoint_set: EndpointSet = EndpointSet(self._endpoints, order)

    def __bool__(self) -> bool:
        return bool(self.joined or self.left or self._revisions)

    def apply(self) -> None:
        """Give the endpoints that stay their new records. Call this method with the balancer's lock
        held."""
        for endpoint in self.left:
            endpoint.gone = True
        for endpoint, instance, weight, breaker in self._revisions:
            endpoint.weight = weight
            if breaker is not None:
                endpoint.renew(breaker)
                endpoint.warm_since = self._now
            endpoint.instance = instance  # last: it shows that the other attributes are set

    def _join(self, instance: Instance) -> Endpoint:
        endpoint = Endpoint(instance, self._policy)
        endpoint.warm_since = self._now
        self.joined.append(endpoint)
        return endpoint

    def _leave(self, staying: Container[Endpoint]) -> None:
        gone = [one for one, endpoint in self._endpoints.items() if endpoint not in staying]
        self.left = [self._endpoints.pop(one) for one in gone]

    def _compare(
        self, doubtful: Sequence[tuple[Endpoint, Instance]], instances: Iterable[Instance]
    ) -> None:
        """Record the endpoints whose records have changed. A weight of 0 beside other weights of
        its tier becomes a small weight (as dnspython reads RFC 2782)."""
        weighted: set[int] = set()
        if not all(instance.weight for _, instance in doubtful):
            weighted = {instance.priority for instance in instances if instance.weight}
        for endpoint, instance in doubtful:
            zero = _ZERO_WEIGHT if instance.priority in weighted else 1.0
            weight = float(instance.weight) or zero
            if endpoint.weight != weight or not _equal(endpoint.instance, instance):
                self._revisions.append(self._revision(endpoint, instance, weight))

    def _revision(self, endpoint: Endpoint, instance: Instance, weight: float) -> _Revision:
        if set(endpoint.instance.addresses) == set(instance.addresses):
            return _Revision(endpoint, instance, weight, None)
        self.moved.append(endpoint)
        return _Revision(endpoint, instance, weight, Breaker(self._policy, str(instance)))


def _equal(old: Instance, new: Instance) -> bool:
    """True if the new record changes nothing. Metadata belongs to the user, and is not compared."""
    if old is new:
        return True
    if old.metadata or new.metadata:
        return False
    return (old.priority, old.weight, old.addresses) == (new.priority, new.weight, new.addresses)


class Pool:
    """The endpoints of one service, and which of them are in rotation. Call its methods with the
    balancer's lock held, unless a method says otherwise."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._endpoint_set = EndpointSet()
        self._open: list[tuple[Endpoint, ...]] = []
        self._serving: int | None = None
        self._candidates: tuple[Endpoint, ...] = ()
        self._stale_at = 0.0
        self._dirty: dict[Endpoint, None] = {}
        self.open_breakers: list[Endpoint] = []
        """Endpoints that are out of rotation only because of their breaker, as computed most
        recently."""
        self._health_ignored = False
        self._updating = False
        self.membership: int = 0
        """A number that changes when an instance joins, leaves or gets new addresses."""
        self._listeners: list[WeakMethod[Callable[[], object]]] = []

    def __len__(self) -> int:
        return len(self._endpoint_set.endpoints)

    @property
    def endpoints(self) -> Iterable[Endpoint]:
        """All known endpoints, in rotation or not."""
        return self._endpoint_set.endpoints.values()

    def find(self, instance: Instance) -> Endpoint | None:
        """Return the endpoint of this instance, or None if it is not known."""
        return self._endpoint_set.endpoints.get(instance)

    def fresh_breaker(self, endpoint: Endpoint) -> Breaker:
        """Make a new breaker for this endpoint."""
        return Breaker(self._policy, str(endpoint.instance))

    def plan(self, instances: Iterable[Instance], now: float = -math.inf) -> EndpointSetUpdate:
        """Compute what changes with a full set of instances. This method needs no lock and may take
        long. Only one thread at a time may call it."""
        return EndpointSetUpdate(self._endpoint_set, self._policy, instances, now)

    def take(self, update: EndpointSetUpdate) -> None:
        """Apply an update. Endpoints that stay keep their breaker, load and latency.

        An endpoint that stays but has new addresses gets a new breaker: it is another machine.
        """
        self._updating = True
        update.apply()
        self._endpoint_set = update.endpoint_set
        if update.joined or update.left or update.moved:
            self.membership += 1
        if update:
            self._forget_looks()
        self._updating = False

    def listen(self, departed: Callable[[], object]) -> None:
        """Register a method to call, without the lock, after instances have left or got new
        addresses. The pool does not keep the object of the method alive.
        """
        for dead in [one for one in self._listeners if one() is None]:
            with contextlib.suppress(ValueError):  # another thread has removed it
                self._listeners.remove(dead)
        self._listeners.append(WeakMethod(departed))

    def tell_listeners(self) -> None:
        """Call the registered methods, since instances have left or got new addresses. Call this
        method without the lock."""
        for ref in list(self._listeners):
            if (departed := ref()) is not None:
                departed()

    def after_fork(self) -> bool:
        """In a forked child: drop an update that a thread of the parent has not finished.

        Returns True if an update was dropped. Then discovery must be asked again.
        """
        for endpoint in self.endpoints:
            endpoint.gone, endpoint.in_flight = False, 0
        self._dirty = dict.fromkeys(self.endpoints)
        self._forget_looks()
        updating, self._updating = self._updating, False
        return updating

    def spread(self, now: float, rng: random.Random) -> None:
        """In a forked child: choose other times for probes than the parent and its siblings."""
        for endpoint in self.endpoints:
            endpoint.breaker.after_fork(now, rng)

    def update(self, instances: Iterable[Instance]) -> EndpointSetUpdate:
        """Plan an update and apply it at once."""
        update = self.plan(instances)
        self.take(update)
        return update

    def changed(self, endpoint: Endpoint) -> None:
        """Mark an endpoint whose state has changed. The next pick checks whether it is in
        rotation."""
        self._dirty[endpoint] = None
        self._stale_at = -math.inf

    def expedite_probes(self, now: float, rng: random.Random) -> None:
        """Shorten the open periods of other breakers, since a probe has closed the breaker of one
        endpoint."""
        for endpoint in self.open_breakers:
            endpoint.breaker.expedite_probe(now, rng)

    def candidates(self, now: float) -> Sequence[Endpoint]:
        """The admissible endpoints of the tier that serves; empty if no tier has one.

        The returned object is the same until instances, their rotation or their weights change.
        """
        if now >= self._stale_at:
            self._recompute(now)
        return self._candidates

    def admissible(self, now: float) -> Iterable[Sequence[Endpoint]]:
        """The admissible endpoints of each tier, best tier first."""
        if now >= self._stale_at:
            self._recompute(now)
        return self._open

    def changes_at(self, now: float, patience: float) -> float:
        """The next time at which an instance comes back into rotation, or a probe becomes due, only
        because time has passed. A due probe is given to a call that may be repeated, or `patience`
        seconds later to any call."""
        if now >= self._stale_at:
            self._recompute(now)
        dues = [
            at
            for endpoint in self.open_breakers
            for at in (
                endpoint.breaker.due,
                endpoint.breaker.due + patience,
                endpoint.breaker.probed_until,
            )
            if at > now
        ]
        return min([self._stale_at, *dues])

    def backing_off(self, now: float) -> Endpoint | None:
        """Of the endpoints that are out of rotation only because they back off, return the one
        whose back-off ends first."""
        backing_off = [
            endpoint for endpoint in self._dirty if self._status(endpoint, now) == "resting"
        ]
        return min(backing_off, key=lambda endpoint: endpoint.backing_off_until, default=None)

    def tiers(self) -> Sequence[Sequence[Endpoint]]:
        """All endpoints, best tier first."""
        return self._endpoint_set.tiers

    def probe_due(self, now: float) -> Endpoint | None:
        """Return the endpoint whose probe has been due longest, in the serving tier or a better
        one.
        """
        tiers = self._endpoint_set.tiers
        worst = math.inf if self._serving is None else tiers[self._serving][0].instance.priority
        due = (
            endpoint
            for endpoint in self.open_breakers
            if endpoint.breaker.due <= now
            and endpoint.instance.priority <= worst
            and not endpoint.breaker.probing(now)
        )
        return min(due, key=lambda endpoint: endpoint.breaker.due, default=None)

    def due_soonest(self, now: float) -> Endpoint | None:
        """Return the endpoint with an open breaker whose open period ends first. Returns None while
        any endpoint is being probed."""
        if any(endpoint.breaker.probing(now) for endpoint in self.open_breakers):
            return None
        return min(self.open_breakers, key=lambda endpoint: endpoint.breaker.due, default=None)

    def probe_in(self, now: float) -> float | None:
        """Seconds until an open breaker lets a probe through."""
        waits = [
            endpoint.breaker.due - now
            for endpoint in self.open_breakers
            if not endpoint.breaker.probing(now)
        ]
        return max(0.0, min(waits)) if waits else None

    def back_in(self, now: float) -> float | None:
        """Seconds until the first ejected endpoint is in rotation again, or may be probed."""
        out = [
            endpoint
            for endpoint in self._dirty
            if endpoint.ejected_until > now and self._fit(endpoint)
        ]
        waits = [
            max(endpoint.ejected_until, endpoint.breaker.due * endpoint.breaker.refuses) - now
            for endpoint in out
        ]
        return min(waits, default=None)

    def describe(self, now: float) -> str:
        """Describe for an error why each instance is out of rotation. Of many instances, only the
        first few are named."""
        few = islice(self.endpoints, _SHOWN)
        shown = [f"{endpoint.instance} ({_words(endpoint, now)})" for endpoint in few]
        more = [f"and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return ", ".join(shown + more)

    def in_rotation(self, now: float) -> int:
        """The number of endpoints in rotation. This method changes nothing and needs no lock."""
        return sum(self._status(endpoint, now) == "serving" for endpoint in self.endpoints)

    def _forget_looks(self) -> None:
        self._open, self._candidates = [()] * len(self._endpoint_set.tiers), ()
        self._stale_at = -math.inf

    def _recompute(self, now: float) -> None:
        """Compute which endpoints are in rotation.

        Only the endpoints in `_dirty` are checked, since in a large pool nearly all endpoints have
        never failed. `_stale_at` is set last, so that after an exception the next call computes
        again.
        """
        tiers = self._endpoint_set.tiers
        dirty = [endpoint for endpoint in self._dirty if not endpoint.gone]
        sick = sum(not endpoint.healthy for endpoint in dirty)
        self._health_ignored = sick == len(self)
        out = {
            endpoint: why for endpoint in dirty if (why := self._status(endpoint, now)) != "serving"
        }
        self._dirty = dict.fromkeys(
            endpoint for endpoint in dirty if endpoint in out or not endpoint.healthy
        )
        self.open_breakers = [
            endpoint for endpoint, why in out.items() if why in ("open", "half-open")
        ]
        stale_at = min((_next_change(endpoint, now) for endpoint in out), default=math.inf)
        opened = [_without(tier, out) for tier in tiers] if out else list(tiers)
        self._serving = next((place for place, tier in enumerate(opened) if tier), None)
        self._panic(opened, now)
        self._open = [_same(old, new) for old, new in zip(self._open, opened, strict=True)]
        self._candidates = () if self._serving is None else self._open[self._serving]
        self._stale_at = stale_at

    def _fit(self, endpoint: Endpoint) -> bool:
        """True if active checks do not keep this endpoint out of rotation."""
        return endpoint.healthy or self._health_ignored

    def _status(self, endpoint: Endpoint, now: float) -> EndpointStatus:
        return endpoint.status(now, ignore_health=self._health_ignored)

    def _panic(self, opened: list[tuple[Endpoint, ...]], now: float) -> None:
        """Ignore breakers if too few endpoints are left. Ejected endpoints stay out."""
        threshold, tiers = self._policy.panic_threshold, self._endpoint_set.tiers
        place = 0 if self._serving is None else self._serving
        if threshold and tiers and len(opened[place]) < threshold * len(tiers[place]):
            opened[place] = tuple(
                endpoint for endpoint in tiers[place] if endpoint.ejected_until <= now
            )
            self._serving = place if opened[place] else self._serving


def _next_change(endpoint: Endpoint, now: float) -> float:
    """The next time at which an endpoint comes back into rotation only because time has passed."""
    return min(
        (at for at in (endpoint.backing_off_until, endpoint.ejected_until) if at > now),
        default=math.inf,
    )


def _words(endpoint: Endpoint, now: float) -> str:
    status = endpoint.status(now)
    words = f"breaker {status}" if status in ("open", "half-open") else status
    return words if endpoint.last_fault is None else f"{words}, last fault {endpoint.last_fault}"


def _without(tier: tuple[Endpoint, ...], out: Container[Endpoint]) -> tuple[Endpoint, ...]:
    return tuple(endpoint for endpoint in tier if endpoint not in out)


def _same(old: tuple[Endpoint, ...], new: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    return old if old == new else new
