"""Peak EWMA: of two choices the one that costs least; and what it remembers of each instance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lbclient import checks
from lbclient.endpoint import Endpoint, draw
from lbclient.strategy.protocol import PickContext

__all__ = ["Memory", "PeakEwma", "Record"]

_UNKNOWN = 1e9
_MOST_DOUBT = 2.0**16
_LEFT_OF_DOUBT = 0.75
_GAIN = 0.1
_ROOM = 256


class Record:
    """What one instance's answers say against it, as of the time `at`.

    It costs (1 + `doubt`) times as much. Each failure doubles that, at most once a round trip, as
    TCP halves its window; so a burst that failed together counts as one. Each answer that was
    served takes back a quarter of the doubt, and time all of it, with e^(-t / decay).
    """

    __slots__ = ("_failed_at", "at", "doubt")

    def __init__(self, now: float) -> None:
        self.at = now
        self.doubt = 0.0
        self._failed_at = -math.inf

    def fade(self, now: float, decay: float) -> float:
        """How much of what is remembered still counts: from 1 down to 0."""
        return math.exp((self.at - now) / decay)

    def judge(self, elapsed: float, now: float, decay: float, *, failed: bool) -> None:
        """An attempt of `elapsed` seconds has ended."""
        self.doubt *= self.fade(now, decay)
        self.at = now
        if not failed:
            self.doubt *= _LEFT_OF_DOUBT
        elif now - elapsed >= self._failed_at:
            self.doubt = min(2.0 * self.doubt + 1.0, _MOST_DOUBT)
            self._failed_at = now


R = TypeVar("R", bound=Record)


class Memory(Generic[R]):
    """A record for each endpoint that has answered, made by `make(now)`.

    Who has left is forgotten once as many have come; who was let in again starts afresh. O(1),
    amortised.
    """

    def __init__(self, make: Callable[[float], R]) -> None:
        self._make = make
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
                self._forget()
        return record

    def _forget(self) -> None:
        self._records = {one: record for one, record in self._records.items() if not one.gone}
        self._room = 2 * len(self._records) + _ROOM


class _Peak(Record):
    """Its latency too, in seconds: None until an answer was served."""

    __slots__ = ("latency",)

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.latency: float | None = None

    def saw(self, elapsed: float, now: float, decay: float, *, failed: bool) -> None:
        """A failure tells of latency only where it took longer than answers do."""
        old = self.latency
        if failed:
            self.latency = old if old is None else max(old, elapsed)
        else:
            kept = self.fade(now, decay)
            mean = elapsed if old is None else kept * old + (1.0 - kept) * elapsed
            self.latency = max(mean, elapsed)
        self.judge(elapsed, now, decay, failed=failed)


class PeakEwma:
    """Of `choices` random candidates the cheapest: latency x (in flight + 1) / weight.

    Latency is a moving average that jumps to a higher value at once and comes down to lower ones
    with e^(-t / `decay`): one slow answer is enough to leave an instance, and while it is idle it
    becomes cheaper, until it is tried again. An instance that has not answered yet is tried at
    once, but gets no second call before the first has ended.

    A failure is no quick answer: it leaves the latency as it was, or raises it, and doubles the
    cost (see `Record`). Else an instance that fails fast would look best and draw all traffic
    (linkerd/linkerd2-proxy#4537, which counts a failure as an answer of five seconds; doubling
    needs no such number, holds under any load, and lets errors that all have alike cancel out).
    An instance that fails more than about three calls in ten is left but for one call every
    7 / 10 of `decay`.

    Use it where instances differ in speed or slow down at times, also across regions: the near
    ones are preferred while they are quick. Do not where a call's duration says more of the call
    than of the instance (downloads, long polls). At little load nearly all calls go to the
    quickest for its weight. A pick and an answer cost O(1), at any number of instances.

    Source: Finagle's `PeakEwma`; Envoy's and linkerd's after it.

    Raises ValueError for a `decay` (seconds) that is not above 0, or `choices` below 2.
    """

    def __init__(self, decay: float = 10.0, choices: int = 2) -> None:
        self._decay = checks.seconds("decay", decay)
        self._choices = checks.count("choices", choices, least=2)
        self._memory = Memory(_Peak)
        self._usual: float | None = None

    def __repr__(self) -> str:
        return f"PeakEwma(decay={self._decay:g}, choices={self._choices})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The cheapest of a few; ties are drawn by weight."""
        drawn = candidates
        if self._choices < len(candidates):
            drawn = call.rng.sample(candidates, self._choices)
        now = call.now
        costs = [self._cost(one, now) for one in drawn]
        least = min(costs)
        if costs.count(least) == 1:
            return drawn[costs.index(least)]
        tied = [one for one, cost in zip(drawn, costs, strict=True) if cost == least]
        return draw(tied, call.rng)

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """Remember how long it took, or that it failed."""
        if endpoint.gone:
            return
        self._memory.of(endpoint, now).saw(elapsed, now, self._decay, failed=failed)
        if not failed:
            usual = elapsed if self._usual is None else self._usual
            self._usual = usual + _GAIN * (elapsed - usual)

    def _cost(self, one: Endpoint, now: float) -> float:
        """Seconds of work before it, for one unit of weight."""
        record = self._memory.known(one, now)
        if record is None:
            return (_UNKNOWN + one.in_flight) / one.weight if one.in_flight else 0.0
        fade = record.fade(now, self._decay)
        latency = record.latency
        if latency is None:  # it has only failed: no better than the others
            latency = 1.0 if self._usual is None else self._usual
        return latency * fade * (1.0 + record.doubt * fade) * (one.in_flight + 1) / one.weight
