"""Outliers: an instance that fails far more often than its peers is ejected for a time."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.endpoint.breaker import Breaker, BreakerPolicy
from lbclient.endpoint.endpoint import Endpoint
from lbclient.endpoint.instance import Instance
from lbclient.resilience.outlier_detection import OutlierPolicy, Outliers


def peers(number):
    return [Endpoint(Instance("10.0.0.1", 1 + n), BreakerPolicy()) for n in range(number)]


class Bench:
    """A tier, a tally, and the test's own clock; ejections are applied as the engine does."""

    def __init__(self, number, seed=1, **policy):
        self.policy = OutlierPolicy(**policy)
        self.rng = random.Random(seed)
        self.outliers = Outliers(self.policy, self.rng)
        self.tier = peers(number)
        self.now = 100.0
        self.absent = set()

    def serving(self, one):
        return one.ejected_until <= self.now and one not in self.absent

    def gather(self, *faults, calls=100):
        """This many faults in this many calls of each, in that order."""
        for one, bad in zip(self.tier, faults, strict=True):
            for call in range(calls):
                self.outliers.count(one, fault=call < bad, now=self.now)

    def judge(self):
        self.now += self.policy.interval
        found = self.outliers.verdicts(self.now, [self.tier], self.serving)
        for one, seconds in found:
            one.ejected_until = self.now + seconds
        return {self.tier.index(one): seconds for one, seconds in found}

    def interval(self, *faults, calls=100):
        self.gather(*faults, calls=calls)
        return self.judge()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"interval": 0}, "interval"),
        ({"interval": float("nan")}, "interval"),
        ({"margin": 0}, "margin"),
        ({"margin": 1.1}, "margin"),
        ({"minimum_calls": 0}, "minimum_calls"),
        ({"ejection": -1}, "ejection"),
        ({"ejection_max": float("inf")}, "ejection_max"),
        ({"max_ejected": 0}, "max_ejected"),
        ({"max_ejected": 34}, "max_ejected"),
        ({"ejection": 301.0}, "must not be above ejection_max"),
    ],
)
def test_policy_is_checked(wrong, named):
    """K4, K8: an invalid policy is refused at construction by an error that names the argument."""
    with pytest.raises(ValueError, match=named):
        OutlierPolicy(**wrong)


def test_policy_wants_numbers():
    """K4: text is not a number, and a fraction is not a count."""
    with pytest.raises(TypeError, match="interval"):
        OutlierPolicy(interval="10")
    with pytest.raises(TypeError, match="minimum_calls"):
        OutlierPolicy(minimum_calls=1.5)


def test_the_interval_begins_with_the_first_outcome():
    """Verdicts are due once `interval` has passed since the first outcome, and again after each
    verdict."""
    outliers, (one,) = Outliers(OutlierPolicy(), random.Random(1)), peers(1)
    due = [outliers.count(one, fault=False, now=now) for now in (50.0, 59.9, 60.0, 60.1)]
    assert due == [False, False, True, True]
    outliers.verdicts(60.1, [[one]], lambda _: True)
    assert not outliers.count(one, fault=False, now=70.0)
    assert outliers.count(one, fault=False, now=70.1)


@pytest.mark.parametrize("number", range(2, 10))
def test_one_far_below_its_peers_is_ejected(number):
    """I14: of 2 to 9 instances the one that fails 40 % is ejected, and no other."""
    bench = Bench(number)
    assert set(bench.interval(40, *[2] * (number - 1))) == {0}


def test_the_margin_is_to_be_exceeded():
    """Exactly `margin` below its peers is not an outlier; one more failed call in a thousand is."""
    assert Bench(3).interval(300, 0, 0, calls=1000) == {}
    assert set(Bench(3).interval(301, 0, 0, calls=1000)) == {0}


def test_the_margin_is_to_be_exceeded_with_few_calls_too():
    """The rates are those of the outcomes and of nothing else, however few there are."""
    bench = Bench(2)
    for one, calls, bad in zip(bench.tier, (20, 1000), (6, 0), strict=True):
        for call in range(calls):
            bench.outliers.count(one, fault=call < bad, now=bench.now)
    assert bench.judge() == {}  # 6 of 20 is 0.3 below its peers, which is the margin


