"""The third shell: the same decisions, in virtual time.

    world = World()
    balancer = simulated(world, resolver, rng=random.Random(1))
    world.spawn(carry_out(balancer.begin(terms, semantics), send))
    world.run()

So far it runs what it is given; scripted servers, load and reports are to come.
"""

from __future__ import annotations

from lbclient.simulation.rounds import simulated
from lbclient.simulation.shell import carry_out
from lbclient.simulation.world import Process, World

__all__ = ["Process", "World", "carry_out", "simulated"]
