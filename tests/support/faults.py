"""Every way in which an instance can fail, by name.

    with FAULTS["reset-after-accept"].instance() as bad:  # healthy so far
        ...
        bad.strike()
        ...
        bad.heal()

What a server can play is a behaviour. The rest is done to a real process (a signal), to its port,
or to its sockets: a socket filter (BPF) of Linux drops what arrives, as a firewall would, and needs
no privilege. `LOCAL` has the faults of the caller's own machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime as dt
import functools
import itertools
import os
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import httpx
import pytest
import trustme

from tests.support.http import (
    Behaviour,
    Connection,
    Request,
    Server,
    dies_in_body,
    drips,
    drips_headers,
    hangs_up,
    head,
    resets,
    says,
    slow,
    tells_port,
)

NAMESPACE = "needs a network namespace"
"""Why a test is skipped whose machine does not let it make one."""
NAME = "orders.test"
"""The service's name for TLS."""
SLOW = 0.1
"""Seconds that a slow instance takes."""
DRIP = 0.02
"""Seconds between two bytes of a drip."""
LONGEST = 10.0
"""Whatever has no end by itself ends after so many seconds."""
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Victim(ABC):
    """An instance that is healthy until it is struck."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def strike(self) -> None:
        """Begin the fault."""

    @abstractmethod
    def heal(self) -> None:
        """End the fault."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the instance."""


# Faults that are behaviours


class Acting(Victim):
    """It behaves badly. Connections are dropped if the fault comes before any request."""

    def __init__(self, server: Server, bad: Behaviour) -> None:
        self.server = server
        self.port = server.port
        self._good, self._bad = server.behaviour, bad

    @property
    def url(self) -> str:
        return self.server.url

    def strike(self) -> None:
        self._behave(self._bad)

    def heal(self) -> None:
        self._behave(self._good)

    def stop(self) -> None:
        self.server.stop()

    def _behave(self, behaviour: Behaviour) -> None:
        self.server.behaviour = behaviour
        if getattr(behaviour, "on_accept", False) and not hasattr(behaviour, "answer"):
            self.server.drop_connections()


def on_accept(behaviour: Behaviour) -> Behaviour:
    """It does not wait for a request."""
    behaviour.on_accept = True
    return behaviour


@on_accept
def resets_at_once(connection: Connection, _: Request) -> None:
    connection.reset()


def says_nothing(connection: Connection, _: Request) -> None:
    connection.server.stopping.wait(LONGEST)
    connection.close()


@on_accept
def shakes_no_hand(connection: Connection, request: Request) -> None:
    says_nothing(connection, request)


@on_accept
def alerts(connection: Connection, _: Request) -> None:
    """The answer of a TLS port to a plain request: the alert `record_overflow`."""
    connection.sock.recv(1000)
    connection.send(b"\x15\x03\x03\x00\x02\x02\x16")
    connection.close()


@on_accept
def answers_a_hello(connection: Connection, _: Request) -> None:
    """The answer of a plain port to a TLS handshake."""
    connection.sock.recv(1000)
    connection.answer(400)
    connection.close()


def sends(data: bytes) -> Behaviour:
    """These bytes, then the end of the connection."""

    def behave(connection: Connection, _: Request) -> None:
        connection.send(data)
        connection.close()

    return behave


def trickles(before: bytes, drop: bytes = b"x") -> Behaviour:
    """These bytes, then one byte at a time for as long as anyone reads."""

    def behave(connection: Connection, _: Request) -> None:
        connection.send(before)
        until = time.monotonic() + LONGEST
        while time.monotonic() < until and not connection.server.stopping.wait(DRIP):
            connection.send(drop)
        connection.close()

    return behave


def floods(before: bytes, drop: bytes) -> Behaviour:
    """The same as fast as it is read: no read ever waits."""

    def behave(connection: Connection, _: Request) -> None:
        connection.send(before)
        until = time.monotonic() + LONGEST
        while time.monotonic() < until and not connection.server.stopping.is_set():
            connection.send(drop * 500)
        connection.close()

    return behave


def stalls(before: bytes) -> Behaviour:
    """These bytes, and no more."""

    def behave(connection: Connection, request: Request) -> None:
        connection.send(before)
        says_nothing(connection, request)

    return behave


def answers_twice(connection: Connection, _: Request) -> None:
    """Two responses to each request: the second would be the next request's."""
    second = head(200, {"Content-Length": "6"}) + b"forged"
    body = str(connection.server.port).encode()
    connection.send(head(200, {"Content-Length": str(len(body))}) + body + second)


