"""All connections go to checked addresses: those of a caller's transports, of checks and of
probes."""

import contextlib
import socket
import ssl
import threading

import httpx
import pytest
import trustme

import lbclient
from lbclient import Answer, HealthCheck, Instance
from lbclient.strategy.protocol import LoadProbe
from tests.http.test_features import worlds
from tests.http.test_health_check import until
from tests.http.test_tls import TlsServer
from tests.support.dns import Liar
from tests.support.http import Server, says, tells_port

VETTED = "127.0.0.2"
WHERE = {"allow": [f"{VETTED}/32"]}
TARGET = "localhost"
"""An SRV target that the nameserver says is at `VETTED`, and the operating system at 127.0.0.1, as
an attacker's DNS has it whose answer changes between the check and the connection."""


class Rebound:
    """A service whose target has one address for discovery, and another for a later lookup."""

    def __init__(self, liar, behaviour):
        self.other = Server(behaviour)
        try:
            self.vetted = Server(behaviour, host=VETTED, port=self.other.port)
        except OSError:
            self.other.stop()
            raise
        liar.put("_http._tcp.orders.test.", "SRV", f"0 1 {self.other.port} {TARGET}.")
        liar.put(f"{TARGET}.", "A", VETTED)
        self.options = {"nameservers": [liar.address], **WHERE}
        self.url = "http+srv://orders.test"


@contextlib.contextmanager
def rebound(behaviour):
    with Liar() as liar:
        made = Rebound(liar, behaviour)
        try:
            yield made
        finally:
            made.vetted.stop()
            made.other.stop()


class Told:
    """A resolver of the user's that returns what it is given."""

    def __init__(self, *instances):
        self.instances = instances

    def resolve(self):
        return Answer(self.instances, ttl=3600)


def over_httpx(world, **options):
    """A factory of httpx's own transports."""
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    return lambda _: kind(**options)


def recording(answer):
    """A factory of transports that answer with `answer(request)`, and the requests they got."""
    seen = []

    def handle(request):
        seen.append(request)
        return answer(request)

    return lambda _: httpx.MockTransport(handle), seen


def test_the_address_of_an_instance():
    """`Instance.address` is the first checked address, or the host if there is none."""
    assert Instance("a.test", 80, addresses=("10.0.0.1", "::1")).address == "10.0.0.1"
    assert Instance("a.test", 80).address == "a.test"
    assert Instance("2001:DB8::1", 80).address == "2001:db8::1"


@worlds
@pytest.mark.parametrize("way", ["client", "under_httpx"])
def test_a_transport_dials_the_vetted_address(world, way):
    """A transport made by a factory gets a URL with the checked address, and resolves no name."""
    with rebound(tells_port) as service:
        options = {"transport": over_httpx(world), **service.options}
        with getattr(world, way)(service.url, **options) as client:
            for _ in range(3):
                assert client.get("http://orders.test/x").status_code == 200
        assert (service.vetted.hits, service.other.accepted) == (3, 0)
        assert {one.headers["host"] for one in service.vetted.requests} == {"orders.test"}


