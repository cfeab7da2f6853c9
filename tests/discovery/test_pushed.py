"""Sessions with registries, and how the sources that use them are followed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from functools import partial

import pytest

from lbclient import Answer, DiscoveryError, Instance
from lbclient._internal.blocking import run_blocking
from lbclient.discovery.pushed import api as api_module
from lbclient.discovery.pushed import source as source_module
from lbclient.discovery.pushed.api import (
    RegistryApi,
    StatusError,
    read_secret,
    registry_url,
    secret,
)
from lbclient.discovery.pushed.source import PushedSource, _BlockingWatch
from tests.support.faults import NAME, TlsServer, authority, certified
from tests.support.http import Gate, dies_in_body, drips, drips_headers, hangs_up, head, says
from tests.support.interpreter import ended_soon

TOKEN = "s3cr3t-t0k3n"


@pytest.fixture(params=["loop", "thread"])
def carry_out(request):
    """`carry_out(api, make)`: the result of a coroutine within a session."""

    def on_loop(api, make):
        async def whole():
            async with api:
                return await make()

        return asyncio.run(whole())

    def on_thread(api, make):
        with api:
            return run_blocking(make)

    return {"loop": on_loop, "thread": on_thread}[request.param]


def session(server, **options):
    url = server if isinstance(server, str) else server.url
    return RegistryApi("Registry", url, **options)


def bearer():
    return {"authorization": f"Bearer {TOKEN}", "x-token": "oth3r"}


def test_a_request(servers, carry_out):
    """A request has the session's headers and its document; the reply has status, headers and
    body."""
    (server,) = servers(says(201, b'{"a": [1, {}]}', X_Index="7"))
    api = session(f"{server.url}/base/", headers=bearer)
    reply = carry_out(
        api, lambda: api.post("/v1/x", {"k": "é"}, [("q", "1"), ("q", "a b")], expect=(200, 201))
    )
    assert (reply.status, reply.headers["x-index"], reply.json()) == (201, "7", {"a": [1, {}]})
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/base/v1/x?q=1&q=a+b")
    assert json.loads(request.body) == {"k": "é"}
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["accept-encoding"] == "identity"


def test_a_session_reuses_its_connection_and_reads_headers_anew(servers, carry_out):
    """Requests of one session share a connection, and each asks for the headers again."""
    (server,) = servers(says(200, b"{}"))
    tokens = iter("abc")
    api = session(server, headers=lambda: {"x-token": next(tokens)})

    async def thrice():
        await api.get("/")
        await api.put("/", {})
        await api.post("/")

    carry_out(api, thrice)
    assert [one.headers["x-token"] for one in server.requests] == ["a", "b", "c"]
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refused the token (401): no ... or ..."),
        (403, "does not permit GET /x (403): no ... or ...; add a rule"),
        (404, "knows no /x (404): no ... or ..."),
        (302, "answered GET /x with status 302: no ... or ..."),
        (500, "answered GET /x with status 500: no ... or ..."),
    ],
)
def test_statuses(servers, carry_out, status, said):
    """An unexpected status is an error with its meaning and the registry's explanation. Secrets
    that the explanation repeats are not shown, and no redirect is followed."""
    body = json.dumps({"message": f"no {TOKEN} or oth3r"}).encode()
    (server,) = servers(says(status, body, Location="/y"))
    api = session(server, headers=bearer, hints={403: "add a rule"})
    with pytest.raises(StatusError) as caught:
        carry_out(api, lambda: api.get("/x"))
    assert str(caught.value) == f"Registry at {server.url} {said}"
    assert caught.value.status == status
    assert caught.value.__context__ is None
    assert server.hits == 1


def test_secrets_of_a_document(servers, carry_out):
    """No error shows a password that the registry repeats from a document, and headers without
    secrets are no token."""
    behave = lambda connection, request: says(401, request.body)(connection, request)  # noqa: E731
    (server,) = servers(behave)
    password = 'hunt"er2'
    api = session(server, common_headers={"x-leader": "true"}, secrets=[password])
    with pytest.raises(StatusError) as caught:
        carry_out(api, lambda: api.post("/", {"true": password}))
    assert str(caught.value).endswith('refused the token (401): {"true":"..."}')
    assert server.requests[0].headers["x-leader"] == "true"
    api = session(server, common_headers={"x-leader": "true"})
    with pytest.raises(StatusError, match=r"requires a token \(401\): true$"):
        carry_out(api, lambda: api.post("/", True))


def test_secrets_in_each_form_of_json(servers, carry_out):
    """No error shows a password with letters that JSON may contain as they are, or escaped."""
    password = 'p\xe4"ss'
    body = b" ".join(json.dumps(password, ensure_ascii=one).encode() for one in (True, False))
    (server,) = servers(says(500, body))
    api = session(server, secrets=[password])
    with pytest.raises(StatusError, match=r'status 500: "\.\.\." "\.\.\."$'):
        carry_out(api, lambda: api.post("/"))


def test_an_earlier_token(servers, carry_out):
    """No error shows the token of an earlier request, which may still be under way."""
    (server,) = servers(says(200, b"{}"))
    tokens = iter(["s3cr3t-a", "s3cr3t-b"])
    api = session(server, headers=lambda: {"x-token": next(tokens)})

    async def twice():
        await api.get("/")
        await api.get("/")
        return api.clean("no s3cr3t-a and no s3cr3t-b")

    assert carry_out(api, twice) == "no ... and no ..."


def test_requests_that_cannot_be_encoded(servers, carry_out):
    """A token or a text of the registry that a request cannot contain is a DiscoveryError, which
    does not show it."""
    (server,) = servers(says(200, b"{}"))
    token = "s3cr3t-t\xf6k3n"
    for headers, params, document in [
        ({"authorization": token}, None, None),
        ({}, {"continue": "s3cr3t-\ud800"}, None),
        ({}, None, {"ID": "s3cr3t-\ud800"}),
        ({}, {"continue": "s3cr3t-" + "x" * 70_000}, None),
    ]:
        api = session(server, headers=lambda headers=headers: headers)
        with pytest.raises(DiscoveryError, match="cannot be asked: a part of the requ") as caught:
            carry_out(api, lambda api=api, p=params, d=document: api.post("/", d, p))
        assert "s3cr3t" not in repr(caught.value)
        assert caught.value.__context__ is None
    assert not server.hits


def test_an_explanation_that_does_not_end(servers, carry_out, monkeypatch):
    """The body of an unexpected status is read only in the time that is left for the request, and
    the error has the status without the body."""

    def refuses(connection, _):
        now[0] += 3
        connection.send(head(500, {"Content-Length": "5"}) + b"w")
        connection.server.stopping.wait()

    (server,) = servers(refuses)
    api, now, left = session(server), [100.0], []
    api.clock = lambda: now[0]
    reads = api_module._LoopIo.read, api_module._ThreadIo.read

    async def read(io, response, seconds):
        left.append(seconds)
        return await reads[isinstance(io, api_module._ThreadIo)](io, response, min(seconds, 0.05))

    monkeypatch.setattr(api_module._LoopIo, "read", read)
    monkeypatch.setattr(api_module._ThreadIo, "read", read)
    with pytest.raises(StatusError, match=r"GET /x with status 500$"):
        carry_out(api, lambda: api.get("/x", timeout=4))
    assert max(left) == 1
    left.clear()
    with pytest.raises(StatusError):
        carry_out(api, lambda: api.get("/x", timeout=300))
    assert max(left) == 5


def test_a_token_that_is_missing(servers, carry_out):
    """Without a token, a 401 says that the registry requires one."""
    (server,) = servers(says(401, b"<h1>\x00 denied"))
    api = session(server)
    with pytest.raises(StatusError, match=r"requires a token \(401\): <h1>\\x00 denied$"):
        carry_out(api, lambda: api.get("/"))


def drips_in_chunk_size(connection, _):
    """Good headers, then a byte of the extension of a chunk each 10 ms."""
    connection.send(head(200, {"Transfer-Encoding": "chunked"}) + b"1;a=")
    while not connection.server.stopping.wait(0.01):
        connection.send(b"x")


@pytest.mark.parametrize(
    ("behaviour", "seconds", "said"),
    [
        (hangs_up, 20, "the connection to Registry at {url} failed: Server disconnected"),
        (dies_in_body, 20, "the connection to Registry at {url} failed: "),
        (lambda connection, _: connection.send(b"\x00nonsense\r\n\r\n"), 20, "the connection to "),
        (drips(0.01), 0.2, "Registry at {url} did not answer within 0.2 s"),
        (drips_headers(0.01), 0.2, "Registry at {url} did not answer within 0.2 s"),
        (drips_in_chunk_size, 0.2, "Registry at {url} did not answer within 0.2 s"),
        (Gate(), 0.2, "Registry at {url} did not answer within 0.2 s"),
        (says(200, b"[" * 100_000), 20, "Registry at {url} sent invalid JSON: nested too deeply"),
        (says(200, b'{"a": \xff}'), 20, "Registry at {url} sent invalid JSON: not UTF-8"),
        (says(200, b""), 20, "Registry at {url} sent invalid JSON: Expecting value"),
        (says(200, b"9" * 5000), 20, "Registry at {url} sent invalid JSON: "),
    ],
)
def test_failures_of_the_network(servers, carry_out, behaviour, seconds, said):
    """Each failure is a DiscoveryError that names the registry and its address."""
    (server,) = servers(behaviour)
    api = session(server, headers=bearer)

    async def ask():
        return (await api.get("/", timeout=seconds)).json()

    with pytest.raises(DiscoveryError) as caught:
        carry_out(api, ask)
    assert str(caught.value).startswith(said.format(url=server.url))
    assert TOKEN not in repr(caught.value)


def test_refused_connections(dead_port, carry_out):
    """A registry whose port refuses connections cannot be reached."""
    api = session(f"http://127.0.0.1:{dead_port}")
    with pytest.raises(DiscoveryError, match=r"cannot be reached: Connection refused$"):
        carry_out(api, lambda: api.get("/"))


def test_large_responses(servers, carry_out, monkeypatch):
    """A response is read up to a bound."""
    monkeypatch.setattr(api_module, "_LARGEST", 2048)
    (server,) = servers(says(200, b"x" * 4096))
    api = session(server)
    with pytest.raises(DiscoveryError, match="a response of more than 2 KiB"):
        carry_out(api, lambda: api.get("/"))


@pytest.fixture
def tls(tmp_path):
    server = TlsServer(says(200, b"{}"))
    server.context = certified("127.0.0.1")
    path = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(path)
    yield server, path
    server.stop()


def test_tls(tls, carry_out):
    """The certificate is verified with the file that `ca` names."""
    server, path = tls
    api = session(server, ca=path)
    assert carry_out(api, lambda: api.get("/")).status == 200


def test_a_ca_file_that_changes(tls, carry_out):
    """The CA file is read again when it has changed; one that cannot be used is an error that names
    it."""
    server, path = tls
    good = path.read_bytes()
    api = session(server, ca=path)
    path.write_bytes(b"no certificate")
    with pytest.raises(DiscoveryError, match=f"the CA file {path} of Registry at .* cannot be us"):
        carry_out(api, lambda: api.get("/"))
    path.write_bytes(good)
    os.utime(path, ns=(1, 1))
    assert carry_out(api, lambda: api.get("/")).status == 200
    path.unlink()
    with pytest.raises(DiscoveryError, match="No such file"):
        carry_out(api, lambda: api.get("/"))


def test_certificates_that_are_not_trusted(tls, carry_out):
    """An error says why a certificate is not trusted, and how to trust an unknown authority."""
    server, path = tls
    api = session(server)
    with pytest.raises(DiscoveryError, match=r"is not trusted: .*; pass ca= with the file"):
        carry_out(api, lambda: api.get("/"))
    server.context = certified(NAME)
    api = session(server, ca=path)
    with pytest.raises(DiscoveryError, match=r"not trusted: IP address mismatch.*'127.0.0.1'\.?$"):
        carry_out(api, lambda: api.get("/"))
    assert not server.requests


def test_tls_that_never_begins(carry_out):
    """A connection on which TLS does not begin in time is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        api = session(f"https://127.0.0.1:{listener.getsockname()[1]}")

        async def ask():
            with pytest.raises(DiscoveryError, match=r"did not answer within 0\.1 s"):
                await api.get("/", timeout=0.1)
            return await asyncio.to_thread(ended) if on_loop() else ended()

        def on_loop():
            return asyncio._get_running_loop() is not None

        def ended():
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(20)
                while peer.recv(4096):
                    pass
            return True

        assert carry_out(api, ask)


