"""The core world: the firmware core alone, called with any arguments.

Two agents, "caller" and "other", call boot services. What a `call` operation passes is picked by its selectors from
what the run has seen (handles, events, addresses; those of the past stay in the lists) and from odd values. `SERVICES`
is the table of services with the kinds of their arguments; the last selector also says who calls, and whether the place
for the answer is NULL (`HOW`). A controller, four drivers of different manners and some notification functions stand
ready, so that the core is also entered again from inside: notifications signal, close, allocate, connect and exit.

A refusal is always fine. Anything else that escapes from the core is our own bug and ends the run with its exception;
so does a violated invariant (`check_invariants`). A run that goes round in circles ends by its step budget, and its
trace is what was recorded until then.

What deliberately lives elsewhere: oracles. Here the callers break the rules on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reference_impl.failures import Failures
from reference_impl.scenario import FAILURES, Scenario
from reference_impl.trace import Kind, Phase, StepBudgetExceeded, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import BY_CHILD_CONTROLLER, BY_DRIVER, TPL_APPLICATION, TPL_NOTIFY
from reference_impl.uefi.driver_binding import BINDING_OFFSET_BYTES, LoadedImage
from reference_impl.uefi.status import EfiError, EfiStatus

CALLER, OTHER = "caller", "other"

STEP_BUDGET = 4_000
"""Records of one run. A few hundred operations need far less, unless notifications feed on each other."""

LIVE_SELECTORS = 192
"""Selectors below this pick among what the run has seen, the others among the odd values."""

HOW = ("caller", "caller", "other", "null")
"""By the last selector divided by 64: who calls; "null": the caller, with NULL for the answer where there is one."""

_BOGUS = 0xDEAD0
_LAST_PAGE = 0xFFFFFFFFFFFFF000
_BUS_PROTOCOL, _DEVICE_PROTOCOL = guids.XENIO_PROTOCOL, guids.BLOCK_IO_PROTOCOL

VALUES: dict[str, tuple[Any, ...]] = {
    "guid": (
        guids.BLOCK_IO_PROTOCOL,
        guids.XENIO_PROTOCOL,
        guids.DRIVER_BINDING_PROTOCOL,
        guids.DEVICE_PATH_PROTOCOL,
        guids.LOADED_IMAGE_PROTOCOL,
        guids.PLATFORM_DRIVER_OVERRIDE_PROTOCOL,
        guids.DRIVER_FAMILY_OVERRIDE_PROTOCOL,
        guids.BUS_SPECIFIC_DRIVER_OVERRIDE_PROTOCOL,
        guids.XENBUS_PROTOCOL,
        guids.SIMPLE_NETWORK_PROTOCOL,
        "",
    ),
    "group": (
        guids.EVENT_GROUP_EXIT_BOOT_SERVICES,
        guids.EVENT_GROUP_BEFORE_EXIT_BOOT_SERVICES,
        guids.EVENT_GROUP_EXIT_BOOT_SERVICES_FAILED,
        guids.EVENT_GROUP_MEMORY_MAP_CHANGE,
        guids.EVENT_GROUP_VIRTUAL_ADDRESS_CHANGE,
        guids.BLOCK_IO_PROTOCOL,
        "",
    ),
    "tpl": (8, 16, 4, 31, 0, 5, 17, 30, 32),
    "event-type": (
        0x200,
        0x100,
        0,
        0x80000000,
        0x80000200,
        0x80000100,
        0x201,
        0x60000202,
        0x300,
        0x80000300,
        0x80000201,
        0x202,
        0x1,
        0x40000200,
        0xFFFFFFFF,
    ),
    "size": (16, 0, 1, 88, 100, 600, 2648, 2649, 5000, 70_000, 1 << 31, (1 << 64) - 1),
    "memory-type": (4, 2, 1, 6, 10, 0, 11, 0x70000000, 0x80000001, 0xFFFFFFFF, 7, 13, 14, 15, 16, 0x6FFFFFFF),
    "allocate-type": (0, 1, 2, 3, 0xFFFFFFFF),
    "page-count": (1, 2, 4, 16, 1000, 0, 70_000, 1 << 51, 1 << 52, (1 << 64) - 1),
    "attributes": (
        0x10,
        0x02,
        0x01,
        0x04,
        0x08,
        0x20,
        0x30,
        0x00,
        0x03,
        0x18,
        0x40,
        0xFF,
    ),
    "context": tuple(range(16)),
    "delay-type": (2, 1, 0, 3),
    "time": (10_000, 0, 1, 100_000, 1_000_000, 100_000_000, (1 << 64) - 1),
    "microseconds": (100, 0, 1, 10_000, 1_000_000),
    "search-type": (2, 0, 1, 3),
    "buffer-size": (4096, 8, 0, None),
    "map-size": (1 << 16, 0, 1, None),
    "interface-type": (0, 1),
    "recursive": (True, False),
    "device-path": (None, b"\x7f\xff\x04\x00", b"\x01\x01\x06\x00\x00\x02"),
    "driver": ("manager", "refuser", "stubborn", "bus"),
}
"""Values of the kinds of parameter that do not depend on the run, the simplest first."""


class Service(NamedTuple):
    """How one boot service is called.

    method  of `BootServices`
    kinds   of its parameters; a tuple of kinds stands for one parameter that is a tuple
    gives   kind of what it returns: a list of `_Seen` that it is put on, "buffer" for an (address, …), "" for nothing
    out     whether it has a place for an answer that can be NULL
    """

    method: str
    kinds: tuple[str | tuple[str, str], ...]
    gives: str = ""
    out: bool = False


SERVICES: dict[str, Service] = {
    "AllocatePool": Service("allocate_pool", ("memory-type", "size"), "address", True),
    "AllocatePages": Service(
        "allocate_pages", ("allocate-type", "memory-type", "page-count", "address"), "address", True
    ),
    "FreePool": Service("free_pool", ("address",)),
    "FreePages": Service("free_pages", ("address", "page-count")),
    "GetMemoryMap": Service("get_memory_map", ("map-size",), "", True),
    "CreateEvent": Service("create_event", ("event-type", "tpl", "function", "context"), "event", True),
    "CreateEventEx": Service("create_event_ex", ("event-type", "tpl", "function", "context", "group"), "event", True),
    "CloseEvent": Service("close_event", ("event",)),
    "InstallConfigurationTable": Service("install_configuration_table", ("group", "address")),
    "SignalEvent": Service("signal_event", ("event",)),
    "WaitForEvent": Service("wait_for_event", ("events",), "", True),
    "CheckEvent": Service("check_event", ("event",)),
    "SetTimer": Service("set_timer", ("event", "delay-type", "time")),
    "InstallProtocolInterface": Service(
        "install_protocol_interface", ("new-handle", "guid", "interface-type", "interface"), "handle", True
    ),
    "InstallMultipleProtocolInterfaces": Service(
        "install_multiple_protocol_interfaces", ("new-handle", ("guid", "interface"), ("guid", "interface")), "handle"
    ),
    "UninstallProtocolInterface": Service("uninstall_protocol_interface", ("handle", "guid", "interface")),
    "UninstallMultipleProtocolInterfaces": Service(
        "uninstall_multiple_protocol_interfaces", ("handle", ("guid", "interface"), ("guid", "interface"))
    ),
    "ReinstallProtocolInterface": Service("reinstall_protocol_interface", ("handle", "guid", "interface", "interface")),
    "RegisterProtocolNotify": Service("register_protocol_notify", ("guid", "event"), "registration", True),
    "OpenProtocol": Service("open_protocol", ("handle", "guid", "handle", "handle", "attributes"), "interface", True),
    "CloseProtocol": Service("close_protocol", ("handle", "guid", "handle", "handle")),
    "OpenProtocolInformation": Service("open_protocol_information", ("handle", "guid"), "buffer"),
    "HandleProtocol": Service("handle_protocol", ("handle", "guid"), "interface", True),
    "LocateProtocol": Service("locate_protocol", ("guid", "registration"), "interface", True),
    "LocateHandle": Service("locate_handle", ("search-type", "guid", "registration", "buffer-size"), "", True),
    "LocateHandleBuffer": Service("locate_handle_buffer", ("search-type", "guid", "registration"), "buffer", True),
    "ProtocolsPerHandle": Service("protocols_per_handle", ("handle",), "buffer", True),
    "ConnectController": Service("connect_controller", ("handle", "drivers", "device-path", "recursive")),
    "DisconnectController": Service("disconnect_controller", ("handle", "any-handle", "any-handle")),
    "Stall": Service("stall", ("microseconds",)),
    "RaiseTPL": Service("raise_tpl", ("tpl",)),
    "RestoreTPL": Service("restore_tpl", ("tpl",)),
    "LoadImage": Service("load_image", ("driver",), "image"),
    "StartImage": Service("start_image", ("handle",)),
    "UnloadImage": Service("unload_image", ("handle",)),
    "ExitBootServices": Service("exit_boot_services", ("handle", "map-key")),
}


def run(scenario: Scenario) -> Trace:
    """Run a scenario of the core world. The same scenario gives the same trace."""
    return CoreWorld(scenario).run()


def check_invariants(core: Core, images: Sequence[LoadedImage]) -> None:
    """Assert what must hold between any two operations, whatever was called.

    The memory's own invariants; and the core holds exactly the memory that its records need: none is lost.
    """
    memory, database = core.memory, core.handles
    memory.check_invariants()
    instances = [instance for handle in database.handles.values() for instance in handle.protocols.values()]
    records = len(database.handles) + len(instances) + sum(len(instance.opens) for instance in instances)
    records += len(database.entries) + len(database.registrations) + len(core.events.live())
    records += sum(1 for image in images if image.address) + memory.oem_type_count()
    records += core.configuration_tables.buffer_count
    held = memory.live_count("DxeCore") - 1  # but for the interface of its own image
    assert held == records, f"the core holds {held} buffers for {records} records"


class CoreWorld:
    """One core, two agents, and what the run has seen so far."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.trace = Trace()
        self.core = Core(self.trace, Failures(self.trace, lambda call: True), STEP_BUDGET)
        self.core.events.order = scenario.order
        self.caller = BootServices(self.core, CALLER)
        self.other = BootServices(self.core, OTHER)
        self.images: list[LoadedImage] = []
        self._pages: list[tuple[int, int]] = []
        self._functions = {
            services.agent: (None, *notification_functions(services, self)) for services in (self.caller, self.other)
        }
        place, handles = self.core.place, self.core.handles
        self.seen: dict[str, list[Any]] = {
            "handle": [],
            "event": [],
            "address": [],
            "interface": [place(0x1000, b"\x01\x01\x06\x00\x00\x02"), place(0x1100, b"\x01\x01\x06\x00\x00\x03")],
            "registration": [],
        }
        controller = handles.install(0, guids.DEVICE_PATH_PROTOCOL, 0x1000)
        handles.install(controller, _BUS_PROTOCOL, 0)
        self.seen["handle"].append(controller)
        for name in VALUES["driver"]:
            driver = DRIVERS[name](name, self)
            image_handle = handles.setup_driver(name, driver)
            self._keep_image(image_handle, driver)
        self.seen["interface"].append(place(0x1200, Override(image_handle)))
        self.trace.records.clear()

    def run(self) -> Trace:
        """Do every operation, come back to TPL_APPLICATION, check the invariants; the trace."""
        trace = self.trace
        try:
            for index, (kind, arguments) in enumerate(self.scenario.operations):
                place = len(trace.records)
                trace.add(Kind.OPERATION, "scenario", kind, arguments, None, index)
                skipped = self._do(kind, arguments)
                if skipped:
                    trace.records[place] = (*trace.records[place][:7], skipped, index)
            if trace.tpl != TPL_APPLICATION and trace.phase != Phase.RUNTIME:
                self.caller.restore_tpl(TPL_APPLICATION)
        except StepBudgetExceeded:
            # The stack was unwound from the middle of anything, so the core may well hold memory for a record that it
            # was about to make.
            self.core.memory.check_invariants()
            return trace
        check_invariants(self.core, self.images)
        return trace

    # ---- operations -----------------------------------------------------------------------------------------------

    def _do(self, kind: str, arguments: tuple[Any, ...]) -> str:
        """Do one operation. Gives why it was skipped, "" where it was not; a refusal stands in the service's record."""
        if self.trace.phase == Phase.RUNTIME:
            return "the operating system owns the machine"
        caller = self.caller
        try:
            if kind == "call":
                self._call(*arguments)
            elif kind == "exit":
                self.exit(caller, arguments[0] == "stale")
            elif kind == "time":
                caller.stall(arguments[0] * 1000)
            elif kind == "allocate":
                self._pages.append((caller.allocate_pages(0, 2, arguments[0]), arguments[0]))
            elif kind == "free":
                if not self._pages:
                    return "the loader holds no pages"
                caller.free_pages(*self._pages.pop())
            else:
                call, status = FAILURES[arguments[0]]
                self.core.failures.arm(call, arguments[1], status)
        except EfiError:
            pass
        return ""

    def exit(self, services: BootServices, stale: bool = False) -> None:
        """Fetch the map and call ExitBootServices with its key, or with the one before."""
        _, key, _ = services.get_memory_map(VALUES["map-size"][0])
        services.exit_boot_services(services.image_handle, key - stale)

    def _call(self, name: str, *selectors: int) -> None:
        """Call a service with what the selectors pick, and keep what it gives."""
        method, kinds, gives, out = SERVICES[name]
        how = HOW[selectors[-1] // 64]
        services = self.other if how == OTHER else self.caller
        given = iter((*selectors[:-1], selectors[-1] % 64))
        arguments: list[Any] = [
            self._pick(services, kind, next(given))
            if isinstance(kind, str)
            else tuple(self._pick(services, part, next(given)) for part in kind)
            for kind in kinds
        ]
        if out:
            arguments.append(how != "null")
        value = getattr(services, method)(*arguments)
        if gives == "image":
            self._start(arguments[0], value)
        elif gives == "buffer":
            self.seen["address"].append(value[0])
        elif gives:
            self.seen[gives].append(value)
            if gives == "address":
                self.seen["interface"].append(value)

    def _pick(self, services: BootServices, kind: str, selector: int) -> Any:
        """The value that a selector means for a parameter of this kind, now."""
        fixed = VALUES.get(kind)
        if fixed is not None:
            return fixed[selector % len(fixed)]
        seen = self.seen
        if kind == "new-handle":
            return _live_or((0, *seen["handle"]), (_BOGUS,), selector)
        if kind == "any-handle":
            return _live_or((0, *seen["handle"]), (1, _BOGUS), selector)
        if kind == "handle":
            return _live_or(seen["handle"], (1, 0, _BOGUS), selector)
        if kind == "event":
            return _live_or(seen["event"], (0, _BOGUS), selector)
        if kind == "interface":
            return _live_or(seen["interface"], (0, _BOGUS), selector)
        if kind == "registration":
            return _live_or((0, *seen["registration"]), (_BOGUS,), selector)
        if kind == "address":
            last = seen["address"][-1] if seen["address"] else _BOGUS
            return _live_or(seen["address"], (0x200000, 0, 1, last + 8, last + 4096, 0x1F000000, _LAST_PAGE), selector)
        if kind == "map-key":
            key = self.core.memory.map_key
            return (key, key - 1, 0, (1 << 64) - 1)[selector % 4]
        if kind == "function":
            functions = self._functions[services.agent]
            return functions[(selector + 1) % len(functions)]
        source = "event" if kind == "events" else "handle"
        assert kind in ("events", "drivers"), kind
        count, first = selector % 4, selector // 4
        return tuple(self._pick(services, source, first + offset) for offset in range(count))

    # ---- images ---------------------------------------------------------------------------------------------------

    def _start(self, name: str, image_handle: int) -> None:
        """What a loaded image does at its entry point: install its driver binding."""
        driver = DRIVERS[name](name, self)
        self.core.handles.place_binding(image_handle, driver)
        self._keep_image(image_handle, driver)
        driver.services.install_protocol_interface(image_handle, guids.DRIVER_BINDING_PROTOCOL, 0, driver.interface)

    def _keep_image(self, image_handle: int, driver: Driver) -> None:
        image = self.core.handles.loaded_image(image_handle)
        assert image is not None
        driver.services.image_handle = image_handle
        image.unload = driver.unload
        self.images.append(image)
        self.seen["handle"].append(image_handle)
        driver.interface = image.address + BINDING_OFFSET_BYTES
        self.seen["interface"].append(driver.interface)


def _live_or(live: Sequence[Any], odd: Sequence[Any], selector: int) -> Any:
    """One of the live values, or of the odd ones where the selector is high or nothing is live."""
    if live and selector < LIVE_SELECTORS:
        return live[selector % len(live)]
    return odd[selector % len(odd)]


# ---- driver code --------------------------------------------------------------------------------------------------


class Driver:
    """A driver binding that manages controllers with one protocol, as it should be done. UEFI 2.10 §11.1."""

    version = 0x10
    protocol = _DEVICE_PROTOCOL

    def __init__(self, agent: str, world: CoreWorld) -> None:
        self.agent = agent
        self.world = world
        self.services = BootServices(world.core, agent)
        self.image_handle = self.driver_binding_handle = self.interface = 0

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Can it be opened by this driver?"""
        self._open(controller)
        self._close(controller)

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Keep it open."""
        self._open(controller)

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Close it."""
        self._close(controller)

    def unload(self, image_handle: int) -> None:
        """Take the driver binding away. It is refused while a driver is started that cannot be disconnected."""
        self.services.uninstall_protocol_interface(image_handle, guids.DRIVER_BINDING_PROTOCOL, self.interface)

    def _open(self, controller: int) -> None:
        self.services.open_protocol(controller, self.protocol, self.driver_binding_handle, controller, BY_DRIVER)

    def _close(self, controller: int) -> None:
        self.services.close_protocol(controller, self.protocol, self.driver_binding_handle, controller)


class Refuser(Driver):
    """Supports everything and starts nothing."""

    version = 0x20

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Always."""

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Takes what it needs, gives it back, and refuses."""
        self._open(controller)
        self._close(controller)
        raise EfiError(EfiStatus.DEVICE_ERROR)


class Stubborn(Driver):
    """Starts, and refuses to stop and to be unloaded."""

    protocol = guids.SIMPLE_NETWORK_PROTOCOL

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Never."""
        raise EfiError(EfiStatus.DEVICE_ERROR)

    def unload(self, image_handle: int) -> None:
        """Never."""
        raise EfiError(EfiStatus.ACCESS_DENIED)


class Bus(Driver):
    """Makes one child on each controller."""

    protocol = _BUS_PROTOCOL

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Open the bus, make a child on it, and open the bus for the child; all or nothing."""
        services = self.services
        self._open(controller)
        child = 0
        try:
            child = services.install_protocol_interface(0, _DEVICE_PROTOCOL, 0, controller)
            services.open_protocol(controller, self.protocol, self.driver_binding_handle, child, BY_CHILD_CONTROLLER)
        except EfiError:
            if child:
                services.uninstall_protocol_interface(child, _DEVICE_PROTOCOL, controller)
            self._close(controller)
            raise
        self.world.seen["handle"].append(child)

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Destroy the children; a child whose drivers do not let go stays."""
        services = self.services
        for child in children:
            services.close_protocol(controller, self.protocol, self.driver_binding_handle, child)
            try:
                services.uninstall_protocol_interface(child, _DEVICE_PROTOCOL, controller)
            except EfiError:
                services.open_protocol(
                    controller, self.protocol, self.driver_binding_handle, child, BY_CHILD_CONTROLLER
                )
                raise
        if not children:
            self._close(controller)


DRIVERS: dict[str, type[Driver]] = {"manager": Driver, "refuser": Refuser, "stubborn": Stubborn, "bus": Bus}


class Override:
    """Serves as each of the override protocols: it names one image. UEFI 2.10 §11.3 to §11.5."""

    agent = "override"

    def __init__(self, image_handle: int) -> None:
        self.image_handle = image_handle

    def get_driver(self, *arguments: int) -> int | None:
        """Its image first, then none. The last argument is the image that it named before, 0 at first."""
        return None if arguments[-1] else self.image_handle

    def get_version(self) -> int:
        """The version of a driver family."""
        return 1


Notification = Callable[[int, Any], None]


def notification_functions(services: BootServices, world: CoreWorld) -> tuple[Notification, ...]:
    """Notification functions of one agent, the simplest first. The context picks what they work on."""
    kept: list[int] = []

    def seen(context: Any) -> int:
        events = world.seen["event"]
        return int(events[context % len(events)])

    def returns(event: int, context: Any) -> None:
        """That it ran is recorded by the core."""

    def signals_another(event: int, context: Any) -> None:
        services.signal_event(seen(context))

    def signals_itself(event: int, context: Any) -> None:
        services.signal_event(event)

    def closes_itself(event: int, context: Any) -> None:
        services.close_event(event)

    def closes_another(event: int, context: Any) -> None:
        services.close_event(seen(context))

    def allocates(event: int, context: Any) -> None:
        kept.append(services.allocate_pool(4, 600 * context))

    def frees(event: int, context: Any) -> None:
        if kept:
            services.free_pool(kept.pop())

    def raises_and_restores(event: int, context: Any) -> None:
        old = services.raise_tpl(TPL_NOTIFY)
        services.signal_event(seen(context))
        services.restore_tpl(old)

    def lowers(event: int, context: Any) -> None:
        services.signal_event(seen(context))
        services.restore_tpl(TPL_APPLICATION)

    def checks(event: int, context: Any) -> None:
        services.check_event(seen(context))

    def creates(event: int, context: Any) -> None:
        world.seen["event"].append(services.create_event(0x200, 8, returns, context))

    def connects(event: int, context: Any) -> None:
        handles = world.seen["handle"]
        services.connect_controller(handles[context % len(handles)], (), None, True)

    def disconnects(event: int, context: Any) -> None:
        handles = world.seen["handle"]
        services.disconnect_controller(handles[context % len(handles)])

    def exits(event: int, context: Any) -> None:
        world.exit(services, context % 2 == 1)

    return (
        returns,
        signals_another,
        closes_itself,
        allocates,
        raises_and_restores,
        frees,
        signals_itself,
        closes_another,
        lowers,
        checks,
        creates,
        connects,
        disconnects,
        exits,
    )
