"""Reproducers: what is in the folder, and that it is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import campaign
from campaign import reproducer
from campaign.reproducer import RecordedVerdict, name_of, orders_of, read_verdict, sentence_of, write
from fuzz_targets import codec
from fuzz_targets.harness import Verdict, run_and_judge
from fuzz_targets.input_files import InputError, read_scenario
from oracles.finding import Finding
from reference_impl.scenario import operation, scenario
from reference_impl.trace import Kind, Trace

CHECKOUT = Path(campaign.__file__).resolve().parent.parent
SCENARIO = scenario(
    design="disconnect", devices=("block",), operations=(operation("connect"), operation("exit")), order=(1, 0)
)
FINDING = Finding(
    "memory-services", "direct-call", "UEFI 2.10 §7.1.1", "XenBusDxe", "AllocatePool", 1, "No call.", "A call."
)
SIGNATURE = "memory-services/direct-call/XenBusDxe/AllocatePool"
NAME = "disconnect--memory-services--direct-call--XenBusDxe--AllocatePool"


def verdict() -> Verdict:
    """A run of two records with the finding at the second."""
    trace = Trace()
    trace.add(Kind.EXIT, "os-loader", "exit-group")
    trace.add(Kind.SERVICE, "XenBusDxe", "AllocatePool", (4, 64))
    return Verdict(trace, [FINDING])


def test_a_reproducer_is_a_folder_that_says_everything(tmp_path):
    """Scenario in both forms, the bytes as found, the verdict, the timeline with the step marked, and a test."""
    path = write(tmp_path / "out", SCENARIO, SIGNATURE, b"raw", verdict(), orders=("fifo", (1, 0)), runs=12)
    assert path == tmp_path / "out" / NAME
    test_name = "test_disconnect_memory_services_direct_call_XenBusDxe_AllocatePool.py"
    assert sorted(os.listdir(path)) == [
        "README.md",
        "raw.bin",
        "scenario.bin",
        "scenario.yaml",
        "sequence.svg",
        test_name,
        "timeline.txt",
        "verdict.json",
    ]
    assert (
        read_scenario(path / "scenario.yaml") == read_scenario(path / "scenario.bin") == read_scenario(path) == SCENARIO
    )
    assert (path / "raw.bin").read_bytes() == b"raw"
    assert json.loads((path / "verdict.json").read_text()) == {
        "version": 1,
        "signature": SIGNATURE,
        "oracle": "memory-services",
        "rule": "direct-call",
        "source": "UEFI 2.10 §7.1.1",
        "agent": "XenBusDxe",
        "subject": "AllocatePool",
        "step": 1,
        "expected": "No call.",
        "seen": "A call.",
        "note": False,
        "world": "platform",
        "design": "disconnect",
        "environment": "conforming",
        "switches": [],
        "fault": "",
        "target": "",
        "orders": ["fifo", [1, 0]],
        "runs": 12,
    }
    story = (path / "timeline.txt").read_text()
    assert story.startswith(f"{SIGNATURE}\n\nversion: 1\ndesign: disconnect\n")
    assert ">>>    1  BOOT     APPLICATION  XenBusDxe: AllocatePool(" in story
    assert f"{' ' * 10}>>> {sentence_of(FINDING)}\n" in story


def test_a_recorded_verdict_reads_back(tmp_path):
    """What was written is what is read."""
    path = write(tmp_path, SCENARIO, SIGNATURE, b"", verdict(), orders=("edk2", "fifo", (1, 0)))
    recorded = read_verdict(path)
    assert isinstance(recorded, RecordedVerdict)
    assert (recorded.signature, recorded.orders, recorded.runs) == (SIGNATURE, ("edk2", "fifo", (1, 0)), 1)


def test_a_note_says_that_it_is_one():
    """An error and a note differ in the first word."""
    assert sentence_of(FINDING).startswith("error memory-services/")
    assert sentence_of(replace(FINDING, note=True)).startswith("note memory-services/")


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "signature", "name"),
    [
        ({"design": "disconnect"}, SIGNATURE, NAME),
        ({"world": "core"}, "tpl/restore/a/b", "core--tpl--restore--a--b"),
        ({"design": "disconnect"}, "o/r/a/device/vbd/0", "disconnect--o--r--a--device-vbd-0--f2f0c2ba"),
        ({"design": "disconnect"}, "o/r/a/device vbd:0", "disconnect--o--r--a--device-vbd-0--7a54ee0a"),
    ],
)
def test_a_folder_is_named_for_what_was_tested_and_the_signature(values, signature, name):
    """In characters that every file system takes; a checksum keeps apart what would look the same."""
    assert name_of(scenario(**values), signature).rpartition("--")[0] == name.rpartition("--")[0]
    assert len(name_of(scenario(**values), signature)) == len(name)


def test_different_findings_never_share_a_folder():
    """Replaced characters and cut names get a checksum of the whole."""
    signatures = ["o/r/a/b/c", "o/r/a/b c", "o/r/a/b-c", f"o/r/a/{'x' * 300}", f"o/r/a/{'x' * 301}", "o/r/a/../.."]
    names = [name_of(SCENARIO, signature) for signature in signatures]
    assert len(set(names)) == len(names)
    assert all(len(name) < 140 and "/" not in name and not name.startswith(".") for name in names)


def test_a_seeded_fault_is_part_of_the_name():
    """The same finding with and without a fault are two reproducers."""
    assert name_of(replace(SCENARIO, fault="leak"), SIGNATURE) == NAME.replace("disconnect--", "disconnect+leak--")


# ---- orders ---------------------------------------------------------------------------------------------------------


def test_orders_are_those_under_which_the_finding_appears():
    """edk2's order, fifo, and the scenario's own permutation are tried; each is listed only where the finding shows."""

    def judge(candidate):
        return ["bug"] if candidate.order != "edk2" else []

    assert orders_of(SCENARIO, "bug", judge) == ("fifo", (1, 0))
    assert orders_of(replace(SCENARIO, order="fifo"), "bug", judge) == ("fifo",)
    assert orders_of(SCENARIO, "bug", lambda candidate: ["bug"]) == ("edk2", "fifo", (1, 0))


# ---- writing at once ------------------------------------------------------------------------------------------------


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    """Neither a half folder nor a hidden one stays, and the error is the caller's."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(codec, "encode", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, SCENARIO, SIGNATURE, b"", verdict(), orders=())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_the_earlier_reproducer(tmp_path, monkeypatch):
    """What was there is replaced as a whole, or not at all."""
    path = write(tmp_path, SCENARIO, SIGNATURE, b"first", verdict(), orders=())
    monkeypatch.setattr(codec, "encode", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, SCENARIO, SIGNATURE, b"second", verdict(), orders=())
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "raw.bin").read_bytes() == b"first"
    assert len(list(path.iterdir())) == 8


