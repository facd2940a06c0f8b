"""The teardown designs, on runs of the whole machine."""

from __future__ import annotations

from itertools import permutations

import pytest

from oracles import judge
from reference_impl.scenario import operation
from reference_impl.trace import Kind, Phase
from reference_impl.world import run
from tests.scenarios import CONNECT, CORRECT_DESIGNS, EXIT, PLATFORM_DESIGNS, STALE_EXIT, STOP_BUS, platform, records

MEMORY_SERVICES = {"AllocatePool", "FreePool", "AllocatePages", "FreePages", "GetMemoryMap"}
ALL_DEVICES = ("block", "network", "console")


def memory_calls_at_exit(trace):
    """How many memory services drivers call while the EXIT notifications run."""
    return sum(record.name in MEMORY_SERVICES for record in records(trace, Kind.SERVICE, phase=Phase.EXIT))


@pytest.mark.parametrize("design", PLATFORM_DESIGNS)
@pytest.mark.parametrize("reconnection", [True, False])
@pytest.mark.parametrize("devices", [(), ("block",), ALL_DEVICES, ("block",) * 4])
def test_every_design_resets_ring_and_grant_table_once(design, reconnection, devices):
    """Whatever the design, one exit resets each resource of the connection exactly once."""
    trace = run(platform(design, CONNECT, EXIT, devices=devices, reconnection=reconnection))
    assert sorted(record.name for record in records(trace, Kind.RESET)) == ["grant-table", "ring"]


@pytest.mark.parametrize("design", CORRECT_DESIGNS)
@pytest.mark.parametrize("reconnection", [True, False])
@pytest.mark.parametrize("order", [*permutations(range(4)), "fifo"])
def test_the_correct_designs_let_go_in_every_order(design, reconnection, order):
    """The bus's notification and those of three devices may run in any order, also after a failed attempt."""
    scenario = platform(design, CONNECT, STALE_EXIT, EXIT, devices=ALL_DEVICES, order=order, reconnection=reconnection)
    trace = run(scenario)
    assert judge(trace) == []
    assert memory_calls_at_exit(trace) == 0
    taken_over = records(trace, Kind.TAKE_OVER)
    assert taken_over
    assert all(record.status == "OK" for record in taken_over)


def test_disconnect_calls_memory_services_in_proportion_to_its_disks():
    """n(k) calls for k disks: some for the bus, and for each disk as many as on the shipped binary."""
    calls = {
        count: memory_calls_at_exit(run(platform("disconnect", CONNECT, EXIT, devices=("block",) * count)))
        for count in (0, 1, 2, 4)
    }
    assert calls[0] == 2  # one more than the binary, which keeps its shared info page
    assert calls[1] - calls[0] == calls[2] - calls[1] == (calls[4] - calls[2]) / 2 == 112


def test_disconnect_stops_devices_and_bus_inside_its_notification():
    """The shipped handler runs every Stop while ExitBootServices notifications run."""
    trace = run(platform("disconnect", CONNECT, EXIT, devices=("block",)))
    stops = [(record.agent, record.phase) for record in records(trace, Kind.ENTRY, "Stop")]
    assert stops == [("XenBusDxe", Phase.EXIT), ("XenPvBlkDxe", Phase.EXIT), ("XenBusDxe", Phase.EXIT)]


def test_reference_count_lets_the_last_device_reset_the_connection():
    """With the bus's notification first, the reset happens inside the last device's."""
    trace = run(platform("reference-count", CONNECT, EXIT, devices=("block", "block"), order="fifo"))
    notified = [record.agent for record in records(trace, Kind.ENTRY, "Notify")]
    assert notified == ["XenBusDxe", "XenPvBlkDxe", "XenPvBlkDxe"]
    last = max(index for index, record in enumerate(trace.records) if record[0] == Kind.ENTRY)
    assert [index > last for index, record in enumerate(trace.records) if record[0] == Kind.RESET] == [True, True]


def test_reference_count_follows_start_and_stop():
    """Each Start adds a reference and each Stop removes one, and a new Start of the bus counts from zero."""
    trace = run(platform("reference-count", CONNECT, STOP_BUS, CONNECT, devices=("block", "console")))
    assert [record.value for record in records(trace, Kind.REFERENCE)] == [1, 2, 1, 0, 1, 2]


def test_reference_count_keeps_the_reset_for_a_bus_without_devices():
    """When every device was stopped before, the bus's own notification resets the connection."""
    child = operation("disconnect", controller="child-0")
    trace = run(platform("reference-count", CONNECT, child, EXIT, devices=("block",)))
    assert [record.agent for record in records(trace, Kind.ENTRY, "Notify")] == ["XenBusDxe"]
    assert len(records(trace, Kind.RESET, phase=Phase.EXIT)) == 2


def test_exit_callback_calls_every_started_device_back_once():
    """The bus calls each child that is still started, and nobody else is notified."""
    child = operation("disconnect", controller="child-1")
    trace = run(platform("exit-callback", CONNECT, child, EXIT, devices=ALL_DEVICES))
    assert [record.agent for record in records(trace, Kind.ENTRY, "ExitCallback")] == ["XenPvBlkDxe", "XenPvConsoleDxe"]
    assert [record.agent for record in records(trace, Kind.ENTRY, "Notify")] == ["XenBusDxe"]


@pytest.mark.parametrize("design", PLATFORM_DESIGNS)
def test_a_stopped_bus_has_nothing_to_do_at_the_exit(design):
    """Stop closes the events and resets the connection; the exit then runs nothing and finds nothing."""
    trace = run(platform(design, CONNECT, STOP_BUS, EXIT, devices=ALL_DEVICES))
    assert records(trace, Kind.ENTRY, "Notify") == []
    assert judge(trace) == []
