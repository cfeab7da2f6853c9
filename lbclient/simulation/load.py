"""How requests come: at a rate, whoever has been answered, or from workers that wait."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lbclient import checks
from lbclient.simulation.world import Process, World
from lbclient.waiting import Pause

__all__ = ["Closed", "Load", "Open"]

Request = Callable[[int], Process[object]]
"""Makes the process of one request, of the client with that number."""


@dataclass(frozen=True, slots=True)
class Open:
    """`rate` requests a second for so many `seconds`, whether or not others were answered.

    Evenly spaced, or at random (`poisson`); by turns from each client.
    """

    rate: float
    seconds: float
    poisson: bool = False

    def __post_init__(self) -> None:
        checks.number("rate (requests per second)", self.rate, above=True)
        checks.seconds("seconds", self.seconds)

    def start(
        self, world: World, clients: int, request: Request, rng: random.Random
    ) -> list[list[None]]:
        """Have the requests come. Each list is empty until its part of the load is over."""
        return [world.spawn(self._arrive(world, clients, request, rng))]

    def _arrive(
        self, world: World, clients: int, request: Request, rng: random.Random
    ) -> Process[None]:
        for number, time in enumerate(self._times(rng)):
            if time > world.clock():
                yield Pause(time - world.clock())
            world.spawn(request(number % clients))
        yield Pause(0.0)  # the last has begun, too

    def _times(self, rng: random.Random) -> Iterator[float]:
        """When each arrives."""
        if not self.poisson:
            yield from (n / self.rate for n in range(round(self.rate * self.seconds)))
            return
        time = 0.0
        while (time := time + rng.expovariate(self.rate)) < self.seconds:
            yield time


@dataclass(frozen=True, slots=True)
class Closed:
    """`workers` of each client, each with one request at a time, `think` seconds apart, for so many
    `seconds`."""

    workers: int
    seconds: float
    think: float = 0.0

    def __post_init__(self) -> None:
        checks.count("workers", self.workers)
        checks.seconds("seconds", self.seconds)
        checks.number("think (seconds)", self.think)

    def start(
        self, world: World, clients: int, request: Request, rng: random.Random
    ) -> list[list[None]]:
        """Have the workers begin, at random within their first pause."""
        return [
            world.spawn(self._work(world, request, client, rng.random() * self.think))
            for client in range(clients)
            for _ in range(self.workers)
        ]

    def _work(self, world: World, request: Request, client: int, first: float) -> Process[None]:
        if first:
            yield Pause(first)
        while world.clock() < self.seconds:
            before = world.clock()
            yield from request(client)
            if pause := max(self.think, 0.0 if world.clock() > before else _LEAST):
                yield Pause(pause)


_LEAST = 0.001
"""A worker that is refused at once takes a breath: else the world would stand still."""

Load = Open | Closed
