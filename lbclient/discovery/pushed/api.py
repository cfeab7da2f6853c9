"""A session with the HTTP API of a registry: requests, streams of lines, TLS, tokens and errors.

The methods of `RegistryApi` are coroutines. On an event loop they wait. On a thread they block and
never suspend (see `_internal/blocking.py`), so a source is written once. Sessions use httpx, not a
client of this package, since discovery is below `http/` in the layers of this package. They use
only the transports of httpx: these follow no redirects, store no cookies, use no proxies of the
environment, and log no requests. `SSL_CERT_FILE` and `SSL_CERT_DIR` apply, as in httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import queue
import random
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeAlias
from urllib.parse import urlsplit

import httpx

from lbclient._internal import validation
from lbclient._internal.blocking import run_blocking
from lbclient._internal.fork import Lazy
from lbclient._internal.version import __version__
from lbclient.discovery.entries import short
from lbclient.errors import DiscoveryError

__all__ = [
    "LineStream",
    "LostConnection",
    "Params",
    "RegistryApi",
    "Reply",
    "StatusError",
    "read_secret",
    "registry_url",
    "secret",
]

Params: TypeAlias = Mapping[str, str | int] | list[tuple[str, str | int | float | bool | None]]
"""The query of a request. A list of pairs may contain a key more than once."""

_TIMEOUT = 5.0
_LARGEST = 64 << 20
"""The maximum number of bytes of a response. Consul's answer about ten thousand instances needs a
third of this."""
_LONGEST = 16 << 20
"""The maximum number of bytes of a line. An EndpointSlice has at most 1,000 endpoints, and needs a
tenth of this."""
_EXPLANATION = 16 << 10
"""The number of bytes that are read of a response with an unexpected status."""
_UNKNOWN_ISSUER = {18, 19, 20, 21}
"""OpenSSL's codes for a certificate that no known authority has signed."""
_SENT = 8
"""The number of different tokens that a session keeps, so that no error shows them."""
_SHORTEST = 0.001
_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"lbclient/{__version__}",
}
_VISIBLE = re.compile(r"[!-~]+")
_FAILURES = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, TimeoutError)


class StatusError(DiscoveryError):
    """The registry answered with an unexpected status."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class LostConnection(DiscoveryError):
    """The connection failed after the response had begun, or no data arrived for too long."""


class Reply(NamedTuple):
    """A response that was read as a whole. The names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    registry: str
    """The name of the registry and its address, for errors."""

    def json(self) -> Any:
        """Parse the body. Raises DiscoveryError if it is not JSON."""
        return _parsed(self.body, self.registry)


def _parsed(data: bytes, registry: str) -> Any:
    """Parse JSON while other threads run: the parser returns to Python code at each object, so that
    it never occupies the interpreter for long.
    """
    try:
        return json.loads(data, object_pairs_hook=_object)
    except RecursionError:
        raise DiscoveryError(f"{registry} sent invalid JSON: nested too deeply") from None
    except ValueError as error:
        reason = "not UTF-8" if isinstance(error, UnicodeError) else short(str(error))
        raise DiscoveryError(f"{registry} sent invalid JSON: {reason}") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return dict(pairs)


