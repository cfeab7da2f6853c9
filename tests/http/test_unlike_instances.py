"""Instances of one service that differ in scheme, base path, headers and TLS name."""

import contextlib
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import anyio
import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import lbclient
from lbclient import Answer, HealthCheck, Instance, RetryPolicy
from lbclient.cli.report import changes, picture
from tests.http.test_features import World
from tests.http.test_tls import TlsServer
from tests.support.dns import Liar
from tests.support.http import Gate, dies_in_body, resets, says, tells_port, transports_of
from tests.support.http2 import Http2

WORLDS = [World(), World("asyncio"), World("asyncio", use_uvloop=True), World("trio")]
worlds = pytest.mark.parametrize("world", WORLDS, ids=["sync", "asyncio", "uvloop", "trio"])
ALL = {"statuses": {429, 503}, "unprocessed": {429, 503}, "backoff": 0.001, "backoff_max": 0.002}


@pytest.fixture
def serve_tls(ca):
    """Start one instance whose certificate has this name: `serve_tls(name, behaviour)`."""
    started = []

    def start(name, behaviour):
        started.append(TlsServer(behaviour, ca.issue_cert(name)))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def tells_target(connection, request):
    """200, with what the instance received as the body."""
    seen = {"target": request.target, "port": connection.server.port, "body": len(request.body)}
    connection.answer(200, json.dumps(seen).encode())


@pytest.fixture
def three(servers, serve_tls):
    """Three servers with a scheme, base path, key and TLS name each, and their instances."""
    (plain,) = servers(tells_target)
    eu, us = serve_tls("eu.test", tells_target), serve_tls("us.test", tells_target)
    return [plain, eu, us], [
        Instance.from_url(f"{plain.url}/openai/v1", headers={"api-key": "key-0"}),
        Instance.from_url(f"{eu.url}/v1", headers={"api-key": "key-1"}, tls_name="eu.test"),
        Instance.from_url(us.url, headers={"Api-Key": "key-2"}, tls_name="us.test"),
    ]


def own_only(running, instances):
    """Check that each server has seen only requests that are meant for it."""
    for number, (server, instance) in enumerate(zip(running, instances, strict=True)):
        for request in server.requests:
            assert request.target.startswith(f"{instance.path}/")
            assert not request.target.startswith(f"{instance.path}{instance.path or '/x'}/")
            assert request.headers["api-key"] == f"key-{number}"
            assert request.headers["host"] == f"127.0.0.1:{server.port}"
        if instance.tls_name:
            assert set(server.names) <= {instance.tls_name}


# What each instance gets


@worlds
def test_each_instance_gets_what_is_its_own(three, trust, world):
    """Each instance gets its own base path, Host, headers and TLS name, whatever the others have;
    the caller's request and the response's URL name the service."""
    running, instances = three
    with world.client(instances, verify=trust, strategy="round-robin") as client:
        assert client.client.base_url.path == "/"
        answers = [client.get("/chat?x=1") for _ in range(6)]
        answers += [client.post("/chat", json=[1], headers={"API-Key": "callers"}) for _ in "123"]
        answers += [client.post("/chat", content=world.body([b"a", b"b"])) for _ in "123"]
        answers += [client.get("/chat", headers={"authorization": "x"}) for _ in "123"]
    assert {one.status_code for one in answers} == {200}
    assert [server.hits for server in running] == [5, 5, 5]
    own_only(running, instances)
    assert {request.target for request in running[0].requests} == {
        "/openai/v1/chat",
        "/openai/v1/chat?x=1",
    }
    assert all("key-" not in str(one.request.headers.multi_items()) for one in answers)
    assert {one.url.path for one in answers} == {"/chat"}
    assert len({one.url.host for one in answers}) == 1


@worlds
def test_own_transports_get_it_too(three, trust, world):
    """A caller's own transports get the URL, Host, headers and TLS name of their instance."""
    running, instances = three
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    with world.client(
        instances, transport=lambda _: kind(verify=trust), strategy="round-robin"
    ) as client:
        answers = [client.get("/chat", extensions={"target": b"/own"}) for _ in range(3)]
        answers += [client.post("/chat", content=b"1") for _ in range(3)]
    assert {one.json()["target"] for one in answers[:3]} == {"/openai/v1/own", "/v1/own", "/own"}
    own_only(running, instances)


@worlds
def test_http2_gets_it_too(servers, world):
    """Over HTTP/2 the base path is in `:path`, and the instance's own Host is `:authority`."""
    behaviours = [Http2(lambda stream: stream.answer()) for _ in range(2)]
    pair = servers(*behaviours)
    instances = [
        Instance.from_url(f"{pair[0].url}/a", headers={"api-key": "key-0", "host": "a.test"}),
        Instance.from_url(f"{pair[1].url}/b/c", headers={"api-key": "key-1"}),
    ]
    options = {"http1": False, "http2": True, "strategy": "round-robin"}
    with world.client(instances, **options) as client:
        for _ in range(4):
            assert client.post("/x?y", content=b"1", headers={"Api-Key": "callers"}).is_success
        assert client.get("/", extensions={"target": b"/own"}).is_success
    names = ":path", ":authority", ":scheme", "api-key"
    seen = [
        {tuple(stream.headers.get(name) for name in names) for stream in one.streams}
        for one in behaviours
    ]
    other = f"127.0.0.1:{pair[1].port}"
    assert ("/a/x?y", "a.test", "http", "key-0") in seen[0]
    assert ("/b/c/x?y", other, "http", "key-1") in seen[1]
    assert {one[3] for one in seen[0]} == {"key-0"}
    assert {one[3] for one in seen[1]} == {"key-1"}
    assert {("/a/own", "a.test", "http", "key-0"), ("/b/c/own", other, "http", "key-1")} & (
        seen[0] | seen[1]
    )


class SecureHttp2(TlsServer):
    """An instance that speaks HTTP/2 over TLS."""

    def __init__(self, behaviour, certificate):
        super().__init__(behaviour, certificate)
        self.context.set_alpn_protocols(["h2"])