@worlds
@pytest.mark.parametrize("path", ["/healthz", None])
def test_health_checks_dial_the_vetted_address(world, path):
    """A health check connects to the checked address, with and without a caller's transport."""
    check = HealthCheck(path, interval=0.2, timeout=0.2)
    with rebound(tells_port) as service:
        transport = over_httpx(world, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        options = {"transport": transport, "health": check, **service.options}
        with world.client(service.url, **options) as client:
            client.get("/")
            before = service.vetted.accepted
            until(lambda: service.vetted.accepted > before)
        assert service.other.accepted == 0


@worlds
def test_load_probes_dial_the_vetted_address(world):
    """A load probe over a caller's transport connects to the checked address."""
    probed = threading.Event()

    def behave(connection, request):
        if request.target == "/load":
            probed.set()
        tells_port(connection, request)

    strategy = lbclient.Prequal(probe=LoadProbe("/load", rate=5, interval=0.01))
    with rebound(behave) as service:
        transport = over_httpx(world, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        options = {"transport": transport, "strategy": strategy, **service.options}
        with world.client(service.url, **options) as client:
            client.get("/")
            assert probed.wait(10)
        assert service.other.accepted == 0


def test_a_balancers_caller_dials_the_vetted_address():
    """`Balancer.call` and `acquire` pass an instance whose `address` is the checked one."""
    with rebound(tells_port) as service:

        def fetch(instance):
            with socket.create_connection((instance.address, instance.port)) as sock:
                return sock.getpeername()[0]

        with lbclient.Balancer(service.url, **service.options) as balancer:
            assert balancer.call(fetch) == VETTED
            with balancer.acquire() as instance:
                assert (instance.host, fetch(instance)) == (TARGET, VETTED)
        assert service.other.accepted == 0


@worlds
def test_a_proxy_is_asked_for_the_vetted_address(world):
    """A proxy of a caller's transport is asked for the address, and resolves no name."""
    with rebound(tells_port) as service:
        proxy = Server(says(200))
        try:
            transport = over_httpx(world, proxy=proxy.url)
            with world.client(service.url, transport=transport, **service.options) as client:
                assert client.get("/x").status_code == 200
            (asked,) = proxy.requests
            assert asked.target == f"http://{VETTED}:{service.other.port}/x"
            assert asked.headers["host"] == "orders.test"
        finally:
            proxy.stop()


@worlds
def test_a_static_name_stays_a_name(world):
    """A name in a static list is not checked: the transport gets it unchanged."""
    transport, seen = recording(lambda _: httpx.Response(200))
    with world.client(["http://localhost:8080"], transport=transport) as client:
        client.get("/")
    assert str(seen[0].url) == "http://localhost:8080/"
    assert "sni_hostname" not in seen[0].extensions


@worlds
def test_what_a_transport_is_told_of_a_discovered_instance(world):
    """The URL names the address, an IPv6 one in brackets; Host and TLS name are the service's, or
    with `tls_name="instance"` the TLS name is the instance's."""
    one = Instance("a.orders.test", 8443, addresses=("2001:db8::1",))
    for tls_name, told in (("service", "orders.test"), ("instance", "a.orders.test")):
        transport, seen = recording(lambda _: httpx.Response(200))
        options = {"name": "orders.test", "scheme": "https", "tls_name": tls_name}
        with world.client(Told(one), transport=transport, **options) as client:
            response = client.get("/x?y=%2F")
            assert str(response.url) == "https://orders.test/x?y=%2F"
        (request,) = seen
        assert str(request.url) == "https://[2001:db8::1]:8443/x?y=%2F"
        assert request.headers["host"] == "orders.test"
        assert request.extensions["sni_hostname"] == told


@worlds
@pytest.mark.parametrize("tls_name", ["service", "instance"])
def test_certificates_over_a_transport_of_the_callers(world, tls_name):
    """The certificate is checked for the logical name although the URL names an address; one for
    another name is refused."""
    authority = trustme.CA()
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    wanted = {"service": "orders.test", "instance": "a.orders.test"}[tls_name]
    for name in ("orders.test", "a.orders.test"):
        server = TlsServer(tells_port, authority.issue_cert(name))
        try:
            one = Instance("a.orders.test", server.port, addresses=("127.0.0.1",))
            options = {"name": "orders.test", "scheme": "https", "tls_name": tls_name}
            transport = over_httpx(world, verify=trust)
            with world.client(Told(one), transport=transport, retry=None, **options) as client:
                if name == wanted:
                    assert client.get("/").text == str(server.port)
                else:
                    with pytest.raises(httpx.ConnectError):
                        client.get("/")
            assert server.names == [wanted]
        finally:
            server.stop()


SEVERAL = Instance("a.test", 80, addresses=("10.0.0.1", "10.0.0.2", "10.0.0.3"))


def dead(*hosts, error=httpx.ConnectError):
    """Answer, except for these hosts, which cannot be connected to."""

    def answer(request):
        if request.url.host in hosts:
            raise error("not connected")
        return httpx.Response(200, text=request.url.host)

    return answer


@worlds
@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout])
def test_the_addresses_of_an_instance_are_tried_in_order(world, error):
    """If an address cannot be connected to, the next one is tried within the attempt, for any
    method, and later calls begin with the one that worked."""
    transport, seen = recording(dead("10.0.0.1", error=error))
    with world.client(Told(SEVERAL), transport=transport, retry=None) as client:
        assert [client.post("/", content=b"order").text for _ in range(3)] == ["10.0.0.2"] * 3
        (one,) = client.balancer.snapshot().instances
    assert [request.url.host for request in seen] == ["10.0.0.1", *["10.0.0.2"] * 3]
    assert (one.attempts, one.failures) == (3, 0)


