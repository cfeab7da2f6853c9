"""`fair_by=`: callers whose calls wait for a limit take turns."""

import asyncio
import contextlib
import functools
import gc
import itertools
import random
import sys
import threading
from collections import deque

import anyio
import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lbclient
import lbclient.httpx2
from lbclient import Balancer, RetryPolicy
from lbclient._internal.signals import Pause, Signal
from lbclient.core.engine import Engine
from lbclient.core.wait_queue import WaitQueue
from lbclient.simulation import (
    Open,
    Reply,
    Scenario,
    Server,
    SimulatedRequest,
    answers,
    constant,
    simulate,
)
from tests.support.http import Gate

pytestmark = pytest.mark.anyio

SOON = 10.0
URL = "http://127.0.0.1:1"


def of(caller, path="/"):
    return SimulatedRequest(path=path, caller=caller)


def by_caller(request):
    return request.caller


class AtOnce:
    """A load of one request for each of these callers, all at time 0."""

    def __init__(self, callers):
        self.callers = callers

    def start(self, world, _, request, __):
        def arrive():
            for number, caller in enumerate(self.callers):
                world.spawn(request(0, of(caller, f"/{number}")))
            yield Pause(0.0)

        return [world.spawn(arrive())]


def served(callers, *, slots=1, fair_by=by_caller, **of_scenario):
    """Return which caller's request was sent when: pairs in order, if each request takes a
    second."""
    seen = []

    def behave(now, _, __, request):
        seen.append((now, request.caller))
        return Reply(1.0)

    scenario = Scenario([Server("a", behave)], AtOnce(callers), **{"patience": 1e6, **of_scenario})
    report = simulate(scenario, fair_by=fair_by, max_in_flight=slots)
    assert list(report.breaches) == []
    return seen, report


