"""From what a user calls a service to its name, its origin and its resolver.

A URL is checked part by part, and no error repeats what may be secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from lbclient._internal import validation
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.composite import Composite, Part
from lbclient.discovery.dns.addresses import AddressResolver, Start, at_once
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.service import DnsOptions, DnsService
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.discovery.file import FileResolver
from lbclient.discovery.resolver import Resolver, StaticResolver
from lbclient.endpoint.instance import Instance

__all__ = ["Target", "authority_of", "target_of"]

DEFAULT_PORTS = {"http": 80, "https": 443}
FORMS = (
    "'http+srv://name', 'https+srv://name', 'http+dns://name:port', 'https+dns://name:port', "
    "'http+file:///path', 'https+file:///path', 'http://host:port', 'https://host:port', "
    "a list of the latter, a list of lbclient.Instance, lbclient.FirstOf(...), "
    "lbclient.Union(...), or an object with resolve() -> Answer"
)


def split(text: str) -> SplitResult:
    """The parts of a URL that can name a service. Raises ValueError for any other."""
    if any(char <= " " or char == "\x7f" for char in text):
        raise ValueError("service must be a URL without spaces or control characters")
    if "://" not in text:
        raise ValueError(f"service must be one of {FORMS}; {validation.bare(text)!r} has no scheme")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:  # whose text may repeat a password
        raise ValueError("service must be a URL whose port, if any, is from 1 to 65535") from None
    if "@" in url.netloc:
        raise ValueError("service must not hold user name or password; pass auth= instead")
    if port == 0:
        raise ValueError(f"service must have a port from 1 to 65535, not 0 ({shown(url)!r})")
    if url.query or url.fragment:
        raise ValueError("service must not hold a query or a fragment; pass params= instead")
    return url


def host_of(url: SplitResult) -> str:
    """Its host. Raises ValueError where it has none that is legal."""
    return validation.host("service (its host)", url.hostname or "")


def path_of(url: SplitResult) -> str:
    """Its base path, without final slash."""
    return url.path.rstrip("/")


def shown(url: SplitResult) -> str:
    """Without userinfo and query: they may be secret."""
    return f"{url.scheme}://{validation.bare(url.netloc + url.path)}"


def authority_of(host: str, port: int, scheme: str) -> str:
    """What Host says of it: without the scheme's own port."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == DEFAULT_PORTS[scheme] else f"{bracketed}:{port}"


class Sources(NamedTuple):
    """What the balancer hands to whatever resolves for it; `start` runs questions to DNS."""

    dns: Dns
    address_filter: AddressFilter
    clock: Callable[[], float]
    options: DnsOptions = DnsOptions()
    start: Start = at_once


@dataclass(frozen=True, slots=True)
class ParsedService:
    """Who resolves a service, and what the service says of itself: None where it says nothing.

    `shown` is what to call it where it has no name, `first` the first of a list; `in_dns` is True
    where DNS resolves it, or a part of it.
    """

    resolver: Resolver
    shown: str
    scheme: str | None = None
    path: str | None = None
    host: str | None = None
    port: int | None = None
    first: Instance | None = None
    in_dns: bool = False


def read(service: object, sources: Sources) -> ParsedService:
    """Raises ValueError or TypeError that names the argument and the forms known."""
    if isinstance(service, str):
        return _from_url(service, sources)
    if isinstance(service, Composite):
        return _from_parts(service, sources)
    if isinstance(service, FileResolver):
        return ParsedService(service, str(service))
    if isinstance(service, os.PathLike):
        raise TypeError("service must not be a path alone; pass lbclient.FileResolver(path)")
    if isinstance(service, Resolver) and not isinstance(service, type):
        return ParsedService(service, type(service).__name__)
    if isinstance(service, bytes | bytearray) or not isinstance(service, Iterable):
        raise TypeError(f"service must be one of {FORMS}; not {_kind(service)}")
    return _from_list(list(service))


def _from_url(service: str, sources: Sources) -> ParsedService:
    url = split(service)
    scheme, _, kind = url.scheme.partition("+")
    if scheme not in DEFAULT_PORTS or kind not in _KINDS:
        raise ValueError(f"service must be one of {FORMS}; {shown(url)!r} is none of them")
    return _KINDS[kind](url, scheme, sources)


def _plain(url: SplitResult, _scheme: str, _sources: Sources) -> ParsedService:
    return _from_urls([url])


def _file(url: SplitResult, scheme: str, _sources: Sources) -> ParsedService:
    if url.netloc not in ("", "localhost") or not url.path:
        raise ValueError(
            "service must name a file by its absolute path, "
            f"as in {scheme}+file:///etc/orders/instances; not {shown(url)!r}"
        )
    resolver = FileResolver(os.fsdecode(unquote_to_bytes(url.path)))
    return ParsedService(resolver, str(resolver), scheme)


