"""Faults of teardown: what bus and devices do wrong when the machine is handed over.

They deviate from `reference-count` or `exit-callback`, whichever the scenario has. `disconnect` has no `forget` to get
wrong; there the faults of devices show nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reference_impl.faulty.fault import IN_SOME_ORDERS, NEVER_RESET, RESET_TOO_EARLY, STILL_CONNECTED, Fault, changed
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA, TPL_NOTIFY
from reference_impl.uefi.status import EfiError
from reference_impl.xenbus.designs import disconnect, exit_callback, reference_count
from reference_impl.xenbus.designs.base import BusTeardown, Design, DeviceTeardown, ExitEvent
from reference_impl.xenbus.front_end import CLOSING, CONNECTED, FrontEnd

# ---- the bus --------------------------------------------------------------------------------------------------------


def _bus_forgets_reset(design: Design) -> Design:
    right: Any = design.bus

    def exit_(self: BusTeardown) -> None:
        self.bus.reset_connection = lambda: None  # type: ignore[method-assign]
        right.exit(self)

    return design._replace(bus=changed(right, exit=exit_))


def _bus_resets_twice(design: Design) -> Design:
    right: Any = design.bus

    def exit_(self: BusTeardown) -> None:
        right.exit(self)
        if not self.bus.platform.ring.user:
            self.bus.store.reset()

    return design._replace(bus=changed(right, exit=exit_))


def _bus_resets_ring_only(design: Design) -> Design:
    right: Any = design.bus

    def exit_(self: BusTeardown) -> None:
        frames, self.bus._grant_frames = self.bus._grant_frames, []
        right.exit(self)
        self.bus._grant_frames = frames

    return design._replace(bus=changed(right, exit=exit_))


def _bus_resets_grant_table_only(design: Design) -> Design:
    def exit_(self: BusTeardown) -> None:
        while self.bus._grant_frames:
            self.bus.hypercalls.remove_from_physmap(self.bus._grant_frames.pop())

    return exit_callback.DESIGN._replace(bus=changed(exit_callback.Bus, exit=exit_))


def _bus_resets_whatever_the_count(design: Design) -> Design:
    def exit_(self: BusTeardown) -> None:
        self.bus.reset_connection()

    return reference_count.DESIGN._replace(bus=changed(reference_count.Bus, exit=exit_))


def _bus_resets_before_its_children(design: Design) -> Design:
    def exit_(self: BusTeardown) -> None:
        self.bus.reset_connection()
        exit_callback.Bus.exit(self)  # type: ignore[arg-type]

    return exit_callback.DESIGN._replace(bus=changed(exit_callback.Bus, exit=exit_))


def _bus_disconnects(design: Design) -> Design:
    def exit_(self: BusTeardown) -> None:
        disconnect.Bus.exit(self)  # type: ignore[arg-type]

    return exit_callback.DESIGN._replace(bus=changed(exit_callback.Bus, exit=exit_))


# ---- the devices ----------------------------------------------------------------------------------------------------


def _event_failure_ignored(design: Design) -> Design:
    right: Any = design.device

    def started(self: DeviceTeardown) -> None:
        try:
            right.started(self)
        except EfiError:
            self.stopping = lambda: None  # type: ignore[method-assign]

    return design._replace(device=changed(right, started=started))


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


class _TrustsAClosingPeer(FrontEnd):
    def forget(self) -> None:
        if self._closing_peer_state() < CLOSING:
            super().forget()


class _SkipsClosed(FrontEnd):
    way_back = (FrontEnd.way_back[0], FrontEnd.way_back[2])


class _ConnectsAgain(FrontEnd):
    def forget(self) -> None:
        self._disconnect(at_exit=True)
        self._attempt(self.io.write, "state", str(CONNECTED))
        self._wait_for_peer(lambda state: state == CONNECTED, self._closing_peer_state, at_exit=True)


class _RemovesTooMuch(FrontEnd):
    def forget(self) -> None:
        super().forget()
        self._attempt(self.io.remove, "backend")


class _LeavesItsInterruptHandler(FrontEnd):
    """Its handler looks at each change of the front end's state, and nobody takes it away at the exit."""

    def _publish(self) -> None:
        super()._publish()
        observed = self.io._bus.platform.xenstored.observed
        path = next(path for path in observed if path.endswith(f"/{self.io.node}/state"))
        right = observed[path]

        def interrupt(agent: str, value: bytes | None) -> None:
            right(agent, value)
            self.services.core.enter(self.services.agent, "Interrupt", (), self._interrupt)

        observed[path] = interrupt

    def _interrupt(self) -> None:
        self.services.restore_tpl(self.services.raise_tpl(TPL_NOTIFY))  # the lock around what it counts


class _PollsWithoutLimit(FrontEnd):
    def _wait_for_peer(
        self, enough: Callable[[int], bool], peer_state: Callable[[], int], at_exit: bool = False
    ) -> int:
        if not at_exit:
            return super()._wait_for_peer(enough, peer_state)
        while not enough(state := peer_state()):
            continue
        return state


