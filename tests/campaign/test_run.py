"""Campaigns: the share of each worker, figures, findings, and every way in which a worker can end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from campaign import run as running
from campaign import worker_process
from campaign.exit_status import Exit, UsageProblem
from campaign.findings import COUNTERS_FILE, FindingStore
from campaign.run import Campaign, Progress, Result, Settings
from campaign.shared_corpus import name_of
from campaign.statistics import Statistics, read
from fuzz_targets import codec, scenario_yaml
from fuzz_targets.harness import run_and_judge
from reference_impl.scenario import operation, scenario

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


def make_folder(path: Path) -> Path:
    """A new folder."""
    path.mkdir(parents=True)
    return path


def run_with(behaviour: str, wanted: Settings, report: Callable[[Progress], None] = lambda progress: None) -> Result:
    """The campaign with workers that behave like this."""
    return Campaign(wanted, report, (sys.executable, FAKE, behaviour)).run()


def told(wanted: Settings) -> list[dict[str, Any]]:
    """What the fake workers were told, in the order of their seeds."""
    lines = (wanted.out / "told.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda one: one["seed"] or 0)


# ---- findings and figures ---------------------------------------------------------------------------------------------


def test_findings_are_counted_over_workers_and_become_minimized_reproducers(tmp_path: Path) -> None:
    """Two workers of one design saw the same: one finding, both counts."""
    wanted = settings(tmp_path, jobs=2, seed=1)
    result = run_with("finds", wanted)
    assert (result.exit, result.problems, result.executions) == (Exit.FINDINGS, [], 10)
    by_signature = {one.finding.signature: one for one in result.findings}
    allocates = by_signature[ALLOCATES]
    assert (allocates.finding.count, allocates.finding.state, allocates.counts) == (10, "minimized", True)
    assert (allocates.finding.operations, allocates.finding.reliability) == (2, 1.0)
    assert (allocates.finding.seen_orders, allocates.finding.seen_environments) == (("edk2",), ("conforming",))
    smallest = scenario_yaml.load((allocates.reproducer / "scenario.yaml").read_text(), "it")
    assert [step.kind for step in smallest.operations] == ["connect", "exit"]
    assert allocates.reproducer.parent == wanted.out / "findings"
    assert [one["runs"] for one in told(wanted)] == [5, 5]
    assert list((wanted.out / "workers").iterdir()) == []


def test_figures_are_libfuzzers_and_the_counters(tmp_path: Path) -> None:
    """Edges and features are in the last line, the corpus is what has been taken over; two designs are added up."""
    result = run_with("finds", settings(tmp_path, designs=("disconnect", "reference-count")))
    answer = result.as_object()
    assert (answer["edges"], answer["features"], answer["corpus_size"], answer["executions"]) == (14, 18, 2, 20)
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
    signatures = {one.finding.signature for one in first.findings if not one.finding.note}
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
    notes = [one for one in result.findings if one.finding.note]
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
    assert sorted(campaign._starting_corpus()) == sorted([encoded, codec.encode(codec.decode(b""))])
    before = sorted(corpus.rglob("*"))
    run_with("finds", settings(tmp_path, corpus=corpus))
    assert sorted(corpus.rglob("*")) == before


def test_inputs_that_a_campaign_makes_the_same_are_run_once(tmp_path: Path) -> None:
    """Design and fault are what it says, whatever an input has."""
    (tmp_path / "corpus").mkdir()
    for design in DESIGNS:
        made = scenario(design=design, fault="bus-resets-twice", operations=(operation("exit"),))
        (tmp_path / "corpus" / f"{design}.yaml").write_text(scenario_yaml.dump(made))
    campaign = Campaign(settings(tmp_path, corpus=tmp_path / "corpus"), lambda progress: None)
    assert len(campaign._starting_corpus()) == 1


def test_the_repositorys_own_corpus_is_the_default(tmp_path: Path) -> None:
    """Every entry of it is one of the target's world."""
    for target in running.TARGETS:
        designs = running.TARGETS[target].designs
        Campaign(
            settings(tmp_path, target=target, designs=designs, corpus=None), lambda progress: None
        )._starting_corpus()


