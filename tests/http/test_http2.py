"""HTTP/2 connections of our own: early answers, GOAWAY, windows, waits, odd frames."""

import contextlib
import errno
import itertools
import os
import signal
import socket
import struct
import threading

import anyio
import anyio.lowlevel
import httpx
import pytest

import lbclient
from tests.http.test_bodies import failures
from tests.http.test_features import First, World, urls, worlds
from tests.support.drivers import watch_sockets
from tests.support.http import tells_port, transports_of
from tests.support.http2 import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_ERROR,
    PING,
    PUSH_PROMISE,
    SETTINGS,
    STREAMS,
    Http2,
    frame,
    goaway,
    says_ok,
)
from tests.support.interruptions import Interrupt, SoftLimit, points

H2C = {"http1": False, "http2": True}
ONCE = lbclient.RetryPolicy(attempts=1)
BIG = os.urandom(300_000)


# Responses that come before the request has been sent


def refuses_early(*, reset, whole=True, status=413):
    """Answer as soon as a request begins; then, optionally, reset the stream without an error."""

    def begun(stream):
        stream.answer(status, b"too large", end=whole)
        if reset:
            stream.refuse(NO_ERROR)

    return begun


@worlds
@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "generator"])
@pytest.mark.parametrize("reset", [False, True], ids=["open", "reset"])
def test_an_early_response_ends_an_upload(servers, world, reset, streamed):
    """A response that arrives while the body is sent reaches the caller; the rest of the body is
    not sent, the request is sent once, and no instance is charged."""
    instances = [Http2(begun=refuses_early(reset=reset), reads=False) for _ in range(2)]
    with world.client(urls(servers(*instances)), **H2C) as client:
        body = world.body([BIG] * 10) if streamed else BIG
        response = client.put("/", content=body)
        assert (response.status_code, response.content) == (413, b"too large")
        assert failures(client) == [0, 0]
        assert client.in_flight == 0
    (stream,) = [stream for instance in instances for stream in instance.streams]
    assert len(stream.body) <= 65_535
    assert [instance.faults for instance in instances] == [[], []]


@worlds
def test_uploads_that_are_refused_use_nothing_up(servers, world):
    """300 uploads that are rejected early cost their connection no window and no stream."""
    instance = Http2(
        begun=lambda stream: "large" in stream.headers and refuse(stream), ended=says_ok
    )
    refuse = refuses_early(reset=False)
    (server,) = servers(instance)
    with world.client(server.url, **H2C) as client:
        for _ in range(300):
            response = client.post("/", content=BIG, headers={"large": "yes"})
            assert response.status_code == 413
        assert client.post("/", content=BIG).text == f"got {len(BIG)}"
    assert server.accepted == 1
    assert instance.faults == []


@worlds
def test_a_refusal_that_is_not_complete_stops_an_upload(servers, world):
    """An early response of 300 or more stops the upload, and is read to its end."""

    def begun(stream):
        stream.answer(403, b"no", end=False)
        threading.Timer(0.01, stream.data, (b", never",), {"end": True}).start()

    instance = Http2(begun=begun, reads=False)
    with world.client(urls(servers(instance)), **H2C) as client:
        assert client.post("/", content=BIG).text == "no, never"
        assert failures(client) == [0]
    (stream,) = instance.streams
    assert len(stream.body) <= 65_535


@worlds
def test_a_response_may_begin_before_the_upload_ends(servers, world):
    """An incomplete early response below 300 does not stop the upload."""
    instance = Http2(
        begun=lambda stream: stream.answer(200, b"so far ", end=False),
        ended=lambda stream: stream.data(b"got %d" % len(stream.body), end=True),
    )
    with world.client(urls(servers(instance)), **H2C) as client:
        assert client.post("/", content=BIG).text == f"so far got {len(BIG)}"


@pytest.mark.anyio
async def test_an_early_response_is_heard_while_the_caller_stalls(servers):
    """A response that needs no more of the body ends the wait for the caller's own async body."""

    async def body():
        yield b"some"
        await anyio.sleep_forever()

    instance = Http2(begun=refuses_early(reset=True))
    async with lbclient.AsyncClient(urls(servers(instance)), **H2C) as client:
        with anyio.fail_after(10):
            assert (await client.post("/", content=body())).status_code == 413


