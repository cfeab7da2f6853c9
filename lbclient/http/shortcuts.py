"""Shortcuts through httpx. This is the only file that uses httpx's private attributes.

In a plain call, httpx spends most of its time in layers that have nothing to do: authentication,
redirects, cookies, event hooks, and reading and decoding a body that has already arrived.
`DirectClient` and `DirectAsyncClient` skip these layers. `response_of`, `fill`, `headers_of`,
`copied` and `request_like` build httpx's objects from data that is already parsed.

The shortcuts depend on httpx's implementation, so they are verified at import: the same objects and
calls are made with httpx and with the shortcuts, and compared. They may differ with another version
of httpx, or after a library has patched httpx. Then `INTACT` is False, a message is logged, and the
public API of httpx is used instead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from inspect import signature
from operator import attrgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from ._compat import httpx

if TYPE_CHECKING:
    from httpx._client import UseClientDefault
    from httpx._types import AuthTypes

__all__ = [
    "INTACT",
    "Content",
    "DirectAsyncClient",
    "DirectClient",
    "Fields",
    "content_of",
    "copied",
    "fields_of",
    "fill",
    "headers_of",
    "origin_of",
    "request_like",
    "response_fields",
    "response_of",
    "settings_of",
]

INTACT = True
"""False if httpx does not work as the shortcuts expect."""

Pairs = Iterable[tuple[bytes, bytes]]
Fields = list[tuple[bytes, bytes, bytes]]
"""Headers as `httpx.Headers` stores them: the name, the name in lower case, and the value."""

_log = logging.getLogger(__name__)
_httpx_log = logging.getLogger(httpx.__name__)
_DEFAULT = httpx.USE_CLIENT_DEFAULT
_SET_COOKIE = frozenset({b"set-cookie", b"set-cookie2"})
_LAYERS = (
    "_set_timeout",
    "_build_request_auth",
    "_send_handling_auth",
    "_send_handling_redirects",
    "_send_single_request",
    "_transport_for_url",
)
"""The methods of httpx's clients that `DirectClient.send` skips."""

_layers_of = attrgetter(*_LAYERS)
_settings_of = attrgetter("base_url", "headers", "params", "timeout")
_SETTINGS = _settings_of(httpx.Client)
"""The properties that both of httpx's clients inherit from their common base."""
_theirs: Any = getattr(httpx, "_client", None)
_OPENED = getattr(getattr(_theirs, "ClientState", None), "OPENED", None)
_SyncStream = getattr(_theirs, "BoundSyncStream", object)
_AsyncStream = getattr(_theirs, "BoundAsyncStream", object)


def _methods_of(kind: type[httpx.Client | httpx.AsyncClient]) -> tuple[Any, tuple[Any, ...]]:
    return kind.send, tuple(getattr(kind, name, None) for name in _LAYERS)


_SYNC = *_methods_of(httpx.Client), httpx.SyncByteStream
_ASYNC = *_methods_of(httpx.AsyncClient), httpx.AsyncByteStream
"""For each client: the methods that the shortcuts expect, and the type of request bodies that it
sends."""
_TELLS_RESPONSE = "response" in signature(_SyncStream).parameters
"""True if the stream sets the attribute `elapsed` of its response. In httpx2, the response reads it
from its stream."""
_LENIENT = True
"""True if httpx accepts an invalid `Location` as long as the redirect is not followed."""


class Content(httpx.ByteStream):
    """A body that was read before its response was returned.

    The transport sets the attribute `elapsed` of the response. httpx would set it when the body is
    read or closed, but this body is not read or closed again.
    """


def content_of(stream: httpx.ByteStream) -> bytes:
    """Return the bytes of a body that is already complete."""
    if INTACT and type(stream) is httpx.ByteStream:
        return stream._stream
    return b"".join(stream)


def headers_of(pairs: Pairs) -> httpx.Headers:
    """Build `httpx.Headers` from names and values that are bytes."""
    if not INTACT:
        return httpx.Headers(list(pairs))
    made = httpx.Headers.__new__(httpx.Headers)
    made._list = [(name, name.lower(), value) for name, value in pairs]  # saves a function call
    made._encoding = None
    return made


def _fields(pairs: Pairs) -> Fields:
    return [(name, name.lower(), value) for name, value in pairs]


def fields_of(request: httpx.Request) -> Fields:
    """Return a request's headers. The list belongs to the request and may change, so copy it to
    keep it."""
    return request.headers._list if INTACT else _fields(request.headers.raw)


