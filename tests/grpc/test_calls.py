"""What the caller of an RPC can ask for: futures, calls, deadlines, interceptors, cancellation."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

import lbclient
import lbclient.grpc
from lbclient import HedgePolicy, RetryPolicy
from lbclient.grpc import subchannels
from lbclient.grpc.calls import Rpc
from lbclient.grpc.replay import Message, SentRequests
from lbclient.grpc.subchannels import SubChannels
from tests.support.rpc import channel_of, messages, services
from tests.support.watchers import Registry, several, until

LATE = 0.05
"""Seconds by which a deadline may be noticed late."""
METADATA = (
    ("x-grpc-test-echo-initial", "first"),
    ("x-grpc-test-echo-trailing-bin", b"last"),
)


def outputs(number, interval=0):
    one = messages.ResponseParameters(size=1, interval_us=interval)
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


@pytest.fixture
def server(rpc_servers):
    (one,) = rpc_servers()
    return one


def test_metadata_of_the_attempt_that_stands(rpc_servers, rpcs):
    """Response, metadata and details come from the same attempt: the last one."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    channel = rpcs([busy, live], strategy="round-robin")
    for _ in range(2):
        call = channel.begin("CacheableUnaryCall", metadata=METADATA, timeout=10.0)
        assert call.result().server_id == str(live.port)
        assert METADATA[0] in tuple(call.get("initial_metadata"))
        assert METADATA[1] in tuple(call.get("trailing_metadata"))
        assert (call.code, call.get("details")) == ("OK", "")


def test_with_call(server):
    """`with_call` returns the response and its call."""
    with channel_of("threads", [server.address]) as rpcs:
        response, call = rpcs.stub.UnaryCall.with_call(messages.SimpleRequest(), metadata=METADATA)
        assert response.server_id == str(server.port)
        assert call.code() is grpc.StatusCode.OK
        assert METADATA[1] in tuple(call.trailing_metadata())
        requests = iter([messages.StreamingInputCallRequest()])
        response, call = rpcs.stub.StreamingInputCall.with_call(requests)
        assert (response.aggregated_payload_size, call.code()) == (0, grpc.StatusCode.OK)


def test_a_future(server):
    """A future of ours does what a future of gRPC's does."""
    with channel_of("threads", [server.address]) as rpcs:
        server.tell("hold")
        told = []
        ended = threading.Event()
        future = rpcs.stub.UnaryCall.future(messages.SimpleRequest(), timeout=30.0)
        future.add_done_callback(told.append)
        future.add_done_callback(lambda _: ended.set())
        assert (future.done(), future.running(), future.is_active()) == (False, True, True)
        assert 0 < future.time_remaining() <= 30.0
        with pytest.raises(grpc.FutureTimeoutError):
            future.result(timeout=0.01)
        server.tell("release")
        assert future.result(timeout=10).server_id == str(server.port)
        assert ended.wait(10)
        assert told == [future]
        assert (future.exception(), future.traceback()) == (None, None)
        assert (future.done(), future.running(), future.cancel()) == (True, False, False)
        assert not future.add_callback(told.clear)
        future.add_done_callback(told.append)
        assert told == [future, future]


def test_a_future_that_fails(server):
    """A future raises the error of its last attempt."""
    server.tell("status NOT_FOUND no such order")
    with channel_of("threads", [server.address]) as rpcs:
        future = rpcs.stub.UnaryCall.future(messages.SimpleRequest())
        assert future.exception().code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError, match="no such order"):
            future.result()
        assert future.traceback() is not None


def test_a_future_that_is_cancelled(server):
    """A future that is cancelled raises FutureCancelledError, and its instance is free."""
    server.tell("hold")
    with channel_of("threads", [server.address]) as rpcs:
        future = rpcs.stub.UnaryCall.future(messages.SimpleRequest())
        assert future.cancel()
        assert (future.cancelled(), future.done()) == (True, True)
        with pytest.raises(grpc.FutureCancelledError):
            future.result()
        assert future.code() is grpc.StatusCode.CANCELLED
        assert rpcs.in_flight() == 0
        server.tell("release")


