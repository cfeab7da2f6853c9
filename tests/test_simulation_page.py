"""The page on simulation: what it shows runs, and comes to what it says."""

import re
from pathlib import Path

import pytest

from lbclient import simulation

PAGE = (Path(__file__).parents[1] / "docs" / "simulation.md").read_text()
EXAMPLE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_example(capsys):
    """The example runs as it stands: least-busy spares the slow instance, weighted does not."""
    seen = {}
    exec(EXAMPLE.replace("    print(report)", "    seen[strategy] = report"), {"seen": seen})
    assert seen["weighted"].shares(6, 15)["c"] == pytest.approx(1 / 3, abs=0.02)
    assert seen["least-busy"].shares(6, 15)["c"] < 0.2
    assert seen["least-busy"].percentile(99) < seen["weighted"].percentile(99)
    assert not seen["weighted"].breaches
    assert not seen["least-busy"].breaches
    assert "weighted" in capsys.readouterr().out


def test_the_example_is_short():
    """It is twenty lines, as it says, without blank ones and the import."""
    code = EXAMPLE.partition("\nfast")[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 20


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+)\(", PAGE)) - {"print"}))
def test_what_the_page_names_is_there(name):
    """Every function that the page names is one of the simulator's."""
    known = {"Balancer", "simulate", *simulation.__all__}
    assert name in known or name in {"latency", "behaviour", "speed"}
