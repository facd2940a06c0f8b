"""How good a fuzzer is: seeded faults, several engines, many trials, and what the figures are worth.

A trial is one engine that looks for one fault from one seed, in a process of its own (`campaign.trial`). `run_trials` does
those that a folder does not hold yet, and notes each in `trials.jsonl` as soon as it ends: a score of all faults takes
days of one machine, and goes on where it was.

`Score` compares. A trial that ran out of time is later than every one that found the fault. For each fault ebsfuzz is
compared with each other engine by the Mann–Whitney test, with Holm's correction over the faults, and by the
Vargha–Delaney A12: the probability that a trial of ebsfuzz is the sooner one, ties half. Over all faults together,
Wilcoxon's signed-rank test asks whether A12 lies above one half.

What deliberately lives elsewhere: the engines (`campaign.trial`), the page (`campaign.score_page`).
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from campaign.exit_status import CampaignFailure, UsageProblem
from campaign.trial import ENGINES, EXIT_ENGINE_MISSING, RESULT, Trial, TrialResult
from reference_impl.faulty import faulty

TRIALS = "trials.jsonl"
OURS = next(iter(ENGINES))
ALPHA = 0.05
WALL_PER_CPU = 20  # a trial whose processor time stands still is ended after so many times its limit

UNITS = {"cpu_s": "CPU seconds", "executions": "executions"}
MEASURES = tuple(UNITS)
"""What "soon" is measured in, and its name for people."""


class Settings(NamedTuple):
    """What is to be tried. `ebsfuzz score --help` says what each means; times are CPU seconds."""

    faults: tuple[str, ...]
    engines: tuple[str, ...]
    trials: int
    cap_s: int
    deep_cap_s: int
    jobs: int
    out: Path

    def asks_for(self, trial: Trial) -> bool:
        """Whether a trial belongs to the score, whatever its seed."""
        return trial.fault in self.faults and trial.engine in self.engines and trial.cap_s == self.cap_of(trial.fault)

    def cap_of(self, fault: str) -> int:
        """CPU seconds after which a trial of `fault` is given up."""
        return self.deep_cap_s if faulty(fault).deep else self.cap_s


def trials_of(settings: Settings) -> list[Trial]:
    """All trials, seed by seed: so that whoever stops early has tried every fault with every engine as often."""
    return [
        Trial(fault, engine, seed, settings.cap_of(fault))
        for seed in range(1, settings.trials + 1)
        for fault in settings.faults
        for engine in settings.engines
    ]


def run_trials(settings: Settings, report: Callable[[TrialResult, int], None]) -> list[TrialResult]:
    """All results that the folder holds for these faults, engines and times, after those that were missing have been made.

    report  called after each new one, with how many are left

    Raises UsageProblem for a folder that cannot be written or holds something else, and CampaignFailure where an engine is
    missing or fails.
    """
    file = settings.out / TRIALS
    try:
        known = {result.trial: result for result in read(file)}
        missing = [trial for trial in trials_of(settings) if trial not in known]
        if missing:
            settings.out.mkdir(parents=True, exist_ok=True)
            _cut_last_line(file)
            with file.open("a", encoding="utf-8") as out:
                for left, result in zip(range(len(missing) - 1, -1, -1), _made(missing, settings.jobs), strict=True):
                    known[result.trial] = result
                    out.write(msgspec.json.encode(result).decode() + "\n")
                    out.flush()
                    report(result, left)
    except OSError as error:
        raise UsageProblem(f"{error.filename or settings.out}: {error.strerror or error}") from error
    order = {pair: place for place, pair in enumerate(product(settings.faults, settings.engines))}
    asked = [result for trial, result in known.items() if settings.asks_for(trial)]
    if not asked:
        raise UsageProblem(f"{file}: no trial of these faults, engines and times")
    return sorted(asked, key=lambda one: (order[one.trial.fault, one.trial.engine], one.trial.seed))


def _made(trials: Sequence[Trial], jobs: int) -> Iterator[TrialResult]:
    """The results of trials, as they end. Those that have not begun are left out when one fails."""
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run_trial, trial) for trial in trials]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read(file: Path) -> list[TrialResult]:
    """The results that a file holds; none where there is no file.

    A last line without its end is just being written, or was when the machine stopped: then its trial is made again.
    Raises UsageProblem, with the line, for anything else that is no result.
    """
    if not file.exists():
        return []
    results = []
    for number, line in enumerate(file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines(), 1):
        try:
            results.append(msgspec.json.decode(line, type=TrialResult))
        except msgspec.DecodeError as error:
            raise UsageProblem(f"{file}:{number}: no result of a trial: {error}") from None
    return results


def _cut_last_line(file: Path) -> None:
    """Take away a last line that has no end."""
    if file.exists():
        with file.open("r+b") as lines:
            lines.truncate(lines.read().rfind(b"\n") + 1)


def run_trial(trial: Trial) -> TrialResult:
    """One trial in a process of its own. Raises CampaignFailure where the process does not give a result."""
    command = [sys.executable, "-m", "campaign.trial", msgspec.json.encode(trial).decode()]
    try:
        # A trial ends from one moment to the next, so what it leaves behind is cleared away here.
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=WALL_PER_CPU * trial.cap_s + 120,
                env={**os.environ, "TMPDIR": folder},
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise CampaignFailure(
            f"{trial.engine} on {trial.fault}, seed {trial.seed}: it did not come to an end"
        ) from None
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if results:
        return msgspec.json.decode(results[-1], type=TrialResult)
    said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    if done.returncode == EXIT_ENGINE_MISSING:
        raise CampaignFailure(said[0])
    raise CampaignFailure(f"{trial.engine} on {trial.fault}, seed {trial.seed} failed: {said[0]}")


# ---- comparing --------------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """All trials of one engine on one fault."""

    fault: str
    engine: str
    results: tuple[TrialResult, ...]

    @property
    def found(self) -> int:
        """How many trials found the fault."""
        return sum(result.found for result in self.results)

    def values(self, measure: str) -> list[float]:
        """What each trial took, infinity where it did not find the fault; ascending."""
        return sorted(getattr(result, measure) if result.found else math.inf for result in self.results)

    def median(self, measure: str) -> float:
        """Of the values; infinity where half of the trials or more found nothing."""
        return statistics.median(self.values(measure))

    def worst(self, measure: str) -> float:
        """The largest value."""
        return self.values(measure)[-1]


class Comparison(NamedTuple):
    """ebsfuzz and another engine on one fault.

    a12      how probable it is that ebsfuzz is the sooner one, ties half
    p        of the Mann–Whitney test, two-sided, corrected by Holm's method over the faults
    """

    fault: str
    engine: str
    measure: str
    a12: float
    p: float

    @property
    def verdict(self) -> str:
        """ "sooner", "later", or "" where the difference may be chance."""
        if not self.p < ALPHA:
            return ""
        return "sooner" if self.a12 > 0.5 else "later"


@dataclass(frozen=True)
class Score:
    """What the results say."""

    results: Sequence[TrialResult]

    @cached_property
    def groups(self) -> dict[tuple[str, str], Group]:
        """(fault, engine) → its trials, in the order of the results."""
        found: dict[tuple[str, str], list[TrialResult]] = {}
        for result in self.results:
            found.setdefault((result.trial.fault, result.trial.engine), []).append(result)
        return {key: Group(*key, tuple(results)) for key, results in found.items()}

    @cached_property
    def faults(self) -> tuple[str, ...]:
        """Those that were tried."""
        return tuple(dict.fromkeys(fault for fault, _ in self.groups))

    @cached_property
    def engines(self) -> tuple[str, ...]:
        """Those that were used."""
        return tuple(dict.fromkeys(engine for _, engine in self.groups))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """ebsfuzz against each other engine, on each fault that both have tried, in both measures."""
        made: list[Comparison] = []
        for engine in self.engines:
            shared = [f for f in self.faults if (f, OURS) in self.groups and (f, engine) in self.groups]
            if engine == OURS or not shared:
                continue
            for measure in MEASURES:
                pairs = [
                    _compare(self.groups[fault, OURS].values(measure), self.groups[fault, engine].values(measure))
                    for fault in shared
                ]
                corrected = holm([p for _, p in pairs])
                made += [
                    Comparison(fault, engine, measure, a12, p)
                    for fault, (a12, _), p in zip(shared, pairs, corrected, strict=True)
                ]
        return made

    def overall(self, engine: str, measure: str) -> tuple[float, float]:
        """Median A12 over all faults, and the p of Wilcoxon's signed-rank test that ebsfuzz is the sooner one."""
        from scipy.stats import wilcoxon

        shares = [one.a12 for one in self.comparisons if (one.engine, one.measure) == (engine, measure)]
        distances = [share - 0.5 for share in shares]
        p = float(wilcoxon(distances, alternative="greater").pvalue) if any(distances) else 1.0
        return statistics.median(shares), p

    @cached_property
    def by_oracle(self) -> dict[str, dict[str, int]]:
        """Engine → oracle whose finding was the right one → trials."""
        counts: dict[str, dict[str, int]] = {engine: {} for engine in self.engines}
        for result in self.results:
            if result.found:
                oracle = result.signature.partition("/")[0]
                counts[result.trial.engine][oracle] = counts[result.trial.engine].get(oracle, 0) + 1
        return counts

    @cached_property
    def wrong(self) -> dict[str, tuple[str, ...]]:
        """Fault → signatures that were reported and that the fault does not account for."""
        found: dict[str, set[str]] = {}
        for result in self.results:
            if result.wrong:
                found.setdefault(result.trial.fault, set()).update(result.wrong)
        return {fault: tuple(sorted(signatures)) for fault, signatures in sorted(found.items())}

    def as_object(self) -> dict[str, Any]:
        """The JSON answer. What was not found in half of the trials has no median: null."""
        return {
            "faults": [
                {
                    "fault": group.fault,
                    "deep": faulty(group.fault).deep,
                    "engine": group.engine,
                    "trials": len(group.results),
                    "found": group.found,
                    **{f"median_{measure}": _finite(group.median(measure)) for measure in MEASURES},
                    **{f"worst_{measure}": _finite(group.worst(measure)) for measure in MEASURES},
                }
                for group in self.groups.values()
            ],
            "comparisons": [{**one._asdict(), "verdict": one.verdict} for one in self.comparisons],
            "overall": [
                {"engine": engine, "measure": measure, "median_a12": a12, "p": p}
                for engine, measure in dict.fromkeys((one.engine, one.measure) for one in self.comparisons)
                for a12, p in [self.overall(engine, measure)]
            ],
            "found_by_oracle": self.by_oracle,
            "wrong_findings": self.wrong,
        }


