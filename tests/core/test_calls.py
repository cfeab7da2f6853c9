"""What one call may repeat, and what it costs: good results, and attempts that were never sent."""

import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import anyio.lowlevel
import httpx
import pytest

import lbclient
from lbclient import Balancer, Instance, RetryBudget, RetryPolicy, Verdict
from lbclient._internal.signals import Pause
from lbclient.core.call import CallOptions
from lbclient.core.engine import Engine
from lbclient.core.picker import Pick
from lbclient.core.wait_queue import WaitQueue
from lbclient.endpoint.classifier import classify_network_error
from lbclient.protocol import bind
from lbclient.simulation import (
    Open,
    Scenario,
    Server,
    World,
    answers,
    carry_out,
    constant,
    refuses,
    simulate,
)
from lbclient.telemetry.semantics import Semantics
from tests.support.http import Gate, says, tells_port

pytestmark = pytest.mark.anyio

THREE = [Instance(f"10.0.0.{number}", 1) for number in (1, 2, 3)]
NO_BUDGET = RetryBudget(ratio=0.0, reserve=0.0)
POOR = RetryPolicy(backoff=0.0, budget=NO_BUDGET)


class Sent:
    """A function for `call` and `acall` that records its instances, and ends as scripted."""

    def __init__(self, *outcomes):
        self.instances = []
        self._outcomes = itertools.chain(outcomes, itertools.repeat(outcomes[-1]))

    def __call__(self, instance):
        self.instances.append(instance)
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def later(self, instance):
        return self(instance)


# A good result


AGAIN = ["never", "idempotent", "always"]


@pytest.mark.parametrize("again", AGAIN)
def test_a_good_result_is_not_repeated(again):
    """A result that is not a fault is sent once, whatever the judge says in `again`."""
    sent = Sent("good")
    with Balancer(THREE, judge=lambda _: Verdict(fault=False, again=again)) as balancer:
        assert balancer.call(sent, idempotent=True) == "good"
    assert len(sent.instances) == 1


@pytest.mark.parametrize("again", AGAIN)
async def test_a_good_result_is_not_repeated_async(again):
    """The same on an event loop, hedged or not."""
    verdict = Verdict(fault=False, again=again)
    for hedge in (None, lbclient.HedgePolicy(delay=5.0)):
        sent = Sent("good")
        async with Balancer(THREE, judge=lambda _: verdict, hedge=hedge) as balancer:
            assert await balancer.acall(sent.later, idempotent=True) == "good"
        assert len(sent.instances) == 1


@pytest.mark.parametrize(
    "busy",
    [
        {"fault": True, "again": "idempotent"},
        {"fault": False, "again": "always", "rest": 2.0},
        {"fault": False, "again": "idempotent", "rest": 0.1},
        {"fault": False, "again": "idempotent", "rejected": True},
        {"fault": False, "again": "always", "unsent": True},
    ],
    ids=str,
)
def test_a_result_that_is_not_good_is_repeated(busy):
    """A result is worth repeating if it is a fault, a rejection, or asks for a rest."""
    sent = Sent("busy", "good")

    def judge(result):
        return Verdict(**busy) if result == "busy" else Verdict(fault=False, again="always")

    with Balancer(THREE, judge=judge) as balancer:
        assert balancer.call(sent, idempotent=True) == "good"
    assert len(set(sent.instances)) == 2


def test_a_good_result_heals():
    """Whatever the judge says in `again`, a good result counts as a success of its instance."""

    def judge(result):
        return Verdict(fault=isinstance(result, OSError), again="idempotent")

    breaker = lbclient.BreakerPolicy(fail_max=2)
    with Balancer(THREE[:1], judge=judge, breaker=breaker, retry=None) as balancer:
        for _ in range(5):
            with pytest.raises(ConnectionResetError):
                balancer.call(Sent(ConnectionResetError()))
            assert balancer.call(Sent("good")) == "good"
        (one,) = balancer.snapshot().instances
    assert (one.breaker, one.failures) == ("closed", 5)


