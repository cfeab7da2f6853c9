"""Balancer: the engine without HTTP, for threads and for event loops."""

import contextlib
import gc
import random
import threading
import time
from collections import Counter
from functools import partial

import anyio
import anyio.lowlevel
import pytest

import lbclient
from lbclient import Balancer, BreakerPolicy, Instance, RetryPolicy, Verdict
from lbclient.simulation import World
from tests.support.drivers import as_guest

pytestmark = pytest.mark.anyio

A, B = Instance("10.0.0.1", 1), Instance("10.0.0.2", 2)
QUICK = RetryPolicy(backoff=0.0)


def refuse(_):
    raise ConnectionRefusedError


def test_call_gives_what_the_function_gives():
    """`call` passes an instance to the function, and returns its result."""
    assert Balancer([A]).call(lambda instance: instance.port) == 1


async def ask_port(instance):
    return instance.port


def test_coroutine_is_no_result():
    """C6: `call` refuses a coroutine, however it was made: no attempt counts as a success or as a
    fault, and the error names the right method."""
    balancer = Balancer([A])
    for fn in (ask_port, partial(ask_port)):
        with pytest.raises(TypeError, match=r"coroutine; use `await balancer\.acall\(fn\)`"):
            balancer.call(fn, idempotent=True)
    (one,) = balancer.snapshot().instances
    assert (one.attempts, one.failures, one.in_flight) == (2, 0, 0)


def test_a_call_that_waits_while_trio_is_a_guest():
    """A call that waits for a slot is woken also where trio runs as a guest in asyncio's loop."""
    balancer = Balancer([A], max_in_flight=1, retry=None)
    order = []

    async def calls():
        waiting = anyio.Event()

        async def first(_):
            await waiting.wait()
            for _ in range(5):
                await anyio.lowlevel.checkpoint()  # the other call joins the queue
            order.append(1)

        async def second(_):
            order.append(2)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(balancer.acall, first)
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(balancer.acall, second)
            waiting.set()

    as_guest(calls)
    assert order == [1, 2]


@pytest.mark.parametrize("deadline", [None, 5.0])
async def test_plain_result_cannot_be_awaited(deadline):
    """`acall` refuses a plain function, and the error names the right method."""
    with pytest.raises(TypeError, match=r"an awaitable, not int; use `balancer\.call\(fn\)`"):
        await Balancer([A]).acall(lambda instance: instance.port, deadline=deadline)


def test_deadline_tells_what_was_waited_for():
    """C19, I24: the error of a call whose deadline ends before any attempt says whether it waited
    for a slot or for discovery."""
    balancer = Balancer([A], max_in_flight=1)
    with balancer.acquire(), pytest.raises(lbclient.DeadlineExceeded, match="at its limit"):
        balancer.call(str, deadline=0.01)
    asked = threading.Event()

    class Silent:
        def resolve(self):
            asked.wait(10)
            raise OSError

    silent = Balancer(Silent(), name="shop.test")
    with pytest.raises(lbclient.DeadlineExceeded, match="discovery has not answered"):
        silent.call(str, deadline=0.01)
    asked.set()
    silent.close()


async def test_acall_gives_what_the_coroutine_gives():
    """`acall` awaits a coroutine function, on asyncio and trio."""

    async def ask(instance):
        await anyio.lowlevel.checkpoint()
        return instance.port

    assert await Balancer([A]).acall(ask) == 1


def test_refused_goes_elsewhere_whatever_the_call():
    """A refused connection was never sent, so the call is retried on another instance even if it is
    not idempotent."""

    def ask(instance):
        return refuse(instance) if instance == A else instance

    assert {Balancer([A, B]).call(ask) for _ in range(10)} == {B}


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, BrokenPipeError])
def test_maybe_sent_goes_elsewhere_only_if_idempotent(error):
    """After a network error, a call that was sent is retried only if it is idempotent."""
    asked = []

    def ask(instance):
        asked.append(instance)
        raise error

    balancer = Balancer([A, B], retry=QUICK)
    with pytest.raises(error):
        balancer.call(ask)
    assert len(asked) == 1
    with pytest.raises(error):
        balancer.call(ask, idempotent=True)
    assert len(asked) == 4
    assert set(asked[1:3]) == {A, B}


