"""Connections that are no longer needed are closed while the client makes no call."""

import contextlib
import gc
import ssl
import threading
import warnings
import weakref

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
import trio
import trio.testing
import trustme

import lbclient
from lbclient import Answer, Instance
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.http.connections import transport_pool
from lbclient.http.connections.pool import ConnectionLease, KeepAlivePool
from lbclient.http.connections.threads import SocketConnection
from tests.faults.test_green_threads import green
from tests.http.test_departures import script
from tests.http.test_features import Caller, World
from tests.http.test_tls import TlsServer
from tests.support.http import Server, head, tells_port, transports_of
from tests.support.http2 import Http2, says_ok

SOON = 20.0
"""A time in seconds that no test here reaches."""
NEVER = httpx.Limits(keepalive_expiry=None)
BRIEF = httpx.Limits(keepalive_expiry=0.02)


class OnUvloop(World):
    """Asyncio on uvloop."""

    @contextlib.contextmanager
    def entered(self, _, asynchronous):
        options = {"use_uvloop": True}
        with (
            anyio.from_thread.start_blocking_portal("asyncio", options) as portal,
            portal.wrap_async_context_manager(portal.call(asynchronous)) as client,
        ):
            yield Caller(client, portal)


worlds = pytest.mark.parametrize(
    "world",
    [World(), World("asyncio"), OnUvloop("asyncio"), World("trio")],
    ids=["sync", "asyncio", "uvloop", "trio"],
)


class SeesEnds:
    """An instance that reports when one of its connections has ended."""

    def _answer(self, connection):
        super()._answer(connection)
        self.ends.release()

    def __post_init__(self):
        self.ends = threading.Semaphore(0)
        super().__post_init__()

    def end(self):
        """Wait until the next connection has ended."""
        assert self.ends.acquire(timeout=SOON)

    @property
    def instance(self):
        return Instance(self.host, self.port)


class Plain(SeesEnds, Server):
    """Without TLS."""


class Secure(SeesEnds, TlsServer):
    """With TLS."""


@pytest.fixture
def serve():
    """Start instances: `serve(behaviour, ...)`."""
    started = []

    def start(*behaviours, **options):
        new = [Plain(behaviour, **options) for behaviour in behaviours]
        started.extend(new)
        return new

    yield start
    for server in started:
        server.stop()


class Scripted:
    """A resolver that returns the instances it is given."""

    def __init__(self, *instances):
        self.instances = instances

    def resolve(self):
        return Answer(self.instances, 3600)


# Time


@worlds
def test_expired_connections_close(serve, world):
    """Connections to all instances that have been idle for `keepalive_expiry` close without another
    call, each time."""
    pair = serve(tells_port, tells_port)
    urls = [one.url for one in pair]
    with world.client(urls, strategy="round-robin", limits=BRIEF) as client:
        for turn in (1, 2):
            for _ in pair:
                client.get("/")
            for server in pair:
                server.end()
                assert server.accepted == turn


@worlds
def test_expired_tls_connections_close(world):
    """The same over TLS."""
    authority = trustme.CA()
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    server = Secure(tells_port, authority.issue_cert("127.0.0.1"))
    try:
        with world.client([server.url], verify=trust, limits=BRIEF) as client:
            client.get("/")
            server.end()
    finally:
        server.stop()


def test_time_of_another_clock(serve, monkeypatch):
    """A connection closes once its time has passed, and not before."""
    (server,) = serve(tells_port)
    monkeypatch.setattr(
        transport_pool, "pool_of", lambda _: KeepAlivePool(4.0, 9, None, trio.current_time)
    )

    async def calls():
        async with lbclient.AsyncClient([server.url], timeout=None) as client:
            await client.get("/")
            clock.jump(2.0)
            await client.get("/")
            ((connection,),) = [transport._connections.all() for transport in transports_of(client)]
            clock.jump(3.9)
            await trio.testing.wait_all_tasks_blocked()
            assert not connection.closed
            clock.jump(0.2)
            await trio.to_thread.run_sync(server.end)
            assert connection.closed

    clock = trio.testing.MockClock()
    trio.run(calls, clock=clock)
    assert server.accepted == 1


