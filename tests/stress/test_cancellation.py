"""A hundred thousand calls are cancelled at random, and all that they held is given back.

On asyncio one half is cancelled by `task.cancel()`, the other by a cancel scope, as on trio. The
moment is a number of steps of the event loop, from a seeded generator. All of these tests are slow;
a twentieth of them runs with the other tests.
"""

import contextlib
import random
from collections import Counter

import anyio
import anyio.lowlevel
import httpx
import pytest

import lbclient
from lbclient import Balancer, BreakerPolicy, Instance, LoadBalancingError, RetryBudget, RetryPolicy
from tests.support.hammer import Cuts, Instances, descriptors
from tests.support.http import transports_of
from tests.support.slow import shares

OF_CALLS, OF_HEDGES, OF_ANSWERS, OVER_SOCKETS = 64_000, 8_000, 20_000, 8_000
assert OF_CALLS + OF_HEDGES + OF_ANSWERS + OVER_SOCKETS == 100_000

AT_ONE, AT_ALL, WORKERS = 2, 4, 12
INSTANCES = [Instance(f"{name}.test", 80) for name in "abc"]
BUDGET = RetryBudget(ratio=0.2, reserve=50, window=1)
POLICIES = {
    "max_in_flight": AT_ONE,
    "max_in_flight_total": AT_ALL,
    "retry": RetryPolicy(backoff=0.0002, backoff_max=0.001, budget=BUDGET),
    "breaker": BreakerPolicy(fail_max=3, reset_timeout=0.002, reset_timeout_max=0.01),
}

pytestmark = [
    pytest.mark.anyio,
    # trio's complaint about those who stop reading a body of httpx before its end
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
]


class Scripted(Exception):
    """The caller's own exception."""


class Inside:
    """Counts the calls inside an instance, and checks that the limits are never exceeded."""

    def __init__(self):
        self.at = Counter()

    @contextlib.contextmanager
    def __call__(self, instance):
        self.at[instance] += 1
        try:
            assert self.at[instance] <= AT_ONE
            assert self.at.total() <= AT_ALL
            yield
        finally:
            self.at[instance] -= 1


async def some_steps(dice, most=4):
    for _ in range(dice.randrange(most)):
        await anyio.lowlevel.checkpoint()


async def good(_):
    """An attempt that succeeds."""
    await anyio.lowlevel.checkpoint()


def assert_varied(cuts, share, *outcomes):
    """Neither was everything cut off, nor did all that was not come to the same end; a few calls
    need not come to each end."""
    assert share < 1 or all(cuts.ended[one] for one in outcomes), cuts.ended


def settled(balancer):
    """Nothing is in flight, and the budget has neither too much nor too little: what calls have
    earned leaves the window before the retries that they paid for."""
    snapshot = balancer.snapshot()
    assert [one.in_flight for one in snapshot.instances] == [0] * len(snapshot.instances)
    engine = balancer._engine
    earned = BUDGET.ratio * sum(one.attempts for one in snapshot.instances)
    balance = engine.retry_rules.budget.balance(engine.clock())
    assert -earned - 1e-6 <= balance <= BUDGET.reserve * BUDGET.window + earned


async def heals(balancer, call):
    """No probe is stuck: when everything works again each breaker closes."""
    with anyio.fail_after(10):
        while any(one.breaker != "closed" for one in balancer.snapshot().instances):
            try:
                await call()
            except LoadBalancingError:
                await anyio.sleep(0.001)


async def full_house(balancer):
    """No slot is lost: as many calls as the limit allows can be in flight at the same time."""
    inside, all_in = Counter(), anyio.Event()

    async def stay(instance):
        inside[instance] += 1
        if inside.total() == AT_ALL:
            all_in.set()
        await all_in.wait()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(AT_ALL):
                group.start_soon(balancer.acall, stay)
    assert max(inside.values()) <= AT_ONE


@shares
async def test_calls_cut_off(anyio_backend_name, share):
    """C1, C2, C3, C7, C22: calls, leases and waiting calls that are cancelled at any step, while
    limits are low and breakers open, leave nothing in flight, lose no slot, leave no probe stuck,
    and never exceed the limits."""
    dice = random.Random(1)
    balancer = Balancer(INSTANCES, rng=random.Random(2), **POLICIES)
    cuts = Cuts(dice, native=anyio_backend_name == "asyncio", longest=30)
    inside = Inside()

    async def attempt(instance):
        with inside(instance):
            await some_steps(dice, 8)
            match dice.randrange(10):
                case 0 | 1:
                    raise ConnectionRefusedError
                case 2 | 3:
                    raise ConnectionResetError
                case 4:
                    raise Scripted
            return "answered"

    async def call():
        idempotent, deadline = dice.random() < 0.7, dice.choice([None, None, 0.001])
        try:
            if dice.random() < 0.2:
                async with balancer.acquire(idempotent=idempotent, deadline=deadline) as instance:
                    return await attempt(instance)
            return await balancer.acall(attempt, idempotent=idempotent, deadline=deadline)
        except (Scripted, LoadBalancingError, OSError) as error:
            return type(error).__name__

    await cuts.storm(call, wanted=int(OF_CALLS * share), workers=WORKERS)
    assert inside.at.total() == 0
    settled(balancer)
    await heals(balancer, lambda: balancer.acall(good, idempotent=True))
    await full_house(balancer)
    settled(balancer)
    assert_varied(cuts, share, "answered", "NoInstanceAvailable", "DeadlineExceeded", "Scripted")


