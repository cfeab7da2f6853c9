"""Discovery on behalf of one balancer: the watch over its service, and the pool that follows it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from lbclient.discovery import Resolver, StaticResolver, text_of
from lbclient.discovery.watch import Watch
from lbclient.errors import DiscoveryError
from lbclient.instance import Answer
from lbclient.line import Line
from lbclient.pool import Pool
from lbclient.telemetry import Counts
from lbclient.waiting import Pause, Signal

__all__ = ["Membership", "Scheduler"]

_ROUND = 15.0


class Scheduler(Protocol):
    """Who runs the rounds of a watch: background threads, or virtual time."""

    generation: object

    def schedule(self, watch: Watch) -> None:
        """Run the next round of `watch` at its `next_at`."""
        ...


class Membership:
    """Who belongs to the service. Its watch is run by `scheduler`; told by the watch, it tells the
    pool, and those who wait in `line`."""

    def __init__(
        self,
        service: str,
        resolver: Resolver,
        *,
        pool: Pool,
        counts: Counts,
        scheduler: Scheduler,
        clock: Callable[[], float],
        rng: random.Random,
        lock: AbstractContextManager[object],
        max_stale: float | None,
    ) -> None:
        self.watch = Watch(
            service, resolver, self, clock=clock, rng=rng, lock=lock, max_stale=max_stale
        )
        self.pool = pool
        self.line = Line()
        self._counts = counts
        self._scheduler = scheduler
        self._generation: object = None
        self._lock = lock
        if isinstance(resolver, StaticResolver) and self.watch.claim():
            self.watch.run()  # a list that never changes; all else waits for the first call

    @property
    def ready(self) -> bool:
        """True where there is nothing to ask before a pick."""
        return self.watch.fresh and self._generation is self._scheduler.generation

    def unready(self, now: float) -> Signal | None:
        """A signal to wait for, where nothing is known yet. Hold the lock.

        Raises DiscoveryError where nothing usable is known.
        """
        if self._generation is not self._scheduler.generation:
            self._follow()
        if (failure := self.watch.failure(now)) is not None:
            raise failure
        return None if self.watch.known else self.watch.wait()

    def stop(self) -> None:
        """Ask discovery no more."""
        with self._lock:
            self.watch.next_at = math.inf

    def after_fork(self, lock: AbstractContextManager[object]) -> None:
        """In a child: a lock that nobody holds."""
        self._lock = lock
        self.watch.restart(lock)

    def hurry(self, now: float) -> None:
        """Somebody was refused everywhere: ask early, if not too often. Hold the lock."""
        if self.watch.hurry(now):
            self._scheduler.schedule(self.watch)

    def round(self) -> Iterator[Pause]:
        """Ask now, and yield what to wait for. Raises DiscoveryError if the answer is no good."""
        if self.watch.settled:
            return
        signal = self._begin()
        try:
            yield Pause(_ROUND, signal)
        finally:
            with self._lock:
                self.watch.forget(signal)
        service, error = self.watch.service, self.watch.error
        if not signal.is_set:
            raise DiscoveryError(f"no answer about {service} within {_ROUND:g} s")
        if error is not None:
            raise DiscoveryError(f"refresh of {service} failed: {text_of(error)}") from error

    def discovered(self, answer: Answer) -> None:
        """A good answer came: take it over as a difference."""
        self.pool.update(answer.instances)
        self._counts.lookup(0.0, failed=False)
        self.line.wake()

    def vanished(self) -> None:
        """The service declared itself absent."""
        self.pool.update(())
        self.line.wake()

    def lookup_failed(self) -> None:
        """The last good set stands."""
        self._counts.lookup(self.watch.age(self.watch.clock()), failed=True)

    def _begin(self) -> Signal:
        with self._lock:
            signal = self.watch.wait_anew()
            if not self.watch.busy:
                self.watch.next_at = self.watch.clock()
        self._scheduler.schedule(self.watch)
        return signal

    def _follow(self) -> None:
        """Have the watch run in this process: for the first call, and the first after a fork."""
        if not self.watch.settled:
            self._scheduler.schedule(self.watch)
        self._generation = self._scheduler.generation