def streams(*chunks):
    """A response without end that sends these chunks; the last behaviour holds it open."""

    def behave(connection, _):
        connection.send(head(200, {"Transfer-Encoding": "chunked"}))
        for one in chunks:
            connection.send(b"%x\r\n%s\r\n" % (len(one), one))

    return behave


def test_lines(servers, carry_out):
    """A stream gives lines as they come, however they are cut; its end is no error."""
    (server,) = servers(streams(b"one\nt", b"w", b"o\r\n\n", b"three\nrest", b""))
    api = session(server)

    async def read():
        async with api.stream("POST", "/watch", json={"a": 1}, silence=5) as lines:
            return [line async for line in lines]

    assert carry_out(api, read) == [b"one", b"two", b"three"]
    assert json.loads(server.requests[0].body) == {"a": 1}
    assert carry_out(api, lambda: api.get("/", expect=(200,))).body.startswith(b"one")


def test_a_silent_stream(servers, carry_out):
    """A stream without a complete line for `silence` seconds is an error."""

    def trickles(connection, _):
        connection.send(head(200, {"Transfer-Encoding": "chunked"}))
        while not connection.server.stopping.wait(0.01):
            connection.send(b"1\r\nx\r\n")

    (server, other) = servers(streams(b"one\n"), trickles)

    async def read(api, silence, got):
        async with api.stream("GET", "/", silence=silence) as lines:
            async for line in lines:
                got.append(line)  # a list of them all would never be there

    for one, silence, lines in ((server, 0.5, [b"one"]), (other, 0.1, [])):
        api, got = session(one), []
        with pytest.raises(DiscoveryError, match=rf"sent nothing for {silence} s"):
            carry_out(api, partial(read, api, silence, got))
        assert got == lines


