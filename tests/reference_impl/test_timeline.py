"""How a trace reads."""

from __future__ import annotations

import pytest

from reference_impl import timeline
from reference_impl.failures import BOOT_SERVICES, GUEST_SERVICES, PCI_ACCESSES
from reference_impl.timeline import describe, lines
from reference_impl.trace import Kind, Phase, Record, Trace
from reference_impl.uefi import guids
from reference_impl.uefi.definitions import EventType, OpenAttribute, Tpl
from reference_impl.uefi.status import EfiStatus

SUCCESS = EfiStatus.SUCCESS


def record(kind: Kind, agent: str, name: str, arguments=(), status=None, value=None) -> Record:
    """A record at the start of the machine."""
    return Record(kind, agent, 4, 0, 0, name, arguments, status, value)


def test_a_trace_prints_as_a_timeline():
    """Operations are headlines; what happened inside a call is indented below it; marked steps say what is wrong."""
    trace = Trace()
    trace.add(Kind.OPERATION, "scenario", "connect", ("bus", "any", True), None, 0)
    trace.add(Kind.SERVICE, "firmware", "ConnectController", (0x101, (), None, True), SUCCESS)
    trace.depth = 1
    trace.add(Kind.ENTRY, "XenBusDxe", "Start", (0x101, None), SUCCESS)
    trace.depth, trace.tpl, trace.phase = 2, int(Tpl.NOTIFY), int(Phase.EXIT)
    trace.add(Kind.SERVICE, "XenBusDxe", "AllocatePool", (4, 64), SUCCESS, 0x7F000018)
    trace.depth, trace.tpl = 0, 12
    trace.add(Kind.OPERATION, "scenario", "exit", ("stale",), "the operating system owns the machine", 1)
    trace.add(Kind.STUCK, "XenPvBlkDxe", "no-progress", ("WaitForEvent",))
    marks = {3: "no allocation is allowed here", 4: "why", 5: "it waits for ever"}
    assert "\n".join(lines(trace, marks)) == (
        "    step  phase    TPL          what happened\n"
        "\n"
        "          ──── operation 0: connect controller=bus driver=any recursive=TRUE\n"
        "       1  BOOT     APPLICATION  firmware: ConnectController(controller=0x101, driver_handles=(),"
        " remaining_device_path=NULL, recursive=TRUE) = EFI_SUCCESS\n"
        "       2  BOOT     APPLICATION    XenBusDxe enters Start(controller=0x101, remaining_device_path=NULL)"
        " = EFI_SUCCESS\n"
        ">>>    3  EXIT     NOTIFY           XenBusDxe: AllocatePool(memory_type=BOOT_SERVICES_DATA, size_bytes=64)"
        " = EFI_SUCCESS → 0x7f000018\n"
        "          >>> no allocation is allowed here\n"
        "\n"
        ">>>       ──── operation 1: exit map_key=stale   (skipped: the operating system owns the machine)\n"
        "          >>> why\n"
        ">>>    5  EXIT     12           run ended: no-progress in WaitForEvent, XenPvBlkDxe\n"
        "          >>> it waits for ever"
    )


def test_a_trace_without_marks_prints_unmarked():
    """Marks are optional."""
    trace = Trace()
    trace.add(Kind.MAP_KEY, "", "bump", (1, 2))
    assert list(lines(trace))[1:] == ["       0  BOOT     APPLICATION  memory map key 1 → 2"]


def test_an_excerpt_says_where_something_is_left_out():
    """Once for each gap, however long it is."""
    trace = Trace()
    for key in range(6):
        trace.add(Kind.MAP_KEY, "", "bump", (key, key + 1))
    shown = [line.split()[0] for line in lines(trace, only={2, 3})]
    assert shown == ["step", "⋯", "2", "3", "⋯"]


