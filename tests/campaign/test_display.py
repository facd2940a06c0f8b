"""What people see: lines of progress, the table, and commands that work as they are printed."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from campaign import display
from campaign.run import DesignFigures, FindingResult, Progress, Result, Settings, WorkerFigures
from campaign.statistics import TriagedFinding


def console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    """A console that writes into a buffer."""
    buffer = io.StringIO()
    made = Console(file=buffer, width=120, force_terminal=terminal, markup=False, highlight=False, emoji=False)
    return made, buffer


def finding(design: str, rule: str, count: int, path: Path, **changes: Any) -> FindingResult:
    """A finding of the family memory-services, or of another that `changes` names."""
    oracle = changes.get("oracle", "memory-services")
    triaged = TriagedFinding(
        id=1,
        design=design,
        oracle=oracle,
        rule=rule,
        source="UEFI 2.10 §7.1.1",
        agent="XenBusDxe",
        subject="AllocatePool",
        signature=f"{oracle}/{rule}/XenBusDxe/AllocatePool",
        expected="None.",
        seen="One.",
        note=changes.get("note", False),
        count=count,
        first_seen=0.0,
        last_seen=0.0,
        state=changes.get("state", "minimized"),
        reliability=1.0,
        operations=2,
        environment="conforming",
        switches=(),
        orders=("edk2", (1, 0)),
        seen_orders=("edk2", "permutation"),
        seen_environments=("conforming",),
        seen_switches=(),
        reproducer="findings/x",
    )
    return FindingResult(triaged, path, changes.get("known", False))


def result_of(tmp_path: Path, *findings: FindingResult, **changes: Any) -> Result:
    """A campaign of two designs."""
    designs = (
        DesignFigures("disconnect", 1000, 2.0, 30, 40, 50, 1),
        DesignFigures("exit-callback", 3000, 2.0, 31, 41, 51),
    )
    wanted = Settings(target="lifecycle", designs=("disconnect", "exit-callback"), out=tmp_path / "out")
    return Result(wanted, 2.0, designs, list(findings), **changes)


def shown(result: Result) -> str:
    """What `show_result` prints."""
    made, buffer = console()
    display.show_result(result, made)
    return buffer.getvalue()


def cells(text: str, row: str) -> list[str]:
    """The cells of the table's row that begins with `row`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {row} ")]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_progress_elsewhere_is_a_line_every_few_seconds() -> None:
    """Time left, executions, rate, edges, features, corpus, findings by design."""
    made, buffer = console()
    designs = (DesignFigures("disconnect", 1000, 2.0, 30, 40, 50, 4), DesignFigures("exit-callback", 500, 2.0, 1, 2, 3))
    with display.ProgressDisplay(made) as progress:
        progress.show(Progress(1.0, 59.0, designs))
        assert buffer.getvalue() == ""
        progress.show(Progress(5.0, 55.0, designs))
        progress.show(Progress(6.0, 54.0, designs))
        progress.show(Progress(10.0, 50.0, designs, minimizing=2))
    assert buffer.getvalue().splitlines() == [
        "55 s left · 1,500 executions · 300/s · 31 edges · 42 features · corpus 53 · findings: disconnect 4, exit-callback 0",
        "50 s left · 1,500 executions · 150/s · 31 edges · 42 features · corpus 53 · findings: disconnect 4, exit-callback 0"
        " · minimizing 2",
    ]


def test_lines_of_a_long_campaign_come_every_minute() -> None:
    """Seven days are ten thousand lines, not a hundred thousand. One that goes on begins with its total time."""
    made, buffer = console()
    with display.ProgressDisplay(made) as progress:
        for second in range(5000, 5000 + 301):
            progress.show(Progress(float(second), None, ()))
    assert len(buffer.getvalue().splitlines()) == 12 + 1 + 4


def test_progress_without_a_limit_says_how_long_it_has_been() -> None:
    """And a target without designs has none to name."""
    line = display.progress_line(Progress(0.0, None, (DesignFigures(""),)))
    assert line.startswith("0 s so far · 0 executions · 0/s")
    assert line.endswith("findings: no design 0")


