"""The starting corpus: the scenarios that every run begins with, made by the project's own generator.

`make_starting_corpus` writes `<target>/seeds/*.yaml`. The same code gives the same files, byte for byte:

1. basics by hand: for each world the few scenarios that anybody would try first;
2. of many generated ones (from a fixed seed) those whose traces together have the most features
   (`fuzz_targets.guidance`). A scenario that adds nothing only slows a fuzzer down;
3. in the same way a few for the hostile environment, which runs in the conforming one leave out.

Made again with `scripts/corpus`, after every change of the scenario language, the worlds or the features.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from random import Random

from fuzz_targets import codec, scenario_yaml
from fuzz_targets.basics import basic_scenarios
from fuzz_targets.generator import generate
from fuzz_targets.guidance import Features, feature
from fuzz_targets.harness import run_and_judge
from fuzz_targets.registry import TARGETS, Target
from reference_impl.scenario import Scenario

CHECKOUT = Path(__file__).resolve().parent.parent

SEED = 20240501
# How many are generated for each target, by its world, and how many of them are kept.
CANDIDATES = {"platform": 2000, "core": 20000, "ring": 4000, "efi-image": 200}
SEEDS_MAX = {"platform": 120, "core": 240, "ring": 120, "efi-image": 16}


def make_starting_corpus(
    folder: Path, targets: Iterable[str] = tuple(TARGETS), *, candidates: int = 0, seeds_max: int = 0
) -> dict[str, int]:
    """Write `folder/<target>/seeds/` for each target anew, and give the number of files for each.

    candidates  how many are generated for each target; 0 for as many as `CANDIDATES` says
    seeds_max   how many of them are kept at most; 0 for as many as `SEEDS_MAX` says

    A target's earlier seeds are replaced as a whole. Raises OSError where they cannot be written.
    """
    counts = {}
    for name in targets:
        target = TARGETS[name]
        chosen = list(
            starting_scenarios(target, candidates or CANDIDATES[target.world], seeds_max or SEEDS_MAX[target.world])
        )
        place = folder / name / "seeds"
        new = place.with_name(f".seeds.new-{os.getpid()}")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            for title, seed in chosen:
                (new / f"{title}.yaml").write_text(scenario_yaml.dump(seed), encoding="utf-8")
            if place.exists():
                shutil.rmtree(place)
            new.rename(place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        counts[name] = len(chosen)
    return counts


def starting_scenarios(target: Target, candidates: int, seeds_max: int) -> Iterator[tuple[str, Scenario]]:
    """File names without suffix, and the scenarios: the basics, then generated ones that add features."""
    features = Features()
    seen: set[int] = set()
    for design in target.designs:
        for title, basic in basic_scenarios(target.world, design):
            found = features.of(run_and_judge(basic).trace)
            if not found <= seen:
                seen |= found
                yield f"{design}-{title}".lstrip("-"), basic
    if target is not _first_of_its_profile(target):
        return
    random = Random(f"{SEED} {target.name}")
    generated = [generate(random, target, random.choice(target.designs)) for _ in range(candidates)]
    # By length in bytes: what a short scenario shows needs no long one. The bytes themselves decide between equals.
    generated.sort(key=lambda made: (len(codec.encode(made)), codec.encode(made)))
    shown = [features.of(run_and_judge(made).trace) | _features_of_a_peer(made) for made in generated]
    for number, index in enumerate(sorted(cover(shown, seen, seeds_max)), 1):
        yield f"generated-{number:03}", generated[index]
    if target.world == "platform":
        yield from _hostile_scenarios(target, candidates // 4, seeds_max // 5)


def _hostile_scenarios(target: Target, candidates: int, seeds_max: int) -> Iterator[tuple[str, Scenario]]:
    """Generated scenarios of the hostile environment that show different things; the others do not count here."""
    random = Random(f"{SEED} {target.name} hostile")
    generated = [
        generate(random, target, random.choice(target.designs), environment="hostile") for _ in range(candidates)
    ]
    generated.sort(key=lambda made: (len(codec.encode(made)), codec.encode(made)))
    features = Features()
    shown = [features.of(run_and_judge(made).trace) for made in generated]
    for number, index in enumerate(sorted(cover(shown, set(), seeds_max)), 1):
        yield f"hostile-{number:03}", generated[index]


def _features_of_a_peer(made: Scenario) -> set[int]:
    """In the ring world, what is asked and answered next to each other: a peer's bytes are not in the trace."""
    if made.world != "ring":
        return set()
    steps = [(step.kind, step.arguments[0]) for step in made.operations]
    return {feature("peer", *pair) for pair in pairwise(steps)}


def cover(shown: list[set[int]], seen: set[int], count_max: int) -> list[int]:
    """Which sets to keep so that as much as possible is shown: always the one that adds most, the first among equals.

    What a set adds only ever gets less. So the heap need not be kept right, only checked at its top.
    """
    heap = [(-len(found - seen), index) for index, found in enumerate(shown)]
    heapify(heap)
    kept: list[int] = []
    while heap and len(kept) < count_max:
        _, index = heappop(heap)
        entry = (-len(shown[index] - seen), index)
        if heap and entry > heap[0]:
            heappush(heap, entry)
        elif entry[0]:
            kept.append(index)
            seen = seen | shown[index]
    return kept


def _first_of_its_profile(target: Target) -> Target:
    """Targets that share a profile share what is generated: `smoke` and `canary` need no copies of it."""
    return next(other for other in TARGETS.values() if other.profile is target.profile)
