"""`eject`, `admit` and the listener: which instances are in rotation, and which events are
reported."""

import contextlib
import gc
import logging
import os
import queue
import random
import threading

import pytest

import lbclient
from lbclient import (
    Admitted,
    AttemptPicked,
    Balancer,
    BreakerChanged,
    BreakerPolicy,
    DiscoveryFailed,
    Ejected,
    Instance,
    InstancesChanged,
    NoInstanceAvailable,
    RetryBudget,
    RetryDecided,
    RetryPolicy,
    RetryRefused,
)
from lbclient.balancer.listener import Listening
from tests.support.http import says, tells_port

pytestmark = pytest.mark.anyio

ONE, TWO = Instance("10.0.0.1", 1), Instance("10.0.0.2", 2)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def picks(balancer, many=10):
    return {balancer.call(lambda instance: instance) for _ in range(many)}


def standings(balancer):
    return [one.standing for one in balancer.snapshot().instances]


def test_who_is_ejected_is_out_for_so_long():
    """An ejected instance gets no call until the time of its ejection is over."""
    clock = Clock()
    with Balancer([ONE, TWO], clock=clock) as balancer:
        balancer.eject(ONE, 60)
        assert standings(balancer) == ["ejected", "serving"]
        assert picks(balancer) == {TWO}
        clock.now += 59.9
        assert picks(balancer) == {TWO}
        clock.now += 0.1
        assert picks(balancer) == {ONE, TWO}


def test_who_is_admitted_is_in_at_once():
    """`admit` ends an ejection, and closes a breaker."""
    with Balancer([ONE, TWO], breaker=BreakerPolicy(fail_max=1)) as balancer:
        balancer.eject(ONE, 60)
        balancer.admit(ONE)
        assert picks(balancer) == {ONE, TWO}
        with pytest.raises(ConnectionError):
            balancer.call(fails)
        assert "open" in standings(balancer)
        for one in (ONE, TWO):
            balancer.admit(one)
        assert standings(balancer) == ["serving", "serving"]
        assert picks(balancer) == {ONE, TWO}


def fails(instance):
    raise ConnectionResetError(str(instance))


def test_all_may_be_ejected_by_hand():
    """Even the last instance can be ejected by hand; the error says when it will be back."""
    clock = Clock()
    with Balancer([ONE], clock=clock) as balancer:
        balancer.eject(ONE, 60)
        with pytest.raises(NoInstanceAvailable, match=r"10\.0\.0\.1:1 \(ejected\)") as caught:
            picks(balancer)
        assert caught.value.retry_in == 60


def test_who_is_ejected_is_back_at_the_promised_time():
    """At the time that the error names, and not before, the instance gets calls again."""
    clock = Clock()
    with Balancer([ONE], clock=clock) as balancer:
        balancer.eject(ONE, 60)
        clock.now = 159.0
        with pytest.raises(NoInstanceAvailable) as caught:
            picks(balancer)
        assert caught.value.retry_in == 1
        clock.now = 160.0
        assert picks(balancer) == {ONE}


@pytest.mark.parametrize("seed", range(10))
def test_retry_in_is_when_the_next_attempt_is_sent(seed):
    """I16: in an outage `retry_in` is the time until the next attempt: a call before it is refused
    here, and a call at this time is sent."""
    clock, sent = Clock(), []

    def fail(instance):
        sent.append(instance)
        raise ConnectionResetError

    policy = BreakerPolicy(fail_max=1, reset_timeout=2.0, reset_timeout_max=60.0)
    options = {"breaker": policy, "retry": None, "rng": random.Random(seed)}
    with Balancer([ONE, TWO], clock=clock, **options) as balancer:
        for _ in range(40):
            before = len(sent)
            with pytest.raises((ConnectionError, NoInstanceAvailable)) as caught:
                balancer.call(fail)
            if len(sent) > before:
                continue
            wait = caught.value.retry_in
            clock.now += 0.99 * wait
            with pytest.raises(NoInstanceAvailable):
                balancer.call(fail)
            clock.now += 0.01 * wait + 1e-6
            with pytest.raises(ConnectionError):
                balancer.call(fail)
    assert len(sent) > 15


@pytest.mark.parametrize("seed", range(5))
def test_the_end_of_an_outage_is_found_soon(seed):
    """I16: once a probe has ended an outage of all instances, the others are probed within
    `reset_timeout`, however long their breakers would have stayed open."""
    clock, down, served = Clock(), [True], {}

    def answer(instance):
        if down:
            raise ConnectionResetError
        served.setdefault(instance, clock.now)

    policy = BreakerPolicy(fail_max=1, reset_timeout=2.0, reset_timeout_max=200.0)
    options = {"breaker": policy, "retry": None, "rng": random.Random(seed)}
    with Balancer([ONE, TWO, Instance("10.0.0.3", 3)], clock=clock, **options) as balancer:
        for tick in range(6000):
            clock.now += 0.25
            if tick == 4000:
                down.clear()
            with contextlib.suppress(ConnectionError, NoInstanceAvailable):
                balancer.call(answer, idempotent=True)
    first, *others = sorted(served.values())
    assert len(others) == 2
    assert max(others) - first <= 2.5


