"""etcd itself for tests: one member or a cluster of three, over TLS, with users; and a service that
registers in it.

`python -m tests.support.etcd PREFIX ENDPOINTS TTL` is such a service: it serves HTTP on a port of
its own, registers, and writes the port once it is registered. When its input ends, it leaves, says
so, and answers for one more second.
"""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

import lbclient
from lbclient.discovery.pushed.source import PushedSource, _BlockingWatch
from tests.support import http
from tests.support.faults import on_accept
from tests.support.watchers import LIMIT

__all__ = ["NEEDED", "Cluster", "Etcd", "Service", "Tunnel", "Watching", "leases"]

NEEDED = pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")


def _base64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


class Etcd:
    """One member, started at once and killed by its own pid at the end of the block.

    `options` are options of the command: `auth_token_ttl=1`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "m0",
        ports: tuple[int, int] | None = None,
        cluster: str | None = None,
        tls: Any = None,
        **options: object,
    ) -> None:
        self._reserved = contextlib.ExitStack()
        client, peer = ports or [self._reserved.enter_context(http.reserved_port()) for _ in "cp"]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{client}"
        verify = ssl.create_default_context(cafile=tls.authority) if tls else False
        self._client = httpx.Client(base_url=self.url, verify=verify, timeout=10)
        self._log = directory / f"{name}.log"
        self._data = directory / name
        of_peer = f"http://127.0.0.1:{peer}"
        given: dict[str, object] = {
            "name": name,
            "data_dir": self._data,
            "listen_client_urls": self.url,
            "advertise_client_urls": self.url,
            "listen_peer_urls": of_peer,
            "initial_advertise_peer_urls": of_peer,
            "initial_cluster": cluster or f"{name}={of_peer}",
            "heartbeat_interval": 50,
            "election_timeout": 500,
            "logger": "zap",
            "log_level": "error",
            **({"cert_file": tls.chain, "key_file": tls.key} if tls else {}),
            **options,
        }
        self._command = ["etcd", "--unsafe-no-fsync"]
        for option, value in given.items():
            self._command += [f"--{option.replace('_', '-')}", str(value)]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._client.close()
        self._reserved.close()

    def start(self) -> None:
        """Start the process, with the data that it has."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def forget(self) -> None:
        """Delete the data of a member that does not run."""
        shutil.rmtree(self._data)

    def kill(self) -> None:
        """End the process at once, even if it is stopped."""
        with self.process:
            self.process.kill()

    def pause(self) -> None:
        """Stop the process: its connections stay, and nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue a process that was stopped."""
        self.process.send_signal(signal.SIGCONT)

    def wait_until_ready(self) -> None:
        """Wait until it has a leader."""
        until = time.monotonic() + 30
        while True:
            assert self.process.poll() is None, self._log.read_text()
            try:
                if self._client.get("/health").json()["health"] == "true":
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.02)

    def call(self, path: str, **document: object) -> dict[str, Any]:
        """Send a request to the gateway, as the administrator."""
        response = self._client.post(f"/v3/{path}", json=document)
        assert response.status_code == 200, response.text
        return json.loads(response.text.splitlines()[0])

    def put(self, key: str, value: object, **options: object) -> int:
        """Set a key, and return the revision. A value that is not text is written as JSON."""
        text = value if isinstance(value, str | bytes) else json.dumps(value)
        reply = self.call("kv/put", key=_base64(key), value=_base64(text), **options)
        return int(reply["header"]["revision"])

    def delete(self, key: str) -> int:
        """Delete a key, and return the revision."""
        return int(self.call("kv/deleterange", key=_base64(key))["header"]["revision"])

    def keys(self, prefix: str = "/") -> dict[str, str]:
        """The keys and values that begin with a prefix."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        found = self.call("kv/range", key=_base64(prefix), range_end=_base64(end)).get("kvs", [])
        return {
            base64.b64decode(one["key"]).decode(): base64.b64decode(one["value"]).decode()
            for one in found
        }

    def revision(self) -> int:
        """The revision of the store."""
        return int(self.call("kv/range", key=_base64("/"))["header"]["revision"])

    def fill(self, prefix: str, count: int) -> None:
        """Set many keys, in few transactions: /n/00000 has the value 10.0.x.y:8080."""
        for start in range(0, count, 100):
            puts = [
                {
                    "request_put": {
                        "key": _base64(f"{prefix}{number:05}"),
                        "value": _base64(f"10.0.{number // 250}.{number % 250 + 1}:8080"),
                    }
                }
                for number in range(start, min(start + 100, count))
            ]
            self.call("kv/txn", success=puts)

    def compact(self, revision: int) -> None:
        """Forget what was before a revision."""
        self.call("kv/compaction", revision=str(revision), physical=True)

    def with_users(self, prefix: str, permission: str = "READWRITE") -> None:
        """Enable authentication: root with the password "root-pw", and "shop" with "shop-pw", whose
        role has a permission for the keys with a prefix."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        for name in ("root", "shop"):
            self.call("auth/user/add", name=name, password=f"{name}-pw")
        self.call("auth/user/grant", user="root", role="root")
        self.call("auth/role/add", name="orders")
        grant = {"permType": permission, "key": _base64(prefix), "range_end": _base64(end)}
        self.call("auth/role/grant", name="orders", perm=grant)
        self.call("auth/user/grant", user="shop", role="orders")
        self.call("auth/enable")
        self.log_in()

    def log_in(self) -> None:
        """Get a token for the administrator."""
        self._client.headers.pop("authorization", None)
        token = self.call("auth/authenticate", name="root", password="root-pw")["token"]
        self._client.headers["authorization"] = token


