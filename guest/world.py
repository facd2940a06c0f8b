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
from guest.drivers import GuestImage, Images
from guest.image import Image, ImageError, open_image
from guest.machine import PAGE, GuestFault, Machine, NotCountedError
from guest.tables import HOB_LIST_TABLE, PCD_PROTOCOL, FirmwareMemory, place_hobs
from guest.thunks import Thunks
from guest.xen import GuestPlatform, HypercallPage
from reference_impl.failures import Failures
from reference_impl.scenario import Scenario
from reference_impl.trace import Kind, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.driver_binding import load
from reference_impl.uefi.status import EfiError
from reference_impl.world import GRANT_TABLE_ADDRESS, PlatformWorld, SkippedError

FIRMWARE = "bullseye/OVMF_CODE_4M.fd"
LIBRARY = "DevicePathDxe"
"""What the other images need before they can start."""

GUESTS: dict[str, dict[str, str]] = {
    "shipped": {"xenbus": "XenBusDxe", "block": "XenPvBlkDxe"},
}
"""For each design, the drivers that are guests: the scenario's name of a driver → module of the firmware."""

_CONTROLLER_PATH = bytes.fromhex("02010c00d041030a00000000 01010600 0002 7fff0400".replace(" ", ""))
_XENBUS_NODE_OFFSET = 144  # of XENBUS_PROTOCOL.Node
_NAME_MAX = 64


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


