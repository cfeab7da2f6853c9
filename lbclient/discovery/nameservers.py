"""Nameservers as a user writes them: over UDP and TCP, TLS (RFC 7858) and HTTPS (RFC 8484)."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Callable, Iterable

import dns.nameserver
import dns.query

from lbclient import checks
from lbclient.discovery.dns import bracketed
from lbclient.discovery.secure import Https, Tls

__all__ = ["nameservers_of", "plain_nameserver"]

_DNS, _DOT, _DOH = 53, 853, 443
_WITH_PORT = re.compile(r"(?:\[(?P<bracketed>.+)\]|(?P<plain>[^:]+))(?::(?P<port>[0-9]+))?")
_NAMESERVERS = (
    "nameservers must hold addresses such as '127.0.0.1:5353' or '[::1]:53', "
    "'tcp://127.0.0.1:5353', 'tls://10.0.0.2#dns.example', "
    "or 'https://dns.example/dns-query#10.0.0.2'"
)


def nameservers_of(
    given: Iterable[str], clock: Callable[[], float] | None = None
) -> list[dns.nameserver.Nameserver]:
    """What `nameservers=` names.

    - `"127.0.0.1:5353"`, `"10.0.0.2"`, `"[::1]:53"`, `"::1"`: UDP, and TCP for what does not fit.
    - `"tcp://127.0.0.1:5353"`: TCP alone.
    - `"tls://10.0.0.2:853#dns.example"`: DNS over TLS (RFC 7858). The certificate must be for
      what follows `#`, without it for the address.
    - `"https://dns.example/dns-query#10.0.0.2"`: DNS over HTTPS (RFC 8484). What follows `#` is
      the server's address; without it the system's nameservers are asked for it.

    `clock` tells monotonic seconds. Without it an answer over HTTPS that comes byte by byte may
    take longer than its question should: only the silence between two bytes is bounded then.

    Raises ValueError or TypeError, naming `nameservers`; ImportError where HTTPS lacks its extra.
    """
    if not isinstance(given, Iterable):
        raise TypeError(f"{_NAMESERVERS}, not {given!r}")
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise ValueError("nameservers must not be empty; leave it out for the system's own")
    return [_nameserver(text, clock) for text in texts]


def plain_nameserver(text: str) -> dns.nameserver.Do53Nameserver:
    """The one that `"127.0.0.1:5353"`, `"10.0.0.2"`, `"[::1]:53"` or `"::1"` names.

    Raises ValueError for anything else.
    """
    return dns.nameserver.Do53Nameserver(*_address_and_port(text, _DNS))


def _nameserver(text: object, clock: Callable[[], float] | None) -> dns.nameserver.Nameserver:
    if not isinstance(text, str):
        raise TypeError(f"{_NAMESERVERS}, not {text!r}")
    try:
        if text.startswith("tls://"):
            return _tls(text.removeprefix("tls://"))
        if text.startswith("tcp://"):
            return _Tcp(*_address_and_port(text.removeprefix("tcp://"), _DNS))
        if text.startswith("https://"):
            return _https(text, clock)
        return plain_nameserver(text)
    except ValueError:
        raise ValueError(f"{_NAMESERVERS}, not {_shown(text)!r}") from None


def _tls(text: str) -> Tls:
    place, has_name, name = text.partition("#")
    address, port = _address_and_port(place, _DOT)
    return Tls(address, port, checks.host("nameservers", name) if has_name else None)


def _https(text: str, clock: Callable[[], float] | None) -> Https:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError  # urlsplit would drop some of it without a word
    parts = urllib.parse.urlsplit(text)
    if "@" in parts.netloc or not parts.path or parts.netloc.endswith(":"):
        raise ValueError
    host = checks.host("nameservers", parts.hostname or "")
    if "%" in host:
        raise ValueError  # a zone has no place in a URL's host
    port = checks.port("nameservers", _DOH if parts.port is None else parts.port)
    address = str(ipaddress.ip_address(parts.fragment)) if "#" in text else None
    if not dns.query.have_doh:
        raise ImportError(
            "nameservers with https:// need what dnspython wants for it: "
            "pip install 'lbclient[doh]'"
        )
    authority = bracketed(host) + ("" if port == _DOH else f":{port}")
    query = f"?{parts.query}" if parts.query else ""
    return Https(f"https://{authority}", f"{parts.path}{query}", address, clock)


def _address_and_port(text: str, otherwise: int) -> tuple[str, int]:
    parts = _WITH_PORT.fullmatch(text)
    address = text if parts is None else parts["bracketed"] or parts["plain"]
    port = None if parts is None else parts["port"]
    return str(ipaddress.ip_address(address)), checks.port("nameservers", int(port or otherwise))


def _shown(text: str) -> str:
    """Without what may be a secret: userinfo, and the path and query of a URL."""
    scheme, is_url, rest = text.rpartition("://")
    place, hash_, name = rest.rpartition("@")[2].partition("#")
    host = re.split("[/?]", place, maxsplit=1)[0] if is_url else place
    return f"{scheme}{is_url}{host}{'' if host == place else '/...'}{hash_}{name}"


class _Tcp(dns.nameserver.Do53Nameserver):
    """Asked over TCP at once: some servers leave out what does not fit UDP without a word."""

    def __str__(self) -> str:
        return f"tcp://{bracketed(self.address)}:{self.port}"

    def is_always_max_size(self) -> bool:
        """True: then dnspython does not try UDP first."""
        return True

    def answer_nameserver(self) -> str:
        """Tells it from the one that is asked over UDP."""
        return str(self)
