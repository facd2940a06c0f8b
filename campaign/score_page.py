"""The page of a score: for each fault its survival curves, and the table. One HTML file that works offline.

A curve says for each moment which share of the trials had found the fault by then. Trials that ran out of time are why a
curve may end below the top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jinja2

from campaign.score import MEASURES, OURS, UNITS, Group, Score, figure
from reference_impl.faulty import FAULTS, faulty

WIDTH, HEIGHT = 320, 150  # of one chart's plot, in units of its SVG


class Curve(NamedTuple):
    """One engine on one fault: how many found it, and the points of the curve as SVG has them."""

    engine: str
    found: int
    trials: int
    points: str


class Chart(NamedTuple):
    """One fault in one measure. ticks: (x, label) of powers of ten."""

    measure: str
    unit: str
    curves: tuple[Curve, ...]
    ticks: tuple[tuple[float, str], ...]


class Part(NamedTuple):
    """What the page says of one fault."""

    fault: str
    description: str
    deep: bool
    charts: tuple[Chart, ...]
    verdicts: tuple[str, ...]


def render(score: Score) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        score=score,
        parts=[_part(score, fault) for fault in score.faults],
        overall=[
            (engine, UNITS[measure], *score.overall(engine, measure))
            for engine, measure in dict.fromkeys((one.engine, one.measure) for one in score.comparisons)
        ],
        figure=figure,
        width=WIDTH,
        height=HEIGHT,
    )


def _part(score: Score, fault: str) -> Part:
    groups = [score.groups[fault, engine] for engine in score.engines if (fault, engine) in score.groups]
    told: dict[str, list[str]] = {}
    for one in score.comparisons:
        if one.fault == fault and one.verdict:
            told.setdefault(one.engine, []).append(f"{one.verdict} in {UNITS[one.measure]} (A12 {one.a12:.2f})")
    verdicts = tuple(f"{OURS} against {engine}: {', '.join(words)}" for engine, words in told.items())
    return Part(fault, FAULTS[fault], faulty(fault).deep, tuple(_chart(groups, one) for one in MEASURES), verdicts)


def _chart(groups: list[Group], measure: str) -> Chart:
    spent = [max(getattr(result, measure), 1e-3) for group in groups for result in group.results]
    low, high = math.floor(math.log10(min(spent))), math.ceil(math.log10(max(spent)))
    high = max(high, low + 1)

    def x(value: float) -> float:
        return round(WIDTH * (math.log10(max(value, 1e-3)) - low) / (high - low), 1)

    ticks = tuple(
        (x(10.0**power), f"{10**power:,}" if power >= 0 else f"{10.0**power:g}") for power in range(low, high + 1)
    )
    return Chart(measure, UNITS[measure], tuple(_curve(group, measure, x) for group in groups), ticks)


def _curve(group: Group, measure: str, x: Callable[[float], float]) -> Curve:
    """Steps from the left border to the last trial's end."""
    count = len(group.results)
    points = [(0.0, float(HEIGHT))]
    for number, value in enumerate((value for value in group.values(measure) if math.isfinite(value)), 1):
        points += [(x(value), points[-1][1]), (x(value), round(HEIGHT * (1 - number / count), 1))]
    if group.found < count:
        longest = max(getattr(result, measure) for result in group.results)
        points.append((x(longest), points[-1][1]))
    return Curve(group.engine, group.found, count, " ".join(f"{left:g},{top:g}" for left, top in points))
