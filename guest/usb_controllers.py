"""USB host controllers with no device behind them, as far as their drivers look before they start.

A controller halts and resets at once, and says in its status what its command register asks for. All other registers keep
what is written to them. Sources: xHCI 1.2 §5.3 and §5.4, EHCI 1.0 §2.2 and §2.3.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from reference_impl.uefi.pci_io import Bar, PciFunction

RUN, RESET = 1, 2
PORTS = 4

_MEMORY = 0xE000_0000


class HostController(PciFunction):
    """A controller whose registers are the memory in BAR 0.

    command    offset of the command register, behind which the status register stands
    status_of  what the status is while the command register has this value
    """

    __slots__ = ("_command", "_status_of")

    def __init__(
        self, device: int, ids: tuple[int, int, int], capabilities: bytes, status_of: Callable[[int], int]
    ) -> None:
        bars = {0: Bar(_MEMORY + (device << 20), 1 << 16)}
        super().__init__((0, 0, device, 0), *ids, bars)
        self._command = capabilities[0]
        self._status_of = status_of
        for offset, byte in enumerate(capabilities):
            super().write_register(0, offset, 1, byte)

    def read_register(self, bar: int, offset: int, size: int) -> int:
        """A register; the status follows the command."""
        if offset == self._command + 4 and size == 4:
            return self._status_of(super().read_register(bar, self._command, 4))
        return super().read_register(bar, offset, size)

    def write_register(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register; a reset is over at once, and leaves the controller halted."""
        if offset == self._command and value & RESET:
            value = 0
        super().write_register(bar, offset, size, value)


def xhci_controller(device: int) -> HostController:
    """An xHCI controller (class 0C0330) as QEMU has it."""
    capabilities = struct.pack(
        "<BxHIIIIII",
        *(0x40, 0x0100),  # length, version
        *(PORTS << 24 | 1 << 8 | 32, 0, 0, 0),  # ports, interrupters, slots; no scratchpads, no extended capabilities
        *(0x2000, 0x1000),  # doorbells, runtime registers
    )
    page_size = capabilities.ljust(0x48, b"\0") + struct.pack("<I", 1)
    return HostController(device, (0x1B36, 0x000D, 0x0C0330), page_size, lambda command: 0 if command & RUN else 1)


def ehci_controller(device: int) -> HostController:
    """An EHCI controller (class 0C0320): halted, and its schedules, in bits 12, 14 and 15 of the status."""
    capabilities = struct.pack("<BxHII", 0x20, 0x0100, PORTS, 0)
    return HostController(
        device,
        (0x8086, 0x24CD, 0x0C0320),
        capabilities,
        lambda command: (0 if command & RUN else 1 << 12) | (command & 0x30) << 10,
    )
