"""From the PCI device to sectors: the shipped XenIoPciDxe, XenBusDxe and XenPvBlkDxe (design `shipped-pci`)."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.machine import GuestFault, Machine
from guest.pci_io import PciIoInterface, xen_platform_device
from guest.world import GuestWorld, run
from oracles import judge
from oracles.memory_services import MEMORY_SERVICES
from reference_impl.scenario import operation, scenario
from reference_impl.trace import Kind, Phase, Record
from reference_impl.uefi import guids
from reference_impl.uefi.status import EfiStatus
from tests.guest.firmware import need_firmware
from tests.guest.test_thunks import INVALID, NOT_FOUND, SUCCESS, UNSUPPORTED, Guest

CONNECT, DISCONNECT, EXIT = operation("connect"), operation("disconnect"), operation("exit")
MEMBERS = (
    *("PollMem", "PollIo", "Mem.Read", "Mem.Write", "Io.Read", "Io.Write", "Pci.Read", "Pci.Write", "CopyMem"),
    *("Map", "Unmap", "AllocateBuffer", "FreeBuffer", "Flush", "GetLocation", "Attributes"),
    *("GetBarAttributes", "SetBarAttributes"),
)


@pytest.fixture(scope="module")
def drivers():
    """The images of the design."""
    return need_firmware("shipped-pci")


def described(*operations, disks=1):
    """A scenario with block devices."""
    return scenario(world="efi-image", design="shipped-pci", devices=("block",) * disks, operations=operations)


def records(trace, kind, **fields):
    """The records of one kind whose fields have these values."""
    named = [Record(*record) for record in trace.records if record[0] == kind]
    return [record for record in named if all(getattr(record, name) == value for name, value in fields.items())]


class Caller(Guest):
    """A guest with the Xen platform device: `io("Mem.Read", …)` calls as guest code does."""

    def __init__(self):
        super().__init__()
        self.interface = PciIoInterface(self.thunks).lay_out(xen_platform_device())

    def io(self, member, *arguments):
        """Call a member of the protocol."""
        function = self.machine.u64(self.interface + 8 * MEMBERS.index(member))
        return self.convention.call(function, self.interface, *arguments)


@pytest.fixture
def caller():
    """A guest, and its machine given back."""
    made = Caller()
    yield made
    made.machine.close()


def test_accesses_reach_the_device_and_the_callers_memory(caller):
    """Configuration space, registers of both sorts, and where the device is."""
    out, machine = caller.out, caller.machine
    assert caller.io("Pci.Read", 2, 0, 1, out) == SUCCESS
    assert machine.read(out, 4) == bytes.fromhex("53580100")
    machine.write(out, b"data")
    for sort, bar in (("Mem", 1), ("Io", 0)):
        assert caller.io(f"{sort}.Write", 0, bar, 0x10, 4, out) == SUCCESS
        assert caller.io(f"{sort}.Read", 2, bar, 0x10, 1, caller.out2) == SUCCESS
        assert machine.read(caller.out2, 4) == b"data"
    assert caller.io("CopyMem", 0, 1, 0x20, 1, 0x10, 4) == SUCCESS
    assert caller.io("Mem.Read", 2, 6, 0x20, 1, out) == UNSUPPORTED
    assert caller.io("Pci.Write", 1, 4, 1, out) == SUCCESS
    assert caller.io("GetLocation", out, out + 8, out + 16, out + 24) == SUCCESS
    assert struct.unpack("<4Q", machine.read(out, 32)) == (0, 0, 2, 0)
    assert caller.io("GetLocation", out, 0, out, out) == INVALID
    assert caller.io("Flush") == SUCCESS


def test_call_without_an_interface_is_a_fault(caller):
    """`This` must be one that was laid out."""
    function = caller.machine.u64(caller.interface + 8 * MEMBERS.index("Flush"))
    with pytest.raises(GuestFault, match="no EFI_PCI_IO_PROTOCOL"):
        caller.convention.call(function, caller.out)


def test_polls_answer_what_they_saw(caller):
    """Also where the time is over; without a place for the result they are refused."""
    for member, bar in (("PollMem", 1), ("PollIo", 0)):
        assert caller.io(member, 0, bar, 0, 0, 0, 10, caller.out) == SUCCESS
        assert caller.io(member, 0, bar, 0, 1, 1, 10, caller.out) == EfiStatus.TIMEOUT
        assert caller.value() == 0
        assert caller.io(member, 0, bar, 0, 1, 1, 10, 0) == INVALID


def test_memory_for_the_device_is_memory_of_the_guest(caller):
    """Buffers appear and go; a mapping's address is the memory's own."""
    out, machine = caller.out, caller.machine
    assert caller.io("AllocateBuffer", 0, 4, 2, out, 0) == SUCCESS
    address = caller.value()
    machine.write(address, b"mine")
    machine.put_u64(out, 0x2000)
    assert caller.io("Map", 2, address, out, out + 8, out + 16) == SUCCESS
    assert machine.u64(out + 8) == address
    mapping = machine.u64(out + 16)
    assert caller.io("Map", 2, address, out, out + 8, 0) == INVALID
    assert (caller.io("Unmap", mapping), caller.io("Unmap", mapping)) == (SUCCESS, INVALID)
    assert caller.io("FreeBuffer", 2, address) == SUCCESS
    assert not machine.is_mapped(address)
    assert caller.io("FreeBuffer", 2, address) in (INVALID, NOT_FOUND)


def test_attributes_and_bars_are_told(caller):
    """A descriptor stands in pool that the caller frees."""
    assert caller.io("Attributes", 2, 0x600, 0) == SUCCESS
    assert caller.io("Attributes", 0, 0, caller.out) == SUCCESS
    assert caller.value() == 0x600
    assert caller.io("Attributes", 0, 0, 0) == INVALID
    assert caller.io("GetBarAttributes", 1, caller.out2, caller.out) == SUCCESS
    descriptor = caller.value()
    assert caller.machine.read(descriptor, 1) == b"\x8a"
    assert caller.machine.u64(descriptor + 14) == 0xF200_0000
    assert caller.call("FreePool", descriptor) == SUCCESS
    assert caller.io("GetBarAttributes", 1, 0, 0) == INVALID
    assert caller.io("SetBarAttributes", 0, 1, 0, 0) == UNSUPPORTED


@pytest.mark.parametrize(("disks", "calls"), [(0, 1), (1, 113), (2, 225), (4, 449)])
def test_exit_handler_calls_as_many_memory_services_as_without_pci(drivers, disks, calls):
    """The device is found by its configuration space, and everything behind XENIO_PROTOCOL is as before."""
    trace = run(described(CONNECT, EXIT, disks=disks), drivers)
    assert records(trace, Kind.SERVICE, phase=Phase.EXIT, agent="XenBusDxe")
    in_exit = records(trace, Kind.SERVICE, phase=Phase.EXIT)
    assert sum(record.name in MEMORY_SERVICES for record in in_exit) == calls
    started = ["XenIoPciDxe", "XenBusDxe", *["XenPvBlkDxe"] * disks]
    assert [record.agent for record in records(trace, Kind.ENTRY, name="Start")] == started
    (created,) = [record for record in records(trace, Kind.SERVICE, name="CreateEvent") if record.arguments[0] == 0x201]
    assert created.arguments[2] == "XenBusDxe+0x2af"
    found = {(each.oracle, each.rule, each.agent) for each in judge(trace)}
    assert ("memory-services", "direct-call", "XenBusDxe") in found
    accesses = {record.name for record in records(trace, Kind.SERVICE) if record.name.startswith("PciIo.")}
    assert accesses == {"PciIo.Pci.Read", "PciIo.GetBarAttributes"}


def test_sectors_are_written_and_read_back(drivers):
    """Data goes from Block I/O through grants and ring to the backend's disk, and comes back."""
    machine = Machine()
    try:
        world = GuestWorld(described(CONNECT), drivers, machine)
        world.run()
        block_io = world.core.handles.interface_of(world._handle("child-0"), guids.BLOCK_IO_PROTOCOL)
        media, buffer = machine.u32(machine.u64(block_io + 8)), world._request_page
        machine.write(buffer, bytes(range(256)) * 8)
        world.images.enter(machine.u64(block_io + 32), block_io, media, 100, 2048, buffer)
        machine.write(buffer, bytes(2048))
        world.images.enter(machine.u64(block_io + 24), block_io, media, 101, 1024, buffer)
        assert machine.read(buffer, 2048) == bytes(range(256)) * 4 + bytes(1024)
    finally:
        machine.close()


