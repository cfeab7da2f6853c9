"""Health checks, load reports, spans and metrics, and the deadlines of servers."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from concurrent import futures

import grpc
import pytest

import lbclient
import lbclient.grpc
import lbclient.grpc.aio
from lbclient import HealthCheck, LeastBusy, LoadReport, RetryPolicy
from lbclient.grpc.load_reports import LoadReports
from lbclient.grpc.wire import double, fields, text_field
from tests.support.rpc import loop_of, messages, services

QUICK = {"interval": 0.3, "timeout": 0.3, "up": 1, "down": 1}


def until(condition, seconds=10.0):
    """Wait until something that nobody tells of is the case."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def standing(channel):
    snapshot = channel.balancer.snapshot()
    return {one.instance.port: one.standing for one in snapshot.instances}


@pytest.mark.parametrize("service", ["", "orders.Orders"])
def test_health_checks(rpc_servers, rpcs, service):
    """An instance whose health service does not say SERVING is out of rotation until it does."""
    sick, well = rpc_servers(2)
    for one in (sick, well):
        one.tell(f"health {service or '-'} SERVING")
    channel = rpcs([sick, well], health=HealthCheck(grpc=service, **QUICK))
    channel.unary()
    sick.tell(f"health {service or '-'} NOT_SERVING")
    until(lambda: standing(channel)[sick.port] == "unhealthy")
    assert {channel.unary().server_id for _ in range(4)} == {str(well.port)}
    sick.tell(f"health {service or '-'} SERVING")
    until(lambda: standing(channel)[sick.port] == "serving")


def test_a_service_that_is_unknown_is_unhealthy(rpc_servers, rpcs, caplog):
    """A service that the server does not know fails its checks."""
    unknown, known = rpc_servers(2)
    known.tell("health orders.Orders SERVING")
    channel = rpcs([unknown, known], health=HealthCheck(grpc="orders.Orders", **QUICK))
    channel.unary()
    until(lambda: standing(channel)[unknown.port] == "unhealthy")
    assert standing(channel)[known.port] == "serving"
    until(lambda: "NOT_FOUND" in caplog.text)


def test_what_an_instance_says_about_itself(rpc_servers, rpcs):
    """An instance that serves `Watch` is out of rotation as soon as it says so, and back in as soon
    as it says that; when the channel is closed, nothing follows it."""
    sick, well = rpc_servers(2)
    patient = HealthCheck(grpc="", interval=0.4, timeout=0.4, up=100, down=100)
    channel = rpcs([sick, well], health=patient)
    channel.unary()
    health = channel.channel._adapter.health
    until(lambda: sum(one is not None for one in health._followed.values()) == 2)
    for _ in range(2):
        sick.tell("health - NOT_SERVING")
        until(lambda: standing(channel)[sick.port] == "unhealthy")
        sick.tell("health - SERVING")
        until(lambda: standing(channel)[sick.port] == "serving")
    well.kill()
    until(lambda: None in health._followed.values())
    well.start()
    until(lambda: None not in health._followed.values())
    (channel.channel.close() if channel.loop is None else channel.loop.run(channel.channel.close()))
    until(lambda: not [one for one in threading.enumerate() if one.name == "lbclient-health"])


def test_checks_by_grpc_are_for_grpc():
    """A check by gRPC excludes the other kinds, and is refused without gRPC."""
    with pytest.raises(ValueError, match="grpc"):
        HealthCheck("/health", grpc="")
    with pytest.raises(TypeError, match="grpc"):
        HealthCheck(grpc=3)
    with pytest.raises(ValueError, match="grpc"):
        lbclient.Balancer(["http://127.0.0.1:1"], health=HealthCheck(grpc=""))
    with pytest.raises(ValueError, match="grpc"):
        lbclient.Client(["http://127.0.0.1:1"], health=HealthCheck(grpc=""))


class Reported(LeastBusy):
    """A strategy that keeps the load reports."""

    def __init__(self):
        super().__init__()
        self.reports = []

    def reported(self, endpoint, load, *, now):  # noqa: ARG002  # the protocol's signature
        self.reports.append(
            (endpoint.instance.port, load and load.in_flight, load and load.latency)
        )


