import dataclasses
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz_targets.image_builder import DATA_PART, TEXT_PART, Part, pe, relocation_block, te
from fuzz_targets.pe_loader import check
from guest import image
from guest.image import ImageError, parse

TWO_POINTERS = relocation_block(0x2000, [(0, 10), (8, 10)])
FORMS = pytest.mark.parametrize("build", [pe, te], ids=["PE32+", "TE"])


def test_pe_is_read():
    """A PE32+ image gives its header's fields, and its sections with the bytes that the file has of them."""
    found = parse(pe(relocations=TWO_POINTERS), "x.efi")
    assert (found.name, found.form, found.machine, found.subsystem) == ("x.efi", "PE32+", image.MACHINE_X64, 11)
    assert (found.image_base, found.entry_point, found.size_of_image) == (0x11_0000, 0x1000, 0x4000)
    assert (found.alignment, found.relocatable, found.headers_rva) == (0x1000, True, 0)
    assert [(one.name, one.rva, one.virtual_size, one.raw) for one in found.sections] == [
        (".text", 0x1000, 0x1000, TEXT_PART.data),
        (".data", 0x2000, 0x1000, DATA_PART.data),
        (".reloc", 0x3000, 0x1000, TWO_POINTERS),
    ]
    assert found.sections[0].characteristics & image.SCN_EXECUTE
    assert found.relocations == ((0x2000, image.REL_DIR64), (0x2008, image.REL_DIR64))
    assert len(found.headers) == 0x200


def test_te_is_read():
    """A TE image keeps the addresses of the PE file that it was made from."""
    found = parse(te(relocations=TWO_POINTERS), "x.te")
    assert (found.form, found.image_base, found.entry_point) == ("TE", 0x11_0000, 0x1000)
    assert [(one.name, one.rva, one.raw) for one in found.sections] == [
        (".text", 0x1000, TEXT_PART.data),
        (".data", 0x2000, DATA_PART.data),
        (".reloc", 0x3000, TWO_POINTERS),
    ]
    assert found.size_of_image == 0x4000
    assert found.relocations == ((0x2000, image.REL_DIR64), (0x2008, image.REL_DIR64))
    assert found.headers_rva == 0x1C0 - 40
    assert found.mapped(0x11_0000)[found.headers_rva : found.headers_rva + 2] == b"VZ"


def test_mapped_lays_the_image_out():
    """Headers and sections lie at their RVAs, and what the file does not have is zero."""
    memory = parse(pe(), "x").mapped(0x11_0000)
    assert len(memory) == 0x4000
    assert memory[:2] == b"MZ"
    assert memory[0x1000:0x1008] == TEXT_PART.data + bytes(4)
    assert memory[0x2000:0x2010] == DATA_PART.data
    assert not any(memory[0x2010:])


@FORMS
@pytest.mark.parametrize("base", [0, 0x10_0000, 0x11_0000, 0x7FFF_F000, 0xFFFF_FFFF_FFFF_0000])
def test_mapped_relocates(build, base):
    """Every 64-bit address moves with the image, wherever it goes, and nothing else changes."""
    found = parse(build(relocations=TWO_POINTERS), "x")
    memory = bytearray(found.mapped(base))
    limit = 1 << 64
    assert struct.unpack_from("<QQ", memory, 0x2000) == ((base + 0x2000) % limit, (base + 0x1000) % limit)
    memory[0x2000:0x2010] = DATA_PART.data
    assert memory == found.mapped(found.image_base)


def test_32_bit_relocations():
    """A 32-bit address moves, and where it would not fit any more the image is refused."""
    found = parse(pe(relocations=relocation_block(0x2000, [(0, 3), (0, 0)])), "x")
    assert found.relocations == ((0x2000, image.REL_HIGHLOW),)
    assert struct.unpack_from("<Q", found.mapped(0x40_0000), 0x2000) == (0x40_2000,)
    with pytest.raises(ImageError, match=r"x: RVA 0x2000: a 32-bit address becomes 0x100002000 at base 0x100000000"):
        found.mapped(0x1_0000_0000)


