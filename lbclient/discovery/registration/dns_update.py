"""Changes to a DNS zone: dynamic updates (RFC 2136), signed with TSIG (RFC 8945), with dnspython.

All messages use TCP, for three reasons. First, over UDP a lost message is sent again, but an update
that depends on earlier records must not be sent twice. Second, the records of a service with many
instances do not fit into a datagram. Third, a server that accepts updates supports TCP in any case
(RFC 7766).

A TSIG key is text in the format of `nsupdate -y`, or a file from `tsig-keygen`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update

from lbclient._internal import validation
from lbclient.discovery.dns.nameservers import plain_nameserver
from lbclient.discovery.registration.registrar import UpdateError

__all__ = ["Primary", "Record", "RecordChange", "Rrset", "Tsig", "key_of"]

_ALGORITHMS = {
    str(name).rstrip(".").lower(): name
    for name in dns.tsig.mac_sizes
    if name not in (dns.tsig.GSS_TSIG, dns.tsig.HMAC_MD5)
} | {"hmac-md5": dns.tsig.HMAC_MD5}

_FORMS = "'[algorithm:]name:secret', or the path of a key file as pathlib.Path"
_TOKENS = re.compile(
    r"""(?://|\#)[^\n]* | /\*.*?\*/ | "([^"]*)" | ([{};]) | ([^\s{};"]+)""", re.VERBOSE | re.DOTALL
)

_SERVER = "server must be an address such as '127.0.0.1:5353' or '[::1]:53'"
_PREREQUISITES = (
    dns.rcode.NXRRSET,
    dns.rcode.YXRRSET,
    dns.rcode.NXDOMAIN,
    dns.rcode.YXDOMAIN,
)
_RCODES = {
    dns.rcode.FORMERR: "it could not read the message",
    dns.rcode.SERVFAIL: "it failed; its log may say why",
    dns.rcode.NOTIMP: "it accepts no updates",
    dns.rcode.REFUSED: "it does not allow this, or does not serve this domain",
    dns.rcode.NOTAUTH: "it is not authoritative for the zone",
    dns.rcode.NOTZONE: "a name is outside the zone",
}
_ERRORS: dict[type[BaseException], str] = {
    dns.tsig.PeerBadKey: "NOTAUTH (BADKEY): it does not know this key with this algorithm",
    dns.tsig.PeerBadSignature: "NOTAUTH (BADSIG): it knows the key with another secret",
    dns.tsig.PeerBadTime: "NOTAUTH (BADTIME): its clock and ours differ too much",
    dns.tsig.PeerError: "NOTAUTH: it does not accept the signature",
    dns.tsig.BadTime: "the answer's signature is too old; its clock and ours may differ",
    dns.tsig.BadSignature: "the answer's signature is wrong",
    dns.exception.Timeout: "no answer in time",
    EOFError: "it closed the connection without an answer",
    ConnectionRefusedError: "it refused the connection",
}
_UNSIGNED = "its answer is not signed: it may not know TSIG, or not be the zone's primary server"
_NOT_DONE = (dns.tsig.PeerError, ConnectionRefusedError)


class Tsig(dns.tsig.Key):
    """A secret that is shared with the server. The `repr` of this class does not show the secret,
    unlike that of dnspython's class.

    Raises ValueError. The error text contains no part of the arguments, since any part may be the
    secret.
    """

    def __init__(self, name: str, secret: str, algorithm: str = "hmac-sha256") -> None:
        if (known := _ALGORITHMS.get(algorithm.lower().rstrip("."))) is None:
            raise ValueError(f"key must have one of the algorithms {', '.join(_ALGORITHMS)}")
        try:
            shared = base64.b64decode(secret, validate=True)
            super().__init__(validation.host("key", name), shared, known)
        except (binascii.Error, ValueError):
            shared = b""
        if not shared:
            raise ValueError("key must have a valid name and a secret in base64")

    def __repr__(self) -> str:
        return "<Tsig>"


