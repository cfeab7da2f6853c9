"""Discovery and registration in etcd: real members, over TLS, with users; and peers that send what
etcd never does. `test_etcd_in_use.py` has clients, and a cluster of three."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lbclient
from lbclient import Balancer, DiscoveryError, Etcd, Instance, RegistrationError
from lbclient.discovery.pushed import etcd as etcd_module
from lbclient.discovery.pushed.api import RegistryApi
from lbclient.discovery.pushed.etcd import Keys, entry_of, message_of, page_of
from lbclient.discovery.registration import Registration
from lbclient.discovery.registration.etcd import EtcdRegistrar, value_of
from lbclient.discovery.registration.registrar import RegistrarOptions, UpdateError
from lbclient.endpoint.instance import RejectedRecord
from tests.support import etcd as support
from tests.support.etcd import NEEDED, Tunnel, Watching
from tests.support.http import head, in_turn, says, tells_port
from tests.support.secure_dns import Certificates
from tests.support.slow import shares
from tests.support.watchers import LIMIT

PAGE = Path(__file__).parents[2] / "docs" / "etcd.md"
PASSWORD = "hunter2-of-etcd"


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    with support.Etcd(tmp_path_factory.mktemp("etcd")) as one:
        yield one


@pytest.fixture
def prefix(request):
    """A prefix of its own for each test."""
    return f"/{request.node.name}/orders/"


@pytest.fixture
def tunnel(member):
    with Tunnel(member.url) as before:
        yield before


@pytest.fixture
def quick(monkeypatch):
    """A silent watch is begun again after a third of a second."""
    monkeypatch.setattr(etcd_module, "_SILENCE", 0.3)


# The values of keys


@pytest.mark.parametrize(
    ("value", "instance"),
    [
        ("10.0.0.1:80", Instance("10.0.0.1", 80)),
        (" 10.0.0.1:80\n", Instance("10.0.0.1", 80)),
        ("[2001:db8::1]:80", Instance("2001:db8::1", 80)),
        ("a.shop.test:80", Instance("a.shop.test", 80)),
        ({"host": "10.0.0.1", "port": 80}, Instance("10.0.0.1", 80)),
        (
            {"host": "a.test", "port": 1, "path": "/v1", "headers": {"k": "v"}, "scheme": "https"},
            Instance("a.test", 1, path="/v1", headers={"k": "v"}, scheme="https"),
        ),
        ({"Op": 0, "Addr": "10.0.0.1:80", "Metadata": None}, Instance("10.0.0.1", 80)),
        ({"Addr": "10.0.0.1:80"}, Instance("10.0.0.1", 80)),
    ],
)
def test_values(value, instance):
    """A value is host:port, an object as in files, or gRPC's naming object."""
    data = value if isinstance(value, str) else json.dumps(value)
    assert entry_of(b"/x", data.encode()) == instance


def test_metadata():
    """The metadata of an object is the instance's. That of gRPC's object is, too: an object as it
    is, anything else under the name "Metadata"."""

    def metadata(document):
        return dict(entry_of(b"/x", json.dumps(document).encode()).metadata)

    zone = {"zone": "x"}
    assert metadata({"host": "10.0.0.1", "port": 80, "metadata": zone}) == zone
    assert metadata({"Op": 0, "Addr": "10.0.0.1:80", "Metadata": zone}) == zone
    assert metadata({"Op": 0, "Addr": "10.0.0.1:80", "Metadata": "x"}) == {"Metadata": "x"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "host:port"),
        (b"10.0.0.1", "host:port"),
        (b"10.0.0.1:0", "port"),
        (b"http://10.0.0.1:80", "host:port"),
        (b"shop:S3CRET@10.0.0.1:80", "host:port"),
        (b"\xff:80", "valid JSON"),
        (b"{", "valid JSON"),
        (b'{"host": "a", "host": "b", "port": 1}', "valid JSON"),
        (b'{"host": "a", "port": NaN}', "valid JSON"),
        (b'{"a":' + b"[" * 50_000, "valid JSON"),
        (b'{"host": "10.0.0.1"}', "must have port"),
        (b'{"host": "10.0.0.1", "port": 80, "token": "S3CRET"}', "unknown key 'token'"),
        (b'{"host": "10.0.0.1", "port": 80, "headers": {"a b": "S3CRET"}}', "header names"),
        (b'{"Op": 1, "Addr": "10.0.0.1:80"}', "Op must be 0"),
        (b'{"Addr": 5}', "Addr must be host:port"),
        (b'{"Addr": "S3CRET"}', "host:port"),
        (b'["10.0.0.1:80"]', "host:port"),
        (b'{"host": "10.0.0.1", "port": 80}' + b" " * 70_000, "larger than 64 KiB"),
    ],
)
def test_values_that_cannot_be_used(value, reason):
    """Another value is refused. The reason names the key, and shows no secret."""
    refused = entry_of(b"/s/a\n", value)
    assert isinstance(refused, RejectedRecord)
    assert refused.record.startswith("/s/a\\n")
    assert reason in refused.reason
    assert "S3CRET" not in str(refused)


INSTANCES = st.builds(
    Instance,
    st.sampled_from(["10.0.0.1", "2001:db8::1", "a.shop.test"]),
    st.integers(1, 65535),
    st.floats(0, 1e9) | st.integers(0, 1000),
    st.integers(0, 100),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.text() | st.integers()),
    st.lists(st.sampled_from(["10.0.0.2", "2001:db8::2"])).map(tuple),
    scheme=st.sampled_from([None, "http", "https"]),
    path=st.sampled_from(["", "/v1"]),
    headers=st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["", "x", "a b"])),
    tls_name=st.sampled_from([None, "b.test"]),
)


@settings(max_examples=50)
@given(INSTANCES)
def test_registered_value_is_read_back(instance):
    """What a registration writes is the instance again for those who read it."""
    again = entry_of(b"/x", value_of(instance))
    assert repr(again) == repr(instance)
    assert again == instance
    assert (again.metadata, again.addresses) == (instance.metadata, instance.addresses)


def test_short_value():
    """An instance with nothing but host and port is registered as host:port."""
    assert value_of(Instance("::1", 80)) == b"[::1]:80"


