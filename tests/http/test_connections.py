"""Connections: their maximum age, idle time, headers, and how they are closed."""

import contextlib
import threading

import anyio
import httpx
import pytest

import lbclient
from lbclient import RetryPolicy
from tests.support.drivers import settings
from tests.support.http import Gate, drips, in_turn, says, tells_port, transports_of

pytestmark = pytest.mark.anyio
HEADER = "X-Time-Left-Ms"


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_connection_is_used_again_until_it_is_too_old(servers):
    """After `max_connection_age` a call goes over a new connection, and the old one is closed."""
    (server,) = servers(tells_port)
    clock = Clock()
    with lbclient.Client([server.url], max_connection_age=60, clock=clock) as client:
        for _ in range(3):
            client.get("/")
        clock.now += 53
        client.get("/")
        assert server.accepted == 1
        clock.now += 8
        for _ in range(3):
            client.get("/")
        assert server.accepted == 2
        assert not client._transport._transports.leaving


async def test_a_connection_is_used_again_until_it_is_too_old_async(servers):
    """The same for async calls."""
    (server,) = servers(tells_port)
    clock = Clock()
    async with lbclient.AsyncClient([server.url], max_connection_age=60, clock=clock) as client:
        await client.get("/")
        clock.now += 61
        for _ in range(3):
            await client.get("/")
        assert server.accepted == 2


def test_who_is_too_old_finishes_first(servers):
    """A request on a connection that has become too old is completed."""
    gate = Gate()
    (server,) = servers(in_turn(gate, tells_port))
    clock, answers = Clock(), []
    with lbclient.Client([server.url], max_connection_age=60, clock=clock) as client:
        slow = threading.Thread(target=lambda: answers.append(client.get("/")))
        slow.start()
        assert gate.entered.acquire(timeout=10)
        clock.now += 61
        for _ in range(3):
            client.get("/")
        gate.open.set()
        slow.join()
    assert [one.status_code for one in answers] == [200]


def test_connections_idle_for_less_than_servers_let_them():
    """Connections are closed before the 5 s after which many servers close theirs."""
    assert settings().limits.keepalive_expiry < 5
    mine = httpx.Limits(keepalive_expiry=30)
    assert settings(limits=mine).limits is mine


def test_an_instance_is_told_how_much_time_is_left(servers):
    """`deadline_header` tells the instance how many milliseconds the call has left."""
    first, second = servers(says(503), tells_port)
    retry = RetryPolicy(deadline=2.0, backoff=0.05, backoff_max=0.05)
    for _ in range(2):
        with lbclient.Client(
            [first.url, second.url], deadline_header=HEADER, retry=retry, strategy="round-robin"
        ) as client:
            client.get("/", headers={HEADER: "7"})
    told = [int(one.headers[HEADER.lower()]) for one in (*first.requests, *second.requests)]
    assert all(1500 < left <= 2000 for left in told)


async def test_an_instance_is_told_how_much_time_is_left_async(servers):
    """The same for async calls, where the call's own deadline counts."""
    (server,) = servers(tells_port)
    async with lbclient.AsyncClient([server.url], deadline_header=HEADER) as client:
        await client.get("/", extensions={"lbclient": {"deadline": 0.5}})
        await client.get("/")
    told = [one.headers.get(HEADER.lower()) for one in server.requests]
    assert 300 < int(told[0]) <= 500
    assert told[1] is None


