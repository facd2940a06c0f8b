"""A campaign: workers that fuzz designs side by side, their findings collected, counted and made reproducers.

`Campaign.run` keeps a number of worker processes going (`campaign.schedule` says what each does next) and looks at all of
them a few times a second: new findings go to triage, new corpus entries to the corpus, figures to the statistics and to
whoever shows progress. It ends when its time or its runs are over, when `stop` is called (Ctrl-C), or when a worker shows
that nothing can come of it.

The output folder is the campaign (`docs/campaigns.md` says what lies in it), and the same command on it goes on where it
was. Whatever is killed at any moment leaves the truth behind: workers write findings whole or not at all and count in
mapped files, the statistics are committed whole or not at all, and a worker's folder goes only when all of it is in there.
`_recover` reads the folders of those that were killed.

A worker that breaks down is started again. What it broke down over is kept, and is a failure of ebsfuzz itself, which the
exit status says in the end. A design whose workers do nothing but break down is given up.

What deliberately lives elsewhere: fuzzing (`campaign.worker`), reproducers (`campaign.triage`), and all that people see
(`campaign.display`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from campaign import campaign_folder, worker
from campaign.campaign_folder import CampaignFolder
from campaign.exit_status import Exit, UsageProblem
from campaign.findings import FindingRecord, WorkerFolder
from campaign.minimize_corpus import CorpusMinimizer
from campaign.replay import scenarios_at
from campaign.reproducer import SCENARIO_BYTES
from campaign.schedule import Assignment, Schedule
from campaign.shared_corpus import Live, SharedCorpus
from campaign.statistics import Identity, Session, Statistics, TriagedFinding
from campaign.triage import FAILED, GONE, KEPT, LARGER, MINIMIZED, Answer, Job, Triage
from campaign.worker import WorkerConfig
from campaign.worker_process import ROOT, WorkerProcess
from fuzz_targets import codec
from fuzz_targets.input_files import InputError, read_scenario
from fuzz_targets.mutator import Mutator
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import Scenario

WORKER_COMMAND = (sys.executable, "-m", "campaign.worker")

LOOK_S = 0.1  # between two looks at the workers
WATCH_S = 1.0  # between two looks at their corpus, memory and speed, and two commits of the statistics
PROGRESS_S = 60.0  # between two points of progress
ANOTHER_LOOK_S = (
    60.0  # before what has a reproducer is minimized from other inputs, too: in a short run others need the time
)
MINIMIZE_AFTER_END_S = 120  # for getting findings smaller when the workers have ended
MINIMIZE_AFTER_STOP_S = 5  # the same after Ctrl-C
MINIMIZE_CORPUS_FROM = 1000  # entries of a design
MINIMIZE_CORPUS_S = 300  # that have to be left for it
ORPHAN_S = 10  # for a worker of a run that was killed to be gone

FAILURES_IN_A_ROW = 5  # after which a design is given up; a worker that ran more than this begins a new row:
HEALTHY_EXECUTIONS = 1000
FAILURES = 100  # after which a design is given up in any case
CRASHES_KEPT = 1000  # files

LIBFUZZER_MEANING = {70: "one execution took too long", 71: "out of memory", 77: "it crashed"}

# What libFuzzer calls an input over which it ended.
_INPUT = re.compile(r"(crash|timeout|oom|leak|slow-unit)[-.]")

# How a worker ends that got Ctrl-C or the like; 72 is libFuzzer's own status for it.
_SIGNALLED = frozenset({72, 128 + signal.SIGINT, -signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM})


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
    rss_limit_mb: int = 2048
    jobs: int | None = None
    seed: int | None = None
    out: Path = Path("campaign-out")
    baseline: frozenset[str] = frozenset()
    guided: bool = True

    @property
    def identity(self) -> Identity:
        """What only the same campaign has."""
        return Identity(target=self.target, environment=self.environment, switches=self.switches, fault=self.fault)


@dataclass
class DesignFigures:
    """How far the fuzzing of one design has come, over all sessions. `seconds` are those of its workers, added up."""

    design: str
    executions: int = 0
    seconds: float = 0.0
    edges: int = 0
    features: int = 0
    corpus_size: int = 0
    findings: int = 0

    @property
    def executions_per_second(self) -> float:
        """Executions for each second of a worker."""
        return self.executions / self.seconds if self.seconds else 0.0

    def add(self, executions: int, seconds: float, edges: int, features: int) -> None:
        """Add what one worker has done. Edges and features are shared, so the largest counts."""
        self.executions += executions
        self.seconds += seconds
        self.edges = max(self.edges, edges)
        self.features = max(self.features, features)


@dataclass(frozen=True)
class WorkerFigures:
    """How one worker that runs is doing. `rate`: executions for each second, lately."""

    number: int
    design: str
    executions: int
    rate: float
    edges: int
    features: int
    corpus_size: int
    rss_mb: int
    news: str
    news_s: float


@dataclass(frozen=True)
class Progress:
    """What a campaign looks like at one moment. `seconds_left` is None where no time limit was given.

    seconds  of all sessions
    news     the last lines of the log
    """

    seconds: float
    seconds_left: float | None
    designs: tuple[DesignFigures, ...]
    minimizing: int = 0
    workers: tuple[WorkerFigures, ...] = ()
    news: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Executions of all workers for each second, lately."""
        return sum(one.rate for one in self.workers)


