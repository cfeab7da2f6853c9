"""Randomly damaged responses: both parsers agree on every one.

LBCLIENT_FUZZ is the number of responses for a long run; each such run makes different ones.
"""

import itertools
import os

import h11
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbclient.http.connections import parsers
from tests.http.test_odd_responses import pieces, verdict
from tests.support.odd_responses import ODD

httptools = pytest.importorskip("httptools")

LONG = int(os.environ.get("LBCLIENT_FUZZ", "0"))
TOKENS = [
    *(
        bytes([byte])
        for byte in b"\x00\x01\t\n\x0b\x0c\r\x1b !\"#'(),-./0149:;<=?@AFXZ[\\]_`afgxz{|}~"
    ),
    *(
        b"\x7f",
        b"\x80",
        b"\x85",
        b"\xa0",
        b"\xff",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\r\n ",
        b" \r\n\t",
    ),
    *(b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/1.1 100 X\r\n\r\n", b"HTTP/1.1 204 X", b"304", b"101"),
    *(
        b"Content-Length: 4\r\n",
        b"content-length:0\r\n",
        b"Content-Length: 5",
        b"Transfer-Encoding:",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"chunked", b"gzip, ", b"Connection: close\r\n"),
    *(b"Connection: keep-alive\r\n", b"Connection: upgrade\r\nUpgrade: a\r\n", b"X-A: b\r\n"),
    *(b"0\r\n\r\n", b"4\r\nfine\r\n", b";a=b", b';a="b"', b"0x", b"00000000", b"ffffffffffffffff"),
    *(
        b'\\"',
        b"Trailer: X\r\n",
        b"Proxy-Connection: close\r\n",
        b"Set-Cookie: a=b\r\n",
        b"\x00" * 3,
    ),
]
SHORT = [odd for odd in ODD if len(odd.data) + len(odd.surplus) < 600]
PLACE = st.integers(0, 599)
STEP = st.tuples(st.integers(0, 7), PLACE, PLACE, st.sampled_from(TOKENS))


def damaged(data, steps, other):
    """Some bytes or lines changed, inserted, removed, repeated or exchanged."""
    for kind, place, more, token in steps:
        lines = data.splitlines(keepends=True)
        at = place % (len(data) + 1)
        line, another = (number % max(1, len(lines)) for number in (place, more))
        match kind:
            case 0:
                data = data[:at] + token + data[at + 1 :]
            case 1:
                data = data[:at] + token + data[at:]
            case 2:
                data = data[:at] + data[at + more % 16 + 1 :]
            case 3:
                data = data[:at] + data[at : at + more % 40] + data[at:]
            case 4:
                data = data[:at] + other[more % (len(other) + 1) :]
            case 5:
                data = b"".join([*lines[:line], *lines[line : line + 1], *lines[line:]])
            case 6 if lines:
                lines[line], lines[another] = lines[another], lines[line]
                data = b"".join(lines)
            case 7:
                data = b"".join([*lines[:line], token, *lines[line:]])
    return data


@st.composite
def cases(draw):
    """A damaged response to one of the table's requests, where it is cut, and whether the
    connection ends after it."""
    odd = draw(st.sampled_from(SHORT))
    other = draw(st.sampled_from(SHORT))
    data = damaged(odd.data + odd.surplus, draw(st.lists(STEP, max_size=4)), other.data)
    cuts = sorted({place % (len(data) + 1) for place in draw(st.lists(PLACE, max_size=4))})
    return odd, data, cuts, draw(st.booleans())


@pytest.fixture(scope="module", autouse=True)
def put_back():
    """Examples share one fixture, so `FAST` is set without monkeypatch."""
    fast = parsers.FAST
    yield
    parsers.FAST = fast


def verdicts(odd, data, cuts, ends):
    found = []
    for fast in (True, False):
        parsers.FAST = fast
        found.append(verdict(odd, pieces(data, *cuts), ends=ends))
    return tuple(found)


@settings(max_examples=LONG or 500, derandomize=not LONG, database=None, deadline=None)
@given(cases())
def test_both_parsers_agree(case):
    """Whatever the damage, httptools and h11 give the same verdict, in however many pieces it
    arrives; and if a parser alone accepts the response, it reads the same."""
    odd, data, cuts, ends = case
    found = fast, plain = verdicts(odd, data, cuts, ends)
    assert verdicts(odd, data, [], ends) == found
    assert fast == plain or (not ends and too_early(*found))
    if isinstance(fast, str) or not fast["complete"]:
        return
    read = fast["head"][0], fast["body"]
    for alone in (by_h11(odd, data, ends), by_httptools(odd, data)):
        assert alone in (None, read)


def too_early(fast, plain):
    """True if one parser has rejected the beginning of what is between chunks, and the other needs
    the rest first."""
    other = plain if fast == "refused" else fast
    return "refused" in (fast, plain) and not (other["complete"] or other["upgraded"])


@pytest.mark.parametrize(
    ("before", "after", "alphabet"),
    [
        (b"", b"\r\nx\r\n0\r\n\r\n", b"1ax+-_; \t\r\n\x00"),
        (b"1", b"\r\nx\r\n0\r\n\r\n", b';=a"\\ \t\r\n\x7f\x80'),
        (b"1\r\nx", b"0\r\n\r\n", b"\r\n10 x"),
        (b"1\r\nx\r\n0", b"\r\n", b"\r\n10 x;"),
        (b"1\r\nx\r\n0\r\n", b"\r\n\r\n", b"a: \t\r\n\x0b\x7f\x80\x00"),
        (b"1\r\nx\r\n0\r\na:b\r\n", b"\r\n\r\n", b'a: \t\r\n"'),
    ],
    ids=["size", "extension", "after a chunk", "last chunk", "trailer", "second trailer"],
)
def test_every_short_line(before, after, alphabet):
    """Between chunks, both parsers agree on all strings of up to four unusual characters."""
    for length in range(5):
        for odd in itertools.product(alphabet, repeat=length):
            data = before + bytes(odd) + after
            fast, plain = (decoded(data, fast=fast) for fast in (True, False))
            assert fast == plain or (fast == "refused" and not plain[1]), data


def decoded(data, *, fast):
    """The content, whether it has ended, and whether something follows."""
    parsers.FAST = fast
    decoder = parsers.chunks()
    try:
        surplus = decoder.feed(data)
    except httpx.RemoteProtocolError:
        return "refused"
    return b"".join(decoder.data), decoder.ended, surplus


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b" 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"HTTP/1.1", b"200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"HTTP/1.1 200", b"OK\r\nContent-Length: 0\r\n\r\n"),
        (b"HTTP/1.1 200 OK", b"\r\nContent-Length: 0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nA", b": b\r\nContent-Length: 0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nA:", b"b\r\nContent-Length: 0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length:", b"0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", b"\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b"\r\n\r\n0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", b"\r\n"),
    ],
)
def test_every_short_part_of_a_head(before, after):
    """Within a head, both parsers agree on all strings of up to three unusual characters."""
    for length in range(4):
        for odd in itertools.product(b"0aX: ,;\t\r\n\x00\x0b\x7f\x80", repeat=length):
            data = before + bytes(odd) + after
            fast, plain = verdicts(ODD[0], data, [], ends=True)
            assert fast == plain, data


