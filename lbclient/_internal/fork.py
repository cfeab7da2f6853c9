"""State that each process must create for itself: locks, random number generators, sockets.

A forked child creates this state again, since a lock may have been held by a thread that does not
exist in the child. Locks, queues and threads are created when they are first needed, since gevent
may replace their types after this package was imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable
from weakref import WeakSet

__all__ = ["Forkable", "Lazy"]

T = TypeVar("T")


class Lazy(Generic[T]):
    """Decorates a method: the first access calls it and stores the result as an attribute.

    It is for queues and locks. They must not be created before `gevent.monkey.patch_all()` has run,
    and this may run after this package was imported. If several threads make the first access, all
    of them get the same value. (`functools.cached_property` does not promise this, and creates a
    lock at import.)
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        value: T = vars(instance).setdefault(self._name, self._make(instance))
        return value


@runtime_checkable
class Forkable(Protocol):
    """An object with state that a forked child must not share with its parent."""

    def after_fork(self) -> None:
        """Reset that state in the child."""
        ...


logger = logging.getLogger(__name__)
_tracked: WeakSet[Forkable] = WeakSet()


def track(forkable: Forkable) -> None:
    """Call `after_fork()` of this object in every forked child, for as long as the object lives."""
    _tracked.add(forkable)


def _after_fork() -> None:
    for forkable in list(_tracked):
        try:
            forkable.after_fork()
        except Exception:  # without this handler, the next objects would keep the parent's locks
            logger.exception("%r could not be reset in a forked child", forkable)


if hasattr(os, "register_at_fork"):  # Windows and WASI cannot fork
    os.register_at_fork(after_in_child=_after_fork)
