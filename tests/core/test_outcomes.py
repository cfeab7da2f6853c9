"""What outcomes change for later calls, and what stays of attempts that were dropped or forked."""

import contextlib
import random
from collections import Counter

import pytest

from lbclient import (
    Answer,
    Balancer,
    BreakerPolicy,
    DeadlineExceeded,
    Instance,
    RetryPolicy,
    Verdict,
)
from lbclient._internal.signals import Pause
from lbclient.core.call import CallOptions
from lbclient.protocol import bind
from lbclient.telemetry.semantics import Semantics

MANY = [Instance("10.0.0.1", port) for port in range(1, 17)]
FIRST = MANY[0]
FINE = Verdict(fault=False)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class First:
    """A strategy that picks the first instance."""

    def pick(self, candidates, _):
        return candidates[0]


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


@pytest.mark.parametrize(("size", "penalty"), [(1, 2.330), (16, 2.953)])
def test_faults_count_less_only_if_most_instances_fail(size, penalty):
    """A fault is weighed by the share of faults among the calls of all instances. That share moves
    more slowly if there are more instances, so three faults of one among many count almost in full.
    """
    clock = Clock()
    with Balancer(
        MANY[:size],
        clock=clock,
        strategy=First(),
        breaker=None,
        judge=lambda _: Verdict(fault=True),
        retry=None,
    ) as balancer:
        assert counted(balancer, clock, 3) == {FIRST: 3}
        first = balancer._engine.pool.find(FIRST)
        assert first.penalty == pytest.approx(penalty, abs=1e-3)


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


@pytest.mark.parametrize("closed", [False, True])
def test_a_back_off_is_waited_for_unless_closed(closed):
    """A retry waits for its back-off, however short; it does not if the balancer was closed during
    the attempt."""
    balancer = Balancer(MANY[:1], retry=RetryPolicy(backoff=0.5, attempts=2), rng=random.Random(1))
    call, pauses = bind(balancer).begin(CallOptions(idempotent=True), Semantics()), []
    with call:
        for step in call:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                continue
            with step:
                if closed:
                    balancer.close()
                raise ConnectionResetError
    with pytest.raises(ConnectionResetError):
        call.result()
    (seconds,) = pauses
    assert (seconds == 0.0) is closed
    assert seconds <= 0.5
    balancer.close()


def begun(balancer):
    """The first attempt of a call, with one instance, whose body is still to be read."""
    call = bind(balancer).begin(CallOptions(), Semantics())
    with call:
        attempt = next(iter(call))
        with attempt:
            attempt.hold()
    return attempt


def test_what_a_body_changes_is_logged_at_its_end(caplog):
    """A breaker that opens because a body breaks is logged at once, not with the next call."""
    with Balancer(MANY[:1], breaker=BreakerPolicy(fail_max=1)) as balancer:
        attempt = begun(balancer)
        assert not caplog.records
        attempt.finish(ConnectionResetError())
        assert "is open for" in caplog.text


def test_the_next_probe_does_not_wait_for_a_body():
    """Once a probe has a good answer, the next probe is sent while its body is still read."""
    clock = Clock()
    breaker = BreakerPolicy(fail_max=1, reset_timeout=1.0)
    with Balancer(MANY[:1], clock=clock, breaker=breaker, retry=None) as balancer:
        begun(balancer).finish(ConnectionResetError())
        clock.now += 60
        probes = [begun(balancer) for _ in range(2)]
        assert [probe.reason for probe in probes] == ["probe", "probe"]
        for probe in probes:
            probe.finish()


def stopped(call, steps, error):
    """Make one step of a call, and end it there, with an error or without."""
    with contextlib.suppress(KeyboardInterrupt), call:
        next(steps)
        if error:
            raise KeyboardInterrupt


@pytest.mark.parametrize("error", [False, True])
def test_a_call_that_ends_in_the_queue_leaves_it(error):
    """A call that ends while it waits for a slot leaves the queue, although its steps are kept."""
    balancer = Balancer(MANY[:1], max_in_flight=1)
    call = bind(balancer).begin(CallOptions(), Semantics())
    steps = iter(call)
    with balancer.acquire():
        stopped(call, steps, error)
        assert not balancer._engine.queue
    balancer.close()


