"""DNS over TLS and HTTPS for tests: BIND with certificates of a test CA, and peers that fail."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import trustme

from tests.support.dns import _free_port, _Server, write_zone

__all__ = ["Certificates", "SecureBind", "peer"]

_HOST = "127.0.0.1"
PATH = "/dns-query"


class Certificates:
    """A CA and a server's certificate for `names`, as files in `directory`."""

    def __init__(self, directory: Path, *names: str) -> None:
        authority = trustme.CA()
        self._issued = authority.issue_cert(*names)
        self.authority, self.chain, self.key = (
            directory / name for name in ("ca.pem", "chain.pem", "key.pem")
        )
        authority.cert_pem.write_to_path(self.authority)
        self._issued.private_key_pem.write_to_path(self.key)
        for blob in self._issued.cert_chain_pems:
            blob.write_to_path(self.chain, append=True)

    def context(self) -> ssl.SSLContext:
        """A server's TLS context, with HTTP/1.1 as its protocol."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._issued.configure_cert(context)
        context.set_alpn_protocols(["http/1.1"])
        return context


class SecureBind(_Server):
    """BIND 9 with one zone, over UDP and TCP, TLS (RFC 7858) and HTTPS (RFC 8484)."""

    command = "named"

    def __init__(
        self, directory: Path, zone: str, probe: str, records: str, certificates: Certificates
    ) -> None:
        super().__init__(directory)
        self.probe = probe
        self._zone = zone
        self._certificates = certificates
        write_zone(directory, zone, records)

    @property
    def tls(self) -> str:
        """For `nameservers=`, by its address."""
        return f"tls://{_HOST}:{self._tls}"

    @property
    def https(self) -> str:
        """For `nameservers=`, by its address."""
        return f"https://{_HOST}:{self._https}{PATH}"

    def https_as(self, host: str) -> str:
        """For `nameservers=`, by a name, with the address to find it at."""
        return f"https://{host}:{self._https}{PATH}#{_HOST}"

    def _arguments(self) -> list[str]:
        self._tls, self._https = _free_port(), _free_port()
        config = self._directory / "named.conf"
        config.write_text(
            f'tls own {{ cert-file "{self._certificates.chain}"; '
            f'key-file "{self._certificates.key}"; }};\n'
            f'http own {{ endpoints {{ "{PATH}"; }}; }};\n'
            f'options {{ directory "{self._directory}"; pid-file none; recursion no; notify no;\n'
            f"  listen-on port {self._port} {{ {_HOST}; }}; listen-on-v6 {{ none; }};\n"
            f"  listen-on port {self._tls} tls own {{ {_HOST}; }};\n"
            f"  listen-on port {self._https} tls own http own {{ {_HOST}; }};\n"
            "  dnssec-validation no; minimal-responses no; };\n"
            f'controls {{ }};\nzone "{self._zone}" {{ type primary; file "zone"; }};\n'
        )
        return ["-g", "-n", "1", "-c", str(config)]


@contextlib.contextmanager
def peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server on the loopback that hands each connection to `serve`; yields its port.

    `serve` runs on the server's one thread; what it raises for a broken connection ends only that
    connection. A connection stays open until the block ends, unless `serve` closes it.
    """
    listener = socket.create_server((_HOST, 0))
    kept: list[socket.socket] = []

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            with contextlib.suppress(OSError):
                serve(connection)

    thread = threading.Thread(target=run, name="peer", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for one in kept:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for one in (listener, *kept):
            one.close()
