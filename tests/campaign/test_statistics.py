"""The statistics of a campaign: what is written is read again, of one campaign only, and documented."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from campaign import statistics
from campaign.exit_status import UsageProblem
from campaign.statistics import Identity, Statistics, read

IDENTITY = Identity(target="lifecycle", environment="conforming")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "campaigns.md"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Statistics]:
    """Statistics with one session."""
    made = Statistics(tmp_path, IDENTITY)
    begin(made)
    yield made
    made._connection.close()


def begin(opened: Statistics, **changes: Any) -> tuple[int, ...]:
    """Begin a session; the numbers of those that it goes on with."""
    values: dict[str, Any] = {"designs": ("disconnect",), "jobs": 1, "max_time_s": 60, "runs": None, "seed": 7}
    return tuple(one.id for one in opened.begin_session(**values | {"guided": True, "pid": 1} | changes))


def add_finding(opened: Statistics, signature: str = "tpl/not-restored/XenBusDxe/Start") -> int:
    """A finding that nobody has seen yet."""
    oracle, rule, agent, subject = signature.split("/")
    named = {"oracle": oracle, "rule": rule, "agent": agent, "subject": subject, "signature": signature}
    words = {"design": "disconnect", "source": "UEFI 2.10", "expected": "one", "seen": "two"}
    return opened.add_finding(first_seen=10.0, note=False, raw=b"raw", **named, **words)


def test_what_is_written_is_read_again(tmp_path: Path, opened: Statistics) -> None:
    """Every table, with lists, and what a finding's sightings come to."""
    workers = [opened.add_worker("disconnect", name) for name in ("a", "b")]
    opened.update_worker(workers[0], executions=50, seconds=5.0, edges=9, ended="ended at its limit")
    opened.update_worker(workers[1], executions=30)
    finding = add_finding(opened)
    opened.see(
        finding, workers[0], count=2, last_seen=11.5, orders=("edk2",), environments=("conforming",), switches=()
    )
    opened.see(
        finding, workers[0], count=3, last_seen=12.5, orders=("edk2",), environments=("conforming",), switches=()
    )
    opened.see(finding, workers[1], count=4, last_seen=11.0, orders=("fifo",), environments=(), switches=("peer",))
    opened.update_finding(finding, state="minimized", reliability=1.0, operations=2, orders=("edk2", (1, 0)))
    assert (opened.raw_of(finding), opened.count_of(finding)) == (b"raw", 7)
    figures = {"executions": 80, "edges": 9, "features": 0, "corpus_size": 0, "findings": 1}
    opened.add_progress(seconds=5.0, design="disconnect", **figures)
    opened.add_event("finding", "disconnect", "news")
    opened.update_session(5.0, "done")
    opened.close()

    record = read(tmp_path)
    assert (record.identity, record.seconds, record.executions) == (IDENTITY, 5.0, 80)
    assert record.designs == ("disconnect",)
    assert [(one.ended, one.executions_per_second) for one in record.workers] == [("ended at its limit", 10), ("", 0)]
    (found,) = record.findings
    assert (found.count, found.first_seen, found.last_seen, found.note) == (7, 10.0, 12.5, False)
    assert (found.seen_orders, found.seen_environments) == (("edk2", "fifo"), ("conforming",))
    assert (found.seen_switches, found.orders) == (("peer",), ("edk2", (1, 0)))
    assert [(one.executions, one.findings) for one in record.progress] == [(80, 1)]
    assert [(one.kind, one.text) for one in record.events] == [("finding", "news")]
    assert [(one.ended, one.guided) for one in record.sessions] == [("done", True)]


def test_what_is_not_committed_is_not_there(tmp_path: Path, opened: Statistics) -> None:
    """A reader sees the last commit, all of it, while the writer goes on."""
    opened.commit()
    opened.add_worker("disconnect", "a")
    assert read(tmp_path).workers == ()
    opened.commit()
    assert [one.folder for one in read(tmp_path).workers] == ["a"]


def test_a_session_goes_on_with_those_that_did_not_come_to_their_end(opened: Statistics) -> None:
    """Killed and stopped ones with the same limits, back to one that was done."""
    opened.update_session(60, "done")
    assert begin(opened) == ()
    opened.update_session(20)
    assert begin(opened) == (2,)
    opened.update_session(10, "stopped")
    assert begin(opened) == (2, 3)
    assert opened.seconds_before() == 90
    assert begin(opened, max_time_s=5) == ()
    assert begin(opened) == ()


def test_another_campaign_is_refused(tmp_path: Path, opened: Statistics) -> None:
    """The message names both."""
    opened.commit()
    with pytest.raises(
        UsageProblem, match=r"another command \(lifecycle, environment conforming; now canary, .*fault f"
    ):
        Statistics(tmp_path, Identity(target="canary", environment="conforming", fault="f"))
    assert read(tmp_path).identity == IDENTITY


def test_no_statistics_and_foreign_ones_are_the_users_to_mend(tmp_path: Path) -> None:
    """One line that names the file, for reader and writer."""
    with pytest.raises(UsageProblem, match=r"campaign\.sqlite is missing"):
        read(tmp_path)
    file = tmp_path / statistics.FILE
    file.write_bytes(b"no database, and long enough to be looked at" * 100)
    for attempt in (lambda: read(tmp_path), lambda: Statistics(tmp_path, IDENTITY)):
        with pytest.raises(UsageProblem, match=r"campaign\.sqlite: file is not a database"):
            attempt()
    file.unlink()
    Statistics(tmp_path, IDENTITY).close()
    other = sqlite3.connect(file)
    with other:
        other.execute("UPDATE campaign SET format = 99")
    other.close()
    for attempt in (lambda: read(tmp_path), lambda: Statistics(tmp_path, IDENTITY)):
        with pytest.raises(UsageProblem, match="format 99 is not one that this program reads"):
            attempt()


def test_a_full_disk_is_said_and_leaves_the_last_commit(tmp_path: Path, opened: Statistics) -> None:
    """Nothing that was committed is lost."""
    opened.commit()
    opened._connection.execute("COMMIT")
    opened._connection.execute("PRAGMA max_page_count = 12")
    opened._connection.execute("BEGIN")
    with pytest.raises(UsageProblem, match="database or disk is full"):
        opened.add_event("problem", "", "x" * 1_000_000)
    assert [one.id for one in read(tmp_path).sessions] == [1]


def test_every_column_is_documented() -> None:
    """docs/campaigns.md has a section for each table, with the columns of the schema."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(statistics.SCHEMA)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE sql NOT NULL")]
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))
    assert list(sections) == tables
    for table in tables:
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        rows = re.findall(r"^\| (`[^|]*) \|", sections[table], re.MULTILINE)
        assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == columns, table
    connection.close()


def test_versions_of_packages() -> None:
    """One that is not installed has none."""
    assert statistics.version_of("msgspec")
    assert statistics.version_of("no-such-package-anywhere") == ""
    assert sys.version_info >= (3, 11)