def test_the_callers_own_exception_is_neutral():
    """An exception that says nothing about the network is raised unchanged, and charges no
    instance."""
    balancer = Balancer([A])
    error = KeyError("mine")

    def ask(_):
        raise error

    for _ in range(10):
        with pytest.raises(KeyError) as caught:
            balancer.call(ask, idempotent=True)
        assert caught.value is error
    (one,) = balancer.snapshot().instances
    assert (one.attempts, one.failures, one.breaker, one.in_flight) == (10, 0, "closed", 0)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_is_neutral(error):
    """C4: KeyboardInterrupt and similar exceptions are raised unchanged, and charge no instance."""
    balancer = Balancer([A])

    def ask(_):
        raise error

    with pytest.raises(error):
        balancer.call(ask, idempotent=True)
    (one,) = balancer.snapshot().instances
    assert (one.attempts, one.failures, one.in_flight) == (1, 0, 0)


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_an_error_that_is_its_own_cause(kind):
    """Errors that are the cause of each other are classified like others, in finite time."""
    error, wrapper = kind("mine"), RuntimeError("around it")
    error.__cause__, wrapper.__cause__ = wrapper, ExceptionGroup("several", [error, wrapper])

    def fails(_):
        raise error

    with pytest.raises(kind) as caught:
        Balancer([A]).call(fails)
    assert caught.value is error


def test_a_judge_teaches_another_protocol():
    """`judge` says what a result means: a busy answer is retried elsewhere, or is the result."""

    def judge(result):
        return Verdict(fault=True, again="idempotent") if result == "busy" else Verdict(fault=False)

    asked = Counter()

    def ask(instance):
        asked[instance] += 1
        return "busy" if instance == A else "fine"

    balancer = Balancer([A, B], judge=judge, retry=QUICK)
    assert {balancer.call(ask, idempotent=True) for _ in range(6)} == {"fine"}
    assert Balancer([A], judge=judge, retry=QUICK).call(ask, idempotent=True) == "busy"


def test_a_judge_that_fails_fails_no_call(caplog):
    """C18: a judge that raises is logged; the outcome counts as neutral."""
    balancer = Balancer([A], judge=lambda _: 1 / 0)
    assert balancer.call(lambda _: "fine") == "fine"
    assert "the judge failed" in caplog.text


def test_threads_run_in_parallel_through_one_breaker():
    """C5: eight threads that share one instance with answers of 0.2 s are done within 0.9 s."""
    balancer = Balancer([A])
    threads = [
        threading.Thread(target=balancer.call, args=(lambda _: time.sleep(0.2),)) for _ in range(8)
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 0.9


def test_half_open_lets_exactly_one_of_eight_through():
    """Of eight threads that meet a half-open breaker together, one sends the probe and seven are
    refused."""
    world = World()
    balancer = Balancer([A], breaker=BreakerPolicy(fail_max=1), clock=world.clock)
    with pytest.raises(ConnectionRefusedError):
        balancer.call(refuse)
    world._now = 2.0
    together, inside, go = threading.Barrier(8), threading.Semaphore(0), threading.Event()
    outcomes = []

    def ask(_):
        inside.release()
        assert go.wait(5)
        return "through"

    def work():
        together.wait()
        try:
            outcomes.append(balancer.call(ask))
        except lbclient.NoInstanceAvailable:
            outcomes.append("refused")
            if outcomes.count("refused") == 7:
                go.set()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"refused": 7, "through": 1}
    assert balancer.snapshot().instances[0].breaker == "closed"


