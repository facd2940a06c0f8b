"""Deep faults: what feedback is for.

Each is a machine that wears out in stages. A stage needs the one before it, and leaves its mark in the driver's state,
which the trace shows (`Kind.DRIVER_STATE`): a fuzzer that watches state can keep the scenario that came one stage
further. Generation without feedback has to hit all stages in one scenario. Only after the last one something goes
wrong, and then it is a mistake like those of the other files.

The stages stand in the docstring of each class. `reach` is all the machinery that there is.
"""

from __future__ import annotations

from typing import Any

from reference_impl.faulty.fault import IN_SOME_ORDERS, NEVER_RESET, RESET_TOO_EARLY, Fault
from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA, EVT_NOTIFY_SIGNAL, TPL_CALLBACK, TPL_NOTIFY
from reference_impl.uefi.status import EfiError
from reference_impl.xenbus.bus_driver import XenBus
from reference_impl.xenbus.designs import exit_callback, reference_count
from reference_impl.xenbus.designs.base import Design
from reference_impl.xenbus.front_end import CLOSING, FrontEnd, FrontEndDriver


def reach(keeper: Any, services: BootServices, stage: int) -> bool:
    """Go to `stage` if the one before it has been reached, and say so; whether it was.

    keeper  the object that remembers the stage: a driver, which outlives every Start and Stop, or a bus
    """
    if getattr(keeper, "worn", 0) != stage - 1:
        return False
    keeper.worn = stage
    services.core.trace.add(Kind.DRIVER_STATE, services.agent, "worn", (), None, stage)
    return True


# ---- buses ------------------------------------------------------------------------------------------------------------


class _Bus(XenBus):
    def reach(self, stage: int) -> bool:
        return reach(self.driver, self.services, stage)


class _SixStages(_Bus):
    """The connection is never reset.

    1  a Start of the bus fails
    2  a Start succeeds
    3  the bus is stopped
    4  it is started again, with at least two devices
    5  one device is stopped, and exactly one goes on
    6  at the exit the bus's notification comes before the device's
    """

    def start(self) -> None:
        try:
            super().start()
        except EfiError:
            self.reach(1)
            raise
        self.reach(2)
        if len(self.children) >= 2:
            self.reach(4)

    def stop(self, children: tuple[int, ...]) -> None:
        super().stop(children)
        if not children:
            self.reach(3)


class _SixStagesTeardown(reference_count.Bus):
    bus: _SixStages

    def remove_reference(self, node: str, hand_off_to_os: bool) -> None:
        super().remove_reference(node, hand_off_to_os)
        if not hand_off_to_os and self.count == 1:
            self.bus.reach(5)

    def exit(self) -> None:
        if self.count > 0 and self.bus.reach(6):
            self.count = 1 << 16
        super().exit()


class _FailsInOrder(_Bus):
    """The grant table stays in force at the exit.

    1  a Start of the bus fails before the shared info is placed
    2  the next one that fails does so while the grant table is placed
    3  the next one that fails does so in the conversation with xenstored
    4  a Start succeeds, with three devices or more
    5  the bus is stopped
    6  it is started once more
    """

    def start(self) -> None:
        try:
            super().start()
        except EfiError:
            self.reach(self._failed_at)
            raise
        if len(self.children) >= 3:
            self.reach(4)
        self.reach(6)

    def _release(self) -> None:
        if self._store is not None and self._store.in_use:
            self._failed_at = 3
        elif self._grant_frames:
            self._failed_at = 2
        else:
            self._failed_at = 0 if self._shared_info_mapped else 1
        super()._release()

    def stop(self, children: tuple[int, ...]) -> None:
        super().stop(children)
        if not children:
            self.reach(5)


class _FailsInOrderTeardown(exit_callback.Bus):
    def exit(self) -> None:
        if getattr(self.bus.driver, "worn", 0) == 6:
            self.bus._grant_frames = []
        super().exit()


class _OneExactOrder(_Bus):
    """The connection is reset while one device still needs it.

    1  the bus is started a second time, with four devices or more
    2  at the exit, those who let go do so in one exact order: the third child first
    3  then the first child
    4  then the fourth
    5  then the bus, while the second child is connected
    """

    def start(self) -> None:
        super().start()
        driver: Any = self.driver
        driver.starts = getattr(driver, "starts", 0) + 1
        if driver.starts > 1 and len(self.children) >= 4:
            self.reach(1)


class _OneExactOrderTeardown(reference_count.Bus):
    order = (2, 0, 3)

    def __init__(self, bus: XenBus) -> None:
        super().__init__(bus)
        self.gone = 0

    def let_go(self, node: str) -> None:
        """The device `node` gives its reference back at the exit."""
        nodes = [child.protocol.node for child in self.bus.children.values()]
        if self.gone < len(self.order) and nodes.index(node) == self.order[self.gone]:
            reach(self.bus.driver, self.bus.services, self.gone + 2)
        self.gone += 1

    def exit(self) -> None:
        if self.gone == len(self.order) and reach(self.bus.driver, self.bus.services, 5):
            self.bus.reset_connection()
        super().exit()