class _Io(Protocol):
    """How a session waits: on an event loop, or by blocking its thread.

    An operation that takes longer than `seconds` raises TimeoutError or httpx.TimeoutException.
    """

    async def send(self, request: httpx.Request, seconds: float) -> httpx.Response:
        """Send a request, and return the response when its headers have arrived."""
        ...

    async def read(self, response: httpx.Response, seconds: float) -> bytes:
        """Return the next bytes of a body, b"" at its end."""
        ...

    async def release(self, response: httpx.Response) -> None:
        """Close a response. Its connection is reused only if the body was read to its end."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


def _socket_options() -> list[tuple[int, int, int]]:
    """Return the options for TCP keep-alive. With them, an idle connection fails about a minute
    after its peer has vanished."""
    options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *(
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in options.items()
            if hasattr(socket, name)
        ),
    ]


class _LoopIo:
    """The I/O of a session on an event loop of asyncio."""

    def __init__(self, *, verify: ssl.SSLContext | bool) -> None:
        self._transport = httpx.AsyncHTTPTransport(
            verify=verify, limits=httpx.Limits(), socket_options=_socket_options()
        )
        self._bodies: dict[httpx.Response, AsyncIterator[bytes]] = {}

    async def send(self, request: httpx.Request, seconds: float) -> httpx.Response:
        before_tls: list[Any] = []

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            """Record the connection on which TLS is started, until TLS has started."""
            if event == "connection.connect_tcp.complete":
                before_tls.append(info["return_value"])
            elif event == "connection.start_tls.complete":
                before_tls.clear()

        request.extensions = {"trace": trace}  # httpcore calls it
        try:
            async with asyncio.timeout(seconds):
                response = await self._transport.handle_async_request(request)
        except BaseException:
            for one in before_tls:  # httpcore leaves it open if TLS is cancelled
                await one.aclose()
            raise
        self._bodies[response] = response.aiter_raw()
        return response

    async def read(self, response: httpx.Response, seconds: float) -> bytes:
        async with asyncio.timeout(seconds):
            return await anext(self._bodies[response], b"")

    async def release(self, response: httpx.Response) -> None:
        self._bodies.pop(response, None)
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self._transport.aclose()


class _TimeLeft(dict[str, float]):
    """The timeouts of a request by httpx's transports: each step (connect, send, receive) gets the
    time that is left."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.begin(seconds)

    def begin(self, seconds: float) -> None:
        """Give the next steps this time."""
        self._until = time.monotonic() + seconds

    def get(self, _step: str, _default: object = None) -> float:
        """Return the seconds for a step that begins now."""
        return max(_SHORTEST, self.seconds())

    def seconds(self) -> float:
        """Return the seconds that are left. The result is negative once the time is over."""
        return self._until - time.monotonic()