async def test_async_failures_trip_the_breaker():
    """C6: failures of coroutines count, and `fail_max` of them open the breaker."""

    async def fail(_):
        await anyio.lowlevel.checkpoint()
        raise ConnectionResetError

    balancer = Balancer([A], retry=None, breaker=BreakerPolicy(fail_max=3))
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            await balancer.acall(fail)
    assert balancer.snapshot().instances[0].breaker == "open"
    with pytest.raises(lbclient.NoInstanceAvailable):
        await balancer.acall(fail)


async def test_cancellation_is_neutral():
    """C1, C3: cancelled attempts give back permit and slot, and charge no instance."""
    balancer = Balancer([A], breaker=BreakerPolicy(fail_max=1))
    for _ in range(5):
        with anyio.move_on_after(0.001):
            await balancer.acall(lambda _: anyio.sleep(10))
    (one,) = balancer.snapshot().instances
    assert (one.in_flight, one.failures, one.breaker, one.attempts) == (0, 0, "closed", 5)


async def test_a_cancelled_probe_returns_its_slot():
    """C22: after a cancelled probe, the next call may probe."""
    world = World()
    balancer = Balancer([A], breaker=BreakerPolicy(fail_max=1), clock=world.clock)
    with pytest.raises(ConnectionRefusedError):
        balancer.call(refuse)
    world._now = 2.0
    with anyio.move_on_after(0.001):
        await balancer.acall(lambda _: anyio.sleep(10))
    assert balancer.snapshot().instances[0].breaker == "half-open"
    assert balancer.call(lambda _: "fine") == "fine"
    assert balancer.snapshot().instances[0].breaker == "closed"


def test_acquire_holds_one_pick():
    """`acquire` keeps its instance busy until the block ends."""
    balancer = Balancer([A])
    with balancer.acquire() as instance:
        assert instance == A
        assert balancer.snapshot().instances[0].in_flight == 1
    assert balancer.snapshot().instances[0].in_flight == 0


async def test_acquire_holds_one_pick_async():
    """`acquire` does the same for `async with`."""
    balancer = Balancer([A])
    async with balancer.acquire() as instance:
        assert instance == A
        assert balancer.snapshot().instances[0].in_flight == 1
    assert balancer.snapshot().instances[0].in_flight == 0


def test_an_error_that_leaves_acquire_counts():
    """A network error in the block counts against the instance, and is raised; there is no
    retry."""
    balancer = Balancer([A, B], breaker=BreakerPolicy(fail_max=1))
    with pytest.raises(ConnectionResetError), balancer.acquire(idempotent=True) as taken:
        raise ConnectionResetError
    states = {one.instance: one.breaker for one in balancer.snapshot().instances}
    assert states.pop(taken) == "open"
    assert set(states.values()) == {"closed"}


async def test_acall_is_cut_at_its_deadline():
    """`acall` cancels an attempt when the deadline expires, and raises DeadlineExceeded."""
    balancer = Balancer([A], retry=RetryPolicy(deadline=0.05))
    with pytest.raises(lbclient.DeadlineExceeded) as caught:
        await balancer.acall(lambda _: anyio.sleep(10))
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_a_function_is_told_the_time_left():
    """`time_left` returns what is left of the deadline, and None if there is none."""
    world = World()
    balancer = Balancer([A], clock=world.clock)
    assert balancer.call(lambda _: lbclient.time_left()) is None
    assert balancer.call(lambda _: lbclient.time_left(), deadline=3.0) == 3.0
    assert lbclient.time_left() is None


def test_call_info_of_an_error_tells_every_attempt():
    """The error that ends a call lists its attempts, and is in no reference cycle."""
    with pytest.raises(ConnectionRefusedError) as caught:
        Balancer([A, B], retry=QUICK).call(refuse)
    info = lbclient.call_info(caught.value)
    assert len(info.attempts) == 3
    assert {one.instance for one in info.attempts[:2]} == {A, B}
    assert info.attempts[-1].error is caught.value
    assert caught.value._lbclient_attempts[-1].error is None


