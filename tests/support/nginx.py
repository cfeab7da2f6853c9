"""A real nginx on free loopback ports, in its own directory."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

BINARY = shutil.which("nginx") or shutil.which("nginx", path="/usr/local/sbin:/usr/sbin")

_CONFIG = """
daemon off;
master_process off;
pid {home}/pid;
error_log {home}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {home}/client;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_max_body_size 100m;
    server {{
        listen 127.0.0.1:{port} {listen};
        {server}
    }}
}}
"""


@contextlib.contextmanager
def nginx(home: Path, server: str, listen: str = "") -> Iterator[int]:
    """Start nginx with this `server` block and these options of `listen`; return its port."""
    for _ in range(5):  # somebody else may take the port that was free
        port = _free_port()
        config = home / "nginx.conf"
        config.write_text(_CONFIG.format(home=home, port=port, listen=listen, server=server))
        log = home / "error.log"
        command = [str(BINARY), "-p", str(home), "-c", str(config), "-e", str(log)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            if _listens(process, port):
                yield port
                return
        finally:
            process.terminate()
            process.wait()
    raise RuntimeError(f"nginx did not start: {log.read_text()}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end:
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return True
        time.sleep(0.01)  # nobody tells when another process listens
    return False
