"""Replay: verdicts, what stands for what, and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from campaign.replay import as_object, is_failure, replay, scenarios_at, story_of, verdict_of
from campaign.reproducer import write
from fuzz_targets import codec, scenario_yaml
from fuzz_targets.harness import Verdict
from fuzz_targets.input_files import InputError
from oracles.finding import Finding
from reference_impl.scenario import Scenario, operation, scenario
from reference_impl.trace import Kind, Trace

ERROR = Finding("hand-over", "left-live", "UEFI 2.10 §7.4.6", "XenBusDxe", "ring", 0, "Nothing.", "A ring.")
SECOND = replace(ERROR, subject="grant-table", seen="A table.")
NOTE = Finding(
    "memory-services", "frees-inside", "UEFI 2.10 §7.1.3", "Drv", "CloseEvent", 1, "None.", "One.", note=True
)
EXIT = scenario(design="disconnect", operations=(operation("exit"),))
EMPTY = scenario(design="disconnect")


def run(candidate: Scenario) -> Verdict:
    """Two records; an exit has the error and a note, a connect the note alone, any other operation nothing."""
    trace = Trace()
    trace.add(Kind.EXIT, "os-loader", "exit-group")
    trace.add(Kind.EXIT, "os-loader", "runtime")
    kinds = [step.kind for step in candidate.operations]
    return Verdict(trace, [ERROR, SECOND] * ("exit" in kinds) + [NOTE] * bool({"exit", "connect"} & set(kinds)))


def results(*paths: Path) -> list[tuple[str, str]]:
    """Names and verdicts."""
    return [(replayed.path.name, replayed.verdict) for replayed in replay(paths, run)]


def put(path: Path, content: Scenario) -> Path:
    """A scenario file, in the form that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        path.write_bytes(codec.encode(content))
    else:
        path.write_text(scenario_yaml.dump(content))
    return path


def reproducer(folder: Path, finding: Finding = ERROR, content: Scenario = EXIT) -> Path:
    """A reproducer of `finding` with that scenario."""
    path = write(folder, EXIT, finding.signature, b"", Verdict(run(EXIT).trace, [finding]), orders=())
    put(path / "scenario.yaml", content)
    return path


def test_a_scenario_with_an_error_fails(tmp_path):
    """In YAML and in bytes."""
    assert results(put(tmp_path / "a.yaml", EXIT), put(tmp_path / "a.bin", EXIT)) == [
        ("a.yaml", "FAILED"),
        ("a.bin", "FAILED"),
    ]


def test_a_scenario_without_an_error_passes(tmp_path):
    """A note is none."""
    connect = scenario(design="disconnect", operations=(operation("connect"),))
    assert results(put(tmp_path / "a.yaml", EMPTY), put(tmp_path / "b.yaml", connect)) == [
        ("a.yaml", "PASSED"),
        ("b.yaml", "PASSED"),
    ]


def test_a_reproducer_fails_while_its_finding_is_there(tmp_path):
    """Also where the finding is a note: it was recorded, and it is still there."""
    one, two = reproducer(tmp_path), reproducer(tmp_path, NOTE)
    assert results(one, two) == [(one.name, "FAILED"), (two.name, "FAILED")]


def test_a_reproducer_is_fixed_when_its_finding_is_gone(tmp_path):
    """Other findings are listed and do not make it fail."""
    other = replace(ERROR, subject="something else")
    assert results(reproducer(tmp_path, content=EMPTY)) == [
        ("disconnect--hand-over--left-live--XenBusDxe--ring", "FIXED")
    ]
    (replayed,) = replay([reproducer(tmp_path, other)], run)
    assert (replayed.verdict, len(replayed.findings)) == ("FIXED", 3)


def test_a_target_s_own_oracle_judges_its_reproducers(tmp_path, monkeypatch):
    """The canary's finding is none of the oracles'."""
    from fuzz_targets import registry

    planted = replace(registry.TARGETS["canary"], planted=lambda candidate, trace: [ERROR])
    monkeypatch.setitem(registry.TARGETS, "canary", planted)
    path = write(tmp_path, EMPTY, ERROR.signature, b"", Verdict(Trace(), [ERROR]), orders=(), target="canary")
    (replayed,) = replay([path], lambda candidate: Verdict(Trace(), []))
    assert replayed.verdict == "FAILED"