def test_image_without_relocations_stays_where_it_was_linked_for():
    """Stripped relocations leave one address; a PE image that merely has none can go anywhere."""
    stripped = parse(pe(characteristics=0x23), "x")
    assert len(stripped.mapped(0x11_0000)) == 0x4000
    with pytest.raises(ImageError, match="relocations are stripped, so it loads at 0x110000 and not at 0x0"):
        stripped.mapped(0)
    assert not parse(te(), "x").relocatable
    assert len(parse(pe(), "x").mapped(0)) == 0x4000
    assert len(parse(pe(directories=0), "x").mapped(0)) == 0x4000


def test_section_sizes():
    """Of a section the smaller of both sizes is loaded; without a size in memory the one in the file counts."""
    parts = [Part(b"a", 0x1000, b"12345678", 4), Part(b"b", 0x1800, b"abcd", 0), Part(b"c", 0x2000, b"", 0x1000)]
    found = parse(pe(parts), "x")
    assert [(one.virtual_size, one.raw) for one in found.sections] == [(4, b"1234"), (4, b"abcd"), (0x1000, b"")]


def test_sections_come_by_address():
    """Sections are given by their RVA, whatever their order in the file, and can be looked up by one."""
    found = parse(pe([DATA_PART, TEXT_PART]), "x")
    assert [one.name for one in found.sections] == [".text", ".data"]
    assert found.section_at(0x1FFF) is found.sections[0]
    assert found.section_at(0x2000) is found.sections[1]
    assert found.section_at(0xFFF) is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b".text", ".text"), (b"eightchr", "eightchr"), (b"a\x1b[2J", r"a\x1b[2J"), (b"\xff\n", r"\\xff\n"), (b"", "")],
)
def test_section_names_are_printable(name, shown):
    """A section's name never brings control characters to a terminal."""
    parts = [dataclasses.replace(TEXT_PART, name=name)]
    assert parse(pe(parts), "x").sections[0].name == shown


def test_image_with_the_smallest_alignments():
    """Sections right behind one another, as edk2 and iPXE lay them out to save room, are no mistake."""
    parts = [Part(b".text", 0x240, bytes(0x40)), Part(b".data", 0x280, bytes(0x20))]
    found = parse(pe(parts, entry_point=0x240, section_alignment=0x20, size_of_image=0x2A0), "x")
    assert [one.end for one in found.sections] == [0x280, 0x2A0]


def reloc(*words: int) -> bytes:
    """An image whose relocations are these 32-bit words."""
    return pe(relocations=struct.pack(f"<{len(words)}I", *words))


