"""Discovery and health checks in a world: the rounds of a job, each at its virtual time."""

from __future__ import annotations

import logging
import math
from typing import Unpack

from lbclient.balancer import Balancer
from lbclient.discovery import Service
from lbclient.discovery.job import Job
from lbclient.health import Crew, in_turn
from lbclient.options import BalancerOptions
from lbclient.outcome import Judge
from lbclient.simulation.world import World

__all__ = ["Rounds", "simulated"]


class Rounds:
    """Runs what the refresher's threads run elsewhere. No round takes virtual time."""

    def __init__(self, world: World) -> None:
        self.generation = object()
        self._world = world

    def schedule(self, job: Job) -> None:
        """Run the next round of `job` at its `next_at`; replaces what was scheduled before."""
        job.turn += 1
        turn = job.turn
        if not job.stopped:
            self._world.at(job.next_at, lambda: self._round(job, turn), background=True)

    def _round(self, job: Job, turn: int) -> None:
        if job.turn == turn and job.claim():
            job.run()
            self.schedule(job)


def simulated(
    world: World,
    service: Service,
    *,
    judge: Judge | None = None,
    **options: Unpack[BalancerOptions],
) -> Balancer:
    """A balancer whose clock and discovery are the world's."""

    class Simulated(Balancer):
        _scheduler = Rounds(world)

        def _crew(self) -> Crew:
            return in_turn

        def told(self) -> Balancer:
            """No response is dropped here unclosed, so nothing need be looked for. What happens to
            simulated instances is no warning to anybody; it is in the report."""
            self._core.look_again = math.inf
            self._core.news.least = logging.ERROR
            return self

    return Simulated(service, judge=judge, clock=world.clock, **options).told()  # type: ignore[misc]  # one clock only
