"""Load reports over HTTP: in the headers of answers, and by probes; sync, asyncio and trio."""

import logging
import random
import threading
import time

import httpx
import pytest

import lbclient
from lbclient import Prequal
from lbclient.http.probes import HEADER
from lbclient.strategy.protocol import LoadProbe, LoadReport
from tests.faults.test_lifecycle import WARM, script
from tests.http.test_features import urls, worlds
from tests.http.test_first_byte import own_transports
from tests.support.http import says, tells_port

SOON = 10
SAYS = "TEXT named_metrics.in_flight=7, named_metrics.latency=0.02"


def until(true):
    """Wait for what is about to happen in the background."""
    ended = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < ended, "it never came"
        time.sleep(0.005)


class Noted:
    """A user's strategy that is told the reports of instances."""

    def __init__(self):
        self.told = []

    def pick(self, candidates, call):
        return call.rng.choice(candidates)

    def reported(self, endpoint, load, *, now):  # noqa: ARG002  # as strategies are told
        self.told.append((endpoint.instance.port, load))


class Asking(Noted):
    """A strategy that also has instances probed."""

    probe = LoadProbe("/load", rate=2, interval=0.02, timeout=0.3)


def reporting(text):
    return says(200, b"fine", **{HEADER.replace("-", "_"): text})


def on_probes(connection, request):
    """An instance that reports its load to probes only."""
    behave = reporting(SAYS) if request.target == "/load" else tells_port
    behave(connection, request)


@worlds
def test_an_answer_tells(servers, world):
    """A strategy that uses reports gets each one once, from the header of an answer; without the
    header it gets none."""
    (server,) = servers(reporting(SAYS))
    strategy = Noted()
    with world.client([server.url], strategy=strategy) as client:
        for _ in range(3):
            assert client.get("/").text == "fine"
        assert strategy.told == [(server.port, LoadReport(7, 0.02))] * 3
        server.behaviour = tells_port
        client.get("/")
        assert len(strategy.told) == 3


@worlds
def test_nobody_looks_where_nobody_wants_to_know(servers, world):
    """A client whose strategy uses no reports does not look for them."""
    (server,) = servers(reporting(SAYS))
    with world.client([server.url], strategy="least-busy") as client:
        assert client.get("/").status_code == 200
        assert client.client._transport._reports is None


@worlds
@pytest.mark.parametrize("text", ["TEXT in_flight=-1", "JSON [", "TEXT in_flight=" + "9" * 9000])
def test_nonsense_harms_nobody(servers, world, text, caplog):
    """I9: a report that cannot be used is ignored; the first is logged, all are counted."""
    (server,) = servers(reporting(text))
    strategy = Noted()
    with (
        caplog.at_level(logging.WARNING, "lbclient"),
        world.client([server.url], strategy=strategy) as client,
    ):
        for _ in range(3):
            assert client.get("/").text == "fine"
        assert client.client._transport._reports._loads.nonsense == 3
    assert strategy.told == [(server.port, None)] * 3
    (record,) = caplog.records
    assert "cannot be used" in record.getMessage()
    assert len(record.getMessage()) < 400


@worlds
def test_a_strategy_that_fails_to_heed(servers, world, caplog):
    """C18: an exception of a user's strategy is logged, and affects no call."""
    (server,) = servers(reporting(SAYS))

    class Broken(Noted):
        def reported(self, *_, **__):
            raise RuntimeError("mine")

    with (
        caplog.at_level(logging.ERROR, "lbclient"),
        world.client([server.url], strategy=Broken()) as client,
    ):
        assert client.get("/").text == "fine"
    assert "strategy Broken failed to use a load report" in caplog.text


def on_request(connection, request):
    """vLLM: it reports its load only to a request that asks for it."""
    form = request.headers.get("endpoint-load-metrics-format")
    text = "TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2"
    (reporting(text) if form == "TEXT" else tells_port)(connection, request)


@worlds
@pytest.mark.parametrize("way", ["client", "under_httpx"])
@pytest.mark.parametrize("own", [False, True], ids=["ours", "httpx's"])
def test_requests_ask_for_a_report(servers, world, way, own):
    """Requests ask for a report if the strategy uses it, and only then; the caller's own headers
    are sent too."""
    (server,) = servers(on_request)
    options = own_transports(world) if own else {}
    url = "http://127.0.0.1/" if way == "under_httpx" else "/"
    strategy = Noted()
    with getattr(world, way)([server.url], strategy=strategy, **options) as client:
        client.get(url, headers={"x-own": "1"})
        client.post(url, content=b"x")
    assert strategy.told == [(server.port, LoadReport(2, None, 0.4))] * 2
    assert [one.headers.get("x-own") for one in server.requests] == ["1", None]
    with getattr(world, way)([server.url], **options) as client:
        client.get(url)
    assert "endpoint-load-metrics-format" not in server.requests[-1].headers


