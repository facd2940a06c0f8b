"""Campaigns: the share of each worker, figures, findings, and every way in which a worker can end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from campaign import run as running
from campaign.exit_status import Exit, UsageProblem
from campaign.run import Assignment, Campaign, Progress, Result, Settings, assignments_of
from fuzz_targets import codec, scenario_yaml
from reference_impl.scenario import Scenario, operation, scenario

FAKE = str(Path(__file__).with_name("fake_worker.py"))
FAKE_BLIND = str(Path(__file__).with_name("fake_blind_worker.py"))
ALLOCATES = "memory-services/direct-call/XenBusDxe/AllocatePool"
DESIGNS = ("disconnect", "exit-callback", "reference-count")


def settings(tmp_path: Path, **changes: Any) -> Settings:
    """A campaign in a folder of its own, without the repository's corpus."""
    empty = tmp_path / "no-corpus"
    empty.mkdir(exist_ok=True)
    values = {"target": "lifecycle", "designs": ("disconnect",), "runs": 10, "out": tmp_path / "out", "corpus": empty}
    return Settings(**values | changes)


def run_with(behaviour: str, wanted: Settings, report: Callable[[Progress], None] = lambda progress: None) -> Result:
    """The campaign with workers that behave like this."""
    return Campaign(wanted, report, (sys.executable, FAKE, behaviour)).run()


def told(wanted: Settings, design: str) -> list[dict[str, Any]]:
    """What the fake workers of a design were told, in the order of their seeds."""
    folder = wanted.out / "corpus" / wanted.target / design
    return sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda one: one["seed"] or 0)


# ---- shares -----------------------------------------------------------------------------------------------------------


def test_designs_run_side_by_side_for_the_whole_time() -> None:
    """Without a number of jobs each design has a worker."""
    assert assignments_of(Settings(target="lifecycle", designs=DESIGNS, max_time_s=60)) == [
        Assignment(design, 60, None, None) for design in DESIGNS
    ]


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 20), (2, 30), (3, 60)])
def test_designs_that_take_turns_share_the_time(jobs: int, seconds: int) -> None:
    """Every design gets the same, and the whole takes no longer than was asked for."""
    shares = assignments_of(Settings(target="lifecycle", designs=DESIGNS, max_time_s=60, jobs=jobs))
    assert [share.seconds for share in shares] == [seconds] * 3


def test_a_share_is_never_without_limit() -> None:
    """libFuzzer would take 0 seconds for "no limit"."""
    shares = assignments_of(Settings(target="lifecycle", designs=DESIGNS, max_time_s=1, jobs=1))
    assert [share.seconds for share in shares] == [1, 1, 1]


def test_more_jobs_than_designs_share_the_runs_with_different_seeds() -> None:
    """All runs are done, none twice."""
    shares = assignments_of(Settings(target="lifecycle", designs=DESIGNS[:2], runs=10, jobs=5, seed=7))
    assert [(share.design, share.runs) for share in shares] == [
        *[("disconnect", 4), ("disconnect", 3), ("disconnect", 3)],
        *[("exit-callback", 5), ("exit-callback", 5)],
    ]
    assert shares[0].seed == 7
    assert len({share.seed for share in shares[:3]}) == 3


def test_no_worker_is_left_without_runs() -> None:
    """libFuzzer would take 0 runs for a check of the corpus alone."""
    shares = assignments_of(Settings(target="lifecycle", designs=("disconnect",), runs=2, jobs=8))
    assert [share.runs for share in shares] == [1, 1]


def test_seeds_stay_within_what_libfuzzer_takes() -> None:
    """A seed of 0 would mean any."""
    shares = assignments_of(Settings(target="lifecycle", designs=("disconnect",), jobs=64, seed=0xFFFF_FFFF))
    assert all(0 < (share.seed or 0) <= 0xFFFF_FFFF for share in shares)


# ---- findings and figures ---------------------------------------------------------------------------------------------


def test_findings_are_counted_over_workers_and_become_minimized_reproducers(tmp_path: Path) -> None:
    """Two workers of one design saw the same: one finding, both counts."""
    wanted = settings(tmp_path, jobs=2, seed=1)
    result = run_with("finds", wanted)
    assert (result.exit, result.problems, result.executions) == (Exit.FINDINGS, [], 10)
    by_signature = {finding.found.record.signature: finding for finding in result.findings}
    allocates = by_signature[ALLOCATES]
    assert (allocates.found.count, allocates.counts, allocates.reproduced.minimized) == (10, True, True)
    smallest = scenario_yaml.load((allocates.reproduced.path / "scenario.yaml").read_text(), "it")
    assert [step.kind for step in smallest.operations] == ["connect", "exit"]
    assert allocates.reproduced.path.parent == wanted.out / "findings"
    assert [(one["runs"], one["corpus"]) for one in told(wanted, "disconnect")] == [
        (5, str(wanted.out / "corpus/lifecycle/disconnect"))
    ] * 2
    assert list((wanted.out / "workers").iterdir()) == []