# GOAWAY


def leaves(*, two_phases=False, split=False):
    """Send GOAWAY while the response is on its way."""

    def ended(stream):
        if split:
            stream.answer(200, b"posted ", end=False)
        if two_phases:
            stream.raw(goaway(2**31 - 1))
        stream.raw(goaway(stream.number))
        if split:
            stream.data(b"once", end=True)
        else:
            stream.answer(200, b"posted once")
        with contextlib.suppress(OSError):
            stream.connection.connection.sock.shutdown(socket.SHUT_WR)

    return ended


@worlds
@pytest.mark.parametrize("split", [False, True], ids=["before", "within"])
@pytest.mark.parametrize("two_phases", [False, True], ids=["one", "two"])
def test_a_response_arrives_after_goaway(servers, world, two_phases, split):
    """After an orderly GOAWAY, the promised responses still arrive."""
    instance = Http2(leaves(two_phases=two_phases, split=split))
    (server,) = servers(instance)
    with world.client(server.url, **H2C) as client:
        for _ in range(2):
            response = client.post("/", content=b"x")
            assert response.text == "posted once"
            assert len(lbclient.call_info(response).attempts) == 1
        assert failures(client) == [0]
    assert server.accepted == 2
    assert len(instance.streams) == 2


def test_streams_above_goaway_were_not_processed(servers):
    """Of two POSTs on a connection, the one that GOAWAY excludes is sent again on another."""
    both = threading.Barrier(2)
    first = []

    def ended(stream):
        if stream.headers[":path"] == "/" and stream.number == 3 and not first:
            first.append(stream)
            stream.raw(goaway(1))
            stream.connection.streams[1].answer(200, b"kept")
        elif stream.number != 1 or first:
            stream.answer(200, b"again")

    instance = Http2(ended)
    (server,) = servers(instance)
    texts = []
    with lbclient.Client(server.url, **H2C) as client:

        def post():
            both.wait()
            texts.append(client.post("/", content=b"x").text)

        threads = [threading.Thread(target=post) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures(client) == [0]
    assert sorted(texts) == ["again", "kept"]
    assert server.accepted == 2


@worlds
def test_a_response_that_goaway_promised_and_never_came(servers, world):
    """A POST that the server may have carried out before its GOAWAY is not sent again."""

    def ended(stream):
        stream.raw(goaway(stream.number))
        with contextlib.suppress(OSError):
            stream.connection.connection.sock.shutdown(socket.SHUT_RDWR)

    instance = Http2(ended)
    with world.client(urls(servers(instance)), **H2C) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="went away"):
            client.post("/", content=b"x")
        assert failures(client) == [0]
    assert len(instance.streams) == 1


# Windows


@worlds
def test_ten_megabytes_both_ways(servers, world):
    """Large bodies pass through small windows, in both directions at the same time."""
    body = os.urandom(10_000_000)
    instance = Http2(lambda stream: threading.Thread(target=respond, args=(stream,)).start())

    def respond(stream):
        stream.answer(200, b"", end=False)
        stream.data(bytes(stream.body), end=True)

    with world.client(urls(servers(instance)), **H2C) as client:
        assert client.post("/", content=body).content == body
        parts = [body[at : at + 70_000] for at in range(0, len(body), 70_000)]
        assert client.put("/", content=world.body(parts)).content == body
    assert instance.faults == []


def test_a_response_that_nobody_reads(servers):
    """An unread response blocks its own stream, and no other."""
    stopped = threading.Event()

    def ended(stream):
        if stream.headers[":path"] == "/large":
            threading.Thread(target=respond, args=(stream,)).start()
        else:
            stream.answer(200, b"quick")

    def respond(stream):
        stream.answer(200, b"", end=False)
        with contextlib.suppress(Exception):  # the client resets it
            for _ in range(100):
                stream.data(b"x" * 100_000)
                sent.append(100_000)
        stopped.set()

    sent = []
    (server,) = servers(Http2(ended))
    with lbclient.Client(server.url, **H2C) as client:
        with client.stream("GET", "/large") as response:
            for _ in range(50):
                assert client.get("/quick").text == "quick"
            assert len(sent) <= 3
            assert len(next(response.iter_raw())) > 0
        assert client.get("/quick").text == "quick"
        assert server.accepted == 1
    server.drop_connections()
    assert stopped.wait(10)


