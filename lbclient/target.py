"""From what a user calls a service to its name, its origin, and what resolves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from lbclient import checks
from lbclient.discovery import (
    AddressResolver,
    Dns,
    Guard,
    Resolver,
    SrvResolver,
    StaticResolver,
)
from lbclient.instance import Instance

__all__ = ["DEFAULT_PORTS", "Target", "authority_of", "target_of"]

DEFAULT_PORTS = {"http": 80, "https": 443}
_FORMS = (
    "'http+srv://name', 'https+srv://name', 'http+dns://name:port', 'https+dns://name:port', "
    "'http://host:port', 'https://host:port', a list of the latter, a list of lbclient.Instance, "
    "or an object with resolve() -> Answer"
)


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
) -> Target:
    """Read what the user passed as `service`.

    Raises ValueError or TypeError that names the argument and the forms known.
    """
    checks.one_of("scheme", scheme, DEFAULT_PORTS)
    alias = None if name is None else checks.host("name", name)
    if isinstance(service, str):
        return _from_url(service, alias, scheme, dns, guard, clock)
    if isinstance(service, Resolver) and not isinstance(service, type):
        return _named(alias, scheme, "", service, fallback=type(service).__name__)
    if isinstance(service, bytes | bytearray) or not isinstance(service, Iterable):
        raise TypeError(f"service must be one of {_FORMS}; not {_kind(service)}")
    return _from_list(list(service), alias, scheme)


def _from_url(
    service: str,
    alias: str | None,
    scheme: str,
    dns: Dns,
    guard: Guard,
    clock: Callable[[], float],
) -> Target:
    url = _split(service)
    plain, _, kind = url.scheme.partition("+")
    if plain not in DEFAULT_PORTS or kind not in ("", "srv", "dns"):
        raise ValueError(f"service must be one of {_FORMS}; {_shown(url)!r} is none of them")
    if not kind:
        return _from_list([service], alias, scheme)
    _agree(scheme, plain)
    host, path = _host(url), url.path.rstrip("/")
    if kind == "dns":
        port = url.port or DEFAULT_PORTS[plain]
        resolver: Resolver = AddressResolver(host, port, dns, guard)
        return _named(alias or host, plain, path, resolver, port=port)
    if checks.is_address(host):
        raise ValueError(f"service must name a domain that has SRV records, not the address {host}")
    if url.port is not None:
        raise ValueError(f"service must not name a port: SRV records do ({_shown(url)!r})")
    query = host if host.startswith("_") else f"_{plain}._tcp.{host}"
    return _named(alias or _parent(host), plain, path, SrvResolver(query, dns, guard, clock))


def _parent(host: str) -> str:
    """`_orders._tcp.example.com` is offered by `example.com`."""
    labels = host.split(".")
    while len(labels) > 1 and labels[0].startswith("_"):
        labels.pop(0)
    if labels[0].startswith("_"):
        raise ValueError(
            "service must name a domain after its _labels, "
            f"as in _orders._tcp.example.com; not {host!r}"
        )
    return ".".join(labels)


def _from_list(items: Sequence[object], alias: str | None, scheme: str) -> Target:
    if not items:
        raise ValueError("service must not be an empty list")
    if all(isinstance(one, Instance) for one in items):
        instances = [one for one in items if isinstance(one, Instance)]
        return _static(instances, alias, scheme, "")
    if not all(isinstance(one, str) for one in items):
        kinds = ", ".join(dict.fromkeys(map(_kind, items)))
        raise TypeError(f"service must be one of {_FORMS}; not a list of {kinds}")
    urls = [_split(str(one)) for one in items]
    schemes = {url.scheme for url in urls}
    if len(schemes) > 1:
        raise ValueError(f"service must have one scheme for all: {', '.join(sorted(schemes))}")
    (plain,) = schemes
    if plain not in DEFAULT_PORTS:
        raise ValueError(
            f"service must be one of {_FORMS}; {_shown(urls[0])!r} cannot be in a list"
        )
    _agree(scheme, plain)
    paths = {url.path.rstrip("/") for url in urls}
    if len(paths) > 1:
        raise ValueError(f"service must have one base path for all: {', '.join(sorted(paths))}")
    found = [Instance(_host(url), url.port or DEFAULT_PORTS[plain]) for url in urls]
    return _static(found, alias, plain, paths.pop())


def _agree(scheme: str, said: str) -> None:
    """`"http"`, the default, agrees with everything."""
    if scheme not in ("http", said):
        raise ValueError(f"scheme={scheme!r} contradicts the URL, which says {said!r}")


def _kind(value: object) -> str:
    """Its type alone: what it holds may be secret."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _static(instances: Sequence[Instance], alias: str | None, scheme: str, path: str) -> Target:
    resolver = StaticResolver(instances)
    if alias is not None:
        return _named(alias, scheme, path, resolver)
    first = authority_of(instances[0].host, instances[0].port, scheme)
    return Target(first, scheme, None, None, f"{scheme}://{first}", path, resolver)


def _named(
    host: str | None,
    scheme: str,
    path: str,
    resolver: Resolver,
    port: int | None = None,
    fallback: str = "",
) -> Target:
    if host is None:
        nowhere = f"{fallback.lower()}.invalid"
        return Target(fallback, scheme, None, None, f"{scheme}://{nowhere}", path, resolver)
    authority = authority_of(host, port or DEFAULT_PORTS[scheme], scheme)
    return Target(host, scheme, authority, host, f"{scheme}://{authority}", path, resolver)


def authority_of(host: str, port: int, scheme: str) -> str:
    """What Host says of it: without the scheme's own port."""
    shown = f"[{host}]" if ":" in host else host
    return shown if port == DEFAULT_PORTS[scheme] else f"{shown}:{port}"


def _split(text: str) -> SplitResult:
    if any(char <= " " or char == "\x7f" for char in text):
        raise ValueError("service must be a URL without spaces or control characters")
    if "://" not in text:
        raise ValueError(
            f"service must be one of {_FORMS}; {text.rpartition('@')[2]!r} has no scheme"
        )
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:  # whose text may repeat a password
        raise ValueError("service must be a URL whose port, if any, is from 1 to 65535") from None
    if "@" in url.netloc:
        raise ValueError("service must not hold user name or password; pass auth= instead")
    if port == 0:
        raise ValueError(f"service must have a port from 1 to 65535, not 0 ({_shown(url)!r})")
    if url.query or url.fragment:
        raise ValueError("service must not hold a query or a fragment; pass params= instead")
    return url


def _host(url: SplitResult) -> str:
    return checks.host("service (its host)", url.hostname or "")


def _shown(url: SplitResult) -> str:
    """Without userinfo and query: they may be secret."""
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
