"""EFI_PCI_IO_PROTOCOL over the model of a PCI function (UEFI 2.10 §14.4)."""

from __future__ import annotations

import struct

import pytest

from reference_impl.failures import Failures
from reference_impl.trace import Kind, Record, Trace
from reference_impl.uefi.core import Core
from reference_impl.uefi.handle_database import RefusalWithValue
from reference_impl.uefi.pci_io import (
    ATTRIBUTE_BUS_MASTER,
    ATTRIBUTE_IO,
    ATTRIBUTE_MEMORY,
    DISABLE,
    ENABLE,
    GET,
    SET,
    SUPPORTED,
    Bar,
    PciFunction,
    PciIo,
)
from reference_impl.uefi.status import EfiError, EfiStatus

UINT8, UINT16, UINT32, UINT64, FIFO_8, FILL_8 = 0, 1, 2, 3, 4, 8


@pytest.fixture
def io():
    """The protocol of a function with I/O ports in BAR 0 and memory in BAR 1."""
    trace = Trace()
    function = PciFunction(
        (0, 1, 2, 3), 0x1234, 0x5678, 0x010203, {0: Bar(0xC000, 0x20, is_io=True), 1: Bar(0xF000_0000, 0x1000)}
    )
    return PciIo(Core(trace, Failures(trace, lambda call: True)), "Drv", function)


def refusal(call, *arguments):
    """The status that a call answers."""
    with pytest.raises(EfiError) as caught:
        call(*arguments)
    return caught.value.status


def test_configuration_space_tells_what_the_device_is(io):
    """Ids, class and BARs stand where the PCI specification has them."""
    header = io.read_config(UINT32, 0, 16)
    assert struct.unpack_from("<HH", header) == (0x1234, 0x5678)
    assert struct.unpack_from("<I", header, 8) == (0x010203 << 8,)
    assert struct.unpack_from("<II", header, 0x10) == (0xC001, 0xF000_0000)
    assert io.get_location() == (0, 1, 2, 3)


def test_size_of_a_bar_is_found_by_writing_ones(io):
    """The bits inside of its size stay 0; what is no BAR, and the ids, cannot be written."""
    for offset in (0, 0x14, 0x18):
        io.write_config(UINT32, offset, 1, b"\xff" * 4)
    assert io.read_config(UINT32, 0x14, 1) == struct.pack("<I", 0xFFFF_F000)
    assert io.read_config(UINT32, 0x18, 1) == bytes(4)
    assert io.read_config(UINT16, 0, 1) == struct.pack("<H", 0x1234)


def test_attributes_follow_the_operations(io):
    """Enable and disable change some, set all; the command register follows."""
    assert io.operate_attributes(SUPPORTED, 0) & 0x700 == 0x700
    assert io.operate_attributes(ENABLE, ATTRIBUTE_MEMORY | ATTRIBUTE_BUS_MASTER) == 0x600
    assert io.read_config(UINT16, 4, 1) == b"\x06\0"
    assert io.operate_attributes(DISABLE, ATTRIBUTE_MEMORY) == ATTRIBUTE_BUS_MASTER
    assert io.operate_attributes(SET, ATTRIBUTE_IO) == ATTRIBUTE_IO
    assert io.operate_attributes(GET, 0) == ATTRIBUTE_IO
    assert refusal(io.operate_attributes, ENABLE, 1) == EfiStatus.UNSUPPORTED
    assert refusal(io.operate_attributes, 5, 0) == EfiStatus.INVALID_PARAMETER


def test_registers_keep_what_was_written(io):
    """In every width; a Fifo transfer stays at one address, a Fill transfer has one value."""
    io.write_memory(UINT64, 1, 8, 1, bytes(range(8)))
    assert io.read_memory(UINT8, 1, 8, 8) == bytes(range(8))
    io.write_memory(FIFO_8, 1, 0x20, 3, b"abc")
    assert io.read_memory(UINT8, 1, 0x20, 2) == b"c\0"
    io.write_memory(FILL_8, 1, 0x30, 3, b"x")
    assert io.read_memory(UINT8, 1, 0x30, 4) == b"xxx\0"
    assert io.read_memory(FIFO_8, 1, 0x30, 2) == b"xx"
    io.copy_memory(UINT8, 1, 0x40, 1, 0x30, 2)
    assert io.read_memory(UINT16, 1, 0x40, 1) == b"xx"
    io.write_ports(UINT8, 0, 0, 1, b"p")
    assert io.read_ports(UINT8, 0, 0, 1) == b"p"


