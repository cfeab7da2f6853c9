"""The statistics that several packages share, against naive ones."""

import itertools
import math
import operator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbclient._internal.statistics import Ewma, SlidingWindow
from tests.support.interruptions import Interrupt, points

STEPS = st.one_of(
    st.floats(0, 0.3), st.floats(0, 3), st.sampled_from([0.0, 1.0, 5.0, 9.0, 10.0, 60.0, 600.0])
)
LENGTHS = st.sampled_from([0.5, 7.0, 10.0, 30.0])
PARTS = st.sampled_from([1, 3, 10, 24])
both = pytest.mark.parametrize("regular", [False, True])


def recount(events, kinds, wanted):
    """How many events (time, kind) there are of each kind whose time is wanted."""
    return [sum(kind == one and wanted(at) for at, one in events) for kind in range(kinds)]


@both
@settings(max_examples=200)
@given(
    steps=st.lists(st.tuples(STEPS, st.integers(0, 2)), max_size=60),
    length=LENGTHS,
    parts=PARTS,
    start=st.floats(0, 1e6),
)
def test_an_event_counts_for_the_window_or_one_slice_less(regular, steps, length, parts, start):
    """What is younger than the window without one slice is counted, what is older than the window
    is not; and there are never more slices than fit into the window, and one."""
    window = SlidingWindow(length, parts, 3, start=start if regular else None)
    now, events, blur = start, [], 1e-6
    for step, kind in steps:
        now += step
        events.append((now, kind))
        window.add(now, kind)
        assert len(window._slices) <= parts + 1
        young, old = length - length / parts - blur, length + blur
        least = recount(events, 3, lambda at, now=now, young=young: now - at < young)
        most = recount(events, 3, lambda at, now=now, old=old: now - at <= old)
        for low, count, high in zip(least, window.slide(now), most, strict=True):
            assert low <= count <= high


@settings(max_examples=200)
@given(steps=st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=80))
def test_slices_begin_with_events(steps):
    """Without a start, an event that no slice takes begins one; all of a slice is forgotten when
    that is as old as the window."""
    window = SlidingWindow(10.0, 10, 2)
    now, began, events = 100.0, -math.inf, []
    for step, kind in steps:
        now += step / 4
        if now >= began + 1:
            began = now
        events.append((began, kind))
        window.add(now, kind)
        assert window.slide(now) == recount(events, 2, lambda at, now=now: now - at < 10)


@settings(max_examples=200)
@given(steps=st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=80))
def test_slices_follow_each_other_from_a_start(steps):
    """With a start, an event belongs to the slice of its time since then; and since the first event
    after an empty window."""
    window = SlidingWindow(10.0, 10, 2, start=100.0)
    now, start, events = 100.0, 100.0, []
    for step, kind in steps:
        last = start + math.floor(now - start)
        now += step / 4
        if now - last >= 10:
            start = now
        events.append((start + math.floor(now - start), kind))
        window.add(now, kind)
        assert window.slide(now) == recount(events, 2, lambda at, now=now: now - at < 10)


@both
def test_a_clock_that_falls_back(regular):
    """C15: back by a slice or less, events are counted on; by more, all from before are forgotten,
    and do not count until the clock has caught up."""
    window = SlidingWindow(10.0, 10, 1, start=103.0 if regular else None)
    window.add(103.0)
    window.add(102.0)
    assert window.totals == [2]
    window.add(101.9)
    assert window.totals == [1]
    assert window.slide(200.0) == [0]
    window.add(102.0)  # into a slice that is forgotten
    assert window.slide(300.0) == [0]
    window = SlidingWindow(10.0, 10, 1)
    window.add(101.9)
    assert window.slide(111.8) == [1]
    assert window.slide(112.0) == [0]


@both
@example(
    length=0.046090816073278244,
    parts=3,
    start=0.046090816073278244,
    steps=[0.046090816073278244] * 2,
)
@given(
    length=st.floats(5e-324, 1e308),
    parts=PARTS,
    start=st.floats(-1e9, 1e9),
    steps=st.lists(st.floats(0, 1e3), max_size=20),
)
def test_a_clock_that_stands_begins_no_slices(regular, length, parts, start, steps):
    """K4, S7: of any length, and at any time, a window keeps no more than its slices of the events
    of one moment, and counts them all."""
    window = SlidingWindow(length, parts, 1, start=start if regular else None)
    for now in itertools.accumulate(steps, initial=start):
        before = window.totals[0]
        window.add(now)
        first = window.totals[0]
        assert 1 <= first <= before + 1
        for _ in range(100):
            window.add(now)
        assert window.totals == [first + 100]
        assert len(window._slices) <= parts + 2


@both
def test_an_exception_from_a_signal_handler_leaves_the_counts_right(regular):
    """C4: interrupted anywhere, a window still counts what is in its slices, and counts on."""
    windows = []

    def prepare():
        windows.append(window := SlidingWindow(10.0, 10, 2, start=0.0 if regular else None))

        def work():
            for at in range(0, 24, 3):
                window.add(at * 0.7, at & 1)
                window.slide(at * 0.7)
            window.add(0.0)

        return work

    seen = 0
    for _ in points(prepare, Interrupt):
        seen, window = seen + 1, windows[-1]
        assert window.totals == [sum(counts) for counts in zip(*_kept(window), strict=True)]
        window.add(1000.0, 1)
        assert window.totals == [0, 1]
    assert seen > 50


def _kept(window):
    return [counts for _, counts in window._slices] or [[0, 0]]


SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(samples=SAMPLES, gain=st.floats(0.01, 1.0), start=st.none() | st.floats(0, 1e6))
def test_the_weight_of_a_sample_falls_with_each_later_one(samples, gain, start):
    """A sample has the weight `gain`, and less by that part with each later one; the rest is the
    start's, or without a start the first sample's."""
    average = Ewma(gain, start)
    for sample in samples:
        average.record(sample)
    first, *later = samples if start is None else [start, *samples]
    weights = [gain * (1 - gain) ** age for age in range(len(later))]
    naive = sum(map(operator.mul, reversed(later), weights)) + first * (1 - gain) ** len(later)
    assert average.value == pytest.approx(naive, abs=1e-6)


@given(samples=SAMPLES, gain=st.floats(0.0, 1.0))
def test_an_average_stays_between_its_samples(samples, gain):
    """No average is outside of its samples, but for rounding; without any, there is none."""
    average = Ewma(gain, None)
    assert average.value is None
    for sample in samples:
        average.record(sample)
    assert average.value <= max(samples) or average.value == pytest.approx(max(samples))
    assert average.value >= min(samples) or average.value == pytest.approx(min(samples))
