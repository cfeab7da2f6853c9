"""Handles SIGTERM: removes the instance from the registry, then lets the previous handler run.

Python runs a signal handler on the main thread, between any two steps of its code. The interrupted
code may hold a lock. So this handler takes no lock and logs nothing: another thread removes the
record, and the handler waits for that thread. If the main thread itself is in the middle of a
change, that thread would wait for the main thread. In this case the handler stores the signal, and
handles it at the end of the change.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Generator
from types import FrameType

__all__ = ["SigtermHook"]

_Handler = Callable[[int, FrameType | None], object] | int | None


class SigtermHook:
    """The signal handler of one registration, in a chain of handlers. It does not keep the
    registration alive.

    The handler calls the method `leave`, and waits at most `patience` seconds for it. `install`
    does nothing outside the main thread of the main interpreter, if SIGTERM is ignored, or if its
    handler was not installed by Python.
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
        """Install this handler. It will call the current handler of SIGTERM after its own work."""
        previous = _living(signal.getsignal(signal.SIGTERM))
        if previous is None or previous == signal.SIG_IGN:
            return
        self._previous = previous
        with contextlib.suppress(ValueError):  # not the main thread of the main interpreter
            signal.signal(signal.SIGTERM, self)
            self._thread = threading.get_ident()

    def remove(self) -> None:
        """Restore the previous handler. If another handler was installed meanwhile, this handler
        stays installed and only passes signals on."""
        self._removed = True
        handler = signal.getsignal(signal.SIGTERM)
        after = _living(handler)  # called in any case: it removes this handler from the chain
        if handler is self:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGTERM, after)

    @contextlib.contextmanager
    def deferring(self) -> Generator[None]:
        """Return a context manager. A signal that arrives during its block is handled at the end of
        the block."""
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
        """Handle the signal: remove the record, then pass the signal on."""
        if self._deferring:
            self._noted = True
            return
        self._deferring = True  # further SIGTERMs are ignored
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
        except RuntimeError:  # no more threads can start, or the interpreter is exiting
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
        """Return the first handler of the chain that still has work to do. Drops the handlers
        before it."""
        self._previous = _living(self._previous)
        alive = not self._removed and self._leave() is not None
        return self if alive else self._previous


def _living(handler: _Handler) -> _Handler:
    return handler.living() if isinstance(handler, SigtermHook) else handler
