"""The options of clients and transports, and their checks. There is a TypedDict for each part that
takes options."""

import os
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

from lbclient._internal import validation
from lbclient.balancer.options import BalancerOptions, Option, refuse_unknown

from ._compat import NAME, PUBLIC, httpx

if TYPE_CHECKING:
    from httpx._client import EventHook
    from httpx._types import (
        AuthTypes,
        CookieTypes,
        HeaderTypes,
        QueryParamTypes,
        TimeoutTypes,
    )

__all__ = [
    "DEFAULT_TIMEOUT",
    "ClientOptions",
    "ConnectionOptions",
    "ConnectionSettings",
    "HttpxOptions",
    "Latency",
    "SocketOption",
    "TransportOptions",
    "checked",
    "connection_limits",
    "connection_settings",
    "part",
]

Latency = Literal["response", "first-byte"]
SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)
_BYPASS = ("proxy", "uds", "mounts")
_LIMITS = httpx.Limits(keepalive_expiry=4.0)
"""The default limits. An idle connection is closed after 4 s: many servers close it after 5 s, and
a request that is sent at that moment is lost."""
DEFAULT_TIMEOUT = httpx.Timeout(5.0, connect=1.25)
"""httpx's default timeouts, except for connecting: Linux repeats a lost SYN after one second."""

_DESCRIPTOR_SHARE = 0.5
"""The share of the process's file descriptors that idle connections may use."""
_MAX_IDLE = 1_000
"""The maximum number of idle connections on systems that do not report how many file descriptors a
process may open."""

_MISPLACED = {
    name: f"{name} belongs to limits={NAME}.Limits({name}=...)"
    for name in ("max_connections", "max_keepalive_connections", "keepalive_expiry")
}


_AS_IN_HTTPX = Option(f"as in `{NAME}.Client`.", ...)


class ConnectionOptions(TypedDict, total=False):
    """The options for connections. Options of `httpx.HTTPTransport` have the same meaning as in
    httpx."""

    verify: Annotated[
        ssl.SSLContext | str | bool,
        Option(
            f"the certificates to trust: True for those that `{NAME}` trusts, False to verify "
            "nothing, the path of a file or directory, or an `ssl.SSLContext`.",
            default=True,
        ),
    ]
    cert: Annotated[
        str | tuple[str, str] | tuple[str, str, str] | None,
        Option("the client's certificate: a path, `(path, key)` or `(path, key, password)`."),
    ]
    trust_env: Annotated[
        bool,
        Option("read `SSL_CERT_FILE`, `SSL_CERT_DIR` and `.netrc`, never proxies.", default=True),
    ]
    http1: Annotated[bool, Option("use HTTP/1.1.", default=True)]
    http2: Annotated[
        bool,
        Option("use HTTP/2 if an instance chooses it; needs the extra `http2`.", default=False),
    ]
    local_address: Annotated[
        str | None, Option("the address of this host from which connections are opened.")
    ]
    retries: Annotated[
        int,
        Option(
            "how often one attempt tries to connect to its instance again before it fails. Calls "
            "are retried with other instances by `retry`.",
            0,
        ),
    ]
    socket_options: Annotated[
        Iterable[SocketOption] | None,
        Option("the arguments of `setsockopt` calls, which are made for each socket."),
    ]
    max_connection_age: Annotated[
        float | None,
        Option(
            "seconds (less up to a tenth) after which a connection takes no more requests, so that "
            "certificates, addresses and intermediate load balancers can change."
        ),
    ]
    max_idle_connections: Annotated[
        int | None,
        Option(
            "the most idle connections to all instances together; those that have been idle "
            "longest are closed first. None: half of the file descriptors that the process may "
            "open, or 1,000 on systems that do not say how many these are (Windows, WASI)."
        ),
    ]


