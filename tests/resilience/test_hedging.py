"""Hedging: a second attempt if the first is slow."""

import asyncio
import contextvars
import math
import random
import threading
import time

import anyio
import anyio.lowlevel
import httpx
import pytest

import lbclient
from lbclient import Balancer, HedgePolicy, Instance, RetryBudget, RetryPolicy, Verdict
from lbclient._internal.deadline import Expiry
from lbclient._internal.signals import Pause, Signal
from lbclient.core.call import CallOptions
from lbclient.core.hedge import HedgeRace, Lane, Lanes
from lbclient.protocol import arun, bind, run
from lbclient.resilience.hedging import Hedging
from lbclient.simulation import World, carry_out
from lbclient.telemetry.semantics import Semantics
from tests.support.http import Gate, dies_in_body, says, slow, tells_port

pytestmark = pytest.mark.anyio

AT_ONCE = HedgePolicy(delay=0.02)
BOTH = [Instance("10.0.0.1", 1), Instance("10.0.0.2", 2)]


class First:
    """Holds the first attempt until the test releases it; others are answered at once."""

    def __init__(self) -> None:
        self.asked: list[Instance] = []
        self.go = threading.Event()
        self.left = threading.Semaphore(0)

    def __call__(self, instance: Instance) -> Instance:
        self.asked.append(instance)
        if len(self.asked) == 1:
            assert self.go.wait(10)
            self.left.release()
        return instance


def begun(balancer):
    """A call that may be hedged."""
    return bind(balancer).begin(CallOptions(idempotent=True), Semantics())


def idle(balancer) -> bool:
    return not any(one.in_flight for one in balancer.snapshot().instances)


def test_the_second_attempt_answers_for_the_first():
    """A call whose first attempt takes longer than the delay is answered by another instance."""
    first = First()
    with Balancer(BOTH, hedge=AT_ONCE) as balancer:
        answer = balancer.call(first, idempotent=True)
        first.go.set()
        assert first.left.acquire(timeout=10)
    assert first.asked == [*first.asked[:1], answer]
    assert first.asked[0] != answer


async def test_the_second_attempt_answers_for_the_first_async():
    """The same on an event loop, where the slower attempt is cancelled at once."""
    asked, cancelled = [], []

    async def call(instance):
        asked.append(instance)
        if len(asked) == 1:
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.append(instance)
        return instance

    async with Balancer(BOTH, hedge=AT_ONCE) as balancer:
        answer = await balancer.acall(call, idempotent=True)
        assert idle(balancer)
    assert cancelled == asked[:1]
    assert answer == asked[1] != asked[0]


@pytest.mark.parametrize("hedge", [None, AT_ONCE])
def test_a_call_that_may_not_be_repeated_is_not_hedged(hedge):
    """A call that is not idempotent makes one attempt, however long it takes."""
    asked = []

    def call(instance):
        asked.append((instance, threading.current_thread()))
        return instance

    with Balancer(BOTH, hedge=hedge) as balancer:
        balancer.call(call)
    assert [thread for _, thread in asked] == [threading.main_thread()]


TWO_HEDGES = RetryBudget(ratio=0.0, reserve=2.0, window=1.0)
NO_RETRIES = RetryPolicy(budget=RetryBudget(ratio=0.0, reserve=0.0))


def hedged(budget, retry=NO_RETRIES):
    """Options of a balancer that hedges at once, with a clock that stands still."""
    policy = HedgePolicy(delay=0.0, budget=budget)
    return {"hedge": policy, "retry": retry, "clock": lambda: 0.0}


