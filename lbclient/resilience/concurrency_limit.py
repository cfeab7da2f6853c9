"""Limits of attempts in flight: at one instance, fixed or adaptive, and at all instances together.

The adaptive limit of an instance is learned from the outcomes of its attempts.
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
"""The weight of a new answer in the moving average that is the baseline latency."""
_AVERAGED = 32
"""The rejected share is averaged over this many attempts, or over the attempts of one round if
these are more."""
_CHANCE = 1 / 8
"""Up to this rejected share, rejections may be due to chance, unless the share was larger before.
"""
_SLOW_START = 0.3
"""During slow start, each success adds this number to the limit."""
_FEW = 4
"""Below this limit, one slot is a large part of all slots. So a large part of the attempts may fail
when the limit rises to a level at which attempts were rejected before."""
_EARNED = 64
"""Before the limit rises again to a level at which attempts were rejected, there must be this
number of successes, times the rejected share."""
_LONGEST_HOLD = 16.0
_LONGEST_WAIT = 64.0
"""The unit is rounds."""
_LONGEST_PAUSE = 10.0
_SHORTEST_PAUSE = 0.001
"""The unit is seconds."""
_FORGIVEN = 1 / 4
"""A success multiplies the pause by this factor."""


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    """The limit of attempts in flight of one instance, learned from the outcomes of its attempts.

    The limit rises while it is fully used and calls succeed. It falls in proportion to the share of
    attempts that are rejected.

    - `initial`: the limit at first, in attempts in flight.
    - `least`, `most`: the bounds of the limit.
    - `backoff`: the factor, between 0 and 1, by which the limit is multiplied when all attempts are
      rejected. When only some of the attempts are rejected, this decrease is multiplied by their
      share.
    - `tolerance`: if an answer takes more than this many times the baseline latency, it has waited
      in a queue. Then the limit falls by as much as it would have risen. With None, latency is
      ignored. The baseline is the mean latency of attempts that were sent while the number of
      attempts in flight was at most half of the limit.

    Faults, and answers such as 429, are rejections. A rejection seldom proves overload: a handler
    with a bug may fail one call in fifty at any load. If each fault halved the limit, such faults
    alone would reduce it to a few attempts. (A limit that is halved with probability p settles near
    the square root of 1/p.) So the limit follows the moving average of the rejected share, as in
    DCTCP (RFC 8257). Rejections lower the limit at most once per round. A round consists of the
    attempts that are in flight at one time. The average starts at one. So an instance that rejects
    its first attempts gets fewer attempts at once. If fewer attempts are in flight than the limit
    allows, the limit falls from their number, not from its own value (RFC 5681).

    The limit rises fast at first: by 30 % per round (slow start). At this rate, if the limit rises
    too far, retries can still make up for the attempts that are rejected. Slow start ends when the
    rejected share has exceeded one eighth, or when an answer has waited in a queue. During slow
    start, rejections lower the limit only if most attempts are rejected. After slow start, one
    round in which the limit is fully used raises the limit by one, or by half of its square root if
    that is more.

    Before the limit rises again to a level at which attempts were rejected, a number of attempts
    must succeed. This number is proportional to the rejected share. Otherwise an instance at its
    capacity would always reject a part of the attempts, more than retries can repair. Below a limit
    of four, where one attempt more is a large part of all attempts, this number doubles each time
    the same level is rejected again.

    If an instance rejects the only attempt in flight, nothing is sent to it for a time (a pause).
    The pause doubles with each further rejection in a row, like TCP's retransmission timeout at a
    window of one. The pause is multiplied by a random factor from 0.5 to 1.5. A success reduces the
    pause to a quarter. Because of the pauses, an instance can serve more clients than it has slots.
    But clients that do not coordinate send at the same time by chance. If they send at random times
    to an instance with two slots, they use at most 42 % of its capacity. (With G attempts per unit
    of time, G e^-G (1 + G) succeed, which is at most 0.84 of 2.) Only clients that keep a slot
    while their attempts succeed use a larger part.

    The limit itself is one number per instance. The caller stores this number and passes it in;
    None means `initial`. The number is rounded down: 4.9 allows four attempts.

    Source: AIMD (Chiu and Jain 1989) is used as a concurrency limit in Netflix's library
    concurrency-limits and in Palantir's Dialogue. The square root comes from the Gradient limits of
    concurrency-limits. The average comes from DCTCP (RFC 8257). The use of latency as a sign of
    queues comes from TCP Vegas (Brakmo and Peterson 1995). TCP Vegas compares each latency with the
    lowest one; here each latency is compared with a mean. If a service has fast and slow answers,
    few of them are near the minimum. Then a comparison with the minimum would lower the limit even
    without a queue. The formula for the throughput of clients that send at random times comes from
    Abramson (1970).

    Raises ValueError or TypeError for a value that cannot be used.
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
        """True if an instance with this many attempts in flight may get no more attempts."""
        return in_flight + 1 > (self.initial if limit is None else limit)

    def grown(self, limit: float | None, in_flight: int) -> float:
        """Return the limit after a success. `in_flight` includes the attempt that succeeded.

        The limit rises only if it was nearly reached, since a success with few attempts in flight
        does not show that the instance can serve more. One round in which the limit is fully used
        raises it by one, or by half of its square root if that is more.
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
        """True if the latency of an attempt is included in the baseline latency.

        `concurrent` is the number of other attempts in flight when the attempt was sent. The load
        at the start of an attempt decides, not the load at its end. Otherwise the baseline would
        include too many fast attempts: when an instance becomes busy, fast attempts are more likely
        than slow ones to have ended before.
        """
        return concurrent + 1 <= max(1.0, (self.initial if limit is None else limit) / 2)

    def shrunk(
        self, limit: float | None, share: float = 1.0, in_flight: int | None = None
    ) -> float:
        """Return the limit after a round in which this `share` of the attempts was rejected, with
        `in_flight` attempts in flight.

        The limit is rounded down. Otherwise a limit near 1 would never fall below the next whole
        number.
        """
        limit = self.initial if limit is None else limit
        return max(self.least, math.floor(limit - share * self.excess(limit, in_flight)))

    def excess(self, limit: float, in_flight: int | None) -> float:
        """The difference between the limit and the value to which it falls if all attempts are
        rejected."""
        return limit - self.backoff * (limit if in_flight is None else min(limit, in_flight))

    def _reached(self, limit: float, in_flight: int) -> bool:
        return in_flight >= math.floor(limit * self.backoff)


def _step(limit: float) -> float:
    return max(1.0, math.sqrt(limit) / 2) / limit


class LearnedLimit:
    """The state of an `AdaptiveLimit` for one instance. It has no lock: callers hold the balancer's
    lock.

    Nothing is sent to the instance until the clock time `paused_until`.
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
        """The number of attempts in the average `_share` so far."""
        self._seen = 0.0
        """A moving average like `_share`, but it starts at zero: the rejected share as it was
        observed."""
        self._slow_start = True
        self._round_from = -math.inf
        """A rejection of an attempt that was sent before this time does not lower the limit again.
        """
        self._excess = 0.0
        self._taken = 0.0
        """The part of the `excess` by which the rejections of this round have lowered the limit so
        far."""
        self._level = 0
        """The level (value of the limit) at which attempts were last rejected; 0 if there is none.
        """
        self._held = 0.0
        """The number of rounds of successes until the limit may rise to `_level` again."""
        self._wait = 0.0
        self._pause = 0.0
        self.baseline_latency: Ewma[float | None] = Ewma(_GAIN, None)
        """The mean latency, in seconds, of attempts that were sent while the number in flight was
        at most half of the limit."""
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
        """End a pause, since the instance serves again."""
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
        # `Ewma` is not used here, since the gain depends on the number of attempts in flight.
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

    Raises ValueError or TypeError, naming the argument, for a value that cannot be used.
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
