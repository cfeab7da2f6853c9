"""The forms of nameservers, and questions over TLS (RFC 7858) and HTTPS (RFC 8484)."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lbclient import Balancer, DiscoveryError
from lbclient.discovery.dns.client import Dns, dns_by
from lbclient.discovery.dns.nameservers import nameservers_of, plain_nameserver
from tests.support.dns import Asked, Liar, formerr, servfail
from tests.support.secure_dns import Certificates, SecureBind, peer

NAME = "_http._tcp.shop.test."
ZONE = "_http._tcp 5 SRV 0 1 80 a\n_http._tcp SRV 0 1 80 b\na A 127.0.0.1\nb AAAA ::1"
# dnspython's HTTP client leaves a socket that did not connect to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*<socket.socket fd:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def garbage():
    yield
    gc.collect()


# Naming nameservers


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("127.0.0.1:5353", "127.0.0.1", 5353),
        ("10.0.0.2", "10.0.0.2", 53),
        ("[::1]:5353", "::1", 5353),
        ("[::1]", "::1", 53),
        ("::1", "::1", 53),
        ("fe80::1%lo", "fe80::1%lo", 53),
        ("[fe80::1%lo]:54", "fe80::1%lo", 54),
    ],
)
def test_nameserver_is_an_address_with_or_without_port(text, address, port):
    """`nameservers=` accepts addresses of both families, with or without a port, in a list or
    alone."""
    for given in (text, [text], (text,)):
        (one,) = nameservers_of(given)
        assert (one.address, one.port) == (address, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":53",
        "localhost",
        "localhost:53",
        " 127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1: 53",
        "127.0.0.1:+53",
        "127.0.0.1:5_3",
        "127.0.0.1:٥٣",
        "127.0.0.1:53:53",
        "[::1",
        "::1]:53",
        "[]:53",
        "[::1]5353",
        "tls://",
        "tls://dns.example",
        "tls://10.0.0.2#",
        "tls://10.0.0.2#two words",
        "tls://10.0.0.2:0#dns.example",
        "tls://10.0.0.2:853:853",
        "tls:10.0.0.2",
        "TLS://10.0.0.2",
        "https://",
        "https://dns.example",
        "https:///dns-query",
        "https://dns.example:/dns-query#10.0.0.2",
        "https://dns.example:x/dns-query#10.0.0.2",
        "http://192.0.2.1/dns-query",
        "quic://192.0.2.1",
    ],
)
def test_bad_nameserver_is_a_value_error(text):
    """K1: an invalid address is refused at construction by an error that names the argument."""
    with pytest.raises(ValueError, match=r"^nameservers must contain addresses such as") as caught:
        Balancer("http+srv://shop.test", nameservers=[text])
    assert f", not '{text.partition('/dns-query')[0]}" in str(caught.value)


@pytest.mark.parametrize("given", [5, [5], [None], [b"127.0.0.1"], b"127.0.0.1"])
def test_nameserver_of_the_wrong_type_is_a_type_error(given):
    """K1: a value that is not a string is refused at construction by an error that names the
    argument."""
    with pytest.raises(TypeError, match=r"^nameservers must contain addresses such as"):
        Balancer("http+srv://shop.test", nameservers=given)


def test_no_nameservers_are_a_mistake():
    """K1: an empty list does not mean the system's nameservers."""
    with pytest.raises(ValueError, match="nameservers must not be empty"):
        Balancer("http+srv://shop.test", nameservers=[])
    assert dns_by(None, time.monotonic)._nameservers is None


@pytest.mark.parametrize(
    ("text", "address", "port", "name"),
    [
        ("tls://10.0.0.2", "10.0.0.2", 853, "10.0.0.2"),
        ("tls://10.0.0.2:8853", "10.0.0.2", 8853, "10.0.0.2"),
        ("tls://10.0.0.2#DNS.example.", "10.0.0.2", 853, "dns.example"),
        ("tls://10.0.0.2:853#dns.example", "10.0.0.2", 853, "dns.example"),
        ("tls://::1#dns.example", "::1", 853, "dns.example"),
        ("tls://[::1]:854", "::1", 854, "::1"),
        ("tls://fe80::1%lo", "fe80::1%lo", 853, "fe80::1"),
    ],
)
def test_nameserver_over_tls(text, address, port, name):
    """`tls://address:port#name`: the certificate must be for the name, or without one for the
    address."""
    (one,) = nameservers_of(text)
    assert (one.address, one.port, one.hostname, one.verify) == (address, port, name, True)