def copied(request: httpx.Request) -> httpx.Request:
    """Copy a request. Attributes that are set on the copy are not set on the original."""
    if not INTACT:
        made = httpx.Request(
            request.method,
            request.url,
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        if isinstance(made.stream, httpx.ByteStream):
            made.read()
        return made
    made = httpx.Request.__new__(httpx.Request)
    made.__dict__.update(request.__dict__)  # copy.copy would lose the body
    return made


def request_like(pattern: httpx.Request, url: httpx.URL, timeout: httpx.Timeout) -> httpx.Request:
    """Copy a request, with headers of its own, for another URL and with another timeout."""
    if not INTACT:
        made = copied(pattern)
        made.headers = pattern.headers.copy()
        made.url, made.extensions = url, {"timeout": timeout.as_dict()}
        return made
    made = httpx.Request.__new__(httpx.Request)
    made.__dict__.update(pattern.__dict__)
    made.url, made.extensions = url, {"timeout": vars(timeout).copy()}
    made.headers = headers = httpx.Headers.__new__(httpx.Headers)
    kept = pattern.headers
    headers._list, headers._encoding = kept._list.copy(), kept._encoding
    return made


def settings_of(
    client: httpx.Client | httpx.AsyncClient,
) -> tuple[httpx.URL, Fields, httpx.Timeout, bool]:
    """Return a client's base URL, headers, timeout, and whether it adds parameters or cookies.

    The list of headers belongs to the client and may change, so copy it to keep it.
    """
    if not INTACT or _settings_of(type(client)) != _SETTINGS:
        adds = bool(client.params or client.cookies)
        return client.base_url, _fields(client.headers.raw), client.timeout, adds
    jar = client.cookies.jar
    # Only the cookie jar of the standard library has this dict.
    adds = bool(client._params._dict or (getattr(jar, "_cookies", True) and client.cookies))
    return client._base_url, client._headers._list, client._timeout, adds


def origin_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port as they are written in the URL."""
    if not INTACT:
        return url.scheme, url.raw_host.decode("ascii"), url.port
    parts = url._uri_reference
    return parts.scheme, parts.host, parts.port


def response_of(
    status: int,
    headers: Fields,
    body: bytes | httpx.SyncByteStream | httpx.AsyncByteStream,
    extensions: dict[str, Any],
) -> httpx.Response:
    """Build the response that a connection has received. `headers` and `extensions` are not copied.

    If `body` is bytes, it is the complete body: the response is closed and its content is set. A
    body that must be decompressed is left for httpx to read.
    """
    if not INTACT:
        pairs = [(name, value) for name, _, value in headers]
        stream = Content(body) if isinstance(body, bytes) else body
        made = httpx.Response(status, headers=pairs, stream=stream, extensions=extensions)
    else:
        made = httpx.Response.__new__(httpx.Response)
        made.status_code = status
        made.headers = kept = httpx.Headers.__new__(httpx.Headers)
        kept._list = headers
        kept._encoding = None
        made._request = None
        made.next_request = None
        made.extensions = extensions
        made.history = []
        made.is_closed = False
        made.is_stream_consumed = False
        made.default_encoding = "utf-8"
        made._num_bytes_downloaded = 0
        if not isinstance(body, bytes):
            made.stream = body
    if isinstance(body, bytes):
        fill(made, body)
    return made


def fill(response: httpx.Response, content: bytes) -> None:
    """Make a complete body the content of its response, as `response.read()` would.

    A body that must be decompressed is left for httpx to read.
    """
    response.stream = Content(content)
    if not INTACT:
        if "content-encoding" not in response.headers:
            response.read()
        return
    for _, name, _ in response.headers._list:
        if name == b"content-encoding":
            return
    response._content = content
    response._num_bytes_downloaded = len(content)
    response.is_closed = response.is_stream_consumed = True


class DirectClient(httpx.Client):
    """An `httpx.Client` that passes a plain request directly to its transport."""

    def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: AuthTypes | UseClientDefault | None = _DEFAULT,
        follow_redirects: bool | UseClientDefault = _DEFAULT,
    ) -> httpx.Response:
        """Send a request, as `httpx.Client.send` does."""
        if _asks_for_more(self, request, auth, httpx.Client, _SYNC):
            return super().send(
                request, stream=stream, auth=auth, follow_redirects=follow_redirects
            )
        start = time.perf_counter()
        try:
            response = self._transport.handle_request(request)
        except httpx.RequestError as error:
            error.request = request
            raise
        try:
            if not response.is_closed:
                response.stream = _bound(_SyncStream, response, start)
            if (following := _received(self, request, response, follow_redirects)) is not None:
                response.read()
                response = self._send_handling_redirects(
                    following, follow_redirects=True, history=[response]
                )
            if not (stream or hasattr(response, "_content")):
                response.read()
        except BaseException:
            response.close()
            raise
        return response


class DirectAsyncClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` that passes a plain request directly to its transport."""

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: AuthTypes | UseClientDefault | None = _DEFAULT,
        follow_redirects: bool | UseClientDefault = _DEFAULT,
    ) -> httpx.Response:
        """Send a request, as `httpx.AsyncClient.send` does."""
        if _asks_for_more(self, request, auth, httpx.AsyncClient, _ASYNC):
            return await super().send(
                request, stream=stream, auth=auth, follow_redirects=follow_redirects
            )
        start = time.perf_counter()
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.RequestError as error:
            error.request = request
            raise
        try:
            if not response.is_closed:
                response.stream = _bound(_AsyncStream, response, start)
            if (following := _received(self, request, response, follow_redirects)) is not None:
                await response.aread()
                response = await self._send_handling_redirects(
                    following, follow_redirects=True, history=[response]
                )
            if not (stream or hasattr(response, "_content")):
                await response.aread()
        except BaseException:
            await response.aclose()
            raise
        return response


