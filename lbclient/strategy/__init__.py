"""Strategies, one per file. A strategy picks one of the candidates; the endpoint keeps the load."""

from __future__ import annotations

from lbclient.strategy.consistent_hash import ConsistentHash
from lbclient.strategy.least_busy import LeastBusy
from lbclient.strategy.peak_ewma import PeakEwma
from lbclient.strategy.prequal import Prequal
from lbclient.strategy.protocol import (
    Learning,
    LoadAware,
    LoadProbe,
    LoadReport,
    PickContext,
    Probing,
    Strategy,
)
from lbclient.strategy.random import Random
from lbclient.strategy.registry import BY_NAME, claim, release, strategy_of
from lbclient.strategy.round_robin import RoundRobin
from lbclient.strategy.weighted import Weighted
from lbclient.strategy.zone import Zone

__all__ = [
    "BY_NAME",
    "ConsistentHash",
    "Learning",
    "LeastBusy",
    "LoadAware",
    "LoadProbe",
    "LoadReport",
    "PeakEwma",
    "PickContext",
    "Prequal",
    "Probing",
    "Random",
    "RoundRobin",
    "Strategy",
    "Weighted",
    "Zone",
    "claim",
    "release",
    "strategy_of",
]
