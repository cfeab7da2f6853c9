"""Clients whose service is in etcd, while instances and members come and go: real etcd, real calls.

The rules about time are those of the project: they are measured from the moment at which etcd has
the change, and a busy machine gets some more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from itertools import pairwise
from statistics import median, quantiles

import httpx
import pytest

import lbclient
from lbclient import Etcd, Instance, Registration
from lbclient.discovery.pushed import etcd as etcd_module
from tests.support import etcd as support
from tests.support.etcd import NEEDED, Cluster, Service, Tunnel, Watching
from tests.support.http import tells_port
from tests.support.watchers import LIMIT, until

pytestmark = [NEEDED, pytest.mark.slow]
PREFIX = "/orders/"
LOOPBACK = ["127.0.0.0/8"]
BUSY = 1.0
"""Seconds more that a busy machine gets."""


class Calls:
    """Threads that call a service again and again, `rate` times a second each, until the end of the
    block; `answers` counts the instances by their answers, and `failures` has what went wrong."""

    def __init__(self, client: lbclient.Client, threads: int = 4, rate: float = 50) -> None:
        self.client = client
        self.answers: Counter[str] = Counter()
        self.failures: list[Exception] = []
        self._pause = 1 / rate
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self):
        self.client.get("/")  # the first answer of etcd is there
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()

    @property
    def ports(self):
        return {one.port for one in self.client.balancer.instances()}

    def _run(self):
        while not self._end.wait(self._pause):
            try:
                response = self.client.get("/")
                response.raise_for_status()
                self.answers[response.text] += 1
            except Exception as error:  # noqa: BLE001  # the test shows it
                self.failures.append(error)


def seconds(true):
    """How long it takes until something is true."""
    began = time.monotonic()
    until(true)
    return time.monotonic() - began


@pytest.fixture
def member(tmp_path):
    with support.Etcd(tmp_path) as one:
        yield one


def test_three_processes(member):
    """Three processes register. One is killed: a client knows within the TTL and a second. One
    leaves: a client knows within half a second. One stays; no call fails."""
    ttl = 2
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(Service(PREFIX, member.url, ttl)) for _ in range(3)]
        for one in services:
            one.registered()
        killed, leaves, stays = (one.port for one in services)
        client = stack.enter_context(lbclient.Client(Etcd(PREFIX, member.url), allow=LOOPBACK))
        calls = stack.enter_context(Calls(client))
        assert calls.ports == {killed, leaves, stays}
        services[0].process.kill()
        assert seconds(lambda: calls.ports == {leaves, stays}) <= ttl + 1 + BUSY
        services[1].process.stdin.close()
        assert services[1].process.stdout.readline() == b"left\n"
        assert seconds(lambda: calls.ports == {stays}) <= 0.5 + BUSY
        services[1].process.wait(LIMIT)
        calls.answers.clear()
        until(lambda: calls.answers[str(stays)] > 50)
    assert not calls.failures
    assert set(calls.answers) == {str(stays)}


def test_changes_under_load(member, servers):
    """Under 200 calls/s a change is in use within half a second of etcd having it (p99); a busy
    machine gets a second more."""
    steady, *others = servers(*[tells_port] * 11)
    member.put(f"{PREFIX}steady", f"127.0.0.1:{steady.port}")
    took = []
    with (
        lbclient.Client(Etcd(PREFIX, member.url), allow=LOOPBACK) as client,
        Calls(client) as calls,
    ):
        for number in range(50):
            other = others[number % len(others)]
            member.put(f"{PREFIX}other", f"127.0.0.1:{other.port}")
            took.append(seconds(lambda port=other.port: port in calls.ports))
            member.delete(f"{PREFIX}other")
            took.append(seconds(lambda: calls.ports == {steady.port}))
    assert not calls.failures
    assert quantiles(took, n=100)[98] <= 0.5 + BUSY


def test_ten_thousand_keys(member):
    """A service of 10,000 keys is listed page by page, and a change of one key costs at most 20 ms
    of CPU time."""
    member.fill(PREFIX, 10_000)
    changed = threading.Semaphore(0)

    def notice(event):
        if isinstance(event, lbclient.InstancesChanged):
            changed.release()

    with lbclient.Balancer(Etcd(PREFIX, member.url), listener=notice) as balancer:
        balancer.call(str)
        assert len(balancer.instances()) == 10_000
        assert changed.acquire(timeout=LIMIT)
        spent = [time.process_time()]
        for number in range(10):
            member.put(f"{PREFIX}{number:05}", f"10.9.0.{number}:8080")
            assert changed.acquire(timeout=LIMIT)
            spent.append(time.process_time())
        assert sum(one.host.startswith("10.9.") for one in balancer.instances()) == 10
    assert median(after - before for before, after in pairwise(spent)) <= 0.02


def test_instance_that_left_gets_no_call(member, servers):
    """An instance whose lease was revoked gets no call that begins half a second later."""
    stays, leaves = servers(tells_port, tells_port)
    via = Etcd(PREFIX, member.url)
    with (
        Registration("orders", Instance("127.0.0.1", stays.port), via=via),
        lbclient.Client(via, allow=LOOPBACK) as client,
    ):
        with (
            Registration("orders", Instance("127.0.0.1", leaves.port), via=via),
            Calls(client) as calls,
        ):
            until(lambda: leaves.hits > 20)
        until(lambda: calls.ports == {stays.port})
        with Calls(client) as calls:
            before = leaves.hits
            until(lambda: calls.answers[str(stays.port)] > 50)
            assert leaves.hits == before
    assert not calls.failures


def test_etcd_that_is_gone(member, servers):
    """While etcd is gone, all calls succeed; a while after it is back, changes are in use again."""
    first, second = servers(tells_port, tells_port)
    member.put(f"{PREFIX}a", f"127.0.0.1:{first.port}")
    with (
        lbclient.Client(Etcd(PREFIX, member.url), allow=LOOPBACK) as client,
        Calls(client) as calls,
    ):
        member.kill()
        until(lambda: client.balancer.snapshot().error is not None)
        assert member.url in str(client.balancer.snapshot().error)
        assert calls.ports == {first.port}
        member.start()
        member.wait_until_ready()
        member.put(f"{PREFIX}b", f"127.0.0.1:{second.port}")
        until(lambda: calls.ports == {first.port, second.port})
        assert client.balancer.snapshot().error is None
    assert not calls.failures


def test_registration_while_etcd_restarts(member):
    """A registration outlives a restart of etcd, with or without its data."""
    via = Etcd(PREFIX, member.url)
    with Registration("orders", Instance("127.0.0.1", 80), via=via, ttl=3):
        member.kill()
        member.start()
        member.wait_until_ready()
        until(lambda: member.keys(PREFIX))
        member.kill()
        member.forget()
        member.start()
        member.wait_until_ready()
        assert not member.keys(PREFIX)
        until(lambda: member.keys(PREFIX))
    assert not member.keys(PREFIX)


# A cluster


class Members:
    """A cluster of three with a tunnel before each member, so that a test knows which is in use."""

    def __init__(self, cluster: Cluster, tunnels: list[Tunnel]) -> None:
        self.cluster = cluster
        self.tunnels = tunnels
        self.source = Etcd(PREFIX, [one.url for one in tunnels])

    def in_use(self) -> tuple[support.Etcd, list[support.Etcd]]:
        """The member that the only watch uses, and the others."""
        (used,) = [n for n, tunnel in enumerate(self.tunnels) if tunnel.accepted]
        return self.cluster.members[used], [
            one for n, one in enumerate(self.cluster.members) if n != used
        ]


@pytest.fixture
def members(tmp_path):
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(tmp_path))
        yield Members(cluster, [stack.enter_context(Tunnel(url)) for url in cluster.urls])


def put(member, key, value):
    """Set a key, as soon as there is a leader."""
    until(lambda: _is_put(member, key, value))


def _is_put(member, key, value):
    try:
        return member.put(key, value)
    except (AssertionError, httpx.TransportError):
        return False


def in_use(balancer):
    return sorted(map(str, balancer.instances()))


def test_killed_member(members):
    """If the member in use is killed, the watch goes on with another one, and misses no change."""
    members.cluster.members[0].put(f"{PREFIX}a", "10.0.0.1:80")
    with lbclient.Balancer(members.source) as balancer:
        assert balancer.call(str) == "10.0.0.1:80"
        used, (other, _) = members.in_use()
        used.kill()
        put(other, f"{PREFIX}b", "10.0.0.2:80")
        until(lambda: in_use(balancer) == ["10.0.0.1:80", "10.0.0.2:80"])


def test_member_that_hangs(members, monkeypatch):
    """If the member in use answers nothing any more, and does not close its connections either, the
    watch goes on with another one."""
    monkeypatch.setattr(etcd_module, "_SILENCE", 0.5)
    members.cluster.members[0].put(f"{PREFIX}a", "10.0.0.1:80")
    with lbclient.Balancer(members.source) as balancer:
        assert balancer.call(str) == "10.0.0.1:80"
        used, (other, _) = members.in_use()
        used.pause()
        put(other, f"{PREFIX}b", "10.0.0.2:80")
        until(lambda: in_use(balancer) == ["10.0.0.1:80", "10.0.0.2:80"])


def test_member_without_a_leader(members):
    """A member that has lost its leader gives no sign of life: the watch fails, and says why."""
    with Watching(members.source) as watching:
        watching.answer()
        watching.alive()
        used, others = members.in_use()
        for one in others:
            one.pause()
        failure = watching.failure()
        for one in others:
            one.go_on()
    assert "no leader" in failure
    assert used.url.rpartition(":")[2] not in failure  # the tunnels' ports are named
    put(others[0], f"{PREFIX}b", "10.0.0.2:80")
    with lbclient.Balancer(members.source) as balancer:  # leaders may change for some seconds
        until(lambda: known(balancer) == ["10.0.0.2:80"])


def known(balancer):
    """What a balancer finds now."""
    with contextlib.suppress(lbclient.DiscoveryError):
        balancer.refresh()
    return in_use(balancer)


def test_calls_while_each_member_is_killed(members, servers):
    """Members that are killed and started again, one after the other, fail no call and lose no
    registration."""
    (server,) = servers(tells_port)
    with (
        Registration("orders", Instance("127.0.0.1", server.port), via=members.source, ttl=3),
        lbclient.Client(members.source, allow=LOOPBACK) as client,
        Calls(client) as calls,
    ):
        for number, member in enumerate(members.cluster.members):
            member.kill()
            other = members.cluster.members[number - 1]
            put(other, f"{PREFIX}n{number}", f"127.0.0.1:{server.port}")
            member.start()
            member.wait_until_ready()
        until(lambda: calls.answers[str(server.port)] > 100)
        others = {f"{PREFIX}n{number}" for number in range(3)}
        assert len(members.cluster.members[0].keys(PREFIX).keys() - others) == 1
    assert not calls.failures
