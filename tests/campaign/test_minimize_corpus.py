"""A corpus that gets smaller: what guidance needs stays, and a weaker corpus replaces nothing."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from campaign.cli import call
from campaign.minimize_corpus import WeakerCorpus, _class_of, needed
from campaign.shared_corpus import name_of
from fuzz_targets import codec
from fuzz_targets.generator import generate
from fuzz_targets.guidance import Features
from fuzz_targets.harness import run_and_judge
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import Scenario, operation, scenario
from tests.campaign.test_program import answer_of, ebsfuzz

EXIT = scenario(design="reference-count", operations=(operation("exit"),))
LONGER = scenario(design="reference-count", operations=(operation("allocate"), operation("exit")))
NOTHING = scenario(design="reference-count")


def test_the_fewest_and_shortest_that_show_everything_stay() -> None:
    """Of equals the one in front; what adds nothing goes."""
    shown = {NOTHING: {1}, EXIT: {1, 2}, LONGER: {1, 2, 3}}
    assert needed([NOTHING, EXIT, LONGER], shown.__getitem__) == [2]
    assert needed([EXIT, LONGER], {EXIT: {1, 2}, LONGER: {1, 2}}.__getitem__) == [0]


def test_a_weaker_corpus_is_refused() -> None:
    """Entries that show less when they are run again, and entries that show nothing at all."""
    answers = iter([{1, 2}, {3}, {1}, {3}])
    with pytest.raises(WeakerCorpus, match="1 of the 3 features that it shows would be lost"):
        needed([EXIT, LONGER], lambda made: next(answers))
    with pytest.raises(WeakerCorpus, match="nothing would be left"):
        needed([EXIT], lambda made: set())


def test_counts_of_branches_have_the_classes_of_libfuzzer() -> None:
    """Eight of them."""
    counts = (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 127, 128, 10_000)
    assert [_class_of(count) for count in counts] == [0, 1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def corpus(folder: Path) -> dict[str, Scenario]:
    """A folder of generated scenarios, as libFuzzer names them; what is in it."""
    folder.mkdir()
    random = Random(3)
    made = [generate(random, TARGETS["lifecycle"], "reference-count", "") for _ in range(25)]
    entries = {name_of(codec.encode(one)): one for one in [*made, EXIT, LONGER, NOTHING]}
    for name, one in entries.items():
        (folder / name).write_bytes(codec.encode(one))
    return entries


def test_the_command_keeps_what_guidance_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left shows as much as before, and a second time nothing goes."""
    entries = corpus(tmp_path / "corpus")
    arguments = ("minimize", "--corpus", "corpus", "--format", "json")
    answer = answer_of(ebsfuzz(tmp_path, *arguments), 0)
    left = {path.name for path in (tmp_path / "corpus").iterdir()}
    assert answer == {"path": "corpus", "before": len(entries), "kept": len(left)}
    assert 0 < len(left) < len(entries)
    features = {name: Features().of(run_and_judge(made).trace) for name, made in entries.items()}
    assert set().union(*(features[name] for name in left)) == set().union(*features.values())
    assert answer_of(ebsfuzz(tmp_path, *arguments), 0)["kept"] == answer["kept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--corpus missing", "missing: no such folder"),
        ("--corpus file", "a corpus is a folder, and this is none"),
        ("--corpus empty", "a folder with no scenario"),
        ("", "give a PATH, or a folder with --corpus"),
        ("file --corpus empty", "give a PATH, or a folder with --corpus"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    """And nothing is deleted."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    assert call(["minimize", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_corpus_that_cannot_be_read_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bad file, and nothing goes."""
    entries = corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / "notes.txt").touch()
    assert call(["minimize", "--corpus", str(tmp_path / "corpus")]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert len(list((tmp_path / "corpus").iterdir())) == len(entries) + 1
