"""What people see of a campaign: progress while it runs, then the table designs × rules and every finding.

Progress goes to standard error: tables that are drawn again and again on a terminal, elsewhere a line every few
seconds, and every minute after the first.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from campaign.durations import format_duration
from campaign.run import DesignFigures, FindingResult, Progress, Result
from campaign.triage import MINIMIZED
from oracles import ORACLES

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_LATER_LINES = 60.0  # after the first minute
_WIDTH_ELSEWHERE = 140  # columns where output is no terminal: nothing is cut off


def console_for(stream: str = "stdout") -> Console:
    """A console on standard output or standard error that wraps nothing where no terminal is."""
    file = sys.stdout if stream == "stdout" else sys.stderr
    width = None if file.isatty() else _WIDTH_ELSEWHERE
    return Console(file=file, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


class ProgressDisplay:
    """Shows progress while its `with` block runs; `show` takes what there is to show."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._next_line_s = SECONDS_BETWEEN_LINES
        self._first_s: float | None = None  # of the campaign, when this session began to show

    def __enter__(self) -> ProgressDisplay:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the drawing away; what comes after it stays."""
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show how far the campaign has come."""
        if self._first_s is None:
            self._first_s = progress.seconds
        if self._live is not None:
            self._live.update(_progress_view(progress), refresh=True)
        elif progress.seconds >= self._next_line_s:
            long = progress.seconds - self._first_s >= SECONDS_BETWEEN_LATER_LINES
            self._next_line_s = progress.seconds + (SECONDS_BETWEEN_LATER_LINES if long else SECONDS_BETWEEN_LINES)
            self._console.print(progress_line(progress), soft_wrap=True)


def progress_line(progress: Progress) -> str:
    """The whole progress in one line."""
    designs = progress.designs
    executions = sum(figures.executions for figures in designs)
    findings = ", ".join(f"{_name(figures.design)} {figures.findings}" for figures in designs)
    parts = [
        _time(progress),
        f"{executions:,} executions",
        f"{executions / progress.seconds if progress.seconds else 0:,.0f}/s",
        f"{sum(figures.edges for figures in designs):,} edges",
        f"{sum(figures.features for figures in designs):,} features",
        f"corpus {sum(figures.corpus_size for figures in designs):,}",
        f"findings: {findings}",
    ]
    if progress.minimizing:
        parts.append(f"minimizing {progress.minimizing}")
    return " · ".join(parts)


def _time(progress: Progress) -> str:
    if progress.seconds_left is None:
        return f"{format_duration(progress.seconds)} so far"
    return f"{format_duration(progress.seconds_left)} left"


def _progress_view(progress: Progress) -> Group:
    """Designs, then the workers that run, then the news: what stands in the log, too."""
    caption = f"{progress.minimizing} findings are being minimized" if progress.minimizing else None
    designs = Table(title=_time(progress), title_justify="left", caption=caption, caption_justify="left")
    designs.add_column("design")
    for heading in ("executions", "executions/s", "edges", "features", "corpus", "findings"):
        designs.add_column(heading, justify="right")
    for figures in progress.designs:
        designs.add_row(_name(figures.design), *_figures(figures), str(figures.findings))
    workers = Table()
    workers.add_column("worker")
    for heading in ("executions", "now/s", "edges", "features", "memory", "last news"):
        workers.add_column(heading, justify="right")
    for one in progress.workers:
        numbers = (f"{number:,.0f}" for number in (one.executions, one.rate, one.edges, one.features))
        news = f"{format_duration(one.news_s)} ago" if one.news else "–"
        workers.add_row(f"{one.number} {_name(one.design)}", *numbers, f"{one.rss_mb:,} MiB", news)
    shown_news = [Text(line, no_wrap=True, overflow="ellipsis") for line in progress.news]
    return Group(designs, *([workers] if progress.workers else []), *shown_news)


def _figures(figures: DesignFigures) -> tuple[str, ...]:
    numbers = (figures.executions, figures.executions_per_second, figures.edges, figures.features, figures.corpus_size)
    return tuple(f"{number:,.0f}" for number in numbers)


def _name(design: str) -> str:
    return design or "no design"


# ---- at the end ---------------------------------------------------------------------------------------------------


