"""The fuzz target of the image loader: its check can fail, its seeds load, and it runs."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz_targets import pe_loader
from fuzz_targets.image_builder import pe, samples
from guest.image import Image, ImageError

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
        timeout=600,
    )


@pytest.mark.parametrize("name", samples())
def test_seeds_load(name):
    """Every seed reaches the end of the loader, but the one for another machine."""
    found = pe_loader.check(samples()[name])
    assert (found is None) == (name == "pe-other-machine")


def test_mutation_starts_from_the_seeds():
    """Where there is no input yet, a seed is one, cut to what fits."""
    assert {pe_loader.mutate(b"", 4096, number) for number in range(100)} == set(samples().values())
    assert len(pe_loader.mutate(b"\n", 100, 1)) == 100


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
    assert max(map(int, re.findall(r" cov: (\d+)", done.stderr))) > 100
    assert list(tmp_path.iterdir()) == []
