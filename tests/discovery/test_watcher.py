"""Watched services: when a watch begins, what its answers and failures change, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import re
import subprocess
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

import lbclient
from lbclient import (
    Answer,
    Balancer,
    DiscoveryError,
    DiscoveryFailed,
    FirstOf,
    Instance,
    InstancesChanged,
    RejectedRecord,
    ServiceAbsent,
    Union,
)
from lbclient._internal.signals import Pause
from lbclient.core.call import NO_OPTIONS
from lbclient.discovery.registry import URL_SOURCES, UrlSource, pushed
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.protocol import bind
from lbclient.simulation.run import simulated
from lbclient.simulation.world import World
from tests.faults.test_green_threads import green
from tests.support.http import tells_port
from tests.support.slow import slow_rows
from tests.support.watchers import LIMIT, Registry, Scripted, several, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def balancers():
    """Make balancers that are closed at the end."""
    made: list[Balancer] = []

    def make(service, **options) -> Balancer:
        made.append(Balancer(service, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def port(instance: Instance) -> int:
    return instance.port


def ports(balancer: Balancer) -> list[int]:
    return sorted(one.port for one in balancer.instances())


# The plain path


def test_watch_begins_with_the_first_call(balancers):
    """A watch begins with the first call of the balancer, and not before; the call gets the first
    answer."""
    registry = Registry(several(1))
    balancer = balancers(registry)
    assert balancer.snapshot().age is None
    assert not registry.started_at
    assert balancer.call(port) == 1
    assert balancer.call(port) == 1
    assert len(registry.started_at) == 1


@pytest.mark.anyio
async def test_watch_of_an_async_balancer():
    """A call on an event loop waits for the first answer, without blocking the loop."""
    registry = Registry()
    async with Balancer(registry) as balancer:

        async def call(instance):
            return instance.port

        answers = []

        async def first():
            answers.append(await balancer.acall(call))

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.to_thread.run_sync(registry.wait)
            assert not answers
            registry.update(several(5))
        assert answers == [5]


def test_watch_as_a_coroutine():
    """A `watch` that is a coroutine function, and a class instead of an object, are refused."""

    class Odd(Registry):
        async def watch(self, update, alive):
            pass

    with pytest.raises(TypeError, match=r"service must not have a coroutine function watch\(\)"):
        Balancer(Odd())
    with pytest.raises(TypeError, match=r"or an object with watch.*; not the class Registry"):
        Balancer(Registry)


def test_update_takes_effect(balancers):
    """An update is in use at once: what is gone gets no more calls, what is new gets some."""
    registry = Registry(several(1, 2))
    balancer = balancers(registry)
    balancer.call(port)
    registry.update(several(2, 3))
    until(lambda: ports(balancer) == [2, 3])
    assert {balancer.call(port) for _ in range(10)} == {2, 3}


def test_update_is_a_difference(balancers):
    """An endpoint that stays keeps what is known of it."""
    registry = Registry(several(1, 2))
    balancer = balancers(registry)
    for _ in range(4):
        balancer.call(port)
    registry.update(several(2, 3))
    until(lambda: ports(balancer) == [2, 3])
    attempts = {one.instance.port: one.attempts for one in balancer.snapshot().instances}
    assert attempts == {2: 2, 3: 0}


def test_failure_keeps_the_set_and_starts_again(balancers, caplog):
    """After a failure the last good set stays in use, the error is shown and logged, and the watch
    begins again by itself."""
    registry = Registry(several(1))
    balancer = balancers(registry, name="orders.test")
    balancer.call(port)
    registry.wait()
    with caplog.at_level(logging.INFO, "lbclient"):
        registry.answer = None
        registry.end(DiscoveryError("no leader"))
        until(lambda: balancer.snapshot().error is not None)
        assert str(balancer.snapshot().error) == "no leader"
        assert balancer.call(port) == 1
        registry.wait()
        registry.update(several(1))
        until(lambda: len(caplog.messages) == 2)
    assert balancer.snapshot().error is None
    first, second = registry.started_at
    assert second - first >= 0.99
    assert caplog.messages == [
        "discovery of orders.test failed: no leader",
        "discovery of orders.test works again",
    ]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (None, "watch() of Registry returned"),
        (DiscoveryError("no leader"), "no leader"),
        (KeyError("port"), "KeyError: 'port'"),
        (OSError("refused"), "refused"),
        (SystemExit(1), "watch() was ended by SystemExit"),
        (KeyboardInterrupt(), "watch() was ended by KeyboardInterrupt"),
        (asyncio.CancelledError(), "watch() was ended by CancelledError"),
    ],
)
def test_end_of_a_watch_is_a_failure(balancers, outcome, said):
    """However a watch ends, this is a failure: the set stays, and the error says why."""
    failures = []
    registry = Registry(several(1))
    balancer = balancers(registry, listener=failures.append)
    balancer.call(port)
    registry.wait()
    registry.answer = None  # the watch that follows does not end the failure
    registry.end(outcome)
    until(lambda: [one for one in failures if isinstance(one, DiscoveryFailed)])
    assert lbclient.discovery.resolver.text_of(balancer.snapshot().error) == said
    assert ports(balancer) == [1]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ([], "update() of Registry must be called with an lbclient.Answer, not list"),
        (None, "update() of Registry must be called with an lbclient.Answer, not NoneType"),
        (Answer([]), "the answer about Registry holds no usable instance"),
        (
            Answer([], refused=[RejectedRecord("a:1", "it is closed")]),
            "the answer about Registry holds no usable instance; refused a:1: it is closed",
        ),
    ],
)
def test_useless_update_is_a_failure(balancers, sent, said):
    """An update that is no answer, or has no instance, is a failure. The watch goes on, and the
    next good update ends the failure."""
    registry = Registry(several(1))
    balancer = balancers(registry)
    balancer.call(port)
    registry.update(sent)
    until(lambda: balancer.snapshot().error is not None)
    assert str(balancer.snapshot().error) == said
    assert ports(balancer) == [1]
    registry.update(several(2))
    until(lambda: ports(balancer) == [2])
    assert balancer.snapshot().error is None
    assert len(registry.started_at) == 1


def test_absent_service(balancers):
    """A watch that ends with ServiceAbsent drops the set, and calls say why; the service may come
    back."""
    registry = Registry(several(1))
    balancer = balancers(registry)
    balancer.call(port)
    registry.wait()
    registry.answer = ServiceAbsent("orders was deleted")
    registry.end(registry.answer)
    until(lambda: not ports(balancer))
    with pytest.raises(ServiceAbsent, match="orders was deleted"):
        balancer.call(port)
    registry.answer = several(7)
    balancer.refresh()
    assert balancer.call(port) == 7


def test_first_failure_wakes_all(balancers):
    """When the first watch fails, every call that waits for it fails at once, with the cause."""
    registry = Registry(DiscoveryError("no leader"))
    balancer = balancers(registry)
    with ThreadPoolExecutor(8) as pool:
        errors = [pool.submit(balancer.call, port).exception(LIMIT) for _ in range(8)]
    assert {type(one) for one in errors} == {DiscoveryError}
    assert {str(one) for one in errors} == {"no leader"}


def test_first_answer_wakes_all(balancers):
    """All calls that wait for the first answer get it at once."""
    registry = Registry()
    balancer = balancers(registry)
    with ThreadPoolExecutor(50) as pool:
        calls = [pool.submit(balancer.call, port) for _ in range(50)]
        registry.wait()
        registry.update(several(9))
        assert {one.result(LIMIT) for one in calls} == {9}


def test_refused_records_are_logged(balancers, caplog):
    """What a watcher has left out is logged once."""
    refused = RejectedRecord("a:1", "it is closed")
    registry = Registry(Answer([Instance("127.0.0.1", 1)], refused=[refused]))
    balancer = balancers(registry, name="orders.test")
    balancer.call(port)
    registry.update(Answer([Instance("127.0.0.1", 2)], refused=[refused]))
    until(lambda: ports(balancer) == [2])
    balancer.close()
    assert [one for one in caplog.messages if "refused" in one] == [
        "orders.test: refused a:1: it is closed"
    ]


def test_events(balancers):
    """A listener is told of instances that joined and left, as after a lookup."""
    events = []
    registry = Registry(several(1))
    balancer = balancers(registry, listener=events.append)
    balancer.call(port)
    registry.update(several(2))
    until(lambda: sum(isinstance(one, InstancesChanged) for one in events) == 2)
    change = [one for one in events if isinstance(one, InstancesChanged)][1]
    assert [one.port for one in change.joined] == [2]
    assert [one.port for one in change.left] == [1]


# Over HTTP


def test_client_of_a_watched_service(servers):
    """A client sends no request to an instance that an update has removed, and a response that has
    begun is read to its end."""
    first, second = servers(tells_port, tells_port)
    registry = Registry(several(first.port))
    with lbclient.Client(registry, name="orders.test") as client:
        with client.stream("GET", "/") as response:
            registry.update(several(second.port))
            until(lambda: ports(client.balancer) == [second.port])
            assert {client.get("/").text for _ in range(3)} == {str(second.port)}
            assert response.read().decode() == str(first.port)
        assert first.requests[0].headers["host"] == "orders.test"
        assert len(first.requests) == 1


@pytest.mark.anyio
async def test_async_client_of_a_watched_service(servers):
    """The same on an event loop."""
    first, second = servers(tells_port, tells_port)
    source = Scripted(lambda update, _, __: update(several(first.port)))
    async with lbclient.AsyncClient(source, allow=["127.0.0.0/8"]) as client:
        assert (await client.get("/")).text == str(first.port)
        source.watches[0][0](several(second.port))
        await anyio.to_thread.run_sync(
            lambda: until(lambda: ports(client.balancer) == [second.port])
        )
        assert (await client.get("/")).text == str(second.port)
    assert first.requests[0].headers["host"] == "orders.test"
    assert source.stopped == 1


# Its end


def test_close_ends_the_watch(balancers):
    """`close` of the balancer closes the watcher, and does not wait for it."""
    registry = Registry(several(1))
    balancer = balancers(registry)
    balancer.call(port)
    registry.wait()
    balancer.close()
    assert registry.closed.wait(LIMIT)
    assert registry.left.acquire(timeout=LIMIT)


def test_close_before_the_first_call(balancers):
    """A watcher whose watch never began is closed with its balancer, too."""
    registry = Registry()
    balancers(registry).close()
    assert registry.closed.wait(LIMIT)
    assert not registry.started_at


def test_updates_after_the_end_do_nothing(balancers, caplog):
    """What a closed watch sends, or how it ends, changes nothing and is not logged."""
    registry, later = Registry(several(1)), Registry(several(1))
    balancer, other = balancers(registry), balancers(later)
    balancer.call(port)
    other.call(port)
    registry.wait()
    later.wait()
    balancer.close()
    assert registry.left.acquire(timeout=LIMIT)
    caplog.clear()
    registry.update(several(2))
    registry.update(None)
    registry.alive()
    later.update(several(3))
    until(lambda: ports(other) == [3])
    assert ports(balancer) == [1]
    assert balancer.snapshot().error is None
    assert not caplog.messages


def test_dropped_balancer_ends_its_watch():
    """A balancer that is garbage collected ends its watch, though the watcher lives on."""
    registry = Registry(several(1))
    balancer = Balancer(registry)
    dropped = weakref.ref(balancer)
    balancer.call(port)
    registry.wait()
    del balancer

    def gone():
        gc.collect()
        return dropped() is None and registry.closed.is_set()

    until(gone)
    assert registry.left.acquire(timeout=LIMIT)


def test_watcher_in_the_background(balancers):
    """A watcher that runs by itself is stopped with each balancer, and serves several."""
    scripted = Scripted(lambda update, _, __: update(several(3)))
    one, other = (balancers(scripted, allow=["127.0.0.0/8"]) for _ in range(2))
    assert one.call(port) == other.call(port) == 3
    assert one.target.authority == "orders.test"
    one.close()
    assert scripted.stopped == 1
    scripted.watches[0][0](several(4))
    scripted.watches[1][0](several(5))
    until(lambda: ports(other) == [5])
    assert ports(one) == [3]


# Time


class Virtual:
    """A balancer of a watched service, in a world with a clock of its own."""

    def __init__(self, script, **options) -> None:
        self.world = World()
        self.starts: list[float] = []

        def start(*functions) -> None:
            self.starts.append(self.world.clock())
            script(*functions)

        self.source = Scripted(start)
        self.balancer = simulated(
            self.world, self.source, name="orders.test", rng=random.Random(1), **options
        )
        results = self.world.spawn(self._first_call())
        self.world.run(self.world.clock() + 6)
        assert results == [None]

    def _first_call(self):
        """A call that waits in virtual time until there is an outcome."""
        with contextlib.suppress(DiscoveryError), bind(self.balancer).begin(NO_OPTIONS) as call:
            for step in call:
                if isinstance(step, Pause):
                    yield step
                else:
                    with step:
                        step.result = None

    def run(self, seconds: float) -> None:
        self.world.run(self.world.clock() + seconds)

    @property
    def update(self):
        return self.source.watches[-1][0]

    @property
    def alive(self):
        return self.source.watches[-1][1]

    def fail(self) -> None:
        self.source.watches[-1][2](DiscoveryError("gone"))

    def port(self) -> int:
        return self.balancer.call(port)


def at(*numbers: int) -> Answer:
    """An answer with instances that no filter refuses."""
    return Answer([Instance("10.0.0.1", number) for number in numbers])


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ("refuses", 3_600),
        ("answers and ends", 600),
        ("is silent", 3_600),
        *slow_rows(("refuses", 86_400), ("answers and ends", 86_400), ("is silent", 86_400)),
    ],
)
def test_a_day_without_its_source(how, seconds):
    """While the source is gone for a day, no call fails, the watch begins at most once a second and
    at least every 35 s; within 35 s of the return the new set is in use."""
    there = True

    def script(update, _, ended):
        if there:
            update(at(1) if virtual is None else at(2))
        elif how == "answers and ends":
            update(at(1))
        if not there and how != "is silent":
            ended(DiscoveryError("gone"))

    virtual = None
    virtual = Virtual(script)
    there = False
    begun = virtual.world.clock()
    virtual.fail()
    while virtual.world.clock() < begun + seconds:
        virtual.run(7)
        assert virtual.port() == 1
        if how == "is silent" and len(virtual.starts) > 1:
            virtual.fail()  # the peer closes the connection in the end
    gaps = [later - sooner for sooner, later in itertools.pairwise(virtual.starts)]
    assert min(gaps) > 0.999
    assert max(gaps) <= 37
    there = True
    virtual.run(35)
    assert virtual.port() == 2
    assert virtual.balancer.snapshot().error is None


def test_back_off_of_a_watch():
    """After failures the watch begins again after 1, 2, 4 ... 30 s, less up to a tenth, and after a
    good answer these waits start again."""
    virtual = Virtual(lambda _, __, ended: ended(DiscoveryError("gone")))
    virtual.run(200)
    gaps = [later - sooner for sooner, later in itertools.pairwise(virtual.starts)]
    for gap, most in zip(gaps[:8], (1, 2, 4, 8, 16, 30, 30, 30), strict=True):
        assert max(1, 0.9 * most) <= gap <= most


def test_back_off_of_a_watch_that_answers():
    """The waits also grow if each watch answers and then fails; they are short again after a watch
    that went on for half a minute after its answer."""

    def script(update, _, ended):
        update(at(1))
        ended(DiscoveryError("gone"))

    virtual = Virtual(script)
    virtual.run(200)
    gaps = [later - sooner for sooner, later in itertools.pairwise(virtual.starts)]
    for gap, most in zip(gaps, (1, 2, 4, 8, 16, 30, 30, 30), strict=False):
        assert max(1, 0.9 * most) <= gap <= most
    virtual.source.script = lambda update, _, __: update(at(1))
    virtual.run(31)
    virtual.run(30)
    starts = len(virtual.source.watches)
    virtual.fail()
    virtual.run(1)
    assert len(virtual.source.watches) == starts + 1


def test_a_call_that_needs_an_answer_starts_the_watch():
    """While no instance is known, calls make the watch begin within 5 s of its last failure."""
    virtual = Virtual(lambda _, __, ended: ended(DiscoveryError("gone")))
    for _ in range(300):
        virtual.run(0.5)
        with pytest.raises(DiscoveryError, match="gone"):
            virtual.port()
    gaps = [later - sooner for sooner, later in itertools.pairwise(virtual.starts)]
    assert min(gaps) > 0.999
    assert max(gaps) <= 5.5


def test_silence_at_first():
    """A first call fails after 5 s if the watch sends nothing, with the name of the service; the
    first answer ends this, without a new watch."""
    virtual = Virtual(lambda *_: None)
    with pytest.raises(DiscoveryError, match=r"orders\.test has not answered within 5 s"):
        virtual.port()
    virtual.run(3600)
    virtual.update(at(4))
    virtual.run(0)
    assert virtual.port() == 4
    assert len(virtual.starts) == 1


def test_age():
    """The age counts from the last update or sign of life, and not from a useless update; a failure
    does not change it."""
    virtual = Virtual(lambda update, _, __: update(at(1)))
    virtual.run(100)
    assert virtual.balancer.snapshot().age == pytest.approx(106)
    virtual.alive()
    assert virtual.balancer.snapshot().age == 0
    virtual.run(10)
    virtual.update(Answer([]))
    virtual.run(1)
    virtual.alive()  # that nothing is left says nothing about the set in use
    assert virtual.balancer.snapshot().age == pytest.approx(11)
    virtual.update(at(2))
    virtual.run(1)
    assert virtual.balancer.snapshot().age == pytest.approx(1)


def test_max_stale():
    """With `max_stale`, a set that its watch has not confirmed for longer is not used, whether the
    watch has failed or is silent; a sign of life, or an update, makes it usable again."""
    virtual = Virtual(lambda update, _, __: update(at(1)), max_stale=60)
    virtual.alive()
    virtual.run(60)
    assert virtual.port() == 1
    virtual.run(1)
    with pytest.raises(
        DiscoveryError, match=r"61\.0 s old, .*max_stale=60 allows; its watch is si"
    ):
        virtual.port()
    virtual.alive()
    assert virtual.port() == 1
    virtual.source.script = lambda *_: None
    virtual.fail()
    virtual.run(61)
    with pytest.raises(DiscoveryError, match=r"max_stale=60 allows; last error: gone"):
        virtual.port()
    virtual.update(at(2))
    virtual.run(1)
    assert virtual.port() == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "gone.test"])
def test_max_stale_and_refused_instances(host):
    """An answer whose instances are all refused, or have no address, does not confirm the set in
    use, and neither do the signs of life after it; `max_stale` counts from the last good answer."""
    refusing = Answer([Instance(host, 9)])
    virtual = Virtual(lambda update, _, __: update(at(1)), max_stale=60, within="shop.test")
    virtual.run(14)
    virtual.update(refusing)
    virtual.run(1)
    virtual.alive()
    assert virtual.balancer.snapshot().age == pytest.approx(21)
    for _ in range(4):
        virtual.run(10)
        virtual.alive()
        virtual.update(refusing)
    with pytest.raises(DiscoveryError, match="max_stale=60 allows"):
        virtual.port()
    virtual.update(at(2))
    virtual.run(1)
    assert virtual.port() == 2
    assert virtual.balancer.snapshot().age == pytest.approx(1)


def test_update_during_the_check_of_another():
    """If each update arrives while the addresses of the last one are checked, the updates still
    confirm the set in use."""
    virtual = Virtual(lambda update, _, __: update(at(1)), max_stale=60)
    checker = virtual.balancer._engine.subscription._watch.checker
    check, numbers = checker.check, itertools.count(2)

    def busy(answer):
        virtual.update(at(next(numbers)))
        return check(answer)

    checker.check = busy
    virtual.update(at(next(numbers)))
    virtual.run(100)
    assert next(numbers) > 900
    assert virtual.balancer.snapshot().age <= 0.2
    assert virtual.port() > 900


def test_a_burst_of_updates():
    """A thousand updates at once cost two rounds, and a thousand within a second cost about ten.
    The last one is in use."""
    events = []
    virtual = Virtual(lambda update, _, __: update(at(1)))
    plan = virtual.balancer._engine.pool.plan
    virtual.balancer._engine.pool.plan = lambda *given: (events.append(1), plan(*given))[1]
    for number in range(1000):
        virtual.update(at(number + 1))
    virtual.run(1)
    assert virtual.port() == 1000
    assert len(events) <= 2
    events.clear()
    for number in range(1000):
        virtual.update(at(number + 1))
        virtual.run(0.001)
    virtual.run(0.2)
    assert virtual.port() == 1000
    assert len(events) <= 12


def test_an_isolated_update_takes_effect_at_once():
    """An update that follows no other within a tenth of a second is not delayed."""
    virtual = Virtual(lambda update, _, __: update(at(1)))
    for number in range(2, 50):
        virtual.run(0.11)
        virtual.update(at(number))
        virtual.run(0)
        assert virtual.port() == number


def test_subset_of_a_watched_service():
    """`max_instances` applies to each update: one instance that comes or goes changes one place."""
    virtual = Virtual(lambda update, _, __: update(at(*range(1, 101))), max_instances=20)
    before = set(ports(virtual.balancer))
    assert len(before) == 20
    gone = min(before)
    virtual.update(at(*(set(range(1, 101)) - {gone})))
    virtual.run(1)
    after = set(ports(virtual.balancer))
    assert len(after) == 20
    assert len(before & after) == 19


def test_refresh_of_a_watch_that_runs():
    """`refresh` of a running watch returns at once, since its last answer is current; it raises the
    error of the last update."""
    scripted = Scripted(lambda update, _, __: update(at(1)))
    with Balancer(scripted) as balancer:
        for _ in range(3):
            balancer.refresh()
        assert len(scripted.watches) == 1
        scripted.watches[0][0](Answer([]))
        with pytest.raises(DiscoveryError, match="holds no usable instance"):
            balancer.refresh()


def test_refresh_starts_a_failed_watch(balancers):
    """`refresh` does not wait for the back-off of a failed watch, and raises its next error."""
    registry = Registry(DiscoveryError("no leader"))
    balancer = balancers(registry)
    with pytest.raises(DiscoveryError, match="no leader"):
        balancer.refresh()
    registry.answer = several(1)
    balancer.refresh()
    gaps = [later - sooner for sooner, later in itertools.pairwise(registry.started_at)]
    assert min(gaps) >= 0.99


# Several services as one


@pytest.mark.parametrize("watched_first", [True, False])
def test_union_with_a_watched_part(watched_first):
    """A watched part of a Union changes the set at once, in either place; while its watch fails,
    its last answer stays in use, and the failure is listed."""
    scripted = Scripted(lambda update, _, __: update(at(1)))
    other = Registry(Answer([Instance("10.0.0.9", 9)]))
    parts = [scripted, other] if watched_first else [other, scripted]
    with Balancer(Union(*parts), min_refresh=0.01) as balancer:
        balancer.call(port)
        until(lambda: ports(balancer) == [1, 9])
        scripted.watches[0][0](at(2))
        until(lambda: ports(balancer) == [2, 9])
        scripted.script = lambda *_: None
        scripted.watches[0][2](DiscoveryError("gone"))
        other.update(Answer([Instance("10.0.0.9", 8)]))
        until(lambda: ports(balancer) == [2, 8])
        assert balancer.snapshot().error is None
        balancer.refresh()
    assert other.closed.wait(LIMIT)


@pytest.mark.parametrize("list_first", [True, False])
def test_first_of_with_a_watched_part(list_first):
    """A watched service before a list serves while its watch has an answer; behind a list it does
    not serve. A watch whose first outcome is a failure makes way at once."""
    scripted = Scripted(lambda update, _, __: update(at(1)))
    rest = [Instance("10.0.0.9", 9)]
    parts = [rest, scripted] if list_first else [scripted, rest]
    with Balancer(FirstOf(*parts, patience=0)) as balancer:
        assert balancer.call(port) == (9 if list_first else 1)
        if not list_first:
            scripted.script = lambda *_: None
            scripted.watches[0][2](DiscoveryError("gone"))
            until(lambda: ports(balancer) == [9])
            until(lambda: len(scripted.watches) == 2)
            scripted.watches[1][0](at(2))
            until(lambda: ports(balancer) == [2])
            assert not balancer._engine.subscription.is_static


def test_age_of_a_composite():
    """The age of a composite counts from the last round, or from the last sign of life of all its
    watches, whichever is later."""
    now = [0.0]
    scripted = [Scripted(lambda update, _, __: update(at(1)), name) for name in ("a", "b")]
    with Balancer(Union(*scripted), clock=lambda: now[0]) as balancer:
        balancer.call(port)
        now[0] = 100.0
        assert balancer.snapshot().age == 100
        scripted[0].watches[0][1]()
        assert balancer.snapshot().age == 100
        scripted[1].watches[0][1]()
        assert balancer.snapshot().age == 0


def test_age_of_a_first_of():
    """The age of a FirstOf, and `max_stale`, follow the part in use: neither its other parts nor
    the rounds that ask all parts again make its set younger or older."""
    now = [0.0]
    first, second, third = (Scripted(lambda *_: None, name) for name in ("a", "b", "c"))
    second.script = lambda update, _, __: update(at(1))
    third.script = lambda update, _, __: update(at(2))
    first.script = lambda _, __, ended: ended(DiscoveryError("gone"))
    service = FirstOf(first, second, third)
    with Balancer(service, clock=lambda: now[0], max_stale=60) as balancer:
        assert balancer.call(port) == 1
        balancer.refresh()
        now[0] = 50.0
        second.watches[0][1]()
        assert balancer.snapshot().age == 0
        now[0] = 100.0
        for one in third.watches:
            one[1]()
        assert balancer.snapshot().age == 50
        second.script = lambda *_: None
        second.watches[0][2](DiscoveryError("gone"))
        with pytest.raises(DiscoveryError, match="b: gone"):
            balancer.refresh()
        assert balancer.call(port) == 1
        now[0] = 111.0
        with pytest.raises(DiscoveryError, match=r"61\.0 s old, more than max_stale=60 allows"):
            balancer.call(port)


# Threads, processes


@pytest.mark.parametrize("many", [50, *slow_rows(1000)])
def test_a_thousand_watched_services(many):
    """A thousand services whose watchers run in the background take no thread each."""
    scripted = Scripted(lambda update, _, __: update(at(1)))
    balancers = [Balancer(scripted) for _ in range(many)]
    for balancer in balancers:
        assert balancer.call(port) == 1
    until(lambda: threading.active_count() < 10)
    most = 0

    def in_use() -> bool:
        nonlocal most
        most = max(most, threading.active_count())
        return all(ports(balancer) == [2] for balancer in balancers)

    for update, _, _ in scripted.watches:
        update(at(2))
    until(in_use)
    assert most < 40
    for balancer in balancers:
        balancer.close()
    assert scripted.stopped == many


def test_update_storm():
    """Updates, signs of life and failures from 16 threads, while calls are made and the balancer is
    refreshed: no call fails, and the last update is in use."""
    scripted = Scripted(lambda update, _, __: update(at(1, 2)))
    with Balancer(scripted, rng=random.Random(1)) as balancer:
        balancer.call(port)

        def storm(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(100):
                update, alive, ended = scripted.watches[-1]
                choice = rng.random()
                if choice < 0.8:
                    update(at(*rng.sample(range(1, 9), 3)))
                elif choice < 0.9:
                    alive()
                elif choice < 0.95:
                    update(Answer([]))
                else:
                    ended(DiscoveryError("gone"))
                assert balancer.call(port) < 9

        with ThreadPoolExecutor(16) as pool:
            for one in [pool.submit(storm, seed) for seed in range(16)]:
                one.result(LIMIT)
        count = len(scripted.watches)
        scripted.watches[-1][2](DiscoveryError("gone"))
        until(lambda: len(scripted.watches) > count or balancer.snapshot().error is None)
        until(lambda: scripted.watches[-1][0](at(77)) or ports(balancer) == [77])
        assert balancer.snapshot().error is None


@pytest.mark.parametrize("seed", range(5))
def test_close_during_updates(seed):
    """A balancer may be closed while its watch sends: nothing is raised, the watch is stopped, and
    no thread stays."""
    registry = Registry(several(1))
    balancer = Balancer(registry)
    balancer.call(port)
    over = threading.Event()

    def send() -> None:
        number = 0
        while not over.is_set():
            number += 1
            registry.update(several(number % 9 + 1))

    with ThreadPoolExecutor(2) as pool:
        sending = [pool.submit(send) for _ in range(2)]
        for _ in range(seed):
            balancer.call(port)
        balancer.close()
        assert registry.left.acquire(timeout=LIMIT)
        over.set()
        for one in sending:
            one.result(LIMIT)
    with pytest.raises(RuntimeError):
        balancer.call(port)


def test_close_of_a_watcher_may_fail_or_block(balancers, caplog):
    """An exception of a watcher's `close`, or a `close` that blocks, is nobody's problem."""
    blocked = threading.Event()
    closing: list[threading.Thread] = []

    class Stubborn(Registry):
        def close(self) -> None:
            closing.append(threading.current_thread())
            super().close()
            blocked.wait(LIMIT)
            raise RuntimeError("no")

    registry = Stubborn(several(1))
    balancer = balancers(registry)
    balancer.call(port)
    balancer.close()
    assert registry.closed.wait(LIMIT)
    blocked.set()
    assert registry.left.acquire(timeout=LIMIT)
    closing[0].join(LIMIT)
    assert not closing[0].is_alive()
    assert not [one for one in caplog.messages if "no" in one.split()]


def test_no_thread_can_be_started(balancers, monkeypatch):
    """If no thread can be started for a watch, this is a failure like others, and the watch begins
    later."""
    registry = Registry(several(1))

    def refuse(_, __):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(THREAD_SCHEDULER, "spawn", refuse)
        balancer = balancers(registry)
        with pytest.raises(DiscoveryError, match="RuntimeError: can't start new thread"):
            balancer.call(port)
    balancer.refresh()
    assert balancer.call(port) == 1


PROGRAM = """
import os, sys, threading, time
import lbclient
from lbclient import Answer, Balancer, Instance

