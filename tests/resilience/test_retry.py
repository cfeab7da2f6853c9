"""The retry budget and the delays, with the test's own clock."""

import random

import pytest

from lbclient import RetryBudget, RetryPolicy, Verdict
from lbclient.resilience.retry import RetryController, RetryRules, RetryState
from lbclient.resilience.retry_budget import Budget


def turn(**changes):
    known = {
        "verdict": Verdict(fault=True, again="idempotent"),
        "now": 0.0,
        "repeatable": True,
        "replayable": True,
        "deadline": None,
        "pause": 0.0,
    }
    return RetryState(**{**known, **changes})


def delays(policy, count, seed=1, **changes):
    turns = RetryController(RetryRules(policy, random.Random(seed)))
    return [turns.delay(turn(**changes)) for _ in range(count)]


def test_attempts_counts_the_first():
    """`attempts=3` is two retries."""
    assert [delay is None for delay in delays(RetryPolicy(attempts=3), 3)] == [False, False, True]


@pytest.mark.parametrize(
    ("reason", "policy", "changes"),
    [
        ("attempts", {"attempts": 1}, {}),
        ("deadline", {"backoff": 0.0}, {"now": 1.0, "deadline": 1.4, "pause": 0.5}),
        ("budget", {"budget": RetryBudget(ratio=0, reserve=0)}, {}),
        ("method", {}, {"repeatable": False}),
        ("body", {}, {"replayable": False}),
    ],
)
def test_the_reason_of_an_end(reason, policy, changes):
    """A final outcome tells why there is no retry."""
    asked = turn(**changes)
    retries = RetryRules(RetryPolicy(**policy), random.Random(1))
    assert RetryController(retries).delay(asked) is None
    assert asked.stopped == reason


def test_a_delay_up_to_the_deadline_is_too_long():
    """C16: a delay that ends at the deadline leaves no time for an attempt; a shorter one does."""
    policy = RetryPolicy(backoff=0.0)
    assert delays(policy, 1, now=1.0, deadline=1.5, pause=0.5) == [None]
    assert delays(policy, 1, now=1.0, deadline=1.5, pause=0.25) == [0.25]


def test_full_jitter():
    """C21: delays are uniform between 0 and min(backoff_max, backoff * 2**n)."""
    policy = RetryPolicy(attempts=6, backoff=0.1, backoff_max=0.5)
    columns = list(zip(*[delays(policy, 5, seed) for seed in range(2000)], strict=True))
    for column, bound in zip(columns, [0.1, 0.2, 0.4, 0.5, 0.5], strict=True):
        deciles = [0] * 10
        for delay in column:
            deciles[int(delay / bound * 10)] += 1
        assert all(140 < decile < 260 for decile in deciles)


def test_what_was_never_sent_is_tried_at_once():
    """The first retry of an attempt that was never sent has no delay; the second has."""
    first, second, _ = delays(RetryPolicy(), 3, verdict=Verdict(fault=True, again="always"))
    assert first == 0.0
    assert second > 0.0


def test_a_rejected_call_goes_to_another_instance_at_once():
    """The first retry of a rejected call that was not processed has no delay, unless there is only
    one instance."""
    verdict = Verdict(fault=False, again="always", rejected=True)
    assert delays(RetryPolicy(), 1, verdict=verdict) == [0.0]
    assert delays(RetryPolicy(), 1, verdict=verdict, alone=True)[0] > 0.0


def test_a_retry_of_a_rejected_call_takes_from_the_budget():
    """A rejected call that was not processed has still cost its instance a request."""
    retries = RetryRules(RetryPolicy(), random.Random(1))
    before = retries.budget.balance(0.0)
    verdict = Verdict(fault=False, again="always", rejected=True)
    RetryController(retries).delay(turn(verdict=verdict, unsent=verdict.never_sent(None)))
    assert retries.budget.balance(0.0) == before - 1


def test_back_off_comes_first_where_the_verdict_says_so():
    """I22: without file descriptors, even a retry of an attempt that was never sent waits."""
    verdict = Verdict(fault=False, again="always", backoff=True)
    assert delays(RetryPolicy(), 1, verdict=verdict)[0] > 0.0


