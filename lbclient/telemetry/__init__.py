"""Spans and metrics. The only folder that uses opentelemetry.

A call has one INTERNAL span, and each attempt has a CLIENT span below it. The attributes of a span
are computed only if the span is recorded. So if only OpenTelemetry's API is installed, without an
SDK, tracing takes almost no time.
"""
