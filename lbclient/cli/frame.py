"""What the demo shows at one moment, and the meter that reads it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lbclient.balancer import Balancer
from lbclient.cli.load import Load, Tally
from lbclient.snapshot import InstanceSnapshot

__all__ = ["Frame", "Meter", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One instance: `share` is its part of the recent attempts, from 0 to 1."""

    name: str
    share: float
    known: InstanceSnapshot


@dataclass(frozen=True, slots=True)
class Frame:
    """The demo `at` so many seconds: every known instance, the tally, and recent calls a second."""

    at: float
    rows: tuple[Row, ...]
    tally: Tally
    rate: float

    def row(self, name: str) -> Row | None:
        """The instance of that name, if the client knows it."""
        return next((one for one in self.rows if one.name == name), None)

    def share(self, name: str) -> float:
        """Its part of the recent attempts; 0 while the client does not know it."""
        row = self.row(name)
        return 0.0 if row is None else row.share


@dataclass(frozen=True, slots=True)
class _Mark:
    at: float
    calls: int
    attempts: dict[str, int]


class Meter:
    """Reads frames from the balancer's snapshot and the load's tally.

    The last `window` seconds of traffic count as recent.
    """

    def __init__(self, balancer: Balancer, load: Load, window: float) -> None:
        self._balancer = balancer
        self._load = load
        self._window = window
        self._marks: deque[_Mark] = deque()

    def read(self, now: float) -> Frame:
        """The state at `now`, in seconds since the start."""
        known = {_name(one): one for one in self._balancer.snapshot().instances}
        tally = self._load.tally
        mark = _Mark(now, tally.calls, {name: one.attempts for name, one in known.items()})
        since = self._since(mark)
        recent = {
            name: count - since.attempts.get(name, 0) for name, count in mark.attempts.items()
        }
        total = sum(recent.values()) or 1
        rows = (Row(name, recent[name] / total, known[name]) for name in sorted(known))
        rate = (mark.calls - since.calls) / max(mark.at - since.at, 0.1)
        return Frame(now, tuple(rows), tally, rate)

    def _since(self, mark: _Mark) -> _Mark:
        """The mark from one window ago."""
        self._marks.append(mark)
        while len(self._marks) > 2 and self._marks[1].at <= mark.at - self._window:
            self._marks.popleft()
        return self._marks[0]


def _name(known: InstanceSnapshot) -> str:
    return known.instance.host.partition(".")[0]
