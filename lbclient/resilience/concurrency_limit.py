"""Limits of attempts in flight: at one instance, fixed or adaptive, and at all instances together.

The adaptive limit is learned from outcomes.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from lbclient._internal import validation
from lbclient._internal.statistics import Ewma
from lbclient.endpoint.endpoint import Endpoint

__all__ = ["AdaptiveLimit", "LearnedLimit", "Limits"]

_GAIN = 0.1
"""The weight of a new answer in the mean that is the baseline latency."""
_AVERAGED = 32
"""The rejected share is averaged over this many attempts, or over one round if that is more."""
_CHANCE = 1 / 8
"""Up to this rejected share, rejections may be chance, unless a larger share was seen before."""
_SLOW_START = 0.3
"""During slow start, each success adds this number to the limit."""
_FEW = 4
"""Below this limit, one slot is a large part of all slots. So if the limit probes a level that was
rejected before, a large part of the attempts may fail. """
_EARNED = 64
"""Another probe of a rejected level needs this number of successes, times the rejected share.
"""
_LONGEST_HOLD = 16.0
_LONGEST_WAIT = 64.0
"""Rounds."""
_LONGEST_PAUSE = 10.0
_SHORTEST_PAUSE = 0.001
"""Seconds."""
_FORGIVEN = 1 / 4
"""The part of the pause that a success leaves."""


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    """The concurrency limit of one instance, learned from outcomes.

    The limit rises while it is fully used and calls succeed. It falls in proportion to the share of
    attempts that are rejected.

    - `initial`: the limit at first, in attempts in flight.
    - `least`, `most`: the bounds of the limit.
    - `backoff`: the factor, between 0 and 1, by which the limit is multiplied when all attempts are
      rejected. When only some of the attempts are rejected, this decrease is multiplied by their
      share.
    - `tolerance`: an answer that takes more than this many times the baseline latency has waited in
      a queue, so the limit falls by as much as it would have risen. None: latency does not count.
      The baseline is the mean over attempts that were sent while at most half of the limit was in
      flight.

    Faults, and answers such as 429, are rejections. They seldom prove overload: a handler that
    fails one call in fifty does so at any load. A limit that is halved at each fault ends at one,
    since a window that is halved with probability p settles near the square root of 1/p. So the
    limit follows the moving average of the rejected share, as in DCTCP (RFC 8257). A rejection
    lowers the limit at most once per round. A round consists of the attempts that are in flight at
    that time. The average starts at one, so that an instance that rejects its first attempts gets
    fewer attempts at once. The decrease starts from the number in flight if that is below the limit
    (RFC 5681).

    The limit rises fast at first (slow start: 30 % per round, so that an overshoot costs no more
    than retries can repair). Slow start ends when the rejected share has exceeded one eighth, or
    when an answer has waited in a queue. Until then rejections count as chance unless most attempts
    are rejected. After slow start, one round of a full limit adds one, or half the square root of
    the limit if that is more.

    A level at which attempts were rejected is tried again only after a number of successes in
    proportion to the rejected share. Otherwise an instance at its capacity would reject a fixed
    part of all attempts, more than retries can repair. Below four, where a probe costs most, the
    wait doubles each time the probe of the same level is rejected.

    If an instance rejects even one attempt in flight, it is sent nothing for a pause. The pause
    doubles with each rejection in a row, with a jitter of one half, like TCP's retransmission
    timeout at a window of one. A success reduces the pause to a quarter. Because of the pauses, an
    instance can serve more clients than it has slots. Then clients that do not coordinate collide:
    if clients send at random times into two slots, they use at most 42 % of the capacity (the
    maximum of G e^-G (1 + G) is 0.84 of 2). Only clients that keep their slot while they succeed
    use more.

    The limit itself is one number per instance. The owner stores this number and passes it in; None
    means `initial`. Only the whole part counts: 4.9 allows four.

    Source: AIMD (Chiu and Jain 1989), as a concurrency limit in Netflix's concurrency-limits and in
    Palantir's Dialogue; the square root comes from the Gradient limits of concurrency-limits. DCTCP
    (RFC 8257) for the average. Latency as a sign of queues: TCP Vegas (Brakmo and Peterson 1995),
    which compares each latency with the lowest one. Here each latency is compared with a mean. If
    some answers are naturally fast and others slow, few of them come near the minimum. Then a
    comparison with the minimum would lower the limit of a service without any queue. Abramson
    (1970) for the throughput of random access.

    Raises ValueError or TypeError for a value outside these bounds.
    """

    initial: int = 20
    least: int = 1
    most: int = 1000
    backoff: float = 0.9
    tolerance: float | None = None

    def __post_init__(self) -> None:
        validation.count("least", self.least)
        validation.count("initial", self.initial)
        validation.count("most", self.most)
        validation.number("backoff", self.backoff, above=True)
        if validation.fraction("backoff", self.backoff) == 1:
            raise ValueError("backoff must be below 1, or the limit would never fall")
        if self.tolerance is not None:
            validation.number("tolerance", self.tolerance, least=1, above=True)
        if not self.least <= self.initial <= self.most:
            raise ValueError(
                f"initial ({self.initial}) must be between least ({self.least}) "
                f"and most ({self.most})"
            )

    def full(self, limit: float | None, in_flight: int) -> bool:
        """True if an instance with this many attempts in flight may take no more."""
        return in_flight + 1 > (self.initial if limit is None else limit)

    def grown(self, limit: float | None, in_flight: int) -> float:
        """Return the limit after a success. `in_flight` includes the attempt that succeeded.

        The limit rises only if it was nearly reached, since a success at a lower level proves
        nothing about this level. One round of a full limit adds one, or half the square root of the
        limit if that is more.
        """
        limit = self.initial if limit is None else limit
        if not self._reached(limit, in_flight):
            return limit
        return min(float(self.most), limit + _step(limit))

    def slowed(self, limit: float | None, in_flight: int) -> float:
        """Return the limit after an answer that waited in a queue. For `in_flight` see `grown`."""
        limit = self.initial if limit is None else limit
        if not self._reached(limit, in_flight):
            return limit
        return max(float(self.least), limit - _step(limit))

    def queued(self, elapsed: float, baseline: float | None) -> bool:
        """True if an answer took so long (in seconds) that it must have waited in a queue."""
        return (
            self.tolerance is not None
            and baseline is not None
            and elapsed > self.tolerance * baseline
        )

    def sets_baseline(self, concurrent: int, limit: float | None) -> bool:
        """True if the latency of an attempt counts in the baseline.

        `concurrent` is the number of other attempts in flight when the attempt was sent. The load
        at the start of an attempt decides, and not the load at its end: among the attempts that end
        before an instance becomes busy, there are more fast attempts than usual.
        """
        return concurrent + 1 <= max(1.0, (self.initial if limit is None else limit) / 2)

    def shrunk(
        self, limit: float | None, share: float = 1.0, in_flight: int | None = None
    ) -> float:
        """Return the limit after a round in which this share was rejected, with this many in
        flight.

        The limit is rounded down. Otherwise a limit near 1 would never fall below the next whole
        number.
        """
        limit = self.initial if limit is None else limit
        return max(self.least, math.floor(limit - share * self.excess(limit, in_flight)))

    def excess(self, limit: float, in_flight: int | None) -> float:
        """The difference between the limit and the value to which it falls when everything is
        rejected.
        """
        return limit - self.backoff * (limit if in_flight is None else min(limit, in_flight))

    def _reached(self, limit: float, in_flight: int) -> bool:
        return in_flight >= math.floor(limit * self.backoff)


def _step(limit: float) -> float:
    return max(1.0, math.sqrt(limit) / 2) / limit


class LearnedLimit:
    """The state of an `AdaptiveLimit` for one instance. It has no lock: the caller holds one.

    `paused_until` (clock time): the instance is sent nothing until then.
    """

    __slots__ = (
        "_average",
        "_excess",
        "_held",
        "_level",
        "_pause",
        "_round_from",
        "_seen",
        "_share",
        "_slow_start",
        "_taken",
        "_wait",
        "baseline_latency",
        "paused_until",
    )

    def __init__(self) -> None:
        self._share = 1.0
        """The moving average of the rejected share. It starts at one."""
        self._average = 1
        """The number of attempts that the average is taken over so far."""
        self._seen = 0.0
        """The same average, but started at zero: the rejected share as it was observed."""
        self._slow_start = True
        self._round_from = -math.inf
        """A rejection of an attempt that was sent before this time belongs to the last decrease."""
        self._excess = 0.0
        self._taken = 0.0
        """The share of the excess that the rejections of this round have removed so far."""
        self._level = 0
        """The limit at which attempts were last rejected; 0 for none."""
        self._held = 0.0
        """Rounds of successes until that level may be tried again."""
        self._wait = 0.0
        self._pause = 0.0
        self.baseline_latency: Ewma[float | None] = Ewma(_GAIN, None)
        """The mean latency, in seconds, of attempts sent while at most half of the limit was in
        flight."""
        self.paused_until: float = 0.0

    def rejected(
        self,
        rule: AdaptiveLimit,
        limit: float | None,
        in_flight: int,
        *,
        started: float,
        elapsed: float,
        now: float,
        rng: random.Random,
    ) -> float:
        """Return the new limit after a rejection of an attempt that was sent at `started`.

        `in_flight` includes the attempt itself.
        """
        limit = float(rule.initial if limit is None else limit)
        self._count(1.0, in_flight)
        if self._seen > _CHANCE:
            self._slow_start = False
        if self._slow_start and self._share <= 1 / 2:
            return limit
        first = started >= self._round_from
        if first and limit < 2:
            self._begin_pause(elapsed, now, rng)
            return float(rule.least)
        if first:
            self._round_from, self._taken = now, self._share
            self._excess = rule.excess(limit, in_flight)
            fallen = max(float(rule.least), limit - self._share * self._excess)
            if limit <= _FEW:
                whole = min(rule.shrunk(limit, self._share, in_flight), int(limit) - 1)
                fallen = max(rule.least, whole)
            self._begin_wait(int(fallen) + 1)
            limit = fallen
        elif self._share > self._taken:
            limit = max(float(rule.least), limit - (self._share - self._taken) * self._excess)
            self._taken = self._share
        held = self._held + _EARNED * self._share / int(limit)
        self._held = max(self._wait, min(_LONGEST_HOLD, held))
        return limit

    def served(
        self, rule: AdaptiveLimit, limit: float | None, in_flight: int, *, queued: bool
    ) -> float:
        """Return the new limit after a successful attempt. `in_flight` means the same as for
        `rejected`.

        `queued` is True if the answer was so slow that it must have waited in a queue.
        """
        before = float(rule.initial if limit is None else limit)
        self._count(0.0, in_flight)
        self._pause *= _FORGIVEN
        if queued:
            self._slow_start = False
            return rule.slowed(before, in_flight)
        grown = rule.grown(before, in_flight)
        if grown == before:
            return before
        if self._slow_start:
            return max(grown, min(float(rule.most), before + _SLOW_START))
        return self._within_hold(before, grown)

    def resume(self) -> None:
        """End a pause: the instance serves again."""
        self.paused_until = self._pause = 0.0

    def _within_hold(self, before: float, grown: float) -> float:
        level = self._level
        if not level or grown < level:
            return grown
        self._held -= 1 / int(before)
        if self._held > 0:
            return max(before, math.nextafter(level, 0.0))
        if grown >= level + 1:
            self._level, self._wait = 0, 0.0
        return grown

    def _count(self, rejected: float, in_flight: int) -> None:
        # No `Ewma`, since the number in flight changes the gain with each attempt.
        most = max(_AVERAGED, in_flight)
        self._average = min(self._average + 1, most)
        self._share += (rejected - self._share) / self._average
        self._seen += (rejected - self._seen) / most

    def _begin_wait(self, level: int) -> None:
        again = level >= self._level > 0
        self._level = level
        if level > _FEW:
            self._wait = 0.0
        else:
            self._wait = min(_LONGEST_WAIT, 2 * self._wait) if again and self._wait else 1.0

    def _begin_pause(self, elapsed: float, now: float, rng: random.Random) -> None:
        self._round_from, self._taken = now, 1.0
        least = max(elapsed, _SHORTEST_PAUSE)
        self._pause = min(_LONGEST_PAUSE, max(2 * self._pause, least))
        self.paused_until = now + self._pause * (0.5 + rng.random())


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one balancer.

    `fixed` (`max_in_flight`) limits the attempts in flight at each instance. `total`
    (`max_in_flight_total`) limits the attempts in flight at all instances together. `adaptive`
    learns the limit of each instance.

    Raises ValueError or TypeError, naming the argument.
    """

    fixed: int | None = None
    total: int | None = None
    adaptive: AdaptiveLimit | None = None

    def __post_init__(self) -> None:
        validation.limit("max_in_flight", self.fixed)
        validation.limit("max_in_flight_total", self.total)
        validation.kind("limit", self.adaptive, AdaptiveLimit)

    @property
    def each(self) -> bool:
        """True if there is a limit for each instance."""
        return self.fixed is not None or self.adaptive is not None

    def full(self, endpoint: Endpoint) -> bool:
        """True if an endpoint is at its limit."""
        if self.fixed is not None and endpoint.in_flight >= self.fixed:
            return True
        rule = self.adaptive
        return rule is not None and rule.full(endpoint.limit, endpoint.in_flight)
