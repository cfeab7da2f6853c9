"""A scripted HTTP server on loopback: each instance does, for each request, what a test says."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import lbclient


@dataclass
class Request:
    """What an instance received."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[["Connection", Request], None]


class Connection:
    """One accepted connection, as behaviours use it."""

    def __init__(self, sock: socket.socket, server: Server) -> None:
        self.sock = sock
        self.server = server
        self.file = sock.makefile("rb")

    def read_request(self) -> Request | None:
        line = self.file.readline()
        if not line:
            return None
        method, target, _ = line.decode("ascii").split(" ", 2)
        headers = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Request(method, target, headers, self._read_body(headers))

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.file.readline(), 16):
                body += self.file.read(size)
                self.file.readline()
            self.file.readline()
            return body
        return self.file.read(int(headers.get("content-length", 0)))

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        fields = {"Content-Length": str(len(body))}
        fields.update({name.replace("_", "-"): value for name, value in headers.items()})
        self.send(head(status, fields) + body)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close with a RST, as a crashed process's machine does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.sock.close()

    def close(self) -> None:
        self.file.close()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def head(status: int, fields: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@dataclass
class Server:
    """One instance. `behaviour` may be changed while it runs; `requests` keeps what came."""

    behaviour: Behaviour
    requests: list[Request] = field(default_factory=list)
    accepted: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""

    def __post_init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        """Released once a request: a test waits for its arrival, not for time to pass."""
        self.stopping = threading.Event()
        self._listener = socket.create_server((self.host, self.port), backlog=512)
        self.port = self._listener.getsockname()[1]
        self._open: set[Connection] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def hits(self) -> int:
        return len(self.requests)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno == errno.EMFILE:  # a test has taken them all: that passes
                    self.stopping.wait(0.01)
                    continue
                return
            self.accepted += 1
            connection = Connection(sock, self)
            thread = threading.Thread(target=self._serve, args=(connection,))
            with self._lock:
                self._open.add(connection)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            self._answer(connection)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _answer(self, connection: Connection) -> None:
        with contextlib.suppress(OSError, ValueError):
            if getattr(self.behaviour, "on_accept", False):  # before any request, a TLS hello say
                self.behaviour(connection, Request("", "", {}, b""))
            while (request := connection.read_request()) is not None:
                self.requests.append(request)
                self.arrived.release()
                self.behaviour(connection, request)

    def drop_connections(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Stop listening: the port refuses from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()

    def stop(self) -> None:
        self.stopping.set()
        self.refuse()
        self.drop_connections()
        for thread in self._threads:
            thread.join()


# Behaviours


def tells_port(connection: Connection, _: Request) -> None:
    """200, with the instance's port as the body."""
    connection.answer(200, str(connection.server.port).encode())


def says(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    """Always this response."""
    return lambda connection, _: connection.answer(status, body, **headers)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Each behaviour once, the last one repeatedly."""
    left = list(behaviours)
    lock = threading.Lock()

    def behave(connection: Connection, request: Request) -> None:
        with lock:
            now = left.pop(0) if len(left) > 1 else left[0]
        now(connection, request)

    return behave


def resets(connection: Connection, _: Request) -> None:
    """Reads the request, then resets: it may have been carried out."""
    connection.reset()


def hangs_up(connection: Connection, _: Request) -> None:
    """Reads the request, then closes without an answer."""
    connection.close()


def dies_in_body(connection: Connection, _: Request) -> None:
    """Good headers, half a body, then the end."""
    connection.send(head(200, {"Content-Length": "100"}) + b"x" * 50)
    connection.reset()


def drips(interval: float = 0.1) -> Behaviour:
    """Good headers, then a byte of body each interval (seconds), for as long as anyone reads."""

    def behave(connection: Connection, _: Request) -> None:
        connection.send(head(200, {"Content-Length": "100000"}))
        while not connection.server.stopping.wait(interval):
            connection.send(b"x")

    return behave


def drips_headers(interval: float = 0.1) -> Behaviour:
    """A byte of headers each interval (seconds)."""

    def behave(connection: Connection, _: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not connection.server.stopping.wait(interval):
            connection.send(b"x")

    return behave


class Gate:
    """Holds each request until `open` is set; `entered` is released at each that has arrived."""

    def __init__(self, then: Behaviour = tells_port) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self._then = then

    def __call__(self, connection: Connection, request: Request) -> None:
        self.entered.release()
        while not self.open.wait(0.02):
            if connection.server.stopping.is_set():
                return
        self._then(connection, request)


def slow(seconds: float, then: Behaviour = tells_port) -> Behaviour:
    """The instance itself takes this long."""

    def behave(connection: Connection, request: Request) -> None:
        connection.server.stopping.wait(seconds)
        then(connection, request)

    return behave


@contextlib.contextmanager
def serve(*behaviours: Behaviour) -> Iterator[list[Server]]:
    """One instance a behaviour."""
    servers = [Server(behaviour) for behaviour in behaviours]
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()


@contextlib.contextmanager
def refused_port() -> Iterator[int]:
    """A port that refuses connections, held so that nothing else can listen on it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port for a program that listens with SO_REUSEADDR, as those in Go do. Nothing else is given
    it meanwhile, also while the program does not run."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def transports_of(client) -> list:
    """The transports of a client to its instances, in whichever event loop."""
    transport = client._transport
    if isinstance(transport, lbclient.Transport):
        per_loop = [transport._transports]
    else:
        per_loop = transport._transports._per_loop.values()
    return [transport for home in per_loop for _, transport, _ in home._transports.values()]
