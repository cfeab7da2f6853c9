"""DNS servers for tests, on free ports of the loopback: one with scripted faults, and real ones."""

from __future__ import annotations

import contextlib
import selectors
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

__all__ = [
    "Asked",
    "Bind",
    "Dnsmasq",
    "Fault",
    "Liar",
    "closed",
    "empty",
    "formerr",
    "garbage",
    "nxdomain",
    "refused",
    "servfail",
    "silence",
    "truncated",
    "write_zone",
    "wrong_id",
    "wrong_question",
]

_HOST = "127.0.0.1"
_UDP_SIZE = 512


@dataclass
class Asked:
    """One question: its message, the correct answer as bytes, and whether it came over TCP."""

    query: dns.message.Message
    truth: bytes
    over_tcp: bool

    def response(self) -> dns.message.Message:
        """An empty response to this question."""
        return dns.message.make_response(self.query)


Fault = Callable[[Asked], bytes | None]
"""What is sent instead of the truth. None is nothing; over TCP no bytes close the connection."""


def _with_rcode(rcode: dns.rcode.Rcode) -> Fault:
    def fault(asked: Asked) -> bytes:
        response = asked.response()
        response.set_rcode(rcode)
        return response.to_wire()

    fault.__name__ = dns.rcode.to_text(rcode).lower()
    return fault


nxdomain = _with_rcode(dns.rcode.NXDOMAIN)
servfail = _with_rcode(dns.rcode.SERVFAIL)
refused = _with_rcode(dns.rcode.REFUSED)
formerr = _with_rcode(dns.rcode.FORMERR)


def empty(asked: Asked) -> bytes:
    """NOERROR without a record."""
    return asked.response().to_wire()


def silence(_: Asked) -> None:
    """No answer; a TCP connection stays open."""


def closed(_: Asked) -> bytes:
    """A datagram without content; over TCP the connection is closed without an answer."""
    return b""


def garbage(asked: Asked) -> bytes:
    """The right id, then invalid bytes."""
    return asked.truth[:2] + b"\xff" * 40


def wrong_id(asked: Asked) -> bytes:
    """The correct answer to another question, with the other's id."""
    return bytes([asked.truth[0] ^ 0xFF]) + asked.truth[1:]


def wrong_question(asked: Asked) -> bytes:
    """The right id, but the answer to another question."""
    other = dns.message.make_query("elsewhere.test.", "SRV", id=asked.query.id)
    response = dns.message.make_response(other)
    record = dns.rrset.from_text("elsewhere.test.", 60, "IN", "SRV", "0 0 66 evil.test.")
    response.answer.append(record)
    return response.to_wire()


def truncated(asked: Asked) -> bytes:
    """TC over UDP, and a connection that is closed at once over TCP."""
    if asked.over_tcp:
        return b""
    response = asked.response()
    response.flags |= dns.flags.TC
    return response.to_wire()


_Key = tuple[dns.name.Name | None, str | None]


