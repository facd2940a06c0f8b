"""Campaigns that are killed at random moments, or run out of room: everything that had been found is there afterwards.

EBSFUZZ_KILLS says how often the campaign is killed; without it, a few times.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from campaign.campaign_folder import is_running
from campaign.findings import WorkerFolder
from campaign.shared_corpus import name_of
from campaign.statistics import read
from tests.campaign.test_program import answer_of, ebsfuzz, environment_with

KILLS = int(os.environ.get("EBSFUZZ_KILLS", "4"))
GUIDED = importlib.util.find_spec("atheris") is not None
RUN = ("run", "--design", "disconnect", "--jobs", "2", "--out", "out", *([] if GUIDED else ["--unguided"]))


class Made:
    """What a campaign has made, as its folder shows it at one moment while nothing runs."""

    def __init__(self, folder: Path) -> None:
        record = read(folder)
        self.counts = {finding.signature: finding.count for finding in record.findings}
        # What lies in the folders of workers that were killed is not in the statistics yet, or not all of it.
        rows = {row.folder: row for row in record.workers}
        self.executions = record.executions
        for found in folders(folder):
            for sighting in found.sightings():
                self.counts.setdefault(sighting.record.signature, 1)
            self.executions += max(0, found.executions - rows[found.path.name].executions)


def workers_of(pid: int) -> list[int]:
    """The worker processes of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"campaign.worker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue  # it has just ended
    return found


def wait(process: subprocess.Popen[bytes], out: Path, executions: int, seconds: float) -> None:
    """Wait until a worker of the run has executed so much, and then for so long."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(one.executions >= executions for one in folders(out)):
        wait_for(process, 0.02)
    wait_for(process, seconds)


def wait_for(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a time in which the process must not end."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
    pytest.fail(f"the campaign ended with status {process.returncode}")


def folders(out: Path) -> list[WorkerFolder]:
    """The folders of workers that are there, just read. The campaign may take one away meanwhile."""
    found = []
    for path in (out / "workers").glob("disconnect-*"):
        with suppress(FileNotFoundError):
            folder = WorkerFolder(path)
            folder.look()
            found.append(folder)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="workers are found in /proc")
def test_a_campaign_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """Workers alone, or all at once: no finding, no count and no execution is lost, and the corpus has whole entries."""
    random = Random(5)
    out = tmp_path / "out"
    before: Made | None = None
    for _ in range(KILLS):
        with subprocess.Popen(
            [sys.executable, "-m", "campaign.cli", *RUN, "--max-time", "1h"],
            cwd=tmp_path,
            env=environment_with(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                wait(process, out, random.choice((0, 1, 20, 100)), random.uniform(0, 0.5))
                if random.random() < 0.5:
                    for pid in workers_of(process.pid):
                        os.kill(pid, signal.SIGKILL)
                    wait_for(process, random.uniform(0.1, 2))
            finally:
                # The parent alone: its workers and its triage have to notice by themselves.
                process.kill()
        if not (out / "campaign.sqlite").is_file():
            continue
        assert not is_running(out)
        for path in (out / "workers").glob("disconnect-*"):
            assert WorkerFolder(path).wait_for_the_end(60)
        now = Made(out)
        if before is not None:
            assert now.executions >= before.executions
            assert {name for name, count in before.counts.items() if now.counts.get(name, 0) < count} == set()
        before = now
    answer = answer_of(ebsfuzz(tmp_path, *RUN, "--max-time", "2", "--format", "json"), 1)
    assert answer["problems"] == []
    assert before is not None
    assert answer["executions"] >= before.executions
    found = {one["signature"]: one for one in answer["findings"]}
    assert {name for name, count in before.counts.items() if found[name]["count"] < count} == set()
    assert all(Path(one["reproducer"], "scenario.yaml").is_file() for one in answer["findings"])
    assert all(path.name == name_of(path.read_bytes()) for path in (out / "corpus/lifecycle/disconnect").iterdir())
    assert list((out / "workers").iterdir()) == []
    again = answer_of(ebsfuzz(tmp_path, "replay", "out/findings", "--format", "json"), 1)
    assert {one["verdict"] for one in again["scenarios"]} == {"FAILED"}


def test_a_campaign_that_runs_out_of_room_says_so_and_goes_on_with_more(tmp_path: Path) -> None:
    """One clear line, status 2; then the same command with room for it has all that was found by then."""
    out = tmp_path / "out"
    out.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1200k", "none", str(out)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        ended = ebsfuzz(tmp_path, *RUN, "--runs", "2000", "--seed", "1")
        assert ended.returncode == 2, ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("ebsfuzz: ")
        assert "No space left" in last or "disk is full" in last or "cannot be written" in last
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        before = Made(out)
        answer = answer_of(ebsfuzz(tmp_path, *RUN, "--runs", "20", "--seed", "1", "--format", "json"), 1)
        found = {one["signature"]: one["count"] for one in answer["findings"]}
        assert {name for name, count in before.counts.items() if found.get(name, 0) < count} == set()
        assert json.loads((out / "progress.jsonl").read_text().splitlines()[-1])["executions"] == answer["executions"]
    finally:
        subprocess.run(["umount", "--lazy", str(out)], check=False)
