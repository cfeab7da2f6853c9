"""The double of Consul, `tests/support/consul.py`: clients that are not ours work against it."""

from __future__ import annotations

import threading

import pytest

from tests.support.consul import Agent, parse_policy, seconds_of
from tests.support.http import tells_port
from tests.support.traefik import BINARY, traefik

TOKEN = "t0ken"
POLICY = parse_policy("""
    # all that a service needs
    service "orders" { policy = "write" }
    node_prefix "" { policy = "read" }
""")


@pytest.fixture
def agent():
    with Agent(policies={TOKEN: POLICY, "": ()}) as agent:
        yield agent


@pytest.fixture
def consul(agent):
    module = pytest.importorskip("consul")
    host, _, port = agent.address.removeprefix("http://").partition(":")
    client = module.Consul(host=host, port=int(port), token=TOKEN)
    yield client
    client.http.session.close()


def test_py_consul_registers(agent, consul):
    """py-consul registers a service with a TTL check, passes and fails it, and deregisters it."""
    check = {"TTL": "10s", "DeregisterCriticalServiceAfter": "1m"}
    assert consul.agent.service.register(
        "orders", service_id="one", address="127.0.0.1", port=80, tags=["v2"], check=check
    )
    assert consul.health.service("orders", passing=True)[1] == []
    for pass_, status in (
        (consul.agent.check.ttl_pass, "passing"),
        (consul.agent.check.ttl_warn, "warning"),
        (consul.agent.check.ttl_fail, "critical"),
        (consul.agent.check.ttl_pass, "passing"),
    ):
        assert pass_("service:one")
        assert agent.status_of("one") == status
    (found,) = consul.health.service("orders", passing=True)[1]
    assert found["Service"]["Tags"] == ["v2"]
    assert consul.agent.services(token=TOKEN)["one"]["Port"] == 80
    agent.advance(11)
    assert agent.status_of("one") == "critical"
    agent.advance(59)
    assert agent.holding("one")
    agent.advance(2)
    assert not agent.holding("one")


def test_py_consul_deregisters(agent, consul):
    """py-consul deregisters a service, and its maintenance mode makes a service critical."""
    assert consul.agent.service.register("orders", service_id="one", address="127.0.0.1", port=80)
    assert consul.agent.service.maintenance("one", "true", "for a test")
    assert agent.status_of("one") == "critical"
    assert consul.agent.service.maintenance("one", "false")
    assert agent.status_of("one") == "passing"
    assert consul.agent.service.deregister("one")
    assert not agent.holding("one")


def test_py_consul_watches(agent, consul):
    """py-consul's blocking queries return at a change, and after their time."""
    agent.add("orders", "127.0.0.1", 80)
    index, found = consul.health.service("orders")
    assert len(found) == 1
    same, _ = consul.health.service("orders", index=index, wait="50ms")
    assert same == index
    changing = threading.Thread(target=lambda: (agent.until_blocked(), agent.add("orders", "", 81)))
    changing.start()
    later, found = consul.health.service("orders", index=index, wait="20s")
    changing.join()
    assert int(later) > int(index)
    assert len(found) == 2
    assert consul.catalog.services()[1] == {"consul": [], "orders": []}
    assert [one["ServicePort"] for one in consul.catalog.service("orders")[1]] == [80, 81]
    assert [one["Node"] for one in consul.catalog.nodes()[1]] == ["node-1"]


def test_py_consul_knows_the_errors(agent, consul):
    """The statuses and texts of errors are those that py-consul knows."""
    import consul as module

    agent.add("users", "127.0.0.1", 80)
    assert consul.health.service("users")[1] == []
    with pytest.raises(module.ACLPermissionDenied, match="lacks permission 'service:write'"):
        consul.agent.service.register("users", address="127.0.0.1", port=80)
    agent.leader = False
    with pytest.raises(module.ConsulException, match="No cluster leader"):
        consul.health.service("orders")
    assert consul.catalog.service("orders", consistency="stale")[1] == []
    assert consul.status.leader() == ""


@pytest.mark.skipif(BINARY is None, reason="Traefik is not installed")
def test_traefik_discovers(tmp_path, servers):
    """Traefik finds the services of the catalog, sends requests to the healthy instances, and
    follows changes."""
    first, second = servers(tells_port, tells_port)
    answers = [(200, str(one.port)) for one in (first, second)]
    with Agent() as agent:
        agent.add("orders", first.host, first.port, service_id="one", status="passing")
        with traefik(
            tmp_path,
            "--providers.providersthrottleduration=50ms",
            "--providers.consulcatalog.watch=true",
            "--providers.consulcatalog.refreshinterval=0.1s",
            f"--providers.consulcatalog.endpoint.address={agent.address.removeprefix('http://')}",
        ) as proxy:
            proxy.until("orders", {answers[0]})
            agent.add("orders", second.host, second.port, service_id="two", status="passing")
            proxy.until("orders", set(answers))
            agent.mark("one", "critical")
            proxy.until("orders", {answers[1]})
            agent.mark("one", "passing")
            agent.remove("two")
            proxy.until("orders", {answers[0]})


@pytest.mark.parametrize(("text", "seconds"), [("5m", 300), ("1m30s", 90), ("50ms", 0.05)])
def test_durations(text, seconds):
    """Durations have the form of Go."""
    assert seconds_of(text) == pytest.approx(seconds)
