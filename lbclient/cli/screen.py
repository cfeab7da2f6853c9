"""The demo as a live screen. The only file with rich, which `lbclient[cli]` installs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lbclient.cli.director import Scene
from lbclient.cli.frame import Frame, Row
from lbclient.cli.view import Playbill

__all__ = ["Screen"]

_WIDTH = 100
_COLOURS = {"closed": "green", "half-open": "yellow", "open": "red"}


class Screen:
    """Redraws a table of the instances, with what happened beneath, at each frame."""

    def __init__(self, bill: Playbill) -> None:
        self._bill = bill
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Draw the state now."""
        bar = ProgressBar(self._bill.seconds, frame.at, complete_style="cyan")
        picture = Group(self._title(frame), bar, _body(frame, scenes))
        self._live.update(Constrain(picture, _WIDTH), refresh=True)

    def close(self, frame: Frame, scenes: Sequence[Scene]) -> None:
        """Leave the last picture standing."""
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
    table = Table(box=SIMPLE_HEAD, expand=True, header_style="dim", border_style="dim")
    table.add_column("instance", style="bold", no_wrap=True)
    table.add_column("weight", justify="right")
    table.add_column("picks", justify="right")
    table.add_column("share of traffic", ratio=1)
    table.add_column("", justify="right", min_width=4)
    table.add_column("in flight", justify="right")
    table.add_column("latency", justify="right", min_width=7)
    table.add_column("breaker", min_width=11, no_wrap=True)
    for row in frame.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> tuple[RenderableType, ...]:
    known, colour = row.known, _COLOURS[row.known.breaker]
    return (
        row.name,
        f"{known.instance.weight:g}",
        f"{known.attempts}",
        Bar(1.0, 0.0, row.share, color=colour),
        f"{row.share:.0%}",
        f"{known.in_flight}",
        "" if known.latency is None else f"{known.latency * 1e3:.0f} ms",
        Text(f"● {known.breaker}", style=colour),
    )


def _totals(frame: Frame) -> RenderableType:
    tally = frame.tally
    left = Text.assemble(
        (f" {tally.calls}", "bold"),
        " calls   ",
        (f"{tally.lost} lost", "bold red" if tally.lost else "bold green"),
        f"   {tally.retries} sent again elsewhere",
    )
    return _sides(left, Text(f"{frame.rate:.0f} calls/s ", style="dim"))


def _log(scenes: Sequence[Scene]) -> Table:
    log = Table.grid(padding=(0, 2, 0, 0))
    log.add_column(justify="right", style="cyan", min_width=7, no_wrap=True)
    for one in scenes:
        log.add_row(f"{one.at:.1f} s", Text(one.what, style="bold"))
        log.add_row("", Text(f"→ {one.outcome}"))
    return log


def _sides(left: Text, right: Text) -> Table:
    sides = Table.grid(expand=True)
    sides.add_column()
    sides.add_column(justify="right")
    sides.add_row(left, right)
    return sides
