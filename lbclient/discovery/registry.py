"""From what a user calls a service to its name, its origin and its resolver.

`URL_SOURCES` is the registry of URL schemes. A new source of discovery is a file with a `from_url`,
and one entry here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from lbclient._internal import validation
from lbclient.discovery import file
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.composite import Composite, Part
from lbclient.discovery.dns import service as dns_service
from lbclient.discovery.dns.addresses import Start, at_once
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.service import DnsOptions
from lbclient.discovery.file import FileResolver
from lbclient.discovery.resolver import Resolver, StaticResolver
from lbclient.discovery.service_url import (
    DEFAULT_PORTS,
    ParsedService,
    Sources,
    authority_of,
    host_of,
    path_of,
    shown,
)
from lbclient.endpoint.instance import Instance

__all__ = ["URL_SOURCES", "Target", "UrlSource", "target_of"]


class UrlSource(NamedTuple):
    """A kind of URL: `from_url` reads one, and `rest` is how it goes on after `http+kind://`.

    `from_url(url, scheme, sources)` gets the URL with its scheme, `"http"` or `"https"`, and what
    it may build a resolver from. It raises ValueError, naming `service`, for a URL it cannot use.
    """

    from_url: Callable[[SplitResult, str, Sources], ParsedService]
    rest: str


URL_SOURCES: dict[str, UrlSource] = {
    "srv": UrlSource(dns_service.srv_from_url, "name"),
    "dns": UrlSource(dns_service.addresses_from_url, "name:port"),
    "file": UrlSource(file.from_url, "/path"),
}
"""By what stands behind the plus sign: `http+srv://orders.example.com`."""


def _split(text: str) -> SplitResult:
    """The parts of a URL that can name a service. Raises ValueError for any other."""
    if any(char <= " " or char == "\x7f" for char in text):
        raise ValueError("service must be a URL without spaces or control characters")
    if "://" not in text:
        bare = validation.bare(text)
        raise ValueError(f"service must be one of {_forms()}; {bare!r} has no scheme")
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
    said = _read(service, Sources(dns, address_filter, clock, options, start))
    if not said.in_dns:
        options.refuse(said.shown)
    scheme = _agreed(scheme, said.scheme)
    path = said.path or ""
    if (host := alias or said.host) is not None:
        own = authority_of(host, said.port or DEFAULT_PORTS[scheme], scheme)
        return Target(host, scheme, own, host, f"{scheme}://{own}", path, said.resolver)
    shown, nowhere = _nameless(said, scheme)
    return Target(shown, scheme, None, None, f"{scheme}://{nowhere}", path, said.resolver)


def _read(service: object, sources: Sources) -> ParsedService:
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
        raise TypeError(f"service must be one of {_forms()}; not {_kind(service)}")
    return _from_list(list(service))


def _from_url(service: str, sources: Sources) -> ParsedService:
    url = _split(service)
    scheme, plus, kind = url.scheme.partition("+")
    if scheme not in DEFAULT_PORTS or (plus and kind not in URL_SOURCES):
        raise ValueError(f"service must be one of {_forms()}; {shown(url)!r} is none of them")
    return URL_SOURCES[kind].from_url(url, scheme, sources) if plus else _from_urls([url])


def _forms() -> str:
    """What `service` may be, in words."""
    urls = [f"+{kind}://{source.rest}" for kind, source in URL_SOURCES.items()]
    urls.append("://host:port")
    shown_urls = ", ".join(f"'http{one}', 'https{one}'" for one in urls)
    return (
        f"{shown_urls}, a list of the latter, a list of lbclient.Instance, lbclient.FirstOf(...), "
        "lbclient.Union(...), or an object with resolve() -> Answer"
    )


def _from_list(items: Sequence[object]) -> ParsedService:
    if not items:
        raise ValueError("service must not be an empty list")
    instances = [one for one in items if isinstance(one, Instance)]
    if len(instances) == len(items):
        return _static(instances, None, None)
    if not all(isinstance(one, str) for one in items):
        kinds = ", ".join(dict.fromkeys(map(_kind, items)))
        raise TypeError(f"service must be one of {_forms()}; not a list of {kinds}")
    return _from_urls([_split(str(one)) for one in items])


def _from_urls(urls: Sequence[SplitResult]) -> ParsedService:
    scheme = _common("scheme", (url.scheme for url in urls))
    if scheme not in DEFAULT_PORTS:
        raise ValueError(
            f"service must be one of {_forms()}; {shown(urls[0])!r} cannot be in a list: "
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
    parts = [_read(one, sources) for one in service.services]
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


def _kind(value: object) -> str:
    """Its type alone: what it holds may be secret."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
