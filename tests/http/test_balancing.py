"""Calls are spread over real instances by the rules of the strategies."""

import threading
from collections import Counter

import httpx
import pytest

import lbclient
from tests.support.http import Gate, says, tells_port

pytestmark = pytest.mark.anyio


def ports(servers):
    return [server.url for server in servers]


def test_round_robin_is_exact(servers):
    """Thirty calls round-robin over three instances are ten each."""
    urls = ports(servers(*[tells_port] * 3))
    with lbclient.Client(urls, strategy="round-robin") as client:
        seen = Counter(client.get("/").text for _ in range(30))
    assert sorted(seen.values()) == [10, 10, 10]


async def test_round_robin_is_exact_async(servers):
    """Thirty calls round-robin over three instances are ten each, also async."""
    urls = ports(servers(*[tells_port] * 3))
    async with lbclient.AsyncClient(urls, strategy="round-robin") as client:
        seen = Counter([(await client.get("/")).text for _ in range(30)])
    assert sorted(seen.values()) == [10, 10, 10]


def test_weights_are_kept_in_every_short_window(servers):
    """Weights 3:1 give 30 of 40 calls, and two to four in every window of four."""
    heavy, light = servers(tells_port, tells_port)
    instances = [
        lbclient.Instance("127.0.0.1", heavy.port, weight=3),
        lbclient.Instance("127.0.0.1", light.port, weight=1),
    ]
    with lbclient.Client(instances) as client:
        seen = [int(client.get("/").text) == heavy.port for _ in range(40)]
    assert sum(seen) == 30
    assert all(2 <= sum(seen[start : start + 4]) <= 4 for start in range(37))


def test_an_own_strategy_is_asked(servers):
    """A user's own strategy picks, and is given endpoints and the call's key."""
    urls = ports(servers(tells_port, tells_port))
    keys = []

    class Last:
        def pick(self, candidates, call):
            keys.append(call.key)
            return candidates[-1]

    with lbclient.Client(urls, strategy=Last()) as client:
        seen = {client.get("/", extensions={"lbclient": {"key": "user-42"}}).text for _ in range(5)}
    assert len(seen) == 1
    assert keys == ["user-42"] * 5


def test_a_strategy_that_fails_does_not_fail_the_call(servers, caplog):
    """C18: if a strategy raises, or returns something invalid, this is logged and an instance is
    picked at random."""
    urls = ports(servers(tells_port))

    class Broken:
        def __init__(self):
            self.turn = 0

        def pick(self, *_):
            self.turn += 1
            if self.turn == 1:
                raise RuntimeError("no idea")
            return "nobody"

    with lbclient.Client(urls, strategy=Broken()) as client:
        assert client.get("/").status_code == 200
        assert client.get("/").status_code == 200
    assert "strategy Broken failed" in caplog.text
    assert "'nobody'" in caplog.text


def test_least_busy_avoids_a_busy_instance(servers):
    """Least-busy spreads calls under way, and sends the next to an instance that has none."""
    gates = [Gate(), Gate()]
    instances = servers(*gates)
    with lbclient.Client([one.url for one in instances], strategy="least-busy") as client:
        held = [threading.Thread(target=client.get, args=("/",)) for _ in range(2)]
        for thread in held:
            thread.start()
        for gate in gates:
            assert gate.entered.acquire(timeout=5)
        gates[1].open.set()
        while client.balancer.snapshot().instances[1].in_flight:
            pass
        seen = [int(client.get("/").text) for _ in range(10)]
        gates[0].open.set()
        for thread in held:
            thread.join()
    assert seen == [instances[1].port] * 10


def test_under_somebody_elses_client(servers):
    """A Transport balances under httpx.Client, for one origin of several, and does not change
    Host."""
    one, two, other = servers(tells_port, tells_port, says(200, b"other"))
    transport = lbclient.Transport([one.url, two.url], strategy="round-robin")
    with httpx.Client(mounts={"http://orders": transport}) as client:
        seen = Counter(client.get("http://orders/x").text for _ in range(4))
        assert client.get(other.url).text == "other"
    assert sorted(seen.values()) == [2, 2]
    assert one.requests[0].headers["host"] == "orders"


def test_a_transports_base_path(servers):
    """A path in the service's URL is the base path under an httpx client too."""
    (server,) = servers(tells_port)
    with httpx.Client(transport=lbclient.Transport(f"{server.url}/base")) as client:
        response = client.get("http://orders/x?a=1")
    assert server.requests[0].target == "/base/x?a=1"
    assert response.request.url == "http://orders/x?a=1"


