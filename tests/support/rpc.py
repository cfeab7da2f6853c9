"""gRPC servers in processes of their own, and one interface to channels of both kinds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

import lbclient.grpc
import lbclient.grpc.aio
from tests.support.stubs import FOLDER, messages, services

__all__ = ["KINDS", "Loop", "RpcServer", "Rpcs", "channel_of", "loop_of", "messages", "services"]

KINDS = ["threads", "asyncio", "uvloop"]
_PROGRAM = Path(__file__).with_name("rpc_server.py")


class RpcServer:
    """A server. What its methods ask for has happened when they return."""

    def __init__(self, tls: str | None = None) -> None:
        self._tls = tls
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, on its old port if it had one."""
        if self.port:
            self._close()
        arguments = [sys.executable, str(_PROGRAM), str(FOLDER)]
        self._process = subprocess.Popen(
            arguments if self._tls is None else [*arguments, self._tls],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RPC_PORT": str(self.port)},
        )
        self.port = int(self._process.stdout.readline())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def tell(self, line: str) -> str:
        """Send one line, and return its answer."""
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def told(self) -> dict:
        """What it has been asked so far."""
        return json.loads(self.tell("told"))

    @property
    def calls(self) -> int:
        return self.told()["calls"]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.kill()
        self._close()

    def _close(self) -> None:
        for file in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                file.close()


class Loop:
    """An event loop on a thread of its own."""

    def __init__(self, kind: str) -> None:
        if kind == "uvloop":
            import uvloop

            self.loop = uvloop.new_event_loop()
        else:
            self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine):
        """Run a coroutine, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def begin(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self) -> None:
        self.run(_tidied())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _tidied() -> None:
    await asyncio.get_running_loop().shutdown_asyncgens()


class Call:
    """What a test asks of an RPC that is under way."""

    def __init__(self, call, rpcs) -> None:
        self.call = call
        self._rpcs = rpcs

    def __iter__(self) -> Iterator:
        while (message := self.read()) is not None:
            yield message

    def read(self):
        """The next message; None at the end."""
        if self._rpcs.loop is None:
            return next(self.call, None)

        async def read():
            message = await self.call.read()
            return None if message is grpc.aio.EOF else message

        return self._rpcs.loop.run(read())

    def result(self):
        if self._rpcs.loop is None:
            return self.call.result()

        async def wait():
            return await self.call

        return self._rpcs.loop.run(wait())

    def get(self, name):
        """`code`, `details`, `initial_metadata`, `trailing_metadata`."""
        if self._rpcs.loop is None:
            return getattr(self.call, name)()

        async def ask():
            return await getattr(self.call, name)()

        return self._rpcs.loop.run(ask())

    @property
    def code(self) -> str:
        return self.get("code").name

    def add_callback(self, callback) -> None:
        """Call `callback()` at the end of the RPC."""
        if self._rpcs.loop is None:
            self.call.add_done_callback(lambda _: callback())
        else:

            async def add():
                self.call.add_done_callback(lambda _: callback())

            self._rpcs.loop.run(add())

    def cancel(self) -> None:
        if self._rpcs.loop is None:
            self.call.cancel()
        else:

            async def cancel():
                self.call.cancel()

            self._rpcs.loop.run(cancel())


class Rpcs:
    """A channel and its stub, used from a thread whatever its kind."""

    def __init__(self, kind: str, *service, **options) -> None:
        self.loop = None if kind == "threads" else Loop(kind)
        if self.loop is None:
            self.channel = lbclient.grpc.channel(*service, **options)
            self.stub = services.TestServiceStub(self.channel)
        else:

            async def make():
                channel = lbclient.grpc.aio.channel(*service, **options)
                return channel, services.TestServiceStub(channel)

            self.channel, self.stub = self.loop.run(make())

    @property
    def balancer(self):
        return self.channel.balancer

    def unary(self, method="UnaryCall", request=None, **options):
        """Carry out an RPC, and return its response."""
        call, request = getattr(self.stub, method), _request(method, request)
        if self.loop is None:
            return call(request, **options)

        async def wait():
            return await call(request, **options)

        return self.loop.run(wait())

    def begin(self, method, request=None, **options) -> Call:
        """Begin an RPC."""
        call, request = getattr(self.stub, method), _request(method, request)
        if self.loop is None:
            return Call(getattr(call, "future", call)(request, **options), self)

        async def begin():
            return call(request, **options)

        return Call(self.loop.run(begin()), self)

    def error(self, *arguments, **options) -> grpc.RpcError:
        """Carry out an RPC that fails, and return its error."""
        try:
            self.unary(*arguments, **options)
        except grpc.RpcError as error:
            return error
        raise AssertionError("it did not fail")

    def in_flight(self) -> int:
        return sum(one.in_flight for one in self.balancer.snapshot().instances)

    def close_channel(self) -> None:
        if self.loop is None:
            self.channel.close()
        else:
            self.loop.run(self.channel.close())

    def close(self) -> None:
        self.close_channel()
        if self.loop is not None:
            self.loop.close()


def _request(method, request):
    if request is not None:
        return request
    if method in ("EmptyCall", "UnimplementedCall"):
        return messages.Empty()
    return messages.SimpleRequest()


@contextlib.contextmanager
def channel_of(kind: str, *service, **options):
    """A channel of this kind, closed at the end."""
    rpcs = Rpcs(kind, *service, **options)
    try:
        yield rpcs
    finally:
        rpcs.close()


@contextlib.contextmanager
def loop_of(kind: str):
    loop = Loop(kind)
    try:
        yield loop
    finally:
        loop.close()
