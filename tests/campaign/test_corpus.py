"""The starting corpus: the same files every time, each with something new in it."""

from __future__ import annotations

import pytest

from campaign import corpus
from campaign.corpus import cover, make_starting_corpus
from fuzz_targets import scenario_yaml
from fuzz_targets.basics import basic_scenarios
from fuzz_targets.guidance import Features
from fuzz_targets.harness import run_and_judge
from fuzz_targets.input_files import read_scenario
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import scenario
from tests.guest.firmware import need_firmware


def test_the_same_code_makes_the_same_files(tmp_path):
    """Byte for byte, and earlier seeds go as a whole."""
    (tmp_path / "b" / "lifecycle" / "seeds").mkdir(parents=True)
    (tmp_path / "b" / "lifecycle" / "seeds" / "old.yaml").write_text("old")
    made = []
    for name in ("a", "b"):
        counts = make_starting_corpus(tmp_path / name, ["lifecycle", "boot_services"], candidates=20, seeds_max=5)
        files = {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        made.append((counts, files))
    assert made[0] == made[1]
    counts, files = made[0]
    assert sum(counts.values()) == len(files)
    assert sum("generated" in path.name for path in files) == 10


def test_a_failure_leaves_the_earlier_seeds(tmp_path, monkeypatch):
    """Nothing is half replaced."""
    make_starting_corpus(tmp_path, ["canary"], candidates=1)
    before = sorted(path.name for path in (tmp_path / "canary" / "seeds").iterdir())
    monkeypatch.setattr(scenario_yaml, "dump", lambda made: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_starting_corpus(tmp_path, ["canary"], candidates=1)
    assert sorted(path.name for path in (tmp_path / "canary" / "seeds").iterdir()) == before
    assert [path.name for path in (tmp_path / "canary").iterdir()] == ["seeds"]


def test_targets_that_share_a_profile_share_what_is_generated(tmp_path):
    """`canary` has the basics alone."""
    make_starting_corpus(tmp_path, ["canary"], candidates=20)
    assert not list(tmp_path.rglob("generated*"))


def test_what_is_kept_adds_most_first():
    """Of equals the first; nothing that adds nothing; no more than asked for."""
    shown = [{1}, {1, 2}, {3, 4, 5}, {3, 4}, {2, 1}, {6}]
    assert cover(shown, set(), 9) == [2, 1, 5]
    assert cover(shown, set(), 2) == [2, 1]
    assert cover(shown, {3, 4, 5}, 9) == [1, 5]
    assert cover([], set(), 9) == []


def test_a_peer_counts_by_what_it_is_asked_and_answers():
    """Only in the ring world, whose trace does not show a peer's bytes."""
    ring = dict(basic_scenarios("ring", ""))["honest-peer"]
    assert len(corpus._features_of_a_peer(ring)) == 2
    assert corpus._features_of_a_peer(scenario(design="disconnect")) == set()


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_of_the_checkout_reads_and_runs_the_same_twice(name):
    """The trace is the same, record for record."""
    seeds = sorted((corpus.CHECKOUT / "corpus" / name / "seeds").glob("*.yaml"))
    assert seeds
    if TARGETS[name].world == "efi-image":
        need_firmware()
    features = Features()
    for path in seeds:
        seed = read_scenario(path)
        first, second = run_and_judge(seed), run_and_judge(seed)
        assert first.trace.records == second.trace.records, path
        assert first.findings == second.findings, path
        assert features.of(first.trace), path
