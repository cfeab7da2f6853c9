"""The connections to one instance: httpcore's, under a pool of our own.

httpcore's pool looks at every connection for every request, twice, and asks the kernel of each idle
one whether it still stands. With sixty in use that takes longer than the requests. Its cap loses
places under cancellation (encode/httpcore#1093). What is left to a pool without a cap is a stack.

Whoever is the last to leave a connection puts it back, or closes it: a cancellation that comes
while httpcore cleans up after an error, or between connecting and sending, leaves one that is
neither idle nor closed, and whose socket would stay open.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any, Generic, TypeVar

import anyio

from lbclient.interruption import is_interruption

from .flavour import httpcore
from .idle import Idle, Shelf
from .spoilt import confused, spoils, turned_away
from .uncut import uncut

__all__ = ["AsyncConnections", "AsyncUse", "Connections", "Use"]

_INTERRUPTED = RuntimeError("the call was interrupted")
"""Spoils a connection."""

C = TypeVar("C", httpcore.HTTPConnection, httpcore.AsyncHTTPConnection)


class _Pool(Generic[C]):
    """`options` are those of httpcore's connections. One that speaks HTTP/2 has several users."""

    def __init__(self, origin: httpcore.Origin, idle: Idle[C], options: dict[str, Any]) -> None:
        self._origin = origin
        self._idle: Idle[C] = idle
        self._options = options
        self._closed = False
        self._shelf: Shelf[C] = deque()
        self._users: dict[C, int] = {}
        self._spoilt: set[C] = set()
        """Those in use that take no other request."""

    @property
    def connections(self) -> list[C]:
        """Those in use, and the idle ones."""
        with self._idle.lock:
            return list(self._users) + list(self._shelf)

    @property
    def quiet(self) -> bool:
        """True where none is in use."""
        return not self._users

    def _shared(self) -> C | None:
        """One in use that bears another request: HTTP/2."""
        if not self._options["http2"]:
            return None
        with self._idle.lock:
            for one in self._users:
                if one not in self._spoilt and one.is_available() and not one.is_closed():
                    self._users[one] += 1
                    return one
        return None

    def _used(self, connection: C) -> C:
        with self._idle.lock:
            self._users[connection] = 1
        return connection

    def _left(self, connection: C, error: BaseException | None, use: Use | None = None) -> list[C]:
        """One user is done, or has failed. Returns what to close."""
        spoilt = error is not None and spoils(error)
        with self._idle.lock:
            if use is not None:
                if use.connection is None:
                    return []
                use.connection = None
            self._users[connection] -= 1
            if spoilt:
                self._spoilt.add(connection)
            if self._users[connection]:
                return []
            del self._users[connection]
            spoilt = connection in self._spoilt
            self._spoilt.discard(connection)
        if connection.is_closed():
            return []
        if self._closed or spoilt or not connection.is_idle():
            return [connection]
        surplus = self._idle.put(connection, self._shelf)
        # Who closes has looked for this one in vain where that was between the last two lines.
        return surplus + self._idle.clear(self._shelf) if self._closed else surplus

    def _all(self) -> list[C]:
        self._closed = True
        return self._idle.clear(self._shelf) + self.connections


