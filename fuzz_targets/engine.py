"""Runs a fuzz target under atheris: one world for every input, feedback, mutation by operations.

What gives feedback, and why so little: branches inside instrumented code cost 20 to 40 times what they cost without, so
only the code whose branches mean something is instrumented (`INSTRUMENTED`), without its comparisons, which only help a
mutator that works on bytes. The rest of the feedback comes from the trace (`guidance`).

Two environment variables take feedback away for a test or a comparison: `EBSFUZZ_INSTRUMENT=none` all of it, so that
the fuzzer is blind; `EBSFUZZ_GUIDANCE=none` the state features alone.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import secrets
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fuzz_targets import codec
from fuzz_targets.guidance import Guidance
from fuzz_targets.mutator import Mutator
from fuzz_targets.registry import TARGETS, Target
from reference_impl.faulty import FAULTS
from reference_impl.scenario import SWITCHES, Scenario, environments_of

if TYPE_CHECKING:
    from fuzz_targets.harness import Verdict

INSTRUMENTED: dict[str, tuple[str, ...]] = {
    "platform": ("reference_impl.xenbus.designs",),
    "core": ("reference_impl.uefi",),
    "ring": ("reference_impl.xenbus.xenstore_client", "reference_impl.xen.wire", "reference_impl.xen.shared_ring"),
    "efi-image": (),
}
"""For each world the packages and modules whose branches are counted. Runs of the small worlds are short, and their traces
say less, so there the code under test as a whole is worth it."""

INSTRUMENTED_FAULTS = ("reference_impl.faulty",)

DEFAULT_ARGUMENTS = ("-len_control=0", "-max_len=4096")

# A world is full of cycles (the core knows its services, they know the core), so something has to collect it. Collections
# at Python's own times find nothing but the world that runs just now. Collecting every eighth world cost least of 1 to
# 256: fewer look at the same objects again and again, more have left the processor's caches. Records hang on no cycle
# once they are out of the trace, and they are most of what there is.
RUNS_PER_COLLECTION = 8

_RUNS_BEFORE_FEEDBACK = 200


class EngineMissing(Exception):  # noqa: N818 - the command line shows it, and it is no bug
    """atheris cannot be imported. The message says what to install."""


class BlindError(Exception):
    """The fuzzer runs, but no run gave it any feedback. That is a failure of ebsfuzz itself."""


class CrashError(Exception):
    """A target run by itself met a finding; libFuzzer takes the exception for a crash and keeps the input."""


def collect_by_hand() -> None:
    """Take what there is out of Python's own collections, and end them: whoever runs worlds collects between runs."""
    gc.collect()
    gc.freeze()
    gc.disable()


def blind() -> bool:
    """Whether fuzzing now would get no feedback at all, because it has been switched off."""
    return os.environ.get("EBSFUZZ_INSTRUMENT") == "none"


def fuzz(
    target_name: str,
    *,
    design: str | None,
    fault: str | None = "",
    images: tuple[str, ...] | None = (),
    environment: str | None = "conforming",
    switches: tuple[str, ...] = tuple(SWITCHES),
    arguments: list[str],
    on_verdict: Callable[[bytes, Scenario, Verdict], None],
    beginning: Path | None = None,
    mutate: bool = True,
) -> NoReturn:
    """Fuzz until libFuzzer ends the process; never returns.

    design, fault, images, environment
                 what every scenario gets, whatever its bytes say. None: what the bytes say.
    switches     those of the hostile environment that scenarios may have
    arguments    of libFuzzer, without the program's name; they win over the target's and the engine's own
    on_verdict   called after every run with the scenario, its bytes and its verdict, whose trace is emptied when it
                 returns. What it raises ends the process as a crash (exit status 77).
    beginning    an empty folder for generated scenarios, which the run begins with besides what the corpora have; None
                 for none
    mutate       False: libFuzzer's own mutation of bytes instead of ours of operations, for comparison

    Raises EngineMissing before anything has run.
    """
    run = Run(Mutator(TARGETS[target_name], design, fault, images, environment, switches), on_verdict)
    run.start([sys.argv[0], *arguments], beginning=beginning, mutate=mutate)


