"""The invariants: conditions that are true at every step of every run.

From the state of each instance at one moment, this module computes which endpoints may be picked.
The pool updates its set of such endpoints at each change. The two sets must be equal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from lbclient._internal.signals import Signal
from lbclient.core.attempt import Attempt
from lbclient.core.call import Call
from lbclient.core.engine import Engine
from lbclient.core.pool import Pool
from lbclient.endpoint.breaker import Breaker, Permit
from lbclient.endpoint.endpoint import Endpoint, EndpointStatus
from lbclient.resilience.concurrency_limit import Limits
from lbclient.simulation.behaviour import Reply

__all__ = ["Invariants", "Trail"]

_SLACK = 1e-6
_PROBE = 30.0
"""Seconds after which the breaker may give up a probe without an outcome."""
_FIRST = 8
"""The number of waiting callers that are checked, and the number of calls of each that are checked.
"""
_Order = Mapping[int | None, Sequence[Signal]]
_SLICE = 0.9
"""A budget counts in slices of a tenth of its window, so it may forget a call up to a tenth of the
window early."""


class Trail:
    """The simulator's own record of a call. It is compared with the state of the call.

    `patience` is the time in seconds that the call waits for a slot if it has no deadline.
    """

    __slots__ = ("_held", "_patience", "attempts", "call", "lost", "unsure")

    def __init__(self, call: Call[Reply], patience: float = math.inf) -> None:
        self.call: Call[Reply] = call
        self._patience = patience
        self.attempts: list[Attempt[Reply]] = []
        """All attempts that were sent, in order. An `open` attempt counts as in flight."""
        self.unsure: bool = False
        """True once an attempt may have been processed."""
        self.lost: bool = False
        """True once an attempt waits for a response that never comes."""
        self._held: list[tuple[Reply, Attempt[Reply]]] = []

    @property
    def tried(self) -> list[Endpoint]:
        """The endpoints of the attempts of the call."""
        return [attempt.endpoint for attempt in self.attempts]

    @property
    def unsent(self) -> bool:
        """True if the call's own last attempt, which was not a hedge, was never sent."""
        last = self._own_last()
        return last is not None and isinstance(last.error, ConnectionRefusedError)

    def may_settle_at(self) -> float:
        """The earliest time at which a retry may use an instance that its call has tried, although
        an untried instance is in rotation but full. Before this time the retry waits for a slot at
        the untried instance."""
        last, deadline = self._own_last(), self.call.deadline
        ended = 0.0 if last is None else last.pick.started + last.pick.elapsed
        until = ended + self._patience if deadline is None else (ended + deadline) / 2
        return until - _SLACK

    def comes(self, reply: Reply, left: float) -> None:
        """Record what kind of reply an attempt gets. The attempt has `left` seconds."""
        self.unsure |= reply.seconds > left or not isinstance(reply.error, ConnectionRefusedError)
        self.lost |= reply.seconds == left == math.inf

    def hold(self, attempt: Attempt[Reply], reply: Reply) -> Reply:
        """Record that the headers of a reply have arrived, and its body has not. Returns a copy,
        which is equal to no other reply of the call."""
        attempt.hold()
        own = dataclasses.replace(reply)
        self._held.append((own, attempt))
        return own

    def holder(self, reply: Reply) -> Attempt[Reply] | None:
        """Return the attempt whose body is still to be read, if any."""
        return next((attempt for own, attempt in self._held if own is reply), None)

    def close(self, reply: Reply) -> None:
        """End the body of a reply, since it has been read or is not needed."""
        if (attempt := self.holder(reply)) is not None:
            attempt.finish()

    def _own_last(self) -> Attempt[Reply] | None:
        own = (attempt for attempt in reversed(self.attempts) if attempt.reason != "hedge")
        return next(own, None)

    def close_all(self) -> None:
        """End all bodies, so that none stays open after the call."""
        for _, attempt in self._held:
            attempt.finish()


