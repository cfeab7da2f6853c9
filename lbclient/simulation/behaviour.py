"""The behaviour of simulated instances: functions of the time and of the requests in flight.

A `Latency` is a function that returns the seconds that a response takes. A `Behaviour` is a
function that returns the response, a `Reply`. Both get the number of requests in flight at the
instance, including the request itself.

Each server of each run works on a deep copy of its behaviour. `copy.deepcopy` does not copy
closures, so the behaviours of this module are objects of `functools.partial`. `deepcopy` copies
these, with the objects that the caller has passed to them.
"""

from __future__ import annotations

import inspect
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
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
"""Returns the seconds that a response takes. The arguments are the number of requests in flight and
the random number generator of the server."""
_PARAMETERS = 4


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One simulated request. It is passed to behaviours with a fourth parameter, and to the
    function `fair_by=`.

    - `method`: the HTTP method. A request may be repeated only if its method is one of the retry
      policy's `methods`, and the scenario is `idempotent`.
    - `path`: only the servers use the path; the client's decisions do not depend on it.
    - `key`: for strategies that pick by a key, such as `"consistent-hash"`.
    - `caller`: identifies the caller. Without it, the caller is the number of the client.

    Raises TypeError, naming the argument, if the method or the path is not a string.
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
    """A response with `status`, which arrives after `seconds`. If `seconds` is `math.inf`, it never
    arrives.

    If `error` is set, this error is raised instead: `ConnectionRefusedError()` means that the
    request was never sent, and `ConnectionResetError()` that it may have been sent. `rest` is the
    value of `Retry-After`, in seconds.

    `body` is the time in seconds from the headers to the end of the response. Until then the
    request counts as in flight. With both `body` and `error`, the headers arrive, and the
    connection breaks during the body.
    """

    seconds: float
    status: int = 200
    error: OSError | None = None
    rest: float = 0.0
    body: float = 0.0

    @property
    def broken(self) -> OSError | None:
        """The error that is raised instead of a response, if any."""
        return None if self.body else self.error


def judge_of(statuses: Collection[int], unprocessed: Collection[int] = ()) -> Classifier:
    """Return a classifier that works as the classifier for HTTP does. `statuses` are the statuses
    that are retried. `unprocessed` are the statuses that are retried for any request.
    """
    again = {
        status: Verdict(
            fault=500 <= status <= 599,
            again="always" if status in unprocessed else "idempotent",
            rejected=True,
        )
        for status in {*statuses, *unprocessed}
    }
    fault = Verdict(fault=True)

    def classify(result: object) -> Verdict:
        if not isinstance(result, Reply):
            return classify_network_error(result)
        verdict = again.get(result.status)
        if verdict is None:
            if result.status < 400 or result.status > 599:
                return FINE
            return fault if result.status >= 500 else CLIENT_ERROR
        return replace(verdict, rest=result.rest) if result.rest else verdict

    return classify


def status_of(name: str, value: object) -> int:
    """Return `value` if it is a valid status. Otherwise raise an error that names `name`."""
    status = validation.count(name, value, least=100)
    if status > _LAST_STATUS:
        raise ValueError(f"{name} must be at most {_LAST_STATUS}, not {value!r}")
    return status


Asked = Callable[[float, int, random.Random, SimulatedRequest], Reply]
Behaviour = Callable[[float, int, random.Random], Reply] | Asked
"""Returns the response. The arguments are the time in seconds, the number of requests in flight,
and the random number generator of the server. If the behaviour has a fourth parameter, the request
is passed too."""

_REQUEST = SimulatedRequest()


def taking_request(behaviour: Behaviour) -> Asked:
    """Return the behaviour as a function of four parameters.

    A behaviour gets the request if its fourth positional parameter has no default, or is called
    `request`. In `lambda now, in_flight, rng, share=share: ...` the fourth parameter is not the
    request.
    """
    if isinstance(behaviour, _PerRun):
        return behaviour
    try:
        parameters = list(inspect.signature(behaviour).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        parameters = []
    positional = [each for each in parameters if each.kind <= each.POSITIONAL_OR_KEYWORD]
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
    request: SimulatedRequest = _REQUEST,  # noqa: ARG001  # the behaviour does not use it
) -> Reply:
    return behaviour(now, in_flight, rng)


class _PerRun:
    """The result of `per_run`. A deep copy of this object is a new behaviour, which `make`
    creates."""

    def __init__(self, make: Callable[[], Behaviour]) -> None:
        self._make = make

    def __deepcopy__(self, _: object) -> Asked:
        made = self._make()
        validation.function("per_run (what make returns)", made)
        return taking_request(made)

    def __call__(
        self, now: float, in_flight: int, rng: random.Random, request: SimulatedRequest = _REQUEST
    ) -> Reply:
        """Respond to a request outside a run, with a new behaviour for each request."""
        return self.__deepcopy__({})(now, in_flight, rng, request)


