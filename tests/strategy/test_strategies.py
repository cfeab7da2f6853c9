"""Each strategy alone, with fakes for the rest: seeded random numbers, no clock, no sockets."""

import gc
import math
import random
import statistics
import sys
from collections import Counter
from functools import partial
from typing import get_args

import pytest

import lbclient
from lbclient import BreakerPolicy, Instance, LeastBusy, Random, RoundRobin, Weighted
from lbclient.core.pool import Pool
from lbclient.endpoint.endpoint import Endpoint
from lbclient.simulation import Open, Scenario, Server, answers, constant, simulate
from lbclient.strategy.consistent_hash import ConsistentHash
from lbclient.strategy.registry import BY_NAME, StrategyName
from tests.support.slow import slow_rows
from tests.support.strategies import Asked, candidates


def shares(strategy, endpoints, picks=10_000):
    call = Asked()
    seen = Counter(strategy.pick(endpoints, call) for _ in range(picks))
    return [seen[one] / picks for one in endpoints]


def test_type_checkers_know_every_name():
    """The names that type checkers accept are those of the registry."""
    assert sorted(get_args(StrategyName)) == sorted(BY_NAME)


@pytest.mark.parametrize(
    "make",
    [
        partial(lbclient.Balancer, ["http://a"]),
        partial(simulate, Scenario([Server("a", answers(constant(0.1)))], Open(1, seconds=1))),
    ],
    ids=["balancer", "simulator"],
)
def test_an_unknown_name_is_answered_with_the_known_ones(make):
    """K3: the error for an unknown name lists all names."""
    names = ", ".join(map(repr, sorted(BY_NAME)))
    with pytest.raises(ValueError, match=f"^strategy must be one of {names}, not 'robin'$"):
        make(strategy="robin")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1), (0.5, 0.5)),
        ((10, 1), (10 / 11, 1 / 11)),
        ((60, 20, 20), (0.6, 0.2, 0.2)),
        ((0, 1), (1 / 11, 10 / 11)),
        ((0, 0), (0.5, 0.5)),
        ((3, 1), (0.75, 0.25)),
        ((0.5, 0.25), (2 / 3, 1 / 3)),
    ],
)
def test_weighted_shares(weights, expected):
    """D9, K2: shares follow the weights within 1 %; 0 counts as 0.1; if all are 0, all are
    equal."""
    assert shares(Weighted(), candidates(*weights)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("seed", range(50))
def test_weighted_is_smooth_from_any_start(seed):
    """In every window as long as the sum of the weights each instance has its share, plus or minus
    one."""
    endpoints, strategy = candidates(5, 2, 1), Weighted()
    call = Asked(random.Random(seed))
    picks = [strategy.pick(endpoints, call) for _ in range(80)]
    for start in range(72):
        window = Counter(picks[start : start + 8])
        assert all(abs(window[one] - one.weight) <= 1 for one in endpoints)


def test_weighted_keeps_its_place_when_the_set_changes():
    """An instance that stays keeps its turn when another joins: none is picked in a burst."""
    pool, strategy, call = Pool(BreakerPolicy()), Weighted(), Asked()
    old = [Instance("10.0.0.1", port) for port in range(1, 4)]
    pool.update(old)
    seen = Counter()
    for turn in range(300):
        extra = [Instance("10.0.0.1", 100 + turn)] if turn % 2 else []
        pool.update([*old, *extra])
        seen[strategy.pick(pool.candidates(0.0), call).instance] += 1
    counts = [seen[one] for one in old]
    assert max(counts) - min(counts) <= 3


def test_weighted_follows_a_change_of_weight():
    """A changed weight applies from the next pick on."""
    pool, strategy, call = Pool(BreakerPolicy()), Weighted(), Asked()
    pool.update([Instance("10.0.0.1", 1, weight=1), Instance("10.0.0.1", 2, weight=1)])
    strategy.pick(pool.candidates(0.0), call)
    pool.update([Instance("10.0.0.1", 1, weight=9), Instance("10.0.0.1", 2, weight=1)])
    seen = Counter(strategy.pick(pool.candidates(0.0), call).instance.port for _ in range(100))
    assert 89 <= seen[1] <= 91


@pytest.mark.parametrize("seed", range(20))
def test_weighted_shares_are_kept_after_any_change(seed):
    """After any changes of the set, of weights and of the rotation, each instance has its share of
    the next picks, plus or minus one: there is no burst for one that joins or comes back."""
    pool, strategy, call = Pool(BreakerPolicy()), Weighted(), Asked(random.Random(seed))
    for _ in range(60):
        ports = call.rng.sample(range(1, 13), call.rng.randrange(2, 8))
        weights = {port: call.rng.choice([0.25, 0.5, 1.0, 2.0, 4.0]) for port in ports}
        pool.update(Instance("10.0.0.1", port, weight=weights[port]) for port in ports)
        for place, one in enumerate(pool.endpoints):
            one.ejected_until = math.inf if place and call.rng.random() < 0.3 else 0.0
            pool.changed(one)
        endpoints = pool.candidates(0.0)
        if call.rng.random() < 0.5:  # the next change comes soon
            for _ in range(call.rng.randrange(10)):
                strategy.pick(endpoints, call)
            continue
        seen = Counter(
            strategy.pick(endpoints, call) for _ in range(int(4 * sum(e.weight for e in endpoints)))
        )
        assert all(abs(seen[one] - 4 * one.weight) <= 1 for one in endpoints)


def test_weighted_keeps_the_order_of_the_few_that_are_left():
    """When most instances leave at once, the rest keep their order, and no turn is lost."""
    pool, strategy, call = Pool(BreakerPolicy()), Weighted(), Asked()
    everybody = [Instance("10.0.0.1", port) for port in range(1, 1001)]
    pool.update(everybody)
    for _ in range(2500):
        strategy.pick(pool.candidates(0.0), call)
    order = [strategy.pick(pool.candidates(0.0), call).instance for _ in range(1000)]
    left = [one for one in order if one.port % 100 == 0]
    pool.update(left)
    picks = [strategy.pick(pool.candidates(0.0), call).instance for _ in range(20)]
    assert picks == [*left, *left]


def test_weighted_lets_go_of_those_that_have_left():
    """S7: after a few picks a strategy holds nothing of thousands of instances that have left."""

    def held():
        return sum(type(one) is Endpoint for one in gc.get_objects())

    before, pool, strategy = held(), Pool(BreakerPolicy()), Weighted()
    for turn in range(5):
        pool.update(Instance("10.0.0.1", 1 + 1000 * turn + port) for port in range(1000))
        for _ in range(4):
            strategy.pick(pool.candidates(0.0), Asked())
    pool.update([Instance("10.0.0.1", 1)])
    for _ in range(20):
        strategy.pick(pool.candidates(0.0), Asked())
    assert held() - before <= 1


def test_round_robin_takes_each_in_turn():
    """Any n picks in a row over n candidates contain each once."""
    endpoints, strategy = candidates(1, 1, 1, 1), RoundRobin()
    picks = [strategy.pick(endpoints, Asked()) for _ in range(40)]
    assert all(len(set(picks[start : start + 4])) == 4 for start in range(36))


@pytest.mark.parametrize("make", [RoundRobin, Weighted, Random, LeastBusy])
def test_fleets_do_not_start_alike(make):
    """Clients that start together begin with each instance equally often."""
    endpoints = candidates(1, 1, 1, 1)
    first = Counter(make().pick(endpoints, Asked(random.Random(seed))) for seed in range(2000))
    assert all(400 < first[one] < 600 for one in endpoints)


@pytest.mark.parametrize("make", [Weighted, ConsistentHash])
def test_fleets_do_not_start_with_the_same_few_of_thousands(make):
    """Clients that start together begin anywhere in a large set, although a strategy with an order
    processes only a few hundred candidates at its first pick."""
    endpoints = candidates(*[1] * 1000)
    first = [make().pick(endpoints, Asked(random.Random(seed))) for seed in range(40)]
    quarters = Counter((one.instance.port - 1) // 250 for one in first)
    assert all(quarters[quarter] > 2 for quarter in range(4))


def test_random_is_uniform():
    """Random ignores weights."""
    assert shares(Random(), candidates(9, 1, 1)) == pytest.approx([1 / 3] * 3, abs=0.02)


def test_least_busy_takes_the_less_busy_of_two():
    """Of two candidates the one with less in flight is picked."""
    endpoints = candidates(1, 1)
    endpoints[0].in_flight = 1
    assert shares(LeastBusy(), endpoints, 100) == [0.0, 1.0]


def test_least_busy_counts_load_by_weight():
    """Three in flight at weight 4 are less load than one at weight 1."""
    endpoints = candidates(4, 1)
    endpoints[0].in_flight, endpoints[1].in_flight = 3, 1
    assert shares(LeastBusy(), endpoints, 100) == [1.0, 0.0]


def test_least_busy_draws_ties_by_weight():
    """Among equally idle candidates the draw is by weight."""
    assert shares(LeastBusy(), candidates(3, 1)) == pytest.approx([0.75, 0.25], abs=0.02)


def test_least_busy_never_takes_the_busiest_of_many():
    """Two different candidates are compared, so the busiest of all is never picked."""
    endpoints = candidates(*[1] * 5)
    endpoints[2].in_flight = 10
    assert shares(LeastBusy(), endpoints, 1000)[2] == 0.0


def test_least_busy_of_all_takes_the_idlest():
    """`choices=None` compares every candidate."""
    endpoints = candidates(*[1] * 5)
    for one in endpoints:
        one.in_flight = 2
    endpoints[3].in_flight = 1
    assert shares(LeastBusy(choices=None), endpoints, 50)[3] == 1.0


def test_failing_fast_does_not_look_idle():
    """I14: recent faults count as load, so that an instance that fails fast does not attract the
    traffic."""
    endpoints = candidates(1, 1)
    endpoints[0].record_fault(now=0.0)
    assert shares(LeastBusy(), endpoints, 100) == [0.0, 1.0]
    assert endpoints[0].load(now=60.0) < 0.001


@pytest.mark.parametrize("strategy", [RoundRobin(), Weighted(), Random(), LeastBusy()])
def test_one_candidate_is_picked(strategy):
    """With one candidate there is no choice."""
    (only,) = candidates(1)
    assert isinstance(only, Endpoint)
    assert strategy.pick((only,), Asked()) is only


def most_in_flight(strategy, number):
    """The most that one of this many equal instances has, when each has one attempt on average."""
    endpoints, call = candidates(*[1] * number), Asked()
    for _ in range(number):
        strategy.pick(endpoints, call).in_flight += 1
    return max(one.in_flight for one in endpoints)


@pytest.mark.parametrize("number", [100, 1_000, 10_000, *slow_rows(100_000)])
def test_two_choices_grow_like_log_log(number):
    """Of n instances with n attempts the busiest has ln ln n / ln 2 and a little (Azar et al.,
    Mitzenmacher): one more from a hundred to a hundred thousand, while random picks need
    several."""
    expected = math.log(math.log(number)) / math.log(2)
    assert most_in_flight(LeastBusy(), number) <= expected + 2
    if number >= 10_000:
        assert most_in_flight(Random(), number) > expected + 2


def steps(strategy, number):
    """The median number of bytecodes of a pick among this many, once all of them are known:
    strategies that keep an order process new ones a few at a time."""
    endpoints = candidates(*[1 + place % 3 for place in range(number)])
    taken = []

    def note(frame, event, _):
        frame.f_trace_opcodes = True
        if event == "opcode":
            taken[-1] += 1
        return note

    for turn in range(10_040):
        asked = Asked(rng=random.Random(turn), now=turn * 0.01, key=f"key {turn}")
        if turn < 10_000:
            strategy.pick(endpoints, asked)
            continue
        taken.append(0)
        sys.settrace(note)
        try:
            strategy.pick(endpoints, asked)
        finally:
            sys.settrace(None)
    return statistics.median(taken)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_a_pick_does_not_depend_on_the_number(name):
    """From ten instances to a hundred thousand a pick takes the same number of steps; one that
    keeps an order (weighted) may take a few more for each doubling."""
    most = 10_000 if name == "consistent-hash" else 100_000  # a ring of more takes long to make
    few, many = steps(BY_NAME[name](), 10), steps(BY_NAME[name](), most)
    doublings = math.log2(most / 10) if name == "weighted" else 0
    assert many <= 1.3 * few + 25 * doublings
