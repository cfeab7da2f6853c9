"""What is known of one service, how old it is, and when to ask again.

It decides and keeps; `scheduler` runs it on background threads, the simulator in virtual time. Each
wait is drawn with dice, so that many clients that began together do not ask together.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from lbclient._internal.signals import Signal
from lbclient.discovery.resolver import Resolver, listed, text_of, usable
from lbclient.discovery.scheduler import Backoff, jittered
from lbclient.endpoint.instance import Answer
from lbclient.errors import DiscoveryError, ServiceAbsent

__all__ = ["ServiceSubscription"]

FLOOR, CEILING = 1.0, 3600.0
"""Bounds of the refresh interval, seconds: a TTL of 0 is no licence to hammer (D11). The floor may
be set."""
EARLY = 5.0
"""At most one early refresh in so many seconds."""

logger = logging.getLogger(__name__)


class SubscriptionListener(Protocol):
    """Who is told what a round brought: each round prepares, then tells, then lets publish."""

    def prepared(self, answer: Answer) -> Callable[[], None]:
        """Work out, without the lock, what a good answer changes; the result, called under it,
        takes that over."""
        ...

    def vanished(self) -> None:
        """The service declared itself absent. Called under the lock."""
        ...

    def lookup_failed(self) -> None:
        """No good answer came; the last good set stands. Called under the lock."""
        ...

    def publish(self) -> None:
        """Say what is to be said of it, the lock being free again."""
        ...


class _Found(NamedTuple):
    answer: Answer
    take_over: Callable[[], None]


class ServiceSubscription:
    """The discovery of one service.

    `max_stale` and `floor` (the least refresh interval) are in seconds.
    """

    def __init__(
        self,
        service: str,
        resolver: Resolver,
        subscriber: SubscriptionListener,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        lock: AbstractContextManager[object],
        max_stale: float | None,
        floor: float = FLOOR,
    ) -> None:
        self.service = service
        self.clock = clock
        self.error: Exception | None = None
        self.next_at = -math.inf
        self.busy = False
        self.fresh = False
        """True while the last answer was good: then there is nothing else to ask before a pick."""
        self.turn = -1
        """The refresher's ticket for the next round."""
        self.quick = False
        self._resolver = resolver
        self._subscriber = subscriber
        self._rng = rng
        self._lock = lock
        self._max_stale = max_stale
        self._floor = floor
        self._answer: Answer | None = None
        self._answered_at = 0.0
        self._early_at = -math.inf
        self._failed_at = -math.inf
        self._backoff = Backoff(rng)
        self._waiting: dict[Signal, None] = {}
        self._later: dict[Signal, None] = {}

    @property
    def known(self) -> bool:
        """True once an answer came and while the service has not declared itself absent."""
        return self._answer is not None

    @property
    def settled(self) -> bool:
        """True for a list that never changes."""
        return self._answer is not None and self._answer.ttl is None

    @property
    def stopped(self) -> bool:
        """True where there is nothing more to ask: the list never changes, or nobody wants it."""
        return self.next_at == math.inf

    def age(self, now: float) -> float | None:
        """Seconds since the last good answer; 0 for a list that never changes."""
        if self._answer is None:
            return None
        return 0.0 if self._answer.ttl is None else max(0.0, now - self._answered_at)

    def failure(self, now: float) -> DiscoveryError | None:
        """Why the service cannot be used now, if discovery is the reason."""
        if self._answer is None:
            waiting = self.busy or now >= self.next_at
            return None if self.error is None or waiting else self._unknown()
        age = self.age(now)
        if self._max_stale is None or age is None or now < self.changes_at:
            return None
        error = DiscoveryError(
            f"what is known of {self.service} is {age:.1f} s old, "
            f"more than max_stale={self._max_stale:g} allows; last error: {text_of(self.error)}"
        )
        error.__cause__ = self.error
        return error

    @property
    def changes_at(self) -> float:
        """When what is known becomes too old to be used, while nothing newer can be had."""
        answer = self._answer
        if self.error is None or self._max_stale is None or answer is None or answer.ttl is None:
            return math.inf
        return math.nextafter(self._answered_at + self._max_stale, math.inf)

    @property
    def waiting(self) -> list[Signal]:
        """The signals of all that wait for a round. Hold the lock."""
        return [*self._waiting, *self._later]

    def wait(self, signal: Signal) -> None:
        """Have it set when the round under way, or the next, is over. Hold the lock."""
        self._waiting[signal] = None

    def wait_anew(self) -> Signal:
        """A signal for a round that begins from now on: one under way may have asked before."""
        signal = Signal()
        (self._later if self.busy else self._waiting)[signal] = None
        return signal

    def forget(self, signal: Signal) -> None:
        """Nobody listens to this signal any more. Hold the lock."""
        for signals in (self._waiting, self._later):
            signals.pop(signal, None)

    def request_refresh(self, now: float) -> bool:
        """Ask for an early refresh; False where one was asked for too recently. Hold the lock."""
        if self.next_at <= now or self.stopped or now - self._early_at < EARLY:
            return False
        self._early_at = now
        self.next_at = now
        return True

    def demand(self, now: float) -> bool:
        """A call fails for lack of an answer: ask again within 5 s of the last try.

        True where that is sooner than planned: schedule it. Without such calls the back-off goes
        on to 30 s. Hold the lock.
        """
        at = self._failed_at + self._backoff.demanded
        if self.busy or self.stopped or at >= self.next_at or self.next_at <= now:
            return False
        self.next_at = at
        return True

    def claim(self) -> bool:
        """Claim the round that is due; False while it is not due, or one is under way."""
        with self._lock:
            if self.busy or self.clock() < self.next_at:
                return False
            self.busy = True
            return True

    def restart(self, lock: AbstractContextManager[object]) -> None:
        """In a forked child: the round under way died with the parent's threads."""
        self._lock = lock
        self._waiting.clear()
        self._later.clear()
        self.busy = False
        now = self.clock()
        if now < self.next_at < math.inf:  # not at the same time as the parent and its children
            self.next_at = now + (self.next_at - now) * self._rng.random()

    def run(self) -> None:
        """One round, after `claim`: ask, take over what came, wake who waits. It may block."""
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
                if self._waiting and not self.stopped:
                    self.next_at = self.clock()
                elif self._waiting:
                    waiting, self._waiting = [*waiting, *self._waiting], {}
            self._tell(got, error, known)
        finally:
            for signal in waiting:
                signal.set()

    def _ask(self) -> _Found | Exception:
        """An answer, and what takes it over: ten thousand instances are no work for the lock."""
        try:
            answer = usable(self._resolver.resolve(), f" about {self.service}")
            return _Found(answer, self._subscriber.prepared(answer))
        except BaseException as error:  # noqa: BLE001  # a caller's may raise anything, on our thread
            if isinstance(error, Exception):
                return error
            failure = DiscoveryError(f"resolve() was ended by {type(error).__name__}")
            failure.__cause__ = error
            return failure

    def _succeeded(self, found: _Found) -> None:
        answer, self._answered_at = found.answer, self.clock()
        self._answer = Answer((), answer.ttl, answer.refused)  # who is in it, the subscriber knows
        self.error, self.fresh = None, True
        self._backoff.succeeded()
        self._wait(math.inf if answer.ttl is None else self._interval(answer.ttl))
        found.take_over()

    def _failed(self, error: Exception) -> None:
        self.error, self.fresh = error, False
        self._failed_at = self.clock()
        self._wait(self._backoff.failed())
        self._subscriber.lookup_failed()
        if isinstance(error, ServiceAbsent):
            self._answer = None
            self._subscriber.vanished()

    def _wait(self, seconds: float) -> None:
        """Until the next round; none follows on one during which nobody wanted any more."""
        if not self.stopped:
            self.next_at = self.clock() + seconds

    def _tell(self, got: _Found | Exception, error: Exception | None, known: Answer | None) -> None:
        """Log what is new. Without the lock: a log's handler has one of its own."""
        self._subscriber.publish()
        if isinstance(got, Exception):
            if error is None or text_of(error) != text_of(got):
                logger.warning("discovery of %s failed: %s", self.service, text_of(got))
            return
        if error is not None:
            logger.info("discovery of %s works again", self.service)
        told = set() if known is None else set(known.refused)
        if new := [one for one in got.answer.refused if one not in told]:
            logger.warning("%s: refused %s", self.service, listed(new))

    def _interval(self, ttl: float) -> float:
        return jittered(min(max(ttl, self._floor), CEILING), self._rng)

    def _unknown(self) -> DiscoveryError:
        """A new one for each call: what is raised is changed by it."""
        if isinstance(self.error, ServiceAbsent):
            error: DiscoveryError = ServiceAbsent(str(self.error))
        elif isinstance(self.error, DiscoveryError):
            error = DiscoveryError(text_of(self.error))
        else:
            error = DiscoveryError(f"nothing is known of {self.service} yet: {text_of(self.error)}")
        error.__cause__ = self.error
        return error
