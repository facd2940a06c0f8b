"""A corpus as a zip of bytes, as ClusterFuzzLite and OSS-Fuzz take it: `python -m campaign.seed_corpus FOLDER ZIP`."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

from campaign.replay import scenarios_at
from fuzz_targets import codec
from fuzz_targets.input_files import read_scenario


def seed_corpus(folder: Path, archive: Path) -> int:
    """Write every scenario in `folder` as bytes, named by their SHA-1 as libFuzzer does it; how many there are.

    Raises InputError for what cannot be read.
    """
    inputs = {codec.encode(read_scenario(path)) for path in scenarios_at(folder)}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for data in sorted(inputs):
            # A date of its own would make another file of the same corpus.
            made.writestr(zipfile.ZipInfo(hashlib.sha1(data).hexdigest()), data)
    return len(inputs)


if __name__ == "__main__":
    seed_corpus(Path(sys.argv[1]), Path(sys.argv[2]))