@pytest.mark.parametrize(
    ("text", "url", "address"),
    [
        ("https://192.0.2.1/dns-query", "https://192.0.2.1/dns-query", None),
        ("https://[::1]:8443/q", "https://[::1]:8443/q", None),
        ("https://dns.example/dns-query", "https://dns.example/dns-query", None),
        ("https://DNS.example:443/q?k=v#10.0.0.2", "https://dns.example/q?k=v", "10.0.0.2"),
        ("https://dns.example/q#fd00::1", "https://dns.example/q", "fd00::1"),
    ],
)
def test_nameserver_over_https(text, url, address):
    """`https://host/path#address`: the part after `#` is the address of the host."""
    (one,) = nameservers_of([text])
    assert (one.url, one.bootstrap_address) == (url, address)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hush@dns.example/dns-query#10.0.0.2",
        "https://user:hu/sh@dns.example/dns-query",
        "https://hush@dns.example/dns-query",
        "https://dns.example/hush#dns.example",
        "https://dns.example:0/dns-query?token=hush",
        "https://dns.example:99999/hush",
        "https://dns.example?token=hush",
        "https://dns.example/dns query/hush",
        "https://dns.example/dns-query?hush\r\nx: y",
        "https://dns.exämple/hush",
        "https://[fe80::1%lo]/hush",
        "https://dns.example\\@evil.example/hush",
        "tls://user:hush@10.0.0.2",
        "user:hush@10.0.0.2",
    ],
)
def test_secrets_of_a_bad_nameserver_are_not_told(text):
    """S5, K1: userinfo is refused, and no error shows it, nor the path or query of a URL."""
    with pytest.raises(ValueError, match=r"^nameservers must contain addresses such as") as caught:
        nameservers_of(text)
    assert "hush" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_nameserver_over_tcp():
    """D6: `tcp://` asks over TCP at once, for servers that silently cut answers; it differs from
    the same nameserver over UDP, and is shown as it was given."""
    with Liar(glue=True) as liar:
        liar.put("_http._tcp.shop.test", "SRV", "0 0 80 a.test.")
        liar.put("a.test", "A", "192.0.2.1")
        balancer = Balancer("http+srv://shop.test", nameservers=[f"tcp://{liar.address}"])
        balancer.refresh()
        assert liar.over_tcp == liar.asked() > 0
        liar.fault(servfail)
        with pytest.raises(DiscoveryError, match=f"tcp://{liar.address}: SERVFAIL$"):
            balancer.refresh()
        balancer.close()
    plain, tcp = nameservers_of(["10.0.0.2", "tcp://10.0.0.2"])
    assert plain.answer_nameserver() != tcp.answer_nameserver()
    assert str(nameservers_of(["tcp://[::1]:54"])[0]) == "tcp://[::1]:54"


@pytest.mark.parametrize("text", ["tls://10.0.0.2", "https://10.0.0.2/dns-query", "dns.example"])
def test_plain_nameserver_is_an_address(text):
    """Options that support only UDP and TCP accept nothing else."""
    assert plain_nameserver("[::1]:54").port == 54
    with pytest.raises(ValueError):
        plain_nameserver(text)


def test_missing_extra_is_told():
    """K1: without dnspython's packages for HTTPS, construction fails and says what to install."""
    code = (
        "import dns._features; dns._features.force('doh', False)\n"
        "from lbclient.discovery.dns.nameservers import nameservers_of\n"
        "nameservers_of('tls://10.0.0.2')\n"
        "nameservers_of('https://10.0.0.2/dns-query')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == (
        "ImportError: nameservers with https:// need the packages that dnspython uses for HTTPS: "
        "pip install 'lbclient[doh]'"
    )


