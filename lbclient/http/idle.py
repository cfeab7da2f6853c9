"""Connections that nobody uses at the moment, of all instances of one transport."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from lbclient import forking

from .options import WireOptions

__all__ = ["Idle", "Shelf", "idle_of"]

C = TypeVar("C")
Shelf = deque[C]
"""Those of one instance: the one that was used last is used next, so that a few stay warm and the
rest can go (HAProxy's and Go's net/http's order)."""


class Idle(Generic[C]):
    """Whoever has been idle longest goes first: after `expiry` seconds (None: never), or where
    there are more than `most` in all, or more than `each` to one instance.

    httpcore looks at the age of a pool's connections only when that pool is used, and at all of
    them then. Here each step costs O(1), and instances that are not called any more are tidied up
    by the calls to others.
    """

    def __init__(
        self,
        expiry: float | None,
        most: int,
        each: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = threading.Lock()
        self._expiry = expiry
        self._most = most
        self._each = each
        self._clock = clock
        self._since: OrderedDict[C, tuple[Shelf[C], float]] = OrderedDict()
        forking.track(self)

    def after_fork(self) -> None:
        """In a child, which may still close a response of the parent's: some thread that is not
        there may hold the lock, and have left things half done."""
        self.lock = threading.Lock()
        self._since = OrderedDict()

    def __len__(self) -> int:
        return len(self._since)

    def put(self, connection: C, shelf: Shelf[C]) -> list[C]:
        """It is idle from now on. Returns those to close."""
        now = self._clock()
        with self.lock:
            shelf.append(connection)
            self._since[connection] = shelf, now
            surplus = self._each is not None and len(shelf) > self._each
            gone = [self._out(shelf)] if surplus else []
            while self._since and self._is_over(now):
                gone.append(self._oldest())
            return gone

    def take(self, shelf: Shelf[C]) -> C | None:
        """The one of this instance that was used last."""
        with self.lock:
            if not shelf:
                return None
            connection = shelf.pop()
            self._since.pop(connection, None)
            return connection

    def clear(self, shelf: Shelf[C]) -> list[C]:
        """All of this instance."""
        with self.lock:
            return [self._out(shelf) for _ in range(len(shelf))]

    def _is_over(self, now: float) -> bool:
        if len(self._since) > self._most:
            return True
        _, since = next(iter(self._since.values()))
        return self._expiry is not None and now - since >= self._expiry

    def _out(self, shelf: Shelf[C]) -> C:
        connection = shelf.popleft()
        self._since.pop(connection, None)  # after a fork it need not be there
        return connection

    def _oldest(self) -> C:
        connection, (shelf, _) = self._since.popitem(last=False)
        if shelf and shelf[0] is connection:  # else Ctrl-C came in the middle of `take`
            shelf.popleft()
        return connection


def idle_of(options: WireOptions) -> Idle[Any]:
    """An empty one, with these limits."""
    limits = options.limits
    return Idle(limits.keepalive_expiry, options.max_idle, limits.max_keepalive_connections)
