"""One trial of a score: one engine looks for one seeded fault, from one seed: `python -m campaign.trial TRIAL`.

TRIAL is a `Trial` as JSON. The process ends itself with a `TrialResult` as the last line of standard output, when a
finding shows that the fault accounts for, or when its processor time is used up. All engines run the same target and the
same oracles on the design, environment and switches of the fault's regression, and begin without it. The clock is the
processor's time of this process, without what an engine does to get ready.

What deliberately lives elsewhere: which trials there are, and what their results say (`campaign.score`).
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec

from campaign.corpus import CHECKOUT
from campaign.side_environment import CannotInstall, side_environment
from fuzz_targets import codec
from fuzz_targets.basics import opening
from fuzz_targets.input_files import read_scenario
from fuzz_targets.registry import TARGETS, Target
from reference_impl.faulty import faulty
from reference_impl.scenario import SWITCHES, Scenario

if TYPE_CHECKING:
    from fuzz_targets.harness import Verdict

EXIT_ENGINE_MISSING = 41

HYPOFUZZ = "hypofuzz==25.11.1"  # in an environment of its own: its licence is not for everybody
RESULT = '{"trial"'  # beginning of a result's line

_SEED_STEP = 1_000_003  # between the seeds of an engine that comes to an end and is started again


class Trial(msgspec.Struct, frozen=True):
    """What is tried: a fault, an engine of `ENGINES`, which of its trials, and CPU seconds until it is given up."""

    fault: str
    engine: str
    seed: int
    cap_s: int

    @property
    def random_seed(self) -> int:
        """Of all random numbers. Another one for each fault and engine: else a lucky seed would be lucky for all faults."""
        return zlib.crc32(f"{self.fault} {self.engine} {self.seed}".encode()) >> 1


class TrialResult(msgspec.Struct, frozen=True):
    """How it ended.

    executions, cpu_s  until the finding, or in all
    signature          of the finding; "" where none was made
    wrong              signatures that were reported and that neither the fault accounts for nor the environment: the same
                       scenario does not show them without the fault
    """

    trial: Trial
    found: bool
    executions: int
    cpu_s: float
    signature: str
    wrong: tuple[str, ...]


class Watch:
    """Looks at every verdict, and ends the process when the trial is over.

    run  runs and judges a scenario, without the fault: in the hostile environment correct drivers have findings too, and
         those say nothing about the fault
    """

    def __init__(self, trial: Trial, run: Callable[[Scenario], Verdict]) -> None:
        self.trial = trial
        self.executions = 0
        self._run = run
        self._rules = frozenset(faulty(trial.fault).rules)
        self._wrong: set[str] = set()
        self._of_the_environment: set[str] = set()
        self._spent = 0.0
        self._since: float | None = None

    def pause(self) -> None:
        """Stop the clock until the next execution: the engine gets ready for it."""
        assert self._since is not None
        self._spent += time.process_time() - self._since
        self._since = None

    def see(self, scenario: Scenario, verdict: Verdict) -> None:
        """One execution has been judged."""
        self.executions += 1
        if self._since is None:
            # This execution again, in the place of the one that is over: engines differ in what goes before it.
            self._since = time.process_time()
            self._run(scenario)
        cpu_s = self._spent + time.process_time() - self._since
        found = {finding.signature: f"{finding.oracle}/{finding.rule}" in self._rules for finding in verdict.findings}
        right = ""
        known = (self._wrong, self._of_the_environment)
        if any(is_right or not any(name in names for names in known) for name, is_right in found.items()):
            without = {finding.signature for finding in self._run(replace(scenario, fault="")).findings}
            right = next((name for name, is_right in found.items() if is_right and name not in without), "")
            wrong = {name for name, is_right in found.items() if not is_right}
            self._of_the_environment |= wrong & without
            self._wrong |= wrong - without
        if right or cpu_s > self.trial.cap_s:
            self._end(right, cpu_s)

    def _end(self, signature: str, cpu_s: float) -> NoReturn:
        wrong = tuple(sorted(self._wrong))
        result = TrialResult(self.trial, bool(signature), self.executions, round(cpu_s, 3), signature, wrong)
        _leave(msgspec.json.encode(result).decode() + "\n")


def _leave(line: str) -> NoReturn:
    """End the process with the line of a result, at once: libFuzzer and Hypothesis would go on."""
    os.write(1, line.encode())  # HypoFuzz and pytest put something else in the place of sys.stdout
    os._exit(0)


def regression_of(fault: str) -> tuple[Target, Scenario]:
    """The smallest scenario that shows a fault, and the target whose corpus has it. Raises InputError.

    What only a comparison of orders can tell is looked for by the target that compares them.
    """
    compared = all(rule.startswith("order-independence/") for rule in faulty(fault).rules)
    for target in TARGETS.values():
        path = CHECKOUT / "corpus" / target.name / "regressions" / f"{fault}.yaml"
        if path.exists():
            return TARGETS["exit_boot_services"] if compared else target, read_scenario(path)
    raise AssertionError(f"the corpus has no regression of the fault {fault}")


# ---- engines ----------------------------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What all engines get."""

    trial: Trial
    target: Target
    shown: Scenario
    watch: Watch


def _task(trial: Trial) -> Task:
    target, shown = regression_of(trial.fault)
    return Task(trial, target, shown, Watch(trial, target.run))


