"""Picks the endpoint of an attempt, with a permit to send to it, and a reason."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Literal

from lbclient._internal.failure_log import Complaint
from lbclient._internal.fork import Forkable
from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Signal
from lbclient.core.pool import Pool
from lbclient.endpoint.breaker import Breaker, BreakerPolicy, Permit
from lbclient.endpoint.endpoint import Endpoint, draw
from lbclient.resilience.concurrency_limit import Limits
from lbclient.resilience.slow_start import SlowStart
from lbclient.strategy.consistent_hash import ConsistentHash
from lbclient.strategy.protocol import Learning, Strategy
from lbclient.strategy.registry import BY_NAME
from lbclient.telemetry.events import Outbox
from lbclient.telemetry.metrics import Metrics

__all__ = ["FULL", "UNTRIED_FULL", "Pick", "PickRequest", "Picker"]

FULL: Literal["full"] = "full"
"""Returned if all admissible instances are at their limit: the call must wait in the queue."""
UNTRIED_FULL: Literal["untried full"] = "untried full"
"""Returned if all instances that a retry has not tried are at their limit: the retry must wait."""

_Full = Literal["full", "untried full"]


@dataclass(slots=True)
class Pick:
    """An endpoint, a permit to send one attempt to it, and the reason why it was chosen.

    Until the engine takes a pick, the pick is a proposal that may be dropped. After that it is the
    record of one attempt, with all data that `Engine.record_outcome` needs, but without the call
    and its response.
    """

    endpoint: Endpoint
    permit: Permit
    reason: str
    taken: bool = False
    """True while the pick counts as in flight. Changed under the lock, together with the counts."""
    elapsed: float = 0.0
    """Seconds from the start of the attempt to the headers of its response, or to its failure."""
    fault: str = ""
    """If the attempt was a fault: a status, or the name of an exception."""
    breaker: Breaker = field(init=False, repr=False, compare=False)
    """The endpoint's breaker when the pick was taken. If the endpoint has another breaker later,
    another machine has its name."""
    concurrent: int = field(init=False, repr=False, compare=False)
    """The number of other attempts in flight at the endpoint when the pick was taken."""
    started: float = field(init=False, repr=False, compare=False)
    """The clock time when the pick was taken."""
    epoch: int = field(init=False, repr=False, compare=False)
    """`Reachability.epoch` when the pick was taken."""


class PickRequest:
    """A call, or the hedge of a call, for which an endpoint is to be picked."""

    __slots__ = (
        "accepts_tried",
        "caller",
        "idempotent",
        "key",
        "now",
        "pick",
        "rng",
        "tried",
        "waiting",
    )

    caller: int | None
    """A hash that identifies the caller, or None."""
    idempotent: bool
    key: object
    now: float
    """Clock time of the latest pick, or of the start if there was none."""
    pick: Pick | None
    """A pick that no attempt has taken over yet."""
    rng: random.Random
    accepts_tried: bool
    """True once the call has waited long enough for an endpoint that it has not tried."""
    tried: list[Endpoint]
    """The endpoints that the call's attempts were sent to."""
    waiting: Signal | None
    """The signal with which the call waits, in the queue or for the first answer of discovery."""

    @property
    def under_way(self) -> Collection[Endpoint]:
        """The endpoints of `tried` that have an attempt in flight, if the call is hedged."""
        return ()


