"""Streams: when they begin, what is repeated, and what their caller gets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time

import grpc
import pytest

import lbclient
from lbclient import RetryPolicy
from lbclient.grpc.calls import Rpc
from lbclient.grpc.event_loops import AioRpc
from tests.support.rpc import channel_of, messages
from tests.support.slow import slow_rows

RETRIED = {
    "retry": RetryPolicy(attempts=5, budget=None, backoff=0.001),
    "strategy": "round-robin",
    "breaker": None,
}


LIMITED = {
    "retry": RetryPolicy(attempts=3, budget=None, backoff=0.001, attempt_timeout=0.1),
    "strategy": "round-robin",
}

TIMED = {**LIMITED, "retry": RetryPolicy(attempts=3, budget=None, attempt_timeout=60.0)}
"""Only the tests let the timer fire."""


def outputs(number, interval=0):
    one = messages.ResponseParameters(size=1, interval_us=interval)
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


def drip(*intervals, code=0):
    """A stream that waits before each message, and ends with this status."""
    each = [messages.ResponseParameters(size=1, interval_us=int(1e6 * one)) for one in intervals]
    status = messages.EchoStatus(code=code, message="enough") if code else None
    return messages.StreamingOutputCallRequest(response_parameters=each, response_status=status)


STREAMS = pytest.mark.parametrize(
    ("method", "requests"),
    [
        ("StreamingOutputCall", lambda one: one),
        *slow_rows(("FullDuplexCall", lambda one: iter([one]))),
    ],
    ids=["one request", "requests"],
)


def failures(channel):
    return {one.instance.port: one.failures for one in channel.balancer.snapshot().instances}


def inputs(*sizes):
    for size in sizes:
        yield messages.StreamingInputCallRequest(payload=messages.Payload(body=bytes(size)))


def test_a_stream_returns_at_once(rpc_servers, rpcs):
    """A stream returns before its first message, also if its service is not resolved yet."""
    (server,) = rpc_servers()
    server.tell("hold")
    call = rpcs([server]).begin("StreamingOutputCall", outputs(2))
    server.tell("release")
    assert len(list(call)) == 2


def test_a_server_that_dies_before_the_first_message(rpc_servers, rpcs):
    """A stream whose server dies before the first message goes on with another instance."""
    dying, live = rpc_servers(2)
    dying.tell("dies-after 0")
    channel = rpcs([dying, live], **RETRIED)
    for _ in range(2):
        call = channel.begin("StreamingOutputCall", outputs(3))
        assert [one.server_id for one in call] == [str(live.port)] * 3
        assert call.code == "OK"
    assert channel.in_flight() == 0


def test_a_server_that_dies_after_the_first_message(rpc_servers, rpcs):
    """Its caller gets what came, once, then UNAVAILABLE."""
    dying, live = rpc_servers(2)
    dying.tell("dies-after 2")
    channel = rpcs([dying, live], **RETRIED)
    ends = {}
    for _ in range(2):
        call, got = channel.begin("StreamingOutputCall", outputs(4)), []
        with contextlib.suppress(grpc.RpcError):
            got.extend(one.server_id for one in iter(call.read, None))
            assert call.code == "OK"
        ends[call.code] = got
    assert ends["OK"] == [str(live.port)] * 4
    assert ends.get("UNAVAILABLE", []) in ([], [str(dying.port)] * 2)
    assert channel.in_flight() == 0


def test_an_instance_is_busy_until_its_stream_ends(rpc_servers, rpcs):
    """A stream takes a slot until it has ended, or its caller has dropped it."""
    (server,) = rpc_servers()
    channel = rpcs([server])
    call = channel.begin("StreamingOutputCall", outputs(2, interval=20_000))
    call.read()
    assert channel.in_flight() == 1
    assert len(list(call)) == 1
    assert call.code == "OK"
    assert channel.in_flight() == 0
    call = channel.begin("StreamingOutputCall", outputs(1000, interval=20_000))
    call.read()
    assert channel.in_flight() == 1
    del call
    gc.collect()
    until = time.monotonic() + 5
    while channel.in_flight():
        assert time.monotonic() < until
        channel.unary()  # the next use gives back what was dropped


def test_requests_are_sent_again(rpc_servers, rpcs):
    """A stream of requests whose server dies is sent to another instance, from its first request
    on."""
    dying, live = rpc_servers(2)
    dying.tell("dies-after 2")
    path = "/grpc.testing.TestService/StreamingInputCall"
    channel = rpcs([dying, live], idempotent=[path], **RETRIED)
    for _ in range(2):
        response = channel.begin("StreamingInputCall", inputs(1, 10, 100)).result()
        assert response.aggregated_payload_size == 111


def test_requests_that_are_not_kept(rpc_servers, rpcs):
    """A stream of more requests than are kept is not sent again."""
    dying, live = rpc_servers(2)
    dying.tell("dies-after 4")
    path = "/grpc.testing.TestService/StreamingInputCall"
    channel = rpcs([dying, live], idempotent=[path], **RETRIED)
    large = [100_000] * 10
    codes = {channel.begin("StreamingInputCall", inputs(*large)).code for _ in range(2)}
    assert codes == {"OK", "UNAVAILABLE"}


def test_a_dead_instance_costs_no_stream(rpc_servers, rpcs):
    """A stream of requests that was never sent goes to another instance."""
    dead, live = rpc_servers(2)
    dead.kill()
    channel = rpcs([dead, live], **RETRIED)
    for _ in range(4):
        call = channel.begin("StreamingInputCall", inputs(1, 2, 3))
        assert call.result().aggregated_payload_size == 6


def test_requests_whose_iterator_waits(rpc_servers):
    """The requests that an attempt took are sent again although the iterator waits for a
    response before it yields more."""
    dead, live = rpc_servers(2)
    dead.kill()
    with channel_of("threads", [dead.address, live.address], **RETRIED) as channel:
        _talk(channel, live)


def _talk(channel, live):
    for _ in range(2):
        answered = threading.Event()

        def requests(answered=answered):
            yield outputs(1)
            assert answered.wait(10)
            yield outputs(1)

        call = channel.begin("FullDuplexCall", requests())
        assert call.read().server_id == str(live.port)
        answered.set()
        assert len(list(call)) == 1
        assert call.code == "OK"


def test_an_iterator_that_fails(rpc_servers, rpcs):
    """An iterator of requests that raises ends the RPC, which is not repeated."""
    (server,) = rpc_servers()
    channel = rpcs([server], **RETRIED)

    def requests():
        yield outputs(1)
        raise ValueError("no more")

    call = channel.begin("FullDuplexCall", requests())
    assert call.code in {"CANCELLED", "UNKNOWN"}
    assert server.calls <= 1
    (one,) = channel.balancer.snapshot().instances
    assert (one.failures, one.in_flight) == (0, 0)


def test_initial_metadata_commit_a_stream(rpc_servers, rpcs):
    """A caller that has got the initial metadata of a stream gets its messages from the same
    attempt, or none."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("dies-after 0")
    metadata = (("x-grpc-test-echo-initial", "here"),)
    for _ in itertools.repeat(None, 1):
        channel = rpcs(servers, **RETRIED)
        call = channel.begin("StreamingOutputCall", outputs(1), metadata=metadata)
        if metadata[0] in tuple(call.get("initial_metadata") or ()):
            with pytest.raises(grpc.RpcError):
                call.read()
        assert call.code == "UNAVAILABLE"
        assert channel.in_flight() == 0


