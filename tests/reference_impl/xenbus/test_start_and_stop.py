"""Start and Stop of the bus and its devices: a failing Start changes nothing, a Stop gives everything back."""

from __future__ import annotations

from collections import Counter

import pytest

from oracles import judge
from reference_impl.failures import ALLOCATIONS, CLEANUP
from reference_impl.scenario import FAILURES, operation
from reference_impl.trace import Kind, Phase
from reference_impl.uefi.definitions import SearchType
from reference_impl.uefi.status import EfiError, EfiStatus
from reference_impl.world import PlatformWorld, run
from reference_impl.xenbus.bus_driver import GRANT_ENTRIES
from tests.scenarios import CONNECT, CORRECT_DESIGNS, EXIT, PLATFORM_DESIGNS, STOP_BUS, platform, records

CORE_IMAGE = 1  # the first handle
DEVICES = ("block", "network")
IN_START = [name for name, (call, _) in FAILURES.items() if call in ALLOCATIONS or call not in CLEANUP]


def held(trace):
    """What drivers hold at the end of a trace: pool, pages, events, opens, grants, ports, frames, watches."""
    balance = Counter()
    for record in records(trace, Kind.SERVICE):
        taken = {"AllocatePool": "pool", "AllocatePages": "pages", "CreateEvent": "event"}.get(record.name)
        given = {"FreePool": "pool", "FreePages": "pages", "CloseEvent": "event"}.get(record.name)
        if record.agent.startswith("Xen") and record.status == EfiStatus.SUCCESS and (taken or given):
            balance[taken or given] += 1 if taken else -1
    for record in records(trace, Kind.GRANT):
        balance[record.agent, "grant"] += {"grant": 1, "end": -1, "map": 1, "unmap": -1}[record.name] * (
            record.status == "OK"
        )
    for record in records(trace, Kind.HYPERCALL):
        change = {
            "EVTCHNOP_alloc_unbound": 1,
            "EVTCHNOP_close": -1,
            "XENMEM_add_to_physmap": 1,
            "XENMEM_remove_from_physmap": -1,
        }
        balance[record.name.split("_")[0]] += change.get(record.name, 0) * (record.status == 0)
    for record in records(trace, Kind.XENSTORE):
        balance["watch"] += {"WATCH": 1, "UNWATCH": -1}.get(record.name, 0) * (record.status == "OK")
    return {what: count for what, count in balance.items() if count}


def database(world):
    """Every handle with its protocols and which driver has them open (the core's own look-ups leave records too)."""
    handles = world.core.handles
    return {
        (handle, protocol): [record for record in handles.open_records(handle, protocol) if record[0] != CORE_IMAGE]
        for handle in handles.locate(SearchType.ALL_HANDLES, "", 0)
        for protocol in world.firmware.protocols_per_handle(handle)[1]
    }


@pytest.mark.parametrize("design", PLATFORM_DESIGNS)
@pytest.mark.parametrize("reconnection", [True, False])
def test_stop_gives_back_everything_that_start_took(design, reconnection):
    """After Start and Stop no driver holds anything, and the handle database is as it was."""
    scenario = platform(design, CONNECT, STOP_BUS, devices=("block", "network", "console"), reconnection=reconnection)
    world = PlatformWorld(scenario)
    before = database(world)
    trace = world.run()
    assert held(trace) == {}
    assert database(world) == before


@pytest.mark.parametrize("design", PLATFORM_DESIGNS)
def test_a_second_start_does_what_the_first_did(design):
    """Start, Stop, Start does the same work as one Start."""
    once = run(platform(design, CONNECT, devices=DEVICES))
    twice = run(platform(design, CONNECT, STOP_BUS, CONNECT, devices=DEVICES))

    def work(records_):
        return [
            (record[1], record[5]) for record in records_ if record[0] in (Kind.HYPERCALL, Kind.XENSTORE, Kind.ENTRY)
        ]

    second = max(index for index, record in enumerate(twice.records) if record[0] == Kind.OPERATION)
    assert work(once.records) == work(twice.records[second:])


@pytest.mark.parametrize("design", CORRECT_DESIGNS)
@pytest.mark.parametrize("failure", IN_START)
def test_start_survives_every_single_failure(design, failure):
    """Each call that may fail is refused at each of its places in turn; Start then either copes or gives all back.

    The hand-over that follows must be right, and so must a second try.
    """
    fired = 0
    for nth in range(1, 129):
        armed = operation("fail", call=failure, nth=nth)
        trace = run(
            platform(design, armed, CONNECT, STOP_BUS, CONNECT, EXIT, devices=DEVICES, reconnection=bool(nth % 2))
        )
        if not records(trace, Kind.INJECTED):
            break
        fired += 1
        assert judge(trace) == [], f"{failure} at call {nth}"
        assert not records(trace, Kind.STUCK)
    call = FAILURES[failure][0]
    connected = run(platform(design, CONNECT, devices=DEVICES))
    used = {record.name for record in records(connected, Kind.SERVICE) if record.agent.startswith("Xen")}
    if call in used:
        assert fired, f"{failure} was never tried"


