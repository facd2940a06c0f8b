"""Every seeded fault is found for what it is, and the correct code is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from campaign.corpus import CHECKOUT
from fuzz_targets.harness import run_in_orders
from fuzz_targets.input_files import read_scenario
from oracles import RULES, judge
from reference_impl.faulty import FAULTS, faulty
from reference_impl.trace import Kind
from reference_impl.world import run
from tests.scenarios import records

REGRESSIONS = CHECKOUT / "corpus" / "lifecycle" / "regressions"

OF_THE_EMULATOR = {"guest-fault/crash"}
"""The death of the emulator itself, which no driver in Python can bring about."""


def regression(fault):
    """The smallest scenario that shows `fault`."""
    return read_scenario(REGRESSIONS / f"{fault}.yaml")


def reported(scenario):
    """What the oracles report, as oracle/rule, also of other orders of notifications."""
    return {f"{finding.oracle}/{finding.rule}" for finding in run_in_orders(scenario).findings}


DEEP = [name for name in FAULTS if faulty(name).deep]
KNOWN = {f"{oracle}/{rule}" for oracle, rules in RULES.items() for rule in rules}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_under_its_own_rules_and_under_no_foreign_one(fault):
    """Its regression shows one of its rules at least, and nothing beside them."""
    assert regression(fault).fault == fault
    found = reported(regression(fault))
    assert found
    assert found <= set(faulty(fault).rules)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_scenario_without_the_fault_is_accepted(fault):
    """The near miss: correct code in the very scenario that shows the fault."""
    assert reported(replace(regression(fault), fault="")) == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_regression_runs_in_the_environment_that_its_fault_names(fault):
    """The conforming one wherever that is enough."""
    assert regression(fault).environment == faulty(fault).environment
    assert regression(fault).switches == faulty(fault).switches


@pytest.mark.parametrize("fault", DEEP)
def test_a_deep_fault_goes_through_all_its_stages_and_needs_each_step(fault):
    """Each stage leaves a mark; leaving out any operation keeps the mistake from being reached."""
    whole = regression(fault)
    stages = [record.value for record in records(run(whole), Kind.DRIVER_STATE)]
    assert len(stages) >= 5
    assert stages == list(range(1, len(stages) + 1))
    for left_out in range(len(whole.operations)):
        shorter = whole.with_operations(whole.operations[:left_out] + whole.operations[left_out + 1 :])
        assert reported(shorter) == set()


def test_the_chain_of_six_ends_early_where_the_device_is_notified_first():
    """The last stage hangs on the order of notifications."""
    assert judge(run(replace(regression("six-stage-chain"), order="edk2"))) == []


def test_every_fault_names_rules_and_says_what_is_wrong():
    """What a fault says may be reported is a rule of an oracle, named once; its sentence is its own."""
    for name in FAULTS:
        rules = faulty(name).rules
        assert set(rules) <= KNOWN, name
        assert len(rules) == len(set(rules)) > 0, name
    assert len(set(FAULTS.values())) == len(FAULTS) >= 45
    assert len(DEEP) >= 8


def test_every_rule_of_every_oracle_has_a_fault():
    """Some fault's regression shows it: an oracle that never speaks up is not known to work."""
    shown = {rule for name in FAULTS for rule in reported(regression(name))}
    assert shown == KNOWN - OF_THE_EMULATOR


def test_every_regression_of_the_corpus_with_a_fault_is_named_for_it():
    """No scenario of a fault is left behind when the fault is renamed."""
    names = {path.stem for path in REGRESSIONS.glob("*.yaml") if read_scenario(path).fault}
    assert names == set(FAULTS)
