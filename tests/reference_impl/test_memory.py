"""The memory map, pages and pools of the reference core."""

from __future__ import annotations

import pytest

from reference_impl.failures import Failures
from reference_impl.trace import Kind, Record, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.boot_services import BootServices
from reference_impl.uefi.core import Core
from reference_impl.uefi.definitions import EVT_NOTIFY_SIGNAL, TPL_CALLBACK, TPL_NOTIFY, AllocateType, MemoryType
from reference_impl.uefi.memory import (
    BLOCK_SIZES,
    MEMORY_END,
    POOL_OVERHEAD,
    POOL_WINDOW,
    Memory,
    MemoryMapTooSmall,
)
from reference_impl.uefi.status import EfiError, EfiStatus

DATA = MemoryType.BOOT_SERVICES_DATA
OEM = 0x80000001
PAGE = 4096
FIRST_FREE_PAGE = 0x1E800000 - PAGE  # the highest free page of a new world


@pytest.fixture
def core() -> Core:
    """A core of its own for each test, with a memory in which the core itself has nothing yet."""
    trace = Trace()
    core = Core(trace, Failures(trace, lambda call: True))
    core.memory = Memory(core)
    trace.records.clear()
    return core


@pytest.fixture
def memory(core: Core) -> Memory:
    """That core's memory."""
    return core.memory


@pytest.fixture
def services(core: Core) -> BootServices:
    """What one image calls through."""
    return BootServices(core, "caller")


def refusal(function, *arguments) -> EfiStatus:
    """The status that a call is refused with."""
    with pytest.raises(EfiError) as caught:
        function(*arguments)
    return caught.value.status


def misuse(core: Core) -> list[tuple[str, str, tuple]]:
    """Agent, name and arguments of the recorded misuses."""
    return [
        (agent, name, arguments)
        for kind, agent, _, _, _, name, arguments, _, _ in core.trace.records
        if kind == Kind.MEMORY
    ]


def types_at(memory: Memory, *addresses: int) -> list[int]:
    """The memory type at each address, as the map tells it."""
    return [
        next(kind for kind, start, count, _ in memory.memory_map() if start <= address < start + count * PAGE)
        for address in addresses
    ]


# ---- the map ------------------------------------------------------------------------------------------------------


def test_map_of_a_new_world_covers_the_memory_without_gap(memory: Memory) -> None:
    """Descriptors follow one another from 0 to the end of memory, and neighbours differ."""
    memory.check_invariants()
    end = 0
    for _, start, page_count, _ in memory.memory_map():
        assert start == end
        end = start + page_count * PAGE
    assert end == MEMORY_END


def test_runtime_and_device_memory_carry_the_runtime_attribute(memory: Memory) -> None:
    """Only what the operating system must map for runtime services has EFI_MEMORY_RUNTIME."""
    runtime = {kind for kind, _, _, attributes in memory.memory_map() if attributes >> 63}
    assert runtime == {
        MemoryType.RUNTIME_SERVICES_CODE,
        MemoryType.RUNTIME_SERVICES_DATA,
        MemoryType.MEMORY_MAPPED_IO,
    }


def test_get_memory_map_does_not_move_the_key(services: BootServices, memory: Memory) -> None:
    """Two calls in a row give the same answer."""
    first = services.get_memory_map(1 << 16)
    assert first == services.get_memory_map(1 << 16)
    assert first == (memory.memory_map(), memory.map_key, 48)


def test_get_memory_map_tells_the_size_that_it_needs(services: BootServices, memory: Memory) -> None:
    """A buffer one byte too small is refused with the size that suffices, before the buffer itself is looked at."""
    with pytest.raises(MemoryMapTooSmall) as caught:
        services.get_memory_map(memory.memory_map_size_bytes() - 1, False)
    refused = caught.value
    assert refused.status == EfiStatus.BUFFER_TOO_SMALL
    assert refused.size_bytes == len(memory.memory_map()) * refused.descriptor_size_bytes
    assert refused.map_key == memory.map_key
    assert services.get_memory_map(refused.size_bytes)[0] == memory.memory_map()


def test_get_memory_map_refuses_null(services: BootServices) -> None:
    """No size, or no buffer although the size suffices."""
    assert refusal(services.get_memory_map, None) == EfiStatus.INVALID_PARAMETER
    assert refusal(services.get_memory_map, 1 << 16, False) == EfiStatus.INVALID_PARAMETER


