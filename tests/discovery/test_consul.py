"""Consul: what a response means, the rules of blocking queries, clients, and registration.

`tests/support/consul.py` is the Consul of these tests; `test_consul_double.py` keeps it honest.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import math
import os
import pickle
import queue
import random
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

import lbclient
from lbclient import Instance
from lbclient._internal.blocking import run_blocking
from lbclient._internal.validation import is_address
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.addresses import at_once
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.pushed import consul
from lbclient.discovery.pushed.addresses import AddressChecker
from lbclient.discovery.pushed.api import Reply
from lbclient.discovery.pushed.consul import Consul, HealthAnswers, from_url
from lbclient.endpoint.instance import Answer
from lbclient.errors import DiscoveryError
from tests.support.consul import Agent, encoded, parse_policy
from tests.support.dns import Liar
from tests.support.etcd import Watching
from tests.support.http import Server, tells_port
from tests.support.slow import slow_rows
from tests.support.watchers import until

TOKEN = "b1gs33cr3t-token"
VARIABLES = (
    "CONSUL_HTTP_ADDR",
    "CONSUL_HTTP_SSL",
    "CONSUL_CACERT",
    "CONSUL_HTTP_TOKEN",
    "CONSUL_HTTP_TOKEN_FILE",
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# What a response means


def entry(number: int = 1, *statuses: str, node=None, **service) -> dict:
    """An entry of the health API."""
    return {
        "Node": {"Node": f"node-{number}", "Address": "10.1.0.9", "Datacenter": "dc1"}
        if node is None
        else node,
        "Service": {
            "ID": f"orders-{number}",
            "Service": "orders",
            "Tags": ["v2"],
            "Address": f"10.0.{number >> 8 & 255}.{number & 255}",
            "Meta": {"zone": "eu-1a"},
            "Port": 8000,
            "Weights": {"Passing": 10, "Warning": 2},
            **service,
        },
        "Checks": [{"Node": f"node-{number}", "CheckID": "c", "Status": one} for one in statuses],
    }


def reply(body: object, **headers: str) -> Reply:
    data = body if isinstance(body, bytes) else encoded(body)
    return Reply(200, headers, data, "Consul at http://127.0.0.1:8500")


def read(*entries: object, passing: bool = True) -> Answer:
    answer = HealthAnswers(passing=passing).read(reply(list(entries)))
    assert answer is not None
    return answer


def test_instance():
    """Address, port and weight come from the service; its Meta, tags, node and datacenter are
    metadata."""
    (found,) = read(entry(1, "passing", "passing")).instances
    assert (found, found.weight) == (Instance("10.0.0.1", 8000), 10)
    assert found.metadata == {
        "zone": "eu-1a",
        "tags": ["v2"],
        "node": "node-1",
        "datacenter": "dc1",
    }


@pytest.mark.parametrize(
    ("address", "host"),
    [("", "10.1.0.9"), (None, "10.1.0.9"), ("2001:db8::1", "2001:db8::1"), ("Db.Test", "db.test")],
)
def test_address(address, host):
    """A service without an address has that of its node. Addresses of IPv6 and names are usable."""
    (found,) = read(entry(Address=address)).instances
    assert found.host == host


def test_what_old_versions_leave_out():
    """Absent or null weights, tags, metadata and checks have their defaults."""
    bare = {"Node": {"Address": "10.0.0.1"}, "Service": {"Port": 80, "Tags": None, "Meta": None}}
    (found,) = read(bare, {**bare, "Checks": None}).instances
    assert (found, found.weight) == (Instance("10.0.0.1", 80), 1)


@pytest.mark.parametrize(
    ("statuses", "passing", "others"),
    [
        ((), 10, 10),
        (("passing",), 10, 10),
        (("passing", "warning"), None, 2),
        (("passing", "warning", "critical"), None, None),
        (("critical",), None, None),
        (("maintenance",), None, None),
        ((None,), None, None),
    ],
)
def test_status(statuses, passing, others):
    """The worst check counts. An instance with a warning is used only with passing=False, with its
    weight for it. A critical one, and one in maintenance, never is."""
    for only, weight in (True, passing), (False, others):
        found = read(entry(1, *statuses), passing=only)
        assert [one.weight for one in found.instances] == ([] if weight is None else [weight])
        assert found.refused == ()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (5, "an entry must be an object"),
        ({}, "Node must be an object"),
        ({"Node": {}}, "Service must be an object"),
        (entry(Port=0), "port must be from 1"),
        (entry(Port="80"), "port must be"),
        (entry(Address="", node={}), "it has no address"),
        (entry(Address="a b"), "host must be"),
        (entry(SocketPath="/run/x"), "Unix socket"),
        (entry(Weights=[1]), "Weights must be an object"),
        (entry(Weights={"Passing": -1}), "weight must be"),
        (entry(Weights={"Passing": True}), "weight must be"),
        (entry(Meta="x"), "Meta must be an object"),
        ({**entry(), "Checks": {"a": 1}}, "Checks must be a list"),
        ({**entry(), "Checks": [5]}, "a check must be an object"),
    ],
)
def test_unusable_entry(bad, reason):
    """An entry that cannot be used is left out, and the answer says why; the others are used."""
    found = read(bad, entry(2, "passing"))
    assert [one.host for one in found.instances] == ["10.0.0.2"]
    (refused,) = found.refused
    assert reason in refused.reason


def test_unusable_entry_is_named():
    """A refused entry is named by its service's ID and its node, escaped for logs."""
    (refused,) = read(entry(1, ID="a\nb", Port=0)).refused
    assert refused.record == r"a\nb on node-1"


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[", b"[,]", b"[1,]", b"\xff", b"[" * 9999])
def test_no_list(body):
    """A response that is not a JSON list is a DiscoveryError that names the agent."""
    with pytest.raises(DiscoveryError, match=r"^Consul at http://127\."):
        HealthAnswers(passing=True).read(reply(body))


def test_empty_list():
    """A service without instances gives an answer without instances."""
    assert read() == Answer(())


def test_token_that_may_not_read():
    """If the agent says that the token may not read anything of the service, this is an error: an
    empty list would not be true. If it may read a part, the answer says so."""
    header = {"x-consul-results-filtered-by-acls": "true"}
    with pytest.raises(DiscoveryError, match=r"token may not read this service.*service:read"):
        HealthAnswers(passing=True).read(reply([], **header))
    found = HealthAnswers(passing=True).read(reply([entry(1)], **header))
    assert len(found.instances) == 1
    assert "node:read" in found.refused[0].reason


def test_no_news():
    """A response that means the same as the last one is no news: also if other fields differ, such
    as the output of a check."""
    answers = HealthAnswers(passing=True)
    first = entry(1, "passing")
    assert answers.read(reply([first])) is not None
    assert answers.read(reply([first])) is None
    assert (
        answers.read(reply([{**first, "Checks": [{"Status": "passing", "Output": "ok"}]}])) is None
    )
    assert answers.read(reply([entry(1, "passing", Tags=["v3"])])) is not None


def test_unchanged_entries_keep_their_objects():
    """Entries that have not changed are not parsed again, but at most the next one: an update of
    thousands of instances compares objects only."""
    answers = HealthAnswers(passing=True)
    entries = [entry(number, "passing") for number in range(300)]
    before = {id(one) for one in answers.read(reply(entries)).instances}
    for change in (
        lambda: entries.__setitem__(150, entry(150, "passing", Tags=["v3"])),
        lambda: entries.pop(20),
        lambda: entries.insert(10, entry(500, "passing")),
        lambda: entries.append(entry(501, "passing")),
        lambda: entries.pop(0),
    ):
        change()
        found = answers.read(reply(entries))
        assert len(found.instances) == len(entries)
        assert len({id(one) for one in found.instances} - before) <= 2
        before = {id(one) for one in found.instances}


numbers = st.integers(0, 5)
documents = st.lists(
    st.builds(
        lambda number, port, tag, status: entry(number, status, Port=port, Tags=[tag]),
        numbers,
        st.integers(0, 2),
        st.sampled_from(["a", 'b},{"Node":{', "]"]),
        st.sampled_from(["passing", "critical"]),
    ),
    max_size=5,
)
forms = st.sampled_from(
    [encoded, encoded, encoded, lambda value: json.dumps(value, indent=1).encode()]
)


@settings(max_examples=40)
@given(st.lists(st.tuples(documents, forms), max_size=6))
def test_reading_the_difference_is_reading_the_whole(sequence):
    """Whatever changes from one response to the next, the answer is that of the whole response."""
    answers, known = HealthAnswers(passing=True), None
    for document, form in sequence:
        body = reply(form(document))
        whole = HealthAnswers(passing=True).read(body)
        answer = answers.read(body)
        assert whole is not None
        if answer is not None:
            known = answer
        assert known == whole
        assert [one.metadata for one in known.instances] == [
            one.metadata for one in whole.instances
        ]


FILTER = AddressFilter()
CHECKER = AddressChecker(Dns([]), FILTER, lambda: 0.0, at_once, lambda: None)


def reaches(answer: Answer) -> bool:
    """True if a client would connect to an address that the filter refuses."""
    literal = [one for one in answer.instances if is_address(one.host)]
    return any(FILTER.refuses(one.address) for one in CHECKER.check(Answer(literal)).instances)


@pytest.mark.parametrize("share", [0.005, *slow_rows(1)], ids=["some", "all"])
def test_fuzz(share):
    """100,000 damaged documents: each is an answer or a DiscoveryError, the same as if the document
    was the first one. Later documents are read correctly. No refused address is called."""
    rng = random.Random(19)
    answers = HealthAnswers(passing=False)
    good = encoded([entry(number, "passing", "warning") for number in range(3)])
    for number in range(int(100_000 * share)):
        body = damaged(good, rng)
        results = []
        for reader in (answers, HealthAnswers(passing=False)):
            try:
                results.append(reader.read(reply(body)))
            except DiscoveryError as error:
                results.append(str(error))
        assert all(len(one) < 400 for one in results if isinstance(one, str))
        assert not any(reaches(one) for one in results if isinstance(one, Answer))
        answers.read(reply(good))
        if number % 50 == 0:
            assert answers.read(reply(good)) is None
        if isinstance(results[0], str) or isinstance(results[1], str):
            assert results[0] == results[1]
        else:
            assert results[0] in (results[1], None)
    assert answers.read(reply([entry(1)])) == read(entry(1))


WORDS = (
    *(b"{", b"}", b"[", b"]", b",", b'"', b"\\", b"null", b"NaN", b"1e999", b"-1", b"[]", b"{}"),
    *(b'},{"Node":{', b"127.0.0.1", b"critical", b"\xff", b"\x00", b'"\\ud800"', b"9" * 5000),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, doubled, overwritten or spliced."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(found) + 1)
        until = min(len(found), at + rng.choice((0, 1, 2, 8, 40, 400)))
        match rng.randrange(4):
            case 0:
                del found[at:until]
            case 1:
                found[at:at] = found[at:until]
            case 2:
                found[at:until] = rng.choice(WORDS)
            case _:
                found[at:at] = rng.choice(WORDS)
    return bytes(found)


# The value


def test_value():
    """A source is a value: it can be pickled and shared, and its repr shows what was given, without
    the token."""
    one = Consul("orders", "https://consul.test:8501", "v2", "eu", "_agent", False, TOKEN)
    again = pickle.loads(pickle.dumps(one))
    for each in one, again:
        assert repr(each) == (
            "Consul('orders', address='https://consul.test:8501', tag='v2', dc='eu', "
            "near='_agent', passing=False)"
        )
        assert (each.name, each.token) == ("orders", TOKEN)
    assert repr(Consul("Orders")) == "Consul('Orders')"


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"service": ""}, ValueError, "service"),
        ({"service": "a b"}, ValueError, "service"),
        ({"service": None}, TypeError, "service"),
        ({"address": ""}, ValueError, "address"),
        ({"address": 8500}, TypeError, "address"),
        ({"address": "ftp://h"}, ValueError, "address"),
        ({"address": f"http://u:{TOKEN}@h:1"}, ValueError, "address"),
        ({"address": f"http://h:1?token={TOKEN}"}, ValueError, "address"),
        ({"address": "h:99999"}, ValueError, "address"),
        ({"address": "unix:///run/consul.sock"}, ValueError, "address must be a TCP address"),
        ({"tag": ""}, ValueError, "tag"),
        ({"tag": ["v2"]}, TypeError, "tag"),
        ({"dc": 1}, TypeError, "dc"),
        ({"near": "a\nb"}, ValueError, "near"),
        ({"passing": "no"}, TypeError, "passing"),
        ({"token": ""}, ValueError, "token"),
        ({"token": f"{TOKEN}\n{TOKEN}"}, ValueError, "token"),
        ({"token": 5}, TypeError, "token"),
    ],
)
def test_bad_argument(arguments, error, name):
    """K1: an invalid argument is refused at construction by an error that names it, and shows no
    secret."""
    with pytest.raises(error, match=rf"^{name}\b") as caught:
        Consul(**{"service": "orders", **arguments})
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "variables", "url"),
    [
        (None, {}, "http://127.0.0.1:8500"),
        (None, {"CONSUL_HTTP_ADDR": ""}, "http://127.0.0.1:8500"),
        (None, {"CONSUL_HTTP_ADDR": "10.0.0.1:8500"}, "http://10.0.0.1:8500"),
        (None, {"CONSUL_HTTP_ADDR": "[::1]:8500"}, "http://[::1]:8500"),
        (None, {"CONSUL_HTTP_ADDR": "https://c.test/base/"}, "https://c.test/base"),
        (None, {"CONSUL_HTTP_SSL": "true"}, "https://127.0.0.1:8500"),
        (None, {"CONSUL_HTTP_SSL": "1", "CONSUL_HTTP_ADDR": "http://h:1"}, "https://h:1"),
        (None, {"CONSUL_HTTP_SSL": "false", "CONSUL_HTTP_ADDR": "h:1"}, "http://h:1"),
        ("127.0.0.1:1", {"CONSUL_HTTP_ADDR": "h:2"}, "http://127.0.0.1:1"),
        ("h:1", {"CONSUL_HTTP_SSL": "T"}, "https://h:1"),
        ("http://h:1", {"CONSUL_HTTP_SSL": "true"}, "http://h:1"),
    ],
)
def test_where_the_agent_is(address, variables, url, monkeypatch):
    """`address`, else CONSUL_HTTP_ADDR, else 127.0.0.1:8500. CONSUL_HTTP_SSL=true means https, as
    for Consul's own client, unless `address` has a scheme."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Consul("orders", address).session().url == url


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CONSUL_HTTP_ADDR": "unix:///run/c.sock"}, "CONSUL_HTTP_ADDR must be a TCP address"),
        ({"CONSUL_HTTP_ADDR": f"http://u:{TOKEN}@h"}, "CONSUL_HTTP_ADDR must not contain a user"),
        ({"CONSUL_HTTP_SSL": "maybe"}, "CONSUL_HTTP_SSL must be true or false"),
        ({"CONSUL_HTTP_TOKEN": f"{TOKEN} x"}, "CONSUL_HTTP_TOKEN must be printable"),
        ({"CONSUL_HTTP_TOKEN_FILE": "/nowhere"}, "CONSUL_HTTP_TOKEN_FILE cannot be read"),
    ],
)
def test_bad_variable(variables, reason, monkeypatch):
    """A variable of the environment that cannot be used is a DiscoveryError that names it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DiscoveryError, match=f"^{reason}") as caught:
        Consul("orders").session().headers()
    assert TOKEN not in str(caught.value)


