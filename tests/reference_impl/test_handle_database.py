"""What the probe on real firmware does not show of the handle database: memory, roll-backs, notifications, side effects."""

from __future__ import annotations

from typing import Any

import pytest

from reference_impl.trace import Kind, StepBudgetExceeded
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA, BY_CHILD_CONTROLLER, BY_DRIVER, EXCLUSIVE, GET_PROTOCOL
from reference_impl.uefi.handle_database import (
    ALL_HANDLES,
    BY_PROTOCOL,
    BY_REGISTER_NOTIFY,
    CORE_HANDLE,
    HANDLE_SIZE_BYTES,
    INSTANCE_SIZE_BYTES,
    OPEN_RECORD_SIZE_BYTES,
    RefusalWithValue,
)
from reference_impl.uefi.status import EfiError, EfiStatus

P1, P2, P3 = (f"00000000-0000-0000-0000-00000000000{number}" for number in (1, 2, 3))
IF1, IF2, IF3 = 0x1001, 0x1002, 0x1003
NATIVE = 0


def refusal(service: Any, *arguments: Any) -> EfiStatus:
    """The status with which a service refuses."""
    with pytest.raises(EfiError) as caught:
        service(*arguments)
    return caught.value.status


def core_memory(core: Core, start: int = 0) -> list[tuple[str, str, int]]:
    """(service, "allocate" or "free", size) of what the core did for itself since record `start`."""
    return [
        (record[5], record[6][0], record[6][1])
        for record in core.trace.records[start:]
        if record[0] == Kind.CORE_MEMORY
    ]


def buffers(core: Core) -> int:
    """How many buffers the core holds for itself."""
    return core.memory.live_count("DxeCore")


