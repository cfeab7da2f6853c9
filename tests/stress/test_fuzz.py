"""A hundred thousand inputs that were mutated at random, from DNS, from HTTP, from a caller.

Whatever comes: only errors that have a name, no connection to an address that is refused, and no
secret in what is told. Each input has a seed of its own, which a failure names. All of them are
slow; a twentieth of them runs with the other tests.
"""

import base64
import contextlib
import gzip
import inspect
import ipaddress
import itertools
import logging
import random
import socket
import struct
import traceback
import types
from collections import Counter

import anyio
import anyio.lowlevel
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.resolver
import dns.rrset
import httpx
import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

import lbclient
from lbclient.discovery.address_filter import AddressFilter
from lbclient.discovery.dns.client import Dns
from lbclient.discovery.dns.nameservers import nameservers_of
from lbclient.discovery.dns.srv import SrvResolver
from lbclient.http.connections.event_loop import LoopConnection
from lbclient.http.connections.threads import SocketConnection
from lbclient.http.connections.trio import TrioConnection
from lbclient.http.options import TransportOptions
from tests.support.slow import shares

DNS_ANSWERS, HTTP_ANSWERS, CONFIGURATIONS = 30_000, 25_000, 45_000
assert DNS_ANSWERS + HTTP_ANSWERS + CONFIGURATIONS == 100_000

CLIENTS = 500

pytestmark = pytest.mark.filterwarnings("ignore:http.cookiejar bug!")  # its own, and it goes on


