"""Request bodies, and whether they can be sent again: for a retry, a redirect or an authentication
challenge.

Bytes can be sent again. A file is rewound to the position that it had before it was first sent. A
generator can be sent only once. An exception that a body raises is treated as the caller's own
error, whatever its class: no instance is charged.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from ._compat import NAME, PUBLIC, httpx

__all__ = ["AsyncBody", "Body", "awatch", "is_callers_own", "mark_callers_own", "replays", "watch"]

E = TypeVar("E", bound=Exception)

_CALLERS_OWN = "_lbclient_callers_own"
_SOURCE = "_lbclient_source"


class _Source:
    """The state of the body of a request, which lives as long as the stream of the body.

    httpx uses the same stream for the request that follows a redirect or an authentication
    challenge, so this object is stored as an attribute of the stream.
    """

    __slots__ = ("async_file", "begun", "generator", "once", "rewind", "sent", "start")

    def __init__(self, stream: object) -> None:
        source = getattr(stream, "_stream", stream)
        self.begun = False
        self.sent = 0
        """The number of bytes that the longest iteration over the body has yielded so far."""
        self.rewind = _rewinder(stream)
        self.async_file: Any = source if _is_async_file(source) else None
        self.generator = source if isinstance(source, AsyncGenerator) else None
        self.start: int | None = None
        """The position of an async file when it was first read."""
        self.once = self.rewind is None and self.async_file is None and _runs_out(stream, source)
        """True if the source can be read only once."""

    def check(self, sent: int) -> None:
        """Raise httpx.StreamConsumed if this iteration has yielded fewer bytes than an earlier one.
        Then the iterable reads from a source that can be read only once."""
        if sent < self.sent:
            error = httpx.StreamConsumed()
            mark_callers_own(error)
            raise error

    async def locate(self) -> None:
        """Rewind an async file, or store its position if it is read for the first time."""
        file = self.async_file
        if self.start is not None:
            await file.seek(self.start)
            return
        try:
            seekable = file.seekable()  # in aiofiles, a coroutine function
            if (await seekable) if isinstance(seekable, Awaitable) else seekable:
                self.start = await file.tell()
        except (OSError, ValueError):
            pass
        if self.start is None:
            self.once, self.async_file = True, None


def _source_of(stream: object) -> _Source:
    found = getattr(stream, _SOURCE, None)
    if not isinstance(found, _Source):
        found = _Source(stream)
        setattr(stream, _SOURCE, found)
    return found


class _Replay:
    """The state of a request's body: whether it has begun to be sent, and how it is sent again from
    its beginning.

    Raises httpx.StreamConsumed if an earlier request has used up the body.
    """

    def __init__(self, stream: object) -> None:
        self._begun = False
        self._source = source = _source_of(stream)
        if source.begun and source.once:
            raise httpx.StreamConsumed

    def replayable(self) -> bool:
        """Return True if the body can (still or again) be sent from its beginning."""
        return not self._begun or self._source.rewind is not None

    def _begin(self) -> None:
        source = self._source
        if self._begun and source.rewind is None:
            # An HTTP/2 connection may have ended before any part of the request was sent.
            raise httpx.RemoteProtocolError(
                "the connection was closed, and the body of the request cannot be sent again"
            )
        if source.begun and source.rewind is not None:
            source.rewind()
        self._begun = source.begun = True


class Body(_Replay, httpx.SyncByteStream):
    """A body that is not plain bytes. It records whether it can be sent again."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        super().__init__(stream)
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        self._begin()
        source, sent = self._source, 0
        try:
            for chunk in self._stream:
                sent += len(chunk)
                yield chunk
            source.check(sent)
        except Exception as error:
            mark_callers_own(error)
            raise
        finally:
            source.sent = max(source.sent, sent)

    def close(self) -> None:
        """Close the wrapped stream."""
        self._stream.close()