@worlds
def test_a_window_that_stays_shut(servers, world):
    """The wait for the peer's window ends with the write timeout, and the instance is charged."""
    instance = Http2(reads=False)
    timeout = httpx.Timeout(5, write=0.05)
    with world.client(urls(servers(instance)), timeout=timeout, retry=ONCE, **H2C) as client:
        with pytest.raises(httpx.WriteTimeout):
            client.post("/", content=BIG)
        assert failures(client) == [1]
        assert client.in_flight == 0


@worlds
def test_a_window_that_stays_shut_until_the_deadline(servers, world):
    """The wait for the peer's window ends with the deadline."""
    with (
        world.client(
            urls(servers(Http2(reads=False))), retry=lbclient.RetryPolicy(deadline=0.1), **H2C
        ) as client,
        pytest.raises(lbclient.DeadlineExceeded),
    ):
        client.post("/", content=BIG)


# Waits that are not I/O


@pytest.mark.anyio
async def test_a_callers_body_that_stalls(servers):
    """The wait for the caller's own async body ends with the deadline; no instance is charged."""

    async def body():
        yield b"some"
        await anyio.sleep_forever()

    instance = Http2(says_ok)
    async with lbclient.AsyncClient(
        urls(servers(instance)), retry=lbclient.RetryPolicy(deadline=0.1), **H2C
    ) as client:
        with anyio.fail_after(5), pytest.raises(httpx.TimeoutException):
            await client.post("/", content=body())
        assert failures(client) == [0]
        assert (await client.get("/")).text == "got 0"


@worlds
def test_every_stream_is_in_use(servers, world):
    """If every stream of every connection is in use, a call waits for one within its pool timeout
    and its deadline. No instance is charged."""
    instance = Http2(lambda stream: stream.answer(200, b"", end=False), settings={STREAMS: 1})
    (server,) = servers(instance)
    timeout = httpx.Timeout(5, pool=0.05)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(world.client(server.url, timeout=timeout, retry=ONCE, **H2C))
        held = [stack.enter_context(client.stream("GET", "/")) for _ in range(8)]
        assert len(held) == server.accepted == 8
        with pytest.raises(httpx.PoolTimeout):
            client.get("/")
        with pytest.raises(httpx.TimeoutException):
            client.get("/", extensions={"lbclient": {"deadline": 0.01}})
        assert failures(client) == [0]
        client.shut(held.pop())
        with client.stream("GET", "/") as response:
            assert response.status_code == 200
        assert server.accepted <= 9


