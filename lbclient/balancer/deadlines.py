"""Deadlines for all calls of a block, or of a request that a service receives."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from lbclient._internal import validation
from lbclient._internal.deadline import Block, Deadline

__all__ = ["DeadlineHeader", "begun", "deadline"]

_log = logging.getLogger(__name__)
_DIGITS = 12
"""A number of milliseconds with more digits is above any limit."""
_SHOWN = 100


def deadline(seconds: float) -> AbstractContextManager[None]:
    """Limit the time of all calls of a block: `with lbclient.deadline(0.5):`, in sync and async
    code.

    Every call that begins in the block, through any client, transport or balancer, has at most the
    time that is left, or its own `deadline` if that is less. If no time is left, the call raises
    DeadlineExceeded, and nothing is sent. Your own code is not interrupted; `lbclient.time_left()`
    returns the time that is left.

    Blocks may be nested. Then the block with less time left limits the calls. Tasks that are
    started in the block inherit the deadline, and keep it after the end of the block. Functions
    that run in `asyncio.to_thread` inherit it too. Other threads do not inherit it, unless they run
    in `contextvars.copy_context()`.

    The time begins to run when `deadline` is called. The returned object works in one `with`
    statement only. For the next block, call `deadline` again.

    Raises ValueError or TypeError if `seconds` is not a finite number above zero.
    """
    validation.number("seconds", seconds, above=True)
    return Block(begun(seconds))


class DeadlineHeader:
    """The header in which a caller says how many milliseconds it will wait.

    Raises ValueError or TypeError, naming the argument, if an argument is invalid.
    """

    def __init__(self, name: str, max_seconds: float) -> None:
        self.name: str = validation.header("header", name).lower()
        self._max_seconds = validation.seconds("max_seconds", max_seconds)

    def deadline(self, values: Sequence[str]) -> Deadline | None:
        """Begin the deadline of a request, from the values of this header. Returns None if the
        header is missing, repeated or malformed.

        The value must consist of ASCII digits. With 0, the deadline has already expired.
        """
        if not values:
            return None
        if len(values) > 1 or not (values[0].isascii() and values[0].isdigit()):
            shown = ", ".join(values)[:_SHOWN]
            _log.debug(
                "the header %s is ignored, since it is not a whole number: %r", self.name, shown
            )
            return None
        digits = values[0].lstrip("0") or "0"
        seconds = int(digits) / 1000 if len(digits) <= _DIGITS else math.inf
        return begun(min(seconds, self._max_seconds))


def begun(
    seconds: float, clock: Callable[[], float] = time.monotonic, scope: object = None
) -> Deadline:
    """Return a deadline that begins now."""
    now = clock()
    return Deadline(now + seconds, clock, now, scope)
