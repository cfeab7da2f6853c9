"""Exceptions that the called code did not raise: a signal handler did, or another thread."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from opcode import opname
from types import CodeType, TracebackType

__all__ = ["is_interruption"]


def is_interruption(error: BaseException) -> bool:
    """Return True where `error` did not come out of the function that was called.

    For whoever calls a function of the user's and keeps what it raises from the call: Celery's
    `SoftTimeLimitExceeded`, raised by a signal handler in the middle of that function, is an
    `Exception` like any other, and must reach the user. Ask in the frame that caught the error: an
    exception that came up in that frame itself, or through the frame of a signal handler, is an
    interruption. One that another thread set (`PyThreadState_SetAsyncExc`) while the user's
    function ran cannot be told from the function's own.

    A function written in C has no frame, and neither has one that was called with arguments that
    it does not take: their exceptions come up in the frame that caught them, at its call.
    """
    here = error.__traceback__
    below = None if here is None else here.tb_next
    if below is None:
        return here is None or not _is_call(here)
    handlers = set(_handlers())
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(below))


def _is_call(at: TracebackType) -> bool:
    """Return True if the exception came up at the call of a function, or as one was awaited."""
    return opname[at.tb_frame.f_code.co_code[at.tb_lasti]].startswith(("CALL", "SEND"))


def _handlers() -> Iterator[CodeType]:
    """The code of every signal handler that is installed now."""
    for number in signal.valid_signals():
        handler: object = signal.getsignal(number)
        handler = getattr(handler, "func", handler)  # functools.partial
        for function in (handler, vars(type(handler)).get("__call__")):
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                yield code
