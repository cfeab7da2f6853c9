"""Where the instances of a channel come from, and how they are connected to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import grpc
import pytest
import trustme

import lbclient.grpc
from lbclient import Answer, FirstOf, Instance, RetryBudget, RetryPolicy
from tests.support.dns import Bind
from tests.support.rpc import RpcServer, channel_of, messages
from tests.support.watchers import Scripted

NAME = "_grpc._tcp.orders.shop.test."
ZONE = "shop.test."
SOON = 1.0


def until(condition, seconds=10.0):
    """Wait until something that nobody tells of is the case."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def reached(channel, number=10):
    return {channel.unary(timeout=10.0).server_id for _ in range(number)}


@pytest.mark.slow
def test_srv_records(rpc_servers, rpcs, tmp_path):
    """Calls follow the SRV records of `_grpc._tcp`: a new server gets calls within a second of the
    update, and one that was removed gets none, but ends its calls."""
    first, second = rpc_servers(2)
    record = "{} 1 IN SRV 0 1 {} here.shop.test."
    records = [record.format(NAME, first.port), "here 1 IN A 127.0.0.1"]
    with Bind(tmp_path, ZONE, NAME, "\n".join(records)) as dns:
        channel = rpcs(
            "grpc+srv://orders.shop.test",
            nameservers=[dns.address],
            allow=["127.0.0.0/8"],
            min_refresh=0.1,
        )
        assert reached(channel) == {str(first.port)}
        assert channel.balancer.target.authority == "orders.shop.test"
        dns.update(f"update add {NAME} 1 SRV 0 1 {second.port} here.shop.test.")
        updated = time.monotonic()
        until(lambda: str(second.port) in reached(channel, 2))
        assert time.monotonic() - updated < 1.0 + SOON + 0.5  # the TTL, and a second
        first.tell("hold")
        calls = [channel.begin("UnaryCall", timeout=20.0) for _ in range(2)]
        dns.update(f"update delete {NAME} SRV 0 1 {first.port} here.shop.test.")
        until(lambda: len(channel.balancer.instances()) == 1)
        first.tell("release")
        assert {call.result().server_id for call in calls} <= {str(first.port), str(second.port)}
        assert reached(channel) == {str(second.port)}


def test_watched_service(rpc_servers, rpcs):
    """Calls follow the updates of a watcher, whose name is the authority."""
    servers = rpc_servers(2)
    first, second = (Instance("127.0.0.1", one.port) for one in servers)
    source = Scripted(lambda update, _, __: update(Answer([first])))
    channel = rpcs(source, allow=["127.0.0.0/8"])
    assert reached(channel, 2) == {str(first.port)}
    assert channel.balancer.target.authority == "orders.test"
    source.watches[0][0](Answer([second]))
    until(lambda: reached(channel, 1) == {str(second.port)})


@pytest.mark.parametrize("scheme", ["", "grpc://"])
def test_lists(rpc_servers, rpcs, scheme):
    """A list names each instance as `host:port`, or as a URL."""
    servers = rpc_servers(2)
    channel = rpcs([f"{scheme}{one.address}" for one in servers])
    assert reached(channel) == {str(one.port) for one in servers}


def test_one_address_and_composites(rpc_servers, kind):
    """A single address is a service, and so is a composite of addresses."""
    (server,) = rpc_servers()
    for service in (server.address, FirstOf([server.address], ["127.0.0.1:9"])):
        with channel_of(kind, service) as channel:
            assert reached(channel, 2) == {str(server.port)}


class Changing:
    """A resolver whose answer a test changes."""

    def __init__(self, *servers):
        self.servers = servers

    def resolve(self):
        return Answer([Instance("127.0.0.1", one.port) for one in self.servers], ttl=0.05)


def test_a_resolver(rpc_servers, rpcs):
    """A channel follows a resolver of the user's, and connections to what has left are closed."""
    first, second = rpc_servers(2)
    resolver = Changing(first)
    channel = rpcs(resolver, min_refresh=0.05)
    assert reached(channel) == {str(first.port)}
    resolver.servers = (second,)
    until(lambda: reached(channel, 2) == {str(second.port)})
    if channel.loop is None:
        known = channel.channel._direct.subchannels._known
    else:
        (loop,) = channel.channel._loops.values()
        known = loop.subchannels._known
    assert [one.instance.port for one in known] == [second.port]


def test_a_composite_keeps_its_arguments(rpc_servers, rpcs):
    """With `patience=0`, a part that fails is replaced at once, also if the parts are addresses."""
    first, second = rpc_servers(2)
    resolver = Changing(first)
    channel = rpcs(FirstOf(resolver, [second.address], patience=0), min_refresh=0.05)
    assert reached(channel) == {str(first.port)}
    resolver.servers = ()
    until(lambda: reached(channel, 2) == {str(second.port)})


