"""`with lbclient.deadline(...)`: what bounds all calls of a block, and what it leaves alone."""

import asyncio
import contextvars
import gc
import math
import queue
import random
import threading

import anyio
import anyio.to_thread
import pytest

import lbclient
from lbclient import Balancer, DeadlineExceeded, HedgePolicy, Instance, RetryPolicy
from lbclient._internal.deadline import CURRENT, Block, Deadline
from lbclient.protocol import bind, run
from tests.faults.test_lifecycle import script
from tests.support.interruptions import Interrupt, SoftLimit, points

pytestmark = pytest.mark.anyio

ONE = [Instance("10.0.0.1", 1)]
TWO = [Instance("10.0.0.1", 1), Instance("10.0.0.2", 1)]
PAST = 1e-9
"""Seconds that are over when the next line runs."""


def left(_):
    return lbclient.time_left()


async def aleft(_):
    return lbclient.time_left()


def by_call(balancer, **options):
    return balancer.call(left, **options)


def by_acquire(balancer, **options):
    with balancer.acquire(**options):
        return lbclient.time_left()


def by_binding(balancer, deadline=None):
    options = lbclient.protocol.CallOptions(deadline=deadline)
    return run(bind(balancer).begin(options), lambda _: lbclient.time_left())


async def by_acall(balancer, **options):
    return await balancer.acall(aleft, **options)


async def by_async_acquire(balancer, **options):
    async with balancer.acquire(**options):
        return lbclient.time_left()


SYNC = [by_call, by_acquire, by_binding]
ASYNC = [by_acall, by_async_acquire]
SMALLER = [(20.0, None, 20.0), (20.0, 10.0, 10.0), (10.0, 20.0, 10.0)]
"""The block's seconds, the call's, and those that count."""


@pytest.mark.parametrize(("block", "own", "counts"), SMALLER)
@pytest.mark.parametrize("call", SYNC)
def test_a_call_has_the_smaller_time(call, block, own, counts):
    """A call in a block has the block's time or its own, whichever is smaller."""
    balancer = Balancer(ONE)
    with lbclient.deadline(block):
        assert counts - 5 < call(balancer, deadline=own) <= counts
    assert call(balancer) is None


@pytest.mark.parametrize(("block", "own", "counts"), SMALLER)
@pytest.mark.parametrize("call", ASYNC)
async def test_an_async_call_has_the_smaller_time(call, block, own, counts):
    """The same on event loops."""
    balancer = Balancer(ONE)
    with lbclient.deadline(block):
        assert counts - 5 < await call(balancer, deadline=own) <= counts
    assert await call(balancer) is None


@pytest.mark.parametrize("how", ["closed", "dropped"])
@pytest.mark.parametrize("own", [None, 50.0])
def test_a_lease_that_ends_in_a_block_leaves_its_deadline(own, how, telemetry):
    """A block keeps its deadline if an attempt ends in it that began before the block, also one
    whose lease is dropped, and which therefore ends at the next call."""
    balancer = Balancer(ONE, **(telemetry.options if how == "closed" else {}))

    def holds():
        with balancer.acquire(deadline=own):
            yield

    begun = [holds() if how == "closed" else balancer.acquire(deadline=own)]
    next(begun[0]) if how == "closed" else begun[0].__enter__()
    with lbclient.deadline(1.0):
        begun.clear()
        for _ in range(2):
            assert 0 < balancer.call(left) <= 1.0
            assert 0 < left(None) <= 1.0


def test_calls_that_are_begun_within_attempts_form_no_chain():
    """A call that an attempt begins in a copy of its context, such as the next one of a poller,
    knows the blocks around it, and not all attempts before it."""
    balancer, contexts = Balancer(ONE, retry=RetryPolicy(attempt_timeout=5.0)), []
    with lbclient.deadline(50.0):
        contexts.append(contextvars.copy_context())
    for _ in range(5):
        contexts[-1].run(balancer.call, lambda _: contexts.append(contextvars.copy_context()))
    depth, innermost = 0, contexts[-1][CURRENT]
    while innermost is not None:
        depth, innermost = depth + 1, innermost.outer
    assert depth == 2
    assert 0 < contexts[-1].run(left, None) <= 5.0