def test_a_long_line(servers, carry_out, monkeypatch):
    """A line is read up to a bound."""
    monkeypatch.setattr(api_module, "_LONGEST", 1000)
    (server,) = servers(streams(*[b"x" * 600] * 3))
    api = session(server)

    async def read():
        async with api.stream("GET", "/", silence=5) as lines:
            return [line async for line in lines]

    with pytest.raises(DiscoveryError, match="a line of more than"):
        carry_out(api, read)


def test_a_stream_that_is_refused(servers, carry_out):
    """A stream whose status is not 200 raises StatusError."""
    (server,) = servers(says(410, b'{"message": "too old"}'))
    api = session(server)

    async def read():
        async with api.stream("GET", "/", silence=5):
            raise AssertionError

    with pytest.raises(StatusError, match="status 410: too old") as caught:
        carry_out(api, read)
    assert caught.value.status == 410


def test_pace(carry_out):
    """`pace` waits if it is called more often than once in so many seconds, after a burst."""
    api, waits, now = session("http://127.0.0.1:1"), [], [100.0]

    async def pause(seconds):
        waits.append(round(seconds, 3))
        now[0] += seconds

    api.clock, api.pause = lambda: now[0], pause

    async def work():
        for _ in range(3):
            await api.pace(1.0)
        now[0] += 10
        for _ in range(5):
            await api.pace(1.0, burst=3)
        now[0] += 0.5
        await api.pace(1.0, burst=3)

    carry_out(api, work)
    assert waits == [1.0, 1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:1",
        "ftp://host",
        "http://",
        "http://u:s3cr3t@host",
        "http://host?token=s3cr3t",
        "http://host#f",
        "http://host:0",
        "http://host:s3cr3t",
        "http://ho st",
        "http://exa_mple..com",
        None,
    ],
)
def test_addresses_of_registries(url):
    """The URL of a registry has a scheme, a host, and no part that may be secret."""
    assert registry_url("server", "https://[::1]:6443/prefix/") == "https://[::1]:6443/prefix"
    with pytest.raises((ValueError, TypeError), match=r"^server") as caught:
        registry_url("server", url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"tok\ren", b"", b"\xe9t\xe9 s3cr3t", b"two s3cr3t"], ids=range(4)
)
def test_secrets(tmp_path, content):
    """A token is visible ASCII without spaces; no error shows it."""
    path = tmp_path / "token"
    with pytest.raises(DiscoveryError, match=f"the token cannot be read from {path}: No such"):
        read_secret("the token", path)
    path.write_bytes(b"abc\n")
    assert read_secret("the token", path) == "abc"
    path.write_bytes(content)
    with pytest.raises(DiscoveryError, match="must be printable ASCII") as caught:
        read_secret("the token", path)
    assert "s3cr3t" not in repr(caught.value)
    assert "s3cr3t" not in repr(caught.value.__context__)
    with pytest.raises(TypeError, match="token must be text, not bytes"):
        secret("token", content)


