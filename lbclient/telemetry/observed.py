"""What is asked for when metrics are collected, and not told when it changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["Observed", "Service"]


class Service(Protocol):
    """What can be asked about the discovery of one service, from any thread, without a lock."""

    name: str

    @property
    def age(self) -> float | None:
        """Seconds since the last good answer; None where there is none, or none is needed."""
        ...

    @property
    def size(self) -> int:
        """How many instances are known."""
        ...


class Observed:
    """The services of one meter provider that are in use. It holds none of them alive.

    Of several clients of one service the worst is told: the oldest answer, the fewest instances.
    """

    def __init__(self) -> None:
        self._services: dict[int, weakref.ref[Service]] = {}

    def add(self, service: Service) -> None:
        """Tell of it too, until it is gone or taken away."""
        key = id(service)
        self._services[key] = weakref.ref(service, lambda _: self._services.pop(key, None))

    def remove(self, service: Service) -> None:
        """Tell of it no more."""
        self._services.pop(id(service), None)

    def ages(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable gauge."""
        return self._told(lambda one: one.age, max)

    def sizes(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable gauge."""
        return self._told(lambda one: one.size, min)

    def _told(
        self,
        ask: Callable[[Service], float | None],
        worst: Callable[[float, float], float],
    ) -> Iterable[Observation]:
        found: dict[str, float] = {}
        for service in [ref() for ref in list(self._services.values())]:
            if service is not None and (value := ask(service)) is not None:
                found[service.name] = worst(found.get(service.name, value), value)
        return [Observation(value, {"lbclient.service": name}) for name, value in found.items()]
