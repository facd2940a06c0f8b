"""XENBUS_PROTOCOL between guests and the model, in both directions (edk2, OvmfPkg/Include/Protocol/XenBus.h).

* `XenBusInterface` lets guests call the model's bus: it lays out the protocol of each child in guest memory, where the
  model's driver has it anyway, and translates their calls.
* `GuestXenBus` lets model drivers call a guest's bus: it is the model's protocol whose members call guest code.
* `ModelServices` are the boot services of a driver in Python beside guests: they see its memory and its interfaces.

The layout: sixteen members, then Type, DeviceId, Node and Backend. Where a member answers XENSTORE_STATUS, that is a
number for an error of xenstored; `STATUSES` names them. A transaction is a pointer to its id, or NULL.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from guest.drivers import Images
from guest.heap import Heap
from guest.machine import Machine
from guest.thunks import Thunks
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.xen.hypervisor import HypercallError, Hypercalls
from reference_impl.xen.platform import XenPlatform
from reference_impl.xenbus.protocol import XenBusProtocol
from reference_impl.xenbus.xenstore_client import Watch, XenStoreError

MEMBERS = (
    *("XsRead", "XsBackendRead", "XsPrintf", "XsRemove", "XsTransactionStart", "XsTransactionEnd", "SetState"),
    *("GrantAccess", "GrantEndAccess", "EventChannelAllocate", "EventChannelNotify", "EventChannelClose"),
    *("RegisterWatch", "RegisterWatchBackend", "UnregisterWatch", "WaitForWatch"),
)
TYPE, DEVICE_ID, NODE, BACKEND = 128, 136, 144, 152
SIZE = 160

STATUSES = (
    *("OK", "FAIL", "EINVAL", "EACCES", "EEXIST", "EISDIR", "ENOENT", "ENOMEM", "ENOSPC", "EIO"),
    *("ENOTEMPTY", "ENOSYS", "EROFS", "EBUSY", "EAGAIN", "EISCONN", "E2BIG"),
)
"""XENSTORE_STATUS by number."""

_Member = Callable[[XenBusProtocol, int, int, int, int], None]  # three arguments behind `This`, stack pointer
_TEXT_MAX = 4096
_MASK32 = 0xFFFFFFFF


def text_at(machine: Machine, address: int) -> str:
    """The text at an address, up to its NUL. Raises GuestFault where it runs into memory that is not there."""
    found = bytearray()
    while len(found) < _TEXT_MAX:
        part = machine.read(address, 64 - address % 64)  # never past the end of a page
        end = part.find(b"\0")
        if end >= 0:
            found += part[:end]
            break
        found += part
        address += len(part)
    return found.decode("utf-8", "replace")


class XenBusInterface:
    """The model's bus, as guests call it."""

    __slots__ = ("_core", "_last_token", "_machine", "_members", "_owners", "_texts", "_thunks", "_watches")

    def __init__(self, thunks: Thunks) -> None:
        self._thunks = thunks
        self._core: Core = thunks.core
        self._machine: Machine = thunks.machine
        self._owners: dict[XenBusProtocol, BootServices] = {}
        self._texts: dict[str, int] = {}
        self._watches: dict[int, Watch] = {}
        self._last_token = 0
        members: dict[str, tuple[_Member, Callable[[EfiError], int]]] = {
            "XsRead": (self._read, _store_status),
            "XsBackendRead": (self._read_backend, _store_status),
            "XsPrintf": (self._print, _store_status),
            "XsRemove": (self._remove, _store_status),
            "XsTransactionStart": (self._start_transaction, _store_status),
            "XsTransactionEnd": (self._end_transaction, _store_status),
            "SetState": (self._set_state, _store_status),
            "GrantAccess": (self._grant, _efi_status),
            "GrantEndAccess": (self._end_grant, _efi_status),
            "EventChannelAllocate": (self._allocate_event_channel, _hypercall_status),
            "EventChannelNotify": (self._notify, _hypercall_status),
            "EventChannelClose": (self._close_event_channel, _hypercall_status),
            "RegisterWatch": (self._watch, _store_status),
            "RegisterWatchBackend": (self._watch_backend, _store_status),
            "UnregisterWatch": (self._unwatch, _store_status),
            "WaitForWatch": (self._wait_for_watch, _store_status),
        }
        self._members = struct.pack("<16Q", *(self._write(*members[name]) for name in MEMBERS))

    def lay_out(self, interface: int, owner: BootServices) -> None:
        """Let the guest see the protocol of the child that the model has placed at `interface`."""
        protocol: XenBusProtocol = self._core.object_at(interface, owner.agent)
        self._owners[protocol] = owner
        number = protocol.node.rsplit("/", 1)[-1]
        fields = struct.pack(
            "<QH6xQQ",
            self._text(protocol.type),
            int(number) & 0xFFFF if number.isdigit() else 0,
            self._text(protocol.node),
            self._text(protocol.backend),
        )
        self._machine.write(interface, self._members + fields)

    # ---- members --------------------------------------------------------------------------------------------------

    def _read(self, protocol: XenBusProtocol, transaction: int, node: int, out: int, sp: int) -> None:
        self._give(protocol, out, protocol.read(text_at(self._machine, node), self._id(transaction)))

    def _read_backend(self, protocol: XenBusProtocol, _: int, node: int, out: int, sp: int) -> None:
        self._give(protocol, out, protocol.read_backend(text_at(self._machine, node)))

    def _print(self, protocol: XenBusProtocol, transaction: int, directory: int, node: int, sp: int) -> None:
        machine = self._machine
        argument = self._thunks.argument
        value = print_ascii(machine, text_at(machine, argument(sp, 4)), lambda index: argument(sp, 5 + index))
        protocol.write_in(text_at(machine, directory), text_at(machine, node), value, self._id(transaction))

    def _remove(self, protocol: XenBusProtocol, _: int, node: int, *__: int) -> None:
        protocol.remove(text_at(self._machine, node))

    def _start_transaction(self, protocol: XenBusProtocol, out: int, *_: int) -> None:
        self._machine.put_u32(out, protocol.start_transaction())

    def _end_transaction(self, protocol: XenBusProtocol, transaction: int, abort: int, *_: int) -> None:
        protocol.end_transaction(self._id(transaction), not abort & 0xFF)

    def _set_state(self, protocol: XenBusProtocol, transaction: int, state: int, *_: int) -> None:
        protocol.set_state(state & _MASK32, self._id(transaction))

    def _grant(self, protocol: XenBusProtocol, domain: int, frame: int, readonly: int, sp: int) -> None:
        reference = protocol.grant(frame, domain & 0xFFFF, bool(readonly & 0xFF))
        self._machine.put_u32(self._thunks.argument(sp, 4), reference)

    def _end_grant(self, protocol: XenBusProtocol, reference: int, *_: int) -> None:
        if not protocol.end_grant(reference & _MASK32):
            raise EfiError(EfiStatus.NOT_READY)

    def _allocate_event_channel(self, protocol: XenBusProtocol, domain: int, out: int, *_: int) -> None:
        self._machine.put_u32(out, protocol.allocate_event_channel(domain & 0xFFFF))

    def _notify(self, protocol: XenBusProtocol, port: int, *_: int) -> None:
        protocol.notify(port & _MASK32)

    def _close_event_channel(self, protocol: XenBusProtocol, port: int, *_: int) -> None:
        protocol.close_event_channel(port & _MASK32)

    def _watch(self, protocol: XenBusProtocol, node: int, out: int, *_: int) -> None:
        self._register(protocol.watch(text_at(self._machine, node)), out)

    def _watch_backend(self, protocol: XenBusProtocol, node: int, out: int, *_: int) -> None:
        self._register(protocol.watch_backend(text_at(self._machine, node)), out)

    def _unwatch(self, protocol: XenBusProtocol, token: int, *_: int) -> None:
        watch = self._watches.pop(token, None)
        if watch is not None:
            with suppress(EfiError):  # the member has no status
                protocol.unwatch(watch)

    def _wait_for_watch(self, protocol: XenBusProtocol, token: int, *_: int) -> None:
        watch = self._watches.get(token)
        if watch is None:
            raise XenStoreError("ENOENT")
        if not protocol.wait_for_watch(watch):
            raise XenStoreError("EAGAIN")

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _write(self, member: _Member, status_of: Callable[[EfiError], int]) -> int:
        """Write a member that answers `status_of` a refusal, and 0 otherwise; its address."""

        def thunk(services: BootServices, this: int, b: int, c: int, d: int, sp: int) -> int:
            try:
                member(self._protocol(this, services.agent), b, c, d, sp)
            except EfiError as error:
                return status_of(error)
            return 0

        return self._thunks.write(thunk)

    def _protocol(self, this: int, agent: str) -> XenBusProtocol:
        with suppress(EfiError):
            protocol = self._core.object_at(this, agent)
            if isinstance(protocol, XenBusProtocol):
                return protocol
        raise self._machine.fault("read", "no XENBUS_PROTOCOL", this)

    def _id(self, transaction: int) -> int:
        return self._machine.u32(transaction) if transaction else 0

    def _give(self, protocol: XenBusProtocol, out: int, value: str) -> None:
        """Hand over a value in a pool buffer of the bus that the caller frees."""
        data = value.encode() + b"\0"
        buffer = self._owners[protocol].allocate_pool(BOOT_SERVICES_DATA, len(data))
        self._machine.write(buffer, data)
        self._machine.put_u64(out, buffer)

    def _register(self, watch: Watch, out: int) -> None:
        self._last_token += 1
        self._watches[self._last_token] = watch
        self._machine.put_u64(out, self._last_token)

    def _text(self, text: str) -> int:
        """The address of a text in the firmware's own memory."""
        address = self._texts.get(text)
        if address is None:
            address = self._texts[text] = self._thunks.firmware.place(text.encode() + b"\0")
        return address