def test_hostile_seeds_are_for_the_hostile_environment(tmp_path: Path) -> None:
    """There they come in addition, and the answers never do."""
    own = {
        environment: set(
            Campaign(settings(tmp_path, corpus=None, environment=environment), lambda progress: None)._starting_corpus()
        )
        for environment in ("conforming", "hostile")
    }
    added = [codec.decode(data) for data in own["hostile"] - own["conforming"]]
    assert own["conforming"] < own["hostile"]
    assert {seed.environment for seed in added} == {"hostile"}
    for path in (running.ROOT / "corpus" / "lifecycle" / "regressions").glob("reference-count-*.yaml"):
        assert codec.encode(scenario_yaml.load(path.read_text(encoding="utf-8"), path.name)) not in own["hostile"]


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
    result = run_with("crashes", settings(tmp_path, runs=3))
    assert result.exit == Exit.FAILED
    (problem,) = result.problems
    first, *rest = problem.splitlines()
    assert first.startswith("a worker of disconnect failed: it crashed; the input is kept in ")
    assert Path(first.rpartition(" ")[2]).read_bytes() == b"input"
    assert rest == [" === Uncaught Python exception: ===", "RuntimeError: boo"]
    assert result.findings
    assert (tmp_path / "out" / "crashes" / "crash-0123.log").read_text().count("\n") == 5


def test_a_worker_that_is_killed_is_started_again_and_loses_no_finding(tmp_path: Path) -> None:
    """SIGKILL leaves what was stored and counted, and is no failure of ebsfuzz."""
    result = run_with("killed", settings(tmp_path, runs=3))
    assert (result.exit, result.problems, result.executions) == (Exit.FINDINGS, [], 4)
    assert {one.finding.count for one in result.findings} == {4}
    events = [event.text for event in read(tmp_path / "out").events if event.kind == "worker"]
    assert events == ["a worker of disconnect was killed by signal 9"] * 2


def test_a_design_whose_workers_do_nothing_but_break_down_is_given_up(tmp_path: Path) -> None:
    """With one clear message, and everything that was found by then."""
    result = run_with("killed", settings(tmp_path, runs=100))
    assert result.exit == Exit.FAILED
    assert result.problems == [
        "gave disconnect up: its workers broke down 5 times in a row, the last time: a worker of disconnect was killed by "
        "signal 9"
    ]
    assert {one.finding.count for one in result.findings} == {10}


def test_a_worker_that_does_nothing_is_a_failure(tmp_path: Path) -> None:
    """Or else it would be started again for ever."""
    first, second = run_with("idle", settings(tmp_path)).problems
    assert first == "a worker of disconnect failed: it ended without having run anything"
    assert second.startswith("gave disconnect up")


def test_an_input_that_breaks_a_worker_down_leaves_the_corpus(tmp_path: Path) -> None:
    """Or else the next worker would read it at its start."""
    wanted = settings(tmp_path, runs=1)
    run_with("finds", wanted)
    (entry,) = (wanted.out / "corpus/lifecycle/disconnect").iterdir()
    run_with(f"crashes-on-{entry.name}", wanted)
    assert not entry.exists()
    assert (wanted.out / "crashes" / f"crash-{entry.name}").read_bytes() == b"input"


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
    monkeypatch.setattr(worker_process, "STOP_GRACE_S", 0.2)
    wanted = settings(tmp_path, runs=None, max_time_s=50)

    def stop_at_findings(progress: Progress) -> None:
        if progress.designs[0].executions == 5:
            campaign.stop()

    campaign = Campaign(wanted, stop_at_findings, (sys.executable, FAKE, behaviour))
    result = campaign.run()
    assert (result.interrupted, result.problems, result.exit) == (True, [], Exit.FINDINGS)
    assert {one.finding.count for one in result.findings} == {5}
    assert list((wanted.out / "workers").iterdir()) == []
    assert [session.ended for session in read(wanted.out).sessions] == ["stopped"]


