"""What must hold at every step of every run, whatever happens.

Who may be picked is worked out anew from what each instance is at one moment: the pool keeps
account of that from change to change, here nothing is kept, so both can be compared.
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
from lbclient.endpoint import Endpoint
from lbclient.endpoint.breaker import Breaker, Permit
from lbclient.endpoint.endpoint import EndpointStatus
from lbclient.resilience.concurrency_limit import Limits
from lbclient.simulation.behaviour import Reply

__all__ = ["Invariants", "Trail"]

_SLACK = 1e-6
_PROBE = 30.0
"""A probe that has not ended after so many seconds is given up at the earliest."""
_FIRST = 8
"""So many of the callers in line are looked at, and so many calls of each."""
_Order = Mapping[int | None, Sequence[Signal]]
_SLICE = 0.9
"""A budget forgets by slices, up to a tenth of its window early."""


class Trail:
    """Kept by the simulator, which trusts no count of the call's own.

    `patience` is how many seconds the call waits for a place if it has no deadline.
    """

    __slots__ = ("_held", "_patience", "attempts", "call", "lost", "unsure")

    def __init__(self, call: Call[Reply], patience: float = math.inf) -> None:
        self.call = call
        self._patience = patience
        self.attempts: list[Attempt[Reply]] = []
        """All that were sent, in order; who is `open` counts as in flight."""
        self.unsure = False
        """True once one may have been carried out."""
        self.lost = False
        """True once one waits for what never comes."""
        self._held: list[tuple[Reply, Attempt[Reply]]] = []

    @property
    def tried(self) -> list[Endpoint]:
        """Whom they were sent to."""
        return [one.endpoint for one in self.attempts]

    @property
    def unsent(self) -> bool:
        """True if the call's own last attempt, which was no hedge, was never sent."""
        last = self._own_last()
        return last is not None and isinstance(last.error, ConnectionRefusedError)

    def may_settle_at(self) -> float:
        """When a retry may ask an instance again at the earliest, though one that it has not tried
        is only full: it waits as long as any call waits for a place."""
        last, deadline = self._own_last(), self.call.deadline
        ended = 0.0 if last is None else last.started + last.elapsed
        until = ended + self._patience if deadline is None else (ended + deadline) / 2
        return until - _SLACK

    def comes(self, reply: Reply, left: float) -> None:
        """What an attempt with so many seconds left will come to."""
        self.unsure |= reply.seconds > left or not isinstance(reply.error, ConnectionRefusedError)
        self.lost |= reply.seconds == left == math.inf

    def hold(self, attempt: Attempt[Reply], reply: Reply) -> Reply:
        """Its headers have come, its body has not. Returns a reply that stands for no other."""
        attempt.hold()
        own = dataclasses.replace(reply)
        self._held.append((own, attempt))
        return own

    def holder(self, reply: Reply) -> Attempt[Reply] | None:
        """The attempt whose body is still to be read."""
        return next((attempt for own, attempt in self._held if own is reply), None)

    def close(self, reply: Reply) -> None:
        """Its body is read, or nobody wants it."""
        if (attempt := self.holder(reply)) is not None:
            attempt.finish()

    def _own_last(self) -> Attempt[Reply] | None:
        own = (one for one in reversed(self.attempts) if one.reason != "hedge")
        return next(own, None)

    def close_all(self) -> None:
        """Whatever became of the call, no body stays open."""
        for _, attempt in self._held:
            attempt.finish()


