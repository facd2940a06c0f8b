"""For every rule a planted bug that breaks it and a near miss that does not, each as a story."""

from __future__ import annotations

from collections.abc import Callable

from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import Tpl
from reference_impl.uefi.status import EfiStatus
from tests.oracles.stories import (
    BINDING,
    BLOCK,
    BUS,
    CHILD,
    CONTROLLER,
    DISK,
    EVENT,
    FOR_CHILD,
    LOADER,
    PAGES,
    SECOND_DISK,
    Story,
)

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
    story.entry("Start")
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
    with story.entry("Start"):
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


# ---- event lifetime -----------------------------------------------------------------------------------------------


def _event_of_a_start_and_a_stop(story: Story) -> None:
    """Created in Start, used, closed once in Stop; a later event has another number."""
    with story.entry("Start"):
        story.service("CreateEvent")
        story.service("SignalEvent")
    with story.entry("Stop"):
        story.service("CloseEvent")
    with story.entry("Start"):
        story.service("CreateEvent", value=EVENT + 1)
        story.service("SignalEvent", BUS, EfiStatus.SUCCESS, EVENT + 1)


@pair("event-lifetime/double-close/XenBusDxe/CloseEvent", _event_of_a_start_and_a_stop)
def _stop_closes_twice(story: Story) -> None:
    with story.entry("Start"):
        story.service("CreateEvent")
    with story.entry("Stop"):
        story.service("CloseEvent")
        story.service("CloseEvent", BUS, EfiStatus.INVALID_PARAMETER)


@pair("event-lifetime/use-after-close/XenBusDxe/SignalEvent", _event_of_a_start_and_a_stop)
def _stop_signals_what_it_has_closed(story: Story) -> None:
    with story.entry("Start"):
        story.service("CreateEvent")
    with story.entry("Stop"):
        story.service("CloseEvent")
        story.service("SignalEvent", BUS, EfiStatus.INVALID_PARAMETER)


def _start_fails_and_closes_its_event(story: Story) -> None:
    """On its way back it closes what it had created."""
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("CreateEvent")
        story.service("CloseEvent")


@pair("event-lifetime/left-behind/XenBusDxe/Start-EVENT_GROUP_EXIT_BOOT_SERVICES", _start_fails_and_closes_its_event)
def _start_fails_and_leaves_its_event(story: Story) -> None:
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("CreateEvent")


def _notified_again_in_the_next_attempt(story: Story) -> None:
    """A core of old signals the group in each attempt; an event of another group comes as often as it likes."""
    story.service("CreateEvent")
    for _ in range(2):
        story.add(Kind.EXIT, LOADER, "exit-group")
        with story.notification(group=guids.EVENT_GROUP_EXIT_BOOT_SERVICES):
            pass
        for _ in range(2):
            with story.notification(BLOCK, event=EVENT + 1, group=guids.EVENT_GROUP_MEMORY_MAP_CHANGE):
                pass


@pair("event-lifetime/notified-twice/DxeCore/EVENT_GROUP_EXIT_BOOT_SERVICES", _notified_again_in_the_next_attempt)
def _notified_twice_for_one_signal(story: Story) -> None:
    with story.exit():
        for _ in range(2):
            with story.notification(group=guids.EVENT_GROUP_EXIT_BOOT_SERVICES):
                pass


# ---- task priority levels -----------------------------------------------------------------------------------------


def _up_and_down(story: Story) -> None:
    """Raised, used as high as the services go, and restored; raising to the same level is legal, too."""
    with story.entry("Start"):
        story.service("RaiseTPL", BUS, EfiStatus.SUCCESS, 4, value=4)
        story.service("RaiseTPL", BUS, EfiStatus.SUCCESS, 16, value=4)
        with story.at(Tpl.NOTIFY):
            story.service("GetMemoryMap")
            story.service("RestoreTPL", BUS, EfiStatus.SUCCESS, 4)
        story.service("RestoreTPL", BUS, EfiStatus.SUCCESS, 4)


@pair("tpl/not-restored/XenBusDxe/Start", _up_and_down)
def _start_returns_at_another_level(story: Story) -> None:
    story.entry("Start", returned=16)