class TransportOptions(BalancerOptions, ConnectionOptions, total=False):
    """The options of a transport."""

    limits: Annotated[
        httpx.Limits,
        Option(
            f"an `{NAME}.Limits`: `max_connections` is another name of `max_in_flight_total`; "
            "`max_keepalive_connections` limits the idle connections to each instance. (`limit`, "
            "without an s, is another option: a limit that is learned.)",
            _LIMITS,
        ),
    ]
    tls_name: Annotated[
        str,
        Option(
            'whose name TLS sends and verifies: the name of the `"service"` or the `"instance"`.',
            "service",
        ),
    ]
    key: Annotated[
        Callable[[httpx.Request], object] | None,
        Option(
            "a function `request -> object` that returns the key of a request that does not set "
            'one itself, for a strategy such as `"consistent-hash"`.'
        ),
    ]
    fair_by: Annotated[
        Callable[[httpx.Request], object] | None,
        Option(
            "a function `request -> object` that returns the caller of a request that does not "
            "set one itself, as a hashable value. Callers whose requests wait for a limit take "
            "turns, so that a burst of one caller does not delay the others."
        ),
    ]
    deadline_header: Annotated[
        str | None,
        Option(
            "the name of a header that tells an instance how much time the attempt has left, in "
            "whole milliseconds. `attempt_timeout`, `deadline` and `lbclient.deadline` limit this "
            "time."
        ),
    ]
    latency: Annotated[
        Latency,
        Option(
            'what is measured as the latency of an attempt. `"response"`: the time until the end '
            "of the body, or until the end of the head if the response is streamed. "
            '`"first-byte"`: the time until the first byte of the body; a streamed response is '
            "then returned once that byte has arrived.",
            "response",
        ),
    ]
    close_grace: Annotated[
        float, Option("the seconds for which `close` or `aclose` waits for active calls.", 1.0)
    ]


class HttpxOptions(TypedDict, total=False):
    """The options of httpx's own client."""

    auth: Annotated["AuthTypes | None", _AS_IN_HTTPX]
    params: Annotated["QueryParamTypes | None", _AS_IN_HTTPX]
    headers: Annotated["HeaderTypes | None", _AS_IN_HTTPX]
    cookies: Annotated["CookieTypes | None", _AS_IN_HTTPX]
    timeout: Annotated[
        "TimeoutTypes",
        Option(f"as in `{NAME}.Client`, with another default: 1.25 s to connect.", DEFAULT_TIMEOUT),
    ]
    follow_redirects: Annotated[bool, _AS_IN_HTTPX]
    max_redirects: Annotated[int, _AS_IN_HTTPX]
    event_hooks: Annotated["Mapping[str, list[EventHook]] | None", _AS_IN_HTTPX]
    base_url: Annotated[
        httpx.URL | str,
        Option(
            "a path that is added to the service's URL; the paths of requests are relative to it.",
            "",
        ),
    ]
    default_encoding: Annotated[str | Callable[[bytes], str], _AS_IN_HTTPX]


class ClientOptions(TransportOptions, HttpxOptions, total=False):
    """The options of a client: those of its transport, and those of httpx's client."""


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """The checked arguments for connections. `ssl_context` is None if the service has no TLS."""

    scheme: str
    ssl_context: ssl.SSLContext | None
    http1: bool
    http2: bool
    limits: httpx.Limits
    local_address: str | None
    retries: int
    socket_options: tuple[SocketOption, ...] | None
    max_connection_age: float | None
    max_idle: int


def connection_limits(limits: object) -> httpx.Limits:
    """Check the argument `limits`, and return it. Raises ValueError or TypeError if it is
    invalid."""
    if not isinstance(limits, httpx.Limits):
        raise TypeError(f"limits must be {NAME}.Limits(...), not {limits!r} ({type(limits)})")
    validation.limit("limits (max_connections)", limits.max_connections)
    if (idle := limits.max_keepalive_connections) is not None:
        validation.count("limits (max_keepalive_connections)", idle, least=0)
    if (expiry := limits.keepalive_expiry) is not None:
        validation.number("limits (keepalive_expiry, seconds)", expiry)
    return limits


def connection_settings(
    scheme: str, limits: httpx.Limits, given: ConnectionOptions
) -> ConnectionSettings:
    """Check all options for connections, and create the one TLS context that all connections share.

    Raises ValueError or TypeError for invalid options. Raises ImportError if `http2` is True and
    the extra `http2` is not installed.
    """
    http1, http2 = given["http1"], given["http2"]
    local_address, socket_options = given["local_address"], given["socket_options"]
    if not (http1 or http2):
        raise ValueError("http1 and http2 must not both be False")
    if http2:
        _import_h2()
    if local_address is not None:
        validation.host("local_address", local_address)
    if socket_options is not None:
        socket_options = _socket_options(socket_options)
    if given["max_connection_age"] is not None:
        validation.seconds("max_connection_age", given["max_connection_age"])
    validation.limit("max_idle_connections", given["max_idle_connections"])
    _check_verify(given["verify"])
    _check_cert(given["cert"])
    return ConnectionSettings(
        scheme=scheme,
        ssl_context=_ssl_context(given) if scheme == "https" else None,
        http1=http1,
        http2=http2,
        limits=limits,
        local_address=local_address,
        retries=validation.count("retries", given["retries"], least=0),
        socket_options=socket_options,
        max_connection_age=given["max_connection_age"],
        max_idle=given["max_idle_connections"] or _default_max_idle(),
    )