def leases(member: Etcd, prefix: str) -> list[int]:
    """The leases of the keys with a prefix."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    answer = member.call("kv/range", key=_base64(prefix), range_end=_base64(end))
    return [int(one.get("lease", 0)) for one in answer.get("kvs", [])]


class Cluster:
    """Three members."""

    def __init__(self, directory: Path, **options: object) -> None:
        self._reserved = contextlib.ExitStack()
        ports = [self._reserved.enter_context(http.reserved_port()) for _ in range(6)]
        pairs = list(zip(ports[::2], ports[1::2], strict=True))
        initial = ",".join(f"m{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(pairs))
        self.members = [
            Etcd(directory, name=f"m{n}", ports=pair, cluster=initial, **options)
            for n, pair in enumerate(pairs)
        ]

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                member.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.__exit__()
        self._reserved.close()

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]


class Tunnel(http.Server):
    """Stands before a member. While it is cut, connections end at once. While it is held, they
    wait."""

    def __init__(self, url: str) -> None:
        host, port = url.rpartition("/")[2].split(":")
        self._member = host, int(port)
        self._is_cut = False
        self._free = threading.Event()
        self._free.set()
        super().__init__(on_accept(lambda connection, _: self._relay(connection)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def cut(self) -> None:
        """End all connections, and those that come."""
        self._is_cut = True
        self.drop_connections()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """End all connections, and let those that come wait until the end of the block."""
        self._free.clear()
        self.drop_connections()
        try:
            yield
        finally:
            self._free.set()

    def _relay(self, connection: http.Connection) -> None:
        self._free.wait(LIMIT)
        if self._is_cut:
            connection.close()
            return
        near = connection.sock
        with socket.create_connection(self._member) as far:
            back = threading.Thread(target=_pump, args=(far, near))
            back.start()
            _pump(near, far)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until one side ends, and then end both."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class Watching:
    """A watch of a source, on the shared event loop or on a thread, and what it has sent."""

    def __init__(self, source: PushedSource, *, on_thread: bool = False) -> None:
        self.answers: queue.SimpleQueue[lbclient.Answer] = queue.SimpleQueue()
        self.signs_of_life = threading.Semaphore(0)
        self.ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.last: Exception | None = None
        """The error with which it has ended, after the block."""
        callbacks = self.answers.put, self.signs_of_life.release, self.ended.put
        if not on_thread:
            self._cancel = source.start(*callbacks)
            return
        watch = _BlockingWatch(source, *callbacks)
        threading.Thread(target=watch.run).start()
        self._cancel = watch.cancel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()
        self.last = self.ended.get(timeout=LIMIT)

    def answer(self) -> list[str]:
        """The instances of the next answer."""
        try:
            return sorted(map(str, self.answers.get(timeout=LIMIT).instances))
        except queue.Empty:
            raise AssertionError(self.failure()) from None

    def until(self, *instances: str) -> None:
        """Wait for an answer with exactly these instances."""
        while self.answer() != sorted(instances):
            pass

    def alive(self) -> None:
        """Wait for the next sign of life. The first one says that the watch has begun."""
        assert self.signs_of_life.acquire(timeout=LIMIT)

    def failure(self) -> str:
        """Wait until the watch has failed, and return the text of its error."""
        error = self.ended.get(timeout=LIMIT)
        self.ended.put(error)  # for __exit__
        assert isinstance(error, lbclient.DiscoveryError)
        return str(error)


class Service:
    """A process that serves HTTP and registers itself; killed by its own pid at the end."""

    def __init__(self, prefix: str, endpoints: str, ttl: int) -> None:
        self.port = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.etcd", prefix, endpoints, str(ttl)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def registered(self) -> None:
        """Wait until it is registered."""
        self.port = int(self.process.stdout.readline())


def _main(prefix: str, endpoints: str, ttl: str) -> None:
    server = http.Server(http.tells_port)
    via = lbclient.Etcd(prefix, endpoints)
    instance = lbclient.Instance("127.0.0.1", server.port)
    with lbclient.Registration("orders", instance, via=via, ttl=int(ttl)):
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        sys.stdin.read()
    sys.stdout.write("left\n")
    sys.stdout.flush()
    time.sleep(1)  # for the calls that its clients have begun
    server.stop()


if __name__ == "__main__":
    _main(*sys.argv[1:])
