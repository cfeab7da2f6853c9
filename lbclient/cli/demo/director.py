"""The acts of the demo, each begun in time, what comes of it, and what a view of it shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from lbclient.cli.demo.meter import Frame, Tally
from lbclient.cli.demo.stage import CAST, NEWCOMER, Machine, Stage

__all__ = ["Director", "Kill", "Playbill", "Scene", "View", "summary"]


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


class Scene:
    """One act as it went: begun `at` so many seconds, `noticed` once its sign was seen."""

    def __init__(self, act: Act, before: Frame) -> None:
        self.at = before.at
        self.what = act.what
        self.noticed = ""
        """What showed that the client had noticed, and when."""
        self.result = ""
        self.over = False
        self._act = act
        self._before = before

    @property
    def outcome(self) -> str:
        """What was seen of it so far."""
        return ", ".join(filter(None, (self.noticed, self.result)))

    def watch(self, frame: Frame) -> None:
        """Look for its sign, and bring its result up to date."""
        if not self.noticed and (sign := self._act.sign(self._before, frame)) is not None:
            self.noticed = f"{sign} at {frame.at:.1f} s"
        failed = frame.tally.failed - self._before.tally.failed
        self.result = f"{self._act.result(self._before, frame)}, {failed} calls failed"


class Director:
    """Plays the acts over `seconds`; `scenes` are those begun so far."""

    def __init__(self, stage: Stage, seconds: float, acts: Iterable[Act] = ACTS) -> None:
        self.scenes: list[Scene] = []
        self._stage = stage
        self._seconds = seconds
        self._coming = deque(acts)

    def step(self, frame: Frame) -> None:
        """Watch the act under way; begin the next if it is due."""
        if self.scenes:
            self.scenes[-1].watch(frame)
        if self._coming and frame.at >= self._coming[0].at * self._seconds:
            self._next(frame)

    def end(self, frame: Frame) -> None:
        """A last look; what was seen of the act under way stands."""
        if self.scenes:
            self.scenes[-1].watch(frame)
            self.scenes[-1].over = True

    def _next(self, frame: Frame) -> None:
        self.end(frame)
        act = self._coming.popleft()
        act.begin(self._stage)
        self.scenes.append(Scene(act, frame))


@dataclass(frozen=True, slots=True)
class Playbill:
    """What is played: the service, the strategy, for how many seconds."""

    service: str
    strategy: str
    seconds: float


class View(Protocol):
    """Shows the demo while it runs, and sums it up."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, /, *_: object) -> None: ...

    def show(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """The state now."""
        ...

    def close(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """The closing summary."""
        ...


def summary(tally: Tally) -> str:
    """What became of the calls, in one line."""
    return f"{tally.calls} calls, {tally.failed} failed, {tally.retries} retries"
