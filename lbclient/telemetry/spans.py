"""The span of a call, and those of its attempts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Token
from typing import TYPE_CHECKING

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from lbclient.instance import Instance
from lbclient.telemetry.semantics import Attributes, Semantics, error_attributes

if TYPE_CHECKING:
    from opentelemetry.context import Context

__all__ = ["ATTEMPTS", "SILENT", "AttemptSpan", "CallSpan", "call_span", "propagation"]

ATTEMPTS = "lbclient.attempts"
"""How many attempts a call has made. A span begins with 1, which is right for nearly all calls: an
attribute that is set later costs more."""
_NOTHING: Attributes = {}
_NO_HEADERS: Mapping[str, str] = {}
_CALL = "lbclient.call"
_SUPPRESS, _SUPPRESS_HTTP = (
    getattr(context, f"_{name.upper()}_KEY", name)
    for name in ("suppress_instrumentation", "suppress_http_instrumentation")
)
"""In the context of whoever wants no spans; the API keeps the keys, but has no word for them."""


class CallSpan:
    """The INTERNAL span of one call, and the factory of its attempts' spans.

    Where its context is invalid nobody traces (there is no SDK, and no caller's span), so there is
    nothing that the spans of attempts could add.
    """

    __slots__ = ("_context", "_semantics", "_span", "_tracer", "silent")

    def __init__(self, tracer: trace.Tracer, span: Span, semantics: Semantics) -> None:
        self._tracer = tracer
        self._span = span
        self._semantics = semantics
        self._context: Context | None = None
        self.silent = not span.get_span_context().is_valid
        """True where nobody traces."""

    def attempt(self, resend: int, instance: Instance) -> AttemptSpan:
        """Open the span of one attempt; `resend` counts from 1 at the second one."""
        if self.silent:
            return SILENT
        if self._context is None:
            self._context = trace.set_span_in_context(self._span)
        name, known = self._semantics.span_name, self._known(resend, instance)
        span = self._tracer.start_span(name, self._context, SpanKind.CLIENT, known)
        return AttemptSpan(span, known)

    def _known(self, resend: int, instance: Instance) -> Attributes:
        if not self._span.is_recording():
            return _NOTHING
        known: dict[str, str | int | float | bool] = {**self._semantics.request(resend)}
        known["network.peer.address"] = instance.address
        known["network.peer.port"] = instance.port
        return known

    def end(self, error: BaseException | None, attempts: int) -> None:
        """The call is over."""
        if self.silent:
            return
        if self._span.is_recording():
            if attempts != 1:
                self._span.set_attribute(ATTEMPTS, attempts)
            if error is not None:
                _conclude(self._span, error_attributes(error))
        self._span.end()


class AttemptSpan:
    """The CLIENT span of one attempt; without a span, of one that nobody traces."""

    __slots__ = ("_known", "_span", "_token")

    def __init__(self, span: Span | None, known: Attributes = _NOTHING) -> None:
        self._span = span
        self._known = known
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
        """The headers came, or the failure is known. More than once does no harm."""
        if (span := self._span) is None:
            return
        self._span = None
        if span.is_recording():
            known = self._known
            _conclude(span, {name: v for name, v in attributes().items() if known.get(name) != v})
        span.end()


SILENT = AttemptSpan(None)
_SILENT_CALL = CallSpan(trace.NoOpTracer(), trace.INVALID_SPAN, Semantics())


def call_span(tracer: trace.Tracer, known: Attributes, semantics: Semantics) -> CallSpan:
    """Open the span of one call, with the attributes that each call of its balancer has."""
    now = context.get_current()
    if now and _suppressed(now):
        return _SILENT_CALL
    if not now and isinstance(getattr(tracer, "_tracer", tracer), trace.NoOpTracer):
        return _SILENT_CALL  # no SDK is there (the API's proxy asks for it), and no caller's span
    span = tracer.start_span(_CALL, now, attributes=known)
    if span is trace.INVALID_SPAN:
        return _SILENT_CALL
    return CallSpan(tracer, span, semantics)


def propagation() -> Mapping[str, str]:
    """The headers that tell the server which span calls it: `traceparent`, for one."""
    now = context.get_current()
    if not now or _suppressed(now):
        return _NO_HEADERS  # an empty context has nothing to say, and who suppresses has said it
    carrier: dict[str, str] = {}
    propagate.inject(carrier, now)
    return carrier


def _conclude(span: Span, attributes: Attributes) -> None:
    if attributes:
        span.set_attributes(attributes)
    if "error.type" in attributes:
        span.set_status(Status(StatusCode.ERROR))


def _suppressed(now: Context) -> bool:
    return bool(now.get(_SUPPRESS) or now.get(_SUPPRESS_HTTP))
