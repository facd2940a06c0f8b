"""The handle database: handles, the protocols on them, and who has opened what.

    Handle        the protocols installed on one handle, in order of installation
    Instance      one protocol on one handle: its interface and its open records
    Entry         one protocol: its instances in order of installation, and who waits for new ones
    OpenRecord    (agent, controller, attributes, count), as OpenProtocolInformation shows it
    Registration  one RegisterProtocolNotify

`HandleDatabase` holds them and is the core's own way to them; `ProtocolServices` are the boot services over it.
Each of these records is memory of the core (`Core.allocate`), in the sizes of edk2 on X64. Buffers that a service gives
to its caller belong to the caller, who frees them with FreePool; they too are recorded as CORE_MEMORY, since it is the
core that allocates. In Python such a service gives (address, tuple of what stands there).

Where a protocol that a driver manages is uninstalled, exchanged or opened EXCLUSIVE, the driver is disconnected
(`driver_binding`). It may do anything to the database then; what was looked up before is looked up again afterwards.
Notifications, too, may run wherever the TPL drops. So the core holds TPL_NOTIFY, as edk2's database lock does, from an
allocation to the change that it was made for, and frees only when all else is done.

Handles are numbers that are never used again. `CORE_HANDLE` is the firmware's own image handle.

What deliberately lives elsewhere: connecting and disconnecting (`driver_binding`), signalling events (`events`).

Sources: UEFI 2.10 §7.3; edk2's MdeModulePkg/Core/Dxe/Hand, and what real firmware answered
(`tests/reference_impl/dxecore_answers.txt`), for what the specification leaves open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.core import Core, service
from reference_impl.uefi.definitions import (
    BOOT_SERVICES_DATA,
    BY_CHILD_CONTROLLER,
    BY_DRIVER,
    BY_HANDLE_PROTOCOL,
    EXCLUSIVE,
    GET_PROTOCOL,
    TEST_PROTOCOL,
    TPL_NOTIFY,
)
from reference_impl.uefi.driver_binding import (
    BINDING_OFFSET_BYTES,
    DriverBinding,
    LoadedImage,
    connect,
    disconnect,
    load,
)
from reference_impl.uefi.status import EfiError, EfiStatus

CORE_HANDLE = 1
"""Image handle of the firmware core: the agent of what HandleProtocol opens."""

HANDLE_SIZE_BYTES = 56
ENTRY_SIZE_BYTES = 72
INSTANCE_SIZE_BYTES = 88
OPEN_RECORD_SIZE_BYTES = 48
REGISTRATION_SIZE_BYTES = 48
OPEN_INFORMATION_SIZE_BYTES = 24
POINTER_SIZE_BYTES = 8

ALL_HANDLES, BY_REGISTER_NOTIFY, BY_PROTOCOL = 0, 1, 2

OpenInformation = tuple[int, int, int, int]
"""EFI_OPEN_PROTOCOL_INFORMATION_ENTRY: agent, controller, attributes, open count."""

_CORE_MEMORY = int(Kind.CORE_MEMORY)
_BY_DRIVER_EXCLUSIVE = BY_DRIVER | EXCLUSIVE
_SHARED = BY_HANDLE_PROTOCOL | GET_PROTOCOL | TEST_PROTOCOL
_INVALID_PARAMETER, _NOT_FOUND = EfiStatus.INVALID_PARAMETER, EfiStatus.NOT_FOUND
_UNSUPPORTED, _ACCESS_DENIED = EfiStatus.UNSUPPORTED, EfiStatus.ACCESS_DENIED


class RefusalWithValue(EfiError):  # noqa: N818 - named for what it is to the caller
    """A refusal that gives something back all the same.

    `value` is the interface where OpenProtocol answers EFI_ALREADY_STARTED, and the size in bytes where LocateHandle
    answers EFI_BUFFER_TOO_SMALL.
    """

    def __init__(self, status: EfiStatus, value: int) -> None:
        super().__init__(status)
        self.value = value


class OpenRecord:
    """One open of an instance; `count` says how often in exactly this way."""

    __slots__ = ("address", "agent", "attributes", "controller", "count")

    def __init__(self, address: int, agent: int, controller: int, attributes: int) -> None:
        self.address = address
        self.agent = agent
        self.controller = controller
        self.attributes = attributes
        self.count = 1


class Instance:
    """One protocol on one handle. `number` rises with each installation, also among the instances of its entry."""

    __slots__ = ("address", "entry", "handle", "interface", "number", "opens")

    def __init__(self, address: int, handle: int, entry: Entry, interface: int, number: int) -> None:
        self.address = address
        self.handle = handle
        self.entry = entry
        self.interface = interface
        self.number = number
        self.opens: list[OpenRecord] = []


class Handle:
    """One handle: its protocols by GUID, in order of installation."""

    __slots__ = ("address", "protocols")

    def __init__(self, address: int) -> None:
        self.address = address
        self.protocols: dict[str, Instance] = {}

    def newest_first(self) -> Iterator[Instance]:
        """The instances in the order in which edk2 lists them."""
        return reversed(self.protocols.values())


class Registration:
    """One RegisterProtocolNotify: its event, and the number of the last instance that was located with it."""

    __slots__ = ("address", "entry", "event", "position")

    def __init__(self, address: int, entry: Entry, event: int) -> None:
        self.address = address
        self.entry = entry
        self.event = event
        self.position = 0


class Entry:
    """One protocol: its instances, oldest first, and its registrations. It stays when the last instance has gone."""

    __slots__ = ("instances", "registrations")

    def __init__(self) -> None:
        self.instances: list[Instance] = []
        self.registrations: list[Registration] = []


class HandleDatabase:
    """All handles and protocols of one core.

    handles        in order of creation
    entries        by protocol
    registrations  by registration key, which is the address of the record
    """

    __slots__ = ("_next_handle", "_next_number", "core", "entries", "handles", "registrations")

    def __init__(self, core: Core) -> None:
        self.core = core
        self.handles: dict[int, Handle] = {}
        self.entries: dict[str, Entry] = {}
        self.registrations: dict[int, Registration] = {}
        self._next_handle = CORE_HANDLE
        self._next_number = 1
        records = core.trace.records
        length = len(records)
        self.install(0, guids.LOADED_IMAGE_PROTOCOL, core.allocate(POINTER_SIZE_BYTES))
        del records[length:]
        core.events.on_close = self.event_closed

    # ---- looking -------------------------------------------------------------------------------------------------

    def instance_of(self, handle: int, protocol: str) -> Instance | None:
        """The protocol on the handle, or None."""
        found = self.handles.get(handle)
        return None if found is None else found.protocols.get(protocol)

    def interface_of(self, handle: int, protocol: str) -> int | None:
        """The interface of the protocol on the handle, or None."""
        instance = self.instance_of(handle, protocol)
        return None if instance is None else instance.interface

    def open_records(self, handle: int, protocol: str) -> tuple[OpenInformation, ...]:
        """Who has the protocol on the handle open, in order of opening; nothing where there is no such protocol."""
        instance = self.instance_of(handle, protocol)
        if instance is None:
            return ()
        return tuple((record.agent, record.controller, record.attributes, record.count) for record in instance.opens)

    def handles_with(self, protocol: str) -> list[int]:
        """The handles that have the protocol, in order of its installation."""
        entry = self.entries.get(protocol)
        return [] if entry is None else [instance.handle for instance in entry.instances]

    def loaded_image(self, handle: int) -> LoadedImage | None:
        """The image whose handle this is, or None."""
        found = self.core.objects.get(self.interface_of(handle, guids.LOADED_IMAGE_PROTOCOL) or 0)
        return found[0] if found is not None and isinstance(found[0], LoadedImage) and found[0].address else None

    # ---- lock ----------------------------------------------------------------------------------------------------

    def lock(self) -> int:
        """Hold notifications back, as edk2's database lock does. Gives what `unlock` takes."""
        tpl = self.core.trace.tpl
        return self.core.events.raise_tpl(TPL_NOTIFY) if tpl < TPL_NOTIFY else tpl

    def unlock(self, tpl: int) -> None:
        """Let run what `lock` has held back."""
        if tpl < TPL_NOTIFY:
            self.core.events.restore_tpl(tpl)

    # ---- installing ----------------------------------------------------------------------------------------------

    def install(self, handle: int, protocol: str, interface: int) -> int:
        """Install a protocol on `handle` (0: a new one), tell who waits for it, give the handle.

        EFI_INVALID_PARAMETER: no such handle, or it has the protocol. EFI_OUT_OF_RESOURCES.
        """
        found = None
        if handle:
            found = self.handles.get(handle)
            if found is None or protocol in found.protocols:
                raise EfiError(_INVALID_PARAMETER)
        core = self.core
        outer_tpl = self.lock()
        address = 0
        try:
            entry = self._entry(protocol)
            address = core.allocate(INSTANCE_SIZE_BYTES)
            if found is None:
                found = Handle(core.allocate(HANDLE_SIZE_BYTES))
                handle = self._next_handle
                self._next_handle = handle + 1
                self.handles[handle] = found
        except EfiError:
            if address:
                core.free(address)
            self.unlock(outer_tpl)
            raise
        instance = Instance(address, handle, entry, interface, self._number())
        found.protocols[protocol] = instance
        entry.instances.append(instance)
        self._notify(entry)
        self.unlock(outer_tpl)
        return handle

    def install_multiple(self, handle: int, pairs: tuple[tuple[str, int], ...]) -> int:
        """Install several protocols on `handle` (0: a new one), or none. Gives the handle, 0 where nothing was asked.

        Of each pair in turn: EFI_ALREADY_STARTED: a device path that is installed already, here or elsewhere; what
        `install` answers. Notifications run when all is done.
        """
        outer_tpl = self.lock()
        done = 0
        try:
            for protocol, interface in pairs:
                if protocol == guids.DEVICE_PATH_PROTOCOL and self._device_path_installed(interface):
                    raise EfiError(EfiStatus.ALREADY_STARTED)
                handle = self.install(handle, protocol, interface)
                done += 1
        except EfiError:
            for protocol, interface in pairs[:done]:
                with suppress(EfiError):  # edk2 does not look
                    self.uninstall(handle, protocol, interface)
            self.unlock(outer_tpl)
            raise
        self.unlock(outer_tpl)
        return handle

    def uninstall(self, handle: int, protocol: str, interface: int) -> None:
        """Disconnect who manages the protocol, drop shared opens, remove it; and the handle with its last protocol.

        EFI_INVALID_PARAMETER: no such handle. EFI_NOT_FOUND: it has no such protocol with that interface.
        EFI_ACCESS_DENIED: somebody keeps it open.
        """
        found, instance = self._release(handle, protocol, interface)
        del found.protocols[protocol]
        instance.entry.instances.remove(instance)
        last = not found.protocols
        if last:
            del self.handles[handle]
        self.core.free(instance.address)
        if last:
            self.core.free(found.address)

    def uninstall_multiple(self, handle: int, pairs: tuple[tuple[str, int], ...]) -> None:
        """Uninstall several protocols, or none.

        EFI_INVALID_PARAMETER: one of them was refused. Those before it are installed again, behind all others, where
        the handle is still there.
        """
        for index, (protocol, interface) in enumerate(pairs):
            try:
                self.uninstall(handle, protocol, interface)
            except EfiError:
                for removed, its_interface in pairs[:index]:
                    with suppress(EfiError):  # a handle whose last protocol went is gone; edk2 does not look
                        self.install(handle, removed, its_interface)
                raise EfiError(_INVALID_PARAMETER) from None

    def reinstall(self, handle: int, protocol: str, interface: int, new_interface: int) -> None:
        """Exchange an interface: disconnect who manages it, exchange, connect everybody again, tell who waits.

        EFI_INVALID_PARAMETER, EFI_NOT_FOUND, EFI_ACCESS_DENIED as in `uninstall`.
        """
        _, instance = self._release(handle, protocol, interface)
        instances = instance.entry.instances
        instances.remove(instance)
        instance.interface = new_interface
        instance.number = self._number()
        instances.append(instance)
        with suppress(EfiError):  # edk2 does not look
            connect(self.core, handle, recursive=True)
        self._notify(instance.entry)

    # ---- opening -------------------------------------------------------------------------------------------------

    def open(self, handle: int, protocol: str, agent: int, controller: int, attributes: int) -> int:
        """Open a protocol and give its interface (0 where it was only tested).

        EFI_INVALID_PARAMETER: no such handle; attributes that do not exist together; an agent or controller that these
        attributes need and that is no handle; a handle as its own child. EFI_UNSUPPORTED: no such protocol there.
        EFI_ALREADY_STARTED: exactly this BY_DRIVER open stands already. EFI_ACCESS_DENIED: another open is in the way.
        EFI_OUT_OF_RESOURCES.
        """
        handles = self.handles
        found = handles.get(handle)
        if found is None:
            raise EfiError(_INVALID_PARAMETER)
        if attributes in (BY_DRIVER, _BY_DRIVER_EXCLUSIVE):
            valid = agent in handles and controller in handles
        elif attributes == BY_CHILD_CONTROLLER:
            valid = agent in handles and controller in handles and handle != controller
        elif attributes == EXCLUSIVE:
            valid = agent in handles
        else:
            valid = attributes in (BY_HANDLE_PROTOCOL, GET_PROTOCOL, TEST_PROTOCOL)
        if not valid:
            raise EfiError(_INVALID_PARAMETER)
        instance = found.protocols.get(protocol)
        if instance is None:
            raise EfiError(_UNSUPPORTED)
        value = 0 if attributes == TEST_PROTOCOL else instance.interface
        managed = exclusive = False
        for record in instance.opens:
            held = record.attributes
            same = held == attributes and record.agent == agent and record.controller == controller
            if held & BY_DRIVER:
                if same:
                    raise RefusalWithValue(EfiStatus.ALREADY_STARTED, value)
                managed = True
            if held & EXCLUSIVE:
                exclusive = True
            elif same:
                record.count += 1
                return value
        if attributes & _BY_DRIVER_EXCLUSIVE:
            if exclusive or (managed and attributes == BY_DRIVER):
                raise EfiError(_ACCESS_DENIED)
            if managed:
                if not self._disconnect_all(instance):
                    raise EfiError(_ACCESS_DENIED)
                if found.protocols.get(protocol) is not instance:
                    raise EfiError(_UNSUPPORTED)  # a driver took it away with itself; edk2 would use freed memory here
                value = instance.interface
        if agent:
            outer_tpl = self.lock()
            try:
                address = self.core.allocate(OPEN_RECORD_SIZE_BYTES)
            except EfiError:
                self.unlock(outer_tpl)
                raise
            instance.opens.append(OpenRecord(address, agent, controller, attributes))
            self.unlock(outer_tpl)
        return value

    def core_opens(self, handle: int, protocol: str) -> int:
        """The interface as the core itself gets it: by HandleProtocol, which leaves a record. 0 where it is not there.

        Raises EfiError(OUT_OF_RESOURCES).
        """
        if self.instance_of(handle, protocol) is None:
            return 0
        return self.open(handle, protocol, CORE_HANDLE, 0, BY_HANDLE_PROTOCOL)

    def close(self, handle: int, protocol: str, agent: int, controller: int) -> None:
        """Remove every open of that agent and controller, whatever its attributes and count.

        EFI_INVALID_PARAMETER: handle, agent or controller (where not 0) is no handle; no protocol. EFI_NOT_FOUND: no
        such protocol there, or not opened so.
        """
        handles = self.handles
        found = handles.get(handle)
        if found is None or agent not in handles or (controller and controller not in handles) or not protocol:
            raise EfiError(_INVALID_PARAMETER)
        instance = found.protocols.get(protocol)
        if instance is None or not self._drop(
            instance, [record for record in instance.opens if record.agent == agent and record.controller == controller]
        ):
            raise EfiError(_NOT_FOUND)

    def close_all(self, agent: int) -> None:
        """Close everything that an image has left open.

        A record whose controller has gone stays for ever, since CloseProtocol refuses it (edk2).
        """
        handles = self.handles
        for instance in [instance for found in handles.values() for instance in found.protocols.values()]:
            mine = [
                record
                for record in instance.opens
                if record.agent == agent and (not record.controller or record.controller in handles)
            ]
            self._drop(instance, mine)

    # ---- locating ------------------------------------------------------------------------------------------------

    def locate(self, search_type: int, protocol: str, key: int) -> list[int]:
        """The handles that a search gives. A search by registration gives one, and does not go on by itself.

        EFI_INVALID_PARAMETER: no such type, or without the protocol or the registration that it needs.
        EFI_NOT_FOUND: none.
        """
        if search_type == ALL_HANDLES:
            return list(self.handles)
        if search_type == BY_REGISTER_NOTIFY:
            return [self._next_registered(self._registration(key)).handle]
        if search_type != BY_PROTOCOL or not protocol:
            raise EfiError(_INVALID_PARAMETER)
        handles = self.handles_with(protocol)
        if not handles:
            raise EfiError(_NOT_FOUND)
        return handles

    def located(self, search_type: int, key: int) -> None:
        """What `locate` found is given out now: a registration goes on to the next instance."""
        if search_type == BY_REGISTER_NOTIFY:
            registration = self._registration(key)
            registration.position = self._next_registered(registration).number

    def locate_protocol(self, protocol: str, key: int) -> int:
        """The first instance's interface, or the next one of a registration, which goes on.

        EFI_NOT_FOUND: none. `key` decides alone where it is not 0 (edk2).
        """
        if key:
            registration = self._registration(key)
            instance = self._next_registered(registration)
            registration.position = instance.number
            return instance.interface
        entry = self.entries.get(protocol)
        if entry is None or not entry.instances:
            raise EfiError(_NOT_FOUND)
        return entry.instances[0].interface

    # ---- notification of installations -----------------------------------------------------------------------------

    def register(self, protocol: str, event: int) -> int:
        """Signal `event` at each installation of `protocol` from now on; gives the key under which to locate instances.

        EFI_OUT_OF_RESOURCES.
        """
        outer_tpl = self.lock()
        try:
            entry = self._entry(protocol)
            address = self.core.allocate(REGISTRATION_SIZE_BYTES)
        except EfiError:
            self.unlock(outer_tpl)
            raise
        registration = self.registrations[address] = Registration(address, entry, event)
        entry.registrations.append(registration)
        self.unlock(outer_tpl)
        return address

    def event_closed(self, event: int) -> None:
        """Forget the registrations of an event that is being closed."""
        if self.registrations:
            gone = [registration for registration in self.registrations.values() if registration.event == event]
            for registration in gone:
                registration.entry.registrations.remove(registration)
                del self.registrations[registration.address]
            for registration in gone:
                self.core.free(registration.address)

    # ---- for building worlds ---------------------------------------------------------------------------------------

    def setup_driver(self, agent: str, binding: DriverBinding) -> int:
        """Load the image `agent` with one driver binding, without a record in the trace. Gives the image handle."""
        records = self.core.trace.records
        length = len(records)
        handle = load(self.core, agent)
        self.install(handle, guids.DRIVER_BINDING_PROTOCOL, self.place_binding(handle, binding))
        del records[length:]
        return handle

    def place_binding(self, image_handle: int, binding: DriverBinding) -> int:
        """Place a driver binding in its image's own data, where it goes away with the image. Gives its address.

        Sets the binding's handles to the image's. Installing it is the driver's business.
        """
        image = self.loaded_image(image_handle)
        assert image is not None, f"handle {image_handle} is no image"
        binding.image_handle = binding.driver_binding_handle = image_handle
        return self.core.place(image.address + BINDING_OFFSET_BYTES, binding, image.address)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _number(self) -> int:
        number = self._next_number
        self._next_number = number + 1
        return number

    def _entry(self, protocol: str) -> Entry:
        entry = self.entries.get(protocol)
        if entry is None:
            self.core.allocate(ENTRY_SIZE_BYTES)  # never freed
            entry = self.entries[protocol] = Entry()
        return entry

    def _notify(self, entry: Entry) -> None:
        if entry.registrations:
            outer_tpl = self.lock()
            for registration in entry.registrations:
                self.core.events.signal(registration.event)
            self.unlock(outer_tpl)

    def _release(self, handle: int, protocol: str, interface: int) -> tuple[Handle, Instance]:
        """Free a protocol of all its opens; where that fails, connect all drivers again. Statuses as in `uninstall`."""
        found = self.handles.get(handle)
        if found is None:
            raise EfiError(_INVALID_PARAMETER)
        instance = found.protocols.get(protocol)
        if instance is None or instance.interface != interface:
            raise EfiError(_NOT_FOUND)
        disconnected = self._disconnect_all(instance)
        if disconnected:
            self._drop(instance, [record for record in instance.opens if record.attributes & _SHARED])
        if not disconnected or instance.opens:
            with suppress(EfiError):  # edk2 does not look
                connect(self.core, handle, recursive=True)
            raise EfiError(_ACCESS_DENIED)
        if found.protocols.get(protocol) is not instance or instance.interface != interface:
            raise EfiError(_NOT_FOUND)  # a driver that was disconnected has done it already
        return found, instance

    def _disconnect_all(self, instance: Instance) -> bool:
        """Disconnect the drivers that manage an instance, one after another. Whether none was refused."""
        while True:
            agent = next((record.agent for record in instance.opens if record.attributes & BY_DRIVER), None)
            if agent is None:
                return True
            try:
                # A driver whose Stop() answers success and goes on managing is asked until the step budget is used up.
                disconnect(self.core, instance.handle, agent)
            except EfiError:
                return False

    def _drop(self, instance: Instance, records: list[OpenRecord]) -> bool:
        """Remove these opens of an instance. Whether there were any."""
        for record in records:
            instance.opens.remove(record)
        for record in records:
            self.core.free(record.address)
        return bool(records)

    def _device_path_installed(self, interface: int) -> bool:
        entry = self.entries.get(guids.DEVICE_PATH_PROTOCOL)
        if entry is None or not interface:
            return False
        path = self._device_path(interface)
        return any(
            instance.interface == interface or (path is not None and self._device_path(instance.interface) == path)
            for instance in entry.instances
        )

    def _device_path(self, interface: int) -> bytes | None:
        try:
            path = self.core.object_at(interface, "DxeCore")
        except EfiError:
            return None
        return path if isinstance(path, bytes) else None

    def _registration(self, key: int) -> Registration:
        registration = self.registrations.get(key)
        if registration is None:
            raise EfiError(_INVALID_PARAMETER)
        return registration

    def _next_registered(self, registration: Registration) -> Instance:
        position = registration.position
        for instance in registration.entry.instances:
            if instance.number > position:
                return instance
        raise EfiError(_NOT_FOUND)


