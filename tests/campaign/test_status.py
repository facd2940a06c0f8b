"""What `ebsfuzz status` says, about a campaign that runs and one that has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from campaign import campaign_folder
from campaign.campaign_folder import campaign_around
from campaign.cli import call
from campaign.statistics import Identity, Statistics


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A campaign with a worker, a finding, and some news."""
    opened = Statistics(
        tmp_path, Identity(target="lifecycle", environment="hostile", switches=("late-peer",), fault="f")
    )
    limits: dict[str, Any] = {"designs": ("disconnect", "exit-callback"), "jobs": 2, "max_time_s": 60, "runs": None}
    opened.begin_session(**limits, seed=None, guided=True, pid=1)
    worker = opened.add_worker("disconnect", "disconnect-000001")
    opened.update_worker(worker, executions=1234, seconds=10.0, edges=56, features=78, rss_mb=90, news="#9 NEW")
    words = ("oracle", "rule", "agent", "subject", "source", "expected", "seen")
    named = {name: name for name in words}
    finding = opened.add_finding(design="disconnect", signature="a/b/c/d", note=False, raw=b"", first_seen=1.0, **named)
    opened.see(finding, worker, count=5, last_seen=2.0, orders=("edk2",), environments=("hostile",), switches=())
    opened.add_progress(
        seconds=10.0, design="disconnect", executions=1234, edges=56, features=78, corpus_size=9, findings=1
    )
    opened.add_event("finding", "disconnect", "a/b/c/d")
    opened.update_session(10.0)
    opened.close()
    return tmp_path


def test_a_campaign_that_runs_is_shown_with_its_workers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one JSON object, while somebody else works on it."""
    with campaign_folder.opened(folder):
        assert call(["status", str(folder), "--format", "json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["running"], status["ended"], status["seconds"], status["executions"]) == (True, "", 10.0, 1234)
    assert (status["target"], status["environment"], status["switches"]) == ("lifecycle", "hostile", ["late-peer"])
    assert [(one["design"], one["executions"], one["corpus_size"], one["findings"]) for one in status["designs"]] == [
        ("disconnect", 1234, 9, 1),
        ("exit-callback", 0, 0, 0),
    ]
    assert [(one["executions_per_second"], one["rss_mb"], one["news"]) for one in status["workers"]] == [
        (123.4, 90, "#9 NEW")
    ]
    (finding,) = status["findings"]
    assert (finding["signature"], finding["count"], finding["state"], finding["operations"]) == (
        "a/b/c/d",
        5,
        "waiting",
        None,
    )
    assert [one["text"] for one in status["news"]] == ["a/b/c/d"]


def test_a_campaign_that_was_killed_is_said_to_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As tables for people; no worker runs any more."""
    assert call(["status", str(folder)]) == 0
    text = capsys.readouterr().out
    assert f"{folder}: killed, lifecycle, hostile, late-peer, f; 10 s in 1 session, 1,234 executions (123/s)" in text
    for word in ("designs", "disconnect", "exit-callback", "1,234", "findings", "a/b/c/d", "waiting", "ago  finding: "):
        assert word in text
    assert "workers" not in text


def test_a_folder_without_a_campaign_is_the_users_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2."""
    assert call(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"ebsfuzz: {tmp_path}: no campaign: campaign.sqlite is missing\n"


def test_a_folder_inside_of_a_campaign_belongs_to_it(folder: Path) -> None:
    """So that nobody minimizes the corpus of a campaign that runs."""
    (folder / "corpus" / "lifecycle").mkdir(parents=True)
    assert campaign_around(folder / "corpus" / "lifecycle") == folder == campaign_around(folder)
    assert campaign_around(folder.parent) is None
    with campaign_folder.opened(folder):
        assert call(["minimize", "--corpus", str(folder / "corpus" / "lifecycle")]) == 2
