"""Faults of starting and stopping: what Supported, Start and Stop do wrong, long before the exit.

They deviate from the code that all teardown designs share, so they show in each of them.
"""

from __future__ import annotations

from contextlib import suppress

from reference_impl.faulty.fault import Fault
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA, BY_CHILD_CONTROLLER, BY_DRIVER
from reference_impl.uefi.driver_binding import binding_at
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.xenbus.bus_driver import Child, XenBus, XenBusDriver
from reference_impl.xenbus.front_end import FrontEnd, FrontEndDriver

# ---- Supported ------------------------------------------------------------------------------------------------------


class _LeavesOpenWhatItRefuses(FrontEndDriver):
    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        services, binding = self.services, self.driver_binding_handle
        interface = services.open_protocol(controller, guids.XENBUS_PROTOCOL, binding, controller, BY_DRIVER)
        if services.core.object_at(interface, services.agent).type != self.kind.type:
            raise EfiError(EfiStatus.UNSUPPORTED)
        services.close_protocol(controller, guids.XENBUS_PROTOCOL, binding, controller)


class _KeepsABufferOfARefusal(FrontEndDriver):
    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        buffer = self.services.allocate_pool(BOOT_SERVICES_DATA, 32)
        super().supported(controller, remaining_device_path)
        self.services.free_pool(buffer)


class _WritesWhatItHasSeen(FrontEndDriver):
    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        services, binding = self.services, self.driver_binding_handle
        interface = services.open_protocol(controller, guids.XENBUS_PROTOCOL, binding, controller, BY_DRIVER)
        FrontEnd._attempt(services.core.object_at(interface, services.agent).write, "seen-by", services.agent)
        services.close_protocol(controller, guids.XENBUS_PROTOCOL, binding, controller)
        super().supported(controller, remaining_device_path)


# ---- a Start that fails ---------------------------------------------------------------------------------------------


class _FailingStart(FrontEnd):
    """A device whose Start has a way back of its own."""

    def start(self) -> None:
        try:
            self._take()
        except EfiError:
            self.give_up()
            raise

    def give_up(self) -> None:
        """The way back of a Start that fails."""
        raise NotImplementedError


class _LeavesTheProtocolOpen(_FailingStart):
    def give_up(self) -> None:
        self._opened = False
        self._release()


class _KeepsItsData(_FailingStart):
    def give_up(self) -> None:
        self.allocation = 0
        self._release()


class _KeepsItsGrants(_FailingStart):
    def give_up(self) -> None:
        self._references = []
        self._release()


class _FreesItsDataFirst(_FailingStart):
    def give_up(self) -> None:
        address, self.allocation = self.allocation, 0
        if address:
            self.services.free_pool(address)
            self = self.services.core.object_at(address, self.services.agent)
        self._release()


class _SwapsHandles(_FailingStart):
    def give_up(self) -> None:
        opened, self._opened = self._opened, False
        self._release()
        if opened:
            self._attempt(self._close, self.driver.driver_binding_handle, self.controller)

    def _close(self, handle: int, agent: int) -> None:
        self.services.close_protocol(handle, guids.XENBUS_PROTOCOL, agent, self.controller)


class _RemembersTooEarly(XenBusDriver):
    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        if controller in self.instances:
            raise EfiError(EfiStatus.ALREADY_STARTED)
        instance = self.instances[controller] = self.make(controller)
        instance.start()


class _OnlyAsserts(FrontEnd):
    def _publish(self) -> None:
        self._attempt(super()._publish)  # ASSERT_EFI_ERROR, which a release build leaves out
        self.published = True

    def stop(self, children: tuple[int, ...]) -> None:
        uninstall = self.services.uninstall_protocol_interface
        self._attempt(uninstall, self.controller, self.kind.protocol, self.allocation)  # the same again
        self.published = False
        super().stop(children)


# ---- Stop -----------------------------------------------------------------------------------------------------------


class _StopsTheFirstChildOnly(XenBus):
    def stop(self, children: tuple[int, ...]) -> None:
        super().stop(children[:1])


