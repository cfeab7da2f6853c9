"""The deadlines of the current context: of `with lbclient.deadline(...)` blocks, of requests that
this service handles, and of the current attempt.

A context variable contains the innermost deadline. Each deadline refers to the next deadline around
it.
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
    """The time by `clock` at which the calls that begin in its context must end."""

    at: float
    clock: Callable[[], float]
    since: float = 0.0
    """The time at which the deadline began to run."""
    scope: object = None
    """If this is an engine, the deadline limits only the calls of this engine. If it is None, the
    deadline limits all calls."""
    outer: Deadline | None = None
    requests: int = 0
    """The number of requests of its `scope` that have used this deadline."""

    def left(self) -> float:
        """The seconds that are left; 0 if the deadline has expired."""
        return max(0.0, self.at - self.clock())

    def end(self) -> None:
        """Let the deadline expire now, since no code waits for the calls any more."""
        self.at = -math.inf

    def ended(self) -> bool:
        """True if `end` was called."""
        return self.at == -math.inf

    def lift(self) -> None:
        """Remove the limit for later calls. Calls that have begun keep their deadline."""
        self.at = math.inf

    def by(self, clock: Callable[[], float], now: float) -> tuple[float, float]:
        """Return the times at which the deadline began and ends, converted to `clock`, another
        clock whose time is `now`."""
        if clock is self.clock:
            return self.since, self.at
        here = self.clock()
        return now - (here - self.since), now + (self.at - here)


class Block:
    """A block of code whose calls a deadline limits. Each object is entered once."""

    __slots__ = ("_steps",)

    def __init__(self, deadline: Deadline) -> None:
        # The block is a generator, so that it ends even if a signal handler raises an exception
        # just when `__exit__` begins: then the interpreter closes the generator when the block is
        # garbage collected.
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
                before = before.outer  # a lifted deadline that could not be removed
            innermost = CURRENT.get() is deadline and (token is None or leave(token, deadline))
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

    `at` may change: the body of a streamed response may take until the deadline of the whole call.
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
        """Record whether the timer that ends the attempt has fired much too late. The timer calls
        this method."""
        self.missed = STOOD_STILL < self.clock() - self.at < math.inf

    def expire(self) -> None:
        """End the attempt now, since its result is no longer needed."""
        self.end()
        if (interrupt := self.interrupt) is not None:
            interrupt()

    def settle_interrupt(self) -> None:
        """Clear `interrupt`, since the I/O is over and the connection may soon be used by another
        attempt.

        If the attempt has already expired, `interrupt` is called now, so that the connection is not
        reused.
        """
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None and self.at == -math.inf:
            interrupt()


CURRENT: ContextVar[Deadline | None] = ContextVar("lbclient.deadline", default=None)
"""The innermost deadline: of a block, of a client's request, or of an attempt."""


def applicable(innermost: Deadline | None, scope: object = None) -> Iterator[Deadline]:
    """Yield the deadlines that limit a call of the engine `scope`, the innermost first.

    The deadline of an attempt does not limit calls that are made within the attempt. Requests may
    be nested: an event hook may send a request of its own. Then only the deadline of the innermost
    request is yielded.
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
    """Return the seconds that are left for the code that calls this function. If both the current
    attempt and blocks of `lbclient.deadline` limit it, the smallest of their times is returned.

    Returns None if there is neither `deadline` nor `attempt_timeout`. Use it in the function passed
    to `Balancer.call` or `acall`, in a transport made by `transport=`, and in code of a block or
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
    """Make `expiry` the current deadline until `leave`. None keeps the current deadline."""
    return CURRENT.set(CURRENT.get() if expiry is None else expiry)


def leave(token: Token[Deadline | None], entered: Deadline | None) -> bool:
    """Restore the deadline that was current before `enter(entered)`. Returns False if this context
    is not the context of that `enter`.

    The context may differ if a framework runs two parts of a caller's generator on two threads.
    Then nothing is restored. If a block was entered after `enter` and has not ended, its deadline
    stays current.
    """
    innermost = CURRENT.get()
    try:
        CURRENT.reset(token)
    except ValueError:
        return False
    block = innermost is not None and not isinstance(innermost, Expiry)
    if block and innermost is not (CURRENT.get() if entered is None else entered):
        CURRENT.set(innermost)
    return True
