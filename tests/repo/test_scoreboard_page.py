"""The scoreboard's page shows what a fresh run gives, and a plot of each scenario."""

import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks import scoreboard
from benchmarks.scenarios import CASES
from tests.support.slow import slow_rows

PAGE = scoreboard.PAGE.read_text()
QUICK = slow_rows("one_big_spike", "all_nodes_500")
WRITE = "python benchmarks/scoreboard.py --write"


@cache
def fresh(name):
    """Its runs, as they are now."""
    return scoreboard.run(CASES[name])


def plot(name):
    return scoreboard.PLOTS / f"scoreboard-{name}.svg"


@pytest.mark.parametrize("name", QUICK)
def test_the_page_is_fresh(name):
    """The table of a scenario that runs quickly is, row by row, the current result."""
    section = PAGE.partition(f"## {name}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    expected = list(scoreboard.table(CASES[name], fresh(name)))
    assert table == expected, f"run {WRITE}"


@pytest.mark.parametrize("name", QUICK)
def test_the_plot_is_of_these_runs(name):
    """The trace of each run, a hash of all its decisions, is in the plot."""
    traces = scoreboard.source(fresh(name)).splitlines()
    drawn = re.search("<dc:description>(.*?)</dc:description>", plot(name).read_text(), re.DOTALL)
    assert drawn[1].splitlines() == traces, f"run {WRITE}"


@pytest.mark.parametrize("name", CASES)
def test_each_scenario_has_its_plot(name):
    """The page has the scenario, links its plot, and the plot exists and is not too large."""
    section = PAGE.partition(f"## {name}\n")[2].partition("\n## ")[0]
    link = re.search(r"!\[[^\]]+\]\(([^)]+)\)", section)[1]
    assert scoreboard.PAGE.parent / link == plot(name)
    assert f"<title>{name}</title>" in plot(name).read_text()
    assert plot(name).stat().st_size < 70_000


def test_no_plot_is_left_over():
    """Each of the scoreboard's plots belongs to a scenario."""
    there = {Path(one).name for one in scoreboard.PLOTS.glob("scoreboard-*.svg")}
    assert there == {plot(name).name for name in CASES}


def test_a_plot_is_drawn_alike_each_time(tmp_path):
    """The same runs give the same bytes, so that a diff shows exactly the strategies that
    changed."""
    pytest.importorskip("matplotlib")
    from benchmarks.scoreboard_plots import draw

    name = "one_big_spike"
    runs = fresh(name)
    for file in ("one", "other"):
        draw(tmp_path / file, name, CASES[name], runs, scoreboard.source(runs))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
