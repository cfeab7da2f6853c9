"""The sliding window of a breaker: compared with a simple model, and with clocks that jump."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbclient import BreakerPolicy
from lbclient.endpoint.breaker import Window

ANY = BreakerPolicy(failure_rate=0.5)
STEPS = st.one_of(
    st.floats(0, 0.3), st.floats(0, 3), st.sampled_from([0.0, 1.0, 5.0, 9.0, 10.0, 60.0, 600.0])
)
ENDS = st.lists(st.tuples(STEPS, st.booleans(), st.booleans()), max_size=80)


def counts(window):
    return window.calls, window.faults, window.slow


def recount(ends, wanted):
    """The same three counts, for the ends (time, fault, slow) in this period."""
    known = [one for one in ends if wanted(one[0])]
    return len(known), sum(fault for _, fault, _ in known), sum(slow for *_, slow in known)


def fill(window, now, calls=5):
    for _ in range(calls):
        window.add(now, fault=True, slow=True)


@settings(max_examples=300)
@given(steps=ENDS, length=st.sampled_from([0.5, 7.0, 10.0, 30.0]), start=st.floats(0, 1e6))
@example(steps=[(step, False, False) for step in (0.0, 1.0, 9.0, 0.25)], length=10.0, start=1.5e-45)
def test_what_is_younger_counts_and_what_is_older_does_not(steps, length, start):
    """Calls of the last nine tenths of the window are counted, and those older than the window are
    not."""
    window = Window(BreakerPolicy(failure_rate=0.5, window=length), start)
    now, ends, blur = start, [], 1e-6
    for step, fault, slow in steps:
        now += step
        ends.append((now, fault, slow))
        window.add(now, fault=fault, slow=slow)
        young = recount(ends, lambda at, now=now: now - at < 0.9 * length - blur)
        all_young = recount(ends, lambda at, now=now: now - at <= length + blur)
        for least, counted, most in zip(young, counts(window), all_young, strict=True):
            assert least <= counted <= most


@settings(max_examples=300)
@given(steps=st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.booleans()), max_size=80))
def test_counts_equal_a_naive_recount_by_slices(steps):
    """A call counts in the slice of its time and in the following nine, and in no other."""
    window = Window(ANY, 100.0)
    now, first, ends = 100.0, 100.0, []
    for step, fault, slow in steps:
        last_slice = first + math.floor(now - first)
        now += step / 4
        if now - last_slice >= 10:
            first = now  # the slices begin anew with the first call after an empty window
        ends.append((now, fault, slow))
        window.add(now, fault=fault, slow=slow)
        oldest = math.floor(now - first) - 9
        known = recount(ends, lambda at, first=first, oldest=oldest: at - first >= oldest)
        assert counts(window) == known


@pytest.mark.parametrize("leap", [10.0, 15.0, 20.0, 100.0, 600.0, 1e9])
def test_a_leap_of_the_clock_forgets_all(leap):
    """C26: after a stop of the process as long as the window, no earlier call is counted."""
    window = Window(ANY, 100.0)
    fill(window, 100.5)
    window.add(100.5 + leap, fault=False, slow=False)
    assert counts(window) == (1, 0, 0)


def test_a_clock_that_falls_back_forgets_all():
    """C15: if the clock is set back, old calls do not stay counted until it has caught up."""
    window = Window(ANY, 5000.0)
    fill(window, 5000.0)
    window.add(1000.0, fault=False, slow=False)
    assert counts(window) == (1, 0, 0)
    window.add(1009.5, fault=False, slow=False)
    assert counts(window) == (2, 0, 0)


def test_a_step_back_within_a_slice_changes_nothing():
    """A clock that goes back by less than a slice does not matter."""
    window = Window(ANY, 100.0)
    fill(window, 103.0)
    window.add(102.5, fault=False, slow=False)
    assert counts(window) == (6, 5, 5)


def test_a_clock_that_stands_still_counts_on():
    """While the clock stands, all calls have the same time; when it moves on, they expire
    together."""
    window = Window(ANY, 100.0)
    fill(window, 100.0, calls=10_000)
    assert counts(window) == (10_000,) * 3
    window.add(109.99, fault=False, slow=False)
    assert counts(window) == (10_001, 10_000, 10_000)
    window.add(110.0, fault=False, slow=False)
    assert counts(window) == (2, 0, 0)


def test_its_memory_is_fixed():
    """However many calls there are, the window's size is constant."""
    window = Window(ANY, 0.0)
    sizes = set()
    for at in range(5000):
        window.add(at * 0.07, fault=True, slow=True)
        sizes.add(len(window._window._slices))
    assert sizes == set(range(1, 11))
    assert not hasattr(window, "__dict__")


@pytest.mark.parametrize("length", [5e-324, 1e-9, 1e308])
def test_the_shortest_and_the_longest(length):
    """K4: any length that the policy accepts works."""
    window = Window(BreakerPolicy(failure_rate=0.5, window=length), 0.0)
    for at in (0.0, 0.1, 1e6, 1e6):
        window.add(at, fault=False, slow=False)
    assert window.calls == (4 if length > 1 else 2)


@pytest.mark.parametrize(
    ("rates", "faults", "slow", "tripped"),
    [
        ({"failure_rate": 0.07}, 6, 100, False),
        ({"failure_rate": 0.07}, 7, 0, True),  # 0.07 * 100 is more than 7 in floats
        ({"failure_rate": 1.0}, 99, 100, False),
        ({"failure_rate": 1.0}, 100, 0, True),
        ({"slow_rate": 0.29, "slow_after": 1.0}, 100, 28, False),
        ({"slow_rate": 0.29, "slow_after": 1.0}, 0, 29, True),
        ({"failure_rate": 0.5, "slow_rate": 0.5, "slow_after": 1.0}, 49, 49, False),
    ],
)
def test_a_rate_that_is_reached_trips(rates, faults, slow, tripped):
    """A rate opens the breaker when it is reached exactly, of faults and of slow calls."""
    window = Window(BreakerPolicy(minimum_calls=100, **rates), 0.0)
    for place in range(100):
        assert not window.tripped
        window.add(1.0, fault=place < faults, slow=place < slow)
    assert window.tripped is tripped


def test_calls_that_outslept_a_standstill():
    """C26: after a minute in which no call ended, a call that took longer than a minute does not
    count."""
    window = Window(ANY, 100.0)
    assert not window.outslept(101.0, 0.5)
    assert window.outslept(701.0, 600.5), "in flight while the process stood"
    assert window.outslept(701.2, 600.1), "so was this, which ends second"
    assert not window.outslept(701.3, 0.2), "began afterwards"
    assert window.outslept(720.0, 619.5), "in flight then, and ends much later"
    assert not window.outslept(780.0, 59.0), "not yet a minute old"


def test_a_call_that_hangs_while_others_end_is_no_standstill():
    """A minute-long call counts if others ended in that minute, since the clock was running."""
    window = Window(ANY, 100.0)
    for now in range(110, 300, 30):
        assert not window.outslept(float(now), 1.0)
    assert not window.outslept(300.0, 190.0)
