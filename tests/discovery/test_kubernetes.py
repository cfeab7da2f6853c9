"""Kubernetes: what EndpointSlices mean, how they are listed and watched, and clients of Services.

`tests/support/kubernetes.py` is the API server of these tests; `test_kubernetes_double.py` keeps it
honest.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import queue
import random
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

import lbclient
from lbclient import Answer, DiscoveryError, Kubernetes
from lbclient._internal.blocking import run_blocking
from lbclient.discovery.pushed import kubernetes
from lbclient.discovery.pushed.kubernetes import _Slices, from_url
from tests.support.faults import authority, certified
from tests.support.kubernetes import ApiServer, a_slice, endpoint
from tests.support.slow import shares
from tests.support.watchers import until

TOKEN = "s3cr3t.t0k3n"
LIMIT = 20


# What slices mean


def slices(*documents, port="http"):
    """The slices of these documents, as a list has them."""
    made = _Slices("orders.shop", port)
    made.replace(dict(made.parse(one, "a test") for one in documents))
    return made


def instances(*documents, port="http"):
    answer = slices(*documents, port=port).answer()
    assert answer.ttl is None
    return [str(one) for one in answer.instances]


def refused(*documents, port="http"):
    answer = slices(*documents, port=port).answer()
    return [f"{one.record}: {one.reason}" for one in answer.refused]


@pytest.mark.parametrize(
    ("conditions", "used"),
    [
        ({}, True),
        ({"ready": True}, True),
        ({"ready": None}, True),
        ({"ready": False}, False),
        ({"ready": True, "serving": None, "terminating": None}, True),
        ({"ready": True, "serving": False}, True),
        ({"ready": True, "terminating": True}, False),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"serving": True}, True),
    ],
)
def test_conditions(conditions, used):
    """An endpoint is used if it is ready and not terminating; absent conditions have their
    defaults."""
    document = a_slice("a", ["10.0.0.1", endpoint("10.0.0.2", **conditions)])
    assert instances(document) == ["10.0.0.1:8080", *["10.0.0.2:8080"] * used]
    del document["endpoints"][0]["conditions"]
    assert instances(document)[0] == "10.0.0.1:8080"


def test_metadata():
    """Zone, node and pod are metadata, as far as they are known."""
    document = a_slice(
        "a", [endpoint("10.0.0.1", pod="orders-1", zone="eu-1a", node="n1"), "10.0.0.2"]
    )
    document["endpoints"][1]["targetRef"] = {"kind": "Node", "name": "n2", "uid": "u"}
    document["endpoints"][1]["hints"] = {"forZones": [{"name": "eu-1b"}]}
    found = slices(document).answer().instances
    assert [one.metadata for one in found] == [
        {"zone": "eu-1a", "node": "n1", "pod": "orders-1"},
        {},
    ]


@pytest.mark.parametrize(
    ("port", "ports", "result"),
    [
        (None, {"": 80}, 80),
        (None, {"web": 81}, 81),
        ("web", {"web": 82, "admin": 83}, 82),
        (83, {"web": 82, "admin": 83}, 83),
        (84, [], 84),
        (84, None, 84),
        (None, [{"name": "udp", "protocol": "UDP", "port": 53}, {"name": "tcp", "port": 54}], 54),
        (
            None,
            {"web": 82, "admin": 83},
            "the ports of its pods are web (82), admin (83); pass port= with one of them",
        ),
        ("http", {"web": 82}, "there is no port 'http'; the ports of its pods are web (82)"),
        (80, {"": 8080}, "there is no port 80; the ports of its pods are 8080"),
        (None, [], "its EndpointSlice has no TCP port; pass port="),
        ("web", None, "there is no port 'web'; its EndpointSlice has no TCP port"),
        (
            None,
            [{"name": "a", "port": None}, {"name": "b", "port": 0}, {"name": "c", "port": True}, 7],
            "its EndpointSlice has no TCP port; pass port=",
        ),
    ],
)
def test_ports(port, ports, result):
    """The port is chosen by its name or number in each slice, and is not needed if there is
    one."""
    document = a_slice("a", ["10.0.0.1", "10.0.0.2"], ports)
    if isinstance(result, int):
        assert instances(document, port=port) == [f"10.0.0.{n}:{result}" for n in (1, 2)]
        assert refused(document, port=port) == []
    else:
        assert instances(document, port=port) == []
        assert refused(document, port=port) == [
            f"a: {result}",
            "orders.shop: it has no ready endpoint",
        ]


def test_a_named_port_may_differ_in_each_slice():
    """A port with one name may have another number in another slice, as during a rollout."""
    found = instances(a_slice("a", ["10.0.0.1"], 80), a_slice("b", ["10.0.0.2"], 81))
    assert found == ["10.0.0.1:80", "10.0.0.2:81"]


def test_slices_are_merged():
    """The instances are those of all slices. An endpoint in two slices counts once, and is used if
    it is ready in one of them."""
    one = a_slice("a", ["10.0.0.1", "10.0.0.2", endpoint("10.0.0.3", ready=False)])
    two = a_slice("b", ["10.0.0.3", endpoint("10.0.0.2", ready=False), "10.0.0.1"])
    assert instances(one, two) == ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]
    assert instances(two, one) == ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]


def test_both_families_of_a_pod_are_one_instance():
    """The IPv4 and IPv6 addresses of a pod belong to one instance; other addresses have their
    own."""
    four = a_slice("a", [endpoint("10.0.0.1", pod="p1", zone="z"), endpoint("10.0.0.2", pod="p2")])
    six = a_slice(
        "b",
        [endpoint("fd00::1", pod="p1"), endpoint("fd00::3", pod="p3"), "fd00::4"],
        family="IPv6",
    )
    made = slices(four, six)
    first, *others = made.answer().instances
    assert (str(first), first.addresses) == ("10.0.0.1:8080", ("10.0.0.1", "fd00::1"))
    assert first.metadata == {"zone": "z", "pod": "p1"}
    assert [str(one) for one in others] == ["10.0.0.2:8080", "[fd00::3]:8080", "[fd00::4]:8080"]
    assert made.answer().instances[0] is first
    assert instances(six) == ["[fd00::1]:8080", "[fd00::3]:8080", "[fd00::4]:8080"]


def test_names():
    """Endpoints of the addressType FQDN are names."""
    document = a_slice("a", ["One.example.com", "bad_..name"], family="FQDN")
    assert instances(document) == ["one.example.com:8080"]
    assert refused(document)[0].startswith("bad_..name: the address must be a host name")


def test_addresses_that_cannot_be_used():
    """An endpoint without a valid address of its family is refused, and the others are used."""
    document = a_slice("a", ["10.0.0.1", "fd00::1", "nonsense\n", ""])
    document["endpoints"] += [{"addresses": []}, {"addresses": None}, {}, 7, {"addresses": [8]}]
    assert instances(document) == ["10.0.0.1:8080"]
    found = refused(document)
    assert found[0] == "fd00::1: it is not of the family IPv4"
    assert found[1].startswith(r"nonsense\n: ")
    assert len(found) == 8
    document["addressType"] = "IPX"
    assert instances(document) == []


def test_many_refused_endpoints():
    """At most a hundred refused endpoints are listed one by one."""
    found = slices(a_slice("a", ["10.0.0.1", *["x"] * 150])).answer().refused
    assert len(found) == 101
    assert found[-1].record == "50 more"


@pytest.mark.parametrize(
    ("documents", "why"),
    [
        ([], "it has no EndpointSlice; does a Service of this name exist?"),
        ([a_slice("a", [])], "it has no ready endpoint"),
        (
            [a_slice("a", [endpoint("10.0.0.1", ready=False)] * 2, None)],
            "none of its 2 endpoints is ready",
        ),
    ],
)
def test_no_instances(documents, why):
    """An answer without instances says why there are none."""
    assert instances(*documents) == []
    assert refused(*documents) == [f"orders.shop: {why}"]


def test_a_change_of_one_slice_is_parsed_alone():
    """Instances that have not changed are the same objects, also in the slice that has changed."""
    made = _Slices("orders.shop", "http")
    documents = [a_slice(f"s{n}", [f"10.0.{n}.{m}" for m in range(100)]) for n in range(3)]
    for one in documents:
        one["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    made.replace(dict(made.parse(one, "a test") for one in documents))
    before = made.answer().instances
    documents[1]["endpoints"].pop()
    documents[1]["metadata"]["resourceVersion"] = "2"
    made.replace(dict(made.parse(one, "a test") for one in documents))
    after = made.answer().instances
    assert [id(one) for one in after] == [id(one) for one in before if str(one) in map(str, after)]
    documents[1]["endpoints"][0]["zone"] = "z"
    documents[1]["metadata"]["resourceVersion"] = "3"
    made.replace(dict(made.parse(one, "a test") for one in documents))
    (changed,) = {id(one): one for one in made.answer().instances if one.metadata}.values()
    assert (str(changed), changed.metadata) == ("10.0.1.0:8080", {"zone": "z"})


# How they are listed and watched


class Seen:
    """What a watch sends, in order."""

    def __init__(self, source):
        self._got = queue.SimpleQueue()
        self.lives = 0
        self._cancel = source.start(self._got.put, self._alive, self._got.put)

    def _alive(self):
        self.lives += 1

    def next(self):
        """The instances of the next answer; or the error."""
        got = self._got.get(timeout=LIMIT)
        return sorted(map(str, got.instances)) if isinstance(got, Answer) else got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._cancel()
        while self.next() is not None:
            pass


@pytest.fixture
def cluster(monkeypatch):
    """An API server; the pauses between requests are shorter than users have them."""
    monkeypatch.setattr(kubernetes, "_APART", 0.1)
    monkeypatch.setattr(kubernetes, "_AGAIN", 0.05)
    with ApiServer() as server:
        yield server


def orders(cluster, **options):
    return Kubernetes("orders", namespace="shop", server=cluster.url, **options)


def test_changes_are_sent(cluster):
    """Each change of a slice is sent with all instances. Slices of other Services and namespaces do
    not count."""
    cluster.put(a_slice("a", ["10.0.0.1"]))
    cluster.put(a_slice("x", ["10.9.9.9"], service="payments"))
    cluster.put(a_slice("y", ["10.9.9.9"], namespace="test"))
    with Seen(orders(cluster)) as seen:
        assert seen.next() == ["10.0.0.1:8080"]
        cluster.wait_until_watched()
        cluster.put(a_slice("b", ["10.0.0.2"]))
        assert seen.next() == ["10.0.0.1:8080", "10.0.0.2:8080"]
        cluster.put(a_slice("x", ["10.9.9.8"], service="payments"))
        cluster.put(a_slice("a", ["10.0.0.1", endpoint("10.0.0.3", terminating=True)]))
        assert seen.next() == ["10.0.0.1:8080", "10.0.0.2:8080"]
        cluster.delete("a")
        assert seen.next() == ["10.0.0.2:8080"]
        cluster.put(a_slice("b", ["10.0.0.2"], service="other"))
        assert seen.next() == []
    assert [one.verb for one in cluster.asked] == ["list", "watch"]


def test_lists_come_in_pages(cluster):
    """A long list is asked for in pages."""
    for n in range(120):
        cluster.put(a_slice(f"s{n:03}", [f"10.0.0.{n}"]))
    with Seen(orders(cluster)) as seen:
        assert len(seen.next()) == 120
    lists = [one for one in cluster.asked if one.verb == "list"]
    assert [one.query["limit"] for one in lists] == ["50"] * 3
    assert ["continue" in one.query for one in lists] == [False, True, True]


def test_a_watch_continues_where_it_ended(cluster):
    """A watch that the server ends is continued from the last version, without a new list; a
    bookmark is a version, too."""
    cluster.put(a_slice("a", ["10.0.0.1"]))
    with Seen(orders(cluster)) as seen:
        assert seen.next() == ["10.0.0.1:8080"]
        cluster.wait_until_watched()
        lives = seen.lives
        cluster.touch()
        cluster.bookmark()
        until(lambda: seen.lives > lives)
        cluster.end_watches()
        cluster.compact()  # the version of the list is gone
        cluster._oldest -= 1  # but not that of the bookmark
        cluster.put(a_slice("a", ["10.0.0.2"]))
        assert seen.next() == ["10.0.0.2:8080"]
    assert [one.verb for one in cluster.asked] == ["list", "watch", "watch"]
    first, second = (int(one.query["resourceVersion"]) for one in cluster.asked[1:])
    assert second > first


@pytest.mark.parametrize("how", ["event", "status"])
def test_a_version_that_is_gone(cluster, how):
    """If the server does not know a version any more (410), the slices are listed again."""
    cluster.gone_as = how
    cluster.put(a_slice("a", ["10.0.0.1"]))
    cluster.put(a_slice("b", ["10.0.0.2"]))
    with Seen(orders(cluster)) as seen:
        assert seen.next() == ["10.0.0.1:8080", "10.0.0.2:8080"]
        cluster.wait_until_watched()
        cluster.bookmark()
        cluster.end_watches()
        cluster.delete("a")
        cluster.compact()
        assert seen.next() == ["10.0.0.2:8080"]
    assert [one.verb for one in cluster.asked][:4] == ["list", "watch", "watch", "list"]


def test_a_connection_that_breaks(cluster):
    """A watch whose connection breaks is continued."""
    cluster.put(a_slice("a", ["10.0.0.1"]))
    with Seen(orders(cluster)) as seen:
        assert seen.next() == ["10.0.0.1:8080"]
        cluster.wait_until_watched()
        cluster.put(a_slice("a", ["10.0.0.2"]))
        assert seen.next() == ["10.0.0.2:8080"]
        cluster.drop_connections()
        cluster.put(a_slice("a", ["10.0.0.3"]))
        assert seen.next() == ["10.0.0.3:8080"]
    assert [one.verb for one in cluster.asked] == ["list", "watch", "watch"]


def failure(source):
    """The error of a watch that fails."""
    with Seen(source) as seen:
        while not isinstance(error := seen.next(), Exception):
            pass
        seen._cancel = lambda: seen._got.put(None)
    assert isinstance(error, DiscoveryError)
    assert TOKEN not in repr(error)
    return str(error)


def test_a_token_is_refused(cluster):
    """The error says that the token was refused, or that one is required; no error shows it."""
    cluster.tokens = {TOKEN}
    assert (
        failure(orders(cluster))
        == f"Kubernetes at {cluster.url} requires a token (401): Unauthorized"
    )
    cluster.tokens = {"other"}
    assert failure(orders(cluster, token=TOKEN)).startswith(
        f"Kubernetes at {cluster.url} refused the token (401)"
    )
    assert TOKEN not in repr(orders(cluster, token=TOKEN))


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_rule_is_missing(cluster, verb):
    """The error of a missing RBAC rule says which rule to add."""
    cluster.allowed = {("list", "endpointslices"), ("watch", "endpointslices")}
    cluster.allowed.remove((verb, "endpointslices"))
    said = failure(orders(cluster))
    assert "(403): endpointslices.discovery.k8s.io is forbidden: User" in said
    assert f"cannot {verb} resource" in said
    assert said.endswith(
        '; the service account needs the verbs "list" and "watch" for "endpointslices" of the '
        'group "discovery.k8s.io" in the namespace "shop"'
    )


def test_an_old_cluster(cluster):
    """The error of a server without EndpointSlices says which version has them."""
    cluster.hook = lambda handler, _: handler.send(404, {"message": "not found"}) or True
    assert "(404): not found; EndpointSlices need Kubernetes 1.21" in failure(orders(cluster))


def test_tls(tmp_path):
    """The certificate of the API server is checked with `ca`."""
    path = tmp_path / "ca.crt"
    authority().cert_pem.write_to_path(path)
    with ApiServer(certified("127.0.0.1")) as cluster:
        cluster.tokens = {TOKEN}
        cluster.put(a_slice("a", ["10.0.0.1"]))
        with Seen(orders(cluster, ca=path, token=TOKEN)) as seen:
            assert seen.next() == ["10.0.0.1:8080"]
            cluster.wait_until_watched()
        asked = len(cluster.asked)
        trustme.CA().cert_pem.write_to_path(path)
        assert "is not trusted: " in failure(orders(cluster, ca=path, token=TOKEN))
        assert "; pass ca= with the file" in failure(orders(cluster, token=TOKEN))
        assert len(cluster.asked) == asked


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """The files that a pod has."""
    monkeypatch.setattr(kubernetes, "_ACCOUNT", tmp_path)
    monkeypatch.setattr(kubernetes, "_AGAIN", 0.05)
    authority().cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "namespace").write_text("shop")
    (tmp_path / "token").write_text(TOKEN)
    with ApiServer(certified("127.0.0.1")) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        server.tokens = {TOKEN}
        server.put(a_slice("a", ["10.0.0.1"]))
        yield tmp_path, server


def test_in_a_pod(pod):
    """In a pod, the server, the token, the authority and the namespace are those of the pod. The
    token is read again for each request."""
    path, server = pod
    with Seen(Kubernetes("orders")) as seen:
        assert seen.next() == ["10.0.0.1:8080"]
        server.wait_until_watched()
        server.tokens = {"n3w"}
        (path / "token").write_text("n3w\n")
        server.bookmark()
        server.end_watches()
        server.put(a_slice("a", ["10.0.0.2"]))
        assert seen.next() == ["10.0.0.2:8080"]
    assert [one.headers["authorization"] for one in server.asked[-2:]] == [
        f"Bearer {TOKEN}",
        "Bearer n3w",
    ]
    (path / "token").unlink()
    assert failure(Kubernetes("orders")) == (
        "the token of the pod's service account cannot be read from "
        f"{path / 'token'}: No such file or directory"
    )


@pytest.mark.usefixtures("pod")
def test_a_token_of_the_pod_goes_to_no_other_server(cluster):
    """With `server`, the token of the pod is not sent."""
    cluster.put(a_slice("a", ["10.0.0.1"]))
    with Seen(orders(cluster)) as seen:
        assert seen.next() == ["10.0.0.1:8080"]
    assert "authorization" not in cluster.asked[0].headers


def test_outside_a_cluster(monkeypatch):
    """Without `server`, a program that is not in a pod gets an error that says what to do."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    said = failure(Kubernetes("orders"))
    assert said.endswith("pass server=, for example 'http://127.0.0.1:8001' with `kubectl proxy`")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "x")
    assert "Kubernetes: KUBERNETES_SERVICE_HOST and _PORT: " in failure(Kubernetes("orders"))


