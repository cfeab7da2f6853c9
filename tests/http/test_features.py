"""What users of httpx rely on works with a balancing client: sync, asyncio and trio."""

import asyncio
import base64
import contextlib
import functools
import gc
import inspect
import os
import threading
import types
from collections import Counter

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest

import lbclient
from tests.support.dns import Liar
from tests.support.http import (
    Gate,
    dies_in_body,
    in_turn,
    resets,
    says,
    tells_port,
    transports_of,
)


class Caller:
    """A client as a test uses it: the coroutines of an async one are run to their end."""

    def __init__(self, client, portal=None):
        self.client = client
        self.portal = portal

    def __getattr__(self, name):
        found = getattr(self.client, name)
        if self.portal is None or not inspect.iscoroutinefunction(found):
            return found
        return lambda *args, **kwargs: self.portal.call(functools.partial(found, *args, **kwargs))

    def stream(self, *args, **kwargs):
        stream = self.client.stream(*args, **kwargs)
        return stream if self.portal is None else self.portal.wrap_async_context_manager(stream)

    def run(self, function, *args):
        """Call a coroutine function on an event loop, and any other directly."""
        return function(*args) if self.portal is None else self.portal.call(function, *args)

    def read(self, response):
        return response.read() if self.portal is None else self.portal.call(response.aread)

    def shut(self, response):
        return response.close() if self.portal is None else self.portal.call(response.aclose)

    @property
    def in_flight(self):
        """The attempts in flight, as the balancer counts them."""
        return sum(one.in_flight for one in self.client.balancer.snapshot().instances)


class World:
    """Where a client runs: on threads, or on its own event loop."""

    def __init__(self, backend=None, **options):
        self.backend = backend
        self.options = options
        """Those of the event loop."""

    @contextlib.contextmanager
    def entered(self, sync, asynchronous):
        """One of these two clients, open."""
        if self.backend is None:
            with sync() as client:
                yield Caller(client)
            return
        with (
            anyio.from_thread.start_blocking_portal(self.backend, self.options) as portal,
            portal.wrap_async_context_manager(portal.call(asynchronous)) as client,
        ):
            yield Caller(client, portal)

    def client(self, service, **options):
        """`Client`, or `AsyncClient`."""
        return self.entered(
            functools.partial(lbclient.Client, service, **options),
            functools.partial(lbclient.AsyncClient, service, **options),
        )

    def under_httpx(self, service, **options):
        """The client of httpx, over `Transport` or `AsyncTransport`."""
        return self.entered(
            lambda: httpx.Client(transport=lbclient.Transport(service, **options)),
            lambda: httpx.AsyncClient(transport=lbclient.AsyncTransport(service, **options)),
        )

    def hook(self, function):
        """A function or coroutine function, as an event hook must be."""
        if self.backend is None:
            return function

        async def coloured(*args):
            return function(*args)

        return coloured

    def body(self, chunks):
        """A generator or async generator, as a request body must be."""
        if self.backend is None:
            return (chunk for chunk in chunks)

        async def coloured():
            for chunk in chunks:
                yield chunk

        return coloured()


worlds = pytest.mark.parametrize(
    "world", [World(), World("asyncio"), World("trio")], ids=["sync", "asyncio", "trio"]
)


BIG = os.urandom(5_000_000)


def urls(servers):
    return [server.url for server in servers]


def all_requests(*servers):
    return [request for server in servers for request in server.requests]


# Authentication and cookies


@worlds
def test_basic_auth(servers, world):
    """`auth=(user, password)` arrives at every instance."""
    pair = servers(tells_port, tells_port)
    with world.client(urls(pair), auth=("me", "secret")) as client:
        for _ in range(2):
            client.get("/")
    token = base64.b64encode(b"me:secret").decode()
    assert [one.requests[0].headers["authorization"] for one in pair] == [f"Basic {token}"] * 2


CHALLENGE = 'Digest realm="r", nonce="n", qop="auth", algorithm=SHA-256'


def wants_digest(connection, request):
    if "authorization" in request.headers:
        connection.answer(200, b"welcome")
    else:
        connection.answer(401, b"who?", WWW_Authenticate=CHALLENGE)


@worlds
def test_digest_auth(servers, world):
    """Digest makes two requests, both balanced, and the body is sent with each."""
    pair = servers(wants_digest, wants_digest)
    with world.client(
        urls(pair), strategy="round-robin", auth=httpx.DigestAuth("me", "secret")
    ) as client:
        response = client.post("/orders", content=b"order")
        assert client.in_flight == 0
    assert response.text == "welcome"
    assert [one.status_code for one in response.history] == [401]
    assert [one.hits for one in pair] == [1, 1]
    assert {request.body for request in all_requests(*pair)} == {b"order"}
    assert len(lbclient.call_info(response).attempts) == 1


class TokenAuth(httpx.Auth):
    """An auth flow that first asks the same service for a token, as OAuth flows do."""

    requires_response_body = True

    def auth_flow(self, request):
        answer = yield httpx.Request("POST", request.url.join("/token"), content=b"grant")
        request.headers["Authorization"] = f"Bearer {answer.text}"
        yield request


def grants(connection, request):
    if request.target == "/token":
        connection.answer(200, b"t-1")
    else:
        connection.answer(200, request.headers["authorization"].encode())


@worlds
@pytest.mark.parametrize("name", [None, "orders.test"])
def test_custom_auth_flow(servers, world, name):
    """An auth flow's own request to the same origin is balanced, with the right Host."""
    pair = servers(grants, grants)
    with world.client(urls(pair), name=name, auth=TokenAuth()) as client:
        response = client.get("/orders")
        assert client.in_flight == 0
    assert response.text == "Bearer t-1"
    assert sorted(request.target for request in all_requests(*pair)) == ["/orders", "/token"]
    for one in pair:
        host = name or f"127.0.0.1:{one.port}"
        assert [request.headers["host"] for request in one.requests] == [host]


@worlds
def test_one_cookie_jar_for_the_service(servers, world):
    """S3: a cookie set by one instance is sent to all, and stored for the service's name."""
    pair = servers(*[says(200, b"", Set_Cookie="session=42; Path=/")] * 2)
    with world.client(urls(pair), strategy="round-robin", name="orders.test") as client:
        for _ in range(4):
            client.get("/")
        (cookie,) = client.cookies.jar
    assert cookie.domain == "orders.test"
    sent = [[request.headers.get("cookie") for request in one.requests] for one in pair]
    assert sorted(sent, key=str) == [["session=42"] * 2, [None, "session=42"]]


# URLs and redirects


@worlds
def test_base_path(servers, world):
    """A path in the service's URL, and one in base_url, are put before the path of each request."""
    (server,) = servers(tells_port)
    with world.client([server.url + "/v1"]) as client:
        client.get("/orders")
        client.get("orders/42")
        assert client.base_url == f"{server.url}/v1/"
    with world.client([server.url + "/v1/"], base_url="/eu") as client:
        client.get("/orders")
    seen = [one.target for one in server.requests]
    assert seen == ["/v1/orders", "/v1/orders/42", "/v1/eu/orders"]


@worlds
def test_params_and_headers(servers, world):
    """Query, headers and encodings of client and call are merged as httpx merges them."""
    (server,) = servers(says(200, "Zürich".encode("latin-1"), Content_Type="text/plain"))
    with world.client(
        [server.url],
        params={"tenant": "a b"},
        headers={"X-Client": "one"},
        default_encoding="latin-1",
    ) as client:
        response = client.get("/o", params={"q": "[1]"}, headers={"X-Call": "two"})
    (request,) = server.requests
    assert request.target == "/o?tenant=a+b&q=%5B1%5D"
    assert (request.headers["x-client"], request.headers["x-call"]) == ("one", "two")
    assert response.text == "Zürich"


@worlds
def test_any_path_and_query(servers, world):
    """Path and query arrive as httpx encodes them, whatever transport sends them."""
    (server,) = servers(tells_port)
    paths = ["/Zürich/a%2Fb//c?q=ü%20+&q", "//double", "/%", "/a;b=c?x=[1]&y={z}#f", "?only"]
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    with world.client([server.url]) as client:
        expected = [client.get(path).request.url.raw_path.decode() for path in paths]
    with world.client([server.url], transport=lambda _: kind()) as client:
        for path in paths:
            client.get(path)
    assert [request.target for request in server.requests] == expected * 2
    assert expected[0] == "/Z%C3%BCrich/a%2Fb//c?q=%C3%BC%20+&q"


