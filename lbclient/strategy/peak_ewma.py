"""Peak EWMA: picks the cheapest of a few random candidates."""

from __future__ import annotations

from collections.abc import Sequence

from lbclient._internal import validation
from lbclient._internal.statistics import Ewma
from lbclient.endpoint.endpoint import Endpoint, draw
from lbclient.strategy.outcome_history import OutcomeHistory, Record
from lbclient.strategy.protocol import PickContext

__all__ = ["PeakEwma"]

_UNKNOWN = 1e9
_GAIN = 0.05


class _Peak(Record):
    """A record with the latency in seconds, which is None until an attempt has succeeded."""

    __slots__ = ("latency",)

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.latency: float | None = None


class PeakEwma:
    """Picks the cheapest of `choices` random candidates: latency x (in flight + 1) / weight.

    Latency is a moving average. It jumps to a higher value at once, and falls to lower values with
    e^(-t / `decay`). So after one slow response, an instance is avoided. While it gets no calls,
    its cost falls, until it is picked again. An instance that has not answered yet is picked at
    once, but gets no second call before the first call has ended.

    A failure never lowers the latency, even if it was fast, and it doubles the cost (see
    `OutcomeHistory`). Otherwise an instance that fails fast would look best and attract all traffic
    (linkerd/linkerd2-proxy#4537). Linkerd treats a failure as a response that took five seconds.
    Doubling needs no such number and works under any load. If all instances fail, the doubled costs
    do not change their order. An instance that fails more than about three calls in ten gets only
    one call in each period of 7 / 10 of `decay`.

    Use it when instances differ in speed or slow down at times. It also works across regions, since
    it prefers near instances while they are fast. Do not use it when the duration of a call depends
    more on the call than on the instance (downloads, long polls). At low load, nearly all calls go
    to the instance with the lowest latency in proportion to its weight. A pick and a response cost
    O(1).

    Source: Finagle's `PeakEwma`, which Envoy and linkerd follow.

    Raises ValueError if `decay` (seconds) is not above 0, or if `choices` is below 2.
    """

    def __init__(self, decay: float = 10.0, choices: int = 2) -> None:
        self._decay = validation.seconds("decay", decay)
        self._choices = validation.count("choices", choices, least=2)
        self._history = OutcomeHistory(_Peak, decay)
        self._mean_latency: Ewma[float | None] = Ewma(_GAIN, None)

    def __repr__(self) -> str:
        return f"PeakEwma(decay={self._decay:g}, choices={self._choices})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick the cheapest of a few random candidates. If several have the same cost, one of them
        is drawn by weight."""
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
        """Record how long an attempt took, or that it failed."""
        if endpoint.gone:
            return
        record = self._history.of(endpoint, now)
        fade = self._history.record_outcome(record, elapsed, failed=failed, now=now)
        old = record.latency
        if failed:  # a failure counts only if it took longer than the mean
            record.latency = old if old is None else max(old, elapsed)
        else:
            mean = elapsed if old is None else fade * old + (1.0 - fade) * elapsed
            record.latency = max(mean, elapsed)
            self._mean_latency.record(elapsed)

    def _cost(self, one: Endpoint, now: float) -> float:
        """The cost of a new call: the expected seconds until the instance has answered it and all
        calls in flight, per unit of weight."""
        record = self._history.known(one, now)
        if record is None:
            return (_UNKNOWN + one.in_flight) / one.weight if one.in_flight else 0.0
        fade = self._history.fade(record, now)
        latency = record.latency
        if latency is None:  # it has only failed so far
            latency = 1.0 if self._mean_latency.value is None else self._mean_latency.value
        return latency * fade * (1.0 + record.penalty * fade) * (one.in_flight + 1) / one.weight