class Liar:
    """A DNS server that answers from a zone, or as its faults say, over UDP and TCP.

    with Liar() as liar:
        liar.put("_http._tcp.a.test", "SRV", "0 1 80 b.test.", ttl=5)
        liar.fault(servfail, "b.test", "A")

    `glue` adds the addresses of SRV targets that the zone holds. Everything may change while it
    runs.
    """

    def __init__(self, *, glue: bool = False) -> None:
        self.glue = glue
        self._zone: dict[tuple[dns.name.Name, str], dns.rrset.RRset] = {}
        self._faults: dict[_Key, Fault] = {}
        self._asked: Counter[_Key] = Counter()
        self._over_tcp = 0
        self._held: list[Callable[[], None]] = []
        self._holding: _Key | None = None
        self._changed = threading.Condition()
        self._udp, self._tcp = _pair_of_sockets()
        self._port = self._udp.getsockname()[1]
        self._open: list[socket.socket] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="liar", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.send(b"x")
        self._thread.join(5)
        for one in (self._udp, self._tcp, self._wake, self._woken, *self._open):
            one.close()

    @property
    def address(self) -> str:
        """For `nameservers=`."""
        return f"{_HOST}:{self._port}"

    def put(self, name: str, kind: str, *records: str, ttl: int = 60) -> None:
        """Answer with these records from now on; without records, that there are none."""
        owner = _name(name)
        rrset = dns.rrset.from_text(owner, 0, "IN", kind, *records)
        rrset.ttl = ttl
        with self._changed:
            self._zone[owner, kind] = rrset

    def drop(self, name: str, kind: str) -> None:
        """Remove the records."""
        with self._changed:
            del self._zone[_name(name), kind]

    def fault(self, fault: Fault, name: str | None = None, kind: str | None = None) -> None:
        """Answer questions for `name` and `kind` (None for all) with this fault."""
        with self._changed:
            self._faults[_key(name, kind)] = fault

    def heal(self) -> None:
        """Answer correctly again."""
        with self._changed:
            self._faults.clear()

    @contextlib.contextmanager
    def holding(self, name: str | None = None, kind: str | None = None) -> Iterator[None]:
        """Answers for `name` and `kind` (None for all) wait until the block ends."""
        with self._changed:
            self._holding = _key(name, kind)
        try:
            yield
        finally:
            with self._changed:
                self._holding = None
                held, self._held = self._held, []
            for send in held:
                send()

    def asked(self, name: str | None = None, kind: str | None = None) -> int:
        """How many questions came for `name` and `kind` (None for all)."""
        with self._changed:
            return self._count(_key(name, kind))

    @property
    def over_tcp(self) -> int:
        """How many questions came over TCP."""
        with self._changed:
            return self._over_tcp

    def wait(
        self, count: int, name: str | None = None, kind: str | None = None, *, timeout: float = 5
    ) -> None:
        """Wait until this many questions have come since the start; TimeoutError after
        `timeout`."""
        key = _key(name, kind)
        with self._changed:
            if not self._changed.wait_for(lambda: self._count(key) >= count, timeout):
                raise TimeoutError(f"{self._count(key)} of {count} questions for {name} {kind}")

    def _count(self, key: _Key) -> int:
        return sum(number for asked, number in self._asked.items() if _matches(asked, key))

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._udp, selectors.EVENT_READ, self._on_udp)
            selector.register(self._tcp, selectors.EVENT_READ, self._on_tcp)
            selector.register(self._woken, selectors.EVENT_READ, None)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    key.data()

    def _on_udp(self) -> None:
        wire, peer = self._udp.recvfrom(65535)
        asked, answer = self._answer(wire, over_tcp=False)

        def send() -> None:
            if answer is not None:
                self._udp.sendto(answer, peer)

        self._now_or_later(asked, send)

    def _on_tcp(self) -> None:
        connection, _ = self._tcp.accept()
        self._open.append(connection)
        connection.settimeout(5)
        stream = connection.makefile("rb")
        with stream:
            size = struct.unpack("!H", stream.read(2))[0]
            asked, answer = self._answer(stream.read(size), over_tcp=True)

        def send() -> None:
            if answer is None:
                return
            with contextlib.suppress(OSError):
                connection.sendall(struct.pack("!H", len(answer)) + answer if answer else b"")
                connection.shutdown(socket.SHUT_RDWR)

        self._now_or_later(asked, send)

    def _now_or_later(self, asked: _Key, send: Callable[[], None]) -> None:
        with self._changed:
            if self._holding is not None and _matches(asked, self._holding):
                self._held.append(send)
                return
        send()

    def _answer(self, wire: bytes, *, over_tcp: bool) -> tuple[_Key, bytes | None]:
        query = dns.message.from_wire(wire)
        (question,) = query.question
        asked = question.name, dns.rdatatype.to_text(question.rdtype)
        with self._changed:
            self._asked[asked] += 1
            self._over_tcp += over_tcp
            self._changed.notify_all()
            fault = self._fault_for(*asked)
            truth = self._truth(query, *asked)
        size = 65535 if over_tcp else _UDP_SIZE
        plain = truth.to_wire(max_size=size, prefer_truncation=True)
        return asked, fault(Asked(query, plain, over_tcp)) if fault else plain

    def _fault_for(self, name: dns.name.Name, kind: str) -> Fault | None:
        keys: tuple[_Key, ...] = ((name, kind), (name, None), (None, kind), (None, None))
        return next((self._faults[key] for key in keys if key in self._faults), None)

    def _truth(self, query: dns.message.Message, name: dns.name.Name, kind: str):
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        while (alias := self._zone.get((name, "CNAME"))) is not None and kind != "CNAME":
            if alias in response.answer:
                return response
            response.answer.append(alias)
            name = alias[0].target
        found = self._zone.get((name, kind))
        if found:
            response.answer.append(found)
        elif not any(owner == name for owner, _ in self._zone):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.glue and found and kind == "SRV":
            response.additional.extend(self._glue_of(found))
        return response

    def _glue_of(self, found: dns.rrset.RRset) -> Iterator[dns.rrset.RRset]:
        for target in dict.fromkeys(record.target for record in found):
            for kind in ("A", "AAAA"):
                if rrset := self._zone.get((target, kind)):
                    yield rrset


