"""ORCA: the header by which an instance says how busy it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from lbclient.strategy import LoadReport

__all__ = ["HEADER", "load_of"]

HEADER = "endpoint-load-metrics"
"""ORCA's, the Open Request Cost Aggregation of Envoy and gRPC, in its forms TEXT and JSON."""

_LONGEST = 4096
_IN_FLIGHT, _LATENCY = "in_flight", "latency"
_NAMED = "named_metrics"


def load_of(text: str) -> LoadReport | None:
    """What `TEXT named_metrics.in_flight=7, named_metrics.latency=0.02` says, or
    `JSON {"named_metrics": {"in_flight": 7, "latency": 0.02}}`; None where it says nothing of that.

    Raises ValueError for what cannot be meant.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    form, _, rest = text.strip().partition(" ")
    try:
        named = _FORMS[form](rest) if form in _FORMS else {}
        if (in_flight := named.get(_IN_FLIGHT)) is None:
            return None
        latency = named.get(_LATENCY)
        return LoadReport(_number(in_flight), None if latency is None else _number(latency))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _pairs(text: str) -> Mapping[str, object]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip().removeprefix(f"{_NAMED}."): value for name, _, value in pairs}


def _object(text: str) -> Mapping[str, object]:
    found = json.loads(text)
    named = found.get(_NAMED, {}) if isinstance(found, dict) else None
    if not isinstance(named, dict):
        raise TypeError("no object of named metrics")
    return named


_FORMS: Mapping[str, Callable[[str], Mapping[str, object]]] = {"TEXT": _pairs, "JSON": _object}


def _number(value: object) -> float:
    return float(value) if isinstance(value, str) else value  # type: ignore[return-value]  # checked there
