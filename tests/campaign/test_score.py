"""The score: which trials there are, how they go on, and what their results say."""

from __future__ import annotations

import math

import msgspec
import pytest

from campaign import score
from campaign.exit_status import CampaignFailure, UsageProblem
from campaign.score import OURS, Score, Settings, holm, lines, read, run_trials, trials_of
from campaign.trial import Trial, TrialResult
from reference_impl.faulty import FAULTS, faulty

SHALLOW = next(name for name in FAULTS if not faulty(name).deep)
DEEP = next(name for name in FAULTS if faulty(name).deep)
OTHER = "random"


def settings(tmp_path, **values):
    """A small score."""
    chosen = {
        "faults": (SHALLOW, DEEP),
        "engines": (OURS, OTHER),
        "trials": 2,
        "cap_s": 30,
        "deep_cap_s": 600,
        "jobs": 2,
        "out": tmp_path / "out",
    }
    return Settings(**(chosen | values))


def result(fault, engine, seed, executions, *, found=True, signature="", wrong=()):
    """The result of a trial, whose CPU seconds are a hundredth of its executions."""
    signature = signature or ("connection-reset/missed-reset/XenBusDxe/ring" if found else "")
    trial = Trial(fault, engine, seed, 30)
    return TrialResult(trial, found, executions, executions / 100, signature, wrong)


def results(fault, engine, counts):
    """One result for each number of executions; None where the fault was not found."""
    return [
        result(fault, engine, seed, 3000 if count is None else count, found=count is not None)
        for seed, count in enumerate(counts, 1)
    ]


@pytest.fixture
def tried(monkeypatch):
    """Trials that end at once; the list of those that were made."""
    made = []

    def at_once(trial):
        made.append(trial)
        return TrialResult(trial, True, trial.seed, 0.5, "a/b/c/d", ())

    monkeypatch.setattr(score, "run_trial", at_once)
    return made


def test_trials_go_seed_by_seed_and_deep_faults_get_more_time(tmp_path):
    """Whoever stops early has tried everything equally often."""
    made = trials_of(settings(tmp_path))
    assert [(trial.seed, trial.fault, trial.engine) for trial in made] == [
        (seed, fault, engine) for seed in (1, 2) for fault in (SHALLOW, DEEP) for engine in (OURS, OTHER)
    ]
    assert {(trial.fault, trial.cap_s) for trial in made} == {(SHALLOW, 30), (DEEP, 600)}


def test_a_score_goes_on_where_it_was(tmp_path, tried):
    """What the folder holds is not tried again; another limit of time is another trial."""
    first = run_trials(settings(tmp_path, trials=1), lambda one, left: None)
    assert len(tried) == 4
    tried.clear()
    left = []
    both = run_trials(settings(tmp_path, trials=2), lambda one, remaining: left.append(remaining))
    assert {trial.seed for trial in tried} == {2}
    assert left == [3, 2, 1, 0]
    assert set(first) <= set(both)
    tried.clear()
    run_trials(settings(tmp_path, trials=2, cap_s=31), lambda one, remaining: None)
    assert {(trial.fault, trial.cap_s) for trial in tried} == {(SHALLOW, 31)}


def test_without_trials_the_score_is_what_the_folder_holds(tmp_path, tried):
    """Of the faults, engines and times that are asked for; a result that is just being written is left alone."""
    made = run_trials(settings(tmp_path, trials=2), lambda one, left: None)
    file = tmp_path / "out" / score.TRIALS
    with file.open("a") as lines:
        lines.write('{"trial":{"fa')
    before = file.read_bytes()
    tried.clear()
    held = run_trials(settings(tmp_path, trials=0), lambda one, left: None)
    assert held == made
    assert [(one.trial.fault, one.trial.engine, one.trial.seed) for one in held] == [
        (fault, engine, seed) for fault in (SHALLOW, DEEP) for engine in (OURS, OTHER) for seed in (1, 2)
    ]
    assert len(run_trials(settings(tmp_path, trials=0, faults=(DEEP,), engines=(OURS,)), lambda one, left: None)) == 2
    assert {one.trial.fault for one in run_trials(settings(tmp_path, trials=0, cap_s=31), lambda one, left: None)} == {
        DEEP
    }
    assert tried == []
    assert file.read_bytes() == before
    with pytest.raises(UsageProblem, match="no trial of these faults, engines and times"):
        run_trials(settings(tmp_path, trials=0, out=tmp_path / "other"), lambda one, left: None)
    assert not (tmp_path / "other").exists()


def test_a_line_that_was_cut_off_is_tried_again(tmp_path, tried):
    """The machine stopped while it was written."""
    run_trials(settings(tmp_path, trials=1), lambda one, left: None)
    file = tmp_path / "out" / score.TRIALS
    text = file.read_text()
    file.write_text(text[:-10])
    tried.clear()
    assert len(run_trials(settings(tmp_path, trials=1), lambda one, left: None)) == 4
    assert len(tried) == 1
    assert sorted(file.read_text().splitlines()) == sorted(text.splitlines())


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path, tried):
    """Nothing is appended to it."""
    file = tmp_path / "out" / score.TRIALS
    file.parent.mkdir()
    file.write_text('{"trial": 3}\n')
    with pytest.raises(UsageProblem, match=r"trials\.jsonl:1: no result of a trial"):
        run_trials(settings(tmp_path), lambda one, left: None)
    assert file.read_text() == '{"trial": 3}\n'


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path, tried):
    """A file stands in its place."""
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageProblem, match="out: File exists"):
        run_trials(settings(tmp_path), lambda one, left: None)


