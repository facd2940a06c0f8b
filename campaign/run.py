"""A campaign: workers that fuzz designs side by side, their findings collected, counted and made reproducers.

`Campaign.run` starts one process for each `Assignment`, a few at a time, and looks at all of them a few times a second:
new findings go to the triage, figures to whoever shows progress. It ends when all assignments are done, when `stop` is
called (Ctrl-C), or when a worker shows that nothing can come of it.

What lies in the output folder:
    corpus/<target>/<design>/  what libFuzzer keeps; the next campaign in the same folder goes on from there
    findings/<name>/           reproducers
    workers/<name>/            of workers that are running or failed: counters, raw findings, log, crashing inputs

What deliberately lives elsewhere: fuzzing (`campaign.worker`), reproducers (`campaign.triage`), and all that people see
(`campaign.display`).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from campaign import worker
from campaign.exit_status import Exit, UsageProblem
from campaign.findings import Collector, Found, write_atomically
from campaign.replay import scenarios_at
from campaign.triage import Reproduced, Triage
from campaign.worker import WorkerConfig
from fuzz_targets import codec
from fuzz_targets.input_files import InputError, read_scenario
from fuzz_targets.registry import TARGETS

ROOT = Path(__file__).resolve().parent.parent
WORKER_COMMAND = (sys.executable, "-m", "campaign.worker")

LOOK_S = 0.1  # between two looks at the workers
STOP_GRACE_S = 5  # for a worker that was told to stop
OVERTIME_S = 20  # that a worker may take longer than its time and one execution: it starts, and reads its corpus
MINIMIZE_AFTER_END_S = 120  # for getting findings smaller when the workers have ended
MINIMIZE_AFTER_STOP_S = 5  # the same after Ctrl-C
RUNS_BEFORE_FEEDBACK = 2000  # a fuzzer that has run so often without coverage is blind

LIBFUZZER_MEANING = {70: "one execution took too long", 71: "out of memory", 77: "it crashed"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a campaign is to do. `ebsfuzz run --help` says what each means.

    designs    ("",) for a target in a world that has none
    switches   of the hostile environment, from which each scenario has some
    corpus     None: the repository's own for the target
    max_time_s, runs  None: no such limit; runs are those of each design
    jobs       None: one for each design, all side by side
    """

    target: str
    designs: tuple[str, ...]
    environment: str = "conforming"
    switches: tuple[str, ...] = ()
    fault: str = ""
    images: tuple[str, ...] = ()
    corpus: Path | None = None
    max_time_s: int | None = None
    runs: int | None = None
    timeout_s: int = 10
    jobs: int | None = None
    seed: int | None = None
    out: Path = Path("campaign-out")
    baseline: frozenset[str] = frozenset()
    guided: bool = True


@dataclass(frozen=True)
class Assignment:
    """The share of one worker process: a design, how long, how often, and with which random numbers."""

    design: str
    seconds: int | None
    runs: int | None
    seed: int | None


