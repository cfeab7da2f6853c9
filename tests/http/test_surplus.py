"""Surplus bytes, which belong to no response: none of them reaches another call, and no request is
repeated."""

import itertools
import socket
import ssl
import threading
from collections import Counter

import anyio
import pytest
import trustme

import lbclient
from tests.http.test_odd_responses import LOOPS
from tests.http.test_tls import TlsServer
from tests.support.http import Server, head
from tests.support.odd_responses import STRAY_408
from tests.support.slow import slow_rows

SOON = 20.0
POSTS = 1_250
"""For each of four drivers and two ways to arrive: 10,000 in all."""
WORKERS = 8

AUTHORITY = trustme.CA()
TRUST = ssl.create_default_context()
AUTHORITY.configure_trust(TRUST)

KINDS = [
    STRAY_408 + b"\r\n",
    STRAY_408 + b"Connection: close\r\n\r\n",
    b"HTTP/1.1 500 Oops\r\nX-A: ",
    head(200, {"Content-Length": "4"}) + b"evil",
    b"\r\n",
    b"after chunks",
]
IN_CHUNKS = KINDS.index(b"after chunks")


class Shop:
    """Carry out and count POSTs, and send surplus after every third response: in the same segment,
    or in its own one, which `sent` announces."""

    def __init__(self, *, apart, posts=POSTS):
        self.posts = posts
        self.carried_out = Counter()
        self.sent = threading.Semaphore(0)
        self.apart = apart
        self._turns = itertools.count()

    def __call__(self, connection, request):
        self.carried_out[request.body] += 1
        turn = next(self._turns)
        kind = turn // 3 % len(KINDS) if turn % 3 == 0 else None
        surplus = b"" if kind is None else KINDS[kind]
        if kind == IN_CHUNKS:
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(request.body), request.body)
            response = head(200, {"Transfer-Encoding": "chunked"}) + chunk
        else:
            response = head(200, {"Content-Length": str(len(request.body))}) + request.body
        if self.apart:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.send(response)
            if surplus:
                connection.send(surplus)
            self.sent.release()
        else:
            connection.send(response + surplus)

    def check(self, client, found):
        """Each POST was carried out once, its caller got its response, and no instance is
        charged."""
        numbers = [b"%d" % number for number in range(self.posts)]
        assert found == [(200, number) for number in numbers]
        assert self.carried_out == dict.fromkeys(numbers, 1)
        assert client.balancer.snapshot().instances[0].failures == 0


@pytest.fixture(params=["same segment", "next segment", "next segment, TLS"])
def server(request):
    if request.param.endswith("TLS"):
        shop = Shop(apart=True, posts=250)
        made = TlsServer(shop, AUTHORITY.issue_cert("127.0.0.1"))
    else:
        shop = Shop(apart=request.param == "next segment")
        made = Server(shop)
    yield made
    made.stop()


def test_threads(server):
    """On threads, each POST is carried out once, and its caller gets its own response."""
    shop = server.behaviour
    one_by_one = shop.apart

    def post(number):
        response = client.post("/", content=b"%d" % number)
        if one_by_one:  # what comes later is there before the next request
            assert shop.sent.acquire(timeout=SOON)
        return response.status_code, response.content

    found = {}
    numbers = iter(range(shop.posts))
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            found[number] = post(number)

    with lbclient.Client([server.url], timeout=SOON, verify=TRUST) as client:
        threads = [threading.Thread(target=work) for _ in range(1 if one_by_one else WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shop.check(client, [found[number] for number in sorted(found)])


@pytest.mark.parametrize("loop", ["asyncio", *slow_rows("trio", "uvloop")])
def test_event_loops(server, loop):
    """On event loops, each POST is carried out once, and its caller gets its own response."""
    shop = server.behaviour
    one_by_one = shop.apart
    found = {}

    async def main():
        numbers = iter(range(shop.posts))

        async def work():
            for number in numbers:
                response = await client.post("/", content=b"%d" % number)
                found[number] = response.status_code, response.content
                if one_by_one:  # the loop stands still: it is not told of what comes later
                    assert shop.sent.acquire(timeout=SOON)

        async with lbclient.AsyncClient([server.url], timeout=SOON, verify=TRUST) as client:
            async with anyio.create_task_group() as group:
                for _ in range(1 if one_by_one else WORKERS):
                    group.start_soon(work)
            shop.check(client, [found[number] for number in sorted(found)])

    backend, options = LOOPS[loop]
    anyio.run(main, backend=backend, backend_options=options)


def stray_408_then(seconds):
    """A stray 408 arrives with the second request, which is carried out."""

    def behave(connection, request):
        if connection.server.hits == 2:
            connection.send(STRAY_408 + b"Connection: close\r\n\r\n")
            connection.server.stopping.wait(seconds)
        connection.answer(200, request.body)

    return behave


def test_a_slow_response_after_a_stray_408(servers):
    """A POST is not repeated after a stray 408 if its own response takes long."""
    (server,) = servers(stray_408_then(0.3))
    with lbclient.Client([server.url], timeout=SOON) as client:
        client.get("/")
        assert client.post("/", content=b"x").status_code == 408
    assert server.hits == 2


@pytest.mark.parametrize("loop", LOOPS)
def test_a_slow_response_after_a_stray_408_on_event_loops(servers, loop):
    """The same over event loops."""
    (server,) = servers(stray_408_then(0.3))

    async def main():
        async with lbclient.AsyncClient([server.url], timeout=SOON) as client:
            await client.get("/")
            assert (await client.post("/", content=b"x")).status_code == 408

    backend, options = LOOPS[loop]
    anyio.run(main, backend=backend, backend_options=options)
    assert server.hits == 2
