"""The store of findings: nothing is lost, nothing is half written, nothing is counted twice."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from campaign.exit_status import UsageProblem
from campaign.findings import Collector, FindingStore, read_baseline, write_atomically
from oracles.finding import Finding

DIRECT = Finding("memory-services", "direct-call", "UEFI 2.10 §7.1.1", "XenBusDxe", "AllocatePool", 7, "none", "one")
RESET = Finding("connection-reset", "double-reset", "somewhere", "XenBusDxe", "ring", 9, "one", "two", note=True)


def folder_of(tmp_path: Path, name: str) -> Path:
    """A worker's folder."""
    folder = tmp_path / name
    folder.mkdir()
    return folder


# ---- writing ----------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_in_place_of_the_old_one(tmp_path: Path) -> None:
    """Nothing but the new content is there afterwards, and no temporary file."""
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be finished is taken away again."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# ---- counting ---------------------------------------------------------------------------------------------------------


def test_a_finding_is_stored_at_once_and_from_then_on_counted(tmp_path: Path) -> None:
    """The parent sees the first one before the worker does anything else."""
    folder = folder_of(tmp_path, "a")
    collector = Collector()
    collector.add_worker(folder)
    assert collector.poll() == []
    assert collector.executions(folder) == 0

    store = FindingStore(folder)
    assert store.count_execution() == 1
    store.see(DIRECT, "disconnect", lambda: b"raw")
    (found,) = collector.poll()
    assert found.raw == b"raw"
    assert found.record.signature == DIRECT.signature
    assert (found.record.design, found.record.step, found.record.note) == ("disconnect", 7, False)
    assert found.count == 1

    assert store.count_execution() == 2
    store.see(replace(DIRECT, step=99), "disconnect", lambda: pytest.fail("known, so nobody needs its bytes"))
    assert collector.poll() == []
    assert found.count == 2
    assert collector.executions(folder) == 2


def test_workers_of_one_design_share_a_signature_and_add_their_counts(tmp_path: Path) -> None:
    """The bytes of the worker that was read first are kept."""
    first, second = folder_of(tmp_path, "a"), folder_of(tmp_path, "b")
    one, two = FindingStore(first), FindingStore(second)
    one.see(DIRECT, "disconnect", lambda: b"one")
    two.see(RESET, "disconnect", lambda: b"reset")
    two.see(DIRECT, "disconnect", lambda: b"two")
    two.see(DIRECT, "disconnect", lambda: b"two")
    collector = Collector()
    collector.add_worker(first)
    collector.add_worker(second)
    assert [(found.record.signature, found.raw, found.count) for found in collector.poll()] == [
        (DIRECT.signature, b"one", 3),
        (RESET.signature, b"reset", 1),
    ]


def test_a_signature_counts_once_for_each_design(tmp_path: Path) -> None:
    """Side by side means that designs are told apart."""
    folder = folder_of(tmp_path, "a")
    other = folder_of(tmp_path, "b")
    FindingStore(folder).see(DIRECT, "disconnect", lambda: b"")
    FindingStore(other).see(DIRECT, "exit-callback", lambda: b"")
    collector = Collector()
    collector.add_worker(folder)
    collector.add_worker(other)
    collector.poll()
    assert list(collector.found) == [("disconnect", DIRECT.signature), ("exit-callback", DIRECT.signature)]


def test_a_finding_of_a_worker_that_was_killed_before_it_counted_is_there(tmp_path: Path) -> None:
    """The record is complete, so it has been seen once at least."""
    folder = folder_of(tmp_path, "a")
    store = FindingStore(folder)
    store.see(DIRECT, "disconnect", lambda: b"raw")
    store.counters[1] = 0
    collector = Collector()
    collector.add_worker(folder)
    (found,) = collector.poll()
    assert found.count == 1


def test_bytes_without_a_record_are_no_finding_yet(tmp_path: Path) -> None:
    """The bytes are written first: a record always has its bytes."""
    folder = folder_of(tmp_path, "a")
    (folder / "0001.bin").write_bytes(b"raw")
    collector = Collector()
    collector.add_worker(folder)
    assert collector.poll() == []


def test_a_store_that_cannot_write_says_so_and_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding is new again the next time."""
    folder = folder_of(tmp_path, "a")
    store = FindingStore(folder)
    with monkeypatch.context() as patched:
        patched.setattr(
            os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            store.see(DIRECT, "disconnect", lambda: b"raw")
    store.see(DIRECT, "disconnect", lambda: b"raw")
    assert store.counters[1] == 1


def test_counters_need_their_room_at_the_start(tmp_path: Path) -> None:
    """A folder that is gone is an error of the system, not a crash in the middle of a run."""
    with pytest.raises(FileNotFoundError):
        FindingStore(tmp_path / "nowhere")


# ---- baselines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"# known\n\n  {DIRECT.signature}  \r\n{RESET.signature}\n",
        f"\ufeff{DIRECT.signature}\n{RESET.signature}",
        json.dumps([DIRECT.signature, RESET.signature]),
        json.dumps({"findings": [{"signature": DIRECT.signature, "count": 1}, {"signature": RESET.signature}], "x": 1}),
    ],
)
def test_a_baseline_is_lines_or_json_or_an_earlier_answer(tmp_path: Path, text: str) -> None:
    """All forms say the same."""
    path = tmp_path / "baseline"
    path.write_text(text, encoding="utf-8")
    assert read_baseline(path) == {DIRECT.signature, RESET.signature}


@pytest.mark.parametrize("text", ["", "# nothing known\n", "[]", '{"findings": []}'])
def test_an_empty_baseline_knows_nothing(tmp_path: Path, text: str) -> None:
    """As if there were none."""
    path = tmp_path / "baseline"
    path.write_text(text)
    assert read_baseline(path) == frozenset()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe", "not UTF-8 text, so no baseline"),
        (b"a/b/c/d\nnonsense\n", "line 2: 'nonsense' is no signature"),
        (b'["nonsense"]', "entry 0: 'nonsense' is no signature"),
        (b"[1]", "no baseline: Expected `str`, got `int`"),
        (b"{}", "no baseline: Object missing required field `findings`"),
        (b"[", "no baseline: Input data was truncated"),
        (b"\0\0\0/\0/\0/\0", "line 1: "),
    ],
)
def test_what_is_no_baseline_is_refused_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    """The line names the file and what is wrong in it."""
    path = tmp_path / "baseline"
    path.write_bytes(data)
    with pytest.raises(UsageProblem) as raised:
        read_baseline(path)
    assert str(raised.value).startswith(f"{path}: {message}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "No such file"), (".", "Is a directory"), ("\0", "null byte")]
)
def test_a_baseline_that_cannot_be_read_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    """As every other file that a user names."""
    with pytest.raises(UsageProblem, match=reason):
        read_baseline(tmp_path / name)
