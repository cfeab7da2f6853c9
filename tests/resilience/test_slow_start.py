"""Slow start: ramps up the traffic to a new instance."""

import math
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.core.pool import Pool
from lbclient.endpoint.breaker import BreakerPolicy
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.resilience.slow_start import SlowStart
from lbclient.strategy.least_busy import LeastBusy
from lbclient.strategy.random import Random
from lbclient.strategy.round_robin import RoundRobin
from lbclient.strategy.weighted import Weighted


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"window": 0}, "window"),
        ({"window": float("inf")}, "window"),
        ({"aggression": 0}, "aggression"),
        ({"aggression": -1}, "aggression"),
        ({"least": 0}, "least"),
        ({"least": 10}, "least"),
    ],
)
def test_policy_is_checked(wrong, named):
    """K4: an invalid policy is refused at construction by an error that names the argument."""
    with pytest.raises(ValueError, match=named):
        SlowStart(**wrong)


@pytest.mark.parametrize(
    ("aggression", "age", "factor"),
    [
        (1.0, -5.0, 0.1),
        (1.0, 0.0, 0.1),
        (1.0, 2.9, 0.1),
        (1.0, 15.0, 0.5),
        (1.0, 29.9, 29.9 / 30),
        (1.0, 30.0, 1.0),
        (1.0, math.inf, 1.0),
        (2.0, 7.5, 0.5),
        (0.5, 15.0, 0.25),
    ],
)
def test_the_formula(aggression, age, factor):
    """I18: (age / window) ^ (1 / aggression), not below `least`, 1 after the window."""
    assert SlowStart(30.0, aggression).factor(age) == pytest.approx(factor)


@given(
    window=st.floats(1e-3, 1e6),
    aggression=st.floats(1e-3, 1e3),
    least=st.floats(1e-6, 1.0),
    ages=st.lists(st.floats(-1e7, 1e7), min_size=2),
)
def test_the_factor_only_grows(window, aggression, least, ages):
    """The factor lies between `least` and 1, and never falls with age."""
    factors = [SlowStart(window, aggression, least).factor(age) for age in sorted(ages)]
    assert factors == sorted(factors)
    assert least <= factors[0]
    assert factors[-1] <= 1.0


def test_who_is_warm_throws_no_dice():
    """A pick of an instance that is warm is kept, and needs no random number."""
    rng = random.Random(1)
    before = rng.getstate()
    assert SlowStart().stands(0.0, 30.0, rng)
    assert SlowStart().stands(-math.inf, 5.0, rng)
    assert rng.getstate() == before


def test_a_pick_stands_as_often_as_the_factor_says():
    """Ten seconds into thirty, a third of the picks are kept."""
    rng = random.Random(1)
    stood = sum(SlowStart().stands(100.0, 110.0, rng) for _ in range(10_000))
    assert stood == pytest.approx(3333, abs=150)


@dataclass
class Asked:
    """What a strategy is told about a call."""

    rng: random.Random = field(default_factory=lambda: random.Random(7))
    now: float = 0.0
    key: object = None


class Fleet:
    """Equal instances; the first ones came at time 0, the others long ago."""

    def __init__(self, strategy, number, warming, slow_start, weights=None):
        self.strategy = strategy
        self.slow_start = slow_start
        self.endpoints = tuple(
            Endpoint(Instance("10.0.0.1", 1 + n), BreakerPolicy()) for n in range(number)
        )
        for one, weight in zip(self.endpoints, weights or [], strict=False):
            one.weight = weight
        self.warming = frozenset(self.endpoints[:warming])
        self.call = Asked()

    def pick(self, now):
        return self.slow_start.thinned(
            lambda: self.strategy.pick(self.endpoints, self.call),
            lambda one: 0.0 if one in self.warming else -math.inf,
            now,
            self.call.rng,
        )

    def shares(self, since, until, picks):
        """The share that each instance gets of this many picks, spread evenly over a period."""
        step = (until - since) / picks
        seen = Counter(self.pick(since + step * (n + 0.5)) for n in range(picks))
        return [seen[one] / picks for one in self.endpoints]


