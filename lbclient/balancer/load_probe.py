"""Load reports: random instances are asked in the background, and the strategy is told.

They are asked only while there are calls.
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
from lbclient._internal.interruption import is_interruption
from lbclient.balancer.health_monitor import Check, outcome
from lbclient.core.engine import Engine
from lbclient.discovery.scheduler import Scheduler
from lbclient.endpoint import Endpoint
from lbclient.strategy import LoadAware, LoadProbe, LoadReport, Probing

__all__ = ["Loads", "Prober"]

_AT_ONCE = 16
"""As many reports wait for a pick; and one that is silent must hold up no other."""


class Loads:
    """One balancer's strategy that heeds reports, under that balancer's lock."""

    def __init__(self, strategy: LoadAware, engine: Engine) -> None:
        probe = strategy.probe if isinstance(strategy, Probing) else None
        self.probe = probe if isinstance(probe, LoadProbe) else None
        """How it wants instances asked, where it does; a caller's may mean another thing by it."""
        self.nonsense = 0
        """How many reports could not be used."""
        self._strategy = strategy
        self._engine = engine
        name = f"{engine.service}: strategy {type(strategy).__name__}"
        self._heeding = Complaint(engine.outbox.add, name, "failed to heed a report")
        self._refusals = Complaint(
            engine.outbox.add, f"{engine.service}: a load report", "cannot be used", WARNING
        )

    def record(self, endpoint: Endpoint, load: LoadReport | None) -> None:
        """It has said so; None where it was asked, and said nothing."""
        engine = self._engine
        with engine.lock:
            now = engine.clock()
            if load is not None and self._refusals.failing:
                self._refusals.recovered()
            try:
                self._strategy.reported(endpoint, load, now=now)
            except Exception as error:
                if is_interruption(error):
                    raise
                self._heeding.failed(now, error)
            else:
                if self._heeding.failing:
                    self._heeding.recovered()
        engine.outbox.publish()

    def refused(self, endpoint: Endpoint, why: str) -> None:
        """What it has said is nonsense, for reason `why`, and counts as nothing."""
        with self._engine.lock:
            self.nonsense += 1
            self._refusals.failed(self._engine.clock(), detail=f"{endpoint.instance}: {why}")
        self.record(endpoint, None)

    def candidates(self) -> Sequence[Endpoint]:
        """Who may be picked, and so is worth asking."""
        engine = self._engine
        with engine.lock:
            return engine.pool.candidates(engine.clock())


class Prober:
    """A job of the refresher's: `ask` asks one of `candidates`, on a thread of its own.

    An answer has a round take place; then there is one each `policy.interval`, for as long as
    answers come.
    """

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
        self.ticket = -1
        """The refresher's ticket for the next round."""
        self.next_at = math.inf
        self.stopped = False
        self.busy = False
        self.quick = False
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
        """An attempt was. Threads may lose a count, which changes nothing."""
        self._answers += 1
        if self._asleep or self._generation is not self._scheduler.generation:
            self._wake()

    def stop(self) -> None:
        """No round follows."""
        self.stopped = True

    def claim(self) -> bool:
        """True where a round is due."""
        return not self.stopped and self.clock() >= self.next_at

    def run(self) -> None:
        """One round, after `claim`; it waits for no answer."""
        answers, self._answers = self._answers, 0
        self.next_at = self.clock() + self._policy.interval if answers else math.inf
        self._asleep = not answers  # last: whoever wakes it up sets `next_at`
        for one in self._drawn(answers) if answers else ():
            self._begin(one)

    def _wake(self) -> None:
        if self._generation is not self._scheduler.generation:  # a forked child has no threads yet
            self._generation = self._scheduler.generation
            self._under_way = set()
        self._asleep = False
        self.next_at = self.clock()
        self._scheduler.schedule(self)

    def _drawn(self, answers: int) -> set[Endpoint]:
        """As many as so many answers ask for, while there is room."""
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
                outcome(self._ask, endpoint, expiry)  # who does not answer, has said nothing
            finally:
                under_way.discard(endpoint)

        # In a context of its own: a thread may inherit one, with the span of some call in it.
        run = Context().run
        try:
            threading.Thread(target=run, args=(work,), name="lbclient-probe", daemon=True).start()
        except RuntimeError:  # no more threads to be had: the next round may have some
            under_way.discard(endpoint)
