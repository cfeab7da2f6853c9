"""Strategies that learn, `PeakEwma` and `Prequal`: their rules one by one, and in a small model of
a service with queues, in virtual time, through real balancers."""

import heapq
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import lbclient
from lbclient import Balancer, BreakerPolicy, Instance, LeastBusy
from lbclient.core.pool import Pool
from lbclient.endpoint.endpoint import Endpoint
from lbclient.errors import NoInstanceAvailable
from lbclient.strategy.outcome_history import LatencyByLoad
from lbclient.strategy.peak_ewma import PeakEwma
from lbclient.strategy.prequal import Prequal
from lbclient.strategy.protocol import Learning
from lbclient.strategy.registry import BY_NAME, strategy_of
from tests.support.slow import slow_rows
from tests.support.strategies import Asked, candidates

BOTH = pytest.mark.parametrize("make", [PeakEwma, Prequal])
SEEDED = pytest.mark.parametrize("seed", [0, *slow_rows(1, 2)])
NEVER = math.inf


def answered(strategy, endpoint, elapsed, *, now=0.0, failed=False, others=0):
    """An attempt ends while this many others are in flight there."""
    before, endpoint.in_flight = endpoint.in_flight, others + 1
    strategy.ended(endpoint, elapsed, failed=failed, now=now)
    endpoint.in_flight = before


def picked(strategy, endpoints, *, now=0.0, times=200):
    call = Asked(now=now)
    return Counter(endpoints.index(strategy.pick(endpoints, call)) for _ in range(times))


# A model of a service


class Served(NamedTuple):
    start: float
    port: int
    elapsed: float
    failed: bool


class Server:
    """Answers after a random time with this mean, and fails within a millisecond while `sick(now,
    rng)`; with `workers`, further calls wait in a queue."""

    def __init__(self, mean, *, sick=None, workers=None):
        self.mean = mean
        self.sick = sick
        self.free = [0.0] * (workers or 0)

    def takes(self, now, rng):
        """How long this call takes, and whether it fails."""
        if self.sick is not None and self.sick(now, rng):
            return 0.001, True
        work = self.mean * rng.uniform(0.5, 1.5)
        if not self.free:
            return work, False
        done = max(now, heapq.heappop(self.free)) + work
        heapq.heappush(self.free, done)
        return done - now, False


def sometimes(share):
    return lambda _, rng: rng.random() < share


def between(since, until):
    return lambda now, _: since <= now < until


class World:
    """Calls arrive at random, `rate` a second, at clients with a balancer each."""

    def __init__(self, make, servers, *, clients=1, weights=None, seed=1, breaker=None):
        self.now = 0.0
        self.rng = random.Random(seed)
        self.servers = servers
        self.log = []
        self.refused = 0
        self._order = itertools.count()
        instances = [
            Instance("10.0.0.1", 1 + place, weight=1 if weights is None else weights[place])
            for place in range(len(servers))
        ]
        self.balancers = [
            Balancer(
                instances,
                strategy=make(),
                breaker=breaker,
                retry=None,
                clock=lambda: self.now,
                rng=random.Random(self.rng.random()),
            )
            for _ in range(clients)
        ]

    def run(self, rate, seconds):
        events = [(0.0, next(self._order), None)]
        while events:
            self.now, _, end = heapq.heappop(events)
            if end is not None:
                end()
            elif self.now < seconds:
                again = self.now + self.rng.expovariate(rate)
                heapq.heappush(events, (again, next(self._order), None))
                if (over := self._call()) is not None:
                    heapq.heappush(events, over)
        for balancer in self.balancers:
            assert not any(one.in_flight for one in balancer.snapshot().instances)
            balancer.close()
        return self

    def _call(self):
        lease = self.rng.choice(self.balancers).acquire()
        try:
            instance = lease.__enter__()
        except NoInstanceAvailable:
            self.refused += 1
            return None
        elapsed, failed = self.servers[instance.port - 1].takes(self.now, self.rng)
        self.log.append(Served(self.now, instance.port, elapsed, failed))
        error = ConnectionResetError("sick") if failed else None

        def end():
            lease.__exit__(type(error) if failed else None, error, None)

        return self.now + elapsed, next(self._order), end

    def shares(self, since=0.0, until=NEVER):
        """Each server's share of the attempts that began in this period."""
        seen = Counter(one.port for one in self.log if since <= one.start < until)
        return [seen[port] / max(1, seen.total()) for port in range(1, len(self.servers) + 1)]

    def surge(self, port, since, until, window=1.0):
        """The most that one server had in any window, as a multiple of an equal share."""
        steps = int((until - since) / window)
        starts = [since + window * step for step in range(steps)]
        shares = [self.shares(start, start + window)[port - 1] for start in starts]
        return max(shares) * len(self.servers)

    def latency(self, since=0.0):
        """Mean and 99th percentile of the successful calls."""
        took = sorted(one.elapsed for one in self.log if one.start >= since and not one.failed)
        return statistics.fmean(took), took[int(0.99 * len(took))]