def redirects(location, status=302):
    """/old redirects there; any other path returns 200 with the request."""

    def behave(connection, request):
        if request.target.startswith("/old"):
            connection.answer(status, b"moved", Location=location)
        else:
            connection.answer(200, f"{connection.server.port} {request.target}".encode())

    return behave


@worlds
def test_redirects_are_off_by_default(servers, world):
    """I27: a redirect is returned with the next request ready, and is not followed by default."""
    (server,) = servers(redirects("/new"))
    with world.client([server.url], name="orders.test") as client:
        response = client.get("/old")
        assert response.status_code == 302
        assert str(response.next_request.url) == "http://orders.test/new"
        assert client.send(response.next_request).text == f"{server.port} /new"
    assert server.hits == 2


@worlds
def test_a_relative_redirect_is_balanced(servers, world):
    """I27: a relative redirect is a request like any other: another instance may get it."""
    pair = servers(redirects("/new"), redirects("/new"))
    with world.client(
        urls(pair), strategy="round-robin", name="orders.test", follow_redirects=True
    ) as client:
        response = client.get("/old", headers={"Authorization": "Bearer x"})
        assert client.in_flight == 0
    assert str(response.url) == "http://orders.test/new"
    assert [one.status_code for one in response.history] == [302]
    assert [one.hits for one in pair] == [1, 1]
    assert {one.headers["authorization"] for one in all_requests(*pair)} == {"Bearer x"}


@worlds
@pytest.mark.parametrize("form", ["http://{}/new?a=1#top", "//{}/new?a=1#top"])
def test_a_redirect_to_an_instance_is_balanced(servers, world, form):
    """I27: a redirect that names an instance is made logical: credentials and cookies are kept."""
    pair = servers(tells_port, tells_port)
    for one, other in zip(pair, reversed(pair), strict=True):
        one.behaviour = redirects(form.format(f"127.0.0.1:{other.port}"))
    with world.client(
        urls(pair), strategy="round-robin", name="orders.test", cookies={"session": "42"}
    ) as client:
        seen = Counter()
        for _ in range(2):
            first = client.get("/old", auth=("me", "secret"))
            assert first.headers["location"] == "http://orders.test/new?a=1#top"
            second = client.get("/old", auth=("me", "secret"), follow_redirects=True)
            assert str(second.url) == "http://orders.test/new?a=1#top"
            seen[second.text.split()[0]] += 1
    assert len(all_requests(*pair)) == 6
    for request in all_requests(*pair):
        assert request.headers["host"] == "orders.test"
        assert request.headers["authorization"].startswith("Basic ")
        assert request.headers["cookie"] == "session=42"


@worlds
def test_a_redirect_to_an_instance_of_an_unnamed_list(servers, world):
    """I27: without a name the logical URL is that of the first entry; each instance gets its own
    Host."""
    pair = servers(tells_port, tells_port)
    pair[0].behaviour = pair[1].behaviour = redirects(pair[1].url + "/new")
    with world.client(urls(pair), strategy="round-robin", follow_redirects=True) as client:
        response = client.get("/old", headers={"Authorization": "Bearer x"})
    assert str(response.url) == pair[0].url + "/new"
    for one in pair:
        (request,) = one.requests
        assert request.headers["host"] == f"127.0.0.1:{one.port}"
        assert request.headers["authorization"] == "Bearer x"


@worlds
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_elsewhere_is_refused(servers, world, status):
    """S2, I27: a redirect to a foreign origin is refused with a clear error, and nothing is sent
    there."""
    foreign, server = servers(tells_port, tells_port)
    server.behaviour = redirects(f"http://localhost:{foreign.port}/new", status)
    with world.client([server.url], name="orders.test", follow_redirects=True) as client:
        with pytest.raises(lbclient.LoadBalancingError, match=r"httpx\.Client\(mounts=") as caught:
            client.post("/old", content=b"x", headers={"X-Api-Key": "secret"})
        assert client.in_flight == 0
    assert isinstance(caught.value, httpx.TransportError)
    assert caught.value.request.url.port == foreign.port
    assert foreign.hits == 0


@worlds
@pytest.mark.parametrize("url", ["https://orders.test/", "http://orders.test:81/", "http://x.test"])
def test_another_origin_is_refused(servers, world, url):
    """S2: a client of one service sends to no other origin, including scheme and port."""
    (server,) = servers(tells_port)
    with world.client([server.url], name="orders.test") as client:
        with pytest.raises(lbclient.LoadBalancingError, match=r"orders\.test"):
            client.get(url)
        assert client.get("http://orders.test:80/").status_code == 200
    assert server.hits == 1


OWN_SPELLINGS = [
    "/new",
    "//orders.test/new",
    "//orders.test:80/new",
    "http://ORDERS.test/new",
    "http://orders.test./new",
    "http://orders.test:80/new",
    "http://orders.test:{port}/new",
    "http://web1.orders.test:{port}/new",
    "http://Web2.Orders.test.:{port}/new",
    "http://127.0.0.1:{port}/new",
    "http://127.0.0.1.:{port}/new",
    "http://localhost:{port}/new",
    "http://LOCALHOST.:{port}/new",
    "http://orders.localhost:{port}/new",
    "http://[::1]:{port}/new",
    "http://[0:0::1]:{port}/new",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]:{port}/new",
    "http://[::ffff:127.0.0.1]:{port}/new",
    "http://[::FFFF:7f00:1]:{port}/new",
    "http://[fe80::1]:{port}/new",
    "http://[FE80:0::1%25eth0]:{port}/new",
    "http://other:one@web1.orders.test:{port}/new",
    "http://other:one@orders.test/new",
]


@contextlib.contextmanager
def discovered(world, server, **options):
    """A client of a service whose targets are this server, discovered by SRV over a socket."""
    with Liar() as liar:
        port = server.port
        targets = [f"0 1 {port} Web1.Orders.Test.", f"0 1 {port} web2.orders.test."]
        liar.put("_http._tcp.orders.test", "SRV", *targets)
        for name in ("web1.orders.test", "web2.orders.test"):
            liar.put(name, "A", "127.0.0.1")
            liar.put(name, "AAAA", "::1")
        with world.client(
            "http+srv://orders.test",
            nameservers=[liar.address],
            allow=["127.0.0.0/8", "::1"],
            **options,
        ) as client:
            yield client


def moved_with_cookie(location):
    """/old redirects there and sets a cookie; any other path answers."""

    def behave(connection, request):
        if request.target == "/old":
            connection.answer(302, Location=location, Set_Cookie="session=42; Path=/")
        else:
            connection.answer(200, b"arrived")

    return behave


def assert_stays(client, server):
    """A redirect from /old is a request to the service, with credentials and cookie."""
    response = client.get("/old", headers={"Authorization": "Bearer x"}, follow_redirects=True)
    assert response.text == "arrived"
    assert str(response.url) == "http://orders.test/new"
    assert "one@" not in str(response.history[0].headers["location"])
    for request in server.requests:
        assert request.headers["host"] == "orders.test"
        assert request.headers["authorization"] == "Bearer x"
    assert server.requests[-1].headers["cookie"] == "session=42"
    (cookie,) = client.cookies.jar
    assert cookie.domain == "orders.test"


@worlds
@pytest.mark.parametrize("location", [one for one in OWN_SPELLINGS if "80:" not in one])
def test_a_redirect_in_another_spelling_stays(servers, world, location):
    """A redirect to the service or to an instance, however its host is written, is a request to the
    service: names and addresses are compared, not text."""
    (server,) = servers(tells_port)
    server.behaviour = moved_with_cookie(location.format(port=server.port))
    with discovered(world, server) as client:
        assert_stays(client, server)