def test_findings_that_nobody_waits_for_are_kept_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reproducer is made of each, and the next session gets them smaller."""
    monkeypatch.setattr(running, "MINIMIZE_AFTER_STOP_S", 0)
    monkeypatch.setattr("campaign.triage.MINIMIZE_S", 0)

    def stop(progress: Progress) -> None:
        if progress.designs[0].executions:
            campaign.stop()

    wanted = settings(tmp_path, runs=None, max_time_s=50)
    campaign = Campaign(wanted, stop, (sys.executable, FAKE, "endless"))
    result = campaign.run()
    assert result.findings
    for one in result.findings:
        assert (one.reproducer / "scenario.yaml").is_file()
    again = run_with("finds", settings(tmp_path))
    assert {one.finding.state for one in again.findings} == {"minimized"}


def test_a_worker_that_does_not_end_is_killed_and_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time has a limit."""
    monkeypatch.setattr(worker_process, "OVERTIME_S", 0)
    monkeypatch.setattr(worker_process, "STOP_GRACE_S", 0.2)
    result = run_with("stubborn", settings(tmp_path, runs=None, max_time_s=1, timeout_s=1))
    assert result.exit == Exit.FAILED
    assert "did not end in time" in result.problems[0]


def test_a_worker_that_hangs_is_killed_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mutator that hangs is found by nothing but the clock."""
    monkeypatch.setattr(worker_process, "SILENCE_S", -0.5)
    monkeypatch.setattr(worker_process, "STOP_GRACE_S", 0.2)
    result = run_with("stubborn", settings(tmp_path, runs=None, max_time_s=100, timeout_s=1))
    assert result.problems[0] == "a worker of disconnect failed: it hung and was killed"
    assert result.problems[1].startswith("gave disconnect up: its workers broke down 5 times in a row")


def test_a_worker_that_eats_memory_is_killed(tmp_path: Path) -> None:
    """Also one that runs without libFuzzer, which has the same limit."""
    result = run_with("endless", settings(tmp_path, runs=None, max_time_s=100, rss_limit_mb=1))
    assert "MiB of memory and was killed" in result.problems[0]


# ---- a campaign that goes on ------------------------------------------------------------------------------------------


def test_the_same_command_goes_on_where_it_was(tmp_path: Path) -> None:
    """Executions, counts and time are added up; the corpus and the first time that a finding was seen stay."""
    wanted = settings(tmp_path)
    first = run_with("finds", wanted)
    again = run_with("finds", wanted)
    assert (first.executions, again.executions) == (10, 20)
    assert again.seconds > first.seconds
    assert again.designs[0].corpus_size == 1
    assert {one.finding.count for one in again.findings} == {20}
    assert [one.finding.first_seen for one in again.findings] == [one.finding.first_seen for one in first.findings]
    assert {one.finding.state for one in again.findings} == {"minimized"}
    assert len(read(wanted.out).sessions) == 2


def test_a_session_that_was_stopped_leaves_the_next_what_it_had_not_done(tmp_path: Path) -> None:
    """Runs here; time in the same way. A session that came to its end leaves nothing, and the next begins anew."""

    def stop(progress: Progress) -> None:
        if progress.designs[0].executions == 5:
            campaign.stop()

    wanted = settings(tmp_path, runs=8, max_time_s=100)
    campaign = Campaign(wanted, stop, (sys.executable, FAKE, "endless"))
    campaign.run()
    assert run_with("finds", wanted).executions == 8
    assert run_with("finds", wanted).executions == 16
    assert [one["runs"] for one in told(wanted)] == [8, 3, 8]
    assert len([event for event in read(wanted.out).events if "goes on" in event.text]) == 1


def test_what_was_killed_is_taken_over(tmp_path: Path) -> None:
    """Findings, counts and corpus entries that only the folder of a worker has."""
    wanted = settings(tmp_path)
    opened = Statistics(make_folder(wanted.out), wanted.identity)
    limits: dict[str, Any] = {"designs": wanted.designs, "jobs": 1, "max_time_s": None, "runs": 10, "seed": None}
    opened.begin_session(**limits, guided=True, pid=1)
    opened.add_worker("disconnect", "disconnect-000001")
    opened.close()
    folder = make_folder(wanted.out / "workers" / "disconnect-000001")
    made = scenario(design="disconnect", operations=(operation("connect"), operation("exit")))
    findings = run_and_judge(made).findings
    store = FindingStore(folder)
    for finding in findings:
        store.count_execution()
        store.see(finding, made, lambda: codec.encode(made))
    store.close()
    make_folder(folder / "corpus")
    (folder / "corpus" / name_of(b"entry")).write_bytes(b"entry")
    (folder / "corpus" / name_of(b"another")).write_bytes(b"anot")
    (folder / "timeout-0123").write_bytes(b"slow")

    result = run_with("finds", wanted)
    assert result.executions == 10
    counts = {one.finding.signature: one.finding.count for one in result.findings}
    assert counts.keys() >= {finding.signature for finding in findings}
    assert counts["memory-services/direct-call/XenBusDxe/FreePool"] == 1 + 10 - len(findings)
    corpus = wanted.out / "corpus/lifecycle/disconnect"
    assert (corpus / name_of(b"entry")).read_bytes() == b"entry"
    assert not (corpus / name_of(b"another")).exists()
    assert (wanted.out / "crashes" / "timeout-0123").read_bytes() == b"slow"
    assert list((wanted.out / "workers").iterdir()) == []
    assert result.exit == Exit.FINDINGS


@pytest.mark.parametrize("left", [COUNTERS_FILE, "000001.json"])
def test_a_run_that_is_killed_while_it_removes_a_workers_folder_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Whatever part of the folder had been removed by then. The next run has nothing left to do."""
    wanted = settings(tmp_path)

    class Killed(BaseException):
        """In the place of kill -9."""

    def killed(folder: Path, **_: Any) -> None:
        for path in folder.iterdir():
            if path.is_file() and path.name != left:
                path.unlink()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("campaign.run.shutil.rmtree", killed)
        with pytest.raises(Killed):
            run_with("finds", wanted)
    before = read(wanted.out)
    assert before.executions == 10
    result = run_with("finds", wanted)
    assert result.executions == 10
    counts = {finding.signature: finding.count for finding in before.findings}
    assert {one.finding.signature: one.finding.count for one in result.findings} == counts
    assert list((wanted.out / "workers").iterdir()) == []


