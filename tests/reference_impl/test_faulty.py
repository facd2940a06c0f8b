"""Every seeded fault is found for what it is, and the correct code is not."""

from __future__ import annotations

import pytest

from oracles import judge
from reference_impl.faulty import FAULTS, faulty
from reference_impl.scenario import operation
from reference_impl.trace import Kind
from reference_impl.world import run
from tests.scenarios import CONNECT, EXIT, STOP_BUS, platform, records

DEVICES = ("block", "network")
SHOWN_BY = {
    "bus-forgets-reset": ((), (CONNECT, EXIT)),
    "event-failure-ignored": (
        DEVICES,
        (operation("fail", call="CreateEvent -> EFI_OUT_OF_RESOURCES", nth=2), CONNECT, EXIT),
    ),
    "reference-kept-by-failed-start": (
        DEVICES,
        (operation("fail", call="CreateEvent -> EFI_OUT_OF_RESOURCES", nth=2), CONNECT, EXIT),
    ),
    "six-stage-chain": (
        DEVICES,
        (
            operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES"),
            *(CONNECT, CONNECT, STOP_BUS, CONNECT),
            *(operation("disconnect", controller="child-0"), EXIT),
        ),
    ),
}
"""Fault → devices and operations that show it, where connect and exit with two devices do not."""


def shown(fault, design="reference-count"):
    """A scenario that shows `fault`."""
    devices, operations = SHOWN_BY.get(fault, (DEVICES, (CONNECT, EXIT)))
    order = "fifo" if fault == "six-stage-chain" else "edk2"
    return platform(design, *operations, devices=devices, fault=fault, order=order)


def rules(scenario):
    """What the oracles report, as oracle/rule."""
    return {f"{finding.oracle}/{finding.rule}" for finding in judge(run(scenario))}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_under_its_own_rule_and_under_no_foreign_one(fault):
    """The first rule of a fault is what it is about; only its own rules are reported."""
    reported = rules(shown(fault))
    assert faulty(fault).rules[0] in reported
    assert reported <= set(faulty(fault).rules)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_scenario_without_the_fault_is_accepted(fault):
    """The near miss: correct code in the very scenario that shows the fault."""
    scenario = shown(fault)
    assert (
        rules(platform("reference-count", *scenario.operations, devices=scenario.devices, order=scenario.order))
        == set()
    )


def test_the_chain_needs_every_stage():
    """Leaving any operation out, or letting the device's notification run first, ends the chain early."""
    whole = shown("six-stage-chain")
    assert [record.value for record in records(run(whole), Kind.DRIVER_STATE)] == [1, 2, 3, 4, 5, 6]
    for left_out in range(len(whole.operations)):
        shorter = whole.with_operations(whole.operations[:left_out] + whole.operations[left_out + 1 :])
        assert rules(shorter) == set()
    assert rules(platform("reference-count", *whole.operations, devices=DEVICES, fault="six-stage-chain")) == set()


def test_every_fault_names_real_rules():
    """What a fault says may be reported is a rule of an oracle."""
    from oracles import RULES

    known = {f"{oracle}/{rule}" for oracle, rules in RULES.items() for rule in rules}
    for name in FAULTS:
        assert set(faulty(name).rules) <= known
        assert faulty(name).description
