"""Durations on the command line."""

from __future__ import annotations

import pytest

from campaign.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("8h", 28_800), ("7d", 604_800), ("01", 1)]
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: int) -> None:
    """Every form that the design names is understood."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "1.5h", "-1", "+1", "1 m", "5x", "1M", "1h30m", "٣", "1_0", "1s\n", "9" * 400, "nan", "ten"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The message shows the forms that are understood."""
    with pytest.raises(ValueError, match="is no duration: write seconds or a number with s, m, h or d"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0", "0s", "0d"])
def test_no_time_at_all_is_refused(text: str) -> None:
    """libFuzzer would take 0 for "no limit"."""
    with pytest.raises(ValueError, match="at least 1 second"):
        parse_duration(text)


def test_more_than_a_year_is_refused() -> None:
    """libFuzzer counts seconds in an int."""
    assert parse_duration("366d") == 366 * 86_400
    with pytest.raises(ValueError, match="longer than a year"):
        parse_duration("367d")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60.0, "1 min"),
        (200.0, "3 min 20 s"),
        (3600.0, "1 h"),
        (25_500.0, "7 h 5 min"),
        (183_600.0, "2 d 3 h"),
    ],
)
def test_people_read_the_two_largest_units(seconds: float, text: str) -> None:
    """Rounded to what matters."""
    assert format_duration(seconds) == text
