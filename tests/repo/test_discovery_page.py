"""What docs/discovery.md says: its recipes, its table of failures, its figures, its Python."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import logging
import queue
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rrset
import dns.zone
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import lbclient
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.nameservers import nameservers_of
from lbclient.discovery.dns.srv import SrvResolver
from tests.support import dns as support
from tests.support.http import Server, says, tells_port
from tests.support.watchers import until

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "discovery.md").read_text()
LOOPBACK = ["127.0.0.0/8"]
DNS_MESSAGE = 65_535
A_CONSUL_ANSWER = 3
"""Records that Consul puts into an answer over UDP."""


# What the page says


def blocks(section: str, language: str) -> list[str]:
    """The code blocks of one section."""
    rest = re.split(rf"^##+ {section}$", PAGE, flags=re.MULTILINE)[1]
    text = re.split(r"^##+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def documented(section: str, place: int = 0) -> tuple[str, dict[str, object]]:
    """The service and the options that a recipe hands to `Client`."""
    made = []
    stub = SimpleNamespace(Client=lambda service, **options: made.append((service, options)))
    exec(blocks(section, "python")[place], {"lbclient": stub})
    return made[0]


def here(text: str, ports: list[int]) -> str:
    """A configuration with addresses of this machine, and with these ports in place of 80xx."""
    assert len(re.findall(r"\b80\d\d\b", text)) <= len(ports)
    left = iter(ports)
    text = re.sub(r"\b80\d\d\b", lambda _: str(next(left)), text)
    return re.sub(r"\b10(\.\d+){3}\b(?!/)", "127.0.0.1", text)


# Who answers


class Recipe(NamedTuple):
    """A recipe's section, a nameserver that works as the recipe says, and its instances."""

    section: str
    nameserver: support.Liar | support.Bind | support.Dnsmasq
    servers: list[Server]

    def arguments(self, place: int = 0) -> tuple[str, dict[str, object]]:
        """What the page passes to `Client`, except for what depends on this machine."""
        service, options = documented(self.section, place)
        options |= {"nameservers": [self.nameserver.address], "allow": LOOPBACK}
        return service, options

    def client(self, place: int = 0, **options: object) -> lbclient.Client:
        service, documented = self.arguments(place)
        return lbclient.Client(service, **{**documented, **options})

    @property
    def ports(self) -> list[int]:
        return [one.port for one in self.servers]


class Consul:
    """Answer to SRV as Consul does: with the TXT records of nodes, and over UDP with three at
    most."""

    def __init__(self, *, enable_truncate: bool) -> None:
        self._enable_truncate = enable_truncate
        self._turn = itertools.count()

    def __call__(self, asked: support.Asked) -> bytes:
        message = dns.message.from_wire(asked.truth)
        (found,) = message.answer
        if not asked.over_tcp and len(found) > A_CONSUL_ANSWER:
            message.answer = [self._some(found)]
            targets = {record.target for record in message.answer[0]}
            message.additional = [one for one in message.additional if one.name in targets]
            message.flags |= dns.flags.TC if self._enable_truncate else 0
        message.additional += [
            dns.rrset.from_text(one.name, 0, "IN", "TXT", '"consul-network-segment="')
            for one in message.additional
        ]
        return message.to_wire()

    def _some(self, found: dns.rrset.RRset) -> dns.rrset.RRset:
        """Return others each time: Consul chooses at random, this code in turn."""
        records, first = sorted(found), next(self._turn)
        chosen = [records[(first + n) % len(records)] for n in range(A_CONSUL_ANSWER)]
        return dns.rrset.from_rdata_list(found.name, 0, chosen)


def enable_truncate() -> bool:
    return "enable_truncate = true" in blocks("Consul", "hcl")[0]


