"""Bodies arrive whole or raise an error, in both directions. What can be sent again is sent again,
and nothing else."""

import gzip
import io
import os
import tempfile
import zlib

import anyio
import httpx
import pytest
import trio

import lbclient
from tests.http.test_features import (
    BIG,
    First,
    World,
    all_requests,
    busy_connections,
    urls,
    worlds,
)
from tests.support.http import (
    dies_in_body,
    hangs_up,
    head,
    in_turn,
    refused_port,
    resets,
    says,
    slow,
)


def echoes(connection, request):
    """Send back the body of the request."""
    connection.answer(200, request.body)


def failures(client):
    return [one.failures for one in client.balancer.snapshot().instances]


class Pipe:
    """A source that can be read once, such as a socket or a subprocess's output."""

    def __init__(self, data):
        self.inner = io.BytesIO(data)

    def read(self, size=-1):
        return self.inner.read(size)

    def __iter__(self):
        return iter(self.inner)


class Tty(Pipe):
    """A source that says that it cannot seek."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation

    tell = seek


@pytest.fixture
def file():
    """An open file of 200,000 bytes."""
    with tempfile.TemporaryFile() as made:
        made.write(BIG[:200_000])
        made.seek(0)
        yield made


# Uploads


@worlds
@pytest.mark.parametrize("first", [None, resets], ids=["first try", "after a reset"])
@pytest.mark.parametrize(
    ("body", "arrives"),
    [
        ({"content": b"bytes"}, b"bytes"),
        ({"content": "Zürich"}, "Zürich".encode()),
        ({"json": {"a": [1, None]}}, b'{"a":[1,null]}'),
        ({"data": {"a": "1 2", "b": ["x", "y"]}}, b"a=1+2&b=x&b=y"),
        ({"content": b""}, b""),
        ({"content": BIG}, BIG),
    ],
    ids=["bytes", "str", "json", "form", "empty", "5 MB"],
)
def test_bytes_arrive_and_are_replayed(servers, world, body, arrives, first):
    """Bodies of bytes arrive intact, at the first attempt and at a retry."""
    pair = servers(first or echoes, echoes)
    with world.client(urls(pair), strategy=First()) as client:
        assert client.put("/", **body).content == arrives
    assert [request.body for request in all_requests(*pair)] == [arrives] * (2 if first else 1)


@worlds
def test_a_generator_arrives(servers, world):
    """A generator's chunks arrive intact, small ones and 5 MB."""
    (server,) = servers(echoes)
    chunks = [b"a", b"", b"bc", BIG]
    with world.client([server.url]) as client:
        assert client.post("/", content=world.body(chunks)).content == b"".join(chunks)


@worlds
@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (resets, httpx.ReadError),
        (hangs_up, httpx.RemoteProtocolError),
        (says(503), httpx.Response),
    ],
    ids=["reset", "hung up", "503"],
)
def test_a_generator_is_never_replayed(servers, world, behaviour, expected):
    """C11: a generator that was begun is sent once; the outcome of that attempt is final."""
    pair = servers(behaviour, echoes)
    with world.client(urls(pair), strategy=First()) as client:
        try:
            outcome = client.put("/", content=world.body([b"once"]))
        except httpx.TransportError as error:
            outcome = error
        assert isinstance(outcome, expected)
        assert not isinstance(outcome, lbclient.LoadBalancingError)
        assert len(lbclient.call_info(outcome).attempts) == 1
        assert client.in_flight == 0
        assert failures(client) == [1, 0]
    assert [one.hits for one in pair] == [1, 0]


@worlds
def test_a_generator_not_begun_goes_elsewhere(servers, world, dead_port):
    """C11: if nothing was connected, a generator is still unused, so any method is retried
    elsewhere."""
    (server,) = servers(echoes)
    with (
        refused_port() as another,
        world.client(
            [f"http://127.0.0.1:{dead_port}", f"http://127.0.0.1:{another}", server.url],
            strategy=First(),
            retry=lbclient.RetryPolicy(attempts=9),
        ) as client,
    ):
        response = client.post("/", content=world.body([b"o", b"k"]))
        assert response.content == b"ok"
        reached = [one.instance.port for one in lbclient.call_info(response).attempts]
    assert reached[0] == dead_port
    assert reached[-1] == server.port
    assert server.hits == 1


