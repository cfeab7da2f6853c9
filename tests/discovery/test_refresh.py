"""Discovery over time: when it asks again, what it keeps, what it reports, and on which threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from lbclient import (
    Answer,
    Balancer,
    BalancerClosed,
    BreakerPolicy,
    DeadlineExceeded,
    DiscoveryError,
    Instance,
    NoInstanceAvailable,
    RetryPolicy,
)
from lbclient._internal.signals import Signal
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.nameservers import nameservers_of
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.discovery.scheduler import THREAD_SCHEDULER, ThreadScheduler
from lbclient.discovery.subscription import ServiceSubscription
from lbclient.endpoint.instance import RejectedRecord
from lbclient.errors import ServiceAbsent
from tests.support.dns import (
    Liar,
    empty,
    garbage,
    nxdomain,
    refused,
    servfail,
    silence,
    truncated,
    wrong_id,
)

NAME = "_http._tcp.shop.test"
SERVICE = "http+srv://shop.test"
A, B, C = (Instance(f"{name}.test", 80) for name in "abc")
SOON = 5
"""Seconds within which an immediate effect is visible, even on a busy machine."""


# The pure part: one watch, by a clock of one's own


class Script:
    """A resolver that returns, or raises, what the test sets."""

    def __init__(self, result: object) -> None:
        self.result = result
        self.rounds = 0

    def resolve(self) -> Answer:
        self.rounds += 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Told:
    """A listener that records what it was told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_update(self, _: Answer):
        return lambda: self.events.append("discovered")

    def publish(self) -> None:
        pass

    def on_absent(self) -> None:
        self.events.append("vanished")

    def on_error(self) -> None:
        self.events.append("failed")


class World:
    """A subscription with all that it needs."""

    def __init__(self, result: object, *, seed: int = 1, max_stale: float | None = None) -> None:
        self.now = 1000.0
        self.script = Script(result)
        self.told = Told()
        self.watch = ServiceSubscription(
            "shop.test",
            self.script,
            self.told,
            clock=lambda: self.now,
            rng=random.Random(seed),
            lock=threading.RLock(),
            max_stale=max_stale,
        )

    def round(self, result: object = None) -> float:
        """Run the round that is due next, and return the time until the one after it."""
        if result is not None:
            self.script.result = result
        self.now = max(self.now, self.watch.next_at)
        assert self.watch.claim()
        self.watch.run()
        return self.watch.next_at - self.now


@pytest.mark.parametrize(("ttl", "interval"), [(0, 1), (0.3, 1), (30, 30), (10**9, 3600)])
def test_refresh_at_ttl(ttl, interval):
    """D11, D12, D25: the next round is due after the TTL, at least 1 s and at most 1 h, ± 10 %."""
    world = World(Answer([A], ttl))
    waits = [world.round() / interval for _ in range(500)]
    assert 0.9 <= min(waits) < 0.92
    assert 1.08 < max(waits) <= 1.1


def test_back_off():
    """D2, D24: after a failure the next rounds follow after 1, 2, 4 … 30 s, with jitter; a success
    resets this."""
    world = World(Answer([A], 60))
    world.round()
    failure = DiscoveryError("no")
    for expected in (1, 2, 4, 8, 16, 30, 30):
        assert 0.9 * expected <= world.round(failure) <= expected
    assert world.round(Answer([A], 60)) > 50
    assert world.round(failure) <= 1


def test_back_off_is_jittered():
    """C21, D25: two clients that failed together do not retry together."""
    waits = {World(DiscoveryError("no"), seed=seed).round() for seed in range(100)}
    assert len(waits) == 100


def test_hurry_at_most_every_five_seconds():
    """I34: an early refresh may be requested at most once every 5 s."""
    world = World(Answer([A], 3600))
    world.round()
    hurried = []
    for _ in range(120):
        world.now += 0.5
        if world.watch.request_refresh(world.now):
            hurried.append(world.now)
            world.round()
    assert len(hurried) == 12
    assert all(later - expedite_probe >= 5 for expedite_probe, later in itertools.pairwise(hurried))


def test_hurry_brings_the_round_forward():
    """I34: after the request a round is due now; while one is due or under way, a request changes
    nothing."""
    world = World(Answer([A], 3600))
    assert not world.watch.request_refresh(world.now)
    world.round()
    assert world.watch.request_refresh(world.now)
    assert world.watch.next_at == world.now
    assert world.watch.claim()
    world.now += 100
    assert not world.watch.request_refresh(world.now)


