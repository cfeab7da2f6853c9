"""Control by hand, and the listener: who is out, who is in, and who hears of it."""

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
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def picks(balancer, many=10):
    return {balancer.call(lambda instance: instance) for _ in range(many)}


def standings(balancer):
    return [one.standing for one in balancer.snapshot().instances]


def test_who_is_ejected_is_out_for_so_long():
    """An instance that is ejected by hand gets no call until its time is over."""
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
    """`admit` takes an ejection back, and closes a breaker."""
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
    """The last one too goes at its owner's word; the error tells when it will be back."""
    clock = Clock()
    with Balancer([ONE], clock=clock) as balancer:
        balancer.eject(ONE, 60)
        with pytest.raises(NoInstanceAvailable, match=r"10\.0\.0\.1:1 \(ejected\)") as caught:
            picks(balancer)
        assert caught.value.retry_in == 60


def test_who_is_ejected_opens_the_next_tier():
    """A tier whose instances are all ejected hands over to the next, and takes over again."""
    clock = Clock()
    second = Instance("10.0.0.2", 2, priority=1)
    with Balancer([ONE, second], clock=clock) as balancer:
        balancer.eject(ONE, 60)
        assert picks(balancer) == {second}
        clock.now += 60
        assert picks(balancer) == {ONE}


def test_panic_does_not_bring_the_ejected_back():
    """Where breakers are ignored in a panic, the word of a hand is not."""
    policy = BreakerPolicy(fail_max=1, panic_threshold=1.0)
    with Balancer([ONE, TWO], breaker=policy, retry=None) as balancer:
        balancer.eject(ONE, 60)
        with pytest.raises(ConnectionError):
            balancer.call(fails)
        assert picks(balancer) == {TWO}


def test_calls_under_way_go_on():
    """Who is ejected finishes what it has."""
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
    """A wrong instance or time is refused, by name."""
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
    """Picks, retries, breaker changes, ejections: each is told once, in its order."""
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
    """Calls of an event loop are told as well, on the listener's own thread."""
    threads = queue.SimpleQueue()
    async with Balancer([ONE], listener=lambda _: threads.put(threading.current_thread())) as one:
        await one.acall(answers)
        assert threads.get(timeout=10) is not threading.current_thread()


async def answers(instance):
    return instance


def test_a_listener_hears_of_discovery():
    """Who joined, who left and why a look-up failed is told."""
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
    """C18: what a listener raises is logged; the calls and later events go on."""
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
    """C24: a listener may itself use the balancer that it listens to."""
    done = queue.SimpleQueue()

    def listener(event):
        if isinstance(event, AttemptPicked) and done.empty():
            done.put(balancer.snapshot())
            balancer.eject(ONE, 60)

    with Balancer([ONE, TWO], listener=listener) as balancer:
        picks(balancer, 1)
        assert done.get(timeout=10)


def test_a_slow_listener_delays_no_call(caplog):
    """A listener that hangs holds up no call; what is too much for it is dropped, and logged."""
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
    """`listener` is a function."""
    with pytest.raises(TypeError, match="listener must be callable, not 5"):
        Balancer([ONE], listener=5)


def listeners():
    return [one for one in threading.enumerate() if one.name == "lbclient-listener"]


@pytest.mark.parametrize("end", ["close", "forget"])
def test_the_listeners_thread_ends(end):
    """The thread ends when the balancer is closed, or gone, having told what came before."""
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
    """C8: in a forked child events are told by a thread of its own, once."""
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
    """A client's listener hears of retries on another instance."""
    bad, good = servers(says(503), tells_port)
    ear = Ear()
    with lbclient.Client(
        [bad.url, good.url], listener=ear, strategy="round-robin", rng=random.Random(0)
    ) as client:
        assert {client.get("/").text for _ in range(2)} == {str(good.port)}
        kinds = [type(event) for event in ear.next(4)]
    assert kinds.count(AttemptPicked) == 3
    assert kinds.count(RetryDecided) == 1
