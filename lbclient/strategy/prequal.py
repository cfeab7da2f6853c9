"""Prequal: keep out of what is hot, and of the rest take the quickest."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from lbclient import checks
from lbclient.endpoint import Endpoint
from lbclient.strategy.peak_ewma import Memory, Record
from lbclient.strategy.protocol import PickContext

__all__ = ["Prequal"]

_READINGS = 64
_GAIN = 0.3
_DECAY = 10.0


class _Recent(Record):
    """How long its answers took of late, for each level of requests in flight.

    Levels are powers of two: 0, 1, 2 to 3, 4 to 7, ... others beside the attempt.
    """

    __slots__ = ("_levels",)

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self._levels: dict[int, tuple[float, float]] = {}

    def saw(self, others: int, elapsed: float, now: float, age: float) -> None:
        """An answer came while so many others were in flight."""
        level = others.bit_length()
        mean, at = self._levels.get(level, (elapsed, now))
        if now - at <= age:
            elapsed = mean + _GAIN * (elapsed - mean)
        self._levels[level] = (elapsed, now)

    def latency(self, in_flight: int, now: float, age: float) -> float | None:
        """At this level, else at the nearest of which something was heard within `age` seconds."""
        level = in_flight.bit_length()
        mean, at = self._levels.get(level, (0.0, -math.inf))
        if now - at <= age:
            return mean
        fresh = [
            (abs(other - level), mean)
            for other, (mean, at) in self._levels.items()
            if now - at <= age
        ]
        return min(fresh)[1] if fresh else None


class Prequal:
    """Of `choices` random candidates the quickest that is not hot; where all are, the least busy.

    Hot is who has more requests in flight (RIF) than the `quantile` of what was seen of late; its
    speed does not count, since it is about to queue. A latency is one at the present RIF, and at
    most `age` seconds old; who has none is tried, but gets no second call before the first has
    ended. A failure is no quick answer: it makes an instance hotter (see `Memory`).

    What carries over from the paper: the hot-cold rule, its quantile 2^-0.25, latency conditioned
    on RIF, three instances looked at for each call, an age limit, aversion to errors (which the
    paper asks for and does not spell out). What cannot: instances are not asked. RIF is that of
    this client alone, and is taken as an attempt ends, not as it begins. An instance that gets no
    calls tells nothing, and to hear of it costs a call, so the age is ten seconds, not one. The
    pool of sixteen answers that waits for later calls, its reuse and removals, hide the time that
    a probe takes; here a counter is read at once, and such a pool came out no better.

    Use it for many alike instances under high load, where neighbours slow some of them down: it
    cuts the tail further than `PeakEwma`. Do not use it with little load (it then sends nearly all
    to the quickest), nor where calls differ much in size. Weights count under load only. A pick
    and an answer cost O(1), at any number of instances.

    Source: Wydrowski, Kleinberg, Rumble and Archer, "Load is not what you should balance:
    Introducing Prequal" (NSDI 2024), its synchronous mode.

    Raises ValueError for `choices` below 2, a `quantile` outside 0 to 1 (0 is RIF alone, 1 is
    latency alone), or an `age` (seconds) that is not above 0.
    """

    def __init__(self, choices: int = 3, quantile: float = 2.0**-0.25, age: float = 10.0) -> None:
        self._choices = checks.count("choices", choices, least=2)
        self._quantile = checks.fraction("quantile", quantile)
        self._age = checks.seconds("age", age)
        self._memory = Memory(_Recent, _DECAY)
        self._readings: deque[float] = deque(maxlen=_READINGS)

    def __repr__(self) -> str:
        return f"Prequal(choices={self._choices}, quantile={self._quantile:g}, age={self._age:g})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The quickest of a few that is not hot."""
        drawn = call.rng.sample(candidates, min(self._choices, len(candidates)))
        self._readings.extend(one.in_flight / one.weight for one in drawn)
        ranked = sorted(self._readings)
        limit = ranked[int(self._quantile * (len(ranked) - 1))]
        return min(drawn, key=lambda one: self._rank(one, limit, call.now))

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """Remember how long it took, or that it failed."""
        if endpoint.gone:
            return
        record = self._memory.of(endpoint, now)
        self._memory.judge(record, elapsed, failed=failed, now=now)
        if not failed:
            record.saw(endpoint.in_flight - 1, elapsed, now, self._age)

    def _rank(self, one: Endpoint, limit: float, now: float) -> tuple[bool, float, float]:
        """Cold before hot; the cold by latency, the hot by RIF."""
        record = self._memory.known(one, now)
        cost, latency = 1.0, None
        if record is not None:
            cost += record.doubt * self._memory.fade(record, now)
            latency = record.latency(one.in_flight, now, self._age)
        busy = (int(cost * (one.in_flight + 1)) - 1) / one.weight
        if busy > limit:
            return True, busy, 0.0
        if latency is None:
            latency = math.inf if one.in_flight else 0.0
        return False, latency, busy
