"""Discovery for one balancer: the subscription to its service, and the pool that follows it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from logging import INFO, WARNING

from lbclient._internal import validation
from lbclient._internal.signals import Pause, Signal
from lbclient.core.pool import EndpointSetUpdate, Pool, Subset
from lbclient.core.wait_queue import WaitQueue
from lbclient.discovery.resolver import Resolver, StaticResolver, text_of
from lbclient.discovery.scheduler import PeriodicJob, Scheduler
from lbclient.discovery.subscription import CEILING, FLOOR, ServiceSubscription
from lbclient.discovery.watched import WatchedResolver
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Answer, Instance
from lbclient.errors import BalancerClosed, DiscoveryError, ServiceAbsent
from lbclient.telemetry.events import DiscoveryFailed, InstancesChanged, Outbox
from lbclient.telemetry.metrics import Metrics

__all__ = ["DiscoveryLimits", "Membership"]

_ROUND = 15.0
_AT_ONCE = 256
_MANY = 4
"""If there were at least this many instances, and most of them leave at once, a warning is logged.
"""


@dataclass(frozen=True, slots=True)
class DiscoveryLimits:
    """The limits on the discovery of one service.

    Raises ValueError or TypeError, naming the argument.
    """

    max_stale: float | None = None
    min_refresh: float = FLOOR
    max_instances: int | None = None

    def __post_init__(self) -> None:
        if self.max_stale is not None:
            validation.seconds("max_stale", self.max_stale)
        validation.seconds("min_refresh", self.min_refresh)
        if self.min_refresh > CEILING:
            raise ValueError(
                f"min_refresh (seconds) must be at most {CEILING:g}, not {self.min_refresh!r}"
            )
        validation.limit("max_instances", self.max_instances)


class Membership:
    """The instances of one service, kept up to date by discovery. `scheduler` runs the
    subscription. Its answers update the pool and wake the calls in `queue`."""

    def __init__(
        self,
        service: str,
        resolver: Resolver,
        *,
        pool: Pool,
        metrics: Metrics,
        outbox: Outbox,
        scheduler: Scheduler,
        clock: Callable[[], float],
        rng: random.Random,
        lock: AbstractContextManager[object],
        discovery_limits: DiscoveryLimits,
        watched: Sequence[WatchedResolver] = (),
    ) -> None:
        self.name = service
        self.subscription: ServiceSubscription = ServiceSubscription(
            service,
            resolver,
            self,
            clock=clock,
            rng=rng,
            lock=lock,
            max_stale=discovery_limits.max_stale,
            floor=discovery_limits.min_refresh,
            watched=watched,
        )
        self.pool = pool
        self.queue: WaitQueue = WaitQueue()
        self._subset = Subset(discovery_limits.max_instances, rng)
        self._metrics = metrics
        self._outbox = outbox
        self.scheduler = scheduler
        self.health_monitor: PeriodicJob | None = None
        self._left: list[Endpoint] = []
        self._departed = False
        """True if instances have left or have new addresses, so that listeners should close
        connections to them."""
        self.generation: object = None
        """The scheduler's generation when the jobs were scheduled; it changes with a fork."""
        self.ended: bool = False
        """True once no further attempt may begin."""
        self._lock = lock
        self._watched = watched
        for one in watched:
            one.notify = self._poke
        if isinstance(resolver, StaticResolver) and self.subscription.claim():
            self.subscription.run()  # only a list does not wait for the first call

    def must_wait_until_resolved(self, now: float) -> bool:
        """True while discovery has not answered yet, so that a call must wait. Call this method
        with the lock held.

        Raises DiscoveryError if there is no usable answer. After such an error, discovery tries
        again soon.
        """
        if self.ended:
            raise BalancerClosed(
                f"the balancer of {self.name} was closed; nothing was sent for this call"
            )
        if self.generation is not self.scheduler.generation:
            self._follow()
        if (failure := self.subscription.failure(now)) is not None and self.subscription.demand(
            now
        ):
            self.scheduler.schedule(self.subscription)
            failure = self.subscription.failure(now)
        if failure is not None:
            raise failure
        return not self.subscription.known

    def end(self) -> list[Signal]:
        """Refuse further attempts. Returns the signals of the calls that wait. Call this method
        with the lock held."""
        self.ended, self.generation = (
            True,
            None,
        )  # so that each call asks `must_wait_until_resolved`
        return [*self.queue.waiting, *self.queue.retries, *self.subscription.waiting]

    def stop(self) -> None:
        """Stop discovery."""
        with self._lock:
            self.subscription.next_at = math.inf
        for one in self._watched:
            one.close()
        if self.health_monitor is not None:
            self.health_monitor.stop()

    def after_fork(self, lock: AbstractContextManager[object]) -> None:
        """In a forked child: take a new lock, and draw another subset."""
        self._lock = lock
        self.subscription.restart(lock)
        if self.pool.after_fork() and not self.subscription.stopped:
            self.subscription.next_at = -math.inf
        if (subset := self._subset.after_fork()) is not None:
            # This is not counted or reported: a thread of the parent may hold the locks of the
            # user's telemetry.
            self.pool.take(self.pool.plan(subset, self.subscription.clock()))

    def request_refresh(self, now: float) -> None:
        """Request an early refresh, rate-limited. Call this method with the lock held."""
        if self.subscription.request_refresh(now):
            self.scheduler.schedule(self.subscription)

    def round(self) -> Iterator[Pause]:
        """Ask discovery now, and yield the pauses in which the caller must wait for the answer.

        Raises DiscoveryError if the refresh fails.
        """
        if self.subscription.is_static:
            return
        signal = self._begin()
        try:
            yield Pause(_ROUND, signal)
        finally:
            with self._lock:
                self.subscription.forget(signal)
        service, error = self.subscription.service, self.subscription.error
        if self.ended:
            raise RuntimeError(f"the balancer of {self.name} is closed")
        if not signal.is_set:
            raise DiscoveryError(f"no answer about {service} within {_ROUND:g} s")
        if error is not None:
            kind = ServiceAbsent if isinstance(error, ServiceAbsent) else DiscoveryError
            raise kind(f"refresh of {service} failed: {text_of(error)}") from error

    def on_update(self, answer: Answer) -> Callable[[], None]:
        """Compute the changes that a good answer of discovery causes, without the lock that calls
        need. Returns a function that applies the changes under this lock."""
        update = self.pool.plan(self._subset.of(answer.instances), self.subscription.clock())
        return partial(self._changed, update)

    def on_absent(self) -> None:
        """Remove all instances, since the service declared itself absent."""
        self._changed(self.pool.plan(()))

    def on_error(self) -> None:
        """Report that a refresh has failed. The last good set of instances stays in use."""
        error = self.subscription.error
        self._metrics.lookup_failed(error)
        self.queue.wake()  # the first call in the queue computes when the known set becomes too old
        if error is not None:
            self._outbox.emit(DiscoveryFailed(self.name, self.subscription.clock(), error))

    def publish(self) -> None:
        """Publish logs and events of a refresh, and let listeners close connections that are no
        longer needed.

        Endpoints that left are freed in parts, since freeing thousands at once would delay other
        threads.
        """
        self._outbox.publish()
        if self._departed:
            self._departed = False
            self.pool.tell_listeners()
        left, self._left = self._left, []
        while left:
            del left[-_AT_ONCE:]

    def _begin(self) -> Signal:
        with self._lock:
            if self.subscription.stopped:
                raise RuntimeError(f"the balancer of {self.name} is closed")
            signal = self.subscription.wait_anew()
            if not self.subscription.busy:
                self.subscription.expedite(self.subscription.clock())
        self.scheduler.schedule(self.subscription)
        return signal

    def _poke(self) -> None:
        """Run a round of discovery soon, since a watch has an outcome."""
        with self._lock:
            due = self.subscription.poke()
        if due:
            self.scheduler.schedule(self.subscription)

    def _changed(self, update: EndpointSetUpdate) -> None:
        """Apply an update of the endpoints, and report it. Call this method with the lock held."""
        joined, left, before = len(update.joined), len(update.left), len(self.pool)
        self._left = update.left
        self._departed = bool(update.left or update.moved)
        self.pool.take(update)
        self.queue.wake()
        if self.subscription.is_static or not (joined or left):
            return
        self._metrics.changed(joined, left)
        if self._outbox.has_listener:
            came, went = map(_instances, (update.joined, update.left))
            self._outbox.emit(InstancesChanged(self.name, self.subscription.clock(), came, went))
        if before >= _MANY and left > before / 2:
            text = "%s: %d instances left at once, %d joined; %d before, %d now"
            self._outbox.add(WARNING, text, self.name, left, joined, before, len(self.pool))
        else:
            text = "%s: %d instances joined, %d left; %d now"
            self._outbox.add(INFO, text, self.name, joined, left, len(self.pool))

    def _follow(self) -> None:
        """Schedule discovery and health checks in this process. This happens at the first call, and
        at the first call after a fork."""
        if not self.subscription.is_static:
            self.scheduler.schedule(self.subscription)
        for one in self._watched:
            one.start()
        if self.health_monitor is not None:
            self.health_monitor.begin()
            self.scheduler.schedule(self.health_monitor)
        self.generation = self.scheduler.generation


def _instances(endpoints: Iterable[Endpoint]) -> tuple[Instance, ...]:
    return tuple(endpoint.instance for endpoint in endpoints)