def test_closed_on_the_schedulers_thread(serve, monkeypatch):
    """Closing never blocks, so it needs no thread of its own."""
    (server,) = serve(tells_port)
    threads, close = [], SocketConnection.close

    def watched(connection):
        threads.append(threading.current_thread().name)
        close(connection)

    monkeypatch.setattr(SocketConnection, "close", watched)
    with lbclient.Client([server.url], limits=BRIEF) as client:
        client.get("/")
        server.end()
        assert threads == ["lbclient-refresher"]


@worlds
def test_calls_wake_nobody(serve, world):
    """This adds no cost to each call: the pool is watched once, not again for each call."""
    (server,) = serve(tells_port)
    with world.client([server.url], limits=httpx.Limits(keepalive_expiry=60)) as client:
        client.get("/")
        (transport,) = transports_of(client.client)
        transport._connections.idle.wake = pytest.fail
        for _ in range(10):
            client.get("/")
    assert server.accepted == 1


@worlds
def test_http2_connections_close(serve, world):
    """Over HTTP/2 a connection is closed once no stream has used it for that time, and as soon as
    its instance is removed."""
    expires, leaves = serve(Http2(ended=says_ok), Http2(ended=says_ok))
    resolver = Scripted(leaves.instance)
    h2c = {"http2": True, "http1": False}
    with (
        world.client([expires.url], limits=BRIEF, **h2c) as brief,
        world.client(resolver, name="shop.test", limits=NEVER, **h2c) as client,
    ):
        assert brief.post("/", content=b"x").text == "got 1"
        expires.end()
        assert client.post("/", content=b"x").text == "got 1"
        resolver.instances = [expires.instance]
        client.balancer.refresh()
        leaves.end()


# What was dropped


def never_ends(connection, _):
    """Half of a body."""
    connection.send(head(200, {"Content-Length": "4"}) + b"ha")


class Never:
    """A job that is never due."""


@worlds
def test_dropped_responses_close(serve, world):
    """The connection of a response that was dropped unclosed closes without another call."""
    (server,) = serve(never_ends)

    def drop(client):
        client.send(client.build_request("GET", "/"), stream=True)

    async def adrop(client):
        await client.send(client.build_request("GET", "/"), stream=True)

    with world.client([server.url], limits=NEVER) as client:
        THREAD_SCHEDULER.schedule(Never())  # a finalizer starts no thread
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            client.run(drop if client.portal is None else adrop, client.client)
            gc.collect()
        assert any("never closed" in str(one.message) for one in told)
        server.end()


@worlds
def test_dropped_responses_close_with_their_client(serve, world):
    """A client that closes right after a response was dropped closes that connection, too."""
    (server,) = serve(never_ends)

    def drop(client):
        response = client.send(client.build_request("GET", "/"), stream=True)
        return response.extensions["network_stream"]._connection

    async def adrop(client):
        response = await client.send(client.build_request("GET", "/"), stream=True)
        return response.extensions["network_stream"]._connection

    with world.client([server.url], limits=NEVER) as client:
        transport = client.client._transport
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            dropped = client.run(drop if client.portal is None else adrop, client.client)
            gc.collect()
        client.run(transport.close if client.portal is None else transport.aclose)
        assert dropped._sock.fileno() == -1


@worlds
def test_lost_leases_close(serve, world):
    """The same applies to a connection whose lease an exception from outside has left behind."""
    (server,) = serve(tells_port)
    with world.client([server.url], limits=NEVER) as client:
        THREAD_SCHEDULER.schedule(Never())
        client.get("/")
        (transport,) = transports_of(client.client)
        lease = ConnectionLease(transport._connections)
        assert transport._connections.take(lease) is not None
        del lease
        server.end()


