"""Runs coroutines on threads, where they block.

Threads and event loops differ only in the operations that these coroutines await (receive, send,
sleep). On threads, these operations block and the coroutine is never suspended. So a single `send`
to the coroutine runs it to its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Self, TypeVar

__all__ = ["SUSPENDED", "Blocking", "run_blocking"]

T = TypeVar("T")


SUSPENDED = "a coroutine has suspended on a thread, where nothing resumes it"


def run_blocking(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine that `make` returns, which never suspends, and return its result.

    The coroutine is created in this function, not by its caller. Otherwise, if a signal handler
    raised an exception just when this function begins, Python would warn about a coroutine that was
    never awaited. CPython runs no signal handler between the two calls below.
    """
    try:
        make().send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError(SUSPENDED)


class Blocking(AsyncIterator[T]):
    """An iterable as an async iterator that never suspends. It is not an async generator: if an
    event loop runs on this thread, Python registers each async generator with this loop."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        for item in self._items:
            return item
        raise StopAsyncIteration
