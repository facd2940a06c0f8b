"""The store of findings: nothing is lost, nothing is half written, nothing is counted twice."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from campaign.exit_status import UsageProblem
from campaign.findings import FindingStore, WorkerFolder, read_baseline, write_atomically
from oracles.finding import Finding
from reference_impl.scenario import operation, scenario

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

LONG = scenario(design="disconnect", operations=(operation("connect"), operation("exit")))
SHORT = scenario(design="disconnect", order="fifo", operations=(operation("exit"),))
OTHER = scenario(design="disconnect", order=(1, 0), operations=(operation("exit"),))


def nobody() -> bytes:
    """Bytes of a scenario that is not worth a look."""
    pytest.fail("nobody needs its bytes")


def test_a_finding_is_stored_at_once_and_from_then_on_counted(tmp_path: Path) -> None:
    """The parent sees the first one before the worker does anything else."""
    reader = WorkerFolder(folder_of(tmp_path, "a"))
    assert reader.look() == []
    assert list(reader.sightings()) == []
    assert reader.executions == 0

    store = FindingStore(reader.path)
    assert store.count_execution() == 1
    store.see(DIRECT, LONG, lambda: b"raw")
    ((record, raw),) = reader.look()
    assert raw == b"raw"
    assert (record.signature, record.design, record.step) == (DIRECT.signature, "disconnect", 7)
    assert (record.operations, record.note) == (2, False)
    (sighting,) = reader.sightings()
    assert (sighting.record, sighting.count) == (record, 1)
    assert sighting.last_seen >= record.time

    assert store.count_execution() == 2
    store.see(replace(DIRECT, step=99), LONG, nobody)
    assert reader.look() == []
    assert [one.count for one in reader.sightings()] == [2]
    assert list(reader.sightings()) == []
    assert reader.executions == 2
    store.close()


def test_a_scenario_with_fewer_operations_is_stored_too(tmp_path: Path) -> None:
    """Once; as many are not fewer."""
    reader = WorkerFolder(folder_of(tmp_path, "a"))
    store = FindingStore(reader.path)
    store.see(DIRECT, LONG, lambda: b"long")
    store.see(RESET, LONG, lambda: b"reset")
    store.see(DIRECT, SHORT, lambda: b"short")
    store.see(DIRECT, SHORT, nobody)
    store.see(DIRECT, LONG, nobody)
    assert [(record.operations, raw) for record, raw in reader.look()] == [(2, b"long"), (2, b"reset"), (1, b"short")]
    assert [(one.record.signature, one.count) for one in reader.sightings()] == [
        (DIRECT.signature, 4),
        (RESET.signature, 1),
    ]
    store.close()


def test_from_time_to_time_another_scenario_is_stored(tmp_path: Path) -> None:
    """After ten sightings, a hundred, a thousand: the minimizer may get further from there."""
    reader = WorkerFolder(folder_of(tmp_path, "a"))
    store = FindingStore(reader.path)
    for number in range(1002):
        store.see(DIRECT, SHORT, lambda number=number: str(number).encode())
    assert [raw for _, raw in reader.look()] == [b"0", b"10", b"100", b"1000"]
    store.close()


def test_circumstances_are_collected(tmp_path: Path) -> None:
    """Notification orders by their sort, environments and switches by their names."""
    reader = WorkerFolder(folder_of(tmp_path, "a"))
    store = FindingStore(reader.path)
    for made in (LONG, OTHER, LONG):
        store.see(DIRECT, made, lambda: b"")
    reader.look()
    (sighting,) = reader.sightings()
    assert (sighting.orders, sighting.environments, sighting.switches) == (("edk2", "permutation"), ("conforming",), ())
    store.close()


def test_a_finding_of_a_worker_that_was_killed_before_it_counted_is_there(tmp_path: Path) -> None:
    """The record is complete, so it has been seen once at least."""
    reader = WorkerFolder(folder_of(tmp_path, "a"))
    store = FindingStore(reader.path)
    store.see(DIRECT, LONG, lambda: b"raw")
    store.counters[1] = 0
    reader.look()
    assert [one.count for one in reader.sightings()] == [1]
    store.close()


def test_bytes_without_a_record_are_no_finding_yet(tmp_path: Path) -> None:
    """The bytes are written first: a record always has its bytes."""
    reader = WorkerFolder(folder_of(tmp_path, "a"))
    (reader.path / "000001.bin").write_bytes(b"raw")
    assert reader.look() == []


def test_a_store_that_cannot_write_says_so_and_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding is new again the next time."""
    store = FindingStore(folder_of(tmp_path, "a"))
    with monkeypatch.context() as patched:
        patched.setattr(
            os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space left"):
            store.see(DIRECT, LONG, lambda: b"raw")
    store.see(DIRECT, LONG, lambda: b"raw")
    assert store.counters[1] == 1
    store.close()


def test_the_end_of_a_worker_can_be_waited_for(tmp_path: Path) -> None:
    """Its lock goes with it. Before it has begun, there is nothing to wait for."""
    reader = WorkerFolder(folder_of(tmp_path, "a"))
    assert reader.wait_for_the_end(0)
    store = FindingStore(reader.path)
    assert not reader.wait_for_the_end(0)
    store.close()
    assert reader.wait_for_the_end(0)


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
