"""What one part of the performance benchmarks found, and how a page shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from goals import Outcome
from turns import Spread, spread

COMMAND = "python benchmarks/performance.py"


class Table(NamedTuple):
    """The first cell of a row is its name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> Iterator[str]:
        """As Markdown."""
        yield f"**{self.title}**"
        yield ""
        yield f"| | {' | '.join(self.columns)} |"
        yield "|---|" + "---|" * len(self.columns)
        for row in self.rows:
            yield f"| {' | '.join(row)} |"


class Plot(NamedTuple):
    """`draw` is called with where it goes, and only where plots are wanted."""

    name: str
    alt: str
    draw: Callable[[Path], None]


@dataclass
class Section:
    """One part: `name` is what it is called on the command line."""

    name: str
    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        return f"{COMMAND} {self.name}"

    def lines(self) -> Iterator[str]:
        """As Markdown."""
        yield from (f"## {self.title}", "", self.text.strip(), "", f"`{self.command}`")
        for reason in self.skipped:
            yield from ("", f"Skipped: {reason}.")
        for plot in self.plots:
            yield from ("", f"![{plot.alt}](plots/{plot.name}.svg)")
        for table in self.tables:
            yield ""
            yield from table.lines()
        yield ""

    def names(self) -> Iterator[str]:
        """What was run and what it is to reach, without figures."""
        yield self.title
        yield from (f"  skipped: {reason}" for reason in self.skipped)
        for table in self.tables:
            yield f"  {table.title}"
            yield from (f"    {row[0]}" for row in table.rows)
        yield from (f"  goal: {one.what} | {one.goal}" for one in self.outcomes)


def goals(sections: Sequence[Section]) -> Iterator[str]:
    """All goals and what became of them, as Markdown."""
    yield "| | goal | median | quartiles | | command |"
    yield "|---|---|---|---|---|---|"
    for section in sections:
        for one in section.outcomes:
            of, unit = one.measured, one.goal.unit
            yield (
                f"| {one.what} | {one.goal} | {figure(of.median)}{unit} "
                f"| {quartiles(of)} | {'met' if one.met else '**missed**'} "
                f"| `performance.py {section.name}` |"
            )


def figure(value: float) -> str:
    """Three digits that count, and no more; whole numbers from a hundred on."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def quartiles(of: Spread) -> str:
    return f"{figure(of.first)} to {figure(of.third)}"


def compared(values: Sequence[float]) -> str:
    """A median and its quartiles, in one cell."""
    of = spread(values)
    return f"{figure(of.median)} ({quartiles(of)})"


def medians(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: spread(values).median for name, values in measured.items()}
