"""Checks the parts of a service's URL. No error contains text that may be secret."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult

from lbclient._internal import validation
from lbclient.discovery.resolver import Resolver
from lbclient.endpoint.instance import DEFAULT_PORTS as HTTP_PORTS
from lbclient.endpoint.instance import Instance

if TYPE_CHECKING:
    from lbclient.discovery.address_filter import AddressFilter
    from lbclient.discovery.dns.addresses import Start
    from lbclient.discovery.dns.client import Dns
    from lbclient.discovery.dns.service import DnsOptions
    from lbclient.discovery.scheduler import Scheduler
    from lbclient.discovery.watched import WatchedResolver

__all__ = [
    "DEFAULT_PORTS",
    "GRPC",
    "HTTP",
    "ParsedService",
    "Sources",
    "authority_of",
    "host_of",
    "path_of",
    "shown",
]

HTTP = "http", "https"
GRPC = "grpc", "grpcs"
"""The schemes of a protocol: without TLS, and with TLS."""

DEFAULT_PORTS = {**HTTP_PORTS, **dict.fromkeys(GRPC, 443)}
"""The port of a URL without a port. For gRPC this is gRPC's own default."""


def host_of(url: SplitResult) -> str:
    """Return the host of a URL. Raises ValueError if the URL has no valid host."""
    return validation.host("service (its host)", url.hostname or "")


def path_of(url: SplitResult) -> str:
    """Return the base path of a URL, without the final slash."""
    return url.path.rstrip("/")


def shown(url: SplitResult) -> str:
    """Return the URL as text, without userinfo and query, which may be secret."""
    return f"{url.scheme}://{validation.bare(url.netloc + url.path)}"


def authority_of(host: str, port: int, scheme: str) -> str:
    """Return the value of the Host header. The default port of the scheme is left out."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port == DEFAULT_PORTS[scheme] else f"{bracketed}:{port}"


class Sources(NamedTuple):
    """The objects that a balancer passes to its resolvers. `start` runs questions to DNS;
    `scheduler` and `rng` are for watches; `schemes` are the schemes of the protocol."""

    dns: Dns
    address_filter: AddressFilter
    clock: Callable[[], float]
    options: DnsOptions
    start: Start
    scheduler: Scheduler
    rng: random.Random
    schemes: Sequence[str] = HTTP


@dataclass(frozen=True, slots=True)
class ParsedService:
    """The resolver of a service, and those parts of its name and URL that the argument `service`
    contains. All other parts are None.

    `shown` is the text for logs and errors if the service has no name. `first` is the first
    instance of a list. `listed` are the instances of a list, or of the lists of a composite. If
    `unlike` is True, these instances differ in scheme or base path, and each has a scheme and a
    base path of its own. `in_dns` is True if DNS resolves the service, or a part of it. `watched`
    are the resolvers of the parts that are watched.
    """

    resolver: Resolver
    shown: str
    scheme: str | None = None
    path: str | None = None
    host: str | None = None
    port: int | None = None
    first: Instance | None = None
    in_dns: bool = False
    listed: tuple[Instance, ...] = ()
    unlike: bool = False
    watched: tuple[WatchedResolver, ...] = ()