@pytest.mark.parametrize("state", ["settled", "stopped"])
def test_hurry_does_not_wake_what_is_over(state):
    """C20: neither a list that never changes nor a closed service is looked up again."""
    world = World(Answer([A], None if state == "settled" else 60))
    world.round()
    world.watch.next_at = float("inf")
    assert not world.watch.request_refresh(world.now + 100)


def test_a_day_of_failure(caplog):
    """D22: during 24 hours of failure the set is kept, its age and the error are reported, the
    service is looked up every half minute, and the failure is logged once."""
    world = World(Answer([A], 60))
    with caplog.at_level(logging.INFO, "lbclient"):
        world.round()
        begun = world.now
        while world.now < begun + 86400:
            world.round(DiscoveryError("no answer"))
        assert world.watch.known
        assert world.watch.failure(world.now) is None
        assert world.watch.age(world.now) == pytest.approx(86400, abs=60)
        assert str(world.watch.error) == "no answer"
        assert world.told.events.count("failed") == pytest.approx(86400 / 28.5, rel=0.02)
        world.round(Answer([A], 60))
    assert caplog.messages == [
        "discovery of shop.test failed: no answer",
        "discovery of shop.test works again",
    ]
    assert world.watch.age(world.now) == 0


def test_log_tells_each_change(caplog):
    """D2: a failure is logged if it differs from the one before."""
    world = World(DiscoveryError("one"))
    with caplog.at_level(logging.WARNING, "lbclient"):
        for text in ("one", "one", "two", "two", "one"):
            world.round(DiscoveryError(text))
    assert [message.rpartition(" ")[2] for message in caplog.messages] == ["one", "two", "one"]


def test_one_round_at_a_time():
    """D25: while a round is under way, or before it is due, no other begins."""
    world = World(Answer([A], 60))
    assert world.watch.claim()
    assert not world.watch.claim()
    world.watch.run()
    assert not world.watch.claim()


def test_failed_first_lookup_is_told_at_once():
    """D1, D24: after a failed first lookup, calls that wait or come during the back-off fail at
    once; when the next round is due or under way, calls wait for it."""
    world = World(DiscoveryError("no"))
    assert world.watch.failure(world.now) is None
    signal = Signal()
    world.watch.wait(signal)
    world.round()
    assert signal.is_set
    assert str(world.watch.failure(world.now)) == "no"
    world.now = world.watch.next_at
    assert world.watch.failure(world.now) is None
    assert world.watch.claim()
    assert world.watch.failure(world.now) is None


def test_absence_drops_the_set():
    """D7: a service that is declared absent has no set, and its error says why; it is looked up
    again as after a failure."""
    world = World(Answer([A], 60))
    world.round()
    assert world.round(ServiceAbsent("gone")) <= 1
    assert not world.watch.known
    assert world.told.events == ["discovered", "failed", "vanished"]
    assert isinstance(world.watch.failure(world.now), ServiceAbsent)
    world.round(Answer([A], 60))
    assert world.watch.known


def test_max_stale():
    """D22: with `max_stale`, an older set is not used while discovery fails; the error says the age
    and the cause."""
    world = World(Answer([A], 60), max_stale=300)
    world.round()
    cause = DiscoveryError("no answer")
    while (failure := world.watch.failure(world.now)) is None:
        world.round(cause)
    assert 300 < world.watch.age(world.now) < 340
    assert "more than max_stale=300 allows; last error: no answer" in str(failure)
    assert failure.__cause__ is cause
    world.round(Answer([A], 60))
    assert world.watch.failure(world.now) is None


def test_max_stale_below_the_ttl():
    """D22: as long as discovery does not fail, a TTL longer than `max_stale` is harmless."""
    world = World(Answer([A], 60), max_stale=5)
    world.round()
    assert world.watch.failure(world.now + 59) is None


