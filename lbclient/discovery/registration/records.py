"""The names and records of one instance (RFC 2782): adding them to a zone, and removing them.

An instance may always add its own SRV record, and delete exactly this record. But the SRV records
of several instances may name the same host (the *target*), so these instances share the address
records of the target. So an instance deletes address records only if no other instance needs them,
which it finds out by reading the records. DNS makes the deletion only if the records have not
changed since then (RFC 2136, 2.4.2). Otherwise the instance reads them again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from lbclient._internal import validation
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.service import DnsService
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.discovery.registration.dns_update import (
    Primary,
    Record,
    RecordChange,
    Rrset,
)
from lbclient.discovery.registration.registrar import UpdateError, addresses_of, normal
from lbclient.discovery.registry import target_of
from lbclient.endpoint.instance import Instance

__all__ = ["DnsRegistrar", "entry_of"]

KINDS = ("A", "AAAA")
_FORMS = "'http+srv://name', 'https+srv://name' or '_service._tcp.name'"
_BARE = re.compile(r"_[^/?#@:]*")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LARGEST = 65535

_TRIES = 20
Left = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Entry:
    """The SRV record of one instance, and the addresses of its target.

    `sole` is True if the target is a name that only this instance has. Such a name stays the same
    when the address changes.
    """

    owner: str
    target: str
    port: int
    weight: int
    priority: int
    addresses: tuple[Record, ...]
    sole: bool

    @property
    def record(self) -> Record:
        """The SRV record itself, as DNS shows it."""
        return Record(self.owner, "SRV", f"{self.priority} {self.weight} {self.port} {self.target}")

    def replaces(self, text: str) -> bool:
        """True if `record` is an SRV record that an earlier run of this instance has left in
        DNS."""
        _, _, port, target = text.split()
        same = target == self.target and (self.sole or port == str(self.port))
        return same and text != self.record.text

    def is_named_by(self, others: Rrset) -> bool:
        """True if one of these SRV records has the same target."""
        return any(text.split()[3] == self.target for text in others.texts)

    def is_taken(self, *held: Rrset) -> bool:
        """True if the target is for one instance only, and its addresses belong to another
        instance."""
        found = {normal(text) for rrset in held for text in rrset.texts}
        own = {normal(record.text) for record in self.addresses}
        return self.sole and bool(found) and not found & own


def entry_of(service: object, instance: object, identity: object) -> Entry:
    """Check the user's arguments and make an entry from them.

    Raises ValueError or TypeError, naming the argument, for a value that no SRV record can have.
    """
    owner, domain = _service(service)
    if not isinstance(instance, Instance):
        raise TypeError(f"instance must be lbclient.Instance(...), not {instance!r}")
    for field in ("path", "headers", "tls_name"):
        if getattr(instance, field):
            raise ValueError(
                f"instance must not have {field}, since an SRV record has no place for it; the "
                "clients of the service can give it in a list or file"
            )
    _fits("weight", instance.weight)
    _fits("priority", instance.priority)
    addresses = addresses_of(instance)
    target = _target(instance, owner, domain, identity)
    return Entry(
        owner,
        target,
        instance.port,
        int(instance.weight),
        instance.priority,
        tuple(Record(target, KINDS[one.version == 6], str(one)) for one in addresses),
        identity is not None,
    )


def _service(service: object) -> tuple[str, str]:
    """Return the name of the SRV records, and the domain that offers the service."""
    if not isinstance(service, str):
        raise TypeError(f"service must be {_FORMS}; not {type(service).__name__}")
    scheme, found, rest = service.partition("://")
    known = scheme.lower() in ("http+srv", "https+srv") if found else _BARE.fullmatch(service)
    if not known:
        shown = validation.bare(rest if found else service)
        raise ValueError(f"service must be {_FORMS}; {shown!r} is none of them")
    url = service if found else f"http+srv://{service}"
    target = target_of(
        url,
        name=None,
        scheme="http",
        dns=Dns(None),
        address_filter=AddressFilter(),
        clock=time.monotonic,
    )
    source = target.resolver.source if isinstance(target.resolver, DnsService) else None
    if not isinstance(source, SrvResolver) or target.host is None:
        raise ValueError(f"service must be {_FORMS}")
    return source.name, target.host


def _target(instance: Instance, owner: str, domain: str, identity: object) -> str:
    """Return the target's name.

    A generated name ends in the labels of the service, so no other service and no host has the same
    name.
    """
    if not validation.is_address(instance.host):
        return _full_name(instance.host, identity)
    address = re.sub("[.:]", "-", normal(instance.host).exploded)
    label = address if identity is None else _word(identity)
    service = owner.removesuffix(f".{domain}.").replace("_", "").replace(".", "-")
    argument = "service" if identity is None else "identity"
    return (
        validation.host(f"{argument} (in the target's name)", f"{label}-{service}.{domain}") + "."
    )


def _full_name(host: str, identity: object) -> str:
    if identity is not None:
        raise ValueError(f"identity is for an instance whose host is an address, not {host!r}")
    if "." not in host:
        raise ValueError(f"instance.host must be an address or a name in a domain, not {host!r}")
    return f"{host}."


def _word(identity: object) -> str:
    if not isinstance(identity, str):
        raise TypeError(f"identity must be a word, not {identity!r}")
    if not _LABEL.fullmatch(identity.lower()):
        raise ValueError(
            "identity must be a word of letters, digits and hyphens, "
            f"not {validation.bare(identity)!r}"
        )
    return identity.lower()


def _fits(name: str, value: float) -> None:
    if value > _LARGEST or value != int(value):
        raise ValueError(
            f"instance.{name} must be a whole number from 0 to {_LARGEST}, "
            f"as SRV records have it, not {value!r}"
        )


class DnsRegistrar:
    """Adds and removes one entry. If `zone` is None, the server is asked for the zone.

    `ttl` is the TTL of the records, in seconds. Two threads must not use this object at the same
    time.
    """

    def __init__(
        self,
        entry: Entry,
        primary: Primary,
        *,
        zone: str | None,
        ttl: int,
        clock: Callable[[], float],
    ) -> None:
        self.entry = entry
        self.interval: float = ttl
        """Seconds between two renewals. The records are renewed, since a zone that was reloaded has
        lost them."""
        self._primary = primary
        self._zone = zone
        self._ttl = ttl
        self._clock = clock

    def put(self, seconds: float) -> None:
        """Add the records, and delete those of an earlier run. Raises UpdateError."""
        left = self._left(seconds)
        owner = self.entry.owner
        if self._zone is None:
            self._zone = self._primary.zone_of(owner, left())
        before = self._primary.records(owner, "SRV", left())
        change = RecordChange(
            clear=[(self.entry.target, kind) for kind in KINDS] if self.entry.sole else (),
            delete=[Record(owner, "SRV", text) for text in before.texts if self._replaces(text)],
            add=[self.entry.record, *self.entry.addresses],
        )
        self._primary.change(self._zone, self._ttl, change, left())

    def remove(self, seconds: float) -> None:
        """Delete the SRV record, and then the address records that no other SRV record needs.
        Raises UpdateError."""
        left = self._left(seconds)
        self._carry_out(self._without_record, left)
        if self.entry.addresses:
            self._carry_out(self._without_addresses, left)

    def _replaces(self, text: str) -> bool:
        return self.entry.replaces(text)

    def _without_record(self, left: Left) -> RecordChange | None:
        if not self.entry.sole:
            return RecordChange(delete=[self.entry.record])
        held = [self._primary.records(self.entry.target, kind, left()) for kind in KINDS]
        if self.entry.is_taken(*held):
            return None  # a later run of the instance has added the record
        return RecordChange(provided=held, delete=[self.entry.record])

    def _without_addresses(self, left: Left) -> RecordChange | None:
        others = self._primary.records(self.entry.owner, "SRV", left())
        if self.entry.is_named_by(others):
            return None
        return RecordChange(provided=[others], delete=self.entry.addresses)

    def _carry_out(self, plan: Callable[[Left], RecordChange | None], left: Left) -> None:
        for _ in range(_TRIES):
            change = plan(left)
            if change is None or self._primary.change(self._zone or "", self._ttl, change, left()):
                return
        raise UpdateError(f"others changed {self.entry.owner} {_TRIES} times in the meantime")

    def _left(self, seconds: float) -> Left:
        until = self._clock() + seconds

        def left() -> float:
            if (rest := until - self._clock()) <= 0:
                raise UpdateError("no time was left")
            return rest

        return left
