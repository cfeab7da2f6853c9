"""Client-side throttling: sends less to a service that refuses most calls."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lbclient._internal import validation
from lbclient._internal.statistics import SlidingWindow

__all__ = ["Throttle", "ThrottlePolicy"]

_SLICES = 24
_REFUSED = 1


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """Defines when the client refuses a call without sending it.

    A call is refused with probability max(0, (requests - k * accepts) / (requests + 1)), over the
    last `window` seconds, but at most with the probability `most`.

    - `k`: the service may be sent this many times the calls that it accepts; at least 1. With a
      lower value more calls are refused, and sooner. With a higher value the client notices sooner
      that the service has recovered.
    - `window`: seconds; many times the duration of a call. After an outage longer than the window
      it takes up to two windows until all calls are sent again.
    - `most`: above 0, at most 1. Below 1, some calls are always sent, which show whether the
      service has recovered.
    - `minimum_calls`: with fewer requests in the window, no call is refused. By the formula alone,
      if the first call of a client fails, its second call would be refused with a probability of
      one half.

    Source: Google's "Site Reliability Engineering", chapter "Handling Overload", with its k and
    window; `most` and `minimum_calls` are additions.

    Raises ValueError or TypeError for a value outside these bounds.
    """

    k: float = 2.0
    window: float = 120.0
    most: float = 0.9
    minimum_calls: int = 10

    def __post_init__(self) -> None:
        validation.number("k", self.k, least=1)
        validation.seconds("window", self.window)
        validation.number("most", self.most, above=True)
        validation.fraction("most", self.most)
        validation.count("minimum_calls", self.minimum_calls)


class Throttle:
    """The running counts of a `ThrottlePolicy`. It has no lock: the caller holds one.

    Call `admits` before each call. When a call that was admitted ends, record it once: as
    `accepted`, as `refused` (overload, a fault), or not at all if it says nothing about the
    service. A call counts as a request only when it has ended. Otherwise the first of many calls
    that start together would cause the others to be refused (43 of 50 by the plain formula).
    """

    __slots__ = ("_policy", "_window", "accepted", "refused")

    def __init__(self, policy: ThrottlePolicy) -> None:
        self._policy = policy
        self._window = SlidingWindow(policy.window, _SLICES, kinds=2)
        self.accepted: Callable[[float], None] = self._window.add
        """Record a call that the service has accepted, at this time."""
        self.refused: Callable[[float], None] = partial(self._window.add, kind=_REFUSED)
        """Record a call that the service has refused."""

    def chance(self, now: float) -> float:
        """The probability that a call is refused now."""
        accepts, refusals = self._window.slide(now)
        requests, policy = accepts + refusals, self._policy
        if requests < policy.minimum_calls:
            return 0.0
        excess = requests - policy.k * accepts
        return min(policy.most, max(0.0, excess / (requests + 1)))

    def admits(self, now: float, rng: random.Random) -> bool:
        """False if the call must fail without being sent. Such a call is counted as a request
        too."""
        chance = self.chance(now)
        if chance and rng.random() < chance:
            self.refused(now)
            return False
        return True