def times_out_reuse(connection: Connection, _: Request) -> None:
    """408 to a request on a connection that has served one, like a server that was about to close
    it."""
    connection.answer(408, Connection="close")
    connection.close()


def flaps(good: Behaviour, turns: int = 5) -> Behaviour:
    """This many 503s, then this many good answers, repeated."""
    number = itertools.count()

    def behave(connection: Connection, request: Request) -> None:
        bad = next(number) // turns % 2 == 0
        (says(503) if bad else good)(connection, request)

    return behave


class Idle(Acting):
    """Does something to its idle connections, once."""

    def __init__(self, server: Server, happens: Callable[[Connection], None]) -> None:
        super().__init__(server, server.behaviour)
        self._happens = happens

    def strike(self) -> None:
        with self.server._lock:
            connections = list(self.server._open)
        for connection in connections:
            self._happens(connection)
        self.server.drop_connections()


# TLS and HTTP/2


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def trust() -> ssl.SSLContext:
    """A client's context that knows our authority alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context


def certified(name: str, **options: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name, **options).configure_cert(context)
    return context


def expired() -> ssl.SSLContext:
    return certified(NAME, not_after=dt.datetime.now(dt.UTC) - dt.timedelta(days=1))


class TlsServer(Server):
    """An instance that speaks TLS, by `context`; None is plain text."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.context: ssl.SSLContext | None = certified(NAME)
        super().__init__(behaviour)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _serve(self, connection: Connection) -> None:
        if self.context is not None:
            connection.file.close()
            with contextlib.suppress(OSError):
                connection.sock = self.context.wrap_socket(connection.sock, server_side=True)
            connection.file = connection.sock.makefile("rb")
        super()._serve(connection)


class Certified(Acting):
    """Change its certificate; without one (None) it speaks plain text."""

    def __init__(self, make: Callable[[], ssl.SSLContext | None], bad: Behaviour) -> None:
        server = TlsServer(tells_port)
        super().__init__(server, bad)
        self._contexts = make(), server.context

    def strike(self) -> None:
        self.server.context = self._contexts[0]
        super().strike()
        self.server.drop_connections()

    def heal(self) -> None:
        self.server.context = self._contexts[1]
        super().heal()
        self.server.drop_connections()


DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
REFUSED_STREAM = 7
STATUS_200 = b"\x88"


def frame(kind: int, stream: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def answered(connection: Connection, stream: int) -> bytes:
    body = str(connection.server.port).encode()
    return frame(HEADERS, stream, STATUS_200, END_HEADERS) + frame(DATA, stream, body, END_STREAM)


def goes_away(_: Connection, stream: int) -> bytes:
    """GOAWAY: this stream was not begun."""
    return frame(GOAWAY, payload=struct.pack(">II", max(0, stream - 2), 0))


def refuses_stream(_: Connection, stream: int) -> bytes:
    return frame(RST_STREAM, stream, struct.pack(">I", REFUSED_STREAM))


def speaks_h2(answer: Callable[[Connection, int], bytes]) -> Behaviour:
    """HTTP/2 by prior knowledge; `answer` is what a whole request gets, on whichever connection."""

    @on_accept
    def behave(connection: Connection, _: Request) -> None:
        connection.file.read(24)  # the preface
        connection.send(frame(SETTINGS))
        while len(got := connection.file.read(9)) == 9:
            kind, flags, stream = struct.unpack(">BBI", got[3:])
            connection.file.read(int.from_bytes(got[:3], "big"))
            if kind in {DATA, HEADERS} and flags & END_STREAM:
                connection.server.requests.append(Request("", "", {}, b""))
                connection.send(connection.server.behaviour.answer(connection, stream))
            elif kind == SETTINGS and not flags & ACK:
                connection.send(frame(SETTINGS, flags=ACK))

    behave.answer = answer
    return behave


class Speech(NamedTuple):
    """A protocol: a healthy instance that speaks it, and what a client must be told."""

    start: Callable[[], Server]
    options: Callable[[], dict[str, object]]


PLAIN = Speech(lambda: Server(tells_port), dict)
TLS = Speech(lambda: TlsServer(tells_port), lambda: {"name": NAME, "verify": trust()})
H2 = Speech(lambda: Server(speaks_h2(answered)), lambda: {"http1": False, "http2": True})


# Faults that are done to the port and to sockets


class Reopening(Server):
    """Its port can be closed for a time; nothing else gets it meanwhile."""

    def close_port(self) -> None:
        self.refuse()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))

    def open_port(self) -> None:
        self._listener.listen(512)
        self._threads[0] = threading.Thread(target=self._accept)
        self._threads[0].start()


