"""Which wires there are: one an instance, made when it is first called, closed once it has left."""

from __future__ import annotations

import contextlib
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import anyio

from lbclient import forking
from lbclient.complaint import Complaint, log_now
from lbclient.endpoint import Endpoint
from lbclient.interruption import is_interruption
from lbclient.pool import Pool

from .connections.pool import KeepAlivePool, pool_of
from .flavour import httpx
from .options import WireOptions
from .senders import AsyncSender, Kept, Sender

__all__ = ["AsyncWires", "Wires", "inherited"]

_JITTER = 0.1
_AT_ONCE = 32
"""So many are closed before one call: thousands may leave together, and one call pays for few."""


W = TypeVar("W", bound=Kept)
S = TypeVar("S")
inherited: list[object] = []
"""What a child may neither use nor finalize: a caller's transports, what an event loop owns."""


class _Wires(Generic[W, S]):
    """`make` makes the wire to one endpoint of `pool`; idle connections of all have one limit.

    A wire is `max_connection_age` old at the most, less up to a tenth by the dice; then a new one
    takes its place, and what is under way on the old one goes on.
    """

    def __init__(
        self,
        pool: Pool,
        make: Callable[[Endpoint, KeepAlivePool[Any]], W],
        options: WireOptions,
        rng: random.Random,
    ) -> None:
        self.lost: deque[S] = deque()
        """Bodies that their callers dropped unclosed."""
        self._pool = pool
        self._make = make
        self._max_age = options.max_connection_age
        self._rng = rng
        self._options = options
        self._idle: KeepAlivePool[Any] = pool_of(options)
        self._wires: dict[Endpoint, tuple[tuple[str, ...], W, float]] = {}
        self._leaving: deque[tuple[Endpoint, W]] = deque()
        self._lock = threading.RLock()  # what makes a wire may be the caller's, and use this one
        self._seen = 0
        self._closed = False
        self._closing = Complaint(log_now, "a transport", "could not be closed")

    def to(self, endpoint: Endpoint, now: float) -> W:
        """The wire to an instance; a new one where its addresses are others than before, or where
        it is too old."""
        known = self._wires.get(endpoint)
        if known is not None and known[0] is endpoint.instance.addresses and now < known[2]:
            return known[1]
        return self._new(endpoint, now)

    @property
    def untidy(self) -> bool:
        """True where there may be something to close."""
        return bool(
            self.lost or self._idle.lost or self._seen != self._pool.membership or self._leaving
        )

    def disown(self) -> None:
        """In a forked child: the parent's connections are the parent's."""
        wires = self._all()
        self._lock = threading.RLock()
        self._wires, self._leaving = {}, deque()
        self._idle = pool_of(self._options)
        inherited.append(wires)
        for wire in wires:
            wire.disown()

    @contextlib.contextmanager
    def _told(self, what: object) -> Iterator[None]:
        """A caller's own transport may fail to close: nothing for whoever calls next to hear."""
        try:
            yield
        except Exception as error:
            if is_interruption(error):
                raise
            self._closing.failed(time.monotonic(), error, detail=repr(what))
        else:
            if self._closing.failing:
                self._closing.recovered()

    def _new(self, endpoint: Endpoint, now: float) -> W:
        with self._lock:
            if self._closed:
                raise RuntimeError("this client was closed")
            known = self._wires.get(endpoint)
            addresses = endpoint.instance.addresses
            if known is not None:
                if set(known[0]) == set(addresses) and now < known[2]:
                    self._wires[endpoint] = (addresses, *known[1:])
                    return known[1]
                self._leaving.append((endpoint, known[1]))
            wire = self._make(endpoint, self._idle)
            self._wires[endpoint] = (addresses, wire, self._until(now))
            if endpoint.gone:
                self._seen = -1  # it left after it was picked: look again
            return wire

    def _until(self, now: float) -> float:
        if self._max_age is None:
            return math.inf
        return now + self._max_age * (1 - _JITTER * self._rng.random())

    def _departed(self) -> Iterator[tuple[Endpoint, W]]:
        """Some wires to close: nobody uses them any more, and nobody will."""
        with self._lock:
            if self._seen != self._pool.membership:
                self._seen = self._pool.membership
                gone = [one for one in self._wires if one.gone]
                self._leaving.extend((one, self._wires.pop(one)[1]) for one in gone)
            some = [self._leaving.popleft() for _ in range(min(_AT_ONCE, len(self._leaving)))]
        try:
            while some:
                one = endpoint, wire = some.pop()
                if endpoint.in_flight and (endpoint.gone or not wire.quiet):
                    self._leaving.append(one)
                else:
                    yield one
        finally:
            self._leaving.extend(some)  # those left when a closing was cancelled

    def _all(self) -> Sequence[W]:
        return [wire for _, wire, _ in self._wires.values()] + [wire for _, wire in self._leaving]

    def _taken(self) -> Sequence[W]:
        """Every wire, handed over for closing."""
        with self._lock:
            wires = self._all()
            self._wires, self._leaving = {}, deque()
        return wires


class Wires(_Wires[Sender, httpx.SyncByteStream]):
    """The wires of a transport for threads."""

    def __init__(
        self,
        pool: Pool,
        make: Callable[[Endpoint, KeepAlivePool[Any]], Sender],
        options: WireOptions,
        rng: random.Random,
    ) -> None:
        super().__init__(pool, make, options, rng)
        forking.track(self)

    def after_fork(self) -> None:
        """In a child: connections of its own."""
        self.disown()

    def tidy(self) -> None:
        """Close what was lost and what has left."""
        for lease in _each(self._idle.lost):
            lease.drop()
        for endpoint, wire in self._departed():
            with self._told(wire):  # a call in flight may be just about to use it
                (wire.retire if endpoint.in_flight else wire.close)()
        for body in _each(self.lost):
            with self._told(body):
                body.close()

    def close(self) -> None:
        """Close every wire, and make no other. What one of them raises is raised after that."""
        self._closed = True
        with contextlib.ExitStack() as stack:
            for wire in self._taken():
                stack.callback(wire.close)


class AsyncWires(_Wires[AsyncSender, httpx.AsyncByteStream]):
    """The wires of a transport in one event loop."""

    async def tidy(self) -> None:
        """Close what was lost and what has left."""
        for lease in _each(self._idle.lost):
            lease.drop()
        with anyio.CancelScope(shield=True):  # the call that does it may have little time left
            for _, wire in self._departed():
                with self._told(wire):
                    await wire.aclose()
            for body in _each(self.lost):
                with self._told(body):
                    await body.aclose()

    async def aclose(self) -> None:
        """Close every wire, and make no other. What one of them raises is raised after that."""
        self._closed = True
        async with contextlib.AsyncExitStack() as stack:
            for wire in self._taken():
                stack.push_async_callback(wire.aclose)


def _each(lost: deque[S]) -> Iterator[S]:
    """Each once, whichever other thread takes from it meanwhile."""
    with contextlib.suppress(IndexError):
        while True:
            yield lost.popleft()
