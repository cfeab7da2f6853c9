"""TLS uses the service's name, whatever the instance; HTTP/2 is tested with a real nginx."""

import asyncio
import contextlib
import datetime as dt
import gc
import os
import ssl
import subprocess
import threading
from collections import Counter
from pathlib import Path

import anyio
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

import lbclient
from lbclient.protocol import bind
from tests.http.test_bodies import Pipe, echoes, failures
from tests.http.test_features import (
    BIG,
    First,
    Interrupt,
    all_requests,
    busy_connections,
    cancelled_by_scope,
    get,
    urls,
    worlds,
)
from tests.support.http import Gate, Server, drips, head, says, tells_port, transports_of
from tests.support.nginx import BINARY, nginx

NAME = "orders.test"
# A body of bytes that is cut short is a generator of httpx's, of which trio complains.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx._content:ResourceWarning")


class TlsServer(Server):
    """An instance that speaks TLS; `names` records the server names that clients asked for."""

    def __init__(self, behaviour, certificate):
        self.names = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.context)
        self.context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        super().__init__(behaviour)

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def _serve(self, connection):
        connection.file.close()
        try:
            connection.sock = self.context.wrap_socket(connection.sock, server_side=True)
        except OSError:
            connection.sock.close()
        else:
            connection.file = connection.sock.makefile("rb")
        super()._serve(connection)


@pytest.fixture
def serve_tls(ca):
    """Start instances: `serve_tls(name, ..., behaviour=...)`, one for each name certified."""
    started = []

    def start(*names, behaviour=tells_port, authority=ca, **options):
        new = [TlsServer(behaviour, authority.issue_cert(name, **options)) for name in names]
        started.extend(new)
        return new

    yield start
    for server in started:
        server.stop()


def test_a_hedge_through_tls(serve_tls, trust):
    """The slower attempt of a hedged call is interrupted over TLS too, and charges no instance."""
    gate = Gate()
    (bad,) = serve_tls("127.0.0.1", behaviour=gate)
    (good,) = serve_tls("127.0.0.1")
    ended = threading.Event()
    with lbclient.Client(
        [bad.url, good.url],
        verify=trust,
        hedge=lbclient.HedgePolicy(delay=0.02),
        strategy="round-robin",
    ) as client:
        answers = {client.get("/").text for _ in range(6)}
        bind(client.balancer).idle().listen(ended.set)
        assert ended.wait(10)
        snapshot = client.balancer.snapshot()
    gate.open.set()
    assert answers == {str(good.port)}
    assert [one.failures for one in snapshot.instances] == [0, 0]


# Whose name is asked for, and verified


@worlds
def test_the_services_name(serve_tls, trust, world):
    """S6: Host, SNI and certificate are the service's, although sockets connect to addresses."""
    pair = serve_tls(NAME, NAME)
    with world.client(urls(pair), name=NAME, verify=trust, strategy="round-robin") as client:
        for _ in range(4):
            response = client.get("/")
            assert str(response.url) == f"https://{NAME}/"
        with client.stream("GET", "/") as response:
            client.read(response)
        assert client.in_flight == 0
    assert [set(one.names) for one in pair] == [{NAME}, {NAME}]
    assert {request.headers["host"] for request in all_requests(*pair)} == {NAME}
    assert [one.accepted for one in pair] == [1, 1]


@worlds
def test_under_httpxs_client(serve_tls, trust, world):
    """S6: a Transport verifies its service's name too, whatever the URL above says."""
    (server,) = serve_tls(NAME)
    with world.under_httpx([server.url], name=NAME, verify=trust) as client:
        assert client.get("https://whatever.test/").status_code == 200
    assert server.names == [NAME]
    assert server.requests[0].headers["host"] == "whatever.test"


def wrong_name():
    return {"name": "other.test"}


def expired():
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    return {"name": NAME, "not_after": past}


def not_ours():
    return {"name": NAME, "authority": trustme.CA()}


@worlds
@pytest.mark.parametrize("fault", [wrong_name, expired, not_ours], ids=lambda one: one.__name__)
def test_a_wrong_certificate(serve_tls, trust, world, fault):
    """I20: a wrong certificate fails that instance for any method; TLS is never omitted."""
    options = fault()
    (bad,) = serve_tls(options.pop("name"), **options)
    (good,) = serve_tls(NAME)
    with world.client(urls([bad, good]), name=NAME, verify=trust, strategy=First()) as client:
        response = client.post("/", content=b"order")
        assert response.text == str(good.port)
        one, two = lbclient.call_info(response).attempts
        assert isinstance(one.error, httpx.ConnectError)
        assert (one.instance.port, two.instance.port) == (bad.port, good.port)
        assert failures(client) == [1, 0]
    with world.client([bad.url], name=NAME, verify=trust) as client:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get("/")
        assert client.in_flight == 0
    assert bad.hits == 0


