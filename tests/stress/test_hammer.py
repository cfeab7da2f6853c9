"""Storms on threads: whatever happens at the same time, counts are right, and zero at the end.

A slow storm lasts 12 seconds, or LBCLIENT_HAMMER_SECONDS (an environment variable).
"""

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from collections import Counter

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest
import trio

import lbclient
from lbclient import Answer, Balancer, BreakerPolicy, Instance, LoadBalancingError, RetryPolicy
from lbclient.core.engine import Engine
from tests.support.hammer import Instances, descriptors
from tests.support.slow import slow_rows

SECONDS = float(os.environ.get("LBCLIENT_HAMMER_SECONDS", "12"))
THREADS = 16
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
AT_ONE, AT_ALL = 3, 10
POLICIES = {
    "max_in_flight": AT_ONE,
    "max_in_flight_total": AT_ALL,
    "retry": RetryPolicy(backoff=0.001, backoff_max=0.005, deadline=5),
    "breaker": BreakerPolicy(fail_max=3, reset_timeout=0.02, reset_timeout_max=0.1),
}


class Churning:
    """Answers that differ each time: some instances join, some leave, some move, and some answers
    are empty."""

    def __init__(self, ports, dice):
        self.ports, self.dice = ports, dice
        self.rounds = 0

    def resolve(self):
        self.rounds += 1
        dice = self.dice
        if dice.random() < 0.1:
            raise lbclient.DiscoveryError("no answer")
        some = dice.sample(self.ports, dice.randint(2, len(self.ports)))
        return Answer([self.instance(port) for port in some], 0)

    def instance(self, port):
        dice = self.dice
        host = (dice.choice(HOSTS),)
        weight, priority = dice.randint(0, 3), dice.choice([0, 0, 0, 1])
        return Instance(f"i{port}.test", port, weight, priority, addresses=host)


class Counted:
    """Every endpoint that ever had an attempt, and whether its count was always possible."""

    def __init__(self, monkeypatch):
        self.seen, self.wrong, self.samples = set(), [], 0
        for name in ("_take", "release", "_retake"):
            monkeypatch.setattr(Engine, name, self.watched(getattr(Engine, name)))

    def watched(self, change):
        def changed(engine, pick, *args, **kwargs):
            self.seen.add(pick.endpoint)
            change(engine, pick, *args, **kwargs)
            if not 0 <= pick.endpoint.in_flight <= AT_ONE:
                self.wrong.append((pick.endpoint, change))

        return changed

    def sample(self, engine):
        with engine.lock:
            counts = [one.in_flight for one in self.seen]
            total = engine._picker.in_flight
        self.samples += 1
        if min(counts, default=0) < 0 or max(counts, default=0) > AT_ONE:
            self.wrong.append(counts)
        if sum(counts) != total or total > AT_ALL:
            self.wrong.append((sum(counts), total))


