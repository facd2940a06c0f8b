"""Faults of events, timers and task priority levels."""

from __future__ import annotations

from typing import Any

from reference_impl.faulty.fault import IN_SOME_ORDERS, NEVER_RESET, RESET_TOO_EARLY, Fault, changed
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import (
    EVT_NOTIFY_SIGNAL,
    EVT_TIMER,
    TPL_APPLICATION,
    TPL_CALLBACK,
    TPL_HIGH_LEVEL,
    TPL_NOTIFY,
)
from reference_impl.uefi.status import EfiError
from reference_impl.xenbus.designs import reference_count
from reference_impl.xenbus.designs.base import BusTeardown, Design, DeviceTeardown, ExitEvent
from reference_impl.xenbus.devices import Device
from reference_impl.xenbus.front_end import FrontEnd, FrontEndDriver

TIMER_CANCEL, TIMER_PERIODIC, TIMER_RELATIVE = 0, 1, 2

# ---- events that are closed twice, too early, or not at all ------------------------------------------------------------


def _closes_twice(design: Design) -> Design:
    right: Any = design.bus

    def stopping(self: BusTeardown) -> None:
        right.stopping(self)
        try:
            right.stopping(self)
        except EfiError:
            return  # nobody looks at the status of CloseEvent

    return design._replace(bus=changed(right, stopping=stopping))


def _signals_what_is_closed(design: Design) -> Design:
    right: Any = design.bus

    def stopping(self: BusTeardown) -> None:
        right.stopping(self)
        try:
            if self._event is not None:
                self.bus.services.signal_event(self._event._event)
        except EfiError:
            return

    return design._replace(bus=changed(right, stopping=stopping))


def _keeps_its_event(design: Design) -> Design:
    def stopping(self: DeviceTeardown) -> None:
        self.device.io.teardown.remove_reference(self.device.io.node, False)

    right = reference_count.DESIGN
    return right._replace(device=changed(right.device, stopping=stopping))


class _HelperEvent(FrontEnd):
    """A device with a second event, for work of its own."""

    helper = 0

    def _publish(self) -> None:
        self.helper = self.services.create_event(*self.event_type, self.notify_helper, 0)
        super()._publish()

    def _release(self) -> None:
        if self.helper:
            self.services.close_event(self.helper)
            self.helper = 0
        super()._release()

    event_type: tuple[int, int] = (EVT_NOTIFY_SIGNAL, TPL_CALLBACK)

    def notify_helper(self, event: int, context: int) -> None:
        """What the second event is for."""


class _LeavesItsHelper(_HelperEvent):
    def start(self) -> None:
        try:
            self._take()
        except EfiError:
            self.helper = 0
            self._release()
            raise


class _HasNoTimeout(_HelperEvent):
    """A watchdog that is armed before there is a device to watch. Its notification closes it where there is none."""

    event_type = (EVT_TIMER | EVT_NOTIFY_SIGNAL, TPL_CALLBACK)

    def _publish(self) -> None:
        self.helper = self.services.create_event(*self.event_type, self.notify_helper, 0)
        self.services.set_timer(self.helper, TIMER_RELATIVE, 0)
        FrontEnd._publish(self)
        self._attempt(self.services.set_timer, self.helper, TIMER_CANCEL, 0)

    def notify_helper(self, event: int, context: int) -> None:
        if not self.published:
            self.services.close_event(event)

    def _release(self) -> None:
        helper, self.helper = self.helper, 0
        if helper:
            self._attempt(self.services.close_event, helper)
        super()._release()


class _UnloadKeepsAnEvent(FrontEndDriver):
    """Has an event for the whole image, created in its entry point."""

    def __init__(self, services: BootServices, kind: Device, design: Design, front_end: type[FrontEnd]) -> None:
        super().__init__(services, kind, design, front_end)
        services.core.enter(services.agent, "EntryPoint", (), self._create)

    def _create(self) -> None:
        self.event = ExitEvent(self.services, self._notify, 0)

    def _notify(self, event: int, context: int) -> None:
        """Nothing is left to do where each device has done its part."""


