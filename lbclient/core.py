"""The state that all calls of one balancer share, and the decisions that change it.

Everything here is decided under one lock that is never held across I/O, a sleep or an await. The
lock, the clock and the dice are handed in.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from logging import INFO

from lbclient.breaker import Breaker, Permit
from lbclient.endpoint import Endpoint
from lbclient.errors import NoInstanceAvailable
from lbclient.membership import Membership
from lbclient.news import News
from lbclient.outcome import FINE, Verdict
from lbclient.retry import Retries
from lbclient.selection import Pick, Picker, Selection
from lbclient.telemetry import Telemetry
from lbclient.waiting import Signal

__all__ = ["Core"]

_LONGEST_REST = 30.0


class Core:
    """One balancer's decisions."""

    def __init__(
        self,
        membership: Membership,
        *,
        selection: Selection,
        retries: Retries,
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
        self.telemetry = telemetry
        self.news = news
        self.clock = clock
        self.rng = rng
        self.lock = lock
        self.forsaken: deque[Callable[[], object]] = deque()
        """What finalizers ask for: they may run at any time, inside any lock."""
        self._selection = selection
        self._line = membership.line

    def after_fork(self, lock: AbstractContextManager[object]) -> None:
        """In a child: a lock that nobody holds, and no waiters but one's own."""
        self.lock = lock
        self._line.waiting.clear()
        self._selection.in_flight = 0
        self.membership.after_fork(lock)

    def admit(
        self, call: Picker, waiting: Signal | None, holding: Endpoint | None
    ) -> Pick | Signal | None:
        """An instance for the next attempt of `call`, a signal to wait for, or None.

        The slot of `holding`, whose answer is about to be given up, passes to the pick.
        Raises DiscoveryError where nothing usable is known.
        """
        with self.lock:
            now = call.now = self.clock()
            if self.forsaken:
                self.reap()
            if not self.membership.ready and (unready := self.membership.unready(now)):
                return unready
            if self._line.waiting and not self._line.passes(waiting):
                return self._line.join(waiting)
            if holding is not None:
                self._move(holding, -1)
            pick = self._selection.pick(call, now)
            if isinstance(pick, Pick):
                self._taken(pick.endpoint, now, first=not call.tried)
                return pick
            if holding is not None:
                self._move(holding, 1)
            if pick is None:
                self.membership.hurry(now)
                return None
            return self._line.join(waiting)

    def refusal(self) -> NoInstanceAvailable:
        """Why none may be used now."""
        with self.lock:
            retry_in = self._selection.retry_in(self.clock())
            shown = self.pool.describe()
        when = "" if retry_in is None else f"; try again in {retry_in:.2f} s"
        return NoInstanceAvailable(
            f"no instance of {self.service} may be used now: {shown}{when}", retry_in
        )

    def leave(self, signal: Signal) -> None:
        """The call that waited for `signal` has what it wants, or has given up."""
        with self.lock:
            self.watch.forget(signal)
            self._line.leave(signal)

    def _taken(self, endpoint: Endpoint, now: float, *, first: bool) -> None:
        endpoint.attempts += 1
        endpoint.in_flight += 1
        self._selection.in_flight += 1
        self.telemetry.counts.pick()
        if first and self.retries.budget is not None:
            self.retries.budget.deposit(now)

    def _move(self, endpoint: Endpoint, change: int) -> None:
        if endpoint.in_flight + change < 0:
            return  # its attempt was begun before a fork
        endpoint.in_flight += change
        self._selection.in_flight += change
        self.telemetry.counts.in_flight(change)

    def done(
        self, endpoint: Endpoint, breaker: Breaker, permit: Permit, verdict: Verdict, elapsed: float
    ) -> None:
        """An attempt that was answered is over, body and all: settled and released."""
        with self.lock:
            endpoint.took(elapsed)
            if verdict is not FINE or not breaker.unmoved:
                self.settle(endpoint, breaker, permit, verdict)
            self.release(endpoint)

    def release(self, endpoint: Endpoint) -> None:
        """The body of an attempt is closed. Hold the lock."""
        self._move(endpoint, -1)
        if self._line.waiting:
            self._line.wake()

    def settle(
        self, endpoint: Endpoint, breaker: Breaker, permit: Permit, verdict: Verdict | None
    ) -> None:
        """Judge one attempt, once. None is neutral: the permit goes back, nobody is charged.

        Hold the lock.
        """
        if verdict is None:
            breaker.cancel(permit)
        elif verdict is not FINE or not breaker.unmoved:
            self._judge(endpoint, breaker, permit, verdict, self.clock())

    def _judge(
        self,
        endpoint: Endpoint,
        breaker: Breaker,
        permit: Permit,
        verdict: Verdict,
        now: float,
    ) -> None:
        if endpoint.gone or breaker is not endpoint.breaker:
            return  # it is nobody's any more, or that of the machine that was there before
        if verdict.fault:
            endpoint.failed(now)
        if verdict.fault and verdict.again == "always":
            self.membership.hurry(now)
        if verdict.rest > 0:
            self._rest(endpoint, now + min(verdict.rest, _LONGEST_REST))
        if breaker.settle(permit, fault=verdict.fault, now=now, rng=self.rng):
            self._turned(endpoint, breaker, now)

    def probe_answered(self, breaker: Breaker, permit: Permit) -> None:
        """Good headers came: the next probe may go while this one's body is still read."""
        with self.lock:
            breaker.cancel(permit)

    def reap(self) -> None:
        """Do what finalizers have asked for."""
        with contextlib.suppress(IndexError):  # another thread may be quicker
            while True:
                self.forsaken.popleft()()

    def rest_of_all(self) -> float:
        """Seconds until the first instance has rested, where all of them rest; else 0."""
        with self.lock:
            now = self.clock()
            if self.pool.candidates(now) or (soonest := self.pool.resting()) is None:
                return 0.0
            return max(0.0, soonest.rest_until - now)

    def _rest(self, endpoint: Endpoint, until: float) -> None:
        endpoint.rest_until = max(endpoint.rest_until, until)
        self.pool.changed(endpoint)

    def _turned(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        self.telemetry.counts.breaker(breaker.state)
        self.news.add(INFO, "breaker of %s is %s", breaker.name, breaker.state)
        outage = not self.pool.candidates(now)
        self.pool.changed(endpoint)
        if not breaker.closed:
            self._selection.tripped(now)
        elif outage:
            self.pool.healed(now, self.rng)
        self._line.wake()