class ProtocolServices:
    """The boot services of this module. UEFI 2.10 §7.3."""

    __slots__ = ()

    core: Core
    agent: str
    image_handle: int

    @service("InstallProtocolInterface")
    def install_protocol_interface(
        self, handle: int, protocol: str, interface_type: int, interface: int, out: bool = True
    ) -> int:
        """Install a protocol on `handle` (0: a new handle) and give the handle.

        EFI_INVALID_PARAMETER: no pointer to a handle, no protocol, another type than native; then as
        `HandleDatabase.install`. UEFI 2.10 §7.3.2.
        """
        if not out or not protocol or interface_type:
            raise EfiError(_INVALID_PARAMETER)
        return self.core.handles.install(handle, protocol, interface)

    @service("UninstallProtocolInterface")
    def uninstall_protocol_interface(self, handle: int, protocol: str, interface: int) -> None:
        """Remove a protocol.

        EFI_INVALID_PARAMETER: no protocol; then as `HandleDatabase.uninstall`. UEFI 2.10 §7.3.3.
        """
        if not protocol:
            raise EfiError(_INVALID_PARAMETER)
        self.core.handles.uninstall(handle, protocol, interface)

    @service("ReinstallProtocolInterface")
    def reinstall_protocol_interface(self, handle: int, protocol: str, interface: int, new_interface: int) -> None:
        """Exchange an interface.

        EFI_INVALID_PARAMETER: no protocol; then as `HandleDatabase.reinstall`. UEFI 2.10 §7.3.4.
        """
        if not protocol:
            raise EfiError(_INVALID_PARAMETER)
        self.core.handles.reinstall(handle, protocol, interface, new_interface)

    @service("InstallMultipleProtocolInterfaces")
    def install_multiple_protocol_interfaces(self, handle: int | None, *pairs: tuple[str, int]) -> int:
        """Install several (protocol, interface) on `handle` (0: a new handle), or none of them; give the handle.

        EFI_INVALID_PARAMETER: None, no pointer to a handle; then as `HandleDatabase.install_multiple`. A protocol of ""
        ends the list. UEFI 2.10 §7.3.17.
        """
        if handle is None:
            raise EfiError(_INVALID_PARAMETER)
        return self.core.handles.install_multiple(handle, _until_null(pairs))

    @service("UninstallMultipleProtocolInterfaces")
    def uninstall_multiple_protocol_interfaces(self, handle: int, *pairs: tuple[str, int]) -> None:
        """Remove several (protocol, interface), or none of them.

        As `HandleDatabase.uninstall_multiple`. UEFI 2.10 §7.3.18.
        """
        self.core.handles.uninstall_multiple(handle, _until_null(pairs))

    @service("OpenProtocol")
    def open_protocol(
        self,
        handle: int,
        protocol: str,
        agent_handle: int,
        controller: int,
        attributes: int,
        out: bool = True,
    ) -> int:
        """Open a protocol and give its interface; 0 for TEST_PROTOCOL, which gives none.

        EFI_INVALID_PARAMETER: no protocol; no place for the interface, other than for TEST_PROTOCOL; then as
        `HandleDatabase.open`. With EFI_ALREADY_STARTED comes the interface (`RefusalWithValue`). UEFI 2.10 §7.3.9.
        """
        if not protocol or (not out and attributes != TEST_PROTOCOL):
            raise EfiError(_INVALID_PARAMETER)
        return self.core.handles.open(handle, protocol, agent_handle, controller, attributes)

    @service("CloseProtocol")
    def close_protocol(self, handle: int, protocol: str, agent_handle: int, controller: int) -> None:
        """Remove all opens of that agent and controller. As `HandleDatabase.close`. UEFI 2.10 §7.3.10."""
        self.core.handles.close(handle, protocol, agent_handle, controller)

    @service("OpenProtocolInformation")
    def open_protocol_information(self, handle: int, protocol: str) -> tuple[int, tuple[OpenInformation, ...]]:
        """Give a buffer with all open records, which the caller frees: (address, records).

        EFI_NOT_FOUND: no such handle (edk2), or no such protocol there. EFI_OUT_OF_RESOURCES. UEFI 2.10 §7.3.11.
        """
        database = self.core.handles
        if database.instance_of(handle, protocol) is None:
            raise EfiError(_NOT_FOUND)
        records = database.open_records(handle, protocol)
        return self._buffer(max(1, len(records)) * OPEN_INFORMATION_SIZE_BYTES), records

    @service("HandleProtocol")
    def handle_protocol(self, handle: int, protocol: str, out: bool = True) -> int:
        """Give the interface of a protocol, and record it as opened by the core.

        EFI_INVALID_PARAMETER: no protocol, no place for the interface, no such handle. EFI_UNSUPPORTED: no such
        protocol there. EFI_OUT_OF_RESOURCES. UEFI 2.10 §7.3.7.
        """
        if not protocol or not out:
            raise EfiError(_INVALID_PARAMETER)
        return self.core.handles.open(handle, protocol, CORE_HANDLE, 0, BY_HANDLE_PROTOCOL)

    @service("LocateProtocol")
    def locate_protocol(self, protocol: str, registration: int = 0, out: bool = True) -> int:
        """Give the first interface of a protocol, or the next one of a registration.

        EFI_INVALID_PARAMETER: no place for the interface, no protocol, no such registration. EFI_NOT_FOUND: none.
        UEFI 2.10 §7.3.16.
        """
        if not out or not protocol:
            raise EfiError(_INVALID_PARAMETER)
        return self.core.handles.locate_protocol(protocol, registration)

    @service("LocateDevicePath")
    def locate_device_path(self, protocol: str, path: bytes | None, out: bool = True) -> tuple[int, int]:
        """The handle with `protocol` whose device path is the longest beginning of `path`; and that beginning's length.

        EFI_INVALID_PARAMETER: no protocol, no path, no place for the handle. EFI_NOT_FOUND. UEFI 2.10 §7.3.8.
        """
        if not protocol or path is None:
            raise EfiError(_INVALID_PARAMETER)
        database = self.core.handles
        handles = database.handles_with(protocol)
        if not handles:
            raise EfiError(_NOT_FOUND)
        buffer = self.core.allocate(len(handles) * 8)
        best, length = 0, -1
        for handle in handles:
            known = database._device_path(database.interface_of(handle, guids.DEVICE_PATH_PROTOCOL) or 0)
            if known is not None and path.startswith(known[:-4]) and len(known) - 4 > length:
                best, length = handle, len(known) - 4
        self.core.free(buffer)
        if not best:
            raise EfiError(_NOT_FOUND)
        if not out:
            raise EfiError(_INVALID_PARAMETER)
        return best, length

    @service("LocateHandle")
    def locate_handle(
        self, search_type: int, protocol: str, key: int, buffer_size_bytes: int | None, out: bool = True
    ) -> tuple[int, ...]:
        """Give the handles that a search finds; None as size stands for no pointer to one.

        EFI_INVALID_PARAMETER: no size, or a size without a buffer; then as `HandleDatabase.locate`.
        EFI_BUFFER_TOO_SMALL, with the size that it takes (`RefusalWithValue`). UEFI 2.10 §7.3.6.
        """
        if buffer_size_bytes is None or (buffer_size_bytes and not out):
            raise EfiError(_INVALID_PARAMETER)
        database = self.core.handles
        handles = database.locate(search_type, protocol, key)
        size_bytes = len(handles) * POINTER_SIZE_BYTES
        if size_bytes > buffer_size_bytes:
            raise RefusalWithValue(EfiStatus.BUFFER_TOO_SMALL, size_bytes)
        database.located(search_type, key)
        return tuple(handles)

    @service("LocateHandleBuffer")
    def locate_handle_buffer(
        self, search_type: int, protocol: str = "", key: int = 0, out: bool = True
    ) -> tuple[int, tuple[int, ...]]:
        """Give a buffer with the handles that a search finds, which the caller frees: (address, handles).

        EFI_INVALID_PARAMETER: no place for buffer or number; then as `HandleDatabase.locate`. EFI_OUT_OF_RESOURCES.
        UEFI 2.10 §7.3.15.
        """
        if not out:
            raise EfiError(_INVALID_PARAMETER)
        database = self.core.handles
        handles = tuple(database.locate(search_type, protocol, key))
        outer_tpl = database.lock()
        try:
            address = self._buffer(len(handles) * POINTER_SIZE_BYTES)
        except EfiError:
            database.unlock(outer_tpl)
            raise
        database.located(search_type, key)
        database.unlock(outer_tpl)
        return address, handles

    @service("ProtocolsPerHandle")
    def protocols_per_handle(self, handle: int, out: bool = True) -> tuple[int, tuple[str, ...]]:
        """Give a buffer with the protocols on a handle, newest first, which the caller frees: (address, protocols).

        EFI_INVALID_PARAMETER: no place for buffer or number, no such handle. EFI_OUT_OF_RESOURCES. UEFI 2.10 §7.3.14.
        """
        found = self.core.handles.handles.get(handle)
        if not out or found is None:
            raise EfiError(_INVALID_PARAMETER)
        protocols = tuple(reversed(found.protocols))
        return self._buffer(len(protocols) * POINTER_SIZE_BYTES), protocols

    @service("RegisterProtocolNotify")
    def register_protocol_notify(self, protocol: str, event: int, out: bool = True) -> int:
        """Signal `event` whenever `protocol` is installed; give the registration.

        EFI_INVALID_PARAMETER: no protocol, no place for the registration, no such event. EFI_OUT_OF_RESOURCES.
        UEFI 2.10 §7.3.5.
        """
        if not protocol or not out or not self.core.events.is_live(event):
            raise EfiError(_INVALID_PARAMETER)
        return self.core.handles.register(protocol, event)

    def _buffer(self, size_bytes: int) -> int:
        """Pool that belongs to the caller, recorded as what the core allocates inside the service."""
        core = self.core
        address = core.memory.allocate_pool(BOOT_SERVICES_DATA, size_bytes, self.agent)
        core.trace.add(_CORE_MEMORY, core.outer_agent, core.outer_service, ("allocate", size_bytes), None, address)
        return address


def _until_null(pairs: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The pairs before the first without a protocol: a null GUID ends the list of a C caller."""
    for index, (protocol, _) in enumerate(pairs):
        if not protocol:
            return pairs[:index]
    return pairs
