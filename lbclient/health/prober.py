"""When random instances are asked for their load: in the background, while there are calls."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import Context

from lbclient.deadline import Expiry
from lbclient.discovery.job import Scheduler
from lbclient.endpoint import Endpoint
from lbclient.health.crew import outcome
from lbclient.health.plain import Check
from lbclient.strategy import LoadProbe

__all__ = ["Prober"]

_AT_ONCE = 16
"""As many reports wait for a pick; and one that is silent must hold up no other."""


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
        self.turn = -1
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
