"""Who is put out of the rotation and who is let in again, and who hears of it.

By its breaker, by its own word (`Retry-After`), by hand, as an outlier, by active checks: all of it
goes through here, under the balancer's lock, and is logged, counted and told once that is free.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from logging import INFO, WARNING
from typing import Literal

from lbclient.core.membership import Membership
from lbclient.core.picker import Selection
from lbclient.endpoint import Endpoint
from lbclient.endpoint.breaker import Breaker
from lbclient.telemetry import Counts
from lbclient.telemetry.events import Admitted, BreakerChanged, Ejected, Event, HealthChanged
from lbclient.telemetry.outbox import News

__all__ = ["Rotation"]


class Rotation:
    """The ways in and out for the endpoints of one balancer. Hold the lock for each."""

    def __init__(
        self,
        membership: Membership,
        selection: Selection,
        counts: Counts,
        news: News,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._service = membership.name
        self._pool = membership.pool
        self._line = membership.line
        self._selection = selection
        self._counts = counts
        self._news = news
        self._clock = clock
        self._rng = rng

    def rest(self, endpoint: Endpoint, until: float) -> None:
        """It asked to be left alone."""
        endpoint.rest_until = max(endpoint.rest_until, until)
        self._pool.changed(endpoint)
        self._line.wake()

    def turned(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        """Its breaker has changed. One that merely observes changes nothing in the rotation."""
        self._counts.breaker(breaker.state)
        self._log_turn(endpoint, breaker, now)
        self.tell(BreakerChanged, endpoint, breaker.state)
        if not breaker.observes:
            self._follow(endpoint, breaker, now)

    def _log_turn(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        """A breaker that opens is a warning; one whose probe fails stays open."""
        verb = "would be" if breaker.observes else "is"
        subject, since = (self._service, breaker.name, verb), now - breaker.opened_at
        if breaker.closed:
            self._news.add(INFO, "%s: breaker of %s %s closed after %.1f s", *subject, since)
            return
        why, seconds = breaker.why, breaker.due - now
        if endpoint.last_fault is not None:
            why += f"; last fault: {endpoint.last_fault}"
        if since:
            text = "%s: breaker of %s %s open for another %.1f s after %.1f s: %s"
            self._news.add(INFO, text, *subject, seconds, since, why)
        else:
            level = INFO if breaker.observes else WARNING
            self._news.add(
                level, "%s: breaker of %s %s open for %.1f s: %s", *subject, seconds, why
            )

    def _follow(self, endpoint: Endpoint, breaker: Breaker, now: float) -> None:
        outage = not self._pool.candidates(now)
        self._pool.changed(endpoint)
        if not breaker.closed:
            self._selection.tripped(now)
        else:
            endpoint.warm_since = now
            if outage:
                self._pool.healed(now, self._rng)
        self._line.wake()

    def eject(self, endpoint: Endpoint, seconds: float, by: Literal["hand", "outlier"]) -> None:
        """Out, for so long."""
        endpoint.out_until = endpoint.warm_since = self._clock() + seconds
        self._pool.changed(endpoint)
        self._counts.ejected(by)
        why = "by hand" if by == "hand" else f"as an outlier; last fault: {endpoint.last_fault}"
        text = "%s: %s is ejected for %.1f s, %s"
        self._news.add(INFO, text, self._service, endpoint.instance, seconds, why)
        self.tell(Ejected, endpoint, seconds, by)
        self._line.wake()

    def admit(self, endpoint: Endpoint) -> None:
        """In, whatever kept it out."""
        now = self._clock()
        before = endpoint.standing(now)
        endpoint.renew(self._pool.fresh_breaker(endpoint))
        endpoint.warm_since = now
        self._pool.changed(endpoint)
        text = "%s: %s is admitted by hand; it was %s"
        self._news.add(INFO, text, self._service, endpoint.instance, before)
        self.tell(Admitted, endpoint)
        self._line.wake()

    def checked(self, endpoint: Endpoint, *, healthy: bool, why: str) -> None:
        """Active checks have come to another result. An open breaker may be probed soon then."""
        now = self._clock()
        endpoint.healthy = healthy
        if healthy:
            endpoint.warm_since = now
            endpoint.breaker.sooner(now, self._rng)
        self._pool.changed(endpoint)
        self._counts.health(healthy=healthy)
        if healthy:
            text, since = "%s: %s passes its health checks after %.1f s", endpoint.unhealthy_since
            self._news.add(INFO, text, self._service, endpoint.instance, now - since)
        else:
            endpoint.unhealthy_since = now
            text = "%s: %s fails its health checks: %s"
            self._news.add(WARNING, text, self._service, endpoint.instance, why)
        self.tell(HealthChanged, endpoint, healthy)
        self._line.wake()

    def tell(self, kind: Callable[..., Event], endpoint: Endpoint, *details: object) -> None:
        """Something has happened to an endpoint."""
        if self._news.heard:
            self._news.tell(kind(self._service, self._clock(), endpoint.instance, *details))
