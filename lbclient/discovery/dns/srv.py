"""SRV records (RFC 2782)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from lbclient._internal import validation
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.addresses import SOON, AddressCache, LookupDeadline, Start, at_once
from lbclient.discovery.dns.client import KINDS, Dns, NoRecords
from lbclient.endpoint.instance import Answer, Instance, RejectedRecord
from lbclient.errors import DiscoveryError, ServiceAbsent

if TYPE_CHECKING:
    import dns.name

__all__ = ["SrvResolver"]

_ROUND = 5.0


class _Srv(Protocol):
    """The fields of an SRV record of dnspython that are used."""

    priority: int
    weight: int
    port: int
    target: dns.name.Name


class SrvResolver:
    """Finds instances in the SRV records of `name`, with the checked addresses of their targets.

    A record that cannot be used is left out, and the answer contains the reason. All other records
    are used.
    """

    def __init__(
        self,
        name: str,
        dns: Dns,
        address_filter: AddressFilter,
        clock: Callable[[], float],
        *,
        kinds: Sequence[str] = KINDS,
        start: Start = at_once,
    ) -> None:
        self.name: str = validation.host("service", name) + "."
        self.complete: bool = True
        """False if the last answer is incomplete and more addresses are expected soon."""
        self._dns = dns
        self._addresses = AddressCache(dns, address_filter, clock, kinds=kinds, start=start)
        self._address_filter = address_filter
        self._clock = clock

    def __repr__(self) -> str:
        return f"<SrvResolver {self.name}>"

    def resolve(self) -> Answer:
        """Look up the records, and then the addresses of targets whose addresses did not arrive
        with the records.

        Raises ServiceAbsent if the target is `.`, and DiscoveryError if DNS gives no answer.
        """
        deadline = LookupDeadline(_ROUND, self._clock)
        found = self._dns.ask(self.name, "SRV", deadline.left())
        records = [cast("_Srv", one) for one in found.records]
        if all(one.target.to_text() == "." for one in records):
            raise ServiceAbsent(
                f"{self.name} declares that the service is not offered (target '.')"
            )
        hosts, refused = self._hosts(self._longest_unasked_first(records))
        names = dict.fromkeys(f"{host}." for host, _ in hosts)  # each name only once
        lookup = self._addresses.lookup(names, deadline.left, found.glue)
        self.complete = lookup.complete
        ttls, instances = [found.ttl if self.complete else min(found.ttl, SOON)], []
        for host, record in hosts:
            told = lookup.found[f"{host}."]
            if isinstance(told, Exception):
                refused.append(RejectedRecord(_shown(record), _reason(told)))
                continue
            addresses, ttl = told
            vetted, reasons = self._address_filter.vet(addresses)
            refused += [RejectedRecord(_shown(record), reason) for reason in reasons]
            if vetted:
                instances.append(_instance(host, record, vetted))
                ttls.append(ttl)
        self._addresses.keep(set(map(_target, records)))
        return Answer(sorted(instances, key=_place), min(ttls), refused)

    def _hosts(
        self, records: Iterable[_Srv]
    ) -> tuple[list[tuple[str, _Srv]], list[RejectedRecord]]:
        """Return the usable records with their host names, and all other records as refused."""
        hosts, refused = [], []
        for one in records:
            try:
                hosts.append((self._host(one), one))
            except ValueError as reason:
                refused.append(RejectedRecord(_shown(one), str(reason)))
        return hosts, refused

    def _host(self, record: _Srv) -> str:
        """Return the host of a record. Raises ValueError with the reason if it cannot be used."""
        host = _host(record)
        if (reason := self._address_filter.refuses_name(host)) is not None:
            raise ValueError(reason)
        return host

    def _longest_unasked_first(self, records: Iterable[_Srv]) -> list[_Srv]:
        """Sort the names so that those that were asked for least recently come first. So each name
        is asked for in some round, even if no round has time for all names."""
        return sorted(records, key=lambda record: self._addresses.asked(_target(record)))


def _target(record: _Srv) -> str:
    return record.target.to_text().lower()


def _host(record: _Srv) -> str:
    text = record.target.to_text(omit_final_dot=True)
    if text == ".":
        raise ValueError("its target is '.', which is only allowed alone")
    if record.port == 0:
        raise ValueError("its port is 0")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        raise ValueError("its target is an IP address, but RFC 2782 requires a name")
    try:
        return validation.host("target", text)
    except ValueError:
        raise ValueError("its target is not a valid host name") from None


def _reason(error: DiscoveryError) -> str:
    if isinstance(error, NoRecords):
        return "its target has no address"
    return f"no address is known for its target: {error}"


def _instance(host: str, record: _Srv, addresses: list[str]) -> Instance:
    return Instance(host, record.port, record.weight, record.priority, addresses=tuple(addresses))


def _place(one: Instance) -> tuple[int, str, int]:
    """The sort key of a record in texts, since servers return the same records in any order."""
    return one.priority, one.host, one.port


def _shown(record: _Srv) -> str:
    """Return a record as it is written in a zone file. dnspython has escaped characters that are
    not printable."""
    return f"{record.priority} {record.weight} {record.port} {record.target.to_text()}"
