"""docs/shipped-drivers.md shows what the shipped drivers do: its scenarios, their findings, and their timelines."""

from __future__ import annotations

import re

import pytest

from campaign.corpus import CHECKOUT
from fuzz_targets import scenario_yaml
from fuzz_targets.input_files import read_scenario
from guest.world import run
from oracles import judge
from reference_impl.timeline import describe
from reference_impl.trace import Record
from tests.guest.firmware import need_firmware
from tests.scenarios import shown_in

PAGE = (CHECKOUT / "docs" / "shipped-drivers.md").read_text(encoding="utf-8")
REGRESSIONS = CHECKOUT / "corpus" / "efi-image" / "regressions"


CASES = shown_in("shipped-drivers.md", "efi-image")


def test_every_regression_is_on_the_page():
    """And every scenario of the page is a regression."""
    assert {case.regression for case in CASES} == {path.stem for path in REGRESSIONS.iterdir()}
    assert PAGE.count("```yaml") == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.regression)
def test_a_scenario_shows_its_finding_and_its_timeline(case):
    """Each line of the page comes in the timeline, in this order; "…" stands for the rest of it, and for long numbers."""
    need_firmware()
    scenario = read_scenario(REGRESSIONS / f"{case.regression}.yaml")
    assert case.scenario == scenario_yaml.dump(scenario)
    trace = run(scenario)
    assert any(finding.signature.startswith(case.signature) for finding in judge(trace))
    happened = iter([re.sub(r"0x[0-9a-f]{6,}", "0x…", describe(Record(*record))) for record in trace.records])
    for line in case.timeline.splitlines():
        beginning = line.strip().removesuffix("…")
        assert any(phrase.startswith(beginning) for phrase in happened), f"not in the timeline, or too late: {line}"