class Storm:
    """Runs functions repeatedly, each on a thread, until the time is over or one raises."""

    def __init__(self, seconds):
        self.until = time.monotonic() + seconds
        self.errors = []
        self.done = Counter()

    def goes_on(self):
        return not self.errors and time.monotonic() < self.until

    def run(self, *functions):
        def guarded(function):
            try:
                while self.goes_on():
                    self.done[function()] += 1
            except BaseException as error:  # noqa: BLE001  # whatever it is, the test tells it
                self.errors.append(error)

        threads = [threading.Thread(target=guarded, args=(one,)) for one in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(self.until - time.monotonic() + 60)
        assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
        if self.errors:
            raise self.errors[0]


def use_of(client, dice):
    """A call as callers make it, well-behaved or not."""

    def use():
        target = f"/{dice.getrandbits(64):x}"
        method = dice.choice(["GET", "GET", "DELETE", "POST"])
        how = dice.choices(["whole", "stream", "half", "unread", "dropped"], [8, 4, 4, 4, 1])[0]
        try:
            if how == "whole":
                response = client.request(method, target)
                assert response.text.startswith(target)
                return response.status_code
            if how == "dropped":
                client.send(client.build_request(method, target), stream=True)
                return how
            with client.stream(method, target) as response:
                if how == "unread":
                    return how
                read = b""
                for chunk in response.iter_raw():
                    read += chunk
                    if how == "half" and dice.random() < 0.3:
                        break
                assert read.startswith(target.encode())
                return how
        except httpx.TransportError as error:  # those of lbclient are of its kind too
            return type(error).__name__

    return use


@pytest.mark.parametrize("seconds", [2.0, *slow_rows(SECONDS)])
@pytest.mark.filterwarnings("ignore:a response of .* was never closed:ResourceWarning")
def test_sixteen_threads_in_a_storm(monkeypatch, seconds):
    """C5, C7, C14, D21, I17, I30: sixteen threads use one client whose instances join, leave and
    move all the time, whose breakers open, whose limits are low, and whose responses are read in
    part or dropped unclosed. No count is ever impossible, each response belongs to its own request,
    and at the end nothing is in flight and no connection is left."""
    counted = Counted(monkeypatch)
    before = descriptors()
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(
            Instances.serving(random.Random(1), 6, hosts=HOSTS, large=40)
        ) as instances,
    ):
        resolver = Churning(instances.ports, random.Random(2))
        client = lbclient.Client(resolver, name="orders.test", min_refresh=0.01, **POLICIES)
        engine = client.balancer._engine
        storm = Storm(seconds)
        storm.run(
            *(use_of(client, random.Random(10 + number)) for number in range(THREADS)),
            lambda: time.sleep(0.002) or counted.sample(engine),
            lambda: time.sleep(0.05) or bool(gc.collect()),  # httpx's responses are cycles
        )
        assert counted.wrong == []
        gc.collect()
        instances.healthy = True
        resolver.dice = random.Random(3)
        assert client.get("/calm", timeout=10).text.startswith("/calm")
        counted.sample(engine)
        assert counted.wrong == []
        assert [one.in_flight for one in counted.seen if one.in_flight] == []
        assert engine._picker.in_flight == 0
        client.close()
        portal.call(instances.at_rest, 0)
    assert descriptors() <= before
    assert resolver.rounds > seconds
    assert len(counted.seen) > len(instances.ports)
    assert all(storm.done[how] for how in (200, 503, "stream", "half", "unread", "dropped"))
    assert storm.done["RemoteProtocolError"]


class Shared:
    """One balancer, as threads and event loops use it."""

    def __init__(self):
        instances = [Instance(f"{name}.test", 80) for name in "abcd"]
        self.dice = random.Random(4)
        self.balancer = Balancer(instances, rng=random.Random(5), **POLICIES)
        self.engine = self.balancer._engine

    def outcome(self, instance):
        if self.dice.random() < 0.2:
            raise ConnectionResetError
        return instance

    def attempt(self, instance):
        time.sleep(self.dice.random() / 1000)
        return self.outcome(instance)

    async def aattempt(self, instance):
        await anyio.sleep(self.dice.random() / 1000)
        self.assert_unlocked()
        return self.outcome(instance)

    def assert_unlocked(self):
        """A loop that continues with this task must not hold the lock for another one."""
        assert not self.engine.lock._is_owned()

    def thread(self):
        with contextlib.suppress(LoadBalancingError, ConnectionResetError):
            self.balancer.call(self.attempt)
        return "thread"

    async def task(self):
        for _ in range(20):
            self.assert_unlocked()
            with contextlib.suppress(LoadBalancingError, ConnectionResetError):
                await self.balancer.acall(self.aattempt, idempotent=True)

    async def loop(self):
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(self.task)
            for _ in range(100):
                self.assert_unlocked()
                await anyio.lowlevel.checkpoint()
        return "loop"


@pytest.mark.slow
def test_threads_and_loops_share_a_balancer(monkeypatch):
    """C25: threads, two asyncio loops and one trio loop wait in one queue for the same few slots:
    no call is stuck, the limits are never exceeded, and no loop switches tasks while it holds the
    balancer's lock."""
    counted, shared, storm = Counted(monkeypatch), Shared(), Storm(3)
    storm.run(
        *[shared.thread] * 6,
        lambda: asyncio.run(shared.loop()),
        lambda: asyncio.run(shared.loop()),
        lambda: trio.run(shared.loop),
        lambda: time.sleep(0.002) or counted.sample(shared.engine),
    )
    assert storm.done["thread"]
    assert storm.done["loop"] >= 3
    assert counted.wrong == []
    snapshot = shared.balancer.snapshot()
    assert [one.in_flight for one in snapshot.instances] == [0] * 4
    assert sum(one.failures for one in snapshot.instances) > 0
    assert shared.engine._picker.in_flight == 0
    assert not shared.engine.queue.waiting
