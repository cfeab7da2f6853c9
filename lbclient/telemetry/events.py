"""What happens to a balancer, for whoever listens: plain values, told in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    "RetryDecided",
    "RetryRefused",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the balancer of `service`, at `at` by its clock (seconds)."""

    service: str
    at: float


@dataclass(frozen=True, slots=True)
class AttemptPicked(Event):
    """An attempt goes to `instance`; `reason` is the strategy, or why that was not asked
    (`"retry"`, `"probe"`, `"hedge"`, `"resting"`; also `"retry, all tried"`, and `"retry, others
    full"` once it has waited in vain for one that it had not tried)."""

    instance: Instance
    reason: str


@dataclass(frozen=True, slots=True)
class RetryDecided(Event):
    """The attempt to `instance` is tried again after `delay` seconds."""

    instance: Instance
    delay: float


@dataclass(frozen=True, slots=True)
class RetryRefused(Event):
    """The attempt to `instance` would be tried again, but the budget is empty."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class BreakerChanged(Event):
    """The breaker of `instance` is in another `state`; a probe that fails opens it anew."""

    instance: Instance
    state: Literal["closed", "open"]


@dataclass(frozen=True, slots=True)
class Ejected(Event):
    """`instance` is out of the rotation for `seconds`: `by` hand, or as an outlier."""

    instance: Instance
    seconds: float
    by: Literal["hand", "outlier"]


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """`instance` was put into the rotation by hand."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class HealthChanged(Event):
    """Active checks say that `instance` is `healthy`, or that it is not."""

    instance: Instance
    healthy: bool


@dataclass(frozen=True, slots=True)
class InstancesChanged(Event):
    """Discovery brought another set: who `joined` and who `left`."""

    joined: tuple[Instance, ...]
    left: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class DiscoveryFailed(Event):
    """A look-up failed with `error`; what was known stays in use."""

    error: Exception
