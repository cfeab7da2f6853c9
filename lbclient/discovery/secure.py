"""DNS over TLS (RFC 7858) and HTTPS (RFC 8484), by dnspython, with what it leaves open settled:
certificates are always verified, for a name or an address; errors hold no secret and no socket."""

from __future__ import annotations

import functools
import re
import ssl
import sys
from collections.abc import Callable
from typing import Any, cast

import dns.exception
import dns.message
import dns.nameserver
import dns.query

from lbclient.discovery.dns import bracketed

__all__ = ["Https", "Tls"]

_LARGEST = 4 * 65_535


class Tls(dns.nameserver.DoTNameserver):
    """DNS over TLS. dnspython checks no name where it is given none; so it is always given one."""

    def __init__(self, address: str, port: int, name: str | None) -> None:
        super().__init__(address, port, name or address.partition("%")[0])
        self._shown = f"tls://{bracketed(address)}:{port}" + (f"#{name}" if name else "")

    def __str__(self) -> str:
        return self._shown

    def answer_nameserver(self) -> str:
        """Tells it from others on the same address."""
        return self._shown


class Https(dns.nameserver.DoHNameserver):
    """DNS over HTTPS. Neither proxies of the environment nor netrc apply, nor are redirects
    followed: dnspython hands its HTTP client a transport of its own."""

    def __init__(
        self, origin: str, path: str, address: str | None, clock: Callable[[], float] | None
    ) -> None:
        super().__init__(origin + path, bootstrap_address=address)
        self._shown = origin + (f"#{address}" if address else "")
        self._clock = clock

    def __str__(self) -> str:
        return self._shown

    def answer_nameserver(self) -> str:
        """Tells it from others with the same URL; it is compared and never shown."""
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
        except Exception as error:  # noqa: BLE001  # the HTTP client's own, which has no room here
            failure = self._failure(_root(error, outer), str(error), context.left())
        raise failure  # out here: its context and frames would hold the sockets open

    def _left(self, timeout: float) -> Callable[[], float]:
        if self._clock is None:
            return lambda: timeout
        clock, until = self._clock, self._clock() + timeout
        return lambda: until - clock()

    def _failure(self, root: BaseException, text: str, left: float) -> Exception:
        """What was the matter, without frames and without secrets."""
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
    """What it all began with, later than `outer`, which our caller may be handling."""
    while (before := error.__cause__ or error.__context__) not in (None, outer):
        error = before
    return error


@functools.cache
def _context_type() -> type[Any]:
    """Made at the first question and not at import: gevent replaces the base classes."""

    class Socket(ssl.SSLSocket):
        """Bounds one question as a whole: an HTTP client bounds each read alone, and no size."""

        _room = _LARGEST

        def settimeout(self, value: float | None, /) -> None:
            """Seconds for the next read or write. Raises TimeoutError where none are left."""
            left = cast("Context", self.context).left()
            if left <= 0:
                raise TimeoutError
            super().settimeout(left if value is None else min(value, left))

        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            """Raises OSError for more than any DNS message is."""
            data = super().recv(buflen, flags)
            self._room -= len(data)
            if self._room < 0:
                raise OSError("more than a DNS message")
            return data

    class Context(ssl.SSLContext):
        """Verifies by the certificates of the system, or of SSL_CERT_FILE and SSL_CERT_DIR."""

        sslsocket_class = Socket
        left: Callable[[], float]

    return Context
