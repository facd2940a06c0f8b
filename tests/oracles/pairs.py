"""For every rule a planted bug that breaks it and a near miss that does not, each as a story."""

from __future__ import annotations

from collections.abc import Callable

from reference_impl.trace import Kind
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import BLOCK, BUS, DISK, LOADER, SECOND_DISK, Story

Telling = Callable[[Story], None]

PAIRS: dict[str, tuple[Telling, Telling]] = {}
"""Signature that the planted bug must have, and no other → planted bug, near miss."""


def pair(signature: str, near_miss: Telling) -> Callable[[Telling], Telling]:
    """Register the decorated story as the planted bug with this signature, beside its near miss."""

    def register(bug: Telling) -> Telling:
        PAIRS[signature] = bug, near_miss
        return bug

    return register


# ---- memory services ----------------------------------------------------------------------------------------------


def _allocates_in_the_before_group(story: Story) -> None:
    """The BEFORE group may allocate, in the call and inside other services, and the EXIT group then uses it."""
    with story.before_group(), story.notification():
        story.service("AllocatePool")
        with story.service("CreateEvent"):
            story.core("allocate", "CreateEvent")
    with story.exit(), story.notification():
        story.service("SignalEvent")


@pair("memory-services/direct-call/XenBusDxe/AllocatePool", _allocates_in_the_before_group)
def _allocates_in_its_notification(story: Story) -> None:
    with story.exit(), story.notification():
        story.service("AllocatePool")


def _open_that_finds_its_record(story: Story) -> None:
    """OpenProtocol allocates nothing where the same open stands already; nor does one that is refused."""
    with story.exit(), story.notification():
        story.service("OpenProtocol")
        story.service("OpenProtocol", BUS, EfiStatus.ACCESS_DENIED)
        story.service("LocateProtocol", BUS, EfiStatus.OUT_OF_RESOURCES)


@pair("memory-services/allocates-inside/XenBusDxe/OpenProtocol", _open_that_finds_its_record)
def _opens_a_protocol_in_its_notification(story: Story) -> None:
    with story.exit(), story.notification(), story.service("OpenProtocol"):
        story.core("allocate", "OpenProtocol")


def _closes_before_the_exit(story: Story) -> None:
    """An event that is closed before the EXIT group runs is nobody's business."""
    with story.entry("Stop"), story.service("CloseEvent"):
        story.core("free", "CloseEvent")
    with story.exit(), story.notification():
        pass


@pair("memory-services/frees-inside/XenBusDxe/CloseEvent", _closes_before_the_exit)
def _closes_its_event_in_its_notification(story: Story) -> None:
    with story.exit(), story.notification(), story.service("CloseEvent"):
        story.core("free", "CloseEvent")


# ---- connection reset ---------------------------------------------------------------------------------------------


def _stop_start_exit(story: Story) -> None:
    """Stop resets generation 1, the hand-over resets generation 2."""
    story.connection("ring", 1)
    with story.entry("Stop"):
        story.reset("ring", 1)
    with story.entry("Start"):
        story.connection("ring", 2)
    with story.exit(), story.notification():
        story.reset("ring", 2)


@pair("connection-reset/double-reset/XenBusDxe/ring", _stop_start_exit)
def _bus_resets_after_the_last_device(story: Story) -> None:
    story.connection("ring", 1)
    with story.exit():
        with story.notification(BLOCK):
            story.reset("ring", 1, BLOCK)
        with story.notification():
            story.reset("ring", 1)


def _exit_that_fails(story: Story) -> None:
    """The loader's key is stale and it never tries again: the firmware still owns the machine, and its connection."""
    story.connection("grant-table", 1)
    story.failed_exit()


@pair("connection-reset/missed-reset/XenBusDxe/grant-table", _exit_that_fails)
def _nobody_resets(story: Story) -> None:
    story.connection("grant-table", 1)
    with story.exit(), story.notification():
        pass