class Refusing(Victim):
    """Stop listening, and close the connections."""

    def __init__(self) -> None:
        self.server = Reopening(tells_port)
        self.port = self.server.port

    def strike(self) -> None:
        self.server.behaviour = hangs_up  # for who was accepted this very moment
        self.server.close_port()
        self.server.drop_connections()

    def heal(self) -> None:
        self.server.behaviour = tells_port
        self.server.open_port()

    def stop(self) -> None:
        self.server.stop()


ATTACH_FILTER, DETACH_FILTER = 26, 27
RANDOM = 0xFFFFF000 + 56
"""Where a filter reads a random word (linux/filter.h: SKF_AD_OFF + SKF_AD_RANDOM)."""
Program = list[tuple[int, int, int, int]]
DROP_ALL: Program = [(0x06, 0, 0, 0)]


def drop_some(share: float) -> Program:
    """Lose each packet with this probability."""
    load_random, if_less, keep = (0x20, 0, 0, RANDOM), int(share * 2**32), 0xFFFFFFFF
    return [load_random, (0x35, 0, 1, if_less), (0x06, 0, 0, keep), (0x06, 0, 0, 0)]


def attach(sock: socket.socket, program: Program) -> None:
    code = b"".join(struct.pack("=HBBI", *one) for one in program)
    kept = ctypes.create_string_buffer(code, len(code))
    where = struct.pack("@HP", len(program), ctypes.addressof(kept))
    sock.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, where)


