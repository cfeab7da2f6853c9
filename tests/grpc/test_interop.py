"""The cases of gRPC's interoperability tests that apply to a channel, with generated stubs.

https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md
"""

from __future__ import annotations

import grpc
import pytest

from tests.support.rpc import KINDS, RpcServer, messages

SIZES_OUT = 31415, 9, 2653, 58979
SIZES_IN = 27182, 8, 1828, 45904
LARGE_OUT, LARGE_IN = 314159, 271828
MINUTE = {"timeout": 60.0}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def server():
    one = RpcServer()
    yield one
    one.stop()


@pytest.fixture
def rpcs(rpcs, server):
    return rpcs([server])


def outputs(*sizes, interval=0, size_in=0):
    parameters = [messages.ResponseParameters(size=one, interval_us=interval) for one in sizes]
    payload = messages.Payload(body=bytes(size_in))
    return messages.StreamingOutputCallRequest(response_parameters=parameters, payload=payload)


def test_empty_unary(rpcs):
    """An empty request gets an empty response."""
    assert rpcs.unary("EmptyCall", **MINUTE) == messages.Empty()


def test_large_unary(rpcs):
    """A large request gets a large response."""
    payload = messages.Payload(body=bytes(LARGE_IN))
    request = messages.SimpleRequest(response_size=LARGE_OUT, payload=payload)
    assert len(rpcs.unary("UnaryCall", request, **MINUTE).payload.body) == LARGE_OUT


def test_client_streaming(rpcs):
    """All requests of a stream arrive, then the response."""
    requests = [
        messages.StreamingInputCallRequest(payload=messages.Payload(body=bytes(size)))
        for size in SIZES_IN
    ]
    response = rpcs.begin("StreamingInputCall", iter(requests), **MINUTE).result()
    assert response.aggregated_payload_size == sum(SIZES_IN)


def test_server_streaming(rpcs):
    """All responses of a stream arrive in order."""
    call = rpcs.begin("StreamingOutputCall", outputs(*SIZES_OUT), **MINUTE)
    assert [len(one.payload.body) for one in call] == list(SIZES_OUT)
    assert call.code == "OK"


def test_ping_pong(rpcs):
    """Each request of a stream follows the response to the one before."""
    answered = Requests(rpcs)
    call = rpcs.begin("FullDuplexCall", answered, **MINUTE)
    for size_out, size_in in zip(SIZES_OUT, SIZES_IN, strict=True):
        answered.send(outputs(size_out, size_in=size_in))
        assert len(call.read().payload.body) == size_out
    answered.close()
    assert call.read() is None
    assert call.code == "OK"


def test_empty_stream(rpcs):
    """A stream without requests ends well, without responses."""
    call = rpcs.begin("FullDuplexCall", iter(()), **MINUTE)
    assert list(call) == []
    assert call.code == "OK"


def test_timeout_on_sleeping_server(rpcs):
    """A stream whose server sleeps ends with DEADLINE_EXCEEDED."""
    call = rpcs.begin("StreamingOutputCall", outputs(31415, interval=500_000), timeout=0.05)
    with pytest.raises(grpc.RpcError) as caught:
        call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert call.code == "DEADLINE_EXCEEDED"


def test_cancel_after_begin(rpcs):
    """A stream that is cancelled before its first request ends with CANCELLED."""
    requests = Requests(rpcs)
    call = rpcs.begin("StreamingInputCall", requests, **MINUTE)
    call.cancel()
    assert call.code == "CANCELLED"
    requests.close()


def test_cancel_after_first_response(rpcs):
    """A stream that is cancelled after a response ends with CANCELLED."""
    requests = Requests(rpcs)
    call = rpcs.begin("FullDuplexCall", requests, **MINUTE)
    requests.send(outputs(SIZES_OUT[0]))
    assert len(call.read().payload.body) == SIZES_OUT[0]
    call.cancel()
    assert call.code == "CANCELLED"
    requests.close()


def test_status_code_and_message(rpcs):
    """The status and the message that the server sends arrive, also in Unicode."""
    for message in (
        "test status message",
        "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n",
    ):
        status = messages.EchoStatus(code=2, message=message)
        error = rpcs.error("UnaryCall", messages.SimpleRequest(response_status=status), **MINUTE)
        assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, message)
        request = messages.StreamingOutputCallRequest(response_status=status)
        call = rpcs.begin("FullDuplexCall", iter([request]), **MINUTE)
        with pytest.raises(grpc.RpcError):
            call.read()
        assert (call.code, call.get("details")) == ("UNKNOWN", message)


def test_custom_metadata(rpcs):
    """Metadata arrive at the server, and the server's arrive here: text first, bytes last."""
    metadata = (
        ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
        ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"),
    )
    unary = rpcs.begin("UnaryCall", metadata=metadata, **MINUTE)
    stream = rpcs.begin("FullDuplexCall", iter([outputs(1)]), metadata=metadata, **MINUTE)
    assert len(list(stream)) == 1
    for call in (unary, stream):
        assert metadata[0] in tuple(call.get("initial_metadata"))
        assert metadata[1] in tuple(call.get("trailing_metadata"))


def test_unimplemented_method(rpcs):
    """A method that no server implements ends with UNIMPLEMENTED."""
    error = rpcs.error("UnimplementedCall", **MINUTE)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


class Requests:
    """An iterator of requests, for both kinds of channel, which a test feeds."""

    def __init__(self, rpcs):
        import asyncio
        import queue

        self._loop = rpcs.loop
        self._queue = queue.SimpleQueue() if rpcs.loop is None else rpcs.loop.run(_made(asyncio))

    def send(self, request):
        if self._loop is None:
            self._queue.put(request)
        else:
            self._loop.run(self._queue.put(request))

    def close(self):
        self.send(None)

    def __iter__(self):
        assert self._loop is None
        return iter(self._queue.get, None)

    def __aiter__(self):
        return self._each()

    async def _each(self):
        while (request := await self._queue.get()) is not None:
            yield request


async def _made(asyncio):
    return asyncio.Queue()