class Moment:
    """The state of a pool at one moment. `open` has the admissible endpoints of each tier, best
    tier first. `serving` is the tier that serves, empty if none does. `panic` is the breaker's
    `panic_threshold`."""

    __slots__ = ("_health_ignored", "_limits", "_now", "open", "serving")

    def __init__(self, pool: Pool, limits: Limits, panic: float, now: float) -> None:
        self._limits = limits
        self._now = now
        self._health_ignored = not any(endpoint.healthy for endpoint in pool.endpoints)
        tiers = _tiers(pool.endpoints)
        self.open: list[list[Endpoint]] = [
            [endpoint for endpoint in tier if self.status(endpoint) == "serving"] for tier in tiers
        ]
        place = next((place for place, tier in enumerate(self.open) if tier), 0)
        if tiers and len(self.open[place]) < panic * len(tiers[place]):
            self.open[place] = [
                endpoint for endpoint in tiers[place] if self.status(endpoint) != "ejected"
            ]
        self.serving: Sequence[Endpoint] = next((tier for tier in self.open if tier), ())

    def status(self, endpoint: Endpoint) -> EndpointStatus:
        """Return the status of an endpoint. Active checks are ignored if all endpoints fail their
        checks."""
        return endpoint.status(self._now, ignore_health=self._health_ignored)

    def roomy(self, tier: Iterable[Endpoint], but: Collection[object] = ()) -> list[Endpoint]:
        """Return the endpoints of a tier that are below their limit, except those in `but`."""
        limits, now = self._limits, self._now
        ready = [
            endpoint for endpoint in tier if endpoint not in but and endpoint.paused_until <= now
        ]
        return [endpoint for endpoint in ready if not (limits.each and limits.full(endpoint))]

    def crowded(self, endpoint: Endpoint) -> bool:
        """Return True for an endpoint with more attempts in flight than its limit allows."""
        fixed, rule = self._limits.fixed, self._limits.adaptive
        if fixed is not None and endpoint.in_flight > fixed:
            return True
        return rule is not None and rule.full(endpoint.limit, endpoint.in_flight - 1)


def _tiers(endpoints: Iterable[Endpoint]) -> list[list[Endpoint]]:
    tiers: dict[int, list[Endpoint]] = {}
    for endpoint in endpoints:
        tiers.setdefault(endpoint.instance.priority, []).append(endpoint)
    return [tiers[priority] for priority in sorted(tiers)]


def of_pick(moment: Moment, trail: Trail, attempt: Attempt[Reply], now: float) -> Iterator[str]:
    """Check that a pick is allowed. Its slot is already counted as in flight."""
    endpoint, reason, tried = attempt.endpoint, attempt.reason, trail.tried
    if endpoint.gone:
        yield "it is no longer in the pool"
    elif reason == "probe":
        yield from _of_probe(moment, endpoint, tried)
    elif reason == "resting":
        if moment.serving or moment.status(endpoint) != "resting":
            yield f"its status is {moment.status(endpoint)}; the serving tier is {moment.serving}"
    elif reason == "hedge":
        if endpoint not in moment.serving or endpoint in tried:
            yield f"it has tried {tried}; the serving tier is {moment.serving}"
    elif tried:
        yield from _of_retry(moment, endpoint, trail, now)
    elif endpoint not in moment.serving:
        yield f"its status is {moment.status(endpoint)}; the serving tier is {moment.serving}"
    if moment.crowded(endpoint):
        counts = f"{endpoint.in_flight} in flight, learned limit {endpoint.limit}"
        yield f"it is above its limit: {counts}"


def _of_probe(moment: Moment, endpoint: Endpoint, tried: list[Endpoint]) -> Iterator[str]:
    """Check that a probe goes to an open endpoint that the call has not tried, in the tier that
    serves or in a better one.
    """
    if endpoint.breaker.state != "half-open" or endpoint in tried:
        yield f"its breaker is {endpoint.breaker.state}; the call has tried {tried}"
    if moment.serving and endpoint.instance.priority > moment.serving[0].instance.priority:
        yield f"the serving tier is better: {moment.serving}"


