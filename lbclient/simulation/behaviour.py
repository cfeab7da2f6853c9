"""How simulated instances behave: functions of the time, and of what they have in flight.

A `Latency` says how long an answer takes, a `Behaviour` what it is: a `Reply`. The number in flight
counts the request that asks.

Each server of each run works on a deep copy of its behaviour. So the behaviours here are partial
functions and not closures, which `copy.deepcopy` leaves as they are: an object of the caller's in
one of them is copied with it.
"""

from __future__ import annotations

import inspect
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heapreplace
from typing import cast
from weakref import WeakKeyDictionary

from lbclient._internal import validation
from lbclient.endpoint.classifier import (
    CLIENT_ERROR,
    FINE,
    Classifier,
    Verdict,
    classify_network_error,
)

__all__ = [
    "Behaviour",
    "Latency",
    "Reply",
    "SimulatedRequest",
    "answers",
    "breaks",
    "constant",
    "exponential",
    "fails",
    "judge_of",
    "linear",
    "mixed",
    "per_run",
    "phases",
    "queued",
    "rate_limited",
    "refuses",
    "silent",
    "status_of",
    "taking_request",
    "until_capacity",
]

_LAST_STATUS = 999

Latency = Callable[[int, random.Random], float]
"""Seconds, for so many requests in flight; the dice are the server's own."""
_PARAMETERS = 4


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request of a load, for behaviours with a fourth parameter and for `fair_by=`.

    - `method`: it also decides whether a request may be repeated: only a method of the retry
      policy's `methods` is, and only where the scenario is `idempotent`.
    - `path`: for the servers; the client's decisions do not depend on it.
    - `key`: for strategies that pick by it, such as `"consistent-hash"`.
    - `caller`: what names the caller; the number of the client where the load names none.

    Raises TypeError, naming the argument, for a method or path that is not text.
    """

    method: str = "GET"
    path: str = "/"
    key: object = None
    caller: object = None

    def __post_init__(self) -> None:
        for name in ("method", "path"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"{name} must be text, not {value!r}")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with `status` after `seconds` (for ever: `math.inf`).

    With `error` that is raised in its place: `ConnectionRefusedError()` was never sent,
    `ConnectionResetError()` may have been. `rest` is what `Retry-After` asks for, in seconds.

    `body` is how many seconds after its headers the answer is complete; until then its instance is
    busy. With `error` too, the headers come, and the body breaks off.
    """

    seconds: float
    status: int = 200
    error: OSError | None = None
    rest: float = 0.0
    body: float = 0.0

    @property
    def broken(self) -> OSError | None:
        """What is raised in place of an answer."""
        return None if self.body else self.error


def judge_of(statuses: Collection[int]) -> Classifier:
    """Judges as HTTP's judge does; `statuses` are those that are tried again."""
    again = {
        status: Verdict(fault=500 <= status <= 599, again="idempotent", rejected=True)
        for status in statuses
    }
    fault = Verdict(fault=True)

    def judge(result: object) -> Verdict:
        if not isinstance(result, Reply):
            return classify_network_error(result)
        verdict = again.get(result.status)
        if verdict is None:
            if result.status < 400 or result.status > 599:
                return FINE
            return fault if result.status >= 500 else CLIENT_ERROR
        if result.rest:
            return Verdict(fault=verdict.fault, again="idempotent", rest=result.rest)
        return verdict

    return judge


def status_of(name: str, value: object) -> int:
    """The status. Raises TypeError or ValueError, naming the argument, for what can be none."""
    status = validation.count(name, value, least=100)
    if status > _LAST_STATUS:
        raise ValueError(f"{name} must be at most {_LAST_STATUS}, not {value!r}")
    return status


Asked = Callable[[float, int, random.Random, SimulatedRequest], Reply]
Behaviour = Callable[[float, int, random.Random], Reply] | Asked
"""What is answered at a time (seconds) with so many requests in flight; the dice are the server's
own. One with a fourth parameter is told the request."""

_REQUEST = SimulatedRequest()


