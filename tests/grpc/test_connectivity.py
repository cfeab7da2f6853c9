"""The connectivity of a channel, and the thread that looks for changes."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time

import grpc
import pytest

import lbclient.grpc
import lbclient.grpc.aio
from lbclient.grpc import connectivity

State = grpc.ChannelConnectivity


def watching():
    return [one for one in threading.enumerate() if one.name == "lbclient-connectivity"]


def until(condition, seconds=10.0):
    """Wait until something that nobody tells of is the case."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _nothing_watches():
    """The threads of earlier tests have ended."""
    until(lambda: not watching())


@pytest.fixture(scope="module")
def address():
    """The address of a server, which accepts connections; no test here carries out an RPC."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def nowhere():
    """The address of a server that is down."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


def test_the_thread_ends_once_it_is_connected(address):
    """`get_state(try_to_connect=True)` connects on a thread, which ends once there is a
    connection, and nothing has to be closed for that."""

    async def connect():
        channel = lbclient.grpc.aio.channel([address])
        state = channel.get_state(try_to_connect=True)
        while state is not State.READY:
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)  # READY, once it is connected
        await asyncio.to_thread(until, lambda: not watching())
        assert channel.get_state() is State.READY
        await channel.close()

    asyncio.run(connect())


def test_the_thread_ends_if_nothing_waits(nowhere, monkeypatch):
    """A thread that cannot connect ends soon after nothing waits for it any more. A wait for a
    change keeps it going, and closing ends it."""

    async def connect():
        channel = lbclient.grpc.aio.channel([nowhere])
        assert channel.get_state(try_to_connect=True) is State.CONNECTING
        (thread,) = watching()
        await asyncio.to_thread(thread.join)
        assert channel.get_state() is not State.CONNECTING
        monkeypatch.setattr(connectivity, "_UNATTENDED", 60.0)
        assert channel.get_state(try_to_connect=True) is State.CONNECTING
        before = channel._connectivity._unattended_until
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.wait_for_state_change(State.CONNECTING), 0.3)
        assert channel._connectivity._unattended_until > before
        assert len(watching()) == 1
        await channel.close()
        await asyncio.to_thread(until, lambda: not watching())

    asyncio.run(connect())


def test_a_closed_channel_has_no_state_to_wait_for(address):
    """As in gRPC: closing wakes those who wait for a change; after that the state is SHUTDOWN, and
    waiting is an error."""

    async def close():
        channel = lbclient.grpc.aio.channel([address])
        waits = asyncio.ensure_future(channel.wait_for_state_change(State.READY))
        await asyncio.sleep(0)
        await channel.close()
        await waits
        assert channel.get_state(try_to_connect=True) is State.SHUTDOWN
        with pytest.raises(grpc.aio.UsageError, match="is closed"):
            await channel.wait_for_state_change(State.SHUTDOWN)
        with pytest.raises(grpc.aio.UsageError, match="is closed"):
            await channel.channel_ready()
        assert watching() == []

    asyncio.run(close())


def test_a_channel_that_is_closed_before_it_is_ready(nowhere):
    """As in gRPC: closing ends `channel_ready` with an error."""

    async def close():
        channel = lbclient.grpc.aio.channel([nowhere])
        ready = asyncio.ensure_future(channel.channel_ready())
        await asyncio.sleep(0)
        await channel.close()
        with pytest.raises(grpc.aio.UsageError, match="is closed"):
            await ready

    asyncio.run(close())


def test_callbacks(address, nowhere):
    """A callback gets the state now and after each change; after `unsubscribe` the thread ends."""
    for service, last in ((address, State.READY), (nowhere, State.CONNECTING)):
        with lbclient.grpc.channel([service]) as channel:
            told = []
            channel.subscribe(told.append, try_to_connect=True)
            until(lambda: told[-1:] == [last])  # noqa: B023  # used at once
            channel.unsubscribe(told.append)
            until(lambda: not watching())


def test_no_thread_for_a_callback(address, monkeypatch):
    """If no thread can be started for the first callback, the next one starts it."""

    def fail(_):
        raise RuntimeError("can't start new thread")

    told = queue.SimpleQueue()
    with lbclient.grpc.channel([address]) as channel:
        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            channel.subscribe(told.put)
        monkeypatch.undo()
        channel.subscribe(told.put)
        told.get(timeout=10)
    until(lambda: not watching())


def test_callbacks_after_close(address):
    """As in gRPC: `subscribe` after `close` does nothing, and no thread stays."""
    channel = lbclient.grpc.channel([address])
    told = []
    channel.subscribe(told.append)
    until(lambda: told)
    channel.close()
    before = len(told)
    channel.subscribe(told.append, try_to_connect=True)
    channel.unsubscribe(told.append)
    until(lambda: not watching())
    assert len(told) == before
