"""Response bodies. An instance counts as busy until the body of its response has been closed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any, Generic, TypeVar, cast

import anyio

from lbclient._internal.deadline import Expiry
from lbclient.core.attempt import Attempt
from lbclient.core.call_info import CallInfo, attach
from lbclient.errors import DeadlineExceeded

from ._compat import httpx
from .connections.response_body import AsyncContent, AsyncResponseBody, ResponseBody
from .connections.transport_pool import AsyncTransportPool, BaseTransportPool, TransportPool
from .errors import as_httpx
from .shortcuts import fill

__all__ = ["AsyncResponseStream", "ResponseStream", "adrain", "aread", "drain", "read"]

S = TypeVar("S", httpx.SyncByteStream, httpx.AsyncByteStream)


class _Held(Generic[S]):
    """A body that ends its attempt exactly once: when it has been read, breaks, or is closed.

    If the caller drops the response without closing it, the inner stream is left to `transports`,
    which closes it later: a finalizer must not do I/O, nor take the locks of a pool.
    """

    def __init__(
        self, stream: S, attempt: Attempt[httpx.Response], transports: BaseTransportPool[Any, S]
    ) -> None:
        self.stream: S = stream
        self.closed = False
        self.info: CallInfo | None = None
        self._transports: BaseTransportPool[Any, S] = transports
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

    def _broke(self, error: Exception) -> Exception:
        attempt = self._attempt
        attempt.finish(error)
        if attempt.deadline_expired:
            over = as_httpx(DeadlineExceeded("the deadline is over in the middle of the body"))
            over.__cause__ = error
            error = over
        if self.info is not None:
            attach(error, self.info.attempts, "streaming")
        error.add_note(
            f"lbclient: in the middle of the body from {attempt.instance}; not tried again: part "
            "of the response was already passed on"
        )
        return error


class ResponseStream(_Held[httpx.SyncByteStream], httpx.SyncByteStream):
    """The body of a response that is still to be read."""

    _transports: TransportPool

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self.stream:
                _check(self._attempt.expiry)
                yield chunk
        except Exception as error:
            failure = self._broke(error)
            if failure is error:
                raise
            raise failure from error

    def close(self) -> None:
        """Free the slot of the instance, then close the connection's stream."""
        self._attempt.finish()
        self.stream.close()
        self.closed = True
        if self._transports.leaving:
            self._transports.tidy()


class AsyncResponseStream(_Held[httpx.AsyncByteStream], httpx.AsyncByteStream):
    """The same for async responses."""

    _transports: AsyncTransportPool

    async def __aiter__(self) -> AsyncIterator[bytes]:
        expiry = _to_check(self.stream, self._attempt.expiry)
        try:
            async for chunk in self.stream:
                _check(expiry)
                yield chunk
        except Exception as error:
            failure = self._broke(error)
            if failure is error:
                raise
            raise failure from error

    async def aclose(self) -> None:
        """Free the slot of the instance first, since what follows can be cancelled."""
        self._attempt.finish()
        await self.stream.aclose()
        self.closed = True
        if self._transports.leaving:
            await self._transports.tidy()


def read(response: httpx.Response, expiry: Expiry | None) -> None:
    """Read the whole body now, and set it as the response's content."""
    stream = cast("httpx.SyncByteStream", response.stream)
    chunks = []
    try:
        for chunk in stream:
            _check(expiry)
            chunks.append(chunk)
    finally:
        if expiry is not None:
            expiry.settle_interrupt()
        stream.close()
    fill(response, b"".join(chunks))


async def aread(response: httpx.Response, expiry: Expiry | None) -> None:
    """The same for async responses."""
    stream = cast("httpx.AsyncByteStream", response.stream)
    if isinstance(stream, AsyncContent):
        try:
            content = await stream.whole()
        finally:
            await stream.aclose()
    else:
        content = await _whole(stream, expiry)
    fill(response, content)


async def _whole(stream: httpx.AsyncByteStream, expiry: Expiry | None) -> bytes:
    chunks = []
    try:
        async for chunk in stream:
            _check(expiry)
            chunks.append(chunk)
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()
    return b"".join(chunks)


def drain(response: httpx.Response) -> None:
    """Discard a response: read a little of it, so that its connection can be kept, then close
    it."""
    stream = getattr(response.stream, "stream", None)
    with contextlib.suppress(httpx.TransportError):
        try:
            if isinstance(stream, ResponseBody):
                stream.drain()
        finally:
            response.close()


async def adrain(response: httpx.Response) -> None:
    """The same for async responses."""
    stream = getattr(response.stream, "stream", None)
    with contextlib.suppress(httpx.TransportError):
        try:
            if isinstance(stream, AsyncResponseBody):
                await stream.drain()
        finally:
            await response.aclose()


def _to_check(stream: httpx.AsyncByteStream, expiry: Expiry | None) -> Expiry | None:
    """Return None for a body that enforces the deadline itself. A generator of httpcore that is
    left in the middle would be left to the garbage collector, about which trio warns."""
    return None if isinstance(stream, AsyncContent) else expiry


def _check(expiry: Expiry | None) -> None:
    """Raise if the attempt's time is up. A body that arrives in small pieces never exceeds the
    timeout of one read."""
    if expiry is not None and not expiry.left():
        expiry.noticed()
        raise httpx.ReadTimeout("the time of the attempt is up")