def test_an_earlier_reproducer_is_replaced_as_a_whole(tmp_path):
    """No file of the earlier one is left, and nothing hidden."""
    path = write(tmp_path, SCENARIO, SIGNATURE, b"first", verdict(), orders=())
    (path / "notes.txt").write_text("mine")
    assert write(tmp_path, SCENARIO, SIGNATURE, b"second", verdict(), orders=()) == path
    assert (path / "raw.bin").read_bytes() == b"second"
    assert len(list(path.iterdir())) == 8
    assert list(tmp_path.iterdir()) == [path]


def test_a_worker_that_was_faster_is_no_failure(tmp_path, monkeypatch):
    """Between taking the old one away and putting the new one there, another worker may do either."""
    path = write(tmp_path, SCENARIO, SIGNATURE, b"first", verdict(), orders=())
    rename = Path.rename

    def another_takes_it_away(self, target):
        if self == path:
            rename(self, tmp_path / "elsewhere")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", another_takes_it_away)
    assert write(tmp_path, SCENARIO, SIGNATURE, b"second", verdict(), orders=()) == path
    assert (path / "raw.bin").read_bytes() == b"second"


def test_a_place_that_stays_taken_is_an_error(tmp_path, monkeypatch):
    """Nobody tries for ever."""

    def always_taken(self, target):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(
        Path, "rename", lambda self, target: None if target.name.startswith(".") else always_taken(self, target)
    )
    with pytest.raises(OSError, match="others keep writing it"):
        write(tmp_path, SCENARIO, SIGNATURE, b"", verdict(), orders=())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_an_error_and_stays(tmp_path):
    """What is no folder is nothing that this program wrote."""
    (tmp_path / NAME).write_text("mine")
    with pytest.raises(NotADirectoryError):
        write(tmp_path, SCENARIO, SIGNATURE, b"", verdict(), orders=())
    assert (tmp_path / NAME).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_verdict_without_the_finding_is_our_own_bug(tmp_path):
    """Nothing is written for a finding that was not made."""
    with pytest.raises(AssertionError, match="no finding other"):
        write(tmp_path, SCENARIO, "other", b"", verdict(), orders=())


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_text(""), "truncated"),
        (lambda file: file.write_text("{"), "truncated"),
        (lambda file: file.write_text("[]"), "Expected `object`"),
        (lambda file: file.write_bytes(b"\xff\xfe"), "verdict.json"),
        (lambda file: file.write_text("[" * 100_000), "verdict.json"),
        (lambda file: file.write_text(" " * ((1 << 20) + 1)), "larger than"),
        (
            lambda file: file.write_text(file.read_text().replace('"version": 1', '"version": 2')),
            "version 2 is not one",
        ),
        (lambda file: file.write_text(file.read_text().replace('"step": 1', '"step": "1"')), r"\$\.step"),
        (lambda file: file.write_text(file.read_text().replace('"rule"', '"ruler"')), "ruler"),
        (lambda file: file.write_text(file.read_text().replace('"target": ""', '"target": "x"')), "no target 'x'"),
        (lambda file: file.unlink(), "cannot be read: No such file"),
    ],
)
def test_a_verdict_that_cannot_be_read_is_one_line(tmp_path, change, message):
    """The line names the file and what is wrong with it."""
    path = write(tmp_path, SCENARIO, SIGNATURE, b"", verdict(), orders=())
    change(path / "verdict.json")
    with pytest.raises(InputError, match=message) as caught:
        read_verdict(path)
    assert str(caught.value).startswith(f"{path / 'verdict.json'}: ")
    assert "\n" not in str(caught.value)


