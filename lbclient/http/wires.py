"""Which wires there are: one an instance, made when it is first called, closed once it has left."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import httpx

from lbclient import forking
from lbclient.endpoint import Endpoint
from lbclient.pool import Pool

__all__ = ["AsyncSender", "AsyncWires", "Sender", "Wires", "inherited"]

_AT_ONCE = 32
"""So many are closed before one call: thousands may leave together, and one call pays for few."""


class _Inherited(Protocol):
    """What a forked child shares with its parent."""

    def disown(self) -> None:
        """In the child: let go of the parent's sockets, without a word to the other end."""
        ...


class Sender(_Inherited, Protocol):
    """A wire for threads."""

    def send(
        self, request: httpx.Request, body: httpx.SyncByteStream, extensions: Mapping[str, object]
    ) -> httpx.Response:
        """Send it, and return once the headers came."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


class AsyncSender(_Inherited, Protocol):
    """A wire for one event loop."""

    async def send(
        self, request: httpx.Request, body: httpx.AsyncByteStream, extensions: Mapping[str, object]
    ) -> httpx.Response:
        """Send it, and return once the headers came."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


W = TypeVar("W", bound=_Inherited)
S = TypeVar("S")
inherited: list[object] = []
"""What a child may neither use nor finalize: a caller's transports, what an event loop owns."""


class _Wires(Generic[W, S]):
    """`make` makes the wire to one endpoint of `pool`."""

    def __init__(self, pool: Pool, make: Callable[[Endpoint], W]) -> None:
        self.lost: deque[S] = deque()
        """Bodies that their callers dropped unclosed."""
        self._pool = pool
        self._make = make
        self._wires: dict[Endpoint, tuple[tuple[str, ...], W]] = {}
        self._leaving: list[tuple[Endpoint, W]] = []
        self._lock = threading.Lock()
        self._seen = 0

    def to(self, endpoint: Endpoint) -> W:
        """The wire to an instance; a new one where its addresses are others than before."""
        known = self._wires.get(endpoint)
        if known is not None and known[0] is endpoint.instance.addresses:
            return known[1]
        return self._new(endpoint)

    @property
    def untidy(self) -> bool:
        """True where there may be something to close."""
        return bool(self.lost) or self._seen != self._pool.membership or bool(self._leaving)

    def disown(self) -> None:
        """In a forked child: the parent's connections are the parent's."""
        wires = self._all()
        self._lock = threading.Lock()
        self._wires, self._leaving = {}, []
        inherited.append(wires)
        for wire in wires:
            wire.disown()

    def _new(self, endpoint: Endpoint) -> W:
        with self._lock:
            known = self._wires.get(endpoint)
            addresses = endpoint.instance.addresses
            if known is not None:
                if set(known[0]) == set(addresses):
                    self._wires[endpoint] = (addresses, known[1])
                    return known[1]
                self._leaving.append((endpoint, known[1]))
            wire = self._make(endpoint)
            self._wires[endpoint] = (addresses, wire)
            return wire

    def _departed(self) -> Sequence[W]:
        """Wires to close: nobody uses them any more, and nobody will."""
        with self._lock:
            if self._seen != self._pool.membership:
                self._seen = self._pool.membership
                gone = [one for one in self._wires if one.gone]
                self._leaving += [(one, self._wires.pop(one)[1]) for one in gone]
            idle = [pair for pair in self._leaving if not pair[0].in_flight][:_AT_ONCE]
            self._leaving = [pair for pair in self._leaving if pair not in idle]
        return [wire for _, wire in idle]

    def _all(self) -> Sequence[W]:
        return [wire for _, wire in (*self._wires.values(), *self._leaving)]

    def _taken(self) -> Sequence[W]:
        """Every wire, handed over for closing."""
        with self._lock:
            wires = self._all()
            self._wires, self._leaving = {}, []
        return wires


class Wires(_Wires[Sender, httpx.SyncByteStream]):
    """The wires of a transport for threads."""

    def __init__(self, pool: Pool, make: Callable[[Endpoint], Sender]) -> None:
        super().__init__(pool, make)
        forking.track(self)

    def after_fork(self) -> None:
        """In a child: connections of its own."""
        self.disown()

    def tidy(self) -> None:
        """Close what was lost and what has left."""
        for wire in self._departed():
            wire.close()
        for body in _each(self.lost):
            body.close()

    def close(self) -> None:
        """Close every wire."""
        for wire in self._taken():
            wire.close()


class AsyncWires(_Wires[AsyncSender, httpx.AsyncByteStream]):
    """The wires of a transport in one event loop."""

    async def tidy(self) -> None:
        """Close what was lost and what has left."""
        for wire in self._departed():
            await wire.aclose()
        for body in _each(self.lost):
            await body.aclose()

    async def aclose(self) -> None:
        """Close every wire."""
        for wire in self._taken():
            await wire.aclose()


def _each(lost: deque[S]) -> Iterator[S]:
    """Each once, whichever other thread takes from it meanwhile."""
    with contextlib.suppress(IndexError):
        while True:
            yield lost.popleft()
