"""What the blocks of throughput.py say, as tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rivals as by
from crowd import Turn, percentile
from report import Plot, Table, compared, figure
from stages import H11, Measured
from turns import ratios, spread

CLIENTS = (by.HTTPX, by.OURS, H11, by.HTTPX_AIOHTTP, by.ACALL, by.AIOHTTP)
PROXIED = (by.HTTPX, by.OURS, *map(by.through, ("HAProxy", "nginx")))
LIBRARIES = (by.HTTPX, by.OURS, by.HTTPX2, by.OURS_HTTPX2)
Cell = Callable[[int, str], str]


def rates(
    measured: Measured, where: str, against: str = by.HTTPX, who: str = "concurrent calls"
) -> Iterator[Table]:
    """A column for each number of them."""

    def of(at_once: int, name: str) -> list[float]:
        return [turn.rate for turn in measured[at_once][name]]

    def rate(at_once: int, name: str) -> str:
        return figure(spread(of(at_once, name)).median)

    def over(at_once: int, name: str) -> str:
        return compared(ratios(of(at_once, name), of(at_once, against)))

    yield _table(f"{where}: calls a second, by {who}", measured, rate)
    title = f"{where}: calls a second relative to {against} (quartiles), by {who}"
    yield _table(title, measured, over)


def tables(measured: Measured, where: str, who: str = "concurrent calls") -> Iterator[Table]:
    """The same, and what a call takes."""

    def took(at_once: int, name: str) -> str:
        turns = measured[at_once][name]
        return " / ".join(figure(1e3 * percentile(turns, one)) for one in (50, 99))

    def costs(at_once: int, name: str) -> str:
        cpu = [1e6 * turn.cpu_per_call for turn in measured[at_once][name]]
        return figure(spread(cpu).median)

    yield from rates(measured, where, who=who)
    title = f"{where}: milliseconds of a call (50th / 99th percentile), by {who}"
    yield _table(title, measured, took)
    yield _table(f"{where}: microseconds of CPU per call, by {who}", measured, costs)


def _table(title: str, measured: Measured, cell: Cell) -> Table:
    names = next(iter(measured.values()))
    rows = [[name, *(cell(at_once, name) for at_once in measured)] for name in names]
    return Table(title, [str(at_once) for at_once in measured], rows)


def plots(measured: Measured) -> Iterator[Plot]:
    for name, title, names in (
        ("clients", "Calls a second, by client", CLIENTS),
        ("sidecars", "Calls a second, by load balancer", PROXIED),
        ("httpx2", "Calls a second, by HTTP library", LIBRARIES),
    ):
        yield _plot(measured, f"performance-{name}", title, "calls a second", names, _rates)
    yield _plot(
        measured,
        "performance-latency",
        "99th percentile of a call's time",
        "ms",
        (*CLIENTS, PROXIED[2]),
        _p99,
    )


def _rates(line: Callable[..., Any], x: list[int], turns: list[list[Turn]]) -> Any:
    of = [spread([turn.rate for turn in some]) for some in turns]
    quartiles = [one.first for one in of], [one.third for one in of]
    return line(x, [one.median for one in of], *quartiles)


def _p99(line: Callable[..., Any], x: list[int], turns: list[list[Turn]]) -> Any:
    return line(x, [1e3 * percentile(some, 99) for some in turns])


def _plot(
    measured: Measured,
    name: str,
    title: str,
    unit: str,
    names: tuple[str, ...],
    line: Callable[..., Any],
) -> Plot:
    def draw(path: Path) -> None:
        import plots as drawing  # noqa: PLC0415  # only a page needs matplotlib

        x = list(measured)
        there = [one for one in names if one in measured[x[0]]]
        series = {
            one: line(drawing.Line, x, [measured[at_once][one] for at_once in x]) for one in there
        }
        drawing.lines(path, title, "concurrent calls", unit, series, log="xy")

    return Plot(name, f"{title}, by concurrent calls", draw)
