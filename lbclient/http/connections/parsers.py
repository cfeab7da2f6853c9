"""The parsers of responses: httptools if it is installed (extra `fast`), otherwise h11.

Both parse only heads that `well_formed` has accepted, so they give the same result for every head.
httptools also decodes chunked bodies. Without httptools, this module decodes them, not h11: between
chunks, h11 accepts blanks, a bare LF and sizes of eighty bits without reporting them.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple, Protocol, cast

import h11

from .._compat import httpx

try:
    import httptools
except ImportError:
    httptools = cast("Any", None)  # the extra is not installed

__all__ = ["FAST", "MAX_HEAD", "Chunks", "Head", "chunks", "parse", "plain_head", "well_formed"]

FAST = httptools is not None and not os.environ.get("LBCLIENT_NO_HTTPTOOLS")
"""True if httptools parses responses. The environment variable switches it off for tests and
comparisons."""

MAX_HEAD = 100 * 1024
"""The maximum number of bytes of a response's head, of one line between chunks, and of the
trailers."""
MAX_LINES = 1_000
"""The maximum number of header lines. Some services send hundreds; thousands would take too long to
parse.
"""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_FIELD = re.compile(rb"(" + _TOKEN + rb"):" + _TEXT + rb"\r\n")
_HEAD = re.compile(
    rb"HTTP/1\.[01] [1-9][0-9][0-9](?: " + _TEXT + rb")?\r\n"
    rb"(?:" + _TOKEN + rb":" + _TEXT + rb"\r\n)*\r\n"
)
_BARE_LF = re.compile(rb"(?<!\r)\n")
# A sequence of blanks is matched only from its beginning: to match from each blank would take
# quadratic time.
_FOLD = re.compile(rb"(?:(?<![ \t])[ \t]+)?(?:\r\n[ \t]+)+")
_SIZE = re.compile(  # the chunk extensions are those that llhttp accepts
    rb"([0-9A-Fa-f]+)(?:;(?!\r)(?:" + _TOKEN + rb")?(?:=(?:" + _TOKEN + rb")?"
    rb'(?:"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*")?)?)*\r\n'
)
_SIZE_END = 2**64


class Head(NamedTuple):
    """The head of a response.

    Each header is a tuple of the name as the server wrote it, the name in lower case, and the
    value. `httpx.Headers` keeps them in the same form.
    """

    status: int
    version: bytes
    reason: bytes
    headers: list[tuple[bytes, bytes, bytes]]


class Chunks(Protocol):
    """Decodes one chunked body."""

    data: list[bytes]
    """The decoded bytes. The reader empties the list."""

    @property
    def ended(self) -> bool:
        """True once the last chunk and the trailers have arrived."""
        ...

    def feed(self, data: bytes) -> bool:
        """Decode these bytes. Returns True if there are bytes after the body. Raises
        RemoteProtocolError."""
        ...


def plain_head(data: bytes) -> int:
    """Return the length of the head at the start of `data`. Returns 0 if the head is incomplete, is
    an interim response, or has an unusual form. In that last case, `well_formed` repairs or rejects
    it."""
    found = _HEAD.match(data)
    if found is None or data[9:10] == b"1":
        return 0
    end = found.end()
    if end > MAX_LINES and (end > MAX_HEAD or data.count(b"\n", 0, end) > MAX_LINES + 2):
        return 0
    return end


def well_formed(head: bytes) -> bytes:
    """Return the head in its usual form: with CRLF after each line, and without folded lines (RFC
    9112, 2.2 and 5.2).

    Raises RemoteProtocolError for a head that two parsers might understand differently.
    """
    if _HEAD.fullmatch(head) is None:
        first, end, rest = _BARE_LF.sub(b"\r\n", head).partition(b"\r\n")
        if rest[:1] not in (b" ", b"\t"):  # it would continue the status line
            rest = _FOLD.sub(b" ", rest)
        head = first + end + rest
        if _HEAD.fullmatch(head) is None:
            raise httpx.RemoteProtocolError("the head of the response is malformed")
    if head.count(b"\n") > MAX_LINES + 2:
        raise httpx.RemoteProtocolError(f"the response has more than {MAX_LINES} header lines")
    return head


class _HeadCallbacks:
    """Receives the headers that httptools finds."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store one header, without the blanks at its end, which httptools does not remove."""
        self.headers.append((name, name.lower(), value.rstrip()))


def _parse_fast(head: bytes) -> Head:
    found = _HeadCallbacks()
    parser = httptools.HttpResponseParser(found)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise _refused("head", error) from error
    return Head(parser.get_status_code(), head[:8], head[13 : head.index(b"\r")], found.headers)


