"""The state that all calls of one balancer share, and the decisions that change it.

Everything here is decided under one lock that is never held across I/O, a sleep or an await. The
lock, the clock and the dice are handed in.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

from lbclient.breaker import Breaker
from lbclient.charges import Charges
from lbclient.endpoint import Endpoint
from lbclient.errors import NoInstanceAvailable, Throttled
from lbclient.events import AttemptPicked
from lbclient.membership import Membership
from lbclient.news import News
from lbclient.outcome import Verdict
from lbclient.retry import Retries
from lbclient.rotation import Rotation
from lbclient.rules import Guards, Hedging
from lbclient.selection import UNTRIED_FULL, Pick, Picker, Selection
from lbclient.sent import Sent
from lbclient.telemetry import Telemetry
from lbclient.waiting import Signal

__all__ = ["Core"]

_GAIN = 0.1
_LOOK_AGAIN = 0.25


class Core:
    """One balancer's decisions."""

    def __init__(
        self,
        membership: Membership,
        *,
        selection: Selection,
        retries: Retries,
        guards: Guards | None,
        hedging: Hedging | None,
        telemetry: Telemetry,
        news: News,
        clock: Callable[[], float],
        rng: random.Random,
        lock: AbstractContextManager[object],
    ) -> None:
        self.membership = membership
        self.service = membership.watch.service
        self.watch = membership.watch
        self.pool = membership.pool
        self.retries = retries
        self.guards = guards
        self.hedging = hedging
        self.telemetry = telemetry
        self.news = news
        self.clock = clock
        self.rng = rng
        self.lock = lock
        self.forsaken: deque[Callable[[], object]] = deque()
        """What finalizers ask for: they may run at any time, inside any lock."""
        self.usual: float | None = None
        """Seconds that an answer takes, a moving mean over all instances."""
        self.abandoned = False
        """True once connections are closed under the calls that are under way."""
        self._selection = selection
        self._line = membership.line
        self.line = membership.line
        self.look_again = _LOOK_AGAIN
        """Seconds after which the first in line looks again though nothing has woken it: a response
        that was dropped unclosed gives its slot back silently. `math.inf` in virtual time."""
        self._drained: list[Signal] = []
        self.rotation = Rotation(membership, selection, telemetry.counts, news, clock, rng)
        self.charges = Charges(membership, self.rotation, guards, clock, rng)

    def after_fork(self, lock: AbstractContextManager[object]) -> None:
        """In a child: a lock that nobody holds, no waiters but one's own, and other times and
        places than the parent's. The dice are seeded anew already."""
        self.lock = lock
        self._line.clear()
        self.membership.after_fork(lock)
        now = self.clock()
        self.pool.spread(now, self.rng)
        self._selection.after_fork(now)

    def admit(
        self, call: Picker, waiting: Signal | None, holding: Endpoint | None
    ) -> Pick | Signal | None:
        """An instance for the next attempt of `call`, a signal to wait for, or None.

        The slot of `holding`, whose answer is about to be given up, passes to the pick.
        Raises DiscoveryError where nothing usable is known, Throttled where the call is kept back.
        """
        with self.lock:
            now = call.now = self.clock()
            if self.forsaken:
                self.reap()
            discovery = self.membership
            ready = self.watch.fresh and discovery.generation is discovery.scheduler.generation
            if not ready and (unready := discovery.unready(now)):
                return unready
            if self.guards is not None and waiting is None and not call.tried:
                self._throttle(self.guards, now)
            if self._line.waiting and not self._line.passes(waiting):
                return self._line.join(waiting, call.caller)
            left = self._line.left_for(waiting) if self._line.retries else None
            if holding is not None:
                self._move(holding, -1)
            pick = self._selection.pick(call, now, left)
            if isinstance(pick, Pick):
                self._taken(pick, now, holding, first=not call.tried)
                if waiting is not None:
                    self._line.leave(waiting, served=True)
                return pick
            if holding is not None:
                self._move(holding, 1)
            if pick is None:
                self.membership.hurry(now)
                return None
            return self._join(call, waiting, retry=pick is UNTRIED_FULL)

    def _join(self, call: Picker, waiting: Signal | None, *, retry: bool) -> Signal:
        if retry:
            return self._line.join_retries(waiting, call.tried)
        return self._line.join(waiting, call.caller)

    def _throttle(self, guards: Guards, now: float) -> None:
        if not guards.admits(now):
            self.telemetry.counts.throttled()
            raise Throttled(f"{self.service} turns away so many calls that this one was not sent")

    def beside(self, call: Picker) -> Pick | None:
        """A second attempt beside the first of `call`, or None: it waits for no place, goes after
        everything that waits in line, and is taken from the budget of hedges."""
        with self.lock:
            now = call.now = self.clock()
            pick = None if self._line else self._selection.beside(call, now)
            if pick is None:
                return None
            budget = None if self.hedging is None else self.hedging.budget
            if budget is not None and not budget.withdraw(now):
                pick.endpoint.breaker.cancel(pick.permit)
                self.telemetry.counts.hedge_refused()
                return None
            self._taken(pick, now, None, first=False)
            self.telemetry.counts.hedge()
            return pick

    def changes_at(self, now: float) -> float:
        """When time alone may change what the first in line is told; `math.inf` if it cannot.

        A rule that lets an instance in again after a time is asked here, too: nothing else wakes
        the line then.
        """
        with self.lock:
            return min(self._selection.changes_at(now), self.watch.changes_at)

    def refusal(self) -> NoInstanceAvailable:
        """Why none may be used now."""
        with self.lock:
            now = self.clock()
            retry_in = self._selection.retry_in(now)
            shown = self.pool.describe(now)
        when = "" if retry_in is None else f"; try again in {retry_in:.2f} s"
        return NoInstanceAvailable(
            f"no instance of {self.service} may be used now: {shown}{when}", retry_in
        )

    def leave(self, signal: Signal) -> None:
        """The call that waited for `signal` has what it wants, or has given up."""
        with self.lock:
            self.watch.forget(signal)
            self._line.leave(signal)

    def _taken(self, pick: Pick, now: float, gave_up: Endpoint | None, *, first: bool) -> None:
        """An attempt will go there; its call has given up its place at `gave_up`."""
        endpoint = pick.endpoint
        if gave_up is not None and self._line:
            self._line.wake(gave_up)
        endpoint.attempts += 1
        endpoint.in_flight += 1
        self._selection.in_flight += 1
        self.telemetry.counts.pick()
        self.telemetry.counts.in_flight(1)
        if self.news.heard:
            self.rotation.tell(AttemptPicked, endpoint, pick.reason)
        if first and self.retries.budget is not None:
            self.retries.budget.deposit(now)
        if first and self.hedging is not None and self.hedging.budget is not None:
            self.hedging.budget.deposit(now)

    def _move(self, endpoint: Endpoint, change: int) -> None:
        if endpoint.in_flight + change < 0:
            return  # its attempt was begun before a fork
        endpoint.in_flight += change
        self._selection.in_flight += change
        self.telemetry.counts.in_flight(change)

    def done(self, attempt: Sent, verdict: Verdict) -> None:
        """An attempt that was answered is over, body and all: settled and released."""
        with self.lock:
            self.took(attempt, verdict)
            self.settle(attempt, verdict)
            self.release(attempt.endpoint)

    def took(self, attempt: Sent, verdict: Verdict) -> None:
        """It has been answered, after `elapsed` seconds. Hold the lock.

        A refusal or a fault tells of latency only where it took longer than answers do: it is no
        quick answer.
        """
        endpoint, elapsed, charges = attempt.endpoint, attempt.elapsed, self.charges
        if endpoint.unreached or attempt.epoch != charges.proved:
            charges.reached(attempt)
        if not verdict.good and elapsed <= (endpoint.latency or math.inf):
            return
        endpoint.took(elapsed)
        usual = elapsed if self.usual is None else self.usual
        self.usual = usual + _GAIN * (elapsed - usual)
        if self.hedging is not None:
            self.hedging.took(elapsed)

    def release(self, endpoint: Endpoint) -> None:
        """The body of an attempt is closed. Hold the lock."""
        self._move(endpoint, -1)
        if self._line.waiting or self._line.retries:
            self._line.wake(endpoint)
        while self._drained and not self._selection.in_flight:
            self._drained.pop().set()

    def settle(self, attempt: Sent, verdict: Verdict | None) -> None:
        """Judge one attempt, once. None only hands the permit back. Hold the lock."""
        breaker = attempt.breaker
        if verdict is None:
            breaker.cancel(attempt.permit)
            return
        if self._selection.learning is not None:
            self.learned(attempt.endpoint, attempt.elapsed, failed=verdict.turned_away)
        calm = verdict.good and not verdict.rest and self.guards is None
        if not (calm and (breaker.pristine or breaker.unmoved)):
            self.charges.settle(attempt, verdict)

    def unreachable(self, attempt: Sent) -> bool:
        """It found no way to its instance. True if that is the instance's fault."""
        with self.lock:
            return self.charges.unreachable(attempt)

    def reached(self, attempt: Sent) -> None:
        """It failed, but its instance was reached."""
        with self.lock:
            self.charges.reached(attempt)

    def checked(self, endpoint: Endpoint, breaker: Breaker, *, healthy: bool, why: str) -> None:
        """Active checks say so of the machine that `breaker` stands for; `why`, where they fail."""
        with self.lock:
            void = endpoint.gone or endpoint.breaker is not breaker
            if not void and endpoint.healthy is not healthy:
                self.rotation.checked(endpoint, healthy=healthy, why=why)
        self.news.publish()

    def learned(self, endpoint: Endpoint, elapsed: float, *, failed: bool) -> None:
        """Tell a strategy that learns. Hold the lock."""
        self._selection.ended(endpoint, elapsed, failed=failed, now=self.clock())

    def probe_answered(self, attempt: Sent) -> None:
        """Good headers came: the next probe may go while this one's body is still read."""
        with self.lock:
            attempt.breaker.cancel(attempt.permit)

    def reap(self) -> None:
        """Do what finalizers have asked for."""
        with contextlib.suppress(IndexError):  # another thread may be quicker
            while True:
                self.forsaken.popleft()()

    def rest_of_all(self) -> float:
        """Seconds until the first instance has rested, where all of them rest; else 0."""
        with self.lock:
            now = self.clock()
            if self.pool.candidates(now) or (soonest := self.pool.resting(now)) is None:
                return 0.0
            return max(0.0, soonest.rest_until - now)

    def drained(self) -> Signal:
        """A signal that is set once nothing is in flight."""
        with self.lock:
            self.reap()
            signal = Signal()
            self._drained.append(signal)
            if not self._selection.in_flight:
                signal.set()
            return signal
