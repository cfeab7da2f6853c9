"""Latency up to the first byte of a body: `latency="first-byte"`."""

import threading

import anyio
import anyio.lowlevel
import httpx
import pytest

import lbclient
from lbclient import HedgePolicy, RetryPolicy
from lbclient.core.hedge import Lane, Lanes
from lbclient.protocol import bind
from tests.http.test_features import First, World, urls, worlds
from tests.http.test_http2 import H2C
from tests.http.test_unprocessed import in_order, recorded
from tests.support.http import Gate, head, in_turn, resets, says, tells_port
from tests.support.http2 import Http2

FIRST_BYTE = {"latency": "first-byte"}


class Clock:
    """A clock that the instance moves. `read` is set when the client reads it."""

    def __init__(self):
        self.now = 1000.0
        self.read = threading.Event()

    def __call__(self):
        self.read.set()
        return self.now

    def slow_body(self, connection, _):
        """Five seconds to the first byte, and fifty more, once the first has arrived, to the
        last."""
        connection.send(head(200, {"Content-Length": "8"}))
        self.now += 5
        self.read.clear()
        connection.send(b"x")
        self.read.wait(10)
        self.now += 50
        connection.send(b"yyyyyyy")


class Heard:
    """A strategy that keeps the latencies which it is told."""

    def __init__(self):
        self.latencies = []

    def pick(self, candidates, _):
        return candidates[0]

    def ended(self, _endpoint, elapsed, *, failed, **_):
        self.latencies.append((elapsed, failed))


def own_transports(world):
    """The options of a client whose transports are httpx's own."""
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    return {"transport": lambda _: kind()}


@worlds
@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("own", [False, True], ids=["ours", "httpx's"])
def test_latency_ends_with_the_first_byte(servers, world, streamed, own):
    """The latency of an attempt is the time to the first byte of its body, whether the body is
    streamed or not, for strategies and snapshots."""
    clock, heard = Clock(), Heard()
    (server,) = servers(clock.slow_body)
    options = own_transports(world) if own else {}
    with world.client(
        urls([server]), clock=clock, strategy=heard, **FIRST_BYTE, **options
    ) as client:
        if streamed:
            with client.stream("GET", "/") as response:
                body = client.read(response)
        else:
            body = (response := client.get("/")).content
        (one,) = client.client.balancer.snapshot().instances
    assert body == b"xyyyyyyy"
    assert (one.latency, one.in_flight) == (5.0, 0)
    assert heard.latencies == [(5.0, False)]
    assert [attempt.elapsed for attempt in lbclient.call_info(response).attempts] == [5.0]


@worlds
@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
def test_over_http2(servers, world, streamed):
    """The latency of an attempt over HTTP/2 is the time to the first byte of its body too."""
    clock = Clock()

    def slow_body(stream):
        stream.answer(200, b"", end=False)
        clock.now += 5
        clock.read.clear()
        stream.data(b"x")
        clock.read.wait(10)
        clock.now += 50
        stream.data(b"y", end=True)

    (server,) = servers(Http2(ended=slow_body))
    with world.client(urls([server]), clock=clock, **FIRST_BYTE, **H2C) as client:
        if streamed:
            with client.stream("GET", "/") as response:
                assert client.read(response) == b"xy"
        else:
            assert client.get("/").content == b"xy"
        (one,) = client.client.balancer.snapshot().instances
    assert one.latency == 5.0


@worlds
@pytest.mark.parametrize("status", [200, 204, 404])
def test_without_a_body_it_ends_with_the_head(servers, world, status):
    """Without a body, the latency ends with the head."""
    clock = Clock()

    def empty(connection, request):
        clock.now += 3
        says(status)(connection, request)

    (server,) = servers(empty)
    with world.client(urls([server]), clock=clock, **FIRST_BYTE) as client:
        with client.stream("GET", "/") as response:
            assert client.read(response) == b""
        client.get("/")
        (one,) = client.client.balancer.snapshot().instances
    assert one.latency == (None if status == 404 else 3.0)


