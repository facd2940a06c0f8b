"""The CI workflows and the files for ClusterFuzzLite: the commands of every step run, so that they cannot rot.

They run in a scratch copy of the checkout whose virtual environment is this one's, with short limits. What takes minutes is
replaced (`STAND_INS`), and its options are checked instead.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from campaign import cli
from campaign.findings import read_baseline
from fuzz_targets import codec
from fuzz_targets.registry import TARGETS

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
VENV = Path(sys.executable).parent

STAND_INS = {
    "./scripts/test": "test -x ./scripts/test",
    ".venv/bin/mypy --strict": ".venv/bin/mypy --version",
    ".venv/bin/lint-imports": ".venv/bin/lint-imports --help",
    "./scripts/ci-coverage --fail-under 80": "./scripts/ci-coverage corpus/smoke/seeds/disconnect-exit.yaml",
}
"""Steps that take minutes → what is run in their place."""

LIMITS = {"canary": "--runs 400 --seed 1 --unguided"}
LIMIT = "--runs 4 --seed 1 --unguided"


def workflow(path: Path) -> dict[str, Any]:
    """A workflow as it is written."""
    return dict(yaml.safe_load(path.read_text("utf-8")))


def combinations(job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the job's matrix makes of it: a list of values; one without any for a job without matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    if "include" in matrix:
        return list(matrix["include"])
    return [{name: value} for name, values in matrix.items() for value in values] or [{}]


JOBS = [
    pytest.param(path, name, values, id="-".join([path.stem, name, *map(str, list(values.values())[:1])]))
    for path in WORKFLOWS
    for name, job in workflow(path)["jobs"].items()
    for values in combinations(job)
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, with an environment that counts as made for it."""
    scratch = tmp_path_factory.mktemp("checkout") / "ebsfuzz"
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("this is no git checkout")
    for name in listing.stdout.splitlines():
        if (ROOT / name).is_file():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, scratch / name)
    subprocess.run(["git", "init", "--quiet"], cwd=scratch, check=True)  # actionlint looks for one
    (scratch / ".venv").mkdir()
    for entry in VENV.parent.iterdir():
        (scratch / ".venv" / entry.name).symlink_to(entry)
    (scratch / ".venv" / ".made-from").unlink(missing_ok=True)
    made_from = f"{scratch}\n" + "".join(
        (scratch / name).read_text() for name in ("requirements.lock", "pyproject.toml")
    )
    (scratch / ".venv" / ".made-from").write_text(made_from)
    if (ROOT / ".cache" / "firmware").exists():
        (scratch / ".cache").mkdir()
        (scratch / ".cache" / "firmware").symlink_to((ROOT / ".cache" / "firmware").resolve())
    else:
        (scratch / "scripts" / "fetch-firmware").write_text("#!/bin/sh\nexit 1\n")
    return scratch


def run(script: str, scratch: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the commands of a step as a runner does, in a process that is not measured."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "EBSFUZZ_", "GITHUB_"))
    }
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=scratch,
        env=kept | {"PYTHONPATH": str(scratch)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def filled_in(script: str, values: dict[str, Any]) -> str:
    """A step's commands with the values of the matrix, and with stand-ins for what takes minutes."""
    script = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda match: str(values[match[1]]), script)
    assert "${{" not in script, script
    for command, stand_in in STAND_INS.items():
        script = script.replace(command, stand_in)
    return script


def clear(scratch: Path) -> None:
    """Take away what an earlier job left."""
    for name in ("campaign-out", "ci-out", "coverage-out", "baseline-out", "kept-corpus"):
        shutil.rmtree(scratch / name, ignore_errors=True)


