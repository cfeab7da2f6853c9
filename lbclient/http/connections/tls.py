"""TLS without I/O, the same for threads, asyncio and trio.

asyncio's TLS is not used, since it loses decrypted bytes if an error follows them. uvloop's TLS is
not used, since it loses the end of a body while reading is paused. `SSLSocket` is not used, since
it must read to find out whether a response or only a session ticket has arrived.
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
"""Contains the lock that is taken while a context wraps a connection. The lock is created when it
is first needed, since gevent cannot replace a lock that was created at import."""


class Tls:
    """The TLS of one connection. `decrypt` takes bytes from the peer. `encrypt` and `outgoing`
    return bytes that must be sent to the peer."""

    __slots__ = ("_incoming", "_lock", "_outgoing", "clean_end", "ended", "failure", "object")

    def __init__(
        self, context: ssl.SSLContext, server_hostname: str, protocols: Sequence[str] = ()
    ) -> None:
        """`protocols` are offered to the peer (ALPN). Without `protocols`, the context is not
        changed."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with _CONTEXTS.setdefault("lock", threading.Lock()):
            if protocols:
                context.set_alpn_protocols(protocols)
            self.object: ssl.SSLObject = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=server_hostname
            )
            if protocols:  # the context may also be used for HTTP/1.1
                context.set_alpn_protocols(["http/1.1"])
        self._lock = threading.Lock()
        """A lock, since one thread may read while another writes after an upgrade. OpenSSL does not
        allow both at once."""
        self.ended: bool = False
        """True if nothing more will be decrypted."""
        self.clean_end: bool = False
        """True if the peer has announced the end (close_notify)."""
        self.failure: ssl.SSLError | None = None
        """The error that ended the TLS connection. It is raised once all data that was decrypted
        before it has been read."""

    def shake_hands(self, data: bytes | None) -> bool:
        """Continue the handshake. Returns True when the handshake is done. The first call passes
        None, and each further call passes bytes that have arrived; b"" means that the connection
        has ended.

        Raises ConnectError. The caller must send the bytes of `outgoing`, even after an error.
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
        """Return the bytes that must be sent now."""
        if not self._outgoing.pending:
            return b""
        with self._lock:
            return self._outgoing.read()

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Return the bytes to send for this data. Raises WriteError."""
        try:
            with self._lock:
                self.object.write(data)
                return self._outgoing.read()
        except ssl.SSLError as error:
            raise httpx.WriteError(str(error)) from error

    def decrypt(self, data: bytes | None) -> bytes:
        """Return decrypted bytes; b"" if there are none yet, or at the end. With `data=None`, only
        the bytes that came with the handshake are decrypted. With `data=b""`, the connection has
        ended."""
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
        """Return the bytes that announce this side's end of the connection (close_notify)."""
        with contextlib.suppress(ssl.SSLError, ValueError), self._lock:
            self.object.unwrap()
        return self.outgoing()

    def raise_failure(self) -> None:
        """Raise the error that ended the TLS connection, unless it ended in an orderly way."""
        if self.failure is not None:
            raise httpx.ReadError(str(self.failure)) from self.failure

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
