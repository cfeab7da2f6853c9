"""What a wire can do: all that goes to one instance goes by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .flavour import httpx

__all__ = ["AsyncContent", "AsyncSender", "Kept", "Sender"]


class AsyncContent(httpx.AsyncByteStream):
    """The body of an answer, on a wire of ours: each of its reads ends with the attempt, and
    nothing cuts its closing short."""

    async def whole(self) -> bytes:
        """All of it."""
        return b"".join([chunk async for chunk in self])


class Kept(Protocol):
    """What both kinds of wire can say and do."""

    @property
    def quiet(self) -> bool:
        """True where none of its connections is in use."""
        ...

    def retire(self) -> None:
        """Close what is idle, and the rest as it is left. It never blocks."""
        ...

    def disown(self) -> None:
        """In the child: let go of the parent's sockets, without a word to the other end."""
        ...


class Sender(Kept, Protocol):
    """A wire for threads."""

    def send(
        self, request: httpx.Request, body: httpx.SyncByteStream, extensions: Mapping[str, object]
    ) -> httpx.Response:
        """Send it, and return once the headers came."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class AsyncSender(Kept, Protocol):
    """A wire for one event loop."""

    async def send(
        self, request: httpx.Request, body: httpx.AsyncByteStream, extensions: Mapping[str, object]
    ) -> httpx.Response:
        """Send it, and return once the headers came."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...