def test_a_call_that_is_cancelled(server, rpcs):
    """A call that is cancelled ends with CANCELLED, charges nobody, and is not repeated."""
    server.tell("hold")
    channel = rpcs([server])
    for method, request in (
        ("CacheableUnaryCall", None),
        ("StreamingOutputCall", outputs(1)),
        ("FullDuplexCall", iter([outputs(1)])),
    ):
        call = channel.begin(method, request)
        call.cancel()
        assert call.code == "CANCELLED"
        assert call.get("details") == "Locally cancelled by application!"
    (one,) = channel.balancer.snapshot().instances
    assert (one.in_flight, one.failures) == (0, 0)
    server.tell("release")


def test_a_task_that_is_cancelled(server):
    """A task that is cancelled while it awaits an RPC cancels it."""
    server.tell("hold")
    with channel_of("asyncio", [server.address]) as rpcs:

        async def cancel():
            call = rpcs.stub.UnaryCall(messages.SimpleRequest())
            task = asyncio.ensure_future(_waited(call))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (call.cancelled(), call.done()) == (True, True)
            assert await call.code() is grpc.StatusCode.CANCELLED

        rpcs.loop.run(cancel())
        assert rpcs.in_flight() == 0
        server.tell("release")


async def _waited(call):
    return await call


def test_a_call_of_asyncio(server):
    """A call of ours does what a call of gRPC's does: in any order, by any number of tasks."""
    server.tell("hold")
    with channel_of("asyncio", [server.address]) as rpcs:
        told = []

        async def wait():
            call = rpcs.stub.UnaryCall(messages.SimpleRequest(), timeout=30.0)
            call.add_done_callback(told.append)
            assert (call.done(), call.cancelled()) == (False, False)
            assert 0 < call.time_remaining() <= 30.0
            others = [asyncio.ensure_future(_waited(call)) for _ in range(3)]
            codes = asyncio.ensure_future(call.code())
            await asyncio.sleep(0.02)
            server.tell("release")
            responses = await asyncio.gather(*others)
            assert {one.server_id for one in responses} == {str(server.port)}
            assert await call == responses[0]
            assert await codes is grpc.StatusCode.OK
            assert told == [call]
            assert call.cancel() is False
            call.add_done_callback(told.append)
            assert told == [call, call]
            await call.wait_for_connection()

        rpcs.loop.run(wait())


def test_an_error_can_be_awaited_again(server):
    """An RPC that has failed raises the same error each time."""
    server.tell("status NOT_FOUND no")
    with channel_of("asyncio", [server.address]) as rpcs:

        async def wait():
            call = rpcs.stub.UnaryCall(messages.SimpleRequest())
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError, match="no"):
                    await call
            assert await call.details() == "no"

        rpcs.loop.run(wait())


@pytest.mark.parametrize("hedge", [None, HedgePolicy(delay=60.0)], ids=["plain", "hedged"])
def test_a_server_that_cancels(server, rpcs, hedge):
    """The status CANCELLED of a server is an error like any other: the caller is not cancelled."""
    server.tell("status CANCELLED by the server")
    channel = rpcs([server], hedge=hedge, idempotent=lambda _: True)
    error = channel.error()
    assert (error.code(), error.details()) == (grpc.StatusCode.CANCELLED, "by the server")
    for method, request in [("UnaryCall", None), ("StreamingOutputCall", outputs(1))]:
        call = channel.begin(method, request)
        with pytest.raises(grpc.RpcError, match="by the server"):
            call.read() if request else call.result()
        assert (call.code, call.get("details")) == ("CANCELLED", "by the server")
    assert failures(channel) == [0]


def failures(channel):
    return [one.failures for one in channel.balancer.snapshot().instances]


def test_reading_and_writing(server):
    """Streams of asyncio are read and written message by message, or iterated over, not both."""
    with channel_of("asyncio", [server.address]) as rpcs:

        async def talk():
            call = rpcs.stub.FullDuplexCall()
            for _ in range(3):
                await call.write(outputs(1))
                assert (await call.read()).server_id == str(server.port)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
            with pytest.raises(grpc.aio.UsageError):
                aiter(call)
            with pytest.raises(asyncio.InvalidStateError):
                await call.write(outputs(1))
            call = rpcs.stub.FullDuplexCall(iter([outputs(2)]))
            assert len([one async for one in call]) == 2
            with pytest.raises(grpc.aio.UsageError):
                await call.read()
            with pytest.raises(grpc.aio.UsageError):
                await call.write(outputs(1))
            call = rpcs.stub.StreamingInputCall()
            await call.write(messages.StreamingInputCallRequest())
            await call.done_writing()
            await call.done_writing()
            assert (await call).aggregated_payload_size == 0

        rpcs.loop.run(talk())


