"""What strategies need in their own tests."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from lbclient import BreakerPolicy, Instance
from lbclient.core.pool import Pool

PORTS = 60_000


@dataclass
class Asked:
    """What a strategy is told of a call."""

    rng: random.Random = field(default_factory=lambda: random.Random(7))
    now: float = 0.0
    key: object = None


def candidates(*weights):
    """The endpoints of a pool with this many instances."""
    pool = Pool(BreakerPolicy())
    pool.update(
        Instance(f"10.0.0.{1 + place // PORTS}", 1 + place % PORTS, weight=weight)
        for place, weight in enumerate(weights)
    )
    return pool.candidates(0.0)
