"""The adaptive limit: how many attempts may be in flight at one instance, learned from outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lbclient import checks

__all__ = ["AdaptiveLimit"]


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    """The concurrency limit of one instance: additive increase, multiplicative decrease.

    - `initial`: the limit, in attempts in flight, before anything is known.
    - `least`, `most`: its bounds.
    - `backoff`: what it is multiplied by when an attempt is dropped, between 0 and 1.

    The limit itself is one number per instance, kept by whoever knows the instance and handed in;
    None stands for `initial`. Of a fraction only the whole counts: 4.9 lets four in.

    Source: AIMD (Chiu and Jain 1989), as a concurrency limit in Netflix's concurrency-limits and,
    with these numbers, in Palantir's Dialogue.

    Raises ValueError or TypeError for what are no such numbers.
    """

    initial: int = 20
    least: int = 1
    most: int = 1000
    backoff: float = 0.9

    def __post_init__(self) -> None:
        checks.count("least", self.least)
        checks.count("initial", self.initial)
        checks.count("most", self.most)
        checks.number("backoff", self.backoff, above=True)
        if checks.fraction("backoff", self.backoff) == 1:
            raise ValueError("backoff must be below 1, or the limit would never fall")
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

    def shrunk(self, limit: float | None) -> float:
        """The limit after an attempt that was dropped.

        Down to a whole number, or near 1 it would never fall below the next one.
        """
        limit = self.initial if limit is None else limit
        return max(self.least, math.floor(limit * self.backoff))
