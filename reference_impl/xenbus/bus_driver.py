"""The XenBus bus driver: one connection to the hypervisor, and a child handle for each device that xenstore lists.

Start takes, in this order: the controller's protocols, private memory, the shared info page, the grant table, the
xenstore ring, the children, the teardown design's event: hypercalls, requests and memory services in the order of the
shipped XenBusDxe. Stop gives back in reverse, and so does a Start that fails on its way: there is one `_release` for
both. What happens at ExitBootServices is the design's business (`designs`), which has one means for it here:
`reset_connection`.
"""

from __future__ import annotations

from contextlib import suppress

from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import (
    BOOT_SERVICES_DATA,
    BY_CHILD_CONTROLLER,
    BY_DRIVER,
    GET_PROTOCOL,
    TPL_NOTIFY,
)
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.xen.grant_table import RESERVED
from reference_impl.xen.hypervisor import (
    GRANT_TABLE,
    SHARED_INFO,
    STORE_EVTCHN,
    STORE_PFN,
    HypercallError,
)
from reference_impl.xen.platform import XenPlatform
from reference_impl.xenbus.designs.base import BusTeardown, Design
from reference_impl.xenbus.driver import Driver
from reference_impl.xenbus.protocol import XenBusProtocol
from reference_impl.xenbus.xenstore_client import ENDLESS, FixedBuffers, PoolBuffers, XenStoreClient, XenStoreError

AGENT = "XenBusDxe"
MEMORY_TYPE_RESERVED = 0
GRANT_FRAMES = 4
GRANT_ENTRIES = GRANT_FRAMES * 512
STATE_INITIALISING = "1"
PRIVATE_SIZE, CHILD_SIZE, PATH_SIZE = 72, 208, 46  # bytes of pool, as of the shipped driver


class XenIo:
    """XENIO_PROTOCOL: where the platform device lets the grant table be mapped."""

    __slots__ = ("grant_table_address",)

    def __init__(self, grant_table_address: int) -> None:
        self.grant_table_address = grant_table_address


class Grants:
    """The driver's free list of grant references, behind a lock, as the shipped driver has it."""

    __slots__ = ("_free", "_next", "_platform", "_services")

    def __init__(self, services: BootServices, platform: XenPlatform) -> None:
        self._services = services
        self._platform = platform
        self._free: list[int] = []  # given back; behind `_next` none has been used yet
        self._next = RESERVED

    def grant(self, domain: int, frame: int, readonly: bool = False) -> int:
        """Let `domain` use the page `frame`; the reference. Raises EfiError(OUT_OF_RESOURCES) where none is left."""
        services = self._services
        old = services.raise_tpl(TPL_NOTIFY)
        if self._free:
            reference = self._free.pop()
        else:
            reference = self._next
            self._next += 1
        services.restore_tpl(old)
        if reference >= GRANT_ENTRIES:
            self._next = GRANT_ENTRIES
            raise EfiError(EfiStatus.OUT_OF_RESOURCES)
        self._platform.grant_table.grant(services.agent, reference, domain, frame, readonly)
        return reference

    def end(self, reference: int) -> bool:
        """Take the access back; False, and nothing changes, where the peer still uses the page."""
        if not self._platform.grant_table.end_access(self._services.agent, reference):
            return False
        old = self._services.raise_tpl(TPL_NOTIFY)
        self._free.append(reference)
        self._services.restore_tpl(old)
        return True


class Child:
    """One device on the bus: its handle, and the memory that was taken for it.

    The memory is, in this order: the bus's own data of the child, copies of type, node and backend, the device path.
    """

    __slots__ = ("allocations", "handle", "protocol")

    def __init__(self, allocations: list[int], protocol: XenBusProtocol) -> None:
        self.allocations = allocations
        self.protocol = protocol
        self.handle = 0