class TestInVirtualTime:
    def waits(self, fair_by, callers=1):
        """Return how long the requests of a steady caller take while others send bursts of
        1,000."""
        steady = Open(4, 8, request=of("steady"))
        bursts = [Open(1e6, 0.001, request=of(f"burst {n}")) for n in range(callers)]
        scenario = Scenario(
            [Server("a", answers(constant(0.125)))], [*bursts, steady], patience=1e6
        )
        ended, real = {}, simulate(scenario, fair_by=fair_by, max_in_flight=10)
        assert list(real.breaches) == []
        for one in real.outcomes:
            ended.setdefault(one.arrived, []).append(one.elapsed)
        return [max(ended[n / 4]) for n in range(1, 32)]

    def test_a_burst_delays_a_steady_caller_by_a_round(self):
        """During another caller's burst of 1,000, a steady caller waits for at most one other call;
        without `fair_by=` it waits until the burst is over."""
        assert max(self.waits(by_caller)) <= 2 * 0.125
        assert self.waits(None)[0] > 12.0

    def test_a_round_is_one_call_of_each_caller(self):
        """During bursts of five callers, a steady one waits for at most five of ten slots."""
        assert max(self.waits(by_caller, callers=5)) <= 2 * 0.125

    def test_the_order_is_round_robin(self):
        """Callers take turns in the order of their first waiting calls, one call at a time; each
        caller's calls are first come, first served."""
        seen, _ = served("-aaaabbbcab")
        assert "".join(caller for _, caller in seen) == "-abcabababa"

    def test_without_it_the_order_is_that_of_arrival(self):
        """Without `fair_by=`, calls are served first come, first served."""
        callers = "aaaabbbcab"
        seen, _ = served(callers, fair_by=None)
        assert "".join(caller for _, caller in seen) == callers

    def test_within_a_caller_the_order_is_that_of_arrival(self):
        """The calls of one caller keep their order."""
        paths = []

        def behave(_, __, ___, request):
            paths.append((request.caller, int(request.path[1:])))
            return Reply(1.0)

        scenario = Scenario([Server("a", behave)], AtOnce("abcabccbabca"), patience=1e6)
        simulate(scenario, fair_by=by_caller, max_in_flight=2)
        for caller in "abc":
            numbers = [number for who, number in paths if who == caller]
            assert numbers == sorted(numbers)

    def test_no_caller_is_one_caller_more(self):
        """Requests for which `fair_by=` returns None take turns with the others, as one caller."""
        seen, _ = served("-nnnnab", fair_by=lambda r: None if r.caller == "n" else r.caller)
        assert "".join(caller for _, caller in seen) == "-nabnnn"

    def test_who_gives_up_costs_its_caller_no_turn(self):
        """If the first call of a caller gives up, the caller's next call gets its turn."""
        balancer = Balancer([URL], max_in_flight=1)
        line = balancer._engine.queue
        a1, a2, b1 = (line.join(None, caller) for caller in (1, 1, 2))
        line.leave(a1)
        assert line.first is a2
        assert a2.is_set
        line.leave(a2, served=True)
        assert line.first is b1
        assert b1.is_set

    def test_a_caller_that_comes_back_goes_to_the_end(self):
        """A caller that sends its next call as soon as one is answered gets only one turn in each
        round."""
        seen = []

        def behave(_, __, ___, request):
            seen.append(request.caller)
            return Reply(1.0)

        class Greedy:
            def start(self, world, _, request, __):
                def again(caller):
                    for _ in range(10):
                        yield from request(0, of(caller))

                return [world.spawn(again(caller)) for caller in "abcd"]

        scenario = Scenario([Server("a", behave)], Greedy(), patience=1e6)
        simulate(scenario, fair_by=by_caller, max_in_flight=1)
        assert "".join(seen) == "abcd" * 10

    def test_retries_wait_in_their_callers_queue(self):
        """A retry that finds a queue waits for its caller's turn like a first attempt."""
        seen = []

        def behave(_, __, ___, request):
            seen.append(request.caller)
            return Reply(1.0, 503 if request.caller == "x" else 200)

        scenario = Scenario([Server("a", behave)], AtOnce("xyyzz"), patience=1e6)
        retry = RetryPolicy(2, backoff=0.0)
        report = simulate(scenario, fair_by=by_caller, max_in_flight=1, retry=retry, breaker=None)
        assert list(report.breaches) == []
        assert sorted(seen) == list("xxyyzz")
        assert seen[0] == "x"
        assert seen.index("x", 1) <= 3

    def test_thousands_of_callers(self, monkeypatch):
        """A call looks at most three times, and wakes one other, however many callers wait."""
        looks, real = itertools.count(), Engine.admit

        def admit(*arguments):
            next(looks)
            return real(*arguments)

        monkeypatch.setattr(Engine, "admit", admit)
        callers = range(3_000)
        seen, _ = served(callers, slots=100)
        assert [caller for _, caller in seen] == list(callers)
        assert next(looks) <= 3 * 3_000

    @pytest.mark.parametrize("seed", range(3))
    def test_a_run_is_a_function_of_its_seed(self, seed):
        """Callers may be of any type, since only their hashes are compared."""
        callers = random.Random(seed).choices(["a", ("b", 1), 3, None, frozenset({"c"})], k=200)
        first, second = (served(callers, slots=3) for _ in range(2))
        assert first == second


class Model:
    """A simple model of the queue for comparison: a list of callers, each with a queue."""

    def __init__(self):
        self.queues = []

    def of(self, caller):
        return next((queue for who, queue in self.queues if who == caller), None)

    def join(self, signal, caller):
        queue = self.of(caller)
        if queue is None:
            queue = deque()
            self.queues.append((caller, queue))
        queue.append(signal)

    def leave(self, signal, *, served):
        for place, (caller, queue) in enumerate(self.queues):
            if signal in queue:
                queue.remove(signal)
                del self.queues[place]
                if queue:
                    self.queues.insert(len(self.queues) if served else place, (caller, queue))
                return

    @property
    def first(self):
        return self.queues[0][1][0] if self.queues else None


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from("jjjsswlgd"), st.integers(0, 5)), max_size=60))
def test_the_line_is_round_robin(steps):
    """Whatever calls arrive, are served, give up or lose their event loop, the first call is the
    one that plain round-robin gives, and one that leaves the first place wakes the next."""
    line, model, waiting = WaitQueue(), Model(), []
    for step, number in steps:
        chosen = waiting[number % len(waiting)] if waiting else None
        if step == "j":
            waiting.append(line.join(None, number % 3))
            model.join(waiting[-1], number % 3)
        elif step == "w":
            line.wake()
        elif chosen is not None and step == "s":
            first = line.first
            waiting.remove(first)
            line.leave(first, served=True)
            model.leave(first, served=True)
            assert not line or line.first.is_set
        elif chosen is not None and step == "l":
            first = line.first
            waiting.remove(chosen)
            line.leave(chosen)
            model.leave(chosen, served=False)
            assert not line or chosen is not first or line.first.is_set
        elif chosen is not None and step == "g":
            chosen.listen(lambda: False)
        for one in list(waiting):
            if one not in line.waiting:  # gone, and found out
                assert one.is_set
                waiting.remove(one)
                model.leave(one, served=False)
        assert len(line) == len(waiting)
        assert (line.first if line else None) is model.first


