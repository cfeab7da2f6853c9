"""What a strategy that learns remembers of each instance, and how failures count against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

from lbclient.endpoint import Endpoint

__all__ = ["LatencyByLoad", "OutcomeHistory", "Record"]

_MOST_PENALTY = 2.0**16
_LEFT_OF_PENALTY = 0.75
_GAIN = 0.05
_ROOM = 256
_LEVEL_GAIN = 0.3


class Record:
    """What the answers of one instance say against it, as of the time `at`.

    It costs (1 + `penalty`) times as much as it would without.
    """

    __slots__ = ("at", "failed_at", "penalty")

    def __init__(self, now: float) -> None:
        self.at = now
        self.penalty = 0.0
        self.failed_at = -math.inf


R = TypeVar("R", bound=Record)


class OutcomeHistory(Generic[R]):
    """A record, made by `make(now)`, for each endpoint that has answered.

    A failure doubles what an instance costs, at most once a round trip, as TCP halves its window:
    calls that failed together count as one. It does so less, the more of all attempts fail: in an
    outage, or where all shed load, nobody is worse than the others. An answer that was served
    takes back a quarter of the doubt, and time all of it, with e^(-t / `decay`).

    Who has left is forgotten once as many have come; who is let in again starts afresh. O(1),
    amortised.
    """

    def __init__(self, make: Callable[[float], R], decay: float) -> None:
        self._make = make
        self._decay = decay
        self._failing = 0.0
        self._records: dict[Endpoint, R] = {}
        self._room = _ROOM

    def __len__(self) -> int:
        return len(self._records)

    def known(self, endpoint: Endpoint, now: float) -> R | None:
        """What is remembered of it since it was let in."""
        record = self._records.get(endpoint)
        if record is None or record.at <= endpoint.warm_since <= now:
            return None
        return record

    def of(self, endpoint: Endpoint, now: float) -> R:
        """The same; a new record where there is none."""
        record = self.known(endpoint, now)
        if record is None:
            record = self._records[endpoint] = self._make(now)
            if len(self._records) > self._room:
                self._records = {one: kept for one, kept in self._records.items() if not one.gone}
                self._room = 2 * len(self._records) + _ROOM
        return record

    def fade(self, record: Record, now: float) -> float:
        """How much of it still counts: from 1 down to 0."""
        return math.exp((record.at - now) / self._decay)

    def record_outcome(self, record: Record, elapsed: float, *, failed: bool, now: float) -> float:
        """Count an attempt of `elapsed` seconds for or against it. Returns what `fade` was."""
        fade = self.fade(record, now)
        record.at = now
        record.penalty *= fade if failed else fade * _LEFT_OF_PENALTY
        if failed and now - elapsed >= record.failed_at:
            worse = (1.0 + record.penalty) * (1.0 - self._failing) ** 2
            record.penalty = min(record.penalty + worse, _MOST_PENALTY)
            record.failed_at = now
        self._failing += _GAIN * (failed - self._failing)
        return fade


class LatencyByLoad:
    """How long answers took of late, for each level of requests in flight.

    Levels are powers of two: 0, 1, 2 to 3, 4 to 7, ... others beside the attempt.
    """

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        self._levels: dict[int, tuple[float, float]] = {}

    def saw(self, others: int, elapsed: float, now: float, age: float) -> None:
        """An answer came while so many others were in flight."""
        level = others.bit_length()
        mean, at = self._levels.get(level, (elapsed, now))
        if now - at <= age:
            elapsed = mean + _LEVEL_GAIN * (elapsed - mean)
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