@pytest.mark.parametrize("before", ["the attempt exists", "it begins"])
def test_a_call_that_is_interrupted_gives_back_its_slot(before, monkeypatch):
    """A call that is interrupted between its pick and its attempt gives back the slot, and the
    instance is not charged."""

    def interrupted(*_):
        raise KeyboardInterrupt

    if before == "the attempt exists":
        monkeypatch.setattr("lbclient.core.call.Attempt", interrupted)
    balancer = Balancer(MANY[:1], max_in_flight=1)
    call = bind(balancer).begin(CallOptions(), Semantics())
    steps = iter(call)
    stopped(call, steps, error=True)
    (one,) = balancer.snapshot().instances
    assert (one.in_flight, one.attempts, one.failures) == (0, 1, 0)
    balancer.close()


def test_what_a_dropped_lease_held_is_free():
    """The slot of a lease that was dropped without leaving its block goes to the next call. No call
    is under way after that, so closing waits for none."""
    balancer = Balancer(MANY[:1], max_in_flight=1)
    lease = balancer.acquire()
    lease.__enter__()
    with pytest.raises(DeadlineExceeded):
        balancer.call(str, deadline=0.01)
    del lease
    assert balancer.call(lambda one: one, deadline=10) == FIRST
    assert not balancer._engine.owners
    assert bind(balancer).idle().is_set
    balancer.close()


class Response:
    """Holds a body that is still to be read."""


@pytest.mark.parametrize("fault", [False, True])
def test_what_a_dropped_response_held_is_free(fault):
    """The slot of a response that was dropped unclosed goes to the next call, whether the response
    was good or a fault."""
    verdict = Verdict(fault=fault)
    balancer = Balancer(
        MANY[:1], max_in_flight=1, judge=lambda _: verdict, breaker=None, retry=None
    )
    call, response = bind(balancer).begin(CallOptions(), Semantics()), Response()
    with call:
        attempt = next(iter(call))
        with attempt:
            attempt.hold(response)
    assert attempt.open
    del response
    assert balancer.call(lambda one: one, deadline=10) == FIRST
    assert not attempt.open
    balancer.close()


class Scripted:
    """A resolver that returns the instances that a test sets."""

    def __init__(self, *instances: Instance) -> None:
        self.instances = instances

    def resolve(self) -> Answer:
        return Answer(self.instances, 3600)


@pytest.mark.parametrize("after", ["left", "moved"])
def test_a_health_check_that_ends_too_late_is_void(after, caplog):
    """A health check that fails after its instance has left, or has moved to another address, takes
    nothing out of rotation, and nothing is logged."""
    one, moved, other = (
        Instance(host, 80, addresses=[address])
        for host, address in (("a", "10.0.0.1"), ("a", "10.0.0.2"), ("b", "10.0.0.3"))
    )
    resolver = Scripted(one)
    with Balancer(resolver) as balancer:
        balancer.refresh()
        engine = balancer._engine
        endpoint = engine.pool.find(one)
        breaker = endpoint.breaker
        resolver.instances = [other] if after == "left" else [moved]
        balancer.refresh()
        caplog.clear()
        engine.record_health(endpoint, breaker, healthy=False, why="no answer")
        assert [one.standing for one in balancer.snapshot().instances] == ["serving"]
    assert not caplog.records


@pytest.mark.parametrize("limit", ["max_in_flight", "max_in_flight_total"])
def test_a_forked_child_does_not_count_the_parents_attempts(limit):
    """In a forked child, an attempt of the parent counts neither before nor after its end."""
    balancer = Balancer(MANY[:1], **{limit: 1})
    with balancer.acquire():
        balancer.after_fork()
        assert balancer.snapshot().instances[0].in_flight == 0
        assert balancer.call(lambda one: one, deadline=10) == FIRST
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