@pytest.mark.parametrize(
    "method", ["UnaryCall", "StreamingOutputCall", "FullDuplexCall", "StreamingInputCall"]
)
def test_deadlines(server, rpcs, method):
    """The timeout of an RPC of any kind ends it, and the server is told of it."""
    server.tell("hold")
    channel = rpcs([server])
    request = {
        "UnaryCall": None,
        "StreamingOutputCall": outputs(1),
        "FullDuplexCall": iter([outputs(1)]),
        "StreamingInputCall": iter([messages.StreamingInputCallRequest()]),
    }[method]
    began = time.monotonic()
    assert channel.begin(method, request, timeout=0.2).code == "DEADLINE_EXCEEDED"
    took = time.monotonic() - began
    assert took >= 0.2
    server.tell("release")
    (told,) = server.told()["timeouts"]
    assert 0 < told <= 0.2 + LATE
    assert channel.in_flight() == 0


@pytest.mark.parametrize("timeout", [0, -1.0])
def test_a_timeout_that_has_passed(server, rpcs, timeout):
    """An RPC whose timeout is 0 or less ends at its deadline, and nothing is sent."""
    channel = rpcs([server])
    for options in ({}, {"wait_for_ready": True}):
        error = channel.error(timeout=timeout, **options)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert channel.begin("UnaryCall", timeout=timeout, **options).code == "DEADLINE_EXCEEDED"
        call = channel.begin("StreamingOutputCall", outputs(1), timeout=timeout, **options)
        with pytest.raises(grpc.RpcError, match="nothing was sent"):
            call.read()
    assert server.calls == 0


def test_the_deadline_of_a_block(server, rpcs, kind):
    """`lbclient.deadline` bounds every RPC that begins in its block."""
    server.tell("hold")
    channel = rpcs([server])
    if kind == "threads":
        with lbclient.deadline(0.1):
            error = channel.error()
    else:

        async def bounded():
            with lbclient.deadline(0.1):
                try:
                    await channel.stub.UnaryCall(messages.SimpleRequest())
                except grpc.RpcError as error:
                    return error

        error = channel.loop.run(bounded())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.tell("release")


def test_wait_for_ready(rpc_servers, rpcs):
    """With `wait_for_ready`, an RPC waits for an instance, as long as its deadline allows."""
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server])
    error = channel.error(timeout=0.3, wait_for_ready=True)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    call = channel.begin("UnaryCall", timeout=30.0, wait_for_ready=True)
    starting = threading.Thread(target=server.start)
    starting.start()
    assert channel.unary(timeout=30.0, wait_for_ready=True).server_id == str(server.port)
    assert call.result().server_id == str(server.port)
    starting.join()


def test_wait_for_ready_is_cancelled(rpc_servers, rpcs):
    """An RPC that waits for an instance can be cancelled."""
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server], retry=None)
    call = channel.begin("UnaryCall", wait_for_ready=True)
    call.cancel()
    assert call.code == "CANCELLED"


def test_a_cancellation_ends_the_wait_for_an_instance(rpc_servers, rpcs, monkeypatch):
    """An RPC that is cancelled or dropped in a pause of `wait_for_ready` ends at once."""
    monkeypatch.setattr(lbclient.grpc.rpc, "AGAIN", 600.0)
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server], retry=None)
    call = channel.begin("UnaryCall", wait_for_ready=True)
    wait_for_pause(call.call._rpc)
    call.cancel()
    assert call.code == "CANCELLED"
    call = channel.begin("StreamingOutputCall", outputs(1), wait_for_ready=True)
    rpc = call.call._rpc
    wait_for_pause(rpc)
    del call
    until(lambda: rpc.over)
    assert rpc.final.code() is grpc.StatusCode.CANCELLED


def test_requests_that_cannot_be_sent_again_are_not_waited_for(rpc_servers, rpcs):
    """An RPC with `wait_for_ready` whose requests are too long to be stored ends when no instance
    accepts a connection."""
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server])
    sizes = 300 * 1024, 5, 7
    long = [messages.StreamingInputCallRequest(payload={"body": bytes(size)}) for size in sizes]
    call = channel.begin("StreamingInputCall", iter(long), timeout=60.0, wait_for_ready=True)
    assert call.code == "UNAVAILABLE"