class AsyncBody(_Replay, httpx.AsyncByteStream):
    """A `Body` for async bodies."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        super().__init__(stream)
        self._stream = stream
        self._chunks: _Chunks | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._begin()
        self._chunks = _Chunks(aiter(self._stream), self._source)
        return self._chunks

    async def leave(self) -> None:
        """End the iteration early. A generator that awaits while it ends (as httpx2's generators
        do) must not be left to the garbage collector, since trio would print a warning. A generator
        of the caller is closed too: it cannot be sent again, and may keep something open, such as a
        file."""
        if self._chunks is not None:
            await self._chunks.aclose()
            if (generator := self._source.generator) is not None:
                await generator.aclose()

    async def aclose(self) -> None:
        """Close the wrapped stream."""
        await self._stream.aclose()


class _Chunks(AsyncIterator[bytes]):
    """The iteration of an async body. It is not a generator, since trio warns about a generator
    that is not read to its end."""

    def __init__(self, chunks: AsyncIterator[bytes], source: _Source) -> None:
        self._chunks = chunks
        self._source = source
        self._located = source.async_file is None
        self._sent = 0

    async def aclose(self) -> None:
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    async def __anext__(self) -> bytes:
        source = self._source
        try:
            if not self._located:
                self._located = True
                await source.locate()
            chunk = await anext(self._chunks)
            self._sent = sent = self._sent + len(chunk)
            if sent > source.sent:  # noqa: PLR1730  # `max` takes as long as all the rest here
                source.sent = sent
        except StopAsyncIteration:
            source.check(self._sent)
            raise
        except Exception as error:
            mark_callers_own(error)
            raise
        return chunk


Replayable = Callable[[], bool] | None
"""A function that returns whether a body can be sent again. None means that it always can."""


def watch(request: httpx.Request) -> tuple[httpx.SyncByteStream, Replayable]:
    """Return the request's body wrapped in a `Body`, and the function that says whether it can be
    sent again. `Transport` does not call this for plain bytes, which can always be sent again."""
    if not isinstance(stream := request.stream, httpx.SyncByteStream):
        raise _unfit(request, f"an async request body needs {PUBLIC}.AsyncClient")
    return (body := Body(stream)), body.replayable


def awatch(request: httpx.Request) -> tuple[httpx.AsyncByteStream, Replayable]:
    """Do the same as `watch`, for async bodies."""
    if not isinstance(stream := request.stream, httpx.AsyncByteStream):
        raise _unfit(request, f"a sync request body needs {PUBLIC}.Client")
    return (body := AsyncBody(stream)), body.replayable


def _unfit(request: object, wrong_side: str) -> Exception:
    """Return the error for a body of the other kind (sync or async), or for a request of another
    HTTP library."""
    if isinstance(request, httpx.Request):
        return RuntimeError(wrong_side)
    whose = type(request).__module__.partition(".")[0]
    return TypeError(
        f"this transport is for clients of {NAME}, but the request is from {whose}; "
        "lbclient.Transport is for httpx, lbclient.httpx2.Transport for httpx2"
    )


def replays(stream: object) -> Replayable:
    """Return a function that says whether this request body can be sent again."""
    return stream.replayable if isinstance(stream, _Replay) else None


def is_callers_own(error: BaseException) -> bool:
    """Return True for an exception that was raised by the body of a request."""
    return hasattr(error, _CALLERS_OWN)


def mark_callers_own(error: E) -> E:
    """Mark an exception as the caller's own error, and return it. No instance is charged for such
    an error."""
    setattr(error, _CALLERS_OWN, True)
    return error


def _rewinder(stream: object) -> Callable[[], object] | None:
    """Return a function that rewinds the stream that httpx has made from `content=file` or
    `files=`. Returns None if the stream cannot be rewound."""
    fields = getattr(stream, "fields", None)
    if fields is not None:  # multipart: httpx renders it from the start each time
        files = (getattr(field, "file", b"") for field in fields)
        whole = all(isinstance(file, str | bytes) or _seekable(file) for file in files)
        return (lambda: None) if whole else None
    source = getattr(stream, "_stream", None)
    if isinstance(source, list | tuple):
        return lambda: None
    return _seek_back(source) if _seekable(source) else None


def _seekable(file: Any) -> bool:
    ways = [getattr(file, name, None) for name in ("seekable", "tell", "seek")]
    if not all(ways) or any(map(inspect.iscoroutinefunction, ways)):
        return False
    return bool(file.seekable())


def _seek_back(file: Any) -> Callable[[], object]:
    start = file.tell()
    return lambda: file.seek(start)


def _is_async_file(source: Any) -> bool:
    ways = [getattr(source, name, None) for name in ("tell", "seek")]
    return hasattr(source, "seekable") and all(map(inspect.iscoroutinefunction, ways))


def _runs_out(stream: object, source: object) -> bool:
    """Return True for iterators and for file-like objects, which can be read only once. Other
    iterables can be iterated again."""
    names = ("__next__", "__anext__", "read", "aread")
    return hasattr(stream, "fields") or any(hasattr(source, name) for name in names)