class Registry:
    def __init__(self):
        self.pids = []
    def watch(self, update, alive):
        self.pids.append(os.getpid())
        self.update = update
        update(Answer([Instance("10.0.0.1", len(self.pids))]))
        threading.Event().wait()
    def close(self):
        print("closed", flush=True)

registry = Registry()
balancer = Balancer(registry)
port = lambda one: one.port
def child(work):
    if (pid := os.fork()) == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def program(text: str) -> str:
    """What a program prints; it must end by itself, without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", PROGRAM + text],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_fork_before_the_first_call():
    """A child that was forked before the first call has a watch of its own, and so has its
    parent."""
    shown = program(
        """
child(lambda: print(balancer.call(port), registry.pids == [os.getpid()], flush=True))
print(balancer.call(port), registry.pids == [os.getpid()], flush=True)
"""
    )
    assert shown.splitlines() == ["1 True", "1 True"]


def test_fork_after_the_first_call():
    """A child knows what its parent knew, begins a watch of its own with its first call, and
    ignores the watch of its parent; to close the child's balancer ends no other watch."""
    shown = program(
        """
balancer.call(port)
of_parent = registry.update
def work():
    assert registry.pids == [os.getppid()]
    balancer.call(port)
    while balancer.call(port) != 2:
        time.sleep(0.001)
    of_parent(Answer([Instance("10.0.0.1", 99)]))
    later = Registry()
    other = Balancer(later)
    other.call(port)
    later.update(Answer([Instance("10.0.0.1", 5)]))
    while other.call(port) != 5:
        time.sleep(0.001)
    print(balancer.call(port), registry.pids == [os.getppid(), os.getpid()], flush=True)
    balancer.close()
child(work)
registry.update(Answer([Instance("10.0.0.1", 7)]))
while balancer.call(port) != 7:
    time.sleep(0.001)
print("parent", balancer.call(port), flush=True)
"""
    )
    assert [one for one in shown.splitlines() if one != "closed"] == ["2 True", "parent 7"]


