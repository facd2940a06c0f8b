"""Guest code as the core sees it: images, driver bindings, notification functions, entry points.

The core enters drivers through callables and through objects at the address of an interface. Here are those that call
guest code: `GuestBinding` is a `reference_impl.uefi.driver_binding.DriverBinding`, `GuestFunction` a notification.
A status that guest code returns becomes an EfiError, as a driver in Python raises it.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable

from guest import require
from guest.calling_convention import CallingConvention
from guest.image import Image, ImageError
from guest.machine import CODE_END, EXECUTE, PAGE, READ, STACK_END, WRITE, GuestFault, Machine
from guest.tables import FirmwareMemory
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA
from reference_impl.uefi.status import EfiError, EfiStatus

FRAMES_MAX = 8
LEAF = " (leaf)"
STACK_SCAN = 0x2000  # bytes of stack in which a backtrace looks for return addresses

LOADED_IMAGE_SIZE = 96  # bytes of EFI_LOADED_IMAGE_PROTOCOL
_UNLOAD = 88
BOOT_SERVICES_CODE = 3

_ERROR = 1 << 63
_KNOWN = {int(status): status for status in EfiStatus}
_INSTRUCTION_MAX = 15  # bytes
_LEAF_INSTRUCTIONS_MAX = 24  # between a fault in a leaf function and its return


class Images:
    """The images of one world, and the way into their code."""

    __slots__ = ("_bases", "_by_base", "_callers", "_entered", "_next", "convention", "firmware", "machine")

    def __init__(self, convention: CallingConvention, firmware: FirmwareMemory) -> None:
        self.convention = convention
        self.machine: Machine = convention.machine
        self.firmware = firmware
        self._next = convention.end
        self._bases: list[int] = []
        self._by_base: dict[int, GuestImage] = {}
        self._callers: dict[int, GuestImage] = {}  # what `at` answered for return addresses
        self._entered = 0  # the function of guest code that the core has entered last, and that has not returned

    def load(self, image: Image, services: BootServices) -> GuestImage:
        """Place an image in memory, relocated; one that was there before comes to its old place.

        `services` are those that it calls; it must have its image handle. Raises ImageError where it cannot be loaded.
        """
        base = next((base for base, known in self._by_base.items() if known.source is image), 0)
        size = -(-image.size_of_image // PAGE) * PAGE
        if not base:
            alignment = max(image.alignment, PAGE)
            base = -(-self._next // alignment) * alignment
            if base + size > CODE_END:
                raise ImageError(f"{image.name}: no room for its {size} bytes beside the images that are loaded")
            self._next = base + size + PAGE  # the page between two images is never there
            self._bases.append(base)
        loaded = self._by_base[base] = GuestImage(self, image, base, size, services)
        self._callers.clear()
        loaded.place()
        return loaded

    def at(self, address: int) -> GuestImage | None:
        """The image that `address` lies in."""
        index = bisect_right(self._bases, address) - 1
        if index < 0:
            return None
        image = self._by_base[self._bases[index]]
        return image if address < image.base + image.size else None

    def caller(self, return_address: int) -> GuestImage | None:
        """Whose code called a service. A function that ends with the call has no return address of its own any more:
        then it is the image that was entered.
        """
        image = self._callers.get(return_address)
        if image is None:
            image = self.at(return_address)
            if image is None:
                return self.at(self._entered)
            self._callers[return_address] = image
        return image

    @property
    def entered(self) -> int:
        """The function of guest code that was entered last and has not returned; 0 outside of guest code."""
        return self._entered

    def place_of(self, address: int) -> str:
        """An address as people read it: "XenBusDxe+0x2af", or with the function's name, "MyDxe+0x2af [MyNotify+0xf]"."""
        image = self.at(address)
        if image is None:
            return f"{address:#x}"
        offset = address - image.base
        symbols = image.source.symbols
        name = None if symbols is None else symbols.symbol_at(offset)
        return f"{image.name}+{offset:#x}{f' [{name}]' if name else ''}"

    def places(self, addresses: Iterable[int]) -> dict[str, list[int]]:
        """Addresses by image, as offsets in it, in order; those outside of images are left out."""
        found: dict[str, list[int]] = {}
        for address in sorted(addresses):
            image = self.at(address)
            if image is not None:
                found.setdefault(image.name, []).append(address - image.base)
        return found

    def call(self, function: int, *arguments: int) -> int:
        """Call guest code; the 64 bits that it answers."""
        outer, self._entered = self._entered, function
        try:
            return self.convention.call(function, *arguments)
        finally:
            self._entered = outer

    def enter(self, function: int, *arguments: int) -> None:
        """Call guest code that answers a status. An error is raised as EfiError."""
        status = self.call(function, *arguments)
        if status & _ERROR:
            raise EfiError(_KNOWN.get(status, EfiStatus.ABORTED))

    def backtrace(self, fault: GuestFault) -> tuple[str, ...]:
        """Where the fault was, if that was in an image, and who called, from the inside out.

        Drivers keep no frame pointers, so this is what on the stack looks like a return address: it points into an
        image, right behind a call. A fault in a leaf function, which copies memory or measures a string, is marked as
        such: "XenBusDxe+0x489 (leaf)". It does what its caller says.
        """
        machine = self.machine
        image = self.at(fault.pc)
        frames = []
        if image is not None:
            frames.append(self.place_of(fault.pc) + (LEAF if image.returns_from(fault.pc) else ""))
        sp = fault.sp & -8
        end = min(sp + STACK_SCAN, STACK_END)
        while sp < end and len(frames) < FRAMES_MAX:
            if not machine.is_mapped(sp):
                break
            word = machine.u64(sp)
            image = self.at(word)
            if image is not None and _follows_call(machine.read(word - 7, 7) if word - 7 >= image.base else b""):
                frames.append(self.place_of(word))
            sp += 8
        return tuple(frames) or (self.place_of(fault.pc),)


