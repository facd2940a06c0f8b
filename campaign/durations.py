"""Durations as people write them: `90`, `90s`, `15m`, `8h`, `7d`."""

from __future__ import annotations

import re

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]{1,9})([smhd]?)", re.ASCII)
LONGEST_S = 366 * 86400  # libFuzzer counts seconds in a C int


def parse_duration(text: str) -> int:
    """Seconds in a duration. Raises ValueError, with a sentence, for what is none, for 0, and for more than a year."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration: write seconds or a number with s, m, h or d, such as 90 or 15m")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds == 0:
        raise ValueError(f"{text!r} is no time at all: at least 1 second")
    if seconds > LONGEST_S:
        raise ValueError(f"{text!r} is longer than a year")
    return seconds


def format_duration(seconds: float) -> str:
    """Seconds for people, rounded to what matters: `42 s`, `3 min 20 s`, `7 h 5 min`, `2 d 3 h`."""
    whole = max(0, round(seconds))
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"
