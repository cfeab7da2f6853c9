"""Code that is shared by threads and event loops: coroutines, which block on threads.

The logic is written once, as coroutines, over operations that each driver has for itself (receive,
send, sleep). On threads these block and never suspend, so a whole call is finished in one step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Self, TypeVar

__all__ = ["SUSPENDED", "Blocking", "run_blocking"]

T = TypeVar("T")


SUSPENDED = "a coroutine has suspended on a thread, where nothing resumes it"


def run_blocking(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine that `make` returns, which never suspends, and return its result.

    It is made here, since an exception from a signal handler may come as this function begins, and
    Python would warn about a coroutine that was never awaited. None comes between the next two
    calls.
    """
    try:
        make().send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError(SUSPENDED)


class Blocking(AsyncIterator[T]):
    """An iterable as an async iterator that never suspends. It is not an async generator, which
    would make itself known to an event loop that runs on this thread."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        for item in self._items:
            return item
        raise StopAsyncIteration
