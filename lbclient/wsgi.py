"""Middleware for WSGI applications: the deadline that a caller sends limits the calls that the
application makes."""

from __future__ import annotations

import contextvars
import math
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbclient._internal import validation
from lbclient._internal.deadline import CURRENT, Deadline
from lbclient.balancer.deadlines import DeadlineHeader

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["DeadlineMiddleware"]

_CONNECTIONS = ("gunicorn.socket", "werkzeug.socket")
"""The keys of `environ` under which servers pass the connection of a request. The WSGI
specification defines no such key."""
_ESTABLISHED = 1
"""The value of the first byte of Linux's `tcp_info` while the connection is open: the peer has
neither closed nor reset it."""


class DeadlineMiddleware:
    """Reads a deadline from a header of each request, and applies it to all calls that the
    application makes for this request.

    It works like a block of `lbclient.deadline` that begins when the request arrives here and ends
    when the response body is closed. On Linux, with a server that passes its TCP connections to the
    application (as gunicorn and Werkzeug do), the deadline expires at once when the caller
    disconnects: further calls raise DeadlineExceeded, and no call is retried.

    - `app`: the WSGI application.
    - `header`: the name of the header. Its value is a whole number of milliseconds. Any other
      value, or a repeated header, is ignored. With 0, the deadline has already expired.
    - `max_seconds`: the longest deadline in seconds. A longer deadline is shortened.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
    """

    def __init__(
        self, app: WSGIApplication, header: str = "x-deadline-ms", max_seconds: float = 30.0
    ) -> None:
        validation.function("app", app)
        self._app = app
        self._header = DeadlineHeader(header, max_seconds)
        self._key = "HTTP_" + self._header.name.upper().replace("-", "_")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        own = [environ[self._key]] if self._key in environ else []
        if (deadline := self._header.deadline(own)) is None:
            return self._app(environ, start_response)
        found = [environ[name] for name in _CONNECTIONS if name in environ]
        if found and sys.platform == "linux":
            deadline = _Watched(deadline.at, deadline.clock, deadline.since, connection=found[0])
        deadline.outer = CURRENT.get()
        # All parts of the application run in this context, so that the thread's own context does
        # not change.
        context = contextvars.copy_context()
        context.run(CURRENT.set, deadline)
        try:
            body = context.run(self._app, environ, start_response)
        except BaseException:
            deadline.lift()  # the application may have copied the context
            raise
        # These results are not wrapped: the server may send a file by itself, and needs the length
        # of a list.
        file = environ.get("wsgi.file_wrapper")
        if isinstance(body, (list, tuple)) or (isinstance(file, type) and isinstance(body, file)):
            deadline.lift()
            return body
        return _Body(body, deadline, context)


@dataclass(slots=True, eq=False)
class _Watched(Deadline):
    """A deadline that also ends when the caller has closed `connection`. This is checked at each
    use of the deadline."""

    connection: socket.socket | None = None

    def left(self) -> float:
        """Return the seconds that are left; 0 if the deadline has expired."""
        self.ended()
        return Deadline.left(self)

    def by(self, clock: Callable[[], float], now: float) -> tuple[float, float]:
        """Return the times at which the deadline began and ends. Each call uses them when it
        begins."""
        self.ended()
        return Deadline.by(self, clock, now)

    def ended(self) -> bool:
        """True if the deadline was ended early. Each call checks this before it is retried or
        leaves the queue."""
        if self.at < math.inf and self.connection is not None and _has_left(self.connection):
            self.end()
        return Deadline.ended(self)


def _has_left(connection: socket.socket) -> bool:
    """True if the peer has closed its connection. Only the state of the socket is read, without
    waiting. So this also works while bytes of the peer are unread, with TLS, and under gevent."""
    try:
        state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except (AttributeError, OSError):  # it is not a TCP socket
        return False
    return state[0] != _ESTABLISHED


class _Body:
    """A response body. The deadline also applies to code that runs while the server reads or closes
    it."""

    def __init__(
        self, body: Iterable[bytes], deadline: Deadline, context: contextvars.Context
    ) -> None:
        self._body = body
        self._deadline = deadline
        self._run = context.run
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._chunks is None:
            self._chunks = self._run(iter, self._body)
        return self._run(next, self._chunks)

    def close(self) -> None:
        """Close the body, as the server does at the end of each request."""
        try:
            close: Callable[[], object] | None = getattr(self._body, "close", None)
            if close is not None:
                self._run(close)
        finally:
            self._deadline.lift()