def _store_status(error: EfiError) -> int:
    """What a member that answers XENSTORE_STATUS makes of a refusal."""
    if isinstance(error, XenStoreError) and error.name in STATUSES:
        return STATUSES.index(error.name)
    return STATUSES.index("ENOMEM" if error.status == EfiStatus.OUT_OF_RESOURCES else "FAIL")


def _hypercall_status(error: EfiError) -> int:
    """What a member that answers 32 bits of the hypercall makes of a refusal."""
    cause = error.__context__
    return (cause.errno if isinstance(cause, HypercallError) else -1) & _MASK32


def _efi_status(error: EfiError) -> int:
    return int(error.status)


class GuestXenBus(XenBusProtocol):
    """A guest's bus protocol at an address of guest memory, as model drivers use it.

    `user` gives the services of the driver that manages the child: what the bus hands over is freed in its name.
    """

    __slots__ = ("_hypercalls", "_images", "_interface", "_machine", "_platform", "_user")

    def __init__(
        self, images: Images, platform: XenPlatform, interface: int, user: Callable[[int], BootServices]
    ) -> None:
        machine = images.machine
        self._images = images
        self._machine = machine
        self._platform = platform
        self._interface = interface
        self._user = user
        self._hypercalls: Hypercalls = platform.hypercalls("guest")
        self.type = text_at(machine, machine.u64(interface + TYPE))
        self.node = text_at(machine, machine.u64(interface + NODE))
        self.backend = text_at(machine, machine.u64(interface + BACKEND))
        self.backend_id = 0
        self.teardown = None

    def read(self, name: str, transaction: int = 0) -> str:
        """XsRead."""
        return self._take("XsRead", name, transaction)

    def read_backend(self, name: str) -> str:
        """XsBackendRead."""
        return self._take("XsBackendRead", name)

    def write_in(self, directory: str, name: str, value: str, transaction: int = 0) -> None:
        """XsPrintf, with the value as it is."""
        with self._texts(directory, name, "%a", value) as texts, self._transaction(transaction) as pointer:
            self._ask("XsPrintf", pointer, *texts)

    def set_state(self, state: int, transaction: int = 0) -> None:
        """SetState."""
        with self._transaction(transaction) as pointer:
            self._ask("SetState", pointer, state)

    def remove(self, name: str) -> None:
        """XsRemove."""
        with self._texts(name) as texts:
            self._ask("XsRemove", 0, *texts)

    def start_transaction(self) -> int:
        """XsTransactionStart."""
        with self._images.convention.scratch(bytes(8)) as out:
            self._ask("XsTransactionStart", out)
            return self._machine.u32(out)

    def end_transaction(self, transaction: int, commit: bool) -> None:
        """XsTransactionEnd."""
        with self._transaction(transaction) as pointer:
            self._ask("XsTransactionEnd", pointer, not commit)

    def watch(self, name: str) -> Watch:
        """RegisterWatch."""
        return self._register("RegisterWatch", self.node, name)

    def watch_backend(self, name: str) -> Watch:
        """RegisterWatchBackend."""
        return self._register("RegisterWatchBackend", self.backend, name)

    def unwatch(self, watch: Watch) -> None:
        """UnregisterWatch."""
        self._call("UnregisterWatch", int(watch.token, 16))

    def wait_for_watch(self, watch: Watch) -> bool:
        """WaitForWatch. The guest's bus waits for ever."""
        self._ask("WaitForWatch", int(watch.token, 16))
        return True

    def grant(self, frame: int, domain: int | None = None, readonly: bool = False) -> int:
        """GrantAccess."""
        with self._images.convention.scratch(bytes(8)) as out:
            self._images.enter(
                self._member("GrantAccess"), self._interface, domain or self.backend_id, frame, readonly, out
            )
            return self._machine.u32(out)

    def end_grant(self, reference: int) -> bool:
        """GrantEndAccess."""
        return self._call("GrantEndAccess", reference) == EfiStatus.SUCCESS

    def allocate_event_channel(self, domain: int | None = None) -> int:
        """EventChannelAllocate."""
        with self._images.convention.scratch(bytes(8)) as out:
            self._ask_hypervisor("EventChannelAllocate", domain or self.backend_id, out)
            return self._machine.u32(out)

    def notify(self, port: int) -> None:
        """EventChannelNotify."""
        self._ask_hypervisor("EventChannelNotify", port)

    def pending(self, port: int) -> bool:
        """Whether the peer has notified the port since: a look at memory, which needs no bus."""
        return self._hypercalls.pending(port)

    def close_event_channel(self, port: int) -> None:
        """EventChannelClose."""
        self._ask_hypervisor("EventChannelClose", port)

    def page(self, address: int) -> bytearray:
        """The bytes of a page of the machine."""
        return self._platform.memory_page(address >> 12)

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _member(self, name: str) -> int:
        return self._machine.u64(self._interface + 8 * MEMBERS.index(name))

    def _call(self, name: str, *arguments: int) -> int:
        return self._images.call(self._member(name), self._interface, *arguments)

    def _ask(self, name: str, *arguments: int) -> None:
        """Call a member that answers XENSTORE_STATUS. Raises XenStoreError."""
        status = self._call(name, *arguments) & _MASK32
        if status:
            raise XenStoreError(STATUSES[status] if status < len(STATUSES) else "EIO")

    def _ask_hypervisor(self, name: str, *arguments: int) -> None:
        """Call a member that answers what a hypercall answers. Raises EfiError."""
        if self._call(name, *arguments) & _MASK32:
            raise EfiError(EfiStatus.DEVICE_ERROR)

    def _take(self, member: str, name: str, transaction: int = 0) -> str:
        machine = self._machine
        with (
            self._texts(name) as texts,
            self._transaction(transaction) as pointer,
            self._images.convention.scratch(bytes(8)) as out,
        ):
            self._ask(member, pointer, *texts, out)
            buffer = machine.u64(out)
        value = text_at(machine, buffer)
        self._user(self._interface).free_pool(buffer)
        return value

    def _register(self, member: str, directory: str, name: str) -> Watch:
        with self._texts(name) as texts, self._images.convention.scratch(bytes(8)) as out:
            self._ask(member, *texts, out)
            return Watch(f"{directory}/{name}", f"{self._machine.u64(out):x}", [])

    @contextmanager
    def _texts(self, *texts: str) -> Iterator[list[int]]:
        """Texts in memory that the guest sees; their addresses."""
        data = [text.encode() + b"\0" for text in texts]
        with self._images.convention.scratch(b"".join(data)) as address:
            yield [address + sum(map(len, data[:index])) for index in range(len(data))]

    @contextmanager
    def _transaction(self, transaction: int) -> Iterator[int]:
        """A pointer to a transaction's id; NULL for none."""
        if not transaction:
            yield 0
            return
        with self._images.convention.scratch(struct.pack("<Q", transaction)) as pointer:
            yield pointer