class XenBus:
    """The bus on one controller. `reset_connection` is what ExitBootServices is about."""

    def __init__(self, driver: XenBusDriver, controller: int) -> None:
        self.driver = driver
        self.services = driver.services
        self.platform = driver.platform
        self.hypercalls = driver.platform.hypercalls(driver.agent)
        self.controller = controller
        self.children: dict[int, Child] = {}
        self.allocation = 0
        self.teardown: BusTeardown | None = None
        self._opened: list[str] = []
        self._shared_info = 0
        self._shared_info_mapped = False
        self._grant_frames: list[int] = []
        self._buffers: FixedBuffers | PoolBuffers | None = None
        self._store: XenStoreClient | None = None
        self._grants: Grants | None = None

    @property
    def store(self) -> XenStoreClient:
        """The xenstore conversation of a started bus."""
        assert self._store is not None
        return self._store

    @property
    def grants(self) -> Grants:
        """The grant references of a started bus."""
        assert self._grants is not None
        return self._grants

    # ---- start and stop -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and make a child for each device (UEFI 2.10 §11.1)."""
        try:
            self._take()
        except HypercallError:
            self._release()
            raise EfiError(EfiStatus.DEVICE_ERROR) from None
        except EfiError:
            self._release()
            raise

    def stop(self, children: tuple[int, ...]) -> None:
        """Stop the children that are named; with none, give everything back."""
        if not children:
            if self.children:
                raise EfiError(EfiStatus.DEVICE_ERROR)
            self._release()
            return
        failed = False
        for handle in children:
            child = self.children.get(handle)
            failed |= child is None or not self._remove_child(child)
        if failed:
            raise EfiError(EfiStatus.DEVICE_ERROR)

    def _take(self) -> None:
        services, hypercalls = self.services, self.hypercalls
        binding = self.driver.driver_binding_handle
        xenio = 0
        for protocol in (guids.XENIO_PROTOCOL, guids.DEVICE_PATH_PROTOCOL):
            interface = services.open_protocol(self.controller, protocol, binding, self.controller, BY_DRIVER)
            xenio = xenio or interface
            self._opened.append(protocol)
        self.allocation = services.allocate_pool(BOOT_SERVICES_DATA, PRIVATE_SIZE)
        services.core.place(self.allocation, self, self.allocation)
        self._shared_info = services.allocate_pages(0, MEMORY_TYPE_RESERVED, 1, 0)
        hypercalls.add_to_physmap(SHARED_INFO, 0, self._shared_info >> 12)
        self._shared_info_mapped = True
        first = services.core.object_at(xenio, services.agent).grant_table_address >> 12
        for index in range(GRANT_FRAMES):
            hypercalls.add_to_physmap(GRANT_TABLE, index, first + index)
            self._grant_frames.append(first + index)
        self._grants = Grants(services, self.platform)
        port = hypercalls.hvm_get_param(STORE_EVTCHN)
        hypercalls.hvm_get_param(STORE_PFN)
        ring = self.platform.ring
        if self.driver.design.careless:
            self._buffers = PoolBuffers(services, ring, ENDLESS)
        else:
            self._buffers = FixedBuffers(services)
        self._store = XenStoreClient(services, hypercalls, ring, port, self._buffers)
        self.teardown = self.driver.design.bus(self)
        self._enumerate()
        self.teardown.started()

    def _release(self) -> None:
        services = self.services
        for child in reversed(list(self.children.values())):
            self._remove_child(child)
        if self.teardown is not None:
            self.teardown.stopping()
            self.teardown = None
        if self._buffers is not None:
            self.store.close()
            self._buffers.close()
            self._buffers = None
        self.reset_connection()
        self._give_shared_info_back()
        while self._opened:
            services.close_protocol(
                self.controller, self._opened.pop(), self.driver.driver_binding_handle, self.controller
            )
        if self.allocation:
            services.free_pool(self.allocation)
            self.allocation = 0

    def _give_shared_info_back(self) -> None:
        if self._shared_info_mapped:
            with suppress(HypercallError):
                self.hypercalls.remove_from_physmap(self._shared_info >> 12)
            self._shared_info_mapped = False
        if self._shared_info:
            self.services.free_pages(self._shared_info, 1)
            self._shared_info = 0

    def reset_connection(self) -> None:
        """Bring ring and grant table back to the state that somebody else can take over. No memory service is called."""
        if self._store is not None and self._store.in_use:
            self._store.reset()
        while self._grant_frames:
            with suppress(HypercallError):  # the frames behind it must go all the same
                self.hypercalls.remove_from_physmap(self._grant_frames.pop())

    # ---- children -------------------------------------------------------------------------------------------------

    def _enumerate(self) -> None:
        for type_ in self._list("device"):
            for id_ in self._list(f"device/{type_}"):
                node = f"device/{type_}/{id_}"
                try:
                    self.store.directory(node)
                    state = self.store.read(f"{node}/state")
                    if state != STATE_INITIALISING:
                        continue  # somebody else's, or on its way out
                    backend = self.store.read(f"{node}/backend")
                except XenStoreError:
                    continue  # a device that cannot be read is left alone; the others are still good
                self._add_child(XenBusProtocol(self, type_, node, backend))

    def _list(self, path: str) -> list[str]:
        try:
            return self.store.directory(path)
        except XenStoreError as error:
            if error.name == "ENOENT":
                return []
            raise

    def _add_child(self, protocol: XenBusProtocol) -> None:
        services = self.services
        child = Child([], protocol)
        texts = (protocol.type, protocol.node, protocol.backend)
        try:
            for size in (CHILD_SIZE, *(len(text) + 1 for text in texts), PATH_SIZE):
                child.allocations.append(services.allocate_pool(BOOT_SERVICES_DATA, size))
            services.core.place(child.allocations[0], protocol, child.allocations[0])
            services.core.place(child.allocations[-1], protocol.node.encode(), child.allocations[-1])
            child.handle = services.install_multiple_protocol_interfaces(0, *self._interfaces(child))
            try:
                self._open_by_child(child)
            except EfiError:
                services.uninstall_multiple_protocol_interfaces(child.handle, *self._interfaces(child))
                raise
        except EfiError:
            self._free(child)
            raise
        self.children[child.handle] = child

    def _remove_child(self, child: Child) -> bool:
        """Give a child's handle back; False where its driver does not let go of it (then the child stays).

        It is the uninstall that stops the child's driver (edk2's core disconnects whoever has the interface open). The
        shipped driver looks the child's data up first, and keeps a child for which that fails; the others know their own.
        """
        services = self.services
        binding = self.driver.driver_binding_handle
        try:
            services.open_protocol(child.handle, guids.XENBUS_PROTOCOL, binding, self.controller, GET_PROTOCOL)
        except EfiError:
            if self.driver.design.careless:
                return False
        services.close_protocol(self.controller, guids.XENIO_PROTOCOL, binding, child.handle)
        try:
            services.uninstall_multiple_protocol_interfaces(child.handle, *self._interfaces(child))
        except EfiError:
            self._open_by_child(child)
            return False
        self._free(child)
        self.children.pop(child.handle, None)
        return True

    def _free(self, child: Child) -> None:
        while child.allocations:
            self.services.free_pool(child.allocations.pop())

    def _open_by_child(self, child: Child) -> None:
        self.services.open_protocol(
            self.controller,
            guids.XENIO_PROTOCOL,
            self.driver.driver_binding_handle,
            child.handle,
            BY_CHILD_CONTROLLER,
        )

    def _interfaces(self, child: Child) -> tuple[tuple[str, int], ...]:
        own, *_, path = child.allocations
        return (guids.DEVICE_PATH_PROTOCOL, path), (guids.XENBUS_PROTOCOL, own)

    def record_reference(self, name: str, arguments: tuple[object, ...], count: int) -> None:
        """Tell the trace that the bus's reference count changed."""
        self.services.core.trace.add(Kind.REFERENCE, self.services.agent, name, arguments, None, count)


class XenBusDriver(Driver):
    """XenBusDxe: manages controllers that carry XENIO_PROTOCOL."""

    def __init__(self, services: BootServices, platform: XenPlatform, design: Design, bus: type[XenBus]) -> None:
        super().__init__(services)
        self.platform = platform
        self.design = design
        self._bus = bus

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Whether the controller has XENIO_PROTOCOL, and nobody else manages it."""
        binding = self.driver_binding_handle
        self.services.open_protocol(controller, guids.XENIO_PROTOCOL, binding, controller, BY_DRIVER)
        self.services.close_protocol(controller, guids.XENIO_PROTOCOL, binding, controller)

    def make(self, controller: int) -> XenBus:
        """The bus on this controller."""
        return self._bus(self, controller)
