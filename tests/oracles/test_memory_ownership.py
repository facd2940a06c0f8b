"""Whose memory it is, and how its misuse is told."""

from __future__ import annotations

import pytest

from oracles.memory_ownership import check
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, LOADER, POOL, Story


@pytest.mark.parametrize(
    "service", ["AllocatePool", "AllocatePages", "LocateHandleBuffer", "OpenProtocolInformation", "ProtocolsPerHandle"]
)
def test_a_leak_names_the_end_and_the_call(service: str) -> None:
    """In the signature both; in the sentence all of it."""
    story = Story()
    with story.entry("Start"):
        story.service(service)
    story.entry("Stop")
    (finding,) = check(story.reading)
    assert finding.signature == f"memory-ownership/leak/XenBusDxe/Stop-{service}"
    assert (finding.step, finding.seen) == (
        2,
        f"XenBusDxe called {service} in step 1, inside Start of XenBusDxe; Stop() of XenBusDxe answered EFI_SUCCESS, "
        "and it was not given back.",
    )


def test_what_is_no_memory_is_told_elsewhere() -> None:
    """Events, opens and interfaces."""
    story = Story()
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        for service in ("CreateEvent", "OpenProtocol", "InstallProtocolInterface"):
            story.service(service)
    assert check(story.reading) == []


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("double-free", "double free"),
        ("use-after-free", "use after free"),
        ("overrun", "overrun"),
        ("foreign-free", "foreign free"),
    ],
)
def test_misuse_is_told_with_owner_and_place(rule: str, words: str) -> None:
    """It counts once for each entry point."""
    story = Story()
    with story.notification():
        story.misuse(rule, BUS, BLOCK)
    (finding,) = check(story.reading)
    assert finding.signature == f"memory-ownership/{rule}/XenBusDxe/Notify"
    assert (finding.step, finding.seen) == (
        1,
        f"XenBusDxe did this to memory of XenPvBlkDxe at TPL_CALLBACK, inside the notification of XenBusDxe: {words}.",
    )


def test_what_the_core_finds_freed_belongs_to_who_freed_it() -> None:
    """An interface that is still installed; outside of any entry it is the driver's as a whole."""
    story = Story()
    story.misuse("use-after-free", "DxeCore", BLOCK)
    (finding,) = check(story.reading)
    assert finding.signature == "memory-ownership/use-after-free/XenPvBlkDxe/driver"
    assert finding.seen.startswith("DxeCore did this to memory of XenPvBlkDxe")


def test_the_environment_is_never_blamed() -> None:
    """Neither for its own memory nor for a driver's, nor the driver for what is the environment's alone."""
    story = Story()
    for agent in ("DxeCore", LOADER, "third-party"):
        story.misuse("use-after-free", agent, "firmware")
    assert check(story.reading) == []


@pytest.mark.parametrize("service", ["AllocatePool", "AllocatePages", "LocateHandleBuffer", "ProtocolsPerHandle"])
def test_a_buffer_that_was_handed_over_may_be_freed(service: str) -> None:
    """Allocated by somebody else while the code ran that frees it now, even from another entry of it."""
    story = Story()
    with story.entry("Start", BLOCK):
        story.service(service, BUS)
    address = story.trace.records[-1][8]
    address = address[0] if isinstance(address, tuple) else address
    story.misuse("foreign-free", BLOCK, BUS, address)
    assert [finding.rule for finding in check(story.reading)] == []
    story.misuse("foreign-free", BLOCK, BUS, address + 1)
    assert [finding.rule for finding in check(story.reading)] == ["foreign-free"]


def test_a_buffer_of_another_entry_was_not_handed_over() -> None:
    """The bus allocated it for itself: in its own Start, or outside of any; also where it was handed over earlier."""
    story = Story()
    with story.entry("Start", BLOCK):
        story.service("AllocatePool")
    with story.entry("Start"):
        story.service("AllocatePool")
    story.misuse("foreign-free", BLOCK, BUS)
    story.service("AllocatePool", value=POOL + 64)
    story.misuse("foreign-free", BLOCK, BUS, POOL + 64)
    assert [finding.step for finding in check(story.reading)] == [4, 6]


def test_only_what_was_allocated_before_counts() -> None:
    """The address comes again in a later call."""
    story = Story()
    story.misuse("foreign-free", BLOCK, BUS)
    with story.entry("Start", BLOCK):
        story.service("AllocatePool")
    assert [finding.rule for finding in check(story.reading)] == ["foreign-free"]


def test_other_misuse_of_what_was_handed_over_is_misuse() -> None:
    """Freeing twice is never legal."""
    story = Story()
    with story.entry("Start", BLOCK):
        story.service("AllocatePool")
        story.service("FreePool", BLOCK)
        story.misuse("double-free", BLOCK, BUS)
    assert [finding.rule for finding in check(story.reading)] == ["double-free"]
