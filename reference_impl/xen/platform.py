"""The Xen platform of one guest, put together: hypervisor, xenstore, backends.

Time passes in *steps*: one with every xenstore request that is processed, and one whenever the guest waits
(`XenPlatform.step`). In a step backends react to what they have seen.

The guest is domain 1, everything else is domain 0.
"""

from __future__ import annotations

from reference_impl.failures import Failures
from reference_impl.trace import Trace
from reference_impl.xen.backend import DEVICE_TYPES, Backend
from reference_impl.xen.hypervisor import STORE_EVTCHN, STORE_GFN, Hypercalls, Hypervisor
from reference_impl.xen.shared_ring import RECONNECTION_FEATURE, SharedRing
from reference_impl.xen.xenstored import BACKENDS, HOME, Xenstored

GUEST_DOMAIN = 1
PEER_DOMAIN = 0

_HOME_PREFIX = HOME + "/"
_BACKENDS_PREFIX = BACKENDS + "/"


class XenPlatform:
    """Everything outside of the guest.

    reconnection      whether xenstored offers the reconnection feature
    devices           backends in the order in which they appeared; a removed one keeps its place
    busy              a backend is going to react in a step to come
    store_page        the page shared with xenstored; `ring` is the view of it
    cleanup_may_fail  lets armed failures hit devices that are closing (a hostile environment)
    vanishing         devices that are going to vanish: (requests that xenstored answers before it, device)
    """

    backend = Backend

    __slots__ = (
        "_by_path",
        "_counts",
        "busy",
        "cleanup_may_fail",
        "devices",
        "event_channels",
        "failures",
        "grant_table",
        "hypervisor",
        "memory_page",
        "reconnection",
        "ring",
        "store_page",
        "trace",
        "vanishing",
        "xenstored",
    )

    def __init__(
        self, trace: Trace, failures: Failures, reconnection: bool = True, device_kinds: tuple[str, ...] = ()
    ) -> None:
        self.trace = trace
        self.failures = failures
        self.reconnection = reconnection
        self.cleanup_may_fail = False
        self.busy = False
        self.vanishing: list[tuple[int, Backend]] = []
        hypervisor = self.hypervisor = Hypervisor(trace)
        self.memory_page = hypervisor.memory_page
        self.grant_table = hypervisor.grant_table
        self.event_channels = hypervisor.event_channels
        self.store_page = hypervisor.pages[STORE_GFN]
        self.ring = SharedRing(self.store_page, trace)
        if reconnection:
            self.ring.server_features = RECONNECTION_FEATURE
        port = self.event_channels.allocate("Xen", PEER_DOMAIN)
        hypervisor.parameters[STORE_EVTCHN] = port
        self.xenstored = Xenstored(self, self.ring, port)
        self.event_channels.bind(port, self.xenstored)
        self.devices: list[Backend] = []
        self._by_path: dict[str, Backend] = {}
        self._counts: dict[str, int] = {}
        for kind in device_kinds:
            device = self._new_device(kind)
            tree = self.xenstored.tree
            self._make_folders(device)
            tree.update(device.first_nodes())

    def hypercalls(self, agent: str) -> Hypercalls:
        """The hypercalls as `agent` makes them."""
        return Hypercalls(self, agent)

    def step(self, agent: str = "platform") -> bool:
        """One step passes: backends react. Answers whether something is still going to happen without the guest."""
        if self.busy:
            self.let_backends_react()
        if self.xenstored.output:
            self.xenstored.flush(agent)
        return self.busy

    def let_backends_react(self) -> None:
        """The part of a step that belongs to the backends. Needed only while `busy`."""
        self.busy = False
        for device in self.devices:
            device.step()

    # ---- devices --------------------------------------------------------------------------------------------------

    def add_device(self, kind: str) -> str:
        """A device appears in xenstore; gives its path, "device/vbd/0". Numbers are not used again."""
        device = self._new_device(kind)
        self._make_folders(device)
        for path, value in device.first_nodes().items():
            self.xenstored.change("backend", path, value)
        self.xenstored.flush("platform")
        return device.path

    def remove_device(self, index: int) -> bool:
        """Ask the backend of a device to close, after which the device goes. False where there is no such device."""
        if not 0 <= index < len(self.devices):
            return False
        asked = self.devices[index].ask_to_close()
        self.xenstored.flush("platform")
        return asked

    def set_delay(self, index: int, delay: int) -> bool:
        """From now on a device's backend lets `delay` steps pass before it reacts. False where there is no device."""
        if not 0 <= index < len(self.devices) or self.devices[index].removed:
            return False
        self.devices[index].delay = delay
        return True

    def vanish(self, index: int, requests: int) -> bool:
        """A device is gone without a word, once xenstored has answered `requests` more. False where it is not there."""
        if not 0 <= index < len(self.devices) or self.devices[index].removed:
            return False
        if requests:
            self.vanishing.append((requests, self.devices[index]))
        else:
            self.devices[index].vanish()
            self.xenstored.flush("platform")
        return True

    def count_request(self) -> None:
        """xenstored is about to answer a request. Needed only while devices are `vanishing`."""
        left = [(requests - 1, device) for requests, device in self.vanishing]
        self.vanishing = [entry for entry in left if entry[0] >= 0]
        for requests, device in left:
            if requests < 0:
                device.vanish()

    def device_at(self, path: str) -> Backend | None:
        """The device whose folder, front end's or backend's, holds `path` (absolute, or relative to the guest's)."""
        if path.startswith(_BACKENDS_PREFIX):
            parts = path.split("/", 8)
            if len(parts) < 8:
                return None
            return self._by_path.get(f"device/{parts[5]}/{parts[7]}")
        if path.startswith(_HOME_PREFIX):
            path = path[len(_HOME_PREFIX) :]
        return self._by_path.get("/".join(path.split("/", 3)[:3]))

    def device_is_closing(self, path: str) -> bool:
        """Whether either end of the device at `path` is in Closing or Closed. "" asks for any device."""
        if not path:
            return any(device.is_closing for device in self.devices)
        device = self.device_at(path)
        return device is not None and device.is_closing

    def _new_device(self, kind: str) -> Backend:
        name = DEVICE_TYPES[kind].name
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        device = self.backend(self, kind, number)
        self.devices.append(device)
        self._by_path[device.path] = device
        self.xenstored.observed[device.frontend_path + "/state"] = device.frontend_changed
        return device

    def _make_folders(self, device: Backend) -> None:
        """The folders above a device's own."""
        tree = self.xenstored.tree
        for path in (device.frontend_path, device.backend_path):
            parent = path[: path.rfind("/")]
            while parent not in tree:
                tree[parent] = b""
                parent = parent[: parent.rfind("/")]
