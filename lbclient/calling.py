"""Functions of the user's: what a shell sends with, and what judges the outcomes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import TypeVar

import anyio

from lbclient.call import Attempt
from lbclient.complaint import Complaint
from lbclient.deadline import Expiry
from lbclient.instance import Instance
from lbclient.interruption import is_interruption
from lbclient.outcome import FINE, Judge, Verdict

__all__ = ["asend", "guarded", "send"]

T = TypeVar("T")


def send(fn: Callable[[Instance], T], attempt: Attempt[T]) -> T:
    """For threads. A coroutine is no result: it would be taken for success before it had begun."""
    result = fn(attempt.instance)
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError("fn returned a coroutine; use `await balancer.acall(fn)`")
    return result


def asend(fn: Callable[[Instance], Awaitable[T]], attempt: Attempt[T]) -> Awaitable[T]:
    """For event loops; an attempt is cancelled when its time is up."""
    result = fn(attempt.instance)
    if not hasattr(result, "__await__"):
        kind = type(result).__name__
        raise TypeError(f"fn must return an awaitable, not {kind}; use `balancer.call(fn)`")
    return result if attempt.expiry is None else _in_time(result, attempt.expiry)


async def _in_time(result: Awaitable[T], expiry: Expiry) -> T:
    try:
        with anyio.fail_after(expiry.left()):
            return await result
    except TimeoutError:
        expiry.noticed()
        raise


def guarded(judge: Judge, clock: Callable[[], float], complaint: Complaint) -> Judge:
    """Return a judge that does not raise: where `judge` fails, or returns something other than a
    `Verdict`, the outcome is neutral.

    A judge of this package raises nothing of its own: what comes out of it is let through.
    """
    if str(getattr(judge, "__module__", "")).startswith("lbclient."):
        return judge

    def verdict(outcome: object) -> Verdict:
        try:
            found: object = judge(outcome)
        except Exception as error:
            if is_interruption(error):
                raise
            complaint.failed(clock(), error)
            return FINE
        if not isinstance(found, Verdict):
            kind = type(found).__name__
            complaint.failed(clock(), detail=f"it returned {kind}, not lbclient.Verdict")
            return FINE
        if complaint.failing:
            complaint.recovered()
        return found

    return verdict