# What was never sent


NEVER_SENT = [ConnectionRefusedError(), OSError(113, "no route to host")]


@pytest.mark.parametrize("error", NEVER_SENT, ids=repr)
@pytest.mark.parametrize("idempotent", [False, True])
def test_what_was_never_sent_is_replaced_without_budget(error, idempotent):
    """An attempt that was never sent is replaced even if the retry budget is empty."""
    sent = Sent(error, error, "good")
    with Balancer(THREE, retry=POOR) as balancer:
        assert balancer.call(sent, idempotent=idempotent) == "good"
    assert len(set(sent.instances)) == 3


async def test_what_was_never_sent_is_replaced_without_budget_async():
    """The same on an event loop."""
    sent = Sent(ConnectionRefusedError(), "good")
    async with Balancer(THREE, retry=POOR) as balancer:
        assert await balancer.acall(sent.later) == "good"


def test_what_was_never_sent_costs_no_budget():
    """After such a replacement the budget is as full as before."""
    tight = RetryPolicy(backoff=0.0, budget=RetryBudget(ratio=0.0, reserve=1.0, window=1.0))
    with Balancer(THREE, retry=tight, breaker=None, clock=lambda: 0.0) as balancer:
        for _ in range(3):
            assert balancer.call(Sent(ConnectionRefusedError(), "good")) == "good"
        assert balancer._engine.retry_rules.budget.balance(0.0) == 1.0
        assert balancer.call(Sent(ConnectionResetError(), "good"), idempotent=True) == "good"
        assert balancer._engine.retry_rules.budget.balance(0.0) == 0.0


def test_attempts_bound_what_was_never_sent():
    """In a total outage a call makes at most `attempts` attempts, and breakers prevent even
    those."""
    sent = Sent(ConnectionRefusedError())
    with Balancer(THREE, retry=RetryPolicy(attempts=3, backoff=0.0, budget=NO_BUDGET)) as balancer:
        for _ in range(50):
            with pytest.raises((ConnectionRefusedError, lbclient.NoInstanceAvailable)):
                balancer.call(sent)
    assert len(sent.instances) == 15  # three breakers, five faults each


class Busy(Exception):
    """An exception of a protocol for an instance that answers that it is busy."""


BUSY = [
    ("busy", {"fault": False, "again": "always", "rest": 0.001}),
    ("busy", {"fault": False, "again": "always", "rejected": True}),
    ("busy", {"fault": True, "again": "always"}),
    (Busy(), {"fault": False, "again": "always", "rest": 0.001}),
    (Busy(), {"fault": True, "again": "always", "rejected": True}),
]


@pytest.mark.parametrize(("answer", "verdict"), BUSY, ids=str)
def test_a_busy_answer_was_sent(answer, verdict):
    """An attempt that was answered has been sent, whether it ends with a result or an exception:
    with an empty budget its outcome is final, even if the call may be repeated."""
    sent = Sent(answer, "good")

    def judge(result):
        return Verdict(**verdict) if result is answer else Verdict(fault=False)

    with Balancer(THREE, retry=POOR, judge=judge) as balancer:
        if isinstance(answer, Busy):
            with pytest.raises(Busy):
                balancer.call(sent)
        else:
            assert balancer.call(sent) == "busy"
    assert len(sent.instances) == 1


def test_a_post_goes_around_a_dead_instance_without_budget(servers, dead_port):
    """Over HTTP a refused connection fails no call, whatever its method and the budget."""
    (alive,) = servers(tells_port)
    urls = [f"http://127.0.0.1:{dead_port}", alive.url]
    with lbclient.Client(urls, retry=POOR) as client:
        assert {client.post("/", content=b"x").text for _ in range(4)} == {str(alive.port)}


