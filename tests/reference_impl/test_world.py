"""The platform world: what an environment allows, what is skipped, and that the same scenario gives the same trace."""

from __future__ import annotations

import random

import pytest

from fuzz_targets.generator import generate
from fuzz_targets.registry import TARGETS
from oracles import judge
from reference_impl.scenario import operation
from reference_impl.trace import Kind, Phase
from reference_impl.uefi.status import EfiStatus
from reference_impl.world import run
from tests.scenarios import CONNECT, EXIT, PLATFORM_DESIGNS, STALE_EXIT, STOP_BUS, platform, records


@pytest.mark.parametrize("design", PLATFORM_DESIGNS)
def test_the_same_scenario_gives_the_same_trace(design):
    """Two runs of any scenario agree in every record."""
    source = random.Random(7)
    for _ in range(60):
        scenario = generate(source, TARGETS["lifecycle"], design)
        assert repr(run(scenario).records) == repr(run(scenario).records)


def test_a_stale_key_is_refused_and_a_retry_succeeds():
    """The first attempt fails without the EXIT group; the retry runs it once, and BEFORE does not run again."""
    trace = run(platform("reference-count", CONNECT, STALE_EXIT, EXIT, devices=("block",)))
    first, second = records(trace, Kind.SERVICE, "ExitBootServices")
    assert first.status == EfiStatus.INVALID_PARAMETER
    assert second.status == EfiStatus.SUCCESS
    assert len(records(trace, Kind.EXIT, "before-group")) == 1
    assert len(records(trace, Kind.EXIT, "exit-group")) == 1
    assert len(records(trace, Kind.EXIT, "runtime")) == 1


def test_after_an_attempt_only_memory_time_and_a_retry_come():
    """Everything else is skipped with its reason (UEFI 2.10 §7.4.6)."""
    later = (
        CONNECT,
        STOP_BUS,
        operation("allocate"),
        operation("time"),
        operation("free"),
        operation("unload", driver="block"),
    )
    trace = run(platform("reference-count", CONNECT, STALE_EXIT, *later, devices=("block",)))
    skipped = [record.name for record in records(trace, Kind.OPERATION) if isinstance(record.status, str)]
    assert skipped == ["connect", "disconnect", "unload"]


def test_nothing_comes_after_a_successful_exit():
    """The operating system owns the machine: even a second exit is skipped."""
    trace = run(platform("reference-count", EXIT, EXIT, operation("time")))
    assert [record.status for record in records(trace, Kind.OPERATION)] == [None] + 2 * [
        "the operating system owns the machine"
    ]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (operation("connect", controller="child-3"), "there is no such device"),
        (operation("disconnect", controller="child-0"), "the bus has no such child"),
        (operation("request", device=0), "no driver has started this device"),
        (operation("request", device=5), "there is no such device"),
        (operation("remove-device", device=5), "there is no such device"),
        (operation("backend", device=5), "there is no such device"),
        (operation("load", driver="block"), "the driver is loaded"),
        (operation("free"), "the loader holds no pages"),
    ],
)
def test_an_operation_without_an_object_is_skipped_with_its_reason(step, reason):
    """The rest of the scenario goes on."""
    trace = run(platform("reference-count", step, EXIT, devices=("block",)))
    first, second = records(trace, Kind.OPERATION)
    assert first.status.startswith(reason)
    assert second.status is None


def test_an_unloaded_driver_cannot_be_named():
    """Unloading twice, or connecting with a driver that is gone, is skipped."""
    gone = operation("unload", driver="block")
    trace = run(platform("reference-count", gone, gone, operation("connect", driver="block")))
    assert [record.status for record in records(trace, Kind.OPERATION)] == [
        None,
        "the driver is not loaded",
        "the driver is not loaded",
    ]


@pytest.mark.parametrize("failure", ["FreePool -> EFI_INVALID_PARAMETER", "EVTCHNOP_close -> -22", "XS_RM -> ENOENT"])
def test_cleanup_never_fails_in_the_conforming_environment(failure):
    """A failure that is armed for a call that gives something back does not fire."""
    trace = run(platform("disconnect", operation("fail", call=failure), CONNECT, STOP_BUS, devices=("block",)))
    assert records(trace, Kind.INJECTED) == []


def test_allocations_may_fail_in_stop_too():
    """Allocations may fail anywhere before the exit; other calls only inside Supported and Start."""
    pool = operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES")
    opened = operation("fail", call="RegisterProtocolNotify -> EFI_OUT_OF_RESOURCES")
    trace = run(platform("disconnect", CONNECT, pool, opened, STOP_BUS, devices=("block",)))
    assert [record.name for record in records(trace, Kind.INJECTED)] == ["AllocatePool"]


def test_nothing_fails_once_the_exit_has_begun():
    """An armed failure that has not fired by the first attempt stays where it is."""
    pool = operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES")
    trace = run(platform("disconnect", CONNECT, pool, EXIT, devices=("block",)))
    assert records(trace, Kind.INJECTED) == []
    assert records(trace, Kind.SERVICE, "AllocatePool", Phase.EXIT)


def test_a_device_that_is_added_appears_at_the_next_start_of_the_bus():
    """The bus enumerates when it starts, as edk2's does."""
    add = operation("add-device", kind="network")
    trace = run(platform("reference-count", CONNECT, add, CONNECT, STOP_BUS, CONNECT))
    started = [record.agent for record in records(trace, Kind.ENTRY, "Start")]
    assert started == ["XenBusDxe", "XenBusDxe", "XenPvNetDxe"]


def test_connecting_a_named_driver_leaves_children_alone_without_recursion():
    """`recursive: false` starts the bus and no device."""
    trace = run(platform("reference-count", operation("connect", driver="xenbus", recursive=False), devices=("block",)))
    assert [record.agent for record in records(trace, Kind.ENTRY, "Start")] == ["XenBusDxe"]


def test_the_loader_moves_the_map_key_between_attempts():
    """Memory services are allowed after a failed attempt, and a fresh key then succeeds."""
    trace = run(platform("reference-count", STALE_EXIT, operation("allocate", pages=4), operation("free"), EXIT))
    assert records(trace, Kind.MAP_KEY, phase=Phase.RETRY)
    assert records(trace, Kind.EXIT, "runtime")


def test_a_map_that_moves_during_the_exit_is_seen_by_the_operating_system():
    """`disconnect` frees pages in its handler: the map that the loader holds is stale, and nobody told it."""
    trace = run(platform("disconnect", CONNECT, EXIT, devices=("block",)))
    (record,) = records(trace, Kind.TAKE_OVER, "memory-map")
    assert "has moved on" in record.status


def test_a_machine_has_as_many_devices_as_operations_can_name():
    """The ninth device is refused, so that no scenario grows a machine without bound."""
    add = operation("add-device", kind="console")
    trace = run(platform("reference-count", *[add] * 7, CONNECT, EXIT, devices=("block", "block")))
    assert [record.status for record in records(trace, Kind.OPERATION)][5:7] == [
        None,
        "the machine has no place for another device",
    ]
    assert judge(trace) == []