class Lines(PushedSource):
    """A source whose answers are the lines of a stream: ports."""

    def __init__(self, url):
        self.name = "ports"
        self.url = url

    def session(self):
        return RegistryApi("Registry", self.url)

    async def follow(self, api, update, alive):
        async with api.stream("GET", "/", silence=50) as lines:
            async for line in lines:
                if line == b"pause":
                    await api.pause(50)
                elif line == b"exit":
                    raise SystemExit
                elif line == b"alive":
                    alive()
                else:
                    update(Answer([Instance("127.0.0.1", int(line))], ttl=60))


class Watched:
    """What a watch sends, in order."""

    def __init__(self):
        self.got = queue.SimpleQueue()

    def update(self, answer):
        self.got.put([one.port for one in answer.instances])

    def alive(self):
        self.got.put("alive")

    def ended(self, error):
        self.got.put(error)

    def next(self):
        return self.got.get(timeout=20)

    def ends(self):
        """How the watch ends: an error, or None if it was cancelled. Nothing may follow."""
        while isinstance(got := self.next(), list | str):
            pass
        assert self.got.empty()
        return got


def start_blocking(source, update, alive, ended):
    """As `start` does if threads are green."""
    watch = _BlockingWatch(source, update, alive, ended)
    threading.Thread(target=watch.run).start()
    return watch.cancel


