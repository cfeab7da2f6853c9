"""The transports of one client, one for each instance. A transport is created when the instance is
first called, and closed after the instance has left.

Connections are closed even if no further call is made. `Pool.listen` reports when instances have
left. The scheduler (on threads), or a timer of the event loop, closes connections that have been
idle for too long, or whose response was garbage collected. The scheduler and the timer do not keep
a client alive, and they run only while a connection is idle.

A client may be used in one event loop after another (`asyncio.run` once per job), or in several
loops at the same time. A connection belongs to one loop. So each loop has its own transports, which
are closed when the loop ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from functools import partial
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet

import anyio
import anyio.lowlevel

from lbclient._internal import fork
from lbclient._internal.blocking import run_blocking
from lbclient._internal.failure_log import Complaint, log_now
from lbclient._internal.interruption import is_interruption
from lbclient._internal.signals import Pause, Signal
from lbclient.balancer.event_loops import asleep, call_soon, running_loop
from lbclient.core.pool import Pool
from lbclient.discovery.scheduler import THREAD_SCHEDULER
from lbclient.endpoint.endpoint import Endpoint

from .._compat import httpx
from ..options import ConnectionSettings
from .custom_transport import InstanceTransport
from .pool import KeepAlivePool, each, pool_of

__all__ = ["AsyncTransportPool", "BaseTransportPool", "PerLoopTransports", "TransportPool"]

_JITTER = 0.1
_AT_ONCE = 32
"""The maximum number of transports that are closed before one call. Thousands of instances may
leave at the same time, and one call should not wait until all of their transports are closed."""


S = TypeVar("S")
Make = Callable[[Endpoint, KeepAlivePool[Any]], InstanceTransport]
inherited: list[object] = []
"""Keeps objects alive that a forked child must neither use nor finalize: transports of the caller,
and transports of the parent's event loops."""

_ELSEWHERE = 1.0
"""Seconds to wait until another loop, which may be busy, has closed its connections."""

_logger = logging.getLogger(__name__)


