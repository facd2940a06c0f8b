"""Triage: reliability, the smallest scenario, and a process that may break down without harm."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from campaign import triage
from campaign.triage import FAILED, GONE, KEPT, LARGER, MINIMIZED, UNRELIABLE, Answer, Job, Triage, work
from fuzz_targets import codec
from fuzz_targets.harness import Verdict
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import Scenario, operation, scenario

SIGNATURE = "memory-services/direct-call/XenBusDxe/FreePool"
STEPS = (operation("time"), operation("connect"), operation("exit"))
RAW = scenario(design="disconnect", devices=("block",), operations=STEPS)
SMALLEST = scenario(design="disconnect", operations=STEPS[1:])


def job(folder: Path, **changes: Any) -> Job:
    """A job for a finding of the shipped design."""
    values = {"finding": 1, "priority": 0, "target": "lifecycle", "signature": SIGNATURE, "raw": codec.encode(RAW)}
    return Job(**values | {"folder": str(folder)} | changes)


def never() -> bool:
    """There is time."""
    return False


def test_a_reliable_finding_is_minimized_and_becomes_a_reproducer(tmp_path: Path) -> None:
    """With what it needs, and the orders under which it shows."""
    answer = work(job(tmp_path, runs=7), never)
    assert (answer.outcome, answer.reliability, answer.operations) == (MINIMIZED, 1.0, 2)
    assert (answer.environment, answer.switches, answer.orders) == ("conforming", (), ("edk2", "fifo"))
    assert codec.decode(answer.scenario) == SMALLEST
    assert (tmp_path / answer.reproducer / "raw.bin").read_bytes() == codec.encode(RAW)


def test_without_time_it_is_kept_as_it_is(tmp_path: Path) -> None:
    """Whether the time ends before the minimizer begins or while it works."""
    for answer in (work(job(tmp_path, keep=True), never), work(job(tmp_path), lambda: True)):
        assert (answer.outcome, answer.operations) == (KEPT, 3)
        assert answer.remark
        assert (tmp_path / answer.reproducer / "scenario.yaml").is_file()


def test_a_scenario_that_is_not_smaller_replaces_nothing(tmp_path: Path) -> None:
    """Nothing is written."""
    answer = work(job(tmp_path, smallest=codec.encode(SMALLEST)), never)
    assert answer.outcome == LARGER
    assert list(tmp_path.iterdir()) == []


def test_a_look_says_whether_it_is_still_there(tmp_path: Path) -> None:
    """And writes nothing."""
    assert work(job(tmp_path, check=True), never).outcome == KEPT
    assert work(job(tmp_path, check=True, raw=b""), never).outcome == GONE
    assert work(job(tmp_path, raw=b""), never) == Answer(outcome=GONE)
    assert list(tmp_path.iterdir()) == []


def test_an_unreliable_finding_is_minimized_with_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen in two of five runs, and its reliability is told."""
    target = TARGETS["lifecycle"]
    runs = 0

    class Sometimes:
        name = target.name

        def run(self, made: Scenario) -> Verdict:
            nonlocal runs
            runs += 1
            verdict = target.run(made)
            return verdict if runs % 5 in (1, 3) else verdict._replace(findings=[])

    monkeypatch.setitem(triage.TARGETS, "lifecycle", Sometimes())
    answer = work(job(tmp_path), never)
    assert (answer.outcome, answer.reliability) == (UNRELIABLE, 0.4)
    assert codec.decode(answer.scenario) == SMALLEST


def run_jobs(command: str, *jobs: Job) -> list[tuple[Job, Answer]]:
    """The answers of a triage whose process is this Python code; "" for the real one."""
    one = Triage((sys.executable, "-c", command)) if command else Triage()
    for each in jobs:
        one.add(each)
    one.finish()
    assert one.join(120)
    answers = one.answers()
    assert one.waiting == 0
    return answers


def test_jobs_are_done_by_a_process_the_most_urgent_first(tmp_path: Path) -> None:
    """What is not urgent is left out when nothing more is to come; a smaller reproducer is remembered."""
    small = replace(RAW, devices=())
    jobs = [job(tmp_path, priority=2), job(tmp_path, priority=1), job(tmp_path, raw=codec.encode(small))]
    answers = run_jobs("", *jobs)
    outcomes = [(one.priority, answer.outcome) for one, answer in answers]
    assert sorted(outcomes) == [(0, MINIMIZED), (1, LARGER), (2, LARGER)]


def test_a_process_that_breaks_down_costs_no_finding(tmp_path: Path) -> None:
    """It gets another chance without minimizing; what cannot be run at all is said."""
    broken, afterwards = job(tmp_path), job(tmp_path, finding=2)
    answers = run_jobs("import os; input(); os._exit(9)", broken, afterwards)
    assert [answer.outcome for _, answer in answers] == [FAILED, FAILED]
    assert answers[0][1].remark == "the process that replays it ended with status 9"
    keeps = (
        "import sys, os, msgspec\nfrom campaign.triage import Job, work\n"
        "job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)\n"
        "if not job.keep: os._exit(9)\n"
        "sys.stdout.buffer.write(msgspec.json.encode(work(job, lambda: False)) + b'\\n')\n"
    )
    ((_, answer),) = run_jobs(keeps, job(tmp_path))
    assert (answer.outcome, answer.operations) == (KEPT, 3)


def test_it_can_be_ended_at_once(tmp_path: Path) -> None:
    """Whatever its process does."""
    one = Triage((sys.executable, "-c", "import signal; signal.pause()"))
    one.add(job(tmp_path))
    one.kill()
    assert one.join(0)