# What a user may pass


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"prefix": 5}, TypeError, "prefix"),
        ({"prefix": ""}, ValueError, "prefix"),
        ({"prefix": "/"}, ValueError, "prefix"),
        ({"prefix": "/services/orders"}, ValueError, "prefix"),
        ({"prefix": "/a\nb/"}, ValueError, "prefix"),
        ({"endpoints": 5}, TypeError, "endpoints"),
        ({"endpoints": []}, ValueError, "endpoints"),
        ({"endpoints": [5]}, TypeError, "endpoints"),
        ({"endpoints": ["ftp://a:1"]}, ValueError, "endpoints"),
        ({"endpoints": ["http://a:1", "https://b:1"]}, ValueError, "endpoints"),
        ({"endpoints": f"http://u:{PASSWORD}@a:1"}, ValueError, "endpoints"),
        ({"user": "shop"}, TypeError, "password"),
        ({"password": PASSWORD}, TypeError, "user"),
        ({"user": "", "password": PASSWORD}, ValueError, "user"),
        ({"user": "shop", "password": 5}, TypeError, "password"),
        ({"ca": 5}, TypeError, "ca"),
    ],
)
def test_bad_arguments(arguments, error, name):
    """K1: an argument that cannot be used is refused at construction by an error that names it, and
    shows no password."""
    with pytest.raises(error, match=rf"^{name}\b") as caught:
        Etcd(**{"prefix": "/services/orders/", **arguments})
    assert PASSWORD not in str(caught.value)


def test_environment(monkeypatch):
    """What is not given comes from etcdctl's variables."""
    assert Etcd("/o/").endpoints == ("http://127.0.0.1:2379",)
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "10.0.0.1:2379, http://10.0.0.2:2379")
    monkeypatch.setenv("ETCDCTL_USER", f"shop:{PASSWORD}")
    monkeypatch.setenv("ETCDCTL_CACERT", "/ca.pem")
    source = Etcd("/o/")
    assert source.endpoints == ("http://10.0.0.1:2379", "http://10.0.0.2:2379")
    assert (source.user, source.password, source.ca) == ("shop", PASSWORD, "/ca.pem")
    monkeypatch.setenv("ETCDCTL_USER", "shop")
    monkeypatch.setenv("ETCDCTL_PASSWORD", "other")
    assert (Etcd("/o/").user, Etcd("/o/").password) == ("shop", "other")
    assert (Etcd("/o/", user="me").user, Etcd("/o/", user="me").password) == ("me", "other")
    given = Etcd("/o/", "http://a:1", "me", PASSWORD, ca="x")
    assert (given.endpoints, given.user, given.ca) == (("http://a:1",), "me", "x")
    assert given.password == PASSWORD
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "ftp://a")
    with pytest.raises(ValueError, match=r"^ETCDCTL_ENDPOINTS must be"):
        Etcd("/o/")


def test_value():
    """A source is a value: equal to another one with the same arguments, also after pickling. Its
    repr shows no password."""
    source = Etcd("/services/orders/", ["http://a:1", "http://b:1"], "shop", PASSWORD)
    again = pickle.loads(pickle.dumps(source))
    assert (again, hash(again)) == (source, hash(source))
    assert source != Etcd("/services/orders/", ["http://a:1", "http://b:1"], "shop", "other")
    assert source != "x"
    assert repr(source) == "<Etcd /services/orders/ in etcd at http://a:1, http://b:1>"
    assert source.name == "orders"


@pytest.mark.parametrize(
    ("url", "prefix", "endpoints"),
    [
        ("http+etcd:///services/orders/", "/services/orders/", ("http://127.0.0.1:2379",)),
        ("https+etcd://a.test:1/o/", "/o/", ("http://a.test:1",)),
        ("http+etcd://[::1]:2379/a%20b/o/", "/a b/o/", ("http://[::1]:2379",)),
    ],
)
def test_urls(url, prefix, endpoints, monkeypatch):
    """The path of a URL is the prefix, and its host, if any, a member."""
    made = []
    monkeypatch.setattr(etcd_module, "Etcd", lambda *given: made.append(Etcd(*given)) or made[-1])
    with Balancer(url) as balancer:
        assert balancer.snapshot().service == ("o" if "/o/" in prefix else "orders")
    assert (made[0].prefix, made[0].endpoints) == (prefix, endpoints)


@pytest.mark.parametrize(
    "url",
    [
        "http+etcd:///services/orders",
        "http+etcd:///",
        "http+etcd://",
        "http+etcd:///a%ff/",
        "http+etcd:///o/?tag=x",
        f"http+etcd://u:{PASSWORD}@a:1/o/",
    ],
)
def test_bad_urls(url):
    """A URL that names no prefix is refused by an error that names `service`."""
    with pytest.raises(ValueError, match=r"^service must") as caught:
        Balancer(url)
    assert PASSWORD not in str(caught.value)


# The watch


@NEEDED
@pytest.mark.parametrize("on_thread", [False, True], ids=["loop", "thread"])
def test_changes_are_followed(member, prefix, on_thread):
    """All instances are reported at first, and then each change."""
    member.put(f"{prefix}a", "10.0.0.1:80")
    member.put(f"{prefix}b", {"host": "10.0.0.2", "port": 80})
    member.put(f"{prefix[:-1]}2/c", "10.0.0.9:80")
    with Watching(Etcd(prefix, member.url), on_thread=on_thread) as watching:
        assert watching.answer() == ["10.0.0.1:80", "10.0.0.2:80"]
        member.put(f"{prefix}c", "10.0.0.3:80")
        assert watching.answer() == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
        member.delete(f"{prefix}a")
        assert watching.answer() == ["10.0.0.2:80", "10.0.0.3:80"]
        member.put(f"{prefix}b", {"host": "10.0.0.2", "port": 80, "weight": 7})
        weights = {one.weight for one in watching.answers.get(timeout=LIMIT).instances}
        assert weights == {1, 7}
        member.put(f"{prefix}d", "nonsense")
        assert watching.answers.get(timeout=LIMIT).refused[0].record == f"{prefix}d"


@NEEDED
def test_no_keys(member, prefix):
    """A prefix without keys is an answer without instances."""
    with Watching(Etcd(prefix, member.url)) as watching:
        assert watching.answer() == []
        member.put(f"{prefix}a", "10.0.0.1:80")
        assert watching.answer() == ["10.0.0.1:80"]


@NEEDED
def test_many_keys(member, prefix, monkeypatch):
    """Keys are listed page by page, as they are at one revision."""
    monkeypatch.setattr(etcd_module, "_PAGE", 7)
    member.fill(prefix, 50)
    with Watching(Etcd(prefix, member.url)) as watching:
        assert len(watching.answer()) == 50


@NEEDED
def test_many_changes_at_once(member, prefix):
    """Changes of one transaction are one answer."""
    with Watching(Etcd(prefix, member.url)) as watching:
        assert watching.answer() == []
        watching.alive()
        member.fill(prefix, 100)
        assert len(watching.answer()) == 100


