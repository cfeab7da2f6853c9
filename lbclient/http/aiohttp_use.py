"""One request on its way through aiohttp: its connection, its time, and what its failure means."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any
from weakref import ref

import aiohttp
from aiohttp.client_proto import ResponseHandler

from .allowance import Allowance
from .body import is_callers_own
from .flavour import httpcore, httpx
from .goaway import Liveness
from .stream import Line
from .upload import Upload

__all__ = ["AiohttpLine", "Use", "current", "once"]

_INFO = {"server_addr": "peername", "client_addr": "sockname"}


class AiohttpLine(Line, httpcore.AsyncNetworkStream):
    """One connection, as a response tells of it: `extensions["network_stream"]`."""

    def __init__(self, protocol: ResponseHandler, liveness: Liveness) -> None:
        self._protocol = ref(protocol)
        super().__init__(liveness, self.get_extra_info("server_addr"))

    @property
    def readable(self) -> bool:
        """True where something has come, if only its end, of which the loop has not heard yet."""
        sock = self.get_extra_info("socket")
        if sock is None:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def get_extra_info(self, info: str) -> Any:
        """What asyncio knows of it, asked in httpcore's words."""
        transport = getattr(self._protocol(), "transport", None)
        return None if transport is None else transport.get_extra_info(_INFO.get(info, info))


class Use:
    """From the start of a request to the end of its answer's body; `ended` is told once then."""

    __slots__ = (
        "_ended",
        "_timeouts",
        "_transport",
        "allowance",
        "keeps",
        "line",
        "protocol",
        "stalled",
        "upload",
    )

    def __init__(self, extensions: Mapping[str, Any], ended: Callable[[Use], object]) -> None:
        self._timeouts = extensions.get("timeout", {})
        read = self._timeouts.get("read")
        self.allowance = read if isinstance(read, Allowance) else None
        self.line: AiohttpLine | None = None
        """None until it has a connection: until then nothing was sent."""
        self.protocol: ResponseHandler | None = None
        self.upload: Upload | None = None
        self.stalled = False
        self.keeps = False
        """True where its connection may be kept for another."""
        self._transport: asyncio.Transport | None = None
        self._ended: Callable[[Use], object] | None = ended

    def begin(self, line: AiohttpLine, protocol: ResponseHandler, *, keeps: bool) -> None:
        """It has a connection, on which it is about to be written."""
        self.line, self.protocol, self.keeps = line, protocol, keeps
        self._transport = protocol.transport
        line.ear.asked()

    def end(self) -> None:
        """It is over. More than once does no harm."""
        if self.upload is not None:
            self.upload.calm()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)

    def cut(self) -> None:
        """Close the connection now: aiohttp would wait for a peer to take in what is not sent yet,
        or to say good-bye in TLS."""
        if self._transport is not None:
            self._transport.abort()

    def stall(self) -> None:
        """A piece of its body was not taken in time."""
        self.stalled = True
        self.cut()

    def seconds(self, name: str) -> float | None:
        """The caller's own timeout of this name."""
        timeout: float | None = self._timeouts.get(name)
        return timeout.seconds if isinstance(timeout, Allowance) else timeout

    def left(self) -> float | None:
        """Seconds until the attempt ends. Raises TimeoutError once it has: what has come already
        is read without any wait, so a peer that floods would never see a timeout."""
        if self.allowance is None:
            return None
        if self.allowance.over:
            raise TimeoutError("the time of the attempt is up")
        return self.allowance.left()

    def patience(self) -> float | None:
        """Seconds for one read of the body; less where what is given up is drained."""
        left = self.left()
        if self.line is None or (hurry := self.line.hurry) is None:
            return left
        return hurry.left() if left is None else min(left, hurry.left())

    @property
    def reset(self) -> Exception | None:
        """What its connection broke with, if it did."""
        error = None if self.protocol is None else self.protocol.exception()
        return error if isinstance(error, aiohttp.ClientOSError) else None

    def failed(self, error: BaseException) -> BaseException:
        """What aiohttp raised, in httpx's words; what the caller's own body raised, as it is."""
        if not isinstance(error, Exception):
            return error
        if (own := _callers_own(error)) is not None:
            return own
        if self.upload is not None and self.upload.misfit is not None:
            return self.upload.misfit
        late = isinstance(error, TimeoutError)
        if late and self.allowance is not None and self.allowance.over:
            self.allowance.noticed()
        if self.stalled:
            return httpx.WriteTimeout("the instance did not take the body in time")
        if self.line is not None:
            self.line.ear.ended(httpcore.ReadTimeout() if late else None)
        if isinstance(error, aiohttp.ClientPayloadError):
            error = self.reset or error
        kind = _kind(error, sent=self.line is not None)
        if kind is None:
            return error
        reason = _reason(error)
        failure = kind(str(reason) or type(reason).__name__)
        failure.__cause__ = reason
        return failure


current: ContextVar[Use] = ContextVar("lbclient.aiohttp")
"""The one that the running task is about."""


def _callers_own(error: BaseException | None) -> Exception | None:
    while error is not None:
        if isinstance(error, Exception) and is_callers_own(error):
            return error
        error = error.__cause__
    return None


def _reason(error: BaseException) -> BaseException:
    """What is beneath aiohttp's error: that itself may tell the URL, and so a secret in its
    query."""
    while isinstance(error, aiohttp.ClientError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _kind(error: Exception, *, sent: bool) -> type[httpx.TransportError] | None:
    """Without a connection nothing was sent, whatever the class of the error."""
    cause = error.__cause__
    if isinstance(error, aiohttp.ClientError) and isinstance(cause, OSError):
        error = cause
    for theirs, before, after in _KINDS:
        if isinstance(error, theirs):
            return after if sent else before
    return None


_KINDS: tuple[
    tuple[type[Exception], type[httpx.TransportError], type[httpx.TransportError]], ...
] = (
    (aiohttp.InvalidURL, httpx.LocalProtocolError, httpx.LocalProtocolError),
    (TimeoutError, httpx.ConnectTimeout, httpx.ReadTimeout),
    (OSError, httpx.ConnectError, httpx.ReadError),
    (aiohttp.ClientError, httpx.ConnectError, httpx.RemoteProtocolError),
    (ValueError, httpx.LocalProtocolError, httpx.LocalProtocolError),
    (RuntimeError, httpx.ConnectError, httpx.ReadError),  # it was closed meanwhile, by ourselves
)
"""aiohttp's class; what it means without a connection, and with one."""


class _BrokenError(aiohttp.ClientError):
    """The connection broke while a request was on it."""


async def once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Hides from the session what it would answer by sending again."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _BrokenError(str(error)) from error
