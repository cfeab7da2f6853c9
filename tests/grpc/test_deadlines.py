"""RPCs of all kinds end at their deadline, whatever their servers do."""

from __future__ import annotations

import itertools
import statistics
import time

import grpc
import pytest

from lbclient import RetryPolicy
from tests.support.rpc import messages

pytestmark = pytest.mark.slow

TIMEOUT, TIMES = 0.12, 5
LATE = 0.05 + 0.05
"""Seconds by which half of the RPCs may end after their deadline: 50 ms, and as much again on a
busy machine."""
LATEST = 2.0
"""The same for each RPC, on a busy machine."""
EARLY = 0.03
"""No attempt is begun for which the deadline leaves no time."""
EVERY = {"breaker": None, "idempotent": lambda _: True}
DRIPPING = 0.01


def outputs(number, interval=0.0):
    one = messages.ResponseParameters(size=1, interval_us=int(1e6 * interval))
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


def blocking(channel, **options):
    """A blocking RPC on threads, a call that is awaited in asyncio."""
    channel.unary("UnaryCall", timeout=TIMEOUT, **options)


def future(channel, **options):
    channel.begin("UnaryCall", timeout=TIMEOUT, **options).result()


def requests(channel, **options):
    one = messages.StreamingInputCallRequest()
    channel.begin("StreamingInputCall", iter([one]), timeout=TIMEOUT, **options).result()


def responses(channel, **options):
    request = outputs(10_000, DRIPPING)
    list(channel.begin("StreamingOutputCall", request, timeout=TIMEOUT, **options))


def both(channel, **options):
    several = itertools.repeat(outputs(100, DRIPPING), 100)
    list(channel.begin("FullDuplexCall", several, timeout=TIMEOUT, **options))


def status(channel, **options):
    """Ask only for the status."""
    call = channel.begin("StreamingOutputCall", outputs(1), timeout=TIMEOUT, **options)
    assert call.code == "DEADLINE_EXCEEDED"


KINDS = [blocking, future, requests, responses, both, status]


def check(channel, calls, **options):
    """Carry out RPCs of each kind several times. All end by DEADLINE_EXCEEDED, and in time."""
    for call in calls:
        late = []
        for _ in range(TIMES):
            began = time.monotonic()
            try:
                call(channel, **options)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # noqa: PT017
            else:
                assert call is status
            late.append(time.monotonic() - began - TIMEOUT)
        assert min(late) > -EARLY, call
        assert statistics.median(late) <= LATE, call
        assert max(late) <= LATEST, call
    assert channel.in_flight() == 0


def test_a_server_that_never_answers(rpc_servers, rpcs):
    """The server has accepted the RPC, and sends nothing."""
    (server,) = rpc_servers()
    server.tell("hold")
    check(rpcs([server], **EVERY), KINDS)
    server.tell("release")


def test_a_server_that_is_stopped(rpc_servers, rpcs):
    """The process of the server does not run, so its kernel accepts what it does not read."""
    (server,) = rpc_servers()
    channel = rpcs([server], **EVERY)
    channel.unary()
    server.pause()
    check(channel, KINDS)
    server.resume()


def test_a_server_that_drips(rpc_servers, rpcs):
    """Messages of a stream arrive until the deadline."""
    (server,) = rpc_servers()
    check(rpcs([server], **EVERY), [responses, both])


@pytest.mark.parametrize("seconds", [0.02, 0.11, 0.2])
def test_retries_under_way(rpc_servers, rpcs, seconds):
    """Attempts that are too late are repeated until the deadline."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("hold")
    policy = RetryPolicy(
        attempts=100, budget=None, backoff=0.001, backoff_max=0.005, attempt_timeout=seconds
    )
    check(rpcs(servers, retry=policy, **EVERY), [one for one in KINDS if one is not status])
    for one in servers:
        one.tell("release")


def test_retries_after_errors(rpc_servers, rpcs):
    """Waits between attempts do not last longer than the deadline."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("status UNAVAILABLE busy")
    policy = RetryPolicy(attempts=100, budget=None, backoff=0.03)
    channel = rpcs(servers, retry=policy, **EVERY)
    for call in KINDS[:-1]:
        for _ in range(TIMES):
            began = time.monotonic()
            with pytest.raises(grpc.RpcError):
                call(channel)
            assert time.monotonic() - began - TIMEOUT <= LATEST
    assert channel.in_flight() == 0


def test_no_instance_is_ready(rpc_servers, rpcs):
    """With `wait_for_ready`, the deadline ends the wait for an instance."""
    (server,) = rpc_servers()
    server.kill()
    check(rpcs([server], retry=None, **EVERY), KINDS, wait_for_ready=True)