class Mine(Exception):
    pass


@worlds
@pytest.mark.parametrize(
    "error",
    [
        Mine("mine"),
        ConnectionResetError("the other side of a proxy"),
        TimeoutError("mine"),
        FileNotFoundError("mine"),
        httpx.ReadError("of the response that is passed on"),
        httpx.ConnectError("mine"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_bodys_own_error(servers, world, error, begun):
    """C11: an exception of a generator reaches the caller unchanged, once, and charges no
    instance."""
    pair = servers(echoes, echoes)

    def chunks():
        if begun:
            yield b"some"
        raise error

    with world.client(urls(pair)) as client:
        with pytest.raises(type(error)) as caught:
            client.put("/", content=world.body(chunks()))
        assert caught.value is error
        assert client.in_flight == 0
        assert failures(client) == [0, 0]
        assert sum(one.attempts for one in client.balancer.snapshot().instances) == 1
    assert all_requests(*pair) == []


def test_sync_sources_arrive(servers, file):
    """Files, BytesIO, lists of bytes and plain readers arrive intact."""
    (server,) = servers(echoes)
    whole = file.read()
    file.seek(0)
    with lbclient.Client([server.url]) as client:
        assert client.post("/", content=file).content == whole
        assert client.post("/", content=io.BytesIO(BIG)).content == BIG
        assert client.post("/", content=[b"a", b"b", b"c"]).content == b"abc"
        assert client.post("/", content=Pipe(b"abc")).content == b"abc"
        assert client.post("/", content=Tty(b"abc")).content == b"abc"


def test_a_file_is_rewound(servers, file):
    """C12: a seekable file, and BytesIO, are sent again from their first position."""
    pair = servers(in_turn(resets, says(503), resets, says(502)), echoes)
    with lbclient.Client(urls(pair), strategy=First(), breaker=None) as client:
        for source in (file, io.BytesIO(BIG[:200_000])):
            for start in (0, 1234):
                source.seek(start)
                length = {"Content-Length": str(200_000 - start)}  # httpx takes the whole file's
                response = client.put("/", content=source, headers=length)
                assert response.content == BIG[start:200_000]
                assert len(lbclient.call_info(response).attempts) == 2
    assert [one.hits for one in pair] == [4, 4]


def test_a_list_is_replayed(servers):
    """C12: a list of bytes can be sent again."""
    pair = servers(resets, echoes)
    with lbclient.Client(urls(pair), strategy=First()) as client:
        assert client.put("/", content=[b"a", b"b"]).content == b"ab"


@pytest.mark.parametrize("kind", [Pipe, Tty])
def test_what_cannot_seek_is_never_replayed(servers, dead_port, kind):
    """C12: a source that cannot seek is sent once, unless reading it had not begun."""
    pair = servers(resets, echoes)
    with lbclient.Client(urls(pair), strategy=First()) as client:
        with pytest.raises(httpx.ReadError):
            client.put("/", content=kind(b"once"))
        assert sum(failures(client)) == 1
    assert [one.hits for one in pair] == [1, 0]
    service = [f"http://127.0.0.1:{dead_port}", pair[1].url]
    with lbclient.Client(service, strategy=First()) as client:
        assert client.post("/", content=kind(b"once")).content == b"once"


@worlds
def test_multipart_is_replayed(servers, world, file):
    """C12: Multipart of fields and seekable files is rendered again for a retry."""
    pair = servers(resets, echoes)
    with world.client(urls(pair), strategy=First()) as client:
        sent = {"a": file, "b": ("b.txt", io.BytesIO(b"bbb"), "text/plain"), "c": b"ccc"}
        response = client.put("/", data={"field": "1"}, files=sent)
    first, second = (request.body for request in all_requests(*pair))
    assert first == second == response.content
    assert BIG[:200_000] in first
    assert b"bbb" in first
    assert b"ccc" in first
    assert b'name="field"' in first


@worlds
@pytest.mark.parametrize("kind", [Pipe, Tty])
def test_multipart_that_cannot_seek_is_not(servers, world, dead_port, kind):
    """C12: Multipart with one file that cannot seek is not sent again."""
    pair = servers(resets, echoes)
    with world.client(urls(pair), strategy=First()) as client:
        with pytest.raises(httpx.ReadError):
            client.put("/", files={"a": io.BytesIO(b"aaa"), "b": kind(b"bbb")})
        assert client.in_flight == 0
    assert [one.hits for one in pair] == [1, 0]
    service = [f"http://127.0.0.1:{dead_port}", pair[1].url]
    with world.client(service, strategy=First()) as client:
        assert b"bbb" in client.post("/", files={"b": kind(b"bbb")}).content


@pytest.mark.anyio
async def test_an_async_file(servers, dead_port, tmp_path):
    """C12: a file that is read asynchronously arrives; once begun, it is not sent again (its seek
    is async)."""
    path = anyio.Path(tmp_path, "body")
    await path.write_bytes(b"line\n" * 1000)
    pair = servers(echoes, resets)
    service = [f"http://127.0.0.1:{dead_port}", pair[0].url]
    async with (
        lbclient.AsyncClient(service, strategy=First()) as client,
        await path.open("rb") as file,
    ):
        assert (await client.post("/", content=file)).content == b"line\n" * 1000
    async with (
        lbclient.AsyncClient(urls(reversed(pair)), strategy=First()) as client,
        await path.open("rb") as file,
    ):
        with pytest.raises(httpx.ReadError):
            await client.put("/", content=file)
    assert [one.hits for one in pair] == [1, 1]


@worlds
def test_a_redirect_keeps_the_body(servers, world):
    """A 307 to another path sends bytes and multipart again."""

    def behave(connection, request):
        if request.target == "/old":
            connection.answer(307, Location="/new")
        else:
            connection.answer(200, request.body)

    pair = servers(behave, behave)
    with world.client(urls(pair), follow_redirects=True) as client:
        assert client.put("/old", content=b"body").content == b"body"
        assert b"aaa" in client.put("/old", files={"a": io.BytesIO(b"aaa")}).content


class Fresh:
    """An iterable that begins again each time."""

    def __iter__(self):
        yield from (b"a", b"bc")


class UsedUp:
    """An iterable over a single source, so that nothing is left of it the second time."""

    def __init__(self):
        self.source = iter([b"a", b"bc"])

    def __iter__(self):
        yield from self.source


def asks_twice(connection, request):
    """/moved/STATUS redirects; /digest asks for credentials; any other path returns the body."""
    _, way, *status = request.target.split("/")
    if way == "moved":
        connection.answer(int(status[0]), Location="/new")
    elif way == "digest" and "authorization" not in request.headers:
        challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
        connection.answer(401, WWW_Authenticate=challenge)
    else:
        connection.answer(200, request.body)


ways = pytest.mark.parametrize("way", ["moved/307", "moved/308", "digest"])


def outcomes_of(world, servers, way, body_of):
    """Responses or errors of our client, and of httpx's client over our transport."""
    service, outcomes = urls(servers), []
    for kind in (world.client, world.under_httpx):
        with kind(service, name="orders.test") as client:
            auth = httpx.DigestAuth("me", "secret")
            options = {"follow_redirects": True, "auth": auth, **body_of()}
            try:
                outcomes.append(client.put(f"http://orders.test/{way}", **options))
            except httpx.StreamConsumed as error:
                outcomes.append(error)
    return outcomes


@ways
@pytest.mark.parametrize("start", [0, 1234])
def test_a_file_is_sent_whole_to_where_it_is_wanted(servers, file, way, start):
    """A file is rewound to its first position for a redirect and for a round of authentication."""
    pair = servers(asks_twice, asks_twice)
    length = {"Content-Length": str(200_000 - start)}  # httpx takes the whole file's

    def body_of(source):
        source.seek(start)
        return {"content": source, "headers": length}

    for source in (file, io.BytesIO(BIG[:200_000])):
        for response in outcomes_of(World(), pair, way, lambda source=source: body_of(source)):
            assert response.content == BIG[start:200_000]
    assert {request.body for request in all_requests(*pair)} == {BIG[start:200_000]}


@ways
def test_a_file_is_rewound_for_a_retry_after_a_redirect(servers, file, way):
    """A retry of the second request begins where the first request began, not where it ended."""
    failing = {"/new", "/digest"}

    def fails_once(connection, request):
        secret = "authorization" in request.headers
        if request.target in failing and (secret or request.target == "/new"):
            failing.clear()
            connection.reset()
        else:
            asks_twice(connection, request)

    pair = servers(fails_once, fails_once)
    auth = httpx.DigestAuth("me", "secret") if way == "digest" else None
    with lbclient.Client(urls(pair), follow_redirects=True, auth=auth) as client:
        response = client.put(f"/{way}", content=file)
        assert len(lbclient.call_info(response).attempts) == 2
    assert response.content == BIG[:200_000]
    assert [len(request.body) for request in all_requests(*pair)] == [200_000] * 3


@worlds
@ways
def test_multipart_is_sent_whole_to_where_it_is_wanted(servers, world, file, way):
    """Multipart with files is rendered again for a redirect and for authentication."""
    pair = servers(asks_twice, asks_twice)

    def body():
        sent = {"a": file, "b": ("b.txt", io.BytesIO(b"bbb"), "text/plain"), "c": b"ccc"}
        return {"data": {"field": "1"}, "files": sent}

    for response in outcomes_of(world, pair, way, body):
        assert BIG[:200_000] in response.content
        assert b"bbb" in response.content
    assert {len(request.body) for request in all_requests(*pair)} == {len(response.content)}


@ways
@pytest.mark.parametrize("make", [lambda: [b"a", b"bc"], Fresh], ids=["list", "iterable"])
def test_what_begins_anew_is_sent_again(servers, way, make):
    """A list, and an iterable that begins again, are sent again."""
    pair = servers(asks_twice, asks_twice)
    for response in outcomes_of(World(), pair, way, lambda: {"content": make()}):
        assert response.content == b"abc"


@ways
@pytest.mark.parametrize(
    "make",
    [
        lambda: {"content": iter([b"a", b"bc"])},
        lambda: {"content": (chunk for chunk in [b"a", b"bc"])},
        lambda: {"content": Pipe(b"abc")},
        lambda: {"content": Tty(b"abc")},
        lambda: {"files": {"a": io.BytesIO(b"aaa"), "b": Pipe(b"bbb")}},
        lambda: {"files": {"a": Tty(b"aaa")}},
        lambda: {"content": UsedUp()},
    ],
    ids=["iterator", "generator", "reader", "tty", "multipart", "multipart tty", "used up"],
)
def test_what_is_used_up_is_an_error(servers, way, make):
    """A body that can be read once and is needed twice is httpx's StreamConsumed: nothing empty or
    cut short arrives, and no instance is charged."""
    pair = servers(asks_twice, asks_twice)
    for error in outcomes_of(World(), pair, way, make):
        assert isinstance(error, httpx.StreamConsumed)
    whole = [request for request in all_requests(*pair) if request.target == f"/{way}"]
    assert len(whole) == len(all_requests(*pair)) == 2
    with lbclient.Client(urls(pair), follow_redirects=True, auth=("me", "x")) as client:
        with pytest.raises(httpx.StreamConsumed):
            client.put("/moved/307", **make())
        assert failures(client) == [0, 0]
        assert sum(one.in_flight for one in client.balancer.snapshot().instances) == 0


@pytest.mark.parametrize("way", ["moved/307", "digest"])
@pytest.mark.parametrize("world", [World("asyncio"), World("trio")], ids=["asyncio", "trio"])
def test_an_async_body_that_is_used_up_is_an_error(servers, world, way):
    """The same of an async generator."""
    pair = servers(asks_twice, asks_twice)
    for error in outcomes_of(world, pair, way, lambda: {"content": world.body([b"a", b"bc"])}):
        assert isinstance(error, httpx.StreamConsumed)
    assert [request.body for request in all_requests(*pair)] == [b"abc"] * 2


@pytest.mark.anyio
@ways
@pytest.mark.parametrize("start", [0, 5])
async def test_an_async_file_is_sent_whole_to_where_it_is_wanted(
    servers, tmp_path, anyio_backend_name, way, start
):
    """A file of anyio's or of trio's is rewound to its first position too."""
    path = tmp_path / "body"
    path.write_bytes(b"line\n" * 1000)
    pair = servers(asks_twice, asks_twice)
    opened = trio.open_file if anyio_backend_name == "trio" else anyio.open_file
    async with (
        lbclient.AsyncClient(
            urls(pair), follow_redirects=True, auth=httpx.DigestAuth("me", "secret")
        ) as client,
        await opened(path, "rb") as file,
    ):
        await file.seek(start)
        response = await client.put(f"/{way}", content=file)
    assert response.content == path.read_bytes()[start:]
    assert {request.body for request in all_requests(*pair)} == {path.read_bytes()[start:]}


@pytest.mark.anyio
async def test_an_async_file_that_cannot_seek_is_an_error(servers):
    """A pipe that is read asynchronously is not sent again as an empty body."""
    pair = servers(asks_twice, asks_twice)
    reading, writing = os.pipe()
    os.write(writing, b"once")
    os.close(writing)
    async with (
        lbclient.AsyncClient(urls(pair), follow_redirects=True) as client,
        await anyio.open_file(reading, "rb") as file,
    ):
        with pytest.raises(httpx.StreamConsumed):
            await client.put("/moved/307", content=file)
    assert [request.body for request in all_requests(*pair)] == [b"once"]


def test_a_request_with_a_file_may_be_sent_again(servers, file):
    """The same request sent a second time has the same body; another request begins at the file's
    current position."""
    (server,) = servers(echoes)
    with lbclient.Client([server.url]) as client:
        request = client.build_request("PUT", "/", content=file)
        assert [client.send(request).content for _ in range(2)] == [BIG[:200_000]] * 2
        file.seek(199_990)
        length = {"Content-Length": "10"}
        assert client.put("/", content=file, headers=length).content == BIG[199_990:200_000]


def test_the_wrong_colour_of_body(servers):
    """An async generator given to a sync client is httpx's RuntimeError; nothing is sent."""
    (server,) = servers(echoes)

    async def chunks():
        yield b""  # never begun

    with lbclient.Client([server.url]) as client:
        with pytest.raises(RuntimeError):
            client.post("/", content=chunks())
        assert sum(one.attempts for one in client.balancer.snapshot().instances) == 0
    assert server.hits == 0


# Downloads


@worlds
def test_large_downloads(servers, world):
    """5 MB arrive intact, read at once and streamed."""
    (server,) = servers(says(200, BIG))
    with world.client([server.url]) as client:
        assert client.get("/").content == BIG
        with client.stream("GET", "/") as response:
            assert client.read(response) == BIG
        assert client.in_flight == 0
    assert server.accepted == 1


def truncated(connection, _):
    """Half of the body that Content-Length promised, then a normal end."""
    connection.send(head(200, {"Content-Length": "100"}) + b"x" * 50)
    connection.close()


def truncated_chunk(connection, _):
    """Half a chunk, then a normal end."""
    connection.send(head(200, {"Transfer-Encoding": "chunked"}) + b"64\r\n" + b"x" * 50)
    connection.close()


def no_last_chunk(connection, _):
    """Whole chunks, but not the empty one that ends a body."""
    connection.send(head(200, {"Transfer-Encoding": "chunked"}) + b"5\r\nhello\r\n")
    connection.close()


breaks = pytest.mark.parametrize(
    "behaviour",
    [dies_in_body, truncated, truncated_chunk, no_last_chunk],
    ids=lambda behaviour: behaviour.__name__,
)


@worlds
@breaks
def test_an_instance_that_dies_in_the_body_is_replaced(servers, world, behaviour):
    """I8: an unstreamed, idempotent call whose body breaks is retried elsewhere, and its body is
    complete."""
    pair = servers(behaviour, says(200, b"whole"))
    with world.client(urls(pair), strategy=First()) as client:
        response = client.get("/")
        assert response.content == b"whole"
        assert client.in_flight == 0
        assert failures(client) == [1, 0]
    one, two = lbclient.call_info(response).attempts
    assert isinstance(one.error, httpx.TransportError)
    assert (two.status, two.error) == (200, None)


@worlds
@breaks
def test_a_broken_body_is_no_short_success(servers, world, behaviour):
    """I8: if it is streamed, or may not be repeated, a broken body is httpx's own error, and one
    fault."""
    pair = servers(behaviour, behaviour)
    with world.client(urls(pair), strategy=First()) as client:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)) as caught:
            client.post("/")
        assert failures(client) == [1, 0]
        assert str(caught.value.request.url) == pair[0].url + "/"
        with client.stream("GET", "/") as response:
            assert response.status_code == 200
            assert client.in_flight == 1
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)) as caught:
                client.read(response)
            assert client.in_flight == 0
        assert failures(client) == [2, 0]
        assert str(caught.value.request.url) == pair[0].url + "/"
        assert str(pair[0].port) in "".join(caught.value.__notes__)
        assert lbclient.call_info(caught.value).attempts[0].instance.port == pair[0].port
        assert client.in_flight == 0
    assert [one.hits for one in pair] == [2, 0]