@worlds
def test_http2_over_tls(ca, trust, world):
    """Over HTTP/2 with TLS, each instance has a TLS name and connections of its own."""
    behaviours = [Http2(lambda stream: stream.answer()) for _ in range(2)]
    names = "eu.test", "us.test"
    with contextlib.ExitStack() as stack:
        pair = []
        for name, behaviour in zip(names, behaviours, strict=True):
            pair.append(SecureHttp2(behaviour, ca.issue_cert(name)))
            stack.callback(pair[-1].stop)
        instances = [
            Instance.from_url(f"{one.url}/{name}", tls_name=name, headers={"api-key": name})
            for one, name in zip(pair, names, strict=True)
        ]
        options = {"http2": True, "verify": trust, "strategy": "round-robin"}
        with world.client(instances, **options) as client:
            assert all(client.get("/x").http_version == "HTTP/2" for _ in range(4))
    for one, behaviour, name in zip(pair, behaviours, names, strict=True):
        assert (one.accepted, one.names) == (1, [name])
        seen = {(each.headers[":path"], each.headers["api-key"]) for each in behaviour.streams}
        assert seen == {(f"/{name}/x", name)}


@worlds
def test_under_httpx(three, trust, world):
    """Under httpx's own client, instances with a scheme of their own get their own Host too."""
    running, instances = three
    with world.under_httpx(instances, verify=trust, strategy="round-robin") as client:
        for _ in range(3):
            assert client.get("http://orders/chat").status_code == 200
    own_only(running, instances)
    assert [server.requests[0].target for server in running] == [
        "/openai/v1/chat",
        "/v1/chat",
        "/chat",
    ]


def test_urls_may_differ(servers, serve_tls, trust):
    """A list of URLs may mix schemes and base paths; one whose URLs agree has them in the client's
    base URL, as before."""
    (plain,) = servers(tells_target)
    secure = serve_tls("127.0.0.1", tells_target)
    mixed = [f"{plain.url}/a", f"{secure.url}/b/"]
    with lbclient.Client(mixed, verify=trust, strategy="round-robin") as client:
        assert client.base_url.path == "/"
        assert {client.get("x").json()["target"] for _ in "12"} == {"/a/x", "/b/x"}
    for alike in (
        [f"{plain.url}/a", f"http://localhost:{plain.port}/a"],
        [
            Instance.from_url(f"{plain.url}/a"),
            Instance.from_url(f"http://localhost:{plain.port}/a"),
        ],
        [Instance.from_url(f"{plain.url}/a", headers={"x": "1"})],
    ):
        with lbclient.Client(alike) as client:
            assert client.base_url == f"{plain.url}/a/"
            assert client.get("x").json()["target"] == "/a/x"
            assert client.get("/x").json()["target"] == "/a/x"
            assert client.get(f"{plain.url}/other").json()["target"] == "/other"


def test_invalid_urls_in_a_list():
    """URLs that differ are checked as the fields of instances are."""
    with pytest.raises(ValueError, match="service must be a list of valid URLs: path must"):
        lbclient.Client(["http://a/%zz", "http://b"])
    with pytest.raises(ValueError, match="cannot be in a list"):
        lbclient.Client(["http://a", "http+srv://a"])


def test_the_default_scheme(servers, serve_tls, trust):
    """`scheme=` is for the instances without a scheme of their own."""
    (plain,) = servers(tells_target)
    secure = serve_tls("127.0.0.1", tells_target)
    instances = [
        Instance("127.0.0.1", plain.port, scheme="http"),
        Instance("127.0.0.1", secure.port),
    ]
    with lbclient.Client(instances, scheme="https", verify=trust, strategy="round-robin") as client:
        assert client.base_url.scheme == "http"  # a secure cookie must not be sent to the first
        assert {client.get("/").json()["port"] for _ in "12"} == {plain.port, secure.port}


@pytest.mark.parametrize("path", ["/x", "/x?y"])
def test_one_url_object_for_unlike_instances(servers, path):
    """A request line that is kept for one instance is not sent to another, in any order."""
    pair = servers(tells_target, tells_target)
    instances = [Instance.from_url(f"{one.url}/{at}") for at, one in enumerate(pair)]
    rng = random.Random(4)
    with lbclient.Client(instances, strategy="random", rng=rng) as client:
        for _ in range(30):
            response = client.request(rng.choice(["GET", "PUT"]), path)
            told = response.json()
            assert told["target"] == f"/{[one.port for one in pair].index(told['port'])}{path}"
    assert all(one.hits for one in pair)


@pytest.mark.parametrize("many", [False, True], ids=["one URL", "many URLs"])
def test_threads_share_urls(servers, many):
    """Threads that send requests for one URL object to instances with other base paths never send
    the path of another instance."""
    running = servers(*[tells_target] * 3)
    instances = [
        Instance.from_url(f"{one.url}/{at}", headers={"api-key": f"key-{at}"})
        for at, one in enumerate(running)
    ]
    with lbclient.Client(instances, strategy="random") as client, ThreadPoolExecutor(4) as pool:

        def call(number):
            path = f"/x{number % 7}" if many else "/x"
            method = "GET" if number % 3 else "PUT"
            assert client.request(method, path).json()["target"].endswith(path)

        list(pool.map(call, range(60)))
    own_only(running, instances)


# Retries and hedges


@worlds
@pytest.mark.parametrize("fault", [says(503), resets], ids=["503", "reset"])
def test_a_retry_is_built_anew(servers, world, fault):
    """A retry has the path and headers of its own instance, and nothing of the first attempt's."""
    bad, good = servers(fault, tells_target)
    instances = [
        Instance.from_url(f"{bad.url}/bad", headers={"api-key": "key-0", "x-bad": "1"}),
        Instance.from_url(f"{good.url}/good", 1, 1, headers={"api-key": "key-1"}),
    ]
    retry = RetryPolicy(backoff=0.001, backoff_max=0.002)
    with world.client(instances, retry=retry) as client:
        answer = client.put("/x", content=b"body", headers={"x-caller": "1"})
    assert answer.json() == {"target": "/good/x", "port": good.port, "body": 4}
    own_only([bad, good], instances)
    assert "x-bad" not in good.requests[0].headers
    assert good.requests[0].headers["x-caller"] == "1"