def test_load_reports(rpc_servers, rpcs):
    """The load in the trailing metadata of any kind of RPC reaches the strategy."""
    (server,) = rpc_servers()
    server.tell("load TEXT named_metrics.in_flight=7, named_metrics.latency=0.02")
    strategy = Reported()
    channel = rpcs([server], strategy=strategy)
    one = messages.ResponseParameters(size=1)
    request = messages.StreamingOutputCallRequest(response_parameters=[one])
    channel.unary()
    assert channel.begin("UnaryCall").code == "OK"
    assert len(list(channel.begin("StreamingOutputCall", request))) == 1
    server.tell("status UNAVAILABLE busy")
    channel.error()
    until(lambda: len(strategy.reports) == 4)
    assert strategy.reports == [(server.port, 7.0, 0.02)] * 4


def test_load_reports_that_cannot_be_used(rpc_servers, rpcs):
    """A malformed report costs no RPC."""
    (server,) = rpc_servers()
    strategy = Reported()
    channel = rpcs([server], strategy=strategy)
    for report in ("TEXT named_metrics.in_flight=x", "JSON {", "JSON []"):
        server.tell(f"load {report}")
        channel.unary()
    assert strategy.reports == [(server.port, None, None)] * 3


class Loads:
    """Takes reports, as a balancer does."""

    def __init__(self):
        self.told = []

    def record(self, _, load):
        self.told.append(load)

    def refused(self, _, why):
        self.told.append(why)


def orca(named):
    """An `OrcaLoadReport` with these named metrics, and other fields before them."""
    report = b"\x09" + struct.pack("<d", 0.5) + b"\x18\x05"
    for name, value in named.items():
        entry = text_field(1, name) + b"\x11" + struct.pack("<d", value)
        report += b"\x42" + bytes([len(entry)]) + entry
    return report


def test_binary_load_reports():
    """ORCA's binary report is read too, should gRPC pass it on."""
    loads = Loads()
    reports = LoadReports(loads)
    binary = "endpoint-load-metrics-bin"
    reports.record(None, [("x", "y"), (binary, orca({"in_flight": 7.0, "latency": 0.02}))])
    reports.record(None, [(binary, orca({"other": 1.0}))])
    reports.record(None, None)
    assert loads.told == [LoadReport(7.0, 0.02)]
    for broken in (b"\xff", b"\x42\x05", orca({"in_flight": -1.0}), bytes(5000)):
        reports.record(None, [(binary, broken)])
    assert all(isinstance(one, str) for one in loads.told[1:])
    assert len(loads.told) == 5


def test_the_wire_format():
    """Messages of any length are written and read; malformed ones are a ValueError."""
    for text in ("", "a", "x" * 127, "x" * 128, "é" * 20_000):
        (found, *_) = [*fields(text_field(1, text)), (1, b"")]
        assert found == (1, text.encode())
    for broken in (b"\x0a", b"\x0a\x05a", b"\x80" * 11, b"\x09\x00", b"\x0b"):
        with pytest.raises(ValueError, match="a "):
            list(fields(broken))
    with pytest.raises(ValueError, match="double"):
        double(3)


def test_spans_and_metrics(rpc_servers, rpcs, telemetry):
    """Each attempt has a span and a duration by the conventions for RPC, and the server is told of
    it."""
    busy, live = rpc_servers(2)
    busy.tell("status UNAVAILABLE busy")
    policy = RetryPolicy(attempts=3, budget=None, backoff=0.001)
    channel = rpcs([busy, live], retry=policy, strategy="round-robin", **telemetry.options)
    for _ in range(2):
        channel.unary("CacheableUnaryCall")
    until(lambda: len(telemetry.attempts) == 3)
    assert {span.name for span in telemetry.attempts} == {
        "grpc.testing.TestService/CacheableUnaryCall"
    }
    shown = [span.attributes for span in telemetry.attempts]
    for one in shown:
        assert one["rpc.system"] == "grpc"
        assert one["rpc.service"] == "grpc.testing.TestService"
        assert one["rpc.method"] == "CacheableUnaryCall"
        assert one["network.peer.port"] in {busy.port, live.port}
    assert sorted(one["rpc.grpc.status_code"] for one in shown) == [0, 0, 14]
    assert [one["error.type"] for one in shown if one["rpc.grpc.status_code"]] == ["UNAVAILABLE"]
    counted = {
        labels["rpc.grpc.status_code"]: count
        for labels, count in telemetry.points("rpc.client.duration")
    }
    assert counted == {0: 2, 14: 1}
    metadata = [dict(one) for one in busy.told()["metadata"] + live.told()["metadata"]]
    ids = {f"{span.context.span_id:016x}" for span in telemetry.attempts}
    assert {one["traceparent"].split("-")[2] for one in metadata} == ids


