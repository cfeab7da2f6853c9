"""Closing: waiting calls end in time, and afterwards nothing is sent and nothing stays open."""

import asyncio
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import httpx
import pytest

import lbclient
from lbclient import Balancer, Instance, RetryPolicy
from lbclient._internal.blocking import run_blocking
from lbclient.core.wait_queue import WaitQueue
from tests.support.dns import Liar, silence
from tests.support.http import Gate, says, tells_port

pytestmark = pytest.mark.anyio

LONG = RetryPolicy(attempts=3, backoff=60.0, backoff_max=60.0)
SOON = 10.0
"""Closing takes less than this, and a test that hangs longer."""


class Dice(random.Random):
    """Back-offs take nearly the maximum time."""

    def random(self):
        return 0.9


class Failed:
    """A strategy that tells a test when an attempt has failed."""

    def __init__(self):
        self.event = threading.Event()

    def pick(self, candidates, _):
        return candidates[0]

    def ended(self, *_, failed, **__):
        if failed:
            self.event.set()


@pytest.fixture
def queued(monkeypatch):
    """Set once a call waits in the queue."""
    event, join = threading.Event(), WaitQueue.join

    def joined(line, signal, caller):
        signal = join(line, signal, caller)
        event.set()
        return signal

    monkeypatch.setattr(WaitQueue, "join", joined)
    return event


def outcome_of(call, *arguments):
    """Return what a call returns or raises."""
    try:
        return call(*arguments)
    except Exception as error:  # noqa: BLE001  # looked at by the test
        return error


async def later(call, outcomes):
    """The same on an event loop."""
    try:
        outcomes.append(await call())
    except Exception as error:  # noqa: BLE001  # looked at by the test
        outcomes.append(error)


def attempts_left():
    return [one for one in threading.enumerate() if one.name == "lbclient-attempt"]


async def told(event):
    """Wait for a thread's event on an event loop."""
    assert await anyio.to_thread.run_sync(event.wait, SOON)


def closes_quickly(client, grace):
    began = time.monotonic()
    client.close()
    return grace <= time.monotonic() - began + 0.01 < SOON


def ends_unsent(error):
    """Return True for the error of a call that was ended before anything was sent."""
    assert isinstance(error, lbclient.BalancerClosed)
    assert isinstance(error, RuntimeError)
    return lbclient.call_info(error).attempts == ()


def gated(then=tells_port):
    """A server that holds each request, records what it receives, and counts connections that
    end."""
    return Gate(then)


# Calls that are queued


def test_a_queued_call_is_ended(servers, queued):
    """When `close_grace` is over, a call that waits for a slot ends without being sent, and the
    call that holds the slot ends with its connection."""
    gate = gated()
    (server,) = servers(gate)
    client = lbclient.Client([server.url], max_in_flight=1, close_grace=0.2)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(outcome_of, client.get, "/first")
        assert gate.entered.acquire(timeout=SOON)
        second = pool.submit(outcome_of, client.get, "/second")
        assert queued.wait(SOON)
        assert closes_quickly(client, 0.2)
        assert isinstance(first.result(SOON), httpx.TransportError)
        assert isinstance(second.result(SOON), httpx.TransportError)
        assert ends_unsent(second.result())
    gate.open.set()
    assert [one.target for one in server.requests] == ["/first"]


async def test_a_queued_call_is_ended_async(servers, queued):
    """The same on event loops."""
    gate = gated()
    (server,) = servers(gate)
    client = lbclient.AsyncClient([server.url], max_in_flight=1, close_grace=0.2)
    first, second = [], []
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(later, lambda: client.get("/first"), first)
            while not gate.entered.acquire(blocking=False):  # noqa: ASYNC110  # a thread's semaphore
                await anyio.sleep(0.001)
            group.start_soon(later, lambda: client.get("/second"), second)
            await told(queued)
            await client.aclose()
    gate.open.set()
    assert isinstance(first[0], httpx.TransportError)
    assert ends_unsent(second[0])
    assert [one.target for one in server.requests] == ["/first"]


def test_a_queued_call_has_the_grace(servers, queued):
    """A call that gets a slot within `close_grace` is sent and answered while `close` waits."""
    gate = gated()
    (server,) = servers(gate)
    client = lbclient.Client([server.url], max_in_flight=1, close_grace=SOON)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.get, "/")]
        assert gate.entered.acquire(timeout=SOON)
        calls.append(pool.submit(client.get, "/"))
        assert queued.wait(SOON)
        closing = pool.submit(client.close)
        while not client.balancer._binding.closed:
            time.sleep(0.001)
        gate.open.set()
        assert [one.result(SOON).status_code for one in calls] == [200, 200]
        closing.result(SOON)
    with pytest.raises(RuntimeError, match="closed"):
        client.get("/")
    assert server.hits == 2