@worlds
def test_the_instances_name(serve_tls, trust, world):
    """S6: `tls_name="instance"` sends and verifies each instance's own host; Host is not
    changed."""
    by_address, by_name = serve_tls("127.0.0.1", "localhost")
    service = [
        lbclient.Instance("127.0.0.1", by_address.port),
        lbclient.Instance("localhost", by_name.port),
    ]
    options = {"scheme": "https", "name": NAME, "verify": trust, "strategy": "round-robin"}
    with world.client(service, tls_name="instance", **options) as client:
        for _ in range(2):
            assert client.get("/").status_code == 200
    assert (by_address.names, by_name.names) == ([None], ["localhost"])
    assert {one.headers["host"] for one in all_requests(by_address, by_name)} == {NAME}
    with world.client(service, **options) as client, pytest.raises(httpx.ConnectError):
        client.get("/")


@worlds
def test_an_unnamed_list(serve_tls, trust, world):
    """S6: without a name each instance is verified for its own host, and for no other's."""
    pair = serve_tls("localhost", "127.0.0.1")
    service = [f"https://localhost:{pair[0].port}", pair[1].url]
    with world.client(service, verify=trust, strategy="round-robin") as client:
        for _ in range(2):
            assert client.get("/").status_code == 200
    hosts = [server.requests[0].headers["host"] for server in pair]
    assert hosts == [f"localhost:{pair[0].port}", f"127.0.0.1:{pair[1].port}"]
    swapped = [pair[0].url, f"https://localhost:{pair[1].port}"]
    with world.client(swapped, verify=trust) as client, pytest.raises(httpx.ConnectError):
        client.get("/")


@worlds
def test_verify(serve_tls, ca, world, monkeypatch, tmp_path):
    """K7: `verify=False` trusts any certificate, the default the system's authorities or
    SSL_CERT_FILE's."""
    (server,) = serve_tls(NAME)
    with world.client([server.url], name=NAME, verify=False) as client:
        assert client.get("/").status_code == 200
    with world.client([server.url], name="other.test", verify=False) as client:
        assert client.get("/").status_code == 200
    with world.client([server.url], name=NAME) as client, pytest.raises(httpx.ConnectError):
        client.get("/")
    bundle = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with world.client([server.url], name=NAME) as client:
        assert client.get("/").status_code == 200
    with (
        world.client([server.url], name=NAME, trust_env=False) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.get("/")


@worlds
def test_a_connection_serves_the_service_it_was_verified_for(serve_tls, trust, world):
    """S6: an open connection of one service is never used for another, even at the same address."""
    (server,) = serve_tls(NAME)
    with (
        world.client([server.url], name=NAME, verify=trust) as orders,
        world.client([server.url], name="payments.test", verify=trust) as payments,
    ):
        for _ in range(2):
            assert orders.get("/").status_code == 200
            with pytest.raises(httpx.ConnectError):
                payments.get("/")
        assert orders.get("/").status_code == 200
    assert {request.headers["host"] for request in server.requests} == {NAME}
    assert set(server.names) == {NAME, "payments.test"}


def test_two_transports_under_one_client(serve_tls, trust):
    """S6: two services mounted in one client keep their connections apart."""
    (server,) = serve_tls(NAME)
    orders = lbclient.Transport([server.url], name=NAME, verify=trust)
    payments = lbclient.Transport([server.url], name="payments.test", verify=trust)
    mounts = {f"https://{NAME}": orders, "https://payments.test": payments}
    with httpx.Client(mounts=mounts) as client:
        assert client.get(f"https://{NAME}/").status_code == 200
        with pytest.raises(httpx.ConnectError):
            client.get("https://payments.test/")
    assert server.hits == 1


@worlds
def test_httpxs_transport_as_the_engine(serve_tls, trust, world):
    """S6: a transport of the caller's own gets the service's name as `sni_hostname`."""
    (server,) = serve_tls(NAME)
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    for name, works in ((NAME, True), ("payments.test", False)):
        with world.client(
            [server.url], name=name, transport=lambda _: kind(verify=trust)
        ) as client:
            if works:
                assert client.get("/").status_code == 200
            else:
                with pytest.raises(httpx.ConnectError):
                    client.get("/")
    assert server.hits == 1


# TLS where none is, and the reverse


@worlds
def test_https_to_a_plain_port(servers, serve_tls, trust, world):
    """I21: a port without TLS fails the handshake: a connect error that names TLS, for any
    method."""
    (plain,) = servers(answers_garbage)
    (good,) = serve_tls(NAME)
    bad = f"https://127.0.0.1:{plain.port}"
    with world.client([bad, good.url], name=NAME, verify=trust, strategy=First()) as client:
        assert client.post("/", content=b"order").text == str(good.port)
        assert failures(client) == [1, 0]
    with world.client([bad], name=NAME, verify=trust) as client:
        with pytest.raises(httpx.ConnectError, match=r"(?i)ssl|tls"):
            client.get("/")
        assert client.in_flight == 0


def answers_garbage(connection, _):
    """A plain HTTP server's answer to a TLS handshake."""
    connection.sock.recv(1000)
    connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    connection.close()


answers_garbage.on_accept = True


@worlds
def test_http_to_a_tls_port(servers, serve_tls, world):
    """I21: a plain request to a TLS port fails with httpx's protocol or read error; it is retried
    elsewhere if allowed."""
    (good,) = servers(tells_port)
    (tls,) = serve_tls(NAME)
    bad = f"http://127.0.0.1:{tls.port}"
    with world.client([bad, good.url], strategy=First()) as client:
        assert client.get("/").text == str(good.port)
        assert failures(client) == [1, 0]
    with world.client([bad, good.url], strategy=First()) as client:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)) as caught:
            client.post("/", content=b"order")
        assert str(caught.value)
        assert client.in_flight == 0
    assert (tls.hits, good.hits) == (0, 1)


