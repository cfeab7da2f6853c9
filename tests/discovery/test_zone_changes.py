"""A real zone of BIND changes while calls are made."""

import threading
import time
from contextlib import contextmanager

import anyio
import anyio.to_thread
import pytest

import lbclient
from tests.support.dns import Bind
from tests.support.http import tells_port, transports_of

NAME = "_http._tcp.shop.test."
TTL = 1


@pytest.fixture
def four(servers):
    return servers(*[tells_port] * 4)


@pytest.fixture
def bind(tmp_path, four):
    records = [f"{NAME} {TTL} SRV 0 1 {one.port} here" for one in four[:3]]
    with Bind(tmp_path, "shop.test.", NAME, "\n".join([*records, "here A 127.0.0.1"])) as server:
        yield server


def add(server) -> str:
    return f"update add {NAME} {TTL} SRV 0 1 {server.port} here.shop.test."


def remove(server) -> str:
    return f"update delete {NAME} SRV 0 1 {server.port} here.shop.test."


@contextmanager
def callers(client, count=8):
    """Threads that make calls all the time, GET and POST alternating; an error is raised at the
    end."""
    done, failures = threading.Event(), []

    def call():
        try:
            while not done.is_set():
                assert client.get("/").status_code == 200
                assert client.post("/", content=b"once").status_code == 200
        except Exception as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def seconds_until(holds) -> float:
    """Wait for it, and return how long it took; TimeoutError after far too long."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > 10 * TTL:
            raise TimeoutError
        time.sleep(0.005)
    return time.monotonic() - begun


def known(client) -> set[int]:
    return {one.port for one in client.balancer.instances()}


def replace(bind, client, old, new) -> None:
    """Add an instance and wait until it is called; remove the other and wait until it is
    unknown."""
    in_time = 1.1 * TTL + 1
    bind.update(add(new))
    hits = new.hits
    assert seconds_until(lambda: new.hits > hits) <= in_time
    bind.update(remove(old))
    assert seconds_until(lambda: old.port not in known(client)) <= in_time


def options(bind) -> dict:
    return {
        "nameservers": [bind.address],
        "allow": ["127.0.0.0/8"],
        "strategy": "round-robin",
    }


@pytest.mark.slow
def test_changes_are_in_use_in_time_and_cost_no_call(bind, four):
    """D21, I30: an added record is called, and a removed one no longer, within TTL + 10 % + one
    second; once its instance is drained it may stop, and no GET or POST fails."""
    *_, old, new = four
    with lbclient.Client("http+srv://shop.test", **options(bind)) as client, callers(client):
        seconds_until(lambda: old.hits)
        replace(bind, client, old, new)
        replace(bind, client, new, old)
        snapshot = client.balancer.snapshot()
        seconds_until(lambda: len(transports_of(client)) == 3)
        new.stop()
        hits = old.hits
        seconds_until(lambda: old.hits > hits + 50)
    assert known(client) == {one.port for one in four} - {new.port}
    assert {one.failures for one in snapshot.instances} == {0}


@pytest.mark.slow
@pytest.mark.anyio
async def test_changes_cost_no_call_async(bind, four):
    """D21, I30: the same for tasks of an event loop."""
    *_, old, new = four
    done = anyio.Event()

    async def call(client):
        while not done.is_set():
            assert (await client.get("/")).status_code == 200
            assert (await client.post("/", content=b"once")).status_code == 200

    async with (
        lbclient.AsyncClient("http+srv://shop.test", **options(bind)) as client,
        anyio.create_task_group() as group,
    ):
        for _ in range(8):
            group.start_soon(call, client)
        await anyio.to_thread.run_sync(seconds_until, lambda: old.hits)
        await anyio.to_thread.run_sync(replace, bind, client, old, new)
        await anyio.to_thread.run_sync(seconds_until, lambda: len(transports_of(client)) == 3)
        await anyio.to_thread.run_sync(old.stop)
        hits = new.hits
        await anyio.to_thread.run_sync(seconds_until, lambda: new.hits > hits + 50)
        done.set()
    assert {one.failures for one in client.balancer.snapshot().instances} == {0}


@pytest.mark.slow
def test_nameserver_that_restarts(bind, four):
    """D4, D22: while BIND is stopped calls continue; when it is back, its changes are found."""
    with lbclient.Client("http+srv://shop.test", **options(bind)) as client, callers(client, 2):
        seconds_until(lambda: client.balancer.snapshot().age is not None)
        bind.update(add(four[3]))
        bind._stop()
        with pytest.raises(lbclient.DiscoveryError, match="no answer"):
            client.balancer.refresh()
        assert client.balancer.snapshot().error is not None
        assert bind._begin()
        seconds_until(lambda: client.balancer.snapshot().error is None)
        seconds_until(lambda: four[3].hits)
