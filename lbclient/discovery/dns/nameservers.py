"""Nameservers as users write them: over UDP and TCP, TLS (RFC 7858) and HTTPS (RFC 8484).

They use dnspython with stricter rules: certificates are always verified, for a name or for an
address. Errors contain no secret, and keep no socket open.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import ssl
import sys
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, cast

import dns.exception
import dns.message
import dns.nameserver
import dns.query

from lbclient._internal import validation
from lbclient._internal.ip_addresses import bracketed

__all__ = ["nameservers_of", "plain_nameserver"]

_LARGEST = 4 * 65_535

_DNS, _DOT, _DOH = 53, 853, 443
_WITH_PORT = re.compile(r"(?:\[(?P<bracketed>.+)\]|(?P<plain>[^:]+))(?::(?P<port>[0-9]+))?")
_NAMESERVERS = (
    "nameservers must contain addresses such as '127.0.0.1:5353' or '[::1]:53', "
    "'tcp://127.0.0.1:5353', 'tls://10.0.0.2#dns.example', "
    "or 'https://dns.example/dns-query#10.0.0.2'"
)


class Tls(dns.nameserver.DoTNameserver):
    """DNS over TLS. dnspython verifies the name in the certificate only if a name is passed, so one
    is always passed."""

    def __init__(self, address: str, port: int, name: str | None) -> None:
        super().__init__(address, port, name or address.partition("%")[0])
        self._shown = f"tls://{bracketed(address)}:{port}" + (f"#{name}" if name else "")

    def __str__(self) -> str:
        return self._shown

    def answer_nameserver(self) -> str:
        """A text that distinguishes this nameserver from others at the same address."""
        return self._shown


class Https(dns.nameserver.DoHNameserver):
    """DNS over HTTPS.

    Proxies and passwords from the environment or from netrc are not used, and redirects are not
    followed, since dnspython passes its own transport to its HTTP client.
    """

    def __init__(
        self, origin: str, path: str, address: str | None, clock: Callable[[], float] | None
    ) -> None:
        super().__init__(origin + path, bootstrap_address=address)
        self._shown = origin + (f"#{address}" if address else "")
        self._clock = clock

    def __str__(self) -> str:
        return self._shown

    def answer_nameserver(self) -> str:
        """A text that distinguishes this nameserver from others with the same URL. It is only
        compared, never shown.
        """
        return f"{self.url}#{self.bootstrap_address}"

    def query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,  # noqa: ARG002  # dnspython's signature
        source_port: int,  # noqa: ARG002
        max_size: bool = False,  # noqa: ARG002, FBT001, FBT002
        one_rr_per_rrset: bool = False,  # noqa: ARG002, FBT001, FBT002
        ignore_trailing: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> dns.message.Message:
        """Ask within `timeout` seconds. Raises dns.exception.Timeout or OSError."""
        context = _context_type()(ssl.PROTOCOL_TLS_CLIENT)
        context.load_default_certs()
        context.left = self._left(timeout)
        outer = sys.exception()
        try:
            return dns.query.https(
                request,
                self.url,
                timeout=timeout,
                bootstrap_address=self.bootstrap_address,
                verify=context,
            )
        except Exception as error:  # noqa: BLE001  # an error of the HTTP client, which callers do not know
            failure = self._failure(_root(error, outer), str(error), context.left())
        raise failure  # outside of `except`: context and frames would keep the sockets open

    def _left(self, timeout: float) -> Callable[[], float]:
        if self._clock is None:
            return lambda: timeout
        clock, until = self._clock, self._clock() + timeout
        return lambda: until - clock()

    def _failure(self, root: BaseException, text: str, left: float) -> Exception:
        """Make an error that says what failed. It refers to no frames and contains no secrets."""
        if told := re.match(r" responded with status code (\d+)", text.removeprefix(self.url)):
            return OSError(f"HTTP status {told[1]}")
        if left <= 0 or isinstance(root, TimeoutError | dns.exception.Timeout):
            return dns.exception.Timeout()  # type: ignore[no-untyped-call]
        if isinstance(root, OSError):
            root.__context__ = None
            return root.with_traceback(None)
        if isinstance(root, dns.exception.DNSException):
            return OSError(str(root) or type(root).__name__)
        name = type(root).__name__
        return OSError("no connection" if name == "ConnectError" else name)


def _root(error: BaseException, outer: BaseException | None) -> BaseException:
    """Return the first error in the chain of contexts. `outer`, an error that the caller may be
    handling, is not part of this chain."""
    while (before := error.__cause__ or error.__context__) not in (None, outer):
        error = before
    return error


@functools.cache
def _context_type() -> type[Any]:
    """Make two classes. They are made at the first question, not at import, since gevent replaces
    their base classes."""

    class Socket(ssl.SSLSocket):
        """A socket that limits the time and the size of a whole question. An HTTP client limits
        only the time of each read."""

        _room = _LARGEST

        def settimeout(self, value: float | None, /) -> None:
            """Set the seconds for the next read or write. Raises TimeoutError if none are left."""
            left = cast("Context", self.context).left()
            if left <= 0:
                raise TimeoutError
            super().settimeout(left if value is None else min(value, left))

        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            """Receive data. Raises OSError if there is more data than a DNS message can have."""
            data = super().recv(buflen, flags)
            self._room -= len(data)
            if self._room < 0:
                raise OSError("the answer is longer than a DNS message can be")
            return data

    class Context(ssl.SSLContext):
        """A TLS context that trusts the certificates of the system, or those of SSL_CERT_FILE and
        SSL_CERT_DIR."""

        sslsocket_class = Socket
        left: Callable[[], float]

    return Context


def nameservers_of(
    given: Iterable[str], clock: Callable[[], float] | None = None
) -> list[dns.nameserver.Nameserver]:
    """Parse the argument `nameservers=`.

    - `"127.0.0.1:5353"`, `"10.0.0.2"`, `"[::1]:53"`, `"::1"`: UDP; TCP for answers that do not fit
      into UDP.
    - `"tcp://127.0.0.1:5353"`: only TCP.
    - `"tls://10.0.0.2:853#dns.example"`: DNS over TLS (RFC 7858). The certificate must be valid for
      the name after `#`, or, without a name, for the address.
    - `"https://dns.example/dns-query#10.0.0.2"`: DNS over HTTPS (RFC 8484). The text after `#` is
      the server's address. Without it, the system's nameservers are asked for the address.

    `clock` returns monotonic seconds. Without `clock`, an answer over HTTPS that arrives byte by
    byte may take longer than `timeout`, since only the time between two bytes is limited.

    Raises ValueError or TypeError, naming `nameservers`. Raises ImportError if the extra for HTTPS
    is not installed.
    """
    if not isinstance(given, Iterable):
        raise TypeError(f"{_NAMESERVERS}, not {given!r}")
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise ValueError("nameservers must not be empty; leave it out to use the system's")
    return [_nameserver(text, clock) for text in texts]


def plain_nameserver(text: str) -> dns.nameserver.Do53Nameserver:
    """Parse `"127.0.0.1:5353"`, `"10.0.0.2"`, `"[::1]:53"` or `"::1"`.

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
    return Tls(address, port, validation.host("nameservers", name) if has_name else None)