def test_a_long_stop_of_the_process_is_no_failure():
    """C26: after the process was stopped for ten minutes the set stays in use, and a round is
    due."""
    world = World(Answer([A], 60), max_stale=120)
    world.round()
    world.now += 600
    assert world.watch.failure(world.now) is None
    assert world.watch.claim()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "resolve() about shop.test must return an lbclient.Answer, not NoneType"),
        ([A], "resolve() about shop.test must return an lbclient.Answer, not list"),
        (Answer([]), "the answer about shop.test holds no usable instance"),
        (Answer([], 5, [RejectedRecord("r", "bad")]), "holds no usable instance; refused r: bad"),
        (ValueError("what?"), "what?"),
        (KeyError(), "KeyError"),
        (RecursionError("too deep"), "too deep"),
        (SystemExit(1), "resolve() was ended by SystemExit"),
        (KeyboardInterrupt(), "resolve() was ended by KeyboardInterrupt"),
        (asyncio.CancelledError(), "resolve() was ended by CancelledError"),
    ],
)
def test_callers_own_resolver_fails(result, said):
    """C18: whatever a user's resolver returns or raises, the last good set stays in use, waiting
    calls are woken, and the next round follows."""
    world = World(Answer([A], 60))
    world.round()
    signal = Signal()
    world.watch.wait(signal)
    world.script.result = result
    world.now = world.watch.next_at
    assert world.watch.claim()
    world.watch.run()
    assert signal.is_set
    assert world.watch.known
    assert said in (str(world.watch.error) or repr(world.watch.error))
    assert 0 < world.watch.next_at - world.now <= 1