def test_token(tmp_path: Path, monkeypatch):
    """`token`, else the file of CONSUL_HTTP_TOKEN_FILE, else CONSUL_HTTP_TOKEN. A file is read
    again for each request."""

    def sent(token: str | os.PathLike[str] | None = None) -> str | None:
        return Consul("orders", token=token).session().headers().get("X-Consul-Token")

    assert sent() is None
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of-the-environment")
    assert sent() == "of-the-environment"
    file = tmp_path / "token"
    file.write_text("first\n")
    assert sent(file) == "first"
    monkeypatch.setenv("CONSUL_HTTP_TOKEN_FILE", str(file))
    assert sent() == "first"
    assert sent("given") == "given"
    session = Consul("orders").session()
    file.write_text("second")
    assert session.headers() == {"X-Consul-Token": "second"}


def of_url(text: str) -> Consul:
    url = urlsplit(text)
    pairs = [one.partition("=")[::2] for one in url.query.split("&") if one]
    return from_url(url, dict(pairs))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http+consul://orders", "Consul('orders')"),
        ("http+consul://orders?tag=v2&dc=eu", "Consul('orders', tag='v2', dc='eu')"),
        ("http+consul://orders/api?near=_agent", "Consul('orders', near='_agent')"),
        ("http+consul://orders?passing=false", "Consul('orders', passing=False)"),
        ("http+consul://orders?passing=1", "Consul('orders')"),
    ],
)
def test_url(url, shown):
    """A URL names the service, and in its query the same arguments as `Consul`."""
    assert repr(of_url(url)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "http+consul://orders:80",
        "http+consul://",
        "http+consul://orders?tag=",
        "http+consul://orders?passing=maybe",
    ],
)
def test_bad_url(url):
    """K1: a URL that cannot be used is refused by an error that names `service`."""
    with pytest.raises(ValueError, match=r"^service"):
        of_url(url)


