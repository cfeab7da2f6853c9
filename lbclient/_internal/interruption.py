"""Distinguishes exceptions of signal handlers from exceptions of the user's code, and blocks
signals in the threads of this package."""

from __future__ import annotations

import _thread
import contextlib
import signal
import traceback
from collections.abc import Collection, Generator, Iterator
from opcode import opname
from types import BuiltinFunctionType, CodeType, TracebackType

__all__ = ["block_signals", "has_green_threads", "is_interruption", "unblocked"]

_ERRORS = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"}
"""The signals that report an error of the thread itself, such as SIGSEGV. They are not blocked."""


def has_green_threads() -> bool:
    """Return True if gevent or eventlet has replaced threads by green threads."""
    return not isinstance(_thread.start_new_thread, BuiltinFunctionType)


def block_signals() -> set[signal.Signals]:
    """Block signals in this thread of the package, and return those that were not blocked before.

    A program may block a signal in its only thread, so that the signal does not arrive for a
    moment. A process of Celery's pool does so while it holds a lock that other processes need. If a
    thread of this package received the signal meanwhile, the process would end, and the lock would
    never be released.

    In a green thread, nothing is blocked, since its operating system thread also runs code of the
    program.
    """
    if has_green_threads() or not hasattr(signal, "pthread_sigmask"):
        return set()
    others = {one for one in signal.Signals if one.name not in _ERRORS}
    return others.difference(signal.pthread_sigmask(signal.SIG_BLOCK, others))


@contextlib.contextmanager
def unblocked(signals: Collection[signal.Signals]) -> Generator[None]:
    """Return a context manager in whose block code of the user runs. There, the signals that
    `block_signals` has blocked are not blocked. Otherwise a process or a thread that this code
    starts would inherit the blocked signals."""
    if not signals:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_interruption(error: BaseException) -> bool:
    """Return True if `error` came from a signal handler, and not from the function that was called.

    This is for code that calls a function of the user and handles its exceptions. Celery's
    `SoftTimeLimitExceeded` is an `Exception` like any other. But it is raised by a signal handler
    in the middle of the user's function, and must reach the user. Call `is_interruption` in the
    frame that caught the error. An exception that was raised in this frame itself, or came through
    the frame of a signal handler, is an interruption. An exception that another thread set
    (`PyThreadState_SetAsyncExc`) while the user's function ran cannot be distinguished from an
    exception of that function.

    A function written in C has no frame. A function that was called with wrong arguments has no
    frame either. In both cases the exception is raised in the frame that caught it, at the
    instruction of the call. It is not an interruption.
    """
    here = error.__traceback__
    below = None if here is None else here.tb_next
    if below is None:
        return here is None or not _is_call(here)
    handlers = set(_handlers())
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(below))


def _is_call(at: TracebackType) -> bool:
    """Return True if the exception was raised by an instruction that calls or awaits a function."""
    return opname[at.tb_frame.f_code.co_code[at.tb_lasti]].startswith(("CALL", "SEND"))


def _handlers() -> Iterator[CodeType]:
    """The code objects of all signal handlers that are installed now."""
    for number in signal.valid_signals():
        handler: object = signal.getsignal(number)
        handler = getattr(handler, "func", handler)  # functools.partial
        for function in (handler, vars(type(handler)).get("__call__")):
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                yield code
