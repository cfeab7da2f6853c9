"""Puts endpoints out of rotation and back in, and reports it.

An endpoint leaves the rotation because of its breaker, its own request (`Retry-After`), an ejection
by hand or as an outlier, or active checks. This module makes all of these changes, under the
balancer's lock. Logs and events are published after the lock is released.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from logging import INFO, WARNING
from typing import Literal

from lbclient.core.membership import Membership
from lbclient.core.picker import Pick, Picker
from lbclient.core.pool import Pool
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.endpoint import Endpoint
from lbclient.telemetry.events import (
    Admitted,
    BreakerChanged,
    Ejected,
    Event,
    HealthChanged,
    Outbox,
)
from lbclient.telemetry.metrics import Metrics

__all__ = ["Reachability", "Rotation"]


class Rotation:
    """Puts the endpoints of one balancer out of rotation and back in. Call its methods with the
    balancer's lock held."""

    def __init__(
        self,
        membership: Membership,
        picker: Picker,
        metrics: Metrics,
        outbox: Outbox,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._service = membership.name
        self._pool = membership.pool
        self._queue = membership.queue
        self._picker = picker
        self._metrics = metrics
        self._outbox = outbox
        self._clock = clock
        self._rng = rng

    def back_off(self, endpoint: Endpoint, until: float) -> None:
        """Put an endpoint out of rotation until the time that its `Retry-After` says."""
        endpoint.backing_off_until = max(endpoint.backing_off_until, until)
        self._pool.changed(endpoint)
        self._queue.wake()

    def follow_breaker(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        """Put an endpoint out of rotation or back in after its breaker has opened or closed, unless
        the breaker only observes."""
        self._metrics.breaker(breaker.state)
        self._log_turn(endpoint, breaker, now)
        self.emit(BreakerChanged, endpoint, breaker.state)
        if not breaker.observes:
            self._follow(endpoint, breaker, now)

    def _log_turn(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        """Log a breaker that closes, opens (as a warning), or stays open after a failed probe."""
        verb = "would be" if breaker.observes else "is"
        subject, since = (self._service, breaker.name, verb), now - breaker.opened_at
        if breaker.closed:
            self._outbox.add(INFO, "%s: breaker of %s %s closed after %.1f s", *subject, since)
            return
        why, seconds = breaker.why, breaker.due - now
        if endpoint.last_fault is not None:
            why += f"; last fault: {endpoint.last_fault}"
        if since:
            text = "%s: breaker of %s %s open for another %.1f s after %.1f s: %s"
            self._outbox.add(INFO, text, *subject, seconds, since, why)
        else:
            level = INFO if breaker.observes else WARNING
            self._outbox.add(
                level, "%s: breaker of %s %s open for %.1f s: %s", *subject, seconds, why
            )

    def _follow(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        outage = not self._pool.candidates(now)
        self._pool.changed(endpoint)
        if not breaker.closed:
            self._picker.tripped(now)
        else:
            endpoint.warm_since = now
            if outage:
                self._pool.expedite_probes(now, self._rng)
        self._queue.wake()

    def eject(self, endpoint: Endpoint, seconds: float, by: Literal["hand", "outlier"]) -> None:
        """Put an endpoint out of rotation for this many seconds."""
        endpoint.ejected_until = endpoint.warm_since = self._clock() + seconds
        self._pool.changed(endpoint)
        self._metrics.ejected(by)
        why = "by hand" if by == "hand" else f"as an outlier; last fault: {endpoint.last_fault}"
        text = "%s: %s is ejected for %.1f s, %s"
        self._outbox.add(INFO, text, self._service, endpoint.instance, seconds, why)
        self.emit(Ejected, endpoint, seconds, by)
        self._queue.wake()

    def admit(self, endpoint: Endpoint) -> None:
        """Put an endpoint back into rotation, whatever the reason why it was out."""
        now = self._clock()
        before = endpoint.status(now)
        endpoint.renew(self._pool.fresh_breaker(endpoint))
        endpoint.warm_since = now
        self._pool.changed(endpoint)
        text = "%s: %s is admitted by hand; it was %s"
        self._outbox.add(INFO, text, self._service, endpoint.instance, before)
        self.emit(Admitted, endpoint)
        self._queue.wake()

    def record_health(self, endpoint: Endpoint, *, healthy: bool, why: str) -> None:
        """Record a new result of active checks. If they pass, an open breaker is probed soon."""
        now = self._clock()
        endpoint.healthy = healthy
        if healthy:
            endpoint.warm_since = now
            endpoint.breaker.expedite_probe(now, self._rng)
        self._pool.changed(endpoint)
        self._metrics.health(healthy=healthy)
        if healthy:
            text, since = "%s: %s passes its health checks after %.1f s", endpoint.unhealthy_since
            self._outbox.add(INFO, text, self._service, endpoint.instance, now - since)
        else:
            endpoint.unhealthy_since = now
            text = "%s: %s fails its health checks: %s"
            self._outbox.add(WARNING, text, self._service, endpoint.instance, why)
        self.emit(HealthChanged, endpoint, healthy)
        self._queue.wake()

    def emit(self, kind: Callable[..., Event], endpoint: Endpoint, *details: object) -> None:
        """Emit an event about an endpoint, if there is a listener."""
        if self._outbox.has_listener:
            self._outbox.emit(kind(self._service, self._clock(), endpoint.instance, *details))


class Reachability:
    """Decides whether an unreachable instance is at fault. Call its methods with the balancer's
    lock held.

    The failure is the instance's fault only if other instances can be reached. If none can be
    reached, the network is down. In this case a failure must not be a fault. Otherwise all
    instances would be out of rotation, and none would be available when the network is back. So the
    first failure to reach an instance is not a fault. It starts a wait for a proof that the network
    works. Such a proof is an attempt to any instance that was sent after the failure and reached
    its instance (which answered it or refused it). Once there is a proof, the next failure is a
    fault, and starts the next wait. Each failure that starts a wait begins a new epoch. An attempt
    stores the epoch in which it was sent, so it is known whether it was sent after a failure.
    """

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._clock = clock
        self.epoch: int = 0
        self.proved: int = 0
        """The last epoch in which an attempt was sent that reached its instance."""

    def record_failure(self, pick: Pick) -> bool:
        """Record an attempt that could not reach its instance. Returns True if this failure is the
        instance's fault.
        """
        endpoint = pick.endpoint
        if endpoint.gone or pick.breaker is not endpoint.breaker:
            return False
        fault = 0 < endpoint.unreached <= self.proved
        if fault or not endpoint.unreached:
            self.epoch += 1
            endpoint.unreached = self.epoch
        return fault

    def record_success(self, pick: Pick) -> None:
        """Record an attempt that has reached its instance, whatever the answer was."""
        endpoint = pick.endpoint
        if 0 < endpoint.unreached <= pick.epoch:
            self._reached_again(endpoint)
        self.proved = max(self.proved, pick.epoch)

    def _reached_again(self, endpoint: Endpoint) -> None:
        """Allow the endpoints that could not be reached to be probed at once, since there is a
        route again.

        An endpoint without a proof since its failure was unreachable in the same outage. This
        outage is over, so the next failure of such an endpoint is a first failure again.
        """
        endpoint.unreached = 0
        now = self._clock()
        for other in self._pool.endpoints:
            if other.unreached:
                other.breaker.at_once(now)
            if other.unreached > self.proved:
                other.unreached = 0
