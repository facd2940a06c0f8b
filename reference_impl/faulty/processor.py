"""Faults of code on the processor: a NULL pointer that is followed, a division by zero, an ASSERT that never returns.

A driver in Python cannot do that, so it says what one in C would have done there, as the CPU emulator says it of a real
image. `crash` ends the run.
"""

from __future__ import annotations

from typing import NoReturn

from reference_impl.faulty.fault import Fault
from reference_impl.trace import Kind, StepBudgetExceeded
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA
from reference_impl.uefi.status import EfiError
from reference_impl.xenbus.front_end import FrontEnd

_POISON = 0xAFAFAFAFAFAFAFAF  # what edk2 fills freed memory with


def crash(services: BootServices, what: str, where: str, *address: int, kind: Kind = Kind.FAULT) -> NoReturn:
    """End the run as a `Kind.FAULT` (or `Kind.STUCK`) of this driver's code at the place `where`."""
    services.core.trace.add(kind, services.agent, what, (*address, where))
    raise StepBudgetExceeded(services.agent)


class _UsesNull(FrontEnd):
    def _take(self) -> None:
        try:
            buffer = self.services.allocate_pool(BOOT_SERVICES_DATA, 0x40)
        except EfiError:
            crash(self.services, "write", "FrontEnd._take", 0)  # nobody has looked at the status
        self.services.free_pool(buffer)
        super()._take()


class _FollowsWhatIsFreed(FrontEnd):
    def start(self) -> None:
        try:
            self._take()
        except EfiError:
            allocated = self.allocation
            self._release()
            if allocated:
                crash(self.services, "read", "FrontEnd.start", _POISON)  # device->Io->Log("failed")
            raise


class _DividesByWhatThePeerSays(FrontEnd):
    def _read_peer(self, name: str) -> str:
        value = super()._read_peer(name)
        if name == "sector-size" and not (value.isdigit() and int(value)):
            crash(self.services, "exception", "FrontEnd._read_peer", 0)
        return value


class _HaltsOnError(FrontEnd):
    def _publish(self) -> None:
        try:
            super()._publish()
        except EfiError:
            crash(self.services, "halt", "FrontEnd._publish", 0)


class _WritesToAPort(FrontEnd):
    def _publish(self) -> None:
        self.services.core.trace.add(Kind.STRAY, self.services.agent, "out", (0x0CF0, "FrontEnd._publish"))
        super()._publish()


class _AssertsInALoop(FrontEnd):
    def _introduce(self) -> None:
        try:
            super()._introduce()
        except EfiError:
            crash(self.services, "dead-loop", "FrontEnd._introduce", kind=Kind.STUCK)


FAULTS: dict[str, Fault] = {
    "allocation-unchecked": Fault(
        "a device's Start uses a buffer without a look at what AllocatePool answered",
        "alloc-unchecked",
        ("guest-fault/null-pointer",),
        front_end=_UsesNull,
    ),
    "freed-pointer-followed": Fault(
        "a device's Start that fails logs that through a pointer in its private data, which is freed and overwritten",
        "start-cleanup-order",
        ("guest-fault/access",),
        front_end=_FollowsWhatIsFreed,
    ),
    "division-by-zero": Fault(
        "a block device's Start divides by the sector size, also where the peer says none",
        "",
        ("guest-fault/exception",),
        front_end=_DividesByWhatThePeerSays,
    ),
    "halts-on-error": Fault(
        "a device's Start stops the processor where its interface cannot be installed",
        "assert-only-check",
        ("guest-fault/halt",),
        front_end=_HaltsOnError,
    ),
    "asserts-in-a-loop": Fault(
        "a device's Start turns in a loop for ever where the peer cannot be told about it, as a failed ASSERT does",
        "assert-only-check",
        ("guest-fault/dead-loop",),
        front_end=_AssertsInALoop,
    ),
    "port-where-nothing-is": Fault(
        "a device's Start writes to an I/O port behind which there is nothing",
        "",
        ("guest-fault/stray-port",),
        front_end=_WritesToAPort,
    ),
}
