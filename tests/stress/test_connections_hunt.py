"""Connections and request patterns under rare coincidences: a close at the same moment, a fork,
many cancelled calls, a client that is changed."""

import os
import signal
import threading
from collections import deque

import anyio
import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import pytest

import lbclient
from lbclient import RetryPolicy
from lbclient._internal.blocking import run_blocking
from lbclient.http.connections.pool import KeepAlivePool
from lbclient.http.request_cache import RequestCache
from tests.support.http import says, tells_port, transports_of

pytestmark = pytest.mark.anyio
OWN = "http://10.0.0.1:8080"
H2C = {"http1": False, "http2": True}


def test_what_is_put_back_while_its_wire_is_closed(servers, monkeypatch):
    """C20: a connection that becomes idle at the moment of `close` is closed too."""
    (server,) = servers(tells_port)
    with lbclient.Client([server.url]) as client:
        client.get("/")
        (transport,) = transports_of(client)
        idle = client._transport._transports._idle
        put = idle.put

        def late(connection, shelf):
            run_blocking(client._transport._transports.aclose)
            return put(connection, shelf)

        monkeypatch.setattr(idle, "put", late)
        client.get("/")
        assert len(idle) == 0
        assert transport._connections.all() == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks where there are threads
def test_a_child_that_closes_an_answer_of_its_parents(servers):
    """F: F: another thread may hold the lock of the idle connections when the process forks."""
    (server,) = servers(says(200, b"x" * 10_000))
    with lbclient.Client([server.url]) as client:
        client.get("/")
        idle = client._transport._transports._idle
        with client.stream("GET", "/") as response:
            held, over = threading.Event(), threading.Event()

            def hold():
                with idle.lock:
                    held.set()
                    over.wait(10)

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait(10)
            if (child := os.fork()) == 0:
                signal.alarm(10)
                response.close()
                os._exit(0 if client.get("/").status_code == 200 else 1)
            over.set()
            holder.join()
            assert os.waitpid(child, 0)[1] == 0
            assert len(response.read()) == 10_000


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class OneAtATime:
    """HTTP/2 without negotiation: one stream per connection; the first request of all is never
    answered."""

    on_accept = True

    def __init__(self):
        self.unanswered = threading.Semaphore(0)
        self.streams = 0

    def __call__(self, connection, _):
        peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        one = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1}
        peer.local_settings = h2.settings.Settings(client=False, initial_values=one)
        peer.initiate_connection()
        connection.send(peer.data_to_send())
        while data := connection.sock.recv(65_536):
            for event in peer.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    self._take(peer, event.stream_id)
            connection.send(peer.data_to_send())

    def _take(self, peer, stream):
        self.streams += 1
        if self.streams == 2:
            self.unanswered.release()
        else:
            peer.send_headers(stream, [(":status", "200")], end_stream=True)


async def test_streams_of_cancelled_calls_count(servers):
    """C22: while the server still works on a cancelled call, and accepts no more streams, the next
    call uses another connection; with httpcore's transport it would fail each time."""
    instance = OneAtATime()
    (server,) = servers(instance)
    once = RetryPolicy(attempts=1)
    async with lbclient.AsyncClient([server.url], retry=once, breaker=None, **H2C) as client:
        assert (await client.get("/")).status_code == 200
        async with anyio.create_task_group() as group:
            group.start_soon(client.get, "/")
            await anyio.to_thread.run_sync(instance.unanswered.acquire)
            group.cancel_scope.cancel()
        for _ in range(3):
            assert (await client.get("/")).status_code == 200
        assert server.accepted == 2
        (transport,) = transports_of(client)
        assert [len(one.http2.exchanges) for one in transport._connections.all()] == [0]


def test_a_timeout_that_is_set_in_place():
    """`client.timeout.read = 9` holds from the next request on."""
    with lbclient.Client(OWN) as client:
        for read in (5.0, 9.0, None):
            client.timeout.read = read
            for _ in range(2):
                made = client.build_request("GET", "/x")
                assert made.extensions["timeout"]["read"] == read


@pytest.mark.parametrize("base", ["http://10.0.0.2:81/", f"{OWN}/v1", f"{OWN}/#part"])
def test_another_base_for_the_same_client(base):
    """A pattern of another base URL is not used: its Host differs."""
    with lbclient.Client(OWN) as client, httpx.Client(base_url=OWN) as bare:
        for one in (client, bare):
            one.build_request("GET", "/x")
            one.build_request("GET", "/x")
            one.base_url = base
        for _ in range(2):
            ours, theirs = (one.build_request("GET", "/x") for one in (client, bare))
            assert (ours.url, ours.headers["host"]) == (theirs.url, theirs.headers["host"])


def test_headers_that_another_thread_sets_for_a_moment():
    """C: C: a request that was changed while its pattern was made does not affect later
    requests."""
    with lbclient.Client(OWN) as client:
        drafts = RequestCache(client._request_cache._origin)

        def build(*args, **options):
            client.headers["Authorization"] = "Bearer of another thread"
            try:
                return httpx.Client.build_request(client, *args, **options)
            finally:
                del client.headers["Authorization"]

        drafts.request(client, "GET", "/x", {}, build)
        made = drafts.request(client, "GET", "/x", {}, client.build_request)
        assert "authorization" not in made.headers


def test_an_interrupt_while_one_is_taken():
    """Ctrl-C may come between any two steps: a connection that was taken and never used is closed
    in the end, and affects no other."""
    lost, other, new = (Connection() for _ in range(3))
    idle, first, second = KeepAlivePool(10.0, 100, None, clock := Clock()), deque(), deque()
    idle.put(lost, first)
    first.pop()  # `take` came this far
    clock.now += 5
    idle.put(other, second)
    clock.now += 6
    assert idle.put(new, first) == [lost]
    assert (list(first), list(second), len(idle)) == ([new], [other], 2)


class Connection:
    """What a pool stores."""