@dataclass(frozen=True)
class FindingResult:
    """One signature of one design, at the end of a session. `known`: a baseline or the target itself lists it."""

    finding: TriagedFinding
    reproducer: Path
    known: bool

    @property
    def counts(self) -> bool:
        """Whether it makes the exit status 1."""
        return not self.known and not self.finding.note


@dataclass
class Result:
    """What has come of a campaign by the end of a session: figures of all sessions, and the findings that are still there.

    seconds  of all sessions
    """

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
        """Executions of all workers for each second of the campaign."""
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
                    **{
                        name: value
                        for name, value in msgspec.to_builtins(one.finding).items()
                        if name not in ("id", "state")
                    },
                    "minimized": one.finding.state == MINIMIZED,
                    "known": one.known,
                    "reproducer": str(one.reproducer.resolve()),
                }
                for one in self.findings
            ],
        }


@dataclass
class _Known:
    """A finding of this campaign. `fewest`: operations of its smallest scenario, or of its raw one while it waits."""

    id: int
    design: str
    signature: str
    fewest: int
    first_seen: float
    state: str
    reproducer: str = ""


class Campaign:
    """One session of a campaign. `run` does it; `stop`, which a signal handler may call, ends it early.

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
        self._jobs = settings.jobs or len(settings.designs)
        self._running: list[WorkerProcess] = []
        self._figures = {design: DesignFigures(design) for design in settings.designs}  # of workers that have ended
        self._minimizers: list[CorpusMinimizer] = []
        self._grown = dict.fromkeys(settings.designs, MINIMIZE_CORPUS_FROM)  # entries from which a corpus is minimized
        self._started_here = 0  # workers in this session
        self._started = Counter[str]()  # workers of each design, in all sessions
        self._in_a_row = Counter[str]()  # failures of each design
        self._failures = Counter[str]()
        self._known: dict[tuple[str, str], _Known] = {}
        self._corpora: dict[str, SharedCorpus] = {}
        self._problems: list[str] = []
        self._problem_kinds: set[str] = set()
        self._news: deque[str] = deque(maxlen=5)
        self._stops = 0
        self._aborted = False
        self._began = 0.0
        self._seconds_before = 0.0
        self._seconds = 0.0  # of this session, when it has ended
        self._next_watch = 0.0
        self._next_progress = PROGRESS_S
        self._kept: list[Path] = []  # inputs of the worker that ended last
        self._folder: CampaignFolder
        self._statistics: Statistics
        self._schedule: Schedule
        self._triage: Triage | None = None

    def stop(self) -> None:
        """End early: the first call ends the workers, the second also the minimizing."""
        self._stops += 1

    def run(self) -> Result:
        """Fuzz to the end.

        Raises UsageProblem for a corpus that cannot be read, an output folder that is in use, another campaign's or
        foreign, and one that cannot be written.
        """
        inputs = self._starting_corpus()
        with campaign_folder.opened(self.settings.out) as self._folder:
            try:
                self._statistics = Statistics(self._folder.path, self.settings.identity)
                try:
                    return self._run_session(inputs)
                finally:
                    self._statistics.close()
            except OSError as error:
                place = error.filename or self.settings.out
                raise UsageProblem(f"{place}: cannot be written: {error.strerror or error}") from error

    def _run_session(self, inputs: list[bytes]) -> Result:
        continued = self._begin_session()
        self._recover()
        self._go_on(continued)
        self._take_in(inputs)
        self._triage = triage = Triage()
        try:
            self._look_at_earlier_findings()
            self._began = time.monotonic()
            try:
                self._fuzz()
            except BaseException:
                # What they have made stays in their folders, for the next run.
                for running in self._running:
                    running.end(signal.SIGKILL)
                raise
            self._end_workers(signal.SIGINT)
            self._seconds = time.monotonic() - self._began
            self._finish_triage(triage)
        finally:
            triage.kill()
        ended = "stopped" if self._stops else "failed" if self._aborted else "done"
        self._statistics.update_session(self._seconds, ended)
        self._note("session", "", f"{ended} after {self._seconds:.0f} s, {self._totals()}")
        self._add_progress()
        return self._result()

    # ---- before ---------------------------------------------------------------------------------------------------

    def _starting_corpus(self) -> list[bytes]:
        """The starting corpus as bytes. The corpus itself is only read, and in full before anything is written.

        The project's own regressions of seeded faults and of the hostile environment are left out: they are the answers to
        what a run may be asked. So are its hostile seeds where the environment is the conforming one, and whatever differs
        from an earlier one only in what every input of a campaign gets anyway: design, fault and images.
        """
        corpus = self.settings.corpus
        if corpus is None:
            own = ROOT / "corpus" / self.settings.target
            paths = _scenarios_in(place for place in (own / "seeds", own / "regressions") if place.is_dir())
        else:
            paths = _scenarios_in([corpus])
        inputs: dict[Scenario, bytes] = {}
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
            hostile = scenario.environment == "hostile"
            answer = path.parent.name == "regressions" and (scenario.fault or hostile)
            if corpus is not None or not (answer or (hostile and self.settings.environment == "conforming")):
                inputs.setdefault(replace(scenario, design="", fault="", images=()), codec.encode(scenario))
        return list(inputs.values())

    def _begin_session(self) -> tuple[Session, ...]:
        """Read what is there; the earlier sessions that did not come to their end, so that this one goes on with them."""
        settings, statistics = self.settings, self._statistics
        for folder in (self._folder.workers, self._folder.findings):
            folder.mkdir(exist_ok=True)
        continued = statistics.begin_session(
            designs=settings.designs,
            jobs=self._jobs,
            max_time_s=settings.max_time_s,
            runs=settings.runs,
            seed=settings.seed,
            guided=settings.guided,
            pid=os.getpid(),
        )
        for finding in statistics.findings():
            fewest = finding.operations
            if fewest is None:
                fewest = len(codec.decode(statistics.raw_of(finding.id)).operations)
            self._known[finding.design, finding.signature] = _Known(
                finding.id,
                finding.design,
                finding.signature,
                fewest,
                finding.first_seen,
                finding.state,
                finding.reproducer,
            )
        for design in settings.designs:
            corpus = self._corpora[design] = SharedCorpus(self._folder.corpus(settings.target, design))
            if damaged := corpus.load(self._folder.damaged):
                self._note("corpus", design, f"{damaged} damaged files put aside in {self._folder.damaged}")
        return continued

    def _recover(self) -> None:
        """Take over what workers have left behind whose run was killed."""
        rows = {row.folder: row for row in self._statistics.workers()}
        for path in sorted(self._folder.workers.iterdir()):
            row = rows.get(path.name)
            if row is None:
                continue  # no worker's
            found = WorkerFolder(path)
            if not found.wait_for_the_end(ORPHAN_S):
                raise UsageProblem(f"{path}: a worker of a run that was killed is still there; end it and start again")
            self._take_findings(row.id, found)
            self._statistics.update_worker(row.id, executions=found.executions, ended="killed with its run")
            entries = 0
            if row.design in self._corpora and (path / "corpus").is_dir():
                corpus = self._corpora[row.design]
                entries = corpus.adopt(path / "corpus")
            self._keep_inputs(path, row.design)
            self._note(
                "worker",
                row.design,
                f"worker {row.id} had been killed: {found.executions:,} executions, {entries} corpus entries",
            )
        self._statistics.commit()
        for path in sorted(self._folder.workers.iterdir()):
            if path.name in rows:
                _remove(path)
        for path in (*self._folder.workers.iterdir(), *self._folder.findings.glob(".*")):
            shutil.rmtree(path, ignore_errors=True)

    def _go_on(self, continued: tuple[Session, ...]) -> None:
        """Count what has been done before, and what of that belongs to the same limits."""
        settings, statistics = self.settings, self._statistics
        had = sum(session.seconds for session in continued)
        left = None if settings.max_time_s is None else max(0.0, settings.max_time_s - had)
        self._schedule = Schedule(settings.designs, self._jobs, left, settings.runs)
        sessions = {session.id for session in continued}
        for ended in statistics.workers():
            self._started[ended.design] += 1
            if ended.design in self._figures:
                self._figures[ended.design].add(ended.executions, ended.seconds, ended.edges, ended.features)
                if ended.session in sessions:
                    self._schedule.credit(ended.design, ended.seconds, ended.executions)
        self._seconds_before = statistics.seconds_before()
        text = f"session {statistics.session}"
        if continued:
            text += " goes on"
            text += f": {left:.0f} of {settings.max_time_s} s are left" if left is not None else ""
        self._note("session", "", f"{text}: {settings.identity}, {self._jobs} workers")

    def _take_in(self, inputs: list[bytes]) -> None:
        """Make the starting corpus part of each design's, where it is not the one that was taken in last."""
        settings = self.settings
        digests = json.loads(self._statistics.seeds or "{}")
        digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in inputs)).hexdigest()
        for design, corpus in self._corpora.items():
            if digests.get(design) == digest:
                continue
            pin = Mutator(
                self._target, design, settings.fault, settings.images, settings.environment, settings.switches
            ).pinned
            for data in inputs:
                corpus.add(codec.encode(pin(codec.decode(data))))
            digests[design] = digest
        self._statistics.seeds = json.dumps(digests)
        self._statistics.commit()

    def _look_at_earlier_findings(self) -> None:
        """Finish triage where it was left, and see whether what was found before is still there."""
        for known in self._known.values():
            if known.design not in self._corpora:
                continue
            raw = self._statistics.raw_of(known.id)
            smallest = self._smallest(known)
            if not smallest:
                self._ask(known, raw, priority=0)
                continue
            self._ask(known, smallest, priority=0, check=known.state != KEPT)
            if known.fewest < len(codec.decode(smallest).operations):
                self._ask(known, raw, priority=1)

    def _smallest(self, known: _Known) -> bytes:
        """The scenario of a finding's reproducer; empty where there is none."""
        place = self._folder.path / known.reproducer / SCENARIO_BYTES
        return place.read_bytes() if known.reproducer and place.is_file() else b""

    # ---- while it runs --------------------------------------------------------------------------------------------

    def _fuzz(self) -> None:
        while not self._stops and not self._aborted:
            while len(self._running) + len(self._minimizers) < self._jobs:
                if not self._minimize_a_corpus():
                    assignment = self._schedule.next(self._elapsed())
                    if assignment is None:
                        break
                    self._start(assignment)
            if not self._running and not self._minimizers:
                return
            time.sleep(LOOK_S)
            self._look()
            self._report(self._progress())

    def _minimize_a_corpus(self) -> bool:
        """Have a corpus made small that has grown, in the place of a worker; whether there is one.

        Not at the beginning of a session, nor at its end: that time is for fuzzing. Nor for a design that is done.
        """
        rest = self._schedule.seconds
        if self._started_here < self._jobs or (rest is not None and rest - self._elapsed() < MINIMIZE_CORPUS_S):
            return False
        for design, corpus in self._corpora.items():
            busy = any(one.design == design for one in self._minimizers)
            if len(corpus.sizes) >= self._grown[design] and self._schedule.goes_on(design) and not busy:
                self._minimizers.append(CorpusMinimizer(design, corpus.folder))
                return True
        return False

    def _take_minimized(self) -> None:
        """Take out of each corpus what is not needed in it."""
        for one in list(self._minimizers):
            superfluous = one.answer()
            if superfluous is None:
                continue
            self._minimizers.remove(one)
            corpus = self._corpora[one.design]
            before = len(corpus.sizes)
            corpus.remove(superfluous)
            self._grown[one.design] = max(MINIMIZE_CORPUS_FROM, 2 * len(corpus.sizes))
            self._note("corpus", one.design, f"{before:,} entries before, {len(corpus.sizes):,} now")

    def _elapsed(self) -> float:
        return self._seconds or (time.monotonic() - self._began if self._began else 0.0)

    def _start(self, assignment: Assignment) -> None:
        settings = self.settings
        design = assignment.design
        seed = settings.seed
        if seed is not None and self._started[design]:
            seed = (seed + self._started[design] * 1_000_003) % 0xFFFF_FFFF or 1
        name = f"{design or settings.target}-{self._started.total() + 1:06}"
        number = self._statistics.add_worker(design, name)
        self._started[design] += 1
        self._started_here += 1
        self._statistics.commit()
        folder = self._folder.workers / name
        folder.mkdir()
        live = Live(self._corpora[design], folder / "corpus", folder)
        config = WorkerConfig(
            target=settings.target,
            design=design,
            fault=settings.fault,
            images=settings.images,
            environment=settings.environment,
            switches=settings.switches,
            folder=str(folder.resolve()),
            corpus=str(live.folder.resolve()),
            seed=seed,
            seconds=assignment.seconds,
            runs=assignment.runs,
            timeout_s=settings.timeout_s,
            rss_limit_mb=settings.rss_limit_mb,
            guided=settings.guided,
            fresh=self._started[design] == 1,
        )
        command = [*self._command, msgspec.json.encode(config).decode()]
        self._running.append(WorkerProcess(number, assignment, WorkerFolder(folder), live, command))

    def _look(self) -> None:
        """Collect what is new, and see to workers that have ended or should."""
        now = self._elapsed()
        watch = now >= self._next_watch
        for running in list(self._running):
            if running not in self._running:
                continue  # one that failed has just taken all of them along
            if running.poll():
                self._running.remove(running)
                self._take_over(running)
                self._judge_end(running)
                continue
            self._take_findings(running.number, running.found, all_counts=watch)
            if watch:
                running.watch()
                self._share(running)
            trouble = running.trouble(self.settings.timeout_s, self.settings.rss_limit_mb)
            if trouble:
                self._running.remove(running)
                running.end(signal.SIGKILL)
                self._take_over(running)
                self._count_failure(running, f"a worker of {running.name} failed: {trouble}")
            elif running.is_late(self.settings.timeout_s):
                running.stopped = True
                self._running.remove(running)
                running.end(signal.SIGINT)
                self._take_over(running)
            elif self.settings.guided and running.is_blind():
                self._abort(f"the fuzzer is blind: {running.executions} executions gave no coverage feedback")
        self._take_answers()
        if watch:
            self._next_watch = now + WATCH_S
            self._take_minimized()
            for running in self._running:
                self._store_figures(running)
            self._statistics.update_session(now)
            self._statistics.commit()
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_S
            self._add_progress()

    def _take_findings(self, number: int, found: WorkerFolder, *, all_counts: bool = True) -> None:
        """Take over what a worker has stored, and what it has counted."""
        new = found.look()
        for record, raw in new:
            self._take_finding(record, raw)
        if new or all_counts:
            for sighting in found.sightings():
                self._statistics.see(
                    self._known[sighting.record.design, sighting.record.signature].id,
                    number,
                    count=sighting.count,
                    last_seen=sighting.last_seen,
                    orders=sighting.orders,
                    environments=sighting.environments,
                    switches=sighting.switches,
                )
        if new:
            self._statistics.commit()

    def _take_finding(self, record: FindingRecord, raw: bytes) -> None:
        known = self._known.get((record.design, record.signature))
        if known is None:
            words = ("oracle", "rule", "agent", "subject", "signature", "source", "expected", "seen", "note", "design")
            number = self._statistics.add_finding(
                first_seen=record.time, raw=raw, **{name: getattr(record, name) for name in words}
            )
            known = _Known(number, record.design, record.signature, record.operations, record.time, "waiting")
            self._known[record.design, record.signature] = known
            self._note("finding", record.design, record.signature)
            self._ask(known, raw, priority=0)
            return
        if record.time < known.first_seen:
            known.first_seen = record.time
            self._statistics.update_finding(known.id, first_seen=record.time)
        if known.state == GONE or record.operations < known.fewest:
            known.fewest = record.operations
            self._statistics.update_finding(known.id, raw=raw)
            self._ask(known, raw, priority=1)
        elif known.state != "waiting" and self._elapsed() > ANOTHER_LOOK_S:
            self._ask(known, raw, priority=2)

    def _ask(self, known: _Known, raw: bytes, *, priority: int, check: bool = False) -> None:
        """Have triage look at an input, unless there is no triage yet: then at its beginning."""
        if self._triage is None:
            return
        self._triage.add(
            Job(
                finding=known.id,
                priority=priority,
                target=self.settings.target,
                signature=known.signature,
                raw=raw,
                folder=str(self._folder.findings),
                # What is gone is no measure for what has come back. What is to get smaller may stay as it is.
                smallest=b"" if check or known.state in (GONE, KEPT) else self._smallest(known),
                runs=self._statistics.count_of(known.id),
                check=check,
            )
        )

    def _take_answers(self) -> None:
        """Note what triage has found out."""
        known_by_id = {known.id: known for known in self._known.values()}
        for job, answer in self._triage.answers() if self._triage else ():
            known = known_by_id[job.finding]
            if answer.outcome == LARGER:
                continue
            if answer.outcome in (GONE, FAILED):
                self._lose(known, job, answer)
            elif job.check:
                if known.state == GONE:
                    known.state = KEPT
                    self._statistics.update_finding(known.id, state=KEPT)
            else:
                smaller = bool(known.reproducer)
                known.state, known.fewest = answer.outcome, answer.operations
                known.reproducer = f"findings/{answer.reproducer}"
                self._statistics.update_finding(
                    known.id,
                    state=known.state,
                    reproducer=known.reproducer,
                    **{
                        name: getattr(answer, name)
                        for name in (
                            "reliability",
                            "operations",
                            "environment",
                            "switches",
                            "orders",
                            "expected",
                            "seen",
                        )
                    },
                )
                if smaller:
                    text = f"{known.signature}: now {answer.operations} operations"
                    self._note("smaller", known.design, text)

    def _lose(self, known: _Known, job: Job, answer: Answer) -> None:
        """An input does not show its finding again, or cannot be run again."""
        if job.check:
            known.state = GONE
            self._statistics.update_finding(known.id, state=GONE)
            self._note("finding", known.design, f"{known.signature}: gone")
            return
        if known.reproducer and known.state != GONE:
            return  # the one that is there is good enough
        place = self._folder.crashes / f"finding-{known.id}.bin"
        self._folder.crashes.mkdir(exist_ok=True)
        place.write_bytes(job.raw)
        known.state = GONE
        self._statistics.update_finding(known.id, state=GONE, reliability=answer.reliability)
        why = answer.remark or "it does not show again when its scenario is replayed: the world is not deterministic"
        self._fail(f"{known.signature}: {why}; the input is kept in {place}")

    def _share(self, running: WorkerProcess) -> None:
        """Take over what a worker has added to the corpus, tell the others, and give it more of what was there."""
        new = running.live.collect()
        if new:
            for other in self._running:
                if other is not running and other.design == running.design:
                    other.live.hear_of(new)
        if running.initialised:
            running.live.feed(int(running.rate / 2))  # half of its time

    def _store_figures(self, running: WorkerProcess, ended: str = "") -> None:
        names = ("seconds", "executions", "edges", "features", "corpus_size", "rss_mb", "rss_max_mb", "news")
        figures = {name: getattr(running, name) for name in names}
        self._statistics.update_worker(running.number, ended=ended, **figures)

    def _take_over(self, ended: WorkerProcess) -> None:
        """Make what a worker has done part of the campaign; afterwards its folder is not needed any more."""
        self._take_findings(ended.number, ended.found)
        self._share(ended)
        self._figures[ended.design].add(ended.executions, ended.seconds, ended.edges, ended.features)
        self._schedule.end(ended.assignment, ended.seconds, ended.executions)
        self._store_figures(ended, "stopped" if ended.stopped else f"status {ended.status}")
        self._statistics.commit()
        self._kept = self._keep_inputs(ended.found.path, ended.design, ended.log())
        _remove(ended.found.path)

    def _keep_inputs(self, folder: Path, design: str, log: str = "") -> list[Path]:
        """Move the inputs over which a worker broke down out of its folder, and out of the corpus."""
        kept: list[Path] = []
        for path in sorted(folder.iterdir()):
            if not _INPUT.match(path.name):
                continue
            if design in self._corpora:
                self._corpora[design].remove([path.name.partition("-")[2]])
            self._folder.crashes.mkdir(exist_ok=True)
            if sum(1 for _ in self._folder.crashes.iterdir()) >= CRASHES_KEPT:
                continue
            place = self._folder.crashes / path.name
            path.replace(place)
            if log:
                place.with_name(f"{path.name}.log").write_text(log)
            kept.append(place)
        return kept

    def _judge_end(self, ended: WorkerProcess) -> None:
        """Say what was wrong with the end of a worker, if anything was."""
        status = ended.status
        if status == 0 or ended.stopped:
            if self.settings.guided and not ended.stopped and not ended.edges:
                self._abort("the fuzzer is blind: no execution gave coverage feedback")
            if ended.executions or ended.stopped:
                self._in_a_row[ended.design] = 0
            else:
                self._count_failure(ended, f"a worker of {ended.name} failed: it ended without having run anything")
            return
        if status in _SIGNALLED:
            # Ctrl-C reaches the workers at the same time as this process, and may be handled there first.
            deadline = time.monotonic() + 1
            while not self._stops and time.monotonic() < deadline:
                time.sleep(LOOK_S)
            if self._stops:
                return
        if status == worker.EXIT_CANNOT_WRITE:
            raise UsageProblem(ended.problem or f"{self.settings.out}: cannot be written")
        if status in (worker.EXIT_NO_ENGINE, worker.EXIT_BLIND):
            self._abort(ended.problem)
            return
        if status < 0 and not self._kept:
            # Somebody else ended it, be it the kernel for want of memory. There is nothing to mend in ebsfuzz.
            self._count_failure(ended, f"a worker of {ended.name} was killed by signal {-status}", fail=False)
            return
        meaning = LIBFUZZER_MEANING.get(status, f"it ended with status {status}")
        self._count_failure(ended, f"a worker of {ended.name} failed: {meaning}", ended.traceback())

    def _count_failure(
        self, ended: WorkerProcess, what: str, traceback: Sequence[str] = (), *, fail: bool = True
    ) -> None:
        """A worker has broken down. Another takes its place, unless that happens again and again."""
        design = ended.design
        place = f"; the input is kept in {self._kept[0]}" if self._kept else ""
        self._note("worker", design, f"{what}{place}")
        if fail:
            self._fail("\n".join([f"{what}{place}", *traceback]), kind="\n".join([what, *traceback]))
        self._failures[design] += 1
        self._in_a_row[design] = 1 if ended.executions > HEALTHY_EXECUTIONS else self._in_a_row[design] + 1
        if self._in_a_row[design] >= FAILURES_IN_A_ROW or self._failures[design] >= FAILURES:
            self._schedule.give_up(design)
            row = f"{self._in_a_row[design]} times in a row"
            if self._in_a_row[design] < FAILURES_IN_A_ROW:
                row = f"{self._failures[design]} times"
            self._fail(f"gave {ended.name} up: its workers broke down {row}, the last time: {what}")

    def _fail(self, problem: str, *, kind: str = "") -> None:
        """Note that ebsfuzz itself failed. The same `kind` of problem is said once."""
        kind = kind or problem
        if kind not in self._problem_kinds:
            self._problem_kinds.add(kind)
            self._problems.append(problem)
            self._note("problem", "", problem.partition("\n")[0])

    def _abort(self, problem: str) -> None:
        """End because all workers would only fail in the same way."""
        self._aborted = True
        self._fail(problem)
        self._end_workers(signal.SIGKILL)

    def _end_workers(self, number: int) -> None:
        """End the workers that still run, and collect what they have left."""
        for running in self._running:
            running.stopped = True
            running.signal(number)
        for minimizer in self._minimizers:
            minimizer.kill()
        self._minimizers.clear()
        while self._running:
            running = self._running.pop()
            running.end(number)
            self._take_over(running)

    def _finish_triage(self, triage: Triage) -> None:
        """Wait for the reproducers; after a while, findings are stored as they were found."""
        triage.finish()
        stops = self._stops
        deadline = time.monotonic() + (MINIMIZE_AFTER_STOP_S if stops else MINIMIZE_AFTER_END_S)
        while not triage.join(LOOK_S):
            if self._stops != stops:
                stops = self._stops
                deadline = time.monotonic()
            if time.monotonic() >= deadline:
                triage.hurry()
            self._take_answers()
            self._report(self._progress())
        self._take_answers()
        self._report(self._progress())

    # ---- figures --------------------------------------------------------------------------------------------------

    def _note(self, kind: str, design: str, text: str) -> None:
        """Something for the log and the statistics."""
        self._statistics.add_event(kind, design, text)
        line = f"{kind}: {design}: {text}" if design else f"{kind}: {text}"
        self._folder.log(line, time.time())
        self._news.append(line)

    def _progress(self) -> Progress:
        now = self._elapsed()
        return Progress(
            seconds=self._seconds_before + now,
            seconds_left=None if self._schedule.seconds is None else max(0.0, self._schedule.seconds - now),
            designs=self._design_figures(),
            minimizing=self._triage.waiting if self._triage else 0,
            workers=tuple(
                WorkerFigures(
                    one.number,
                    one.design,
                    one.executions,
                    one.rate,
                    one.edges,
                    one.features,
                    one.corpus_size,
                    one.rss_mb,
                    one.news,
                    time.monotonic() - one.news_at,
                )
                for one in self._running
            ),
            news=tuple(self._news),
        )

    def _design_figures(self) -> tuple[DesignFigures, ...]:
        """The figures of each design over its workers."""
        by_design = {design: replace(figures) for design, figures in self._figures.items()}
        for one in self._running:
            by_design[one.design].add(one.executions, one.seconds, one.edges, one.features)
        for design, corpus in self._corpora.items():
            by_design[design].corpus_size = len(corpus.sizes)
        for known in self._known.values():
            if known.design in by_design and known.state != GONE:
                by_design[known.design].findings += 1
        return tuple(by_design.values())

    def _totals(self) -> str:
        designs = self._design_figures()
        executions, findings = sum(one.executions for one in designs), sum(one.findings for one in designs)
        return f"{executions:,} executions and {findings} findings in all"

    def _add_progress(self) -> None:
        """A point of progress, for the statistics and for dashboards."""
        progress = self._progress()
        columns = ("design", "executions", "edges", "features", "corpus_size", "findings")
        designs = [{name: getattr(one, name) for name in columns} for one in progress.designs]
        for design in designs:
            self._statistics.add_progress(seconds=progress.seconds, **design)
        self._statistics.commit()
        self._folder.add_progress(
            {
                "time": round(time.time(), 1),
                "seconds": round(progress.seconds, 1),
                **{name: sum(one[name] for one in designs) for name in columns[1:]},
                "executions_per_second": round(progress.rate, 1),
                "waiting_for_triage": progress.minimizing,
                "designs": designs,
                "workers": [
                    {
                        "design": one.design,
                        "executions": one.executions,
                        "executions_per_second": round(one.rate, 1),
                        "rss_mb": one.rss_mb,
                    }
                    for one in progress.workers
                ],
            }
        )

    def _result(self) -> Result:
        places = {design: place for place, design in enumerate(self.settings.designs)}
        findings = [
            FindingResult(
                finding,
                self._folder.path / finding.reproducer,
                finding.signature in self.settings.baseline or self._target.is_known(finding.design, finding.signature),
            )
            for finding in self._statistics.findings()
            if finding.design in places and finding.state != GONE
        ]
        findings.sort(key=lambda one: (places[one.finding.design], one.finding.signature))
        return Result(
            self.settings,
            self._seconds_before + self._seconds,
            self._design_figures(),
            findings,
            self._problems,
            bool(self._stops),
        )


def _remove(folder: Path) -> None:
    """Remove a worker's folder at once: half of one would look like a worker that has counted less."""
    gone = folder.with_name(f".{folder.name}")  # no worker's name; what is left of it the next run takes away
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


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