# A watch


class Watch:
    """A running watch, and what it has reported: answers, "alive", and its error."""

    def __init__(self, source: Consul) -> None:
        self.source = source
        self.heard: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.source.watch(self.heard.put, lambda: self.heard.put("alive"))
        except DiscoveryError as error:
            self.heard.put(error)

    def next(self):
        return self.heard.get(timeout=20)

    def hosts(self) -> list[str]:
        """The instances of the next answer."""
        while (found := self.next()) == "alive":
            pass
        assert isinstance(found, Answer), found
        return [str(one) for one in found.instances]

    def stop(self) -> None:
        self.source.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def agent():
    with Agent(datacenters=("dc1", "eu")) as agent:
        yield agent


@pytest.fixture
def watch():
    started: list[Watch] = []

    def start(*arguments, **options) -> Watch:
        started.append(Watch(Consul(*arguments, **options)))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_watch(agent, watch):
    """The first answer has all instances, and each later one comes when Consul has a change."""
    agent.add("orders", "10.0.0.1", 80)
    one = watch("orders", agent.address)
    assert one.hosts() == ["10.0.0.1:80"]
    agent.add("orders", "10.0.0.2", 80, service_id="second")
    assert one.hosts() == ["10.0.0.1:80", "10.0.0.2:80"]
    agent.mark("orders-80", "critical")
    assert one.hosts() == ["10.0.0.2:80"]
    agent.mark("orders-80", "passing")
    assert one.hosts() == ["10.0.0.1:80", "10.0.0.2:80"]
    agent.remove("second")
    assert one.hosts() == ["10.0.0.1:80"]
    agent.mark_node("node-1", "critical")
    assert one.hosts() == []


def test_queries(agent, watch):
    """The first query does not block. The others name the last index, and wait for 4.5 to 5
    minutes."""
    agent.add("orders", "10.0.0.1", 80)
    one = watch("orders", agent.address)
    one.hosts()
    agent.until_blocked()
    agent.touch("orders")
    assert one.next() == "alive"
    agent.until_asked(3)
    first, *others = agent.asked()
    assert first.params == {"passing": ["1"]}
    assert [int(query.get("index")) for query in others] == [11, 12]
    assert all(270 <= int(query.get("wait").removesuffix("s")) <= 300 for query in others)


def test_filters(agent, watch):
    """Tag, datacenter and neighbour are part of the query, and so is passing=False."""
    agent.add("orders", "10.0.0.1", 80, tags=["v1"])
    agent.add("orders", "10.0.0.2", 81, tags=["v2"], node="far", distance=9)
    agent.add("orders", "10.0.0.3", 82, tags=["v2"], node="near", status="warning", warning=5)
    agent.add("orders", "10.0.0.4", 83, tags=["v2"], node="abroad", dc="eu")
    assert watch("orders", agent.address, tag="v2").hosts() == ["10.0.0.2:81"]
    assert watch("orders", agent.address, dc="eu").hosts() == ["10.0.0.4:83"]
    one = watch("orders", agent.address, tag="v2", near="_agent", passing=False)
    assert one.hosts() == ["10.0.0.3:82", "10.0.0.2:81"]


def test_index_that_goes_back(agent, watch):
    """After an index that is lower than the last one, the next query names none, and later changes
    are seen."""
    agent.add("orders", "10.0.0.1", 80)
    one = watch("orders", agent.address)
    one.hosts()
    agent.until_blocked()
    agent.rewind(3)
    agent.until_asked(4)
    assert [query.get("index") for query in agent.asked()] == [None, "11", None, "3"]
    agent.until_blocked()
    agent.add("orders", "10.0.0.2", 81)
    assert one.hosts() == ["10.0.0.1:80", "10.0.0.2:81"]


def test_index_of_zero(agent, watch):
    """An index of 0, a bug of some versions, counts as 1, so that the next query blocks."""
    agent.index_of = lambda _: 0
    watch("orders", agent.address).hosts()
    agent.until_asked(2)
    assert agent.asked()[1].get("index") == "1"


@pytest.mark.parametrize("index", [None, "", "-1", "1.5", "x", "9" * 40])
def test_index_that_is_none(agent, watch, index):
    """A response without a valid index is an error, since nothing could be waited for."""
    agent.index_of = lambda _: index
    found = watch("orders", agent.address).next()
    assert isinstance(found, DiscoveryError)
    assert "did not send X-Consul-Index" in str(found)


def test_burst_of_changes(agent, watch):
    """Many changes in a row need few queries, and the last one is seen."""
    one = watch("orders", agent.address)
    one.hosts()
    for number in range(200):
        agent.add("orders", "10.0.0.1", 1000 + number)
    while len(found := one.hosts()) < 200:
        assert found
    assert len(agent.asked()) < 20


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((500, "No cluster leader"), "with status 500: No cluster leader"),
        ((500, "rpc error making call: EOF"), "with status 500: rpc error"),
        ((403, "ACL not found"), r"does not permit GET /v1/health/service/orders \(403\): ACL not"),
        ((404, ""), "knows no /v1/health/service/orders"),
        ((429, "Your IP is issuing too many concurrent connections"), "status 429"),
        ((500, f"token {TOKEN}\n\x1b[31m"), r"token \.\.\."),
    ],
)
def test_agent_that_refuses(agent, watch, fault, reason):
    """An error of the agent is a DiscoveryError in one line that names it and its reason, and never
    shows the token."""
    agent.fault = lambda _: fault
    found = watch("orders", agent.address, token=TOKEN).next()
    assert isinstance(found, DiscoveryError)
    text = str(found)
    assert re.search(reason, text)
    assert text.startswith(f"Consul at {agent.address} ")
    assert TOKEN not in text
    assert text.isprintable()


