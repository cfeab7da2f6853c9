"""Who is told what a watch has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lbclient.instance import Answer

__all__ = ["Subscriber"]


class Subscriber(Protocol):
    """Who is told what a round brought: each round prepares, then tells, then lets publish."""

    def prepared(self, answer: Answer) -> Callable[[], None]:
        """Work out, without the lock, what a good answer changes; the result, called under it,
        takes that over."""
        ...

    def vanished(self) -> None:
        """The service declared itself absent. Called under the lock."""
        ...

    def lookup_failed(self) -> None:
        """No good answer came; the last good set stands. Called under the lock."""
        ...

    def publish(self) -> None:
        """Say what is to be said of it, the lock being free again."""
        ...
