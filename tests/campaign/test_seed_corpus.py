"""A corpus as a zip of bytes."""

from __future__ import annotations

import hashlib
import zipfile

import pytest

from campaign.seed_corpus import seed_corpus
from fuzz_targets import codec, scenario_yaml
from fuzz_targets.input_files import InputError
from reference_impl.scenario import operation, scenario

FIRST = scenario(design="disconnect", operations=(operation("exit"),))
SECOND = scenario(design="disconnect", operations=(operation("connect"), operation("exit")))


def test_every_scenario_is_in_it_once_as_bytes(tmp_path):
    """Whatever form it has in the folder, and the same corpus gives the same file."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "first.yaml").write_text(scenario_yaml.dump(FIRST))
    (corpus / "same.bin").write_bytes(codec.encode(FIRST))
    (corpus / "second.yaml").write_text(scenario_yaml.dump(SECOND))
    assert seed_corpus(corpus, tmp_path / "a.zip") == 2
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert {codec.decode(data) for data in contents.values()} == {FIRST, SECOND}
    assert all(hashlib.sha1(data).hexdigest() == name for name, data in contents.items())
    seed_corpus(corpus, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_junk_in_a_corpus_is_one_line(tmp_path):
    """And no archive passes for a whole one."""
    (tmp_path / "notes.txt").write_text("junk")
    with pytest.raises(InputError, match=r"notes\.txt"):
        seed_corpus(tmp_path, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