def test_fork_and_garbage():
    """A child whose balancer is garbage collected before its first call leaves the watcher, whose
    sockets may be its parent's, alone."""
    shown = program(
        """
balancer.call(port)
def work():
    global balancer
    del balancer
    import gc
    gc.collect()
    later, closed = Registry(), threading.Event()
    later.close = closed.set
    other = Balancer(later)
    other.call(port)
    other.close()
    assert closed.wait(20)
child(work)
print("alive", balancer.call(port), flush=True)
"""
    )
    assert shown == "alive 1\n"


def test_exit_of_the_interpreter():
    """A watch that runs delays the exit by nothing, and prints nothing."""
    assert program("balancer.call(port)") == ""


@pytest.mark.parametrize("when", ["early", "made"])
def test_green_threads(when):
    """Under gevent a watch runs on a green thread, and its updates are used."""
    assert green("watched", when).ports == [1, 2]


# URLs of registries


@pytest.fixture
def urls(monkeypatch):
    """The URLs `http+mine://` of a registry in a module of its own, and the arguments of
    `from_url`."""
    given = []

    def from_url(url, query):
        given.append((url, query))
        return Scripted(lambda update, _, __: update(several(3)), name=url.netloc)

    module = types.SimpleNamespace(from_url=from_url)
    monkeypatch.setitem(sys.modules, "lbclient.discovery.pushed.mine", module)
    source = UrlSource(pushed("mine"), "service", keys=("dc", "tag"), named_port=True)
    monkeypatch.setitem(URL_SOURCES, "mine", source)
    return given


