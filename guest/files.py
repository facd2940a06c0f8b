"""Images in files that a user named: `.efi` files, option ROMs, firmware volumes, and the firmware cache.

The firmware cache is what `scripts/fetch-firmware` fills, one folder for each Debian suite.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from guest import firmware_volume, option_rom
from guest.image import SIZE_MAX, Image, ImageError, is_image, parse

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "firmware"


def open_image(spec: str, cache: Path | None = None) -> Image:
    """As `guest.image.open_image`."""
    path, module = split(spec)
    if _exists(path):
        return _image_in(path, module, spec)
    there = _cached(path, cache or CACHE)
    if not there:
        raise ImageError(f"{path}: no such file{_advice(path, cache or CACHE)}")
    images, problems = [], []
    for found in there:
        try:
            images.append((found, _image_in(found, module, spec)))
        except ImageError as error:
            problems.append(error)
    if len(images) > 1:
        suites = " or ".join(f"{found.parent.name}/{spec}" for found, _ in images)
        raise ImageError(f"{spec}: several suites have it; say {suites}")
    if not images:
        raise max(problems, key=lambda problem: "did you mean" in str(problem))
    return images[0][1]


def locate(spec: str, cache: Path | None = None) -> Path | None:
    """The file that `spec` names an image in, None where there is none or more than one."""
    path, _ = split(spec)
    there = [path] if _exists(path) else _cached(path, cache or CACHE)
    return there[0] if len(there) == 1 else None


def split(spec: str) -> tuple[Path, str]:
    """File and module of `spec`. A colon in the name of a file that exists, or before a folder, is no separator."""
    whole = Path(spec)
    path, colon, module = spec.rpartition(":")
    if not colon or "/" in module or _exists(whole):
        return whole, ""
    return Path(path), module


def _image_in(path: Path, module: str, spec: str) -> Image:
    data = _read(path)
    if is_image(data):
        _no_module(path, module, "an image by itself")
        return _parsed(data, str(path), path.stem)
    if option_rom.is_option_rom(data):
        _no_module(path, module, "an option ROM")
        return _parsed(option_rom.efi_image(data, str(path)), str(path), path.stem)
    if not firmware_volume.is_volume(data):
        raise ImageError(f"{path}: neither an image (PE32+ or TE) nor an option ROM nor firmware")
    if not module:
        there = len(firmware_volume.modules(data, str(path)))
        raise ImageError(f"{path}: firmware with {there} modules; say which one: {spec}:NAME")
    found = firmware_volume.module(data, module, str(path))
    return _parsed(found.image, f"{path}:{found.name or found.guid}", found.name or found.guid)


def _parsed(data: bytes, where: str, name: str) -> Image:
    """The image in `data`: messages about it name the place, backtraces only the image."""
    return dataclasses.replace(parse(data, where), name=name)


def _no_module(path: Path, module: str, what: str) -> None:
    if module:
        raise ImageError(f"{path}: {what}, so there is no module {module[:80]!r} in it")


def _read(path: Path) -> bytes:
    if not path.is_file() and not path.is_dir():
        raise ImageError(f"{path}: not a regular file")  # reading a pipe may take for ever
    try:
        with path.open("rb") as file:
            data = file.read(firmware_volume.SIZE_MAX + 1)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > firmware_volume.SIZE_MAX:
        raise ImageError(f"{path}: larger than {firmware_volume.SIZE_MAX} bytes; images have at most {SIZE_MAX}")
    return data


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a zero byte
        return False


def _cached(path: Path, cache: Path) -> list[Path]:
    """The files of the cache that `path` can mean: `bullseye/OVMF_CODE_4M.fd`, or the file's name without its suite."""
    if path.is_absolute() or len(path.parts) not in (1, 2) or ".." in path.parts:
        return []
    try:
        candidates = [cache / path] if len(path.parts) == 2 else [suite / path for suite in sorted(cache.iterdir())]
        return [found for found in candidates if found.is_file()]
    except (OSError, ValueError):
        return []


def _advice(path: Path, cache: Path) -> str:
    """What a path that does not exist may need: the firmware, where it looks like it."""
    if path.suffix == ".fd" and not path.is_absolute() and not any(cache.glob("*/*")):
        return "; ./scripts/fetch-firmware gets Debian's OVMF firmware"
    return ""
