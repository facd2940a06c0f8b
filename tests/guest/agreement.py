"""The model against the binary: the Python `disconnect` design and the shipped drivers do the same.

Both run the same random conforming scenarios, with block devices and without armed failures. What must agree is the
sequence of resets, the sequence of backend states, and the verdicts of three oracles. Where they differ the model is
wrong, but for two things:

* The binary keeps its shared info page with every Stop of the bus (docs/shipped-drivers.md). So the model runs with the
  seeded fault that does exactly this.
* Who was the first to move the memory map after the key was checked is not compared, only whether it has moved. A pool
  call moves it when it takes or frees a whole page, so who it is depends on every byte allocated before.

    python -m tests.guest.agreement 1000
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from random import Random
from typing import Any, NamedTuple

from fuzz_targets.generator import generate
from fuzz_targets.registry import TARGETS
from guest.image import Image
from guest.world import open_drivers
from guest.world import run as run_guest
from oracles import judge
from reference_impl.scenario import DEVICE_KINDS, Operation, Scenario, scenario
from reference_impl.trace import Kind, Trace
from reference_impl.world import run

KEEPS_PAGE = "stop-keeps-a-page"
ORACLES = ("memory-services", "connection-reset", "hand-over")
_OTHER_KINDS = tuple(kind for kind in DEVICE_KINDS if kind != "block")


class Facts(NamedTuple):
    """What must agree.

    resets    (who, "ring" or "grant-table", generation, by what means, phase), in order
    backends  (device, old state, new state), in order
    verdicts  signatures of findings, sorted
    """

    resets: list[tuple[Any, ...]]
    backends: list[tuple[Any, ...]]
    verdicts: list[str]


def facts_of(trace: Trace) -> Facts:
    """What a trace says about the things that must agree."""
    resets, backends = [], []
    for kind, agent, _, _, phase, name, arguments, _, value in trace.records:
        if kind == Kind.RESET:
            resets.append((agent, name, *arguments, value, phase))
        elif kind == Kind.XENBUS_STATE and agent == "backend":
            backends.append((name, *arguments))
    verdicts = {
        "hand-over/memory-map" if finding.rule == "memory-map" else finding.signature
        for finding in judge(trace)
        if finding.oracle in ORACLES
    }
    return Facts(resets, backends, sorted(verdicts))


def scenarios(count: int, seed: int = 0) -> Iterator[Scenario]:
    """Random conforming scenarios of whole machines: block devices and their drivers only, no armed failure."""
    rng = Random(seed)
    for index in range(count):
        target = TARGETS["lifecycle" if index % 2 else "exit_boot_services"]
        made = generate(rng, target, "disconnect")
        yield scenario(
            design=made.design,
            reconnection=made.reconnection,
            devices=("block",) * len(made.devices),
            order=made.order,
            operations=tuple(_about_blocks(step) for step in made.operations if step.kind != "fail"),
        )


def differences(what: Scenario, drivers: Mapping[str, Image]) -> list[str]:
    """In what model and binary differ, one line each; nothing where they agree."""
    model = facts_of(run(replace(what, fault=KEEPS_PAGE)))
    binary = facts_of(run_guest(replace(what, world="efi-image", design="shipped"), drivers))
    lines = []
    for field in Facts._fields:
        for place, (left, right) in enumerate(zip_longest(getattr(model, field), getattr(binary, field))):
            if left != right:
                lines.append(f"{field}, number {place}: model {left}, binary {right}")
                break
    return lines


def _about_blocks(step: Operation) -> Operation:
    """The same operation with block devices and their driver in place of all others."""
    return Operation(step.kind, tuple("block" if value in _OTHER_KINDS else value for value in step.arguments))


def main() -> int:
    """Compare as many scenarios as the command says, from the seed behind it; say how many differ, and how the first."""
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    drivers = open_drivers()
    differ = 0
    for index, what in enumerate(scenarios(count, seed)):
        found = differences(what, drivers)
        differ += bool(found)
        if found and differ <= 5:
            print(f"scenario {index} of seed {seed}: {what}", *found, sep="\n    ")
    print(f"{differ} of {count} scenarios differ")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
