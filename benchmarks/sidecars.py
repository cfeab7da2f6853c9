"""HAProxy and nginx as sidecars: reverse proxies on loopback, as Debian ships them."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import children
import loopback

# One thread, which is what a sidecar of a small service has; idle connections are kept and shared.
_HAPROXY = """
global
    nbthread 1
    maxconn 2000
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
listen sidecar
    bind 127.0.0.1:{port}
    balance roundrobin
    {servers}
"""
_NGINX = """upstream instances {{
        {servers}
        keepalive 256;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://instances;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}"""


class Sidecar(NamedTuple):
    """Where it listens, and the id of its only process."""

    url: str
    pid: int


Running = Callable[[str, Sequence[str]], AbstractContextManager[Sidecar]]


@contextlib.contextmanager
def haproxy(program: str, instances: Sequence[str]) -> Iterator[Sidecar]:
    """HAProxy in front of them, for the time of a block."""
    (port,) = children.free_ports(1)
    servers = [f"server s{one} {address}" for one, address in enumerate(_addresses(instances))]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "haproxy.cfg")
        text = _HAPROXY.format(port=port, servers="\n    ".join(servers))
        config.write_text(text, encoding="ascii")
        with children.running([program, "-db", "-q", "-f", str(config)], [port]) as pid:
            yield Sidecar(f"http://127.0.0.1:{port}", pid)


@contextlib.contextmanager
def nginx(program: str, instances: Sequence[str]) -> Iterator[Sidecar]:
    """nginx in front of them, likewise."""
    (port,) = children.free_ports(1)
    servers = "\n        ".join(f"server {address};" for address in _addresses(instances))
    config = _NGINX.format(port=port, servers=servers)
    with loopback.configured(program, config, [port]) as pid:
        yield Sidecar(f"http://127.0.0.1:{port}", pid)


KNOWN: Mapping[str, tuple[str, Running]] = {
    "HAProxy": ("haproxy", haproxy),
    "nginx": ("nginx", nginx),
}
"""Its name, its program, and what runs it."""


def cpu_seconds(pid: int) -> float:
    """Of the processor, that a process of ours has used. The clock is that of
    clock_getcpuclockid(3), which Python does not have; /proc/<pid>/stat counts in steps of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _addresses(urls: Sequence[str]) -> list[str]:
    return [url.removeprefix("http://") for url in urls]
