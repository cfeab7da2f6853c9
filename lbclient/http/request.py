"""The options of one request, and the headers and extensions of one attempt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lbclient._internal import validation
from lbclient._internal.deadline import CURRENT, Deadline, Expiry, time_left
from lbclient.core.call import CallOptions, caller_of
from lbclient.endpoint.instance import Instance
from lbclient.errors import DeadlineExceeded
from lbclient.protocol import Binding
from lbclient.resilience.retry import RetryPolicy
from lbclient.telemetry.spans import propagation

from ._compat import httpx
from .connections.timeouts import DeadlineTimeout
from .shortcuts import copied

__all__ = [
    "LOAD_FORMAT",
    "UNSTREAMED",
    "Upstream",
    "attempt_extensions",
    "attempt_headers",
    "below",
    "call_options_of",
    "explain",
    "given_target",
    "instance_headers",
    "merged",
    "raw_headers",
    "request_deadline",
]

LOAD_FORMAT = "endpoint-load-metrics-format"
"""The request header that asks an instance to report its load (ORCA). vLLM and Triton report their
load only in response to requests with this header."""
UNSTREAMED = "lbclient.unstreamed"
"""The extension that a `Client` sets on a request whose response body it reads at once."""

_OPTION_NAMES = frozenset({"caller", "deadline", "idempotent", "key"})
_POOL = 5.0
_TIMEOUTS = ("connect", "read", "write", "pool")


def call_options_of(
    request: httpx.Request,
    policy: RetryPolicy,
    replayable: Callable[[], bool] | None,
    key_of: Callable[[httpx.Request], object] | None,
    fair_by: Callable[[httpx.Request], object] | None,
) -> CallOptions:
    """Build the options of a call from the request's method, headers and
    `extensions={"lbclient": {...}}`. If the extension has no key or caller, the functions `key_of`
    and `fair_by` return them. Exceptions of these two functions are raised to the caller.

    Raises ValueError or TypeError if the extension is invalid.
    """
    given = request.extensions.get("lbclient")
    options = _NOTHING if given is None else _checked(given)
    idempotent = options.get("idempotent")
    if idempotent is None:
        header = request.headers.get  # an empty Idempotency-Key is ignored
        idempotent = request.method in policy.methods or bool(header("idempotency-key"))
    patience = request.extensions.get("timeout", {}).get("pool", _POOL)
    key = options.get("key")
    if key is None and key_of is not None:
        key = key_of(request)
    caller = options.get("caller")
    if caller is not None:
        caller = caller_of("extensions['lbclient']['caller']", caller)
    elif fair_by is not None:
        caller = caller_of("the result of fair_by", fair_by(request))
    if patience is None:
        patience = _POOL
    deadline = options.get("deadline")
    if key is None and deadline is None and replayable is None and caller is None:
        return _shared_options(idempotent, float(patience))
    return CallOptions(idempotent, key, deadline, patience, replayable, caller=caller)


@lru_cache(maxsize=16)
def _shared_options(idempotent: bool, patience: float) -> CallOptions:  # noqa: FBT001  # the arguments of `CallOptions`
    """Return the options of a request that sets only these two. The result is cached, since nearly
    all requests of a client have the same options."""
    return CallOptions(idempotent, patience=patience)


_NOTHING: Mapping[str, Any] = {}


def _checked(options: object) -> Mapping[str, Any]:
    name = "extensions['lbclient']"
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(f"{name} must be a dict, not {options!r}")
    if unknown := set(options) - _OPTION_NAMES:
        known = ", ".join(sorted(_OPTION_NAMES))
        raise ValueError(f"{name} may contain {known}; not {', '.join(sorted(map(repr, unknown)))}")
    if options.get("deadline") is not None:
        validation.seconds(f"{name}['deadline']", options["deadline"])
    if not isinstance(idempotent := options.get("idempotent"), bool | None):
        raise TypeError(f"{name}['idempotent'] must be True or False, not {idempotent!r}")
    return options


def request_deadline(request: httpx.Request, deadline: float | None, binding: Binding) -> Deadline:
    """Return the deadline of one `send` of a client. The deadline applies to all requests of this
    `send` (redirects and authentication may need several), and includes the time of event hooks.

    `deadline` is used if the first request sets no deadline. The deadline is not stored in the
    request or its extensions: an auth flow may send other requests without extensions, and a caller
    may send the same request again.

    Raises ValueError or TypeError if the extension of the first request is invalid.
    """
    seconds = _checked(request.extensions.get("lbclient")).get("deadline")
    if seconds is None:
        seconds = math.inf if deadline is None else deadline
    made = binding.deadline(seconds)
    made.outer = CURRENT.get()
    return made


def explain(error: DeadlineExceeded, deadline: Deadline) -> None:
    """Add a note to the error. It says that earlier requests of the same `send` have used some of
    the time."""
    if deadline.requests > 1:
        error.add_note(
            f"it was request {deadline.requests} of this call: redirects and rounds of "
            "authentication share its deadline"
        )


class Upstream(NamedTuple):
    """How a transport addresses one instance.

    `tls_name` is the name that TLS verifies; None means the instance's host. `hosts` has two items.
    If the request's Host equals the first item, or if the first item is None, the second item is
    sent as the Host. `deadline_header` is the name of the header that tells the instance how many
    milliseconds are left. If `asks_load` is True, each request asks the instance to report its
    load. `path` comes before the path of each request. `headers` replace headers of the caller with
    the same names; their names are in lower case.
    """

    instance: Instance
    scheme: str
    tls_name: str | None
    hosts: tuple[bytes | None, bytes] | None
    deadline_header: str | None = None
    asks_load: bool = False
    path: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()

    def __repr__(self) -> str:  # the values of headers may be secret
        return f"<Upstream {self.scheme}://{self.instance}>"


def below(base: str, request: httpx.Request) -> httpx.Request:
    """Return the request with the service's base path before its own path."""
    url = request.url
    made = copied(request)  # the caller's request is never changed
    made.url = url.copy_with(raw_path=base.encode("ascii") + url.raw_path)
    return made


