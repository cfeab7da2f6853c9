"""httpcore's pool for event loops, of whose connections none gets lost.

A cancellation that comes while httpcore cleans up after an error, or between connecting and
sending, leaves a connection that is neither idle nor closed. httpcore never again looks at it, and
its socket stays open. So whoever is the last to leave a connection closes it if that is its state.
"""

from __future__ import annotations

from typing import Any

import anyio
import httpcore

from lbclient.http.uncut import uncut

__all__ = ["Connections", "Use"]

_CONNECTION = "lbclient.connection"


class Connections(httpcore.AsyncConnectionPool):
    """A pool without a cap; `options` are those of `httpcore.AsyncHTTPConnection`."""

    def __init__(self, most_idle: int | None, **options: Any) -> None:
        super().__init__(
            max_connections=None,
            max_keepalive_connections=most_idle,
            keepalive_expiry=options["keepalive_expiry"],
        )
        self._made_with = options

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        """A new one, for httpcore."""
        return _Connection(origin, **self._made_with)


class _Connection(httpcore.AsyncHTTPConnection):
    """Counts its users, also those who came while another had it."""

    users = 0

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; whoever gets the answer leaves once that is closed."""
        self.users += 1
        try:
            answer = await super().handle_async_request(request)
        except BaseException:
            await uncut(self.left())
            raise
        answer.extensions[_CONNECTION] = self
        return answer

    async def left(self) -> None:
        """One user is done."""
        self.users -= 1
        if not (self.users or self.is_idle() or self.is_closed()):
            with anyio.CancelScope(shield=True):
                await self.aclose()


class Use:
    """The use of a connection, from the headers of an answer on."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer
        self._connection: _Connection | None = answer.extensions.pop(_CONNECTION, None)

    async def end(self) -> None:
        """Close the answer, and leave. More than once does no harm."""
        connection, self._connection = self._connection, None
        try:
            await self._answer.aclose()
        finally:
            if connection is not None:
                await connection.left()