class _ThreadIo:
    """The I/O of a session on a thread. Its coroutines block, and are never suspended.

    Any thread may call `end`. It ends the operation for which the session waits. After that, each
    operation raises CancelledError, as on an event loop.
    """

    def __init__(self, *, verify: ssl.SSLContext | bool) -> None:
        self._transport = httpx.HTTPTransport(
            verify=verify, limits=httpx.Limits(), socket_options=_socket_options()
        )
        self._bodies: dict[httpx.Response, tuple[Iterator[bytes], _TimeLeft]] = {}
        self._left = _TimeLeft(0)
        """The time that is left for the operation under way."""
        self._sockets: list[socket.socket] = []
        self._ended = False

    @Lazy
    def _end_of_sleep(self) -> queue.SimpleQueue[None]:
        return queue.SimpleQueue()

    def end(self) -> None:
        self._ended = True
        self._end_of_sleep.put(None)
        for one in list(self._sockets):
            _shut(one)

    def _check(self) -> None:
        if self._ended:
            raise asyncio.CancelledError

    async def send(self, request: httpx.Request, seconds: float) -> httpx.Response:
        self._check()
        left = self._left = _TimeLeft(seconds)
        request.extensions = {"timeout": left, "trace": self._trace}
        try:
            response = self._transport.handle_request(request)
        except _FAILURES:
            self._check()
            raise
        self._bodies[response] = response.iter_raw(), left
        return response

    async def read(self, response: httpx.Response, seconds: float) -> bytes:
        self._check()
        if seconds <= 0:
            raise TimeoutError
        body, self._left = self._bodies[response]
        self._left.begin(seconds)
        try:
            return next(body, b"")
        except _FAILURES:
            self._check()
            raise

    async def release(self, response: httpx.Response) -> None:
        self._bodies.pop(response, None)
        response.close()

    async def sleep(self, seconds: float) -> None:
        self._check()
        try:
            self._end_of_sleep.get(timeout=seconds)
        except queue.Empty:
            return
        self._check()

    async def close(self) -> None:
        self._transport.close()

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Store the socket of each new connection, for `end`, and limit the time of its reads.
        httpcore calls this method."""
        if event.startswith("connection.") and event.endswith(".complete"):
            stream = info.get("return_value")
            made = getattr(stream, "get_extra_info", lambda _: None)("socket")
            if isinstance(made, socket.socket):
                stream.read = partial(self._read_in_time, stream.read)  # type: ignore[union-attr]  # it has a socket
                self._sockets = [one for one in self._sockets if one.fileno() >= 0] + [made]
                if self._ended:
                    _shut(made)

    def _read_in_time(
        self, read: Callable[[int, float], bytes], max_bytes: int, timeout: float | None = None
    ) -> bytes:
        """Read from a connection, within the time that is left. httpcore reads the timeout once,
        and may then read from the connection many times, for example if each byte of the headers
        arrives separately."""
        del timeout
        if (left := self._left.seconds()) <= 0:
            raise TimeoutError
        return read(max_bytes, left)


def _shut(one: socket.socket) -> None:
    """Wake a thread that reads from a socket. `SSLSocket.shutdown` would also remove the TLS state,
    which that thread still uses. So the method of a plain socket is called. eventlet's sockets do
    not have this method."""
    shutdown = getattr(socket.socket, "shutdown", None)
    with contextlib.suppress(OSError):  # it is closed
        if shutdown is None:
            one.shutdown(socket.SHUT_RDWR)
        else:
            shutdown(one, socket.SHUT_RDWR)


class LineStream(AsyncIterator[bytes]):
    """The lines of a response, without their ends. Empty lines are left out.

    The iteration ends when the response ends. Raises LostConnection if the connection breaks, or if
    there is no complete line for `silence` seconds, and DiscoveryError if a line is too long.
    """

    def __init__(self, api: RegistryApi, send: Callable[[], Any], silence: float) -> None:
        self._api = api
        self._send = send
        self.silence: float = silence
        """Seconds within which each line must arrive. This attribute may be changed during the
        iteration."""
        self._response: httpx.Response | None = None
        self._data = bytearray()
        self._lines: deque[bytes] = deque()

    async def __aenter__(self) -> Self:
        self._response = await self._send()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._response is not None:
            await self._api.release(self._response)

    def __aiter__(self) -> Self:
        return self

    @property
    def pending(self) -> bool:
        """True if another line has already arrived."""
        return bool(self._lines)

    async def __anext__(self) -> bytes:
        until = self._api.clock() + self.silence
        while not self._lines:
            assert self._response is not None  # noqa: S101
            silent = f"sent nothing for {round(self.silence, 1):g} s"
            more = await self._api.read(self._response, until, silent)
            if not more:
                raise StopAsyncIteration
            self._data += more
            if b"\n" in more:
                *lines, self._data = self._data.split(b"\n")
                self._lines.extend(bytes(line) for one in lines if (line := one.strip()))
            elif len(self._data) > _LONGEST:
                raise DiscoveryError(f"{self._api} sent a line of more than {_LONGEST >> 20} MiB")
        return self._lines.popleft()


class RegistryApi:
    """A session with a registry. It keeps connections, and is used by one thread, or on one event
    loop.

    - `registry`: the name of the registry for errors, such as `"Kubernetes"`.
    - `url`: the URL of the registry, checked by `registry_url`.
    - `headers`: a function that returns the headers of a request, such as the one with the token.
      It is called for each request, so a token may change. Their values may be secret, so no error
      shows them. This attribute may be replaced during the session.
    - `common_headers`: further headers of each request. Their values are not secret.
    - `secrets`: other texts that no error may show, such as a password in a document.
    - `ca`: a file with the certificates to trust; None means the certificates that httpx trusts by
      default.
    - `ca_hint`: a text for errors that says how the user passes the file `ca`.
    - `hints`: for some statuses, a text for errors that says what the user can do.

    Enter it with `async with` on an event loop of asyncio, and with `with` on a thread. On a
    thread, the methods are never suspended, so `run_blocking(lambda: api.get("/"))` returns the
    result. All methods raise DiscoveryError; its text names the registry and its address.
    """

    def __init__(
        self,
        registry: str,
        url: str,
        *,
        headers: Callable[[], Mapping[str, str]] = dict,
        common_headers: Mapping[str, str] | None = None,
        secrets: Iterable[str] = (),
        ca: str | os.PathLike[str] | None = None,
        ca_hint: str = "pass ca=",
        hints: Mapping[int, str] | None = None,
    ) -> None:
        self.url: str = url.rstrip("/")
        self.headers = headers
        self.clock: Callable[[], float] = time.monotonic
        self.rng: random.Random = random.Random()  # noqa: S311  # used to spread requests in time, not for secrets
        self._registry = registry
        self._ca = None if ca is None else os.fspath(ca)
        self._ca_hint = ca_hint
        self._hints = dict(hints or {})
        self._io: _Io | None = None
        self._common_headers = {**_HEADERS, **(common_headers or {})}
        # A registry may repeat a JSON document in an error. There some characters are escaped.
        self._own_secrets = {
            form
            for one in secrets
            for form in (one, json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1])
        }
        self._sent: deque[frozenset[str]] = deque(maxlen=_SENT)
        """The secrets of the last requests. A request with an earlier token may be under way."""
        self._next_turn = -math.inf

    def __str__(self) -> str:
        return f"{self._registry} at {self.url}"

    def __repr__(self) -> str:
        return f"<RegistryApi of {self}>"

    async def __aenter__(self) -> Self:
        self._io = _LoopIo(verify=self._context())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._bound.close()

    def __enter__(self) -> Self:
        self._io = _ThreadIo(verify=self._context())
        return self

    def __exit__(self, *_: object) -> None:
        run_blocking(self._bound.close)

    @property
    def on_loop(self) -> bool:
        """True if the session was entered on an event loop. There, two requests may be under way at
        the same time."""
        return isinstance(self._io, _LoopIo)

    def end(self) -> None:
        """End the operation for which a session on another thread waits. After that, the methods of
        the session raise `asyncio.CancelledError`."""
        if isinstance(self._io, _ThreadIo):
            self._io.end()

    @property
    def _bound(self) -> _Io:
        if self._io is None:
            raise RuntimeError("a RegistryApi must be entered before it is used")
        return self._io

    async def get(
        self,
        path: str,
        params: Params | None = None,
        *,
        timeout: float = _TIMEOUT,
        expect: Collection[int] = (200,),
    ) -> Reply:
        """Send a GET, and return the response, which must arrive within `timeout` seconds.

        Raises StatusError for a status that is not one of `expect`.
        """
        return await self._call("GET", path, params, None, timeout, expect)

    async def post(
        self,
        path: str,
        json: object = None,
        params: Params | None = None,
        *,
        timeout: float = _TIMEOUT,
        expect: Collection[int] = (200,),
    ) -> Reply:
        """Send a POST with a JSON document. In all other respects this works like `get`."""
        return await self._call("POST", path, params, json, timeout, expect)

    async def put(
        self,
        path: str,
        json: object = None,
        params: Params | None = None,
        *,
        timeout: float = _TIMEOUT,
        expect: Collection[int] = (200,),
    ) -> Reply:
        """Send a PUT with a JSON document, or without a body. In all other respects this works like
        `get`."""
        return await self._call("PUT", path, params, json, timeout, expect)

    def stream(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        json: object = None,
        *,
        silence: float,
        timeout: float = _TIMEOUT,
    ) -> LineStream:
        """Send a request whose response does not end, and return its lines. Use the result in
        `async with`.

        The headers must arrive within `timeout` seconds, and each line within `silence` seconds.
        Raises StatusError for a status other than 200.
        """
        return LineStream(self, partial(self._open, method, path, params, json, timeout), silence)

    def json(self, data: bytes) -> Any:
        """Parse a line. Raises DiscoveryError if it is not JSON."""
        return _parsed(data, str(self))

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`. The wait ends early if the watch is ended."""
        await self._bound.sleep(seconds)

    async def pace(self, seconds: float = 1.0, *, burst: int = 1) -> None:
        """Limit how often a source is asked: wait if this method is called more often than once in
        `seconds`, except for `burst` calls in a row. So a registry that always answers at once is
        not flooded with requests."""
        now = self.clock()
        self._next_turn = max(self._next_turn, now - (burst - 1) * seconds) + seconds
        if (wait := self._next_turn - seconds - now) > 0:
            await self.pause(wait)

    async def _call(
        self,
        method: str,
        path: str,
        params: Params | None,
        json: object,
        timeout: float,
        expect: Collection[int],
    ) -> Reply:
        until = self.clock() + timeout
        response = await self._open(method, path, params, json, timeout, expect)
        try:
            body = await self._body(response, until, timeout, _LARGEST)
        finally:
            await self.release(response)
        return Reply(response.status_code, dict(response.headers), body, str(self))

    async def _open(
        self,
        method: str,
        path: str,
        params: Params | None,
        json: object,
        timeout: float,
        expect: Collection[int] = (200,),
    ) -> httpx.Response:
        """Send a request. Returns the response, which must be released, if its status is one of
        `expect`."""
        io, headers = self._bound, self.headers()
        until = self.clock() + timeout
        if (secrets := frozenset(_secret_parts(headers.values()))) not in self._sent:
            self._sent.append(secrets)
        request = self._request(method, path, params, headers, json)
        try:
            response = await io.send(request, timeout)
        except _FAILURES as error:
            failure: DiscoveryError = DiscoveryError(self._failure(error, _late(timeout)))
        else:
            if response.status_code in expect:
                return response
            failure = await self._refused(request, response, until)
        raise failure  # outside of `except`: the context of the error would hold the request

    def _request(
        self,
        method: str,
        path: str,
        params: Params | None,
        headers: Mapping[str, str],
        json: object,
    ) -> httpx.Request:
        """Make a request. A token or a text that the registry has sent may contain characters that
        a request cannot contain. The error does not show them, since they may be secret."""
        with contextlib.suppress(ValueError, httpx.InvalidURL):
            return httpx.Request(
                method,
                self.url + path,
                params=params,
                headers={**self._common_headers, **headers},
                json=json,
            )
        raise DiscoveryError(f"{self} cannot be asked: a part of the request cannot be encoded")

    async def read(self, response: httpx.Response, until: float, late: str) -> bytes:
        """Return the next bytes of a body, b"" at its end. `until` is a time of `clock`. If reading
        takes longer, the error text contains `late`."""
        try:
            return await self._bound.read(response, until - self.clock())
        except _FAILURES as error:
            failure = LostConnection(self._failure(error, late))
        raise failure

    async def release(self, response: httpx.Response) -> None:
        """Give up a response."""
        await self._bound.release(response)

    async def _body(
        self, response: httpx.Response, until: float, timeout: float, largest: int
    ) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while chunk := await self.read(response, until, _late(timeout)):
            chunks.append(chunk)
            size += len(chunk)
            if size > largest:
                raise DiscoveryError(f"{self} sent a response of more than {largest >> 10} KiB")
        return b"".join(chunks)

    async def _refused(
        self, request: httpx.Request, response: httpx.Response, until: float
    ) -> StatusError:
        """Return an error for a response with an unexpected status. It includes the explanation in
        the response, if that arrives in time."""
        until = min(until, self.clock() + _TIMEOUT)
        try:
            body = await self._body(response, until, _TIMEOUT, _EXPLANATION)
        except DiscoveryError:  # the status is enough
            body = b""
        finally:
            await self.release(response)
        status = response.status_code
        asked = f"{request.method} {request.url.path}"
        said = {
            401: "refused the token (401)" if self._secrets() else "requires a token (401)",
            403: f"does not permit {asked} (403)",
            404: f"knows no {request.url.path} (404)",
        }.get(status, f"answered {asked} with status {status}")
        text = f"{self} {said}"
        if explanation := self.clean(_message(body)):
            text += f": {explanation}"
        if (hint := self._hints.get(status)) is not None:
            text += f"; {hint}"
        return StatusError(text, status)

    def _failure(self, error: Exception, late: str) -> str:
        """Return an error for a failure of the network."""
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return f"{self} {late}"
        causes = list(_causes(error))
        cause = next((one for one in causes if isinstance(one, ssl.SSLCertVerificationError)), None)
        if cause is not None:
            text = f"the certificate of {self} is not trusted: {cause.verify_message}"
            if cause.verify_code in _UNKNOWN_ISSUER:
                text += f"; {self._ca_hint} with the file of its certificate authority"
            return text
        reasons = [reason for one in causes if (reason := _reason(one)) is not None]
        said = self.clean(reasons[-1] if reasons else str(error)) or type(error).__name__
        if isinstance(error, httpx.ConnectError):
            return f"{self} cannot be reached: {said}"
        return f"the connection to {self} failed: {said}"

    def clean(self, text: str) -> str:
        """Return a text that the registry has sent, for use in an error: shortened, and without
        secrets."""
        for one in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(one, "...")
        return short(text.strip())

    def _secrets(self) -> set[str]:
        return self._own_secrets.union(*self._sent)

    def _context(self) -> ssl.SSLContext | bool:
        """The TLS context with the certificates to trust. The file is read again when it has
        changed."""
        if not self.url.startswith("https:"):
            return False
        path = self._ca
        try:
            return _tls(path, None if path is None else Path(path).stat().st_mtime_ns)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise DiscoveryError(f"the CA file {path} of {self} cannot be used: {reason}") from None