# What both share


@pytest.mark.parametrize(
    ("make", "wrong", "kind", "named"),
    [
        (PeakEwma, {"decay": 0}, ValueError, "decay"),
        (PeakEwma, {"decay": -1.0}, ValueError, "decay"),
        (PeakEwma, {"decay": math.nan}, ValueError, "decay"),
        (PeakEwma, {"decay": math.inf}, ValueError, "decay"),
        (PeakEwma, {"decay": "10"}, TypeError, "decay"),
        (PeakEwma, {"decay": True}, TypeError, "decay"),
        (PeakEwma, {"choices": 1}, ValueError, "choices"),
        (PeakEwma, {"choices": 2.0}, TypeError, "choices"),
        (PeakEwma, {"choices": None}, TypeError, "choices"),
        (Prequal, {"choices": 1}, ValueError, "choices"),
        (Prequal, {"choices": "3"}, TypeError, "choices"),
        (Prequal, {"quantile": -0.1}, ValueError, "quantile"),
        (Prequal, {"quantile": 1.1}, ValueError, "quantile"),
        (Prequal, {"quantile": None}, TypeError, "quantile"),
        (Prequal, {"age": 0}, ValueError, "age"),
        (Prequal, {"age": math.inf}, ValueError, "age"),
        (Prequal, {"age": "1"}, TypeError, "age"),
    ],
)
def test_arguments_are_checked(make, wrong, kind, named):
    """K4: an invalid argument is refused at construction by an error that names it."""
    with pytest.raises(kind, match=f"^{named} "):
        make(**wrong)


@pytest.mark.parametrize(("name", "kind"), [("peak-ewma", PeakEwma), ("prequal", Prequal)])
def test_names(name, kind):
    """Both can be chosen by name, with a new object for each balancer, and learn; their `repr`
    shows their arguments."""
    made = strategy_of(name)
    assert type(made) is kind is BY_NAME[name]
    assert strategy_of(name) is not made
    assert isinstance(made, Learning)
    assert repr(made).startswith(f"{kind.__name__}(")
    with lbclient.Client(["http://10.0.0.1:1"], strategy=name) as client:
        assert type(client.balancer._strategy) is kind


@BOTH
def test_one_candidate_is_picked(make):
    """With one candidate there is no choice."""
    (only,) = candidates(1)
    strategy = make()
    answered(strategy, only, 9.0, failed=True)
    assert strategy.pick((only,), Asked()) is only


@BOTH
def test_fleets_do_not_start_alike(make):
    """Clients that start together begin with each instance equally often."""
    endpoints = candidates(1, 1, 1, 1)
    first = Counter(make().pick(endpoints, Asked(random.Random(seed))) for seed in range(2000))
    assert all(400 < first[one] < 600 for one in endpoints)


@BOTH
def test_a_pick_looks_at_a_few(make):
    """However many instances there are, a pick looks at `choices` of them."""

    class Watched(Sequence):
        def __init__(self, number):
            self.endpoints = candidates(*[1] * number)
            self.looked = 0

        def __len__(self):
            return len(self.endpoints)

        def __getitem__(self, place):
            self.looked += 1
            return self.endpoints[place]

    for number in (100, 10_000):
        endpoints, strategy = Watched(number), make(choices=4)
        for _ in range(50):
            before = endpoints.looked
            answered(strategy, strategy.pick(endpoints, Asked()), 0.1)
            assert endpoints.looked - before <= 4


