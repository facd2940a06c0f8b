"""What a corpus reached, as a file, and the difference between two."""

from __future__ import annotations

import msgspec
import pytest

from campaign.behaviour import NEAR_MISSES
from campaign.measurement import (
    FileCoverage,
    Measurement,
    behaviour_lines,
    difference,
    difference_lines,
    percent,
    read_measurement,
)
from fuzz_targets.input_files import InputError


def measured(digest: str = "a", lines=(1, 2, 3, 7), branches=((1, 2), (3, -1)), **behaviour) -> Measurement:
    """A measurement of one file and the maps that are named."""
    one = FileCoverage(digest=digest, lines=lines, branches=branches, line_count=8, branch_count=4)
    return Measurement(scenarios=2, files={"world.py": one}, behaviour=behaviour)


HERE = measured(calls={"AllocatePool": {"EFI_SUCCESS": 3, "EFI_OUT_OF_RESOURCES": 1}})
THERE = measured("a", (1, 2), ((1, 2), (2, 5)), calls={"AllocatePool": {"EFI_SUCCESS": 9, "EFI_OUT_OF_RESOURCES": 0}})


def test_percentages_are_of_all_files():
    """No line is no gap."""
    assert (HERE.line_percent, HERE.branch_percent) == (50, 50)
    assert percent(0, 0) == 100


def test_the_difference_says_what_only_one_of_the_two_reached():
    """Lines, branches and behaviour, in both directions; how often does not matter."""
    compared = difference(HERE, THERE, "the seeds")
    assert list(difference_lines(compared)) == [
        "against the seeds:",
        "  only here: 2 lines, 1 branch, 1 behaviour",
        "    world.py: lines 3, 7; branches 3→exit",
        "    calls: AllocatePool = EFI_OUT_OF_RESOURCES",
        "  only there: 0 lines, 1 branch, 0 behaviours",
        "    world.py: branches 2→5",
    ]
    same = difference(HERE, HERE, "itself")
    assert str(same.here) == str(same.there) == "0 lines, 0 branches, 0 behaviours"


def test_of_a_file_that_has_changed_only_percentages_are_compared():
    """Its lines are other lines now; behaviour is compared all the same."""
    compared = difference(HERE, measured("b", (1,), ()), "the main branch")
    assert (compared.here.lines, compared.here.branches) == ({}, {})
    assert list(difference_lines(compared))[-1] == "  world.py differs: 50.0 % here, 8.3 % there"
    assert compared.here.behaviour["calls"] == ("AllocatePool = EFI_OUT_OF_RESOURCES", "AllocatePool = EFI_SUCCESS")
    gone = difference(HERE, Measurement(scenarios=0, files={}, behaviour={}), "nothing")
    assert gone.changed == {"world.py": (50.0, 0.0)}


def test_lines_in_a_row_are_shown_as_one():
    """Otherwise nobody reads them."""
    compared = difference(measured(lines=(1, 2, 3, 5, 8, 9)), measured(lines=(2,)), "x")
    assert "    world.py: lines 1, 3, 5, 8-9" in list(difference_lines(compared))
    assert "    world.py: line 1" in list(difference_lines(difference(measured(lines=(1,)), measured(lines=()), "x")))


def test_maps_are_shown_by_what_never_happened_and_near_misses_by_their_counts():
    """Both answer the question that a reader has."""
    maps = {
        "calls": {"Stall": {"EFI_SUCCESS": 2}, "FreePool": {"EFI_SUCCESS": 1, "EFI_NOT_FOUND": 0}},
        NEAR_MISSES: {"tpl": {"it comes near": 12, "it comes nearer": 0}},
    }
    assert list(behaviour_lines(maps)) == [
        "behaviour: calls 2 of 3, near misses 1 of 2",
        "  calls, never seen:",
        "    FreePool: EFI_NOT_FOUND",
        "  near misses, in how many scenarios:",
        "        12  tpl: it comes near",
        "     never  tpl: it comes nearer",
    ]


def test_a_file_reads_back_and_anything_else_is_one_line(tmp_path):
    """The line names the file."""
    path = tmp_path / "main.json"
    path.write_bytes(msgspec.json.encode(HERE))
    assert read_measurement(path) == HERE
    for text, message in (
        ("", "no measurement of coverage"),
        ("[]", "no measurement of coverage: Expected `object`"),
        ("[" * 100_000, "no measurement"),
        (msgspec.json.encode(HERE).decode().replace('"version":1', '"version":2'), "version 2 is not one"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_measurement(path)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(InputError, match=r"missing\.json: cannot be read: No such file"):
        read_measurement(tmp_path / "missing.json")