def test_requests_that_are_no_longer_stored():
    """An attempt never gets a later request in place of one that is no longer stored."""
    requests = SentRequests()
    requests.append(Message(bytes(300 * 1024), None))
    requests.get(0)
    requests.append(Message(b"second", None))
    assert requests.get(1).serialized() == b"second"
    requests.append(Message(b"third", None))
    with pytest.raises(LookupError):
        requests.get(1)


def test_wait_for_ready_while_the_last_round_has_not_returned(rpc_servers, monkeypatch):
    """An RPC that waits for an instance begins again although another thread, which has begun the
    previous attempt, has not returned yet."""
    monkeypatch.setattr(lbclient.grpc.rpc, "AGAIN", 0.001)
    begin, begun, third = Rpc._begin, itertools.count(), threading.Event()

    def slow(self, *arguments):
        begin(self, *arguments)
        number = next(begun)
        if number == 1:
            assert third.wait(10)
        elif number == 2:
            third.set()

    monkeypatch.setattr(Rpc, "_begin", slow)
    (server,) = rpc_servers()
    server.kill()
    with channel_of("threads", [server.address], retry=None, breaker=None) as channel:
        call = channel.begin("UnaryCall", wait_for_ready=True)
        assert third.wait(10)
        server.start()
        assert call.call.result(timeout=10).server_id == str(server.port)


def wait_for_pause(rpc):
    """Wait until an RPC is in a pause of `wait_for_ready`."""
    until(lambda: rpc._pause is not None)


@pytest.mark.slow
def test_nobody_keeps_an_rpc_that_waits(rpc_servers, rpcs):
    """The callback of an RPC comes although nobody keeps the RPC while it waits for an instance."""
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server], retry=None)
    ended = threading.Event()
    call = channel.begin("UnaryCall", wait_for_ready=True)
    call.add_callback(ended.set)
    wait_for_pause(call.call._rpc)
    del call
    gc.collect()
    server.start()
    assert ended.wait(10)


def test_a_channel_is_closed_while_an_rpc_waits(rpc_servers, rpcs):
    """An RPC that waits for an instance ends when its channel is closed: cancelled in a pause, and
    otherwise with the error of its attempt."""
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server], retry=None)
    call = channel.begin("UnaryCall", wait_for_ready=True)
    channel.close_channel()
    assert call.code in {"CANCELLED", "UNAVAILABLE"}


def test_a_channel_is_closed_between_the_rounds_of_a_wait(rpc_servers, rpcs, monkeypatch):
    """A call that waits for an instance is cancelled when its channel is closed."""
    monkeypatch.setattr(lbclient.grpc.rpc, "AGAIN", 0.3)
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server], retry=None, breaker=None)
    with ThreadPoolExecutor() as threads:
        error = threads.submit(channel.error, wait_for_ready=True)
        until = time.monotonic() + 10
        while not channel.balancer.snapshot().instances[0].failures:
            assert time.monotonic() < until
            time.sleep(0.001)
        channel.close_channel()
        assert error.result(10).code() is grpc.StatusCode.CANCELLED