@BOTH
def test_who_has_no_answer_yet_gets_one_call(make):
    """An instance without a latency is tried at once, and not again before it answers."""
    endpoints, strategy = candidates(1, 1), make()
    answered(strategy, endpoints[0], 0.1)
    assert picked(strategy, endpoints) == {1: 200}
    endpoints[1].in_flight = 1
    assert picked(strategy, endpoints) == {0: 200}
    answered(strategy, endpoints[1], 0.01)
    endpoints[1].in_flight = 0
    assert picked(strategy, endpoints) == {1: 200}


@BOTH
def test_where_nobody_has_an_answer_yet_the_least_busy_is_picked(make):
    """If each instance has its first calls in flight, the one with the fewest gets the next."""
    endpoints, strategy = candidates(1, 1, 1), make(choices=3)
    for one, flying in zip(endpoints, (2, 1, 3), strict=True):
        one.in_flight = flying
    assert picked(strategy, endpoints) == {1: 200}


@BOTH
def test_a_quick_failure_is_no_quick_answer(make):
    """I14: an instance that fails in a millisecond is not preferred for it, even if it has never
    done anything else."""
    endpoints, strategy = candidates(1, 1), make()
    answered(strategy, endpoints[1], 0.1)
    for now in (0.0, 0.01):
        answered(strategy, endpoints[0], 0.001, now=now, failed=True)
    assert picked(strategy, endpoints, now=0.02) == {1: 200}


@BOTH
def test_doubt_outweighs_any_load(make):
    """I14: however much its peers have in flight, a few failures are enough to avoid an instance,
    and after some time it is tried again."""
    endpoints, strategy = candidates(1, 1), make()
    endpoints[1].in_flight = 500
    answered(strategy, endpoints[0], 0.1)
    for step in range(12):
        for _ in range(30):
            answered(strategy, endpoints[1], 0.1, now=step / 100, others=500)
        answered(strategy, endpoints[0], 0.001, now=step / 100, failed=True)
    picked(strategy, endpoints, now=0.2)
    assert picked(strategy, endpoints, now=0.2) == {1: 200}
    answered(strategy, endpoints[1], 0.1, now=60.0, others=500)
    assert picked(strategy, endpoints, now=60.0) == {0: 200}


@BOTH
def test_calls_that_fail_together_count_as_one(make):
    """Of twenty calls that were in flight when an instance died, only the first to fail counts."""
    endpoints, strategy = candidates(1, 1), make()
    for _ in range(20):
        answered(strategy, endpoints[0], 0.5, now=1.0, failed=True)
    assert strategy._history.known(endpoints[0], 1.0).penalty == 1.0
    for _ in range(200):
        answered(strategy, endpoints[1], 0.5, now=1.0)
    answered(strategy, endpoints[0], 0.5, now=1.5, failed=True)
    assert strategy._history.known(endpoints[0], 1.5).penalty > 2.5


@BOTH
def test_answers_take_doubt_away(make):
    """Each successful answer removes a quarter of the penalty."""
    endpoints, strategy = candidates(1, 1), make()
    for now in (0.0, 0.01, 0.02):
        answered(strategy, endpoints[0], 0.001, now=now, failed=True)
    doubts = []
    for _ in range(3):
        doubts.append(strategy._history.known(endpoints[0], 0.02).penalty)
        answered(strategy, endpoints[0], 0.1, now=0.02)
    assert doubts[0] > 4.0
    assert doubts[1:] == pytest.approx([0.75 * doubts[0], 0.75**2 * doubts[0]])


@BOTH
def test_where_all_fail_nobody_is_worse(make):
    """I19: the more of all attempts fail, the less one more failure counts."""
    endpoints, strategy = candidates(*[1] * 3), make()
    for step in range(300):
        for one in endpoints:
            answered(strategy, one, 0.001, now=step / 100, failed=True)
    doubts = [strategy._history.known(one, 3.0).penalty for one in endpoints]
    assert max(doubts) < 100
    answered(strategy, endpoints[0], 0.001, now=3.01, failed=True)
    assert strategy._history.known(endpoints[0], 3.01).penalty == pytest.approx(doubts[0], rel=0.01)