def test_figures_are_libfuzzers_and_the_counters(tmp_path: Path) -> None:
    """Edges, features and corpus size are in the last line; two designs are added up."""
    result = run_with("finds", settings(tmp_path, designs=("disconnect", "reference-count")))
    answer = result.as_object()
    assert (answer["edges"], answer["features"], answer["corpus_size"], answer["executions"]) == (14, 18, 8, 20)
    assert answer["executions_per_second"] == pytest.approx(20 / result.seconds, abs=0.1)
    assert [one["design"] for one in answer["designs"]] == ["disconnect", "reference-count"]
    assert {one["design"] for one in answer["findings"]} == {"disconnect"}
    for finding in answer["findings"]:
        assert Path(finding["reproducer"], "scenario.yaml").is_file()
        assert Path(finding["reproducer"]).is_absolute()
        assert finding["signature"].startswith(f"{finding['oracle']}/{finding['rule']}/")
        assert finding["count"] == 10
        assert "edk2" in finding["orders"]
    json.dumps(answer)


def test_a_design_that_keeps_the_rules_finds_nothing(tmp_path: Path) -> None:
    """Then the status is 0."""
    result = run_with("finds", settings(tmp_path, designs=("exit-callback",)))
    assert (result.exit, result.findings) == (Exit.NOTHING_FOUND, [])


def test_known_findings_are_counted_and_shown_but_do_not_make_the_status(tmp_path: Path) -> None:
    """One that is not listed does."""
    first = run_with("finds", settings(tmp_path))
    signatures = {finding.found.record.signature for finding in first.findings if not finding.found.record.note}
    all_known = run_with("finds", settings(tmp_path, baseline=frozenset(signatures)))
    assert all_known.exit == Exit.NOTHING_FOUND
    assert len(all_known.findings) == len(first.findings)
    one_new = run_with("finds", settings(tmp_path, baseline=frozenset(signatures - {ALLOCATES})))
    assert one_new.exit == Exit.FINDINGS
    assert [one["signature"] for one in one_new.as_object()["findings"] if not (one["known"] or one["note"])] == [
        ALLOCATES
    ]


def test_notes_do_not_make_the_status(tmp_path: Path) -> None:
    """They are found, stored and shown all the same."""
    result = run_with("finds", settings(tmp_path))
    notes = [finding for finding in result.findings if finding.found.record.note]
    assert notes
    result.findings = notes
    assert result.exit == Exit.NOTHING_FOUND


def test_what_a_target_expects_is_known(tmp_path: Path) -> None:
    """The smoke target is a test of the machinery; it must not fail for what the shipped design is known to do."""
    result = run_with("finds", settings(tmp_path, target="smoke"))
    assert result.findings
    assert result.exit == Exit.NOTHING_FOUND


def test_progress_is_reported_while_it_runs(tmp_path: Path) -> None:
    """The last report has everything, and the time that is left never is negative."""
    seen: list[Progress] = []
    run_with("finds", settings(tmp_path, max_time_s=1), seen.append)
    assert seen[-1].designs[0].executions == 10
    assert seen[-1].designs[0].edges == 7
    assert seen[-1].minimizing == 0
    assert all(progress.seconds_left is not None and progress.seconds_left >= 0 for progress in seen)


# ---- the starting corpus ----------------------------------------------------------------------------------------------


def test_a_corpus_is_read_in_both_forms_and_never_written(tmp_path: Path) -> None:
    """Hidden files are nobody's business."""
    corpus = tmp_path / "corpus"
    (corpus / "deeper").mkdir(parents=True)
    made = scenario(design="disconnect", operations=(operation("exit"),))
    (corpus / "one.yaml").write_text(scenario_yaml.dump(made))
    (corpus / "deeper" / "two.bin").write_bytes(codec.encode(made))
    (corpus / "deeper" / ("0" * 40)).write_bytes(b"")
    (corpus / ".gitkeep").write_bytes(b"")
    campaign = Campaign(settings(tmp_path, corpus=corpus), lambda progress: None)
    encoded = codec.encode(made)
    assert sorted(campaign._starting_corpus()) == sorted([encoded, encoded, codec.encode(codec.decode(b""))])
    before = sorted(corpus.rglob("*"))
    run_with("finds", settings(tmp_path, corpus=corpus))
    assert sorted(corpus.rglob("*")) == before


