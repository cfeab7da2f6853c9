"""Spans and metrics. The only folder that uses opentelemetry.

A call has one INTERNAL span, and each attempt has a CLIENT span below it. Attributes are computed
only for a span that records. So if only the API is installed, tracing costs a call almost nothing.
"""
