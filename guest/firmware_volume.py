"""Firmware volumes: which modules lie in them, and the executable section of one.

The package uefi_firmware takes volumes apart, compressed ones too. It reads what it can and skips the rest, as one wants
it of dumps of real machines; what it gives is checked when the image is parsed.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from guest import require
from guest.image import ImageError

SIZE_MAX = 64 << 20  # bytes; the largest flash chips of PCs have half of it

_KINDS = {
    0x03: "security core",
    0x04: "PEI core",
    0x05: "DXE core",
    0x06: "PEI module",
    0x07: "driver",
    0x08: "PEI module and driver",
    0x09: "application",
    0x0A: "MM driver",
    0x0C: "MM driver and driver",
    0x0D: "MM core",
    0x0E: "standalone MM driver",
    0x0F: "standalone MM core",
}
_SECTION_PE32, _SECTION_TE, _SECTION_USER_INTERFACE = 0x10, 0x12, 0x15


class Module(NamedTuple):
    """One file of a volume that has an executable section.

    guid   the file's name in the volume, in the text form of the registry
    name   its name for people, "" where it has none
    kind   "driver", "application" and so on
    size   bytes of the executable section
    image  its bytes: a PE or a TE image
    """

    guid: str
    name: str
    kind: str
    size: int
    image: bytes

    def __repr__(self) -> str:
        return f"Module({self.guid!r}, {self.name!r}, {self.kind!r}, {self.size})"


def is_volume(data: bytes) -> bool:
    """Whether there is the signature of a volume anywhere in `data`."""
    return b"_FVH" in data


@functools.lru_cache(maxsize=4)
def modules(data: bytes, name: str = "firmware volume") -> tuple[Module, ...]:
    """The modules of all volumes in `data`, in their order; messages call it `name`.

    The same bytes give the same answer, so the last few are kept: it takes a third of a second to find it.
    Raises ImageError where there is no volume or none that can be read, ExtraMissing without the extra `efi`.
    """
    if len(data) > SIZE_MAX:
        raise ImageError(f"{name}: {len(data)} bytes; firmware has at most {SIZE_MAX}")
    uefi_firmware = require("uefi_firmware")
    with _quiet():
        try:
            firmware = uefi_firmware.AutoParser(data).parse()
            found = tuple(_modules_in(firmware)) if firmware is not None else None
        except Exception as error:  # the package trusts what it reads, and fails in many ways where it is broken
            raise ImageError(f"{name}: cannot be read as firmware: {type(error).__name__}: {error}") from None
    if found is None:
        raise ImageError(f"{name}: expected a firmware volume, found none at the beginning")
    return found


def module(data: bytes, wanted: str, name: str = "firmware volume") -> Module:
    """The module whose name or GUID is `wanted`.

    Raises ImageError where there is none, with what comes near, and where a name stands for several; otherwise as
    `modules`.
    """
    there = modules(data, name)
    found = [one for one in there if wanted in (one.name, one.guid) or wanted.lower() == one.guid]
    if len(found) > 1 and len({one.image for one in found}) > 1:
        guids = ", ".join(one.guid for one in found)
        raise ImageError(f"{name}: {len(found)} modules are called {wanted!r}; say which by its GUID: {guids}")
    if found:
        return found[0]
    names = {one.name.lower(): one.name for one in there if one.name} | {one.guid: one.guid for one in there}
    close = [names[key] for key in difflib.get_close_matches(wanted.lower(), names, 3)]
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else f"; it has {len(there)} modules"
    raise ImageError(f"{name}: no module {wanted[:80]!r}{hint}")


def _modules_in(item: Any, file: list[Any] | None = None) -> Iterator[Module]:
    """The modules below `item`. `file` collects what the file around it has: name, and executable section."""
    sort = type(item).__name__
    if sort == "FirmwareFile":
        parts: list[Any] = ["", None]
        inner = [found for child in item.objects for found in _modules_in(child, parts)]
        name, image = parts
        if image is not None:
            kind = _KINDS.get(item.type, f"file of type 0x{item.type:02x}")
            yield Module(str(uuid.UUID(bytes_le=bytes(item.guid))), name, kind, len(image), image)
        yield from inner
        return
    if sort == "FirmwareFileSystemSection" and file is not None:
        if item.type == _SECTION_USER_INTERFACE:
            file[0] = item.name or ""
        elif item.type in (_SECTION_PE32, _SECTION_TE) and file[1] is None:
            file[1] = bytes(item.data)
    for child in getattr(item, "objects", None) or ():
        yield from _modules_in(child, file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's own messages off the terminal, and logging as it was.

    Its calls of `logging.info` would set up the root logger for the rest of the process if there were no handler.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeHandler(handler)
