"""Questions to DNS, by dnspython, with its errors in our words."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset

from lbclient import checks
from lbclient.errors import DiscoveryError

__all__ = ["KINDS", "Addresses", "Dns", "Found", "Glue", "NoRecords", "nameservers_of"]

KINDS = ("A", "AAAA")
Addresses = tuple[list[str], float]
"""Addresses of one name and their TTL in seconds."""

_LIFETIME = 5.0
_PORT = 53
_WITH_PORT = re.compile(r"(?:\[(?P<bracketed>.+)\]|(?P<plain>[^:]+))(?::(?P<port>[0-9]+))?")
_NAMESERVERS = "nameservers must hold addresses such as '127.0.0.1:5353' or '[::1]:53'"


class NoRecords(DiscoveryError):
    """DNS answered, and the answer is that there are none."""


class Glue:
    """The addresses that came along with an answer, in its additional section."""

    def __init__(self, rrsets: Iterable[dns.rrset.RRset] = ()) -> None:
        self._found: dict[tuple[str, str], Addresses] = {
            (rrset.name.to_text().lower(), rrset.rdtype.name): (
                [record.address for record in rrset],
                float(rrset.ttl),
            )
            for rrset in rrsets
            if rrset.rdtype.name in KINDS and rrset.rdclass == dns.rdataclass.IN
        }
        self._kinds = {kind for _, kind in self._found}

    def get(self, name: str, kind: str) -> Addresses | None:
        """The addresses of that kind, if they came along."""
        return self._found.get((name, kind))

    def kinds(self, name: str) -> Sequence[str]:
        """Which kinds of address to look for.

        A server leaves out what does not fit, without a word. So a name that came with one kind
        is trusted to have no other only where the other came with no name at all.
        """
        if any((name, kind) in self._found for kind in KINDS):
            return [kind for kind in KINDS if kind in self._kinds]
        return KINDS


@dataclass(frozen=True, slots=True)
class Found:
    """The records of one answer, its TTL in seconds (the least of the chain), what came along."""

    records: Sequence[object]
    ttl: float
    glue: Glue


class Dns:
    """Asks the given nameservers, or those of the system's resolver configuration.

    `lifetime` bounds one question with all its repetitions, in seconds.
    """

    def __init__(
        self, nameservers: Sequence[dns.nameserver.Nameserver] | None, lifetime: float = _LIFETIME
    ) -> None:
        self._nameservers = nameservers
        self._lifetime = lifetime
        self._answered: tuple[str | None, int | None] | None = None

    def ask(self, name: str, kind: str, lifetime: float | None = None) -> Found:
        """The records of `kind` at the absolute name `name`.

        Raises NoRecords (NXDOMAIN, or none of this kind) or DiscoveryError (SERVFAIL, a timeout).
        """
        lifetime = self._lifetime if lifetime is None else min(lifetime, self._lifetime)
        try:
            answer = self._resolver(lifetime).resolve(
                dns.name.from_text(name, origin=dns.name.root),
                kind,
                search=False,
                lifetime=lifetime,
            )
        except dns.resolver.NXDOMAIN:
            raise NoRecords(f"{name} does not exist (NXDOMAIN)") from None
        except dns.resolver.NoAnswer:
            raise NoRecords(f"{name} has no {kind} record") from None
        except (dns.resolver.NoNameservers, dns.resolver.LifetimeTimeout) as error:
            reasons = _reasons(error.kwargs["errors"])
            raise DiscoveryError(f"asking for {kind} of {name} failed: {reasons}") from error
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise DiscoveryError(f"asking for {kind} of {name} failed: {error}") from error
        self._answered = answer.nameserver, answer.port
        return Found(
            list(answer), answer.chaining_result.minimum_ttl, Glue(answer.response.additional)
        )

    def _resolver(self, lifetime: float) -> dns.resolver.Resolver:
        """Made for each question: a changed resolv.conf counts, and threads share nothing.

        Each nameserver gets its turn within the lifetime, the one that answered last the first:
        else a dead one would cost every question its patience.
        """
        resolver = dns.resolver.Resolver(configure=self._nameservers is None)
        given = resolver.nameservers if self._nameservers is None else self._nameservers
        resolver.nameservers = sorted(given, key=lambda one: _place(one) != self._answered)
        resolver.timeout = min(resolver.timeout, lifetime / len(given))
        return resolver


def _place(nameserver: object) -> tuple[object, object]:
    """Its address and port; the system's configuration holds addresses alone."""
    return getattr(nameserver, "address", nameserver), getattr(nameserver, "port", _PORT)


def _reasons(errors: Iterable[tuple[str, bool, int, Exception | str, object]]) -> str:
    """What each nameserver did, in words that are the same for the same failure.

    dnspython's own tell the time it took, so that every failure would look new in a log.
    """
    reasons = {
        f"{server.removeprefix('Do53:')}{' over TCP' if over_tcp else ''}: {_reason(what)}"
        for server, over_tcp, _, what, _ in errors
    }
    return "; ".join(sorted(reasons)) or "no answer in time"


def _reason(what: Exception | str) -> str:
    if isinstance(what, dns.exception.Timeout):
        return "no answer"
    if isinstance(what, dns.message.Truncated):
        return "truncated"
    return str(what) or type(what).__name__


def nameservers_of(given: Iterable[str] | None) -> list[dns.nameserver.Nameserver] | None:
    """From `"127.0.0.1:5353"`, `"10.0.0.2"`, `"[::1]:53"` or `"::1"`; None is the system's own.

    Raises ValueError or TypeError, naming `nameservers`.
    """
    if given is None:
        return None
    if not isinstance(given, Iterable):
        raise TypeError(f"{_NAMESERVERS}, not {given!r}")
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise ValueError("nameservers must not be empty; leave it out for the system's own")
    return [_nameserver(text) for text in texts]


def _nameserver(text: object) -> dns.nameserver.Nameserver:
    if not isinstance(text, str):
        raise TypeError(f"{_NAMESERVERS}, not {text!r}")
    parts = _WITH_PORT.fullmatch(text)
    address = text if parts is None else parts["bracketed"] or parts["plain"]
    port = None if parts is None else parts["port"]
    try:
        ip = str(ipaddress.ip_address(address))
        number = checks.port("nameservers", int(port or _PORT))
    except ValueError:
        raise ValueError(f"{_NAMESERVERS}, not {text!r}") from None
    return dns.nameserver.Do53Nameserver(ip, number)