@worlds
def test_a_stream_that_is_left_in_the_middle(servers, world):
    """A stream that is closed after its first byte gives back its slot, and leaves nothing open."""
    gate = Gate()

    def half(connection, request):
        connection.send(head(200, {"Content-Length": "100"}) + b"x")
        gate(connection, request)

    (server,) = servers(in_turn(half, tells_port))
    with world.client(urls([server]), **FIRST_BYTE) as client:
        with client.stream("GET", "/"):
            assert client.in_flight == 1
        assert client.in_flight == 0
        assert client.get("/").text == str(server.port)


@worlds
def test_a_stream_that_breaks_before_its_first_byte_is_retried(servers, world):
    """A streamed response whose body breaks before its first byte is replaced: nothing of it was
    passed on."""

    def breaks(connection, request):
        connection.send(head(200, {"Content-Length": "100"}))
        resets(connection, request)

    pair = servers(breaks, tells_port)
    policy = RetryPolicy(backoff=0)
    with world.client(in_order(pair), retry=policy, **FIRST_BYTE) as client:
        with client.stream("GET", "/") as response:
            assert client.read(response) == str(pair[1].port).encode()
        assert client.in_flight == 0
    assert recorded(response) == ([200, 200], None)


@worlds
def test_an_answer_that_is_retried_is_not_awaited(servers, world):
    """The body of an answer that is to be replaced is not waited for."""

    def no_body(connection, _):
        connection.send(head(503, {"Content-Length": "100"}))

    pair = servers(no_body, tells_port)
    policy = RetryPolicy(backoff=0)
    with (
        world.client(in_order(pair), retry=policy, **FIRST_BYTE) as client,
        client.stream("GET", "/") as response,
    ):
        assert client.read(response) == str(pair[1].port).encode()


@worlds
def test_an_upgrade_is_not_awaited(servers, world):
    """After an upgrade no byte of the instance is waited for."""
    (server,) = servers(lambda connection, _: connection.send(head(101, {"Upgrade": "x"})))
    headers = {"Connection": "upgrade", "Upgrade": "x"}
    with (
        world.client(urls([server]), **FIRST_BYTE) as client,
        client.stream("GET", "/", headers=headers) as response,
    ):
        assert response.status_code == 101


@worlds
def test_the_deadline_ends_the_wait(servers, world):
    """The deadline of the call bounds the wait for the first byte."""

    def no_body(connection, request):
        connection.send(head(200, {"Content-Length": "100"}))
        Gate()(connection, request)

    (server,) = servers(no_body)
    with world.client(urls([server]), retry=RetryPolicy(deadline=0.2), **FIRST_BYTE) as client:
        with pytest.raises(lbclient.DeadlineExceeded), client.stream("GET", "/"):
            pass
        assert client.in_flight == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_wait_leaves_nothing(servers, backend):
    """A task that is cancelled while it waits for the first byte gives back slot and connection."""
    gate = Gate()

    def no_body(connection, request):
        connection.send(head(200, {"Content-Length": "100"}))
        gate(connection, request)

    (server,) = servers(in_turn(no_body, tells_port))

    async def cancelled(client):
        async with anyio.create_task_group() as tasks:

            async def stream():
                async with client.stream("GET", "/"):
                    raise AssertionError("it has no first byte")

            tasks.start_soon(stream)
            await anyio.to_thread.run_sync(gate.entered.acquire)
            tasks.cancel_scope.cancel()

    with World(backend).client(urls([server]), **FIRST_BYTE) as client:
        client.run(cancelled, client.client)
        assert client.in_flight == 0
        assert client.get("/").text == str(server.port)


