"""What is counted."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from opentelemetry.metrics import MeterProvider

from lbclient._version import __version__
from lbclient.telemetry.observed import Observed, Service
from lbclient.telemetry.semantics import Attributes, error_attributes

__all__ = ["Counts", "Instruments", "instruments"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


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


class Counts:
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