@pytest.mark.parametrize(("path", "name", "values"), JOBS)
def test_the_commands_of_every_step_run(path: Path, name: str, values: dict[str, Any], scratch: Path) -> None:
    """One after the other, as in the job; a step that needs what an earlier one left finds it."""
    if values.get("python", "3.11") != "3.11" or (path.stem == "nightly" and values["name"] != "lifecycle"):
        pytest.skip("the same commands as in the job beside it")
    clear(scratch)
    (scratch / "baseline-out").mkdir()  # as the cache brings it
    (scratch / "baseline-out" / "coverage.json").write_text('{"scenarios": 0, "files": {}, "behaviour": {}}')
    summary = scratch / "summary.md"
    summary.unlink(missing_ok=True)
    for step in workflow(path)["jobs"][name]["steps"]:
        if "run" not in step or (
            "campaign.sqlite" in step.get("if", "") and not (scratch / "campaign-out/campaign.sqlite").is_file()
        ):
            continue
        ended = run(
            filled_in(step["run"], values),
            scratch,
            GITHUB_STEP_SUMMARY=str(summary),
            EBSFUZZ_CI_LIMIT=LIMITS.get(values.get("name", ""), LIMIT),
        )
        assert ended.returncode == 0, f"{step}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    if name == "fuzz" and (scratch / "ci-out").is_dir():
        left = {"junit.xml", "log.txt", "result.json", "results.sarif", "summary.md"}
        assert left <= set(os.listdir(scratch / "ci-out"))
        assert summary.read_text().startswith("## ebsfuzz ")
    if name == "coverage":
        assert "TOTAL" in summary.read_text()
        assert "against baseline-out/coverage.json:\n  only here: " in summary.read_text()
        assert (scratch / "coverage-out" / "page" / "index.html").is_file()


@pytest.mark.parametrize(("path", "name", "values"), JOBS)
def test_every_option_of_a_step_exists(path: Path, name: str, values: dict[str, Any]) -> None:
    """Also of the steps for which something else runs here; and every file that is named is there."""
    commands = dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    options = {opt for command in commands.values() for parameter in command.params for opt in parameter.opts}
    words = str(values.get("options", "")).split()
    for step in workflow(path)["jobs"][name]["steps"]:
        words += [word for word in step.get("env", {}).get("EBSFUZZ_CI_LIMIT", "").split() if word.startswith("--")]
        words += re.findall(r"(?<=ebsfuzz )[^\n]*", step.get("run", ""))
        for script in re.findall(r"\./(scripts/[\w-]+)", step.get("run", "")):
            assert os.access(ROOT / script, os.X_OK), script
    for word in " ".join(words).split():
        if word.startswith("--"):
            assert word in options, word
        elif word.startswith(".github/"):
            assert read_baseline(ROOT / word)


