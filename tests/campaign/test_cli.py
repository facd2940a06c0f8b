"""The command line, called inside this process: what each command says, and the status with which it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from campaign import cli, reproducer
from campaign.cli import What, call, descriptions
from fuzz_targets import codec, scenario_yaml
from fuzz_targets.harness import run_and_judge
from reference_impl.scenario import DESIGNS, operation, scenario

FAILING = scenario(
    design="disconnect", devices=("block",), operations=(operation("time"), operation("connect"), operation("exit"))
)
QUIET = scenario(design="reference-count", operations=(operation("connect"), operation("exit")))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a scenario that fails and one that passes."""
    (tmp_path / "failing.yaml").write_text(scenario_yaml.dump(FAILING))
    (tmp_path / "quiet.bin").write_bytes(codec.encode(QUIET))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command that has to end with `status`."""
    ended = call(list(arguments))
    out, err = capsys.readouterr()
    assert ended == status, err
    return out, err


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that cannot do what it was asked for."""
    out, err = answer(capsys, *arguments, status=2)
    assert out == ""
    assert err.startswith("ebsfuzz: ")
    assert err.count("\n") == 1
    return err.removeprefix("ebsfuzz: ").rstrip("\n")


# ---- help -------------------------------------------------------------------------------------------------------------


def every_command() -> dict[str, Any]:
    """The commands by name."""
    return dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_the_commands_are_those_of_the_design() -> None:
    """What comes later is not offered."""
    names = "convert coverage inspect list minimize replay report run score status"
    assert sorted(every_command()) == names.split()


def test_a_score_runs_trials_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One trial of one engine on one fault; the same command again makes none."""
    command = ["score", "--fault", "bus-forgets-reset", "--engine", "random", "--trials", "1"]
    command += ["--out", str(tmp_path / "out"), "--format", "json"]
    out, err = answer(capsys, *command)
    [group] = json.loads(out.splitlines()[-1])["faults"]
    assert (group["fault"], group["engine"], group["trials"], group["found"]) == ("bus-forgets-reset", "random", 1, 1)
    assert "bus-forgets-reset, random, seed 1: found after" in err
    assert "<title>ebsfuzz score</title>" in (tmp_path / "out" / "score.html").read_text()
    again, err = answer(capsys, *command)
    assert again == out
    assert "seed 1" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fault", "bus-forget-reset"], "--fault: unknown 'bus-forget-reset' (did you mean 'bus-forgets-reset'?)"),
        (["--engine", "afl"], "--engine: unknown 'afl'; one of ebsfuzz, random, bytes, hypothesis, hypofuzz"),
        (["--cap", "soon"], "--cap: "),
    ],
)
def test_a_score_with_a_wrong_option_is_one_message(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written."""
    assert complaint(capsys, "score", *options, "--out", str(tmp_path / "out")).startswith(message)
    assert not (tmp_path / "out").exists()


def test_run_has_the_options_of_the_design() -> None:
    """Each under its full name."""
    options = {name for parameter in every_command()["run"].params for name in parameter.opts}
    words = "target design environment switch fault corpus max-time runs timeout jobs seed out baseline format"
    assert options >= {f"--{word}" for word in words.split()}


@pytest.mark.parametrize("name", sorted(every_command()))
def test_every_command_and_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Typer shows it with --help."""
    command = every_command()[name]
    assert command.help
    for parameter in command.params:
        assert parameter.help, parameter.name
    out, _ = answer(capsys, name, "--help")
    assert "Usage: ebsfuzz " in out


def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts rely on them."""
    out, _ = answer(capsys, "--help")
    assert "Exit status: 0 nothing found" in out


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """It is wrong usage all the same."""
    out, err = answer(capsys, status=2)
    assert "Usage: ebsfuzz" in out + err


