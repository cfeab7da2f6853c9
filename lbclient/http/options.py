"""The arguments of clients and transports: which part takes each, and whether they are valid."""

from __future__ import annotations

import os
import re
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict, cast

from lbclient._internal import validation
from lbclient.balancer.options import BalancerOptions
from lbclient.endpoint.breaker import BreakerPolicy
from lbclient.resilience.concurrency_limit import AdaptiveLimit
from lbclient.resilience.retry import RetryPolicy

from ._compat import NAME, PUBLIC, httpx

__all__ = [
    "ConnectionSettings",
    "SocketOption",
    "TransportOptions",
    "connection_settings",
    "deadline_header",
    "part",
    "refuse_bypass",
]

SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)
_BYPASS = ("proxy", "uds", "mounts")
_LIMITS = httpx.Limits(keepalive_expiry=4.0)
"""Many servers close an idle connection after 5 s. No request should be sent at that moment."""

_DESCRIPTOR_SHARE = 0.5
"""The share of the process's file descriptors that idle connections may use."""
_MAX_IDLE = 1_000
"""The most idle connections on systems that do not say how many descriptors a process may have."""

_POLICIES: dict[str, type[RetryPolicy | BreakerPolicy | AdaptiveLimit]] = {
    "retry": RetryPolicy,
    "breaker": BreakerPolicy,
    "limit": AdaptiveLimit,
}
_LIMIT_NAMES = ("max_connections", "max_keepalive_connections", "keepalive_expiry")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A token, as the name of a header is one (RFC 9110, section 5.6.2)."""


class ConnectionOptions(TypedDict, total=False):
    """The arguments for connections. Those that `httpx.HTTPTransport` has too mean the same."""

    verify: ssl.SSLContext | str | bool
    cert: str | tuple[str, str] | tuple[str, str, str] | None
    trust_env: bool
    http1: bool
    http2: bool
    limits: httpx.Limits
    local_address: str | None
    retries: int
    socket_options: Iterable[SocketOption] | None
    max_connection_age: float | None
    max_idle_connections: int | None


class TransportOptions(BalancerOptions, ConnectionOptions, total=False):
    """The keyword arguments of a transport."""

    tls_name: str
    key: Callable[[httpx.Request], object] | None
    fair_by: Callable[[httpx.Request], object] | None
    deadline_header: str | None
    close_grace: float


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


def connection_settings(
    scheme: str,
    *,
    verify: ssl.SSLContext | str | bool = True,
    cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
    trust_env: bool = True,
    http1: bool = True,
    http2: bool = False,
    limits: httpx.Limits | None = None,
    local_address: str | None = None,
    retries: int = 0,
    socket_options: Iterable[SocketOption] | None = None,
    max_connection_age: float | None = None,
    max_idle_connections: int | None = None,
) -> ConnectionSettings:
    """Check the arguments, and create the one TLS context that all connections share.

    Raises ValueError or TypeError for invalid arguments, and ImportError if `http2` is True and its
    extra is not installed.
    """
    if limits is not None and not isinstance(limits, httpx.Limits):
        raise TypeError(f"limits must be {NAME}.Limits(...), not {limits!r} ({type(limits)})")
    if not (http1 or http2):
        raise ValueError("http1 and http2 must not both be False")
    if http2:
        _import_h2()
    if local_address is not None:
        validation.host("local_address", local_address)
    if socket_options is not None:
        socket_options = _socket_options(socket_options)
    if max_connection_age is not None:
        validation.seconds("max_connection_age", max_connection_age)
    validation.limit("max_idle_connections", max_idle_connections)
    _check_verify(verify)
    _check_cert(cert)
    tls = scheme == "https"
    return ConnectionSettings(
        scheme=scheme,
        ssl_context=_ssl_context(cert, verify=verify, trust_env=trust_env, http2=http2)
        if tls
        else None,
        http1=http1,
        http2=http2,
        limits=limits or _LIMITS,
        local_address=local_address,
        retries=validation.count("retries", retries, least=0),
        socket_options=socket_options,
        max_connection_age=max_connection_age,
        max_idle=max_idle_connections or _default_max_idle(),
    )


def _default_max_idle() -> int:
    """The number of idle connections that leaves enough descriptors for the rest of the process."""
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
    """Errors do not show the value, since its third part is a password."""
    if cert is None or isinstance(cert, str):
        return
    if not (isinstance(cert, tuple) and len(cert) in (2, 3) and all(cert[:2])):
        raise TypeError(
            "cert must be the path of a file with certificate and key, a tuple of two such paths, "
            "or a tuple of two paths and the key's password"
        )


def _ssl_context(
    cert: str | tuple[str, str] | tuple[str, str, str] | None,
    *,
    verify: ssl.SSLContext | str | bool,
    trust_env: bool,
    http2: bool,
) -> ssl.SSLContext:
    """Create the TLS context. httpx's function alone is not enough: with a path as `verify`, httpx
    ignores `cert`, httpx2 rejects it, and both deprecate the two arguments."""
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
            file, key, password = (*given, None, None)[:3]
            context.load_cert_chain(file, key, password or _no_password)
    except OSError as error:  # its message does not name the file
        shown = [verify, *given[:2]]
        if verify is True and trust_env:
            shown += [os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")]
        named = ", ".join(repr(path) for path in shown if isinstance(path, str))
        raise ValueError(f"verify or cert cannot be used ({named}): {error}") from error
    if context is not verify:  # a caller's own context is not changed
        context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return context


def _no_password() -> str:
    """Raise, where OpenSSL would ask for the password on the terminal and wait."""
    raise ValueError("cert: the key is encrypted; pass its password as the third part of the tuple")


def _socket_options(options: object) -> tuple[SocketOption, ...]:
    shown = "tuples such as (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)"
    given = validation.several("socket_options", options, shown)
    if not all(isinstance(option, tuple) for option in given):
        raise TypeError(f"socket_options must contain {shown}, not {options!r}")
    return cast("tuple[SocketOption, ...]", tuple(given))


def deadline_header(name: object) -> str | None:
    """Return the name of a header, or None. Raises ValueError if the name is not valid."""
    if name is None or (isinstance(name, str) and _HEADER.fullmatch(name)):
        return name
    raise ValueError(
        f"deadline_header must be the name of a header such as 'X-Time-Left-Ms', not {name!r}"
    )


def part(options: Mapping[str, object], kind: type) -> dict[str, Any]:
    """Return the options that are keys of the TypedDict `kind`."""
    return {name: options[name] for name in kind.__annotations__ if name in options}


def refuse_bypass(options: dict[str, object], known: Iterable[str]) -> None:
    """Raise ValueError for arguments that would bypass the balancer, TypeError for unknown ones."""
    for name in _BYPASS:
        if options.pop(name, None) is not None:
            raise ValueError(
                f"{name}= would go past the balancer. To reach instances through a proxy or a "
                f"socket, pass transport=lambda instance: {NAME}.HTTPTransport(...); to balance "
                f"one service among other origins, {NAME}.Client(mounts={{...: "
                f"{PUBLIC}.Transport}})"
            )
    if unknown := sorted(set(options) - set(known)):
        hints = [hint for name in unknown for hint in _hints(name, known)]
        names = ", ".join(sorted({*known, "transport"}))
        parts = [f"unknown argument {', '.join(unknown)}", *hints, f"known: {names}"]
        raise TypeError("; ".join(parts))


def _hints(name: str, known: Iterable[str]) -> Iterable[str]:
    """Yield where an argument belongs, or which argument was probably meant."""
    if name in _LIMIT_NAMES:
        yield f"{name} belongs to limits={NAME}.Limits({name}=...)"
    elif name == "probe":
        yield "probe belongs to strategy=lbclient.Prequal(probe=...)"
    else:
        yield from (f"did you mean {near}?" for near in get_close_matches(name, known, 1, 0.8))
    for argument, policy in _POLICIES.items():
        if name in {field.name for field in fields(policy)}:
            yield f"{name} belongs to {argument}=lbclient.{policy.__name__}({name}=...)"


def _import_h2() -> None:
    try:
        import h2  # noqa: F401, PLC0415  # needed only with http2=True
    except ImportError:
        raise ImportError(
            "http2=True needs the package h2: pip install 'lbclient[http2]'"
        ) from None