PHRASES = [
    (
        record(
            Kind.SERVICE, "Drv", "OpenProtocol", (0x21, guids.XENBUS_PROTOCOL, 0x31, 0x21, 0x10, True), SUCCESS, 0x5000
        ),
        "Drv: OpenProtocol(handle=0x21, protocol=XENBUS, agent_handle=0x31, controller=0x21, attributes=BY_DRIVER)"
        " = EFI_SUCCESS → 0x5000",
    ),
    (
        record(
            Kind.SERVICE, "Drv", "OpenProtocol", (0x21, guids.XENBUS_PROTOCOL, 0x31, 0x21, 0x30, False),
            EfiStatus.INVALID_PARAMETER,
        ),
        "Drv: OpenProtocol(handle=0x21, protocol=XENBUS, agent_handle=0x31, controller=0x21,"
        " attributes=BY_DRIVER|EXCLUSIVE, out=NULL) = EFI_INVALID_PARAMETER",
    ),
    (
        record(Kind.SERVICE, "Drv", "CreateEvent", (0x201, 8, "on_exit", None), SUCCESS, 0x77),
        "Drv: CreateEvent(event_type=SIGNAL_EXIT_BOOT_SERVICES, notify_tpl=CALLBACK, function=on_exit, context=NULL)"
        " = EFI_SUCCESS → 0x77",
    ),
    (
        record(Kind.SERVICE, "Drv", "SetTimer", (0x77, 2, 10000), SUCCESS),
        "Drv: SetTimer(event=0x77, delay_type=RELATIVE, trigger_time_100ns=10000) = EFI_SUCCESS",
    ),
    (
        record(Kind.SERVICE, "Drv", "RaiseTPL", (16,), SUCCESS, 8),
        "Drv: RaiseTPL(new_tpl=NOTIFY) = EFI_SUCCESS → CALLBACK",
    ),
    (
        record(Kind.SERVICE, "Drv", "RaiseTPL", (5,), SUCCESS, 4),
        "Drv: RaiseTPL(new_tpl=0x5) = EFI_SUCCESS → APPLICATION",
    ),
    (record(Kind.SERVICE, "Drv", "Stall", (1000000,)), "Drv: Stall(microseconds=1000000)"),
    (
        record(Kind.SERVICE, "loader", "GetMemoryMap", (65536,), SUCCESS, (tuple(range(12)), 41, 576)),
        "loader: GetMemoryMap(size_bytes=65536) = EFI_SUCCESS → ((12 entries), 41, 576)",
    ),
    (
        record(
            Kind.SERVICE, "Drv", "InstallMultipleProtocolInterfaces",
            (0, (guids.DEVICE_PATH_PROTOCOL, 0x100), (guids.XENBUS_PROTOCOL, 0x200)), SUCCESS, 0x22,
        ),
        "Drv: InstallMultipleProtocolInterfaces(handle=0x0, pairs=(DEVICE_PATH, 0x100), (XENBUS, 0x200))"
        " = EFI_SUCCESS → 0x22",
    ),
    (record(Kind.SERVICE, "Drv", "Unheard", (7, 0x12345)), "Drv: Unheard(7, 0x12345)"),
    (
        record(Kind.CORE_MEMORY, "Drv", "OpenProtocol", ("allocate", 48), None, 0x9000),
        "core, in OpenProtocol of Drv: allocates 48 bytes at 0x9000",
    ),
    (
        record(Kind.CORE_MEMORY, "Drv", "CloseEvent", ("free", 0), None, 0x9000),
        "core, in CloseEvent of Drv: frees 0x9000",
    ),
    (record(Kind.CORE_MEMORY, "", "", ("allocate", 72), None, 0x180), "core: allocates 72 bytes at 0x180"),
    (
        record(Kind.ENTRY, "Drv", "Notify", (0x77, guids.EVENT_GROUP_EXIT_BOOT_SERVICES)),
        "Drv enters Notify(event=0x77, group=EVENT_GROUP_EXIT_BOOT_SERVICES)",
    ),
    (record(Kind.ENTRY, "Drv", "GetDriver", (0x22, None)), "Drv enters GetDriver(34, NULL)"),
    (
        record(Kind.INJECTED, "Drv", "AllocatePool", (), EfiStatus.OUT_OF_RESOURCES),
        "armed failure: AllocatePool by Drv answers EFI_OUT_OF_RESOURCES",
    ),
    (record(Kind.INJECTED, "Drv", "EVTCHNOP_send", (), -22), "armed failure: EVTCHNOP_send by Drv answers -EINVAL"),
    (
        record(Kind.HYPERCALL, "Drv", "XENMEM_add_to_physmap", (1, 0, 0xF2000), 0),
        "Drv: hypercall XENMEM_add_to_physmap(space=1, index=0, frame=0xf2000) = OK",
    ),
    (
        record(Kind.HYPERCALL, "Drv", "EVTCHNOP_alloc_unbound", (0,), 0, 5),
        "Drv: hypercall EVTCHNOP_alloc_unbound(remote_domain=0) = OK → 5",
    ),
    (record(Kind.HYPERCALL, "Drv", "EVTCHNOP_close", (9,), -99), "Drv: hypercall EVTCHNOP_close(port=9) = -99"),
    (record(Kind.HYPERCALL, "Drv", "EVTCHNOP_send", (9,)), "Drv: hypercall EVTCHNOP_send(port=9)"),
    (
        record(Kind.XENSTORE, "Drv", "WRITE", ("device/vbd/0/state", b"4"), "OK", b""),
        "xenstored, for Drv: WRITE(device/vbd/0/state, '4') = OK → ''",
    ),
    (
        record(Kind.XENSTORE, "Drv", "READ", ("x" * 80, b"y" * 80, ""), "ENOENT"),
        f"xenstored, for Drv: READ({'x' * 60}…, '{'y' * 60}'…, \"\") = ENOENT",
    ),
    (record(Kind.CONNECTION, "Bus", "ring", (2,)), "Bus takes the ring into use, generation 2"),
    (record(Kind.RESET, "Bus", "ring", (2,), None, "reconnect"), "Bus resets the ring, generation 2, by: reconnect"),
    (record(Kind.RESET, "Bus", "grant-table", (1,)), "Bus resets the grant-table, generation 1"),
    (
        record(Kind.REFERENCE, "Bus", "RemoveReference", (True,), None, 0),
        "Bus: RemoveReference(TRUE), count is now 0",
    ),
    (
        record(Kind.GRANT, "Drv", "grant", (8, 0x1234, 0), "OK"),
        "Drv: grant access (reference=0x8, frame=0x1234, domain=0) = OK",
    ),
    (record(Kind.GRANT, "Drv", "end", (8,), "in use"), "Drv: end access (reference=0x8) = in use"),
    (
        record(Kind.XENBUS_STATE, "frontend", "device/vbd/0", (1, "4")),
        "frontend of device/vbd/0: state Initialising → Connected",
    ),
    (
        record(Kind.XENBUS_STATE, "backend", "device/vbd/0", (99, "soon")),
        "backend of device/vbd/0: state 99 → soon",
    ),
    (record(Kind.MAP_KEY, "Drv", "bump", (3, 4)), "memory map key 3 → 4, by Drv"),
    (record(Kind.EXIT, "os-loader", "before-group"), "ExitBootServices: before-group"),
    (
        record(Kind.EXIT, "os-loader", "key-check", (3, 4), EfiStatus.INVALID_PARAMETER),
        "ExitBootServices: key-check (map_key=3, current_key=4) = EFI_INVALID_PARAMETER",
    ),
    (
        record(Kind.MEMORY, "Drv", "double-free", (0x9000, "Bus")),
        "misuse by Drv: double-free (address=0x9000, owner=Bus)",
    ),
    (
        record(Kind.TAKE_OVER, "os", "device/vbd/0", (), "a grant is left", "XenPvBlkDxe"),
        "operating system takes over: device/vbd/0 = a grant is left (left by XenPvBlkDxe)",
    ),
    (
        record(Kind.TAKE_OVER, "os", "memory-map", (7, 7), "OK", ""),
        "operating system takes over: memory-map (7, 7) = OK",
    ),
    (record(Kind.STUCK, "Drv", "step-budget"), "run ended: step-budget, Drv"),
    (record(Kind.DRIVER_STATE, "Drv", "worn", (), None, 3), "Drv: its worn becomes 3"),
    (
        record(Kind.FAULT, "Drv", "write", (0x10, "Drv+0x2f", "Drv+0x8")),
        "Drv faults: write of 0x10, where nothing is, at Drv+0x2f, called from Drv+0x8",
    ),
    (
        record(Kind.FAULT, "Drv", "exception", (0, "Drv+0x2f"), None, "divide error"),
        "Drv faults: exception, divide error, at Drv+0x2f",
    ),
    (record(Kind.FAULT, "Drv", "halt", (0, "Drv+0x2f")), "Drv faults: halt, at Drv+0x2f"),
    (
        record(Kind.STRAY, "Drv", "in", (0x510, "Drv+0x2f")),
        'Drv: "in" with port 0x510, where nothing is, called from Drv+0x2f',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "phrase"), PHRASES, ids=[phrase[:40] for _, phrase in PHRASES])