@pytest.mark.usefixtures("pod")
def test_server_in_the_environment(cluster, monkeypatch):
    """Outside a pod, the URL of the API server may be in KUBERNETES_MASTER. In a pod, it is not
    read."""
    cluster.put(a_slice("a", ["10.0.0.7"]))
    monkeypatch.setenv("KUBERNETES_MASTER", cluster.url)
    with Seen(Kubernetes("orders", namespace="shop")) as seen:
        assert seen.next() == ["10.0.0.1:8080"]
    assert not cluster.asked
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with Seen(Kubernetes("orders", namespace="shop")) as seen:
        assert seen.next() == ["10.0.0.7:8080"]
    assert "authorization" not in cluster.asked[0].headers
    monkeypatch.setenv("KUBERNETES_MASTER", f"http://u:{TOKEN}@127.0.0.1:1")
    said = failure(Kubernetes("orders"))
    assert said == "Kubernetes: KUBERNETES_MASTER must not contain a user name or password"


# Without I/O: hours of a watch, and servers that answer nonsense


class Cluster:
    """The I/O of a session, in virtual time. `answer(request)` returns a status and the chunks of a
    body: bytes, seconds of silence, or an exception.
    """

    def __init__(self, answer):
        self.now = 0.0
        self.asked = []
        self._answer = answer
        self._bodies = {}

    def clock(self):
        return self.now

    async def send(self, request, _):
        url = urlsplit(str(request.url))
        self.asked.append((self.now, "watch" if "watch=true" in url.query else "list"))
        status, chunks = self._answer(dict(request.url.params))
        response = httpx.Response(status)
        self._bodies[id(response)] = iter(chunks)
        return response

    async def read(self, response, seconds):
        for one in self._bodies[id(response)]:
            if isinstance(one, BaseException):
                raise one
            if isinstance(one, bytes):
                return one
            if one > seconds:
                self.now += seconds
                raise TimeoutError
            self.now += one
            seconds -= one
        return b""

    async def release(self, response):
        del self._bodies[id(response)]

    async def sleep(self, seconds):
        self.now += seconds

    async def close(self):
        pass

    def follow(self, update=lambda _: None, alive=lambda: None, port="http"):
        """Run one watch of `orders` until it fails, and return the error."""
        source = Kubernetes("orders", namespace="shop", server="http://k8s", port=port, token=TOKEN)
        api = source.session()
        api._io, api.clock, api.rng = self, self.clock, random.Random(1)
        try:
            run_blocking(lambda: source.follow(api, update, alive))
        except DiscoveryError as error:
            return error
        raise AssertionError

    def watched_on(self, update=lambda _: None, alive=lambda: None):
        """Start a watch again, a second after it has failed, until the end of the test. Yields the
        errors."""
        with contextlib.suppress(Over):
            while True:
                yield self.follow(update, alive)
                self.now += 1.0

    def most_in_ten_seconds(self):
        times = [at for at, _ in self.asked]
        return max(sum(at <= one < at + 10 for one in times) for at in times)


