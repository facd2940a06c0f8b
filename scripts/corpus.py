"""Makes the starting corpus again: corpus/<target>/seeds/. Give names of targets to make only theirs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from campaign.corpus import make_starting_corpus  # noqa: E402
from fuzz_targets.registry import TARGETS  # noqa: E402
from guest import ExtraMissing  # noqa: E402
from guest.image import ImageError  # noqa: E402


def main(names: list[str]) -> int:
    """Make the corpora of these targets, or of all."""
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        print(f"corpus: unknown target {unknown[0]!r}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    try:
        counts = make_starting_corpus(ROOT / "corpus", names or list(TARGETS))
    except (ExtraMissing, ImageError) as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 2
    for name, count in counts.items():
        print(f"corpus/{name}/seeds: {count} scenarios")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
