"""The async client over aiohttp: the tests of our own wires, and what is its own."""

import asyncio
import contextlib
import functools
import gc
import inspect
import random
import re
import socket
import subprocess
import sys
import threading
import traceback
import types
import weakref
from pathlib import Path

import anyio
import httpx
import pytest

import lbclient
from tests import (
    test_connections,
    test_faults_client,
    test_faults_instances,
    test_hedging,
    test_http_balancing,
    test_http_bodies,
    test_http_faults,
    test_http_features,
    test_http_tls,
    test_lifecycle,
)
from tests.support.http import (
    Gate,
    dies_in_body,
    drips,
    hangs_up,
    head,
    in_turn,
    resets,
    says,
    tells_port,
    wires_of,
)
from tests.test_faults_instances import FAULTS, First
from tests.test_http_bodies import file  # noqa: F401  # a fixture
from tests.test_http_features import SCENES, World, cancelled_by_scope, cancelled_by_task, get, urls
from tests.test_http_tls import NAME, ca, files, mutual, serve_tls, trust  # noqa: F401  # fixtures

aiohttp = pytest.importorskip("aiohttp")
pytestmark = pytest.mark.anyio

MODULES = [
    test_connections,
    test_faults_client,
    test_faults_instances,
    test_hedging,
    test_http_balancing,
    test_http_bodies,
    test_http_faults,
    test_http_features,
    test_http_tls,
]
OTHERWISE = {
    "test_a_cancelled_probe_returns_its_slot": "counts httpcore's awaits",
    "test_a_generator_turned_away_is_not_cut_short": "HTTP/2",
    "test_a_large_answer_retried_costs_its_connection": "aiohttp has read it before we can say no",
    "test_a_process_that_stood_still": "takes seconds, and is about our own stream",
    "test_a_reset_stream_may_have_been_processed": "HTTP/2",
    "test_an_error_keeps_no_body_async": "about a transport of the caller's own; see below",
    "test_an_upgraded_connection": "the caller cannot have the connection to itself",
    "test_blackholed_syn": "by turns: asyncio's turn is over our own wires",
    "test_cancelled_at_every_await": "counts httpcore's awaits; see below",
    "test_cancelled_at_every_await_of_tls": "counts httpcore's awaits; see below",
    "test_goaway_between_streams": "HTTP/2",
    "test_no_answer_but_ones_own": "here no call fails; see below",
    "test_retries_stay_with_their_service": "no matter of transports",
    "test_retry_after_of_all_holds_nobody_up": "no matter of transports",
    "test_tls_that_breaks": "asyncio drops what it has read along with what it cannot read",
    "test_trace_extension": "the events are httpcore's",
    "test_a_value_that_cannot_be_is_the_callers": "it comes by the trace extension",
    "test_what_was_not_processed_is_sent_again": "HTTP/2",
}
NOT_HERE = ("answer-unasked", "goaway", "refused-stream")
"""Faults of HTTP/2, and one that is none here."""


def narrowed(mark):
    """Only what runs on asyncio, over HTTP/1.1."""
    if mark.name != "parametrize":
        return mark
    names, values, ids = mark.args[0], list(mark.args[1]), mark.kwargs.get("ids")
    ids = list(ids) if isinstance(ids, list | tuple) else [None] * len(values)
    kept = [(one, name) for one, name in zip(values, ids, strict=True) if on_asyncio(one)]
    if ids == [None] * len(values):
        return pytest.mark.parametrize(names, [one for one, _ in kept]).mark
    return pytest.mark.parametrize(names, [one for one, _ in kept], ids=[n for _, n in kept]).mark


def on_asyncio(value):
    parts = getattr(value, "values", value)
    parts = parts if isinstance(parts, list | tuple) else [parts]
    return not any(
        one == "trio"
        or (isinstance(one, World) and one.backend != "asyncio")
        or (isinstance(one, str) and one in NOT_HERE)
        or any(one is FAULTS[name] for name in NOT_HERE)
        for one in parts
    )