def test_terminate_accepts_only_the_current_key(memory: Memory) -> None:
    """A stale key leaves the map unterminated; afterwards memory services still work and move the key."""
    stale = memory.map_key
    memory.allocate_pages(AllocateType.ANY_PAGES, DATA, 1, 0, "caller")
    assert refusal(memory.terminate, stale) == EfiStatus.INVALID_PARAMETER
    assert not memory.terminated
    key = memory.map_key
    memory.terminate(key)
    assert memory.terminated
    memory.allocate_pages(AllocateType.ANY_PAGES, DATA, 1, 0, "caller")
    assert memory.map_key == key + 1


def test_bump_is_recorded_with_both_keys_and_the_calling_agent(services: BootServices, core: Core) -> None:
    """The record stands inside the service that moved the key."""
    key = core.memory.map_key
    services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1)
    call, bump = (Record(*entry) for entry in core.trace.records)
    assert (call.kind, call.name, call.status, call.value) == (
        Kind.SERVICE,
        "AllocatePages",
        EfiStatus.SUCCESS,
        FIRST_FREE_PAGE,
    )
    assert (bump.kind, bump.agent, bump.name, bump.arguments) == (Kind.MAP_KEY, "caller", "bump", (key, key + 1))
    assert bump.depth == call.depth + 1


# ---- notification of changes --------------------------------------------------------------------------------------


def listen(services: BootServices, function) -> int:
    """An event in the group that is signalled when the map changes."""
    return services.create_event_ex(EVT_NOTIFY_SIGNAL, TPL_CALLBACK, function, 0, guids.EVENT_GROUP_MEMORY_MAP_CHANGE)


def test_each_operation_that_changes_the_map_notifies_once(services: BootServices) -> None:
    """Freeing two neighbours of different types moves the key twice and notifies once; a refusal does not notify."""
    seen = []
    listen(services, lambda event, context: seen.append(event))
    high = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1)
    low = services.allocate_pages(AllocateType.ANY_PAGES, MemoryType.LOADER_DATA, 1)
    assert low == high - PAGE
    assert len(seen) == 2
    key = services.core.memory.map_key
    services.free_pages(low, 2)
    assert services.core.memory.map_key == key + 2
    assert len(seen) == 3
    assert refusal(services.free_pages, low, 2) == EfiStatus.NOT_FOUND
    assert len(seen) == 3


def test_pool_calls_notify_only_when_they_change_the_map(services: BootServices) -> None:
    """A new pool page, and a page that became empty."""
    seen = []
    listen(services, lambda event, context: seen.append(event))
    first = services.allocate_pool(MemoryType.LOADER_DATA, 100)
    second = services.allocate_pool(MemoryType.LOADER_DATA, 100)
    assert len(seen) == 1
    services.free_pool(first)
    assert len(seen) == 1
    services.free_pool(second)
    assert len(seen) == 2
    services.free_pool(services.allocate_pool(MemoryType.LOADER_DATA, 10_000))
    assert len(seen) == 4


def test_notification_waits_for_a_lower_tpl(services: BootServices) -> None:
    """Above the event's TPL nothing runs until the TPL drops."""
    seen = []
    listen(services, lambda event, context: seen.append(event))
    old = services.raise_tpl(TPL_NOTIFY)
    services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1)
    assert not seen
    services.restore_tpl(old)
    assert len(seen) == 1


# ---- pages --------------------------------------------------------------------------------------------------------


def test_pages_come_from_the_top_of_free_memory(services: BootServices, memory: Memory) -> None:
    """Each allocation lies right below the one before, and the map shows its type."""
    first = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1)
    second = services.allocate_pages(AllocateType.ANY_PAGES, OEM, 2)
    assert (first, second) == (FIRST_FREE_PAGE, FIRST_FREE_PAGE - 2 * PAGE)
    assert types_at(memory, first, second, second - PAGE) == [DATA, OEM, MemoryType.CONVENTIONAL]
    memory.check_invariants()


def test_equal_neighbours_are_one_descriptor(services: BootServices, memory: Memory) -> None:
    """Two allocations of one type make one line of the map, and so does what is free again around them."""
    before = memory.memory_map()
    pages = [services.allocate_pages(AllocateType.ANY_PAGES, MemoryType.LOADER_DATA, 1) for _ in range(3)]
    assert (MemoryType.LOADER_DATA, pages[2], 3, 0xF) in memory.memory_map()
    services.free_pages(pages[1], 1)
    assert len(memory.memory_map()) == len(before) + 3
    services.free_pages(pages[0], 1)
    services.free_pages(pages[2], 1)
    assert memory.memory_map() == before


