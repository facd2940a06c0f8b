"""Which blocks of real images a corpus runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from campaign.block_coverage import STARTING_CORPUS, block_coverage
from campaign.cli import call
from fuzz_targets import scenario_yaml
from fuzz_targets.input_files import InputError
from reference_impl.scenario import operation, scenario
from tests.guest.firmware import need_firmware


def written(folder: Path, name: str, *kinds: str) -> Path:
    """A scenario with a disk in a file."""
    steps = tuple(operation(kind) for kind in kinds)
    made = scenario(world="efi-image", design="shipped", devices=("block",), operations=steps)
    path = folder / f"{name}.yaml"
    path.write_text(scenario_yaml.dump(made))
    return path


def test_more_is_run_by_more_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each image counts its own blocks; a corpus has those of all its scenarios; the command says the same."""
    need_firmware()
    start, stop = written(tmp_path, "a", "connect"), written(tmp_path, "b", "connect", "disconnect")
    one, both = block_coverage([start]), block_coverage([start, stop])
    assert (one.scenarios, both.scenarios) == (1, 2)
    assert set(one.blocks) == {"DevicePathDxe", "XenBusDxe", "XenPvBlkDxe"}
    for image in ("XenBusDxe", "XenPvBlkDxe"):
        assert set(one.blocks[image]) < set(both.blocks[image])
    assert 0x2AF not in both.blocks["XenBusDxe"], "the handler of the exit did not run"
    assert call(["coverage", "--blocks", str(tmp_path), "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["blocks"] == both.blocks
    assert f"{len(both.blocks['XenBusDxe']):,} basic blocks" in err


def test_a_scenario_without_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything runs; and what is about the model does not go with it."""
    path = tmp_path / "model.yaml"
    path.write_text(scenario_yaml.dump(scenario(design="disconnect")))
    with pytest.raises(InputError, match="runs no image"):
        block_coverage([path])
    assert call(["coverage", "--blocks", "--xml", "x"]) == 2
    assert "--blocks" in capsys.readouterr().err


def test_the_starting_corpus_is_the_default() -> None:
    """It is there."""
    assert list(STARTING_CORPUS.glob("seeds/*.yaml"))
