"""The fuzz target of the image loader: its check can fail, its seeds are what the builder makes, and it runs."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz_targets import pe_loader
from guest.image import Image, ImageError
from tests.guest.images import corpus, pe

PROGRAM = Path(pe_loader.__file__)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The target as a program."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [PROGRAM, "-timeout=60", *arguments],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_seeds_are_what_the_builder_makes():
    """The files of the corpus come from the tests' own builder, every one of them, and hold nobody's binary."""
    assert {path.name: path.read_bytes() for path in pe_loader.SEEDS.iterdir()} == corpus()


@pytest.mark.parametrize("name", corpus())
def test_seeds_load(name):
    """Every seed reaches the end of the loader, but the one for another machine."""
    found = pe_loader.check(corpus()[name])
    assert (found is None) == (name == "pe-other-machine")


def broken(**changes: object) -> Image:
    """An image that does not fit together, as no parser may give it."""
    return dataclasses.replace(pe_loader.parse(pe(), "x"), **changes)


SECTION = pe_loader.parse(pe(), "x").sections[0]


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (broken(entry_point=0x3800), "entry point 0x3800 outside"),
        (broken(size_of_image=0x1800), "sections end at 0x3000 of 0x1800"),
        (broken(sections=(dataclasses.replace(SECTION, raw=bytes(0x1001)),)), "has more data than room"),
        (broken(sections=(dataclasses.replace(SECTION, rva=0x100),)), "begins before 0x200"),
        (broken(sections=(dataclasses.replace(SECTION, name="\x1b"),)), "has a name that a terminal"),
        (broken(headers=bytes(0x3000)), "begins before 0x3000"),
        (broken(relocations=((0x3FFF, 10),), image_base=1), "0x4007 bytes at 0x0, not 0x4000"),
    ],
)
def test_check_sees_an_image_that_does_not_fit_together(monkeypatch, image, complaint):
    """Each sentence of the check can fail."""
    monkeypatch.setattr(pe_loader, "parse", lambda data, name: image)
    with pytest.raises(AssertionError, match=complaint):
        pe_loader.check(pe())


@pytest.mark.parametrize("message", ["no file", "x: two\nlines", "x: \x1b[2J"])
def test_check_sees_a_refusal_that_is_no_line(monkeypatch, message):
    """A refusal names the file and is one line that a terminal can show."""

    def refuse(data, name):
        raise ImageError(message)

    monkeypatch.setattr(pe_loader, "parse", refuse)
    with pytest.raises(AssertionError, match="no line for people"):
        pe_loader.check(pe())


def test_program_finds_its_way_into_the_loader(tmp_path):
    """It runs with feedback from its seeds on and leaves nothing behind."""
    pytest.importorskip("atheris")
    done = run(tmp_path, "-runs=3000", "-seed=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "#3000" in done.stderr
    assert list(tmp_path.iterdir()) == []