def given_target(target: bytes, path: bytes) -> bytes:
    """Return the request target to send, for a request whose extension `target` is set. If `target`
    is a path, the base path `path` is put before it."""
    return path + target if target.startswith(b"/") else target


def raw_headers(request: httpx.Request, upstream: Upstream) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers of one attempt: the headers of the caller, of the instance and of the
    attempt itself. A header of the instance or of the attempt replaces a header of the caller with
    the same name."""
    headers: Sequence[tuple[bytes, bytes]] = request.headers.raw
    if upstream.hosts or upstream.headers:
        headers = instance_headers(headers, upstream)
    own = attempt_headers(upstream)
    return merged(headers, own) if own else headers


def instance_headers(
    headers: Sequence[tuple[bytes, bytes]], upstream: Upstream
) -> Sequence[tuple[bytes, bytes]]:
    """Return the caller's headers, with the instance's Host and its other headers."""
    if upstream.hosts is not None:
        old, new = upstream.hosts
        headers = [
            (name, new)
            if (value == old or old is None) and name.lower() == b"host"
            else (name, value)
            for name, value in headers
        ]
    return merged(headers, upstream.headers) if upstream.headers else headers


def attempt_headers(upstream: Upstream) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers that lbclient adds to an attempt, with names in lower case: the context of
    the span, the time that is left, and the request for a load report."""
    carrier = propagation()
    if upstream.deadline_header is not None and (left := time_left()) is not None:
        carrier = {**carrier, upstream.deadline_header: str(int(1000 * left))}
    if upstream.asks_load:
        carrier = {**carrier, LOAD_FORMAT: "TEXT"}
    if not carrier:
        return ()
    return list({name.lower().encode(): value.encode() for name, value in carrier.items()}.items())


def merged(
    headers: Sequence[tuple[bytes, bytes]], own: Sequence[tuple[bytes, bytes]]
) -> Sequence[tuple[bytes, bytes]]:
    """Return `headers` and `own` together. A header in `own` replaces headers with the same
    name."""
    names = {name for name, _ in own}
    return [*(pair for pair in headers if pair[0].lower() not in names), *own]


def attempt_extensions(request: httpx.Request, expiry: Expiry | None) -> Mapping[str, object]:
    """Return the caller's extensions. Their timeouts are changed so that they also end when the
    time of the attempt is up."""
    if expiry is None:
        return request.extensions
    given = request.extensions.get("timeout", {})
    bounded = {name: DeadlineTimeout(given.get(name), expiry) for name in _TIMEOUTS}
    return {**request.extensions, "timeout": bounded}
