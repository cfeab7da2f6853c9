"""Peak EWMA: of two choices the one that costs least."""

from __future__ import annotations

from collections.abc import Sequence

from lbclient._internal import validation
from lbclient.endpoint import Endpoint
from lbclient.endpoint.endpoint import draw
from lbclient.strategy.outcome_history import OutcomeHistory, Record
from lbclient.strategy.protocol import PickContext

__all__ = ["PeakEwma"]

_UNKNOWN = 1e9
_GAIN = 0.05


class _Peak(Record):
    """Its latency too, in seconds: None until an answer was served."""

    __slots__ = ("latency",)

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.latency: float | None = None

    def saw(self, elapsed: float, fade: float, *, failed: bool) -> None:
        """A failure tells of latency only where it took longer than answers do."""
        old = self.latency
        if failed:
            self.latency = old if old is None else max(old, elapsed)
        else:
            mean = elapsed if old is None else fade * old + (1.0 - fade) * elapsed
            self.latency = max(mean, elapsed)


class PeakEwma:
    """Of `choices` random candidates the cheapest: latency x (in flight + 1) / weight.

    Latency is a moving average that jumps to a higher value at once and comes down to lower ones
    with e^(-t / `decay`): one slow answer is enough to leave an instance, and while it is idle it
    becomes cheaper, until it is tried again. An instance that has not answered yet is tried at
    once, but gets no second call before the first has ended.

    A failure is no quick answer: it leaves the latency as it was, or raises it, and doubles the
    cost (see `OutcomeHistory`). Else an instance that fails fast would look best and draw all
    traffic (linkerd/linkerd2-proxy#4537, which counts a failure as an answer of five seconds;
    doubling needs no such number, holds under any load, and lets errors that all have alike cancel
    out). An instance that fails more than about three calls in ten is left but for one call every 7
    / 10 of `decay`.

    Use it where instances differ in speed or slow down at times, also across regions: the near
    ones are preferred while they are quick. Do not where a call's duration says more of the call
    than of the instance (downloads, long polls). At little load nearly all calls go to the
    quickest for its weight. A pick and an answer cost O(1), at any number of instances.

    Source: Finagle's `PeakEwma`; Envoy's and linkerd's after it.

    Raises ValueError for a `decay` (seconds) that is not above 0, or `choices` below 2.
    """

    def __init__(self, decay: float = 10.0, choices: int = 2) -> None:
        self._decay = validation.seconds("decay", decay)
        self._choices = validation.count("choices", choices, least=2)
        self._memory = OutcomeHistory(_Peak, decay)
        self._mean_latency: float | None = None

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
        record = self._memory.of(endpoint, now)
        fade = self._memory.record_outcome(record, elapsed, failed=failed, now=now)
        record.saw(elapsed, fade, failed=failed)
        if not failed:
            mean_latency = elapsed if self._mean_latency is None else self._mean_latency
            self._mean_latency = mean_latency + _GAIN * (elapsed - mean_latency)

    def _cost(self, one: Endpoint, now: float) -> float:
        """Seconds of work before it, for one unit of weight."""
        record = self._memory.known(one, now)
        if record is None:
            return (_UNKNOWN + one.in_flight) / one.weight if one.in_flight else 0.0
        fade = self._memory.fade(record, now)
        latency = record.latency
        if latency is None:  # it has only failed: no better than the others
            latency = 1.0 if self._mean_latency is None else self._mean_latency
        return latency * fade * (1.0 + record.penalty * fade) * (one.in_flight + 1) / one.weight
