"""What is known of one service, how old it is, and when to ask again.

It decides and keeps; `refresher` runs it on background threads, the simulator in virtual time.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from lbclient.discovery.resolver import Resolver
from lbclient.errors import DiscoveryError, ServiceAbsent
from lbclient.instance import Answer
from lbclient.waiting import Signal

__all__ = ["Watch"]

FLOOR, CEILING = 1.0, 3600.0
"""Bounds of the refresh interval, seconds (the floor: D11, a TTL of 0 is no licence to hammer)."""
BACKOFF, BACKOFF_MAX = 1.0, 30.0
EARLY = 5.0
"""At most one early refresh in so many seconds."""
JITTER = 0.1

logger = logging.getLogger(__name__)


class Subscriber(Protocol):
    """Who is told what a round brought; called under the lock."""

    def discovered(self, answer: Answer) -> None:
        """A good answer came."""
        ...

    def vanished(self) -> None:
        """The service declared itself absent, or the lookup failed and nothing was known."""
        ...

    def lookup_failed(self) -> None:
        """No good answer came; the last good set stands."""
        ...


class Watch:
    """The discovery of one service."""

    def __init__(
        self,
        service: str,
        resolver: Resolver,
        subscriber: Subscriber,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        lock: AbstractContextManager[object],
        max_stale: float | None,
    ) -> None:
        self.service = service
        self.clock = clock
        self.error: Exception | None = None
        self.next_at = -math.inf
        self.busy = False
        self.turn = -1
        """The refresher's ticket for the next round."""
        self._resolver = resolver
        self._subscriber = subscriber
        self._rng = rng
        self._lock = lock
        self._max_stale = max_stale
        self._answer: Answer | None = None
        self._answered_at = 0.0
        self._early_at = -math.inf
        self._backoff = BACKOFF
        self._waiting: list[Signal] = []

    @property
    def known(self) -> bool:
        """True once an answer came and while the service has not declared itself absent."""
        return self._answer is not None

    @property
    def settled(self) -> bool:
        """True for a list that never changes."""
        return self._answer is not None and self._answer.ttl is None

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
        if self._max_stale is None or age is None or age <= self._max_stale:
            return None
        error = DiscoveryError(
            f"what is known of {self.service} is {age:.1f} s old, "
            f"more than max_stale={self._max_stale:g} allows; last error: {self.error}"
        )
        error.__cause__ = self.error
        return error

    def wait(self) -> Signal:
        """A signal that is set when the round under way, or the next, is over. Hold the lock."""
        signal = Signal()
        self._waiting.append(signal)
        return signal

    def forget(self, signal: Signal) -> None:
        """Nobody listens to this signal any more. Hold the lock."""
        if signal in self._waiting:
            self._waiting.remove(signal)

    def hurry(self, now: float) -> bool:
        """Ask for an early refresh; False where one was asked for too recently. Hold the lock."""
        if self.next_at <= now or self.settled or now - self._early_at < EARLY:
            return False
        self._early_at = now
        self.next_at = now
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
        self.busy = False

    def run(self) -> None:
        """One round, after `claim`: ask, take over what came, wake who waits. It may block."""
        answer: Answer | None = None
        error: Exception | None = None
        try:
            answer = _usable(self._resolver.resolve())
        except Exception as failure:  # noqa: BLE001  # a caller's resolver may raise anything
            error = failure
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self.busy = False
            if answer is not None:
                self._succeeded(answer)
            elif error is not None:
                self._failed(error)
        for signal in waiting:
            signal.set()

    def _succeeded(self, answer: Answer) -> None:
        now = self.clock()
        if self.error is not None:
            logger.info("discovery of %s works again", self.service)
        if answer.refused and (self._answer is None or answer.refused != self._answer.refused):
            for one in answer.refused:
                logger.warning("%s: refused %s: %s", self.service, one.record, one.reason)
        self._answer, self._answered_at = answer, now
        self.error, self._backoff = None, BACKOFF
        self.next_at = math.inf if answer.ttl is None else now + self._interval(answer.ttl)
        self._subscriber.discovered(answer)

    def _failed(self, error: Exception) -> None:
        if str(error) != str(self.error):
            logger.warning("discovery of %s failed: %s", self.service, error)
        self.error = error
        self.next_at = self.clock() + self._backoff * (1 - JITTER * self._rng.random())
        self._backoff = min(2 * self._backoff, BACKOFF_MAX)
        self._subscriber.lookup_failed()
        if isinstance(error, ServiceAbsent):
            self._answer = None
            self._subscriber.vanished()

    def _interval(self, ttl: float) -> float:
        return min(max(ttl, FLOOR), CEILING) * (1 + JITTER * (2 * self._rng.random() - 1))

    def _unknown(self) -> DiscoveryError:
        if isinstance(self.error, DiscoveryError):
            kind = type(self.error)
            error = kind(*self.error.args)
        else:
            error = DiscoveryError(f"nothing is known of {self.service} yet: {self.error}")
        error.__cause__ = self.error
        return error


def _usable(answer: object) -> Answer:
    if not isinstance(answer, Answer):
        raise DiscoveryError(f"resolve() must return an lbclient.Answer, not {answer!r}")
    if not answer.instances:
        reasons = "".join(f"; refused {one.record}: {one.reason}" for one in answer.refused)
        raise DiscoveryError(f"the answer holds no usable instance{reasons}")
    return answer
