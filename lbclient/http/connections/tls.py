"""TLS without I/O, the same for threads, asyncio and trio.

Not by asyncio's own: that loses what it has decrypted when an error follows, and uvloop's loses the
end of a body while reading is paused. Nor by `SSLSocket`, which cannot tell whether what has
arrived is a response or only a session ticket, without reading it.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Sequence

from .._compat import httpx

__all__ = ["Tls"]

_READ = 64 * 1024
_CONTEXTS: dict[str, threading.Lock] = {}
"""The lock under which connections are made from contexts; made at import, gevent could not replace
it."""


class Tls:
    """The TLS of one connection. Bytes from the peer go in by `decrypt`; what is to be sent to it
    comes out of `encrypt` and `outgoing`."""

    __slots__ = ("_incoming", "_lock", "_outgoing", "clean_end", "ended", "failure", "object")

    def __init__(
        self, context: ssl.SSLContext, server_hostname: str, protocols: Sequence[str] = ()
    ) -> None:
        """`protocols` are offered to the peer (ALPN). Without any, the context is not changed."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with _CONTEXTS.setdefault("lock", threading.Lock()):
            if protocols:
                context.set_alpn_protocols(protocols)
            self.object = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=server_hostname
            )
            if protocols:  # it may be the caller's, who may use it for HTTP/1.1 too
                context.set_alpn_protocols(["http/1.1"])
        self._lock = threading.Lock()
        """After an upgrade one thread may read while another writes; OpenSSL bears no two."""
        self.ended = False
        """True where nothing more will be decrypted."""
        self.clean_end = False
        """True where the peer has announced the end (close_notify)."""
        self.failure: ssl.SSLError | None = None
        """What has ended it, to be raised once everything decrypted before has been read."""

    def shake_hands(self, data: bytes | None) -> bool:
        """Go on with the handshake; True once it is done. None begins it, b"" is the end.

        Raises ConnectError. What is `outgoing` is to be sent in any case.
        """
        if data is not None:
            self._feed(data)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            if data == b"":
                raise httpx.ConnectError("the connection ended in the TLS handshake") from None
            return False
        except ssl.SSLError as error:
            raise httpx.ConnectError(str(error)) from error
        return True

    def outgoing(self) -> bytes:
        """What is to be sent now."""
        if not self._outgoing.pending:
            return b""
        with self._lock:
            return self._outgoing.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """What to send for these bytes. Raises WriteError."""
        try:
            with self._lock:
                self.object.write(data)
                return self._outgoing.read()
        except ssl.SSLError as error:
            raise httpx.WriteError(str(error)) from error

    def decrypt(self, data: bytes | None) -> bytes:
        """What these bytes say; b"" if that is not clear yet, or at the end. None adds nothing to
        what came with the handshake, b"" is the end of the connection."""
        parts: list[bytes] = []
        try:
            with self._lock:
                if data is not None:
                    self._feed(data)
                while self._incoming.pending or self.object.pending() or data == b"":
                    part = self.object.read(_READ)
                    if not part:
                        self.ended = self.clean_end = True
                        break
                    parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.ended = True
            if not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                self.failure = error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def farewell(self) -> bytes:
        """What announces our end of it (close_notify)."""
        with contextlib.suppress(ssl.SSLError, ValueError), self._lock:
            self.object.unwrap()
        return self.outgoing()

    def raise_failure(self) -> None:
        """Raise what has ended it, if that was no orderly end."""
        if self.failure is not None:
            raise httpx.ReadError(str(self.failure)) from self.failure

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
