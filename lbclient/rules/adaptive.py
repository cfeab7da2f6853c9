"""The adaptive limit: how many attempts may be in flight at one instance, learned from outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lbclient import checks

__all__ = ["AdaptiveLimit", "Usual"]

_MEAN, _DEVIATION = 1 / 8, 1 / 4
"""RFC 6298's weights of a new answer."""
_OF_QUEUED = 1 / 16
"""What a queued answer weighs beside others. It is no usual one, unless they do not cease."""
_LEAST_DEVIATION = 1 / 8
"""Of the mean: a service that always takes the same may take a little longer."""
_FALL = 2.0
"""A queued answer lowers the limit by so many times what another raises it by."""


class Usual(float):
    """How long the answers of one instance usually take: the mean, and the mean `deviation` from
    it, in seconds."""

    __slots__ = ("deviation",)
    deviation: float

    def __new__(cls, mean: float, deviation: float) -> Usual:
        usual = super().__new__(cls, mean)
        usual.deviation = deviation
        return usual


@dataclass(frozen=True, slots=True)
class AdaptiveLimit:
    """The concurrency limit of one instance: additive increase, multiplicative decrease.

    - `initial`: the limit, in attempts in flight, before anything is known.
    - `least`, `most`: its bounds.
    - `backoff`: what it is multiplied by when an attempt is dropped, between 0 and 1.
    - `tolerance`: an answer that takes longer than usual by more than so many mean deviations, and
      by more than `tolerance` eighths, has stood in a queue, and the limit falls. None: latency
      does not count. Take 4: of answers that merely differ, however much, fewer than a quarter lie
      so far out, and the limit would fall only if a third did.

    The limit itself is one number per instance, kept by whoever knows the instance and handed in;
    None stands for `initial`. Of a fraction only the whole counts: 4.9 lets four in.

    Source: AIMD (Chiu and Jain 1989), as a concurrency limit in Netflix's concurrency-limits and
    in Palantir's Dialogue; the square root is from the former's Gradient limits. Latency as a sign
    of queues: TCP Vegas (Brakmo and Peterson 1995). What is usual: Jacobson's mean and deviation
    of round trips (1988; RFC 6298, whose timer waits for the mean and four deviations).

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
        return min(self.most, limit + _step(limit))

    def slowed(self, limit: float | None, in_flight: int | None = None) -> float:
        """The limit after an answer that had stood in a queue; in flight as for `grown`.

        None is nearly all of the limit.
        """
        limit = self.initial if limit is None else limit
        if in_flight is not None and not self._reached(limit, in_flight):
            return limit
        return max(float(self.least), limit - _FALL * _step(limit))

    def shrunk(self, limit: float | None) -> float:
        """The limit after an attempt that was dropped.

        Down to a whole number, or near 1 it would never fall below the next one.
        """
        limit = self.initial if limit is None else limit
        return max(self.least, math.floor(limit * self.backoff))

    def queued(self, elapsed: float, base: float | None) -> bool:
        """True for an answer of `elapsed` seconds that has stood in a queue, `base` being what is
        usual."""
        if self.tolerance is None or not isinstance(base, Usual):
            return False
        deviation = max(base.deviation, _LEAST_DEVIATION * base)
        return elapsed > base + self.tolerance * deviation

    def base(self, elapsed: float, base: float | None) -> float | None:
        """What is usual after an answer of `elapsed` seconds.

        A service that has become slower for good is what is usual after some twenty answers: so
        much may the limit fall in vain.
        """
        if self.tolerance is None:
            return None
        if not isinstance(base, Usual):
            return Usual(elapsed, elapsed / 2)
        weight = _OF_QUEUED if self.queued(elapsed, base) else 1.0
        error = elapsed - base
        deviation = base.deviation + weight * _DEVIATION * (abs(error) - base.deviation)
        return Usual(base + weight * _MEAN * error, deviation)

    def _reached(self, limit: float, in_flight: int) -> bool:
        return in_flight >= math.floor(limit * self.backoff)


def _step(limit: float) -> float:
    return max(1.0, math.sqrt(limit) / 2) / limit