@pytest.fixture
def refuse_allocation(core: Core, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with n: the n-th allocation of pool from then on is refused, and only that."""
    allocate = type(core.memory).allocate_pool
    countdown = [0]

    def refusing(self: Any, memory_type: int, size_bytes: int, owner: str) -> int:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise EfiError(EfiStatus.OUT_OF_RESOURCES)
        return allocate(self, memory_type, size_bytes, owner)

    monkeypatch.setattr(type(core.memory), "allocate_pool", refusing)

    def arm(nth: int) -> None:
        countdown[0] = nth

    return arm


class ManagingDriver:
    """A driver binding that opens P1 BY_DRIVER where it is started; tests say what its Stop does."""

    def __init__(self, core: Core, agent: str = "Driver", version: int = 1) -> None:
        self.agent = agent
        self.version = version
        self.image_handle = self.driver_binding_handle = 0
        core.handles.setup_driver(agent, self)
        self.services = BootServices(core, agent, self.image_handle)
        self.on_stop: Any = self.let_go

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Only where P1 can be managed."""
        self.start(controller, remaining_device_path)
        self.let_go(controller)

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Manage P1."""
        self.services.open_protocol(controller, P1, self.driver_binding_handle, controller, BY_DRIVER)

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Do what the test wants."""
        self.on_stop(controller)

    def let_go(self, controller: int) -> None:
        """Close P1 again."""
        self.services.close_protocol(controller, P1, self.driver_binding_handle, controller)


# ---- handles -----------------------------------------------------------------------------------------------------------


def test_handles_are_numbered_upwards_and_never_used_again(boot_services: BootServices) -> None:
    """A handle that has gone stays gone: the next one has a number of its own."""
    first = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.uninstall_protocol_interface(first, P1, IF1)
    assert boot_services.install_protocol_interface(0, P1, NATIVE, IF1) == first + 1


def test_a_new_core_has_one_handle_and_no_records(core: Core) -> None:
    """The firmware's own image is there from the start; making it leaves nothing in the trace."""
    assert list(core.handles.handles) == [CORE_HANDLE]
    assert core.trace.records == []


def test_an_installed_protocol_takes_the_memory_that_its_removal_gives_back(
    core: Core, boot_services: BootServices
) -> None:
    """Handle and interface record are allocated and freed; the entry of a protocol stays for ever."""
    boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    before, start = buffers(core), len(core.trace.records)
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    install = "InstallProtocolInterface"
    assert core_memory(core, start) == [
        (install, "allocate", INSTANCE_SIZE_BYTES),
        (install, "allocate", HANDLE_SIZE_BYTES),
    ]
    start = len(core.trace.records)
    boot_services.uninstall_protocol_interface(handle, P1, IF1)
    assert core_memory(core, start) == [("UninstallProtocolInterface", "free", 0)] * 2
    assert buffers(core) == before


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_refused_allocation_installs_nothing(
    core: Core, boot_services: BootServices, refuse_allocation: Any, nth: int
) -> None:
    """Whichever record the core cannot get, the handle database stays as it was."""
    before = buffers(core)
    refuse_allocation(nth)
    assert refusal(boot_services.install_protocol_interface, 0, P1, NATIVE, IF1) == EfiStatus.OUT_OF_RESOURCES
    assert list(core.handles.handles) == [CORE_HANDLE]
    assert core.handles.handles_with(P1) == []
    assert core.trace.tpl == 4
    assert buffers(core) - before == (1 if nth > 1 else 0), "only the protocol's entry may stay"


def test_a_refused_allocation_installs_none_of_several(
    core: Core, boot_services: BootServices, refuse_allocation: Any
) -> None:
    """InstallMultiple removes what it had installed before the core ran out of memory."""
    refuse_allocation(5)
    pairs = ((P1, IF1), (P2, IF2))
    assert refusal(boot_services.install_multiple_protocol_interfaces, 0, *pairs) == EfiStatus.OUT_OF_RESOURCES
    assert list(core.handles.handles) == [CORE_HANDLE]
    assert core.trace.tpl == 4


def test_a_null_guid_ends_the_list(core: Core, boot_services: BootServices) -> None:
    """What stands behind a null GUID is not looked at, as in a C argument list."""
    handle = boot_services.install_multiple_protocol_interfaces(0, (P1, IF1), ("", 0), (P2, IF2))
    assert core.handles.interface_of(handle, P2) is None
    boot_services.uninstall_multiple_protocol_interfaces(handle, ("", 0), (P1, IF1))
    assert core.handles.interface_of(handle, P1) == IF1


def test_missing_guids_are_refused(boot_services: BootServices) -> None:
    """Services that take one protocol refuse a null GUID before they look at the handle."""
    assert refusal(boot_services.uninstall_protocol_interface, 0, "", IF1) == EfiStatus.INVALID_PARAMETER
    assert refusal(boot_services.reinstall_protocol_interface, 0, "", IF1, IF2) == EfiStatus.INVALID_PARAMETER


def test_reinstall_refuses_what_is_no_handle(boot_services: BootServices) -> None:
    """The handle is checked before the protocol."""
    assert refusal(boot_services.reinstall_protocol_interface, 77, P1, IF1, IF2) == EfiStatus.INVALID_PARAMETER


# ---- device paths ------------------------------------------------------------------------------------------------------


def test_the_same_device_path_by_address_is_installed_already(boot_services: BootServices) -> None:
    """Two device paths at one address are equal, even where the core does not know their bytes."""
    pair = (guids.DEVICE_PATH_PROTOCOL, IF1)
    boot_services.install_multiple_protocol_interfaces(0, pair)
    assert refusal(boot_services.install_multiple_protocol_interfaces, 0, pair) == EfiStatus.ALREADY_STARTED


def test_other_device_paths_can_be_installed(core: Core, boot_services: BootServices) -> None:
    """Different bytes, unknown bytes, an object that is no bytes, and no device path at all are all different."""
    for index, item in enumerate((b"\x01", b"\x02", "no bytes")):
        core.place(IF1 + index, item)
    interfaces = (IF1, IF1 + 1, IF1 + 2, IF1 + 3, 0, 0)
    for interface in interfaces:
        boot_services.install_multiple_protocol_interfaces(0, (guids.DEVICE_PATH_PROTOCOL, interface))
    assert len(core.handles.handles_with(guids.DEVICE_PATH_PROTOCOL)) == len(interfaces)


def test_an_equal_device_path_takes_back_what_was_installed_before_it(core: Core, boot_services: BootServices) -> None:
    """The protocols before the device path go again, and with them the new handle."""
    core.place(IF1, b"\x01")
    core.place(IF2, b"\x01")
    boot_services.install_multiple_protocol_interfaces(0, (guids.DEVICE_PATH_PROTOCOL, IF1))
    handles = list(core.handles.handles)
    pairs = ((P1, IF3), (guids.DEVICE_PATH_PROTOCOL, IF2))
    assert refusal(boot_services.install_multiple_protocol_interfaces, 0, *pairs) == EfiStatus.ALREADY_STARTED
    assert list(core.handles.handles) == handles


# ---- opening and closing -------------------------------------------------------------------------------------------------


def test_only_a_new_open_allocates_a_record(core: Core, boot_services: BootServices) -> None:
    """An exact duplicate is counted; closing frees the one record that stands for both."""
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    start = len(core.trace.records)
    for _ in range(2):
        boot_services.open_protocol(handle, P1, handle, handle, GET_PROTOCOL)
    assert core_memory(core, start) == [("OpenProtocol", "allocate", OPEN_RECORD_SIZE_BYTES)]
    start = len(core.trace.records)
    boot_services.close_protocol(handle, P1, handle, handle)
    assert core_memory(core, start) == [("CloseProtocol", "free", 0)]


def test_a_refused_allocation_opens_nothing(core: Core, boot_services: BootServices, refuse_allocation: Any) -> None:
    """Without memory for the record there is no open."""
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    refuse_allocation(1)
    arguments = (handle, P1, handle, handle, BY_DRIVER)
    assert refusal(boot_services.open_protocol, *arguments) == EfiStatus.OUT_OF_RESOURCES
    assert core.handles.open_records(handle, P1) == ()
    assert core.trace.tpl == 4
    assert boot_services.open_protocol(*arguments) == IF1


def test_already_started_gives_the_interface(boot_services: BootServices) -> None:
    """A bus driver that opens BY_DRIVER again goes on with the interface it gets."""
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.open_protocol(handle, P1, handle, handle, BY_DRIVER)
    with pytest.raises(RefusalWithValue) as caught:
        boot_services.open_protocol(handle, P1, handle, handle, BY_DRIVER)
    assert (caught.value.status, caught.value.value) == (EfiStatus.ALREADY_STARTED, IF1)


@pytest.mark.parametrize("attributes", [EXCLUSIVE, EXCLUSIVE | BY_DRIVER])
def test_an_exclusive_open_disconnects_the_driver(core: Core, boot_services: BootServices, attributes: int) -> None:
    """The driver that manages the protocol is stopped; then the open succeeds."""
    ManagingDriver(core)
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.connect_controller(handle)
    assert boot_services.open_protocol(handle, P1, handle, handle, attributes) == IF1
    assert core.handles.open_records(handle, P1) == ((handle, handle, attributes, 1),)


def test_an_exclusive_open_is_denied_where_the_driver_stays(core: Core, boot_services: BootServices) -> None:
    """A Stop that fails keeps the driver's open and refuses the exclusive one."""
    driver = ManagingDriver(core)
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.connect_controller(handle)

    def fail(controller: int) -> None:
        raise EfiError(EfiStatus.DEVICE_ERROR)

    driver.on_stop = fail
    assert refusal(boot_services.open_protocol, handle, P1, handle, 0, EXCLUSIVE) == EfiStatus.ACCESS_DENIED
    assert core.handles.open_records(handle, P1) == ((driver.driver_binding_handle, handle, BY_DRIVER, 1),)


def test_a_stop_that_lies_uses_up_the_step_budget(core: Core, boot_services: BootServices) -> None:
    """A driver that answers success and goes on managing is stopped again and again; the run ends and names it."""
    driver = ManagingDriver(core, "Liar")
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.connect_controller(handle)
    driver.on_stop = lambda controller: None
    core.step_budget = 200
    with pytest.raises(StepBudgetExceeded):
        boot_services.open_protocol(handle, P1, handle, 0, EXCLUSIVE)
    assert core.trace.records[-1][:2] == (Kind.STUCK, "Liar")


def test_a_driver_may_take_the_protocol_away_with_itself(core: Core, boot_services: BootServices) -> None:
    """Where Stop removes the protocol that was to be opened or uninstalled, there is nothing left to do it to."""
    driver = ManagingDriver(core)
    services = driver.services

    def take_away(controller: int) -> None:
        driver.let_go(controller)
        services.uninstall_protocol_interface(controller, P1, IF1)

    driver.on_stop = take_away
    handle = boot_services.install_multiple_protocol_interfaces(0, (P1, IF1), (P2, IF2))
    boot_services.connect_controller(handle)
    assert refusal(boot_services.open_protocol, handle, P1, handle, 0, EXCLUSIVE) == EfiStatus.UNSUPPORTED
    boot_services.install_protocol_interface(handle, P1, NATIVE, IF1)
    boot_services.connect_controller(handle)
    assert refusal(boot_services.uninstall_protocol_interface, handle, P1, IF1) == EfiStatus.NOT_FOUND
    assert core.handles.interface_of(handle, P2) == IF2


# ---- uninstalling what is open --------------------------------------------------------------------------------------------


def test_uninstall_disconnects_the_driver(core: Core, boot_services: BootServices) -> None:
    """A protocol that only a driver holds goes, after the driver has been stopped."""
    driver = ManagingDriver(core)
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.connect_controller(handle)
    start = len(core.trace.records)
    boot_services.uninstall_protocol_interface(handle, P1, IF1)
    entered = [record[5] for record in core.trace.records[start:] if record[0] == Kind.ENTRY]
    assert entered == ["Stop"]
    assert handle not in core.handles.handles
    assert driver.driver_binding_handle in core.handles.handles


def test_uninstall_that_is_denied_connects_again(core: Core, boot_services: BootServices) -> None:
    """Where something else keeps the protocol, the drivers that had to go come back."""
    driver = ManagingDriver(core)
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.connect_controller(handle)
    boot_services.open_protocol(handle, P1, handle, CORE_HANDLE, BY_CHILD_CONTROLLER)
    boot_services.open_protocol(handle, P1, handle, 0, GET_PROTOCOL)
    assert refusal(boot_services.uninstall_protocol_interface, handle, P1, IF1) == EfiStatus.ACCESS_DENIED
    assert core.handles.open_records(handle, P1) == (
        (handle, CORE_HANDLE, BY_CHILD_CONTROLLER, 1),
        (driver.driver_binding_handle, handle, BY_DRIVER, 1),
    )


def test_reinstall_connects_the_driver_to_the_new_interface(core: Core, boot_services: BootServices) -> None:
    """The driver is stopped on the old interface, started on the new one, and then who waits is told."""
    driver = ManagingDriver(core)
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.connect_controller(handle)
    seen = []
    event = boot_services.create_event(
        0x200, 8, lambda event, context: seen.append(core.handles.open_records(handle, P1)), None
    )
    boot_services.register_protocol_notify(P1, event)
    boot_services.reinstall_protocol_interface(handle, P1, IF1, IF2)
    managed = ((driver.driver_binding_handle, handle, BY_DRIVER, 1),)
    assert core.handles.interface_of(handle, P1) == IF2
    assert seen == [managed]


# ---- buffers for the caller ----------------------------------------------------------------------------------------------


def test_a_result_buffer_belongs_to_the_caller(core: Core, boot_services: BootServices) -> None:
    """The core allocates it, in the caller's name; the caller frees it, and nothing counts as misuse."""
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    results = {
        "OpenProtocolInformation": lambda: boot_services.open_protocol_information(handle, P1),
        "LocateHandleBuffer": lambda: boot_services.locate_handle_buffer(ALL_HANDLES),
        "ProtocolsPerHandle": lambda: boot_services.protocols_per_handle(handle),
    }
    sizes = {"OpenProtocolInformation": 24, "LocateHandleBuffer": 16, "ProtocolsPerHandle": 8}
    for name, service in results.items():
        start = len(core.trace.records)
        address, _ = service()
        assert core_memory(core, start) == [(name, "allocate", sizes[name])]
        assert core.memory.owner_of(address) == boot_services.agent
        boot_services.free_pool(address)
    assert not any(record[0] == Kind.MEMORY for record in core.trace.records)


def test_a_refused_result_buffer_changes_nothing(
    core: Core, boot_services: BootServices, refuse_allocation: Any
) -> None:
    """Without memory for the buffer the service refuses, and a registration does not go on."""
    event = boot_services.create_event(0, 0, None)
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    key = boot_services.register_protocol_notify(P1, event)
    for service, arguments in (
        (boot_services.open_protocol_information, (handle, P1)),
        (boot_services.protocols_per_handle, (handle,)),
        (boot_services.locate_handle_buffer, (BY_REGISTER_NOTIFY, "", key)),
    ):
        refuse_allocation(1)
        assert refusal(service, *arguments) == EfiStatus.OUT_OF_RESOURCES
    assert core.trace.tpl == 4
    _, handles = boot_services.locate_handle_buffer(BY_REGISTER_NOTIFY, "", key)
    assert handles == (handle,)


def test_results_without_a_place_to_go_are_refused(boot_services: BootServices) -> None:
    """A null out pointer is refused before anything is allocated."""
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    refused = EfiStatus.INVALID_PARAMETER
    assert refusal(boot_services.protocols_per_handle, handle, False) == refused
    assert refusal(boot_services.protocols_per_handle, 77) == refused
    assert refusal(boot_services.locate_handle_buffer, ALL_HANDLES, "", 0, False) == refused
    assert refusal(boot_services.locate_handle, ALL_HANDLES, "", 0, None) == refused


# ---- registrations ---------------------------------------------------------------------------------------------------------


def test_an_unknown_registration_is_refused(boot_services: BootServices) -> None:
    """A key that the core never gave out finds nothing, instead of whatever stands at that address."""
    assert refusal(boot_services.locate_handle_buffer, BY_REGISTER_NOTIFY, "", 77) == EfiStatus.INVALID_PARAMETER
    assert refusal(boot_services.locate_protocol, P1, 77) == EfiStatus.INVALID_PARAMETER


def test_a_refused_registration_leaves_nothing(core: Core, boot_services: BootServices, refuse_allocation: Any) -> None:
    """Without memory for its record the event is not registered."""
    event = boot_services.create_event(0, 0, None)
    refuse_allocation(2)
    assert refusal(boot_services.register_protocol_notify, P1, event) == EfiStatus.OUT_OF_RESOURCES
    assert core.handles.registrations == {}
    assert core.trace.tpl == 4


def test_closing_an_event_frees_its_registrations(core: Core, boot_services: BootServices) -> None:
    """Every registration of the event goes with it, and no other."""
    kept, closed = (boot_services.create_event(0, 0, None) for _ in range(2))
    boot_services.register_protocol_notify(P1, kept)
    before = buffers(core)
    boot_services.register_protocol_notify(P1, closed)
    boot_services.register_protocol_notify(P1, closed)
    boot_services.close_event(closed)
    assert [registration.event for registration in core.handles.registrations.values()] == [kept]
    assert buffers(core) == before - 1, "the event's own record goes, too"
    boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    assert boot_services.check_event(kept) is None


def test_notifications_of_several_installations_wait_for_the_last(core: Core, boot_services: BootServices) -> None:
    """InstallMultiple holds TPL_NOTIFY: who is told of the first protocol already sees the last."""
    seen = []

    def look(event: int, context: Any) -> None:
        newest = core.handles.handles_with(P1)[-1]
        seen.append((core.handles.interface_of(newest, P2), core.trace.tpl))

    for tpl in (8, 16):
        boot_services.register_protocol_notify(P1, boot_services.create_event(0x200, tpl, look))
    boot_services.install_multiple_protocol_interfaces(0, (P1, IF1), (P2, IF2))
    assert seen == [(IF2, 16), (IF2, 8)]


def test_notifications_wait_while_the_caller_holds_a_high_tpl(boot_services: BootServices) -> None:
    """Installing above TPL_NOTIFY neither lowers the TPL nor runs anything."""
    seen = []
    event = boot_services.create_event(0x200, 16, lambda event, context: seen.append("told"))
    boot_services.register_protocol_notify(P1, event)
    tpl = boot_services.raise_tpl(31)
    boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    assert (seen, boot_services.core.trace.tpl) == ([], 31)
    boot_services.restore_tpl(tpl)
    assert seen == ["told"]


def test_a_notification_inside_an_allocation_finds_the_database_whole(core: Core, boot_services: BootServices) -> None:
    """An allocation of the core that moves the map key tells its listeners only after the change it was made for."""
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    group = guids.EVENT_GROUP_MEMORY_MAP_CHANGE
    seen = []

    def look(event: int, context: Any) -> None:
        seen.append(len(core.handles.open_records(handle, P1)))

    boot_services.create_event_ex(0x200, 8, look, None, group)
    for controller in range(100):
        boot_services.open_protocol(handle, P1, handle, controller, GET_PROTOCOL)
        if seen:
            break
    assert seen == [controller + 1]


# ---- looking ---------------------------------------------------------------------------------------------------------------


def test_looking_at_what_is_not_there(core: Core) -> None:
    """The core's own questions answer None or nothing, and record nothing."""
    database = core.handles
    assert database.interface_of(77, P1) is None
    assert database.open_records(CORE_HANDLE, P1) == ()
    assert database.handles_with(P1) == []
    assert database.core_opens(CORE_HANDLE, P1) == 0
    assert database.loaded_image(CORE_HANDLE) is None
    assert core.trace.records == []


def test_a_protocol_without_instances_is_not_found(boot_services: BootServices) -> None:
    """A protocol that was installed once and has gone is as unknown as one that never was."""
    handle = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.uninstall_protocol_interface(handle, P1, IF1)
    assert refusal(boot_services.locate_protocol, P1) == EfiStatus.NOT_FOUND
    assert refusal(boot_services.locate_handle_buffer, BY_PROTOCOL, P1) == EfiStatus.NOT_FOUND


def test_buffers_are_boot_services_data(core: Core, boot_services: BootServices) -> None:
    """A caller's result buffer comes from the pool that the caller itself gets for boot services data."""
    address, _ = boot_services.locate_handle_buffer(ALL_HANDLES)
    own = boot_services.allocate_pool(BOOT_SERVICES_DATA, 8)
    assert core.memory.owner_of(address) == core.memory.owner_of(own)