def show_result(result: Result, console: Console) -> None:
    """Print the figures, the table designs × rules, each finding with its reproducer, and what went wrong."""
    ended = "interrupted after" if result.interrupted else "done in"
    console.print(
        f"{result.settings.target}: {result.executions:,} executions, {ended} {format_duration(result.seconds)}"
        f" ({result.executions_per_second:,.0f}/s)",
        soft_wrap=True,
    )
    console.print(_rules_table(result))
    errors = [finding for finding in result.findings if not finding.finding.note]
    notes = [finding for finding in result.findings if finding.finding.note]
    for number, finding in enumerate(errors, 1):
        _show_finding(number, finding, console)
    if notes:
        console.print("\nNotes, which do not change the exit status:", style="bold")
        for finding in notes:
            console.print(f"   {finding.finding.signature} in {_name(finding.finding.design)}", soft_wrap=True)
            console.print(f"   {'replay':<10} {replay_command(finding.reproducer)}", soft_wrap=True)
    known = sum(finding.known for finding in errors)
    console.print(
        f"\n{len(errors) or 'no'} finding{'s' if len(errors) != 1 else ''}"
        + (f", {known} of them known" if known else "")
        + f"; corpus and reproducers are in {shown(result.settings.out)}",
        soft_wrap=True,
    )


def _rules_table(result: Result) -> Table:
    """A column for each design; figures, then a row for each rule that was broken and each family without."""
    table = Table(
        title="designs × rules: findings (executions that show one)", title_justify="left", caption_justify="left"
    )
    table.add_column("", overflow="fold")
    for figures in result.designs:
        table.add_column(_name(figures.design), justify="right", overflow="fold")
    headings = ("executions", "executions/s", "edges", "features", "corpus")
    for heading, *cells in zip(headings, *(_figures(figures) for figures in result.designs), strict=True):
        table.add_row(heading, *cells)
    table.add_section()
    for oracle, rule, note in _rows(result):
        cells = []
        for figures in result.designs:
            here = [
                finding.finding.count
                for finding in result.findings
                if (finding.finding.design, finding.finding.oracle) == (figures.design, oracle)
                and (finding.finding.rule, finding.finding.note) == (rule, note)
            ]
            cells.append(f"{len(here)} ({sum(here):,})" if here else "–")
        table.add_row(f"{oracle}/{rule}" + (" (note)" if note else "") if rule else oracle, *cells)
    return table


def _rows(result: Result) -> list[tuple[str, str, bool]]:
    """Oracle, rule ("" where no rule of the family was broken), and whether it is a note."""
    seen = sorted({(one.finding.oracle, one.finding.rule, one.finding.note) for one in result.findings})
    families = [*ORACLES, *dict.fromkeys(oracle for oracle, _, _ in seen if oracle not in ORACLES)]
    rows: list[tuple[str, str, bool]] = []
    for family in families:
        rows += [row for row in seen if row[0] == family] or [(family, "", False)]
    return rows


def _show_finding(number: int, finding: FindingResult, console: Console) -> None:
    record = finding.finding
    kind = "known" if finding.known else "finding"
    heading = f"{number}. {record.oracle}/{record.rule} in {_name(record.design)}: {record.agent}, {record.subject}"
    console.print(f"\n{heading}", soft_wrap=True, style="bold")
    orders = ", ".join(order if isinstance(order, str) else f"permutation {list(order)}" for order in record.orders)
    rows = {
        kind: record.signature,
        "seen in": f"{finding.finding.count:,} executions; notification order {orders}",
        "agent": record.agent,
        "expected": record.expected,
        "seen": f"{record.seen} ({record.source})",
        "reproducer": shown(finding.reproducer) + ("" if record.state == MINIMIZED else " (not minimized)"),
        "replay": replay_command(finding.reproducer),
    }
    for heading, text in rows.items():
        console.print(f"   {heading:<10} {text}", soft_wrap=True)


def shown(path: Path) -> str:
    """A path for people: relative where it lies below the current folder."""
    path = path.resolve()
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def program_command() -> list[str]:
    """How this program is called from the current folder: as `ebsfuzz` only where the shell finds this very one."""
    script = Path(sys.executable).parent / "ebsfuzz"
    found = shutil.which("ebsfuzz")
    if found and os.path.realpath(found) == os.path.realpath(script):
        return ["ebsfuzz"]
    if script.is_file():
        absolute = Path(os.path.abspath(script))  # not resolved: a virtual environment is its path
        cwd = Path.cwd()
        return [str(absolute.relative_to(cwd)) if absolute.is_relative_to(cwd) else str(absolute)]
    return [sys.executable, "-m", "campaign.cli"]


def replay_command(path: Path) -> str:
    """The command that replays a reproducer, as it can be pasted into the shell here."""
    return shlex.join([*program_command(), "replay", shown(path)])
