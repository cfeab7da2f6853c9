"""Request bodies: which can be sent once more.

Bytes can. A file is rewound to where it stood. A generator never is replayed, unless sending it has
not even begun.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

__all__ = ["AsyncBody", "Body", "awatch", "replays", "watch"]


class _Replay:
    """Whether a body has been begun, and how to begin it again."""

    def __init__(self, stream: object) -> None:
        self._begun = False
        self._rewind = _rewinder(stream)

    def replayable(self) -> bool:
        """True while it can be sent from its beginning."""
        return not self._begun or self._rewind is not None

    def _begin(self) -> None:
        if self._begun and self._rewind is not None:
            self._rewind()
        self._begun = True


class Body(_Replay, httpx.SyncByteStream):
    """A body that is not plain bytes, watched."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        super().__init__(stream)
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        self._begin()
        yield from self._stream

    def close(self) -> None:
        """Close what is inside."""
        self._stream.close()


class AsyncBody(_Replay, httpx.AsyncByteStream):
    """The same for an async body."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        super().__init__(stream)
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._begin()
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        """Close what is inside."""
        await self._stream.aclose()


def watch(request: httpx.Request) -> httpx.SyncByteStream:
    """The request's body; watched, unless it is plain bytes, which always replay."""
    stream = request.stream
    if isinstance(stream, httpx.ByteStream):
        return stream
    if not isinstance(stream, httpx.SyncByteStream):
        raise RuntimeError("an async request body needs lbclient.AsyncClient")
    return Body(stream)


def awatch(request: httpx.Request) -> httpx.AsyncByteStream:
    """The same for the async side."""
    stream = request.stream
    if isinstance(stream, httpx.ByteStream):
        return stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise RuntimeError("a sync request body needs lbclient.Client")
    return AsyncBody(stream)


def replays(stream: object) -> Callable[[], bool] | None:
    """Whether it can be sent once more, asked when that matters; None for always."""
    return stream.replayable if isinstance(stream, _Replay) else None


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


def _seekable(file: object) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable and seekable())


def _seek_back(file: Any) -> Callable[[], object]:
    start = file.tell()
    return lambda: file.seek(start)
