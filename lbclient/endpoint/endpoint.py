"""Endpoint: one instance, with its breaker and its load in one client."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

from lbclient._internal.statistics import Ewma
from lbclient.endpoint.breaker import Breaker, BreakerPolicy
from lbclient.endpoint.instance import Instance

__all__ = ["Endpoint", "EndpointStatus", "Share", "draw"]

EndpointStatus = Literal["serving", "resting", "open", "half-open", "unhealthy", "ejected"]

_MOST_PENALTY = 16.0
_TRUST = math.log2(4 / 3)
"""The part of the penalty that a success removes. With this value, an instance is avoided if more
than about three calls in ten fail.
"""
_SHORTEST_PENALTY = 0.5
_LONGEST_PENALTY = 30.0
"""Seconds."""
_GAIN = 0.3


class Endpoint:
    """One instance, and its state in this client. Strategies read it; only the engine changes it.

    `instance` is its latest record from discovery. `in_flight` counts attempts from the pick until
    the body is closed. `latency` is an exponentially weighted mean of attempt times, in seconds
    (None before the first). `weight` is its share of the traffic, relative to other endpoints (a
    weight of 0 is replaced by a small one, see `core/pool.py`).
    """

    __slots__ = (
        "_penalized_at",
        "_served_at",
        "attempts",
        "backing_off_until",
        "breaker",
        "client_errors",
        "ejected_until",
        "failures",
        "gone",
        "healthy",
        "in_flight",
        "instance",
        "last_fault",
        "learned",
        "limit",
        "mean_latency",
        "paused_until",
        "penalty",
        "unhealthy_since",
        "unreached",
        "warm_since",
        "weight",
    )

    def __init__(self, instance: Instance, policy: BreakerPolicy) -> None:
        self.instance: Instance = instance
        self.weight: float = float(instance.weight)
        self.breaker: Breaker = Breaker(policy, str(instance))
        self.in_flight: int = 0
        self.attempts: int = 0
        self.failures: int = 0
        self.mean_latency: Ewma[float | None] = Ewma(_GAIN, None)
        self.limit: float | None = None
        """The learned limit of attempts in flight, if there is one."""
        self.learned: object = None
        """Other state of the rule that learns `limit`. Only that rule reads it."""
        self.paused_until: float = 0.0
        """The clock time until which the instance gets no attempts, since it rejected its only
        attempt in flight. """
        self.backing_off_until: float = 0.0
        """The clock time until which the instance backs off (`Retry-After`)."""
        self.ejected_until: float = 0.0
        """The clock time at which the ejection ends. An instance is ejected by hand, or if its
        success rate is far below that of its peers.
        """
        self.warm_since: float = -math.inf
        """The time when the instance last returned to the rotation, or joined other instances. """
        self.healthy: bool = True
        """The result of the active checks."""
        self.unhealthy_since: float = 0.0
        """The time when the active checks last found the instance unhealthy."""
        self.last_fault: str | None = None
        """The last fault: a status, or the name of an error."""
        self.gone: bool = False
        self.unreached: int = 0
        """The epoch (see `Reachability`) of the last counted failure to reach the instance; 0 while
        it can be reached.
        """
        self.client_errors: Share = Share()
        """The share of answers that say that the request is wrong."""
        self.penalty: float = 0.0
        """How many times failures have doubled the load. A success makes this number smaller."""
        self._penalized_at = -math.inf
        self._served_at = -math.inf

    def __repr__(self) -> str:
        return f"<Endpoint {self.instance} {self.breaker.state}, {self.in_flight} in flight>"

    @property
    def latency(self) -> float | None:
        """The mean time of recent attempts that the instance answered, in seconds; None before the
        first answer."""
        return self.mean_latency.value

    def load(self, now: float) -> float:
        """Attempts in flight plus a penalty for recent faults.

        Without the penalty, an instance that fails fast looks idle and attracts all traffic
        (linkerd/linkerd2-proxy#4537). The first failure weighs as much as two attempts in flight.
        Each further failure doubles this penalty, but at most once per round trip (TCP halves its
        window at most that often, too). A success removes a part of it. With time, the penalty
        falls linearly to zero. This takes twice as long as the time for which the instance has
        failed without a success, but at least half a second and at most 30 s. So a short fault is
        forgotten within seconds, whatever the rate of calls is, and during a long fault the
        instance gets fewer and fewer attempts.
        """
        if not self.penalty:
            return self.in_flight
        failing = self._penalized_at - self._served_at
        lasts = min(_LONGEST_PENALTY, max(_SHORTEST_PENALTY, 2 * failing))
        left = 1.0 - (now - self._penalized_at) / lasts
        weight: float = 2.0 * (2.0**self.penalty - 1.0)
        return self.in_flight + weight * max(0.0, left)

    def renew(self, breaker: Breaker) -> None:
        """Reset the state, since the name now belongs to another machine, which did not cause the
        past faults."""
        self.breaker = breaker
        self.backing_off_until = 0.0
        self.ejected_until = 0.0
        self.healthy = True
        self.limit = self.learned = None
        self.paused_until = 0.0
        self.unreached = 0
        self.client_errors = Share()
        self.penalty = 0.0
        self.mean_latency.value = None

    def status(self, now: float, *, ignore_health: bool = False) -> EndpointStatus:
        """Return `"serving"` if this endpoint is in rotation, or the strongest reason why it is
        not.

        With `ignore_health`, the result of active checks is ignored.
        """
        if self.ejected_until > now:
            return "ejected"
        if not (self.healthy or ignore_health):
            return "unhealthy"
        if self.breaker.refuses:
            return "half-open" if self.breaker.state == "half-open" else "open"
        return "resting" if self.backing_off_until > now else "serving"

    standing = status
    """An alias: the name of `status` in version 0.1.0."""

    def record_fault(self, now: float, started: float = math.inf, weight: float = 1.0) -> None:
        """Record an attempt, sent at `started`, that was a fault."""
        self.failures += 1
        self.penalize(now, started, weight)

    def penalize(self, now: float, started: float, weight: float) -> None:
        """Raise the penalty for an attempt sent at `started`, with a weight of 0 to 1.

        Failures of attempts that were in flight at the same time count as one failure.
        """
        if started < self._penalized_at or weight <= 0:
            return
        if not self.penalty:
            self._served_at = min(started, now)
        self.penalty = min(_MOST_PENALTY, self.penalty + weight)
        self._penalized_at = now

    def record_success(self, now: float) -> None:
        """Record an attempt that the instance has served."""
        self.penalty = max(0.0, self.penalty - _TRUST)
        self._served_at = now


class Share:
    """The share of attempts that end in a certain way, as a moving average. It is updated at each
    attempt that ends in this way."""

    __slots__ = ("_attempts", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._attempts = 0

    def count(self, attempts: int, gain: float) -> float:
        """Count one more attempt that ended in this way, and return the share.

        `attempts` is the number of all attempts so far. All other attempts since the last call of
        this method ended in another way.
        """
        others = max(0, attempts - self._attempts - 1)
        self._attempts = attempts
        self._value += gain * (1.0 - self._value)
        self._value *= (1.0 - gain) ** others
        return self._value


def draw(endpoints: Sequence[Endpoint], rng: random.Random) -> Endpoint:
    """Draw one endpoint at random, in proportion to the weights."""
    place = rng.random() * sum(one.weight for one in endpoints)
    for one in endpoints:
        place -= one.weight
        if place < 0:
            return one
    return endpoints[-1]