@pytest.mark.parametrize("call", SYNC)
def test_a_deadline_that_is_over(call, telemetry):
    """Once the time is over, a call raises DeadlineExceeded before anything is sent, and charges no
    instance."""
    balancer = Balancer(ONE, **telemetry.options)
    with lbclient.deadline(PAST):
        assert lbclient.time_left() == 0.0
        with pytest.raises(
            DeadlineExceeded, match=r"over after 0\.0\d s; this request was not sent"
        ):
            call(balancer)
    (one,) = balancer.snapshot().instances
    assert (one.attempts, one.failures, one.in_flight) == (0, 0, 0)


@pytest.mark.parametrize("call", ASYNC)
async def test_a_deadline_that_is_over_async(call):
    """The same on event loops."""
    balancer = Balancer(ONE)
    with lbclient.deadline(PAST), pytest.raises(DeadlineExceeded, match="not sent"):
        await call(balancer)
    (one,) = balancer.snapshot().instances
    assert one.attempts == 0


@pytest.mark.parametrize("seconds", [0, -1, -0.5, math.nan, math.inf, 10**400])
def test_seconds_that_cannot_be(seconds):
    """K4: a deadline is a finite number above zero, or a clear error where it is made."""
    with pytest.raises(ValueError, match="seconds must be a finite number above 0, not"):
        lbclient.deadline(seconds)


@pytest.mark.parametrize("seconds", ["1", None, True, b"1"])
def test_seconds_of_another_type(seconds):
    """K4: and no text, and no None."""
    with pytest.raises(TypeError, match="seconds must be a number, not"):
        lbclient.deadline(seconds)


def test_nested_blocks():
    """Of nested blocks the smaller time counts; the end of each restores the one around it."""
    assert lbclient.time_left() is None
    with lbclient.deadline(30.0):
        with lbclient.deadline(10.0):
            assert 5 < lbclient.time_left() <= 10
            with lbclient.deadline(60.0):
                assert 5 < lbclient.time_left() <= 10
        assert 20 < lbclient.time_left() <= 30
        with pytest.raises(LookupError), lbclient.deadline(1.0):
            raise LookupError
        assert 20 < lbclient.time_left() <= 30
    assert lbclient.time_left() is None


def test_a_block_is_entered_once():
    """A deadline that is entered a second time is an error, and leaves nothing behind."""
    block = lbclient.deadline(30.0)
    with block:
        pass
    with pytest.raises(RuntimeError, match=r"entered once; call lbclient\.deadline"), block:
        pass
    again = lbclient.deadline(30.0)
    with again, pytest.raises(RuntimeError, match="entered once"), again:
        pass


def test_a_block_is_no_decorator_and_no_async_block():
    """`with` is the only way in: a decorator would begin the time when the function is defined."""
    with pytest.raises(TypeError, match="not callable"):
        lbclient.deadline(1.0)(left)
    assert not hasattr(lbclient.deadline(1.0), "__aenter__")


def test_within_an_attempt():
    """A block within an attempt bounds what is left of it; a call within an attempt has the time of
    the blocks, and not that of the attempt."""
    outer, inner = Balancer(ONE), Balancer(ONE)

    def fn(_):
        with lbclient.deadline(10.0):
            block = lbclient.time_left(), inner.call(left)
        return *block, lbclient.time_left()

    assert [round(one) for one in outer.call(fn, deadline=5.0)] == [5, 10, 5]
    with lbclient.deadline(3.0):
        assert [round(one) for one in outer.call(fn, deadline=5.0)] == [3, 3, 3]


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_another_clock():
    """A balancer with a clock of its own gives the call as many of its seconds as are left."""
    clock = Clock()
    balancer = Balancer(ONE, clock=clock)
    seen = []

    def fn(_):
        seen.append(lbclient.time_left())
        clock.now += 30
        raise ConnectionResetError

    with lbclient.deadline(20.0):
        with pytest.raises(DeadlineExceeded, match=r"over after 30\.\d\d s; attempts made: 1"):
            balancer.call(fn, idempotent=True)
        assert 15 < balancer.call(left) <= 20
    assert 15 < seen[0] <= 20


# Whom an ended deadline charges


