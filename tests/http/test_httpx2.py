"""Clients and transports for httpx2: the same source, loaded a second time.

These tests cover what both flavours share, and what separates them. All tests of HTTP are run for
httpx2 by `-p tests.support.on_httpx2`.
"""

import functools
import importlib
import json
import pickle
import subprocess
import sys
import threading
from typing import NamedTuple

import anyio
import httpx
import httpx2
import pytest

import lbclient
import lbclient.httpx2
from tests.http.test_features import First, World
from tests.support.faults import H2, on_accept
from tests.support.http import (
    Gate,
    dies_in_body,
    drips,
    hangs_up,
    resets,
    says,
    tells_port,
)

pytestmark = pytest.mark.anyio

QUICK = lbclient.RetryPolicy(backoff=0.001, backoff_max=0.002)


class Flavour(NamedTuple):
    """An HTTP library, and our clients for it."""

    its: object
    ours: object


FLAVOURS = [Flavour(httpx, lbclient), Flavour(httpx2, lbclient.httpx2)]


class Upstream(World):
    """A client of one flavour, on threads or an event loop."""

    def __init__(self, flavour, backend):
        super().__init__(backend)
        self.its, self.ours = flavour

    def client(self, service, **options):
        return self.entered(
            functools.partial(self.ours.Client, service, **options),
            functools.partial(self.ours.AsyncClient, service, **options),
        )

    def under(self, client, asynchronous, service, **options):
        """A client of the library itself, over our transport."""
        return self.entered(
            lambda: client(transport=self.ours.Transport(service, **options)),
            lambda: asynchronous(transport=self.ours.AsyncTransport(service, **options)),
        )


places = pytest.mark.parametrize(
    "place",
    [
        pytest.param(Upstream(flavour, backend), id=f"{flavour.its.__name__}-{backend or 'sync'}")
        for flavour in FLAVOURS
        for backend in (None, "asyncio", "trio")
    ],
)
flavours = pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda one: one.its.__name__)


def urls(servers):
    return [one.url for one in servers]


def ports(outcome):
    return [one.instance.port for one in lbclient.call_info(outcome).attempts]


# What both have in common


@places
def test_calls_are_spread(servers, place):
    """GET and POST are spread over the instances; requests and responses are the library's own."""
    trio = servers(tells_port, tells_port, tells_port)
    with place.client(urls(trio), strategy="round-robin") as client:
        answers = [client.get("/") for _ in range(3)] + [client.post("/", json=[1])]
        assert client.in_flight == 0
    assert [one.hits for one in trio].count(1) == 2
    assert all(isinstance(one, place.its.Response) for one in answers)
    assert json.loads(trio[0].requests[-1].body or "[1]") == [1]


@places
def test_under_the_librarys_own_client(servers, place):
    """A transport balances under the library's own client."""
    pair = servers(tells_port, tells_port)
    its = place.its
    with place.under(its.Client, its.AsyncClient, urls(pair)) as client:
        answers = {client.get("http://orders/").text for _ in range(4)}
    assert answers == {str(one.port) for one in pair}
    assert pair[0].requests[0].headers["host"] == "orders"


@places
def test_a_stream_is_busy_until_closed(servers, place):
    """A streamed response keeps its instance busy until its body is closed."""
    (server,) = servers(tells_port)
    with place.client([server.url]) as client:
        with client.stream("GET", "/") as response:
            assert client.in_flight == 1
            assert client.read(response) == str(server.port).encode()
        assert client.in_flight == 0


@places
@pytest.mark.parametrize("fault", [resets, hangs_up, dies_in_body, says(503)])
def test_a_get_is_tried_on_another_instance(servers, place, fault):
    """I3, I4, I8, I10: a fault fails no idempotent call, and `call_info` lists both attempts."""
    bad, good = servers(fault, tells_port)
    with place.client(urls([bad, good]), strategy=First(), retry=QUICK) as client:
        response = client.get("/")
    assert response.text == str(good.port)
    assert ports(response) == [bad.port, good.port]