class Moment:
    """The admissible endpoints of each tier in `open`, best tier first; `serving` is the tier that
    serves, empty if none does. `panic` is the breaker's `panic_threshold`."""

    __slots__ = ("_health_ignored", "_limits", "_now", "open", "serving")

    def __init__(self, pool: Pool, limits: Limits, panic: float, now: float) -> None:
        self._limits = limits
        self._now = now
        self._health_ignored = not any(one.healthy for one in pool.endpoints)
        tiers = _tiers(pool.endpoints)
        self.open = [[one for one in tier if self.status(one) == "serving"] for tier in tiers]
        place = next((place for place, tier in enumerate(self.open) if tier), 0)
        if tiers and len(self.open[place]) < panic * len(tiers[place]):
            self.open[place] = [one for one in tiers[place] if self.status(one) != "ejected"]
        self.serving: Sequence[Endpoint] = next((tier for tier in self.open if tier), ())

    def status(self, one: Endpoint) -> EndpointStatus:
        """What it is, active checks disregarded where they call everybody down."""
        return one.status(self._now, ignore_health=self._health_ignored)

    def roomy(self, tier: Iterable[Endpoint], but: Collection[object] = ()) -> list[Endpoint]:
        """Those of a tier that are below their limit, but for some."""
        limits, now = self._limits, self._now
        ready = [one for one in tier if one not in but and one.paused_until <= now]
        return [one for one in ready if not (limits.each and limits.full(one))]

    def crowded(self, one: Endpoint) -> bool:
        """True for one with more in flight than its limit allows."""
        fixed, rule = self._limits.fixed, self._limits.adaptive
        if fixed is not None and one.in_flight > fixed:
            return True
        return rule is not None and rule.full(one.limit, one.in_flight - 1)


def _tiers(endpoints: Iterable[Endpoint]) -> list[list[Endpoint]]:
    tiers: dict[int, list[Endpoint]] = {}
    for one in endpoints:
        tiers.setdefault(one.instance.priority, []).append(one)
    return [tiers[priority] for priority in sorted(tiers)]


def of_pick(moment: Moment, trail: Trail, attempt: Attempt[Reply], now: float) -> Iterator[str]:
    """Whether it goes to one whom the rules allow. Its place is taken already."""
    one, reason, tried = attempt.endpoint, attempt.reason, trail.tried
    if one.gone:
        yield "it has left"
    elif reason == "probe":
        yield from _of_probe(moment, one, tried)
    elif reason == "resting":
        if moment.serving or moment.status(one) != "resting":
            yield f"it is {moment.status(one)}, {moment.serving} serve"
    elif reason == "hedge":
        if one not in moment.serving or one in tried:
            yield f"tried are {tried}, {moment.serving} serve"
    elif tried:
        yield from _of_retry(moment, one, trail, now)
    elif one not in moment.serving:
        yield f"it is {moment.status(one)}, {moment.serving} serve"
    if moment.crowded(one):
        yield f"it is beyond its limit: {one.in_flight} in flight, learned limit {one.limit}"


def _of_probe(moment: Moment, one: Endpoint, tried: list[Endpoint]) -> Iterator[str]:
    """A broken one of the tier that serves, or of a better one, that the call has not tried."""
    if one.breaker.state != "half-open" or one in tried:
        yield f"its breaker is {one.breaker.state}, tried are {tried}"
    if moment.serving and one.instance.priority > moment.serving[0].instance.priority:
        yield f"{moment.serving} serve, of a better tier"


def _of_retry(moment: Moment, one: Endpoint, trail: Trail, now: float) -> Iterator[str]:
    """An untried one of the best tier that has any with room. No tried one before the call has
    waited for the untried ones that are full; one that is paused has refused calls, too."""
    tried = trail.tried
    for tier in moment.open:
        if one in tier and one not in tried:
            return
        if untried := moment.roomy(tier, tried):
            yield f"tried are {tried}; {untried} have room"
            return
    if one not in moment.serving:
        yield f"tried are {tried}, {moment.serving} serve"
    waited = [it for tier in moment.open for it in tier if it.paused_until <= now]
    full = [it for it in waited if it not in tried]
    if full and now < (until := trail.may_settle_at()):
        yield f"tried are {tried}; {full} are only full, and {until - now:g} s are left to wait"


