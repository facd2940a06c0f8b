"""What firmware lays out in memory for the images that it loads (UEFI 2.10 §4 and PI 1.8).

System table, boot services table, runtime services table, configuration tables, and the HOB list with what the platform
tells its drivers. Every function pointer leads to a trap; which one does what is `thunks`' business.

`FirmwareMemory` is the memory that the firmware has for itself, outside of the pools, so that it costs no allocation.
"""

from __future__ import annotations

import struct
import uuid
from functools import lru_cache

from guest.machine import TABLES, TABLES_SIZE, Machine

BOOT_SERVICES = (
    *("RaiseTPL", "RestoreTPL", "AllocatePages", "FreePages", "GetMemoryMap", "AllocatePool", "FreePool"),
    *("CreateEvent", "SetTimer", "WaitForEvent", "SignalEvent", "CloseEvent", "CheckEvent"),
    *("InstallProtocolInterface", "ReinstallProtocolInterface", "UninstallProtocolInterface", "HandleProtocol", ""),
    *("RegisterProtocolNotify", "LocateHandle", "LocateDevicePath", "InstallConfigurationTable"),
    *("LoadImage", "StartImage", "Exit", "UnloadImage", "ExitBootServices"),
    *("GetNextMonotonicCount", "Stall", "SetWatchdogTimer", "ConnectController", "DisconnectController"),
    *("OpenProtocol", "CloseProtocol", "OpenProtocolInformation", "ProtocolsPerHandle", "LocateHandleBuffer"),
    *("LocateProtocol", "InstallMultipleProtocolInterfaces", "UninstallMultipleProtocolInterfaces"),
    *("CalculateCrc32", "CopyMem", "SetMem", "CreateEventEx"),
)
"""The boot services in the order of EFI_BOOT_SERVICES; "" is a reserved place (UEFI 2.10 §4.4)."""

RUNTIME_SERVICES = (
    *("GetTime", "SetTime", "GetWakeupTime", "SetWakeupTime", "SetVirtualAddressMap", "ConvertPointer"),
    *("GetVariable", "GetNextVariableName", "SetVariable", "GetNextHighMonotonicCount", "ResetSystem"),
    *("UpdateCapsule", "QueryCapsuleCapabilities", "QueryVariableInfo"),
)
"""The runtime services in the order of EFI_RUNTIME_SERVICES (UEFI 2.10 §4.5)."""

PCD_SERVICES = (
    *("SetSku", "Get8", "Get16", "Get32", "Get64", "GetPtr", "GetBool", "GetSize"),
    *("Get8Ex", "Get16Ex", "Get32Ex", "Get64Ex", "GetPtrEx", "GetBoolEx", "GetSizeEx"),
    *("Set8", "Set16", "Set32", "Set64", "SetPtr", "SetBool"),
    *("Set8Ex", "Set16Ex", "Set32Ex", "Set64Ex", "SetPtrEx", "SetBoolEx"),
    *("CallbackOnSet", "CancelCallback", "GetNextToken", "GetNextTokenSpace"),
)
"""The members of edk2's PCD_PROTOCOL. Those of EFI_PCD_PROTOCOL are the same without "Ex" (PI 1.8 volume 3 §8)."""

PCD_PROTOCOL = "11b34006-d85b-4d0a-a290-d5a571310ef7"
PI_PCD_PROTOCOL = "13a3f0f6-264a-3ef0-f2e0-dec512342f34"
HOB_LIST_TABLE = "7739f24c-93d7-11d4-9a3a-0090273fc14d"
XEN_INFO_HOB = "d3b46f3b-d441-1244-9a12-0012273fc14d"

_CONFIGURATION_TABLES_MAX = 64
_HEADER_SIZE = 24
_BOOT_SERVICES_SIGNATURE = int.from_bytes(b"BOOTSERV", "little")
_RUNTIME_SERVICES_SIGNATURE = int.from_bytes(b"RUNTSERV", "little")
_SYSTEM_TABLE_SIGNATURE = int.from_bytes(b"IBI SYST", "little")
_REVISION = 2 << 16 | 70  # UEFI 2.7, what edk2 of 2020 says
_SYSTEM_TABLE_SIZE = 120
_HOB_HANDOFF, _HOB_GUID_EXTENSION, _HOB_END = 1, 4, 0xFFFF


