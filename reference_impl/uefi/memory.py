"""Memory: the physical map with its key, page allocations, pools, and who owns what (UEFI 2.10 §7.2).

How it works
* The map is a sorted list of ranges, each of one memory type; equal neighbours are merged. Every conversion of a range
  moves the map key by one (`Kind.MAP_KEY`) and, after the operation, signals EFI_EVENT_GROUP_MEMORY_MAP_CHANGE. While
  the caller holds TPL_NOTIFY, as the core does where edk2 holds a lock, the notifications wait.
* Pages are taken from the top of free memory downwards.
* A pool holds pages of one memory type and hands out blocks of seven sizes. A block is larger than the request by a
  header and a tail. A request that no free block can serve takes a new page, and a page goes back as soon as none of
  its blocks is in use; requests that are too large for a block take pages of their own. Only these three move the key.
  So "a memory service was called" and "the key moved" are two different facts.

Addresses are not used twice, so that the use of freed memory stays recognisable:
* A pool has two sides. Its accounting is exactly edk2's: which block of which page serves a request, how a larger block
  is cut up, which page becomes empty. The address that the caller gets is another number, from a window above the
  physical memory that only ever counts up. No two buffers of a world share a byte of that window.
* Pages come from below everything that was handed out before, as long as there is such memory. Only then, and for
  AllocateAddress and AllocateMaxAddress requests below that mark, freed pages are used again.

Where edk2 differs
* Its memory for the map's own descriptors grows by a page now and then, which also moves the key. Not here.
* FreePages there frees up to the first page that is not allocated and then refuses, and it also frees the pages of a
  pool, whose blocks go on being used. Here a refusal changes nothing, and only what AllocatePages gave can be freed.
* No bins for runtime types, no guard pages. The granularity of all types is one page, as on X64.

Sources: UEFI 2.10 §7.2.1 to §7.2.5; edk2, MdeModulePkg/Core/Dxe/Mem/Pool.c and Page.c.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from reference_impl.trace import Kind
from reference_impl.uefi import guids
from reference_impl.uefi.core import service
from reference_impl.uefi.definitions import AllocateType, MemoryType
from reference_impl.uefi.status import EfiError, EfiStatus

if TYPE_CHECKING:
    from reference_impl.uefi.core import Core

Descriptor = tuple[int, int, int, int]
"""One line of the memory map: memory type, physical start, page count, attributes."""

_M = MemoryType

_INITIAL_RANGES: tuple[tuple[int, MemoryType], ...] = (
    (0x00000000, _M.BOOT_SERVICES_CODE),  # page 0 catches null pointers and is never free
    (0x00001000, _M.CONVENTIONAL),
    (0x000A0000, _M.RESERVED),
    (0x00100000, _M.CONVENTIONAL),
    (0x00800000, _M.ACPI_NVS),
    (0x00900000, _M.BOOT_SERVICES_DATA),
    (0x01500000, _M.CONVENTIONAL),
    (0x1E800000, _M.LOADER_CODE),
    (0x1E900000, _M.BOOT_SERVICES_DATA),
    (0x1F000000, _M.BOOT_SERVICES_CODE),
    (0x1F400000, _M.RUNTIME_SERVICES_DATA),
    (0x1F500000, _M.RUNTIME_SERVICES_CODE),
    (0x1F600000, _M.RESERVED),
    (0x1F700000, _M.ACPI_RECLAIM),
    (0x1F800000, _M.ACPI_NVS),
    (0x1FC00000, _M.MEMORY_MAPPED_IO),
)
"""512 MiB laid out as OVMF does it, each range up to the next one's start."""

MEMORY_END = 0x20000000
POOL_WINDOW = 0x1_0000_0000
"""Where the addresses of pool buffers begin."""

_INITIAL_STARTS = (*(start for start, _ in _INITIAL_RANGES), MEMORY_END)
_INITIAL_TYPES = (
    *(int(kind) for _, kind in _INITIAL_RANGES),
    -1,
)  # -1 ends the list, so that a neighbour always exists

