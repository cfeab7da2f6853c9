"""What the outcome of an attempt changes: its instance's breaker, load and rest, the rules that a
caller has added (learned limits, outliers, a throttle), and how soon discovery is asked.

An instance that this host cannot reach is at fault only if others can be reached: otherwise the
network is down, every instance would leave the rotation, and none would be in it when the network
is back. The proof is an attempt that was sent after such a failure and reached its instance: its
answer, or its refusal. So the first failure is neutral, and each later one is a fault if there is a
proof since the last that counted. "After" is counted in epochs, not in time: a failure that starts
the wait for a proof begins a new epoch, and an attempt remembers the epoch in which it was sent.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

from lbclient.core.membership import Membership
from lbclient.core.rotation import Rotation
from lbclient.endpoint import Endpoint
from lbclient.endpoint.breaker import Breaker, Permit
from lbclient.endpoint.classifier import Verdict
from lbclient.endpoint.endpoint import Share
from lbclient.resilience.concurrency_limit import AdaptiveLimit, LearnedLimit
from lbclient.resilience.outlier_detection import OutlierPolicy, Outliers
from lbclient.resilience.throttle import Throttle, ThrottlePolicy
from lbclient.telemetry import Tally

__all__ = ["OptInRules", "OutcomeCharges", "SentAttempt"]

_LONGEST_REST = 30.0
_GAIN = 1 / 16
"""What an attempt counts in the share of its instance; in that of all it counts less by their
number."""


class SentAttempt(Protocol):
    """To whom it went, with whose permit, and how long it took to the answer's headers."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it went."""
        ...

    @property
    def breaker(self) -> Breaker:
        """The endpoint's at that time: it stands for the machine that was there."""
        ...

    @property
    def permit(self) -> Permit:
        """That breaker's leave to send it."""
        ...

    @property
    def concurrent(self) -> int:
        """So many others were in flight at that endpoint when it was sent."""
        ...

    @property
    def started(self) -> float:
        """When it was sent, in clock time."""
        ...

    @property
    def epoch(self) -> int:
        """`OutcomeCharges.epoch` when it was sent."""
        ...

    @property
    def fault(self) -> str:
        """What it is called, if it was one."""
        ...

    @property
    def elapsed(self) -> float:
        """Seconds."""
        ...


class OptInRules:
    """The opt-in rules of one balancer. Told the time; not locked: its owner is."""

    def __init__(
        self,
        outliers: OutlierPolicy | None,
        limit: AdaptiveLimit | None,
        throttle: ThrottlePolicy | None,
        rng: random.Random,
    ) -> None:
        self._rng = rng
        self._throttle = None if throttle is None else Throttle(throttle)
        self._outliers = None if outliers is None else Outliers(outliers, rng)
        self._limit = limit

    def admits(self, now: float) -> bool:
        """False where the throttle keeps a new call back."""
        return self._throttle is None or self._throttle.admits(now, self._rng)

    def saw(self, attempt: SentAttempt, verdict: Verdict, now: float) -> bool:
        """An attempt that is still in flight has its verdict. True: ask for `outliers`."""
        turned_away = not verdict.good and verdict.turned_away
        if self._throttle is not None:
            (self._throttle.refused if turned_away else self._throttle.accepted)(now)
        if self._limit is not None:
            self._learn(self._limit, attempt, verdict, now, turned_away=turned_away)
        outliers = self._outliers
        if outliers is None:
            return False
        return outliers.count(attempt.endpoint, fault=verdict.fault, now=now)

    def outliers(
        self,
        tiers: Sequence[Sequence[Endpoint]],
        serving: Callable[[Endpoint], bool],
        now: float,
    ) -> list[tuple[Endpoint, float]]:
        """Whom to eject now, and for how many seconds."""
        return [] if self._outliers is None else self._outliers.verdicts(now, tiers, serving)

    def _learn(
        self,
        rule: AdaptiveLimit,
        attempt: SentAttempt,
        verdict: Verdict,
        now: float,
        *,
        turned_away: bool,
    ) -> None:
        one, elapsed = attempt.endpoint, attempt.elapsed
        learned = one.learned
        if not isinstance(learned, LearnedLimit):
            learned = one.learned = LearnedLimit()
        if turned_away:
            one.limit = learned.rejected(
                rule,
                one.limit,
                one.in_flight,
                started=attempt.started,
                elapsed=elapsed,
                now=now,
                rng=self._rng,
            )
        else:
            queued = False
            if not verdict.client_error:
                queued = rule.queued(elapsed, one.baseline_latency)
                one.baseline_latency = rule.next_baseline(
                    one.baseline_latency, elapsed, attempt.concurrent, one.limit
                )
            one.limit = learned.served(rule, one.limit, one.in_flight, queued=queued)
            if attempt.permit.probe:
                learned.resume()
        one.paused_until = learned.paused_until


