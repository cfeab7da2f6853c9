"""One pick: which endpoint an attempt goes to, with what permit, and why."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from logging import ERROR
from typing import Literal, NamedTuple, Protocol

from lbclient import checks
from lbclient.breaker import BreakerPolicy, Permit
from lbclient.endpoint import Endpoint, draw
from lbclient.news import News
from lbclient.pool import Pool
from lbclient.strategy import BY_NAME, Strategy

__all__ = ["FULL", "Pick", "Picker", "Selection"]

FULL: Literal["full"] = "full"
"""Instances are admissible, but all are at their limit: wait in turn."""


class Pick(NamedTuple):
    """An endpoint with leave to send one attempt to it, and the reason it was chosen."""

    endpoint: Endpoint
    permit: Permit
    reason: str


class Picker(Protocol):
    """What selection asks of the call that it picks for."""

    rng: random.Random
    now: float
    key: object
    idempotent: bool

    @property
    def tried(self) -> Collection[Endpoint]:
        """Endpoints that its attempts went to."""
        ...


class Selection:
    """Picks from a pool by the rules; the strategy decides the ordinary first attempt only.

    `limit` (`max_in_flight`) is the most attempts in flight at one instance, `total` at all of them
    together. Raises ValueError or TypeError for what are no such numbers.
    """

    def __init__(
        self,
        pool: Pool,
        strategy: Strategy,
        policy: BreakerPolicy,
        news: News,
        limit: int | None = None,
        total: int | None = None,
    ) -> None:
        checks.limit("max_in_flight", limit)
        checks.limit("max_in_flight_total", total)
        self._pool = pool
        self._strategy = strategy
        self._news = news
        self._name = type(strategy).__name__
        self._ours = type(strategy) in BY_NAME.values()
        self._patience = policy.reset_timeout
        self._limit = limit
        self._total = total
        self._last_probe = 0.0
        self.in_flight = 0

    def pick(self, call: Picker, now: float) -> Pick | Literal["full"] | None:
        """A pick, `FULL`, or None where no instance may be used now."""
        if self._total is not None and self.in_flight >= self._total:
            return FULL
        candidates = self._pool.candidates(now)
        if self._pool.broken and (probe := self._probe(call, now, needed=not candidates)):
            return probe
        if not candidates:
            return self._last_resort(call, now)
        if call.tried:
            return self._another(call, candidates, now)
        picked = self._ask(candidates, call)
        if self._limit is None:
            return Pick(picked, picked.breaker.permit, self._name)
        roomy = self._with_room(picked, candidates)
        return FULL if roomy is None else Pick(roomy, roomy.breaker.permit, self._name)

    def retry_in(self, now: float) -> float | None:
        """Seconds until an attempt may be let through."""
        wait = self._pool.retry_in(now)
        return wait and min(wait, max(0.0, self._last_probe + self._patience - now))

    def tripped(self, now: float) -> None:
        """A breaker has opened: the last resort waits from now."""
        self._last_probe = now

    def _probe(self, call: Picker, now: float, *, needed: bool) -> Pick | None:
        """A due probe goes before the strategy, to a call that may be repeated if one comes."""
        endpoint = self._pool.probe_due(now)
        if endpoint is None or endpoint in call.tried or self._full(endpoint):
            return None
        overdue = now - endpoint.breaker.due >= self._patience
        if not (call.idempotent or needed or overdue):
            return None
        return self._probing(endpoint, now)

    def _last_resort(self, call: Picker, now: float) -> Pick | Literal["full"] | None:
        """Nobody is admissible: whoever merely rests, else one probe per `reset_timeout`."""
        if (resting := self._pool.resting()) is not None:
            return FULL if self._full(resting) else _again(resting, "resting")
        if now - self._last_probe < self._patience:
            return None
        endpoint = self._pool.due_soonest(now)
        if endpoint is None or endpoint in call.tried or self._full(endpoint):
            return None
        return self._probing(endpoint, now)

    def _another(
        self, call: Picker, candidates: Sequence[Endpoint], now: float
    ) -> Pick | Literal["full"]:
        """An untried one by dice, also of the next tier, before any is tried twice."""
        for tier in self._pool.admissible(now):
            untried = [one for one in tier if one not in call.tried and not self._full(one)]
            if untried:
                return _again(draw(untried, call.rng), "retry")
        roomy = [one for one in candidates if not self._full(one)]
        return _again(draw(roomy, call.rng), "retry, all tried") if roomy else FULL

    def _ask(self, candidates: Sequence[Endpoint], call: Picker) -> Endpoint:
        try:
            endpoint = self._strategy.pick(candidates, call)
            if self._ours or _usable(endpoint, candidates):
                return endpoint
            self._news.add(ERROR, "strategy %s picked %r, not a candidate", self._name, endpoint)
        except Exception as error:  # noqa: BLE001  # a caller's strategy may raise anything
            self._news.add(
                ERROR, "strategy %s failed; picked by dice instead", self._name, error=error
            )
        return draw(candidates, call.rng)

    def _with_room(self, first: Endpoint, candidates: Sequence[Endpoint]) -> Endpoint | None:
        """The picked one, or the next after it that is not at its limit."""
        if not self._full(first):
            return first
        place = candidates.index(first)
        order = (*candidates[place + 1 :], *candidates[:place])
        return next((one for one in order if not self._full(one)), None)

    def _full(self, endpoint: Endpoint) -> bool:
        return self._limit is not None and endpoint.in_flight >= self._limit

    def _probing(self, endpoint: Endpoint, now: float) -> Pick:
        self._last_probe = now
        return Pick(endpoint, endpoint.breaker.probe(now), "probe")


def _again(endpoint: Endpoint, reason: str) -> Pick:
    return Pick(endpoint, endpoint.breaker.permit, reason)


def _usable(endpoint: object, candidates: Sequence[Endpoint]) -> bool:
    """A caller's own strategy may have kept an endpoint that left, or broke, since."""
    if not isinstance(endpoint, Endpoint) or endpoint.gone:
        return False
    return endpoint.breaker.closed or endpoint in candidates
