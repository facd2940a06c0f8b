"""EFI_PCI_IO_PROTOCOL (UEFI 2.10 §14.4) over a small model of a PCI function.

* `PciFunction` is the hardware: configuration space, BARs, and registers that keep what is written to them. What a
  device does beyond that is a subclass's business.
* `PciIo` is the protocol, called in the name of one driver. Each member is a call of the trace, "PciIo.Mem.Read" and so
  on, at which a failure can be armed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from reference_impl.trace import Kind
from reference_impl.uefi.core import Core, service
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA
from reference_impl.uefi.events import POLL_100NS
from reference_impl.uefi.handle_database import RefusalWithValue
from reference_impl.uefi.status import EfiError, EfiStatus

CONFIG_SIZE = 256
COMMAND, BAR_0, INTERRUPT_LINE = 4, 0x10, 0x3C
BARS = 6

ATTRIBUTE_IO, ATTRIBUTE_MEMORY, ATTRIBUTE_BUS_MASTER, ATTRIBUTE_DUAL_ADDRESS_CYCLE = 0x100, 0x200, 0x400, 0x8000
_COMMANDS = {ATTRIBUTE_IO: 1, ATTRIBUTE_MEMORY: 2, ATTRIBUTE_BUS_MASTER: 4}
GET, SET, ENABLE, DISABLE, SUPPORTED = range(5)

_WIDTHS = 12  # Uint8 to Uint64, then the same as Fifo (one address) and as Fill (one value)
_MASK32 = 0xFFFFFFFF
_FIRST_MAPPING = 0xD000_0000
_SHOWN_MAX = 64  # bytes of data in a record
_CORE_MEMORY = int(Kind.CORE_MEMORY)
_INVALID, _UNSUPPORTED = EfiStatus.INVALID_PARAMETER, EfiStatus.UNSUPPORTED


class Bar(NamedTuple):
    """A range of addresses of a function: its first, its size (a power of two), and whether it is of I/O ports."""

    base: int
    size: int
    is_io: bool = False


class PciFunction:
    """One function of a PCI device.

    location    segment, bus, device, function
    config      configuration space
    bars        by index
    attributes  those that are enabled; `supported` all that can be
    """

    __slots__ = ("_registers", "attributes", "bars", "config", "location", "supported")

    def __init__(
        self,
        location: tuple[int, int, int, int],
        vendor: int,
        device: int,
        class_code: int,
        bars: dict[int, Bar],
        revision: int = 0,
    ) -> None:
        self.location = location
        self.bars = bars
        self.supported = ATTRIBUTE_BUS_MASTER | ATTRIBUTE_DUAL_ADDRESS_CYCLE
        self.attributes = 0
        self.config = bytearray(CONFIG_SIZE)
        struct.pack_into("<HHHHI", self.config, 0, vendor, device, 0, 0, class_code << 8 | revision)
        for index, bar in bars.items():
            self.supported |= ATTRIBUTE_IO if bar.is_io else ATTRIBUTE_MEMORY
            struct.pack_into("<I", self.config, BAR_0 + 4 * index, bar.base & _MASK32 | bar.is_io)
        struct.pack_into("<HH", self.config, 0x2C, vendor, device)
        struct.pack_into("<BB", self.config, INTERRUPT_LINE, 11, 1)
        self._registers: dict[tuple[int, int], int] = {}

    def read_config(self, offset: int, size: int) -> int:
        """A value of configuration space."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write to configuration space. Only the command, the BARs and the interrupt line can be written."""
        for at, byte in enumerate(value.to_bytes(size, "little"), offset):
            if at in (COMMAND, COMMAND + 1, INTERRUPT_LINE):
                self.config[at] = byte
            elif BAR_0 <= at < BAR_0 + 4 * BARS and (bar := self.bars.get(at - BAR_0 >> 2)) is not None:
                # The bits inside of a BAR's size stay as they are: that is how its size is found out.
                fixed = (bar.size - 1) >> 8 * (at & 3) & 0xFF
                self.config[at] = self.config[at] & fixed | byte & ~fixed & 0xFF

    def read_register(self, bar: int, offset: int, size: int) -> int:
        """A register, or several of them: what was written there last, 0 where nothing was."""
        return sum(self._registers.get((bar, offset + index), 0) << 8 * index for index in range(size))

    def write_register(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register."""
        for index in range(size):
            self._registers[bar, offset + index] = value >> 8 * index & 0xFF

    def set_attributes(self, attributes: int) -> None:
        """Enable these attributes and no others; the command register follows."""
        self.attributes = attributes
        for attribute, command in _COMMANDS.items():
            if attributes & attribute:
                self.config[COMMAND] |= command
            else:
                self.config[COMMAND] &= ~command & 0xFF


def _shown(*arguments: int | bytes) -> tuple[int | bytes, ...]:
    """Arguments as the trace shows them: of data only the beginning."""
    return tuple(argument[:_SHOWN_MAX] if isinstance(argument, bytes) else argument for argument in arguments)


class PciIo:
    """The protocol of one function, called in the name of `agent`. A refusal is an EfiError.

    Widths are EFI_PCI_IO_PROTOCOL_WIDTH; data is as it stands in memory.
    """

    __slots__ = ("_mappings", "agent", "core", "function")

    def __init__(self, core: Core, agent: str, function: PciFunction) -> None:
        self.core = core
        self.agent = agent
        self.function = function
        self._mappings: dict[int, int] = {}

    @service("PciIo.PollMem")
    def poll_memory(self, width: int, bar: int, offset: int, mask: int, value: int, delay_100ns: int) -> int:
        """Read until the value is there; the value. EFI_TIMEOUT, with the value as well. UEFI 2.10 §14.4.2."""
        return self._poll(False, width, bar, offset, mask, value, delay_100ns)

    @service("PciIo.PollIo")
    def poll_ports(self, width: int, bar: int, offset: int, mask: int, value: int, delay_100ns: int) -> int:
        """The same for I/O ports."""
        return self._poll(True, width, bar, offset, mask, value, delay_100ns)

    @service("PciIo.Mem.Read")
    def read_memory(self, width: int, bar: int, offset: int, count: int) -> bytes:
        """Read registers. EFI_UNSUPPORTED: they are not of that BAR, or the BAR is not there. UEFI 2.10 §14.4.4."""
        return self._read(False, width, bar, offset, count)

    @service("PciIo.Mem.Write", _shown)
    def write_memory(self, width: int, bar: int, offset: int, count: int, data: bytes) -> None:
        """Write registers."""
        self._write(False, width, bar, offset, count, data)

    @service("PciIo.Io.Read")
    def read_ports(self, width: int, bar: int, offset: int, count: int) -> bytes:
        """Read I/O ports."""
        return self._read(True, width, bar, offset, count)

    @service("PciIo.Io.Write", _shown)
    def write_ports(self, width: int, bar: int, offset: int, count: int, data: bytes) -> None:
        """Write I/O ports."""
        self._write(True, width, bar, offset, count, data)

    @service("PciIo.Pci.Read")
    def read_config(self, width: int, offset: int, count: int) -> bytes:
        """Read configuration space. EFI_UNSUPPORTED: not inside of it. UEFI 2.10 §14.4.6."""
        function = self.function
        return _read(function.read_config, self._checked(width, offset, count, CONFIG_SIZE), offset, count)

    @service("PciIo.Pci.Write", _shown)
    def write_config(self, width: int, offset: int, count: int, data: bytes) -> None:
        """Write configuration space."""
        function = self.function
        _write(function.write_config, self._checked(width, offset, count, CONFIG_SIZE), offset, count, data)

    @service("PciIo.CopyMem")
    def copy_memory(self, width: int, to_bar: int, to: int, from_bar: int, source: int, count: int) -> None:
        """Copy from one place of the device's memory to another. UEFI 2.10 §14.4.8."""
        if width > 3:
            raise EfiError(_INVALID)
        self._write(False, width, to_bar, to, count, self._read(False, width, from_bar, source, count))

    @service("PciIo.Map")
    def map(self, operation: int, address: int, size: int) -> int:
        """Let the device use memory, at the address that it has anyway; the mapping. UEFI 2.10 §14.4.9."""
        if operation > 2 or not size:
            raise EfiError(_INVALID)
        mapping = _FIRST_MAPPING + len(self._mappings)
        self._mappings[mapping] = address
        return mapping

    @service("PciIo.Unmap")
    def unmap(self, mapping: int) -> None:
        """End a mapping. EFI_INVALID_PARAMETER: there is no such, or it has ended. UEFI 2.10 §14.4.10."""
        if not self._mappings.get(mapping):
            raise EfiError(_INVALID)
        self._mappings[mapping] = 0

    @service("PciIo.AllocateBuffer")
    def allocate_buffer(self, memory_type: int, page_count: int) -> int:
        """Pages that the device can use, which belong to the caller; their address. UEFI 2.10 §14.4.11."""
        if memory_type not in (BOOT_SERVICES_DATA, 6):
            raise EfiError(_INVALID)
        address = self.core.memory.allocate_pages(0, memory_type, page_count, 0, self.agent)
        self._tell("allocate", page_count << 12, address)
        return address

    @service("PciIo.FreeBuffer")
    def free_buffer(self, page_count: int, address: int) -> None:
        """Give such pages back. UEFI 2.10 §14.4.12."""
        self.core.memory.free_pages(address, page_count, self.agent)
        self._tell("free", 0, address)

    @service("PciIo.Flush")
    def flush(self) -> None:
        """Let all that was written arrive: here it always has. UEFI 2.10 §14.4.13."""

    @service("PciIo.GetLocation")
    def get_location(self) -> tuple[int, int, int, int]:
        """Segment, bus, device, function. UEFI 2.10 §14.4.14."""
        return self.function.location

    @service("PciIo.Attributes")
    def operate_attributes(self, operation: int, attributes: int) -> int:
        """Get, set, enable, disable attributes, or say what is supported; the attributes. UEFI 2.10 §14.4.15."""
        function = self.function
        if operation == GET:
            return function.attributes
        if operation == SUPPORTED:
            return function.supported
        if operation > SUPPORTED:
            raise EfiError(_INVALID)
        if attributes & ~function.supported:
            raise EfiError(_UNSUPPORTED)
        kept = {SET: 0, ENABLE: function.attributes, DISABLE: function.attributes & ~attributes}[operation]
        function.set_attributes(kept if operation == DISABLE else kept | attributes)
        return function.attributes

    @service("PciIo.GetBarAttributes")
    def get_bar_attributes(self, bar: int, resources: bool) -> tuple[int, int, bytes]:
        """What is supported of a BAR (nothing special); and, where `resources` are wanted, the address of a pool buffer
        that belongs to the caller, and what stands there: an ACPI QWORD address space descriptor and an end tag.

        EFI_UNSUPPORTED: there is no such BAR. EFI_OUT_OF_RESOURCES. UEFI 2.10 §14.4.16.
        """
        found = self.function.bars.get(bar)
        if found is None:
            raise EfiError(_UNSUPPORTED)
        if not resources:
            return 0, 0, b""
        last = found.base + found.size - 1
        described = struct.pack("<BHBBBQQQQQ", 0x8A, 43, found.is_io, 0, 0, 32, found.base, last, 0, found.size)
        described += b"\x79\0"
        address = self.core.memory.allocate_pool(BOOT_SERVICES_DATA, len(described), self.agent)
        self._tell("allocate", len(described), address)
        return 0, address, described

    @service("PciIo.SetBarAttributes")
    def set_bar_attributes(self, attributes: int, bar: int) -> None:
        """Refused, as no BAR supports any. EFI_UNSUPPORTED. UEFI 2.10 §14.4.17."""
        raise EfiError(_UNSUPPORTED)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _checked(self, width: int, offset: int, count: int, limit: int) -> int:
        if width >= _WIDTHS:
            raise EfiError(_INVALID)
        size = 1 << (width & 3)
        if offset + (size if width & 4 else size * count) > limit:
            raise EfiError(_UNSUPPORTED)
        return width

    def _checked_bar(self, is_io: bool, width: int, bar: int, offset: int, count: int) -> None:
        found = self.function.bars.get(bar)
        if found is None or found.is_io != is_io:
            raise EfiError(_UNSUPPORTED)
        self._checked(width, offset, count, found.size)

    def _read(self, is_io: bool, width: int, bar: int, offset: int, count: int) -> bytes:
        self._checked_bar(is_io, width, bar, offset, count)
        return _read(lambda at, size: self.function.read_register(bar, at, size), width, offset, count)

    def _write(self, is_io: bool, width: int, bar: int, offset: int, count: int, data: bytes) -> None:
        self._checked_bar(is_io, width, bar, offset, count)
        _write(lambda at, size, value: self.function.write_register(bar, at, size, value), width, offset, count, data)

    def _poll(self, is_io: bool, width: int, bar: int, offset: int, mask: int, value: int, delay_100ns: int) -> int:
        if width > 3:
            raise EfiError(_INVALID)
        core = self.core
        while True:
            seen = int.from_bytes(self._read(is_io, width, bar, offset, 1), "little")
            if seen & mask == value:
                return seen
            if delay_100ns <= 0:
                raise RefusalWithValue(EfiStatus.TIMEOUT, seen)
            moving = core.idle()
            # Where nothing outside moves, reading again before the end shows nothing new.
            step = min(delay_100ns, POLL_100NS) if moving else delay_100ns
            core.events.advance(step)
            delay_100ns -= step

    def _tell(self, what: str, size: int, address: int) -> None:
        core = self.core
        core.trace.add(_CORE_MEMORY, self.agent, core.outer_service, (what, size), None, address)


def _read(get: Callable[[int, int], int], width: int, offset: int, count: int) -> bytes:
    """Read `count` values: ascending, from one address (Fifo), or ascending and keep the last (Fill)."""
    size = 1 << (width & 3)
    step = 0 if width & 4 else size
    data = b"".join(get(offset + index * step, size).to_bytes(size, "little") for index in range(count))
    return data[-size:] if width & 8 else data


def _write(put: Callable[[int, int, int], None], width: int, offset: int, count: int, data: bytes) -> None:
    """Write `count` values: ascending, to one address (Fifo), or one value to ascending addresses (Fill)."""
    size = 1 << (width & 3)
    step = 0 if width & 4 else size
    for index in range(count):
        at = 0 if width & 8 else index * size
        put(offset + index * step, size, int.from_bytes(data[at : at + size], "little"))
