"""Backends: the peers of the guest's PV devices, as another domain runs them.

One state machine serves block ("vbd"), network ("vif") and console ("console"); a `DeviceType` says what differs. It
looks at the front end's `state` node and goes on by one table, `REACTIONS`:

    InitWait    --front end Initialised or Connected-->  Connected  (maps the grants, binds the port; else Closing)
    InitWait, Connected             --Closing-->         Closing
    InitWait, Connected, Closing    --Closed, removed--> Closed     (unmaps, unbinds)
    Closed      --Initialising-->                        InitWait

A backend may let `delay` steps of the platform pass before it reacts; several changes that it has not seen yet are
one to it, as with a real watch. It can also be asked to close by the control domain (`ask_to_close`): it sets `online`
to 0, goes to Closing, and when the front end is closed, the nodes of both ends are removed, one reaction after Closed.

Requests. The front end writes a request at offset 0 of its first page and sends the event channel; the backend writes
its response at offset 16 of the last page (block and console have one page; network sends on `tx-ring-ref` and receives
on `rx-ring-ref`) and sends the event channel back. Little-endian:

    request   u32 id, u32 operation (0 read, 1 write, 3 flush), u64 sector
    response  u32 id, u32 status (0; 2**32-1 error, for a sector that is not there; 2**32-2 unknown operation)

This stands for the rings of blkif and netif: what matters here is which page is written to, and when.

Source: Xen, public headers io/xenbus.h, io/blkif.h; behaviour as of Linux's backends.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from reference_impl.trace import Kind
from reference_impl.xen.xenstored import BACKENDS, HOME

if TYPE_CHECKING:
    from reference_impl.xen.platform import XenPlatform


class XenbusState(IntEnum):
    """The `state` node of either end of a device (Xen, public header io/xenbus.h). UNKNOWN: there is none."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


_S = XenbusState

REACTIONS: dict[tuple[int, int], XenbusState] = {
    (_S.INIT_WAIT, _S.INITIALISED): _S.CONNECTED,
    (_S.INIT_WAIT, _S.CONNECTED): _S.CONNECTED,
    (_S.INIT_WAIT, _S.CLOSING): _S.CLOSING,
    (_S.CONNECTED, _S.CLOSING): _S.CLOSING,
    (_S.INIT_WAIT, _S.CLOSED): _S.CLOSED,
    (_S.CONNECTED, _S.CLOSED): _S.CLOSED,
    (_S.CLOSING, _S.CLOSED): _S.CLOSED,
    (_S.INIT_WAIT, _S.UNKNOWN): _S.CLOSED,
    (_S.CONNECTED, _S.UNKNOWN): _S.CLOSED,
    (_S.CLOSING, _S.UNKNOWN): _S.CLOSED,
    (_S.CLOSED, _S.INITIALISING): _S.INIT_WAIT,
}
"""(the backend's state, the front end's state) → the state that the backend goes to. In all other cases it stays."""


class DeviceType(NamedTuple):
    """What differs between devices: folder in xenstore, nodes with grant references, further nodes of both ends."""

    name: str
    ring_nodes: tuple[str, ...]
    frontend_nodes: tuple[tuple[str, bytes], ...]
    backend_nodes: tuple[tuple[str, bytes], ...]


SECTORS = 2 * 1024 * 1024

DEVICE_TYPES: dict[str, DeviceType] = {
    "block": DeviceType(
        "vbd",
        ("ring-ref",),
        (("virtual-device", b"51712"), ("device-type", b"disk")),
        (
            ("sectors", b"%d" % SECTORS),
            ("sector-size", b"512"),
            ("info", b"0"),
            ("feature-barrier", b"1"),
            ("feature-flush-cache", b"1"),
        ),
    ),
    "network": DeviceType(
        "vif",
        ("tx-ring-ref", "rx-ring-ref"),
        (("mac", b"00:16:3e:00:00:01"), ("mtu", b"1500")),
        (("mac", b"00:16:3e:00:00:01"), ("feature-rx-copy", b"1"), ("feature-rx-flip", b"0"), ("feature-sg", b"0")),
    ),
    "console": DeviceType(
        "console",
        ("ring-ref",),
        (("type", b"xenconsoled"), ("limit", b"1048576")),
        (("protocol", b"vt100"),),
    ),
}

REQUEST = struct.Struct("<IIQ")
RESPONSE = struct.Struct("<II")
RESPONSE_OFFSET = 16
OPERATION_READ, OPERATION_WRITE, OPERATION_FLUSH = 0, 1, 3
STATUS_OK, STATUS_ERROR, STATUS_UNKNOWN_OPERATION = 0, 0xFFFFFFFF, 0xFFFFFFFE

LATE_STEPS = 500
"""The delay of a backend that is late: longer than any driver should wait, and still an end."""