# ---- wrong usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rnu", "No such command 'rnu'. Did you mean 'run'?"),
        ("run --desing x", "--design"),
        ("run extra", "unexpected extra argument"),
        ("run --design disconect", "--design: unknown 'disconect' (did you mean 'disconnect'?)"),
        ("run --target lifecicle", "--target: unknown 'lifecicle' (did you mean 'lifecycle'?)"),
        ("run --environment conformin", "--environment: unknown 'conformin' (did you mean 'conforming'?)"),
        ("run --switch loud", "--switch: unknown 'loud'"),
        ("run --switch timer-ticks", "--switch: the conforming environment has none; --environment hostile has"),
        (
            "run --target xenstore_ring --environment hostile",
            "--environment: the target xenstore_ring has only the conforming one",
        ),
        ("run --fault bus-resets-twize", "(did you mean 'bus-resets-twice'?)"),
        ("run --target boot_services --design disconnect", "--design: the target boot_services has no designs"),
        ("run --max-time 5x", "--max-time: '5x' is no duration"),
        ("run --max-time 0", "--max-time: '0' is no time at all"),
        ("run --timeout x", "--timeout: 'x' is no duration"),
        ("run --runs 0", "'--runs'"),
        ("run --runs many", "'--runs'"),
        ("run --jobs 0", "'--jobs'"),
        ("run --seed 0", "'--seed'"),
        ("run --seed 4294967296", "'--seed'"),
        ("run --format xml", "'--format'"),
        ("run --baseline missing", "missing: cannot be read: No such file"),
        ("run --corpus missing --max-time 1", "missing: no such folder"),
        ("run --out quiet.bin --max-time 1", "cannot be written"),
        ("replay", "PATH"),
        ("replay missing", "missing: no such file"),
        ("replay failing.yaml missing.bin", "missing.bin: no such file"),
        ("replay empty", "empty: a folder with no scenario"),
        ("minimize", "PATH"),
        ("minimize empty", "empty: a folder without scenario.yaml"),
        ("minimize quiet.bin", "quiet.bin: no oracle finds anything in it"),
        ("minimize failing.yaml --signature a/b/c/d", "--signature: unknown 'a/b/c/d'"),
        ("minimize failing.yaml --out smallest.txt", "smallest.txt: suffix '.txt'"),
        ("convert failing.yaml", "OUT"),
        ("convert missing.yaml x.bin", "missing.yaml: no such file"),
        ("convert failing.yaml x", "x: no suffix; a scenario is written as .yaml or .bin"),
        ("convert failing.yaml nowhere/x.bin", "nowhere/x.bin: cannot be written: No such file"),
        ("convert failing.yaml folder.yaml", "folder.yaml: a folder"),
        ("coverage missing", "missing"),
        ("coverage quiet.bin --against missing.json", "missing.json: cannot be read: No such file"),
        ("list", "WHAT"),
        ("list orcles", "WHAT: unknown 'orcles' (did you mean 'oracles'?)"),
        (
            "list zzzz",
            "WHAT: unknown 'zzzz'; one of targets, designs, environments, switches, oracles, faults, services",
        ),
    ],
)
def test_wrong_usage_is_one_line(files: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    """It says what is wrong, with near misses for names, and nothing is written."""
    (files / "empty").mkdir()
    (files / "folder.yaml").mkdir()
    before = sorted(files.rglob("*"))
    assert message in complaint(capsys, *arguments.split())
    assert sorted(files.rglob("*")) == before


def test_an_error_of_our_own_is_shown_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its traceback, and a status that is nobody else's."""
    monkeypatch.setattr(cli, "descriptions", lambda what: 1 // 0)
    _, err = answer(capsys, "list", "targets", status=3)
    assert "Traceback" in err
    assert err.endswith("ebsfuzz: ebsfuzz itself failed: ZeroDivisionError: integer division or modulo by zero\n")


def test_an_interrupted_command_has_no_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A campaign handles Ctrl-C itself; any other command just ends, with the status that shells have for it."""

    def interrupted(what: What) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "descriptions", interrupted)
    answer(capsys, "list", "targets", status=130)


def test_run_says_what_is_missing_without_atheris(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what works without it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, err = answer(capsys, "run", status=3)
    assert "fuzzing needs atheris, and it is not installed" in err
    assert "--unguided" in err
    assert not (files / "campaign-out").exists()


# ---- list -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", list(What))
def test_list_has_a_sentence_for_every_name(what: What, capsys: pytest.CaptureFixture[str]) -> None:
    """As lines, and as an array of objects."""
    text, _ = answer(capsys, "list", what)
    out, err = answer(capsys, "list", what, "--format", "json")
    entries = json.loads(out)
    assert err == ""
    assert [(one["name"], one["description"]) for one in entries] == list(descriptions(what).items())
    lines = text.splitlines()
    assert len(lines) == len(entries) > 0
    for line, one in zip(lines, entries, strict=True):
        assert re.fullmatch(rf"{re.escape(one['name'])} +{re.escape(one['description'])}", line)
        assert len(one["description"]) > 5


def test_services_are_told_apart() -> None:
    """By who answers, and with what they may refuse."""
    services = descriptions(What.SERVICES)
    assert services["AllocatePool"] == "boot service; can be made to fail with EFI_OUT_OF_RESOURCES"
    assert services["EVTCHNOP_send"] == "hypercall; can be made to fail with -22"
    assert services["XS_RM"] == "xenstore request; can be made to fail with ENOENT, EACCES"
    assert services["RaiseTPL"] == "boot service; cannot fail"


def test_designs_are_listed_with_their_world() -> None:
    """As scenarios name them."""
    listed = descriptions(What.DESIGNS)
    assert list(listed) == list(DESIGNS)
    assert list(DESIGNS)[:4] == ["disconnect", "exit-callback", "reference-count", "shipped"]
    assert listed["disconnect"].startswith("platform: ")
    assert listed["shipped"].startswith("efi-image: ")


# ---- replay -----------------------------------------------------------------------------------------------------------


def test_replay_shows_timeline_and_verdict(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FAILED makes the status 1."""
    out, err = answer(capsys, "replay", "failing.yaml", status=1)
    assert err == ""
    assert "AllocatePool" in out
    assert out.splitlines()[-1] == "FAILED failing.yaml: an oracle finds an error"
    brief, _ = answer(capsys, "replay", "failing.yaml", "quiet.bin", "--brief", status=1)
    assert len(brief) < len(out) / 2
    assert "PASSED quiet.bin: " in brief


def test_replay_of_what_keeps_the_rules_ends_with_0(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing found."""
    out, _ = answer(capsys, "replay", "quiet.bin")
    assert out.splitlines()[-1].startswith("PASSED quiet.bin")


def test_replay_answers_in_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on standard output; lines for people on standard error."""
    out, err = answer(capsys, "replay", "failing.yaml", "quiet.bin", "--format", "json", status=1)
    failing, quiet = json.loads(out)["scenarios"]
    assert (failing["path"], failing["verdict"]) == ("failing.yaml", "FAILED")
    assert "memory-services/direct-call/XenBusDxe/AllocatePool" in [one["signature"] for one in failing["findings"]]
    assert (quiet["path"], quiet["verdict"], quiet["findings"]) == ("quiet.bin", "PASSED", [])
    assert "FAILED failing.yaml" in err


def test_a_folder_of_reproducers_is_a_regression_suite(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FAILED or FIXED for each; the status is 1 as long as one of them fails, and 0 when all are fixed."""
    found = run_and_judge(FAILING)
    for finding in found.findings[:3]:
        reproducer.write(files / "suite", FAILING, finding.signature, b"", found, orders=())
    first, *others = sorted((files / "suite").iterdir())
    fixed = scenario_yaml.dump(FAILING).replace("disconnect", "reference-count")
    for path in others:
        (path / "scenario.yaml").write_text(fixed)
    out, _ = answer(capsys, "replay", "suite", "--brief", status=1)
    verdicts = re.findall(r"^(FAILED|FIXED) (\S+):", out, re.MULTILINE)
    assert verdicts == [("FAILED", f"suite/{first.name}"), *(("FIXED", f"suite/{path.name}") for path in others)]
    (first / "scenario.yaml").write_text(fixed)
    out, _ = answer(capsys, "replay", "suite", "--format", "json")
    assert [one["verdict"] for one in json.loads(out)["scenarios"]] == ["FIXED"] * 3


# ---- coverage ---------------------------------------------------------------------------------------------------------


def test_coverage_says_what_one_corpus_reached_and_another_did_not(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In lines, branches and behaviour; the whole measurement is in a file."""
    out, err = answer(
        capsys, "coverage", "failing.yaml", "--against", "quiet.bin", "--json", "all.json", "--format", "json"
    )
    told = json.loads(out)
    assert told["scenarios"] == 1
    assert told["behaviour"]["near misses"]["event-lifetime"]["a driver closes an event in its own notification"] == 1
    assert "XS_WRITE = OK" in told["difference"]["here"]["behaviour"]["services × statuses"]
    assert "against quiet.bin:\n  only here: " in err
    assert re.search(r"near misses \d+ of \d+", err)
    assert json.loads((files / "all.json").read_text())["behaviour"] == told["behaviour"]


# ---- minimize and convert ---------------------------------------------------------------------------------------------


def test_minimize_prints_the_smallest_scenario(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the finding that was asked for, or the first that is no note."""
    wanted = "memory-services/direct-call/XenBusDxe/FreePool"
    out, err = answer(capsys, "minimize", "failing.yaml", "--signature", wanted)
    assert [step.kind for step in scenario_yaml.load(out, "it").operations] == ["connect", "exit"]
    assert err == f"kept: {wanted}; operations: 3 before, 2 now\n"
    _, err = answer(capsys, "minimize", "failing.yaml")
    assert "frees-inside" not in err


def test_minimize_writes_a_file_or_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The form is what the suffix says."""
    out, _ = answer(capsys, "minimize", "failing.yaml", "--out", "smallest.bin", "--format", "json")
    told = json.loads(out)
    smallest = codec.decode((files / "smallest.bin").read_bytes())
    assert told["operations"] == len(smallest.operations) == 2
    assert scenario_yaml.load(told["scenario"], "it") == smallest
    assert told["signature"].count("/") >= 3
    out, _ = answer(capsys, "minimize", "failing.yaml", "--out", "smallest.yaml")
    assert out == ""
    assert scenario_yaml.load((files / "smallest.yaml").read_text(), "it") == smallest


def test_convert_goes_both_ways(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost, and nothing is said."""
    assert answer(capsys, "convert", "failing.yaml", "x.bin") == ("", "")
    assert answer(capsys, "convert", "x.bin", "y.yml") == ("", "")
    assert (files / "x.bin").read_bytes() == codec.encode(FAILING)
    assert (files / "y.yml").read_text() == (files / "failing.yaml").read_text()