def test_a_folder_stands_for_all_that_is_in_it(tmp_path):
    """Reproducers, scenarios and folders, in the order of their names; hidden ones are left out."""
    put(tmp_path / "seeds" / "b.bin", EMPTY)
    put(tmp_path / "seeds" / "deep" / "a.yaml", EXIT)
    put(tmp_path / "seeds" / ".hidden" / "c.yaml", EXIT)
    (tmp_path / "seeds" / ".gitignore").write_text("*")
    path = reproducer(tmp_path / "findings")
    assert results(tmp_path) == [(path.name, "FAILED"), ("b.bin", "PASSED"), ("a.yaml", "FAILED")]
    assert scenarios_at(path) == [path]


def test_the_story_marks_every_finding_and_ends_with_the_verdict(tmp_path):
    """Two findings of one step stand below each other."""
    (replayed,) = replay([put(tmp_path / "a.yaml", EXIT)], run)
    error = "error hand-over/left-live/XenBusDxe/ring: expected: Nothing. Seen: A ring. (UEFI 2.10 §7.4.6)"
    second = "error hand-over/left-live/XenBusDxe/grant-table: expected: Nothing. Seen: A table. (UEFI 2.10 §7.4.6)"
    note = "note memory-services/frees-inside/Drv/CloseEvent: expected: None. Seen: One. (UEFI 2.10 §7.1.3)"
    assert "\n".join(story_of(replayed)) == (
        "    step  phase    TPL          what happened\n"
        ">>>    0  BOOT     APPLICATION  ExitBootServices: exit-group\n"
        f"          >>> {error}\n"
        f"          >>> {second}\n"
        ">>>    1  BOOT     APPLICATION  ExitBootServices: runtime\n"
        f"          >>> {note}\n"
        "\n"
        f"step 0: {error}\n"
        f"step 0: {second}\n"
        f"step 1: {note}\n"
        f"FAILED {tmp_path / 'a.yaml'}: an oracle finds an error"
    )


def test_the_last_line_gives_the_reason(tmp_path):
    """Each verdict says why."""
    there, gone = reproducer(tmp_path / "1"), reproducer(tmp_path / "2", content=EMPTY)
    plain = put(tmp_path / "a.yaml", EMPTY)
    lasts = [list(verdict_of(replayed))[-1] for replayed in replay([there, gone, plain], run)]
    assert lasts == [
        f"FAILED {there}: {ERROR.signature} is still there",
        f"FIXED {gone}: {ERROR.signature} is gone",
        f"PASSED {plain}: no oracle finds an error",
    ]


def test_the_object_of_a_scenario_has_path_verdict_and_findings(tmp_path):
    """It is what stands in `scenarios` of the JSON answer."""
    (replayed,) = replay([put(tmp_path / "a.bin", EXIT)], run)
    found = as_object(replayed)
    assert {name: value for name, value in found.items() if name != "findings"} == {
        "path": str(tmp_path / "a.bin"),
        "verdict": "FAILED",
    }
    assert found["findings"][2] == {
        "oracle": "memory-services",
        "rule": "frees-inside",
        "signature": NOTE.signature,
        "agent": "Drv",
        "step": 1,
        "expected": "None.",
        "seen": "One.",
        "note": True,
    }
    assert len(found["findings"]) == 3


def test_one_failed_is_a_failure(tmp_path):
    """FIXED and PASSED are none."""
    there, gone = reproducer(tmp_path / "1"), reproducer(tmp_path / "2", content=EMPTY)
    plain = put(tmp_path / "a.yaml", EMPTY)
    assert not is_failure(replay([gone, plain], run))
    assert is_failure(replay([gone, there, plain], run))


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing", "missing.yaml", "missing.bin"])
def test_a_missing_path_is_one_line(tmp_path, name):
    """It names the path."""
    with pytest.raises(InputError, match=f"{name}: no such file"):
        list(replay([tmp_path / name], run))


def test_a_folder_without_scenarios_is_one_line(tmp_path):
    """Nothing to replay is not a success."""
    (tmp_path / ".gitignore").write_text("*")
    with pytest.raises(InputError, match="no scenario and no reproducer in it"):
        list(replay([tmp_path], run))


def test_junk_in_a_folder_is_one_line(tmp_path):
    """The file is named; nothing is left out in silence."""
    put(tmp_path / "a.yaml", EMPTY)
    (tmp_path / "notes.docx").write_text("junk")
    with pytest.raises(InputError, match=r"notes\.docx: suffix"):
        list(replay([tmp_path], run))


def test_an_unreadable_folder_is_one_line(tmp_path, monkeypatch):
    """The operating system's reason is in it."""

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        list(replay([tmp_path], run))


def test_a_reproducer_without_its_scenario_is_one_line(tmp_path):
    """A verdict alone cannot run."""
    path = reproducer(tmp_path)
    (path / "scenario.yaml").unlink()
    with pytest.raises(InputError, match=r"scenario\.yaml"):
        list(replay([path], run))
