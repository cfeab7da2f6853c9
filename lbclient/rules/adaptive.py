"""The adaptive limit: how many attempts may be in flight at one instance, learned from outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lbclient import checks

__all__ = ["AdaptiveLimit"]

_CREEP = 0.001


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    """The concurrency limit of one instance: additive increase, multiplicative decrease.

    - `initial`: the limit, in attempts in flight, before anything is known.
    - `least`, `most`: its bounds.
    - `backoff`: what it is multiplied by when an attempt is dropped, between 0 and 1.
    - `tolerance`: an answer that takes more than so many times the least latency of late has stood
      in a queue: the limit falls by as much as it would have grown. None: latency does not count.

    The limit itself is one number per instance, kept by whoever knows the instance and handed in;
    None stands for `initial`. Of a fraction only the whole counts: 4.9 lets four in.

    Source: AIMD (Chiu and Jain 1989), as a concurrency limit in Netflix's concurrency-limits and,
    with these numbers, in Palantir's Dialogue. Latency against its least as a sign of queues: TCP
    Vegas (Brakmo and Peterson 1995), Netflix's Gradient2.

    Raises ValueError or TypeError for what are no such numbers.
    """

    initial: int = 20
    least: int = 1
    most: int = 1000
    backoff: float = 0.9
    tolerance: float | None = None

    def __post_init__(self) -> None:
        checks.count("least", self.least)
        checks.count("initial", self.initial)
        checks.count("most", self.most)
        checks.number("backoff", self.backoff, above=True)
        if checks.fraction("backoff", self.backoff) == 1:
            raise ValueError("backoff must be below 1, or the limit would never fall")
        if self.tolerance is not None:
            checks.number("tolerance", self.tolerance, least=1, above=True)
        if not self.least <= self.initial <= self.most:
            raise ValueError(
                f"initial ({self.initial}) must be between least ({self.least}) "
                f"and most ({self.most})"
            )

    def full(self, limit: float | None, in_flight: int) -> bool:
        """True where an instance with so many attempts in flight takes no more."""
        return in_flight + 1 > (self.initial if limit is None else limit)

    def grown(self, limit: float | None, in_flight: int) -> float:
        """The limit after a success, with so many in flight before it ended, itself included.

        It grows only where it was nearly reached: what was not tried has not been shown. By
        1/limit, so that one round of a full limit adds about one.
        """
        limit = self.initial if limit is None else limit
        if in_flight < math.floor(limit * self.backoff):
            return limit
        return min(self.most, limit + 1 / limit)

    def slowed(self, limit: float | None) -> float:
        """The limit after an answer that had stood in a queue."""
        limit = self.initial if limit is None else limit
        return max(float(self.least), limit - 1 / limit)

    def queued(self, elapsed: float, base: float | None) -> bool:
        """True for an answer so slow, `base` being the least latency of late, in seconds."""
        return self.tolerance is not None and base is not None and elapsed > self.tolerance * base

    def base(self, elapsed: float, base: float | None) -> float:
        """The least latency of late, after an answer of `elapsed` seconds.

        It creeps up, since a service may have become slower for good.
        """
        return elapsed if base is None else min(elapsed, base + _CREEP * (elapsed - base))

    def shrunk(self, limit: float | None) -> float:
        """The limit after an attempt that was dropped.

        Down to a whole number, or near 1 it would never fall below the next one.
        """
        limit = self.initial if limit is None else limit
        return max(self.least, math.floor(limit * self.backoff))