class BaseTransportPool(ABC, Generic[S]):
    """The transports to the endpoints of `pool`. `make` creates a transport. One limit of idle
    connections applies to all transports together.

    When a transport is older than `max_connection_age` (less a random part of up to a tenth), a new
    transport replaces it. Calls on the old transport continue.
    """

    def __init__(
        self,
        pool: Pool,
        make: Make,
        options: ConnectionSettings,
        rng: random.Random,
    ) -> None:
        self.lost: deque[S] = deque()
        """Response bodies that were garbage collected before they were closed."""
        self._pool = pool
        self._make = make
        self._max_age = options.max_connection_age
        self._rng = rng
        self._options = options
        self._idle: KeepAlivePool[Any] = self._new_idle()
        self._transports: dict[Endpoint, tuple[tuple[str, ...], InstanceTransport, float]] = {}
        self.leaving: deque[tuple[Endpoint, InstanceTransport]] = deque()
        """Transports that no longer keep idle connections. Each is closed once no call uses it."""
        self._lock = threading.RLock()  # a caller's transport factory may use this client
        self._seen = 0
        self._closed = False
        self._closing = Complaint(log_now, "a transport", "could not be closed")

    def to(self, endpoint: Endpoint, now: float) -> InstanceTransport:
        """Return the transport to an instance. This is a new transport if the instance's addresses
        have changed, or if the old transport has reached its maximum age."""
        known = self._transports.get(endpoint)
        if known is not None and known[0] is endpoint.instance.addresses and now < known[2]:
            return known[1]
        return self._new(endpoint, now)

    def ready(self) -> Self | None:
        """Return this object, or None if there may be something to close. Then use `tidied`
        instead."""
        if self.lost or self._idle.lost or self._seen != self._pool.membership or self.leaving:
            return None
        return self

    async def tidied(self) -> Self:
        """Run `tidy`, and then return this object."""
        await self.tidy()
        return self

    async def tidy(self) -> None:
        """Close transports to instances that have left, and also bodies and connections that were
        garbage collected before they were closed."""
        self._idle.sweep()
        with self._shield():  # the current call may have little time left
            for endpoint, transport in self._departed():
                if not endpoint.in_flight:  # otherwise a call may be about to use it
                    with self._told(transport):
                        await transport.aclose()
            await self._close_lost()

    async def aclose(self) -> None:
        """Close all transports, and create no others. If closing one of them raises an exception,
        this exception is raised after all have been closed."""
        self._closed = True
        self._idle.sweep()
        await self._close_lost()  # after this, nothing checks for dropped bodies
        async with contextlib.AsyncExitStack() as stack:
            for transport in self._taken():
                stack.push_async_callback(transport.aclose)

    def lose(self, body: S) -> None:
        """Record a body that was garbage collected before it was closed. The finalizer of the body
        calls this method, since a finalizer must not close the body itself."""
        self.lost.append(body)
        self._summon()

    def detach_after_fork(self) -> None:
        """In a forked child: give up the parent's connections."""
        transports = self._all()
        self._lock = threading.RLock()
        self._transports, self.leaving = {}, deque()
        self._idle = self._new_idle()
        inherited.append(transports)
        for transport in transports:
            transport.detach_after_fork()

    def _new_idle(self) -> KeepAlivePool[Any]:
        idle: KeepAlivePool[Any] = pool_of(self._options)
        idle.wake, idle.summon = _weakly(self._wake), _weakly(self._summon)
        return idle

    async def _close_lost(self) -> None:
        for body in each(self.lost):
            with self._told(body):
                await self._close_body(body)

    async def _tidy_all(self) -> None:
        await self.tidy()
        for _ in range(0, len(self.leaving), _AT_ONCE):
            await self._yield_turn()
            await self.tidy()

    def _shield(self) -> contextlib.AbstractContextManager[object]:
        """Return a context manager that protects its block from a cancellation."""
        return contextlib.nullcontext()

    async def _yield_turn(self) -> None:
        """Let other tasks run."""

    @abstractmethod
    async def _close_body(self, body: S) -> None:
        """Close a body whose response was garbage collected."""

    @abstractmethod
    def _wake(self) -> None:
        """Schedule a check of the idle connections at the time when the first of them expires."""

    @abstractmethod
    def _summon(self) -> None:
        """Request that bodies and connections that were garbage collected before they were closed
        are closed soon. Finalizers call this method, on any thread."""

    def _told(self, what: object) -> AbstractContextManager[None]:
        """Return a context manager that logs the exception of a caller's transport that fails to
        close. Without it, the next call would raise this exception."""
        return self._closing.tolerate(time.monotonic(), what)

    def _new(self, endpoint: Endpoint, now: float) -> InstanceTransport:
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            known = self._transports.get(endpoint)
            addresses = endpoint.instance.addresses
            if known is not None:
                if set(known[0]) == set(addresses) and now < known[2]:
                    self._transports[endpoint] = (addresses, *known[1:])
                    return known[1]
                self.leaving.append((endpoint, known[1]))
            transport = self._make(endpoint, self._idle)
            if endpoint.gone:  # the instance has left since it was picked
                transport.drain()
                self._transports.pop(endpoint, None)
                self.leaving.append((endpoint, transport))
            else:
                self._transports[endpoint] = (addresses, transport, self._until(now))
            return transport

    def _until(self, now: float) -> float:
        if self._max_age is None:
            return math.inf
        return now + self._max_age * (1 - _JITTER * self._rng.random())

    def _departed(self) -> Iterator[tuple[Endpoint, InstanceTransport]]:
        """Yield some transports to close, which no call uses or will use."""
        with self._lock:
            if self._seen != self._pool.membership:
                self._seen = self._pool.membership
                gone = [one for one, known in self._transports.items() if _has_left(one, known[0])]
                self.leaving.extend((one, self._transports.pop(one)[1]) for one in gone)
            some = [self.leaving.popleft() for _ in range(min(_AT_ONCE, len(self.leaving)))]
        try:
            while some:
                one = endpoint, transport = some.pop()
                transport.drain()
                if endpoint.in_flight and (endpoint.gone or not transport.is_idle):
                    self.leaving.append(one)
                else:
                    yield one
        finally:
            self.leaving.extend(some)  # those that are left if closing was cancelled

    def _all(self) -> Sequence[InstanceTransport]:
        return [transport for _, transport, _ in self._transports.values()] + [
            transport for _, transport in self.leaving
        ]

    def _taken(self) -> Sequence[InstanceTransport]:
        """Remove all transports, and return them to be closed."""
        with self._lock:
            transports = self._all()
            self._transports, self.leaving = {}, deque()
        return transports