@pytest.fixture(params=["loop", "thread"])
def start(request):
    """`start(source, watched)` begins a watch in the background, and returns how to cancel it."""
    begin = {"loop": PushedSource.start, "thread": start_blocking}[request.param]
    return lambda source, seen: begin(source, seen.update, seen.alive, seen.ended)


def test_a_watch(servers, start):
    """A watch reports answers and signs of life, and ends with the error of the source."""
    (server,) = servers(streams(b"1\nalive\n2\n", b""))
    seen = Watched()
    cancel = start(Lines(server.url), seen)
    assert [seen.next() for _ in range(3)] == [[1], "alive", [2]]
    assert isinstance(seen.next(), DiscoveryError)
    cancel()
    assert seen.got.empty()


def test_a_watch_that_returns_or_exits(servers, start):
    """A watch that returns, or raises what is no Exception, ends with a DiscoveryError."""
    ends, exits = servers(streams(b""), streams(b"exit\n"))
    for server, how in ((ends, "returned"), (exits, "was ended by SystemExit")):
        seen = Watched()
        start(Lines(server.url), seen)
        error = seen.next()
        assert isinstance(error, DiscoveryError)
        assert str(error) == f"the watch of ports {how}"


@pytest.mark.parametrize("at", ["headers", "line", "pause"])
def test_cancelling(servers, start, at):
    """A watch that is cancelled ends at once, wherever it waits, with None."""
    gate = Gate()
    sends = {"line": streams(b"1\n"), "pause": streams(b"1\npause\n"), "headers": gate}
    (server,) = servers(sends[at])
    seen = Watched()
    cancel = start(Lines(server.url), seen)
    if at == "headers":
        assert gate.entered.acquire(timeout=20)
    else:
        assert seen.next() == [1]
    cancel()
    cancel()
    assert seen.next() is None
    cancel()
    assert seen.got.empty()


def test_cancelling_at_once(servers, start):
    """A watch that is cancelled before it has begun ends, too."""
    (server,) = servers(streams(b"1\n"))
    for _ in range(20):
        seen = Watched()
        start(Lines(server.url), seen)()
        while (got := seen.next()) is not None:
            assert got == [1]


def test_watch_blocks_until_close(servers):
    """`watch` is the blocking form, which `close` ends; several may run at the same time, and the
    source can be watched again."""
    (server,) = servers(streams(b"1\n"))
    source = Lines(server.url)
    for _ in range(2):
        seen = Watched()
        threads = [
            threading.Thread(target=source.watch, args=(seen.update, seen.alive)) for _ in range(3)
        ]
        for one in threads:
            one.start()
        assert [seen.next() for _ in threads] == [[1]] * 3
        source.close()
        for one in threads:
            one.join(20)
            assert not one.is_alive()


