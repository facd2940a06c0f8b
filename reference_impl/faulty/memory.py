"""Faults of memory: what drivers free, keep and write to.

Python has no pointers to go wrong with. What a driver in C would do with an address is done here by way of the memory
model, which records the misuse as it records that of a real image: `Core.object_at`, `Memory.free_pool`, and `fill`.
"""

from __future__ import annotations

from typing import Any

from reference_impl.faulty.fault import Fault
from reference_impl.trace import Kind
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA
from reference_impl.xenbus.bus_driver import XenBus
from reference_impl.xenbus.front_end import FrontEnd


def fill(services: BootServices, address: int, size_bytes: int, allocated_bytes: int) -> None:
    """Write `size_bytes` to a buffer that has `allocated_bytes`."""
    if size_bytes > allocated_bytes:
        owner = services.core.memory.owner_of(address)
        services.core.trace.add(Kind.MEMORY, services.agent, "overrun", (address, owner))


class _UsesItsDataAfterwards(FrontEnd):
    def stop(self, children: tuple[int, ...]) -> None:
        address = self.allocation
        super().stop(children)
        self.services.core.object_at(address, self.services.agent)._request_id = 0


class _FreesItsDataTwice(FrontEnd):
    def stop(self, children: tuple[int, ...]) -> None:
        address = self.allocation
        super().stop(children)
        self._attempt(self.services.free_pool, address)


class _KeepsAPageForEachRequest(FrontEnd):
    def request(self) -> None:
        self.services.allocate_pages(0, BOOT_SERVICES_DATA, 1, 0)
        super().request()


class _WritesALongName(FrontEnd):
    def _publish(self) -> None:
        name = f"{self.services.agent} on {self.io.node}"
        buffer = self.services.allocate_pool(BOOT_SERVICES_DATA, 24)
        fill(self.services, buffer, len(name) + 1, 24)
        self.services.free_pool(buffer)
        super()._publish()


class _HasAWorkBuffer(XenBus):
    work = 0

    def _take(self) -> None:
        self.work = self.services.allocate_pool(BOOT_SERVICES_DATA, 64)
        super()._take()

    def _release(self) -> None:
        super()._release()
        work, self.work = self.work, 0
        if work:
            self.services.free_pool(work)


class _FreesTheWorkBuffer(FrontEnd):
    def stop(self, children: tuple[int, ...]) -> None:
        super().stop(children)
        bus: Any = self.io._bus
        work, bus.work = bus.work, 0
        if work:
            self.services.free_pool(work)


FAULTS: dict[str, Fault] = {
    "stop-uses-freed-memory": Fault(
        "a device's Stop clears a field of its private data after it has freed it",
        "use-after-free-stop",
        ("memory-ownership/use-after-free",),
        front_end=_UsesItsDataAfterwards,
    ),
    "stop-frees-twice": Fault(
        "a device's Stop frees its private data a second time",
        "",
        ("memory-ownership/double-free",),
        front_end=_FreesItsDataTwice,
    ),
    "request-keeps-a-page": Fault(
        "a device takes a page for each request and never gives it back",
        "",
        ("memory-ownership/leak",),
        front_end=_KeepsAPageForEachRequest,
    ),
    "name-is-too-long": Fault(
        "a device writes its name to a buffer of 24 bytes, which a node with a long path does not fit into",
        "",
        ("memory-ownership/overrun",),
        front_end=_WritesALongName,
    ),
    "buffer-of-the-bus-freed": Fault(
        "a device's Stop frees the work buffer that the bus has allocated in its Start",
        "",
        ("memory-ownership/foreign-free",),
        bus=_HasAWorkBuffer,
        front_end=_FreesTheWorkBuffer,
    ),
}