def _parse_h11(head: bytes) -> Head:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise httpx.RemoteProtocolError(
            f"the head of the response is malformed: {error}"
        ) from error
    if not isinstance(event, h11.Response):
        raise httpx.RemoteProtocolError("the head of the response is malformed")
    # The lines are split here, since h11 omits a second Content-Length with the same value.
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:-2])
    headers = [(name, name.lower(), value.strip(b" \t")) for name, _, value in lines]
    return Head(int(head[9:12]), head[:8], bytes(event.reason), headers)


def _refused(what: str, error: Exception) -> httpx.RemoteProtocolError:
    """Return the error for a response that httptools rejects. If a signal handler raised an
    exception while a callback of this module ran, this exception is raised unchanged."""
    if (interruption := error.__context__) is not None:
        raise interruption from None
    return httpx.RemoteProtocolError(f"the {what} of the response is malformed: {error}")


def _check_trailer(line: bytes) -> None:
    """Check one trailer field. Trailers are ignored. But a trailer such as Content-Length, which
    would change where the body ends, is an error (RFC 9110, 6.5.1)."""
    field = _FIELD.fullmatch(line)
    if field is None or field[1].lower() in {b"content-length", b"transfer-encoding"}:
        raise httpx.RemoteProtocolError("the chunks are malformed: invalid trailer")


class _ChunkCallbacks:
    """Receives the chunks that httptools finds."""

    __slots__ = ("data", "end", "on_body")

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.end = 0
        """The number of items of `data` that belong to the body; -1 until the body has ended."""
        self.on_body = self.data.append

    def on_header(self, name: bytes, value: bytes) -> None:
        """Check one trailer field."""
        if self.end < 0:
            _check_trailer(b"%b:%b\r\n" % (name, value))

    def on_message_complete(self) -> None:
        """Record the end of the body. If the bytes after the body look like another response,
        httptools calls this method again."""
        if self.end < 0:
            self.end = len(self.data)


class _FastChunks:
    """Decodes chunks with httptools."""

    __slots__ = ("_found", "_parser", "data")

    def __init__(self) -> None:
        self._found = _ChunkCallbacks()
        self.data = self._found.data
        self._parser = httptools.HttpResponseParser(self._found)
        try:
            self._parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        except httptools.HttpParserError as error:
            raise _refused("body", error) from error  # from a signal handler
        self._found.end = -1  # the body begins

    @property
    def ended(self) -> bool:
        """True once the last chunk and the trailers have arrived."""
        return self._found.end >= 0

    def feed(self, data: bytes) -> bool:
        """Decode these bytes. httptools does not report where a body ended. So the last byte is
        passed to it separately: if the body has ended before the last byte, there are bytes after
        the body."""
        found = self._found
        try:
            self._parser.feed_data(memoryview(data)[:-1])
            if found.end < 0:
                self._parser.feed_data(data[-1:])
                return False
        except httptools.HttpParserError as error:
            if found.end < 0:
                raise _refused("body", error) from error
            _refused("body", error)
        del self.data[found.end :]
        return True


class _PlainChunks:
    """Decodes chunks without httptools, equally strictly."""

    __slots__ = ("_in_trailers", "_left", "_rest", "data", "ended")

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.ended = False
        self._rest = b""
        self._left = 0
        """The number of bytes of the chunk that have not arrived yet, including its CRLF."""
        self._in_trailers = False

    def feed(self, data: bytes) -> bool:
        """Decode these bytes. Returns True if there are bytes after the body."""
        data, at = self._rest + data, 0
        while at < len(data) and not self.ended:
            if self._left > 2:
                part = data[at : at + self._left - 2]
                self.data.append(part)
                self._left -= len(part)
                at += len(part)
            elif self._left:
                if data[at] != b"\n\r"[self._left - 1]:
                    raise httpx.RemoteProtocolError("a chunk is malformed: no CRLF at its end")
                self._left -= 1
                at += 1
            elif (end := data.find(b"\n", at) + 1) > 0:
                self._line(data[at:end])
                at = end
            else:
                break
        self._rest = data[at:]
        return self.ended and at < len(data)

    def _line(self, line: bytes) -> None:
        if self._in_trailers:
            self.ended = line == b"\r\n"
            if not self.ended:
                _check_trailer(line)
            return
        found = _SIZE.fullmatch(line)
        if found is None or (size := int(found[1], 16)) >= _SIZE_END:
            raise httpx.RemoteProtocolError("the chunks are malformed: invalid size")
        self._left = size + 2 if size else 0
        self._in_trailers = not size


def parse(head: bytes) -> Head:
    """Parse a head that `well_formed` has accepted. Raises RemoteProtocolError."""
    read = _parse_fast if FAST else _parse_h11
    if head[9:12] == b"101":  # both parsers stop at 101, so it is parsed as 200
        return read(head[:9] + b"200" + head[12:])._replace(status=101)
    return read(head)


def chunks() -> Chunks:
    """Create a decoder for one chunked body."""
    return _FastChunks() if FAST else _PlainChunks()
