"""The service `orders`: `python -m tests.support.orders PORT FOLDER` is one instance of it.

GET /orders/7 returns the number and the id of the process. For GET /orders/0 it creates the file
`arrived` in FOLDER, and responds once there is a file `released`. It exits when its standard input
ends, so it cannot outlive the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["Instance", "eventually"]

POLL = 0.01
HANGS = 60


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one segment
    disable_nagle_algorithm = True
    folder: Path

    def do_GET(self):
        number = int(self.path.rpartition("/")[2])
        if number == 0:
            (self.folder / "arrived").touch()
            while not (self.folder / "released").exists():
                time.sleep(POLL)
        body = json.dumps({"number": number, "instance": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Write nothing."""


class Instances(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """Write nothing if a client disconnects."""


def eventually(state, what):
    """Wait until `state()` is true, and return it."""
    until = time.monotonic() + HANGS
    while not (seen := state()):
        assert time.monotonic() < until, f"{what} has not happened after {HANGS} s"
        time.sleep(POLL)
    return seen


class Instance:
    """One instance, as a test starts it, kills it, and starts it again on the same port."""

    def __init__(self, folder):
        self._folder = folder
        self._start(0)

    def _start(self, port):
        command = [sys.executable, "-m", __spec__.name, str(port), str(self._folder)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.pid = self._process.pid
        self.port = int(self._process.stdout.readline())

    def kill(self):
        """End it in the middle of whatever it does."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def restart(self):
        self._start(self.port)


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[2])
    with Instances(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
