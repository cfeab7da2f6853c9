"""Watched services: when a watch begins, what its answers and failures change, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sys
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

import lbclient
from lbclient import (
    Answer,
    Balancer,
    DiscoveryError,
    DiscoveryFailed,
    Instance,
    InstancesChanged,
    RejectedRecord,
    ServiceAbsent,
)
from lbclient.discovery.registry import URL_SOURCES, UrlSource, pushed
from tests.support.watchers import LIMIT, Registry, Scripted, several, until


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

        import anyio

        answers = []

        async def first():
            answers.append(await balancer.acall(call))

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.to_thread.run_sync(registry.wait)
            assert not answers
            registry.update(several(5))
        assert answers == [5]


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
        registry.end(DiscoveryError("no leader"))
        until(lambda: balancer.snapshot().error is not None)
        assert str(balancer.snapshot().error) == "no leader"
        assert balancer.call(port) == 1
        registry.wait()
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
    registry = Registry(several(1))
    balancer = balancers(registry)
    balancer.call(port)
    registry.wait()
    balancer.close()
    assert registry.left.acquire(timeout=LIMIT)
    caplog.clear()
    registry.update(several(2))
    registry.update(None)
    registry.alive()
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
    assert threading.active_count() < 20


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
