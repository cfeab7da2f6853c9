"""Middleware for ASGI applications: the deadline that a caller sends limits the calls that the
application makes."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

import anyio

from lbclient._internal import validation
from lbclient._internal.deadline import Block, Deadline
from lbclient.balancer.deadlines import DeadlineHeader
from lbclient.balancer.event_loops import running_loop

__all__ = ["DeadlineMiddleware"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LAST = {"http.response.body", "http.response.pathsend"}
_BODY = {b"content-length", b"transfer-encoding"}


class DeadlineMiddleware:
    """Reads a deadline from a header of each request, and applies it to all calls that the
    application makes for this request.

    It works like a block of `lbclient.deadline` that begins when the request arrives here. If the
    caller disconnects before it has its response, the deadline expires at once: further calls raise
    DeadlineExceeded, and no call is retried. Work that the application does after the response,
    such as background tasks, has no deadline.

    - `app`: the ASGI application. The middleware works for HTTP requests and WebSockets, on asyncio
      and trio.
    - `header`: the name of the header. Its value is a whole number of milliseconds. Any other
      value, or a repeated header, is ignored. With 0, the deadline has already expired.
    - `max_seconds`: the longest deadline in seconds. A longer deadline is shortened.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
    """

    def __init__(self, app: App, header: str = "x-deadline-ms", max_seconds: float = 30.0) -> None:
        validation.function("app", app)
        self._app = app
        self._header = DeadlineHeader(header, max_seconds)
        self._name = self._header.name.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, WebSocket or lifespan."""
        deadline = None
        if scope["type"] in {"http", "websocket"}:
            own = [value for name, value in scope["headers"] if name.lower() == self._name]
            deadline = self._header.deadline([value.decode("latin-1") for value in own])
        if deadline is None:
            await self._app(scope, receive, send)
            return
        try:
            with Block(deadline):
                if scope["type"] == "http":
                    await _Request(deadline, scope, receive, send).serve(self._app)
                else:
                    await self._app(scope, _noting(receive, deadline), send)
        finally:
            deadline.lift()


def _noting(receive: Receive, deadline: Deadline) -> Receive:
    """Return the `receive` of a WebSocket, which also ends the deadline when the caller
    disconnects. Nothing is read ahead here, since the application of a WebSocket reads all messages
    itself."""

    async def noting() -> Message:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            deadline.end()
        return message

    return noting


class _Request:
    """A request with a deadline. `receive` and `send` are for the application.

    A server reports a disconnect only through `receive`, and an application may never call
    `receive`. So once the whole body has been received, a task calls `receive`. If the headers
    announce a body, only the application reads it.
    """

    def __init__(self, deadline: Deadline, scope: Scope, receive: Receive, send: Send) -> None:
        self._deadline = deadline
        self._scope = scope
        self._receive = receive
        self._send = send
        self._ahead: deque[Message] = deque()
        """Messages of the server that the application has not received yet."""
        self._arrived = anyio.Event()
        headers = scope["headers"]
        self._direct = any(name.lower() in _BODY and value != b"0" for name, value in headers)
        """True while the messages of the server are passed directly to the application: until it
        has received the whole body."""
        self._body_received = anyio.Event()
        self._gone = False

    async def serve(self, app: App) -> None:
        """Run the application, and watch for a disconnect of the caller."""
        cancel = _started(self._await_disconnect)
        try:
            await app(self._scope, self.receive, self.send)
        finally:
            cancel()

    async def receive(self) -> Message:
        """Return the next message of the server."""
        while not (self._ahead or self._direct):
            await self._arrived.wait()
        if self._ahead:
            repeated = self._gone and len(self._ahead) == 1
            return self._ahead[0] if repeated else self._ahead.popleft()
        message = await self._receive()
        if not message.get("more_body", False):
            self._direct = False
            self._note(message)
            self._body_received.set()
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the caller. After the last message, the deadline no longer applies."""
        if message["type"] in _LAST and not message.get("more_body", False):
            self._deadline.lift()
        await self._send(message)

    async def _await_disconnect(self) -> None:
        while not self._gone:
            if self._direct:
                await self._body_received.wait()
                continue
            try:
                message = await self._receive()
            except Exception:  # noqa: BLE001  # raised again where the application receives
                self._direct = True
                self._wake()
                return
            self._direct = message.get("more_body", False)
            self._note(message)
            if not self._gone:
                self._ahead.append(message)
            self._wake()

    def _note(self, message: Message) -> None:
        """End the deadline if the caller disconnects before it has its response."""
        if message["type"] != "http.disconnect":
            return
        self._gone = True
        self._ahead.append(message)  # `receive` returns it repeatedly, as servers do
        if self._deadline.at < math.inf:
            self._deadline.end()

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, anyio.Event()
        arrived.set()


def _started(function: Callable[[], Coroutine[None, None, None]]) -> Callable[[], object]:
    """Start a task that runs `function`, and return the function that cancels the task.

    A task group would take four times as long, and wrap the exceptions of the application.
    """
    loop = running_loop()
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.create_task(function()).cancel
    import trio  # noqa: PLC0415  # it is installed only where trio runs the loop

    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await function()

    trio.lowlevel.spawn_system_task(run)
    return scope.cancel