_CONVENTIONAL = int(_M.CONVENTIONAL)
_BOOT_SERVICES_DATA = int(_M.BOOT_SERVICES_DATA)
_MAX_MEMORY_TYPE = int(_M.UNACCEPTED) + 1
_OEM_TYPE_MIN, _TYPE_MAX = 0x70000000, 0xFFFFFFFF
_NOT_ALLOCATABLE = (_CONVENTIONAL, int(_M.PERSISTENT), int(_M.UNACCEPTED))
_ANY_PAGES, _MAX_ADDRESS, _ADDRESS = (
    int(AllocateType.ANY_PAGES),
    int(AllocateType.MAX_ADDRESS),
    int(AllocateType.ADDRESS),
)

_PAGE, _PAGE_SHIFT = 4096, 12
_PAGE_MASK = -4096
_PAGE_COUNT_END = 1 << (64 - _PAGE_SHIFT)  # as many pages do not fit into 64 bits of bytes

DESCRIPTOR_SIZE_BYTES = 48
"""EFI_MEMORY_DESCRIPTOR has 40 bytes; edk2 answers 48, so that nobody computes with sizeof."""

_RAM_ATTRIBUTES = 0xF  # can be mapped UC, WC, WT, WB
_RUNTIME_ATTRIBUTE = 1 << 63
_ATTRIBUTES = {
    int(_M.RUNTIME_SERVICES_CODE): _RAM_ATTRIBUTES | _RUNTIME_ATTRIBUTE,
    int(_M.RUNTIME_SERVICES_DATA): _RAM_ATTRIBUTES | _RUNTIME_ATTRIBUTE,
    int(_M.PAL_CODE): _RAM_ATTRIBUTES | _RUNTIME_ATTRIBUTE,
    int(_M.MEMORY_MAPPED_IO): 1 | _RUNTIME_ATTRIBUTE,
    int(_M.MEMORY_MAPPED_IO_PORT_SPACE): 1 | _RUNTIME_ATTRIBUTE,
}

BLOCK_SIZES = (128, 256, 384, 640, 1024, 1664, 2688)
"""Bytes of a pool block by class. edk2's table goes on, but what needs more than these takes pages of its own."""

POOL_OVERHEAD = 40
"""Bytes of a block's header (24) and tail (16)."""

_LARGE = len(BLOCK_SIZES)  # stands in for a class where a request has pages of its own, and for a whole page to cut up
_SMALL_MAX = BLOCK_SIZES[-1] - POOL_OVERHEAD
_OEM_POOL_SIZE_BYTES = 232  # what edk2 allocates to keep the pool of an OEM or operating system memory type

_CLASS_OF = bytes(
    next(index for index, size in enumerate(BLOCK_SIZES) if size >= eighths * 8 + POOL_OVERHEAD)
    for eighths in range((_SMALL_MAX >> 3) + 1)
)
"""Class of a request, by its size in units of 8 bytes, rounded up."""


def _cut(index: int, larger: int) -> tuple[tuple[int, int], ...]:
    """The blocks (class, offset) left over when a block of class `larger` serves a request of class `index`."""
    end = _PAGE if larger == _LARGE else BLOCK_SIZES[larger]
    offset = BLOCK_SIZES[index]
    rest = []
    for kind in range(larger - 1, -1, -1):
        while offset + BLOCK_SIZES[kind] <= end:
            rest.append((kind, offset))
            offset += BLOCK_SIZES[kind]
    assert offset == end
    return tuple(rest)


_CUTS = tuple(
    tuple(_cut(index, larger) if larger > index else () for larger in range(_LARGE + 1)) for index in range(_LARGE)
)

_MAP_KEY, _MISUSE = int(Kind.MAP_KEY), int(Kind.MEMORY)
_MAP_CHANGE = guids.EVENT_GROUP_MEMORY_MAP_CHANGE
_INVALID_PARAMETER = EfiStatus.INVALID_PARAMETER
_NOT_FOUND = EfiStatus.NOT_FOUND
_OUT_OF_RESOURCES = EfiStatus.OUT_OF_RESOURCES


class MemoryMapTooSmall(EfiError):  # noqa: N818 - named for the refusal
    """EFI_BUFFER_TOO_SMALL of GetMemoryMap, with what the caller learns from it.

    size_bytes             the size that the map needs now
    map_key                the current key
    descriptor_size_bytes  the size of one descriptor
    """

    def __init__(self, size_bytes: int, map_key: int) -> None:
        super().__init__(EfiStatus.BUFFER_TOO_SMALL)
        self.size_bytes = size_bytes
        self.map_key = map_key
        self.descriptor_size_bytes = DESCRIPTOR_SIZE_BYTES


