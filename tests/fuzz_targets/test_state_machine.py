"""The platform world under Hypothesis: rules draw operations, and the correct designs stay without findings."""

from __future__ import annotations

from hypothesis import settings

from fuzz_targets.harness import run_and_judge
from fuzz_targets.state_machine import state_machine
from reference_impl.scenario import SWITCHES, Scenario, kinds_permitted, operations_of
from tests.scenarios import CORRECT_DESIGNS


def _finds_nothing(scenario: Scenario) -> None:
    assert run_and_judge(scenario).findings == []


WorldMachine = state_machine(CORRECT_DESIGNS, _finds_nothing)
TestWorldMachine = WorldMachine.TestCase
TestWorldMachine.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)


def test_a_machine_has_a_rule_for_every_operation_that_its_switches_permit() -> None:
    """Those of the hostile environment only where they are on."""
    switches = tuple(sorted(SWITCHES))
    hostile = state_machine(CORRECT_DESIGNS, _finds_nothing, environment="hostile", switches=switches)
    for machine, on in ((WorldMachine, ()), (hostile, switches)):
        rules = {kind for kind in operations_of("platform") if hasattr(machine, kind.replace("-", "_"))}
        assert rules == set(kinds_permitted("platform", on))