def test_pages_below_a_maximum_end_at_it(services: BootServices) -> None:
    """The highest page whose last byte is not above the maximum."""
    top = 0x00800000
    assert services.allocate_pages(AllocateType.MAX_ADDRESS, DATA, 2, top - 1) == top - 2 * PAGE
    assert services.allocate_pages(AllocateType.MAX_ADDRESS, DATA, 1, top - 2) == top - 3 * PAGE
    assert services.allocate_pages(AllocateType.MAX_ADDRESS, DATA, 1, 0xFFFF_FFFF_FFFF_FFFF) == FIRST_FREE_PAGE


def test_pages_at_an_address_are_exactly_there(services: BootServices) -> None:
    """AllocateAddress takes the pages that it names, once."""
    assert services.allocate_pages(AllocateType.ADDRESS, DATA, 4, 0x200000) == 0x200000
    assert refusal(services.allocate_pages, AllocateType.ADDRESS, DATA, 1, 0x203000) == EfiStatus.NOT_FOUND
    assert services.allocate_pages(AllocateType.ADDRESS, DATA, 1, 0x204000) == 0x204000


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ((3, DATA, 1), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ANY_PAGES, MemoryType.CONVENTIONAL, 1), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ANY_PAGES, MemoryType.PERSISTENT, 1), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ANY_PAGES, MemoryType.UNACCEPTED, 1), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ANY_PAGES, 16, 1), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ANY_PAGES, 0x6FFFFFFF, 1), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ANY_PAGES, 1 << 32, 1), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ANY_PAGES, DATA, 1, 0, False), EfiStatus.INVALID_PARAMETER),
        ((AllocateType.ADDRESS, DATA, 1, 0x200800), EfiStatus.NOT_FOUND),
        ((AllocateType.ADDRESS, DATA, 1, 0), EfiStatus.NOT_FOUND),
        ((AllocateType.ADDRESS, DATA, 0, 0x200000), EfiStatus.NOT_FOUND),
        ((AllocateType.ADDRESS, DATA, 2, 0x7FF000), EfiStatus.NOT_FOUND),
        ((AllocateType.ADDRESS, DATA, 1, MEMORY_END), EfiStatus.NOT_FOUND),
        ((AllocateType.ANY_PAGES, DATA, 0), EfiStatus.OUT_OF_RESOURCES),
        ((AllocateType.ANY_PAGES, DATA, 1 << 52), EfiStatus.OUT_OF_RESOURCES),
        ((AllocateType.MAX_ADDRESS, DATA, 1, 0xFFF), EfiStatus.OUT_OF_RESOURCES),
        ((AllocateType.MAX_ADDRESS, DATA, 1, 0), EfiStatus.OUT_OF_RESOURCES),
    ],
)
def test_refused_page_allocations_change_nothing(services: BootServices, memory: Memory, arguments, status) -> None:
    """Each refusal has its status, and map and key stay as they were."""
    before = memory.memory_map(), memory.map_key
    assert refusal(services.allocate_pages, *arguments) == status
    assert (memory.memory_map(), memory.map_key) == before


def test_freed_pages_are_used_again_only_when_nothing_else_is_left(services: BootServices, memory: Memory) -> None:
    """While never used pages last, an address comes once."""
    first = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1)
    services.free_pages(first, 1)
    assert services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1) == first - PAGE
    assert not memory.is_live(first)
    services.allocate_pages(AllocateType.ANY_PAGES, DATA, (first - PAGE - 0x01500000) // PAGE)
    services.allocate_pages(AllocateType.ANY_PAGES, DATA, 0x700)
    services.allocate_pages(AllocateType.ANY_PAGES, DATA, 0x9F)
    assert services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1) == first
    assert memory.is_live(first)
    assert refusal(services.allocate_pages, AllocateType.ANY_PAGES, DATA, 1) == EfiStatus.OUT_OF_RESOURCES
    assert refusal(services.allocate_pool, MemoryType.LOADER_DATA, 1) == EfiStatus.OUT_OF_RESOURCES
    assert refusal(services.allocate_pool, OEM, 1) == EfiStatus.OUT_OF_RESOURCES
    memory.check_invariants()


def test_a_part_of_an_allocation_can_be_freed(services: BootServices, memory: Memory) -> None:
    """What is left of it on both sides stays allocated and can be freed by itself."""
    start = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 5)
    services.free_pages(start + PAGE, 2)
    assert memory.is_live(start)
    assert memory.is_live(start + 3 * PAGE)
    assert not memory.is_live(start + PAGE)
    assert memory.live_count("caller") == 2
    memory.check_invariants()
    services.free_pages(start + 3 * PAGE, 2)
    services.free_pages(start, 1)
    assert memory.live_count("caller") == 0
    memory.check_invariants()


