"""Coverage of `reference_impl` and `oracles` by a corpus: every scenario runs once, without atheris, under coverage.py.

What an import executes (definitions, tables) counts only if coverage.py is there before the import. So the measurement
is a process of its own, `python -m campaign.coverage`, which imports the packages last. It gets the request as JSON on
standard input and answers with JSON on standard output; nobody but `coverage` below talks to it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("reference_impl", "oracles")

_CORPUS = Path(__file__).resolve().parent.parent / "corpus"
STARTING_CORPORA = [path for path in sorted(_CORPUS.glob("*/")) if path.name != "efi-image"]
"""Those of the model's worlds: real drivers need firmware, and cover nothing here that the model does not."""

_EXCLUDED = ["if TYPE_CHECKING:", "raise NotImplementedError", r"assert_never\("]  # as in pyproject.toml
_EXIT_INPUT = 2


class CoverageResult(NamedTuple):
    """What a corpus covers.

    scenarios       how many ran
    line_percent    of all lines, those that ran
    branch_percent  of all ways that a branch can take, those that were taken
    report          the table for people, file by file
    enough          whether both percentages reach the limit that was asked for
    """

    scenarios: int
    line_percent: float
    branch_percent: float
    report: str
    enough: bool


def coverage(
    corpora: Sequence[str | Path] = (),
    *,
    html: str | Path | None = None,
    xml: str | Path | None = None,
    lcov: str | Path | None = None,
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
    from fuzz_targets.input_files import InputError

    if importlib.util.find_spec("coverage") is None:
        raise InputError("coverage.py is missing; it comes with the extra 'coverage': pip install 'ebsfuzz[coverage]'")
    request = {
        "corpora": [os.path.abspath(path) for path in corpora or STARTING_CORPORA],
        "html": _absolute(html),
        "xml": _absolute(xml),
        "lcov": _absolute(lcov),
    }
    # The measurement must not be measured itself, as pyproject.toml asks for all processes that the tests start.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    roots = [str(Path(__file__).resolve().parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(roots)
    finished = subprocess.run(
        [sys.executable, "-m", "campaign.coverage"],
        input=json.dumps(request),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
        check=False,
    )
    if finished.returncode:
        assert finished.returncode == _EXIT_INPUT, f"the measurement ended with status {finished.returncode}"
        raise InputError(json.loads(finished.stdout)["problem"])
    measured = json.loads(finished.stdout)
    limit = fail_under or 0
    enough = min(measured["line_percent"], measured["branch_percent"]) >= limit
    return CoverageResult(**measured, enough=enough)


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
        count = _replay(request["corpora"])
    finally:
        measuring.stop()

    table = io.StringIO()
    measuring.report(file=table)
    if request["html"]:
        measuring.html_report(directory=request["html"], title="ebsfuzz: coverage by the corpus")
    if request["xml"]:
        measuring.xml_report(outfile=request["xml"])
    if request["lcov"]:
        measuring.lcov_report(outfile=request["lcov"])
    with tempfile.TemporaryDirectory() as folder:
        totals_file = Path(folder, "totals.json")
        measuring.json_report(outfile=str(totals_file))
        totals = json.loads(totals_file.read_text(encoding="utf-8"))["totals"]
    lines = _percent(totals["covered_lines"], totals["num_statements"])
    branches = _percent(totals["covered_branches"], totals["num_branches"])
    return {
        "scenarios": count,
        "line_percent": lines,
        "branch_percent": branches,
        "report": table.getvalue(),
    }


def _replay(corpora: Sequence[str]) -> int:
    # These imports bring in the packages under measurement, and have to come after its start.
    from campaign.replay import replay, story_of

    count = 0
    for replayed in replay(corpora):
        count += 1
        for _ in story_of(replayed):  # replay prints the timeline, so the corpus covers it
            pass
    return count


def _percent(covered: int, total: int) -> float:
    return 100.0 * covered / total if total else 100.0


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