def test_a_request_that_was_not_read_is_replaced_without_budget(servers):
    """A 408 on a reused connection says that the request was not read."""
    ended = []

    def ends_idle(connection, request):
        if request.target == "/first":
            connection.answer(200)
        elif not ended:
            ended.append(request)
            connection.answer(408, Connection="close")
        else:
            connection.answer(200, b"read")

    (server,) = servers(ends_idle)
    with lbclient.Client([server.url], retry=POOR) as client:
        assert client.get("/first").status_code == 200
        assert client.post("/", content=b"x").text == "read"
        assert (
            client.balancer._engine.retry_rules.budget.balance(client.balancer._engine.clock())
            == 0.0
        )


def test_an_empty_budget_still_ends_what_was_sent(servers):
    """With an empty budget a 503 is the result at once."""
    bad, worse = servers(says(503), says(503))
    with lbclient.Client([bad.url, worse.url], retry=POOR) as client:
        assert client.get("/").status_code == 503
        with pytest.raises(httpx.HTTPStatusError):
            client.get("/").raise_for_status()
    assert bad.hits + worse.hits == 2


# A retry, and instances that are only full


A, B, C = THREE
HELD = 1.0
"""Another call holds its instance until then."""


class ByKey:
    """A strategy that picks the instance named by the call's key (host or port), else the first;
    `failed` is set once an attempt has failed."""

    def __init__(self):
        self.failed = threading.Event()

    def pick(self, candidates, call):
        wanted = (one for one in candidates if call.key in (one.instance.host, one.instance.port))
        return next(wanted, candidates[0])

    def ended(self, *_, failed, **__):
        if failed:
            self.failed.set()


class Play:
    """A balancer in virtual time. `outcomes` are the answers of instances other than "good"."""

    def __init__(self, instances, outcomes, **options):
        self.world = World()
        self.outcomes = outcomes
        self.sent = []
        self.ended = []
        self.errors = []
        options = {"strategy": ByKey(), "max_in_flight": 1, **options}
        self.balancer = Balancer(instances, clock=self.world.clock, judge=self.judge, **options)

    @staticmethod
    def judge(result):
        if result == "busy":
            return Verdict(fault=False, again="idempotent", rejected=True)
        return classify_network_error(result)

    def hold(self, instance, until=HELD):
        """Another call uses this instance until then."""
        endpoint = self.balancer._engine.pool.find(instance)
        engine, pick = self.balancer._engine, Pick(endpoint, endpoint.breaker.permit, "held")
        with engine.lock:
            engine._retake(pick)

        def free():
            with engine.lock:
                engine.release(pick)

        self.world.at(until, free)

    def call(self, at=0.0, seconds=0.0, *, body=False, **terms):
        """A call that begins at this time, and whose attempts take this many seconds; with `body`
        an answer keeps its instance busy until the next attempt replaces it."""
        unread = []

        def send(attempt):
            while unread:
                unread.pop().finish()
            self.sent.append((self.world.clock(), attempt.instance))
            yield Pause(seconds)
            outcome = self.outcomes.get(attempt.instance, "good")
            if isinstance(outcome, Exception):
                raise outcome
            if body:
                attempt.hold()
                unread.append(attempt)
            return outcome

        def process():
            yield Pause(at)
            call = bind(self.balancer).begin(
                CallOptions(**{"idempotent": True, **terms}), Semantics()
            )
            try:
                result = yield from carry_out(call, send)
            except (OSError, lbclient.LoadBalancingError) as error:
                result = type(error)
                self.errors.append(error)
            self.ended.append((self.world.clock(), result))
            for attempt in unread:
                attempt.finish()

        self.world.spawn(process())

    def run(self):
        self.world.run()
        assert self.balancer.snapshot().instances
        assert not any(one.in_flight for one in self.balancer.snapshot().instances)
        assert not self.balancer._engine.queue
        return self.sent


