"""The web servers of docs/deploying.md: its programs, by its commands, under load."""

import itertools
import json
import re
import socket
import threading

import httpx
import pytest

from tests.support.deployments import gunicorn, outlives_an_instance, uvicorn
from tests.support.orders import HANGS, eventually
from tests.support.slow import slow_rows

APPS = "flask_shop:app", "django_shop:application"
KINDS = "sync", "gthread", "gevent"
FIRST, *OTHERS = itertools.product(APPS, KINDS, [["--preload"], []])


CALLS_TWICE = """
import os, select, sys, lbclient, lbclient.wsgi
orders = lbclient.Client(os.environ["ORDERS"])
def calls_twice(environ, start_response):
    orders.get("/orders/0")
    select.select([environ["gunicorn.socket"]], [], [])  # until the caller has gone
    try:
        orders.get("/orders/7")
        outcome = "sent"
    except lbclient.DeadlineExceeded as error:
        outcome = error
    sys.stdout.write(f"{outcome}\\n")
    start_response("200 OK", [])
    return []
app = lbclient.wsgi.DeadlineMiddleware(calls_twice)
"""


def instance_of(response):
    return response.raise_for_status().json()["instance"]


def serves(server, orders):
    """No request fails while an instance is killed under load and started again; a request has the
    time that its caller sends; a server that is told to end finishes the request that it has."""
    with httpx.Client(base_url=server.url(), timeout=HANGS) as client:
        assert outlives_an_instance(lambda: instance_of(client.get("/orders/7")), orders) == []
        late = client.get("/orders/0", headers={"x-deadline-ms": "500"})
        assert late.status_code == 504
        assert "the deadline is over after" in late.json()["detail"]
        orders.arrived()
        responses = []
        request = threading.Thread(target=lambda: responses.append(client.get("/orders/0")))
        request.start()
        orders.arrived()
        server.terminate()
        orders.release()
        request.join()
        assert instance_of(responses[0]) in {one.pid for one in orders.instances}
    assert server.ended() == 0
    assert "Traceback" not in server.log


def test_starlette_under_uvicorn(run, orders):
    """With a client in the lifespan, under uvicorn, no request fails while an instance is killed
    and started again; requests have their callers' deadlines, and are finished at the end."""
    pytest.importorskip("starlette")
    serves(run(uvicorn("uvicorn asgi_shop:app", workers="2")), orders)


@pytest.mark.parametrize(("app", "kind", "preload"), [FIRST, *slow_rows(*OTHERS)])
def test_gunicorn(run, orders, app, kind, preload):
    """The same with a client in a module, under each worker of gunicorn, whether the client was
    created before or after the fork."""
    pytest.importorskip(app.partition("_")[0])
    start = f"gunicorn flask_shop:app --workers 4 --worker-class {kind}"
    words = gunicorn(start, *preload, workers="2")
    words[words.index("flask_shop:app")] = app
    serves(run(words), orders)


@pytest.mark.parametrize("kind", KINDS)
def test_a_caller_that_has_gone(tmp_path, run, orders, kind):
    """Under each worker of gunicorn a request whose caller has gone makes no further calls."""
    (tmp_path / "twice.py").write_text(CALLS_TWICE)
    words = gunicorn(f"gunicorn flask_shop:app --workers 4 --worker-class {kind}", workers="1")
    words[words.index("flask_shop:app")] = "twice:app"
    server = run(words)
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url()).port)) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nx-deadline-ms: 30000\r\n\r\n")
        orders.arrived()
    orders.release()
    assert server.process.stdout.readline().startswith("the deadline was ended")


def test_telemetry_of_a_worker(run, orders):
    """A client that was created before the fork reports to the provider that its worker sets after
    the fork, and the log names the process."""
    pytest.importorskip("flask")
    start = "gunicorn flask_shop:app --workers 4 --threads 8 --preload"
    server = run(gunicorn(start, workers="1"))
    booting = re.compile(r"Booting worker with pid: (\d+)")
    with httpx.Client(base_url=server.url(), timeout=HANGS) as client:
        client.get("/orders/7").raise_for_status()
        worker = booting.search(server.log)[1]
        orders.kill()
        line = re.compile(rf"^{worker} WARNING .*: breaker of 127.0.0.1:\d+ is open", re.MULTILINE)
        eventually(lambda: client.get("/orders/7") and line.search(server.log), "an open breaker")
    server.terminate()
    (told,) = json.loads(server.rest())["resource_metrics"]
    assert told["resource"]["attributes"]["service.instance.id"].endswith(f"-{worker}")
    (metrics,) = [one["metrics"] for one in told["scope_metrics"]]
    assert {"lbclient.picks", "http.client.request.duration"} <= {one["name"] for one in metrics}
