"""How small the minimizer leaves findings, beside the shrinkers of others: `scripts/bench --minimize`.

The same generated scenarios with the same finding are given to `campaign.minimize`, to Hypothesis's shrinker and, where
a Python 3.12 or later is there to install it for, to shrinkray. What they leave is compared by the number of operations;
the time is of the processor.

* Hypothesis gets the scenario as the sequence of choices that its strategy would have drawn, so that it begins where the
  others begin, and stops where it knows no way on.
* shrinkray works on text: it gets the YAML, and whatever is no scenario is not interesting to it. It lives in a virtual
  environment of its own below `.cache`, without those of its dependencies that its reducers do not need (a language model
  and the terminal view).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHRINKRAY = "26.9.13.0"
SHRINKRAY_FOLDER = ROOT / ".cache" / f"shrinkray-{SHRINKRAY}"
SHRINKRAY_NEEDS = (
    *("attrs", "binaryornot", "chardet", "click", "exceptiongroup", "humanize", "libcst", "trio"),
    *("tree-sitter", "tree-sitter-language-pack", "msgspec", "PyYAML"),
)
SHRINKRAY_LIMIT_S = 120  # of processor time for one finding; what it has by then counts
OURS = "ebsfuzz"

Finding = tuple[Any, str]
"""A scenario and one of its signatures."""


def main(count: int) -> bool:
    """Print what each shrinker leaves of `count` findings. Whether ours is never left with more operations."""
    found = findings(count)
    left: dict[str, list[tuple[Any, float]]] = {OURS: [], "Hypothesis": []}
    for described, signature in found:
        left[OURS].append(timed(ours, described, signature))
        left["Hypothesis"].append(timed(hypothesis_s, described, signature))
    theirs = _shrinkray_s(found)
    if not isinstance(theirs, str):
        left["shrinkray"] = theirs
    sizes = [len(described.operations) for described, _ in found]
    print(
        f"{count} findings in scenarios of {min(sizes)} to {max(sizes)} operations, median {statistics.median(sizes):.0f}\n"
    )
    for name, results in left.items():
        operations = [len(least.operations) for least, _ in results]
        seconds = [used for _, used in results]
        print(
            f"  {name:<11} leaves {sum(operations):>5} operations in all, at most {max(operations)};"
            f" median {statistics.median(seconds):.2f} s, at most {max(seconds):.1f} s"
        )
    if isinstance(theirs, str):
        print(f"  shrinkray {SHRINKRAY}: could not be measured here: {theirs}")
    holds = True
    print()
    for name, results in left.items():
        if name == OURS:
            continue
        pairs = [
            (len(mine.operations), len(other.operations))
            for (mine, _), (other, _) in zip(left[OURS], results, strict=True)
        ]
        more = [index for index, (mine, other) in enumerate(pairs) if mine > other]
        fewer = sum(mine < other for mine, other in pairs)
        print(f"  {OURS} leaves fewer operations than {name} on {fewer} findings, more on {len(more)}")
        for index in more:
            print(f"    more: {found[index][1]}, {pairs[index][0]} against {pairs[index][1]}")
        holds = holds and not more
    return holds


def timed(shrink: Callable[[Any, str], Any], described: Any, signature: str) -> tuple[Any, float]:
    """What `shrink` leaves of a scenario, and the seconds of processor time that it took."""
    begun = time.process_time()
    return shrink(described, signature), time.process_time() - begun


def findings(count: int) -> list[Finding]:
    """Findings of every design and fault in turn, half of them in scenarios made of several, up to 200 operations long."""
    from campaign.minimize import signatures
    from fuzz_targets.generator import generate
    from fuzz_targets.registry import TARGETS
    from reference_impl.faulty import FAULTS
    from reference_impl.scenario import MAX_OPERATIONS

    rng = Random(11)
    cases = [("disconnect", ""), *(("reference-count", fault) for fault in FAULTS)]
    rng.shuffle(cases)
    found: list[Finding] = []
    while len(found) < count:
        design, fault = cases[len(found) % len(cases)]
        for _ in range(50):
            described = generate(rng, TARGETS["lifecycle"], design, fault)
            if len(found) % 2:
                more = [generate(rng, TARGETS["lifecycle"], design, fault).operations for _ in range(rng.randrange(20))]
                front = tuple(step for steps in more for step in steps if step.kind != "exit")
                described = described.with_operations((front + described.operations)[-MAX_OPERATIONS:])
            known = signatures(described)
            if known:
                found.append((described, rng.choice(sorted(set(known)))))
                break
        else:
            cases.remove((design, fault))  # too deep for a bench
    return found


def ours(described: Any, signature: str) -> Any:
    """The minimizer of this project."""
    from campaign.minimize import minimize

    return minimize(described, signature)


def hypothesis_s(described: Any, signature: str) -> Any:
    """Hypothesis's shrinker, from the choices that give `described`."""
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis import strategies as st
    from hypothesis.database import InMemoryExampleDatabase, choices_to_bytes

    from campaign.minimize import signatures
    from reference_impl.scenario import DEVICE_KINDS, MAX_DEVICES, MAX_OPERATIONS, OPERATIONS, Operation, operations_of

    kinds = operations_of(described.world)

    @st.composite
    def scenarios(draw: Any) -> Any:
        devices = []
        while draw(st.booleans()):
            devices.append(DEVICE_KINDS[draw(st.integers(0, len(DEVICE_KINDS) - 1))])
        steps = []
        while draw(st.booleans()):
            kind = kinds[draw(st.integers(0, len(kinds) - 1))]
            steps.append(
                Operation(
                    kind,
                    tuple(
                        field.values[draw(st.integers(0, len(field.values) - 1))]
                        for field in OPERATIONS[kind].fields  # the platform has choices only
                    ),
                )
            )
        return replace(described, devices=tuple(devices[:MAX_DEVICES]), operations=tuple(steps[:MAX_OPERATIONS]))

    choices: list[Any] = []
    for kind in described.devices:
        choices += [True, DEVICE_KINDS.index(kind)]
    choices.append(False)
    for step in described.operations:
        choices += [True, kinds.index(step.kind)]
        for field, value in zip(OPERATIONS[step.kind].fields, step.arguments, strict=True):
            choices.append(field.values.index(value))
    choices.append(False)
    database = InMemoryExampleDatabase()
    # What stands under the key itself counts as shrunk already; what did not come so far stands under this one.
    database.save(b"finding.secondary", choices_to_bytes(choices))
    return find(
        scenarios(),
        lambda made: signature in signatures(made),
        database_key=b"finding",
        settings=settings(
            database=database,
            phases=[Phase.reuse, Phase.shrink],
            deadline=None,
            max_examples=10_000,
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- shrinkray ------------------------------------------------------------------------------------------------------


def _shrinkray_s(found: list[Finding]) -> list[tuple[Any, float]] | str:
    """What shrinkray leaves of each finding, with its seconds of processor time; or why that is not known."""
    from fuzz_targets import scenario_yaml

    python = next(filter(_runs, ("python3.12", "python3.13", "python3.14")), None)
    if python is None:
        return "it needs Python 3.12 or later"
    inside = SHRINKRAY_FOLDER / "bin" / "python"
    try:
        if not (SHRINKRAY_FOLDER / "installed").is_file():
            _run([python, "-m", "venv", "--clear", str(SHRINKRAY_FOLDER)])
            install = [str(inside), "-m", "pip", "install", "--quiet"]
            _run([*install, "--no-deps", f"shrinkray=={SHRINKRAY}"])
            _run([*install, "--only-binary", ":all:", *SHRINKRAY_NEEDS])
            (SHRINKRAY_FOLDER / "installed").write_text("")
        given = [(scenario_yaml.dump(described), signature) for described, signature in found]
        said = _run([str(inside), __file__], json.dumps(given))
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return str(lines[-1])
    return [(scenario_yaml.load(text, "shrinkray"), seconds) for text, seconds in json.loads(said.splitlines()[-1])]


def _runs(python: str) -> bool:
    """Whether there is such a Python."""
    return shutil.which(python) is not None and not subprocess.run([python, "-c", ""], capture_output=True).returncode


def _run(command: list[str], given: str = "") -> str:
    """Standard output of a program that ends well."""
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


def _shrinkray_child() -> None:
    """Read pairs of YAML and signature from standard input, shrink them, and print pairs of YAML and seconds."""
    import trio
    from shrinkray.problem import BasicReductionProblem
    from shrinkray.reducer import ShrinkRay
    from shrinkray.work import Volume, WorkContext

    from campaign.minimize import signatures
    from fuzz_targets import scenario_yaml

    async def shrink(text: str, signature: str) -> tuple[str, float]:
        first = scenario_yaml.load(text, "given")
        begun = time.process_time()

        async def is_interesting(data: bytes) -> bool:
            await trio.lowlevel.checkpoint()
            if time.process_time() - begun > SHRINKRAY_LIMIT_S:
                scope.cancel()
                return False
            try:
                made = scenario_yaml.load(data.decode(), "tried")
            except (scenario_yaml.InputError, UnicodeError):
                return False
            same = (made.world, made.design, made.fault) == (first.world, first.design, first.fault)
            return same and signature in signatures(made)

        work = WorkContext(random=Random(0), parallelism=1, volume=Volume.quiet)
        problem = BasicReductionProblem(text.encode(), is_interesting, work)
        with trio.CancelScope() as scope:
            await ShrinkRay(target=problem, python_reducer=False).run()
        return problem.current_test_case.decode(), time.process_time() - begun

    print(json.dumps([trio.run(shrink, *pair) for pair in json.load(sys.stdin)]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _shrinkray_child()