def test_panic_ignores_the_breakers():
    """If fewer instances than `panic_threshold` are admissible, their breakers are ignored."""
    instances = [Instance("10.0.0.1", port) for port in range(1, 5)]
    policy = BreakerPolicy(fail_max=1, panic_threshold=0.5)
    balancer = Balancer(instances, breaker=policy, retry=None, strategy="round-robin")
    for instance in instances[:3]:
        for _ in range(8):
            try:
                balancer.call(lambda one, bad=instance: refuse(one) if one == bad else None)
            except ConnectionRefusedError:
                break
    assert [one.breaker for one in balancer.snapshot().instances].count("closed") == 1
    assert len({balancer.call(lambda one: one) for _ in range(8)}) == 4


def test_a_tier_serves_only_while_no_better_one_can():
    """D10: the next priority serves while the first cannot, and traffic then returns to the
    first."""
    world = World()
    first, second = Instance("10.0.0.1", 1, priority=1), Instance("10.0.0.2", 1, priority=2)
    down = True

    def ask(instance):
        return refuse(instance) if down and instance == first else instance

    balancer = Balancer([second, first], breaker=BreakerPolicy(fail_max=1), clock=world.clock)
    assert {balancer.call(ask) for _ in range(5)} == {second}
    down = False
    world._now = 2.0
    assert {balancer.call(ask) for _ in range(5)} == {first}


def test_a_full_tier_does_not_open_the_next():
    """Instances at their limit do not send traffic to the next tier: the call waits."""
    first, second = Instance("10.0.0.1", 1, priority=0), Instance("10.0.0.2", 1, priority=1)
    balancer = Balancer([first, second], max_in_flight=1)
    with balancer.acquire() as held, pytest.raises(lbclient.DeadlineExceeded):
        balancer.call(lambda one: one, deadline=0.02)
    assert held == first
    assert balancer.call(lambda one: one) == first


def test_an_outage_is_probed_once_a_reset_timeout_and_healing_is_quick():
    """I16: in an outage one call in each `reset_timeout` is a probe; its success brings the other
    instances back."""
    world = World()
    instances = [Instance("10.0.0.1", port) for port in range(1, 4)]
    balancer = Balancer(
        instances, breaker=BreakerPolicy(fail_max=1), clock=world.clock, rng=random.Random(3),
        retry=None,
    )  # fmt: skip
    sent = []
    down = True

    def ask(instance):
        sent.append(world.clock())
        return refuse(instance) if down else instance

    for _ in range(6000):
        world._now += 0.01
        with contextlib.suppress(ConnectionRefusedError, lbclient.NoInstanceAvailable):
            balancer.call(ask, idempotent=True)
    assert 40 <= len(sent) <= 70
    down = False
    healed = world.clock()
    used = set()
    while len(used) < 3:
        world._now += 0.01
        with contextlib.suppress(lbclient.NoInstanceAvailable):
            used.add(balancer.call(ask, idempotent=True))
    assert world.clock() - healed < 3.5


def test_a_due_probe_prefers_a_call_that_may_be_repeated():
    """A due probe is sent for an idempotent call if one comes, and after a while for any call."""
    world = World()
    balancer = Balancer([A, B], breaker=BreakerPolicy(fail_max=1), clock=world.clock)
    assert balancer.call(lambda one: refuse(one) if one == A else one) == B
    while balancer.snapshot().instances[0].breaker == "closed":
        assert balancer.call(lambda one: refuse(one) if one == A else one) == B
    world._now = 1.5
    assert {balancer.call(lambda one: one) for _ in range(5)} == {B}
    assert balancer.call(lambda one: one, idempotent=True) == A


def test_a_wall_clock_jump_changes_nothing(monkeypatch):
    """C15: neither breaker nor budget uses the wall clock."""
    balancer = Balancer([A, B], breaker=BreakerPolicy(fail_max=1, reset_timeout=30))
    while "open" not in {one.breaker for one in balancer.snapshot().instances}:
        balancer.call(lambda one: refuse(one) if one == A else one)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert {balancer.call(lambda one: one, idempotent=True) for _ in range(5)} == {B}


