"""One real HTTP/1.1 instance in its own process: `python backend.py NAME DELAY`.

The process prints its port. Each line of its standard input is a new delay in seconds, as JSON. The
process answers each of them with a line. It exits when standard input ends, so it cannot outlive
its parent.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

__all__ = ["Backend"]


class Backend(socketserver.ThreadingTCPServer):
    """Answers every GET after `delay` seconds, on a free port of the loopback interface."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.delay = delay

    def handle_error(self, *_: object, **__: object) -> None:
        """Print nothing if a client disconnects."""


class _Handler(BaseHTTPRequestHandler):
    server: Backend
    protocol_version = "HTTP/1.1"
    # Head and body are sent in one segment: a second one would wait for the client's delayed ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        time.sleep(self.server.delay)
        body = json.dumps({"path": self.path, "instance": self.server.name}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object, **__: object) -> None:
        """Print nothing, since the demo uses the terminal."""


def _main(name: str, delay: float) -> None:
    server = Backend(name, delay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    for line in sys.stdin:
        server.delay = float(json.loads(line))
        print("ok", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
