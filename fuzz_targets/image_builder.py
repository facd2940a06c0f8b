"""Builds small PE32+ and TE files, option ROMs and firmware volumes, sound or broken on purpose: for tests and fuzzing."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

X64 = 0x8664
TEXT = 0x6000_0020
DATA = 0xC000_0040

RELOCATIONS_RVA = 0x3000
HEADERS_SIZE = 0x200


@dataclass
class Part:
    """A section to build. Fields that are None follow from the others."""

    name: bytes
    rva: int
    data: bytes
    virtual_size: int | None = None
    raw_size: int | None = None
    raw_offset: int | None = None
    characteristics: int = DATA


def relocation_block(page: int, entries: Iterable[tuple[int, int]]) -> bytes:
    """A block of (offset in page, type)."""
    words = [kind << 12 | offset for offset, kind in entries]
    return struct.pack(f"<II{len(words)}H", page, 8 + 2 * len(words), *words)


TEXT_PART = Part(b".text", 0x1000, b"\x48\x31\xc0\xc3", 0x1000, characteristics=TEXT)
DATA_PART = Part(b".data", 0x2000, struct.pack("<QQ", 0x11_2000, 0x11_1000), 0x1000)


def pe(
    parts: Iterable[Part] = (TEXT_PART, DATA_PART),
    relocations: bytes | None = None,
    *,
    machine: int = X64,
    subsystem: int = 11,
    magic: int = 0x20B,
    image_base: int = 0x11_0000,
    entry_point: int = 0x1000,
    size_of_image: int = 0x4000,
    size_of_headers: int = HEADERS_SIZE,
    section_alignment: int = 0x1000,
    characteristics: int = 0x22,
    directories: int = 16,
    optional_size: int = 240,
    section_count: int | None = None,
    header_offset: int = 0x80,
) -> bytes:
    """A PE32+ image. By default code that returns 0, and data with two 64-bit addresses; no relocations."""
    parts = list(parts)
    if relocations is not None:
        parts.append(Part(b".reloc", RELOCATIONS_RVA, relocations, 0x1000))
    table, body = _sections(parts, HEADERS_SIZE)
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, magic)
    struct.pack_into("<I", optional, 16, entry_point)
    struct.pack_into("<QII", optional, 24, image_base, section_alignment, 0x20)
    struct.pack_into("<II", optional, 56, size_of_image, size_of_headers)
    struct.pack_into("<H", optional, 68, subsystem)
    struct.pack_into("<I", optional, 108, directories)
    if relocations is not None:
        struct.pack_into("<II", optional, 112 + 8 * 5, RELOCATIONS_RVA, len(relocations))
    count = len(parts) if section_count is None else section_count
    coff = struct.pack("<HHIIIHH", machine, count, 0, 0, 0, optional_size, characteristics)
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", header_offset)
    head = dos.ljust(header_offset, b"\0") + b"PE\0\0" + coff + bytes(optional) + table
    return head.ljust(HEADERS_SIZE, b"\0") + body


def te(
    parts: Iterable[Part] = (TEXT_PART, DATA_PART),
    relocations: bytes | None = None,
    *,
    machine: int = X64,
    subsystem: int = 11,
    stripped_size: int = 0x1C0,
    entry_point: int = 0x1000,
    image_base: int = 0x11_0000,
    section_count: int | None = None,
) -> bytes:
    """A TE image of the same: its section headers still speak of the PE file that it was."""
    parts = list(parts)
    directory = (0, 0)
    if relocations is not None:
        parts.append(Part(b".reloc", RELOCATIONS_RVA, relocations, 0x1000))
        directory = (RELOCATIONS_RVA, len(relocations))
    table, body = _sections(parts, 40 + 40 * len(parts) + stripped_size - 40)
    count = len(parts) if section_count is None else section_count
    header = struct.pack(
        "<2sHBBHIIQIIII",
        *(b"VZ", machine, count, subsystem, stripped_size, entry_point, 0x1000, image_base, *directory, 0, 0),
    )
    return header + table + body


def _sections(parts: list[Part], first_offset: int) -> tuple[bytes, bytes]:
    """Section headers and the data behind all headers."""
    table, body = b"", b""
    for part in parts:
        raw_size = len(part.data) if part.raw_size is None else part.raw_size
        offset = first_offset + len(body) if part.raw_offset is None else part.raw_offset
        virtual_size = len(part.data) if part.virtual_size is None else part.virtual_size
        table += struct.pack("<8sIIIIIIHH", part.name, virtual_size, part.rva, raw_size, offset, 0, 0, 0, 0)
        table += struct.pack("<I", part.characteristics)
        body += part.data
    return table, body


def option_rom(
    image: bytes,
    *,
    code_type: int = 3,
    machine: int = X64,
    compression: int = 0,
    last: bool = True,
    signature: int = 0x0EF1,
    blocks: int | None = None,
    pcir: bytes = b"PCIR",
) -> bytes:
    """One image of an option ROM: header, PCI data structure, and the EFI image."""
    header_size = 0x38
    size = (header_size + len(image) + 511) // 512
    blocks = size if blocks is None else blocks
    header = struct.pack("<HHIHHH", 0xAA55, blocks, signature, 11, machine, compression)
    header = header.ljust(22, b"\0") + struct.pack("<HH", header_size, 0x1C)
    data = pcir + struct.pack("<HHHHBBHHHBBH", 0x5853, 1, 0, 24, 0, 0, 0, size, 0, code_type, 0x80 if last else 0, 0)
    return (header.ljust(0x1C, b"\0") + data.ljust(0x1C, b"\0") + image).ljust(size * 512, b"\0")


def file_section(kind: int, data: bytes) -> bytes:
    """A section of a firmware file."""
    return ((4 + len(data)).to_bytes(3, "little") + bytes([kind]) + data).ljust((len(data) + 7) & ~3, b"\0")


def firmware_file(guid: str, name: str, image: bytes | None, kind: int = 7, section: int = 0x10) -> bytes:
    """A file of a firmware volume, with an executable section and a name for people."""
    body = b"" if image is None else file_section(section, image)
    body += file_section(0x15, name.encode("utf-16-le") + b"\0\0") if name else b""
    size = (24 + len(body)).to_bytes(3, "little")
    return (uuid.UUID(guid).bytes_le + struct.pack("<HBB", 0, kind, 0) + size + b"\xf8" + body).ljust(
        (24 + len(body) + 7) & ~7, b"\xff"
    )


def volume(*files: bytes) -> bytes:
    """A firmware volume of these files."""
    body = b"".join(files) + b"\xff" * 64
    size = (72 + len(body) + 0xFFF) & ~0xFFF
    guid = uuid.UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3").bytes_le
    header = bytes(16) + guid + struct.pack("<Q4sIHHHBB", size, b"_FVH", 0x0004FEFF, 72, 0, 0, 0, 2)
    return (header + struct.pack("<IIII", size // 0x1000, 0x1000, 0, 0) + body).ljust(size, b"\xff")


def samples() -> dict[str, bytes]:
    """One image for each way through the loader, by name: what the fuzz target `pe_loader` starts from."""
    pointers = relocation_block(0x2000, [(0, 10), (8, 3), (0, 0)])
    packed = Part(b".text", 0x240, bytes(0x40)), Part(b".data", 0x280, bytes(0x20))
    return {
        "pe": pe(),
        "pe-relocations": pe(relocations=pointers + relocation_block(0x1000, [(4, 10)])),
        "pe-relocations-stripped": pe(characteristics=0x23),
        "pe-small-alignment": pe(packed, entry_point=0x240, section_alignment=0x20, size_of_image=0x2A0),
        "pe-other-machine": pe(machine=0xAA64),
        "te": te(),
        "te-relocations": te(relocations=pointers),
        "option-rom": option_rom(pe()),
        "option-rom-second": option_rom(b"", code_type=0, last=False) + option_rom(te()),
    }
