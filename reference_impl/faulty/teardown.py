"""Faults of teardown: what bus and devices do wrong when the machine is handed over.

They deviate from `reference-count` or `exit-callback`, whichever the scenario has. `disconnect` has no `forget` to get
wrong; there the faults of devices show nothing.
"""

from __future__ import annotations

from typing import Any

from reference_impl.faulty.fault import Fault
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA
from reference_impl.uefi.status import EfiError
from reference_impl.xenbus.designs.base import BusTeardown, Design, DeviceTeardown, ExitEvent
from reference_impl.xenbus.front_end import CLOSING, FrontEnd


def _changed(right: object, **members: object) -> type:
    """The class `right` with other members."""
    assert isinstance(right, type)
    return type(f"Faulty{right.__name__}", (right,), members)


# ---- the bus --------------------------------------------------------------------------------------------------------


def _bus_forgets_reset(design: Design) -> Design:
    def exit_(self: BusTeardown) -> None:
        """Nothing, as if some device would always reset the connection."""

    return design._replace(bus=_changed(design.bus, exit=exit_))


def _bus_resets_twice(design: Design) -> Design:
    def exit_(self: BusTeardown) -> None:
        self.bus.store.reset()
        self.bus.store.reset()
        self.bus.reset_connection()

    return design._replace(bus=_changed(design.bus, exit=exit_))


# ---- the devices ----------------------------------------------------------------------------------------------------


def _event_failure_ignored(design: Design) -> Design:
    right: Any = design.device

    def started(self: DeviceTeardown) -> None:
        try:
            right.started(self)
        except EfiError:
            self.stopping = lambda: None  # type: ignore[method-assign]

    return design._replace(device=_changed(right, started=started))


def _reference_kept_by_failed_start(design: Design) -> Design:
    right: Any = design.device

    def started(self: DeviceTeardown) -> None:
        try:
            right.started(self)
        except EfiError:
            io = self.device.io
            if hasattr(io.teardown, "add_reference"):
                io.teardown.add_reference(io.node)
            raise

    return design._replace(device=_changed(right, started=started))


class _Allocates(FrontEnd):
    def forget(self) -> None:
        buffer = self.services.allocate_pool(BOOT_SERVICES_DATA, 64)
        super().forget()
        self.services.free_pool(buffer)


class _AsksWhoHasItOpen(FrontEnd):
    def forget(self) -> None:
        self.services.open_protocol_information(self.controller, guids.XENBUS_PROTOCOL)
        super().forget()


class _ClosesAnEvent(FrontEnd):
    def _take(self) -> None:
        super()._take()
        self._second = ExitEvent(self.services, lambda event, context: None, self.allocation)

    def _release(self) -> None:
        if hasattr(self, "_second"):
            self._second.close()
        super()._release()

    def forget(self) -> None:
        super().forget()
        self._second.close()


class _ClosesHalfWay(FrontEnd):
    def forget(self) -> None:
        self.io.write("state", str(CLOSING))


class _NeverDisconnects(FrontEnd):
    def forget(self) -> None:
        pass


FAULTS: dict[str, Fault] = {
    "bus-forgets-reset": Fault(
        "the bus's notification never resets the connection",
        "ebs-left-live",
        ("connection-reset/missed-reset", "hand-over/store", "hand-over/grant-table"),
        design=_bus_forgets_reset,
    ),
    "bus-resets-twice": Fault(
        "the bus's notification resets the ring, and then again with all the rest",
        "",
        ("connection-reset/double-reset",),
        design=_bus_resets_twice,
    ),
    "event-failure-ignored": Fault(
        "a device's Start succeeds although it could not create its ExitBootServices event",
        "ebs-event-create-ignored",
        (
            "connection-reset/premature-reset",
            "hand-over/device",
            "hand-over/grant-left",
            "hand-over/event-channel-left",
        ),
        design=_event_failure_ignored,
    ),
    "reference-kept-by-failed-start": Fault(
        "a device's Start that fails at its last step leaves a reference behind",
        "start-leak-open",
        ("reference-count/leak", "connection-reset/missed-reset", "hand-over/store", "hand-over/grant-table"),
        design=_reference_kept_by_failed_start,
    ),
    "handler-allocates": Fault(
        "a device's notification takes a buffer from the pool and frees it",
        "ebs-memory-direct",
        ("memory-services/direct-call", "hand-over/memory-map"),
        front_end=_Allocates,
    ),
    "handler-asks-who-has-it-open": Fault(
        "a device's notification calls OpenProtocolInformation, which allocates",
        "ebs-memory-hidden",
        ("memory-services/allocates-inside", "hand-over/memory-map"),
        front_end=_AsksWhoHasItOpen,
    ),
    "handler-closes-an-event": Fault(
        "a device's notification closes an event: legal, but it frees memory inside the core",
        "",
        ("memory-services/frees-inside", "hand-over/memory-map"),
        front_end=_ClosesAnEvent,
    ),
    "handler-closes-half-way": Fault(
        "a device's notification asks the peer to close and does not wait until it has let go",
        "ebs-left-live",
        ("hand-over/grant-left", "hand-over/event-channel-left", "hand-over/device"),
        front_end=_ClosesHalfWay,
    ),
    "handler-never-disconnects": Fault(
        "a device's notification does not tell the peer to close",
        "ebs-left-live",
        (
            "connection-reset/premature-reset",
            "hand-over/device",
            "hand-over/grant-left",
            "hand-over/event-channel-left",
        ),
        front_end=_NeverDisconnects,
    ),
}
