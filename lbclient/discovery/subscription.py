"""The subscription to one service: its last answer, the age of this answer, and the time of the
next lookup.

The subscription decides and stores. `scheduler` runs it on background threads, and the simulator
runs it in virtual time. Each wait is partly random, so that clients that start at the same time do
not ask at the same time.

A service that is watched is not looked up at intervals. When its watch has an outcome (an answer or
a failure), the watch makes a round due, and the round applies the outcome.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from lbclient._internal.signals import Signal
from lbclient.discovery.composite import confirmed_at
from lbclient.discovery.resolver import Resolver, listed, text_of, usable
from lbclient.discovery.scheduler import Backoff, jittered
from lbclient.discovery.watched import WatchedResolver
from lbclient.endpoint.instance import Answer
from lbclient.errors import DiscoveryError, ServiceAbsent

__all__ = ["ServiceSubscription"]

FLOOR, CEILING = 1.0, 3600.0
"""The lower and the upper bound of the refresh interval, in seconds. Without the lower bound, a TTL
of 0 would flood DNS. Users can change the lower bound."""
EARLY = 5.0
"""There is at most one early refresh in this many seconds."""
_SPACING = 0.1
"""Seconds between the beginnings of two rounds that a watch makes due. An update takes effect at
once, and a burst of updates takes at most ten rounds a second."""
_NO_TIME = sys.float_info.max
"""The time at which the next round of a watched service is due, unless its watch makes a round due
earlier. It is so late that it never comes."""

_logger = logging.getLogger(__name__)


class SubscriptionListener(Protocol):
    """Applies the result of a round. A round calls one of the first three methods, and then
    `publish`.
    """

    def on_update(self, answer: Answer) -> Callable[[], None]:
        """Compute the changes that a good answer causes, without the lock. Call the returned
        function with the lock held, to apply the changes."""
        ...

    def on_absent(self) -> None:
        """Called under the lock when the service was declared absent."""
        ...

    def on_error(self) -> None:
        """Called under the lock when there was no good answer. The last good set of instances stays
        in use."""
        ...

    def publish(self) -> None:
        """Publish messages and events, after the lock was released."""
        ...


class _Prepared(NamedTuple):
    answer: Answer
    take_over: Callable[[], None]


class ServiceSubscription:
    """The discovery of one service.

    `max_stale` and `floor` (the shortest refresh interval) are in seconds. `watched` are the parts
    of the service that are watched: the service itself, or parts of a composite.
    """

    ticket = -1
    busy: bool = False
    quick: bool = False

    def __init__(
        self,
        service: str,
        resolver: Resolver,
        listener: SubscriptionListener,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        lock: AbstractContextManager[object],
        max_stale: float | None,
        floor: float = FLOOR,
        watched: Sequence[WatchedResolver] = (),
    ) -> None:
        self.service = service
        self.clock = clock
        self.error: Exception | None = None
        self._watch = next((one for one in watched if one is resolver), None)
        """The watch of this service. None if the service is looked up, or is a composite."""
        self._watched = watched
        self.next_at: float = -math.inf if self._watch is None else _NO_TIME
        self.fresh: bool = False
        """True if the last lookup gave a good answer. Then no other state must be checked before a
        pick."""
        self._resolver = resolver
        self._listener = listener
        self._rng = rng
        self._lock = lock
        self._max_stale = max_stale
        self._floor = floor
        self._answer: Answer | None = None
        self._answered_at = 0.0
        self._early_at = -math.inf
        self._began_at = -math.inf
        self._poked = False
        """True if a watch has had an outcome since the last round began."""
        self._failed_at = -math.inf
        self._backoff = Backoff(rng)
        self._waiting: dict[Signal, None] = {}
        self._later: dict[Signal, None] = {}

    @property
    def known(self) -> bool:
        """True if there was a good answer, and the service was not declared absent later."""
        return self._answer is not None

    @property
    def is_static(self) -> bool:
        """True for a list that never changes."""
        return self._answer is not None and self._answer.ttl is None and not self._watched

    @property
    def stopped(self) -> bool:
        """True if no more lookups are needed, since the list never changes or nothing uses the
        service any more."""
        return self.next_at == math.inf

    def age(self, now: float) -> float | None:
        """Seconds since the last good answer, or since a watch has confirmed it; 0 for a list that
        never changes."""
        if self._answer is None:
            return None
        return 0.0 if self.is_static else max(0.0, now - self._confirmed_at)

    def failure(self, now: float) -> DiscoveryError | None:
        """Return an error if the service cannot be used now because of discovery; otherwise
        None."""
        if self._answer is None:
            waiting = self.busy or now >= self.next_at or self._pending
            return None if self.error is None or waiting else self._unknown()
        age = self.age(now)
        if self._max_stale is None or age is None or now < self.changes_at:
            return None
        last = f"last error: {text_of(self.error)}" if self.error else "its watch is silent"
        error = DiscoveryError(
            f"what is known of {self.service} is {age:.1f} s old, "
            f"more than max_stale={self._max_stale:g} allows; {last}"
        )
        error.__cause__ = self.error
        return error

    @property
    def changes_at(self) -> float:
        """The time when the known set becomes too old to be used, unless a new answer comes before.
        A set becomes too old only while lookups fail, or while a watch has failed or is silent."""
        if self._max_stale is None or self._answer is None or self.is_static:
            return math.inf
        if self.error is None and (self._watch is None or self._watch.pending):
            return math.inf
        return math.nextafter(self._confirmed_at + self._max_stale, math.inf)

    @property
    def _confirmed_at(self) -> float:
        """The time at which the known set was last known to be right."""
        return confirmed_at(self._resolver, self._answered_at)

    @property
    def _pending(self) -> bool:
        """True while the first answer of a watch is expected soon."""
        return self._watch is not None and self._watch.pending

    @property
    def waiting(self) -> list[Signal]:
        """Return the signals of all calls that wait for a round. Read this with the lock held."""
        return [*self._waiting, *self._later]

    def wait(self, signal: Signal) -> None:
        """Register a signal. It is set when the round under way ends, or the next round if none is
        under way. Call this method with the lock held."""
        self._waiting[signal] = None

    def wait_anew(self) -> Signal:
        """Return a signal that is set at the end of the next round that begins. A round that is
        under way may be too old."""
        signal = Signal()
        (self._later if self.busy else self._waiting)[signal] = None
        return signal

    def forget(self, signal: Signal) -> None:
        """Remove a signal that no call waits for any more. Call this method with the lock held."""
        for signals in (self._waiting, self._later):
            signals.pop(signal, None)

    def request_refresh(self, now: float) -> bool:
        """Request an early refresh. Returns False if the last early refresh was too recent. Call
        this method with the lock held."""
        if self.next_at <= now or self.stopped or now - self._early_at < EARLY:
            return False
        self._early_at = now
        return self.expedite(now)

    def expedite(self, now: float) -> bool:
        """Make a round due now. If the service itself is watched, the next outcome of its watch
        makes the round due, and a failed watch starts early. Returns True if the caller must
        schedule the subscription. Call this method with the lock held."""
        expected = [one.expedite() for one in self._watched]
        if self._watch is not None and any(expected):
            return False
        self.next_at = now
        return True

    def poke(self) -> bool:
        """Make a round due, since a watch has an outcome. Returns True if the caller must schedule
        the subscription. Call this method with the lock held."""
        if self.stopped:
            return False
        self._poked = True
        return not self.busy and self._plan_poked()

    def _plan_poked(self) -> bool:
        at = max(self.clock(), self._began_at + _SPACING)
        if at >= self.next_at:
            return False
        self.next_at = at
        return True

    def demand(self, now: float) -> bool:
        """Plan a lookup within 5 s of the last failed lookup, because a call needs an answer.
        (While no call needs an answer, the wait between failed lookups grows to 30 s.)

        Returns True if this lookup is earlier than the planned one. The caller must then schedule
        the subscription. Call this method with the lock held.
        """
        for one in self._watched:
            one.demand()
        at = math.inf if self._watch else self._failed_at + self._backoff.demanded
        if self.busy or self.stopped or at >= self.next_at or self.next_at <= now:
            return False
        self.next_at = at
        return True

    def claim(self) -> bool:
        """Claim the round that is due. Returns False if no round is due, or a round is under
        way."""
        with self._lock:
            if self.busy or self.clock() < self.next_at:
                return False
            self.busy, self._poked = True, False
            self._began_at = self.clock()
            return True

    def restart(self, lock: AbstractContextManager[object]) -> None:
        """In a forked child: forget the round under way, whose thread does not exist in the
        child."""
        self._lock = lock
        self._waiting.clear()
        self._later.clear()
        self.busy = False
        now = self.clock()
        if now < self.next_at < math.inf:  # at another time than the parent's round
            self.next_at = now + (self.next_at - now) * self._rng.random()

    def run(self) -> None:
        """Run one round, after `claim`: look the service up, apply the answer, and wake waiting
        calls. This method may block."""
        got, error, known = self._ask(), self.error, self._answer
        waiting: list[Signal] = []
        try:
            with self._lock:
                waiting, self._waiting, self._later = [*self._waiting], self._later, {}
                self.busy = False
                if isinstance(got, Exception):
                    self._failed(got)
                else:
                    self._succeeded(got)
                if self._poked and not self.stopped:
                    self._plan_poked()
                if self._waiting and not self.stopped:
                    self.next_at = self.clock()
                elif self._waiting:
                    waiting, self._waiting = [*waiting, *self._waiting], {}
            self._tell(got, error, known)
        finally:
            for signal in waiting:
                signal.set()

    def _ask(self) -> _Prepared | Exception:
        """Look the service up. Returns the answer, and a function that applies it.

        The changes are computed in this method, without the lock, since there may be ten thousand
        instances.
        """
        try:
            answer = usable(self._resolver.resolve(), f" about {self.service}")
            return _Prepared(answer, self._listener.on_update(answer))
        except BaseException as error:  # noqa: BLE001  # a user's resolver may raise anything
            if isinstance(error, Exception):
                return error
            failure = DiscoveryError(f"resolve() was ended by {type(error).__name__}")
            failure.__cause__ = error
            return failure

    def _succeeded(self, found: _Prepared) -> None:
        answer, self._answered_at = found.answer, self.clock()
        self._answer = Answer((), answer.ttl, answer.refused)  # the listener stores the instances
        self.error = None
        self.fresh = self._watch is None or self._max_stale is None
        self._backoff.succeeded()
        self._wait(self._interval(answer.ttl))
        found.take_over()

    def _failed(self, error: Exception) -> None:
        self.error, self.fresh = error, False
        self._failed_at = self.clock()
        self._wait(self._backoff.failed() if self._watch is None else _NO_TIME)
        self._listener.on_error()
        if isinstance(error, ServiceAbsent):
            self._answer = None
            self._listener.on_absent()

    def _wait(self, seconds: float) -> None:
        """Decide when the next round is due. If the subscription was stopped, there is no next
        round."""
        if not self.stopped:
            self.next_at = self.clock() + seconds

    def _tell(
        self, got: _Prepared | Exception, error: Exception | None, known: Answer | None
    ) -> None:
        """Log the changes, without the lock, since a log handler has a lock of its own."""
        self._listener.publish()
        if isinstance(got, Exception):
            if error is None or text_of(error) != text_of(got):
                _logger.warning("discovery of %s failed: %s", self.service, text_of(got))
            return
        if error is not None:
            _logger.info("discovery of %s works again", self.service)
        told = set() if known is None else set(known.refused)
        if new := [one for one in got.answer.refused if one not in told]:
            _logger.warning("%s: refused %s", self.service, listed(new))

    def _interval(self, ttl: float | None) -> float:
        if ttl is None:
            return _NO_TIME if self._watched else math.inf
        return jittered(min(max(ttl, self._floor), CEILING), self._rng)

    def _unknown(self) -> DiscoveryError:
        """Return the error for a call. Each call gets a new error object, since an exception
        changes when it is raised."""
        if isinstance(self.error, ServiceAbsent):
            error: DiscoveryError = ServiceAbsent(str(self.error))
        elif isinstance(self.error, DiscoveryError):
            error = DiscoveryError(text_of(self.error))
        else:
            error = DiscoveryError(f"nothing is known of {self.service} yet: {text_of(self.error)}")
        error.__cause__ = self.error
        return error