def test_an_ejection_that_has_just_ended_takes_no_room():
    """At the instant at which its ejection ends an instance is in the rotation: it may be ejected
    again, and does not count as ejected."""
    bench = Bench(2)
    bench.tier[0].ejected_until = bench.now + bench.policy.interval
    assert set(bench.interval(100, 0)) == {0}
    bench = Bench(2)
    bench.tier[1].ejected_until = bench.now + bench.policy.interval
    assert set(bench.interval(100, 0)) == {0}


def test_peers_are_pooled_by_calls():
    """A peer counts in proportion to its calls: with one bad peer that has many calls, 40 % is no
    outlier."""
    bench = Bench(3)
    bench.gather(40, 0, 0)
    assert set(bench.judge()) == {0}
    bench = Bench(3)
    bench.gather(40, 0, 0)
    for call in range(800):
        bench.outliers.count(bench.tier[2], fault=call % 2 == 0, now=bench.now)
    assert bench.judge() == {}


def test_few_calls_prove_nothing():
    """With fewer than `minimum_calls`, of the instance or of its peers together, there is no
    verdict."""
    assert Bench(2).interval(19, 0, calls=19) == {}
    assert set(Bench(2).interval(20, 0, calls=20)) == {0}
    for place, own in enumerate([100, 19]):  # many calls of the one make up for nothing
        bench = Bench(2)
        for one, calls in zip(bench.tier, [own, 119 - own], strict=True):
            for _ in range(calls):
                bench.outliers.count(one, fault=one is bench.tier[0], now=bench.now)
        assert bench.judge() == {}, place


def test_one_with_few_calls_is_passed_over():
    """An instance with too few calls is not rated, and does not keep others from it."""
    bench = Bench(3)
    for one, calls, bad in zip(bench.tier, (5, 100, 100), (5, 40, 0), strict=True):
        for call in range(calls):
            bench.outliers.count(one, fault=call < bad, now=bench.now)
    assert set(bench.judge()) == {1}


def test_all_alike_are_no_outliers():
    """I19: if all fail alike, at any rate, none is ejected."""
    for faults in (0, 50, 100):
        assert Bench(5).interval(*[faults] * 5) == {}


@pytest.mark.parametrize(("number", "most"), [(1, 0), (2, 1), (5, 1), (6, 2), (9, 3), (30, 10)])
def test_at_most_a_fraction_is_out(number, most):
    """I19: at most `max_ejected` of a tier is out at the same time, but always one of two or more,
    and never the only one; an ejection that lasts counts in the next interval too."""
    bench = Bench(number, ejection=300.0)
    bad = (number - 1) // 2 or 1
    faults = [100] * bad + [0] * (number - bad)
    for _ in range(4):
        bench.interval(*faults)
        assert sum(one.ejected_until > bench.now for one in bench.tier) == min(most, bad)


def test_a_fraction_may_be_a_whole_number():
    """Half of six instances are three."""
    assert set(Bench(6, max_ejected=0.5).interval(100, 100, 100, 0, 0, 0)) == {0, 1, 2}


def test_the_worst_goes_first():
    """If not all outliers may be ejected, those with the largest share of faults are."""
    bench = Bench(9, max_ejected=0.23)
    assert set(bench.interval(75, 0, 90, 0, 0, 80, 0, 0, 0)) == {2, 5}


def test_the_last_in_the_rotation_stays():
    """An outlier is not ejected if all its peers are out of rotation for other reasons."""
    bench = Bench(3)
    bench.absent = set(bench.tier[1:])
    assert bench.interval(40, 0, 0) == {}
    bench.absent = set(bench.tier[2:])
    assert set(bench.interval(40, 0, 0)) == {0}
    bench = Bench(3, max_ejected=1.0)
    bench.absent = {bench.tier[2]}
    assert set(bench.interval(80, 90, 0)) == {1}