@pytest.mark.parametrize("seed", range(5))
def test_who_passes_its_checks_is_probed_soon(seed):
    """I18: when an instance passes its health checks again, it is probed within `reset_timeout`,
    however long its breaker would have stayed open."""
    clock, down, sent = Clock(), [ONE], []

    def answer(instance):
        sent.append((clock.now, instance))
        if instance in down:
            raise ConnectionResetError

    policy = BreakerPolicy(fail_max=1, reset_timeout=2.0, reset_timeout_max=200.0)
    options = {"breaker": policy, "retry": None, "rng": random.Random(seed)}
    with Balancer([ONE, TWO], clock=clock, **options) as balancer:
        engine = balancer._engine
        endpoint = engine.pool.find(ONE)
        for tick in range(2200):
            clock.now += 0.25
            if tick == 2000:
                engine.record_health(endpoint, endpoint.breaker, healthy=False, why="refused")
                down.clear()
                engine.record_health(endpoint, endpoint.breaker, healthy=True, why="")
                passed = clock.now
            with contextlib.suppress(ConnectionError):
                balancer.call(answer, idempotent=True)
    assert next(at for at, one in sent if one == ONE and at >= passed) - passed <= 2.25


def test_who_is_ejected_opens_the_next_tier():
    """If all instances of a tier are ejected, the next tier serves until they are back."""
    clock = Clock()
    second = Instance("10.0.0.2", 2, priority=1)
    with Balancer([ONE, second], clock=clock) as balancer:
        balancer.eject(ONE, 60)
        assert picks(balancer) == {second}
        clock.now += 60
        assert picks(balancer) == {ONE}


def test_panic_does_not_bring_the_ejected_back():
    """A panic ignores breakers, but not ejections by hand."""
    policy = BreakerPolicy(fail_max=1, panic_threshold=1.0)
    with Balancer([ONE, TWO], breaker=policy, retry=None) as balancer:
        balancer.eject(ONE, 60)
        with pytest.raises(ConnectionError):
            balancer.call(fails)
        assert picks(balancer) == {TWO}


def test_calls_under_way_go_on():
    """An ejected instance completes its attempts in flight."""
    with Balancer([ONE, TWO]) as balancer, balancer.acquire() as instance:
        balancer.eject(instance, 60)
        assert [one.in_flight for one in balancer.snapshot().instances].count(1) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((ONE, 0), ValueError, "seconds must be"),
        ((ONE, True), TypeError, "seconds must be"),
        ((TWO, 1), ValueError, r"has no instance 10\.0\.0\.2:2"),
        (("10.0.0.1:1", 1), TypeError, r"instance must be lbclient\.Instance"),
        ((None, 1), TypeError, r"instance must be lbclient\.Instance"),
    ],
)
def test_what_eject_refuses(arguments, error, text):
    """An unknown instance or an invalid time is refused by an error that names it."""
    with Balancer([ONE]) as balancer, pytest.raises(error, match=text):
        balancer.eject(*arguments)


class Ear:
    """A listener that a test can wait for."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[lbclient.Event] = queue.SimpleQueue()

    def __call__(self, event: lbclient.Event) -> None:
        self.heard.put(event)

    def next(self, many: int) -> list[lbclient.Event]:
        return [self.heard.get(timeout=10) for _ in range(many)]


def test_a_listener_hears_it_all_in_order():
    """Picks, retries, breaker changes and ejections are each reported once, in order."""
    clock, ear = Clock(), Ear()
    rng = random.Random(1)
    policy = BreakerPolicy(fail_max=1)
    budget = RetryBudget(ratio=0.0, reserve=1.0, window=1.0)
    retry = RetryPolicy(backoff=0, backoff_max=0, budget=budget)
    with Balancer(
        [ONE, TWO], listener=ear, clock=clock, rng=rng, breaker=policy, retry=retry, name="orders"
    ) as balancer:
        with pytest.raises(ConnectionError):
            balancer.call(fails, idempotent=True)
        balancer.eject(ONE, 5)
        balancer.admit(ONE)
        heard = ear.next(8)
    kinds = [type(event) for event in heard]
    assert kinds == [
        AttemptPicked, BreakerChanged, RetryDecided,
        AttemptPicked, BreakerChanged, RetryRefused,
        Ejected, Admitted,
    ]  # fmt: skip
    assert [event.reason for event in heard if isinstance(event, AttemptPicked)] == [
        "Weighted",
        "retry",
    ]
    assert heard[0].instance == heard[1].instance != heard[3].instance
    assert heard[1].state == "open"
    assert heard[2].delay == 0
    assert (heard[6].instance, heard[6].seconds, heard[6].by) == (ONE, 5, "hand")
    assert {(event.service, event.at) for event in heard} == {("orders", 100.0)}


async def test_a_listener_hears_async_calls():
    """Calls on an event loop are reported too, on the listener's own thread."""
    threads = queue.SimpleQueue()
    async with Balancer([ONE], listener=lambda _: threads.put(threading.current_thread())) as one:
        await one.acall(answers)
        assert threads.get(timeout=10) is not threading.current_thread()