def test_every_target_is_fuzzed_on_every_change_and_the_python_versions_are_those_of_the_package() -> None:
    """A target that nobody fuzzes does not exist."""
    jobs = workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    fuzzed = {
        (re.search(r"--target (\S+)", values["options"]) or ["", "lifecycle"])[1]
        for values in combinations(jobs["fuzz"])
    }
    assert fuzzed == set(TARGETS)
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_actionlint_finds_nothing() -> None:
    """It knows the syntax of workflows, their expressions, and the inputs of actions."""
    actionlint = shutil.which("actionlint", path=f"{VENV}{os.pathsep}{os.environ.get('PATH', '')}")
    if actionlint is None:
        pytest.skip("no actionlint on this machine")
    ended = subprocess.run([actionlint, *map(str, WORKFLOWS)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_a_finding_replays_from_the_artefacts_of_a_failing_job_alone(scratch: Path, tmp_path: Path) -> None:
    """One command, on the folder as it is downloaded; FAILED for each, and status 1."""
    clear(scratch)
    job = workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["fuzz"]
    (values,) = [one for one in combinations(job) if one["name"] == "shipped-design"]
    values = values | {"options": values["options"].partition(" --baseline")[0]}  # as if its findings were news
    (fuzz,) = [step for step in job["steps"] if step.get("name") == "Fuzz"]
    assert run(filled_in(fuzz["run"], values), scratch, EBSFUZZ_CI_LIMIT=LIMIT).returncode == 1
    uploads = [step["with"] for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    (reproducers,) = [upload["path"] for upload in uploads if upload["name"].startswith("reproducers-")]
    artefact = tmp_path / "artefact"
    shutil.copytree(scratch / reproducers, artefact)
    clear(scratch)
    ended = run(f"{VENV}/python -m campaign.cli replay artefact --brief --format json", tmp_path, PYTHONPATH=str(ROOT))
    assert ended.returncode == 1, ended.stderr
    scenarios = json.loads(ended.stdout)["scenarios"]
    assert {one["verdict"] for one in scenarios} == {"FAILED"}
    assert "disconnect--memory-services--direct-call--XenBusDxe--FreePool" in {
        Path(one["path"]).name for one in scenarios
    }


def test_a_job_that_finds_what_no_baseline_lists_says_so_and_fails(scratch: Path) -> None:
    """With the status that would have been right."""
    clear(scratch)
    ended = run("./scripts/ci-fuzz 1 --target xenstore_ring", scratch, EBSFUZZ_CI_LIMIT=LIMIT)
    assert ended.returncode == 1
    assert "exited with 0, and 1 would be right" in ended.stderr
    assert run("./scripts/ci-fuzz 0 --target nothing", scratch).returncode == 1


def test_a_job_begins_with_what_the_job_before_it_has_kept(scratch: Path) -> None:
    """A kept corpus stands beside the repository's own, and the next job gets what this one kept."""
    clear(scratch)
    kept = scratch / "kept-corpus"
    kept.mkdir()
    (kept / "kept.yaml").write_text('version: 1\nworld: ring\noperations:\n- ask: {request: WATCH, path: ""}\n')
    command = "./scripts/ci-fuzz 0 --target xenstore_ring"
    ended = run(command, scratch, EBSFUZZ_CI_LIMIT="--runs 300 --seed 1")
    if "atheris" in (scratch / "ci-out" / "log.txt").read_text():
        pytest.skip("no atheris on this machine, so nothing is kept")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    inputs = [path for path in kept.rglob("*") if path.is_file()]
    assert len(inputs) > 1
    assert not (kept / "kept.yaml").exists()
    assert not (scratch / "starting-corpus").exists()
    (kept / "junk.txt").write_text("junk")
    ended = run(command, scratch, EBSFUZZ_CI_LIMIT=LIMIT)
    assert "starting-corpus/kept-corpus/junk.txt: suffix" in ended.stdout


# ---- ClusterFuzzLite ------------------------------------------------------------------------------------------------


def test_clusterfuzzlite_builds_every_target(scratch: Path, tmp_path: Path) -> None:
    """With stand-ins for what the builder's image has: the packer, and pip. Each program runs its corpus as it was packed."""
    out, tools = tmp_path / "out", tmp_path / "tools"
    out.mkdir()
    tools.mkdir()
    (tools / "compile_python_fuzzer").write_text(
        '#!/bin/bash\nset -e\nname=$(basename "$1" .py)\n'
        f'printf \'#!/bin/sh\\nexec {VENV}/python %s "$@"\\n\' "$PWD/$1" >"$OUT/$name"\nchmod +x "$OUT/$name"\n'
    )
    (tools / "python").write_text(
        "#!/bin/bash\nlast=${@: -1}\n"
        'if [[ "$1 $2" == "-m pip" ]]; then test -f "$last" -o "$last" = .; exit; fi\n'
        f'exec {VENV}/python "$@"\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    source = tmp_path / "src"
    source.mkdir()
    (source / "ebsfuzz").symlink_to(scratch)
    ended = run(
        ".clusterfuzzlite/build.sh",
        scratch,
        SRC=str(source),
        OUT=str(out),
        PYTHON=str(tools / "python"),
        PATH=f"{tools}{os.pathsep}{os.environ['PATH']}",
    )
    assert ended.returncode == 0, ended.stderr
    targets = {path.stem for path in out.glob("*.options")}
    assert targets == set(TARGETS) - {"smoke", "canary", "efi-image"}
    for target in targets:
        with zipfile.ZipFile(out / f"{target}_seed_corpus.zip") as corpus:
            names = corpus.namelist()
            assert names
            assert codec.decode(corpus.read(names[0])).world == TARGETS[target].world
    pytest.importorskip("atheris")
    ran = run(f"{out}/xenstore_ring -runs=5", tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_project_for_clusterfuzzlite_is_whole() -> None:
    """Its three files, in the words that ClusterFuzzLite knows."""
    folder = ROOT / ".clusterfuzzlite"
    project = yaml.safe_load((folder / "project.yaml").read_text())
    assert project == {"language": "python", "fuzzing_engines": ["libfuzzer"], "sanitizers": ["address"]}
    assert "build.sh $SRC/build.sh" in (folder / "Dockerfile").read_text()
    assert os.access(folder / "build.sh", os.X_OK)
