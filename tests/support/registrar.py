"""What registrations are tested with: a proxy before a DNS server, and a service that registers.

`python -m tests.support.registrar SERVICE HOST PORT SERVER KEY [IDENTITY]` is such a service: it
writes a line once it is registered, and lasts until its input ends or a signal ends it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from lbclient import Instance
from lbclient.discovery.registration import Registration

__all__ = ["Proxy", "Service"]

Hook = Callable[[Callable[[], bytes]], bytes | None]
"""Given how to have an update done, returns the answer; None closes the connection."""
_UPDATE = 5


class Proxy:
    """Stands before a DNS server, over TCP, one message a connection; `hooks` see the updates.

    The first update is the first hook's, and so on; who has none is passed on.
    """

    def __init__(self, server: str) -> None:
        host, port = server.split(":")
        self._server = host, int(port)
        self._listener = socket.create_server((host, 0))
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self.hooks: list[Hook] = []
        self.updates = 0

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        with contextlib.suppress(OSError), socket.create_connection(self._listener.getsockname()):
            pass
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._stopping:
                connection.close()
                return
            self._start(lambda connection=connection: self._serve(connection))

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, struct.error):
            message = _read(connection)
            if (answer := self._answer(message)) is not None:
                connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, message: bytes) -> bytes | None:
        def forward() -> bytes:
            with socket.create_connection(self._server, 5) as server:
                server.sendall(struct.pack("!H", len(message)) + message)
                return _read(server)

        if message[2] >> 3 & 15 != _UPDATE:
            return forward()
        self.updates += 1
        return self.hooks.pop(0)(forward) if self.hooks else forward()


def _read(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        (size,) = struct.unpack("!H", stream.read(2))
        return stream.read(size)


class Service:
    """A process that registers itself; killed by its own pid at the end of the block."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.registrar", *map(str, arguments)],
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
        assert self.process.stdout.readline() == b"registered\n"


def _main(service: str, host: str, port: str, server: str, key: str, *identity: str) -> None:
    word = identity[0] if identity else None
    instance = Instance(host, int(port))
    with Registration(service, instance, server=server, key=key, identity=word):
        sys.stdout.write("registered\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _main(*sys.argv[1:])