# ---- task priority levels ---------------------------------------------------------------------------------------------


def _notifies_too_high(design: Design) -> Design:
    def started(self: DeviceTeardown) -> None:
        device: Any = self
        device._event = ExitEvent(self.device.services, device._notify, self.device.allocation, TPL_NOTIFY)
        self.device.io.teardown.add_reference(self.device.io.node)

    def _notify(self: DeviceTeardown, event: int, context: int) -> None:
        services = self.device.services
        old = services.raise_tpl(TPL_CALLBACK)  # the lock that Stop takes as well
        reference_count.Device._notify(self, event, context)  # type: ignore[arg-type]
        services.restore_tpl(old)

    right = reference_count.DESIGN
    return right._replace(device=changed(right.device, started=started, _notify=_notify))


def _waits_too_high(design: Design) -> Design:
    def started(self: DeviceTeardown) -> None:
        device: Any = self
        device._event = ExitEvent(self.device.services, device._notify, self.device.allocation, TPL_NOTIFY)
        self.device.io.teardown.add_reference(self.device.io.node)

    def _notify(self: DeviceTeardown, event: int, context: int) -> None:
        self.device.services.stall(100_000)  # let the peer finish what it does
        reference_count.Device._notify(self, event, context)  # type: ignore[arg-type]

    right = reference_count.DESIGN
    return right._replace(device=changed(right.device, started=started, _notify=_notify))


class _KeepsTheLock(FrontEnd):
    def forget(self) -> None:
        self.services.raise_tpl(TPL_NOTIFY)
        super().forget()


class _RestoresAConstant(FrontEnd):
    def forget(self) -> None:
        old = self.services.raise_tpl(TPL_NOTIFY)
        super().forget()
        self.services.restore_tpl(TPL_NOTIFY + 1)
        self.services.restore_tpl(old)


class _KeepsTheLockOnError(FrontEnd):
    def _publish(self) -> None:
        old = self.services.raise_tpl(TPL_NOTIFY)
        super()._publish()
        self.services.restore_tpl(old)


class _PublishesUnderAHighLock(FrontEnd):
    def _publish(self) -> None:
        old = self.services.raise_tpl(TPL_HIGH_LEVEL)
        try:
            super()._publish()
        finally:
            self.services.restore_tpl(old)


# ---- waiting ----------------------------------------------------------------------------------------------------------


class _Nests(_HelperEvent):
    def forget(self) -> None:
        super().forget()
        self.services.signal_event(self.helper)

    def notify_helper(self, event: int, context: int) -> None:
        self.services.signal_event(event)  # there is always more to do
        self.services.restore_tpl(TPL_APPLICATION)
        self.services.raise_tpl(TPL_CALLBACK)


class _WaitsForATimer(_HelperEvent):
    event_type = (EVT_TIMER, TPL_APPLICATION)

    def forget(self) -> None:
        super().forget()
        self.services.set_timer(self.helper, TIMER_RELATIVE, 10_000)
        while True:
            try:
                self.services.check_event(self.helper)
            except EfiError:
                continue
            return


class _WaitsForNobody(FrontEnd):
    """Waits for an event that its peer was to signal, and that nobody was told about."""

    def _take(self) -> None:
        self._answered = self.services.create_event(0, TPL_APPLICATION, None)
        super()._take()

    def _peer_state(self) -> int:
        state = super()._peer_state()
        if not self.published and state < 4:
            self.services.wait_for_event((self._answered,))
        return state

    def _release(self) -> None:
        super()._release()
        answered = self.__dict__.pop("_answered", 0)
        if answered:
            self.services.close_event(answered)