REFUSALS = {
    "refused": ConnectionRefusedError(),
    "reset": ConnectionResetError(),
    "timed out": TimeoutError(),
    "turned away": "busy",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_retry_waits_for_one_that_is_only_full(refusal):
    """A retry waits for an instance that it has not tried and that is only busy, before it uses one
    again that has just refused."""
    play = Play([A, B], {A: REFUSALS[refusal]}, retry=RetryPolicy(backoff=0.0))
    play.hold(B)
    play.call()
    assert play.run() == [(0.0, A), (HELD, B)]
    assert [result for _, result in play.ended] == ["good"]


@pytest.mark.parametrize(
    ("terms", "asked_again"), [({}, 5.0), ({"patience": 2.0}, 2.0), ({"deadline": 4.0}, 2.0)]
)
def test_a_retry_waits_no_longer_than_any_call(terms, asked_again):
    """When its waiting time is over, a retry uses an instance that it has tried."""
    retry = RetryPolicy(attempts=2, backoff=0.0)
    play = Play([A, B], {A: ConnectionResetError()}, retry=retry)
    play.hold(B, until=10.0)
    play.call(**terms)
    assert play.run() == [(0.0, A), (asked_again, A)]
    assert play.ended[0][1] is ConnectionResetError


@pytest.mark.parametrize(
    ("answer", "terms", "waits", "words"),
    [
        (None, {}, 5.0, "every instance of .* is still at its limit"),
        (None, {"patience": 2.25}, 2.25, "attempts in flight after 2.25 s"),
        (None, {"deadline": 4.25}, 4.25, "after 4.25 s the deadline is over"),
        (0.25, {"deadline": 4.25}, 3.5, "leaves 0.75 s, too little for an answer"),
        (9.0, {"deadline": 4.25}, 2.125, "leaves 2.1 s, too little for an answer"),
    ],
)
def test_how_long_a_first_attempt_waits(answer, terms, waits, words):
    """A call waits for its waiting time, or until what is left of its deadline is too little for an
    answer: three times the mean, but no more than half of its time."""
    play = Play([A], {})
    if answer is not None:
        play.call(seconds=answer)
    play.world.at(20.0, lambda: play.hold(A, until=60.0))
    play.call(at=30.0, **terms)
    play.run()
    assert play.ended[-1][0] == 30.0 + waits
    (error,) = play.errors
    assert re.search(words, str(error))


def test_when_the_tried_ones_are_full_too_the_last_outcome_stands():
    """If its waiting time is over while all instances are full, a retry ends the call with its last
    outcome."""
    play = Play([A, B], {A: "busy"}, retry=RetryPolicy(backoff=0.0))
    play.hold(B, until=10.0)
    play.call()
    play.world.at(0.1, lambda: play.hold(A, until=10.0))
    assert play.run() == [(0.0, A)]
    assert play.ended == [(5.0, "busy")]


def test_a_full_instance_of_the_next_tier_is_waited_for():
    """The same applies whatever the tier of the untried instance."""
    standby = Instance("10.0.0.9", 1, priority=1)
    play = Play([A, standby], {A: ConnectionRefusedError()})
    play.hold(standby)
    play.call()
    assert play.run() == [(0.0, A), (HELD, standby)]


def test_who_is_out_of_the_rotation_is_not_waited_for():
    """If all others are out of rotation, a retry uses the instance that it has tried."""
    play = Play([A, B], {A: ConnectionRefusedError()}, retry=RetryPolicy(backoff=0.0))
    play.balancer.eject(B, 60.0)
    play.hold(B)
    play.call()
    assert play.run() == [(0.0, A)] * 2 + [(pytest.approx(0.0), A)]


def test_who_goes_out_while_a_retry_waits_is_waited_for_no_longer():
    """A breaker that opens, or an ejection, ends the wait at once."""
    play = Play([A, B], {A: ConnectionRefusedError()}, retry=RetryPolicy(attempts=2))
    play.hold(B)
    play.call()
    play.world.at(0.5, lambda: play.balancer.eject(B, 60.0))
    assert play.run() == [(0.0, A), (0.5, A)]


def test_others_pass_a_retry_that_waits():
    """A retry that waits for one instance does not block other calls."""
    play = Play([A, B], {A: "busy"}, retry=RetryPolicy(backoff=0.0))
    play.hold(B)
    play.call()
    play.world.at(0.2, play.outcomes.clear)
    for at in (0.3, 0.4, 0.5):
        play.call(at=at)
    assert play.run() == [(0.0, A), (0.3, A), (0.4, A), (0.5, A), (HELD, B)]


def test_nobody_takes_the_place_that_a_retry_waits_for():
    """A slot goes to the retry that has waited for it longest, not to a call that arrives at the
    moment when it becomes free."""
    play = Play([A, B], {A: "busy"}, retry=RetryPolicy(attempts=2, backoff=0.0))
    play.hold(B)
    play.call(seconds=0.25)
    play.call(at=0.5, seconds=0.25)
    play.call(at=HELD, seconds=0.25, key=B.host)
    assert play.run() == [
        (0.0, A),
        (0.5, A),
        (HELD, A),
        (HELD, B),
        (HELD + 0.25, B),
        (HELD + 0.5, B),
    ]
    assert play.ended == [(HELD + after, "good") for after in (0.25, 0.5, 0.75)]


@pytest.mark.parametrize("body", [False, True])
def test_retries_that_want_each_others_instance_go_on(body):
    """Two calls, each with an answer that is to be retried, and each waiting for the other's
    instance, do not hold their slots while they wait."""
    play = Play([A, B], {A: "busy", B: "busy"}, retry=RetryPolicy(attempts=2, backoff=0.0))
    play.call(seconds=0.5, body=body)
    play.call(seconds=0.5, body=body)
    play.run()
    assert play.sent[:2] == [(0.0, A), (0.0, B)]
    assert set(play.sent[2:]) == {(0.5, A), (0.5, B)}
    assert play.ended == [(1.0, "busy")] * 2


def test_a_retry_that_waits_for_the_total_takes_any():
    """If the limit of all instances together is reached, a retry waits for any slot."""
    play = Play(
        [A, B, C],
        {A: ConnectionRefusedError()},
        max_in_flight=None,
        max_in_flight_total=1,
        retry=RetryPolicy(backoff=0.0),
    )
    play.call()
    play.call()
    play.run()
    assert [result for _, result in play.ended] == ["good", "good"]


def test_a_retry_waits_beside_its_hedge():
    """An instance that refused the call is not used again while a hedge is in flight and a third
    instance is only full; the hedge's good answer ends the wait."""
    retry = RetryPolicy(backoff=0.0)
    hedge = lbclient.HedgePolicy(delay=0.1)
    play = Play([A, B, C], {A: ConnectionResetError()}, retry=retry, hedge=hedge)
    play.balancer.eject(C, 0.15)
    play.hold(C, until=3.0)
    play.call(seconds=0.2)
    play.run()
    assert play.sent == [(0.0, A), (0.1, B)]
    assert play.ended[0] == (pytest.approx(0.3), "good")


CROWD = {"max_in_flight": 1, "breaker": None, "retry": RetryPolicy(attempts=2, backoff=0.0)}


def test_a_crowd_of_retries():
    """However many calls meet the dead instance at once, each gets its turn at a live one, and no
    call stays in the queue."""

    def send(instance):
        if instance == A:
            raise ConnectionRefusedError
        threading.Event().wait(0.0005)
        return instance

    with Balancer(THREE, **CROWD) as balancer, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: balancer.call(send), range(400)))
        assert set(answers) == {B, C}
        assert not balancer._engine.queue
        assert [one.in_flight for one in balancer.snapshot().instances] == [0, 0, 0]


