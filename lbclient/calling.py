"""A caller's own function, as a shell sends with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import TypeVar

import anyio

from lbclient.call import Attempt
from lbclient.deadline import Expiry
from lbclient.instance import Instance

__all__ = ["asender", "sender"]

T = TypeVar("T")


def sender(fn: Callable[[Instance], T]) -> Callable[[Attempt[T]], T]:
    """For threads. A coroutine is no result: it would be taken for success before it had begun."""

    def send(attempt: Attempt[T]) -> T:
        result = fn(attempt.instance)
        if isinstance(result, CoroutineType):
            result.close()
            raise TypeError("fn returned a coroutine; use `await balancer.acall(fn)`")
        return result

    return send


def asender(fn: Callable[[Instance], Awaitable[T]]) -> Callable[[Attempt[T]], Awaitable[T]]:
    """For event loops; an attempt is cancelled when its time is up."""

    def send(attempt: Attempt[T]) -> Awaitable[T]:
        result = fn(attempt.instance)
        if not hasattr(result, "__await__"):
            kind = type(result).__name__
            raise TypeError(f"fn must return an awaitable, not {kind}; use `balancer.call(fn)`")
        return result if attempt.expiry is None else _in_time(result, attempt.expiry)

    return send


async def _in_time(result: Awaitable[T], expiry: Expiry) -> T:
    try:
        with anyio.fail_after(expiry.left()):
            return await result
    except TimeoutError:
        expiry.noticed()
        raise
