"""Calls that are carried out by callbacks: `protocol.start`."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading

import pytest

import lbclient
from lbclient import Balancer, BreakerPolicy, Instance, RetryPolicy, protocol

INSTANCES = [Instance("one.test", 80), Instance("two.test", 80)]
POLICY = RetryPolicy(attempts=3, budget=None, backoff=0.001)


class Outcome:
    """Waits for the end of a call, on any thread."""

    def __init__(self):
        self._ended = queue.SimpleQueue()

    def __call__(self, result):
        self._ended.put(result)

    def result(self):
        return self._ended.get(timeout=10)()


@pytest.fixture
def balancer():
    with Balancer(INSTANCES, name="orders.test", retry=POLICY, strategy="round-robin") as made:
        yield made


def in_flight(balancer):
    return sum(one.in_flight for one in balancer.snapshot().instances)


def begin(balancer, send, **options):
    call = protocol.bind(balancer).begin(protocol.CallOptions(**options))
    outcome = Outcome()
    return protocol.start(call, send, outcome), outcome


def test_a_result(balancer):
    """An attempt that ends on another thread is the result."""

    def send(run, attempt):
        threading.Thread(target=run.finish, args=(attempt, attempt.instance.host)).start()

    _, outcome = begin(balancer, send)
    assert outcome.result() in {"one.test", "two.test"}
    assert in_flight(balancer) == 0


def test_an_attempt_that_ends_before_it_has_begun(balancer):
    """An attempt may end while it is begun."""
    _, outcome = begin(balancer, lambda run, attempt: run.finish(attempt, 42))
    assert outcome.result() == 42


def test_retries(balancer):
    """An attempt that fails is followed by another one, after a pause without a thread."""
    tried = []

    def send(run, attempt):
        tried.append(attempt.instance)
        error = ConnectionResetError() if len(tried) < 3 else None
        run.finish(attempt, "well", error=error)

    _, outcome = begin(balancer, send, idempotent=True)
    assert outcome.result() == "well"
    assert len(tried) == 3
    assert in_flight(balancer) == 0


def test_an_error(balancer):
    """The error of the last attempt is the outcome."""

    def send(run, attempt):
        run.finish(attempt, error=ConnectionResetError("lost"))

    _, outcome = begin(balancer, send, idempotent=False)
    with pytest.raises(ConnectionResetError, match="lost"):
        outcome.result()
    assert in_flight(balancer) == 0


def test_a_function_that_raises(balancer):
    """What raises instead of beginning an attempt ends it."""

    def send(_run, _attempt):
        raise ValueError("not begun")

    _, outcome = begin(balancer, send)
    with pytest.raises(ValueError, match="not begun"):
        outcome.result()
    assert in_flight(balancer) == 0


def test_only_the_first_end_counts(balancer):
    """Of two ends of an attempt, on two threads, one counts."""
    for _ in range(100):
        barrier, counted = threading.Barrier(2), []

        def end(run, attempt, result, barrier=barrier, counted=counted):
            barrier.wait()
            counted.append(run.finish(attempt, result))

        def send(run, attempt, end=end):
            for result in (1, 2):
                threading.Thread(target=end, args=(run, attempt, result)).start()

        _, outcome = begin(balancer, send)
        assert outcome.result() in {1, 2}
        while len(counted) < 2:
            pass
        assert sorted(counted) == [False, True]
    assert in_flight(balancer) == 0


def test_an_attempt_that_is_held(balancer):
    """An attempt may end with a holder: its instance is busy until the attempt is finished."""

    class Holder:
        pass

    holder, attempts = Holder(), []

    def send(run, attempt):
        attempts.append(attempt)
        run.finish(attempt, "body", holder=holder)

    _, outcome = begin(balancer, send)
    assert outcome.result() == "body"
    assert in_flight(balancer) == 1
    attempts[0].finish()
    assert in_flight(balancer) == 0


class Cancelled(Exception):
    pass


def test_a_call_that_is_cancelled_while_it_waits():
    """A call that waits ends at once when it is cancelled, and leaves its queue."""
    with Balancer(INSTANCES[:1], name="orders.test", max_in_flight=1) as balancer:
        kept = []
        first, ended = begin(balancer, lambda _, attempt: kept.append(attempt))
        waiting, outcome = begin(balancer, lambda run, attempt: run.finish(attempt, 1))
        assert waiting.cancel(Cancelled())
        with pytest.raises(Cancelled):
            outcome.result()
        assert not first.cancel(Cancelled())
        assert first.finish(kept[0], error=Cancelled())
        with pytest.raises(Cancelled):
            ended.result()
        assert in_flight(balancer) == 0


def test_a_call_that_waits_for_a_slot():
    """A call that waits goes on when a slot is free, also if it was dropped by a finalizer."""
    with Balancer(INSTANCES[:1], name="orders.test", max_in_flight=1) as balancer:
        kept = []
        first, _ = begin(balancer, lambda _, attempt: kept.append(attempt))
        _, second = begin(balancer, lambda run, attempt: run.finish(attempt, "second"))
        dropped, third = begin(balancer, lambda run, attempt: run.finish(attempt, "third"))
        dropped.drop(Cancelled())
        with pytest.raises(Cancelled):
            third.result()
        first.finish(kept[0], "first")
        assert second.result() == "second"
        assert in_flight(balancer) == 0


def test_no_instance():
    """A call that no instance may serve ends with the balancer's error."""
    breaker = BreakerPolicy(fail_max=1)
    with Balancer(INSTANCES[:1], name="orders.test", breaker=breaker, retry=None) as balancer:

        def send(run, attempt):
            run.finish(attempt, error=ConnectionRefusedError())

        with pytest.raises(ConnectionRefusedError):
            begin(balancer, send)[1].result()
        with pytest.raises(lbclient.NoInstanceAvailable):
            begin(balancer, send)[1].result()


def test_the_context_of_an_attempt(balancer):
    """The deadline of an attempt is current where it is begun, and nowhere after that."""
    variable = contextvars.ContextVar("variable", default=None)
    variable.set("caller's")
    told = []

    def send(run, attempt):
        told.append((lbclient.time_left(), variable.get()))
        threading.Thread(target=run.finish, args=(attempt, 1)).start()

    _, outcome = begin(balancer, send, deadline=5.0)
    assert lbclient.time_left() is None
    assert outcome.result() == 1
    assert lbclient.time_left() is None
    ((left, seen),) = told
    assert 0 < left <= 5.0
    assert seen == "caller's"


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_in_an_event_loop(balancer, kind):
    """In an event loop of asyncio the steps run in the loop, and pauses are its timers."""
    if kind == "uvloop":
        import uvloop

        make = uvloop.new_event_loop
    else:
        make = asyncio.new_event_loop

    async def main():
        loop, tried = asyncio.get_running_loop(), []
        future = loop.create_future()

        def send(run, attempt):
            tried.append(threading.get_ident())
            error = ConnectionResetError() if len(tried) < 3 else None
            loop.call_soon(lambda: run.finish(attempt, "well", error=error))

        call = protocol.bind(balancer).begin(protocol.CallOptions(idempotent=True))
        protocol.start(call, send, future.set_result, protocol.asleep_until)
        result = await future
        assert set(tried) == {threading.get_ident()}
        return result()

    with asyncio.Runner(loop_factory=make) as runner:
        assert runner.run(main()) == "well"
    assert in_flight(balancer) == 0