async def test_a_queued_call_has_the_grace_async(servers, queued):
    """The same on event loops."""
    gate = gated()
    (server,) = servers(gate)
    client = lbclient.AsyncClient([server.url], max_in_flight=1, close_grace=SOON)
    outcomes = []
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(later, lambda: client.get("/"), outcomes)
            group.start_soon(later, lambda: client.get("/"), outcomes)
            await told(queued)
            group.start_soon(client.aclose)
            gate.open.set()
    assert [one.status_code for one in outcomes] == [200, 200]


# Calls in a back-off


@pytest.mark.parametrize("refuses", [False, True])
def test_a_back_off_is_ended(servers, dead_port, refuses):
    """A call that waits for its next attempt ends when `close_grace` is over, with its last
    outcome; no other attempt is sent."""
    (server,) = servers(says(503, b"busy"))
    url = f"http://127.0.0.1:{dead_port}" if refuses else server.url
    failed = Failed()
    client = lbclient.Client([url], retry=LONG, strategy=failed, rng=Dice(), close_grace=0.1)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(outcome_of, client.get, "/")
        assert failed.event.wait(SOON)
        assert closes_quickly(client, 0.1)
        outcome = call.result(SOON)
    if refuses:
        assert isinstance(outcome, httpx.ConnectError)
        assert lbclient.call_info(outcome).stopped == "closed"
    elif isinstance(outcome, httpx.Response):
        assert outcome.status_code == 503
    else:  # its connection was closed before the body was read
        assert isinstance(outcome, httpx.TransportError)
    assert server.hits == (0 if refuses else 1)


async def test_a_back_off_is_ended_async(servers):
    """The same on event loops."""
    (server,) = servers(says(503))
    failed, outcomes = Failed(), []
    client = lbclient.AsyncClient(
        [server.url], retry=LONG, strategy=failed, rng=Dice(), close_grace=0.1
    )
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(later, lambda: client.get("/"), outcomes)
            await told(failed.event)
            await client.aclose()
    assert getattr(outcomes[0], "status_code", 503) == 503
    assert server.hits == 1


def test_a_back_off_has_the_grace(servers):
    """A retry that is due within `close_grace` is made, even though nothing is in flight before
    it."""
    refuses = threading.Event()

    def once(connection, _):
        if refuses.is_set():
            connection.answer(200)
        else:
            refuses.set()
            connection.reset()

    (server,) = servers(once)
    retry = RetryPolicy(backoff=0.3, backoff_max=0.3)
    failed = Failed()
    client = lbclient.Client([server.url], retry=retry, strategy=failed, close_grace=SOON)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.get, "/")
        assert failed.event.wait(SOON)
        client.close()
        assert call.result(SOON).status_code == 200
    assert server.hits == 2


# Calls that wait for DNS

SERVICE = "http+srv://orders.test"
NAME = "_http._tcp.orders.test"


@pytest.fixture
def dns_server():
    with Liar() as server:
        yield server


def test_a_call_that_waits_for_dns_is_ended(dns_server):
    """A call that waits for the first answer ends when `close_grace` is over."""
    dns_server.fault(silence)
    client = lbclient.Client(SERVICE, nameservers=[dns_server.address], close_grace=0.1)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(outcome_of, client.get, "/")
        dns_server.wait(1)
        assert closes_quickly(client, 0.1)
        assert ends_unsent(call.result(SOON))


async def test_a_call_that_waits_for_dns_is_ended_async(dns_server):
    """The same on event loops."""
    dns_server.fault(silence)
    client = lbclient.AsyncClient(SERVICE, nameservers=[dns_server.address], close_grace=0.1)
    outcomes = []
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(later, lambda: client.get("/"), outcomes)
            await anyio.to_thread.run_sync(dns_server.wait, 1)
            await client.aclose()
    assert ends_unsent(outcomes[0])


def test_a_call_that_waits_for_dns_has_the_grace(servers, dns_server):
    """Discovery continues while `close` waits: an answer within the grace is used."""
    (server,) = servers(tells_port)
    dns_server.put(NAME, "SRV", f"0 0 {server.port} a.orders.test.")
    dns_server.put("a.orders.test", "A", "127.0.0.1")
    options = {"nameservers": [dns_server.address], "allow": ["127.0.0.0/8"]}
    client = lbclient.Client(SERVICE, close_grace=SOON, **options)
    with ThreadPoolExecutor(2) as pool:
        with dns_server.holding():
            call = pool.submit(client.get, "/")
            dns_server.wait(1)
            closing = pool.submit(client.close)
        assert call.result(SOON).text == str(server.port)
        closing.result(SOON)


# What is in flight, and what is open


