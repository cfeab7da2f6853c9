"""The requests of a stream, in an event loop of asyncio. They can be sent again. `replay.py` does
the same on threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import grpc

from lbclient.grpc.replay import Message, SentRequests

__all__ = ["MIXED", "Requests", "Waiters"]

T = TypeVar("T")
_FINISHED = "RPC already finished."
_HALF_CLOSED = 'RPC is half closed after calling "done_writing".'
MIXED = "The iterator and read/write APIs may not be mixed on a single RPC."


class Waiters:
    """The tasks of one event loop that wait for a change."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()` is True."""
        while not ready():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._futures.add(future)
            try:
                await future
            finally:
                self._futures.discard(future)

    def wake(self) -> None:
        """Wake all tasks, so that they check again."""
        for future in self._futures:
            if not future.done():
                future.set_result(None)


class Requests:
    """The requests of a stream. Each attempt reads them from the beginning."""

    def __init__(self, requests: Any, serializer: Callable[[Any], bytes] | None) -> None:
        self._serializer = serializer
        self._sent = SentRequests()
        self._waiters = Waiters()
        self._taking: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None
        self._attempt = 0
        self.written: bool = requests is None
        """True if the caller sends the requests by `write`. False if they come from an iterator."""
        self._iterator: Any = None
        if requests is not None:
            streams = isinstance(requests, AsyncIterable)
            self._iterator = aiter(requests) if streams else _asynchronous(requests)
        self._count = 0
        self._written_count = 0
        self._over = False

    def replayable(self) -> bool:
        """True if all requests that were read can be sent again."""
        return self._sent.replayable

    @property
    def closed(self) -> bool:
        """True if there are no more requests."""
        return self._sent.over

    def commit(self) -> None:
        """Stop storing requests, since there is no other attempt."""
        self._sent.commit()

    def end(self) -> None:
        """Stop reading requests, since the RPC is over."""
        self._over = True
        if self._taking is not None:
            self._taking.cancel()
        self._waiters.wake()

    def for_attempt(self) -> AsyncIterator[Message]:
        """Return the requests for a new attempt, and end those of the previous attempt."""
        self._attempt += 1
        self._written_count = 0
        self._waiters.wake()
        return self._from_the_beginning(self._attempt)

    async def _from_the_beginning(self, attempt: int) -> AsyncIterator[Message]:
        index = 0
        while await self._has(index, attempt):
            yield self._sent.get(index)
            index += 1
            self._written_count = index
            self._waiters.wake()

    async def _has(self, index: int, attempt: int) -> bool:
        while attempt == self._attempt and not self._over:
            if self._sent.has(index):
                return True
            if self._error is not None:
                raise self._error
            if self._sent.over:
                return False
            if self._iterator is not None and self._taking is None:
                self._taking = asyncio.get_running_loop().create_task(self._take())
            await self._waiters.until(
                lambda: (
                    self._sent.has(index)
                    or self._sent.over
                    or self._over
                    or self._error is not None
                    or attempt != self._attempt
                    or (self._iterator is not None and self._taking is None)
                )
            )
        return False

    async def _take(self) -> None:
        """Read the next request of the caller's iterator. If the attempt ends meanwhile, the
        reading goes on, and the next attempt gets the request."""
        try:
            self._sent.append(Message(await anext(self._iterator), self._serializer))
        except StopAsyncIteration:
            self._sent.over = True
        except BaseException as error:  # noqa: BLE001  # raised where gRPC takes the requests
            self._error = error
        finally:
            self._taking = None
            self._waiters.wake()

    async def write(self, request: Any) -> None:
        """Send a request that the caller writes. Returns once it has been passed to gRPC."""
        if not self.written:
            raise grpc.aio.UsageError(MIXED)
        if self._over:
            raise asyncio.InvalidStateError(_FINISHED)
        if self._sent.over:
            raise asyncio.InvalidStateError(_HALF_CLOSED)
        index, self._count = self._count, self._count + 1
        self._sent.append(Message(request, self._serializer))
        self._waiters.wake()
        await self._waiters.until(lambda: self._written_count > index or self._over)

    async def done_writing(self) -> None:
        """End the requests that the caller writes."""
        if not self.written:
            raise grpc.aio.UsageError(MIXED)
        self._sent.over = True
        self._waiters.wake()


async def _asynchronous(requests: Iterable[T]) -> AsyncIterator[T]:
    for request in requests:
        yield request
