"""SRV records, by RFC 2782."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Protocol, cast

import dns.name

from lbclient import checks
from lbclient.discovery.addresses import AddressBook, Patience
from lbclient.discovery.dns import Addresses, Dns, Glue, NoRecords
from lbclient.discovery.guard import Guard
from lbclient.errors import DiscoveryError, ServiceAbsent
from lbclient.instance import Answer, Instance, Refusal

__all__ = ["SrvResolver"]

_ROUND = 5.0


class _Srv(Protocol):
    """The fields of dnspython's SRV record."""

    priority: int
    weight: int
    port: int
    target: dns.name.Name


class SrvResolver:
    """The SRV records of `name`, with the vetted addresses of their targets.

    A record that cannot be used is left out, with the reason in the answer; the rest stands.
    """

    def __init__(self, name: str, dns: Dns, guard: Guard, clock: Callable[[], float]) -> None:
        self.name = checks.host("service", name) + "."
        self._dns = dns
        self._book = AddressBook(dns)
        self._guard = guard
        self._clock = clock

    def resolve(self) -> Answer:
        """Ask for the records, then for the addresses that did not come along.

        Raises ServiceAbsent for the target `.`, DiscoveryError where DNS gives no answer.
        """
        patience = Patience(_ROUND, self._clock)
        found = self._dns.ask(self.name, "SRV", patience.left())
        records = [cast("_Srv", one) for one in found.records]
        if all(one.target == dns.name.root for one in records):
            raise ServiceAbsent(
                f"{self.name} declares that the service is not offered (target '.')"
            )
        targets = _Targets(self._book, found.glue, patience)
        ttls, instances, refused = [found.ttl], [], []
        for one in self._longest_unasked_first(records):
            try:
                host = self._host(one)
                addresses, ttl = targets.addresses(host)
            except _Refused as reason:
                refused.append(Refusal(_shown(one), str(reason)))
                continue
            vetted, reasons = self._guard.vet(addresses)
            refused += [Refusal(_shown(one), reason) for reason in reasons]
            if vetted:
                instances.append(_instance(host, one, vetted))
                ttls.append(ttl)
        self._book.keep(set(map(_target, records)))
        return Answer(sorted(instances, key=_place), min(ttls), refused)

    def _longest_unasked_first(self, records: Iterable[_Srv]) -> list[_Srv]:
        """Where time does not suffice for all targets, each has its turn in one of the rounds."""
        return sorted(records, key=lambda one: self._book.asked(_target(one)))

    def _host(self, record: _Srv) -> str:
        host = _host(record)
        if (reason := self._guard.refuses_name(host)) is not None:
            raise _Refused(reason)
        return host


class _Targets:
    """The targets of one answer. Each is looked up once, however many records name it."""

    def __init__(self, book: AddressBook, glue: Glue, patience: Patience) -> None:
        self._book = book
        self._glue = glue
        self._patience = patience
        self._found: dict[str, Addresses | _Refused] = {}

    def addresses(self, host: str) -> Addresses:
        """Raises _Refused where it has none that are known."""
        if host not in self._found:
            self._found[host] = self._lookup(host)
        if isinstance(found := self._found[host], _Refused):
            raise found
        return found

    def _lookup(self, host: str) -> Addresses | _Refused:
        try:
            return self._book.lookup(host + ".", self._patience.left, self._glue)
        except NoRecords:
            return _Refused("its target has no address")
        except DiscoveryError as error:
            return _Refused(f"no address is known for its target: {error}")


class _Refused(Exception):
    """Why one record is left out."""


def _target(record: _Srv) -> str:
    return record.target.to_text().lower()


def _host(record: _Srv) -> str:
    text = record.target.to_text(omit_final_dot=True)
    if record.target == dns.name.root:
        raise _Refused("its target is '.', beside others that are not")
    if record.port == 0:
        raise _Refused("its port is 0")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        raise _Refused("its target is an IP address, where RFC 2782 wants a name")
    try:
        return checks.host("target", text)
    except ValueError:
        raise _Refused("its target is no legal host name") from None


def _instance(host: str, record: _Srv, addresses: list[str]) -> Instance:
    return Instance(host, record.port, record.weight, record.priority, addresses=tuple(addresses))


def _place(one: Instance) -> tuple[int, str, int]:
    """Servers give the same records in any order; to people they are shown in this."""
    return one.priority, one.host, one.port


def _shown(record: _Srv) -> str:
    """As a zone file writes it; dnspython has escaped what is not printable."""
    return f"{record.priority} {record.weight} {record.port} {record.target.to_text()}"