@NEEDED
def test_unchanged_value(member, prefix):
    """A value that is written again unchanged is a sign of life, and no answer."""
    member.put(f"{prefix}a", "10.0.0.1:80")
    with Watching(Etcd(prefix, member.url)) as watching:
        watching.answer()
        watching.alive()
        member.put(f"{prefix}a", "10.0.0.1:80")
        assert watching.signs_of_life.acquire(timeout=LIMIT)
        assert watching.answers.empty()


@NEEDED
def test_watch_that_breaks_goes_on(member, prefix, tunnel):
    """After a connection that broke, the watch goes on where it was, and misses no change."""
    member.put(f"{prefix}a", "10.0.0.1:80")
    with Watching(Etcd(prefix, tunnel.url)) as watching:
        assert watching.answer() == ["10.0.0.1:80"]
        watching.alive()
        tunnel.drop_connections()
        member.put(f"{prefix}b", "10.0.0.2:80")
        member.delete(f"{prefix}a")
        watching.until("10.0.0.2:80")


@NEEDED
def test_member_that_is_gone_is_a_failure(prefix, tunnel):
    """If no member can be reached, the watch fails with an error that names it."""
    with Watching(Etcd(prefix, tunnel.url)) as watching:
        watching.answer()
        watching.alive()
        tunnel.cut()
        assert f"etcd at {tunnel.url}" in watching.failure()


@NEEDED
def test_compaction_lists_the_keys_again(member, prefix, tunnel):
    """If etcd has compacted the revision at which the watch would go on, the keys are listed
    again: what was deleted meanwhile is gone."""
    member.put(f"{prefix}a", "10.0.0.1:80")
    with Watching(Etcd(prefix, tunnel.url)) as watching:
        assert watching.answer() == ["10.0.0.1:80"]
        watching.alive()
        with tunnel.held():
            member.delete(f"{prefix}a")
            member.compact(member.put(f"{prefix}b", "10.0.0.2:80"))
        assert watching.answer() == ["10.0.0.2:80"]


@NEEDED
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("on_thread", [False, True], ids=["loop", "thread"])
def test_silent_watch_is_begun_again(member, prefix, tunnel, on_thread):
    """A watch without a message is begun again after a while, also if nothing has happened. That is
    a sign of life, and no change is missed."""
    member.put(f"{prefix}a", "10.0.0.1:80")
    with Watching(Etcd(prefix, tunnel.url), on_thread=on_thread) as watching:
        assert watching.answer() == ["10.0.0.1:80"]
        for _ in range(3):
            assert watching.signs_of_life.acquire(timeout=LIMIT)
        member.put(f"{prefix}b", "10.0.0.2:80")
        assert watching.answer() == ["10.0.0.1:80", "10.0.0.2:80"]
    assert tunnel.accepted >= 3


@NEEDED
@pytest.mark.anyio
async def test_async_client(member, prefix, servers):
    """A client for event loops calls the instances in etcd, by URL, and not those that the address
    filter refuses."""
    (server,) = servers(tells_port)
    member.put(f"{prefix}a", f"127.0.0.1:{server.port}")
    member.put(f"{prefix}b", "169.254.169.254:80")
    host = member.url.rpartition("/")[2]
    async with lbclient.AsyncClient(f"http+etcd://{host}{prefix}", allow=["127.0.0.0/8"]) as client:
        for _ in range(5):
            assert (await client.get("/")).text == str(server.port)
    assert {request.headers["host"] for request in server.requests} == {"orders"}