def test_url_of_a_registry(urls, balancers):
    """A URL names a service of a registry, with the scheme and the base path of its instances, and
    with a query for the registry."""
    balancer = balancers("https+mine://orders/v1?dc=eu&tag=", allow=["127.0.0.0/8"])
    ((url, query),) = urls
    assert url.netloc == "orders"
    assert query == {"dc": "eu", "tag": ""}
    assert balancer.target.origin == "https://orders"
    assert balancer.target.path == "/v1"
    assert balancer.call(port) == 3


def test_port_by_name(urls, balancers):
    """The port of a registry's URL may be a name, and the URL needs no name that is a host."""
    balancer = balancers("http+mine://orders.shop:http")
    assert urls[0][0].netloc == "orders.shop:http"
    assert balancer.target.name == "orders.shop:http"
    assert balancer.target.origin == "http://scripted.invalid"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http+mine://orders?zone=a", "an unknown key 'zone' in its query; the keys are dc, tag"),
        ("http+mine://orders?dc=a&dc=b", "must have 'dc' once in its query; the keys are dc, tag"),
        ("http+mine://orders?dc", "must have a query such as 'key=value&key=value'; the keys are"),
        ("http+mine://orders?dc=a#b", "must not contain a fragment"),
        ("http+mine://orders#b", "must not contain a query or a fragment"),
        ("http+mine://me:secret@orders", "must not contain a user name or password"),
        ("http+srv://orders?dc=a", "must not contain a query or a fragment"),
        ("http+dns://orders:http", "a URL whose port, if any, is from 1 to 65535"),
    ],
)
@pytest.mark.usefixtures("urls")
def test_bad_url_of_a_registry(url, said):
    """A key that the registry does not know, or one that is given twice, is refused with the
    choices, as is everything that other URLs may not have."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Balancer(url)
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith("service ")
