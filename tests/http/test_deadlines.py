"""`with lbclient.deadline(...)` around requests: clients and transports, sync, asyncio and trio."""

import contextlib

import httpx
import pytest

import lbclient
from tests.http.test_features import moves_on, worlds
from tests.support.http import says, tells_port

HEADER = "X-Deadline-Ms"
PAST = 1e-9
"""Seconds that are over when the next line runs."""


def told(server):
    """The milliseconds that each request to an instance named; None where it named none."""
    texts = [request.headers.get(HEADER.lower()) for request in server.requests]
    return [text if text is None else int(text) for text in texts]


def clients_of(world, url, **options):
    """A client of ours, and one of httpx over a transport of ours."""
    options["deadline_header"] = HEADER
    return [world.client([url], **options), world.under_httpx([url], **options)]


@worlds
def test_a_request_has_the_smaller_time(servers, world):
    """A request in a block has the block's time, its own or its attempt's, whichever is smallest,
    and the instance is told in whole milliseconds."""
    (server,) = servers(tells_port)
    asked = {"extensions": {"lbclient": {"deadline": 10.0}}}
    for made in clients_of(world, server.url):
        with made as client:
            client.get(server.url)
            with lbclient.deadline(20.0):
                client.get(server.url)
                client.get(server.url, **asked)
            with lbclient.deadline(5.0):
                client.get(server.url, **asked)
            client.get(server.url)
    retry = lbclient.RetryPolicy(attempt_timeout=3.0)
    options = {"retry": retry, "deadline_header": HEADER}
    with world.client([server.url], **options) as client, lbclient.deadline(20.0):
        client.get("/")
    times = told(server)
    for none, block, own, short, after in (times[:5], times[5:10]):
        assert none is after is None
        assert 15_000 < block <= 20_000
        assert 5_000 < own <= 10_000
        assert 2_000 < short <= 5_000
    assert 1_000 < times[10] <= 3_000


@worlds
def test_a_deadline_that_is_over(servers, world):
    """Once the time is over a request raises DeadlineExceeded, which is a timeout of httpx, and
    nothing is sent."""
    (server,) = servers(tells_port)
    for made in clients_of(world, server.url):
        with made as client, lbclient.deadline(PAST):
            with pytest.raises(lbclient.DeadlineExceeded, match="not sent") as caught:
                client.get(server.url)
            assert isinstance(caught.value, httpx.TimeoutException)
    assert server.accepted == 0


@worlds
def test_redirects(servers, world):
    """Redirects and what event hooks send have the time of the block, through whatever client."""
    server, other = servers(moves_on, tells_port)
    with world.client([other.url], deadline_header=HEADER) as second:
        hooks = {"response": [_sends(world, second.client)]}
        with (
            world.client(
                [server.url], deadline_header=HEADER, follow_redirects=True, event_hooks=hooks
            ) as client,
            lbclient.deadline(20.0),
        ):
            assert client.get("/2").text == "arrived"
    assert len(told(server)) == len(told(other)) == 3
    for times in (told(server), told(other)):
        assert 15_000 < times[2] <= times[1] <= times[0] <= 20_000


def _sends(world, client):
    """A hook that sends a request through another client."""

    def hook(_):
        client.get("/")

    async def ahook(_):
        await client.get("/")

    return hook if world.backend is None else ahook


@worlds
def test_an_answer_that_does_not_come(servers, world):
    """A block ends the wait for an answer, with its own error."""

    def keeps_silent(connection, _):
        connection.server.stopping.wait()

    (server,) = servers(keeps_silent)
    with world.client([server.url]) as client, lbclient.deadline(0.1):
        with pytest.raises(lbclient.DeadlineExceeded, match="attempts made: 1"):
            client.get("/")
        assert client.in_flight == 0


@worlds
def test_instances_that_know_the_deadline(servers, world):
    """Instances that answer 504 because the caller's deadline is over are not charged."""

    def works_until_then(connection, request):
        told = request.headers.get(HEADER.lower())
        connection.server.stopping.wait(0.2 if told is None else int(told) / 1000)
        connection.answer(200 if told is None else 504)

    (server,) = servers(works_until_then)
    with world.client([server.url], deadline_header=HEADER, retry=None) as client:
        assert client.get("/").status_code == 200
        for _ in range(10):
            with lbclient.deadline(0.02), contextlib.suppress(lbclient.DeadlineExceeded):
                assert client.get("/").status_code == 504
            with (
                lbclient.deadline(0.02),
                contextlib.suppress(lbclient.DeadlineExceeded),
                client.stream("GET", "/") as response,
            ):
                assert response.status_code == 504
        (seen,) = client.client.balancer.snapshot().instances
        assert client.in_flight == 0
    assert seen.failures == 0
    assert seen.breaker == "closed"


@worlds
def test_a_streamed_body(servers, world):
    """A body has the time of the block in which its request was sent, also if it is read after the
    block; a request that was sent before the block has no such time."""

    def keeps_its_body(connection, request):
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        if request.target == "/never":
            connection.server.stopping.wait()
        connection.send(b"body")

    (server,) = servers(keeps_its_body)
    with world.client([server.url]) as client:
        with client.stream("GET", "/") as response, lbclient.deadline(PAST):
            assert client.read(response) == b"body"
        with contextlib.ExitStack() as later:
            with lbclient.deadline(0.2):
                response = later.enter_context(client.stream("GET", "/never"))
            with pytest.raises(lbclient.DeadlineExceeded, match="in the middle of the body"):
                client.read(response)
        assert client.in_flight == 0


@worlds
def test_a_call_in_a_hook(servers, world):
    """A request with a deadline of its own does not bound what its hooks send, and a block around
    it does."""
    (server, other) = servers(tells_port, tells_port)
    asked = {"extensions": {"lbclient": {"deadline": 10.0}}}
    with world.client([other.url], deadline_header=HEADER) as second:
        hooks = {"request": [_sends(world, second.client)]}
        with world.client([server.url], deadline_header=HEADER, event_hooks=hooks) as client:
            client.get("/", **asked)
            with lbclient.deadline(20.0):
                client.get("/", **asked)
    assert all(5_000 < one <= 10_000 for one in told(server))
    assert told(other)[0] is None
    assert 15_000 < told(other)[1] <= 20_000


@worlds
def test_a_retried_request(servers, world):
    """Each attempt of a request is told what its block has left then."""
    first, second = servers(says(503), tells_port)
    with (
        world.client([first.url, second.url], deadline_header=HEADER, strategy=_First()) as client,
        lbclient.deadline(20.0),
    ):
        assert client.get("/").status_code == 200
    assert 15_000 < told(second)[0] <= told(first)[0] <= 20_000


class _First:
    """Picks the first candidate."""

    def pick(self, candidates, _):
        return candidates[0]


class Noting(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport of a caller's, which notes its time."""

    def __init__(self, seen):
        self.seen = seen

    def handle_request(self, _):
        self.seen.append(lbclient.time_left())
        return httpx.Response(200)

    async def handle_async_request(self, request):
        return self.handle_request(request)


@worlds
def test_a_callers_transport(world):
    """A transport of the caller's learns the time by `time_left`."""
    seen = []
    with world.client("http://10.0.0.1", transport=lambda _: Noting(seen)) as client:
        with lbclient.deadline(20.0):
            client.get("/")
        client.get("/")
    assert 15 < seen[0] <= 20
    assert seen[1] is None