@NEEDED
def test_forked_client(member, prefix):
    """A forked child watches etcd itself, and its parent goes on."""
    member.put(f"{prefix}a", "10.0.0.1:80")
    body = """
import time
with lbclient.Balancer(via) as balancer:
    print(balancer.call(str))
    child = os.fork()
    if not child:
        print(balancer.call(str))
    with lbclient.Registration("orders", lbclient.Instance("10.0.0.2", 80), via=via):
        while len(balancer.instances()) < 2:
            time.sleep(0.001)
    while len(balancer.instances()) != 1:
        time.sleep(0.001)
    if not child:
        os._exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = script(member, prefix, body)
    assert (ended.stderr, ended.stdout) == ("", "10.0.0.1:80\n10.0.0.1:80\n3\n")


# What etcd may send

DOCUMENTS = 100_000
SECRET = "S3CRET-IN-A-VALUE"
ODD = [
    *[None, True, 0, -1, 1.5, 10**30, "", "0", "x", "9" * 30, "\ud800", "10.0.0.1:80", "*", "Cg=="],
    *[[], {}, [None], {"key": "x"}, [{}], {"header": 5}, "\u0000", "é" * 400, [[[[]]]]],
]
PLACE = {"host": "10.0.0.1", "port": 80}
VALUES = [
    *["10.0.0.1:80", "[::1]:80", "169.254.169.254:80", "x", "", f"shop:{SECRET}@10.0.0.1:80"],
    *["{}", "[]", '{"Addr": "10.0.0.1:99999"}'],
    json.dumps({**PLACE, "headers": {"k": SECRET}}),
    json.dumps({**PLACE, "metadata": {"k": SECRET}, "weight": -1}),
    json.dumps({"Op": 0, "Addr": "10.0.0.1:80", "Metadata": {"k": SECRET}}),
]


def message(revision=5, cluster="1", **fields):
    """A message of a watch."""
    return {"result": {"header": {"cluster_id": cluster, "revision": str(revision)}, **fields}}


CREATED = message(created=True)


def event(key, value=None, revision=6):
    """An event: a key is set, or deleted if there is no value."""
    pair = {"key": encoded(key), "mod_revision": str(revision)}
    if value is None:
        return {"type": "DELETE", "kv": pair}
    return {"kv": {**pair, "value": encoded(value)}}


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def listing(*pairs, revision=5, cluster="1", **fields):
    """The answer of a list."""
    kvs = [{"key": encoded(key), "value": encoded(value)} for key, value in pairs]
    header = {"cluster_id": cluster, "revision": str(revision)}
    return says(200, json.dumps({"header": header, "kvs": kvs, **fields}).encode())


def chunk(document):
    """A message of a watch, as it is sent."""
    data = json.dumps(document).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def sends(*messages, stays=True):
    """A watch with these messages, which then stays open, or ends."""

    def behave(connection, _):
        connection.send(head(200, {"Transfer-Encoding": "chunked"}))
        for one in messages:
            connection.send(chunk(one))
        if stays:
            connection.server.stopping.wait(LIMIT)
        else:
            connection.send(b"0\r\n\r\n")

    return behave


def breaks(connection, _):
    """A watch whose connection ends in the middle of a response."""
    connection.send(head(200, {"Transfer-Encoding": "chunked"}) + chunk(CREATED))
    connection.close()


def ends(*messages):
    return sends(CREATED, *messages, stays=False)


def gateway(lists, watches):
    """A gateway with these answers in turn; the last ones repeat."""
    parts = {"/v3/kv/range": in_turn(*lists), "/v3/watch": in_turn(*watches)}
    return lambda connection, request: parts[request.target](connection, request)


def targets(server):
    return [request.target.rpartition("/")[2] for request in server.requests]


ONE = listing(("/o/a", "10.0.0.1:80"))
TWO = listing(("/o/a", "10.0.0.1:80"), ("/o/b", "10.0.0.2:80"), revision=9)


def test_watch_begins_after_the_list(servers):
    """A watch begins at the revision after that of the list, or after the last event, and demands a
    leader."""
    put = message(7, events=[event("/o/b", "10.0.0.2:80", 6)])
    watches = [sends(CREATED, put, stays=False), sends(message(7, created=True))]
    (server,) = servers(gateway([ONE], watches))
    with Watching(Etcd("/o/", server.url)) as watching:
        watching.until("10.0.0.1:80", "10.0.0.2:80")
        for _ in range(3):
            assert server.arrived.acquire(timeout=LIMIT)
    starts = [
        json.loads(one.body)["create_request"]["start_revision"] for one in server.requests[1:]
    ]
    assert starts == ["6", "7"]
    assert {one.headers["grpc-metadata-hasleader"] for one in server.requests} == {"true"}


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, *VALUES]))))
def test_keys_that_change(changes):
    """After any changes, the answer is what a new list of the same keys would give."""
    keys, values = Keys(), {}
    for key, value in changes:
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
        keys.apply(message_of(message(events=[event(key, value)])))
    new = Keys()
    for key, value in values.items():
        new.put(key.encode(), value.encode())
    assert set(keys.answer().instances) == set(new.answer().instances)
    assert len(keys.answer().instances) == len(set(keys.answer().instances))
    assert set(keys.answer().refused) == set(new.answer().refused)
    assert keys.answer().ttl is None


def test_progress_moves_the_watch_on(servers):
    """A message without events says that nothing was missed up to its revision."""
    watches = [sends(CREATED, message(90), stays=False), sends(message(91, created=True))]
    (server,) = servers(gateway([ONE], watches))
    with Watching(Etcd("/o/", server.url)):
        for _ in range(3):
            assert server.arrived.acquire(timeout=LIMIT)
    assert json.loads(server.requests[2].body)["create_request"]["start_revision"] == "91"


@pytest.mark.parametrize(
    "first",
    [
        ends(message(6, canceled=True)),
        ends(message(6, canceled=True, cancel_reason="mvcc: shutting down")),
        ends({"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}}),
        ends({"error": {"message": "etcdserver: no leader"}}),
        ends(["no", "object"]),
        ends(),
        breaks,
    ],
)
def test_watch_that_is_ended_goes_on(servers, first):
    """A watch that ends or breaks, for whatever reason, is begun again where it was, without a new
    list."""
    put = message(7, events=[event("/o/b", "10.0.0.2:80", 7)])
    (server,) = servers(gateway([ONE], [first, sends(CREATED, put)]))
    with Watching(Etcd("/o/", server.url)) as watching:
        watching.until("10.0.0.1:80", "10.0.0.2:80")
    assert targets(server) == ["range", "watch", "watch"]


@pytest.mark.parametrize(
    "created",
    [message(4, created=True), message(cluster="2", created=True), message(compact_revision="9")],
    ids=["backup", "other cluster", "compacted"],
)
def test_store_that_is_not_the_same(servers, created):
    """If the store is older than the list, or another one, the keys are listed again."""
    (server,) = servers(gateway([ONE, TWO], [sends(created), sends(message(9, created=True))]))
    with Watching(Etcd("/o/", server.url)) as watching:
        watching.until("10.0.0.1:80", "10.0.0.2:80")
        watching.alive()
    assert targets(server) == ["range", "watch", "range", "watch"]


@pytest.mark.parametrize(
    ("members", "bad", "text"),
    [
        (
            1,
            message(7, events=[event("/o/b", "10.0.0.2:80"), event("/o/c", "10.0.0.3:80")]),
            "than",
        ),
        (9, message(7, events=[{"kv": {"key": "*"}}]), "a key that is not base64"),
        (9, ["no", "object"], "list instead of an object"),
    ],
    ids=["too many keys", "event", "message"],
)
def test_message_that_can_never_be_used(servers, monkeypatch, members, bad, text):
    """A watch whose next message cannot be used twice in a row is a failure, since it would miss
    this change for ever; so the keys are listed again."""
    monkeypatch.setattr(etcd_module, "_MOST_KEYS", members)
    (server,) = servers(gateway([ONE], [sends(CREATED, bad)]))
    with Watching(Etcd("/o/", server.url)) as watching:
        assert text in watching.failure()
    assert targets(server) == ["range", "watch", "watch"]


def test_message_that_is_applied_in_part(monkeypatch):
    """If not all events of a message can be applied, the next watch begins before this message."""
    monkeypatch.setattr(etcd_module, "_MOST_KEYS", 1)
    keys = Keys()
    keys.revision = 5
    events = [event("/o/a", "10.0.0.1:80"), event("/o/b", "10.0.0.2:80")]
    with pytest.raises(DiscoveryError, match="more than 1 keys"):
        keys.apply(message_of(message(events=events)))
    assert keys.revision == 5


@pytest.mark.parametrize(
    "watch",
    [sends(CREATED, stays=False), sends(message(compact_revision="9"))],
    ids=["ended", "compacted"],
)
def test_server_that_ends_each_watch_is_not_flooded(servers, watch):
    """A server that ends each watch at once, or whose keys must be listed again after each watch,
    is asked about once a second."""
    (server,) = servers(gateway([ONE], [watch]))
    began = time.monotonic()
    with Watching(Etcd("/o/", server.url)):
        for _ in range(5):
            assert server.arrived.acquire(timeout=LIMIT)
        assert time.monotonic() - began > 1.9


@pytest.mark.parametrize(
    ("lists", "watches", "text"),
    [
        ([says(503, b'{"error": "etcdserver: no leader"}')], [], "no leader"),
        ([says(200, b"{")], [], "invalid JSON"),
        ([says(200, b"[]")], [], "list instead of an object"),
        ([says(200, b'{"header": {"revision": 5}}')], [], "int as revision"),
        ([says(200, b'{"header": {"revision": "x"}}')], [], "a revision that is no number"),
        ([listing(("/o/a", "10.0.0.1:80"), more=True)], [], "does not go on"),
        ([listing(more=True)], [], "does not go on"),
        ([says(200, b'{"header": {}, "kvs": [{"key": "*"}]}')], [], "a key that is not base64"),
        ([ONE], [sends(stays=False)], "ended the watch"),
        ([ONE], [says(403, b'{"message": "no"}')], "does not permit"),
        (
            [ONE],
            [sends(message(created=True, canceled=True, cancel_reason="permission denied"))],
            "permission denied",
        ),
        ([ONE], [sends({"error": {"message": "etcdserver: no leader"}})], "no leader"),
    ],
)
def test_failures(servers, lists, watches, text):
    """What is no answer of etcd ends the watch with an error that names the member."""
    (server,) = servers(gateway(lists, watches or [sends(CREATED)]))
    with Watching(Etcd("/o/", server.url)) as watching:
        failure = watching.failure()
        assert text in failure
        assert "etcd" in failure


def test_password_that_is_repeated(servers):
    """No error shows the password that a proxy repeats from the request for a token."""
    (server,) = servers(lambda connection, request: says(500, request.body)(connection, request))
    source = Etcd("/orders/", [server.url], "root", PASSWORD)
    with pytest.raises(DiscoveryError, match="/v3/auth/authenticate with status 500") as caught:
        source.watch(lambda _: None, lambda: None)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("token", ["S3CRET\nof etcd", "S3CRET\xf6"])
def test_token_that_cannot_be_sent(servers, token):
    """A token that a header cannot contain is a failure of etcd, which does not show it."""
    (server,) = servers(says(200, json.dumps({"token": token}).encode()))
    source = Etcd("/orders/", [server.url], "root", PASSWORD)
    with pytest.raises(DiscoveryError, match="a token that a header cannot contain") as caught:
        source.watch(lambda _: None, lambda: None)
    assert "S3CRET" not in str(caught.value)
    with pytest.raises(RegistrationError, match="a token that a header cannot contain") as failed:
        Registration("orders", ME, via=source).__enter__()
    assert "S3CRET" not in str(failed.value)
    assert server.hits == 2


def test_next_member(servers, dead_port):
    """A member that cannot be reached, or fails, is left for the next one, for lists and watches;
    what all refuse in the same way is asked of one only."""
    failing, good = servers(says(503), gateway([ONE], [sends(CREATED)]))
    endpoints = [f"http://127.0.0.1:{dead_port}", failing.url, good.url]
    for _ in range(5):  # each begins with a member at random
        with Watching(Etcd("/o/", endpoints)) as watching:
            assert watching.answer() == ["10.0.0.1:80"]
            watching.alive()
    refusing, other = servers(says(403), says(403))
    with Watching(Etcd("/o/", [refusing.url, other.url])) as watching:
        assert "403" in watching.failure()
    assert refusing.hits + other.hits == 1


def test_all_members_fail(servers, dead_port):
    """If all members fail, the error names each."""
    (failing,) = servers(says(503))
    with Watching(Etcd("/o/", [failing.url, f"http://127.0.0.1:{dead_port}"])) as watching:
        failure = watching.failure()
    assert failing.url in failure
    assert str(dead_port) in failure
    assert failing.hits == 1


def mutated(dice, node):
    """A document with a few parts replaced, left out or doubled."""
    if dice.random() < 0.01:
        return dice.choice(ODD)
    if isinstance(node, dict):
        return {
            (key if dice.random() < 0.99 else "x"): mutated(dice, value)
            for key, value in node.items()
            if dice.random() > 0.01
        }
    if isinstance(node, list):
        return [mutated(dice, one) for one in node for _ in range(dice.choice([1, 1, 1, 0, 2]))]
    return node


def damaged(dice, data):
    """JSON as bytes, some of them with a few bytes changed."""
    if dice.random() < 0.85:
        return data
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed[: dice.randrange(len(changed) + 1)] if dice.random() < 0.3 else changed)


@shares
def test_any_document(share):
    """Whatever a server sends, there is an answer, or a DiscoveryError. What an answer refuses, and
    the errors, show no secret of a value."""
    api, outcomes = RegistryApi("etcd", "http://127.0.0.1:1"), Counter()
    for seed in range(int(DOCUMENTS * share)):
        dice, keys = random.Random(seed), Keys()
        pairs = [(f"/o/{n}", dice.choice(VALUES)) for n in range(dice.randrange(4))]
        header = {"cluster_id": "1", "revision": "5"}
        events = [event(key, dice.choice([value, None])) for key, value in pairs]
        page = {"header": header, "kvs": [event(*pair)["kv"] for pair in pairs], "more": False}
        sent = message(6, events=events, created=dice.choice([True, False]), canceled=False)
        try:
            data = damaged(dice, json.dumps(mutated(dice, page)).encode())
            for pair in page_of(api.json(data)).pairs:
                keys.put(*pair)
            data = damaged(dice, json.dumps(mutated(dice, sent)).encode())
            keys.apply(message_of(api.json(data)))
            answer = keys.answer()
        except DiscoveryError as error:
            outcomes["error"] += 1
            text = f"{error}{error!r}"
        else:
            outcomes["answer"] += 1
            text = f"{answer}{answer.refused}"
        assert SECRET not in text, seed
        assert len(text) < 10_000
    assert min(outcomes["error"], outcomes["answer"]) > DOCUMENTS * share * 0.2, outcomes


# Registration


ME = Instance("127.0.0.1", 8080)


@pytest.fixture
def registration(member):
    """Make registrations, which are left at the end."""
    made: list[Registration] = []

    def make(prefix, instance=ME, endpoints=None, **options):
        via = Etcd(prefix, endpoints or member.url)
        made.append(Registration("orders", instance, via=via, **{"ttl": 60, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def lease_of(member, prefix):
    """The lease of the only key under a prefix."""
    (lease,) = support.leases(member, prefix)
    return lease


@NEEDED
def test_registration(member, prefix, registration):
    """While the block runs there is a key with a lease, which is removed at the end."""
    one = registration(prefix)
    for _ in range(2):
        with one:
            ((key, value),) = member.keys(prefix).items()
            assert key.startswith(f"{prefix}127.0.0.1:8080-")
            assert value == "127.0.0.1:8080"
            assert lease_of(member, prefix) != 0
            with pytest.raises(RuntimeError, match="already entered"):
                one.__enter__()
        assert member.keys(prefix) == {}
    assert repr(one) == "<Registration 127.0.0.1:8080 as orders>"


@NEEDED
def test_registered_instance_is_found(member, prefix, registration):
    """A client gets the instance as it was registered."""
    given = Instance("127.0.0.1", 80, 3, 1, {"zone": "x"}, path="/v1")
    with registration(prefix, given), Watching(Etcd(prefix, member.url)) as watching:
        (instance,) = watching.answers.get(timeout=LIMIT).instances
    assert repr(instance) == repr(given)
    assert instance.metadata == {"zone": "x"}


@NEEDED
def test_renewal_writes_nothing(member, prefix, registration):
    """A renewal keeps the lease alive, and changes no key."""
    with registration(prefix) as one:
        lease, revision = lease_of(member, prefix), member.revision()
        one._stay.record.renew()
        assert (lease_of(member, prefix), member.revision()) == (lease, revision)


@NEEDED
def test_lost_lease_is_granted_again(member, prefix, registration):
    """If the lease is lost, the next renewal gets a new one, and sets the key again."""
    with registration(prefix) as one:
        lease = lease_of(member, prefix)
        member.call("lease/revoke", ID=str(lease))
        assert member.keys(prefix) == {}
        one._stay.record.renew()
        assert lease_of(member, prefix) != lease
    assert member.keys(prefix) == {}


@NEEDED
def test_renewals_keep_the_lease(member, prefix, registration):
    """Renewals come about every third of the TTL, by themselves."""
    with registration(prefix, ttl=3) as one:
        assert one._stay.renewal._interval == 1
        renewed = threading.Event()
        registrar = one._stay.record._registrar
        put = registrar.put
        registrar.put = lambda seconds: (put(seconds), renewed.set())
        assert renewed.wait(LIMIT)
        assert member.keys(prefix)


@NEEDED
def test_deleted_key_is_set_again(member, prefix, registration):
    """A key that somebody has deleted is set again at the next renewal, with the same lease."""
    with registration(prefix) as one:
        lease = lease_of(member, prefix)
        member.delete(next(iter(member.keys(prefix))))
        one._stay.record.renew()
        assert lease_of(member, prefix) == lease
    assert member.keys(prefix) == {}


@NEEDED
def test_same_address_twice(member, prefix, registration):
    """Two processes with one address have two keys, so one may leave before the other."""
    with registration(prefix):
        with registration(prefix):
            assert len(member.keys(prefix)) == 2
        assert len(member.keys(prefix)) == 1


@NEEDED
def test_identity_is_taken_over(member, prefix, registration):
    """With an identity, a process that starts again replaces the key of its predecessor, whose end
    then removes nothing."""
    old = registration(prefix, identity="pod-0.x")
    new = registration(prefix, Instance("127.0.0.2", 80), identity="pod-0.x")
    with new:
        pass
    with old, new:
        old._stay.record.renew()
        old.close()
        assert member.keys(prefix) == {f"{prefix}pod-0.x": "127.0.0.2:80"}
    assert member.keys(prefix) == {}


@NEEDED
def test_sigterm(member, prefix, registration):
    """SIGTERM removes the key, then the previous handler runs."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(member.keys(prefix)))
    try:
        with registration(prefix):
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [{}]
    finally:
        signal.signal(signal.SIGTERM, before)


