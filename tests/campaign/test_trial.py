"""One trial: every engine runs the same world, and says when it found the fault."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from campaign import trial
from campaign.corpus import CHECKOUT
from campaign.score import run_trial
from campaign.trial import ENGINES, RESULT, Trial, TrialResult, Watch, regression_of
from fuzz_targets.harness import run_and_judge
from fuzz_targets.input_files import read_scenario
from fuzz_targets.state_machine import state_machine
from reference_impl.faulty import FAULTS, faulty

SHALLOW = "bus-forgets-reset"


def made(**values):
    """A trial that ends soon."""
    return Trial(**({"fault": SHALLOW, "engine": "random", "seed": 1, "cap_s": 20} | values))


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch):
    """Trials are given up by processor time, and measuring their coverage takes most of it."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture
def left(monkeypatch):
    """The results with which trials would have ended the process."""
    results = []
    monkeypatch.setattr(trial, "_leave", lambda line: results.append(msgspec.json.decode(line, type=TrialResult)))
    return results


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "hypofuzz"])
def test_an_engine_finds_a_shallow_fault(engine):
    """In a process of its own, which says by which rule."""
    if engine in ("ebsfuzz", "bytes"):
        pytest.importorskip("atheris")
    result = run_trial(made(engine=engine, cap_s=600))
    assert result.found
    assert result.trial.engine == engine
    assert result.executions >= 1
    assert result.signature.rpartition("/")[0].startswith(tuple(rule for rule in faulty(SHALLOW).rules)), (
        result.signature
    )
    assert result.wrong == ()


def test_the_same_trial_ends_the_same():
    """Weighted random scenarios depend on nothing else."""
    first, second = run_trial(made(seed=7)), run_trial(made(seed=7))
    assert (first.executions, first.signature) == (second.executions, second.signature)


def test_trials_share_no_luck():
    """The first trial of one fault, or engine, begins with other scenarios than the first of another."""
    trials = [made(), made(seed=2), made(fault="stop-lies"), made(engine="bytes")]
    assert len({each.random_seed for each in trials}) == len(trials)
    assert all(0 <= each.random_seed < 1 << 31 for each in trials)


def test_hypofuzz_gets_a_test_case_of_the_same_machine(left):
    """What it collects is a unittest of the trial's state machine."""
    case = trial.test_case(msgspec.json.encode(made(engine="hypofuzz")).decode())
    assert issubclass(case, state_machine(("reference-count",), lambda scenario: None).TestCase.__base__)


def _saw(watch, scenario):
    watch.see(scenario, run_and_judge(scenario))


def test_a_finding_that_the_fault_accounts_for_ends_the_trial(left):
    """The executions until then count; everything else that was reported is kept as wrong."""
    target, shown = regression_of(SHALLOW)
    watch = Watch(made(), target.run)
    _saw(watch, shown.with_operations(()))
    assert left == []
    _saw(watch, shown)
    [result] = left
    assert (result.found, result.executions, result.wrong) == (True, 2, ())


def test_the_first_execution_counts_like_the_others(left, monkeypatch):
    """The clock begins before it, and stands still while an engine is made ready."""
    _, shown = regression_of(SHALLOW)
    empty = shown.with_operations(())
    now = [500.0]
    monkeypatch.setattr("time.process_time", lambda: now[0])

    def run(scenario):
        now[0] += 2
        return run_and_judge(scenario)

    watch = Watch(made(), run)
    watch.see(empty, run(empty))
    watch.see(empty, run(empty))
    watch.pause()
    now[0] += 100
    watch.see(shown, run(shown))
    [result] = left
    assert (result.executions, result.cpu_s) == (3, 6.0)


def test_what_the_fault_does_not_account_for_is_told(left, monkeypatch):
    """It is no find, and it does not end the trial."""
    target, shown = regression_of(SHALLOW)
    other = next(name for name in FAULTS if not set(faulty(name).rules) & set(faulty(SHALLOW).rules))
    watch = Watch(made(fault=other), target.run)
    _saw(watch, shown)
    assert left == []
    monkeypatch.setattr("time.process_time", lambda: 1e9)
    _saw(watch, shown.with_operations(()))
    [result] = left
    assert not result.found
    assert result.wrong
    assert result.cpu_s > 20


@pytest.mark.parametrize("fault", ["bus-resets-twice", "handler-polls-without-limit"])
def test_what_the_hostile_environment_does_to_correct_drivers_is_nobodys_find(left, monkeypatch, fault):
    """A signature that the scenario also shows without the fault is neither the fault's nor a wrong one."""
    shown = read_scenario(CHECKOUT / "corpus/lifecycle/regressions/reference-count-double-reset.yaml")
    watch = Watch(made(fault=fault), run_and_judge)
    verdict = run_and_judge(shown)
    assert [f"{finding.oracle}/{finding.rule}" for finding in verdict.findings] == ["connection-reset/double-reset"]
    watch.see(shown, verdict)
    assert left == []
    monkeypatch.setattr("time.process_time", lambda: 1e9)
    watch.see(shown, verdict)
    [result] = left
    assert (result.found, result.wrong) == (False, ())


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_a_regression_that_says_where_to_look(name):
    """Its design, environment and target are those of the trials."""
    target, shown = regression_of(name)
    assert shown.fault == name
    assert shown.environment == faulty(name).environment
    assert target.world == shown.world


def test_a_missing_engine_is_said_in_one_line(tmp_path):
    """The status tells the score that nothing else is wrong."""
    (tmp_path / "hypothesis.py").write_text("raise ImportError('no hypothesis here')")
    done = subprocess.run(
        [sys.executable, "-m", "campaign.trial", msgspec.json.encode(made(engine="hypothesis")).decode()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == trial.EXIT_ENGINE_MISSING
    assert done.stderr == "the engine hypothesis is not installed: no hypothesis here\n"
    assert RESULT not in done.stdout