@contextlib.contextmanager
def telling(seed):
    """Name the input in a failure."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"the seed of the input was {seed}")
        raise


def mutated(dice, data, often=0.75):
    """Some bytes changed, inserted, removed or repeated."""
    data = bytearray(data)
    while data and dice.random() < often:
        place = dice.randrange(len(data))
        match dice.randrange(6):
            case 0:
                data[place] = dice.choice(b"\x00\x01\x20\x2e\x3f\x7f\x80\xc0\xff\r\n\t")
            case 1:
                data[place] ^= 1 << dice.randrange(8)
            case 2:
                data[place:place] = dice.randbytes(dice.choice([1, 1, 2, 16]))
            case 3:
                del data[place : place + dice.choice([1, 1, 2, 8, 200])]
            case 4:
                data[place:place] = data[place : place + dice.randrange(1, 40)]
            case 5:
                del data[place:]
    return bytes(data)


# DNS

SERVER, NAME = "192.0.2.53", "_http._tcp.orders.test."
TARGETS = [
    "a.orders.test.",
    "b.orders.test.",
    "A.OrDeRs.test.",
    "c.elsewhere.test.",
    ".",
    "*.orders.test.",
    "127.0.0.1.",
    "169.254.169.254.",
    r"x\032y.test.",
    r"x\013\010y.test.",
    r"x\000.test.",
    r"\255\254.test.",
    f"{'l' * 63}.{'m' * 63}.{'n' * 63}.test.",
    "localhost.",
]
BAD = [
    *["127.0.0.1", "127.8.9.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.9"],
    *["224.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16", "192.0.0.192"],
    *["::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe"],
    *["fd00:ec2::254", "fd20:ce::254", "2002:7f00:1::", "::127.0.0.1", "::ffff:0:127.0.0.1"],
]
GOOD = ["10.0.0.1", "192.0.2.7", "198.51.100.9", "203.0.113.250", "2001:db8::7", "fd12:3456::1"]
METADATA = {
    ipaddress.ip_address(one)
    for one in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
}
INNER = [
    (ipaddress.ip_network("::ffff:0:0/96"), 0),
    (ipaddress.ip_network("::ffff:0:0:0/96"), 0),
    (ipaddress.ip_network("::/96"), 0),
    (ipaddress.ip_network("64:ff9b::/96"), 0),
    (ipaddress.ip_network("2002::/16"), 80),
]


def forbidden(text):
    """What the address filter must refuse, written independently of it."""
    address = ipaddress.ip_address(text)
    forms = [address]
    for network, shift in INNER:
        if address.version == 6 and address in network and int(address) > 1:
            forms.append(ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF))
    return any(
        one.is_loopback
        or one.is_link_local
        or one.is_multicast
        or one.is_unspecified
        or one in METADATA
        or (one.version == 4 and (int(one) >> 24 == 0 or int(one) == 0xFFFFFFFF))
        for one in forms
    )


def records(dice, owner, kind):
    """A set of records, mostly valid."""
    if kind == "SRV":
        made = [
            f"{dice.choice([0, 0, 1, 65535])} {dice.choice([0, 1, 10, 65535])} "
            f"{dice.choice([80, 8080, 8080, 0, 65535])} "
            f"{dice.choice(TARGETS[:3] if dice.random() < 0.8 else TARGETS)}"
            for _ in range(dice.randrange(1, 5))
        ]
    else:
        family = 4 if kind == "A" else 6
        pool = dice.choice([GOOD, GOOD, BAD, GOOD + BAD])
        fitting = [one for one in pool if ipaddress.ip_address(one).version == family]
        made = dice.sample(fitting, dice.randrange(1, len(fitting) + 1))
    rrset = dns.rrset.from_text(owner, 0, "IN", kind, *made)
    rrset.ttl = dice.choice([0, 1, 60, 3600, 2**31 - 1])
    return rrset


def answer_to(dice, question):
    """A whole answer, with what servers add."""
    response = dns.message.make_response(question)
    asked, kind = question.question[0].name, question.question[0].rdtype.name
    if dice.random() < 0.1:
        response.set_rcode(dns.rcode.from_text(dice.choice(["NXDOMAIN", "SERVFAIL", "REFUSED"])))
    if dice.random() < 0.05:
        response.flags |= dns.flags.TC
    owner = asked
    for _ in range(dice.choice([0, 0, 0, 1, 2])):
        alias = dns.name.from_text("alias.orders.test.") if dice.random() < 0.8 else asked
        response.answer.append(dns.rrset.from_text(owner, 60, "IN", "CNAME", alias.to_text()))
        owner = alias
    if dice.random() < 0.95:
        response.answer.append(records(dice, owner, kind))
    for target in dice.sample(TARGETS[:4], dice.choice([0, 1, 2])):
        response.additional.append(records(dice, target, dice.choice(["A", "AAAA"])))
    return response.to_wire()


class Network:
    """Replaces the network for dnspython: it answers each question with a mutated answer, and its
    clock moves when something waits."""

    family = socket.AF_INET

    def __init__(self):
        self.dice = random.Random()
        self.answers = 0
        self.now = 1000.0
        self._known = {}

    def made(self, *_):
        return contextlib.nullcontext(self)

    def sendto(self, data, _):
        self.datagrams = [self.answer(data)]

    def recvfrom(self, _):
        if not self.datagrams:
            self.now += 0.5
            raise dns.exception.Timeout
        return self.datagrams.pop(), (SERVER, 53)

    def connect_ex(self, _):
        return 0

    def send(self, data):
        answer = self.answer(data[2:])
        self.stream = mutated(self.dice, struct.pack("!H", len(answer)), 0.02) + answer
        return len(data)

    def recv(self, size):
        found, self.stream = self.stream[:size], self.stream[size:]
        return found

    def answer(self, question):
        """Most keep header and question, or nothing would parse the rest."""
        self.answers += 1
        answer = question[:2] + self._template(question, self.dice.randrange(30))
        size = len(question)
        return mutated(self.dice, answer[:size], 0.05) + mutated(self.dice, answer[size:])

    def _template(self, question, number):
        """The same for the same question and number, whatever came before."""
        if len(self._known) > 5000:
            self._known.clear()
        key = question[2:], number
        if key not in self._known:
            dice = random.Random(repr(key))
            self._known[key] = answer_to(dice, dns.message.from_wire(question))[2:]
        return self._known[key]

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def network(monkeypatch):
    """Run the code of dnspython over bytes instead of sockets, without delay."""
    made = Network()
    monkeypatch.setattr(dns.query, "make_socket", made.made)
    monkeypatch.setattr(
        dns.resolver, "time", types.SimpleNamespace(time=made.time, sleep=made.sleep)
    )
    return made


@shares
def test_answers_of_dns(network, share):
    """S1, S4, D16, D17: whatever DNS answers, discovery finds instances that may be connected to,
    or fails with one of our errors; all texts are printable."""
    seen = Counter()
    for seed in itertools.count():
        if network.answers >= DNS_ANSWERS * share:
            break
        with telling(seed):
            network.dice.seed(seed)
            dns = Dns(nameservers_of([SERVER]))
            resolver = SrvResolver(NAME, dns, AddressFilter(), network.time)
            for _ in range(2):  # the second time it remembers addresses
                seen.update(outcome_of(resolver))
    assert min(seen[one] for one in ("found", "refused", "failed")) > 1000 * share, seen


def outcome_of(resolver):
    """Return how many instances it found and refused, after checking that no refused address is
    among those found, and that no text could break a log line."""
    try:
        answer = resolver.resolve()
    except lbclient.DiscoveryError as error:
        texts, seen = [str(error)], {"failed": 1}
    else:
        texts = [f"{one.record}{one.reason}" for one in answer.refused]
        seen = {"found": len(answer.instances), "refused": len(answer.refused)}
        for one in answer.instances:
            assert one.addresses
            assert not any(map(forbidden, one.addresses)), one.addresses
            assert 1 <= one.port <= 65535
    assert all(text.isprintable() for text in texts), texts
    return seen


@shares
@pytest.mark.parametrize("service", ["http+srv://orders.test", "http+dns://orders.test:80"])
def test_no_connection_to_what_is_refused(network, monkeypatch, service, share):
    """S1: whatever DNS answers, a client connects to no address that is refused."""
    dialled = []

    def refuse(address, _):
        dialled.append(address.to[0])
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("lbclient.http.connections.threads.open_socket", refuse)
    policy = lbclient.RetryPolicy(attempts=5, backoff=0, budget=None)
    for seed in range(int(CLIENTS * share)):
        with telling(seed), lbclient.Client(service, nameservers=[SERVER], retry=policy) as client:
            network.dice.seed(seed)
            with pytest.raises(httpx.ConnectError) as caught:
                client.get("/")
            assert str(caught.value).isprintable()
            assert not [one for one in dialled if forbidden(one)]
    assert set(GOOD[:4]) <= set(dialled)


# HTTP

COOKIE_SETTER = "add_unredirected_header"
SECRETS = ["S3CRET-QUERY", "S3CRET-AUTH", "S3CRET-COOKIE", "S3CRET-HEADER", "S3CRET-USER"]
TOLD_AS = [*SECRETS, base64.b64encode(f"user:{SECRETS[1]}".encode()).decode()]
GZIPPED = gzip.compress(b"hello" * 20)
JANUARY = "Thu, 01 Jan 2026 00:00:0{} GMT".format


def reply(status, body=b"", /, *, version="1.1", **fields):
    """The bytes of one answer."""
    if version == "1.1":
        fields.setdefault("Content_Length", len(body))
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"HTTP/{version} {status} X", *lines, "", ""]).encode() + body


def chunked(*chunks, trailer=b""):
    """The bytes of an answer in chunks."""
    body = b"".join(b"%x;x=y\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + body + b"0\r\n" + trailer + b"\r\n"


REPLIES = [
    reply(200, b"hello"),
    reply(200, b"hello", Content_Type="text/plain; charset=utf-8", Server="x"),
    reply(200, b"until the end", version="1.0"),
    reply(200, GZIPPED, Content_Encoding="gzip"),
    reply(200, b"x", Set_Cookie="a=b; Domain=orders.test; Path=/; Max-Age=9"),
    chunked(b"hello", b"there"),
    chunked(b"hello", trailer=b"X: y\r\n"),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n" + reply(204),
    reply(301, Location="/orders?a=b"),
    reply(302, Location="http://elsewhere.test/x"),
    reply(307, Location="http://10.0.0.2/orders"),
    reply(401, WWW_Authenticate="Basic realm=x"),
    reply(408, Connection="close"),
    reply(429, Date=JANUARY(0), Retry_After=JANUARY(1)),
    reply(503, b"busy", Retry_After="1"),
    reply(500, b"oops"),
    reply(999),
]


class Peer:
    """The other end of a connection: it sends mutated responses, in pieces, then ends or fails."""

    def __init__(self, dice):
        self.dice = dice
        self.left = b""

    def sent(self):
        if self.dice.random() < 0.02:
            raise httpx.WriteError("broken")
        if not self.left:
            replies = self.dice.choices(REPLIES, k=self.dice.choice([1, 1, 1, 1, 2]))
            self.left = mutated(self.dice, b"".join(replies), 0.6)

    def piece(self):
        if not self.left and self.dice.random() < 0.3:
            raise self.dice.choice([httpx.ReadError, httpx.ReadTimeout])("over")
        size = self.dice.choice([1, 3, 20, 1000, 65536])
        piece, self.left = self.left[:size], self.left[size:]
        return piece


class Ears(logging.Handler, SpanProcessor):
    """Collects what our loggers and spans report, and checks that no secret is in it."""

    def __init__(self):
        super().__init__()
        self.heard = Counter()

    def emit(self, record):
        self.hear("log", record.getMessage())
        assert record.getMessage().isprintable()

    def on_end(self, span):
        self.hear("span", span.to_json())

    def error(self, error):
        """With its notes and its causes."""
        while error is not None:
            self.hear(
                "error", " ".join([str(error), repr(error), *getattr(error, "__notes__", ())])
            )
            error = error.__cause__ or error.__context__

    def hear(self, what, text):
        self.heard[what] += 1
        assert not any(secret in text for secret in TOLD_AS), text


async def read(connection, _, **__):
    return connection._sock.piece()


async def aread(connection, _, **__):
    await anyio.lowlevel.checkpoint()
    return connection._sock.piece()


async def write(connection, *_):
    connection._sock.sent()
    return True


def unbound(method):
    """A test's function as a method of a connection, which becomes its first argument."""

    def called(*args):
        return method(*args)

    return called