@pytest.mark.parametrize("location", OWN_SPELLINGS)
def test_a_redirect_to_a_listed_address_stays(servers, location):
    """The same for instances of a list with addresses, one of them with a zone."""
    (server,) = servers(tells_port)
    server.behaviour = moved_with_cookie(location.format(port=server.port))
    service = [
        lbclient.Instance("web1.orders.test", server.port, addresses=("127.0.0.1", "::1")),
        lbclient.Instance("web2.orders.test", server.port, addresses=("127.0.0.1", "fe80::1%eth0")),
    ]
    with lbclient.Client(service, name="orders.test") as client:
        assert_stays(client, server)


@pytest.mark.parametrize(
    ("service", "location"),
    [
        ("http://localhost:{}", "http://127.0.0.1:{}/new"),
        ("http://localhost:{}", "http://[::1]:{}/new"),
        ("http://127.0.0.1:{}", "http://localhost:{}/new"),
        ("http://127.0.0.1:{}", "http://[::ffff:127.0.0.1]:{}/new"),
        ("http://[::ffff:127.0.0.1]:{}", "http://127.0.0.1:{}/new"),
        ("http://[::ffff:127.0.0.1]:{}", "http://[::FFFF:7F00:1]:{}/new"),
    ],
)
def test_a_redirect_to_this_machine_stays(servers, service, location):
    """`localhost` equals each of its addresses, and an IPv4 address equals its IPv6-mapped form."""
    (server,) = servers(tells_port)
    server.behaviour = moved_with_cookie(location.format(server.port))
    with lbclient.Client(service.format(server.port), name="orders.test") as client:
        assert_stays(client, server)


@pytest.mark.parametrize("host", ["bücher.test", "BÜCHER.test.", "xn--bcher-kva.test"])
def test_a_redirect_to_an_international_name_stays(servers, host):
    """A name with non-ASCII characters equals its ASCII form."""
    (server,) = servers(tells_port)
    server.behaviour = moved_with_cookie(f"http://{host}/new".encode().decode("latin-1"))
    with lbclient.Client([server.url], name="bücher.test", follow_redirects=True) as client:
        response = client.get("/old", headers={"Authorization": "Bearer x"})
    assert response.url.raw_host == b"xn--bcher-kva.test"
    assert [one.headers["authorization"] for one in server.requests] == ["Bearer x"] * 2


FOREIGN = {
    "https://orders.test/new": "https://orders.test:443;",
    "https://web1.orders.test:{port}/new": "https://web1.orders.test:{port};",
    "http://orders.test:0/new": "http://orders.test:0;",
    "http://orders.test:81/new": "http://orders.test:81;",
    "http://web1.orders.test/new": "http://web1.orders.test:80;",
    "http://web1.orders.test:0/new": "http://web1.orders.test:0;",
    "http://web1.orders.test..:{port}/new": "http://web1.orders.test..:{port};",
    "http://127.0.0.1/new": "http://127.0.0.1:80;",
    "http://127.0.0.2:{port}/new": "http://127.0.0.2:{port};",
    "http://127.1:{port}/new": "http://127.1:{port};",
    "http://[::2]:{port}/new": "http://[::2]:{port};",
    "http://[::ffff:127.0.0.2]:{port}/new": "http://[::ffff:127.0.0.2]:{port};",
    "http://[fe80::1%25eth1]:{port}/new": "http://[fe80::1%25eth1]:{port};",
    "http://orders.test@evil.test/new": "http://evil.test:80;",
    "http://orders.test:80@evil.test:{port}/new": "http://evil.test:{port};",
    "http://orders.test.evil.test/new": "http://orders.test.evil.test:80;",
    "http://orders.test%2eevil.test/new": "http://orders.test%2eevil.test:80;",
    "http://localhost.evil.test:{port}/new": "http://localhost.evil.test:{port};",
    "http://evillocalhost:{port}/new": "http://evillocalhost:{port};",
    "//evil.test/new": "http://evil.test:80;",
    "http://orders.test\\@evil.test/new": "http://evil.test:80;",
}


@worlds
@pytest.mark.parametrize(("location", "told"), FOREIGN.items(), ids=list(FOREIGN))
def test_a_redirect_elsewhere_in_disguise_is_refused(servers, world, location, told):
    """An origin that only looks like the service (by scheme, host or port) is refused; nothing is
    sent."""
    (server,) = servers(tells_port)
    server.behaviour = moved_with_cookie(location.format(port=server.port))
    service = [
        lbclient.Instance("web1.orders.test", server.port, addresses=("127.0.0.1", "fe80::1%eth0"))
    ]
    with world.client(service, name="orders.test", follow_redirects=True) as client:
        with pytest.raises(lbclient.LoadBalancingError) as caught:
            client.get("/old", auth=("me", "secret"))
        assert client.in_flight == 0
    assert f"only, not {told.format(port=server.port)}" in str(caught.value)
    assert server.hits == 1


@worlds
@pytest.mark.parametrize("location", ["http://[fe80::1%ü]/new", "http://[::1/new", "http://a:b/"])
def test_a_redirect_that_is_no_url(servers, world, location):
    """A redirect without a valid target is a normal response; if it is to be followed, httpx raises
    an error, and nothing stays in flight."""
    (server,) = servers(moved_with_cookie(location))
    errors = (httpx.RemoteProtocolError, UnicodeError)
    with world.client([server.url], name="orders.test") as client:
        # httpx builds the next request even if it is not to be sent
        with contextlib.suppress(*errors), client.stream("GET", "/old") as response:
            assert response.status_code == 302
        assert client.in_flight == 0
        with pytest.raises(errors):
            client.get("/old", follow_redirects=True)
        assert client.in_flight == 0


@worlds
def test_a_request_in_another_spelling_stays(servers, world):
    """A request that names an instance, or the service in another spelling, keeps its cookies and
    credentials for the service."""
    (server,) = servers(tells_port)
    server.behaviour = moved_with_cookie(f"http://127.0.0.1:{server.port}/new")
    spellings = [f"{server.url}/old", "HTTP://ORDERS.test./old", "//orders.test:80/old"]
    for url in [*spellings, httpx.URL(spellings[0])]:
        with world.client([server.url], name="orders.test", follow_redirects=True) as client:
            response = client.get(url, headers={"Authorization": "Bearer x"})
            assert str(response.url) == "http://orders.test/new"
            (cookie,) = client.cookies.jar
            assert cookie.domain == "orders.test"
            asked = f"http://user:{server.port}@127.0.0.1:{server.port}/who"
            assert client.get(asked).request.url.username == "user"
        first, second, third = server.requests
        assert first.headers["authorization"] == second.headers["authorization"] == "Bearer x"
        assert second.headers["cookie"] == "session=42"
        assert third.headers["authorization"].startswith("Basic ")
        server.requests.clear()


def test_an_instance_that_has_gone_is_a_stranger(servers):
    """A URL of an instance belongs to the service as long as the instance is known."""

    class Changing:
        instances = ()

        def resolve(self):
            return lbclient.Answer(self.instances, ttl=60)

    stays, goes = servers(tells_port, tells_port)
    service = Changing()
    service.instances = [lbclient.Instance("127.0.0.1", one.port) for one in (stays, goes)]
    with lbclient.Client(service, name="orders.test") as client:
        assert client.get("/").status_code == 200
        assert client.get(f"{goes.url}/x").status_code == 200
        assert client.get(f"{goes.url}/x").status_code == 200
        service.instances = service.instances[:1]
        client.balancer.refresh()
        with pytest.raises(lbclient.LoadBalancingError, match=f"not {goes.url};"):
            client.get(f"{goes.url}/x")


@pytest.mark.parametrize("host", ["ORDERS.test", "orders.test.", "orders.test:80"])
def test_a_base_url_in_another_spelling(servers, host):
    """`base_url` may name the service in any spelling; requests go to the service."""
    (server,) = servers(tells_port)
    with lbclient.Client([server.url], name="orders.test", base_url=f"http://{host}/v1") as client:
        assert client.base_url == "http://orders.test/v1/"
        assert client.get("/x").status_code == 200
    assert server.requests[0].target == "/v1/x"


@worlds
def test_max_redirects(servers, world):
    """A loop of redirects ends as in httpx, and nothing stays in flight."""
    (server,) = servers(says(302, b"again", Location="/old"))
    with world.client([server.url], follow_redirects=True, max_redirects=3) as client:
        with pytest.raises(httpx.TooManyRedirects):
            client.get("/old")
        assert client.in_flight == 0
    assert server.hits == 4