@lru_cache(maxsize=32)
def _tls(ca: str | None, _changed: int | None) -> ssl.SSLContext:
    return httpx.create_ssl_context() if ca is None else ssl.create_default_context(cafile=ca)


def _late(seconds: float) -> str:
    return f"did not answer within {round(seconds, 1):g} s"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes. For some failures, only a cause of httpx's error contains the
    reason."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException) -> str | None:
    """Return the reason that the operating system, or OpenSSL, gives for an error."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if isinstance(error, ssl.SSLError | socket.gaierror):
        return error.strerror
    return os.strerror(error.errno)  # asyncio has a text of its own


def _secret_parts(values: Iterable[str]) -> Iterator[str]:
    """The texts that no error may show: the values of headers, with and without `Bearer`."""
    for value in values:
        yield value
        yield value.rpartition(" ")[2]


def _message(body: bytes) -> str:
    """Return the explanation in the body of a response: a field of a JSON object, or the whole
    text."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(found, dict):
        for key in ("message", "error"):
            if isinstance(said := found.get(key), str) and said:
                return said
    return text


def registry_url(name: str, url: object) -> str:
    """Check the URL of a registry, given as the argument `name`: http or https, a host, possibly a
    port and a base path. Returns the URL. No error shows a part of it that may be secret."""
    form = "such as 'https://127.0.0.1:6443'"
    if not isinstance(url, str):
        raise TypeError(f"{name} must be a URL {form}, not {type(url).__name__}")
    if any(char <= " " or char == "\x7f" for char in url):
        raise ValueError(f"{name} must be a URL without spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # the text of the error may contain a password
        raise ValueError(f"{name} must be a URL whose port, if any, is from 1 to 65535") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"{name} must be an http or https URL {form}, not {validation.bare(url)!r}"
        )
    if "@" in parts.netloc:
        raise ValueError(f"{name} must not contain a user name or password")
    if "?" in url or "#" in url:
        raise ValueError(f"{name} must not contain a query or a fragment")
    if port == 0:
        raise ValueError(f"{name} must have a port from 1 to 65535, not 0")
    validation.host(f"{name} (its host)", parts.hostname or "")
    return url.rstrip("/")


def secret(name: str, value: object) -> str:
    """Check a token or a password, given as the argument `name`. Returns it without spaces at its
    ends. Raises ValueError or TypeError; no error shows the value."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, not {type(value).__name__}")
    if not _VISIBLE.fullmatch(plain := value.strip()):
        raise ValueError(f"{name} must be printable ASCII characters without spaces")
    return plain


def read_secret(name: str, path: str | os.PathLike[str]) -> str:
    """Read a token from a file. Raises DiscoveryError, without the content of the file."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_EXPLANATION).decode(errors="replace")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DiscoveryError(f"{name} cannot be read from {path}: {reason}") from None
    try:
        return secret(f"{name} in {path}", text)
    except ValueError as error:
        raise DiscoveryError(str(error)) from None
