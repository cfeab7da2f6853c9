"""The adaptive limit: it rises while it is reached and calls succeed, and falls when they are
rejected."""

import math
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.resilience.concurrency_limit import AdaptiveLimit, LearnedLimit


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"initial": 0}, "initial"),
        ({"least": 0}, "least"),
        ({"most": 0}, "most"),
        ({"initial": 5, "least": 6}, "between least"),
        ({"initial": 50, "most": 49}, "between least"),
        ({"backoff": 0}, "backoff"),
        ({"backoff": 1}, "backoff must be below 1"),
        ({"backoff": 1.5}, "backoff"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"tolerance": -1}, "tolerance"),
    ],
)
def test_policy_is_checked(wrong, named):
    """K4, K8: an invalid limit is refused at construction by an error that names the argument."""
    with pytest.raises(ValueError, match=named):
        AdaptiveLimit(**wrong)


def test_policy_wants_whole_numbers():
    """K4: half an attempt is not a valid limit."""
    for name in ("initial", "least", "most"):
        with pytest.raises(TypeError, match=f"^{name} "):
            AdaptiveLimit(**{name: 20.5})


def test_full_counts_whole_attempts():
    """I24: a limit of 4.9 allows four; None stands for `initial`."""
    policy = AdaptiveLimit(initial=20)
    assert [policy.full(4.9, n) for n in (3, 4, 5)] == [False, True, True]
    assert [policy.full(4.0, n) for n in (3, 4)] == [False, True]
    assert [policy.full(None, n) for n in (19, 20)] == [False, True]
    assert [policy.full(1.0, n) for n in (0, 1)] == [False, True]


def test_it_grows_where_it_was_nearly_reached():
    """A success adds 1/limit if at least `backoff` of the limit was in flight, otherwise
    nothing."""
    policy = AdaptiveLimit(initial=4)
    assert policy.grown(None, 2) == 4
    assert policy.grown(None, 3) == pytest.approx(4.25)
    assert policy.grown(4.0, 4) == pytest.approx(4.25)


@pytest.mark.parametrize(("limit", "added"), [(1, 1.0), (4, 1.0), (16, 2.0), (100, 5.0)])
def test_a_full_round_adds_half_the_root(limit, added):
    """As many successes as the limit holds raise it by one, or by half its square root."""
    policy, grown = AdaptiveLimit(), float(limit)
    for _ in range(limit):
        grown = policy.grown(grown, limit)
    assert grown - limit == pytest.approx(added, rel=0.06)


def test_a_queued_answer_takes_what_another_adds():
    """If the limit is reached, an answer that has waited in a queue lowers it by one step, down to
    `least`; otherwise not."""
    policy = AdaptiveLimit(least=3, tolerance=2.0)
    assert policy.slowed(None, 18) == pytest.approx(20 - (policy.grown(None, 18) - 20))
    assert policy.slowed(None, 17) == 20
    assert policy.slowed(3.1, 3) == 3


def test_what_stood_in_a_queue():
    """An answer counts as queued above `tolerance` times the baseline; without either, never."""
    policy = AdaptiveLimit(tolerance=2.0)
    assert [policy.queued(seconds, 0.1) for seconds in (0.2, 0.21)] == [False, True]
    assert not policy.queued(9.0, None)
    assert not AdaptiveLimit().queued(9.0, 0.1)


def test_calm_is_who_was_sent_to_a_half_idle_instance():
    """The baseline takes a tenth of each answer that was sent while at most half the limit was in
    flight, itself included, and nothing of others; a limit of one always counts."""
    policy = AdaptiveLimit(tolerance=2.0)
    assert policy.sets_baseline(9, None)
    assert not policy.sets_baseline(10, None)
    assert policy.sets_baseline(9, 20.0)
    assert not policy.sets_baseline(10, 20.0)
    assert policy.sets_baseline(0, 1.0)
    assert not policy.sets_baseline(1, 2.9)
    baseline = LearnedLimit().baseline_latency
    assert baseline.value is None
    baseline.record(0.1)
    assert baseline.value == 0.1
    baseline.record(0.2)
    assert baseline.value == pytest.approx(0.11)


