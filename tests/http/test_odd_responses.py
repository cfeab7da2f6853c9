"""Odd responses: both parsers give the same verdict, in whatever pieces the bytes arrive, with
every driver."""

import itertools
import ssl
import sys
import time

import anyio
import httpx
import pytest
import trustme

import lbclient
import lbclient.httpx2
from lbclient.http.connections import http1, parsers
from lbclient.http.connections.http1 import Exchange, RequestHeaders
from tests.http.test_tls import TlsServer
from tests.support.http import Server
from tests.support.odd_responses import KINDS, ODD, PAGE, tables
from tests.support.slow import slow_rows

READ = 64 * 1024
"""What a driver reads at once."""
FEW = 1_000
"""Responses of more bytes are split at some of them only."""
PARSERS = ["httptools", "h11"]
LOOPS = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
FLAVOURS = {"httpx": lbclient, "httpx2": lbclient.httpx2}


@pytest.fixture(params=PARSERS)
def parser(request, monkeypatch):
    """Which parser reads responses, in both flavours."""
    if request.param == "httptools":
        pytest.importorskip("httptools")
    for flavour in FLAVOURS.values():
        name = flavour.Transport.__module__.replace("transport", "connections.parsers")
        monkeypatch.setattr(sys.modules[name], "FAST", request.param == "httptools")
    return request.param


def exchange(odd):
    target = b"a:1" if odd.method == "CONNECT" else b"/"
    headers = RequestHeaders([(b"Host", b"a"), *odd.request])
    made = Exchange(odd.method.encode(), target, headers)
    made.sent = True
    return made


def pieces(data, *cuts):
    """The data, cut at these places, and in the pieces that a driver reads."""
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        for place in range(start, end, READ):
            yield data[place : min(end, place + READ)]


def verdict(odd, data, *, ends=False):
    """The verdict on these pieces, and on the end of the connection after them."""
    made = exchange(odd)
    try:
        for piece in data:
            made.receive(piece)
        if ends:
            made.receive_end(clean=True)
    except httpx.RemoteProtocolError:
        return "refused"
    if made.head is None:
        return "waits"
    head = made.head
    return {
        "head": (
            head.status,
            head.version,
            head.reason,
            [(name, value) for name, _, value in head.headers],
        ),
        "body": b"".join(made.data),
        "complete": made.complete,
        "upgraded": made.upgraded,
        "reused": made.reusable,
    }


def agrees(odd, found):
    """True if this is the verdict of the table."""
    if odd.refused or isinstance(found, str):
        return odd.refused and found == "refused"
    status, _, _, headers = found["head"]
    return (
        status == odd.status
        and set(odd.headers) <= set(headers)
        and found["body"] == odd.body
        and found["complete"] == (not odd.until_end and not odd.upgraded)
        and found["upgraded"] == odd.upgraded
        and found["reused"] == odd.reused
    )


