"""Cancellations at random moments: at the end nothing is in flight, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import threading
import time
from pathlib import Path

import grpc
import pytest

from lbclient import HedgePolicy, RetryPolicy
from tests.support.rpc import channel_of, messages

CANCELLATIONS = int(os.environ.get("LBCLIENT_CANCELLATIONS", "10000"))
WORKERS = 16
FEW = 100
STEPS = 48
RETRIES = RetryPolicy(attempts=3, budget=None, backoff=0.0005)
LIMITED = RetryPolicy(attempts=3, budget=None, backoff=0.0005, attempt_timeout=0.001)
REPEATED = "/grpc.testing.TestService/StreamingInputCall"


def outputs(number):
    one = messages.ResponseParameters(size=1, interval_us=200)
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


def begin(rpcs, rng):
    """Begin an RPC of a random kind."""
    kind = rng.randrange(4)
    timeout = rng.choice([None, 0.001, 0.01, 10.0])
    stub = rpcs.stub
    if kind == 0:
        call = getattr(stub.CacheableUnaryCall, "future", stub.CacheableUnaryCall)
        return call(messages.SimpleRequest(), timeout=timeout)
    if kind == 1:
        return stub.StreamingOutputCall(outputs(3), timeout=timeout)
    if kind == 2:
        call = getattr(stub.StreamingInputCall, "future", stub.StreamingInputCall)
        return call(iter([messages.StreamingInputCallRequest()] * 3), timeout=timeout)
    return stub.FullDuplexCall(iter([outputs(1)] * 3), timeout=timeout)


def cancel_on_threads(rpcs, number):
    def work(seed):
        rng = random.Random(seed)
        for _ in range(number // WORKERS):
            call = begin(rpcs, rng)
            pause = rng.choice([0.0, 0.0, 0.0005, 0.003])
            if hasattr(call, "__next__") and rng.random() < 0.5:
                with contextlib.suppress(grpc.RpcError, StopIteration):
                    next(call)
            if pause:
                time.sleep(pause)
            if rng.random() < 0.8:
                call.cancel()
            del call

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def cancel_in_loop(rpcs, number):
    async def work(seed):
        rng = random.Random(seed)
        for _ in range(number // WORKERS):
            call = begin(rpcs, rng)
            task = asyncio.ensure_future(used(call, rng.random() < 0.5))
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.0005, 0.003]))
            (call if rng.random() < 0.3 else task).cancel()
            with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
                await task
            del call, task

    await asyncio.gather(*(work(seed) for seed in range(WORKERS)))


async def used(call, reads):
    if hasattr(call, "__await__"):
        return await call
    if reads:
        return [one async for one in call]
    return await call.code()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def check(rpc_servers, kind, number):
    servers = rpc_servers(3)
    servers[2].tell("status UNAVAILABLE busy")
    policy = RetryPolicy(attempts=3, budget=None, backoff=0.002)
    with channel_of(kind, [one.address for one in servers], retry=policy, max_in_flight=6) as rpcs:
        if rpcs.loop is None:
            cancel_on_threads(rpcs, FEW)
        else:
            rpcs.loop.run(cancel_in_loop(rpcs, FEW))
        settle(rpcs)
        before = descriptors(), threading.active_count()
        if rpcs.loop is None:
            cancel_on_threads(rpcs, number)
        else:
            rpcs.loop.run(cancel_in_loop(rpcs, number))
        settle(rpcs)
        assert rpcs.in_flight() == 0
        assert descriptors() <= before[0] + 8
        assert threading.active_count() <= before[1] + 2
        if rpcs.loop is not None:
            assert rpcs.loop.run(tasks()) == []


async def tasks():
    await asyncio.sleep(0.05)
    return [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]


def settle(rpcs, *expected):
    """Wait until what was cancelled or dropped has ended. Its own RPCs may raise `expected`."""
    until = time.monotonic() + 20
    threads = None
    while time.monotonic() < until:
        gc.collect()
        with contextlib.suppress(*expected):
            rpcs.unary("CacheableUnaryCall")  # the next use gives back what was dropped
        threads, before = threading.active_count(), threads
        if rpcs.in_flight() == 0 and threads == before:
            return
        time.sleep(0.1)
    raise AssertionError(f"{rpcs.in_flight()} attempts are in flight")


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_few_cancellations(rpc_servers, kind):
    """After a hundred cancellations nothing is left."""
    check(rpc_servers, kind, 100)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_many_cancellations(rpc_servers, kind):
    """After ten thousand cancellations nothing is left."""
    check(rpc_servers, kind, CANCELLATIONS)


async def requests(number):
    for _ in range(number):
        await asyncio.sleep(0)
        yield messages.StreamingInputCallRequest()


async def talk(number):
    for _ in range(number):
        await asyncio.sleep(0)
        yield outputs(1)


ASYNC_KINDS = {
    "unary": lambda stub: stub.CacheableUnaryCall(messages.SimpleRequest()),
    "responses": lambda stub: stub.StreamingOutputCall(outputs(3)),
    "requests": lambda stub: stub.StreamingInputCall(requests(3)),
    "both": lambda stub: stub.FullDuplexCall(talk(3)),
}


async def iterate(call):
    return await call if hasattr(call, "__await__") else [one async for one in call]


async def read(call):
    while hasattr(call, "read") and await call.read() is not grpc.aio.EOF:
        pass


WAYS = {
    "result": iterate,
    "messages": read,
    "code": lambda call: call.code(),
    "metadata": lambda call: call.initial_metadata(),
    "connection": lambda call: call.wait_for_connection(),
}


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "options",
    [
        {"retry": RETRIES},
        {"retry": LIMITED},
        {"retry": RETRIES, "hedge": HedgePolicy(delay=0.0005, budget=None)},
    ],
    ids=["retried", "timed", "hedged"],
)
def test_a_call_is_cancelled_after_any_step(rpc_servers, caplog, loop, options):
    """An RPC of asyncio that is cancelled, or whose task is cancelled, after any number of steps of
    the event loop ends, and leaves nothing behind."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")

    async def cancel():
        for begin, use in itertools.product(ASYNC_KINDS.values(), WAYS.values()):
            for steps, by_task in itertools.product(range(STEPS), [True, False]):
                call = begin(rpcs.stub)
                task = asyncio.ensure_future(use(call))
                for _ in range(steps):
                    await asyncio.sleep(0)
                (task if by_task else call).cancel()
                with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
                    await asyncio.wait_for(task, 10)
                del call, task

    options = {**options, "breaker": None, "strategy": "round-robin", "idempotent": [REPEATED]}
    with channel_of(loop, [busy.address, live.address], **options) as rpcs:
        rpcs.loop.run(cancel())
        settle(rpcs, grpc.RpcError)  # its own attempts may be late
        assert rpcs.loop.run(tasks()) == []
    assert caplog.text == ""