@pytest.mark.parametrize(
    ("again", "repeatable", "goes_on"),
    [
        ("never", True, False),
        ("idempotent", True, True),
        ("idempotent", False, False),
        ("always", True, True),
        ("always", False, True),
    ],
)
def test_who_may_go_on(again, repeatable, goes_on):
    """A call that may have been carried out is repeated only if it is idempotent."""
    verdict = Verdict(fault=True, again=again)
    (delay,) = delays(RetryPolicy(), 1, verdict=verdict, repeatable=repeatable)
    assert (delay is not None) is goes_on


def test_a_body_that_cannot_be_replayed_ends_it():
    """C11: if its body cannot be sent again, a call is not retried."""
    assert delays(RetryPolicy(), 1, replayable=False) == [None]


def test_a_delay_that_would_overrun_the_deadline_ends_it():
    """C16: the deadline is checked before the delay."""
    policy = RetryPolicy(backoff=1.0)
    assert delays(policy, 1, deadline=0.0001, verdict=Verdict(fault=True, again="idempotent")) == [
        None
    ]


def test_a_rest_of_all_is_waited_for_up_to_backoff_max():
    """I12, S11: if all instances back off, the delay is their back-off, but at most
    `backoff_max`."""
    policy = RetryPolicy(backoff=0.0, backoff_max=1.0)
    assert delays(policy, 1, pause=0.4) == [0.4]
    assert delays(policy, 1, pause=1e9) == [1.0]


def test_a_call_waits_for_rests_no_longer_than_backoff_max_in_all():
    """S11: however often a call is retried, it sleeps at most `backoff_max` in total for
    `Retry-After`."""
    policy = RetryPolicy(attempts=6, backoff=0.0, backoff_max=1.0)
    slept = delays(policy, 5, pause=0.4)
    assert slept == pytest.approx([0.4, 0.4, 0.2, 0.0, 0.0])


def test_the_budget_is_asked_last_and_before_the_sleep():
    """A retry that the deadline prevents takes nothing from the budget."""
    retries = RetryRules(RetryPolicy(backoff=1.0), random.Random(1))
    before = retries.budget.balance(0.0)
    assert RetryController(retries).delay(turn(deadline=0.0001)) is None
    assert retries.budget.balance(0.0) == before
    assert RetryController(retries).delay(turn()) is not None
    assert retries.budget.balance(0.0) == before - 1


def test_the_budget_refuses():
    """With an empty budget the outcome is final, and the reason is recorded."""
    policy = RetryPolicy(budget=RetryBudget(ratio=0, reserve=0))
    asked = turn()
    assert RetryController(RetryRules(policy, random.Random(1))).delay(asked) is None
    assert asked.stopped == "budget"


def test_the_budget_over_its_window():
    """The budget has `reserve` per second and `ratio` per call, over a sliding window, and never
    falls below zero."""
    budget = Budget(RetryBudget(ratio=0.2, reserve=1.0, window=10.0))
    assert sum(budget.withdraw(0.0) for _ in range(50)) == 10
    for _ in range(10):
        budget.deposit(1.0)
    assert sum(budget.withdraw(1.0) for _ in range(50)) == 2
    assert sum(budget.withdraw(5.0) for _ in range(50)) == 0
    assert sum(budget.withdraw(10.5) for _ in range(50)) == 10
    assert budget.balance(1000.0) == pytest.approx(10.0)


def test_the_budget_costs_the_same_after_many_calls():
    """S7: the budget stores slices of time, not calls."""
    budget = Budget(RetryBudget())
    for step in range(100_000):
        budget.deposit(step / 1000)
    assert len(budget._window._slices) <= 11


def test_no_budget_is_no_limit():
    """`budget=None` refuses nothing."""
    retries = RetryRules(RetryPolicy(attempts=2, budget=None), random.Random(1))
    assert all(RetryController(retries).delay(turn()) is not None for _ in range(1000))
