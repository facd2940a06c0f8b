"""Services as guest code sees them: called through the tables, with pointers, and with a status as answer."""

from __future__ import annotations

import struct
import uuid
import zlib

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.calling_convention import CallingConvention
from guest.drivers import Images
from guest.heap import FREED, NEW
from guest.machine import CODE_END, EXECUTE, PAGE, READ, WRITE, GuestFault, Machine
from guest.tables import (
    BOOT_SERVICES,
    HOB_LIST_TABLE,
    PCD_SERVICES,
    RUNTIME_SERVICES,
    FirmwareMemory,
    guid_bytes,
    place_hobs,
)
from guest.thunks import Thunks
from reference_impl.failures import Failures
from reference_impl.trace import Kind, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.core import Core
from reference_impl.uefi.runtime_services import SystemReset
from reference_impl.uefi.status import EfiStatus

GUID = "12345678-9abc-def0-1122-334455667788"
NOTIFICATION = CODE_END - PAGE
SUCCESS = 0
INVALID, UNSUPPORTED, NOT_FOUND = EfiStatus.INVALID_PARAMETER, EfiStatus.UNSUPPORTED, EfiStatus.NOT_FOUND


class Guest:
    """A machine with services and no driver: `call("AllocatePool", …)` calls as guest code does."""

    def __init__(self):
        self.machine = Machine()
        self.trace = Trace()
        self.core = Core(self.trace, Failures(self.trace, lambda call: True))
        self.convention = CallingConvention(self.machine)
        self.firmware = FirmwareMemory(self.machine)
        self.images = Images(self.convention, self.firmware)
        self.thunks = Thunks(self.core, self.convention, self.firmware, self.images)
        self.out = self.firmware.reserve(64)
        self.out2 = self.firmware.reserve(64)
        self.guid = self.firmware.guid(GUID)
        self.machine.map(NOTIFICATION, PAGE, READ | WRITE | EXECUTE)

    def table(self):
        """The address of the boot services table."""
        return self.machine.u64(self.thunks.tables.system_table + 96)

    def call(self, service, *arguments):
        """Call a boot service through the table."""
        function = self.machine.u64(self.table() + 24 + 8 * BOOT_SERVICES.index(service))
        return self.convention.call(function, *arguments)

    def runtime(self, service, *arguments):
        """Call a runtime service through its table."""
        table = self.machine.u64(self.thunks.tables.system_table + 88)
        return self.convention.call(self.machine.u64(table + 24 + 8 * RUNTIME_SERVICES.index(service)), *arguments)

    def value(self, at=None):
        """What a service has left."""
        return self.machine.u64(at or self.out)

    def pool(self, size):
        """A pool buffer."""
        assert self.call("AllocatePool", 4, size, self.out) == SUCCESS
        return self.value()

    def install(self, guid=None, interface=0x1234):
        """A new handle with a protocol."""
        self.machine.put_u64(self.out, 0)
        assert self.call("InstallProtocolInterface", self.out, guid or self.guid, 0, interface) == SUCCESS
        return self.value()


@pytest.fixture
def guest():
    """A guest, and its machine given back."""
    made = Guest()
    yield made
    made.machine.close()


def misuse(guest):
    """Names of the misuse that was recorded."""
    return [record[5] for record in guest.trace.records if record[0] == Kind.MEMORY]


def test_system_table_leads_to_all_tables(guest):
    """Signatures are where the specification has them, and every service is there (UEFI 2.10 §4)."""
    machine, system_table = guest.machine, guest.thunks.tables.system_table
    assert machine.read(system_table, 8) == b"IBI SYST"
    assert machine.read(machine.u64(system_table + 88), 8) == b"RUNTSERV"
    assert machine.read(guest.table(), 8) == b"BOOTSERV"
    assert len(BOOT_SERVICES) == 44
    services = struct.unpack("<44Q", machine.read(guest.table() + 24, 44 * 8))
    assert [index for index, function in enumerate(services) if not function] == [BOOT_SERVICES.index("")]
    assert guest.runtime("SetTime", 0) == UNSUPPORTED


