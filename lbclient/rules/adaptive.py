"""The adaptive limit: how many attempts may be in flight at one instance, learned from outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lbclient import checks

__all__ = ["AdaptiveLimit"]

_GAIN = 0.1
"""What a new answer counts in the mean of calm ones."""


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    """The concurrency limit of one instance: additive increase, multiplicative decrease.

    - `initial`: the limit, in attempts in flight, before anything is known.
    - `least`, `most`: its bounds.
    - `backoff`: what it is multiplied by when an attempt is dropped, between 0 and 1.
    - `tolerance`: an answer that takes more than so many times the mean of calm ones has stood in a
      queue: the limit falls by as much as it would have grown. None: latency does not count. Calm
      are attempts that were sent while at most half of the limit was in flight.

    The limit itself is one number per instance, kept by whoever knows the instance and handed in;
    None stands for `initial`. Of a fraction only the whole counts: 4.9 lets four in.

    Source: AIMD (Chiu and Jain 1989), as a concurrency limit in Netflix's concurrency-limits and in
    Palantir's Dialogue; the square root is that of the former's Gradient limits. Latency as a sign
    of queues: TCP Vegas (Brakmo and Peterson 1995), which compares with the least. Here it is a
    mean: answers that merely differ, some quick and some slow by nature, have a least that few of
    them come near, and a service without any queue would lose its limit.

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

        It moves only where it was nearly reached: what was not tried has not been shown. One round
        of a full limit adds one, or half the limit's square root where that is more.
        """
        limit = self.initial if limit is None else limit
        if not self._reached(limit, in_flight):
            return limit
        return min(float(self.most), limit + _step(limit))

    def slowed(self, limit: float | None, in_flight: int) -> float:
        """The limit after an answer that had stood in a queue; `in_flight` as for `grown`."""
        limit = self.initial if limit is None else limit
        if not self._reached(limit, in_flight):
            return limit
        return max(float(self.least), limit - _step(limit))

    def queued(self, elapsed: float, calm: float | None) -> bool:
        """True for an answer so slow, `calm` being the mean of calm ones, in seconds."""
        return self.tolerance is not None and calm is not None and elapsed > self.tolerance * calm

    def calm(
        self, calm: float | None, elapsed: float, beside: int, limit: float | None
    ) -> float | None:
        """The mean of calm answers, in seconds, after one that took `elapsed`.

        It had so many `beside` it when it was sent. What counts is how it began: of those that
        have ended by the time an instance is busy, too many are quick ones.
        """
        limit = self.initial if limit is None else limit
        if beside + 1 > max(1.0, limit / 2):
            return calm
        return elapsed if calm is None else calm + _GAIN * (elapsed - calm)

    def shrunk(self, limit: float | None) -> float:
        """The limit after an attempt that was dropped.

        Down to a whole number, or near 1 it would never fall below the next one.
        """
        limit = self.initial if limit is None else limit
        return max(self.least, math.floor(limit * self.backoff))

    def _reached(self, limit: float, in_flight: int) -> bool:
        return in_flight >= math.floor(limit * self.backoff)


def _step(limit: float) -> float:
    return max(1.0, math.sqrt(limit) / 2) / limit
