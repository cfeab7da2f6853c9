"""A service as a URL: its parts, checked. No error repeats what may be secret."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult

from lbclient._internal import validation
from lbclient.discovery.resolver import Resolver
from lbclient.endpoint.instance import Instance

if TYPE_CHECKING:
    from lbclient.discovery.address_filter import AddressFilter
    from lbclient.discovery.dns.addresses import Start
    from lbclient.discovery.dns.client import Dns
    from lbclient.discovery.dns.service import DnsOptions

__all__ = [
    "DEFAULT_PORTS",
    "ParsedService",
    "Sources",
    "authority_of",
    "host_of",
    "path_of",
    "shown",
]

DEFAULT_PORTS = {"http": 80, "https": 443}


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
    options: DnsOptions
    start: Start


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