def detach(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has none
        sock.setsockopt(socket.SOL_SOCKET, DETACH_FILTER, 0)


class Filtered(Victim):
    """What arrives is dropped: at its listening socket, on the connections that are open, or both.

    Connections that are open then stay lost when it heals: what stood between has forgotten them.
    """

    def __init__(self, program: Program, *, port: bool, paths: bool) -> None:
        if sys.platform != "linux":
            pytest.skip("packets are dropped by socket filters, which only Linux has")
        self.server = Server(tells_port)
        self.port = self.server.port
        self._program, self._port, self._paths = program, port, paths

    def strike(self) -> None:
        if self._port:
            attach(self.server._listener, self._program)
        if not self._paths:
            self.server.behaviour = hangs_up  # for who waits to be accepted this very moment
            self.server.drop_connections()
            return
        with self.server._lock:
            for connection in self.server._open:
                attach(connection.sock, self._program)

    def heal(self) -> None:
        self.server.behaviour = tells_port
        detach(self.server._listener)

    def stop(self) -> None:
        self.server.stop()


# Faults that are done to a process

CHILD = """
import socketserver, sys, threading

class Handler(socketserver.StreamRequestHandler):
    wbufsize = -1

    def handle(self):
        while self.rfile.readline():
            length = 0
            while (line := self.rfile.readline()) not in (b"\\r\\n", b""):
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            self.rfile.read(length)
            body = sys.argv[1].encode()
            self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n" % len(body))
            self.wfile.write(b"\\r\\n" + body)
            self.wfile.flush()

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass

server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("listening", flush=True)
sys.stdin.read()
"""


class Process(Victim):
    """An instance in a process of its own, which gets a signal. It ends when its parent does."""

    def __init__(self, number: signal.Signals) -> None:
        self._signal = number
        self._port = socket.socket()  # not listening: it keeps the port for the next process
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.port = self._port.getsockname()[1]
        self._start()

    def strike(self) -> None:
        self._process.send_signal(self._signal)
        if self._signal == signal.SIGKILL:
            self._end()
        else:
            os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped

    def heal(self) -> None:
        if self._signal == signal.SIGKILL:
            self._start()
        else:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._end()
        self._port.close()

    def _start(self) -> None:
        command = [sys.executable, "-E", "-S", "-c", CHILD, str(self.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process.stdout.readline()

    def _end(self) -> None:
        with self._process:  # closes its pipes, and waits
            pass


# All of them

Again = Literal["always", "idempotent", "never"]


@dataclass(frozen=True)
class Fault:
    """One fault, and what `behaviour.md` says of it.

    `alone` is what an attempt comes to, an exception or a status; None where that depends on luck.
    `again`: which calls are tried again elsewhere; `charged`: whether it is the instance's fault.
    """

    ids: str
    make: Callable[[], Victim]
    alone: type[Exception] | int | None
    again: Again = "idempotent"
    charged: bool = True
    speech: Speech = PLAIN
    bad: Behaviour | None = None
    """The behaviour of a server that has the fault, if it is one."""

    def over_tls(self) -> Fault:
        """The same behaviour for an instance that speaks TLS."""
        return replace(self, make=lambda: Acting(TLS.start(), self.bad), speech=TLS)

    @contextlib.contextmanager
    def instance(self) -> Iterator[Victim]:
        """An instance that will have the fault; healthy until it is struck."""
        victim = self.make()
        try:
            yield victim
        finally:
            victim.stop()

    @contextlib.contextmanager
    def healthy(self) -> Iterator[Server]:
        """A healthy instance that speaks the same protocol."""
        server = self.speech.start()
        try:
            yield server
        finally:
            server.stop()

    @property
    def hangs(self) -> bool:
        """True if an attempt ends only by a timeout."""
        return isinstance(self.alone, type) and issubclass(self.alone, httpx.TimeoutException)


def _acts(ids: str, bad: Behaviour, alone: type[Exception] | int | None, **what: object) -> Fault:
    speech: Speech = what.get("speech", PLAIN)
    return Fault(ids, lambda: Acting(speech.start(), bad), alone, bad=bad, **what)


def _answers(ids: str, status: int, *, again: Again, charged: bool, **headers: str) -> Fault:
    return _acts(ids, says(status, **headers), status, again=again, charged=charged)


def _garbles(data: bytes) -> Fault:
    return _acts("I9", sends(data), httpx.RemoteProtocolError)


def _certified(make: Callable[[], ssl.SSLContext | None], bad: Behaviour) -> Fault:
    made = lambda: Certified(make, bad)  # noqa: E731  # a closure, as the others are
    return Fault("I20", made, httpx.ConnectError, again="always", speech=TLS)


def _fine(ids: str, make: Callable[[], Victim]) -> Fault:
    """It has no effect on a call: the instance itself gives a good answer."""
    return Fault(ids, make, 200, again="never", charged=False)


def _says_408(connection: Connection) -> None:
    connection.answer(408, Connection="close")


FAULTS: dict[str, Fault] = {
    # nothing was sent
    "refused-port": Fault("I1", Refusing, httpx.ConnectError, again="always"),
    "killed": Fault("I1", lambda: Process(signal.SIGKILL), httpx.ConnectError, again="always"),
    "blackholed-syn": Fault(
        "I2",
        lambda: Filtered(DROP_ALL, port=True, paths=False),
        httpx.ConnectTimeout,
        again="always",
    ),
    "expired-certificate": _certified(expired, tells_port),
    "wrong-certificate": _certified(lambda: certified("other.test"), tells_port),
    "plain-port": _certified(lambda: None, answers_a_hello),
    "stalled-handshake": Fault(
        "I20",
        lambda: Certified(lambda: None, shakes_no_hand),
        httpx.ConnectTimeout,
        again="always",
        speech=TLS,
    ),
    # it may have been carried out
    "reset-after-accept": _acts("I3", resets_at_once, None),
    "reset-after-request": _acts("I3", resets, httpx.ReadError),
    "closed-without-answer": _acts("I4", hangs_up, httpx.RemoteProtocolError),
    "tls-port": _acts("I21", alerts, httpx.RemoteProtocolError),
    "silence": _acts("I5", says_nothing, httpx.ReadTimeout),
    "drip-headers": _acts("I5", drips_headers(DRIP), httpx.ReadTimeout),
    "drip-body": _acts("I6", drips(DRIP), httpx.ReadTimeout),
    "drip-chunks": _acts("I6", trickles(CHUNKED, b"1\r\nx\r\n"), httpx.ReadTimeout),
    "drip-chunk-headers": _acts("I6", trickles(CHUNKED + b"1;x="), httpx.ReadTimeout),
    "drip-trailers": _acts(
        "I6", trickles(CHUNKED + b"2\r\nok\r\n0\r\nX-Slow: "), httpx.ReadTimeout
    ),
    "flood-body": _acts("I6", floods(CHUNKED, b"40\r\n" + b"x" * 64 + b"\r\n"), httpx.ReadTimeout),
    "stalled-body": _acts("I6", stalls(head(200, {"Content-Length": "9"})), httpx.ReadTimeout),
    "endless-1xx": _acts("I7", trickles(b"", b"HTTP/1.1 103 Early\r\n\r\n"), httpx.ReadTimeout),
    "flood-1xx": _acts("I7", floods(b"", b"HTTP/1.1 103 Early\r\n\r\n"), httpx.ReadTimeout),
    "death-mid-body": _acts("I8", dies_in_body, httpx.ReadError),
    "truncated-body": _acts(
        "I8", sends(head(200, {"Content-Length": "9"}) + b"x"), httpx.RemoteProtocolError
    ),
    "truncated-chunk": _acts("I8", sends(CHUNKED + b"9\r\nx"), httpx.RemoteProtocolError),
    "no-last-chunk": _acts("I8", sends(CHUNKED + b"1\r\nx\r\n"), httpx.RemoteProtocolError),
    "garbage": _garbles(b"\x00\xffno HTTP at all\r\n\r\n"),
    "bad-status-line": _garbles(b"HTTP/1.1 2x0 OK\r\n\r\n"),
    "oversize-header": _garbles(OK + b"X-Big: " + b"x" * 300_000 + b"\r\n\r\n"),
    "bad-header": _garbles(OK + b"no colon\r\n\r\n"),
    "bad-length": _garbles(head(200, {"Content-Length": "ten"})),
    "negative-length": _garbles(head(200, {"Content-Length": "-1"})),
    "conflicting-lengths": _garbles(head(200, {"Content-Length": "1", "content-length": "2"})),
    "bad-chunk": _garbles(CHUNKED + b"zz\r\nx\r\n"),
    "answer-unasked": _fine("I9, I28", lambda: Acting(Server(answers_twice), answers_twice)),
    "stopped": Fault("I26", lambda: Process(signal.SIGSTOP), httpx.ReadTimeout),
    "path-dropped": Fault(
        "I31", lambda: Filtered(DROP_ALL, port=False, paths=True), httpx.ReadTimeout
    ),
    # it answered
    "status-500": _answers("I10", 500, again="never", charged=True),
    "status-502": _answers("I10", 502, again="idempotent", charged=True),
    "status-503": _answers("I10, I14", 503, again="idempotent", charged=True),
    "status-504": _answers("I10", 504, again="idempotent", charged=True),
    "status-429": _answers("I13", 429, again="idempotent", charged=False),
    "status-999": _answers("I29", 999, again="never", charged=False),
    "retry-after": _answers("I11", 503, again="idempotent", charged=True, Retry_After="5"),
    "redirect-elsewhere": _answers(
        "I27", 302, again="never", charged=False, Location="http://elsewhere.test/"
    ),
    "408-on-reuse": _acts("I28", times_out_reuse, 408, again="always", charged=False),
    "408-when-idle": _fine("I28", lambda: Idle(PLAIN.start(), _says_408)),
    "closed-when-idle": _fine("I4", lambda: Idle(PLAIN.start(), lambda _: None)),
    "slow": _fine("I15", lambda: Acting(PLAIN.start(), slow(SLOW))),
    # an HTTP/2 peer that says it did not process the request
    "goaway": _acts(
        "I25",
        speaks_h2(goes_away),
        httpx.RemoteProtocolError,
        again="always",
        charged=False,
        speech=H2,
    ),
    "refused-stream": _acts(
        "I25",
        speaks_h2(refuses_stream),
        httpx.RemoteProtocolError,
        again="always",
        charged=False,
        speech=H2,
    ),
    # a matter of luck, or of the turn
    "flapping": _acts("I17", flaps(tells_port), None),
    "packet-loss": Fault(
        "I32", lambda: Filtered(drop_some(0.2), port=True, paths=True), None, charged=False
    ),
}


# The caller's own machine


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """I22: this process can open no more files or sockets (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


NEW_USER, NEW_NET = 0x10000000, 0x40000000
SET_ADDRESS, SET_FLAGS = 0x8916, 0x8914
PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def enter_own_network() -> None:
    """Give this process a loopback interface of its own. Raises OSError where it may not.

    Only a process with one thread can.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_NET):
        raise OSError(ctypes.get_errno(), "no network namespace")
    _interface(SET_FLAGS, struct.pack("16sh14x", b"lo", 1))


def _interface(request: int, data: bytes) -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, request, data)


def _loopback_address(address: str) -> None:
    packed = socket.inet_aton(address)
    _interface(SET_ADDRESS, struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, packed))


@contextlib.contextmanager
def no_route() -> Iterator[None]:
    """I23: there is no route (ENETUNREACH), in a separate network."""
    _loopback_address("0.0.0.0")
    try:
        yield
    finally:
        _loopback_address("127.0.0.1")


@contextlib.contextmanager
def no_local_port() -> Iterator[None]:
    """I23: every local port is in use (EADDRNOTAVAIL), in a separate network."""
    before = PORTS.read_text()
    PORTS.write_text("50000 50001")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 50000))
        two.bind(("127.0.0.1", 50001))
        try:
            yield
        finally:
            PORTS.write_text(before)


LOCAL: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "no-descriptors": no_descriptors,
    "no-local-port": no_local_port,
    "no-route": no_route,
}
