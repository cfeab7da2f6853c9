"""Streams: when they begin, what is repeated, and what their caller gets."""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import time

import grpc
import pytest

from lbclient import RetryPolicy
from tests.support.rpc import channel_of, messages

RETRIED = {
    "retry": RetryPolicy(attempts=5, budget=None, backoff=0.001),
    "strategy": "round-robin",
    "breaker": None,
}


def outputs(number, interval=0):
    one = messages.ResponseParameters(size=1, interval_us=interval)
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


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