@pair("tpl/raise-lowers/XenBusDxe/RaiseTPL", _up_and_down)
def _raises_to_a_lower_level(story: Story) -> None:
    with story.notification(tpl=Tpl.NOTIFY):
        story.service("RaiseTPL", BUS, EfiStatus.SUCCESS, 8)


@pair("tpl/restore-raises/XenBusDxe/RestoreTPL", _up_and_down)
def _restores_to_a_higher_level(story: Story) -> None:
    with story.notification():
        story.service("RestoreTPL", BUS, EfiStatus.SUCCESS, 9)


@pair("tpl/too-high/XenBusDxe/WaitForEvent", _up_and_down)
def _waits_in_a_notification(story: Story) -> None:
    with story.notification():
        story.service("WaitForEvent", BUS, EfiStatus.UNSUPPORTED)


# ---- protocol usage -----------------------------------------------------------------------------------------------


def _bus_with_a_child(story: Story) -> None:
    """Everything that is opened for controller and child is closed, the child's first."""
    with story.entry("Supported"):
        story.service("OpenProtocol")
        story.service("CloseProtocol")
    with story.entry("Start"):
        story.service("OpenProtocol")
        story.service("InstallMultipleProtocolInterfaces")
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *FOR_CHILD)
    with story.entry("Stop", BUS, EfiStatus.SUCCESS, CONTROLLER, (CHILD,)):
        story.service("CloseProtocol", BUS, EfiStatus.SUCCESS, *FOR_CHILD[:4])
        story.service("UninstallMultipleProtocolInterfaces")
    with story.entry("Stop"):
        story.service("CloseProtocol")


@pair("protocol-usage/left-open/XenBusDxe/Supported-XENIO", _bus_with_a_child)
def _supported_leaves_open(story: Story) -> None:
    with story.entry("Supported", BUS, EfiStatus.UNSUPPORTED):
        story.service("OpenProtocol")


@pair("protocol-usage/child-left-open/XenBusDxe/XENIO", _bus_with_a_child)
def _child_goes_while_it_is_open(story: Story) -> None:
    with story.entry("Start"):
        story.service("InstallMultipleProtocolInterfaces")
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *FOR_CHILD)
    with story.entry("Stop", BUS, EfiStatus.SUCCESS, CONTROLLER, (CHILD,)):
        story.service("UninstallMultipleProtocolInterfaces")


@pair("protocol-usage/cleanup-fails/XenBusDxe/CloseProtocol", _bus_with_a_child)
def _closes_with_the_wrong_handle(story: Story) -> None:
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("OpenProtocol")
        story.service("CloseProtocol", BUS, EfiStatus.INVALID_PARAMETER, 99, guids.XENIO_PROTOCOL, BINDING, CONTROLLER)
        story.service("CloseProtocol")


@pair("protocol-usage/closed-interface/XenPvBlkDxe/InstallProtocolInterface", _bus_with_a_child)
def _installs_on_a_handle_that_is_gone(story: Story) -> None:
    with story.entry("Start"):
        story.service("InstallMultipleProtocolInterfaces")
        story.service("UninstallMultipleProtocolInterfaces")
    story.service("InstallProtocolInterface", BLOCK, EfiStatus.INVALID_PARAMETER)


# ---- start and stop -----------------------------------------------------------------------------------------------


def _start_stop_start(story: Story) -> None:
    """The interface is published and taken back, and the front end comes up and goes down, each time alike."""
    for _ in range(2):
        with story.entry("Supported", BLOCK):
            story.service("OpenProtocol", BLOCK)
            story.service("CloseProtocol", BLOCK)
        with story.entry("Start", BLOCK):
            story.frontend(1, 4)
            story.service("InstallProtocolInterface", BLOCK)
        with story.entry("Stop", BLOCK):
            story.service("UninstallProtocolInterface", BLOCK)
            story.frontend(4, 6)


@pair("start-stop/supported-changes/XenPvBlkDxe/WRITE", _start_stop_start)
def _supported_writes(story: Story) -> None:
    with story.entry("Supported", BLOCK):
        story.xenstore("WRITE")