@NEEDED
@pytest.mark.anyio
async def test_async_registration(member, prefix, registration):
    """`async with` does the same."""
    one = registration(prefix)
    async with one:
        assert len(member.keys(prefix)) == 1
    assert member.keys(prefix) == {}


@NEEDED
def test_leaving_while_etcd_is_down(prefix, registration, tunnel, caplog):
    """Leaving while etcd is down raises nothing and logs a warning; what etcd does not answer takes
    at most `timeout`."""
    with registration(prefix, endpoints=tunnel.url):
        tunnel.cut()
    assert "127.0.0.1:8080 as orders may stay registered: " in caplog.text
    assert f"etcd at {tunnel.url}" in caplog.text


def test_silent_etcd(servers, caplog):
    """What etcd does not answer takes at most `timeout`, on entering and on leaving."""
    silent = threading.Event()

    def answers(connection, request):
        if silent.is_set():
            connection.server.stopping.wait(LIMIT)
        if request.target.endswith("/grant"):
            connection.answer(200, b'{"ID": "7", "TTL": "60"}')
        else:
            connection.answer(200, b"{}")

    (server,) = servers(answers)
    one = Registration("orders", ME, via=Etcd("/o/", server.url), timeout=1)
    with one:
        silent.set()
    assert "did not answer within 1 s" in caplog.text
    with pytest.raises(RegistrationError, match="did not answer within 1 s"):
        one.__enter__()
    silent.clear()
    assert targets(server) == ["grant", "put", "revoke", "grant"]