class Memory:
    """All memory of one world.

    map_key     the memory map's key; every conversion of a range moves it
    terminated  ExitBootServices has accepted the key. Nothing is refused because of that: as in edk2, an EXIT handler
                that allocates still gets its memory, and moves the key behind the operating system's back.
    """

    __slots__ = (
        "_core",
        "_freed_pages",
        "_freed_pool",
        "_fresh_end",
        "_next_address",
        "_oem_pools",
        "_pages",
        "_pool_pages",
        "_pools",
        "_starts",
        "_types",
        "_used",
        "map_key",
        "terminated",
    )

    def __init__(self, core: Core) -> None:
        self._core = core
        self.map_key = 1
        self.terminated = False
        # The map: range i reaches from _starts[i] to _starts[i + 1] and has the type _types[i].
        self._starts = list(_INITIAL_STARTS)
        self._types = list(_INITIAL_TYPES)
        self._fresh_end = MEMORY_END  # pages below this were not handed out yet, but for AllocateAddress and low maxima
        self._pages: dict[int, tuple[int, int, str]] = {}  # start → page count, memory type, owner
        self._freed_pages: dict[int, str] = {}  # start → last owner
        self._next_address = POOL_WINDOW
        self._used: dict[int, tuple[int, int, int, str, int]] = {}  # address → memory type, class, block, owner, size
        self._freed_pool: dict[int, str] = {}  # address → last owner
        self._pools: dict[int, list[list[int]]] = {}  # memory type → free blocks of each class, the next one last
        self._pool_pages: dict[int, int] = {}  # page that a pool holds → number of its blocks in use
        self._oem_pools: dict[int, list[int]] = {}  # OEM memory type → address of the core's record, buffers in use

    # ---- pools ----------------------------------------------------------------------------------------------------

    def allocate_pool(self, memory_type: int, size_bytes: int, owner: str) -> int:
        """A buffer of `size_bytes` for `owner`; its address, a multiple of 16.

        EFI_INVALID_PARAMETER: no such memory type, or one that cannot be allocated.
        EFI_OUT_OF_RESOURCES: no pages left.
        """
        pool = self._pools.get(memory_type)
        if pool is not None and size_bytes <= _SMALL_MAX:
            index = _CLASS_OF[(size_bytes + 7) >> 3]
            free = pool[index]
            if free and memory_type < _OEM_TYPE_MIN:
                block = free.pop()
                self._pool_pages[block & _PAGE_MASK] += 1
                address = self._next_address
                self._next_address = address + ((size_bytes + POOL_OVERHEAD + 15) & -16)
                self._used[address] = (memory_type, index, block, owner, size_bytes)
                return address
        if not _is_allocatable(memory_type):
            raise EfiError(_INVALID_PARAMETER)
        key = self.map_key
        try:
            return self._allocate(memory_type, size_bytes, owner)
        finally:
            if self.map_key != key:
                self._notify()

    def _allocate(self, memory_type: int, size_bytes: int, owner: str) -> int:
        """Serve any request that has a valid memory type; the notification is left to the caller."""
        pool = self._pools.get(memory_type)
        if pool is None:
            if memory_type >= _OEM_TYPE_MIN:
                record = self._allocate(_BOOT_SERVICES_DATA, _OEM_POOL_SIZE_BYTES, "DxeCore")
                self._oem_pools[memory_type] = [record, 0]
            pool = self._pools[memory_type] = [[] for _ in BLOCK_SIZES]
        if size_bytes <= _SMALL_MAX:
            index = _CLASS_OF[(size_bytes + 7) >> 3]
            free = pool[index]
            block = free.pop() if free else self._cut_block(memory_type, pool, index)
            self._pool_pages[block & _PAGE_MASK] += 1
        else:
            index = _LARGE
            block = self._take_pages(_large_page_count(size_bytes), memory_type, MEMORY_END)
        if memory_type >= _OEM_TYPE_MIN:
            self._oem_pools[memory_type][1] += 1
        address = self._next_address
        self._next_address = address + ((size_bytes + POOL_OVERHEAD + 15) & -16)
        self._used[address] = (memory_type, index, block, owner, size_bytes)
        return address

    def _cut_block(self, memory_type: int, pool: list[list[int]], index: int) -> int:
        """A block of class `index`, cut from the head of the smallest larger one that is free, or of a new page."""
        for larger in range(index + 1, _LARGE):
            if pool[larger]:
                block = pool[larger].pop()
                break
        else:
            larger = _LARGE
            block = self._take_pages(1, memory_type, MEMORY_END)
            self._pool_pages[block] = 0
        for rest, offset in _CUTS[index][larger]:
            pool[rest].append(block + offset)
        return block

    def free_pool(self, address: int, owner: str) -> None:
        """Give a pool buffer back. Freeing what another agent owns is recorded ("foreign-free") and done.

        EFI_INVALID_PARAMETER: `address` is no buffer in use; recorded as "double-free" if it once was one.
        """
        found = self._used.pop(address, None)
        if found is None:
            self._refuse_free(address, owner, self._freed_pool, _INVALID_PARAMETER)
        memory_type, index, block, holder, size_bytes = found
        if holder != owner:
            self._core.trace.add(_MISUSE, owner, "foreign-free", (address, holder))
        self._freed_pool[address] = holder
        if index != _LARGE:
            page = block & _PAGE_MASK
            in_use = self._pool_pages[page] - 1
            self._pool_pages[page] = in_use
            pool = self._pools[memory_type]
            pool[index].append(block)
            if in_use and memory_type < _OEM_TYPE_MIN:
                return
            if not in_use:
                del self._pool_pages[page]
                for blocks in pool:
                    blocks[:] = [other for other in blocks if other & _PAGE_MASK != page]
                self._convert(page, page + _PAGE, _CONVENTIONAL)
                self._notify()
        else:
            self._convert(block, block + (_large_page_count(size_bytes) << _PAGE_SHIFT), _CONVENTIONAL)
            self._notify()
        if memory_type >= _OEM_TYPE_MIN:
            self._forget_oem_buffer(memory_type)

    def _forget_oem_buffer(self, memory_type: int) -> None:
        """Count one buffer less; with the last one goes the core's record of that memory type."""
        kept = self._oem_pools[memory_type]
        kept[1] -= 1
        if not kept[1]:
            del self._oem_pools[memory_type], self._pools[memory_type]
            self.free_pool(kept[0], "DxeCore")

    # ---- pages ----------------------------------------------------------------------------------------------------

    def allocate_pages(self, allocate_type: int, memory_type: int, page_count: int, address: int, owner: str) -> int:
        """Pages for `owner`; the address of the first.

        allocate_type  ANY_PAGES: anywhere; MAX_ADDRESS: not above `address`; ADDRESS: exactly at `address`

        EFI_INVALID_PARAMETER: no such allocate type; no such memory type, or one that cannot be allocated.
        EFI_NOT_FOUND: ADDRESS with an address that is not aligned or 0, with no page, or where not all pages are free.
        EFI_OUT_OF_RESOURCES: the others find no room, or ask for no page.
        """
        if allocate_type not in (_ANY_PAGES, _MAX_ADDRESS, _ADDRESS) or not _is_allocatable(memory_type):
            raise EfiError(_INVALID_PARAMETER)
        if allocate_type == _ADDRESS:
            end = address + (page_count << _PAGE_SHIFT)
            if address & ~_PAGE_MASK or not 0 < address < end <= MEMORY_END:
                raise EfiError(_NOT_FOUND)
            position = bisect_right(self._starts, address) - 1
            if self._types[position] != _CONVENTIONAL or end > self._starts[position + 1]:
                raise EfiError(_NOT_FOUND)
            start = address
            self._convert(start, end, memory_type)
        else:
            limit = min(MEMORY_END, (address + 1) & _PAGE_MASK) if allocate_type == _MAX_ADDRESS else MEMORY_END
            start = self._take_pages(page_count, memory_type, limit)
        self._pages[start] = (page_count, memory_type, owner)
        self._freed_pages.pop(start, None)
        self._notify()
        return start

    def free_pages(self, address: int, page_count: int, owner: str) -> None:
        """Give pages back: an allocation, a part of one, or neighbouring ones together.

        Freeing what another agent owns is recorded ("foreign-free") and done.

        EFI_NOT_FOUND: `address` lies outside the memory.
        EFI_INVALID_PARAMETER: `address` is not aligned; no page, or more than the address space has.
        EFI_NOT_FOUND: not all of these pages are allocated; recorded as "double-free" if they once began an allocation.
        """
        if not 0 <= address < MEMORY_END:
            raise EfiError(_NOT_FOUND)
        if address & ~_PAGE_MASK or not 0 < page_count < _PAGE_COUNT_END:
            raise EfiError(_INVALID_PARAMETER)
        end = address + (page_count << _PAGE_SHIFT)
        touched = [
            (start, count, memory_type, holder)
            for start, (count, memory_type, holder) in self._pages.items()
            if start < end and start + (count << _PAGE_SHIFT) > address
        ]
        covered = sum(min(end, start + (count << _PAGE_SHIFT)) - max(address, start) for start, count, _, _ in touched)
        if covered != end - address:
            self._refuse_free(address, owner, self._freed_pages, _NOT_FOUND)
        for start, count, memory_type, holder in touched:
            if holder != owner:
                self._core.trace.add(_MISUSE, owner, "foreign-free", (start, holder))
            del self._pages[start]
            if start < address:
                self._pages[start] = ((address - start) >> _PAGE_SHIFT, memory_type, holder)
            else:
                self._freed_pages[start] = holder
            allocation_end = start + (count << _PAGE_SHIFT)
            if end < allocation_end:
                self._pages[end] = ((allocation_end - end) >> _PAGE_SHIFT, memory_type, holder)
        while address < end:  # one conversion, and so one step of the key, for each range of the map
            range_end = min(end, self._starts[bisect_right(self._starts, address)])
            self._convert(address, range_end, _CONVENTIONAL)
            address = range_end
        self._notify()

    def memory_map(self) -> tuple[Descriptor, ...]:
        """The map as the operating system gets it: neighbours of the same type and attributes are one descriptor."""
        starts = self._starts
        attributes = _ATTRIBUTES
        return tuple(
            (kind, start, (end - start) >> _PAGE_SHIFT, attributes.get(kind, _RAM_ATTRIBUTES))
            for kind, start, end in zip(self._types, starts, starts[1:], strict=False)
        )

    def memory_map_size_bytes(self) -> int:
        """The buffer that GetMemoryMap needs now."""
        return (len(self._starts) - 1) * DESCRIPTOR_SIZE_BYTES

    def terminate(self, map_key: int) -> None:
        """ExitBootServices' check: accept the key and mark the map as handed over.

        EFI_INVALID_PARAMETER: the map has changed since that key was given.
        """
        # edk2 also checks here that runtime ranges are aligned; with a granularity of one page they always are.
        if map_key != self.map_key:
            raise EfiError(_INVALID_PARAMETER)
        self.terminated = True

    # ---- ownership ------------------------------------------------------------------------------------------------

    def is_live(self, address: int) -> bool:
        """Whether an allocation of pool or pages starts at `address`. No address lives twice, see the module's text."""
        return address in self._used or address in self._pages

    def owner_of(self, address: int) -> str:
        """Owner of the allocation that starts at `address`, "" if there is none."""
        if address in self._used:
            return self._used[address][3]
        return self._pages[address][2] if address in self._pages else ""

    def last_owner_of(self, address: int) -> str:
        """Owner of the allocation that started at `address` and was freed, "" if there was none."""
        return self._freed_pool.get(address) or self._freed_pages.get(address, "")

    def live_count(self, owner: str) -> int:
        """How many allocations `owner` has: pool buffers, and runs of pages."""
        buffers = sum(1 for entry in self._used.values() if entry[3] == owner)
        return buffers + sum(1 for _, _, holder in self._pages.values() if holder == owner)

    def oem_type_count(self) -> int:
        """OEM memory types with a pool: for each of them the core holds a record of its own."""
        return len(self._oem_pools)

    def _refuse_free(self, address: int, owner: str, freed: dict[int, str], status: EfiStatus) -> NoReturn:
        if address in freed:
            self._core.trace.add(_MISUSE, owner, "double-free", (address, freed[address]))
        raise EfiError(status)

    # ---- the map --------------------------------------------------------------------------------------------------

    def _take_pages(self, page_count: int, memory_type: int, limit: int) -> int:
        """Convert the highest free pages that end at `limit` or below, and never used ones first. Gives their start.

        Raises EfiError(OUT_OF_RESOURCES).
        """
        size = page_count << _PAGE_SHIFT
        start = 0
        if size > 0:
            fresh_end = self._fresh_end
            if limit >= fresh_end:
                start = self._find(size, fresh_end)
                if start:
                    self._fresh_end = start
            start = start or self._find(size, limit)
        if not start:
            raise EfiError(_OUT_OF_RESOURCES)
        self._convert(start, start + size, memory_type)
        return start

    def _find(self, size: int, limit: int) -> int:
        """Start of the highest `size` free bytes that end at `limit` or below; 0 if there are none."""
        starts, types = self._starts, self._types
        for position in range(bisect_right(starts, limit - 1) - 1, -1, -1):
            if types[position] == _CONVENTIONAL:
                start = min(starts[position + 1], limit) - size
                if start >= starts[position]:
                    return start
        return 0

    def _convert(self, start: int, end: int, memory_type: int) -> None:
        """Give the pages from `start` to `end`, all inside one range, another type; merge neighbours; move the key."""
        starts, types = self._starts, self._types
        first = bisect_right(starts, start) - 1
        after = first + 1
        range_start, range_end, old_type = starts[first], starts[after], types[first]
        new_starts, new_types = [start], [memory_type]
        if range_start < start:
            new_starts.insert(0, range_start)
            new_types.insert(0, old_type)
        elif first and types[first - 1] == memory_type:
            first -= 1
            new_starts[0] = starts[first]
        if end < range_end:
            new_starts.append(end)
            new_types.append(old_type)
        elif types[after] == memory_type:
            after += 1
        starts[first:after] = new_starts
        types[first:after] = new_types
        key = self.map_key
        self.map_key = key + 1
        core = self._core
        core.trace.add(_MAP_KEY, core.outer_agent, "bump", (key, key + 1))

    def _notify(self) -> None:
        """Tell whoever listens that the map has changed, once for all changes of one operation.

        edk2 signals at each change, but holds a lock meanwhile; what is queued already is only queued again.
        """
        self._core.events.signal_group(_MAP_CHANGE)

    # ---- our own checks -------------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Assert what must hold between any two operations, whatever was asked for."""
        starts, types = self._starts, self._types
        assert starts[0] == 0
        assert starts[-1] == MEMORY_END
        assert len(starts) == len(types)
        assert types[-1] == -1
        assert all(low < high for low, high in pairwise(starts)), "ranges out of order"
        assert all(low != high for low, high in pairwise(types)), "equal neighbours not merged"
        assert all(start & ~_PAGE_MASK == 0 for start in starts)

        taken = [(start, count, kind) for start, (count, kind, _) in self._pages.items()]
        blocks: dict[int, list[tuple[int, int]]] = {page: [] for page in self._pool_pages}
        in_use = dict.fromkeys(self._pool_pages, 0)
        pool_of: dict[int, int] = {}
        for kind, index, block, _, size_bytes in self._used.values():
            if index == _LARGE:
                taken.append((block, _large_page_count(size_bytes), kind))
            else:
                page = block & _PAGE_MASK
                assert pool_of.setdefault(page, kind) == kind, "two pools share a page"
                blocks[page].append((block, BLOCK_SIZES[index]))
                in_use[page] += 1
        assert in_use == self._pool_pages, "blocks in use are counted wrongly"
        assert all(in_use.values()), "a pool keeps an empty page"
        for kind, pool in self._pools.items():
            for size, free in zip(BLOCK_SIZES, pool, strict=True):
                for block in free:
                    assert pool_of[block & _PAGE_MASK] == kind, "a free block lies in another pool's page"
                    blocks[block & _PAGE_MASK].append((block, size))
        for page, tiles in blocks.items():
            position = page
            for block, size in sorted(tiles):
                assert block == position, "blocks of a page overlap, or one is lost"
                position += size
            assert position == page + _PAGE
            taken.append((page, 1, pool_of[page]))

        expected = dict[int, int]()
        for start, end, kind in zip(_INITIAL_STARTS, _INITIAL_STARTS[1:], _INITIAL_TYPES, strict=False):
            expected[kind] = expected.get(kind, 0) + ((end - start) >> _PAGE_SHIFT)
        for start, count, kind in taken:
            position = bisect_right(starts, start) - 1
            assert types[position] == kind, "an allocation has another type in the map"
            assert start + (count << _PAGE_SHIFT) <= starts[position + 1], "an allocation leaves its range"
            expected[kind] = expected.get(kind, 0) + count
            expected[_CONVENTIONAL] -= count
        seen: dict[int, int] = {}
        for kind, _, count, _ in self.memory_map():
            seen[kind] = seen.get(kind, 0) + count
        assert seen == {kind: count for kind, count in expected.items() if count}, "pages of a type are counted wrongly"
        assert sorted(self._oem_pools) == sorted(kind for kind in self._pools if kind >= _OEM_TYPE_MIN)