async def test_a_crowd_of_retries_async():
    """The same on event loops."""

    async def send(instance):
        if instance == A:
            raise ConnectionRefusedError
        await anyio.lowlevel.checkpoint()
        return instance

    answers = []
    async with Balancer(THREE, **CROWD) as balancer:

        async def work():
            answers.extend([await balancer.acall(send) for _ in range(8)])

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(work)
        assert not balancer._engine.queue
    assert len(answers) == 400
    assert set(answers) == {B, C}


@pytest.fixture(params=["refuses", "answers 503"])
def bad_url(request, servers, dead_port):
    """An instance that does not serve."""
    if request.param == "refuses":
        return f"http://127.0.0.1:{dead_port}"
    return servers(says(503))[0].url


def test_a_retry_waits_for_one_that_is_only_full_over_http(servers, bad_url):
    """On threads, with httpx's client, no call fails while one instance is alive."""
    gate, strategy = Gate(), ByKey()
    (alive,) = servers(gate)
    options = {"strategy": strategy, "max_in_flight": 1}
    held = {"lbclient": {"key": alive.port}}
    with (
        lbclient.Client([bad_url, alive.url], **options) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(client.get, "/", extensions=held)
        assert gate.entered.acquire(timeout=10)
        second = pool.submit(client.get, "/")
        assert strategy.failed.wait(10)
        gate.open.set()
        answers = [first.result(), second.result()]
    assert [one.text for one in answers] == [str(alive.port)] * 2
    assert [len(lbclient.call_info(one).attempts) for one in answers] == [1, 2]


async def test_a_retry_waits_for_one_that_is_only_full_over_http_async(servers, bad_url):
    """The same on event loops."""
    gate, strategy = Gate(), ByKey()
    (alive,) = servers(gate)
    options = {"strategy": strategy, "max_in_flight": 1}
    held = {"lbclient": {"key": alive.port}}
    answers = []

    async def get(**more):
        answers.append(await client.get("/", **more))

    async with (
        lbclient.AsyncClient([bad_url, alive.url], **options) as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(partial(get, extensions=held))
        assert await anyio.to_thread.run_sync(partial(gate.entered.acquire, timeout=10))
        group.start_soon(get)
        assert await anyio.to_thread.run_sync(strategy.failed.wait, 10)
        gate.open.set()
    assert [one.text for one in answers] == [str(alive.port)] * 2
    assert sorted(len(lbclient.call_info(one).attempts) for one in answers) == [1, 2]


def test_retries_in_a_crowd_do_not_wake_each_other(monkeypatch):
    """A retry that is served does not wake many calls: three looks per call are enough, however
    many wait."""
    looks = itertools.count()
    admit = Engine.admit

    def counted(self, call, holding):
        next(looks)
        return admit(self, call, holding)

    monkeypatch.setattr(Engine, "admit", counted)
    report = simulate(
        Scenario(
            [Server("a", refuses()), Server("b", answers(constant(0.01)))],
            Open(50_000, 0.01),
            patience=100.0,
        ),
        strategy="round-robin",
        retry=RetryPolicy(backoff=0.0, budget=None),
        breaker=None,
        max_in_flight=1,
        checked=False,
    )
    assert report.success == 1
    assert next(looks) <= 3 * len(report.outcomes)


def test_what_a_retry_leaves_is_handed_on():
    """When a retry that waits separately leaves, each free slot wakes one call that wants it, and
    no other."""
    line = WaitQueue()
    leaves, tried_a, tried_both = (
        line.join_retries(None, tried) for tried in (["a"], ["a"], ["a", "b"])
    )
    first = line.join(None, None)
    line.leave(leaves)
    assert not (tried_a.is_set)
    assert not (tried_both.is_set)
    first.rearm()
    leaves = line.join_retries(None, [])
    line.leave(leaves, free=["c"])
    assert tried_a.is_set
    assert not tried_both.is_set
    line.leave(tried_a, free=["c"])
    assert tried_both.is_set