@pair("start-stop/failed-start-leaves/XenPvBlkDxe/BLOCK_IO", _start_stop_start)
def _failed_start_leaves_its_interface(story: Story) -> None:
    with story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR):
        story.service("InstallProtocolInterface", BLOCK)


def _start_that_hands_an_answer_on(story: Story) -> None:
    """EFI_ALREADY_STARTED is what OpenProtocol says where somebody else manages the controller."""
    story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR)
    with story.entry("Start", BLOCK, EfiStatus.ALREADY_STARTED):
        story.service("OpenProtocol", BLOCK, EfiStatus.ALREADY_STARTED)


@pair("start-stop/dangling-start/XenPvBlkDxe/Start", _start_that_hands_an_answer_on)
def _failed_start_dangles(story: Story) -> None:
    story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR)
    story.entry("Start", BLOCK, EfiStatus.ALREADY_STARTED)


@pair("start-stop/stop-leaves/XenPvBlkDxe/device", _start_stop_start)
def _stop_leaves_the_front_end_up(story: Story) -> None:
    with story.entry("Start", BLOCK):
        story.frontend(1, 4)
    story.entry("Stop", BLOCK)


@pair("start-stop/stop-lies/XenBusDxe/Stop", _bus_with_a_child)
def _stop_does_nothing(story: Story) -> None:
    with story.entry("Start"):
        story.service("OpenProtocol")
    story.entry("Stop")


def _start_that_fails_after_a_change(story: Story) -> None:
    """A device that is being removed need not start again."""
    story.entry("Start", BLOCK)
    story.entry("Stop", BLOCK)
    story.operation("remove-device")
    story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR)


@pair("start-stop/restart-differs/XenPvBlkDxe/Start", _start_that_fails_after_a_change)
def _second_start_fails(story: Story) -> None:
    story.entry("Start", BLOCK)
    story.entry("Stop", BLOCK)
    story.operation("connect")
    story.entry("Start", BLOCK, EfiStatus.DEVICE_ERROR)


@pair("start-stop/stop-not-started/DxeCore/Stop", _start_stop_start)
def _core_stops_what_was_not_started(story: Story) -> None:
    story.entry("Start", BLOCK)
    story.entry("Stop", BLOCK)
    story.entry("Stop", BLOCK, EfiStatus.DEVICE_ERROR)


@pair("start-stop/stop-wrong-children/XenBusDxe/children", _bus_with_a_child)
def _stop_keeps_a_child(story: Story) -> None:
    with story.entry("Start"):
        story.service("InstallMultipleProtocolInterfaces")
        story.service("OpenProtocol", BUS, EfiStatus.SUCCESS, *FOR_CHILD)
    story.entry("Stop", BUS, EfiStatus.SUCCESS, CONTROLLER, (CHILD,))


def _stop_of_the_child_inside_the_bus(story: Story) -> None:
    """The bus's Stop disconnects its child, whose driver is stopped inside, and which is connected once more."""
    story.entry("Start")
    story.entry("Start", BLOCK, EfiStatus.SUCCESS, CHILD, None)
    with (
        story.entry("Stop", BUS, EfiStatus.DEVICE_ERROR, CONTROLLER, (CHILD,)),
        story.service("UninstallProtocolInterface", BUS, EfiStatus.ACCESS_DENIED),
    ):
        story.entry("Stop", BLOCK, EfiStatus.SUCCESS, CHILD, ())
        story.entry("Start", BLOCK, EfiStatus.SUCCESS, CHILD, None)


@pair("start-stop/stop-reentered/XenBusDxe/Stop", _stop_of_the_child_inside_the_bus)
def _stop_disconnects_its_own_controller(story: Story) -> None:
    story.entry("Start")
    with story.entry("Stop", BUS, EfiStatus.SUCCESS, CONTROLLER, (CHILD,)), story.service("DisconnectController"):
        story.entry("Stop", BUS, EfiStatus.DEVICE_ERROR, CONTROLLER, (CHILD,))


@pair("start-stop/start-during-stop/XenPvBlkDxe/ConnectController", _stop_of_the_child_inside_the_bus)
def _stop_connects_its_own_controller(story: Story) -> None:
    story.entry("Start", BLOCK)
    with story.entry("Stop", BLOCK), story.service("ConnectController", BLOCK):
        story.entry("Start", BUS, EfiStatus.UNSUPPORTED)