@pytest.mark.parametrize(
    ("takes", "charged"), [(None, 1), (5.0, 1), (8.0, 0)], ids=["unknown", "quick", "slow"]
)
def test_a_hurried_caller_charges_no_instance(takes, charged):
    """An attempt that a block's deadline ended is the instance's fault only if it had as long as
    answers take: hurried callers take no instance out of the rotation. Where the call sets the
    deadline, half of its time is enough."""
    clock = Clock()
    balancer = Balancer(ONE, clock=clock, retry=None)

    def passes(seconds, error=None):
        def fn(_):
            clock.now += seconds
            if error is not None:
                raise error

        return fn

    if takes is not None:
        balancer.call(passes(takes))
    with lbclient.deadline(20.0), pytest.raises(DeadlineExceeded):
        balancer.call(passes(20.0, TimeoutError()))
    assert balancer.snapshot().instances[0].failures == charged
    with pytest.raises(DeadlineExceeded):
        balancer.call(passes(20.0, TimeoutError()), deadline=20.0)
    assert balancer.snapshot().instances[0].failures == charged + 1


def _judge(result):
    """A `Verdict` stands for the answer that it judges."""
    return result if isinstance(result, lbclient.Verdict) else lbclient.Verdict(fault=False)


@pytest.mark.parametrize(
    ("after", "charged"), [(6.0, 0), (5.9995, 0), (5.99, 1), (3.0, 1)], ids=str
)
@pytest.mark.parametrize("again", ["never", "idempotent"])
def test_a_fault_answered_at_the_deadline(after, charged, again):
    """An instance that answers with a fault once the deadline is over, of which it was told in
    whole milliseconds, is charged like one that does not answer: only if it had as long as answers
    take. A fault that it answers earlier is its own."""
    clock = Clock()
    balancer = Balancer(ONE, clock=clock, retry=None, judge=_judge)

    def passes(seconds, verdict):
        def fn(_):
            clock.now += seconds
            return verdict

        return fn

    fault = lbclient.Verdict(fault=True, again=again, rejected=again != "never")
    balancer.call(passes(5.0, lbclient.Verdict(fault=False)))
    (before,) = balancer.snapshot().instances
    with Block(Deadline(clock.now + 6.0, clock, clock.now)):
        assert balancer.call(passes(after, fault), idempotent=True) is fault
    (seen,) = balancer.snapshot().instances
    assert seen.failures == charged
    assert seen.in_flight == 0
    assert charged or seen.latency == before.latency
    clock.now += 60
    with Block(Deadline(clock.now + 20.0, clock, clock.now)):
        balancer.call(passes(20.0, fault))  # longer than answers take
    assert balancer.snapshot().instances[0].failures == charged + 1


def test_a_probe_answered_at_the_deadline():
    """A fault that answers a breaker's probe at the deadline decides nothing: the next call is the
    probe."""
    clock = Clock()
    breaker = lbclient.BreakerPolicy(fail_max=1, reset_timeout=1.0)
    balancer = Balancer(ONE, clock=clock, retry=None, judge=_judge, breaker=breaker)
    fault, fine = (lbclient.Verdict(fault=fault) for fault in (True, False))

    def passes(verdict):
        def fn(_):
            clock.now += 5.0
            return verdict

        return fn

    for verdict in (fine, fault):
        balancer.call(passes(verdict))
    clock.now += 5.0
    with Block(Deadline(clock.now + 5.0, clock, clock.now)):
        balancer.call(passes(fault))
    (seen,) = balancer.snapshot().instances
    assert (seen.breaker, seen.failures) == ("half-open", 1)
    balancer.call(passes(fine))
    assert balancer.snapshot().instances[0].breaker == "closed"


def test_an_instance_that_asks_for_a_rest_at_the_deadline():
    """An instance that answers with `Retry-After` backs off, also if the deadline is over."""
    clock = Clock()
    balancer = Balancer(ONE, clock=clock, retry=None, judge=_judge)
    balancer.call(lambda _: setattr(clock, "now", clock.now + 5.0))

    def fn(_):
        clock.now += 6.0
        return lbclient.Verdict(fault=True, rest=10.0)

    with Block(Deadline(clock.now + 6.0, clock, clock.now)):
        balancer.call(fn)
    assert balancer.snapshot().instances[0].standing == "resting"


def test_an_instance_that_got_the_rest_is_not_charged():
    """An attempt that began in the second half of a block's time is not the instance's fault."""
    clock = Clock()
    balancer = Balancer(ONE, clock=clock, retry=None)
    with Block(Deadline(clock.now + 10, clock, clock.now)):
        clock.now += 6

        def fn(_):
            clock.now += 4
            raise TimeoutError

        with pytest.raises(DeadlineExceeded, match=r"after 10\.00 s"):
            balancer.call(fn)
    assert balancer.snapshot().instances[0].failures == 0


