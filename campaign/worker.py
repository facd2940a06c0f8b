"""One process that fuzzes one design: `python -m campaign.worker CONFIG`, started by `campaign.run`.

CONFIG is a `WorkerConfig` as JSON. Figures and findings go into the worker's folder (`campaign.findings`), and
libFuzzer's own lines to standard error, where the parent reads coverage and corpus size. libFuzzer leaves the process
without telling Python, so nothing here waits for the end. It ends with its parent, however that ends: what is in the folder
is collected by the next run of the campaign.

A worker that cannot go on says so in one line that begins with `PROBLEM`, and ends with one of the statuses below.
Anything else that ends it is a crash of ebsfuzz itself, and the input is kept in the worker's folder.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import msgspec

from campaign.findings import FindingStore, write_atomically
from fuzz_targets.registry import TARGETS

if TYPE_CHECKING:
    from fuzz_targets.harness import Verdict
    from reference_impl.scenario import Scenario

PROBLEM = "ebsfuzz-worker: "

EXIT_CANNOT_WRITE = 40  # the output folder is full or gone
EXIT_NO_ENGINE = 41  # atheris is missing
EXIT_BLIND = 42  # no feedback
EXIT_CRASHED = 77  # as libFuzzer has it
EXIT_TIMEOUT = 70  # as libFuzzer has it

PARENT = "EBSFUZZ_PARENT"  # environment variable with the number of the process that has started this one

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class WorkerConfig(msgspec.Struct, frozen=True):
    """What a worker is to do.

    target, design, fault, images, environment
                   what is fuzzed; design "" in a world that has none
    switches       of the hostile environment, from which each scenario has some
    folder         the worker's own, which exists
    corpus         its live folder of entries of the corpus, which exists
    seed           of the random numbers; None: the target's own, else any
    seconds, runs  when to end; None: no limit. Seconds count from the start of the process.
    timeout_s      the longest that one execution may take
    rss_limit_mb   the most memory that the process may use, in MiB
    guided         False: weighted random scenarios, without atheris
    fresh          whether nobody has fuzzed the design in this campaign before: then basic and generated scenarios come
                   first
    """

    target: str
    design: str
    fault: str
    images: tuple[str, ...]
    environment: str
    switches: tuple[str, ...]
    folder: str
    corpus: str
    seed: int | None
    seconds: int | None
    runs: int | None
    timeout_s: int
    rss_limit_mb: int
    guided: bool
    fresh: bool


def main() -> NoReturn:
    """Fuzz as the configuration in the first argument says, until a limit is reached or a signal comes."""
    config = msgspec.json.decode(sys.argv[1], type=WorkerConfig)
    die_with_parent()
    try:
        store = FindingStore(Path(config.folder))
    except OSError as error:
        _give_up(EXIT_CANNOT_WRITE, f"{config.folder}: {error.strerror}")

    def on_verdict(data: bytes, scenario: Scenario, verdict: Verdict) -> None:
        store.count_execution()
        for finding in verdict.findings:
            try:
                store.see(finding, scenario, lambda: data)
            except OSError as error:
                _give_up(EXIT_CANNOT_WRITE, f"{error.filename}: {error.strerror}")

    if config.guided:
        _fuzz_guided(config, on_verdict)
    _fuzz_unguided(config, on_verdict)


def die_with_parent() -> None:
    """Have this process killed when the one that has started it ends, however that ends: nobody else would ever end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.environ.get(PARENT, "") not in ("", str(os.getppid())):
        os._exit(0)  # it has ended already


def _give_up(status: int, message: str) -> NoReturn:
    """End the process at once, whatever C code is on the stack, with one line that says why."""
    sys.stderr.write(f"{PROBLEM}{message}\n")
    sys.stderr.flush()
    os._exit(status)


