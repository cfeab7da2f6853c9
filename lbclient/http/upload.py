"""A request's body for aiohttp, which has no write timeout: in pieces, each of them timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .flavour import httpx

__all__ = ["Upload"]

_PIECE = 32 * 1024
"""Bytes. A peer that takes in slowly is given a whole timeout for each."""


class Upload(AsyncIterator[bytes]):
    """A body on its way. `stalled` is called when a piece is not taken within `seconds` (None: it
    may take for ever); `length` bytes were announced, None for a chunked body.

    How long the caller's own body takes to come does not count.
    """

    def __init__(
        self,
        body: httpx.AsyncByteStream,
        length: int | None,
        seconds: float | None,
        stalled: Callable[[], object],
    ) -> None:
        self._body = body
        self._chunks: AsyncIterator[bytes] | None = None
        self._rest = memoryview(b"")
        self._left = length
        self._seconds = seconds
        self._stalled = stalled
        self._timer: asyncio.TimerHandle | None = None
        self.misfit: httpx.LocalProtocolError | None = None
        """Set where the body was not as long as announced."""

    async def __anext__(self) -> bytes:
        """The next piece. The body is begun with the first of them, and not before."""
        self.calm()
        await asyncio.sleep(0)  # aiohttp never pauses for a peer that takes in all at once
        if self._chunks is None:
            self._chunks = aiter(self._body)
        try:
            while not self._rest:
                self._rest = memoryview(await anext(self._chunks))
        except StopAsyncIteration:
            if self._left:
                raise self._unlike(f"{self._left} bytes less") from None
            raise
        piece, self._rest = bytes(self._rest[:_PIECE]), self._rest[_PIECE:]
        if self._left is not None:
            self._left -= len(piece)
            if self._left < 0:
                raise self._unlike("more bytes")
        if self._seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._stalled)
        return piece

    def calm(self) -> None:
        """Nothing is being written any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unlike(self, what: str) -> httpx.LocalProtocolError:
        self.misfit = httpx.LocalProtocolError(f"the body has {what} than its Content-Length says")
        return self.misfit