@worlds
def test_a_hedge_is_built_anew(servers, world):
    """A hedge has the path and headers of its own instance."""
    gate = Gate()
    slow, quick = servers(gate, tells_target)
    instances = [
        Instance.from_url(f"{slow.url}/slow", headers={"api-key": "key-0"}),
        Instance.from_url(f"{quick.url}/quick", headers={"api-key": "key-1"}),
    ]
    hedge = lbclient.HedgePolicy(delay=0.01)
    with world.client(instances, hedge=hedge, strategy="round-robin") as client:
        answers = [client.get("/x") for _ in range(2)]
        gate.open.set()
    assert {one.json()["target"] for one in answers} == {"/quick/x"}
    assert slow.hits == 1
    own_only([slow, quick], instances)


# Redirects


def redirecting(location, base):
    """Redirects requests for `/start`, and answers others with their target."""

    def behave(connection, request):
        if request.target.partition("?")[0].endswith("/start"):
            port = connection.server.port
            connection.answer(307, Location=location.format(port=port, base=base))
        else:
            tells_target(connection, request)

    return behave


@worlds
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("{base}/jobs/7?x=1#end", "/jobs/7?x=1"),
        ("http://127.0.0.1:{port}{base}/jobs/7", "/jobs/7"),
        ("http://u:p@localhost:{port}{base}/jobs/7", "/jobs/7"),
        ("//127.0.0.1:{port}{base}/jobs/7", "/jobs/7"),
        ("jobs/7", "/in/jobs/7"),
        ("../jobs/7", "/jobs/7"),
        ("?x=1#end", None),
        ("{base}", "/"),
        ("{base}/", "/"),
        ("{base}?x=1", "/?x=1"),
        ("{base}/a%20b/%C3%A9", "/a%20b/%C3%A9"),
    ],
    ids=range(11),
)
def test_a_redirect_below_the_base_path(servers, world, location, target):
    """A redirect to a URL below the base path of the instance leads to the same path of the
    service, wherever the next request goes."""
    bases = ["/openai/v1", "/v2"]
    pair = servers(*(redirecting(location, base) for base in bases))
    instances = [
        Instance.from_url(f"{one.url}{base}", headers={"api-key": f"key-{number}"})
        for number, (one, base) in enumerate(zip(pair, bases, strict=True))
    ]
    with world.client(
        instances, strategy="round-robin", follow_redirects=True, max_redirects=2
    ) as client:
        if target is None:  # it leads to itself
            with pytest.raises(httpx.TooManyRedirects):
                client.post("/in/start", content=b"body")
        else:
            answers = [client.post("/in/start", content=b"body") for _ in range(3)]
            for answer in answers:
                at = [one.port for one in pair].index(answer.json()["port"])
                assert answer.json()["target"] == bases[at] + target
                assert answer.json()["body"] == 4
                assert answer.url.raw_path.decode() == target
    own_only(pair, instances)


@worlds
@pytest.mark.parametrize(
    "location",
    [
        "/other",
        "/openai/v10/x",
        "/openai",
        "../../../x",
        "http://127.0.0.1:{port}/other",
        "http://other.example.com{base}/x",
        "https://127.0.0.1:{port}{base}/x",
    ],
    ids=range(7),
)
def test_a_redirect_outside_the_base_path(servers, world, location):
    """A redirect to a URL outside the base path is one to another origin: it is not followed."""
    (server,) = servers(redirecting(location, "/openai/v1"))
    (good,) = servers(tells_target)
    instances = [
        Instance.from_url(f"{server.url}/openai/v1", headers={"api-key": "key-0"}),
        Instance.from_url(f"{good.url}/v1", 1, 1, headers={"api-key": "key-1"}),
    ]
    with world.client(instances) as client:
        response = client.get("/in/start")
        assert response.status_code == 307
        assert response.next_request.url.host in {"127.0.0.1", "other.example.com"}
        with pytest.raises(lbclient.LoadBalancingError, match="this client balances") as caught:
            client.get("/in/start", follow_redirects=True)
    assert "key-0" not in str(caught.value)
    assert server.hits == 2
    assert good.hits == 0


_PARTS = ["/", "//", "..", ".", "v1", "v1/", "a.test", ":81", "http:", "https:", "?", "#", "x=1"]
_PARTS += ["%2e", "%2f", "@", "u:p@", "é", " ", "\\", ";", "http://a.test:81/v1", "/v1/", "[", "V1"]