def _asks_for_more(
    client: httpx.Client | httpx.AsyncClient,
    request: httpx.Request,
    auth: object,
    kind: type[httpx.Client | httpx.AsyncClient],
    expected: tuple[Any, tuple[Any, ...], type],
) -> bool:
    """True if a call needs the layers of httpx that the shortcuts skip, or if these layers would
    raise an error."""
    send, layers, body = expected
    if (
        not INTACT
        or kind.send is not send
        or _layers_of(type(client)) != layers
        or not isinstance(request.stream, body)
    ):
        return True
    hooks = client._event_hooks
    return not (
        client._state is _OPENED
        and (auth is None or (auth is _DEFAULT and client._auth is None))
        and "timeout" in request.extensions
        and client.max_redirects >= 0
        and not (client._mounts or hooks["request"] or hooks["response"])
        and not request.url._uri_reference.userinfo
        and vars(client).keys().isdisjoint(_LAYERS)
    )


def _bound(kind: Any, response: httpx.Response, start: float) -> Any:
    """Wrap the body of a response, so that closing it sets `elapsed`."""
    if _TELLS_RESPONSE:
        return kind(response.stream, response=response, start=start)
    return kind(response.stream, start=start)


def _received(
    client: httpx.Client | httpx.AsyncClient,
    request: httpx.Request,
    response: httpx.Response,
    follow_redirects: object,
) -> httpx.Request | None:
    """Process a response as httpx does. If it is a redirect that must be followed, returns the
    request to send next."""
    response._request = request
    response.default_encoding = client._default_encoding
    response.history = []
    for _, name, _ in response.headers._list:
        if name in _SET_COOKIE:
            client.cookies.extract_cookies(response)
            break
    if _httpx_log.isEnabledFor(logging.INFO):
        _httpx_log.info(
            'HTTP Request: %s %s "%s %d %s"',
            request.method,
            request.url,
            response.http_version,
            response.status_code,
            response.reason_phrase,
        )
    if not (300 <= response.status_code < 400 and response.has_redirect_location):
        return None
    follow = client.follow_redirects if follow_redirects is _DEFAULT else follow_redirects
    try:
        following = client._build_redirect_request(request, response)
    except httpx.RemoteProtocolError:
        if follow or not _LENIENT:
            raise
        return None
    if follow:
        return following
    response.next_request = following
    return None