def test_threads_race_for_few_streams(servers):
    """40 threads are served over connections with three streams each, and never more at a time."""
    instance = Http2(says_ok, settings={STREAMS: 3})
    (server,) = servers(instance)
    seen = []
    with lbclient.Client(server.url, retry=ONCE, **H2C) as client:

        def calls():
            for number in range(25):
                content = b"x" * (number * 1000)
                seen.append(client.post("/", content=content).text == f"got {len(content)}")

        threads = [threading.Thread(target=calls) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures(client) == [0]
    assert seen == [True] * 1000
    assert instance.most <= 3
    assert server.accepted <= 8
    assert instance.faults == []


def test_threads_race_for_one_connection(servers, monkeypatch):
    """16 threads share one connection of three streams."""
    from lbclient.http.connections import http2_streams

    monkeypatch.setattr(http2_streams, "MAX_CONNECTIONS", 1)
    instance = Http2(says_ok, settings={STREAMS: 3})
    (server,) = servers(instance)
    seen = []
    with lbclient.Client(server.url, retry=ONCE, **H2C) as client:

        def calls():
            seen.extend(client.get("/").text for _ in range(25))

        threads = [threading.Thread(target=calls) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == ["got 0"] * 400
    assert (instance.most <= 3, server.accepted, instance.faults) == (True, 1, [])


@worlds
def test_a_silent_connection_takes_no_other_request(servers, world):
    """If nothing arrived within the read timeout, the next request uses another connection."""

    def ended(stream):
        if len(instance.connections) > 1 or stream.number == 1:
            stream.answer(200, b"ok")

    instance = Http2(ended)
    (server,) = servers(instance)
    with world.client(server.url, retry=ONCE, **H2C) as client:
        assert client.get("/").text == "ok"
        with pytest.raises(httpx.ReadTimeout):
            client.get("/", timeout=0.1)
        assert [client.get("/").text for _ in range(2)] == ["ok"] * 2
    assert server.accepted == 2


@worlds
def test_idle_connections_older_than_a_dead_one(servers, world):
    """If a connection that has served before ends without a response, the retry uses none of those
    that were opened before it."""
    dying = []

    def ended(stream):
        if dying and stream.connection in old:
            stream.connection.connection.sock.shutdown(socket.SHUT_RDWR)
        elif stream.headers[":path"] == "/held":
            stream.answer(200, b"held", end=False)
        else:
            says_ok(stream)

    instance = Http2(ended, settings={STREAMS: 1})
    (server,) = servers(instance)
    with world.client(server.url, **H2C) as client:
        with client.stream("GET", "/held"), client.stream("GET", "/held"):
            assert client.get("/").text == "got 0"
        for _ in range(2):
            assert instance.frames.acquire(timeout=5)
        old = list(instance.connections)
        assert len(old) == 3
        dying.append(True)
        response = client.get("/")
        assert response.text == "got 0"
        assert len(lbclient.call_info(response).attempts) == 2
    assert server.accepted == 4


# Calls that leave


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.anyio
async def test_cancelled_anywhere(servers):
    """200 calls that are cancelled after any number of steps do not affect others, and their
    streams are reset."""
    instance = Http2(says_ok)
    (server,) = servers(instance)
    served = []

    async def body():
        for _ in range(5):
            yield b"x" * 10_000

    async with lbclient.AsyncClient(server.url, breaker=None, **H2C) as client:

        async def post(steps):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:

                    async def call():
                        await client.post("/", content=body())

                    group.start_soon(call)
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

        async def other():
            while not done.is_set():
                served.append((await client.post("/", content=b"x" * 1000)).text)

        done = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            for steps in itertools.chain.from_iterable([range(100)] * 2):
                await post(steps)
            done.set()
        (one,) = client.balancer.snapshot().instances
        assert (one.in_flight, one.failures) == (0, 0)
        assert (await client.post("/", content=body())).text == "got 50000"
    assert set(served) == {"got 1000"}
    assert server.accepted == 1
    assert instance.faults == []


@worlds
def test_a_hedge_resets_the_slower_stream(servers, world):
    """The slower attempt of a hedged call ends at once, even on threads: its stream is reset, and
    its connection is kept."""
    slow = Http2(lambda stream: stream.headers[":path"] == "/quick" and says_ok(stream))
    quick = Http2(says_ok)
    servers_ = servers(slow, quick)
    hedge = lbclient.HedgePolicy(delay=0.02)
    with world.client(urls(servers_), strategy=First(), hedge=hedge, **H2C) as client:
        assert client.get("/").text == "got 0"
        assert slow.frames.acquire(timeout=5)
        assert slow.streams[0].reset == CANCEL
        assert client.in_flight == 0
        assert client.get("/quick").text == "got 0"
        assert failures(client) == [0, 0]
    assert [server.accepted for server in servers_] == [1, 1]


@worlds
def test_a_body_that_is_closed_early(servers, world):
    """If the caller closes a response early, its stream is reset, and the connection is kept."""

    def ended(stream):
        if stream.headers[":path"] == "/endless":
            stream.answer(200, b"some", end=False)
        else:
            says_ok(stream)

    instance = Http2(ended)
    (server,) = servers(instance)
    with world.client(server.url, **H2C) as client:
        with client.stream("GET", "/endless") as response:
            assert response.status_code == 200
        assert instance.frames.acquire(timeout=5)
        assert client.get("/").text == "got 0"
    assert server.accepted == 1
    assert instance.streams[0].reset == CANCEL


# Odd frames and responses


def headers_frame(stream, block, *, end=True):
    return frame(HEADERS, stream, block, END_HEADERS | (END_STREAM if end else 0))


FLOODS = {
    "ping": lambda _: frame(PING, payload=b"12345678") * 5_000,
    "settings": lambda _: frame(SETTINGS) * 5_000,
    "empty DATA": lambda stream: (
        headers_frame(stream, b"\x88", end=False) + frame(DATA, stream) * 5_000
    ),
    "CONTINUATION": lambda stream: (
        frame(HEADERS, stream, b"\x88") + frame(CONTINUATION, stream) * 5_000
    ),
    "interim": lambda stream: headers_frame(stream, b"\x08\x03100", end=False) * 5_000,
    "unknown": lambda _: frame(0x42, 0, b"x") * 5_000,
    "large headers": lambda stream: (
        frame(HEADERS, stream, b"\x88")
        + (frame(CONTINUATION, stream, (b"\x00\x01a\x7f\x81\x7f" + b"x" * 256) * 60) * 20)
    ),
    "push": lambda stream: frame(PUSH_PROMISE, stream, struct.pack(">I", 2) + b"\x82", END_HEADERS),
    "too large": lambda stream: frame(DATA, stream, b"x" * 20_000),
    "odd stream": lambda stream: frame(DATA, stream + 2, b"x"),
    "no status": lambda stream: headers_frame(stream, b"\x00\x01a\x01b"),
    "odd status": lambda stream: headers_frame(stream, b"\x08\x03abc"),
}


@worlds
@pytest.mark.parametrize("flood", FLOODS)
def test_floods_and_nonsense_end_the_connection(servers, world, flood):
    """If a server sends endless frames that advance no request, or violates the protocol, its
    connection is closed, and the call gets a RemoteProtocolError."""
    instance = Http2(lambda stream: stream.raw(FLOODS[flood](stream.number)))
    (server,) = servers(instance)
    with world.client(server.url, retry=ONCE, timeout=5, **H2C) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/")
        assert failures(client) == [1]
        assert client.in_flight == 0
        instance.ended = says_ok
        assert client.get("/").text == "got 0"
    assert server.accepted == 2


@worlds
def test_some_odd_frames_are_harmless(servers, world):
    """A thousand PINGs on a connection, 300 headers, interim responses and trailers are not
    faults."""

    def ended(stream):
        stream.raw(frame(PING, payload=b"12345678") * 100 + frame(0x42, 0, b"x") * 100)
        with stream.connection.lock:
            peer = stream.connection.peer
            peer.send_headers(stream.number, [(":status", "103"), ("link", "x")])
            many = [(f"x-{number}", "y") for number in range(300)]
            peer.send_headers(stream.number, [(":status", "200"), *many])
            peer.send_data(stream.number, b"ok")
            peer.send_headers(stream.number, [("checksum", "1")], end_stream=True)
        stream.connection.flush()

    (server,) = servers(Http2(ended))
    with world.client(server.url, retry=ONCE, **H2C) as client:
        for _ in range(20):
            response = client.get("/")
            assert (response.text, response.headers["x-299"]) == ("ok", "y")
            assert "checksum" not in response.headers
    assert server.accepted == 1


@worlds
def test_a_wrong_length_is_an_error_of_its_stream(servers, world):
    """A body whose length differs from its Content-Length raises RemoteProtocolError, and the
    connection is kept."""
    odd = {
        "/short": lambda stream: stream.answer(200, b"four", **{"content-length": "5"}),
        "/long": lambda stream: stream.answer(200, b"seven", **{"content-length": "4"}),
        "/none": lambda stream: stream.answer(200, None, **{"content-length": "4"}),
        "/ok": says_ok,
    }
    (server,) = servers(Http2(lambda stream: odd[stream.headers[":path"]](stream)))
    with world.client(server.url, retry=ONCE, breaker=None, **H2C) as client:
        for path in ("/short", "/long", "/none"):
            with pytest.raises(httpx.RemoteProtocolError, match="Content-Length"):
                client.get(path)
            assert client.get("/ok").text == "got 0"
    assert server.accepted == 1


@worlds
def test_responses_without_a_body(servers, world):
    """HEAD, 204 and 304 have no body, whatever their Content-Length; a body that is sent anyway is
    ignored, and is no fault."""

    def ended(stream):
        status = int(stream.headers[":path"][1:])
        body = None if "none" in stream.headers else b"" if "empty" in stream.headers else b"body"
        stream.raw(b"")
        with stream.connection.lock:
            peer = stream.connection.peer
            peer.streams[stream.number]._expected_content_length = None
        fields = {} if status == 204 else {"content-length": "4"}
        stream.answer(status, body, **fields)

    (server,) = servers(Http2(ended))
    with world.client(server.url, retry=ONCE, **H2C) as client:
        for headers in ({"none": "1"}, {"empty": "1"}, {}):
            for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304)):
                response = client.request(method, f"/{status}", headers=headers)
                assert (response.status_code, response.content) == (status, b"")
        assert failures(client) == [0]
    assert server.accepted == 1