@pytest.mark.slow
def test_leaving_during_a_renewal(servers, caplog):
    """If etcd is silent, and a renewal waits for it, leaving takes `timeout` and not twice as
    long."""
    silent = threading.Event()

    def answers(connection, _):
        if silent.is_set():
            connection.server.stopping.wait(LIMIT)
        connection.answer(200, b'{"ID": "7", "TTL": "60"}')

    (server,) = servers(answers)
    with Registration("orders", ME, via=Etcd("/o/", server.url), timeout=3) as one:
        silent.set()
        renewal = threading.Thread(
            target=partial(pytest.raises, UpdateError, one._stay.record.renew)
        )
        for _ in range(2):
            assert server.arrived.acquire(timeout=LIMIT)
        renewal.start()
        assert server.arrived.acquire(timeout=LIMIT)
        began = time.monotonic()
    assert time.monotonic() - began < 5.5
    renewal.join()
    assert "may stay registered" in caplog.text


@pytest.mark.parametrize(
    ("path", "requests"), [("grant", ["grant"]), ("put", ["grant", "put", "revoke"])]
)
def test_interrupted_while_entering(servers, path, requests):
    """Ctrl-C during any request of entering leaves no key behind: after it none is set, and one
    that may be set is removed with its lease."""
    keys = []

    def answers(connection, request):
        target = request.target.rpartition("/")[2]
        if target == "put":
            keys.append(request.body)
        elif target == "revoke":
            keys.clear()
        if target == path:
            os.kill(os.getpid(), signal.SIGINT)
            connection.server.stopping.wait(LIMIT)
        connection.answer(200, b'{"ID": "7", "TTL": "60"}')

    (server,) = servers(answers)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Registration("orders", ME, via=Etcd("/o/", server.url), timeout=1).__enter__()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not keys
    assert targets(server) == requests


class Interruption(BaseException):
    """What a signal handler raises. `Thread.start` of Python fails with other errors if it is
    interrupted by an Exception."""