def test_what_was_made_before_a_failure_is_kept(tmp_path, tried, monkeypatch):
    """An engine that fails ends the score, and the next one goes on."""
    at_once = score.run_trial

    def failing(trial):
        if trial.engine == OTHER:
            raise CampaignFailure("no such engine")
        return at_once(trial)

    monkeypatch.setattr(score, "run_trial", failing)
    with pytest.raises(CampaignFailure, match="no such engine"):
        run_trials(settings(tmp_path, jobs=1), lambda one, left: None)
    assert [one.trial.engine for one in read(tmp_path / "out" / score.TRIALS)] == [OURS]


def test_a_trial_that_ran_out_is_later_than_every_find():
    """Medians and worst cases are infinite where it decides them."""
    group = Score(results(SHALLOW, OURS, [10, None, 30])).groups[SHALLOW, OURS]
    assert group.found == 2
    assert group.values("executions") == [10, 30, math.inf]
    assert group.median("executions") == 30
    assert group.worst("cpu_s") == math.inf


def test_a_clear_difference_is_told_and_chance_is_not():
    """Twenty trials against twenty, with one fault that is found sooner, one later, and one where nothing differs."""
    names = list(FAULTS)[:3]
    ours = [range(1, 21), range(1001, 1021), range(1, 21)]
    theirs = [range(101, 121), range(1, 21), [count + 0.5 for count in range(1, 21)]]
    made = []
    for name, mine, other in zip(names, ours, theirs, strict=True):
        made += results(name, OURS, mine) + results(name, OTHER, other)
    compared = Score(made).comparisons
    assert [(one.fault, one.measure, one.verdict) for one in compared] == [
        (name, measure, verdict)
        for measure in score.MEASURES
        for name, verdict in zip(names, ("sooner", "later", ""), strict=True)
    ]
    assert [one.a12 for one in compared[:2]] == [1.0, 0.0]
    assert compared[2].a12 > 0.5


def test_equal_results_are_no_difference():
    """All found nothing, or all took the same."""
    for counts in ([None] * 20, [7] * 20):
        compared = Score(results(SHALLOW, OURS, counts) + results(SHALLOW, OTHER, counts))
        assert [(one.a12, one.p, one.verdict) for one in compared.comparisons] == [(0.5, 1.0, "")] * 2
        assert compared.overall(OTHER, "executions") == (0.5, 1.0)


@pytest.mark.parametrize(("trials", "verdict"), [(1, ""), (2, "sooner")])
def test_one_trial_of_an_engine_rules_nothing_out(trials, verdict):
    """However often ebsfuzz was sooner, and though equal values make the test's own p as small as one likes."""
    made = results(SHALLOW, OURS, [1] * 20) + results(SHALLOW, OTHER, [70] * trials)
    one = next(one for one in Score(made).comparisons if one.measure == "executions")
    assert one.a12 == 1.0
    assert one.verdict == verdict
    assert one.p >= 2 / math.comb(20 + trials, trials)


def test_over_all_faults_ebsfuzz_is_sooner_when_it_mostly_is():
    """Seven faults with an advantage that none of them shows by itself."""
    made = []
    for shift, name in enumerate(list(FAULTS)[:7]):
        made += results(name, OURS, range(10, 16)) + results(name, OTHER, range(12 + shift, 18 + shift))
    found = Score(made)
    a12, p = found.overall(OTHER, "executions")
    assert a12 > 0.5
    assert p < score.ALPHA


def test_holms_correction_is_the_textbooks():
    """Each p is multiplied by how many are left, never falls behind a smaller one's, and never exceeds 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_table_says_what_was_found_by_which_oracle_and_what_was_wrong():
    """One line for each fault, then the sums."""
    made = [
        *results(SHALLOW, OURS, range(1, 21)),
        *results(SHALLOW, OTHER, range(201, 221)),
        result(DEEP, OURS, 1, 12345, wrong=("tpl/too-high/XenBusDxe/AllocatePool",)),
        result(DEEP, OTHER, 1, 3000, found=False),
    ]
    found = Score(made)
    text = list(lines(found))
    row = next(line for line in text if line.startswith(f"| {SHALLOW} "))
    assert "20 of 20, 0.105 (0.2); 10.5" in row
    assert "**sooner** in CPU seconds (A12 1.00)" in row
    assert f"| {DEEP} (deep) | 1 of 1, 123 (123); 12,345 | 0 of 1 |" in text
    assert f"{OURS}: found in 21 of 21 trials, by connection-reset 21." in text
    assert f"{OTHER}: found in 20 of 21 trials, by connection-reset 20." in text
    assert f"Wrong: {DEEP}: tpl/too-high/XenBusDxe/AllocatePool." in text
    assert any(line.startswith(f"Over all faults against {OTHER}, in executions: median A12 1.00") for line in text)


def test_the_json_answer_has_no_infinities():
    """What was not found has no median: null."""
    answer = Score(results(SHALLOW, OURS, [None]) + results(SHALLOW, OTHER, [5])).as_object()
    assert answer == msgspec.json.decode(msgspec.json.encode(answer))
    assert [entry["median_executions"] for entry in answer["faults"]] == [None, 5]
    assert {entry["engine"] for entry in answer["overall"]} == {OTHER}