# One deadline for all requests of a call


class Clock:
    """Virtual seconds: the tests decide what takes time."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        """An event hook, or a step of an auth flow, that takes this long."""
        return lambda _: setattr(self, "now", self.now + seconds)


HEADER = "X-Left"
TOTAL = lbclient.RetryPolicy(deadline=1.0)


def moves_on(connection, request):
    """Redirects /3 to /2, /2 to /1, and so on to /0, which answers."""
    number = int(request.target[1:])
    if number:
        connection.answer(302, b"moved", Location=f"/{number - 1}")
    else:
        connection.answer(200, b"arrived")


def times_left(*servers):
    """The time left that instances were told, in milliseconds."""
    return [int(request.headers[HEADER.lower()]) for request in all_requests(*servers)]


@worlds
@pytest.mark.parametrize("per_call", [False, True], ids=["policy", "extension"])
def test_a_deadline_covers_redirects(servers, world, per_call):
    """Redirects share the deadline of the call, including hooks in between, and each request is
    told what is left."""
    (server,), clock = servers(moves_on), Clock()
    asked = {"extensions": {"lbclient": {"deadline": 1.0}}} if per_call else {}
    with world.client(
        [server.url],
        clock=clock,
        retry=None if per_call else TOTAL,
        deadline_header=HEADER,
        follow_redirects=True,
        event_hooks={"response": [world.hook(clock.passes(0.25))]},
    ) as client:
        assert client.get("/3", **asked).text == "arrived"
        assert times_left(server) == [1000, 750, 500, 250]
        with pytest.raises(lbclient.DeadlineExceeded, match=r"after 1\.00 s.* not sent") as caught:
            client.get("/5", **asked)
        assert client.in_flight == 0
    assert isinstance(caught.value, httpx.TimeoutException)
    assert any("request 5 of this call" in note for note in caught.value.__notes__)
    assert times_left(server) == [1000, 750, 500, 250] * 2


class Moves(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A caller's transport that is asked for /2, /1 and /0 in turn, and records its time."""

    def __init__(self, seen):
        self.seen = seen

    def handle_request(self, request):
        self.seen.append(lbclient.time_left())
        number = int(request.url.path[1:])
        moved = httpx.Response(302, headers={"Location": f"/{number - 1}"})
        return moved if number else httpx.Response(200)

    async def handle_async_request(self, request):
        return self.handle_request(request)


@worlds
def test_a_callers_transport_knows_what_redirects_have_left(world):
    """`time_left` tells a caller's transport what is left of the whole call."""
    clock, seen = Clock(), []
    with world.client(
        "http://10.0.0.1",
        clock=clock,
        retry=TOTAL,
        transport=lambda _: Moves(seen),
        follow_redirects=True,
        event_hooks={"response": [world.hook(clock.passes(0.25))]},
    ) as client:
        assert client.get("/2").status_code == 200
    assert seen == [1.0, 0.75, 0.5]


@worlds
def test_a_deadline_covers_what_comes_before_the_first_request(servers, world):
    """If a hook uses up the time of the call, nothing more is sent."""
    (server,), clock = servers(tells_port), Clock()
    hooks = {"request": [world.hook(clock.passes(1.5))]}
    with (
        world.client([server.url], clock=clock, retry=TOTAL, event_hooks=hooks) as client,
        pytest.raises(lbclient.DeadlineExceeded, match=r"after 1\.50 s.* not sent") as caught,
    ):
        client.get("/")
    assert not hasattr(caught.value, "__notes__")
    assert server.hits == 0


class SlowTokenAuth(httpx.Auth):
    """An auth flow that asks for a token first, by a slow request without extensions."""

    def __init__(self, clock, seconds):
        self.pass_time = clock.passes(seconds)

    def auth_flow(self, request):
        yield httpx.Request("POST", request.url.join("/token"))
        self.pass_time(request)
        yield request


@worlds
def test_a_deadline_covers_auth_rounds(servers, world):
    """The requests of an auth flow share the deadline of the call, including those that it makes
    itself."""
    (server,), clock = servers(tells_port), Clock()
    asked = {"lbclient": {"deadline": 1.0}}
    with world.client([server.url], clock=clock, deadline_header=HEADER) as client:
        client.get("/", auth=SlowTokenAuth(clock, 0.5), extensions=asked)
        assert times_left(server) == [1000, 500]
        with pytest.raises(lbclient.DeadlineExceeded):
            client.get("/", auth=SlowTokenAuth(clock, 1.1), extensions=asked)
        assert [one.target for one in server.requests] == ["/token", "/", "/token"]
        assert client.in_flight == 0


@worlds
def test_a_deadline_covers_a_digest(servers, world):
    """The second round of a digest has the time that the first has left."""
    challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
    (server,), clock = servers(in_turn(says(401, WWW_Authenticate=challenge), tells_port)), Clock()
    with world.client(
        [server.url],
        clock=clock,
        retry=TOTAL,
        deadline_header=HEADER,
        auth=httpx.DigestAuth("me", "secret"),
        event_hooks={"response": [world.hook(clock.passes(0.75))]},
    ) as client:
        assert client.get("/").status_code == 200
    assert times_left(server) == [1000, 250]


@worlds
def test_a_deadline_covers_a_stream_after_a_redirect(servers, world):
    """The body of a streamed response has the time of the whole call, including redirects."""

    def keeps_its_body(connection, _):
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        connection.server.stopping.wait()

    (server,), clock = servers(in_turn(says(302, Location="/new"), keeps_its_body)), Clock()
    hooks = {"response": [world.hook(clock.passes(0.4))]}
    with world.client(
        [server.url], clock=clock, retry=TOTAL, follow_redirects=True, event_hooks=hooks
    ) as client:
        with client.stream("GET", "/old") as response:
            clock.now += 0.3
            with pytest.raises(lbclient.DeadlineExceeded):
                client.read(response)
        assert client.in_flight == 0


@worlds
def test_each_call_has_a_deadline_of_its_own(servers, world):
    """Extensions and requests may be used again: a second call has its full time, even through
    httpx's own client."""
    (server,), clock = servers(moves_on), Clock()
    options = {"clock": clock, "deadline_header": HEADER}
    hooks = {"response": [world.hook(clock.passes(0.5))]}
    asked = {"lbclient": {"deadline": 1.0}}
    with world.client([server.url], follow_redirects=True, event_hooks=hooks, **options) as client:
        request = client.build_request("GET", "/1", extensions=asked)
        first = client.send(request)
        client.send(request)
        client.get("/1", extensions=asked)
        client.get("/1", extensions=first.request.extensions)
        client.send(client.send(request, follow_redirects=False).next_request)
    assert times_left(server) == [1000, 500] * 4 + [1000, 1000]
    with world.under_httpx([server.url], **options) as client:
        client.send(request)
    assert times_left(server)[-1] == 1000
    assert asked == {"lbclient": {"deadline": 1.0}}


@worlds
def test_a_call_inside_a_call_has_its_own_time(servers, world):
    """A request that a hook sends, by the same client or another, is not bound by the deadline of
    its call."""
    outer, inner = servers(tells_port, tells_port)
    clock = Clock()
    asked = {"extensions": {"lbclient": {"deadline": 1.0}}}
    options = {"clock": clock, "deadline_header": HEADER}

    async def asends(client, other, hooks):
        await client.get("/inner")
        await other.get("/", **asked)
        client.event_hooks = hooks

    def sends(client, other, hooks):
        client.get("/inner")
        other.get("/", **asked)
        client.event_hooks = hooks

    def hook_of(client, other):
        def nested(_):
            clock.now += 0.75
            hooks, client.event_hooks = client.event_hooks, {}
            return (sends if world.backend is None else asends)(client, other, hooks)

        return nested

    with (
        world.client([outer.url], **options) as client,
        world.client([inner.url], **options) as other,
    ):
        client.client.event_hooks = {"request": [hook_of(client.client, other.client)]}
        client.get("/outer", **asked)
    assert times_left(inner) == [1000]
    assert [one.target for one in outer.requests] == ["/inner", "/outer"]
    left = [one.headers.get(HEADER.lower()) for one in outer.requests]
    assert left[0] is None
    assert int(left[1]) == 250