def test_who_looks_and_who_leads():
    """Of the calls in the queue only the first looks for a slot without being woken. Of retries
    that wait separately all do, and the first one leads."""
    line = WaitQueue()
    assert not line.looks(Signal())
    assert not line.leads(Signal())
    calls = [line.join(None, 1), line.join(None, 2)]
    calls += [line.join_retries(None, {"a"}), line.join_retries(None, {"b"})]
    assert [line.looks(one) for one in calls] == [True, False, True, True]
    assert [line.leads(one) for one in calls] == [True, False, True, False]
    assert [line.passes(one) for one in (*calls, None)] == [True, False, True, True, False]


def test_a_call_does_not_wait_for_one_whose_event_loop_has_ended():
    """If the first call was woken and can no longer look, the next one may look at once."""
    line = WaitQueue()
    first, second = line.join(None, 1), line.join(None, 1)
    line.wake()
    first.listen(lambda: False)
    assert line.passes(second)
    assert list(line.waiting) == [second]


def test_a_retry_leaves_its_unwanted_slots_to_others():
    """When a retry begins to wait for other slots than the free ones, the first call of the queue
    is woken for these."""
    line = WaitQueue()
    waiting = line.join(None, 1)
    line.join_retries(None, {"a"}, free=["a"])
    assert waiting.is_set


def test_a_cleared_queue_is_empty():
    """C8: in a forked child nothing is left of the calls of the parent, and new calls wait as
    usual."""
    line = WaitQueue()
    line.join(None, 1)
    line.join_retries(None, {"a"})
    line.clear()
    assert not line
    assert line.left_for(None) is None
    new = line.join(None, 2)
    assert line.first is new
    assert [*line.waiting] == [new]


@given(st.lists(st.sets(st.sampled_from("abc")), max_size=6))
def test_what_retries_leave(unwanted):
    """A call may use an endpoint if no retry waits for it that began to wait separately before."""
    line = WaitQueue()
    retries = [line.join_retries(None, one) for one in unwanted]
    for place, retry in enumerate([*retries, None]):
        left = line.left_for(retry)
        if place:
            assert left == set.intersection(*unwanted[:place])
        else:
            assert left is None


class Interrupted(BaseException):
    pass


def interrupted(act, at):
    """Call the function, and raise at the `at`th point at which CPython runs signal handlers: the
    beginning of a function, or the return of a C function. False if it ends before that."""
    moments = itertools.count(1)

    def profile(_, event, __):
        if event in ("call", "c_return", "c_exception") and next(moments) == at:
            sys.setprofile(None)
            raise Interrupted

    gc.disable()  # it may call functions, whose exceptions reach nobody
    try:
        sys.setprofile(profile)
        act()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    return False


@pytest.mark.parametrize(
    "act",
    [
        lambda line, _: line.join(None, 3),
        lambda line, _: line.join(None, 1),
        lambda line, calls: line.leave(calls[0]),
        lambda line, calls: line.leave(calls[0], served=True),
        lambda line, calls: line.leave(calls[1]),
        lambda line, calls: line.leave(calls[2]),
        lambda line, calls: line.passes(calls[2]),
        lambda line, calls: [one.listen(lambda: False) for one in calls[:2]] + [line.wake()],
    ],
)
def test_an_exception_at_any_moment_leaves_the_line_whole(act):
    """If a signal handler raises while a call joins or leaves, the call is in the queue or not: no
    caller without calls is left in it, and each call is in the queue of its caller."""
    for at in itertools.count(1):
        line = WaitQueue()
        calls = [line.join(None, caller) for caller in (1, 1, 2)]
        hit = interrupted(lambda line=line, calls=calls: act(line, calls), at)
        queues = {caller: set(queue) for caller, queue in line.turns.items()}
        assert all(queues.values())
        assert {one: who for who, queue in queues.items() for one in queue} == line.waiting
        if not hit:
            break
    assert at > 3