def test_hedges_have_a_budget_of_their_own(telemetry):
    """Second attempts are sent while their own budget lasts, even if that of retries is empty;
    refused ones are counted apart from refused retries."""
    asked = []
    together = threading.Barrier(2)

    def call(instance):
        asked.append(instance)
        if len(asked) <= 4:
            together.wait(10)  # both attempts of the first two calls are under way at once
        else:
            threading.Event().wait(0.05)
        return instance

    with Balancer(BOTH, **hedged(TWO_HEDGES), **telemetry.options) as balancer:
        for _ in range(4):
            balancer.call(call, idempotent=True)
            assert idle_soon(balancer)
    assert len(asked) == 6
    assert telemetry.total("lbclient.hedges") == 2
    assert telemetry.total("lbclient.hedges.refused") == 2
    assert telemetry.total("lbclient.retries.refused") == 0


async def test_hedges_have_a_budget_of_their_own_async():
    """The same on an event loop."""
    asked = []

    async def call(instance):
        asked.append(instance)
        await anyio.sleep(0.05)
        return instance

    async with Balancer(BOTH, **hedged(TWO_HEDGES)) as balancer:
        for _ in range(4):
            await balancer.acall(call, idempotent=True)
    assert len(asked) == 6


@pytest.mark.parametrize(("budget", "hedges"), [(TWO_HEDGES, 2), (None, 5)])
def test_the_budget_of_hedges_in_virtual_time(budget, hedges):
    """The same in virtual time; a budget of None is no limit."""
    world = World()
    options = {**hedged(budget), "clock": world.clock}
    balancer = Balancer(BOTH, **options)
    sent = []

    def send(attempt):
        sent.append(attempt.reason)
        yield Pause(0.01)

    def main():
        for _ in range(5):
            yield from carry_out(
                bind(balancer).begin(CallOptions(idempotent=True), Semantics()), send
            )

    world.spawn(main())
    world.run()
    assert sent.count("hedge") == hedges
    assert len(sent) == 5 + hedges


def test_virtual_time_leaves_no_deadline_behind():
    """The deadlines of attempts that overlap in virtual time do not affect each other, nor the
    caller."""
    world = World()
    balancer = Balancer(BOTH, clock=world.clock)
    left = []

    def send(_):
        yield Pause(1.0)
        left.append(lbclient.time_left())

    for seconds in (4.0, 3.0, 2.0):
        terms = CallOptions(idempotent=True, deadline=seconds)
        world.spawn(carry_out(bind(balancer).begin(terms, Semantics()), send))
    world.run()
    assert left == [3.0, 2.0, 1.0]
    assert lbclient.time_left() is None


def test_hedges_leave_the_retries_alone():
    """However many hedges are sent, the retry budget is as full as without them."""
    plenty = RetryPolicy(budget=RetryBudget(ratio=0.0, reserve=3.0, window=1.0))
    with Balancer(BOTH, **hedged(None, plenty)) as balancer:
        for _ in range(5):
            balancer.call(lambda _: threading.Event().wait(0.02), idempotent=True)
        assert sum(one.attempts for one in balancer.snapshot().instances) > 5
        assert balancer._engine.retry_rules.budget.balance(0.0) == 3.0


def test_calls_earn_hedges():
    """Each call earns `ratio` of a hedge."""
    policy = HedgePolicy(delay=0.0, budget=RetryBudget(ratio=0.5, reserve=0.0))
    with Balancer(BOTH, hedge=policy, clock=lambda: 0.0) as balancer:
        for _ in range(8):
            balancer.call(lambda _: threading.Event().wait(0.02), idempotent=True)
            assert idle_soon(balancer)
        assert sum(one.attempts for one in balancer.snapshot().instances) == 8 + 4


def test_one_instance_is_not_asked_twice_at_a_time():
    """Without another instance there is no hedge."""
    asked = []

    def call(instance):
        asked.append(instance)
        threading.Event().wait(0.05)
        return instance

    with Balancer(BOTH[:1], hedge=HedgePolicy(delay=0.0)) as balancer:
        balancer.call(call, idempotent=True)
    assert asked == BOTH[:1]