def test_each_tier_for_itself():
    """Peers are those of the same tier: in a bad second tier, whose instances all fail, none is
    ejected."""
    bench = Bench(4)
    first, second = bench.tier[:2], bench.tier[2:]
    bench.gather(0, 0, 90, 90)
    bench.now += 10
    assert bench.outliers.verdicts(bench.now, [first, second], bench.serving) == []
    bench.gather(90, 0, 90, 0)
    bench.now += 10
    found = bench.outliers.verdicts(bench.now, [first, second], bench.serving)
    assert {one for one, _ in found} == {first[0], second[0]}


def test_each_ejection_is_longer():
    """I17: the n-th recent ejection lasts n times as long, up to `ejection_max`; half of it is
    random."""
    lengths = [[] for _ in range(5)]
    for seed in range(200):
        bench = Bench(2, seed, ejection=30.0, ejection_max=100.0)
        for length in lengths:
            length.append(bench.interval(50, 0)[0])
            bench.tier[0].ejected_until = 0.0
        assert (
            bench.outliers._times[bench.tier[0].breaker] == 4
        )  # more would only take longer to forgive
    for whole, length in zip([30, 60, 90, 100, 100], lengths, strict=True):
        assert whole / 2 <= min(length) < 0.55 * whole
        assert 0.95 * whole < max(length) <= whole


def test_the_longest_ejection_is_soon_forgiven():
    """I17: ejections that could not get longer need no more intervals to be cancelled."""
    bench = Bench(2, ejection=10.0, ejection_max=20.0)
    for _ in range(4):
        bench.interval(50, 0)
        bench.tier[0].ejected_until = 0.0
    bench.interval(0, 0)
    bench.interval(0, 0)
    assert bench.interval(50, 0)[0] <= 10.0


def test_health_is_remembered_too():
    """I17: each interval in rotation without being an outlier cancels one ejection; intervals in
    which it was out, even partly, do not."""
    bench = Bench(2, ejection=10.0, ejection_max=1000.0)

    def times():
        return bench.outliers._times.get(bench.tier[0].breaker, 0)

    bench.interval(50, 0)
    bench.tier[0].ejected_until = 0.0
    bench.interval(50, 0)
    assert times() == 2
    bench.tier[0].ejected_until = bench.now + 15.0
    bench.interval(0, 0)
    bench.interval(0, 0)
    assert times() == 2  # out for one interval, and for half of another
    bench.absent = {bench.tier[0]}
    bench.interval(0, 0)
    assert times() == 2  # its breaker is open
    bench.absent = set()
    bench.interval(0, 0)
    assert times() == 1
    bench.interval(0, 0)
    assert bench.outliers._times == {}
    assert bench.interval(50, 0)[0] <= 10.0


def test_an_interval_counts_as_healthy_from_its_beginning():
    """I17: an ejection that ends when an interval begins leaves this interval whole, and it cancels
    the ejection."""
    bench = Bench(2, ejection=10.0)
    bench.interval(50, 0)
    bench.tier[0].ejected_until = bench.now
    bench.interval(0, 0)
    assert bench.interval(50, 0)[0] <= 10.0


def test_a_bad_interval_heals_nobody():
    """I17: an outlier that could not be ejected does not count as healthy."""
    bench = Bench(2)
    bench.interval(50, 0)
    bench.tier[0].ejected_until = 0.0
    bench.absent = {bench.tier[1]}
    assert bench.interval(50, 0) == {}
    assert bench.outliers._times[bench.tier[0].breaker] == 1


@pytest.mark.parametrize("asleep", [10.0, 600.0])
def test_an_interval_overslept_is_void(asleep):
    """C26: after the process was stopped, nothing that was counted before causes an ejection."""
    bench = Bench(2)
    bench.gather(100, 0)
    bench.now += 10.0 + asleep
    assert not bench.outliers.count(bench.tier[0], fault=True, now=bench.now)
    assert bench.judge() == {}
    bench.gather(100, 0)
    bench.now += asleep
    assert bench.judge() == {}  # nor where a verdict is asked for first
    assert set(bench.interval(100, 0)) == {0}


