"""Runs the coroutines that threads and event loops share; on threads they block.

The logic is written once, as coroutines. Threads and event loops differ only in the operations that
these coroutines await (receive, send, sleep). The operations for threads block and never suspend,
so one step of the coroutine runs the whole call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Self, TypeVar

__all__ = ["SUSPENDED", "Blocking", "run_blocking"]

T = TypeVar("T")


SUSPENDED = "a coroutine has suspended on a thread, where nothing resumes it"


def run_blocking(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine that `make` returns, which never suspends, and return its result.

    The coroutine is created here and not by the caller: an exception from a signal handler may come
    just when this function begins, and then Python would warn about a coroutine that was never
    awaited. No such exception comes between the two calls below.
    """
    try:
        make().send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError(SUSPENDED)


class Blocking(AsyncIterator[T]):
    """An iterable as an async iterator that never suspends. It is not an async generator, since an
    async generator registers with an event loop that runs on this thread."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        for item in self._items:
            return item
        raise StopAsyncIteration
