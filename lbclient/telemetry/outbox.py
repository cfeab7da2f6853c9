"""What is to be said of a decision, once the lock under which it was made is free again.

A log handler has a lock of its own, and may itself make calls; to log under ours would let two
threads wait for each other. A listener is told at the same moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lbclient._internal.failure_log import log_now
from lbclient.telemetry.events import Event

__all__ = ["Outbox"]


class Outbox:
    """Added to under the lock, published without it. `deliver` takes events to a listener."""

    __slots__ = ("_deliver", "has_listener", "least", "pending")

    def __init__(self, deliver: Callable[[Event], None] | None = None) -> None:
        self.pending: deque[Callable[[], None]] = deque()
        """What `publish` would say: look here first, there seldom is any."""
        self._deliver = deliver
        self.has_listener = deliver is not None
        """True where somebody listens: else an event need not even be made."""
        self.least = 0
        """Messages below this level are not logged."""

    def add(
        self, level: int, text: str, *values: object, error: BaseException | None = None
    ) -> None:
        """Something to log."""
        if level >= self.least:
            self.pending.append(lambda: log_now(level, text, *values, error=error))

    def emit(self, event: Event) -> None:
        """Something that a listener wants to know."""
        if (deliver := self._deliver) is not None:
            self.pending.append(lambda: deliver(event))

    def publish(self) -> None:
        """Say it all."""
        while self.pending:
            try:
                say = self.pending.popleft()
            except IndexError:  # another thread was quicker
                return
            say()