def plays_consul(liar: support.Liar, ports: list[int]) -> None:
    """One instance on a node without an address of its own, the others with one."""
    liar.glue = True
    names = ["web1.node.dc1.consul", *(f"7f0000{n:02x}.addr.dc1.consul" for n in range(1, 9))]
    targets = list(zip(ports, names, strict=False))
    ttl = int(re.search(r'"\*" = "(\d+)s"', blocks("Consul", "hcl")[0])[1])
    records = (f"1 10 {port} {name}." for port, name in targets)
    liar.put("_orders._tcp.service.consul", "SRV", *records, ttl=ttl)
    for _, name in targets:
        liar.put(name, "A", "127.0.0.1", ttl=ttl)
    consul = Consul(enable_truncate=enable_truncate())
    liar.fault(consul, "_orders._tcp.service.consul", "SRV")


def plays_kubernetes(liar: support.Liar, ports: list[int]) -> None:
    """A named port of a headless service, and its addresses."""
    liar.glue = True
    domain = "orders.prod.svc.cluster.local"
    (name,) = re.findall(r"- name: (\w+)", blocks("Kubernetes", "yaml")[0])
    pods = {f"10-1-2-{place}.{domain}": port for place, port in enumerate(ports, 3)}
    records = (f"0 33 {port} {pod}." for pod, port in pods.items())
    liar.put(f"_{name}._tcp.{domain}", "SRV", *records, ttl=30)
    for pod in pods:
        liar.put(pod, "A", "127.0.0.1", ttl=30)
    liar.put(domain, "A", "127.0.0.1", "127.0.0.2", ttl=30)


def plays_cloud_map(liar: support.Liar, ports: list[int]) -> None:
    """Use its name before the namespace's, and the instance's id before both; without glue."""
    command = blocks("AWS Cloud Map", "console")[0]
    name = re.search(r"--name (\S+)", command)[1] + ".shop.internal"
    ttl = int(re.search(r"TTL=(\d+)", command)[1])
    instances = {f"i-{place}.{name}": port for place, port in enumerate(ports, 1)}
    records = (f"1 1 {port} {target}." for target, port in instances.items())
    liar.put(name, "SRV", *records, ttl=ttl)
    for target in instances:
        liar.put(target, "A", "127.0.0.1", ttl=ttl)


def plays_coredns(liar: support.Liar, ports: list[int]) -> None:
    """The zone file of the recipe for BIND."""
    assert "example.com {" in blocks("CoreDNS", "text")[0]
    liar.glue = True
    zone = dns.zone.from_text(here(blocks("BIND", "text")[1], ports), relativize=False)
    for name, found in zone.iterate_rdatasets():
        texts = [one.to_text() for one in found]
        liar.put(name.to_text(), found.rdtype.name, *texts, ttl=found.ttl)


@contextlib.contextmanager
def played(play: Callable[[support.Liar, list[int]], None], ports: list[int]):
    with support.Liar() as liar:
        play(liar, ports)
        yield liar


class Bind(support.Bind):
    """BIND with the files of the page."""

    def __init__(self, directory: Path, ports: list[int]) -> None:
        support._Server.__init__(self, directory)
        self.probe = "_http._tcp.orders.example.com."
        self._ports = ports
        self._config, zone, self.joins, self.leaves = blocks("BIND", "text")
        (directory / "example.com.zone").write_text(here(zone, ports))
        (command,) = blocks("BIND", "console")
        run(self._of_here(command), directory)

    def update(self, commands: str) -> None:
        """Pass it to nsupdate, as the page says."""
        script = here(commands, self._ports).replace(
            "server 127.0.0.1", f"server 127.0.0.1 {self._port}"
        )
        nsupdate = shutil.which("nsupdate")
        if nsupdate is None:
            pytest.skip("nsupdate is not installed")
        key = str(self._directory / "deploy.key")
        subprocess.run([nsupdate, "-k", key], input=script, text=True, check=True, timeout=10)

    def _of_here(self, text: str) -> str:
        return re.sub("/etc/bind|/var/lib/bind", str(self._directory), text)

    def _arguments(self) -> list[str]:
        config = self._of_here(self._config).replace("10.0.0.0/8", LOOPBACK[0])
        config = config.replace("{ any; }", "{ 127.0.0.1; }")
        config = config.replace("options {", "options { pid-file none; listen-on-v6 { none; };")
        path = self._directory / "named.conf"
        path.write_text(f"{config}\ncontrols {{ }};\n")
        return ["-g", "-n", "1", "-p", str(self._port), "-c", str(path)]