def _device_closes_before_the_bus_resets(story: Story) -> None:
    """The front end is in Closing when the bus resets: its driver has told the peer, whether or not the peer follows."""
    story.connection("ring", 1)
    story.frontend(1, 4)
    with story.exit():
        with story.notification(BLOCK):
            story.frontend(4, 5)
        with story.notification():
            story.reset("ring", 1)


@pair("connection-reset/premature-reset/XenBusDxe/ring", _device_closes_before_the_bus_resets)
def _bus_resets_before_the_device_closes(story: Story) -> None:
    story.connection("ring", 1)
    story.frontend(1, 4)
    with story.exit():
        with story.notification():
            story.reset("ring", 1)
        with story.notification(BLOCK):
            story.frontend(4, 5)


@pair("connection-reset/use-after-reset/XenPvBlkDxe/ring", _stop_start_exit)
def _device_speaks_after_the_reset(story: Story) -> None:
    story.connection("ring", 1)
    with story.exit():
        with story.notification():
            story.reset("ring", 1)
        with story.notification(BLOCK):
            story.connection("ring", 2)


# ---- reference count ----------------------------------------------------------------------------------------------


def _two_devices_let_go_in_any_order(story: Story) -> None:
    """A disk is stopped and started again, then both are handed over, the second one first."""
    with story.entry("Start", BLOCK):
        story.reference("Add", 1)
    with story.entry("Start", BLOCK, EfiStatus.SUCCESS, 3, None):
        story.reference("Add", 2, SECOND_DISK)
    with story.entry("Stop", BLOCK):
        story.reference("Remove", 1, DISK, False)
    with story.entry("Start", BLOCK):
        story.reference("Add", 2)
    with story.exit():
        for count, device in ((1, SECOND_DISK), (0, DISK)):
            with story.notification(BLOCK):
                story.reference("Remove", count, device, True)


@pair("reference-count/underflow/XenPvBlkDxe/vbd", _two_devices_let_go_in_any_order)
def _device_hands_over_twice(story: Story) -> None:
    with story.entry("Start", BLOCK):
        story.reference("Add", 1)
    with story.exit():
        for count in (0, -1):
            with story.notification(BLOCK):
                story.reference("Remove", count, DISK, True)


@pair("reference-count/unbalanced/XenPvBlkDxe/vbd", _two_devices_let_go_in_any_order)
def _device_removes_the_reference_of_another(story: Story) -> None:
    for device, count in ((DISK, 1), (SECOND_DISK, 2)):
        with story.entry("Start", BLOCK, EfiStatus.SUCCESS, count, None):
            story.reference("Add", count, device)
    for count in (1, 0):
        with story.notification(BLOCK):
            story.reference("Remove", count, DISK, True)


def _start_fails_after_giving_the_reference_back(story: Story) -> None:
    """A Start takes its reference early and fails, but not before it has given it back."""
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        story.reference("Add", 1)
        story.reference("Remove", 0, DISK, False)
    with story.exit():
        pass


@pair("reference-count/leak/XenPvBlkDxe/vbd", _start_fails_after_giving_the_reference_back)
def _start_fails_with_a_reference(story: Story) -> None:
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        story.reference("Add", 1)
    with story.exit():
        pass


# ---- hand-over ----------------------------------------------------------------------------------------------------


def _everything_can_be_taken_over(story: Story) -> None:
    """Every step of the operating system succeeds."""
    with story.exit():
        pass
    for name in ("memory-map", "store", "grant-table", "event-channel", "device/vbd/0", "device/vif/0"):
        story.take_over(name, "OK", BUS)


@pair("hand-over/memory-map/XenBusDxe/memory-map", _everything_can_be_taken_over)
def _map_has_moved(story: Story) -> None:
    story.add(Kind.MAP_KEY, LOADER, "bump", (6, 7))
    with story.exit():
        with story.notification(), story.service("Stall"):
            story.add(Kind.MAP_KEY, BUS, "bump", (7, 8))
        story.add(Kind.MAP_KEY, BLOCK, "bump", (8, 9))
    story.take_over("memory-map", "the loader's map has key 7, memory has moved on to 9")


@pair("hand-over/store/XenBusDxe/store", _everything_can_be_taken_over)
def _store_is_skewed(story: Story) -> None:
    with story.exit():
        pass
    story.take_over("store", "indices are skewed", BUS)


