"""Prequal: keep out of what is hot, and of the rest take the quickest.

It keeps the last few load reports, each for one pick.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from lbclient._internal import validation
from lbclient.endpoint import Endpoint
from lbclient.strategy.outcome_history import LatencyByLoad, OutcomeHistory, Record
from lbclient.strategy.protocol import LoadProbe, LoadReport, PickContext

__all__ = ["Prequal", "Reports"]

_MOST = 16

_READINGS = 64
_DECAY = 10.0
_REPORT_AGE = 1.0
_ENOUGH = 2
_GAIN = 0.05
_SURE = 0.95


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


class _Recent(Record):
    """How long its answers took of late, and whether it reports its load."""

    __slots__ = ("levels", "reports")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.levels = LatencyByLoad()
        self.reports = False


class Prequal:
    """Of `choices` random candidates the quickest that is not hot; where all are, the least busy.

    Hot is who has more requests in flight (RIF) than the `quantile` of what was seen of late; its
    speed does not count, since it is about to queue. A latency is one at the present RIF, and at
    most `age` seconds old; who has none is tried, but gets no second call before the first has
    ended. A failure is no quick answer: it makes an instance hotter (see `OutcomeHistory`).

    Where instances report their load (`LoadReport`), with their answers or to a `probe`, what they
    say, with what this client has sent since, stands in place of its own observations. The last
    sixteen reports wait for a pick; each is good for one, for a second at the most. While there
    are two, each of the drawn that reports gives place to one of these. Who does not report is
    judged by what this client sees of it, and each kind has a quantile of its own. In a large
    fleet, where a client sees a thousandth of what an instance does, that makes the difference.

    From the paper: the hot-cold rule, its quantile 2^-0.25, latency conditioned on RIF, the pool of
    sixteen, its limit of a second, one use of a report, aversion to errors (which the paper asks
    for and does not spell out). Otherwise here: of the pool `choices` are looked at, not all, since
    many clients that took the best of many would all take the same; so the pool need not be freed
    of its worst, and one report for each call is nearly enough. Without reports the RIF is that of
    this client alone, taken as an attempt ends, not as it begins; and since it costs a call to hear
    of an instance, the age is ten seconds.

    Use it for many alike instances under high load, where neighbours slow some of them down: it
    cuts the tail further than `PeakEwma`. Do not use it with little load (it then sends nearly all
    to the quickest), nor where calls differ much in size. Weights count under load only. A pick
    and an answer cost O(1), at any number of instances; with reports, O(n) when the set changes.

    Source: Wydrowski, Kleinberg, Rumble and Archer, "Load is not what you should balance:
    Introducing Prequal" (NSDI 2024).

    Raises ValueError or TypeError for `choices` below 2, a `quantile` outside 0 to 1 (0 is RIF
    alone, 1 is latency alone), an `age` (seconds) that is not above 0, or a `probe` that is no
    `LoadProbe`.
    """

    def __init__(
        self,
        choices: int = 3,
        quantile: float = 2.0**-0.25,
        age: float = 10.0,
        probe: LoadProbe | None = None,
    ) -> None:
        self._choices = validation.count("choices", choices, least=2)
        self._quantile = validation.fraction("quantile", quantile)
        self._age = validation.seconds("age", age)
        validation.kind("probe", probe, LoadProbe)
        self.probe = probe
        self._memory = OutcomeHistory(_Recent, _DECAY)
        self._reports = Reports(_REPORT_AGE)
        self._reporting = 0.0
        self._candidates: Sequence[Endpoint] = ()
        self._members: frozenset[Endpoint] = frozenset()
        self._seen: deque[float] = deque(maxlen=_READINGS)
        self._told: deque[float] = deque(maxlen=_READINGS)

    def __repr__(self) -> str:
        probe = "" if self.probe is None else f", probe={self.probe!r}"
        numbers = f"choices={self._choices}, quantile={self._quantile:g}, age={self._age:g}"
        return f"Prequal({numbers}{probe})"

    def after_fork(self) -> None:
        """In a forked child: a report is good for one pick, and the parent has made that."""
        self._reports = Reports(_REPORT_AGE)

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """The quickest of a few that is not hot."""
        drawn = call.rng.sample(candidates, min(self._choices, len(candidates)))
        if self._reports:
            drawn = self._with_reports(drawn, candidates, call)
        self._seen.extend(
            one.in_flight / one.weight for one in drawn if self._reports.of(one) is None
        )
        limits = self._limit(self._seen), self._limit(self._told)
        picked = min(drawn, key=lambda one: self._rank(one, limits, call.now))
        self._reports.drop(picked)
        return picked

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """Remember how long it took, or that it failed."""
        if endpoint.gone:
            return
        record = self._memory.of(endpoint, now)
        self._memory.record_outcome(record, elapsed, failed=failed, now=now)
        if not failed:
            record.levels.saw(endpoint.in_flight - 1, elapsed, now, self._age)
            self._reporting += _GAIN * (record.reports - self._reporting)

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        """Remember what it says of its load, or that it says nothing."""
        if endpoint.gone:
            return
        self._memory.of(endpoint, now).reports = load is not None
        if load is None:
            self._reports.drop(endpoint)
        else:
            self._reports.take(endpoint, load, now)
            self._told.append(load.in_flight / endpoint.weight)

    def _with_reports(
        self, drawn: list[Endpoint], candidates: Sequence[Endpoint], call: PickContext
    ) -> list[Endpoint]:
        """Who of the drawn reports its load gives place to one who has done so of late."""
        if candidates is not self._candidates:
            self._candidates, self._members = candidates, frozenset(candidates)
        fresh = [one for one in self._reports.fresh(call.now) if one in self._members]
        if len(fresh) < min(_ENOUGH, len(candidates)):
            return drawn
        silent = [one for one in drawn if not self._reports_load(one, call)]
        return call.rng.sample(fresh, min(len(drawn) - len(silent), len(fresh))) + silent

    def _reports_load(self, one: Endpoint, call: PickContext) -> bool:
        """Who is not known is probed in time; without probes the dice say, by what others do."""
        record = self._memory.known(one, call.now)
        if record is not None:
            return record.reports
        return self.probe is not None or call.rng.random() < min(self._reporting, _SURE)

    def _limit(self, readings: Sequence[float]) -> float:
        """Above that is hot."""
        ranked = sorted(readings)
        return ranked[int(self._quantile * (len(ranked) - 1))] if ranked else 0.0

    def _rank(
        self, one: Endpoint, limits: tuple[float, float], now: float
    ) -> tuple[bool, float, float]:
        """Cold before hot; the cold by latency, the hot by RIF, as a multiple of what is usual."""
        record, report = self._memory.known(one, now), self._reports.of(one)
        cost, latency = 1.0, None
        if record is not None:
            cost += record.penalty * self._memory.fade(record, now)
            latency = record.levels.latency(one.in_flight, now, self._age)
        in_flight, limit = float(one.in_flight), limits[0]
        if report is not None:
            in_flight, limit = report.in_flight(one.in_flight), limits[1]
            latency = latency if report.latency is None else report.latency
        busy = (int(cost * (in_flight + 1)) - 1) / one.weight
        if busy > limit:
            return True, (busy + 1) / (limit + 1), 0.0
        if latency is None:
            latency = math.inf if one.in_flight else 0.0
        return False, latency, busy