class GuestImage:
    """One loaded image.

    name      in traces
    source    what it was loaded from
    base      where it was loaded; `size` whole pages
    services  the boot services table that it calls through, in Python
    """

    __slots__ = ("_images", "base", "name", "services", "size", "source")

    def __init__(self, images: Images, image: Image, base: int, size: int, services: BootServices) -> None:
        self._images = images
        self.source = image
        self.name = image.name
        self.base = base
        self.size = size
        self.services = services

    @property
    def handle(self) -> int:
        """The image handle."""
        return self.services.image_handle

    def place(self) -> None:
        """Let the guest see the image as it comes from its file, also once more after `remove`.

        Sections of firmware images share pages, so all of it can be written and executed, as it can in firmware that
        does not protect images.
        """
        machine = self._images.machine
        machine.map(self.base, self.size, READ | WRITE | EXECUTE)
        machine.write(self.base, self.source.mapped(self.base).ljust(self.size, b"\0"))

    def remove(self) -> None:
        """Take the image away: what still points into it points to nothing."""
        self._images.machine.unmap(self.base, self.size)

    def returns_from(self, pc: int) -> bool:
        """Whether the code at `pc` belongs to a leaf function: it returns soon, has no call on its way, and no frame."""
        capstone = require("capstone")
        disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        first = pc
        for _ in range(_LEAF_INSTRUCTIONS_MAX):
            code = self._images.machine.read(pc, min(_INSTRUCTION_MAX, self.base + self.size - pc))
            _, size, mnemonic, operands = next(disassembler.disasm_lite(code, pc, 1), (pc, 0, "", ""))
            if mnemonic == "ret":
                return True
            if not size or mnemonic in ("call", "ud2") or (mnemonic == "add" and operands.startswith("rsp")):
                return False
            target = int(operands, 16) if mnemonic.startswith("j") and operands.startswith("0x") else pc
            if target < first:
                return False  # a loop, with what has been before
            pc = target if mnemonic == "jmp" and target > pc else pc + size
        return False

    def start(self, system_table: int) -> None:
        """Fill EFI_LOADED_IMAGE_PROTOCOL and run the entry point (UEFI 2.10 §4.1 and §9.1).

        Raises EfiError for an error that the entry point answers; the image is then gone from memory.
        """
        images, services = self._images, self.services
        machine = images.machine
        known = services.core.handles.loaded_image(self.handle)
        assert known is not None, "an image handle comes first"
        interface = known.address
        machine.map_pool(interface + LOADED_IMAGE_SIZE)
        # Revision, no parent; no device, path and options; code and data type; Unload is set by the image.
        machine.write(
            interface,
            struct.pack("<IxxxxQQ", 0x1000, 0, system_table)
            + struct.pack("<QQQIxxxxQ", 0, 0, 0, 0, 0)
            + struct.pack("<QQIIQ", self.base, self.size, BOOT_SERVICES_CODE, BOOT_SERVICES_DATA, 0),
        )
        entry = self.base + self.source.entry_point
        arguments = (self.handle, system_table)
        status = services.core.enter(self.name, "EntryPoint", arguments[:1], images.enter, entry, *arguments)
        if status:
            self.remove()
            raise EfiError(status)
        unload = machine.u64(interface + _UNLOAD)
        if unload:
            known.unload = lambda handle: images.enter(unload, handle)