@worlds
def test_good_headers_with_broken_bodies_trip_the_breaker(servers, world):
    """I8: an instance that breaks every streamed body leaves the rotation after `fail_max` of
    them."""
    pair = servers(dies_in_body, says(200, b"whole"))
    breaker = lbclient.BreakerPolicy(fail_max=3, reset_timeout=30)
    broken = 0
    with world.client(urls(pair), strategy="round-robin", breaker=breaker) as client:
        for _ in range(12):
            with client.stream("GET", "/") as response:
                try:
                    assert client.read(response) == b"whole"
                except httpx.TransportError:
                    broken += 1
        assert [one.breaker for one in client.balancer.snapshot().instances] == ["open", "closed"]
        assert failures(client) == [3, 0]
        assert client.in_flight == 0
    assert broken == 3


@worlds
def test_a_whole_body_heals_and_an_early_close_does_not_hurt(servers, world):
    """Leaving a stream early is not a fault of the instance."""
    (server,) = servers(says(200, BIG))
    breaker = lbclient.BreakerPolicy(fail_max=1)
    with world.client([server.url], breaker=breaker) as client:
        for _ in range(3):
            with client.stream("GET", "/"):
                pass
        assert failures(client) == [0]
        assert client.get("/").content == BIG


@worlds
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpx's, cut short: trio
@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress)],
    ids=["gzip", "deflate"],
)
def test_codings(servers, world, coding, encode):
    """Gzip and deflate are decoded, even if streamed; a broken encoding is not a fault of the
    instance."""
    text = b"orders " * 10_000
    (server,) = servers(says(200, encode(text), Content_Encoding=coding))
    with world.client([server.url]) as client:
        assert client.get("/").content == text
        with client.stream("GET", "/") as response:
            assert client.read(response) == text
        server.behaviour = says(200, b"no such coding", Content_Encoding=coding)
        with pytest.raises(httpx.DecodingError):
            client.get("/")
        assert client.in_flight == 0
        assert failures(client) == [0]
    assert server.hits == 3
    assert coding in server.requests[0].headers["accept-encoding"]