def test_configuration_tables_are_listed(guest):
    """What is installed appears in the system table's array, with the HOB list's GUID as it stands in memory."""
    hobs = place_hobs(guest.firmware, 0x5000)
    assert guest.call("InstallConfigurationTable", guest.firmware.guid(HOB_LIST_TABLE), hobs) == SUCCESS
    assert guest.call("InstallConfigurationTable", guest.guid, 0) == NOT_FOUND
    system_table = guest.thunks.tables.system_table
    assert guest.machine.u64(system_table + 104) == 1
    array = guest.machine.u64(system_table + 112)
    assert guest.machine.read(array, 24) == guid_bytes(HOB_LIST_TABLE) + struct.pack("<Q", hobs)
    assert struct.unpack("<HH", guest.machine.read(hobs, 4)) == (1, 56)
    assert struct.unpack("<HH", guest.machine.read(hobs + 56, 4))[0] == 4
    assert guest.machine.u64(hobs + 56 + 24) == 0x5000


def test_pool_is_poisoned_guarded_and_recorded(guest):
    """New memory is no zeros, freed memory is no pointer, and writing behind the end is seen."""
    address = guest.pool(24)
    assert guest.machine.read(address, 24) == bytes([NEW]) * 24
    guest.machine.write(address + 24, b"!")
    assert guest.call("FreePool", address) == SUCCESS
    assert guest.machine.read(address, 24) == bytes([FREED]) * 24
    assert misuse(guest) == ["overrun"]
    assert guest.call("FreePool", address) == INVALID
    assert misuse(guest) == ["overrun", "double-free"]


def test_end_of_the_run_looks_at_what_is_still_allocated(guest):
    """A buffer that nobody frees is checked, too."""
    address = guest.pool(8)
    guest.thunks.heap.check()
    assert misuse(guest) == []
    guest.machine.write(address + 8, b"!")
    guest.thunks.heap.check()
    assert misuse(guest) == ["overrun"]
    assert guest.thunks.heap.size_of(address) == 8


def test_pages_are_there_while_they_are_allocated(guest):
    """Use of freed pages is a fault."""
    assert guest.call("AllocatePages", 0, 4, 2, guest.out) == SUCCESS
    address = guest.value()
    guest.machine.put_u64(address + 2 * PAGE - 8, 1)
    assert guest.call("FreePages", address, 1) == SUCCESS
    with pytest.raises(GuestFault):
        guest.machine.u64(address)
    assert guest.machine.u64(address + 2 * PAGE - 8) == 1
    assert guest.call("FreePages", address, 1) == NOT_FOUND


def test_null_for_an_answer_is_refused(guest):
    """The thunk says so to the core, and writes nothing."""
    assert guest.call("AllocatePool", 4, 8, 0) == INVALID
    assert guest.call("AllocatePages", 0, 4, 1, 0) == INVALID
    assert guest.call("CreateEvent", 0, 0, 0, 0, 0) == INVALID
    assert guest.call("InstallProtocolInterface", 0, guest.guid, 0, 0) == INVALID
    assert guest.call("InstallMultipleProtocolInterfaces", 0, 0) == INVALID
    assert guest.call("HandleProtocol", 1, guest.guid, 0) == INVALID
    assert guest.call("LocateProtocol", guest.guid, 0, 0) == INVALID
    assert guest.call("LocateHandleBuffer", 0, 0, 0, 0, 0) == INVALID
    assert guest.call("LocateHandle", 0, 0, 0, 0, 0) == INVALID
    assert guest.call("ProtocolsPerHandle", 1, 0, 0) == INVALID
    assert guest.call("RegisterProtocolNotify", guest.guid, 0, 0) == INVALID
    assert guest.call("GetMemoryMap", 0, 0, 0, 0, 0) == INVALID
    assert guest.call("GetNextMonotonicCount", 0) == INVALID
    assert guest.call("CalculateCrc32", 0, 0, 0) == INVALID


def test_bad_pointer_to_a_service_is_a_fault_of_the_guest(guest):
    """Firmware would have written there."""
    with pytest.raises(GuestFault, match="write 0x10"):
        guest.call("AllocatePool", 4, 8, 0x10)