class _Server:
    """A real DNS server as a child process; started on entering, stopped by its own pid."""

    command: str
    probe: str
    """A name that it knows from the start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._binary = shutil.which(self.command) or shutil.which(f"/usr/sbin/{self.command}")
        if self._binary is None:
            pytest.skip(f"{self.command} is not installed")

    def __enter__(self) -> Self:
        for _ in range(3):
            self._port = _free_port()
            if self._begin():
                return self
        raise AssertionError(f"{self.command} did not start: {self._log.read_text()}")

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def address(self) -> str:
        """For `nameservers=`."""
        return f"{_HOST}:{self._port}"

    @property
    def _log(self) -> Path:
        return self._directory / f"{self.command}.log"

    def _arguments(self) -> list[str]:
        raise NotImplementedError

    def _begin(self) -> bool:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._binary, *self._arguments()], stdout=log, stderr=log, cwd=self._directory
            )
        if self._answers():
            return True
        self._stop()
        return False

    def _answers(self) -> bool:
        query = dns.message.make_query(self.probe, "SRV")
        until = time.monotonic() + 5
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(dns.exception.DNSException, OSError):
                response = dns.query.udp(query, _HOST, timeout=0.1, port=self._port)
                if response.answer:
                    return True
        return False

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


def write_zone(directory: Path, zone: str, records: str) -> None:
    """The file `zone`, with the records that every zone has."""
    (directory / "zone").write_text(
        f"$ORIGIN {zone}\n$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 60\n"
        f"@ NS ns\nns A {_HOST}\n{records}\n"
    )


class Bind(_Server):
    """BIND 9 with one zone that it lets `update` change (RFC 2136).

    With `key`, `"name:secret"` of an HMAC-SHA256, only who signs with it may (TSIG, RFC 8945).
    """

    command = "named"

    def __init__(
        self, directory: Path, zone: str, probe: str, records: str, key: str | None = None
    ) -> None:
        super().__init__(directory)
        self.key = key
        self.zone = zone
        self.probe = probe
        write_zone(directory, zone, records)

    def update(self, *commands: str) -> None:
        """Change the zone: `update add name ttl SRV ...`, `update delete name SRV`."""
        nsupdate = shutil.which("nsupdate")
        if nsupdate is None:
            pytest.skip("nsupdate is not installed")
        script = [f"server {_HOST} {self._port}", f"local {_HOST}", f"zone {self.zone}"]
        subprocess.run(
            [nsupdate, *(["-y", f"hmac-sha256:{self.key}"] if self.key else [])],
            input="\n".join([*script, *commands, "send", ""]),
            text=True,
            check=True,
            timeout=10,
            cwd=self._directory,
        )

    def _arguments(self) -> list[str]:
        clause, who = "", _HOST
        if self.key is not None:
            name, _, secret = self.key.partition(":")
            clause = f'key "{name}" {{ algorithm hmac-sha256; secret "{secret}"; }};\n'
            who = f'key "{name}"'
        config = self._directory / "named.conf"
        config.write_text(
            f'options {{ directory "{self._directory}"; pid-file none; recursion no; notify no;\n'
            f"  listen-on port {self._port} {{ {_HOST}; }}; listen-on-v6 {{ none; }};\n"
            "  dnssec-validation no; minimal-responses no; };\n"
            f"controls {{ }};\n{clause}"
            f'zone "{self.zone}" {{ type primary; file "zone"; allow-update {{ {who}; }}; }};\n'
        )
        return ["-g", "-n", "1", "-c", str(config)]


class Dnsmasq(_Server):
    """dnsmasq with the records of `options` (`--srv-host=...`, `--host-record=...`)."""

    command = "dnsmasq"

    def __init__(self, directory: Path, probe: str, *options: str) -> None:
        super().__init__(directory)
        self.probe = probe
        self._options = options

    def _arguments(self) -> list[str]:
        (self._directory / "dnsmasq.conf").touch()
        return [
            "--no-daemon",
            "--no-hosts",
            "--no-resolv",
            f"--conf-file={self._directory}/dnsmasq.conf",
            f"--port={self._port}",
            f"--listen-address={_HOST}",
            "--bind-interfaces",
            "--pid-file=",
            *self._options,
        ]


def _pair_of_sockets() -> tuple[socket.socket, socket.socket]:
    """A free port for both UDP and TCP."""
    while True:
        tcp = socket.create_server((_HOST, 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
        else:
            return udp, tcp


def _free_port() -> int:
    udp, tcp = _pair_of_sockets()
    with udp, tcp:
        return udp.getsockname()[1]


def _name(text: str) -> dns.name.Name:
    return dns.name.from_text(text)


def _matches(asked: _Key, key: _Key) -> bool:
    return key[0] in (None, asked[0]) and key[1] in (None, asked[1])


def _key(name: str | None, kind: str | None) -> _Key:
    return None if name is None else _name(name), kind
