"""The model's `disconnect` design does what the shipped drivers do; `python -m tests.guest.agreement` compares more."""

from __future__ import annotations

import pytest

from reference_impl.trace import Kind
from tests.guest import agreement
from tests.guest.firmware import need_firmware
from tests.scenarios import CONNECT, EXIT, platform


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


@pytest.mark.parametrize("field", agreement.Facts._fields)
def test_every_field_is_compared(monkeypatch, field):
    """What only one of the two did is a difference in each of the three."""
    drivers = need_firmware()
    of_the_model = agreement.run

    def loses_records(what):
        trace = of_the_model(what)
        lost = {"resets": Kind.RESET, "backends": Kind.XENBUS_STATE, "verdicts": Kind.TAKE_OVER}[field]
        trace.records = [record for record in trace.records if record[0] != lost]
        return trace

    monkeypatch.setattr(agreement, "run", loses_records)
    lines = agreement.differences(platform("disconnect", CONNECT, EXIT, devices=("block",)), drivers)
    assert any(line.startswith(f"{field}, number 0: ") for line in lines)
