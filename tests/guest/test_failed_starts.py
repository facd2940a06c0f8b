"""What the shipped Starts do when one call fails: each call of both drivers in turn, whatever it is.

The machine is conforming: it refuses memory, services of Start, hypercalls and xenstore requests, as it may.
"""

from __future__ import annotations

from collections import Counter

import pytest

from guest.world import run
from oracles import judge
from reference_impl.failures import ALLOCATIONS, CLEANUP
from reference_impl.scenario import FAILURES, operation, scenario
from reference_impl.trace import Kind, Record
from tests.guest.firmware import need_firmware
from tests.scenarios import CONNECT, EXIT

NULL_POINTERS = {
    *("XenBusDxe+0x1726", "XenBusDxe+0x1817", "XenBusDxe+0x1ad6", "XenBusDxe+0x1b37", "XenBusDxe+0x1e5f"),
    *("XenBusDxe+0x21d0", "XenBusDxe+0x223e", "XenBusDxe+0x2247", "XenBusDxe+0x2424", "XenBusDxe+0x242f"),
    *("XenBusDxe+0x25a0", "XenBusDxe+0x2636", "XenBusDxe+0x2ceb"),
    *("XenPvBlkDxe+0x15e4", "XenPvBlkDxe+0x16a2", "XenPvBlkDxe+0x16af"),
}
"""Where the images use what an allocation did not give."""

IN_START = [name for name, (call, _) in FAILURES.items() if call not in CLEANUP and call not in ALLOCATIONS]
ENDLESS = ("HVMOP_get_param", "XS_TRANSACTION_END")
ONE_OF_EACH_CALL = {
    call: name for name in reversed(IN_START) if not (call := FAILURES[name][0]).startswith(ENDLESS)
}.values()
"""Failures of calls that Start makes and that come to an end; each call once."""


@pytest.fixture(autouse=True)
def firmware():
    """The shipped drivers."""
    need_firmware()


def traces(failure, *rest, **more):
    """The traces of two attempts to connect everything, with `failure` at each of its places in turn."""
    for nth in range(1, 129):
        armed = operation("fail", call=failure, nth=nth)
        steps = (armed, CONNECT, CONNECT, *rest)
        trace = run(scenario(world="efi-image", design="shipped", devices=("block",), operations=steps, **more))
        if not any(record[0] == Kind.INJECTED for record in trace.records):
            return
        yield nth, trace


def signatures(trace, oracle):
    """What one oracle says about a trace."""
    return {finding.signature for finding in judge(trace) if finding.oracle == oracle}


def starts(trace):
    """How each Start ended: (driver, status)."""
    named = [Record(*record) for record in trace.records if record[0] == Kind.ENTRY]
    return [(record.agent, str(record.status)) for record in named if record.name == "Start"]


def test_refused_allocations_have_sixteen_causes():
    """Of 83 allocations of both Starts, 80 are used although they were refused, at sixteen places of the images."""
    found = Counter()
    for failure in ("AllocatePool -> EFI_OUT_OF_RESOURCES", "AllocatePages -> EFI_OUT_OF_RESOURCES"):
        for _, trace in traces(failure):
            (signature,) = signatures(trace, "guest-fault") or {""}
            found[signature] += 1
    assert found.pop("") == 3
    assert found.total() == 80
    assert set(found) == {f"guest-fault/null-pointer/{place.partition('+')[0]}/{place}" for place in NULL_POINTERS}


def test_with_memory_at_address_zero_most_of_them_go_on():
    """Where page 0 is mapped, three of 83 still fault; elsewhere what is in that page is taken for an answer."""
    hostile = {"environment": "hostile", "switches": ("page-0-mapped",)}
    found, dangling = Counter(), set()
    for failure in ("AllocatePool -> EFI_OUT_OF_RESOURCES", "AllocatePages -> EFI_OUT_OF_RESOURCES"):
        for nth, trace in traces(failure, **hostile):
            found[next(iter(signatures(trace, "guest-fault")), "")] += 1
            if ("XenBusDxe", "EFI_ALREADY_STARTED") in starts(trace):
                dangling.add((failure, nth))
    assert found == {
        "": 80,
        "guest-fault/exception/XenPvBlkDxe/XenPvBlkDxe+0x16ba": 2,  # the compiler saw the NULL pointer: ud2
        "guest-fault/null-pointer/XenPvBlkDxe/XenPvBlkDxe+0x119d": 1,
    }
    assert dangling == set()


@pytest.mark.parametrize("failure", [name for name in IN_START if name.startswith("XENMEM_add_to_physmap")])
def test_failed_start_of_the_bus_leaves_a_dangling_global(failure):
    """When the shared info page cannot be placed, Start fails, and every later Start says that the bus is started."""
    (_, first), *others = traces(failure, CONNECT, EXIT)
    assert starts(first) == [
        ("XenBusDxe", "EFI_UNSUPPORTED"),
        ("XenBusDxe", "EFI_ALREADY_STARTED"),
        ("XenBusDxe", "EFI_ALREADY_STARTED"),
    ]
    assert len(others) == 4  # the frames of the grant table, whose failure nobody looks at
    for _, trace in others:
        assert ("XenBusDxe", "EFI_SUCCESS") in starts(trace)


def test_no_other_failure_leaves_the_global():
    """Services, hypercalls and requests of both Starts, one by one: placing the shared info page is the only one."""
    dangling = {
        (FAILURES[failure][0], nth)
        for failure in ONE_OF_EACH_CALL
        for nth, trace in traces(failure)
        if ("XenBusDxe", "EFI_ALREADY_STARTED") in starts(trace)
    }
    assert dangling == {("XENMEM_add_to_physmap", 1)}


def test_ignored_event_leaves_the_device_live_at_hand_over():
    """The third CreateEvent is the one for ExitBootServices; without it Start succeeds and nobody lets go."""
    *_, (nth, trace) = traces("CreateEvent -> EFI_OUT_OF_RESOURCES", EXIT)
    assert nth == 3
    assert starts(trace) == [("XenBusDxe", "EFI_SUCCESS"), ("XenPvBlkDxe", "EFI_SUCCESS")]
    assert {"/".join(each.signature.split("/")[:2]) for each in judge(trace) if each.oracle == "connection-reset"} == {
        "connection-reset/missed-reset"
    }
    assert {"hand-over/store/XenBusDxe/store", "hand-over/device/XenBusDxe/vbd"} <= signatures(trace, "hand-over")


def test_failed_start_leaves_the_backend_connected_and_the_exit_hangs():
    """When the backend's state cannot be read, Start fails with the backend connected; the next one then succeeds.

    It uses the old ring of the backend, in a page that was freed, and waits inside ExitBootServices for ever.
    """
    armed, slow = operation("fail", call="XS_READ -> EIO", nth=6), operation("backend", delay=1)
    steps = (armed, CONNECT, CONNECT, slow, EXIT)
    trace = run(scenario(world="efi-image", design="shipped", devices=("block",), operations=steps))
    assert starts(trace) == [
        ("XenBusDxe", "EFI_SUCCESS"),
        ("XenPvBlkDxe", "EFI_DEVICE_ERROR"),
        ("XenPvBlkDxe", "EFI_SUCCESS"),
    ]
    assert signatures(trace, "guest-fault") == {"guest-fault/dead-loop/XenPvBlkDxe/Stop"}