def test_neighbouring_allocations_can_be_freed_together(services: BootServices, memory: Memory) -> None:
    """As their pages make one range of the map, the key moves once."""
    services.allocate_pages(AllocateType.ANY_PAGES, DATA, 2)
    start = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 2)
    key = memory.map_key
    services.free_pages(start + PAGE, 2)
    assert memory.map_key == key + 1
    assert memory.live_count("caller") == 2
    memory.check_invariants()


@pytest.mark.parametrize(
    ("address", "page_count", "status"),
    [
        (MEMORY_END, 1, EfiStatus.NOT_FOUND),
        (-PAGE, 1, EfiStatus.NOT_FOUND),
        (FIRST_FREE_PAGE + 1, 1, EfiStatus.INVALID_PARAMETER),
        (FIRST_FREE_PAGE, 0, EfiStatus.INVALID_PARAMETER),
        (FIRST_FREE_PAGE, 1 << 52, EfiStatus.INVALID_PARAMETER),
        (FIRST_FREE_PAGE, 2, EfiStatus.NOT_FOUND),
        (FIRST_FREE_PAGE - PAGE, 2, EfiStatus.NOT_FOUND),
        (0x1F000000, 1, EfiStatus.NOT_FOUND),
    ],
)
def test_refused_page_frees_change_nothing(services: BootServices, memory: Memory, address, page_count, status) -> None:
    """One page is allocated; a range that is not allocated as a whole is refused as a whole."""
    page = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1)
    before = memory.memory_map(), memory.map_key
    assert refusal(services.free_pages, address, page_count) == status
    assert (memory.memory_map(), memory.map_key) == before
    assert memory.is_live(page)
    assert not misuse(services.core)


def test_freeing_pages_twice_or_of_others_is_recorded(services: BootServices, core: Core) -> None:
    """Twice: refused. Of another agent: done."""
    page = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 1)
    other = BootServices(core, "other")
    other.free_pages(page, 1)
    assert refusal(other.free_pages, page, 1) == EfiStatus.NOT_FOUND
    assert misuse(core) == [("other", "foreign-free", (page, "caller")), ("other", "double-free", (page, "caller"))]


# ---- pools --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, 1, 100, 300, 1000, 1664 - POOL_OVERHEAD, 2688 - POOL_OVERHEAD])
def test_one_page_serves_many_pool_requests(memory: Memory, size_bytes: int) -> None:
    """The key moves with the first request of a page, and with the last free of it; not in between."""
    block = next(size for size in BLOCK_SIZES if size >= size_bytes + POOL_OVERHEAD)
    fitting = {128: 32, 384: 8, 1664: 2, 2688: 1}.get(block, 3)
    key = memory.map_key
    buffers = [memory.allocate_pool(MemoryType.LOADER_DATA, size_bytes, "caller") for _ in range(fitting)]
    assert memory.map_key == key + 1
    memory.check_invariants()
    for buffer in buffers[:-1]:
        memory.free_pool(buffer, "caller")
    assert memory.map_key == key + 1
    memory.free_pool(buffers[-1], "caller")
    assert memory.map_key == key + 2
    memory.check_invariants()


def test_larger_blocks_are_cut_before_a_page_is_taken(memory: Memory) -> None:
    """A new page gives the request, then blocks of falling size; these serve what fits."""
    key = memory.map_key
    memory.allocate_pool(DATA, 128 - POOL_OVERHEAD, "caller")  # leaves 2688, 1024 and 256 of 4096
    memory.allocate_pool(DATA, 256 - POOL_OVERHEAD, "caller")
    memory.allocate_pool(DATA, 1024 - POOL_OVERHEAD, "caller")
    memory.allocate_pool(DATA, 1664 - POOL_OVERHEAD, "caller")  # cut from 2688, leaves 1024
    memory.allocate_pool(DATA, 640 - POOL_OVERHEAD, "caller")  # cut from 1024, leaves 384
    memory.allocate_pool(DATA, 384 - POOL_OVERHEAD, "caller")
    assert memory.map_key == key + 1
    memory.check_invariants()
    memory.allocate_pool(DATA, 0, "caller")
    assert memory.map_key == key + 2
    memory.check_invariants()


def test_a_freed_block_serves_the_next_request_of_its_class(memory: Memory) -> None:
    """The pool's pages are used again although the address is a new one."""
    first = memory.allocate_pool(DATA, 2000, "caller")
    memory.allocate_pool(DATA, 1024 - POOL_OVERHEAD, "caller")
    key = memory.map_key
    memory.free_pool(first, "caller")
    second = memory.allocate_pool(DATA, 1900, "caller")
    assert memory.map_key == key
    assert second > first
    memory.check_invariants()


