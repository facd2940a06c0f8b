"""The I/O ports of a PC, as guest code uses them."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("unicorn", reason="the extra [efi] is not installed")

from guest.chipset import Chipset
from guest.machine import CODE_END, EXECUTE, PAGE, READ, WRITE
from reference_impl.trace import Kind, Record
from tests.guest.test_thunks import Guest

CODE = CODE_END - PAGE


@pytest.fixture
def pc():
    """A guest with ports."""
    guest = Guest()
    Chipset(guest.core, guest.images)
    guest.machine.unmap(CODE, PAGE)
    guest.machine.map(CODE, PAGE, READ | WRITE | EXECUTE)
    yield guest
    guest.machine.close()


def run(guest, code):
    """Run code where none has been before: what was translated once stays. Gives RAX."""
    at = guest.code_at = getattr(guest, "code_at", CODE) + 32
    guest.machine.write(at, code + b"\xc3")
    return guest.convention.call(at)


def read(guest, port, size=4):
    """What `in` gives."""
    instruction = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[size]
    return run(guest, b"\x31\xc0\xba" + struct.pack("<I", port) + instruction)


def write(guest, port, value, size=4):
    """`out`."""
    instruction = {1: b"\xee", 4: b"\xef"}[size]
    run(guest, b"\xb8" + struct.pack("<I", value) + b"\xba" + struct.pack("<I", port) + instruction)


def configuration(guest, bus, device, function, register):
    """A register of a device's configuration space."""
    write(guest, 0xCF8, 1 << 31 | bus << 16 | device << 11 | function << 8 | register)
    return read(guest, 0xCFC)


def test_power_management_tells_where_the_timer_is(pc):
    """Host bridge, its power management function, and nothing else."""
    assert configuration(pc, 0, 0, 0, 0) == 0x1237_8086
    assert configuration(pc, 0, 1, 3, 0x40) == 0x601
    assert configuration(pc, 0, 5, 0, 0) == configuration(pc, 1, 0, 0, 0) == 0xFFFF_FFFF
    write(pc, 0xCF8, 1 << 31)
    assert read(pc, 0xCFE, 2) == 0x1237


def test_timer_goes_on_while_it_is_looked_at(pc):
    """A delay of a library, which only reads the timer, ends."""
    before = pc.core.events.now_100ns
    first, second = read(pc, 0x608), read(pc, 0x608)
    assert second > first
    assert pc.core.events.now_100ns > before


def test_clock_tells_the_time_of_the_core(pc):
    """In BCD."""

    def register(index):
        write(pc, 0x70, index, 1)
        return read(pc, 0x71, 1)

    pc.core.events.advance((86_400 * 30 + 3_600 * 12 + 34 * 60 + 56) * 10_000_000)
    assert [register(index) for index in (0x32, 9, 8, 7, 4, 2, 0)] == [0x20, 0x20, 1, 0x31, 0x12, 0x34, 0x56]
    assert not register(0xA) & 0x80
    assert register(0xD) == 0x80


def test_port_of_nobody_reads_as_ones_and_is_recorded_once(pc):
    """For each place, and here is no image to tell them apart. The debug ports are known."""
    for _ in range(2):
        assert read(pc, 0x510, 1) == 0xFF
        write(pc, 0x511, 1)
    assert read(pc, 0x402, 1) == 0xFF
    strays = [Record(*record) for record in pc.trace.records]
    assert [(each.kind, each.name, each.arguments[0]) for each in strays] == [
        (Kind.STRAY, "in", 0x510),
        (Kind.STRAY, "out", 0x511),
    ]


def test_what_a_port_raises_ends_the_run(pc):
    """An error in the platform is not lost in the emulator."""

    def broken(port, size):
        raise ValueError("broken")

    pc.machine.read_port = broken
    with pytest.raises(ValueError, match="broken"):
        read(pc, 0x510)