class Mute(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError


class Own(DiscoveryError):
    """A user's exception that is not constructed from one text."""

    def __init__(self, code: int, host: str) -> None:
        super().__init__(f"{code} from {host}")


@pytest.mark.parametrize(("error", "said"), [(Mute(), "Mute"), (Own(7, "x"), "7 from x")])
def test_odd_error_of_a_callers_resolver(error, said):
    """C18: an exception that cannot be printed or copied is reported as well as possible."""
    world = World(error)
    for _ in range(2):
        signal = Signal()
        world.watch.wait(signal)
        world.round()
        assert signal.is_set
    failure = world.watch.failure(world.now)
    assert type(failure) is DiscoveryError
    assert str(failure).endswith(said)
    assert failure.__cause__ is error


def test_kind_of_a_callers_error_is_told():
    """The text of a KeyError is only its key, so an exception that is neither ours nor the system's
    is shown with its type."""
    world = World(KeyError("host"))
    world.round()
    assert str(world.watch.failure(world.now)).endswith("KeyError: 'host'")


def test_each_call_gets_an_error_of_its_own():
    """C23: the stored error is never raised itself, since each raise would change it."""
    world = World(DiscoveryError("no"))
    world.round()
    one, other = world.watch.failure(world.now), world.watch.failure(world.now)
    assert one is not other
    assert one is not world.watch.error


def test_whoever_waits_is_woken_whatever_happens():
    """C19: even a listener that fails does not leave a call waiting, or stop discovery."""
    world = World(Answer([A], 60))

    def fail(_: Answer) -> None:
        raise RuntimeError("a bug")

    world.told.on_update = fail
    signal = Signal()
    world.watch.wait(signal)
    world.round()
    assert str(world.watch.error) == "a bug"
    assert signal.is_set
    assert world.watch.next_at > world.now


def test_stopped_during_a_round():
    """C20: a service that was closed during a lookup is not looked up again."""
    world = World(Answer([A], 60))
    assert world.watch.claim()
    world.watch.next_at = float("inf")
    world.watch.run()
    assert world.watch.stopped


# A balancer, with threads and DNS


@pytest.fixture
def liar():
    with Liar(glue=True) as one:
        one.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 b.test.")
        for place, name in enumerate("abc"):
            one.put(f"{name}.test", "A", f"192.0.2.{place + 1}")
        yield one


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


def over(liar: Liar, lifetime: float = 0.3, name: str = NAME) -> SrvResolver:
    """SRV discovery with a short timeout."""
    return SrvResolver(
        name, Dns(nameservers_of([liar.address]), lifetime), AddressFilter(), time.monotonic
    )


def hosts(balancer: Balancer) -> list[str]:
    return sorted(one.host for one in balancer.instances())


class Gate:
    """A resolver whose rounds wait until the test lets them go; it notices if two overlap."""

    def __init__(self, *instances: Instance, ttl: float = 60) -> None:
        self.answer = Answer(instances or [A], ttl)
        self.entered = threading.Semaphore(0)
        self.rounds = 0
        self.overlaps = 0
        self._open = threading.Event()
        self._alone = threading.Lock()

    def open(self) -> None:
        self._open.set()

    def resolve(self) -> Answer:
        self.overlaps += self._alone.locked()
        with self._alone:
            self.rounds += 1
            self.entered.release()
            assert self._open.wait(SOON)
            return self.answer


def together(count: int, act) -> list:
    """Run it on this many threads at once, and return what each returned or raised."""
    barrier = threading.Barrier(count)

    def one(place: int):
        barrier.wait(SOON)
        try:
            return act(place)
        except Exception as error:  # noqa: BLE001  # it is looked at
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


FAILURES = [nxdomain, servfail, refused, silence, empty, truncated, garbage, wrong_id]


def refuse(_: Instance) -> None:
    """An instance that accepts no connection."""
    raise ConnectionRefusedError


@pytest.mark.parametrize("fault", FAILURES)
def test_failure_keeps_the_last_good_set(liar, balancers, fault):
    """D2, D3, D4, D5, D6, D16: after a failed refresh the set stays in use, and the snapshot shows
    the error and the age; when DNS works again, neither."""
    now = [0.0]
    balancer = balancers(over(liar), name="shop.test", clock=lambda: now[0])
    balancer.refresh()
    liar.fault(fault)
    now[0] += 100
    with pytest.raises(DiscoveryError, match=r"^refresh of shop\.test failed: .*_http\._tcp\.shop"):
        balancer.refresh()
    assert hosts(balancer) == ["a.test", "b.test"]
    assert balancer.call(lambda one: one.port) == 80
    snapshot = balancer.snapshot()
    assert snapshot.age == 100
    assert isinstance(snapshot.error, DiscoveryError)
    liar.heal()
    balancer.refresh()
    assert (balancer.snapshot().age, balancer.snapshot().error) == (0, None)


@pytest.mark.parametrize("fault", FAILURES)
def test_failed_first_lookup_reaches_every_waiter(liar, balancers, fault):
    """D1, C19: when the first lookup fails, every call that waits for it fails at once, with the
    name and the cause; each call gets its own error."""
    liar.fault(fault)
    balancer = balancers(over(liar))
    begun = time.monotonic()
    errors = together(8, lambda _: balancer.call(str))
    assert time.monotonic() - begun < SOON
    assert {type(one) for one in errors} == {DiscoveryError}
    assert len({id(one) for one in errors}) == 8
    assert all(f"{NAME}." in str(one) for one in errors)


def test_calls_recover_after_a_failed_first_lookup(liar, balancers):
    """D24: after a failed first lookup the service is looked up again, and calls succeed again."""
    liar.fault(nxdomain)
    balancer = balancers(over(liar))
    with pytest.raises(DiscoveryError, match="NXDOMAIN"):
        balancer.call(str)
    liar.heal()
    liar.wait(2, NAME)
    assert balancer.call(lambda one: one.port) == 80


def test_first_call_keeps_to_its_deadline(liar, balancers):
    """D1: a first call ends at its own deadline, however long DNS takes."""
    balancer = balancers(SERVICE, nameservers=[liar.address])
    with liar.holding(), pytest.raises(DeadlineExceeded):
        balancer.call(str, deadline=0.05)
    assert balancer.call(lambda one: one.port) == 80
    assert liar.asked(NAME) == 1


def test_update_is_a_difference(liar, balancers):
    """D21: an endpoint that stays keeps breaker, attempts and latency; one that left is removed; a
    new one is added."""
    breaker = BreakerPolicy(fail_max=1, reset_timeout=1000, reset_timeout_max=1000)
    balancer = balancers(SERVICE, nameservers=[liar.address], breaker=breaker, retry=None)

    def serve(one: Instance) -> None:
        if one.host == "a.test":
            raise ConnectionRefusedError

    for _ in range(2):
        with contextlib.suppress(ConnectionRefusedError):
            balancer.call(serve)
    before = {one.instance.host: one for one in balancer.snapshot().instances}
    assert before["a.test"].breaker == "open"
    liar.put(NAME, "SRV", "0 0 80 a.test.", "0 0 80 c.test.")
    balancer.refresh()
    after = {one.instance.host: one for one in balancer.snapshot().instances}
    assert sorted(after) == ["a.test", "c.test"]
    assert after["a.test"] == before["a.test"]
    assert (after["c.test"].breaker, after["c.test"].attempts) == ("closed", 0)


def test_unchanged_answer_changes_nothing(liar, balancers):
    """D21: the same records in another order do not change endpoints and candidates."""
    balancer = balancers(SERVICE, nameservers=[liar.address])
    balancer.refresh()
    pool = balancer._engine.pool
    endpoints, candidates = set(pool.endpoints), pool.candidates(0.0)
    for _ in range(10):
        balancer.refresh()
        assert pool.candidates(0.0) is candidates
    assert set(pool.endpoints) == endpoints


def test_new_address_is_another_machine(liar, balancers):
    """I34: when an instance's address changes, it gets a new breaker; its identity stays."""
    breaker = BreakerPolicy(fail_max=1, reset_timeout=1000, reset_timeout_max=1000)
    liar.put(NAME, "SRV", "0 0 80 a.test.")
    balancer = balancers(SERVICE, nameservers=[liar.address], breaker=breaker, retry=None)
    with pytest.raises(ConnectionRefusedError):
        balancer.call(refuse)
    assert balancer.snapshot().instances[0].breaker == "open"
    balancer.refresh()
    assert balancer.snapshot().instances[0].breaker == "open"
    (before,) = balancer._engine.pool.endpoints
    liar.put("a.test", "A", "192.0.2.77")
    balancer.refresh()
    assert balancer.snapshot().instances[0].breaker == "closed"
    assert list(balancer._engine.pool.endpoints) == [before]
    assert balancer.call(lambda one: one.addresses) == ("192.0.2.77",)


def test_mass_shrink_is_applied(liar, balancers):
    """D28: when nine of ten records vanish, the tenth serves."""
    liar.put(NAME, "SRV", *(f"0 0 {port} a.test." for port in range(1, 11)))
    balancer = balancers(SERVICE, nameservers=[liar.address])
    balancer.refresh()
    liar.put(NAME, "SRV", "0 0 3 a.test.")
    balancer.refresh()
    assert [one.port for one in balancer.instances()] == [3]


def test_absent_service(liar, balancers):
    """D7: a service that becomes absent has no instances, and calls say so; it can come back."""
    balancer = balancers(SERVICE, nameservers=[liar.address])
    assert balancer.call(lambda one: one.port) == 80
    liar.put(NAME, "SRV", "0 0 0 .")
    with pytest.raises(ServiceAbsent, match=r"refresh of shop\.test failed"):
        balancer.refresh()
    with pytest.raises(ServiceAbsent, match="declares that the service is not offered"):
        balancer.call(str)
    assert balancer.snapshot().instances == ()
    liar.put(NAME, "SRV", "0 0 81 a.test.")
    balancer.refresh()
    assert balancer.call(lambda one: one.port) == 81


def test_max_stale_of_a_balancer(liar, balancers):
    """D22: beyond `max_stale` calls fail with the original cause, and succeed after the next
    answer."""
    now = [0.0]
    balancer = balancers(SERVICE, nameservers=[liar.address], max_stale=60, clock=lambda: now[0])
    balancer.refresh()
    liar.fault(servfail)
    now[0] += 59
    with pytest.raises(DiscoveryError):
        balancer.refresh()
    assert balancer.call(lambda one: one.port) == 80
    now[0] += 2
    with pytest.raises(DiscoveryError, match=r"61\.0 s old, more than max_stale=60 .* SERVFAIL"):
        balancer.call(str)
    liar.heal()
    balancer.refresh()
    assert balancer.call(lambda one: one.port) == 80


def test_refreshes_by_itself(liar, balancers):
    """The records are looked up again after their TTL, without a call."""
    liar.put(NAME, "SRV", "0 0 80 a.test.", ttl=1)
    balancer = balancers(SERVICE, nameservers=[liar.address])
    balancer.refresh()
    liar.wait(2, NAME)


def test_calls_do_not_wait_for_a_refresh(liar, balancers):
    """D4: once instances are known, calls continue while DNS is slow."""
    balancer = balancers(SERVICE, nameservers=[liar.address])
    balancer.refresh()
    with ThreadPoolExecutor(1) as pool:
        with liar.holding():
            future = pool.submit(balancer.refresh)
            liar.wait(2, NAME)
            assert balancer.call(lambda one: one.port, deadline=SOON) == 80
            assert not future.done()
        future.result(SOON)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_wall_clock_has_no_say(liar, balancers, monkeypatch, jump):
    """D23, C15: when the wall clock jumps by an hour, refreshes continue at their TTL, and no age
    jumps."""
    balancer = balancers(SERVICE, nameservers=[liar.address], min_refresh=0.05)
    liar.put(NAME, "SRV", "0 0 80 a.test.", ttl=0)
    balancer.refresh()
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + jump)
    liar.wait(liar.asked(NAME) + 3, NAME)
    snapshot = balancer.snapshot()
    assert snapshot.age < SOON
    assert snapshot.error is None