class Caller:
    """Calls a service of two instances over a network that answers anything."""

    def __init__(self, monkeypatch):
        self.dice = random.Random()
        self.ears = Ears()
        self.dialled = set()
        self.outcomes = Counter()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(self.ears)
        monkeypatch.setattr(logging.getLogger("lbclient"), "handlers", [self.ears])
        self.connect(monkeypatch, SocketConnection)
        for kind in (LoopConnection, TrioConnection):
            self.connect(monkeypatch, kind)
            monkeypatch.setattr(kind, "read", aread)
        self.options = {
            "name": "orders.test",
            "retry": lbclient.RetryPolicy(attempts=2, backoff=0, backoff_max=0, budget=None),
            "breaker": lbclient.BreakerPolicy(reset_timeout=0.001, reset_timeout_max=0.01),
            "auth": ("user", SECRETS[1]),
            "headers": {"X-Api-Key": SECRETS[3]},
            "tracer_provider": tracers,
            "rng": self.dice,
        }

    def connect(self, monkeypatch, kind):
        """Make connections of this kind lead to peers that answer anything."""
        monkeypatch.setattr(kind, "open", unbound(self.open))
        monkeypatch.setattr(kind, "read", read)
        monkeypatch.setattr(kind, "write", write)
        monkeypatch.setattr(kind, "readable", lambda _: self.dice.random() < 0.3)
        monkeypatch.setattr(kind, "close", lambda _: None)

    async def open(self, connection, dial, _):
        (host,) = dial.hosts
        self.dialled.add(host)
        if self.dice.random() < 0.05:
            raise httpx.ConnectError("refused")
        connection._sock, connection.peer = Peer(self.dice), "10.0.0.9"

    def asked(self, seed):
        """The next request: its client's cookies, its method, its URL, and other options."""
        self.dice.seed(seed)
        host = self.dice.choice(["orders.test", "orders.test", "10.0.0.1", "elsewhere.test"])
        user = self.dice.choice(["", f"user:{SECRETS[4]}@"])
        urls = ["/orders", "/orders", "/orders", f"http://{user}{host}/orders"]
        url = f"{self.dice.choice(urls)}?token={SECRETS[0]}"
        headers = {"Cookie": f"session={SECRETS[2]}"}
        return self.dice.choice(["GET", "GET", "POST", "HEAD"]), url, headers

    @contextlib.contextmanager
    def judging(self, seed):
        """Check that only errors of httpx, ours among them, are raised."""
        with telling(seed):
            try:
                yield
            except (httpx.HTTPError, httpx.InvalidURL) as error:  # the latter for a Location
                self.outcomes[type(error).__name__] += 1
                self.ears.error(error)
            except UnicodeEncodeError as error:  # httpx's, for a cookie beyond ASCII in a redirect
                where = traceback.extract_tb(error.__traceback__)[-2].name
                assert where == COOKIE_SETTER  # others must not come out
            else:
                self.outcomes["answered"] += 1

    def check(self, client, share):
        """What must be true at the end."""
        assert self.dialled == {"10.0.0.1", "10.0.0.2"}
        assert [one.in_flight for one in client.balancer.snapshot().instances] == [0, 0]
        assert all(self.ears.heard[what] for what in ("log", "span", "error"))
        for name in ("answered", "RemoteProtocolError", "ReadError", "LoadBalancingError"):
            assert self.outcomes[name] > 20 * share, self.outcomes


