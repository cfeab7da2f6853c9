"""Every call and every attempt is visible, by OpenTelemetry's conventions, and no secret is."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import json
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter

import anyio
import anyio.lowlevel
import httpx
import pytest
from opentelemetry import baggage, context, metrics, propagate, trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import lbclient
from lbclient.http import telemetry as semantics
from lbclient.http.telemetry import HttpSemantics
from tests.support.http import Gate, hangs_up, head, in_turn, resets, says, serve, tells_port
from tests.support.telemetry import Telemetry

pytestmark = pytest.mark.anyio

AT_ONCE = lbclient.RetryPolicy(backoff=0)
ONCE = lbclient.RetryPolicy(attempts=1)
NO_BUDGET = lbclient.RetryBudget(ratio=0, reserve=0)
SAMPLED = 0x01
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
SUPPRESSING = {
    "all": context._SUPPRESS_INSTRUMENTATION_KEY,
    "http": context._SUPPRESS_HTTP_INSTRUMENTATION_KEY,
}


class Side:
    """Sends requests: on this thread, or on an event loop."""

    def __init__(self, backend):
        self.backend = backend

    def send(self, service, *requests, **options):
        """The outcome of each request, one after another: a response or an error."""
        if self.backend == "sync":
            with lbclient.Client(service, **options) as client:
                return [self._outcome(client, request) for request in requests]

        async def main():
            async with lbclient.AsyncClient(service, **options) as client:
                return [await self._aoutcome(client, request) for request in requests]

        return anyio.run(main, backend=self.backend)

    def one(self, service, request, **options):
        (outcome,) = self.send(service, request, **options)
        return outcome

    @staticmethod
    def _outcome(client, request):
        try:
            return client.request(**request)
        except httpx.TransportError as error:
            return error

    @staticmethod
    async def _aoutcome(client, request):
        try:
            return await client.request(**request)
        except httpx.TransportError as error:
            return error


@pytest.fixture(params=["sync", "asyncio", "trio"])
def side(request):
    return Side(request.param)


def get(url="/", **more):
    return {"method": "GET", "url": url, **more}


def identity(span):
    return span.context.trace_id, span.context.span_id


def told(request):
    """Trace id and span id that an instance received."""
    version, trace_id, span_id, _ = request.headers["traceparent"].split("-")
    assert version == "00"
    return int(trace_id, 16), int(span_id, 16)


# Spans of HTTP calls


def test_a_call_is_one_span_and_each_attempt_its_child(side, servers, telemetry):
    """A call is one INTERNAL span, each of its attempts a CLIENT span and its child."""
    (server,) = servers(in_turn(says(503), tells_port))
    side.one(server.url, get("/x"), retry=AT_ONCE, **telemetry.options)
    first, second, call = telemetry.spans
    assert (call.kind, call.name, call.parent) == (SpanKind.INTERNAL, "lbclient.call", None)
    for attempt in (first, second):
        assert (attempt.kind, attempt.name) == (SpanKind.CLIENT, "GET")
        assert attempt.parent.span_id == call.context.span_id
        assert attempt.context.trace_id == call.context.trace_id
    assert call.start_time <= first.start_time <= first.end_time <= second.start_time
    assert second.end_time <= call.end_time


def test_attributes_of_an_attempt(side, servers, telemetry):
    """An attempt has the attributes of the stable HTTP conventions: server is the logical name,
    peer the instance."""
    (server,) = servers(says(201))
    request = {"method": "POST", "url": "/v1/items?page=3", "content": b"{}"}
    side.one([server.url], request, name="orders", **telemetry.options)
    (attempt,) = telemetry.attempts
    known = dict(attempt.attributes)
    expected = {
        "http.request.method": "POST",
        "server.address": "orders",
        "server.port": 80,
        "url.full": "http://orders/v1/items?page=REDACTED",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": server.port,
        "http.response.status_code": 201,
    }
    assert {name: known.get(name) for name in expected} == expected
    assert "error.type" not in known
    assert "http.request.resend_count" not in known
    assert attempt.status.status_code is StatusCode.UNSET


def test_a_call_span_has_no_http_of_its_own(side, servers, telemetry):
    """The span of a call has the service and the number of attempts, and nothing about HTTP."""
    (server,) = servers(in_turn(says(503), tells_port))
    side.one([server.url], get(), name="orders", retry=AT_ONCE, **telemetry.options)
    (call,) = telemetry.calls
    assert dict(call.attributes) == {"lbclient.service": "orders", "lbclient.attempts": 2}
    assert call.status.status_code is StatusCode.UNSET


def test_resends_are_counted_from_the_second_attempt_on(side, servers, telemetry):
    """`http.request.resend_count` is absent on the first attempt, then 1, then 2; each attempt
    names its own instance."""
    three = servers(says(503), says(503), says(503))
    urls = [server.url for server in three]
    response = side.one(urls, get(), retry=AT_ONCE, **telemetry.options)
    counts = [span.attributes.get("http.request.resend_count") for span in telemetry.attempts]
    assert response.status_code == 503
    assert counts == [None, 1, 2]
    peers = {span.attributes["network.peer.port"] for span in telemetry.attempts}
    assert peers == {server.port for server in three}


def test_the_server_is_the_one_of_the_logical_url(servers, telemetry):
    """Under an httpx client the logical URL is the request's own, whatever its host."""
    (server,) = servers(tells_port)
    transport = lbclient.Transport(server.url, **telemetry.options)
    with httpx.Client(mounts={"http://orders:8080": transport}) as client:
        client.get("http://orders:8080/x")
    (attempt,) = telemetry.attempts
    assert attempt.attributes["server.address"] == "orders"
    assert attempt.attributes["server.port"] == 8080
    assert attempt.attributes["url.full"] == "http://orders:8080/x"
    assert attempt.attributes["network.peer.port"] == server.port


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_a_schemes_own_port_is_named(scheme, port, telemetry):
    """`server.port` is set even if the URL does not contain it."""
    options = {"transport": lambda _: httpx.MockTransport(lambda _: httpx.Response(200))}
    with lbclient.Client(f"{scheme}://orders.test", **options, **telemetry.options) as client:
        client.get("/x")
    (attempt,) = telemetry.attempts
    assert attempt.attributes["server.port"] == port
    assert attempt.attributes["url.full"] == f"{scheme}://orders.test/x"


class Found:
    """A resolver that returns one instance."""

    def __init__(self, instance):
        self.instance = instance

    def resolve(self):
        return lbclient.Answer([self.instance])


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("orders-0.test", ("127.0.0.1",)),
        ("orders-0.test", ("127.0.0.2", "127.0.0.1")),
        ("localhost", ()),
    ],
    ids=["only address", "second address", "name"],
)
def test_the_peer_is_the_address_connected_to(side, servers, telemetry, host, addresses):
    """`network.peer.address` is the IP address that the socket was connected to."""
    (server,) = servers(tells_port)
    service = Found(lbclient.Instance(host, server.port, addresses=addresses))
    assert side.one(service, get(), **telemetry.options).status_code == 200
    (attempt,) = telemetry.attempts
    assert attempt.attributes["network.peer.address"] == "127.0.0.1"
    assert attempt.attributes["network.peer.port"] == server.port