def test_a_stream_of_an_instance_that_has_left(rpc_servers, rpcs):
    """A stream goes on although discovery has removed its instance."""
    first, second = rpc_servers(2)
    resolver = Changing(first)
    channel = rpcs(resolver, min_refresh=0.05)
    one = messages.ResponseParameters(size=1, interval_us=100_000)
    request = messages.StreamingOutputCallRequest(response_parameters=[one] * 4)
    call = channel.begin("StreamingOutputCall", request)
    assert call.read().server_id == str(first.port)
    resolver.servers = (second,)
    until(lambda: reached(channel, 1) == {str(second.port)})
    assert [each.server_id for each in call] == [str(first.port)] * 3
    assert call.code == "OK"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def tls_of(folder, authority, name, *, clients=False):
    """The argument of a server with a certificate for this name."""
    certificate = authority.issue_cert(name)
    key, chain, roots = folder / f"{name}.key", folder / f"{name}.pem", folder / "roots.pem"
    certificate.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(str(roots))
    return f"{key},{chain}" + (f",{roots}" if clients else "")


def test_tls(rpc_servers, rpcs, authority, tmp_path):
    """TLS verifies the name of the service, not that of the instance."""
    (server,) = rpc_servers(tls=tls_of(tmp_path, authority, "orders.test"))
    roots = authority.cert_pem.bytes()
    credentials = grpc.ssl_channel_credentials(roots)
    channel = rpcs([server], credentials=credentials, name="orders.test")
    assert reached(channel, 2) == {str(server.port)}
    other = rpcs([server], credentials=credentials, name="payments.test")
    error = other.error(timeout=5.0)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert other.balancer.snapshot().instances[0].failures > 0


def test_certificates_of_clients_and_call_credentials(rpc_servers, rpcs, authority, tmp_path):
    """A client's certificate and the credentials of a call reach the server."""
    (server,) = rpc_servers(tls=tls_of(tmp_path, authority, "orders.test", clients=True))
    own = authority.issue_cert("client.test")
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        own.private_key_pem.bytes(),
        b"".join(one.bytes() for one in own.cert_chain_pems),
    )
    channel = rpcs([server], credentials=credentials, name="orders.test")
    token = grpc.access_token_call_credentials("secret")
    channel.unary(credentials=token, timeout=10.0)
    ((*metadata,),) = server.told()["metadata"]
    assert ["authorization", "Bearer secret"] in metadata
    without = rpcs(
        [server],
        credentials=grpc.ssl_channel_credentials(authority.cert_pem.bytes()),
        name="orders.test",
    )
    assert without.error(timeout=5.0).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
def test_an_instance_with_the_certificate_of_another(rpc_servers, rpcs, authority, tmp_path):
    """An RPC to an instance whose certificate has another name was never sent, so it goes to
    another instance, whatever its method, and costs no retry budget."""
    (wrong,) = rpc_servers(tls=tls_of(tmp_path, authority, "payments.test"))
    (right,) = rpc_servers(tls=tls_of(tmp_path, authority, "orders.test"))
    channel = rpcs(
        [wrong, right],
        credentials=grpc.ssl_channel_credentials(authority.cert_pem.bytes()),
        name="orders.test",
        strategy="round-robin",
        retry=RetryPolicy(attempts=2, budget=RetryBudget(ratio=0.0, reserve=0.0)),
    )
    assert {channel.unary(timeout=10.0).server_id for _ in range(6)} == {str(right.port)}
    failures = {one.instance.port: one.failures for one in channel.balancer.snapshot().instances}
    assert failures[wrong.port] > 0
    assert failures[right.port] == 0
    assert wrong.calls == 0


class Tokens(grpc.AuthMetadataPlugin):
    """Another token for each attempt."""

    def __init__(self):
        self.given = []

    def __call__(self, context, callback):  # noqa: ARG002  # gRPC's signature
        self.given.append(f"token {len(self.given)}")
        callback((("authorization", self.given[-1]),), None)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["channel", "call"])
def test_credentials_of_each_attempt(rpc_servers, rpcs, authority, tmp_path, where):
    """The credentials of a channel, or of a call, are asked for each attempt, also for a retry on
    another instance."""
    servers = rpc_servers(2, tls=tls_of(tmp_path, authority, "orders.test"))
    tokens = Tokens()
    of_call = grpc.metadata_call_credentials(tokens)
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    options = {}
    if where == "channel":
        credentials = grpc.composite_channel_credentials(credentials, of_call)
    else:
        options["credentials"] = of_call
    channel = rpcs(servers, credentials=credentials, name="orders.test", breaker=None)
    for one in servers:
        one.tell("status UNAVAILABLE busy")
    error = channel.error("CacheableUnaryCall", timeout=10.0, **options)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    seen = [dict(one)["authorization"] for server in servers for one in server.told()["metadata"]]
    assert len(seen) > 1
    assert sorted(seen) == sorted(tokens.given)
    assert all(server.calls for server in servers)