def test_progress_on_a_terminal_is_a_view_that_goes_away() -> None:
    """Designs, workers and news, drawn at once and again."""
    made, buffer = console(terminal=True)
    worker = WorkerFigures(7, "disconnect", 4321, 98.4, 61, 72, 83, 140, "#9 NEW cov: 61", 3.0)
    figures = DesignFigures("disconnect", 1234, 2.0)
    with display.ProgressDisplay(made) as progress:
        progress.show(
            Progress(1.0, 59.0, (figures,), minimizing=1, workers=(worker,), news=("finding: disconnect: x",))
        )
    text = buffer.getvalue()
    words = ("59 s left", "disconnect", "1,234", "executions/s", "features", "1 findings are being minimized")
    for word in (*words, "7 disconnect", "4,321", "98", "140 MiB", "3 s ago", "finding: disconnect: x"):
        assert word in text


def test_the_table_has_designs_rules_and_families_without_findings(tmp_path: Path) -> None:
    """Signatures, and in how many executions they were seen."""
    path = tmp_path / "out" / "findings" / "x"
    text = shown(
        result_of(
            tmp_path,
            finding("disconnect", "direct-call", 900, path),
            finding("disconnect", "direct-call", 334, path),
            finding("exit-callback", "frees-inside", 7, path, note=True),
            finding("disconnect", "planted", 5, path, oracle="canary"),
        )
    )
    assert "lifecycle: 4,000 executions, done in 2 s (2,000/s)" in text
    assert cells(text, "executions") == ["1,000", "3,000"]
    assert cells(text, "executions/s") == ["500", "1,500"]
    assert cells(text, "memory-services/direct-call") == ["2 (1,234)", "–"]
    assert cells(text, "memory-services/frees-inside (note)") == ["–", "1 (7)"]
    assert cells(text, "connection-reset") == ["–", "–"]
    assert cells(text, "canary/planted") == ["1 (5)", "–"]


def test_every_finding_shows_reproducer_and_replay_command(tmp_path: Path) -> None:
    """Notes take two lines only, and do not count."""
    path = tmp_path / "out" / "findings" / "x"
    text = shown(
        result_of(
            tmp_path,
            finding("disconnect", "direct-call", 900, path, state="kept"),
            finding("disconnect", "allocates-inside", 1, path, known=True),
            finding("disconnect", "frees-inside", 7, path, note=True),
        )
    )
    assert "1. memory-services/direct-call in disconnect: XenBusDxe, AllocatePool" in text
    assert "900 executions; notification order edk2, permutation [1, 0]" in text
    assert f"   reproducer {path} (not minimized)" in text
    assert text.count(display.replay_command(path)) == 3
    assert "   known      memory-services/allocates-inside/XenBusDxe/AllocatePool" in text
    assert "Notes, which do not change the exit status:" in text
    assert "2 findings, 1 of them known; corpus and reproducers are in" in text


def test_an_interrupted_campaign_without_findings_says_so(tmp_path: Path) -> None:
    """The summary is there all the same."""
    text = shown(result_of(tmp_path, interrupted=True))
    assert "interrupted after 2 s" in text
    assert "\nno findings; " in text


# ---- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment with the program, in a checkout that is the current folder."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "ebsfuzz"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_command_is_the_environments_where_the_shell_does_not_find_it(environment: Path, tmp_path: Path) -> None:
    """Relative below the current folder, as is the reproducer; quoted where a shell needs it."""
    assert display.replay_command(tmp_path / "out put") == ".venv/bin/ebsfuzz replay 'out put'"


def test_the_command_is_absolute_from_elsewhere(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works as printed from there."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert display.replay_command(tmp_path / "out") == f"{environment / 'ebsfuzz'} replay {tmp_path / 'out'}"


def test_the_command_is_short_where_the_shell_finds_this_program(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an environment that is active."""
    monkeypatch.setenv("PATH", str(environment))
    assert display.replay_command(tmp_path / "out") == "ebsfuzz replay out"


def test_another_ebsfuzz_in_the_path_is_not_taken(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another version."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "ebsfuzz").write_text("#!/bin/sh\n")
    (other / "ebsfuzz").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert display.replay_command(tmp_path / "out") == ".venv/bin/ebsfuzz replay out"


def test_without_an_installed_program_the_module_is_called(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout that nobody installed."""
    (environment / "ebsfuzz").unlink()
    assert display.replay_command(tmp_path / "out") == f"{environment / 'python'} -m campaign.cli replay out"