def says_nothing(connection, _):
    connection.server.stopping.wait(30)


says_nothing.on_accept = True


@worlds
def test_a_handshake_that_hangs(servers, serve_tls, trust, world):
    """I20: the connect timeout covers the handshake; nothing was sent, so any method is retried."""
    (hung,) = servers(says_nothing)
    (good,) = serve_tls(NAME)
    service = [f"https://127.0.0.1:{hung.port}", good.url]
    timeout = httpx.Timeout(20, connect=0.25)
    with world.client(
        service, name=NAME, verify=trust, strategy=First(), timeout=timeout
    ) as client:
        response = client.post("/", content=b"order")
        assert response.text == str(good.port)
        one, _ = lbclient.call_info(response).attempts
        assert isinstance(one.error, httpx.ConnectTimeout)
        assert response.elapsed.total_seconds() < 10


@worlds
def test_a_certificate_of_the_clients(ca, trust, world):
    """I20: TLS 1.3 rejects a client after its request: the error is httpx's, and only idempotent
    calls are retried."""
    server = TlsServer(tells_port, ca.issue_cert(NAME))
    server.context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(server.context)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(own)
    ca.issue_cert("client.test").configure_cert(own)
    try:
        with world.client([server.url], name=NAME, verify=own) as client:
            assert client.get("/").status_code == 200
        with world.client([server.url], name=NAME, verify=trust) as client:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                client.post("/", content=b"order")
            assert failures(client) == [1]
            assert client.in_flight == 0
    finally:
        server.stop()


@worlds
def test_a_redirect_out_of_tls_is_refused(serve_tls, trust, world):
    """A redirect from https to http is refused, even if it names an instance and its port, or the
    service: nothing of the call is sent in clear text."""
    (server,) = serve_tls(NAME)
    for host in (NAME, f"{NAME}:{server.port}", f"127.0.0.1:{server.port}"):
        server.behaviour = says(307, Location=f"http://{host}/new")
        with world.client(
            [server.url], name=NAME, verify=trust, follow_redirects=True, auth=("me", "secret")
        ) as client:
            with pytest.raises(lbclient.LoadBalancingError, match=f"not http://{host}"):
                client.put("/old", content=b"order")
            assert client.in_flight == 0
    assert [one.target for one in server.requests] == ["/old"] * 3
    assert len(server.names) == 3


def tells_client(connection, _):
    """200, with the name in the client's certificate as the body."""
    ((_, name),) = connection.sock.getpeercert()["subjectAltName"]
    connection.answer(200, name.encode())


class Files:
    """The environment variables with trusted certificates and the client's own."""

    def __init__(self, folder, ca):
        self.folder, self.ca = folder, ca
        self.authority = str(folder / "ca.pem")
        self.certificate, self.key = str(folder / "client.pem"), str(folder / "client.key")
        self.both, self.locked = str(folder / "both.pem"), str(folder / "locked.key")
        self.hashed = str(folder / "hashed")
        ca.cert_pem.write_to_path(self.authority)
        self.renew("old.client.test")

    def renew(self, name):
        made = self.ca.issue_cert(name)
        chain = b"".join(one.bytes() for one in made.cert_chain_pems)
        plain = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
        locked = plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
        for path, content in (
            (self.certificate, chain),
            (self.key, made.private_key_pem.bytes()),
            (self.both, made.private_key_pem.bytes() + chain),
            (self.locked, locked),
        ):
            Path(path).write_bytes(content)

    def directory(self):
        """The authority's certificate, named as OpenSSL wants it."""
        Path(self.hashed).mkdir(exist_ok=True)
        command = ["openssl", "x509", "-hash", "-noout", "-in", self.authority]
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        Path(self.hashed, f"{name}.0").write_bytes(self.ca.cert_pem.bytes())
        return self.hashed

    def context(self):
        """A context that trusts the authority, and has no client certificate."""
        return ssl.create_default_context(cafile=self.authority)