class Told:
    """Report each call that has joined a queue."""

    def __init__(self, monkeypatch):
        self.joined = threading.Semaphore(0)
        real = WaitQueue.join

        def join(line, signal, caller):
            known = signal in line.waiting
            try:
                return real(line, signal, caller)
            finally:
                if not known:
                    self.joined.release()

        monkeypatch.setattr(WaitQueue, "join", join)

    def wait(self):
        assert self.joined.acquire(timeout=SOON)

    async def await_(self):
        with anyio.fail_after(SOON):
            while not self.joined.acquire(blocking=False):
                await anyio.lowlevel.checkpoint()


@pytest.fixture
def told(monkeypatch):
    return Told(monkeypatch)


CALLERS = "aaaabbc"
ORDER = "abcabaa"


def test_threads(told):
    """Waiting threads are served in turns of their callers, with `Balancer.call(caller=...)` and
    `acquire(caller=...)`."""
    balancer = Balancer([URL], max_in_flight=1)
    entered, go, order = threading.Event(), threading.Event(), []

    def hold(_):
        entered.set()
        assert go.wait(SOON)

    def call(caller):
        if caller == "b":
            with balancer.acquire(caller=caller):
                order.append(caller)
        else:
            balancer.call(lambda _: order.append(caller), caller=caller)

    threads = [threading.Thread(target=balancer.call, args=(hold,))]
    threads[0].start()
    assert entered.wait(SOON)
    for caller in CALLERS:
        threads.append(threading.Thread(target=call, args=(caller,)))
        threads[-1].start()
        told.wait()
    go.set()
    for thread in threads:
        thread.join(SOON)
    assert "".join(order) == ORDER
    assert not balancer._engine.queue
    balancer.close()


async def test_tasks(told):
    """Waiting tasks are served in turns of their callers, with `acall` and `acquire`."""
    balancer = Balancer([URL], max_in_flight=1)
    go, order = anyio.Event(), []

    async def hold(_):
        await go.wait()

    async def note(caller, _):
        order.append(caller)
        await anyio.lowlevel.checkpoint()

    async def call(caller):
        if caller == "b":
            async with balancer.acquire(caller=caller):
                order.append(caller)
        else:
            await balancer.acall(functools.partial(note, caller), caller=caller)

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            group.start_soon(balancer.acall, hold)
            await anyio.wait_all_tasks_blocked()
            for caller in CALLERS:
                group.start_soon(call, caller)
                await told.await_()
            go.set()
    assert "".join(order) == ORDER
    assert not balancer._engine.queue
    balancer.close()


@pytest.mark.parametrize("seed", range(5))
async def test_cancelled_in_line(seed):
    """If calls are cancelled while they wait, at any place in the queue and even when they are
    woken, all others are served, and nothing stays in the queue or in flight."""
    rng = random.Random(seed)
    # On a busy machine some would run out of patience, so no time passes.
    balancer = Balancer([URL], max_in_flight=2, clock=lambda: 0.0)
    done, scopes = [], []

    async def work(_):
        await anyio.lowlevel.checkpoint()

    async def call(number):
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await balancer.acall(work, caller=rng.randrange(4))
            done.append(number)

    with anyio.fail_after(SOON):
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(call, number)
            await anyio.lowlevel.checkpoint()
            for scope in rng.sample(scopes, min(50, len(scopes))):
                scope.cancel()
                if rng.random() < 0.5:
                    await anyio.lowlevel.checkpoint()
    assert len(done) >= 50
    assert not balancer._engine.queue
    assert balancer._engine._picker.in_flight == 0
    balancer.close()


async def gives_way(_):
    await asyncio.sleep(0)


def on_a_thread(balancer, seed):
    rng = random.Random(seed)
    for _ in range(30):
        with contextlib.suppress(lbclient.DeadlineExceeded):
            deadline = rng.choice([SOON, 1e-4])
            balancer.call(lambda _: None, caller=rng.randrange(3), deadline=deadline)


def on_a_loop(balancer, seed):
    rng = random.Random(seed)

    async def call():
        with contextlib.suppress(lbclient.DeadlineExceeded):
            deadline = rng.choice([SOON, 1e-4])
            await balancer.acall(gives_way, caller=rng.randrange(3), deadline=deadline)

    async def main():
        await asyncio.gather(*[call() for _ in range(30)])

    asyncio.run(main())


def test_threads_and_loops_together():
    """All calls of threads and event loops, of three callers, end although many give up, and
    nothing stays in the queue or in flight."""
    balancer = Balancer([URL], max_in_flight=3, retry=None)
    threads = [
        threading.Thread(target=work, args=(balancer, seed))
        for seed, work in enumerate([on_a_thread, on_a_thread, on_a_loop, on_a_thread, on_a_loop])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * SOON)
        assert not thread.is_alive()
    assert not balancer._engine.queue
    assert balancer._engine._picker.in_flight == 0
    balancer.close()