@BOTH
def test_who_is_let_in_again_starts_afresh(make):
    """I18: the penalty and the latency of an instance are dropped when it is admitted again."""
    endpoints, strategy = candidates(1, 1), make()
    for one, elapsed in zip(endpoints, (9.0, 0.1), strict=True):
        answered(strategy, one, elapsed, now=1.0)
    answered(strategy, endpoints[0], 0.001, now=1.0, failed=True)
    endpoints[0].warm_since = 2.0
    assert picked(strategy, endpoints, now=1.9) == {1: 200}
    assert picked(strategy, endpoints, now=2.1) == {0: 200}
    answered(strategy, endpoints[0], 9.0, now=2.2)
    assert picked(strategy, endpoints, now=2.3) == {1: 200}


@BOTH
def test_it_starts_afresh_from_the_instant_of_its_admission(make):
    """I18: an answer recorded at the instant of the admission, as of the probe that closed a
    breaker, belongs to the time before it."""
    endpoints, strategy = candidates(1, 1), make()
    for one, elapsed in zip(endpoints, (9.0, 0.1), strict=True):
        answered(strategy, one, elapsed, now=2.0)
    assert picked(strategy, endpoints, now=2.0) == {1: 200}
    endpoints[0].warm_since = 2.0
    assert picked(strategy, endpoints, now=2.0) == {0: 200}


@BOTH
def test_who_has_left_is_forgotten(make):
    """S7: whatever the churn, a strategy stores no more about instances that left than about those
    in use."""
    pool, strategy, call = Pool(BreakerPolicy()), make(), Asked()
    for turn in range(40):
        pool.update(Instance("10.0.0.1", 1 + turn * 500 + port) for port in range(1000))
        for one in pool.endpoints:
            answered(strategy, one, 0.1, now=float(turn))
        assert not strategy.pick(pool.candidates(0.0), call).gone
        assert len(strategy._history) <= 2 * 1000 + 2 * 256 + 500
    late = Endpoint(Instance("10.0.0.2", 1), BreakerPolicy())
    late.gone = True
    before = len(strategy._history)
    answered(strategy, late, 0.1, now=50.0)
    assert len(strategy._history) == before


TRACE = """
    import json, random, sys
    sys.path.insert(0, sys.argv[2])
    from tests.strategy.test_learning import Server, World, sometimes
    from lbclient.strategy.registry import BY_NAME
    servers = [Server(0.05), Server(0.1, sick=sometimes(0.2)), Server(0.2)]
    world = World(BY_NAME[sys.argv[1]], servers, clients=2).run(100, 5)
    print(json.dumps(world.log))
"""


