"""The load reports in the trailing metadata of RPCs (ORCA).

gRPC's core, up to version 1.85, does not pass the binary report on to Python. So an instance may
also send the report as text, as over HTTP; gRPC passes the text on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lbclient.balancer.load_probe import load_of, report_of
from lbclient.endpoint.endpoint import Endpoint
from lbclient.grpc.wire import double, fields
from lbclient.protocol import Loads

__all__ = ["LoadReports"]

_BINARY, _TEXT = "endpoint-load-metrics-bin", "endpoint-load-metrics"
_NAMED_METRICS = 8
_LONGEST = 4096


class LoadReports:
    """Passes the load reports of instances to the strategy."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def record(self, endpoint: Endpoint, metadata: Iterable[Any] | None) -> None:
        """Record the report in the trailing metadata of an attempt, if there is one."""
        for key, value in metadata or ():
            if key in (_BINARY, _TEXT):
                try:
                    load = load_of(value) if key == _TEXT else report_of(named_metrics(value))
                except (TypeError, ValueError) as error:
                    self._loads.refused(endpoint, ascii(str(error))[:200])
                    return
                if load is not None:
                    self._loads.record(endpoint, load)


def named_metrics(report: bytes) -> dict[str, float]:
    """Return the named metrics of an `OrcaLoadReport`. Raises ValueError if it is malformed."""
    if len(report) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} bytes")
    named: dict[str, float] = {}
    for number, value in fields(report):
        if number == _NAMED_METRICS and isinstance(value, bytes):
            entry = dict(fields(value))
            name = entry.get(1, b"")
            named[name.decode() if isinstance(name, bytes) else ""] = double(entry.get(2, bytes(8)))
    return named
