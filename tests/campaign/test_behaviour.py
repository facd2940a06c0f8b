"""Behaviour coverage: which cells a run shows, and that those which none shows stay at 0."""

from __future__ import annotations

import pytest

from campaign.behaviour import (
    NEAR_MISSES,
    NEAR_MISSES_OF,
    ORDERS,
    REFERENCES,
    SERVICES,
    Behaviour,
    seen,
    size,
)
from fuzz_targets.harness import run_and_judge
from oracles import ORACLES
from reference_impl.failures import CALLS
from reference_impl.scenario import Scenario, operation, scenario
from reference_impl.trace import Kind, Phase, Trace
from reference_impl.uefi.status import EfiStatus

CONNECT, EXIT, STALE, DISCONNECT = (
    operation("connect"),
    operation("exit"),
    operation("exit", map_key="stale"),
    operation("disconnect"),
)
TWO = ("block", "network")


def counted(design: str, *operations, devices: tuple[str, ...] = TWO, **values) -> Scenario:
    """A scenario of a design."""
    return scenario(design=design, devices=devices, operations=operations, **values)


def behaviour_of(*traces: Trace | Scenario) -> Behaviour:
    """What these runs show."""
    behaviour = Behaviour()
    for one in traces:
        behaviour.see(one if isinstance(one, Trace) else run_and_judge(one).trace)
    return behaviour


def test_every_cell_that_is_possible_is_there_before_anything_ran():
    """At 0; so whoever reads the maps sees what never happened."""
    maps = Behaviour().maps
    assert list(maps) == [SERVICES, REFERENCES, ORDERS, NEAR_MISSES]
    assert all(size(cells) and not seen(cells) for cells in maps.values())
    assert set(maps[SERVICES]) == set(CALLS)
    assert maps[SERVICES]["AllocatePool"] == {"EFI_SUCCESS": 0, "EFI_OUT_OF_RESOURCES": 0}
    assert maps[SERVICES]["EVTCHNOP_send"] == {"0": 0, "-22": 0}
    assert maps[SERVICES]["XS_RM"] == {"OK": 0, "ENOENT": 0, "EACCES": 0}


def test_a_cell_counts_runs_and_not_calls():
    """However often a run shows it."""
    run = counted("reference-count", CONNECT, EXIT)
    once, twice = behaviour_of(run).maps, behaviour_of(run, run).maps
    assert once[SERVICES]["AllocatePool"]["EFI_SUCCESS"] == 1
    assert twice[SERVICES]["AllocatePool"]["EFI_SUCCESS"] == 2
    assert twice[SERVICES]["XS_WRITE"]["OK"] == 2
    assert seen(once[SERVICES]) == seen(twice[SERVICES])


def test_an_answer_that_no_armed_failure_gives_is_a_cell_of_its_own():
    """Nothing that was seen is left out."""
    trace = Trace()
    trace.add(Kind.SERVICE, "XenBusDxe", "AllocatePool", (4, 8), EfiStatus.INVALID_PARAMETER)
    trace.add(Kind.SERVICE, "XenBusDxe", "Stall", (4,))
    maps = behaviour_of(trace).maps
    assert maps[SERVICES]["AllocatePool"]["EFI_INVALID_PARAMETER"] == 1
    assert maps[SERVICES]["Stall"]["never returned"] == 1


def test_references_are_seen_by_flag_and_by_where_the_bus_is():
    """Two devices count up before the exit, and down before the bus's notification, which finds nothing to do."""
    cells = seen(behaviour_of(counted("reference-count", CONNECT, EXIT)).maps[REFERENCES])
    assert cells == {
        ("1", "never set, outside of the exit"),
        ("2", "never set, outside of the exit"),
        ("1", "TRUE, before the bus's notification"),
        ("0", "TRUE, before the bus's notification"),
        ("0", "TRUE, in the bus's notification"),
    }
    first = seen(behaviour_of(counted("reference-count", CONNECT, EXIT, order="fifo")).maps[REFERENCES])
    assert {("2", "never set, in the bus's notification"), ("0", "TRUE, after it")} <= first
    assert not seen(behaviour_of(counted("exit-callback", CONNECT, EXIT)).maps[REFERENCES])