class TransportPool(BaseTransportPool[httpx.SyncByteStream]):
    """The transports of a client for threads. This object is also a job of the scheduler, which
    closes idle connections."""

    ticket = -1
    busy = False

    def __init__(
        self, pool: Pool, make: Make, options: ConnectionSettings, rng: random.Random
    ) -> None:
        super().__init__(pool, make, options, rng)
        pool.listen(self._instances_departed)
        fork.track(self)

    @property
    def next_at(self) -> float:
        """The time when there may be something to close."""
        return -math.inf if self.lost or self._idle.lost else self._idle.look_at

    @property
    def stopped(self) -> bool:
        """True while nothing is idle."""
        return self.next_at == math.inf

    @property
    def quick(self) -> bool:
        """True if `run` never blocks. False for a caller's transport, which may block while it
        closes a body."""
        return not self.lost

    def clock(self) -> float:
        """Return monotonic seconds."""
        return self._idle.clock()

    def claim(self) -> bool:
        """Return True, since several rounds may run at the same time."""
        return True

    def run(self) -> None:
        """Close connections that have been idle for too long, and bodies that were garbage
        collected before they were closed."""
        self._idle.sweep()
        run_blocking(self._close_lost)
        self._idle.next_look()

    def after_fork(self) -> None:
        """In a forked child: start with no connections."""
        self.detach_after_fork()

    async def _close_body(self, body: httpx.SyncByteStream) -> None:
        body.close()

    def _instances_departed(self) -> None:
        run_blocking(self._tidy_all)

    def _wake(self) -> None:
        self._idle.watch(lambda _: THREAD_SCHEDULER.schedule(self))

    def _summon(self) -> None:
        if THREAD_SCHEDULER.started:  # a finalizer must not start a thread
            THREAD_SCHEDULER.schedule(self)


