"""Which connection carries the next request: the idle ones, those in use, and who holds which.

One stack of idle connections for each instance, one limit over all instances of a transport. A
connection is recorded in the lease of a call before it leaves its stack, so an exception that comes
between any two lines loses none (see "An exception may come between any two lines" in the design).
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

from ..options import WireOptions
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
"""The idle connections to one instance. The one that was used last is used next, so that a few stay
warm and the rest can close (HAProxy's and Go's net/http's order)."""


class KeepAlivePool(Generic[C]):
    """The idle connections of one transport, to all of its instances.

    Whichever has been idle longest is closed first: after `expiry` seconds (None: never), when
    there are more than `most` in all, or more than `each` to one instance. Every step is O(1).
    """

    def __init__(
        self,
        expiry: float | None,
        most: int,
        each: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lock = threading.Lock()
        self.lost: deque[Any] = deque()
        """Leases that were dropped, since an exception came from outside: each has a `drop`."""
        self.expiry = expiry
        self.clock = clock
        self.watched = expiry is None
        """True where a look at idle connections is planned, or none expires: nobody is woken."""
        self.look_at = math.inf
        """When somebody looks, by `clock`."""
        self.wake: Callable[[], object] | None = None
        """Called when a connection becomes idle while the pool is not watched."""
        self.summon: Callable[[], object] | None = None
        """Called by finalizers, on any thread, when a lease was lost."""
        self._most = most
        self._each = each
        self._since: OrderedDict[C, tuple[IdleStack[C], float]] = OrderedDict()
        self._not_before = -math.inf
        """None has idled long enough before this time: the oldest only gets younger."""
        fork.track(self)

    def after_fork(self) -> None:
        """In a child, which may still close a response of the parent's: some thread that is not
        there may hold the lock, and have left things half done."""
        self.lock = threading.Lock()
        self._since = OrderedDict()
        self.wake = self.summon = None

    def __len__(self) -> int:
        return len(self._since)

    def put(self, connection: C, stack: IdleStack[C]) -> Sequence[C]:
        """It is idle from now on. Returns those to close."""
        now = self.clock()
        with self.lock:
            if connection in self._since:  # an exception came after this had been done
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
        """The connection of this stack that was used last, recorded in the lease."""
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
        """All of this stack, to be closed."""
        with self.lock:
            return [self._out(stack) for _ in range(len(stack))]

    def expired(self) -> Sequence[C]:
        """Those to close now."""
        now = self.clock()
        with self.lock:
            gone = []
            while self._since and self._is_over(now):
                gone.append(self._oldest())
            return gone

    def sweep(self) -> None:
        """Close connections that have been idle for too long, or were lost. It never blocks."""
        for connection in self.expired():
            connection.close()
        for lease in each(self.lost):
            lease.drop()

    def watch(self, look: Callable[[float], object]) -> None:
        """Something is idle: have `look(seconds)` call `sweep` and `next_look` then. Calls wake
        nobody until `next_look` finds nothing idle."""
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
        """When to look again, by `clock`: `math.inf` while nothing is idle, and then nobody watches
        any more."""
        with self.lock:
            self.watched = self.expiry is None or bool(self._since)
            if self.expiry is None or not self._since:
                self.look_at = math.inf
            else:
                _, since = next(iter(self._since.values()))
                self.look_at = since + self.expiry
            return self.look_at

    def lose(self, lease: Any) -> None:
        """A finalizer has found this lease dropped, and can close nothing itself."""
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
        self._since.pop(connection, None)  # after a fork it need not be there
        return connection

    def _oldest(self) -> C:
        connection, (stack, _) = self._since.popitem(last=False)
        if stack and stack[0] is connection:  # else an exception came in the middle of `take`
            stack.popleft()
        return connection


def each(lost: deque[S]) -> Iterator[S]:
    """Each once, whichever other thread takes from it meanwhile."""
    with contextlib.suppress(IndexError):
        while True:
            yield lost.popleft()


def pool_of(options: WireOptions) -> KeepAlivePool[C]:
    """An empty pool with these limits."""
    limits = options.limits
    return KeepAlivePool(
        limits.keepalive_expiry, options.max_idle, limits.max_keepalive_connections
    )


class ConnectionLease(Generic[C]):
    """The use of one connection, from before it is taken until its response has been read."""

    __slots__ = ("__weakref__", "_connections", "connection", "idle_end", "use")

    def __init__(self, connections: InstanceConnections[C]) -> None:
        self.connection: C | None = None
        self.use = 0
        """Which use of the connection this is: it may be another's, later on."""
        self.idle_end = False
        """True where the response only ended a connection that had been idle."""
        self._connections = connections

    def __del__(self) -> None:
        if getattr(self, "connection", None) is not None:  # an exception came from outside
            self._connections.idle.lose(self)

    def end(self, *, reusable: bool) -> None:
        """Put the connection back, or close it. More than once does no harm."""
        if (connection := self.connection) is not None:
            self._connections.leave(connection, reusable=reusable)
            self.connection = None

    def interrupt(self) -> None:
        """Wake the thread that waits for the connection: nobody needs its response any more."""
        connections = self._connections
        with connections.idle.lock:  # so that nobody else takes it at this moment
            connection = self.connection
            if connection is not None and connection.uses == self.use:
                connection.shut()

    def drop(self) -> None:
        """Close the connection, unless it is another's by now."""
        self.interrupt()
        connection = self.connection
        if connection is not None and connection.uses == self.use:
            self._connections.leave(connection, reusable=False)
        self.connection = None


class InstanceConnections(Generic[C]):
    """The connections to one instance."""

    def __init__(self, idle: KeepAlivePool[C]) -> None:
        self.idle = idle
        self.liveness = InstanceLiveness()
        self.retired = False
        """True once no connection is kept any more."""
        self._used: dict[C, tuple[weakref.ref[ConnectionLease[C]], int]] = {}
        """Those in use, by whom, and which use that is."""
        self._stack: IdleStack[C] = deque()

    @property
    def is_idle(self) -> bool:
        """True where none is in use."""
        return not self._used

    def all(self) -> Sequence[C]:
        """Those in use, and the idle ones. Without the lock, which a thread that is not there may
        hold in a forked child; a copy of either is made in one step."""
        return [*self._used, *self._stack]

    def take(self, lease: ConnectionLease[C]) -> C | None:
        """Lease an idle connection on which nothing has arrived; None where there is none.

        What has arrived is its end, or belongs to nobody: it must not be read as the response to
        the next request.
        """
        idle, liveness = self.idle, self.liveness
        while (connection := idle.take(lease, self._stack)) is not None:
            self._used[connection] = weakref.ref(lease), lease.use
            expiry = idle.expiry
            if not (
                (expiry is not None and idle.clock() - connection.idle_since >= expiry)
                or connection.closed
                or self.retired  # whoever closed it may have come just before `_used` was set
                or connection.generation != liveness.generation
                or (connection.readable() if connection.http2 is None else not connection.fresh)
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
        """One of them is not used any more."""
        if not reusable or self.retired or connection.single_use:
            connection.close()
            self._used.pop(connection, None)
            return
        self._used.pop(connection, None)  # before another call can have it
        for one in self.idle.put(connection, self._stack):
            one.close()
        if self.retired:  # whoever retired it has looked for this one in vain
            self.drain()  # type: ignore[unreachable]  # another thread may have set it

    def _find_lost(self) -> None:
        """Close what was in use by a call whose finalizer was interrupted too, and told nobody."""
        for connection, (lease, use) in list(self._used.items()):
            if lease() is None:
                lost = ConnectionLease(self)
                lost.connection, lost.use = connection, use
                lost.drop()

    def drain(self) -> None:
        """Close what is idle now, and the rest once it is not used any more."""
        self.retired = True
        for one in self.idle.clear(self._stack):
            one.close()
