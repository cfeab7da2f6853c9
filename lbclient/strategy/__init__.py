"""Strategies: one a file; each picks one of the candidates. Load belongs to the endpoint."""

from __future__ import annotations

from lbclient.strategy.choice import BY_NAME, claim, release, strategy_of
from lbclient.strategy.least_busy import LeastBusy
from lbclient.strategy.protocol import Learning, PickContext, Strategy
from lbclient.strategy.random import Random
from lbclient.strategy.round_robin import RoundRobin
from lbclient.strategy.weighted import Weighted

__all__ = [
    "BY_NAME",
    "Learning",
    "LeastBusy",
    "PickContext",
    "Random",
    "RoundRobin",
    "Strategy",
    "Weighted",
    "claim",
    "release",
    "strategy_of",
]
