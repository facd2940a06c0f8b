"""The front end of a PV device: one state machine and one driver for all kinds of device (`devices` says what differs).

Start reads the device's nodes, allocates an event channel, grants the ring pages, tells the peer about them in a
transaction, goes to Connected and waits for the peer, then publishes the device's interface. Stop goes the same way
back, and so does a Start that fails on its way.

`forget` is what a teardown design needs at ExitBootServices: it makes the peer forget the device, and calls no memory
service. It is the first half of Stop; the second half gives memory back.

    Connected ──▶ Closing ──▶ Closed ──▶ Initialising      (each step waits until the peer has followed)

Sources: xen/include/public/io/{xenbus,blkif,netif,console}.h.
"""

from __future__ import annotations

from collections.abc import Callable

from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.definitions import BOOT_SERVICES_DATA, BY_DRIVER, GET_PROTOCOL
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.xen.backend import REQUEST, RESPONSE, RESPONSE_OFFSET
from reference_impl.xenbus.designs.base import Design, DeviceTeardown
from reference_impl.xenbus.devices import Device
from reference_impl.xenbus.driver import Driver
from reference_impl.xenbus.protocol import XenBusProtocol
from reference_impl.xenbus.xenstore_client import PATIENCE, POLL_INTERVAL_US, Watch

UNKNOWN, INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = range(7)

TRANSACTION_TRIES = 8
PRIVATE_SIZE, MEDIA_SIZE = 152, 48  # bytes of pool, as of the shipped block driver

WAY_BACK: tuple[tuple[int, Callable[[int], bool]], ...] = (
    (CLOSING, lambda state: state >= CLOSING or state == UNKNOWN),
    (CLOSED, lambda state: state >= CLOSED or state == UNKNOWN),
    (INITIALISING, lambda state: state in (UNKNOWN, INIT_WAIT) or state >= CLOSED),
)
"""The closing states in their order, each with whether a peer in some state has followed it."""