class Reading:
    """Reads a stream on a thread of its own."""

    def __init__(self, channel, call):
        self.got = []
        self._channel, self._rpc = channel, call.call._rpc
        self._thread = threading.Thread(target=lambda: self.got.extend(call))
        self._thread.start()

    def expire(self, seconds=0.0):
        """Let the timer of the attempt fire, as if it were this late."""
        while self._rpc._timer is None:
            time.sleep(0.001)
        late = self._rpc.inner, time.monotonic() - seconds
        if self._channel.loop is None:
            self._rpc._time_out(*late)
        else:
            self._channel.loop.loop.call_soon_threadsafe(self._rpc._time_out, *late)

    @property
    def port(self):
        """The port of the instance that has the attempt."""
        while self._rpc.inner is None:
            time.sleep(0.001)
        return self._rpc._current[0].endpoint.instance.port

    def end(self):
        self._thread.join()
        return self.got


@STREAMS
def test_a_stream_may_last_longer_than_an_attempt(rpc_servers, rpcs, method, requests):
    """`attempt_timeout` bounds the wait for the first message, and not the stream."""
    (server,) = rpc_servers()
    channel = rpcs([server], **TIMED)
    call = channel.begin(method, requests(drip(0, 0.02, 0.02)))
    call.read()
    rpc = call.call._rpc
    assert rpc._timer is None
    rpc._time_out(rpc.inner, time.monotonic())
    assert len(list(call)) == 2
    assert call.code == "OK"
    assert failures(channel) == {server.port: 0}
    assert server.told()["timeouts"] == [None]


