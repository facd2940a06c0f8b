"""What the pages in `docs/` show is what the program does."""

from __future__ import annotations

import pytest

from campaign.corpus import CHECKOUT
from campaign.minimize import is_minimal, signatures
from fuzz_targets import scenario_yaml
from fuzz_targets.input_files import read_scenario
from reference_impl.scenario import Scenario
from reference_impl.timeline import describe
from reference_impl.trace import Kind, Phase, Record
from reference_impl.world import run
from tests.scenarios import shown_in

REGRESSIONS = CHECKOUT / "corpus" / "lifecycle" / "regressions"


SHOWN = (Kind.REFERENCE, Kind.RESET, Kind.CONNECTION, Kind.XENBUS_STATE)


CASES = shown_in("reference-count.md", "lifecycle")


def excerpt(scenario: Scenario) -> str:
    """The course of the exit as the page shows it: who is notified, what becomes of bus and devices, what is left."""
    lines = []
    shown: list[int] = []  # depths of the phrases that the next one may be nested in
    for record in (Record(*plain) for plain in run(scenario).records):
        phrase = ""
        if record.kind == Kind.EXIT and record.name in ("attempt", "runtime"):
            phrase = "ExitBootServices is called" if record.name == "attempt" else "the operating system runs"
        elif record.kind == Kind.TAKE_OVER and record.status != "OK" and record.name != "memory-map":
            phrase = describe(record)
        elif record.phase == Phase.EXIT:
            if record.kind == Kind.ENTRY and record.name in ("Notify", "Start", "Stop"):
                phrase = f"{record.agent}: {'notification' if record.name == 'Notify' else f'{record.name}()'}"
            elif record.kind == Kind.SERVICE and record.agent == "third-party":
                phrase = f"third-party calls {record.name}()"
            elif record.kind in SHOWN and (record.kind != Kind.XENBUS_STATE or record.agent == "frontend"):
                phrase = describe(record)
        if phrase:
            while shown and shown[-1] >= record.depth:
                shown.pop()
            lines.append(f"{'  ' * len(shown)}{phrase}\n")
            shown.append(record.depth)
    return "".join(lines)


def test_each_way_to_break_the_count_is_on_the_page():
    """The five of them, each with a scenario at least."""
    shown = {case.signature.split("/")[1] for case in CASES}
    assert shown == {"underflow", "missed-reset", "double-reset", "premature-reset", "use-after-reset"}
    assert {case.regression for case in CASES} == {path.stem for path in REGRESSIONS.glob("reference-count-*.yaml")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.regression)
def test_a_scenario_on_the_page_shows_its_finding_and_is_minimal(case):
    """It is the regression of that name, and no simpler neighbour shows the same."""
    scenario = read_scenario(REGRESSIONS / f"{case.regression}.yaml")
    assert case.scenario == scenario_yaml.dump(scenario)
    assert case.signature in signatures(scenario)
    assert is_minimal(scenario, case.signature) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.regression)
def test_a_timeline_on_the_page_is_what_happens(case):
    """Line by line."""
    assert case.timeline == excerpt(read_scenario(REGRESSIONS / f"{case.regression}.yaml"))
