"""Whose reference it is, and when it must be gone."""

from __future__ import annotations

import pytest

from oracles.reference_count import check
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, DISK, SECOND_DISK, Story

NETWORK_CARD = "device/vif/0"


def started(*devices: str) -> Story:
    """Each device was started on a controller of its own, numbered from 10, and holds a reference."""
    story = Story()
    story.entry("Start", BUS)
    for number, device in enumerate(devices):
        with story.entry("Start", BLOCK, EfiStatus.SUCCESS, 10 + number, None):
            story.reference("Add", number + 1, device)
    return story


def test_a_stop_that_keeps_the_reference_leaks_it() -> None:
    """Its own Stop, on its own controller; another controller's Stop says nothing about it."""
    story = started(DISK, SECOND_DISK)
    with story.entry("Stop", BLOCK, EfiStatus.SUCCESS, 11, ()):
        story.reference("Remove", 1, SECOND_DISK, False)
    assert story.signatures() == []
    story.entry("Stop", BLOCK, EfiStatus.SUCCESS, 10, ())
    (finding,) = check(story.reading)
    assert finding.signature == "reference-count/leak/XenPvBlkDxe/vbd"
    assert finding.step == 7
    assert finding.seen == (
        "XenPvBlkDxe added a reference for device/vbd/0 in step 2; Stop() of XenPvBlkDxe answered EFI_SUCCESS, "
        "and it is still held."
    )


@pytest.mark.parametrize(
    ("status", "children"),
    [(EfiStatus.DEVICE_ERROR, ()), (None, ()), (EfiStatus.SUCCESS, (4,))],
    ids=["refused", "never returned", "children only"],
)
def test_a_stop_that_ends_nothing_leaves_the_reference(status: EfiStatus | None, children: tuple[int, ...]) -> None:
    """The driver still manages the device, so it still needs the connection."""
    story = started(DISK)
    story.entry("Stop", BLOCK, status, 10, children)
    assert story.signatures() == []


def test_the_end_of_the_bus_is_the_end_of_all_references() -> None:
    """Whose device was not stopped before has kept its reference too long, whatever its own driver says."""
    story = started(DISK, NETWORK_CARD)
    story.entry("Stop", BUS, EfiStatus.SUCCESS, 2, ())
    assert story.signatures() == [f"reference-count/leak/XenPvBlkDxe/{type_}" for type_ in ("vbd", "vif")]


def test_another_drivers_stop_on_the_same_controller_ends_nothing() -> None:
    """A controller may have two drivers, by different protocols."""
    story = started(DISK)
    story.entry("Start", "Other", EfiStatus.SUCCESS, 10, None)
    story.entry("Stop", "Other", EfiStatus.SUCCESS, 10, ())
    assert story.signatures() == []


def test_another_start_that_fails_ends_nothing() -> None:
    """Asking a driver to start a device that it has started already is refused, and changes nothing."""
    story = started(DISK)
    story.entry("Start", BLOCK, EfiStatus.ALREADY_STARTED, 10, None)
    assert story.signatures() == []


def test_no_reference_is_held_when_the_operating_system_runs() -> None:
    """Until then a notification may still come."""
    story = started(DISK)
    with story.exit(), story.notification(BLOCK):
        assert story.signatures() == []
    (finding,) = check(story.reading)
    assert finding.signature == "reference-count/leak/XenPvBlkDxe/vbd"
    assert story.trace.records[finding.step][5] == "runtime"
    assert finding.seen == (
        "XenPvBlkDxe added a reference for device/vbd/0 in step 2; the operating system took over, and it is still held."
    )


def test_a_leak_is_told_once() -> None:
    """What a failed Start left behind is no second finding at the hand-over, and a later Start may add again."""
    story = Story()
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        story.reference("Add", 1)
    with story.entry("Start", BLOCK):
        story.reference("Add", 2)
    with story.exit(), story.notification(BLOCK):
        story.reference("Remove", 1, DISK, True)
    assert [(finding.rule, finding.step) for finding in check(story.reading)] == [("leak", 0)]


def test_adding_twice_is_unbalanced() -> None:
    """The sentence tells who, where, and since when the device holds one."""
    story = started(DISK)
    with story.notification(BLOCK):
        story.reference("Add", 2)
    (finding,) = check(story.reading)
    assert finding.rule == "unbalanced"
    assert finding.seen == (
        "XenPvBlkDxe called AddReference for device/vbd/0 at TPL_CALLBACK, inside the notification of XenPvBlkDxe, "
        "and held one since step 2."
    )


def test_an_underflow_is_no_unbalanced_device_too() -> None:
    """Below zero nothing is hidden any more; the sentence tells the count."""
    story = Story()
    with story.entry("Stop", BLOCK):
        story.reference("Remove", -1, DISK, False)
    (finding,) = check(story.reading)
    assert finding.rule == "underflow"
    assert finding.seen == (
        "XenPvBlkDxe called RemoveReference for device/vbd/0 at TPL_APPLICATION, inside Stop of XenPvBlkDxe, "
        "and left the count at -1."
    )


def test_removing_for_a_device_that_holds_none_is_unbalanced() -> None:
    """The count hides it behind another device's reference."""
    story = started(SECOND_DISK)
    with story.entry("Stop", BLOCK, EfiStatus.SUCCESS, 12, ()):
        story.reference("Remove", 0, DISK, False)
    (finding,) = check(story.reading)
    assert (finding.rule, finding.step) == ("unbalanced", 4)
    assert finding.seen.endswith("inside Stop of XenPvBlkDxe, and held none.")


def test_a_reference_that_was_added_outside_of_driver_code_is_held_until_the_end() -> None:
    """Nobody's Start or Stop answers for it but the bus's hand-over."""
    story = Story()
    story.entry("Start", BLOCK, EfiStatus.SUCCESS, 10, None)
    story.reference("Add", 1)
    story.entry("Stop", BLOCK, EfiStatus.SUCCESS, 10, ())
    assert story.signatures() == []
    with story.exit():
        pass
    assert story.signatures() == ["reference-count/leak/XenBusDxe/vbd"]


def test_the_environment_is_never_blamed() -> None:
    """A third party that adds and removes as it likes breaks nothing of the drivers'."""
    story = Story()
    with story.notification("third-party"):
        story.reference("Remove", -1, DISK, False)
        story.reference("Add", 0)
        story.reference("Add", 1)
    with story.exit():
        pass
    assert story.signatures() == []