@worlds
def test_an_instance_without_a_living_address(world):
    """An attempt fails once each address has been tried."""
    transport, seen = recording(dead(*SEVERAL.addresses))
    with world.client(Told(SEVERAL), transport=transport, retry=None) as client:
        with pytest.raises(httpx.ConnectError):
            client.get("/")
        (one,) = client.balancer.snapshot().instances
    assert sorted(request.url.host for request in seen) == list(SEVERAL.addresses)
    assert (one.attempts, one.failures) == (1, 1)


@worlds
def test_what_may_have_been_sent_goes_to_no_other_address(world):
    """Only an error that says that nothing was sent leads to the next address."""
    transport, seen = recording(dead("10.0.0.1", error=httpx.ReadError))
    service = Told(SEVERAL)
    with (
        world.client(service, transport=transport, retry=None) as client,
        pytest.raises(httpx.ReadError),
    ):
        client.get("/")
    assert [request.url.host for request in seen] == ["10.0.0.1"]


@worlds
def test_a_body_that_was_begun_goes_to_no_other_address(world):
    """A body that cannot be sent again is not sent to the next address once sending has begun."""
    tried = []

    class Reads(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def handle_request(self, request):
            tried.append(request.url.host)
            b"".join(request.stream)
            raise httpx.ConnectError("not connected")

        async def handle_async_request(self, request):
            tried.append(request.url.host)
            b"".join([chunk async for chunk in request.stream])
            raise httpx.ConnectError("not connected")

    service = Told(SEVERAL)
    with (
        world.client(service, transport=lambda _: Reads(), retry=None) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.post("/", content=world.body([b"a", b"b"]))
    assert tried == ["10.0.0.1"]


@worlds
def test_each_address_has_its_share_of_the_time_to_connect(world):
    """A silent address leaves time for the others: the connect timeout is divided; other timeouts
    are not."""
    transport, seen = recording(dead("10.0.0.1", "10.0.0.2"))
    timeout = httpx.Timeout(9.0, connect=3.0)
    with world.client(Told(SEVERAL), transport=transport) as client:
        client.get("/", timeout=timeout)
        for request in seen:
            told = request.extensions["timeout"]
            assert (told["connect"], told["read"]) == (1.0, 9.0)


@worlds
def test_no_address_is_tried_once_the_time_is_up(world):
    """When the time of the attempt is up, the remaining addresses are not tried."""
    clock = [100.0]
    tried = []

    def late(request):
        tried.append(request.url.host)
        clock[0] += 10.0
        raise httpx.ConnectError("not connected")

    policy = lbclient.RetryPolicy(deadline=5.0)
    options = {"transport": lambda _: httpx.MockTransport(late), "clock": lambda: clock[0]}
    with (
        world.client(Told(SEVERAL), retry=policy, **options) as client,
        pytest.raises(lbclient.DeadlineExceeded),
    ):
        client.get("/")
    assert tried == ["10.0.0.1"]


@worlds
def test_new_addresses_get_a_transport_of_their_own(world):
    """When the addresses of an instance change, its transport is closed and another is made."""
    made, closed = [], []

    class Mine(httpx.MockTransport):
        def __init__(self, instance):
            made.append(instance.addresses)
            super().__init__(lambda request: httpx.Response(200, text=request.url.host))

        def close(self):
            closed.append(1)

        async def aclose(self):
            closed.append(1)

    service = Told(Instance("a.test", 80, addresses=("10.0.0.1",)))
    with world.client(service, transport=Mine) as client:
        assert client.get("/").text == "10.0.0.1"
        service.instances = (Instance("a.test", 80, addresses=("10.0.0.2",)),)
        client.balancer.refresh()
        assert client.get("/").text == "10.0.0.2"
        client.get("/")
        assert len(closed) == 1
    assert made == [("10.0.0.1",), ("10.0.0.2",)]