def places(odd):
    """Where to cut it: at every byte, unless it is long."""
    size = len(odd.data + odd.surplus)
    return range(1, size) if size <= FEW else [*range(1, 64), *range(64, size, size // 16)]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict(kind):
    """Each odd response has the verdict of the table, with either parser, whole or byte by byte."""
    for odd in KINDS[kind]:
        data = odd.data + odd.surplus
        whole = verdict(odd, pieces(data))
        assert agrees(odd, whole), (odd.name, whole)
        assert verdict(odd, [data[i : i + 1] for i in range(len(data))]) == whole, odd.name


@pytest.mark.parametrize("kind", KINDS)
def test_both_parsers(kind, monkeypatch):
    """Both parsers find the same status, reason, headers and body."""
    pytest.importorskip("httptools")
    for odd in KINDS[kind]:
        found = []
        for fast in (True, False):
            monkeypatch.setattr(parsers, "FAST", fast)
            found.append(verdict(odd, pieces(odd.data + odd.surplus)))
        assert found[0] == found[1], odd.name


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("kind", KINDS)
def test_in_two_pieces(kind):
    """Wherever a response is split, its verdict is that of the whole."""
    for odd in KINDS[kind]:
        data = odd.data + odd.surplus
        whole = verdict(odd, pieces(data))
        for place in places(odd):
            assert verdict(odd, pieces(data, place)) == whole, (odd.name, place)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("kind", KINDS)
def test_cut_short(kind):
    """A response that the end of the connection cuts short is refused; one that must end so, or was
    complete before, is accepted, and its connection is not used again."""
    for odd in KINDS[kind]:
        data = odd.data + odd.surplus
        head = len(odd.data) - len(odd.body)
        for place in places(odd):
            found = verdict(odd, pieces(data[:place]), ends=True)
            taken = place >= (head if odd.until_end or odd.upgraded else len(odd.data))
            if odd.refused or not taken:
                assert found == "refused", (odd.name, place)
            else:
                body = data[head:place] if odd.until_end or odd.upgraded else odd.body
                assert (found["body"], found["reused"]) == (body, False), (odd.name, place)


def test_the_table_is_long_enough():
    """The table has more than 120 rows, each with its own name."""
    assert len({odd.name for odd in ODD}) == len(ODD) > 120


def test_the_page():
    """docs/responses.md lists each row with its verdict."""
    assert tables() in PAGE.read_text(encoding="utf-8"), "python -m tests.support.odd_responses"


# What an attacker may send, or have sent.


@pytest.mark.usefixtures("parser")
def test_a_head_is_read_in_linear_time():
    """No head takes long to parse, not even one that is full of blanks, with a bare LF."""
    fill = parsers.MAX_HEAD - 100
    for blanks in (b" " * fill, b" \t" * (fill // 2), b"\r\n " * (fill // 3)):
        data = b"HTTP/1.1 200 OK\r\nX-A: b\nX-C:" + blanks + b"x\r\n\r\n"
        assert milliseconds(data) < 50


def milliseconds(data):
    """Milliseconds of this thread's CPU time for this head, the best of three."""
    best = 1e9
    for _ in range(3):
        since = time.thread_time()
        Exchange(b"GET", b"/", RequestHeaders([])).receive(data)
        best = min(best, 1000 * (time.thread_time() - since))
    return best


def receive_often(made, times, data):
    for _ in range(times):
        made.receive(data)


@pytest.mark.usefixtures("parser")
def test_interim_responses_without_end(monkeypatch):
    """Endless interim responses are refused after `MAX_INTERIM` bytes, even if each is valid."""
    monkeypatch.setattr(http1, "MAX_INTERIM", parsers.MAX_HEAD)
    made = Exchange(b"GET", b"/", RequestHeaders([]))
    with pytest.raises(httpx.RemoteProtocolError, match="interim"):
        receive_often(made, 5_000, b"HTTP/1.1 102 Processing\r\n\r\n")
    assert made.received < parsers.MAX_HEAD + 100


@pytest.mark.usefixtures("parser")
def test_extensions_without_end():
    """A body that consists mostly of chunk extensions is refused, even if it has content too."""
    made = Exchange(b"GET", b"/", RequestHeaders([]))
    made.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(httpx.RemoteProtocolError, match="extensions"):
        receive_often(made, 1_000, b"1;" + b"a" * 1_000 + b"\r\nx\r\n")
    assert made.received < 2 * parsers.MAX_HEAD


@pytest.mark.usefixtures("parser")
def test_a_chunk_of_one_byte_is_no_extension():
    """A body of chunks of one byte is accepted, whatever its length, and returned in few pieces."""
    made = Exchange(b"GET", b"/", RequestHeaders([]))
    made.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    receive_often(made, 100, b"1;ext=1\r\nx\r\n" * 1_000)
    assert len(made.data) == 100
    made.receive(b"0\r\n\r\n")
    assert made.complete
    assert b"".join(made.data) == b"x" * 100_000


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Length", b"4"), (b"Content-Length", b"4")],
        [(b"Content-Length", b"0"), (b"content-length", b"4")],
        [(b"Content-Length", b"4"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"4")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"\x0bchunked")],
        [(b"Content-Length", b"+4")],
        [(b"Content-Length", b"4, 4")],
        [(b"Content-Length", b"")],
        [(b"Content-Length", b"9" * 5000)],
        [(b"X-A", b"b\r\nX-C: d")],
        [(b"X-A", b"b\nX-C: d")],
        [(b"X-A", b"b\r")],
        [(b"X-A", b"b\x00")],
        [(b"X-A: b\r\nX-C", b"d")],
        [(b"X-A ", b"b")],
        [(b"X-A:", b"b")],
        [(b"", b"b")],
    ],
)
def test_headers_that_are_not_sent(headers):
    """A request that servers might understand in two ways is the caller's error, and is not
    sent."""
    with pytest.raises(httpx.LocalProtocolError):
        Exchange(b"POST", b"/", RequestHeaders(headers))


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET / HTTP/1.1\r\nHost: b\r\n\r\nGET", b"/"),
        (b"GET / HTTP/1.1\r\nX-A:", b"/"),
        (b"GE T", b"/"),
        (b"", b"/"),
        (b"GET", b""),
        (b"GET", b"/ HTTP/1.1\r\nX-A: b"),
        (b"GET", b"/ HTTP/1.1\r\n\r\nGET /"),
        (b"GET", b"/a b"),
        (b"GET", b"/\x00"),
        (b"GET", b"/\x7f"),
        (b"GET", b"/a\tb"),
    ],
)
def test_request_lines_that_are_not_sent(method, target):
    """Neither method nor target can add a line or a request."""
    with pytest.raises(httpx.LocalProtocolError):
        Exchange(method, target, RequestHeaders([(b"Host", b"a")]))