def test_who_has_left_is_let_go():
    """S7: after the verdicts the tally has no instances that have left."""
    bench = Bench(3)
    bench.interval(90, 0, 0)
    bench.gather(0, 0, 0)
    gone = bench.tier.pop(0)
    gone.gone = True
    bench.outliers.count(gone, fault=True, now=bench.now)
    assert bench.judge() == {}
    assert not bench.outliers._tallies
    assert not bench.outliers._times


def test_another_machine_starts_clean():
    """I34: once a name stands for another machine, which has another breaker, the outcomes of the
    machine before count no more, and neither do its ejections."""
    bench = Bench(2)
    bench.interval(90, 0)
    bench.tier[0].ejected_until = 0.0
    bench.gather(90, 0)
    bench.tier[0].renew(Breaker(BreakerPolicy(), "renewed"))
    bench.gather(0, 0)
    assert bench.judge() == {}
    bench.interval(90, 0)
    bench.tier[0].renew(Breaker(BreakerPolicy(), "renewed"))
    assert bench.interval(90, 0)[0] <= 30.0


@given(
    faults=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    out=st.sets(st.integers(0, 11)),
    absent=st.sets(st.integers(0, 11)),
    share=st.floats(0.01, 1.0),
    margin=st.floats(0.01, 1.0),
    rounds=st.integers(1, 3),
)
def test_verdicts_keep_their_promises(faults, out, absent, share, margin, rounds):
    """In every case none is ejected twice, the cap holds, an ejected instance fails more than the
    mean, and a tier that had an instance in rotation still has one."""
    number = len(faults)
    bench = Bench(number, max_ejected=share, margin=margin)
    for place in out:
        if place < number:
            bench.tier[place].ejected_until = bench.now + 15.0
    bench.absent = {bench.tier[place] for place in absent if place < number}
    for _ in range(rounds):
        bench.gather(*faults, calls=40)
        after = bench.now + 10.0
        was_out = [one.ejected_until > after for one in bench.tier]
        served = any(one.ejected_until <= after and one not in bench.absent for one in bench.tier)
        found = bench.judge()
        assert not any(was_out[place] for place in found)
        if found:
            assert sum(was_out) + len(found) <= max(1, share * number) + 1e-6
            assert number > 1
        assert all(faults[place] > sum(faults) / number for place in found)
        assert all(15.0 <= seconds <= 300.0 for seconds in found.values())
        assert any(map(bench.serving, bench.tier)) == served


def faults_seen(number, seed, *, minutes, ejecting):
    """For a service whose first instance fails 40 % and the others 1 %: the share of faults that
    callers see at 20 calls a second each, the ejected instances, and the seconds until the first
    ejection."""
    bench, faults, calls = Bench(number, seed), 0, 0
    ejected, first = Counter(), None
    for tick in range(minutes * 60 * 20):
        bench.now = 100.0 + tick / 20
        for one in filter(bench.serving, bench.tier):
            fault = bench.rng.random() < (0.4 if one is bench.tier[0] else 0.01)
            faults, calls = faults + fault, calls + 1
            if bench.outliers.count(one, fault=fault, now=bench.now) and ejecting:
                found = bench.outliers.verdicts(bench.now, [bench.tier], bench.serving)
                for outlier, seconds in found:
                    outlier.ejected_until = bench.now + seconds
                    ejected[bench.tier.index(outlier)] += 1
                    first = first or bench.now - 100.0
    return faults / calls, ejected, first


@pytest.mark.parametrize("number", [2, 3, 9])
def test_ejection_spares_the_callers(number):
    """I14: an instance that fails 40 % at random is ejected within two intervals, again and again;
    over ten minutes callers see less than a quarter of its faults, and no healthy one is
    ejected."""
    plain, _, _ = faults_seen(number, 5, minutes=1, ejecting=False)
    spared, ejected, first = faults_seen(number, 5, minutes=10, ejecting=True)
    assert set(ejected) == {0}
    assert ejected[0] >= 3
    assert first <= 20.1
    assert spared - 0.01 < (plain - 0.01) / 4