class Over(Exception):
    """The end of a test."""


def listed(*documents, version="7", more=""):
    metadata = {"resourceVersion": version, "continue": more}
    return 200, [json.dumps({"items": documents, "metadata": metadata}).encode()]


def line(kind, document):
    return json.dumps({"type": kind, "object": document}).encode() + b"\n"


GONE = {"kind": "Status", "code": 410, "message": "too old resource version: 1 (2)"}


@pytest.mark.parametrize(
    ("watch", "said"),
    [
        ((200, [line("ERROR", GONE)]), None),
        ((410, [json.dumps(GONE).encode()]), None),
        ((200, []), "ended a watch at once"),
        ((200, [httpx.ReadError("reset")]), "failed: reset"),
        ((200, [10_000]), None),
        ((200, [60]), None),
        ((200, [60, httpx.ReadError("reset")]), None),
        ((403, [b'{"message": "no"}']), "does not permit"),
        ((500, []), "status 500"),
        ((200, [line("ERROR", {"code": 500, "message": "broken"})]), "ended the watch: broken"),
        ((200, [line("ERROR", None)]), "ended the watch: no reason given"),
        ((200, [line("FUNNY", {})]), "an unknown kind of event"),
        ((200, [b"nonsense\n"]), "invalid JSON"),
        ((200, [line("ADDED", {"metadata": {}})]), "an EndpointSlice without a name"),
        ((200, [line("BOOKMARK", {})]), None),
        ((200, [line("BOOKMARK", {}), httpx.ReadError("reset")]), None),
        ((200, [line("BOOKMARK", {}), 1, 149, 1]), None),
    ],
)
def test_a_failing_watch_is_not_hammered(watch, said):
    """Whatever a watch answers at once, there is at most one request a second, also if the watch is
    started again after a second."""
    end = 600

    def answer(params):
        if cluster.now > end:
            raise Over
        return watch if "watch" in params else listed(a_slice("a", ["10.0.0.1"]))

    cluster = Cluster(answer)
    errors = [str(one) for one in cluster.watched_on()]
    assert errors == [one for one in errors if said is not None and said in one]
    assert bool(errors) == (said is not None)
    assert cluster.most_in_ten_seconds() <= 11  # the list and the first watch come together
    assert len(cluster.asked) >= 4