def _default_max_idle() -> int:
    """Return the maximum number of idle connections. It leaves enough file descriptors for the rest
    of the process."""
    try:
        import resource  # noqa: PLC0415  # Windows and WASI do not have it
    except ImportError:
        return _MAX_IDLE
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, int(soft * _DESCRIPTOR_SHARE))


def _check_verify(verify: object) -> None:
    if not isinstance(verify, bool | str | ssl.SSLContext):
        raise TypeError(
            "verify must be True, False, the path of a file or directory of certificates, or an "
            f"ssl.SSLContext, not {verify!r}"
        )
    if verify == "":
        raise ValueError("verify must not be an empty path")


def _check_cert(cert: object) -> None:
    """Check the argument `cert`. Errors do not show its value, since the third part is a
    password."""
    if cert is None or isinstance(cert, str):
        return
    if not (isinstance(cert, tuple) and len(cert) in (2, 3) and all(cert[:2])):
        raise TypeError(
            "cert must be the path of a file with certificate and key, a tuple of two such paths, "
            "or a tuple of two paths and the key's password"
        )


def _ssl_context(options: ConnectionOptions) -> ssl.SSLContext:
    """Create the TLS context. httpx's function alone is not enough. If `verify` is a path, httpx
    ignores `cert` and httpx2 rejects it. Also, both libraries deprecate these two arguments."""
    verify, cert, trust_env = options["verify"], options["cert"], options["trust_env"]
    given = () if cert is None else (cert,) if isinstance(cert, str) else cert
    try:
        if isinstance(verify, str):
            folder = Path(verify).is_dir()
            context = ssl.create_default_context(
                cafile=None if folder else verify, capath=verify if folder else None
            )
        else:
            context = httpx.create_ssl_context(verify, trust_env=trust_env)
        if given:
            file, *rest = given
            key, password = (*rest, None, None)[:2]
            context.load_cert_chain(file, key, password or _no_password)
    except OSError as error:  # this error does not name the file
        shown = [verify, *given[:2]]
        if verify is True and trust_env:
            shown += [os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")]
        named = ", ".join(repr(path) for path in shown if isinstance(path, str))
        raise ValueError(f"verify or cert cannot be used ({named}): {error}") from error
    if context is not verify:  # a caller's own context is not changed
        context.set_alpn_protocols(["h2", "http/1.1"] if options["http2"] else ["http/1.1"])
    return context


def _no_password() -> str:
    """Raise ValueError. Called by OpenSSL, which would otherwise ask for the password on the
    terminal."""
    raise ValueError("cert: the key is encrypted; pass its password as the third part of the tuple")


def _socket_options(options: object) -> tuple[SocketOption, ...]:
    shown = "tuples such as (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)"
    given = validation.several("socket_options", options, shown)
    if not all(isinstance(option, tuple) for option in given):
        raise TypeError(f"socket_options must contain {shown}, not {options!r}")
    return cast("tuple[SocketOption, ...]", tuple(given))


def part(options: Mapping[str, object], kind: type) -> Any:
    """Return those of the options that the TypedDict `kind` declares."""
    return {name: options[name] for name in kind.__annotations__ if name in options}


def checked(options: Mapping[str, object], kind: type) -> dict[str, Any]:
    """Check that the TypedDict `kind` declares each of the options, and return the options.

    Raises ValueError for arguments that would bypass the balancer, and TypeError for unknown
    arguments.
    """
    for name in _BYPASS:
        if options.get(name) is not None:
            raise ValueError(
                f"{name}= would bypass the balancer. To reach instances through a proxy or a "
                f"socket, pass transport=lambda instance: {NAME}.HTTPTransport(...); to balance "
                f"one service among other origins, {NAME}.Client(mounts={{...: "
                f"{PUBLIC}.Transport}})"
            )
    given = {name: value for name, value in options.items() if name not in _BYPASS}
    refuse_unknown(given, {*kind.__annotations__, "transport"}, _MISPLACED)
    return given


def _import_h2() -> None:
    try:
        import h2  # noqa: F401, PLC0415  # needed only with http2=True
    except ImportError:
        raise ImportError(
            "http2=True needs the package h2: pip install 'lbclient[http2]'"
        ) from None