def test_it_falls_by_a_tenth_to_a_whole_number():
    """A rejected attempt takes a tenth, down to a whole number, and to `least`."""
    policy, limits = AdaptiveLimit(), [20.9]
    while limits[-1] > 1:
        limits.append(policy.shrunk(limits[-1]))
    assert limits == [20.9, 18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert policy.shrunk(1.0) == 1
    assert policy.shrunk(None) == 18


@given(
    bounds=st.lists(st.integers(1, 2000), min_size=3, max_size=3).map(sorted),
    backoff=st.floats(0.01, 0.99),
    outcomes=st.lists(st.tuples(st.booleans(), st.integers(1, 2500)), max_size=60),
)
def test_it_keeps_its_bounds(bounds, backoff, outcomes):
    """In every case the limit stays between `least` and `most`, no success lowers it or raises it
    by more than one or half its root, and two rejections take at least one slot, down to
    `least`."""
    least, initial, most = bounds
    policy = AdaptiveLimit(initial, least, most, backoff)
    limit = None
    for dropped, in_flight in outcomes:
        old = initial if limit is None else limit
        limit = policy.shrunk(limit) if dropped else policy.grown(limit, in_flight)
        assert least <= limit <= most
        if dropped:
            assert limit < old or limit == least
            assert policy.shrunk(limit) <= math.floor(old) - 1 or limit == least
        else:
            assert old <= limit <= old + max(1, math.sqrt(old) / 2)
        assert not policy.full(limit, 0)
        assert policy.full(limit, math.floor(limit))


class Server:
    """Serves so many attempts at once, each for one tick, and sends the others away.

    A client that always has more to send holds the adaptive limit.
    """

    def __init__(self, policy):
        self.policy = policy
        self.limit = None

    def run(self, capacity, ticks):
        """The share of the capacity that was used, and the share of attempts that were rejected."""
        served = dropped = 0
        for _ in range(ticks):
            flying = 0
            while not self.policy.full(self.limit, flying):
                flying += 1
            ends = deque(place >= capacity for place in range(flying))
            while ends:
                in_flight, drop = len(ends), ends.popleft()
                if drop:
                    self.limit = self.policy.shrunk(self.limit)
                else:
                    self.limit = self.policy.grown(self.limit, in_flight)
                served, dropped = served + (not drop), dropped + drop
        return served / (capacity * ticks), dropped / (served + dropped)


@pytest.mark.parametrize("capacity", [5, 10, 40, 200])
def test_it_finds_what_a_server_can_bear(capacity):
    """I13: with a server that serves C at once and rejects the rest with 429, nearly all of C is
    used and few are rejected, whatever C is."""
    server = Server(AdaptiveLimit())
    server.run(capacity, 2000)
    used, dropped = server.run(capacity, 1000)
    assert used > 0.85
    assert dropped < 0.05


def test_it_follows_a_server_that_changes():
    """I15, I18: when the server can serve less, the limit is down within a hundred rounds; when it
    can serve more, the limit rises by one slot per round."""
    server = Server(AdaptiveLimit())
    server.run(40, 2000)
    server.run(10, 100)
    assert server.limit < 12
    assert server.run(10, 500)[1] < 0.05
    server.run(40, 400)
    assert server.limit > 35


def test_without_it_a_server_that_sheds_is_flooded():
    """The rule is what helps: with a fixed limit of 20, half of the attempts are rejected by a
    server with room for ten."""
    assert Server(AdaptiveLimit(20, 20, 20)).run(10, 100) == (1.0, 0.5)


class Learner:
    """One instance whose limit is learned, with the test's own clock."""

    def __init__(self, **policy):
        self.policy = AdaptiveLimit(**{"backoff": 0.5} | policy)
        self.learned, self.limit, self.now = LearnedLimit(), None, 0.0
        self.rng = random.Random(1)

    def reject(self, in_flight=20, started=None, elapsed=0.1):
        self.limit = self.learned.rejected(
            self.policy,
            self.limit,
            in_flight,
            started=self.now if started is None else started,
            elapsed=elapsed,
            now=self.now,
            rng=self.rng,
        )
        return self.limit

    def serve(self, in_flight=20, *, queued=False):
        self.limit = self.learned.served(self.policy, self.limit, in_flight, queued=queued)
        return self.limit

    def congested(self, limit):
        """A learned limit after slow start, at this value, with no recent rejections."""
        self.serve(0, queued=True)
        for _ in range(200):
            self.serve(0)
        self.limit = float(limit)
        return self


def test_the_first_attempts_rejected_halve_it():
    """An instance that rejects everything gets fewer attempts at once: each round halves the limit,
    starting from what is in flight."""
    learner = Learner(initial=20)
    assert learner.reject(in_flight=20) == 10
    learner.now += 1
    assert learner.reject(in_flight=10) == 5
    spare = Learner(initial=20)
    assert spare.reject(in_flight=4) == 2


def test_a_share_rejected_takes_that_share():
    """After one rejection among many successes the limit falls by a little, not by half."""
    learner = Learner().congested(40)
    learner.now += 1
    assert 38 < learner.reject(in_flight=40) < 40


@pytest.mark.parametrize(("served", "limit"), [(0, 10.0), (1, 20 - 10 * 2 / 3), (2, 20), (3, 20)])
def test_the_share_is_a_mean_that_starts_at_one(served, limit):
    """A rejection after this many successes counts with the mean of all outcomes and one rejection
    more. Until slow start has ended it is taken for chance unless this is more than half."""
    learner = Learner(initial=20)
    for _ in range(served):
        learner.serve(0)
    assert learner.reject(20) == pytest.approx(limit)


def test_an_attempt_sent_after_a_decrease_begins_a_round():
    """A rejected attempt that was sent at the time of the last decrease, or later, lowers the limit
    once more."""
    learner = Learner(initial=40)
    assert learner.reject(40) == 20
    assert learner.reject(20, started=learner.now) == 10


def test_few_slots_are_lost_one_by_one():
    """Up to a limit of four a rejection takes a whole slot, however few attempts are rejected;
    above it takes their share."""
    assert Learner().congested(4).reject(4) == 3
    assert 4 < Learner().congested(4.5).reject(4) < 4.5


def test_one_round_lowers_it_once():
    """Rejections of attempts that were sent before the last decrease belong to it: all rejections
    of a round together take at most half."""
    learner = Learner().congested(40)
    learner.now += 1
    for in_flight in range(40, 0, -1):
        learner.reject(in_flight, started=0.5)
    assert 20 <= learner.limit < 28


def test_rejections_by_chance_do_not_end_slow_start():
    """As long as one attempt in twenty is rejected, the limit grows by 30 % per round."""
    learner, rng = Learner(initial=20), random.Random(2)
    for _ in range(3):
        in_flight = int(learner.limit or 20)
        for _ in range(in_flight):
            if rng.random() < 0.05:
                learner.reject(in_flight)
            else:
                learner.serve(in_flight)
        learner.now += 0.1
    assert learner.limit == pytest.approx(20 * 1.285**3, rel=0.1)


@pytest.mark.parametrize("congestion", ["rejected", "queued"])
def test_congestion_ends_slow_start(congestion):
    """After the first congestion, a round adds half the square root of the limit."""
    learner = Learner(initial=16)
    if congestion == "queued":
        learner.serve(0, queued=True)
    else:
        for _ in range(16):
            learner.reject(16)
        learner.limit, learner.learned._level = 16.0, 0
    for _ in range(16):
        learner.serve(16)
    assert learner.limit == pytest.approx(18, abs=0.2)


def test_a_rejected_level_is_earned():
    """Below four, a rejected level is tried again after one round of successes, then after two,
    then four..."""
    learner = Learner().congested(2)
    waits = []
    for _ in range(5):
        learner.now += 1
        assert learner.reject(2) == 1
        rounds = 0
        while learner.limit < 2:
            learner.serve(1)
            rounds += 1
        waits.append(rounds)
    assert waits == sorted(waits)
    assert waits[-1] >= 2 * waits[0] >= 2
    assert waits[-1] >= 16


def until(learner, limit, in_flight):
    """The successes until the limit is reached."""
    successes = 0
    while learner.limit < limit:
        learner.serve(in_flight)
        successes += 1
    return successes


def held(learner, level, in_flight):
    """The successes by which a rejected level is reached later than without any hold."""
    grown, free = learner.limit, 0
    while grown < level:
        grown, free = learner.policy.grown(grown, in_flight), free + 1
    return until(learner, level, in_flight) - free


def test_a_level_is_held_for_the_rejected_share():
    """A rejected level is tried again after 64 successes times the rejected share: two after one
    rejection among many successes."""
    learner = Learner().congested(40)
    learner.now += 1
    assert learner.reject(40) < 40
    assert 1 <= held(learner, 40, 40) <= 3


def test_the_wait_doubles_up_to_64_rounds():
    """Below four, each rejected probe of the same level doubles the wait, up to 64 rounds."""
    learner, waits = Learner().congested(2), []
    for _ in range(9):
        learner.now += 1
        learner.reject(2)
        waits.append(until(learner, 2, 1))
    assert waits[4:] == [16, 32, 64, 64, 64]


def test_a_level_that_was_passed_is_forgotten():
    """Once the limit is one above a rejected level, a new rejection begins with the shortest
    wait."""
    learner = Learner().congested(2)
    for _ in range(5):
        learner.now += 1
        learner.reject(2)
        until(learner, 2, 1)
    until(learner, 3, 3)
    learner.congested(learner.limit)
    learner.now += 1
    assert learner.reject(3) == 2
    assert held(learner, 3, 3) <= 4


def test_a_wait_below_four_ends_above():
    """Above four a rejected level is held for the rejected share only, even if one below it had to
    wait."""
    learner = Learner().congested(4)
    learner.now += 1
    assert learner.reject(4) == 3
    until(learner, 4, 4)
    learner.congested(4.5)
    learner.now += 1
    assert 4 < learner.reject(4) < 4.5
    assert held(learner, 5, 5) <= 2


def test_a_lower_level_has_waited_for_nothing():
    """A rejection at a lower level than the last one begins with the shortest wait."""
    learner = Learner().congested(4)
    learner.now += 1
    assert learner.reject(4) == 3
    until(learner, 4, 4)
    learner.congested(3)
    learner.now += 1
    assert learner.reject(3) == 2
    assert held(learner, 3, 3) <= 2


def test_a_single_attempt_that_is_rejected_pauses():
    """With one attempt in flight, each rejection in a row pauses the instance for twice as long,
    with a jitter of one half, up to ten seconds; a success leaves a quarter of that."""
    learner = Learner().congested(1)
    pauses = []
    for _ in range(9):
        learner.now = learner.learned.paused_until + 0.1
        assert learner.reject(1) == 1
        pauses.append(learner.learned.paused_until - learner.now)
    expected = [min(10.0, 0.1 * 2**number) for number in range(9)]
    assert all(0.5 * one <= got <= 1.5 * one for one, got in zip(expected, pauses, strict=True))
    learner.now += 100
    learner.serve(1)
    learner.limit = 1.0
    learner.reject(1)
    assert 2.5 <= learner.learned.paused_until - learner.now <= 7.5


def test_successes_shorten_the_next_pause():
    """Each success leaves a quarter of the pause that a rejection then doubles: three after the
    longest pause leave a third of a second."""
    learner = Learner().congested(1)
    for _ in range(9):
        learner.now = learner.learned.paused_until + 0.1
        learner.reject(1)
    for _ in range(3):
        learner.serve(1)
    learner.limit = 1.0
    learner.now = learner.learned.paused_until + 0.1
    learner.reject(1)
    assert 0.15 < learner.learned.paused_until - learner.now < 0.5


def test_attempts_sent_before_a_pause_do_not_lengthen_it():
    """Rejections of attempts that were in flight when the pause began do not lengthen it."""
    learner = Learner().congested(1)
    learner.now = 1.0
    learner.reject(1)
    until = learner.learned.paused_until
    learner.now = 1.05
    learner.reject(1, started=0.9)
    assert learner.learned.paused_until == until
    learner.learned.resume()
    assert learner.learned.paused_until == 0


@given(
    bounds=st.lists(st.integers(1, 200), min_size=3, max_size=3).map(sorted),
    outcomes=st.lists(
        st.tuples(st.sampled_from(["rejected", "served", "queued"]), st.integers(1, 300)),
        max_size=80,
    ),
)
def test_what_is_learned_keeps_its_bounds(bounds, outcomes):
    """Whatever the outcomes, the limit stays between `least` and `most`, no rejection raises it,
    and no success without a queue lowers it."""
    least, initial, most = bounds
    learner = Learner(initial=initial, least=least, most=most)
    for outcome, in_flight in outcomes:
        before = initial if learner.limit is None else learner.limit
        learner.now += 0.01
        if outcome == "rejected":
            assert least <= learner.reject(in_flight) <= before
        else:
            after = learner.serve(in_flight, queued=outcome == "queued")
            assert least <= after <= most
            assert after >= before or outcome == "queued"
