"""What is to be logged of a decision, once the lock under which it was made is free again.

A log handler has a lock of its own, and may itself make calls; to log under ours would let two
threads wait for each other.
"""

from __future__ import annotations

import logging
from collections import deque

__all__ = ["News"]

logger = logging.getLogger("lbclient")


class News:
    """Added to under the lock, published without it."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: deque[tuple[int, str, tuple[object, ...], BaseException | None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(
        self, level: int, text: str, *values: object, error: BaseException | None = None
    ) -> None:
        """Something happened."""
        self._items.append((level, text, values, error))

    def publish(self) -> None:
        """Log it all."""
        while self._items:
            try:
                level, text, values, error = self._items.popleft()
            except IndexError:  # another thread was quicker
                return
            logger.log(level, text, *values, exc_info=error)