def _loader_disconnects_before_it_exits(story: Story) -> None:
    """What is stopped before the exit is stopped in time; what a third party stops in it is not the driver's doing."""
    for controller in (CONTROLLER, CHILD):
        story.entry("Start", BLOCK, EfiStatus.SUCCESS, controller, None)
    with story.service("DisconnectController", LOADER):
        story.entry("Stop", BLOCK)
    with story.exit(), story.notification("third-party"), story.service("DisconnectController", "third-party"):
        story.entry("Stop", BLOCK, EfiStatus.SUCCESS, CHILD, ())


@pair("start-stop/stop-during-exit/XenBusDxe/Stop", _loader_disconnects_before_it_exits)
def _bus_stops_a_device_in_its_notification(story: Story) -> None:
    story.entry("Start", BLOCK)
    with story.exit(), story.notification(), story.service("LocateProtocol"):
        story.entry("Stop", BLOCK)


def _loaded_again(story: Story) -> None:
    """The core asks the driver of the image that was loaded afterwards, and of one whose Unload was refused."""
    story.entry("Unload")
    story.service("LoadImage", LOADER, EfiStatus.SUCCESS, BUS)
    story.entry("Supported")
    story.entry("Unload", BLOCK, EfiStatus.ACCESS_DENIED)
    story.entry("Supported", BLOCK)


@pair("start-stop/entered-after-unload/XenBusDxe/Supported", _loaded_again)
def _binding_left_behind(story: Story) -> None:
    story.entry("Unload")
    story.entry("Supported")
    story.entry("Start", BUS, EfiStatus.DEVICE_ERROR)


# ---- memory ownership ---------------------------------------------------------------------------------------------


def _buffer_that_is_handed_over(story: Story) -> None:
    """DevicePathDxe allocates a path while the bus's Start runs, and the bus frees it; pages are freed in two parts."""
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePool", "DevicePathDxe")
        story.service("AllocatePages")
        story.service("FreePages", BUS, EfiStatus.SUCCESS, PAGES + 4096, 1)
        story.service("FreePages", BUS, EfiStatus.SUCCESS, PAGES, 1)
        with story.service("FreePool"):
            story.misuse("foreign-free", BUS, "DevicePathDxe")


@pair("memory-ownership/leak/XenBusDxe/Start-AllocatePages", _buffer_that_is_handed_over)
def _failed_start_frees_half(story: Story) -> None:
    with story.entry("Start", BUS, EfiStatus.DEVICE_ERROR):
        story.service("AllocatePages")
        story.service("FreePages", BUS, EfiStatus.SUCCESS, PAGES + 4096, 1)


@pair("memory-ownership/double-free/XenBusDxe/Stop", _buffer_that_is_handed_over)
def _stop_frees_twice(story: Story) -> None:
    with story.entry("Start"):
        story.service("AllocatePool")
    with story.entry("Stop"):
        story.service("FreePool")
        with story.service("FreePool", BUS, EfiStatus.INVALID_PARAMETER):
            story.misuse("double-free")


@pair("memory-ownership/foreign-free/XenPvBlkDxe/Stop", _buffer_that_is_handed_over)
def _stop_frees_what_belongs_to_the_bus(story: Story) -> None:
    with story.entry("Start"):
        story.service("AllocatePool")
    story.entry("Start", BLOCK)
    with story.entry("Stop", BLOCK), story.service("FreePool", BLOCK):
        story.misuse("foreign-free", BLOCK, BUS)


def _environment_uses_its_own(story: Story) -> None:
    """What the core or the loader does to memory of their own is no driver's fault."""
    story.misuse("use-after-free", "DxeCore", LOADER)
    story.misuse("overrun", LOADER, LOADER)


@pair("memory-ownership/use-after-free/XenBusDxe/Notify", _environment_uses_its_own)
def _notification_uses_freed_memory(story: Story) -> None:
    with story.notification():
        story.misuse("use-after-free")