def test_refused_call_asks_early(liar, balancers):
    """I34: when every instance is refused, the records are looked up before their TTL is over."""
    balancer = balancers(SERVICE, nameservers=[liar.address], retry=RetryPolicy(backoff=0.001))

    with pytest.raises(ConnectionRefusedError):
        balancer.call(refuse)
    liar.wait(2, NAME)


def test_a_call_without_an_instance_asks_early(liar, balancers):
    """I34: when a call gets no instance, since all are out of rotation, the records are looked up
    before their TTL is over."""
    balancer = balancers(SERVICE, nameservers=[liar.address])
    balancer.refresh()
    for instance in balancer.instances():
        balancer.eject(instance, 60)
    with pytest.raises(NoInstanceAvailable):
        balancer.call(str)
    liar.wait(2, NAME)


# Waiting without blocking


@pytest.mark.anyio
async def test_arefresh(liar, balancers):
    """arefresh() applies the new set, and raises a failure, on asyncio and trio."""
    balancer = balancers(over(liar))
    await balancer.arefresh()
    liar.put(NAME, "SRV", "0 0 80 c.test.")
    await balancer.arefresh()
    assert hosts(balancer) == ["c.test"]
    liar.fault(nxdomain)
    with pytest.raises(DiscoveryError, match="NXDOMAIN"):
        await balancer.arefresh()
    assert hosts(balancer) == ["c.test"]


