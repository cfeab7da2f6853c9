"""Asks DNS with dnspython, and replaces dnspython's errors by errors of lbclient.

dnspython is imported by `load` and not with this module, since its import takes long: with its
extras, dnspython imports HTTP/2 and trio, which takes longer than all other imports of a client.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbclient._internal.ip_addresses import bracketed
from lbclient.errors import DiscoveryError

if TYPE_CHECKING:
    import dns.exception
    import dns.message
    import dns.name
    import dns.nameserver
    import dns.rdataclass
    import dns.resolver
    import dns.rrset

__all__ = ["KINDS", "Addresses", "Dns", "DnsAnswer", "Glue", "NoRecords", "dns_by", "load"]

KINDS = ("A", "AAAA")
Addresses = tuple[list[str], float]
"""The addresses of one name, and their TTL in seconds."""

_LIFETIME = 5.0
_PORT = 53


def load() -> None:
    """Import dnspython, unless it is imported already."""
    global dns  # as if imported at the top of the file
    import dns.exception  # noqa: PLC0415  # see above
    import dns.message  # noqa: PLC0415
    import dns.name  # noqa: PLC0415
    import dns.rdataclass  # noqa: PLC0415
    import dns.rdtypes.IN.A  # noqa: PLC0415  # dnspython would load these at the first record
    import dns.rdtypes.IN.AAAA  # noqa: PLC0415
    import dns.rdtypes.IN.SRV  # noqa: PLC0415
    import dns.resolver  # noqa: PLC0415


class NoRecords(DiscoveryError):
    """DNS has answered that the name has no records of this kind."""


class Glue:
    """The addresses in the additional section of an answer."""

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
        """Return the addresses of this kind (A or AAAA) for a name, or None if the section contains
        none."""
        return self._found.get((name, kind))

    def kinds(self, name: str) -> Sequence[str]:
        """Return the kinds of addresses that the section has, or may lack, for a name.

        A server silently leaves out addresses that do not fit into the answer. For example, an
        answer may contain only IPv4 addresses for a name, but IPv6 addresses for other names. Then
        the name may have IPv6 addresses too. It is assumed to have none only if the answer contains
        no IPv6 address at all.
        """
        if any((name, kind) in self._found for kind in KINDS):
            return [kind for kind in KINDS if kind in self._kinds]
        return KINDS


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """The records of an answer, its TTL in seconds (the shortest TTL in a chain of CNAMEs), and the
    addresses in its additional section (glue)."""

    records: Sequence[object]
    ttl: float
    glue: Glue


class Dns:
    """Asks the given nameservers, or the nameservers of the system's resolver configuration.

    `lifetime` limits one question with all its repetitions, in seconds.
    """

    def __init__(
        self, nameservers: Sequence[dns.nameserver.Nameserver] | None, lifetime: float = _LIFETIME
    ) -> None:
        self._nameservers = nameservers
        self._lifetime = lifetime
        self._answered: tuple[str | None, int | None] | None = None

    def ask(self, name: str, kind: str, lifetime: float | None = None) -> DnsAnswer:
        """Return the records of `kind` at the absolute name `name`.

        Raises NoRecords if the name does not exist or has no records of this kind. Raises
        DiscoveryError for SERVFAIL or a timeout.
        """
        load()
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
        return DnsAnswer(
            list(answer), answer.chaining_result.minimum_ttl, Glue(answer.response.additional)
        )

    def _resolver(self, lifetime: float) -> dns.resolver.Resolver:
        """Make a resolver for one question, so that changes of resolv.conf take effect.

        The resolver is not shared between threads. Each nameserver gets a part of the lifetime, and
        the nameserver that gave the last answer is asked first. Otherwise, if the first nameserver
        of the list is down, each question would wait for this nameserver.
        """
        resolver = dns.resolver.Resolver(configure=self._nameservers is None)
        given = resolver.nameservers if self._nameservers is None else self._nameservers
        resolver.nameservers = sorted(given, key=lambda one: _place(one) != self._answered)
        resolver.timeout = min(resolver.timeout, lifetime / len(given))
        return resolver


def dns_by(nameservers: Iterable[str] | None, clock: Callable[[], float]) -> Dns:
    """Make a `Dns` for the argument `nameservers=` (see `nameservers_of`). None means the system's
    nameservers."""
    if nameservers is None:
        return Dns(None)
    from lbclient.discovery.dns.nameservers import nameservers_of  # noqa: PLC0415  # imports dnspython

    return Dns(nameservers_of(nameservers, clock))


def _place(nameserver: dns.nameserver.Nameserver | str) -> tuple[str, int]:
    """Return the address and port of a nameserver. A nameserver of the system's configuration is
    only an address, so its port is 53."""
    if isinstance(nameserver, str):
        return nameserver, _PORT
    return nameserver.answer_nameserver(), nameserver.answer_port()


def _reasons(errors: Iterable[tuple[str, bool, int, Exception | str, object]]) -> str:
    """Describe the failure of each nameserver. The same failure always gives the same text.

    The texts of dnspython are not used: they contain the elapsed time, so each failure would look
    new in the log.
    """
    reasons = {
        f"{_server(server, over_tcp=over_tcp)}: {_reason(what)}"
        for server, over_tcp, _, what, _ in errors
    }
    return "; ".join(sorted(reasons)) or "no answer in time"


def _server(server: str, *, over_tcp: bool) -> str:
    """The name of a nameserver: `Do53:127.0.0.1@53` (from dnspython) as address and port, any other
    name unchanged.
    """
    if not server.startswith("Do53:"):
        return server
    address, _, port = server.removeprefix("Do53:").rpartition("@")
    return f"{bracketed(address)}:{port}{' over TCP' if over_tcp else ''}"


def _reason(what: Exception | str) -> str:
    if isinstance(what, dns.exception.Timeout):
        return "no answer"
    if isinstance(what, dns.message.Truncated):
        return "truncated"
    if isinstance(what, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {what.verify_message}"
    if isinstance(what, ssl.SSLError):
        return f"TLS failed: {what.reason or 'closed'}"
    text = " ".join(str(what).split()) or type(what).__name__  # it may be a docstring
    return text if text.isprintable() else repr(text)[1:-1]
