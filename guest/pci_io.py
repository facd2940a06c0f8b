"""EFI_PCI_IO_PROTOCOL in guest memory, and the PCI device that XenIoPciDxe looks for.

What the members do is `reference_impl.uefi.pci_io`'s business; here they are laid out (UEFI 2.10 §14.4) and their
arguments translated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from guest.machine import Machine
from guest.thunks import Thunks
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.handle_database import RefusalWithValue
from reference_impl.uefi.pci_io import GET, SUPPORTED, Bar, PciFunction, PciIo
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.world import GRANT_TABLE_ADDRESS

_MASK32 = 0xFFFFFFFF
_INVALID = EfiStatus.INVALID_PARAMETER


def xen_platform_device() -> PciFunction:
    """The Xen platform device as QEMU has it: 5853:0001, I/O ports in BAR 0 and 16 MiB of memory in BAR 1."""
    return PciFunction(
        (0, 0, 2, 0),
        0x5853,
        0x0001,
        0xFF8000,
        {0: Bar(0xC000, 0x100, is_io=True), 1: Bar(GRANT_TABLE_ADDRESS, 1 << 24)},
        1,
    )


class PciIoInterface:
    """The protocol in guest memory, for any number of functions."""

    __slots__ = ("_argument", "_calls", "_functions", "_machine", "_members", "_thunks")

    def __init__(self, thunks: Thunks) -> None:
        self._thunks = thunks
        self._machine: Machine = thunks.machine
        self._functions: dict[int, PciFunction] = {}
        self._calls: dict[tuple[str, int], PciIo] = {}
        self._argument = thunks.argument
        members = (
            *(self._poll_memory, self._poll_ports),
            *(self._read_memory, self._write_memory, self._read_ports, self._write_ports),
            *(self._read_config, self._write_config, self._copy_memory),
            *(self._map, self._unmap, self._allocate_buffer, self._free_buffer, self._flush),
            *(self._get_location, self._attributes, self._get_bar_attributes, self._set_bar_attributes),
        )
        self._members = struct.pack("<18Q", *(thunks.write(member) for member in members))

    def lay_out(self, function: PciFunction) -> int:
        """Place the interface of a function, which has no option ROM; its address."""
        address = self._thunks.firmware.place(self._members + bytes(16))
        self._functions[address] = function
        return address

    def _io(self, services: BootServices, this: int) -> PciIo:
        io = self._calls.get((services.agent, this))
        if io is None:
            function = self._functions.get(this)
            if function is None:
                raise self._machine.fault("read", "no EFI_PCI_IO_PROTOCOL", this)
            io = self._calls[services.agent, this] = PciIo(services.core, services.agent, function)
        return io

    def _data(self, width: int, count: int, buffer: int) -> bytes:
        """The caller's buffer of a transfer: what is to be written, or what will be overwritten. Raises GuestFault."""
        size = 1 << (width & 3)
        return self._machine.read(buffer, size if width & 8 else size * count)

    def _poll_memory(self, services: BootServices, this: int, width: int, bar: int, offset: int, sp: int) -> None:
        self._poll(self._io(services, this).poll_memory, width, bar, offset, sp)

    def _poll_ports(self, services: BootServices, this: int, width: int, bar: int, offset: int, sp: int) -> None:
        self._poll(self._io(services, this).poll_ports, width, bar, offset, sp)

    def _poll(self, poll: Callable[..., int], width: int, bar: int, offset: int, sp: int) -> None:
        mask, value, delay, out = (self._argument(sp, index) for index in range(4, 8))
        if not out:
            raise EfiError(_INVALID)
        try:
            seen = poll(width & _MASK32, bar & 0xFF, offset, mask, value, delay)
        except RefusalWithValue as refusal:
            self._machine.put_u64(out, refusal.value)
            raise
        self._machine.put_u64(out, seen)

    def _read_memory(self, services: BootServices, this: int, width: int, bar: int, offset: int, sp: int) -> None:
        self._read(self._io(services, this).read_memory, width, bar, offset, sp)

    def _read_ports(self, services: BootServices, this: int, width: int, bar: int, offset: int, sp: int) -> None:
        self._read(self._io(services, this).read_ports, width, bar, offset, sp)

    def _read(self, read: Callable[..., bytes], width: int, bar: int, offset: int, sp: int) -> None:
        count, buffer = self._argument(sp, 4), self._argument(sp, 5)
        width &= _MASK32
        self._data(width, count, buffer)
        self._machine.write(buffer, read(width, bar & 0xFF, offset, count))

    def _write_memory(self, services: BootServices, this: int, width: int, bar: int, offset: int, sp: int) -> None:
        self._write(self._io(services, this).write_memory, width, bar, offset, sp)

    def _write_ports(self, services: BootServices, this: int, width: int, bar: int, offset: int, sp: int) -> None:
        self._write(self._io(services, this).write_ports, width, bar, offset, sp)

    def _write(self, write: Callable[..., None], width: int, bar: int, offset: int, sp: int) -> None:
        count, buffer = self._argument(sp, 4), self._argument(sp, 5)
        width &= _MASK32
        data = self._data(width, count, buffer)
        write(width, bar & 0xFF, offset, count, data)

    def _read_config(self, services: BootServices, this: int, width: int, offset: int, count: int, sp: int) -> None:
        buffer = self._argument(sp, 4)
        width &= _MASK32
        self._data(width, count, buffer)
        self._machine.write(buffer, self._io(services, this).read_config(width, offset & _MASK32, count))

    def _write_config(self, services: BootServices, this: int, width: int, offset: int, count: int, sp: int) -> None:
        buffer = self._argument(sp, 4)
        width &= _MASK32
        data = self._data(width, count, buffer)
        self._io(services, this).write_config(width, offset & _MASK32, count, data)

    def _copy_memory(self, services: BootServices, this: int, width: int, to_bar: int, to: int, sp: int) -> None:
        from_bar, source, count = (self._argument(sp, index) for index in range(4, 7))
        self._io(services, this).copy_memory(width & _MASK32, to_bar & 0xFF, to, from_bar & 0xFF, source, count)

    def _map(self, services: BootServices, this: int, operation: int, address: int, size: int, sp: int) -> None:
        device_address, out = self._argument(sp, 4), self._argument(sp, 5)
        if not size or not device_address or not out:
            raise EfiError(_INVALID)
        machine = self._machine
        mapping = self._io(services, this).map(operation & _MASK32, address, machine.u64(size))
        machine.put_u64(device_address, address)
        machine.put_u64(out, mapping)

    def _unmap(self, services: BootServices, this: int, mapping: int, *_: int) -> None:
        self._io(services, this).unmap(mapping)

    def _allocate_buffer(
        self, services: BootServices, this: int, _: int, memory_type: int, count: int, sp: int
    ) -> None:
        out = self._argument(sp, 4)
        if not out:
            raise EfiError(_INVALID)
        address = self._io(services, this).allocate_buffer(memory_type & _MASK32, count)
        self._thunks.heap.pages_allocated(address, count)
        self._machine.put_u64(out, address)

    def _free_buffer(self, services: BootServices, this: int, count: int, address: int, *_: int) -> None:
        self._io(services, this).free_buffer(count, address)
        self._thunks.heap.pages_freed(address, count)

    def _flush(self, services: BootServices, this: int, *_: int) -> None:
        self._io(services, this).flush()

    def _get_location(self, services: BootServices, this: int, segment: int, bus: int, device: int, sp: int) -> None:
        places = (segment, bus, device, self._argument(sp, 4))
        if not all(places):
            raise EfiError(_INVALID)
        for place, number in zip(places, self._io(services, this).get_location(), strict=True):
            self._machine.put_u64(place, number)

    def _attributes(
        self, services: BootServices, this: int, operation: int, attributes: int, out: int, sp: int
    ) -> None:
        operation &= _MASK32
        if operation in (GET, SUPPORTED) and not out:
            raise EfiError(_INVALID)
        enabled = self._io(services, this).operate_attributes(operation, attributes)
        if out:
            self._machine.put_u64(out, enabled)

    def _get_bar_attributes(
        self, services: BootServices, this: int, bar: int, supports: int, resources: int, sp: int
    ) -> None:
        if not supports and not resources:
            raise EfiError(_INVALID)
        supported, address, described = self._io(services, this).get_bar_attributes(bar & 0xFF, bool(resources))
        if supports:
            self._machine.put_u64(supports, supported)
        if resources:
            self._thunks.heap.pool_allocated(address, len(described))
            self._machine.write(address, described)
            self._machine.put_u64(resources, address)

    def _set_bar_attributes(self, services: BootServices, this: int, attributes: int, bar: int, *_: int) -> None:
        self._io(services, this).set_bar_attributes(attributes, bar & 0xFF)