def test_the_repositorys_own_corpus_is_the_default(tmp_path: Path) -> None:
    """Every entry of it is one of the target's world."""
    for target in running.TARGETS:
        designs = running.TARGETS[target].designs
        Campaign(
            settings(tmp_path, target=target, designs=designs, corpus=None), lambda progress: None
        )._starting_corpus()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("notes.txt", b"hello", "suffix '.txt'"),
        ("cut.yaml", b"version: 1\noperations:\n- {", "cut.yaml"),
        ("noise.bin", bytes(70_000), "larger than"),
        ("core.yaml", b"version: 1\nworld: core\noperations: []\n", "a scenario of the world 'core'"),
    ],
)
def test_junk_in_a_corpus_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    """One line names the file."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / name).write_bytes(data)
    with pytest.raises(UsageProblem, match=message) as raised:
        run_with("finds", settings(tmp_path, corpus=corpus))
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """Missing, or a file."""
    with pytest.raises(UsageProblem, match="no such folder"):
        run_with("finds", settings(tmp_path, corpus=tmp_path / "missing"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageProblem, match="a corpus is a folder"):
        run_with("finds", settings(tmp_path, corpus=tmp_path / "file"))


# ---- bad ends ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_crashes_is_a_failure_that_keeps_input_and_findings(tmp_path: Path) -> None:
    """The message names the input; what was found before is a reproducer."""
    result = run_with("crashes", settings(tmp_path))
    assert result.exit == Exit.FAILED
    (problem,) = result.problems
    first, *rest = problem.splitlines()
    assert first.startswith("a worker of disconnect failed: it crashed; the input is kept in ")
    assert Path(first.rpartition(" ")[2]).read_bytes() == b"input"
    assert rest == [" === Uncaught Python exception: ===", "RuntimeError: boo"]
    assert result.findings
    assert Path(first.rpartition(" ")[2]).with_name("log.txt").read_text().count("\n") == 5


def test_a_worker_that_is_killed_loses_no_finding(tmp_path: Path) -> None:
    """SIGKILL leaves what was stored and counted."""
    result = run_with("killed", settings(tmp_path))
    assert result.exit == Exit.FAILED
    assert "it ended with status -9" in result.problems[0]
    assert {finding.found.count for finding in result.findings} == {2}


def test_a_missing_engine_is_said_once(tmp_path: Path) -> None:
    """Three workers say the same, and nothing is kept of them."""
    result = run_with("no-engine", settings(tmp_path, designs=DESIGNS))
    assert (result.exit, result.problems) == (Exit.FAILED, ["no atheris here"])
    assert list((tmp_path / "out" / "workers").iterdir()) == []


@pytest.mark.parametrize("runs", [None, 100])
def test_a_blind_fuzzer_is_a_failure(tmp_path: Path, runs: int | None) -> None:
    """While it runs, or when it has ended before anybody could tell."""
    campaign = Campaign(settings(tmp_path, runs=runs), lambda progress: None, (sys.executable, FAKE_BLIND))
    result = campaign.run()
    assert result.exit == Exit.FAILED
    assert "the fuzzer is blind" in result.problems[0]


def test_unguided_generation_may_be_blind(tmp_path: Path) -> None:
    """It was asked for."""
    wanted = settings(tmp_path, runs=100, guided=False)
    result = Campaign(wanted, lambda progress: None, (sys.executable, FAKE_BLIND)).run()
    assert (result.exit, result.executions) == (Exit.NOTHING_FOUND, 100)


def test_a_full_output_folder_is_the_users_to_mend(tmp_path: Path) -> None:
    """One line, and no summary of half a campaign."""
    with pytest.raises(UsageProblem, match="No space left on device"):
        run_with("full", settings(tmp_path))


def test_an_output_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    """A file stands where the folder belongs."""
    (tmp_path / "out").touch()
    with pytest.raises(UsageProblem, match="cannot be written: "):
        run_with("finds", settings(tmp_path))


@pytest.mark.parametrize("behaviour", ["endless", "stubborn"])
def test_stop_ends_the_workers_and_keeps_the_findings(
    tmp_path: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that do not listen. It is no failure."""
    monkeypatch.setattr(running, "STOP_GRACE_S", 0.2)
    wanted = settings(tmp_path, runs=None, max_time_s=50)

    def stop_at_findings(progress: Progress) -> None:
        if progress.designs[0].executions == 5:
            campaign.stop()

    campaign = Campaign(wanted, stop_at_findings, (sys.executable, FAKE, behaviour))
    result = campaign.run()
    assert (result.interrupted, result.problems, result.exit) == (True, [], Exit.FINDINGS)
    assert {finding.found.count for finding in result.findings} == {5}
    assert list((wanted.out / "workers").iterdir()) == []


def test_a_second_stop_leaves_findings_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reproducer is made of each, but nobody waits for the minimizer."""

    def never_done(scenario: Scenario, signature: str, judge: Callable[[Scenario], object], **_: object) -> NoReturn:
        while True:
            judge(scenario)

    monkeypatch.setattr("campaign.triage.minimize.minimize", never_done)

    def stop_twice(progress: Progress) -> None:
        if progress.designs[0].executions:
            campaign.stop()

    campaign = Campaign(settings(tmp_path, runs=None), stop_twice, (sys.executable, FAKE, "endless"))
    result = campaign.run()
    assert result.findings
    assert not any(finding.reproduced.minimized for finding in result.findings)
    for finding in result.findings:
        assert (finding.reproduced.path / "scenario.yaml").is_file()


def test_a_worker_that_does_not_end_is_killed_and_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutator that hangs is found by nothing but the clock."""
    monkeypatch.setattr(running, "OVERTIME_S", 0)
    monkeypatch.setattr(running, "STOP_GRACE_S", 0.2)
    result = run_with("stubborn", settings(tmp_path, runs=None, max_time_s=1, timeout_s=1))
    assert result.exit == Exit.FAILED
    assert "did not end in time" in result.problems[0]