def _of_retry(moment: Moment, endpoint: Endpoint, trail: Trail, now: float) -> Iterator[str]:
    """Check that a retry goes to an untried endpoint with room, in the best tier that has such an
    endpoint. The retry may use a tried endpoint only after the call has waited for the untried
    endpoints that are full. An endpoint that is paused after rejections is treated as tried."""
    tried = trail.tried
    for tier in moment.open:
        if endpoint in tier and endpoint not in tried:
            return
        if untried := moment.roomy(tier, tried):
            yield f"it has tried {tried}; {untried} have room"
            return
    if endpoint not in moment.serving:
        yield f"it has tried {tried}; the serving tier is {moment.serving}"
    waited = [other for tier in moment.open for other in tier if other.paused_until <= now]
    full = [other for other in waited if other not in tried]
    if full and now < (until := trail.may_settle_at()):
        yield f"it has tried {tried}; {full} are only full, it should wait {until - now:g} s more"


def of_call(trail: Trail, attempt: Attempt[Reply], now: float) -> Iterator[str]:
    """Check that the call may send this attempt."""
    call, before = trail.call, trail.attempts
    if attempt.expiry is not None and attempt.expiry.at < now:
        yield f"it begins {now - attempt.expiry.at:g} s after its deadline"
    if any(earlier.open and earlier.endpoint is attempt.endpoint for earlier in before):
        yield "another attempt of the call is already in flight there"
    if before and trail.unsure and not call.idempotent:
        yield "the call may not be repeated, and an earlier attempt may have been carried out"
    hedges = sum(earlier.reason == "hedge" for earlier in (*before, attempt))
    if hedges > 1 or (hedges and not call.idempotent):
        yield f"hedges: {hedges}, idempotent: {call.idempotent}"
    if len(before) + 1 - hedges > call.engine.retry_rules.policy.attempts:
        yield f"it is attempt {len(before) + 1 - hedges}"


