"""Spans and metrics. The only folder that uses opentelemetry.

A call has one INTERNAL span, and each attempt a CLIENT span below it. Attributes are computed only
for a span that records, so with the API alone a call costs next to nothing more.
"""
