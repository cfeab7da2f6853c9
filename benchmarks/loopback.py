"""A real server on loopback: one nginx process with a port for each instance."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_PATIENCE = 5.0
# Debian keeps it out of a user's PATH.
_WHERE = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
# Nothing may end a connection during a run: neither its age nor the number of its requests.
_CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections 1024; }}
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
_SERVER = 'server {{ listen 127.0.0.1:{port}; location / {{ return 200 "ok\\n"; }} }}'


def found() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx", path=_WHERE)


@contextlib.contextmanager
def nginx(program: str, instances: int) -> Iterator[Sequence[str]]:
    """Run it for the time of a block; yields the instances' URLs."""
    ports = _free_ports(instances)
    with tempfile.TemporaryDirectory() as folder:
        servers = "\n    ".join(_SERVER.format(port=port) for port in ports)
        config = Path(folder, "nginx.conf")
        config.write_text(_CONFIG.format(servers=servers), encoding="ascii")
        process = subprocess.Popen(
            [program, "-p", folder, "-c", config, "-e", "stderr"],
            start_new_session=True,  # Ctrl-C is ours: we stop it after our own clients
        )
        try:
            for port in ports:
                _await_port(port, process)
            yield [f"http://127.0.0.1:{port}" for port in ports]
        finally:
            _stop(process)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nginx does not answer on port {port}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
