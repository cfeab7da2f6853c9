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
    """When the client refuses a call without sending it.

    A call is refused with probability max(0, (requests - k * accepts) / (requests + 1)), over the
    last `window` seconds, but at most with `most`.

    - `k`: the service may be sent this many times what it accepts; at least 1. A lower value
      refuses more, and sooner. With a higher one the client notices sooner that the service is
      back.
    - `window`: seconds; many times the duration of a call. After an outage longer than the window
      it takes up to two windows until all calls are sent again.
    - `most`: above 0, at most 1. Below 1 some calls always go through, and find out whether the
      service is back.
    - `minimum_calls`: with fewer requests in the window none is refused. By the formula alone, a
      client's second call would be refused every other time if its first had failed.

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

    Call `admits` before each call. For a call that was admitted, record its end once: `accepted`,
    or `refused` (overload, a fault), or neither if it says nothing about the service. A call counts
    as a request only then, not while it is under way. Otherwise the first of many calls that start
    together would cause the others to be refused (43 of 50 by the plain formula).
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
        """False if the call must fail here. Such a call is counted as a request too."""
        chance = self.chance(now)
        if chance and rng.random() < chance:
            self.refused(now)
            return False
        return True
