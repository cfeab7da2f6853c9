"""A real server on loopback: one nginx process with a port for each instance."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import children

# Nothing may end a connection during a run: neither its age nor the number of its requests.
CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {servers}
}}
"""
_SERVER = 'server {{ listen 127.0.0.1:{port}{tls}; location / {{ return 200 "ok\\n"; }} }}'
_TLS = " ssl; ssl_certificate {chain}; ssl_certificate_key {key}"


class Server(NamedTuple):
    """The URLs of the instances, the id of the only process, and for https the file of the
    authority that clients are to trust."""

    urls: Sequence[str]
    pid: int
    ca: str | None = None


def found() -> str | None:
    """Where nginx is, if it is installed."""
    return children.found("nginx")


@contextlib.contextmanager
def nginx(program: str, instances: int, *, tls: str = "") -> Iterator[Server]:
    """Run it for the time of a block."""
    ports = children.free_ports(instances)
    servers = "\n    ".join(_SERVER.format(port=port, tls=tls) for port in ports)
    with configured(program, servers, ports) as pid:
        yield Server([f"http{'s' if tls else ''}://127.0.0.1:{port}" for port in ports], pid)


@contextlib.contextmanager
def https(program: str, instances: int) -> Iterator[Server]:
    """The same over TLS. The package trustme must be installed."""
    import trustme  # noqa: PLC0415  # where it is installed

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    with tempfile.TemporaryDirectory() as folder:
        ca, chain, key = (Path(folder, name) for name in ("ca.pem", "chain.pem", "key.pem"))
        authority.cert_pem.write_to_path(ca)
        for one in issued.cert_chain_pems:
            one.write_to_path(chain, append=True)
        issued.private_key_pem.write_to_path(key)
        with nginx(program, instances, tls=_TLS.format(chain=chain, key=key)) as server:
            yield server._replace(ca=str(ca))


@contextlib.contextmanager
def configured(program: str, servers: str, ports: Sequence[int]) -> Iterator[int]:
    """An nginx with these `server` blocks; yields its process id."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(CONFIG.format(servers=servers), encoding="ascii")
        command = [program, "-p", folder, "-c", str(config), "-e", "stderr"]
        with children.running(command, ports) as pid:
            yield pid