def assignments_of(settings: Settings) -> list[Assignment]:
    """The workers of a campaign, in the order in which they start.

    With fewer jobs than designs the designs take turns and share the time; with more, a design gets several workers,
    which share its runs and its corpus.
    """
    designs = settings.designs
    jobs = settings.jobs or len(designs)
    turns = math.ceil(len(designs) / jobs)
    seconds = None if settings.max_time_s is None else max(1, settings.max_time_s // turns)
    made: list[Assignment] = []
    for index, design in enumerate(designs):
        workers = max(1, jobs // len(designs) + (index < jobs % len(designs)))
        if settings.runs is not None:
            workers = min(workers, settings.runs)
        for number in range(workers):
            runs = settings.runs
            if runs is not None:
                runs = runs // workers + (number < runs % workers)
            seed = settings.seed
            if seed is not None and number:
                seed = (seed + number * 1_000_003) % 0xFFFF_FFFF or 1
            made.append(Assignment(design, seconds, runs, seed))
    return made


@dataclass
class DesignFigures:
    """How far the fuzzing of one design has come."""

    design: str
    executions: int = 0
    seconds: float = 0.0
    edges: int = 0
    features: int = 0
    corpus_size: int = 0
    findings: int = 0

    @property
    def executions_per_second(self) -> float:
        """Executions for each second in which a worker of this design ran."""
        return self.executions / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """What a campaign looks like at one moment. `seconds_left` is None where no time limit was given."""

    seconds: float
    seconds_left: float | None
    designs: tuple[DesignFigures, ...]
    minimizing: int = 0


@dataclass(frozen=True)
class FindingResult:
    """One signature of one design, at the end of a campaign. `known`: a baseline or the target itself lists it."""

    found: Found
    reproduced: Reproduced
    known: bool

    @property
    def counts(self) -> bool:
        """Whether it makes the exit status 1."""
        return not self.known and not self.found.record.note


@dataclass
class Result:
    """What came of a campaign."""

    settings: Settings
    seconds: float
    designs: tuple[DesignFigures, ...]
    findings: list[FindingResult]
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def executions(self) -> int:
        """Scenarios that all workers have run."""
        return sum(figures.executions for figures in self.designs)

    @property
    def executions_per_second(self) -> float:
        """Executions of all workers for each second of the campaign in which one of them ran."""
        return self.executions / self.seconds if self.seconds else 0.0

    @property
    def exit(self) -> Exit:
        """The exit status: a failure of ebsfuzz itself is said before what was found."""
        if self.problems:
            return Exit.FAILED
        return Exit.FINDINGS if any(finding.counts for finding in self.findings) else Exit.NOTHING_FOUND

    def as_object(self) -> dict[str, Any]:
        """The JSON answer. Figures are totals over the designs; paths are absolute."""
        return {
            "target": self.settings.target,
            "executions": self.executions,
            "executions_per_second": round(self.executions_per_second, 1),
            "seconds": round(self.seconds, 1),
            "edges": sum(figures.edges for figures in self.designs),
            "features": sum(figures.features for figures in self.designs),
            "corpus_size": sum(figures.corpus_size for figures in self.designs),
            "interrupted": self.interrupted,
            "problems": self.problems,
            "designs": [
                {
                    "design": figures.design,
                    "executions": figures.executions,
                    "executions_per_second": round(figures.executions_per_second, 1),
                    "edges": figures.edges,
                    "features": figures.features,
                    "corpus_size": figures.corpus_size,
                    "findings": figures.findings,
                }
                for figures in self.designs
            ],
            "findings": [
                {
                    "design": finding.found.record.design,
                    "oracle": finding.found.record.oracle,
                    "rule": finding.found.record.rule,
                    "signature": finding.found.record.signature,
                    "count": finding.found.count,
                    "reproducer": str(finding.reproduced.path.resolve()),
                    "note": finding.found.record.note,
                    "known": finding.known,
                    "minimized": finding.reproduced.minimized,
                    "agent": finding.found.record.agent,
                    "subject": finding.found.record.subject,
                    "source": finding.found.record.source,
                    "expected": finding.reproduced.expected,
                    "seen": finding.reproduced.seen,
                    "orders": finding.reproduced.orders,
                }
                for finding in self.findings
            ],
        }


class Campaign:
    """One campaign. `run` does it; `stop`, which a signal handler may call, ends it early.

    report   called a few times a second with how far it has come
    command  starts a worker; the configuration is added as the last argument
    """

    def __init__(
        self, settings: Settings, report: Callable[[Progress], None], command: Sequence[str] = WORKER_COMMAND
    ) -> None:
        self.settings = settings
        self._report = report
        self._command = command
        self._target = TARGETS[settings.target]
        self._collector = Collector()
        self._waiting = assignments_of(settings)
        self._running: list[_Worker] = []
        self._ended: list[_Worker] = []
        self._problems: list[str] = []
        self._stops = 0
        self._triage: Triage | None = None
        self._began = 0.0

    def stop(self) -> None:
        """End early: the first call ends the workers, the second also the minimizing."""
        self._stops += 1

    def run(self) -> Result:
        """Fuzz to the end.

        Raises UsageProblem for a corpus that cannot be read and an output folder that cannot be written, and
        CampaignFailure where a finding does not replay.
        """
        out = self.settings.out
        seeds: Path | None = None
        inputs = self._starting_corpus()
        try:
            for folder in (out / "workers", out / "findings"):
                folder.mkdir(parents=True, exist_ok=True)
            seeds = Path(tempfile.mkdtemp(dir=out / "workers", prefix="seeds-"))
            for number, data in enumerate(inputs):
                (seeds / f"{number:06}.bin").write_bytes(data)
            self._triage = Triage(self._target, out / "findings")
            self._began = time.monotonic()
            try:
                self._fuzz(seeds)
            finally:
                self._end_workers(signal.SIGINT)
            seconds = time.monotonic() - self._began
            self._finish_triage()
            result = self._result(seconds)
            self._tidy_up()
        except OSError as error:
            raise UsageProblem(f"{error.filename or out}: cannot be written: {error.strerror or error}") from error
        finally:
            if seeds is not None:
                shutil.rmtree(seeds, ignore_errors=True)
        return result

    # ---- before ---------------------------------------------------------------------------------------------------

    def _starting_corpus(self) -> list[bytes]:
        """The starting corpus as bytes. The corpus itself is only read, and in full before anything is written.

        The project's own regressions of seeded faults are left out: they are the answers to what a run may be asked.
        """
        corpus = self.settings.corpus
        if corpus is None:
            own = ROOT / "corpus" / self.settings.target
            paths = _scenarios_in(place for place in (own / "seeds", own / "regressions") if place.is_dir())
        else:
            paths = _scenarios_in([corpus])
        inputs: list[bytes] = []
        for path in paths:
            try:
                scenario = read_scenario(path)
            except InputError as error:
                raise UsageProblem(str(error)) from None
            if scenario.world != self._target.world:
                raise UsageProblem(
                    f"{path}: a scenario of the world {scenario.world!r}; "
                    f"the target {self._target.name} runs in {self._target.world!r}"
                )
            if not (corpus is None and scenario.fault and path.parent.name == "regressions"):
                inputs.append(codec.encode(scenario))
        return inputs

    # ---- while it runs --------------------------------------------------------------------------------------------

    def _fuzz(self, seeds: Path) -> None:
        jobs = self.settings.jobs or len(self.settings.designs)
        while (self._waiting or self._running) and not self._stops:
            while self._waiting and len(self._running) < jobs:
                self._start(self._waiting.pop(0), seeds)
            time.sleep(LOOK_S)
            self._look()
            self._report(self._progress())

    def _start(self, assignment: Assignment, seeds: Path) -> None:
        settings = self.settings
        name = assignment.design or settings.target
        folder = Path(tempfile.mkdtemp(dir=settings.out / "workers", prefix=f"{name}-"))
        corpus = settings.out / "corpus" / settings.target / assignment.design
        corpus.mkdir(parents=True, exist_ok=True)
        config = WorkerConfig(
            target=settings.target,
            design=assignment.design,
            fault=settings.fault,
            images=settings.images,
            environment=settings.environment,
            switches=settings.switches,
            folder=str(folder.resolve()),
            corpus=str(corpus.resolve()),
            seeds=str(seeds.resolve()),
            seed=assignment.seed,
            seconds=assignment.seconds,
            runs=assignment.runs,
            timeout_s=settings.timeout_s,
            guided=settings.guided,
        )
        self._collector.add_worker(folder)
        self._running.append(_Worker(assignment, folder, [*self._command, msgspec.json.encode(config).decode()]))

    def _look(self) -> None:
        """Collect what is new, and see to workers that have ended or should."""
        for found in self._collector.poll():
            assert self._triage is not None
            self._triage.add(found)
        for running in list(self._running):
            if running not in self._running:
                continue  # one that failed has just taken all of them along
            running.executions = self._collector.executions(running.folder)
            if running.poll():
                self._running.remove(running)
                self._ended.append(running)
                # What it did between the look above and its end.
                running.executions = self._collector.executions(running.folder)
                self._judge_end(running)
            elif self.settings.guided and running.is_blind():
                running.end(signal.SIGKILL)
                self._fail(f"the fuzzer is blind: {running.executions} executions gave no coverage feedback", running)
            elif running.overdue(self.settings.timeout_s):
                running.end(signal.SIGKILL)
                self._fail(f"a worker of {running.name} did not end in time and was killed", running)

    def _judge_end(self, ended: _Worker) -> None:
        """Say what was wrong with the end of a worker, if anything was."""
        status = ended.status
        if status == 0 or ended.stopped:
            if self.settings.guided and not ended.stopped and not ended.edges:
                self._fail("the fuzzer is blind: no execution gave coverage feedback", ended)
            return
        if status in _SIGNALLED:
            # Ctrl-C reaches the workers at the same time as this process, and may be handled there first.
            deadline = time.monotonic() + 1
            while not self._stops and time.monotonic() < deadline:
                time.sleep(LOOK_S)
            if self._stops:
                ended.stopped = True
                return
        problem = ended.problem
        if status == worker.EXIT_CANNOT_WRITE:
            ended.keep = True
            raise UsageProblem(problem or f"{self.settings.out}: cannot be written")
        if status in (worker.EXIT_NO_ENGINE, worker.EXIT_BLIND):
            ended.stopped = True  # nothing is worth keeping: it has not run
            self._fail(problem, ended)
            return
        meaning = LIBFUZZER_MEANING.get(status, f"it ended with status {status}")
        lines = [f"a worker of {ended.name} failed: {meaning}"]
        inputs = sorted(path for path in ended.folder.iterdir() if _INPUT.match(path.name))
        lines[0] += f"; the input is kept in {inputs[0]}" if inputs else f"; see {ended.folder / _LOG}"
        self._fail("\n".join([*lines, *ended.traceback()]), ended, stop=False)

    def _fail(self, problem: str, failed: _Worker, *, stop: bool = True) -> None:
        """Note that ebsfuzz itself failed; `stop` where other workers would only fail in the same way."""
        failed.keep = not failed.stopped
        if problem not in self._problems:
            self._problems.append(problem)
        if stop:
            self._waiting.clear()
            self._end_workers(signal.SIGKILL)

    def _end_workers(self, number: int) -> None:
        """End the workers that still run, and collect what they have left."""
        for running in self._running:
            running.stopped = True
            running.signal(number)
        for running in self._running:
            running.end(number)
        for running in self._running:
            running.executions = self._collector.executions(running.folder)
        self._ended += self._running
        self._running.clear()
        for found in self._collector.poll():
            assert self._triage is not None
            self._triage.add(found)

    def _finish_triage(self) -> None:
        """Wait for the reproducers; after a while, findings are stored as they were found."""
        triage = self._triage
        assert triage is not None
        stops = self._stops
        deadline = time.monotonic() + (MINIMIZE_AFTER_STOP_S if stops else MINIMIZE_AFTER_END_S)

        def wait() -> None:
            nonlocal stops, deadline
            if self._stops != stops:
                stops = self._stops
                deadline = time.monotonic()
            if time.monotonic() >= deadline:
                triage.hurry()
            self._report(self._progress())
            triage.join(LOOK_S)

        triage.finish(wait)
        self._report(self._progress())

    def _progress(self) -> Progress:
        now = time.monotonic() - self._began
        limit = self.settings.max_time_s
        triage = self._triage
        return Progress(
            seconds=now,
            seconds_left=None if limit is None else max(0.0, limit - now),
            designs=self._figures(),
            minimizing=triage.waiting if triage else 0,
        )

    def _figures(self) -> tuple[DesignFigures, ...]:
        """The figures of each design over its workers. Edges and corpus are shared, so the largest counts."""
        by_design = {design: DesignFigures(design) for design in self.settings.designs}
        for one in (*self._ended, *self._running):
            figures = by_design[one.assignment.design]
            figures.executions += one.executions
            figures.seconds = max(figures.seconds, one.seconds)
            figures.edges = max(figures.edges, one.edges)
            figures.features = max(figures.features, one.features)
            figures.corpus_size = max(figures.corpus_size, one.corpus_size)
        for design, _ in self._collector.found:
            by_design[design].findings += 1
        return tuple(by_design.values())

    # ---- after ----------------------------------------------------------------------------------------------------

    def _result(self, seconds: float) -> Result:
        assert self._triage is not None
        places = {design: place for place, design in enumerate(self.settings.designs)}
        keys = sorted(self._collector.found, key=lambda key: (places[key[0]], key[1]))
        findings = [
            FindingResult(
                self._collector.found[key],
                self._triage.done[key],
                key[1] in self.settings.baseline or self._target.is_known(*key),
            )
            for key in keys
        ]
        return Result(self.settings, seconds, self._figures(), findings, self._problems, bool(self._stops))

    def _tidy_up(self) -> None:
        """Remove the folders of workers whose findings are reproducers now; what failed stays as evidence."""
        for ended in self._ended:
            if not ended.keep:
                shutil.rmtree(ended.folder, ignore_errors=True)


def _scenarios_in(folders: Iterable[Path]) -> list[Path]:
    """Every scenario and reproducer in the folders. Raises UsageProblem for what is no folder or cannot be read."""
    paths: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            what = "a corpus is a folder, and this is none" if folder.exists() else "no such folder"
            raise UsageProblem(f"{folder}: {what}")
        if not any(folder.iterdir()):
            continue
        try:
            paths += scenarios_at(folder)
        except InputError as error:
            raise UsageProblem(str(error)) from None
    return paths


# ---- one worker ---------------------------------------------------------------------------------------------------

_LOG = "log.txt"
_LINES_KEPT = 200
_INPUT = re.compile(r"(crash|timeout|oom|leak|slow-unit)[-.]")
# How a worker ends that got Ctrl-C or the like; 72 is libFuzzer's own status for it.
_SIGNALLED = frozenset({72, 128 + signal.SIGINT, -signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM})
_STATUS_LINE = re.compile(r"#\d+\s+[A-Z]\w+")
_FIGURE = re.compile(r"\b(cov|ft|corp): (\d+)")


class _Worker:
    """One worker process, and what its output says about coverage."""

    def __init__(self, assignment: Assignment, folder: Path, command: list[str]) -> None:
        self.assignment = assignment
        self.folder = folder
        self.executions = 0
        self.edges = 0
        self.features = 0
        self.corpus_size = 0
        self.problem = ""
        self.stopped = False  # by this process
        self.keep = False  # its folder, as evidence
        self.status = 0
        self._initialised = False
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        environment = os.environ | {
            # The package of this process, from whatever folder it was started; and no log that comes in blocks.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
        }
        self._began = time.monotonic()
        self._ended: float | None = None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # atheris writes tracebacks there
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def name(self) -> str:
        return self.assignment.design or "the target"

    @property
    def seconds(self) -> float:
        return (self._ended or time.monotonic()) - self._began

    def poll(self) -> bool:
        """Whether the process has ended; its status and figures are final then."""
        if self._process.poll() is None:
            return False
        self._finish()
        return True

    def signal(self, number: int) -> None:
        """Tell the process to end."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self, number: int) -> None:
        """End the process, by force where it does not listen."""
        self.signal(number)
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._finish()

    def is_blind(self) -> bool:
        """Whether it runs and runs, and nothing of it is coverage."""
        return self._initialised and not self.edges and self.executions >= RUNS_BEFORE_FEEDBACK

    def overdue(self, timeout_s: int) -> bool:
        """Whether it should have ended long ago."""
        limit = self.assignment.seconds
        return limit is not None and self.seconds > limit + timeout_s + OVERTIME_S

    def traceback(self) -> list[str]:
        """The lines of the Python exception that ended it, or the last lines of its log."""
        lines = list(self._lines)
        starts = [index for index, line in enumerate(lines) if "Traceback" in line or "Uncaught Python" in line]
        ends = [index for index, line in enumerate(lines) if line.startswith("==") and "ERROR: libFuzzer" in line]
        return [line for line in lines[starts[0] if starts else -5 : ends[0] if ends else None] if line.strip()]

    def _finish(self) -> None:
        if self._ended is None:
            self._ended = time.monotonic()
            self._reader.join()
            self.status = self._process.returncode
            write_atomically(self.folder / _LOG, "".join(f"{line}\n" for line in self._lines).encode())

    def _read(self) -> None:
        """Read libFuzzer's lines until the process ends: `#1234 NEW cov: 56 ft: 78 corp: 9/123b …`."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                line = line.rstrip("\n")
                self._lines.append(line)
                if line.startswith(worker.PROBLEM):
                    self.problem = line.removeprefix(worker.PROBLEM)
                elif _STATUS_LINE.match(line):
                    self._initialised = True
                    figures = dict(_FIGURE.findall(line))
                    self.edges = int(figures.get("cov", self.edges))
                    self.features = int(figures.get("ft", self.features))
                    self.corpus_size = int(figures.get("corp", self.corpus_size))
