"""The `efi-image` world: real drivers, loaded from firmware, on the machine that a scenario describes.

The scenario's operations are those of the platform world, whose rules about what is permitted hold here as well
(`PlatformWorld`). What differs is who the drivers are: those that the design names (`GUESTS`), and DevicePathDxe, which
they need, and images of the user's own. They are loaded and entered before the first operation.

A fault of guest code ends the run. It leaves a record (`Kind.FAULT`, or `Kind.STUCK` "dead-loop") with a backtrace; the
oracles judge what came before as well.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import cache

from guest.calling_convention import CallingConvention
from guest.chipset import Chipset
from guest.drivers import GuestImage, Images
from guest.image import Image, ImageError, open_image
from guest.machine import PAGE, GuestFault, Machine, NotCountedError
from guest.pci_io import PciIoInterface, xen_platform_device
from guest.tables import HOB_LIST_TABLE, PCD_PROTOCOL, PI_PCD_PROTOCOL, FirmwareMemory, place_hobs
from guest.thunks import Thunks
from guest.xen import GuestPlatform, HypercallPage
from guest.xenbus_protocol import NODE, GuestXenBus, ModelServices, XenBusInterface, text_at
from reference_impl.failures import Failures
from reference_impl.faulty import faulty
from reference_impl.scenario import Operation, Scenario
from reference_impl.trace import Kind, StepBudgetExceeded, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import BY_DRIVER
from reference_impl.uefi.driver_binding import load
from reference_impl.uefi.status import EfiError
from reference_impl.world import GRANT_TABLE_ADDRESS, PlatformWorld, SkippedError
from reference_impl.xenbus.bus_driver import XenIo
from reference_impl.xenbus.designs import DESIGNS

FIRMWARE = "bullseye/OVMF_CODE_4M.fd"
LIBRARY = "DevicePathDxe"
"""What the other images need before they can start."""

GUESTS: dict[str, dict[str, str]] = {
    "shipped": {"xenbus": "XenBusDxe", "block": "XenPvBlkDxe"},
    "shipped-bus": {"xenbus": "XenBusDxe"},
    "shipped-block": {"block": "XenPvBlkDxe"},
    "shipped-pci": {"xenio": "XenIoPciDxe", "xenbus": "XenBusDxe", "block": "XenPvBlkDxe"},
}
"""For each design, the drivers that are guests: the scenario's name of a driver → module of the firmware.

Where "xenio" is among them, the controller is a PCI device; elsewhere XENIO_PROTOCOL stands on it from the beginning.
"""

MODELS: dict[str, tuple[str, ...]] = {
    "shipped-bus": ("block", "network", "console"),
    "shipped-block": ("xenbus", "network", "console"),
}
"""For each design, the drivers that are the model's, in its design `disconnect`."""

_CONTROLLER_PATH = bytes.fromhex("02010c00d041030a00000000 01010600 0002 7fff0400".replace(" ", ""))


class CannotStart(ImageError):  # noqa: N818 - named for what it says
    """An image cannot be started in this world. The message is one line that says why."""


@cache
def open_drivers(design: str = "shipped", images: tuple[str, ...] = ()) -> dict[str, Image]:
    """The images of the world in the order in which they are loaded, by the scenario's names of drivers.

    `images` of the user's own take the place of a driver of the design that has the same name; the others come behind
    it as "image-0" and so on. Raises ImageError where one cannot be had, and ExtraMissing.
    """
    modules = {"": LIBRARY, **GUESTS[design]}
    own = {image.name: image for image in map(open_image, images)}
    drivers = {
        name: own.pop(module) if module in own else open_image(f"{FIRMWARE}:{module}")
        for name, module in modules.items()
    }
    return drivers | {f"image-{index}": image for index, image in enumerate(own.values())}


def run(scenario: Scenario, drivers: Mapping[str, Image] | None = None, *, tracing: bool = False) -> Trace:
    """Run `scenario` in a new world. The same scenario and the same images give the same trace.

    drivers  instead of those that the scenario names
    tracing  the trace has the basic blocks that ran

    Raises CannotStart, and what `open_drivers` raises.

    Where a backend takes its time, the guest turns in loops without calling anything, and only a machine that counts
    knows how to go on. Elsewhere counting costs as much as all the rest, so the run is repeated with it where it is
    needed after all.
    """
    if drivers is None:
        drivers = open_drivers(scenario.design, scenario.images)
    for counting in (needs_counting(scenario), True):
        machine = Machine(counting, tracing=tracing)
        try:
            world = GuestWorld(scenario, drivers, machine)
            trace = world.run()
            trace.blocks = world.images.places(machine.blocks)
            return trace
        except NotCountedError:
            continue
        finally:
            machine.close()
    raise AssertionError("a machine that counts does not ask for one")