INSTANCES = [lbclient.Instance("10.0.0.1", 80), lbclient.Instance("10.0.0.2", 80)]


@pytest.fixture
def caller(monkeypatch, caplog):
    """A caller that collects messages of every level."""
    caplog.set_level(logging.DEBUG, "lbclient")
    monkeypatch.setattr(logging.getLogger("lbclient"), "propagate", False)
    return Caller(monkeypatch)


@shares
def test_answers_of_http(caller, share):
    """S5, I9: whatever bytes arrive as a response, a call ends with a response or one of httpx's
    errors, nothing stays in flight, and no secret of the request is shown."""
    with lbclient.Client(INSTANCES, **caller.options) as client:
        for seed in range(int(HTTP_ANSWERS * 3 / 5 * share)):
            method, url, headers = caller.asked(seed)
            with caller.judging(seed):
                follow = caller.dice.random() < 0.5
                if caller.dice.random() < 0.7:
                    client.request(method, url, headers=headers, follow_redirects=follow)
                    continue
                with client.stream(method, url, headers=headers) as response:
                    for _ in response.iter_bytes():
                        if caller.dice.random() < 0.1:
                            break
            client.cookies.clear()
        caller.check(client, share)


@shares
@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_answers_of_http_async(caller, share):
    """S5, I9: the same for event loops."""
    async with lbclient.AsyncClient(INSTANCES, **caller.options) as client:
        for seed in range(int(HTTP_ANSWERS / 5 * share)):
            method, url, headers = caller.asked(seed)
            with caller.judging(seed):
                follow = caller.dice.random() < 0.5
                if caller.dice.random() < 0.7:
                    await client.request(method, url, headers=headers, follow_redirects=follow)
                    continue
                async with client.stream(method, url, headers=headers) as response:
                    async for _ in response.aiter_bytes():
                        if caller.dice.random() < 0.1:
                            break
            client.cookies.clear()
        caller.check(client, share)


