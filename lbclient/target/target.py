"""A service as its users name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbclient import checks
from lbclient.discovery import Dns, DnsOptions, Guard, Resolver, Start, at_once
from lbclient.target.reading import Said, Sources, read
from lbclient.target.url import DEFAULT_PORTS, authority_of

__all__ = ["Target", "target_of"]


@dataclass(frozen=True, slots=True)
class Target:
    """A service as its users name it.

    - `name`: for logs, spans and errors.
    - `scheme`: `"http"` or `"https"`.
    - `authority`: what Host says, or None where each instance is addressed by its own.
    - `host`: the name that TLS verifies, or None where it is each instance's own.
    - `origin`: the logical URL, without path; `path`: the base path.
    - `resolver`: who knows the instances.
    """

    name: str
    scheme: str
    authority: str | None
    host: str | None
    origin: str
    path: str
    resolver: Resolver


def target_of(
    service: object,
    *,
    name: str | None,
    scheme: str,
    dns: Dns,
    guard: Guard,
    clock: Callable[[], float],
    options: DnsOptions = DnsOptions(),  # noqa: B008  # a frozen value
    start: Start = at_once,
) -> Target:
    """Read what the user passed as `service`; `start` runs each question to DNS.

    Raises ValueError or TypeError that names the argument and the forms known.
    """
    checks.one_of("scheme", scheme, DEFAULT_PORTS)
    alias = None if name is None else checks.host("name", name)
    said = read(service, Sources(dns, guard, clock, options, start))
    if not said.in_dns:
        options.refuse(said.shown)
    scheme = _agreed(scheme, said.scheme)
    path = said.path or ""
    if (host := alias or said.host) is not None:
        own = authority_of(host, said.port or DEFAULT_PORTS[scheme], scheme)
        return Target(host, scheme, own, host, f"{scheme}://{own}", path, said.resolver)
    shown, nowhere = _nameless(said, scheme)
    return Target(shown, scheme, None, None, f"{scheme}://{nowhere}", path, said.resolver)


def _agreed(scheme: str, said: str | None) -> str:
    """`"http"`, the default, agrees with everything."""
    if said is not None and scheme not in ("http", said):
        raise ValueError(f"scheme={scheme!r} contradicts the URL, which says {said!r}")
    return said or scheme


def _nameless(said: Said, scheme: str) -> tuple[str, str]:
    """What to call it in a log, and where its logical URL points."""
    if said.first is None:
        return said.shown, f"{type(said.resolver).__name__.lower()}.invalid"
    first = authority_of(said.first.host, said.first.port, scheme)
    return first, first