# Instances that leave


def in_halves(second):
    """Send half a body at once, the rest when `second` is set. Paths other than /halves return the
    port."""

    def behave(connection, request):
        if request.target != "/halves":
            tells_port(connection, request)
            return
        connection.send(head(200, {"Content-Length": "4"}) + b"ha")
        assert second.wait(SOON)
        connection.send(b"lf")

    return behave


@worlds
def test_connections_to_removed_instances_close(serve, world):
    """When an instance is removed, its idle connections close at once; one in use is closed when
    its call ends."""
    second = threading.Event()
    old, new = serve(in_halves(second), tells_port)
    resolver = Scripted(old.instance)
    with world.client(resolver, name="shop.test", limits=NEVER) as client:
        with client.stream("GET", "/halves") as response:
            client.get("/")
            resolver.instances = [new.instance]
            client.balancer.refresh()
            old.end()
            second.set()
            assert client.read(response) == b"half"
        old.end()
        assert client.get("/").text == str(new.port)
    assert old.accepted == 2


@worlds
def test_connections_to_an_old_address_close(serve, world):
    """The same applies to connections to an instance that has another address now."""
    (server,) = serve(tells_port)
    resolver = Scripted(Instance("pod.test", server.port, addresses=("127.0.0.1",)))
    with world.client(resolver, name="shop.test", limits=NEVER) as client:
        client.get("/")
        resolver.instances = [Instance("pod.test", server.port, addresses=("127.0.0.2",))]
        client.balancer.refresh()
        server.end()


@worlds
def test_thousands_leave_together(serve, world):
    """If many instances leave together, the connections to all of them close."""
    servers = serve(*[tells_port] * 70)
    resolver = Scripted(*[server.instance for server in servers])
    with world.client(resolver, name="shop.test", limits=NEVER, strategy="round-robin") as client:
        for _ in servers:
            client.get("/")
        resolver.instances = [Instance("127.0.0.1", 1)]
        client.balancer.refresh()
        for server in servers:
            server.end()