class OutcomeCharges:
    """The one place where a verdict is charged. Hold the balancer's lock."""

    def __init__(
        self,
        membership: Membership,
        rotation: Rotation,
        opt_in_rules: OptInRules | None,
        clock: Callable[[], float],
        rng: random.Random,
        tally: Tally,
    ) -> None:
        self._membership = membership
        self._pool = membership.pool
        self._rotation = rotation
        self._opt_in_rules = opt_in_rules
        self._clock = clock
        self._rng = rng
        self._tally = tally
        self._faults = Share()
        self._client_errors = Share()
        self.epoch = 0
        self.proved = 0
        """The last epoch in which an attempt was sent that reached its instance."""

    def unreachable(self, attempt: SentAttempt) -> bool:
        """An attempt found no way to its instance. True if that is the instance's fault."""
        endpoint = attempt.endpoint
        if endpoint.gone or attempt.breaker is not endpoint.breaker:
            return False
        fault = 0 < endpoint.unreached <= self.proved
        if fault or not endpoint.unreached:
            self.epoch += 1
            endpoint.unreached = self.epoch
        return fault

    def reached(self, attempt: SentAttempt) -> None:
        """An attempt has reached its instance, whatever that said."""
        endpoint = attempt.endpoint
        if 0 < endpoint.unreached <= attempt.epoch:
            self._reached_again(endpoint)
        self.proved = max(self.proved, attempt.epoch)

    def _reached_again(self, endpoint: Endpoint) -> None:
        """There is a way again, so others that had none may be probed at once.

        Those that were unreachable with no proof since were so in the same outage. It is over, and
        says nothing about the next one.
        """
        endpoint.unreached = 0
        now = self._clock()
        for one in self._pool.endpoints:
            if one.unreached:
                one.breaker.at_once(now)
            if one.unreached > self.proved:
                one.unreached = 0

    def client_error(self, endpoint: Endpoint, started: float) -> float:
        """The instance says that a request is wrong. Returns how much that speaks against it.

        That is by how far its share of such answers exceeds that of all instances:
        ((own - all) / (1 - all))². Requests that are wrong are so everywhere; an instance that
        alone refuses them has a fault of its own (a token, a configuration), and answers quickly.
        """
        size = max(1, len(self._pool))
        own = endpoint.client_errors.count(endpoint.attempts, _GAIN)
        everywhere = self._client_errors.count(self._tally.picks, _GAIN / size)
        if own <= everywhere:
            return 0.0
        weight = ((own - everywhere) / (1.0 - everywhere)) ** 2
        endpoint.penalize(self._clock(), started, weight)
        return weight

    def record_outcome(self, attempt: SentAttempt, verdict: Verdict) -> None:
        """An attempt came to this verdict."""
        endpoint, breaker = attempt.endpoint, attempt.breaker
        if endpoint.gone or breaker is not endpoint.breaker:
            return  # it is nobody's any more, or that of the machine that was there before
        try:
            self._charge(attempt, verdict, endpoint, breaker)
        except BaseException:  # interrupted half-way: have the rotation look at it again
            self._pool.changed(endpoint)
            raise

    def _charge(
        self, attempt: SentAttempt, verdict: Verdict, endpoint: Endpoint, breaker: Breaker
    ) -> None:
        now = self._clock()
        if verdict.fault:
            gain = _GAIN / max(1, len(self._pool))
            failing = self._faults.count(self._tally.picks, gain)
            endpoint.failed(now, attempt.started, (1.0 - failing) ** 2)
            endpoint.last_fault = attempt.fault
        elif verdict.good and not verdict.client_error and endpoint.penalty:
            endpoint.served(now)
        if verdict.fault and verdict.again == "always":
            self._membership.request_refresh(now)
        if verdict.rest > 0:
            self._rotation.rest(endpoint, now + min(verdict.rest, _LONGEST_REST))
        if (verdict.fault or not breaker.untouched) and breaker.record_outcome(
            attempt.permit,
            fault=verdict.fault,
            now=now,
            rng=self._rng,
            elapsed=attempt.elapsed,
            started=attempt.started,
            attempts=endpoint.attempts,
            latency=endpoint.latency,
        ):
            self._rotation.turned(endpoint, breaker, now)
        opt_in_rules, paused_until = self._opt_in_rules, endpoint.paused_until
        if opt_in_rules is not None and opt_in_rules.saw(attempt, verdict, now):
            self._eject_outliers(opt_in_rules, now)
        if endpoint.paused_until != paused_until:
            self._membership.queue.wake()  # calls in line note when the pause ends

    def _eject_outliers(self, opt_in_rules: OptInRules, now: float) -> None:
        serving = frozenset(chain.from_iterable(self._pool.admissible(now)))
        for outlier, seconds in opt_in_rules.outliers(
            self._pool.tiers(), serving.__contains__, now
        ):
            self._rotation.eject(outlier, seconds, "outlier")
