"""Spans and metrics. The only room with opentelemetry.

One INTERNAL span per call, one CLIENT span per attempt as its child. Attributes are computed only
for a span that records, so that with the API alone a call pays next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Token
from typing import TYPE_CHECKING

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from lbclient._version import __version__
from lbclient.instance import Instance

if TYPE_CHECKING:
    from opentelemetry.context import Context

__all__ = [
    "AttemptSpan",
    "Attributes",
    "CallSpan",
    "MeterProvider",
    "Semantics",
    "Telemetry",
    "TracerProvider",
    "error_attributes",
    "propagation",
]

Attributes = Mapping[str, str | int | float | bool]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_NOTHING: Attributes = {}
_NO_HEADERS: Mapping[str, str] = {}
_CALL = "lbclient.call"
_SUPPRESS = [
    getattr(context, f"_{name.upper()}_KEY", name)
    for name in ("suppress_instrumentation", "suppress_http_instrumentation")
]
"""In the context of whoever wants no spans; the API keeps the keys, but has no word for them."""


class Telemetry:
    """The spans and metrics of one balancer. `service` is the one label of its own metrics."""

    def __init__(
        self,
        service: str,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        self._tracer = trace.get_tracer("lbclient", __version__, tracer_provider)
        self._meter = metrics.get_meter("lbclient", __version__, meter_provider)
        self._service: Attributes = {"lbclient.service": service}
        self.counts = _Counts(self._meter, self._service)

    def call(self, semantics: Semantics) -> CallSpan:
        """Open the span of one call."""
        return CallSpan(self._tracer, self._service, semantics)


class _Counts:
    """The counters of one balancer."""

    def __init__(self, meter: metrics.Meter, service: Attributes) -> None:
        self._service = service
        counter = meter.create_counter
        self._picks = counter("lbclient.picks", "{pick}", "Instances picked")
        self._retries = counter("lbclient.retries", "{attempt}", "Attempts after the first")
        self._refused = counter("lbclient.retries.refused", "{attempt}", "Refused by the budget")
        self._breakers = counter("lbclient.breaker.changes", "{change}", "Breaker state changes")
        self._lookups = counter("lbclient.discovery.errors", "{lookup}", "Failed lookups")
        self._in_flight = meter.create_up_down_counter(
            "lbclient.in_flight", "{attempt}", "Attempts under way"
        )
        self._age = meter.create_gauge(
            "lbclient.discovery.age", "s", "Since the last good answer, as of the last lookup"
        )
        self._duration = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of HTTP client requests",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )

    def pick(self) -> None:
        """An instance was picked, and an attempt is under way."""
        self._picks.add(1, self._service)
        self._in_flight.add(1, self._service)

    def in_flight(self, change: int) -> None:
        """So many more attempts are under way."""
        self._in_flight.add(change, self._service)

    def retry(self) -> None:
        """An attempt beyond the first was decided."""
        self._retries.add(1, self._service)

    def refusal(self) -> None:
        """The budget refused a retry."""
        self._refused.add(1, self._service)

    def breaker(self, state: str) -> None:
        """A breaker changed to `state`."""
        self._breakers.add(1, {**self._service, "lbclient.breaker.state": state})

    def lookup(self, age: float | None, *, failed: bool) -> None:
        """Discovery asked; the last good answer is now `age` seconds old."""
        if failed:
            self._lookups.add(1, self._service)
        if age is not None:
            self._age.set(age, self._service)

    def duration(self, elapsed: float, attributes: Attributes) -> None:
        """An HTTP attempt took `elapsed` seconds."""
        self._duration.record(elapsed, attributes)


class Semantics:
    """How a protocol describes a call to telemetry. This one, the default, adds nothing.

    An attribute `error.type` marks a failed attempt.
    """

    __slots__ = ()

    span_name = "lbclient.attempt"

    def request(self) -> Attributes:
        """What is known before sending."""
        return _NOTHING

    def result(self, result: object) -> Attributes:  # noqa: ARG002  # for others
        """What the result of an attempt tells."""
        return _NOTHING

    def duration(self, result: object) -> Attributes | None:  # noqa: ARG002  # for others
        """The labels under which an attempt's duration is recorded; None records none."""
        return None


class CallSpan:
    """The INTERNAL span of one call, and the factory of its attempts' spans.

    Where its context is invalid nobody traces (there is no SDK, and no caller's span), so there is
    nothing that the spans of attempts could add.
    """

    __slots__ = ("_context", "_semantics", "_span", "_tracer", "silent")

    def __init__(self, tracer: trace.Tracer, service: Attributes, semantics: Semantics) -> None:
        self._tracer = tracer
        self._semantics = semantics
        self._context: Context | None = None
        now = context.get_current()
        span = trace.INVALID_SPAN if _suppressed(now) else tracer.start_span(_CALL, now)
        self._span = span
        self.silent = not span.get_span_context().is_valid
        """True where nobody traces."""
        if not self.silent and span.is_recording():
            span.set_attributes(service)

    def attempt(self, resend: int, instance: Instance) -> AttemptSpan:
        """Open the span of one attempt; `resend` counts from 1 at the second one."""
        if self.silent:
            return SILENT
        if self._context is None:
            self._context = trace.set_span_in_context(self._span)
        name, known = self._semantics.span_name, self._known(resend, instance)
        return AttemptSpan(self._tracer.start_span(name, self._context, SpanKind.CLIENT, known))

    def _known(self, resend: int, instance: Instance) -> Attributes:
        if not self._span.is_recording():
            return _NOTHING
        known: dict[str, str | int | float | bool] = {**self._semantics.request()}
        known["network.peer.address"] = (*instance.addresses, instance.host)[0]
        known["network.peer.port"] = instance.port
        if resend:
            known["http.request.resend_count"] = resend
        return known

    def end(self, error: BaseException | None, attempts: int) -> None:
        """The call is over."""
        if self.silent:
            return
        if self._span.is_recording():
            self._span.set_attribute("lbclient.attempts", attempts)
            _conclude(self._span, error_attributes(error))
        self._span.end()


class AttemptSpan:
    """The CLIENT span of one attempt; without a span, of one that nobody traces."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span | None) -> None:
        self._span = span
        self._token: Token[Context] | None = None

    def enter(self) -> None:
        """Make it the current span; `leave`, in the same task or thread, takes that back."""
        if self._span is not None:
            self._token = context.attach(trace.set_span_in_context(self._span))

    def leave(self) -> None:
        """Make current again what was before."""
        if self._token is not None:
            context.detach(self._token)
            self._token = None

    def end(self, attributes: Callable[[], Attributes]) -> None:
        """The headers came, or the failure is known."""
        if self._span is None:
            return
        if self._span.is_recording():
            _conclude(self._span, attributes())
        self._span.end()


SILENT = AttemptSpan(None)


def propagation() -> Mapping[str, str]:
    """The headers that tell the server which span calls it: `traceparent`, for one."""
    if not (now := context.get_current()):
        return _NO_HEADERS  # an empty context has nothing to say
    carrier: dict[str, str] = {}
    propagate.inject(carrier, now)
    return carrier


def error_attributes(error: BaseException | None) -> Attributes:
    """The type of an error, never its text: that may hold a secret."""
    return _NOTHING if error is None else {"error.type": type(error).__qualname__}


def _conclude(span: Span, attributes: Attributes) -> None:
    span.set_attributes(attributes)
    if "error.type" in attributes:
        span.set_status(Status(StatusCode.ERROR))


def _suppressed(now: Context) -> bool:
    return bool(now) and any(now.get(key) for key in _SUPPRESS)