class _StopsFromInside(XenBus):
    _inside = False

    def stop(self, children: tuple[int, ...]) -> None:
        if children and not self._inside:
            self._inside = True
            self.services.disconnect_controller(self.controller, self.driver.driver_binding_handle, children[0])
            self._inside = False
        super().stop(children)


class _ConnectsAgain(FrontEnd):
    def stop(self, children: tuple[int, ...]) -> None:
        super().stop(children)
        self._attempt(self.services.connect_controller, self.controller)


class _PutsOffABusyStop(FrontEndDriver):
    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        device = self.instances.get(controller)
        if isinstance(device, FrontEnd) and device._request_id:
            device._request_id = 0
            return
        super().stop(controller, children)


class _KeepsTheSharedPage(XenBus):
    def _release(self) -> None:
        if self._shared_info_mapped:
            self.hypercalls.remove_from_physmap(self._shared_info >> 12)
            self._shared_info_mapped = False
            self._shared_info = 0
        super()._release()


class _KeepsItsWatch(FrontEnd):
    def stop(self, children: tuple[int, ...]) -> None:
        self._watch = None
        super().stop(children)


class _StopsWhoeverThereIs(XenBus):
    def _remove_child(self, child: Child) -> bool:
        core = self.services.core
        for handle in core.handles.handles_with(guids.DRIVER_BINDING_PROTOCOL):
            binding = binding_at(core, core.handles.interface_of(handle, guids.DRIVER_BINDING_PROTOCOL) or 0)
            if binding is not None and binding.agent != self.services.agent:
                core.enter(binding.agent, "Stop", (child.handle, ()), binding.stop, child.handle, ())
        return super()._remove_child(child)


class _MarksARemovedChild(XenBus):
    def _remove_child(self, child: Child) -> bool:
        removed = super()._remove_child(child)
        if removed:
            with suppress(EfiError):  # nobody looks
                self.services.install_protocol_interface(child.handle, guids.DEVICE_PATH_PROTOCOL, 0, 0)
        return removed


class _OpensTwoForAChild(XenBus):
    def _open_by_child(self, child: Child) -> None:
        super()._open_by_child(child)
        binding = self.driver.driver_binding_handle
        self.services.open_protocol(
            self.controller, guids.DEVICE_PATH_PROTOCOL, binding, child.handle, BY_CHILD_CONTROLLER
        )


class _StopsAtClosed(FrontEnd):
    def _disconnect(self, at_exit: bool) -> None:
        self.way_back = FrontEnd.way_back if at_exit else FrontEnd.way_back[:2]
        super()._disconnect(at_exit)


class _KeepsItsBinding(XenBusDriver):
    def leave(self, image_handle: int) -> None:
        """The driver binding stays installed."""