def test_a_stream_has_one_span(rpc_servers, rpcs, telemetry):
    """The span of a stream's attempt ends with its first message, and nothing is left open."""
    (server,) = rpc_servers()
    channel = rpcs([server], **telemetry.options)
    one = messages.ResponseParameters(size=1)
    request = messages.StreamingOutputCallRequest(response_parameters=[one] * 3)
    assert len(list(channel.begin("StreamingOutputCall", request))) == 3
    until(lambda: not telemetry.open)
    assert [span.attributes["rpc.grpc.status_code"] for span in telemetry.attempts] == [0]


class Handlers(services.TestServiceServicer):
    """Handlers that tell how much time their calls have."""

    def UnaryCall(self, request, context):  # noqa: ARG002, N802
        return messages.SimpleResponse(server_id=str(lbclient.time_left()))

    def StreamingOutputCall(self, request, context):  # noqa: ARG002, N802
        for _ in range(2):
            yield messages.StreamingOutputCallResponse(server_id=str(lbclient.time_left()))


class AioHandlers(services.TestServiceServicer):
    """The same, as coroutines."""

    async def UnaryCall(self, request, context):  # noqa: ARG002, N802
        await asyncio.sleep(0)
        return messages.SimpleResponse(server_id=str(lbclient.time_left()))

    async def StreamingOutputCall(self, request, context):  # noqa: ARG002, N802
        for _ in range(2):
            await asyncio.sleep(0)
            yield messages.StreamingOutputCallResponse(server_id=str(lbclient.time_left()))


@pytest.fixture(params=["threads", "asyncio", "threads in asyncio"])
def deadline_server(request):
    """The stub of a server that opens deadlines."""
    if request.param == "threads":
        server = grpc.server(
            futures.ThreadPoolExecutor(4),
            interceptors=[lbclient.grpc.DeadlineInterceptor(max_seconds=5.0)],
        )
        services.add_TestServiceServicer_to_server(Handlers(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield services.TestServiceStub(channel)
        server.stop(0).wait()
        return
    handlers = AioHandlers() if request.param == "asyncio" else Handlers()
    with loop_of("asyncio") as loop:

        async def start():
            server = grpc.aio.server(
                futures.ThreadPoolExecutor(4),
                interceptors=[lbclient.grpc.aio.DeadlineInterceptor(max_seconds=5.0)],
            )
            services.add_TestServiceServicer_to_server(handlers, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            return server, port

        server, port = loop.run(start())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield services.TestServiceStub(channel)
        loop.run(server.stop(0))


def test_deadlines_of_servers(deadline_server):
    """The deadline of a caller bounds the calls of the handler, up to `max_seconds`; without one,
    nothing does."""
    stub = deadline_server
    assert stub.UnaryCall(messages.SimpleRequest()).server_id == "None"
    assert 0 < float(stub.UnaryCall(messages.SimpleRequest(), timeout=2.0).server_id) <= 2.1
    assert 2.0 < float(stub.UnaryCall(messages.SimpleRequest(), timeout=60.0).server_id) <= 5.0
    request = messages.StreamingOutputCallRequest()
    for timeout, most in ((2.0, 2.1), (60.0, 5.0)):
        told = [float(one.server_id) for one in stub.StreamingOutputCall(request, timeout=timeout)]
        assert len(told) == 2
        assert all(0 < one <= most for one in told)
    assert [one.server_id for one in stub.StreamingOutputCall(request)] == ["None"] * 2
    with pytest.raises(grpc.RpcError) as caught:
        stub.UnimplementedCall(messages.Empty())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert lbclient.time_left() is None


@pytest.mark.parametrize(
    "kind", [lbclient.grpc.DeadlineInterceptor, lbclient.grpc.aio.DeadlineInterceptor]
)
def test_arguments_of_interceptors_are_checked(kind):
    """A time that is not above zero is refused."""
    with pytest.raises(ValueError, match="max_seconds"):
        kind(max_seconds=0)
