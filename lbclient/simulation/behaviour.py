"""How simulated instances behave: functions of the time, and of what they have in flight.

A `Latency` says how long an answer takes, a `Behaviour` what it is. The number in flight counts the
request that asks.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from heapq import heapreplace
from weakref import WeakKeyDictionary

from lbclient import checks
from lbclient.simulation.reply import Reply

__all__ = [
    "Behaviour",
    "Latency",
    "answers",
    "breaks",
    "constant",
    "exponential",
    "fails",
    "linear",
    "mixed",
    "phases",
    "queued",
    "refuses",
    "silent",
    "until_capacity",
]

Latency = Callable[[int, random.Random], float]
"""Seconds, for so many requests in flight; the dice are the server's own."""

Behaviour = Callable[[float, int, random.Random], Reply]
"""What is answered at a time (seconds) with so many requests in flight."""


def constant(seconds: float) -> Latency:
    """The same each time."""
    checks.number("seconds", seconds)
    return lambda _, __: seconds


def linear(seconds: float, capacity: int) -> Latency:
    """Seconds * (1 + in flight / capacity); above the capacity five times `seconds`."""
    checks.number("seconds", seconds)
    checks.count("capacity", capacity)

    def latency(in_flight: int, _: random.Random) -> float:
        if in_flight > capacity:
            return 5 * seconds
        return seconds * (1 + in_flight / capacity)

    return latency


def exponential(mean: float) -> Latency:
    """Drawn anew each time, with this mean in seconds."""
    checks.seconds("mean", mean)
    return lambda _, rng: rng.expovariate(1 / mean)


def answers(latency: Latency, status: int = 200, rest: float = 0.0, body: float = 0.0) -> Behaviour:
    """Always this status; `rest` is its `Retry-After`, `body` how long its body comes after its
    headers, in seconds.

    Raises ValueError or TypeError for what is none of that.
    """
    checks.function("latency", latency)
    checks.count("status", status, least=100)
    checks.number("rest (seconds)", rest)
    checks.number("body (seconds)", body)
    return lambda _, in_flight, rng: Reply(latency(in_flight, rng), status, rest=rest, body=body)


def until_capacity(latency: Latency, capacity: int, status: int) -> Behaviour:
    """200 while at most so many are in flight, else `status`."""
    checks.function("latency", latency)
    checks.count("capacity", capacity)
    checks.count("status", status, least=100)

    def behave(_: float, in_flight: int, rng: random.Random) -> Reply:
        return Reply(latency(in_flight, rng), 200 if in_flight <= capacity else status)

    return behave


def queued(work: Latency, workers: int, speed: Callable[[float], float] | None = None) -> Behaviour:
    """So many workers with one queue, first come, first served: a request waits for a free worker,
    and then takes its work, divided by `speed` at that time (1 where it is not given).

    Each server of each run has workers of its own: it is known by its dice.
    """
    checks.count("workers", workers)
    busy: WeakKeyDictionary[random.Random, list[float]] = WeakKeyDictionary()

    def behave(now: float, in_flight: int, rng: random.Random) -> Reply:
        free = busy.setdefault(rng, [0.0] * workers)
        begun = max(now, free[0])
        pace = 1.0 if speed is None else speed(begun)
        done = begun + work(in_flight, rng) / pace
        heapreplace(free, done)
        return Reply(done - now)

    return behave


def mixed(share: float, some: Behaviour, others: Behaviour) -> Behaviour:
    """A `share` of the requests, by dice, gets `some` behaviour, the rest the other."""
    checks.fraction("share", share)
    checks.function("some", some)
    checks.function("others", others)

    def behave(now: float, in_flight: int, rng: random.Random) -> Reply:
        return (some if rng.random() < share else others)(now, in_flight, rng)

    return behave


def fails(latency: Latency) -> Behaviour:
    """Takes the request, and resets the connection after that time: it may have been carried
    out."""
    checks.function("latency", latency)
    return lambda _, in_flight, rng: Reply(latency(in_flight, rng), error=ConnectionResetError())


def breaks(latency: Latency, body: float) -> Behaviour:
    """Answers 200, and resets the connection in the middle of the body, `body` seconds later."""
    checks.function("latency", latency)
    checks.seconds("body", body)

    def behave(_: float, in_flight: int, rng: random.Random) -> Reply:
        return Reply(latency(in_flight, rng), error=ConnectionResetError(), body=body)

    return behave


def refuses(seconds: float = 0.0) -> Behaviour:
    """Refuses connections after that time: nothing is sent."""
    checks.number("seconds", seconds)
    return lambda *_: Reply(seconds, error=ConnectionRefusedError())


def silent() -> Behaviour:
    """Takes the request and never answers: a black hole."""
    return lambda *_: Reply(math.inf)


def phases(*steps: tuple[float, Behaviour]) -> Behaviour:
    """Each behaviour from its time (seconds) on; the first must begin at 0.

    Raises ValueError for steps that are not in order, TypeError for what is no behaviour.
    """
    times = [checks.number("phases (seconds)", time) for time, _ in steps]
    for _, behaviour in steps:
        checks.function("phases (behaviour)", behaviour)
    if not steps or times[0] != 0 or times != sorted(times):
        raise ValueError("phases must be (seconds, behaviour) in order, the first from 0 on")
    behaviours: Sequence[Behaviour] = [behaviour for _, behaviour in steps]

    def behave(now: float, in_flight: int, rng: random.Random) -> Reply:
        return behaviours[bisect_right(times, now) - 1](now, in_flight, rng)

    return behave