@shares
async def test_hedged_calls_cut_off(anyio_backend_name, share):
    """C1, C2, C7: a call with two concurrent attempts gives back the slots of both."""
    dice = random.Random(7)
    hedge = lbclient.HedgePolicy(delay=0.0)
    balancer = Balancer(INSTANCES, rng=random.Random(8), hedge=hedge, **POLICIES)
    cuts = Cuts(dice, native=anyio_backend_name == "asyncio", longest=30)
    inside = Inside()

    async def call():
        here, outcome = 0, "answered"

        async def attempt(instance):
            nonlocal here, outcome
            with inside(instance):
                here += 1
                if here == 2:
                    outcome = "hedged"
                await some_steps(dice, 12)
                here -= 1
                if dice.random() < 0.4:
                    raise ConnectionResetError
                return outcome

        try:
            return await balancer.acall(attempt, idempotent=True)
        except (LoadBalancingError, OSError) as error:
            return type(error).__name__

    await cuts.storm(call, wanted=int(OF_HEDGES * share), workers=3)
    assert inside.at.total() == 0
    settled(balancer)
    await heals(balancer, lambda: balancer.acall(good, idempotent=True))
    await full_house(balancer)
    assert_varied(cuts, share, "answered", "hedged", "ConnectionResetError", "NoInstanceAvailable")


class Body(httpx.AsyncByteStream):
    """Chunks with steps of the loop between them; some break."""

    def __init__(self, dice, unclosed):
        self.dice, self.unclosed = dice, unclosed
        unclosed.add(self)

    async def __aiter__(self):
        for _ in range(self.dice.randrange(4)):
            await some_steps(self.dice, 2)
            yield b"abc"
        if not Answering.healthy and self.dice.random() < 0.05:
            raise httpx.ReadError("broken")

    async def aclose(self):
        self.unclosed.discard(self)
        await some_steps(self.dice, 2)


class Answering(httpx.AsyncBaseTransport):
    """A transport that answers, or fails, after some steps of the loop."""

    healthy = False

    def __init__(self, dice, unclosed):
        self.dice, self.unclosed = dice, unclosed

    async def handle_async_request(self, _):
        await some_steps(self.dice)
        kind = 1 if self.healthy else self.dice.random()
        if kind < 0.1:
            raise httpx.ConnectError("refused")
        if kind < 0.2:
            raise httpx.ReadError("reset")
        status = 503 if kind < 0.35 else 200
        return httpx.Response(status, stream=Body(self.dice, self.unclosed))


def use_of(client, dice):
    """A call as callers make it: read at once, streamed, streamed in part, or not read at all."""

    async def use():
        extensions = {"lbclient": {"deadline": 0.002}} if dice.random() < 0.1 else {}
        method = dice.choice(["GET", "GET", "POST"])
        try:
            if dice.random() < 0.4:
                return (await client.request(method, "/", extensions=extensions)).status_code
            async with client.stream(method, "/", extensions=extensions) as response:
                if dice.random() < 0.2:
                    return response.status_code
                async for _ in response.aiter_raw():
                    if dice.random() < 0.2:
                        break
                return response.status_code
        except httpx.TransportError as error:  # those of lbclient are of its kind too
            return type(error).__name__

    return use


@shares
async def test_answers_cut_off(anyio_backend_name, monkeypatch, share):
    """C1, C2, C3, C22: calls over a caller's own transport that are cancelled before the answer, in
    its body, at its close or while it is replaced leave no slot taken and no body open."""
    dice, unclosed = random.Random(3), set()
    client = lbclient.AsyncClient(
        INSTANCES,
        name="shop.test",
        rng=random.Random(4),
        transport=lambda _: Answering(dice, unclosed),
        **POLICIES,
    )
    cuts = Cuts(dice, native=anyio_backend_name == "asyncio", longest=40)
    async with client:
        await cuts.storm(use_of(client, dice), wanted=int(OF_ANSWERS * share), workers=WORKERS)
        settled(client.balancer)
        assert unclosed == set()
        monkeypatch.setattr(Answering, "healthy", True)
        await heals(client.balancer, lambda: client.get("/"))
        await full_house(client.balancer)
    assert_varied(cuts, share, "200", "503", "ReadError", "NoInstanceAvailable", "DeadlineExceeded")


@shares
async def test_connections_cut_off(anyio_backend_name, share):
    """C1, C2, C22: the same over real sockets, where no connection is lost either: afterwards each
    is idle or closed, there are no more than were in use at the same time, and closing the client
    closes all."""
    dice = random.Random(5)
    before = descriptors()
    async with Instances.serving(dice, 3) as instances:
        client = lbclient.AsyncClient(instances.urls, rng=random.Random(6), **POLICIES)
        cuts = Cuts(dice, native=anyio_backend_name == "asyncio", longest=60)
        async with client:
            await cuts.storm(
                use_of(client, dice), wanted=int(OVER_SOCKETS * share), workers=WORKERS
            )
            settled(client.balancer)
            for transport in transports_of(client):
                assert transport.is_idle
            with anyio.fail_after(10):
                await instances.at_rest(AT_ONE * 3)
            assert descriptors() - before <= 2 * AT_ONE * 3 + 3 + 3
            instances.healthy = True
            await heals(client.balancer, lambda: client.get("/"))
            await full_house(client.balancer)
        with anyio.fail_after(10):
            await instances.at_rest(0)
    assert_varied(cuts, share, "200", "503", "RemoteProtocolError", "DeadlineExceeded")
