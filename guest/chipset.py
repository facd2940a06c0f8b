"""The I/O ports of a PC that drivers' libraries ask, and what happens at all others.

There are the PCI configuration of a host bridge and of the power management function of QEMU's i440FX machine, the ACPI
timer that it names, the real time clock, and the ports for debug output. Everything else is a *stray* access: nothing is
there, reads answer ones, and the first one of each place is recorded.

Time passes with every look at the timer, so that a library's delay ends. No notification runs meanwhile: this is the
middle of somebody's code, not a service.
"""

from __future__ import annotations

from guest.drivers import Images
from guest.machine import STRAY_PC, GuestFault, Machine
from reference_impl.trace import Kind
from reference_impl.uefi.core import Core
from reference_impl.uefi.runtime_services import time_at

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
RTC_INDEX, RTC_DATA = 0x70, 0x71
TIMER = 0x608
DEBUG_PORTS = frozenset({0x80, 0x402})

TIMER_HZ = 3_579_545
LOOK_100NS = 100  # what one look at the timer takes

_CONFIG = {
    (0, 0, 0x00): 0x1237_8086,
    (1, 3, 0x00): 0x7113_8086,
    (1, 3, 0x40): TIMER - 8 | 1,  # where the power management registers are
    (1, 3, 0x80): 1,  # and that they are there
}
"""(device, function, register) of bus 0 → value. What is not here reads as ones, as a device that is not there."""


class Chipset:
    """The ports of one machine."""

    __slots__ = ("_address", "_core", "_images", "_index", "_machine", "_strays")

    def __init__(self, core: Core, images: Images) -> None:
        self._core = core
        self._images = images
        self._machine: Machine = images.machine
        self._address = self._index = 0
        self._strays: set[tuple[str, int, str]] = set()
        self._machine.read_port = self.read
        self._machine.write_port = self.write

    def read(self, port: int, size: int) -> int:
        """What guest code reads from a port."""
        ones = (1 << 8 * size) - 1
        if port == CONFIG_ADDRESS:
            return self._address & ones
        if CONFIG_DATA <= port < CONFIG_DATA + 4:
            device, function = self._address >> 11 & 0x1F, self._address >> 8 & 7
            bus = self._address >> 16 & 0xFF
            value = _CONFIG.get((device, function, self._address & 0xFC)) if bus == 0 else None
            return ones if value is None else value >> 8 * (port & 3) & ones
        if port == TIMER:
            events = self._core.events
            events.now_100ns += LOOK_100NS
            return events.now_100ns * TIMER_HZ // 10_000_000 & ones
        if port == RTC_DATA:
            return self._clock() & ones
        if port not in DEBUG_PORTS and port != RTC_INDEX:
            self._stray("in", port)
        return ones

    def write(self, port: int, size: int, value: int) -> None:
        """Take what guest code writes to a port."""
        if port == CONFIG_ADDRESS:
            self._address = value
        elif port == RTC_INDEX:
            self._index = value & 0x7F
        elif port not in DEBUG_PORTS and port != RTC_DATA and not CONFIG_DATA <= port < CONFIG_DATA + 4:
            self._stray("out", port)

    def _clock(self) -> int:
        """A register of the real time clock (Motorola MC146818), in BCD and 24 hours."""
        time = time_at(self._core.events.now_100ns)
        numbers = {
            0: time.second,
            2: time.minute,
            4: time.hour,
            7: time.day,
            8: time.month,
            9: time.year % 100,
            0x32: time.year // 100,
        }
        if self._index in numbers:
            number = numbers[self._index]
            return number // 10 << 4 | number % 10
        return {0xA: 0x26, 0xB: 0x02, 0xD: 0x80}.get(self._index, 0)

    def _stray(self, direction: str, port: int) -> None:
        """Record an access to a port where nothing is, once for each place. Where the code is, the stack alone tells."""
        machine = self._machine
        frames = self._images.backtrace(GuestFault("port", port, STRAY_PC, machine.stack_pointer))
        if "+" not in frames[0]:
            frames = (
                self._images.place_of(self._images.entered),
            )  # it has called nobody, and nobody but us has called it
        if (direction, port, frames[0]) in self._strays:
            return
        self._strays.add((direction, port, frames[0]))
        agent = next((frame.partition("+")[0] for frame in frames if "+" in frame), "guest")
        self._core.trace.add(Kind.STRAY, agent, direction, (port, *frames))