@pytest.mark.parametrize("make", [Random, RoundRobin, Weighted])
@pytest.mark.parametrize("aggression", [0.5, 1.0, 2.0])
def test_the_share_follows_the_formula(make, aggression):
    """I18: of four equal instances the one that warms up has, in each tenth of the window, the
    share that its factor gives, and never more than its fair share; the others share the rest."""
    slow_start = SlowStart(30.0, aggression)
    fleet = Fleet(make(), 4, 1, slow_start)
    for tenth in range(12):
        since = 3.0 * tenth
        share, *others = fleet.shares(since, since + 3.0, 8000)
        factors = [slow_start.factor(since + 0.03 * n + 0.015) for n in range(100)]
        expected = sum(factor / (3 + factor) for factor in factors) / 100
        assert share == pytest.approx(expected, abs=0.012)
        assert share <= 1.05 * 0.25
        assert others == pytest.approx([(1 - share) / 3] * 3, abs=0.02)


def test_weights_are_thinned_too():
    """The factor applies to the weight: an instance of weight 3 among three of weight 1 begins with
    a tenth of its weight."""
    fleet = Fleet(Weighted(), 4, 1, SlowStart(), weights=[3.0, 1.0, 1.0, 1.0])
    (share, *_) = fleet.shares(0.0, 3.0, 8000)
    assert share == pytest.approx(0.3 / 3.3, abs=0.015)
    (share, *_) = fleet.shares(30.0, 33.0, 8000)
    assert share == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("make", [Random, RoundRobin, Weighted])
@pytest.mark.parametrize(("number", "warming"), [(4, 4), (5, 4), (8, 4), (11, 10), (9, 8)])
def test_no_cold_instance_gets_more_than_its_fair_share(make, number, warming):
    """I18: however many warm up at once, and whatever their order, none of them has more than its
    fair share of the picks."""
    fleet = Fleet(make(), number, warming, SlowStart())
    shares = fleet.shares(0.0, 3.0, 20_000)
    assert max(shares[:warming]) <= 1.05 / number + 0.005


def test_least_busy_warms_up_too():
    """I18: with ten calls in flight the least busy of two warms up faster than the factor, but
    begins with less than half of a fair share, and never exceeds it."""
    fleet, flying = Fleet(LeastBusy(), 4, 1, SlowStart()), deque()
    shares = []
    for tenth in range(12):
        seen = 0
        for n in range(8000):
            if len(flying) == 10:
                flying.rotate(fleet.call.rng.randrange(10))
                flying.popleft().in_flight -= 1
            picked = fleet.pick(3.0 * tenth + 3.0 * n / 8000)
            picked.in_flight += 1
            flying.append(picked)
            seen += picked in fleet.warming
        shares.append(seen / 8000)
    assert shares[0] < 0.125
    assert all(low < high + 0.02 for low, high in pairwise(shares))
    assert max(shares) <= 1.05 * 0.25


def test_who_has_moved_warms_up():
    """I34: an instance with other addresses is another machine, so it warms up like a new one; one
    with the same addresses in another order does not."""
    pool = Pool(BreakerPolicy())
    addresses = [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("10.0.0.3",)]
    came, memberships = [], []
    for now, its_own in enumerate(addresses):
        pool.take(pool.plan([Instance("a.test", 80, addresses=its_own)], now=float(now)))
        (one,) = pool.endpoints
        came.append(one.warm_since)
        memberships.append(pool.membership)
    assert came == [-math.inf, -math.inf, 2.0]
    assert memberships == [1, 1, 2]


def test_the_strategy_is_asked_at_most_four_times():
    """A pick is always made, even if no instance is warm."""
    asked = []
    slow_start = SlowStart(least=1e-9)
    picked = slow_start.thinned(
        lambda: asked.append(len(asked)) or len(asked), lambda _: 0.0, 0.0, random.Random(1)
    )
    assert len(asked) == 4
    assert picked in {1, 2, 3, 4}
