"""Peak EWMA: the least latency for what is in flight, of two choices."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lbclient import checks
from lbclient.endpoint import Endpoint, draw
from lbclient.strategy.protocol import PickContext

__all__ = ["PeakEwma", "Record", "Records"]

_ROOM = 256
_MOST_DOUBT = 2.0**16


class PeakEwma:
    """Of `choices` random candidates the one that costs least: (latency) x (in flight + 1) / weight.

    Latency is a moving average that jumps to each higher value at once and comes down with
    e^(-t / `decay`), so a slow instance is left after one slow answer and tried again little by
    little. Who has not answered yet is asked at once, and not twice before it has.

    A failure, however fast, is no good answer: it leaves the latency where it is, or raises it, and
    each one doubles the instance's cost, at most once a round trip; each answer served takes back
    an eighth, and time the rest. So who fails more than about one call in six is avoided more and
    more (without it a black hole would draw all traffic, linkerd/linkerd2-proxy#4537), while errors
    that all instances have alike move nothing. An instance that is let in again starts afresh.

    Use it where instances differ in speed, or slow down at times, also across regions. Not where
    latency tells little of the instance: calls of very different sizes, one call at a time. With
    little load nearly all calls go to the fastest, or the heaviest. A pick costs O(1), an answer
    too; what is known of an instance is forgotten after it has left.

    Source: Finagle's `PeakEwma` under its power of two choices; tower's and Envoy's alike.

    Raises ValueError for a `decay` (seconds) not above 0, or `choices` below 2.
    """

    def __init__(self, decay: float = 10.0, choices: int = 2) -> None:
        self._decay = checks.seconds("decay", decay)
        self._choices = checks.count("choices", choices, least=2)
        self._records = Records()

    def __repr__(self) -> str:
        return f"PeakEwma(decay={self._decay:g}, choices={self._choices})"

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The cheapest of a few."""
        drawn = candidates
        if self._choices < len(candidates):
            drawn = call.rng.sample(candidates, self._choices)
        now = call.now
        costs = [self._cost(one, now) for one in drawn]
        least = min(costs)
        cheapest = [one for one, cost in zip(drawn, costs, strict=True) if cost == least]
        return cheapest[0] if len(cheapest) == 1 else draw(cheapest, call.rng)

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """An attempt has told how long this instance takes, or that it fails."""
        self._records.of(endpoint, now).ended(elapsed, now, self._decay, failed=failed)