class Dnsmasq(support.Dnsmasq):
    """dnsmasq with the file of the page."""

    def __init__(self, directory: Path, ports: list[int]) -> None:
        super().__init__(directory, "_http._tcp.orders.test.")
        self._config = here(blocks("dnsmasq", "text")[0], ports)

    def _arguments(self) -> list[str]:
        config = self._config.replace("port=5300", f"port={self._port}")
        (self._directory / "orders.conf").write_text(config)
        (command,) = blocks("dnsmasq", "console")
        return [*command.split()[1:], "--pid-file="]


def run(command: str, directory: Path) -> None:
    """Quote a line for a shell."""
    if shutil.which(command.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{command.split(maxsplit=1)[0]} is not installed")
    subprocess.run(["sh", "-ec", command], check=True, timeout=10, cwd=directory)


RECIPES: Mapping[str, Callable] = {
    "Consul": lambda ports, _: played(plays_consul, ports),
    "Kubernetes": lambda ports, _: played(plays_kubernetes, ports),
    "AWS Cloud Map": lambda ports, _: played(plays_cloud_map, ports),
    "CoreDNS": lambda ports, _: played(plays_coredns, ports),
    "BIND": lambda ports, path: Bind(path, ports),
    "dnsmasq": lambda ports, path: Dnsmasq(path, ports),
}
TIERED = ["CoreDNS", "BIND", "dnsmasq"]
"""Of three instances the first has three quarters of the calls, the last is a stand-by."""
EVEN = [one for one in RECIPES if one not in TIERED]
PLAYED = [one for one in RECIPES if one not in ("BIND", "dnsmasq")]


@pytest.fixture
def recipes(servers, tmp_path) -> Iterator[Callable[..., Recipe]]:
    """Run recipes: `recipes("BIND")`, with three instances or as many as requested."""
    with contextlib.ExitStack() as stack:

        def start(section: str, instances: int = 3) -> Recipe:
            running = servers(*[tells_port] * instances)
            nameserver = RECIPES[section]([one.port for one in running], tmp_path)
            return Recipe(section, stack.enter_context(nameserver), running)

        yield start


def answered(client: lbclient.Client, calls: int) -> Counter[int]:
    """The ports that answered this many calls."""
    return Counter(int(client.get("/").text) for _ in range(calls))


# Every recipe


def test_every_recipe_is_tested():
    """Each section of a recipe says how it is tested here, and is tested."""
    recipes = re.split("^## ", PAGE.partition("\n## Recipes\n")[2], flags=re.MULTILINE)[0]
    sections = re.split("^### ", recipes, flags=re.MULTILINE)[1:]
    assert {one.partition("\n")[0] for one in sections} == set(RECIPES)
    assert all("\nTested with " in one for one in sections)


@pytest.mark.parametrize("section", EVEN)
def test_calls_reach_all_instances(recipes, section):
    """With the documented line a client finds every instance, and each gets the same share."""
    recipe = recipes(section)
    with recipe.client() as client:
        assert answered(client, 9) == dict.fromkeys(recipe.ports, 3)


@pytest.mark.parametrize("section", TIERED)
def test_calls_follow_weights_and_priorities(recipes, section):
    """With the documented files and line, `a` gets three calls of four, `b` one, `standby` none."""
    recipe = recipes(section)
    with recipe.client() as client:
        a, b, _ = recipe.ports
        assert answered(client, 12) == {a: 9, b: 3}


@pytest.mark.parametrize("section", RECIPES)
async def test_async_calls(recipes, section):
    """The documented line is the same for `AsyncClient`."""
    recipe = recipes(section)
    service, options = recipe.arguments()
    async with lbclient.AsyncClient(service, **options) as client:
        found = {int((await client.get("/")).text) for _ in range(8)}
    assert found == set(recipe.ports[:2] if section in TIERED else recipe.ports)


@pytest.mark.parametrize("section", TIERED)
def test_standby_serves_when_the_others_are_gone(recipes, section):
    """If both instances of the better tier refuse, every call is answered by the stand-by."""
    recipe = recipes(section)
    with recipe.client() as client:
        answered(client, 2)
        for one in recipe.servers[:2]:
            one.refuse()
            one.drop_connections()
        assert answered(client, 5) == {recipe.ports[2]: 5}


@pytest.mark.parametrize(
    ("section", "host"),
    [
        ("Consul", "orders.example.com"),
        ("Kubernetes", "orders.prod.svc.cluster.local"),
        ("AWS Cloud Map", "orders.shop.internal"),
        ("BIND", "orders.example.com"),
        ("dnsmasq", "orders.test"),
    ],
)
def test_host_is_the_service(recipes, section, host):
    """`Host` is the service's name, or what `name=` says, and never an instance's."""
    recipe = recipes(section)
    with recipe.client() as client:
        answered(client, 3)
    hosts = {one.headers["host"] for server in recipe.servers for one in server.requests}
    assert hosts == {host}


@pytest.mark.parametrize("section", PLAYED)
def test_calls_go_on_when_the_service_is_gone_from_dns(recipes, section):
    """If a system without healthy instances answers NXDOMAIN, the last set stays in use."""
    recipe = recipes(section)
    with recipe.client() as client:
        answered(client, 1)
        recipe.nameserver.heal()
        recipe.nameserver.fault(support.nxdomain)
        with pytest.raises(lbclient.DiscoveryError):
            client.balancer.refresh()
        assert answered(client, 3).total() == 3


# Consul


def known(client: lbclient.Client) -> set[int]:
    client.balancer.refresh()
    return {one.port for one in client.balancer.instances()}


def test_consul_with_truncation_is_known_in_full(recipes):
    """With `enable_truncate`, as documented, more than three instances are all known."""
    recipe = recipes("Consul", instances=5)
    with recipe.client() as client:
        assert known(client) == set(recipe.ports)
    assert recipe.nameserver.over_tcp == 1


def test_consul_without_truncation_shows_three(recipes):
    """Without `enable_truncate` a client knows three instances, and others after a refresh."""
    recipe = recipes("Consul", instances=5)
    recipe.nameserver.fault(Consul(enable_truncate=False), "_orders._tcp.service.consul", "SRV")
    with recipe.client() as client:
        first, second = known(client), known(client)
    assert (len(first), len(second)) == (3, 3)
    assert first != second


def test_consul_is_asked_once(recipes):
    """Addresses are in the additional section, and TXT records are ignored: one refresh is one
    question."""
    recipe = recipes("Consul")
    with recipe.client() as client:
        client.balancer.refresh()
    assert recipe.nameserver.asked() == 1


def test_consul_targets_are_within_its_domain_only(recipes):
    """`within="consul"` accepts its targets, `within="service.consul"` none of them."""
    recipe = recipes("Consul")
    with (
        recipe.client(within="service.consul") as client,
        pytest.raises(
            lbclient.DiscoveryError, match=r"web1.* is not within the domain service\.consul"
        ),
    ):
        client.get("/")


def test_consul_weight_is_the_share(recipes):
    """An instance with three times the weight has three times the calls."""
    recipe = recipes("Consul", instances=2)
    heavy, light = recipe.ports
    recipe.nameserver.put(
        "_orders._tcp.service.consul", "SRV",
        f"1 3 {heavy} web1.node.dc1.consul.", f"1 1 {light} 7f000001.addr.dc1.consul.",
        ttl=0,
    )  # fmt: skip
    with recipe.client() as client:
        assert answered(client, 8) == {heavy: 6, light: 2}


def test_consul_ttl_is_zero_by_default(recipes):
    """With a TTL of 0 there is one question a second, and `min_refresh` makes it fewer."""
    recipe = recipes("Consul")
    recipe.nameserver.put(
        "_orders._tcp.service.consul", "SRV", "1 1 80 web1.node.dc1.consul.", ttl=0
    )
    for options, least, most in (({}, 0.9, 1.1), ({"min_refresh": 5}, 4.5, 5.5)):
        with recipe.client(clock=lambda: 1000.0, **options) as client:
            client.balancer.refresh()
            assert least <= client.balancer._engine.subscription.next_at - 1000 <= most


# Kubernetes


def test_kubernetes_by_addresses(recipes):
    """A headless service by `http+dns` has one instance for each address, on the port of the URL; a
    pod that has gone, but is still in DNS, fails no call."""
    recipe = recipes("Kubernetes", instances=1)
    service, _ = documented("Kubernetes", 1)
    service = here(service, recipe.ports)
    options = {"nameservers": [recipe.nameserver.address], "allow": LOOPBACK}
    with lbclient.Client(service, **options) as client:
        assert answered(client, 6) == {recipe.ports[0]: 6}
        assert {one.host for one in client.balancer.instances()} == {"127.0.0.1", "127.0.0.2"}


def test_kubernetes_pod_that_comes_back_has_a_new_breaker(recipes):
    """A StatefulSet's pod keeps its name when its address changes, and counts as another
    machine."""
    recipe = recipes("Kubernetes", instances=1)
    with recipe.client() as client:
        answered(client, 1)
        (before,) = client.balancer._engine.pool.endpoints
        breaker = before.breaker
        recipe.nameserver.put("10-1-2-3.orders.prod.svc.cluster.local", "A", "127.0.0.9")
        client.balancer.refresh()
        (after,) = client.balancer._engine.pool.endpoints
    assert after is before
    assert after.breaker is not breaker


def test_kubernetes_pod_that_refuses_is_asked_about(recipes):
    """A refused connection fails no call, and makes the client look up the service before the TTL
    is over."""
    recipe = recipes("Kubernetes", instances=2)
    with recipe.client() as client:
        answered(client, 2)
        recipe.servers[0].refuse()
        recipe.servers[0].drop_connections()
        assert answered(client, 4) == {recipe.ports[1]: 4}
        recipe.nameserver.wait(2, kind="SRV")


# AWS Cloud Map


def test_cloud_map_targets_are_asked_for_one_by_one(recipes):
    """Without additional records, A and AAAA of each target are asked for."""
    recipe = recipes("AWS Cloud Map")
    with recipe.client() as client:
        client.balancer.refresh()
    assert recipe.nameserver.asked(kind="SRV") == 1
    assert (recipe.nameserver.asked(kind="A"), recipe.nameserver.asked(kind="AAAA")) == (3, 3)


class ServiceDiscovery:
    """What boto3's client of that name answers."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self.asked: list[dict[str, str]] = []

    def discover_instances(self, **question: str) -> dict[str, object]:
        self.asked.append(question)
        found = (
            {"AWS_INSTANCE_IPV4": "127.0.0.1", "AWS_INSTANCE_PORT": str(port)}
            for port in self._ports
        )
        return {"Instances": [{"InstanceId": "i-1", "Attributes": one} for one in found]}


def test_cloud_map_by_its_api(servers):
    """The documented resolver makes an instance of each entry of DiscoverInstances."""
    names: dict[str, object] = {"lbclient": lbclient}
    exec(blocks("AWS Cloud Map", "python")[1], names)
    ports = [one.port for one in servers(tells_port, tells_port)]
    cloud = ServiceDiscovery(ports)
    resolver = names["CloudMap"](cloud, "shop.internal", "orders")
    with lbclient.Client(resolver, name="orders.shop.internal") as client:
        assert answered(client, 4) == dict.fromkeys(ports, 2)
    assert cloud.asked[0]["NamespaceName"] == "shop.internal"


# CoreDNS


def test_coredns_hosts(servers):
    """Each line of `hosts` is an instance, on the port of the URL."""
    (server,) = servers(tells_port)
    block = blocks("CoreDNS", "text")[1]
    lines = re.findall(r"^ +(10\S+) (\S+)$", block, re.MULTILINE)
    ttl = int(re.search(r"ttl (\d+)", block)[1])
    service, _ = documented("CoreDNS", 1)
    with support.Liar() as liar:
        addresses = [f"127.0.0.{place}" for place, _ in enumerate(lines, 1)]
        liar.put(lines[0][1], "A", *addresses, ttl=ttl)
        options = {"nameservers": [liar.address], "allow": LOOPBACK}
        with lbclient.Client(here(service, [server.port]), **options) as client:
            assert answered(client, 4) == {server.port: 4}
            assert len(client.balancer.instances()) == len(lines) == 2


# BIND


def test_bind_instance_joins_and_leaves(recipes):
    """With the documented updates, signed with the documented key, an instance joins and leaves."""
    recipe = recipes("BIND", instances=4)
    recipe.nameserver._ports = recipe.ports[3:]
    with recipe.client() as client:
        assert len(known(client)) == 3
        recipe.nameserver.update(recipe.nameserver.joins)
        assert known(client) == set(recipe.ports)
        assert answered(client, 10)[recipe.ports[3]] == 2
        recipe.nameserver.update(recipe.nameserver.leaves)
        assert known(client) == set(recipe.ports[:3])


def test_bind_refuses_who_does_not_sign(recipes):
    """`allow-update` with a key lets only its owner change the zone."""
    recipe = recipes("BIND", instances=4)
    recipe.nameserver._ports = recipe.ports[3:]
    key = recipe.nameserver._directory / "deploy.key"
    run(f"tsig-keygen deploy > {key}", key.parent)
    with pytest.raises(subprocess.CalledProcessError):
        recipe.nameserver.update(recipe.nameserver.joins)


def test_bind_says_that_there_is_no_such_service(recipes):
    """One record, `SRV 0 0 0 .`, drops the set."""
    assert "`SRV 0 0 0 .`" in PAGE
    recipe = recipes("BIND")
    name = recipe.nameserver.probe
    with recipe.client() as client:
        answered(client, 1)
        recipe.nameserver.update(
            f"server 127.0.0.1\nzone example.com\nupdate delete {name} SRV\n"
            f"update add {name} 5 SRV 0 0 0 .\nsend\n"
        )
        with pytest.raises(lbclient.DiscoveryError, match="the service is not offered"):
            client.balancer.refresh()
        with pytest.raises(lbclient.ServiceAbsent):
            client.get("/")


@pytest.mark.parametrize("section", ["BIND", "dnsmasq"])
def test_addresses_come_along(recipes, section):
    """With the documented files the targets' addresses are in the answer for SRV."""
    nameserver = recipes(section).nameserver
    host, port = nameserver.address.split(":")
    query = dns.message.make_query(nameserver.probe, "SRV")
    response = dns.query.udp(query, host, port=int(port), timeout=5)
    targets = {record.target for record in response.answer[0]}
    assert targets <= {one.name for one in response.additional if one.rdtype.name == "A"}


# dnsmasq


def test_dnsmasq_ttl(recipes):
    """`local-ttl` sets the TTL of its answers."""
    recipe = recipes("dnsmasq")
    with recipe.client() as client:
        assert client.balancer.target.resolver.resolve().ttl == 5


# When DNS is wrong or gone


NAME = "_http._tcp.shop.test"
LIFETIME = 1.0
"""Seconds for one question: some get no answer."""
FAULTS: dict[str, support.Fault] = {
    "NXDOMAIN": support.nxdomain,
    "NOERROR without such a record": support.empty,
    "SERVFAIL, from all nameservers": support.servfail,
    "REFUSED, from all nameservers": support.refused,
    "nothing": support.silence,
    "invalid data, or the answer to another question": support.wrong_question,
    "TC, and nothing over TCP": support.truncated,
}
RECORDS = {
    "records of which none can be used": "0 0 0 a.test.",
    "the target `.`": "0 0 0 .",
}


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table of a section, by their first cell."""
    text = re.split(rf"^##+ {heading}$", PAGE, flags=re.MULTILINE)[1]
    rows = re.findall(r"^\|.*\|$", text.partition("\n|")[2].partition("\n\n")[0], re.MULTILINE)
    cells = [[one.strip() for one in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[1:]]
    return {first: rest for first, *rest in cells}


TABLE = table("When DNS is wrong or gone")


class Shop(NamedTuple):
    """A client, its questions, and its metrics."""

    client: lbclient.Client
    liar: support.Liar
    reader: InMemoryMetricReader

    def metrics(self) -> dict[str, list[tuple[Mapping[str, object], float]]]:
        """All points, by name."""
        (resource,) = self.reader.get_metrics_data().resource_metrics
        found = (metric for scope in resource.scope_metrics for metric in scope.metrics)
        return {
            one.name: [
                (point.attributes, getattr(point, "value", 0)) for point in one.data.data_points
            ]
            for one in found
        }


@pytest.fixture
def shop(servers) -> Iterator[Shop]:
    """A client of one instance, which has had its first answer."""
    (server,) = servers(tells_port)
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    with support.Liar() as liar:
        liar.put(NAME, "SRV", f"0 0 {server.port} a.test.")
        liar.put("a.test", "A", "127.0.0.1")
        asked = Dns(nameservers_of([liar.address]), LIFETIME)
        resolver = SrvResolver(NAME, asked, AddressFilter(LOOPBACK), time.monotonic)
        with lbclient.Client(resolver, name="shop.test", meter_provider=meters) as client:
            client.get("/")
            yield Shop(client, liar, reader)
    meters.shutdown()


def test_every_failure_of_the_table_is_tested():
    """The table contains what is tested below, and nothing else."""
    assert set(TABLE) == {*FAULTS, *RECORDS}


@pytest.mark.parametrize("what", [*FAULTS, *RECORDS])
def test_failures_are_told_as_documented(shop, what, caplog):
    """For each row: whether calls continue, what `.error` and the log say, the metric's
    `error.type`."""
    calls, said, kind = TABLE[what]
    if what in FAULTS:
        shop.liar.fault(FAULTS[what], NAME, "SRV")
    else:
        shop.liar.put(NAME, "SRV", RECORDS[what])
    with pytest.raises(lbclient.DiscoveryError), caplog.at_level(logging.INFO, "lbclient"):
        shop.client.balancer.refresh()
    error = shop.client.balancer.snapshot().error
    assert said.strip("`") in str(error)
    assert any(one.startswith("discovery of shop.test failed: ") for one in caplog.messages)
    ((attributes, count),) = shop.metrics()["lbclient.discovery.errors"]
    assert f"`{attributes['error.type']}`" == kind
    assert count >= 1
    assert outcome(shop.client) == calls


def outcome(client: lbclient.Client) -> str:
    """The outcome of a call, in the words of the table."""
    try:
        client.get("/")
    except lbclient.LoadBalancingError as error:
        names = [one.__name__ for one in type(error).__mro__]
        return f"fail with `{next(one for one in names if hasattr(lbclient, one))}`"
    return "go on"


def test_metrics_as_documented(shop):
    """Each documented metric exists, with the service's name; changes have their direction."""
    shop.liar.put(NAME, "SRV", "0 0 81 a.test.", "0 0 82 a.test.")
    shop.client.balancer.refresh()
    shop.liar.fault(support.nxdomain)
    with pytest.raises(lbclient.DiscoveryError):
        shop.client.balancer.refresh()
    found = shop.metrics()
    documented = set(re.findall(r"^\| `(lbclient\.discovery\.\w+)`", PAGE, re.MULTILINE))
    assert documented == {one for one in found if one.startswith("lbclient.discovery.")}
    assert all(
        one["lbclient.service"] == "shop.test" for name in documented for one, _ in found[name]
    )
    changes = {one["lbclient.change"]: n for one, n in found["lbclient.discovery.changes"]}
    assert changes == {"joined": 3, "left": 1}
    assert [n for _, n in found["lbclient.discovery.instances"]] == [2]


def test_log_as_documented(shop, caplog):
    """The log lines about a shrinking set, and about discovery that works again, are worded as
    documented."""
    with caplog.at_level(logging.INFO, "lbclient"):
        shop.liar.put(NAME, "SRV", *(f"0 0 {port} a.test." for port in range(80, 90)))
        shop.client.balancer.refresh()
        shop.liar.fault(support.nxdomain)
        with pytest.raises(lbclient.DiscoveryError):
            shop.client.balancer.refresh()
        shop.liar.heal()
        shop.liar.put(NAME, "SRV", "0 0 80 a.test.", "0 1 0 a.test.")
        shop.client.balancer.refresh()
    told = {(one.getMessage(), one.levelname.lower()) for one in caplog.records}
    for text, level in (
        ("discovery of shop.test works again", "info"),
        ("shop.test: refused 0 1 0 a.test.: its port is 0", "warning"),
        ("shop.test: 9 instances left at once, 0 joined; 10 before, 1 now", "warning"),
    ):
        assert (text, level) in told
        row = re.escape(
            text.replace("shop.test", "orders.example.com").replace("a.test", "a.example.com")
        )
        assert re.search(rf"^\| `{row}`.*\| {level} \|$", PAGE, re.MULTILINE)


# Figures


def fits(target: str, count: int) -> bool:
    """Whether so many SRV records with such a target are one DNS message (RFC 1035, 4.1; 2782)."""
    question = len(dns.name.from_text("_http._tcp.orders.example.com.").to_wire()) + 4
    pointer, head, numbers = 2, 10, 6  # the owner, compressed; type to length; priority to port
    record = pointer + head + numbers + len(dns.name.from_text(target).to_wire())
    return 12 + question + count * record <= DNS_MESSAGE


def test_how_many_records_fit():
    """The page's numbers of records in one answer are those of the wire format."""
    figures = re.findall(r"([\d,]+) records with names\slike\s`([^`]+)`", PAGE)
    assert len(figures) == 2
    for figure, target in figures:
        count = int(figure.replace(",", ""))
        assert fits(target, count)
        assert not fits(target, count + 1)


# The Python of the page


RUN = [
    *("When DNS is wrong or gone", "The address filter", "Your own discovery"),
    *("A registry that reports changes", *RECIPES),
]
SNIPPETS = [pytest.param(code, id=section) for section in RUN for code in blocks(section, "python")]


def test_every_snippet_compiles():
    """Each piece of Python on the page is valid."""
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        compile(code, "docs/discovery.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code):
    """Each piece of Python runs unchanged: a client asks nothing before its first call."""
    with lbclient.Client("http://127.0.0.1:1") as client:
        names = {"lbclient": lbclient, "client": client}
        exec(code, names)
    names["client"].close()


def test_own_discovery_as_documented(servers):
    """The documented resolver finds the instances of a registry, with weights and priorities."""
    a, b, standby = servers(tells_port, tells_port, tells_port)
    places = [(a, {"weight": 3}), (b, {}), (standby, {"priority": 1, "zone": "z"})]
    found = [{"host": "127.0.0.1", "port": one.port, **more} for one, more in places]
    (registry,) = servers(says(200, json.dumps(found).encode()))
    names: dict[str, object] = {}
    exec(blocks("Your own discovery", "python")[0], names)
    names["client"].close()
    resolver = names["Registry"](registry.url)
    with resolver._http, lbclient.Client(resolver, name="orders.example.com") as client:
        assert answered(client, 8) == {a.port: 6, b.port: 2}
    assert registry.requests[0].target == "/services/orders"


def test_own_watcher_as_documented(servers):
    """The documented watcher follows the changes that a registry sends, and returns when its client
    is closed."""
    first, second = servers(tells_port, tells_port)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    over = threading.Event()

    def changes(connection, _):
        connection.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        with contextlib.suppress(OSError):  # the client has closed the connection
            while not over.is_set():
                with contextlib.suppress(queue.Empty):
                    connection.send(lines.get(timeout=0.05).encode())
                connection.send(b"\n")

    (registry,) = servers(changes)
    names: dict[str, object] = {}
    exec(blocks("A registry that reports changes", "python")[0], names)
    names["client"].close()
    watcher = names["ChangesOfRegistry"](registry.url)
    with watcher._http, lbclient.Client(watcher, name="orders.example.com") as client:
        lines.put(f"127.0.0.1:{first.port}\n")
        assert answered(client, 3) == {first.port: 3}
        lines.put(f"127.0.0.1:{second.port}\n")
        until(lambda: answered(client, 1) == {second.port: 1})
        client.close()
        assert watcher._closed.wait(20)
        until(lambda: "lbclient-watch" not in {one.name for one in threading.enumerate()})
    over.set()
    assert registry.requests[0].target == "/services/orders/changes"
