"""The objects that callers of RPCs in asyncio get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any

import grpc

from lbclient.grpc import bases
from lbclient.grpc.aio_replay import MIXED
from lbclient.grpc.event_loops import AioRpc
from lbclient.grpc.rpc import BaseCall

__all__ = ["StreamStreamCall", "StreamUnaryCall", "UnaryStreamCall", "UnaryUnaryCall"]

EOF = grpc.aio.EOF


class _Call(BaseCall, grpc.aio.Call):
    """The base class of the calls of all kinds of RPC."""

    _rpc: AioRpc

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` with this object at the end of the RPC, or now if the RPC is over."""
        self._call_at_end(callback)

    async def initial_metadata(self) -> Any:
        """Wait for the initial metadata. After that there is no other attempt."""
        rpc = self._rpc
        while (inner := await rpc.current()) is not None:
            metadata = await inner.initial_metadata()
            if not inner.done():
                if await rpc.commit(inner, self):
                    return metadata
            elif await rpc.stands(inner):
                break
        return await _read_from(await rpc.outcome(), "initial_metadata")

    async def trailing_metadata(self) -> Any:
        """Wait for the end, and return the trailing metadata."""
        return await self._of_outcome("trailing_metadata")

    async def code(self) -> Any:
        """Wait for the end, and return the status."""
        return await self._of_outcome("code")

    async def details(self) -> Any:
        """Wait for the end, and return the details of the status."""
        return await self._of_outcome("details")

    async def debug_error_string(self) -> Any:
        """Wait for the end, and return gRPC's debug text."""
        return await self._of_outcome("debug_error_string")

    async def wait_for_connection(self) -> None:
        """Wait until an attempt is connected. Raises the error of an RPC that has failed."""
        rpc = self._rpc
        while (inner := await rpc.current()) is not None:
            if await rpc.connects(inner):
                return
            if await rpc.stands(inner):
                break
        self._raise()

    async def _of_outcome(self, name: str) -> Any:
        return await _read_from(await self._rpc.outcome(), name)

    def _raise(self) -> None:
        """Raise the error of an RPC that has failed."""
        if self._rpc.cancelled:
            raise asyncio.CancelledError
        if isinstance(self._rpc.final, BaseException):
            raise self._rpc.final


async def _read_from(final: Any, name: str) -> Any:
    """Call a method of an outcome. The methods of a gRPC call are coroutines; those of an error are
    not."""
    found = getattr(final, name)()
    return await found if isinstance(found, Coroutine) else found


class _UnaryResponse(_Call):
    """An RPC with one response. Await it to get the response."""

    def __await__(self) -> Generator[Any, None, Any]:
        rpc = self._rpc
        response: Any = None
        try:
            while (inner := rpc.inner or (yield from rpc.current().__await__())) is not None:
                try:
                    response = yield from inner.__await__()
                except grpc.aio.AioRpcError:
                    response = None
                if rpc.final is inner or (yield from rpc.stands(inner).__await__()):
                    break
        except asyncio.CancelledError:
            rpc.cancel()
            raise
        self._raise()
        return response


class _StreamResponse(_Call):
    """An RPC with a stream of responses."""

    def __init__(self, rpc: AioRpc) -> None:
        super().__init__(rpc)
        self._messages: AsyncIterator[Any] | None = None
        self._reads = False

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._reads:
            raise grpc.aio.UsageError(MIXED)
        if self._messages is None:
            self._messages = self._each()
        return self._messages

    async def read(self) -> Any:
        """Return the next response, or `grpc.aio.EOF`."""
        if self._messages is not None:
            raise grpc.aio.UsageError(MIXED)
        self._reads = True
        return await self._read()

    async def _each(self) -> AsyncIterator[Any]:
        while (message := await self._read()) is not EOF:
            yield message

    async def _read(self) -> Any:
        rpc = self._rpc
        try:
            while (inner := await rpc.current()) is not None:
                try:
                    message = await rpc.read(inner)
                except grpc.aio.AioRpcError:
                    message = EOF
                if message is not EOF:
                    if await rpc.commit(inner, self):
                        return message
                elif await rpc.stands(inner):
                    break
        except asyncio.CancelledError:
            rpc.cancel()
            raise
        self._raise()
        return EOF


class _StreamRequest(_Call):
    """An RPC with a stream of requests."""

    async def write(self, request: Any) -> None:
        """Send a request."""
        rpc = self._rpc
        if rpc.over:
            self._raise()
        if rpc.requests is not None:
            try:
                await rpc.requests.write(request)
            except asyncio.CancelledError:
                rpc.cancel()
                raise
        if rpc.over and rpc.requests is not None:
            self._raise()

    @property
    def _done_writing_flag(self) -> bool:
        """True once the requests have ended. gRPC's interceptors read this attribute."""
        return self._rpc.requests is not None and self._rpc.requests.closed

    async def done_writing(self) -> None:
        """End the requests."""
        if self._rpc.requests is not None:
            await self._rpc.requests.done_writing()


class UnaryUnaryCall(_UnaryResponse, bases.AioUnaryUnaryCall):
    """One request, one response."""


class UnaryStreamCall(_StreamResponse, bases.AioUnaryStreamCall):
    """One request, a stream of responses."""


class StreamUnaryCall(_StreamRequest, _UnaryResponse, bases.AioStreamUnaryCall):
    """A stream of requests, one response."""


class StreamStreamCall(_StreamRequest, _StreamResponse, bases.AioStreamStreamCall):
    """A stream of requests, a stream of responses."""