def test_leader_that_is_lost(agent, watch):
    """A query that blocks while the cluster loses its leader ends with the error of the agent."""
    agent.add("orders", "10.0.0.1", 80)
    one = watch("orders", agent.address)
    one.hosts()
    agent.until_blocked()
    agent.leader = False
    agent.touch("other")
    assert "No cluster leader" in str(one.next())


def test_agent_that_is_gone(dead_port, watch):
    """A refused connection is a DiscoveryError that names the agent."""
    text = str(watch("orders", f"127.0.0.1:{dead_port}").next())
    assert f"Consul at http://127.0.0.1:{dead_port} cannot be reached" in text


def test_agent_that_ends_during_a_query(agent, watch):
    """An agent that ends while a query blocks ends the watch at once."""
    one = watch("orders", agent.address)
    one.hosts()
    agent.until_blocked()
    agent.stop()
    assert "connection to Consul" in str(one.next())


def test_agent_that_falls_silent(agent, watch, monkeypatch):
    """A query that is not answered a little after its own time ends the watch."""
    monkeypatch.setattr(consul, "_WAIT", 1)
    monkeypatch.setattr(consul, "_MARGIN", -0.5)  # seconds: the double answers after 1 s
    agent.add("orders", "10.0.0.1", 80)
    one = watch("orders", agent.address)
    one.hosts()
    text = str(one.next())
    assert re.fullmatch(rf"Consul at {agent.address} did not answer .*within 0\.[56] s", text), text


def test_signs_of_life(agent, watch, monkeypatch):
    """While a query blocks, the agent is asked whether there is a leader. That is a sign of life,
    and neither its absence nor an error is one. Nothing goes on when the watch ends."""
    monkeypatch.setattr(consul, "_SIGN", 0.02)
    agent.add("orders", "10.0.0.1", 80)
    one = watch("orders", agent.address)
    one.hosts()
    assert [one.next(), one.next()] == ["alive", "alive"]

    def asked_again(times: int = 3) -> None:
        agent.until_asked(len(agent.asked("/v1/status/leader")) + times, "/v1/status/leader")

    agent.fault = lambda query: (500, "") if "leader" in query.path else None
    asked_again()  # so no earlier answer is on its way
    while not one.heard.empty():
        one.heard.get()
    asked_again()
    agent.body_of = lambda _: b'""'
    agent.fault = lambda _: None
    asked_again()
    assert one.heard.empty()
    agent.body_of = lambda body: body
    assert one.next() == "alive"
    assert len(agent.asked()) == 2
    one.stop()
    with Agent() as second:
        second.add("orders", "10.0.0.1", 80)
        watch("orders", second.address)
        second.until_asked(3, "/v1/status/leader")
        number = len(agent.asked("/v1/status/leader"))
        agent.touch("orders")
        second.until_asked(8, "/v1/status/leader")
        assert len(agent.asked("/v1/status/leader")) == number


def test_signs_of_life_of_a_datacenter(agent, watch, monkeypatch):
    """The agent is asked for the leader of the datacenter whose service is watched."""
    monkeypatch.setattr(consul, "_SIGN", 0.02)
    watch("orders", agent.address, dc="eu")
    agent.until_asked(1, "/v1/status/leader")
    assert agent.asked("/v1/status/leader")[0].get("dc") == "eu"


def test_signs_of_life_without_an_event_loop(agent):
    """A watch on a thread of its own, as under gevent, makes queries that end within half a minute,
    so that the age of the answer stays below it."""
    with Watching(Consul("orders", agent.address), on_thread=True) as watching:
        watching.answers.get(timeout=20)
        agent.until_asked(2)
    assert 22 <= int(agent.asked()[1].get("wait").removesuffix("s")) <= 25