def test_a_worker_of_a_killed_run_that_is_still_there_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads the folder of a worker that writes; one that does not go away is said."""
    monkeypatch.setattr(running, "ORPHAN_S", 0)
    wanted = settings(tmp_path)
    opened = Statistics(make_folder(wanted.out), wanted.identity)
    opened.begin_session(designs=(), jobs=1, max_time_s=None, runs=1, seed=None, guided=True, pid=1)
    opened.add_worker("disconnect", "disconnect-000001")
    opened.close()
    store = FindingStore(make_folder(wanted.out / "workers" / "disconnect-000001"))
    with pytest.raises(UsageProblem, match="a worker of a run that was killed is still there"):
        run_with("finds", wanted)
    store.close()
    run_with("finds", wanted)


def test_what_is_gone_when_it_is_run_again_does_not_make_the_status(tmp_path: Path) -> None:
    """It may have been mended. When it is seen again, it is there again."""
    wanted = settings(tmp_path)
    first = run_with("finds", wanted)
    harmless = scenario_yaml.dump(scenario(design="disconnect"))
    for one in first.findings:
        (one.reproducer / "scenario.bin").write_bytes(codec.encode(scenario_yaml.load(harmless, "it")))
    second = run_with("silent", wanted)
    assert (second.exit, second.findings) == (Exit.NOTHING_FOUND, [])
    record = read(wanted.out)
    assert {finding.state for finding in record.findings} == {"gone"}
    third = run_with("finds", wanted)
    assert {one.finding.signature for one in third.findings} == {one.finding.signature for one in first.findings}
    assert {(one.finding.state, one.finding.operations) for one in third.findings if "Pool" in one.finding.subject} == {
        ("minimized", 2)
    }


def test_two_runs_on_one_folder_are_not_possible(tmp_path: Path) -> None:
    """The second is refused, and the first goes on."""
    wanted = settings(tmp_path)
    refused: list[str] = []

    def run_another(progress: Progress) -> None:
        with pytest.raises(UsageProblem, match="another run works on this campaign") as raised:
            run_with("finds", wanted)
        refused.append(str(raised.value))

    assert run_with("finds", wanted, run_another).executions == 10
    assert refused
    assert "\n" not in refused[0]


def test_the_folder_of_another_campaign_is_refused(tmp_path: Path) -> None:
    """With other settings, or another target. Other designs and limits are the same campaign."""
    run_with("finds", settings(tmp_path))
    for changes in ({"target": "exit_boot_services"}, {"fault": "bus-forgets-reset"}):
        with pytest.raises(UsageProblem, match="the campaign of another command"):
            run_with("finds", settings(tmp_path, **changes))
    assert run_with("finds", settings(tmp_path, designs=DESIGNS, jobs=1, runs=5)).executions == 10 + 3 * 5


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    """And nothing is written into it."""
    make_folder(tmp_path / "out")
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(UsageProblem, match="neither empty nor a campaign"):
        run_with("finds", settings(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_damaged_entries_of_the_corpus_are_put_aside(tmp_path: Path) -> None:
    """Cut off, foreign, or no files at all: the campaign goes on without them."""
    wanted = settings(tmp_path)
    run_with("finds", wanted)
    corpus = wanted.out / "corpus/lifecycle/disconnect"
    (entry,) = corpus.iterdir()
    entry.write_bytes(b"cut")
    (corpus / "notes.txt").touch()
    make_folder(corpus / name_of(b"folder"))
    result = run_with("silent", wanted)
    assert result.problems == []
    assert list(corpus.iterdir()) == []
    assert {path.name for path in (wanted.out / "damaged").iterdir()} == {entry.name, "notes.txt", name_of(b"folder")}


def test_progress_goes_into_the_statistics_and_into_a_file(tmp_path: Path) -> None:
    """A line for each point; half a line of a run that was killed goes."""
    wanted = settings(tmp_path, designs=DESIGNS[:2])
    run_with("finds", wanted)
    with (wanted.out / "progress.jsonl").open("a") as file:
        file.write('{"seconds": 1')
    run_with("finds", wanted)
    lines = [json.loads(line) for line in (wanted.out / "progress.jsonl").read_text().splitlines()]
    assert [(line["executions"], len(line["designs"])) for line in lines] == [(20, 2), (40, 2)]
    assert [point.executions for point in read(wanted.out).progress] == [10, 10, 20, 20]
    log = (wanted.out / "log.txt").read_text()
    assert f"finding: disconnect: {ALLOCATES}" in log
    assert "session: done after" in log


def test_a_long_campaign_keeps_its_corpus_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two workers, once the corpus has grown."""
    monkeypatch.setattr(running, "MINIMIZE_CORPUS_FROM", 2)
    wanted = settings(tmp_path, runs=1)
    run_with("finds", wanted)
    corpus = wanted.out / "corpus/lifecycle/disconnect"
    for steps in ((), (operation("time"),)):
        data = codec.encode(scenario(design="disconnect", devices=("block",), operations=steps))
        (corpus / name_of(data)).write_bytes(data)

    def stop_when_it_is_small(progress: Progress) -> None:
        if "entries before" in " ".join(progress.news):
            campaign.stop()

    wanted = settings(tmp_path, runs=None, max_time_s=3600)
    campaign = Campaign(wanted, stop_when_it_is_small, (sys.executable, FAKE, "killed"))
    campaign.run()
    left = len(list(corpus.iterdir()))
    assert 0 < left < 3
    assert f"corpus: disconnect: 3 entries before, {left} now" in (wanted.out / "log.txt").read_text()


def test_a_campaign_that_has_done_its_runs_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not begin to make its corpus small."""
    monkeypatch.setattr(running, "MINIMIZE_CORPUS_FROM", 1)
    wanted = settings(tmp_path, runs=1)
    run_with("finds", wanted)
    assert "entries before" not in (wanted.out / "log.txt").read_text()
