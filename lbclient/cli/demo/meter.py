"""The traffic of the demo, and its state at one moment."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

from lbclient.balancer.balancer import Balancer
from lbclient.balancer.snapshot import InstanceSnapshot

__all__ = ["Frame", "Load", "Meter", "Outcome", "Row", "Tally"]


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of calls, of calls that have `failed`, and of attempts after the first attempt of
    each call."""

    calls: int = 0
    failed: int = 0
    retries: int = 0


class Outcome(NamedTuple):
    """How one call ended: the failure as text (empty for a success), and the number of retries."""

    failure: str
    retries: int


class Load:
    """Runs `threads` threads during a `with` block. Each thread makes its next call as soon as its
    last call has ended.
    """

    def __init__(self, call: Callable[[], Outcome], threads: int = 12) -> None:
        self.tally: Tally = Tally()
        self.last_failure: str = ""
        """The outcome of the last failed call."""
        self._call = call
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._count(self._call())

    def _count(self, outcome: Outcome) -> None:
        failure, retries = outcome
        with self._lock:
            old = self.tally
            self.tally = Tally(old.calls + 1, old.failed + bool(failure), old.retries + retries)
            self.last_failure = failure or self.last_failure


@dataclass(frozen=True, slots=True)
class Row:
    """One instance. `share` is its share of the recent attempts, from 0 to 1."""

    name: str
    share: float
    known: InstanceSnapshot


@dataclass(frozen=True, slots=True)
class Frame:
    """The state at one moment, `at` seconds after the start: all known instances, the tally, and
    the recent calls per second."""

    at: float
    rows: tuple[Row, ...]
    tally: Tally
    rate: float

    def row(self, name: str) -> Row | None:
        """Return the instance of that name, if the client knows it."""
        return next((row for row in self.rows if row.name == name), None)

    def share(self, name: str) -> float:
        """Return the share of an instance in the recent attempts; 0 if the client does not know the
        instance."""
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
        """Return the state at `now`, in seconds since the start."""
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
        """Store this mark, and return the mark from `window` seconds before. If there is none,
        return the first mark."""
        self._marks.append(mark)
        while len(self._marks) > 2 and self._marks[1].at <= mark.at - self._window:
            self._marks.popleft()
        return self._marks[0]


def _name(known: InstanceSnapshot) -> str:
    return known.instance.host.partition(".")[0]