def run(scenario: Scenario, drivers: Mapping[str, Image] | None = None) -> Trace:
    """Run `scenario` in a new world. The same scenario and the same images give the same trace.

    `drivers` instead of those that the scenario names. Raises CannotStart, and what `open_drivers` raises.

    Where a backend takes its time, the guest turns in loops without calling anything, and only a machine that counts
    knows how to go on. Elsewhere counting costs as much as all the rest, so the run is repeated with it where it is
    needed after all.
    """
    if drivers is None:
        drivers = open_drivers(scenario.design, scenario.images)
    delayed = any(step.kind == "backend" and step.arguments[1] for step in scenario.operations)
    for counting in (delayed, True):
        machine = Machine(counting)
        try:
            return GuestWorld(scenario, drivers, machine).run()
        except NotCountedError:
            continue
        finally:
            machine.close()
    raise AssertionError("a machine that counts does not ask for one")


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
        self.platform: GuestPlatform = GuestPlatform(
            self.machine, self.trace, failures, scenario.reconnection, scenario.devices
        )
        core.idle = self.platform.step
        self.machine.spinning = self.platform.step
        self.firmware = BootServices(core, "firmware")
        self.loader = BootServices(core, "os-loader")
        self._loader_pages = []
        self._sources = drivers
        self._loaded: dict[str, GuestImage] = {}

        convention = CallingConvention(self.machine)
        self._memory = FirmwareMemory(self.machine)
        self.images = Images(convention, self._memory)
        hypercalls = HypercallPage(convention, self.images, self.platform)
        self.thunks = Thunks(core, convention, self._memory, self.images)
        if not scenario.reconnection:
            self.thunks.before = self.platform.look
        self._request_page = self._memory.reserve(PAGE, PAGE)
        self._lay_out(hypercalls.address)

    def _lay_out(self, hypercall_page: int) -> None:
        """What firmware has ready before it loads drivers: tables, the controller, and the drivers' images."""
        core, memory = self.core, self._memory
        records = self.trace.records
        install = core.handles.install
        core.configuration_tables.install(HOB_LIST_TABLE, place_hobs(memory, hypercall_page))
        self.thunks.tables.set_configuration_tables(core.configuration_tables.tables)
        install(0, PCD_PROTOCOL, self.thunks.pcd)
        path = core.place(memory.place(_CONTROLLER_PATH), _CONTROLLER_PATH)
        self._controller = install(0, guids.DEVICE_PATH_PROTOCOL, path)
        install(self._controller, guids.XENIO_PROTOCOL, memory.place(struct.pack("<Q", GRANT_TABLE_ADDRESS)))
        for name, image in self._sources.items():
            try:
                self._install_image(name, lambda agent: load(core, agent))
            except EfiError as refusal:
                raise CannotStart(f"{image.name}: its entry point answers {refusal.status}") from None
            except GuestFault as fault:
                frames = " < ".join(self.images.backtrace(fault))
                raise CannotStart(f"{image.name}: its entry point ends in a fault: {fault.kind} at {frames}") from None
        del records[:]

    def run(self) -> Trace:
        """Do every operation; the trace. Raises NotCountedError, see `run` of the module."""
        try:
            super().run()
            self.platform.look(self.platform.ring.user)
            self.thunks.heap.check()
        except GuestFault as fault:
            self._record(fault)
        return self.trace

    def _record(self, fault: GuestFault) -> None:
        """Leave the record of a fault. It belongs to the image where it was, or to the nearest that called."""
        frames = self.images.backtrace(fault)
        agent = next((frame.partition("+")[0] for frame in frames if "+" in frame), "guest")
        if fault.kind == "dead-loop":
            self.trace.add(Kind.STUCK, agent, "dead-loop", frames)
        else:
            self.trace.add(Kind.FAULT, agent, fault.kind, (fault.address, *frames), None, fault.detail or None)

    # ---- operations that differ -----------------------------------------------------------------------------------

    def _connect(self, controller: str, driver: str, recursive: bool) -> None:
        images = () if driver == "any" else (self._image(driver).handle,)
        self.firmware.connect_controller(self._handle(controller), images, None, recursive)

    def _disconnect(self, controller: str, driver: str, child: str) -> None:
        handle = self._handle(controller)
        binding = 0 if driver == "any" else self._image(driver).handle
        self.firmware.disconnect_controller(handle, binding, 0 if child == "all" else self._handle(child))

    def _request(self, index: int) -> None:
        """Read the first sector through the Block I/O protocol (UEFI 2.10 §13.9)."""
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
        image = self._image(name)
        self.firmware.unload_image(image.handle)
        image.remove()
        del self._loaded[name]

    def _load(self, name: str) -> None:
        if name in self._loaded:
            raise SkippedError("the driver is loaded")
        if name not in self._sources:
            raise SkippedError("there is no image of this driver")
        self._install_image(name, self.firmware.load_image)

    def _install_image(self, name: str, make_handle: Callable[[str], int]) -> None:
        source = self._sources[name]
        services = BootServices(self.core, source.name)
        services.image_handle = make_handle(source.name)
        image = self.images.load(source, services)
        known = self.core.handles.loaded_image(services.image_handle)
        assert known is not None
        self._loaded[name] = image
        interface = known.address
        machine = self.machine
        machine.map_pool(interface + PAGE)
        system_table = self.thunks.tables.system_table
        loaded_image = struct.pack(
            "<I4x5QI4xQQQIIQ",
            *(
                0x1000,
                0,
                system_table,
                0,
                0,
                0,
                0,
                0,
            ),  # revision, parent, system table, device, path, reserved, options
            *(image.base, image.size, 3, 4, 0),  # code and data type, no Unload yet
        )
        machine.write(interface, loaded_image)
        status = self.core.enter(image.name, "EntryPoint", (image.handle,), image.entry_point, system_table)
        if status:
            image.remove()
            del self._loaded[name]
            raise EfiError(status)
        unload = machine.u64(interface + 88)
        if unload:
            known.unload = lambda handle: self.images.enter(unload, handle)

    # ---- names of the scenario ------------------------------------------------------------------------------------

    def _handle(self, name: str) -> int:
        if name == "bus":
            return self._controller
        node = self._node(int(name.removeprefix("child-"))).encode()
        handles = self.core.handles
        for handle in handles.handles_with(guids.XENBUS_PROTOCOL):
            interface = handles.interface_of(handle, guids.XENBUS_PROTOCOL)
            if interface and self._text(self.machine.u64(interface + _XENBUS_NODE_OFFSET)) == node:
                return handle
        raise SkippedError("the bus has no such child")

    def _text(self, address: int) -> bytes:
        """The text at an address, up to its NUL."""
        return self.machine.read(address, _NAME_MAX).partition(b"\0")[0]

    def _image(self, name: str) -> GuestImage:
        image = self._loaded.get(name)
        if image is None or not name:
            raise SkippedError("the driver is not loaded")
        return image