def test_a_poor_answer_waits_for_the_other():
    """A first attempt that fails does not end the call while its hedge is in flight."""
    go, asked = threading.Event(), []

    def call(instance):
        asked.append(instance)
        if len(asked) == 1:
            assert go.wait(10)
            raise ConnectionResetError
        go.set()
        threading.Event().wait(0.1)
        return instance

    with Balancer(BOTH, hedge=AT_ONCE, retry=RetryPolicy(attempts=1)) as balancer:
        answer = balancer.call(call, idempotent=True)
        assert idle(balancer)
    assert answer == asked[1]


async def test_a_poor_answer_waits_for_the_other_async():
    """The same on an event loop."""
    asked, go = [], anyio.Event()

    async def call(instance):
        asked.append(instance)
        if len(asked) == 1:
            await go.wait()
            raise ConnectionResetError
        go.set()
        await anyio.sleep(0.1)
        return instance

    async with Balancer(BOTH, hedge=AT_ONCE, retry=RetryPolicy(attempts=1)) as balancer:
        assert await balancer.acall(call, idempotent=True) == asked[1]
        assert idle(balancer)


def test_both_fail_and_the_first_tells():
    """If both attempts fail, the error is that of the call's own attempt, and both are listed."""
    both = threading.Barrier(2)

    def call(instance):
        both.wait(10)
        raise ConnectionResetError(str(instance))

    with Balancer(BOTH, hedge=HedgePolicy(delay=0.0), retry=RetryPolicy(attempts=1)) as balancer:
        with pytest.raises(ConnectionResetError) as caught:
            balancer.call(call, idempotent=True)
        assert idle(balancer)
    info = lbclient.call_info(caught.value)
    assert {one.instance for one in info.attempts} == set(BOTH)
    assert info.attempts[-1].error is caught.value


async def test_the_callers_own_exception_comes_through_ungrouped():
    """The caller's own exception is raised unchanged, hedged or not."""

    async def call(instance):
        await anyio.sleep(0.03)
        raise KeyError(instance)

    async with Balancer(BOTH, hedge=AT_ONCE) as balancer:
        with pytest.raises(KeyError):
            await balancer.acall(call, idempotent=True)
        assert idle(balancer)


def test_the_callers_context_reaches_both_attempts():
    """Each attempt sees the caller's context variables, on any thread."""
    variable = contextvars.ContextVar("variable", default="")
    variable.set("seen")
    first, seen = First(), []

    def call(instance):
        seen.append(variable.get())
        return first(instance)

    with Balancer(BOTH, hedge=AT_ONCE) as balancer:
        balancer.call(call, idempotent=True)
        first.go.set()
        assert first.left.acquire(timeout=10)
    assert seen == ["seen", "seen"]


def test_a_slow_instance_costs_little(servers):
    """If an instance hangs, a hedged GET takes the delay, and does not wait for its connection."""
    gate = Gate()
    bad, good = servers(gate, tells_port)
    with lbclient.Client([bad.url, good.url], hedge=AT_ONCE, strategy="round-robin") as client:
        answers = [client.get("/") for _ in range(6)]
        assert idle_soon(client.balancer)
    gate.open.set()
    assert {answer.text for answer in answers} == {str(good.port)}
    reasons = [lbclient.call_info(one).attempts[-1].reason for one in answers]
    assert reasons.count("hedge") == 3
    hedged = next(one for one in answers if len(lbclient.call_info(one).attempts) == 2)
    assert [one.status for one in lbclient.call_info(hedged).attempts] == [None, 200]


def idle_soon(balancer) -> bool:
    """Wait until the slower attempts have ended on their threads."""
    done = threading.Event()
    bind(balancer).idle().listen(done.set)
    return done.wait(10)


async def test_a_slow_instance_costs_little_async(servers):
    """The same for async calls; nothing is in flight after the call has returned."""
    gate = Gate()
    bad, good = servers(gate, tells_port)
    async with lbclient.AsyncClient(
        [bad.url, good.url], hedge=AT_ONCE, strategy="round-robin"
    ) as client:
        answers = [await client.get("/") for _ in range(6)]
        assert idle(client.balancer)
    gate.open.set()
    assert {answer.text for answer in answers} == {str(good.port)}