def taking_request(behaviour: Behaviour) -> Asked:
    """The behaviour as a function of four parameters.

    It takes the request where its fourth positional parameter has no default, or is called
    `request`: in `lambda now, in_flight, rng, share=share: ...` the fourth is none.
    """
    if isinstance(behaviour, _PerRun):
        return behaviour
    try:
        parameters = list(inspect.signature(behaviour).parameters.values())
    except (TypeError, ValueError):  # of some built-in functions nothing is known
        parameters = []
    positional = [one for one in parameters if one.kind <= one.POSITIONAL_OR_KEYWORD]
    fourth = positional[_PARAMETERS - 1] if len(positional) >= _PARAMETERS else None
    if fourth is not None and (fourth.default is fourth.empty or fourth.name == "request"):
        return cast("Asked", behaviour)
    return partial(
        _without_request, cast("Callable[[float, int, random.Random], Reply]", behaviour)
    )


def _without_request(
    behaviour: Callable[[float, int, random.Random], Reply],
    now: float,
    in_flight: int,
    rng: random.Random,
    request: SimulatedRequest = _REQUEST,  # noqa: ARG001  # it takes none
) -> Reply:
    return behaviour(now, in_flight, rng)


class _PerRun:
    """What `per_run` returns: its copies are what `make` returns."""

    def __init__(self, make: Callable[[], Behaviour]) -> None:
        self._make = make

    def __deepcopy__(self, _: object) -> Asked:
        made = self._make()
        validation.function("per_run (what make returns)", made)
        return taking_request(made)

    def __call__(
        self, now: float, in_flight: int, rng: random.Random, request: SimulatedRequest = _REQUEST
    ) -> Reply:
        """Outside of a run, a new behaviour answers each time."""
        return self.__deepcopy__({})(now, in_flight, rng, request)


def per_run(make: Callable[[], Behaviour]) -> Behaviour:
    """The behaviour that `make()` returns, made anew for each server of each run.

    For functions that keep state, such as a closure with a counter: a function cannot be copied, so
    its state would go on from run to run. An object with `__call__` needs no `per_run`.
    """
    validation.function("make", make)
    return _PerRun(make)


def constant(seconds: float) -> Latency:
    """The same each time."""
    validation.number("seconds", seconds)
    return lambda _, __: seconds


def linear(seconds: float, capacity: int) -> Latency:
    """Seconds * (1 + in flight / capacity); above the capacity five times `seconds`."""
    validation.number("seconds", seconds)
    validation.count("capacity", capacity)

    def latency(in_flight: int, _: random.Random) -> float:
        if in_flight > capacity:
            return 5 * seconds
        return seconds * (1 + in_flight / capacity)

    return latency


def exponential(mean: float) -> Latency:
    """Drawn anew each time, with this mean in seconds."""
    validation.seconds("mean", mean)
    return lambda _, rng: rng.expovariate(1 / mean)


def answers(latency: Latency, status: int = 200, rest: float = 0.0, body: float = 0.0) -> Behaviour:
    """Always this status; `rest` is its `Retry-After`, `body` how long its body comes after its
    headers, in seconds.

    Raises ValueError or TypeError for what is none of that.
    """
    validation.function("latency", latency)
    status_of("status", status)
    validation.number("rest (seconds)", rest)
    validation.number("body (seconds)", body)
    return partial(_answer, latency, status, rest, body)


def _answer(
    latency: Latency,
    status: int,
    rest: float,
    body: float,
    _: float,
    in_flight: int,
    rng: random.Random,
) -> Reply:
    return Reply(latency(in_flight, rng), status, rest=rest, body=body)


def until_capacity(latency: Latency, capacity: int, status: int) -> Behaviour:
    """200 while at most so many are in flight, else `status`."""
    validation.function("latency", latency)
    validation.count("capacity", capacity)
    status_of("status", status)
    return partial(_up_to, latency, capacity, status)


def _up_to(
    latency: Latency, capacity: int, status: int, _: float, in_flight: int, rng: random.Random
) -> Reply:
    return Reply(latency(in_flight, rng), 200 if in_flight <= capacity else status)


def queued(work: Latency, workers: int, speed: Callable[[float], float] | None = None) -> Behaviour:
    """So many workers with one queue, first come, first served: a request waits for a free worker,
    and then takes its work, divided by `speed` at that time (1 where it is not given).

    Each server of each run has workers of its own: it is known by its dice.
    """
    validation.function("work", work)
    validation.count("workers", workers)
    if speed is not None:
        validation.function("speed", speed)
    busy: WeakKeyDictionary[random.Random, list[float]] = WeakKeyDictionary()
    return partial(_queue, work, workers, speed, busy)


