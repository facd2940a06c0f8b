"""Names for addresses: what backtraces say instead of image+offset, where the image's build left something to read.

Beside `XenBusDxe.efi`, or beside the firmware that a module `XenBusDxe` is in, these files are looked for:

* `XenBusDxe.map`: a map file of GNU ld (`-Map`), where functions have sections of their own or are global, or of MSVC
  (`/MAP`), with public and static functions.
* `XenBusDxe.debug`: an ELF file with a symbol table, as edk2's GCC tool chains leave it.

The first of them is read. Addresses in them are RVAs, or lie behind the address that the image was linked for.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

from guest import files
from guest.image import Image, ImageError

SIZE_MAX = 64 << 20  # bytes of a map or debug file

_NAME = r"([A-Za-z_?@$][\w?@$.<>~]*)"
_LD_SYMBOL = re.compile(rf" +0x([0-9a-f]{{8,16}}) +{_NAME}")
_LD_SECTION = re.compile(rf" \.(?:text|data|rodata|bss)[\w]*\.{_NAME}(?: +0x([0-9a-f]+) +0x([0-9a-f]+)(?: .*)?)?")
_LD_PLACE = re.compile(r" +0x([0-9a-f]+) +0x([0-9a-f]+)(?: .*)?")
_MSVC_SYMBOL = re.compile(rf" ([0-9a-f]{{4}}):[0-9a-f]{{8}} +{_NAME} +([0-9a-f]{{8,16}}) .*")


class Symbols:
    """The names of one image's addresses."""

    __slots__ = ("_image", "_names", "_rvas")

    def __init__(self, image: Image, entries: Iterable[tuple[int, str]] = ()) -> None:
        """Take (address, name); of several names for one address the first counts."""
        names: dict[int, str] = {}
        for address, name in entries:
            rva = address - image.image_base if address >= image.image_base else address
            if image.section_at(rva) is not None:
                names.setdefault(rva, name)
        self._image = image
        self._rvas = sorted(names)
        self._names = [names[rva] for rva in self._rvas]

    def __len__(self) -> int:
        return len(self._names)

    def symbol_at(self, rva: int) -> str | None:
        """`XenStoreWaitWatch+0x2f` for an RVA; None where no name of the same section comes before it."""
        index = bisect_right(self._rvas, rva) - 1
        section = self._image.section_at(rva)
        if index < 0 or section is None or self._rvas[index] < section.rva:
            return None
        offset = rva - self._rvas[index]
        return f"{self._names[index]}+0x{offset:x}" if offset else self._names[index]


def symbols_of(image: Image, spec: str, cache: Path | None = None) -> Symbols:
    """The names of `image`, which `open_image(spec, cache)` gave; empty where its build left nothing to read.

    Raises ImageError, with one line, for a file of the right name that cannot be used: names that are silently missing
    would be looked for elsewhere.
    """
    place = files.locate(spec, cache)
    if place is None:
        return Symbols(image)
    for suffix, read in ((".map", _read_map), (".debug", _read_elf)):
        path = place.parent / f"{image.name}{suffix}"
        try:
            if not path.is_file():
                continue
            with path.open("rb") as file:
                data = file.read(SIZE_MAX + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{path}: cannot be read: {error}") from None
        if len(data) > SIZE_MAX:
            raise ImageError(f"{path}: larger than {SIZE_MAX} bytes")
        try:
            found = Symbols(image, read(data))
        except (struct.error, _BrokenError):
            raise ImageError(f"{path}: expected an ELF file with a symbol table for X64") from None
        if not len(found):
            raise ImageError(f"{path}: no names for addresses of {image.name} in it")
        return found
    return Symbols(image)


class _BrokenError(Exception):
    """A debug file is none that can be read."""


def _read_map(data: bytes) -> Iterator[tuple[int, str]]:
    """The symbols of a map file. Which of the two it is shows its beginning."""
    lines = data.decode("utf-8", "replace").splitlines()
    for line in lines[:20]:
        if "Preferred load address" in line:
            return _read_msvc_map(lines)
    return _read_ld_map(lines)


def _read_msvc_map(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line in lines:
        found = _MSVC_SYMBOL.fullmatch(f"{line} ")
        if found and found[1] != "0000":  # segment 0 are constants, not addresses
            yield int(found[3], 16), found[2]


def _read_ld_map(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    placed = False  # before that come sections that were discarded
    pending = ""  # a section's name so long that its address stands on the next line
    for line in lines:
        if line.startswith("Linker script and memory map"):
            placed = True
        if not placed:
            continue
        if pending:
            place = _LD_PLACE.fullmatch(line)
            if place and int(place[2], 16):
                yield int(place[1], 16), pending
            pending = ""
            if place:
                continue
        section = _LD_SECTION.fullmatch(line)
        if section is None:
            symbol = _LD_SYMBOL.fullmatch(line)
            if symbol:
                yield int(symbol[1], 16), symbol[2]
        elif section[2] is None:
            pending = section[1]
        elif int(section[3], 16):
            yield int(section[2], 16), section[1]


def _read_elf(data: bytes) -> Iterator[tuple[int, str]]:
    """The functions, and then the objects, in the symbol table of an ELF file. Raises struct.error and _BrokenError."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise _BrokenError
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + index * entry_size) for index in range(count)]
    tables = [header for header in headers if header[1] == 2]  # SHT_SYMTAB
    if not tables or tables[0][6] >= count:
        raise _BrokenError
    offset, size, link = tables[0][4], tables[0][5], tables[0][6]
    names_offset, names_size = headers[link][4], headers[link][5]
    if offset + size > len(data) or names_offset + names_size > len(data) or size % 24:
        raise _BrokenError
    names = data[names_offset : names_offset + names_size]
    found = []
    for name, info, _, section, value, _ in struct.iter_unpack("<IBBHQQ", data[offset : offset + size]):
        kind = info & 0xF
        if kind > 2 or not 0 < section < 0xFF00:  # neither untyped, object nor function; undefined or absolute
            continue
        text = names[name : names.find(b"\0", name)].decode("ascii", "replace")
        if text and text.isprintable():
            found.append((-kind, value, text))
    return ((value, text) for _, value, text in sorted(found))
