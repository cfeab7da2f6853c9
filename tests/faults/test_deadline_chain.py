"""A chain of services, each in a process of its own: the deadline of the first bounds them all."""

import contextlib
import threading
import time

import httpx
import pytest

import lbclient
from tests.support.http import Gate
from tests.support.service import OPTIONS, Service

TRIES = 5
"""Of so many, one must keep the bound: other processes take their turns on the machine, too."""
HANGS = 60


@pytest.fixture
def services():
    """Starts services; all are ended."""
    started = []

    def start(kind, url):
        if kind != "wsgi":
            pytest.importorskip({"asgi": "uvicorn"}.get(kind, kind))
        started.append(Service(kind, url))
        return started[-1]

    def end():
        for service in started:
            service.kill()

    timer = threading.Timer(HANGS, end)  # a test that waits for an event fails, then
    timer.start()
    yield start
    timer.cancel()
    end()


@pytest.mark.parametrize("kinds", [["asgi"] * 3, ["asgi", "wsgi", "asgi"], ["wsgi"] * 3], ids=str)
def test_no_service_works_longer(servers, services, kinds):
    """Of three services in a chain none works more than 50 ms longer than the deadline of 500 ms at
    the top, though the last one waits for an instance that does not answer."""

    def keeps_silent(connection, request):
        if request.target == "/work":
            connection.server.stopping.wait()
        connection.answer()

    (last,) = servers(keeps_silent)
    chain, url = [], last.url
    for kind in kinds:
        chain.insert(0, services(kind, url))
        url = chain[0].url
    with lbclient.Client(url, **OPTIONS) as client:
        with lbclient.deadline(30.0):
            assert client.get("/warm").status_code == 200
        for service in chain:
            assert service.next("arrived")["left"] <= 30
            assert service.next("ended")["outcome"] == "ok"
        assert any(_late(client, chain) <= 0.05 for _ in range(TRIES))


def _late(client, chain):
    """Seconds by which the last of them worked longer."""
    over = time.monotonic() + 0.5
    with lbclient.deadline(0.5), contextlib.suppress(lbclient.DeadlineExceeded):
        assert client.get("/work").status_code == 504
    ended = []
    for service in chain:
        assert service.next("arrived")["left"] <= 0.5
        ended.append(service.next("ended"))
    assert {one["outcome"] for one in ended} == {"late"}
    return max(one["at"] for one in ended) - over


@pytest.mark.parametrize("kind", ["asgi", "werkzeug"])
def test_a_service_whose_caller_is_killed(servers, services, kind):
    """A service whose caller is killed makes no further calls, though its deadline is far away."""
    gate = Gate()
    (last,) = servers(gate)
    second = services(kind, last.url)
    first = services(kind, second.url)
    with lbclient.Client(first.url, **OPTIONS) as client:
        caller = threading.Thread(target=_fails, args=(client,))
        caller.start()
        assert gate.entered.acquire(timeout=HANGS)
        first.kill()
        assert second.next("arrived")["left"] > 10
        if kind == "asgi":  # it waits for the call and for its caller at the same time
            second.next("gone")
            gate.open.set()
        else:
            gate.open.set()
            second.next("gone")
        ended = second.next("ended")
        caller.join()
    assert ended["outcome"] == "late"
    assert "the deadline was ended" in ended["error"]
    assert last.hits == 1


def _fails(client):
    with lbclient.deadline(30.0), contextlib.suppress(httpx.TransportError):
        client.get("/watch")
