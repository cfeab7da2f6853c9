"""The record that a strategy keeps of each instance, and how failures raise the instance's cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

from lbclient._internal.statistics import Ewma
from lbclient.endpoint.endpoint import Endpoint

__all__ = ["LatencyByLoad", "OutcomeHistory", "Record"]

_MOST_PENALTY = 2.0**16
_LEFT_OF_PENALTY = 0.75
_GAIN = 0.05
_ROOM = 256
_LEVEL_GAIN = 0.3


class Record:
    """The penalty of one instance for its failures, as of the time `at`.

    The strategy multiplies the cost of the instance by (1 + `penalty`).
    """

    __slots__ = ("at", "failed_at", "penalty")

    def __init__(self, now: float) -> None:
        self.at: float = now
        self.penalty: float = 0.0
        self.failed_at: float = -math.inf


R = TypeVar("R", bound=Record)


class OutcomeHistory(Generic[R]):
    """A record for each endpoint that has answered. `make(now)` creates a new record. R is its
    type.

    The cost of an instance is multiplied by 1 + its penalty. A failure doubles this cost. Calls
    that failed at the same time count as one failure, so the cost doubles at most once per round
    trip. (TCP halves its window at most that often, too.) The larger the share of all attempts that
    fail, the smaller is the effect of one failure: if all instances fail, none is worse than the
    others. A successful response removes a quarter of the penalty. In addition, the penalty
    decreases with time, by the factor e^(-t / `decay`).

    Records of instances that have left are removed once as many new instances have joined. An
    instance that has left and joins again starts with a new record. The amortised cost of each
    method is O(1).
    """

    def __init__(self, make: Callable[[float], R], decay: float) -> None:
        self._make = make
        self._decay = decay
        self._failing = Ewma(_GAIN, 0.0)
        self._records: dict[Endpoint, R] = {}
        self._room = _ROOM

    def __len__(self) -> int:
        return len(self._records)

    def known(self, endpoint: Endpoint, now: float) -> R | None:
        """Return the record of an endpoint, or None if it has not answered since it last joined."""
        record = self._records.get(endpoint)
        if record is None or record.at <= endpoint.warm_since <= now:
            return None
        return record

    def of(self, endpoint: Endpoint, now: float) -> R:
        """Return the record of an endpoint, or make one if there is none."""
        record = self.known(endpoint, now)
        if record is None:
            record = self._records[endpoint] = self._make(now)
            if len(self._records) > self._room:
                self._records = {one: kept for one, kept in self._records.items() if not one.gone}
                self._room = 2 * len(self._records) + _ROOM
        return record

    def fade(self, record: Record, now: float) -> float:
        """Return the factor, from 1 down to 0, by which the values of a record have decreased with
        time."""
        return math.exp((record.at - now) / self._decay)

    def record_outcome(self, record: Record, elapsed: float, *, failed: bool, now: float) -> float:
        """Record an attempt that took `elapsed` seconds. Returns the value of `fade` before this
        change."""
        fade = math.exp((record.at - now) / self._decay)
        record.at = now
        record.penalty *= fade if failed else fade * _LEFT_OF_PENALTY
        if failed and now - elapsed >= record.failed_at:
            worse = (1.0 + record.penalty) * (1.0 - self._failing.value) ** 2
            record.penalty = min(record.penalty + worse, _MOST_PENALTY)
            record.failed_at = now
        self._failing.record(failed)
        return fade


class LatencyByLoad:
    """The recent latency of responses, for each level of requests in flight.

    A level is a range of numbers of other attempts in flight: 0, 1, 2 to 3, 4 to 7, ...
    """

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        self._levels: dict[int, tuple[Ewma[float], float]] = {}

    def record_latency(self, others: int, elapsed: float, now: float, age: float) -> None:
        """Record a response that took `elapsed` seconds, with this many other attempts in
        flight."""
        level = others.bit_length()
        mean, at = self._levels.get(level, (None, -math.inf))
        if mean is None or now - at > age:
            mean = Ewma(_LEVEL_GAIN, elapsed)
        else:
            mean.record(elapsed)
        self._levels[level] = mean, now

    def latency(self, in_flight: int, now: float, age: float) -> float | None:
        """Return the latency at this level, in seconds.

        If there was no response at this level within the last `age` seconds, the result is the
        latency at the nearest level with such a response, or None if no level has one.
        """
        level = in_flight.bit_length()
        mean, at = self._levels.get(level, (None, -math.inf))
        if mean is not None and now - at <= age:
            return mean.value
        fresh = [
            (abs(other - level), mean.value)
            for other, (mean, at) in self._levels.items()
            if now - at <= age
        ]
        return min(fresh)[1] if fresh else None