def _queue(
    work: Latency,
    workers: int,
    speed: Callable[[float], float] | None,
    busy: WeakKeyDictionary[random.Random, list[float]],
    now: float,
    in_flight: int,
    rng: random.Random,
) -> Reply:
    free = busy.setdefault(rng, [0.0] * workers)
    begun = max(now, free[0])
    pace = 1.0 if speed is None else speed(begun)
    done = begun + work(in_flight, rng) / pace
    heapreplace(free, done)
    return Reply(done - now)


def rate_limited(rate: float, burst: int, seconds: float, status: int = 429) -> Behaviour:
    """A token bucket: `rate` requests a second are answered 200 after `seconds`, and `burst` at
    once after a pause; those beyond get `status` after the same time.

    Each server of each run has a bucket of its own, full at first: it is known by its dice. To give
    each caller one, write a behaviour that takes the request.
    """
    validation.number("rate (requests per second)", rate, above=True)
    validation.count("burst", burst)
    validation.number("seconds", seconds)
    status_of("status", status)
    buckets: WeakKeyDictionary[random.Random, tuple[float, float]] = WeakKeyDictionary()
    return partial(_take_token, rate, burst, seconds, status, buckets)


_ROUNDING = 1e-9
"""Ten times a tenth of a token is a little less than one."""


def _take_token(
    rate: float,
    burst: int,
    seconds: float,
    status: int,
    buckets: WeakKeyDictionary[random.Random, tuple[float, float]],
    now: float,
    _: int,
    rng: random.Random,
) -> Reply:
    tokens, since = buckets.get(rng, (float(burst), now))
    tokens = min(float(burst), tokens + rate * (now - since))
    served = tokens >= 1.0 - _ROUNDING
    buckets[rng] = (tokens - 1.0 if served else tokens), now
    return Reply(seconds, 200 if served else status)


def mixed(share: float, some: Behaviour, others: Behaviour) -> Behaviour:
    """A `share` of the requests, by dice, gets `some` behaviour, the rest the other."""
    validation.fraction("share", share)
    validation.function("some", some)
    validation.function("others", others)
    return partial(_mix, share, taking_request(some), taking_request(others))


def _mix(
    share: float,
    some: Asked,
    others: Asked,
    now: float,
    in_flight: int,
    rng: random.Random,
    request: SimulatedRequest = _REQUEST,
) -> Reply:
    return (some if rng.random() < share else others)(now, in_flight, rng, request)


def fails(latency: Latency) -> Behaviour:
    """Takes the request, and resets the connection after that time: it may have been carried
    out."""
    validation.function("latency", latency)
    return partial(_break, latency, 0.0)


def breaks(latency: Latency, body: float) -> Behaviour:
    """Answers 200, and resets the connection in the middle of the body, `body` seconds later."""
    validation.function("latency", latency)
    validation.seconds("body", body)
    return partial(_break, latency, body)


def _break(latency: Latency, body: float, _: float, in_flight: int, rng: random.Random) -> Reply:
    return Reply(latency(in_flight, rng), error=ConnectionResetError(), body=body)


def refuses(seconds: float = 0.0) -> Behaviour:
    """Refuses connections after that time: nothing is sent."""
    validation.number("seconds", seconds)
    return lambda *_: Reply(seconds, error=ConnectionRefusedError())


def silent() -> Behaviour:
    """Takes the request and never answers: a black hole."""
    return lambda *_: Reply(math.inf)


def phases(*steps: tuple[float, Behaviour]) -> Behaviour:
    """Each behaviour from its time (seconds) on; the first must begin at 0.

    Raises ValueError for steps that are not in order, TypeError for what is no behaviour.
    """
    times = [validation.number("phases (seconds)", time) for time, _ in steps]
    for _, behaviour in steps:
        validation.function("phases (behaviour)", behaviour)
    if not steps or times[0] != 0 or times != sorted(times):
        raise ValueError("phases must be (seconds, behaviour) in order, the first from 0 on")
    return partial(_by_time, times, [taking_request(behaviour) for _, behaviour in steps])


def _by_time(
    times: Sequence[float],
    behaviours: Sequence[Asked],
    now: float,
    in_flight: int,
    rng: random.Random,
    request: SimulatedRequest = _REQUEST,
) -> Reply:
    return behaviours[bisect_right(times, now) - 1](now, in_flight, rng, request)
