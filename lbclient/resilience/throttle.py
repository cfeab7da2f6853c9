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

    A call is refused with the probability max(0, (requests - k * accepts) / (requests + 1)), but at
    most with the probability `most`. `requests` and `accepts` are the numbers of calls, and of
    calls that the service has accepted, in the last `window` seconds.

    - `k`: the client sends up to this many times the number of calls that the service accepts; at
      least 1. With a lower value, more calls are refused, and sooner. With a higher value, the
      client notices sooner that the service has recovered.
    - `window`: seconds, which should be many times the duration of a call. After an outage that is
      longer than the window, it takes up to two windows until all calls are sent again.
    - `most`: above 0, at most 1. Below 1, some calls are always sent. They show whether the service
      has recovered.
    - `minimum_calls`: with fewer requests in the window, no call is refused. Without this minimum,
      if the first call of a client fails, its second call would be refused with a probability of
      one half.

    Source: Google's "Site Reliability Engineering", chapter "Handling Overload", with its k and
    window; `most` and `minimum_calls` are additions.

    Raises ValueError or TypeError for a value that cannot be used.
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
    """The counts that a `ThrottlePolicy` needs. This object has no lock: callers hold the
    balancer's lock.

    Call `admits` before each call. When a call that was admitted ends, record it once: as
    `accepted`, as `refused` (overload, a fault), or not at all if it says nothing about the
    service. A call counts as a request only when it has ended. Otherwise, if many calls start
    together, the calls that have not ended would seem to be refused, and most of the others would
    not be sent (43 of 50 by the formula).
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
        """Decide whether to send a call. False means that the call must fail without being sent.
        Such a call is counted as a request too."""
        chance = self.chance(now)
        if chance and rng.random() < chance:
            self.refused(now)
            return False
        return True