class ModelServices(BootServices):
    """The boot services of a driver in Python beside guests.

    lay_outs  protocol → what lets guests see an interface of it that the driver installs
    """

    __slots__ = ("_heap", "_lay_outs")

    def __init__(
        self, core: Core, agent: str, heap: Heap, lay_outs: Mapping[str, Callable[[int, BootServices], None]]
    ) -> None:
        super().__init__(core, agent)
        self._heap = heap
        self._lay_outs = lay_outs

    def allocate_pool(self, memory_type: int, size_bytes: int, out: bool = True) -> int:
        """AllocatePool."""
        address = super().allocate_pool(memory_type, size_bytes, out)
        self._heap.pool_allocated(address, size_bytes)
        return address

    def free_pool(self, address: int) -> None:
        """FreePool."""
        super().free_pool(address)
        self._heap.pool_freed(address, self.agent)

    def allocate_pages(
        self, allocate_type: int, memory_type: int, page_count: int, address: int = 0, out: bool = True
    ) -> int:
        """AllocatePages."""
        address = super().allocate_pages(allocate_type, memory_type, page_count, address, out)
        self._heap.pages_allocated(address, page_count)
        return address

    def free_pages(self, address: int, page_count: int) -> None:
        """FreePages."""
        super().free_pages(address, page_count)
        self._heap.pages_freed(address, page_count)

    def install_multiple_protocol_interfaces(self, handle: int | None, *pairs: tuple[str, int]) -> int:
        """InstallMultipleProtocolInterfaces."""
        for protocol, interface in pairs:
            lay_out = self._lay_outs.get(protocol)
            if lay_out is not None:
                lay_out(interface, self)
        return super().install_multiple_protocol_interfaces(handle, *pairs)


