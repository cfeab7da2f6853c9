"""Exceptions from outside: at any point where CPython lets a signal handler run."""

from __future__ import annotations

import dis
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import NoReturn

import lbclient

__all__ = ["Interrupt", "SoftLimit", "points"]

_OURS = str(Path(lbclient.__file__).parent)
_CALLS = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "RESUME"}  # CALL_INTRINSIC_1 checks for none
_JUMPS = ("JUMP_BACKWARD", "POP_JUMP_BACKWARD")


class SoftLimit(Exception):
    """What task queues raise in a signal handler: an `Exception`, so that it can be caught."""


class Interrupt(KeyboardInterrupt):
    """Ctrl-C, simulated."""


@cache
def _checked(code: CodeType) -> frozenset[int]:
    """The offsets in bytes of the instructions before which CPython checks for signals.

    CPython raises as part of the call, a trace function before the next instruction. That makes no
    difference unless the call is the last thing in a `try` or `with`: such a point is left out.
    So is the point between a coroutine and its first step: CPython enters a Python function without
    a look at signals before its first instruction, which a coroutine reaches in its first step
    (see `test_coroutines_are_begun` for signals that are real).
    """
    found, before = set(), None
    for one in (listing := dis.Bytecode(code)):
        called = before is not None and before.opname in _CALLS
        if one.opname == "GET_AWAITABLE" or one.argval == "send":
            called = False
        if called and _handler(listing, before.offset) == _handler(listing, one.offset):
            found.add(one.offset)
        interruptible = one.opname != "JUMP_BACKWARD_NO_INTERRUPT"
        if interruptible and one.opname.startswith(_JUMPS) and isinstance(one.argval, int):
            found.add(one.argval)
        before = one
    return frozenset(found)


def _handler(listing: dis.Bytecode, offset: int) -> int | None:
    """Where an exception goes that is raised at this offset."""
    entries = (one for one in listing.exception_entries if one.start <= offset < one.end)
    return next((one.target for one in entries), None)


@dataclass
class _Injector:
    """A trace function that raises at the point with the number `at`, counted from 1."""

    at: int
    kind: type[BaseException]
    everywhere: bool
    threads: bool
    passed: int = 0
    raised: BaseException | None = None
    where: str = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if event == "call":
            ours = frame.f_code.co_filename.startswith(_OURS)
            if not (self.everywhere or ours) or frame.f_code.co_name == "__del__":
                return None  # what a finalizer raises reaches nobody
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode" and frame.f_lasti in _checked(frame.f_code):
            self.passed += 1
            if self.passed == self.at:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                if self.threads:  # signals are for the main thread
                    self.handle()
                signal.raise_signal(signal.SIGUSR1)
        return self

    def handle(self, *_: object) -> NoReturn:
        """The signal handler."""
        self.raised = self.kind()
        raise self.raised


def points(
    prepare: Callable[[], Callable[[], object]],
    kind: type[BaseException],
    *,
    everywhere: bool = False,
    threads: bool = False,
    step: int = 1,
) -> Iterator[tuple[str, bool]]:
    """Run what `prepare` returns, interrupted once at each point, or at every `step`th.

    Yields, after each run, where that was, and whether the caller got the exception. `everywhere`
    counts the points in other packages too, `threads` those of other threads in place of this one.
    """
    trace = threading.settrace if threads else sys.settrace
    sys._getframe().f_trace_opcodes = True  # 3.12 traces opcodes if a frame has asked for it before
    at = 1
    gc.collect()
    gc.disable()  # what a finalizer raises reaches nobody, and the next run must not run those
    try:
        while True:
            injector = _Injector(at, kind, everywhere, threads)
            got: BaseException | None = None
            work = prepare()
            before = signal.signal(signal.SIGUSR1, injector.handle)
            trace(injector)
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # whatever comes
                got = error
            finally:
                trace(None)
                signal.signal(signal.SIGUSR1, before)
            if injector.raised is None:
                assert got is None, repr(got)
                return
            reached = got is injector.raised
            del got
            injector.raised.__traceback__ = None
            yield injector.where, reached
            at += step
    finally:
        gc.enable()
