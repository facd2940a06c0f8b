import struct

import pytest

from fuzz_targets.image_builder import DATA_PART, TEXT_PART, firmware_file, pe, volume
from guest import files, firmware_volume
from guest.image import ImageError, open_image, parse
from guest.symbols import SIZE_MAX, Symbols, symbols_of
from guest.world import FIRMWARE, open_drivers, run
from oracles import judge
from reference_impl import timeline
from reference_impl.scenario import operation, scenario
from reference_impl.trace import Kind
from tests.guest.firmware import need_firmware

IMAGE = parse(pe(image_base=0), "Driver")

LD_MAP = """\
Archive member included to satisfy reference by file (symbol)

Discarded input sections

 .text.Dropped  0x0000000000000000       0x10 a.obj
                0x0000000000001000                AlsoDropped

Memory Configuration

Linker script and memory map

LOAD a.obj
                0x0000000000000240                . = 0x240
.text           0x0000000000001000      0x800
 *(.text .text:* .text.* .stub)
 .text.Short    0x0000000000001000       0x10 a.obj
                0x0000000000001000                Short
 .text.ALocalFunctionWithALongName
                0x0000000000001010       0x20 a.obj
 .text.Empty    0x0000000000001030        0x0 a.obj
 .text.AnEmptyFunctionWithALongName
                0x0000000000001030        0x0 a.obj
 .text          0x0000000000001030       0x40 b.obj
                0x0000000000001030                Global
 .text.Cut
.data           0x0000000000002000      0x100
 .data.mState   0x0000000000002000        0x8 a.obj
                0x0000000000002010                gTable
                0x0000000000009999                Outside
                [!provide]                        PROVIDE (end = .)
"""

MSVC_MAP = """\
 Driver

 Timestamp is 5f000000 (Sat Jul  4 00:00:00 2020)

 Preferred load address is 0000000000000000

 Start         Length     Name                   Class
 0001:00000000 00000800H .text$mn                CODE

  Address         Publics by Value              Rva+Base               Lib:Object

 0000:00000000       ___safe_se_handler_count   0000000000001234     <absolute>
 0001:00000000       DriverEntry                0000000000001000 f   Driver:a.obj
 0002:00000000       gTable                     0000000000002000     Driver:a.obj

 entry point at        0001:00000000

 Static symbols

 0001:00000020       ?Local@@YAXXZ              0000000000001020 f   Driver:a.obj
"""


def elf(symbols, *, count=None, link=2, magic=b"\x7fELF\x02\x01", kind=2) -> bytes:
    """An ELF file with a symbol table of (name, type, section, value)."""
    names, table = b"\0", b"\0" * 24
    for name, info, section, value in symbols:
        table += struct.pack("<IBBHQQ", len(names), info, 0, section, value, 0)
        names += name + b"\0"
    headers = [
        (0,) * 10,
        (0, kind, 0, 0, 64, len(table), link, 0, 8, 24),
        (0, 3, 0, 0, 64 + len(table), len(names), 0, 0, 1, 0),
    ]
    start = 64 + len(table) + len(names)
    head = bytearray(magic.ljust(64, b"\0"))
    struct.pack_into("<Q", head, 0x28, start)
    struct.pack_into("<HH", head, 0x3A, 64, len(headers) if count is None else count)
    return bytes(head) + table + names + b"".join(struct.pack("<IIQQQQIIQQ", *header) for header in headers)


ELF = elf([(b"label", 0, 1, 0x1000), (b"gTable", 1, 2, 0x2000), (b"Entry", 0x12, 1, 0x1000), (b"file.c", 4, 0xFFF1, 0)])


@pytest.fixture
def beside(tmp_path):
    """A folder with an image, and what puts a file beside it and gives the names."""
    (tmp_path / "Driver.efi").write_bytes(pe(image_base=0))

    def put(suffix, content):
        (tmp_path / f"Driver{suffix}").write_bytes(content.encode() if isinstance(content, str) else content)
        return symbols_of(IMAGE, str(tmp_path / "Driver.efi"))

    return put


def test_an_address_is_named_by_what_comes_before_it():
    """The nearest name at or before an address, with the distance; none before the first, and none across sections."""
    symbols = Symbols(IMAGE, [(0x1010, "B"), (0x1000, "A"), (0x1000, "Alias")])
    assert [symbols.symbol_at(rva) for rva in (0x1000, 0x100F, 0x1010, 0x1FFF)] == ["A", "A+0xf", "B", "B+0xfef"]
    assert symbols.symbol_at(0xFFF) is None
    assert symbols.symbol_at(0x2000) is None
    assert symbols.symbol_at(0x9000) is None
    assert Symbols(IMAGE).symbol_at(0x1000) is None


def test_addresses_behind_the_image_base_are_understood():
    """Where the image was linked for an address, the map has that address in it."""
    assert Symbols(parse(pe(), "x"), [(0x11_1000, "A"), (0x1800, "B")]).symbol_at(0x1001) == "A+0x1"


def test_a_map_of_gnu_ld_is_read(beside):
    """Global symbols, and local functions in sections of their own; nothing that was discarded or is empty."""
    symbols = beside(".map", LD_MAP)
    named = {rva: symbols.symbol_at(rva) for rva in (0x1000, 0x1010, 0x1030, 0x2000, 0x2010)}
    assert named == {
        0x1000: "Short",
        0x1010: "ALocalFunctionWithALongName",
        0x1030: "Global",
        0x2000: "mState",
        0x2010: "gTable",
    }
    assert len(symbols) == len(named)