def test_everything_starts_again_after_a_disconnect(drivers):
    """XenIoPciDxe gives its protocol back, and takes the device once more."""
    trace = run(described(CONNECT, DISCONNECT, CONNECT, operation("request"), EXIT), drivers)
    assert [record.status for record in records(trace, Kind.OPERATION)] == [None] * 5
    assert [record.agent for record in records(trace, Kind.ENTRY, name="Start")] == [
        *("XenIoPciDxe", "XenBusDxe", "XenPvBlkDxe") * 2
    ]


def test_pci_access_that_fails_keeps_the_driver_away(drivers):
    """The first access of Supported fails: nothing is started, and nothing is left open."""
    failure = operation("fail", call="PciIo.Pci.Read -> EFI_OUT_OF_RESOURCES")
    trace = run(described(failure, CONNECT), drivers)
    (access,) = records(trace, Kind.SERVICE, name="PciIo.Pci.Read")
    assert access.status == EfiStatus.OUT_OF_RESOURCES
    assert [record.status for record in records(trace, Kind.OPERATION)] == [None, EfiStatus.NOT_FOUND]


def test_bar_that_is_not_described_is_used_all_the_same(drivers):
    """The shipped Start only asserts that GetBarAttributes succeeds: a release build goes on with a wild pointer."""
    failure = operation("fail", call="PciIo.GetBarAttributes -> EFI_UNSUPPORTED")
    trace = run(described(failure, CONNECT), drivers)
    (fault,) = records(trace, Kind.FAULT)
    assert fault.agent == "XenIoPciDxe"
    assert fault.arguments[1].startswith("XenIoPciDxe+0x")