# Waits


def test_waiting_for_a_slot():
    """A call in the queue waits no longer than its block has time."""
    balancer = Balancer(ONE, max_in_flight=1)
    with (
        balancer.acquire(),
        lbclient.deadline(0.05),
        pytest.raises(DeadlineExceeded, match="no attempt was made"),
    ):
        balancer.call(left)
    assert balancer.call(left) is None


@pytest.fixture
def silent():
    """A balancer whose discovery does not answer while the test runs."""
    ended = threading.Event()

    class Silent:
        def resolve(self):
            ended.wait()
            raise lbclient.DiscoveryError("not yet")

    with Balancer(Silent(), name="silent") as balancer:
        yield balancer
        ended.set()


def test_waiting_for_discovery(silent):
    """A call that waits for the first answer of discovery waits no longer than its block has
    time."""
    said = "discovery has not answered"
    with lbclient.deadline(0.05), pytest.raises(DeadlineExceeded, match=said):
        silent.call(left)


async def test_waiting_async(silent):
    """The same waits on event loops."""
    full = Balancer(ONE, max_in_flight=1)
    async with full.acquire():
        for balancer in (full, silent):
            with lbclient.deadline(0.05), pytest.raises(DeadlineExceeded):
                await balancer.acall(aleft)


def test_waiting_for_a_retry():
    """A back-off that the block's deadline would cut is not begun: the last outcome stands."""
    retry = RetryPolicy(backoff=1e6, backoff_max=1e6)
    balancer = Balancer(ONE, retry=retry)

    def fn(_):
        raise ConnectionResetError

    with lbclient.deadline(30.0), pytest.raises(ConnectionResetError) as caught:
        balancer.call(fn, idempotent=True)
    assert lbclient.call_info(caught.value).stopped == "deadline"


# Who inherits it


async def test_a_task_inherits():
    """A task has the deadline of the block that started it, also for what it does after the
    block."""
    balancer, times, ended = Balancer(ONE), [], anyio.Event()

    async def work():
        times.append(await balancer.acall(aleft))
        await ended.wait()
        times.append(await balancer.acall(aleft))

    async with anyio.create_task_group() as group:
        with lbclient.deadline(20.0):
            group.start_soon(work)
            await anyio.lowlevel.checkpoint()
        assert lbclient.time_left() is None
        ended.set()
    assert all(15 < one <= 20 for one in times)
    assert len(times) == 2


async def test_blocks_of_tasks_are_their_own():
    """Tasks that run by turns each have their own block."""
    times = {}

    async def work(seconds):
        with lbclient.deadline(seconds):
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            times[seconds] = lbclient.time_left()

    async with anyio.create_task_group() as group:
        for seconds in (10.0, 20.0, 30.0):
            group.start_soon(work, seconds)
    assert all(seconds - 5 < left <= seconds for seconds, left in times.items())


def in_a_thread(fn, *args):
    """What it returns on a thread of its own."""
    results = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: results.put(fn(*args)))
    thread.start()
    thread.join()
    return results.get()


def test_a_thread_inherits_only_a_copied_context():
    """A thread has no deadline of the block that starts it, unless it runs in a copy of its
    context."""
    balancer = Balancer(ONE)
    with lbclient.deadline(20.0):
        assert in_a_thread(balancer.call, left) is None
        context = contextvars.copy_context()
        assert 15 < in_a_thread(context.run, balancer.call, left) <= 20


async def test_a_worker_thread_of_an_event_loop_inherits():
    """What an event loop runs on a worker thread has the deadline of the task."""
    balancer = Balancer(ONE)
    with lbclient.deadline(20.0):
        assert 15 < await anyio.to_thread.run_sync(balancer.call, left) <= 20