def _compare(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """A12 and the p of the Mann–Whitney test, two-sided, for two samples of values of which small ones are better."""
    from scipy.stats import mannwhitneyu

    both = [*ours, *theirs]
    if len(set(both)) == 1:
        return 0.5, 1.0
    u, p = mannwhitneyu(theirs, ours, alternative="two-sided")
    # Where values are equal, p is an approximation. No order of so few trials is less probable than this.
    least = min(1.0, 2 / math.comb(len(both), len(ours)))
    return float(u) / (len(ours) * len(theirs)), max(float(p), least)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction of p values that were asked for together, in their order."""
    corrected = [0.0] * len(ps)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, ps[index] * (len(ps) - place)))
        corrected[index] = highest
    return corrected


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ---- telling ----------------------------------------------------------------------------------------------------------


def lines(score: Score) -> Iterator[str]:
    """The score as a table in Markdown, which people also read as it is."""
    engines = score.engines
    yield "| fault | " + " | ".join(f"{engine}: found, median (worst) CPU s; executions" for engine in engines) + " |"
    yield "|---|" + "---|" * len(engines)
    verdicts = {(one.fault, one.engine): "" for one in score.comparisons}
    for one in score.comparisons:
        if one.verdict:
            known = verdicts[one.fault, one.engine]
            verdicts[one.fault, one.engine] = f"{known} **{one.verdict}** in {UNITS[one.measure]} (A12 {one.a12:.2f});"
    for fault in score.faults:
        cells = [_cell(score.groups.get((fault, engine)), verdicts.get((fault, engine), "")) for engine in engines]
        yield f"| {fault}{' (deep)' if faulty(fault).deep else ''} | " + " | ".join(cells) + " |"
    yield ""
    yield f"**sooner**, **later**: {OURS} against that engine, where chance is ruled out (Mann–Whitney, Holm, p < {ALPHA:g})."
    for engine, measure in dict.fromkeys((one.engine, one.measure) for one in score.comparisons):
        a12, p = score.overall(engine, measure)
        later = [
            one.fault
            for one in score.comparisons
            if (one.engine, one.measure, one.verdict) == (engine, measure, "later")
        ]
        yield (
            f"Over all faults against {engine}, in {UNITS[measure]}: median A12 {a12:.2f}, "
            f"p {p:.2g} (Wilcoxon); later on {', '.join(later) or 'none'}."
        )
    for engine, counts in score.by_oracle.items():
        found = sum(group.found for group in score.groups.values() if group.engine == engine)
        tried = sum(len(group.results) for group in score.groups.values() if group.engine == engine)
        by = ", ".join(f"{oracle} {count}" for oracle, count in sorted(counts.items(), key=lambda item: -item[1]))
        yield f"{engine}: found in {found} of {tried} trials{f', by {by}' if by else ''}."
    if not score.wrong:
        yield "No finding was reported that its fault does not account for."
    for fault, signatures in score.wrong.items():
        yield f"Wrong: {fault}: {', '.join(signatures)}."


def _cell(group: Group | None, verdict: str) -> str:
    if group is None:
        return "–"
    text = f"{group.found} of {len(group.results)}"
    if group.found:
        text += (
            f", {figure(group.median('cpu_s'))} ({figure(group.worst('cpu_s'))}); {figure(group.median('executions'))}"
        )
    return text + (";" + verdict.rstrip(";") if verdict else "")


def figure(value: float) -> str:
    """A number for people: "0.42", "17", "12,345", and "–" for one that was not reached."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