def _last_device_hurries(design: Design) -> Design:
    right: Any = reference_count.Device

    def _notify(self: DeviceTeardown, event: int, context: int) -> None:
        if self.device.io.teardown.count == 1:
            self.device.way_back = FrontEnd.way_back[:2]  # the reset will do the rest
        right._notify(self, event, context)

    return reference_count.DESIGN._replace(device=changed(right, _notify=_notify))


def _logs_after_letting_go(design: Design) -> Design:
    right: Any = reference_count.Device

    def _notify(self: DeviceTeardown, event: int, context: int) -> None:
        right._notify(self, event, context)
        self.device._attempt(self.device.io.write, "log", "let go")

    return reference_count.DESIGN._replace(device=changed(right, _notify=_notify))


FAULTS: dict[str, Fault] = {
    "bus-forgets-reset": Fault(
        "the bus's notification never resets the connection",
        "ebs-left-live",
        (*NEVER_RESET, *IN_SOME_ORDERS),
        design=_bus_forgets_reset,
    ),
    "bus-resets-twice": Fault(
        "the bus's notification resets the ring, and then again with all the rest",
        "",
        ("connection-reset/double-reset", *IN_SOME_ORDERS),
        design=_bus_resets_twice,
    ),
    "event-failure-ignored": Fault(
        "a device's Start succeeds although it could not create its ExitBootServices event",
        "ebs-event-create-ignored",
        STILL_CONNECTED,
        design=_event_failure_ignored,
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
        STILL_CONNECTED,
        front_end=_NeverDisconnects,
    ),
    "bus-resets-ring-only": Fault(
        "the bus's notification resets the ring and leaves the grant table in force",
        "ebs-left-live",
        ("connection-reset/missed-reset", "hand-over/grant-table", *IN_SOME_ORDERS),
        design=_bus_resets_ring_only,
    ),
    "bus-resets-grant-table-only": Fault(
        "the bus's notification takes the grant table away, never calls its children, and does not reset the ring",
        "ebs-left-live",
        (*NEVER_RESET, *STILL_CONNECTED),
        design=_bus_resets_grant_table_only,
    ),
    "bus-resets-whatever-the-count": Fault(
        "the bus's notification resets the connection although devices still need it, where it runs before theirs",
        "ebs-order",
        (*RESET_TOO_EARLY, *IN_SOME_ORDERS),
        design=_bus_resets_whatever_the_count,
    ),
    "bus-resets-before-its-children": Fault(
        "the bus's notification resets the connection and then lets its children say goodbye through it",
        "ebs-parent-first",
        RESET_TOO_EARLY,
        design=_bus_resets_before_its_children,
    ),
    "bus-disconnects-at-the-exit": Fault(
        "the bus's notification disconnects everything instead of calling its children back",
        "ebs-disconnect",
        (
            *("start-stop/stop-during-exit", "memory-services/direct-call", "memory-services/allocates-inside"),
            *("memory-services/frees-inside", "hand-over/memory-map"),
        ),
        design=_bus_disconnects,
    ),
    "handler-trusts-a-closing-peer": Fault(
        "a device's notification does nothing where the peer is on its way out already, as in a hot removal",
        "hot-removal",
        ("hand-over/grant-left", "hand-over/event-channel-left", "connection-reset/premature-reset"),
        front_end=_TrustsAClosingPeer,
    ),
    "device-skips-closed": Fault(
        "a device goes from Closing straight to Initialising, which the peer does not follow",
        "ebs-illegal-device-op",
        ("hand-over/device", "hand-over/grant-left", "hand-over/event-channel-left", "start-stop/restart-differs"),
        front_end=_SkipsClosed,
    ),
    "handler-connects-again": Fault(
        "a device's notification disconnects from the peer and then writes Connected once more",
        "ebs-dma-restarted",
        STILL_CONNECTED,
        front_end=_ConnectsAgain,
    ),
    "handler-removes-too-much": Fault(
        "a device's notification removes the node that says where the peer is, which the operating system needs",
        "ebs-over-quiesce",
        ("hand-over/device",),
        front_end=_RemovesTooMuch,
    ),
    "handler-polls-without-limit": Fault(
        "a device's notification polls a peer until it answers, and the peer never does",
        "ebs-unbounded-poll",
        ("waiting/unbounded-poll",),
        environment="hostile",
        switches=("silent-peers",),
        front_end=_PollsWithoutLimit,
    ),
    "handler-logs-after-letting-go": Fault(
        "a device's notification writes a log entry through the bus when it has given its reference back",
        "ebs-log-after-provider",
        ("connection-reset/use-after-reset", "connection-reset/missed-reset", "hand-over/store", *IN_SOME_ORDERS),
        design=_logs_after_letting_go,
    ),
    "interrupt-handler-left": Fault(
        "a device's interrupt handler is still called when the operating system runs, and calls a boot service",
        "service-after-exit",
        ("hand-over/service-after-exit",),
        front_end=_LeavesItsInterruptHandler,
    ),
    "last-device-hurries": Fault(
        "the last device that lets go at the exit leaves its front end in Closed, as the reset comes anyway",
        "ebs-order",
        ("order-independence/state-differs",),
        design=_last_device_hurries,
    ),
}
