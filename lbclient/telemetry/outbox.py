"""Collects messages and events under a lock, and publishes them once the lock is free.

A log handler has a lock of its own, and may itself make calls. Logging under our lock could let two
threads wait for each other. The same holds for listeners, so they get events at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lbclient._internal.failure_log import log_now
from lbclient.telemetry.events import Event

__all__ = ["Outbox"]


class Outbox:
    """Filled under the lock and published without it. `deliver` passes events to a listener."""

    __slots__ = ("_deliver", "_least_level", "has_listener", "pending")

    def __init__(
        self, deliver: Callable[[Event], None] | None = None, least_level: int = 0
    ) -> None:
        self.pending: deque[Callable[[], None]] = deque()
        """What `publish` would publish. Check it before the call, since it is nearly always empty.
        """
        self._deliver = deliver
        self.has_listener: bool = deliver is not None
        """True if there is a listener. Otherwise events need not be created."""
        self._least_level = least_level
        """Messages below this level are not logged."""

    def add(
        self, level: int, text: str, *values: object, error: BaseException | None = None
    ) -> None:
        """Add a log message."""
        if level >= self._least_level:
            self.pending.append(lambda: log_now(level, text, *values, error=error))

    def emit(self, event: Event) -> None:
        """Add an event for the listener."""
        if (deliver := self._deliver) is not None:
            self.pending.append(lambda: deliver(event))

    def publish(self) -> None:
        """Publish everything that is pending."""
        while self.pending:
            try:
                deliver_next = self.pending.popleft()
            except IndexError:  # another thread was quicker
                return
            deliver_next()