def _is_allocatable(memory_type: int) -> bool:
    """Whether a memory type exists and may be allocated (UEFI 2.10 §7.2.1, and edk2 for EfiConventionalMemory)."""
    if memory_type < _MAX_MEMORY_TYPE:
        return memory_type >= 0 and memory_type not in _NOT_ALLOCATABLE
    return _OEM_TYPE_MIN <= memory_type <= _TYPE_MAX


def _large_page_count(size_bytes: int) -> int:
    """Pages of a pool request that is too large for a block."""
    return (((size_bytes + 7) & -8) + POOL_OVERHEAD + _PAGE - 1) >> _PAGE_SHIFT


class MemoryServices:
    """The memory services of one image's boot services table. `out` False: the caller passed NULL for the answer."""

    __slots__ = ()

    core: Core
    agent: str
    image_handle: int

    @service("AllocatePool")
    def allocate_pool(self, memory_type: int, size_bytes: int, out: bool = True) -> int:
        """A buffer of at least `size_bytes`; its address (UEFI 2.10 §7.2.4).

        EFI_INVALID_PARAMETER: no such memory type, or one that cannot be allocated; `out` is NULL.
        EFI_OUT_OF_RESOURCES: not enough memory.
        """
        if not out:
            raise EfiError(_INVALID_PARAMETER)
        return self.core.memory.allocate_pool(memory_type, size_bytes, self.agent)

    @service("FreePool")
    def free_pool(self, address: int) -> None:
        """Give a pool buffer back (UEFI 2.10 §7.2.5).

        EFI_INVALID_PARAMETER: `address` is no pool buffer in use.
        """
        self.core.memory.free_pool(address, self.agent)

    @service("AllocatePages")
    def allocate_pages(
        self, allocate_type: int, memory_type: int, page_count: int, address: int = 0, out: bool = True
    ) -> int:
        """Pages of 4 KiB; the address of the first (UEFI 2.10 §7.2.1).

        EFI_INVALID_PARAMETER: no such allocate type; no such memory type, or one that cannot be allocated; `out` NULL.
        EFI_NOT_FOUND: the pages at the wanted address are not free.
        EFI_OUT_OF_RESOURCES: not enough memory, or not enough below the wanted maximum.
        """
        if not out:
            raise EfiError(_INVALID_PARAMETER)
        return self.core.memory.allocate_pages(allocate_type, memory_type, page_count, address, self.agent)

    @service("FreePages")
    def free_pages(self, address: int, page_count: int) -> None:
        """Give pages back, also a part of what was allocated (UEFI 2.10 §7.2.2).

        EFI_NOT_FOUND: the pages were not allocated with AllocatePages.
        EFI_INVALID_PARAMETER: `address` is not aligned, or `page_count` makes no sense.
        """
        self.core.memory.free_pages(address, page_count, self.agent)

    @service("GetMemoryMap")
    def get_memory_map(self, size_bytes: int | None, out: bool = True) -> tuple[tuple[Descriptor, ...], int, int]:
        """Descriptors, map key, bytes of one descriptor (UEFI 2.10 §7.2.3). Does not move the key.

        size_bytes  of the caller's buffer; None where the caller passed NULL for it

        EFI_INVALID_PARAMETER: `size_bytes` is NULL.
        EFI_BUFFER_TOO_SMALL: the buffer is too small; `MemoryMapTooSmall` tells what it must be.
        EFI_INVALID_PARAMETER: it is large enough, but `out` is NULL.
        """
        memory = self.core.memory
        if size_bytes is None:
            raise EfiError(_INVALID_PARAMETER)
        needed = memory.memory_map_size_bytes()
        if size_bytes < needed:
            raise MemoryMapTooSmall(needed, memory.map_key)
        if not out:
            raise EfiError(_INVALID_PARAMETER)
        return memory.memory_map(), memory.map_key, DESCRIPTOR_SIZE_BYTES
