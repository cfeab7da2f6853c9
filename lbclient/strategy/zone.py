"""Zone: the instances of one's own zone, as far as they go round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lbclient._internal import validation
from lbclient._internal.fork import Forkable
from lbclient.endpoint import Endpoint
from lbclient.strategy.protocol import (
    Learning,
    LoadAware,
    LoadProbe,
    LoadReport,
    PickContext,
    Probing,
    Strategy,
)
from lbclient.strategy.registry import strategy_of

__all__ = ["Zone"]

_GAIN = 0.05
_DECAY = 10.0
_TOO_MANY = 0.2


class _Side:
    """The candidates on one side of the zone's border, who picks among them, and how they fare."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._learning = strategy if isinstance(strategy, Learning) else None
        self._aware = strategy if isinstance(strategy, LoadAware) else None
        self.probe = strategy.probe if isinstance(strategy, Probing) else None
        self._failing = 0.0
        self._at = 0.0
        self.endpoints: tuple[Endpoint, ...] = ()
        self.weight = 0.0

    def after_fork(self) -> None:
        if isinstance(self._strategy, Forkable):
            self._strategy.after_fork()

    def take(self, endpoints: list[Endpoint]) -> None:
        """The same object while they are the same: the strategy may know it."""
        new = tuple(endpoints)
        self.endpoints = self.endpoints if new == self.endpoints else new
        self.weight = sum(one.weight for one in new)

    def pick(self, call: PickContext) -> Endpoint:
        return self._strategy.pick(self.endpoints, call)

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        failing = self.failing(now)
        self._failing, self._at = failing + _GAIN * (failed - failing), now
        if self._learning is not None:
            self._learning.ended(endpoint, elapsed, failed=failed, now=now)

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        if self._aware is not None:
            self._aware.reported(endpoint, load, now=now)

    def failing(self, now: float) -> float:
        """The share of its attempts of late that were not served."""
        return self._failing * math.exp((self._at - now) / _DECAY)


class Zone:
    """Candidates whose `instance.metadata["zone"]` is `here`, the others only for the rest.

    `inner` picks on either side: the name of a strategy, or a function that makes one. How much
    stays here is a matter of capacity, that is of weights. Each zone is taken to send an equal
    part of the service's calls, or this one `share` of them. While its instances are that part of
    the whole, all calls stay. When there are fewer, so many stay that each gets up to `spill` times
    what it would get without zones: a survivor never gets all that its zone had. Where local
    attempts fail, or are turned away, more often than the others do, the zone is too busy: the
    preference shrinks, and is gone where one in five more does; then all are equal, by weight.

    Instances without a zone, or with one that is no text, count as another zone. What a client has
    in flight is no measure here: its calls are in its zone because they are sent there. So a zone
    that is slow, and serves, is not left; where latency is to decide, use `PeakEwma` over all.
    Clients spread unevenly over zones need `share`. Keys stay where they are on each side only.

    Use it where traffic between zones costs time or money. Do not where a zone has one instance or
    two: each that fails moves much of the traffic. Costs O(1) and the pick of `inner`; O(n) when
    the set changes.

    Source: Envoy's zone aware routing (which knows how clients are spread, as this cannot), and
    its overprovisioning factor of 1.4.

    Raises ValueError or TypeError for an empty `here`, a `spill` below 1, a `share` not above 0 and
    up to 1, and an `inner` that is none of the above.
    """

    def __init__(
        self,
        here: str,
        inner: str | Callable[[], Strategy] = "least-busy",
        *,
        spill: float = 1.4,
        share: float | None = None,
    ) -> None:
        self._here = _named(here)
        self._spill = validation.number("spill", spill, least=1.0)
        if share is not None:
            validation.number("share", share, above=True)
            validation.fraction("share", share)
        self._share = share
        self._inner = inner
        self._local, self._remote = _Side(_made(inner)), _Side(_made(inner))
        self._candidates: Sequence[Endpoint] = ()
        self._fair = 0.0
        self._most = 0.0

    def __repr__(self) -> str:
        return f"Zone({self._here!r}, {self._inner!r}, spill={self._spill:g}, share={self._share})"

    def after_fork(self) -> None:
        """In a forked child: as its strategies do."""
        self._local.after_fork()
        self._remote.after_fork()

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The dice say which side, where both will do; its strategy says who."""
        if candidates is not self._candidates:
            self._follow(candidates)
        staying = self._staying(call.now)
        stays = staying >= 1.0 or (staying > 0.0 and call.rng.random() < staying)
        return (self._local if stays else self._remote).pick(call)

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """Remember how either side fares; its strategy may learn too."""
        self._side(endpoint).ended(endpoint, elapsed, failed=failed, now=now)

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        """For the strategy of its side, where that asks."""
        self._side(endpoint).reported(endpoint, load, now=now)

    @property
    def probe(self) -> LoadProbe | None:
        """As its strategies want."""
        return self._local.probe

    def _side(self, endpoint: Endpoint) -> _Side:
        return self._local if _zone(endpoint) == self._here else self._remote

    def _staying(self, now: float) -> float:
        """The part of the calls that stays in the zone."""
        if self._most <= self._fair:
            return self._most
        worse = self._local.failing(now) - self._remote.failing(now)
        preference = 1.0 - min(1.0, max(0.0, worse) / _TOO_MANY)
        return self._fair + preference * (self._most - self._fair)

    def _follow(self, candidates: Sequence[Endpoint]) -> None:
        zones = [_zone(one) for one in candidates]
        sides: tuple[list[Endpoint], list[Endpoint]] = ([], [])
        for one, zone in zip(candidates, zones, strict=True):
            sides[zone == self._here].append(one)
        self._remote.take(sides[0])
        self._local.take(sides[1])
        share = self._share or 1.0 / len({self._here, *zones})
        self._fair = self._local.weight / (self._local.weight + self._remote.weight)
        self._most = min(1.0, self._spill * self._fair / share)
        self._candidates = candidates  # last: what is interrupted before is done again


def _zone(endpoint: Endpoint) -> str | None:
    zone = endpoint.instance.metadata.get("zone")
    return zone if isinstance(zone, str) else None


def _named(here: object) -> str:
    if not isinstance(here, str):
        raise TypeError(f"here must be the name of a zone, not {here!r}")
    if not here:
        raise ValueError("here must be the name of a zone, not ''")
    return here


def _made(inner: object) -> Strategy:
    """One for either side, since a strategy keeps state."""
    if not isinstance(inner, str) and not callable(inner):
        raise TypeError(
            "inner must be the name of a strategy, or a function that makes one (each side needs "
            f"its own), not {inner!r}"
        )
    return strategy_of(inner if isinstance(inner, str) else inner())
