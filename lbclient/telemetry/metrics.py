"""Metrics: counters, and values that are observed when metrics are collected."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol
from weakref import WeakKeyDictionary

from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    MeterProvider,
    ObservableCounter,
    Observation,
)

from lbclient._internal.version import __version__
from lbclient.telemetry.semantics import Attributes, error_attributes

__all__ = ["MeterProvider", "Metrics", "Tally", "instruments"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class Tally:
    """The number of picks of one balancer.

    The balancer increments this number under its own lock. That takes a tenth of the time that a
    counter of OpenTelemetry's SDK takes.
    """

    __slots__ = ("picks",)

    def __init__(self) -> None:
        self.picks: int = 0


class Service(Protocol):
    """Values of one service that any thread may read without a lock."""

    service: str
    """Its name."""
    tally: Tally
    """Its number of picks."""

    @property
    def age(self) -> float | None:
        """Seconds since the last good answer of discovery. None before the first answer, or for a
        static list."""
        ...

    @property
    def size(self) -> int:
        """The number of known instances."""
        ...

    @property
    def in_flight(self) -> int:
        """The number of attempts in flight."""
        ...


class Observed:
    """The services in use that report to one meter provider. This object does not keep them alive.

    If several clients have the same service, the worst value is reported: the age of the oldest
    answer, and the smallest number of instances. Attempts in flight are added up.
    """

    def __init__(self) -> None:
        self._services: dict[int, weakref.ref[Service]] = {}
        self._tallies: dict[int, tuple[str, Tally]] = {}
        self._picked: dict[str, int] = {}
        """The picks of balancers that no longer exist, by service. They are still reported, since a
        counter must never decrease."""
        self._names: dict[str, float] = {}
        """Every service that was ever added. A service that is no longer used is still reported,
        with 0 attempts in flight."""

    def add(self, service: Service) -> None:
        """Report the values of `service` too, until it is removed or garbage collected."""
        key = id(service)
        self._names[service.service] = 0
        self._tallies[key] = service.service, service.tally
        self._services[key] = weakref.ref(service, lambda _: self._drop(key))

    def remove(self, service: Service) -> None:
        """Stop reporting a service, except for its picks so far."""
        self._drop(id(service))

    def _drop(self, key: int) -> None:
        self._services.pop(key, None)
        if (removed := self._tallies.pop(key, None)) is not None:
            name, tally = removed
            self._picked.setdefault(name, 0)
            self._picked[name] += tally.picks

    def picks(self, _: CallbackOptions) -> Iterable[Observation]:
        """The callback of the observable counter of picks."""
        found = dict(self._picked)
        for name, tally in list(self._tallies.values()):
            found[name] = found.get(name, 0) + tally.picks
        return [Observation(value, {"lbclient.service": name}) for name, value in found.items()]

    def ages(self, _: CallbackOptions) -> Iterable[Observation]:
        """The callback of the observable gauge of the age of the last answer."""
        return self._told(lambda one: one.age, max)

    def sizes(self, _: CallbackOptions) -> Iterable[Observation]:
        """The callback of the observable gauge of the number of instances."""
        return self._told(lambda one: one.size, min)

    def in_flight(self, _: CallbackOptions) -> Iterable[Observation]:
        """The callback of the observable counter of attempts in flight.

        If each attempt incremented and decremented a counter, one missed decrement would make the
        value wrong for ever.
        """
        return self._told(lambda one: one.in_flight, operator.add, self._names)

    def _told(
        self,
        ask: Callable[[Service], float | None],
        together: Callable[[float, float], float],
        start: Mapping[str, float] = MappingProxyType({}),
    ) -> Iterable[Observation]:
        found = dict(start)
        for service in [ref() for ref in list(self._services.values())]:
            if service is not None and (value := ask(service)) is not None:
                name = service.service
                found[name] = together(found[name], value) if name in found else value
        return [Observation(value, {"lbclient.service": name}) for name, value in found.items()]


class Instruments:
    """The instruments of one meter provider, shared by all balancers.

    They are shared because OpenTelemetry's API, without an SDK, keeps every instrument that it has
    ever made.
    """

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("lbclient", __version__)
        counter = meter.create_counter
        self.retries: Counter = counter("lbclient.retries", "{attempt}", "Attempts after the first")
        self.refused: Counter = counter(
            "lbclient.retries.refused", "{attempt}", "Retries that the retry budget refused"
        )
        self.breakers: Counter = counter(
            "lbclient.breaker.changes", "{change}", "Breaker state changes"
        )
        self.lookups: Counter = counter("lbclient.discovery.errors", "{lookup}", "Failed lookups")
        self.changes: Counter = counter(
            "lbclient.discovery.changes", "{instance}", "Instances that joined or left"
        )
        self.would_refuse: Counter = counter(
            "lbclient.breaker.observed",
            "{attempt}",
            "Attempts that a breaker with observe=True would have refused",
        )
        self.ejections: Counter = counter("lbclient.ejections", "{ejection}", "Instances ejected")
        self.health: Counter = counter(
            "lbclient.health.changes", "{change}", "Health changes found by active checks"
        )
        self.hedges: Counter = counter(
            "lbclient.hedges", "{attempt}", "Second attempts, sent while the first was slow"
        )
        self.hedges_refused: Counter = counter(
            "lbclient.hedges.refused", "{attempt}", "Hedges that the hedging budget refused"
        )
        self.throttled: Counter = counter(
            "lbclient.throttled", "{call}", "Calls that the throttle refused"
        )
        self.observed: Observed = Observed()
        self.picks: ObservableCounter = meter.create_observable_counter(
            "lbclient.picks", [self.observed.picks], "{pick}", "Instances picked"
        )
        meter.create_observable_up_down_counter(
            "lbclient.in_flight", [self.observed.in_flight], "{attempt}", "Attempts in flight"
        )
        meter.create_observable_gauge(
            "lbclient.discovery.age", [self.observed.ages], "s", "Time since the last good answer"
        )
        meter.create_observable_gauge(
            "lbclient.discovery.instances",
            [self.observed.sizes],
            "{instance}",
            "Known instances",
        )
        self.duration: Histogram = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self.durations: dict[str, tuple[Histogram, float]] = {
            "http.client.request.duration": (self.duration, 1.0),
            "rpc.client.duration": (
                meter.create_histogram(
                    "rpc.client.duration",
                    "ms",
                    "Duration of outbound RPCs",
                    explicit_bucket_boundaries_advisory=[1000 * one for one in _BUCKETS],
                ),
                1000.0,
            ),
        }
        """Maps the name of each metric for durations to its histogram, and to the number of its
        units in a second."""


_shared: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()


def instruments(provider: MeterProvider) -> Instruments:
    """Return the instruments of this provider. They are made once for each provider."""
    if (known := _shared.get(provider)) is None:
        known = _shared[provider] = Instruments(provider)
    return known


class Metrics:
    """The counters of one balancer."""

    def __init__(self, instruments: Instruments, service: Attributes) -> None:
        self._instruments = instruments
        self._service = service

    def retry(self) -> None:
        """Count a retry that was decided."""
        self._instruments.retries.add(1, self._service)

    def refusal(self) -> None:
        """Count a retry that the budget refused."""
        self._instruments.refused.add(1, self._service)

    def breaker(self, state: str) -> None:
        """Count a breaker that changed to `state`."""
        self._instruments.breakers.add(1, {**self._service, "lbclient.breaker.state": state})

    def would_refuse(self) -> None:
        """Count an attempt that a breaker would have refused if it did not only observe."""
        self._instruments.would_refuse.add(1, self._service)

    def ejected(self, by: str) -> None:
        """Count an ejection, by hand or as an outlier."""
        self._instruments.ejections.add(1, {**self._service, "lbclient.ejection.by": by})

    def health(self, *, healthy: bool) -> None:
        """Count a change of the result of an instance's active checks."""
        state = "up" if healthy else "down"
        self._instruments.health.add(1, {**self._service, "lbclient.health.state": state})

    def hedge(self) -> None:
        """Count a second attempt."""
        self._instruments.hedges.add(1, self._service)

    def hedge_refused(self) -> None:
        """Count a second attempt that the hedging budget refused."""
        self._instruments.hedges_refused.add(1, self._service)

    def throttled(self) -> None:
        """Count a call that the throttle refused."""
        self._instruments.throttled.add(1, self._service)

    def lookup_failed(self, error: BaseException | None) -> None:
        """Count a lookup without a good answer."""
        self._instruments.lookups.add(1, {**self._service, **error_attributes(error)})

    def changed(self, joined: int, left: int) -> None:
        """Count instances that joined and left."""
        for what, number in (("joined", joined), ("left", left)):
            if number:
                self._instruments.changes.add(number, {**self._service, "lbclient.change": what})

    def observe(self, service: Service) -> None:
        """Report the age and size of a service's discovery, and its attempts in flight."""
        self._instruments.observed.add(service)

    def forget(self, service: Service) -> None:
        """Stop reporting a service."""
        self._instruments.observed.remove(service)

    @property
    def untimed(self) -> bool:
        """True if no SDK collects durations. The instruments of OpenTelemetry's API then do
        nothing."""
        return getattr(self._instruments.duration, "_real_instrument", self) is None

    def duration(self, metric: str, elapsed: float, attributes: Attributes) -> None:
        """Record the duration of an attempt, `elapsed` seconds, in the metric of its protocol."""
        histogram, units = self._instruments.durations[metric]
        histogram.record(elapsed * units, attributes)
