"""Which rule a fault of guest code breaks, and what counts as one cause."""

from __future__ import annotations

import pytest

from oracles.guest_fault import check
from oracles.reading import Reading
from reference_impl.trace import Kind
from tests.oracles.stories import BUS, Story


def found(name, *arguments, kind=Kind.FAULT, detail=None):
    """The one finding about a run that ends like this."""
    story = Story()
    story.add(kind, BUS, name, arguments, None, detail)
    (finding,) = check(Reading(story.trace))
    return finding


def test_a_run_without_a_fault_is_accepted():
    """Also one without any record."""
    story = Story()
    assert check(Reading(story.trace)) == []
    story.service("AllocatePool")
    assert check(Reading(story.trace)) == []


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        (0, "null-pointer"),
        (0xFFF, "null-pointer"),
        (0x1000, "access"),
        ((1 << 64) - 1, "null-pointer"),
        ((1 << 64) - 0xFFF, "null-pointer"),
        ((1 << 64) - 0x1000, "access"),
    ],
)
@pytest.mark.parametrize("access", ["read", "write", "fetch"])
def test_an_access_around_zero_went_through_a_null_pointer(access, address, rule):
    """A member of a structure that is not there lies within a page of address 0, on either side."""
    finding = found(access, address, "XenBusDxe+0x10")
    assert finding.rule == rule
    assert finding.seen == f"XenBusDxe: {access} of {address:#x}, where nothing is, at XenBusDxe+0x10."


def test_a_leaf_function_is_not_to_blame():
    """Two instructions of one copying function, called from one place, are one cause; another caller is another."""
    callers = [("XenBusDxe+0x3315 (leaf)", "XenBusDxe+0x1ad6"), ("XenBusDxe+0x3326 (leaf)", "XenBusDxe+0x1ad6")]
    one, same = (found("write", 0, *frames).signature for frames in callers)
    assert one == same == "guest-fault/null-pointer/XenBusDxe/XenBusDxe+0x1ad6"
    assert found("write", 0, "XenBusDxe+0x3326 (leaf)", "XenBusDxe+0x1817").signature != one


def test_the_way_there_does_not_matter():
    """Who called the function that faults is told, and is no part of the signature."""
    one = found("read", 0, "XenBusDxe+0x489", "XenBusDxe+0x1e5f")
    other = found("read", 0, "XenBusDxe+0x489", "XenBusDxe+0x2424")
    assert one.signature == other.signature
    assert one.seen.endswith("at XenBusDxe+0x489, called from XenBusDxe+0x1e5f.")


def test_an_exception_says_which():
    """The processor's name for it is in the sentence."""
    assert "invalid opcode" in found("exception", 0, "XenBusDxe+0x70", detail="invalid opcode").seen


def test_other_ways_to_end_are_other_oracles_business():
    """Waiting without progress is no fault of a processor."""
    story = Story()
    story.add(Kind.STUCK, BUS, "step-budget", ("WaitForEvent",))
    assert check(Reading(story.trace)) == []
    assert found("dead-loop", "XenBusDxe+0x80", kind=Kind.STUCK).rule == "dead-loop"


@pytest.mark.parametrize("place", ["XenBusDxe+0x80", "XenBusDxe+0x9c3 (leaf)"])
def test_a_dead_loop_is_known_by_the_entry_point_that_it_keeps(place):
    """Wherever in the loop the machine looked."""
    story = Story()
    with story.entry("Start"):
        pass
    with story.entry("Stop", status=None):
        with story.entry("Notify"):
            pass
        story.add(Kind.STUCK, BUS, "dead-loop", (place, "XenBusDxe+0x9e4"))
    (finding,) = check(Reading(story.trace))
    assert finding.signature == "guest-fault/dead-loop/XenBusDxe/Stop"
    assert place in finding.seen


def test_the_whole_way_is_told():
    """Every caller, from the inside out."""
    assert found("halt", 0, "XenBusDxe+0x1", "XenBusDxe+0x2", "XenBusDxe+0x3").seen == (
        "XenBusDxe: halt, at XenBusDxe+0x1, called from XenBusDxe+0x2, XenBusDxe+0x3."
    )


def test_a_loop_outside_of_any_entry_is_told_by_its_place():
    """There is no entry point that it keeps from coming back."""
    finding = found("dead-loop", "XenBusDxe+0x80", kind=Kind.STUCK)
    assert finding.subject == "XenBusDxe+0x80"
    assert finding.seen == "XenBusDxe: a loop that nothing can end, at XenBusDxe+0x80."


def test_a_stray_port_is_told_with_its_number():
    """And with the instruction."""
    assert found("in", 0x510, "XenBusDxe+0x80", kind=Kind.STRAY).seen == (
        'XenBusDxe: "in" with port 0x510, where nothing is, at XenBusDxe+0x80.'
    )