@places
def test_a_refused_post_is_tried_on_another_instance(servers, dead_port, place):
    """I1: a request that was never sent is sent to another instance, whatever the method."""
    (good,) = servers(tells_port)
    service = [f"http://127.0.0.1:{dead_port}", good.url]
    with place.client(service, strategy=First(), retry=QUICK) as client:
        response = client.post("/", content=b"order")
    assert ports(response) == [dead_port, good.port]


@places
def test_a_generator_is_sent_to_the_next(servers, dead_port, place):
    """I1: a body that can be read once is still complete if nothing of it was sent."""
    (good,) = servers(tells_port)
    service = [f"http://127.0.0.1:{dead_port}", good.url]
    with place.client(service, strategy=First(), retry=QUICK) as client:
        client.post("/", content=place.body([b"or", b"der"]))
    assert good.requests[0].body == b"order"


@places
@pytest.mark.parametrize(
    ("fault", "name"), [(resets, "ReadError"), (hangs_up, "RemoteProtocolError")]
)
def test_an_instances_failure_is_the_librarys_error(servers, place, fault, name):
    """An instance's own failure is raised as the library's exception, with a note about the
    instances tried."""
    (bad,) = servers(fault)
    with place.client([bad.url], retry=None) as client:
        with pytest.raises(getattr(place.its, name)) as caught:
            client.post("/", content=b"order")
        assert client.in_flight == 0
    assert f"127.0.0.1:{bad.port}" in caught.value.__notes__[0]
    assert ports(caught.value) == [bad.port]
    assert caught.value.request.method == "POST"


@places
def test_the_librarys_timeouts_hold(servers, place):
    """I5: `timeout=` is the library's, and raises its ReadTimeout."""
    (server,) = servers(Gate())
    timeout = place.its.Timeout(5, read=0.05)
    with (
        place.client([server.url], timeout=timeout, retry=None) as client,
        pytest.raises(place.its.ReadTimeout),
    ):
        client.get("/")


@places
@pytest.mark.parametrize("behaviour", [drips(0.01), Gate()], ids=["drip", "silence"])
def test_the_deadline_holds(servers, place, behaviour):
    """I5, I6: a deadline ends a call that is slow or silent, with an error that is ours and the
    library's."""
    (server,) = servers(behaviour)
    with place.client([server.url]) as client:
        with pytest.raises(place.its.TimeoutException) as caught:
            client.get("/", extensions={"lbclient": {"deadline": 0.1}})
        assert client.in_flight == 0
    assert isinstance(caught.value, lbclient.DeadlineExceeded)


@places
def test_a_hedge(servers, place):
    """A second attempt answers if the first is slow."""
    gate = Gate()
    slow, quick = servers(gate, tells_port)
    hedge = lbclient.HedgePolicy(delay=0.02)
    with place.client(urls([slow, quick]), strategy=First(), hedge=hedge) as client:
        assert client.get("/").text == str(quick.port)
        gate.open.set()


@places
def test_http2(place):
    """HTTP/2 is used if requested, over one connection."""
    server = H2.start()
    try:
        with place.client([server.url], **H2.options()) as client:
            assert [client.get("/").http_version for _ in range(2)] == ["HTTP/2"] * 2
            assert server.accepted == 1
    finally:
        server.stop()


@places
def test_redirects_to_an_instance_stay_logical(servers, place):
    """A redirect that names an instance is balanced, and followed by the library."""
    (end,) = servers(tells_port)
    (begin,) = servers(says(302, Location=f"{end.url}/there"))
    with place.client(
        urls([begin, end]), name="orders", strategy=First(), follow_redirects=True
    ) as client:
        begin.behaviour = lambda connection, request: (
            tells_port if request.target == "/there" else says(302, Location=f"{end.url}/there")
        )(connection, request)
        response = client.get("/here")
    assert str(response.url) == "http://orders/there"
    assert [one.status_code for one in response.history] == [302]


@flavours
async def test_a_cancelled_call_gives_everything_back(servers, flavour):
    """A cancelled call releases its slot, and leaves no connection open."""
    gate = Gate()
    (server,) = servers(gate)
    async with flavour.ours.AsyncClient([server.url]) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, "/")
            assert await anyio.to_thread.run_sync(gate.entered.acquire, True, 10)
            tasks.cancel_scope.cancel()
        assert [one.in_flight for one in client.balancer.snapshot().instances] == [0]
        (home,) = client._transport._transports._per_loop.values()
        assert all(transport.is_idle for _, transport, _ in home._transports.values())


