"""Coverage of `reference_impl` and `oracles` by a corpus: every scenario runs once, without atheris, under coverage.py.

Beside lines and branches, the behaviour that the runs show is counted (`campaign.behaviour`).

What an import executes (definitions, tables) counts only if coverage.py is there before the import. So the measurement
is a process of its own, `python -m campaign.coverage`, which imports the packages last. It gets the request as JSON on
standard input and answers with JSON on standard output; nobody but `coverage` below talks to it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from campaign.measurement import Difference, Measurement

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("reference_impl", "oracles")

STARTING_CORPORA = [path for path in sorted((ROOT / "corpus").glob("*/")) if path.name != "efi-image"]
"""Those of the model's worlds: real drivers need firmware, and cover nothing here that the model does not."""

_EXCLUDED = ["if TYPE_CHECKING:", "raise NotImplementedError", r"assert_never\("]  # as in pyproject.toml
_EXIT_INPUT = 2


class CoverageResult(NamedTuple):
    """What a corpus covers.

    measured    lines, branches and behaviour
    report      the table for people, file by file
    enough      whether the percentages of both lines and branches reach the limit that was asked for
    difference  to what it was compared with
    """

    measured: Measurement
    report: str
    enough: bool
    difference: Difference | None


def coverage(
    corpora: Sequence[str | Path] = (),
    *,
    html: str | Path | None = None,
    xml: str | Path | None = None,
    lcov: str | Path | None = None,
    json_file: str | Path | None = None,
    against: str | Path | None = None,
    fail_under: float | None = None,
) -> CoverageResult:
    """Line and branch coverage by the scenarios in `corpora`, files and folders. Without any, by the
    starting corpora of the model's worlds.

    html        folder for a page for each file
    xml         file in Cobertura's form
    lcov        file in LCOV's form
    fail_under  percents that both lines and branches have to reach

    Raises InputError for a corpus that cannot be read, for a report that cannot be written, and where coverage.py is
    missing.
    """
    from campaign.findings import write_atomically
    from campaign.measurement import difference, read_measurement
    from fuzz_targets.input_files import InputError

    if importlib.util.find_spec("coverage") is None:
        raise InputError("coverage.py is missing; it comes with the extra 'coverage': pip install 'ebsfuzz[coverage]'")
    other = None
    if against is not None:
        is_file = Path(against).suffix == ".json"
        other = read_measurement(Path(against)) if is_file else _measured([against], {})[0]
    reports = {"html": _absolute(html), "xml": _absolute(xml), "lcov": _absolute(lcov)}
    measured, report = _measured(corpora or STARTING_CORPORA, reports)
    if json_file is not None:
        try:
            write_atomically(Path(json_file), msgspec.json.encode(measured) + b"\n")
        except OSError as error:
            raise InputError(f"{json_file}: cannot be written: {error.strerror}") from None
    return CoverageResult(
        measured,
        report,
        enough=min(measured.line_percent, measured.branch_percent) >= (fail_under or 0),
        difference=None if other is None else difference(measured, other, str(against)),
    )


def _measured(corpora: Sequence[str | Path], reports: dict[str, str | None]) -> tuple[Measurement, str]:
    """The measurement of a corpus by a process of its own, and the table for people."""
    from campaign.measurement import Measurement
    from fuzz_targets.input_files import InputError

    paths = [os.path.abspath(place) for path in corpora for place in scenarios_of(Path(path))]
    # The measurement must not be measured itself, as pyproject.toml asks for all processes that the tests start.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    roots = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(roots)
    finished = subprocess.run(
        [sys.executable, "-m", "campaign.coverage"],
        input=json.dumps({"corpora": paths, **reports}),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    if finished.returncode:
        assert finished.returncode == _EXIT_INPUT, f"the measurement ended with status {finished.returncode}"
        raise InputError(json.loads(finished.stdout)["problem"])
    answer = json.loads(finished.stdout)
    return msgspec.convert(answer["measured"], Measurement), answer["report"]


def scenarios_of(path: Path) -> list[Path]:
    """Where the scenarios of `path` are: itself, or of a campaign its corpus and its reproducers."""
    from campaign.statistics import FILE

    if not (path / FILE).is_file():
        return [path]
    return [place for name in ("corpus", "findings") if (place := path / name).is_dir() and any(place.iterdir())]


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)


# ---- the process that measures --------------------------------------------------------------------------------------


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    """Replay and report. Raises InputError for what cannot be read, OSError for what cannot be written."""
    from coverage import Coverage

    measuring = Coverage(data_file=None, config_file=False, branch=True, source_pkgs=list(PACKAGES), messages=False)
    measuring.set_option("report:exclude_also", _EXCLUDED)
    measuring.start()
    try:
        count, behaviour = _replay(request["corpora"])
    finally:
        measuring.stop()

    table = io.StringIO()
    measuring.report(file=table)
    if request.get("html"):
        measuring.html_report(directory=request["html"], title="ebsfuzz: coverage by the corpus")
    if request.get("xml"):
        measuring.xml_report(outfile=request["xml"])
    if request.get("lcov"):
        measuring.lcov_report(outfile=request["lcov"])
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures.json")
        measuring.json_report(outfile=str(figures))
        files = json.loads(figures.read_text(encoding="utf-8"))["files"]
    measured = {
        "scenarios": count,
        "files": {_name_of(path): _file(path, one) for path, one in files.items()},
        "behaviour": behaviour,
    }
    return {"measured": measured, "report": table.getvalue()}


def _name_of(path: str) -> str:
    """A file's path in the checkout, wherever that is."""
    return Path(path).resolve().relative_to(ROOT).as_posix()


def _file(path: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "digest": hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest(),
        "lines": figures["executed_lines"],
        "branches": figures["executed_branches"],
        "line_count": figures["summary"]["num_statements"],
        "branch_count": figures["summary"]["num_branches"],
    }


def _replay(corpora: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """How many scenarios there are, and the behaviour that they show."""
    # These imports bring in the packages under measurement, and have to come after its start.
    from campaign.behaviour import Behaviour
    from campaign.replay import replay, story_of

    count = 0
    behaviour = Behaviour()
    for replayed in replay(corpora):
        count += 1
        for _ in story_of(replayed):  # replay prints the timeline, so the corpus covers it
            pass
        behaviour.see(replayed.trace)
    return count, behaviour.maps


def _main() -> int:
    """Serve one request. What the user can mend is a problem in the answer; all else is a traceback."""
    request = json.load(sys.stdin)
    try:
        answer = _measure(request)
    except Exception as error:
        from fuzz_targets.input_files import InputError
        from guest import ExtraMissing
        from guest.image import ImageError

        if not isinstance(error, InputError | ImageError | ExtraMissing | OSError):
            raise
        print(json.dumps({"problem": str(error)}))
        return _EXIT_INPUT
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