def again(test):
    """The same test, over aiohttp."""
    made = types.FunctionType(
        test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__
    )
    made.__dict__.update(test.__dict__)
    made.__doc__, made.__module__ = test.__doc__, __name__
    made.pytestmark = [narrowed(mark) for mark in getattr(test, "pytestmark", [])]
    return made


def contract():
    for module in MODULES:
        for name, test in vars(module).items():
            if not name.startswith("test_") or not callable(test) or name in OTHERWISE:
                continue
            asked = inspect.signature(test).parameters
            loops = "world" in asked or inspect.iscoroutinefunction(test)
            if loops and "serve_h2" not in asked:
                yield f"{name}_{module.__name__.removeprefix('tests.test_')}", again(test)


globals().update(contract())


def busy_connections(client):
    """What the wires, and aiohttp's pools, believe to be in use."""
    return [one for one in wires_of(client) if not one.quiet or one._connections._acquired]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def over_aiohttp(monkeypatch):
    """Clients and transports without `transport=` are over aiohttp."""
    for kind in (lbclient.AsyncClient, lbclient.AsyncTransport):
        monkeypatch.setattr(lbclient, kind.__name__, functools.partial(kind, transport="aiohttp"))
    for module in MODULES:
        if hasattr(module, "busy_connections"):
            monkeypatch.setattr(module, "busy_connections", busy_connections)


# What is its own: cancellation


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("cancelled", [cancelled_by_scope, cancelled_by_task])
async def test_cancelled_at_every_await(servers, scene, cancelled):
    """C1, C3: wherever a call is cancelled, nothing stays in flight, open or charged."""
    call, behaviours = SCENES[scene]
    pair = servers(*behaviours)
    at, more = 0, True
    while more:
        at += 1
        more = False
        async with lbclient.AsyncClient(
            urls(pair), retry=lbclient.RetryPolicy(attempts=3, backoff=0.001), breaker=None
        ) as client:
            with contextlib.suppress(httpx.TransportError):
                more = await cancelled(call(client), at)
            assert [one.in_flight for one in client.balancer.snapshot().instances] == [0, 0], at
            assert busy_connections(client) == [], at
    assert at > 2


async def test_cancelled_at_every_await_of_tls(serve_tls, trust):  # noqa: F811  # the fixtures
    """C1: the same in a handshake."""
    (server,) = serve_tls(NAME, behaviour=says(200, b"x" * 100_000))
    at, more = 0, True
    while more:
        at += 1
        async with lbclient.AsyncClient([server.url], name=NAME, verify=trust) as client:
            more = await cancelled_by_scope(get(client), at)
            (one,) = client.balancer.snapshot().instances
            assert (one.in_flight, one.failures) == (0, 0), at
            assert busy_connections(client) == [], at
    assert at > 2


async def test_cancelled_in_a_crowd(servers):
    """C1: of many calls under way at once, cancelled at random moments, none leaves anything."""
    pair = servers(says(200, b"x" * 100_000), drips(0.001))
    dice = random.Random(3)
    async with lbclient.AsyncClient(urls(pair), breaker=None, max_in_flight=10) as client:

        async def call():
            with contextlib.suppress(httpx.TransportError, TimeoutError):
                async with asyncio.timeout(0.02 * dice.random()):
                    await client.get("/")

        await asyncio.gather(*(call() for _ in range(200)))
        assert [one.in_flight for one in client.balancer.snapshot().instances] == [0, 0]
        assert busy_connections(client) == []


async def test_a_failed_call_keeps_nothing(servers):
    """C23: nothing of a failed call waits for the garbage collector."""
    (server,) = servers(resets)
    async with lbclient.AsyncClient([server.url], breaker=None) as client:
        gc.collect()
        gc.disable()
        try:
            request = client.build_request("POST", "/", content=b"x" * 100_000)
            alive = weakref.ref(request)
            with contextlib.suppress(httpx.ReadError):
                await client.send(request)
            del request
            await asyncio.sleep(0)
            assert alive() is None
        finally:
            gc.enable()