@on_accept
def takes_some(connection, _):
    """Read a little of what is sent, then reset."""
    connection.sock.recv(100_000)
    connection.reset()


async def test_an_upload_that_was_cut_is_left_tidily(servers, anyio_backend):
    """I3: a body that was cut short is closed with its call: httpx2's generator awaits something as
    it ends, and trio warns about such generators if they are left to the garbage collector."""
    del anyio_backend
    (server,) = servers(takes_some)
    closed = []

    async def endless():
        try:
            while True:
                yield b"x" * 100_000
        finally:
            closed.append(True)

    async with lbclient.httpx2.AsyncClient([server.url], retry=None) as client:
        with pytest.raises(httpx2.TransportError):
            await client.post("/", content=endless())
        assert closed == [True]


# Errors


@flavours
def test_nothing_known(flavour):
    """If nothing usable is known, the error is our DiscoveryError and the library's
    ConnectError."""
    service = Unknown()
    with (
        flavour.ours.Client(service, name="orders") as client,
        pytest.raises(lbclient.DiscoveryError) as caught,
    ):
        client.get("/")
    assert isinstance(caught.value, flavour.its.ConnectError)


class Unknown:
    def resolve(self):
        raise OSError("no answer")


FITTING = {
    "LoadBalancingError": "TransportError",
    "DiscoveryError": "ConnectError",
    "ServiceAbsent": "ConnectError",
    "NoInstanceAvailable": "ConnectError",
    "Throttled": "ConnectError",
    "DeadlineExceeded": "TimeoutException",
    "BalancerClosed": "TransportError",
}


@pytest.mark.parametrize("name", FITTING)
@flavours
def test_errors_are_both(flavour, name):
    """Each error that a client raises is of our one class for all flavours, and of the
    library's."""
    room = flavour.ours.Client.__module__.rpartition(".")[0]
    as_httpx = importlib.import_module(f"{room}.errors").as_httpx
    plain = getattr(lbclient, name)
    assert getattr(flavour.ours, name) is plain
    bound = as_httpx(plain("why"))
    assert isinstance(bound, plain)
    assert isinstance(bound, getattr(flavour.its, FITTING[name]))
    again = pickle.loads(pickle.dumps(bound))
    assert type(again) is type(bound)
    assert str(again) == "why"


def test_server_sent_events(servers):
    """httpx2's own `sse` is a stream like any other: balanced, and busy until closed."""
    (server,) = servers(says(200, b"data: one\n\n", Content_Type="text/event-stream"))
    with lbclient.httpx2.Client([server.url]) as client:
        with client.sse("/") as events:
            assert client.balancer.snapshot().instances[0].in_flight == 1
            assert [one.data for one in events] == ["one"]
        assert client.balancer.snapshot().instances[0].in_flight == 0


# What keeps them apart


def test_each_is_of_its_own_library():
    """The flavours have separate classes of clients, and each class shows its flavour by its
    module."""
    for name in ("Client", "AsyncClient", "Transport", "AsyncTransport"):
        first, second = getattr(lbclient, name), getattr(lbclient.httpx2, name)
        assert not issubclass(first, second)
        assert not issubclass(second, first)
        assert second.__module__.startswith("lbclient.httpx2.")
    assert issubclass(lbclient.Client, httpx.Client)
    assert issubclass(lbclient.httpx2.Client, httpx2.Client)


@places
def test_under_the_client_of_the_other(servers, place):
    """A transport under the other library's client raises an error at the first call, and sends
    nothing."""
    (server,) = servers(tells_port)
    (other,) = (one.its for one in FLAVOURS if one.its is not place.its)
    with place.under(other.Client, other.AsyncClient, [server.url]) as client:
        told = f"clients of {place.its.__name__}, but the request is from {other.__name__};"
        with pytest.raises(TypeError, match=told):
            client.get("http://orders/")
    assert server.hits == 0