def _ebsfuzz(task: Task) -> None:
    """As it is: the basic scenarios, then generated ones and the starting corpus, mutation by operations, guidance."""
    from fuzz_targets.engine import collect_by_hand

    trial, target, shown, watch = task
    seeds, beginning = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    for path in sorted((CHECKOUT / "corpus" / target.name / "seeds").iterdir()):
        (seeds / f"{path.stem}.bin").write_bytes(codec.encode(read_scenario(path)))
    collect_by_hand()
    for basic in opening(target, shown.design, trial.fault, environment=shown.environment):
        watch.see(basic, target.run(basic))
    watch.pause()
    _under_atheris(task, str(seeds), beginning=beginning)


def _bytes(task: Task) -> None:
    """Plain bytes of libFuzzer through atheris, with the same feedback."""
    _under_atheris(task, mutate=False)


def _under_atheris(task: Task, *corpora: str, beginning: Path | None = None, mutate: bool = True) -> None:
    from fuzz_targets import engine

    trial, target, shown, watch = task
    engine.fuzz(
        target.name,
        design=shown.design,
        fault=trial.fault,
        environment=shown.environment,
        switches=_switches(shown),
        arguments=[
            f"-seed={trial.random_seed}",
            "-print_final_stats=0",
            f"-timeout={trial.cap_s + 60}",
            f"-artifact_prefix={tempfile.mkdtemp()}/",  # or else what breaks down leaves its input where the user is
            *corpora,
        ],
        on_verdict=lambda data, scenario, verdict: watch.see(scenario, verdict),
        beginning=beginning,
        mutate=mutate,
    )


def _random(task: Task) -> None:
    """Weighted random scenarios: ebsfuzz without guidance."""
    from fuzz_targets.engine import RUNS_PER_COLLECTION, collect_by_hand
    from fuzz_targets.generator import generate

    trial, target, shown, watch = task
    rng = Random(trial.random_seed)
    collect_by_hand()
    while True:
        scenario = generate(rng, target, shown.design, trial.fault, shown.environment, _switches(shown))
        verdict = target.run(scenario)
        watch.see(scenario, verdict)
        verdict.trace.records.clear()
        if watch.executions % RUNS_PER_COLLECTION == 0:
            gc.collect()


def _hypothesis(task: Task) -> None:
    """Hypothesis's RuleBasedStateMachine, its rules the operations."""
    from hypothesis import HealthCheck, Phase, seed, settings
    from hypothesis.stateful import run_state_machine_as_test

    chosen = settings(
        max_examples=1000,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    machine = _machine(task)
    number = task.trial.random_seed
    while True:
        run_state_machine_as_test(seed(number)(machine), settings=chosen)
        number += _SEED_STEP


def _hypofuzz(task: Task) -> None:
    """HypoFuzz on the same state machine: Hypothesis under coverage guidance.

    It collects a test file and runs it in processes of its own, so this one only waits for the result's line.
    """
    python = side_environment("hypofuzz", HYPOFUZZ, "pytest")
    folder = tempfile.mkdtemp()
    test = Path(folder, "test_trial.py")
    test.write_text(f"from campaign.trial import test_case\n\nTestTrial = test_case({sys.argv[1]!r})\n")
    program = str(python.with_name("hypothesis"))
    command = [program, "fuzz", "--no-dashboard", "-n", "1", "--", "-p", "no:cacheprovider", str(test)]
    environment = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": folder}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as fuzzer:
        assert fuzzer.stdout is not None
        line = next((line for line in fuzzer.stdout if line.startswith(RESULT)), "")
        os.killpg(fuzzer.pid, signal.SIGKILL)
    if not line:
        raise RuntimeError("HypoFuzz ended without a result")
    _leave(line)


def test_case(trial: str) -> Any:
    """What HypoFuzz runs: the state machine of a trial, which ends its process with the result."""
    made = msgspec.json.decode(trial, type=Trial)
    return _machine(_task(made)).TestCase


def _machine(task: Task) -> Any:
    from fuzz_targets.state_machine import state_machine

    def run(scenario: Scenario) -> None:
        task.watch.see(scenario, task.target.run(scenario))

    shown = task.shown
    return state_machine(
        (shown.design,), run, fault=task.trial.fault, environment=shown.environment, switches=_switches(shown)
    )


def _switches(shown: Scenario) -> tuple[str, ...]:
    """The permissions that every engine has: all of them, as a user would have who does not know the fault."""
    return tuple(sorted(SWITCHES)) if shown.environment == "hostile" else ()


ENGINES: dict[str, Callable[[Task], None]] = {
    "ebsfuzz": _ebsfuzz,
    "random": _random,
    "bytes": _bytes,
    "hypothesis": _hypothesis,
    "hypofuzz": _hypofuzz,
}
"""The first is ours, the others are what it is compared with."""


def main() -> NoReturn:
    """Do the trial in the first argument. Never returns."""
    trial = msgspec.json.decode(sys.argv[1], type=Trial)
    from fuzz_targets.engine import EngineMissing

    try:
        ENGINES[trial.engine](_task(trial))
    except (ImportError, CannotInstall, EngineMissing) as error:
        print(f"the engine {trial.engine} is not installed: {error}", file=sys.stderr)
        sys.exit(EXIT_ENGINE_MISSING)
    raise AssertionError("an engine came to its end")


if __name__ == "__main__":
    main()