# What is sent


async def test_only_what_the_caller_says_is_sent():
    """The raw path, the case and order of headers, and what is there twice stay as they are;
    aiohttp adds nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve():
            sock, _ = listener.accept()
            with sock:
                arrived.append(sock.recv(65536))
                sock.sendall(head(200, {"Content-Length": "0", "Connection": "close"}))

        arrived = []
        thread = threading.Thread(target=serve)
        thread.start()
        async with lbclient.AsyncClient([url]) as client:
            request = client.build_request("GET", "/a%2Fb/%7Ec/;d?e=f%20g&h=%C3%BC&?")
            request.headers = httpx.Headers(
                [("Host", "orders"), ("X-CaSe", "1"), ("x-twice", "a"), ("X-Twice", "b")]
            )
            await client.send(request)
        thread.join()
    line, *fields = arrived[0].decode("ascii").split("\r\n")
    assert line == "GET /a%2Fb/%7Ec/;d?e=f%20g&h=%C3%BC&? HTTP/1.1"
    sent = ["Host: orders", "X-CaSe: 1", "x-twice: a", "x-twice: b"]  # in the case of the first
    assert [one for one in fields if one and not one.startswith("traceparent")] == sent


async def test_a_bare_question_mark_stays(servers):
    """A target is not tidied up."""
    (server,) = servers(tells_port)
    async with lbclient.AsyncClient([server.url]) as client:
        await client.get(httpx.URL(server.url, raw_path=b"/x?"))
    assert server.requests[0].target == "/x?"


async def test_no_cookie_is_kept(servers):
    """Cookies are the httpx client's: a transport keeps none for whoever calls next."""
    (server,) = servers(says(200, Set_Cookie="session=a; Path=/"))
    async with lbclient.AsyncTransport([server.url]) as transport:
        for _ in range(2):
            request = httpx.Request("GET", server.url)
            await (await transport.handle_async_request(request)).aread()
    assert ["cookie" in one.headers for one in server.requests] == [False, False]


@pytest.mark.parametrize("again", [False, True], ids=["fresh", "reused"])
async def test_aiohttp_sends_nothing_again(servers, again):
    """To repeat a GET whose connection ends is the balancer's to decide, not aiohttp's."""
    (server,) = servers(in_turn(tells_port, hangs_up) if again else hangs_up)
    async with lbclient.AsyncClient([server.url], breaker=None) as client:
        if again:
            await client.get("/")
        hits = server.hits
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await client.get("/", extensions={"lbclient": {"idempotent": False}})
        assert len(lbclient.call_info(caught.value).attempts) == 1
    assert server.hits == hits + 1


async def test_proxies_of_the_environment_are_not_used(servers, dead_port, monkeypatch):
    """As with our own wires: who balances on the client dials instances himself."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{dead_port}")
    (server,) = servers(tells_port)
    async with lbclient.AsyncClient([server.url]) as client:
        assert (await client.get("/")).text == str(server.port)


async def test_expect_is_refused(servers):
    """For 100 (Continue) aiohttp would wait for ever."""
    (server,) = servers(tells_port)
    async with lbclient.AsyncClient([server.url]) as client:
        with pytest.raises(httpx.LocalProtocolError, match="100"):
            await client.post("/", content=b"x", headers={"Expect": "100-continue"})
        assert client.balancer.snapshot().instances[0].failures == 0
    assert server.hits == 0


@pytest.mark.parametrize("header", [("X-A", b"\xff"), ("X-A", "a\r\nX-B: c")])
async def test_a_header_that_cannot_be_sent(servers, header):
    """A header that is none is the caller's fault, and not the instance's."""
    (server,) = servers(tells_port)
    async with lbclient.AsyncClient([server.url]) as client:
        with pytest.raises(httpx.LocalProtocolError):
            await client.get("/", headers=[header])
        assert client.balancer.snapshot().instances[0].failures == 0
    assert server.hits == 0


@pytest.mark.parametrize("size", [1, 5], ids=["less", "more"])
async def test_a_body_unlike_its_length(servers, size):
    """A body that is not as long as announced is the caller's fault."""
    (server,) = servers(tells_port)

    async def body():
        yield b"x" * size

    async with lbclient.AsyncClient([server.url]) as client:
        with pytest.raises(httpx.LocalProtocolError, match="Content-Length"):
            await client.post("/", content=body(), headers={"Content-Length": "3"})
        assert client.balancer.snapshot().instances[0].failures == 0
        assert busy_connections(client) == []