def test_nothing_is_open_after_closing(servers):
    """After `close` no connection is open, idle or in use, and no thread of an attempt is left."""
    entered, ended = threading.Semaphore(0), threading.Semaphore(0)

    def holds(connection, request):
        if request.target == "/idle":
            connection.answer(200)
            assert connection.read_request() is None
        else:
            entered.release()
            while connection.sock.recv(1):
                pass
        ended.release()

    instances = servers(holds, holds, holds)
    options = {"hedge": lbclient.HedgePolicy(delay=0.01), "close_grace": 0.1, "breaker": None}
    client = lbclient.Client([one.url for one in instances], strategy=Failed(), **options)
    client.post("/idle")
    client.balancer.eject(client.balancer.instances()[0], 60.0)  # its connection stays idle
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(outcome_of, client.get, "/held")
        for _ in range(2):
            assert entered.acquire(timeout=SOON)
        assert closes_quickly(client, 0.1)
        assert isinstance(call.result(SOON), httpx.TransportError)
    for one in attempts_left():
        one.join(SOON)
    assert attempts_left() == []
    for _ in range(3):
        assert ended.acquire(timeout=SOON)
    assert sum(one.hits for one in instances) == 3


async def test_nothing_is_open_after_closing_async(servers):
    """The same on event loops."""
    gate = gated()
    (server,) = servers(gate)
    client = lbclient.AsyncClient([server.url], close_grace=0.1)
    outcomes = []
    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(later, lambda: client.get("/"), outcomes)
            while not gate.entered.acquire(blocking=False):  # noqa: ASYNC110  # a thread's semaphore
                await anyio.sleep(0.001)
            await client.aclose()
            assert len(outcomes) == 1
    gate.open.set()
    assert isinstance(outcomes[0], httpx.TransportError)
    assert server.hits == 1


def test_closing_in_one_loop_ends_calls_in_another(servers, queued):
    """`aclose` ends calls that wait in other loops, and makes these loops close their
    connections."""
    gate, closed = gated(), threading.Event()
    (server,) = servers(gate)
    client = lbclient.AsyncClient([server.url], max_in_flight=1, close_grace=0.1)
    first, second = [], []

    async def elsewhere():
        async with anyio.create_task_group() as group:
            group.start_soon(later, lambda: client.get("/"), first)
            group.start_soon(later, lambda: client.get("/"), second)
        await anyio.to_thread.run_sync(closed.wait, SOON)

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    assert queued.wait(SOON)
    asyncio.run(client.aclose())
    gate.open.set()
    closed.set()
    thread.join(SOON)
    assert not thread.is_alive()
    errors = first + second
    assert [isinstance(one, httpx.TransportError) for one in errors] == [True, True]
    assert sorted(isinstance(one, lbclient.BalancerClosed) for one in errors) == [False, True]
    assert server.hits == 1


def test_closing_while_a_connection_is_made(servers):
    """A connection that is established after `close` has begun carries no request."""
    (server,) = servers(tells_port)
    client = lbclient.Client([server.url])
    client.get("/warm")
    endpoint = next(iter(client.balancer._engine.pool.endpoints))
    transport = client._transport._transports.to(endpoint, 0.0)
    client.close()
    request = client.build_request("GET", f"{server.url}/late")
    with pytest.raises(httpx.ConnectError, match="closed"):
        run_blocking(lambda: transport.send(request, request.stream, {}))
    assert [one.target for one in server.requests] == ["/warm"]


# Without HTTP


def test_a_balancer_closes_at_once(queued):
    """`Balancer.close` does not wait: attempts in flight end normally and are not retried; waiting
    calls end without being sent."""
    began, go = threading.Event(), threading.Event()
    sent = []

    def send(instance):
        sent.append(instance)
        began.set()
        assert go.wait(SOON)
        raise ConnectionResetError

    balancer = Balancer([Instance("10.0.0.1", 1)], max_in_flight=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(outcome_of, lambda: balancer.call(send, idempotent=True))
        assert began.wait(SOON)
        second = pool.submit(outcome_of, lambda: balancer.call(send))
        assert queued.wait(SOON)
        balancer.close()
        assert ends_unsent(second.result(SOON))
        go.set()
        error = first.result(SOON)
    assert isinstance(error, ConnectionResetError)
    assert lbclient.call_info(error).stopped == "closed"
    assert len(sent) == 1
    with pytest.raises(RuntimeError, match="closed"):
        balancer.call(send)


async def test_a_balancer_closes_at_once_async(queued):
    """The same on event loops, where `acquire` waits, too."""
    balancer = Balancer([Instance("10.0.0.1", 1)], max_in_flight=1)
    held, outcomes = anyio.Event(), []

    async def hold():
        async with balancer.acquire():
            held.set()
            await told(queued)
            await balancer.aclose()

    async def wait():
        await held.wait()
        async with balancer.acquire():
            raise AssertionError

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(hold)
            group.start_soon(later, wait, outcomes)
    assert ends_unsent(outcomes[0])
    assert not balancer._engine.calls


def test_a_refresh_is_ended(dns_server):
    """A call of `refresh` that waits ends when the balancer is closed."""
    dns_server.fault(silence)
    balancer = Balancer(SERVICE, nameservers=[dns_server.address])
    with ThreadPoolExecutor(1) as pool:
        refresh = pool.submit(outcome_of, balancer.refresh)
        dns_server.wait(1)
        balancer.close()
        assert isinstance(refresh.result(SOON), RuntimeError)
