"""The events of the demo, their times and results, and the interface of its views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from lbclient.cli.demo.meter import Frame, Tally
from lbclient.cli.demo.stage import CAST, NEWCOMER, Machine, Stage
from lbclient.strategy.registry import StrategyName

__all__ = ["Director", "Kill", "Playbill", "Scene", "View", "summary"]


class Act(Protocol):
    """One event of the demo. `at` is the time when it begins, as a fraction of the demo's time.
    `what` describes the event."""

    at: float
    what: str

    def begin(self, stage: Stage) -> None:
        """Cause the event."""
        ...

    def sign(self, before: Frame, now: Frame) -> str | None:
        """Return a text that says how the client has noticed the event. Returns None until the
        client has noticed it."""
        ...

    def result(self, before: Frame, now: Frame) -> str:
        """Return a text that says how the event has changed the traffic. It is shown when the event
        ends."""
        ...


class Kill:
    """A process crashes, while DNS still returns it."""

    def __init__(self, at: float, machine: Machine) -> None:
        self.at = at
        self.what: str = f"{machine.name} killed, still in DNS"
        self._machine = machine

    def begin(self, stage: Stage) -> None:
        """Kill the process of the instance."""
        stage.kill(self._machine)

    def sign(self, before: Frame, now: Frame) -> str | None:  # noqa: ARG002  # as in Act
        """The sign is that the breaker of the killed instance opens."""
        row = now.row(self._machine.name)
        return None if row is None or row.known.breaker == "closed" else "breaker open"

    def result(self, before: Frame, now: Frame) -> str:
        """The result is the number of retries: calls that failed at the killed instance went to
        other instances."""
        return f"{now.tally.retries - before.tally.retries} retries"


class Slow:
    """An instance becomes slow."""

    def __init__(self, at: float, machine: Machine, delay: float) -> None:
        self.at = at
        self.what: str = f"{machine.name} slowed from {machine.delay * 1e3:g} to {delay * 1e3:g} ms"
        self._machine = machine
        self._delay = delay

    def begin(self, stage: Stage) -> None:
        """Make the instance slow."""
        stage.slow(self._machine, self._delay)

    def sign(self, before: Frame, now: Frame) -> str | None:
        """The sign is that the slow instance gets less than half of its traffic."""
        name = self._machine.name
        return "traffic halved" if now.share(name) < before.share(name) / 2 else None

    def result(self, before: Frame, now: Frame) -> str:
        """The result is the instance's share of the traffic, before and after the event."""
        return _moved(self._machine, before, now)


class Join:
    """A new instance starts, and is added to DNS."""

    def __init__(self, at: float, machine: Machine) -> None:
        self.at = at
        self.what: str = f"{machine.name} added to DNS"
        self._machine = machine

    def begin(self, stage: Stage) -> None:
        """Start the instance and add it to DNS."""
        stage.add(self._machine)

    def sign(self, before: Frame, now: Frame) -> str | None:  # noqa: ARG002  # as in Act
        """The sign is that discovery returns the new instance and that it gets calls."""
        row = now.row(self._machine.name)
        return "first call" if row is not None and row.known.attempts else None

    def result(self, before: Frame, now: Frame) -> str:
        """The result is the instance's share of the traffic, before and after the event."""
        return _moved(self._machine, before, now)


def _moved(machine: Machine, before: Frame, now: Frame) -> str:
    return f"share {before.share(machine.name):.0%} to {now.share(machine.name):.0%}"


ACTS: tuple[Act, ...] = (
    Kill(0.15, CAST[1]),
    Slow(0.35, CAST[2], 0.3),
    Join(0.65, NEWCOMER),
)


class Scene:
    """One event that has begun, and what has been seen of it. `at` is the time in seconds when it
    began. `noticed` is set once the sign of the event was seen."""

    def __init__(self, act: Act, before: Frame) -> None:
        self.at: float = before.at
        self.what: str = act.what
        self.noticed: str = ""
        """The sign that the client has noticed the event, and the time when it was seen."""
        self.result: str = ""
        self.over = False
        self._act = act
        self._before = before

    @property
    def outcome(self) -> str:
        """The sign and the result of the event so far."""
        return ", ".join(filter(None, (self.noticed, self.result)))

    def watch(self, frame: Frame) -> None:
        """Look for the sign of the event, and update its result."""
        if not self.noticed and (sign := self._act.sign(self._before, frame)) is not None:
            self.noticed = f"{sign} at {frame.at:.1f} s"
        failed = frame.tally.failed - self._before.tally.failed
        self.result = f"{self._act.result(self._before, frame)}, {failed} calls failed"


class Director:
    """Starts the events, spread over `seconds`. `scenes` are the events that have begun."""

    def __init__(self, stage: Stage, seconds: float, acts: Iterable[Act] = ACTS) -> None:
        self.scenes: list[Scene] = []
        self._stage = stage
        self._seconds = seconds
        self._coming = deque(acts)

    def step(self, frame: Frame) -> None:
        """Watch the current event, and begin the next if it is due."""
        if self.scenes:
            self.scenes[-1].watch(frame)
        if self._coming and frame.at >= self._coming[0].at * self._seconds:
            self._next(frame)

    def end(self, frame: Frame) -> None:
        """Watch the current event for the last time."""
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
    """The content of the demo: the service, the strategy, and the length in seconds."""

    service: str
    strategy: StrategyName
    seconds: float


class View(Protocol):
    """Shows the demo while it runs, and a summary at the end."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: object, /, *_: object) -> None: ...

    def show(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Show the current state."""
        ...

    def close(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Show the summary."""
        ...


def summary(tally: Tally) -> str:
    """Return a line that says how the calls ended."""
    return f"{tally.calls} calls, {tally.failed} failed, {tally.retries} retries"
