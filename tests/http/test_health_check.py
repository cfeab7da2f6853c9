"""Active health checks of clients: `health=HealthCheck(...)`."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import lbclient
from lbclient import Answer, HealthCheck, Instance
from lbclient._internal.blocking import run_blocking
from lbclient._internal.signals import Pause
from lbclient.core.call import call_options
from lbclient.protocol import bind
from lbclient.simulation import World, carry_out, simulated
from lbclient.telemetry.semantics import Semantics
from tests.faults.test_lifecycle import WARM, script
from tests.http.test_features import urls, worlds
from tests.support.http import says, tells_port

OFTEN = {"interval": 0.05, "timeout": 0.05, "up": 2, "down": 2}
SOON = 10


def until(true):
    """Wait for the control plane."""
    ended = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < ended, "it never came"
        time.sleep(0.005)


class Patient:
    """An instance whose health check returns `status`, and which serves in any case."""

    def __init__(self, status=200):
        self.status = status
        self.checked = threading.Semaphore(0)

    def __call__(self, connection, request):
        if request.target == "/healthz":
            self.checked.release()
            connection.answer(self.status)
        else:
            tells_port(connection, request)


def standing(client):
    """The healthy instances, in the order of the list."""
    return [one.healthy for one in client.balancer._engine.pool.endpoints]


@worlds
def test_who_fails_leaves_and_comes_back(servers, world):
    """I14: an instance that fails its checks gets no call, although it answers them, until it
    passes again; checks are not counted as attempts."""
    sick, well = Patient(), Patient()
    pair = servers(sick, well)
    with world.client(
        urls(pair), strategy="round-robin", health=HealthCheck("/healthz", **OFTEN)
    ) as client:
        assert len({client.get("/").text for _ in range(4)}) == 2
        sick.status = 503
        until(lambda: standing(client) == [False, True])
        assert {client.get("/").text for _ in range(10)} == {str(pair[1].port)}
        sick.status = 204
        until(lambda: standing(client) == [True, True])
        assert len({client.get("/").text for _ in range(4)}) == 2
        told = client.balancer.snapshot().instances
        assert sum(one.attempts for one in told) == 18
        assert [(one.in_flight, one.failures) for one in told] == [(0, 0)] * 2


@worlds
def test_a_wrong_path_takes_nothing_down(servers, world):
    """If every instance fails its checks, they are ignored."""
    pair = servers(Patient(404), Patient(404))
    health = HealthCheck("/healthz", **OFTEN)
    with world.client(urls(pair), strategy="round-robin", health=health) as client:
        client.get("/")
        until(lambda: standing(client) == [False, False])
        assert len({client.get("/").text for _ in range(4)}) == 2


@worlds
def test_under_httpx(servers, world):
    """The instances of a transport are checked like those of a client."""
    sick, well = Patient(503), Patient()
    pair = servers(sick, well)
    with world.under_httpx(urls(pair), health=HealthCheck("/healthz", **OFTEN)) as client:
        client.get(pair[0].url)
        balancer = client.client._transport.balancer
        until(lambda: [one.healthy for one in balancer._engine.pool.endpoints] == [False, True])


@worlds
def test_a_callers_transport_is_what_is_checked(world):
    """A caller's own transport sends the checks, as it sends calls."""
    asked = []

    def handle(request):
        asked.append((request.url.path, request.headers["host"]))
        return httpx.Response(503 if request.url.host == "10.0.0.1" else 200)

    services = ["http://10.0.0.1:80", "http://10.0.0.2:80"]
    with world.client(
        services,
        name="orders.test",
        transport=lambda _: httpx.MockTransport(handle),
        health=HealthCheck("/healthz", **OFTEN),
    ) as client:
        client.get("/")
        until(lambda: standing(client) == [False, True])
    assert ("/healthz", "orders.test") in asked


@worlds
def test_nothing_runs_before_the_first_call_nor_after_close(servers, world):
    """C10, C20: no thread and no check before the first call, and no check after `close`."""
    patient = Patient()
    (server,) = servers(patient)
    with world.client([server.url], health=HealthCheck("/healthz", **OFTEN)) as client:
        assert not patient.checked.acquire(timeout=0.3)
        monitor = client.balancer._engine.membership.health_monitor
        assert monitor.next_at > 1e300
        client.get("/")
        assert patient.checked.acquire(timeout=SOON)
    until(lambda: not monitor.busy)
    while patient.checked.acquire(blocking=False):
        pass
    assert monitor.stopped
    assert not patient.checked.acquire(timeout=0.3)


def test_no_thread_before_the_first_call(servers):
    """C10: a client with health checks that was never used has started no thread."""
    (server,) = servers(says(200))
    text = """
    import random, sys, threading, lbclient
    health = lbclient.HealthCheck(interval=60)
    with lbclient.Client(sys.argv[1], health=health, rng=random.Random(1)) as client:
        assert threading.active_count() == 1
        client.get("/")
        print(sorted(one.name for one in threading.enumerate()))
    """
    assert script(text, server.url) == (0, "['MainThread', 'lbclient-refresher']\n", "")


