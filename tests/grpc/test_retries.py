"""Which RPCs are sent again, and how often."""

from __future__ import annotations

import json

import grpc
import pytest

import lbclient
import lbclient.grpc
from lbclient import RetryBudget, RetryPolicy, Verdict
from tests.support.rpc import messages
from tests.support.watchers import until

EVERY = {"retry": RetryPolicy(attempts=3, budget=None, backoff=0.001), "strategy": "round-robin"}
IDEMPOTENT = "/grpc.testing.TestService/UnaryCall"
PUSHBACK = "grpc-retry-pushback-ms"


def attempts(*servers):
    return sum(one.calls for one in servers)


def test_a_dead_instance_costs_no_call(rpc_servers, rpcs):
    """An RPC that was never sent goes to another instance, whatever its method."""
    dead, live = rpc_servers(2)
    dead.kill()
    channel = rpcs([dead, live], **EVERY)
    assert {channel.unary("UnaryCall").server_id for _ in range(10)} == {str(live.port)}


def test_an_answer_that_looks_like_a_dead_instance(rpc_servers, rpcs):
    """A server may pass on the text by which gRPC says that it has no connection. Then the RPC was
    sent, and a method that may not be repeated is not."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("status UNAVAILABLE failed to connect to all addresses; last error: x")
    channel = rpcs(servers, **EVERY)
    error = channel.error("UnaryCall")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert attempts(*servers) == 1
    assert "may have been carried out" in error.__notes__[0]
    assert lbclient.call_info(error).stopped == "method"


@pytest.mark.parametrize(
    "idempotent",
    [[IDEMPOTENT], lambda method: method == IDEMPOTENT],
    ids=["names", "predicate"],
)
def test_methods_that_may_be_repeated(rpc_servers, rpcs, idempotent):
    """A method that `idempotent` names is sent again after UNAVAILABLE."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    channel = rpcs([busy, live], idempotent=idempotent, **EVERY)
    assert {channel.unary("UnaryCall").server_id for _ in range(4)} == {str(live.port)}


def test_the_descriptor_says_what_may_be_repeated(rpc_servers, rpcs):
    """By default, methods are repeated whose descriptor has an `idempotency_level`."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    channel = rpcs([busy, live], breaker=None, **EVERY)
    assert {channel.unary("CacheableUnaryCall").server_id for _ in range(4)} == {str(live.port)}
    codes = {channel.begin("UnaryCall").code for _ in range(4)}
    assert codes == {"OK", "UNAVAILABLE"}


def test_attempts_are_bounded(rpc_servers, rpcs):
    """An RPC is sent as often as the policy allows, and its error tells of each attempt."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("status UNAVAILABLE busy")
    error = rpcs(servers, **EVERY).error("CacheableUnaryCall")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "busy")
    assert attempts(*servers) == 3
    info = lbclient.call_info(error)
    assert [str(one.status) for one in info.attempts] == ["UNAVAILABLE"] * 3
    assert info.stopped == "attempts"


