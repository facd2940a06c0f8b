"""The page of a score: it says what the figures say, works offline, and escapes what it shows."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from campaign import score_page
from campaign.score import OURS, Score
from reference_impl.faulty import FAULTS
from tests.campaign.test_score import OTHER, SHALLOW, results

ENGINES = (OURS, OTHER)


def page(**counts):
    """The page of one fault, for the numbers of executions of each engine."""
    return score_page.render(Score([one for engine in ENGINES for one in results(SHALLOW, engine, counts[engine])]))


def curves(text):
    """The points of all curves, in the order of the page."""
    return [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline[^>]* points="([^"]*)"', text)
    ]


def test_a_curve_rises_with_every_trial_that_found_the_fault():
    """It begins at nought, never falls, and ends at the share of the trials that found it."""
    text = page(ebsfuzz=[1, 10, 100], random=[10, None, None])
    for curve, share in zip(curves(text)[:2], (1 / 3, 1), strict=True):  # ours is drawn last, above the others
        assert curve[0] == (0, score_page.HEIGHT)
        assert [x for x, _ in curve] == sorted(x for x, _ in curve)
        assert [y for _, y in curve] == sorted((y for _, y in curve), reverse=True)
        assert abs(curve[-1][1] - score_page.HEIGHT * (1 - share)) < 0.1


def test_a_trial_that_ran_out_is_drawn_to_its_end():
    """So that one sees for how long it was tried."""
    text = page(ebsfuzz=[10], random=[None])
    flat, _ = curves(text)[2:]
    assert [y for _, y in flat] == [score_page.HEIGHT] * 2
    assert flat[-1][0] > flat[0][0]


def test_the_page_says_in_words_what_the_curves_show():
    """For whoever cannot see them, and which differences are more than chance."""
    text = page(ebsfuzz=range(1, 21), random=range(201, 221))
    assert f"{SHALLOW}: share of trials that found it, over CPU seconds. {OURS} 20 of 20. {OTHER} 20 of 20." in text
    assert f"{OURS} against {OTHER}: sooner in CPU seconds (A12 1.00), sooner in executions (A12 1.00)" in text


def test_the_page_needs_no_network_and_is_well_formed():
    """No script, no address but its own; every chart is XML."""
    text = page(ebsfuzz=[1, 2], random=[3, None])
    assert "http" not in text
    assert "<script" not in text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        ElementTree.fromstring(chart)


def test_what_it_shows_is_escaped(monkeypatch):
    """Descriptions of faults may have any characters."""
    monkeypatch.setitem(FAULTS, SHALLOW, "<b>bold & dangerous</b>")
    text = page(ebsfuzz=[1], random=[1])
    assert "&lt;b&gt;bold &amp; dangerous&lt;/b&gt;" in text
    assert "<b>" not in text