def test_tls(watch, monkeypatch, tmp_path):
    """CONSUL_CACERT names the certificate authority of an agent with TLS. Without it the error says
    so, and the token is not sent."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Agent(tls=context) as agent:
        agent.add("orders", "10.0.0.1", 80)
        text = str(watch("orders", agent.address, token=TOKEN).next())
        assert "is not trusted" in text
        assert "set CONSUL_CACERT" in text
        assert not agent.queries
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("CONSUL_CACERT", str(tmp_path / "ca.pem"))
        assert watch("orders", agent.address).hosts() == ["10.0.0.1:80"]


READS = (("service", "orders", "read"), ("node_prefix", "", "read"))


def test_acl(watch):
    """With ACLs, a token needs service:read and node:read. An unknown token is refused, and one
    that may not read the service gets an error that says so. Without a token there is no answer
    with instances."""
    policies = {TOKEN: READS, "of-others": (("service", "users", "read"),), "": ()}
    with Agent(policies=policies) as agent:
        agent.add("orders", "10.0.0.1", 80)
        assert watch("orders", agent.address, token=TOKEN).hosts() == ["10.0.0.1:80"]
        assert "ACL not found" in str(watch("orders", agent.address, token="unknown").next())
        text = str(watch("orders", agent.address, token="of-others").next())
        assert "may not read this service; it needs service:read" in text
        assert watch("orders", agent.address).hosts() == []


def test_token_that_is_replaced(watch, tmp_path):
    """A new token in the file is used from the next query on."""
    file = tmp_path / "token"
    file.write_text("first")
    with Agent(policies={"first": READS, "second": READS}) as agent:
        agent.add("orders", "10.0.0.1", 80)
        one = watch("orders", agent.address, token=file)
        one.hosts()
        agent.until_blocked()
        file.write_text("second")
        agent.touch("orders")
        agent.until_asked(3)
        tokens = [query.headers["x-consul-token"] for query in agent.asked()]
        assert tokens == ["first", "first", "second"]


# Without I/O: hours of a watch


class Over(Exception):
    """The end of a test."""


class VirtualAgent:
    """The I/O of a session, in virtual time. `answer(params)` returns the seconds that the agent
    takes, its status, its index and its list of instances; or it raises an exception."""

    def __init__(self, answer) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._answer = answer
        self._bodies: dict[int, bytes] = {}

    async def send(self, request, seconds):
        self.asked.append(self.now)
        takes, status, index, body = self._answer(dict(request.url.params))
        self.now += min(takes, seconds)
        if takes > seconds:
            raise TimeoutError
        response = httpx.Response(status, headers={"X-Consul-Index": str(index)})
        self._bodies[id(response)] = encoded(body)
        return response

    async def read(self, response, _):
        body, self._bodies[id(response)] = self._bodies[id(response)], b""
        return body

    async def release(self, response):
        del self._bodies[id(response)]

    async def sleep(self, seconds):
        self.now += seconds

    def lives(self, update=lambda _: None):
        """Start a watch again, a second after it has failed, until the end of the test. Yields the
        errors."""
        source = Consul("orders", "consul.test:8500")
        with contextlib.suppress(Over):
            while True:
                api = source.session()
                api._io, api.clock, api.rng = self, lambda: self.now, random.Random(1)
                try:
                    run_blocking(lambda api=api: source.follow(api, update, lambda: None))
                except DiscoveryError as error:
                    yield str(error)
                self.now += 1.0


@pytest.mark.parametrize(
    ("again", "said"),
    [
        (lambda index: (0, 200, index, [entry(1)]), None),  # at once, again and again
        (lambda index: (0, 200, index + 1, [entry(1)]), None),
        (lambda index: (0, 200, max(0, index - 1), [entry(1)]), None),
        (lambda _: (0, 200, 0, [entry(1)]), None),
        (lambda _: (0, 200, "x", []), "did not send X-Consul-Index"),
        (lambda _: (0, 500, 1, []), "status 500"),
        (lambda _: (0, 403, 1, []), "does not permit"),
        (lambda _: (0, 301, 1, []), "status 301"),
        (lambda index: (0, 200, index, {}), "did not send a list"),
        (lambda _: (1e9, 200, 1, []), "did not answer"),
    ],
)
def test_a_failing_agent_is_not_hammered(again, said):
    """Whatever the agent answers at once, there is at most one request a second, apart from the
    first ones, also if the watch is started again after a second."""

    def answer(params):
        if agent.now > 60:
            raise Over
        return again(int(params.get("index", 5)))

    agent = VirtualAgent(answer)
    errors = list(agent.lives())
    assert len(agent.asked) > 4 or "did not answer" in errors[0]
    assert bool(errors) == (said is not None)
    assert all(said in one for one in errors)
    assert max(sum(at <= one < at + 10 for one in agent.asked) for at in agent.asked) <= 12


def test_a_day():
    """During a day with changes, errors, lost leaders, silent agents and indexes that go back, each
    silence ends within its bound, and whatever was sent last is known."""
    dice = random.Random(5)
    state = {"index": 10, "port": 1}
    sent: list[int] = [0]
    known: list[int] = [0]

    def answer(params):
        assert known[-1] == sent[-1]
        if agent.now > 24 * 3600:
            raise Over
        what = dice.random()
        if what < 0.05:
            return 0, 500, 0, []
        if what < 0.1:
            return 1e9, 200, 0, []
        if what < 0.15:
            state["index"] = dice.randint(1, state["index"])
        takes, index = 0.0, int(params.get("index", 0))
        if index >= state["index"]:
            takes = min(dice.expovariate(1 / 200), float(params["wait"][:-1]))
            if dice.random() < 0.8:
                state["index"] = index + 1
                state["port"] = 1 + state["port"] % 60_000
        sent.append(state["port"])
        return takes, 200, state["index"], [entry(1, "passing", Port=state["port"])]

    agent = VirtualAgent(answer)
    errors = list(agent.lives(lambda found: known.append(found.instances[0].port)))
    assert len(errors) > 10
    assert len(set(known)) > 100
    gaps = [later - at for at, later in itertools.pairwise(agent.asked)]
    assert max(gaps) < 300 * 17 / 16 + 11 + 1


# Clients


class Traffic:
    """Calls one after another, by a client on threads or on an event loop, and their outcomes."""

    def __init__(self, kind: str, service, pause: float = 0.002, **options) -> None:
        self.outcomes: list[tuple[float, object]] = []
        """When each call began, and the port that answered, or the error."""
        self._pause = pause
        self._changed = threading.Condition()
        self._stopping = False
        self._arguments = service, {"allow": ["127.0.0.0/8"], **options}
        run = self._on_thread if kind == "sync" else lambda: anyio.run(self._on_loop, backend=kind)
        self._thread = threading.Thread(target=run)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopping = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _on_thread(self) -> None:
        service, options = self._arguments
        with lbclient.Client(service, **options) as client:
            while not self._stopping:
                began = time.monotonic()
                try:
                    self._note(began, int(client.get("/").text))
                except Exception as error:  # noqa: BLE001  # tests look at it
                    self._note(began, error)
                time.sleep(self._pause)

    async def _on_loop(self) -> None:
        service, options = self._arguments
        async with lbclient.AsyncClient(service, **options) as client:
            while not self._stopping:
                began = time.monotonic()
                try:
                    self._note(began, int((await client.get("/")).text))
                except Exception as error:  # noqa: BLE001  # tests look at it
                    self._note(began, error)
                await anyio.sleep(self._pause)

    def _note(self, began: float, outcome: object) -> None:
        with self._changed:
            self.outcomes.append((began, outcome))
            self._changed.notify_all()

    def until(self, wanted: set, number: int = 30) -> None:
        """Wait until the last calls had just these outcomes."""

        def holds() -> bool:
            return {outcome for _, outcome in self.outcomes[-number:]} == wanted

        with self._changed:
            assert self._changed.wait_for(holds, 30), (self.outcomes[-number:], wanted)

    def more(self, number: int = 30) -> None:
        """Wait for this many more calls."""
        with self._changed:
            wanted = len(self.outcomes) + number
            assert self._changed.wait_for(lambda: len(self.outcomes) >= wanted, 30)

    @property
    def errors(self) -> list[object]:
        return [one for _, one in self.outcomes if not isinstance(one, int)]


kinds = pytest.mark.parametrize("kind", ["sync", "asyncio", *slow_rows("trio")])


def register(agent: Agent, server, **options) -> str:
    """Register a server as an instance of `orders`."""
    return agent.add("orders", server.host, server.port, **{"status": "passing", **options})


@kinds
def test_changes_are_used(agent, servers, kind):
    """A new instance gets calls, and one that was deregistered, is critical, in maintenance, or on
    a node that failed gets none. No call fails."""
    first, second = servers(tells_port, tells_port)
    one = register(agent, first)
    with Traffic(kind, lbclient.Consul("orders", agent.address)) as traffic:
        traffic.until({first.port})
        two = register(agent, second, node="node-2")
        traffic.until({first.port, second.port})
        agent.remove(one)
        traffic.until({second.port})
        register(agent, first)
        traffic.until({first.port, second.port})
        agent.mark(two, "critical")
        traffic.until({first.port})
        agent.mark(two, "passing")
        traffic.until({first.port, second.port})
        agent.mark_node("node-2", "critical")
        traffic.until({first.port})
        assert not traffic.errors


@kinds
def test_refused_addresses(agent, servers, kind, caplog):
    """S1: an instance whose address the filter refuses gets no call, and the log says how to allow
    it. The others are used."""
    (good,) = servers(tells_port)
    register(agent, good)
    agent.add("orders", "169.254.169.254", 80)
    service = lbclient.Consul("orders", agent.address)
    with (
        contextlib.ExitStack() as stack,
        Traffic(kind, service, allow=["127.0.0.1/32"]) as traffic,
    ):
        bad = Server(tells_port, host="127.0.0.2")
        stack.callback(bad.stop)
        register(agent, bad, service_id="bad")
        traffic.until({good.port})
        agent.mark("bad", "critical")
        agent.mark("bad", "passing")
        until(lambda: "127.0.0.2 is loopback; pass allow=" in caplog.text)
        traffic.more()
        assert {outcome for _, outcome in traffic.outcomes} == {good.port}
        assert not bad.accepted
    assert "169.254.169.254 is a cloud metadata address" in caplog.text


def test_names(agent, servers):
    """An instance whose address is a name is looked up as the target of an SRV record is. An answer
    that the filter refuses is not used."""
    (server,) = servers(tells_port)
    with Liar() as dns:
        dns.put("web-1.test", "A", "127.0.0.1")
        dns.put("web-2.test", "A", "169.254.169.254")
        agent.add("orders", "web-1.test", server.port)
        agent.add("orders", "web-2.test", 80)
        service = lbclient.Consul("orders", agent.address)
        options = {"allow": ["127.0.0.0/8"], "nameservers": [dns.address]}
        with lbclient.Client(service, **options) as client:
            assert client.get("/").text == str(server.port)
            (known,) = client.balancer.snapshot().instances
            assert known.instance.addresses == ("127.0.0.1",)


@kinds
def test_weights(agent, servers, kind):
    """`Weights` are weights: a new one changes the shares."""
    first, second = servers(tells_port, tells_port)
    register(agent, first, passing=1)
    register(agent, second, passing=1000)
    service = lbclient.Consul("orders", agent.address)
    with Traffic(kind, service, strategy="weighted") as traffic:
        traffic.until({second.port})
        register(agent, first, passing=1000)
        traffic.until({first.port, second.port})
        assert not traffic.errors


@kinds
def test_agent_that_is_away(agent, servers, kind):
    """While the agent is away, or answers with errors, calls go on with the last good set. What
    has changed meanwhile is used after its return."""
    first, second = servers(tells_port, tells_port)
    one = register(agent, first)
    with Traffic(kind, lbclient.Consul("orders", agent.address)) as traffic:
        traffic.until({first.port})
        agent.stop()
        asked = len(agent.asked())
        traffic.more()
        register(agent, second)
        agent.remove(one)
        agent.fault = lambda _: (500, "rpc error: No cluster leader")
        agent.start()
        agent.until_asked(asked + 1)
        traffic.more()
        assert {outcome for _, outcome in traffic.outcomes} == {first.port}
        agent.fault = lambda _: None
        traffic.until({second.port})
        assert not traffic.errors


@kinds
def test_no_healthy_instance(agent, servers, kind, caplog):
    """If no instance is healthy or registered any more, the last good set stays in use, as after an
    empty answer of DNS."""
    (first,) = servers(tells_port)
    one = register(agent, first)
    with Traffic(kind, lbclient.Consul("orders", agent.address)) as traffic:
        traffic.until({first.port})
        agent.mark(one, "critical")
        agent.until_asked(3)
        traffic.more()
        agent.remove(one)
        agent.until_asked(4)
        traffic.more()
        assert not traffic.errors
    assert "holds no usable instance" in caplog.text


def test_no_healthy_instance_for_long(agent, servers, monkeypatch):
    """`max_stale` counts from the last answer with an instance, though the agent gives signs of
    life after that."""
    monkeypatch.setattr(consul, "_SIGN", 0.02)
    (first,) = servers(tells_port)
    one = register(agent, first)
    service = lbclient.Consul("orders", agent.address)
    with lbclient.Client(service, allow=["127.0.0.0/8"], max_stale=0.5) as client:
        assert client.get("/").text == str(first.port)
        agent.until_blocked()
        agent.mark(one, "critical")
        end, said = time.monotonic() + 20, ""
        while not said:
            assert time.monotonic() < end
            try:
                client.get("/")
            except DiscoveryError as error:
                said = str(error)
    assert "more than max_stale=0.5 allows" in said


def test_unknown_service(agent):
    """A call of a service that Consul does not know fails, and the error names the service."""
    with (
        lbclient.Client(lbclient.Consul("orders", agent.address)) as client,
        pytest.raises(DiscoveryError, match=r"about orders holds no usable instance"),
    ):
        client.get("/")


def test_url_of_a_client(agent, servers, monkeypatch):
    """A URL names the service, its tag, and the base path of its instances. The Host is the name of
    the service."""
    first, second = servers(tells_port, tells_port)
    register(agent, first, tags=["v1"])
    register(agent, second, tags=["v2"])
    monkeypatch.setenv("CONSUL_HTTP_ADDR", agent.address)
    service = "http+consul://orders/api?tag=v2"
    with lbclient.Client(service, allow=["127.0.0.0/8"]) as client:
        assert client.get("/x").text == str(second.port)
    (request,) = second.requests
    assert request.target == "/api/x"
    assert request.headers["host"] == "orders"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"http+consul://orders?token={TOKEN}", "the keys are tag, dc, near, passing"),
        ("http+consul://orders?tag=a&tag=b", "must have 'tag' once"),
        ("http+consul://orders:8500", "must not have a port"),
        (f"http+consul://user:{TOKEN}@orders", "must not contain a user name"),
    ],
)
def test_bad_url_of_a_client(url, reason):
    """K1: a URL that cannot be used is refused when the client is made, and no secret is shown."""
    with pytest.raises(ValueError, match=rf"^service\b.*{reason}") as caught:
        lbclient.Client(url)
    assert TOKEN not in str(caught.value)


def test_several_sources(agent, servers):
    """A service in Consul may be a part of FirstOf and of Union."""
    first, second = servers(tells_port, tells_port)
    register(agent, first)
    there, nowhere = (lbclient.Consul(name, agent.address) for name in ("orders", "nothing"))
    options = {"allow": ["127.0.0.0/8"]}
    with lbclient.Client(lbclient.FirstOf(nowhere, there), **options) as client:
        assert client.get("/").text == str(first.port)
    with lbclient.Client(lbclient.Union(there, second.url), **options) as client:
        assert {client.get("/").text for _ in range(50)} == {str(first.port), str(second.port)}


class Changes:
    """A listener that knows when each change of the instances was applied."""

    def __init__(self) -> None:
        self.events: list[tuple[float, set[int], set[int]]] = []
        self._changed = threading.Condition()

    def __call__(self, event: object) -> None:
        if isinstance(event, lbclient.InstancesChanged):
            joined, left = ({one.port for one in several} for several in (event.joined, event.left))
            with self._changed:
                self.events.append((event.at, joined, left))
                self._changed.notify_all()

    def until(self, number: int) -> float:
        """Wait for this many changes, and return when the last one was applied."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= number, 20)
            return self.events[number - 1][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_change_is_in_use_within_half_a_second(agent, servers, kind):
    """At 200 calls a second, 99 % of the changes are in use within 0.5 s of the moment at which
    Consul sends them. No call that begins later goes to an instance that left, and none fails."""
    always, *others = servers(*[tells_port] * 4)
    register(agent, always)
    changes, delays = Changes(), []
    absences: list[list[float]] = []
    """The port, the time at which it left, and the time at which it came back."""
    service = lbclient.Consul("orders", agent.address)
    rng = random.Random(19)
    with Traffic(kind, service, pause=0.003, listener=changes) as traffic:
        changes.until(1)
        known: dict[int, str] = {}
        away: dict[int, list[float]] = {}
        for number in range(2, 62):
            server = rng.choice(others)
            if server.port not in known:
                away.pop(server.port, [0, 0, 0])[2] = time.monotonic()
                known[server.port] = register(agent, server)
                sent = agent.changed_at
            else:
                leave = agent.remove if number % 2 else partial(agent.mark, status="critical")
                leave(known.pop(server.port))
                sent = agent.changed_at
                away[server.port] = [server.port, sent, math.inf]
                absences.append(away[server.port])
            delays.append(changes.until(number) - sent)
            traffic.more(10)
    assert not traffic.errors
    assert len(absences) > 20
    for port, left, back in absences:
        assert not [at for at, one in traffic.outcomes if one == port and left + 0.5 < at < back]
    delays.sort()
    assert delays[-1] < 0.5


PROCESS = """
import http.server, sys, threading, lbclient

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
port = server.server_address[1]
instance = lbclient.Instance("127.0.0.1", port)
via = lbclient.Consul("orders", sys.argv[1])
with lbclient.Registration("orders", instance, via=via, ttl=1):
    print(port, flush=True)
    sys.stdin.readline()
print("left", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def processes(agent):
    """Three processes that serve `orders` and are registered, by their ports."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PROCESS, agent.address],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        for one in started:
            stack.callback(one.kill)
        yield {int(one.stdout.readline()): one for one in started}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "signal"), [("sync", signal.SIGTERM), ("asyncio", None)])