@worlds
def test_the_first_byte_decides_a_hedged_stream(servers, world):
    """An instance that sends only the head at once does not win against one that sends a body."""
    gate = Gate()

    def no_body(connection, request):
        connection.send(head(200, {"Content-Length": "100"}))
        gate(connection, request)

    pair = servers(no_body, tells_port)
    hedge = HedgePolicy(delay=0.01)
    with (
        world.client(urls(pair), hedge=hedge, strategy=First(), **FIRST_BYTE) as client,
        client.stream("GET", "/") as response,
    ):
        assert client.read(response) == str(pair[1].port).encode()
    assert client.in_flight == 0  # closing has waited for the attempt that lost


class Parts(httpx.AsyncByteStream):
    """A body that is read with a generator, as those of many transports are. The time of the call
    is over just before the part with the index `late`."""

    def __init__(self, clock, late):
        self.clock, self.late = clock, late
        self.left = 0
        """Generators that have not ended."""

    async def __aiter__(self):
        self.left += 1
        try:
            for index in range(3):
                await anyio.lowlevel.checkpoint()
                if index == self.late:
                    self.clock.now += 100
                yield b"x"
        finally:
            self.left -= 1


class Reads(httpx.AsyncBaseTransport):
    """A transport whose responses have this body."""

    def __init__(self, body):
        self.body = body

    async def handle_async_request(self, _):
        return httpx.Response(200, stream=self.body)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("latency", ["response", "first-byte"])
@pytest.mark.parametrize("late", [0, 1, None], ids=["first", "second", "in time"])
@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
def test_no_generator_is_left(backend, latency, late, streamed):
    """The generator of a body that is not read to its end has ended once its response is closed, or
    once the call has failed: trio warns about one that is left to the garbage collector."""
    clock = Clock()
    body = Parts(clock, late)
    options = {
        "transport": lambda _: Reads(body),
        "clock": clock,
        "retry": RetryPolicy(attempts=1, deadline=50),
        "latency": latency,
    }

    async def read(client):
        if not streamed:
            await client.get("/")
            return
        async with client.stream("GET", "/") as response:
            if late is not None:
                await response.aread()

    with World(backend).client(["http://127.0.0.1:1"], **options) as client:
        if late is None:
            client.run(read, client.client)
        else:
            with pytest.raises(lbclient.DeadlineExceeded):
                client.run(read, client.client)
        assert body.left == 0
        assert client.in_flight == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("latency", ["response", "first-byte"])
def test_a_body_that_is_closed_in_the_middle_does_not_seem_complete(backend, latency):
    """Reading on after a response was closed in the middle of its body raises StreamClosed."""
    body = Parts(Clock(), None)

    async def read(client):
        async with client.stream("GET", "/") as response:
            parts = response.aiter_raw()
            assert await anext(parts) == b"x"
            await response.aclose()
            with pytest.raises(httpx.StreamClosed):
                await anext(parts)

    options = {"transport": lambda _: Reads(body), "latency": latency}
    with World(backend).client(["http://127.0.0.1:1"], **options) as client:
        client.run(read, client.client)


def test_no_hedge_while_the_rest_of_a_body_arrives():
    """A call whose first byte has arrived is not hedged, however long the rest takes."""
    with lbclient.Balancer(["http://10.0.0.1", "http://10.0.0.2"], name="orders") as balancer:
        for answered in (False, True):
            call = bind(balancer).begin(lbclient.protocol.CallOptions(idempotent=True))
            with call, Lanes(call, 0.0) as lanes, Lane(lanes, call) as lane:
                steps, hedging = iter(lane), iter(lanes)
                with next(steps) as attempt:
                    if answered:
                        attempt.answered()
                    next(hedging)
                    assert isinstance(next(hedging, None), Lane) is not answered
                    attempt.result = "answer"


def test_the_choices_of_latency():
    """K4: an unknown choice is refused; the error names the choices."""
    for wrong in ("first_byte", "", None, True, 1):
        with pytest.raises(ValueError, match=r"^latency must be one of 'first-byte', 'response'"):
            lbclient.Client("http://orders", latency=wrong)
