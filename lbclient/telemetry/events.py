"""Events of a balancer, for a listener. Events are plain values and are delivered in order."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

from lbclient._internal.failure_log import log_now
from lbclient.endpoint.instance import Instance

__all__ = [
    "Admitted",
    "AttemptPicked",
    "BreakerChanged",
    "DiscoveryFailed",
    "Ejected",
    "Event",
    "HealthChanged",
    "InstancesChanged",
    "Outbox",
    "RetryDecided",
    "RetryRefused",
]


@dataclass(frozen=True, slots=True)
class Event:
    """An event in the balancer of `service`, at the time `at` of the balancer's clock (seconds)."""

    service: str
    at: float

    def as_dict(self) -> dict[str, object]:
        """Return the event as a dict that `json.dumps` accepts, with the name of its class as
        `"event"`.

        An instance is shown as its host and port, an error as its type and text.
        """
        values = {one.name: _for_json(getattr(self, one.name)) for one in fields(self)}
        return {"event": type(self).__name__, **values}


def _for_json(value: object) -> object:
    if isinstance(value, Instance):
        return str(value)
    if isinstance(value, BaseException):
        return traceback.format_exception_only(value)[0].strip()
    return list(map(_for_json, value)) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class AttemptPicked(Event):
    """An attempt goes to `instance`.

    `reason` is the name of the strategy that picked the instance. If the instance was picked
    without the strategy, `reason` is `"retry"`, `"retry, all tried"`, `"probe"`, `"hedge"`,
    `"resting"`, or `"retry, others full"` if the retry got no slot at the instances that it had not
    tried.
    """

    instance: Instance
    reason: str


@dataclass(frozen=True, slots=True)
class RetryDecided(Event):
    """The attempt to `instance` is retried after `delay` seconds."""

    instance: Instance
    delay: float


@dataclass(frozen=True, slots=True)
class RetryRefused(Event):
    """The attempt to `instance` failed and is not retried, since the retry budget is empty."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class BreakerChanged(Event):
    """The breaker of `instance` has changed its state to `state`. After a failed probe, `state` is
    `"open"` again."""

    instance: Instance
    state: Literal["closed", "open"]


@dataclass(frozen=True, slots=True)
class Ejected(Event):
    """`instance` is out of rotation for `seconds`. `by` is `"hand"` or `"outlier"`."""

    instance: Instance
    seconds: float
    by: Literal["hand", "outlier"]


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """`instance` was put back into rotation by hand."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class HealthChanged(Event):
    """The result of the active checks of `instance` has changed: it is now `healthy`, or not."""

    instance: Instance
    healthy: bool


@dataclass(frozen=True, slots=True)
class InstancesChanged(Event):
    """Discovery returned another set of instances: those in `joined` are new, and those in `left`
    are gone."""

    joined: tuple[Instance, ...]
    left: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class DiscoveryFailed(Event):
    """A lookup failed with `error`. The last known set of instances stays in use."""

    error: Exception


class Outbox:
    """Collects messages and events under a lock, and publishes them after the lock is released.

    A log handler has a lock of its own, and may itself make calls. If lbclient logged under its
    lock, two threads could wait for each other for ever. The same is true for listeners, so events
    are published together with the messages. `deliver` passes events to a listener.
    """

    __slots__ = ("_deliver", "_least_level", "has_listener", "pending")

    def __init__(
        self, deliver: Callable[[Event], None] | None = None, least_level: int = 0
    ) -> None:
        self.pending: deque[Callable[[], None]] = deque()
        """The messages and events to publish. It is nearly always empty, so check it before you
        call `publish`."""
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
            except IndexError:  # another thread has taken the last one
                return
            deliver_next()