# Over drivers.


class Service:
    """Answer `/odd/N` with that row, and other paths with their own target; record which connection
    each request used."""

    def __init__(self):
        self.connections = {}

    def __call__(self, connection, request):
        self.connections[request.target] = connection
        if not request.target.startswith("/odd/"):
            connection.answer(200, request.target.encode())
            return
        odd = ODD[int(request.target.removeprefix("/odd/"))]
        connection.send(odd.data + odd.surplus)
        if odd.until_end:
            if isinstance(connection.sock, ssl.SSLSocket):
                connection.sock.unwrap()
            connection.close()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(params=["plain", "tls"])
def instance(request, authority):
    behaviour = Service()
    if request.param == "tls":
        server = TlsServer(behaviour, authority.issue_cert("127.0.0.1"))
    else:
        server = Server(behaviour)
    yield server
    server.stop()


@pytest.fixture
def options(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return {"retry": None, "breaker": None, "verify": context, "timeout": 20.0}


def sample(flavour, instance, parser):
    """An eighth of the rows, so that the eight cases of each driver cover all of them."""
    case = (flavour == "httpx2", isinstance(instance, TlsServer), parser == "h11")
    number = sum(yes << bit for bit, yes in enumerate(case))
    return [
        (place, odd)
        for place, odd in enumerate(ODD)
        if place % 8 == number and odd.method != "CONNECT"
    ]


def check(odd, place, instance, found, after):
    """What the caller got, what the next caller got, over which connections, and what was
    charged."""
    if odd.refused:
        assert type(found).__name__ == "RemoteProtocolError", (odd.name, found)
    else:
        body = b"" if odd.upgraded else odd.body
        assert found == (odd.status, body), (odd.name, found)
    assert after == (200, b"/next/%d" % place), (odd.name, after)
    connections = instance.behaviour.connections
    same = connections[f"/odd/{place}"] is connections[f"/next/{place}"]
    assert same == odd.reused, odd.name
    return odd.refused


def asked(odd):
    return {"headers": [(name.decode(), value.decode()) for name, value in odd.request]}


@pytest.mark.parametrize("flavour", ["httpx", *slow_rows("httpx2")])
def test_over_threads(flavour, instance, options, parser):
    """A client on threads gets the verdict of the table, and the next call gets its own
    response."""
    rows = sample(flavour, instance, parser)
    failures = 0
    with FLAVOURS[flavour].Client([instance.url], **options) as client:
        for place, odd in rows:
            try:
                with client.stream(odd.method, f"/odd/{place}", **asked(odd)) as response:
                    found = response.status_code, b"" if odd.upgraded else response.read()
            except Exception as error:  # noqa: BLE001  # of either flavour
                found = error
            after = client.post(f"/next/{place}")
            after = after.status_code, after.content
            failures += check(odd, place, instance, found, after)
        assert client.balancer.snapshot().instances[0].failures == failures


@pytest.mark.parametrize("flavour", ["httpx", *slow_rows("httpx2")])
@pytest.mark.parametrize("loop", LOOPS)
def test_over_event_loops(loop, flavour, instance, options, parser):
    """A client on an event loop gets the verdict of the table, and the next call its own
    response."""
    rows = sample(flavour, instance, parser)

    async def main():
        failures = 0
        async with FLAVOURS[flavour].AsyncClient([instance.url], **options) as client:
            for place, odd in rows:
                try:
                    async with client.stream(odd.method, f"/odd/{place}", **asked(odd)) as response:
                        body = b"" if odd.upgraded else await response.aread()
                        found = response.status_code, body
                except Exception as error:  # noqa: BLE001  # of either flavour
                    found = error
                after = await client.post(f"/next/{place}")
                after = after.status_code, after.content
                failures += check(odd, place, instance, found, after)
            assert client.balancer.snapshot().instances[0].failures == failures

    backend, backend_options = LOOPS[loop]
    anyio.run(main, backend=backend, backend_options=backend_options)