@worlds
def test_pings_are_answered_while_idle(servers, world):
    """A connection without requests answers PING, and notices GOAWAY."""
    instance = Http2(says_ok)
    (server,) = servers(instance)
    with world.client(server.url, **H2C) as client:
        assert client.get("/").text == "got 0"
        (connection,) = instance.connections
        connection.peer.ping(b"12345678")
        connection.flush()
        assert instance.frames.acquire(timeout=5)
        connection.flush(goaway(1))
        connection.peer.ping(b"12345678")
        connection.flush()
        assert instance.frames.acquire(timeout=5)
        assert client.get("/").text == "got 0"
    assert server.accepted == 2


@worlds
def test_headers_that_http2_has_no_place_for(servers, world):
    """`Connection` and similar headers are not sent; a header with a line break is the caller's
    error."""
    instance = Http2(says_ok)
    with world.client(urls(servers(instance)), name="orders", **H2C) as client:
        headers = {"Connection": "keep-alive", "Keep-Alive": "5", "Upgrade": "x", "X-Id": "1"}
        assert client.get("/path?q=1", headers=headers).text == "got 0"
        with pytest.raises(httpx.LocalProtocolError):
            client.get("/", headers={"X-Id": "1\r\nX-Evil: 2"})
        assert failures(client) == [0]
        assert client.get("/").text == "got 0"
    sent = instance.streams[0].headers
    assert (sent[":authority"], sent[":path"], sent["x-id"]) == ("orders", "/path?q=1", "1")
    assert not {"connection", "keep-alive", "upgrade", "host", "transfer-encoding"} & set(sent)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@worlds
