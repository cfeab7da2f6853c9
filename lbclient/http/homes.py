"""Where the connections of an async transport live: in the event loop that opened them.

A client may outlive a loop and be used in the next one (`asyncio.run` once a job), or in several at
the same time. A connection can not. So each loop has wires of its own; they are closed as it ends.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable

from lbclient import forking
from lbclient.http.wires import AsyncWires, inherited

__all__ = ["Homes"]


class Homes:
    """The wires of one transport, a set for each event loop; `make` makes a set."""

    def __init__(self, make: Callable[[], AsyncWires]) -> None:
        self._make = make
        self._homes: dict[object, _Home] = {}
        self._last: tuple[object, AsyncWires | None] = None, None
        self._lock = threading.Lock()
        forking.track(self)

    async def here(self) -> AsyncWires:
        """The wires of the running loop."""
        loop = _running()
        last, wires = self._last
        if last is loop and wires is not None:
            return wires
        with self._lock:
            home = self._homes.get(loop) or self._found(loop)
        self._last = loop, home.wires
        await home.settle()
        return home.wires

    async def aclose(self) -> None:
        """Close the wires of the running loop; those of others are closed as they end."""
        if (home := self._homes.pop(_running(), None)) is not None:
            await home.aclose()

    def after_fork(self) -> None:
        """In a child: no loop of the parent's runs here."""
        homes, self._homes = self._homes, {}
        self._last = None, None
        self._lock = threading.Lock()
        for home in homes.values():
            home.wires.disown()
        inherited.append(homes)

    def _found(self, loop: object) -> _Home:
        me = weakref.ref(self)

        def forget() -> None:
            if (homes := me()) is not None:
                homes.forget(loop)

        for one in [one for one in self._homes if getattr(one, "is_closed", _never)()]:
            del self._homes[one]  # closed without a word to its generators
        return self._homes.setdefault(loop, _Home(self._make(), forget))

    def forget(self, loop: object) -> None:
        """This loop has ended."""
        self._homes.pop(loop, None)
        if self._last[0] is loop:
            self._last = None, None


class _Home:
    """Wires that are closed when their loop ends: it ends every generator that is left in it."""

    def __init__(self, wires: AsyncWires, forget: Callable[[], None]) -> None:
        self.wires = wires
        self._stay = _stay(wires, forget)
        self._settled = False

    async def settle(self) -> None:
        """Be known to the loop."""
        if not self._settled:
            self._settled = True
            await anext(self._stay)

    async def aclose(self) -> None:
        """Close the wires now."""
        await self._stay.aclose()


async def _stay(wires: AsyncWires, forget: Callable[[], None]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        forget()
        await wires.aclose()


def _never() -> bool:
    return False


def _running() -> object:
    """The event loop, asyncio's or trio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio  # noqa: PLC0415  # only where trio runs the loop is it there

        return trio.lowlevel.current_trio_token()
