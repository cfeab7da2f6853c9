"""Request bodies: which can be sent once more.

Bytes can. A file is rewound to where it stood. A generator never is replayed, unless sending it has
not even begun. What a body itself raises is the caller's own error, whatever its class.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

from .flavour import NAME, PUBLIC, httpx

__all__ = ["AsyncBody", "Body", "awatch", "is_callers_own", "replays", "watch"]

_CALLERS_OWN = "_lbclient_callers_own"


class _Replay:
    """Whether a body has been begun, and how to begin it again."""

    def __init__(self, stream: object) -> None:
        self._begun = False
        self._rewind = _rewinder(stream)

    def replayable(self) -> bool:
        """True while it can be sent from its beginning."""
        return not self._begun or self._rewind is not None

    def _begin(self) -> None:
        if self._begun:
            if self._rewind is None:  # httpcore itself sends again what HTTP/2's GOAWAY turned away
                raise httpx.RemoteProtocolError(
                    "the connection was closed, and the body of the request cannot be sent again"
                )
            self._rewind()
        self._begun = True


class Body(_Replay, httpx.SyncByteStream):
    """A body that is not plain bytes, watched."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        super().__init__(stream)
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        self._begin()
        try:
            yield from self._stream
        except Exception as error:
            _mark(error)
            raise

    def close(self) -> None:
        """Close what is inside."""
        self._stream.close()


class AsyncBody(_Replay, httpx.AsyncByteStream):
    """The same for an async body."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        super().__init__(stream)
        self._stream = stream
        self._chunks: _Chunks | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._begin()
        self._chunks = _Chunks(aiter(self._stream))
        return self._chunks

    async def leave(self) -> None:
        """End the iteration, of which there may be more: left to the garbage collector, a generator
        that awaits as it ends (httpx2's do) is what trio complains of."""
        if self._chunks is not None:
            await self._chunks.aclose()

    async def aclose(self) -> None:
        """Close what is inside."""
        await self._stream.aclose()


class _Chunks(AsyncIterator[bytes]):
    """No async generator, of which trio complains where it is not read to its end."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    async def aclose(self) -> None:
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except Exception as error:
            _mark(error)
            raise


def watch(request: httpx.Request) -> httpx.SyncByteStream:
    """The request's body; watched, unless it is plain bytes, which always replay."""
    stream = request.stream
    if isinstance(stream, httpx.ByteStream):
        return stream
    if not isinstance(stream, httpx.SyncByteStream):
        raise _unfit(request, f"an async request body needs {PUBLIC}.AsyncClient")
    return Body(stream)


def awatch(request: httpx.Request) -> httpx.AsyncByteStream:
    """The same for the async side."""
    stream = request.stream
    if isinstance(stream, httpx.ByteStream):
        return stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise _unfit(request, f"a sync request body needs {PUBLIC}.Client")
    return AsyncBody(stream)


def _unfit(request: object, wrong_side: str) -> Exception:
    """A body for the other side, or the request of another HTTP library."""
    if isinstance(request, httpx.Request):
        return RuntimeError(wrong_side)
    whose = type(request).__module__.partition(".")[0]
    return TypeError(
        f"this is a transport for clients of {NAME}, and the request is of {whose}; "
        "lbclient.Transport is for httpx, lbclient.httpx2.Transport for httpx2"
    )


def replays(stream: object) -> Callable[[], bool] | None:
    """Whether it can be sent once more, asked when that matters; None for always."""
    return stream.replayable if isinstance(stream, _Replay) else None


def is_callers_own(error: BaseException) -> bool:
    """True for an error that came out of the body of a request."""
    return hasattr(error, _CALLERS_OWN)


def _mark(error: Exception) -> None:
    setattr(error, _CALLERS_OWN, True)


def _rewinder(stream: object) -> Callable[[], object] | None:
    """How to rewind what httpx made of `content=file` or `files=`; None where that cannot be."""
    fields = getattr(stream, "fields", None)
    if fields is not None:  # multipart, which httpx itself renders from the start each time
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
