"""Coverage by a corpus, measured by the real program."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from campaign import coverage as module
from campaign.behaviour import SERVICES
from campaign.coverage import coverage, scenarios_of
from campaign.measurement import read_measurement
from campaign.statistics import Identity, Statistics
from fuzz_targets import scenario_yaml
from fuzz_targets.input_files import InputError
from reference_impl.scenario import Scenario, operation, scenario

EMPTY = scenario(design="disconnect")
EXIT = replace(EMPTY, devices=("block",), operations=(operation("connect"), operation("exit")))


def corpus(folder: Path, *scenarios: Scenario) -> Path:
    """A folder with these scenarios."""
    folder.mkdir()
    for index, content in enumerate(scenarios):
        (folder / f"{index}.yaml").write_text(scenario_yaml.dump(content))
    return folder


def test_a_corpus_that_does_more_covers_more(tmp_path, monkeypatch):
    """Lines and branches of `reference_impl` and `oracles` are counted; every report is written where it was asked for."""
    monkeypatch.chdir(tmp_path)
    little = coverage([corpus(tmp_path / "little", EMPTY)], json_file="little.json").measured
    result = coverage(
        [corpus(tmp_path / "more", EMPTY, EXIT)],
        html="pages/html",
        xml="pages/c.xml",
        lcov="c.lcov",
        against="little.json",
        fail_under=1,
    )
    more = result.measured
    assert (little.scenarios, more.scenarios) == (1, 2)
    assert 5 < little.branch_percent < more.branch_percent < 100
    assert 20 < little.line_percent < more.line_percent < 100
    assert result.enough
    assert "reference_impl/world.py" in result.report
    assert "oracles/memory_services.py" in result.report
    assert "campaign" not in result.report
    assert result.report.splitlines()[-1].startswith("TOTAL")
    assert (tmp_path / "pages" / "html" / "index.html").is_file()
    assert float(ElementTree.parse(tmp_path / "pages" / "c.xml").getroot().attrib["branch-rate"]) > 0.2
    assert "BRDA:" in (tmp_path / "c.lcov").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.lcov", "little", "little.json", "more", "pages"]
    assert read_measurement(tmp_path / "little.json") == little
    assert result.difference is not None
    assert "reference_impl/xenbus/bus_driver.py" in result.difference.here.lines
    assert "AllocatePool = EFI_SUCCESS" in result.difference.here.behaviour[SERVICES]
    assert str(result.difference.there) == "0 lines, 0 branches, 0 behaviours"
    assert result.difference.changed == {}


def test_a_campaign_is_its_corpus_and_its_reproducers(tmp_path):
    """Nothing else in its folder is a scenario; and it can be compared with what it began with."""
    folder = tmp_path / "campaign"
    folder.mkdir()
    Statistics(folder, Identity(target="smoke", environment="conforming")).close()
    (folder / "log.txt").write_text("news")
    assert scenarios_of(folder) == []
    corpus(folder / "corpus", EMPTY, EXIT)
    assert scenarios_of(folder) == [folder / "corpus"]
    result = coverage([folder], against=corpus(tmp_path / "seeds", EMPTY))
    assert result.measured.scenarios == 2
    assert result.difference is not None
    assert result.difference.here.behaviour


def test_under_the_limit_is_not_enough(tmp_path):
    """Both lines and branches have to reach it."""
    assert not coverage([corpus(tmp_path / "corpus", EMPTY)], fail_under=99.9).enough


def test_junk_in_a_corpus_is_one_line(tmp_path):
    """It names the file."""
    (corpus(tmp_path / "corpus", EMPTY) / "notes.txt").write_text("junk")
    with pytest.raises(InputError, match=r"notes\.txt: suffix"):
        coverage([tmp_path / "corpus"])


def test_a_report_that_cannot_be_written_is_one_line(tmp_path):
    """A file where a folder is needed: the operating system's reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        coverage([corpus(tmp_path / "corpus", EMPTY)], xml=tmp_path / "file" / "c.xml")
    with pytest.raises(InputError, match=r"c\.json: cannot be written: Not a directory"):
        coverage([tmp_path / "corpus"], json_file=tmp_path / "file" / "c.json")


def test_a_missing_coverage_package_is_one_line(monkeypatch):
    """It says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ebsfuzz\[coverage\]'"):
        coverage([])


def test_the_starting_corpora_are_the_default(monkeypatch, tmp_path):
    """Nobody has to name them."""
    monkeypatch.setattr(module, "STARTING_CORPORA", [corpus(tmp_path / "corpus", EMPTY, EXIT)])
    assert coverage().measured.scenarios == 2


def test_a_failure_of_the_measurement_is_no_verdict(monkeypatch, capfd):
    """A traceback of the process is on standard error, and nothing passes for a result."""
    monkeypatch.setattr(module, "STARTING_CORPORA", [Path("x")])
    monkeypatch.setattr(module.json, "dumps", lambda request: "no request")
    with pytest.raises(AssertionError, match="ended with status 1"):
        coverage()
    assert "JSONDecodeError" in capfd.readouterr().err


# ---- the measuring process, without a process -----------------------------------------------------------------------


def serve(monkeypatch, capsys, measured) -> tuple[int, dict]:
    """Status and answer of the measuring process where `_measure` does this."""
    monkeypatch.setattr(module, "_measure", measured)
    monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
    status = module._main()
    return status, json.loads(capsys.readouterr().out)


def test_the_process_answers_with_the_measurement_or_the_problem(monkeypatch, capsys):
    """What the user can mend is a problem; all else is a traceback."""

    def raising(error):
        def measure(request):
            raise error

        return measure

    assert serve(monkeypatch, capsys, lambda request: {"scenarios": 3}) == (0, {"scenarios": 3})
    assert serve(monkeypatch, capsys, raising(InputError("x: bad"))) == (2, {"problem": "x: bad"})
    assert serve(monkeypatch, capsys, raising(OSError("disk full"))) == (2, {"problem": "disk full"})
    with pytest.raises(ZeroDivisionError):
        serve(monkeypatch, capsys, raising(ZeroDivisionError()))