def test_a_forked_child_inherits():
    """C8: a child that is forked in a block has what is left of it."""
    text = """
    import os, lbclient
    with lbclient.deadline(20.0):
        if (child := os.fork()) == 0:
            left = lbclient.Balancer("http://127.0.0.1:1").call(lambda _: lbclient.time_left())
            os._exit(0 if 10 < left <= 20 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    assert script(text) == (0, "", "")


def test_green_threads():
    """Under gevent each green thread has the deadline of its own block, and inherits none."""
    text = """
    from gevent import monkey
    monkey.patch_all()
    import gevent, lbclient

    balancer, seen = lbclient.Balancer("http://127.0.0.1:1"), {}

    def work(seconds):
        with lbclient.deadline(seconds):
            gevent.sleep(0)
            seen[seconds] = balancer.call(lambda _: lbclient.time_left())

    with lbclient.deadline(5.0):
        gevent.joinall([gevent.spawn(work, seconds) for seconds in (10, 20)], raise_error=True)
        assert gevent.spawn(lbclient.time_left).get() is None
    assert 15 < seen[20] <= 20 and 5 < seen[10] <= 10
    assert lbclient.time_left() is None
    """
    assert script(text) == (0, "", "")


def test_both_attempts_of_a_hedged_call():
    """Both attempts of a hedged call have the time of the block, on whatever threads they run."""
    balancer = Balancer(TWO, hedge=HedgePolicy(delay=0.0))
    seen, both = queue.SimpleQueue(), threading.Barrier(2)

    def fn(_):
        seen.put(lbclient.time_left())
        both.wait(10)

    with lbclient.deadline(20.0):
        balancer.call(fn, idempotent=True)
    assert all(15 < seen.get() <= 20 for _ in range(2))


async def test_both_attempts_of_a_hedged_async_call():
    """The same on event loops."""
    balancer = Balancer(TWO, hedge=HedgePolicy(delay=0.0))
    seen, both = [], anyio.Event()

    async def fn(_):
        seen.append(lbclient.time_left())
        if len(seen) == 2:
            both.set()
        await both.wait()

    with lbclient.deadline(20.0):
        await balancer.acall(fn, idempotent=True)
    assert len(seen) == 2
    assert all(15 < one <= 20 for one in seen)


# Blocks that end where and when they should not


def block(seconds):
    """A block that ends when its generator does."""
    with lbclient.deadline(seconds):
        yield lbclient.time_left()


def test_an_exit_out_of_order():
    """A block that ends before one within it bounds nothing any more, and neither stays behind."""
    for _ in range(3):
        outer, inner = block(10.0), block(20.0)
        next(outer)
        assert next(inner) <= 10
        outer.close()
        assert 15 < lbclient.time_left() <= 20
        inner.close()
        assert lbclient.time_left() is None
        with lbclient.deadline(30.0):  # what is left behind in the context is not kept, either
            assert CURRENT.get().outer is None
    CURRENT.set(None)


@pytest.mark.parametrize("seed", range(20))
def test_exits_in_any_order(seed):
    """Whatever the order in which blocks end, the smallest time of those that are open counts, and
    nothing stays behind."""
    rng = random.Random(seed)
    for _ in range(20):
        blocks = []
        for _ in range(rng.randrange(1, 12)):
            if blocks and rng.random() < 0.5:
                blocks.pop(rng.randrange(len(blocks)))[1].close()
            else:
                seconds = rng.randrange(10, 100)
                blocks.append((seconds, block(seconds)))
                next(blocks[-1][1])
            smallest, now = min((one for one, _ in blocks), default=None), lbclient.time_left()
            assert now is None if smallest is None else smallest - 5 < now <= smallest
        rng.shuffle(blocks)
        while blocks:
            blocks.pop()[1].close()
        assert lbclient.time_left() is None
        with lbclient.deadline(30.0):
            pass
        assert CURRENT.get() is None


def test_an_async_generator_that_is_left():
    """A block in an async generator that is left half-way bounds nothing once the event loop has
    ended the generator, which it does in a task of its own."""
    ended = asyncio.Event()

    async def steps():
        try:
            with lbclient.deadline(10.0):
                yield lbclient.time_left()
        finally:
            ended.set()

    async def work():
        async for left in steps():
            assert left <= 10
            break
        gc.collect()
        await ended.wait()
        assert lbclient.time_left() is None

    asyncio.run(work())


def test_an_exit_within_an_attempt():
    """A block that ends in an attempt which began in it bounds nothing after that."""
    outer = block(10.0)
    next(outer)
    Balancer(ONE).call(lambda _: outer.close())
    assert lbclient.time_left() is None
    CURRENT.set(None)


def test_an_exit_in_another_context():
    """A block whose generator ends in another context bounds nothing any more where it began, also
    if that is a copy of its context."""
    for copied in (False, True):
        here, elsewhere = contextvars.copy_context(), contextvars.copy_context()
        steps = block(10.0)
        assert here.run(next, steps) <= 10
        if copied:
            elsewhere = here.copy()
            assert elsewhere.run(lbclient.time_left) <= 10
        elsewhere.run(steps.close)
        assert here.run(lbclient.time_left) is None
        assert elsewhere.run(lbclient.time_left) is None


def test_an_exit_on_another_thread():
    """The same for a generator that another thread ends."""
    steps = block(10.0)
    next(steps)
    in_a_thread(steps.close)
    assert lbclient.time_left() is None
    CURRENT.set(None)


def test_a_generator_that_is_dropped():
    """A block in a generator that is dropped half-way ends with it."""
    steps = block(10.0)
    next(steps)
    del steps
    assert lbclient.time_left() is None


@pytest.mark.parametrize("kind", [Interrupt, SoftLimit])
def test_interruptions(kind):
    """Wherever a block is interrupted, nothing of its deadline stays behind in its thread."""
    balancer, behind = Balancer(TWO), []

    def work():
        with lbclient.deadline(30.0):
            balancer.call(left)
            with lbclient.deadline(20.0):
                pass

    count = 0
    for where, reached in points(lambda: work, kind, everywhere=True):
        count += 1
        behind += [where] * (CURRENT.get() is not None or not reached)
        CURRENT.set(None)
    assert behind == []
    assert count > 50


# A deadline that is ended early, since nobody waits any more


def ended_in_between(error):
    """A function whose first attempt ends the deadline that it is in."""
    attempts = []

    def fn(_):
        attempts.append(None)
        CURRENT.get().outer.end()
        raise error

    return attempts, fn


def test_no_retry_for_a_caller_that_has_gone():
    """A call whose deadline is ended early is not retried, and its error says what happened."""
    attempts, fn = ended_in_between(ConnectionResetError())
    balancer = Balancer(TWO)
    with lbclient.deadline(30.0):
        with pytest.raises(ConnectionResetError) as caught:
            balancer.call(fn, idempotent=True)
        with pytest.raises(DeadlineExceeded, match="the deadline was ended after"):
            balancer.call(left)
        with lbclient.deadline(30.0), pytest.raises(DeadlineExceeded):  # seen from within, too
            balancer.call(left)
    assert len(attempts) == 1
    assert lbclient.call_info(caught.value).stopped == "deadline"


def test_no_back_off_for_a_caller_that_has_gone():
    """A call whose deadline is ended during a back-off is not sent again."""
    balancer, attempts = Balancer(TWO, retry=RetryPolicy(backoff=0.01)), []
    deadline = Deadline(math.inf, lambda: 0.0)

    def fn(_):
        attempts.append(None)
        raise ConnectionResetError

    def wait(_):
        deadline.end()

    with Block(deadline), pytest.raises(ConnectionResetError):
        run(bind(balancer).begin(lbclient.protocol.CallOptions(idempotent=True)), fn, wait)
    assert len(attempts) == 1


def test_no_slot_for_a_caller_that_has_gone():
    """A call whose deadline is ended while it waits in the queue leaves it, and sends nothing."""
    balancer = Balancer(ONE, max_in_flight=1)
    held, sent = balancer.acquire(), []
    held.__enter__()

    def wait(_):
        CURRENT.get().end()
        held.__exit__(None, None, None)

    with lbclient.deadline(30.0):
        call = bind(balancer).begin()
        with pytest.raises(DeadlineExceeded, match="the deadline was ended; no attempt was made"):
            run(call, sent.append, wait)
    assert sent == []
    assert balancer.call(left) is None


def test_no_hedge_for_a_caller_that_has_gone():
    """A call whose deadline is ended has no second attempt beside the first."""
    balancer = Balancer(TWO, hedge=HedgePolicy(delay=0.01))
    sent, waited = [], threading.Event()

    def fn(_):
        sent.append(None)
        CURRENT.get().outer.end()
        waited.wait(0.1)

    with lbclient.deadline(30.0):
        balancer.call(fn, idempotent=True)
    assert len(sent) == 1


async def test_an_exception_group():
    """A block around a task group passes its exceptions on, and ends."""
    with pytest.raises(ExceptionGroup), lbclient.deadline(30.0):
        async with anyio.create_task_group() as group:
            group.start_soon(by_acall, None)
    assert lbclient.time_left() is None


def test_a_cancelled_task():
    """A block in a task that is cancelled ends."""

    async def work():
        with lbclient.deadline(30.0):
            await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