def test_a_watch_is_continued_at_once():
    """Between a watch that the server ends and the next one there is no pause in which a change
    would wait."""

    def answer(params):
        if cluster.now > 600:
            raise Over
        return (200, [60]) if "watch" in params else listed(a_slice("a", ["10.0.0.1"]))

    cluster = Cluster(answer)
    assert list(cluster.watched_on()) == []
    assert [at for at, what in cluster.asked if what == "watch"] == [60 * n for n in range(12)]


def test_a_day():  # noqa: C901  # a server has many ways
    """During a day of watches with bookmarks, versions that are gone, broken connections and silent
    servers, each silence ends within its bound, and no change is lost."""
    dice = random.Random(5)
    state = {"version": 100, "ports": 0}

    def current():
        return a_slice("a", ["10.0.0.1"], 1 + state["ports"] % 60_000)

    def watch(params):
        if dice.random() < 0.2:
            yield line("ERROR", GONE)
            return
        seconds = float(params["timeoutSeconds"])
        while seconds > 0:
            pause = dice.uniform(1, 60)
            seconds -= pause
            yield pause
            what = dice.random()
            state["version"] += 1
            if what < 0.1:
                yield httpx.ReadError("reset")
            elif what < 0.15:
                yield 1e9
            elif what < 0.5:
                state["ports"] += 1
                document = current()
                document["metadata"]["resourceVersion"] = str(state["version"])
                yield line("MODIFIED", document)
            else:
                version = {"metadata": {"resourceVersion": str(state["version"])}}
                yield line("BOOKMARK", version)

    def answer(params):
        if cluster.now > 24 * 3600:
            raise Over
        if "watch" in params:
            return 200, watch(params)
        return listed(current(), version=str(state["version"]))

    ports, lives = [], [0.0]
    cluster = Cluster(answer)

    def update(answer):
        ports.append(answer.instances[0].port)
        lives.append(cluster.now)

    assert list(cluster.watched_on(update, lambda: lives.append(cluster.now)))
    assert ports == sorted(ports)
    assert ports[-1] == 1 + state["ports"]
    assert max(later - one for one, later in itertools.pairwise(lives)) < 320
    assert cluster.most_in_ten_seconds() <= 11


