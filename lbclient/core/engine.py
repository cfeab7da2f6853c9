"""The state that all calls of one balancer share, and the decisions that change it.

All decisions are made under one lock, which is never held across I/O, a sleep or an await. The
lock, the clock and the random number generator are passed in.

An exception may be raised between any two lines: by a signal handler (Celery's soft limit, Ctrl-C
in a notebook), or by another thread. CPython checks for such exceptions only when a function
begins, after a call of a C function, and at backward jumps. So a slot or a permit is first recorded
in an object that the call already holds. Records and counts change together in lines that call no
function: either all of these lines run, or none. tests/stress/test_interruptions.py raises an
exception at each of these points.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import chain
from weakref import ref

from lbclient._internal.failure_log import Complaint, log_now
from lbclient._internal.signals import Signal
from lbclient._internal.statistics import Ewma
from lbclient.core.membership import Membership
from lbclient.core.opt_in_rules import OptInRules
from lbclient.core.picker import UNTRIED_FULL, Pick, Picker, PickRequest
from lbclient.core.pool import Pool
from lbclient.core.rotation import Reachability, Rotation
from lbclient.core.wait_queue import WaitQueue
from lbclient.discovery.subscription import ServiceSubscription
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.classifier import Verdict
from lbclient.endpoint.endpoint import Endpoint, Share
from lbclient.errors import NoInstanceAvailable, Throttled
from lbclient.resilience.hedging import Hedging
from lbclient.resilience.retry import RetryRules
from lbclient.resilience.throttle import Throttle
from lbclient.telemetry.events import AttemptPicked, Outbox
from lbclient.telemetry.metrics import Tally
from lbclient.telemetry.spans import Telemetry

__all__ = ["Engine", "SlotOwner"]

_GAIN = 0.1
_SHARE_GAIN = 1 / 16
"""The weight of one attempt in the share of client errors of its instance. In the share of all
instances, this weight is divided by the number of instances."""
_TAKES = 3.0
"""Nearly all answers take at most this many times the mean. (With an exponential distribution, one
in twenty takes longer.)"""


class SlotOwner(ref[object]):
    """A weak reference to an object of the user that holds a slot, such as a response.

    `give_back` is called after that object was garbage collected. A method `__del__` would not be
    safe: an exception from a signal handler may come at its first instruction, and the slot would
    be lost. The callback of a weak reference may be a C function, which cannot be interrupted.
    """

    __slots__ = ("give_back",)

    give_back: Callable[[], object]


class Engine:
    """Makes the decisions of one balancer, and holds the state that they need."""

    def __init__(
        self,
        membership: Membership,
        *,
        picker: Picker,
        retry_rules: RetryRules,
        opt_in_rules: OptInRules | None,
        hedging: Hedging | None,
        telemetry: Telemetry,
        outbox: Outbox,
        clock: Callable[[], float],
        rng: random.Random,
        lock: AbstractContextManager[object],
        look_again: float,
    ) -> None:
        self.membership = membership
        self.service: str = membership.subscription.service
        self.subscription: ServiceSubscription = membership.subscription
        self.pool: Pool = membership.pool
        self.retry_rules = retry_rules
        self.opt_in_rules = opt_in_rules
        self.hedging = hedging
        self.telemetry = telemetry
        self.tally: Tally = Tally()
        self.outbox = outbox
        self.clock = clock
        self.rng = rng
        self.lock: AbstractContextManager[object, bool | None] = lock
        self.owners: set[SlotOwner] = set()
        """One `SlotOwner` for each object that was given to the user and still holds a slot, such
        as a response."""
        self.deferred_releases: deque[SlotOwner] = deque()
        """Owners whose objects were garbage collected, and whose slots are still to be given back.
        Garbage collection may happen at any time, even while the lock is held, so the slots are
        given back later."""
        self.mean_latency: Ewma[float | None] = Ewma(_GAIN, None)
        """The mean time to an answer, in seconds, over all instances."""
        self.abandoned = False
        """True once the connections of calls under way are being closed."""
        self._picker = picker
        self._watched = opt_in_rules is not None or picker.learning is not None
        """True if an opt-in rule or the strategy must be told every outcome."""
        self.queue: WaitQueue = membership.queue
        self.look_again = look_again
        """Seconds after which the first call in the queue looks for a slot again without being
        woken. A response that is garbage collected unclosed gives its slot back without waking a
        call. `math.inf` in virtual time."""
        self.discarding: Complaint = Complaint(
            log_now, f"{self.service}: a response that arrived too late", "could not be closed"
        )
        self.calls: dict[object, Signal | None] = {}
        """The calls under way, each with the signal that ends its back-off."""
        self.closing: dict[Signal, None] = {}
        """Signals to set once no call is under way and no attempt is in flight."""
        self.rotation: Rotation = Rotation(
            membership, picker, telemetry.metrics, outbox, clock, rng
        )
        self.reachability: Reachability = Reachability(self.pool, clock)
        self._faults = Share()
        self._client_errors = Share()
        budgets = (retry_rules.budget, None if hedging is None else hedging.budget)
        self._budgets = [budget for budget in budgets if budget is not None]
        """The retry budget and the hedging budget, if there are any. Each call adds to both."""
        telemetry.metrics.observe(self)

    @property
    def age(self) -> float | None:
        """Seconds since the last good answer of discovery; None for a list that never changes."""
        return None if self.subscription.is_static else self.subscription.age(self.clock())

    @property
    def size(self) -> int:
        """The number of known instances."""
        return len(self.pool)

    @property
    def in_flight(self) -> int:
        """The number of attempts in flight."""
        return self._picker.in_flight

    @property
    def answer_time(self) -> float | None:
        """The seconds within which nearly all answers arrive; None before the first answer."""
        mean = self.mean_latency.value
        return None if mean is None else _TAKES * mean

    def stop(self) -> None:
        """Stop discovery."""
        self.membership.stop()
        self.telemetry.metrics.forget(self)

    def after_fork(self, lock: AbstractContextManager[object]) -> None:
        """In a forked child: take a new lock, and forget the calls of the parent. The times of
        probes and the positions of strategies are chosen anew, so that they differ from those of
        the parent. The random number generator already has a new seed."""
        self.lock = lock
        self.calls.clear()
        self.closing.clear()
        self.queue.clear()
        self.membership.after_fork(lock)
        now = self.clock()
        self.pool.spread(now, self.rng)
        self._picker.after_fork(now)

    def admit(self, call: PickRequest, holding: Pick | None) -> Pick | Signal | None:
        """Pick an instance for the next attempt of `call`, count this attempt as in flight, and
        store the pick in `call.pick`.

        Returns a signal if the call has to wait first, or None if no instance may be used.
        `holding` is the pick of the previous attempt, if that attempt still has its slot. This slot
        is released first, so that the next attempt may use it. Raises DiscoveryError if there is no
        usable answer of discovery, and Throttled if the throttle refuses the call.
        """
        clock = self.clock
        with self.lock:
            now = call.now = clock()
            if self.deferred_releases:
                self.run_deferred()
            discovery = self.membership
            ready = (
                self.subscription.fresh and discovery.generation is discovery.scheduler.generation
            )
            if not ready and discovery.must_wait_until_resolved(now):
                return self._wait_for_answer(call)
            rules = self.opt_in_rules
            if rules is not None and rules.throttle and call.waiting is None and not call.tried:
                self._apply_throttle(rules.throttle, now)
            if self.queue.waiting and not self.queue.passes(call.waiting):
                return self._join(call, retry=False)
            left = self.queue.left_for(call.waiting) if self.queue.retries else None
            if holding is not None:
                self.release(holding, wake=False)
            pick = self._picker.pick(call, now, left)
            if isinstance(pick, Pick):
                self._take(pick, call, now, holding, first=not call.tried)
                return pick
            if holding is not None:
                self._retake(holding)
            if pick is None:
                self.membership.request_refresh(now)
                return None
            return self._join(call, retry=pick is UNTRIED_FULL)

    def _wait_for_answer(self, call: PickRequest) -> Signal:
        signal = _signal_of(call)
        self.queue.leave(signal)
        signal.rearm()
        self.subscription.wait(signal)
        return signal

    def _join(self, call: PickRequest, *, retry: bool) -> Signal:
        signal = _signal_of(call)
        if retry:
            return self.queue.join_retries(signal, call.tried, self._free(signal))
        return self.queue.join(signal, call.caller)

    def _free(self, signal: Signal) -> Iterable[Endpoint]:
        """The endpoints with free slots, if `signal` belongs to a retry that waits separately for a
        slot.
        """
        return self._picker.free(self.clock()) if signal in self.queue.retries else ()

    def _apply_throttle(self, throttle: Throttle, now: float) -> None:
        if not throttle.admits(now, self.rng):
            self.telemetry.metrics.throttled()
            raise Throttled(f"{self.service} rejects most calls, so this call was not sent")

    def pick_hedge(self, call: PickRequest) -> Pick | None:
        """Pick an instance for a second attempt while the first of `call` is in flight, or return
        None.

        A hedge never waits for a slot. There is no hedge while other calls wait in the queue, or if
        the hedging budget is empty.
        """
        with self.lock:
            now = call.now = self.clock()
            late = self.queue or self.membership.ended
            pick = None if late else self._picker.pick_hedge(call, now)
            if pick is None:
                return None
            budget = None if self.hedging is None else self.hedging.budget
            if budget is not None and not budget.withdraw(now):
                self.telemetry.metrics.hedge_refused()
                return None
            self._take(pick, call, now, None, first=False)
            self.telemetry.metrics.hedge()
            return pick

    def changes_at(self, now: float) -> float:
        """The next time at which the first call in the queue may get an instance only because time
        has passed; `math.inf` if there is no such time.

        An example is the end of an ejection. No event wakes the queue at such a time.
        """
        with self.lock:
            return min(self._picker.changes_at(now), self.subscription.changes_at)

    def refusal(self) -> NoInstanceAvailable:
        """Create the error that says why no instance may be used now."""
        with self.lock:
            now = self.clock()
            retry_in = self._picker.retry_in(now)
            shown = self.pool.describe(now)
        when = "" if retry_in is None else f"; try again in {retry_in:.2f} s"
        return NoInstanceAvailable(
            f"no instance of {self.service} may be used now: {shown}{when}", retry_in
        )

    def leave(self, signal: Signal) -> None:
        """Remove the call that waited with `signal` from the queue, since the call has a pick or
        has given up."""
        with self.lock:
            try:
                self.subscription.forget(signal)
                self.queue.leave(signal, free=self._free(signal))
            except BaseException:
                self.queue.wake()
                raise

    def _take(
        self, pick: Pick, call: PickRequest, now: float, gave_up: Pick | None, *, first: bool
    ) -> None:
        """Count the pick as in flight. If it is a probe, the probe begins.

        `gave_up` is the pick whose slot was released before. Another call may take that slot now.
        """
        endpoint, picker, permit = pick.endpoint, self._picker, pick.permit
        # These lines call no function: see the top of this file.
        call.pick = pick
        pick.breaker = endpoint.breaker
        pick.concurrent = endpoint.in_flight
        pick.started = now
        pick.epoch = self.reachability.epoch
        pick.taken = True
        endpoint.in_flight += 1
        picker.in_flight += 1
        if permit.expires is not None:
            endpoint.breaker.probe_permit = permit
        endpoint.attempts += 1
        self.tally.picks += 1
        if self.outbox.has_listener:
            self.rotation.emit(AttemptPicked, endpoint, pick.reason)
        if first:
            for budget in self._budgets:
                budget.deposit(now)
        if gave_up is not None and self.queue:
            self._wake(gave_up.endpoint)
        if call.waiting is not None:
            self.queue.leave(call.waiting, served=True, free=self._free(call.waiting))

    def _retake(self, pick: Pick) -> None:
        """Take a released slot back, since no instance was found for the next attempt."""
        endpoint, picker = pick.endpoint, self._picker
        # These lines call no function: see the top of this file.
        pick.taken = True
        endpoint.in_flight += 1
        picker.in_flight += 1

    def record_answer(self, pick: Pick, verdict: Verdict, *, held: bool) -> None:
        """Record the latency and the outcome of an attempt that was answered, and release its slot.

        If the attempt is `held`, its outcome is recorded and its slot is released later, at the end
        of its body. The latency of a rejection or a fault is recorded only if it is longer than the
        mean latency: a fast error is not a fast answer. The latency of a client error (4xx) is not
        recorded.
        """
        endpoint, elapsed, clean = pick.endpoint, pick.elapsed, verdict.clean
        with self.lock:
            if endpoint.unreached or pick.epoch != self.reachability.proved:
                self.reachability.record_success(pick)
            if clean or (
                not verdict.client_error
                and (verdict.good or elapsed > (endpoint.mean_latency.value or math.inf))
            ):
                endpoint.mean_latency.record(elapsed)
                # `Ewma.record`, repeated here to save a function call in each call.
                mean, old = self.mean_latency, self.mean_latency.value
                mean.value = elapsed if old is None else old + mean.gain * (elapsed - old)
                if self.hedging is not None:
                    self.hedging.record_latency(elapsed)
            if held:
                return
            if self._watched or not clean or endpoint.penalty or not pick.breaker.untouched:
                self.record_outcome(pick, verdict)  # otherwise there is nothing to record
            self.release(pick)

    def record_outcome(self, pick: Pick, verdict: Verdict | None) -> None:
        """Record the outcome of an attempt, once: on its endpoint, its breaker, the rules of
        `opt_in_rules.py` and a strategy that learns. With None as the verdict, only the permit is
        given back. Call this method with the lock held."""
        breaker = pick.breaker
        if verdict is None:
            breaker.cancel(pick.permit)
            return
        endpoint, weight = pick.endpoint, 0.0
        if verdict.client_error:
            weight = self._record_client_error(endpoint, pick.started)
        if self._picker.learning is not None and not (
            verdict.client_error and self.rng.random() >= weight
        ):
            failed = verdict.client_error or verdict.turned_away
            self._picker.record_outcome(endpoint, pick.elapsed, failed=failed, now=self.clock())
        uneventful = (
            verdict.good and not verdict.rest and not endpoint.penalty and self.opt_in_rules is None
        )
        if uneventful and (breaker.untouched or breaker.success_is_noop):
            return
        if endpoint.gone or breaker is not endpoint.breaker:
            return  # the instance has left, or another machine has its name now
        try:
            self._charge(pick, verdict, endpoint, breaker)
        except BaseException:  # the update was interrupted: the pool must check this endpoint again
            self.pool.changed(endpoint)
            raise

    def _charge(self, pick: Pick, verdict: Verdict, endpoint: Endpoint, breaker: Breaker) -> None:
        now = self.clock()
        if verdict.fault:
            gain = _SHARE_GAIN / max(1, len(self.pool))
            failing = self._faults.count(self.tally.picks, gain)
            endpoint.record_fault(now, pick.started, (1.0 - failing) ** 2)
            endpoint.last_fault = pick.fault
        elif verdict.good and not verdict.client_error and endpoint.penalty:
            endpoint.record_success(now)
        if verdict.fault and verdict.again == "always" and not verdict.rejected:
            self.membership.request_refresh(now)
        if verdict.rest > 0:
            self.back_off(pick, verdict.rest)
        if (verdict.fault or not breaker.untouched) and breaker.record_outcome(
            pick.permit,
            fault=verdict.fault,
            now=now,
            rng=self.rng,
            elapsed=pick.elapsed,
            started=pick.started,
            attempts=endpoint.attempts,
            latency=endpoint.mean_latency.value,
        ):
            self.rotation.follow_breaker(endpoint, breaker, now)
        opt_in_rules, paused_until = self.opt_in_rules, endpoint.paused_until
        if opt_in_rules is not None and opt_in_rules.record_outcome(pick, verdict, now):
            self._eject_outliers(opt_in_rules, now)
        if endpoint.paused_until != paused_until:
            self.queue.wake()  # calls in the queue must learn when the pause ends

    def back_off(self, pick: Pick, seconds: float) -> None:
        """Put an instance out of rotation for the time that it asked for, at most
        `retry_after_max`. Call this method with the lock held."""
        endpoint = pick.endpoint
        seconds = min(seconds, self.retry_rules.policy.retry_after_max)
        if seconds > 0 and not endpoint.gone and pick.breaker is endpoint.breaker:
            self.rotation.back_off(endpoint, self.clock() + seconds)

    def _record_client_error(self, endpoint: Endpoint, started: float) -> float:
        """Record a client error (4xx), and return the weight with which it counts as a failure.

        The weight is ((own - all) / (1 - all))². Here own is the share of client errors among the
        answers of this instance, and all is the same share over all instances. Every instance
        refuses a wrong request. If only one instance refuses requests, this instance has a problem
        (such as a wrong token or configuration). It also answers fast, so without this weight it
        would get more and more calls.
        """
        size = max(1, len(self.pool))
        own = endpoint.client_errors.count(endpoint.attempts, _SHARE_GAIN)
        everywhere = self._client_errors.count(self.tally.picks, _SHARE_GAIN / size)
        if own <= everywhere:
            return 0.0
        weight = ((own - everywhere) / (1.0 - everywhere)) ** 2
        endpoint.penalize(self.clock(), started, weight)
        return weight

    def _eject_outliers(self, opt_in_rules: OptInRules, now: float) -> None:
        serving = frozenset(chain.from_iterable(self.pool.admissible(now)))
        for outlier, seconds in opt_in_rules.outliers(self.pool.tiers(), serving.__contains__, now):
            self.rotation.eject(outlier, seconds, "outlier")

    def record_loss(self, pick: Pick) -> None:
        """Record that another attempt of the call was faster. The time of this attempt so far is a
        lower bound of its latency.
        """
        endpoint, elapsed = pick.endpoint, pick.elapsed
        with self.lock:
            if elapsed > (endpoint.mean_latency.value or 0.0):
                endpoint.mean_latency.record(elapsed)
            self._picker.record_outcome(endpoint, elapsed, failed=False, now=self.clock())

    def record_dropped(self, pick: Pick, verdict: Verdict) -> None:
        """Record a good attempt whose response was garbage collected before it was closed."""
        with self.lock:
            self.record_outcome(pick, verdict)
            self.release(pick)

    def record_health(
        self, endpoint: Endpoint, breaker: Breaker, *, healthy: bool, why: str
    ) -> None:
        """Record the result of active checks, and `why` they fail. If `breaker` is no longer the
        endpoint's breaker, the checks reached another machine, and the result is ignored."""
        with self.lock:
            void = endpoint.gone or endpoint.breaker is not breaker
            if not void and endpoint.healthy is not healthy:
                self.rotation.record_health(endpoint, healthy=healthy, why=why)
        self.outbox.publish()

    def end_probe(self, pick: Pick) -> None:
        """End a probe whose response has good headers, so that another probe may begin before the
        body is read."""
        with self.lock:
            pick.breaker.cancel(pick.permit)

    def give_back(self, pick: Pick) -> None:
        """Give back the permit and the slot of a pick that never became an attempt."""
        with self.lock:
            pick.breaker.cancel(pick.permit)
            self.release(pick)

    def release(self, pick: Pick, *, wake: bool = True) -> None:
        """Stop counting an attempt as in flight, and `wake` a call that waits for its slot.

        Call this method with the lock held. It may be called twice for one pick.
        """
        endpoint, picker, queue = pick.endpoint, self._picker, self.queue
        # These lines call no function: see the top of this file.
        if pick.taken:
            pick.taken = False
            if endpoint.in_flight > 0:  # otherwise the attempt began before a fork
                endpoint.in_flight -= 1
                picker.in_flight -= 1
        if wake and (queue.waiting or queue.retries):
            self._wake(endpoint)
        if wake and self.closing:
            self.over()

    def _wake(self, freed: Endpoint) -> None:
        """Wake a call that may use the slot that has become free at `freed`. If an exception
        interrupts this method, a call is woken in any case."""
        try:
            for endpoint in self._picker.freed(freed, self.clock()):
                self.queue.wake(endpoint)
        except BaseException:
            self.queue.wake()
            raise

    def owned(self, holder: object, give_back: Callable[[], object]) -> SlotOwner:
        """Register `give_back`, which is called at the first use of the balancer after `holder` was
        garbage collected.

        `give_back` must not hold a reference to `holder`. To cancel the registration, remove the
        returned object from `owners`, and drop all other references to it.
        """
        owner = SlotOwner(holder, self.deferred_releases.append)
        owner.give_back = give_back
        self.owners.add(owner)
        return owner

    def run_deferred(self) -> None:
        """Give back the slots whose holders were garbage collected. Call this method with the lock
        held.

        An owner stays in `deferred_releases` until its slot is given back, however often this
        method is interrupted.
        """
        while self.deferred_releases:
            owner = self.deferred_releases[0]
            owner.give_back()
            self.owners.discard(owner)
            self.deferred_releases.popleft()

    def back_off_of_all(self) -> float:
        """Seconds until the first back-off ends if all instances back off, else 0."""
        with self.lock:
            now = self.clock()
            if self.pool.candidates(now) or (soonest := self.pool.backing_off(now)) is None:
                return 0.0
            return max(0.0, soonest.backing_off_until - now)

    def over(self) -> None:
        """Set the signals in `closing` if no call is under way and no attempt is in flight. This
        method is called each time a call or an attempt ends."""
        while self.closing and not self.calls and not self._picker.in_flight:
            with contextlib.suppress(KeyError):  # another thread has removed it
                self.closing.popitem()[0].set()

    def drained(self) -> Signal:
        """Return a signal that is set once no call is under way and no attempt is in flight."""
        with self.lock:
            self.run_deferred()
            signal = Signal()
            self.closing[signal] = None
            self.over()
            return signal

    def end(self) -> None:
        """Refuse further attempts, and end the calls that wait for one."""
        with self.lock:
            self.run_deferred()
            waiting = self.membership.end()
        for signal in (*waiting, *list(self.calls.values())):
            if signal is not None:
                signal.set()
        self.outbox.publish()


def _signal_of(call: PickRequest) -> Signal:
    """Return the signal with which the call waits. It is stored in the call before it is stored in
    the queue, so that the call can leave the queue even if it is interrupted."""
    if (signal := call.waiting) is None:
        signal = call.waiting = Signal()
    return signal
