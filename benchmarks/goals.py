"""What a benchmark is to reach."""

from __future__ import annotations

from dataclasses import dataclass

from turns import Spread


@dataclass(frozen=True)
class Goal:
    """A bound for a median. `unit` is said after its figures."""

    sign: str
    bound: float
    unit: str = ""

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.sign == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Outcome:
    """What became of one goal."""

    what: str
    goal: Goal
    measured: Spread

    @property
    def met(self) -> bool:
        return self.goal.holds(self.measured.median)


def at_most(bound: float, unit: str = "") -> Goal:
    return Goal("<=", bound, unit)


def at_least(bound: float, unit: str = "") -> Goal:
    return Goal(">=", bound, unit)
