"""Asks random instances for their load in the background, and reports it to the strategy.

Instances are asked only while there are calls.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from logging import WARNING

from lbclient._internal.deadline import Expiry
from lbclient._internal.failure_log import Complaint
from lbclient.balancer.health_monitor import Check, outcome
from lbclient.core.engine import Engine
from lbclient.discovery.scheduler import Scheduler
from lbclient.endpoint.endpoint import Endpoint
from lbclient.strategy.protocol import LoadAware, LoadProbe, LoadReport, Probing

__all__ = ["Loads", "Prober"]

_AT_ONCE = 16
"""The maximum number of probes under way. A silent instance must not delay other probes, and a
strategy keeps this many reports.
"""


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
        """Report the load of an endpoint. None: it was probed and did not report its load."""
        engine = self._engine
        with engine.lock:
            now = engine.clock()
            if load is not None and self._refusals.failing:
                self._refusals.recovered()
            with self._heeding.tolerate(now):
                self._strategy.reported(endpoint, load, now=now)
        engine.outbox.publish()

    def refused(self, endpoint: Endpoint, why: str) -> None:
        """Report that an endpoint sent an invalid report, for the reason `why`."""
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
    """A job of the scheduler that probes instances. `ask` asks one of the `candidates`, on a thread
    of its own.

    The first answer to a call starts a round. After that, a round starts every `policy.interval`,
    as long as calls get answers.
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
        """Count an attempt that was answered. Concurrent threads may lose a count, which is
        harmless.
        """
        self._answers += 1
        if self._asleep or self._generation is not self._scheduler.generation:
            self._wake()

    def stop(self) -> None:
        """Run no more rounds."""
        self.stopped = True

    def claim(self) -> bool:
        """True if a round is due."""
        return not self.stopped and self.clock() >= self.next_at

    def run(self) -> None:
        """Run one round, after `claim`. It does not wait for answers."""
        answers, self._answers = self._answers, 0
        self.next_at = self.clock() + self._policy.interval if answers else math.inf
        self._asleep = not answers  # last, since `_wake` sets `next_at`
        for endpoint in self._drawn(answers) if answers else ():
            self._begin(endpoint)

    def _wake(self) -> None:
        if self._generation is not self._scheduler.generation:  # a forked child has no threads yet
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
                outcome(self._ask, endpoint, expiry)  # an error means that there is no report
            finally:
                under_way.discard(endpoint)

        # In a context of its own: a thread may inherit a context that holds the span of a call.
        run = Context().run
        try:
            threading.Thread(target=run, args=(work,), name="lbclient-probe", daemon=True).start()
        except RuntimeError:  # no more threads can be started: the next round tries again
            under_way.discard(endpoint)
