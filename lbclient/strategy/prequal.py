"""Prequal: avoids hot instances, and picks the fastest of the other instances.

The strategy keeps the latest load reports. Each report is used for one pick.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from lbclient._internal import validation
from lbclient._internal.statistics import Ewma
from lbclient.endpoint.endpoint import Endpoint
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
    """A load report, the time when it arrived, and the part of the reported load that came from
    other clients."""

    __slots__ = ("_others", "at", "latency")

    def __init__(self, load: LoadReport, own: int, now: float) -> None:
        self.at: float = now
        self.latency: float | None = load.latency
        self._others = max(0.0, load.in_flight - own)

    def in_flight(self, own: int) -> float:
        """The reported load, corrected by the change of this client's own attempts in flight since
        the report."""
        return self._others + own


class Reports:
    """At most sixteen load reports, the newest of each instance. The amortised cost of each method
    is O(1)."""

    def __init__(self, age: float) -> None:
        self._age = age
        self._kept: dict[Endpoint, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """Store a report. If there are too many, the oldest is dropped."""
        self.drop(endpoint)
        self._kept[endpoint] = _Kept(load, endpoint.in_flight, now)
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]

    def of(self, endpoint: Endpoint) -> _Kept | None:
        """Return the recent report of an endpoint that no pick has used yet, or None."""
        return self._kept.get(endpoint)

    def drop(self, endpoint: Endpoint) -> None:
        """Drop the report of an endpoint, since it was used or is out of date."""
        self._kept.pop(endpoint, None)

    def fresh(self, now: float) -> list[Endpoint]:
        """The endpoints that have reported within `age` seconds. Drops older reports."""
        while self._kept:
            oldest = next(iter(self._kept))
            if now - self._kept[oldest].at <= self._age:
                break
            del self._kept[oldest]
        return list(self._kept)


class _Recent(Record):
    """A record with the recent latency of an instance, and whether it reports its load."""

    __slots__ = ("latency_by_load", "reports")

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.latency_by_load = LatencyByLoad()
        self.reports = False


class Prequal:
    """Picks the fastest of `choices` random candidates that is not hot.

    If all of these candidates are hot, it picks the least busy of them. An instance is hot if it
    has more requests in flight (RIF) than the `quantile` of recent values of RIF. For a hot
    instance, the latency is ignored, since requests will probably wait in its queue. The latency of
    an instance is the latency that it had, at most `age` seconds ago, with the same number of
    requests in flight as now. An instance without such a latency is picked, but gets no second call
    before the first call has ended. A failure never lowers the latency: it raises the RIF with
    which the instance is compared (see `OutcomeHistory`).

    Instances may report their load (`LoadReport`), with their responses or in reply to a `probe`.
    Then the reported load, plus the attempts that this client has sent since, replaces this
    client's own observations. The latest sixteen reports are kept. Each report is used for one
    pick, and is valid for one second. While there are at least two reports, each drawn candidate
    that reports its load is replaced by an instance with a fresh report. An instance that does not
    report its load is compared by this client's own observations. There are two separate quantiles:
    one for instances that report their load, and one for the others. Reports help most in a large
    fleet, where a client sends only a thousandth of the requests of an instance.

    The paper defines the rule for hot instances, its quantile 2^-0.25, the latency for each RIF,
    the pool of sixteen reports, their validity of one second, one use per report, and the penalty
    for errors (without details). Three things differ from the paper. First, a pick compares only
    `choices` reports of the pool. If many clients took the best of many reports, all of them would
    pick the same instance. For this reason, the worst reports need not be dropped from the pool,
    and one report per call is nearly enough. Second, without reports, the RIF includes only the
    requests of this client, and is measured when an attempt ends, not when it begins. Third, `age`
    is ten seconds: without reports, an instance that gets no calls shows no latency, so old
    latencies must be used for longer.

    Use it for many equal instances under high load, if other work on the same machines slows some
    of them down: then it reduces the highest latencies more than `PeakEwma` does. Do not use it
    with little load (then nearly all calls go to the fastest instance), or when calls differ much
    in size. Weights have an effect only under load. A pick and a response cost O(1). With reports,
    a pick costs O(n) if the set of instances has changed.

    Source: Wydrowski, Kleinberg, Rumble and Archer, "Load is not what you should balance:
    Introducing Prequal" (NSDI 2024).

    Raises ValueError or TypeError if `choices` is below 2, `quantile` is outside 0 to 1 (with 0
    only RIF is used, with 1 only latency), `age` (seconds) is not above 0, or `probe` is not a
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
        self._history = OutcomeHistory(_Recent, _DECAY)
        self._reports = Reports(_REPORT_AGE)
        self._reporting = Ewma(_GAIN, 0.0)
        self._candidates: Sequence[Endpoint] = ()
        self._members: frozenset[Endpoint] = frozenset()
        self._seen: deque[float] = deque(maxlen=_READINGS)
        self._told: deque[float] = deque(maxlen=_READINGS)

    def __repr__(self) -> str:
        probe = "" if self.probe is None else f", probe={self.probe!r}"
        numbers = f"choices={self._choices}, quantile={self._quantile:g}, age={self._age:g}"
        return f"Prequal({numbers}{probe})"

    def after_fork(self) -> None:
        """Drop all reports in a forked child, since the parent uses the same reports."""
        self._reports = Reports(_REPORT_AGE)

    def pick(self, candidates: Sequence[Endpoint], call: PickContext) -> Endpoint:
        """Pick the fastest of a few random candidates that is not hot."""
        drawn = call.rng.sample(candidates, min(self._choices, len(candidates)))
        if has_reports := bool(self._reports):
            drawn = self._with_reports(drawn, candidates, call)
        self._seen.extend(
            one.in_flight / one.weight for one in drawn if self._reports.of(one) is None
        )
        limits = self._limit(self._seen), self._limit(self._told)
        picked = min(drawn, key=lambda one: self._rank(one, limits, call.now))
        if has_reports:
            self._reports.drop(picked)
        return picked

    def ended(self, endpoint: Endpoint, elapsed: float, *, failed: bool, now: float) -> None:
        """Record how long an attempt took, or that it failed."""
        if endpoint.gone:
            return
        record = self._history.of(endpoint, now)
        self._history.record_outcome(record, elapsed, failed=failed, now=now)
        if not failed:
            record.latency_by_load.record_latency(endpoint.in_flight - 1, elapsed, now, self._age)
            if record.reports or self._reporting.value:
                self._reporting.record(record.reports)

    def reported(self, endpoint: Endpoint, load: LoadReport | None, *, now: float) -> None:
        """Record the load that an instance reports, or that it reports no load."""
        if endpoint.gone:
            return
        self._history.of(endpoint, now).reports = load is not None
        if load is None:
            self._reports.drop(endpoint)
        else:
            self._reports.take(endpoint, load, now)
            self._told.append(load.in_flight / endpoint.weight)

    def _with_reports(
        self, drawn: list[Endpoint], candidates: Sequence[Endpoint], call: PickContext
    ) -> list[Endpoint]:
        """Replace drawn candidates that report their load by instances with a fresh report."""
        if candidates is not self._candidates:
            self._candidates, self._members = candidates, frozenset(candidates)
        fresh = [one for one in self._reports.fresh(call.now) if one in self._members]
        if len(fresh) < min(_ENOUGH, len(candidates)):
            return drawn
        silent = [one for one in drawn if not self._reports_load(one, call)]
        return call.rng.sample(fresh, min(len(drawn) - len(silent), len(fresh))) + silent

    def _reports_load(self, one: Endpoint, call: PickContext) -> bool:
        """Guess whether an endpoint reports its load.

        If it is not known whether the endpoint does, and load probes are used, the result is True,
        since the endpoint will be probed. Without load probes the result is random: if a third of
        the known endpoints report their load, it is True in a third of the cases.
        """
        record = self._history.known(one, call.now)
        if record is not None:
            return record.reports
        return self.probe is not None or call.rng.random() < min(self._reporting.value, _SURE)

    def _limit(self, readings: Sequence[float]) -> float:
        """The limit of requests in flight above which an instance is hot."""
        ranked = sorted(readings)
        return ranked[int(self._quantile * (len(ranked) - 1))] if ranked else 0.0

    def _rank(
        self, one: Endpoint, limits: tuple[float, float], now: float
    ) -> tuple[bool, float, float]:
        """The sort key of an endpoint. Endpoints that are not hot are sorted by latency. After
        them, hot endpoints are sorted by RIF.

        The RIF is divided by the limit above which an endpoint is hot.
        """
        record, report = self._history.known(one, now), self._reports.of(one)
        cost, latency = 1.0, None
        if record is not None:
            cost += record.penalty * self._history.fade(record, now)
            latency = record.latency_by_load.latency(one.in_flight, now, self._age)
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
