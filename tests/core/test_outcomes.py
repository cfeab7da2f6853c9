"""What outcomes change for later calls, and what stays of attempts that were dropped or forked."""

import random
from collections import Counter

import pytest

from lbclient import Balancer, DeadlineExceeded, Instance, Verdict
from lbclient.protocol import bind

MANY = [Instance("10.0.0.1", port) for port in range(1, 17)]
FIRST = MANY[0]
FINE = Verdict(fault=False)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def counted(balancer, clock, calls, took=0.05):
    """How many of the calls each instance gets; each call takes that long."""

    def send(instance):
        clock.now += took
        return instance

    return Counter(balancer.call(send) for _ in range(calls))


@pytest.mark.parametrize("rest", [0.05, 0.9, 2.0])
def test_a_back_off_lasts_as_long_as_asked(rest):
    """An instance that asks for a back-off gets no call until it is over, even within a second."""
    clock = Clock()
    verdicts = iter([Verdict(fault=False, again="always", rest=rest)])
    with Balancer(
        MANY[:2], clock=clock, judge=lambda _: next(verdicts, FINE), retry=None
    ) as balancer:
        (busy,) = counted(balancer, clock, 1, took=0.0)
        clock.now += rest * 0.99
        assert counted(balancer, clock, 20, took=0.0)[busy] == 0
        clock.now += rest * 0.02
        assert counted(balancer, clock, 20, took=0.0)[busy] > 0


def test_the_one_whose_back_off_ends_first_serves_if_all_back_off():
    """If all instances back off, a call goes at once to the one whose back-off ends first."""
    rests = {MANY[0]: 5.0, MANY[1]: 3.0, MANY[2]: 8.0}
    clock = Clock()
    with Balancer(
        list(rests),
        clock=clock,
        judge=lambda one: Verdict(fault=False, again="always", rest=rests[one]),
        retry=None,
    ) as balancer:
        assert counted(balancer, clock, 3, took=0.0) == dict.fromkeys(rests, 1)
        assert counted(balancer, clock, 5, took=0.0) == {MANY[1]: 5}


def test_one_that_alone_refuses_requests_gets_few():
    """An instance that answers every request as wrong (401) gets few of the calls, unless all
    instances answer so."""
    shares = []
    for wrong in ([FIRST], MANY):
        clock = Clock()
        with Balancer(
            MANY,
            clock=clock,
            strategy="least-busy",
            rng=random.Random(1),
            judge=lambda one, wrong=wrong: Verdict(fault=False, client_error=one in wrong),
        ) as balancer:
            shares.append(counted(balancer, clock, 800)[FIRST])
    assert shares[0] <= 15
    assert 40 <= shares[1] <= 60


def test_one_that_alone_fails_gets_few():
    """An instance whose calls all fail gets few of the calls, also without a breaker."""
    clock = Clock()
    with Balancer(
        MANY,
        clock=clock,
        strategy="least-busy",
        rng=random.Random(1),
        judge=lambda one: Verdict(fault=one == FIRST),
        breaker=None,
        retry=None,
    ) as balancer:
        assert counted(balancer, clock, 800)[FIRST] <= 15


def test_what_a_dropped_lease_held_is_free():
    """The slot of a lease that was dropped goes to the next call."""
    balancer = Balancer(MANY[:1], max_in_flight=1)
    lease = balancer.acquire()
    lease.__enter__()
    with pytest.raises(DeadlineExceeded):
        balancer.call(str, deadline=0.01)
    del lease
    assert balancer.call(lambda one: one, deadline=0.01) == FIRST
    balancer.close()


@pytest.mark.parametrize("limit", ["max_in_flight", "max_in_flight_total"])
def test_a_forked_child_does_not_count_the_parents_attempts(limit):
    """In a forked child, an attempt of the parent counts neither before nor after its end."""
    balancer = Balancer(MANY[:1], **{limit: 1})
    with balancer.acquire():
        balancer.after_fork()
        assert balancer.snapshot().instances[0].in_flight == 0
        assert balancer.call(lambda one: one, deadline=0.01) == FIRST
    assert balancer.snapshot().instances[0].in_flight == 0
    with balancer.acquire(), pytest.raises(DeadlineExceeded):
        balancer.call(str, deadline=0.01)
    balancer.close()


def test_a_forked_child_does_not_wait_for_the_parents_calls():
    """A forked child that closes waits for no call of the parent, and wakes nobody who waits in the
    parent."""
    balancer = Balancer(MANY[:1])
    with balancer.acquire():
        in_parent = bind(balancer).idle()
        balancer.after_fork()
        assert bind(balancer).idle().is_set
    assert not in_parent.is_set
    balancer.close()
