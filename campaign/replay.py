"""Replay: scenarios run again, with a verdict for each.

A reproducer's folder has a recorded finding: FAILED while the run still has it, else FIXED. Any other scenario, in a
file `.yaml` or `.bin`, is FAILED where an oracle finds an error (a note is none), else PASSED. A folder that is no
reproducer stands for all the reproducers, scenarios and folders in it, in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from campaign.reproducer import is_reproducer, read_verdict, sentence_of
from fuzz_targets.harness import Verdict, run_in_orders
from fuzz_targets.input_files import InputError, read_scenario
from fuzz_targets.registry import TARGETS
from oracles.finding import Finding
from reference_impl import timeline
from reference_impl.scenario import Scenario
from reference_impl.trace import Trace

FAILED = "FAILED"
FIXED = "FIXED"
PASSED = "PASSED"


class Replayed(NamedTuple):
    """One scenario that ran again.

    path       as the user named it, or below a folder that the user named
    verdict    FAILED, FIXED or PASSED
    signature  the recorded one of a reproducer; "" for other scenarios
    """

    path: Path
    verdict: str
    signature: str
    scenario: Scenario
    trace: Trace
    findings: list[Finding]


def replay(paths: Iterable[str | Path], run: Callable[[Scenario], Verdict] = run_in_orders) -> Iterator[Replayed]:
    """Run the scenarios at `paths` again, one after the other, each once.

    Raises InputError, with one line that names the path, for what is missing or cannot be read, before anything runs.
    """
    found = [place for path in paths for place in scenarios_at(Path(path))]
    read = [(path, read_verdict(path) if is_reproducer(path) else None, read_scenario(path)) for path in found]
    for path, recorded, scenario in read:
        signature = recorded.signature if recorded else ""
        trace, findings = TARGETS[recorded.target].run(scenario) if recorded and recorded.target else run(scenario)
        if signature:
            verdict = FAILED if any(finding.signature == signature for finding in findings) else FIXED
        else:
            verdict = FAILED if any(not finding.note for finding in findings) else PASSED
        yield Replayed(path, verdict, signature, scenario, trace, findings)


def scenarios_at(path: Path) -> list[Path]:
    """The reproducers and scenario files that `path` stands for. Hidden names in folders are left out.

    Raises InputError for a folder in which there is none.
    """
    if is_reproducer(path) or not path.is_dir():
        return [path]
    found = list(_inside(path))
    if not found:
        raise InputError(f"{path}: a folder with no scenario and no reproducer in it")
    return found


def _inside(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not is_reproducer(entry):
            yield from _inside(entry)
        else:
            yield entry


def story_of(replayed: Replayed) -> Iterator[str]:
    """The timeline with every finding marked, then the findings and the verdict: the lines for people."""
    marks: dict[int, str] = {}
    for finding in replayed.findings:
        before = f"{marks[finding.step]}\n{' ' * 10}>>> " if finding.step in marks else ""
        marks[finding.step] = f"{before}{sentence_of(finding)}"
    yield from timeline.lines(replayed.trace, marks)
    yield ""
    yield from verdict_of(replayed)


def verdict_of(replayed: Replayed) -> Iterator[str]:
    """The findings, one a line, and the verdict as the last line."""
    for finding in replayed.findings:
        yield f"step {finding.step}: {sentence_of(finding)}"
    reason = {
        FAILED: f"{replayed.signature} is still there" if replayed.signature else "an oracle finds an error",
        FIXED: f"{replayed.signature} is gone",
        PASSED: "no oracle finds an error",
    }[replayed.verdict]
    yield f"{replayed.verdict} {replayed.path}: {reason}"


def as_object(replayed: Replayed) -> dict[str, Any]:
    """One entry of `scenarios` in the JSON answer."""
    return {
        "path": str(replayed.path),
        "verdict": replayed.verdict,
        "findings": [
            {
                "oracle": finding.oracle,
                "rule": finding.rule,
                "signature": finding.signature,
                "agent": finding.agent,
                "step": finding.step,
                "expected": finding.expected,
                "seen": finding.seen,
                "note": finding.note,
            }
            for finding in replayed.findings
        ],
    }


def is_failure(results: Iterable[Replayed]) -> bool:
    """Whether one of them FAILED: then the exit status is 1."""
    return any(replayed.verdict == FAILED for replayed in results)