REFUSALS = {
    "empty": (b"", r"offset 0x0: expected MZ \(a PE image\) or VZ \(a TE image\), found nothing"),
    "something else": (b"\x7fELF", r"offset 0x0: expected MZ .*, found 7f 45"),
    "DOS header cut": (b"MZ" + bytes(20), r"offset 0x3c: expected the offset of the PE header, found the end .* 0x16"),
    "PE header outside": (pe(header_offset=0x80)[:0x80], r"offset 0x80: expected the PE signature, found the end"),
    "no PE signature": (
        pe().replace(b"PE\0\0", b"NE\0\0"),
        "offset 0x80: expected the PE signature, found 4e 45 00 00",
    ),
    "other machine": (pe(machine=0xAA64), r"offset 0x84: expected machine X64 \(0x8664\), found AArch64 \(0xaa64\)"),
    "unknown machine": (pe(machine=0x1234), "found 0x1234; ebsfuzz runs X64 images only"),
    "PE32": (pe(magic=0x10B), r"offset 0x98: expected a PE32\+ optional header \(0x20b\), found 0x10b"),
    "optional header cut": (
        pe()[:0xA0],
        "offset 0x98: expected the end of the optional header, found the end of the file",
    ),
    "application of Windows": (pe(subsystem=3), "expected an EFI subsystem .10 to 13., found 3"),
    "alignment": (pe(section_alignment=0x1800), "section alignment that is a power of two, found 0x1800"),
    "alignment zero": (pe(section_alignment=0), "section alignment that is a power of two, found 0x0"),
    "size zero": (pe(size_of_image=0), "expected an image of 1 to 0x1000000 bytes, found 0x0"),
    "size huge": (pe(size_of_image=0xFFFF_FFFF), "expected an image of 1 to 0x1000000 bytes, found 0xffffffff"),
    "headers small": (pe(size_of_headers=0x100), "expected headers of 0x1d8 to 0x4000 bytes, found 0x100"),
    "headers large": (pe(size_of_headers=0x5000), "expected headers of 0x1d8 to 0x4000 bytes, found 0x5000"),
    "headers beyond file": (pe(size_of_headers=0x3000), "offset 0x0: expected the end of the headers, found the end"),
    "no sections": (pe(section_count=0), "expected 1 to 96 sections, found 0"),
    "too many sections": (pe(section_count=97, size_of_headers=0x2000) + bytes(0x2000), "1 to 96 sections, found 97"),
    "section beyond image": (
        pe([dataclasses.replace(TEXT_PART, virtual_size=0x4000)]),
        "offset 0x194: expected section 0 to end within 0x4000, found 0x5000",
    ),
    "section beyond file": (
        pe([dataclasses.replace(TEXT_PART, raw_size=0x800)]),
        r"expected section 0 \(0x800 bytes\) to lie within the file, found it at 0x200",
    ),
    "sections overlap": (
        pe([TEXT_PART, dataclasses.replace(DATA_PART, rva=0x1800)]),
        "expected section '.data' at 0x2000 or higher, found 0x1800",
    ),
    "section over headers": (
        pe([dataclasses.replace(TEXT_PART, rva=0x100)], entry_point=0x100),
        "expected section '.text' at 0x200 or higher, found 0x100",
    ),
    "entry point outside": (
        pe(entry_point=0x3800),
        "offset 0xa8: expected an entry point inside a section, found RVA 0x3800",
    ),
    "no entry point": (pe(entry_point=0), "expected an entry point inside a section, found RVA 0x0"),
    "too many directories": (pe(directories=17), "expected at most 16 data directories, found 17"),
    "relocation block cut": (reloc(0x2000), "RVA 0x3000: expected a relocation block, found 4 bytes"),
    "relocation block empty": (
        reloc(0x2000, 0),
        "RVA 0x3000: expected a relocation block of an even size from 8 to 8 bytes",
    ),
    "relocation block odd": (reloc(0x2000, 11, 0), "of an even size from 8 to 12 bytes, found 11"),
    "relocation block too long": (reloc(0x2000, 16, 0), "of an even size from 8 to 12 bytes, found 16"),
    "relocation beyond image": (reloc(0x3000, 12, 0xAFFC), "expected relocations within 0x4000, found one at 0x3ffc"),
    "relocation type": (reloc(0x2000, 12, 0x4000), "expected relocations of type 0, 3 or 10, found 4"),
    "TE cut": (te()[:39], "offset 0x0: expected the end of the TE header, found the end of the file at 0x27"),
    "TE other machine": (te(machine=0x14C), r"offset 0x2: expected machine X64 \(0x8664\), found IA32"),
    "TE subsystem": (te(subsystem=9), "offset 0x5: expected an EFI subsystem"),
    "TE stripped": (te(stripped_size=39), "offset 0x6: expected at least 40 bytes to be stripped, found 39"),
    "TE no sections": (te(section_count=0), "expected 1 to 96 sections, found 0"),
    "TE section headers cut": (te()[:60], "expected the end of the section headers, found the end of the file"),
    "TE section in the headers": (
        te([dataclasses.replace(TEXT_PART, raw_offset=0x100)]),
        "to lie within the file, found it at 0x100 with the file from 0x198 to 0x1ec",
    ),
    "TE entry point": (te(entry_point=0x10), "offset 0x8: expected an entry point inside a section, found RVA 0x10"),
    "TE relocations": (te(relocations=b"\0" * 8), "expected a relocation block of an even size"),
}