class _OneExactOrderDevice(reference_count.Device):
    def _notify(self, event: int, context: int) -> None:
        io = self.device.io
        io.teardown.let_go(io.node)
        super()._notify(event, context)


# ---- devices ----------------------------------------------------------------------------------------------------------


class _Device(FrontEnd):
    def reach(self, stage: int) -> bool:
        return reach(self.driver, self.services, stage)

    def has_reached(self, stage: int) -> bool:
        """Whether `stage` was the last one."""
        return getattr(self.driver, "worn", 0) == stage


class _RemovedTwice(_Device):
    """What the peer has mapped at the exit is left to it.

    1  a device is stopped while its peer is on its way out
    2  a device of the same driver is started
    3  it serves a request
    4  it is stopped, and its peer stays
    5  it is started again
    6  at the exit its peer is on its way out as well
    """

    def start(self) -> None:
        super().start()
        self.reach(2)
        self.reach(5)

    def request(self) -> None:
        super().request()
        self.reach(3)

    def stop(self, children: tuple[int, ...]) -> None:
        closing = self._closing_peer_state() >= CLOSING
        super().stop(children)
        self.reach(1 if closing else 4)

    def forget(self) -> None:
        if self._closing_peer_state() >= CLOSING and self.reach(6):
            return
        super().forget()


class _TriedAgain(_Device):
    """The notification takes a buffer.

    1  a Start of the device fails
    2  a Start succeeds
    3  it serves a request
    4  an attempt to exit fails
    5  the memory map changes
    6  another attempt fails
    7  the memory map changes again, before the attempt that succeeds
    """

    _events: tuple[int, ...] = ()

    def start(self) -> None:
        try:
            super().start()
        except EfiError:
            self.reach(1)
            raise
        self.reach(2)

    def _publish(self) -> None:
        for function, group in (
            (self._attempt_failed, guids.EVENT_GROUP_EXIT_BOOT_SERVICES_FAILED),
            (self._map_changed, guids.EVENT_GROUP_MEMORY_MAP_CHANGE),
        ):
            event = self.services.create_event_ex(EVT_NOTIFY_SIGNAL, TPL_CALLBACK, function, 0, group)
            self._events += (event,)
        super()._publish()

    def _release(self) -> None:
        for event in self._events:
            self.services.close_event(event)
        self._events = ()
        super()._release()

    def request(self) -> None:
        super().request()
        self.reach(3)

    def _attempt_failed(self, event: int, context: int) -> None:
        self.reach(4)
        self.reach(6)

    def _map_changed(self, event: int, context: int) -> None:
        self.reach(5)
        self.reach(7)

    def forget(self) -> None:
        if self.has_reached(7):
            self.services.free_pool(self.services.allocate_pool(BOOT_SERVICES_DATA, 64))
        super().forget()


class _Impatient(_Device):
    """The notification does not wait for the peer.

    1  the peer is slow when a device starts
    2  and when it is stopped
    3  it is at once there when a device starts
    4  and when it is stopped
    5  it is slow again at another start, after which the machine exits
    """

    SLOW_100NS = 10_000

    def start(self) -> None:
        began = self._clock()
        super().start()
        slow = self._clock() - began > self.SLOW_100NS
        self.reach(1 if slow else 3)
        if slow:
            self.reach(5)

    def stop(self, children: tuple[int, ...]) -> None:
        began = self._clock()
        super().stop(children)
        self.reach(2 if self._clock() - began > self.SLOW_100NS else 4)

    def _clock(self) -> int:
        return self.services.core.events.now_100ns

    def forget(self) -> None:
        if self.has_reached(5):
            self.way_back = FrontEnd.way_back[:1]
        super().forget()


class _TakesTurns(_Device):
    """The notification raises the TPL and does not restore it.

    The bus counts; a request that is out of turn begins anew.

    1  the first child serves a request
    2  the second child serves one
    3  the first
    4  the second
    5  the first child is stopped
    6  the second child serves a request, after which the machine exits
    """

    def reach(self, stage: int) -> bool:
        return reach(self.io._bus, self.services, stage)

    def _place(self) -> int:
        return list(self.io._bus.children).index(self.controller)

    def request(self) -> None:
        super().request()
        bus: Any = self.io._bus
        worn = getattr(bus, "worn", 0)
        if worn < 4 and self._place() != worn % 2:
            bus.worn = 0
        elif self._place() == 1:
            self.reach(2)
            self.reach(4)
            self.reach(6)
        elif self._place() == 0:
            self.reach(1)
            self.reach(3)

    def stop(self, children: tuple[int, ...]) -> None:
        first = self.controller in self.io._bus.children and not self._place()
        super().stop(children)
        if first:
            self.reach(5)

    def forget(self) -> None:
        super().forget()
        if getattr(self.io._bus, "worn", 0) == 6:
            self.services.raise_tpl(TPL_NOTIFY)


