"""Endpoint: one instance with what a client knows of it: its breaker and its load."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

from lbclient.endpoint.breaker import Breaker, BreakerPolicy
from lbclient.endpoint.instance import Instance

__all__ = ["Endpoint", "EndpointStatus", "Share", "draw"]

EndpointStatus = Literal["serving", "resting", "open", "half-open", "unhealthy", "ejected"]

_MOST_PENALTY = 16.0
_TRUST = math.log2(4 / 3)
"""What a success takes from the doubt: an instance is left if it fails more than about three calls
in ten."""
_SHORTEST_PENALTY = 0.5
_LONGEST_PENALTY = 30.0
"""Seconds."""
_EWMA = 0.3


class Endpoint:
    """One instance in rotation. Read by strategies, written by the core only.

    `instance` is its current record, `in_flight` the attempts from pick until the body is closed,
    `latency` an exponentially weighted mean of attempt times in seconds (None before the first),
    `weight` the share it counts with (0 made usable, see `pool`).
    """

    __slots__ = (
        "_penalized_at",
        "_served_at",
        "attempts",
        "backing_off_until",
        "baseline_latency",
        "breaker",
        "client_errors",
        "ejected_until",
        "failures",
        "gone",
        "healthy",
        "in_flight",
        "instance",
        "last_fault",
        "latency",
        "learned",
        "limit",
        "paused_until",
        "penalty",
        "unhealthy_since",
        "unreached",
        "warm_since",
        "weight",
    )

    def __init__(self, instance: Instance, policy: BreakerPolicy) -> None:
        self.instance = instance
        self.weight = float(instance.weight)
        self.breaker = Breaker(policy, str(instance))
        self.in_flight = 0
        self.attempts = 0
        self.failures = 0
        self.latency: float | None = None
        self.limit: float | None = None
        """How many attempts it may have in flight, where that is learned."""
        self.baseline_latency: float | None = None
        """Mean seconds of attempts sent while it was far from its limit, where one is learned."""
        self.learned: object = None
        """What else the rule knows that learns the limit; its own business."""
        self.paused_until = 0.0
        """Until then it is sent nothing, since it rejected the only attempt in flight."""
        self.backing_off_until = 0.0
        """Until then it asked to be left alone."""
        self.ejected_until = 0.0
        """Until then it is ejected: by hand, or for a success rate far below its peers'."""
        self.warm_since = -math.inf
        """Since then it is in rotation again, or for the first time among others."""
        self.healthy = True
        """What active checks say."""
        self.unhealthy_since = 0.0
        """When they last changed their mind for the worse."""
        self.last_fault: str | None = None
        """A status, or the name of an error."""
        self.gone = False
        self.unreached = 0
        """The epoch (see `OutcomeCharges`) of the last failure to reach it that counted; 0 while it
        can be reached."""
        self.client_errors = Share()
        """The share of its answers that say the request is wrong."""
        self.penalty = 0.0
        """How many times its load has doubled for failures that successes have not made up for."""
        self._penalized_at = -math.inf
        self._served_at = -math.inf

    def __repr__(self) -> str:
        return f"<Endpoint {self.instance} {self.breaker.state}, {self.in_flight} in flight>"

    def load(self, now: float) -> float:
        """Attempts in flight plus what its recent faults add.

        Without the second part an instance that fails fast looks idle and draws all traffic
        (linkerd/linkerd2-proxy#4537). The first failure weighs as two attempts in flight, and each
        further one doubles that, at most once a round trip, as TCP halves its window; a success
        takes a part back. The weight falls in a straight line to zero, in twice the time for which
        the instance has failed without a success, between half a second and 30 s. So a short fault
        is forgiven within seconds, whatever the rate of calls, and one that lasts costs ever fewer
        attempts.
        """
        if not self.penalty:
            return self.in_flight
        failing = self._penalized_at - self._served_at
        lasts = min(_LONGEST_PENALTY, max(_SHORTEST_PENALTY, 2 * failing))
        left = 1.0 - (now - self._penalized_at) / lasts
        weight: float = 2.0 * (2.0**self.penalty - 1.0)
        return self.in_flight + weight * max(0.0, left)

    def renew(self, breaker: Breaker) -> None:
        """The same name stands for another machine now: past faults are not its own."""
        self.breaker = breaker
        self.backing_off_until = 0.0
        self.ejected_until = 0.0
        self.healthy = True
        self.limit = self.baseline_latency = self.learned = None
        self.paused_until = 0.0
        self.unreached = 0
        self.client_errors = Share()
        self.penalty = 0.0
        self.latency = None

    def status(self, now: float, *, ignore_health: bool = False) -> EndpointStatus:
        """Whether it serves, or the one thing that keeps it out most firmly.

        `ignore_health` has active checks disregarded.
        """
        if self.ejected_until > now:
            return "ejected"
        if not (self.healthy or ignore_health):
            return "unhealthy"
        if self.breaker.refuses:
            return "half-open" if self.breaker.state == "half-open" else "open"
        return "resting" if self.backing_off_until > now else "serving"

    standing = status
    """An alias, by its name in 0.1.0."""

    def record_latency(self, elapsed: float) -> None:
        """An attempt that it answered took so long, in seconds."""
        old = self.latency
        self.latency = elapsed if old is None else old + _EWMA * (elapsed - old)

    def failed(self, now: float, started: float = math.inf, weight: float = 1.0) -> None:
        """An attempt, sent at `started`, was its fault."""
        self.failures += 1
        self.penalize(now, started, weight)

    def penalize(self, now: float, started: float, weight: float) -> None:
        """An attempt, sent at `started`, speaks against it with a weight of 0 to 1.

        Attempts that were under way together count as one.
        """
        if started < self._penalized_at or weight <= 0:
            return
        if not self.penalty:
            self._served_at = min(started, now)
        self.penalty = min(_MOST_PENALTY, self.penalty + weight)
        self._penalized_at = now

    def served(self, now: float) -> None:
        """It has served an attempt."""
        self.penalty = max(0.0, self.penalty - _TRUST)
        self._served_at = now


class Share:
    """The moving share of attempts that ended in one way, brought up to date when one does."""

    __slots__ = ("_attempts", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._attempts = 0

    def count(self, attempts: int, gain: float) -> float:
        """One more of so many attempts ended so, none since the last one that was counted."""
        others = max(0, attempts - self._attempts - 1)
        self._attempts = attempts
        self._value += gain * (1.0 - self._value)
        self._value *= (1.0 - gain) ** others
        return self._value


def draw(endpoints: Sequence[Endpoint], rng: random.Random) -> Endpoint:
    """Throw the dice in proportion to the weights."""
    place = rng.random() * sum(one.weight for one in endpoints)
    for one in endpoints:
        place -= one.weight
        if place < 0:
            return one
    return endpoints[-1]
