"""SIGTERM: first leave DNS, then do what would have been done.

Python runs a handler on the main thread, between any two steps of what that is doing. So ours holds
no lock and logs nothing there: it lets another thread leave, and waits for it. Where the main
thread is itself in the middle of a change, which that other thread would wait for, the signal is
noted, and acted upon at the end of the change.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["SigtermHook"]

_Handler = Callable[[int, FrameType | None], object] | int | None


class SigtermHook:
    """One registration's place in the chain of handlers. It keeps nobody alive.

    `leave`, a method, is given `patience` seconds. `install` does nothing off the main thread of
    the main interpreter, where SIGTERM is ignored, and where its handler was not made by Python.
    """

    def __init__(self, leave: Callable[[], None], patience: float) -> None:
        self._leave = weakref.WeakMethod(leave)
        self._patience = patience
        self._removed = False
        self._thread: int | None = None
        self._previous: _Handler = signal.SIG_DFL
        self._deferring = False
        self._noted = False

    def install(self) -> None:
        """Come before whatever handles SIGTERM now."""
        previous = _living(signal.getsignal(signal.SIGTERM))
        if previous is None or previous == signal.SIG_IGN:
            return
        self._previous = previous
        with contextlib.suppress(ValueError):  # not the main thread of the main interpreter
            signal.signal(signal.SIGTERM, self)
            self._thread = threading.get_ident()

    def remove(self) -> None:
        """Give way to what was before, if still in place; else only pass on from now on."""
        self._removed = True
        handler = signal.getsignal(signal.SIGTERM)
        after = _living(handler)  # in any case: it takes this one out of the chain
        if handler is self:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGTERM, after)

    @contextlib.contextmanager
    def deferring(self) -> Iterator[None]:
        """A signal that comes during the block is acted upon at its end."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            if self._noted:
                self._noted = False
                self(signal.SIGTERM, None)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """What Python calls: leave, then pass on."""
        if self._deferring:
            self._noted = True
            return
        self._deferring = True  # one more SIGTERM changes nothing
        try:
            self._leave_elsewhere()
        finally:
            self._deferring = self._noted = False
        self._pass_on(signum, frame)

    def _leave_elsewhere(self) -> None:
        leave = self._leave()
        if leave is None or self._removed:
            return
        thread = threading.Thread(target=leave, name="lbclient-leaving", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had, or none so late in the interpreter's life
            leave()
        else:
            thread.join(self._patience)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        if callable(self._previous):
            self._previous(signum, frame)
        else:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def living(self) -> _Handler:
        """This one, or the next that does more than pass on; those between drop out for good."""
        self._previous = _living(self._previous)
        alive = not self._removed and self._leave() is not None
        return self if alive else self._previous


def _living(handler: _Handler) -> _Handler:
    return handler.living() if isinstance(handler, SigtermHook) else handler