def test_a_list_without_end():
    """A list ends after a bounded number of pages."""
    cluster = Cluster(lambda _: listed(more="again"))
    assert "sent a list of more than 200 pages" in str(cluster.follow())


JUNK = [None, True, 0, -1, 1.5, 10**400, "", "x" * 400, "\x00\n", [], {}, [[[]]], {"a": {}}]
JUNK += ["127.0.0.1", "169.254.169.254", "::1", "a.b", TOKEN, "410", 410]


def spoil(document, dice):
    """Replace a part of a document, or leave the part out."""
    at = document
    while True:
        key = dice.choice(sorted(at)) if isinstance(at, dict) else dice.randrange(len(at))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or dice.random() < 0.2:
            break
        at = inner
    if dice.random() < 0.2:
        del at[key]
    else:
        at[key] = dice.choice(JUNK)


def some_slice(dice):
    """A slice, most of them with a part that is anything."""
    family = dice.choice(["IPv4", "IPv6", "FQDN"])
    addresses = [dice.choice(["10.0.0.1", "127.0.0.1", "fd00::1", "a.b"]) for _ in range(3)]
    made = a_slice(
        dice.choice("abc"), [endpoint(one, pod="p", zone="z") for one in addresses], family=family
    )
    made["metadata"] |= {"uid": "u", "resourceVersion": str(dice.randrange(9))}
    if dice.random() < 0.8:
        spoil(made, dice)
    return made