@worlds
@pytest.mark.parametrize("way", ["client", "under_httpx"])
def test_probes(servers, world, way):
    """While there are calls, instances are probed too, each answer is reported, and connections are
    kept; an instance without the path reports nothing."""
    pair = servers(on_probes, tells_port)
    strategy = Asking()
    with getattr(world, way)(urls(pair), name="orders.test", strategy=strategy) as client:
        ended = time.monotonic() + SOON
        while len(set(strategy.told)) < 2 or len(strategy.told) < 20:
            assert time.monotonic() < ended
            client.get("http://orders.test/" if way == "under_httpx" else "/")
        assert set(strategy.told) == {
            (pair[0].port, LoadReport(7, 0.02)),
            (pair[1].port, None),
        }
    probes = [one for server in pair for one in server.requests if one.target == "/load"]
    assert len(probes) >= 20
    assert all(one.headers["host"] == "orders.test" for one in probes)
    assert not any("traceparent" in one.headers for one in probes)
    assert all(one.headers["endpoint-load-metrics-format"] == "TEXT" for one in probes)
    assert sum(server.accepted for server in pair) <= 6


@worlds
def test_one_that_is_silent_holds_up_no_probe(servers, world):
    """I5: an instance that accepts a probe and never answers delays only that probe."""
    gate = threading.Event()

    class Patient(Asking):
        probe = LoadProbe("/load", rate=2, interval=0.02, timeout=6 * SOON)

    def silent(connection, request):
        if request.target == "/load":
            gate.wait(3 * SOON)
        tells_port(connection, request)

    pair = servers(silent, on_probes)
    strategy = Patient()
    with world.client(urls(pair), strategy=strategy) as client:
        ended = time.monotonic() + SOON
        while len(strategy.told) < 20:
            assert time.monotonic() < ended
            client.get("/")
        assert {load for _, load in strategy.told} == {LoadReport(7, 0.02)}
        gate.set()


@worlds
def test_a_callers_transport_carries_probes(world):
    """A caller's own transport sends the probes, as it sends calls."""
    asked = []

    def handle(request):
        asked.append((request.url.path, request.headers["host"]))
        return httpx.Response(200, headers={HEADER: SAYS})

    strategy = Asking()
    with world.client(
        ["http://10.0.0.1:80"],
        name="orders.test",
        transport=lambda _: httpx.MockTransport(handle),
        strategy=strategy,
    ) as client:
        client.get("/")
        until(lambda: ("/load", "orders.test") in asked)


@worlds
def test_no_probe_before_the_first_call_nor_without_calls_nor_after_close(servers, world):
    """C10, C20: probes begin with the first answer, end when answers end, and stop with `close`."""
    (server,) = servers(reporting(SAYS))

    def probes():
        return sum(one.target == "/load" for one in server.requests)

    with world.client([server.url], strategy=Asking()) as client:
        prober = client.client._transport._reports._prober
        assert prober.next_at > 1e300
        client.get("/")
        until(lambda: probes() and prober.next_at > 1e300)
        before = probes()
        time.sleep(0.2)
        assert probes() == before
        client.get("/")
        until(lambda: probes() > before)
        client.get("/")
    assert prober.stopped
    until(lambda: not prober._under_way)
    before = probes()
    time.sleep(0.1)
    assert probes() == before


def test_forks(servers):
    """C8: a forked child of a process whose client is probing sends its own probes."""
    (server,) = servers(reporting(SAYS))
    work = """
    import time
    from lbclient.strategy.protocol import LoadProbe
    probe = LoadProbe("/load", interval=0.02)
    client = lbclient.Client(sys.argv[1:], strategy=lbclient.Prequal(probe=probe))
    def until_probed():
        client.get("/")
        reports = client.balancer._strategy._reports
        ended = time.monotonic() + 10
        while not len(reports):
            assert time.monotonic() < ended
            time.sleep(0.005)
    def work():
        client.balancer._strategy._reports._kept.clear()
        asked = client._transport._reports._prober
        until_probed()
        assert asked._generation is asked._scheduler.generation
    until_probed()
    children = [forked(work) for _ in range(3)]
    for child in children:
        wait(child)
    client.close()
    """
    assert script(WARM + work, server.url) == (0, "", "")


def test_prequal_goes_where_there_is_room(servers):
    """Of two equal instances, one of which reports that it is busy, the other gets most calls."""
    pair = servers(
        reporting("TEXT in_flight=30,latency=0.5"), reporting("TEXT in_flight=1,latency=0.01")
    )
    probe = LoadProbe("/load", rate=4, interval=0.01)
    with lbclient.Client(urls(pair), strategy=Prequal(probe=probe), rng=random.Random(1)) as client:
        for _ in range(200):
            client.get("/")
    calls = [sum(one.target == "/" for one in server.requests) for server in pair]
    assert calls[1] > 1.5 * calls[0]
