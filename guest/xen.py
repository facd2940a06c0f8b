"""The Xen platform under guest drivers: hypercalls from guest code, and the shared pages in guest memory.

* `GuestPlatform` is the platform of `reference_impl.xen` with its shared pages (xenstored's ring, shared info, grant
  table) in memory that the guest sees wherever the physmap says. Where the front ends of block devices are guests, their
  backends speak the protocol of the shipped driver (blkif, Xen's io/blkif.h), with data.
* `HypercallPage` is what OVMF's HOB points drivers to: 32 bytes for each hypercall, each leading to a trap that calls
  the hypercall of the same name in `reference_impl.xen.hypervisor`.
* Some of what the model's drivers do by calling is, from a guest, only a change of memory: the older way to reset the
  ring (`look`) is seen at the next service or hypercall.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import cast

from guest.calling_convention import CallingConvention
from guest.drivers import Images
from guest.machine import PAGE, Machine
from reference_impl.failures import Failures
from reference_impl.trace import Trace
from reference_impl.xen.backend import SECTORS, Backend
from reference_impl.xen.grant_table import ENTRIES, ENTRIES_PER_FRAME, FRAMES, PERMIT_ACCESS, READONLY
from reference_impl.xen.hypervisor import GRANT_TABLE, SHARED_INFO, STORE_GFN, HypercallError, Hypercalls
from reference_impl.xen.platform import PEER_DOMAIN, XenPlatform
from reference_impl.xen.shared_ring import RECONNECTION_FEATURE, RING_SIZE
from reference_impl.xen.xenstored import OPERATING_SYSTEM

MEMORY_OP, EVENT_CHANNEL_OP, HVM_OP = 12, 32, 34
ADD_TO_PHYSMAP, REMOVE_FROM_PHYSMAP = 7, 15
CLOSE, SEND, ALLOC_UNBOUND = 3, 4, 6
GET_PARAM = 1
ENOSYS = -38
HYPERCALL_SIZE = 32

SECTOR_SIZE = 512
BLKIF_READ, BLKIF_WRITE, BLKIF_BARRIER, BLKIF_FLUSH = 0, 1, 2, 3
BLKIF_OK, BLKIF_ERROR, BLKIF_NOT_SUPPORTED = 0, -1, -2
_RING_HEADER = 64
_SLOT = 112
_SLOTS = 32  # as many of them as a power of two allows in a page
_SEGMENTS_MAX = 11
_REQUEST = struct.Struct("<BBHxxxxQQ")
_SEGMENT = struct.Struct("<IBBxx")
_RESPONSE = struct.Struct("<QBxh")
_MASK32 = 0xFFFFFFFF

_CLEARED = b"\xff" * (2 * RING_SIZE)
_INDICES = 2 * RING_SIZE


class GuestPlatform(XenPlatform):
    """The Xen platform of a guest's machine.

    blkif  whether the front ends of block devices are guests
    """

    __slots__ = ("_numbers", "_shown", "blkif", "machine")

    def __init__(
        self,
        machine: Machine,
        trace: Trace,
        failures: Failures,
        reconnection: bool,
        device_kinds: tuple[str, ...],
        blkif: bool = True,
    ) -> None:
        self.blkif = blkif
        super().__init__(trace, failures, reconnection, device_kinds)
        self.machine = machine
        self._numbers: dict[tuple[int, int], int] = {}  # (space, index) → page of the machine
        self._shown: dict[int, tuple[int, int]] = {}  # the physmap as the machine shows it
        hypervisor = self.hypervisor
        number, page = self._take(bytes(hypervisor.pages[STORE_GFN]))
        machine.place_page(number, STORE_GFN * PAGE)
        hypervisor.pages[STORE_GFN] = self.store_page = page
        self.ring.page = page
        self._numbers[SHARED_INFO, 0], page = self._take(bytes(hypervisor.shared_info))
        hypervisor.shared_info = page
        self.event_channels.shared_info = page
        for index in range(FRAMES):
            self._numbers[GRANT_TABLE, index], self.grant_table.frames[index] = self._take(bytes(PAGE))
        self.memory_page = self._page_of_the_guest

    def _take(self, content: bytes) -> tuple[int, bytearray]:
        """A page of the machine with this content. It is used like a bytearray, which it is but for its type."""
        number, view = self.machine.make_page()
        view[:] = content
        return number, cast(bytearray, view)

    def _page_of_the_guest(self, gfn: int) -> bytearray:
        page = None if gfn in self.hypervisor.pages else self.machine.physical(gfn * PAGE)
        return self.hypervisor.memory_page(gfn) if page is None else cast(bytearray, page)

    def show_physmap(self) -> None:
        """Let the guest see the hypervisor's pages where the physmap has them now."""
        machine, shown, physmap = self.machine, self._shown, self.hypervisor.physmap
        for gfn in [gfn for gfn, what in shown.items() if physmap.get(gfn) != what]:
            machine.remove_page(gfn * PAGE)
            del shown[gfn]
        for gfn, what in physmap.items():
            if gfn not in shown:
                machine.place_page(self._numbers[what], gfn * PAGE)
                shown[gfn] = what

    def look(self, agent: str) -> None:
        """Whether the guest has just reset the ring in the older way: both rings 0xff, all indices 0 (RESET).

        To be called before anything happens outside of the guest's code; `agent` is who has run until now.
        """
        ring = self.ring
        if ring.user and not ring.server_features & RECONNECTION_FEATURE:
            page = self.store_page
            if page[0] == 0xFF and not any(page[_INDICES : _INDICES + 16]) and page[: 2 * RING_SIZE] == _CLEARED:
                ring.record_reset(agent, "cleared")

    def hypercalls(self, agent: str) -> Hypercalls:
        """The hypercalls as `agent` makes them. Guests see at once what they change."""
        return _ShownHypercalls(self, agent)

    def _new_device(self, kind: str) -> Backend:
        device = super()._new_device(kind)
        number = int(device.path.rsplit("/", 1)[1])
        backend = BlockBackend if kind == "block" and self.blkif else GuestBackend
        device = self.devices[-1] = self._by_path[device.path] = backend(self, kind, number)
        self.xenstored.observed[device.frontend_path + "/state"] = device.frontend_changed
        return device


