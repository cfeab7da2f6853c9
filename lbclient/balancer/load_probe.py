"""Asks random instances for their load in the background, and reports it to the strategy.

Instances are asked only while there are calls.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from logging import WARNING

from lbclient._internal.deadline import Expiry
from lbclient._internal.failure_log import Complaint
from lbclient.balancer.health_monitor import Check, outcome
from lbclient.core.engine import Engine
from lbclient.discovery.scheduler import Scheduler
from lbclient.endpoint.endpoint import Endpoint
from lbclient.strategy.protocol import LoadAware, LoadProbe, LoadReport, Probing

__all__ = ["Loads", "Prober", "load_of", "report_of"]

_AT_ONCE = 16
"""The maximum number of load probes under way. It is above 1, so that an instance that does not
answer does not delay other probes. It equals the number of reports that a strategy keeps."""

_IN_FLIGHT, _LATENCY = "in_flight", "latency"
_WAITING, _RUNNING, _KV_CACHE = (
    "num_requests_waiting",
    "num_requests_running",
    "kv_cache_usage_perc",
)
"""The metrics of vLLM that are read. Some versions of vLLM do not report the running requests."""

_METRICS = _IN_FLIGHT, _LATENCY, _WAITING, _RUNNING, _KV_CACHE


_LONGEST = 4096

_NAMED = "named_metrics"


def load_of(text: str) -> LoadReport | None:
    """Parse a load report: `TEXT named_metrics.in_flight=7, named_metrics.latency=0.02` or `JSON
    {"named_metrics": {"in_flight": 7, "latency": 0.02}}`. vLLM's metrics are read as well. Returns
    None if the report does not contain the number of requests in flight.

    Raises ValueError if the report is malformed.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    form, _, rest = text.strip().partition(" ")
    try:
        named = _FORMS[form](rest) if form in _FORMS else {}
        return report_of(named)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _pairs(text: str) -> Mapping[str, object]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name.strip().removeprefix(f"{_NAMED}."): value for name, _, value in pairs}


def _object(text: str) -> Mapping[str, object]:
    found = json.loads(text)
    named = found.get(_NAMED, {}) if isinstance(found, dict) else None
    if not isinstance(named, dict):
        raise TypeError("named_metrics must be an object")
    return named


_FORMS: Mapping[str, Callable[[str], Mapping[str, object]]] = {"TEXT": _pairs, "JSON": _object}


def report_of(named: Mapping[str, object]) -> LoadReport | None:
    """Return the load report that ORCA's named metrics contain; None if they do not contain the
    number of requests in flight.

    Raises ValueError or TypeError for a number that cannot be used.
    """
    numbers = {name: _number(named[name]) for name in _METRICS if named.get(name) is not None}
    if _IN_FLIGHT not in numbers and _WAITING not in numbers:
        return None
    requests = [_IN_FLIGHT] if _IN_FLIGHT in numbers else [_WAITING, _RUNNING]
    parts = [LoadReport(numbers.get(name, 0.0)) for name in requests]  # checks the numbers
    in_flight = sum(part.in_flight for part in parts)
    return LoadReport(in_flight, numbers.get(_LATENCY), numbers.get(_KV_CACHE))


def _number(value: object) -> float:
    return float(value) if isinstance(value, str) else value  # type: ignore[return-value]  # checked there


