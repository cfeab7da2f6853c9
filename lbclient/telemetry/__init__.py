"""Spans and metrics. The only folder with opentelemetry.

One INTERNAL span per call, one CLIENT span per attempt as its child. Attributes are computed only
for a span that records, so that with the API alone a call pays next to nothing.
"""

from __future__ import annotations

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from lbclient._version import __version__
from lbclient.telemetry.counts import Counts, instruments
from lbclient.telemetry.semantics import Attributes, Semantics, error_attributes
from lbclient.telemetry.spans import SILENT, AttemptSpan, CallSpan, propagation

__all__ = [
    "SILENT",
    "AttemptSpan",
    "Attributes",
    "CallSpan",
    "Counts",
    "MeterProvider",
    "Semantics",
    "Telemetry",
    "TracerProvider",
    "error_attributes",
    "propagation",
]


class Telemetry:
    """The spans and metrics of one balancer. `service` is the one label of its own metrics."""

    def __init__(
        self,
        service: str,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        self._tracer = trace.get_tracer("lbclient", __version__, tracer_provider)
        self._service: Attributes = {"lbclient.service": service}
        provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
        self.counts = Counts(instruments(provider), self._service)

    def call(self, semantics: Semantics) -> CallSpan:
        """Open the span of one call."""
        return CallSpan(self._tracer, self._service, semantics)