@pytest.fixture
def files(tmp_path, ca):
    return Files(tmp_path, ca)


@pytest.fixture
def mutual(ca):
    """A server that requires a client certificate, and records it."""
    server = TlsServer(tells_client, ca.issue_cert(NAME))
    server.context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(server.context)
    yield server
    server.stop()


VERIFY = {
    "file": lambda files, _: files.authority,
    "directory": lambda files, _: files.directory(),
    "context": lambda files, _: files.context(),
    "nobody": lambda _, __: False,
    "SSL_CERT_FILE": lambda files, env: env("SSL_CERT_FILE", files.authority) or True,
    "SSL_CERT_DIR": lambda files, env: env("SSL_CERT_DIR", files.directory()) or True,
}
CERT = {
    "one file": lambda files: files.both,
    "two files": lambda files: (files.certificate, files.key),
    "two files, no password": lambda files: (files.certificate, files.key, None),
    "two files, password": lambda files: (files.certificate, files.locked, "secret"),
}


@worlds
@pytest.mark.parametrize("cert", CERT)
@pytest.mark.parametrize("verify", VERIFY)
def test_every_verify_goes_with_every_cert(mutual, files, world, verify, cert, monkeypatch):
    """Whatever configures trust, the client certificate is sent, without a warning."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    options = {"verify": VERIFY[verify](files, monkeypatch.setenv), "cert": CERT[cert](files)}
    with world.client([mutual.url], name=NAME, **options) as client:
        assert client.get("/").text == "old.client.test"
    if cert == "one file":
        with world.under_httpx([mutual.url], name=NAME, **options) as client:
            assert client.get(f"https://{NAME}/").text == "old.client.test"


@worlds
def test_verify_still_verifies_with_a_cert(mutual, files, world, tmp_path):
    """A client certificate does not change which servers the client trusts."""
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    options = {"verify": str(stranger), "cert": files.both, "retry": None}
    with (
        world.client([mutual.url], name=NAME, **options) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get("/")
    assert mutual.requests == []


@worlds
def test_checks_and_probes_send_the_certificate(mutual, files, world):
    """Health checks and load probes send the client certificate, as calls do."""
    with world.client(
        [mutual.url],
        name=NAME,
        verify=files.authority,
        cert=files.both,
        health=lbclient.HealthCheck("/healthy", interval=0.2, timeout=0.2),
        strategy=lbclient.Prequal(probe=lbclient.LoadProbe("/load")),
    ) as client:
        client.get("/")
        while {one.target for one in list(mutual.requests)} != {"/", "/healthy", "/load"}:
            assert mutual.arrived.acquire(timeout=10)
        assert failures(client) == [0]


@worlds
def test_a_renewed_certificate(mutual, files, world):
    """If the user loads another certificate into a context, connections that are opened later use
    it."""
    context = files.context()
    context.load_cert_chain(files.both)
    limits = httpx.Limits(keepalive_expiry=0)
    with world.client([mutual.url], name=NAME, verify=context, limits=limits) as client:
        assert client.get("/").text == "old.client.test"
        files.renew("new.client.test")
        assert client.get("/").text == "old.client.test"
        context.load_cert_chain(files.both)
        assert client.get("/").text == "new.client.test"


@worlds
@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"verify": None}, TypeError, "verify must be"),
        ({"verify": Path("ca.pem")}, TypeError, "verify must be"),
        ({"cert": ["a.pem", "a.key"]}, TypeError, "cert must be"),
        ({"cert": ("a.pem",)}, TypeError, "cert must be"),
        ({"cert": ("a.pem", "", "secret")}, TypeError, "cert must be"),
        ({"cert": ""}, ValueError, "verify or cert cannot be used"),
        ({"verify": ""}, ValueError, "verify must not be an empty path"),
    ],
)
def test_what_can_be_no_verify_or_cert(world, options, error, named):
    """An invalid certificate is refused at construction by an error that names the argument, and no
    password is shown."""
    with (
        pytest.raises(error, match=named) as caught,
        world.client("https://127.0.0.1:1", **options),
    ):
        pass
    assert "secret" not in str(caught.value)


def test_a_locked_key_without_its_password(files, capfd):
    """The password is never asked for on the terminal, and a wrong one is not shown."""
    for cert in ((files.certificate, files.locked), (files.certificate, files.locked, "wrong1")):
        with pytest.raises(
            ValueError, match=r"^(cert: the key is encrypted|verify or cert)"
        ) as caught:
            lbclient.Client("https://127.0.0.1:1", cert=cert)
        assert "wrong1" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_the_environment_that_is_not_there(monkeypatch):
    """The error names the file of the environment variable, since no argument names it."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(ValueError, match=r"/nowhere\.pem"):
        lbclient.Client("https://127.0.0.1:1")
    lbclient.Client("https://127.0.0.1:1", trust_env=False).close()