class _ReloadedDriver(FrontEndDriver):
    """A driver whose device wears out with every unload and load; the bus remembers, as the driver is gone.

    1  the driver is unloaded while it manages a device
    2  it is loaded, and starts a device
    3  the device serves a request
    4  the driver is unloaded again
    5  it is loaded again, and starts a device
    6  the device serves a request; its Stop then keeps the private data
    """

    def unload(self, image_handle: int) -> None:
        buses = [instance.io._bus for instance in self.instances.values() if isinstance(instance, FrontEnd)]
        super().unload(image_handle)
        for bus in buses[:1]:
            reach(bus, self.services, 1)
            reach(bus, self.services, 4)


class _Reloaded(_Device):
    def reach(self, stage: int) -> bool:
        return reach(self.io._bus, self.services, stage)

    def start(self) -> None:
        super().start()
        self.reach(2)
        self.reach(5)

    def request(self) -> None:
        super().request()
        self.reach(3)
        self.reach(6)

    def _release(self) -> None:
        if self._introduced and getattr(self.io._bus, "worn", 0) == 6:
            self.allocation = 0
        super()._release()


class _CountedDevice(reference_count.Device):
    """The bus counts the starts of each device in two bits, and takes the fifth for none at all.

    1 to 5  the same device is started, and stopped in between, while the bus goes on
    """

    def started(self) -> None:
        super().started()
        bus: Any = self.device.io._bus
        starts: dict[str, int] = bus.__dict__.setdefault("starts", {})
        node = self.device.io.node
        starts[node] = starts.get(node, 0) + 1
        reach(bus, self.device.services, starts[node])
        if starts[node] == 5:
            self.device.io.teardown.remove_reference(self.device.io.node, False)


# ---- the table --------------------------------------------------------------------------------------------------------


def _six_stages(design: Design) -> Design:
    return reference_count.DESIGN._replace(bus=_SixStagesTeardown)


def _fails_in_order(design: Design) -> Design:
    return exit_callback.DESIGN._replace(bus=_FailsInOrderTeardown)


def _one_exact_order(design: Design) -> Design:
    return reference_count.DESIGN._replace(bus=_OneExactOrderTeardown, device=_OneExactOrderDevice)


def _counted(design: Design) -> Design:
    return reference_count.DESIGN._replace(device=_CountedDevice)


FAULTS: dict[str, Fault] = {
    "six-stage-chain": Fault(
        "a bus of the design reference-count that never resets the connection, after six stages that need one another",
        "",
        (*NEVER_RESET, *IN_SOME_ORDERS),
        deep=True,
        design=_six_stages,
        bus=_SixStages,
    ),
    "bus-worn-by-failures": Fault(
        "a bus that leaves the grant table in force, after its Start has failed at three places one after the other",
        "start-leak-open",
        ("connection-reset/missed-reset", "hand-over/grant-table"),
        deep=True,
        design=_fails_in_order,
        bus=_FailsInOrder,
    ),
    "one-exact-order": Fault(
        "a bus that resets the connection too early when four devices and it let go in one exact order",
        "ebs-order",
        (*RESET_TOO_EARLY, *IN_SOME_ORDERS),
        deep=True,
        design=_one_exact_order,
        bus=_OneExactOrder,
    ),
    "removed-twice": Fault(
        "a device that leaves its pages to a peer on its way out, once a hot removal has been survived",
        "hot-removal",
        ("hand-over/grant-left", "hand-over/event-channel-left", "connection-reset/premature-reset"),
        deep=True,
        front_end=_RemovedTwice,
    ),
    "tried-again": Fault(
        "a device whose notification allocates when two attempts to exit have failed and the memory map has moved",
        "ebs-memory-direct",
        ("memory-services/direct-call", "hand-over/memory-map"),
        deep=True,
        front_end=_TriedAgain,
    ),
    "impatient": Fault(
        "a device that does not wait for its peer at the exit, after starts and stops with a slow and a fast one",
        "ebs-left-live",
        ("hand-over/grant-left", "hand-over/event-channel-left", "hand-over/device"),
        deep=True,
        front_end=_Impatient,
    ),
    "takes-turns": Fault(
        "a device whose notification keeps the TPL raised, after requests that went to two devices in turn",
        "tpl-not-restored",
        ("tpl/not-restored", *IN_SOME_ORDERS),
        deep=True,
        front_end=_TakesTurns,
    ),
    "reloaded-twice": Fault(
        "a device whose Stop keeps memory when its driver has been unloaded and loaded twice under load",
        "restart-dirty",
        ("memory-ownership/leak",),
        deep=True,
        device_driver=_ReloadedDriver,
        front_end=_Reloaded,
    ),
    "fifth-start": Fault(
        "a device that gives its reference back too early when it is started for the fifth time",
        "",
        (
            *("reference-count/unbalanced", "reference-count/underflow", "reference-count/leak"),
            *(*RESET_TOO_EARLY, "connection-reset/missed-reset", "hand-over/grant-table"),
            *IN_SOME_ORDERS,
        ),
        deep=True,
        design=_counted,
    ),
}