def takes_nothing(connection, _):
    connection.server.stopping.wait(30)


takes_nothing.on_accept = True


@pytest.mark.parametrize("kind", ["bytes", "generator"])
async def test_a_body_that_is_not_taken(servers, kind):
    """Our own write timeout, of which aiohttp has none, ends a body that is not taken."""
    bad, good = servers(takes_nothing, tells_port)
    big = b"x" * 20_000_000

    async def chunks():
        yield big

    async with lbclient.AsyncClient(
        urls([bad, good]), timeout=httpx.Timeout(5, write=0.2), strategy=First()
    ) as client:
        with pytest.raises(httpx.WriteTimeout) as caught:
            await client.post("/", content=big if kind == "bytes" else chunks())
        assert len(lbclient.call_info(caught.value).attempts) == 1
        assert [one.failures for one in client.balancer.snapshot().instances] == [1, 0]
        assert busy_connections(client) == []
        assert (await client.put("/", content=big)).text == str(good.port)


async def test_a_slow_body_of_the_callers_own(servers):
    """The write timeout is the instance's, not the caller's."""
    (server,) = servers(tells_port)

    async def chunks():
        for _ in range(3):
            await asyncio.sleep(0.1)
            yield b"x"

    async with lbclient.AsyncClient([server.url], timeout=httpx.Timeout(5, write=0.05)) as client:
        assert (await client.post("/", content=chunks())).status_code == 200
    assert server.requests[0].body == b"xxx"


# What comes back


async def test_a_reset_in_a_body_without_a_length(servers):
    """I8: to aiohttp a body that ends with its connection is whole even where that was reset."""

    def cut(connection, _):
        connection.send(head(200, {}) + b"half")
        connection.reset()

    bad, good = servers(cut, tells_port)
    async with lbclient.AsyncClient(urls([bad, good]), strategy=First()) as client:
        with pytest.raises(httpx.ReadError):
            await client.post("/")
        assert (await client.get("/")).text == str(good.port)
        with pytest.raises(httpx.ReadError):
            async with client.stream("POST", "/") as response:
                await response.aread()


async def test_no_answer_but_ones_own():
    """I9, I28: an answer that nobody asked for is no call's, and costs its connection only."""
    with FAULTS["answer-unasked"].instance() as bad:
        async with lbclient.AsyncClient([bad.url], breaker=None) as client:
            for _ in range(6):
                assert (await client.post("/", content=b"x")).text == str(bad.port)


async def test_a_long_header(servers):
    """A header of 50 kB is as well with aiohttp as without."""
    (server,) = servers(says(200, X_Long="x" * 50_000))
    async with lbclient.AsyncClient([server.url]) as client:
        assert len((await client.get("/")).headers["x-long"]) == 50_000


async def test_no_secret_is_told(servers):
    """S5: aiohttp's errors tell the URL; ours, and what is beneath them, do not."""
    nonsense = servers(lambda connection, _: connection.send(b"what?\r\n\r\n"), drips())
    async with lbclient.AsyncClient(urls(nonsense), retry=None, breaker=None) as client:
        asked = {"lbclient": {"deadline": 0.1}}
        for _ in nonsense:
            with pytest.raises(httpx.TransportError) as caught:
                await client.get("/?token=s3cret", extensions=asked)
            trail = "".join(traceback.format_exception(caught.value))
            assert "s3cret" not in trail.replace('get("/?token=s3cret"', "")