def per_run(make: Callable[[], Behaviour]) -> Behaviour:
    """Return a behaviour that `make()` creates anew for each server of each run.

    Use it for functions that keep state, such as a closure with a counter. A function cannot be
    copied, so without `per_run` all servers and runs would share its state. An object with
    `__call__` does not need `per_run`.
    """
    validation.function("make", make)
    return _PerRun(make)


def constant(seconds: float) -> Latency:
    """Every response takes the same number of seconds."""
    validation.number("seconds", seconds)
    return lambda _, __: seconds


def linear(seconds: float, capacity: int) -> Latency:
    """A response takes `seconds` * (1 + in flight / `capacity`). Above the capacity it takes five
    times `seconds`."""
    validation.number("seconds", seconds)
    validation.count("capacity", capacity)

    def latency(in_flight: int, _: random.Random) -> float:
        if in_flight > capacity:
            return 5 * seconds
        return seconds * (1 + in_flight / capacity)

    return latency


def exponential(mean: float) -> Latency:
    """The time of a response is exponentially distributed, with this mean in seconds."""
    validation.seconds("mean", mean)
    return lambda _, rng: rng.expovariate(1 / mean)


def answers(latency: Latency, status: int = 200, rest: float = 0.0, body: float = 0.0) -> Behaviour:
    """Always respond with this status. `rest` is the value of `Retry-After`, and `body` the time
    from the headers to the end of the body, both in seconds.

    Raises ValueError or TypeError if an argument is invalid.
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
    """Respond with 200 while at most `capacity` requests are in flight, otherwise with `status`."""
    validation.function("latency", latency)
    validation.count("capacity", capacity)
    status_of("status", status)
    return partial(_up_to, latency, capacity, status)


def _up_to(
    latency: Latency, capacity: int, status: int, _: float, in_flight: int, rng: random.Random
) -> Reply:
    return Reply(latency(in_flight, rng), 200 if in_flight <= capacity else status)


def queued(work: Latency, workers: int, speed: Callable[[float], float] | None = None) -> Behaviour:
    """A server with this number of workers and one queue, first come, first served. A request waits
    for a free worker. Then it takes `work` seconds divided by `speed` at that time. The default
    speed is 1.

    Each server of each run has its own workers. (The server is identified by its random number
    generator.)
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
    """A rate limit by a token bucket. `rate` requests per second, and up to `burst` requests at
    once after a pause, get the status 200 after `seconds`. All other requests get `status` after
    the same time.

    Each server of each run has its own bucket, which is full at first. (The server is identified by
    its random number generator.) To give each caller a bucket of its own, write a behaviour with a
    fourth parameter, the request.
    """
    validation.number("rate (requests per second)", rate, above=True)
    validation.count("burst", burst)
    validation.number("seconds", seconds)
    status_of("status", status)
    buckets: WeakKeyDictionary[random.Random, tuple[float, float]] = WeakKeyDictionary()
    return partial(_take_token, rate, burst, seconds, status, buckets)


_ROUNDING = 1e-9
"""Allows for rounding: the sum of ten tenths of a token is a little less than one token."""


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
    """A random `share` of the requests gets the behaviour `some`, and all others get `others`."""
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
    """Receive the request, and reset the connection after the latency. The request may have been
    processed."""
    validation.function("latency", latency)
    return partial(_break, latency, 0.0)


def breaks(latency: Latency, body: float) -> Behaviour:
    """Respond with 200, and reset the connection `body` seconds later, in the middle of the
    body."""
    validation.function("latency", latency)
    validation.seconds("body", body)
    return partial(_break, latency, body)


def _break(latency: Latency, body: float, _: float, in_flight: int, rng: random.Random) -> Reply:
    return Reply(latency(in_flight, rng), error=ConnectionResetError(), body=body)


def refuses(seconds: float = 0.0) -> Behaviour:
    """Refuse connections after `seconds`, so that no request is sent."""
    validation.number("seconds", seconds)
    return lambda *_: Reply(seconds, error=ConnectionRefusedError())


def silent() -> Behaviour:
    """Receive the request and never respond."""
    return lambda *_: Reply(math.inf)


def phases(*steps: tuple[float, Behaviour]) -> Behaviour:
    """Use each behaviour from its start time (in seconds) until the next one starts. The first must
    start at 0.

    Raises ValueError if the steps are not in order, and TypeError for an invalid behaviour.
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
