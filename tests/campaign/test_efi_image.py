"""The target efi-image, as people call it: real drivers are fuzzed, and what is missing is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz_targets import scenario_yaml
from fuzz_targets.input_files import read_scenario
from guest.files import locate
from guest.firmware_volume import module
from guest.world import FIRMWARE
from reference_impl.scenario import operation, scenario
from tests.campaign.test_program import answer_of, ebsfuzz, needs_atheris
from tests.guest.firmware import need_firmware

RUN = ("run", "--target", "efi-image", "--design", "shipped", "--runs", "3", "--seed", "1", "--corpus", "seeds")
MINE = scenario(
    world="efi-image",
    design="shipped",
    operations=(operation("allocate"), operation("connect"), operation("request"), operation("exit")),
)
EDK2_9802 = "memory-services/direct-call/XenBusDxe/FreePool"


def without(folder: Path, program: str) -> dict[str, str]:
    """An environment in which each process of ebsfuzz runs `program` first."""
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": f"{folder}:{Path(__file__).resolve().parent.parent.parent}"}


@needs_atheris
def test_run_finds_edk2_9802_in_the_shipped_bus_driver(tmp_path: Path) -> None:
    """Its handler calls memory services: two operations are left, and the timeline names the handler's place."""
    need_firmware()
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "mine.yaml").write_text(scenario_yaml.dump(MINE))
    answer = answer_of(ebsfuzz(tmp_path, *RUN, "--format", "json"), 1)
    assert answer["problems"] == []
    assert answer["edges"] > 30
    found = {finding["signature"]: finding for finding in answer["findings"]}
    assert found[EDK2_9802]["minimized"]
    reproducer = Path(found[EDK2_9802]["reproducer"])
    smallest = read_scenario(reproducer)
    assert (smallest.world, smallest.design) == ("efi-image", "shipped")
    assert smallest.operations == (operation("connect"), operation("exit"))
    assert "XenBusDxe+0x2af" in (reproducer / "timeline.txt").read_text()
    replayed = ebsfuzz(tmp_path, "replay", "--brief", str(reproducer))
    assert replayed.returncode == 1
    assert "FAILED" in replayed.stdout


def test_without_the_extra_run_says_what_to_install(tmp_path: Path) -> None:
    """Exit status 3, one line; whatever runs no image works as before."""
    hidden = without(tmp_path, "import sys\nfor name in ('unicorn', 'uefi_firmware'):\n    sys.modules[name] = None\n")
    ended = ebsfuzz(tmp_path, *RUN, "--unguided", **hidden)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("ebsfuzz: real .efi images need u")
    assert "pip install 'ebsfuzz[efi]'" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ebsfuzz(tmp_path, "run", "--target", "smoke", "--unguided", "--runs", "5", **hidden).returncode == 0


def test_without_the_firmware_run_says_how_to_get_it(tmp_path: Path) -> None:
    """Exit status 2, one line."""
    pytest.importorskip("unicorn", reason="the extra [efi] is not installed")
    empty = without(
        tmp_path, f"import guest.files, pathlib\nguest.files.CACHE = pathlib.Path({str(tmp_path)!r}, 'no')\n"
    )
    ended = ebsfuzz(tmp_path, *RUN, "--unguided", **empty)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "./scripts/fetch-firmware" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_image_that_is_missing_is_one_clear_message(tmp_path: Path) -> None:
    """Exit status 2, also where a scenario names it; other targets take no images."""
    need_firmware()
    ended = ebsfuzz(tmp_path, *RUN, "--unguided", "--image", "mine.efi")
    assert (ended.returncode, ended.stderr) == (2, "ebsfuzz: mine.efi: no such file\n")
    (tmp_path / "mine.yaml").write_text(
        "version: 1\nworld: efi-image\ndesign: shipped\nimages: [gone.efi]\noperations: []\n"
    )
    ended = ebsfuzz(tmp_path, "replay", "mine.yaml")
    assert (ended.returncode, ended.stderr) == (2, "ebsfuzz: gone.efi: no such file\n")
    ended = ebsfuzz(tmp_path, "run", "--image", "mine.efi")
    assert ended.returncode == 2
    assert "--target efi-image" in ended.stderr


def test_own_images_are_recorded_in_what_a_run_leaves(tmp_path: Path) -> None:
    """With an absolute path, so that a reproducer finds them from any folder; a driver of that name is replaced."""
    need_firmware()
    firmware = locate(FIRMWARE)
    assert firmware is not None
    (tmp_path / "XenBusDxe.efi").write_bytes(module(firmware.read_bytes(), "XenBusDxe", "x").image)
    (tmp_path / "seeds").mkdir()
    ended = ebsfuzz(tmp_path, *RUN[:-2], "--unguided", "--image", "XenBusDxe.efi", "--format", "json")
    answer = answer_of(ended, 1)
    reproducer = Path(answer["findings"][0]["reproducer"])
    assert read_scenario(reproducer).images == (str(tmp_path / "XenBusDxe.efi"),)
    replayed = ebsfuzz(Path("/"), "replay", "--brief", str(reproducer))
    assert replayed.stderr == ""
