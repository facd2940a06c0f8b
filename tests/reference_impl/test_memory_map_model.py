"""The memory map against a simple independent model: one type for each page, and pools as plain lists of blocks."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

from reference_impl.failures import Failures
from reference_impl.trace import Kind, Trace
from reference_impl.uefi.core import Core
from reference_impl.uefi.memory import Memory
from reference_impl.uefi.status import EfiError, EfiStatus

FREE = 7
SIZES = (128, 256, 384, 640, 1024, 1664, 2688)
MEMORY_TYPES = st.sampled_from([0, 2, 4, 6, 10, 0x70000000])
ODD_PAGES = [0, 1, 0x9E, 0x100, 0x102, 0x7FF, 0x20000]
OWNERS = st.sampled_from(["one", "two"])


class ModelPool:
    """One memory type's pool: free blocks (size, page, offset), newest first, and how many are in use of each page."""

    def __init__(self) -> None:
        self.free: list[tuple[int, int, int]] = []
        self.in_use: dict[int, int] = {}


class Model:
    """Pages by number; everything is looked for the slow way."""

    def __init__(self, memory_map) -> None:
        self.pages = [kind for kind, _, count, _ in memory_map for _ in range(count)]
        self.mark = len(self.pages)  # pages below were never handed out from the top
        self.pools: dict[int, ModelPool] = {}
        self.oem: dict[int, list] = {}
        self.key = 0

    def set(self, first: int, count: int, kind: int) -> None:
        """Another type for some pages: one step of the key for each run of one type."""
        self.key += sum(1 for _ in groupby(self.pages[first : first + count]))
        self.pages[first : first + count] = [kind] * count

    def highest(self, count: int, end: int) -> int | None:
        """First page of the highest free run of `count` pages that ends at page `end` or below."""
        run = 0
        for page in range(end - 1, -1, -1):
            run = run + 1 if self.pages[page] == FREE else 0
            if run == count:
                return page
        return None

    def take(self, count: int, kind: int, end: int) -> int | None:
        """Pages from the top: never used ones first, then any."""
        page = self.highest(count, self.mark) if end >= self.mark else None
        if page is not None:
            self.mark = page
        else:
            page = self.highest(count, end)
        if page is not None:
            self.set(page, count, kind)
        return page

    def allocate(self, kind: int, size: int):
        """A pool request: what `free` needs to give it back; None if there is no memory."""
        if kind >= 0x70000000 and kind not in self.oem:
            record = self.allocate(4, 232)
            if record is None:
                return None
            self.oem[kind] = [record, 0]
        needed = (size + 7) // 8 * 8 + 40
        if needed > SIZES[-1]:
            count = -(-needed // 4096)
            page = self.take(count, kind, len(self.pages))
            if page is None:
                return None
            answer = ("pages", kind, page, count)
        else:
            pool = self.pools.setdefault(kind, ModelPool())
            needed = min(size for size in SIZES if size >= needed)
            larger = sorted((block[0], position) for position, block in enumerate(pool.free) if block[0] >= needed)
            if larger:
                size, page, offset = pool.free.pop(larger[0][1])
            else:
                page = self.take(1, kind, len(self.pages))
                if page is None:
                    return None
                size, offset = 4096, 0
                pool.in_use[page] = 0
            pool.in_use[page] += 1
            rest = offset + needed
            while rest < offset + size:
                piece = max(s for s in SIZES if s <= offset + size - rest and (s < size))
                pool.free.insert(0, (piece, page, rest))
                rest += piece
            answer = ("block", kind, page, offset, needed)
        if kind in self.oem:
            self.oem[kind][1] += 1
        return answer

    def release(self, allocation) -> None:
        """Give back what `allocate` answered."""
        what, kind, page, *rest = allocation
        if what == "pages":
            self.set(page, rest[0], FREE)
        else:
            pool = self.pools[kind]
            pool.free.insert(0, (rest[1], page, rest[0]))
            pool.in_use[page] -= 1
            if not pool.in_use[page]:
                del pool.in_use[page]
                pool.free = [block for block in pool.free if block[1] != page]
                self.set(page, 1, FREE)
        if kind in self.oem:
            self.oem[kind][1] -= 1
            if not self.oem[kind][1]:
                self.release(self.oem.pop(kind)[0])


class MemoryMachine(RuleBasedStateMachine):
    """The same calls to both; after each one the keys agree, and in the end the maps do."""

    buffers = Bundle("buffers")
    runs = Bundle("runs")

    @initialize()
    def start(self) -> None:
        """Both begin with the same map."""
        trace = Trace()
        self.core = Core(trace, Failures(trace, lambda call: True))
        self.memory = Memory(self.core)  # one in which the core itself has nothing yet
        trace.records.clear()
        self.model = Model(self.memory.memory_map())
        self.offset = self.memory.map_key
        self.seen: set[int] = set()

    def agree(self) -> None:
        """The keys moved alike, each step is recorded, and our own checks hold."""
        assert self.memory.map_key - self.offset == self.model.key
        assert sum(1 for record in self.core.trace.records if record[0] == Kind.MAP_KEY) == self.model.key
        self.memory.check_invariants()

    @rule(target=buffers, kind=MEMORY_TYPES, size=st.integers(0, 3000) | st.sampled_from([9000, 10**8]), owner=OWNERS)
    def allocate_pool(self, kind: int, size: int, owner: str):
        """A buffer at an address that never was one before, or no memory for both."""
        expected = self.model.allocate(kind, size)
        if expected is None:
            with pytest.raises(EfiError, match="OUT_OF_RESOURCES"):
                self.memory.allocate_pool(kind, size, owner)
            self.agree()
            return multiple()
        address = self.memory.allocate_pool(kind, size, owner)
        assert address not in self.seen
        self.seen.add(address)
        assert self.memory.is_live(address)
        assert self.memory.owner_of(address) == owner
        self.agree()
        return address, expected

    @rule(buffer=consumes(buffers), owner=OWNERS)
    def free_pool(self, buffer, owner: str) -> None:
        """The buffer is gone; whether its page goes too, the keys tell."""
        address, allocation = buffer
        self.memory.free_pool(address, owner)
        self.model.release(allocation)
        assert not self.memory.is_live(address)
        self.agree()

    @rule(
        target=runs,
        kind=MEMORY_TYPES,
        count=st.integers(1, 6) | st.sampled_from([1000, 60_000]),
        owner=OWNERS,
        end=st.none() | st.sampled_from([0x300, 0x9F0, 0x1E000]),
    )
    def allocate_pages(self, kind: int, count: int, owner: str, end: int | None):
        """Anywhere, or below an address."""
        expected = self.model.take(count, kind, len(self.model.pages) if end is None else end)
        call = (0, kind, count, 0, owner) if end is None else (1, kind, count, end * 4096 - 1, owner)
        if expected is None:
            with pytest.raises(EfiError, match="OUT_OF_RESOURCES"):
                self.memory.allocate_pages(*call)
            self.agree()
            return multiple()
        assert self.memory.allocate_pages(*call) == expected * 4096
        self.agree()
        return expected, count

    @rule(
        target=runs,
        kind=MEMORY_TYPES,
        page=st.sampled_from([0, 1, 0x9E, 0x100, 0x102, 0x7FF, 0x20000]),
        count=st.integers(0, 3),
    )
    def allocate_address(self, kind: int, page: int, count: int):
        """Exactly these pages if all of them are free."""
        wanted = self.model.pages[page : page + count]
        if page and count and wanted == [FREE] * count:
            self.model.set(page, count, kind)
            assert self.memory.allocate_pages(2, kind, count, page * 4096, "one") == page * 4096
            self.agree()
            return page, count
        with pytest.raises(EfiError, match="NOT_FOUND"):
            self.memory.allocate_pages(2, kind, count, page * 4096, "one")
        self.agree()
        return multiple()

    @rule(target=runs, run=consumes(runs), skip=st.integers(0, 4), count=st.integers(1, 6))
    def free_part(self, run, skip: int, count: int):
        """Free some of the pages from any place on; what is left on both sides is allocated still."""
        first, total = run
        if skip + count > total:
            skip, count = 0, total
        self.memory.free_pages((first + skip) * 4096, count, "one")
        self.model.set(first + skip, count, FREE)
        self.agree()
        left = [(first, skip), (first + skip + count, total - skip - count)]
        return multiple(*((page, rest) for page, rest in left if rest))

    @rule(run=runs, beyond=st.integers(1, 3))
    def free_too_much(self, run, beyond: int) -> None:
        """A run with pages behind it that are not allocated is refused as a whole."""
        first, total = run
        end = first + total + beyond
        if FREE not in self.model.pages[first:end] and end <= 0x1E800:
            return  # all allocated somehow: whether by AllocatePages, the model does not know
        before = self.memory.memory_map()
        with pytest.raises(EfiError) as caught:
            self.memory.free_pages(first * 4096, total + beyond, "one")
        assert caught.value.status == EfiStatus.NOT_FOUND
        assert self.memory.memory_map() == before
        self.agree()

    def teardown(self) -> None:
        """Line by line, the map is what the model's pages make."""
        if not hasattr(self, "model"):
            return
        runs = [(kind, len(list(pages))) for kind, pages in groupby(self.model.pages)]
        assert [(kind, count) for kind, _, count, _ in self.memory.memory_map()] == runs


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
