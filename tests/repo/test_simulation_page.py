"""The page on simulation: its examples run, and give the documented results."""

import builtins
import re
from pathlib import Path

import pytest

import lbclient
from lbclient import simulation

PAGE = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
EXAMPLE, STATE, TURNS, PLOT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example(capsys):
    """The example runs unchanged: least-busy avoids the slow instance, weighted does not."""
    seen = {}
    exec(EXAMPLE.replace("    print(report)", "    seen[strategy] = report"), {"seen": seen})
    assert seen["weighted"].shares(6, 15)["c"] == pytest.approx(1 / 3, abs=0.02)
    assert seen["least-busy"].shares(6, 15)["c"] < 0.2
    assert seen["least-busy"].percentile(99) < seen["weighted"].percentile(99)
    assert not seen["weighted"].breaches
    assert not seen["least-busy"].breaches
    assert "weighted" in capsys.readouterr().out


def test_the_example_is_short():
    """It has twenty lines, as the page says, without blank ones and the import."""
    code = EXAMPLE.partition("\nfast")[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 20


def test_the_state():
    """The example of a behaviour with state: each server of each run fails its first ten
    requests."""
    exec(STATE, names := {})
    scenario = simulation.Scenario(names["servers"], simulation.Open(60, 1))
    for _ in range(2):
        report = simulation.simulate(scenario, retry=None, breaker=None)
        assert report.answered == {name: {503: 10, 200: 10} for name in "abc"}


def test_the_turns(capsys):
    """The example of turns: the last request of the steady caller, of 4.5 s, is sent within a round
    of answers (0.1 s) if callers take turns, and after the whole burst if they do not."""
    exec(TURNS, {})
    first, turns = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert (first > 5.0, turns <= 4.6) == (True, True)


def test_the_plot(tmp_path, monkeypatch):
    """The example of a plot runs on the report of the first, and writes its file."""
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    servers = [simulation.Server(name, simulation.answers(lambda *_: 0.1)) for name in "abc"]
    report = simulation.simulate(simulation.Scenario(servers, simulation.Open(30, 3)))
    exec(PLOT, {"report": report})
    assert "<svg" in (tmp_path / "report.svg").read_text()


def test_the_plot_is_short():
    """It has eight lines, as the page says, without the import."""
    code = PLOT.partition("\n\n")[2]
    assert len(code.splitlines()) == 8


@pytest.mark.parametrize("name", simulation.__all__)
def test_the_page_is_complete(name):
    """Every public name of the simulator is on its page, as code."""
    assert re.search(rf"`{name}\b|```python[^`]*\b{name}\b", PAGE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+)\(", PAGE)) - set(dir(builtins))))
def test_what_the_page_names_is_there(name):
    """Every function that the page names belongs to the simulator or to the package."""
    known = {*lbclient.__all__, *simulation.__all__}
    assert name in known or name in {
        "latency",
        "behaviour",
        "speed",
        "send",
        "make",
        "start",
        "request",
    }
