"""Deadlines of the current context: those of blocks and requests, and the time that the current
attempt has left.

One context variable holds the innermost deadline; each deadline refers to the one around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass

__all__ = ["CURRENT", "Block", "Deadline", "Expiry", "applicable", "time_left"]


STOOD_STILL = 0.5
"""If a timer is late by more than this many seconds, the process was stopped (SIGSTOP, a closed
laptop).
"""


@dataclass(slots=True, eq=False)
class Deadline:
    """The time by `clock` at which calls must end that begin in its context."""

    at: float
    clock: Callable[[], float]
    since: float = 0.0
    """When it began to run."""
    scope: object = None
    """The engine whose calls alone it bounds; None for all calls."""
    outer: Deadline | None = None
    requests: int = 0
    """How many requests of its `scope` have shared it."""

    def left(self) -> float:
        """Seconds left, or 0 if the time is over."""
        return max(0.0, self.at - self.clock())

    def end(self) -> None:
        """End it now: nobody waits for its calls any more."""
        self.at = -math.inf

    def lift(self) -> None:
        """Bound nothing any more. Calls that have begun keep their time."""
        self.at = math.inf

    def by(self, clock: Callable[[], float], now: float) -> tuple[float, float]:
        """When it began and when it ends by another clock, whose time is `now`."""
        if clock is self.clock:
            return self.since, self.at
        here = self.clock()
        return now - (here - self.since), now + (self.at - here)


class Block:
    """A block of code whose calls a deadline bounds. It is entered once."""

    __slots__ = ("_steps",)

    def __init__(self, deadline: Deadline) -> None:
        # A generator has two owners that end it: `__exit__`, and the interpreter, which closes it
        # as the block is dropped. An exception from a signal handler may come as `__exit__` begins.
        self._steps = _steps(deadline)

    def __enter__(self) -> None:
        for _ in self._steps:
            return
        raise RuntimeError("a deadline is entered once; call lbclient.deadline() for each block")

    def __exit__(self, *_: object) -> None:
        self._steps.close()


def _steps(deadline: Deadline) -> Generator[None]:
    before = deadline.outer = CURRENT.get()
    token: Token[Deadline | None] | None = None
    try:
        token = CURRENT.set(deadline)
        yield
    finally:
        try:
            while before is not None and before.at == math.inf and before.scope is None:
                before = before.outer  # it was lifted, and could not be removed where it was set
            innermost = CURRENT.get() is deadline and (token is None or leave(token))
        except BaseException:  # from a signal handler
            CURRENT.set(before)
            raise
        if innermost:
            CURRENT.set(before)
        else:  # the block ends in another context, or before a block within it
            deadline.lift()


@dataclass(slots=True, eq=False)
class Expiry(Deadline):
    """The time by `clock` at which an attempt must end.

    `at` may change: a streamed body has the time of the whole call.
    """

    interrupt: Callable[[], object] | None = None
    """A function that ends the I/O under way from another thread. The code that does the I/O sets
    it.
    """

    missed: bool = False
    """True if the end of the attempt says nothing about the instance.

    Either the timer fired long after the attempt should have ended, or the caller's own request
    body did not arrive.
    """

    def noticed(self) -> None:
        """The timer has found that the attempt is over. Record whether the timer fired much too
        late."""
        self.missed = STOOD_STILL < self.clock() - self.at < math.inf

    def expire(self) -> None:
        """End the attempt now, since its result is no longer needed."""
        self.end()
        if (interrupt := self.interrupt) is not None:
            interrupt()

    def settle_interrupt(self) -> None:
        """Clear `interrupt`: the I/O is over, and its connection may soon serve another attempt.

        If the attempt had already expired, call it now, so that the connection is not reused.
        """
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None and self.at == -math.inf:
            interrupt()


CURRENT: ContextVar[Deadline | None] = ContextVar("lbclient.deadline", default=None)
"""The innermost deadline: of a block, of a client's request, or of an attempt."""


def applicable(innermost: Deadline | None, scope: object = None) -> Iterator[Deadline]:
    """Yield the deadlines that bound a call of the engine `scope`, from the innermost on.

    Attempts do not bound calls that are made within them. Of requests only the innermost counts:
    what an event hook sends has its own time.
    """
    requested = False
    while innermost is not None:
        own = innermost.scope is not None
        if not isinstance(innermost, Expiry) and (
            not own or (innermost.scope is scope and not requested)
        ):
            yield innermost
        requested = requested or own
        innermost = innermost.outer


def time_left() -> float | None:
    """Return the seconds that are left here: of the current attempt, and of `lbclient.deadline`.

    Returns None if there is neither `deadline` nor `attempt_timeout`. For the function passed to
    `Balancer.call` or `acall`, for a transport made by `transport=`, and for code in a block or
    request that has a deadline.
    """
    left, innermost, within_attempt = math.inf, CURRENT.get(), False
    while innermost is not None:
        if innermost.scope is None and not (within_attempt and isinstance(innermost, Expiry)):
            left = min(left, innermost.left())
        within_attempt = within_attempt or isinstance(innermost, Expiry)
        innermost = innermost.outer
    return None if left == math.inf else left


def enter(expiry: Expiry | None) -> Token[Deadline | None]:
    """Make `expiry` the current one until `leave`. None keeps the current one."""
    return CURRENT.set(CURRENT.get() if expiry is None else expiry)


def leave(token: Token[Deadline | None]) -> bool:
    """Restore the previous one. Returns False if called in another context than `enter`.

    A framework may run the two halves of a caller's generator on two threads. Then there is nothing
    to restore.
    """
    try:
        CURRENT.reset(token)
    except ValueError:
        return False
    return True
