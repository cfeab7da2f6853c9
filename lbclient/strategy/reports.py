"""The last few reports of load, each for one pick."""

from __future__ import annotations

from lbclient.endpoint import Endpoint
from lbclient.strategy.load import LoadReport

__all__ = ["Reports"]

_MOST = 16


class _Kept:
    """A report, when it came, and how much of that load was our own."""

    __slots__ = ("_others", "at", "latency")

    def __init__(self, load: LoadReport, own: int, now: float) -> None:
        self.at = now
        self.latency = load.latency
        self._others = max(0.0, load.in_flight - own)

    def in_flight(self, own: int) -> float:
        """What it said, with what we have sent since, and without what of ours has ended."""
        return self._others + own


class Reports:
    """At most sixteen, the newest of each instance. O(1), amortised."""

    def __init__(self, age: float) -> None:
        self._age = age
        self._kept: dict[Endpoint, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """It has said so; the oldest of too many is forgotten."""
        self.drop(endpoint)
        self._kept[endpoint] = _Kept(load, endpoint.in_flight, now)
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]

    def of(self, endpoint: Endpoint) -> _Kept | None:
        """What it said of late, and nobody has used yet."""
        return self._kept.get(endpoint)

    def drop(self, endpoint: Endpoint) -> None:
        """It was used, or is out of date."""
        self._kept.pop(endpoint, None)

    def fresh(self, now: float) -> list[Endpoint]:
        """Who has said so within `age` seconds; what is older is forgotten."""
        while self._kept:
            oldest = next(iter(self._kept))
            if now - self._kept[oldest].at <= self._age:
                break
            del self._kept[oldest]
        return list(self._kept)