@pytest.mark.parametrize(
    ("status", "failed"),
    [(200, False), (302, False), (404, True), (429, True), (500, True), (503, True), (999, True)],
)
def test_statuses(side, servers, telemetry, status, failed):
    """A status of 400 and above is the attempt's `error.type`, and sets its status; the call's
    span, which ends with a response, is no error."""
    (server,) = servers(says(status))
    side.one(server.url, get(), retry=ONCE, **telemetry.options)
    (attempt,), (call,) = telemetry.attempts, telemetry.calls
    assert attempt.attributes["http.response.status_code"] == status
    assert attempt.attributes.get("error.type") == (str(status) if failed else None)
    assert attempt.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert call.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("behaviour", "kind"), [(resets, "ReadError"), (hangs_up, "RemoteProtocolError")]
)
def test_errors(side, servers, telemetry, behaviour, kind):
    """An error is named by its type on attempt and call; its text, which may be secret, is in no
    status and no event."""
    (server,) = servers(behaviour)
    error = side.one(server.url, get(), retry=ONCE, **telemetry.options)
    assert type(error).__name__ == kind
    for span in telemetry.spans:
        assert span.attributes["error.type"] == kind
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
        assert not span.events
    assert "http.response.status_code" not in telemetry.attempts[0].attributes


def test_a_refused_connection(side, dead_port, telemetry):
    """An attempt that was never sent has a span like any other, and so has each retry."""
    error = side.one(f"http://127.0.0.1:{dead_port}", get(), retry=AT_ONCE, **telemetry.options)
    assert isinstance(error, httpx.ConnectError)
    assert [span.attributes["error.type"] for span in telemetry.attempts] == ["ConnectError"] * 3
    (call,) = telemetry.calls
    assert call.attributes["lbclient.attempts"] == 3
    assert call.attributes["error.type"] == "ConnectError"


def test_a_call_without_any_attempt(side, dead_port, telemetry):
    """A call for which no instance was available has a span without children, which says why."""
    _, error = side.send(
        f"http://127.0.0.1:{dead_port}",
        get(),
        get(),
        retry=ONCE,
        breaker=lbclient.BreakerPolicy(fail_max=1, reset_timeout=30),
        **telemetry.options,
    )
    assert isinstance(error, lbclient.NoInstanceAvailable)
    last = telemetry.calls[-1]
    assert len(telemetry.attempts) == 1
    assert last.attributes["lbclient.attempts"] == 0
    assert last.attributes["error.type"] == "NoInstanceAvailable"
    assert last.status.status_code is StatusCode.ERROR


def test_a_call_is_named_by_the_error_that_leaves_it(side, servers, telemetry):
    """If the caller gets DeadlineExceeded, the span of the call says so."""
    (server,) = servers(Gate())
    request = get(extensions={"lbclient": {"deadline": 0.1}})
    error = side.one(server.url, request, **telemetry.options)
    assert isinstance(error, lbclient.DeadlineExceeded)
    (call,) = telemetry.calls
    assert call.attributes["error.type"] == "DeadlineExceeded"


def test_an_unknown_method_is_other(side, servers, telemetry):
    """A method that the conventions do not list is `_OTHER`, in metrics too, and its span is named
    HTTP: a method that a caller invents must not become a label."""
    (server,) = servers(tells_port)
    side.one(server.url, {"method": "PURGE", "url": "/"}, **telemetry.options)
    (attempt,) = telemetry.attempts
    ((labels, _),) = telemetry.points("http.client.request.duration")
    assert server.requests[0].method == "PURGE"
    assert attempt.name == "HTTP"
    assert attempt.attributes["http.request.method"] == "_OTHER"
    assert labels["http.request.method"] == "_OTHER"


def test_an_unknown_method_is_kept_aside(servers, telemetry):
    """`http.request.method_original` is set exactly if the method is `_OTHER`, as the conventions
    require."""
    (server,) = servers(tells_port)
    with lbclient.Client(server.url, **telemetry.options) as client:
        client.request("PURGE", "/")
        client.get("/")
    originals = [span.attributes.get("http.request.method_original") for span in telemetry.attempts]
    assert originals == ["PURGE", None]


# The URL


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/x", "http://orders/x"),
        ("/x?a=hunter2", "http://orders/x?a=REDACTED"),
        ("/x?a=hunter2&b=hunter2", "http://orders/x?a=REDACTED&b=REDACTED"),
        ("/x?a=hunter2#hunter2", "http://orders/x?a=REDACTED"),
        ("/x?a=b%3Dhunter2", "http://orders/x?a=REDACTED"),
        ("/x?a=hunter2=hunter2", "http://orders/x?a=REDACTED"),
        ("http://alice:hunter2@orders/x?a=hunter2", "http://orders/x?a=REDACTED"),
        ("http://hunter2@orders/x", "http://orders/x"),
        ("/a%20b/%C3%A9?q=hunter2", "http://orders/a%20b/%C3%A9?q=REDACTED"),
    ],
)
def test_url_full_is_redacted(servers, telemetry, target, shown):
    """S5: `url.full` has the names of the query, but no value of it, no userinfo and no
    fragment."""
    (server,) = servers(tells_port)
    with lbclient.Client([server.url], name="orders", **telemetry.options) as client:
        client.get(target)
    (attempt,) = telemetry.attempts
    assert attempt.attributes["url.full"] == shown
    assert "hunter2" not in telemetry.text()


@pytest.mark.parametrize("name", ["a b", "a\r\nX-Forged: 1", "a\x00b", "é", "a&b=c", "a=b"])
def test_url_full_stays_a_url(servers, telemetry, name):
    """S4: names of the query stay escaped, so no control character gets into a span."""
    (server,) = servers(tells_port)
    with lbclient.Client([server.url], name="orders", **telemetry.options) as client:
        client.get("/x", params={name: "hunter2"})
    (attempt,) = telemetry.attempts
    shown = attempt.attributes["url.full"]
    assert shown.isascii()
    assert shown.isprintable()
    assert " " not in shown
    assert list(httpx.URL(shown).params.multi_items()) == [(name, "REDACTED")]


# Propagation


def test_each_attempt_tells_the_instance_its_own_span(side, servers, telemetry):
    """The `traceparent` that an instance receives is that of the attempt's span, a different one
    each time."""
    three = servers(says(503), says(503), says(503))
    side.one([server.url for server in three], get(), retry=AT_ONCE, **telemetry.options)
    received = {server.port: told(server.requests[0]) for server in three}
    attempted = {
        span.attributes["network.peer.port"]: identity(span) for span in telemetry.attempts
    }
    assert received == attempted
    assert len(set(received.values())) == 3