def test_watch_raises(dead_port):
    """`watch` raises the error of the source."""
    source = Lines(f"http://127.0.0.1:{dead_port}")
    with pytest.raises(DiscoveryError, match="cannot be reached"):
        source.watch(lambda _: None, lambda: None)


def test_a_source_can_be_pickled(servers):
    """A source can be pickled, also while it is watched."""
    (server,) = servers(streams(b"1\n"))
    source, seen = Lines(server.url), Watched()
    thread = threading.Thread(target=source.watch, args=(seen.update, seen.alive))
    thread.start()
    assert seen.next() == [1]
    assert pickle.loads(pickle.dumps(source)).url == server.url
    source.close()
    thread.join(20)


def test_watches_share_a_thread(servers):
    """The watches of all sources share one thread, also while names are looked up."""
    gate = Gate()
    (server,) = servers(gate)
    url = server.url.replace("127.0.0.1", "localhost")
    before = {one.name for one in threading.enumerate()}
    seen = Watched()
    cancels = [Lines(url).start(seen.update, seen.alive, seen.ended) for _ in range(100)]
    for _ in cancels:
        assert gate.entered.acquire(timeout=20)
    mine = [one.name for one in threading.enumerate() if one.name.startswith("lbclient-")]
    assert mine.count("lbclient-watches") == 1
    assert not {one for one in mine if one not in before} - {"lbclient-watches"}
    for cancel in cancels:
        cancel()
    assert [seen.next() for _ in cancels] == [None] * 100


def test_names_that_do_not_exist(start, monkeypatch):
    """The error of a lookup names the registry, and gives the reason."""

    def fails(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    seen = Watched()
    start(Lines("http://registry.invalid"), seen)
    said = "Registry at http://registry.invalid cannot be reached: Name or service not known"
    assert str(seen.next()) == said


def test_lookup_that_fails_after_its_watch(monkeypatch, caplog):
    """A lookup that fails after its watch was cancelled logs nothing."""
    asked, cancelled = threading.Event(), threading.Event()
    threads = []

    def fails(host, *_):
        if host == b"slow.invalid":
            threads.append(threading.current_thread())
            asked.set()
            cancelled.wait(20)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    seen = Watched()
    cancel = Lines("http://slow.invalid").start(seen.update, seen.alive, seen.ended)
    assert asked.wait(20)
    cancel()
    assert seen.next() is None
    cancelled.set()
    threads[0].join(20)
    Lines("http://other.invalid").start(seen.update, seen.alive, seen.ended)
    assert isinstance(seen.next(), DiscoveryError)  # so the shared loop has had the failure, too
    gc.collect()
    assert not [one for one in caplog.records if one.name == "asyncio"]


def test_a_forked_child_starts_again(servers):
    """In a forked child the parent's watches do not exist; a new one works."""
    (server,) = servers(streams(b"1\n"))
    seen = Watched()
    cancel = Lines(server.url).start(seen.update, seen.alive, seen.ended)
    assert seen.next() == [1]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cancel()
            mine = Watched()
            again = Lines(server.url).start(mine.update, mine.alive, mine.ended)
            assert mine.next() == [1]
            again()
            assert mine.next() is None
            assert seen.got.empty()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert seen.got.empty()
    cancel()
    assert seen.next() is None


_EXITS = """
import socket, sys, threading, time
from tests.discovery.test_pushed import Lines, Watched
seen = Watched()
cancel = Lines(sys.argv[1]).start(seen.update, seen.alive, seen.ended)
assert seen.next() == [1]
asked = threading.Event()
socket.getaddrinfo = lambda *_: (asked.set(), time.sleep(60))
other = Lines("http://slow.example:1").start(seen.update, seen.alive, seen.ended)
assert asked.wait(20)
print(time.time())
"""


def test_the_interpreter_ends(servers):
    """The interpreter exits at once and without a warning while sources are watched."""
    (server,) = servers(streams(b"1\n"))
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", _EXITS, server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ended_soon(done.stdout)


def test_no_thread_can_be_started(monkeypatch):
    """If no thread can be started, the error reaches the caller, and the next watch tries again."""
    shared = source_module._SharedLoop()
    monkeypatch.setattr(source_module, "_SHARED", shared)

    def refuses(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        with pytest.raises(RuntimeError, match="can't start"):
            Lines("http://127.0.0.1:1").start(print, print, print)
    assert shared._loop is None
