"""A gRPC server in a process of its own: `python tests/support/rpc_server.py FOLDER [TLS]`.

It prints its port, then obeys the lines on its stdin, and prints a line for each: see `Behaviour`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

sys.path.append(sys.argv[1])
import testing_pb2 as messages
import testing_pb2_grpc as services

ECHO_INITIAL, ECHO_TRAILING = "x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"


class Behaviour:
    """What the server does, as its stdin says."""

    def __init__(self):
        self.status = None
        self.trailers = ()
        self.delay = 0.0
        self.dies_after = None
        self.calls = 0
        self.cancelled = 0
        self.timeouts = []
        self.metadata = []
        self.gate = threading.Event()
        self.gate.set()

    def enter(self, context):
        """Begin an RPC: count it, wait, and perhaps fail."""
        self.calls += 1
        remaining = context.time_remaining()
        self.timeouts.append(remaining if remaining is not None and remaining < 1e9 else None)
        self.metadata.append([(key, str(value)) for key, value in context.invocation_metadata()])
        context.add_callback(lambda: setattr(self, "cancelled", self.cancelled + 1))
        if self.trailers:
            context.set_trailing_metadata(self.trailers)
        if self.delay:
            time.sleep(self.delay)
        while not self.gate.wait(0.02):
            if not context.is_active():
                return
        if self.dies_after == 0:
            os._exit(1)
        if self.status is not None:
            context.abort(getattr(grpc.StatusCode, self.status[0]), self.status[1])


behaviour = Behaviour()
port = None


def echo(context):
    metadata = dict(context.invocation_metadata())
    if ECHO_INITIAL in metadata:
        context.send_initial_metadata(((ECHO_INITIAL, metadata[ECHO_INITIAL]),))
    if ECHO_TRAILING in metadata:
        context.set_trailing_metadata(((ECHO_TRAILING, metadata[ECHO_TRAILING]),))


def ended(request, context):
    if request.response_status.code:
        code = next(one for one in grpc.StatusCode if one.value[0] == request.response_status.code)
        context.abort(code, request.response_status.message)


class Servicer(services.TestServiceServicer):
    def EmptyCall(self, _, context):  # noqa: N802
        behaviour.enter(context)
        return messages.Empty()

    def UnaryCall(self, request, context):  # noqa: N802
        echo(context)
        behaviour.enter(context)
        ended(request, context)
        body = messages.Payload(body=bytes(request.response_size))
        return messages.SimpleResponse(payload=body, server_id=str(port))

    CacheableUnaryCall = UnaryCall

    def StreamingOutputCall(self, request, context):  # noqa: N802
        echo(context)
        behaviour.enter(context)
        yield from self._responses(request, context, 0)

    def StreamingInputCall(self, requests, context):  # noqa: N802
        behaviour.enter(context)
        size = 0
        for place, request in enumerate(requests):
            size += len(request.payload.body)
            if behaviour.dies_after is not None and place + 1 >= behaviour.dies_after:
                os._exit(1)
        return messages.StreamingInputCallResponse(aggregated_payload_size=size)

    def FullDuplexCall(self, requests, context):  # noqa: N802
        echo(context)
        behaviour.enter(context)
        sent = 0
        for request in requests:
            for one in self._responses(request, context, sent):
                yield one
                sent += 1

    @staticmethod
    def _responses(request, context, sent):
        for parameters in request.response_parameters:
            if behaviour.dies_after is not None and sent >= behaviour.dies_after:
                time.sleep(0.05)  # what was sent before leaves this process first
                os._exit(1)
            if parameters.interval_us:
                time.sleep(parameters.interval_us / 1e6)
            body = messages.Payload(body=bytes(parameters.size))
            yield messages.StreamingOutputCallResponse(payload=body, server_id=str(port))
            sent += 1
        ended(request, context)


def obey(line, healthy):  # a case for each command
    command, *rest = line.split(" ", 1)
    argument = rest[0] if rest else ""
    if command == "status":
        name, _, details = argument.partition(" ")
        behaviour.status = (name, details) if name else None
    elif command == "trailers":
        behaviour.trailers = tuple(tuple(pair) for pair in json.loads(argument))
    elif command == "load":
        behaviour.trailers = (("endpoint-load-metrics", argument),)
    elif command == "delay":
        behaviour.delay = float(argument)
    elif command == "hold":
        behaviour.gate.clear()
    elif command == "release":
        behaviour.gate.set()
    elif command == "dies-after":
        behaviour.dies_after = int(argument)
    elif command == "health":
        name, _, state = argument.partition(" ")
        healthy.set(name if name != "-" else "", getattr(health_pb2.HealthCheckResponse, state))
    elif command == "told":
        return json.dumps(
            {
                "calls": behaviour.calls,
                "ended": behaviour.cancelled,
                "timeouts": behaviour.timeouts,
                "metadata": behaviour.metadata,
            }
        )
    else:
        raise ValueError(line)
    return "ok"


def main():
    global port
    server = grpc.server(
        futures.ThreadPoolExecutor(64),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
    )
    services.add_TestServiceServicer_to_server(Servicer(), server)
    healthy = health.HealthServicer()
    healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    wanted = os.environ.get("RPC_PORT", "0")
    if len(sys.argv) > 2:
        key, chain, *roots = (open(path, "rb").read() for path in sys.argv[2].split(","))  # noqa: PTH123, SIM115
        credentials = grpc.ssl_server_credentials(
            [(key, chain)], roots[0] if roots else None, require_client_auth=bool(roots)
        )
        port = server.add_secure_port(f"127.0.0.1:{wanted}", credentials)
    else:
        port = server.add_insecure_port(f"127.0.0.1:{wanted}")
    server.start()
    print(port, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            print(obey(line.strip(), healthy), flush=True)
    server.stop(0)


if __name__ == "__main__":
    main()
