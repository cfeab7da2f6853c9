"""Metrics that a test can read."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


class Metrics:
    """A meter provider of a test's own."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def sum(self, name: str, **labels: object) -> float:
        """All that was counted under this name, with these labels at least."""
        return sum(
            point.value
            for metric in self._all()
            if metric.name == name
            for point in metric.data.data_points
            if labels.items() <= dict(point.attributes).items()
        )

    def _all(self):
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                yield from scope.metrics
