"""The director: begins each act of the demo in time, and watches what comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from lbclient.cli.acts import ACTS, Act
from lbclient.cli.frame import Frame
from lbclient.cli.stage import Stage

__all__ = ["Director", "Scene"]


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
