"""The opt-in rules as part of a balancer and of a client."""

import collections
import logging
import random

import httpx
import pytest

import lbclient
from lbclient import (
    AdaptiveLimit,
    Answer,
    Balancer,
    BreakerPolicy,
    DeadlineExceeded,
    Instance,
    OutlierPolicy,
    RetryPolicy,
    SlowStart,
    Throttled,
    ThrottlePolicy,
    Verdict,
)
from lbclient.simulation import Open, Scenario, Server, constant, simulate, until_capacity
from tests.resilience.test_hedging import idle_soon
from tests.support.http import says, tells_port

pytestmark = pytest.mark.anyio

THREE = [Instance("10.0.0.1", port) for port in (1, 2, 3)]
NEVER = BreakerPolicy(fail_max=10_000)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Service:
    """Fails some of the calls to its first instance, at random."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.dice = random.Random(7)
        self.hits: collections.Counter[Instance] = collections.Counter()

    def __call__(self, instance: Instance) -> Instance:
        self.hits[instance] += 1
        if instance == THREE[0] and self.dice.random() < self.share:
            raise ConnectionResetError
        return instance


def attempt(balancer, service) -> bool:
    try:
        balancer.call(service)
    except ConnectionError:
        return False
    return True


def standings(balancer):
    return [one.standing for one in balancer.snapshot().instances]


def test_an_outlier_is_ejected_and_comes_back():
    """An instance that fails 60 % of its calls, but never many in a row, is ejected after an
    interval."""
    clock, service = Clock(), Service(0.6)
    policy = OutlierPolicy(interval=10, ejection=30)
    with Balancer(
        THREE, clock=clock, rng=random.Random(1), outliers=policy, breaker=NEVER, retry=None
    ) as balancer:
        for _ in range(150):
            attempt(balancer, service)
            clock.now += 0.1
        assert standings(balancer) == ["ejected", "serving", "serving"]
        before = service.hits[THREE[0]]
        for _ in range(30):
            assert attempt(balancer, service)
        assert service.hits[THREE[0]] == before
        clock.now += 31
        assert standings(balancer) == ["serving"] * 3


def test_one_of_two_outliers_always_stays():
    """Two instances that both fail are never both ejected."""
    clock = Clock()
    service = Service(1.0)
    with Balancer(
        THREE[:2], clock=clock, outliers=OutlierPolicy(interval=1), breaker=NEVER, retry=None
    ) as balancer:
        for _ in range(500):
            attempt(balancer, service)
            clock.now += 0.05
            assert standings(balancer).count("serving") >= 1
            assert standings(balancer)[1] == "serving"


def test_a_limit_is_learned():
    """Each rejected attempt lowers the limit of its instance, down to one."""
    rule = AdaptiveLimit(initial=4, least=1, backoff=0.5)
    with Balancer(THREE[:1], limit=rule, breaker=NEVER, retry=None) as balancer:
        with pytest.raises(DeadlineExceeded, match="limit of attempts in flight"):
            hold(balancer, 5)
        for _ in range(2):
            attempt(balancer, Service(1.0))
        with pytest.raises(DeadlineExceeded):
            hold(balancer, 2)
        assert hold(balancer, 1) == 1


def test_one_that_rejects_a_single_attempt_has_a_pause():
    """An instance that rejects an attempt although it has no other gets no call for a while."""
    clock = Clock()
    verdicts = iter([Verdict(fault=False, again="idempotent", rejected=True)])
    with Balancer(
        THREE[:2],
        limit=AdaptiveLimit(initial=1, least=1),
        clock=clock,
        judge=lambda _: next(verdicts, Verdict(fault=False)),
        retry=None,
    ) as balancer:
        busy = balancer.call(lambda one: one)
        assert busy not in {balancer.call(lambda one: one) for _ in range(20)}
        clock.now += 60
        assert busy in {balancer.call(lambda one: one) for _ in range(20)}


def hold(balancer, many, held=0):
    """This many leases at a time."""
    if held == many:
        return held
    with balancer.acquire(deadline=0.05):
        return hold(balancer, many, held + 1)


def test_a_learned_limit_grows_where_it_is_used():
    """A limit that is reached without rejections grows by one per round of calls."""
    rule = AdaptiveLimit(initial=1, least=1)
    with Balancer(THREE[:1], limit=rule) as balancer:
        for _ in range(3):
            hold(balancer, 1)
        assert hold(balancer, 2) == 2


async def test_a_limit_is_learned_async():
    """The same for async calls: a waiting call gets the slot of one that leaves."""
    rule = AdaptiveLimit(initial=1, least=1, most=1)
    async with Balancer(THREE[:1], limit=rule) as balancer:
        async with balancer.acquire():
            with pytest.raises(DeadlineExceeded):
                await balancer.acall(answers, deadline=0.02)
        async with balancer.acquire():
            assert [one.in_flight for one in balancer.snapshot().instances] == [1]


async def answers(instance):
    return instance


def test_the_throttle_keeps_calls_back():
    """A service that rejects everything is sent little more; the other calls fail in the client
    with Throttled."""
    clock, service = Clock(), Service(1.0)
    kept = 0
    with Balancer(
        THREE[:1],
        clock=clock,
        rng=random.Random(3),
        throttle=ThrottlePolicy(most=0.9),
        breaker=NEVER,
        retry=None,
    ) as balancer:
        for _ in range(1000):
            clock.now += 0.01
            try:
                attempt(balancer, service)
            except Throttled:
                kept += 1
        assert kept > 800
        service.share = 0.0
        clock.now += 121
        assert all(attempt(balancer, service) for _ in range(100))


def test_a_throttled_request_is_a_connect_error(servers):
    """When a client raises `Throttled`, it is also an httpx.ConnectError: nothing was sent."""
    (server,) = servers(says(503))
    throttle = ThrottlePolicy(most=1.0, minimum_calls=1)
    with lbclient.Client(
        [server.url], throttle=throttle, breaker=None, retry=None, rng=random.Random(1)
    ) as client:
        with pytest.raises(httpx.ConnectError, match="rejects most calls") as caught:
            get_many(client, 50)
        assert isinstance(caught.value, lbclient.Throttled)
        assert isinstance(caught.value, lbclient.NoInstanceAvailable)
        assert server.hits < 50


def get_many(client, many):
    for _ in range(many):
        client.get("/")


class Growing:
    """A resolver whose second answer has one more instance."""

    def __init__(self) -> None:
        self.known = THREE[:2]

    def resolve(self):
        return Answer(self.known, 3600)


@pytest.mark.parametrize("strategy", ["weighted", "round-robin", "random"])
def test_who_joins_warms_up(strategy):
    """An instance that joins others gets a small share first, and its fair share after the
    window."""
    clock, resolver = Clock(), Growing()
    with Balancer(
        resolver,
        name="orders",
        clock=clock,
        rng=random.Random(5),
        strategy=strategy,
        slow_start=SlowStart(window=30, least=0.1),
    ) as balancer:
        balancer.refresh()
        assert max(shares(balancer, 300).values()) < 0.6  # nobody warms up in the first answer
        resolver.known = THREE
        balancer.refresh()
        assert shares(balancer, 1000)[THREE[2]] < 0.08
        clock.now += 15
        assert 0.15 < shares(balancer, 2000)[THREE[2]] < 0.25
        clock.now += 15
        assert 0.29 < shares(balancer, 3000)[THREE[2]] < 0.38


def shares(balancer, many):
    hits = collections.Counter(balancer.call(lambda instance: instance) for _ in range(many))
    return {one: hits[one] / many for one in THREE}


def test_who_recovers_warms_up():
    """An instance whose breaker has closed again, or that was ejected, also warms up."""
    clock, service = Clock(), Service(1.0)
    with Balancer(
        THREE[:2],
        clock=clock,
        rng=random.Random(5),
        breaker=BreakerPolicy(fail_max=1, reset_timeout=1),
        retry=None,
        slow_start=SlowStart(window=30, least=0.1),
    ) as balancer:
        while standings(balancer) == ["serving"] * 2:
            attempt(balancer, service)
        service.share = 0.0
        clock.now += 2
        while standings(balancer) != ["serving"] * 2:
            attempt(balancer, service)
        assert shares(balancer, 1000)[THREE[0]] < 0.12
        clock.now += 30
        assert 0.45 < shares(balancer, 1000)[THREE[0]] < 0.55
        balancer.eject(THREE[0], 10)
        clock.now += 11
        assert shares(balancer, 1000)[THREE[0]] < 0.12


def test_a_rate_of_faults_opens_the_breaker():
    """If every second call fails there are never many faults in a row, but the rate opens the
    breaker."""
    clock, turn = Clock(), iter(range(1000))
    policy = BreakerPolicy(failure_rate=0.5, minimum_calls=10)

    def call(instance):
        if next(turn) % 2:
            raise ConnectionResetError
        return instance

    with Balancer(THREE[:1], clock=clock, breaker=policy, retry=None) as balancer:
        for _ in range(10):
            clock.now += 0.1
            attempt(balancer, call)
        assert standings(balancer) == ["open"]


def test_slow_calls_open_the_breaker():
    """A service that answers everything, but slowly, opens the breaker if slow calls are
    counted."""
    clock = Clock()
    policy = BreakerPolicy(slow_rate=0.8, slow_after=2.0, minimum_calls=5, window=60)

    def call(instance):
        clock.now += 3
        return instance

    with Balancer(THREE[:1], clock=clock, breaker=policy) as balancer:
        for _ in range(5):
            balancer.call(call)
        assert standings(balancer) == ["open"]


def test_an_observing_breaker_refuses_nothing(caplog):
    """In a dry run the states change and are reported, but every call is sent."""
    clock, service = Clock(), Service(1.0)
    policy = BreakerPolicy(fail_max=3, observe=True)
    caplog.set_level(logging.INFO, "lbclient")
    with Balancer(THREE[:1], clock=clock, breaker=policy, retry=None) as balancer:
        for _ in range(10):
            assert not attempt(balancer, service)
        snapshot = balancer.snapshot().instances[0]
        assert (snapshot.breaker, snapshot.standing) == ("open", "serving")
        assert service.hits[THREE[0]] == 10
        service.share = 0.0
        clock.now += 2
        assert attempt(balancer, service)
        assert balancer.snapshot().instances[0].breaker == "closed"
    assert "breaker of 10.0.0.1:1 would be open" in caplog.text


def test_what_an_observing_breaker_would_refuse_is_counted(telemetry):
    """`lbclient.breaker.observed` counts the calls that a real breaker would have refused."""
    service = Service(1.0)
    policy = BreakerPolicy(fail_max=3, observe=True)
    with Balancer(
        THREE[:1], breaker=policy, retry=None, clock=Clock(), **telemetry.options
    ) as balancer:
        for _ in range(10):
            attempt(balancer, service)
    assert telemetry.total("lbclient.breaker.observed") == 7


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"outliers": 1}, r"outliers must be lbclient\.OutlierPolicy"),
        ({"limit": 10}, r"limit must be lbclient\.AdaptiveLimit"),
        ({"throttle": True}, r"throttle must be lbclient\.ThrottlePolicy"),
        ({"slow_start": 30}, r"slow_start must be lbclient\.SlowStart"),
    ],
)
@pytest.mark.parametrize("kind", [Balancer, lbclient.Client, lbclient.AsyncTransport])
def test_what_rules_refuse(kind, wrong, text):
    """An invalid rule is refused by an error that names the argument and what is allowed."""
    with pytest.raises(TypeError, match=text):
        kind(["http://10.0.0.1:1"], **wrong)


def test_all_of_it_at_once(servers):
    """With every option together, calls over sockets still work."""
    instances = servers(tells_port, tells_port, says(503))
    with lbclient.Client(
        [one.url for one in instances],
        hedge=lbclient.HedgePolicy(),
        outliers=OutlierPolicy(),
        limit=AdaptiveLimit(),
        throttle=ThrottlePolicy(),
        slow_start=SlowStart(),
        breaker=BreakerPolicy(failure_rate=0.5, slow_rate=0.5, slow_after=1.0),
        retry=RetryPolicy(deadline=5.0),
        deadline_header="X-Left",
        max_connection_age=60,
    ) as client:
        assert all(client.get("/").status_code == 200 for _ in range(100))
        assert idle_soon(
            client.balancer
        )  # a slower attempt of a hedged call may end a moment later


def test_what_rules_do_is_counted(telemetry):
    """Ejections, hedges and throttled calls each have a counter."""
    throttle = ThrottlePolicy(most=1.0, minimum_calls=1)
    with Balancer(
        THREE[:1], throttle=throttle, breaker=None, retry=None, rng=random.Random(1),
        **telemetry.options,
    ) as balancer:  # fmt: skip
        with pytest.raises(Throttled):
            attempt_many(balancer, Service(1.0), 50)
        balancer.eject(THREE[0], 1)
    assert telemetry.total("lbclient.throttled") == 1
    ejections = [
        (labels["lbclient.ejection.by"], value)
        for labels, value in telemetry.points("lbclient.ejections")
    ]
    assert ejections == [("hand", 1)]


def attempt_many(balancer, service, many):
    for _ in range(many):
        attempt(balancer, service)


class Learns:
    """Records what it is told."""

    def __init__(self) -> None:
        self.told = []

    def pick(self, candidates, call):  # noqa: ARG002  # the protocol's signature
        return candidates[0]

    def ended(self, endpoint, elapsed, *, failed, now):
        self.told.append((endpoint.instance, elapsed, failed, now, endpoint.in_flight))
        if failed:
            raise RuntimeError("mine")


def test_a_strategy_may_learn(caplog):
    """A strategy with `ended` is told of each attempt; its exceptions are logged (C18)."""
    clock, strategy, service = Clock(), Learns(), Service(1.0)

    def call(instance):
        clock.now += 2
        return service(instance)

    with Balancer(THREE[:1], clock=clock, strategy=strategy, retry=None) as balancer:
        assert not attempt(balancer, call)
        service.share = 0.0
        assert attempt(balancer, call)
        with pytest.raises(KeyError):
            balancer.call({}.__getitem__)
    assert strategy.told == [(THREE[0], 2, True, 102, 1), (THREE[0], 2, False, 104, 1)]
    assert "strategy Learns failed to learn" in caplog.text


def test_a_retry_that_finds_no_place_blocks_nobody():
    """An answer to be retried gives back its slot while it waits, so other calls continue."""
    scenario = Scenario(
        [Server("a", until_capacity(constant(0.1), 2, 503))],
        Open(rate=50, seconds=4),
        until=600,
        patience=1000,
    )
    report = simulate(
        scenario, limit=AdaptiveLimit(initial=4), breaker=NEVER, retry=RetryPolicy(attempts=20)
    )
    assert report.endings() == {200: 200}
    assert report.breaches == []


def test_a_fault_is_forgiven():
    """On an idle service, an instance that failed has its share of calls again within seconds."""
    clock, service = Clock(), Service(1.0)
    with Balancer(
        THREE[:2], clock=clock, strategy="least-busy", rng=random.Random(1), retry=None
    ) as balancer:
        while not service.hits[THREE[0]]:
            attempt(balancer, service)
        service.share = 0.0
        clock.now += 20
        assert 0.4 < shares(balancer, 1000)[THREE[0]] < 0.6
