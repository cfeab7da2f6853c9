"""gevent and eventlet: nothing is created at import that they could no longer replace."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from lbclient._internal.fork import Lazy
from lbclient.http.connections.threads import SocketConnection
from tests.support.dns import Liar, silence
from tests.support.http import tells_port
from tests.support.kubernetes import ApiServer, a_slice
from tests.support.slow import slow_rows

SOON = 60
ROOT = Path(__file__).parents[2]


def run(program, *arguments):
    """What one of the programs of `support` prints, and its `log`."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{program}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
        cwd=ROOT,
    )
    assert not done.returncode, done.stderr
    return SimpleNamespace(**json.loads(done.stdout), log=done.stderr)


def green(*arguments):
    """The same in a process that gevent patches."""
    pytest.importorskip("gevent")
    return run("green", *arguments)


@pytest.fixture
def together(servers):
    """An instance that answers three requests at a time, or none."""
    barrier = threading.Barrier(3)

    def meets(connection, _):
        barrier.wait(SOON)
        connection.answer(200)

    (server,) = servers(meets)
    yield server
    barrier.abort()


def silent(connection, _):
    """It never answers."""
    connection.server.stopping.wait(SOON)


def test_import_makes_nothing():
    """No module of the package creates a lock, an event, a queue, a thread or a thread-local at
    import."""
    shown = run("at_import")
    assert shown.made == []
    assert shown.modules > 100


@pytest.mark.parametrize(
    ("when", "flavour"),
    [
        ("early", "lbclient"),
        ("late", "lbclient.httpx2"),
        ("late", "lbclient"),
        ("made", "lbclient"),
    ],
)
def test_patched_process(together, when, flavour):
    """Calls that wait for each other, discovery, health checks and a listener work under gevent,
    even if it patches after the import, or after a client was made."""
    shown = green("whole", when, together.port, flavour)
    assert shown.statuses == [200] * 9
    assert shown.idle
    assert shown.blocked == []  # no signals: green threads share their thread with the program
    assert shown.log == ""


def test_killed_calls_leave_nothing_in_flight(servers):
    """After green threads were killed or timed out during calls, every slot is free again."""
    (server,) = servers(tells_port)
    shown = green("kills", "late", server.port)
    assert shown.idle
    assert shown.in_flight == 0
    assert shown.statuses == [200] * 4
    assert shown.all_idle  # each connection is closed, or is idle
    assert shown.kept <= 4
    assert shown.open == 0


def test_hedges_in_green_threads(servers):
    """A hedge answers before a silent instance, and the slower attempt ends."""
    slow, quick = servers(silent, tells_port)
    shown = green("hedged", "late", slow.port, quick.port)
    assert shown.statuses == [200] * 4
    assert shown.idle


@pytest.mark.parametrize("when", ["early", *slow_rows("late")])
def test_lookup_in_green_threads(servers, when):
    """A service is found in DNS, and a nameserver that never answers does not block other green
    threads."""
    (server,) = servers(tells_port)
    with Liar() as liar:
        port = liar.address.rpartition(":")[2]
        liar.put("_http._tcp.orders.example.com", "SRV", f"0 1 {server.port} a.example.com.")
        liar.put("a.example.com", "A", "127.0.0.1")
        assert green("looks_up", when, port, server.port).results == [200, 200]
        liar.fault(silence)
        shown = green("looks_up", when, port, 0)
    assert shown.results == ["DeadlineExceeded"] * 2
    assert shown.ticks >= 20


@pytest.mark.parametrize("when", ["early", *slow_rows("made")])
def test_watched_service(servers, when):
    """A service that is watched follows changes in a green thread, which ends with the client."""
    first, second = servers(tells_port, tells_port)
    with ApiServer() as cluster, ThreadPoolExecutor() as threads:
        cluster.put(a_slice("a", [first.host], first.port))
        shown = threads.submit(green, "watches", when, cluster.url)
        assert first.arrived.acquire(timeout=SOON)
        cluster.put(a_slice("a", [second.host], second.port))
        assert shown.result().texts == [str(first.port), str(second.port)]
    assert "lbclient-watch" in shown.result().threads
    assert "lbclient-watches" not in shown.result().threads


def test_patch_after_the_first_call_is_told():
    """If gevent patches after a first call, a warning says what to do, and lookups continue."""
    shown = green("used", "made")
    assert shown.port == 80
    assert shown.log.count("Call monkey.patch_all() before the first call of a client") == 1
    assert "WARNING lbclient.discovery.scheduler" in shown.log


def test_socket_without_methods_on_its_class():
    """A connection over eventlet's socket, whose class has no `shutdown`, can still be
    interrupted."""
    shut = []
    connection = SocketConnection()
    connection._sock = SimpleNamespace(shutdown=shut.append)
    connection.shut()
    assert len(shut) == 1


def test_lazy_attribute_is_made_once():
    """Threads that access a lazy attribute at the same moment all get the same value."""
    barrier = threading.Barrier(8)

    class SlotOwner:
        @Lazy
        def value(self):
            barrier.wait(SOON)
            return object()

    owner = SlotOwner()
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: owner.value, range(8)))
    assert set(values) == {owner.value}