@worlds
def test_a_request_of_its_own_may_end_earlier(servers, world):
    """A request in a call may ask for less time than the call has left, but never gets more."""
    (server,), clock = servers(tells_port), Clock()

    class Asks(httpx.Auth):
        def auth_flow(self, request):
            for seconds in (0.25, 30.0):
                asked = {"lbclient": {"deadline": seconds}}
                yield httpx.Request("POST", request.url.join("/token"), extensions=asked)
            yield request

    with world.client([server.url], clock=clock, retry=TOTAL, deadline_header=HEADER) as client:
        client.get("/", auth=Asks())
    assert times_left(server) == [250, 1000, 1000]


@worlds
@pytest.mark.parametrize(("before", "charged"), [(0.0, 1), (0.25, 1), (0.75, 0)])
def test_the_deadline_charges_who_had_half_of_it(servers, world, before, charged):
    """An instance is charged for the end of the deadline if it had half of the call's whole time,
    not half of what a redirect left."""
    (server,), clock = servers(tells_port), Clock()

    def lets_it_pass(connection, request):
        if request.target == "/old":
            connection.answer(302, Location="/new")
        else:
            clock.now = 1001.25
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")
            connection.send(b"x")

    server.behaviour = lets_it_pass
    hooks = {"response": [world.hook(clock.passes(before))]}
    with world.client(
        [server.url], clock=clock, retry=TOTAL, follow_redirects=True, event_hooks=hooks
    ) as client:
        with pytest.raises(lbclient.DeadlineExceeded, match=r"after 1\.25 s"):
            client.get("/old")
        (one,) = client.client.balancer.snapshot().instances
    assert one.failures == charged


# Event hooks


@worlds
def test_hooks_fire_once_per_request(servers, world):
    """Hooks are not called for retries: they are called once, with the caller's request and the
    final response."""
    pair = servers(says(503), says(503), in_turn(says(503), tells_port))
    seen = []
    hooks = {
        "request": [world.hook(lambda request: seen.append(str(request.url)))],
        "response": [world.hook(lambda response: seen.append(response.status_code))],
    }
    with world.client(urls(pair), name="orders.test", event_hooks=hooks) as client:
        response = client.get("/", extensions={"lbclient": {"idempotent": True}})
    assert seen == ["http://orders.test/", response.status_code]
    assert len(lbclient.call_info(response).attempts) == 3


@worlds
@pytest.mark.parametrize("streamed", [False, True])
def test_a_hook_that_raises(servers, world, streamed):
    """An exception of a hook reaches the caller, charges no instance, and leaves nothing in
    flight."""
    (server,) = servers(says(200, b"x" * 100_000))

    def raises(_):
        raise LookupError("mine")

    def call():
        if streamed:
            with client.stream("GET", "/") as response:
                client.read(response)
        else:
            client.get("/")

    for kind in ("request", "response"):
        with world.client([server.url], event_hooks={kind: [world.hook(raises)]}) as client:
            with pytest.raises(LookupError, match="mine"):
                call()
            assert client.in_flight == 0
            (one,) = client.balancer.snapshot().instances
            assert one.failures == 0


def test_a_call_from_within_a_hook(servers):
    """C24: a call of the same client inside a hook is served, without a deadlock."""
    (server,) = servers(tells_port)
    client = lbclient.Client([server.url])
    inner = []

    def again(response):
        if response.request.url.path == "/outer":
            inner.append(client.get("/inner").status_code)

    client.event_hooks = {"request": [], "response": [again]}
    with client:
        assert client.get("/outer").status_code == 200
        with client.stream("GET", "/outer") as response:
            assert response.status_code == 200
    assert inner == [200, 200]


@pytest.mark.anyio
async def test_a_call_from_within_an_async_hook(servers):
    """C24: an async call of the same client inside a hook is served, without a deadlock."""
    (server,) = servers(tells_port)
    client = lbclient.AsyncClient([server.url])
    inner = []

    async def again(response):
        if response.request.url.path == "/outer":
            inner.append((await client.get("/inner")).status_code)

    client.event_hooks = {"request": [], "response": [again]}
    async with client:
        assert (await client.get("/outer")).status_code == 200
        async with client.stream("GET", "/outer") as response:
            assert response.status_code == 200
    assert inner == [200, 200]


# Requests and responses as the caller sees them


@worlds
def test_the_response_is_httpxs(servers, world):
    """URL, request, elapsed, version, reason and headers are those of the logical request."""
    pair = servers(resets, tells_port)
    with world.client(urls(pair), strategy="round-robin", name="orders.test") as client:
        for _ in range(2):
            response = client.get("/o?q=1")
            assert str(response.url) == str(response.request.url) == "http://orders.test/o?q=1"
            assert response.request.headers["host"] == "orders.test"
            assert response.http_version == "HTTP/1.1"
            assert response.reason_phrase == "X"
            assert 0 < response.elapsed.total_seconds() < 5
            assert response.is_closed
            assert response.num_bytes_downloaded == len(response.content) > 0
            assert response.raise_for_status() is response


@worlds
def test_the_callers_request_is_never_changed(servers, world):
    """Except for its extensions a request is not changed, so that it can be sent again."""
    pair = servers(in_turn(resets, tells_port), tells_port)
    with world.client(urls(pair), strategy="round-robin", name="orders.test") as client:
        request = client.build_request("PUT", "/o?q=1", json={"a": 1}, headers={"X": "y"})
        before = (request.method, str(request.url), request.headers.raw[:], request.content)
        stream = request.stream
        for _ in range(3):
            assert client.send(request).status_code == 200
            after = (request.method, str(request.url), request.headers.raw[:], request.content)
            assert after == before
            assert request.stream is stream
    bodies = {one.body for one in all_requests(*pair)}
    assert len(bodies) == 1
    assert len(all_requests(*pair)) == 4


@worlds
def test_one_request_streamed_and_not(servers, world):
    """The same request may be sent streamed once and unstreamed next."""
    (server,) = servers(says(200, b"x" * 10))
    with world.client([server.url]) as client:
        request = client.build_request("GET", "/")
        for streamed in (True, False, True):
            response = client.send(request, stream=streamed)
            assert response.is_closed is not streamed
            assert client.in_flight == int(streamed)
            assert client.read(response) == b"x" * 10
            client.shut(response)
            assert client.in_flight == 0


@worlds
def test_host(servers, world):
    """Host is the service's name, else each instance's own; the caller's own header comes first."""
    pair = servers(tells_port, tells_port)
    own = [f"127.0.0.1:{one.port}" for one in pair]

    def hosts(client, **kwargs):
        for _ in range(2):
            client.get("http://orders.test/" if kwargs.pop("absolute", False) else "/", **kwargs)
        return [one.requests[-1].headers["host"] for one in pair]

    with world.client(urls(pair), strategy="round-robin") as client:
        assert hosts(client) == own
        assert hosts(client, headers={"Host": "mine.test"}) == ["mine.test"] * 2
    with world.client(urls(pair), strategy="round-robin", name="orders.test") as client:
        assert hosts(client) == ["orders.test"] * 2
        assert hosts(client, headers={"Host": "mine.test"}) == ["mine.test"] * 2
    with world.client(urls(pair), strategy="round-robin", headers={"Host": "a.test"}) as client:
        assert hosts(client) == ["a.test"] * 2
    with world.under_httpx(urls(pair), strategy="round-robin") as client:
        for _ in range(2):
            client.get("http://logical.test:8080/")
        assert [one.requests[-1].headers["host"] for one in pair] == ["logical.test:8080"] * 2


@worlds
def test_a_named_instance_is_only_a_hint(servers, world):
    """An absolute URL that names one instance is balanced, and sent with the service's Host."""
    pair = servers(tells_port, tells_port)
    with world.client(urls(pair), strategy="round-robin", name="orders.test") as client:
        for _ in range(2):
            client.get(pair[0].url + "/x")
    assert [[one.headers["host"] for one in server.requests] for server in pair] == [
        ["orders.test"]
    ] * 2