FAULTS: dict[str, Fault] = {
    "supported-leaves-open": Fault(
        "a device driver's Supported does not close the protocol where it answers EFI_UNSUPPORTED",
        "",
        ("protocol-usage/left-open",),
        device_driver=_LeavesOpenWhatItRefuses,
    ),
    "supported-keeps-memory": Fault(
        "a device driver's Supported does not free its buffer where it answers EFI_UNSUPPORTED",
        "",
        ("memory-ownership/leak",),
        device_driver=_KeepsABufferOfARefusal,
    ),
    "supported-writes": Fault(
        "a device driver's Supported writes its name into the device's folder",
        "",
        ("start-stop/supported-changes",),
        device_driver=_WritesWhatItHasSeen,
    ),
    "failed-start-leaves-open": Fault(
        "a device's Start that fails leaves the bus's protocol open",
        "start-leak-open",
        ("protocol-usage/left-open",),
        front_end=_LeavesTheProtocolOpen,
    ),
    "failed-start-keeps-memory": Fault(
        "a device's Start that fails does not free the private data",
        "start-leak-open",
        ("memory-ownership/leak",),
        front_end=_KeepsItsData,
    ),
    "failed-start-keeps-its-grants": Fault(
        "a device's Start that fails does not end the access that it has granted to the peer",
        "start-leak-open",
        ("start-stop/failed-start-leaves",),
        front_end=_KeepsItsGrants,
    ),
    "failed-start-frees-first": Fault(
        "a device's Start that fails frees the private data first, and then goes on by what stands in it",
        "start-cleanup-order",
        ("memory-ownership/use-after-free",),
        front_end=_FreesItsDataFirst,
    ),
    "failed-start-swaps-handles": Fault(
        "a device's Start that fails passes the wrong handle to CloseProtocol, which refuses it",
        "cleanup-wrong-arguments",
        ("protocol-usage/cleanup-fails", "protocol-usage/left-open"),
        front_end=_SwapsHandles,
    ),
    "start-remembers-too-early": Fault(
        "the bus's Start notes the controller before anything can fail, and a failure leaves the note",
        "start-global-dangling",
        ("start-stop/dangling-start",),
        bus_driver=_RemembersTooEarly,
    ),
    "start-only-asserts": Fault(
        "a device's Start only asserts that its interface was installed; Stop then uninstalls what is not there",
        "assert-only-check",
        ("protocol-usage/cleanup-fails",),
        front_end=_OnlyAsserts,
    ),
    "stop-first-child-only": Fault(
        "the bus's Stop stops the first of the children that it is given, and answers success",
        "stop-wrong-children",
        ("start-stop/stop-wrong-children",),
        bus=_StopsTheFirstChildOnly,
    ),
    "stop-from-inside": Fault(
        "the bus's Stop disconnects one of its children itself, by way of the core, which enters Stop once more",
        "stop-reentrant",
        ("start-stop/stop-reentered",),
        bus=_StopsFromInside,
    ),
    "stop-connects-again": Fault(
        "a device's Stop ends with ConnectController on the controller that is being disconnected",
        "start-during-stop",
        ("start-stop/start-during-stop", "protocol-usage/closed-interface"),
        front_end=_ConnectsAgain,
    ),
    "stop-lies": Fault(
        "a device's Stop answers success and does nothing where a request has been served",
        "stop-lies",
        (
            *("start-stop/stop-lies", "reference-count/leak", "reference-count/unbalanced"),
            # Who believes it unloads with everything in place, or stops the bus below it.
            *("start-stop/stop-leaves", "event-lifetime/left-behind", "memory-ownership/leak"),
            *("connection-reset/premature-reset", "connection-reset/use-after-reset", "start-stop/restart-differs"),
        ),
        device_driver=_PutsOffABusyStop,
    ),
    "stop-keeps-a-page": Fault(
        "the bus's Stop keeps the page in which it had the shared info",
        "reserved-page-leak",
        ("memory-ownership/leak",),
        bus=_KeepsTheSharedPage,
    ),
    "stop-keeps-its-watch": Fault(
        "a device's Stop does not unregister its watch",
        "",
        ("start-stop/stop-leaves",),
        front_end=_KeepsItsWatch,
    ),
    "stop-asked-of-everybody": Fault(
        "the bus's Stop enters Stop of every device driver for each child, whoever manages it",
        "stop-wrong-children",
        ("start-stop/stop-not-started",),
        bus=_StopsWhoeverThereIs,
    ),
    "removed-child-marked": Fault(
        "the bus installs a protocol on the handle of a child that it has just removed",
        "",
        ("protocol-usage/closed-interface",),
        bus=_MarksARemovedChild,
    ),
    "stop-keeps-a-child-record": Fault(
        "the bus opens two protocols for each child and closes one",
        "child-open-not-closed",
        ("protocol-usage/child-left-open",),
        bus=_OpensTwoForAChild,
    ),
    "stop-ends-at-closed": Fault(
        "a device's Stop ends with the front end in Closed, from where it cannot be started again",
        "restart-dirty",
        ("start-stop/restart-differs",),
        front_end=_StopsAtClosed,
    ),
    "unload-keeps-its-binding": Fault(
        "the bus's Unload does not uninstall the driver binding, which the core goes on asking",
        "",
        ("start-stop/entered-after-unload",),
        bus_driver=_KeepsItsBinding,
    ),
}
