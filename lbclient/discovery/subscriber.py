"""Who is told what a watch has found."""

from __future__ import annotations

from typing import Protocol

from lbclient.instance import Answer

__all__ = ["Subscriber"]


class Subscriber(Protocol):
    """Who is told what a round brought; called under the lock."""

    def discovered(self, answer: Answer) -> None:
        """A good answer came."""
        ...

    def vanished(self) -> None:
        """The service declared itself absent, or the lookup failed and nothing was known."""
        ...

    def lookup_failed(self) -> None:
        """No good answer came; the last good set stands."""
        ...
