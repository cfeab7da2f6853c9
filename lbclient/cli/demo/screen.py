"""The demo as a live screen. Only this file uses rich, which `lbclient[cli]` installs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lbclient.cli.demo.director import Playbill, Scene
from lbclient.cli.demo.meter import Frame, Row

__all__ = ["Screen"]

_WIDTH = 100
_FULL_BAR = 0.5
"""The share that fills the whole bar, unless an instance has a larger share."""
_COLOURS = {"closed": "green", "half-open": "yellow", "open": "red"}


class Screen:
    """At each frame, redraws a table of the instances, with the events below it."""

    def __init__(self, bill: Playbill) -> None:
        self._bill = bill
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: object, /, *_: object) -> None:
        self._live.transient = kind is None  # after an interruption, `close` is not called
        self._live.stop()

    def show(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Draw the current state."""
        bar = ProgressBar(self._bill.seconds, frame.at, complete_style="cyan")
        picture = Group(self._title(frame), bar, _body(frame, scenes))
        self._live.update(Constrain(picture, _WIDTH), refresh=True)

    def close(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Draw the final state, which stays on the screen."""
        picture = Group(self._title(frame), _body(frame, scenes))
        self._console.print(Constrain(picture, _WIDTH))

    def _title(self, frame: Frame) -> RenderableType:
        bill = self._bill
        title = Text.assemble(
            (" lbclient demo ", "bold reverse cyan"), f"  {bill.service}  ", (bill.strategy, "cyan")
        )
        return _sides(title, Text(f"{frame.at:.1f} s of {bill.seconds:g} s ", style="dim"))


def _body(frame: Frame, scenes: Sequence[Scene]) -> RenderableType:
    return Group(_table(frame), _totals(frame), Text(), _log(scenes))


def _table(frame: Frame) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        expand=True,
        pad_edge=False,
        collapse_padding=True,
        header_style="dim",
        border_style="dim",
    )
    table.add_column(" instance", style="bold", min_width=9, no_wrap=True)
    table.add_column("weight", justify="right")
    table.add_column("picks", justify="right", min_width=5)
    table.add_column("share of traffic", ratio=1, no_wrap=True)
    table.add_column("in flight", justify="right", no_wrap=True)
    table.add_column("latency", justify="right", min_width=7)
    table.add_column("breaker", min_width=11, no_wrap=True)
    full = max(_FULL_BAR, *(row.share for row in frame.rows))
    for row in frame.rows:
        table.add_row(*_cells(row, full))
    return table


def _cells(row: Row, full: float) -> tuple[RenderableType, ...]:
    known, colour = row.known, _COLOURS[row.known.breaker]
    return (
        f" {row.name}",
        f"{known.instance.weight:g}",
        f"{known.attempts}",
        _share(row.share, full, colour),
        f"{known.in_flight}",
        "" if known.latency is None else f"{known.latency * 1e3:.0f} ms",
        Text(f"● {known.breaker}", style=colour),
    )


def _share(share: float, full: float, colour: str) -> RenderableType:
    cell = Table.grid(expand=True)
    cell.add_column(ratio=1)
    cell.add_column(justify="right", width=5)
    cell.add_row(Bar(full, 0.0, share, color=colour), f"{share:.0%}")
    return cell


def _totals(frame: Frame) -> RenderableType:
    tally = frame.tally
    left = Text.assemble(
        (f" {tally.calls}", "bold"),
        " calls   ",
        (f"{tally.failed} failed", "bold red" if tally.failed else "bold green"),
        f"   {tally.retries} retries",
    )
    return _sides(left, Text(f"{frame.rate:.0f} calls/s ", style="dim"))


def _log(scenes: Sequence[Scene]) -> Table:
    log = Table.grid(padding=(0, 2, 0, 0))
    log.add_column(justify="right", style="cyan", min_width=7, no_wrap=True)
    for scene in scenes:
        log.add_row(f"{scene.at:.1f} s", Text(scene.what, style="bold"))
        log.add_row("", Text(f"→ {scene.outcome}"))
    return log


def _sides(left: Text, right: Text) -> Table:
    sides = Table.grid(expand=True)
    sides.add_column()
    sides.add_column(justify="right")
    sides.add_row(left, right)
    return sides