# Connections


async def test_only_vetted_addresses_are_dialled(servers):
    """D: whatever the host, sockets open to the instance's addresses, each in turn."""
    (server,) = servers(tells_port)
    for host in ("nowhere.invalid", "127.0.0.9"):
        for addresses in (["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]):
            instance = lbclient.Instance(host, server.port, addresses=addresses)
            async with lbclient.AsyncClient([instance], name="orders") as client:
                response = await client.get("/")
                line = response.extensions["network_stream"]
                assert (response.text, line.peer) == (str(server.port), "127.0.0.1")
    assert {one.headers["host"] for one in server.requests} == {"orders"}


async def test_the_kept_ones_are_bounded(servers):
    """`limits` bound how many connections are kept, and how long."""
    gate = Gate()
    (server,) = servers(gate)
    limits = httpx.Limits(max_keepalive_connections=2, keepalive_expiry=30)
    async with lbclient.AsyncClient([server.url], limits=limits) as client:
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(client.get("/"))
            for _ in range(5):
                await asyncio.to_thread(gate.entered.acquire)
            gate.open.set()
        assert server.accepted == 5
        async with asyncio.TaskGroup() as group:
            gate.open.clear()
            for _ in range(5):
                group.create_task(client.get("/"))
            for _ in range(5):
                await asyncio.to_thread(gate.entered.acquire)
            gate.open.set()
        assert server.accepted == 5 + 3
    limits = httpx.Limits(keepalive_expiry=0.01)
    async with lbclient.AsyncClient([server.url], limits=limits) as client:
        accepted = server.accepted
        for _ in range(2):
            await client.get("/")
            await asyncio.sleep(0.05)
        assert server.accepted == accepted + 2


async def test_options_of_sockets(servers):
    """`local_address` and `socket_options` are those of the sockets."""
    (server,) = servers(tells_port)
    async with (
        lbclient.AsyncClient(
            [server.url],
            local_address="127.0.0.5",
            socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
        ) as client,
        client.stream("GET", "/") as response,
    ):
        line = response.extensions["network_stream"]
        assert line.get_extra_info("client_addr")[0] == "127.0.0.5"
        sock = line.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_in_many_loops(servers):
    """A client outlives a loop, and serves several at once; each has connections of its own."""
    (server,) = servers(tells_port)
    client = lbclient.AsyncClient([server.url])

    async def ask():
        return {(await client.get("/")).text for _ in range(5)}

    for _ in range(2):
        assert asyncio.run(ask()) == {str(server.port)}
    found = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(ask()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{str(server.port)}] * 4
    asyncio.run(client.aclose())
    assert server.accepted == 6


def test_forks(servers, monkeypatch):
    """C8, C9: children run loops of their own with a client that was used in their parent's."""
    script = test_lifecycle.script

    def over_aiohttp(text, *arguments):
        ours = "AsyncClient(url)"
        assert ours in text
        return script(text.replace(ours, "AsyncClient(url, transport='aiohttp')"), *arguments)

    monkeypatch.setattr(test_lifecycle, "script", over_aiohttp)
    test_lifecycle.test_forks_with_a_warm_async_client(servers, "asyncio")


# At construction


def test_not_for_threads():
    """A sync client names who can have it."""
    for kind in (lbclient.Client, lbclient.Transport):
        with pytest.raises(ValueError, match="AsyncClient"):
            kind(["http://a.test"], transport="aiohttp")


def test_an_unknown_name():
    """What nobody knows is refused, with what would do."""
    for kind in (lbclient.Client, lbclient.AsyncClient):
        with pytest.raises(ValueError, match=r'"aiohttp".*curl'):
            kind(["http://a.test"], transport="curl")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"http2": True}, "http2"),
        ({"http1": False, "http2": True}, "http1"),
        ({"retries": 1}, "retries"),
        ({"uds": "/x"}, "uds"),
        ({"proxy": "http://a.test"}, "proxy"),
    ],
)
def test_what_it_cannot_do(option, named):
    """What aiohttp cannot do is refused by name, never ignored."""
    with pytest.raises(ValueError, match=named):
        lbclient.AsyncClient(["http://a.test"], **option)


