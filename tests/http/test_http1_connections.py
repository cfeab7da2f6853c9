"""Connections of our own, over real sockets."""

import socket
import threading

import pytest
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

import lbclient
from tests.support.drivers import as_guest
from tests.support.http import head, says

SOON = 20.0
"""Seconds that nothing here takes."""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_trio_as_a_guest_of_asyncio(servers):
    """An asyncio loop in which trio runs as a guest is trio's."""
    (server,) = servers(says(200, b"fine"))

    async def fetched():
        async with lbclient.AsyncClient([server.url]) as client:
            return (await client.get("/")).text

    assert as_guest(fetched) == "fine"


@pytest.mark.anyio
async def test_bytes_that_are_no_http(listener):
    """After 101 (Switching Protocols) the connection belongs to the caller, with the bytes that
    followed."""
    thread = threading.Thread(target=echo_once, args=(listener,))
    thread.start()
    try:
        url = "http://{}:{}".format(*listener.getsockname())
        async with lbclient.AsyncClient([url], timeout=SOON) as client:
            headers = {"Upgrade": "echo", "Connection": "Upgrade"}
            async with client.stream("GET", "/", headers=headers) as response:
                assert response.status_code == 101
                line = response.extensions["network_stream"]
                assert await line.read(5, SOON) == b"hello"
                await line.write(b"0123456789", SOON)
                assert [await line.read(6, SOON), await line.read(6, SOON)] == [b"012345", b"6789"]
                assert await line.read(6, SOON) == b""
    finally:
        thread.join()


def echo_once(listener):
    peer, _ = listener.accept()
    with peer:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += peer.recv(1000)
        peer.sendall(head(101, {"Upgrade": "echo", "Connection": "Upgrade"}) + b"hello")
        peer.sendall(peer.recv(10))


def test_a_token_does_not_outlive_its_request(listener):
    """Headers are stored for the next request only if none of them can be secret."""
    with lbclient.Client(["http://{}:{}".format(*listener.getsockname())]) as client:
        secrets = {"Authorization": "Bearer S3CRET", "X-Api-Key": "S3CRET", "Cookie": "a=S3CRET"}
        for name, value in [("User-Agent", "x"), *secrets.items()]:
            request = client.build_request("GET", "/", headers={name: value})
            (instance,) = client.balancer._engine.pool.endpoints
            transport = client._transport._transports.to(instance, 0.0)
            transport._exchange(request, {})
            kept, _ = transport._kept_headers
            assert kept
            assert not any(b"S3CRET" in value for *_, value in kept)


def test_each_request_names_its_own_span(listener):
    """Headers that are stored for the next request do not include those of the current span."""
    with lbclient.Client(["http://{}:{}".format(*listener.getsockname())]) as client:
        (instance,) = client.balancer._engine.pool.endpoints
        transport = client._transport._transports.to(instance, 0.0)
        for number in (1, 2):
            span = NonRecordingSpan(SpanContext(number, number, is_remote=False))
            token = context.attach(trace.set_span_in_context(span))
            try:
                sent = transport._exchange(client.build_request("GET", "/"), {}).request_head
            finally:
                context.detach(token)
            assert sent.count(b"\r\ntraceparent: ") == 1
            assert b"\r\ntraceparent: 00-%032x-%016x-00\r\n\r\n" % (number, number) in sent
