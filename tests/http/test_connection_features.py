"""What a client can ask of its connections, over every driver."""

import contextlib
import errno
import functools
import os
import random
import socket
import threading
from collections import Counter

import httpx
import pytest

import lbclient
import lbclient.httpx2
from lbclient.http.connections import connection as connection_module
from lbclient.http.connections import instance_transport, threads
from tests.http.test_departures import script
from tests.http.test_idle_closing import worlds
from tests.http.test_tls import TlsServer
from tests.support.drivers import AUTHORITY, NAME, SOON, serving, trusting, watch_sockets
from tests.support.faults import on_accept
from tests.support.http import Gate, Server, head, in_turn, slow, tells_port
from tests.support.http2 import CANCEL, Http2, says_ok


@pytest.fixture
def serve_tls():
    """Start an instance that speaks TLS: `serve_tls(behaviour, name, protocol, ...)`."""
    started = []

    def start(behaviour, name=NAME, *protocols):
        server = TlsServer(behaviour, AUTHORITY.issue_cert(name))
        if protocols:
            server.context.set_alpn_protocols(protocols)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


# Connecting


@worlds
def test_retries_of_connecting(world, dead_port, monkeypatch):
    """`retries` is how often connecting is tried again within one attempt."""
    opened = watch_sockets(monkeypatch)
    options = {"retries": 1, "retry": None}
    with (
        world.client([f"http://127.0.0.1:{dead_port}"], **options) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.get("/")
    assert len(opened) == 2


@worlds
def test_descriptors_exhausted(servers, world, monkeypatch):
    """If this process can open no socket, no instance is charged."""
    (server,) = servers(tells_port)

    def none_left(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with world.client([server.url], retry=None) as client:
        with monkeypatch.context() as patch:
            for module in (threads, connection_module):
                patch.setattr(module, "open_socket", none_left)
            for _ in range(9):
                with pytest.raises(httpx.ConnectError):
                    client.get("/")
        assert client.get("/").status_code == 200
        (instance,) = client.balancer.snapshot().instances
        assert instance.breaker == "closed"


@pytest.mark.parametrize("flavour", [lbclient, lbclient.httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize("name", ["Client", "AsyncClient", "Transport", "AsyncTransport"])
def test_engine_that_is_no_more(flavour, name):
    """`transport="aiohttp"` is an error, which names the extra that replaces it."""
    with pytest.raises(ValueError, match=r"lbclient\[fast\]"):
        getattr(flavour, name)(["http://127.0.0.1:1"], transport="aiohttp")


OWN_OPTIONS = {
    "verify": "/ca.pem",
    "cert": "/client.pem",
    "http1": False,
    "http2": True,
    "local_address": "127.0.0.1",
    "retries": 1,
    "socket_options": [],
    "max_connection_age": 60,
    "max_idle_connections": 10,
    "limits": httpx.Limits(max_keepalive_connections=10),
}


@pytest.mark.parametrize("flavour", [lbclient, lbclient.httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize("kind", ["Client", "AsyncClient", "Transport", "AsyncTransport"])
@pytest.mark.parametrize("name", OWN_OPTIONS)
def test_options_of_our_connections_with_other_transports(flavour, kind, name):
    """K8: an option that has no effect on a caller's own transports is refused by an error that
    names it and says where to set it."""
    options = {"transport": pytest.fail, name: OWN_OPTIONS[name]}
    said = rf"^{name} .*transport=; .* the transports that you make$"
    with pytest.raises(ValueError, match=said):
        getattr(flavour, kind)("https://127.0.0.1:1", **options)


@worlds
def test_options_of_calls_with_other_transports(servers, world):
    """Options that do not concern connections are accepted with a caller's own transports."""
    (server,) = servers(tells_port)
    limits = httpx.Limits(max_connections=1)
    options = {"limits": limits, "trust_env": False, "close_grace": 0.5, "tls_name": "instance"}
    kind = httpx.HTTPTransport if world.backend is None else httpx.AsyncHTTPTransport
    with world.client([server.url], transport=lambda _: kind(), **options) as client:
        assert client.get("/").text == str(server.port)


# TLS


@worlds
def test_protocol_that_nobody_asked_for(serve_tls, world):
    """An instance is asked for HTTP/1.1; one that chooses another protocol of a user's own context
    is refused."""
    good, bad = serve_tls(tells_port, NAME, "http/1.1"), serve_tls(tells_port, NAME, "h2")
    context = trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    options = {"name": NAME, "verify": context, "retry": None}
    with world.client([good.url], **options) as client:
        assert client.get("/").status_code == 200
    with (
        world.client([bad.url], **options) as client,
        pytest.raises(httpx.ConnectError, match="h2"),
    ):
        client.get("/")


def closes(connection, _):
    """A body that ends with its connection, and announces it (close_notify)."""
    connection.send(head(200, {}) + b"body")
    with contextlib.suppress(OSError):
        connection.sock.unwrap()
    connection.close()


def cuts(connection, _):
    """The same body, cut off by a middlebox, for example."""
    connection.send(head(200, {}) + b"bo")
    connection.close()


@worlds
def test_body_that_ends_with_its_connection(serve_tls, world):
    """Over TLS such a body is complete only if its end was announced (close_notify)."""
    good, bad = serve_tls(closes), serve_tls(cuts)
    options = {"name": NAME, "verify": trusting(), "retry": None}
    with world.client([good.url], **options) as client:
        assert client.get("/").content == b"body"
    with (
        world.client([bad.url], **options) as client,
        pytest.raises(httpx.RemoteProtocolError, match="close_notify"),
    ):
        client.get("/")


@worlds
def test_closing_does_not_complete_a_body(servers, world):
    """It is not complete either if the client was closed while it arrived."""

    def begins(connection, _):
        connection.send(head(200, {}) + b"bo")
        connection.server.stopping.wait(SOON)

    (server,) = servers(begins)
    with (
        world.client([server.url], close_grace=0.0) as client,
        client.stream("GET", "/") as response,
    ):
        client.run(client.client.close if client.portal is None else client.client.aclose)
        with pytest.raises(httpx.TransportError):
            client.read(response)


# Extensions


@worlds
def test_name_for_tls(serve_tls, world):
    """The extension `sni_hostname` sets the TLS name of one request, which is also verified; its
    connection carries no other request."""
    server = serve_tls(tells_port, "other.test")
    with world.client([server.url], name=NAME, verify=trusting(), retry=None) as client:
        for _ in range(2):
            client.get("/", extensions={"sni_hostname": "other.test"})
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            client.get("/")
    assert server.names == ["other.test", "other.test", NAME]


@worlds
def test_target(servers, world):
    """The extension `target` is the target in the request line."""
    (server,) = servers(tells_port)
    with world.client([server.url]) as client:
        client.request("OPTIONS", "/", extensions={"target": b"*"})
    assert [one.target for one in server.requests] == ["*"]


@worlds
def test_requests_to_one_url(servers, world):
    """Each request has its own method and target, even if its URL was requested before with
    others."""
    (server,) = servers(tells_port)
    asked = [("GET", None), ("POST", None), ("GET", b"/y"), ("GET", None), ("GET", None)]
    with world.client([server.url]) as client:
        for method, target in asked:
            given = {} if target is None else {"extensions": {"target": target}}
            client.request(method, "/x?a=1", **given)
    seen = [(one.method, one.target.encode()) for one in server.requests]
    assert seen == [(method, target or b"/x?a=1") for method, target in asked]


class Heads(Server):
    """An instance that stores the heads of requests as they arrived."""

    def __post_init__(self):
        self.heads = []
        super().__post_init__()

    def _answer(self, connection):
        with contextlib.suppress(OSError, ValueError):
            while lines := list(self._lines(connection.file)):
                self.heads.append(b"".join(lines))
                for line in lines:
                    name, _, value = line.partition(b": ")
                    if name.lower() == b"content-length":
                        connection.file.read(int(value))
                connection.answer()

    @staticmethod
    def _lines(file):
        while (line := file.readline()) not in (b"", b"\r\n"):
            yield line


@pytest.fixture
def heads():
    server = Heads(tells_port)
    yield server
    server.stop()


def head_of(request):
    """The bytes of a request."""
    lines = [b"%b: %b\r\n" % pair for pair in request.headers.raw]
    first = b"%b %b HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)
    return b"".join([first, *lines])


HEADERS = [
    {},
    {"Accept": "text/plain"},
    {"accept": "text/plain"},
    {"Authorization": "Bearer one"},
    {"Authorization": "Bearer two"},
    {"Cookie": "session=1"},
    {"User-Agent": "other/1"},
    [("X-Twice", "1"), ("X-Twice", "2")],
    [("X-Twice", "2"), ("X-Twice", "1")],
    {"Traceparent": "00-1-1-01"},
    {"Host": "other.test"},
    {"Connection": "close"},
]


@worlds
@pytest.mark.parametrize("flavour", [lbclient, lbclient.httpx2], ids=["httpx", "httpx2"])
def test_each_request_has_its_own_head(heads, world, flavour):
    """Whatever was sent before, and even if the same objects were changed since, the request's own
    headers, method, path and body arrive."""
    dice, expected = random.Random(1), []
    make = [
        functools.partial(kind, [heads.url], name="orders.test", max_in_flight=1)
        for kind in (flavour.Client, flavour.AsyncClient)
    ]
    with world.entered(*make) as client:
        request = client.client.build_request("GET", "/")
        for _ in range(300):
            what = dice.random()
            headers = dice.choice(HEADERS)
            if what < 0.6:
                method, path = dice.choice(["GET", "POST", "PUT"]), dice.choice(["/", "/a?b=1"])
                content = dice.choice([None, b"", b"x" * 70_000]) if method == "POST" else None
                request = client.client.build_request(
                    method, path, headers=headers, content=content
                )
            elif what < 0.7:
                request.headers["Accept"] = dice.choice(["a/b", "c/d"])
            elif what < 0.8:
                request.headers.pop("Authorization", None)
            elif what < 0.9:
                client.client.headers = headers
            else:
                request.url = request.url.copy_with(path=dice.choice(["/x", "/y"]))
            expected.append(head_of(request))
            client.run(client.client.send, request)
    assert heads.heads == expected


@worlds
def test_headers_that_change_while_they_are_written(heads, world, monkeypatch):
    """If another thread changes a request's headers while they are written, the old headers are not
    used for a later request with the new ones."""
    true, changes = instance_transport.RequestHeaders, [{"Accept": "text/b"}]

    def written(headers):
        made = true(headers)
        if changes:
            request.headers.update(changes.pop())
        return made

    with world.client([heads.url]) as client:
        request = client.client.build_request("GET", "/", headers={"Accept": "text/a"})
        monkeypatch.setattr(instance_transport, "RequestHeaders", written)
        for _ in range(2):
            client.run(client.client.send, request)
    assert [b"text/b" in one for one in heads.heads] == [False, True]


def test_threads_share_a_url(heads):
    """If threads send requests of several methods to one URL object, each has its own request
    line."""
    url, threads = httpx.URL("http://orders.test/x?y=1"), []
    with lbclient.Client([heads.url], name="orders.test") as client:

        def calls(method):
            for _ in range(100):
                request = client.build_request(method, "/")
                request.url = url
                client.send(request)

        for method in ("GET", "PUT", "PATCH", "DELETE"):
            threads.append(threading.Thread(target=calls, args=(method,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    lines = Counter(one.partition(b"\r\n")[0] for one in heads.heads)
    assert lines == {
        b"%b /x?y=1 HTTP/1.1" % method: 100 for method in (b"GET", b"PUT", b"PATCH", b"DELETE")
    }


@worlds
def test_a_deadline_is_its_own_calls(servers, world):
    """A call without a deadline is not ended by that of an earlier call on its connection, and the
    next deadline applies again."""
    gate = Gate()
    (server,) = servers(in_turn(tells_port, slow(0.4), tells_port, gate))
    within = {"lbclient": {"deadline": 0.2}}
    with world.client([server.url], retry=None) as client:
        assert client.get("/", extensions={"lbclient": {"deadline": SOON}}).status_code == 200
        assert client.get("/").status_code == 200
        assert client.get("/", extensions={"lbclient": {"deadline": SOON}}).status_code == 200
        with pytest.raises(lbclient.DeadlineExceeded):
            client.get("/", extensions=within)
    assert server.accepted == 1
    gate.open.set()


class Shouting(httpx.ByteStream):
    """A body that differs from the bytes it was made from."""

    def __iter__(self):
        for part in super().__iter__():
            yield part.upper()

    async def __aiter__(self):
        for part in self:
            yield part


@worlds
def test_a_body_of_the_callers_own_class(servers, world):
    """A subclass of httpx's body sends what it yields."""
    (server,) = servers(tells_port)
    with world.client([server.url]) as client:
        request = client.client.build_request("POST", "/", headers={"Content-Length": "4"})
        request.stream = Shouting(b"body")
        client.run(client.client.send, request)
    assert [one.body for one in server.requests] == [b"BODY"]


INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"


@worlds
@pytest.mark.parametrize("length", [60_000, 3_000_000])
def test_a_body_that_is_interrupted_by_what_arrives(world, length):
    """If interim responses arrive while a body is sent in many pieces, it arrives complete, once,
    and its connection is kept."""
    arrived, content = [], os.urandom(length)

    @on_accept
    def interrupts(connection, _):
        for _ in range(2):
            while connection.file.readline() != b"\r\n":
                pass
            data = b""
            while len(data) < length:
                connection.send(INTERIM)
                data += connection.file.read(min(length // 50, length - len(data)))
            arrived.append(data)
            connection.answer(200, b"done")

    server = Server(interrupts)
    options = {"socket_options": [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]}
    try:
        with world.client([server.url], **options) as client:
            for _ in range(2):
                assert client.post("/", content=content).text == "done"
    finally:
        server.stop()
    assert arrived == [content] * 2
    assert server.accepted == 1


STEPS = (
    "send_request_headers",
    "send_request_body",
    "receive_response_headers",
    "receive_response_body",
    "response_closed",
)


class Told:
    """A function for the extension `trace`, which keeps the events."""

    def __init__(self):
        self.names = []
        self.head = threading.Event()
        """Set once the head of a response has arrived."""

    def __call__(self, name, info):
        assert isinstance(info, dict)
        self.names.append(name)
        if name.endswith("receive_response_headers.complete"):
            self.head.set()


@worlds
def test_trace(serve_tls, world):
    """The extension `trace` is told each step, with httpcore's names."""
    server, told = serve_tls(tells_port), Told()
    with world.client([server.url], name=NAME, verify=trusting()) as client:
        for _ in range(2):
            client.get("/", extensions={"trace": world.hook(told)})
    steps = [name for name in told.names if name.endswith(".started")]
    opening = ["connection.connect_tcp", "connection.start_tls"]
    request = [f"http11.{step}" for step in STEPS]
    assert steps == [f"{step}.started" for step in [*opening, *request, *request]]
    ends = [one.replace("started", "complete") for one in steps]
    assert sorted(told.names) == sorted(steps + ends)


@worlds
@pytest.mark.parametrize("end", ["complete", "failed"])
@pytest.mark.parametrize("streamed", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("protocol", ["http11", "http2"])
def test_trace_of_a_body_that_follows_its_head(servers, world, protocol, streamed, end):
    """The extension `trace` is told when the body of a response begins and how it ends, also if the
    body arrives after the head or breaks."""
    told = Told()

    def http1(connection, _):
        connection.send(head(200, {"Content-Length": "4"}))
        assert told.head.wait(SOON)
        connection.send(b"body" if end == "complete" else b"bo")
        connection.close()

    def http2(stream):
        stream.answer(200, None, end=False)
        assert told.head.wait(SOON)
        if end == "complete":
            stream.data(b"body", end=True)
        else:
            stream.refuse(CANCEL)

    def read():
        if not streamed:
            return client.get("/", extensions=extensions).content
        with client.stream("GET", "/", extensions=extensions) as response:
            return client.read(response)

    (server,) = servers(http1 if protocol == "http11" else Http2(ended=http2))
    extensions = {"trace": world.hook(told)}
    options = {"http1": protocol == "http11", "http2": protocol == "http2", "retry": None}
    with world.client([server.url], **options) as client:
        if end == "complete":
            assert read() == b"body"
        else:
            with pytest.raises(httpx.TransportError):
                read()
    ends = [end if step == "receive_response_body" else "complete" for step in STEPS]
    pairs = zip(STEPS, ends, strict=True)
    assert [name for name in told.names if name.startswith(protocol)] == [
        f"{protocol}.{step}.{event}" for step, end in pairs for event in ("started", end)
    ]


@worlds
def test_trace_of_a_short_response_over_http2(servers, world):
    """The extension `trace` is told each step of a response that arrives in one piece."""
    (server,), told = servers(Http2(ended=says_ok)), Told()
    with world.client([server.url], http1=False, http2=True) as client:
        client.get("/", extensions={"trace": world.hook(told)})
    steps = [f"http2.{step}.{event}" for step in STEPS for event in ("started", "complete")]
    assert [name for name in told.names if name.startswith("http2")] == steps


@worlds
def test_trace_of_a_failure(world, dead_port):
    """A step that fails is reported with its error."""
    told = []
    with (
        world.client([f"http://127.0.0.1:{dead_port}"], retry=None) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.get("/", extensions={"trace": world.hook(lambda *event: told.append(event))})
    assert [name for name, _ in told] == [
        "connection.connect_tcp.started",
        "connection.connect_tcp.failed",
    ]
    assert isinstance(told[-1][1]["exception"], httpx.ConnectError)


# Connections that speak no HTTP any more


def switches(connection, request):
    """After 101, or CONNECT, the bytes are sent back; through TLS if the target says so."""
    if request.method == "CONNECT":
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    else:
        fields = {"Upgrade": "echo", "Connection": "Upgrade"}
        connection.send(head(101, fields) + b"hello")
    sock = connection.sock
    if request.target.endswith("443"):
        sock = serving().wrap_socket(sock.dup(), server_side=True)
    with sock:
        while data := sock.recv(1000):
            sock.sendall(data.upper())
    connection.close()


@worlds
def test_upgrade(servers, world):
    """After 101 the connection belongs to the caller, with the bytes that followed, and is not used
    again."""
    (server,) = servers(switches)
    headers = {"Upgrade": "echo", "Connection": "Upgrade"}
    with world.client([server.url]) as client:
        for _ in range(2):
            with client.stream("GET", "/", headers=headers) as response:
                assert response.status_code == 101
                raw = response.extensions["network_stream"]
                assert client.run(raw.read, 2, SOON) == b"he"
                assert client.run(raw.read, 9, SOON) == b"llo"
                client.run(raw.write, b"abc" * 1000, SOON)
                got = b""
                while len(got) < 3000:
                    got += client.run(raw.read, 100, SOON)
                assert got == b"ABC" * 1000
                assert raw.get_extra_info("server_addr")[1] == server.port
        assert server.accepted == 2
        assert client.in_flight == 0


@worlds
def test_tunnel(servers, world):
    """After CONNECT the caller can start TLS on the connection, and the peer is verified."""
    (server,) = servers(switches)
    with (
        world.client([server.url]) as client,
        client.stream("CONNECT", "/", extensions={"target": b"orders.test:443"}) as response,
    ):
        assert response.status_code == 200
        raw = response.extensions["network_stream"]
        raw = client.run(raw.start_tls, trusting(), NAME, SOON)
        client.run(raw.write, b"secret", SOON)
        assert client.run(raw.read, 100, SOON) == b"SECRET"
        assert raw.get_extra_info("ssl_object").version()
        client.run(raw.close if client.portal is None else raw.aclose)
        with pytest.raises(httpx.TransportError):
            client.run(raw.read, 100, SOON)


def test_threads_share_an_upgraded_connection(servers):
    """After an upgrade one thread may read while another writes."""
    (server,) = servers(switches)
    headers = {"Upgrade": "echo", "Connection": "Upgrade"}
    with (
        lbclient.Client([server.url]) as client,
        client.stream("GET", "/", headers=headers) as response,
    ):
        raw = response.extensions["network_stream"]
        assert raw.read(5, SOON) == b"hello"

        def write():
            for _ in range(100):
                raw.write(b"abc" * 1000, SOON)

        writing = threading.Thread(target=write)
        writing.start()
        got = 0
        while got < 300_000:
            got += len(raw.read(65536, SOON))
        writing.join()


# Forks


@pytest.mark.parametrize("kind", ["thread", "asyncio", "trio"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_child_and_parent_go_on(servers, serve_tls, kind, secure):
    """A forked child opens its own connections; its parent's stay open."""
    if secure:
        server = serve_tls(tells_port, "127.0.0.1")
    else:
        (server,) = servers(tells_port)
    text = """
    import os, sys, anyio, lbclient
    def use(client):
        assert client.get("/").status_code == 200
    async def ause(client):
        assert (await client.get("/")).status_code == 200
    def fork():
        if (child := os.fork()) == 0:
            return None
        return child
    def ended(child):
        if child is None:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    async def parent():
        async with lbclient.AsyncClient(sys.argv[1], verify=False) as client:
            await ause(client)
            if (child := os.fork()) == 0:
                os._exit(0)  # a loop is not for its children
            ended(child)
            await ause(client)
    async def child():
        async with lbclient.AsyncClient(sys.argv[1], verify=False) as client:
            await ause(client)
    if sys.argv[2] == "thread":
        with lbclient.Client(sys.argv[1], verify=False) as client:
            use(client)
            if (child := fork()) is None:
                use(client)
            ended(child)
            use(client)
    else:
        anyio.run(parent, backend=sys.argv[2])
        if (made := fork()) is None:
            anyio.run(child, backend=sys.argv[2])
        ended(made)
    """
    assert script(text, server.url, kind) == (0, "", "")
    assert server.accepted == 2
    assert server.hits == 3
