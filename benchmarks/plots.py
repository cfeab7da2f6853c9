"""Plots as SVG: the same data gives the same bytes, so that a change shows in a diff.

Needs matplotlib (`pip install -e '.[bench]'`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#555555")
"""Told apart by the colour-blind too (Okabe and Ito, 2008)."""
STYLE = {
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.titlesize": 11,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "lbclient",
    "xtick.bottom": False,
    "ytick.left": False,
}
_WIDTH = 8.0
"""Inches: a page's width in a browser."""
_FRAME = {"left": 0.09, "right": 0.99, "bottom": 0.14, "top": 0.91}


class Line(NamedTuple):
    """Points, and the spread around each, where it is known."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@contextmanager
def drawing(path: Path, title: str, height: float, source: str = "") -> Iterator[Figure]:
    """A figure so many inches high to draw on; it is written to `path` at the end. `source`, what
    it was drawn from, is written into the file, out of sight.

    Whoever draws says where: matplotlib's own layouts do not come out alike each time.
    """
    with mpl.rc_context(STYLE):
        figure = Figure((_WIDTH, height), facecolor="white")
        figure.suptitle(title, y=1 - 0.05 / height, verticalalignment="top")
        yield figure
        facts = {"Title": title, "Description": source, "Date": None, "Creator": None}
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata=facts)
    path.write_text(_tidy(path.read_text()))


def lines(
    path: Path,
    title: str,
    xlabel: str,
    ylabel: str,
    series: Mapping[str, Line],
    *,
    log: str = "",
) -> None:
    """A line for each of the series, by name. `log` names the logarithmic axes: "x", "y", "xy"."""
    with drawing(path, title, 3.6) as figure:
        axes = figure.subplots(gridspec_kw=_FRAME)
        _label(axes, xlabel, ylabel, log)
        for name, line in series.items():
            axes.plot(line.x, line.y, marker=".", label=name)
            if line.low:
                axes.fill_between(line.x, line.low, line.high, alpha=0.2, linewidth=0)
        # A line may have to pass below it.
        axes.legend(frameon=True, framealpha=0.8, edgecolor="none")


def bars(
    path: Path,
    title: str,
    xlabel: str,
    ylabel: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    log: str = "",
) -> None:
    """For each group a bar of each of the series, which have a value for each group. `log` is "y"
    or nothing."""
    with drawing(path, title, 3.6) as figure:
        axes = figure.subplots(gridspec_kw=_FRAME)
        _label(axes, xlabel, ylabel, log)
        width = 0.8 / len(series)
        for number, (name, values) in enumerate(series.items()):
            left = [group - 0.4 + number * width for group in range(len(groups))]
            axes.bar(left, values, width, align="edge", label=name)
        axes.set_xticks(range(len(groups)), groups)
        axes.legend()


def _label(axes: Axes, xlabel: str, ylabel: str, log: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    for axis in log:
        logarithmic(axes, axis)


def logarithmic(axes: Axes, axis: str) -> None:
    """Make the axis "x" or "y" so, with plain numbers on it."""
    axes.set(**{f"{axis}scale": "log"})
    scale = axes.xaxis if axis == "x" else axes.yaxis
    scale.set_major_formatter("{x:g}")
    scale.set_minor_locator(NullLocator())


def _tidy(svg: str) -> str:
    """The same picture in fewer bytes: a tenth of a point is fine enough, nothing is turned by
    nothing, nobody asks for groups by id, no line begins or ends with blanks, and no point comes
    twice in a row."""
    svg = re.sub(r"-?\d+\.\d{5,}", lambda it: f"{float(it[0]):.1f}", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"^ +| +$", "", svg, flags=re.MULTILINE)
    return re.sub(r"^(L .*\n)\1+", r"\1", svg, flags=re.MULTILINE)