def by_h11(odd, data, ends):
    """The status and the body that h11 itself reads, as a client that has sent the request."""
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", "a"), *odd.request]
    connection.send(h11.Request(method=odd.method, target="/", headers=headers))
    connection.send(h11.EndOfMessage())
    status, body = None, b""
    try:
        connection.receive_data(data)
        if ends:
            connection.receive_data(b"")
        while True:
            match connection.next_event():
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=part):
                    body += part
                case h11.EndOfMessage():
                    return status, body
                case h11.NEED_DATA | h11.PAUSED | h11.ConnectionClosed():
                    return None
    except h11.RemoteProtocolError:
        return None


@pytest.mark.parametrize(
    ("callbacks", "parse"),
    [
        (parsers._HeadCallbacks, lambda: parsers.parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n")),
        (parsers._ChunkCallbacks, parsers.chunks),
    ],
)
def test_interrupted_callbacks(callbacks, parse, monkeypatch):
    """C4: an exception from a signal in a callback of httptools is raised unchanged."""
    interruption = KeyboardInterrupt()

    def interrupted(*_):
        raise interruption

    monkeypatch.setattr(parsers, "FAST", True)
    monkeypatch.setattr(callbacks, "on_header", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        parse()
    assert caught.value is interruption


class Read:
    """What httptools reports, up to the end of the first final response."""

    def __init__(self):
        self.status, self.body, self.over = 0, b"", False

    def on_headers_complete(self):
        if not self.over:
            self.status = self.parser.get_status_code()

    def on_body(self, part):
        if not self.over:
            self.body += part

    def on_message_complete(self):
        self.over = self.over or not 100 <= self.status < 200


def by_httptools(odd, data):
    """The status and the body that httptools itself reads; it knows of no request."""
    if odd.method != "GET":
        return None
    read = Read()
    read.parser = httptools.HttpResponseParser(read)
    try:
        read.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        if not read.over:
            return None
    return (read.status, read.body) if read.over else None
