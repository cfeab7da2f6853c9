"""Which call uses a connection, and when the connection may carry another request."""

import contextlib
import socket

import anyio
import httpx
import pytest

import lbclient
from lbclient.http.connections import addresses
from lbclient.http.connections.pool import ConnectionLease, InstanceConnections, KeepAlivePool
from lbclient.http.connections.threads import SocketConnection
from tests.http.test_early_responses import connections_of, drivers
from tests.support.faults import NAME, TlsServer, authority, trust
from tests.support.http import Server, tells_port

OTHER = "other.test"


@drivers
def test_a_connection_under_another_name_serves_once(driver):
    """A connection whose TLS name was set by a request carries no other request, since the instance
    was verified under another name."""
    server = TlsServer(tells_port)
    authority().issue_cert(NAME, OTHER).configure_cert(server.context)
    asked = {"extensions": {"sni_hostname": OTHER}}
    try:
        with driver.client(lbclient, [server.url], name=NAME, verify=trust()) as client:
            with client.stream("GET", "/", **asked) as response:
                assert client.read(response) == str(server.port).encode()
            assert connections_of(client).all() == []
            assert client.get("/", **asked).status_code == 200
            assert connections_of(client).all() == []
            assert client.get("/").status_code == 200
            assert len(connections_of(client).all()) == 1
    finally:
        server.stop()


@pytest.mark.anyio
async def test_of_two_addresses_that_answer_at_once_one_is_closed(monkeypatch):
    """If both connections of a race are established at the same moment, the unused one is
    closed."""
    monkeypatch.setattr(addresses, "ATTEMPT_DELAY", 0.0)
    made, both = [], anyio.Event()

    async def dial(_):
        sock = socket.socket()
        made.append(sock)
        if len(made) == 2:
            both.set()
        with contextlib.ExitStack() as stack:
            stack.enter_context(sock)
            await both.wait()
            stack.pop_all()
        return sock

    to = [addresses.Address(socket.AF_INET, ("127.0.0.1", port)) for port in (1, 2)]
    with anyio.fail_after(10):
        won = await addresses.race(to, dial)
    assert [sock for sock in made if sock.fileno() >= 0] == [won]
    won.close()


@pytest.mark.parametrize("end", ["interrupt", "drop"])
def test_a_lease_that_is_over_ends_nothing(end):
    """A call that has just returned its connection does not affect it through its lease if another
    call has it already."""
    connections = InstanceConnections(KeepAlivePool(None, 10, None))
    lease, connection = ConnectionLease(connections), SocketConnection()
    connections.add(lease, connection)
    connections.leave(connection, reusable=True)
    other = ConnectionLease(connections)
    assert connections.idle.take(other, connections._stack) is connection
    getattr(lease, end)()
    assert not connection.closed
    lease.connection = other.connection = None


@pytest.mark.parametrize("end", ["interrupt", "drop"])
def test_a_lease_that_is_being_given_back_ends_its_connection(end):
    """A connection that is cut at the moment when it becomes idle is not used again."""
    connections = InstanceConnections(KeepAlivePool(None, 10, None))
    lease, connection = ConnectionLease(connections), SocketConnection()
    connections.add(lease, connection)
    connections.leave(connection, reusable=True)
    getattr(lease, end)()
    other = ConnectionLease(connections)
    assert connections.take(other) is None
    assert connections.is_idle
    lease.connection = None


def test_who_takes_a_connection_that_is_just_given_back_has_it(monkeypatch):
    """A connection that another thread takes while it is being returned belongs to that thread's
    call."""
    connections = InstanceConnections(KeepAlivePool(None, 10, None))
    lease, connection = ConnectionLease(connections), SocketConnection()
    other = ConnectionLease(connections)
    connections.add(lease, connection)
    put = connections.idle.put

    def put_and_take(*args):
        gone = put(*args)
        monkeypatch.setattr(SocketConnection, "readable", lambda _: False)
        assert connections.take(other) is connection
        return gone

    monkeypatch.setattr(connections.idle, "put", put_and_take)
    lease.end(reusable=True)
    assert connections.all() == [connection]
    assert not connections.is_idle
    other.end(reusable=False)


def test_what_a_finalizer_could_not_tell_is_found():
    """If even the finalizer of a call was interrupted, its connection stays in use until the next
    one is opened, and is then closed."""
    connections = InstanceConnections(KeepAlivePool(None, 10, None))
    lease, connection = ConnectionLease(connections), SocketConnection()
    connections.add(lease, connection)
    lease.connection = None  # what its finalizer would have told of
    del lease
    assert not connections.is_idle
    other, opened = ConnectionLease(connections), SocketConnection()
    connections.add(other, opened)
    assert connection.closed
    assert connections.all() == [opened]
    other.end(reusable=False)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_reset_is_told_as_one(tls):
    """If a connection is reset while a request is sent, the error is ReadError, not that of a
    normal end."""
    server = (TlsServer if tls else Server)(lambda peer, _: peer.reset())
    secure = {"name": NAME, "verify": trust()} if tls else {}
    try:
        with lbclient.Client([server.url], retry=None, **secure) as client:
            for _ in range(5):
                with pytest.raises(httpx.ReadError):
                    client.get("/")
    finally:
        server.stop()
