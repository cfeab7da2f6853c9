"""Channels that are closed, by whom and whenever: RPCs end, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time

import grpc
import pytest

import lbclient.grpc
import lbclient.grpc.aio
from lbclient import BreakerPolicy, HealthCheck, HedgePolicy, RetryPolicy
from tests.grpc.test_cancellation import descriptors
from tests.grpc.test_services import until
from tests.support.rpc import channel_of, messages, services

pytestmark = pytest.mark.slow

CLOSED = "is closed: open a new channel", "Channel closed!", "was closed", "closed channel"


def outputs(number):
    one = messages.ResponseParameters(size=1, interval_us=500)
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


def carry_out(stub, kind):
    """Carry out an RPC of one kind, on threads."""
    if kind == 0:
        stub.CacheableUnaryCall(messages.SimpleRequest())
    elif kind == 1:
        stub.CacheableUnaryCall.future(messages.SimpleRequest()).result()
    elif kind == 2:
        list(stub.StreamingOutputCall(outputs(3)))
    elif kind == 3:
        stub.StreamingInputCall(iter([messages.StreamingInputCallRequest()] * 3))
    else:
        list(stub.FullDuplexCall(iter([outputs(1)] * 3)))


async def carry_out_on_loop(stub, kind):
    if kind in (0, 1):
        await stub.CacheableUnaryCall(messages.SimpleRequest())
    elif kind == 2:
        assert len([one async for one in stub.StreamingOutputCall(outputs(3))]) == 3
    elif kind == 3:
        await stub.StreamingInputCall(iter([messages.StreamingInputCallRequest()] * 3))
    else:
        assert len([one async for one in stub.FullDuplexCall(iter([outputs(1)] * 3))]) == 3


def is_closed(error):
    text = error.details() if isinstance(error, grpc.RpcError) else str(error)
    return any(one in (text or "") for one in CLOSED)


def is_cancelled(error):
    """True for how gRPC ends the RPCs of a channel of asyncio that is closed."""
    if isinstance(error, grpc.RpcError):
        return error.code() is grpc.StatusCode.CANCELLED
    return isinstance(error, asyncio.CancelledError)


def options(number):
    hedged = {"hedge": HedgePolicy(delay=0.001)} if number % 2 else {}
    return {"retry": RetryPolicy(attempts=3, budget=None), "breaker": None, **hedged}


def test_close_from_several_threads(rpc_servers):
    """Several threads close a channel while others use it: each RPC ends with its response, or with
    an error that says that the channel is closed; nothing is in flight."""
    addresses = [one.address for one in rpc_servers(2)]
    errors = []

    def use(stub, kind, barrier):
        barrier.wait()
        try:
            while True:
                carry_out(stub, kind)
        except (grpc.RpcError, ValueError) as error:
            errors.append(error)

    for number in range(10):
        channel = lbclient.grpc.channel(addresses, **options(number))
        stub, barrier = services.TestServiceStub(channel), threading.Barrier(6)
        users = [threading.Thread(target=use, args=(stub, one, barrier)) for one in range(5)]
        for thread in users:
            thread.start()
        barrier.wait()
        time.sleep(random.Random(number).random() * 0.02)  # at some moment of their RPCs
        closers = [threading.Thread(target=channel.close) for _ in range(3)]
        for thread in closers:
            thread.start()
        for thread in closers + users:
            thread.join(timeout=30)
            assert not thread.is_alive()
        until(lambda: not any(one.in_flight for one in channel.balancer.snapshot().instances))  # noqa: B023
    assert len(errors) == 50
    assert [one for one in errors if not is_closed(one)] == []


def test_close_from_several_tasks(rpc_servers):
    """Several tasks close a channel while others use it, with the same result."""
    addresses = [one.address for one in rpc_servers(2)]
    errors = []

    async def use(stub, kind):
        try:
            while True:
                await carry_out_on_loop(stub, kind)
        except (grpc.RpcError, ValueError, grpc.aio.UsageError) as error:
            errors.append(error)
        except asyncio.CancelledError as error:  # as gRPC's calls raise it
            errors.append(error)

    async def run(number):
        channel = lbclient.grpc.aio.channel(addresses, **options(number))
        stub = services.TestServiceStub(channel)
        users = [asyncio.ensure_future(use(stub, one)) for one in range(5)]
        await asyncio.sleep(random.Random(number).random() * 0.02)
        await asyncio.gather(*(channel.close() for _ in range(3)))
        await asyncio.wait_for(asyncio.gather(*users), 30)
        await asyncio.to_thread(
            until, lambda: not any(one.in_flight for one in channel.balancer.snapshot().instances)
        )

    for number in range(10):
        asyncio.run(run(number))
    assert len(errors) == 50
    cancelled = [one for one in errors if is_cancelled(one)]
    assert [one for one in errors if one not in cancelled and not is_closed(one)] == []


async def used_on_loop(addresses, close, chosen):
    channel = lbclient.grpc.aio.channel(addresses, **chosen)
    await services.TestServiceStub(channel).EmptyCall(messages.Empty(), timeout=10.0)
    if close:
        await channel.close()


def used(kind, addresses, close, chosen, number):
    """Open channels one after another, use each, and close or drop it."""
    if kind == "asyncio":

        async def run():
            for _ in range(number):
                await used_on_loop(addresses, close, chosen)

        asyncio.run(run())
        return
    for _ in range(number):
        channel = lbclient.grpc.channel(addresses, **chosen)
        services.TestServiceStub(channel).EmptyCall(messages.Empty(), timeout=10.0)
        if close:
            channel.close()


def left(before):
    gc.collect()
    return descriptors() > before[0] + 2 or threading.active_count() > before[1]


@pytest.mark.parametrize(
    ("close", "health", "number"),
    [(True, False, 1000), (False, False, 300), (True, True, 200), (False, True, 100)],
    ids=["closed", "dropped", "closed, health", "dropped, health"],
)
def test_many_channels(rpc_servers, kind, close, health, number):
    """Of many channels that were closed or dropped, no thread and no descriptor is left."""
    addresses = [one.address for one in rpc_servers(2)]
    chosen = {"health": HealthCheck(grpc="", interval=1.0, timeout=1.0)} if health else {}
    used(kind, addresses, close, chosen, 3)
    gc.collect()
    until(lambda: not [one for one in threading.enumerate() if "health" in one.name])
    before = descriptors(), threading.active_count()
    used(kind, addresses, close, chosen, number)
    until(lambda: not left(before))


def test_servers_that_flap(rpc_servers, kind):
    """While two of three servers are killed and started again and again, no idempotent RPC fails,
    and at the end all serve, and nothing is left."""
    servers = rpc_servers(3)
    chosen = {
        "retry": RetryPolicy(attempts=4, attempt_timeout=1.0, budget=None),
        "breaker": BreakerPolicy(reset_timeout=0.05, reset_timeout_max=0.1),
        "health": HealthCheck(grpc="", interval=0.1, timeout=0.1, up=1, down=1),
    }
    with channel_of(kind, [one.address for one in servers], **chosen) as channel:
        channel.unary("CacheableUnaryCall", timeout=20.0)
        ended, errors, answers = threading.Event(), [], []

        def use():
            while not ended.is_set():
                try:
                    answers.append(channel.unary("CacheableUnaryCall", timeout=20.0).server_id)
                except grpc.RpcError as error:
                    errors.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for number in range(8):
                servers[number % 2].kill()
                until(lambda: len(answers) > 50 * number)  # noqa: B023
                servers[number % 2].start()
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert errors == []
        seen = set()
        until(
            lambda: (
                seen.add(channel.unary("CacheableUnaryCall", timeout=20.0).server_id)
                or len(seen) == 3
            )
        )
        assert channel.in_flight() == 0
