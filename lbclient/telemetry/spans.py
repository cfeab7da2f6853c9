"""The span of a call, and the spans of its attempts. `Telemetry` joins them with the metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Token

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.metrics import MeterProvider, get_meter_provider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from lbclient._internal.version import __version__
from lbclient.endpoint.instance import Instance
from lbclient.telemetry.metrics import Metrics, instruments
from lbclient.telemetry.semantics import Attributes, Semantics, error_attributes

__all__ = [
    "NOOP_SPAN",
    "AttemptSpan",
    "CallSpan",
    "Telemetry",
    "TracerProvider",
    "propagation",
]

TracerProvider = trace.TracerProvider
"""OpenTelemetry's type, under a name that the options can use."""

ATTEMPTS = "lbclient.attempts"
"""The number of attempts of a call.

A span starts with the value 1, which is right for nearly all calls. To set an attribute later would
take more time.
"""
_NOTHING: Attributes = {}
_NO_HEADERS: Mapping[str, str] = {}
_CALL = "lbclient.call"
_SUPPRESS, _SUPPRESS_HTTP = (
    getattr(context, f"_{name.upper()}_KEY", name)
    for name in ("suppress_instrumentation", "suppress_http_instrumentation")
)
"""The keys that are set in a context in which spans are suppressed. The API has no public names for
these keys.
"""

_runtime = getattr(context, "_RUNTIME_CONTEXT", None)
_current: Callable[[], Context] = getattr(
    # A subclass may store its context elsewhere.
    vars(_runtime).get("_current_context") if type(_runtime) is ContextVarsRuntimeContext else None,
    "get",
    context.get_current,
)
"""Returns the same as `context.get_current`, but reads the context variable directly.

This saves two function calls in each call of the balancer. If OpenTelemetry's API stores its
context elsewhere, `context.get_current` is used.
"""


class CallSpan:
    """The INTERNAL span of one call, which also creates the spans of the attempts.

    If there is neither an SDK nor a span around the call, the span has an invalid context. Then
    nothing is traced, and attempts get no spans.
    """

    __slots__ = ("_context", "_recording", "_semantics", "_span", "_tracer", "silent")

    def __init__(
        self, tracer: trace.Tracer, span: Span, semantics: Semantics, around: Context
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._semantics = semantics
        self._context = around
        self._recording = span.is_recording()
        self.silent: bool = not (self._recording or span.get_span_context().is_valid)
        """True if nothing is traced, or the span has ended."""
        if not self.silent:
            self._context = trace.set_span_in_context(span, around)

    def attempt(self, resend: int, instance: Instance) -> AttemptSpan:
        """Open the span of one attempt. `resend` is 0 for the first attempt, 1 for the second, and
        so on."""
        if self.silent:
            return NOOP_SPAN
        semantics, known = self._semantics, _NOTHING
        if self._recording:
            known = {
                **semantics.request(resend),
                **semantics.addressed(instance),
                "network.peer.address": instance.address,
                "network.peer.port": instance.port,
            }
        span = self._tracer.start_span(semantics.span_name, self._context, SpanKind.CLIENT, known)
        return AttemptSpan(span, known, self._context)

    def end(self, error: BaseException | None, attempts: int) -> None:
        """End the span of the call. May be called more than once."""
        if self.silent:
            return
        self.silent = True
        if self._recording and attempts != 1:
            self._span.set_attribute(ATTEMPTS, attempts)
        if self._recording and error is not None:
            _conclude(self._span, error_attributes(error), _NOTHING)
        self._span.end()


class AttemptSpan:
    """The CLIENT span of one attempt. `span` is None if nothing is traced."""

    __slots__ = ("_around", "_known", "_span", "_token", "recording")

    def __init__(self, span: Span | None, known: Attributes, around: Context) -> None:
        self._span = span
        self._known = known
        self._around = around
        self._token: Token[Context] | None = None
        self.recording: bool = span is not None and span.is_recording()
        """True if the attributes of the span are recorded."""

    def enter(self) -> None:
        """Make this span the current span, until `leave` is called in the same task or thread."""
        if self._span is not None:
            self._token = context.attach(trace.set_span_in_context(self._span, self._around))

    def leave(self) -> None:
        """Make the previous span the current span again."""
        if self._token is not None:
            context.detach(self._token)
            self._token = None

    def end(self, attributes: Attributes = _NOTHING) -> None:
        """End the span, since the headers have arrived or the attempt has failed. May be called
        more than once."""
        if (span := self._span) is None:
            return
        self._span = None
        if attributes and self.recording:
            _conclude(span, attributes, self._known)
        span.end()

    def end_later(self, pending: deque[Callable[[], None]]) -> None:
        """Append a function to `pending` that ends the span when it is called."""
        if (span := self._span) is not None:
            pending.append(span.end)
            self._span = None


NOOP_SPAN = AttemptSpan(None, _NOTHING, Context())
_SILENT_CALL = CallSpan(trace.NoOpTracer(), trace.INVALID_SPAN, Semantics(), Context())


class Tracing:
    """Opens the spans of one balancer's calls, with the attributes that all of them have."""

    __slots__ = ("_known", "_late", "_tracer")

    def __init__(self, tracer: trace.Tracer, known: Attributes) -> None:
        self._tracer = tracer
        self._known = known
        self._late = isinstance(tracer, trace.ProxyTracer)
        """True if an SDK may still be installed. Once it is, the proxy of OpenTelemetry's API uses
        a tracer of the SDK."""

    def call(self, semantics: Semantics) -> CallSpan:
        """Open the span of one call."""
        now, tracer = _current(), self._tracer
        if not now:
            if self._late:
                tracer = getattr(tracer, "_tracer", tracer)
            if isinstance(tracer, trace.NoOpTracer):
                return _SILENT_CALL  # there is no SDK, and no span of the caller
        elif now.get(_SUPPRESS) or now.get(_SUPPRESS_HTTP):
            return _SILENT_CALL
        span = tracer.start_span(_CALL, now, attributes=self._known)
        return (
            _SILENT_CALL if span is trace.INVALID_SPAN else CallSpan(tracer, span, semantics, now)
        )


class Telemetry:
    """The spans and metrics of one balancer. `service` is the only label of lbclient's own
    metrics."""

    def __init__(
        self,
        service: str,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        tracer = trace.get_tracer("lbclient", __version__, tracer_provider)
        label: Attributes = {"lbclient.service": service}
        self.call: Callable[[Semantics], CallSpan] = Tracing(tracer, {**label, ATTEMPTS: 1}).call
        """Opens the span of one call."""
        provider = get_meter_provider() if meter_provider is None else meter_provider
        self.metrics: Metrics = Metrics(instruments(provider), label)


def propagation() -> Mapping[str, str]:
    """The headers that tell the called server which span the call belongs to, such as
    `traceparent`."""
    now = _current()
    if not now or now.get(_SUPPRESS) or now.get(_SUPPRESS_HTTP):
        return _NO_HEADERS  # there is no span, or spans are suppressed
    carrier: dict[str, str] = {}
    propagate.inject(carrier, now)
    return carrier


def _conclude(span: Span, attributes: Attributes, known: Attributes) -> None:
    """Set the attributes that are not set yet.

    The attributes are set one by one. A good response has only one attribute, and this is the
    cheapest way to set one attribute.
    """
    for name, value in attributes.items():
        if known.get(name) != value:
            span.set_attribute(name, value)
    if "error.type" in attributes:
        span.set_status(Status(StatusCode.ERROR))
