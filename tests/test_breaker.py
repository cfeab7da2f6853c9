"""The breaker of one instance: permits, states, and the way back."""

import random

import pytest

from lbclient import BreakerPolicy
from lbclient.breaker import Breaker


class Bench:
    """A breaker with dice and a time of the test's own."""

    def __init__(self, **policy):
        self.breaker = Breaker(BreakerPolicy(**policy), "one")
        self.now = 100.0
        self.rng = random.Random(1)

    def settle(self, *, fault, permit=None):
        permit = permit or self.breaker.permit
        return self.breaker.settle(permit, fault=fault, now=self.now, rng=self.rng)

    def trip(self):
        while self.breaker.closed:
            self.settle(fault=True)

    def probe(self, *, fault):
        self.now = max(self.now, self.breaker.due)
        self.settle(fault=fault, permit=self.breaker.probe(self.now))


def test_consecutive_faults_open_it():
    """`fail_max` faults in a row open it; a success between starts the count anew."""
    bench = Bench(fail_max=3)
    for fault in (True, True, False, True, True):
        assert not bench.settle(fault=fault)
    assert bench.settle(fault=True)
    assert bench.breaker.state == "open"


def test_the_open_period_is_jittered_by_half():
    """It stays open for between half of `reset_timeout` and all of it."""
    periods = []
    for seed in range(200):
        bench = Bench(fail_max=1, reset_timeout=1.0)
        bench.rng = random.Random(seed)
        bench.trip()
        periods.append(bench.breaker.due - bench.now)
    assert 0.5 <= min(periods) < 0.55
    assert 0.95 < max(periods) <= 1.0


def test_a_successful_probe_closes_it():
    """One successful probe closes it where `success_threshold` is 1."""
    bench = Bench(fail_max=1)
    bench.trip()
    bench.probe(fault=False)
    assert bench.breaker.state == "closed"


def test_success_threshold_wants_so_many_probes():
    """It closes after `success_threshold` successful probes, one after the other."""
    bench = Bench(fail_max=1, success_threshold=2)
    bench.trip()
    bench.probe(fault=False)
    assert bench.breaker.state == "half-open"
    assert not bench.breaker.probing(bench.now)
    bench.probe(fault=False)
    assert bench.breaker.state == "closed"


def test_failed_probes_double_the_open_period():
    """Each failed probe opens it for twice as long, up to `reset_timeout_max`."""
    bench = Bench(fail_max=1, reset_timeout=1.0, reset_timeout_max=8.0)
    bench.trip()
    most = [bench.breaker._period]
    for _ in range(5):
        bench.probe(fault=True)
        most.append(bench.breaker._period)
    assert most == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_flapping_keeps_the_long_period_until_it_was_healthy():
    """I17: a new trip soon after closing doubles the period; after a healthy time it is as new."""
    bench = Bench(fail_max=1, reset_timeout=1.0, reset_timeout_max=30.0)
    bench.trip()
    bench.probe(fault=False)
    bench.now += 1
    bench.trip()
    assert bench.breaker._period == 2.0
    bench.probe(fault=False)
    bench.now += 31
    bench.trip()
    assert bench.breaker._period == 1.0
    bench.probe(fault=True)
    assert bench.breaker._period == 2.0


@pytest.mark.parametrize("fault", [True, False])
def test_a_late_result_moves_nothing(fault):
    """The result of an attempt admitted before the last change of state is ignored."""
    bench = Bench(fail_max=1)
    early = bench.breaker.permit
    bench.trip()
    assert not bench.settle(fault=fault, permit=early)
    assert bench.breaker.state == "open"
    bench.breaker.probe(bench.breaker.due)
    assert not bench.settle(fault=fault, permit=early)
    assert bench.breaker.state == "half-open"
    assert bench.breaker.probing(bench.now)


def test_a_cancelled_probe_returns_its_slot():
    """C22: a probe that is cancelled leaves the breaker half-open and its slot free."""
    bench = Bench(fail_max=1)
    bench.trip()
    permit = bench.breaker.probe(bench.breaker.due)
    bench.breaker.cancel(permit)
    assert bench.breaker.state == "half-open"
    assert not bench.breaker.probing(bench.now)


def test_a_probe_that_never_reports_is_given_up():
    """A lost probe holds its slot for a time, not for ever."""
    bench = Bench(fail_max=1)
    bench.trip()
    bench.breaker.probe(bench.now)
    assert bench.breaker.probing(bench.now + 29)
    assert not bench.breaker.probing(bench.now + 31)


def test_a_healthy_instance_costs_no_breaker():
    """The object of pybreaker is made at the first fault only."""
    bench = Bench()
    for _ in range(10):
        bench.settle(fault=False)
    assert bench.breaker._circuit is None