def test_a_cert_is_not_for_other_transports(files):
    """With a caller's own transports a certificate would not be sent, so it is refused."""
    for kind, made in (
        (lbclient.Client, httpx.HTTPTransport),
        (lbclient.AsyncClient, httpx.AsyncHTTPTransport),
        (lbclient.Transport, httpx.HTTPTransport),
        (lbclient.AsyncTransport, httpx.AsyncHTTPTransport),
    ):
        with pytest.raises(ValueError, match="cert is not supported with transport="):
            kind("https://127.0.0.1:1", cert=files.both, transport=lambda _, made=made: made())


def breaks_tls(connection, request):
    """Bytes that are not a TLS record: instead of a response, or in the middle of its body."""
    if request.target == "/body":
        connection.send(head(200, {"Content-Length": "100"}) + b"x" * 50)
    os.write(connection.sock.fileno(), b"no TLS" * 10)


@worlds
def test_tls_that_breaks(serve_tls, trust, world):
    """I9: broken TLS after the request is httpx's read error and a fault; no POST is repeated."""
    (bad,) = serve_tls(NAME, behaviour=breaks_tls)
    (good,) = serve_tls(NAME)
    options = {"name": NAME, "verify": trust, "strategy": First()}
    with world.client(urls([bad, good]), **options) as client:
        with pytest.raises(httpx.ReadError, match="SSL"):
            client.post("/", content=b"order")
        with client.stream("GET", "/body") as response, pytest.raises(httpx.ReadError):
            client.read(response)
        assert failures(client) == [2, 0]
        for path in ("/", "/body"):
            assert client.get(path).text == str(good.port)
        assert failures(client) == [4, 0]
        assert client.in_flight == 0


# The deadline, and interruptions, through TLS


@worlds
def test_the_deadline_holds_through_tls(serve_tls, trust, world):
    """I6: a slow response over TLS ends with the deadline; 5 MB in both directions arrive before
    it."""
    (drip,) = serve_tls(NAME, behaviour=drips(0.02))
    (server,) = serve_tls(NAME, behaviour=echoes)
    asked = {"lbclient": {"deadline": 0.3}}
    with world.client([drip.url], name=NAME, verify=trust, retry=None) as client:
        with pytest.raises(lbclient.DeadlineExceeded):
            client.get("/", extensions=asked)
        assert client.in_flight == 0
    with world.client([server.url], name=NAME, verify=trust) as client:
        asked = {"lbclient": {"deadline": 20}}
        assert client.put("/", content=BIG, extensions=asked).content == BIG


@pytest.mark.anyio
async def test_cancelled_at_every_await_of_tls(serve_tls, trust):
    """C1: a call that is cancelled in its handshake, or later, leaves nothing in flight or open."""
    (server,) = serve_tls(NAME, behaviour=says(200, b"x" * 100_000))
    at, more = 0, True
    while more:
        at += 1
        async with lbclient.AsyncClient([server.url], name=NAME, verify=trust) as client:
            more = await cancelled_by_scope(get(client), at)
            (one,) = client.balancer.snapshot().instances
            assert (one.in_flight, one.failures) == (0, 0), at
            assert busy_connections(client) == [], at
    assert at > 2


class Interrupting(ssl.SSLContext):
    """Ctrl-C in the handshake."""

    def wrap_bio(self, *_args, **_kwargs):
        raise Interrupt


def test_interrupted_in_the_handshake(serve_tls):
    """C4: Ctrl-C in a handshake closes the socket, and leaves nothing in flight."""
    (server,) = serve_tls(NAME)
    context = Interrupting(ssl.PROTOCOL_TLS_CLIENT)
    with lbclient.Client([server.url], name=NAME, verify=context) as client:
        with pytest.raises(Interrupt):
            client.get("/")
        gc.collect()  # a socket left open warns, and that fails the test
        (one,) = client.balancer.snapshot().instances
        assert (one.in_flight, one.failures) == (0, 0)


