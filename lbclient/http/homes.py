"""Where the connections of an async transport live: in the event loop that opened them.

A client may outlive a loop and be used in the next one (`asyncio.run` once a job), or in several at
the same time. A connection can not. So each loop has wires of its own; they are closed as it ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from functools import partial
from weakref import WeakSet

import anyio

from lbclient import forking
from lbclient.interruption import is_interruption
from lbclient.pool import Pool
from lbclient.shell import asleep
from lbclient.waiting import Pause, Signal

from .wires import AsyncWires, call_soon, inherited, running_loop, spawn

__all__ = ["Homes"]

_ELSEWHERE = 1.0
"""Seconds to wait for another loop to close its connections: it may be busy."""

logger = logging.getLogger(__name__)


class Homes:
    """The wires of one transport, a set for each event loop; `make` makes a set."""

    def __init__(self, pool: Pool, make: Callable[[], AsyncWires]) -> None:
        self._make = make
        self._homes: dict[object, AsyncWires] = {}
        self._last: tuple[object, AsyncWires] | None = None
        self._lock = threading.Lock()
        self._closed = False
        pool.listen(self._instances_departed)
        forking.track(self)

    def last(self) -> AsyncWires | None:
        """The wires of the running loop, if they are those that were asked for last."""
        last = self._last
        return last[1] if last is not None and last[0] is running_loop() else None

    async def here(self) -> AsyncWires:
        """The wires of the running loop."""
        loop = running_loop()
        with self._lock:
            if self._closed:
                raise RuntimeError("this client was closed")
            if (wires := self._homes.get(loop)) is None:
                wires = self._settle(loop)
        await _tell_at_end(self, loop)
        self._last = loop, wires
        return wires

    async def aclose(self) -> None:
        """Close the wires of the running loop, and have other loops that run close theirs. Those of
        a loop that stands still are closed as it ends. None is opened after this."""
        with self._lock:
            self._closed, self._last = True, None
            homes = dict(self._homes)
        own, elsewhere = homes.pop(running_loop(), None), []
        for loop, wires in homes.items():
            done = Signal()
            if _soon(loop, partial(_close, wires, done)):
                elsewhere.append(done)
        if own is not None:
            await own.aclose()
        for done in elsewhere:
            await asleep(Pause(_ELSEWHERE, done))

    async def leave(self, loop: object) -> None:
        """Close the wires of this loop, which is running."""
        if self._last is not None and self._last[0] is loop:
            self._last = None
        if (wires := self._homes.pop(loop, None)) is not None:
            await wires.aclose()

    def after_fork(self) -> None:
        """In a child: no loop of the parent's runs here."""
        homes, self._homes, self._last = self._homes, {}, None
        self._lock = threading.Lock()
        for wires in homes.values():
            wires.disown()
        inherited.append((homes, dict(_ends)))
        _ends.clear()

    def _instances_departed(self) -> None:
        with self._lock:
            homes = list(self._homes.values())
        for wires in homes:
            wires.instances_departed()

    def _settle(self, loop: object) -> AsyncWires:
        for one in _crudely_ended(self._homes):
            del self._homes[one]
        wires = self._homes[loop] = self._make()
        return wires


class _End:
    """Tells the end of one loop: a loop, as it ends, closes every generator that is left in it."""

    def __init__(self, loop: object) -> None:
        self.homes: WeakSet[Homes] = WeakSet()
        self._generator = self._stay(loop)

    async def begin(self) -> None:
        """Be known to the loop."""
        await anext(self._generator)

    async def _stay(self, loop: object) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            _ends.pop(loop, None)
            with anyio.CancelScope(shield=True):  # trio ends generators in a cancelled scope
                for homes in list(self.homes):
                    await _leave(homes, loop)


async def _leave(homes: Homes, loop: object) -> None:
    """One transport that fails to close must not keep the others open."""
    try:
        await homes.leave(loop)
    except Exception as error:
        if is_interruption(error):
            raise
        logger.exception("connections could not be closed at the end of their event loop")


_ends: dict[object, _End] = {}


async def _tell_at_end(homes: Homes, loop: object) -> None:
    """Have it leave the loop when that ends. One generator a loop, whatever becomes of clients."""
    if (end := _ends.get(loop)) is None:
        for one in _crudely_ended(_ends):
            _ends.pop(one, None)
        end = _ends[loop] = _End(loop)
        await end.begin()
    end.homes.add(homes)


async def _close(wires: AsyncWires, done: Signal) -> None:
    try:
        await wires.aclose()
    except Exception as error:
        if is_interruption(error):
            raise
        logger.exception("connections could not be closed in their event loop")
    finally:
        done.set()


def _soon(loop: object, work: Callable[[], Coroutine[object, object, None]]) -> bool:
    """Have another loop do that. False where it does not run."""
    if isinstance(loop, asyncio.AbstractEventLoop) and not loop.is_running():
        return False
    return call_soon(loop, partial(spawn, loop, work))


def _crudely_ended(loops: Iterable[object]) -> list[object]:
    """Loops that were closed without a word to their generators."""
    return [one for one in list(loops) if getattr(one, "is_closed", _never)()]


def _never() -> bool:
    return False