def test_a_map_of_msvc_is_read(beside):
    """Public and static symbols; constants of segment 0 are no addresses."""
    symbols = beside(".map", MSVC_MAP.replace("\n", "\r\n"))
    assert symbols.symbol_at(0x1004) == "DriverEntry+0x4"
    assert symbols.symbol_at(0x1020) == "?Local@@YAXXZ"
    assert symbols.symbol_at(0x2000) == "gTable"
    assert len(symbols) == 3


def test_a_debug_file_is_read(beside):
    """Functions come before other names of the same address, and what is no address is left out."""
    symbols = beside(".debug", ELF)
    assert symbols.symbol_at(0x1000) == "Entry"
    assert symbols.symbol_at(0x2004) == "gTable+0x4"
    assert len(symbols) == 2


def test_a_map_wins_over_a_debug_file(beside):
    """Of two files the map is read."""
    beside(".debug", ELF)
    assert beside(".map", MSVC_MAP).symbol_at(0x1000) == "DriverEntry"


def test_an_image_without_such_a_file_has_no_names(tmp_path):
    """Nothing beside the image, or no place that it came from, means no names and no message."""
    (tmp_path / "Driver.efi").write_bytes(pe())
    assert len(symbols_of(IMAGE, str(tmp_path / "Driver.efi"))) == 0
    assert len(symbols_of(IMAGE, "nowhere.efi", tmp_path)) == 0


def test_a_module_of_firmware_finds_its_map_beside_the_firmware(tmp_path):
    """For a module the file is named for the module."""
    pytest.importorskip("uefi_firmware", reason="the extra 'efi' is not installed")
    spec = f"{tmp_path / 'x.fd'}:Driver"
    (tmp_path / "x.fd").write_bytes(
        volume(firmware_file("565ec8ba-a484-11e3-802b-b8ac6f7d65e6", "Driver", pe(image_base=0)))
    )
    (tmp_path / "Driver.map").write_text(MSVC_MAP)
    assert symbols_of(open_image(spec), spec).symbol_at(0x1000) == "DriverEntry"


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".map", "nothing of the kind\n", "no names for addresses of Driver in it"),
        (".map", b"\xff\xfe\0", "no names for addresses of Driver in it"),
        (".debug", elf([]), "no names for addresses of Driver in it"),
        (".debug", elf([(b"\x1b[2J", 2, 1, 0x1000), (b"", 2, 1, 0x1000)]), "no names for addresses"),
        (".debug", b"", "expected an ELF file with a symbol table for X64"),
        (".debug", ELF[:100], "expected an ELF file"),
        (".debug", ELF[:-1], "expected an ELF file"),
        (".debug", elf([], magic=b"\x7fELF\x01\x01"), "expected an ELF file"),
        (".debug", elf([], kind=3), "expected an ELF file"),
        (".debug", elf([], link=9), "expected an ELF file"),
        (".debug", elf([], count=1), "expected an ELF file"),
        (".debug", elf([], count=9), "expected an ELF file"),
        (".debug", ELF.replace(struct.pack("<Q", 24 * 5), struct.pack("<Q", 24 * 5 + 1)), "expected an ELF file"),
        (".debug", ELF.replace(struct.pack("<Q", 24 * 5), struct.pack("<Q", 1 << 40)), "expected an ELF file"),
        pytest.param(".map", bytes(SIZE_MAX + 1), "larger than 67108864 bytes", id="large"),
    ],
)
def test_a_file_that_cannot_be_used_is_said(beside, suffix, content, message):
    """A file of the right name without anything to use in it is a mistake of the user's, and gets one line."""
    with pytest.raises(ImageError, match=rf"Driver\{suffix}: .*{message}") as caught:
        beside(suffix, content)
    assert "\n" not in str(caught.value)


def test_the_sections_of_the_tests_are_where_they_say():
    """The addresses above lie in the sections that the builder makes."""
    assert (TEXT_PART.rva, DATA_PART.rva) == (0x1000, 0x2000)


def test_names_beside_an_image_reach_the_timeline(tmp_path):
    """Backtraces and notification functions have them; what a finding is called does not depend on them."""
    need_firmware()
    shipped = firmware_volume.module((files.CACHE / FIRMWARE).read_bytes(), "XenBusDxe")
    driver = tmp_path / "XenBusDxe.efi"
    driver.write_bytes(shipped.image)
    failure = operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES")

    def described(*operations):
        return scenario(world="efi-image", design="shipped", images=(str(driver),), operations=operations)

    what = described(failure, operation("connect"))
    open_drivers.cache_clear()
    without = run(what)
    (tmp_path / "XenBusDxe.map").write_text(
        "Linker script and memory map\n"
        " .text.MyNotify  0x00000000000002a0 0x20 a.obj\n"
        " .text.MyAllocate 0x0000000000002c00 0x200 a.obj\n"
    )
    open_drivers.cache_clear()
    trace = run(what)
    assert trace.records[-1][0] == Kind.FAULT
    assert trace.records[-1][6][1].startswith("XenBusDxe+0x2ceb [MyAllocate+0xeb]")
    named = run(described(operation("connect")))
    open_drivers.cache_clear()
    assert "function=XenBusDxe+0x2af [MyNotify+0xf]" in "\n".join(timeline.lines(named))
    assert [each.signature for each in judge(trace)] == [each.signature for each in judge(without)]
