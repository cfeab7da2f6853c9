"""What asyncio's own transports must bring through: an answer that comes before the whole request
has been sent, and bytes that are no HTTP any more."""

import contextlib
import socket
import threading

import pytest

import lbclient
from lbclient.http.loop_stream import LoopBackend
from tests.support.http import head

pytestmark = pytest.mark.anyio
SOON = 20.0
"""Seconds that nothing here takes."""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


async def test_an_answer_before_the_end_of_the_request(listener):
    """A server that will not have the body may say so and close: its answer is the response,
    though sending the rest fails."""
    with refusing(listener):
        url = "http://{}:{}".format(*listener.getsockname())
        async with lbclient.AsyncClient([url], timeout=SOON) as client:
            response = await client.post("/", content=b"x" * 2**25)
    assert (response.status_code, response.text) == (413, "too much")


@contextlib.contextmanager
def refusing(listener):
    """It reads a little, answers, and closes while there is more, which resets."""

    def refuse():
        peer, _ = listener.accept()
        with peer:
            peer.recv(100)
            peer.sendall(head(413, {"Content-Length": "8", "Connection": "close"}) + b"too much")

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        yield
    finally:
        thread.join()


async def test_bytes_that_are_no_http(listener):
    """After 101 (Switching Protocols) the connection is the caller's, with what came along."""
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


async def test_a_read_of_one_byte_at_a_time_is_whole(listener):
    """However small the pieces asked for, none is lost and none comes twice."""
    stream = await LoopBackend().connect_tcp(*listener.getsockname(), SOON)
    peer, _ = listener.accept()
    with peer:
        peer.sendall(bytes(range(256)))
    read = b""
    while data := await stream.read(1, SOON):
        read += data
    assert read == bytes(range(256))
    await stream.aclose()