@pytest.mark.parametrize("design", CORRECT_DESIGNS)
def test_a_failed_start_takes_back_every_child_whatever_else_fails(design):
    """The third device finds no memory, and then the second cannot be looked up; a careless bus would leave it behind."""
    trace = run(
        platform(
            design,
            operation("fail", nth=12),
            operation("fail", call="OpenProtocol -> EFI_OUT_OF_RESOURCES", nth=6),
            CONNECT,
            CONNECT,
            EXIT,
            devices=("block",) * 3,
        )
    )
    assert len(records(trace, Kind.INJECTED)) == 2
    assert judge(trace) == []


def test_disconnect_design_gives_everything_back_after_each_failed_start():
    """The shipped design's ways back are right too; what is wrong with it is only where it runs them."""
    for nth in range(1, 129):
        armed = operation("fail", call="AllocatePool -> EFI_OUT_OF_RESOURCES", nth=nth)
        trace = run(platform("disconnect", armed, CONNECT, STOP_BUS, devices=("block",)))
        if not records(trace, Kind.INJECTED):
            break
        if records(trace, Kind.ENTRY, "Start")[0].status:
            assert held(trace) == {}, f"call {nth}"
    assert nth > 20


def test_a_device_that_is_not_initialising_is_left_alone():
    """The bus makes no child of a device that is somebody else's or on its way out."""
    trace = run(platform("reference-count", operation("remove-device"), operation("time"), CONNECT, devices=("block",)))
    assert [record.agent for record in records(trace, Kind.ENTRY, "Start")] == ["XenBusDxe"]


def test_a_late_backend_is_waited_for():
    """A peer that answers after many steps is as good as a prompt one."""
    slow = operation("backend", device=0, delay=21)
    for design in PLATFORM_DESIGNS:
        trace = run(platform(design, slow, CONNECT, EXIT, devices=("block",)))
        assert {record.status for record in records(trace, Kind.TAKE_OVER) if record.name != "memory-map"} == {"OK"}


def test_one_request_is_served_through_the_published_interface():
    """Each kind of device does real work: it notifies the peer and gets its answer."""
    for index, kind in enumerate(("block", "network", "console")):
        request = operation("request", device=0)
        trace = run(platform("reference-count", CONNECT, request, EXIT, devices=(kind,)))
        operations = records(trace, Kind.OPERATION)
        assert operations[1].status is None, index
        assert judge(trace) == []


def test_a_driver_that_is_unloaded_lets_go_first_and_comes_back():
    """UnloadImage stops the driver everywhere; after a reload it manages its device again."""
    unload, load = operation("unload", driver="block"), operation("load", driver="block")
    trace = run(platform("reference-count", CONNECT, unload, load, CONNECT, EXIT, devices=("block",)))
    names = [
        (record.name, record.agent)
        for record in records(trace, Kind.ENTRY)
        if record.name in ("Start", "Stop", "Unload")
    ]
    assert names == [
        ("Start", "XenBusDxe"),
        ("Start", "XenPvBlkDxe"),
        ("Unload", "XenPvBlkDxe"),
        ("Stop", "XenPvBlkDxe"),
        ("Start", "XenPvBlkDxe"),
    ]
    assert judge(trace) == []


def test_unloading_the_bus_takes_its_devices_down():
    """The bus's Unload stops the children's drivers and then the bus itself."""
    trace = run(platform("exit-callback", CONNECT, operation("unload", driver="xenbus"), EXIT, devices=DEVICES))
    assert held(trace) == {}
    assert records(trace, Kind.ENTRY, phase=Phase.EXIT) == []


def test_stop_refuses_what_was_never_started():
    """Stop on a controller that the driver does not manage is refused (UEFI 2.10 §11.1)."""

    world = PlatformWorld(platform("reference-count"))
    driver = world._drivers["block"]
    with pytest.raises(EfiError) as refused:
        driver.stop(1234, ())
    assert refused.value.status == EfiStatus.DEVICE_ERROR


def test_start_refuses_a_controller_that_it_manages_already():
    """Start twice with the same arguments: EFI_ALREADY_STARTED."""

    world = PlatformWorld(platform("reference-count", CONNECT))
    world.run()
    driver = world._drivers["xenbus"]
    with pytest.raises(EfiError) as refused:
        driver.start(world._controller, None)
    assert refused.value.status == EfiStatus.ALREADY_STARTED


def test_references_run_out_one_day():
    """With all grant entries in use the bus refuses another one."""

    world = PlatformWorld(platform("reference-count", CONNECT))
    world.run()
    (bus,) = world._drivers["xenbus"].instances.values()
    bus.grants._next = GRANT_ENTRIES
    with pytest.raises(EfiError) as refused:
        bus.grants.grant(0, 5)
    assert refused.value.status == EfiStatus.OUT_OF_RESOURCES