class GuestFunction:
    """A function of guest code that the core calls with two values: a notification.

    It has a name, so that the trace of CreateEvent shows which one it is.
    """

    __slots__ = ("__name__", "_address", "_images")

    def __init__(self, images: Images, address: int) -> None:
        self._images = images
        self._address = address
        self.__name__ = images.place_of(address)

    def __call__(self, event: int, context: int) -> None:
        """Run it."""
        self._images.call(self._address, event, context)


class GuestBinding:
    """EFI_DRIVER_BINDING_PROTOCOL at an address of guest memory (UEFI 2.10 §11.1).

    What stands there is read when it is needed: a driver may change it.
    """

    __slots__ = ("_address", "_images", "agent")

    def __init__(self, images: Images, address: int, agent: str) -> None:
        self._images = images
        self._address = address
        self.agent = agent

    @property
    def version(self) -> int:
        """A higher one is asked first."""
        return self._images.machine.u32(self._address + 24)

    @property
    def image_handle(self) -> int:
        """The image that the driver came in."""
        return self._images.machine.u64(self._address + 32)

    @property
    def driver_binding_handle(self) -> int:
        """The agent of what the driver opens."""
        return self._images.machine.u64(self._address + 40)

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Whether the driver can manage `controller`."""
        self._enter(0, controller, remaining_device_path)

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Begin to manage `controller`."""
        self._enter(8, controller, remaining_device_path)

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Destroy `children`, or end managing `controller`."""
        images = self._images
        with images.convention.scratch(struct.pack(f"<{len(children)}Q", *children)) as array:
            function = images.machine.u64(self._address + 16)
            images.enter(function, self._address, controller, len(children), array if children else 0)

    def _enter(self, offset: int, controller: int, remaining_device_path: bytes | None) -> None:
        images = self._images
        function = images.machine.u64(self._address + offset)
        if remaining_device_path is None:
            images.enter(function, self._address, controller, 0)
        else:
            with images.convention.scratch(remaining_device_path) as path:
                images.enter(function, self._address, controller, path)


def status_of(status: int) -> EfiStatus:
    """A status that guest code answered; an error that has no name here counts as EFI_ABORTED."""
    return _KNOWN.get(status, EfiStatus.ABORTED if status & _ERROR else EfiStatus.SUCCESS)


def _follows_call(before: bytes) -> bool:
    """Whether these seven bytes end with a near call: E8 with 32 bits, or FF /2 with any addressing."""
    if len(before) < 7:
        return False
    if before[2] == 0xE8:
        return True
    return any(before[-size] == 0xFF and before[1 - size] & 0x38 == 0x10 for size in (2, 3, 4, 6, 7))
