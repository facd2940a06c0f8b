"""The targets run as programs, with the real atheris: libFuzzer's own modes work, and feedback arrives."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz_targets
from fuzz_targets import codec
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import Scenario, designs_of, operation, scenario
from reference_impl.trace import Kind, Trace
from tests.guest.firmware import need_firmware

pytest.importorskip("atheris")

FOLDER = Path(fuzz_targets.__file__).parent
CONNECT_EXIT = (operation("connect"), operation("exit"))


def _run(folder: Path, target: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Measuring the coverage of instrumented code as well takes minutes, and says nothing that other tests do not.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.run(
        [FOLDER / f"{target}.py", "-timeout=60", *arguments],
        cwd=folder,
        env=inherited | {"PATH": path, "EBSFUZZ_INSTRUMENT": "", "EBSFUZZ_GUIDANCE": ""} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def _coverage(output: str) -> int:
    return max((int(found) for found in re.findall(r" cov: (\d+)", output)), default=0)


def test_every_target_is_a_program() -> None:
    """It is named for the target, can be executed, and says in its first line what runs it."""
    for name in TARGETS:
        path = FOLDER / f"{name.replace('-', '_')}.py"
        assert path.stat().st_mode & 0o111
        assert path.read_text().startswith("#!/usr/bin/env python3\n")


@pytest.mark.parametrize("name", ["lifecycle", "exit_boot_services", "boot_services", "xenstore_ring"])
def test_a_target_runs_with_feedback(tmp_path: Path, name: str) -> None:
    """Some runs find nothing, and libFuzzer sees new features all the time."""
    done = _run(tmp_path, name, "-runs=150", "-seed=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert _coverage(done.stderr) > 30


def test_a_blind_target_has_no_coverage(tmp_path: Path) -> None:
    """EBSFUZZ_INSTRUMENT=none takes all feedback away."""
    done = _run(tmp_path, "lifecycle", "-runs=100", EBSFUZZ_INSTRUMENT="none")
    assert done.returncode == 0
    assert _coverage(done.stderr) == 0


def test_smoke_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Two runs run the same scenarios and find nothing that is not known."""
    first, second = (_run(tmp_path, "smoke", "-runs=300") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr[-2000:]
    final = [re.findall(r"#300\s+DONE\s+(cov: \d+ ft: \d+ corp: \d+/\w+)", done.stderr) for done in (first, second)]
    assert final[0] == final[1] != []


def test_the_canary_is_found_and_its_crash_replays(tmp_path: Path) -> None:
    """Exit status 77, a file that fails again, and a minimization that works."""
    done = _run(tmp_path, "canary", "-runs=5000", "-seed=1")
    assert done.returncode == 77
    assert "canary/planted/canary/exit" in done.stdout
    [crash] = tmp_path.glob("crash-*")
    assert _run(tmp_path, "canary", crash.name).returncode == 77
    assert TARGETS["canary"].run(codec.decode(crash.read_bytes())).findings
    _run(tmp_path, "canary", "-minimize_crash=1", "-runs=200", "-seed=1", "-exact_artifact_path=small", crash.name)
    assert (tmp_path / "small").stat().st_size < crash.stat().st_size


def test_a_merge_keeps_what_is_worth_keeping(tmp_path: Path) -> None:
    """The merged corpus is not empty: a program that cannot start itself again would leave nothing and exit 0."""
    full, merged = tmp_path / "full", tmp_path / "merged"
    full.mkdir()
    merged.mkdir()
    for index in range(5):
        made = scenario(
            design="reference-count", devices=("block",) * min(index, 4), operations=CONNECT_EXIT[: 1 + index % 2]
        )
        (full / str(index)).write_bytes(codec.encode(made))
    done = _run(tmp_path, "lifecycle", "-merge=1", "merged", "full")
    assert done.returncode == 0, done.stderr[-2000:]
    assert 2 <= len(list(merged.iterdir())) <= 5


def test_the_program_for_real_drivers_fails_on_what_they_break(tmp_path: Path) -> None:
    """An input given as a file runs as it is; the shipped bus driver breaks several rules in it."""
    need_firmware()
    made = scenario(world="efi-image", design="shipped", operations=CONNECT_EXIT)
    (tmp_path / "one").write_bytes(codec.encode(made))
    done = _run(tmp_path, "efi_image", "one")
    assert done.returncode == 77, done.stderr[-2000:]
    assert "/XenBusDxe/" in done.stdout


def test_a_fork_fuzzes(tmp_path: Path) -> None:
    """Children start, run, and bring back a corpus."""
    (tmp_path / "corpus").mkdir()
    done = _run(tmp_path, "exit_boot_services", "-fork=1", "-runs=300", "-max_total_time=8", "corpus")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "corpus").iterdir())) > 3


def test_a_program_called_through_the_interpreter_can_start_itself_again(tmp_path: Path) -> None:
    """`python lifecycle.py -merge=1` works as the program itself does."""
    (tmp_path / "full").mkdir()
    (tmp_path / "merged").mkdir()
    (tmp_path / "full" / "one").write_bytes(codec.encode(Scenario(design="exit-callback", operations=CONNECT_EXIT)))
    done = subprocess.run(
        [sys.executable, FOLDER / "lifecycle.py", "-merge=1", "merged", "full"],
        cwd=tmp_path,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0
    assert len(list((tmp_path / "merged").iterdir())) == 1


# ---- the canary's rule, and the registry --------------------------------------------------------------------------


def test_the_planted_rule_wants_connect_exit_a_device_and_another_order() -> None:
    """Each of the four alone is not enough."""

    def findings(**values: object) -> int:
        made = scenario(
            **(
                {"design": "reference-count", "devices": ("block",), "order": "fifo", "operations": CONNECT_EXIT}
                | values
            )
        )
        return sum(finding.oracle == "canary" for finding in TARGETS["canary"].run(made).findings)

    assert findings() == 1
    assert findings(order=(1, 0)) == 1
    assert findings(order="edk2") == 0
    assert findings(devices=()) == 0
    assert findings(operations=CONNECT_EXIT[:1]) == 0
    assert findings(operations=CONNECT_EXIT[1:]) == 0
    assert findings(operations=CONNECT_EXIT[::-1]) == 0


def test_the_planted_rule_ignores_what_was_skipped() -> None:
    """An operation that the world did not do does not count."""
    trace = Trace()
    trace.add(Kind.OPERATION, "scenario", "connect", (), "no such child", 0)
    trace.add(Kind.OPERATION, "scenario", "exit", (), None, 1)
    assert TARGETS["canary"].planted is not None
    made = scenario(design="disconnect", devices=("block",), order="fifo")
    assert TARGETS["canary"].planted(made, trace) == []


def test_other_targets_have_no_oracle_of_their_own() -> None:
    """Their verdict is the harness's."""
    made = scenario(design="reference-count", devices=("block",), order="fifo", operations=CONNECT_EXIT)
    assert [finding for finding in TARGETS["lifecycle"].run(made).findings if not finding.note] == []


def test_targets_know_their_world_and_designs() -> None:
    """A world that has no designs has the one name that is empty, and every target has a description."""
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.description
        assert target.designs == (designs_of(target.world) or ("",))
    assert TARGETS["lifecycle"].default_design == "reference-count"
