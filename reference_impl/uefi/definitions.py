"""The closed vocabularies of the boot services, under the specification's names and with its values.

Members that the hottest code needs also stand as plain integers below their enum: looking a member up in an enum class
costs more than the comparison it is used for.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Tpl(IntEnum):
    """Task priority levels (UEFI 2.10 §7.1)."""

    APPLICATION = 4
    CALLBACK = 8
    NOTIFY = 16
    HIGH_LEVEL = 31


TPL_APPLICATION, TPL_CALLBACK, TPL_NOTIFY, TPL_HIGH_LEVEL = 4, 8, 16, 31


class EventType(IntFlag):
    """Event types (UEFI 2.10 §7.1.1, CreateEvent)."""

    TIMER = 0x80000000
    RUNTIME = 0x40000000
    RUNTIME_CONTEXT = 0x20000000
    NOTIFY_WAIT = 0x00000100
    NOTIFY_SIGNAL = 0x00000200
    SIGNAL_EXIT_BOOT_SERVICES = 0x00000201
    SIGNAL_VIRTUAL_ADDRESS_CHANGE = 0x60000202


EVT_TIMER, EVT_RUNTIME, EVT_NOTIFY_WAIT, EVT_NOTIFY_SIGNAL = 0x80000000, 0x40000000, 0x100, 0x200
EVT_SIGNAL_EXIT_BOOT_SERVICES = 0x201
EVT_SIGNAL_VIRTUAL_ADDRESS_CHANGE = 0x60000202


class TimerDelay(IntEnum):
    """EFI_TIMER_DELAY (UEFI 2.10 §7.1.7, SetTimer)."""

    CANCEL = 0
    PERIODIC = 1
    RELATIVE = 2


class OpenAttribute(IntFlag):
    """Attributes of OpenProtocol (UEFI 2.10 §7.3.9)."""

    BY_HANDLE_PROTOCOL = 0x01
    GET_PROTOCOL = 0x02
    TEST_PROTOCOL = 0x04
    BY_CHILD_CONTROLLER = 0x08
    BY_DRIVER = 0x10
    EXCLUSIVE = 0x20


BY_HANDLE_PROTOCOL, GET_PROTOCOL, TEST_PROTOCOL, BY_CHILD_CONTROLLER, BY_DRIVER, EXCLUSIVE = 1, 2, 4, 8, 16, 32


class InterfaceType(IntEnum):
    """EFI_INTERFACE_TYPE (UEFI 2.10 §7.3.2)."""

    NATIVE = 0


class SearchType(IntEnum):
    """EFI_LOCATE_SEARCH_TYPE (UEFI 2.10 §7.3.6)."""

    ALL_HANDLES = 0
    BY_REGISTER_NOTIFY = 1
    BY_PROTOCOL = 2


class AllocateType(IntEnum):
    """EFI_ALLOCATE_TYPE (UEFI 2.10 §7.2.1)."""

    ANY_PAGES = 0
    MAX_ADDRESS = 1
    ADDRESS = 2


class MemoryType(IntEnum):
    """EFI_MEMORY_TYPE (UEFI 2.10 §7.2.1)."""

    RESERVED = 0
    LOADER_CODE = 1
    LOADER_DATA = 2
    BOOT_SERVICES_CODE = 3
    BOOT_SERVICES_DATA = 4
    RUNTIME_SERVICES_CODE = 5
    RUNTIME_SERVICES_DATA = 6
    CONVENTIONAL = 7
    UNUSABLE = 8
    ACPI_RECLAIM = 9
    ACPI_NVS = 10
    MEMORY_MAPPED_IO = 11
    MEMORY_MAPPED_IO_PORT_SPACE = 12
    PAL_CODE = 13
    PERSISTENT = 14
    UNACCEPTED = 15


BOOT_SERVICES_DATA = 4

PAGE_SIZE_BYTES = 4096
