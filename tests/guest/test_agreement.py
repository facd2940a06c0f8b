"""The model's `disconnect` design does what the shipped drivers do; `python -m tests.guest.agreement` compares more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reference_impl.scenario import operation
from reference_impl.trace import Kind
from reference_impl.world import run
from tests.guest import agreement
from tests.guest.firmware import need_firmware
from tests.scenarios import CONNECT, EXIT, STOP_BUS, platform


@pytest.mark.parametrize("seed", range(4))
def test_random_scenarios_agree(seed):
    """Resets, states of backends and verdicts are the same, scenario by scenario."""
    drivers = need_firmware()
    different = {
        index: lines
        for index, what in enumerate(agreement.scenarios(15, seed))
        if (lines := agreement.differences(what, drivers))
    }
    assert different == {}


def test_scenarios_are_about_blocks_and_conforming():
    """Everything that can happen to block devices and their drivers comes up, and no failure is armed."""
    scenarios = list(agreement.scenarios(200))
    steps = [step for what in scenarios for step in what.operations]
    assert {kind for what in scenarios for kind in what.devices} == {"block"}
    assert not {"network", "console"} & {value for step in steps for value in step.arguments}
    kinds = {step.kind for step in steps}
    assert "fail" not in kinds
    assert kinds >= {
        "connect",
        "disconnect",
        "request",
        "add-device",
        "remove-device",
        "backend",
        "unload",
        "load",
        "exit",
    }
    assert {what.environment for what in scenarios} == {"conforming"}


def test_a_difference_is_told(monkeypatch):
    """Without the page that the binary keeps, its missing FreePages shows: the comparison is not blind."""
    drivers = need_firmware()
    monkeypatch.setattr(agreement, "KEEPS_PAGE", "")
    (line,) = agreement.differences(platform("disconnect", CONNECT, EXIT, devices=("block",)), drivers)
    assert line.startswith("verdicts, number ")
    assert "memory-services/direct-call/XenBusDxe/FreePages" in line


@pytest.mark.parametrize("place", ["resets", "backends", "verdicts"])
def test_every_field_is_compared(monkeypatch, place):
    """What only one of the two did is a difference in each of the three."""
    drivers = need_firmware()
    original = agreement.facts_of

    def other(what, trace):
        facts = original(what, trace)
        return facts._replace(**{place: getattr(facts, place)[:-1]}) if what.world == "platform" else facts

    monkeypatch.setattr(agreement, "facts_of", other)
    (line,) = agreement.differences(
        platform("disconnect", CONNECT, STOP_BUS, CONNECT, EXIT, devices=("block",)), drivers
    )
    assert line.startswith(place)
    assert "model None" in line


def test_delayed_backends_are_compared_each_for_itself():
    """In the order of their devices, while the others keep the order of the run."""
    slow = operation("backend", device=0, delay=3)
    fast = platform("disconnect", CONNECT, EXIT, devices=("block", "block"))
    trace = run(fast)
    in_order = agreement.facts_of(fast, trace).backends
    by_device = agreement.facts_of(replace(fast, operations=(slow, *fast.operations)), trace).backends
    assert in_order != by_device == sorted(in_order, key=lambda state: state[0])
    assert len(in_order) == sum(record[0] == Kind.XENBUS_STATE and record[1] == "backend" for record in trace.records)