def print_ascii(machine: Machine, form: str, argument: Callable[[int], int]) -> str:
    """What edk2's AsciiSPrint makes of a format and its arguments; `argument(0)` is the first.

    Known are d, u, x, X, c, a, s and %, with flags, a width and l or L. Another letter stands for itself.
    """
    out: list[str] = []
    index = at = 0
    while at < len(form):
        if form[at] != "%":
            out.append(form[at])
            at += 1
            continue
        at += 1
        begin = at
        while at < len(form) and form[at] in "-+ ,0123456789.":
            at += 1
        flags = form[begin:at]
        is_long = form[at : at + 1] in ("l", "L")
        at += is_long
        letter = form[at : at + 1]
        at += 1
        if letter not in tuple("duxXcas"):
            out.append(letter)
            continue
        value = argument(index)
        index += 1
        bits = 64 if is_long else 32
        number = value & (1 << bits) - 1
        if letter == "d" and number >> bits - 1:
            number -= 1 << bits
        if letter == "a":
            text = text_at(machine, value)
        elif letter == "s":
            text = _wide_text_at(machine, value)
        elif letter == "c":
            text = chr(value & 0xFF)
        else:
            text = format(number, letter if letter in "xX" else "d")
        digits = flags.lstrip("-+ ,")
        width = int(digits.partition(".")[0] or 0)
        if "-" in flags:
            out.append(text.ljust(width))
        else:
            out.append(text.rjust(width, "0" if digits.startswith("0") else " "))
    return "".join(out)


def _wide_text_at(machine: Machine, address: int) -> str:
    """The UTF-16 text at an address."""
    units: list[int] = []
    while len(units) < _TEXT_MAX and (unit := machine.u16(address)):
        units.append(unit)
        address += 2
    return struct.pack(f"<{len(units)}H", *units).decode("utf-16le", "replace")
