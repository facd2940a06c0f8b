"""docs/shipped-drivers.md shows what the shipped drivers do: its scenarios, their findings, and their timelines."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from campaign.corpus import CHECKOUT
from fuzz_targets import scenario_yaml
from fuzz_targets.input_files import read_scenario
from guest.world import run
from oracles import judge
from reference_impl.timeline import describe
from reference_impl.trace import Record
from tests.guest.firmware import need_firmware

PAGE = (CHECKOUT / "docs" / "shipped-drivers.md").read_text(encoding="utf-8")
REGRESSIONS = CHECKOUT / "corpus" / "efi-image" / "regressions"


class Case(NamedTuple):
    """One scenario of the page: the regression that it is, the beginning of its finding's signature, and both blocks."""

    regression: str
    signature: str
    scenario: str
    timeline: str


CASES = [
    Case(*found)
    for found in re.findall(
        r"`corpus/efi-image/regressions/([\w-]+)\.yaml`, `([^`]+)`:\n\n```yaml\n(.*?)```\n\n```\n(.*?)```\n",
        PAGE,
        re.DOTALL,
    )
]


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