def test_the_timer_of_an_attempt_that_was_replaced(rpc_servers, rpcs):
    """If the timer of an earlier attempt fires late, the current attempt keeps its own timer."""
    (server,) = rpc_servers()
    server.tell("hold")
    channel = rpcs([server], **TIMED)
    reading = Reading(channel, channel.begin("StreamingOutputCall", outputs(1)))
    rpc = reading._rpc
    while (timer := rpc._timer) is None:
        time.sleep(0.001)
    rpc._time_out(object(), time.monotonic() - 100)
    assert rpc._timer is timer
    server.tell("release")
    assert len(reading.end()) == 1


@STREAMS
def test_a_first_message_that_is_late(rpc_servers, rpcs, method, requests):
    """An attempt whose first message does not arrive within `attempt_timeout` is ended, its
    instance is charged, and the stream goes on with another instance."""
    held, live = rpc_servers(2)
    held.tell("hold")
    channel = rpcs([held, live], breaker=None, **TIMED)
    for _ in range(2):
        reading = Reading(channel, channel.begin(method, requests(drip(0, 0.05))))
        if reading.port == held.port:
            reading.expire()
        assert [one.server_id for one in reading.end()] == [str(live.port)] * 2
    assert failures(channel) == {held.port: 1, live.port: 0}
    assert channel.in_flight() == 0
    held.tell("release")


@pytest.mark.slow
def test_attempts_of_all_kinds_expire_alike(rpc_servers, rpcs):
    """An attempt that is too late is charged and told in the same way, whether it has one response
    or a stream of responses."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("hold")
    found = []
    for method, request in (("CacheableUnaryCall", None), ("StreamingOutputCall", outputs(1))):
        channel = rpcs(servers, breaker=None, **LIMITED)
        call = channel.begin(method, request)
        with pytest.raises(grpc.RpcError) as caught:
            call.result() if request is None else call.read()
        info = lbclient.call_info(caught.value)
        statuses = [str(each.status) for each in info.attempts]
        found.append(
            (caught.value.code(), statuses, info.stopped, sorted(failures(channel).values()))
        )
        assert call.code == "DEADLINE_EXCEEDED"
        assert channel.in_flight() == 0
    assert found[0] == found[1]
    assert found[0][1:3] == (["DEADLINE_EXCEEDED"] * 3, "attempts")
    for one in servers:
        one.tell("release")


@pytest.mark.slow
def test_a_reader_that_comes_late_charges_no_instance(rpc_servers, rpcs):
    """While nobody reads a stream, no message can arrive, so its `attempt_timeout` does not run."""
    (server,) = rpc_servers()
    server.tell("hold")
    channel = rpcs([server], **TIMED)
    call = channel.begin("StreamingOutputCall", outputs(2))
    while server.calls == 0:
        time.sleep(0.001)
    assert call.call._rpc._timer is None
    reading = Reading(channel, call)
    reading.expire()
    server.tell("release")
    assert len(reading.end()) == 2
    assert (failures(channel), server.calls) == ({server.port: 1}, 2)


@pytest.mark.slow
def test_a_process_that_was_suspended(rpc_servers, rpcs, monkeypatch):
    """A timer that fires much too late, since the process did not run, first lets messages arrive,
    and a deadline that gRPC notices too late charges no instance."""
    monkeypatch.setattr(lbclient.grpc.rpc, "_LOOK", 60.0)
    (server,) = rpc_servers()
    server.tell("hold")
    channel = rpcs([server], **TIMED)
    reading = Reading(channel, channel.begin("StreamingOutputCall", outputs(2)))
    reading.expire(seconds=1.0)
    server.tell("release")
    assert len(reading.end()) == 2
    assert (server.calls, failures(channel)) == (1, {server.port: 0})
    jump = 0.0
    server.tell("hold")
    policy = RetryPolicy(attempts=1, attempt_timeout=0.2)
    channel = rpcs([server], retry=policy, clock=lambda: time.monotonic() + jump)
    call = channel.begin("UnaryCall")
    while call.call._rpc.inner is None:
        time.sleep(0.001)
    jump = 60.0
    assert call.code == "DEADLINE_EXCEEDED"
    assert failures(channel) == {server.port: 0}
    server.tell("release")


@pytest.mark.slow
def test_the_metadata_of_a_late_attempt(rpc_servers, rpcs):
    """A caller that waits for the initial metadata of late attempts gets none."""
    (held,) = rpc_servers()
    held.tell("hold")
    call = rpcs([held], **LIMITED).begin("StreamingOutputCall", outputs(1))
    assert tuple(call.get("initial_metadata")) == ()
    assert call.code == "DEADLINE_EXCEEDED"
    held.tell("release")


@pytest.mark.slow
def test_a_task_that_is_cancelled_while_its_attempt_expires(rpc_servers):
    """A task that is cancelled stays cancelled, also if `attempt_timeout` ends the attempt in the
    same moment."""
    (server,) = rpc_servers()
    server.tell("hold")
    with channel_of("asyncio", [server.address], **TIMED) as channel:

        async def read():
            call = channel.stub.StreamingOutputCall(outputs(1))
            task = asyncio.ensure_future(call.read())
            while call._rpc._timer is None:  # noqa: ASYNC110  # its first step begins it
                await asyncio.sleep(0)
            call._rpc._time_out(call._rpc.inner, time.monotonic())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert call.cancelled()

        channel.loop.run(read())
        server.tell("release")
        assert channel.in_flight() == 0


@STREAMS
def test_the_error_of_a_stream_tells_its_attempts(rpc_servers, rpcs, method, requests):
    """A stream that fails after its first message raises an error with all attempts, of which the
    last one has its status."""
    dying, live = rpc_servers(2)
    dying.tell("dies-after 0")
    channel = rpcs([dying, live], **RETRIED)
    told = []
    for _ in range(3):
        call = channel.begin(method, requests(drip(0, 0, code=5)))
        assert [call.read().server_id, call.read().server_id] == [str(live.port)] * 2
        with pytest.raises(grpc.RpcError) as caught:
            call.read()
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.NOT_FOUND,
            "enough",
        )
        info = lbclient.call_info(caught.value)
        assert str(info.attempts[-1].status) == "NOT_FOUND"
        assert info.attempts[-1].instance.port == live.port
        assert info.stopped == "streaming"
        assert "already passed on" in caught.value.__notes__[0]
        assert (call.code, call.get("details")) == ("NOT_FOUND", "enough")
        told.append(len(info.attempts))
    assert 2 in told
    assert channel.in_flight() == 0


@STREAMS
@pytest.mark.parametrize("judge", [None, *slow_rows(lambda _: lbclient.Verdict(fault=True))])
def test_a_stream_that_reaches_its_deadline(rpc_servers, rpcs, method, requests, judge):
    """A stream that reaches its caller's deadline after its first message charges no instance."""
    (server,) = rpc_servers()
    channel = rpcs([server], judge=judge, breaker=None)
    list(channel.begin(method, requests(drip(0))))  # connects
    before = failures(channel)
    call = channel.begin(method, requests(drip(0, 60)), timeout=2.0)
    assert call.read().server_id == str(server.port)
    with pytest.raises(grpc.RpcError) as caught:
        call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failures(channel) == before
    assert channel.in_flight() == 0


