"""Discovery in a world: the rounds of a watch, each at its virtual time."""

from __future__ import annotations

from typing import Unpack

from lbclient.balancer import Balancer
from lbclient.discovery import Service
from lbclient.discovery.watch import Watch
from lbclient.options import BalancerOptions
from lbclient.outcome import Judge
from lbclient.simulation.world import World

__all__ = ["Rounds", "simulated"]


class Rounds:
    """Runs what the refresher's threads run elsewhere. A look-up takes no virtual time."""

    def __init__(self, world: World) -> None:
        self.generation = object()
        self._world = world

    def schedule(self, watch: Watch) -> None:
        """Run the next round of `watch` at its `next_at`; replaces what was scheduled before."""
        watch.turn += 1
        turn = watch.turn
        if not watch.stopped:
            self._world.at(watch.next_at, lambda: self._round(watch, turn))

    def _round(self, watch: Watch, turn: int) -> None:
        if watch.turn == turn and watch.claim():
            watch.run()
            self.schedule(watch)


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

    return Simulated(service, judge=judge, clock=world.clock, **options)  # type: ignore[misc]  # one clock only