@pytest.mark.slow
def test_srv_records_over_tls(rpc_servers, rpcs, authority, tmp_path):
    """With `grpcs+srv`, the instances are the records of `_grpcs._tcp`, and TLS verifies the name
    of the service, whatever the names of the instances are."""
    (server,) = rpc_servers(tls=tls_of(tmp_path, authority, "orders.shop.test"))
    name = NAME.replace("_grpc.", "_grpcs.")
    records = [f"{name} 1 IN SRV 0 1 {server.port} here.shop.test.", "here 1 IN A 127.0.0.1"]
    with Bind(tmp_path, ZONE, name, "\n".join(records)) as dns:
        channel = rpcs(
            "grpcs+srv://orders.shop.test",
            nameservers=[dns.address],
            allow=["127.0.0.0/8"],
            credentials=grpc.ssl_channel_credentials(authority.cert_pem.bytes()),
        )
        assert reached(channel, 2) == {str(server.port)}
        assert channel.balancer.target.authority == "orders.shop.test"


def test_a_recovered_instance_is_connected_to_at_once(rpc_servers, rpcs):
    """A probe of the breaker is not refused by gRPC's own back-off: the sub-channel that could not
    connect is replaced."""
    (server,) = rpc_servers()
    now = [0.0]
    channel = rpcs([server], clock=lambda: now[0], retry=None)
    channel.unary()
    server.kill()
    while channel.balancer.snapshot().instances[0].breaker == "closed":
        channel.error(timeout=5.0)
    server.start()
    now[0] += 60.0
    assert channel.unary(timeout=5.0).server_id == str(server.port)


FORKING = """
import os, sys
import lbclient.grpc

with lbclient.grpc.channel(sys.argv[1]) as channel:
    call = channel.unary_unary("/grpc.testing.TestService/EmptyCall")
    if sys.argv[2] == "used":
        call(b"", timeout=10.0)
    child = os.fork()
    if not child:
        try:
            call(b"", timeout=10.0)
            call.future(b"", timeout=10.0).result()
        except RuntimeError as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    call(b"", timeout=10.0)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def forked(server, use, support):
    """Run `FORKING`, in a process that has not used gRPC."""
    return subprocess.run(
        [sys.executable, "-c", FORKING, server.address, use],
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": support},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_forked_child_has_channels_of_its_own(rpc_servers):
    """A forked child of a process that has not called yet makes connections of its own."""
    (server,) = rpc_servers()
    program = forked(server, "unused", "0")
    assert (program.returncode, program.stdout) == (0, ""), program.stderr


@pytest.mark.parametrize(("support", "status"), [("1", 0), ("0", 1)])
def test_a_fork_after_the_first_call(rpc_servers, support, status):
    """After the first call, a forked child works with gRPC's support of forks. Without it, gRPC
    would block for ever, and an error says so."""
    (server,) = rpc_servers()
    program = forked(server, "used", support)
    assert program.returncode == status, program.stderr
    assert ("GRPC_ENABLE_FORK_SUPPORT=1" in program.stdout) is bool(status)


def test_a_child_forgets_the_channels_of_its_parent(rpc_servers):
    """After a fork, the sub-channels of the parent are neither used nor finalized."""
    (server,) = rpc_servers()
    with channel_of("threads", [server.address]) as channel:
        channel.unary()
        subchannels = channel.channel._direct.subchannels
        (before,) = subchannels._known.values()
        subchannels.after_fork()
        channel.unary()
        (after,) = subchannels._known.values()
        assert after.channel is not before.channel
        before.channel.close()


def test_many_threads_share_one_connection(rpc_servers):
    """Threads that begin at the same moment use the same sub-channel."""
    (server,) = rpc_servers()
    with channel_of("threads", [server.address]) as channel:
        barrier, opened = threading.Barrier(8), []
        open_channel = channel.channel._direct.subchannels._open
        channel.channel._direct.subchannels._open = lambda one: (
            opened.append(one) or open_channel(one)
        )

        def work():
            barrier.wait()
            channel.unary(timeout=10.0)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 1


def test_the_target_of_an_instance():
    """All checked addresses of one family are passed to gRPC, a name only if there are none."""
    adapter = lbclient.grpc.channel(["127.0.0.1:1"])._adapter

    def target_of(*arguments, **options):
        endpoint = type("Endpoint", (), {"instance": Instance(*arguments, **options)})
        return adapter.target_of(endpoint)[0]

    assert target_of("127.0.0.1", 1) == "ipv4:127.0.0.1:1"
    assert target_of("::1", 1) == "ipv6:[::1]:1"
    assert target_of("here.test", 1) == "dns:///here.test:1"
    both = ("10.0.0.1", "::1", "10.0.0.2")
    assert target_of("here.test", 1, addresses=both) == "ipv4:10.0.0.1:1,10.0.0.2:1"
    adapter.balancer.close()


def test_channel_arguments_of_the_caller(rpc_servers, rpcs):
    """`options` are gRPC's channel arguments, and take precedence over lbclient's own."""
    (server,) = rpc_servers()
    channel = rpcs([server], options=[("grpc.max_receive_message_length", 100)])
    request = messages.SimpleRequest(response_size=1000)
    error = channel.error("UnaryCall", request)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_servers_are_programs_of_their_own():
    """The servers of these tests are separate processes, which end with the tests."""
    server = RpcServer()
    assert server.calls == 0
    server.stop()