@flavours
def test_what_is_of_the_other_is_refused(servers, flavour):
    """Limits, timeouts, and the transports that a factory makes must be of the client's library."""
    (other,) = (one.its for one in FLAVOURS if one.its is not flavour.its)
    mine = flavour.its.__name__
    with pytest.raises(TypeError, match=rf"limits must be {mine}\.Limits"):
        flavour.ours.Client("http://127.0.0.1:1", limits=other.Limits())
    with pytest.raises(TypeError, match="timeout"):
        flavour.ours.Client("http://127.0.0.1:1", timeout=other.Timeout(5))
    (server,) = servers(tells_port)
    with (
        flavour.ours.Client([server.url], transport=lambda _: other.HTTPTransport()) as client,
        pytest.raises(TypeError, match=rf"must make {mine}\.BaseTransport objects"),
    ):
        client.get("/")
    with flavour.ours.Client(
        [server.url], transport=lambda _: flavour.its.HTTPTransport()
    ) as client:
        assert client.get("/").text == str(server.port)


@flavours
def test_messages_name_the_library(flavour):
    """The advice in an error names the client's own library."""
    mine, ours = flavour
    advice = rf"{mine.__name__}\.Client\(mounts=.*: {ours.__name__}\.Transport"
    with pytest.raises(ValueError, match=advice):
        ours.Client("http://127.0.0.1:1", proxy="http://127.0.0.1:2")
    with pytest.raises(TypeError, match=rf"{mine.__name__}\.Timeout\("):
        ours.Client("http://127.0.0.1:1", timeout=(1,))


def test_both_at_once(servers):
    """Clients of both flavours work in one process, on threads and in one event loop."""
    (server,) = servers(tells_port)
    with lbclient.Client([server.url]) as first, lbclient.httpx2.Client([server.url]) as second:
        threads = [threading.Thread(target=one.get, args=("/",)) for one in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def main():
        async with (
            lbclient.AsyncClient([server.url]) as first,
            lbclient.httpx2.AsyncClient([server.url]) as second,
        ):
            return [(await one.get("/")).text for one in (first, second)]

    assert anyio.run(main) == [str(server.port)] * 2
    assert server.hits == 4


# With and without httpx2


def python(program, *arguments):
    """Run code in its own process, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


WITHOUT = """
import sys
import lbclient
assert not [name for name in sys.modules if name.startswith("lbclient.httpx2")]
for name in [name for name in sys.modules if name.partition(".")[0] in {"httpx2", "httpcore2"}]:
    del sys.modules[name]
sys.modules[sys.argv[1]] = None  # as good as not installed
try:
    import lbclient.httpx2
except ImportError as error:
    print(str(error).replace(" ", "_"))
"""


def test_without_httpx2():
    """`import lbclient` does not need httpx2; `import lbclient.httpx2` names the extra that
    installs it."""
    assert python(WITHOUT, "httpx2") == [
        "lbclient.httpx2_needs_httpx2:_pip_install_'lbclient[httpx2]'"
    ]


ALIASED = """
import sys
if sys.argv[2] == "late":
    import httpcore  # by somebody else: then only httpx becomes httpx2
    try:
        import httpx2; httpx2.alias_httpx()
    except RuntimeError:
        pass
else:
    import httpx2; httpx2.alias_httpx()
import asyncio
import httpx, lbclient, lbclient.httpx2
assert httpx is httpx2

async def call(ours):
    async with ours.AsyncClient([sys.argv[1]]) as client:
        return await client.get("/")

for ours in lbclient, lbclient.httpx2:
    with ours.Client([sys.argv[1]]) as client:
        assert isinstance(client, httpx2.Client)
        print(client.get("/").text)
    print(asyncio.run(call(ours)).text)
    once = lbclient.BreakerPolicy(fail_max=1)
    with ours.Client("http://127.0.0.1:1", breaker=once, retry=None) as client:
        try:
            client.get("/")
        except httpx2.ConnectError as error:
            assert type(error).__module__.partition(".")[0] == "httpx2"
        try:
            client.get("/")
        except httpx2.ConnectError as error:
            assert isinstance(error, lbclient.NoInstanceAvailable)
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_where_httpx_is_an_alias(servers, when):
    """After `httpx2.alias_httpx()`, `lbclient.Client` is a client of httpx2's, on its httpcore2."""
    (server,) = servers(tells_port)
    assert python(ALIASED, server.url, when) == [str(server.port)] * 4