async def test_under_somebody_elses_async_client(servers):
    """An AsyncTransport balances under httpx.AsyncClient."""
    one, two = servers(tells_port, tells_port)
    transport = lbclient.AsyncTransport([one.url, two.url], strategy="round-robin")
    async with httpx.AsyncClient(transport=transport) as client:
        seen = Counter([(await client.get("http://orders/x")).text for _ in range(4)])
    assert sorted(seen.values()) == [2, 2]


def test_max_in_flight_passes_a_call_on(servers):
    """An instance at its limit is passed over for the next."""
    gate = Gate()
    full, free = servers(gate, tells_port)
    with lbclient.Client([full.url, free.url], max_in_flight=1) as client:
        pair = [threading.Thread(target=client.get, args=("/",)) for _ in range(2)]
        for thread in pair:
            thread.start()
        assert gate.entered.acquire(timeout=5)
        seen = [int(client.get("/").text) for _ in range(6)]
        gate.open.set()
        for thread in pair:
            thread.join()
    assert seen == [free.port] * 6


def test_all_at_their_limit_wait_in_turn(servers):
    """Calls above the limit wait in the order of their arrival, and all are served."""
    gate = Gate()
    (server,) = servers(gate)
    done = []
    with lbclient.Client([server.url], max_in_flight=1) as client:

        def call(number):
            client.get(f"/{number}")
            done.append(number)

        threads = []
        for number in range(4):
            threads.append(threading.Thread(target=call, args=(number,)))
            threads[-1].start()
            while len(client.balancer._engine.queue.waiting) < number:
                pass
            if number == 0:
                assert gate.entered.acquire(timeout=5)
        gate.open.set()
        for thread in threads:
            thread.join()
        assert [one.in_flight for one in client.balancer.snapshot().instances] == [0]
    assert [request.target for request in server.requests] == ["/0", "/1", "/2", "/3"]


def test_waiting_at_the_limit_ends(servers):
    """Without a slot within the pool timeout the call fails with a clear error, and charges no
    instance."""
    gate = Gate()
    (server,) = servers(gate)
    with lbclient.Client([server.url], max_in_flight=1) as client:
        first = threading.Thread(target=client.get, args=("/",))
        first.start()
        assert gate.entered.acquire(timeout=5)
        with pytest.raises(lbclient.NoInstanceAvailable, match="limit") as caught:
            client.get("/", timeout=httpx.Timeout(5, pool=0.05))
        with pytest.raises(lbclient.DeadlineExceeded):
            client.get("/", extensions={"lbclient": {"deadline": 0.05}})
        gate.open.set()
        first.join()
        (one,) = client.balancer.snapshot().instances
    assert isinstance(caught.value, httpx.ConnectError)
    assert (one.failures, one.in_flight, one.attempts) == (0, 0, 1)


async def test_waiting_at_the_limit_async(servers):
    """Async calls wait in order without blocking the loop, and a cancelled one leaves nothing
    behind."""
    import anyio

    gate = Gate()
    (server,) = servers(gate)
    async with lbclient.AsyncClient([server.url], max_in_flight=1) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/0")
            assert await anyio.to_thread.run_sync(gate.entered.acquire, True, 5)
            with anyio.move_on_after(0.05):
                await client.get("/cancelled")
            group.start_soon(client.get, "/1")
            await anyio.lowlevel.checkpoint()
            gate.open.set()
        snapshot = client.balancer.snapshot()
    assert [request.target for request in server.requests] == ["/0", "/1"]
    assert snapshot.instances[0].in_flight == 0
    assert not client.balancer._engine.queue.waiting


def test_a_key_from_the_request(servers):
    """`key` gives a request its key, unless its extension has one; the same key goes to the same
    instance."""
    instances = servers(*[tells_port] * 5)
    with lbclient.Client(
        [one.url for one in instances],
        strategy="consistent-hash",
        key=lambda request: request.headers.get("x-user"),
    ) as client:
        by_header = {client.get("/", headers={"X-User": "ann"}).text for _ in range(20)}
        users = {client.get("/", headers={"X-User": f"u{n}"}).text for n in range(60)}
        asked = {"lbclient": {"key": "ann"}}
        by_word = {
            client.get("/", headers={"X-User": f"u{n}"}, extensions=asked).text for n in range(20)
        }
    assert len(by_header) == 1
    assert by_word == by_header
    assert len(users) == 5


def test_a_key_must_be_a_function():
    """`key` must be a function of the request, or None."""
    with pytest.raises(TypeError, match="key must be callable, not text"):
        lbclient.Client(["http://10.0.0.1:1"], key="x-user")
