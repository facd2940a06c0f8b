"""The corpus of a design: whole entries only, and shared by all its workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign import shared_corpus
from campaign.shared_corpus import Live, SharedCorpus, name_of

ENTRIES = [bytes([number]) * (10 - number) for number in range(5)]


@pytest.fixture
def corpus(tmp_path: Path) -> SharedCorpus:
    """A corpus with entries of different lengths."""
    made = SharedCorpus(tmp_path / "corpus")
    made.load(tmp_path / "damaged")
    for data in ENTRIES:
        made.add(data)
    return made


def live_of(corpus: SharedCorpus, folder: Path) -> Live:
    """The live folder of a worker."""
    folder.mkdir()
    return Live(corpus, folder / "corpus", folder)


def put(live: Live, data: bytes, name: str = "") -> None:
    """Write as libFuzzer does."""
    (live.folder / (name or name_of(data))).write_bytes(data)


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}


def test_a_worker_begins_with_the_shortest_and_gets_the_others(
    corpus: SharedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, and only as many as it is given."""
    monkeypatch.setattr(shared_corpus, "FIRST_ENTRIES", 2)
    live = live_of(corpus, tmp_path / "a")
    assert names(live.folder) == {name_of(data) for data in ENTRIES[3:]}
    live.feed(0)
    live.feed(1)
    assert names(live.folder) == {name_of(data) for data in ENTRIES[2:]}
    corpus.remove([name_of(ENTRIES[1])])
    live.feed(100)
    assert names(live.folder) == {name_of(data) for data in (ENTRIES[0], *ENTRIES[2:])}
    assert names(tmp_path / "a") == {"corpus"}


def test_what_a_worker_finds_is_taken_over_when_it_is_whole(corpus: SharedCorpus, tmp_path: Path) -> None:
    """Not before, and once."""
    live = live_of(corpus, tmp_path / "a")
    put(live, b"ne", name_of(b"new"))
    assert live.collect() == []
    put(live, b"new")
    assert live.collect() == [name_of(b"new")]
    assert (corpus.folder / name_of(b"new")).read_bytes() == b"new"
    assert live.collect() == []


def test_other_workers_hear_of_it(corpus: SharedCorpus, tmp_path: Path) -> None:
    """And do not give it back as news."""
    first, second = live_of(corpus, tmp_path / "a"), live_of(corpus, tmp_path / "b")
    put(first, b"new")
    second.hear_of(first.collect())
    second.feed(1)
    assert name_of(b"new") in names(second.folder)
    assert second.collect() == []


def test_what_a_worker_replaces_leaves_the_corpus(corpus: SharedCorpus, tmp_path: Path) -> None:
    """Only what it has written itself, and only once everything else of it has been taken over."""
    live = live_of(corpus, tmp_path / "a")
    put(live, b"long entry")
    live.collect()
    (live.folder / name_of(b"long entry")).unlink()
    (live.folder / name_of(ENTRIES[0])).unlink()
    put(live, b"sho", name_of(b"short"))
    live.collect()
    assert name_of(b"long entry") in corpus.sizes
    put(live, b"short")
    live.collect()
    assert corpus.sizes.keys() == {name_of(data) for data in (b"short", *ENTRIES)} == names(corpus.folder)


def test_entries_of_a_folder_are_adopted(corpus: SharedCorpus, tmp_path: Path) -> None:
    """Those that are whole."""
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / name_of(b"new")).write_bytes(b"new")
    (tmp_path / "left" / name_of(b"cut off")).write_bytes(b"cut")
    (tmp_path / "left" / name_of(ENTRIES[0])).write_bytes(ENTRIES[0])
    assert corpus.adopt(tmp_path / "left") == 1
    assert name_of(b"new") in corpus.sizes


def test_a_corpus_is_read_again_and_what_is_damaged_is_put_aside(corpus: SharedCorpus, tmp_path: Path) -> None:
    """Sizes are those of the files; what is put aside takes the place of what had its name there."""
    broken = name_of(ENTRIES[0])
    for _ in range(2):
        (corpus.folder / broken).write_bytes(b"broken")
        (corpus.folder / "folder").mkdir()
        (corpus.folder / "link").symlink_to("/dev/zero")
        again = SharedCorpus(corpus.folder)
        assert again.load(tmp_path / "damaged") == 3
        assert again.sizes == {name_of(data): len(data) for data in ENTRIES[1:]}
        assert names(tmp_path / "damaged") == {broken, "folder", "link"}
    assert again.shortest_first()[0] == name_of(ENTRIES[4])
