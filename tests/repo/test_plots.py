"""The drawing helpers of the benchmarks, where matplotlib is installed."""

import re
import xml.etree.ElementTree as ET

import pytest

pytest.importorskip("matplotlib")

from benchmarks import plots

SPREAD = plots.Line([1, 10, 100], [3.0, 2.0, 9.0], [2.0, 1.0, 8.0], [4.0, 3.0, 10.0])


def draw_lines(path):
    series = {"with spread": SPREAD, "without": plots.Line([1, 100], [5.0, 5.0])}
    plots.lines(path, "Lines", "clients", "seconds", series, log="xy")


def draw_bars(path):
    plots.bars(path, "Bars", "version", "seconds", ["old", "new"], {"a": [1, 2], "b": [3.0, 4.0]})


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (draw_lines, {"Lines", "clients", "seconds", "with spread", "without", "100"}),
        (draw_bars, {"Bars", "version", "seconds", "old", "new", "a", "b"}),
    ],
)
def test_a_plot_is_a_small_file_with_its_words(draw, words, tmp_path):
    """It is valid SVG, its texts are text, and its folder is made."""
    path = tmp_path / "new" / "plot.svg"
    draw(path)
    texts = {"".join(one.itertext()) for one in ET.parse(path).iter() if "text" in one.tag}
    assert words <= texts
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize("draw", [draw_lines, draw_bars])
def test_the_same_data_gives_the_same_bytes(draw, tmp_path):
    """A plot changes only if its data do: it contains no date and no version."""
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    draw(one)
    draw(other)
    assert one.read_bytes() == other.read_bytes()
    assert not re.search(r"<dc:date|<dc:creator", one.read_text())


def test_what_it_was_drawn_from_stands_in_the_file(tmp_path):
    """`source` is in the metadata, and not visible."""
    path = tmp_path / "plot.svg"
    with plots.drawing(path, "Nothing", 1.0, "run 1\nrun 2") as figure:
        figure.subplots()
    facts = [one.text for one in ET.parse(path).iter() if one.tag.endswith("description")]
    assert facts == ["run 1\nrun 2"]
