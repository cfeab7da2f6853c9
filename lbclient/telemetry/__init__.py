"""Spans and metrics. The only folder that uses opentelemetry.

A call has one INTERNAL span, and each attempt a CLIENT span below it. Attributes are computed only
for a span that records, so with the API alone a call costs next to nothing more.
"""

from __future__ import annotations

from opentelemetry import metrics as otel_metrics
from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lbclient._internal.version import __version__
from lbclient.telemetry.metrics import Metrics, Tally, instruments
from lbclient.telemetry.semantics import Attributes, Semantics, error_attributes
from lbclient.telemetry.spans import (
    ATTEMPTS,
    NOOP_SPAN,
    AttemptSpan,
    CallSpan,
    Tracing,
    propagation,
)

__all__ = [
    "NOOP_SPAN",
    "AttemptSpan",
    "Attributes",
    "CallSpan",
    "MeterProvider",
    "Metrics",
    "Semantics",
    "Tally",
    "Telemetry",
    "TracerProvider",
    "error_attributes",
    "propagation",
]


class Telemetry:
    """The spans and metrics of one balancer. `service` is the only label of its own metrics."""

    def __init__(
        self,
        service: str,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        tracer = trace.get_tracer("lbclient", __version__, tracer_provider)
        label: Attributes = {"lbclient.service": service}
        self.call = Tracing(tracer, {**label, ATTEMPTS: 1}).call
        """Opens the span of one call."""
        provider = otel_metrics.get_meter_provider() if meter_provider is None else meter_provider
        self.metrics = Metrics(instruments(provider), label)