@worlds
def test_answers_without_a_body(servers, world):
    """HEAD, 204 and 304 have no body, whatever their headers say, and their connection is kept."""

    def behave(connection, request):
        status = int(request.target[1:])
        fields = {} if status == 204 else {"Content-Length": "1000"}
        connection.send(head(status, fields))

    (server,) = servers(behave)
    with world.client([server.url]) as client:
        for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404)):
            response = client.request(method, f"/{status}")
            assert (response.status_code, response.content) == (status, b"")
            with client.stream(method, f"/{status}") as response:
                assert client.read(response) == b""
        assert client.in_flight == 0
    assert server.accepted == 1


@worlds
def test_chunked_answers(servers, world):
    """Chunked bodies, with trailers too, arrive whole and keep their connection."""

    def behave(connection, _):
        connection.send(head(200, {"Transfer-Encoding": "chunked"}))
        for chunk in (b"a", b"b" * 5000):
            connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        connection.send(b"0\r\nX-Trailer: 1\r\n\r\n")

    (server,) = servers(behave)
    with world.client([server.url]) as client:
        for _ in range(2):
            assert client.get("/").content == b"a" + b"b" * 5000
            with client.stream("GET", "/") as response:
                assert client.read(response) == b"a" + b"b" * 5000
    assert server.accepted == 1