def test_forks(servers):
    """C8: a forked child of a process whose client is checking runs its own checks from its first
    call on, and knows the parent's results from the start."""
    sick, well = Patient(503), Patient()
    pair = servers(sick, well)
    work = """
    import logging, time
    logging.disable()
    health = lbclient.HealthCheck("/healthz", interval=0.05, timeout=0.05, down=2)
    client = lbclient.Client(sys.argv[1:], health=health)
    def healthy():
        return [one.healthy for one in client.balancer._engine.pool.endpoints]
    def until_known():
        while healthy() != [False, True]:
            time.sleep(0.005)
    client.get("/")
    until_known()
    def work():
        assert healthy() == [False, True]
        for one in client.balancer._engine.pool.endpoints:
            one.healthy = True
        client.get("/")
        until_known()
    children = [forked(work) for _ in range(4)]
    for child in children:
        wait(child)
    client.close()
    """
    assert script(WARM + work, *urls(pair)) == (0, "", "")


def test_a_client_that_nobody_holds_is_collected(servers):
    """S7: health checks keep no client alive."""
    patient = Patient()
    (server,) = servers(patient)
    client = lbclient.Client([server.url], health=HealthCheck("/healthz", **OFTEN))
    client.get("/")
    assert patient.checked.acquire(timeout=SOON)
    monitor = weakref.ref(client.balancer._engine.membership.health_monitor)
    run_blocking(client._transport._transports.aclose)
    del client

    def gone():
        gc.collect()
        return monitor() is None

    until(gone)


def test_checks_are_neither_traced_nor_timed(servers):
    """A check has no span, sends no trace header, and is not in the duration metric."""
    patient = Patient()
    (server,) = servers(patient)
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    with lbclient.Client(
        [server.url],
        health=HealthCheck("/healthz", **OFTEN),
        tracer_provider=tracers,
        meter_provider=MeterProvider([reader]),
    ) as client:
        client.get("/")
        for _ in range(3):
            assert patient.checked.acquire(timeout=SOON)
    assert len(spans.get_finished_spans()) == 2
    checks = [one for one in server.requests if one.target == "/healthz"]
    assert not any("traceparent" in one.headers for one in checks)
    (metric,) = [
        metric
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "http.client.request.duration"
    ]
    assert sum(point.count for point in metric.data.data_points) == 1


# Without HTTP


def test_a_balancer_speaks_no_http():
    """K4: a `Balancer` cannot GET a path; the error says what it can do."""
    for health in (HealthCheck(), HealthCheck("/healthz")):
        with pytest.raises(ValueError, match=r"HealthCheck\(path=None\)"):
            lbclient.Balancer(["http://10.0.0.1:80"], health=health)
    with pytest.raises(TypeError, match=r"health must be lbclient\.HealthCheck"):
        lbclient.Balancer(["http://10.0.0.1:80"], health=True)


@pytest.mark.parametrize("entry", [lbclient.Client, lbclient.AsyncTransport])
def test_what_is_no_health_check(entry):
    """K4: an invalid health check is refused by every entry point."""
    with pytest.raises(TypeError, match=r"health must be lbclient\.HealthCheck"):
        entry(["http://10.0.0.1:80"], health="/healthz")


def test_a_balancer_connects(servers, dead_port):
    """I1: with `path=None` an instance that refuses connections is out of rotation before it is
    called."""
    (server,) = servers(tells_port)
    instances = [Instance("127.0.0.1", server.port), Instance("127.0.0.1", dead_port)]
    with lbclient.Balancer(instances, health=HealthCheck(path=None, **OFTEN)) as balancer:
        balancer.call(lambda _: None)
        until(lambda: [one.healthy for one in balancer._engine.pool.endpoints] == [True, False])
        assert {balancer.call(lambda one: one.port) for _ in range(10)} == {server.port}


def test_virtual_time():
    """In the simulator checks run at their virtual times, on no thread."""
    world, asked, down = World(), [], set()

    def check(instance):
        asked.append((world.clock(), instance, threading.current_thread()))
        return instance not in down

    one, other = Instance("10.0.0.1", 80), Instance("10.0.0.2", 80)

    class Mine:
        def resolve(self):
            return Answer([one, other], 60)

    balancer = simulated(
        world,
        Mine(),
        health=HealthCheck(check=check, interval=10, down=3, up=2),
        rng=random.Random(1),
    )
    world.run(until=100)
    assert asked == []

    def send(attempt):
        yield Pause(0.01)
        return attempt.instance

    def call():
        asked = call_options(idempotent=True, key=None, deadline=None)
        return carry_out(bind(balancer).begin(asked, Semantics()), send)

    world.spawn(call())
    world.run(until=111)
    assert {instance for _, instance, _ in asked} == {one, other}
    down.add(one)
    world.run(until=122)
    assert all(endpoint.healthy for endpoint in balancer._engine.pool.endpoints)
    world.run(until=145)
    assert [endpoint.healthy for endpoint in balancer._engine.pool.endpoints] == [False, True]
    results = [world.spawn(call()) for _ in range(10)]
    world.run(until=146)
    assert {result[0] for result in results} == {other}
    down.clear()
    world.run(until=170)
    assert [endpoint.healthy for endpoint in balancer._engine.pool.endpoints] == [True, True]
    assert {thread for _, _, thread in asked} == {threading.main_thread()}
    balancer.close()
    before = len(asked)
    world.run(until=1000)
    assert len(asked) == before
