"""PE32+ and TE images: read strictly, laid out in memory and relocated as firmware does it.

An image comes from a file that somebody else made, so nothing in it is believed: whatever the bytes, `parse` gives an
image that fits together or raises ImageError, in time and memory that are bounded by the limits below. The parser is our
own: the generally used one takes the small file alignments of firmware images for mistakes and reads other bytes.

An image keeps the addresses of its PE form: an RVA counts from where the PE header would lie, in a TE image too, where
that header is not there any more (it is stripped, and what is left of it ends right before the first section).

Sources: Microsoft PE and COFF specification; UEFI 2.10 §2.1.1 (images), PI 1.8 volume 1 §15 (TE images); edk2's
BasePeCoffLib for what firmware makes of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from guest.symbols import Symbols

SIZE_MAX = 16 << 20  # bytes of a file and of an image in memory; the largest drivers of the field have 2 MiB
SECTIONS_MAX = 96  # what the PE specification allows
RELOCATIONS_MAX = 1 << 20

MACHINE_X64 = 0x8664
MACHINES = {
    0x014C: "IA32",
    0x01C2: "ARM",
    0x0200: "Itanium",
    0x0EBC: "EFI byte code",
    0x5032: "RISC-V 32",
    0x5064: "RISC-V 64",
    0x6264: "LoongArch 64",
    MACHINE_X64: "X64",
    0xAA64: "AArch64",
}
SUBSYSTEMS = {10: "application", 11: "boot service driver", 12: "runtime driver", 13: "SAL runtime driver"}

REL_ABSOLUTE = 0  # padding
REL_HIGHLOW = 3  # 32 bits
REL_DIR64 = 10  # 64 bits
_WIDTHS = {REL_HIGHLOW: 4, REL_DIR64: 8}

SCN_EXECUTE = 0x2000_0000
SCN_READ = 0x4000_0000
SCN_WRITE = 0x8000_0000

_TE_HEADER_SIZE = 40
_SECTION_HEADER_SIZE = 40
_RELOCATIONS_STRIPPED = 1
_DIRECTORY_RELOCATIONS = 5


class ImageError(Exception):
    """Something is no image that can be loaded. The message is one line: file, offset, what was expected and seen."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section of an image.

    name             as in the header; what is not printable is shown as an escape
    rva              where it begins in the loaded image
    virtual_size     bytes in memory
    raw              the bytes that come from the file, never more than virtual_size; the rest is zero
    characteristics  SCN_EXECUTE and so on
    """

    name: str
    rva: int
    virtual_size: int
    raw: bytes = field(repr=False)
    characteristics: int

    @property
    def end(self) -> int:
        """The first RVA behind the section."""
        return self.rva + self.virtual_size


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it is in its file, checked.

    name           what messages and backtraces call it
    form           "PE32+" or "TE"
    machine        MACHINE_X64
    subsystem      one of SUBSYSTEMS
    image_base     the address that it was linked for
    entry_point    RVA
    size_of_image  bytes in memory
    alignment      what the address must be a multiple of, a power of two
    sections       by RVA, without overlaps
    relocations    (RVA, REL_HIGHLOW or REL_DIR64), by their place in the file
    relocatable    False: it can be loaded at image_base only
    headers        what is loaded in front of the sections, at headers_rva
    symbols        names for its addresses, where its build has left them beside it
    """

    name: str
    form: str
    machine: int
    subsystem: int
    image_base: int
    entry_point: int
    size_of_image: int
    alignment: int
    sections: tuple[Section, ...]
    relocations: tuple[tuple[int, int], ...] = field(repr=False)
    relocatable: bool
    headers: bytes = field(repr=False)
    headers_rva: int
    symbols: Symbols | None = field(default=None, repr=False, compare=False)
    _laid_out: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)

    def mapped(self, base: int) -> bytes:
        """The image laid out and relocated for the address `base`: size_of_image bytes.

        It is loaded at the same few addresses again and again, so what was made is kept.
        Raises ImageError where it cannot be loaded there.
        """
        if base not in self._laid_out:
            self._laid_out[base] = bytes(self._lay_out(base))
        return self._laid_out[base]

    def _lay_out(self, base: int) -> bytearray:
        delta = base - self.image_base
        if delta and not self.relocatable:
            _refuse(
                self.name, f"its relocations are stripped, so it loads at 0x{self.image_base:x} and not at 0x{base:x}"
            )
        memory = bytearray(self.size_of_image)
        memory[self.headers_rva : self.headers_rva + len(self.headers)] = self.headers
        for section in self.sections:
            memory[section.rva : section.rva + len(section.raw)] = section.raw
        if not delta:
            return memory
        for rva, kind in self.relocations:
            if kind == REL_DIR64:
                value = int.from_bytes(memory[rva : rva + 8], "little") + delta
                memory[rva : rva + 8] = (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
            else:
                value = int.from_bytes(memory[rva : rva + 4], "little") + delta
                if not 0 <= value <= 0xFFFF_FFFF:
                    _refuse(self.name, f"RVA 0x{rva:x}: a 32-bit address becomes 0x{value:x} at base 0x{base:x}")
                memory[rva : rva + 4] = value.to_bytes(4, "little")
        return memory

    def section_at(self, rva: int) -> Section | None:
        """The section that `rva` lies in."""
        for section in self.sections:
            if section.rva <= rva < section.end:
                return section
        return None


def is_image(data: bytes) -> bool:
    """Whether `data` begins like a PE or a TE image."""
    return data[:2] in (b"MZ", b"VZ")


def parse(data: bytes, name: str) -> Image:
    """The image in `data`, which messages call `name`.

    Raises ImageError for whatever is malformed, and for what is well-formed but not for this machine, and nothing else.
    """
    if len(data) > SIZE_MAX:
        _refuse(name, f"{len(data)} bytes; an image has at most {SIZE_MAX}")
    if data[:2] == b"VZ":
        return _parse_te(_Bytes(data, name))
    if data[:2] == b"MZ":
        return _parse_pe(_Bytes(data, name))
    return _refuse(name, f"offset 0x0: expected MZ (a PE image) or VZ (a TE image), found {_shown(data[:2])}")


def open_image(spec: str, cache: Path | None = None) -> Image:
    """The image that `spec` names: `driver.efi`, `card.rom`, or a module of a volume, `OVMF_CODE_4M.fd:XenBusDxe`.

    The kind of a file is seen by its content. A module is named by its name or GUID. A relative path that does not exist
    is looked up in the firmware cache, with its suite (`bullseye/OVMF_CODE_4M.fd`) or without, where only one suite's
    file has the module.

    Raises ImageError, with one line, for whatever is wrong; ExtraMissing where the extra `efi` is needed and missing.
    """
    from guest import files, symbols  # late: they need this module

    image = files.open_image(spec, cache)
    return replace(image, symbols=symbols.symbols_of(image, spec, cache))


def _parse_pe(data: _Bytes) -> Image:
    header = data.u32(0x3C, "the offset of the PE header")
    if data.slice(header, 4, "the PE signature") != b"PE\0\0":
        data.refuse(header, f"expected the PE signature, found {_shown(data.raw[header : header + 4])}")
    coff = header + 4
    _check_machine(data, coff)
    section_count = data.u16(coff + 2, "the number of sections")
    optional_size = data.u16(coff + 16, "the size of the optional header")
    characteristics = data.u16(coff + 18, "the characteristics")
    optional = coff + 20
    magic = data.u16(optional, "the optional header")
    if magic != 0x20B:
        data.refuse(optional, f"expected a PE32+ optional header (0x20b), found 0x{magic:x}")
    if optional_size < 112:
        data.refuse(coff + 16, f"expected at least 112 bytes of optional header, found {optional_size}")
    data.slice(optional, optional_size, "the end of the optional header")
    entry_point = data.u32(optional + 16, "the entry point")
    image_base = data.u64(optional + 24, "the image base")
    alignment = data.u32(optional + 32, "the section alignment")
    size_of_image = data.u32(optional + 56, "the size of the image")
    size_of_headers = data.u32(optional + 60, "the size of the headers")
    subsystem = data.u16(optional + 68, "the subsystem")
    _check_subsystem(data, optional + 68, subsystem)
    if not 0 < alignment <= SIZE_MAX or alignment & (alignment - 1):
        data.refuse(optional + 32, f"expected a section alignment that is a power of two, found 0x{alignment:x}")
    if not 0 < size_of_image <= SIZE_MAX:
        data.refuse(optional + 56, f"expected an image of 1 to 0x{SIZE_MAX:x} bytes, found 0x{size_of_image:x}")
    table = optional + optional_size
    table_end = table + section_count * _SECTION_HEADER_SIZE
    if not table_end <= size_of_headers <= size_of_image:
        data.refuse(
            optional + 60,
            f"expected headers of 0x{table_end:x} to 0x{size_of_image:x} bytes, found 0x{size_of_headers:x}",
        )
    headers = data.slice(0, size_of_headers, "the end of the headers")
    sections = _sections(data, table, section_count, size_of_headers, size_of_image, 0)
    _check_entry_point(data, optional + 16, entry_point, sections)

    directory = optional + 112
    count = data.u32(optional + 108, "the number of data directories")
    if count > (optional_size - 112) // 8:
        data.refuse(optional + 108, f"expected at most {(optional_size - 112) // 8} data directories, found {count}")
    relocations: tuple[tuple[int, int], ...] = ()
    if count > _DIRECTORY_RELOCATIONS:
        at = directory + 8 * _DIRECTORY_RELOCATIONS
        relocations = _relocations(data, at, sections, size_of_image)
    return Image(
        name=data.name,
        form="PE32+",
        machine=MACHINE_X64,
        subsystem=subsystem,
        image_base=image_base,
        entry_point=entry_point,
        size_of_image=size_of_image,
        alignment=alignment,
        sections=sections,
        relocations=relocations,
        relocatable=not characteristics & _RELOCATIONS_STRIPPED,
        headers=headers,
        headers_rva=0,
    )


def _parse_te(data: _Bytes) -> Image:
    data.slice(0, _TE_HEADER_SIZE, "the end of the TE header")
    _check_machine(data, 2)
    section_count, subsystem, stripped_size = struct.unpack_from("<BBH", data.raw, 4)
    _check_subsystem(data, 5, subsystem)
    if stripped_size < _TE_HEADER_SIZE:
        data.refuse(6, f"expected at least {_TE_HEADER_SIZE} bytes to be stripped, found {stripped_size}")
    shift = stripped_size - _TE_HEADER_SIZE  # from an offset in this file to the one in the PE file that it was
    entry_point = data.u32(8, "the entry point")
    image_base = data.u64(16, "the image base")
    headers_size = _TE_HEADER_SIZE + section_count * _SECTION_HEADER_SIZE
    headers = data.slice(0, headers_size, "the end of the section headers")
    sections = _sections(data, _TE_HEADER_SIZE, section_count, shift + headers_size, SIZE_MAX, shift)
    _check_entry_point(data, 8, entry_point, sections)
    size_of_image = max(section.end for section in sections)
    return Image(
        name=data.name,
        form="TE",
        machine=MACHINE_X64,
        subsystem=subsystem,
        image_base=image_base,
        entry_point=entry_point,
        size_of_image=size_of_image,
        alignment=1,  # the header does not say it
        sections=sections,
        relocations=_relocations(data, 24, sections, size_of_image),
        relocatable=struct.unpack_from("<II", data.raw, 24) != (0, 0),
        headers=headers,
        headers_rva=shift,
    )


# ---- parts that both forms have -----------------------------------------------------------------------------------


def _check_machine(data: _Bytes, offset: int) -> None:
    machine = data.u16(offset, "the machine")
    if machine != MACHINE_X64:
        found = f"{MACHINES[machine]} (0x{machine:x})" if machine in MACHINES else f"0x{machine:x}"
        data.refuse(offset, f"expected machine X64 (0x{MACHINE_X64:x}), found {found}; ebsfuzz runs X64 images only")


def _check_subsystem(data: _Bytes, offset: int, subsystem: int) -> None:
    if subsystem not in SUBSYSTEMS:
        data.refuse(offset, f"expected an EFI subsystem (10 to 13), found {subsystem}")


def _check_entry_point(data: _Bytes, offset: int, entry_point: int, sections: tuple[Section, ...]) -> None:
    if not any(section.rva <= entry_point < section.end for section in sections):
        data.refuse(offset, f"expected an entry point inside a section, found RVA 0x{entry_point:x}")


def _sections(
    data: _Bytes, table: int, count: int, first_rva: int, size_of_image: int, shift: int
) -> tuple[Section, ...]:
    """The sections of the `count` headers at `table`, checked: inside the file and the image, without overlaps.

    first_rva  where the headers end
    shift      how many bytes farther to the end than in the file the section headers say that data lies
    """
    if not 0 < count <= SECTIONS_MAX:
        data.refuse(table, f"expected 1 to {SECTIONS_MAX} sections, found {count}")
    found = []
    for index in range(count):
        at = table + index * _SECTION_HEADER_SIZE
        header = data.slice(at, _SECTION_HEADER_SIZE, f"the end of section header {index}")
        virtual_size, rva, raw_size, raw_offset = struct.unpack_from("<IIII", header, 8)
        (characteristics,) = struct.unpack_from("<I", header, 36)
        # Without a size in memory the one in the file counts, and what the file has beyond it is padding (edk2).
        virtual_size = virtual_size or raw_size
        raw_size = min(raw_size, virtual_size)
        if rva + virtual_size > size_of_image:
            data.refuse(
                at + 12, f"expected section {index} to end within 0x{size_of_image:x}, found 0x{rva + virtual_size:x}"
            )
        if raw_size and not shift <= raw_offset <= len(data.raw) + shift - raw_size:
            data.refuse(
                at + 20,
                f"expected section {index} (0x{raw_size:x} bytes) to lie within the file, "
                f"found it at 0x{raw_offset:x} with the file from 0x{shift:x} to 0x{len(data.raw) + shift:x}",
            )
        raw = data.raw[raw_offset - shift : raw_offset - shift + raw_size] if raw_size else b""
        name = header[:8].rstrip(b"\0").decode("ascii", "backslashreplace")
        name = name if name.isprintable() else repr(name)[1:-1]
        found.append((at, Section(name, rva, virtual_size, raw, characteristics)))
    found.sort(key=lambda pair: pair[1].rva)
    end = first_rva
    for at, section in found:
        if section.virtual_size and section.rva < end:
            data.refuse(at + 12, f"expected section {section.name!r} at 0x{end:x} or higher, found 0x{section.rva:x}")
        end = max(end, section.end)
    return tuple(section for _, section in found)


def _relocations(
    data: _Bytes, at: int, sections: tuple[Section, ...], size_of_image: int
) -> tuple[tuple[int, int], ...]:
    """The relocations that the data directory at the offset `at` names."""
    rva = data.u32(at, "the address of the relocations")
    size = data.u32(at + 4, "the size of the relocations")
    if not size:
        return ()
    for section in sections:
        if section.rva <= rva and rva + size <= section.rva + len(section.raw):
            block = section.raw[rva - section.rva : rva - section.rva + size]
            break
    else:
        data.refuse(at, f"expected relocations within a section's data, found 0x{size:x} bytes at RVA 0x{rva:x}")
    found: list[tuple[int, int]] = []
    position = 0
    while position < size:
        where = f"RVA 0x{rva + position:x}"
        if size - position < 8:
            _refuse(data.name, f"{where}: expected a relocation block, found {size - position} bytes")
        page, block_size = struct.unpack_from("<II", block, position)
        if block_size < 8 or block_size % 2 or block_size > size - position:
            _refuse(
                data.name,
                f"{where}: expected a relocation block of an even size from 8 to {size - position} bytes, "
                f"found {block_size}",
            )
        if len(found) + (block_size - 8) // 2 > RELOCATIONS_MAX:
            _refuse(data.name, f"{where}: expected at most {RELOCATIONS_MAX} relocations, found more")
        for (entry,) in struct.iter_unpack("<H", block[position + 8 : position + block_size]):
            kind = entry >> 12
            if kind == REL_ABSOLUTE:
                continue
            width = _WIDTHS.get(kind)
            if width is None:
                _refuse(data.name, f"{where}: expected relocations of type 0, 3 or 10, found {kind}")
            target = page + (entry & 0xFFF)
            if target + width > size_of_image:
                _refuse(
                    data.name, f"{where}: expected relocations within 0x{size_of_image:x}, found one at 0x{target:x}"
                )
            found.append((target, kind))
        position += block_size
    return tuple(found)


class _Bytes:
    """The bytes of a file; every access is checked, and names what it wanted."""

    __slots__ = ("name", "raw")

    def __init__(self, raw: bytes, name: str) -> None:
        self.raw = raw
        self.name = name

    def slice(self, offset: int, size: int, what: str) -> bytes:
        if offset + size > len(self.raw):
            self.refuse(offset, f"expected {what}, found the end of the file at 0x{len(self.raw):x}")
        return self.raw[offset : offset + size]

    def u16(self, offset: int, what: str) -> int:
        return int.from_bytes(self.slice(offset, 2, what), "little")

    def u32(self, offset: int, what: str) -> int:
        return int.from_bytes(self.slice(offset, 4, what), "little")

    def u64(self, offset: int, what: str) -> int:
        return int.from_bytes(self.slice(offset, 8, what), "little")

    def refuse(self, offset: int, why: str) -> NoReturn:
        _refuse(self.name, f"offset 0x{offset:x}: {why}")


def _refuse(name: str, why: str) -> NoReturn:
    raise ImageError(f"{name}: {why}")


def _shown(data: bytes) -> str:
    return data.hex(" ") if data else "nothing"
