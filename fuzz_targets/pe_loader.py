#!/usr/bin/env python3
"""Fuzzes the loader of real images with broken ones: nothing but ImageError, and what loads fits together.

A libFuzzer program. Its inputs are files, not scenarios: a PE32+ or TE image, or an option ROM. libFuzzer's own mutator
is right for them, with comparisons as feedback, because the magic numbers of the formats are compared with; it starts
from the images of `image_builder`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from fuzz_targets.engine import EngineMissing, import_atheris

    try:
        atheris = import_atheris()
    except EngineMissing as error:
        print(f"pe_loader: {error}", file=sys.stderr)
        sys.exit(3)
    with atheris.instrument_imports(include=["guest.image", "guest.option_rom"]):
        import guest.image
        import guest.option_rom  # noqa: F401 -- it has to be instrumented before the imports below find it

from fuzz_targets.image_builder import samples  # noqa: E402
from guest import ExtraMissing, image, option_rom  # noqa: E402
from guest.image import Image, ImageError, parse  # noqa: E402

SEEDS = tuple(samples().values())
INPUT_SIZE_MAX = 4096  # bytes; an image with every part that the loader looks at needs a quarter of it
BASES = (0, 0x7654_3000, 0xFFFF_FFFF_FFFF_F000)


def check(data: bytes) -> Image | None:
    """Load `data` as an image; None where it was refused.

    Raises AssertionError where what was loaded does not fit together, or where a refusal is not one line.
    """
    try:
        if option_rom.is_option_rom(data):
            data = option_rom.efi_image(data, "x")
        found = parse(data, "x")
    except ExtraMissing:
        return None  # a compressed option ROM, and nothing here that decompresses it
    except ImageError as error:
        message = str(error)
        if not (message.startswith("x: ") and message.isprintable()):
            raise AssertionError(f"no line for people: {message!r}") from None
        return None
    end = found.headers_rva + len(found.headers)
    for section in found.sections:
        assert len(section.raw) <= section.virtual_size, f"{section} has more data than room"
        assert section.rva >= end or not section.virtual_size, f"{section} begins before 0x{end:x}"
        assert section.name.isprintable(), f"{section} has a name that a terminal would take for commands"
        end = max(end, section.end)
    assert end <= found.size_of_image <= image.SIZE_MAX, f"sections end at 0x{end:x} of 0x{found.size_of_image:x}"
    assert found.section_at(found.entry_point) is not None, f"entry point 0x{found.entry_point:x} outside"
    for base in (found.image_base, *BASES):
        try:
            size = len(found.mapped(base))
        except ImageError:
            assert base != found.image_base, "the image does not load at the address that it was linked for"
        else:
            assert size == found.size_of_image, f"0x{size:x} bytes at 0x{base:x}, not 0x{found.size_of_image:x}"
    return found


def _check(data: bytes) -> None:
    check(data)  # libFuzzer takes an answer for a request to drop the input


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """What libFuzzer makes of `data`, or of one of the seeds where that is nothing yet, as it is in the beginning."""
    if len(data) < 2:
        return SEEDS[seed % len(SEEDS)][:max_size]
    changed: bytes = atheris.Mutate(data, max_size)
    return changed


def main() -> NoReturn:
    """Run libFuzzer over `check`; every exception is a crash."""
    given = sys.argv[1:]
    options = [] if any(one.startswith("-max_len=") for one in given) else [f"-max_len={INPUT_SIZE_MAX}"]
    atheris.Setup([str(Path(sys.argv[0]).resolve()), *options, *given], _check, custom_mutator=mutate)
    atheris.Fuzz()
    raise AssertionError("atheris.Fuzz() returned")


if __name__ == "__main__":
    main()