@pytest.mark.parametrize("code", ["ABORTED", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_codes(rpc_servers, rpcs, code):
    """Only the statuses in `codes` are retried."""
    (server,) = rpc_servers()
    server.tell(f"status {code} no")
    rpcs([server], **EVERY).error("CacheableUnaryCall")
    assert server.calls == 1
    rpcs([server], codes={code}, **EVERY).error("CacheableUnaryCall")
    assert server.calls == 4


def test_streams_are_repeated_until_their_first_message(rpc_servers, rpcs):
    """A stream that fails before its first message goes to another instance."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    channel = rpcs([busy, live], **EVERY)
    one = messages.ResponseParameters(size=1)
    request = messages.StreamingOutputCallRequest(response_parameters=[one] * 3)
    for _ in range(4):
        call = channel.begin("StreamingOutputCall", request)
        assert [each.server_id for each in call] == [str(live.port)] * 3
        assert call.code == "OK"
    assert channel.in_flight() == 0


def test_pushback_ends_retries(rpc_servers, rpcs):
    """A server that pushes back with -1 gets no retry, nor does another instance."""
    servers = rpc_servers(2)
    for one in servers:
        one.tell("status UNAVAILABLE busy")
        one.tell(f"trailers {json.dumps([[PUSHBACK, '-1']])}")
    error = rpcs(servers, **EVERY).error("CacheableUnaryCall")
    assert attempts(*servers) == 1
    assert lbclient.call_info(error).stopped == "verdict"


def test_pushback_rests_the_instance(rpc_servers, rpcs):
    """A server that pushes back for 700 ms gets nothing for that time, and the retry goes to
    another instance at once."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    busy.tell(f"trailers {json.dumps([[PUSHBACK, '700']])}")
    channel = rpcs([busy, live], clock=lambda: 1000.0, **EVERY)
    assert {channel.unary("CacheableUnaryCall").server_id for _ in range(6)} == {str(live.port)}
    assert busy.calls == 1
    standing = {one.instance.port: one.standing for one in channel.balancer.snapshot().instances}
    assert standing == {busy.port: "resting", live.port: "serving"}


def test_the_budget_bounds_retries(rpc_servers, rpcs):
    """An empty budget ends retries of what was sent, but not of what was never sent."""
    busy, dead = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    policy = RetryPolicy(attempts=3, budget=RetryBudget(0.0, 0.0), backoff=0.001)
    channel = rpcs([busy], retry=policy)
    assert lbclient.call_info(channel.error("CacheableUnaryCall")).stopped == "budget"
    busy.tell("status ")
    dead.kill()
    channel = rpcs([dead, busy], retry=policy, strategy="round-robin")
    assert {channel.unary().server_id for _ in range(4)} == {str(busy.port)}


def test_a_classifier_of_the_users(rpc_servers, rpcs):
    """`judge` gets the response, or the `grpc.RpcError`, and decides."""
    seen = []

    def judge(outcome):
        seen.append(outcome)
        failed = isinstance(outcome, grpc.RpcError)
        return Verdict(fault=failed, again="always" if failed else "never")

    busy, live = rpc_servers(2)
    busy.tell("status DATA_LOSS broken")
    channel = rpcs([busy, live], judge=judge, **EVERY)
    assert {channel.unary("UnaryCall").server_id for _ in range(2)} == {str(live.port)}
    kinds = {
        type(one).__name__ if not isinstance(one, grpc.RpcError) else one.code() for one in seen
    }
    assert kinds == {"SimpleResponse", grpc.StatusCode.DATA_LOSS}


def test_errors_of_lbclient_are_errors_of_grpc(rpc_servers, rpcs):
    """No instance is UNAVAILABLE, a deadline is DEADLINE_EXCEEDED: with our exception as the
    cause."""
    (server,) = rpc_servers()
    server.kill()
    channel = rpcs([server], retry=None)
    for _ in range(6):
        error = channel.error(timeout=5.0)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error.__cause__, lbclient.NoInstanceAvailable)
    assert "no instance" in error.details()
    server.start()
    server.tell("delay 0.5")
    error = rpcs([server]).error(timeout=0.05)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert isinstance(error.__cause__, lbclient.DeadlineExceeded)


def test_client_errors_are_no_faults(rpc_servers, rpcs):
    """A status that says that the request is wrong does not open the breaker."""
    (server,) = rpc_servers()
    server.tell("status NOT_FOUND no such order")
    channel = rpcs([server])
    for _ in range(20):
        assert channel.error().code() is grpc.StatusCode.NOT_FOUND
    (one,) = channel.balancer.snapshot().instances
    assert (one.breaker, one.failures) == ("closed", 0)


def test_a_request_that_cannot_be_serialized_charges_nobody(rpc_servers, rpcs, kind):
    """An error of the caller's own serializer is not retried, and no instance is charged."""
    (server,) = rpc_servers()
    channel = rpcs([server])

    def refuse(_):
        raise ValueError("unserializable")

    if kind == "threads":
        method = channel.channel.unary_unary("/grpc.testing.TestService/EmptyCall", refuse)
        with pytest.raises(grpc.RpcError) as caught:
            method(b"")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
    (one,) = channel.balancer.snapshot().instances
    assert (one.failures, one.in_flight, server.calls) == (0, 0, 0)


def test_invalid_metadata_charges_nobody(rpc_servers, rpcs):
    """Metadata that gRPC refuses ends the RPC, which is not retried, and no instance is charged."""
    (server,) = rpc_servers()
    channel = rpcs([server])
    requests = {
        "StreamingOutputCall": messages.StreamingOutputCallRequest(),
        "FullDuplexCall": iter([messages.StreamingOutputCallRequest()]),
    }
    for method, request in requests.items():
        call = channel.begin(method, request, metadata=(("UPPER", "case"),))
        with pytest.raises(grpc.RpcError, match="Invalid metadata") as caught:
            call.read()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
    (one,) = channel.balancer.snapshot().instances
    assert (one.failures, one.in_flight, server.calls) == (0, 0, 0)


def test_a_judge_has_no_say_in_what_was_never_sent(rpc_servers, rpcs):
    """With a `judge` too, an RPC that was never sent goes to another instance whatever its method,
    and a negative pushback ends the retries."""
    dead, live = rpc_servers(2)
    dead.kill()
    never, always = (Verdict(fault=False, again=again) for again in ("never", "always"))
    channel = rpcs([dead, live], judge=lambda _: never, breaker=None, **EVERY)
    assert {channel.unary("UnaryCall").server_id for _ in range(4)} == {str(live.port)}
    live.tell("status UNAVAILABLE busy")
    live.tell(f"trailers {json.dumps([[PUSHBACK, '-1']])}")
    before = live.calls
    assert rpcs([live], judge=lambda _: always, **EVERY).error().code().name == "UNAVAILABLE"
    assert live.calls == before + 1


def test_a_judge_is_not_asked_about_an_rpc_that_its_caller_has_ended(rpc_servers, rpcs, kind):
    """A `judge` is not called for an RPC that failed by the caller's own metadata or serializer, or
    that the caller has cancelled."""

    def judge(outcome):
        asked.append(outcome)
        return Verdict(fault=True, again="always")

    (server,) = rpc_servers()
    asked = []
    channel = rpcs([server], judge=judge, **EVERY)
    if kind == "threads":  # gRPC for asyncio raises other exceptions
        with pytest.raises(grpc.RpcError):
            channel.unary(request="not a message", timeout=10.0)
        with pytest.raises(grpc.RpcError):
            channel.unary(metadata=(("UPPER", "x"),), timeout=10.0)
    server.tell("hold")
    call = channel.begin("UnaryCall", timeout=10.0)
    until(lambda: server.calls == 1)
    call.cancel()
    assert call.code == "CANCELLED"
    until(lambda: channel.in_flight() == 0)
    server.tell("release")
    assert asked == []


def test_a_judge_is_not_asked_about_a_stream_that_has_begun(rpc_servers, rpcs):
    """A stream whose first message has arrived goes on, whatever the judge would say."""
    servers = rpc_servers(2)
    channel = rpcs(servers, judge=lambda _: Verdict(fault=True, again="always"), **EVERY)
    request = messages.StreamingOutputCallRequest(
        response_parameters=[messages.ResponseParameters(size=size) for size in (1, 2, 3)]
    )
    got = [len(one.payload.body) for one in channel.begin("StreamingOutputCall", request)]
    assert got == [1, 2, 3]
    assert attempts(*servers) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"codes": ["NONSENSE"]}, "codes"),
        ({"codes": ["OK"]}, "codes"),
        ({"codes": ["CANCELLED"]}, "codes"),
        ({"idempotent": ["Get"]}, "idempotent"),
        ({"options": ["x"]}, "options"),
        ({"credentials": "x"}, "credentials"),
        ({"judge": 3}, "judge"),
        ({"health": lbclient.HealthCheck("/health")}, "health"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_arguments_are_checked(kind, options, named):
    """An argument that cannot be used is refused, with its name."""
    make = lbclient.grpc.channel if kind == "threads" else lbclient.grpc.aio.channel
    with pytest.raises((ValueError, TypeError), match=named):
        make(["127.0.0.1:1"], **options)


def test_services_are_checked():
    """`grpcs` needs credentials, and a URL of HTTP is no service of gRPC."""
    with pytest.raises(ValueError, match="credentials"):
        lbclient.grpc.channel("grpcs://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"grpc\+srv://name.*'http://x'"):
        lbclient.grpc.channel("http://x")
