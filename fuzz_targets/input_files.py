"""Scenarios in files that a user named: YAML, bytes, or a reproducer's folder."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from fuzz_targets import codec, scenario_yaml
from fuzz_targets.scenario_yaml import InputError
from reference_impl.scenario import Scenario

__all__ = ["InputError", "read_scenario"]

REPRODUCER_SCENARIO = "scenario.yaml"

# What libFuzzer names its files: the SHA-1 of the bytes, in a corpus as it is and elsewhere behind a word.
_LIBFUZZER_NAME = re.compile(r"([a-z-]+-)?[0-9a-f]{40}")


def read_scenario(path: str | Path) -> Scenario:
    """The scenario in a file `.yaml`, `.yml` or `.bin`, in a file that libFuzzer wrote, or in a reproducer's folder.

    Raises InputError, with one line that names the file, for everything that cannot be read. Never reads more than
    a scenario can be long.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            inside = path / REPRODUCER_SCENARIO
            if not inside.is_file():
                raise InputError(f"{path}: a folder without {REPRODUCER_SCENARIO}, so no reproducer")
            path = inside
        elif not stat.S_ISREG(mode):
            raise InputError(f"{path}: not a regular file")
        return _read_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: cannot be read: {reason}") from None


def _read_file(path: Path) -> Scenario:
    suffix = path.suffix
    if suffix in (".yaml", ".yml"):
        data = _read_at_most(path, scenario_yaml.SIZE_MAX)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
        return scenario_yaml.load(text, str(path))
    if suffix == ".bin" or _LIBFUZZER_NAME.fullmatch(path.name):
        return codec.decode(_read_at_most(path, codec.SIZE_MAX))
    found = f"suffix {suffix!r}" if suffix else "no suffix"
    raise InputError(f"{path}: {found}; a scenario is a file .yaml, .yml or .bin, or a reproducer's folder")


def _read_at_most(path: Path, size_max: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(size_max + 1)
    if len(data) > size_max:
        raise InputError(f"{path}: larger than {size_max} bytes, so no scenario")
    return data