def needs_counting(scenario: Scenario) -> bool:
    """Whether a backend of this scenario takes its time."""
    devices = len(scenario.devices) + sum(step.kind == "add-device" for step in scenario.operations)
    return any(
        step.kind == "backend" and step.arguments[1] and step.arguments[0] < devices for step in scenario.operations
    )


class GuestWorld(PlatformWorld):
    """One machine with real drivers, and what a scenario can do to it."""

    def __init__(self, scenario: Scenario, drivers: Mapping[str, Image], machine: Machine) -> None:
        # Everything but the drivers is as in the platform world, on other memory.
        self.scenario = scenario
        self.trace = Trace()
        failures = Failures(self.trace, self._may_fail)
        core = self.core = Core(self.trace, failures)
        core.events.order = scenario.order
        self.machine = machine
        self._fault = faulty("")
        self._design = DESIGNS["disconnect"]
        self._models = MODELS.get(scenario.design, ())
        self._drivers = {}
        self.platform: GuestPlatform = GuestPlatform(
            machine, self.trace, failures, scenario.reconnection, scenario.devices, "block" not in self._models
        )
        core.idle = self.platform.step
        self.machine.spinning = self.platform.step
        self.firmware = BootServices(core, "firmware")
        self.loader = BootServices(core, "os-loader")
        self._set_up_environment()
        self._loader_pages = []
        self._sources = drivers
        self._loaded: dict[str, GuestImage] = {}

        convention = CallingConvention(self.machine)
        self._memory = FirmwareMemory(self.machine)
        self.images = Images(convention, self._memory)
        hypercalls = HypercallPage(convention, self.images, self.platform)
        self.thunks = Thunks(core, convention, self._memory, self.images)
        Chipset(core, self.images)
        if not scenario.reconnection:
            self.thunks.before = self.platform.look
        self._lay_outs: dict[str, Callable[[int, BootServices], None]] = {}
        if "xenbus" in self._models:
            self._lay_outs[guids.XENBUS_PROTOCOL] = XenBusInterface(self.thunks).lay_out
        elif self._models:
            self.thunks.views[guids.XENBUS_PROTOCOL] = lambda interface, agent: GuestXenBus(
                self.images, self.platform, interface, self._services_of_manager
            )
        self._request_page = self._memory.reserve(PAGE, PAGE)
        if "page-0-mapped" in scenario.switches:
            machine.map(0, PAGE)
        self._lay_out(hypercalls.address)

    def _lay_out(self, hypercall_page: int) -> None:
        """What firmware has ready before it loads drivers: tables, the controller, and the drivers' images."""
        core, memory = self.core, self._memory
        records = self.trace.records
        install = core.handles.install
        core.configuration_tables.install(HOB_LIST_TABLE, place_hobs(memory, hypercall_page))
        self.thunks.tables.set_configuration_tables(core.configuration_tables.tables)
        install(install(0, PCD_PROTOCOL, self.thunks.pcd), PI_PCD_PROTOCOL, self.thunks.pi_pcd)
        path = core.place(memory.place(_CONTROLLER_PATH), _CONTROLLER_PATH)
        self._controller = install(0, guids.DEVICE_PATH_PROTOCOL, path)
        if "xenio" in self._sources:
            device = PciIoInterface(self.thunks).lay_out(xen_platform_device())
            install(self._controller, guids.PCI_IO_PROTOCOL, device)
        else:
            xenio = memory.place(struct.pack("<Q", GRANT_TABLE_ADDRESS))
            install(self._controller, guids.XENIO_PROTOCOL, core.place(xenio, XenIo(GRANT_TABLE_ADDRESS)))
        for name in self._models:
            self._install(name, core.handles.setup_driver)
        for name, image in self._sources.items():
            try:
                self._install_image(name, lambda agent: load(core, agent))
            except EfiError as refusal:
                raise CannotStart(f"{image.name}: its entry point answers {refusal.status}") from None
            except GuestFault as fault:
                frames = " < ".join(self.images.backtrace(fault))
                raise CannotStart(f"{image.name}: its entry point ends in a fault: {fault.kind} at {frames}") from None
        del records[:]

    def run(self, first: int = 0) -> Trace:
        """Do every operation from the `first` on; the trace. Raises NotCountedError, see `run` of the module."""
        try:
            super().run(first)
            self.platform.look(self.platform.ring.user)
            self.thunks.heap.check()
        except GuestFault as fault:
            self._record(fault)
        return self.trace

    def advance(self, index: int, operation: Operation) -> bool:
        """Do one operation, the scenario's `index`-th; whether another can follow."""
        try:
            self.do(index, operation)
        except (GuestFault, StepBudgetExceeded, NotCountedError):
            return False
        return True

    def _record(self, fault: GuestFault) -> None:
        """Leave the record of a fault. It belongs to the image where it was, or to the nearest that called."""
        frames = self.images.backtrace(fault)
        agent = next((frame.partition("+")[0] for frame in frames if "+" in frame), "guest")
        if fault.kind == "dead-loop":
            self.trace.add(Kind.STUCK, agent, "dead-loop", frames)
        else:
            self.trace.add(Kind.FAULT, agent, fault.kind, (fault.address, *frames), None, fault.detail or None)

    # ---- operations that differ -----------------------------------------------------------------------------------

    def _request(self, index: int) -> None:
        """Read the first sector through the Block I/O protocol (UEFI 2.10 §13.9)."""
        devices = self.platform.devices
        if index < len(devices) and devices[index].kind in self._drivers:
            super()._request(index)
            return
        handle = self._handle(f"child-{index}")
        block_io = self.core.handles.interface_of(handle, guids.BLOCK_IO_PROTOCOL)
        if block_io is None:
            raise SkippedError("no driver has started this device")
        machine = self.machine
        media, read = machine.u64(block_io + 8), machine.u64(block_io + 24)
        image = self.images.at(read)
        arguments = (block_io, machine.u32(media), 0, 512, self._request_page)
        agent = "guest" if image is None else image.name
        status = self.core.enter(agent, "ReadBlocks", arguments[1:4], self.images.enter, read, *arguments)
        if status:
            raise EfiError(status)

    def _unload(self, name: str) -> None:
        if name in self._models:
            super()._unload(name)
            return
        image = self._image(name)
        self.firmware.unload_image(image.handle)
        image.remove()
        del self._loaded[name]

    def _load(self, name: str) -> None:
        if name in self._models:
            super()._load(name)
            return
        if name in self._loaded:
            raise SkippedError("the driver is loaded")
        if name not in self._sources:
            raise SkippedError("there is no image of this driver")
        self._install_image(name, self.firmware.load_image)

    def start_image(self, source: Image) -> None:
        """Load and start an image that the scenario does not name. Raises EfiError, GuestFault, StepBudgetExceeded."""
        self._sources = {**self._sources, "image": source}
        self._install_image("image", self.firmware.load_image)

    def _install_image(self, name: str, make_handle: Callable[[str], int]) -> None:
        source = self._sources[name]
        services = BootServices(self.core, source.name)
        services.image_handle = make_handle(source.name)
        image = self._loaded[name] = self.images.load(source, services)
        try:
            image.start(self.thunks.tables.system_table)
        except EfiError:
            del self._loaded[name]
            raise

    # ---- names of the scenario ------------------------------------------------------------------------------------

    def _handle(self, name: str) -> int:
        if name == "bus":
            return self._controller
        node = self._node(int(name.removeprefix("child-")))
        handles = self.core.handles
        for handle in handles.handles_with(guids.XENBUS_PROTOCOL):
            interface = handles.interface_of(handle, guids.XENBUS_PROTOCOL)
            if interface and text_at(self.machine, self.machine.u64(interface + NODE)) == node:
                return handle
        raise SkippedError("the bus has no such child")

    def _binding_handle(self, name: str) -> int:
        return super()._binding_handle(name) if name in self._models else self._image(name).handle

    def _services_of(self, agent: str) -> BootServices:
        return ModelServices(self.core, agent, self.thunks.heap, self._lay_outs)

    def _services_of_manager(self, interface: int) -> BootServices:
        """The services of the model's driver that manages a child of the guest's bus."""
        handles = self.core.handles
        for handle in handles.handles_with(guids.XENBUS_PROTOCOL):
            if handles.interface_of(handle, guids.XENBUS_PROTOCOL) == interface:
                agents = [
                    agent
                    for agent, _, attributes, _ in handles.open_records(handle, guids.XENBUS_PROTOCOL)
                    if attributes & BY_DRIVER
                ]
                for driver in self._drivers.values():
                    if driver.driver_binding_handle in agents:
                        return driver.services
        return self.firmware

    def _image(self, name: str) -> GuestImage:
        image = self._loaded.get(name)
        if image is None or not name:
            raise SkippedError("the driver is not loaded")
        return image
