"""Metrics: what is counted as it happens, and what is observed when metrics are collected."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from lbclient._internal.version import __version__
from lbclient.telemetry.semantics import Attributes, error_attributes

__all__ = ["Metrics", "Tally", "instruments"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class Tally:
    """How many instances one balancer has picked so far. Its owner counts under its own lock, which
    takes a tenth of the time of a counter of OpenTelemetry's SDK."""

    __slots__ = ("picks",)

    def __init__(self) -> None:
        self.picks = 0


class Service(Protocol):
    """What can be asked about one service, from any thread, without a lock."""

    service: str
    """Its name."""
    tally: Tally
    """What it has counted."""

    @property
    def age(self) -> float | None:
        """Seconds since the last good answer; None where there is none, or none is needed."""
        ...

    @property
    def size(self) -> int:
        """How many instances are known."""
        ...

    @property
    def in_flight(self) -> int:
        """How many attempts are under way."""
        ...


class Observed:
    """The services of one meter provider that are in use. It holds none of them alive.

    Of several clients of one service the worst is told: the oldest answer, the fewest instances;
    of attempts under way, the sum.
    """

    def __init__(self) -> None:
        self._services: dict[int, weakref.ref[Service]] = {}
        self._tallies: dict[int, tuple[str, Tally]] = {}
        self._picked: dict[str, int] = {}
        """The picks of balancers that are gone, by service: a counter never falls."""
        self._names: dict[str, float] = {}
        """Every service that there ever was: a counter that ends is told as 0, as if it counted."""

    def add(self, service: Service) -> None:
        """Tell of it too, until it is gone or taken away."""
        key = id(service)
        self._names[service.service] = 0
        self._tallies[key] = service.service, service.tally
        self._services[key] = weakref.ref(service, lambda _: self._drop(key))

    def remove(self, service: Service) -> None:
        """Tell of it no more, but for what it has counted."""
        self._drop(id(service))

    def _drop(self, key: int) -> None:
        self._services.pop(key, None)
        if (told := self._tallies.pop(key, None)) is not None:
            name, tally = told
            self._picked.setdefault(name, 0)
            self._picked[name] += tally.picks

    def picks(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable counter."""
        found = dict(self._picked)
        for name, tally in list(self._tallies.values()):
            found[name] = found.get(name, 0) + tally.picks
        return [Observation(value, {"lbclient.service": name}) for name, value in found.items()]

    def ages(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable gauge."""
        return self._told(lambda one: one.age, max)

    def sizes(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable gauge."""
        return self._told(lambda one: one.size, min)

    def in_flight(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable counter: one that is added to could lose an end, and never heal."""
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
    """What one meter provider counts with, for all balancers: the API without an SDK keeps every
    instrument that it has ever made."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("lbclient", __version__)
        counter = meter.create_counter
        self.retries = counter("lbclient.retries", "{attempt}", "Attempts after the first")
        self.refused = counter("lbclient.retries.refused", "{attempt}", "Refused by the budget")
        self.breakers = counter("lbclient.breaker.changes", "{change}", "Breaker state changes")
        self.lookups = counter("lbclient.discovery.errors", "{lookup}", "Failed lookups")
        self.changes = counter(
            "lbclient.discovery.changes", "{instance}", "Instances that joined or left"
        )
        self.would_refuse = counter(
            "lbclient.breaker.observed", "{attempt}", "What observing breakers would have refused"
        )
        self.ejections = counter("lbclient.ejections", "{ejection}", "Instances ejected")
        self.health = counter("lbclient.health.changes", "{change}", "Changes by active checks")
        self.hedges = counter("lbclient.hedges", "{attempt}", "Attempts sent beside a first")
        self.hedges_refused = counter(
            "lbclient.hedges.refused", "{attempt}", "Refused by the budget of hedges"
        )
        self.throttled = counter("lbclient.throttled", "{call}", "Calls kept back unsent")
        self.observed = Observed()
        self.picks = meter.create_observable_counter(
            "lbclient.picks", [self.observed.picks], "{pick}", "Instances picked"
        )
        meter.create_observable_up_down_counter(
            "lbclient.in_flight", [self.observed.in_flight], "{attempt}", "Attempts under way"
        )
        meter.create_observable_gauge(
            "lbclient.discovery.age", [self.observed.ages], "s", "Since the last good answer"
        )
        meter.create_observable_gauge(
            "lbclient.discovery.instances",
            [self.observed.sizes],
            "{instance}",
            "Instances that are known",
        )
        self.duration = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )


_shared: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()


def instruments(provider: MeterProvider) -> Instruments:
    """Those of this provider, made once."""
    if (known := _shared.get(provider)) is None:
        known = _shared[provider] = Instruments(provider)
    return known


class Metrics:
    """The counters of one balancer."""

    def __init__(self, instruments: Instruments, service: Attributes) -> None:
        self._instruments = instruments
        self._service = service

    def retry(self) -> None:
        """An attempt beyond the first was decided."""
        self._instruments.retries.add(1, self._service)

    def refusal(self) -> None:
        """The budget refused a retry."""
        self._instruments.refused.add(1, self._service)

    def breaker(self, state: str) -> None:
        """A breaker changed to `state`."""
        self._instruments.breakers.add(1, {**self._service, "lbclient.breaker.state": state})

    def would_refuse(self) -> None:
        """An attempt goes where a breaker that merely observes would have refused it."""
        self._instruments.would_refuse.add(1, self._service)

    def ejected(self, by: str) -> None:
        """An instance was ejected, by hand or as an outlier."""
        self._instruments.ejections.add(1, {**self._service, "lbclient.ejection.by": by})

    def health(self, *, healthy: bool) -> None:
        """Active checks say that an instance is up, or down."""
        state = "up" if healthy else "down"
        self._instruments.health.add(1, {**self._service, "lbclient.health.state": state})

    def hedge(self) -> None:
        """An attempt was sent beside the first of its call."""
        self._instruments.hedges.add(1, self._service)

    def hedge_refused(self) -> None:
        """The budget of hedges refused a second attempt."""
        self._instruments.hedges_refused.add(1, self._service)

    def throttled(self) -> None:
        """A call was kept back by the throttle."""
        self._instruments.throttled.add(1, self._service)

    def lookup_failed(self, error: BaseException | None) -> None:
        """Discovery asked, and got no good answer."""
        self._instruments.lookups.add(1, {**self._service, **error_attributes(error)})

    def changed(self, joined: int, left: int) -> None:
        """So many instances came and went."""
        for what, number in (("joined", joined), ("left", left)):
            if number:
                self._instruments.changes.add(number, {**self._service, "lbclient.change": what})

    def observe(self, service: Service) -> None:
        """Tell the age and size of its discovery, and its attempts under way."""
        self._instruments.observed.add(service)

    def forget(self, service: Service) -> None:
        """Tell of it no more."""
        self._instruments.observed.remove(service)

    @property
    def untimed(self) -> bool:
        """True where no SDK takes durations: the API's proxies then have no real instrument."""
        return getattr(self._instruments.duration, "_real_instrument", self) is None

    def duration(self, elapsed: float, attributes: Attributes) -> None:
        """An HTTP attempt took `elapsed` seconds."""
        self._instruments.duration.record(elapsed, attributes)
