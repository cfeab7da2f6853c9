"""What must hold at every step of every run, whatever happens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from lbclient.breaker import Breaker, Permit
from lbclient.call import Attempt
from lbclient.core import Core
from lbclient.endpoint import Endpoint
from lbclient.rules import Limits
from lbclient.simulation.oracle import Moment
from lbclient.simulation.picks import of_call, of_pick
from lbclient.simulation.reply import Reply
from lbclient.simulation.trail import Trail
from lbclient.waiting import Signal

__all__ = ["Invariants"]

_SLACK = 1e-6
_PROBE = 30.0
"""A probe that has not ended after so many seconds is given up at the earliest."""
_FIRST = 8
"""So many of the callers in line are looked at, and so many calls of each."""
_Order = Mapping[int | None, Sequence[Signal]]
_SLICE = 0.9
"""A budget forgets by slices, up to a tenth of its window early."""


class Invariants:
    """Looks at one balancer as each attempt is sent, between events, and at the end."""

    def __init__(self, core: Core, name: str, limits: Limits, panic: float) -> None:
        self._core = core
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
        alone = not trail.attempts and not self._core.line
        if error == "NoInstanceAvailable" and alone and (free := self._free(now)):
            self._breach(now, [f"a call found no instance, room has {free}"])

    def between(self, now: float) -> None:
        """One thing has happened, and another is to happen, now or later."""
        line = self._core.line
        if not line:
            self._order, self._first, self._woken = {}, None, {}
            return
        first = line.first if line.waiting else None
        retries = [one for place, one in enumerate(line.retries) if place < _FIRST or one.is_set]
        look = [*retries, *([] if first is None else [first])]
        self._woken = {one: self._woken.get(one, now) for one in look if one.is_set}
        if free := self._left_free(look, now):
            self._breach(now, [f"{len(line)} in line, nobody wakes them, room has {free}"])
        if first is self._first:
            return
        turns = islice(line.turns.items(), _FIRST)
        order = {caller: tuple(islice(queue, _FIRST)) for caller, queue in turns}
        if _overtaken(self._order, order):
            self._breach(now, ["somebody in line was overtaken"])
        self._order, self._first = order, first

    def over(self, now: float) -> None:
        """Nothing is under way any more."""
        endpoints = {**dict.fromkeys(self._core.pool.endpoints), **self._attempts}
        self._breach(now, chain.from_iterable(self._of_load(one, now) for one in endpoints))
        left = {
            "in flight": [one for one in endpoints if one.in_flight],
            "in flight, in all": [] if self._core.drained().is_set else [self._core.service],
            "probed": [one for one in endpoints if not one.gone and one.breaker.probing(now)],
            "in line": [*self._core.line.waiting, *self._core.line.retries],
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
        hedging = self._core.hedging
        hedges = None if hedging is None else hedging.budget
        retries = self._core.retries.budget
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
            unwanted = self._core.line.retries.get(one, ())
            wanted = chain.from_iterable(moment.open) if unwanted else moment.serving
            has_room = moment.roomy(wanted, unwanted)
            roomy = [it for it in has_room if it not in spoken_for]
            comes = self._comes(one, now)
            if roomy and places > 0 and not comes:
                return roomy
            places -= bool(has_room if comes else roomy)
            spoken_for.update(it for it in self._core.pool.endpoints if it not in unwanted)
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
        if self._limits.each and all(map(self._limits.full, self._core.pool.endpoints)):
            return None
        lately = now - _SLACK
        ends = chain.from_iterable(
            (it.rest_until, it.out_until, it.paused_until) for it in self._core.pool.endpoints
        )
        return None if any(lately <= at <= now for at in ends) else self._moment(now)

    def _in_flight(self) -> int:
        return sum(one.in_flight for one in self._attempts)

    def _moment(self, now: float) -> Moment:
        return Moment(self._core.pool, self._limits, self._panic, now)

    def _breach(self, now: float, texts: Iterable[str]) -> None:
        self.breaches += (f"BREACH at {now:.6f} s, {self._name}: {text}" for text in texts)


def _overtaken(before: _Order, after: _Order) -> bool:
    """True where a call, or a caller that has had no turn, has lost its place."""
    for caller, queue in after.items():
        stayed = tuple(one for one in before.get(caller, ()) if one in queue)
        if stayed != queue[: len(stayed)]:
            return True
    still = [one for one in before if one in after and before[one][0] is after[one][0]]
    return still != [one for one in after if one in still]
