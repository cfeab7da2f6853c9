"""Outlier detection: ejects, for a time, an instance that fails far more often than its peers.

A breaker opens after faults in a row. But an instance that fails 40 % of its calls at random fails
five calls in a row only once in 160 calls, and the next success closes the breaker again. So
outlier detection compares the share of faults in one interval with that of the peers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from itertools import chain

from lbclient._internal import validation
from lbclient.endpoint.breaker import Breaker
from lbclient.endpoint.endpoint import Endpoint

__all__ = ["OutlierPolicy", "Outliers"]

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    """Defines which instance is an outlier, and for how long it is ejected.

    - `interval`: seconds over which outcomes are counted. At the end of each interval, outliers are
      ejected.
    - `margin`: an instance is an outlier if its success rate is lower than the rate of all its
      peers together by more than this number; above 0, at most 1.
    - `minimum_calls`: if the instance, or its peers, have fewer calls in the interval, the instance
      is not rated.
    - `ejection`: seconds of the first ejection. (The actual time is random, between half of this
      value and all of it.) Each further ejection of the same instance is twice as long, up to
      `ejection_max`. For each interval in which the instance is in rotation and is not an outlier,
      one of these doublings is undone.
    - `max_ejected`: at most this fraction of a tier is ejected at the same time. It is above 0 and
      at most 1. If a tier has two or more instances, at least one of them may be ejected, and at
      least one stays.

    The interval, the growing ejection and the maximum of ejected instances come from Envoy. The
    margin does not come from Envoy. A margin works with two instances or more. In Envoy, an
    instance is an outlier if its rate is 1.9 standard deviations below the mean. But none of n
    instances can be more than √(n - 1) standard deviations below the mean. So Envoy's rule finds no
    outlier among four or fewer instances, and with its maximum of 10 % none of nine or fewer
    instances is ejected (envoyproxy/envoy#27909).

    Raises ValueError or TypeError for a value that cannot be used.
    """

    interval: float = 10.0
    margin: float = 0.3
    minimum_calls: int = 20
    ejection: float = 30.0
    ejection_max: float = 300.0
    max_ejected: float = 0.34

    def __post_init__(self) -> None:
        validation.seconds("interval", self.interval)
        validation.number("margin", self.margin, above=True)
        validation.fraction("margin", self.margin)
        validation.count("minimum_calls", self.minimum_calls)
        validation.seconds("ejection", self.ejection)
        validation.seconds("ejection_max", self.ejection_max)
        validation.number("max_ejected", self.max_ejected, above=True)
        validation.fraction("max_ejected", self.max_ejected)
        if self.ejection > self.ejection_max:
            raise ValueError(
                f"ejection ({self.ejection:g} s) must not be above "
                f"ejection_max ({self.ejection_max:g} s)"
            )


class _Tally:
    """The outcomes of one instance in the interval."""

    __slots__ = ("calls", "faults")

    def __init__(self) -> None:
        self.calls = 0
        self.faults = 0


class Outliers:
    """Counts the outcomes of all instances of one balancer, and finds the outliers. It has no lock:
    callers hold the balancer's lock.

    Call `count` for each outcome. When `count` returns True, call `verdicts` and eject the
    instances that it returns. Outcomes are counted for each breaker: if an endpoint gets a new
    breaker, it is another machine.
    """

    __slots__ = ("_ends", "_policy", "_rng", "_tallies", "_times")

    def __init__(self, policy: OutlierPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._tallies: dict[Breaker, _Tally] = {}
        self._times: dict[Breaker, int] = {}
        """The number of recent ejections of each machine."""
        self._ends = -math.inf

    def count(self, endpoint: Endpoint, *, fault: bool, now: float) -> bool:
        """Count one outcome. Returns True when the interval is over; then call `verdicts`."""
        if now >= self._ends and self._overslept(now):
            self._begin(now)
        tally = self._tallies.get(endpoint.breaker)
        if tally is None:
            tally = self._tallies[endpoint.breaker] = _Tally()
        tally.calls += 1
        tally.faults += fault
        return now >= self._ends

    def verdicts(
        self,
        now: float,
        tiers: Sequence[Sequence[Endpoint]],
        serving: Callable[[Endpoint], bool],
    ) -> list[tuple[Endpoint, float]]:
        """Return the endpoints to eject, each with the seconds of its ejection. A new interval
        starts.

        `tiers` are all known endpoints. `serving` tells whether an endpoint is in rotation now.
        `ejected_until` tells which endpoints are already ejected. No tier loses its last instance
        in rotation.
        """
        if self._overslept(now):
            return []
        found = [self._outliers(tier) for tier in tiers]
        self._decay(tiers, {one for outliers in found for one in outliers}, serving)
        self._begin(now)
        return [
            (one, self._period(one))
            for tier, outliers in zip(tiers, found, strict=True)
            for one in self._allowed(tier, outliers, now, serving)
        ]

    def _overslept(self, now: float) -> bool:
        """True if the process was stopped or idle for more than one further interval. Then the old
        counts are out of date."""
        return now - self._ends >= self._policy.interval

    def _begin(self, now: float) -> None:
        self._tallies = {}
        self._ends = now + self._policy.interval

    def _outliers(self, tier: Sequence[Endpoint]) -> list[Endpoint]:
        """The endpoints of a tier that fail far more often than their peers, the worst first."""
        policy = self._policy
        called = [(one, tally) for one in tier if (tally := self._tallies.get(one.breaker))]
        calls = sum(tally.calls for _, tally in called)
        faults = sum(tally.faults for _, tally in called)
        found: list[tuple[float, Endpoint]] = []
        for one, tally in called:
            others = calls - tally.calls
            if min(tally.calls, others) < policy.minimum_calls:
                continue
            rate = tally.faults / tally.calls
            if rate - (faults - tally.faults) / others > policy.margin + _ROUNDING:
                found.append((rate, one))
        found.sort(key=lambda rated: rated[0], reverse=True)
        return [one for _, one in found]

    def _allowed(
        self,
        tier: Sequence[Endpoint],
        outliers: Sequence[Endpoint],
        now: float,
        serving: Callable[[Endpoint], bool],
    ) -> list[Endpoint]:
        """The outliers that may be ejected while enough instances of the tier stay in rotation."""
        if not outliers:
            return []
        staying = {one for one in tier if one.ejected_until <= now}
        room = max(1, int(self._policy.max_ejected * len(tier) + _ROUNDING))
        room -= len(tier) - len(staying)
        in_rotation = {one for one in staying if serving(one)}
        allowed: list[Endpoint] = []
        for one in outliers:
            if len(allowed) < room and one in staying and in_rotation - {one}:
                in_rotation.discard(one)
                allowed.append(one)
        return allowed

    def _period(self, endpoint: Endpoint) -> float:
        """The duration of the next ejection, in seconds. It is longer each time, and half of it is
        random.

        Because of the random half, instances that were ejected together do not return together.
        """
        policy = self._policy
        times = self._times.get(endpoint.breaker, 0)
        if times * policy.ejection < policy.ejection_max:
            times += 1
        self._times[endpoint.breaker] = times
        period = min(times * policy.ejection, policy.ejection_max)
        return period / 2 + self._rng.random() * period / 2

    def _decay(
        self,
        tiers: Sequence[Sequence[Endpoint]],
        outliers: Container[Endpoint],
        serving: Callable[[Endpoint], bool],
    ) -> None:
        """Subtract one from an endpoint's count of ejections for each interval that it spent in
        rotation and was not an outlier.

        Counts of machines that have left are dropped.
        """
        began = self._ends - self._policy.interval
        left: dict[Breaker, int] = {}
        for one in chain.from_iterable(tiers):
            if times := self._times.get(one.breaker, 0):
                healthy = one.ejected_until <= began and one not in outliers and serving(one)
                if times > healthy:
                    left[one.breaker] = times - healthy
        self._times = left