class Mine(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A caller's transport that reports when it is closed."""

    def __init__(self, instance):
        self.instance = instance
        self.closed = threading.Event()

    def handle_request(self, _):
        return httpx.Response(200, stream=Body())

    async def handle_async_request(self, _):
        return httpx.Response(200, stream=Body())

    def close(self):
        self.closed.set()

    async def aclose(self):
        await anyio.lowlevel.checkpoint()
        self.closed.set()


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that is there."""

    def __iter__(self):
        yield b"body"

    async def __aiter__(self):
        yield b"body"


@worlds
@pytest.mark.parametrize("leaves", ["while idle", "during a call", "during a stream"])
def test_transports_of_removed_instances_close(world, leaves):
    """A caller's own transport is closed when its instance has left and no call uses it."""
    made = {}
    a, b = Instance("a.test", 80), Instance("b.test", 80)
    resolver = Scripted(a)

    def make(instance):
        made[instance] = Mine(instance)
        return made[instance]

    with world.client(resolver, name="shop.test", transport=make) as client:

        def leave(_=None):
            resolver.instances = [b]
            client.balancer.refresh()

        async def aleave(_=None):
            resolver.instances = [b]
            await client.client.balancer.arefresh()

        if leaves == "during a stream":
            with client.stream("GET", "/"):
                leave()
                assert not made[a].closed.wait(0)
        elif leaves == "during a call":
            client.client.event_hooks = {"response": [leave if client.portal is None else aleave]}
            client.get("/")
        else:
            client.get("/")
            leave()
        assert made[a].closed.wait(SOON)


@worlds
def test_call_that_was_given_the_instance_before(serve, world):
    """A call that was given an instance just before it was removed is served, and its connection
    does not stay open."""
    old, new = serve(tells_port, tells_port)
    resolver = Scripted(old.instance)
    with world.client(resolver, name="shop.test", limits=NEVER, retry=None) as client:
        client.get("/")
        old.drop_connections()
        old.end()
        (transport,) = transports_of(client.client)
        connect, turns = transport._connections.take, []

        def take(lease):
            if not turns:
                turns.append(lease)
                resolver.instances = [new.instance]
                client.client.balancer.refresh()
            return connect(lease)

        transport._connections.take = take
        assert client.get("/").text == str(old.port)
        old.end()
        assert client.get("/").text == str(new.port)


# What nothing holds


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@worlds
def test_client_is_not_kept_alive(serve, world):
    """Neither a timer nor the scheduler keeps an unclosed client alive; its idle connections still
    close."""
    (server,) = serve(tells_port)

    def use():
        client = lbclient.Client([server.url], limits=limits)
        client.get("/")
        return weakref.ref(client)

    async def ause():
        client = lbclient.AsyncClient([server.url], limits=limits)
        await client.get("/")
        return weakref.ref(client)

    limits = httpx.Limits(keepalive_expiry=0.2)
    with world.client([server.url]) as client:
        dropped = client.run(use if client.portal is None else ause)
        gc.collect()
        assert dropped() is None
        server.end()


@pytest.mark.parametrize("kind", ["thread", "asyncio", "trio"])
def test_process_ends_at_once(serve, kind):
    """A process with idle connections that would expire in an hour ends, and prints nothing."""
    (server,) = serve(tells_port)
    text = """
    import sys, anyio, httpx, lbclient
    limits = httpx.Limits(keepalive_expiry=3600)
    async def calls():
        client = lbclient.AsyncClient(sys.argv[1], limits=limits)
        print((await client.get("/")).status_code)
    if sys.argv[2] == "thread":
        print(lbclient.Client(sys.argv[1], limits=limits).get("/").status_code)
    else:
        anyio.run(calls, backend=sys.argv[2])
    """
    assert script(text, server.url, kind) == (0, "200\n", "")


def test_one_loop_after_another(serve):
    """In each event loop in which a client is used, its connections close without a call."""
    (server,) = serve(tells_port)
    client = lbclient.AsyncClient([server.url], limits=BRIEF)

    async def calls():
        await client.get("/")
        await anyio.to_thread.run_sync(server.end)

    for backend in ("asyncio", "asyncio", "trio"):
        anyio.run(calls, backend=backend)
    anyio.run(client.aclose)
    assert server.accepted == 3


@pytest.mark.parametrize("kind", ["thread", "asyncio", "trio"])
def test_in_a_forked_child(serve, kind):
    """The idle connections of a forked child close without a call, and so do those of its
    parent."""
    (server,) = serve(tells_port)
    text = """
    import os, sys, anyio, httpx, lbclient
    limits = httpx.Limits(keepalive_expiry=0.05)
    def idle(client):
        while client._transport._transports._idle._since:
            os.sched_yield()
    async def aidle(client):
        while any(home._idle._since for home in client._transport._transports._per_loop.values()):
            await anyio.sleep(0)
    async def calls():
        os.write(1, b"%d\\n" % (await client.get("/")).status_code)
        await aidle(client)
    def use():
        if sys.argv[2] == "thread":
            os.write(1, b"%d\\n" % client.get("/").status_code)
            idle(client)
        else:
            anyio.run(calls, backend=sys.argv[2])
    client = (lbclient.Client if sys.argv[2] == "thread" else lbclient.AsyncClient)(
        sys.argv[1], limits=limits
    )
    use()
    if (child := os.fork()) == 0:
        use()
        os._exit(0)
    use()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert script(text, server.url, kind) == (0, "200\n" * 3, "")
    for _ in range(3):
        server.end()


@pytest.mark.parametrize("when", ["early", "late", "made"])
def test_in_green_threads(serve, when):
    """Idle connections close without a call in a process that gevent patches."""
    (server,) = serve(tells_port)
    assert green("expires", when, server.port).statuses == [200] * 3
    for _ in range(3):
        server.end()
