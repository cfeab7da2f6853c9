"""Client-side throttling: a service that refuses most calls is sent fewer."""

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.resilience.throttle import Throttle, ThrottlePolicy


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"k": 0.9}, "k must"),
        ({"k": float("inf")}, "k must"),
        ({"window": 0}, "window"),
        ({"window": float("nan")}, "window"),
        ({"most": 0}, "most"),
        ({"most": 1.01}, "most"),
        ({"minimum_calls": 0}, "minimum_calls"),
    ],
)
def test_policy_is_checked(wrong, named):
    """K4: an invalid policy is refused at construction by an error that names the argument."""
    with pytest.raises(ValueError, match=named):
        ThrottlePolicy(**wrong)


def told(policy, accepts, refusals, now=0.0):
    throttle = Throttle(policy)
    for _ in range(accepts):
        throttle.accepted(now)
    for _ in range(refusals):
        throttle.refused(now)
    return throttle


@pytest.mark.parametrize(
    ("accepts", "refusals", "chance"),
    [
        (0, 0, 0.0),
        (100, 0, 0.0),
        (50, 50, 0.0),
        (25, 75, 50 / 101),
        (10, 90, 80 / 101),
        (1, 10, 9 / 12),
        (0, 9, 0.0),
        (0, 10, 0.9),
    ],
)
def test_the_formula(accepts, refusals, chance):
    """The chance is (requests - k * accepts) / (requests + 1), not below 0, not above `most`, and 0
    with fewer than ten requests."""
    assert told(ThrottlePolicy(), accepts, refusals).chance(1.0) == pytest.approx(chance)


def test_k_is_how_much_more_is_sent():
    """With a larger k, more refusals are needed."""
    assert told(ThrottlePolicy(k=4), 25, 75).chance(1.0) == 0
    assert told(ThrottlePolicy(k=1), 25, 75).chance(1.0) == 75 / 101


def test_what_fails_here_counts_as_a_request():
    """Calls that the throttle refuses count as requests, so that the chance follows the demand."""
    throttle, rng = told(ThrottlePolicy(minimum_calls=1), 0, 3), random.Random(1)
    while throttle.admits(0.0, rng):
        assert throttle.chance(0.0) == 3 / 4
    assert throttle.chance(0.0) == 4 / 5


def test_calls_under_way_are_not_held_against_the_service():
    """A thousand calls that start together, before any is answered, all go through."""
    throttle, rng = Throttle(ThrottlePolicy()), random.Random(1)
    assert all(throttle.admits(0.0, rng) for _ in range(1000))
    for _ in range(1000):
        throttle.accepted(0.5)
    assert all(throttle.admits(0.5, rng) for _ in range(1000))


def test_a_service_that_accepts_throws_no_dice():
    """While the service accepts, no random number is drawn: other decisions keep theirs."""
    rng = random.Random(1)
    before = rng.getstate()
    assert told(ThrottlePolicy(), 10, 10).admits(0.0, rng)
    assert rng.getstate() == before


def test_the_window_slides():
    """Counts older than the window are dropped; newer ones count fully."""
    throttle = told(ThrottlePolicy(minimum_calls=1), 0, 100, now=0.0)
    for _ in range(60):
        throttle.accepted(60.0)
    assert throttle.chance(119.9) == 40 / 161
    assert throttle.chance(120.0) == 0.0
    throttle.refused(120.0)
    assert throttle.chance(180.0) == 1 / 2  # the refusal alone
    assert throttle.chance(240.0) == 0.0


def test_a_window_overslept_is_empty():
    """C26: after the process was stopped, no earlier count applies."""
    throttle = told(ThrottlePolicy(), 0, 1000)
    assert throttle.chance(600.0) == 0.0
    assert not throttle._window._slices
    throttle.accepted(600.0)
    assert throttle._window.totals == [1, 0]


def test_the_state_stays_small():
    """S7: however many outcomes are counted, in one window or in many, no single outcome is
    stored."""
    for step in (0.001, 1.0):
        throttle = Throttle(ThrottlePolicy())
        for n in range(5000):
            throttle.accepted(n * step)
        assert len(throttle._window._slices) <= 25


@given(
    steps=st.lists(
        st.tuples(st.floats(0.0, 5.0) | st.floats(0.0, 90.0), st.booleans()), max_size=200
    ),
    k=st.floats(1.0, 5.0),
    most=st.floats(0.01, 1.0),
)
def test_the_counts_are_those_of_the_window(steps, k, most):
    """In every case the counts lie between those of the window and of the window less one slice,
    the chance lies between 0 and `most`, and there are at most 25 slices."""
    window, now, log = 120.0, 0.0, []
    throttle = Throttle(ThrottlePolicy(k, window, most))
    for step, accepts in steps:
        now += step
        log.append((now, accepts))
        (throttle.accepted if accepts else throttle.refused)(now)
        assert 0.0 <= throttle.chance(now) <= most
        inner = [one for at, one in log if at > now - window + window / 24]
        outer = [one for at, one in log if at > now - window]
        assert len(inner) <= sum(throttle._window.totals) <= len(outer)
        assert sum(inner) <= throttle._window.totals[0] <= sum(outer)
        assert len(throttle._window._slices) <= 25


class Service:
    """Accepts this many calls a second, refuses the others, and answers after a time."""

    def __init__(self, policy, seed=1, latency=0.2):
        self.throttle = Throttle(policy)
        self.rng = random.Random(seed)
        self.latency = latency
        self.now = 0.0
        self._answers = deque()

    def run(self, seconds, *, demand, capacity):
        """The share of the demand that was sent, and the share that was accepted."""
        sent = accepted = room = 0
        ticks = int(seconds * demand)
        for _ in range(ticks):
            self.now += 1 / demand
            room = min(room + capacity / demand, capacity)
            while self._answers and self._answers[0][0] <= self.now:
                tell = (
                    self.throttle.accepted if self._answers.popleft()[1] else self.throttle.refused
                )
                tell(self.now)
            if self.throttle.admits(self.now, self.rng):
                good = room >= 1
                room -= good
                sent, accepted = sent + 1, accepted + good
                self._answers.append((self.now + self.latency, good))
        return sent / ticks, accepted / ticks


def test_a_service_that_has_enough_is_left_alone():
    """A service that accepts everything, or all but a third, is sent everything."""
    for capacity in (100, 70):
        assert Service(ThrottlePolicy()).run(300, demand=100, capacity=capacity)[0] == 1.0


def test_an_overloaded_service_is_sent_twice_what_it_accepts():
    """I16: with a demand of ten times the capacity, the service is sent k times its capacity, not
    ten times, and still accepts all it can."""
    service = Service(ThrottlePolicy(k=2.0))
    service.run(240, demand=100, capacity=10)
    sent, accepted = service.run(240, demand=100, capacity=10)
    assert sent == pytest.approx(0.2, abs=0.02)
    assert accepted == pytest.approx(0.1, abs=0.01)


def test_an_outage_is_found_to_be_over():
    """I16: in an outage a tenth is still sent, and two windows after its end everything."""
    service = Service(ThrottlePolicy())
    service.run(300, demand=50, capacity=100)
    service.run(240, demand=50, capacity=0)
    sent, _ = service.run(60, demand=50, capacity=0)
    assert sent == pytest.approx(0.1, abs=0.02)
    service.run(240, demand=50, capacity=100)
    assert service.run(60, demand=50, capacity=100)[0] == 1.0