def test_a_transport_of_ones_own_is_told_too():
    """With `transport=` the header is sent too, in place of the caller's."""
    seen = []

    def answer(request):
        seen.append(request.headers.get_list(HEADER))
        return httpx.Response(200)

    with lbclient.Client(
        ["http://10.0.0.1:1"],
        transport=lambda _: httpx.MockTransport(answer),
        deadline_header=HEADER,
        retry=RetryPolicy(attempt_timeout=1.0),
    ) as client:
        client.get("/", headers={HEADER: "7"})
    assert len(seen[0]) == 1
    assert 500 < int(seen[0][0]) <= 1000


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"deadline_header": "X Left"}, "deadline_header must be the name of a header"),
        ({"deadline_header": "X:\r\nEvil"}, "deadline_header must be the name of a header"),
        ({"deadline_header": 5}, "deadline_header must be the name of a header"),
        ({"max_connection_age": 0}, r"max_connection_age \(seconds\) must be"),
        ({"max_connection_age": "1"}, r"max_connection_age \(seconds\) must be"),
        ({"close_grace": -1}, r"close_grace \(seconds\) must be"),
        ({"close_grace": None}, r"close_grace \(seconds\) must be"),
        (
            {"max_connection_age": 5, "transport": lambda _: httpx.MockTransport(print)},
            "max_connection_age is not supported with transport=",
        ),
    ],
)
@pytest.mark.parametrize("kind", [lbclient.Client, lbclient.AsyncTransport])
def test_what_connections_refuse(kind, wrong, text):
    """Invalid values are refused at construction by an error that names the argument."""
    with pytest.raises((ValueError, TypeError), match=text):
        kind(["http://10.0.0.1:1"], **wrong)


def test_close_waits_for_calls_under_way(servers):
    """C20: `close` lets a call of another thread end, and refuses new ones at once."""
    gate = Gate()
    (server,) = servers(gate)
    client = lbclient.Client([server.url], close_grace=10)
    answers, closed = [], threading.Event()
    call = threading.Thread(target=lambda: answers.append(client.get("/").status_code))
    call.start()
    assert gate.entered.acquire(timeout=10)
    closing = threading.Thread(target=lambda: (client.close(), closed.set()))
    closing.start()
    while not client.balancer._binding.closed:
        closed.wait(0.001)
    with pytest.raises(RuntimeError, match="closed"):
        client.get("/")
    assert not closed.is_set()
    gate.open.set()
    call.join()
    closing.join()
    assert answers == [200]


async def test_close_waits_for_calls_under_way_async(servers):
    """C20: the same for async calls."""
    gate = Gate()
    (server,) = servers(gate)
    client = lbclient.AsyncClient([server.url], close_grace=10)
    answers = []

    async def call():
        answers.append((await client.get("/")).status_code)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await anyio.to_thread.run_sync(lambda: gate.entered.acquire(timeout=10))
        group.start_soon(client.aclose)
        await anyio.wait_all_tasks_blocked()
        assert answers == []
        gate.open.set()
    assert answers == [200]


def test_close_waits_no_longer_than_its_grace(servers):
    """A body that never ends delays `close` by at most `close_grace`."""
    (server,) = servers(drips(0.02))
    client = lbclient.Client([server.url], close_grace=0.05)
    with contextlib.suppress(httpx.TransportError, httpx.StreamError), client.stream("GET", "/"):
        client.close()
    assert transports_of(client) == []


async def test_close_that_is_cancelled_closes_all_the_same(servers):
    """C1: a `close` that is cancelled while it waits has closed the connections nevertheless."""
    (server,) = servers(drips(0.02))
    client = lbclient.AsyncClient([server.url], close_grace=60)
    async with client.stream("GET", "/") as response:
        with anyio.move_on_after(0.05):
            await client.aclose()
        with pytest.raises(httpx.TransportError):
            await response.aread()


def test_a_call_past_the_grace_ends_and_is_not_repeated(servers):
    """A call that `close` interrupts ends at once, is not retried, and charges no instance."""
    gate = Gate()
    first, second = servers(gate, gate)
    client = lbclient.Client([first.url, second.url], close_grace=0.01)
    errors = []

    def call():
        try:
            client.get("/")
        except httpx.TransportError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert gate.entered.acquire(timeout=10)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    gate.open.set()
    assert len(errors) == 1
    assert first.hits + second.hits == 1
    assert [one.failures for one in client.balancer.snapshot().instances] == [0, 0]


def test_what_belongs_to_a_policy_is_pointed_there():
    """An option of a policy that is passed to the client is refused, and the error says where it
    belongs."""
    text = r"deadline belongs to retry=lbclient\.RetryPolicy\(deadline=\.\.\.\)"
    with pytest.raises(TypeError, match=text):
        lbclient.Client(["http://10.0.0.1:1"], deadline=1)