def test_memory_map_is_written_as_descriptors(guest):
    """Too small first, with the size that it takes; then descriptors, key and version (UEFI 2.10 §7.2.3)."""
    machine = guest.machine
    size, key, each = guest.out, guest.out + 8, guest.out + 16
    machine.put_u64(size, 1)
    assert guest.call("GetMemoryMap", size, 0, key, each, guest.out2) == EfiStatus.BUFFER_TOO_SMALL
    needed = machine.u64(size)
    assert machine.u64(each) == 48
    buffer = guest.firmware.reserve(needed)
    assert guest.call("GetMemoryMap", size, buffer, key, each, guest.out2) == SUCCESS
    assert machine.u64(key) == guest.core.memory.map_key
    assert machine.u32(guest.out2) == 1
    kind, start, pages = struct.unpack("<I4xQ8xQ", machine.read(buffer + 48, 32))
    assert (kind, start, pages) == (7, 0x1000, 0x9F)


def test_tpl_services_answer_no_status(guest):
    """RaiseTPL gives the level before."""
    assert guest.call("RaiseTPL", 16) == 4
    assert guest.trace.tpl == 16
    guest.call("RestoreTPL", 4)
    assert guest.trace.tpl == 4


def test_notification_runs_guest_code(guest):
    """It gets event and context: mov [rdx], rcx; ret."""
    guest.machine.write(NOTIFICATION, b"\x48\x89\x0a\xc3")
    assert guest.call("CreateEvent", 0x200, 8, NOTIFICATION, guest.out2, guest.out) == SUCCESS
    event = guest.value()
    assert guest.call("SignalEvent", event) == SUCCESS
    assert guest.value(guest.out2) == event
    assert guest.call("CloseEvent", event) == SUCCESS
    assert guest.call("SignalEvent", event) == INVALID


def test_event_of_a_group_is_signalled_with_it(guest):
    """CreateEventEx takes group and event from the stack."""
    guest.machine.write(NOTIFICATION, b"\x48\x89\x0a\xc3")
    arguments = (0x200, 8, NOTIFICATION, guest.out2, guest.guid, guest.out)
    assert guest.call("CreateEventEx", *arguments) == SUCCESS
    guest.core.events.signal_group(GUID)
    assert guest.value(guest.out2) == guest.value()


def test_timers_and_waiting(guest):
    """Time passes in WaitForEvent, and also where it refuses, as a driver asks again then."""
    assert guest.call("CreateEvent", 0x80000000, 0, 0, 0, guest.out) == SUCCESS
    event = guest.value()
    assert guest.call("CheckEvent", event) == EfiStatus.NOT_READY
    assert guest.call("SetTimer", event, 2, 1000) == SUCCESS
    guest.machine.put_u64(guest.out, event)
    assert guest.call("WaitForEvent", 1, guest.out, guest.out2) == SUCCESS
    assert guest.value(guest.out2) == 0
    guest.call("RaiseTPL", 8)
    before = guest.core.events.now_100ns
    assert guest.call("WaitForEvent", 1, guest.out, guest.out2) == UNSUPPORTED
    assert guest.core.events.now_100ns > before
    guest.call("RestoreTPL", 4)
    assert guest.call("Stall", 100) == SUCCESS
    guest.machine.put_u64(guest.out, 77)
    guest.machine.put_u64(guest.out2, 9)
    assert guest.call("WaitForEvent", 1, guest.out, guest.out2) == INVALID
    assert guest.value(guest.out2) == 0
    assert guest.call("WaitForEvent", 0, guest.out, guest.out2) == INVALID