async def answers(instance):
    return instance


def test_a_listener_hears_of_discovery():
    """Instances that join or leave, and failed lookups with their reason, are reported."""
    answers = iter([[ONE, TWO], [TWO], None])

    class Turns:
        def resolve(self):
            now = next(answers)
            if now is None:
                raise OSError("gone")
            return lbclient.Answer(now, 3600)

    ear = Ear()
    with Balancer(Turns(), name="orders", listener=ear) as balancer:
        balancer.refresh()
        balancer.refresh()
        with pytest.raises(lbclient.DiscoveryError):
            balancer.refresh()
        first, second, third = ear.next(3)
    assert isinstance(first, InstancesChanged)
    assert (first.joined, first.left) == ((ONE, TWO), ())
    assert (second.joined, second.left) == ((), (ONE,))
    assert isinstance(third, DiscoveryFailed)
    assert str(third.error) == "gone"


def test_a_listener_that_fails_is_logged(caplog):
    """C18: an exception of a listener is logged; calls and later events are not affected."""
    ear, failed = Ear(), threading.Event()

    def listener(event):
        if not failed.is_set():
            failed.set()
            raise RuntimeError("mine")
        ear(event)

    with Balancer([ONE], listener=listener) as balancer, caplog.at_level(logging.ERROR):
        picks(balancer, 2)
        ear.next(1)
    assert "the listener failed" in caplog.text
    assert "mine" in caplog.text


def test_a_listener_may_call():
    """C24: a listener may use the balancer that it listens to."""
    done = queue.SimpleQueue()

    def listener(event):
        if isinstance(event, AttemptPicked) and done.empty():
            done.put(balancer.snapshot())
            balancer.eject(ONE, 60)

    with Balancer([ONE, TWO], listener=listener) as balancer:
        picks(balancer, 1)
        assert done.get(timeout=10)


def test_a_slow_listener_delays_no_call(caplog):
    """A listener that hangs does not delay calls; surplus events are dropped, and this is
    logged."""
    go, ear = threading.Event(), Ear()

    def listener(event):
        assert go.wait(30)
        ear(event)

    with caplog.at_level(logging.WARNING), Balancer([ONE], listener=listener) as balancer:
        picks(balancer, 10_050)
        go.set()
        ear.next(10_000)
    assert "the listener is too slow" in caplog.text


def test_a_listener_must_be_callable():
    """`listener` must be a function."""
    with pytest.raises(TypeError, match="listener must be callable, not 5"):
        Balancer([ONE], listener=5)


def listeners():
    return [one for one in threading.enumerate() if one.name == "lbclient-listener"]


@pytest.mark.parametrize("end", ["close", "forget"])
def test_the_listeners_thread_ends(end):
    """The listener's thread ends when the balancer is closed or collected, after it has delivered
    all events."""
    ear = Ear()
    balancer = Balancer([ONE], listener=ear)
    before = listeners()
    picks(balancer, 3)
    (thread,) = set(listeners()) - set(before)
    if end == "close":
        balancer.close()
    del balancer
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert len(ear.next(3)) == 3


def test_a_child_has_a_listener_of_its_own():
    """C8: in a forked child events are delivered once, by a new thread."""
    ear = Ear()
    listening = Listening(ear)
    listening.deliver(Admitted("orders", 1.0, ONE))
    ear.next(1)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            listening.deliver(Admitted("orders", 2.0, ONE))
            code = 0 if ear.next(1)[0].at == 2.0 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    listening.stop()


def test_a_client_takes_a_listener(servers):
    """A client's listener is told of retries on another instance."""
    bad, good = servers(says(503), tells_port)
    ear = Ear()
    with lbclient.Client(
        [bad.url, good.url], listener=ear, strategy="round-robin", rng=random.Random(0)
    ) as client:
        assert {client.get("/").text for _ in range(2)} == {str(good.port)}
        kinds = [type(event) for event in ear.next(4)]
    assert kinds.count(AttemptPicked) == 3
    assert kinds.count(RetryDecided) == 1
