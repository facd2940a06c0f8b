"""From a scenario to a trace: builds the world that the scenario asks for and does its operations one after another.

The platform world is a machine of its own: firmware core, Xen, the bus driver and the device drivers in the scenario's
design, and after a successful ExitBootServices the operating system. Worlds share nothing.

What the environment allows is decided here, in two places: `_permitted` (which operations may come when) and `_may_fail`
(where an armed failure may fire). `_set_up_environment` does what switches of the hostile one change by themselves. An
operation that is not permitted, or that names something that is not there, is
skipped and recorded with the reason; the rest of the scenario goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from reference_impl import core_world, ring_world
from reference_impl.failures import ALLOCATIONS, CLEANUP, Failures
from reference_impl.faulty import faulty
from reference_impl.scenario import FAILURES, MAX_DEVICES_EVER, Operation, Scenario, switches_needed
from reference_impl.third_party import ThirdParty
from reference_impl.trace import Kind, Phase, StepBudgetExceeded, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.events import TIMER_TICK_100NS
from reference_impl.uefi.status import EfiError
from reference_impl.xen.operating_system import take_over
from reference_impl.xenbus.bus_driver import AGENT as BUS_AGENT
from reference_impl.xenbus.bus_driver import XenBus, XenIo
from reference_impl.xenbus.designs import DESIGNS
from reference_impl.xenbus.designs.base import DeviceTeardown
from reference_impl.xenbus.devices import DEVICES
from reference_impl.xenbus.driver import Driver
from reference_impl.xenbus.front_end import FrontEnd, FrontEndDriver

GRANT_TABLE_ADDRESS = 0xF200_0000  # BAR 1 of the Xen platform device
MAP_BUFFER_SIZE = 1 << 16
AFTER_AN_ATTEMPT = frozenset({"exit", "allocate", "free", "time"})
"""After a first exit attempt the loader may use memory services, let time pass, and try again (UEFI 2.10 §7.4.6)."""


def run(scenario: Scenario) -> Trace:
    """Run `scenario` in a new world. The same scenario gives the same trace."""
    if scenario.world == "core":
        return core_world.run(scenario)
    if scenario.world == "ring":
        return ring_world.run(scenario)
    return PlatformWorld(scenario).run()


class SkippedError(Exception):
    """An operation that cannot be done; its reason stands in the trace."""


class PlatformWorld:
    """One machine, and what a scenario can do to it."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.trace = Trace()
        failures = Failures(self.trace, self._may_fail)
        self._fault = faulty(scenario.fault)
        self.core = self._fault.core(self.trace, failures)
        self.core.events.order = scenario.order
        self.platform = self._fault.platform(self.trace, failures, scenario.reconnection, scenario.devices)
        self.core.idle = self.platform.step
        self.firmware = BootServices(self.core, "firmware")
        self.loader = BootServices(self.core, "os-loader")
        self._design = self._fault.design(DESIGNS[scenario.design])
        self._drivers: dict[str, Driver] = {}
        self._loader_pages: list[tuple[int, int]] = []
        self._set_up_environment()
        core = self.core
        handles = core.handles
        xenio = self.core.place(0x1000, XenIo(GRANT_TABLE_ADDRESS))
        path = self.core.place(0x1100, b"PciRoot(0)/Pci(2,0)")
        self._controller = handles.install(0, guids.DEVICE_PATH_PROTOCOL, path)
        handles.install(self._controller, guids.XENIO_PROTOCOL, xenio)
        for name in ("xenbus", *DEVICES):
            self._install(name, core.handles.setup_driver)

    def run(self, first: int = 0) -> Trace:
        """Do every operation from the `first` on; the trace."""
        try:
            for index in range(first, len(self.scenario.operations)):
                self.do(index, self.scenario.operations[index])
        except StepBudgetExceeded:
            pass  # the trace says who used the budget up, and the oracles judge what came before
        return self.trace

    def do(self, index: int, operation: Operation) -> None:
        """Do one operation; the scenario's `index`-th."""
        records = self.trace.records
        place = len(records)
        kind, arguments = operation
        self.trace.add(Kind.OPERATION, "scenario", kind, arguments, None, index)
        try:
            self._permitted(operation)
            getattr(self, f"_{kind.replace('-', '_')}")(*arguments)
        except SkippedError as reason:
            records[place] = (*records[place][:7], str(reason), index)
        except EfiError as refusal:
            records[place] = (*records[place][:7], refusal.status, index)

    # ---- the environment ------------------------------------------------------------------------------------------

    def _permitted(self, operation: Operation) -> None:
        phase = self.trace.phase
        if phase == Phase.RUNTIME:
            raise SkippedError("the operating system owns the machine")
        if phase != Phase.BOOT and operation.kind not in AFTER_AN_ATTEMPT:
            raise SkippedError("after an exit attempt only memory services, time and a retry may come")
        missing = switches_needed(operation).difference(self.scenario.switches)
        if missing:
            raise SkippedError(f"this needs the hostile environment's switch {min(missing)}")

    def _may_fail(self, call: str) -> bool:
        anywhere = "failures-anywhere" in self.scenario.switches
        in_cleanup = "cleanup-fails" in self.scenario.switches
        if self.trace.phase != Phase.BOOT and not anywhere:
            return False
        if call in ALLOCATIONS:
            return True
        if call in CLEANUP:
            return in_cleanup
        if self.core.entry == "Stop" and call.startswith("XS_"):
            return anywhere or in_cleanup
        return anywhere or self.core.entry in ("Supported", "Start")

    def _set_up_environment(self) -> None:
        """What switches of the hostile environment change without any operation, and the third party."""
        switches = self.scenario.switches
        self._hooks = ThirdParty(self.core, self._handle_or_none)
        if "early-notifications" in switches:
            self.core.notifies_early = True
        if "cleanup-fails" in switches:
            self.platform.cleanup_may_fail = True
        if "timer-ticks" in switches or "third-party-inside" in switches:
            self.core.events.on_drop = self._tpl_drops

    def _tpl_drops(self) -> None:
        if "timer-ticks" in self.scenario.switches:
            self.core.events.advance(TIMER_TICK_100NS)
        self._hooks.tpl_drops()

    # ---- operations -----------------------------------------------------------------------------------------------

    def _connect(self, controller: str, driver: str, recursive: bool) -> None:
        images = () if driver == "any" else (self._binding_handle(driver),)
        self.firmware.connect_controller(self._handle(controller), images, None, recursive)

    def _disconnect(self, controller: str, driver: str, child: str) -> None:
        handle = self._handle(controller)
        binding = 0 if driver == "any" else self._binding_handle(driver)
        self.firmware.disconnect_controller(handle, binding, 0 if child == "all" else self._handle(child))

    def _request(self, index: int) -> None:
        node = self._node(index)
        for driver in self._drivers.values():
            for instance in driver.instances.values():
                if isinstance(instance, FrontEnd) and instance.published and instance.io.node == node:
                    instance.request()
                    return
        raise SkippedError("no driver has started this device")

    def _fail(self, failure: str, nth: int) -> None:
        call, status = FAILURES[failure]
        self.core.failures.arm(call, nth, status)

    def _add_device(self, kind: str) -> None:
        if len(self.platform.devices) == MAX_DEVICES_EVER:
            raise SkippedError("the machine has no place for another device")
        self.platform.add_device(kind)

    def _remove_device(self, index: int) -> None:
        if not self.platform.remove_device(index):
            raise SkippedError("there is no such device")

    def _backend(self, index: int, delay: int) -> None:
        if not self.platform.set_delay(index, delay):
            raise SkippedError("there is no such device")

    def _time(self, milliseconds: int) -> None:
        self.firmware.stall(milliseconds * 1000)

    def _unload(self, name: str) -> None:
        driver = self._driver(name)
        self.firmware.unload_image(driver.image_handle)
        del self._drivers[name]

    def _load(self, name: str) -> None:
        if name in self._drivers:
            raise SkippedError("the driver is loaded")

        def install(agent: str, driver: Driver) -> int:
            handle = self.firmware.load_image(agent)
            address = self.core.handles.place_binding(handle, driver)
            self.firmware.install_protocol_interface(handle, guids.DRIVER_BINDING_PROTOCOL, 0, address)
            return handle

        self._install(name, install)

    def _install(self, name: str, install: Callable[[str, Driver], int]) -> None:
        agent = BUS_AGENT if name == "xenbus" else DEVICES[name].agent
        services = self._services_of(agent)
        driver: Driver
        if name == "xenbus":
            driver = self._fault.bus_driver(services, self.platform, self._design, self._fault.bus)
        else:
            driver = self._fault.device_driver(services, DEVICES[name], self._design, self._fault.front_end)
        services.image_handle = install(agent, driver)
        image = self.core.handles.loaded_image(services.image_handle)
        assert image is not None
        image.unload = driver.unload
        self._drivers[name] = driver

    def _services_of(self, agent: str) -> BootServices:
        """The boot services table of a driver in Python."""
        return BootServices(self.core, agent)

    def _allocate(self, pages: int) -> None:
        address = self.loader.allocate_pages(0, 2, pages, 0)
        self._loader_pages.append((address, pages))

    def _free(self) -> None:
        if not self._loader_pages:
            raise SkippedError("the loader holds no pages")
        self.loader.free_pages(*self._loader_pages.pop())

    def _exit(self, map_key: str) -> None:
        _, key, _ = self.loader.get_memory_map(MAP_BUFFER_SIZE)
        if map_key == "stale":
            key -= 1
        self.loader.exit_boot_services(0, key)
        current = self.core.memory.map_key
        reason = (
            "OK"
            if current == key
            else f"the map that the loader holds has key {key}, the memory has moved on to {current}"
        )
        self.trace.add(Kind.TAKE_OVER, "os", "memory-map", (key, current), reason, "")
        take_over(self.platform)

    # ---- operations that only a switch permits --------------------------------------------------------------------

    def _third_party(self, act: str, controller: str, when: str, tpl: str, nth: int) -> None:
        self._hooks.hook(act, controller, when, tpl, nth)

    def _without_handler(self, name: str) -> None:
        driver = self._driver(name)
        assert isinstance(driver, FrontEndDriver)
        driver.design = driver.design._replace(device=DeviceTeardown)

    def _tear_out(self, name: str) -> None:
        driver = self._driver(name)
        image = self.core.handles.loaded_image(driver.image_handle)
        assert image is not None
        image.unload = driver.leave
        self._unload(name)

    def _vanish(self, index: int, requests: int) -> None:
        if not self.platform.vanish(index, requests):
            raise SkippedError("there is no such device")

    def _peer(self, index: int, manner: str) -> None:
        self._node(index)
        self.platform.devices[index].behave(manner)

    def _store(self, manner: str) -> None:
        self.platform.xenstored.behave(manner)

    # ---- names of the scenario ------------------------------------------------------------------------------------

    def _handle(self, name: str) -> int:
        if name == "bus":
            return self._controller
        node = self._node(int(name.removeprefix("child-")))
        bus = self._drivers.get("xenbus")
        for instance in bus.instances.values() if bus else ():
            if isinstance(instance, XenBus):
                for child in instance.children.values():
                    if child.protocol.node == node:
                        return child.handle
        raise SkippedError("the bus has no such child")

    def _handle_or_none(self, name: str) -> int:
        try:
            return self._handle(name)
        except SkippedError:
            return 0

    def _node(self, index: int) -> str:
        devices = self.platform.devices
        if index >= len(devices):
            raise SkippedError("there is no such device")
        return devices[index].path

    def _binding_handle(self, name: str) -> int:
        """Where a driver's binding is: what ConnectController and DisconnectController take."""
        return self._driver(name).driver_binding_handle

    def _driver(self, name: str) -> Driver:
        driver = self._drivers.get(name)
        if driver is None:
            raise SkippedError("the driver is not loaded")
        return driver
