"""Exceptions of signal handlers, which may come between any two lines of an RPC."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time

import grpc
import pytest

from lbclient.balancer import callbacks
from lbclient.balancer.callbacks import CallbackRun
from tests.support.rpc import channel_of, messages

SIGNALS = int(os.environ.get("LBCLIENT_SIGNALS", "150"))


class SoftTimeLimit(Exception):
    """As Celery's: an ordinary exception, from a signal handler."""


@contextlib.contextmanager
def interrupted(seconds):
    """Raise in this thread after some time."""

    def handle(*_):
        raise SoftTimeLimit

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outputs(number):
    one = messages.ResponseParameters(size=1, interval_us=1000)
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


def unary(stub):
    stub.UnaryCall(messages.SimpleRequest())


def future(stub):
    stub.UnaryCall.future(messages.SimpleRequest()).result()


def stream(stub):
    for _ in stub.StreamingOutputCall(outputs(1000)):
        pass


def requests(stub):
    stub.StreamingInputCall(iter([messages.StreamingInputCallRequest()]))


def settled(rpcs):
    """Wait until what was interrupted has been given back."""
    end = time.monotonic() + 10
    while True:
        gc.collect()
        rpcs.unary(timeout=10.0)
        if not rpcs.in_flight():
            return
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("call", [unary, future, stream, requests])
def test_a_call_that_waits_is_interrupted(rpc_servers, call):
    """The exception reaches the caller, the instance is free and not charged."""
    (server,) = rpc_servers()
    with channel_of("threads", [server.address]) as rpcs:
        rpcs.unary()
        server.tell("hold")
        with pytest.raises(SoftTimeLimit), interrupted(0.05):
            call(rpcs.stub)
        server.tell("release")
        settled(rpcs)
        (one,) = rpcs.balancer.snapshot().instances
        assert one.failures == 0


def test_a_first_message_is_interrupted(rpc_servers, monkeypatch):
    """An exception just before the first message is passed on reaches the caller. The RPC ends, and
    the instance is free."""
    finish = CallbackRun.finish

    def interrupt(run, attempt, result=None, error=None, holder=None):
        if holder is not None:
            raise SoftTimeLimit
        return finish(run, attempt, result, error, holder)

    (server,) = rpc_servers()
    with channel_of("threads", [server.address]) as rpcs:
        with monkeypatch.context() as patched:
            patched.setattr(CallbackRun, "finish", interrupt)
            call = rpcs.stub.StreamingOutputCall(outputs(3))
            with pytest.raises(SoftTimeLimit):
                next(call)
        call.cancel()
        assert call.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(grpc.RpcError):
            next(call)
        settled(rpcs)
        assert not callbacks._running


@pytest.mark.slow
def test_a_unary_call_is_interrupted_anywhere(rpc_servers):
    """Wherever the exception comes, nothing stays in flight, and the channel works on. Futures and
    streams of grpcio itself may keep a lock for ever: they use `threading.Condition`."""
    servers = rpc_servers(2)
    with channel_of("threads", [one.address for one in servers]) as rpcs:
        rpcs.unary()
        for number in range(SIGNALS):
            with (
                contextlib.suppress(SoftTimeLimit, grpc.RpcError),
                interrupted(0.00002 * (1 + number)),
            ):
                while True:
                    unary(rpcs.stub)
        settled(rpcs)