@pytest.mark.parametrize("name", ["peak-ewma", "prequal"])
def test_a_seed_gives_one_run(name):
    """The same seed gives the same picks, in this process and in others, with any hash seed."""
    runs = []
    for seed in ("0", "1", "1"):
        command = [sys.executable, "-c", textwrap.dedent(TRACE), name, str(Path.cwd())]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        runs.append(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    assert len(json.loads(runs[0])) > 400
    assert len(set(runs)) == 1


# Peak EWMA's own


def test_latency_jumps_up_and_comes_down_slowly():
    """A higher latency counts at once; a lower one by 1 - e^(-t / decay)."""
    (one,), strategy = candidates(1), PeakEwma(decay=10.0)
    answered(strategy, one, 0.1, now=0.0)
    answered(strategy, one, 1.0, now=1.0)
    assert strategy._history.known(one, 1.0).latency == 1.0
    answered(strategy, one, 0.1, now=11.0)
    expected = math.exp(-1) + 0.1 * (1 - math.exp(-1))
    assert strategy._history.known(one, 11.0).latency == pytest.approx(expected)


def test_a_failure_leaves_latency_as_it_was_or_raises_it():
    """I14: a quick failure does not count as latency, one by timeout does."""
    (one,), strategy = candidates(1), PeakEwma()
    answered(strategy, one, 0.1, now=0.0)
    answered(strategy, one, 0.001, now=5.0, failed=True)
    assert strategy._history.known(one, 5.0).latency == 0.1
    answered(strategy, one, 2.0, now=8.0, failed=True)
    assert strategy._history.known(one, 8.0).latency == 2.0


@pytest.mark.parametrize(
    ("weights", "latencies", "in_flight", "cheapest"),
    [
        ((1, 1), (0.1, 0.2), (0, 0), 0),
        ((1, 1), (0.1, 0.25), (1, 0), 0),
        ((1, 1), (0.1, 0.15), (1, 0), 1),
        ((1, 3), (0.1, 0.25), (0, 0), 1),
        ((1, 3), (0.1, 0.25), (0, 1), 0),
    ],
)
def test_the_cost(weights, latencies, in_flight, cheapest):
    """Latency x (in flight + 1) / weight: the least of two is picked."""
    endpoints, strategy = candidates(*weights), PeakEwma()
    for one, latency, flying in zip(endpoints, latencies, in_flight, strict=True):
        answered(strategy, one, latency)
        one.in_flight = flying
    assert picked(strategy, endpoints) == {cheapest: 200}


@pytest.mark.parametrize(("latency", "cheapest"), [(0.19, 1), (0.21, 0)])
def test_a_failure_doubles_the_cost(latency, cheapest):
    """I14: an instance that has failed once costs twice as much as one that has not."""
    endpoints, strategy = candidates(1, 1), PeakEwma()
    answered(strategy, endpoints[0], 0.1)
    answered(strategy, endpoints[0], 0.001, failed=True)
    answered(strategy, endpoints[1], latency)
    assert picked(strategy, endpoints) == {cheapest: 200}


def test_ties_are_drawn_by_weight():
    """Among instances with the same cost the draw is by weight."""
    endpoints, strategy = candidates(3, 1), PeakEwma()
    seen = picked(strategy, endpoints, times=10_000)
    assert seen[0] == pytest.approx(7500, abs=200)


def test_an_idle_one_is_tried_again():
    """I15: while it is idle a slow instance gets cheaper, until it is as cheap as the others."""
    endpoints, strategy = candidates(1, 1), PeakEwma(decay=10.0)
    answered(strategy, endpoints[0], 1.0, now=0.0)
    turns = []
    for now in (1.0, 20.0, 22.0, 24.0, 26.0):
        answered(strategy, endpoints[1], 0.1, now=now)
        turns.append(picked(strategy, endpoints, now=now))
    assert turns == [{1: 200}] * 3 + [{0: 200}] * 2


# Prequal's own


def test_hot_ones_are_left_however_quick():
    """An instance with more in flight than most others is hot; of the rest the fastest is
    picked."""
    endpoints, strategy = candidates(*[1] * 10), Prequal(choices=10)
    for place, one in enumerate(endpoints):
        one.in_flight = 9 if place == 0 else 1
        latency = {0: 0.01, 4: 0.1}.get(place, 0.2)
        answered(strategy, one, latency, others=one.in_flight)
    assert picked(strategy, endpoints) == {4: 200}


@pytest.mark.parametrize(("quantile", "expected"), [(0.0, 2), (1.0, 0)])
def test_the_quantile_at_its_ends(quantile, expected):
    """With a quantile of 0 only requests in flight count, with 1 only latency."""
    endpoints, strategy = candidates(1, 1, 1), Prequal(quantile=quantile)
    for one, latency, flying in zip(endpoints, (0.01, 0.2, 0.9), (9, 5, 1), strict=True):
        one.in_flight = flying
        answered(strategy, one, latency, others=flying)
    assert picked(strategy, endpoints) == {expected: 200}


def test_where_all_are_hot_the_least_busy_is_picked():
    """If all are hot, requests in flight decide, relative to the weights."""
    endpoints, strategy = candidates(1, 1, 4), Prequal()
    for one, latency in zip(endpoints, (0.01, 0.2, 0.9), strict=True):
        answered(strategy, one, latency)
    picked(strategy, endpoints, times=30)
    for one, flying in zip(endpoints, (5, 4, 12), strict=True):
        one.in_flight = flying
    assert picked(strategy, endpoints, times=3) == {2: 3}


def test_as_many_in_flight_as_most_is_not_hot():
    """An instance is hot with more in flight than most others; with as many as they have, the
    fastest is picked."""
    endpoints, strategy = candidates(*[1] * 10), Prequal(choices=10)
    for place, one in enumerate(endpoints):
        one.in_flight = 2
        answered(strategy, one, 0.01 if place == 0 else 0.1 if place == 4 else 0.2, others=2)
    assert picked(strategy, endpoints) == {0: 200}
    endpoints[0].in_flight = 3
    assert picked(strategy, endpoints) == {4: 200}


def test_a_hot_one_is_picked_after_any_other():
    """However slow the others are, a hot instance is not preferred to them."""
    endpoints, strategy = candidates(*[1] * 10), Prequal(choices=10)
    for place, one in enumerate(endpoints):
        one.in_flight = 4 if place == 0 else 1
        answered(strategy, one, 0.01 if place == 0 else 30.0 + place, others=one.in_flight)
    assert picked(strategy, endpoints) == {1: 200}


@pytest.mark.parametrize("others", range(4))
def test_an_answer_counts_for_the_load_it_was_given_at(others):
    """The latency of an answer counts for its level of other attempts in flight: none, one, two to
    three, and so on."""
    endpoints, strategy = candidates(1, 1), Prequal()
    for level, latency in enumerate((0.05, 0.2, 0.05)):
        answered(strategy, endpoints[0], latency, others=level)
        answered(strategy, endpoints[1], 0.1, others=level)
    for one in endpoints:
        one.in_flight = others
    picked(strategy, endpoints, times=64)  # by then no instance is hot
    assert picked(strategy, endpoints) == {1 if others == 1 else 0: 200}


def test_latency_by_load():
    """The latency at a level is the moving mean of its answers, without those that came more than
    `age` seconds before the next; without any it is the one at the nearest level that has one."""
    latencies, age = LatencyByLoad(), 10.0
    assert latencies.latency(0, 0.0, age) is None
    latencies.record_latency(0, 1.0, 0.0, age)
    latencies.record_latency(0, 2.0, 10.0, age)
    assert latencies.latency(0, 20.0, age) == pytest.approx(1.3)
    assert latencies.latency(0, 20.1, age) is None
    latencies.record_latency(0, 3.0, 20.1, age)
    assert latencies.latency(0, 20.1, age) == 3.0
    latencies.record_latency(4, 5.0, 21.0, age)
    assert [latencies.latency(others, 30.1, age) for others in (1, 2, 3, 100)] == [
        3.0,
        5.0,
        5.0,
        5.0,
    ]
    assert latencies.latency(0, 31.0, age) == 5.0
    assert latencies.latency(0, 31.1, age) is None


def test_latency_is_that_at_the_present_load():
    """The latency that counts is the one seen with the present number of requests in flight."""
    endpoints, strategy = candidates(1, 1), Prequal()
    for one, levels in zip(endpoints, ({0: 0.01, 8: 0.9}, {0: 0.05, 8: 0.1}), strict=True):
        for others, latency in levels.items():
            answered(strategy, one, latency, others=others)
    assert picked(strategy, endpoints) == {0: 200}
    for one in endpoints:
        one.in_flight = 8
    picked(strategy, endpoints, times=32)
    assert picked(strategy, endpoints) == {1: 200}


def test_a_failure_says_nothing_of_latency():
    """I14: a quick failure does not make an instance look faster, even when its penalty has
    faded."""
    endpoints, strategy = candidates(1, 1), Prequal()
    answered(strategy, endpoints[0], 0.11)
    answered(strategy, endpoints[1], 0.1)
    answered(strategy, endpoints[0], 0.001, failed=True)
    assert picked(strategy, endpoints, now=5.0) == {1: 200}


def test_old_latencies_do_not_count():
    """A latency older than `age` is forgotten, so that the slow instance is tried again."""
    endpoints, strategy = candidates(1, 1), Prequal(age=10.0)
    answered(strategy, endpoints[0], 1.0, now=0.0)
    answered(strategy, endpoints[1], 0.1, now=9.0)
    assert picked(strategy, endpoints, now=10.0) == {1: 200}
    assert picked(strategy, endpoints, now=10.1) == {0: 200}


# In the model


@BOTH
@pytest.mark.parametrize("rate", [200, 600])
def test_equal_instances_share_alike(make, rate):
    """Three equal instances get a third each."""
    world = World(make, [Server(0.05) for _ in range(3)]).run(rate, 20)
    assert world.shares(2.0) == pytest.approx([1 / 3] * 3, abs=0.05)


@BOTH
def test_weights_count_under_load(make):
    """Of weights 3, 1 and 1, with thirty calls in flight, the first gets most."""
    world = World(make, [Server(0.05) for _ in range(3)], weights=[3, 1, 1]).run(600, 10)
    first, *others = world.shares(1.0)
    assert 0.45 < first < 0.66
    assert all(0.15 < share < 0.3 for share in others)


@BOTH
@SEEDED
@pytest.mark.parametrize(("mean", "rate"), [(0.05, 100), (0.05, 600), (0.5, 300)])
@pytest.mark.parametrize("since", [0.0, 5.0], ids=["from the start", "later"])
def test_a_black_hole_draws_no_traffic(make, mean, rate, since, seed):
    """I14: one of three that fails everything in a millisecond gets at most 1 % of the attempts
    after one second, without any breaker."""
    servers = [Server(mean, sick=between(since, NEVER)), Server(mean), Server(mean)]
    world = World(make, servers, seed=seed).run(rate, since + 12)
    assert world.shares(since + 1.0)[0] <= 0.01


@BOTH
@SEEDED
def test_one_that_fails_half_of_its_calls_is_left(make, seed):
    """I14: one of three that fails every other call gets at most a twentieth."""
    servers = [Server(0.05, sick=sometimes(0.5)), Server(0.05), Server(0.05)]
    assert World(make, servers, seed=seed).run(200, 20).shares(1.0)[0] <= 0.05


@BOTH
@SEEDED
@pytest.mark.parametrize(("mean", "rate"), [(0.05, 60), (0.05, 400), (0.5, 60)])
def test_a_slow_one_gets_little(make, mean, rate, seed):
    """I15: one of three that takes ten times as long gets at most 15 %, with at least two calls in
    flight."""
    world = World(make, [Server(10 * mean), Server(mean), Server(mean)], seed=seed).run(rate, 20)
    assert world.shares(1.0)[0] <= 0.15


@BOTH
@SEEDED
def test_errors_that_all_have_alike_move_nothing(make, seed):
    """I19: if every instance fails one call in a hundred, each still gets its share."""
    servers = [Server(0.05, sick=sometimes(0.01)) for _ in range(3)]
    shares = World(make, servers, seed=seed).run(400, 20).shares(1.0)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.08)