# ---- the real thing -------------------------------------------------------------------------------------------------


def real_reproducer(folder: Path, design: str) -> tuple[Path, str]:
    """The first finding of connect and exit under `design`, written as it would be for `disconnect`."""
    found = run_and_judge(replace(SCENARIO, order="edk2"))
    signature = found.findings[0].signature
    path = write(folder, replace(SCENARIO, order="edk2"), signature, b"", found)
    text = (path / "scenario.yaml").read_text().replace("design: disconnect", f"design: {design}")
    (path / "scenario.yaml").write_text(text)
    return path, signature


@pytest.mark.parametrize(("design", "status"), [("disconnect", 1), ("reference-count", 0)])
def test_the_test_inside_fails_while_the_bug_is_there(tmp_path, design, status):
    """It is run from another directory; with the design that keeps the promise it passes."""
    path, signature = real_reproducer(tmp_path / "findings", design)
    assert set(read_verdict(path).orders) == {"edk2", "fifo"}
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == status, finished.stdout + finished.stderr
    assert (signature in finished.stdout) == bool(status)


def test_the_test_of_a_targets_own_oracle_asks_that_oracle(tmp_path):
    """A finding that only a target's own oracle makes is not found by the others."""
    path = write(tmp_path, SCENARIO, SIGNATURE, b"", verdict(), orders=(), target="canary")
    (test,) = path.glob("test_*.py")
    text = test.read_text()
    assert "from fuzz_targets.registry import TARGETS\n" in text
    assert "TARGETS['canary'].run(read_scenario(" in text
    compile(text, str(test), "exec")
    assert read_verdict(path).target == "canary"
    assert reproducer.is_reproducer(path)
