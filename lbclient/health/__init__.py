"""Active health checks: every instance is asked on the control plane whether it is well."""

from __future__ import annotations

from lbclient.health.crew import Crew, Threads, in_turn
from lbclient.health.monitor import Monitor
from lbclient.health.plain import Check, CheckFailed, plain_check
from lbclient.health.policy import HealthCheck

__all__ = [
    "Check",
    "CheckFailed",
    "Crew",
    "HealthCheck",
    "Monitor",
    "Threads",
    "in_turn",
    "plain_check",
]
