"""ConnectController, DisconnectController and images, with drivers that do as the test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reference_impl.trace import Kind, StepBudgetExceeded
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import BY_CHILD_CONTROLLER, BY_DRIVER, EXCLUSIVE, GET_PROTOCOL
from reference_impl.uefi.driver_binding import MAX_DEPTH
from reference_impl.uefi.handle_database import CORE_HANDLE
from reference_impl.uefi.status import EfiError, EfiStatus

P1, P2 = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
IF1, IF2 = 0x1001, 0x1002
NATIVE = 0
END_OF_DEVICE_PATH = b"\x7f\xff\x04\x00"

Behaviour = Callable[..., None]


def refuse(status: EfiStatus) -> Behaviour:
    """A driver function that only refuses."""

    def refusing(*arguments: Any) -> None:
        raise EfiError(status)

    return refusing


class Driver:
    """A driver binding that manages `protocol` BY_DRIVER and creates as many children as it is told.

    Its functions can be replaced one by one.
    """

    def __init__(
        self, core: Core, agent: str, version: int = 1, protocol: str = P1, child_count: int = 0, install: bool = True
    ) -> None:
        self.agent = agent
        self.version = version
        self.image_handle = self.driver_binding_handle = 0
        self.protocol = protocol
        self.child_count = child_count
        self.children: list[int] = []
        self.supported: Behaviour = self.can_open
        self.start: Behaviour = self.manage
        self.stop: Behaviour = self.let_go
        self.core = core
        if install:
            core.handles.setup_driver(agent, self)
        self.services = BootServices(core, agent, self.image_handle)

    def can_open(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Whether the protocol can be managed now."""
        self._open(controller, BY_DRIVER)
        self.services.close_protocol(controller, self.protocol, self.driver_binding_handle, controller)

    def manage(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Open the protocol and create the children, each with P2."""
        self._open(controller, BY_DRIVER)
        for _ in range(self.child_count):
            child = self.services.install_protocol_interface(0, P2, NATIVE, IF2)
            self.services.open_protocol(
                controller, self.protocol, self.driver_binding_handle, child, BY_CHILD_CONTROLLER
            )
            self.children.append(child)

    def let_go(self, controller: int, children: tuple[int, ...]) -> None:
        """Destroy children, or close the protocol."""
        for child in children:
            self.services.close_protocol(controller, self.protocol, self.driver_binding_handle, child)
            self.services.uninstall_protocol_interface(child, P2, IF2)
        if not children:
            self.services.close_protocol(controller, self.protocol, self.driver_binding_handle, controller)

    def _open(self, controller: int, attributes: int) -> None:
        self.services.open_protocol(controller, self.protocol, self.driver_binding_handle, controller, attributes)


def entered(core: Core, *names: str) -> list[str]:
    """`agent.Entry` of all that was entered, or only of the entry points with these names."""
    return [
        f"{record[1]}.{record[5]}"
        for record in core.trace.records
        if record[0] == Kind.ENTRY and (not names or record[5] in names)
    ]


def core_memory(core: Core, service: str) -> list[str]:
    """What the core allocated and freed inside one service, in order."""
    return [record[6][0] for record in core.trace.records if record[0] == Kind.CORE_MEMORY and record[5] == service]


def status_of(service: Callable[..., object], *arguments: Any) -> str:
    """The name of the status that a service answers."""
    try:
        service(*arguments)
    except EfiError as error:
        return error.status.name
    return "SUCCESS"


@pytest.fixture
def controller(boot_services: BootServices) -> int:
    """A handle with P1, and no driver on it."""
    return boot_services.install_protocol_interface(0, P1, NATIVE, IF1)


@pytest.fixture
def allocation_refusals(core: Core, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
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


# ---- ConnectController -----------------------------------------------------------------------------------------------------


def test_connect_needs_a_controller_and_a_driver(boot_services: BootServices, controller: int) -> None:
    """What is no handle is refused; without any driver binding nothing is found."""
    assert status_of(boot_services.connect_controller, 77) == "INVALID_PARAMETER"
    assert status_of(boot_services.connect_controller, controller) == "NOT_FOUND"


def test_the_first_driver_that_supports_the_controller_is_started(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """Higher versions are asked first, and after each start the others are asked again."""
    Driver(core, "Old", 1)
    Driver(core, "New", 3)
    Driver(core, "Unfit", 5).supported = refuse(EfiStatus.UNSUPPORTED)
    boot_services.connect_controller(controller)
    assert entered(core) == [
        "Unfit.Supported",
        "New.Supported",
        "New.Start",
        "Unfit.Supported",
        "Old.Supported",
    ]


def test_a_driver_whose_start_fails_is_not_asked_again(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """It is taken off the list; the next one gets the controller."""
    Driver(core, "Old", 1)
    Driver(core, "Failing", 2).start = refuse(EfiStatus.DEVICE_ERROR)
    boot_services.connect_controller(controller)
    assert entered(core) == ["Failing.Supported", "Failing.Start", "Old.Supported", "Old.Start"]


def test_no_driver_that_starts_is_not_found(core: Core, boot_services: BootServices, controller: int) -> None:
    """A failing Start alone is EFI_NOT_FOUND, and the driver's own status is lost."""
    Driver(core, "Failing").start = refuse(EfiStatus.DEVICE_ERROR)
    assert status_of(boot_services.connect_controller, controller) == "NOT_FOUND"


def test_an_end_node_alone_is_success(core: Core, boot_services: BootServices, controller: int) -> None:
    """With an end node as remaining device path it is right that nothing starts; with another path it is not."""
    driver = Driver(core, "Unfit")
    seen = []

    def supported(controller: int, remaining_device_path: bytes | None) -> None:
        seen.append(remaining_device_path)
        raise EfiError(EfiStatus.UNSUPPORTED)

    driver.supported = supported
    other_path = b"\x01\x01\x06\x00\x00\x01" + END_OF_DEVICE_PATH
    assert status_of(boot_services.connect_controller, controller, (), END_OF_DEVICE_PATH) == "SUCCESS"
    assert status_of(boot_services.connect_controller, controller, (), other_path) == "NOT_FOUND"
    assert seen == [END_OF_DEVICE_PATH, other_path]
    assert core_memory(core, "ConnectController") == [
        *("allocate", "allocate", "allocate", "free", "free"),  # copy of the path, candidates, the core's own open
        *("allocate", "allocate", "free", "free"),
    ]


def test_equal_versions_are_sorted_as_edk2_does(core: Core, boot_services: BootServices, controller: int) -> None:
    """Selection by exchange puts the first behind the second where a third one has a higher version."""
    for agent, version in (("A", 1), ("B", 1), ("C", 2)):
        Driver(core, agent, version).supported = refuse(EfiStatus.UNSUPPORTED)
    status_of(boot_services.connect_controller, controller)
    assert entered(core) == ["C.Supported", "B.Supported", "A.Supported"]


def test_the_callers_drivers_come_first(core: Core, boot_services: BootServices, controller: int) -> None:
    """The caller's order counts, not the version; handles without driver binding are passed over, and nobody is asked twice."""
    drivers = [Driver(core, agent, version) for agent, version in (("A", 1), ("B", 2), ("C", 3))]
    for driver in drivers:
        driver.supported = refuse(EfiStatus.UNSUPPORTED)
    a, b, _ = (driver.driver_binding_handle for driver in drivers)
    status_of(boot_services.connect_controller, controller, (77, controller, a, b, a))
    assert entered(core) == ["A.Supported", "B.Supported", "C.Supported"]


class Override:
    """A driver override protocol that names images in order, or has a version."""

    agent = "Platform"

    def __init__(self, *images: int, version: int = 0) -> None:
        self.images = images
        self.version = version
        self.asked: list[tuple[int, ...]] = []

    def get_driver(self, *arguments: int) -> int:
        """The image after the last one."""
        self.asked.append(arguments)
        last = arguments[-1]
        following = self.images[self.images.index(last) + 1 :] if last else self.images
        if not following:
            raise EfiError(EfiStatus.NOT_FOUND)
        return following[0]

    def get_version(self) -> int:
        """The version of a family override."""
        return self.version


def test_overrides_come_before_the_version(core: Core, boot_services: BootServices, controller: int) -> None:
    """The order is: caller, platform, family (highest first), bus, and the rest."""
    names = ("Named", "Platform1", "Platform2", "Family1", "Family2", "Bus", "Rest")
    drivers = {name: Driver(core, name, version) for version, name in enumerate(names)}
    for driver in drivers.values():
        driver.supported = refuse(EfiStatus.UNSUPPORTED)
    handle = {name: driver.driver_binding_handle for name, driver in drivers.items()}
    platform = Override(handle["Platform2"], handle["Platform1"])
    bus = Override(handle["Named"], handle["Bus"])

    def install(on: int, protocol: str, address: int, override: Override) -> None:
        boot_services.install_protocol_interface(on, protocol, NATIVE, core.place(address, override))

    install(0, guids.PLATFORM_DRIVER_OVERRIDE_PROTOCOL, 0x2001, platform)
    install(controller, guids.BUS_SPECIFIC_DRIVER_OVERRIDE_PROTOCOL, 0x2002, bus)
    install(handle["Family1"], guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL, 0x2003, Override(version=1))
    install(handle["Family2"], guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL, 0x2004, Override(version=2))
    install(handle["Platform1"], guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL, 0x2005, Override(version=9))
    boot_services.install_protocol_interface(handle["Rest"], guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL, NATIVE, 0)
    status_of(boot_services.connect_controller, controller, (handle["Named"],))
    asked = [name.partition(".")[0] for name in entered(core, "Supported")]
    assert asked == ["Named", "Platform2", "Platform1", "Family2", "Family1", "Bus", "Rest"]
    assert platform.asked == [
        (controller, 0),
        (controller, handle["Platform2"]),
        (controller, handle["Platform1"]),
    ]
    assert bus.asked == [(0,), (handle["Named"],), (handle["Bus"],)]


def test_an_empty_platform_override_is_passed_over(core: Core, boot_services: BootServices, controller: int) -> None:
    """An override protocol with a null interface is as good as none."""
    Driver(core, "Driver")
    boot_services.install_protocol_interface(0, guids.PLATFORM_DRIVER_OVERRIDE_PROTOCOL, NATIVE, 0)
    boot_services.connect_controller(controller)
    assert entered(core) == ["Driver.Supported", "Driver.Start"]


def test_a_driver_that_an_override_brings_is_asked_too(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """The candidates are collected again where there are more driver bindings than before."""
    Driver(core, "Old", 1).supported = refuse(EfiStatus.UNSUPPORTED)
    late = Driver(core, "Late", 2, install=False)

    class Loader(Override):
        def get_driver(self, *arguments: int) -> int:
            """Load the late driver when asked first."""
            if not late.image_handle:
                core.handles.setup_driver("Late", late)
            return super().get_driver(*arguments)

    loader = core.place(0x2001, Loader())
    boot_services.install_protocol_interface(0, guids.PLATFORM_DRIVER_OVERRIDE_PROTOCOL, NATIVE, loader)
    boot_services.connect_controller(controller)
    assert entered(core, "Supported", "Start", "GetDriver") == [
        *("Platform.GetDriver", "Platform.GetDriver", "Late.Supported", "Late.Start", "Old.Supported"),
    ]


def test_driver_bindings_that_are_none_are_passed_over(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """A null interface, an unknown address, and an object without Supported cannot be asked."""
    core.place(0x2001, "no driver")
    for interface in (0, 0x2000, 0x2001):
        boot_services.install_protocol_interface(0, guids.DRIVER_BINDING_PROTOCOL, NATIVE, interface)
    assert status_of(boot_services.connect_controller, controller) == "NOT_FOUND"
    assert entered(core) == []


def test_recursion_connects_the_children(core: Core, boot_services: BootServices, controller: int) -> None:
    """Each child of the controller, and its children, gets its driver; without recursion none does."""
    bus = Driver(core, "Bus", child_count=2)
    leaf = Driver(core, "Leaf", protocol=P2)
    boot_services.connect_controller(controller)
    assert entered(core, "Start") == ["Bus.Start"]
    boot_services.disconnect_controller(controller)
    boot_services.connect_controller(controller, (), None, True)
    assert entered(core, "Start") == ["Bus.Start", "Bus.Start", "Leaf.Start", "Leaf.Start"]
    for child in bus.children[2:]:
        assert core.handles.open_records(child, P2) == ((leaf.driver_binding_handle, child, BY_DRIVER, 1),)


def test_recursion_goes_on_where_the_controller_has_its_driver_already(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """EFI_NOT_FOUND is about the controller alone: its children are connected all the same."""
    Driver(core, "Bus", child_count=1)
    boot_services.connect_controller(controller)
    Driver(core, "Leaf", protocol=P2)
    assert status_of(boot_services.connect_controller, controller, (), None, True) == "NOT_FOUND"
    assert entered(core, "Start") == ["Bus.Start", "Leaf.Start"]


def test_a_controller_that_goes_away_while_it_is_connected_has_no_children(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """A driver that removes its own controller in Start ends the recursion there."""
    driver = Driver(core, "Driver")

    def start(controller: int, remaining_device_path: bytes | None) -> None:
        driver.services.uninstall_protocol_interface(controller, P1, IF1)

    driver.start = start
    boot_services.connect_controller(controller, (), None, True)
    assert controller not in core.handles.handles


def test_a_circle_of_children_ends_the_run(core: Core, boot_services: BootServices, controller: int) -> None:
    """Two handles that are each other's children are connected until the run counts as stuck."""
    other = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.open_protocol(controller, P1, CORE_HANDLE, other, BY_CHILD_CONTROLLER)
    boot_services.open_protocol(other, P1, CORE_HANDLE, controller, BY_CHILD_CONTROLLER)
    with pytest.raises(StepBudgetExceeded):
        boot_services.connect_controller(controller, (), None, True)
    assert core.trace.records[-1][0] == Kind.STUCK


def test_a_start_that_connects_its_own_controller_ends_the_run(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """Endless nesting is stopped before Python's stack is used up, and the driver is named."""
    driver = Driver(core, "Nesting")
    driver.supported = lambda *arguments: None
    driver.start = lambda *arguments: driver.services.connect_controller(controller)
    with pytest.raises(StepBudgetExceeded):
        boot_services.connect_controller(controller)
    assert core.trace.records[-1][:2] == (Kind.STUCK, "Nesting")
    assert core.trace.records[-1][3] <= MAX_DEPTH + 2


@pytest.mark.parametrize("nth", [1, 2, 3], ids=["copy of the path", "candidates", "core's own open"])
def test_connect_without_memory(
    core: Core, boot_services: BootServices, controller: int, allocation_refusals: Callable[[int], None], nth: int
) -> None:
    """Without memory for its lists the core starts nothing, and gives back what it had got."""
    Driver(core, "Driver")
    before = core.memory.live_count("DxeCore")
    allocation_refusals(nth)
    answer = status_of(boot_services.connect_controller, controller, (), END_OF_DEVICE_PATH)
    assert answer == "OUT_OF_RESOURCES"
    assert entered(core) == []
    assert core.memory.live_count("DxeCore") == before


def test_connect_without_memory_for_the_children(
    core: Core, boot_services: BootServices, controller: int, allocation_refusals: Callable[[int], None]
) -> None:
    """The controller itself has its driver then; its children are left alone."""
    driver = Driver(core, "Driver")
    driver.supported = driver.start = lambda *arguments: None
    boot_services.open_protocol(controller, P1, CORE_HANDLE, driver.image_handle, BY_CHILD_CONTROLLER)
    allocation_refusals(3)
    assert status_of(boot_services.connect_controller, controller, (), None, True) == "OUT_OF_RESOURCES"
    assert entered(core) == ["Driver.Supported", "Driver.Start"]


# ---- DisconnectController --------------------------------------------------------------------------------------------------


def test_disconnect_checks_its_handles(core: Core, boot_services: BootServices, controller: int) -> None:
    """Controller and child must be handles, the driver one with a driver binding."""
    disconnect = boot_services.disconnect_controller
    assert status_of(disconnect, 77) == "INVALID_PARAMETER"
    assert status_of(disconnect, controller, 0, 77) == "INVALID_PARAMETER"
    assert status_of(disconnect, controller, controller) == "INVALID_PARAMETER"
    assert status_of(disconnect, controller) == "SUCCESS", "nobody manages it"


def test_a_driver_that_does_not_manage_the_controller_is_not_found(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """edk2 says so where the specification has EFI_SUCCESS."""
    driver = Driver(core, "Driver")
    assert status_of(boot_services.disconnect_controller, controller, driver.driver_binding_handle) == "NOT_FOUND"
    assert entered(core) == []


def test_children_are_stopped_before_the_driver(core: Core, boot_services: BootServices, controller: int) -> None:
    """One Stop with all children, then one without; afterwards nothing is left and a new start works."""
    bus = Driver(core, "Bus", child_count=2)
    boot_services.connect_controller(controller)
    boot_services.disconnect_controller(controller)
    stops = [record[6] for record in core.trace.records if record[0] == Kind.ENTRY and record[5] == "Stop"]
    assert stops == [(controller, tuple(bus.children)), (controller, ())]
    assert core.handles.open_records(controller, P1) == ()
    assert core_memory(core, "DisconnectController") == ["allocate", "allocate", "free", "free"]
    boot_services.connect_controller(controller)


def test_one_child_is_destroyed_alone_unless_it_is_the_last(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """The driver goes on for the other child; with its last child it stops, too."""
    bus = Driver(core, "Bus", child_count=2)
    boot_services.connect_controller(controller)
    boot_services.disconnect_controller(controller, bus.driver_binding_handle, bus.children[0])
    assert entered(core, "Stop") == ["Bus.Stop"]
    boot_services.disconnect_controller(controller, 0, bus.children[1])
    assert entered(core, "Stop") == ["Bus.Stop"] * 3
    assert core.handles.open_records(controller, P1) == ()


def test_a_child_of_somebody_else_is_not_found(core: Core, boot_services: BootServices, controller: int) -> None:
    """Nothing is stopped for a handle that is none of the driver's children."""
    Driver(core, "Bus", child_count=1)
    boot_services.connect_controller(controller)
    assert status_of(boot_services.disconnect_controller, controller, 0, controller) == "NOT_FOUND"
    assert entered(core, "Stop") == []


def test_a_failing_stop_of_the_children_leaves_the_driver(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """Stop without children is skipped, the next driver follows, and any success is success."""
    boot_services.install_protocol_interface(controller, P2, NATIVE, IF2)
    failing = Driver(core, "Failing", 2, protocol=P2, child_count=1)
    failing.stop = refuse(EfiStatus.DEVICE_ERROR)
    Driver(core, "Other", 1)
    boot_services.connect_controller(controller)
    assert status_of(boot_services.disconnect_controller, controller, failing.driver_binding_handle) == "NOT_FOUND"
    assert status_of(boot_services.disconnect_controller, controller) == "SUCCESS"
    assert entered(core, "Stop") == ["Failing.Stop", "Failing.Stop", "Other.Stop"]
    assert core.handles.open_records(controller, P1) == ()


def test_drivers_go_from_the_newest_protocol_to_the_oldest(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """Each driver is stopped once, in the order of the protocols that it manages, newest first."""
    boot_services.install_protocol_interface(controller, P2, NATIVE, IF2)
    for agent, protocol in (("OnOld", P1), ("OnNew", P2)):
        Driver(core, agent, protocol=protocol)
    boot_services.connect_controller(controller)
    boot_services.disconnect_controller(controller)
    assert entered(core, "Stop") == ["OnNew.Stop", "OnOld.Stop"]


def test_a_driver_that_another_one_has_taken_along_is_not_stopped(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """Whether a driver still manages the controller is looked up again before its turn."""
    boot_services.install_protocol_interface(controller, P2, NATIVE, IF2)
    first, second = Driver(core, "First", protocol=P2), Driver(core, "Second")
    boot_services.connect_controller(controller)

    def stop(controller: int, children: tuple[int, ...]) -> None:
        first.let_go(controller, children)
        second.let_go(controller, children)

    first.stop = stop
    boot_services.disconnect_controller(controller)
    assert entered(core, "Stop") == ["First.Stop"]


def test_an_agent_without_driver_binding_cannot_be_disconnected(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """The whole call is refused, and its buffer is given back."""
    boot_services.open_protocol(controller, P1, CORE_HANDLE, controller, BY_DRIVER)
    assert status_of(boot_services.disconnect_controller, controller) == "INVALID_PARAMETER"
    assert core_memory(core, "DisconnectController") == ["allocate", "free"]


@pytest.mark.parametrize("nth", [1, 2], ids=["drivers", "children"])
def test_disconnect_without_memory(
    core: Core, boot_services: BootServices, controller: int, allocation_refusals: Callable[[int], None], nth: int
) -> None:
    """Without memory for its lists the core stops nothing."""
    Driver(core, "Bus", child_count=1)
    boot_services.connect_controller(controller)
    before = core.memory.live_count("DxeCore")
    allocation_refusals(nth)
    assert status_of(boot_services.disconnect_controller, controller) == "OUT_OF_RESOURCES"
    assert entered(core, "Stop") == []
    assert core.memory.live_count("DxeCore") == before


def test_uninstalling_a_childs_protocol_disconnects_its_driver(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """Disconnecting is not recursive by itself: the bus driver's Stop takes the grandchildren along."""
    Driver(core, "Bus", child_count=1)
    Driver(core, "Leaf", protocol=P2)
    boot_services.connect_controller(controller, (), None, True)
    boot_services.disconnect_controller(controller)
    assert entered(core, "Stop") == ["Bus.Stop", "Leaf.Stop", "Bus.Stop"]


def test_a_child_whose_driver_stays_keeps_its_protocol(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """The child is connected again, the uninstall denied, and the bus driver's Stop fails with it."""
    bus = Driver(core, "Bus", child_count=1)
    leaf = Driver(core, "Leaf", protocol=P2)
    leaf.stop = refuse(EfiStatus.DEVICE_ERROR)
    boot_services.connect_controller(controller, (), None, True)
    assert status_of(boot_services.disconnect_controller, controller) == "NOT_FOUND"
    statuses = [record[7] for record in core.trace.records if record[:2] == (Kind.ENTRY, "Bus") and record[5] == "Stop"]
    assert statuses == [EfiStatus.ACCESS_DENIED]
    assert core.handles.interface_of(bus.children[0], P2) == IF2


def test_a_driver_function_is_entered_at_the_callers_tpl(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """The core holds no lock while a driver runs."""
    Driver(core, "Driver")
    boot_services.connect_controller(controller)
    assert {record[2] for record in core.trace.records if record[0] == Kind.ENTRY} == {4}


# ---- images ------------------------------------------------------------------------------------------------------------------


def test_setting_up_a_driver_leaves_no_record(core: Core) -> None:
    """Building a world is not part of the run; the driver's handles are set."""
    driver = Driver(core, "Driver")
    assert core.trace.records == []
    assert driver.image_handle == driver.driver_binding_handle
    image = core.handles.loaded_image(driver.image_handle)
    assert image is not None
    assert image.agent == "Driver"
    assert core.handles.handles_with(guids.DRIVER_BINDING_PROTOCOL) == [driver.image_handle]


def test_unloading_what_is_no_image_or_cannot_unload(core: Core, boot_services: BootServices, controller: int) -> None:
    """Only an image can be unloaded, and only one that has an Unload."""
    image = boot_services.load_image("Driver")
    assert status_of(boot_services.unload_image, controller) == "INVALID_PARAMETER"
    assert status_of(boot_services.unload_image, 77) == "INVALID_PARAMETER"
    assert status_of(boot_services.unload_image, CORE_HANDLE) == "INVALID_PARAMETER"
    assert status_of(boot_services.unload_image, image) == "UNSUPPORTED"
    assert status_of(boot_services.start_image, image) == "INVALID_PARAMETER"


def unloadable(core: Core, handle: int, unload: Behaviour) -> None:
    """Give the image an Unload."""
    image = core.handles.loaded_image(handle)
    assert image is not None
    image.unload = unload


def test_an_unload_that_fails_keeps_the_image(core: Core, boot_services: BootServices) -> None:
    """The image's own status is the answer."""
    image = boot_services.load_image("Driver")
    unloadable(core, image, refuse(EfiStatus.ACCESS_DENIED))
    assert status_of(boot_services.unload_image, image) == "ACCESS_DENIED"
    assert core.handles.loaded_image(image) is not None


def test_unloading_takes_everything_of_the_image_along(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """What the image opened is closed, its handle goes, its memory is given back."""
    boot_services.open_protocol(controller, P1, controller, 0, GET_PROTOCOL)
    before = core.memory.live_count("DxeCore")
    image = boot_services.load_image("Driver")
    for attributes in (GET_PROTOCOL, EXCLUSIVE):
        boot_services.open_protocol(controller, P1, image, controller if attributes == EXCLUSIVE else 0, attributes)
    unloadable(core, image, lambda handle: None)
    boot_services.unload_image(image)
    assert entered(core) == ["Driver.Unload"]
    assert core.handles.open_records(controller, P1) == ((controller, 0, GET_PROTOCOL, 1),)
    assert image not in core.handles.handles
    assert core.memory.live_count("DxeCore") == before
    assert status_of(boot_services.unload_image, image) == "INVALID_PARAMETER"


def test_an_open_for_a_controller_that_has_gone_outlives_the_image(
    core: Core, boot_services: BootServices, controller: int
) -> None:
    """CloseProtocol refuses such a record, so UnloadImage cannot remove it either."""
    image = boot_services.load_image("Driver")
    other = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    boot_services.open_protocol(controller, P1, image, other, BY_CHILD_CONTROLLER)
    boot_services.uninstall_protocol_interface(other, P1, IF1)
    unloadable(core, image, lambda handle: None)
    boot_services.unload_image(image)
    assert core.handles.open_records(controller, P1) == ((image, other, BY_CHILD_CONTROLLER, 1),)


def test_an_image_handle_stays_where_the_image_left_a_protocol(core: Core, boot_services: BootServices) -> None:
    """A driver binding that its image forgot is asked on, and that use of freed memory is recorded."""
    driver = Driver(core, "Driver")
    unloadable(core, driver.image_handle, lambda handle: None)
    boot_services.unload_image(driver.image_handle)
    controller = boot_services.install_protocol_interface(0, P1, NATIVE, IF1)
    status_of(boot_services.connect_controller, controller)
    misuse = [record[5] for record in core.trace.records if record[0] == Kind.MEMORY]
    assert misuse
    assert set(misuse) == {"use-after-free"}


def test_an_image_that_is_held_open_is_unloaded_all_the_same(core: Core, boot_services: BootServices) -> None:
    """The loaded image protocol stays then, but it is no image any more."""
    image = boot_services.load_image("Driver")
    boot_services.open_protocol(image, guids.LOADED_IMAGE_PROTOCOL, CORE_HANDLE, 0, EXCLUSIVE)
    unloadable(core, image, lambda handle: None)
    boot_services.unload_image(image)
    assert image in core.handles.handles
    assert core.handles.loaded_image(image) is None
    assert status_of(boot_services.unload_image, image) == "INVALID_PARAMETER"


def test_an_image_that_unloads_itself_inside_its_unload_goes_once(core: Core, boot_services: BootServices) -> None:
    """The inner call drops the image; the outer one finds nothing left to do."""
    image = boot_services.load_image("Driver")
    calls = []

    def unload(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            boot_services.unload_image(handle)

    unloadable(core, image, unload)
    boot_services.unload_image(image)
    assert calls == [image, image]
    assert not any(record[0] == Kind.MEMORY for record in core.trace.records)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_load_without_memory(
    core: Core, boot_services: BootServices, allocation_refusals: Callable[[int], None], nth: int
) -> None:
    """An image that the core has no memory for is not there at all."""
    before = core.memory.live_count("DxeCore")
    allocation_refusals(nth)
    assert status_of(boot_services.load_image, "Driver") == "OUT_OF_RESOURCES"
    assert list(core.handles.handles) == [CORE_HANDLE]
    assert core.memory.live_count("DxeCore") == before
