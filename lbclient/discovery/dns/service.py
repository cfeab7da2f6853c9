"""A service in DNS: the instances that DNS returns, or has returned recently (`sticky`), and to
which this host has a route."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias
from urllib.parse import SplitResult

from lbclient._internal import validation
from lbclient._internal.ip_addresses import has_route
from lbclient.discovery.dns.addresses import AddressResolver
from lbclient.discovery.dns.client import KINDS
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.discovery.service_url import (
    DEFAULT_PORTS,
    ParsedService,
    Sources,
    host_of,
    path_of,
    shown,
)
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import ServiceAbsent

__all__ = ["DnsOptions", "DnsService", "Family", "addresses_from_url", "srv_from_url"]

Family: TypeAlias = Literal["any", "ipv4", "ipv6"]
"""The choices for the address families of a service in DNS."""

_KINDS: dict[str, Sequence[str]] = {"any": KINDS, "ipv4": KINDS[:1], "ipv6": KINDS[1:]}
_SHOWN = {"ipv4": "IPv4", "ipv6": "IPv6"}
_OTHER = {"ipv4": "ipv6", "ipv6": "ipv4"}


@dataclass(frozen=True, slots=True)
class DnsOptions:
    """The checked options of a client for services in DNS.

    - `family`: the address families to ask for.
    - `sticky`: seconds for which an address or instance stays known after DNS has stopped returning
      it.

    Raises ValueError or TypeError, naming the argument.
    """

    family: Family = "any"
    sticky: float | None = None

    def __post_init__(self) -> None:
        validation.one_of("family", self.family, _KINDS)
        if self.sticky is not None:
            validation.number("sticky (seconds)", self.sticky)

    @property
    def kinds(self) -> Sequence[str]:
        """The record types to ask for."""
        return _KINDS[self.family]

    def refuse(self, shown: str) -> None:
        """Raise ValueError if an option is set, since the service is not in DNS."""
        name = "family" if self.family != "any" else "sticky" if self.sticky else None
        if name is not None:
            raise ValueError(
                f"{name} applies to services in DNS only, such as 'http+dns://name:port' or "
                f"'http+srv://name'; {shown} is not in DNS"
            )


class DnsService:
    """A resolver that adds recent instances to the instances of `source`, and removes unreachable
    addresses.

    An address stays known for `sticky` seconds from the first answer that does not contain it. An
    instance also stays known, with its last weight and priority. This helps if DNS returns only
    some of many addresses in each answer. LOGICAL_DNS in Envoy works in the same way. All known
    addresses and instances are dropped when the service is declared absent.

    If an answer has addresses of both families, the addresses to which this host has no route are
    left out (RFC 6724, section 6, rule 1). An instance without any other address is left out too.
    If no address would be left, all are kept.
    """

    def __init__(
        self,
        source: AddressResolver | SrvResolver,
        clock: Callable[[], float],
        sticky: float | None,
    ) -> None:
        self.source = source
        self._clock = clock
        self._sticky = sticky
        self._known: dict[Instance, _Known] = {}

    def __repr__(self) -> str:
        return f"<DnsService of {self.source!r}>"

    def resolve(self) -> Answer:
        """Look the service up. If the source raises an error, it is raised to the caller."""
        try:
            answer = self.source.resolve()
        except ServiceAbsent:
            self._known.clear()
            raise
        return _with_route(self._with_missing(answer) if self._sticky else answer)

    def _with_missing(self, answer: Answer) -> Answer:
        """Return the answer with recent addresses and instances. It is valid until the first of
        them expires."""
        now, sticky = self._clock(), self._sticky or 0.0
        for one in answer.instances:
            self._known.setdefault(one, _Known(one)).record = one
        told = {one: one.addresses for one in answer.instances}
        for instance, known in list(self._known.items()):
            known.update(told.get(instance, ()), now, now - sticky)
            if not known.missing_since:
                del self._known[instance]
        first = min((known.oldest for known in self._known.values()), default=math.inf)
        if first == math.inf:
            return answer
        order = dict.fromkeys((*answer.instances, *self._known))
        left = max(0.0, first + sticky - now)
        ttl = left if answer.ttl is None else min(answer.ttl, left)
        return Answer((self._known[one].instance() for one in order), ttl, answer.refused)


class _Known:
    """An instance that DNS has returned, and the time since which each of its addresses is
    missing."""

    def __init__(self, record: Instance) -> None:
        self.record = record
        self.missing_since: dict[str, float] = {}
        """Maps each address to the time since which it is missing; infinity if the last answer
        contained the address."""

    @property
    def oldest(self) -> float:
        """The earliest time since which one of its addresses has been missing."""
        return min(self.missing_since.values())

    def update(self, told: Iterable[str], now: float, until: float) -> None:
        """Apply an answer. Drops addresses that have been missing since `until` or longer."""
        missing = {
            address: min(since, now)
            for address, since in self.missing_since.items()
            if since > until
        }
        self.missing_since = dict.fromkeys(told, math.inf)
        for address, since in missing.items():
            self.missing_since.setdefault(address, since)

    def instance(self) -> Instance:
        """The instance, with its missing addresses after the others."""
        addresses = tuple(self.missing_since)
        same = addresses == self.record.addresses
        return self.record if same else replace(self.record, addresses=addresses)


def _with_route(answer: Answer) -> Answer:
    addresses = {address for one in answer.instances for address in one.addresses}
    if len({":" in address for address in addresses}) < len(KINDS):
        return answer  # with only one family there is no choice
    usable = set(filter(has_route, addresses))
    if not usable or len(usable) == len(addresses):
        return answer
    kept = [
        replace(one, addresses=found) if len(found) < len(one.addresses) else one
        for one in answer.instances
        if (found := tuple(address for address in one.addresses if address in usable))
    ]
    lost = {"ipv6" if ":" in address else "ipv4" for address in addresses - usable}
    return Answer(kept, answer.ttl, (*answer.refused, *map(_no_route, sorted(lost))))


def _no_route(family: str) -> RejectedRecord:
    """Return one record for all addresses of a family. Its text never changes, so it is logged
    once."""
    return RejectedRecord(
        f"{_SHOWN[family]} addresses",
        f"this host has no route to them; with family={_OTHER[family]!r} they are not asked for",
    )


def addresses_from_url(url: SplitResult, scheme: str, sources: Sources) -> ParsedService:
    """Parse a URL such as `http+dns://orders.example.com:8080`: every address of the name is an
    instance."""
    host, port = host_of(url), url.port or DEFAULT_PORTS[scheme]
    dns, address_filter, clock, options, start, *_ = sources
    source = AddressResolver(
        host, port, dns, address_filter, clock, kinds=options.kinds, start=start
    )
    resolver = DnsService(source, clock, options.sticky)
    return ParsedService(resolver, shown(url), scheme, path_of(url), host, port, in_dns=True)


def srv_from_url(url: SplitResult, scheme: str, sources: Sources) -> ParsedService:
    """Parse a URL such as `http+srv://orders.example.com`: the SRV records of the service name its
    instances."""
    host = host_of(url)
    if validation.is_address(host):
        raise ValueError(f"service must name a domain that has SRV records, not the address {host}")
    if url.port is not None:
        raise ValueError(f"service must not have a port: SRV records have one ({shown(url)!r})")
    query = host if host.startswith("_") else f"_{scheme}._tcp.{host}"
    dns, address_filter, clock, options, start, *_ = sources
    source = SrvResolver(query, dns, address_filter, clock, kinds=options.kinds, start=start)
    resolver = DnsService(source, clock, options.sticky)
    return ParsedService(resolver, shown(url), scheme, path_of(url), _parent(host), in_dns=True)


def _parent(host: str) -> str:
    """The domain that offers a service: `example.com` for `_orders._tcp.example.com`."""
    labels = host.split(".")
    while len(labels) > 1 and labels[0].startswith("_"):
        labels.pop(0)
    if labels[0].startswith("_"):
        raise ValueError(
            "service must name a domain after its _labels, "
            f"as in _orders._tcp.example.com; not {host!r}"
        )
    return ".".join(labels)