def test_the_callers_trace_goes_on(side, servers, telemetry):
    """A call is a child of the caller's current span, which is current again afterwards."""
    (server,) = servers(tells_port)
    with telemetry.tracer.start_as_current_span("caller") as caller:
        side.one(server.url, get(), **telemetry.options)
        assert trace.get_current_span() is caller
    (call,), (attempt,) = telemetry.calls[:1], telemetry.attempts
    assert call.parent.span_id == caller.get_span_context().span_id
    trace_id = caller.get_span_context().trace_id
    assert {trace_id} == {call.context.trace_id, attempt.context.trace_id}
    assert told(server.requests[0]) == (trace_id, attempt.context.span_id)


def test_a_stale_traceparent_of_the_caller_is_replaced(side, servers, telemetry):
    """A `traceparent` among the caller's headers is replaced by the attempt's, only in what is
    sent."""
    (server,) = servers(tells_port)
    mine = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    response = side.one(server.url, get(headers={"Traceparent": mine}), **telemetry.options)
    (attempt,) = telemetry.attempts
    assert told(server.requests[0]) == identity(attempt)
    assert response.request.headers["traceparent"] == mine


def test_the_callers_request_is_left_alone(side, servers, telemetry):
    """Trace headers are added to the headers of the attempt, never to the caller's request."""
    (server,) = servers(tells_port)
    response = side.one(server.url, get(), **telemetry.options)
    assert "traceparent" in server.requests[0].headers
    assert "traceparent" not in response.request.headers


def test_baggage_goes_along_escaped(side, servers, telemetry):
    """S4: the caller's baggage is sent, and characters that could end a header line are escaped."""
    (server,) = servers(tells_port)
    token = context.attach(baggage.set_baggage("tenant", "a\r\nX-Forged: 1"))
    try:
        side.one(server.url, get(), **telemetry.options)
    finally:
        context.detach(token)
    headers = server.requests[0].headers
    assert headers["baggage"].startswith("tenant=a%0D%0A")
    assert "x-forged" not in headers


def test_trace_headers_stay_with_the_service(servers, telemetry):
    """S10: a redirect to another origin carries no trace headers there."""
    (elsewhere,) = servers(tells_port)
    (server,) = servers(says(302, Location=elsewhere.url + "/y"))
    transport = lbclient.Transport(server.url, **telemetry.options)
    token = context.attach(baggage.set_baggage("tenant", "a"))
    try:
        with httpx.Client(mounts={"http://orders": transport}, follow_redirects=True) as client:
            client.get("http://orders/x")
    finally:
        context.detach(token)
    _kept_to_the_service(server, elsewhere)


async def test_trace_headers_stay_with_the_service_async(servers, telemetry):
    """S10: a redirect to another origin carries no trace headers there, also async."""
    (elsewhere,) = servers(tells_port)
    (server,) = servers(says(302, Location=elsewhere.url + "/y"))
    mounts = {"http://orders": lbclient.AsyncTransport(server.url, **telemetry.options)}
    token = context.attach(baggage.set_baggage("tenant", "a"))
    try:
        async with httpx.AsyncClient(mounts=mounts, follow_redirects=True) as client:
            await client.get("http://orders/x")
    finally:
        context.detach(token)
    _kept_to_the_service(server, elsewhere)


def _kept_to_the_service(server, elsewhere):
    assert {"traceparent", "baggage"} <= set(server.requests[0].headers)
    assert elsewhere.hits == 1
    assert not {"traceparent", "tracestate", "baggage"} & set(elsewhere.requests[0].headers)


def test_an_unsampled_call_says_so(side, servers):
    """A negative decision of a sampler is passed on: `traceparent` is sent unsampled, and nothing
    is recorded."""
    quiet = Telemetry(sampler=ALWAYS_OFF)
    (server,) = servers(in_turn(says(503), tells_port))
    side.one(server.url, get(), retry=AT_ONCE, tracer_provider=quiet.tracers)
    received = [request.headers["traceparent"] for request in server.requests]
    assert len(set(received)) == 2
    assert not any(int(one.rpartition("-")[2], 16) & SAMPLED for one in received)
    assert quiet.spans == ()