def some_event(dice):
    kinds = ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", *["ERROR"] * (dice.random() < 0.1)]
    event = {"type": dice.choice(kinds), "object": some_slice(dice)}
    event["object"]["message"] = f"unknown token {TOKEN}"
    if dice.random() < 0.1:
        spoil(event, dice)
    data = json.dumps(event).encode()
    return (data[: dice.randrange(len(data))] if dice.random() < 0.02 else data) + b"\n"


@shares
def test_any_documents(share):
    """Whatever documents a server sends, the result is answers and DiscoveryErrors, and none shows
    the token."""
    dice = random.Random(int(share * 100))
    documents = answers = 0

    def answer(params):
        nonlocal documents
        if cluster.now > 100:
            raise Over
        if "watch" in params:
            documents += 20
            return 200, [*(some_event(dice) for _ in range(20)), Over()]
        documents += 3
        found = {
            "items": [some_slice(dice) for _ in range(3)],
            "metadata": {"resourceVersion": "1"},
        }
        if dice.random() < 0.2:
            spoil(found, dice)
        return 200, [json.dumps(found).encode()]

    def update(got):
        nonlocal answers
        answers += 1
        assert len(set(got.instances)) == len(got.instances)

    while documents < 100_000 * share:
        cluster = Cluster(answer)
        with contextlib.suppress(Over):
            error = cluster.follow(update, port=None)
            assert str(error).isprintable()
            assert TOKEN not in str(error)
    assert answers > documents / 10