class AsyncTransportPool(BaseTransportPool[httpx.AsyncByteStream]):
    """The transports of a client in one event loop."""

    def __init__(
        self, pool: Pool, make: Make, options: ConnectionSettings, rng: random.Random
    ) -> None:
        super().__init__(pool, make, options, rng)
        self._loop = running_loop()

    def instances_departed(self) -> None:
        """Request that idle connections to instances that have left are closed soon. Any thread may
        call this method."""
        self._summon()

    def _shield(self) -> anyio.CancelScope:
        return anyio.CancelScope(shield=True)

    async def _yield_turn(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def _close_body(self, body: httpx.AsyncByteStream) -> None:
        await body.aclose()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._idle.watch(partial(_look_later, self._loop, self._idle))

    def _summon(self) -> None:
        call_soon(self._loop, _weakly(self._attend))

    def _attend(self) -> None:
        self._idle.sweep()
        if self.ready() is None:
            spawn(self._loop, self._tidy_all)


def spawn(loop: object, work: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run a coroutine in the running event loop, as a task of its own."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        _tasks.add(task := loop.create_task(work()))
        task.add_done_callback(_tasks.discard)
        return
    import trio  # noqa: PLC0415  # as above

    trio.lowlevel.spawn_system_task(work)


def _look_later(loop: object, idle: KeepAlivePool[Any], seconds: float) -> None:
    """Make the running event loop close the expired connections of this pool after some seconds,
    and repeatedly while any connection is idle.

    Until then, the timer keeps this pool alive, so that its connections are closed: asyncio would
    keep them open. The timer does not keep the client alive.
    """

    def look() -> None:
        idle.sweep()
        if (at := idle.next_look()) < math.inf:
            _look_later(loop, idle, at - idle.clock())

    if isinstance(loop, asyncio.AbstractEventLoop):
        loop.call_later(seconds, look, context=Context())
        return
    import trio  # noqa: PLC0415  # as above

    until = trio.current_time() + seconds

    async def wait() -> None:
        await trio.sleep_until(until)
        look()

    trio.lowlevel.spawn_system_task(wait)


_tasks: set[asyncio.Task[None]] = set()
"""Keeps tasks alive, since event loops hold only weak references to them."""


def _weakly(method: Callable[[], object]) -> Callable[[], object]:
    """Return a function that calls `method` if the object of the method still exists. The function
    does not keep this object alive."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        if (living := ref()) is not None:
            living()

    return call


def _has_left(endpoint: Endpoint, addresses: tuple[str, ...]) -> bool:
    """Return True if the instance has left, or now has other addresses than `addresses`."""
    now = endpoint.instance.addresses
    return endpoint.gone or (now is not addresses and set(now) != set(addresses))


class PerLoopTransports:
    """The transports of one client: one pool of transports for each event loop. `make` creates such
    a pool."""

    def __init__(self, pool: Pool, make: Callable[[], AsyncTransportPool]) -> None:
        self._make = make
        self._per_loop: dict[object, AsyncTransportPool] = {}
        self._last: tuple[object, AsyncTransportPool] | None = None
        self._lock = threading.Lock()
        self._closed = False
        pool.listen(self._instances_departed)
        fork.track(self)

    def ready(self) -> AsyncTransportPool | None:
        """Return the transports of the running event loop if the last call used them too and there
        is nothing to close. Otherwise return None; then use `tidied`."""
        last = self._last
        return last[1].ready() if last is not None and last[0] is running_loop() else None

    async def tidied(self) -> AsyncTransportPool:
        """Return the transports of the running event loop, after closing bodies and connections
        that were garbage collected before they were closed."""
        transports = await self._here()
        return transports.ready() or await transports.tidied()

    async def _here(self) -> AsyncTransportPool:
        loop = running_loop()
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if (transports := self._per_loop.get(loop)) is None:
                transports = self._join(loop)
        await _tell_at_end(self, loop)
        self._last = loop, transports
        return transports

    async def aclose(self) -> None:
        """Close the transports of the running event loop, and make other running loops close
        theirs. If a loop does not run, its transports are closed when it ends. No transport is
        created after this."""
        with self._lock:
            self._closed, self._last = True, None
            per_loop = dict(self._per_loop)
        own, elsewhere = per_loop.pop(running_loop(), None), []
        for loop, transports in per_loop.items():
            done = Signal()
            if _soon(loop, partial(_close, transports, done)):
                elsewhere.append(done)
        if own is not None:
            await own.aclose()
        for done in elsewhere:
            await asleep(Pause(_ELSEWHERE, done))

    async def leave(self, loop: object) -> None:
        """Close the transports of the event loop `loop`, which is running."""
        if self._last is not None and self._last[0] is loop:
            self._last = None
        if (transports := self._per_loop.pop(loop, None)) is not None:
            await transports.aclose()

    def after_fork(self) -> None:
        """In a forked child: forget the parent's loops, since none of them runs in the child."""
        per_loop, self._per_loop, self._last = self._per_loop, {}, None
        self._lock = threading.Lock()
        for transports in per_loop.values():
            transports.detach_after_fork()
        inherited.append((per_loop, dict(_ends)))
        _ends.clear()

    def _instances_departed(self) -> None:
        with self._lock:
            per_loop = list(self._per_loop.values())
        for transports in per_loop:
            transports.instances_departed()

    def _join(self, loop: object) -> AsyncTransportPool:
        for ended in _crudely_ended(self._per_loop):
            del self._per_loop[ended]
        transports = self._per_loop[loop] = self._make()
        return transports


class _End:
    """Notices the end of one event loop. It uses an async generator: when a loop ends, the loop
    closes every async generator that has not ended."""

    def __init__(self, loop: object) -> None:
        self.per_loop: WeakSet[PerLoopTransports] = WeakSet()
        self._generator = self._stay(loop)

    async def begin(self) -> None:
        """Start the generator, so that the loop closes it at its end."""
        await anext(self._generator)

    async def _stay(self, loop: object) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _ends.pop(loop, None)
            with anyio.CancelScope(shield=True):  # trio closes generators in a cancelled scope
                for per_loop in list(self.per_loop):
                    await _leave(per_loop, loop)


async def _leave(per_loop: PerLoopTransports, loop: object) -> None:
    """Close the transports of the event loop `loop`. An exception is logged, so that the transports
    of other clients are closed too."""
    try:
        await per_loop.leave(loop)
    except Exception as error:
        if is_interruption(error):
            raise
        _logger.exception("connections could not be closed at the end of their event loop")


_ends: dict[object, _End] = {}


async def _tell_at_end(per_loop: PerLoopTransports, loop: object) -> None:
    """Arrange that the transports are closed when the event loop ends. There is one generator for
    each loop, even if many clients are created in it."""
    if (end := _ends.get(loop)) is None:
        for ended in _crudely_ended(_ends):
            _ends.pop(ended, None)
        end = _ends[loop] = _End(loop)
        await end.begin()
    end.per_loop.add(per_loop)


async def _close(transports: AsyncTransportPool, done: Signal) -> None:
    try:
        await transports.aclose()
    except Exception as error:
        if is_interruption(error):
            raise
        _logger.exception("connections could not be closed in their event loop")
    finally:
        done.set()


def _soon(loop: object, work: Callable[[], Coroutine[object, object, None]]) -> bool:
    """Make another event loop run a coroutine. Returns False if the loop does not run."""
    if isinstance(loop, asyncio.AbstractEventLoop) and not loop.is_running():
        return False
    return call_soon(loop, partial(spawn, loop, work))


def _crudely_ended(loops: Iterable[object]) -> list[object]:
    """Return the event loops that were closed without closing their generators."""
    return [loop for loop in list(loops) if getattr(loop, "is_closed", _never)()]


def _never() -> bool:
    return False