def test_threads_do_not_mix_up_their_spans(servers, telemetry):
    """With calls on many threads, each instance gets the span of its own attempt."""
    gate = Gate(then=says(200))
    (server,) = servers(gate)
    with lbclient.Client(server.url, **telemetry.options) as client:
        threads = [threading.Thread(target=client.get, args=(f"/{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert gate.entered.acquire(timeout=5)
        gate.open.set()
        for thread in threads:
            thread.join()
    _told_apart(server, telemetry, 8)


async def test_tasks_do_not_mix_up_their_spans(servers, telemetry):
    """With calls in many tasks, each instance gets the span of its own attempt."""
    gate = Gate(then=says(200))
    (server,) = servers(gate)
    async with (
        lbclient.AsyncClient(server.url, **telemetry.options) as client,
        anyio.create_task_group() as group,
    ):
        for number in range(8):
            group.start_soon(client.get, f"/{number}")
        await until(lambda: server.hits == 8)
        gate.open.set()
    _told_apart(server, telemetry, 8)


def _told_apart(server, telemetry, number):
    received = {request.target: told(request) for request in server.requests}
    attempted = {
        httpx.URL(span.attributes["url.full"]).path: identity(span) for span in telemetry.attempts
    }
    assert received == attempted
    assert len({trace_id for trace_id, _ in received.values()}) == number
    parents = {span.parent.span_id for span in telemetry.attempts}
    assert parents == {span.context.span_id for span in telemetry.calls}
    assert len(parents) == number


# Spans end: streams, cancellation, interrupts


class Halves:
    """Headers and half of the body; the other half once `rest` is set."""

    def __init__(self):
        self.rest = threading.Event()

    def __call__(self, connection, _):
        connection.send(head(200, {"Content-Length": "2"}) + b"o")
        while not self.rest.wait(0.02):
            if connection.server.stopping.is_set():
                return
        connection.send(b"k")


def test_a_stream_ends_its_spans_at_the_headers(servers, telemetry):
    """The spans of a streamed call end when the headers arrive; it is in flight until the body is
    closed."""
    halves = Halves()
    (server,) = servers(halves)
    with lbclient.Client(server.url, **telemetry.options) as client:
        with client.stream("GET", "/") as response:
            assert len(telemetry.spans) == 2
            assert telemetry.open == []
            assert telemetry.total("lbclient.in_flight") == 1
            assert trace.get_current_span() is trace.INVALID_SPAN
            halves.rest.set()
            assert response.read() == b"ok"
        assert telemetry.total("lbclient.in_flight") == 0


async def test_an_async_stream_ends_its_spans_at_the_headers(servers, telemetry):
    """The spans of a streamed async call end when the headers arrive."""
    halves = Halves()
    (server,) = servers(halves)
    async with lbclient.AsyncClient(server.url, **telemetry.options) as client:
        async with client.stream("GET", "/") as response:
            assert len(telemetry.spans) == 2
            assert telemetry.open == []
            assert telemetry.total("lbclient.in_flight") == 1
            assert trace.get_current_span() is trace.INVALID_SPAN
            halves.rest.set()
            assert await response.aread() == b"ok"
        assert telemetry.total("lbclient.in_flight") == 0


def test_an_unstreamed_call_ends_with_its_body(servers, telemetry):
    """The body that is read within the attempt is part of its span: one that breaks is an error."""

    def half(connection, _):
        connection.send(head(200, {"Content-Length": "2"}) + b"o")
        connection.reset()

    (server,) = servers(in_turn(half, tells_port))
    with lbclient.Client(server.url, retry=AT_ONCE, **telemetry.options) as client:
        assert client.get("/").status_code == 200
    first, second = telemetry.attempts
    assert first.attributes["error.type"] == "ReadError"
    assert second.attributes["http.response.status_code"] == 200


@contextlib.contextmanager
def waiting_for_headers(_):
    with serve(Gate()) as (server,):
        yield server.url, {}, lambda: server.hits


@contextlib.contextmanager
def waiting_for_the_body(_):
    with serve(Halves()) as (server,):
        yield server.url, {}, lambda: server.hits


@contextlib.contextmanager
def waiting_to_try_again(telemetry):
    policy = lbclient.RetryPolicy(backoff=600, backoff_max=600)
    with serve(says(503)) as (server,):
        yield server.url, {"retry": policy, "rng": random.Random(1)}, lambda: telemetry.attempts


@contextlib.contextmanager
def waiting_in_turn(telemetry):
    options = {"max_in_flight": 1}
    with serve(tells_port) as (server,):
        yield server.url, options, lambda: len(telemetry.started.spans) == 3


@contextlib.contextmanager
def waiting_for_discovery(telemetry):
    answered = threading.Event()

    class Silent:
        def resolve(self):
            answered.wait(10)
            return lbclient.Answer([lbclient.Instance("127.0.0.1", 9)])

    yield Silent(), {}, lambda: telemetry.has_begun(SpanKind.INTERNAL)
    answered.set()


@contextlib.contextmanager
def waiting_to_connect(telemetry):
    """A listener whose queue is full, so that the kernel answers no more connections."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield url, {"timeout": 30}, lambda: telemetry.has_begun(SpanKind.CLIENT)


WAITS = {
    wait.__name__: wait
    for wait in (
        waiting_for_headers,
        waiting_for_the_body,
        waiting_to_try_again,
        waiting_in_turn,
        waiting_for_discovery,
        waiting_to_connect,
    )
}


async def until(ready):
    """Let other tasks run until the condition is true, and then until they wait."""
    with anyio.fail_after(10):
        while not ready():  # other threads make it so
            await anyio.lowlevel.checkpoint()
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("wait", WAITS)
async def test_a_cancelled_call_leaves_no_span_open(telemetry, wait):
    """C1: wherever a call is cancelled, its spans end, and nothing stays in flight."""
    with WAITS[wait](telemetry) as (service, options, ready):
        async with lbclient.AsyncClient(service, **options, **telemetry.options) as client:
            full = wait == "waiting_in_turn"
            async with client.balancer.acquire() if full else contextlib.nullcontext():
                async with anyio.create_task_group() as group:
                    group.start_soon(client.get, "/")
                    await until(ready)
                    group.cancel_scope.cancel()
                assert len(telemetry.open) == 2 * full
            assert telemetry.open == []
            assert telemetry.total("lbclient.in_flight") == 0
    cancelled = telemetry.calls[0]
    assert cancelled.attributes["error.type"] in ("CancelledError", "Cancelled")
    assert len(telemetry.calls) == 1 + full


async def test_a_cancelled_reader_of_a_stream(servers, telemetry):
    """C1: a stream that is cancelled while it is read leaves nothing in flight."""
    (server,) = servers(Halves())

    async def read(client):
        async with client.stream("GET", "/") as response:
            await response.aread()

    async with lbclient.AsyncClient(server.url, **telemetry.options) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(read, client)
            await until(lambda: len(telemetry.spans) == 2)
            group.cancel_scope.cancel()
        assert telemetry.total("lbclient.in_flight") == 0


@pytest.fixture
def interruptible():
    """Python's own handler of SIGINT, even if the tests were started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("wait", ["waiting_for_headers", "waiting_for_the_body"])
def test_an_interrupted_call_leaves_no_span_open(telemetry, wait):
    """C4: a KeyboardInterrupt in the middle of a call ends its spans and is raised."""
    main = threading.main_thread().ident

    def interrupt(server):
        server.arrived.acquire(timeout=10)
        signal.pthread_kill(main, signal.SIGINT)

    with serve(Gate() if wait == "waiting_for_headers" else Halves()) as (server,):
        thread = threading.Thread(target=interrupt, args=(server,))
        with lbclient.Client(server.url, **telemetry.options) as client:
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                client.get("/")
            thread.join()
            assert telemetry.open == []
            assert telemetry.total("lbclient.in_flight") == 0
    assert [span.attributes["error.type"] for span in telemetry.spans] == ["KeyboardInterrupt"] * 2


class OwnMistake(Exception):
    """Raises an exception that says nothing about the instance."""


def raises(error):
    def fn(_):
        raise error

    return fn


def araises(error):
    async def fn(_):
        raise error

    return fn


ENDS = {
    "own exception": OwnMistake(),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "SystemExit": SystemExit(),
    "network error": ConnectionResetError(),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_span_ends_once(telemetry, caplog, end):
    """However a call ends, each of its spans ends once: the SDK logs a second end."""
    balancer = lbclient.Balancer("http://127.0.0.1:9", **telemetry.options)
    with pytest.raises(type(ENDS[end])):
        balancer.call(raises(ENDS[end]))
    with pytest.raises(type(ENDS[end])), balancer.acquire():
        raise ENDS[end]
    assert len(telemetry.spans) == 4
    assert _sdk_logs(caplog) == []


@pytest.mark.parametrize("wait", WAITS)
async def test_a_span_ends_once_though_cancelled(telemetry, caplog, wait):
    """A cancelled call ends each of its spans once: the SDK logs a second end."""
    await test_a_cancelled_call_leaves_no_span_open(telemetry, wait)
    assert _sdk_logs(caplog) == []


def _sdk_logs(caplog):
    return [record for record in caplog.records if record.name.startswith("opentelemetry")]


# The engine without HTTP


def test_a_balancers_calls_are_traced(telemetry):
    """`Balancer.call` has a span, each attempt a CLIENT span that is current while `fn` runs."""
    seen = []

    def fn(instance):
        seen.append((trace.get_current_span().get_span_context().span_id, instance.port))
        if len(seen) == 1:
            raise ConnectionRefusedError
        return "done"

    balancer = lbclient.Balancer(
        ["http://127.0.0.1:7", "http://127.0.0.1:8"], retry=AT_ONCE, **telemetry.options
    )
    assert balancer.call(fn) == "done"
    _two_attempts(telemetry, seen, "ConnectionRefusedError")


async def test_a_balancers_async_calls_are_traced(telemetry):
    """`Balancer.acall` is traced like `call`."""
    seen = []

    async def fn(instance):
        await anyio.lowlevel.checkpoint()
        seen.append((trace.get_current_span().get_span_context().span_id, instance.port))
        if len(seen) == 1:
            raise ConnectionRefusedError
        return "done"

    balancer = lbclient.Balancer(
        ["http://127.0.0.1:7", "http://127.0.0.1:8"], retry=AT_ONCE, **telemetry.options
    )
    assert await balancer.acall(fn) == "done"
    _two_attempts(telemetry, seen, "ConnectionRefusedError")


def _two_attempts(telemetry, seen, error):
    first, second, call = telemetry.spans
    assert [
        (span.context.span_id, span.attributes["network.peer.port"]) for span in (first, second)
    ] == seen
    assert {span.parent.span_id for span in (first, second)} == {call.context.span_id}
    assert (first.kind, call.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert first.attributes["error.type"] == error
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET
    assert call.attributes["lbclient.attempts"] == 2
    assert telemetry.points("http.client.request.duration") == []


def test_no_http_where_there_is_none(telemetry):
    """The engine without HTTP sets no HTTP attributes, even on a retry."""
    balancer = lbclient.Balancer("http://127.0.0.1:9", retry=AT_ONCE, **telemetry.options)
    with pytest.raises(ConnectionRefusedError):
        balancer.call(raises(ConnectionRefusedError()))
    names = {name for span in telemetry.attempts for name in span.attributes}
    assert len(telemetry.attempts) == 3
    assert not [name for name in names if name.startswith(("http.", "url."))]


async def test_a_lease_is_traced(telemetry):
    """`Balancer.acquire` has the same two spans, open while the block runs, sync and async."""
    balancer = lbclient.Balancer("http://127.0.0.1:9", **telemetry.options)
    with balancer.acquire():
        _inside_a_lease(telemetry)
    async with balancer.acquire():
        _inside_a_lease(telemetry)
    with pytest.raises(ConnectionResetError):
        async with balancer.acquire():
            raise ConnectionResetError
    assert len(telemetry.attempts) == len(telemetry.calls) == 3
    assert telemetry.attempts[-1].attributes["error.type"] == "ConnectionResetError"


def _inside_a_lease(telemetry):
    call, attempt = telemetry.open
    assert attempt.parent.span_id == call.context.span_id
    carrier = {}
    propagate.inject(carrier)
    assert carrier["traceparent"].split("-")[2] == format(attempt.context.span_id, "016x")
    assert telemetry.total("lbclient.in_flight") == 1


class Asks(SpanProcessor):
    """Takes a snapshot on another thread whenever a span ends, which needs the balancer's lock."""

    def __init__(self):
        self.balancer = None
        self.kinds = []

    def on_end(self, span):
        thread = threading.Thread(target=self.balancer.snapshot)
        thread.start()
        thread.join(10)
        self.kinds.append(None if thread.is_alive() else span.kind)


@pytest.mark.parametrize("then", ["call", "close"])
def test_the_spans_of_a_dropped_lease_end(telemetry, then):
    """C14: the spans of a lease that was dropped without leaving its block end at the next call or
    when the balancer is closed, and the balancer's lock is not held while they are exported."""
    asks = Asks()
    telemetry.tracers.add_span_processor(asks)
    balancer = asks.balancer = lbclient.Balancer("http://127.0.0.1:9", **telemetry.options)
    lease = balancer.acquire()
    lease.__enter__()
    del lease
    assert len(telemetry.open) == 2
    if then == "call":
        balancer.call(str)
    balancer.close()
    pair = [SpanKind.CLIENT, SpanKind.INTERNAL]
    assert Counter(asks.kinds) == Counter(pair * (2 if then == "call" else 1))
    assert telemetry.open == []


def test_a_lease_never_entered_has_no_span(telemetry):
    """A lease that was dropped unused leaves no span open."""
    balancer = lbclient.Balancer("http://127.0.0.1:9", **telemetry.options)
    balancer.acquire()
    assert telemetry.open == []


@pytest.mark.parametrize("deadline", [None, 60])
def test_a_lease_may_be_left_in_another_context(telemetry, caplog, deadline):
    """A lease that is entered in one context and left in another, as frameworks do that run the
    halves of a generator on worker threads, ends like any other: nothing stays in flight, and
    nothing is logged."""
    balancer = lbclient.Balancer("http://127.0.0.1:9", **telemetry.options)
    lease = balancer.acquire(deadline=deadline)
    contextvars.copy_context().run(lease.__enter__)
    contextvars.copy_context().run(lease.__exit__, None, None, None)
    assert telemetry.open == []
    assert telemetry.total("lbclient.in_flight") == 0
    assert _sdk_logs(caplog) == []


def test_callers_own_spans_nest(telemetry):
    """A span that `fn` starts (an instrumented library's, for example) is a child of the
    attempt's."""
    balancer = lbclient.Balancer("http://127.0.0.1:9", **telemetry.options)

    def fn(_):
        with telemetry.tracer.start_as_current_span("inner"):
            pass

    balancer.call(fn)
    inner = next(span for span in telemetry.spans if span.name == "inner")
    (attempt,) = telemetry.attempts
    assert inner.parent.span_id == attempt.context.span_id


# Silence


@pytest.mark.parametrize("what", SUPPRESSING)
def test_suppressed(side, servers, telemetry, what):
    """With instrumentation suppressed there are no spans, and no `traceparent`."""
    (server,) = servers(in_turn(says(503), tells_port))
    token = context.attach(context.set_value(SUPPRESSING[what], True))
    try:
        response = side.one(server.url, get(), retry=AT_ONCE, **telemetry.options)
    finally:
        context.detach(token)
    assert response.status_code == 200
    assert telemetry.started.spans == []
    assert all("traceparent" not in request.headers for request in server.requests)


@pytest.mark.parametrize("what", SUPPRESSING)
def test_suppressed_leaves_headers_alone(servers, telemetry, what):
    """With instrumentation suppressed the headers are only the caller's: an outer instrumentation
    that suppresses ours has set its own `traceparent`, whatever span is current."""
    (server,) = servers(tells_port)
    mine = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    with telemetry.tracer.start_as_current_span("caller"):
        token = context.attach(context.set_value(SUPPRESSING[what], True))
        try:
            with lbclient.Client(server.url, **telemetry.options) as client:
                client.get("/", headers={"traceparent": mine})
                client.get("/")
        finally:
            context.detach(token)
    assert [request.headers.get("traceparent") for request in server.requests] == [mine, None]


def test_suppressed_by_false_is_not_suppressed(servers, telemetry):
    """A key set to False suppresses nothing."""
    (server,) = servers(tells_port)
    token = context.attach(context.set_value(SUPPRESSING["all"], False))
    try:
        with lbclient.Client(server.url, **telemetry.options) as client:
            client.get("/")
    finally:
        context.detach(token)
    assert len(telemetry.spans) == 2


def test_only_the_api(side, servers):
    """With only OpenTelemetry's API a call works, and adds no header."""
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    (server,) = servers(in_turn(says(503), tells_port))
    assert side.one(server.url, get(), retry=AT_ONCE).status_code == 200
    for request in server.requests:
        assert not {"traceparent", "tracestate", "baggage"} & set(request.headers)


def test_only_the_api_passes_a_trace_on(side, servers):
    """With only the API a received trace context is passed on unchanged, as its specification
    says."""
    (server,) = servers(tells_port)
    mine = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    token = context.attach(propagate.extract({"traceparent": mine}))
    try:
        side.one(server.url, get())
    finally:
        context.detach(token)
    assert server.requests[0].headers["traceparent"] == mine


def test_only_the_api_computes_nothing(servers, dead_port, monkeypatch):
    """Without an SDK nothing is computed that only spans and metrics would use."""

    def unasked(*_):
        raise AssertionError("nobody asked for it")

    for name in ("span_name", "request", "result", "outcome", "duration"):
        monkeypatch.setattr(HttpSemantics, name, unasked)
    monkeypatch.setattr(propagate, "inject", unasked)
    (server,) = servers(in_turn(says(200), says(404), says(503)))
    with lbclient.Client(server.url, retry=ONCE) as client:
        assert [client.get("/").status_code for _ in range(3)] == [200, 404, 503]
    dead = lbclient.Client(f"http://127.0.0.1:{dead_port}", retry=ONCE)
    with dead, pytest.raises(httpx.ConnectError):
        dead.get("/")


def test_what_is_told_is_computed_once(side, servers, telemetry, monkeypatch):
    """The trace headers, attributes and labels of an attempt are computed once each, even over a
    caller's transport; and the attributes of a URL only when it is new."""
    counted = Counter()

    def counting(where, name):
        original = getattr(where, name)

        def call(*given, **options):
            counted[name] += 1
            return original(*given, **options)

        monkeypatch.setattr(where, name, call)

    counting(semantics, "redacted")
    counting(propagate, "inject")
    counting(HttpSemantics, "request")
    counting(HttpSemantics, "result")
    counting(HttpSemantics, "duration")
    (server,) = servers(in_turn(says(200), says(503), says(200)))
    options = {"retry": AT_ONCE, **telemetry.options}
    side.send([server.url], *[get("/x?q=1")] * 4, **options)
    assert counted.pop("redacted") <= 2  # httpx builds the first request, and a URL of its own
    assert counted == dict.fromkeys(("inject", "request", "result", "duration"), 5)
    if side.backend == "sync":
        counted.clear()
        options["transport"] = lambda _: httpx.HTTPTransport()
        (server,) = servers(says(200))
        side.send([server.url], get("/x"), **options)
        assert set(counted.values()) == {1}


def test_only_the_api_keeps_nothing_of_a_balancer():
    """S7: without an SDK the API keeps each meter forever, so balancers share one."""

    def meters():
        gc.collect()
        return sum(issubclass(type(one), metrics.Meter) for one in gc.get_objects())

    lbclient.Balancer("http://127.0.0.1:9").close()
    before = meters()
    for _ in range(10):
        lbclient.Balancer("http://127.0.0.1:9").close()
    assert meters() == before


LATE = """
import lbclient
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

balancer = lbclient.Balancer("http://127.0.0.1:9")
balancer.call(lambda _: None)
exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(MeterProvider([reader]))
balancer.call(lambda _: None)
assert len(exporter.get_finished_spans()) == 2
assert '"lbclient.picks"' in reader.get_metrics_data().to_json()
"""


def test_an_sdk_that_comes_later():
    """If the application sets its global providers later, a balancer uses them from then on."""
    command = [sys.executable, "-W", "error", "-c", LATE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Metrics


def test_the_duration_of_each_attempt(side, servers, telemetry):
    """`http.client.request.duration` has one measurement an attempt, in seconds, in the buckets of
    the conventions, under labels of the service and the outcome."""
    (server,) = servers(in_turn(says(503), tells_port))
    side.one([server.url], get("/x?a=1"), name="orders", retry=AT_ONCE, **telemetry.options)
    common = {"http.request.method": "GET", "server.address": "orders", "server.port": 80}
    points = telemetry.points("http.client.request.duration")
    assert sorted(points, key=str) == sorted(
        [
            ({**common, "http.response.status_code": 200}, 1),
            ({**common, "http.response.status_code": 503, "error.type": "503"}, 1),
        ],
        key=str,
    )
    (metric,) = [one for one in telemetry.metrics() if one.name == "http.client.request.duration"]
    assert metric.unit == "s"
    assert all(tuple(point.explicit_bounds) == BUCKETS for point in metric.data.data_points)


def test_durations_without_spans(side, servers, telemetry):
    """The duration of each attempt is measured if only metrics are collected, and no spans."""
    (server,) = servers(in_turn(says(503), tells_port))
    side.one([server.url], get(), retry=AT_ONCE, meter_provider=telemetry.meters)
    points = telemetry.points("http.client.request.duration")
    statuses = [(labels["http.response.status_code"], count) for labels, count in points]
    assert sorted(statuses) == [(200, 1), (503, 1)]
    assert telemetry.spans == ()


def test_the_duration_of_a_failed_attempt(side, dead_port, telemetry):
    """An attempt without an answer is measured too, with the type of its error."""
    service = [lbclient.Instance("127.0.0.1", dead_port)]
    side.one(service, get(), name="orders", retry=ONCE, **telemetry.options)
    ((labels, count),) = telemetry.points("http.client.request.duration")
    assert count == 1
    assert labels["error.type"] == "ConnectError"
    assert "http.response.status_code" not in labels


def test_labels_are_few(servers, telemetry):
    """S8: paths, queries, invented methods, request hosts and instances add no series."""
    three = servers(tells_port, tells_port, tells_port)
    urls = [server.url for server in three]
    transport = lbclient.Transport(urls, name="orders", **telemetry.options)
    with httpx.Client(transport=transport) as client:
        for number in range(12):
            client.get(f"http://host-{number}/{number}?q={number}")
            client.request("ODD" + chr(65 + number), f"http://host-{number}/{number}")
    assert all(server.hits for server in three)
    points = telemetry.points("http.client.request.duration")
    assert sorted(labels["http.request.method"] for labels, _ in points) == ["GET", "_OTHER"]
    assert {labels["server.address"] for labels, _ in points} == {"orders"}
    for metric in telemetry.metrics():
        if metric.name.startswith("lbclient."):
            (labels,) = [dict(point.attributes) for point in metric.data.data_points]
            assert labels == {"lbclient.service": "orders"}


def test_no_label_names_an_instance(side, servers, dead_port, telemetry):
    """S8: no metric names an instance, even if attempts fail and breakers open."""
    (server,) = servers(says(500))
    service = [lbclient.Instance("127.0.0.1", port) for port in (server.port, dead_port)]
    side.send(
        service,
        *[get()] * 4,
        name="orders",
        breaker=lbclient.BreakerPolicy(fail_max=1),
        **telemetry.options,
    )
    text = json.dumps(
        [
            dict(point.attributes)
            for metric in telemetry.metrics()
            for point in metric.data.data_points
        ]
    )
    assert "lbclient.breaker.state" in text
    for name in ("127.0.0.1", str(server.port), str(dead_port)):
        assert name not in text


def test_picks_retries_and_what_is_in_flight(side, servers, telemetry):
    """Each attempt is a pick, each one after the first a retry; at the end none is in flight."""
    (server,) = servers(in_turn(says(503), says(503), tells_port))
    side.send([server.url], get(), get(), name="orders", retry=AT_ONCE, **telemetry.options)
    label = {"lbclient.service": "orders"}
    assert telemetry.points("lbclient.picks") == [(label, 4)]
    assert telemetry.points("lbclient.retries") == [(label, 2)]
    assert telemetry.points("lbclient.in_flight") == [(label, 0)]
    assert telemetry.points("lbclient.retries.refused") == []


def test_a_retry_refused_by_the_budget_is_counted(side, servers, telemetry):
    """A retry that the budget refuses is counted as refused, not as a retry."""
    (server,) = servers(says(503))
    policy = lbclient.RetryPolicy(budget=NO_BUDGET)
    side.one([server.url], get(), name="orders", retry=policy, **telemetry.options)
    assert telemetry.points("lbclient.retries.refused") == [({"lbclient.service": "orders"}, 1)]
    assert telemetry.points("lbclient.retries") == []
    assert len(telemetry.attempts) == 1


def test_a_retry_nobody_asked_for_is_not_refused(side, servers, telemetry):
    """A retry that `attempts` or the method prevents does not count as refused by the budget."""
    (server,) = servers(says(503))
    post = {"method": "POST", "url": "/"}
    side.send(
        server.url,
        get(),
        post,
        retry=lbclient.RetryPolicy(attempts=2, backoff=0),
        **telemetry.options,
    )
    assert telemetry.total("lbclient.retries") == 1
    assert telemetry.points("lbclient.retries.refused") == []


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_breaker_changes_are_counted(telemetry):
    """Each change of a breaker is counted with its new state."""
    clock = Clock()
    balancer = lbclient.Balancer(
        "http://127.0.0.1:9",
        name="orders",
        retry=None,
        breaker=lbclient.BreakerPolicy(fail_max=2),
        clock=clock,
        **telemetry.options,
    )
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            balancer.call(raises(ConnectionResetError()))
    label = {"lbclient.service": "orders"}
    opened = ({**label, "lbclient.breaker.state": "open"}, 1)
    assert telemetry.points("lbclient.breaker.changes") == [opened]
    clock.now += 60
    balancer.call(lambda _: None)
    closed = ({**label, "lbclient.breaker.state": "closed"}, 1)
    changes = telemetry.points("lbclient.breaker.changes")
    assert opened in changes
    assert closed in changes


def test_discovery_errors_and_age(telemetry):
    """D22: each failed lookup is counted by the type of its error; the age of the last good answer
    (at the time of collection) and the number of instances are reported until `close`."""
    clock = Clock()
    turns = [lambda: lbclient.Answer([lbclient.Instance("127.0.0.1", 9)], ttl=60), None, None]

    class Flaky:
        def resolve(self):
            turn = turns.pop(0)
            if turn is None:
                raise OSError("no route to the registry")
            return turn()

    balancer = lbclient.Balancer(Flaky(), name="orders", clock=clock, **telemetry.options)
    balancer.refresh()
    for _ in range(2):
        clock.now += 10
        with pytest.raises(lbclient.DiscoveryError):
            balancer.refresh()
    clock.now += 5
    label = {"lbclient.service": "orders"}
    told = telemetry.all_points()
    assert told["lbclient.discovery.age"] == [(label, 25.0)]
    assert told["lbclient.discovery.instances"] == [(label, 1)]
    assert told["lbclient.discovery.changes"] == [({**label, "lbclient.change": "joined"}, 1)]
    assert told["lbclient.discovery.errors"] == [({**label, "error.type": "OSError"}, 2)]
    balancer.close()
    assert "lbclient.discovery.age" not in telemetry.all_points()


def test_worst_of_a_service_is_told(telemetry):
    """Of two clients of one service the older answer and the smaller set are reported; a list that
    never changes has no age; a collected client is forgotten."""
    clock = Clock()
    two = [lbclient.Instance("127.0.0.1", port) for port in (1, 2)]

    class Scripted:
        def __init__(self, *instances):
            self.instances = instances

        def resolve(self):
            return lbclient.Answer(self.instances, ttl=3600)

    options = {"name": "orders", "clock": clock, **telemetry.options}
    old, static = lbclient.Balancer(Scripted(*two), **options), lbclient.Balancer(two, **options)
    old.refresh()
    clock.now += 10
    young = lbclient.Balancer(Scripted(two[0]), **options)
    young.refresh()
    told = telemetry.all_points()
    assert [value for _, value in told["lbclient.discovery.age"]] == [10.0]
    assert [value for _, value in told["lbclient.discovery.instances"]] == [1]
    del old, young
    until = time.monotonic() + 5
    while "lbclient.discovery.age" in told and time.monotonic() < until:
        gc.collect()  # a round that is just over may hold one for a moment
        told = telemetry.all_points()
    assert "lbclient.discovery.age" not in told
    assert [value for _, value in told["lbclient.discovery.instances"]] == [2]
    static.close()


@pytest.mark.parametrize("end", ["closed", "dropped", "open"])
def test_picks_of_a_balancer_that_is_gone(telemetry, end):
    """The number of picks never falls: it includes those of balancers that were closed or
    collected, and of others with the same name."""
    other = lbclient.Balancer("http://127.0.0.1:9", name="orders", **telemetry.options)
    other.call(lambda _: None)
    balancer = lbclient.Balancer("http://127.0.0.1:9", name="orders", **telemetry.options)
    for _ in range(3):
        balancer.call(lambda _: None)
    if end == "closed":
        balancer.close()
    elif end == "dropped":
        del balancer
        gc.collect()
    label = {"lbclient.service": "orders"}
    assert telemetry.points("lbclient.picks") == [(label, 4)]
    other.call(lambda _: None)
    assert telemetry.points("lbclient.picks") == [(label, 5)]
    other.close()
    other.close()
    assert telemetry.points("lbclient.picks") == [(label, 5)]


def test_many_balancers_share_one_meter(telemetry, caplog):
    """Balancers with one meter provider, with the same name or not, share its instruments: nothing
    is logged, and each name is one metric."""
    caplog.set_level(logging.DEBUG)
    balancers = [
        lbclient.Balancer("http://127.0.0.1:9", name=name, **telemetry.options)
        for name in ("orders", "orders", "payments")
    ]
    for balancer in balancers:
        balancer.call(lambda _: None)
        balancer.close()
    points = telemetry.points("lbclient.picks")
    assert sorted((labels["lbclient.service"], value) for labels, value in points) == [
        ("orders", 2),
        ("payments", 1),
    ]
    names = [metric.name for metric in telemetry.metrics()]
    assert len(names) == len(set(names))
    assert _sdk_logs(caplog) == []


# No secrets

USER, PASSWORD, TOKEN, COOKIE, KEY = (
    word[::-1]
    for word in (
        "ecila",
        "2retnuh",
        "t3rces-nekot",
        "t3rces-eikooc",
        "t3rces-yek",
    )
)  # backwards, so that a traceback's source lines do not hold them
SECRETS = (USER, PASSWORD, TOKEN, COOKIE, KEY)


def secret_request(host="orders", **more):
    return {
        "method": "GET",
        "url": f"http://{USER}:{PASSWORD}@{host}/x?token={TOKEN}",
        "headers": {
            "Authorization": f"Bearer {TOKEN}",
            "Cookie": f"session={COOKIE}",
            "X-Api-Key": KEY,
        },
        **more,
    }


def told_of(outcome):
    """All that an outcome may write anywhere."""
    if not isinstance(outcome, BaseException):
        return repr(lbclient.call_info(outcome))
    notes = getattr(outcome, "__notes__", ())
    trail = "".join(traceback.format_exception(outcome))
    return "\n".join(
        [str(outcome), repr(outcome), *notes, trail, repr(lbclient.call_info(outcome))]
    )


ENDINGS = {
    "success": (tells_port, {}, {}),
    "failure": (says(503, Set_Cookie=f"session={COOKIE}"), {}, {}),
    "reset": (resets, {}, {}),
    "no answer": (hangs_up, {}, {}),
    "deadline": (Gate(), {}, {"extensions": {"lbclient": {"deadline": 0.05}}}),
    "breaker": (resets, {"breaker": lbclient.BreakerPolicy(fail_max=1, reset_timeout=30)}, {}),
    "nonsense": (lambda connection, _: connection.send(b"what?\r\n\r\n"), {}, {}),
    "stranger": (tells_port, {}, {"host": "elsewhere"}),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_secret_is_told(side, servers, telemetry, caplog, ending):
    """S5: userinfo, query values, credentials and cookies are in no span, metric, log line of ours,
    error or repr, whatever the outcome of the call."""
    caplog.set_level(logging.DEBUG)
    behaviour, options, request = ENDINGS[ending]
    (server,) = servers(behaviour)
    outcomes = side.send(
        [server.url],
        *[secret_request(**request)] * 3,
        name="orders",
        retry=AT_ONCE,
        **options,
        **telemetry.options,
    )
    logs = [record for record in caplog.records if record.name.startswith("lbclient")]
    text = "\n".join(
        [telemetry.text(), *map(told_of, outcomes), *(record.getMessage() for record in logs)]
    )
    assert [secret for secret in SECRETS if secret in text] == []
    if server.hits:
        assert server.requests[0].target == f"/x?token={TOKEN}"


def test_no_secret_in_a_repr(servers, telemetry):
    """S5: the repr of a client, a balancer, a snapshot or an endpoint holds no secret."""
    (server,) = servers(tells_port)
    seen = []

    class Looks:
        def pick(self, candidates, call):
            seen.extend([repr(candidates), repr(call)])
            return candidates[0]

    with lbclient.Client(
        server.url,
        name="orders",
        strategy=Looks(),
        auth=(USER, PASSWORD),
        headers={"X-Api-Key": KEY},
        cookies={"session": COOKIE},
        params={"token": TOKEN},
        **telemetry.options,
    ) as client:
        client.get("/x")
        seen.extend([repr(client), repr(client.balancer), repr(client.balancer.snapshot())])
        seen.append(repr(client._transport))
    assert TOKEN in server.requests[0].target
    assert [secret for secret in SECRETS if secret in "\n".join(seen)] == []


# Logs


def test_logs_tell_changes_not_calls(side, servers, telemetry, caplog):
    """Successful calls log nothing; a breaker that opens logs one line."""
    caplog.set_level(logging.DEBUG)
    (server,) = servers(in_turn(*[tells_port] * 5, says(500)))
    policy = lbclient.BreakerPolicy(fail_max=2, reset_timeout=30)
    requests = [get()] * 8
    side.send(server.url, *requests[:5], breaker=policy, **telemetry.options)
    ours = [record for record in caplog.records if record.name.startswith("lbclient")]
    assert ours == []
    side.send(server.url, *requests, breaker=policy, **telemetry.options)
    ours = [record for record in caplog.records if record.name.startswith("lbclient")]
    assert len(ours) == 1
    assert "open" in ours[0].getMessage()


def test_a_log_line_is_one_line(caplog):
    """S4: the text of a resolver's error cannot forge another line in the log."""

    class Forger:
        def resolve(self):
            raise RuntimeError("gone\r\n2026-01-01 CRITICAL forged")

    balancer = lbclient.Balancer(Forger(), name="orders")
    with pytest.raises(lbclient.DiscoveryError):
        balancer.refresh()
    balancer.close()
    lines = [one.getMessage() for one in caplog.records if one.name.startswith("lbclient")]
    assert any("gone" in line for line in lines)
    assert all(line.isprintable() for line in lines)


ELSEWHERE = """
import opentelemetry.context as api
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

class Elsewhere(ContextVarsRuntimeContext):
    def get_current(self):
        return api.Context({api._SUPPRESS_INSTRUMENTATION_KEY: True})

api._RUNTIME_CONTEXT = Elsewhere()
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import lbclient

told, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(told))
balancer = lbclient.Balancer("http://127.0.0.1:1", tracer_provider=provider)
balancer.call(lambda _: None)
print(len(told.get_finished_spans()))
"""


def test_a_context_that_is_kept_elsewhere():
    """If the API's context is a subclass that keeps it in its own place, that one is used: here it
    suppresses spans."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "0\n"