@worlds
def test_timeouts(servers, world):
    """Timeouts of `extensions` override those of one call, which override the client's."""
    gate = Gate()
    (server,) = servers(gate)
    one_try = {"retry": None, "breaker": None}
    with (
        world.client([server.url], timeout=0.05, **one_try) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.get("/")
    with world.client([server.url], timeout=30, **one_try) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.get("/", timeout=0.05)
        with pytest.raises(httpx.ReadTimeout):
            client.get("/", timeout=httpx.Timeout(30, read=0.05))
        bounds = {"connect": 30, "read": 0.05, "write": 30, "pool": 30}
        with pytest.raises(httpx.ReadTimeout):
            client.get("/", extensions={"timeout": bounds})
        gate.open.set()
        assert client.get("/", timeout=None).status_code == 200
        assert client.in_flight == 0


@worlds
def test_trace_extension(servers, world):
    """The `trace` extension, httpcore's, is told of every attempt."""
    pair = servers(resets, tells_port)
    events = []
    trace = world.hook(lambda name, _: events.append(name))
    with world.client(urls(pair), strategy="round-robin") as client:
        for _ in range(2):
            client.get("/", extensions={"trace": trace})
    assert events.count("http11.receive_response_headers.complete") == 2
    assert events.count("http11.receive_response_headers.failed") in (1, 2)


# Errors and what they tell


class First:
    """A strategy that begins with the first instance, so that a test knows where a call goes."""

    def pick(self, candidates, _):
        return candidates[0]


@worlds
def test_call_info_of_a_response(servers, world, dead_port):
    """`call_info(response)` lists each attempt: instance, status or error, and why this
    instance."""
    busy, server = servers(says(503), tells_port)
    for first, status, error in (
        (busy.url, 503, type(None)),
        (f"http://127.0.0.1:{dead_port}", None, httpx.ConnectError),
    ):
        with world.client([first, server.url], strategy=First()) as client:
            response = client.get("/")
        one, two = lbclient.call_info(response).attempts
        assert f"http://{one.instance}" == first
        assert (one.status, type(one.error), one.reason) == (status, error, "First")
        assert (two.instance.port, two.status, two.error) == (server.port, 200, None)
        assert two.reason == "retry"
        assert 0 < one.elapsed + two.elapsed < response.elapsed.total_seconds() + 1


@worlds
def test_call_info_of_an_exception(servers, world, dead_port):
    """`call_info(exception)` lists the attempts; the exception is httpx's, with a note about
    them."""
    (server,) = servers(resets)
    service = [f"http://127.0.0.1:{dead_port}", server.url]
    with world.client(service, name="orders.test") as client:
        with pytest.raises((httpx.ReadError, httpx.ConnectError)) as caught:
            client.get("/o")
        assert client.in_flight == 0
    error = caught.value
    assert not isinstance(error, lbclient.LoadBalancingError)
    assert str(error.request.url) == "http://orders.test/o"
    attempts = lbclient.call_info(error).attempts
    assert len(attempts) == 3
    assert {one.instance.port for one in attempts} == {dead_port, server.port}
    assert attempts[-1].error is error
    (note,) = error.__notes__
    assert f"127.0.0.1:{dead_port}: ConnectError" in note
    assert f"127.0.0.1:{server.port}: ReadError" in note


@worlds
def test_errors_are_httpxs_own(world, dead_port):
    """`except httpx.ConnectError` catches a dead instance and an open breaker."""
    breaker = lbclient.BreakerPolicy(fail_max=1, reset_timeout=30)
    with world.client([f"http://127.0.0.1:{dead_port}"], retry=None, breaker=breaker) as client:
        with pytest.raises(httpx.ConnectError) as first:
            client.post("/", content=b"x")
        with pytest.raises(httpx.ConnectError) as second:
            client.post("/", content=b"x")
    assert type(first.value) is httpx.ConnectError
    assert first.value.request.method == "POST"
    assert isinstance(second.value, lbclient.NoInstanceAvailable)
    assert 0 < second.value.retry_in <= 30
    assert second.value.request.method == "POST"
    assert lbclient.call_info(second.value).attempts == ()


@worlds
def test_raise_for_status(servers, world):
    """The last response is returned, whatever its status, and `raise_for_status` raises."""
    pair = servers(says(503, b"busy"), says(503, b"busy"))
    with world.client(urls(pair)) as client:
        response = client.get("/")
        assert response.text == "busy"
        with pytest.raises(httpx.HTTPStatusError) as caught:
            response.raise_for_status()
        assert client.in_flight == 0
    assert caught.value.response is response
    assert [one.status for one in lbclient.call_info(response).attempts] == [503] * 3


# In flight: from the pick until the body is closed


@worlds
def test_a_stream_is_in_flight_until_it_is_closed(servers, world):
    """An instance is busy until its body ends, is closed early, or breaks."""
    (server,) = servers(says(200, b"x" * 100_000))
    with world.client([server.url], breaker=None) as client:
        with client.stream("GET", "/") as response:
            assert client.in_flight == 1
            client.read(response)
            assert client.in_flight == 0
        with client.stream("GET", "/") as response:
            assert client.in_flight == 1
        assert client.in_flight == 0
        with contextlib.suppress(KeyError), client.stream("GET", "/") as response:
            assert client.in_flight == 1
            raise KeyError
        assert client.in_flight == 0
        server.behaviour = dies_in_body
        with client.stream("GET", "/") as response:
            assert client.in_flight == 1
            with pytest.raises(httpx.TransportError):
                client.read(response)
            assert client.in_flight == 0
        assert client.in_flight == 0


def test_leaving_a_stream_in_the_middle(servers):
    """An instance is free after the block, even if it is left in the middle of the body."""
    (server,) = servers(says(200, BIG))
    with lbclient.Client([server.url]) as client:
        for read in ("iter_raw", "iter_bytes"):
            with client.stream("GET", "/") as response:
                for chunk in getattr(response, read)():
                    assert chunk
                    break
            assert client.balancer._engine._picker.in_flight == 0
            assert busy_connections(client) == []


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpx's, cut short: trio
async def test_leaving_an_async_stream_in_the_middle(servers):
    """An instance is free after an async block, even if it is left in the middle of the body."""
    (server,) = servers(says(200, BIG))
    async with lbclient.AsyncClient([server.url]) as client:
        for read in ("aiter_raw", "aiter_bytes"):
            async with client.stream("GET", "/") as response:
                async for chunk in getattr(response, read)():
                    assert chunk
                    break
            assert client.balancer._engine._picker.in_flight == 0
            assert busy_connections(client) == []


@worlds
def test_a_streamed_redirect(servers, world):
    """After a redirect that was followed with `stream`, only the last response is in flight."""
    pair = servers(redirects("/new"), redirects("/new"))
    with world.client(urls(pair), follow_redirects=True) as client:
        with client.stream("GET", "/old") as response:
            assert client.in_flight == 1
            assert client.read(response).endswith(b"/new")
        assert client.in_flight == 0


@worlds
def test_closing_twice_frees_once(servers, world):
    """A response that is read, then closed twice, releases its slot once."""
    (server,) = servers(says(200, b"x" * 100))
    with world.client([server.url]) as client:
        other = client.send(client.build_request("GET", "/"), stream=True)
        response = client.send(client.build_request("GET", "/"), stream=True)
        client.read(response)
        for _ in range(3):
            client.shut(response)
            assert client.in_flight == 1
        client.shut(other)
        assert client.in_flight == 0


@worlds
def test_without_a_with_block(servers, world):
    """A client works without `with` too, and can be closed by its method."""
    (server,) = servers(tells_port)
    if world.backend is None:
        client = lbclient.Client([server.url])
        assert client.get("/").status_code == 200
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.get("/")
        return

    async def use():
        client = lbclient.AsyncClient([server.url])
        assert (await client.get("/")).status_code == 200
        await client.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await client.get("/")

    anyio.run(use, backend=world.backend)


def test_limits_bound_what_is_in_flight(servers):
    """`limits=httpx.Limits(max_connections=2)` allows two calls at a time, over all instances."""
    gates = [Gate(), Gate()]
    pair = servers(*gates)
    limits = httpx.Limits(max_connections=2)
    with lbclient.Client(urls(pair), limits=limits, strategy="round-robin") as client:
        threads = [threading.Thread(target=client.get, args=("/",)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for gate in gates:
            assert gate.entered.acquire(timeout=5)
        with pytest.raises(httpx.ConnectError, match="limit"):
            client.get("/", timeout=httpx.Timeout(5, pool=0.05))
        assert sum(one.in_flight for one in client.balancer.snapshot().instances) == 2
        assert len(all_requests(*pair)) == 2
        for gate in gates:
            gate.open.set()
        for thread in threads:
            thread.join()
        assert sum(one.in_flight for one in client.balancer.snapshot().instances) == 0
    assert len(all_requests(*pair)) == 6


def busy_connections(client):
    """The number of connections that the pools count as in use."""
    return [one for transport in transports_of(client) for one in transport._connections._used]


@worlds
def test_a_dropped_response_frees_its_instance(servers, world):
    """C14: a response that is dropped unclosed causes a warning, and neither slot nor connection is
    lost."""
    (server,) = servers(says(200, b"x" * 1_000_000))
    limits = httpx.Limits(max_connections=3)
    with world.client([server.url], limits=limits) as client:
        with pytest.warns(ResourceWarning, match="never closed") as warned:  # noqa: PT031  # of all
            for _ in range(2):
                for _ in range(3):
                    client.send(client.build_request("GET", "/"), stream=True)
                gc.collect()
                assert client.in_flight == 0
        assert len(warned) == 6
        assert client.get("/").status_code == 200
        assert busy_connections(client.client) == []


@worlds
def test_a_client_closed_under_a_stream(servers, world):
    """A response that is open when its client is closed raises an error, and releases its slot."""
    (server,) = servers(says(200, BIG))
    with world.client([server.url]) as client:
        response = client.send(client.build_request("GET", "/"), stream=True)
        client.run(client.client.close if world.backend is None else client.client.aclose)
        assert client.in_flight == 1
        with pytest.raises((httpx.TransportError, httpx.StreamError)):
            client.read(response)
        client.shut(response)
        assert client.in_flight == 0


@worlds
def test_an_upgraded_connection(servers, world):
    """After 101 the connection belongs to the caller, and the instance is busy until it is
    closed."""

    def upgrades(connection, _):
        connection.send(b"HTTP/1.1 101 Y\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        connection.send(connection.sock.recv(100))

    (server,) = servers(upgrades)
    headers = {"Connection": "upgrade", "Upgrade": "echo"}
    with world.client([server.url]) as client:
        with client.stream("GET", "/", headers=headers) as response:
            assert response.status_code == 101
            stream = response.extensions["network_stream"]
            client.run(stream.write, b"ping")
            assert client.run(stream.read, 100) == b"ping"
            assert client.in_flight == 1
        assert client.in_flight == 0


def test_threads_share_a_client(servers):
    """Forty threads through one client: every call is served, and nothing stays in flight."""
    pair = servers(tells_port, in_turn(says(503), resets, tells_port), tells_port)
    seen = []
    with lbclient.Client(urls(pair)) as client:

        def calls():
            for turn in range(10):
                if turn % 2:
                    seen.append(client.get("/").status_code)
                else:
                    with client.stream("GET", "/") as response:
                        seen.append(response.status_code)

        threads = [threading.Thread(target=calls) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one.in_flight for one in client.balancer.snapshot().instances) == 0
        assert busy_connections(client) == []
    assert Counter(seen)[200] >= 395
    assert len(seen) == 400


# A transport of the caller's own


@worlds
def test_a_mock_transport(world):
    """A transport of `transport=` gets its instance's URL, the logical Host and the time left."""
    made, seen = [], []

    def answer(request):
        seen.append((str(request.url), request.headers["host"], request.content))
        return httpx.Response(200, json={"ok": True})

    def factory(instance):
        made.append(instance)
        return httpx.MockTransport(answer)

    service = [lbclient.Instance("10.0.0.1", 8080), lbclient.Instance("2001:db8::1", 8080)]
    with world.client(
        service, transport=factory, name="orders.test", strategy="round-robin"
    ) as client:
        for _ in range(4):
            response = client.put("/o?q=%5B1%5D", content=b"order")
            assert response.json() == {"ok": True}
            assert str(response.url) == "http://orders.test/o?q=%5B1%5D"
        assert client.in_flight == 0
    assert len(made) == 2
    assert set(made) == set(service)
    assert Counter(seen) == {
        ("http://10.0.0.1:8080/o?q=%5B1%5D", "orders.test", b"order"): 2,
        ("http://[2001:db8::1]:8080/o?q=%5B1%5D", "orders.test", b"order"): 2,
    }


@worlds
def test_a_transport_of_ones_own_cannot_change_the_request(world):
    """What a caller's transport changes in its request affects that attempt only."""

    def answer(request):
        assert "x-mine" not in request.headers
        request.headers["X-Mine"] = "1"
        request.headers["Host"] = "spoilt"
        request.extensions["mine"] = 1
        request.method = "DELETE"
        return httpx.Response(503)

    with world.client(
        ["http://10.0.0.1", "http://10.0.0.2"],
        name="orders.test",
        transport=lambda _: httpx.MockTransport(answer),
    ) as client:
        response = client.get("/", headers={"X": "y"})
    assert response.request.method == "GET"
    assert response.request.headers["host"] == "orders.test"
    assert "x-mine" not in response.request.headers
    assert "mine" not in response.request.extensions


@worlds
def test_a_factory_that_fails(world):
    """An exception of a transport factory reaches the caller, charges no instance, and releases the
    slot."""

    def factory(_):
        raise LookupError("no such transport")

    for made, error in ((factory, LookupError), (lambda _: None, TypeError)):
        with world.client(["http://10.0.0.1"], transport=made) as client:
            with pytest.raises(error):
                client.get("/")
            assert client.in_flight == 0
            assert client.balancer.snapshot().instances[0].failures == 0


@worlds
def test_a_transport_that_reads_the_content(world):
    """A body of bytes is available as `request.content`, as in any transport of httpx's."""

    class Reads(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def handle_request(self, request):
            return httpx.Response(200, content=request.content)

        async def handle_async_request(self, request):
            return self.handle_request(request)

    with world.client(["http://10.0.0.1"], transport=lambda _: Reads()) as client:
        assert client.put("/", json=[1]).content == b"[1]"
        assert client.get("/").content == b""


@worlds
def test_a_transport_with_a_streamed_answer(world):
    """The body of a caller's transport also keeps its instance busy until it is closed."""
    answer = lambda _: httpx.Response(200, content=world.body([b"ab", b"cd"]))  # noqa: E731
    with world.client(
        ["http://10.0.0.1"], transport=lambda _: httpx.MockTransport(answer)
    ) as client:
        assert client.get("/").text == "abcd"
        with client.stream("GET", "/") as response:
            assert client.in_flight == 1
            assert client.read(response) == b"abcd"
        assert client.in_flight == 0


@worlds
def test_httpxs_transport_as_the_engine(servers, world):
    """The transports of httpx can carry the requests, and their errors are handled."""
    pair = servers(resets, tells_port)
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    with world.client(
        urls(pair), name="orders.test", transport=lambda _: kind(), strategy="round-robin"
    ) as client:
        for _ in range(2):
            assert client.get("/").text == str(pair[1].port)
        assert client.in_flight == 0
    assert {one.headers["host"] for one in all_requests(*pair)} == {"orders.test"}


@worlds
def test_a_mock_transports_exception(world):
    """A transport that raises httpx's ConnectError counts as a dead instance; any other exception
    is its own error."""

    def answer(request):
        if request.url.host == "10.0.0.1":
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    def bug(_):
        raise ZeroDivisionError

    service = ["http://10.0.0.1", "http://10.0.0.2"]
    with world.client(service, transport=lambda _: httpx.MockTransport(answer)) as client:
        assert {client.post("/").status_code for _ in range(4)} == {200}
    with world.client(service, transport=lambda _: httpx.MockTransport(bug)) as client:
        with pytest.raises(ZeroDivisionError):
            client.get("/")
        assert client.in_flight == 0
        assert {one.failures for one in client.balancer.snapshot().instances} == {0}


@worlds
def test_under_httpxs_client(servers, world):
    """Under httpx.Client hooks, cookies and auth are httpx's; HTTP/1.1 is the default."""
    pair = servers(in_turn(says(503), tells_port), tells_port)
    with world.under_httpx(urls(pair), strategy="round-robin") as client:
        client.cookies.set("a", "b", domain="orders.test")
        for _ in range(4):
            response = client.get("http://orders.test/x", auth=("me", "x"))
            assert response.http_version == "HTTP/1.1"
            assert response.status_code == 200
            assert str(response.url) == "http://orders.test/x"
    for request in all_requests(*pair):
        assert request.headers["cookie"] == "a=b"
        assert request.headers["host"] == "orders.test"


# Interruptions: at every await, and at every step of a thread


@types.coroutine
def interrupted(coroutine, at, interrupt):
    """Run it, and call `interrupt` at await number `at`. Returns the number of awaits."""
    steps, value, error = 0, None, None
    while True:
        try:
            asked = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration:
            return steps
        steps += 1
        if steps == at:
            interrupt()
        value = error = None
        try:
            value = yield asked
        except BaseException as raised:  # noqa: BLE001  # passed on
            error = raised


async def cancelled_by_scope(coroutine, at):
    """Cancel as trio and anyio do. True if it was reached."""
    with anyio.CancelScope() as scope:
        await interrupted(coroutine, at, scope.cancel)
    return scope.cancelled_caught


async def cancelled_by_task(coroutine, at):
    """Cancel as asyncio itself does: once, regardless of anyio's shields."""
    task = asyncio.ensure_future(cancelling_itself(coroutine, at))
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


async def cancelling_itself(coroutine, at):
    await interrupted(coroutine, at, asyncio.current_task().cancel)


async def get(client):
    await client.get("/")


async def post(client):
    async def body():
        yield b"a" * 10
        await anyio.lowlevel.checkpoint()
        yield b"b" * 10

    await client.post("/", content=body())


async def read_stream(client):
    async with client.stream("GET", "/") as response:
        await response.aread()


async def close_stream(client):
    async with client.stream("GET", "/") as response:
        await anyio.lowlevel.checkpoint()
        assert response.status_code == 200


def long_answer(connection, _):
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n")
    connection.send(b"x" * 100_000)
    connection.send(b"x" * 100_000)


SCENES = {
    "get": (get, [long_answer, long_answer]),
    "post": (post, [tells_port, tells_port]),
    "retried status": (get, [says(503, b"x" * 100), says(503, b"x" * 100_000)]),
    "retried reset": (get, [resets, resets]),
    "broken body": (get, [dies_in_body, dies_in_body]),
    "read stream": (read_stream, [long_answer, says(503, b"x" * 100)]),
    "closed stream": (close_stream, [long_answer, long_answer]),
}


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # httpx's, cut short: trio
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize(
    ("anyio_backend", "cancelled"),
    [
        ("asyncio", cancelled_by_scope),
        ("asyncio", cancelled_by_task),
        ("trio", cancelled_by_scope),
    ],
)
async def test_cancelled_at_every_await(servers, scene, cancelled):
    """C1, C3: wherever a call is cancelled, nothing stays in flight or open, and no instance is
    charged."""
    call, behaviours = SCENES[scene]
    pair = servers(*behaviours)
    at = 0
    more = True
    while more:
        at += 1
        more = False
        async with lbclient.AsyncClient(
            urls(pair), retry=lbclient.RetryPolicy(attempts=3, backoff=0.001), breaker=None
        ) as client:
            with contextlib.suppress(httpx.TransportError):
                more = await cancelled(call(client), at)
            snapshot = client.balancer.snapshot()
            assert [one.in_flight for one in snapshot.instances] == [0, 0], at
            assert client.balancer._engine._picker.in_flight == 0
            if cancelled is cancelled_by_scope:  # the other way cuts httpcore's clean-up short, too
                assert busy_connections(client) == [], at
    assert at > 3


@pytest.mark.anyio
async def test_a_cancelled_probe_returns_its_slot(servers):
    """C1, C22: wherever a half-open probe is cancelled, the next call is the probe, at once."""
    (server,) = servers(says(200, b"x" * 100_000))
    at, more, reasons = 0, True, []
    while more:
        at += 1
        server.behaviour = says(500)
        now = [1000.0]
        async with lbclient.AsyncClient(
            [server.url], breaker=lbclient.BreakerPolicy(fail_max=1), clock=lambda now=now: now[0]
        ) as client:
            await client.get("/")
            assert client.balancer.snapshot().instances[0].breaker == "open"
            server.behaviour = long_answer
            now[0] += 100.0
            more = await cancelled_by_scope(read_stream(client), at)
            response = await client.get("/")
            assert client.balancer.snapshot().instances[0].breaker == "closed", at
            reasons.append(lbclient.call_info(response).attempts[0].reason)
            assert client.balancer._engine._picker.in_flight == 0
    probes = reasons.count("probe")  # until the headers are there, for which it waits once or more
    assert probes >= 1
    assert reasons == ["probe"] * probes + ["Weighted"] * (len(reasons) - probes)
    assert reasons[-1] == "Weighted"


@worlds
def test_a_value_that_cannot_be_is_the_callers(servers, world):
    """A ValueError that a request causes is its caller's own: it does not count as a broken
    connection, no instance is charged, and nothing is sent again."""
    (server,) = servers(tells_port)

    def refuses(name, _):
        if name == "http11.send_request_headers.started":
            raise ValueError("no such thing")

    async def arefuses(name, info):
        refuses(name, info)

    trace = refuses if world.backend is None else arefuses
    with world.client([server.url]) as client:
        with pytest.raises(ValueError, match="no such thing"):
            client.get("/", extensions={"trace": trace})
        (one,) = client.balancer.snapshot().instances
        assert (one.attempts, one.failures, one.in_flight) == (1, 0, 0)
        assert client.get("/").status_code == 200


class Interrupt(BaseException):
    """Stands for KeyboardInterrupt, which the test runner would handle."""


def sync_get(client, extensions):
    client.get("/", extensions=extensions)


def sync_post(client, extensions):
    client.post("/", content=iter([b"a", b"b"]), extensions=extensions)


def sync_stream(client, extensions):
    with client.stream("GET", "/", extensions=extensions) as response:
        response.read()


SYNC_SCENES = {
    "get": (sync_get, [long_answer, long_answer]),
    "post": (sync_post, [tells_port, tells_port]),
    "retried status": (sync_get, [says(503, b"x" * 100), says(503, b"x" * 100_000)]),
    "broken body": (sync_get, [dies_in_body, dies_in_body]),
    "read stream": (sync_stream, [long_answer, says(503, b"x" * 100)]),
}


OTHERS_STEPS = {
    "connection.connect_tcp.complete",  # httpcore has the socket in a local variable only
    "http11.response_closed.started",  # already the clean-up
}


@pytest.mark.parametrize("scene", SYNC_SCENES)
def test_interrupted_at_every_step(servers, scene):
    """C4: wherever Ctrl-C interrupts a call, it is raised, and nothing stays in flight or charged.

    The points are the steps of httpcore's trace.
    """
    call, behaviours = SYNC_SCENES[scene]
    pair = servers(*behaviours)
    at = seen = 0
    while seen >= at:
        at += 1
        seen = 0

        def trace(name, _, at=at):
            nonlocal seen
            if name not in OTHERS_STEPS:
                seen += 1
                if seen == at:
                    raise Interrupt

        policy = lbclient.RetryPolicy(attempts=3, backoff=0.001)
        with lbclient.Client(urls(pair), retry=policy, breaker=None) as client:
            with contextlib.suppress(Interrupt, httpx.TransportError):
                call(client, {"trace": trace})
            assert [one.in_flight for one in client.balancer.snapshot().instances] == [0, 0], at
            assert client.balancer._engine._picker.in_flight == 0
    assert at > 4


def test_interrupted_in_the_back_off(servers, monkeypatch):
    """C4: Ctrl-C while a call sleeps before its retry closes the response that was to be
    replaced."""
    (server,) = servers(says(503, b"x" * 100_000))

    def interrupt(_):
        raise Interrupt

    with lbclient.Client([server.url]) as client:
        with monkeypatch.context() as patch:
            patch.setattr("lbclient.http.transport.sleep", interrupt)
            with pytest.raises(Interrupt):
                client.get("/")
        (one,) = client.balancer.snapshot().instances
        assert (one.in_flight, one.failures) == (0, 1)
        assert busy_connections(client) == []