class Invariants:
    """Checks one balancer when an attempt is sent, between events, and at the end."""

    def __init__(self, engine: Engine, name: str, limits: Limits, panic: float) -> None:
        self._engine = engine
        self._name = name
        self._limits = limits
        self._panic = panic
        self._calls = 0
        self._retries = 0
        self._hedges = 0
        self._attempts: dict[Endpoint, list[Attempt[Reply]]] = {}
        self._probes: dict[Breaker, tuple[Attempt[Reply], Permit]] = {}
        self._order: _Order = {}
        self._first: Signal | None = None
        self._woken: dict[Signal, float] = {}
        self.breaches: list[str] = []

    def sending(self, trail: Trail, attempt: Attempt[Reply], now: float) -> None:
        """Check an attempt just before it is sent."""
        if not trail.attempts:
            self._calls += 1
        elif attempt.reason == "hedge":
            self._hedges += 1
        elif not trail.unsent:
            self._retries += 1
        texts = chain(
            of_pick(self._moment(now), trail, attempt, now),
            of_call(trail, attempt, now),
            self._of_probe(attempt, now),
            self._of_budgets(now),
        )
        who = f"{attempt.instance}, picked as {attempt.reason}"
        self._breach(now, (f"{who}: {text}" for text in texts))
        trail.attempts.append(attempt)
        self._attempts.setdefault(attempt.endpoint, []).append(attempt)
        self._breach(now, self._of_load(attempt.endpoint, now))
        total = self._limits.total
        if total is not None and (many := self._in_flight()) > total:
            self._breach(now, [f"{many} in flight at all instances together"])

    def done(self, trail: Trail, error: str | None, now: float) -> None:
        """Check a call that has ended, after its body has been read. `error` is the name of the
        exception that the call raised."""
        deadline = trail.call.deadline
        if deadline is not None and now - deadline > _SLACK:
            self._breach(now, [f"a call ended {now - deadline:g} s past its deadline"])
        if left := [attempt.instance for attempt in trail.attempts if attempt.open]:
            self._breach(now, [f"a call has ended, but is still in flight at {left}"])
        alone = not trail.attempts and not self._engine.queue
        if error == "NoInstanceAvailable" and alone and (free := self._free(now)):
            self._breach(now, [f"a call found no instance, but these have room: {free}"])

    def between(self, now: float) -> None:
        """Check the queue after each event."""
        queue = self._engine.queue
        if not queue:
            self._order, self._first, self._woken = {}, None, {}
            return
        first = queue.first if queue.waiting else None
        retries = [
            call for place, call in enumerate(queue.retries) if place < _FIRST or call.is_set
        ]
        look = [*retries, *([] if first is None else [first])]
        self._woken = {call: self._woken.get(call, now) for call in look if call.is_set}
        if free := self._left_free(look, now):
            self._breach(
                now, [f"{len(queue)} calls wait and are not woken, but these have room: {free}"]
            )
        if first is self._first:
            return
        turns = islice(queue.turns.items(), _FIRST)
        order = {caller: tuple(islice(queue, _FIRST)) for caller, queue in turns}
        if _lose(self._order, order):
            self._breach(now, ["a waiting call was overtaken"])
        self._order, self._first = order, first

    def over(self, now: float) -> None:
        """Check that no slot, permit or place in the queue is in use after the last call has
        ended."""
        endpoints = {**dict.fromkeys(self._engine.pool.endpoints), **self._attempts}
        self._breach(
            now, chain.from_iterable(self._of_load(endpoint, now) for endpoint in endpoints)
        )
        left = {
            "in flight": [endpoint for endpoint in endpoints if endpoint.in_flight],
            "in flight in total": [] if self._engine.drained().is_set else [self._engine.service],
            "probed": [
                endpoint
                for endpoint in endpoints
                if not endpoint.gone and endpoint.breaker.probing(now)
            ],
            "waiting": [*self._engine.queue.waiting, *self._engine.queue.retries],
        }
        self._breach(now, (f"still {what} at the end: {who}" for what, who in left.items() if who))

    def forgotten(self, now: float) -> None:
        """Report a call that would wait forever, since no event is left. A call that waits for an
        instance which never responds is not reported."""
        self._breach(now, ["a call waits forever"])

    def _of_probe(self, attempt: Attempt[Reply], now: float) -> Iterator[str]:
        """Check that an endpoint has at most one probe at a time: until its breaker changes its
        state, or the headers of the probe arrive."""
        if attempt.reason != "probe":
            return
        breaker = attempt.pick.breaker
        before, permit = self._probes.get(breaker, (attempt, None))
        self._probes[breaker] = attempt, breaker.permit
        unanswered = before.open and before.verdict is None and now - before.pick.started < _PROBE
        if unanswered and permit is breaker.permit:
            yield "it is already being probed"

    def _of_budgets(self, now: float) -> Iterator[str]:
        """Check that there are no more retries and hedges than their budgets allow. A retry after
        an attempt that was never sent is not counted."""
        hedging = self._engine.hedging
        hedges = None if hedging is None else hedging.budget
        retries = self._engine.retry_rules.budget
        for what, made, budget in (
            ("retries", self._retries, retries),
            ("hedges", self._hedges, hedges),
        ):
            if budget is None:
                continue
            policy = budget.policy
            earned = policy.ratio * self._calls + policy.reserve * (now / _SLICE + policy.window)
            if made > earned + _SLACK:
                yield f"{made} {what} of all retries and hedges so far, but {earned:g} were earned"

    def _of_load(self, endpoint: Endpoint, now: float) -> Iterator[str]:
        """Check that each count of attempts in flight is the number of attempts that were sent and
        have not ended, and that it is within the limits.
        """
        attempts = self._attempts.get(endpoint, ())
        sent = self._attempts[endpoint] = [attempt for attempt in attempts if attempt.open]
        if endpoint.in_flight != len(sent):
            counted, there = endpoint.in_flight, len(sent)
            yield f"{endpoint.instance} counts {counted} in flight, but there are {there}"
        rule, limit = self._limits.adaptive, endpoint.limit
        if rule is not None and limit is not None and not rule.least <= limit <= rule.most:
            yield f"{endpoint.instance} has a learned limit of {limit:g}, which is out of bounds"
        if endpoint.breaker.state != "half-open" and endpoint.breaker.probing(now):
            yield f"{endpoint.instance} is probed while its breaker is {endpoint.breaker.state}"

    def _left_free(self, look: Sequence[Signal], now: float) -> list[Endpoint]:
        """Return the endpoints that have room, although a call whose turn it is waits for room and
        is not about to be served. If a retry waits separately for an endpoint, this endpoint is
        left out for the calls behind the retry in the queue."""
        if all(self._comes(call, now) for call in look):
            return []
        if (moment := self._open(now)) is None:
            return []
        spoken_for: set[Endpoint] = set()
        total = self._limits.total
        places = math.inf if total is None else total - self._in_flight()
        for call in look:
            unwanted = self._engine.queue.retries.get(call, ())
            wanted = chain.from_iterable(moment.open) if unwanted else moment.serving
            has_room = moment.roomy(wanted, unwanted)
            roomy = [endpoint for endpoint in has_room if endpoint not in spoken_for]
            comes = self._comes(call, now)
            if roomy and places > 0 and not comes:
                return roomy
            places -= bool(has_room if comes else roomy)
            endpoints = self._engine.pool.endpoints
            spoken_for.update(endpoint for endpoint in endpoints if endpoint not in unwanted)
        return []

    def _comes(self, call: Signal, now: float) -> bool:
        """Return True if a waiting call was woken at this moment, so that it is about to look for a
        slot."""
        return self._woken.get(call, -math.inf) >= now

    def _free(self, now: float) -> list[Endpoint]:
        """Return the endpoints that have room in the tier that serves. The result is empty if an
        endpoint has just become admissible only because time has passed."""
        moment = self._open(now)
        return [] if moment is None else moment.roomy(moment.serving)

    def _open(self, now: float) -> Moment | None:
        """Return the current state. Returns None if no endpoint has room, or if an endpoint has
        just become admissible only because time has passed."""
        total = self._limits.total
        if total is not None and self._in_flight() >= total:
            return None
        if self._limits.each and all(map(self._limits.full, self._engine.pool.endpoints)):
            return None
        lately = now - _SLACK
        ends = chain.from_iterable(
            (endpoint.backing_off_until, endpoint.ejected_until, endpoint.paused_until)
            for endpoint in self._engine.pool.endpoints
        )
        return None if any(lately <= at <= now for at in ends) else self._moment(now)

    def _in_flight(self) -> int:
        return sum(endpoint.in_flight for endpoint in self._attempts)

    def _moment(self, now: float) -> Moment:
        return Moment(self._engine.pool, self._limits, self._panic, now)

    def _breach(self, now: float, texts: Iterable[str]) -> None:
        self.breaches += (f"BREACH at {now:.6f} s, {self._name}: {text}" for text in texts)


def _lose(before: _Order, after: _Order) -> bool:
    """Return True if a waiting call, or a caller that has not had its turn, has lost its place in
    the queue."""
    for caller, queue in after.items():
        stayed = tuple(call for call in before.get(caller, ()) if call in queue)
        if stayed != queue[: len(stayed)]:
            return True
    still = [
        caller for caller in before if caller in after and before[caller][0] is after[caller][0]
    ]
    return still != [caller for caller in after if caller in still]
