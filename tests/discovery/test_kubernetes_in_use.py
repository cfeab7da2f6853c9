"""Clients whose service is in Kubernetes, while pods come and go: real calls to real servers.

The rules about time are those of the project: they are measured from the moment at which the API
server has the change, and a busy machine gets some more.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import threading
import time
from operator import gt
from pathlib import Path
from statistics import median, quantiles

import anyio
import pytest

import lbclient
from lbclient import DiscoveryError, Kubernetes
from lbclient.cli import main
from lbclient.discovery.pushed import kubernetes
from lbclient.discovery.pushed.source import _SHARED
from tests.discovery.test_etcd_in_use import BUSY, LOOPBACK, Calls, seconds
from tests.discovery.test_pushed import Watched, start_blocking
from tests.support.faults import authority, certified
from tests.support.http import Gate, tells_port
from tests.support.kubernetes import ApiServer, a_slice, endpoint
from tests.support.slow import shares
from tests.support.watchers import LIMIT, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster():
    with ApiServer() as server:
        yield server


def orders(cluster):
    return Kubernetes("orders", namespace="shop", server=cluster.url)


def slices(cluster, *servers, **conditions):
    """One slice for each server."""
    for number, one in enumerate(servers):
        cluster.put(a_slice(f"s{number}", [endpoint(one.host, **conditions)], one.port))


def until_gone(client, port):
    """Wait until a client does not use an instance any more."""
    until(lambda: port not in {one.port for one in client.balancer.instances()})


@pytest.mark.parametrize("flavour", [lbclient, "httpx2"])
def test_client(cluster, servers, flavour):
    """A client calls the ready endpoints, and uses a change as soon as it is sent."""
    if flavour == "httpx2":
        flavour = pytest.importorskip("lbclient.httpx2")
    first, second = servers(tells_port, tells_port)
    slices(cluster, first)
    with flavour.Client(orders(cluster), allow=LOOPBACK) as client:
        assert client.get("/").text == str(first.port)
        assert first.requests[0].headers["host"] == "orders.shop"
        slices(cluster, second)
        until(lambda: [one.port for one in client.balancer.instances()] == [second.port])
        assert client.get("/").text == str(second.port)


async def test_async_client(cluster, servers):
    """An asynchronous client does the same."""
    first, second = servers(tells_port, tells_port)
    slices(cluster, first)
    async with lbclient.AsyncClient(orders(cluster), allow=LOOPBACK) as client:
        assert (await client.get("/")).text == str(first.port)
        slices(cluster, second)
        await anyio.to_thread.run_sync(until_gone, client, first.port)
        assert (await client.get("/")).text == str(second.port)


@pytest.fixture
def pod(tmp_path, monkeypatch, servers):
    """What a pod has, and a server of the Service."""
    (server,) = servers(tells_port)
    monkeypatch.setattr(kubernetes, "_ACCOUNT", tmp_path)
    authority().cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "namespace").write_text("shop")
    (tmp_path / "token").write_text("t0k3n")
    with ApiServer(certified("127.0.0.1")) as cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
        cluster.tokens = {"t0k3n"}
        slices(cluster, server)
        yield server


def test_url_in_a_pod(pod):
    """In a pod, the URL of the Service is enough."""
    for url in ("http+k8s://orders.shop:http", "http+k8s://orders"):
        with lbclient.Client(url, allow=LOOPBACK) as client:
            assert client.get("/").text == str(pod.port)


def test_resolve_command(pod, capsys):
    """`lbclient resolve` shows the instances of a Service."""
    assert main(["resolve", "http+k8s://orders", "--allow", "127.0.0.0/8"]) == 0
    assert f"127.0.0.1:{pod.port}" in capsys.readouterr().out


def test_addresses_are_filtered(cluster, servers):
    """An endpoint whose address is refused is not called, and the error says why."""
    (server,) = servers(tells_port)
    slices(cluster, server)
    cluster.put(a_slice("b", ["169.254.169.254"], 80))
    with (
        lbclient.Client(orders(cluster), retry=None) as client,
        pytest.raises(DiscoveryError, match=r"pass allow=\['127\.0\.0\.0/8'\] to permit it"),
    ):
        client.get("/")
    assert not server.accepted


def test_terminating_pod_finishes_its_calls(cluster, servers):
    """A pod that is terminating gets no new call, and its call in flight ends normally."""
    gate = Gate()
    old, new = servers(gate, tells_port)
    cluster.put(a_slice("a", [endpoint(old.host)], old.port))
    with lbclient.Client(orders(cluster), allow=LOOPBACK) as client:
        texts = []
        call = threading.Thread(target=lambda: texts.append(client.get("/").text))
        call.start()
        assert gate.entered.acquire(timeout=LIMIT)
        ended = endpoint(old.host, ready=False, serving=True, terminating=True)
        cluster.put(a_slice("b", [endpoint(new.host)], new.port))
        cluster.put(a_slice("a", [ended], old.port))
        until(lambda: [one.port for one in client.balancer.instances()] == [new.port])
        assert {client.get("/").text for _ in range(5)} == {str(new.port)}
        gate.open.set()
        call.join(LIMIT)
        assert texts == [str(old.port)]
    assert old.hits == 1


def test_service_that_is_recreated(cluster, servers):
    """While a Service is recreated, its last endpoints stay in use; then the new ones are used."""
    first, second = servers(tells_port, tells_port)
    slices(cluster, first)
    errors = []
    with lbclient.Client(orders(cluster), allow=LOOPBACK, listener=errors.append) as client:
        client.get("/")
        cluster.delete("s0")
        until(lambda: any(isinstance(one, lbclient.DiscoveryFailed) for one in errors))
        failed = next(one for one in errors if isinstance(one, lbclient.DiscoveryFailed))
        assert "does a Service of this name exist?" in str(failed.error)
        assert client.get("/").text == str(first.port)
        slices(cluster, second)
        until(lambda: [one.port for one in client.balancer.instances()] == [second.port])
        assert client.get("/").text == str(second.port)


@pytest.mark.slow
def test_changes_under_load(cluster, servers):
    """Under 200 calls/s a change is in use within half a second of the API server having it
    (median), and within 1.5 s (p99); `benchmarks/discovery.py` has the strict bound."""
    steady, *others = servers(*[tells_port] * 11)
    slices(cluster, steady)
    took = []
    with lbclient.Client(orders(cluster), allow=LOOPBACK) as client, Calls(client) as calls:
        for number in range(30):
            other = others[number % len(others)]
            cluster.put(a_slice("other", [endpoint(other.host)], other.port))
            took.append(seconds(lambda port=other.port: port in calls.ports))
            cluster.delete("other")
            took.append(seconds(lambda: calls.ports == {steady.port}))
    assert not calls.failures
    assert median(took) <= 0.5
    assert quantiles(took, n=100)[98] <= 0.5 + BUSY


class AsyncCalls:
    """Tasks that call a service again and again, until the end of the block."""

    def __init__(self, client, tasks=10, rate=20):
        self.client = client
        self.failures = []
        self.answers = set()
        self._ended, self._pause = [0] * tasks, 1 / rate

    async def __aenter__(self):
        await self.client.get("/")
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        for task in range(len(self._ended)):
            self._group.start_soon(self._run, task)
        return self

    async def __aexit__(self, *error):
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(*error)

    async def another_round(self):
        """Wait until each task has ended the call that is in flight, or its next one."""
        before = list(self._ended)
        await anyio.to_thread.run_sync(until, lambda: all(map(gt, self._ended, before)))

    async def _run(self, task):
        while True:
            try:
                self.answers.add((await self.client.get("/")).raise_for_status().text)
            except Exception as error:  # noqa: BLE001  # the test shows it
                self.failures.append(error)
            self._ended[task] += 1
            await anyio.sleep(self._pause)


@pytest.mark.slow
async def test_polite_shutdowns(cluster, servers):
    """No call fails while pods shut down politely, one after another, although nothing is
    retried."""
    async with lbclient.AsyncClient(orders(cluster), allow=LOOPBACK, retry=None) as client:
        (now,) = servers(tells_port)
        cluster.put(a_slice("p0", [endpoint(now.host)], now.port))
        async with AsyncCalls(client) as calls:
            for number in range(1, 11):
                (new,) = servers(tells_port)
                cluster.put(a_slice(f"p{number}", [endpoint(new.host)], new.port))
                ended = endpoint(now.host, ready=False, serving=True, terminating=True)
                cluster.put(a_slice(f"p{number - 1}", [ended], now.port))
                await anyio.to_thread.run_sync(until_gone, client, now.port)
                await calls.another_round()
                before = now.hits
                await calls.another_round()
                await calls.another_round()
                await anyio.to_thread.run_sync(now.stop)
                assert now.hits == before
                cluster.delete(f"p{number - 1}")
                now = new
    assert not calls.failures
    assert len(calls.answers) == 11


@pytest.mark.slow
def test_api_server_that_is_gone(cluster, servers):
    """While the API server is gone, all calls succeed; when it is back, a change is in use within
    one step of the back-off."""
    first, second = servers(tells_port, tells_port)
    slices(cluster, first)
    events = []
    with (
        lbclient.Client(orders(cluster), allow=LOOPBACK, listener=events.append) as client,
        Calls(client) as calls,
    ):
        cluster.wait_until_watched()
        cluster.stop()
        until(lambda: sum(isinstance(one, lbclient.DiscoveryFailed) for one in list(events)) == 3)
        slices(cluster, second)
        cluster.restart()
        assert seconds(lambda: calls.ports == {second.port}) <= 5 + BUSY
    assert not calls.failures


@pytest.mark.slow
def test_any_faults(cluster, servers):
    """Whatever happens to the API server and its connections, a client has the newest state
    soon after, and no call fails."""
    several = servers(*[tells_port] * 4)
    slices(cluster, several[0])
    dice = random.Random(7)
    faults = [
        cluster.drop_connections,
        cluster.compact,
        cluster.bookmark,
        cluster.touch,
        cluster.end_watches,
        lambda: (cluster.stop(), cluster.restart()),
    ]
    with lbclient.Client(orders(cluster), allow=LOOPBACK) as client, Calls(client) as calls:
        for number in range(40):
            chosen = dice.sample(several, 2)
            slices(cluster, *chosen)
            for _ in range(dice.randrange(3)):
                dice.choice(faults)()
            if number % 8 == 7:
                wanted = {one.port for one in chosen}
                assert seconds(lambda wanted=wanted: calls.ports == wanted) <= 15 + BUSY
    assert not calls.failures
    lists = [one for one in cluster.asked if one.verb == "list"]
    assert len(lists) < 100


def test_clients_share_a_source(cluster, servers):
    """Several clients may share a source; closing one of them does not end the others."""
    first, second = servers(tells_port, tells_port)
    slices(cluster, first)
    source = orders(cluster)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(lbclient.Client(source, allow=LOOPBACK)) for _ in range(3)]
        for one in clients:
            one.get("/")
        cluster.wait_until_watched(3)
        clients[0].close()
        until(lambda: cluster.watching == 2)
        slices(cluster, second)
        for one in clients[1:]:
            until(lambda one=one: [p.port for p in one.balancer.instances()] == [second.port])
    until(lambda: not cluster.watching)


def open_sockets():
    """How many sockets this process has."""
    links = [one for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return sum(str(one.readlink()).startswith("socket:") for one in links)


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# CPython does not close a socket itself if it ends just before TLS begins (`_create`).
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.usefixtures("_no_collector")
@shares
@pytest.mark.parametrize("driver", ["loop", "thread"])
def test_watches_that_are_cancelled_anywhere(cluster, driver, share, tmp_path):
    """A watch that is cancelled at any moment ends once, with None, and leaves no connection, no
    thread and no task behind, not even until the garbage collector runs."""
    path = tmp_path / "ca.crt"
    authority().cert_pem.write_to_path(path)
    start = {"loop": Kubernetes.start, "thread": start_blocking}[driver]
    dice = random.Random(9)
    with ApiServer(certified("127.0.0.1")) as secure:
        sources = []
        for one in (cluster, secure):
            for number in range(60):  # two pages
                one.put(a_slice(f"s{number}", [f"10.0.0.{number}"]))
            sources.append(Kubernetes("orders", namespace="shop", server=one.url, ca=path))
        warm = Watched()
        start(sources[1], warm.update, warm.alive, warm.ended)()
        assert warm.ends() is None
        until(lambda: not (cluster.connections or secure.connections))
        sockets, threads = open_sockets(), threading.active_count()
        for _ in range(int(200 * share)):
            seen = Watched()
            cancel = start(dice.choice(sources), seen.update, seen.alive, seen.ended)
            time.sleep(dice.random() * 0.02)  # a moment at random
            cancel()
            assert seen.ends() is None
        until(lambda: not (cluster.connections or secure.connections))
        until(lambda: open_sockets() <= sockets)
        until(lambda: threading.active_count() <= threads)
    assert not _SHARED._tasks


def test_no_log_shows_a_token(cluster, servers, caplog):
    """No logger shows the token, neither at the level DEBUG nor when the server refuses it."""
    caplog.set_level(logging.DEBUG, "")
    cluster.tokens = {"other"}
    source = Kubernetes("orders", namespace="shop", server=cluster.url, token="s3cr3t-t0k3n")
    with lbclient.Client(source, retry=None) as client, pytest.raises(DiscoveryError):
        client.get("/")
    cluster.tokens = None
    slices(cluster, *servers(tells_port))
    with lbclient.Client(source, allow=LOOPBACK) as client:
        client.get("/")
    assert "refused the token (401)" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_addresses_of_a_pod_are_filtered(cluster, servers):
    """An address of a pod that is refused by the filter is left out; the other one is used."""
    (server,) = servers(tells_port)
    pod = {"pod": "p", "uid": "u"}
    cluster.put(a_slice("a", [endpoint(server.host, **pod)], server.port))
    cluster.put(a_slice("b", [endpoint("::1", **pod)], server.port, family="IPv6"))
    for allow, addresses in (
        ([*LOOPBACK, "::1/128"], ("127.0.0.1", "::1")),
        (LOOPBACK, ("127.0.0.1",)),
    ):
        with lbclient.Client(orders(cluster), allow=allow) as client:
            assert client.get("/").text == str(server.port)
            (instance,) = client.balancer.instances()
            assert instance.addresses == addresses