@NEEDED
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*<socket.socket fd:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:(?s).*Interruption:pytest.PytestUnraisableExceptionWarning")
def test_interrupted_anywhere(member, prefix, registration):
    """An exception of a signal handler, wherever it comes while a block is entered, leaves no key
    behind. (httpcore leaves a socket to the garbage collector. A destructor drops the
    exception.)"""

    def interrupt(*_):
        raise Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    dice, interrupted = random.Random(1), 0
    try:
        for _ in range(400):
            one = registration(prefix)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.008 * dice.random())
                one.__enter__()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interruption:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            one.close()  # does nothing if the block was not entered
            assert member.keys(prefix) == {}
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 40


@pytest.mark.parametrize("path", ["grant", "put", "revoke"])
def test_cancelled_registration(servers, path):
    """A task that is cancelled during any request of entering or leaving leaves no key behind."""
    keys = []
    held, proceed = threading.Event(), threading.Event()

    def answers(connection, request):
        target = request.target.rpartition("/")[2]
        if target == path:
            held.set()
            assert proceed.wait(LIMIT)
        if target == "put":
            keys.append(request.body)
        elif target == "revoke":
            keys.clear()
        connection.answer(200, b'{"ID": "7", "TTL": "60"}')

    (server,) = servers(answers)

    async def enter():
        async with Registration("orders", ME, via=Etcd("/o/", server.url)):
            pass

    async def main():
        task = asyncio.create_task(enter())
        assert await asyncio.to_thread(held.wait, LIMIT)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        proceed.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "lbclient-leaving" or "AnyIO" in thread.name:
            thread.join(LIMIT)
    assert not keys


@pytest.mark.parametrize("requests", range(4))
@pytest.mark.parametrize("on_thread", [False, True], ids=["loop", "thread"])
def test_cancelled_watch(servers, requests, on_thread):
    """A watch that is cancelled during any of its requests ends without an error."""
    silent = threading.Event()
    script = gateway([ONE], [sends(CREATED, stays=False)])

    def answers(connection, request):
        if server.hits > requests:
            silent.set()
            connection.server.stopping.wait(LIMIT)
        script(connection, request)

    (server,) = servers(answers)
    with Watching(Etcd("/o/", server.url), on_thread=on_thread) as watching:
        assert silent.wait(LIMIT)
    assert watching.last is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (says(503, b'{"error": "etcdserver: no leader"}'), "no leader"),
        (says(403, b'{"error": "etcdserver: permission denied"}'), "permission denied"),
        (says(200, b"{"), "invalid JSON"),
        (says(200, b"[]"), "list instead of an object"),
        (says(200, b"{}"), "granted no lease"),
        (says(200, b'{"ID": 5}'), "granted no lease"),
        (says(200, b'{"ID": "x"}'), "granted no lease"),
    ],
)
def test_registration_that_fails(servers, answer, text):
    """Entering raises an error that names the instance, the member and the reason."""
    (server,) = servers(answer)
    with pytest.raises(RegistrationError, match=text) as caught:
        Registration("orders", ME, via=Etcd("/o/", server.url)).__enter__()
    assert "127.0.0.1:8080 as orders could not be registered: " in str(caught.value)
    assert server.hits == 1


def test_keep_alive_that_fails(servers):
    """An error in a response with status 200 is not a lost lease: the same lease is kept alive
    later, and no other lease is granted."""
    failed = threading.Event()

    def answers(connection, request):
        if request.target.endswith("/keepalive") and not failed.is_set():
            failed.set()
            connection.answer(200, b'{"error": {"grpc_code": 14, "message": "no leader"}}')
        elif request.target.endswith("/keepalive"):
            connection.answer(200, b'{"result": {"ID": "7", "TTL": "60"}}')
        else:
            connection.answer(200, b'{"ID": "7", "TTL": "60", "count": "1"}')

    (server,) = servers(answers)
    options = RegistrarOptions(ME, 60, None, time.monotonic)
    registrar = EtcdRegistrar(Etcd("/o/", server.url), options)
    registrar.put(5)
    with pytest.raises(UpdateError, match=r"answered /v3/lease/keepalive with an error: no leader"):
        registrar.put(5)
    registrar.put(5)
    registrar.put(5)
    assert targets(server) == ["grant", "put", *["keepalive"] * 2, "range", "keepalive", "range"]


def test_lost_answer(servers):
    """If the answer to the key is lost, entering fails, and the lease is revoked."""

    def answers(connection, request):
        if request.target.endswith("/put"):
            connection.close()
        else:
            connection.answer(200, b'{"ID": "7", "TTL": "60"}')

    (server,) = servers(answers)
    with pytest.raises(RegistrationError):
        Registration("orders", ME, via=Etcd("/o/", server.url)).__enter__()
    assert targets(server) == ["grant", "put", "revoke"]


def test_lease_that_has_expired_at_the_end(servers, caplog):
    """A lease that etcd does not know at the end is as good as revoked."""

    def answers(connection, request):
        if request.target.endswith("/revoke"):
            connection.answer(404, b'{"error": "etcdserver: requested lease not found"}')
        else:
            connection.answer(200, b'{"ID": "7", "TTL": "60"}')

    (server,) = servers(answers)
    with Registration("orders", ME, via=Etcd("/o/", server.url)):
        pass
    assert not caplog.messages


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"instance": Instance("0.0.0.0", 80)}, ValueError, "instance"),
        ({"instance": Instance("a", 80, addresses=["::"])}, ValueError, "instance"),
        ({"instance": Instance("10.0.0.1", 80, metadata={"a": object()})}, TypeError, "instance"),
        ({"instance": Instance("10.0.0.1", 80, metadata={"a": math.nan})}, TypeError, "instance"),
        ({"identity": ""}, ValueError, "identity"),
        ({"identity": "a/b"}, ValueError, "identity"),
        ({"identity": "a\n"}, ValueError, "identity"),
        ({"identity": 5}, TypeError, "identity"),
    ],
)
def test_bad_registration(arguments, error, name):
    """K1: what no key can have is refused at construction by an error that names the argument."""
    given = {"instance": ME, **arguments}
    with pytest.raises(error, match=rf"^{name}\b"):
        Registration("orders", given.pop("instance"), via=Etcd("/o/"), **given)


def script(member, prefix, body):
    """Run in a process of its own, after `one` was made."""
    begin = f"""
import os, signal, sys, lbclient
via = lbclient.Etcd({prefix!r}, {member.url!r})
one = lbclient.Registration("orders", lbclient.Instance("127.0.0.1", 80), via=via)
"""
    command = [sys.executable, "-u", "-c", begin + body]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@NEEDED