def test_nobody_elses_request_is_interrupted(servers):
    """Ending the slower attempt does not end another request that uses its connection meanwhile."""
    dice = random.Random(5)

    def echo(connection, request):
        connection.server.stopping.wait(dice.choice([0, 0, 0, 0.001, 0.002, 0.02]))
        connection.answer(200, f"{request.method} {request.target}".encode())

    instances = servers(echo, echo, echo)
    failed = []
    with lbclient.Client(
        [one.url for one in instances],
        hedge=HedgePolicy(delay=0.002, budget=None),
        retry=RetryPolicy(budget=None),
    ) as client:

        def work(number):
            for turn in range(100):
                method = "POST" if turn % 2 else "GET"
                try:
                    answer = client.request(method, f"/{number}/{turn}").text
                except httpx.HTTPError as error:
                    answer = repr(error)
                if answer != f"{method} /{number}/{turn}":
                    failed.append(answer)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert idle_soon(client.balancer)
        snapshot = client.balancer.snapshot()
    assert failed == []
    assert [one.in_flight for one in snapshot.instances] == [0, 0, 0]
    assert [one.failures for one in snapshot.instances] == [0, 0, 0]
    assert sum(one.attempts for one in snapshot.instances) > 810


def test_a_late_answer_is_closed(servers):
    """The answer of the slower attempt is closed unread, and its slot is released."""
    first, second = servers(slow(0.15), slow(0.15))
    with lbclient.Client([first.url, second.url], hedge=HedgePolicy(delay=0.0)) as client:
        with client.stream("GET", "/") as response:
            assert response.read()
        assert idle_soon(client.balancer)
        assert client.get("/").status_code == 200


