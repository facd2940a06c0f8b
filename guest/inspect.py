"""What an image is, as far as its file shows it (form, sections, GUIDs of protocols in its data), and what it does.

A GUID in the data says that the driver has something to do with the protocol, not what: what it consumes and what it
produces is seen in a `trial`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guest.image import MACHINES, SCN_EXECUTE, SCN_READ, SCN_WRITE, SUBSYSTEMS, Image, Section, open_image
from guest.trial import Trial, try_image
from guest.well_known import NAMES


@dataclass(frozen=True, slots=True)
class Mention:
    """A known GUID in the data of an image.

    name  as traces show it
    guid  in the text form of the registry
    rvas  where it is, ascending
    """

    name: str
    guid: str
    rvas: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What `ebsfuzz inspect` says about an image.

    image    the image itself
    symbols  how many names for addresses were found beside it
    guids    by name
    trial    what it did when it was started
    """

    image: Image
    symbols: int
    guids: tuple[Mention, ...]
    trial: Trial

    def lines(self) -> Iterator[str]:
        """The report for people."""
        image = self.image
        yield f"{image.name}: {image.form} for {MACHINES[image.machine]}, {SUBSYSTEMS[image.subsystem]}"
        yield f"  size in memory  0x{image.size_of_image:x} bytes, aligned to 0x{image.alignment:x}"
        yield f"  entry point     +0x{image.entry_point:x}"
        if image.relocatable:
            yield f"  loads           anywhere ({len(image.relocations)} relocations)"
        else:
            yield f"  loads           at 0x{image.image_base:x} only (relocations are stripped)"
        yield f"  names           {self.symbols or 'none'}{'' if self.symbols else ' (no .map or .debug beside it)'}"
        yield "  sections"
        for section in image.sections:
            name = section.name or "(no name)"
            place = f"+0x{section.rva:<6x} 0x{section.virtual_size:<6x}"
            yield f"    {name:<8}  {place}  {_access(section)}  {len(section.raw)} bytes in the file"
        yield f"  known GUIDs in its data{'' if self.guids else ': none'}"
        width = max((len(mention.name) for mention in self.guids), default=0)
        for mention in self.guids:
            yield f"    {mention.name:<{width}}  {mention.guid}  {', '.join(f'+0x{rva:x}' for rva in mention.rvas)}"
        yield from self.trial.lines()

    def as_object(self) -> dict[str, Any]:
        """The report for programs, as JSON has it. Addresses are RVAs."""
        image = self.image
        return {
            "name": image.name,
            "form": image.form,
            "machine": MACHINES[image.machine],
            "subsystem": SUBSYSTEMS[image.subsystem],
            "image_base": image.image_base,
            "entry_point": image.entry_point,
            "size_of_image": image.size_of_image,
            "alignment": image.alignment,
            "relocatable": image.relocatable,
            "relocations": len(image.relocations),
            "symbols": self.symbols,
            "sections": [
                {
                    "name": section.name,
                    "rva": section.rva,
                    "virtual_size": section.virtual_size,
                    "file_size": len(section.raw),
                    "access": _access(section),
                }
                for section in image.sections
            ],
            "guids": [{"name": one.name, "guid": one.guid, "rvas": list(one.rvas)} for one in self.guids],
            "trial": asdict(self.trial),
        }


def describe(spec: str, cache: Path | None = None) -> Report:
    """The report about the image that `spec` names, as `guest.image.open_image` understands it. Starts it.

    Raises ImageError and ExtraMissing as `open_image` does.
    """
    image = open_image(spec, cache)
    return Report(image, len(image.symbols or ()), tuple(mentions(image)), try_image(spec, cache))


def mentions(image: Image) -> list[Mention]:
    """The known GUIDs in the data of an image, by name."""
    found = []
    for guid, name in NAMES.items():
        pattern = uuid.UUID(guid).bytes_le
        rvas = tuple(section.rva + at for section in image.sections for at in _places(section.raw, pattern))
        if rvas:
            found.append(Mention(name, guid, rvas))
    return sorted(found, key=lambda mention: mention.name)


def _places(data: bytes, pattern: bytes) -> Iterator[int]:
    at = data.find(pattern)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1)


def _access(section: Section) -> str:
    """`r-x` and so on."""
    bits = ((SCN_READ, "r"), (SCN_WRITE, "w"), (SCN_EXECUTE, "x"))
    return "".join(letter if section.characteristics & bit else "-" for bit, letter in bits)
