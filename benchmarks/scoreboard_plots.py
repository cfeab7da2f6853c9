"""The scoreboard's plots: one for each scenario. Needs matplotlib, as plots.py does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.plots import COLOURS, drawing, logarithmic
from benchmarks.scenarios import Case
from lbclient.simulation import Report, Slice

SHOWN = ("least-busy", "peak-ewma", "round-robin")
"""Strategies that are shown over time; all are in the panels at the bottom."""
_STEPS = sorted(digit * 10.0**power for digit in (1, 2, 5) for power in range(-4, 4))
_SLICES = 23
"""At least so many slices of time, and at most 58."""
_SPREAD = 20
"""From there on an axis of seconds is logarithmic."""
_SIDES = {"left": 0.09, "right": 0.99, "wspace": 0.08}
_TOP = {**_SIDES, "top": 0.935, "bottom": 0.755}
_MIDDLE = {**_SIDES, "top": 0.68, "bottom": 0.375, "hspace": 0.15, "height_ratios": (3, 5)}
_BOTTOM = {"left": 0.15, "right": 0.86, "top": 0.3, "bottom": 0.06, "wspace": 0.08}
_DIALOGUE = ("Dialogue, CL-PIN", "Dialogue, CL-RR", "Dialogue, RR")
_MARKERS = {
    "configured": ("o", COLOURS[0]),
    "defaults": ("x", COLOURS[5]),
    "published": ("D", COLOURS[6]),
}

Runs = Mapping[str, Mapping[str, Report]]
"""By the configuration's name, and by the strategy's."""


def draw(path: Path, name: str, case: Case, runs: Runs, source: str) -> None:
    """What the configured strategies do over time, and what all of them come to."""
    reports = [runs["configured"][strategy] for strategy in SHOWN]
    with drawing(path, name, 7.6, source) as figure:
        sent = figure.add_gridspec(1, len(SHOWN), **_TOP).subplots(sharex=True, sharey=True)
        success, latency = figure.add_gridspec(2, len(SHOWN), **_MIDDLE).subplots(
            sharex=True, sharey="row"
        )
        for axes, strategy in zip(sent, SHOWN, strict=True):
            axes.set_title(f"{strategy}, configured")
        _sent(sent, reports)
        _success(success, reports)
        _latency(latency, reports)
        for row in (sent, success, latency):
            row[0].yaxis.set_label_coords(-0.23, 0.5)
        _all(figure.add_gridspec(1, 2, **_BOTTOM).subplots(sharey=True), case, runs)


def _sent(row: Sequence[Axes], reports: Sequence[Report]) -> None:
    """Stacked, so that servers that get the same do not hide each other."""
    step = _step(max(report.sent[-1][0] for report in reports))
    for axes, report in zip(row, reports, strict=True):
        slices = report.over_time(step)
        slices.append(slices[-1]._replace(start=slices[-1].start + step))  # where the last ends
        rates = [[one.sent.get(name, 0) / step for one in slices] for name in report.answered]
        times = [one.start for one in slices]
        axes.stackplot(times, rates, step="post", labels=report.answered, linewidth=0)
        axes.set_xlabel("time (s)")
    row[0].set_ylabel("attempts sent per s")
    row[0].set_ylim(0, 1.2 * row[0].get_ylim()[1])  # room for the legend
    row[-1].legend(loc="upper right", ncols=len(reports[-1].answered))


def _success(row: Sequence[Axes], reports: Sequence[Report]) -> None:
    for axes, report in zip(row, reports, strict=True):
        slices = _arrivals(report)
        axes.plot([one.start for one in slices], [100 * one.success for one in slices])
    row[0].set_ylim(-5, 105)
    row[0].set_ylabel("success (%)")


def _latency(row: Sequence[Axes], reports: Sequence[Report]) -> None:
    for axes, report in zip(row, reports, strict=True):
        slices = _arrivals(report)
        times = [one.start for one in slices]
        axes.plot(times, [one.p99 for one in slices], color=COLOURS[5], label="p99")
        axes.plot(times, [one.mean for one in slices], color=COLOURS[0], label="mean")
        axes.set_xlabel("arrival of the request (s)")
    row[0].set_ylabel("latency (s)")
    slices = [one for report in reports for one in _arrivals(report)]
    _seconds(row[0], "y", [value for one in slices for value in (one.mean, one.p99)])
    row[-1].legend(loc="upper right", ncols=2)


def _all(pair: Sequence[Axes], case: Case, runs: Runs) -> None:
    """A row for each strategy, and for each of Dialogue's three."""
    results = {
        kind: {name: (report.success, report.mean) for name, report in reports.items()}
        for kind, reports in runs.items()
    }
    results["published"] = dict(zip(_DIALOGUE, case.published, strict=True))
    for kind, rows in results.items():
        _dots(pair, rows, kind)
    for axes in pair:
        axes.grid(axis="x")
    pair[0].invert_yaxis()
    pair[0].set_xlim(-5, 105)
    pair[0].set_xlabel("success (%)")
    pair[1].set_xlabel("mean (s)")
    _seconds(pair[1], "x", [mean for rows in results.values() for _, mean in rows.values()])
    pair[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _dots(pair: Sequence[Axes], rows: Mapping[str, tuple[float, float]], kind: str) -> None:
    marker, colour = _MARKERS[kind]
    success = [100 * success for success, _ in rows.values()]
    means = [mean for _, mean in rows.values()]
    for axes, values in zip(pair, (success, means), strict=True):
        axes.plot(values, list(rows), marker, color=colour, markersize=5, label=kind)


def _arrivals(report: Report) -> list[Slice]:
    """Slices in which requests arrived."""
    step = _step(max(one.arrived for one in report.outcomes))
    return [one for one in report.over_time(step) if one.requests]


def _step(span: float) -> float:
    """A round number of seconds that such a span has at least `_SLICES` of."""
    return max(step for step in _STEPS if step <= span / _SLICES)


def _seconds(axes: Axes, axis: str, values: Sequence[float]) -> None:
    """From nought on, or logarithmic where the values are far apart; with room for a legend."""
    least, most = min(values), max(values)
    limits = (0.0, 1.25 * most)
    if most > _SPREAD * least:
        logarithmic(axes, axis)
        limits = (least / 1.5, 3 * most)
    axes.set(**{f"{axis}lim": limits})
