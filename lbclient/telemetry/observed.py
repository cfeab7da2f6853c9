"""What is asked for when metrics are collected, and not told when it changes."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["Observed", "Service", "Tally"]


class Tally:
    """How many instances one balancer has picked so far. Its owner counts under its own lock, which
    takes a tenth of the time of a counter of OpenTelemetry's SDK."""

    __slots__ = ("picks",)

    def __init__(self) -> None:
        self.picks = 0


class Service(Protocol):
    """What can be asked about one service, from any thread, without a lock."""

    service: str
    """Its name."""
    tally: Tally
    """What it has counted."""

    @property
    def age(self) -> float | None:
        """Seconds since the last good answer; None where there is none, or none is needed."""
        ...

    @property
    def size(self) -> int:
        """How many instances are known."""
        ...

    @property
    def in_flight(self) -> int:
        """How many attempts are under way."""
        ...


class Observed:
    """The services of one meter provider that are in use. It holds none of them alive.

    Of several clients of one service the worst is told: the oldest answer, the fewest instances;
    of attempts under way, the sum.
    """

    def __init__(self) -> None:
        self._services: dict[int, weakref.ref[Service]] = {}
        self._tallies: dict[int, tuple[str, Tally]] = {}
        self._picked: dict[str, int] = {}
        """The picks of balancers that are gone, by service: a counter never falls."""
        self._names: dict[str, float] = {}
        """Every service that there ever was: a counter that ends is told as 0, as if it counted."""

    def add(self, service: Service) -> None:
        """Tell of it too, until it is gone or taken away."""
        key = id(service)
        self._names[service.service] = 0
        self._tallies[key] = service.service, service.tally
        self._services[key] = weakref.ref(service, lambda _: self._drop(key))

    def remove(self, service: Service) -> None:
        """Tell of it no more, but for what it has counted."""
        self._drop(id(service))

    def _drop(self, key: int) -> None:
        self._services.pop(key, None)
        if (told := self._tallies.pop(key, None)) is not None:
            name, tally = told
            self._picked.setdefault(name, 0)
            self._picked[name] += tally.picks

    def picks(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable counter."""
        found = dict(self._picked)
        for name, tally in list(self._tallies.values()):
            found[name] = found.get(name, 0) + tally.picks
        return [Observation(value, {"lbclient.service": name}) for name, value in found.items()]

    def ages(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable gauge."""
        return self._told(lambda one: one.age, max)

    def sizes(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable gauge."""
        return self._told(lambda one: one.size, min)

    def in_flight(self, _: CallbackOptions) -> Iterable[Observation]:
        """For an observable counter: one that is added to could lose an end, and never heal."""
        return self._told(lambda one: one.in_flight, operator.add, self._names)

    def _told(
        self,
        ask: Callable[[Service], float | None],
        together: Callable[[float, float], float],
        start: Mapping[str, float] = MappingProxyType({}),
    ) -> Iterable[Observation]:
        found = dict(start)
        for service in [ref() for ref in list(self._services.values())]:
            if service is not None and (value := ask(service)) is not None:
                name = service.service
                found[name] = together(found[name], value) if name in found else value
        return [Observation(value, {"lbclient.service": name}) for name, value in found.items()]
