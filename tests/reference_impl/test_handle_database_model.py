"""The handle database against a model of the same rules that is made of nothing but lists.

The model knows a handle as a list of protocols (newest first), a protocol as [guid, interface, opens], an open as
[agent, controller, attributes, count], the instances of a protocol as a list of handles, and a registration as the list
of handles that it still has to give out. One driver with a driver binding manages P2 wherever it is let; all other
agents have none, and so cannot be disconnected.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.handle_database import ALL_HANDLES, BY_PROTOCOL, BY_REGISTER_NOTIFY, RefusalWithValue
from reference_impl.uefi.status import EfiError
from tests.reference_impl.conftest import make_core

P1, P2, P3 = PROTOCOLS = tuple(f"00000000-0000-0000-0000-00000000000{number}" for number in (1, 2, 3))
BY_HANDLE, GET, TEST, CHILD, DRIVER, EXCLUSIVE = 1, 2, 4, 8, 16, 32
SHARED = (BY_HANDLE, GET, TEST)
BOGUS = 0x1234
MAX_HANDLES = 4
NOTHING = 99

protocols = st.sampled_from(PROTOCOLS)
interfaces = st.sampled_from((0x1001, 0x1002))
picks = st.sampled_from((0, 1, 0, 1, 2, 3, NOTHING))
mostly = st.sampled_from((True, True, True, False))
pairs = st.lists(st.tuples(protocols, interfaces), max_size=4)
attribute_values = st.sampled_from((BY_HANDLE, GET, TEST, CHILD, DRIVER, EXCLUSIVE, DRIVER | EXCLUSIVE, 3, 0x40))


class Refused(Exception):  # noqa: N818 - the model's own refusal
    """The model refuses with this status."""


class ManagingDriver:
    """Manages P2, and lets go whenever it is asked to."""

    agent, version = "Driver", 1
    image_handle = driver_binding_handle = 0
    services: BootServices

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Whether P2 is free to manage."""
        self.start(controller, remaining_device_path)
        self.stop(controller, ())

    def start(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Manage P2."""
        self.services.open_protocol(controller, P2, self.driver_binding_handle, controller, DRIVER)

    def stop(self, controller: int, children: tuple[int, ...]) -> None:
        """Let go."""
        self.services.close_protocol(controller, P2, self.driver_binding_handle, controller)


class Model:
    """The rules, once more."""

    def __init__(self, driver: int) -> None:
        self.driver = driver
        self.handles: dict[int, list[list[Any]]] = {}
        self.instances: dict[str, list[int]] = {protocol: [] for protocol in PROTOCOLS}
        self.registrations: dict[int, tuple[str, list[int]]] = {}
        self.entries: set[str] = set()
        self.others: list[int] = []  # handles that the model did not make, but that are there

    def exists(self, handle: int) -> bool:
        """Whether it is a handle at all."""
        return handle in self.handles or handle in self.others

    def find(self, handle: int, protocol: str) -> list[Any] | None:
        """The protocol on the handle."""
        return next((found for found in self.handles.get(handle, ()) if found[0] == protocol), None)

    def install(self, handle: int, protocol: str, interface: int, made: int) -> int:
        """InstallProtocolInterface; a new handle is `made`."""
        if handle and (handle not in self.handles or self.find(handle, protocol)):
            raise Refused("INVALID_PARAMETER")
        handle = handle or made
        self.entries.add(protocol)
        self.handles.setdefault(handle, []).insert(0, [protocol, interface, []])
        self._appeared(protocol, handle)
        return handle

    def _appeared(self, protocol: str, handle: int) -> None:
        self.instances[protocol].append(handle)
        for waited, pending in self.registrations.values():
            if waited == protocol:
                pending.append(handle)

    def _disappeared(self, protocol: str, handle: int) -> None:
        self.instances[protocol].remove(handle)
        for waited, pending in self.registrations.values():
            if waited == protocol and handle in pending:
                pending.remove(handle)

    def disconnected(self, handle: int, found: list[Any]) -> bool:
        """Stop whoever manages a protocol; whether that worked."""
        while True:
            agents = [agent for agent, _, attributes, _ in found[2] if attributes & DRIVER]
            if not agents:
                return True
            if agents[0] != self.driver:
                return False
            found[2][:] = [one for one in found[2] if (one[0], one[1]) != (self.driver, handle)]

    def connect(self, handle: int) -> bool:
        """ConnectController, recursively; whether the driver was started on the handle itself."""
        found = self.find(handle, P2)
        free = found is not None and not any(one[2] & (DRIVER | EXCLUSIVE) for one in found[2])
        if found is not None and free:
            found[2].append([self.driver, handle, DRIVER, 1])
        for other in self.handles.get(handle, ()):
            for child in [controller for _, controller, attributes, _ in other[2] if attributes == CHILD]:
                self.connect(child)
        return free

    def release(self, handle: int, protocol: str, interface: int) -> list[Any]:
        """What comes before a protocol goes."""
        if not self.exists(handle):
            raise Refused("INVALID_PARAMETER")
        found = self.find(handle, protocol)
        if found is None or found[1] != interface:
            raise Refused("NOT_FOUND")
        free = self.disconnected(handle, found)
        if free:
            found[2][:] = [one for one in found[2] if one[2] not in SHARED]
        if not free or found[2]:
            self.connect(handle)
            raise Refused("ACCESS_DENIED")
        return found

    def uninstall(self, handle: int, protocol: str, interface: int) -> None:
        """UninstallProtocolInterface."""
        found = self.release(handle, protocol, interface)
        self.handles[handle].remove(found)
        self._disappeared(protocol, handle)
        if not self.handles[handle]:
            del self.handles[handle]

    def reinstall(self, handle: int, protocol: str, interface: int, new_interface: int) -> None:
        """ReinstallProtocolInterface."""
        found = self.release(handle, protocol, interface)
        found[1] = new_interface
        self._disappeared(protocol, handle)
        self._appeared(protocol, handle)
        self.connect(handle)

    def open(self, handle: int, protocol: str, agent: int, controller: int, attributes: int) -> int:
        """OpenProtocol."""
        needs_agent = attributes in (CHILD, DRIVER, EXCLUSIVE, DRIVER | EXCLUSIVE)
        needs_controller = needs_agent and attributes != EXCLUSIVE
        if (
            not self.exists(handle)
            or not (needs_agent or attributes in SHARED)
            or (needs_agent and not self.exists(agent))
            or (needs_controller and not self.exists(controller))
            or (attributes == CHILD and controller == handle)
        ):
            raise Refused("INVALID_PARAMETER")
        found = self.find(handle, protocol)
        if found is None:
            raise Refused("UNSUPPORTED")
        value = 0 if attributes == TEST else found[1]
        opens = found[2]
        same = [one for one in opens if one[:3] == [agent, controller, attributes]]
        if same and attributes & DRIVER:
            raise Refused(f"ALREADY_STARTED {found[1]}")
        if same and attributes != EXCLUSIVE:
            same[0][3] += 1
            return value
        held = 0
        for one in opens:
            held |= one[2]
        if attributes & (DRIVER | EXCLUSIVE):
            if held & EXCLUSIVE or (held & DRIVER and not attributes & EXCLUSIVE):
                raise Refused("ACCESS_DENIED")
            if held & DRIVER and not self.disconnected(handle, found):
                raise Refused("ACCESS_DENIED")
        if agent:
            opens.append([agent, controller, attributes, 1])
        return value

    def close(self, handle: int, protocol: str, agent: int, controller: int) -> None:
        """CloseProtocol."""
        if not self.exists(handle) or not self.exists(agent) or (controller and not self.exists(controller)):
            raise Refused("INVALID_PARAMETER")
        found = self.find(handle, protocol)
        kept = [one for one in found[2] if one[:2] != [agent, controller]] if found else []
        if found is None or len(kept) == len(found[2]):
            raise Refused("NOT_FOUND")
        found[2][:] = kept


class HandleDatabaseMachine(RuleBasedStateMachine):
    """Calls services and the model side by side."""

    def __init__(self) -> None:
        super().__init__()
        core = self.core = make_core()
        driver = ManagingDriver()
        core.handles.setup_driver("Driver", driver)
        driver.services = BootServices(core, "Driver", driver.image_handle)
        self.services = BootServices(core, "Test")
        self.model = Model(driver.driver_binding_handle)
        self.model.others = list(core.handles.handles)
        self.events: dict[int, int] = {}  # registration → event
        for protocol in PROTOCOLS:  # so that a count of the core's buffers need not know which entries exist
            handle = self.services.install_protocol_interface(0, protocol, 0, 1)
            self.services.uninstall_protocol_interface(handle, protocol, 1)
        self.buffers = core.memory.live_count("DxeCore")

    def pick(self, index: int) -> int:
        """One of the handles, or something that is none."""
        known = list(self.model.handles)
        return known[index % len(known)] if known and index != NOTHING else BOGUS

    def there(self, index: int, protocol: str, interface: int, right: bool) -> tuple[int, str, int]:
        """A handle, a protocol and an interface; where `right`, ones that are there, as far as that can be."""
        handle = self.pick(index)
        found = self.model.find(handle, protocol) or next(iter(self.model.handles.get(handle, ())), None)
        return (handle, found[0], found[1]) if right and found else (handle, protocol, interface)

    def both(self, service: Any, arguments: tuple[Any, ...], modelled: Any, modelled_arguments: Any = None) -> Any:
        """Call the service and the model; both give the same value, or refuse alike."""
        try:
            expected = modelled(*(arguments if modelled_arguments is None else modelled_arguments))
            refused = ""
        except Refused as error:
            expected, refused = None, str(error)
        try:
            value = service(*arguments)
            status = ""
        except RefusalWithValue as error:
            value, status = None, f"{error.status.name} {error.value}"
        except EfiError as error:
            value, status = None, error.status.name
        assert (status, value) == (refused, expected)
        return value

    @initialize()
    def begin(self) -> None:
        """Two handles with all protocols and a registration, so that there is something to do from the start."""
        for _ in range(2):
            self.install_multiple(True, 0, [(protocol, 0x1001) for protocol in PROTOCOLS])
        self.register(P1)

    def next_handle(self) -> int:
        """The number that a new handle will have: they only ever rise."""
        return self.core.handles._next_handle

    @rule(new=st.booleans(), index=picks, protocol=protocols, interface=interfaces)
    def install(self, new: bool, index: int, protocol: str, interface: int) -> None:
        """Install on a new handle or on one that is there."""
        handle = 0 if new and len(self.model.handles) < MAX_HANDLES else self.pick(index)
        self.both(
            self.services.install_protocol_interface,
            (handle, protocol, 0, interface),
            self.model.install,
            (handle, protocol, interface, self.next_handle()),
        )

    @rule(new=st.booleans(), index=picks, wanted=pairs)
    def install_multiple(self, new: bool, index: int, wanted: list[tuple[str, int]]) -> None:
        """Install several, or none."""
        handle = 0 if new and len(self.model.handles) < MAX_HANDLES else self.pick(index)
        made = self.next_handle()

        def modelled() -> int:
            on = handle
            for done, (protocol, interface) in enumerate(wanted):
                try:
                    on = self.model.install(on, protocol, interface, made)
                except Refused:
                    for pair in wanted[:done]:
                        self.model.uninstall(on, *pair)
                    raise
            return on

        self.both(self.services.install_multiple_protocol_interfaces, (handle, *wanted), modelled, ())

    @rule(index=picks, protocol=protocols, interface=interfaces, right=mostly)
    def uninstall(self, index: int, protocol: str, interface: int, right: bool) -> None:
        """Uninstall."""
        arguments = self.there(index, protocol, interface, right)
        self.both(self.services.uninstall_protocol_interface, arguments, self.model.uninstall)

    @rule(index=picks, wanted=pairs, right=mostly)
    def uninstall_multiple(self, index: int, wanted: list[tuple[str, int]], right: bool) -> None:
        """Uninstall several, often with the right interfaces; those before a refused one come back."""
        handle = self.pick(index)
        if right:
            there = {found[0]: found[1] for found in self.model.handles.get(handle, ())}
            wanted = [(protocol, there.get(protocol, interface)) for protocol, interface in wanted]

        def modelled() -> None:
            for done, pair in enumerate(wanted):
                try:
                    self.model.uninstall(handle, *pair)
                except Refused:
                    for protocol, interface in wanted[:done]:
                        if handle in self.model.handles and not self.model.find(handle, protocol):
                            self.model.install(handle, protocol, interface, 0)
                    raise Refused("INVALID_PARAMETER") from None

        self.both(self.services.uninstall_multiple_protocol_interfaces, (handle, *wanted), modelled, ())

    @rule(index=picks, protocol=protocols, interface=interfaces, new_interface=interfaces, right=mostly)
    def reinstall(self, index: int, protocol: str, interface: int, new_interface: int, right: bool) -> None:
        """Exchange an interface."""
        arguments = (*self.there(index, protocol, interface, right), new_interface)
        self.both(self.services.reinstall_protocol_interface, arguments, self.model.reinstall)

    @rule(index=picks, protocol=protocols, agent=picks, controller=picks, attributes=attribute_values)
    def open(self, index: int, protocol: str, agent: int, controller: int, attributes: int) -> None:
        """Open in any way. Children are younger than their parents, since a circle would be connected for ever."""
        handle, protocol, _ = self.there(index, protocol, 0, right=True)
        its_controller = self.pick(controller)
        if attributes == CHILD and its_controller < handle:
            handle, its_controller = its_controller, handle
        arguments = (handle, protocol, self.pick(agent), its_controller, attributes)
        self.both(self.services.open_protocol, arguments, self.model.open)

    @rule(index=picks, protocol=protocols, null_agent=st.booleans(), agent=picks, attributes=attribute_values)
    def open_for_nobody(self, index: int, protocol: str, null_agent: bool, agent: int, attributes: int) -> None:
        """Open without a controller, perhaps without an agent."""
        handle, protocol, _ = self.there(index, protocol, 0, right=True)
        arguments = (handle, protocol, 0 if null_agent else self.pick(agent), 0, attributes)
        self.both(self.services.open_protocol, arguments, self.model.open)

    def opens(self) -> list[tuple[int, str, int, int, int]]:
        """All opens that there are."""
        return [
            (handle, found[0], *one[:3])
            for handle, there in self.model.handles.items()
            for found in there
            for one in found[2]
        ]

    @precondition(opens)
    @rule(index=st.integers(0, 9))
    def open_again(self, index: int) -> None:
        """Open once more in exactly the same way."""
        opens = self.opens()
        self.both(self.services.open_protocol, opens[index % len(opens)], self.model.open)

    @precondition(opens)
    @rule(index=st.integers(0, 9))
    def close_one(self, index: int) -> None:
        """Close what is open."""
        opens = self.opens()
        self.both(self.services.close_protocol, opens[index % len(opens)][:4], self.model.close)

    @rule(index=picks, protocol=protocols, agent=picks, controller=picks, null=st.booleans())
    def close(self, index: int, protocol: str, agent: int, controller: int, null: bool) -> None:
        """Close."""
        arguments = (self.pick(index), protocol, self.pick(agent), 0 if null else self.pick(controller))
        self.both(self.services.close_protocol, arguments, self.model.close)

    @rule(index=picks)
    def connect(self, index: int) -> None:
        """Connect the driver to a handle and its children."""

        def modelled() -> None:
            handle = self.pick(index)
            if handle not in self.model.handles:
                raise Refused("INVALID_PARAMETER")
            if not self.model.connect(handle):
                raise Refused("NOT_FOUND")

        self.both(self.services.connect_controller, (self.pick(index), (), None, True), modelled, ())

    @rule(protocol=protocols)
    def register(self, protocol: str) -> None:
        """Register an event: what is there already counts as not located yet."""
        event = self.services.create_event(0, 0, None)
        key = self.services.register_protocol_notify(protocol, event)
        self.events[key] = event
        self.model.registrations[key] = (protocol, list(self.model.instances[protocol]))

    @precondition(lambda self: self.events)
    @rule(index=picks)
    def close_event(self, index: int) -> None:
        """Close a registered event."""
        key = list(self.events)[index % len(self.events)]
        self.services.close_event(self.events.pop(key))
        del self.model.registrations[key]

    @precondition(lambda self: self.events)
    @rule(index=picks, by_protocol=st.booleans())
    def locate_registered(self, index: int, by_protocol: bool) -> None:
        """Locate the next instance of a registration, as a handle or as an interface."""
        key = list(self.events)[index % len(self.events)]
        protocol, pending = self.model.registrations[key]

        def modelled() -> int:
            if not pending:
                raise Refused("NOT_FOUND")
            handle = pending.pop(0)
            return self.model.find(handle, protocol)[1] if by_protocol else handle  # type: ignore[index]

        def located(*arguments: Any) -> int:
            address, handles = self.services.locate_handle_buffer(*arguments)
            self.services.free_pool(address)
            (handle,) = handles
            return handle

        if by_protocol:
            self.both(self.services.locate_protocol, (protocol, key), modelled, ())
        else:
            self.both(located, (BY_REGISTER_NOTIFY, "", key), modelled, ())

    @invariant()
    def same_handles(self) -> None:
        """Both have the same handles, protocols, interfaces and opens, in the same order."""
        database = self.core.handles
        assert database.locate(ALL_HANDLES, "", 0) == [*self.model.others, *self.model.handles]
        for handle, there in self.model.handles.items():
            address, guids = self.services.protocols_per_handle(handle)
            self.services.free_pool(address)
            assert list(guids) == [found[0] for found in there]
            for protocol, interface, opens in there:
                assert database.interface_of(handle, protocol) == interface
                assert [list(record) for record in database.open_records(handle, protocol)] == opens

    @invariant()
    def same_instances(self) -> None:
        """Both have the same instances of each protocol, in the same order."""
        for protocol, handles in self.model.instances.items():
            assert self.core.handles.handles_with(protocol) == handles
            if handles:
                assert self.core.handles.locate(BY_PROTOCOL, protocol, 0) == handles

    @invariant()
    def memory_is_what_is_there(self) -> None:
        """The core holds one buffer for each handle, instance, open, event and registration, and no other."""
        handles = self.model.handles.values()
        expected = len(handles) + 2 * len(self.events)
        expected += sum(1 + len(found[2]) for there in handles for found in there)
        own_opens = sum(len(self.core.handles.open_records(handle, guid)) for handle, guid in self._of_the_core())
        assert self.core.memory.live_count("DxeCore") == self.buffers + expected + own_opens
        assert self.core.trace.tpl == 4

    def _of_the_core(self) -> list[tuple[int, str]]:
        handles = self.core.handles.handles
        return [(handle, guid) for handle in self.model.others for guid in handles[handle].protocols]


TestHandleDatabase = HandleDatabaseMachine.TestCase
TestHandleDatabase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
