"""The system table's configuration tables, and InstallConfigurationTable (UEFI 2.10 §4.6 and §7.5.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference_impl.uefi.core import service
from reference_impl.uefi.status import EfiError, EfiStatus

if TYPE_CHECKING:
    from reference_impl.uefi.core import Core

ENTRY_SIZE_BYTES = 24
ENTRIES_PER_GROWTH = 16  # edk2 makes room for so many more whenever the array is full


class ConfigurationTables:
    """The array of (GUID, address) that the system table points to.

    tables   GUID to address, in the array's order
    """

    __slots__ = ("_allocation", "_capacity", "core", "tables")

    def __init__(self, core: Core) -> None:
        self.core = core
        self.tables: dict[str, int] = {}
        self._capacity = 0
        self._allocation = 0

    def install(self, guid: str, table: int) -> None:
        """Add, replace or (address 0) remove a table, and signal the event group of that name.

        Raises EfiError: INVALID_PARAMETER without a GUID; NOT_FOUND where there is nothing to remove; OUT_OF_RESOURCES.
        """
        if not guid:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        if table == 0 and guid not in self.tables:
            raise EfiError(EfiStatus.NOT_FOUND)
        if table == 0:
            del self.tables[guid]
        else:
            if guid not in self.tables and len(self.tables) == self._capacity:
                self._grow()
            self.tables[guid] = table
        self.core.events.signal_group(guid)

    @property
    def buffer_count(self) -> int:
        """How many buffers of the core hold the array: none before the first table."""
        return 1 if self._allocation else 0

    def _grow(self) -> None:
        capacity = self._capacity + ENTRIES_PER_GROWTH
        allocation = self.core.allocate(capacity * ENTRY_SIZE_BYTES)
        old, self._allocation, self._capacity = self._allocation, allocation, capacity
        if old:
            self.core.free(old)


class ConfigurationTableServices:
    """InstallConfigurationTable of `BootServices`."""

    __slots__ = ()

    core: Core
    agent: str
    image_handle: int

    @service("InstallConfigurationTable")
    def install_configuration_table(self, guid: str, table: int) -> None:
        """Add, replace or (table 0) remove a configuration table; the table's GUID is signalled as an event group.

        EFI_INVALID_PARAMETER: no GUID. EFI_NOT_FOUND: nothing to remove. EFI_OUT_OF_RESOURCES. UEFI 2.10 §7.5.6.
        """
        self.core.configuration_tables.install(guid, table)
