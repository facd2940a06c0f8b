"""Line charts as SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from campaign.chart import DASHES, line_chart

HOSTILE = '<script>"&\0'


def lines_of(svg: str) -> list[str]:
    """The path of each line."""
    return re.findall(r'class="line s\d+"(?: stroke-dasharray="[^"]*")? d="([^"]*)"', svg)


def test_each_series_is_a_line_with_its_own_dashes():
    """So that a reader without colours can tell them apart, too."""
    svg = line_chart({"a": [(0, 0), (60, 10)], "b": [(0, 0), (60, 5)]}, "Features")
    first, second = lines_of(svg)
    assert first != second
    assert f'stroke-dasharray="{DASHES[1]}"' in svg
    root = ElementTree.fromstring(svg)
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", "Features")
    assert [text.text for text in root.iter("text")][-3:] == ["0", "30 s", "1 min"]


def test_a_count_jumps_and_a_line_goes_on_to_the_edge():
    """A series that ends early has not changed since."""
    svg = line_chart({"a": [(0, 0), (30, 4)], "b": [(0, 0), (60, 1)]}, "Findings", steps=True)
    assert re.fullmatch(r"M52\.0 204\.0H299\.0V12\.0H546", lines_of(svg)[0])


@pytest.mark.parametrize("points", [[], [(0, 0)], [(5, 0)], [(1, 1e9)]])
def test_nothing_is_too_little_to_draw(points):
    """An empty campaign has a chart, too."""
    svg = line_chart({"a": points}, "x")
    assert "nan" not in svg
    assert ElementTree.fromstring(svg) is not None


@pytest.mark.parametrize(("most", "top"), [(0, "4"), (4, "4"), (5, "6"), (11, "20"), (230, "400"), (9_001, "1e+04")])
def test_the_scale_ends_at_a_round_figure(most, top):
    """That four steps divide."""
    texts = [text.text for text in ElementTree.fromstring(line_chart({"a": [(1, most)]}, "x")).iter("text")]
    assert texts[4] == top


def test_names_are_text():
    """Whatever a design is called."""
    root = ElementTree.fromstring(line_chart({HOSTILE: [(0, 1)]}, HOSTILE))
    assert not list(root.iter("script"))