def test_what_is_not_there_is_refused(io):
    """A BAR of the other sort or none, a range that does not fit, a width that does not exist."""
    assert refusal(io.read_memory, UINT8, 0, 0, 1) == EfiStatus.UNSUPPORTED
    assert refusal(io.read_ports, UINT8, 1, 0, 1) == EfiStatus.UNSUPPORTED
    assert refusal(io.read_memory, UINT32, 1, 0xFFC, 2) == EfiStatus.UNSUPPORTED
    assert refusal(io.read_config, UINT32, 252, 2) == EfiStatus.UNSUPPORTED
    assert refusal(io.read_config, 12, 0, 1) == EfiStatus.INVALID_PARAMETER
    assert refusal(io.get_bar_attributes, 2, True) == EfiStatus.UNSUPPORTED
    assert refusal(io.set_bar_attributes, 0, 1) == EfiStatus.UNSUPPORTED


def test_poll_waits_for_a_value_or_the_end_of_the_time(io):
    """A fruitless poll takes the time that it may take, and answers what it has seen."""
    io.write_memory(UINT8, 1, 0, 1, b"\x81")
    assert io.poll_memory(UINT8, 1, 0, 0x80, 0x80, 1000) == 0x81
    before = io.core.events.now_100ns
    with pytest.raises(RefusalWithValue) as caught:
        io.poll_memory(UINT8, 1, 0, 0x40, 0x40, 1000)
    assert (caught.value.status, caught.value.value) == (EfiStatus.TIMEOUT, 0x81)
    assert io.core.events.now_100ns - before == 1000


def test_bar_is_described_for_acpi(io):
    """A QWORD address space descriptor in the caller's own pool, and an end tag."""
    _, address, described = io.get_bar_attributes(1, True)
    assert io.core.memory.owner_of(address) == "Drv"
    tag, length, kind = struct.unpack_from("<BHB", described)
    assert (tag, length, kind, described[-2]) == (0x8A, 43, 0, 0x79)
    assert struct.unpack_from("<QQQQ", described, 14) == (0xF000_0000, 0xF000_0FFF, 0, 0x1000)


def test_memory_for_the_device_belongs_to_the_caller(io):
    """AllocateBuffer and FreeBuffer are the core's doing; a mapping ends once."""
    address = io.allocate_buffer(4, 2)
    assert io.core.memory.owner_of(address) == "Drv"
    mapping = io.map(2, address, 0x2000)
    io.unmap(mapping)
    assert refusal(io.unmap, mapping) == EfiStatus.INVALID_PARAMETER
    io.free_buffer(2, address)
    assert not io.core.memory.is_live(address)
    inside = [Record(*record) for record in io.core.trace.records if record[0] == Kind.CORE_MEMORY]
    assert [(record.name, record.arguments) for record in inside] == [
        ("PciIo.AllocateBuffer", ("allocate", 0x2000)),
        ("PciIo.FreeBuffer", ("free", 0)),
    ]


def test_every_access_is_a_call_that_can_fail(io):
    """An armed failure is answered without doing anything."""
    io.core.failures.arm("PciIo.Mem.Write", 1, EfiStatus.OUT_OF_RESOURCES)
    assert refusal(io.write_memory, UINT8, 1, 0, 1, b"x") == EfiStatus.OUT_OF_RESOURCES
    assert io.read_memory(UINT8, 1, 0, 1) == b"\0"
    calls = [Record(*record) for record in io.core.trace.records if record[0] == Kind.SERVICE]
    assert [(call.agent, call.name, call.status) for call in calls] == [
        ("Drv", "PciIo.Mem.Write", EfiStatus.OUT_OF_RESOURCES),
        ("Drv", "PciIo.Mem.Read", EfiStatus.SUCCESS),
    ]
