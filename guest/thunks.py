"""From guest code to `reference_impl.uefi`: one trap for each service.

A trap translates and nothing more: pointers to values, GUIDs to text, NULL for an answer to `out=False`; calls the
service of the same name on the `BootServices` of the image that called (the return address tells which); writes the
answer where the caller wants it; and gives the status. There is no second implementation of a service here. What is no
service of the core (copying memory, the monotonic counter) is at the end, and what is not modelled answers
EFI_UNSUPPORTED: `LoadImage`, `StartImage`, `Exit`, alarms, capsules, virtual addresses.

Where a guest hands the core something that the core looks at, it gets an object at that address: a driver binding
(`drivers.GuestBinding`), a device path (its bytes).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from guest.calling_convention import CallingConvention
from guest.drivers import GuestBinding, GuestFunction, Images
from guest.heap import Heap
from guest.machine import Machine
from guest.tables import BOOT_SERVICES, PCD_SERVICES, RUNTIME_SERVICES, FirmwareMemory, Tables, guid_bytes, guid_text
from guest.task_priority import TaskPriority
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import EVT_NOTIFY_SIGNAL, EVT_NOTIFY_WAIT
from reference_impl.uefi.events import POLL_100NS, WaitError
from reference_impl.uefi.handle_database import RefusalWithValue
from reference_impl.uefi.memory import MemoryMapTooSmall
from reference_impl.uefi.runtime_services import RuntimeServices, RuntimeState
from reference_impl.uefi.status import EfiError, EfiStatus

PCD_SIZE_MAX = 256  # bytes that a PCD pointer can be followed
HOST_BRIDGE = 0x1237  # the device id of QEMU's i440FX, the one PCD that library constructors ask for

Thunk = Callable[[BootServices, int, int, int, int, int], "int | None"]
"""Services of the caller, four arguments, stack pointer; the status (None: success) or what the service returns."""

_UNSUPPORTED = int(EfiStatus.UNSUPPORTED)
_DEVICE_PATH_MAX = 4096
_PAIRS_MAX = 64
_TEXT_MAX = 4096
_MASK32 = 0xFFFFFFFF


class Thunks:
    """All traps of one world.

    before   called before each service with the name of the image that calls: a look at memory that has no other moment
    missed   (agent, service) of each call of a service that is not modelled
    views    protocol → what makes, from address and agent, the object for an interface that Python code looks at
    """

    def __init__(self, core: Core, convention: CallingConvention, firmware: FirmwareMemory, images: Images) -> None:
        self.core = core
        self.machine: Machine = convention.machine
        self.heap = Heap(self.machine, core)
        self.before: Callable[[str], None] | None = None
        self._convention = convention
        self.firmware = firmware
        self._images = images
        self.missed: set[tuple[str, str]] = set()
        self.views: dict[str, Callable[[int, str], Any]] = {
            guids.DRIVER_BINDING_PROTOCOL: lambda address, agent: GuestBinding(images, address, agent),
            guids.DEVICE_PATH_PROTOCOL: lambda address, agent: self._device_path(address),
        }
        self._nobody = BootServices(core, "guest")
        self._monotonic = 0
        boot = {name: self.write(_thunk(self, name)) for name in BOOT_SERVICES if name}
        self.task_priority = TaskPriority(convention, core.trace, core.events, boot["RaiseTPL"], boot["RestoreTPL"])
        boot |= {"RaiseTPL": self.task_priority.raise_tpl, "RestoreTPL": self.task_priority.restore_tpl}
        self._runtime_state = RuntimeState()
        self._runtime_services: dict[str, RuntimeServices] = {}
        runtime = {name: self.write(_thunk(self, name)) for name in RUNTIME_SERVICES}
        self.tables = Tables(firmware, boot, runtime)
        self.pcd, self.pi_pcd = self._place_pcd()

    def _place_pcd(self) -> tuple[int, ...]:
        """PCD_PROTOCOL and EFI_PCD_PROTOCOL: the host bridge's id as 16 bits, what is a byte is 1, or on, all else 0.

        Gives their addresses. Nothing is known of tokens, which differ from build to build.
        """
        on = self.write(lambda *_: 1)
        nothing = self.write(lambda *_: 0)
        zeros = self.firmware.reserve(PCD_SIZE_MAX)
        members = {
            "Get16": self.write(lambda *_: HOST_BRIDGE),
            **dict.fromkeys(("Get8", "Get8Ex", "GetBool", "GetBoolEx"), on),
            **dict.fromkeys(("GetPtr", "GetPtrEx"), self.write(lambda *_: zeros)),
            **dict.fromkeys(("GetNextToken", "GetNextTokenSpace"), self.write(lambda *_: int(EfiStatus.NOT_FOUND))),
        }
        return tuple(
            self.firmware.place(b"".join(struct.pack("<Q", members.get(name, nothing)) for name in names))
            for names in (PCD_SERVICES, [name for name in PCD_SERVICES if not name.endswith("Ex")])
        )

    def write(self, thunk: Thunk) -> int:
        """Write a function of the firmware that does what `thunk` does; its address.

        The one place where a refusal becomes the status that guest code sees.
        """
        caller = self._images.caller
        nobody = self._nobody

        def handler(a: int, b: int, c: int, d: int, sp: int, return_address: int) -> int:
            image = caller(return_address)
            services = nobody if image is None else image.services
            if self.before is not None:
                self.before(services.agent)
            try:
                return thunk(services, a, b, c, d, sp) or 0
            except EfiError as error:
                return int(error.status)

        return self._convention.write_trap(handler)

    # ---- values ---------------------------------------------------------------------------------------------------

    def _guid(self, address: int) -> str:
        """The GUID at an address as text, "" for NULL."""
        if not address:
            return ""
        return guid_text(self.machine.read(address, 16))

    def argument(self, sp: int, index: int) -> int:
        """The argument `index` (4 and above) of the service whose stack pointer is `sp`."""
        return self._convention.argument(sp, index)

    def _show(self, protocol: str, interface: int, agent: str) -> None:
        """Give the core an object for an interface that it looks at itself."""
        if not interface:
            return
        view = self.views.get(protocol)
        if view is not None:
            self.core.place(interface, view(interface, agent))

    def _device_path(self, address: int) -> bytes:
        """The device path at an address, with its end node; cut off where it has none."""
        machine = self.machine
        end = address
        while end < address + _DEVICE_PATH_MAX:
            kind, subtype, size = struct.unpack("<BBH", machine.read(end, 4))
            end += max(size, 4)
            if kind == 0x7F and subtype == 0xFF:
                break
        return machine.read(address, end - address)

    def _wide_text(self, address: int) -> str:
        """The UTF-16 text at an address, up to its end. Raises GuestFault where it runs into memory that is not there."""
        units: list[int] = []
        while len(units) < _TEXT_MAX and (unit := self.machine.u16(address)):
            units.append(unit)
            address += 2
        return struct.pack(f"<{len(units)}H", *units).decode("utf-16le", "surrogatepass")

    def _pairs(self, first: int, more: Callable[[int], int]) -> tuple[tuple[str, int], ...]:
        """The (protocol, interface) pairs of a C caller, up to the null pointer that ends them."""
        pairs: list[tuple[str, int]] = []
        index = first
        while len(pairs) < _PAIRS_MAX:
            protocol = more(index)
            if not protocol:
                break
            pairs.append((self._guid(protocol), more(index + 1)))
            index += 2
        return tuple(pairs)

    # ---- task priority and events ---------------------------------------------------------------------------------

    def _raise_tpl(self, services: BootServices, new: int, *_: int) -> int:
        return int(services.raise_tpl(new))

    def _restore_tpl(self, services: BootServices, old: int, *_: int) -> None:
        services.restore_tpl(old)

    def _create_event(self, services: BootServices, kind: int, tpl: int, function: int, context: int, sp: int) -> None:
        out = self.argument(sp, 4)
        event = services.create_event(kind & _MASK32, tpl, self._function(kind, function), context, bool(out))
        self.machine.put_u64(out, event)

    def _create_event_ex(
        self, services: BootServices, kind: int, tpl: int, function: int, context: int, sp: int
    ) -> None:
        group, out = self._guid(self.argument(sp, 4)), self.argument(sp, 5)
        notify = self._function(kind, function)
        event = services.create_event_ex(kind & _MASK32, tpl, notify, context, group, bool(out))
        self.machine.put_u64(out, event)

    def _function(self, kind: int, address: int) -> GuestFunction | None:
        if not address or not kind & (EVT_NOTIFY_SIGNAL | EVT_NOTIFY_WAIT):
            return None
        return GuestFunction(self._images, address)

    def _close_event(self, services: BootServices, event: int, *_: int) -> None:
        services.close_event(event)

    def _signal_event(self, services: BootServices, event: int, *_: int) -> None:
        services.signal_event(event)

    def _check_event(self, services: BootServices, event: int, *_: int) -> None:
        services.check_event(event)

    def _wait_for_event(self, services: BootServices, count: int, events: int, out: int, *_: int) -> None:
        machine = self.machine
        ids = struct.unpack(f"<{count}Q", machine.read(events, count * 8)) if 0 < count <= 4096 else ()
        try:
            index = services.wait_for_event(ids, bool(out))
        except WaitError as error:
            self._put_if(out, error.index)
            raise
        except EfiError:
            # Refused above TPL_APPLICATION, a driver asks again and again: time passes meanwhile, as anywhere else.
            core = self.core
            core.idle()
            core.events.advance(POLL_100NS)
            raise
        self._put_if(out, index)

    def _set_timer(self, services: BootServices, event: int, kind: int, time: int, *_: int) -> None:
        services.set_timer(event, kind & _MASK32, time)

    def _stall(self, services: BootServices, microseconds: int, *_: int) -> None:
        services.stall(microseconds)

    # ---- memory ---------------------------------------------------------------------------------------------------

    def _allocate_pool(self, services: BootServices, kind: int, size: int, out: int, *_: int) -> None:
        address = services.allocate_pool(kind & _MASK32, size, bool(out))
        self.heap.pool_allocated(address, size)
        self.machine.put_u64(out, address)

    def _free_pool(self, services: BootServices, address: int, *_: int) -> None:
        services.free_pool(address)
        self.heap.pool_freed(address, services.agent)

    def _allocate_pages(
        self, services: BootServices, kind: int, memory_type: int, count: int, out: int, _: int
    ) -> None:
        wanted = self.machine.u64(out) if out else 0
        address = services.allocate_pages(kind & _MASK32, memory_type & _MASK32, count, wanted, bool(out))
        self.heap.pages_allocated(address, count)
        self.machine.put_u64(out, address)

    def _free_pages(self, services: BootServices, address: int, count: int, *_: int) -> None:
        services.free_pages(address, count)
        self.heap.pages_freed(address, count)

    def _get_memory_map(self, services: BootServices, size: int, out: int, key: int, each: int, sp: int) -> None:
        machine = self.machine
        version = self.argument(sp, 4)
        try:
            descriptors, map_key, descriptor_size = services.get_memory_map(
                machine.u64(size) if size else None, bool(out)
            )
        except MemoryMapTooSmall as refusal:
            machine.put_u64(size, refusal.size_bytes)
            self._put_if(each, refusal.descriptor_size_bytes)
            raise
        data = b"".join(
            struct.pack("<IIQQQQ", kind, 0, start, 0, pages, attributes).ljust(descriptor_size, b"\0")
            for kind, start, pages, attributes in descriptors
        )
        machine.write(out, data)
        machine.put_u64(size, len(data))
        self._put_if(key, map_key)
        self._put_if(each, descriptor_size)
        if version:
            machine.put_u32(version, 1)

    def _put_if(self, address: int, value: int) -> None:
        if address:
            self.machine.put_u64(address, value)

    # ---- protocols ------------------------------------------------------------------------------------------------

    def _install_protocol_interface(
        self, services: BootServices, handle: int, protocol: int, kind: int, interface: int, _: int
    ) -> None:
        machine = self.machine
        guid = self._guid(protocol)
        self._show(guid, interface, services.agent)
        new = services.install_protocol_interface(
            machine.u64(handle) if handle else 0, guid, kind & _MASK32, interface, bool(handle)
        )
        machine.put_u64(handle, new)

    def _install_multiple_protocol_interfaces(
        self, services: BootServices, handle: int, b: int, c: int, d: int, sp: int
    ) -> None:
        machine = self.machine
        pairs = self._pairs(1, lambda index: (handle, b, c, d)[index] if index < 4 else self.argument(sp, index))
        for guid, interface in pairs:
            self._show(guid, interface, services.agent)
        new = services.install_multiple_protocol_interfaces(machine.u64(handle) if handle else None, *pairs)
        machine.put_u64(handle, new)

    def _uninstall_protocol_interface(
        self, services: BootServices, handle: int, protocol: int, interface: int, *_: int
    ) -> None:
        services.uninstall_protocol_interface(handle, self._guid(protocol), interface)

    def _uninstall_multiple_protocol_interfaces(
        self, services: BootServices, handle: int, b: int, c: int, d: int, sp: int
    ) -> None:
        pairs = self._pairs(1, lambda index: (handle, b, c, d)[index] if index < 4 else self.argument(sp, index))
        services.uninstall_multiple_protocol_interfaces(handle, *pairs)

    def _reinstall_protocol_interface(
        self, services: BootServices, handle: int, protocol: int, old: int, new: int, _: int
    ) -> None:
        guid = self._guid(protocol)
        self._show(guid, new, services.agent)
        services.reinstall_protocol_interface(handle, guid, old, new)

    def _handle_protocol(self, services: BootServices, handle: int, protocol: int, out: int, *_: int) -> None:
        interface = services.handle_protocol(handle, self._guid(protocol), bool(out))
        self.machine.put_u64(out, interface)

    def _open_protocol(self, services: BootServices, handle: int, protocol: int, out: int, agent: int, sp: int) -> None:
        controller, attributes = self.argument(sp, 4), self.argument(sp, 5) & _MASK32
        try:
            interface = services.open_protocol(handle, self._guid(protocol), agent, controller, attributes, bool(out))
        except RefusalWithValue as refusal:
            self._put_if(out, refusal.value)
            raise
        self._put_if(out, interface)

    def _close_protocol(
        self, services: BootServices, handle: int, protocol: int, agent: int, controller: int, _: int
    ) -> None:
        services.close_protocol(handle, self._guid(protocol), agent, controller)

    def _open_protocol_information(
        self, services: BootServices, handle: int, protocol: int, out: int, count: int, _: int
    ) -> None:
        address, records = services.open_protocol_information(handle, self._guid(protocol))
        data = b"".join(struct.pack("<QQII", *record) for record in records)
        self._give_buffer(address, max(24, len(data)), data, out, count, len(records))

    def _protocols_per_handle(self, services: BootServices, handle: int, out: int, count: int, *_: int) -> None:
        address, protocols = services.protocols_per_handle(handle, bool(out and count))
        data = b"".join(struct.pack("<Q", self.firmware.guid(protocol)) for protocol in protocols)
        self._give_buffer(address, len(data), data, out, count, len(protocols))

    def _locate_handle_buffer(
        self, services: BootServices, kind: int, protocol: int, key: int, count: int, sp: int
    ) -> None:
        out = self.argument(sp, 4)
        address, handles = services.locate_handle_buffer(kind & _MASK32, self._guid(protocol), key, bool(out and count))
        data = struct.pack(f"<{len(handles)}Q", *handles)
        self._give_buffer(address, len(data), data, out, count, len(handles))

    def _give_buffer(self, address: int, size: int, data: bytes, out: int, count: int, number: int) -> None:
        """Hand over a pool buffer that the core has allocated for the caller."""
        self.heap.pool_allocated(address, size)
        self.machine.write(address, data)
        self.machine.put_u64(out, address)
        self.machine.put_u64(count, number)

    def _locate_handle(self, services: BootServices, kind: int, protocol: int, key: int, size: int, sp: int) -> None:
        machine = self.machine
        out = self.argument(sp, 4)
        try:
            handles = services.locate_handle(
                kind & _MASK32, self._guid(protocol), key, machine.u64(size) if size else None, bool(out)
            )
        except RefusalWithValue as refusal:
            machine.put_u64(size, refusal.value)
            raise
        machine.write(out, struct.pack(f"<{len(handles)}Q", *handles))
        machine.put_u64(size, len(handles) * 8)

    def _locate_protocol(self, services: BootServices, protocol: int, key: int, out: int, *_: int) -> None:
        self._put_if(out, 0)
        interface = services.locate_protocol(self._guid(protocol), key, bool(out))
        self.machine.put_u64(out, interface)

    def _register_protocol_notify(self, services: BootServices, protocol: int, event: int, out: int, *_: int) -> None:
        registration = services.register_protocol_notify(self._guid(protocol), event, bool(out))
        self.machine.put_u64(out, registration)

    # ---- drivers and images ---------------------------------------------------------------------------------------

    def _connect_controller(
        self, services: BootServices, controller: int, drivers: int, path: int, recursive: int, _: int
    ) -> None:
        named: list[int] = []
        while drivers and len(named) < _PAIRS_MAX:
            handle = self.machine.u64(drivers)
            if not handle:
                break
            named.append(handle)
            drivers += 8
        remaining = self._device_path(path) if path else None
        services.connect_controller(controller, tuple(named), remaining, bool(recursive & 0xFF))

    def _disconnect_controller(self, services: BootServices, controller: int, driver: int, child: int, *_: int) -> None:
        services.disconnect_controller(controller, driver, child)

    def _unload_image(self, services: BootServices, handle: int, *_: int) -> None:
        services.unload_image(handle)

    def _exit_boot_services(self, services: BootServices, handle: int, key: int, *_: int) -> None:
        services.exit_boot_services(handle, key)

    def _install_configuration_table(self, services: BootServices, guid: int, table: int, *_: int) -> None:
        services.install_configuration_table(self._guid(guid), table)
        self.tables.set_configuration_tables(self.core.configuration_tables.tables)

    def _locate_device_path(self, services: BootServices, protocol: int, path: int, out: int, *_: int) -> None:
        machine = self.machine
        place = machine.u64(path) if path else 0
        known = self._device_path(place) if place else None
        handle, length = services.locate_device_path(self._guid(protocol), known, bool(out))
        machine.put_u64(out, handle)
        machine.put_u64(path, place + length)

    # ---- runtime services -----------------------------------------------------------------------------------------

    def _runtime(self, services: BootServices) -> RuntimeServices:
        runtime = self._runtime_services.get(services.agent)
        if runtime is None:
            runtime = RuntimeServices(services.core, services.agent, self._runtime_state)
            self._runtime_services[services.agent] = runtime
        return runtime

    def _get_time(self, services: BootServices, out: int, capabilities: int, *_: int) -> None:
        time = self._runtime(services).get_time(bool(out))
        year, month, day, hour, minute, second, nanosecond = time
        unspecified = 0x07FF  # time zone
        packed = struct.pack("<HBBBBBxIhBx", year, month, day, hour, minute, second, nanosecond, unspecified, 0)
        self.machine.write(out, packed)
        if capabilities:
            self.machine.write(capabilities, struct.pack("<IIB", 1, 0, 0))

    def _get_variable(
        self, services: BootServices, name: int, vendor: int, attributes: int, size: int, sp: int
    ) -> None:
        machine = self.machine
        out = self.argument(sp, 4)
        if not name or not size:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        room = machine.u64(size)
        try:
            found = self._runtime(services).get_variable(self._wide_text(name), self._guid(vendor), room)
        except RefusalWithValue as refusal:
            machine.put_u64(size, refusal.value)
            raise
        machine.put_u64(size, len(found.data))
        if attributes:
            machine.put_u32(attributes, found.attributes)
        machine.write(out, found.data)

    def _get_next_variable_name(self, services: BootServices, size: int, name: int, vendor: int, *_: int) -> None:
        machine = self.machine
        if not size or not name or not vendor:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        try:
            next_name, next_vendor = self._runtime(services).get_next_variable_name(
                self._wide_text(name), self._guid(vendor), machine.u64(size)
            )
        except RefusalWithValue as refusal:
            machine.put_u64(size, refusal.value)
            raise
        data = next_name.encode("utf-16le", "surrogatepass") + bytes(2)
        machine.write(name, data)
        machine.write(vendor, guid_bytes(next_vendor))
        machine.put_u64(size, len(data))

    def _set_variable(
        self, services: BootServices, name: int, vendor: int, attributes: int, size: int, sp: int
    ) -> None:
        data = self.machine.read(self.argument(sp, 4), size) if size else b""
        text = self._wide_text(name) if name else ""
        self._runtime(services).set_variable(text, self._guid(vendor), attributes & _MASK32, data)

    def _query_variable_info(self, services: BootServices, attributes: int, *places: int) -> None:
        if not all(places[:3]):
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        sizes = self._runtime(services).query_variable_info(attributes & _MASK32)
        for place, size in zip(places, sizes, strict=False):
            self.machine.put_u64(place, size)

    def _get_next_high_monotonic_count(self, services: BootServices, out: int, *_: int) -> None:
        count = self._runtime(services).get_next_high_monotonic_count(bool(out))
        self.machine.put_u32(out, count)

    def _reset_system(self, services: BootServices, kind: int, status: int, *_: int) -> None:
        self._runtime(services).reset_system(kind & _MASK32, status)

    # ---- what is no service of the core ---------------------------------------------------------------------------

    def _get_next_monotonic_count(self, services: BootServices, out: int, *_: int) -> None:
        if not out:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        self._monotonic += 1
        self.machine.put_u64(out, self._monotonic)

    def _set_watchdog_timer(self, services: BootServices, *_: int) -> None:
        """Nobody here looks at the watchdog."""

    def _calculate_crc32(self, services: BootServices, data: int, size: int, out: int, *_: int) -> None:
        if not data or not size or not out:
            raise EfiError(EfiStatus.INVALID_PARAMETER)
        self.machine.put_u32(out, zlib.crc32(self.machine.read(data, size)))

    def _copy_mem(self, services: BootServices, target: int, source: int, size: int, *_: int) -> None:
        if size:
            self.machine.write(target, self.machine.read(source, size))

    def _set_mem(self, services: BootServices, target: int, size: int, value: int, *_: int) -> None:
        if size:
            self.machine.write(target, bytes([value & 0xFF]) * size)

    def _miss(self, service: str, services: BootServices, *_: int) -> int:
        """What is not modelled."""
        self.missed.add((services.agent, service))
        return _UNSUPPORTED


_NOT_MODELLED = frozenset(
    {
        *("LoadImage", "StartImage", "Exit"),
        *("SetTime", "GetWakeupTime", "SetWakeupTime", "SetVirtualAddressMap", "ConvertPointer"),
        *("UpdateCapsule", "QueryCapsuleCapabilities"),
    }
)


def _thunk(thunks: Thunks, service: str) -> Thunk:
    """The method for a service: `_allocate_pool` for "AllocatePool"."""
    if service in _NOT_MODELLED:
        return partial(thunks._miss, service)
    thunk: Any = getattr(thunks, _method(service))
    return thunk  # type: ignore[no-any-return]


@cache
def _method(service: str) -> str:
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in service)
    return name.replace("_t_p_l", "_tpl")