@pair("hand-over/grant-table/XenBusDxe/grant-table", _everything_can_be_taken_over)
def _grant_table_is_still_placed(story: Story) -> None:
    with story.exit():
        pass
    story.take_over("grant-table", "the firmware's grant table is still in force", BUS, 1)


@pair("hand-over/grant-left/XenPvBlkDxe/vbd", _everything_can_be_taken_over)
def _backend_holds_a_grant(story: Story) -> None:
    with story.exit():
        pass
    story.take_over("grant-table", "a backend still has the page mapped", BLOCK, 8, "device/vbd/0")


@pair("hand-over/event-channel-left/XenPvBlkDxe/vbd", _everything_can_be_taken_over)
def _event_channel_is_open(story: Story) -> None:
    with story.exit():
        pass
    story.take_over("event-channel", "a backend is still bound", BLOCK, 5, "device/vbd/0")


@pair("hand-over/device/XenPvBlkDxe/vbd", _everything_can_be_taken_over)
def _two_disks_do_not_connect(story: Story) -> None:
    with story.exit():
        pass
    story.take_over("device/vbd/768", "backend is Connected", BLOCK)
    story.take_over("device/vbd/832", "backend is Closing", BLOCK)


def _services_of_the_platform_after_the_exit(story: Story) -> None:
    """Nobody blames the firmware, the loader or the operating system for what they call."""
    with story.exit(), story.notification():
        story.service("SignalEvent")
    for agent in ("firmware", LOADER, "os", "environment"):
        story.service("Stall", agent, EfiStatus.UNSUPPORTED)


@pair("hand-over/service-after-exit/XenPvBlkDxe/Stall", _services_of_the_platform_after_the_exit)
def _stalls_after_the_exit(story: Story) -> None:
    with story.exit():
        pass
    story.service("Stall", BLOCK, EfiStatus.UNSUPPORTED)


# ---- guest faults -------------------------------------------------------------------------------------------------


def _ends_before_its_operations_do(story: Story) -> None:
    """A run that ends for another reason, or where memory was misused, has no fault in it."""
    story.add(Kind.MEMORY, BUS, "use-after-free", (0x5000, BUS))
    story.add(Kind.STUCK, BUS, "no-progress", ("WaitForEvent",))


def _fault(kind: str, address: int, *frames: str, detail: str | None = None) -> Telling:
    def tell(story: Story) -> None:
        with story.entry("Start"):
            story.service("AllocatePool", BUS, EfiStatus.OUT_OF_RESOURCES)
            story.add(Kind.FAULT, BUS, kind, (address, *frames), None, detail)

    return tell


_COPIES_TO_NULL = _fault("write", 0x28, "XenBusDxe+0x3315 (leaf)", "XenBusDxe+0x1ad6", "XenBusDxe+0x1b73")

PAIRS |= {
    "guest-fault/null-pointer/XenBusDxe/XenBusDxe+0x1ad6": (_COPIES_TO_NULL, _ends_before_its_operations_do),
    "guest-fault/access/XenBusDxe/XenBusDxe+0x489 (leaf)": (
        _fault("read", 0x1000, "XenBusDxe+0x489 (leaf)"),
        _ends_before_its_operations_do,
    ),
    "guest-fault/exception/XenBusDxe/XenBusDxe+0x70": (
        _fault("exception", 0, "XenBusDxe+0x70", detail="invalid opcode"),
        _ends_before_its_operations_do,
    ),
    "guest-fault/halt/XenBusDxe/XenBusDxe+0x70": (
        _fault("halt", 0, "XenBusDxe+0x70"),
        _ends_before_its_operations_do,
    ),
}


@pair("guest-fault/dead-loop/XenBusDxe/XenBusDxe+0x80", _ends_before_its_operations_do)
def _turns_in_a_loop(story: Story) -> None:
    with story.entry("Start"):
        story.add(Kind.STUCK, BUS, "dead-loop", ("XenBusDxe+0x80", "XenBusDxe+0x90"))
