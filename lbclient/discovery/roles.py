"""Who works with a watch: whoever is told what it found, and whoever runs its rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lbclient.instance import Answer

if TYPE_CHECKING:
    from lbclient.discovery.watch import Watch

__all__ = ["Scheduler", "Subscriber"]


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


class Scheduler(Protocol):
    """Who runs the rounds of a watch: background threads, or virtual time."""

    generation: object

    def schedule(self, watch: Watch) -> None:
        """Run the next round of `watch` at its `next_at`."""
        ...
