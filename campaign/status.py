"""What `ebsfuzz status` says about a campaign, from another shell: as an object, and as lines and tables for people.

Everything comes from the statistics and from whether somebody holds the lock; the campaign notices nothing of it.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from campaign.campaign_folder import is_running
from campaign.durations import format_duration
from campaign.statistics import CampaignRecord, TriagedFinding, Worker, read

_NEWS_LINES = 8


def status_of(folder: Path) -> dict[str, Any]:
    """The state of the campaign in `folder`. Raises UsageProblem where there is none that can be read."""
    record = read(folder)
    running = is_running(folder)
    counts = Counter(finding.design for finding in record.findings)
    return {
        "folder": str(folder.resolve()),
        "running": running,
        **msgspec.to_builtins(record.identity),
        "sessions": len(record.sessions),
        "ended": record.sessions[-1].ended if record.sessions else "",
        "seconds": round(record.seconds, 1),
        "executions": record.executions,
        "executions_per_second": round(record.executions / record.seconds, 1) if record.seconds else 0.0,
        "designs": [_design(record, design, counts[design]) for design in record.designs],
        "workers": [
            {**msgspec.to_builtins(worker), "executions_per_second": round(worker.executions_per_second, 1)}
            for worker in _present(record, running)
        ],
        "findings": [_finding(folder, finding) for finding in record.findings],
        "news": [
            {"time": event.time, "kind": event.kind, "design": event.design, "text": event.text}
            for event in record.events[-_NEWS_LINES:]
        ],
    }


def show_status(status: dict[str, Any], console: Console) -> None:
    """Print what `status_of` gives."""
    state = "running" if status["running"] else {"": "killed"}.get(status["ended"], status["ended"])
    tested = [status["target"], status["environment"], *status["switches"], *filter(None, [status["fault"]])]
    console.print(
        f"{status['folder']}: {state}, {', '.join([*tested, *status['images']])}; "
        f"{format_duration(status['seconds'])} in {status['sessions']} session{'s' * (status['sessions'] != 1)}, "
        f"{status['executions']:,} executions ({status['executions_per_second']:,.0f}/s)",
        soft_wrap=True,
    )
    figures = ("executions", "executions_per_second", "edges", "features", "corpus_size", "findings")
    console.print(_table("designs", ("design", *figures), status["designs"]))
    if status["workers"]:
        columns = ("design", "executions", "executions_per_second", "edges", "features", "rss_mb", "rss_max_mb", "news")
        console.print(_table("workers", columns, status["workers"]))
    if status["findings"]:
        columns = ("design", "signature", "count", "state", "operations", "orders", "first seen", "last seen")
        rows = [
            {**one, "first seen": _ago(one["first_seen"]), "last seen": _ago(one["last_seen"])}
            for one in status["findings"]
        ]
        console.print(_table("findings", columns, rows))
    for event in status["news"]:
        place = f"{event['design']}: " if event["design"] else ""
        console.print(f"{_ago(event['time']):>12}  {event['kind']}: {place}{event['text']}", soft_wrap=True)


def _present(record: CampaignRecord, running: bool) -> list[Worker]:
    """The workers that run now."""
    last = record.sessions[-1].id if record.sessions else 0
    return [worker for worker in record.workers if running and worker.session == last and not worker.ended]


def _design(record: CampaignRecord, design: str, findings: int) -> dict[str, Any]:
    workers = [worker for worker in record.workers if worker.design == design]
    points = [point.corpus_size for point in record.progress if point.design == design]
    executions, seconds = sum(one.executions for one in workers), sum(one.seconds for one in workers)
    return {
        "design": design,
        "executions": executions,
        "executions_per_second": round(executions / seconds, 1) if seconds else 0.0,
        "edges": max((one.edges for one in workers), default=0),
        "features": max((one.features for one in workers), default=0),
        "corpus_size": points[-1] if points else 0,
        "findings": findings,
    }


def _finding(folder: Path, finding: TriagedFinding) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(finding)
    del plain["id"]
    return {**plain, "reproducer": str((folder / finding.reproducer).resolve()) if finding.reproducer else ""}


def _table(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        numbers = all(isinstance(row[column], int | float) for row in rows)
        table.add_column(
            column.replace("_per_", "/").replace("_", " "), justify="right" if numbers else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def _ago(moment: float) -> str:
    return f"{format_duration(time.time() - moment)} ago"