def _fuzz_guided(config: WorkerConfig, on_verdict: Callback) -> NoReturn:
    """Fuzz under atheris. Never returns."""
    from fuzz_targets import engine
    from fuzz_targets.basics import opening

    if engine.blind():
        _give_up(EXIT_BLIND, "the fuzzer is blind: EBSFUZZ_INSTRUMENT=none takes all coverage feedback away")
    try:
        engine.import_atheris()
    except engine.EngineMissing as error:
        _give_up(EXIT_NO_ENGINE, str(error))
    seconds, runs = config.seconds, config.runs
    if config.fresh:
        begun = time.monotonic()
        basics = opening(TARGETS[config.target], config.design, config.fault, config.images, config.environment)
        basics = basics[: None if runs is None else runs // 2]
        _run(config, basics, on_verdict)
        seconds = seconds and max(1, seconds - int(time.monotonic() - begun))
        runs = runs and runs - len(basics)
    arguments = [
        f"-timeout={config.timeout_s}",
        f"-rss_limit_mb={config.rss_limit_mb}",
        f"-artifact_prefix={config.folder}/",
        "-print_final_stats=0",
    ]
    if config.seed is not None:
        arguments.append(f"-seed={config.seed}")
    if seconds is not None:
        arguments.append(f"-max_total_time={seconds}")
    if runs is not None:
        arguments.append(f"-runs={runs}")
    engine.fuzz(
        config.target,
        design=config.design,
        fault=config.fault,
        images=config.images,
        environment=config.environment,
        switches=config.switches,
        arguments=[*arguments, config.corpus],
        on_verdict=on_verdict,
        beginning=Path(config.corpus) if config.fresh else None,
    )


def _fuzz_unguided(config: WorkerConfig, on_verdict: Callback) -> NoReturn:
    """Run weighted random scenarios, one after the other, without feedback. Never returns."""
    _run(config, _generated(config), on_verdict)
    sys.exit(0)


def _generated(config: WorkerConfig) -> Iterator[Scenario]:
    """Weighted random scenarios, until a limit is reached."""
    from fuzz_targets.generator import generate

    target = TARGETS[config.target]
    random = Random(config.seed)
    end = None if config.seconds is None else time.monotonic() + config.seconds
    executions = 0
    while executions != config.runs and (end is None or time.monotonic() < end):
        scenario = generate(random, target, config.design, config.fault, config.environment, config.switches)
        yield replace(scenario, images=config.images) if config.images else scenario
        executions += 1


class _Timeout(BaseException):
    """One execution took too long. No `Exception`: no code under test may catch it."""


def _run(config: WorkerConfig, scenarios: Iterable[Scenario], on_verdict: Callback) -> None:
    """Run scenarios without libFuzzer; what it would do at a crash, at the end of patience and at a signal is done here."""
    from fuzz_targets import codec
    from fuzz_targets.engine import RUNS_PER_COLLECTION, collect_by_hand

    def too_long(number: int, frame: FrameType | None) -> None:
        raise _Timeout(f"one execution took longer than {config.timeout_s} s")

    target = TARGETS[config.target]
    handlers = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGALRM, too_long), (signal.SIGTERM, signal.default_int_handler))
    }
    collect_by_hand()
    try:
        for executions, scenario in enumerate(scenarios, 1):
            data = codec.encode(scenario)
            try:
                signal.setitimer(signal.ITIMER_REAL, config.timeout_s)
                verdict = target.run(scenario)
                signal.setitimer(signal.ITIMER_REAL, 0)
                on_verdict(data, scenario, verdict)
                verdict.trace.records.clear()
            except (Exception, _Timeout) as error:
                what, status = ("timeout", EXIT_TIMEOUT) if isinstance(error, _Timeout) else ("crash", EXIT_CRASHED)
                # Named as libFuzzer names them: workers that break down over different inputs do not share a name.
                write_atomically(Path(config.folder, f"{what}-{hashlib.sha1(data).hexdigest()}"), data)
                traceback.print_exc()
                sys.exit(status)
            if executions % RUNS_PER_COLLECTION == 0:
                gc.collect()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    for number, handler in handlers.items():
        signal.signal(number, handler)  # libFuzzer leaves alone what is taken


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Callback = Callable[[bytes, Scenario, Verdict], None]

if __name__ == "__main__":
    main()