class Connections(_Pool[httpcore.HTTPConnection]):
    """For threads."""

    def __init__(
        self,
        origin: httpcore.Origin,
        idle: Idle[httpcore.HTTPConnection],
        options: dict[str, Any],
    ) -> None:
        super().__init__(origin, idle, options)
        self.lost: deque[Use] = deque()
        """Those that an exception from outside has interrupted."""

    def send(self, request: httpcore.Request) -> Use:
        """Send it, and return once the headers came."""
        if self.lost:
            self._leave_lost()
        while True:
            use = Use(self)
            connection = self._ready(use)
            try:
                use.answer = connection.handle_request(request)
            except BaseException as error:
                self.leave(use, error)
                if confused(error):
                    raise httpcore.RemoteProtocolError(error) from error
                if not turned_away(error):
                    raise
            else:
                return use

    def _leave_lost(self) -> None:
        """Each stays in the queue until it has left; several threads may take the same one."""
        while self.lost:
            try:
                use = self.lost[0]
            except IndexError:
                return
            self.leave(use, _INTERRUPTED)
            with contextlib.suppress(ValueError):
                self.lost.remove(use)

    def _ready(self, use: Use) -> httpcore.HTTPConnection:
        """A connection, which `use` has from the moment at which it counts as in use."""
        while (one := self._idle.take(self._shelf)) is not None:
            if one.is_available() and not one.has_expired():
                break
            one.close()
        if one is None and (shared := self._shared()) is not None:
            use.connection = shared
            return shared
        one = one or httpcore.HTTPConnection(self._origin, **self._options)
        with self._idle.lock:
            use.connection = one
            self._users[one] = 1
        return one

    def leave(self, use: Use, error: BaseException | None = None) -> None:
        """It is done, or has failed. More than once does no harm."""
        if (connection := use.connection) is not None:
            for one in self._left(connection, error, use):
                one.close()

    def retire(self) -> None:
        """Close what is idle, and the rest as it is left."""
        self._closed = True
        for one in self._idle.clear(self._shelf):
            one.close()

    def close(self) -> None:
        """Close every connection, those in use too."""
        for one in self._all():
            one.close()


class AsyncConnections(_Pool[httpcore.AsyncHTTPConnection]):
    """For one event loop."""

    async def send(self, request: httpcore.Request) -> AsyncUse:
        """Send it, and return once the headers came."""
        while True:
            connection = await self._ready()
            try:
                answer = await connection.handle_async_request(request)
            except BaseException as error:
                await uncut(self.leave(connection, error))
                if confused(error):
                    raise httpcore.RemoteProtocolError(error) from error
                if not turned_away(error):
                    raise
            else:
                return AsyncUse(answer, connection, self)

    async def _ready(self) -> httpcore.AsyncHTTPConnection:
        while (one := self._idle.take(self._shelf)) is not None:
            if one.is_available() and not one.has_expired():
                return self._used(one)
            await uncut(_shielded(one))
        made = self._shared()
        return made or self._used(httpcore.AsyncHTTPConnection(self._origin, **self._options))

    async def leave(
        self, connection: httpcore.AsyncHTTPConnection, error: BaseException | None = None
    ) -> None:
        """One user of it is done, or has failed."""
        for one in self._left(connection, error):
            await _shielded(one)

    async def aclose(self) -> None:
        """Close every connection, those in use too."""
        for one in self._all():
            await _shielded(one)


async def _shielded(connection: httpcore.AsyncHTTPConnection) -> None:
    with anyio.CancelScope(shield=True):
        await connection.aclose()


class Use:
    """The use of a connection, from before it is taken to the end of the answer."""

    answer: httpcore.Response

    def __init__(self, pool: Connections) -> None:
        self.connection: httpcore.HTTPConnection | None = None
        self._pool = pool

    def __del__(self) -> None:
        if self.connection is not None:  # the call was interrupted
            self._pool.lost.append(self)

    def end(self) -> None:
        """Close the answer, and leave. More than once does no harm."""
        if self.connection is None:
            return
        try:
            self.answer.close()
        except BaseException as error:
            self._pool.leave(self, error)
            if not spoils(error) or is_interruption(error):
                raise  # else that is closed, and the answer is none the worse
        else:
            self._pool.leave(self)


class AsyncUse:
    """The same for event loops."""

    def __init__(
        self,
        answer: httpcore.Response,
        connection: httpcore.AsyncHTTPConnection,
        pool: AsyncConnections,
    ) -> None:
        self.answer = answer
        self._connection: httpcore.AsyncHTTPConnection | None = connection
        self._pool = pool

    async def end(self) -> None:
        """Close the answer, and leave. More than once does no harm."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            with anyio.CancelScope(shield=True):
                await self.answer.aclose()
        except BaseException as error:
            await self._pool.leave(connection, error)
            if not spoils(error) or is_interruption(error):  # as above
                raise
        else:
            await self._pool.leave(connection)
