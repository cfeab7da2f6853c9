"""Updates of a service: how soon a new server gets calls, and what goes on with one that has left.

The test itself makes the update, by a watcher or by a resolver."""

from __future__ import annotations

import dataclasses
import threading
import time

import grpc
import pytest

from lbclient import Answer, Instance, RetryPolicy
from tests.grpc.test_services import until
from tests.support.rpc import messages
from tests.support.watchers import Registry, several

pytestmark = pytest.mark.slow

SOON = 1.0
PATH = "/grpc.testing.TestService/UnaryCall"


def output(number, interval=0):
    one = messages.ResponseParameters(size=1, interval_us=interval)
    return messages.StreamingOutputCallRequest(response_parameters=[one] * number)


class Pulled:
    """A resolver, which is asked again after 50 ms. A test changes its answer."""

    def __init__(self, answer):
        self.update(answer)

    def update(self, answer):
        self.answer = dataclasses.replace(answer, ttl=0.05)

    def resolve(self):
        return self.answer


@pytest.fixture(params=[Registry, Pulled], ids=["watcher", "resolver"])
def source(request):
    return request.param


def test_a_new_server_gets_calls_soon(rpc_servers, rpcs, source):
    """A new server gets calls within a second of the update."""
    first, second = rpc_servers(2)
    service = source(several(first.port))
    channel = rpcs(service, strategy="round-robin", min_refresh=0.05)
    assert channel.unary(timeout=10.0).server_id == str(first.port)
    updated = time.monotonic()
    service.update(several(first.port, second.port))
    while channel.unary(timeout=10.0).server_id != str(second.port):
        time.sleep(0.001)
    assert time.monotonic() - updated < SOON


def test_a_server_that_has_left_drains(rpc_servers, rpcs, source):
    """A server that has left ends the RPCs that it has, of each kind, and gets no other; then its
    connection is closed."""
    first, second = rpc_servers(2)
    service = source(several(first.port))
    channel = rpcs(service, min_refresh=0.05)
    first.tell("hold")
    unary = channel.begin("UnaryCall", timeout=30.0)
    stream = channel.begin("StreamingOutputCall", output(3), timeout=30.0)
    until(lambda: first.calls == 2)
    service.update(several(second.port))
    until(lambda: [one.port for one in channel.balancer.instances()] == [second.port])
    assert {channel.unary(timeout=10.0).server_id for _ in range(5)} == {str(second.port)}
    assert first.calls == 2
    first.tell("release")
    assert unary.result().server_id == str(first.port)
    assert [one.server_id for one in stream] == [str(first.port)] * 3
    assert stream.code == "OK"
    assert channel.in_flight() == 0


def test_addresses_that_change_while_streams_run(rpc_servers, rpcs):
    """While its servers come and go, no stream and no RPC fails, and each stream comes from one
    server."""
    servers = rpc_servers(3)
    registry = Registry(several(servers[0].port))
    channel = rpcs(registry, idempotent={PATH}, retry=RetryPolicy(attempts=3))
    ended, errors = threading.Event(), []

    def stream():
        while not ended.is_set():
            try:
                call = channel.begin("StreamingOutputCall", output(5, 2000), timeout=20.0)
                assert len({one.server_id for one in call}) == 1
                assert call.code == "OK"
            except (AssertionError, grpc.RpcError) as error:
                errors.append(error)

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(60):
            ports = {servers[number % 3].port, servers[number * number % 3].port}
            registry.update(several(*ports))
            channel.unary(timeout=10.0)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert channel.in_flight() == 0
    assert {one.failures for one in channel.balancer.snapshot().instances} == {0}


def test_an_instance_whose_addresses_change(rpc_servers, rpcs):
    """If an instance gets other addresses, RPCs go to these from then on, and a stream over the old
    ones goes on."""
    (server,) = rpc_servers()
    server.tell("hold")

    def at(*addresses):
        return Answer([Instance("orders.test", server.port, addresses=addresses)])

    registry = Registry(at("127.0.0.1"))
    channel = rpcs(registry, retry=None, breaker=None)
    stream = channel.begin("StreamingOutputCall", output(3), timeout=30.0)
    until(lambda: server.calls == 1)
    registry.update(at("127.0.0.2"))  # where no server listens
    until(lambda: channel.balancer.instances()[0].addresses == ("127.0.0.2",))
    assert channel.error("EmptyCall", timeout=10.0).code() is grpc.StatusCode.UNAVAILABLE
    assert server.calls == 1
    registry.update(at("127.0.0.2", "127.0.0.1"))
    until(lambda: len(channel.balancer.instances()[0].addresses) == 2)
    server.tell("release")
    channel.unary("EmptyCall", timeout=10.0)
    assert len(list(stream)) == 3
    assert stream.code == "OK"
    assert channel.in_flight() == 0
