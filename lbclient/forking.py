"""What a forked child must have new: locks that a dead thread may hold, dice, sockets."""

from __future__ import annotations

import logging
import os
from typing import Protocol, runtime_checkable
from weakref import WeakSet

__all__ = ["Forkable", "track"]


@runtime_checkable
class Forkable(Protocol):
    """An object with something that a forked child must not share with its parent."""

    def after_fork(self) -> None:
        """Begin anew, in the child."""
        ...


logger = logging.getLogger(__name__)
_tracked: WeakSet[Forkable] = WeakSet()


def track(one: Forkable) -> None:
    """Call `one.after_fork()` in every child, for as long as it lives."""
    _tracked.add(one)


def _after_fork() -> None:
    for one in list(_tracked):
        try:
            one.after_fork()
        except Exception:  # the others must not go on with the parent's locks
            logger.exception("%r could not be made new in a forked child", one)


os.register_at_fork(after_in_child=_after_fork)