class _ShownHypercalls(Hypercalls):
    """Hypercalls of a guest's machine."""

    __slots__ = ("_platform",)

    def __init__(self, platform: GuestPlatform, agent: str) -> None:
        super().__init__(platform, agent)
        self._platform = platform

    def add_to_physmap(self, space: int, index: int, gfn: int) -> None:
        """Place a page of the hypervisor where the guest can see it."""
        super().add_to_physmap(space, index, gfn)
        self._platform.show_physmap()

    def remove_from_physmap(self, gfn: int) -> None:
        """Take such a page away."""
        super().remove_from_physmap(gfn)
        self._platform.show_physmap()


class GuestBackend(Backend):
    """A backend whose front end may have granted its pages by writing to memory."""

    __slots__ = ()

    def _connect(self) -> bool:
        if not super()._connect():
            return False
        table = self._platform.grant_table
        for reference in self._references:
            # Nobody told whose the entry is, if a guest has written it itself: it belongs to who owns the table.
            mapping = table.mapped[reference]
            mapping.owner = mapping.owner or table.user
        return True


class BlockBackend(GuestBackend):
    """A block backend that speaks blkif with guests, and the model's own short form with the operating system.

    sectors  what was written, by sector; the rest of the disk tells its own number in every sector
    """

    __slots__ = ("_consumed", "_produced", "sectors")

    def __init__(self, platform: XenPlatform, kind: str, number: int) -> None:
        super().__init__(platform, kind, number)
        self.sectors: dict[int, bytes] = {}
        self._consumed = self._produced = 0

    def _connect(self) -> bool:
        self._consumed = self._produced = 0
        return super()._connect()

    def _serve(self) -> None:
        if self.frontend_agent == OPERATING_SYSTEM or not self._frames:
            super()._serve()
            return
        page = self._platform.memory_page(self._frames[0])
        (produced,) = struct.unpack_from("<I", page, 0)
        if (produced - self._consumed) & _MASK32 > _SLOTS:
            return  # the front end has broken the protocol; a real backend stops to look as well
        while self._consumed != produced:
            slot = _RING_HEADER + self._consumed % _SLOTS * _SLOT
            operation, segments, _, request_id, sector = _REQUEST.unpack_from(page, slot)
            status = self._do(bytes(page[slot : slot + _SLOT]), operation, segments, sector)
            slot = _RING_HEADER + self._produced % _SLOTS * _SLOT
            _RESPONSE.pack_into(page, slot, request_id, operation, status)
            self._consumed = (self._consumed + 1) & _MASK32
            self._produced = (self._produced + 1) & _MASK32
        # req_event: the next request is to be announced; rsp_prod.
        struct.pack_into("<II", page, 4, (self._consumed + 1) & _MASK32, self._produced)
        self._platform.event_channels.raise_event(self._port, self)

    def _do(self, request: bytes, operation: int, segments: int, sector: int) -> int:
        """One request; its status."""
        if operation in (BLKIF_BARRIER, BLKIF_FLUSH) and not segments:
            return BLKIF_OK
        if operation not in (BLKIF_READ, BLKIF_WRITE):
            return BLKIF_NOT_SUPPORTED
        if not 0 < segments <= _SEGMENTS_MAX:
            return BLKIF_ERROR
        for index in range(segments):
            reference, first, last = _SEGMENT.unpack_from(request, 24 + index * 8)
            page = self._granted(reference, operation == BLKIF_READ)
            if page is None or not first <= last < PAGE // SECTOR_SIZE:
                return BLKIF_ERROR
            for place in range(first, last + 1):
                if sector >= SECTORS:
                    return BLKIF_ERROR
                data = slice(place * SECTOR_SIZE, (place + 1) * SECTOR_SIZE)
                if operation == BLKIF_READ:
                    page[data] = self.sectors.get(sector) or sector.to_bytes(8, "little") * (SECTOR_SIZE // 8)
                else:
                    self.sectors[sector] = bytes(page[data])
                sector += 1
        return BLKIF_OK

    def _granted(self, reference: int, for_writing: bool) -> bytearray | None:
        """The page behind a grant, for the time of one copy; None where it is not granted like that."""
        table = self._platform.grant_table
        if not 0 <= reference < ENTRIES or table.places[reference // ENTRIES_PER_FRAME] is None:
            return None
        frame = table.frames[reference // ENTRIES_PER_FRAME]
        flags, domain, gfn = struct.unpack_from("<HHI", frame, reference % ENTRIES_PER_FRAME * 8)
        if not flags & PERMIT_ACCESS or domain != PEER_DOMAIN or (for_writing and flags & READONLY):
            return None
        return self._platform.memory_page(gfn)


class HypercallPage:
    """The page of hypercalls, in the code that the guest sees.

    address  what the Xen info HOB names
    """

    __slots__ = ("_calls", "_images", "_machine", "_platform", "address")

    def __init__(self, convention: CallingConvention, images: Images, platform: GuestPlatform) -> None:
        self._machine: Machine = convention.machine
        self._images = images
        self._platform = platform
        self._calls: dict[str, Hypercalls] = {}
        self.address = convention.reserve(PAGE, PAGE)
        targets = [convention.write_hypercall(lambda *_: ENOSYS)] * (PAGE // HYPERCALL_SIZE)
        targets[MEMORY_OP] = self._write(convention, self._memory_op)
        targets[EVENT_CHANNEL_OP] = self._write(convention, self._event_channel_op)
        targets[HVM_OP] = self._write(convention, self._hvm_op)
        convention.write_jumps(self.address, targets, HYPERCALL_SIZE)

    def _write(self, convention: CallingConvention, serve: Callable[[Hypercalls, int, int], int]) -> int:
        """Write what leads to `serve`; its address. The one place where a refusal becomes a negative errno."""

        def handler(operation: int, argument: int, _2: int, _3: int, _4: int, return_address: int) -> int:
            image = self._images.caller(return_address)
            agent = "guest" if image is None else image.name
            self._platform.look(agent)
            calls = self._calls.get(agent)
            if calls is None:
                calls = self._calls[agent] = self._platform.hypercalls(agent)
            try:
                return serve(calls, operation, argument)
            except HypercallError as error:
                return error.errno

        return convention.write_hypercall(handler)

    def _memory_op(self, calls: Hypercalls, operation: int, argument: int) -> int:
        machine = self._machine
        if operation == ADD_TO_PHYSMAP:
            calls.add_to_physmap(machine.u32(argument + 4), machine.u64(argument + 8), machine.u64(argument + 16))
        elif operation == REMOVE_FROM_PHYSMAP:
            calls.remove_from_physmap(machine.u64(argument + 8))
        else:
            return ENOSYS
        return 0

    def _event_channel_op(self, calls: Hypercalls, operation: int, argument: int) -> int:
        machine = self._machine
        if operation == SEND:
            calls.event_channel_send(machine.u32(argument))
        elif operation == CLOSE:
            calls.event_channel_close(machine.u32(argument))
        elif operation == ALLOC_UNBOUND:
            machine.put_u32(argument + 4, calls.event_channel_alloc_unbound(machine.u16(argument + 2)))
        else:
            return ENOSYS
        return 0

    def _hvm_op(self, calls: Hypercalls, operation: int, argument: int) -> int:
        if operation != GET_PARAM:
            return ENOSYS
        self._machine.put_u64(argument + 8, calls.hvm_get_param(self._machine.u32(argument + 4)))
        return 0