class Answers:
    """Numbers its answers, of which most are to be retried, and notes which are closed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.made = 0
        self.closed = []
        self.options = {
            "hedge": HedgePolicy(delay=0.0, budget=None),
            "retry": RetryPolicy(backoff=0.001, budget=None),
            "breaker": None,
            "judge": self.judge,
            "rng": random.Random(seed),
        }

    def judge(self, answer):
        bad = answer % 3 > 0
        return lbclient.Verdict(fault=bad, again="always" if bad else "never", backoff=bad)

    def begin(self, attempt):
        """Close what the attempt replaces. Returns how many seconds it takes."""
        if attempt.replaces is not None:
            self.closed.append(attempt.replaces)
        return self.rng.choice([0.0, 0.0, 0.0005, 0.001])

    def make(self):
        self.made += 1
        return self.made

    def assert_closed(self, outcomes):
        """Each answer is closed once, or is the outcome of a call."""
        assert sorted([*self.closed, *outcomes]) == list(range(1, self.made + 1))


def test_every_answer_is_closed_once():
    """Of all answers to a hedged call, the driver closes each one but the outcome, and once."""
    answers, lock = Answers(1), threading.Lock()

    def send(attempt):
        time.sleep(answers.begin(attempt))
        with lock:
            return answers.make()

    with Balancer(BOTH, **answers.options) as balancer:
        outcomes = [run(begun(balancer), send, discard=answers.closed.append) for _ in range(200)]
    for one in threading.enumerate():
        if one.name == "lbclient-attempt":
            one.join(10)
    answers.assert_closed(outcomes)


async def test_every_answer_is_closed_once_async():
    """The same on an event loop."""
    answers = Answers(2)

    async def send(attempt):
        await anyio.sleep(answers.begin(attempt))
        return answers.make()

    async def close(answer):
        await anyio.lowlevel.checkpoint()
        answers.closed.append(answer)

    async with Balancer(BOTH, **answers.options) as balancer:
        outcomes = [await arun(begun(balancer), send, discard=close) for _ in range(200)]
    answers.assert_closed(outcomes)


def test_every_answer_is_closed_once_in_virtual_time():
    """The same in virtual time."""
    world, answers = World(), Answers(3)
    balancer = Balancer(BOTH, **answers.options, clock=world.clock)

    def send(attempt):
        yield Pause(answers.begin(attempt))
        return answers.make()

    outcomes = [
        world.spawn(carry_out(begun(balancer), send, answers.closed.append)) for _ in range(200)
    ]
    world.run()
    answers.assert_closed([outcome for (outcome,) in outcomes])


def test_an_exception_after_the_outcome_is_not_raised():
    """If a hedge ends with an exception in the moment after the answer was chosen, and before those
    who wait are told, the caller gets the answer."""
    told = []

    class Moment(Signal):
        __slots__ = ()

        def set(self):
            if not told:
                told.append(None)
                told[0] = lanes.end(hedge, ValueError("too late"))
            return super().set()

    call = bind(Balancer(BOTH, hedge=HedgePolicy(delay=0.0))).begin(CallOptions(idempotent=True))
    with call, Lanes(call, 0.0) as lanes:
        own = Lane(lanes, call)
        steps, wait = iter(own), iter(lanes)
        with own:
            attempt = next(steps)
            next(wait)
            hedge = next(wait)
            with next(iter(hedge)), attempt:
                attempt.result = "the answer"
            assert not list(steps)
            lanes.done = Moment()
    assert told == [False]
    assert call.result() == "the answer"


def test_an_attempt_that_begins_too_late():
    """An attempt that begins when the call already has its outcome is ended at once."""
    race, expiry = HedgeRace(threading.RLock()), Expiry(math.inf, time.monotonic)
    race.end()
    race.begin("attempt", "endpoint", expiry)
    assert expiry.left() == 0.0


@pytest.mark.parametrize("cancelled", ["Weighted", "hedge"])
def test_an_attempt_that_cancels_itself(cancelled):
    """A cancellation that an attempt raises by itself reaches the caller, whichever attempt it
    is."""

    async def send(attempt):
        await asyncio.sleep(0.02 if attempt.reason == cancelled else 0.1)
        raise asyncio.CancelledError

    async def main():
        async with Balancer(BOTH, hedge=HedgePolicy(delay=0.0)) as balancer:
            with pytest.raises(asyncio.CancelledError):
                await arun(begun(balancer), send)
            assert idle(balancer)

    asyncio.run(main())


def test_a_hedged_call_may_be_retried_too(servers):
    """An instance that dies in the body fails no hedged call: it is retried like any other."""
    bad, good = servers(dies_in_body, tells_port)
    with lbclient.Client([bad.url, good.url], hedge=HedgePolicy(delay=0.5)) as client:
        assert {client.get("/").text for _ in range(10)} == {str(good.port)}


def test_an_unavailable_answer_does_not_win(servers):
    """A 503 of the hedge is not the outcome while the first attempt may still succeed."""
    gate = Gate(then=tells_port)
    good, bad = servers(gate, says(503))
    bad.behaviour = lambda connection, request: (gate.open.set(), says(503)(connection, request))
    with lbclient.Client([good.url], hedge=HedgePolicy(delay=0.0)) as client:
        gate.open.set()
        assert client.get("/").status_code == 200
    gate.open.clear()
    rng = random.Random(1)
    hedge = HedgePolicy(delay=0.05)
    with lbclient.Client(
        [good.url, bad.url], hedge=hedge, rng=rng, retry=RetryPolicy(attempts=1)
    ) as client:
        client.balancer.eject(client.balancer.instances()[1], 0.02)
        assert client.get("/").text == str(good.port)


def test_a_body_that_cannot_be_sent_twice_is_not_hedged(servers):
    """A generator's body is sent once, even if the call is marked as idempotent."""
    gate = Gate()
    bad, other = servers(gate, tells_port)
    with lbclient.Client([bad.url, other.url], hedge=HedgePolicy(delay=0.0)) as client:
        client.balancer.eject(client.balancer.instances()[1], 0.1)
        threading.Timer(0.3, gate.open.set).start()
        response = client.put("/", content=iter([b"x"]))
    assert response.text == str(bad.port)
    assert other.hits == 0


