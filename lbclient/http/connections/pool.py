"""Idle connections, connections in use, and their leases. This module chooses the connection of the
next request.

There is one stack of idle connections per instance, and one limit for the idle connections to all
instances. A connection is recorded in the lease of a call before it is removed from its stack. So
no connection is lost if an exception is raised between these two steps (see "An exception may come
between any two lines" in docs/design.md).
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from lbclient._internal import fork

from ..options import ConnectionSettings
from .connection import Connection, InstanceLiveness

__all__ = [
    "ConnectionLease",
    "IdleStack",
    "InstanceConnections",
    "KeepAlivePool",
    "each",
    "pool_of",
]

C = TypeVar("C", bound=Connection)
S = TypeVar("S")
IdleStack = deque[C]
"""The idle connections to one instance. The connection that was used last is used next, so that a
few connections stay in use and the others can be closed (HAProxy and Go's net/http use the same
order)."""


class KeepAlivePool(Generic[C]):
    """The idle connections of one client or transport, to all instances.

    A connection is closed after it has been idle for `expiry` seconds (None: never). If there are
    more than `most` idle connections in total, or more than `each` to one instance, the connection
    that has been idle longest is closed. Every method takes O(1) time per connection.
    """

    def __init__(
        self,
        expiry: float | None,
        most: int,
        each: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.lost: deque[Any] = deque()
        """Leases that were garbage collected while in use, since an exception has interrupted their
        call. Each has a method `drop`, which is still to be called."""
        self.expiry = expiry
        self.clock = clock
        self.watched: bool = expiry is None
        """True if a check of the idle connections is scheduled, or is not needed since connections
        never expire."""
        self.look_at: float = math.inf
        """The time when the next check is due, by `clock`."""
        self.wake: Callable[[], object] | None = None
        """A function that is called when a connection becomes idle while no check is scheduled."""
        self.summon: Callable[[], object] | None = None
        """A function that a finalizer calls, on any thread, when a lease was garbage collected
        while in use."""
        self._most = most
        self._each = each
        self._since: OrderedDict[C, tuple[IdleStack[C], float]] = OrderedDict()
        self._not_before = -math.inf
        """No connection expires before this time. Later changes need not update it: they can only
        make the first expiry later."""
        fork.track(self)

    def after_fork(self) -> None:
        """Start empty in a forked child. The child may still close a response of the parent. A
        thread of the parent may hold the lock, or may have been interrupted in the middle of a
        change."""
        self.lock = threading.Lock()
        self._since = OrderedDict()
        self.wake = self.summon = None

    def __len__(self) -> int:
        return len(self._since)

    def put(self, connection: C, stack: IdleStack[C]) -> Sequence[C]:
        """Add a connection that becomes idle. Returns the connections to close."""
        now = self.clock()
        with self.lock:
            if connection in self._since:  # an exception has interrupted an earlier `put`
                return ()
            connection.idle_since = now
            self._since[connection] = stack, now
            stack.append(connection)
            gone = []
            if self._each is not None and len(stack) > self._each:
                gone.append(self._out(stack))
            if now >= self._not_before or len(self._since) > self._most:
                while self._since and self._is_over(now):
                    gone.append(self._oldest())
        if not self.watched and self.wake is not None and self._since:
            self.wake()
        return gone

    def take(self, lease: ConnectionLease[C], stack: IdleStack[C]) -> C | None:
        """Take the connection of this stack that was used last, and record it in the lease."""
        with self.lock:
            if not stack:
                return None
            connection = stack[-1]
            connection.uses += 1
            lease.use, lease.connection = connection.uses, connection
            stack.pop()
            self._since.pop(connection, None)
            return connection

    def clear(self, stack: IdleStack[C]) -> Sequence[C]:
        """Remove all connections of this stack, and return them to be closed."""
        with self.lock:
            return [self._out(stack) for _ in range(len(stack))]

    def expired(self) -> Sequence[C]:
        """Remove the connections that must be closed now, and return them."""
        now = self.clock()
        with self.lock:
            gone = []
            while self._since and self._is_over(now):
                gone.append(self._oldest())
            return gone

    def sweep(self) -> None:
        """Close connections that have been idle for too long, or whose lease was garbage collected.
        This method never blocks."""
        for connection in self.expired():
            connection.close()
        for lease in each(self.lost):
            lease.drop()

    def watch(self, look: Callable[[float], object]) -> None:
        """Schedule a check, since a connection is idle. `look(seconds)` must call `sweep` and
        `next_look` after that time. No other check is scheduled until `next_look` finds no idle
        connection."""
        if (expiry := self.expiry) is None:
            return
        self.look_at = self.clock() + expiry
        self.watched = True
        try:
            look(expiry)
        except BaseException:
            self.watched = False
            raise

    def next_look(self) -> float:
        """Return the time of the next check, by `clock`. If no connection is idle, this time is
        `math.inf`, and no further check is scheduled."""
        with self.lock:
            self.watched = self.expiry is None or bool(self._since)
            if self.expiry is None or not self._since:
                self.look_at = math.inf
            else:
                _, since = next(iter(self._since.values()))
                self.look_at = since + self.expiry
            return self.look_at

    def lose(self, lease: Any) -> None:
        """Record a lease that was garbage collected while in use. Its finalizer calls this method,
        since a finalizer must not close the connection itself."""
        self.lost.append(lease)
        if self.summon is not None:
            self.summon()

    def _is_over(self, now: float) -> bool:
        if len(self._since) > self._most:
            return True
        if now < self._not_before or self.expiry is None:
            return False
        _, since = next(iter(self._since.values()))
        self._not_before = since + self.expiry
        return now >= self._not_before

    def _out(self, stack: IdleStack[C]) -> C:
        connection = stack.popleft()
        self._since.pop(connection, None)  # it may be missing after a fork
        return connection

    def _oldest(self) -> C:
        connection, (stack, _) = self._since.popitem(last=False)
        if stack and stack[0] is connection:  # False after an exception has interrupted `take`
            stack.popleft()
        return connection


def each(lost: deque[S]) -> Iterator[S]:
    """Yield and remove each item. Other threads may remove items at the same time."""
    with contextlib.suppress(IndexError):
        while True:
            yield lost.popleft()


def pool_of(options: ConnectionSettings) -> KeepAlivePool[C]:
    """Create an empty pool with the limits of these options."""
    limits = options.limits
    return KeepAlivePool(
        limits.keepalive_expiry, options.max_idle, limits.max_keepalive_connections
    )


class ConnectionLease(Generic[C]):
    """The use of one connection, from before it is taken until its response has been read."""

    __slots__ = ("__weakref__", "_connections", "connection", "idle_end", "use")

    def __init__(self, connections: InstanceConnections[C]) -> None:
        self.connection: C | None = None
        self.use: int = 0
        """The number of this use of the connection. Another call that uses the connection later has
        another number."""
        self.idle_end: bool = False
        """True if the response only ended an idle connection (a 408)."""
        self._connections = connections

    def __del__(self) -> None:
        if getattr(self, "connection", None) is not None:  # an exception has interrupted the call
            self._connections.idle.lose(self)

    def end(self, *, reusable: bool) -> None:
        """Return the connection to the pool, or close it. A second call does nothing."""
        if (connection := self.connection) is not None:
            self._connections.leave(connection, reusable=reusable)
            self.connection = None

    def interrupt(self) -> None:
        """Wake the thread that waits for the connection, since the response is no longer needed."""
        connections = self._connections
        with connections.idle.lock:  # no other call may take the connection meanwhile
            connection = self.connection
            if connection is not None and connection.uses == self.use:
                connection.shut()

    def drop(self) -> None:
        """Close the connection, unless another call already uses it."""
        self.interrupt()
        connection = self.connection
        if connection is not None and connection.uses == self.use:
            self._connections.leave(connection, reusable=False)
        self.connection = None


class InstanceConnections(Generic[C]):
    """The connections to one instance."""

    def __init__(self, idle: KeepAlivePool[C]) -> None:
        self.idle = idle
        self.liveness: InstanceLiveness = InstanceLiveness()
        self.retired: bool = False
        """True once connections are no longer kept open."""
        self._used: dict[C, tuple[weakref.ref[ConnectionLease[C]], int]] = {}
        """The connections in use, each with its lease and the number of the use."""
        self._stack: IdleStack[C] = deque()

    @property
    def is_idle(self) -> bool:
        """True if no connection is in use."""
        return not self._used

    def all(self) -> Sequence[C]:
        """Return the connections in use and the idle connections. No lock is taken, since in a
        forked child a thread of the parent may hold it. Each list is copied in one step, so another
        thread may change it meanwhile."""
        return [*self._used, *self._stack]

    def take(self, lease: ConnectionLease[C]) -> C | None:
        """Lease an idle connection on which no bytes have arrived. Returns None if there is no such
        connection.

        If bytes have arrived on an idle connection, they announce the end of the connection, or
        belong to no request. They must not be read as the response to the next request.
        """
        idle, liveness = self.idle, self.liveness
        while (connection := idle.take(lease, self._stack)) is not None:
            self._used[connection] = weakref.ref(lease), lease.use
            expiry, http2 = idle.expiry, connection.http2
            if not (
                (expiry is not None and idle.clock() - connection.idle_since >= expiry)
                or connection.closed
                or self.retired  # `drain` may have run just before `_used` was set
                or connection.generation != liveness.generation
                or (connection.readable() if http2 is None else not http2.usable)
            ):
                return connection
            lease.end(reusable=False)
        return None

    def add(self, lease: ConnectionLease[C], connection: C) -> None:
        """Lease a connection that is about to be opened."""
        self._find_lost()
        connection.generation = self.liveness.generation
        lease.use, connection.uses, lease.connection = 1, 1, connection
        self._used[connection] = weakref.ref(lease), 1

    def leave(self, connection: C, *, reusable: bool) -> None:
        """Give back a connection that is no longer used. It becomes idle, or is closed."""
        if not reusable or self.retired or connection.single_use:
            connection.close()
            self._used.pop(connection, None)
            return
        self._used.pop(connection, None)  # removed before another call can take it
        for expired in self.idle.put(connection, self._stack):
            expired.close()
        if self.retired:  # `drain` ran meanwhile and did not find this connection
            self.drain()  # type: ignore[unreachable]  # another thread may have set it

    def _find_lost(self) -> None:
        """Close connections whose lease was garbage collected, if an exception has interrupted its
        finalizer before it could call `lose`."""
        for connection, (lease, use) in list(self._used.items()):
            if lease() is None:
                lost = ConnectionLease(self)
                lost.connection, lost.use = connection, use
                lost.drop()

    def drain(self) -> None:
        """Close idle connections now, and the other connections when they are no longer used."""
        self.retired = True
        for connection in self.idle.clear(self._stack):
            connection.close()