# What becomes of an answer that is retried


@worlds
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_small_answer_retried_keeps_its_connection(servers, world, method):
    """A small 503 is read to its end, so that the retry can use its connection."""

    def busy(connection, request):
        connection.send(head(503, {"Content-Length": "4"}))
        if request.method == "GET":
            connection.send(b"busy")

    (server,) = servers(in_turn(busy, busy, says(200)))
    with world.client([server.url], breaker=None) as client:
        assert client.request(method, "/").status_code == 200
        assert client.in_flight == 0
    assert (server.hits, server.accepted) == (3, 1)


@worlds
def test_a_drained_connection_is_as_patient_as_before(servers, world):
    """The short timeout for draining an answer no longer applies when its connection is used for
    the retry."""
    (server,) = servers(in_turn(says(503, b"busy"), slow(0.2)))
    with world.client([server.url]) as client:
        assert client.get("/").status_code == 200
    assert (server.hits, server.accepted) == (2, 1)


def endless(connection, _):
    """A 503 with chunks that never end."""
    connection.send(head(503, {"Transfer-Encoding": "chunked"}))
    while not connection.server.stopping.wait(0.01):
        connection.send(b"1\r\nx\r\n")


def stalled(connection, _):
    """A 503 whose short body never arrives."""
    connection.send(head(503, {"Content-Length": "10"}) + b"x")
    connection.server.stopping.wait(30)