async def test_neither_attempt_counts_twice(servers, telemetry):
    """A call has one span and one duration that counts, the winner's; the span and duration of the
    other attempt are marked as lost."""
    gate = Gate()
    bad, good = servers(gate, tells_port)
    async with lbclient.AsyncClient(
        [bad.url, good.url], hedge=AT_ONCE, strategy="round-robin", **telemetry.options
    ) as client:
        while not bad.hits:
            await client.get("/")
        calls = bad.hits + good.hits - 1
    gate.open.set()
    assert len(telemetry.calls) == calls
    points = telemetry.points("http.client.request.duration")
    assert sum(count for labels, count in points if "lbclient.lost" not in labels) == calls
    assert sum(count for labels, count in points if "lbclient.lost" in labels) == 1
    assert telemetry.total("lbclient.hedges") == 1
    lost = [one for one in telemetry.attempts if one.attributes.get("lbclient.lost")]
    assert [one.attributes["network.peer.port"] for one in lost] == [bad.port]
    assert len(telemetry.attempts) == calls + 1
    assert not any("error.type" in one.attributes for one in telemetry.spans)


def test_hedging_in_virtual_time():
    """In virtual time a hedged call takes the delay plus the time of the second attempt."""
    world = World()
    balancer = Balancer(
        BOTH, hedge=HedgePolicy(delay=0.5), strategy="round-robin", clock=world.clock
    )
    asked, closed = [], []

    def send(attempt):
        asked.append((world.clock(), attempt.instance))
        try:
            yield Pause(10.0 if len(asked) == 1 else 0.25)
        except GeneratorExit:
            closed.append((world.clock(), attempt.instance))
            raise
        return world.clock()

    call = bind(balancer).begin(CallOptions(idempotent=True), Semantics())
    results = world.spawn(carry_out(call, send))
    world.run()
    assert results == [0.75]
    assert [at for at, _ in asked] == [0.0, 0.5]
    assert closed == [(0.75, asked[0][1])]
    assert idle(balancer)


def test_the_slower_attempt_counts_as_latency():
    """An instance whose attempt was slower than the hedge takes at least as long as that attempt
    lasted."""
    world = World()
    balancer = Balancer(BOTH, hedge=HedgePolicy(delay=0.25), clock=world.clock)
    seconds = iter((10.0, 0.125))
    asked = []

    def send(attempt):
        asked.append(attempt.endpoint)
        yield Pause(next(seconds))

    world.spawn(carry_out(begun(balancer), send))
    world.run()
    assert [one.mean_latency.value for one in asked] == [0.375, 0.125]


def test_a_hedge_takes_no_slot_that_a_call_waits_for():
    """A slot that becomes free as a hedge is due goes to the call that waits for it, not to the
    hedge."""
    world = World()
    balancer = Balancer(
        BOTH,
        hedge=HedgePolicy(delay=1.0),
        strategy="round-robin",
        max_in_flight=1,
        clock=world.clock,
    )
    sent = []

    def call(name, at, seconds, *, idempotent=False):
        def send(attempt):
            sent.append((name, world.clock(), attempt.reason))
            yield Pause(seconds)

        yield Pause(at)
        options = CallOptions(idempotent=idempotent)
        yield from carry_out(bind(balancer).begin(options, Semantics()), send)

    world.spawn(call("short", 0.0, 1.0))
    world.spawn(call("slow", 0.0, 2.5, idempotent=True))
    world.spawn(call("waits", 0.5, 4.0))
    world.run()
    assert [(name, at) for name, at, _ in sent] == [("short", 0.0), ("slow", 0.0), ("waits", 1.0)]
    assert idle(balancer)


