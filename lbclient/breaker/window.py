"""What became of the calls of the last few seconds, counted.

A ring of ten slices of time (Hystrix's buckets) with running totals: a call costs the same however
many there were, and the memory is fixed.
"""

from __future__ import annotations

from lbclient.breaker.policy import BreakerPolicy

__all__ = ["Window"]

_SLICES = 10
_EMPTY = (0, 0, 0)
_STANDSTILL = 60.0


class Window:
    """Counts over the last `policy.window` seconds, to a tenth of it. Told the time.

    `calls`, `faults` and `slow` are the totals as of the last `add`. A clock that leaps past the
    window, or falls back by more than a slice, empties it.
    """

    __slots__ = (
        "_heard",
        "_place",
        "_policy",
        "_resumed",
        "_ring",
        "_start",
        "calls",
        "faults",
        "slow",
    )

    def __init__(self, policy: BreakerPolicy, now: float) -> None:
        self._policy = policy
        self._heard = now
        self._resumed = now
        self._begin(now)

    @property
    def tripped(self) -> bool:
        """True where a rate of the policy is reached, by enough calls."""
        policy, calls = self._policy, self.calls
        return calls >= policy.minimum_calls and (
            _reached(policy.failure_rate, self.faults / calls)
            or _reached(policy.slow_rate, self.slow / calls)
        )

    @property
    def why(self) -> str:
        """Which rate is reached, in words."""
        if _reached(self._policy.failure_rate, self.faults / self.calls):
            return f"{self.faults} of {self.calls} calls failed"
        return f"{self.slow} of {self.calls} calls were slow"

    def outslept(self, now: float, elapsed: float) -> bool:
        """True where a call of `elapsed` seconds that ends `now` tells nothing. Ask once for each.

        A process that was stopped for minutes finds whatever it had in flight minutes old. Seen
        from here: for a minute no call ends, and then such end that are older than a minute. A
        shorter stop looks like a slow instance.
        """
        if now - self._heard >= _STANDSTILL:
            self._resumed = now
        self._heard = now
        return elapsed >= _STANDSTILL and now - elapsed < self._resumed

    def add(self, now: float, *, fault: bool, slow: bool) -> None:
        """A call has ended."""
        self._slide(now)
        ring, place = self._ring, self._place
        ring[place] += 1
        ring[place + 1] += fault
        ring[place + 2] += slow
        self.calls += 1
        self.faults += fault
        self.slow += slow

    def _slide(self, now: float) -> None:
        ahead = (now - self._start) * _SLICES / self._policy.window
        if not -1 < ahead < _SLICES:
            self._begin(now)
        elif ahead >= 1:
            for _ in range(int(ahead)):
                self._next()
            self._start += int(ahead) * self._policy.window / _SLICES

    def _begin(self, now: float) -> None:
        self._start = now
        self._place = 0
        self._ring = [*_EMPTY] * _SLICES
        self.calls = self.faults = self.slow = 0

    def _next(self) -> None:
        """The oldest slice is forgotten, and becomes the newest."""
        ring = self._ring
        self._place = place = (self._place + len(_EMPTY)) % len(ring)
        calls, faults, slow = ring[place : place + len(_EMPTY)]
        self.calls -= calls
        self.faults -= faults
        self.slow -= slow
        ring[place : place + len(_EMPTY)] = _EMPTY


def _reached(rate: float | None, share: float) -> bool:
    return rate is not None and share >= rate
