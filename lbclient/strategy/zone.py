"""Zone: prefers the instances of the client's own zone, if their capacity is large enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lbclient._internal import validation
from lbclient._internal.fork import Forkable
from lbclient._internal.statistics import Ewma
from lbclient.endpoint.endpoint import Endpoint
from lbclient.strategy.protocol import (
    Learning,
    LoadAware,
    LoadProbe,
    LoadReport,
    PickContext,
    Probing,
    Strategy,
)
from lbclient.strategy.registry import StrategyName, strategy_of

__all__ = ["Zone"]

_GAIN = 0.05
_DECAY = 10.0
_TOO_MANY = 0.2


class _Side:
    """The candidates on one side (in the own zone, or in all other zones), their strategy, and
    their failures."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._learning = strategy if isinstance(strategy, Learning) else None
        self._aware = strategy if isinstance(strategy, LoadAware) else None
        self.probe = strategy.probe if isinstance(strategy, Probing) else None
        self._failing = Ewma(_GAIN, 0.0)
        self._at = 0.0
        self.endpoints: tuple[Endpoint, ...] = ()
        self.weight = 0.0

    def after_fork(self) -> None:
        if isinstance(self._strategy, Forkable):
            self._strategy.after_fork()

    def take(self, endpoints: list[Endpoint]) -> None:
        """Set the endpoints of this side. If they have not changed, the strategy gets the same
        object as before, since it may use the object as a key of a cache."""
        new = tuple(endpoints)
        self.endpoints = self.endpoints if new == self.endpoints else new
        self.weight = sum(one.weight for one in new)

    def pick(self, call: PickContext) -> Endpoint:
        return self._strategy.pick(self.endpoints, call)

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        mean, fade = self._failing, math.exp((self._at - now) / _DECAY)
        mean.value, self._at = fade * mean.value, now
        mean.record(failed)
        if self._learning is not None:
            self._learning.ended(endpoint, elapsed, failed=failed, now=now)

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        if self._aware is not None:
            self._aware.reported(endpoint, load, now=now)

    def failing(self, now: float) -> float:
        """The recent share of the attempts of this side that failed or were rejected."""
        return self._failing.value * math.exp((self._at - now) / _DECAY)


class Zone:
    """Prefers candidates whose `instance.metadata["zone"]` is `here`.

    `inner` is the name of a strategy, or a function that makes a strategy. This strategy picks one
    of the instances in the zone, or one of the instances in other zones. How many calls stay in the
    zone depends on the capacity of its instances, that is, on their weights. `share` is the part of
    the service's calls that clients in this zone send. By default, all zones are assumed to send
    equal parts. If the instances of the zone have at least this part of the sum of all weights, all
    calls stay in the zone. Otherwise fewer calls stay, so that each instance of the zone gets at
    most `spill` times the calls that it would get without zones. So the last instance of a zone
    never gets all of the zone's calls. If attempts in the zone fail or are rejected more often than
    attempts in other zones, fewer calls stay in the zone. If the share of failures in the zone is
    higher by 0.2, the zone is not preferred at all, and only weights decide.

    An instance without a zone, or with a zone that is not text, is treated as an instance of
    another zone. The number of calls in flight is not considered, since it only shows where this
    client sends its calls. So if a zone is slow but answers, calls stay there. If latency must
    decide, use `PeakEwma` for all instances, without `Zone`. If clients are spread unevenly over
    zones, set `share`. If `inner` picks by key, a key has one instance in the zone and one outside,
    and its calls may alternate between these two.

    Use it when traffic between zones costs time or money. Do not use it when a zone has only one or
    two instances, since then each failure moves much of the traffic. In addition to the pick of
    `inner`, a pick costs O(1), or O(n) if the set of candidates has changed.

    Source: Envoy's zone aware routing, and its overprovisioning factor of 1.4. (Envoy knows how
    many clients each zone has; this class does not.)

    Raises ValueError or TypeError if `here` is empty, `spill` is below 1, `share` is not above 0
    and at most 1, or `inner` is neither a name nor a function.
    """

    def __init__(
        self,
        here: str,
        inner: StrategyName | Callable[[], Strategy] = "least-busy",
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
        """Call `after_fork` of both strategies in a forked child."""
        self._local.after_fork()
        self._remote.after_fork()

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Choose a side, at random if both are possible, and let the strategy of that side pick."""
        if candidates is not self._candidates:
            self._follow(candidates)
        staying = self._staying(call.now)
        stays = staying >= 1.0 or (staying > 0.0 and call.rng.random() < staying)
        return (self._local if stays else self._remote).pick(call)

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """Record the outcome for the side of `endpoint`. The strategy of that side may learn from
        the outcome too."""
        self._side(endpoint).ended(endpoint, elapsed, failed=failed, now=now)

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        """Pass the report to the strategy for the side of `endpoint`, if that strategy uses
        reports."""
        self._side(endpoint).reported(endpoint, load, now=now)

    @property
    def probe(self) -> LoadProbe | None:
        """The settings for load probes, from the strategies of the two sides."""
        return self._local.probe

    def _side(self, endpoint: Endpoint) -> _Side:
        return self._local if _zone(endpoint) == self._here else self._remote

    def _staying(self, now: float) -> float:
        """Return the part of the calls that stays in the zone."""
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
        self._candidates = candidates  # set last: after an exception, the next pick starts again


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
    """Make a strategy for one side. Each side needs a strategy of its own, since a strategy keeps
    state."""
    if not isinstance(inner, str) and not callable(inner):
        raise TypeError(
            "inner must be the name of a strategy, or a function that makes one (each side needs "
            f"its own), not {inner!r}"
        )
    return strategy_of(inner if isinstance(inner, str) else inner())
