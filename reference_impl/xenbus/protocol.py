"""XENBUS_PROTOCOL: what the bus publishes on each child handle, and all that a device driver sees of Xen.

Member functions answer a refusal of xenstored (`XenStoreError`) or the hypervisor as EFI status, as its C form does.
The two designs that need more of the bus add their members in `teardown`: see `reference_impl.xenbus.designs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.xen.hypervisor import HypercallError
from reference_impl.xenbus.xenstore_client import Watch

if TYPE_CHECKING:
    from reference_impl.xenbus.bus_driver import XenBus


class XenBusProtocol:
    """One device on the bus.

    node        "device/vbd/0"
    backend     its peer's folder, an absolute path
    backend_id  the peer's domain, once the device's driver has read it
    type        "vbd", "vif" or "console"
    teardown    the bus's side of the teardown design, with the members that this design adds to the protocol
    """

    __slots__ = ("_bus", "backend", "backend_id", "node", "teardown", "type")

    def __init__(self, bus: XenBus, type_: str, node: str, backend: str) -> None:
        self._bus = bus
        self.type = type_
        self.node = node
        self.backend = backend
        self.backend_id = 0
        self.teardown: Any = bus.teardown

    def read(self, name: str, transaction: int = 0) -> str:
        """XsRead: the value of a node of the device."""
        return self._bus.store.read(f"{self.node}/{name}", transaction)

    def read_backend_id(self) -> None:
        """Read the peer's domain. Raises EfiError(DEVICE_ERROR) where it is no number."""
        text = self.read("backend-id")
        if not text.isdigit():
            raise EfiError(EfiStatus.DEVICE_ERROR)
        self.backend_id = int(text)

    def read_backend(self, name: str) -> str:
        """XsBackendRead: the value of a node of the peer."""
        return self._bus.store.read(f"{self.backend}/{name}")

    def write(self, name: str, value: str, transaction: int = 0) -> None:
        """XsPrintf: set a node of the device."""
        self.write_in(self.node, name, value, transaction)

    def write_in(self, directory: str, name: str, value: str, transaction: int = 0) -> None:
        """XsPrintf: set a node of any directory."""
        self._bus.store.write(f"{directory}/{name}", value, transaction)

    def set_state(self, state: int, transaction: int = 0) -> None:
        """SetState: look at the own state first, and write only what is not there yet."""
        try:
            known = self.read("state", transaction)
        except EfiError:
            known = ""  # the shipped driver gives up here
        if known != str(state):
            self.write("state", str(state), transaction)

    def remove(self, name: str) -> None:
        """XsRemove: remove a node of the device."""
        self._bus.store.remove(f"{self.node}/{name}")

    def start_transaction(self) -> int:
        """XsTransactionStart: the transaction's id."""
        return self._bus.store.start_transaction()

    def end_transaction(self, transaction: int, commit: bool) -> None:
        """XsTransactionEnd: EFI_NOT_READY where a conflict asks for another try."""
        self._bus.store.end_transaction(transaction, commit)

    def watch(self, name: str) -> Watch:
        """RegisterWatch: a watch on a node of the device."""
        return self._bus.store.watch(f"{self.node}/{name}")

    def watch_backend(self, name: str) -> Watch:
        """RegisterWatchBackend: a watch on a node of the peer."""
        return self._bus.store.watch(f"{self.backend}/{name}")

    def unwatch(self, watch: Watch) -> None:
        """UnregisterWatch."""
        self._bus.store.unwatch(watch)

    def wait_for_watch(self, watch: Watch) -> bool:
        """WaitForWatch: whether the watch fired. Not for ExitBootServices notifications."""
        return self._bus.store.wait_for_watch(watch)

    def grant(self, frame: int, domain: int | None = None, readonly: bool = False) -> int:
        """GrantAccess: lets the peer (or another domain) use a page; the grant reference."""
        return self._bus.grants.grant(self.backend_id if domain is None else domain, frame, readonly)

    def end_grant(self, reference: int) -> bool:
        """GrantEndAccess: False where the peer still uses the page."""
        return self._bus.grants.end(reference)

    def allocate_event_channel(self, domain: int | None = None) -> int:
        """EventChannelAllocate: a port that the peer (or another domain) can bind to."""
        try:
            return self._bus.hypercalls.event_channel_alloc_unbound(self.backend_id if domain is None else domain)
        except HypercallError:
            raise EfiError(EfiStatus.DEVICE_ERROR) from None

    def notify(self, port: int) -> None:
        """EventChannelNotify."""
        try:
            self._bus.hypercalls.event_channel_send(port)
        except HypercallError:
            raise EfiError(EfiStatus.DEVICE_ERROR) from None

    def pending(self, port: int) -> bool:
        """EventChannelTestAndClear: whether the peer has notified the port since."""
        return self._bus.hypercalls.pending(port)

    def close_event_channel(self, port: int) -> None:
        """EventChannelClose."""
        try:
            self._bus.hypercalls.event_channel_close(port)
        except HypercallError:
            raise EfiError(EfiStatus.DEVICE_ERROR) from None

    def page(self, address: int) -> bytearray:
        """The bytes of a page of the machine (what a driver in C reaches through a pointer)."""
        return self._bus.platform.memory_page(address >> 12)