@BOTH
@SEEDED
def test_the_first_to_heal_is_not_run_over(make, seed):
    """I16: after an outage of all, without breakers, no instance gets twice its share for a
    second."""
    servers = [Server(0.05, sick=between(5.0, 15.0), workers=8) for _ in range(3)]
    world = World(make, servers, seed=seed).run(300, 30)
    assert max(world.surge(port, 15.0, 30.0) for port in (1, 2, 3)) <= 2.0
    assert world.latency(15.0)[1] < 0.3


@BOTH
@SEEDED
def test_one_that_is_let_in_again_gets_its_part(make, seed):
    """I18: once its breaker has closed, an instance has its share again within ten seconds, and in
    no second more than 1.5 times that."""
    servers = [Server(0.1, sick=between(5.0, 15.0)), *(Server(0.1) for _ in range(3))]
    world = World(make, servers, seed=seed, breaker=BreakerPolicy()).run(600, 40)
    assert world.shares(6.0, 15.0)[0] < 0.01
    back = next(
        one.start for one in world.log if one.port == 1 and one.start > 15 and not one.failed
    )
    assert world.surge(1, back, 39.0) <= 1.5
    assert world.shares(back + 5.0, back + 10.0)[0] == pytest.approx(0.25, abs=0.05)


@BOTH
@SEEDED
def test_clients_do_not_herd(make, seed):
    """Twenty independent clients do not all use the one of ten servers that is twice as fast: it
    gets about twice its share, and the others theirs."""
    servers = [Server(0.02, workers=4), *(Server(0.04, workers=4) for _ in range(9))]
    world = World(make, servers, clients=20, seed=seed).run(900, 10)
    assert world.surge(1, 2.0, 10.0, window=0.5) < 3.0
    assert max(world.surge(port, 2.0, 10.0, window=0.5) for port in range(2, 11)) < 1.5


@BOTH
@SEEDED
def test_slow_neighbours_are_felt_less(make, seed):
    """I15: if two of ten servers are slowed to a third, twenty clients wait less than with load
    alone, on average and in the tail."""

    def played(strategy):
        servers = [Server(0.12 if place < 2 else 0.04, workers=4) for place in range(10)]
        return World(strategy, servers, clients=20, seed=seed).run(600, 10)

    learnt, busy = played(make), played(LeastBusy)
    assert learnt.latency(2.0)[0] < 0.8 * busy.latency(2.0)[0]
    assert learnt.latency(2.0)[1] < 0.8 * busy.latency(2.0)[1]