def test_protocols_are_installed_found_and_opened(guest):
    """Handles, GUIDs and interfaces make the way there and back."""
    handle = guest.install()
    assert guest.call("HandleProtocol", handle, guest.guid, guest.out) == SUCCESS
    assert guest.value() == 0x1234
    assert guest.call("LocateProtocol", guest.guid, 0, guest.out) == SUCCESS
    assert guest.value() == 0x1234
    other = guest.install()
    assert guest.call("OpenProtocol", handle, guest.guid, guest.out, other, other, 0x10) == SUCCESS
    assert guest.value() == 0x1234
    guest.machine.put_u64(guest.out, 0)
    assert guest.call("OpenProtocol", handle, guest.guid, guest.out, other, other, 0x10) == EfiStatus.ALREADY_STARTED
    assert guest.value() == 0x1234
    assert guest.call("OpenProtocolInformation", handle, guest.guid, guest.out, guest.out2) == SUCCESS
    count, entries = guest.value(guest.out2), guest.value()
    assert struct.unpack("<QQII", guest.machine.read(entries + 24 * (count - 1), 24)) == (other, other, 0x10, 1)
    assert guest.call("FreePool", entries) == SUCCESS
    assert guest.call("CloseProtocol", handle, guest.guid, other, other) == SUCCESS
    assert guest.call("CloseProtocol", handle, guest.guid, other, other) == NOT_FOUND
    assert guest.call("ReinstallProtocolInterface", handle, guest.guid, 0x1234, 0x5678) == SUCCESS
    assert guest.call("UninstallProtocolInterface", handle, guest.guid, 0x1234) == NOT_FOUND
    assert guest.call("UninstallProtocolInterface", handle, guest.guid, 0x5678) == SUCCESS


def test_handles_are_listed_in_buffers(guest):
    """LocateHandle in the caller's, LocateHandleBuffer and ProtocolsPerHandle in one that the caller frees."""
    handles = [guest.install(), guest.install()]
    size, room = guest.out, guest.firmware.reserve(64)
    guest.machine.put_u64(size, 8)
    assert guest.call("LocateHandle", 2, guest.guid, 0, size, room) == EfiStatus.BUFFER_TOO_SMALL
    assert guest.value(size) == 16
    assert guest.call("LocateHandle", 2, guest.guid, 0, size, room) == SUCCESS
    assert list(struct.unpack("<2Q", guest.machine.read(room, 16))) == handles
    assert guest.call("LocateHandleBuffer", 2, guest.guid, 0, guest.out2, guest.out) == SUCCESS
    assert guest.value(guest.out2) == 2
    assert list(struct.unpack("<2Q", guest.machine.read(guest.value(), 16))) == handles
    assert guest.call("FreePool", guest.value()) == SUCCESS
    assert guest.call("ProtocolsPerHandle", handles[0], guest.out, guest.out2) == SUCCESS
    assert guest.value(guest.out2) == 1
    found = guest.machine.u64(guest.value())
    assert guest.machine.read(found, 16) == uuid.UUID(GUID).bytes_le


def test_several_protocols_in_one_call(guest):
    """A null pointer ends the list, however many there are."""
    names = [str(uuid.UUID(int=number)) for number in range(1, 4)]
    pairs = [word for name in names for word in (guest.firmware.guid(name), 0x100)]
    guest.machine.put_u64(guest.out, 0)
    assert guest.call("InstallMultipleProtocolInterfaces", guest.out, *pairs, 0) == SUCCESS
    handle = guest.value()
    assert list(guest.core.handles.handles[handle].protocols) == names
    assert guest.call("UninstallMultipleProtocolInterfaces", handle, *pairs[:4], 0) == SUCCESS
    assert list(guest.core.handles.handles[handle].protocols) == names[2:]


def test_device_path_is_known_by_its_bytes(guest):
    """The same path cannot be installed twice, wherever it stands (UEFI 2.10 §7.3.17)."""
    path = bytes.fromhex("0101060000027fff0400")
    device_path = guest.firmware.guid(guids.DEVICE_PATH_PROTOCOL)
    guest.machine.put_u64(guest.out, 0)
    first, second = guest.firmware.place(path + b"more"), guest.firmware.place(path)
    assert guest.call("InstallMultipleProtocolInterfaces", guest.out, device_path, first, 0) == SUCCESS
    guest.machine.put_u64(guest.out, 0)
    answer = guest.call("InstallMultipleProtocolInterfaces", guest.out, device_path, second, 0)
    assert answer == EfiStatus.ALREADY_STARTED


def test_registration_finds_new_instances(guest):
    """RegisterProtocolNotify gives a key that LocateProtocol takes."""
    guest.machine.write(NOTIFICATION, b"\xc3")
    guest.call("CreateEvent", 0x200, 8, NOTIFICATION, 0, guest.out)
    assert guest.call("RegisterProtocolNotify", guest.guid, guest.value(), guest.out2) == SUCCESS
    key = guest.value(guest.out2)
    guest.install(interface=0x77)
    assert guest.call("LocateProtocol", 0, key, guest.out) in (SUCCESS, INVALID)
    assert guest.call("LocateProtocol", guest.guid, key, guest.out) in (SUCCESS, NOT_FOUND)