# Configuration

SECRET = "S3CRET-OF-CONFIG"
VALUES = [
    *[None, True, False, 0, 1, -1, 2, 100, 10**400, 0.0, 0.5, -0.5, 1.0, 1e308, 1e-320],
    *[float("nan"), float("inf"), -float("inf"), 1j, "", " ", "x", "0", "5", "5 s", "GET", b"x"],
    *["\r\nX: y", "a\x00b", "\u00e9", "\ud800", "x" * 300, "*", ".", "_", "-", "a..b", "[::1]"],
    *[(), [], {}, set(), [None], ["x"], [1], {"x": 1}, (1, 2, 3), [[]], iter("ab"), range(3)],
    *[object(), object, int, lambda *_: 1, len, Exception("x"), random.Random(1), "random"],
    *[lbclient.RetryPolicy(), lbclient.RetryBudget(), lbclient.BreakerPolicy(), INSTANCES],
    *["10.0.0.1", "orders.test", "127.0.0.0/8", ["10.0.0.0/8"], ["10.0.0.2:53"], httpx.Limits()],
    *["/v1", "http://h:80/v1", "https", "ftp", httpx.Timeout(3), INSTANCES[0]],
]
SERVICES = [
    "http://10.0.0.1:80",
    "https://[::1]:443/v1",
    "http+srv://orders.test/v1",
    "https+srv://_orders._tcp.orders.test",
    "http+dns://orders.test:8080",
    "http+file:///nowhere/instances",
    f"http://user:{SECRET}@10.0.0.1:80",
    f"http+srv://user:{SECRET}@orders.test:99999",
    f"//user:{SECRET}@orders.test",
    f"user:{SECRET}@orders.test",
    f"https://user:{SECRET}@[::1",
    f"http://orders.test/?token={SECRET}",
]
FITTING = {
    "service": SERVICES,
    "name": [*SERVICES, "orders.test"],
    "base_url": [*SERVICES, "/v1"],
    "within": ["test", *SERVICES],
    "nameservers": [[one] for one in (*SERVICES, f"tls://user:{SECRET}@10.0.0.2#dns.test")],
    "server": ["10.0.0.2:53", f"user:{SECRET}@10.0.0.2"],
    "key": [f"hmac-sha256:name:{SECRET}", f"name:{SECRET}", f"md5:a:b:{SECRET}"],
    "host": ["10.0.0.1", "a.test", f"user:{SECRET}@a.test"],
    "instances": [INSTANCES, INSTANCES[:1]],
    "port": [80, 65535],
    "instance": INSTANCES,
    "verify": [False],
    "transport": [lambda _: httpx.MockTransport(len)],
}
PLAIN = [
    *[lbclient.RetryPolicy, lbclient.RetryBudget, lbclient.BreakerPolicy, lbclient.HedgePolicy],
    *[lbclient.OutlierPolicy, lbclient.SlowStart, lbclient.ThrottlePolicy, lbclient.AdaptiveLimit],
    *[lbclient.Instance, lbclient.Answer, lbclient.Verdict, lbclient.LeastBusy],
    *[lbclient.FileResolver, lbclient.FirstOf, lbclient.Union, lbclient.Registration],
]
HTTP = {
    lbclient.Transport: [*TransportOptions.__annotations__, "transport"],
    lbclient.AsyncTransport: [*TransportOptions.__annotations__, "transport"],
    lbclient.Client: [*TransportOptions.__annotations__, "transport", "timeout", "base_url"],
    lbclient.AsyncClient: [*TransportOptions.__annotations__, "transport", "timeout", "base_url"],
}


