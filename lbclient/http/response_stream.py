"""Response bodies that are read later. The attempt counts as in flight until the body has been
closed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from types import AsyncGeneratorType
from typing import Any, Generic, TypeVar

import anyio

from lbclient._internal.blocking import Blocking, run_blocking
from lbclient._internal.deadline import Expiry
from lbclient.core.attempt import Attempt
from lbclient.core.call_info import CallInfo, attach
from lbclient.errors import DeadlineExceeded

from ._compat import httpx
from .connections.response_body import ConnectionBody
from .connections.transport_pool import AsyncTransportPool, BaseTransportPool, TransportPool
from .errors import as_httpx
from .shortcuts import fill

__all__ = ["AsyncResponseStream", "ResponseStream", "begun", "close", "drain", "read"]

S = TypeVar("S", httpx.SyncByteStream, httpx.AsyncByteStream)


class _Held(Generic[S]):
    """A body that ends its attempt exactly once: when the body has been read to its end, fails, or
    is closed.

    If the response is garbage collected before it is closed, `transports` closes the inner stream
    later: a finalizer must not do I/O or take the locks of a pool.
    """

    def __init__(
        self,
        stream: S,
        attempt: Attempt[httpx.Response],
        transports: BaseTransportPool[S],
        chunks: Begun | None,
    ) -> None:
        self.stream: S = stream
        self.chunks: Any = chunks
        """The iterator over the body, once reading has begun."""
        self.closed = False
        self.info: CallInfo | None = None
        self._transports: BaseTransportPool[S] = transports
        self._attempt = attempt
        attempt.hold(self)

    def __del__(self) -> None:
        attempt = getattr(self, "_attempt", None)
        if attempt is None or self.closed:
            return
        held = attempt.open
        self._transports.lose(self.stream)
        if held:
            warnings.warn(
                f"a response of {attempt.instance} was never closed; "
                "use `with client.stream(...)` or call response.close()",
                ResourceWarning,
                stacklevel=2,
            )

    def _broke(self, error: Exception) -> None:
        """End the attempt with an error of the body. Raises DeadlineExceeded if the deadline has
        caused the error."""
        attempt = self._attempt
        attempt.finish(error)
        failure = error
        if attempt.deadline_expired:
            failure = as_httpx(DeadlineExceeded("the deadline is over in the middle of the body"))
        if self.info is not None:
            attach(failure, self.info.attempts, "streaming")
        failure.add_note(
            f"lbclient: in the middle of the body from {attempt.instance}; not tried again: part "
            "of the response was already passed on"
        )
        if failure is not error:
            raise failure from error


class ResponseStream(_Held[httpx.SyncByteStream], httpx.SyncByteStream):
    """The body of a response that is still to be read."""

    _transports: TransportPool

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self.stream if self.chunks is None else self.chunks:
                _check(self._attempt.expiry)
                yield chunk
        except Exception as error:
            self._broke(error)
            raise

    def close(self) -> None:
        """Give back the slot of the instance, then close the stream of the connection."""
        self._attempt.finish()
        self.stream.close()
        self.closed = True
        if self._transports.leaving:
            run_blocking(self._transports.tidy)


class AsyncResponseStream(_Held[httpx.AsyncByteStream], httpx.AsyncByteStream):
    """A `ResponseStream` for async responses."""

    chunks: Any
    _transports: AsyncTransportPool

    async def __aiter__(self) -> AsyncIterator[bytes]:
        expiry = _to_check(self.stream, self._attempt.expiry)
        if self.chunks is None:
            self.chunks = aiter(self.stream)
        try:
            async for chunk in self.chunks:
                _check(expiry)
                yield chunk
        except Exception as error:
            self._broke(error)
            raise
        if self.closed:  # closed while it was read, which has ended `chunks`
            raise httpx.StreamClosed

    async def aclose(self) -> None:
        """Close the body. The slot of the instance is given back first, since the rest of this
        method can be cancelled."""
        self._attempt.finish()
        try:
            await _leave(self.chunks)
        finally:
            await self.stream.aclose()
        self.closed = True
        if self._transports.leaving:
            await self._transports.tidy()


class Begun(AsyncIterator[bytes], Iterator[bytes]):
    """The chunks of a body whose first chunk has been read, for threads and for event loops."""

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first = first
        self.rest = rest

    def __next__(self) -> bytes:
        first, self._first = self._first, b""
        return first or next(self.rest)

    async def __anext__(self) -> bytes:
        first, self._first = self._first, b""
        return first or await anext(self.rest)


async def begun(stream: Any, expiry: Expiry | None, *, looped: bool) -> Begun:
    """Read the body up to its first byte, or to its end if it is empty. If this fails, the body is
    closed."""
    chunks = aiter(stream) if looped else iter(stream)
    first = b""
    try:
        async for first in chunks if looped else Blocking(chunks):
            _check(expiry)
            if first:
                break
    except BaseException:
        if expiry is not None:
            expiry.settle_interrupt()
        await _close(stream, chunks, looped=looped)
        raise
    return Begun(first, chunks)


async def read(
    response: httpx.Response,
    expiry: Expiry | None,
    answered: Callable[[], None] | None,
    *,
    looped: bool,
) -> None:
    """Read the whole body now, and set it as the response's content. `answered` is called when the
    first byte of the body has arrived. `looped` is True in an event loop, and False on a thread."""
    stream: Any = response.stream
    chunks: Any = None
    try:
        if answered is None and isinstance(stream, ConnectionBody):
            content = await stream.whole()
        else:
            parts: list[bytes] = []
            chunks = aiter(stream if looped else Blocking(stream))
            async for part in chunks:
                _check(expiry)
                if answered is not None and part and not parts:
                    answered()
                parts.append(part)
            content = b"".join(parts)
    finally:
        if expiry is not None:
            expiry.settle_interrupt()
        await _close(stream, chunks, looped=looped)
    fill(response, content)


async def drain(response: httpx.Response, *, looped: bool) -> None:
    """Close a response that is not needed. A little of the rest is read first, so that the
    connection can be reused."""
    stream = getattr(response.stream, "stream", None)
    with contextlib.suppress(httpx.TransportError):
        try:
            if isinstance(stream, ConnectionBody):
                await stream.drain()
        finally:
            await close(response, looped=looped)


async def close(response: httpx.Response, *, looped: bool) -> None:
    """Close a response."""
    if looped:
        await response.aclose()
    else:
        response.close()


async def _close(stream: Any, chunks: object, *, looped: bool) -> None:
    """Close a body and the iterator `chunks` over it, even if the task is cancelled meanwhile."""
    if isinstance(stream, ConnectionBody):
        await stream.leave()
    elif looped:
        with anyio.CancelScope(shield=True):
            try:
                await _leave(chunks)
            finally:
                await stream.aclose()
    else:
        stream.close()


async def _leave(chunks: object) -> None:
    """Close the iterator over a body if it is a generator. Otherwise the garbage collector would
    close a generator that was not read to its end, and trio would print a warning."""
    if isinstance(chunks, Begun):
        chunks = chunks.rest
    if isinstance(chunks, AsyncGeneratorType) and not chunks.ag_running:
        await chunks.aclose()


def _to_check(stream: httpx.AsyncByteStream, expiry: Expiry | None) -> Expiry | None:
    """Return the expiry, which must be checked while this body is read. Return None for a
    `ConnectionBody`, which checks the expiry itself."""
    return None if isinstance(stream, ConnectionBody) else expiry


def _check(expiry: Expiry | None) -> None:
    """Raise a timeout if the attempt's time is up. (A body that arrives in small pieces never
    exceeds the timeout of a single read.)"""
    if expiry is not None and not expiry.left():
        expiry.noticed()
        raise httpx.ReadTimeout("the time of the attempt is up")