def test_driver_binding_in_guest_memory_is_asked(guest):
    """ConnectController calls Supported and Start of guest code; their statuses are the core's to judge."""
    supported = NOTIFICATION
    guest.machine.write(supported, b"\x31\xc0\xc3")  # xor eax, eax; ret
    binding = guest.firmware.place(struct.pack("<3QI4xQQ", supported, supported, supported, 7, 0, 0))
    handle = guest.install(guest.firmware.guid(guids.DRIVER_BINDING_PROTOCOL), binding)
    guest.machine.put_u64(binding + 40, handle)
    controller = guest.install()
    guest.machine.put_u64(guest.out, handle)
    guest.machine.put_u64(guest.out + 8, 0)
    guest.machine.write(supported, b"\x48\xb8" + struct.pack("<Q", UNSUPPORTED) + b"\xc3")
    assert guest.call("ConnectController", controller, guest.out, 0, 0) == NOT_FOUND
    entered = [record[5] for record in guest.trace.records if record[0] == Kind.ENTRY]
    assert entered == ["Supported"]
    assert guest.call("DisconnectController", controller, 0, 0) == SUCCESS


def test_what_is_no_service_of_the_core(guest):
    """Copying, filling, counting, and what is not modelled."""
    machine = guest.machine
    machine.write(guest.out, b"abcdefgh")
    assert guest.call("CopyMem", guest.out + 2, guest.out, 4) == SUCCESS
    assert machine.read(guest.out, 8) == b"ababcdgh"
    guest.call("SetMem", guest.out, 3, 0x178)
    assert machine.read(guest.out, 4) == b"xxxb"
    assert guest.call("CalculateCrc32", guest.out, 8, guest.out2) == SUCCESS
    assert machine.u32(guest.out2) == zlib.crc32(machine.read(guest.out, 8))
    counts = []
    for _ in range(2):
        assert guest.call("GetNextMonotonicCount", guest.out) == SUCCESS
        counts.append(guest.value())
    assert counts[1] == counts[0] + 1
    assert guest.call("SetWatchdogTimer", 0, 0, 0, 0) == SUCCESS
    for service in ("LoadImage", "StartImage", "Exit"):
        assert guest.call(service, 0, 0, 0, 0) == UNSUPPORTED


def test_exit_boot_services_and_unload_reach_the_core(guest):
    """A stale key and an image that does not exist are refused."""
    assert guest.call("UnloadImage", 99) == INVALID
    assert guest.call("ExitBootServices", 0, 99999) == INVALID
    assert guest.call("ExitBootServices", 0, guest.core.memory.map_key) == SUCCESS
    assert guest.call("AllocatePool", 4, 8, guest.out) == UNSUPPORTED


def test_time_is_laid_out_as_efi_time(guest):
    """With a time zone that nobody has set (UEFI 2.10 §8.3.1)."""
    guest.core.events.advance(86_400 * 10_000_000)
    assert guest.runtime("GetTime", guest.out, guest.out2) == SUCCESS
    assert struct.unpack("<HBBBBBxIhBx", guest.machine.read(guest.out, 16)) == (2020, 1, 2, 0, 0, 0, 0, 0x7FF, 0)
    assert guest.runtime("GetTime", 0, 0) == INVALID