async def _port(one: Instance) -> int:
    return one.port


@pytest.mark.anyio
async def test_first_lookup_does_not_block_the_loop(balancers):
    """D4: while an async call waits for the first lookup, the event loop continues."""
    gate = Gate()
    balancer = balancers(gate)
    got = []

    async def call() -> None:
        got.append(await balancer.acall(_port))

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.to_thread.run_sync(gate.entered.acquire)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            assert got == []
            gate.open()
    assert got == [80]


@pytest.mark.anyio
async def test_cancelled_waiter_is_forgotten(balancers):
    """C1: a call that is cancelled while it waits for the first lookup leaves nothing behind."""
    gate = Gate()
    balancer = balancers(gate)
    async with anyio.create_task_group() as group:
        group.start_soon(balancer.acall, _port)
        await anyio.to_thread.run_sync(gate.entered.acquire)
        group.cancel_scope.cancel()
    assert balancer._engine.subscription._waiting == {}
    gate.open()
    assert await balancer.acall(_port) == 80


def test_crowd_waits_for_the_first_answer(balancers):
    """Calls join and leave the wait for the first answer in constant time, however many wait: no
    call is compared with the others."""
    compared = []

    class Compared(Signal):
        __hash__ = object.__hash__

        def __eq__(self, other):
            compared.append(other)
            return self is other

    watch = balancers(Gate())._engine.subscription
    signals = [Compared() for _ in range(100)]
    for signal in [*signals, *signals]:
        watch.wait(signal)
    assert watch.waiting == signals
    for signal in signals:
        watch.forget(signal)
    assert watch.waiting == []
    assert len(compared) < 200  # `in` a list would have compared 10,000 times


@pytest.mark.anyio
async def test_failed_first_lookup_in_a_loop(liar, balancers):
    """D1, C19: all async calls that wait for the first lookup learn of its failure."""
    liar.fault(nxdomain)
    balancer = balancers(over(liar))
    errors = []

    async def call() -> None:
        try:
            await balancer.acall(_port)
        except DiscoveryError as error:
            errors.append(error)

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(call)
    assert len(errors) == 8
    assert liar.asked(NAME) == 1


@pytest.mark.anyio
async def test_threads_and_loop_together(balancers):
    """C25: a thread and a loop wait for the same first look-up."""
    gate = Gate()
    balancer = balancers(gate)
    with ThreadPoolExecutor(1) as pool, anyio.fail_after(SOON):
        future = pool.submit(balancer.call, lambda one: one.port)
        async with anyio.create_task_group() as group:
            group.start_soon(balancer.acall, _port)
            await anyio.to_thread.run_sync(gate.entered.acquire)
            gate.open()
        assert future.result(SOON) == 80
    assert gate.rounds == 1


# Threads


def test_sixteen_first_calls_are_one_round(liar, balancers):
    """D25: the first calls of 16 threads together cost one question."""
    balancer = balancers(SERVICE, nameservers=[liar.address])
    assert together(16, lambda _: balancer.call(lambda one: one.port)) == [80] * 16
    assert liar.asked() == liar.asked(NAME, "SRV") == 1


def test_refreshes_share_a_round(balancers):
    """D25: refreshes requested while a round is under way wait for it; no two overlap."""
    gate = Gate()
    balancer = balancers(gate)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(balancer.refresh) for _ in range(8)]
        assert gate.entered.acquire(timeout=SOON)
        gate.open()
        assert [one.result(SOON) for one in futures] == [None] * 8
    assert gate.overlaps == 0
    assert gate.rounds <= 8