def test_what_a_server_repeats_of_a_token(cluster):
    """If the server repeats the token in its own texts, no error shows it."""
    said = {"message": f"unknown token {TOKEN}", "code": 500}
    cluster.hook = lambda handler, _: handler.send(500, said) or True
    assert "unknown token ..." in failure(orders(cluster, token=TOKEN))
    cluster.hook = None
    cluster.put(a_slice("a", ["10.0.0.1"]))

    def ends(handler, asked):
        if asked.verb != "watch":
            return False
        handler.begin()
        handler._event("ERROR", said)
        handler.chunk(b"")
        return True

    cluster.hook = ends
    assert "ended the watch: unknown token ..." in failure(orders(cluster, token=TOKEN))


# What users pass


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http+k8s://orders.shop:http", ("orders", "shop", "http")),
        ("http+k8s://orders.shop:8080", ("orders", "shop", 8080)),
        ("https+k8s://orders.shop", ("orders", "shop", None)),
        ("http+k8s://orders", ("orders", "default", None)),
        ("http+k8s://orders:web-2/api/v1", ("orders", "default", "web-2")),
    ],
)
def test_urls(url, expected):
    """The URL of a Service has its name, and its namespace and port if needed."""
    source = from_url(urlsplit(url), {})
    assert (source.service, source.namespace, source.port) == expected
    with lbclient.Balancer(url) as balancer:
        assert balancer.snapshot().service == f"{expected[0]}.{expected[1]}"


