"""The program itself, as people and scripts call it: exit status, standard output, signals, another folder, a full disk."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz_targets.basics import opening
from fuzz_targets.input_files import read_scenario
from fuzz_targets.registry import TARGETS

ROOT = Path(__file__).resolve().parent.parent.parent
ALLOCATES = "memory-services/direct-call/XenBusDxe/AllocatePool"

needs_atheris = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="no atheris on this machine")


def environment_with(**changes: str) -> dict[str, str]:
    """The environment of a program that is not measured: measuring makes the model several times slower."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "EBSFUZZ_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | changes


def ebsfuzz(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "campaign.cli", *arguments],
        cwd=folder,
        env=environment_with(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def answer_of(ended: subprocess.CompletedProcess[str], status: int) -> dict[str, Any]:
    """The JSON object that ends standard output."""
    assert ended.returncode == status, ended.stderr
    (line,) = ended.stdout.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer


# ---- quick commands ---------------------------------------------------------------------------------------------------


def test_help_is_quick_because_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """Neither the model nor the engine."""
    code = (
        "import sys, campaign.cli; sys.exit(any(m.split('.')[0] in {'atheris', 'reference_impl'} for m in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment_with(), check=False)
    assert ended.returncode == 0


def test_wrong_usage_is_one_line_on_standard_error(tmp_path: Path) -> None:
    """Status 2, and standard output stays empty for whoever reads JSON from it."""
    ended = ebsfuzz(tmp_path, "run", "--design", "disconect", "--format", "json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "ebsfuzz: --design: unknown 'disconect' (did you mean 'disconnect'?)\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`ebsfuzz list services | head -1` shows no traceback."""
    command = f"{sys.executable} -m campaign.cli list services | head -n 1"
    ended = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment_with(), capture_output=True, text=True, check=False
    )
    assert ended.stdout.startswith("AllocatePool")
    assert ended.stderr == ""


# ---- run --------------------------------------------------------------------------------------------------------------


@needs_atheris
def test_run_finds_what_the_shipped_design_does(tmp_path: Path) -> None:
    """Status 1, figures, and reproducers that replay from another folder, with another hash seed."""
    ended = ebsfuzz(tmp_path, "run", "--design", "disconnect", "--runs", "300", "--format", "json", "--seed", "1")
    answer = answer_of(ended, 1)
    assert answer["executions"] >= 300
    assert answer["executions_per_second"] > 0
    assert answer["edges"] > 0
    assert answer["corpus_size"] > 0
    found = {one["signature"]: one for one in answer["findings"]}
    assert {one["rule"] for one in answer["findings"]} >= {"direct-call", "allocates-inside"}
    assert all(one["design"] == "disconnect" and one["count"] > 0 for one in answer["findings"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = found[ALLOCATES]["reproducer"]
    for path in (place, f"{place}/scenario.yaml", f"{place}/scenario.bin", f"{place}/raw.bin"):
        again = ebsfuzz(elsewhere, "replay", path, "--format", "json", PYTHONHASHSEED="77")
        (scenario,) = answer_of(again, 1)["scenarios"]
        assert scenario["verdict"] == "FAILED"
        assert ALLOCATES in [one["signature"] for one in scenario["findings"]]


@needs_atheris
def test_run_prints_a_table_and_commands_that_work(tmp_path: Path) -> None:
    """All designs side by side; the replay command runs as it is printed."""
    ended = ebsfuzz(tmp_path, "run", "--runs", "100")
    assert ended.returncode == 1, ended.stderr
    assert re.search(r"disconnect.*exit-callback.*reference-count", ended.stdout)
    assert "memory-services/direct-call" in ended.stdout
    commands = re.findall(r"^ +replay +(.+)$", ended.stdout, re.MULTILINE)
    assert len(commands) == len(set(commands)) > 3
    again = subprocess.run(
        f"{commands[0]} --brief", shell=True, cwd=tmp_path, env=environment_with(), capture_output=True, check=False
    )
    assert again.returncode == 1
    assert b"FAILED" in again.stdout


@needs_atheris
def test_run_of_a_design_that_keeps_the_rules_ends_with_0(tmp_path: Path) -> None:
    """Nothing found."""
    arguments = ("--design", "reference-count", "--design", "exit-callback", "--runs", "200", "--format", "json")
    answer = answer_of(ebsfuzz(tmp_path, "run", *arguments), 0)
    assert answer["findings"] == []
    assert answer["executions"] >= 400


@needs_atheris
def test_the_canary_is_found(tmp_path: Path) -> None:
    """A fuzzer that finds nothing looks like a program without bugs; and its reproducer replays, too."""
    arguments = ("--target", "canary", "--design", "reference-count", "--max-time", "10", "--runs", "2000")
    answer = answer_of(ebsfuzz(tmp_path, "run", *arguments, "--format", "json"), 1)
    (finding,) = answer["findings"]
    assert (finding["oracle"], finding["design"]) == ("canary", "reference-count")
    assert ebsfuzz(tmp_path, "replay", finding["reproducer"]).returncode == 1


@needs_atheris
def test_a_blind_fuzzer_is_a_failure(tmp_path: Path) -> None:
    """Status 3, and it does not take its minute."""
    ended = ebsfuzz(tmp_path, "run", EBSFUZZ_INSTRUMENT="none")
    assert ended.returncode == 3
    assert "ebsfuzz: the fuzzer is blind" in ended.stderr


def test_unguided_generation_needs_no_feedback(tmp_path: Path) -> None:
    """The same seed gives the same findings, as often."""
    arguments = ("run", "--unguided", "--design", "disconnect", "--runs", "60", "--seed", "5", "--format", "json")
    first = answer_of(ebsfuzz(tmp_path, *arguments, EBSFUZZ_INSTRUMENT="none"), 1)
    again = answer_of(ebsfuzz(tmp_path, *arguments, "--out", "other"), 1)
    assert (first["executions"], first["edges"]) == (60, 0)
    counts = [(one["signature"], one["count"]) for one in first["findings"]]
    assert counts == [(one["signature"], one["count"]) for one in again["findings"]]


def test_every_input_that_broke_a_worker_down_is_kept(tmp_path: Path) -> None:
    """Also where several workers do, each over an input of its own, and libFuzzer has no part in it."""
    (tmp_path / "sitecustomize.py").write_text("import oracles\noracles.ORACLES['tpl'] = lambda reading: 1 / 0\n")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    ended = ebsfuzz(tmp_path, "run", "--unguided", "--runs", "5", "--seed", "1", PYTHONPATH=path)
    assert ended.returncode == 3
    assert "it crashed; the input is kept in campaign-out/crashes/crash-" in ended.stderr
    kept = [each for each in (tmp_path / "campaign-out" / "crashes").iterdir() if each.suffix != ".log"]
    assert {read_scenario(each).design for each in kept} == {"disconnect", "exit-callback", "reference-count"}


def test_a_baseline_makes_the_status_0(tmp_path: Path) -> None:
    """The answer of an earlier run is a baseline: everything is still counted and shown."""
    arguments = ("run", "--unguided", "--design", "disconnect", "--runs", "40", "--seed", "5", "--format", "json")
    first = ebsfuzz(tmp_path, *arguments)
    (tmp_path / "known.json").write_text(first.stdout)
    again = answer_of(ebsfuzz(tmp_path, *arguments, "--baseline", "known.json"), 0)
    assert len(again["findings"]) == len(answer_of(first, 1)["findings"]) > 0


@pytest.mark.parametrize(
    ("form", "read"),
    [("sarif", json.loads), ("junit", ElementTree.fromstring), ("markdown", lambda text: text.index("## ebsfuzz"))],
)
def test_a_document_for_ci_is_all_of_standard_output(tmp_path: Path, form: str, read: Callable[[str], object]) -> None:
    """What is for people goes to standard error, and the status is the same as ever."""
    arguments = ("run", "--unguided", "--design", "disconnect", "--runs", "8", "--seed", "5", "--out", "out")
    ended = ebsfuzz(tmp_path, *arguments, "--format", form)
    assert ended.returncode == 1, ended.stderr
    read(ended.stdout)
    assert "memory-services/direct-call" in ended.stdout
    assert "designs × rules" in ended.stderr
    assert "out/findings/disconnect--memory-services--direct-call" in ended.stdout


@pytest.mark.parametrize("guided", [pytest.param(True, marks=needs_atheris), False])
def test_ctrl_c_ends_with_the_summary_and_the_findings(tmp_path: Path, guided: bool) -> None:
    """The signal goes to the whole group, as a terminal sends it."""
    command = [sys.executable, "-m", "campaign.cli", "run", "--design", "disconnect", "--max-time", "100"]
    with subprocess.Popen(
        [*command, "--format", "json", *([] if guided else ["--unguided"])],
        cwd=tmp_path,
        env=environment_with(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:  # progress, a line every few seconds
            if "findings: disconnect" in line and "disconnect 0" not in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        else:
            pytest.fail("no progress with findings")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    answer = json.loads(out)
    assert answer["interrupted"]
    assert answer["executions"] > 0
    assert answer["problems"] == []
    assert all(Path(one["reproducer"], "scenario.yaml").is_file() for one in answer["findings"])
    assert "interrupted after" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_an_answer_that_has_no_room_is_said_in_one_line(tmp_path: Path) -> None:
    """Nobody takes half a JSON object for the whole."""
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "campaign.cli", "list", "targets"],
            cwd=tmp_path,
            env=environment_with(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (2, b"ebsfuzz: standard output: No space left on device\n")


@needs_atheris
def test_an_execution_that_crashes_is_a_failure_that_keeps_its_input(tmp_path: Path) -> None:
    """An error of the model itself is no finding. Here it is in the second execution, before libFuzzer begins."""
    (tmp_path / "sitecustomize.py").write_text(
        "import reference_impl.world as world\n"
        "def run(scenario, real=world.run):\n"
        "    assert len(scenario.operations) < 3, 'a bug of our own'\n"
        "    return real(scenario)\n"
        "world.run = run\n"
    )
    arguments = ("--design", "exit-callback", "--max-time", "30", "--format", "json")
    ended = ebsfuzz(tmp_path, "run", *arguments, PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))))
    problem, *_, given_up = answer_of(ended, 3)["problems"]
    assert "a bug of our own" in problem
    assert given_up.startswith("gave exit-callback up: its workers broke down 5 times in a row")
    kept = re.search(r"kept in (\S+)", problem)
    assert kept is not None
    assert read_scenario(tmp_path / kept[1]).operations == opening(TARGETS["lifecycle"], "exit-callback")[1].operations
