"""One real gRPC instance in its own process: `python rpc_backend.py NAME DELAY`.

It reads lines from its standard input, as `backend.py` does.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent import futures
from typing import Any

import grpc

__all__ = ["Backend"]


class Backend:
    """Answers every call of `/demo.Orders/Get` after `delay` seconds with its name, on a free port
    of the loopback interface."""

    def __init__(self, name: str, delay: float) -> None:
        self.name = name
        self.delay = delay
        self._server = grpc.server(futures.ThreadPoolExecutor(32))
        get: Any = grpc.unary_unary_rpc_method_handler(self._get)
        handlers = grpc.method_handlers_generic_handler("demo.Orders", {"Get": get})
        self._server.add_generic_rpc_handlers((handlers,))
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _get(self, _: bytes, __: Any) -> bytes:
        time.sleep(self.delay)
        return self.name.encode()


def _main(name: str, delay: float) -> None:
    server = Backend(name, delay)
    print(server.port, flush=True)
    for line in sys.stdin:
        server.delay = float(json.loads(line))
        print("ok", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]))
