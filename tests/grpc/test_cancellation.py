"""Cancellations at random moments: at the end nothing is in flight, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from pathlib import Path

import grpc
import pytest

from lbclient import RetryPolicy
from tests.support.rpc import channel_of, messages

CANCELLATIONS = int(os.environ.get("LBCLIENT_CANCELLATIONS", "10000"))
WORKERS = 16
FEW = 100


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


def settle(rpcs):
    """Wait until what was cancelled or dropped has ended."""
    until = time.monotonic() + 20
    threads = None
    while time.monotonic() < until:
        gc.collect()
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