def test_a_record_reads_as_a_phrase(what, phrase):
    """Numbers have the names of the specification, and calls have their answers."""
    assert describe(what) == phrase


def test_every_kind_of_record_has_a_phrase():
    """A new kind cannot be forgotten."""
    assert set(timeline._PHRASES) == set(Kind)
    assert {what.kind for what, _ in PHRASES} == set(Kind) - {Kind.OPERATION}


def test_every_service_shows_its_arguments_by_name():
    """Each service that can fail is one whose arguments the timeline knows."""
    services = (*BOOT_SERVICES, *GUEST_SERVICES, *PCI_ACCESSES)
    assert [call for call in services if call not in timeline._service_fields()] == []


def test_flags_without_a_common_name_are_joined():
    """Combined types read as their parts, and bits that no flag has stay a number."""
    create = record(Kind.SERVICE, "Drv", "CreateEvent", (EventType.TIMER | EventType.NOTIFY_SIGNAL, 8, "", None))
    assert "event_type=NOTIFY_SIGNAL|TIMER" in describe(create) or "event_type=TIMER|NOTIFY_SIGNAL" in describe(create)
    for attributes, text in ((0, "0x0"), (0x40, "0x40"), (0x41, "0x41"), (int(OpenAttribute.EXCLUSIVE), "EXCLUSIVE")):
        opened = record(Kind.SERVICE, "Drv", "OpenProtocol", (1, "", 1, 1, attributes))
        assert f"attributes={text})" in describe(opened)


def test_an_object_shows_its_type_and_never_its_address():
    """A timeline is the same in every process."""
    assert describe(record(Kind.SERVICE, "Drv", "Unheard", (object(),))) == "Drv: Unheard(object)"