def test_variables_go_through_pointers(guest):
    """Names in UTF-16, sizes in and out (UEFI 2.10 §8.2)."""
    machine, firmware = guest.machine, guest.firmware
    name, data = firmware.place("Boot\0".encode("utf-16le")), firmware.place(b"data")
    size, attributes = guest.out2, guest.out2 + 8
    assert guest.runtime("SetVariable", name, guest.guid, 6, 4, data) == SUCCESS
    machine.put_u64(size, 3)
    assert guest.runtime("GetVariable", name, guest.guid, attributes, size, guest.out) == EfiStatus.BUFFER_TOO_SMALL
    assert machine.u64(size) == 4
    assert guest.runtime("GetVariable", name, guest.guid, attributes, size, guest.out) == SUCCESS
    assert (machine.read(guest.out, 4), machine.u32(attributes)) == (b"data", 6)
    assert guest.runtime("GetVariable", 0, guest.guid, 0, size, guest.out) == INVALID
    machine.write(guest.out, bytes(2))
    machine.put_u64(size, 64)
    assert guest.runtime("GetNextVariableName", size, guest.out, attributes) == SUCCESS
    assert machine.read(guest.out, 10) == "Boot\0".encode("utf-16le")
    assert machine.read(attributes, 16) == guid_bytes(GUID)
    assert guest.runtime("GetNextVariableName", size, guest.out, attributes) == NOT_FOUND
    machine.write(guest.out, bytes(2))
    machine.put_u64(size, 2)
    assert guest.runtime("GetNextVariableName", size, guest.out, attributes) == EfiStatus.BUFFER_TOO_SMALL
    assert guest.runtime("GetNextVariableName", 0, guest.out, attributes) == INVALID
    assert guest.runtime("QueryVariableInfo", 2, guest.out, guest.out + 8, guest.out + 16) == SUCCESS
    assert machine.u64(guest.out) - machine.u64(guest.out + 8) == 4
    assert guest.runtime("QueryVariableInfo", 2, 0, guest.out, guest.out) == INVALID
    assert guest.runtime("GetNextHighMonotonicCount", guest.out) == SUCCESS
    assert machine.u32(guest.out) == 1


def test_reset_comes_out_of_the_machine(guest):
    """Through the code that called it."""
    with pytest.raises(SystemReset):
        guest.runtime("ResetSystem", 0, 0, 0, 0)


def test_device_path_is_located_by_its_longest_beginning(guest):
    """The pointer moves to what is left (UEFI 2.10 §7.3.8)."""
    machine, firmware = guest.machine, guest.firmware
    node, end = bytes.fromhex("010106000001"), bytes.fromhex("7fff0400")
    device_path = firmware.guid(guids.DEVICE_PATH_PROTOCOL)
    handles = []
    for count in (1, 2):
        machine.put_u64(guest.out, 0)
        path = firmware.place(node * count + end)
        pairs = (guest.guid, 0x1234, device_path, path, 0)
        assert guest.call("InstallMultipleProtocolInterfaces", guest.out, *pairs) == SUCCESS
        handles.append(guest.value())
    wanted = firmware.place(node * 3 + end)
    machine.put_u64(guest.out2, wanted)
    assert guest.call("LocateDevicePath", guest.guid, guest.out2, guest.out) == SUCCESS
    assert (guest.value(), guest.value(guest.out2)) == (handles[1], wanted + 12)
    machine.put_u64(guest.out2, firmware.place(end))
    assert guest.call("LocateDevicePath", guest.guid, guest.out2, guest.out) == NOT_FOUND
    assert (
        guest.call("LocateDevicePath", guest.firmware.guid(guids.PCI_IO_PROTOCOL), guest.out2, guest.out) == NOT_FOUND
    )
    assert guest.call("LocateDevicePath", 0, guest.out2, guest.out) == INVALID
    machine.put_u64(guest.out2, wanted)
    assert guest.call("LocateDevicePath", guest.guid, guest.out2, 0) == INVALID
    assert guest.call("LocateDevicePath", guest.guid, 0, guest.out) == INVALID


def test_pcd_knows_the_host_bridge_and_switches_that_are_on(guest):
    """A pointer leads to zeros; of EFI_PCD_PROTOCOL's members those of edk2 with token spaces are missing."""
    machine, thunks = guest.machine, guest.thunks
    for table, members in ((thunks.pcd, PCD_SERVICES), (thunks.pi_pcd, [m for m in PCD_SERVICES if m[-2:] != "Ex"])):

        def get(member, table=table, members=members):
            return guest.convention.call(machine.u64(table + 8 * members.index(member)), 1, 2)

        assert (get("Get8"), get("Get16"), get("Get32"), get("GetBool")) == (1, 0x1237, 0, 1)
        assert machine.read(get("GetPtr"), 256) == bytes(256)
        assert get("GetNextToken") == NOT_FOUND