def test_a_message_just_before_an_error(rpc_servers, rpcs, monkeypatch):
    """A caller gets a message that arrived before the error of its stream, also if the error is
    known when the message is passed on."""
    before = AioRpc.commit, Rpc.commit

    async def late(rpc, inner, holder):
        await rpc.outcome()
        return await before[0](rpc, inner, holder)

    def late_on_threads(rpc, inner, holder):
        rpc.wait_until_over()
        return before[1](rpc, inner, holder)

    (server,) = rpc_servers()
    channel = rpcs([server], retry=None)
    monkeypatch.setattr(AioRpc, "commit", late)
    monkeypatch.setattr(Rpc, "commit", late_on_threads)
    for timeout in (None, 10.0):
        call = channel.begin("StreamingOutputCall", drip(0, code=5), timeout=timeout)
        assert call.read().server_id == str(server.port)
        with pytest.raises(grpc.RpcError, match="enough"):
            call.read()
    assert channel.in_flight() == 0


def test_a_response_that_cannot_be_read(rpc_servers):
    """A stream ends at once if the caller's deserializer raises, and its instance is not
    charged."""
    (server,) = rpc_servers()
    with channel_of("threads", [server.address]) as channel:
        for good in (0, 1):
            seen = []

            def parse(data, seen=seen, good=good):
                seen.append(data)
                if len(seen) > good:
                    raise ValueError("malformed")
                return data

            method = channel.channel.unary_stream(
                "/grpc.testing.TestService/StreamingOutputCall",
                messages.StreamingOutputCallRequest.SerializeToString,
                parse,
            )
            call = method(outputs(1000, interval=5000))
            with pytest.raises(grpc.RpcError, match="deserializing"):
                list(call)
            assert len(seen) == good + 1
            assert call.code() is grpc.StatusCode.INTERNAL
        assert (failures(channel), channel.in_flight()) == ({server.port: 0}, 0)
