"""HTTP/1.1 without I/O: converts a request into bytes, and bytes into its response (RFC 9112).

An `Exchange` is one request and its response on one connection. It decides whether the connection
may carry another request: only if the request was sent to its end, and the response has arrived to
its end with nothing after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .._compat import httpx
from ..shortcuts import Fields
from .parsers import MAX_HEAD, Chunks, Head, chunks, parse, plain_head, well_formed

__all__ = ["MAX_INTERIM", "Exchange", "RequestHeaders", "header_lines", "request_line"]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE = re.compile(_TOKEN + rb" [\x21-\x7e\x80-\xff]+ HTTP/1\.1\r\n")
_LINES = re.compile(rb"(?:" + _TOKEN + rb": [\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")
_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS = b"HTTP/1."
_DIGITS = re.compile(rb"[0-9]{1,20}")
_MAX_LENGTH = 2**64
_EACH = 32
"""Limits the bytes between the chunks of a body (sizes, extensions). The limit is MAX_HEAD, and in
addition this number for each byte of content."""
MAX_INTERIM = 64 * 1024 * 1024
"""The maximum number of bytes of interim responses (1xx). It may be large, since they use no
memory, and the deadline limits their time."""
_SIZES = frozenset({b"content-length", b"transfer-encoding"})
_HOP = _SIZES | {b"connection"}

_NAMES = frozenset({*_HOP, b"upgrade", b"expect"})
_NAME_LENGTHS = frozenset(map(len, _NAMES))

_HEAD, _LENGTH, _CHUNKED, _TO_END, _RAW, _COMPLETE = range(6)


class RequestHeaders:
    """The headers of a request, checked and serialized. Requests with the same headers share this
    object."""

    __slots__ = ("chunked", "expects", "lines", "persistent", "to_send", "upgrade")

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises LocalProtocolError for headers that cannot be sent."""
        self.lines: bytes = header_lines(headers)
        self.persistent: bool = True
        self.chunked: bool = False
        self.expects: bool = False
        self.upgrade: bool = False
        self.to_send: int | None = 0
        sizes = 0
        for name, value in headers:
            if len(name) in _NAME_LENGTHS and (lower := name.lower()) in _NAMES:
                sizes += lower in _SIZES
                self._apply(lower, value)
        if sizes > 1:  # a proxy and the server might use different lengths
            raise httpx.LocalProtocolError(
                "the request has two lengths: send one Content-Length or Transfer-Encoding"
            )

    def _apply(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            if not _DIGITS.fullmatch(value):
                raise httpx.LocalProtocolError(
                    "the request's Content-Length must be a whole number of bytes"
                )
            self.to_send = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise httpx.LocalProtocolError(
                    "the request's Transfer-Encoding must be chunked, the only one that can be sent"
                )
            self.chunked, self.to_send = True, None
        elif name == b"connection":
            self.persistent = b"close" not in value.lower()
        elif name == b"upgrade":
            self.upgrade = True
        else:
            self.expects = value.lower() == b"100-continue"


class Exchange:
    """One request and its response.

    Send `request_head` first. Pass bytes that arrive to `receive`. `head` and `data` contain the
    parts of the response that have arrived, and `complete` is True once the whole response has
    arrived.
    """

    # Defaults are class attributes, not set in `__init__`, since most of them do not change in most
    # requests.
    head: Head | None = None
    """The response's head, once it has arrived. Interim responses are skipped."""
    data: list[bytes]
    """Parts of the response's body that have arrived. The reader empties the list."""
    received: int = 0
    """The number of bytes that have arrived, of any kind."""
    complete: bool = False
    """True once the whole response has arrived."""
    persistent: bool
    """False if the connection must not carry another request after this one."""
    surplus: bool = False
    """True if bytes came after the response."""
    chunked: bool
    """True if the request's body is sent in chunks."""
    to_send: int | None
    """The number of bytes of the request's body that remain to be sent. None for a chunked body,
    until its end has been sent."""
    sent: bool = False
    """True once the whole request has been sent. The sender sets it."""
    expects: bool
    """True until an interim response has arrived, if the request waits for 100 (Continue)."""
    _state = _HEAD
    _buffer = b""
    _begun = False
    """True once something has arrived before the head: a CRLF, or an interim response."""
    _left = 0
    _allowance = MAX_HEAD
    """The number of bytes that may still come between chunks."""
    _interim = 0
    """The number of bytes of interim responses so far."""
    _chunks: Chunks | None = None

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: RequestHeaders,
        more: Sequence[tuple[bytes, bytes]] = (),
        line: bytes | None = None,
    ) -> None:
        """`more` are further headers, which do not affect how the body is sent or whether the
        connection is kept. `line` is the result of `request_line` for method and target. Raises
        LocalProtocolError for a request that cannot be sent."""
        lines = headers.lines[:-2] + header_lines(more) if more else headers.lines
        self.request_head: bytes = (line or request_line(method, target)) + lines
        self.data = []
        self.persistent, self.chunked = headers.persistent, headers.chunked
        self.to_send, self.expects = headers.to_send, headers.expects
        self._method = method
        self._upgrade = headers.upgrade

    @property
    def upgraded(self) -> bool:
        """True if the bytes on the connection are no longer HTTP: after 101, or a successful
        CONNECT."""
        return self._state == _RAW

    @property
    def answered(self) -> bool:
        """True if the rest of the request should not be sent, since a response has arrived that
        rejects the request or does not need the rest."""
        head = self.head
        return head is not None and (head.status >= 300 or self._state >= _RAW)

    @property
    def reusable(self) -> bool:
        """True if the connection may carry another request."""
        return self.complete and self.persistent and self.sent

    @property
    def left(self) -> int | None:
        """The number of bytes of the response's body that have not arrived yet; None if it is
        unknown."""
        if self._state == _COMPLETE:
            return 0
        return self._left if self._state == _LENGTH else None

    @property
    def cheap(self) -> bool:
        """True if received bytes take almost no time to process, however many arrive at once. False
        for a chunked body, since many small chunks take long to decode."""
        return self._state != _CHUNKED

    def body_part(self, part: bytes | memoryview) -> bytes | memoryview:
        """Return a part of the request's body as it must be sent. Raises LocalProtocolError if the
        body is longer than its Content-Length."""
        if self.chunked:
            return b"".join((b"%x\r\n" % len(part), part, b"\r\n")) if part else b""
        assert self.to_send is not None  # noqa: S101  # only chunks have no length
        if len(part) > self.to_send:
            raise httpx.LocalProtocolError("the request's body is longer than its Content-Length")
        self.to_send -= len(part)
        return part

    def body_end(self) -> bytes:
        """Return the bytes that end the request's body. Raises LocalProtocolError if parts of the
        body are missing."""
        if self.chunked:
            self.to_send = 0
            return b"0\r\n\r\n"
        if self.to_send:
            raise httpx.LocalProtocolError("the request's body is shorter than its Content-Length")
        return b""

    def receive(self, data: bytes) -> None:
        """Process bytes that have arrived. Raises RemoteProtocolError."""
        self.received += len(data)
        if self._state == _HEAD and not (data := self._head(data)):
            return
        state = self._state
        if state == _LENGTH:
            self._body_of_length(data)
        elif state == _CHUNKED:
            self._body_in_chunks(data)
        elif state == _COMPLETE:
            self._leave_over()
        else:
            self.data.append(data)

    def receive_end(self, *, clean: bool) -> None:
        """Process the end of the connection. `clean` is False if TLS ended without close_notify.
        Raises RemoteProtocolError if the response is not complete."""
        self.persistent = False
        if self._state == _TO_END and clean:
            self._state, self.complete = _COMPLETE, True
        elif self._state in {_RAW, _COMPLETE}:
            pass
        elif self.head is None:
            raise httpx.RemoteProtocolError(
                "the connection ended in the middle of the response's head"
                if self.received
                else "the connection ended without a response"
            )
        elif self._state == _TO_END:
            raise httpx.RemoteProtocolError(
                "the connection ended without TLS's close_notify, so the body may be cut short"
            )
        else:
            raise httpx.RemoteProtocolError(
                "the connection ended in the middle of the response's body"
                + (f", {self._left} bytes short" if self._state == _LENGTH else "")
            )

    def _head(self, data: bytes) -> bytes:
        """Look for the end of the head, and return the bytes after the head. One CRLF may come
        before the head (RFC 9112, 2.2)."""
        known = len(self._buffer)
        if not known and (length := plain_head(data)):
            self.head = head = parse(data[:length])
            self._frame(head)
            return data[length:]
        data = self._buffer + data if known else data
        if data[:2] == b"\r\n" and not self._begun:
            data, self._begun = data[2:], True
        while self.head is None:
            if not (data.startswith(_STATUS) or _STATUS.startswith(data[:7]) or data == b"\r"):
                raise httpx.RemoteProtocolError("the response begins with neither HTTP/1.1 nor 1.0")
            end = _HEAD_END.search(data, max(0, known - 4))
            if (len(data) if end is None else end.end()) > MAX_HEAD:
                raise httpx.RemoteProtocolError(f"the response's head exceeds {MAX_HEAD} bytes")
            if end is None:
                self._buffer = data
                return b""
            raw, data, known = well_formed(data[: end.end()]), data[end.end() :], 0
            if raw[9:10] == b"1" and raw[9:12] != b"101":
                self.expects, self._begun = False, True
                self._interim += len(raw)
                if self._interim > MAX_INTERIM:
                    raise httpx.RemoteProtocolError(
                        f"more than {MAX_INTERIM} bytes of interim responses"
                    )
            else:
                self._buffer = b""
                self.head = head = parse(raw)
                self._frame(head)
        return data

    def _frame(self, head: Head) -> None:
        """Decide from the head how the body ends (RFC 9112, 6.3), and whether the connection
        persists."""
        status, version, _, headers = head
        length, is_chunked, keep_alive = self._lengths(headers)
        if version == b"HTTP/1.0" and (is_chunked or not keep_alive):
            self.persistent = False
        if status == 101 or (self._method == b"CONNECT" and 200 <= status < 300):
            named = any(name == b"upgrade" for _, name, _ in headers)
            asked = self._upgrade or self._method == b"CONNECT"
            if not asked or (status == 101 and not named):
                raise httpx.RemoteProtocolError("the response is 101, and no upgrade was agreed on")
            self._state, self.persistent = _RAW, False
        elif self._method == b"HEAD" or status in {204, 304} or length == 0:
            self._state, self.complete = _COMPLETE, True
        elif is_chunked:
            self._state, self._chunks = _CHUNKED, chunks()
        elif length is None:
            self._state, self.persistent = _TO_END, False
        else:
            self._state, self._left = _LENGTH, length

    def _lengths(self, headers: Fields) -> tuple[int | None, bool, bool]:
        """Return three values: the Content-Length, whether the body is chunked, and whether the
        connection is kept alive."""
        length: int | None = None
        is_chunked = keep_alive = False
        for _, name, value in headers:
            if name not in _HOP:
                continue
            if name == b"connection":
                keep_alive = keep_alive or b"keep-alive" in value.lower()
                self.persistent = self.persistent and b"close" not in value.lower()
            elif length is not None or is_chunked:
                raise httpx.RemoteProtocolError("the response has two different lengths")
            elif name == b"content-length":
                if _DIGITS.fullmatch(value) is None or (length := int(value)) >= _MAX_LENGTH:
                    raise httpx.RemoteProtocolError("the response's Content-Length is invalid")
            elif value.lower() == b"chunked":
                is_chunked = True
            else:
                raise httpx.RemoteProtocolError("the response's Transfer-Encoding is not chunked")
        return length, is_chunked, keep_alive

    def _leave_over(self) -> None:
        """Record that bytes came after the response. They belong to no request, so the connection
        is not reused."""
        self.surplus, self.persistent = True, False

    def _body_of_length(self, data: bytes) -> None:
        left = self._left - len(data)
        if left < 0:
            self._leave_over()
            data, left = data[: self._left], 0
        self._left = left
        self.data.append(data)
        if not left:
            self._state, self.complete = _COMPLETE, True

    def _body_in_chunks(self, data: bytes) -> None:
        decoder = self._chunks
        assert decoder is not None  # noqa: S101  # made with the state
        surplus, content = decoder.feed(data), b""
        if decoder.data:
            content = b"".join(decoder.data)
            decoder.data.clear()
            self.data.append(content)
        if decoder.ended:
            self._state, self.complete = _COMPLETE, True
        if surplus:
            self._leave_over()
        else:
            self._allow(_EACH * len(content) - len(data))

    def _allow(self, more: int) -> None:
        """Change the number of bytes that may come between chunks by `more`. Raises
        RemoteProtocolError if it falls below zero."""
        self._allowance = min(MAX_HEAD, self._allowance + more)
        if self._allowance < 0:
            raise httpx.RemoteProtocolError(
                "the response's body consists of chunk extensions or trailers"
            )


def request_line(method: bytes, target: bytes) -> bytes:
    """Return the first line of a request. Raises LocalProtocolError if it cannot be sent."""
    line = b"%b %b HTTP/1.1\r\n" % (method, target)
    if _LINE.fullmatch(line) is None:
        raise httpx.LocalProtocolError(f"a request cannot begin with {method!r} {target!r}")
    return line


def header_lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the header lines of a request and the blank line. Raises LocalProtocolError if a
    header cannot be sent."""
    lines = b"\r\n".join([*map(b": ".join, headers), b"\r\n"]) if headers else b"\r\n"
    if _LINES.fullmatch(lines) is None or lines.count(b"\n") != len(headers) + 1:
        raise httpx.LocalProtocolError(_what_is_wrong(headers))
    return lines


def _what_is_wrong(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Describe the header that cannot be sent, without its value, which may be a secret."""
    for name, value in headers:
        if _LINES.fullmatch(b"%b: \r\n\r\n" % name) is None:
            return f"{name!r} is not a valid header name"
        if b"\n" in value or _LINES.fullmatch(b"a: %b\r\n\r\n" % value) is None:
            return f"the value of the header {name.decode('ascii')} has invalid characters"
    return "a header has characters it may not have"