def test_large_pool_requests_take_pages_of_their_own(memory: Memory) -> None:
    """From the first size that no block holds; each moves the key, and so does its free."""
    key = memory.map_key
    before = memory.memory_map()
    buffer = memory.allocate_pool(MemoryType.LOADER_DATA, 2688 - POOL_OVERHEAD + 1, "caller")
    two = memory.allocate_pool(MemoryType.LOADER_DATA, PAGE - POOL_OVERHEAD + 1, "caller")
    assert memory.map_key == key + 2
    assert (MemoryType.LOADER_DATA, FIRST_FREE_PAGE - 2 * PAGE, 3, 0xF) in memory.memory_map()
    memory.check_invariants()
    memory.free_pool(buffer, "caller")
    memory.free_pool(two, "caller")
    assert memory.map_key == key + 4
    assert memory.memory_map() == before


def test_each_memory_type_has_a_pool_of_its_own(memory: Memory) -> None:
    """The first request of each type takes a page."""
    key = memory.map_key
    for kind in (DATA, MemoryType.LOADER_DATA, MemoryType.ACPI_NVS):
        memory.allocate_pool(kind, 100, "caller")
        memory.allocate_pool(kind, 100, "caller")
    assert memory.map_key == key + 3
    memory.check_invariants()


def test_an_oem_pool_costs_the_core_a_record_while_it_is_used(memory: Memory) -> None:
    """The record comes from boot services data, and goes with the last buffer of that type."""
    before = memory.memory_map()
    buffers = [memory.allocate_pool(OEM, size, "caller") for size in (100, 100, 5000)]
    assert memory.live_count("DxeCore") == 1
    memory.check_invariants()
    for buffer in buffers:
        memory.free_pool(buffer, "caller")
    assert memory.live_count("DxeCore") == 0
    assert memory.memory_map() == before
    memory.check_invariants()


def test_pool_addresses_are_aligned_and_never_come_twice(memory: Memory) -> None:
    """No two buffers share a byte, even where one was freed before the other came."""
    end = POOL_WINDOW
    for size_bytes in (0, 1, 8, 17, 5000, 0, 100):
        buffer = memory.allocate_pool(DATA, size_bytes, "caller")
        assert buffer >= end
        assert buffer % 16 == 0
        end = buffer + max(size_bytes, 1)
        memory.free_pool(buffer, "caller")


@pytest.mark.parametrize("kind", [MemoryType.CONVENTIONAL, MemoryType.PERSISTENT, MemoryType.UNACCEPTED, 16, -1])
def test_pool_of_a_type_that_cannot_be_allocated_is_refused(services: BootServices, kind: int) -> None:
    """EFI_INVALID_PARAMETER comes before anything else."""
    assert refusal(services.allocate_pool, kind, 1 << 60) == EfiStatus.INVALID_PARAMETER


def test_pool_without_a_place_for_the_answer_or_too_large_is_refused(services: BootServices) -> None:
    """A null out-pointer is invalid; more than there is, is out of resources."""
    assert refusal(services.allocate_pool, DATA, 8, False) == EfiStatus.INVALID_PARAMETER
    assert refusal(services.allocate_pool, DATA, 1 << 30) == EfiStatus.OUT_OF_RESOURCES


# ---- ownership ----------------------------------------------------------------------------------------------------


def test_freeing_a_buffer_twice_is_refused_and_recorded(services: BootServices, core: Core) -> None:
    """An address that never was a buffer is refused without a record."""
    buffer = services.allocate_pool(DATA, 8)
    services.free_pool(buffer)
    assert refusal(services.free_pool, buffer) == EfiStatus.INVALID_PARAMETER
    assert refusal(services.free_pool, buffer + 16) == EfiStatus.INVALID_PARAMETER
    assert refusal(services.free_pool, 0) == EfiStatus.INVALID_PARAMETER
    assert misuse(core) == [("caller", "double-free", (buffer, "caller"))]


def test_freeing_what_another_agent_owns_is_done_and_recorded(services: BootServices, core: Core) -> None:
    """The record names who freed and whose it was."""
    buffer = services.allocate_pool(DATA, 8)
    BootServices(core, "other").free_pool(buffer)
    assert not core.memory.is_live(buffer)
    assert misuse(core) == [("other", "foreign-free", (buffer, "caller"))]


def test_owner_of_knows_pages_and_nothing_else(services: BootServices, memory: Memory) -> None:
    """Pages have their owner; an address where nothing starts has none."""
    page = services.allocate_pages(AllocateType.ANY_PAGES, DATA, 2)
    assert memory.owner_of(page) == "caller"
    assert memory.owner_of(page + PAGE) == ""
