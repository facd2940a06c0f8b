"""Which basic blocks of real images the scenarios of a corpus run: `ebsfuzz coverage --blocks`.

Each scenario runs on a machine that has translated nothing yet, so that every block counts that it comes to, also those
that all scenarios share. A block is where the emulator began to translate: after a jump, a call, a return, or a trap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from campaign.replay import scenarios_at
from fuzz_targets.input_files import InputError, read_scenario
from guest.world import run

STARTING_CORPUS = Path(__file__).resolve().parent.parent / "corpus" / "efi-image"


class BlockCoverage(NamedTuple):
    """How many scenarios ran, and for each image the offsets of the blocks that they came to."""

    scenarios: int
    blocks: dict[str, list[int]]


def block_coverage(corpora: Sequence[Path] = ()) -> BlockCoverage:
    """The blocks that the scenarios in `corpora` run, files and folders; without any, the starting corpus.

    Raises InputError for what cannot be read or runs no image, ImageError for an image that is missing, ExtraMissing.
    """
    paths = [path for place in corpora or [STARTING_CORPUS] for path in scenarios_at(place)]
    scenarios = [(path, read_scenario(path)) for path in paths]
    found: dict[str, set[int]] = {}
    for path, scenario in scenarios:
        if scenario.world != "efi-image":
            raise InputError(f"{path}: a scenario of the world {scenario.world!r}, which runs no image")
    for _, scenario in scenarios:
        for image, offsets in run(scenario, tracing=True).blocks.items():
            found.setdefault(image, set()).update(offsets)
    return BlockCoverage(len(scenarios), {image: sorted(found[image]) for image in sorted(found)})