def test_a_body_unlike_its_length(servers, world):
    """A body whose length differs from the caller's Content-Length is the caller's error."""
    instance = Http2(says_ok)
    (server,) = servers(instance)
    with world.client(server.url, **H2C) as client:
        for length in ("3", "5"):
            with pytest.raises(httpx.LocalProtocolError, match="Content-Length"):
                client.post("/", content=world.body([b"four"]), headers={"Content-Length": length})
        assert failures(client) == [0]
        assert client.post("/", content=world.body([b"four"])).text == "got 4"
    assert server.accepted == 1


@worlds
def test_the_instance_speaks_http1(servers, world):
    """Without TLS, and with both protocols allowed, HTTP/1.1 is used."""
    (server,) = servers(tells_port)
    with world.client(server.url, http2=True) as client:
        assert [client.get("/").http_version for _ in range(3)] == ["HTTP/1.1"] * 3
    assert server.accepted == 1


def test_a_client_that_is_dropped(servers):
    """The thread of a connection ends with its client, even if that is not closed."""
    before = set(threading.enumerate())
    (server,) = servers(Http2(says_ok))
    client = lbclient.Client(server.url, **H2C)
    assert client.get("/").text == "got 0"
    ours = [
        one for one in threading.enumerate() if one.name == "lbclient-http2" and one not in before
    ]
    assert len(ours) == 1
    client.balancer.close()
    del client
    ours[0].join(5)
    assert not ours[0].is_alive()


def test_the_descriptors_of_a_closed_client(servers):
    """Closing a client closes the sockets of its connections, and ends their threads."""
    (server,) = servers(Http2(says_ok))
    with lbclient.Client(server.url, **H2C) as client:
        client.get("/")
        (transport,) = transports_of(client)
        (connection,) = transport._connections.all()
    assert not [one for one in threading.enumerate() if one.name == "lbclient-http2"]
    assert connection._sock.fileno() == connection._waker.fileno() == -1


