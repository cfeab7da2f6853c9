"""OpenTelemetry's SDK in memory, for tests that look at spans and metrics."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind


class Started(SpanProcessor):
    """Keeps every span from its start."""

    def __init__(self):
        self.spans = []

    def on_start(self, span, parent_context=None):  # noqa: ARG002  # the SDK's signature
        self.spans.append(span)


class Telemetry:
    """OpenTelemetry's SDK, in memory."""

    def __init__(self, sampler=ALWAYS_ON):
        self.exporter = InMemorySpanExporter()
        self.started = Started()
        self.tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(self.started)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.options = {"tracer_provider": self.tracers, "meter_provider": self.meters}
        self.tracer = self.tracers.get_tracer("caller")

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    @property
    def calls(self):
        return [span for span in self.spans if span.kind is SpanKind.INTERNAL]

    @property
    def attempts(self):
        return [span for span in self.spans if span.kind is SpanKind.CLIENT]

    @property
    def open(self):
        return [span for span in self.started.spans if span.end_time is None]

    def has_begun(self, kind):
        return any(span.kind is kind for span in self.started.spans)

    def metrics(self):
        data = self.reader.get_metrics_data()
        return [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def points(self, name):
        """The points of a metric: (labels, value), where a histogram's value is its count."""
        return self.all_points().get(name, [])

    def all_points(self):
        """The points of every metric, as of one collection."""
        return {
            metric.name: [
                (
                    dict(point.attributes),
                    getattr(point, "count", None) or getattr(point, "value", 0),
                )
                for point in metric.data.data_points
            ]
            for metric in self.metrics()
            if metric.data.data_points
        }

    def total(self, name):
        return sum(value for _, value in self.points(name))

    def text(self):
        """All of it, as an exporter would write it down."""
        data = self.reader.get_metrics_data()
        return "\n".join([*(span.to_json() for span in self.spans), data.to_json() if data else ""])
