"""PCI option ROMs: the EFI image for X64 in one.

A ROM is a chain of images, each with a header of its own; one of them may be an EFI image, compressed or not. Sources:
PCI Firmware Specification 3.0 §5.1, UEFI 2.10 §14.4.2.
"""

from __future__ import annotations

import struct

from guest import require
from guest.image import MACHINE_X64, MACHINES, SIZE_MAX, ImageError

_SIGNATURE = b"\x55\xaa"
_EFI_SIGNATURE = 0x0EF1
_CODE_TYPE_EFI = 3
_BLOCK_SIZE = 512  # bytes


def is_option_rom(data: bytes) -> bool:
    """Whether `data` begins like an option ROM."""
    return data[:2] == _SIGNATURE


def efi_image(data: bytes, name: str) -> bytes:
    """The bytes of the first EFI image for X64 in an option ROM that messages call `name`; decompressed.

    Raises ImageError where there is none or the chain is broken, ExtraMissing where it is compressed and the extra
    `efi` is missing.
    """
    if len(data) > SIZE_MAX:
        raise ImageError(f"{name}: {len(data)} bytes; an option ROM has at most {SIZE_MAX}")
    others = []
    at = 0
    while True:
        if data[at : at + 2] != _SIGNATURE or at + 28 > len(data):
            raise ImageError(f"{name}: offset 0x{at:x}: expected an option ROM's header (55 aa)")
        (pcir,) = struct.unpack_from("<H", data, at + 24)
        if data[at + pcir : at + pcir + 4] != b"PCIR" or at + pcir + 24 > len(data):
            raise ImageError(f"{name}: offset 0x{at + pcir:x}: expected the header PCIR")
        blocks, _, code_type, indicator = struct.unpack_from("<HHBB", data, at + pcir + 16)
        if code_type == _CODE_TYPE_EFI:
            signature, _, machine, compression = struct.unpack_from("<IHHH", data, at + 4)
            if signature != _EFI_SIGNATURE:
                raise ImageError(
                    f"{name}: offset 0x{at + 4:x}: expected the EFI signature 0xef1, found 0x{signature:x}"
                )
            if machine == MACHINE_X64:
                return _image_at(data, at, compression, name)
            others.append(f"one for {MACHINES.get(machine, hex(machine))}")
        else:
            others.append("one for PC BIOS" if code_type == 0 else f"one of type {code_type}")
        if indicator & 0x80 or not blocks:
            raise ImageError(f"{name}: no EFI image for X64 in this option ROM; it has {', '.join(others)}")
        at += blocks * _BLOCK_SIZE


def _image_at(data: bytes, at: int, compression: int, name: str) -> bytes:
    """The image of the ROM header at `at`."""
    (blocks,) = struct.unpack_from("<H", data, at + 2)
    (offset,) = struct.unpack_from("<H", data, at + 22)
    end = at + blocks * _BLOCK_SIZE
    if not at + offset < end <= len(data):
        raise ImageError(
            f"{name}: offset 0x{at:x}: expected an image of 0x{offset:x} to 0x{end - at:x} within the file"
        )
    image = data[at + offset : end]
    if compression == 0:
        return image
    if compression != 1:
        raise ImageError(f"{name}: offset 0x{at + 12:x}: expected compression 0 or 1, found {compression}")
    return _decompressed(image, f"{name}: offset 0x{at + offset:x}")


def _decompressed(data: bytes, where: str) -> bytes:
    """What the UEFI compression algorithm (UEFI 2.10 §19) made `data` of. `where` begins messages."""
    if len(data) < 8:
        raise ImageError(f"{where}: expected compressed data, found {len(data)} bytes")
    compressed_size, size = struct.unpack_from("<II", data)
    if compressed_size > len(data) - 8 or not 0 < size <= SIZE_MAX:
        raise ImageError(
            f"{where}: expected at most {len(data) - 8} compressed bytes of at most {SIZE_MAX}, "
            f"found {compressed_size} of {size}"
        )
    decompress = require("uefi_firmware.efi_compressor").EfiDecompress
    try:
        found = bytes(decompress(data[: compressed_size + 8], compressed_size + 8))
    except Exception as error:  # the extension has no exception of its own
        raise ImageError(f"{where}: compressed data is broken: {error}") from None
    if len(found) != size:
        raise ImageError(f"{where}: expected {size} decompressed bytes, found {len(found)}")
    return found