# Real servers


@pytest.fixture
def certificates(tmp_path, monkeypatch):
    made = Certificates(tmp_path, "127.0.0.1", "dns.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    return made


@pytest.fixture
def bind(tmp_path, certificates):
    with SecureBind(tmp_path, "shop.test.", NAME, ZONE, certificates) as server:
        yield server


def form(server: SecureBind, kind: str, name: str | None = None) -> str:
    if kind == "tls":
        return server.tls + (f"#{name}" if name else "")
    return server.https_as(name) if name else server.https


def ask(*nameservers: str, lifetime: float = 5.0, clock=time.monotonic) -> list[str]:
    found = Dns(nameservers_of(nameservers, clock), lifetime).ask(NAME, "SRV")
    return sorted(str(one) for one in found.records)


def failure(*nameservers: str, lifetime: float = 5.0, clock=time.monotonic) -> str:
    """The failure without its question; it must be the same each time."""
    told = set()
    for _ in range(2):
        with pytest.raises(DiscoveryError) as caught:
            ask(*nameservers, lifetime=lifetime, clock=clock)
        told.add(str(caught.value))
    (text,) = told
    return text.removeprefix(f"asking for SRV of {NAME} failed: ")


@pytest.mark.parametrize("kind", ["tls", "https"])
@pytest.mark.parametrize("name", [None, "dns.example"])
def test_bind_over_tls_and_https(bind, kind, name):
    """A service is found over TLS and HTTPS, whether the server is given by address or by name."""
    with Balancer(
        "http+srv://shop.test",
        nameservers=[form(bind, kind, name)],
        allow=["127.0.0.0/8", "::1/128"],
    ) as balancer:
        balancer.refresh()
        found = {one.host: one.addresses for one in balancer.instances()}
    assert found == {"a.shop.test": ("127.0.0.1",), "b.shop.test": ("::1",)}


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_certificate_must_be_for_the_name(bind, kind):
    """A certificate for another name is refused; the error says so, the same each time."""
    assert failure(form(bind, kind, "other.example")).endswith(
        "its certificate is not accepted: "
        "Hostname mismatch, certificate is not valid for 'other.example'."
    )


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_certificate_must_be_for_the_address(tmp_path, monkeypatch, kind):
    """Without a name, a certificate that does not contain the address is refused."""
    certificates = Certificates(tmp_path, "dns.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    with SecureBind(tmp_path, "shop.test.", NAME, ZONE, certificates) as bind:
        assert len(ask(form(bind, kind, "dns.example"))) == 2
        assert failure(form(bind, kind)).endswith(
            "its certificate is not accepted: "
            "IP address mismatch, certificate is not valid for '127.0.0.1'."
        )


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_certificate_of_an_unknown_authority(bind, kind, monkeypatch):
    """A certificate that no trusted authority has signed is refused."""
    monkeypatch.delenv("SSL_CERT_FILE")
    told = "its certificate is not accepted: unable to get local issuer certificate"
    assert failure(form(bind, kind)).endswith(told)


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_ssl_cert_dir_applies(bind, certificates, tmp_path, kind, monkeypatch):
    """K7: the authorities of SSL_CERT_DIR are trusted."""
    shown = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", certificates.authority],
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / f"{shown.stdout.strip()}.0").symlink_to(certificates.authority)
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "trusted"))
    assert len(ask(form(bind, kind))) == 2


