"""What one call may repeat, and at whose cost: good results, and attempts that were never sent."""

import itertools

import httpx
import pytest

import lbclient
from lbclient import Balancer, Instance, RetryBudget, RetryPolicy, Verdict
from tests.support.http import says, tells_port

pytestmark = pytest.mark.anyio

THREE = [Instance(f"10.0.0.{number}", 1) for number in (1, 2, 3)]
NO_BUDGET = RetryBudget(ratio=0.0, reserve=0.0)
POOR = RetryPolicy(backoff=0.0, budget=NO_BUDGET)


class Sent:
    """A function for `call` and `acall` that keeps where it went, and ends each time as told."""

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
    """A result that is no fault is sent once, whatever the judge says of `again`."""
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
    """A fault, a wish for rest and a rejection are what makes a result worth repeating."""
    sent = Sent("busy", "good")

    def judge(result):
        return Verdict(**busy) if result == "busy" else Verdict(fault=False, again="always")

    with Balancer(THREE, judge=judge) as balancer:
        assert balancer.call(sent, idempotent=True) == "good"
    assert len(set(sent.instances)) == 2


def test_a_good_result_heals():
    """Whatever the judge says of `again`, a good result counts as a success of its instance."""

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
    """An attempt that was never sent is replaced though the retry budget is empty."""
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
    """The budget is as full after such a replacement as before it."""
    tight = RetryPolicy(backoff=0.0, budget=RetryBudget(ratio=0.0, reserve=1.0, window=1.0))
    with Balancer(THREE, retry=tight, breaker=None, clock=lambda: 0.0) as balancer:
        for _ in range(3):
            assert balancer.call(Sent(ConnectionRefusedError(), "good")) == "good"
        assert balancer.budget.balance(0.0) == 1.0
        assert balancer.call(Sent(ConnectionResetError(), "good"), idempotent=True) == "good"
        assert balancer.budget.balance(0.0) == 0.0


def test_attempts_bound_what_was_never_sent():
    """In a total outage a call is sent `attempts` times at the most, and breakers end even that."""
    sent = Sent(ConnectionRefusedError())
    with Balancer(THREE, retry=RetryPolicy(attempts=3, backoff=0.0, budget=NO_BUDGET)) as balancer:
        for _ in range(50):
            with pytest.raises((ConnectionRefusedError, lbclient.NoInstanceAvailable)):
                balancer.call(sent)
    assert len(sent.instances) == 15  # three breakers, five faults each


class Busy(Exception):
    """What a protocol raises where the instance answers that it is busy."""


BUSY = [
    ("busy", {"fault": False, "again": "always", "rest": 0.001}),
    ("busy", {"fault": False, "again": "always", "rejected": True}),
    ("busy", {"fault": True, "again": "always"}),
    (Busy(), {"fault": False, "again": "always", "rest": 0.001}),
    (Busy(), {"fault": True, "again": "always", "rejected": True}),
]


@pytest.mark.parametrize(("answer", "verdict"), BUSY, ids=str)
def test_a_busy_answer_was_sent(answer, verdict):
    """What an instance answered has been sent, as a result or as an exception: with an empty
    budget it stands, though any call might be repeated after it."""
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
    """Over HTTP a refused connection costs no call, whatever its method and the budget."""
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
        assert client.balancer.budget.balance(client.balancer._core.clock()) == 0.0


def test_an_empty_budget_still_ends_what_was_sent(servers):
    """A 503 is the result at once where the budget is empty."""
    bad, worse = servers(says(503), says(503))
    with lbclient.Client([bad.url, worse.url], retry=POOR) as client:
        assert client.get("/").status_code == 503
        with pytest.raises(httpx.HTTPStatusError):
            client.get("/").raise_for_status()
    assert bad.hits + worse.hits == 2
