"""Questions to DNS, by dnspython, with its errors in our words."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.rrset

from lbclient import checks
from lbclient.errors import DiscoveryError

__all__ = ["Dns", "Found", "NoRecords", "nameservers_of"]

_LIFETIME = 5.0


class NoRecords(DiscoveryError):
    """DNS answered, and the answer is that there are none."""


@dataclass(frozen=True, slots=True)
class Found:
    """The records of one answer, its TTL in seconds (the least of the chain), and its message."""

    records: Sequence[object]
    ttl: float
    message: dns.message.Message


class Dns:
    """Asks the given nameservers, or those of the system's resolver configuration.

    `lifetime` bounds one question with all its repetitions, in seconds.
    """

    def __init__(
        self, nameservers: Sequence[dns.nameserver.Nameserver] | None, lifetime: float = _LIFETIME
    ) -> None:
        self._nameservers = nameservers
        self._lifetime = lifetime

    def ask(self, name: str, kind: str, lifetime: float | None = None) -> Found:
        """The records of `kind` at the absolute name `name`.

        Raises NoRecords (NXDOMAIN, or none of this kind) or DiscoveryError (SERVFAIL, a timeout).
        """
        try:
            answer = self._resolver().resolve(
                dns.name.from_text(name, origin=dns.name.root),
                kind,
                search=False,
                lifetime=lifetime or self._lifetime,
            )
        except dns.resolver.NXDOMAIN:
            raise NoRecords(f"{name} does not exist (NXDOMAIN)") from None
        except dns.resolver.NoAnswer:
            raise NoRecords(f"{name} has no {kind} record") from None
        except dns.exception.DNSException as error:
            raise DiscoveryError(f"asking for {kind} of {name} failed: {error}") from error
        except OSError as error:
            raise DiscoveryError(f"asking for {kind} of {name} failed: {error}") from error
        return Found(list(answer), answer.chaining_result.minimum_ttl, answer.response)

    def _resolver(self) -> dns.resolver.Resolver:
        """Made for each round: a changed resolv.conf counts, and nothing is shared by threads."""
        resolver = dns.resolver.Resolver(configure=self._nameservers is None)
        if self._nameservers is not None:
            resolver.nameservers = list(self._nameservers)
        return resolver


def nameservers_of(given: Iterable[str] | None) -> list[dns.nameserver.Nameserver] | None:
    """From `"127.0.0.1:5353"`, `"10.0.0.2"`, `"[::1]:53"` or `"::1"`; None is the system's own.

    Raises ValueError or TypeError, naming `nameservers`.
    """
    if given is None:
        return None
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise ValueError("nameservers must not be empty; leave it out for the system's own")
    return [_nameserver(text) for text in texts]


def _nameserver(text: object) -> dns.nameserver.Nameserver:
    wanted = "nameservers must hold addresses such as '127.0.0.1:5353' or '[::1]:53'"
    if not isinstance(text, str):
        raise TypeError(f"{wanted}, not {text!r}")
    address, port = text, "53"
    if text.startswith("[") and "]" in text:
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else port
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        ip = str(ipaddress.ip_address(address))
        number = checks.port("nameservers", int(port))
    except ValueError:
        raise ValueError(f"{wanted}, not {text!r}") from None
    return dns.nameserver.Do53Nameserver(ip, number)


def addresses_in(message: dns.message.Message, name: dns.name.Name) -> list[str]:
    """The A and AAAA records of `name` that came along in the additional section."""
    kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
    return [
        record.address
        for rrset in message.additional
        if rrset.name == name and rrset.rdtype in kinds
        for record in rrset
    ]