@pytest.mark.parametrize(("data", "message"), REFUSALS.values(), ids=REFUSALS)
def test_malformed_image_is_refused_with_one_line(data, message):
    """What does not fit together is refused, and the line says where, what was expected, and what is there."""
    with pytest.raises(ImageError, match=message) as caught:
        parse(data, "file.efi")
    assert str(caught.value).startswith("file.efi: ")
    assert "\n" not in str(caught.value)


def test_relocations_outside_every_section_are_refused():
    """The relocations have to lie in what the file has of one section, not in zeros behind it."""
    data = bytearray(pe(relocations=TWO_POINTERS))
    directory = 0x98 + 112 + 8 * 5
    for rva, size in ((0x3001, len(TWO_POINTERS)), (0x3000, len(TWO_POINTERS) + 1), (0, 8), (0xFFFF_FFF8, 0xFFFF_FFFF)):
        struct.pack_into("<II", data, directory, rva, size)
        with pytest.raises(
            ImageError, match=f"expected relocations within a section's data, found 0x{size:x} bytes at RVA"
        ):
            parse(bytes(data), "x")


def test_optional_header_without_room_is_refused():
    """The fixed part of the optional header has to be there, whatever its magic number says."""
    data = bytearray(pe())
    struct.pack_into("<H", data, 0x84 + 16, 111)
    with pytest.raises(ImageError, match="offset 0x94: expected at least 112 bytes of optional header, found 111"):
        parse(bytes(data), "x")


def test_file_that_is_too_large_is_refused():
    """A file beyond the limit is not looked at."""
    with pytest.raises(ImageError, match="16777217 bytes; an image has at most 16777216"):
        parse(bytes(image.SIZE_MAX + 1), "x")


def test_relocations_are_bounded(monkeypatch):
    """There is a limit to relocations, so that a file of some megabytes does not become a list of gigabytes."""
    monkeypatch.setattr(image, "RELOCATIONS_MAX", 3)
    assert len(parse(pe(relocations=relocation_block(0x2000, [(0, 10)] * 3)), "x").relocations) == 3
    with pytest.raises(ImageError, match="expected at most 3 relocations, found more"):
        parse(pe(relocations=relocation_block(0x2000, [(0, 10)] * 4)), "x")


def test_largest_image_takes_bounded_time():
    """As many relocations as can be, in an image as large as can be, are a matter of seconds."""
    block = relocation_block(0x2000, [(0, 10)] * (image.RELOCATIONS_MAX // 2))
    part = Part(b".reloc", 0x3000, block + block)
    data = bytearray(pe([TEXT_PART, DATA_PART, part], size_of_image=image.SIZE_MAX))
    struct.pack_into("<II", data, 0x98 + 112 + 8 * 5, 0x3000, len(part.data))
    started = time.process_time()
    found = parse(bytes(data), "x")
    assert len(found.relocations) == image.RELOCATIONS_MAX
    found.mapped(0)
    assert time.process_time() - started < 20


BUILT = [pe(), pe(relocations=TWO_POINTERS), te(), te(relocations=TWO_POINTERS), pe(characteristics=0x23)]
EDGES = st.sampled_from(
    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\0\0\0", b"\0\0\0\x80", b"\xff\x7f\0\0", b"\0\x10\0\0"]
)


@given(
    st.sampled_from(BUILT),
    st.lists(st.tuples(st.integers(0, 0x240), st.binary(min_size=1, max_size=4) | EDGES), max_size=6),
    st.integers(0, 0x400),
)
@settings(max_examples=400, deadline=None)
def test_damaged_images_are_refused_or_fit_together(data, changes, cut):
    """Whatever happens to a file, it is refused with one line, or the image that it gives fits together."""
    damaged = bytearray(data)
    for offset, new in changes:
        damaged[offset : offset + len(new)] = new
    check(bytes(damaged[: len(damaged) - (cut if cut < 0x40 else 0)]))


@given(st.binary(max_size=600), st.sampled_from([b"", b"MZ", b"VZ", b"VZ\x64\x86\x01\x0b"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_or_fit_together(data, start):
    """Bytes that never were an image are refused with one line."""
    check(start + data)