# HTTP/2 against nginx

needs_nginx = pytest.mark.skipif(BINARY is None, reason="nginx is not installed")

_SERVER = """
        ssl_certificate {home}/cert.pem;
        ssl_certificate_key {home}/key.pem;
        keepalive_requests {requests};
        location / {{ return 200 "$server_protocol $host $ssl_server_name $request_method"; }}
        location /busy {{ return 503; }}
        location /backend {{ proxy_pass http://127.0.0.1:{backend}; }}
"""


@pytest.fixture
def serve_h2(ca, tmp_path):
    """Start nginx: `serve_h2(backend=port, requests=1000)`; its URL."""
    with contextlib.ExitStack() as stack:

        def start(backend=9, requests=1000):
            home = tmp_path / str(len(list(tmp_path.iterdir())))
            home.mkdir()
            certificate = ca.issue_cert(NAME)
            (home / "cert.pem").write_bytes(
                b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
            )
            certificate.private_key_pem.write_to_path(str(home / "key.pem"))
            server = _SERVER.format(home=home, backend=backend, requests=requests)
            return f"https://127.0.0.1:{stack.enter_context(nginx(home, server, 'ssl http2'))}"

        yield start


@needs_nginx
@worlds
def test_http2(serve_h2, servers, trust, world):
    """S6: HTTP/2 is used if requested, with the service's name as authority and SNI."""
    (backend,) = servers(echoes)
    service = [serve_h2(backend.port), serve_h2(backend.port)]
    options = {"name": NAME, "verify": trust, "strategy": "round-robin"}
    with world.client(service, http2=True, **options) as client:
        for method in ("GET", "POST") * 2:
            response = client.request(method, "/", content=b"x" if method == "POST" else None)
            assert response.http_version == "HTTP/2"
            assert response.text == f"HTTP/2.0 {NAME} {NAME} {method}"
            assert str(response.url) == f"https://{NAME}/"
        assert client.get("/busy").status_code == 503
        assert client.post("/backend", content=BIG).content == BIG
        some = BIG[:200_000]
        assert client.put("/backend", content=world.body([some, b"x"])).content == some + b"x"
        with client.stream("POST", "/backend", content=some) as response:
            assert client.in_flight == 1
            assert client.read(response) == some
        with client.stream("POST", "/backend", content=some) as response:
            assert client.in_flight == 1
        assert client.in_flight == 0
        assert client.get("/").status_code == 200
    with world.client(service, **options) as client:
        assert client.get("/").http_version == "HTTP/1.1"


@needs_nginx
def test_http2_for_threads(serve_h2, trust):
    """Twenty threads share one connection per instance: every call is served, none stays in
    flight."""
    service = [serve_h2(), serve_h2()]
    seen = Counter()
    with lbclient.Client(service, name=NAME, verify=trust, http2=True) as client:

        def calls():
            for _ in range(10):
                response = client.get("/")
                seen[response.status_code, response.http_version] += 1

        threads = [threading.Thread(target=calls) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one.in_flight for one in client.balancer.snapshot().instances) == 0
    assert seen == {(200, "HTTP/2"): 200}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"verify": "/nowhere.pem"}, "'/nowhere.pem'"),
        ({"cert": ("/nowhere.pem", "/nowhere.key", "secret")}, "'/nowhere.pem'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*verify=<str>.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*cert=.*:DeprecationWarning")
def test_certificate_that_is_not_there(options, named):
    """K1, S5: a file that cannot be read is a ValueError at construction that names the arguments
    and the file, and no password."""
    with pytest.raises(ValueError, match=r"^verify or cert cannot be used") as caught:
        lbclient.Client("https://127.0.0.1:1", **options)
    assert named in str(caught.value)
    assert "secret" not in str(caught.value)


@needs_nginx
@pytest.mark.anyio
async def test_http2_concurrently(serve_h2, trust):
    """Concurrent streams share a connection, and cancelling one before it is sent does not affect
    others."""
    service = [serve_h2(), serve_h2()]
    seen = Counter()
    async with lbclient.AsyncClient(service, name=NAME, verify=trust, http2=True) as client:
        for _ in service:
            await client.get("/")

        async def call(number):
            with anyio.CancelScope() as scope:
                if number % 5 == 0:
                    scope.cancel()
                response = await client.get("/")
                seen[response.status_code, response.http_version] += 1

        for _ in range(3):
            async with anyio.create_task_group() as group:
                for number in range(50):
                    group.start_soon(call, number)
        snapshot = client.balancer.snapshot()
        assert [len(transport._connections.all()) for transport in transports_of(client)] == [1, 1]
    assert seen == {(200, "HTTP/2"): 120}
    assert [(one.in_flight, one.failures) for one in snapshot.instances] == [(0, 0)] * 2


