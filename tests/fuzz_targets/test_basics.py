"""The basic scenarios: plain, complete, and the first thing that a run does."""

from __future__ import annotations

import pytest

from fuzz_targets import codec
from fuzz_targets.basics import OPENING, basic_scenarios, opening
from fuzz_targets.harness import run_and_judge
from fuzz_targets.registry import TARGETS
from reference_impl.scenario import kinds_permitted
from reference_impl.trace import Kind

PLATFORM = dict(basic_scenarios("platform", "reference-count"))


@pytest.mark.parametrize("name", TARGETS)
def test_basics_run_in_the_targets_world(name):
    """Each has a title of its own, the world and design that were asked for, and survives the way through bytes."""
    target = TARGETS[name]
    for design in target.designs:
        titles, basics = zip(*basic_scenarios(target.world, design), strict=True)
        assert len(set(titles)) == len(titles)
        assert {(basic.world, basic.design) for basic in basics} == {(target.world, design)}
        assert all(codec.decode(codec.encode(basic)) == basic for basic in basics)


def test_every_kind_of_operation_is_in_one_of_them():
    """What the conforming environment permits, in its plainest use."""
    used = {step.kind for basic in PLATFORM.values() for step in basic.operations}
    assert used == set(kinds_permitted("platform", ()))


@pytest.mark.parametrize("title", PLATFORM)
@pytest.mark.parametrize("design", ["exit-callback", "reference-count"])
def test_a_correct_design_passes_them(design, title):
    """No finding, and something has run."""
    verdict = run_and_judge(dict(basic_scenarios("platform", design))[title])
    assert verdict.findings == []
    assert any(record[0] == Kind.EXIT for record in verdict.trace.records)


def test_a_start_that_fails_fails_late():
    """The device's driver has taken something by then, which is given back; the next start succeeds."""
    verdict = run_and_judge(PLATFORM["start-fails"])
    starts = [
        record[7]
        for record in verdict.trace.records
        if record[0] == Kind.ENTRY and record[1:6:4] == ("XenPvBlkDxe", "Start")
    ]
    assert [str(status) for status in starts] == ["EFI_DEVICE_ERROR", "EFI_SUCCESS"]


@pytest.mark.parametrize("name", ["lifecycle", "boot_services", "xenstore_ring"])
def test_an_opening_is_what_is_basic_with_what_the_run_has_fixed(name):
    """The first few, in the environment and with the fault of the run."""
    target = TARGETS[name]
    design = target.default_design
    made = opening(target, design, "bus-forgets-reset", environment="hostile")
    assert len(made) == min(OPENING, len(list(basic_scenarios(target.world, design))))
    assert {(one.fault, one.environment, one.switches) for one in made} == {("bus-forgets-reset", "hostile", ())}
    assert made[0].operations == next(basic_scenarios(target.world, design))[1].operations


@pytest.mark.parametrize("fault", ["bus-forgets-reset", "stop-keeps-a-page", "failed-start-keeps-memory"])
def test_what_is_broken_altogether_shows_in_the_opening(fault):
    """Something is found in each: at the exit, at a stop, at a failed start."""
    made = opening(TARGETS["lifecycle"], "reference-count", fault)
    assert any(run_and_judge(basic).findings for basic in made)