def test_a_call_inside_a_call_does_not_deadlock():
    """C24: a strategy or a function that uses the balancer does not deadlock."""
    balancer = Balancer([A, B])
    assert balancer.call(lambda _: balancer.call(lambda one: one)) in {A, B}

    class Curious:
        def pick(self, candidates, _):
            balancer.snapshot()
            return candidates[0]

    balancer = Balancer([A, B], strategy=Curious())
    assert balancer.call(lambda one: one) == A


def drop(kept):
    kept.clear()
    gc.collect()


def test_a_dropped_response_takes_no_lock(servers):
    """C14: a finalizer may run inside any lock, so it does not wait for one: its slot is freed
    later."""
    from tests.support.http import drips

    (server,) = servers(drips(0.05))
    with lbclient.Client([server.url]) as client:
        kept = [client.send(client.build_request("GET", "/"), stream=True)]
        held, free = threading.Event(), threading.Event()

        def hold():
            with client.balancer._engine.lock:
                held.set()
                assert free.wait(5)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(5)
        with pytest.warns(ResourceWarning, match="never closed"):
            drop(kept)
        free.set()
        holder.join()
        assert client.balancer.snapshot().instances[0].in_flight == 0


def test_nothing_is_logged_under_the_lock():
    """C24: a log handler may make calls without a deadlock with another thread."""
    import logging

    balancer = Balancer([A], breaker=BreakerPolicy(fail_max=1))
    free = []

    class Handler(logging.Handler):
        def emit(self, _):
            other = threading.Thread(target=lambda: free.append(balancer.snapshot()))
            other.start()
            other.join(5)

    handler, logger = Handler(), logging.getLogger("lbclient")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.raises(ConnectionRefusedError):
            balancer.call(refuse)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert [one.instances[0].breaker for one in free] == ["open"]


def test_refresh_during_a_round_waits_for_the_next():
    """`refresh` returns current data: it does not use a round that began before it."""
    asked, go = threading.Semaphore(0), threading.Semaphore(0)
    answers = iter([[A], [A, B]])

    class Mine:
        def resolve(self):
            asked.release()
            assert go.acquire(timeout=5)
            return lbclient.Answer(next(answers), ttl=60)

    balancer = Balancer(Mine())
    first = threading.Thread(target=balancer.refresh)
    first.start()
    assert asked.acquire(timeout=5)
    second = threading.Thread(target=balancer.refresh)
    second.start()
    while not balancer._engine.subscription._later:
        pass
    go.release(2)
    first.join()
    second.join()
    assert {one.instance for one in balancer.snapshot().instances} == {A, B}
    balancer.close()


def test_a_tls_error_is_not_this_machines_fault():
    """I20: OpenSSL has its own error numbers: its 1 is not the operating system's EPERM."""
    import ssl

    asked = []

    def ask(instance):
        asked.append(instance)
        raise ssl.SSLError(1, "certificate verify failed")

    with pytest.raises(ssl.SSLError):
        Balancer([A, B]).call(ask)
    assert len(asked) == 1


async def test_with_closes_a_balancer():
    """`with` and `async with` close a balancer, and later calls are refused."""
    with Balancer([A]) as one:
        assert one.call(lambda instance: instance) == A
    async with Balancer([A]) as other:
        assert other.call(lambda instance: instance) == A
    for balancer in (one, other):
        with pytest.raises(RuntimeError, match="closed"):
            balancer.call(lambda instance: instance)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda balancer: balancer.call(None), "fn"),
        (lambda balancer: balancer.call(refuse, idempotent="yes"), "idempotent"),
        (lambda _: Verdict(True, "maybe"), "again.*'always', 'idempotent', 'never'"),
        (lambda _: Verdict(True, "never", rest=-1), "rest"),
        (lambda _: Balancer("http+srv://10.0.0.1"), "10.0.0.1"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, named):
    """Arguments of calls and verdicts are checked, and nothing is sent if one is invalid."""
    balancer = Balancer([A])
    with pytest.raises((TypeError, ValueError), match=named):
        wrong(balancer)
    assert balancer.snapshot().instances[0].attempts == 0