def _dns(url: SplitResult, scheme: str, sources: Sources) -> ParsedService:
    host, port = host_of(url), url.port or DEFAULT_PORTS[scheme]
    dns, address_filter, clock, options, start = sources
    source = AddressResolver(
        host, port, dns, address_filter, clock, kinds=options.kinds, start=start
    )
    resolver = DnsService(source, clock, options.sticky)
    return ParsedService(resolver, shown(url), scheme, path_of(url), host, port, in_dns=True)


def _srv(url: SplitResult, scheme: str, sources: Sources) -> ParsedService:
    host = host_of(url)
    if validation.is_address(host):
        raise ValueError(f"service must name a domain that has SRV records, not the address {host}")
    if url.port is not None:
        raise ValueError(f"service must not name a port: SRV records do ({shown(url)!r})")
    query = host if host.startswith("_") else f"_{scheme}._tcp.{host}"
    dns, address_filter, clock, options, start = sources
    source = SrvResolver(query, dns, address_filter, clock, kinds=options.kinds, start=start)
    resolver = DnsService(source, clock, options.sticky)
    return ParsedService(resolver, shown(url), scheme, path_of(url), _parent(host), in_dns=True)


_KINDS = {"": _plain, "srv": _srv, "dns": _dns, "file": _file}


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


def _from_list(items: Sequence[object]) -> ParsedService:
    if not items:
        raise ValueError("service must not be an empty list")
    instances = [one for one in items if isinstance(one, Instance)]
    if len(instances) == len(items):
        return _static(instances, None, None)
    if not all(isinstance(one, str) for one in items):
        kinds = ", ".join(dict.fromkeys(map(_kind, items)))
        raise TypeError(f"service must be one of {FORMS}; not a list of {kinds}")
    return _from_urls([split(str(one)) for one in items])


def _from_urls(urls: Sequence[SplitResult]) -> ParsedService:
    scheme = _common("scheme", (url.scheme for url in urls))
    if scheme not in DEFAULT_PORTS:
        raise ValueError(
            f"service must be one of {FORMS}; {shown(urls[0])!r} cannot be in a list: "
            "lbclient.Union(...) puts such together"
        )
    path = _common("base path", map(path_of, urls))
    found = [Instance(host_of(url), url.port or DEFAULT_PORTS[scheme]) for url in urls]
    return _static(found, scheme, path)


def _static(instances: Sequence[Instance], scheme: str | None, path: str | None) -> ParsedService:
    first = instances[0]
    return ParsedService(StaticResolver(instances), str(first), scheme, path, first=first)


def _from_parts(service: Composite, sources: Sources) -> ParsedService:
    """Scheme and path are those of the parts that say one; the name is that of the first."""
    parts = [read(one, sources) for one in service.services]
    named = next((one for one in parts if one.host is not None), parts[0])
    return ParsedService(
        service.over([Part(one.shown, one.resolver) for one in parts], sources.clock),
        f"{type(service).__name__}({', '.join(one.shown for one in parts)})",
        _common("scheme", (one.scheme for one in parts)),
        _common("base path", (one.path for one in parts)),
        named.host,
        named.port,
        in_dns=any(one.in_dns for one in parts),
    )


def _common(what: str, said: Iterable[str | None]) -> str | None:
    """What all say who say something."""
    known = {one for one in said if one is not None}
    if len(known) > 1:
        listed = ", ".join(one or "/" for one in sorted(known))
        raise ValueError(f"service must have one {what} for all: {listed}")
    return known.pop() if known else None


def _kind(value: object) -> str:
    """Its type alone: what it holds may be secret."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


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
    address_filter: AddressFilter,
    clock: Callable[[], float],
    options: DnsOptions = DnsOptions(),  # noqa: B008  # a frozen value
    start: Start = at_once,
) -> Target:
    """Read what the user passed as `service`; `start` runs each question to DNS.

    Raises ValueError or TypeError that names the argument and the forms known.
    """
    validation.one_of("scheme", scheme, DEFAULT_PORTS)
    alias = None if name is None else validation.host("name", name)
    said = read(service, Sources(dns, address_filter, clock, options, start))
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


def _nameless(said: ParsedService, scheme: str) -> tuple[str, str]:
    """What to call it in a log, and where its logical URL points."""
    if said.first is None:
        return said.shown, f"{type(said.resolver).__name__.lower()}.invalid"
    first = authority_of(said.first.host, said.first.port, scheme)
    return first, first