def test_waiting_for_a_round_costs_nothing(balancers, monkeypatch):
    """A refresh asked for while a round is under way does not make the scheduler spin."""
    claims = Counter()
    claim = ServiceSubscription.claim

    def counted(watch: ServiceSubscription) -> bool:
        claims[watch.service] += 1
        return claim(watch)

    monkeypatch.setattr(ServiceSubscription, "claim", counted)
    gate, other = Gate(), Gate()
    balancer, another = balancers(gate, name="slow.test"), balancers(other, name="other.test")
    other.open()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(balancer.refresh)
        assert gate.entered.acquire(timeout=SOON)
        second = pool.submit(balancer.refresh)
        for _ in range(20):
            another.refresh()
        gate.open()
        first.result(SOON)
        second.result(SOON)
    assert claims["slow.test"] <= 4


def test_many_refreshes_all_end(liar, balancers):
    """D25: when refreshes are requested on many threads, each ends with an answer."""
    balancer = balancers(SERVICE, nameservers=[liar.address])

    def refresh(_: int) -> int:
        for _ in range(25):
            balancer.refresh()
        return len(balancer.instances())

    assert together(8, refresh) == [2] * 8


def test_calls_go_on_while_the_set_changes(liar, balancers):
    """D21, C7: calls on many threads never fail while records are added and removed."""
    balancer = balancers(SERVICE, nameservers=[liar.address])
    stop = threading.Event()

    def call(place: int) -> int:
        if place == 0:
            try:
                for turn in range(60):
                    names = "ab" if turn % 2 else "bc"
                    liar.put(NAME, "SRV", *(f"0 {turn} 80 {name}.test." for name in names))
                    balancer.refresh()
            finally:
                stop.set()
            return 80
        ports = {80}
        while not stop.is_set():
            ports.add(balancer.call(lambda one: one.port))
        (port,) = ports
        return port

    assert together(4, call) == [80] * 4
    assert all(one.in_flight == 0 for one in balancer.snapshot().instances)


def test_ten_silent_names_do_not_delay_an_eleventh(balancers):
    """D4: while ten services wait for their answers, an eleventh gets its own."""
    gates = [Gate() for _ in range(10)]
    with ThreadPoolExecutor(10) as pool:
        futures = [pool.submit(balancers(gate).call, str) for gate in gates]
        for gate in gates:
            assert gate.entered.acquire(timeout=SOON)
        eleventh = Gate()
        eleventh.open()
        assert balancers(eleventh).call(lambda one: one.port) == 80
        assert not any(one.done() for one in futures)
        for gate in gates:
            gate.open()
        assert [one.result(SOON) for one in futures] == ["a.test:80"] * 10


def test_one_scheduler_thread(liar, balancers):
    """One thread schedules every service, and no thread is left after a round."""

    def schedulers() -> int:
        return sum(one.name == "lbclient-refresher" for one in threading.enumerate())

    began, before = THREAD_SCHEDULER.started, schedulers()  # other tests have some of their own
    for _ in range(20):
        balancers(SERVICE, nameservers=[liar.address]).refresh()
    assert schedulers() - before == (not began)
    for one in threading.enumerate():
        if one.name == "lbclient-lookup":
            one.join(SOON)
            assert not one.is_alive()


def gone(ref: weakref.ref) -> bool:
    """Whether the object is collected soon; a thread may hold it for a moment."""
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        gc.collect()
        if ref() is None:
            return True
    return False


def test_forgotten_balancer_stops_asking(liar):
    """S7: an unreferenced balancer is collected with its subscription, and asks no more."""
    balancer = Balancer(SERVICE, nameservers=[liar.address])
    balancer.refresh()
    balancer.refresh()
    ref = weakref.ref(balancer._engine.subscription)
    del balancer
    assert gone(ref)