class FrontEnd:
    """One started device.

    `io` is the bus's protocol, `allocation` the address of the private data. The object is the published interface too.
    """

    way_back = WAY_BACK

    def __init__(self, driver: FrontEndDriver, controller: int) -> None:
        self.driver = driver
        self.services = driver.services
        self.kind = driver.kind
        self.controller = controller
        self.allocation = 0
        self.io: XenBusProtocol
        self._teardown: DeviceTeardown | None = None
        self._opened = False
        self.published = False
        self._introduced = False
        self._watch: Watch | None = None
        self._port = 0
        self._pages: list[int] = []
        self._media = 0
        self._references: list[int] = []
        self._request_id = 0

    # ---- start and stop -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect to the peer and publish the interface (UEFI 2.10 §11.1)."""
        try:
            self._take()
        except EfiError:
            self._release()
            raise

    def stop(self, children: tuple[int, ...]) -> None:
        """Disconnect from the peer and give everything back. The device has no children."""
        if self.published:
            services, protocol = self.services, self.kind.protocol
            binding = self.driver.driver_binding_handle
            services.open_protocol(self.controller, protocol, binding, self.controller, GET_PROTOCOL)
            services.uninstall_protocol_interface(self.controller, protocol, self.allocation)
            self.published = False
        self._release()

    def _take(self) -> None:
        services, kind = self.services, self.kind
        binding = self.driver.driver_binding_handle
        interface = services.open_protocol(self.controller, guids.XENBUS_PROTOCOL, binding, self.controller, BY_DRIVER)
        self._opened = True
        io = self.io = services.core.object_at(interface, services.agent)
        self.allocation = services.allocate_pool(BOOT_SERVICES_DATA, PRIVATE_SIZE)
        services.core.place(self.allocation, self, self.allocation)
        for name in kind.required_nodes:
            io.read(name)
        io.read_backend_id()
        self._port = io.allocate_event_channel()
        for _ in kind.ring_nodes:
            page = services.allocate_pages(0, BOOT_SERVICES_DATA, 1, 0)
            self._pages.append(page)
            self._references.append(io.grant(page >> 12))
        self._introduce()
        self._watch = io.watch_backend("state")
        if self._wait_for_peer(lambda state: state == CONNECTED or state >= CLOSING, self._peer_state) != CONNECTED:
            raise EfiError(EfiStatus.DEVICE_ERROR)
        for name in kind.peer_nodes:
            self._read_peer(name)
        self._media = services.allocate_pool(BOOT_SERVICES_DATA, MEDIA_SIZE)
        self._publish()
        teardown = self.driver.design.device(self)
        try:
            teardown.started()
        except EfiError:
            services.uninstall_protocol_interface(self.controller, kind.protocol, self.allocation)
            self.published = False
            raise
        self._teardown = teardown

    def _publish(self) -> None:
        self.services.install_protocol_interface(self.controller, self.kind.protocol, 0, self.allocation)
        self.published = True

    def _release(self) -> None:
        services = self.services
        if self._teardown is not None:
            self._teardown.stopping()
            self._teardown = None
        self._disconnect(at_exit=False)
        if self._watch is not None:
            self._attempt(self.io.unwatch, self._watch)
            self._watch = None
        self._remove_nodes()
        self._end_access()
        while self._pages:
            services.free_pages(self._pages.pop(), 1)
        if self.allocation:
            services.free_pool(self.allocation)
            self.allocation = 0
        if self._media:
            services.free_pool(self._media)
            self._media = 0
        if self._opened:
            services.close_protocol(
                self.controller, guids.XENBUS_PROTOCOL, self.driver.driver_binding_handle, self.controller
            )
            self._opened = False

    def forget(self) -> None:
        """Make the peer forget this device, at ExitBootServices: no memory service, no wait for an event."""
        self._disconnect(at_exit=True)
        self._end_access()

    # ---- the conversation with the peer ---------------------------------------------------------------------------

    def _introduce(self) -> None:
        """Tell the peer where the rings and the event channel are, and go to Connected, all in one transaction."""
        io, kind = self.io, self.kind
        for _ in range(TRANSACTION_TRIES):
            transaction = io.start_transaction()
            try:
                for name, reference in zip(kind.ring_nodes, self._references, strict=True):
                    io.write(name, str(reference), transaction)
                io.write("event-channel", str(self._port), transaction)
                for name, value in kind.written_nodes:
                    io.write(name, value, transaction)
                io.set_state(CONNECTED, transaction)
            except EfiError:
                self._attempt(io.end_transaction, transaction, False)
                raise
            try:
                io.end_transaction(transaction, True)
            except EfiError as error:
                if error.status == EfiStatus.NOT_READY:
                    continue
                raise
            self._introduced = True
            return
        raise EfiError(EfiStatus.TIMEOUT)

    def _disconnect(self, at_exit: bool) -> None:
        """Walk the closing states, and wait until the peer has followed each."""
        if not self._introduced:
            return
        self._introduced = False
        for own, peer_followed in self.way_back:
            self._attempt(self.io.set_state, own)
            self._wait_for_peer(peer_followed, self._closing_peer_state, at_exit)

    def _wait_for_peer(
        self, enough: Callable[[int], bool], peer_state: Callable[[], int], at_exit: bool = False
    ) -> int:
        """Wait until the peer's state is enough; the state that was seen last.

        At the exit there is no waiting for a watch event: each read of the state lets the peer run. Elsewhere a peer that
        says nothing for as long as the bus is patient counts as dead.
        """
        state = UNKNOWN
        for _ in range(PATIENCE):
            state = peer_state()
            if enough(state):
                break
            if not at_exit and self._watch is not None and not self._news(self._watch):
                break
        return state

    def _news(self, watch: Watch) -> bool:
        """Wait for the peer to say something. A conversation that is broken is no answer, and says so at the next read."""
        try:
            return self.io.wait_for_watch(watch)
        except EfiError:
            return True

    def _peer_state(self) -> int:
        """The peer's state; UNKNOWN where the peer is gone."""
        value = self._read_peer("state")
        return int(value) if value.isdigit() else UNKNOWN

    def _closing_peer_state(self) -> int:
        """The peer's state on the way back, where a refusal means to ask again rather than to stop half way.

        Where xenstored itself does not answer any more, there is nobody left to ask.
        """
        try:
            return self._peer_state()
        except EfiError as error:
            return UNKNOWN if error.status == EfiStatus.TIMEOUT else INITIALISING

    def _read_peer(self, name: str) -> str:
        """A node of the peer; "" where it does not have one, as an optional feature is missing."""
        try:
            return self.io.read_backend(name)
        except EfiError as error:
            if error.status != EfiStatus.NOT_FOUND:
                raise
            return ""

    def _remove_nodes(self) -> None:
        if self._references:
            for name in (*self.kind.ring_nodes, "event-channel", *(name for name, _ in self.kind.written_nodes)):
                self._attempt(self.io.remove, name)

    def _end_access(self) -> None:
        self._references = [reference for reference in self._references if not self.io.end_grant(reference)]
        if self._port:
            self._attempt(self.io.close_event_channel, self._port)
            self._port = 0

    @staticmethod
    def _attempt(function: Callable[..., object], *arguments: object) -> None:
        """Do one step of a way back: a refusal must not keep the steps behind it from being done."""
        try:
            function(*arguments)
        except EfiError:
            return

    # ---- the interface that is published --------------------------------------------------------------------------

    def request(self) -> None:
        """Serve one request: a read of the first sector, one packet, one line.

        EFI_DEVICE_ERROR where the peer refuses, EFI_TIMEOUT where it does not answer.
        """
        page = self.io.page(self._pages[-1])  # the peer answers in the last ring
        self._request_id += 1
        REQUEST.pack_into(self.io.page(self._pages[0]), 0, self._request_id, 0, 0)
        self.io.notify(self._port)
        for _ in range(PATIENCE):
            if self.io.pending(self._port):
                request_id, status = RESPONSE.unpack_from(page, RESPONSE_OFFSET)
                if request_id != self._request_id or status:
                    raise EfiError(EfiStatus.DEVICE_ERROR)
                return
            self.services.stall(POLL_INTERVAL_US)
        raise EfiError(EfiStatus.TIMEOUT)


class FrontEndDriver(Driver):
    """The driver of one kind of device: manages the bus's children of its type."""

    def __init__(self, services: BootServices, kind: Device, design: Design, front_end: type[FrontEnd]) -> None:
        super().__init__(services)
        self.kind = kind
        self.design = design
        self._front_end = front_end

    def supported(self, controller: int, remaining_device_path: bytes | None) -> None:
        """Whether the controller is a child of the bus with this driver's type, and nobody else manages it."""
        services, binding = self.services, self.driver_binding_handle
        interface = services.open_protocol(controller, guids.XENBUS_PROTOCOL, binding, controller, BY_DRIVER)
        type_ = services.core.object_at(interface, services.agent).type
        services.close_protocol(controller, guids.XENBUS_PROTOCOL, binding, controller)
        if type_ != self.kind.type:
            raise EfiError(EfiStatus.UNSUPPORTED)

    def make(self, controller: int) -> FrontEnd:
        """The device on this controller."""
        return self._front_end(self, controller)
