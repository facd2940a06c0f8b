"""Scenarios in files that a user named."""

import os
from pathlib import Path

import pytest

from fuzz_targets import codec, scenario_yaml
from fuzz_targets.input_files import InputError, read_scenario
from reference_impl.scenario import operation, scenario

MADE = scenario(design="exit-callback", devices=("block",), operations=(operation("connect"), operation("exit")))
SHA1 = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["s.yaml", "s.yml"])
def test_yaml_is_read(tmp_path: Path, name: str) -> None:
    """Both suffixes of YAML are YAML; a byte order mark does no harm."""
    (tmp_path / name).write_text("\ufeff" + scenario_yaml.dump(MADE), encoding="utf-8")
    assert read_scenario(tmp_path / name) == MADE


@pytest.mark.parametrize("name", ["s.bin", SHA1, f"crash-{SHA1}", f"slow-unit-{SHA1}"])
def test_bytes_are_read(tmp_path: Path, name: str) -> None:
    """A .bin is bytes, and so is what libFuzzer wrote under names of its own."""
    (tmp_path / name).write_bytes(codec.encode(MADE))
    assert read_scenario(str(tmp_path / name)) == MADE


def test_a_reproducers_folder_counts_as_its_scenario(tmp_path: Path) -> None:
    """The folder's scenario.yaml is read."""
    (tmp_path / "scenario.yaml").write_text(scenario_yaml.dump(MADE))
    assert read_scenario(tmp_path) == MADE


def test_an_empty_bin_is_the_simplest_scenario(tmp_path: Path) -> None:
    """Any bytes are a scenario, none too."""
    (tmp_path / "s.bin").write_bytes(b"")
    assert read_scenario(tmp_path / "s.bin") == codec.decode(b"")


def _file(name: str, data: bytes) -> object:
    return lambda folder: ((folder / name).write_bytes(data) and None) or folder / name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "no.yaml", "no.yaml: no such file"),
        (lambda folder: folder, ": a folder without scenario.yaml, so no reproducer"),
        (_file("s.yaml", b""), "s.yaml: empty"),
        (_file("s.yaml", b"version: \xff"), "s.yaml: not UTF-8 text (byte 9)"),
        (_file("s.yaml", b"version: 2"), "s.yaml:1: version: 2 is not a version that this program reads (1)"),
        (_file("s.bin", bytes(65537)), "s.bin: larger than 65536 bytes, so no scenario"),
        (
            _file("s.txt", b"x"),
            "s.txt: suffix '.txt'; a scenario is a file .yaml, .yml or .bin, or a reproducer's folder",
        ),
        (
            _file("README", b"x"),
            "README: no suffix; a scenario is a file .yaml, .yml or .bin, or a reproducer's folder",
        ),
        (lambda folder: Path("/dev/zero"), "/dev/zero: not a regular file"),
        (lambda folder: Path("a\0b.yaml"), "cannot be read: embedded null byte"),
        (lambda folder: folder / ("x" * 300 + ".yaml"), "cannot be read: File name too long"),
        (lambda folder: _file("s.bin", b"x")(folder) / "t.yaml", "cannot be read: Not a directory"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, make: object, message: str) -> None:
    """Each kind of bad path has one message that names the file."""
    with pytest.raises(InputError) as caught:
        read_scenario(make(tmp_path))
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "limit"), [("s.yaml", scenario_yaml.SIZE_MAX), ("s.bin", codec.SIZE_MAX)])
def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path, name: str, limit: int) -> None:
    """100 MB cost no more than the limit: the file is sparse, and its size does not matter."""
    with (tmp_path / name).open("wb") as file:
        os.truncate(file.fileno(), 100_000_000)
    with pytest.raises(InputError, match=f"larger than {limit} bytes, so no scenario$"):
        read_scenario(tmp_path / name)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's reason is given. (Made by hand, because root may read everything.)"""
    path = tmp_path / "s.yaml"
    path.write_text("x")

    def refuse(*arguments: object, **options: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"s\.yaml: cannot be read: Permission denied$"):
        read_scenario(path)