@worlds
@pytest.mark.parametrize(
    "behaviour", [says(503, b"x" * 100_000), endless, stalled], ids=["large", "endless", "stalled"]
)
def test_a_large_answer_retried_is_given_up(servers, world, behaviour):
    """A 503 that is large, endless or stalled costs its connection, but not the caller's time."""
    pair = servers(behaviour, says(200, b"ok"))
    with world.client(urls(pair), strategy=First(), timeout=20) as client:
        response = client.get("/")
        assert response.content == b"ok"
        assert response.elapsed.total_seconds() < 10
        assert client.in_flight == 0
        assert busy_connections(client.client) == []
    assert [one.accepted for one in pair] == [1, 1]


@worlds
def test_a_large_answer_retried_costs_its_connection(servers, world):
    """A large 503 is not read: its connection is closed, and the retry opens another."""
    (server,) = servers(in_turn(says(503, b"x" * 10_000_000), says(200)))
    with world.client([server.url], breaker=None) as client:
        assert client.get("/").status_code == 200
    assert (server.hits, server.accepted) == (2, 2)


@worlds
def test_the_last_answer_is_whole(servers, world):
    """When attempts run out, the last answer has its complete body, large or small."""
    (server,) = servers(says(503, b"busy" * 50_000))
    with world.client([server.url], breaker=None) as client:
        assert client.get("/").content == b"busy" * 50_000
        with client.stream("GET", "/") as response:
            assert client.in_flight == 1
            assert client.read(response) == b"busy" * 50_000
        assert client.in_flight == 0
    assert server.hits == 6