@needs_nginx
@pytest.mark.anyio
async def test_http2_cancelled_while_waiting(serve_h2, servers, trust):
    """C1: cancelling streams that wait for headers does not affect others on their connection."""
    gate = Gate(then=echoes)
    (backend,) = servers(gate)
    url = serve_h2(backend.port)
    async with lbclient.AsyncClient([url], name=NAME, verify=trust, http2=True) as client:
        await client.get("/")
        bodies = []

        async def stay():
            bodies.append((await client.post("/backend", content=b"stay")).content)

        async with anyio.create_task_group() as staying:
            staying.start_soon(stay)
            async with anyio.create_task_group() as leaving:
                for _ in range(5):
                    leaving.start_soon(client.get, "/backend")
                for _ in range(6):
                    assert await anyio.to_thread.run_sync(gate.entered.acquire, True, 5)
                leaving.cancel_scope.cancel()
            assert (await client.get("/")).status_code == 200
            assert [one.in_flight for one in client.balancer.snapshot().instances] == [1]
            gate.open.set()
        (one,) = client.balancer.snapshot().instances
        assert (one.in_flight, one.failures) == (0, 0)
        (transport,) = transports_of(client)
        assert len(transport._connections.all()) == 1
    assert bodies == [b"stay"]


@needs_nginx
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_http2_set_up_cancelled_under_others(serve_h2, trust):
    """C1: whenever the call that opens a connection is cancelled, those that waited for it get an
    answer or one of httpx's errors, never an internal one."""
    url, seen = serve_h2(), Counter()
    options = {"name": NAME, "verify": trust, "http1": False, "http2": True, "breaker": None}
    for rounds in range(20, 140, 3):
        retry = lbclient.RetryPolicy(attempts=1)
        async with lbclient.AsyncClient([url], retry=retry, **options) as client:
            calls = [asyncio.create_task(client.get("/")) for _ in range(5)]
            for _ in range(rounds):
                await asyncio.sleep(0)
            calls[0].cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            seen.update(type(one) for one in outcomes[1:])
    assert seen[httpx.Response] >= 40
    assert all(issubclass(one, httpx.Response | httpx.TransportError) for one in seen), seen


@needs_nginx
@worlds
def test_http2_connections_that_end(serve_h2, trust, world):
    """I25: a connection that ends in an orderly way after some requests delivers the last response,
    so it is no fault and needs no retry."""
    with world.client([serve_h2(requests=3)], name=NAME, verify=trust, http2=True) as client:
        for _ in range(10):
            response = client.get("/")
            assert response.status_code == 200
            assert len(lbclient.call_info(response).attempts) == 1
        assert failures(client) == [0]
        assert client.in_flight == 0


# HTTP/2 turned away


class H2:
    """An instance that speaks HTTP/2 without negotiation, and refuses the first `refuse`
    requests."""

    on_accept = True

    def __init__(self, refuse=0, how=None):
        self.refuse = refuse
        self.how = how
        self.bodies = []

    def __call__(self, connection, _):
        config = h2.config.H2Configuration(client_side=False)
        peer = h2.connection.H2Connection(config)
        peer.initiate_connection()
        connection.send(peer.data_to_send())
        bodies = {}
        with contextlib.suppress(h2.exceptions.ProtocolError):  # of what comes after a GOAWAY
            while data := connection.sock.recv(65_536):
                for event in peer.receive_data(data):
                    self._take(peer, event, bodies)
                connection.send(peer.data_to_send())

    def _take(self, peer, event, bodies):
        if isinstance(event, h2.events.RequestReceived):
            bodies[event.stream_id] = b""
        elif isinstance(event, h2.events.DataReceived):
            bodies[event.stream_id] += event.data
            peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.bodies.append(bodies[event.stream_id])
            self._answer(peer, event.stream_id)

    def _answer(self, peer, stream):
        if self.refuse:
            self.refuse -= 1
            self.how(peer, stream)
            return
        peer.send_headers(stream, [(":status", "200")])
        peer.send_data(stream, b"ok", end_stream=True)


def refused_stream(peer, stream):
    peer.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)


def goaway_before_any(peer, _):
    peer.close_connection(last_stream_id=0)


def internal_error(peer, stream):
    peer.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)


H2C = {"http1": False, "http2": True}