class Loads:
    """Passes load reports to the strategy of a balancer, under its lock."""

    def __init__(self, strategy: LoadAware, engine: Engine) -> None:
        probe = strategy.probe if isinstance(strategy, Probing) else None
        self.probe: LoadProbe | None = probe if isinstance(probe, LoadProbe) else None
        """The strategy's settings for load probes, or None. A user's strategy may use the attribute
        `probe` for something else.
        """
        self.nonsense: int = 0
        """The number of reports that could not be used."""
        self._strategy = strategy
        self._engine = engine
        name = f"{engine.service}: strategy {type(strategy).__name__}"
        self._heeding = Complaint(engine.outbox.add, name, "failed to use a load report")
        self._refusals = Complaint(
            engine.outbox.add, f"{engine.service}: a load report", "cannot be used", WARNING
        )

    def record(self, endpoint: Endpoint, load: LoadReport | None) -> None:
        """Pass the load of an endpoint to the strategy. None means that the endpoint was probed and
        did not report its load."""
        engine = self._engine
        with engine.lock:
            now = engine.clock()
            if load is not None and self._refusals.failing:
                self._refusals.recovered()
            with self._heeding.tolerate(now):
                self._strategy.reported(endpoint, load, now=now)
        engine.outbox.publish()

    def refused(self, endpoint: Endpoint, why: str) -> None:
        """Log that an endpoint sent an invalid load report, with the reason `why`."""
        with self._engine.lock:
            self.nonsense += 1
            self._refusals.failed(self._engine.clock(), detail=f"{endpoint.instance}: {why}")
        self.record(endpoint, None)

    def candidates(self) -> Sequence[Endpoint]:
        """The endpoints that may be picked. These are the endpoints to probe."""
        engine = self._engine
        with engine.lock:
            return engine.pool.candidates(engine.clock())


class Prober:
    """A job of the scheduler that sends load probes to instances. `ask` asks one of the
    `candidates` for its load. Each `ask` runs on a thread of its own.

    The first answer to a call starts a round of probes. After that, a round starts every
    `policy.interval` seconds, as long as calls get answers.
    """

    ticket = -1
    busy: bool = False
    quick: bool = False
    stopped: bool = False

    def __init__(
        self,
        policy: LoadProbe,
        ask: Check,
        *,
        candidates: Callable[[], Sequence[Endpoint]],
        scheduler: Scheduler,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.clock = clock
        self.next_at: float = math.inf
        self._policy = policy
        self._ask = ask
        self._candidates = candidates
        self._scheduler = scheduler
        self._rng = rng
        self._generation: object = None
        self._answers = 0
        self._asleep = True
        self._under_way: set[Endpoint] = set()

    def answered(self) -> None:
        """Count an attempt that was answered. If threads count at the same time, some attempts may
        not be counted, which is harmless."""
        self._answers += 1
        if self._asleep or self._generation is not self._scheduler.generation:
            self._wake()

    def stop(self) -> None:
        """Run no more rounds."""
        self.stopped = True

    def claim(self) -> bool:
        """True if a round of probes is due."""
        return not self.stopped and self.clock() >= self.next_at

    def run(self) -> None:
        """Run one round of probes, after `claim`. This method does not wait for the answers."""
        answers, self._answers = self._answers, 0
        self.next_at = self.clock() + self._policy.interval if answers else math.inf
        self._asleep = not answers  # set last, since `_wake` sets `next_at`
        for endpoint in self._drawn(answers) if answers else ():
            self._begin(endpoint)

    def _wake(self) -> None:
        if self._generation is not self._scheduler.generation:  # a fork has ended the threads
            self._generation = self._scheduler.generation
            self._under_way = set()
        self._asleep = False
        self.next_at = self.clock()
        self._scheduler.schedule(self)

    def _drawn(self, answers: int) -> set[Endpoint]:
        """Draw the number of endpoints to probe after this many answers, up to the limit."""
        candidates = self._candidates()
        wanted = self._policy.rate * answers
        number = int(wanted) + (self._rng.random() < wanted % 1.0)
        number = min(number, len(candidates), _AT_ONCE - len(self._under_way))
        return set(self._rng.sample(candidates, max(0, number))) - self._under_way

    def _begin(self, endpoint: Endpoint) -> None:
        expiry = Expiry(time.monotonic() + self._policy.timeout, time.monotonic)
        under_way = self._under_way
        under_way.add(endpoint)

        def work() -> None:
            try:
                outcome(self._ask, endpoint, expiry)  # after an error there is no report
            finally:
                under_way.discard(endpoint)

        # The thread gets a context of its own, since it may otherwise inherit a context with the
        # span of a call.
        run = Context().run
        try:
            threading.Thread(target=run, args=(work,), name="lbclient-probe", daemon=True).start()
        except RuntimeError:  # no more threads can be started: the next round tries again
            under_way.discard(endpoint)
