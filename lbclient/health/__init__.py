"""Active health checks: every instance is asked on the control plane whether it is well."""

from __future__ import annotations

from lbclient.health.crew import Crew, Threads, in_turn
from lbclient.health.loads import Loads
from lbclient.health.monitor import Monitor
from lbclient.health.plain import Check, CheckFailed, plain_check
from lbclient.health.policy import HealthCheck
from lbclient.health.prober import Prober

__all__ = [
    "Check",
    "CheckFailed",
    "Crew",
    "HealthCheck",
    "Loads",
    "Monitor",
    "Prober",
    "Threads",
    "in_turn",
    "plain_check",
]
