"""A line chart as SVG for a page that works offline: one line for each series, told apart by colour and by dashes.

Colours are the page's: a series has the class `s0`, `s1` … and the page's style says what that means, in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from campaign.diagram import clean
from campaign.durations import format_duration

Points = Sequence[tuple[float, float]]
"""Seconds since the beginning, and a figure."""

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 560, 230, 52, 26, 12, 14  # pixels
_TICKS = 4


def line_chart(series: Mapping[str, Points], title: str, *, steps: bool = False) -> str:
    """The chart of `series`, name → points in order of time. `steps` for figures that jump, as counts of findings do."""
    end = max((seconds for points in series.values() for seconds, _ in points), default=0.0) or 1.0
    top = _round_up(max((figure for points in series.values() for _, figure in points), default=0.0))
    parts = []
    for number in range(_TICKS + 1):
        figure = top * number / _TICKS
        y = _y(figure, top)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{figure:,.4g}</text>')
    for number, anchor in ((0, "start"), (1, "middle"), (2, "end")):
        seconds = end * number / 2
        x = _x(seconds, end)
        label = format_duration(seconds) if number else "0"
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{label}</text>')
    for number, (name, points) in enumerate(series.items()):
        path = _path(points, end, top, steps)
        dash = f' stroke-dasharray="{DASHES[number % len(DASHES)]}"' if number % len(DASHES) else ""
        parts.append(f'<path class="line s{number % len(DASHES)}"{dash} d="{path}"><title>{clean(name)}</title></path>')
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{clean(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _path(points: Points, end: float, top: float, steps: bool) -> str:
    """From the first point on; a line that ends early goes on to the right edge, since nothing has changed."""
    if not points:
        return f"M{_LEFT} {_y(0, top):.1f}H{_WIDTH - _RIGHT}"
    commands = []
    for index, (seconds, figure) in enumerate(points):
        x, y = _x(seconds, end), _y(figure, top)
        commands.append(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" if not steps or not index else f"H{x:.1f}V{y:.1f}")
    return "".join(commands) + f"H{_WIDTH - _RIGHT}"


def _x(seconds: float, end: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / end


def _y(figure: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * figure / top


def _round_up(figure: float) -> float:
    """The next figure that four steps divide into round ones; at least 4."""
    if figure <= _TICKS:
        return float(_TICKS)
    magnitude = 10 ** math.floor(math.log10(figure))
    return float(next(factor * magnitude for factor in (1, 2, 4, 6, 8, 10, 20) if factor * magnitude >= figure))
