"""Servers of docs/deploying.md that register themselves in a real DNS server."""

import threading

import dns.message
import dns.query
import httpx
import pytest

from tests.support.deployments import gunicorn, uvicorn
from tests.support.dns import Bind
from tests.support.orders import HANGS, eventually
from tests.support.slow import slow_rows

ZONE = "example.com."
KEY = "registrar:c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"


@pytest.fixture
def bind(tmp_path):
    (tmp_path / "bind").mkdir()
    records = "_probe._tcp SRV 0 1 80 a\na A 127.0.0.1"
    with Bind(tmp_path / "bind", ZONE, f"_probe._tcp.{ZONE}", records, KEY) as server:
        yield server


def registered(bind):
    """How many records the shop has."""
    host, port = bind.address.split(":")
    query = dns.message.make_query(f"_http._tcp.shop.{ZONE}", "SRV")
    answer = dns.query.udp(query, host, port=int(port), timeout=5).answer
    return sum(len(one) for one in answer)


@pytest.mark.parametrize("kind", ["uvicorn", *slow_rows("gunicorn")])
def test_registered_server(tmp_path, run, bind, orders, kind):
    """SIGTERM removes the record of a server while the server still finishes its requests."""
    if kind == "uvicorn":
        pytest.importorskip("starlette")
        words = uvicorn("uvicorn registered_shop:app")
    else:
        pytest.importorskip("flask")
        start = "gunicorn flask_shop:app --workers 4 --config gunicorn_registered.py"
        words = gunicorn(start, workers="2")
    secret = KEY.partition(":")[2]
    key = f'key "registrar" {{ algorithm hmac-sha256; secret "{secret}"; }};\n'
    (tmp_path / "registrar.key").write_text(key)
    server = run(words, DNS_SERVER=bind.address, POD_IP="10.0.0.7")
    url = f"{server.url()}/orders/0"
    eventually(lambda: registered(bind) == 1, "the registration")
    responses = []
    request = threading.Thread(target=lambda: responses.append(httpx.get(url, timeout=HANGS)))
    request.start()
    orders.arrived()
    server.terminate()
    eventually(lambda: registered(bind) == 0, "the removal of the record")
    orders.release()
    request.join()
    assert responses[0].status_code == 200
    server.ended()
    assert "Traceback" not in server.log