FAULTS: dict[str, Fault] = {
    "event-closed-twice": Fault(
        "the bus's Stop closes its ExitBootServices event twice",
        "event-double-close",
        ("event-lifetime/double-close",),
        design=_closes_twice,
    ),
    "closed-event-signalled": Fault(
        "the bus's Stop closes its event and then signals it",
        "event-use-closed",
        ("event-lifetime/use-after-close",),
        design=_signals_what_is_closed,
    ),
    "event-left-by-stop": Fault(
        "a device's Stop does not close the ExitBootServices event, whose notification finds freed memory",
        "",
        (
            *("event-lifetime/left-behind", "memory-ownership/use-after-free"),
            *("reference-count/underflow", "reference-count/unbalanced", "reference-count/leak"),
            *(*RESET_TOO_EARLY, "connection-reset/missed-reset", "hand-over/grant-table"),
            *IN_SOME_ORDERS,
        ),
        design=_keeps_its_event,
    ),
    "event-left-by-failed-start": Fault(
        "a device's Start that fails does not close the event that it has created for its work",
        "event-leak-on-error",
        ("event-lifetime/left-behind",),
        front_end=_LeavesItsHelper,
    ),
    "event-left-by-unload": Fault(
        "a device driver's Unload does not close the event that the whole image has",
        "",
        ("event-lifetime/left-behind",),
        device_driver=_UnloadKeepsAnEvent,
    ),
    "watchdog-armed-too-early": Fault(
        "a device's Start arms its timer before there is anything to watch; the notification closes the event under it",
        "timer-preempts-start",
        ("event-lifetime/use-after-close", "event-lifetime/double-close"),
        front_end=_HasNoTimeout,
    ),
    "notification-too-high": Fault(
        "a device's notification runs at TPL_NOTIFY and takes a lock of TPL_CALLBACK",
        "tpl-notify-calls-callback",
        ("tpl/raise-lowers", "tpl/restore-raises"),
        design=_notifies_too_high,
    ),
    "handler-keeps-the-tpl": Fault(
        "a device's notification raises the TPL and returns without restoring it",
        "tpl-not-restored",
        ("tpl/not-restored", *IN_SOME_ORDERS),
        front_end=_KeepsTheLock,
    ),
    "handler-restores-too-high": Fault(
        "a device's notification calls RestoreTPL with a level above the current one",
        "",
        ("tpl/restore-raises",),
        front_end=_RestoresAConstant,
    ),
    "failed-start-keeps-the-tpl": Fault(
        "a device's Start that fails while it holds a lock returns at TPL_NOTIFY",
        "tpl-not-restored",
        (
            *("tpl/not-restored", "tpl/too-high", "reference-count/leak", *NEVER_RESET),
            *("hand-over/grant-left", "hand-over/event-channel-left", "hand-over/device"),
        ),
        front_end=_KeepsTheLockOnError,
    ),
    "start-locks-too-high": Fault(
        "a device's Start installs its interface at TPL_HIGH_LEVEL",
        "",
        ("tpl/too-high",),
        front_end=_PublishesUnderAHighLock,
    ),
    "handler-nests": Fault(
        "a device's notification signals itself and lowers the TPL, so that it is notified again from inside",
        "recursive-dispatch",
        ("waiting/nesting", *IN_SOME_ORDERS),
        front_end=_Nests,
    ),
    "handler-waits-for-a-timer": Fault(
        "a device's notification polls a timer, and timers are off",
        "ebs-dead-timer",
        ("waiting/no-progress", *IN_SOME_ORDERS),
        front_end=_WaitsForATimer,
    ),
    "handler-waits-too-high": Fault(
        "a device's notification waits a tenth of a second, and does so at TPL_NOTIFY",
        "tpl-notify-calls-callback",
        ("waiting/blocks-at-notify",),
        design=_waits_too_high,
    ),
    "start-waits-for-nobody": Fault(
        "a device's Start waits for its peer by an event that nobody signals",
        "",
        ("waiting/no-progress",),
        front_end=_WaitsForNobody,
    ),
}