def followed(client):
    """The URLs of the two requests for `/in/start` by their order, or the kind of the error."""
    try:
        client.get("/in/start?q", follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return type(error)
    return None


@given(st.lists(st.sampled_from(_PARTS), max_size=6).map("".join))
@example("/v1/jobs")
@example("http://a.test:81/v1")
@example("../../x")
@example("http:")
@example("/v1;")
@example("//u:p@")
@example("http://a.test:81/v1?")
def test_redirects_are_those_of_httpx(location):
    """Whatever `Location` an instance sends, the request that follows is the one that httpx would
    send to the instance itself, or none if that is outside the instance's base path."""

    def behave(seen):
        def handle(request):
            seen.append(str(request.url.copy_with(fragment=None)))
            if len(seen) == 1:
                return httpx.Response(307, headers={"Location": location.encode()})
            return httpx.Response(200)

        return httpx.MockTransport(handle)

    ours, theirs = [], []
    base = "http://a.test:81/v1"
    with httpx.Client(transport=behave(theirs), base_url=base) as client:
        expected = followed(client)
    transport = behave(ours)
    unlike = [Instance.from_url(base), Instance.from_url("http://b.test/v2", 1, 1)]
    with lbclient.Client(unlike, transport=lambda _: transport) as client:
        found = followed(client)
    assert ours[0] == theirs[0] == f"{base}/in/start?q"
    rest = theirs[1].removeprefix(base) if expected is None else "elsewhere"
    if rest[:1] in ("", "/", "?"):
        assert (found, ours[1]) == (None, f"{base}/{rest.removeprefix('/')}")
    else:
        assert len(ours) == 1
        assert found is not None


def test_a_redirect_to_another_instance(servers):
    """A redirect to a URL below the base path of another instance leads to the service too."""
    (second,) = servers(tells_target)
    (first,) = servers(redirecting(f"{second.url}/b/jobs", ""))
    instances = [
        Instance.from_url(f"{first.url}/a", headers={"api-key": "key-0"}),
        Instance.from_url(f"{second.url}/b", 1, 1, headers={"api-key": "key-1"}),
    ]
    with lbclient.Client(instances, follow_redirects=True) as client:
        answer = client.get("/start")
    assert answer.json()["target"] == "/a/jobs"
    own_only([first, second], instances)


class Registry:
    """A source whose answer a test changes."""

    def __init__(self, *instances):
        self.instances = instances

    def resolve(self):
        return Answer(self.instances, ttl=60)


@worlds
@pytest.mark.parametrize("location", ["{url}/a/jobs", "/a/jobs", "jobs"])
def test_a_redirect_of_an_instance_that_has_left(servers, world, location):
    """A redirect below the base path of the instance that sent it leads to the service, also if
    discovery has removed this instance meanwhile."""
    first, second = servers(None, tells_target)
    source = Registry(Instance.from_url(f"{first.url}/a", headers={"api-key": "key-0"}))
    with world.client(source, min_refresh=0.001, follow_redirects=True) as client:

        def leaves(connection, _):
            source.instances = [Instance.from_url(f"{second.url}/b", headers={"api-key": "key-1"})]
            client.balancer.refresh()
            connection.answer(307, Location=location.format(url=first.url))

        first.behaviour = leaves
        answer = client.post("/start", content=b"body")
    assert answer.json() == {"target": "/b/jobs", "port": second.port, "body": 4}
    assert second.requests[0].headers["api-key"] == "key-1"


@pytest.mark.parametrize(("base", "longer"), [("/a", "/a/b"), ("", "/b")])
@pytest.mark.parametrize("origin", ["", "http://127.0.0.1:{port}"])
def test_a_redirect_below_two_base_paths(servers, base, longer, origin):
    """If a redirect is below the base path of the instance that sent it, this path is removed,
    also if the base path of another instance with this origin is longer."""
    (server,) = servers(redirecting(f"{origin}{base}/b/jobs", ""))
    instances = [
        Instance.from_url(f"{server.url}{base}"),
        Instance.from_url(f"{server.url}{longer}", 1, 1),
    ]
    with lbclient.Client(instances, follow_redirects=True) as client:
        answer = client.get("/start")
    assert answer.json()["target"] == f"{base}/b/jobs"
    assert answer.url.path == "/b/jobs"


@worlds
@pytest.mark.parametrize("host", ["orders", "127.0.0.1:{port}"])
def test_a_redirect_of_a_service_with_a_name(servers, world, host):
    """With `name=`, a redirect that an instance builds from the Host that it gets leads to the
    service too."""
    pair = servers(*(redirecting(f"http://{host}{{base}}/jobs", base) for base in ("/a", "/b")))
    instances = [
        Instance.from_url(f"{one.url}{base}") for one, base in zip(pair, ("/a", "/b"), strict=True)
    ]
    with world.client(
        instances, name="orders", strategy="round-robin", follow_redirects=True
    ) as client:
        answers = [client.get("/start") for _ in range(3)]
    assert {one.json()["target"] for one in answers} <= {"/a/jobs", "/b/jobs"}
    assert {str(one.url) for one in answers} == {"http://orders/jobs"}
    hosts = {request.headers["host"] for one in pair for request in one.requests}
    assert hosts == {"orders"}


@worlds
def test_a_redirect_under_httpx(servers, world):
    """Under httpx's own client, the base path of the instance is removed from redirects."""
    locations = "{base}/jobs", "http://127.0.0.1:{port}{base}/jobs"
    pair = servers(*(redirecting(one, "/v1") for one in locations))
    instances = [Instance.from_url(f"{one.url}/v1", headers={"x": "1"}) for one in pair]
    instances.append(Instance.from_url(f"{pair[0].url}/none", weight=0, priority=1))
    with world.under_httpx(instances, strategy="round-robin") as client:
        answers = [client.get("http://orders/start", follow_redirects=True) for _ in range(4)]
    assert {one.json()["target"] for one in answers} == {"/v1/jobs"}
    assert {str(one.url) for one in answers} == {"http://orders/jobs"}


@contextlib.contextmanager
def with_base_path(kind, server):
    """A service of this kind with the base path `/base`, whose instances are this server."""
    if kind == "list":
        yield [f"{server.url}/base/", f"http://localhost:{server.port}/base"], {}
        return
    with Liar() as liar:
        liar.put("_http._tcp.orders.test", "SRV", f"0 1 {server.port} web.orders.test.")
        for name in ("orders.test", "web.orders.test"):
            liar.put(name, "A", "127.0.0.1")
        rest = f":{server.port}/base" if kind == "http+dns" else "/base"
        options = {"nameservers": [liar.address], "allow": ["127.0.0.0/8"]}
        yield f"{kind}://orders.test{rest}", options


LOCATIONS = [
    ("/base/next?x=1#end", "/next?x=1"),
    ("http://127.0.0.1:{port}/base/next", "/next"),
    ("http://u:p@orders/base/next", "/next"),
    ("//orders/base/next", "/next"),
    ("next", "/in/next"),
    ("/base", "/"),
    ("?x=1", "/in/start?x=1"),
    ("/base/base/next", "/base/next"),
    ("/base/a%2Fb/%C3%A9;c//d", "/a%2Fb/%C3%A9;c//d"),
]


@worlds
@pytest.mark.parametrize("kind", ["list", "http+dns", "http+srv"])
def test_the_services_base_path_under_httpx(servers, world, kind):
    """Under httpx's own client, a redirect below the base path of the service leads to the same
    path of the client's URLs; `key=` gets URLs with the base path, and responses have none."""
    (server,) = servers(None)
    keys = []

    def key(request):
        keys.append(request.url.raw_path.decode())

    def redirects_to(location):
        def behave(connection, request):
            if request.target == "/base/in/start":
                connection.answer(307, Location=location.format(port=server.port))
            else:
                tells_target(connection, request)

        return behave

    with (
        with_base_path(kind, server) as (service, options),
        world.under_httpx(service, key=key, **options) as client,
    ):
        for location, target in LOCATIONS:
            server.behaviour = redirects_to(location)
            answer = client.post("http://orders/in/start", content=b"body", follow_redirects=True)
            (first,) = answer.history
            assert str(first.request.url) == "http://orders/in/start"
            assert answer.json()["target"] == f"/base{target}"
            assert answer.json()["body"] == 4
            assert str(answer.request.url).partition("#")[0] == f"http://orders{target}"
            assert keys[-2:] == ["/base/in/start", f"/base{target}"]
    assert {one.headers["host"] for one in server.requests} == {"orders"}


@worlds
@pytest.mark.parametrize("location", ["/other", "/baseless", "http://other.test/base/next"])
def test_a_redirect_outside_the_services_base_path_under_httpx(servers, world, location):
    """Under httpx's own client, a redirect outside the base path of the service is unchanged."""
    (server,) = servers(says(307, Location=location))
    with world.under_httpx(f"{server.url}/base") as client:
        assert client.get("http://orders/start").headers["location"] == location


@worlds
@pytest.mark.parametrize(
    ("attribute", "path"),
    [
        ("; Path={base}", "/"),
        ("; HttpOnly;path={base}/", "/"),
        ("; PATH = {base}/in ;HttpOnly", "/in"),
        ("; Path=/", "/"),
        ("; Path={base}less", "{base}less"),
        ("; HttpOnly", "/in"),
    ],
    ids=range(6),
)
def test_paths_of_cookies(servers, world, attribute, path):
    """A cookie for a path below the base path of an instance, or of the service under httpx's own
    client, is sent with later requests for the same path of the service."""

    def behave(connection, request):
        base = request.target.partition("/in")[0]
        cookie = "a=b" + attribute.format(base=base)
        connection.answer(200, base.encode(), Set_Cookie=cookie, X_Other=f"; Path={base}")

    pair = servers(behave, behave)
    unlike = [Instance.from_url(f"{one.url}/{at}", 1, at) for at, one in enumerate(pair)]
    ways = (world.client, unlike), (world.under_httpx, unlike)
    for enter, service in (*ways, (world.under_httpx, f"{pair[0].url}/base")):
        with enter(service) as client:
            url = "/in/x" if enter == world.client else "http://orders/in/x"
            base = client.get(url).text
            (cookie,) = client.cookies.jar
            assert cookie.path == path.format(base=base)
            response = client.get(url)
        assert response.headers["x-other"] == f"; Path={base}"
        sent = pair[0].requests[-1].headers.get("cookie")
        assert sent == ("a=b" if "less" not in path else None)


def test_a_url_that_names_an_instance(three, trust):
    """A request whose URL is below the base path of an instance is one to the service; a URL
    outside it is another origin."""
    running, instances = three
    plain = running[0]
    with lbclient.Client(instances, verify=trust, strategy="round-robin") as client:
        for _ in range(3):
            answer = client.get(f"{plain.url}/openai/v1/chat?x")
            assert answer.url.raw_path == b"/chat?x"
        with pytest.raises(lbclient.LoadBalancingError, match="/other"):
            client.get(f"{plain.url}/other?key=hunter2")
    assert [one.hits for one in running] == [1, 1, 1]
    own_only(running, instances)


@pytest.mark.parametrize("host", ["own.test", "Own.Test", "own.test:80", "own.test:81"])
def test_a_redirect_to_the_host_of_an_instance(servers, host):
    """A redirect that an instance builds from its own Host leads to the service too."""
    pair = servers(redirecting(f"http://{host}{{base}}/jobs", "/v1"), tells_target)
    own = Instance.from_url(f"{pair[0].url}/v1", headers={"host": host})
    other = Instance.from_url(f"{pair[1].url}/v2", 1, 1)
    with lbclient.Client([own, other], follow_redirects=True) as client:
        assert client.get("/start").json()["target"] == "/v1/jobs"


# TLS


@worlds
def test_each_certificate_is_checked(serve_tls, trust, world):
    """TLS verifies the name of each instance; a certificate with the name of another is refused."""
    eu, us = serve_tls("eu.test", tells_port), serve_tls("us.test", tells_port)
    right = Instance.from_url(eu.url, tls_name="eu.test")
    wrong = Instance.from_url(us.url, tls_name="eu.test")
    refused = pytest.raises(httpx.ConnectError, match="certificate")
    with world.client([wrong], verify=trust) as client, refused:
        client.get("/")
    with world.client([wrong, right], verify=trust) as client:
        assert client.get("/").text == str(eu.port)
    assert us.hits == 0
    assert set(us.names) == {"eu.test"}


@worlds
def test_connections_are_not_shared(serve_tls, trust, world):
    """Instances with one address and another TLS name, scheme, base path or key share no
    connection."""
    server = serve_tls("eu.test", tells_target)
    other = Instance.from_url(server.url, tls_name="eu.test", headers={"api-key": "1"})
    instances = [other, replace(other, headers={"api-key": "2"}), replace(other, path="/v1")]
    options = {"verify": trust, "strategy": "round-robin", "retry": None}
    with world.client(instances, **options) as client:
        for _ in range(6):
            client.get("/")
        assert len(transports_of(client.client)) == 3
        with pytest.raises(httpx.ConnectError):  # another name: another handshake, which fails
            client.get("/", extensions={"sni_hostname": "us.test"})
    assert server.accepted == 4
    keys = [(one.target, one.headers.get("api-key")) for one in server.requests]
    assert sorted(keys, key=str) == [("/", "1")] * 2 + [("/", "2")] * 2 + [("/v1/", "1")] * 2


@pytest.mark.parametrize(
    "service",
    [
        [Instance("a.test", 443, scheme="https", tls_name="a.test")],
        [Instance("10.0.0.1", 443, scheme="https", tls_name="a.test")],
        [Instance.from_url("https://a.test/v1"), Instance.from_url("https://b.test/v1")],
        ["https://a.test/v1", "https://b.test/v2"],
        ["https://a.test", "http://b.test"],
        lbclient.Union([Instance("a.test", 443, scheme="https")], ["http://b.test"]),
    ],
    ids=range(6),
)
def test_a_name_that_tls_would_verify_wrongly(service):
    """`name=` is refused if TLS would verify it at an instance that has another name."""
    with pytest.raises(ValueError, match="name: TLS would verify 'orders' at") as caught:
        lbclient.Client(service, name="orders")
    assert 'tls_name="instance"' in str(caught.value)
    lbclient.Client(service, name="orders", tls_name="instance").close()
    lbclient.Client(service).close()


@pytest.mark.parametrize(
    "service",
    [
        ["https://a.test/v1", "https://b.test/v1"],
        [Instance("a.test", 443, scheme="http")],
        [Instance("10.0.0.1", 443, scheme="https"), Instance("10.0.0.2", 80, scheme="http")],
        [Instance("10.0.0.1", 443, scheme="https", tls_name="orders")],
        [
            Instance("orders", 443, scheme="https", path="/a"),
            Instance("orders", 443, scheme="https"),
        ],
    ],
    ids=range(5),
)
def test_names_that_are_right(service):
    """`name=` is accepted if it is the name to verify, as for lists that agree."""
    lbclient.Client(service, name="orders").close()


def test_name_with_the_instances_tls_names(serve_tls, trust):
    """With `tls_name="instance"`, `name=` is the Host of all, and TLS verifies the names of the
    instances."""
    pair = [serve_tls(name, tells_target) for name in ("eu.test", "us.test")]
    instances = [
        Instance.from_url(f"{one.url}/{name}", tls_name=name)
        for one, name in zip(pair, ("eu.test", "us.test"), strict=True)
    ]
    with lbclient.Client(
        instances, name="orders", tls_name="instance", verify=trust, strategy="round-robin"
    ) as client:
        assert {client.get("/").json()["target"] for _ in "12"} == {"/eu.test/", "/us.test/"}
    assert [one.requests[0].headers["host"] for one in pair] == ["orders", "orders"]
    assert [one.names for one in pair] == [["eu.test"], ["us.test"]]


# Headers


def test_whose_header_counts(servers):
    """An instance's header replaces the caller's, the client's and `auth=`, in any case; a caller's
    other headers are kept; Host keeps its place as the first."""
    (server,) = servers(tells_target)
    own = Instance.from_url(
        server.url, headers={"Authorization": "Bearer own", "Host": "own.test", "x-empty": ""}
    )
    seen = []
    hooks = {"request": [lambda request: seen.append(dict(request.headers))]}
    with lbclient.Client(
        [own], auth=("u", "p"), headers={"X-Empty": "client"}, event_hooks=hooks
    ) as client:
        response = client.get("/", headers={"authorization": "callers", "x-mine": "1"})
        client.get("/", headers={"host": "callers.test"})
    assert {one.headers["authorization"] for one in server.requests} == {"Bearer own"}
    assert {one.headers["host"] for one in server.requests} == {"own.test"}
    assert {one.headers["x-empty"] for one in server.requests} == {""}
    assert server.requests[0].headers["x-mine"] == "1"
    assert next(iter(server.requests[0].headers)) == "host"
    assert "own" not in str(seen)
    assert "own" not in str(response.request.headers.multi_items())


def test_a_deadline_header_is_the_attempts(servers):
    """The time that an attempt has left replaces a header of the instance with that name."""
    (server,) = servers(tells_target)
    own = Instance.from_url(server.url, headers={"X-Left": "own"})
    with lbclient.Client(
        [own], retry=RetryPolicy(deadline=5.0), deadline_header="x-left"
    ) as client:
        client.get("/")
        client.get("/")
    assert all(0 < int(one.headers["x-left"]) <= 5000 for one in server.requests)


# Files and other sources


def written(path, *entries):
    path.write_text(json.dumps(list(entries)))
    return lbclient.FileResolver(path, interval=0.02)


def test_files_have_them_too(tmp_path, servers, serve_tls, trust):
    """Objects in files, and instances of a caller's own source, have the same fields."""
    (plain,) = servers(tells_target)
    secure = serve_tls("eu.test", tells_target)
    source = written(
        tmp_path / "instances",
        {
            "host": "127.0.0.1",
            "port": plain.port,
            "scheme": "http",
            "path": "/a/",
            "headers": {"api-key": "key-0"},
        },
        {
            "host": "127.0.0.1",
            "port": secure.port,
            "scheme": "https",
            "path": "/b",
            "headers": {"api-key": "key-1"},
            "tls_name": "eu.test",
        },
    )
    with lbclient.Client(source, verify=trust, strategy="round-robin") as client:
        assert client.base_url.path == "/"
        assert {client.get("/x").json()["target"] for _ in "12"} == {"/a/x", "/b/x"}
        instances = client.balancer.instances()
    own_only([plain, secure], sorted(instances, key=lambda one: one.path))
    assert secure.requests


def test_a_key_that_is_replaced(tmp_path, servers):
    """A new key in a file is used for the next requests, and the old one no longer."""
    (server,) = servers(tells_target)
    entry = {"host": "127.0.0.1", "port": server.port, "headers": {"api-key": "old"}}
    path = tmp_path / "instances"
    changed = threading.Event()

    def listener(event):
        if isinstance(event, lbclient.InstancesChanged) and event.left:
            changed.set()

    with lbclient.Client(written(path, entry), listener=listener, min_refresh=0.02) as client:
        client.get("/")
        written(path, {**entry, "headers": {"api-key": "new"}})
        assert changed.wait(10)
        client.get("/")
    assert [one.headers["api-key"] for one in server.requests] == ["old", "new"]


def test_entries_that_are_refused(tmp_path):
    """An invalid field of an entry is refused with a reason that shows no value; unknown keys are
    named."""
    good = {"host": "a", "port": 1}
    answer = written(
        tmp_path / "instances",
        good,
        {**good, "headers": {"api-key": "hunter2\n"}},
        {**good, "headers": ["hunter2"]},
        {**good, "path": "v1"},
        {**good, "scheme": "ftp"},
        {**good, "tls_name": 1},
        {**good, "header": {"api-key": "hunter2"}},
    ).resolve()
    assert answer.instances == (Instance("a", 1),)
    reasons = [one.reason for one in answer.refused]
    assert [reason.split()[0].rstrip(":") for reason in reasons] == [
        "headers",
        "headers",
        "path",
        "scheme",
        "tls_name",
        "unknown",
    ]
    assert "'header'" in reasons[-1]
    assert "tls_name" in reasons[-1]
    assert "hunter2" not in str(answer)


def test_lists_in_a_union(servers, serve_tls, trust):
    """The lists of a `FirstOf` or `Union` may differ in scheme and base path."""
    (plain,) = servers(tells_target)
    secure = serve_tls("127.0.0.1", tells_target)
    union = lbclient.Union(
        [f"{plain.url}/a"], [f"{secure.url}/b"], [Instance("127.0.0.1", 1, 0, 9)]
    )
    with lbclient.Client(union, verify=trust, strategy="round-robin") as client:
        assert {client.get("/x").json()["target"] for _ in "12"} == {"/a/x", "/b/x"}
    nested = lbclient.Union(
        lbclient.Union("http+dns://a.test:80", ["http://b.test"]), ["http://c.test"]
    )
    with lbclient.Client(nested) as client:
        assert len(client.balancer.target.listed) == 2
    with pytest.raises(ValueError, match="one scheme for all"):
        lbclient.Client(lbclient.Union(nested, ["https://d.test"]))
    with pytest.raises(ValueError, match="service must have no base path"):
        lbclient.Client(lbclient.Union("http+srv://a/v1", ["http://b/c", "http://b/d"]))


def test_the_command_shows_them(three):
    """`lbclient resolve` shows what is an instance's own, without the values of headers."""
    _, instances = three
    shown = "\n".join([*picture("api", Answer(instances)), *changes(Answer([]), Answer(instances))])
    _, eu, us = instances
    assert f"https://{eu}/v1 (TLS name eu.test; headers api-key)" in shown
    assert f"joined https://{us} (TLS name us.test; headers Api-Key)" in shown
    assert "key-" not in shown


def test_keys_of_one_url_share_the_calls():
    """Instances that differ only in their keys each get a share of the calls, in every process the
    same."""
    pair = [Instance("a.test", 443, headers={"api-key": key}) for key in "12"]
    seen = []
    for instances in (pair, pair[::-1]):
        with lbclient.Balancer(instances, strategy="consistent-hash") as balancer:
            seen.append(
                [balancer.call(lambda one: one.headers["api-key"], key=n) for n in range(99)]
            )
    assert seen[0] == seen[1]
    assert 20 < seen[0].count("1") < 80


@worlds
def test_a_fallback_with_a_name_of_its_own(servers, serve_tls, trust, world):
    """Beside a source of another scheme, instances with a scheme of their own keep it, and their
    Host and TLS name too."""
    (bad,) = servers(says(503))
    fallback = serve_tls("fallback.test", tells_target)

    listed = Instance.from_url(f"{fallback.url}/v1", 1, 1, tls_name="fallback.test")
    union = lbclient.Union(Registry(Instance("127.0.0.1", bad.port)), [listed])
    retry = RetryPolicy(backoff=0.001, backoff_max=0.002)
    with world.client(union, verify=trust, retry=retry, scheme="https") as client:
        client.get("/x")
    with world.client(union, verify=trust, retry=retry) as client:
        assert client.get("/x").json()["target"] == "/v1/x"
    assert fallback.requests[-1].headers["host"] == f"127.0.0.1:{fallback.port}"
    assert bad.hits


def test_the_host_beside_a_service_in_dns():
    """An instance with a scheme of its own does not get the name of a service in DNS, unless the
    caller has given the name."""
    listed = Instance.from_url("https://fallback.test/v1")
    fallback = lbclient.FirstOf("http+srv://orders.example.com", [listed])
    with lbclient.Client(fallback) as client:
        target = client.balancer.target
        assert (target.name, target.scheme, client.base_url.path) == (
            "orders.example.com",
            "http",
            "/",
        )
        assert target.authority_at(listed) == "fallback.test"
        assert target.authority_at(Instance("10.0.0.1", 80)) == "orders.example.com"
    with lbclient.Client(fallback, name="api.test", tls_name="instance") as client:
        assert client.balancer.target.authority_at(listed) == "api.test"


# Without HTTP


def test_a_balancer_shows_them(three):
    """`Balancer.call` passes instances with their scheme, path and headers."""
    _, instances = three
    with lbclient.Balancer(instances, strategy="round-robin") as balancer:
        seen = [balancer.call(lambda one: (one.scheme, one.path, dict(one.headers))) for _ in "123"]
    expected = [(one.scheme, one.path, dict(one.headers)) for one in instances]
    assert sorted(seen, key=str) == sorted(expected, key=str)


# Checks and probes


def checked(server):
    """The first health check that a server gets."""
    while True:
        assert server.arrived.acquire(timeout=10)
        if found := [one for one in server.requests if "x-check" in one.headers]:
            return found[0]


@pytest.mark.parametrize("path", ["/healthz", "/"])
def test_health_checks(three, trust, path):
    """A health check goes to the instance's own scheme, TLS name, base path and Host, with its
    headers."""
    running, instances = three
    policy = HealthCheck(
        path, interval=0.3, timeout=0.3, headers={"Api-Key": "policy", "x-check": "1"}
    )
    with lbclient.Client(instances, health=policy, verify=trust) as client:
        client.get("/chat")
        checks = [checked(server) for server in running]
    own_only(running, instances)
    assert [one.target for one in checks] == [f"{instance.path}{path}" for instance in instances]


def test_health_checks_of_alike_instances(servers):
    """The path of a check is below the instance's own base path, also if all have the same."""
    pair = servers(tells_target, tells_target)
    instances = [Instance.from_url(f"{one.url}/v1") for one in pair]
    policy = HealthCheck("/healthz", interval=0.3, timeout=0.3, headers={"x-check": "1"})
    with lbclient.Client(instances, health=policy) as client:
        client.get("/chat")
        assert {checked(server).target for server in pair} == {"/v1/healthz"}


def test_load_probes(three, trust):
    """A load probe goes where the instance's other requests go, with its headers."""
    running, instances = three
    probe = lbclient.LoadProbe("/load")
    with lbclient.Client(instances, strategy=lbclient.Prequal(probe=probe), verify=trust) as client:
        while not all(
            any(one.target.endswith("/load") for one in server.requests) for server in running
        ):
            client.get("/chat")
    own_only(running, instances)


# Spans


@pytest.mark.parametrize(
    ("options", "own", "address", "port", "url"),
    [
        ({}, {}, "fe80::1%lo", 81, "http://[fe80::1%lo]:81/v1/x"),
        ({"name": "api.test"}, {}, "api.test", 80, "http://api.test/v1/x"),
        ({}, {"headers": {"host": "own.test:82"}}, "own.test", 82, "http://own.test:82/v1/x"),
        ({"name": "api.test"}, {"scheme": "https"}, "api.test", 443, "https://api.test/v1/x"),
    ],
    ids=["address", "name", "own Host", "own scheme"],
)
def test_spans_of_names_and_addresses(telemetry, options, own, address, port, url):
    """The span of an attempt has the Host that is sent, whatever it comes from; a redirect has the
    path of the service."""

    def handle(request):
        status = 200 if request.url.path == "/v1/x" else 307
        return httpx.Response(status, headers={"Location": "/v1/x"})

    transport = httpx.MockTransport(handle)
    unlike = [Instance("fe80::1%lo", 81, path="/v1", **own), Instance("a.test", 80, 1, 1)]
    with lbclient.Client(
        unlike, transport=lambda _: transport, **options, **telemetry.options
    ) as client:
        response = client.get("/start", follow_redirects=True)
    assert response.url.path == "/x"
    last = [one.attributes for one in telemetry.spans if "url.full" in one.attributes][-1]
    assert (last["server.address"], last["server.port"], last["url.full"]) == (address, port, url)


def test_spans_show_what_was_sent(servers, telemetry):
    """The span of an attempt has the URL that its instance has got, without values of headers."""
    pair = servers(says(503), tells_target)
    instances = [
        Instance.from_url(f"{one.url}/{at}", 1, at, headers={"api-key": "hunter2"})
        for at, one in enumerate(pair)
    ]
    retry = RetryPolicy(backoff=0.001, backoff_max=0.002)
    with lbclient.Client(instances, retry=retry, **telemetry.options) as client:
        client.get("/x?key=1")
    spans = [one for one in telemetry.spans if "url.full" in one.attributes]
    assert [one.attributes["url.full"] for one in spans] == [
        f"{one.url}/{at}/x?key=REDACTED" for at, one in enumerate(pair)
    ]
    assert [one.attributes["server.port"] for one in spans] == [one.port for one in pair]
    assert {one.attributes["server.address"] for one in spans} == {"127.0.0.1"}
    assert "hunter2" not in str([one.attributes for one in telemetry.spans])


# All of it together


@worlds
@pytest.mark.parametrize("streamed", [False, True])
def test_three_unlike_endpoints(servers, serve_tls, trust, dead_port, world, streamed):
    """Of three endpoints one answers 429 with Retry-After and one is dead: no POST fails, the 429
    endpoint is asked once during its rest, and each key is seen by its own endpoint only."""
    (full,) = servers(says(429, Retry_After="60"))
    good = serve_tls("eu.test", tells_target)
    instances = [
        Instance.from_url(f"{full.url}/openai/v1", headers={"api-key": "key-0"}),
        Instance.from_url(f"{good.url}/v1", headers={"api-key": "key-1"}, tls_name="eu.test"),
        Instance.from_url(f"http://127.0.0.1:{dead_port}/v2", headers={"api-key": "key-2"}),
    ]
    retry = RetryPolicy(unprocessed={429}, backoff=0.001, backoff_max=0.002)
    statuses = []
    with world.client(instances, retry=retry, verify=trust, rng=random.Random(1)) as client:
        for number in range(100):
            body = world.body([b"a", b"b"]) if number % 2 and not streamed else b"ab"
            answer = client.post("/chat", content=body)
            statuses.append((answer.status_code, answer.json()["body"]))
    assert set(statuses) == {(200, 2)}
    assert full.hits == 1
    own_only([full, good], instances[:2])


def unruly(number, instance, seen):
    """Answers, fails, rejects, redirects and dies in turn, as its own random numbers say."""
    rng = random.Random(number)

    def behave(connection, request):
        seen.append((request.target.startswith(f"{instance.path}/"), request.headers["api-key"]))
        match rng.randrange(8):
            case 0:
                connection.reset()
            case 1:
                connection.answer(503)
            case 2:
                connection.answer(429, Retry_After="0")
            case 3:
                connection.answer(307, Location=f"{instance.path}/elsewhere")
            case 4:
                dies_in_body(connection, request)
            case _:
                connection.answer(200, b"good")

    return behave


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.anyio
async def test_whatever_happens_to_calls(servers, seed):
    """While instances fail and redirect, and calls are hedged, retried and cancelled, each instance
    sees only its own base path and key, and nothing stays in flight."""
    rng = random.Random(seed)
    paths = "/openai/v1", "/v1", ""
    seen = [[], [], []]
    running = servers(*[tells_target] * 3)
    instances = [
        Instance.from_url(f"{one.url}{path}", headers={"api-key": f"key-{number}"})
        for number, (one, path) in enumerate(zip(running, paths, strict=True))
    ]
    for number, server in enumerate(running):
        server.behaviour = unruly(10 * seed + number, instances[number], seen[number])
    retry = RetryPolicy(unprocessed={429}, backoff=0.001, backoff_max=0.002)
    hedge = lbclient.HedgePolicy(delay=0.002)

    async def call(client):
        method, seconds = rng.choice(["GET", "POST"]), rng.choice([0.001, 0.01, 10])
        with anyio.move_on_after(seconds), contextlib.suppress(httpx.HTTPError):
            await client.request(method, rng.choice(["/a", "/b?x"]))

    async with lbclient.AsyncClient(
        instances, retry=retry, hedge=hedge, follow_redirects=True
    ) as client:
        for _ in range(10):
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(call, client)
        assert not any(one.in_flight for one in client.balancer.snapshot().instances)
    for number, each in enumerate(seen):
        assert set(each) <= {(True, f"key-{number}")}
