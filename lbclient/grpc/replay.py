"""Requests of client streams that can be sent again: the requests that one attempt has read are
stored for the next attempt."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["Message", "Replay"]

_MOST_BYTES = 256 * 1024
"""The requests of a call are stored up to this number of bytes, as in gRPC's own retries. If they
are longer, the call is not repeated."""


class Message:
    """One request. It is serialized only once, for all attempts."""

    __slots__ = ("_data", "_request", "_serializer")

    def __init__(self, request: Any, serializer: Callable[[Any], bytes] | None) -> None:
        self._request = request
        self._serializer = serializer
        self._data: bytes | None = None

    def serialized(self) -> bytes:
        """Return the bytes of the request. Raises the exceptions of the stub's serializer."""
        data = self._data
        if data is None:
            request, serializer = self._request, self._serializer
            data = self._data = request if serializer is None else serializer(request)
        return data


class SentRequests:
    """The requests that were read and may be sent again. On threads, the caller holds a lock."""

    __slots__ = ("_base", "_bytes", "_committed", "_messages", "over")

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._base = 0
        self._bytes = 0
        self._committed = False
        self.over: bool = False
        """True if there are no more requests."""

    @property
    def replayable(self) -> bool:
        """True if all requests that were read can be sent again."""
        return self._base == 0 and self._bytes <= _MOST_BYTES

    def commit(self) -> None:
        """Stop storing requests, since there is no other attempt."""
        self._committed = True

    def has(self, index: int) -> bool:
        """True if the request at this index has been read."""
        return index < self._base + len(self._messages)

    def append(self, message: Message) -> None:
        """Store a request that was just read."""
        self._messages.append(message)
        if not self._committed:
            try:
                self._bytes += len(message.serialized())
            except Exception:  # noqa: BLE001  # gRPC reports it when it serializes the message
                self._committed = True
            self._committed = self._committed or self._bytes > _MOST_BYTES

    def get(self, index: int) -> Message:
        """Return the request at this index for the current attempt. Raises LookupError if this
        request is no longer stored: then the call is not repeated."""
        if index < self._base:
            raise LookupError("a request that was sent before is no longer stored")
        found = self._messages[index - self._base]
        while self._committed and self._base <= index:
            self._messages.popleft()
            self._base += 1
        return found


class Replay:
    """The requests of a stream, on threads. Each attempt iterates over them from the beginning.

    gRPC reads the requests of each attempt on a separate thread. When the attempt has ended, this
    thread may still wait for the caller's iterator. If it then gets a request, this request is
    stored for the next attempt.
    """

    def __init__(self, requests: Iterable[Any], serializer: Callable[[Any], bytes] | None) -> None:
        self._requests = iter(requests)
        self._serializer = serializer
        self._sent = SentRequests()
        self._lock = threading.Lock()
        """The lock that is held while `_sent` is used."""
        self._taking = threading.Lock()
        """The thread that waits for the caller's iterator holds this lock."""
        self._error: BaseException | None = None
        self._attempt = 0

    def replayable(self) -> bool:
        """True if all requests that were read can be sent again."""
        return self._sent.replayable

    def commit(self) -> None:
        """Stop storing requests, since there is no other attempt."""
        self._sent.commit()

    def __iter__(self) -> Iterator[Message]:
        """Return the requests for a new attempt, and end those of the previous attempt."""
        with self._lock:
            self._attempt += 1
            return self._from_the_beginning(self._attempt)

    def _from_the_beginning(self, attempt: int) -> Iterator[Message]:
        index = 0
        while self._has(index) or self._take(index):
            with self._lock:
                if attempt != self._attempt:
                    return
                message = self._sent.get(index)
            yield message
            index += 1

    def _has(self, index: int) -> bool:
        with self._lock:
            return self._sent.has(index)

    def _take(self, index: int) -> bool:
        """Read the next request of the caller's iterator. Returns False if there is none."""
        with self._taking:
            if self._has(index):
                return True
            if self._error is not None:
                raise self._error
            if self._sent.over:
                return False
            try:
                message = Message(next(self._requests), self._serializer)
            except StopIteration:
                self._sent.over = True
                return False
            except BaseException as error:
                self._error = error
                raise
            with self._lock:
                self._sent.append(message)
            return True
