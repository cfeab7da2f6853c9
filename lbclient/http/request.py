"""What one request asks of the balancer, and what an attempt makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import httpx

from lbclient import checks
from lbclient.deadline import Expiry
from lbclient.http.dial import Allowance
from lbclient.retry import RetryPolicy
from lbclient.telemetry import propagation
from lbclient.terms import Terms

__all__ = ["UNSTREAMED", "attempt_extensions", "attempt_headers", "terms_of"]

UNSTREAMED = "lbclient.unstreamed"
"""The extension by which a `Client` says that it is about to read the whole body."""

_ASKED = frozenset({"deadline", "idempotent", "key"})
_POOL = 5.0
_TIMEOUTS = ("connect", "read", "write", "pool")


def terms_of(
    request: httpx.Request, policy: RetryPolicy, replayable: Callable[[], bool] | None
) -> Terms:
    """From the method, the headers and `extensions={"lbclient": {...}}`.

    Raises ValueError or TypeError for what the extension may not hold.
    """
    asked = request.extensions.get("lbclient", {})
    if asked:
        _check(asked)
    idempotent = asked.get("idempotent")
    if idempotent is None:
        idempotent = request.method in policy.methods or "idempotency-key" in request.headers
    patience = request.extensions.get("timeout", {}).get("pool", _POOL)
    return Terms(
        idempotent=bool(idempotent),
        key=asked.get("key"),
        deadline=asked.get("deadline"),
        patience=_POOL if patience is None else patience,
        **({} if replayable is None else {"replayable": replayable}),
    )


def _check(asked: object) -> None:
    name = "extensions['lbclient']"
    if not isinstance(asked, Mapping):
        raise TypeError(f"{name} must be a dict, not {asked!r}")
    if unknown := set(asked) - _ASKED:
        known = ", ".join(sorted(_ASKED))
        raise ValueError(f"{name} may hold {known}; not {', '.join(map(repr, sorted(unknown)))}")
    if asked.get("deadline") is not None:
        checks.seconds(f"{name}['deadline']", asked["deadline"])


def attempt_headers(request: httpx.Request, own_host: bytes | None) -> httpx.Headers:
    """The caller's headers, with the span's, and with `own_host` where the instance has its own."""
    carrier = propagation()
    if not carrier and own_host is None:
        return request.headers
    headers = httpx.Headers(request.headers)
    if own_host is not None:
        headers["host"] = own_host.decode("ascii")
    headers.update(carrier)
    return headers


def attempt_extensions(request: httpx.Request, expiry: Expiry | None) -> Mapping[str, object]:
    """The caller's extensions, with timeouts that end with the attempt."""
    if expiry is None:
        return request.extensions
    given = request.extensions.get("timeout", {})
    bounded = {name: Allowance(given.get(name), expiry) for name in _TIMEOUTS}
    return {**request.extensions, "timeout": bounded}