_NONE = -1  # nothing is due
_XENBUS_STATE = int(Kind.XENBUS_STATE)
_STATE_VALUES = tuple(b"%d" % state for state in XenbusState)


class Backend:
    """One device's backend, with the nodes of both ends.

    kind            "block", "network" or "console"
    path            of the device: "device/vbd/0"; also relative path of the front end's folder
    frontend_path   "/local/domain/1/device/vbd/0"
    backend_path    "/local/domain/0/backend/vbd/1/0"
    state           of the backend; `frontend_state` is what the front end last wrote, `frontend_agent` who did
    delay           platform steps that pass before a reaction; 0: in the step of the cause itself
    asked_to_close  the control domain wants the device gone
    removed         the nodes of both ends are gone
    silent          it never reacts again
    manner          how it was told to `behave`, "" for an honest one. "twice": it says everything twice; "wrong": it says
                    another state than its own, and answers requests that nobody made
    """

    __slots__ = (
        "_frames",
        "_platform",
        "_port",
        "_reaction_due",
        "_references",
        "_request_due",
        "_type",
        "asked_to_close",
        "backend_path",
        "delay",
        "frontend_agent",
        "frontend_path",
        "frontend_state",
        "kind",
        "manner",
        "path",
        "removed",
        "silent",
        "state",
    )

    def __init__(self, platform: XenPlatform, kind: str, number: int) -> None:
        device_type = DEVICE_TYPES[kind]
        name = device_type.name
        self._platform = platform
        self._type = device_type
        self.kind = kind
        self.path = f"device/{name}/{number}"
        self.frontend_path = f"{HOME}/{self.path}"
        self.backend_path = f"{BACKENDS}/{name}/1/{number}"
        self.state = int(_S.INIT_WAIT)
        self.frontend_state = int(_S.INITIALISING)
        self.frontend_agent = ""
        self.delay = 0
        self.asked_to_close = False
        self.removed = False
        self.silent = False
        self.manner = ""
        self._reaction_due = _NONE
        self._request_due = _NONE
        self._port = _NONE
        self._references: list[int] = []
        self._frames: list[int] = []

    def first_nodes(self) -> dict[str, bytes]:
        """The nodes of both ends, as the control domain makes them."""
        front, back = self.frontend_path, self.backend_path
        nodes = {
            f"{front}": b"",
            f"{front}/backend": back.encode(),
            f"{front}/backend-id": b"0",
            f"{front}/state": b"1",
        }
        for name, value in self._type.frontend_nodes:
            nodes[f"{front}/{name}"] = value
        nodes[back] = b""
        nodes[f"{back}/frontend"] = front.encode()
        nodes[f"{back}/frontend-id"] = b"1"
        nodes[f"{back}/online"] = b"1"
        nodes[f"{back}/state"] = b"2"
        for name, value in self._type.backend_nodes:
            nodes[f"{back}/{name}"] = value
        return nodes

    @property
    def ring_nodes(self) -> tuple[str, ...]:
        """Names of the front end's nodes that hold grant references."""
        return self._type.ring_nodes

    @property
    def is_closing(self) -> bool:
        """Whether either end is in Closing or Closed."""
        return 5 <= self.state <= 6 or 5 <= self.frontend_state <= 6

    @property
    def broken(self) -> bool:
        """Whether it is past the help of any front end: it hangs, is too late, or lies."""
        return self.silent or self.manner in ("late", "wrong")

    # ---- causes ---------------------------------------------------------------------------------------------------

    def frontend_changed(self, agent: str, value: bytes | None) -> None:
        """The front end's `state` node was written (None: removed)."""
        new = int(value) if value is not None and len(value) == 1 and value.isdigit() else 0
        old = self.frontend_state
        self.frontend_agent = agent
        if new != old:
            self.frontend_state = new
            self._platform.trace.add(_XENBUS_STATE, "frontend", self.path, (old, new))
        self._expect_reaction()

    def notified(self, agent: str) -> None:
        """The front end has sent the event channel: a request waits in its page."""
        if self.silent:
            return
        if self.delay:
            self._request_due = self.delay
            self._platform.busy = True
        else:
            self._serve()

    def fall_silent(self) -> None:
        """It hangs: nothing that was due happens, and nothing will. What it holds it goes on holding."""
        self.silent = True
        self._reaction_due = self._request_due = _NONE

    def die(self) -> None:
        """Its domain is destroyed: the hypervisor takes back pages and port, the nodes stay as they are."""
        self.fall_silent()
        self._disconnect()

    def vanish(self) -> None:
        """It is gone without a word, and so are the nodes of both ends."""
        if not self.removed:
            self.die()
            self._remove()

    def behave(self, manner: str) -> None:
        """From now on it is "silent", "dead" or "late", or answers "twice" or "wrong"."""
        self.manner = manner
        if manner == "silent":
            self.fall_silent()
        elif manner == "dead":
            self.die()
        elif manner == "late":
            self.delay = LATE_STEPS

    def ask_to_close(self) -> bool:
        """The control domain wants the device gone. False where it is gone already, or does not listen."""
        if self.removed or self.silent:
            return False
        if not self.asked_to_close:
            self.asked_to_close = True
            self._write("online", b"0")
            frontend_is_away = self.frontend_state in (_S.UNKNOWN, _S.INITIALISING, _S.CLOSED)
            if frontend_is_away and self.state in (_S.INIT_WAIT, _S.CLOSED):
                self._remove()
            else:
                if self.state != _S.CLOSED:
                    self._enter(_S.CLOSING)
                self._expect_reaction()
        return True

    # ---- reactions ------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step of the platform passes. Sets `busy` of the platform where something is still due."""
        due = self._reaction_due
        if due == 0:
            self._reaction_due = _NONE
            self._react()
        elif due > 0:
            self._reaction_due = due - 1
            self._platform.busy = True
        due = self._request_due
        if due > 1:
            self._request_due = due - 1
            self._platform.busy = True
        elif due == 1:
            self._request_due = _NONE
            self._serve()

    def _expect_reaction(self) -> None:
        wanted = (self.state, self.frontend_state) in REACTIONS or (self.asked_to_close and self.state == _S.CLOSED)
        if wanted and self._reaction_due == _NONE and not self.removed and not self.silent:
            self._reaction_due = self.delay
            self._platform.busy = True

    def _react(self) -> None:
        """Go where `REACTIONS` says."""
        if self.asked_to_close and self.state == _S.CLOSED:
            self._remove()
            return
        new = REACTIONS.get((self.state, self.frontend_state))
        if new is None:
            return
        if new == _S.CONNECTED:
            if not self._connect():
                new = _S.CLOSING
        elif new == _S.CLOSED:
            self._disconnect()
        self._enter(new)
        self._expect_reaction()

    def _connect(self) -> bool:
        """Map the front end's pages and bind its port; all or nothing."""
        platform = self._platform
        tree = platform.xenstored.tree
        try:
            references = [int(tree[f"{self.frontend_path}/{name}"]) for name in self._type.ring_nodes]
            port = int(tree[f"{self.frontend_path}/event-channel"])
        except (KeyError, ValueError):
            return False
        for reference in references:
            frame = platform.grant_table.map(self.path, reference)
            if frame < 0:
                self._disconnect()
                return False
            self._references.append(reference)
            self._frames.append(frame)
        if not platform.event_channels.bind(port, self):
            self._disconnect()
            return False
        self._port = port
        return True

    def _disconnect(self) -> None:
        """Let go of the front end's pages and port."""
        platform = self._platform
        for reference in self._references:
            platform.grant_table.unmap(self.path, reference)
        self._references.clear()
        self._frames.clear()
        if self._port != _NONE:
            platform.event_channels.unbind(self._port, self)
            self._port = _NONE
        self._request_due = _NONE

    def _serve(self) -> None:
        """Answer the request in the front end's first page, if there is a front end."""
        if self.state != _S.CONNECTED:
            return
        platform = self._platform
        number, operation, sector = REQUEST.unpack_from(platform.memory_page(self._frames[0]), 0)
        if operation not in (OPERATION_READ, OPERATION_WRITE, OPERATION_FLUSH):
            status = STATUS_UNKNOWN_OPERATION
        elif self.kind == "block" and sector >= SECTORS:
            status = STATUS_ERROR
        else:
            status = STATUS_OK
        if self.manner == "wrong":
            number += 1
        RESPONSE.pack_into(platform.memory_page(self._frames[-1]), RESPONSE_OFFSET, number & 0xFFFFFFFF, status)
        platform.event_channels.raise_event(self._port, self)

    def _enter(self, new: int) -> None:
        """Go to another state and say so in xenstore."""
        old = self.state
        if new != old:
            self.state = int(new)
            self._platform.trace.add(_XENBUS_STATE, "backend", self.path, (old, self.state))
            if self.manner == "wrong":
                new = _S.RECONFIGURING
            self._write("state", _STATE_VALUES[new])
            if self.manner == "twice":
                self._write("state", _STATE_VALUES[new])

    def _remove(self) -> None:
        """The control domain removes the nodes of both ends."""
        self.removed = True
        self._reaction_due = _NONE
        old, self.state = self.state, int(_S.UNKNOWN)
        platform = self._platform
        platform.trace.add(_XENBUS_STATE, "backend", self.path, (old, self.state))
        platform.xenstored.change("backend", self.backend_path, None)
        platform.xenstored.change("backend", self.frontend_path, None)
        platform.xenstored.observed.pop(self.frontend_path + "/state", None)

    def _write(self, name: str, value: bytes) -> None:
        self._platform.xenstored.change("backend", f"{self.backend_path}/{name}", value)
