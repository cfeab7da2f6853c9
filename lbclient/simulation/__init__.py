"""Simulate a service in virtual time, with the code that makes the decisions in production.

    from lbclient.simulation import Open, Scenario, Server, answers, constant, simulate

    servers = [Server(f"s{n}", answers(constant(0.1))) for n in range(3)]
    print(simulate(Scenario(servers, Open(rate=100, seconds=60)), strategy="least-busy"))

A run never waits in real time, and all random numbers come from one seed. So the same arguments
give the same report. Its attribute `trace` is a hash of all decisions.
"""

from __future__ import annotations

from lbclient.simulation.behaviour import (
    Behaviour,
    Latency,
    Reply,
    SimulatedRequest,
    answers,
    breaks,
    constant,
    exponential,
    fails,
    judge_of,
    linear,
    mixed,
    per_run,
    phases,
    queued,
    rate_limited,
    refuses,
    silent,
    until_capacity,
)
from lbclient.simulation.driver import carry_out
from lbclient.simulation.report import Outcome, Report, Slice
from lbclient.simulation.run import simulate, simulated
from lbclient.simulation.scenario import Closed, Load, Open, Scenario
from lbclient.simulation.server import Server
from lbclient.simulation.world import Process, World

__all__ = [
    "Behaviour",
    "Closed",
    "Latency",
    "Load",
    "Open",
    "Outcome",
    "Process",
    "Reply",
    "Report",
    "Scenario",
    "Server",
    "SimulatedRequest",
    "Slice",
    "World",
    "answers",
    "breaks",
    "carry_out",
    "constant",
    "exponential",
    "fails",
    "judge_of",
    "linear",
    "mixed",
    "per_run",
    "phases",
    "queued",
    "rate_limited",
    "refuses",
    "silent",
    "simulate",
    "simulated",
    "until_capacity",
]
