"""Endpoint: one instance with what a client knows of it: its breaker and its load."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

from lbclient.breaker import Breaker, BreakerPolicy
from lbclient.instance import Instance

__all__ = ["Endpoint", "Standing", "draw"]

Standing = Literal["serving", "resting", "open", "half-open", "unhealthy", "ejected"]

_DECAY = 5.0
_FORGOTTEN = 0.05
"""So little left of a penalty must not decide between two that are idle: all fade alike, so whoever
has failed last would never be picked again."""
_EWMA = 0.3


class Endpoint:
    """One instance in rotation. Read by strategies, written by the core only.

    `instance` is its current record, `in_flight` the attempts from pick until the body is closed,
    `latency` an exponentially weighted mean of attempt times in seconds (None before the first),
    `weight` the share it counts with (0 made usable, see `pool`).
    """

    __slots__ = (
        "_penalty",
        "_penalty_at",
        "attempts",
        "breaker",
        "calm",
        "failures",
        "gone",
        "healthy",
        "in_flight",
        "instance",
        "last_fault",
        "latency",
        "limit",
        "out_until",
        "rest_until",
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
        self.calm: float | None = None
        """Mean seconds of attempts sent while it was far from its limit, where one is learned."""
        self.rest_until = 0.0
        """Until then it asked to be left alone."""
        self.out_until = 0.0
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
        """The epoch (see `Charges`) of the last failure to reach it that counted; 0 while it can be
        reached."""
        self._penalty = 0.0
        self._penalty_at = 0.0

    def __repr__(self) -> str:
        return f"<Endpoint {self.instance} {self.breaker.state}, {self.in_flight} in flight>"

    def load(self, now: float) -> float:
        """Attempts in flight plus what its recent faults add.

        Without the second part an instance that fails fast looks idle and draws all traffic
        (linkerd/linkerd2-proxy#4537). Each fault weighs as one attempt in flight, fading over
        seconds.
        """
        return self.in_flight + self._faults(now)

    def renew(self, breaker: Breaker) -> None:
        """The same name stands for another machine now: past faults are not its own."""
        self.breaker = breaker
        self.rest_until = 0.0
        self.out_until = 0.0
        self.healthy = True
        self.limit = self.calm = None
        self.unreached = 0
        self._penalty = 0.0
        self.latency = None

    def standing(self, now: float, *, blind: bool = False) -> Standing:
        """Whether it serves, or the one thing that keeps it out most firmly.

        `blind` has active checks disregarded.
        """
        if self.out_until > now:
            return "ejected"
        if not (self.healthy or blind):
            return "unhealthy"
        if self.breaker.refuses:
            return "half-open" if self.breaker.state == "half-open" else "open"
        return "resting" if self.rest_until > now else "serving"

    def took(self, elapsed: float) -> None:
        """An attempt that it answered took so long, in seconds."""
        old = self.latency
        self.latency = elapsed if old is None else old + _EWMA * (elapsed - old)

    def failed(self, now: float) -> None:
        """An attempt was its fault."""
        self.failures += 1
        self._penalty = self._faults(now) + 1.0
        self._penalty_at = now

    def _faults(self, now: float) -> float:
        if not self._penalty:
            return 0.0
        left = self._penalty * math.exp((self._penalty_at - now) / _DECAY)
        return left if left >= _FORGOTTEN else 0.0


def draw(endpoints: Sequence[Endpoint], rng: random.Random) -> Endpoint:
    """Throw the dice in proportion to the weights."""
    place = rng.random() * sum(one.weight for one in endpoints)
    for one in endpoints:
        place -= one.weight
        if place < 0:
            return one
    return endpoints[-1]