@pair("memory-ownership/overrun/XenBusDxe/driver", _environment_uses_its_own)
def _writes_too_much(story: Story) -> None:
    story.misuse("overrun")


# ---- waiting ------------------------------------------------------------------------------------------------------


def _patient_notification(story: Story) -> None:
    """A few polls of a timer, some stalls at TPL_CALLBACK, a spin at TPL_NOTIFY; then the run simply is at its end."""
    story.service("SetTimer")
    with story.exit(), story.notification():
        for _ in range(16):
            story.service("CheckEvent", BUS, EfiStatus.NOT_READY)
        story.service("Stall", BUS, EfiStatus.SUCCESS, 100_000)
        with story.at(Tpl.NOTIFY):
            story.service("Stall", BUS, EfiStatus.SUCCESS, 1_000)
    with story.notification(BLOCK):
        story.stuck("step-budget", BLOCK, "AllocatePool")


@pair("waiting/no-progress/XenBusDxe/WaitForEvent", _patient_notification)
def _waits_for_nobody(story: Story) -> None:
    with story.entry("Start", BUS, None), story.service("WaitForEvent", BUS, None):
        story.stuck("no-progress", BUS, "WaitForEvent")


@pair("waiting/unbounded-poll/XenBusDxe/Start", _patient_notification)
def _polls_for_ever(story: Story) -> None:
    with story.entry("Start", BUS, None):
        for _ in range(9):
            story.service("Stall")
        with story.service("Stall", BUS, None):
            story.stuck("step-budget", BUS, "Stall")


@pair("waiting/nesting/XenBusDxe/SignalEvent", _patient_notification)
def _nests(story: Story) -> None:
    with story.entry("Notify", BUS, None), story.service("SignalEvent", BUS, None):
        story.stuck("nesting", BUS, "SignalEvent")


@pair("waiting/blocks-at-notify/XenBusDxe/Stall", _patient_notification)
def _stalls_at_notify(story: Story) -> None:
    with story.notification(tpl=Tpl.NOTIFY):
        story.service("Stall", BUS, EfiStatus.SUCCESS, 1_001)


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
    """A run that ends for another reason has no fault in it: here the firmware itself waits for nobody."""
    story.add(Kind.STUCK, LOADER, "no-progress", ("WaitForEvent",))


def _fault(kind: str, address: int, *frames: str, detail: str | None = None) -> Telling:
    def tell(story: Story) -> None:
        with story.entry("Start"):
            story.service("AllocatePool", BUS, EfiStatus.OUT_OF_RESOURCES)
            story.add(Kind.FAULT, BUS, kind, (address, *frames), None, detail)

    return tell


_COPIES_TO_NULL = _fault("write", 0x28, "XenBusDxe+0x3315 (leaf)", "XenBusDxe+0x1ad6", "XenBusDxe+0x1b73")

PAIRS |= {
    "guest-fault/null-pointer/XenBusDxe/XenBusDxe+0x1ad6": (_COPIES_TO_NULL, _ends_before_its_operations_do),
    "guest-fault/access/XenBusDxe/XenBusDxe+0x489": (
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


def _debug_port(story: Story) -> None:
    with story.entry("Start"):
        pass  # a port that somebody answers at leaves no record


@pair("guest-fault/stray-port/XenBusDxe/XenBusDxe+0x80", _debug_port)
def _uses_a_port_of_nobody(story: Story) -> None:
    with story.entry("Start"):
        story.add(Kind.STRAY, BUS, "in", (0x510, "XenBusDxe+0x80 [MyReadPort+0x4]", "XenBusDxe+0x90"))


@pair("guest-fault/crash/emulator/connect", _ends_before_its_operations_do)
def _brings_the_emulator_down(story: Story) -> None:
    story.add(Kind.FAULT, "emulator", "crash", (0, "connect"), None, "SIGSEGV")


@pair("guest-fault/dead-loop/XenBusDxe/Start", _ends_before_its_operations_do)
def _turns_in_a_loop(story: Story) -> None:
    with story.entry("Start", status=None):
        story.add(Kind.STUCK, BUS, "dead-loop", ("XenBusDxe+0x80", "XenBusDxe+0x90"))