def of_call(trail: Trail, attempt: Attempt[Reply], now: float) -> Iterator[str]:
    """Whether its call may send it."""
    call, before = trail.call, trail.attempts
    if attempt.expiry is not None and attempt.expiry.at < now:
        yield f"it begins {now - attempt.expiry.at:g} s past its time"
    if any(one.open and one.endpoint is attempt.endpoint for one in before):
        yield "the same call is under way there already"
    if before and trail.unsure and not call.idempotent:
        yield "a call that may not be repeated may have been carried out before"
    hedges = sum(one.reason == "hedge" for one in (*before, attempt))
    if hedges > 1 or (hedges and not call.idempotent):
        yield f"hedges: {hedges}, idempotent: {call.idempotent}"
    if len(before) + 1 - hedges > call.engine.retries.policy.attempts:
        yield f"it is attempt {len(before) + 1 - hedges}"


class Invariants:
    """Looks at one balancer as each attempt is sent, between events, and at the end."""

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
        """Just before an attempt is sent."""
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
            self._breach(now, [f"{many} in flight, at all of them together"])

    def done(self, trail: Trail, error: str | None, now: float) -> None:
        """A call is over, body and all; `error` is the name of what it raised."""
        deadline = trail.call.deadline
        if deadline is not None and now - deadline > _SLACK:
            self._breach(now, [f"a call ended {now - deadline:g} s past its deadline"])
        if left := [one.instance for one in trail.attempts if one.open]:
            self._breach(now, [f"a call is over, and still in flight at {left}"])
        alone = not trail.attempts and not self._engine.queue
        if error == "NoInstanceAvailable" and alone and (free := self._free(now)):
            self._breach(now, [f"a call found no instance, room has {free}"])

    def between(self, now: float) -> None:
        """One thing has happened, and another is to happen, now or later."""
        queue = self._engine.queue
        if not queue:
            self._order, self._first, self._woken = {}, None, {}
            return
        first = queue.first if queue.waiting else None
        retries = [one for place, one in enumerate(queue.retries) if place < _FIRST or one.is_set]
        look = [*retries, *([] if first is None else [first])]
        self._woken = {one: self._woken.get(one, now) for one in look if one.is_set}
        if free := self._left_free(look, now):
            self._breach(now, [f"{len(queue)} in line, nobody wakes them, room has {free}"])
        if first is self._first:
            return
        turns = islice(queue.turns.items(), _FIRST)
        order = {caller: tuple(islice(queue, _FIRST)) for caller, queue in turns}
        if _lose(self._order, order):
            self._breach(now, ["somebody in line was overtaken"])
        self._order, self._first = order, first

    def over(self, now: float) -> None:
        """Nothing is under way any more."""
        endpoints = {**dict.fromkeys(self._engine.pool.endpoints), **self._attempts}
        self._breach(now, chain.from_iterable(self._of_load(one, now) for one in endpoints))
        left = {
            "in flight": [one for one in endpoints if one.in_flight],
            "in flight, in all": [] if self._engine.drained().is_set else [self._engine.service],
            "probed": [one for one in endpoints if not one.gone and one.breaker.probing(now)],
            "in line": [*self._engine.queue.waiting, *self._engine.queue.retries],
        }
        self._breach(now, (f"still {what} at the end: {who}" for what, who in left.items() if who))

    def forgotten(self, now: float) -> None:
        """Nothing is to happen any more, and a call still waits, for no silent instance."""
        self._breach(now, ["a call waits for ever"])

    def _of_probe(self, attempt: Attempt[Reply], now: float) -> Iterator[str]:
        """One at a time, as long as the breaker does not change and headers have not come."""
        if attempt.reason != "probe":
            return
        breaker = attempt.breaker
        before, permit = self._probes.get(breaker, (attempt, None))
        self._probes[breaker] = attempt, breaker.permit
        unanswered = before.open and before.verdict is None and now - before.started < _PROBE
        if unanswered and permit is breaker.permit:
            yield "it is probed already"

    def _of_budgets(self, now: float) -> Iterator[str]:
        """No more is repeated, and no more is hedged, than can have been earned. What replaces an
        attempt that was never sent is not counted."""
        hedging = self._engine.hedging
        hedges = None if hedging is None else hedging.budget
        retries = self._engine.retries.budget
        for what, made, budget in (
            ("retries", self._retries, retries),
            ("hedges", self._hedges, hedges),
        ):
            if budget is None:
                continue
            policy = budget.policy
            earned = policy.ratio * self._calls + policy.reserve * (now / _SLICE + policy.window)
            if made > earned + _SLACK:
                yield f"{made} {what} of all retries and hedges so far, {earned:g} were earned"

    def _of_load(self, one: Endpoint, now: float) -> Iterator[str]:
        """What counts as in flight is what was sent and has not ended, and within the limits."""
        sent = self._attempts[one] = [it for it in self._attempts.get(one, ()) if it.open]
        if one.in_flight != len(sent):
            yield f"{one.instance} counts {one.in_flight} in flight, there are {len(sent)}"
        rule, limit = self._limits.adaptive, one.limit
        if rule is not None and limit is not None and not rule.least <= limit <= rule.most:
            yield f"{one.instance} has learned a limit of {limit:g}"
        if one.breaker.state != "half-open" and one.breaker.probing(now):
            yield f"{one.instance} is probed while {one.breaker.state}"

    def _left_free(self, look: Sequence[Signal], now: float) -> list[Endpoint]:
        """What has room for one of those in line whose turn it is, that is not woken, or was and
        has not looked at that moment. What a retry wants that waits apart is not for those behind
        it."""
        if all(self._comes(one, now) for one in look):
            return []
        if (moment := self._open(now)) is None:
            return []
        spoken_for: set[Endpoint] = set()
        total = self._limits.total
        places = math.inf if total is None else total - self._in_flight()
        for one in look:
            unwanted = self._engine.queue.retries.get(one, ())
            wanted = chain.from_iterable(moment.open) if unwanted else moment.serving
            has_room = moment.roomy(wanted, unwanted)
            roomy = [it for it in has_room if it not in spoken_for]
            comes = self._comes(one, now)
            if roomy and places > 0 and not comes:
                return roomy
            places -= bool(has_room if comes else roomy)
            spoken_for.update(it for it in self._engine.pool.endpoints if it not in unwanted)
        return []

    def _comes(self, one: Signal, now: float) -> bool:
        """True if a call in line was woken at this moment, and so is about to look."""
        return self._woken.get(one, -math.inf) >= now

    def _free(self, now: float) -> list[Endpoint]:
        """Who has room, and not only since a moment."""
        moment = self._open(now)
        return [] if moment is None else moment.roomy(moment.serving)

    def _open(self, now: float) -> Moment | None:
        """Who serves; None where nobody has room, or time alone has just let somebody in."""
        total = self._limits.total
        if total is not None and self._in_flight() >= total:
            return None
        if self._limits.each and all(map(self._limits.full, self._engine.pool.endpoints)):
            return None
        lately = now - _SLACK
        ends = chain.from_iterable(
            (it.backing_off_until, it.ejected_until, it.paused_until)
            for it in self._engine.pool.endpoints
        )
        return None if any(lately <= at <= now for at in ends) else self._moment(now)

    def _in_flight(self) -> int:
        return sum(one.in_flight for one in self._attempts)

    def _moment(self, now: float) -> Moment:
        return Moment(self._engine.pool, self._limits, self._panic, now)

    def _breach(self, now: float, texts: Iterable[str]) -> None:
        self.breaches += (f"BREACH at {now:.6f} s, {self._name}: {text}" for text in texts)


def _lose(before: _Order, after: _Order) -> bool:
    """True where a call, or a caller that has had no turn, has lost its place."""
    for caller, queue in after.items():
        stayed = tuple(one for one in before.get(caller, ()) if one in queue)
        if stayed != queue[: len(stayed)]:
            return True
    still = [one for one in before if one in after and before[one][0] is after[one][0]]
    return still != [one for one in after if one in still]