class Picker:
    """Picks endpoints from a pool. The strategy is asked only for the first attempt of a call;
    endpoints for retries, hedges and probes are chosen here.

    An endpoint that warms up (`slow_start`) is picked less often: some of its picks are discarded,
    and the strategy picks again.
    """

    def __init__(
        self,
        pool: Pool,
        strategy: Strategy,
        policy: BreakerPolicy,
        service: str,
        outbox: Outbox,
        metrics: Metrics,
        limits: Limits,
        slow_start: SlowStart | None = None,
    ) -> None:
        self._pool = pool
        self._strategy = strategy
        self.learning: Learning | None = strategy if isinstance(strategy, Learning) else None
        self._name = type(strategy).__name__
        told = partial(Complaint, outbox.add, f"{service}: strategy {self._name}")
        self._picking = told("failed to pick, so an instance was picked at random")
        self._learning = told("failed to learn")
        self._forking = told("failed in after_fork")
        self._ours = type(strategy) in BY_NAME.values()
        self._fails = not self._ours or isinstance(strategy, ConsistentHash)
        """True if the strategy may raise, because it is the user's or uses the user's key."""
        self._patience = policy.reset_timeout
        self._observing = policy.observe
        self._metrics = metrics
        self._limits = limits
        self._limited = limits.each
        self._total = limits.total
        self._slow_start = slow_start
        self._free = not (limits.each or slow_start is not None or policy.observe)
        """True if every endpoint that the strategy may pick can be used at once."""
        self._last_probe = 0.0
        self._left: Collection[object] | None = None
        self._now = 0.0
        self.in_flight: int = 0

    def after_fork(self, now: float) -> None:
        """In a forked child: let the strategy start again, since nothing is in flight."""
        self.in_flight = 0
        if isinstance(self._strategy, Forkable):
            try:
                self._strategy.after_fork()
            except Exception as error:  # noqa: BLE001  # a caller's strategy may raise anything
                self._forking.failed(now, error)

    def pick(
        self, call: PickRequest, now: float, left: Collection[object] | None = None
    ) -> Pick | _Full | None:
        """Return a pick, `FULL`, `UNTRIED_FULL`, or None if no instance may be used now.

        If `left` is given, other calls wait for the endpoints that are not in `left`, so those
        endpoints count as full.
        """
        self._left, self._now = left, now
        total = self._total
        if total is not None and self.in_flight >= total:
            return FULL
        candidates = self._pool.candidates(now)
        if self._pool.open_breakers and (probe := self._probe(call, now, needed=not candidates)):
            return probe
        if not candidates:
            return self._last_resort(call, now)
        if call.tried:
            return self._another(call, candidates, now)
        if self._free:
            picked = self._ask(candidates, call)
            return Pick(picked, picked.breaker.permit, self._name)
        if self._slow_start is None:
            picked = self._ask(candidates, call)
        else:
            picked = self._ask_gently(self._slow_start, candidates, call)
        roomy: Endpoint | None = picked
        if self._limited and (left is not None or self._full(picked)):
            roomy = self._with_room(picked, candidates)
        return FULL if roomy is None else self._let(roomy, self._name, now)

    def pick_hedge(self, call: PickRequest, now: float) -> Pick | None:
        """Pick an untried endpoint with room, in the tier that serves, for a hedge. Returns None if
        there is no such endpoint."""
        total = self._limits.total
        if total is not None and self.in_flight >= total:
            return None
        self._left, self._now = None, now
        candidates = self._pool.candidates(now)
        untried = [
            endpoint
            for endpoint in candidates
            if endpoint not in call.tried and not self._full(endpoint)
        ]
        return self._let(draw(untried, call.rng), "hedge", now) if untried else None

    def free(self, now: float) -> Sequence[Endpoint]:
        """The admissible endpoints that have room, in any tier."""
        self._now = now
        total = self._limits.total
        if total is not None and self.in_flight >= total:
            return ()
        tiers = self._pool.admissible(now)
        return [endpoint for tier in tiers for endpoint in tier if not self._full(endpoint)]

    def freed(self, endpoint: Endpoint, now: float) -> Sequence[Endpoint]:
        """The endpoints at which a slot that has become free at `endpoint` may be used. If there is
        a limit for all endpoints together, these are all endpoints with room.
        """
        if self._limits.total is None:
            return (endpoint,)
        return [endpoint, *(other for other in self.free(now) if other is not endpoint)]

    def changes_at(self, now: float) -> float:
        """The next time at which a pick that found no room may succeed only because time has
        passed, or `math.inf`."""
        at = self._pool.changes_at(now, self._patience)
        if self._limits.adaptive is None:
            return at
        ends = (
            endpoint.paused_until
            for endpoint in self._pool.endpoints
            if endpoint.paused_until > now
        )
        return min(at, min(ends, default=at))

    def retry_in(self, now: float) -> float | None:
        """Seconds until an attempt may be sent again."""
        wait, back = self._pool.probe_in(now), self._pool.back_in(now)
        if wait:
            wait = min(wait, max(0.0, self._last_probe + self._patience - now))
        return min((seconds for seconds in (wait, back) if seconds is not None), default=None)

    def record_outcome(
        self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float
    ) -> None:
        """Tell a strategy that learns how an attempt ended. Call this method with the lock held."""
        if self.learning is None:
            return
        try:
            self.learning.ended(endpoint, elapsed, failed=failed, now=now)
        except Exception as error:
            if not self._fails or is_interruption(error):
                raise
            self._learning.failed(now, error)
        else:
            if self._learning.failing:
                self._learning.recovered()

    def tripped(self, now: float) -> None:
        """Record that a breaker has opened. While no endpoint is in rotation, the next probe is
        sent `reset_timeout` seconds from now at the earliest."""
        self._last_probe = now

    def _probe(self, call: PickRequest, now: float, *, needed: bool) -> Pick | None:
        """Return a pick for a probe that is due, or None. This method is called before the strategy
        picks. Probes are preferably given to calls that may be repeated."""
        endpoint = self._pool.probe_due(now)
        if endpoint is None or endpoint in call.tried or self._limits.full(endpoint):
            return None
        overdue = now - endpoint.breaker.due >= self._patience
        if not (call.idempotent or needed or overdue):
            return None
        return self._probing(endpoint, now)

    def _last_resort(self, call: PickRequest, now: float) -> Pick | _Full | None:
        """Pick an endpoint although none is in rotation. This is an endpoint that only backs off.
        If there is none, one endpoint is probed, at most once every `reset_timeout` seconds."""
        if (soonest := self._pool.backing_off(now)) is not None and soonest not in call.under_way:
            return FULL if self._full(soonest) else self._let(soonest, "resting", now)
        if now - self._last_probe < self._patience:
            return None
        endpoint = self._pool.due_soonest(now)
        if endpoint is None or endpoint in call.tried or self._limits.full(endpoint):
            return None
        return self._probing(endpoint, now)

    def _another(
        self, call: PickRequest, candidates: Sequence[Endpoint], now: float
    ) -> Pick | _Full | None:
        """Draw at random an endpoint that the call has not tried, from the best tier that has one
        with room. If no tier has one, use an endpoint that the call has tried.

        If all untried endpoints are in rotation but full, the call waits for them, since they are
        probably healthy. If none of them has a free slot in time (`accepts_tried`), a tried
        endpoint is used, unless another attempt of the call is in flight there.
        """
        full = False
        for tier in self._pool.admissible(now):
            untried = [
                endpoint
                for endpoint in tier
                if endpoint not in call.tried and endpoint.paused_until <= now
            ]
            if roomy := [endpoint for endpoint in untried if self._has_room(endpoint)]:
                return self._let(draw(roomy, call.rng), "retry", now)
            full = full or bool(untried)
        if full and not call.accepts_tried:
            return UNTRIED_FULL
        racing = call.under_way
        if roomy := [
            endpoint
            for endpoint in candidates
            if endpoint not in racing and self._has_room(endpoint)
        ]:
            reason = "retry, others full" if full else "retry, all tried"
            return self._let(draw(roomy, call.rng), reason, now)
        return None if racing else FULL

    def _ask_gently(
        self, slow_start: SlowStart, candidates: Sequence[Endpoint], call: PickRequest
    ) -> Endpoint:
        """Ask the strategy, and perhaps ask it again if its pick warms up."""
        ask = partial(self._ask, candidates, call)
        return slow_start.thinned(ask, _warm_since, call.now, call.rng)

    def _ask(self, candidates: Sequence[Endpoint], call: PickRequest) -> Endpoint:
        if not self._fails:
            return self._strategy.pick(candidates, call)
        try:
            endpoint = self._strategy.pick(candidates, call)
            if self._ours or _usable(endpoint, candidates):
                if self._picking.failing:
                    self._picking.recovered()
                return endpoint
            self._picking.failed(call.now, detail=f"{endpoint!r} is not a candidate")
        except Exception as error:
            if is_interruption(error):
                raise
            self._picking.failed(call.now, error)
        return draw(candidates, call.rng)

    def _with_room(self, first: Endpoint, candidates: Sequence[Endpoint]) -> Endpoint | None:
        """Return the picked endpoint, or the next endpoint after it that is below its limit."""
        place = candidates.index(first) if first in candidates else 0
        order = (*candidates[place:], *candidates[:place])
        return next((endpoint for endpoint in order if self._has_room(endpoint)), None)

    def _full(self, endpoint: Endpoint) -> bool:
        return self._limited and (self._now < endpoint.paused_until or self._limits.full(endpoint))

    def _has_room(self, endpoint: Endpoint) -> bool:
        """True for an endpoint below its limit that no other call waits for."""
        return (self._left is None or endpoint in self._left) and not self._full(endpoint)

    def _let(self, endpoint: Endpoint, reason: str, now: float) -> Pick:
        """Pick an endpoint with a permit of its breaker. If the breaker only observes, count the
        attempts that it would have refused.
        """
        if not self._observing or endpoint.breaker.closed:
            return Pick(endpoint, endpoint.breaker.permit, reason)
        permit = endpoint.breaker.observed(now)
        if permit.refused:
            self._metrics.would_refuse()
        return Pick(endpoint, permit, reason)

    def _probing(self, endpoint: Endpoint, now: float) -> Pick:
        self._last_probe = now
        return Pick(endpoint, endpoint.breaker.probe(now), "probe")


_warm_since: Callable[[Endpoint], float] = attrgetter("warm_since")


def _usable(endpoint: object, candidates: Sequence[Endpoint]) -> bool:
    """False for an endpoint that has left or failed. A user's strategy may have kept such an
    endpoint from an earlier call.
    """
    if not isinstance(endpoint, Endpoint) or endpoint.gone:
        return False
    return not endpoint.breaker.refuses or endpoint in candidates