@worlds
@pytest.mark.parametrize("how", [refused_stream, goaway_before_any], ids=lambda one: one.__name__)
def test_what_was_not_processed_is_sent_again(servers, world, how):
    """I25: a request that an HTTP/2 server says it did not process is sent again, even a POST; it
    is no fault."""
    away, taking = H2(1, how), H2()
    pair = servers(away, taking)
    with world.client(urls(pair), strategy=First(), **H2C) as client:
        response = client.post("/", content=b"order")
        assert response.text == "ok"
        assert failures(client) == [0, 0]
        assert client.in_flight == 0
        assert client.post("/", content=b"order").text == "ok"
    assert taking.bodies == [b"order"]
    assert away.bodies == [b"order", b"order"]


@worlds
def test_a_generator_turned_away_is_not_cut_short(servers, world):
    """C11: a body that was begun is not sent again, even if the server asks for it."""
    away, taking = H2(1, refused_stream), H2()
    with world.client(urls(servers(away, taking)), strategy=First(), **H2C) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/", content=world.body([b"order"]))
        assert client.in_flight == 0
    assert (away.bodies, taking.bodies) == ([b"order"], [])


@worlds
def test_a_reset_stream_may_have_been_processed(servers, world):
    """I25: any other reset of a stream is a fault, and only idempotent calls are sent again."""
    broken, taking = H2(2, internal_error), H2()
    with world.client(urls(servers(broken, taking)), strategy=First(), **H2C) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/", content=b"order")
        assert client.put("/", content=b"order").text == "ok"
        assert failures(client) == [2, 0]
        assert client.in_flight == 0


def goaway_before_the_second(peer, stream):
    """Later streams were not begun: httpcore itself opens a new connection for them."""
    if stream > 1:
        peer.close_connection(last_stream_id=1)
    else:
        peer.send_headers(stream, [(":status", "200")])
        peer.send_data(stream, b"ok", end_stream=True)


@worlds
def test_goaway_between_streams(servers, world):
    """I25: what httpcore itself repeats is complete: bytes are sent again, a generator is not."""
    instance = H2(2, goaway_before_the_second)
    with world.client(urls(servers(instance)), **H2C) as client:
        assert client.post("/", content=b"first").text == "ok"
        assert client.post("/", content=b"second").text == "ok"
        assert failures(client) == [0]
    assert instance.bodies == [b"first", b"second", b"second"]
    instance = H2(2, goaway_before_the_second)
    with world.client(urls(servers(instance)), **H2C) as client:
        assert client.post("/", content=b"first").text == "ok"
        with pytest.raises((httpx.RemoteProtocolError, httpx.StreamConsumed)):
            client.post("/", content=world.body([b"second"]))
        assert client.in_flight == 0
    assert instance.bodies == [b"first", b"second"]


def test_goaway_does_not_cut_a_body_short(servers):
    """C12: the rest of a source that cannot seek is not sent again, so no empty body is sent."""
    instance = H2(2, goaway_before_the_second)
    with lbclient.Client(urls(servers(instance)), **H2C) as client:
        assert client.post("/", content=b"first").text == "ok"
        with pytest.raises(httpx.RemoteProtocolError, match="cannot be sent a second time"):
            client.post("/", content=Pipe(b"second"))
    assert instance.bodies == [b"first", b"second"]


@needs_nginx
@worlds
def test_http2_large_bodies_through_nginx(serve_h2, servers, trust, world):
    """10 MB are sent to a real server and come back, as bytes and in parts, over one connection."""
    (backend,) = servers(echoes)
    body = os.urandom(10_000_000)
    parts = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
    with world.client([serve_h2(backend.port)], name=NAME, verify=trust, http2=True) as client:
        assert client.post("/backend", content=body).content == body
        assert client.put("/backend", content=world.body(parts)).content == body
        (transport,) = transports_of(client)
        assert len(transport._connections.all()) == 1


@worlds
def test_an_instance_that_chooses_http1(serve_tls, trust, world):
    """If TLS negotiates HTTP/1.1, a client with `http2=True` uses it on the same connection; the
    context can be used by a client without HTTP/2 too."""
    (server,) = serve_tls(NAME)
    server.context.set_alpn_protocols(["http/1.1"])
    options = {"name": NAME, "verify": trust}
    with (
        world.client([server.url], http2=True, **options) as both,
        world.client([server.url], **options) as plain,
    ):
        for client in (both, plain, both):
            assert client.get("/").http_version == "HTTP/1.1"
    assert server.accepted == 2


@needs_nginx
def test_one_context_for_http1_and_http2(serve_h2, trust):
    """A client with HTTP/2 and one without may share an SSLContext, in any order."""
    url, options = serve_h2(), {"name": NAME, "verify": trust}
    with (
        lbclient.Client(url, http2=True, **options) as both,
        lbclient.Client(url, **options) as one,
    ):
        versions = [client.get("/").http_version for client in (one, both, one, both)]
    assert versions == ["HTTP/1.1", "HTTP/2"] * 2