class _Stub(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport that answers the calls with which the shortcuts are verified."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path not in _ANSWERS:
            raise httpx.ConnectError("lost")
        status, name, value = _ANSWERS[request.url.path]
        stream = httpx.ByteStream(b"text")
        return httpx.Response(status, headers={name: value}, stream=stream)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


_ANSWERS = {
    "/": (200, "Set-Cookie", "a=b"),
    "/there": (302, "Location", "/"),
    "/nowhere": (302, "Location", "https://:x/"),
}
_CALLS = [("/", False), ("/there", False), ("/there", True), ("/nowhere", False), ("/lost", False)]


def _outcome(client: httpx.Client | httpx.AsyncClient, path: str, *, follow: bool) -> object:
    """Make a call, and return what the caller can see of its result, for comparison."""
    request = httpx.Request("GET", f"http://stub{path}", extensions={"timeout": {}})
    try:
        if isinstance(client, httpx.Client):
            response = client.send(request, follow_redirects=follow)
        else:
            response = _awaited(client.send(request, follow_redirects=follow))
    except httpx.RequestError as error:
        return type(error), error.request.url
    response.elapsed  # noqa: B018  # raises RuntimeError if it was not set
    ends = [(one.request.url, one.is_closed, one.content) for one in (*response.history, response)]
    following = response.next_request and response.next_request.url
    return ends, following, dict(client.cookies), vars(response).keys() - {"_decoder"}


def _awaited(steps: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    """Run a coroutine that never waits, without an event loop."""
    try:
        steps.send(None)
    except StopIteration as end:
        return cast("httpx.Response", end.value)
    raise RuntimeError("it waits")


def _replaced_methods() -> Iterator[str]:
    """Yield the methods that httpx lacks, or that another library has replaced."""
    for kind in (httpx.Client, httpx.AsyncClient):
        for name in ("send", *_LAYERS):
            found = getattr(kind, name, None)
            if not isinstance(found, FunctionType) or found.__globals__ is not vars(_theirs):
                yield f"{kind.__name__}.{name}"


def _differing_objects() -> Iterator[str]:
    """Yield the names of objects that differ from the objects that httpx builds."""
    pairs, content = [(b"Host", b"a"), (b"X-One", b"1")], b"content"
    if vars(headers_of(pairs)) != vars(httpx.Headers(pairs)):
        yield "Headers"
    request = httpx.Request("PUT", "http://a/b", headers=pairs, content=content)
    if vars(copied(request)) != vars(request):
        yield "Request"
    timeout = httpx.Timeout(1.0, connect=2.0)
    if vars(timeout) != timeout.as_dict():
        yield "Timeout"
    if vars(httpx.ByteStream(content)) != {"_stream": content}:
        yield "ByteStream"
    for body in (content, httpx.ByteStream(content)):
        theirs = httpx.Response(200, headers=pairs, stream=httpx.ByteStream(content))
        if body is content:
            theirs.read()
        ours, same = response_of(200, _fields(pairs), body, {}), {"stream": None, "_decoder": None}
        if {**vars(ours), **same} != {**vars(theirs), **same}:
            yield "Response"
    url = httpx.URL("http://u:p@a:1/b?c")
    if origin_of(url) != (url.scheme, url.host, url.port):
        yield "URL"


def _differing_calls() -> Iterator[str]:
    """Yield the methods whose results differ from httpx's."""
    global _LENIENT  # noqa: PLW0603  # set once, at import
    for kind, direct in ((httpx.Client, DirectClient), (httpx.AsyncClient, DirectAsyncClient)):
        theirs, ours = (one(transport=_Stub(), trust_env=False) for one in (kind, direct))
        public = theirs.base_url, _fields(theirs.headers.raw), theirs.timeout
        if settings_of(theirs) != (*public, False):
            yield f"the settings of {kind.__name__}"
        theirs._state = ours._state = cast("Any", _OPENED)
        _LENIENT = _outcome(theirs, "/nowhere", follow=False) != _outcome(
            theirs, "/nowhere", follow=True
        )
        for path, follow in _CALLS:
            if _outcome(theirs, path, follow=follow) != _outcome(ours, path, follow=follow):
                yield f"{kind.__name__}.send"


def _verified() -> bool:
    """Make objects and calls with httpx and with the shortcuts, and compare them. Returns False if
    they differ."""
    here = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != here  # httpx logs each call

    _httpx_log.addFilter(elsewhere)
    try:
        found = list(_replaced_methods()) or [*_differing_objects(), *_differing_calls()]
    except Exception as error:  # noqa: BLE001  # what another version raises cannot be known
        found = [repr(error)]
    finally:
        _httpx_log.removeFilter(elsewhere)
    if found:
        told = ", ".join(dict.fromkeys(found))
        _log.info("%s %s: no shortcuts (%s)", httpx.__name__, httpx.__version__, told)
    return not found


INTACT = _verified()
response_fields: Callable[[httpx.Response], Fields] = (
    attrgetter("headers._list") if INTACT else lambda response: _fields(response.headers.raw)
)
"""Returns the headers of a response. This is a function written in C, since it is called for every
response."""