@lru_cache(maxsize=256)
def guid_bytes(guid: str) -> bytes:
    """A GUID as it stands in memory."""
    return uuid.UUID(guid).bytes_le


@lru_cache(maxsize=1024)
def guid_text(raw: bytes) -> str:
    """What `guid_bytes` was made from."""
    return str(uuid.UUID(bytes_le=raw))


class FirmwareMemory:
    """Memory of the firmware's own, given out from its beginning and never back, and GUIDs at fixed addresses in it."""

    __slots__ = ("_guids", "_next", "machine")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._next = TABLES
        self._guids: dict[str, int] = {}

    def reserve(self, size: int, alignment: int = 16) -> int:
        """Room for `size` bytes; its address."""
        address = -(-self._next // alignment) * alignment
        self._next = address + size
        assert self._next <= TABLES + TABLES_SIZE, "the firmware's own memory is used up"
        return address

    def place(self, data: bytes, alignment: int = 16) -> int:
        """Room for `data`, and that in it; its address."""
        address = self.reserve(len(data), alignment)
        self.machine.write(address, data)
        return address

    def guid(self, guid: str) -> int:
        """The address of a GUID, the same for the same GUID."""
        address = self._guids.get(guid)
        if address is None:
            address = self._guids[guid] = self.place(guid_bytes(guid))
        return address


class Tables:
    """The tables of one world.

    system_table  address of EFI_SYSTEM_TABLE, what an image's entry point gets
    """

    __slots__ = ("_array", "_memory", "system_table")

    def __init__(self, memory: FirmwareMemory, boot_services: dict[str, int], runtime_services: dict[str, int]) -> None:
        self._memory = memory
        place = memory.place
        boot = place(
            _header(_BOOT_SERVICES_SIGNATURE, _HEADER_SIZE + 8 * len(BOOT_SERVICES))
            + b"".join(struct.pack("<Q", boot_services[name] if name else 0) for name in BOOT_SERVICES)
        )
        runtime = place(
            _header(_RUNTIME_SERVICES_SIGNATURE, _HEADER_SIZE + 8 * len(RUNTIME_SERVICES))
            + b"".join(struct.pack("<Q", runtime_services[name]) for name in RUNTIME_SERVICES)
        )
        vendor = place("ebsfuzz\0".encode("utf-16le"))
        self._array = memory.reserve(_CONFIGURATION_TABLES_MAX * 24)
        self.system_table = place(
            _header(_SYSTEM_TABLE_SIGNATURE, _SYSTEM_TABLE_SIZE)
            # vendor, revision, console input, output and error with their handles: there is no console
            + struct.pack("<QI4x6Q", vendor, 0x10000, 0, 0, 0, 0, 0, 0)
            + struct.pack("<QQQQ", runtime, boot, 0, self._array)
        )

    def set_configuration_tables(self, tables: dict[str, int]) -> None:
        """Let the system table list these tables, in this order."""
        assert len(tables) <= _CONFIGURATION_TABLES_MAX, "no room for more configuration tables"
        machine = self._memory.machine
        for index, (guid, address) in enumerate(tables.items()):
            machine.write(self._array + index * 24, guid_bytes(guid) + struct.pack("<Q", address))
        machine.put_u64(self.system_table + 104, len(tables))


def place_hobs(memory: FirmwareMemory, hypercall_page: int) -> int:
    """The list of hand-off blocks (PI 1.8 volume 3 §4 and §5), with OVMF's block about Xen. Gives its address."""
    handoff = struct.pack("<HHIII5Q", _HOB_HANDOFF, 56, 0, 9, 0, 0, 0, 0, 0, 0)
    xen = guid_bytes(XEN_INFO_HOB) + struct.pack("<QHH4xQ", hypercall_page, 4, 11, 0)
    blocks = handoff + struct.pack("<HHI", _HOB_GUID_EXTENSION, 8 + len(xen), 0) + xen
    return memory.place(blocks + struct.pack("<HHI", _HOB_END, 8, 0))


def _header(signature: int, size: int) -> bytes:
    """EFI_TABLE_HEADER (UEFI 2.10 §4.2). Nobody here checks the CRC, so there is none."""
    return struct.pack("<QIIII", signature, _REVISION, size, 0, 0)
