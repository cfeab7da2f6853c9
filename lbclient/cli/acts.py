"""The acts of the demo: what is done to the instances, and what is to be seen of it."""

from __future__ import annotations

from typing import Protocol

from lbclient.cli.frame import Frame
from lbclient.cli.stage import CAST, NEWCOMER, Machine, Stage

__all__ = ["ACTS", "Act", "Join", "Kill", "Slow"]


class Act(Protocol):
    """One thing that happens. `at` is when, as a part of the demo's time; `what` says it."""

    at: float
    what: str

    def begin(self, stage: Stage) -> None:
        """Do it."""
        ...

    def sign(self, before: Frame, now: Frame) -> str | None:
        """What shows that the client has noticed, once it has."""
        ...

    def result(self, before: Frame, now: Frame) -> str:
        """What came of it, at the end of the act."""
        ...


class Kill:
    """A process crashes, and DNS goes on naming it."""

    def __init__(self, at: float, machine: Machine) -> None:
        self.at = at
        self.what = f"{machine.name} killed, still in DNS"
        self._machine = machine

    def begin(self, stage: Stage) -> None:
        """Do it."""
        stage.kill(self._machine)

    def sign(self, before: Frame, now: Frame) -> str | None:  # noqa: ARG002  # an Act's words
        """Its breaker opens."""
        row = now.row(self._machine.name)
        return None if row is None or row.known.breaker == "closed" else "breaker open"

    def result(self, before: Frame, now: Frame) -> str:
        """The calls that it failed went to others."""
        return f"{now.tally.retries - before.tally.retries} retries"


class Slow:
    """An instance becomes slow."""

    def __init__(self, at: float, machine: Machine, delay: float) -> None:
        self.at = at
        self.what = f"{machine.name} slowed from {machine.delay * 1e3:g} to {delay * 1e3:g} ms"
        self._machine = machine
        self._delay = delay

    def begin(self, stage: Stage) -> None:
        """Do it."""
        stage.slow(self._machine, self._delay)

    def sign(self, before: Frame, now: Frame) -> str | None:
        """Less than half of its traffic is left."""
        name = self._machine.name
        return "traffic halved" if now.share(name) < before.share(name) / 2 else None

    def result(self, before: Frame, now: Frame) -> str:
        """Its share of the traffic, before and after."""
        return _moved(self._machine, before, now)


class Join:
    """A new instance starts, and DNS names it."""

    def __init__(self, at: float, machine: Machine) -> None:
        self.at = at
        self.what = f"{machine.name} added to DNS"
        self._machine = machine

    def begin(self, stage: Stage) -> None:
        """Do it."""
        stage.add(self._machine)

    def sign(self, before: Frame, now: Frame) -> str | None:  # noqa: ARG002  # an Act's words
        """It is found and used."""
        row = now.row(self._machine.name)
        return "first call" if row is not None and row.known.attempts else None

    def result(self, before: Frame, now: Frame) -> str:
        """Its share of the traffic, before and after."""
        return _moved(self._machine, before, now)


def _moved(machine: Machine, before: Frame, now: Frame) -> str:
    return f"share {before.share(machine.name):.0%} to {now.share(machine.name):.0%}"


ACTS: tuple[Act, ...] = (
    Kill(0.15, CAST[1]),
    Slow(0.35, CAST[2], 0.3),
    Join(0.65, NEWCOMER),
)