def test_three_processes(agent, processes, kind, signal):
    """Three processes register. One is killed, one leaves (at the end of its block, or on SIGTERM),
    one stays. A client knows within the TTL and a second, or within half a second, and no call
    fails."""
    killed, leaving, staying = processes
    changes = Changes()
    service = lbclient.Consul("orders", agent.address)
    with Traffic(kind, service, pause=0.003, listener=changes) as traffic:
        traffic.until({killed, leaving, staying})
        number = len(changes.events)
        at = time.monotonic()
        processes[killed].kill()
        assert changes.until(number + 1) - at < 2
        assert changes.events[-1][2] == {killed}
        traffic.until({leaving, staying})
        at = time.monotonic()
        if signal is None:
            processes[leaving].stdin.write("leave\n")
            processes[leaving].stdin.flush()
            assert processes[leaving].stdout.readline() == "left\n"
        else:
            processes[leaving].send_signal(signal)
        assert changes.until(number + 2) - at < 0.5
        traffic.until({staying})
    assert not traffic.errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_storm(agent, servers, kind):
    """Whatever happens to the agent, its index and the instances, in any order: no call fails while
    one instance stays, and in the end the client knows the instances that Consul knows."""
    always, *others = servers(*[tells_port] * 4)
    register(agent, always, service_id="always")
    rng = random.Random(20)
    answers = itertools.cycle([(500, "No cluster leader"), (503, ""), (403, "ACL not found"), None])

    def toggle() -> None:
        server = rng.choice(others)
        known = [key[1] for key, one in agent.services.items() if one.port == server.port]
        if known:
            agent.remove(known[0])
        else:
            register(agent, server, passing=rng.randint(1, 9), tags=[rng.choice("ab")])

    def mark() -> None:
        known = [key[1] for key in agent.services if key[1] != "always"]
        if known:
            agent.mark(rng.choice(known), rng.choice(["passing", "critical", "warning"]))

    def fail() -> None:
        fault = next(answers)
        agent.fault = lambda query: fault if "/health/" in query.path else None

    def lose_leader() -> None:
        agent.leader = not agent.leader
        agent.touch("orders")

    def spoil() -> None:
        agent.body_of = rng.choice([lambda body: body, lambda body: body[: len(body) // 2]])

    events = [toggle, mark, fail, lose_leader, spoil]
    events += [toggle, mark, agent.rewind, lambda: agent.restart(forget=False)]
    with lbclient.Client(
        service := lbclient.Consul("orders", agent.address), allow=["127.0.0.0/8"]
    ) as client:
        client.get("/")
        with Traffic(kind, service) as traffic:
            traffic.until({always.port})
            for _ in range(100):
                rng.choice(events)()
                time.sleep(rng.choice((0, 0.01, 0.1)))
            agent.leader, agent.fault, agent.body_of = True, lambda _: None, lambda body: body
            register(agent, always, service_id="last", dc="dc1")
            wanted = {one.port for one in agent.services.values() if one.status == "passing"}
            end = time.monotonic() + 45
            while {one.instance.port for one in client.balancer.snapshot().instances} != wanted:
                assert time.monotonic() < end
                client.get("/")
                time.sleep(0.05)  # a state, of which nothing tells
            traffic.more()
        assert not traffic.errors


@pytest.mark.slow
def test_command_line(agent):
    """`lbclient resolve --watch` shows the instances, what is refused, and each change."""
    agent.add("orders", "10.0.0.1", 80, tags=["v2"])
    agent.add("orders", "169.254.169.254", 81, tags=["v2"])
    command = [
        sys.executable,
        "-m",
        "lbclient",
        "resolve",
        "--watch",
        "http+consul://orders?tag=v2",
    ]
    environ = {**os.environ, "CONSUL_HTTP_ADDR": agent.address}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        limit = threading.Timer(60, process.kill)  # ends the lines
        limit.start()
        try:
            lines = iter(process.stdout.readline, "")
            assert any("10.0.0.1:80" in line for line in lines)
            assert any("cloud metadata" in line for line in lines)
            agent.add("orders", "10.0.0.2", 82, tags=["v2"])
            assert any("10.0.0.2:82" in line for line in lines)
            agent.stop()
            assert any("Consul at " in line for line in lines)
        finally:
            limit.cancel()
            process.kill()


# docs/consul.md

PAGE = Path(__file__).parents[2] / "docs" / "consul.md"
READING, WRITING = (
    parse_policy(text) for text in re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
)


def test_policies_of_the_page(servers):
    """The policies of docs/consul.md are enough for a client and for a registration."""
    (first,) = servers(tells_port)
    with Agent(policies={"reading": READING, "writing": WRITING}) as agent:
        instance = Instance(first.host, first.port)
        reading = Consul("orders", agent.address, token="reading")
        with (
            registration(agent, instance, token="writing"),
            lbclient.Client(reading, allow=["127.0.0.0/8"]) as client,
        ):
            assert client.get("/").text == str(first.port)
        assert not agent.services


@pytest.mark.parametrize("left_out", range(len(READING)))
def test_each_rule_of_the_page_is_needed(watch, left_out):
    """Without one of the rules for a client, nothing can be read."""
    policy = tuple(rule for number, rule in enumerate(READING) if number != left_out)
    with Agent(policies={"reading": policy}) as agent:
        agent.add("orders", "10.0.0.1", 80)
        found = watch("orders", agent.address, token="reading").next()
        assert isinstance(found, DiscoveryError)


def test_registration_needs_the_rule_of_the_page():
    """Without its rule, an instance cannot be registered."""
    with (
        Agent(policies={"writing": ()}) as agent,
        pytest.raises(lbclient.RegistrationError, match="service:write"),
    ):
        registration(agent, token="writing").__enter__()


def test_arguments_of_the_page():
    """docs/consul.md has a row for each argument of `Consul`, and for each variable."""
    rows = re.findall(r"^\| `(\w+)`", PAGE.read_text(), re.MULTILINE)
    assert rows[:7] == list(inspect.signature(Consul).parameters)
    assert {name for name in VARIABLES if f"`{name}`" in PAGE.read_text()} == set(VARIABLES)


# Registration

IDENTIFIER = "orders-127.0.0.1-8000"


def registration(agent, instance=None, **options):
    """A registration in Consul, with the options of both."""
    instance = instance or Instance("127.0.0.1", 8000)
    via = Consul("orders", agent.address, token=options.pop("token", None))
    return lbclient.Registration("orders", instance, via=via, **options)


def test_registration(agent):
    """The instance is registered with address, weight, metadata and tags, passes its TTL check, and
    is deregistered at the end."""
    instance = Instance(
        "127.0.0.1", 8000, weight=3, metadata={"zone": "eu-1a", "cores": 4, "tags": ["v2"]}
    )
    with registration(agent, instance, ttl=10) as entered:
        service = agent.services["node-1", IDENTIFIER]
        assert (service.address, service.port, service.tags) == ("127.0.0.1", 8000, ["v2"])
        assert service.meta == {"zone": "eu-1a", "cores": "4"}
        assert service.weights == {"Passing": 3, "Warning": 1}
        (check,) = service.checks.values()
        assert (check.ttl, check.status, check.deregister_after) == (10, "passing", 60)
        assert repr(entered) == "<Registration 127.0.0.1:8000 as orders, entered>"
    assert not agent.holding(IDENTIFIER)


def test_registered_instance_is_discovered(agent, servers):
    """What one process registers, a client of the same service uses, with its metadata."""
    (first,) = servers(tells_port)
    instance = Instance(first.host, first.port, metadata={"zone": "eu-1a", "tags": ["v2"]})
    with (
        registration(agent, instance),
        lbclient.Client(Consul("orders", agent.address), allow=["127.0.0.0/8"]) as client,
    ):
        assert client.get("/").text == str(first.port)
        (known,) = client.balancer.snapshot().instances
        assert known.instance.metadata["zone"] == "eu-1a"
        assert known.instance.metadata["tags"] == ["v2"]


def test_passes(agent):
    """The check passes about every third of the TTL."""
    with registration(agent, ttl=1):
        agent.until_asked(3, "/v1/agent/check/pass/")
        times = [query.at for query in agent.asked("/v1/agent/")]
        assert times[-1] - times[0] > 0.8


def test_killed_process(agent):
    """An instance that no longer passes is critical after its TTL, and removed after two more."""
    one = registration(agent, ttl=300)
    with one:
        agent.advance(299)
        assert agent.status_of(IDENTIFIER) == "passing"
        agent.advance(2)
        assert agent.status_of(IDENTIFIER) == "critical"
        agent.advance(560)
        assert agent.holding(IDENTIFIER)
        agent.advance(41)
        assert not agent.holding(IDENTIFIER)


def test_agent_that_restarts(agent):
    """An agent that has lost the service gets it again with the next pass."""
    with registration(agent, ttl=1):
        agent.until_asked(1, "/v1/agent/check/pass/")
        agent.restart()
        agent.until_asked(2, "/v1/agent/service/register")
        agent.until_asked(len(agent.asked("/v1/agent/check/pass/")) + 1, "/v1/agent/check/pass/")
        assert agent.status_of(IDENTIFIER) == "passing"
    assert not agent.holding(IDENTIFIER)


def test_process_that_was_suspended(agent):
    """A process that was suspended until Consul has removed its instance registers it again."""
    with registration(agent, ttl=1):
        agent.fault = lambda query: (503, "") if "pass" in query.path else None
        agent.advance(2)
        agent.advance(61)
        assert not agent.holding(IDENTIFIER)
        agent.fault = lambda _: None
        agent.until_asked(2, "/v1/agent/service/register")
    assert not agent.holding(IDENTIFIER)


def test_old_agent_that_restarts(agent):
    """An old version says 500 about a check that it does not know. The service is registered
    again."""
    with registration(agent, ttl=1):
        agent.fault = lambda query: (
            (500, 'CheckID "x" does not have associated TTL') if "pass" in query.path else None
        )
        agent.until_asked(3, "/v1/agent/service/register")
        agent.fault = lambda _: None


def test_the_same_instance_again(agent):
    """A process that starts again replaces what it has left."""
    registration(agent, weight := Instance("127.0.0.1", 8000, weight=2)).__enter__()
    assert agent.services["node-1", IDENTIFIER].weights["Passing"] == weight.weight
    with registration(agent):
        assert agent.services["node-1", IDENTIFIER].weights["Passing"] == 1
        assert len(agent.services) == 1


def test_identity(agent):
    """With an identity, a process replaces what it has left at another address, and does not
    deregister a successor."""
    with registration(agent, identity="pod-1"):
        assert agent.holding("orders-pod-1")
        successor = registration(agent, Instance("127.0.0.2", 9000), identity="pod-1")
        successor.__enter__()
        assert len(agent.services) == 1
    assert agent.services["node-1", "orders-pod-1"].port == 9000
    successor.close()
    assert not agent.services


def test_agent_that_refuses_the_registration():
    """A token that may not register is a RegistrationError that says what it needs, and does not
    show it."""
    with Agent(policies={TOKEN: READS}) as agent:
        with pytest.raises(lbclient.RegistrationError, match=r"403.*service:write") as caught:
            registration(agent, token=TOKEN).__enter__()
        assert TOKEN not in str(caught.value)
        assert not agent.services


def test_agent_that_is_not_there(dead_port):
    """Without an agent, entering raises RegistrationError, which names the agent."""
    via = Consul("orders", f"127.0.0.1:{dead_port}")
    one = lbclient.Registration("orders", Instance("127.0.0.1", 80), via=via)
    with pytest.raises(lbclient.RegistrationError, match=rf"{dead_port} cannot be reached"):
        one.__enter__()


def test_agent_that_is_gone_at_the_end(agent, caplog):
    """If the agent is gone at the end, a warning is logged and nothing is raised."""
    with registration(agent):
        agent.stop()
    assert "127.0.0.1:8000 as orders may stay registered: Consul at " in caplog.text


def test_agent_that_hangs_at_the_end(agent, caplog):
    """If the agent does not answer at the end, leaving takes no longer than `timeout`."""
    released = threading.Event()
    with registration(agent, timeout=1):
        agent.fault = lambda _: released.wait(20) and None
    released.set()
    assert "did not answer within 1 s" in caplog.text


def test_service_that_is_gone_at_the_end(agent, caplog):
    """If somebody has deregistered the instance, leaving is no error."""
    with registration(agent):
        agent.remove(IDENTIFIER)
    assert not caplog.messages


def test_interrupted_while_entering(agent):
    """C4: Ctrl-C before the agent has answered: the instance does not stay registered."""
    signals = iter([signal.SIGINT])

    def hold_back(body: bytes) -> bytes:
        for one in signals:
            os.kill(os.getpid(), one)
        return body

    agent.body_of = hold_back
    # A shell starts programs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), registration(agent):
            time.sleep(10)  # the signal may come a moment later
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(agent.asked("/v1/agent/service/register")) == 1
    assert not agent.holding(IDENTIFIER)


@pytest.mark.anyio
async def test_async_registration(agent):
    """`async with` registers and deregisters too."""
    async with registration(agent):
        assert agent.holding(IDENTIFIER)
    assert not agent.holding(IDENTIFIER)


@pytest.mark.parametrize(
    ("instance", "error"),
    [
        (Instance("127.0.0.1", 80, path="/v1"), ValueError),
        (Instance("127.0.0.1", 80, headers={"x": TOKEN}), ValueError),
        (Instance("127.0.0.1", 80, tls_name="x"), ValueError),
        (Instance("127.0.0.1", 80, priority=1), ValueError),
        (Instance("127.0.0.1", 80, weight=0), ValueError),
        (Instance("127.0.0.1", 80, weight=1.5), ValueError),
        (Instance("0.0.0.0", 80), ValueError),
        (Instance("a.test", 80, addresses=("127.0.0.1",)), ValueError),
        (Instance("127.0.0.1", 80, metadata={"a": [1]}), TypeError),
        (Instance("127.0.0.1", 80, metadata={"tags": "v2"}), TypeError),
        (Instance("127.0.0.1", 80, metadata={"tags": [2]}), TypeError),
    ],
)
def test_instance_that_consul_cannot_have(agent, instance, error):
    """K1: an instance with something that Consul has no place for is refused at construction."""
    with pytest.raises(error, match=r"^instance\b") as caught:
        registration(agent, instance)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"identity": "a b"}, ValueError), ({"identity": 5}, TypeError), ({"ttl": 0}, ValueError)],
)
def test_bad_registration(agent, options, error):
    """K1: an invalid argument of a registration is refused by an error that names it."""
    with pytest.raises(error, match=rf"^{next(iter(options))}\b"):
        registration(agent, **options)


def test_datacenter_of_a_registration(agent):
    """K8: an agent registers in its own datacenter, so `dc` is refused."""
    with pytest.raises(ValueError, match=r"^via must not have dc"):
        lbclient.Registration(
            "orders", Instance("127.0.0.1", 80), via=Consul("orders", agent.address, dc="eu")
        )