def key_of(given: str | os.PathLike[str] | None) -> Tsig | None:
    """Return the key for text such as `"hmac-sha512:name:secret"` or `"name:secret"` (HMAC-SHA256),
    or for the path of a file.

    Raises ValueError or TypeError, naming `key`. The text never contains a part of a secret.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return _from_text(given)
    if isinstance(given, os.PathLike):
        return _from_file(Path(given))
    raise TypeError(f"key must be {_FORMS}; not {type(given).__name__}")


def _from_text(text: str) -> Tsig:
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"key must be {_FORMS}")
    return Tsig(parts[-2], parts[-1], *parts[:-2])


def _from_file(path: Path) -> Tsig:
    try:
        text = path.read_text()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"key must be a file that can be read, not {path}: {reason}") from None
    match [word for token in _TOKENS.findall(text) if (word := "".join(token))]:
        case ["key", name, "{", *statements, "}", ";"]:
            said = dict(zip(statements[::3], statements[1::3], strict=False))
            if said.keys() == {"algorithm", "secret"} and statements[2::3] == [";", ";"]:
                return Tsig(name, said["secret"], said["algorithm"])
    raise ValueError(
        f"key must be a file with one key as named.conf has it, which {path} is not: "
        'key "name" { algorithm hmac-sha256; secret "..."; };'
    )


class Record(NamedTuple):
    """One record. `text` is its data as it is written in a zone file."""

    name: str
    kind: str
    text: str


class Rrset(NamedTuple):
    """All records of one kind at a name; the set may be empty."""

    name: str
    kind: str
    texts: frozenset[str]


@dataclass(frozen=True, slots=True)
class RecordChange:
    """The changes of one update. The server makes all of them, in this order, or none (RFC 2136,
    3.7).

    The server makes the changes only if the sets of records in `provided` have not changed (2.4.2).
    `clear` contains the names and kinds of sets to delete as a whole. `delete` and `add` contain
    single records.
    """

    provided: Sequence[Rrset] = ()
    clear: Sequence[tuple[str, str]] = ()
    delete: Sequence[Record] = ()
    add: Sequence[Record] = ()


class Primary:
    """The server that accepts a zone's updates. `server` is its address, with or without a port.

    Every method may block for the `seconds` that are passed, and raises UpdateError. The
    constructor raises ValueError or TypeError, naming `server`, if it is not an address.
    """

    def __init__(self, server: str, key: Tsig | None) -> None:
        if not isinstance(server, str):
            raise TypeError(f"{_SERVER}, not {server!r}")
        try:
            place = plain_nameserver(server)
        except ValueError:
            raise ValueError(f"{_SERVER}, not {validation.bare(server)!r}") from None
        self._server = server
        self._address, self._port = place.address, place.port
        self._key = key

    def zone_of(self, name: str, seconds: float) -> str:
        """Return the zone of `name`, from the SOA record of an authoritative answer (RFC 2308,
        3)."""
        about = f"server {self._server}, asked for the zone of {name}"
        response = self._ask(name, "SOA", seconds, about)
        for rrset in (*response.answer, *response.authority):
            within = dns.name.from_text(name).is_subdomain(rrset.name)
            if rrset.rdtype == dns.rdatatype.SOA and within:
                return rrset.name.to_text()
        raise UpdateError(f"{about}: its answer does not name the zone")

    def records(self, name: str, kind: str, seconds: float) -> Rrset:
        """Return the server's records of one kind at `name`, as texts in lower case."""
        about = f"server {self._server}, asked for {kind} of {name}"
        response = self._ask(name, kind, seconds, about)
        owner, found = dns.name.from_text(name), set()
        for rrset in response.answer:
            if rrset.name == owner and rrset.rdtype == dns.rdatatype.CNAME:
                raise UpdateError(f"{about}: it is an alias (CNAME) and can have no other record")
            if rrset.name == owner and rrset.rdtype == dns.rdatatype.from_text(kind):
                found = {record.to_text().lower() for record in rrset}
        return Rrset(name, kind, frozenset(found))

    def change(self, zone: str, ttl: int, change: RecordChange, seconds: float) -> bool:
        """Make the changes of one update. New records get the TTL `ttl`, in seconds.

        Returns False if no change was made, since one of the sets in `provided` has changed.
        """
        about = f"server {self._server}, zone {zone}"
        rcode = self._exchange(_message(zone, ttl, change), seconds, about, update=True).rcode()
        if rcode in _PREREQUISITES:
            return False
        if self._key is None:
            about = f"{about}, without a key"
        _expect(rcode, about, dns.rcode.NOERROR)
        return True

    def _ask(self, name: str, kind: str, seconds: float, about: str) -> dns.message.Message:
        query = dns.message.make_query(name, kind, flags=0)
        response = self._exchange(query, seconds, about)
        _expect(response.rcode(), about, dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
        if not response.flags & dns.flags.AA:
            raise UpdateError(f"{about}: it is not authoritative for it")
        return response

    def _exchange(
        self, message: dns.message.Message, seconds: float, about: str, *, update: bool = False
    ) -> dns.message.Message:
        if self._key is not None:
            message.use_tsig(self._key)
        try:
            response = dns.query.tcp(message, self._address, timeout=seconds, port=self._port)
        except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
            undecided = update and not isinstance(error, _NOT_DONE)
            raise UpdateError(f"{about}: {_reason(error)}", undecided=undecided) from error
        if self._key is not None and not response.had_tsig:
            raise UpdateError(f"{about}: {_UNSIGNED}", undecided=update)
        return response


def _message(zone: str, ttl: int, change: RecordChange) -> dns.update.UpdateMessage:
    message = dns.update.UpdateMessage(zone)
    for one in change.provided:
        if one.texts:
            message.present(one.name, one.kind, *sorted(one.texts))
        else:
            message.absent(one.name, one.kind)
    for name, kind in change.clear:
        message.delete(name, kind)
    for record in change.delete:
        message.delete(*record)
    for record in change.add:
        message.add(record.name, ttl, record.kind, record.text)
    return message


def _expect(rcode: dns.rcode.Rcode, about: str, *wanted: dns.rcode.Rcode) -> None:
    if rcode not in wanted:
        text = dns.rcode.to_text(rcode)
        raise UpdateError(f"{about}: {text}: {_RCODES.get(rcode, 'it refused')}")


def _reason(error: Exception) -> str:
    """Return a text for a failure. It is always the same for the same failure, since a text that
    was logged before is not logged again."""
    if "requires a TSIG" in str(error):
        return _UNSIGNED
    words = next((text for kind, text in _ERRORS.items() if isinstance(error, kind)), None)
    if isinstance(error, OSError) and words is None:
        words = error.strerror
    return words or f"its answer is invalid: {error or type(error).__name__}"