def test_child_leaves_the_parents_key(member, prefix):
    """A forked child does not remove its parent's key, and may register itself with a key of its
    own."""
    body = """
with one:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    with one:
        pass
os._exit(3)
"""
    ended = script(member, prefix, body)
    assert (ended.stderr, ended.stdout) == ("", "3\n")
    assert len(member.keys(prefix)) == 1


@NEEDED
@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "status", "keys"),
    [("", 0, 1), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, 0)],
    ids=["end", "sigterm"],
)
def test_end_of_a_process(member, prefix, end, status, keys):
    """A process that ends while it is registered, and watches, ends normally, and its key ends with
    its lease. SIGTERM removes the key, and ends the process as it would without us."""
    body = f"""
balancer = lbclient.Balancer(via, allow=["127.0.0.0/8"])
one.__enter__()
balancer.refresh()
{end}
"""
    ended = script(member, prefix, body)
    assert (ended.stderr, ended.returncode) == ("", status)
    assert len(member.keys(prefix)) == keys


@pytest.mark.slow
def test_failures_are_not_answered_with_a_flood(servers):
    """While all requests fail, a member is asked at most about once a second."""
    (server,) = servers(says(503))
    arrived = []
    server.behaviour = lambda connection, _: (
        arrived.append(time.monotonic()),
        connection.answer(503),
    )
    with Balancer(Etcd("/o/", server.url)) as balancer:
        with pytest.raises(DiscoveryError):
            balancer.call(str)
        for _ in range(3):
            assert server.arrived.acquire(timeout=LIMIT)
    assert min(later - one for one, later in pairwise(arrived)) > 0.89


# Users and certificates


@NEEDED
@pytest.mark.slow
def test_users(tmp_path):
    """With users, a role with permission for the prefix is enough to watch and to register; a token
    that has expired, or is older than a change of the users, is renewed."""
    with support.Etcd(tmp_path, auth_token_ttl=1) as member:
        member.with_users("/orders/")
        source = Etcd("/orders/", member.url, "shop", "shop-pw")
        one = Registration("orders", ME, via=source, ttl=60)
        with Watching(source) as watching, one:
            watching.until("127.0.0.1:8080")
            registrar = one._stay.record._registrar
            tokens = {registrar._cluster._token}
            registrar._cluster._token = "expired"
            one._stay.record.renew()
            tokens.add(registrar._cluster._token)
            assert len(tokens) == 2
            member.log_in()
            member.call("auth/user/add", name="other", password="x")
            one._stay.record.renew()
            member.put("/orders/a", "10.0.0.1:80")
            watching.until("10.0.0.1:80", "127.0.0.1:8080")
        assert set(member.keys("/orders/")) == {"/orders/a"}


@NEEDED
@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_expired_token_of_a_watch(tmp_path):
    """A watch that is begun again with a token that has expired gets a new one."""
    with support.Etcd(tmp_path, auth_token_ttl=1) as member:
        member.with_users("/orders/")
        with (
            Tunnel(member.url) as tunnel,
            Watching(Etcd("/orders/", tunnel.url, "shop", "shop-pw")) as watching,
        ):
            watching.answer()
            watching.alive()
            with tunnel.held():
                time.sleep(2.5)  # etcd forgets the token; a request with it would renew it
            member.log_in()
            member.put("/orders/a", "10.0.0.1:80")
            watching.until("10.0.0.1:80")


@NEEDED
@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "account", "text"),
    [
        ("/orders/", (), "pass user= and password="),
        ("/orders/", ("shop", "wrong"), "authentication failed"),
        ("/orders/", ("nobody", "wrong"), "authentication failed"),
        ("/other/", ("shop", "shop-pw"), "needs a role with permission"),
    ],
)
def test_users_that_are_refused(with_users, prefix, account, text):
    """An error says what is wrong with an account, and shows no password."""
    source = Etcd(prefix, with_users.url, *account)
    with Watching(source) as watching:
        failure = watching.failure()
    assert text in failure
    with pytest.raises(RegistrationError) as caught:
        Registration("orders", ME, via=source).__enter__()
    for password in account[1:]:
        assert password not in failure + str(caught.value)


@pytest.fixture(scope="module")
def with_users(tmp_path_factory):
    with support.Etcd(tmp_path_factory.mktemp("users")) as one:
        one.with_users("/orders/")
        yield one


@NEEDED
@pytest.mark.skipif(shutil.which("etcdctl") is None, reason="etcdctl is not installed")
@pytest.mark.slow
def test_roles_of_the_page(tmp_path, monkeypatch):
    """With the roles of docs/etcd.md, a client may watch and not register, and a service may do
    both."""
    block = re.search(r"^```console\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    with support.Etcd(tmp_path) as member:
        monkeypatch.setenv("ETCDCTL_API", "3")
        monkeypatch.setenv("ETCDCTL_ENDPOINTS", member.url)
        commands = ["user add root:root-pw", "user grant-role root root", "auth enable"]
        commands = [*block.splitlines(), *(f"etcdctl {one}" for one in commands)]
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        where = "/services/orders/", member.url
        client = Etcd(*where, "orders-client", "the-clients-password")
        service = Etcd(*where, "orders-service", "the-services-password")
        with pytest.raises(RegistrationError, match="permission denied"):
            Registration("orders", ME, via=client).__enter__()
        with Watching(client) as watching, Registration("orders", ME, via=service):
            watching.until("127.0.0.1:8080")


@NEEDED
def test_user_for_a_cluster_without_users(member, prefix):
    """An account for a cluster that has none is not used."""
    source = Etcd(prefix, member.url, "shop", "shop-pw")
    with Watching(source) as watching, Registration("orders", ME, via=source):
        watching.until("127.0.0.1:8080")


@NEEDED
@pytest.mark.slow
def test_tls(tmp_path):
    """Over TLS, the member's certificate is verified with `ca`; another authority is an error."""
    right = Certificates(tmp_path, "127.0.0.1")
    (other := tmp_path / "other").mkdir()
    wrong = Certificates(other, "127.0.0.1")
    with support.Etcd(tmp_path, tls=right) as member:
        source = Etcd("/orders/", member.url, ca=right.authority)
        with Watching(source) as watching, Registration("orders", ME, via=source):
            watching.until("127.0.0.1:8080")
        for ca in (wrong.authority, None):
            with Watching(Etcd("/orders/", member.url, ca=ca)) as watching:
                assert "is not trusted" in watching.failure()
        with (
            pytest.raises(RegistrationError, match="is not trusted"),
            Registration("orders", ME, via=Etcd("/orders/", member.url, ca=wrong.authority)),
        ):
            pass