def test_a_count_below_zero_is_shown_as_what_it_is():
    """It is impossible, so no cell waits for it."""
    trace = Trace()
    trace.add(Kind.REFERENCE, "XenBusDxe", "RemoveReference", (False,), None, -1)
    assert seen(behaviour_of(trace).maps[REFERENCES]) == {("below 0", "FALSE, outside of the exit")}


@pytest.mark.parametrize(
    ("devices", "order", "cell"),
    [
        ((), "edk2", ("bus alone", "0")),
        (TWO, "edk2", ("bus last", "2")),
        (TWO, "fifo", ("bus first", "2")),
        (TWO, (0, 2, 1), ("bus between", "2")),
        (("block",) * 4, "edk2", ("bus last", "4 or more")),
    ],
)
def test_orders_are_classes(devices, order, cell):
    """Where the bus is among its devices, and how many they are."""
    run = counted("reference-count", CONNECT, EXIT, devices=devices, order=order)
    assert seen(behaviour_of(run).maps[ORDERS]) == {cell}


def test_an_exit_without_the_bus_is_a_class_and_one_without_drivers_is_none():
    """The platform's own notifications do not count."""
    trace = Trace()
    trace.phase = int(Phase.EXIT)
    trace.add(Kind.ENTRY, "third-party", "Notify", (1, "g"), EfiStatus.SUCCESS)
    assert not seen(behaviour_of(trace).maps[ORDERS])
    trace.add(Kind.ENTRY, "XenPvBlkDxe", "Notify", (2, "g"), EfiStatus.SUCCESS)
    assert seen(behaviour_of(trace).maps[ORDERS]) == {("no bus", "1")}


# ---- near misses ----------------------------------------------------------------------------------------------------


def hand_made() -> Trace:
    """What no reference design does in the conforming environment."""
    trace = Trace()
    trace.phase = int(Phase.BEFORE)
    trace.add(Kind.SERVICE, "XenBusDxe", "AllocatePool", (4, 8), EfiStatus.SUCCESS)
    trace.tpl = 16
    trace.add(Kind.ENTRY, "XenBusDxe", "Notify", (1, "g"), EfiStatus.SUCCESS)
    trace.phase = int(Phase.EXIT)
    trace.add(Kind.SERVICE, "XenBusDxe", "OpenProtocol", (1,), EfiStatus.ACCESS_DENIED)
    return trace


def armed(nth: int, call: str = "AllocatePool -> EFI_OUT_OF_RESOURCES"):
    """The operation that makes a call fail."""
    return operation("fail", call=call, nth=nth)


def test_every_near_miss_can_be_seen_and_an_empty_run_shows_none():
    """A situation that nobody can bring about would stay in the list of gaps for ever."""
    late = operation("backend", delay=5)
    event = armed(2, "CreateEvent -> EFI_OUT_OF_RESOURCES")
    runs = (
        hand_made(),
        counted("disconnect", CONNECT, EXIT),
        counted("disconnect", CONNECT, DISCONNECT, EXIT),
        counted("exit-callback", operation("unload", driver="block"), CONNECT, operation("unload"), EXIT),
        counted("reference-count", CONNECT, STALE, operation("allocate"), EXIT, order="fifo"),
        counted("reference-count", late, CONNECT, DISCONNECT, CONNECT, EXIT),
        counted("reference-count", event, CONNECT, CONNECT, EXIT),
        counted("reference-count", armed(3), CONNECT, CONNECT, EXIT),
        counted("reference-count", armed(3, "CreateEvent -> EFI_OUT_OF_RESOURCES"), CONNECT, EXIT),
        counted("reference-count", EXIT),
    )
    shown = seen(behaviour_of(*runs).maps[NEAR_MISSES])
    assert {(miss.oracle, miss.sentence) for miss in NEAR_MISSES_OF} - shown == set()
    assert not seen(behaviour_of(Trace()).maps[NEAR_MISSES])


def test_every_oracle_on_designs_has_near_misses():
    """An oracle without would look as if it had seen everything."""
    assert set(ORACLES) - {miss.oracle for miss in NEAR_MISSES_OF} <= {"guest-fault"}
    sentences = [miss.sentence for miss in NEAR_MISSES_OF]
    assert len(set(sentences)) == len(sentences)