@pytest.mark.parametrize("lacks", ["threads", "descriptors"])
def test_no_thread_for_a_connection(servers, monkeypatch, lacks):
    """I22: if this process has no thread left for a connection, or no descriptor for that thread,
    calls raise ConnectError, nothing stays open, and the instance is not charged."""
    opened, pair, start = watch_sockets(monkeypatch), socket.socketpair, threading.Thread.start

    def opens_pair():
        if lacks == "descriptors":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made = pair()
        opened.extend(made)
        return made

    def starts(thread):
        if thread.name == "lbclient-http2":
            raise RuntimeError("can't start new thread")
        start(thread)

    (server,) = servers(Http2(says_ok))
    with lbclient.Client(server.url, retry=None, **H2C) as client:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", opens_pair)
            patch.setattr(threading.Thread, "start", starts)
            for _ in range(9):
                with pytest.raises(httpx.ConnectError):
                    client.get("/")
        assert len(opened) >= 9
        assert {one.fileno() for one in opened} == {-1}
        (one,) = client.balancer.snapshot().instances
        assert (one.breaker, one.in_flight) == ("closed", 0)
        assert client.get("/").text == "got 0"


@pytest.mark.parametrize("world", [World("asyncio"), World("trio")], ids=["asyncio", "trio"])
def test_tasks_of_connections_that_have_ended(servers, world):
    """S7: a client keeps no task of a connection that has ended."""

    def leaves(stream):
        stream.answer(200, b"bye")
        stream.raw(goaway(stream.number))

    async def ended():
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        (transport,) = transports_of(client.client)
        return [task for task in transport._tasks if task.done()]

    (server,) = servers(Http2(leaves))
    with world.client(server.url, **H2C) as client:
        for _ in range(10):
            assert client.get("/").text == "bye"
        assert client.run(ended) == []
    assert server.accepted == 10


@worlds
def test_an_instance_that_hangs_up_at_once(servers, world):
    """Connections that end at once are an error, and are not opened repeatedly."""
    closing, good = servers(hangs_up_at_once, Http2(says_ok))
    with world.client(urls([closing, good]), strategy=First(), **H2C) as client:
        assert client.get("/").text == "got 0"
        assert failures(client) == [1, 0]
    assert closing.accepted <= 2


def hangs_up_at_once(connection, _):
    connection.close()


hangs_up_at_once.on_accept = True


@pytest.mark.parametrize("kind", [SoftLimit, Interrupt])
def test_interrupted_anywhere(servers, kind):
    """An exception from outside, at any point of a call, reaches the caller, and leaves nothing in
    flight, no stream reserved and no connection in use."""
    (server,) = servers(Http2(says_ok))
    kept = []

    def prepare():
        while kept:
            kept.pop().close()
        kept.append(client := lbclient.Client(server.url, breaker=None, retry=None, **H2C))
        client.get("/")
        return lambda: client.post("/", content=b"x" * 100)

    faults = []
    for where, reached in points(prepare, kind, step=9):
        (client,) = kept
        (transport,) = transports_of(client)
        faults += [] if reached else [(where, "swallowed")]
        faults += [] if client.post("/", content=b"y").text == "got 1" else [(where, "next")]
        faults += [(where, one.in_flight) for one in client.balancer.snapshot().instances]
        faults += [(where, "used") for one in transport._connections.all() if one.http2.exchanges]
        faults += [] if transport.is_idle else [(where, "not quiet")]
    kept.pop().close()
    assert [one for one in faults if one[1] != 0] == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(servers):
    """A forked child opens its own connection, and does not affect its parent's."""
    (server,) = servers(Http2(says_ok))
    with lbclient.Client(server.url, **H2C) as client:
        with client.stream("GET", "/") as response:
            if (child := os.fork()) == 0:
                signal.alarm(10)
                response.close()
                os._exit(0 if client.get("/").text == "got 0" else 1)
            assert os.waitpid(child, 0)[1] == 0
            assert response.read() == b"got 0"
        assert client.get("/").text == "got 0"
    assert server.accepted == 2