def test_a_closed_balancer_hedges_no_call():
    """No second attempt is sent after the balancer was closed."""
    world, sent = World(), []
    balancer = Balancer(BOTH, hedge=HedgePolicy(delay=1.0), clock=world.clock)

    def send(_):
        sent.append(world.clock())
        yield Pause(3.0)
        return world.clock()

    results = world.spawn(carry_out(begun(balancer), send))
    world.at(0.5, balancer.close)
    world.run()
    assert (sent, results) == ([0.0], [3.0])


@pytest.mark.parametrize(
    ("verdict", "seconds", "counts"),
    [
        (Verdict(fault=False), 0.5, True),
        (Verdict(fault=False, client_error=True), 0.5, False),
        (Verdict(fault=False, client_error=True), 2.0, False),
        (Verdict(fault=True), 0.5, False),
        (Verdict(fault=True), 2.0, True),
        (Verdict(fault=False, again="idempotent", rejected=True), 0.5, False),
    ],
    ids=str,
)
def test_what_counts_as_latency(verdict, seconds, counts):
    """A fault or a rejection counts as latency only if it took longer than answers do, and a client
    error never does."""
    now, answer = [0.0], Verdict(fault=False)

    def call(verdict, seconds):
        def send(_):
            now[0] += seconds
            return verdict

        balancer.call(send)

    with Balancer(
        BOTH[:1],
        clock=lambda: now[0],
        judge=lambda verdict: verdict,
        hedge=HedgePolicy(),
        breaker=None,
        retry=None,
    ) as balancer:
        for _ in range(30):
            call(answer, 1.0)
        for _ in range(600):
            call(verdict, seconds)
        assert begun(balancer).hedge_after() == pytest.approx(seconds if counts else 1.0)


def test_the_delay_is_a_percentile_of_what_was_seen():
    """Without a fixed delay, the delay is the latency that 95 % of recent attempts did not
    exceed."""
    hedging = Hedging(HedgePolicy())
    assert hedging.after() is None
    for number in range(1, 101):
        hedging.record_latency(number / 100)
    assert hedging.after() == pytest.approx(0.95)
    for _ in range(200):
        hedging.record_latency(0.5)
    assert hedging.after() == 0.5


def test_a_delay_has_a_least():
    """However fast a service is, a hedge waits for `least` seconds."""
    hedging = Hedging(HedgePolicy(least=0.01))
    for _ in range(20):
        hedging.record_latency(0.0001)
    assert hedging.after() == 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay": -1},
        {"delay": "1"},
        {"percentile": 0},
        {"percentile": 1},
        {"percentile": 95},
        {"least": -1},
        {"delay": float("nan")},
        {"budget": 0.1},
        {"budget": RetryBudget},
    ],
)
def test_what_a_hedge_policy_refuses(wrong):
    """Invalid values are refused at construction by an error that names the argument."""
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        HedgePolicy(**wrong)


def test_a_hedge_must_be_a_policy():
    """`hedge` must be a HedgePolicy or None."""
    with pytest.raises(TypeError, match=r"hedge must be lbclient.HedgePolicy\(...\) or None"):
        Balancer(BOTH, hedge=0.1)


def test_a_hedge_ends_the_back_off_of_the_first(servers):
    """An answer that was to be retried is closed as soon as the hedge has answered."""
    first, second = servers(says(503), tells_port)
    retry = RetryPolicy(backoff=30.0, backoff_max=30.0)
    rng = random.Random(3)
    hedge = HedgePolicy(delay=0.05)
    with lbclient.Client([first.url, second.url], hedge=hedge, retry=retry, rng=rng) as client:
        client.balancer.eject(client.balancer.instances()[1], 0.04)
        response = client.get("/")
        assert idle_soon(client.balancer)
    assert [one.status for one in lbclient.call_info(response).attempts] == [503, 200]
    assert lbclient.call_info(response).attempts[1].reason == "hedge"
