"""Whose fault it is that the operating system cannot take over, and how equal failures count."""

from __future__ import annotations

import pytest
from hypothesis import given

from oracles.hand_over import check
from oracles.reading import Reading
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, LOADER, Story, traces


def exited() -> Story:
    """A story in which the exit went well."""
    story = Story()
    with story.exit():
        pass
    return story


def test_devices_of_one_type_count_once() -> None:
    """The subject is the type, so that four disks that fail alike are one signature and a network card is another."""
    story = exited()
    for name in ("device/vbd/768", "device/vbd/832", "device/vif/0", "device/console/1"):
        story.take_over(name, "backend is Connected", BLOCK)
    assert story.signatures() == [f"hand-over/device/XenPvBlkDxe/{type_}" for type_ in ("vbd", "vif", "console")]


def test_a_failure_that_nobody_is_named_for_belongs_to_the_firmware() -> None:
    """The firmware as a whole handed over: it stands in where the trace does not tell more."""
    story = exited()
    story.take_over("store", "no answer")
    story.take_over("memory-map", "the map is stale")
    assert story.signatures() == ["hand-over/store/firmware/store", "hand-over/memory-map/firmware/memory-map"]


def test_devices_that_only_lack_the_store_are_no_findings_of_their_own() -> None:
    """One cause, one finding; a device that a driver answers for is judged all the same."""
    story = exited()
    story.take_over("store", "the ring was not reset", BUS)
    story.take_over("device/vbd/0", "the store cannot be reached")
    story.take_over("device/vif/0", "the backend is in Connected", BLOCK)
    assert story.signatures() == ["hand-over/store/XenBusDxe/store", "hand-over/device/XenPvBlkDxe/vif"]
    story = exited()
    story.take_over("device/vbd/0", "the front end's nodes are missing")
    assert story.signatures() == ["hand-over/device/firmware/vbd"]


def test_the_finding_names_number_and_device_of_what_is_held() -> None:
    """The signature has the device's type, the sentence the port and the path."""
    story = exited()
    story.take_over("event-channel", "a backend is still bound", BLOCK, 5, "device/vbd/768")
    (finding,) = check(story.reading)
    assert finding.subject == "vbd"
    assert finding.seen == (
        "The operating system cannot take over event-channel (5, device/vbd/768): a backend is still bound."
    )


def test_the_memory_map_belongs_to_who_moved_it_first() -> None:
    """Movements before the key was checked were known to the loader."""
    story = Story()
    story.add(Kind.MAP_KEY, LOADER, "bump", (1, 2))
    with story.exit():
        story.add(Kind.HYPERCALL, BUS, "EVTCHNOP_send", (1,), 0)
        story.add(Kind.MAP_KEY, BLOCK, "bump", (2, 3))
        story.add(Kind.MAP_KEY, BUS, "bump", (3, 4))
    story.take_over("memory-map", "key 2 was fetched, 4 holds")
    (finding,) = check(story.reading)
    assert finding.agent == BLOCK
    assert finding.seen == "The operating system cannot take over memory-map: key 2 was fetched, 4 holds."


def test_a_service_after_the_exit_is_told_with_its_place() -> None:
    """A notification that runs on in the runtime phase has no services any more."""
    story = exited()
    with story.notification(BLOCK):
        story.service("SignalEvent", BLOCK, EfiStatus.UNSUPPORTED)
    (finding,) = check(story.reading)
    assert finding.signature == "hand-over/service-after-exit/XenPvBlkDxe/SignalEvent"
    assert finding.seen == (
        "SignalEvent by XenPvBlkDxe at TPL_CALLBACK, inside the notification of XenPvBlkDxe, "
        "when ExitBootServices was done; it answered EFI_UNSUPPORTED."
    )


@given(traces(last_phase=Phase.EXIT))
def test_nothing_is_judged_before_the_runtime_phase(trace: Trace) -> None:
    """An operating system that does not run has nothing to complain about."""
    assert check(Reading(trace)) == []


@pytest.mark.parametrize("inside", [True, False])
def test_what_moves_the_map_inside_of_a_third_partys_notification_is_its_doing(inside: bool) -> None:
    """A driver's Stop that it causes moves the map as well; then nobody is blamed. Otherwise it is the driver."""
    story = Story()
    with story.exit(), story.notification("third-party" if inside else BUS), story.entry("Stop", BLOCK):
        story.add(Kind.MAP_KEY, BLOCK, "bump", (2, 3))
    story.take_over("memory-map", "the map is stale")
    expected = [] if inside else ["hand-over/memory-map/XenPvBlkDxe/memory-map"]
    assert [finding.signature for finding in check(story.reading)] == expected


def test_every_record_of_the_phase_counts() -> None:
    """The first and the last one, also in a trace that begins in the middle of the exit."""
    for place in (0, 1, 2):
        story = Story()
        story.trace.phase = int(Phase.EXIT)
        for at in range(3):
            story.add(*((Kind.MAP_KEY, BLOCK, "bump", (2, 3)) if at == place else (Kind.EXIT, LOADER, "exit-group")))
        story.trace.phase = int(Phase.RUNTIME)
        story.take_over("memory-map", "the map is stale")
        assert [finding.agent for finding in check(story.reading)] == [BLOCK]


def test_what_is_fine_or_the_environments_hides_nothing() -> None:
    """A step that succeeded, and one for which a third party is responsible, come first."""
    story = exited()
    story.take_over("memory-map", "OK")
    story.take_over("grant-table", "in use", "third-party", 8, "device/vbd/0")
    story.take_over("device/vif/0", "backend is Closing", BLOCK)
    assert story.signatures() == ["hand-over/device/XenPvBlkDxe/vif"]