def _https(text: str, clock: Callable[[], float] | None) -> Https:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError  # urlsplit would silently drop a part of the text
    parts = urllib.parse.urlsplit(text)
    if "@" in parts.netloc or not parts.path or parts.netloc.endswith(":"):
        raise ValueError
    host = validation.host("nameservers", parts.hostname or "")
    if "%" in host:
        raise ValueError  # the host of a URL cannot have a zone
    port = validation.port("nameservers", _DOH if parts.port is None else parts.port)
    address = str(ipaddress.ip_address(parts.fragment)) if "#" in text else None
    if not dns.query.have_doh:
        raise ImportError(
            "nameservers with https:// need the packages that dnspython uses for HTTPS: "
            "pip install 'lbclient[doh]'"
        )
    authority = bracketed(host) + ("" if port == _DOH else f":{port}")
    query = f"?{parts.query}" if parts.query else ""
    return Https(f"https://{authority}", f"{parts.path}{query}", address, clock)


def _address_and_port(text: str, otherwise: int) -> tuple[str, int]:
    parts = _WITH_PORT.fullmatch(text)
    address = text if parts is None else parts["bracketed"] or parts["plain"]
    port = None if parts is None else parts["port"]
    return str(ipaddress.ip_address(address)), validation.port(
        "nameservers", int(port or otherwise)
    )


def _shown(text: str) -> str:
    """Return the text without parts that may be secret: the userinfo, the path and the query of a
    URL."""
    scheme, is_url, rest = text.rpartition("://")
    place, hash_, name = rest.rpartition("@")[2].partition("#")
    host = re.split("[/?]", place, maxsplit=1)[0] if is_url else place
    return f"{scheme}{is_url}{host}{'' if host == place else '/...'}{hash_}{name}"


class _Tcp(dns.nameserver.Do53Nameserver):
    """A nameserver that is always asked over TCP, since some servers silently leave out records
    over UDP."""

    def __str__(self) -> str:
        return f"tcp://{bracketed(self.address)}:{self.port}"

    def is_always_max_size(self) -> bool:
        """Return True, so that dnspython does not try UDP first."""
        return True

    def answer_nameserver(self) -> str:
        """A text that distinguishes this nameserver from the same server over UDP."""
        return str(self)