class Run:
    """One process of fuzzing.

    executions  how many inputs have run
    """

    def __init__(self, mutator: Mutator, on_verdict: Callable[[bytes, Scenario, Verdict], None]) -> None:
        self.target = mutator.target
        self.mutator = mutator
        self.on_verdict = on_verdict
        self.executions = 0
        self._guidance: Guidance | None = None
        self._atheris: Any = None

    def start(self, command: list[str], *, beginning: Path | None, mutate: bool) -> NoReturn:
        """Set up atheris and fuzz. `command` is the program's name and the arguments of libFuzzer."""
        atheris = self._atheris = import_atheris()
        if not blind():
            instrument_code(atheris, self._packages())
            if os.environ.get("EBSFUZZ_GUIDANCE") != "none":
                self._guidance = Guidance(atheris._reserve_counter)
                self.mutator.archive = self._guidance.archive
        program, *given = command
        names = {argument.partition("=")[0] for argument in given}
        own = (*DEFAULT_ARGUMENTS, *self.target.arguments)
        defaults = [argument for argument in own if argument.partition("=")[0] not in names]
        collect_by_hand()
        if beginning is not None:
            self._generate(beginning, _number(given, "-runs", -1), _number(given, "-seed", secrets.randbits(32)))
            given += [str(beginning), "-prefer_small=0"]  # what is smallest is not what is found soonest
        own_ways = {"custom_mutator": self.mutator.custom_mutator, "custom_crossover": self.mutator.custom_crossover}
        atheris.Setup([program, *defaults, *given], self.one_input, **(own_ways if mutate else {}))
        atheris.Fuzz()
        raise AssertionError("atheris.Fuzz() returned")

    def _packages(self) -> tuple[str, ...]:
        faults = INSTRUMENTED_FAULTS if self.mutator.fault != "" else ()
        return INSTRUMENTED[self.target.world] + faults

    def _generate(self, folder: Path, runs: int, seed: int) -> None:
        """Write generated scenarios into `folder`: as many as the profile says, half of the `runs` at most, -1 is no limit.

        What is found soon is found soonest this way: mutation is worth its while only when there is something to mutate.
        In the conforming environment every other one is of the failure sweep, where there is one; what is left of that comes
        bit by bit afterwards. It says nothing about what others do in the hostile environment.
        """
        mutator = self.mutator
        mutator.begin_sweep(seed)
        count = self.target.profile.beginning
        for number in range(count if runs < 0 else min(count, runs // 2)):
            swept = number % 2 and mutator.sweep and mutator.environment != "hostile"
            made = codec.encode(mutator.pinned(mutator.sweep.pop())) if swept else mutator.generated(seed + number)
            (folder / f"{number:06}.bin").write_bytes(made)

    def one_input(self, data: bytes) -> None:
        """Run one input. Everything that is raised here is a crash to libFuzzer."""
        if self.mutator.failure is not None:
            raise self.mutator.failure
        decoded = codec.decode(data)
        scenario = self.mutator.pinned(decoded)
        if scenario is not decoded:
            data = codec.encode(scenario)
        verdict = self.target.run(scenario)
        self.executions += 1
        if self._guidance is not None:
            # Looked up anew: atheris replaces the function when fuzzing begins.
            self._guidance.feed(data, verdict.trace, self._atheris._trace_branch)
            if self.executions == _RUNS_BEFORE_FEEDBACK and not self._guidance.distinct:
                raise BlindError(f"no feedback in the first {self.executions} runs")
        self.on_verdict(data, scenario, verdict)
        verdict.trace.records.clear()
        if self.executions % RUNS_PER_COLLECTION == 0:
            gc.collect()


def _number(arguments: list[str], option: str, otherwise: int) -> int:
    """The number that libFuzzer is given for an option; its last word counts."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{option}=")]
    return int(given[-1]) if given else otherwise


def import_atheris() -> Any:
    """The atheris module. Raises EngineMissing."""
    try:
        return importlib.import_module("atheris")
    except ImportError as error:
        raise EngineMissing(
            "fuzzing needs atheris, which is not installed (pip install 'ebsfuzz[fuzz]'; it exists for CPython 3.11 to "
            f"3.13 on x86-64 Linux): {error}. Replay and everything else work without it."
        ) from None


# ---- instrumentation ----------------------------------------------------------------------------------------------


def instrument_code(atheris: Any, packages: tuple[str, ...]) -> int:
    """Count the branches of the code in `packages`; how many functions that are.

    Functions are patched where they are, after the import: an import hook would depend on who imports a module first.
    """
    count = 0
    for package in packages:
        for module in _modules(package):
            for function in _functions(module):
                function.__code__ = atheris.instrument_bytecode.patch_code(function.__code__, False)
                count += 1
    return count


def _modules(package: str) -> Iterator[types.ModuleType]:
    module = importlib.import_module(package)
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        yield from _modules(f"{package}.{found.name}")


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """The functions and methods that a module defines, in the order of definition."""
    spaces: list[Any] = [module]
    while spaces:
        for item in list(vars(spaces.pop(0)).values()):
            item = getattr(item, "__func__", item)  # static and class methods
            item = getattr(item, "fget", item)  # properties
            item = getattr(item, "__wrapped__", item)  # boot services
            if getattr(item, "__module__", None) != module.__name__:
                continue
            if isinstance(item, types.FunctionType):
                yield item
            elif isinstance(item, type):
                spaces.append(item)


# ---- a target as a program ----------------------------------------------------------------------------------------


def main(target_name: str) -> NoReturn:
    """Run a target as plain libFuzzer program: options and paths from the command line, a crash for a finding.

    EBSFUZZ_DESIGN, EBSFUZZ_FAULT and EBSFUZZ_ENVIRONMENT say what is fuzzed; without them the target's default design, no
    fault, and the conforming environment. Inputs given as files run as they are. `@FILE` stands for the arguments in a
    file, one a line.
    """
    from guest import ExtraMissing
    from guest.image import ImageError  # late: the target `pe_loader` imports it instrumented

    target = TARGETS[target_name]
    # Under -fork, -merge and -minimize_crash libFuzzer starts the program again by its name: that has to be a path, and
    # the interpreter that its first line finds has to be this one.
    sys.argv[0] = str(Path(sys.argv[0]).resolve())
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        arguments = list(expanded(sys.argv[1:]))
        design, fault, environment = fixed(target, arguments)
        images = None if design is None else ()
        target.prepare(design or target.default_design)
        fuzz(
            target_name,
            design=design,
            fault=fault,
            images=images,
            environment=environment,
            arguments=arguments,
            on_verdict=raising(target),
        )
    except (UsageError, ImageError, EngineMissing, ExtraMissing) as error:
        print(f"{target_name}: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, EngineMissing | ExtraMissing) else 2)


class UsageError(Exception):
    """The program was called wrongly. The message is one line."""


def expanded(arguments: list[str]) -> Iterator[str]:
    """The arguments, with `@FILE` replaced by the lines of the file. Raises UsageError."""
    for argument in arguments:
        if not argument.startswith("@"):
            yield argument
            continue
        try:
            yield from Path(argument[1:]).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{argument}: cannot be read: {error}") from None


def fixed(target: Target, arguments: list[str]) -> tuple[str | None, str | None, str | None]:
    """Design, fault and environment that every scenario gets; None for all where files are to be run as they are.

    Raises UsageError for an unknown name.
    """
    paths = [argument for argument in arguments if not argument.startswith("-")]
    if paths and all(Path(path).is_file() for path in paths):
        return None, None, None
    design = os.environ.get("EBSFUZZ_DESIGN", target.default_design)
    fault = os.environ.get("EBSFUZZ_FAULT", "")
    if design not in target.designs:
        raise UsageError(f"EBSFUZZ_DESIGN: unknown {design!r}; one of {', '.join(target.designs)}")
    if fault and fault not in FAULTS:
        raise UsageError(f"EBSFUZZ_FAULT: unknown {fault!r}")
    environment = os.environ.get("EBSFUZZ_ENVIRONMENT", "conforming")
    known = environments_of(target.world)
    if environment not in known:
        raise UsageError(f"EBSFUZZ_ENVIRONMENT: unknown {environment!r}; one of {', '.join(known)}")
    return design, fault, environment


def raising(target: Target) -> Callable[[bytes, Scenario, Verdict], None]:
    """What a target run by itself does with a verdict: raise CrashError at a finding that is no note and not known."""

    def on_verdict(data: bytes, scenario: Scenario, verdict: Verdict) -> None:
        for finding in verdict.findings:
            if not finding.note and not target.is_known(scenario.design, finding.signature):
                raise CrashError(
                    f"{finding.signature} at step {finding.step}: expected {finding.expected}; seen {finding.seen}"
                )

    return on_verdict
