"""The machine: code runs, traps and returns; what no processor allows is a fault; nothing is lost on the way."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.calling_convention import CallingConvention
from guest.machine import CODE_END, EXECUTE, PAGE, POOL_CHUNK, READ, SPINS_MAX, WRITE, GuestFault, Machine
from reference_impl.uefi.memory import POOL_WINDOW

PLACE = CODE_END - PAGE


@pytest.fixture(params=[False, True], ids=["plain", "counting"])
def convention(request):
    """Calls and traps of a machine with one page of room for code, with and without counting."""
    machine = Machine(counting=request.param)
    convention = CallingConvention(machine)
    machine.map(PLACE, PAGE, READ | WRITE | EXECUTE)
    yield convention
    machine.close()


def put(convention: CallingConvention, code: bytes, offset: int = 0) -> int:
    """Place code in the room for it."""
    convention.machine.write(PLACE + offset, code)
    return PLACE + offset


def calling(target: int) -> bytes:
    """A function that calls `target` with its own arguments, adds 1 to the answer and returns it."""
    return b"\x48\x83\xec\x28\x48\xb8" + struct.pack("<Q", target) + b"\xff\xd0\x48\xff\xc0\x48\x83\xc4\x28\xc3"


def test_call_passes_arguments_and_gives_the_answer(convention):
    """lea rax, [rcx + rdx*2]; add rax, r8; add rax, r9; add rax, [rsp+0x28]; ret."""
    code = put(convention, b"\x48\x8d\x04\x51\x4c\x01\xc0\x4c\x01\xc8\x48\x03\x44\x24\x28\xc3")
    assert convention.call(code, 1, 10, 100, 1000, 10000) == 11121


def test_trap_gets_arguments_and_its_answer_returns(convention):
    """A trap is a function like any other to guest code."""
    seen = []

    def handler(a, b, c, d, sp, _):
        seen.append((a, b, c, d))
        return 41

    code = put(convention, calling(convention.write_trap(handler)))
    assert convention.call(code, 1, 2, 3, 4) == 42
    assert seen == [(1, 2, 3, 4)]


def test_trap_reads_arguments_on_the_stack(convention):
    """The fifth argument is above the shadow space: mov rax, 7; mov [rsp+0x20], rax before the call."""
    seen = []

    def handler(a, b, c, d, sp, _):
        seen.append(convention.argument(sp, 4))
        return 0

    trap = convention.write_trap(handler)
    code = b"\x48\x83\xec\x28\x48\xc7\x44\x24\x20\x07\x00\x00\x00\x48\xb8" + struct.pack("<Q", trap)
    convention.call(put(convention, code + b"\xff\xd0\x48\x83\xc4\x28\xc3"))
    assert seen == [7]


def test_handler_calls_the_guest_which_traps_again(convention):
    """Calls nest, and each level gets its own answer."""

    def handler(level, b, c, d, sp, _):
        return convention.call(code, level - 1) + 10 if level else 100

    code = put(convention, calling(convention.write_trap(handler)))
    assert convention.call(code, 3) == 100 + 3 * 10 + 4


def test_exception_of_a_handler_comes_out_of_all_levels(convention):
    """Nothing is lost in the emulator, and the machine works afterwards."""

    def handler(level, b, c, d, sp, _):
        if not level:
            raise KeyError("mine")
        return convention.call(code, level - 1)

    code = put(convention, calling(convention.write_trap(handler)))
    with pytest.raises(KeyError, match="mine"):
        convention.call(code, 2)
    assert convention.call(put(convention, b"\x48\x89\xc8\xc3", 64), 5) == 5


@pytest.mark.parametrize(
    ("code", "kind", "address"),
    [
        (b"\x48\x8b\x01\xc3", "read", 0x10),  # mov rax, [rcx]
        (b"\x48\x89\x01\xc3", "write", 0x10),  # mov [rcx], rax
        (b"\xff\xe1", "fetch", 0x10),  # jmp rcx
        (b"\x0f\x0b", "exception", 0),  # ud2
        (b"\xcc", "exception", 0),  # int3
        (b"\x31\xc0\xf7\xf0", "exception", 0),  # xor eax, eax; div eax
        (b"\xf4", "halt", 0),  # hlt
    ],
)
def test_what_no_processor_allows_is_a_fault(convention, code, kind, address):
    """The fault says what was done, and where."""
    with pytest.raises(GuestFault) as caught:
        convention.call(put(convention, code), 0x10)
    assert (caught.value.kind, caught.value.address) == (kind, address)
    if kind != "fetch":
        assert PLACE <= caught.value.pc <= PLACE + len(code)


def test_dead_loop_is_a_fault_on_a_machine_that_counts():
    """It is asked first whether anything outside still moves on."""
    machine = Machine(counting=True)
    convention = CallingConvention(machine)
    machine.map(PLACE, PAGE, READ | WRITE | EXECUTE)
    asked = []
    machine.spinning = lambda: bool(asked.append(1))
    with pytest.raises(GuestFault) as caught:
        convention.call(put(convention, b"\xeb\xfe"))
    assert caught.value.kind == "dead-loop"
    assert caught.value.pc == PLACE
    assert len(asked) == SPINS_MAX


def test_fault_inside_a_call_from_a_handler_says_where_it_was(convention):
    """The innermost level is the one that counts."""
    bad = put(convention, b"\x48\x8b\x01\xc3", 128)
    trap = convention.write_trap(lambda *_: convention.call(bad, 8))
    with pytest.raises(GuestFault) as caught:
        convention.call(put(convention, calling(trap)))
    assert (caught.value.kind, caught.value.address, caught.value.pc) == ("read", 8, bad)


def test_services_cannot_reach_what_the_guest_cannot(convention):
    """A bad pointer that is handed to a service is a fault of the guest."""
    machine = convention.machine
    for address in (0, 0x1000, POOL_WINDOW + POOL_CHUNK, PLACE + PAGE - 4, 0xF2000000):
        with pytest.raises(GuestFault):
            machine.u64(address)
        with pytest.raises(GuestFault):
            machine.put_u64(address, 0)


def test_pages_come_and_go(convention):
    """What was unmapped is out of reach, and still there when it is mapped again."""
    machine = convention.machine
    machine.map(0x200000, 2 * PAGE)
    machine.put_u64(0x200FF8, 77)
    read = put(convention, b"\x48\x8b\x01\xc3")
    assert convention.call(read, 0x200FF8) == 77
    machine.unmap(0x200000, PAGE)
    with pytest.raises(GuestFault):
        convention.call(read, 0x200FF8)
    assert convention.call(read, 0x201000) == 0


def test_placed_page_is_one_page_wherever_it_is(convention):
    """The guest and Python see the same bytes, and a removed page leaves a hole."""
    machine = convention.machine
    number, view = machine.make_page()
    machine.map(0x300000, PAGE)
    read = put(convention, b"\x48\x8b\x01\xc3")
    for address in (0x300000, 0xF200_0000):
        machine.place_page(number, address)
        view[0:8] = struct.pack("<Q", address)
        assert convention.call(read, address) == address == machine.u64(address)
        machine.remove_page(address)
        with pytest.raises(GuestFault):
            convention.call(read, address)


def test_pool_window_grows(convention):
    """By whole chunks, of which the first is always there; what lies behind its end is out of reach."""
    machine = convention.machine
    end = POOL_WINDOW + POOL_CHUNK
    assert machine.is_mapped(POOL_WINDOW)
    assert not machine.is_mapped(end)
    machine.map_pool(end + 1)
    machine.put_u64(end + 16, 5)
    assert convention.call(put(convention, b"\x48\x8b\x01\xc3"), end + 16) == 5
    assert machine.is_mapped(end)
    assert not machine.is_mapped(end + POOL_CHUNK)


def test_a_renewed_machine_has_the_first_chunk_of_the_pool_only(convention):
    """As a new one has, with nothing in it."""
    machine = convention.machine
    machine.map_pool(POOL_WINDOW + POOL_CHUNK + 1)
    machine.put_u64(POOL_WINDOW, 5)
    machine.renew()
    assert machine.u64(POOL_WINDOW) == 0
    with pytest.raises(GuestFault):
        machine.u64(POOL_WINDOW + POOL_CHUNK)


@pytest.mark.parametrize("instruction", [b"\xf3\xaa", b"\xf3\x48\xab", b"\xf3\xa4"], ids=["stosb", "stosq", "movsb"])
def test_large_fill_is_no_dead_loop(monkeypatch, instruction):
    """The emulator counts a block for each turn of rep; there is an end to it."""
    monkeypatch.setattr("guest.machine.SPIN_BLOCKS", 10)
    monkeypatch.setattr("guest.machine.SPINS_MAX", 2)
    machine = Machine(counting=True)
    try:
        convention = CallingConvention(machine)
        machine.map(PLACE, PAGE, READ | WRITE | EXECUTE)
        machine.map_pool(POOL_WINDOW + 0x4000)
        move = b"\x57\x56\x48\x89\xcf\x48\x89\xce\xb9\x00\x02\0\0\xb0\x55"  # rdi = rsi = rcx; 512 times
        code = put(convention, move + instruction + b"\x5e\x5f\xc3")
        convention.call(code, POOL_WINDOW)
        loop = put(convention, b"\xb9\x00\x02\0\0\xff\xc9\x75\xfc\xc3", 64)  # dec ecx; jne
        with pytest.raises(GuestFault, match="dead-loop"):
            convention.call(loop)
    finally:
        machine.close()
