"""The HTTP/2 streams to one instance: this module chooses the stream of a request, and lets its
call wait.

A call waits for a stream, for room in the flow-control windows, and for data. It waits within its
own timeouts and deadline.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, cast

import anyio

from lbclient._internal.deadline import STOOD_STILL

from .._compat import httpx
from .connection import Connection
from .http2 import Http2, Http2Exchange
from .pool import ConnectionLease, InstanceConnections
from .timeouts import DeadlineTimeout, seconds_now

__all__ = ["MAX_CONNECTIONS", "StreamLease", "Streams", "Wait", "block", "sleep"]

MAX_CONNECTIONS = 8
"""The maximum number of HTTP/2 connections to one instance that are in use."""
Timeouts = Mapping[str, float | None]
_RECHECK = 0.05
_LONGEST = threading.TIMEOUT_MAX
_ENDED = "the connection ended at once"


class Wait:
    """A wait of one call, which ends when `step` returns a value. `step` is called whenever
    something has happened to the exchange. `timeout` begins again each time a part of the body is
    sent. `write` is the maximum time until everything that was sent is written to the socket."""

    __slots__ = (
        "_begun",
        "_deadline",
        "_error",
        "_rechecked",
        "_timeout",
        "_write",
        "exchange",
        "step",
    )

    def __init__(
        self,
        exchange: Http2Exchange,
        step: Callable[[], object],
        timeout: float | None,
        error: type[httpx.TimeoutException],
        write: float | None = None,
    ) -> None:
        self.exchange: Http2Exchange = exchange
        self.step: Callable[[], object] = step
        self._error, self._rechecked = error, False
        seconds_now(timeout, error)
        self._timeout, self._write = timeout, write
        self._begun = now = time.monotonic()
        left = timeout.left() if isinstance(timeout, DeadlineTimeout) else None
        self._deadline = math.inf if left is None else now + left

    def _end(self) -> float:
        begun = self._begun
        if self._error is httpx.WriteTimeout:
            begun = max(begun, self.exchange.moved_at)
        limits = [_seconds(timeout) for timeout in (self._timeout, self._write)]
        return min(self._deadline, *(begun + limit for limit in limits if limit is not None))

    def seconds(self) -> float | None:
        """Return the seconds to wait now; None for no limit."""
        end = self._end()
        return None if end == math.inf else max(0.0, end - time.monotonic())

    def lapsed(self) -> None:
        """Handle a wait whose `seconds` are over. Raises the timeout error, unless there is a
        reason to wait again."""
        late, error, http2 = time.monotonic() - self._end(), self._error, self.exchange.http2
        if late < 0:  # another part of the body was sent meanwhile
            return
        written = http2 is None or http2.is_written(self.exchange)
        if self._write is not None and written:
            self._write = None
            return
        if late > STOOD_STILL and not self._rechecked:
            # After a process was suspended, timers fire before data is received.
            self._rechecked, self._begun = True, self._begun + late + _RECHECK
            self._deadline += late + _RECHECK
            return
        if error is httpx.ReadTimeout and not written:
            error = httpx.WriteTimeout
        seconds_now(self._timeout, error)
        if http2 is not None:
            http2.timed_out(self.exchange)
        raise error(_WAITED[error])


def _seconds(timeout: float | None) -> float | None:
    """Return the timeout that was set, regardless of the time that the attempt has left."""
    return timeout.seconds if isinstance(timeout, DeadlineTimeout) else timeout


_WAITED: dict[type[Exception], str] = {
    httpx.ConnectTimeout: "the HTTP/2 connection was not ready in time",
    httpx.PoolTimeout: "every HTTP/2 stream to the instance was in use",
    httpx.ReadTimeout: "no bytes arrived in time",
    httpx.WriteTimeout: "the instance did not read the request in time",
}


async def block(wait: Wait) -> Any:
    """Block this thread until the wait has ended."""
    while True:
        woken = threading.Lock()
        woken.acquire()  # released to wake this thread
        wait.exchange.waiter = partial(_release, woken)
        if (result := wait.step()) is not None:
            return result
        seconds = wait.seconds()
        if not woken.acquire(timeout=-1 if seconds is None else min(seconds, _LONGEST)):
            if (result := wait.step()) is not None:
                return result
            wait.lapsed()


def _release(lock: threading.Lock) -> None:
    with contextlib.suppress(RuntimeError):  # two threads may wake the same thread
        lock.release()


async def sleep(wait: Wait) -> Any:
    """Suspend this task until the wait has ended."""
    while True:
        woken = anyio.Event()
        wait.exchange.waiter = woken.set
        if (result := wait.step()) is not None:
            return result
        with anyio.move_on_after(wait.seconds()):
            await woken.wait()
        if not woken.is_set():
            if (result := wait.step()) is not None:
                return result
            wait.lapsed()


class StreamLease:
    """The stream of one call, from before it is reserved until its response has been read."""

    __slots__ = ("__weakref__", "_lose", "exchange", "opened")

    def __init__(self, lose: Callable[[Any], object]) -> None:
        self._lose = lose
        self.exchange: Http2Exchange = Http2Exchange()
        self.opened: bool = False
        """True if this call has opened the connection, and not another call."""

    def __del__(self) -> None:
        exchange = getattr(self, "exchange", None)  # missing if an exception interrupted `__init__`
        if exchange is not None and exchange.http2 is not None:
            self._lose(self)

    def drop(self) -> None:
        """Release the stream."""
        self.exchange.leave()

    def adopt(self, http2: Http2, lease: ConnectionLease[Any]) -> None:
        """Use a connection that this call has opened. Raises ConnectError if the connection takes
        no requests."""
        if not http2.adopt(self.exchange, lease):
            raise httpx.ConnectError(_ENDED)

    def turned_away(self, http2: Http2) -> None:
        """Release the stream, since nothing was sent and another connection must take the request.
        Raises ConnectError if this call has opened a connection that ended at once."""
        self.exchange.leave()
        if self.opened and not http2.usable:
            raise httpx.ConnectError(_ENDED)


class Streams:
    """Chooses the connection for the next request: a connection in use that has a free stream, an
    idle connection, or a new connection. If the limit of connections is reached, calls wait for a
    stream.

    Only one connection is opened at a time: before it is known which protocol the instance uses and
    how many streams it accepts, this connection may be enough for all calls.
    """

    def __init__(self, connections: InstanceConnections[Any]) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._opening: weakref.ref[StreamLease] | None = None
        """The call that opens a connection."""
        self._waiting: deque[Http2Exchange] = deque()
        self.is_http1 = False
        """True if the instance has chosen HTTP/1.1 in the TLS handshake."""

    @property
    def connecting(self) -> bool:
        """True while a connection is being opened."""
        return self._opening is not None and self._opening() is not None

    def find(self, lease: StreamLease) -> Connection | ConnectionLease[Any] | bool | None:
        """Return a connection with a stream for this call, or the lease of a connection that uses
        HTTP/1.1. Returns True if the call must open a connection, and None if it must wait."""
        exchange = lease.exchange
        if exchange.error is not None:
            raise exchange.error
        with self._lock:
            known = self._connections.all()
            for connection in known:
                if connection.http2 is not None and connection.http2.reserve(exchange):
                    return cast("Connection", connection)
            taken: ConnectionLease[Any] = ConnectionLease(self._connections)
            while (idle := self._connections.take(taken)) is not None:
                if idle.http2 is None:
                    return taken
                if idle.http2.adopt(exchange, taken):
                    return cast("Connection", idle)
                taken.end(reusable=False)
            if self.is_http1:
                return True
            usable = sum(other.http2 is not None and other.http2.usable for other in known)
            if self.connecting or usable >= MAX_CONNECTIONS:
                return None
            self._opening = weakref.ref(lease)
            return True

    def check_connecting(self) -> None:
        """Called when a call has waited for the connect timeout. Raises PoolTimeout if no
        connection is being opened."""
        if not self.connecting:
            raise httpx.PoolTimeout(_WAITED[httpx.PoolTimeout]) from None

    def wait(self, lease: StreamLease, timeouts: Timeouts) -> Wait:
        """Return a wait that ends when `find` returns a result."""
        step = partial(self.find, lease)
        if self.connecting:
            return Wait(lease.exchange, step, timeouts.get("connect"), httpx.ConnectTimeout)
        return Wait(lease.exchange, step, timeouts.get("pool"), httpx.PoolTimeout)

    @contextlib.contextmanager
    def waiting(self, exchange: Http2Exchange) -> Generator[None]:
        """Register this call, which is woken when there may be a stream for it."""
        self._waiting.append(exchange)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(exchange)
            self.freed()  # wake another call, since this call may not need the stream

    def freed(self) -> None:
        """Wake a waiting call, since there may be a free stream."""
        with contextlib.suppress(IndexError):
            self._waiting[0].wake()

    @contextlib.contextmanager
    def opening(self) -> Generator[None]:
        """Wraps the opening of a connection. If it fails with a ConnectError, the calls that wait
        for this connection raise the same error."""
        try:
            yield
        except httpx.ConnectError as error:
            if not any(connection.http2 is not None for connection in self._connections.all()):
                for exchange in tuple(self._waiting):
                    failed = httpx.ConnectError(str(error))
                    failed.__cause__ = error.__cause__
                    exchange.end(failed)
            raise
        finally:
            self._opening = None
            self.freed()