def test_environment_has_no_say(bind, tmp_path, monkeypatch):
    """K7: proxies and netrc of the environment are ignored."""
    (tmp_path / "netrc").write_text("default login user password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert len(ask(bind.https)) == 2
    assert len(ask(bind.https_as("dns.example"))) == 2


def test_secrets_of_a_nameserver_are_not_told(bind, caplog):
    """S5: no error, cause of an error, or log line shows path or query."""
    nameserver = f"{bind.https}/hush?token=hush"
    told = r"127\.0\.0\.1:\d+: HTTP status 404$"
    with (
        Balancer("http+srv://shop.test", nameservers=[nameserver]) as balancer,
        pytest.raises(DiscoveryError, match=told) as caught,
    ):
        balancer.refresh()
    errors, error = [], caught.value
    while error is not None:
        errors.append(f"{error} {error!r}")
        error = error.__cause__ or error.__context__
    logged = [one.getMessage() for one in caplog.records if one.name.startswith("lbclient")]
    assert "hush" not in " ".join(errors + logged)


def held() -> tuple[int, set[threading.Thread]]:
    """Descriptors and threads; dnspython 2.7 leaves its selectors to the garbage collector."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), set(threading.enumerate())


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_no_descriptor_and_no_thread_is_left(bind, kind):
    """Each question's connection is closed, even if the question fails."""
    good, bad = form(bind, kind), form(bind, kind, "other.example")
    resolvers = [Dns(nameservers_of([one])) for one in (good, bad)]
    ask(good)
    descriptors, threads = held()
    kept = []
    for _ in range(20):
        resolvers[0].ask(NAME, "SRV")
        with pytest.raises(DiscoveryError) as caught:
            resolvers[1].ask(NAME, "SRV")
        kept.append(caught.value)
    now, remaining = held()
    # Threads of the tests before may have ended meanwhile, and closed what was theirs.
    assert not remaining - threads
    assert now <= descriptors


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_child_asks_too(bind, kind):
    """C8: after a fork, both processes can ask."""
    resolver = Dns(nameservers_of([form(bind, kind)]))
    resolver.ask(NAME, "SRV")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if len(resolver.ask(NAME, "SRV").records) == 2 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert len(resolver.ask(NAME, "SRV").records) == 2


@pytest.mark.parametrize("kind", ["tls", "https"])
def test_broken_one_is_passed_over(bind, kind):
    """D3: a nameserver of any kind that cannot be used is passed over for the next."""
    broken = form(bind, kind, "other.example")
    for good in (bind.address, bind.tls):
        assert len(ask(broken, good)) == 2
    with Liar() as liar:
        liar.fault(formerr)
        assert len(ask(liar.address, form(bind, kind))) == 2


@pytest.mark.usefixtures("garbage")
@pytest.mark.parametrize("kind", ["tls", "https"])
def test_who_answered_last_is_asked_first(bind, kind):
    """D3: an error distinguishes nameservers with the same address or URL."""
    good = form(bind, kind, "dns.example")
    same = (
        form(bind, kind, "other.example") if kind == "tls" else good.replace("#127.0.0.1", "#::1")
    )
    resolver = Dns(nameservers_of([same, good]))
    resolver.ask(NAME, "SRV")
    first, second = (str(one) for one in resolver._resolver(1.0).nameservers)
    assert (first, second) == tuple(map(str, reversed(nameservers_of([same, good]))))


def test_broken_one_is_not_asked_again(bind):
    """D3: each question begins with the nameserver that answered last."""
    asked: list[object] = []

    def hang_up(connection):
        asked.append(connection)
        connection.close()

    with peer(hang_up) as port:
        resolver = Dns(nameservers_of([f"tls://127.0.0.1:{port}", bind.tls]))
        for _ in range(3):
            resolver.ask(NAME, "SRV")
    assert len(asked) == 1


@pytest.mark.usefixtures("garbage")
def test_one_that_cannot_be_reached_over_https():
    """D3: the error says that nothing listens, and the next nameserver is asked."""
    dead = "https://127.0.0.1:1/dns-query"
    assert failure(dead) == "https://127.0.0.1:1: no connection"
    with Liar() as liar:
        liar.put(NAME, "SRV", "0 1 80 a.shop.test.")
        assert len(ask(dead, liar.address)) == 1


# Peers that fail


def silence(_connection):
    """A server that never answers."""


def plain(connection):
    connection.recv(65535)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def at(scheme: str, port: int) -> str:
    return f"{scheme}://127.0.0.1:{port}{'/dns-query' if scheme == 'https' else ''}"


@pytest.mark.usefixtures("garbage")
@pytest.mark.parametrize("scheme", ["tls", "https"])
def test_handshake_that_hangs(scheme):
    """D4: a question ends in time even if its server accepts the connection and never answers."""
    with peer(silence) as port:
        assert failure(at(scheme, port), lifetime=0.5) == f"{scheme}://127.0.0.1:{port}: no answer"


@pytest.mark.parametrize("scheme", ["tls", "https"])
def test_peer_without_tls(scheme):
    """The error says that a server does not speak TLS."""
    with peer(plain) as port:
        told = failure(at(scheme, port))
    assert told == f"{scheme}://127.0.0.1:{port}: TLS failed: WRONG_VERSION_NUMBER"


@pytest.fixture
def web(certificates):
    """Make a TLS server that handles each connection by `serve(connection)`, or a DNS server."""
    context = certificates.context()

    def make(serve):
        def accept(connection):
            with context.wrap_socket(connection.dup(), server_side=True) as secure:
                secure.recv(65535)
                serve(secure)
                while secure.recv(65535):
                    pass

        return peer(accept)

    return make


def responding(head: str, body: bytes = b""):
    def serve(secure):
        secure.sendall(f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    return serve


def dripping(secure):
    secure.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n")
    pace = threading.Event()
    while not pace.wait(0.02):
        secure.sendall(b"x")


def early_hints(secure):
    while True:
        secure.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: " + b"x" * 8000 + b"\r\n\r\n")


@pytest.mark.usefixtures("garbage")
@pytest.mark.parametrize("scheme", ["tls", "https"])
def test_peer_that_says_nothing_within_tls(web, scheme):
    """D4: a question ends in time even if its server has read it and never answers."""
    with web(silence) as port:
        assert failure(at(scheme, port), lifetime=0.5) == f"{scheme}://127.0.0.1:{port}: no answer"


@pytest.mark.parametrize(
    ("serve", "told"),
    [
        (early_hints, "the answer is longer than a DNS message can be"),
        (responding("200 OK", b"x" * 1_000_000), "the answer is longer than a DNS message can be"),
        (responding("200 OK", b"<html>"), "The DNS packet passed to from_wire() is too short."),
        (responding("200 OK"), "The DNS packet passed to from_wire() is too short."),
        (responding("500 hush", b"hush"), "HTTP status 500"),
        (responding("302 Found\r\nlocation: http://127.0.0.1:1/hush"), "HTTP status 302"),
        (responding("nonsense"), "RemoteProtocolError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_answer_over_https(web, serve, told):
    """D3, S9: whatever the server sends, of any size, the error says why it is not an answer."""
    with web(serve) as port:
        text = failure(f"https://127.0.0.1:{port}/q")
    assert text == f"https://127.0.0.1:{port}: {told}"


@pytest.mark.usefixtures("garbage")
def test_answer_that_drips_over_https(web):
    """D4: a question ends in time even if its answer arrives slowly but without a pause."""
    with web(dripping) as port:
        text = failure(f"https://127.0.0.1:{port}/q", lifetime=0.5)
    assert text == f"https://127.0.0.1:{port}: no answer"


def test_error_under_way_is_not_the_reason(web):
    """An exception that the caller is handling is not mistaken for the failure of a question."""
    with web(responding("nonsense")) as port:
        try:
            socket.create_connection(("127.0.0.1", 1))
        except ConnectionRefusedError:
            text = failure(f"https://127.0.0.1:{port}/q")
    assert text.endswith(": RemoteProtocolError")


# EDNS


def formerr_to_edns(asked: Asked) -> bytes:
    """Respond as servers do that do not know EDNS (RFC 6891, 7)."""
    return formerr(asked) if asked.query.edns >= 0 else asked.truth


def test_server_without_edns():
    """D3, D6: the answers of a server without EDNS are understood; those that do not fit are
    fetched over TCP."""
    with Liar() as liar:
        liar.put(NAME, "SRV", *(f"0 1 {port} a.shop.test." for port in range(1, 61)))
        liar.fault(formerr_to_edns)
        assert len(ask(liar.address)) == 60
        assert liar.over_tcp == 1
