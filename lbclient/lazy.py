"""Attributes that are made when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["Lazy"]

T = TypeVar("T")


class Lazy(Generic[T]):
    """A method decorated with it becomes an attribute, whose value the first access makes.

    For queues and locks that must not exist before `gevent.monkey.patch_all()` has run, which may
    be after this package was imported. If several threads make the first access, all get the same
    value. (`functools.cached_property` does not promise that, and makes a lock at import.)
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> T:
        value: T = vars(instance).setdefault(self._name, self._make(instance))
        return value