def test_without_the_package(monkeypatch):
    """The error names the extra."""
    for name in ("aiohttp", "aiohttp_pool", "aiohttp_use"):
        monkeypatch.delitem(sys.modules, f"lbclient.http.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ImportError, match=r"lbclient\[aiohttp\]"):
        lbclient.AsyncClient(["http://a.test"])


def test_imported_on_demand():
    """`import lbclient` does without aiohttp."""
    code = "import sys, lbclient; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_not_on_trio(servers):
    """On trio the first call says what is wrong."""
    (server,) = servers(tells_port)

    async def ask():
        async with lbclient.AsyncClient([server.url]) as client:
            await client.get("/")

    with pytest.raises(RuntimeError, match="asyncio only"):
        anyio.run(ask, backend="trio")


# What is seen, and what the page says


async def test_spans_name_the_peer(servers, telemetry):
    """A call has its span, and each attempt one with the address that answered."""
    bad, good = servers(resets, tells_port)
    async with lbclient.AsyncClient(
        urls([bad, good]), strategy=First(), **telemetry.options
    ) as client:
        assert (await client.get("/")).text == str(good.port)
    peers = [span.attributes.get("network.peer.address") for span in telemetry.spans]
    assert "127.0.0.1" in peers
    assert all("aiohttp" not in str(span.attributes.get("error.type")) for span in telemetry.spans)


def recipe():
    """The judge of aiohttp's errors, and the function, that the page shows."""
    page = (Path(__file__).parent.parent / "docs" / "usage.md").read_text()
    blocks = re.findall(r"^```python\n(import aiohttp\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (code,) = blocks
    names = {}
    exec(code, names)
    return names["judge"], names["fetch"]


@pytest.mark.parametrize(
    ("behaviour", "method", "again", "failures"),
    [
        (None, "GET", True, 1),
        (None, "POST", True, 1),
        (hangs_up, "POST", False, 1),
        (resets, "GET", True, 1),
        (resets, "POST", False, 1),
        (dies_in_body, "GET", True, 1),
        (dies_in_body, "POST", False, 1),
        (says(503), "GET", True, 1),
        (says(503), "POST", False, 1),
        (says(429), "GET", True, 0),
        (says(500), "GET", False, 1),
        (says(404), "GET", False, 0),
    ],
)
async def test_the_recipe(servers, dead_port, behaviour, method, again, failures):
    """Around a plain ClientSession: never sent goes elsewhere, maybe sent only if it may."""
    judge, fetch = recipe()
    (good,) = servers(tells_port)
    (bad,) = [dead_port] if behaviour is None else [one.port for one in servers(behaviour)]
    service = [f"http://127.0.0.1:{port}" for port in (bad, good.port)]
    async with aiohttp.ClientSession() as session:
        with contextlib.closing(
            lbclient.Balancer(service, judge=judge, strategy=First(), breaker=None)
        ) as balancer:
            try:
                response = await fetch(session, balancer, method, "/x")
                answered = response.status == 200
            except aiohttp.ClientError:
                answered = False
            assert answered == again
            assert balancer.snapshot().instances[0].failures == failures
            assert [one.in_flight for one in balancer.snapshot().instances] == [0, 0]


async def test_under_httpx2(servers):
    """The clients for httpx2 have it too."""
    httpx2 = pytest.importorskip("lbclient.httpx2")
    bad, good = servers(resets, tells_port)
    async with httpx2.AsyncClient(
        urls([bad, good]), transport="aiohttp", strategy=First()
    ) as client:
        assert (await client.get("/")).text == str(good.port)