def tenant(request):
    return request.headers.get("x-tenant")


@pytest.mark.parametrize("module", [lbclient, lbclient.httpx2], ids=["httpx", "httpx2"])
def test_a_client(servers, told, module):
    """`fair_by=` of a client is a function of its request; the request's extension overrides it."""
    gate = Gate()
    (server,) = servers(gate)
    with module.Client([server.url], max_in_flight=1, fair_by=tenant, timeout=SOON) as client:

        def call(caller, number):
            asked = {"lbclient": {"caller": caller}} if number % 2 else {}
            headers = {"X-Tenant": "another" if asked else caller}
            client.get(f"/{caller}", headers=headers, extensions=asked)

        threads = [threading.Thread(target=call, args=("first", 0))]
        threads[0].start()
        assert gate.entered.acquire(timeout=SOON)
        for number, caller in enumerate(CALLERS):
            threads.append(threading.Thread(target=call, args=(caller, number)))
            threads[-1].start()
            told.wait()
        gate.open.set()
        for thread in threads:
            thread.join(SOON)
    assert "".join(one.target[1:] for one in server.requests[1:]) == ORDER


@pytest.mark.parametrize("module", [lbclient, lbclient.httpx2], ids=["httpx", "httpx2"])
async def test_an_async_transport(servers, told, module):
    """`fair_by=` works for a transport under an httpx client, on event loops."""
    gate = Gate()
    (server,) = servers(gate)
    theirs = httpx if module is lbclient else httpx2
    transport = module.AsyncTransport([server.url], max_in_flight=1, fair_by=tenant)
    async with theirs.AsyncClient(transport=transport, base_url=server.url, timeout=SOON) as client:

        async def call(caller):
            await client.get(f"/{caller}", headers={"X-Tenant": caller})

        async with anyio.create_task_group() as group:
            group.start_soon(call, "first")
            assert await anyio.to_thread.run_sync(gate.entered.acquire, True, SOON)
            for caller in CALLERS:
                group.start_soon(call, caller)
                await told.await_()
            gate.open.set()
    assert "".join(one.target[1:] for one in server.requests[1:]) == ORDER


class TestWhatItRefuses:
    def test_what_is_no_function(self):
        """`fair_by=` must be a function or None; otherwise construction fails."""
        for entry in (lbclient.Client, lbclient.AsyncTransport):
            with pytest.raises(TypeError, match="fair_by must be callable"):
                entry([URL], fair_by="x-tenant")
        with pytest.raises(TypeError, match="fair_by"):
            simulate(Scenario([Server("a", answers(constant(0)))], Open(1, 1)), fair_by=5)

    def test_a_value_without_hash(self):
        """A caller that is not hashable is a TypeError that names the argument and the type, but
        not the value, which may be secret. Nothing is sent."""
        with lbclient.Client([URL], fair_by=lambda _: ["secret"]) as client:
            with pytest.raises(
                TypeError, match=r"^the result of fair_by must be hashable, not list$"
            ):
                client.get("/")
            with pytest.raises(TypeError, match=r"\['caller'\] must be hashable, not dict$"):
                client.get("/", extensions={"lbclient": {"caller": {}}})
            balancer = client.balancer
            for make in (balancer.acquire, functools.partial(balancer.call, str)):
                with pytest.raises(TypeError, match=r"^caller must be hashable, not list$"):
                    make(caller=["secret"])
            assert [one.attempts for one in balancer.snapshot().instances] == [0]

    def test_a_function_that_raises(self):
        """An exception of `fair_by=` is raised to the caller of the request, before anything is
        sent."""
        with lbclient.Client([URL], fair_by=lambda request: request.headers["x-none"]) as client:
            with pytest.raises(KeyError):
                client.get("/")
            assert [one.attempts for one in client.balancer.snapshot().instances] == [0]

    def test_it_is_asked_once(self):
        """`fair_by=` is called once per request, however many attempts are made."""
        asked = []
        dead = [lbclient.Instance("127.0.0.1", 1), lbclient.Instance("127.0.0.1", 2)]
        with (
            lbclient.Client(dead, fair_by=asked.append) as client,
            pytest.raises(httpx.ConnectError),
        ):
            client.get("/")
        assert len(asked) == 1
