"""A real Traefik on a free loopback port: an independent client of the registries' APIs."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.http import reserved_port

__all__ = ["BINARY", "Traefik", "traefik"]

BINARY = shutil.which("traefik", path=str(Path(sys.executable).parent)) or shutil.which("traefik")


class Traefik:
    """A running proxy."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/"

    def get(self, host: str) -> tuple[int, str]:
        """Send a GET with this Host, and return the status and the body."""
        found = httpx.get(self._url, headers={"Host": host}, trust_env=False)
        return found.status_code, found.text

    def until(self, host: str, wanted: set[tuple[int, str]]) -> None:
        """Send requests until all of these responses came in a row, and no other."""
        end, seen = time.monotonic() + 20, [(0, "")]
        while set(seen) != wanted:
            assert time.monotonic() < end, (seen, wanted)
            time.sleep(0.05)  # nothing tells when Traefik has a new configuration
            seen = [self.get(host) for _ in range(2 * len(wanted))]


@contextlib.contextmanager
def traefik(home: Path, *options: str) -> Iterator[Traefik]:
    """Start Traefik with these options of its command line."""
    with reserved_port() as port:
        command = [
            str(BINARY),
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            f"--entrypoints.web.address=127.0.0.1:{port}",
            *options,
        ]
        with (home / "traefik.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)
        try:
            end = time.monotonic() + 20
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                assert process.poll() is None, (home / "traefik.log").read_text()
                assert time.monotonic() < end
                time.sleep(0.02)  # nobody tells when another process listens
            yield Traefik(port)
        finally:
            process.terminate()
            process.wait()