def cancel_from_others(rpcs, number):
    """Cancel RPCs from other threads and from callbacks, while a thread uses them."""

    def use(call):
        with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
            list(call) if hasattr(call, "__next__") else call.result()

    def work(seed):
        rng = random.Random(seed)
        for _ in range(number // WORKERS):
            call, ended = begin(rpcs, rng), threading.Event()
            if rng.random() < 0.3:
                call.add_done_callback(lambda one: one.cancel())
            call.add_done_callback(lambda _, ended=ended: ended.set())
            thread = threading.Thread(target=use, args=(call,))
            thread.start()
            if rng.random() < 0.3:
                call.initial_metadata()
            time.sleep(rng.choice([0.0, 0.0005, 0.003]))
            if rng.random() < 0.7:
                call.cancel()
            thread.join(20)
            left.append(thread.is_alive() or not ended.wait(20))

    left = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(left)


@pytest.mark.slow
def test_cancellations_from_other_threads(rpc_servers):
    """Each RPC ends, and calls its callbacks, if it is cancelled while another thread uses it."""
    servers = rpc_servers(3)
    servers[2].tell("status UNAVAILABLE busy")
    options = {"retry": LIMITED, "breaker": None, "strategy": "round-robin"}
    with channel_of("threads", [one.address for one in servers], **options) as rpcs:
        assert cancel_from_others(rpcs, 2000) == 0
        settle(rpcs, grpc.RpcError)  # its own attempts may be late