def test_log_is_written_without_the_lock(liar, balancers):
    """C24: a log handler may wait for a thread that uses the balancer."""
    balancer = balancers(over(liar))
    liar.put(NAME, "SRV", "0 0 80 a.test.", "0 0 0 b.test.")
    asked = []

    class Handler(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            thread = threading.Thread(target=balancer.snapshot, daemon=True)
            thread.start()
            thread.join(SOON)
            asked.append(not thread.is_alive())

    handler = Handler()
    log = logging.getLogger("lbclient.discovery")
    log.addHandler(handler)
    try:
        balancer.refresh()
        liar.fault(nxdomain)
        with pytest.raises(DiscoveryError):
            balancer.refresh()
    finally:
        log.removeHandler(handler)
    assert asked == [True, True]


def test_closed_balancer_stops_asking(balancers):
    """After close() during a round no other follows, and a waiting call ends."""
    gate = Gate()
    balancer = balancers(gate)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(balancer.call, lambda one: one.port)
        assert gate.entered.acquire(timeout=SOON)
        balancer.close()
        with pytest.raises(BalancerClosed):
            future.result(SOON)
        gate.open()
    assert balancer._engine.subscription.stopped


def test_what_is_scheduled_anew_leaves_no_trace():
    """S7: however often a service is refreshed, the schedule has one round of it."""
    world, refresher = World(Answer([A], 3600)), ThreadScheduler()
    world.round()
    for _ in range(1000):
        refresher._note(weakref.ref(world.watch))
    assert len(refresher._heap) < 100


def test_what_is_gone_leaves_no_trace():
    """S7: services that are created and dropped do not accumulate in the schedule."""
    refresher = ThreadScheduler()
    gc.freeze()  # what was there before is no garbage, and is not looked through each time
    for place in range(1000):
        world = World(Answer([A], 3600))
        world.round()
        refresher._note(weakref.ref(world.watch))
        if place % 20 == 0:
            gc.collect()
    gc.unfreeze()
    assert len(refresher._heap) < 200


def test_clock_that_fails_stops_nobody_else(balancers, caplog):
    """C18: a user's clock that raises does not end the discovery of other services."""
    world = World(Answer([A], 60))
    world.watch.clock = {}.__getitem__
    with caplog.at_level(logging.ERROR, "lbclient"):
        THREAD_SCHEDULER.schedule(world.watch)
        gate = Gate()
        gate.open()
        assert balancers(gate).call(lambda one: one.port) == 80
    assert caplog.messages == ["a service could not be scheduled"]


def test_scheduler_that_could_not_start_starts_later(monkeypatch):
    """I22: if the scheduler's thread could not be started, the next call of `schedule` tries
    again."""
    started = []

    def start(_: object, name: str) -> None:
        started.append(name)
        if len(started) == 1:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("lbclient.discovery.scheduler._daemon", start)
    refresher, watch = ThreadScheduler(), World(Answer([A], 60)).watch
    with pytest.raises(RuntimeError):
        refresher.schedule(watch)
    refresher.schedule(watch)
    refresher.schedule(watch)
    assert started == ["lbclient-refresher"] * 2


def test_no_more_threads(balancers, monkeypatch):
    """I22: if no thread can be started for a round, the scheduler's own thread runs it."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "lbclient-lookup":
            raise RuntimeError("can't start new thread")
        start(thread)

    gate = Gate()
    gate.open()
    balancer = balancers(gate)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert balancer.call(lambda one: one.port) == 80


def test_turns_of_threads_are_the_interpreters(balancers):
    """A large answer does not change the process's switch interval."""
    before = sys.getswitchinterval()
    seen = []

    class Watching:
        def resolve(self):
            seen.append(sys.getswitchinterval())
            return Answer([Instance(f"i{n}.test", 80) for n in range(300)], 60)

    balancers(Watching()).refresh()
    assert [*seen, sys.getswitchinterval()] == [before, before]


def script(text: str, *options: str) -> tuple[int, bytes, bytes]:
    """Run it in an interpreter of its own."""
    command = [sys.executable, *options, "-c", text]
    done = subprocess.run(command, capture_output=True, timeout=4 * SOON, check=False)
    return done.returncode, done.stdout, done.stderr


STUCK = """
import os, threading, lbclient
parent, entered = os.getpid(), threading.Event()
class Mine:
    def resolve(self):
        if os.getpid() == parent:
            entered.set()
            threading.Event().wait()
        return lbclient.Answer([lbclient.Instance("a.test", 80)], 60)
balancer = lbclient.Balancer(Mine())
threading.Thread(target=balancer.refresh, daemon=True).start()
assert entered.wait(5)
"""


def test_interpreter_ends_during_a_round():
    """C10: a round under way neither delays the exit of the interpreter nor prints anything."""
    assert script(STUCK, "-W", "error") == (0, b"", b"")


def test_child_forked_during_a_round_asks_itself():
    """C8: a forked child runs discovery on its own threads, even if a round was under way in its
    parent."""
    forking = """
child = os.fork()
if child == 0:
    os._exit(0 if balancer.call(str) == "a.test:80" else 1)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert script(STUCK + forking)[0] == 0
