"""The demo as lines of plain ASCII text: for pipes, logs and terminals without rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

from lbclient.cli.demo.director import Playbill, Scene, summary
from lbclient.cli.demo.meter import Frame, Row
from lbclient.cli.report import columns

__all__ = ["Plain"]

_HEAD = ("instance", "weight", "picks", "share", "in flight", "latency", "breaker")


class Plain:
    """Prints a line of state at intervals, and each event when it happens."""

    def __init__(self, bill: Playbill) -> None:
        self._bill = bill
        self._every = bill.seconds / 12
        self._due = self._every
        self._names: list[str] = []
        self._told = 0

    def __enter__(self) -> Self:
        bill = self._bill
        print(f"lbclient demo: {bill.service}, {bill.strategy}, {bill.seconds:g} s\n", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Print the changes since the last call."""
        self._tell(scenes)
        if frame.at >= self._due:
            self._due += self._every
            self._state(frame)

    def close(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Print the table, and the events with their times."""
        self._tell(scenes)
        print(f"\n{columns((_HEAD, *map(_cells, frame.rows)), '<>>>>><')}\n")
        print(f"{frame.at:.1f} s: {summary(frame.tally)}")
        for scene in scenes:
            print(f"{scene.at:6.1f} s  {scene.what}\n          -> {scene.outcome}")

    def _state(self, frame: Frame) -> None:
        names = [row.name for row in frame.rows]
        if names != self._names:
            self._names = names
            print("    time  calls/s  " + "  ".join(names))
        shares = "  ".join(f"{row.share:>{len(row.name)}.0%}" for row in frame.rows)
        print(f"{frame.at:6.1f} s  {frame.rate:7.0f}  {shares}", flush=True)

    def _tell(self, scenes: Sequence[Scene]) -> None:
        lines = list(_events(scenes))
        for line in lines[self._told :]:
            print(line, flush=True)
        self._told = len(lines)


def _events(scenes: Sequence[Scene]) -> Iterator[str]:
    """The lines of all events so far. Lines are only added, since an event ends before the next
    begins."""
    for scene in scenes:
        yield f"{scene.at:6.1f} s  ** {scene.what}"
        if scene.noticed:
            yield f"          ** {scene.noticed}"
        if scene.over:
            yield f"          ** {scene.result}"


def _cells(row: Row) -> tuple[str, ...]:
    known = row.known
    return (
        row.name,
        f"{known.instance.weight:g}",
        str(known.attempts),
        f"{row.share:.0%}",
        str(known.in_flight),
        "-" if known.latency is None else f"{known.latency * 1e3:.0f} ms",
        known.breaker,
    )