def parameters(entry):
    """The names of its parameters, required ones first; and whether it accepts any number."""
    if entry in HTTP:
        return ["service"], [*HTTP[entry], "proxy", "unknown"], False
    known = list(inspect.signature(entry).parameters.values())
    wanted = [
        one.name for one in known if one.default is one.empty and one.kind != one.VAR_POSITIONAL
    ]
    many = any(one.kind == one.VAR_POSITIONAL for one in known)
    wanted += ["server"] if entry is lbclient.Registration else []  # or `via`, which fits rarely
    rest = [one.name for one in known if one.name not in wanted and one.kind != one.VAR_POSITIONAL]
    return wanted, rest, many


def value(dice, name):
    """A value to try for a parameter: some fit, some nearly, some not at all."""
    fitting = FITTING.get(name)
    chosen = dice.choice(fitting if fitting and dice.random() < 0.6 else VALUES)
    if isinstance(chosen, str) and dice.random() < 0.1:
        place = dice.randrange(len(chosen) + 1)
        chosen = chosen[:place] + dice.choice("\r\n\0 @:/?#[]%.\u2028") + chosen[place:]
    if name == "service" and dice.random() < 0.2:
        return [chosen, dice.choice(SERVICES)]
    return chosen


def built(dice, entry):
    """What an entry point does with a few random arguments."""
    wanted, rest, many = parameters(entry)
    few = dice.sample(rest, min(len(rest), dice.choice([0, 1, 1, 2, 3])))
    arguments = {name: value(dice, name) for name in (*wanted, *few)}
    return entry(*[value(dice, "service") for _ in range(2 * many)], **arguments)


def told_by(dice, entry):
    """Whether it accepts what it is given, and all texts that it then shows."""
    try:
        made = built(dice, entry)
    except (ValueError, TypeError) as error:
        return "refused", f"{error}{error!r}"
    engine = getattr(made, "balancer", made)
    if isinstance(engine, lbclient.Balancer):
        engine.close()
    return "taken", f"{made}{made!r}"


@shares
@pytest.mark.filterwarnings("ignore:`:DeprecationWarning")  # httpx's, of `cert` and `verify`
def test_configuration(share):
    """K1 to K8, S5: whatever is passed to any entry point, it is accepted, or refused by a
    ValueError or TypeError that shows no password and no query."""
    seen = Counter()
    entries = [*PLAIN, lbclient.Balancer, *HTTP]
    for seed in range(int(CONFIGURATIONS * share)):
        with telling(seed):
            dice = random.Random(seed)
            entry = dice.choice(entries)
            outcome, text = told_by(dice, entry)
            assert SECRET not in text
        seen[outcome, entry.__name__] += 1
    for entry in entries:
        assert seen["taken", entry.__name__] > 5 * share, seen
        if entry is not lbclient.Union:  # whose services are looked at by the client that gets it
            assert seen["refused", entry.__name__] > 20 * share, seen