def test_a_channel_is_closed_between_two_attempts(rpc_servers, rpcs, monkeypatch):
    """A call whose retry finds the channel closed is cancelled."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("status UNAVAILABLE busy")
    to, begun = SubChannels.to, itertools.count()

    def closed(self, endpoint):
        if next(begun) % 2:
            channel.channel._adapter.close()
            self.closed = True
            return self._new(endpoint)
        return to(self, endpoint)

    monkeypatch.setattr(SubChannels, "to", closed)
    channel = rpcs(servers, retry=RetryPolicy(attempts=2, budget=None), idempotent=lambda _: True)
    assert channel.error("CacheableUnaryCall").code() is grpc.StatusCode.CANCELLED


def test_hedging(rpc_servers, rpcs):
    """A unary RPC whose instance is slow gets its answer from another one."""
    slow, fast = rpc_servers(2)
    slow.tell("hold")
    hedge = HedgePolicy(delay=0.02, budget=None)
    channel = rpcs([slow, fast], hedge=hedge, strategy="round-robin")
    for _ in range(4):
        assert channel.unary("CacheableUnaryCall").server_id == str(fast.port)
    slow.tell("release")
    assert channel.begin("CacheableUnaryCall").result().server_id
    until(lambda: not channel.in_flight())


def test_compression(server, rpcs):
    """The compression of an RPC is passed on."""
    channel = rpcs([server])
    payload = messages.Payload(body=bytes(10_000))
    request = messages.SimpleRequest(payload=payload, response_size=10_000)
    response = channel.unary("UnaryCall", request, compression=grpc.Compression.Gzip)
    assert len(response.payload.body) == 10_000


def test_interceptors_of_threads(server):
    """Interceptors see each RPC once, whatever the number of its attempts, and may change it."""

    class Adds(
        grpc.UnaryUnaryClientInterceptor,
        grpc.UnaryStreamClientInterceptor,
        grpc.StreamUnaryClientInterceptor,
        grpc.StreamStreamClientInterceptor,
    ):
        seen = 0

        def intercept_unary_unary(self, continuation, details, request):
            type(self).seen += 1
            outcome = continuation(details, request)
            outcome.code()
            return outcome

        def intercept_unary_stream(self, continuation, details, request):
            return continuation(details, request)

        intercept_stream_unary = intercept_stream_stream = intercept_unary_stream

    with channel_of("threads", [server.address], interceptors=[Adds()]) as rpcs:
        for _ in range(3):
            assert rpcs.unary().server_id == str(server.port)
        assert rpcs.begin("UnaryCall").result().server_id == str(server.port)
        assert len(list(rpcs.begin("StreamingOutputCall", outputs(2)))) == 2
        assert Adds.seen == 4
        server.tell("status NOT_FOUND no")
        assert rpcs.error().code() is grpc.StatusCode.NOT_FOUND


def test_interceptors_of_asyncio(server):
    """Interceptors of all four kinds are called, in order."""
    seen = []

    class Unary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            seen.append("unary")
            return await continuation(details, request)

    class Duplex(grpc.aio.StreamStreamClientInterceptor):
        async def intercept_stream_stream(self, continuation, details, requests):
            seen.append("duplex")
            return await continuation(details, requests)

    with channel_of("asyncio", [server.address], interceptors=[Unary(), Duplex()]) as rpcs:
        assert rpcs.unary().server_id == str(server.port)
        assert len(list(rpcs.begin("FullDuplexCall", iter([outputs(2)])))) == 2
        assert len(list(rpcs.begin("StreamingOutputCall", outputs(2)))) == 2
        requests = iter([messages.StreamingInputCallRequest()])
        assert rpcs.begin("StreamingInputCall", requests).result().aggregated_payload_size == 0
        assert seen == ["unary", "duplex"]
        server.tell("status NOT_FOUND no")
        assert rpcs.error().code() is grpc.StatusCode.NOT_FOUND


def test_stubs_of_one_method_with_interceptors(server):
    """With interceptors, each stub of a method uses its own serializer and deserializer, also if an
    interceptor calls another stub."""
    path = "/grpc.testing.TestService/UnaryCall"

    class Calls(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            if request == "outer":
                assert await inner("inner") == "inner"
            return await continuation(details, request)

    async def run():
        nonlocal inner
        async with lbclient.grpc.aio.channel([server.address], interceptors=[Calls()]) as channel:
            outer, inner = (
                channel.unary_unary(path, lambda _: b"", lambda _, name=name: name)
                for name in ("outer", "inner")
            )
            assert await outer("outer") == "outer"
            assert await asyncio.gather(outer("x"), inner("x")) == ["outer", "inner"]

    inner = None
    asyncio.run(run())


@pytest.mark.parametrize("hedge", [None, HedgePolicy(delay=60.0)], ids=["plain", "hedged"])
def test_a_closed_channel(server, rpcs, hedge):
    """A closed channel refuses RPCs, and closing cancels those under way."""
    server.tell("hold")
    channel = rpcs([server], hedge=hedge)
    call = channel.begin("UnaryCall", timeout=30.0)
    channel.close_channel()
    assert call.code == "CANCELLED"
    with pytest.raises(ValueError, match="is closed: open a new channel"):
        channel.unary()
    (one,) = channel.balancer.snapshot().instances
    assert (one.failures, one.in_flight) == (0, 0)
    server.tell("release")


def test_close_cancels_rpcs_of_servers_that_have_left(rpc_servers, rpcs):
    """Closing a channel also cancels the RPCs of servers that have left the service."""
    first, second = rpc_servers(2)
    registry = Registry(several(first.port))
    channel = rpcs(registry)
    one, later = messages.ResponseParameters(), messages.ResponseParameters(interval_us=60_000_000)
    request = messages.StreamingOutputCallRequest(response_parameters=[one, later])
    stream = channel.begin("StreamingOutputCall", request, timeout=10.0)
    assert stream.read().server_id == str(first.port)
    registry.update(several(second.port))
    until(lambda: [one.port for one in channel.balancer.instances()] == [second.port])
    assert channel.unary(timeout=10.0).server_id == str(second.port)
    channel.close_channel()
    assert stream.code == "CANCELLED"


def test_a_channel_is_ready(server, kind, rpcs, rpc_servers):
    """`channel_ready` waits until an instance accepts a connection."""
    channel = rpcs([server])
    if kind == "threads":
        grpc.channel_ready_future(channel.channel).result(timeout=10)
        (dead,) = rpc_servers()
        dead.kill()
        with channel_of(kind, [dead.address]) as other, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(other.channel).result(timeout=0.2)
    else:
        channel.loop.run(channel.channel.channel_ready())
        state = channel.channel.get_state()
        assert state is grpc.ChannelConnectivity.READY


def test_stubs_that_are_made_for_each_call(server, rpcs):
    """A stub that is made anew for each RPC costs no more memory."""
    channel = rpcs([server])
    for _ in range(3):
        channel.stub = services.TestServiceStub(channel.channel)
        channel.unary()
    made = getattr(channel.channel, "_made", None) or channel.channel._direct._made
    assert len(made) == 7


def test_stubs_with_serializers_of_their_own(server, rpcs, monkeypatch):
    """Many stubs, each with a serializer of its own, cost a bounded amount of memory, and an old
    one still works."""
    monkeypatch.setattr(subchannels, "_MOST", 10)
    channel = rpcs([server])

    def call(stub):
        if channel.loop is None:
            return stub(b"")

        async def wait():
            return await stub(b"")

        return channel.loop.run(wait())

    path = "/grpc.testing.TestService/UnaryCall"
    stubs = [channel.channel.unary_unary(path, lambda one: one) for _ in range(25)]
    for stub in [*stubs, stubs[0]]:
        assert str(server.port).encode() in call(stub)
    if channel.loop is None:
        direct = channel.channel._direct
        made, opened = direct._made, direct.subchannels._known
    else:
        made = channel.channel._made
        opened = channel.channel._loops[channel.loop.loop].subchannels._known
    (subchannel,) = opened.values()
    assert len(made) <= 10
    assert len(subchannel.methods) <= 10


def test_two_loops(server):
    """A channel of asyncio may be used in one event loop after another."""
    channel = None

    async def call():
        nonlocal channel
        channel = channel or lbclient.grpc.aio.channel([server.address])
        return await services.TestServiceStub(channel).UnaryCall(messages.SimpleRequest())

    for _ in range(2):
        assert asyncio.run(call()).server_id == str(server.port)
    asyncio.run(channel.close())


def test_a_channel_of_several_loops_forgets_those_that_are_closed(server):
    """The balancer does not keep what a channel had in an event loop that is closed."""
    channel = lbclient.grpc.aio.channel([server.address])

    async def call():
        await services.TestServiceStub(channel).UnaryCall(messages.SimpleRequest())

    for _ in range(4):
        asyncio.run(call())
        gc.collect()
    assert len(channel._adapter.binding.pool._listeners) < 4
    asyncio.run(channel.close())


def test_retries_of_futures(rpc_servers):
    """A future is sent again, and waits between its attempts without a thread of its own."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    policy = RetryPolicy(attempts=3, budget=None, backoff=0.05)
    addresses = [busy.address, live.address]
    with channel_of("threads", addresses, retry=policy, strategy="round-robin") as rpcs:
        futures = [rpcs.stub.CacheableUnaryCall.future(messages.SimpleRequest()) for _ in range(8)]
        assert {one.result(timeout=10).server_id for one in futures} == {str(live.port)}
        assert rpcs.in_flight() == 0