@pytest.mark.parametrize(
    "url",
    [
        "http+k8s://",
        "http+k8s://orders.shop.svc.cluster.local",
        "http+k8s://orders.",
        "http+k8s://Orders.shop",
        "http+k8s://orders.shop:0",
        "http+k8s://orders.shop:70000",
        "http+k8s://orders.shop:no_name",
        "http+k8s://[::1]:80",
        "http+k8s://orders.shop?port=http",
        "http+k8s://user:s3cr3t@orders.shop",
    ],
)
def test_urls_that_cannot_be_used(url):
    """An error about a URL names `service`, and shows no secret."""
    with pytest.raises(ValueError, match=r"^service") as caught:
        lbclient.Balancer(url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"service": "or ders"}, r"service must be lower-case letters"),
        ({"service": 7}, r"service must be text such as 'orders', not 7"),
        ({"namespace": ""}, r"namespace must be lower-case letters"),
        ({"port": "80"}, r"port must be the name of a port .* or a number, not '80'"),
        ({"port": 0}, r"port "),
        ({"port": True}, r"port "),
        ({"server": "k8s:80"}, r"server must be an http or https URL"),
        ({"server": "https://u:s3cr3t@k8s"}, r"server must not contain a user name"),
        ({"token": "s3cr3t token"}, r"token must be printable ASCII"),
        ({"token": b"s3cr3t"}, r"token must be text, not bytes"),
        ({"ca": 7}, r"ca must be a path, not int"),
    ],
)
def test_arguments(options, error):
    """Each error names the argument; none shows a secret."""
    with pytest.raises((ValueError, TypeError), match=f"^{error}") as caught:
        Kubernetes(**{"service": "orders", **options})
    assert "s3cr3t" not in str(caught.value)


def test_a_source_is_a_value():
    """A source can be pickled, and its `repr` shows no token."""
    source = Kubernetes(
        "orders", namespace="shop", port=80, server="https://k8s/", token=TOKEN, ca="/ca.crt"
    )
    shown = "Kubernetes('orders', namespace='shop', port=80, server='https://k8s', ca='/ca.crt')"
    assert repr(source) == shown
    again = pickle.loads(pickle.dumps(source))
    assert repr(again) == shown
    assert again.token == TOKEN
    assert TOKEN not in repr(again.session())
