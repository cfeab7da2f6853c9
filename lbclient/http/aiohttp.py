"""Bytes to one instance, by aiohttp: `transport="aiohttp"`.

What aiohttp does unasked is off: cookies, redirects, proxies, decompression, headers of its own,
and its sending again of what may be repeated. The first are httpx's, the last is the balancer's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any, Self, TypeVar

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from .aiohttp_pool import Connections, dialled
from .aiohttp_use import Use, current, once
from .flavour import httpx
from .options import WireOptions
from .request import UNSTREAMED, Place, raw_headers
from .senders import AsyncContent
from .uncut import uncut
from .upload import Upload

__all__ = ["AiohttpWire"]

_OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_LONGEST_LINE = 100 * 1024
"""Bytes of a header, as httpcore has it; aiohttp's own is 8 KiB."""
_AT_ONCE = 32 * 1024
"""Bytes of a body that asyncio's buffer takes without any wait."""
_URLS = 256

T = TypeVar("T")


class AiohttpWire:
    """Connections to one instance, for one asyncio event loop. Raises RuntimeError on trio."""

    def __init__(self, place: Place, options: WireOptions) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError('transport="aiohttp" runs on asyncio only, not on trio') from None
        self._place = place
        self._tls_name = place.tls_name or place.instance.host
        self._url = lru_cache(_URLS)(_urls(place))
        self._connections = Connections(place.instance, options)
        self._session = aiohttp.ClientSession(
            connector=self._connections,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_OWN_HEADERS,
            auto_decompress=False,
            middlewares=(once,),
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )

    async def send(
        self,
        request: httpx.Request,
        body: httpx.AsyncByteStream,
        extensions: Mapping[str, object],
    ) -> httpx.Response:
        """Send it, and return once the headers came. Raises httpx's transport errors."""
        self._connections.uses += 1
        use = Use(extensions, self._connections.used)
        before = current.set(use)
        try:
            answer = await _within(use.left(), lambda: self._ask(use, request, body))
            return _response(use, answer, at_once=bool(extensions.get(UNSTREAMED)))
        except BaseException as error:
            use.cut()
            use.end()
            failure = use.failed(error)
            if failure is error:
                raise
            try:
                raise failure from failure.__cause__
            finally:
                del failure  # its traceback holds this frame
        finally:
            current.reset(before)

    async def _ask(
        self, use: Use, request: httpx.Request, body: httpx.AsyncByteStream
    ) -> aiohttp.ClientResponse:
        headers = _headers(request, self._place)
        return await self._session.request(
            request.method,
            self._url(request.url.raw_path),
            headers=headers,
            data=_data(use, body, headers),
            allow_redirects=False,
            server_hostname=self._tls_name,
            timeout=_timeout(use.seconds("connect"), use.seconds("read")),
        )

    @property
    def quiet(self) -> bool:
        """True where none of its connections is in use."""
        return not self._connections.uses

    async def aclose(self) -> None:
        """Close every connection."""
        await uncut(self._session.close())

    def disown(self) -> None:
        """In a forked child: let go of the parent's sockets."""
        self._connections.disown()


class _Body(AsyncContent, AsyncIterator[bytes]):
    """The bytes of a response, errors in httpx's words."""

    def __init__(self, use: Use, answer: aiohttp.ClientResponse) -> None:
        self._use = use
        self._answer = answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        use, answer = self._use, self._answer
        try:
            chunk = await _within(use.patience(), answer.content.readany)
            if not chunk:
                _check_end(use, answer)
        except Exception as error:
            failure = use.failed(error)
            if failure is error:
                raise
            raise failure from failure.__cause__
        if not chunk:
            raise StopAsyncIteration
        if use.line is not None:
            use.line.ear.told(chunk)
        return chunk

    async def aclose(self) -> None:
        """Give the connection back, or close it if there is more to come."""
        if self._answer.connection is not None:
            self._use.cut()
        self._answer.close()
        self._use.end()


async def _within(seconds: float | None, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await it so long. Raises TimeoutError."""
    if seconds is None:
        return await work()
    async with asyncio.timeout(seconds):
        return await work()


def _response(use: Use, answer: aiohttp.ClientResponse, *, at_once: bool) -> httpx.Response:
    """Where all of the body has come, and the caller wants all of it, that is plain bytes."""
    line = use.line
    assert line is not None  # noqa: S101  # there is an answer
    line.ear.told(b"HTTP")
    line.ear.answers += 1
    stream: httpx.AsyncByteStream
    if at_once and answer.content.is_eof():
        stream = httpx.ByteStream(answer.content.read_nowait())
        _check_end(use, answer)
        use.end()
    else:
        stream = _Body(use, answer)
    old = answer.version == aiohttp.HttpVersion10
    return httpx.Response(
        answer.status,
        headers=answer.raw_headers,
        stream=stream,
        extensions={
            "http_version": b"HTTP/1.0" if old else b"HTTP/1.1",
            "reason_phrase": (answer.reason or "").encode("utf-8", "surrogateescape"),
            "network_stream": line,
        },
    )


def _check_end(use: Use, answer: aiohttp.ClientResponse) -> None:
    """A body that lasts until its connection ends is not whole where that was reset: aiohttp takes
    it for whole."""
    if (error := use.reset) is not None:
        headers = answer.headers
        if not ("Content-Length" in headers or "Transfer-Encoding" in headers):
            raise error


def _urls(place: Place) -> Callable[[bytes], URL]:
    """Makes the URL of a raw path, which stays as it is."""
    origin = {"scheme": place.scheme, "host": dialled(place.instance)}

    def url(raw_path: bytes) -> URL:
        path = raw_path.decode("ascii")  # its query too, or a bare "?" would be lost
        return URL.build(**origin, port=place.instance.port, path=path, encoded=True)

    return url


@lru_cache(_URLS)
def _timeout(connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=None, connect=connect, sock_read=read, ceil_threshold=math.inf
    )


def _headers(request: httpx.Request, place: Place) -> CIMultiDict[str]:
    """As they are; but of those that differ in case aiohttp would keep the last alone."""
    spelled: dict[bytes, str] = {}
    return CIMultiDict(
        [
            (spelled.setdefault(name.lower(), name.decode("ascii")), value.decode())
            for name, value in raw_headers(request, place)
        ]
    )


def _data(
    use: Use, body: httpx.AsyncByteStream, headers: CIMultiDict[str]
) -> bytes | Upload | None:
    """The body in aiohttp's terms, which sets `Transfer-Encoding` itself."""
    if "Expect" in headers:
        raise httpx.LocalProtocolError("aiohttp waits for 100 (Continue) without any timeout")
    if isinstance(body, httpx.ByteStream):
        content = b"".join(body)
        if len(content) <= _AT_ONCE:
            return content or None
    length = headers.get("Content-Length")
    if length is None:
        headers.popall("Transfer-Encoding", None)
    announced = None if length is None else int(length)
    use.upload = Upload(body, announced, use.seconds("write"), use.stall)
    return use.upload
