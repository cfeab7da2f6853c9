"""SRV records, by RFC 2782."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Protocol, cast

import dns.name

from lbclient import checks
from lbclient.discovery.addresses import AddressBook, Patience
from lbclient.discovery.dns import Dns, Found, NoRecords, addresses_in
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
        found = self._dns.ask(self.name, "SRV")
        records = [cast("_Srv", one) for one in found.records]
        if all(one.target == dns.name.root for one in records):
            raise ServiceAbsent(
                f"{self.name} declares that the service is not offered (target '.')"
            )
        ttls, instances, refused = [found.ttl], [], []
        patience = Patience(_ROUND, self._clock)
        for one in records:
            try:
                instance, ttl = self._instance(one, found, patience)
                instances.append(instance)
                ttls.append(ttl)
            except _Refused as reason:
                refused.append(Refusal(_shown(one), str(reason)))
        self._book.keep({one.host + "." for one in instances})
        return Answer(instances, min(ttls), refused)

    def _instance(self, record: _Srv, found: Found, patience: Patience) -> tuple[Instance, float]:
        host = _host(record)
        if (reason := self._guard.refuses_name(host)) is not None:
            raise _Refused(reason)
        addresses, ttl = self._addresses(host, record, found, patience)
        vetted = [one for one in addresses if self._guard.refuses(one) is None]
        if not vetted:
            raise _Refused(str(self._guard.refuses(addresses[0])))
        instance = Instance(
            host, record.port, record.weight, record.priority, addresses=tuple(vetted)
        )
        return instance, ttl

    def _addresses(
        self, host: str, record: _Srv, found: Found, patience: Patience
    ) -> tuple[list[str], float]:
        if glue := addresses_in(found.message, record.target):
            return glue, found.ttl
        try:
            return self._book.lookup(host + ".", patience.left())
        except NoRecords:
            raise _Refused("its target has no address") from None
        except DiscoveryError as error:
            raise _Refused(f"no address is known for its target: {error}") from None


class _Refused(Exception):
    """Why one record is left out."""


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


def _shown(record: _Srv) -> str:
    """As a zone file writes it; dnspython has escaped what is not printable."""
    return f"{record.priority} {record.weight} {record.port} {record.target.to_text()}"
