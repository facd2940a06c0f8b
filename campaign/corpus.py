"""The starting corpus: the scenarios that every run begins with, made by the project's own generator.

`make_starting_corpus` writes `<target>/seeds/*.yaml`. The same code gives the same files, byte for byte:

1. basics by hand: for each world the few scenarios that anybody would try first;
2. generated ones from a fixed seed, the shortest first, each kept only where its trace has a feature
   (`fuzz_targets.guidance`) that no earlier one has. A scenario that adds nothing only slows a fuzzer down.

Made again with `scripts/corpus`, after every change of the scenario language, the worlds or the features.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from fuzz_targets import codec, scenario_yaml
from fuzz_targets.generator import generate
from fuzz_targets.guidance import Features
from fuzz_targets.harness import run_and_judge
from fuzz_targets.registry import TARGETS, Target
from reference_impl.scenario import DESIGNS, DEVICE_KINDS, ORDER_FIFO, Scenario, operation, scenario

SEED = 20240501
CANDIDATES = 1500  # generated for each target
SEEDS_MAX = 120  # files for each target

_CONNECT, _EXIT, _STALE = operation("connect"), operation("exit"), operation("exit", map_key="stale")


def make_starting_corpus(
    folder: Path, targets: Iterable[str] = tuple(TARGETS), *, candidates: int = CANDIDATES, seeds_max: int = SEEDS_MAX
) -> dict[str, int]:
    """Write `folder/<target>/seeds/` for each target anew, and give the number of files for each.

    A target's earlier seeds are replaced as a whole. Raises OSError where they cannot be written.
    """
    counts = {}
    for name in targets:
        chosen = list(starting_scenarios(TARGETS[name], candidates, seeds_max))
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
    basics = list(basic_scenarios(target))
    for title, basic in basics:
        seen |= features.of(run_and_judge(basic).trace)
        yield title, basic
    random = Random(f"{SEED} {target.name}")
    generated = [generate(random, target, target.designs[index % len(target.designs)]) for index in range(candidates)]
    # By length in bytes: what a short scenario shows needs no long one. The bytes themselves decide between equals.
    generated.sort(key=lambda made: (len(codec.encode(made)), codec.encode(made)))
    number = 0
    for made in generated:
        if number + len(basics) >= seeds_max:
            return
        found = features.of(run_and_judge(made).trace)
        if not found <= seen:
            seen |= found
            number += 1
            yield f"generated-{number:03}", made


def basic_scenarios(target: Target) -> Iterator[tuple[str, Scenario]]:
    """What anybody would try first in the target's world."""
    if target.world == "platform":
        for design in target.designs:
            yield from _platform_basics(design)
    elif target.world == "core":
        services = [operation("call", service=name) for name in ("CreateEvent", "AllocatePool", "RaiseTPL")]
        yield "calls-and-exit", scenario(world="core", operations=(*services, _EXIT))
        yield "stale-key-then-exit", scenario(world="core", operations=(operation("allocate"), _STALE, _EXIT))
    else:
        asks = [operation("ask", request=name) for name in ("READ", "WATCH", "TRANSACTION_START")]
        yield "honest-peer", scenario(world="ring", operations=tuple(asks))
        answers = ("nothing", "error", "wrong-id", "watch-event", "too-long", "cut")
        for what in answers:
            steps = (operation("answer", what=what), operation("ask"))
            yield f"answer-{what}", scenario(world="ring", operations=steps)


def _platform_basics(design: str) -> Iterator[tuple[str, Scenario]]:
    assert design in DESIGNS
    request = operation("request")
    for title, devices, steps in (
        ("exit", (), (_EXIT,)),
        ("connect-exit", ("block",), (_CONNECT, _EXIT)),
        ("each-device", DEVICE_KINDS, (_CONNECT, request, _EXIT)),
        ("two-disks", ("block", "block"), (_CONNECT, request, _EXIT)),
        ("retry", ("block",), (_CONNECT, _STALE, _EXIT)),
        ("stop-start", ("block",), (_CONNECT, operation("disconnect"), _CONNECT, request, _EXIT)),
        ("reload", ("block",), (_CONNECT, operation("unload"), operation("load"), _CONNECT, _EXIT)),
        (
            "hot-plug",
            (),
            (_CONNECT, operation("add-device"), operation("time"), _CONNECT, operation("remove-device"), _EXIT),
        ),
        ("start-fails", ("block",), (operation("fail", nth=12), _CONNECT, _CONNECT, _EXIT)),
    ):
        yield f"{design}-{title}", scenario(design=design, devices=devices, operations=steps)
    both = {"design": design, "devices": ("block", "network"), "operations": (_CONNECT, _EXIT)}
    yield f"{design}-fifo", scenario(order=ORDER_FIFO, **both)
    yield f"{design}-bus-last", scenario(order=(1, 2, 0), **both)
    yield f"{design}-no-reconnection", scenario(reconnection=False, **both)
