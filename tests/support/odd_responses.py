"""Odd responses of HTTP/1.1, and what is to come of each: the rules of "Strictness" in one table.

The tests feed each to both parsers, whole and in pieces, and to every driver; the page
`docs/responses.md` lists them; `python -m tests.support.odd_responses` makes its tables anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONG = 100 * 1024
"""Bytes that the head, a line between chunks, or the trailers may have."""

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Odd:
    """A response, in plain words and in bytes, and its verdict.

    It is refused, or complete with this status, with these headers among others, with this body.
    `surplus` comes after it. The connection is used again unless `closes`. With `until_end` only
    the end of the connection completes it; `upgraded`, what follows is no HTTP.
    """

    name: str
    data: bytes
    refused: bool = False
    status: int = 200
    body: bytes = b"fine"
    headers: Headers = ()
    surplus: bytes = b""
    closes: bool = False
    until_end: bool = False
    upgraded: bool = False
    method: str = "GET"
    request: Headers = ()

    @property
    def reused(self) -> bool:
        return not (self.refused or self.closes or self.surplus or self.until_end or self.upgraded)

    @property
    def verdict(self) -> str:
        """For the page."""
        if self.refused:
            return "refused"
        if self.upgraded:
            return "taken; what follows is the caller's"
        if self.until_end:
            return "taken; ends with the connection"
        if self.surplus:
            return "taken; the connection is closed, the rest dropped"
        return "taken; the connection is closed" if self.closes else "taken"


def response(
    *lines: bytes, status: bytes = b"HTTP/1.1 200 OK", body: bytes = b"fine", length: bool = True
) -> bytes:
    """A response with these header lines, and unless there is no `length` with a Content-Length."""
    sized = (*lines, b"Content-Length: %d" % len(body)) if length else lines
    return b"\r\n".join([status, *sized, b"", body])


def chunked(body: bytes, *lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """A response whose body is already in chunks."""
    chunked_line = b"Transfer-Encoding: chunked"
    return response(*lines, chunked_line, status=status, body=body, length=False)


def _refused(name: str, data: bytes, **more: object) -> Odd:
    return Odd(name, data, refused=True, **more)


END = b"0\r\n\r\n"
FINE = b"4\r\nfine\r\n" + END
UPGRADE = ((b"Upgrade", b"echo"), (b"Connection", b"Upgrade"))
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"
STRAY_408 = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n"


def _status_lines() -> list[Odd]:
    def line(status: bytes) -> bytes:
        return response(status=status)

    return [
        Odd("no reason phrase", line(b"HTTP/1.1 200 ")),
        Odd("neither a reason phrase nor the blank before it", line(b"HTTP/1.1 200")),
        Odd("a reason phrase of several words", line(b"HTTP/1.1 200 All is well, and more")),
        Odd("a reason phrase with bytes above 127", line(b"HTTP/1.1 200 tr\xe8s bien")),
        Odd("a reason phrase with a tab", line(b"HTTP/1.1 200 very\twell")),
        Odd("a reason phrase that begins and ends with blanks", line(b"HTTP/1.1 200   OK  ")),
        Odd("a reason phrase of 60,000 bytes", line(b"HTTP/1.1 200 " + b"x" * 60_000)),
        Odd("status 299", line(b"HTTP/1.1 299 Odd"), status=299),
        Odd("status 600", line(b"HTTP/1.1 600 Odd"), status=600),
        Odd("status 999", line(b"HTTP/1.1 999 Denied"), status=999),
        Odd("one CRLF before the status line", b"\r\n" + response()),
        Odd("HTTP/1.0 with a length", line(b"HTTP/1.0 200 OK"), closes=True),
        Odd(
            "HTTP/1.0 with `Connection: keep-alive`",
            response(b"Connection: keep-alive", status=b"HTTP/1.0 200 OK"),
        ),
        _refused("two CRLFs before the status line", b"\r\n\r\n" + response()),
        _refused("three CRLFs before the status line", b"\r\n\r\n\r\n" + response()),
        _refused("a bare LF before the status line", b"\n" + response()),
        _refused("a bare CR before the status line", b"\r" + response()),
        _refused("a blank before the status line", b" " + response()),
        _refused("a NUL before the status line", b"\x00" + response()),
        _refused("a byte order mark before the status line", b"\xef\xbb\xbf" + response()),
        _refused("status 099", line(b"HTTP/1.1 099 Odd")),
        _refused("status 000", line(b"HTTP/1.1 000 Odd")),
        _refused("status 1000", line(b"HTTP/1.1 1000 Odd")),
        _refused("a status of two digits", line(b"HTTP/1.1 20 OK")),
        _refused("no status", line(b"HTTP/1.1 OK")),
        _refused("a status with a sign", line(b"HTTP/1.1 +200 OK")),
        _refused("a status with a letter", line(b"HTTP/1.1 20O OK")),
        _refused("a negative status", line(b"HTTP/1.1 -200 OK")),
        _refused("two blanks before the status", line(b"HTTP/1.1  200 OK")),
        _refused("a tab before the status", line(b"HTTP/1.1\t200 OK")),
        _refused("a tab after the status", line(b"HTTP/1.1 200\tOK")),
        _refused("HTTP/2.0", line(b"HTTP/2.0 200 OK")),
        _refused("HTTP/2", line(b"HTTP/2 200 OK")),
        _refused("HTTP/0.9", line(b"HTTP/0.9 200 OK")),
        _refused("HTTP/1.2", line(b"HTTP/1.2 200 OK")),
        _refused("HTTP/1.10", line(b"HTTP/1.10 200 OK")),
        _refused("HTTP/1", line(b"HTTP/1 200 OK")),
        _refused("HTTP/01.1", line(b"HTTP/01.1 200 OK")),
        _refused("a lowercase http/1.1", line(b"http/1.1 200 OK")),
        _refused("another protocol", line(b"ICY 200 OK")),
        _refused("a body without any head", b"fine" * 10),
        _refused("a request", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        _refused("a TLS alert", b"\x15\x03\x01\x00\x02\x02\x16"),
        _refused("a reason phrase with a NUL", line(b"HTTP/1.1 200 O\x00K")),
        _refused("a reason phrase with a bare CR", line(b"HTTP/1.1 200 O\rK")),
        _refused("a reason phrase with an escape character", line(b"HTTP/1.1 200 \x1b[31mOK")),
        _refused("a reason phrase with a DEL", line(b"HTTP/1.1 200 O\x7fK")),
    ]


def _header_lines() -> list[Odd]:
    many = [b"X-%d: v" % number for number in range(1000)]
    return [
        Odd("a value that is empty", response(b"Server:"), headers=[(b"Server", b"")]),
        Odd("a value of blanks", response(b"Server:  \t "), headers=[(b"Server", b"")]),
        Odd("no blank after the colon", response(b"X-A:b"), headers=[(b"X-A", b"b")]),
        Odd(
            "blanks and tabs around a value",
            response(b"X-A: \t b c \t"),
            headers=[(b"X-A", b"b c")],
        ),
        Odd("a value with colons", response(b"X-A: b:c: d"), headers=[(b"X-A", b"b:c: d")]),
        Odd(
            "a value with bytes above 127",
            response(b"X-A: caf\xe9 \xff"),
            headers=[(b"X-A", b"caf\xe9 \xff")],
        ),
        Odd("a value with a tab", response(b"X-A: b\tc"), headers=[(b"X-A", b"b\tc")]),
        Odd(
            "a name with every character that it may have",
            response(b"!#$%&'*+-.^_`|~09AZaz: b"),
            headers=[(b"!#$%&'*+-.^_`|~09AZaz", b"b")],
        ),
        Odd(
            "the same name twice",
            response(b"Set-Cookie: a=1", b"set-cookie: b=2"),
            headers=[(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2")],
        ),
        Odd(
            "a folded value: joined by one space",
            response(b"X-A: b\r\n c"),
            headers=[(b"X-A", b"b c")],
        ),
        Odd(
            "a value folded twice, with tabs and blanks",
            response(b"X-A: b \t\r\n\t  c\r\n\td"),
            headers=[(b"X-A", b"b c d")],
        ),
        Odd(
            "a value that begins in the second line",
            response(b"X-A:\r\n b"),
            headers=[(b"X-A", b"b")],
        ),
        Odd("a folded line of blanks", response(b"X-A: b\r\n \t"), headers=[(b"X-A", b"b")]),
        Odd("a folded Content-Length", response(b"Content-Length:\r\n 4", length=False)),
        Odd(
            "a folded Transfer-Encoding",
            response(b"Transfer-Encoding:\r\n\tchunked", body=FINE, length=False),
        ),
        Odd("bare LF at the end of the status line", response().replace(b"\r\n", b"\n", 1)),
        Odd(
            "bare LF at the end of a header line",
            response(b"X-A: b", b"X-C: d").replace(b"b\r\n", b"b\n"),
            headers=[(b"X-A", b"b"), (b"X-C", b"d")],
        ),
        Odd("a bare LF as the blank line", response().replace(b"\r\n\r\n", b"\r\n\n")),
        Odd("bare LF throughout the head", response(b"X-A: b").replace(b"\r\n", b"\n")),
        Odd(
            "bare LF and a folded value",
            response(b"X-A: b\n c").replace(b"\r\n", b"\n"),
            headers=[(b"X-A", b"b c")],
        ),
        Odd("300 header lines", response(*many[:300]), headers=[(b"X-299", b"v")]),
        Odd("1,000 header lines", response(*many[:999]), headers=[(b"X-998", b"v")]),
        Odd(
            "a header line of 60,000 bytes",
            response(b"X-A: " + b"x" * 60_000),
            headers=[(b"X-A", b"x" * 60_000)],
        ),
        Odd("`Connection: close`", response(b"Connection: close"), closes=True),
        Odd("`Connection: CLOSE, X-A`", response(b"Connection: CLOSE, X-A"), closes=True),
        Odd(
            "`Connection: close` after `Connection: keep-alive`",
            response(b"Connection: keep-alive", b"Connection: close"),
            closes=True,
        ),
        _refused("more than 1,000 header lines", response(*many)),
        _refused("a head of more than 100 KiB", response(b"X-A: " + b"x" * LONG)),
        _refused("a head that has no end", b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * LONG),
        _refused("a space before the colon", response(b"X-A : b")),
        _refused("a tab before the colon", response(b"X-A\t: b")),
        _refused("a space before the colon of Content-Length", response(b"Content-Length : 9")),
        _refused("a space in a name", response(b"X A: b")),
        _refused("an empty name", response(b": b")),
        _refused("a line without a colon", response(b"X-A")),
        _refused("a name with a NUL", response(b"X\x00A: b")),
        _refused("a name with a byte above 127", response(b"X-\xe9: b")),
        _refused("a name in quotes", response(b'"X-A": b')),
        _refused("a name with a slash", response(b"X/A: b")),
        _refused("a value with a NUL", response(b"X-A: b\x00c")),
        _refused("a value with a bare CR", response(b"X-A: b\rX-C: d")),
        _refused("a value that ends with two CRs", response(b"X-A: b\r")),
        _refused("a value with an escape character", response(b"X-A: \x1b[2J")),
        _refused("a value with a vertical tab", response(b"X-A: b\x0bc")),
        _refused("a value with a form feed", response(b"X-A: b\x0cc")),
        _refused("a value with a DEL", response(b"X-A: b\x7f")),
        _refused(
            "a bare CR as the blank line", response().replace(b"\r\n\r\n", b"\r\n\r") + b"\r\n\r\n"
        ),
        _refused("a first header line that is folded", response(b" X-A: b")),
        _refused("a folded value with a NUL", response(b"X-A: b\r\n \x00")),
    ]


def _lengths() -> list[Odd]:
    def sized(*values: bytes, **more: bytes) -> bytes:
        lines = [b"Content-Length: " + value for value in values]
        return response(*lines, length=False, **more)

    def encoded(*values: bytes) -> bytes:
        lines = [b"Transfer-Encoding: " + value for value in values]
        return response(*lines, length=False, body=FINE)

    return [
        Odd("a length of 0", response(body=b""), body=b""),
        Odd("a length with leading zeros", sized(b"0004")),
        Odd("`content-length` in lower case", response(b"content-length: 4", length=False)),
        Odd("a body that ends with the connection", sized(), until_end=True),
        Odd(
            "the same in HTTP/1.0",
            response(length=False, status=b"HTTP/1.0 200 OK"),
            until_end=True,
        ),
        Odd(
            "the same in HTTP/1.0 with `Connection: keep-alive`",
            response(b"Connection: keep-alive", length=False, status=b"HTTP/1.0 200 OK"),
            until_end=True,
        ),
        Odd(
            "a body of every byte there is",
            response(body=bytes(range(256))),
            body=bytes(range(256)),
        ),
        Odd("a body that looks like a response", response(body=response()), body=response()),
        _refused("Content-Length and Transfer-Encoding", chunked(FINE, b"Content-Length: 4")),
        _refused(
            "Transfer-Encoding and Content-Length",
            response(b"Transfer-Encoding: chunked", body=FINE),
        ),
        _refused("two lengths that differ", sized(b"4", b"5")),
        _refused("two lengths that are equal", sized(b"4", b"4")),
        _refused("two equal lengths in one line", sized(b"4, 4")),
        _refused("two lengths in one line that differ", sized(b"4, 5")),
        _refused("an empty length", sized(b"")),
        _refused("a negative length", sized(b"-4")),
        _refused("a length with a plus sign", sized(b"+4")),
        _refused("a length in hexadecimal", sized(b"0x4")),
        _refused("a length with a fraction", sized(b"4.0")),
        _refused("a length with a blank inside", sized(b"1 0")),
        _refused("a length with an underscore", sized(b"1_0")),
        _refused("a length in digits of another script", sized("٤".encode())),
        _refused("a length of 2^64", sized(b"%d" % 2**64)),
        _refused("a length of 5,000 digits", sized(b"9" * 5000)),
        _refused("a length of 25 digits, most of them zeros", sized(b"4".rjust(25, b"0"))),
        _refused("`Transfer-Encoding: gzip, chunked`", encoded(b"gzip, chunked")),
        _refused("`Transfer-Encoding: chunked, gzip`", encoded(b"chunked, gzip")),
        _refused("`Transfer-Encoding: chunked, chunked`", encoded(b"chunked, chunked")),
        _refused("`Transfer-Encoding: chunked` twice", encoded(b"chunked", b"chunked")),
        _refused("`Transfer-Encoding: identity`", encoded(b"identity")),
        _refused("`Transfer-Encoding: xchunked`", encoded(b"xchunked")),
        _refused("`Transfer-Encoding: chunked;a=b`", encoded(b"chunked;a=b")),
        _refused('`Transfer-Encoding: "chunked"`', encoded(b'"chunked"')),
        _refused("an empty Transfer-Encoding", encoded(b"")),
        _refused("a vertical tab before `chunked`", encoded(b"\x0bchunked")),
    ]


def _chunks() -> list[Odd]:
    def sized(size: bytes) -> bytes:
        return chunked(size + b"\r\nfine\r\n" + END)

    def trailed(*lines: bytes) -> bytes:
        return chunked(b"4\r\nfine\r\n0\r\n" + b"\r\n".join([*lines, b"", b""]))

    ten = b"A\r\n0123456789\r\n" + END
    return [
        Odd("no chunk but the last", chunked(END), body=b""),
        Odd("many chunks", chunked(b"1\r\nf\r\n1\r\ni\r\n2\r\nne\r\n" + END)),
        Odd("a size in upper case", chunked(ten), body=b"0123456789"),
        Odd("a size in lower case", chunked(ten.lower()), body=b"0123456789"),
        Odd("a size with leading zeros", sized(b"0004")),
        Odd("a last chunk of several zeros", chunked(b"4\r\nfine\r\n000\r\n\r\n")),
        Odd("`Transfer-Encoding: Chunked`", chunked(FINE).replace(b"chunked", b"Chunked")),
        Odd("chunks in HTTP/1.0", chunked(FINE, status=b"HTTP/1.0 200 OK"), closes=True),
        Odd(
            "chunks in HTTP/1.0 with `Connection: keep-alive`",
            chunked(FINE, b"Connection: keep-alive", status=b"HTTP/1.0 200 OK"),
            closes=True,
        ),
        Odd(
            "a chunk whose content looks like chunks",
            chunked(b"5\r\n0\r\n\r\n\r\n" + END),
            body=END,
        ),
        Odd("a chunk extension", sized(b"4;a=b")),
        Odd("a chunk extension without a value", sized(b"4;a")),
        Odd("a chunk extension in quotes", sized(b'4;a="b; \\" c"')),
        Odd("a chunk extension without a name", sized(b"4;=b;;c")),
        Odd("several chunk extensions", sized(b"4;a=b;c;d=e")),
        Odd("an extension of the last chunk", chunked(b"4\r\nfine\r\n0;a=b\r\n\r\n")),
        Odd("a trailer", trailed(b"X-A: b")),
        Odd("several trailers", trailed(b"X-A: b", b"X-C:", b"x-a:\td")),
        Odd("a trailer of 60,000 bytes", trailed(b"X-A: " + b"x" * 60_000)),
        _refused("a size with a plus sign", sized(b"+4")),
        _refused("a size with a minus sign", sized(b"-4")),
        _refused("a size with 0x", sized(b"0x4")),
        _refused("a blank before a size", sized(b" 4")),
        _refused("a blank after a size", sized(b"4 ")),
        _refused("a tab after a size", sized(b"4\t")),
        _refused("a blank inside a size", sized(b"0 4")),
        _refused("a semicolon without an extension", sized(b"4;")),
        _refused("a blank before an extension", sized(b"4 ;a=b")),
        _refused("a blank after the semicolon", sized(b"4; a=b")),
        _refused("an underscore inside a size", sized(b"0_4")),
        _refused("no size", sized(b"")),
        _refused("a size that is no number", sized(b"four")),
        _refused("an extension without a size", sized(b";a=b")),
        _refused("a size of 2^64", sized(b"10000000000000000")),
        _refused("a size of 2^64 + 4", sized(b"10000000000000004")),
        _refused("a size of 5,000 digits", sized(b"f" * 5000)),
        _refused("a size with a NUL", sized(b"4\x00")),
        _refused("a size with a bare CR", sized(b"4\r")),
        _refused("a bare LF after a size", sized(b"4").replace(b"4\r\n", b"4\n")),
        _refused("a bare LF after a chunk", sized(b"4").replace(b"fine\r\n", b"fine\n")),
        _refused("a bare LF after the last chunk", chunked(b"4\r\nfine\r\n0\n\r\n")),
        _refused("a bare LF as the last line", chunked(b"4\r\nfine\r\n0\r\n\n")),
        _refused("a bare LF in an extension", sized(b"4;a\n")),
        _refused("a bare CR in an extension", sized(b"4;a\rb")),
        _refused("a NUL in an extension", sized(b"4;a=\x00")),
        _refused("an extension whose quotes do not end", sized(b'4;a="b')),
        _refused("a chunk that is longer than its size", sized(b"3")),
        _refused("a chunk that is shorter than its size", sized(b"5")),
        _refused("no CRLF after a chunk", chunked(b"4\r\nfine" + END)),
        _refused("a line between chunks of more than 100 KiB", sized(b"4;" + b"a" * (LONG + 1000))),
        _refused("trailers of more than 100 KiB", trailed(*[b"X-A: " + b"x" * 1000] * 400)),
        _refused("a trailer without a colon", trailed(b"X-A")),
        _refused("a trailer with a space before the colon", trailed(b"X-A : b")),
        _refused("a trailer with a NUL", trailed(b"X-A: \x00")),
        _refused("a trailer with a bare CR", trailed(b"X-A: b\rc")),
        _refused("a trailer with a bare LF", trailed(b"X-A: b\nX-C: d")),
        _refused("a folded trailer", trailed(b"X-A: b\r\n c")),
        _refused("a Content-Length among the trailers", trailed(b"Content-Length: 4")),
        _refused("a Transfer-Encoding among the trailers", trailed(b"Transfer-Encoding: chunked")),
    ]


def _interim() -> list[Odd]:
    def interim(status: bytes, *lines: bytes) -> bytes:
        return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""])

    go_on = interim(b"100 Continue")
    return [
        Odd("100 (Continue) that nobody asked for", go_on + response()),
        Odd("ten times 100 (Continue)", go_on * 10 + response()),
        Odd("102 (Processing)", interim(b"102 Processing") + response()),
        Odd(
            "103 (Early Hints)",
            interim(b"103 Early Hints", b"Link: </a>") + response(),
        ),
        Odd("status 199", interim(b"199 Odd") + response()),
        Odd("100 (Continue) without a reason phrase", interim(b"100") + response()),
        Odd("an interim response of HTTP/1.0", b"HTTP/1.0 100 OK\r\n\r\n" + response()),
        Odd("an interim response with bare LF", b"HTTP/1.1 100 OK\n\n" + response()),
        Odd(
            "an interim response with `Connection: close`, which is ignored",
            interim(b"100 Continue", b"Connection: close") + response(),
        ),
        Odd(
            "an interim response with a Content-Length of 0, which is ignored",
            interim(b"103 Early Hints", b"Content-Length: 0") + response(),
        ),
        Odd("one CRLF before an interim response", b"\r\n" + go_on + response()),
        Odd(
            "103 before a response to HEAD",
            interim(b"103 X") + response(body=b""),
            body=b"",
            method="HEAD",
        ),
        _refused(
            "an interim response with a body",
            interim(b"103 Early Hints", b"Content-Length: 4") + b"fine" + response(),
        ),
        _refused("a CRLF after an interim response", go_on + b"\r\n" + response()),
        _refused(
            "an interim response that is malformed", interim(b"100 X", b"X A: b") + response()
        ),
        _refused("a malformed response after an interim one", go_on + b"HTTP/2.0 200 OK\r\n\r\n"),
        Odd("interim responses of more than 100 KiB", go_on * 5000 + response()),
    ]


def _no_body() -> list[Odd]:
    def head(name: str, data: bytes, **more: object) -> Odd:
        return Odd(name, data, method="HEAD", body=b"", **more)

    def without(name: str, status: bytes, *lines: bytes, surplus: bytes = b"") -> Odd:
        data = response(*lines, status=b"HTTP/1.1 " + status, body=b"", length=False)
        return Odd(name, data, status=int(status[:3]), body=b"", surplus=surplus)

    chunked_line = b"Transfer-Encoding: chunked"
    return [
        head("HEAD: a length, and no body", response(b"Content-Length: 4", body=b"", length=False)),
        head(
            "HEAD: a length of 2^63",
            response(b"Content-Length: %d" % 2**63, body=b"", length=False),
        ),
        head("HEAD: chunked, and no body", chunked(b"")),
        head("HEAD: no length", response(body=b"", length=False)),
        head(
            "HEAD: a body", response(b"Content-Length: 4", body=b"", length=False), surplus=b"fine"
        ),
        head("HEAD: a body in chunks", chunked(b""), surplus=FINE),
        without("204 without a length", b"204 No Content"),
        without("204 with a length", b"204 No Content", b"Content-Length: 4"),
        without("204 that says it is chunked", b"204 No Content", chunked_line),
        without("204 with a body", b"204 No Content", b"Content-Length: 4", surplus=b"fine"),
        without("204 with a body in chunks", b"204 No Content", chunked_line, surplus=FINE),
        without("304 without a length", b"304 Not Modified"),
        without("304 with a length", b"304 Not Modified", b"Content-Length: 400"),
        without("304 with a body", b"304 Not Modified", b"Content-Length: 4", surplus=b"fine"),
        without("205 with a length of 0", b"205 Reset Content", b"Content-Length: 0"),
        Odd("205 with a body", response(status=b"HTTP/1.1 205 Reset Content"), status=205),
        _refused(
            "HEAD: two lengths",
            response(b"Content-Length: 4", b"Content-Length: 5", body=b"", length=False),
            method="HEAD",
        ),
        _refused(
            "204 with a length and a Transfer-Encoding",
            chunked(b"", b"Content-Length: 4", status=b"HTTP/1.1 204 No Content"),
        ),
    ]


def _surplus() -> list[Odd]:
    def after(name: str, surplus: bytes, data: bytes = response()) -> Odd:
        return Odd(name, data, surplus=surplus)

    return [
        after("one byte", b"x"),
        after("a CRLF", b"\r\n"),
        after("a CR", b"\r"),
        after("a bare LF", b"\n"),
        after("a NUL", b"\x00"),
        after("a second response", response(body=b"evil")),
        after("half a head", b"HTTP/1.1 500 Oops\r\nX-A: "),
        after("a stray 408", STRAY_408 + b"\r\n"),
        after("a stray 408 with `Connection: close`", STRAY_408 + b"Connection: close\r\n\r\n"),
        after("more than the length says", b"EXTRA"),
        after("64 KiB", b"x" * 65536),
        Odd("a body where the length is 0", response(body=b""), body=b"", surplus=b"fine"),
        after("after chunks: one byte", b"x", chunked(FINE)),
        after("after chunks: a CRLF", b"\r\n", chunked(FINE)),
        after("after chunks: another last chunk", END, chunked(FINE)),
        after("after chunks: a second response", response(body=b"evil"), chunked(FINE)),
        after("after chunks: half a head", b"HTTP/1.1 200 OK\r\n", chunked(FINE)),
        after("after chunks: a malformed head", b"HTTP/1.1 2\x00", chunked(FINE)),
        after("after trailers", b"x", chunked(b"4\r\nfine\r\n0\r\nX-A: b\r\n\r\n")),
        Odd(
            "after `Connection: close`",
            response(b"Connection: close"),
            surplus=b"EXTRA",
            closes=True,
        ),
        after("an interim response after the response", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ]


def _upgrades() -> list[Odd]:
    def upgraded(name: str, data: bytes, **more: object) -> Odd:
        return Odd(name, data, upgraded=True, **more)

    return [
        upgraded("101 that was asked for", SWITCHED, status=101, body=b"", request=UPGRADE),
        upgraded(
            "101 and the first bytes of the other protocol",
            SWITCHED + b"hello",
            status=101,
            body=b"hello",
            request=UPGRADE,
        ),
        upgraded(
            "101 after 100 (Continue)",
            b"HTTP/1.1 100 Continue\r\n\r\n" + SWITCHED + b"hello",
            status=101,
            body=b"hello",
            request=UPGRADE,
        ),
        upgraded("CONNECT: 200", response(length=False, body=b""), body=b"", method="CONNECT"),
        upgraded(
            "CONNECT: 200 with a length, which is ignored",
            response(body=b"hello"),
            body=b"hello",
            method="CONNECT",
        ),
        Odd("CONNECT: 407", response(status=b"HTTP/1.1 407 X"), status=407, method="CONNECT"),
        Odd("an upgrade that is not taken: 200", response(), request=UPGRADE),
        Odd(
            "200 with Upgrade, which nobody asked for",
            response(b"Upgrade: h2c", b"Connection: Upgrade"),
        ),
        Odd(
            "426 with Upgrade",
            response(
                b"Upgrade: echo", b"Connection: Upgrade", status=b"HTTP/1.1 426 Upgrade Required"
            ),
            status=426,
            request=UPGRADE,
        ),
        upgraded(
            "101 without `Connection: Upgrade`",
            SWITCHED.replace(b"Connection: Upgrade\r\n", b""),
            status=101,
            body=b"",
            request=UPGRADE,
        ),
        _refused(
            "101 without Upgrade", SWITCHED.replace(b"Upgrade: echo\r\n", b""), request=UPGRADE
        ),
        _refused("101 that nobody asked for", SWITCHED + b"hello"),
        _refused("101 to a HEAD that asked for nothing", SWITCHED, method="HEAD"),
    ]


KINDS = {
    "Status lines": _status_lines(),
    "Header lines": _header_lines(),
    "Lengths": _lengths(),
    "Chunks": _chunks(),
    "Interim responses": _interim(),
    "Responses without a body": _no_body(),
    "Bytes after a response": _surplus(),
    "Upgrades": _upgrades(),
}
ODD = list(itertools.chain.from_iterable(KINDS.values()))


PAGE = Path(__file__).parents[2] / "docs" / "responses.md"
FIRST, LAST = f"## {next(iter(KINDS))}", "## Limits"
"""What the tables begin with, and what comes after them."""


def tables() -> str:
    """The tables of the page."""
    parts = []
    for kind, rows in KINDS.items():
        lines = [f"| {row.name} | {row.verdict} |" for row in rows]
        parts.append(
            "\n".join([f"## {kind}", "", "| response | verdict |", "|---|---|", *lines, ""])
        )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":  # python -m tests.support.odd_responses
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(FIRST)[0], text.partition(LAST)[2]
    PAGE.write_text(f"{before}{tables()}{LAST}{after}", encoding="utf-8")
